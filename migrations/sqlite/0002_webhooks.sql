-- Webhook endpoints, the deliveries that events owe them, and every attempt made. Mirrors
-- migrations/postgres/0002_webhooks.sql, which explains the columns.

CREATE TABLE endpoints (
    id BLOB PRIMARY KEY CHECK (length(id) = 16),
    org_id BLOB NOT NULL REFERENCES organizations (id),
    url TEXT NOT NULL,
    description TEXT NOT NULL,
    event_types TEXT,
    headers TEXT NOT NULL,
    enabled INTEGER NOT NULL CHECK (enabled IN (0, 1)),
    disabled_reason TEXT,
    rate_limit_per_second INTEGER CHECK (rate_limit_per_second > 0),
    secret BLOB NOT NULL,
    previous_secret BLOB,
    previous_until INTEGER,
    failing_since INTEGER,
    created_at INTEGER NOT NULL,
    CHECK ((previous_secret IS NULL) = (previous_until IS NULL))
) STRICT;

CREATE INDEX endpoints_org_id ON endpoints (org_id, id);

CREATE TABLE deliveries (
    id BLOB NOT NULL CHECK (length(id) = 16),
    event_id BLOB NOT NULL,
    endpoint_id BLOB NOT NULL,
    org_id BLOB NOT NULL,
    event_received_at INTEGER NOT NULL,
    next_attempt_at INTEGER,
    attempts_made INTEGER NOT NULL DEFAULT 0,
    attempts_before INTEGER NOT NULL DEFAULT 0,
    status INTEGER NOT NULL DEFAULT 0 CHECK (status BETWEEN 0 AND 3),
    CHECK ((status = 0) = (next_attempt_at IS NOT NULL))
) STRICT;

CREATE UNIQUE INDEX deliveries_id ON deliveries (id);
CREATE INDEX deliveries_due ON deliveries (endpoint_id, next_attempt_at) WHERE status = 0;
CREATE INDEX deliveries_event ON deliveries (event_id);
CREATE INDEX deliveries_list ON deliveries (org_id, status, id);

CREATE TABLE delivery_attempts (
    delivery_id BLOB NOT NULL,
    at INTEGER NOT NULL,
    number INTEGER NOT NULL,
    latency_ms INTEGER NOT NULL,
    status_code INTEGER,
    error TEXT,
    response_body TEXT,
    PRIMARY KEY (delivery_id, number)
) STRICT, WITHOUT ROWID;

-- The feed of changes takes new kinds: the same table without the check on them. The numbers go on where they were.
CREATE TABLE credential_changes_v2 (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL,
    id TEXT NOT NULL,
    changed_at INTEGER NOT NULL
) STRICT;

INSERT INTO credential_changes_v2 SELECT seq, kind, id, changed_at FROM credential_changes;
DELETE FROM sqlite_sequence WHERE name = 'credential_changes_v2';
INSERT INTO sqlite_sequence (name, seq)
SELECT 'credential_changes_v2', seq FROM sqlite_sequence WHERE name = 'credential_changes';
DROP TABLE credential_changes;
ALTER TABLE credential_changes_v2 RENAME TO credential_changes;
