-- The deduplication window ends as it does on Postgres: after the day before and the day after. An id that comes again later
-- names a new event. The unique index on `events` stays, because an older program says ON CONFLICT (id); so of several
-- events with one id the newest is in `events`, and those before it are here.
CREATE TABLE earlier_events (
    id BLOB NOT NULL CHECK (length(id) = 16),
    org_id BLOB NOT NULL,
    received_at INTEGER NOT NULL,
    type TEXT NOT NULL,
    dedup_id TEXT,
    payload TEXT NOT NULL
) STRICT;

CREATE UNIQUE INDEX earlier_events_id ON earlier_events (id, received_at);
CREATE INDEX earlier_events_list ON earlier_events (org_id, received_at, id);

CREATE VIEW all_events AS
    SELECT id, org_id, received_at, type, dedup_id, payload FROM events
    UNION ALL
    SELECT id, org_id, received_at, type, dedup_id, payload FROM earlier_events;
