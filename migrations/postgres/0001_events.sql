-- Organisations, their keys, the events and what was refused.
-- Migrations only expand: a binary that knows fewer of them keeps working on this database.

CREATE TABLE organizations (
    id uuid PRIMARY KEY,
    name text NOT NULL CONSTRAINT organizations_name_key UNIQUE,
    rate_limit_per_minute bigint CHECK (rate_limit_per_minute >= 0),
    disabled boolean NOT NULL DEFAULT false,
    created_at timestamptz NOT NULL
);

CREATE TABLE api_keys (
    id text PRIMARY KEY CHECK (length(id) = 12),
    org_id uuid NOT NULL CONSTRAINT api_keys_org_id_fkey REFERENCES organizations (id),
    digest bytea NOT NULL CHECK (octet_length(digest) = 32),
    phc text NOT NULL,
    created_at timestamptz NOT NULL,
    last_used_at timestamptz,
    expires_at timestamptz,
    revoked_at timestamptz
);

CREATE INDEX api_keys_org_id ON api_keys (org_id, created_at);

-- One partition per UTC day, made ahead by events_ensure_day_v1; retention is DROP of a partition. There is no
-- DEFAULT partition: it would block DETACH CONCURRENTLY and every ATTACH would have to scan it.
-- `json`, not `jsonb`: the text is kept byte for byte. No foreign keys: an event outlives nothing.
-- Fixed-width columns first: no padding.
CREATE TABLE events (
    id uuid NOT NULL,
    org_id uuid NOT NULL,
    received_at timestamptz NOT NULL,
    type text NOT NULL,
    dedup_id text,
    payload json NOT NULL
) PARTITION BY RANGE (received_at);

-- Read backwards for "newest first by (received_at, id)"; ascending, so that inserts go to the right-hand edge of
-- each organisation's range.
CREATE INDEX events_list ON events (org_id, received_at, id);

CREATE TABLE quarantined_events (
    id uuid PRIMARY KEY,
    org_id uuid NOT NULL,
    received_at timestamptz NOT NULL,
    type text NOT NULL,
    dedup_id text,
    payload text NOT NULL,
    reason text NOT NULL,
    quarantined_at timestamptz NOT NULL
);

-- Creates the partition of the UTC day that begins at `day_start`, unless it is there. Returns whether it did.
-- Built beside the table and then attached: ATTACH PARTITION stops neither readers nor writers of `events`, as
-- CREATE TABLE … PARTITION OF would. Where somebody detached the partition and kept it under its name this fails
-- with 42P07: a human has to decide where the late event belongs.
CREATE FUNCTION events_ensure_day_v1(day_start timestamptz) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    day date := (day_start AT TIME ZONE 'UTC')::date;
    partition text := 'events_p' || to_char(day, 'YYYYMMDD');
BEGIN
    FOR attempt IN 1..2 LOOP
        -- By a join, not to_regclass: that one answers from a cache, which waiting for the lock does not refresh.
        IF EXISTS (SELECT 1 FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
                   WHERE inhparent = 'events'::regclass AND relname = partition) THEN
            RETURN false;
        END IF;
        -- Look again once this transaction is the only one that creates partitions.
        PERFORM pg_advisory_xact_lock(7235440125741002);
    END LOOP;
    EXECUTE format('CREATE TABLE %I (LIKE events INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', partition);
    EXECUTE format('CREATE UNIQUE INDEX %I ON %I (id)', partition || '_id', partition);
    EXECUTE format('ALTER TABLE events ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', partition,
        to_char(day, 'YYYY-MM-DD') || ' 00:00:00+00', to_char(day + 1, 'YYYY-MM-DD') || ' 00:00:00+00');
    RETURN true;
END
$$;

-- Always empty; only their table locks matter. See store_events_v1.
CREATE TABLE events_day_lock_0 ();
CREATE TABLE events_day_lock_1 ();
CREATE TABLE events_day_lock_2 ();

-- Stores a batch that holds derived ids: the same id may come again on another day and so meet another partition,
-- where no unique index sees the first copy. Copies of the neighbouring days are looked for here; so that a copy
-- in flight is not missed, transactions that store events of one day run beside each other and exclude those of
-- other days. Table locks say exactly that: the day's own lock is taken ROW EXCLUSIVE (compatible with itself), the
-- two other days' SHARE (compatible with itself, not with ROW EXCLUSIVE), counting days modulo three. A batch of
-- several days excludes everybody. Always in the order 0, 1, 2, so nobody waits in a circle. No clock is consulted.
--
-- Each statement of a volatile function under READ COMMITTED sees what was committed before it began, hence
-- everything stored by whoever held a lock before us.
CREATE FUNCTION store_events_v1(
    ids uuid[], org_ids uuid[], received_ats timestamptz[], types text[], dedup_ids text[], payloads json[]
) RETURNS bigint LANGUAGE plpgsql VOLATILE
-- The payloads must not become constants of a plan, which is copied several times.
SET plan_cache_mode = force_generic_plan
-- A partition without statistics must not tempt the planner to read all of it.
SET enable_seqscan = off
AS $$
DECLARE
    first_day date;
    last_day date;
    day_start timestamptz;
    day_end timestamptz;
    neighbour timestamptz;
    partition text;
    copies uuid[];
    taken uuid[];
    stored bigint;
    total bigint := 0;
BEGIN
    SELECT (min(at) AT TIME ZONE 'UTC')::date, (max(at) AT TIME ZONE 'UTC')::date INTO first_day, last_day
    FROM unnest(received_ats) AS at;
    IF first_day <> last_day THEN
        LOCK TABLE events_day_lock_0, events_day_lock_1, events_day_lock_2 IN EXCLUSIVE MODE;
    ELSIF mod(first_day - date '0001-01-01', 3) = 0 THEN
        LOCK TABLE events_day_lock_0 IN ROW EXCLUSIVE MODE;
        LOCK TABLE events_day_lock_1, events_day_lock_2 IN SHARE MODE;
    ELSIF mod(first_day - date '0001-01-01', 3) = 1 THEN
        LOCK TABLE events_day_lock_0 IN SHARE MODE;
        LOCK TABLE events_day_lock_1 IN ROW EXCLUSIVE MODE;
        LOCK TABLE events_day_lock_2 IN SHARE MODE;
    ELSE
        LOCK TABLE events_day_lock_0, events_day_lock_1 IN SHARE MODE;
        LOCK TABLE events_day_lock_2 IN ROW EXCLUSIVE MODE;
    END IF;
    -- Day by day: a batch may hold both copies.
    FOR day_start IN
        SELECT DISTINCT date_trunc('day', at, 'UTC') FROM unnest(received_ats) AS at ORDER BY 1
    LOOP
        day_end := day_start + interval '24 hours';
        taken := '{}';
        FOREACH neighbour IN ARRAY ARRAY[day_start - interval '24 hours', day_end] LOOP
            -- By the partition's name: a plan over `events` either locks every partition there is or is made anew for
            -- each batch, which costs more than the look-up. For the same reason the ids hide in a subquery: their
            -- number and values are not weighed one by one. LOCK TABLE has refreshed the cache that knows the name.
            partition := 'events_p' || to_char(neighbour AT TIME ZONE 'UTC', 'YYYYMMDD');
            IF to_regclass(partition) IS NOT NULL THEN
                EXECUTE format('SELECT array_agg(id) FROM %I WHERE id = ANY ((SELECT $1)::uuid[])', partition)
                    INTO copies USING ids;
                taken := taken || copies;
            END IF;
        END LOOP;
        INSERT INTO events (id, org_id, received_at, type, dedup_id, payload)
        SELECT * FROM unnest(ids, org_ids, received_ats, types, dedup_ids, payloads)
            AS event (id, org_id, received_at, type, dedup_id, payload)
        WHERE event.received_at >= day_start AND event.received_at < day_end
            AND event.id <> ALL (taken)
        ON CONFLICT DO NOTHING;
        GET DIAGNOSTICS stored = ROW_COUNT;
        total := total + stored;
    END LOOP;
    RETURN total;
END
$$;
