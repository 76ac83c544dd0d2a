-- The key that endpoints' secrets were sealed with last. See migrations/postgres/0008_webhook_servers.sql; the schedule of
-- retries is that of the one server there is.
CREATE TABLE webhook_sealing_key (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
    fingerprint BLOB NOT NULL
) STRICT;

INSERT INTO webhook_sealing_key (only_row, fingerprint)
SELECT 1, substr(secret, 2, 8) FROM endpoints WHERE length(secret) > 9 GROUP BY 2 ORDER BY count(*) DESC LIMIT 1;

ALTER TABLE endpoints ADD COLUMN enabled_at INTEGER;
