-- Organisations, their keys, the events and what was refused. Mirrors migrations/postgres/0001_events.sql.
-- Times are microseconds since the Unix epoch, ids the 16 bytes of a UUID.

CREATE TABLE organizations (
    id BLOB PRIMARY KEY CHECK (length(id) = 16),
    name TEXT NOT NULL UNIQUE,
    rate_limit_per_minute INTEGER CHECK (rate_limit_per_minute >= 0),
    disabled INTEGER NOT NULL DEFAULT 0 CHECK (disabled IN (0, 1)),
    created_at INTEGER NOT NULL
) STRICT;

CREATE TABLE api_keys (
    id TEXT PRIMARY KEY CHECK (length(id) = 12),
    org_id BLOB NOT NULL REFERENCES organizations (id),
    digest BLOB NOT NULL CHECK (length(digest) = 32),
    phc TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    last_used_at INTEGER,
    expires_at INTEGER,
    revoked_at INTEGER
) STRICT;

CREATE INDEX api_keys_org_id ON api_keys (org_id, created_at);

CREATE TABLE events (
    id BLOB NOT NULL CHECK (length(id) = 16),
    org_id BLOB NOT NULL,
    received_at INTEGER NOT NULL,
    type TEXT NOT NULL,
    dedup_id TEXT,
    payload TEXT NOT NULL
) STRICT;

CREATE UNIQUE INDEX events_id ON events (id);

-- Read backwards for "newest first by (received_at, id)".
CREATE INDEX events_list ON events (org_id, received_at, id);

CREATE TABLE quarantined_events (
    id BLOB PRIMARY KEY,
    org_id BLOB NOT NULL,
    received_at INTEGER NOT NULL,
    type TEXT NOT NULL,
    dedup_id TEXT,
    payload TEXT NOT NULL,
    reason TEXT NOT NULL,
    quarantined_at INTEGER NOT NULL
) STRICT;

-- What the processes on this file tell each other: written in the transaction that makes the change.
-- AUTOINCREMENT: a number is never used twice, so a gap means that rows were trimmed.
CREATE TABLE credential_changes (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL CHECK (kind IN ('key', 'org')),
    id TEXT NOT NULL,
    changed_at INTEGER NOT NULL
) STRICT;
