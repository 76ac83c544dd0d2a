-- How long an endpoint has failed. Mirrors migrations/postgres/0003_failing.sql.
ALTER TABLE endpoints ADD COLUMN failing_ms INTEGER NOT NULL DEFAULT 0;
ALTER TABLE endpoints ADD COLUMN failing_noted_at INTEGER;
