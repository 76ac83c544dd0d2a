-- Which days have had a partition of `events`, so that a day that was dropped can be told from one that never was.

-- `remade_at`: the partition was dropped and made again by a server that started then. What a journal holds of the day
-- from before belongs to the partition that was dropped.
CREATE TABLE event_days (
    day date PRIMARY KEY,
    created_at timestamptz NOT NULL,
    remade_at timestamptz
);
-- Dates only, and a server that may not make partitions has to know them.
GRANT SELECT ON event_days TO PUBLIC;

-- Notes the days of the partitions that are there, whoever made them.
CREATE FUNCTION events_note_days_v1() RETURNS void LANGUAGE sql AS $$
    INSERT INTO event_days (day, created_at)
    SELECT make_date(substr(relname, 9, 4)::int, substr(relname, 13, 2)::int, 1) + substr(relname, 15, 2)::int - 1, now()
    FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
    WHERE inhparent = 'events'::regclass AND relname ~ '^events_p[1-9][0-9]{3}(0[1-9]|1[0-2])[0-3][0-9]$'
    ON CONFLICT DO NOTHING
$$;
SELECT events_note_days_v1();

-- Creates the partition of the UTC day that begins at `day_start`, unless it is there, as events_ensure_day_v1 did. Returns
-- what it found or did: 'there', 'made', 'remade' where the day had a partition before; 'default' where a DEFAULT
-- partition holds rows of the day, so that it takes the others too and none can be made; 'dropped' where the day had a
-- partition before and `only_new` is asked for.
-- It waits for locks for a short time only: whoever calls it tries again.
CREATE FUNCTION events_ensure_day_v2(day_start timestamptz, started_at timestamptz, only_new boolean) RETURNS text
LANGUAGE plpgsql
SET lock_timeout = '2s'
SET enable_seqscan = on
AS $$
DECLARE
    the_day date := (day_start AT TIME ZONE 'UTC')::date;
    partition text := 'events_p' || to_char(the_day, 'YYYYMMDD');
    first text := to_char(the_day, 'YYYY-MM-DD') || ' 00:00:00+00';
    next text := to_char(the_day + 1, 'YYYY-MM-DD') || ' 00:00:00+00';
    spare regclass;
    is_held boolean;
    is_known boolean;
BEGIN
    FOR attempt IN 1..2 LOOP
        -- By a join, not to_regclass: that one answers from a cache, which waiting for the lock does not refresh.
        IF EXISTS (SELECT 1 FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
                   WHERE inhparent = 'events'::regclass AND relname = partition) THEN
            RETURN 'there';
        END IF;
        is_known := EXISTS (SELECT FROM event_days WHERE day = the_day);
        IF only_new AND is_known AND to_regclass(partition) IS NULL THEN
            RETURN 'dropped';
        END IF;
        SELECT NULLIF(partdefid, 0) INTO spare FROM pg_partitioned_table WHERE partrelid = 'events'::regclass;
        IF spare IS NOT NULL THEN
            -- Looked for first: ATTACH would lock that partition against everybody while it scans it.
            EXECUTE format('SELECT EXISTS (SELECT FROM %s WHERE received_at >= %L AND received_at < %L)',
                spare, first, next) INTO is_held;
            IF is_held THEN
                RETURN 'default';
            END IF;
        END IF;
        -- Look again once this transaction is the only one that creates partitions.
        PERFORM pg_advisory_xact_lock(7235440125741002);
    END LOOP;
    EXECUTE format('CREATE TABLE %I (LIKE events INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', partition);
    EXECUTE format('CREATE UNIQUE INDEX %I ON %I (id)', partition || '_id', partition);
    EXECUTE format('ALTER TABLE events ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', partition, first, next);
    INSERT INTO event_days AS known (day, created_at) VALUES (the_day, now())
        ON CONFLICT (day) DO UPDATE SET remade_at = GREATEST(known.remade_at, started_at);
    PERFORM events_note_days_v1();
    RETURN CASE WHEN is_known THEN 'remade' ELSE 'made' END;
END
$$;

-- Versions before this one make partitions, too.
CREATE OR REPLACE FUNCTION events_ensure_day_v1(day_start timestamptz) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    RETURN events_ensure_day_v2(day_start, NULL, false) IN ('made', 'remade');
END
$$;
