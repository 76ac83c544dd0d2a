-- Which database this is: made once, kept by copies and restores. Mirrors migrations/postgres.

CREATE TABLE store_identity (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
    id BLOB NOT NULL CHECK (length(id) = 16)
) STRICT;

INSERT INTO store_identity (only_row, id) VALUES (1, randomblob(16));
