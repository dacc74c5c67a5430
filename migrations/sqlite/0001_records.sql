-- Versioned records in the order of their keys, sequences of ids, and the version of the last commit.
PRAGMA application_id = 0x474d4e47; -- "GMNG"

CREATE TABLE records (
    key     TEXT    NOT NULL PRIMARY KEY,
    version INTEGER NOT NULL,
    value   BLOB    NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE sequences (
    name TEXT    NOT NULL PRIMARY KEY,
    next INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE last_commit (
    id      INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
    version INTEGER NOT NULL
) STRICT;

INSERT INTO last_commit (id, version) VALUES (1, 0);
