-- In the schema "geminga" of the database, which the search path of Geminga's sessions names.

-- Versioned records in the order of their keys' bytes. A B-tree takes no key of 64 KiB, so the index has the first KiB
-- of a key, and the hash of the rest to tell apart keys that begin alike.
CREATE TABLE records (
    key     BYTEA  NOT NULL,
    version BIGINT NOT NULL,
    value   BYTEA  NOT NULL
);
CREATE UNIQUE INDEX records_by_key ON records (substr(key, 1, 1024), sha256(substr(key, 1025)));

CREATE TABLE sequences (
    name TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    next BIGINT           NOT NULL
);

-- The version of the last commit. Whoever commits locks this row first: so versions become visible in their order.
CREATE TABLE last_commit (
    id      INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
    version BIGINT  NOT NULL
);
INSERT INTO last_commit (id, version) VALUES (1, 0);

-- What changed, for watches: a row for each key of each commit, in the order of the commit's steps.
CREATE TABLE changes (
    version    BIGINT           NOT NULL,
    step       INTEGER          NOT NULL,
    key        BYTEA            NOT NULL,
    changed_at TIMESTAMPTZ      NOT NULL DEFAULT now(),
    PRIMARY KEY (version, step)
);

-- The last version whose changes are no longer in "changes".
CREATE TABLE changes_trimmed (
    id      INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
    version BIGINT  NOT NULL
);
INSERT INTO changes_trimmed (id, version) VALUES (1, 0);

-- The last transaction of each process that writes: so it can look whether a COMMIT without an answer took place.
CREATE TABLE writers (
    writer       TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    batch        BIGINT           NOT NULL,
    committed_at TIMESTAMPTZ      NOT NULL DEFAULT now()
);
