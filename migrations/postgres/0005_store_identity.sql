-- Which database this is: made once, kept by dumps, base backups and restores. A data directory's journal is replayed
-- into the database it belongs to and into no other.

CREATE TABLE store_identity (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    id uuid NOT NULL
);

INSERT INTO store_identity (id) VALUES (gen_random_uuid());
