-- Mirrors migrations/postgres/0006_quarantine.sql, which explains the column.
ALTER TABLE quarantined_events ADD COLUMN event_id BLOB;
CREATE INDEX quarantined_events_list ON quarantined_events (quarantined_at, id);
