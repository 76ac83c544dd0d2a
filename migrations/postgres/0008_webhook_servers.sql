-- What servers on one database must have in common, so that one that differs is found out.

-- The key that endpoints' secrets were sealed with last, by eight bytes of a hash of it. Those stand in each sealed secret
-- behind its version, one byte: of what is there already the most frequent ones count.
CREATE TABLE webhook_sealing_key (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    fingerprint bytea NOT NULL
);

INSERT INTO webhook_sealing_key (fingerprint)
SELECT substring(secret FROM 2 FOR 8) FROM endpoints WHERE length(secret) > 9 GROUP BY 1 ORDER BY count(*) DESC LIMIT 1;

-- The schedules of retries that running servers have, and when one last said so.
CREATE TABLE webhook_retry_schedules (
    schedule text PRIMARY KEY,
    seen_at timestamptz NOT NULL
);

-- When an endpoint was enabled last. All servers begin anew with it then, also one that never saw it disabled.
ALTER TABLE endpoints ADD COLUMN enabled_at timestamptz;
