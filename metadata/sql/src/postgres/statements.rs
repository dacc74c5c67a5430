//! PostgreSQL's statements. Keys are bound as bytes; the column `key` and the index `records_by_key` say why.

/// A macro, because the same expressions find a key in the index everywhere.
macro_rules! same_key {
    ($one:literal, $other:literal) => {
        concat!(
            "substr(",
            $one,
            ", 1, 1024) = substr(",
            $other,
            ", 1, 1024) AND ",
            "sha256(substr(",
            $one,
            ", 1025)) = sha256(substr(",
            $other,
            ", 1025))"
        )
    };
}

/// `$compare`: whether the range begins with `$1` or after it. It ends before `$2` and has at most `$3` rows.
macro_rules! range {
    ($columns:literal, $compare:literal) => {
        concat!(
            "SELECT ",
            $columns,
            " FROM records WHERE substr(key, 1, 1024) >= substr($1, 1, 1024) ",
            "AND substr(key, 1, 1024) <= substr($2, 1, 1024) AND key ",
            $compare,
            " $1 AND key < $2 ",
            "ORDER BY substr(key, 1, 1024), key LIMIT $3"
        )
    };
}

pub(super) const GET: &str = concat!("SELECT version, value FROM records WHERE ", same_key!("key", "$1"));
pub(super) const SCAN_FROM: &str = range!("key, version, value", ">=");
pub(super) const SCAN_AFTER: &str = range!("key, version, value", ">");
pub(super) const VERSIONS_UNDER: &str = range!("key, version", ">=");
/// Greater than every UTF-8 text.
pub(super) const BEYOND_ALL_KEYS: &[u8] = &[0xff];

/// Locks the row that all commits lock first. The isolation is said, because a default of the server may be another:
/// each statement after the lock must see what was committed before it was given.
pub(super) const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; \
     SELECT version FROM last_commit WHERE id = 1 FOR UPDATE";

pub(super) const VERSIONS: &str = concat!(
    "SELECT records.key, records.version FROM unnest($1::bytea[]) AS wanted (key) JOIN records ON ",
    same_key!("records.key", "wanted.key")
);

pub(super) const PUT: &str = "INSERT INTO records (key, version, value) \
     SELECT * FROM unnest($1::bytea[], $2::bigint[], $3::bytea[]) \
     ON CONFLICT (substr(key, 1, 1024), sha256(substr(key, 1025))) DO UPDATE \
     SET version = excluded.version, value = excluded.value";

pub(super) const DELETE: &str = concat!(
    "DELETE FROM records USING unnest($1::bytea[]) AS unwanted (key) WHERE ",
    same_key!("records.key", "unwanted.key")
);

/// Binds the name and the number of ids; answers the id after them.
pub(super) const ALLOCATE: &str = "INSERT INTO sequences (name, next) VALUES ($1, 1 + $2) \
     ON CONFLICT (name) DO UPDATE SET next = sequences.next + $2 RETURNING next";

/// The next id of a sequence, if it has given any.
pub(super) const NEXT_OF: &str = "SELECT next FROM sequences WHERE name = $1";

/// The last statement of a transaction before [`COMMIT`]: the last version, the log of changes, and whose transaction
/// it is.
pub(super) const CONCLUDE: &str = "WITH \
     log AS (INSERT INTO changes (version, step, key) SELECT * FROM unnest($2::bigint[], $3::integer[], $4::bytea[])), \
     own AS (INSERT INTO writers (writer, batch) VALUES ($5, $6) \
             ON CONFLICT (writer) DO UPDATE SET batch = excluded.batch, committed_at = now()) \
     UPDATE last_commit SET version = $1 WHERE id = 1";

pub(super) const CHANNEL: &str = "geminga_changes";
/// Wakes those who follow the log of changes, see [`CHANNEL`].
pub(super) const NOTIFY_AND_COMMIT: &str = "NOTIFY geminga_changes; COMMIT";

/// The number of this writer's last transaction that took place.
pub(super) const LAST_BATCH: &str = "SELECT batch FROM writers WHERE writer = $1";

/// Changes after the step `$2` of version `$1`, at most `$3`, from one snapshot together with the last version and the
/// last one whose changes were trimmed. One row without a change when there is none.
pub(super) const CHANGES_AFTER: &str = "SELECT last.version, trimmed.version, later.version, later.step, later.key \
     FROM last_commit last CROSS JOIN changes_trimmed trimmed LEFT JOIN \
     (SELECT version, step, key FROM changes WHERE (version, step) > ($1, $2) ORDER BY version, step LIMIT $3) later \
     ON true WHERE last.id = 1 AND trimmed.id = 1 ORDER BY later.version, later.step";

/// Of the `$2` oldest changes, trims those that are older than `$1` seconds; answers how many were trimmed.
pub(super) const TRIM_CHANGES: &str = "WITH \
     oldest AS (SELECT version, changed_at FROM changes ORDER BY version, step LIMIT $2), \
     old AS (SELECT max(version) AS version FROM oldest WHERE changed_at < now() - make_interval(secs => $1)), \
     mark AS (UPDATE changes_trimmed SET version = old.version FROM old WHERE old.version > changes_trimmed.version), \
     gone AS (DELETE FROM changes USING old WHERE changes.version <= old.version RETURNING 1) \
     SELECT count(*) FROM gone";

/// Forgets writers whose last transaction is older than `$1` seconds.
pub(super) const TRIM_WRITERS: &str = "DELETE FROM writers WHERE committed_at < now() - make_interval(secs => $1)";

/// Milliseconds since the Unix epoch.
pub(super) const NOW_MS: &str = "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint";

/// Of a server: its version as a number, and whether it syncs to its disk.
pub(super) const SERVER_FACTS: &str = "SELECT current_setting('server_version_num')::integer, current_setting('fsync')";

/// A new writer's name, and the last version.
pub(super) const NEW_WRITER: &str = "SELECT gen_random_uuid()::text, version FROM last_commit WHERE id = 1";
