-- Webhook endpoints, the deliveries that events owe them, and every attempt made.

-- The secret is sealed by the server; `previous_secret` signs beside it until `previous_until`. `headers` is a list
-- of [name, value], `event_types` a list of types, null for all.
CREATE TABLE endpoints (
    id uuid PRIMARY KEY,
    org_id uuid NOT NULL CONSTRAINT endpoints_org_id_fkey REFERENCES organizations (id),
    url text NOT NULL,
    description text NOT NULL,
    event_types json,
    headers json NOT NULL,
    enabled boolean NOT NULL,
    disabled_reason text,
    rate_limit_per_second bigint CHECK (rate_limit_per_second > 0),
    secret bytea NOT NULL,
    previous_secret bytea,
    previous_until timestamptz,
    failing_since timestamptz,
    created_at timestamptz NOT NULL,
    CHECK ((previous_secret IS NULL) = (previous_until IS NULL))
);

CREATE INDEX endpoints_org_id ON endpoints (org_id, id);

-- One row an event and endpoint, made in the transaction that stores the event. No foreign keys: partitions of
-- `events` are dropped, and what was delivered to an endpoint outlives it. `event_received_at` names the partition.
-- The id is a UUIDv7, so its order is that of creation.
-- status: 0 pending, 1 delivered, 2 failed, 3 blocked. A pending row is due once `next_attempt_at` is reached; a
-- claim moves it to the end of its lease, so that whoever finds the moment it set still holds the delivery.
-- `attempts_before` of the attempts belong to earlier rounds, before somebody asked for the delivery again.
-- `first_*` is attempt number 1, of most deliveries the only one, where the receiver's answer was short; every other
-- attempt is in `delivery_attempts`.
--
-- No index holds a column that changes, and pages are left more than half empty (120 bytes a row, and 170 once it was
-- attempted): the update that follows an attempt finds room on its page and writes no index (HOT). That halves what a
-- delivery costs, and the table needs no vacuum but for what retention deletes. What would want an index on such a
-- column has a table of its own, below, whose rows follow those of this one.
CREATE TABLE deliveries (
    id uuid PRIMARY KEY,
    event_id uuid NOT NULL,
    endpoint_id uuid NOT NULL,
    org_id uuid NOT NULL,
    event_received_at timestamptz NOT NULL,
    next_attempt_at timestamptz,
    attempts_made integer NOT NULL DEFAULT 0,
    attempts_before integer NOT NULL DEFAULT 0,
    status smallint NOT NULL DEFAULT 0 CHECK (status BETWEEN 0 AND 3),
    first_status_code smallint,
    first_latency_ms integer,
    first_at timestamptz,
    first_error text,
    first_response_body text,
    CHECK ((status = 0) = (next_attempt_at IS NOT NULL)),
    CHECK ((first_at IS NULL) = (first_latency_ms IS NULL))
) WITH (fillfactor = 40);

CREATE INDEX deliveries_event ON deliveries (event_id);
CREATE INDEX deliveries_list ON deliveries (org_id, id);

-- Those that are pending, and when they are due. Whoever changes a row here holds the lock on its row in `deliveries`,
-- so locks are taken in one order and the two agree.
CREATE TABLE delivery_queue (
    org_id uuid NOT NULL,
    delivery_id uuid NOT NULL,
    endpoint_id uuid NOT NULL,
    next_attempt_at timestamptz NOT NULL,
    PRIMARY KEY (org_id, delivery_id)
) WITH (
    -- Rows stay for milliseconds and leave dead entries where the index of what is due is read.
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 20000,
    autovacuum_analyze_scale_factor = 0,
    autovacuum_analyze_threshold = 20000
);

CREATE INDEX delivery_queue_due ON delivery_queue (endpoint_id, next_attempt_at);

-- Those that are failed (2) or blocked (3), to be listed and recovered; changed under the same lock. A row may be left
-- over here after its delivery was retried: whoever reads it asks `deliveries`.
CREATE TABLE failed_deliveries (
    org_id uuid NOT NULL,
    status smallint NOT NULL,
    delivery_id uuid NOT NULL,
    endpoint_id uuid NOT NULL,
    PRIMARY KEY (org_id, status, delivery_id)
);

-- Attempts that are not in their delivery's own row.
CREATE TABLE delivery_attempts (
    delivery_id uuid NOT NULL,
    at timestamptz NOT NULL,
    number integer NOT NULL,
    latency_ms integer NOT NULL,
    status_code smallint,
    error text,
    response_body text,
    PRIMARY KEY (delivery_id, number)
);

-- As store_events_v1, and stores the deliveries whose event is new. Each event and endpoint is named once at most.
-- A `lease_until` of null: due at once. Returns how many events are new, and the deliveries stored.
CREATE FUNCTION store_events_v2(
    ids uuid[], org_ids uuid[], received_ats timestamptz[], types text[], dedup_ids text[], payloads json[],
    delivery_ids uuid[], delivery_events uuid[], delivery_endpoints uuid[], delivery_orgs uuid[],
    lease_until timestamptz[], OUT stored bigint, OUT deliveries uuid[]
) LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off
AS $$
DECLARE
    day_start timestamptz;
    added uuid[];
BEGIN
    stored := store_events_v1(ids, org_ids, received_ats, types, dedup_ids, payloads);
    deliveries := '{}';
    FOR day_start IN
        SELECT DISTINCT date_trunc('day', at, 'UTC') FROM unnest(received_ats) AS at ORDER BY 1
    LOOP
        -- New is what this very transaction wrote. By the partition's name for the reasons store_events_v1 gives.
        EXECUTE format(
            'WITH added AS (
                INSERT INTO deliveries (id, event_id, endpoint_id, org_id, event_received_at, next_attempt_at)
                SELECT planned.id, event.id, planned.endpoint_id, planned.org_id, event.received_at,
                    COALESCE(planned.lease_until, event.received_at)
                FROM unnest($1, $2, $3, $4, $5) AS planned (id, event_id, endpoint_id, org_id, lease_until)
                    JOIN %I AS event ON event.id = planned.event_id
                WHERE event.xmin = pg_current_xact_id()::xid
                RETURNING id, org_id, endpoint_id, next_attempt_at
            ), queued AS (
                INSERT INTO delivery_queue (org_id, delivery_id, endpoint_id, next_attempt_at)
                SELECT org_id, id, endpoint_id, next_attempt_at FROM added
            ) SELECT array_agg(id) FROM added', 'events_p' || to_char(day_start AT TIME ZONE 'UTC', 'YYYYMMDD'))
        INTO added USING delivery_ids, delivery_events, delivery_endpoints, delivery_orgs, lease_until;
        deliveries := deliveries || added;
    END LOOP;
END
$$;
