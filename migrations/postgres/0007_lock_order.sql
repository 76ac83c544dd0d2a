-- The two functions that store derived ids, which stay what they were but for two things. They lock `events` before a
-- partition of it, as an ALTER TABLE of an operator does: it and a writer can no longer wait for each other until one of them
-- is cancelled. And where the day's rows go to a DEFAULT partition, they find their deliveries there.

CREATE OR REPLACE FUNCTION store_events_v1(
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
    -- Before any partition: whoever changes the table locks it before its partitions, and waits for nobody in a circle.
    LOCK TABLE ONLY events IN ROW EXCLUSIVE MODE;
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

CREATE OR REPLACE FUNCTION store_events_v2(
    ids uuid[], org_ids uuid[], received_ats timestamptz[], types text[], dedup_ids text[], payloads json[],
    delivery_ids uuid[], delivery_events uuid[], delivery_endpoints uuid[], delivery_orgs uuid[],
    lease_until timestamptz[], OUT stored bigint, OUT deliveries uuid[]
) LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off
AS $$
DECLARE
    day_start timestamptz;
    partition text;
    added uuid[];
BEGIN
    stored := store_events_v1(ids, org_ids, received_ats, types, dedup_ids, payloads);
    deliveries := '{}';
    FOR day_start IN
        SELECT DISTINCT date_trunc('day', at, 'UTC') FROM unnest(received_ats) AS at ORDER BY 1
    LOOP
        -- New is what this very transaction wrote. By the partition's name for the reasons store_events_v1 gives; a day
        -- without one went to a DEFAULT partition.
        partition := 'events_p' || to_char(day_start AT TIME ZONE 'UTC', 'YYYYMMDD');
        IF to_regclass(partition) IS NULL THEN
            partition := 'events';
        END IF;
        EXECUTE format(
            'WITH added AS (
                INSERT INTO deliveries (id, event_id, endpoint_id, org_id, event_received_at, next_attempt_at)
                SELECT planned.id, event.id, planned.endpoint_id, planned.org_id, event.received_at,
                    COALESCE(planned.lease_until, event.received_at)
                FROM unnest($1, $2, $3, $4, $5) AS planned (id, event_id, endpoint_id, org_id, lease_until)
                    JOIN %I AS event ON event.id = planned.event_id
                WHERE event.xmin = pg_current_xact_id()::xid AND event.received_at >= $6 AND event.received_at < $7
                RETURNING id, org_id, endpoint_id, next_attempt_at
            ), queued AS (
                INSERT INTO delivery_queue (org_id, delivery_id, endpoint_id, next_attempt_at)
                SELECT org_id, id, endpoint_id, next_attempt_at FROM added
            ) SELECT array_agg(id) FROM added', partition)
        INTO added USING delivery_ids, delivery_events, delivery_endpoints, delivery_orgs, lease_until,
            day_start, day_start + interval '24 hours';
        deliveries := deliveries || added;
    END LOOP;
END
$$;
