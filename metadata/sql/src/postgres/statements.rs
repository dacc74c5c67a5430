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

/// Puts the records that three arrays describe: keys, versions and values.
macro_rules! put {
    ($keys:literal, $versions:literal, $values:literal) => {
        concat!(
            "INSERT INTO records (key, version, value) SELECT * FROM unnest(",
            $keys,
            "::bytea[], ",
            $versions,
            "::bigint[], ",
            $values,
            "::bytea[]) ON CONFLICT (substr(key, 1, 1024), sha256(substr(key, 1025))) DO UPDATE ",
            "SET version = excluded.version, value = excluded.value"
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

pub(super) const PUT: &str = put!("$1", "$2", "$3");

pub(super) const DELETE: &str = concat!(
    "DELETE FROM records USING unnest($1::bytea[]) AS unwanted (key) WHERE ",
    same_key!("records.key", "unwanted.key")
);

/// Binds the name and the number of ids; answers the id after them.
pub(super) const ALLOCATE: &str = "INSERT INTO sequences (name, next) VALUES ($1, 1 + $2) \
     ON CONFLICT (name) DO UPDATE SET next = sequences.next + $2 RETURNING next";

/// The next id of a sequence, if it has given any.
pub(super) const NEXT_OF: &str = "SELECT next FROM sequences WHERE name = $1";

/// The last statement of a transaction before [`COMMIT`]: the last puts, the last version, the log of changes, and whose
/// transaction it is.
pub(super) const CONCLUDE: &str = concat!(
    "WITH puts AS (",
    put!("$7", "$8", "$9"),
    "), log AS (INSERT INTO changes (version, step, key) SELECT * FROM unnest($2::bigint[], $3::integer[], $4::bytea[])), ",
    "own AS (INSERT INTO writers (writer, batch) VALUES ($5, $6) ",
    "ON CONFLICT (writer) DO UPDATE SET batch = excluded.batch, committed_at = now()) ",
    "UPDATE last_commit SET version = $1 WHERE id = 1"
);

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

#[cfg(test)]
mod tests {
    use geminga_test_postgres::Server as TestServer;
    use sqlx::{PgConnection, Row};

    use super::*;
    use crate::PostgresStore;
    use crate::postgres::session::{Role, Server};

    /// With the types of what they bind, values for that, and the index that they walk.
    const WALKING: [(&str, &str, &str, &str); 9] = [
        (GET, "bytea", "'a'", "records_by_key"),
        (SCAN_FROM, "bytea, bytea, bigint", "'a', 'b', 10", "records_by_key"),
        (SCAN_AFTER, "bytea, bytea, bigint", "'a', 'b', 10", "records_by_key"),
        (VERSIONS_UNDER, "bytea, bytea, bigint", "'a', 'b', 10", "records_by_key"),
        (VERSIONS, "bytea[]", "'{a, b}'", "records_by_key"),
        (DELETE, "bytea[]", "'{a, b}'", "records_by_key"),
        (NEXT_OF, "text", "'a'", "sequences_pkey"),
        (CHANGES_AFTER, "bigint, integer, bigint", "1, 1, 10", "changes_pkey"),
        (TRIM_CHANGES, "double precision, bigint", "1, 10", "changes_pkey"),
    ];

    async fn plan(connection: &mut PgConnection, index: usize) -> String {
        let explain = format!("EXPLAIN EXECUTE walking_{index}({})", WALKING[index].2);
        let rows = sqlx::raw_sql(sqlx::AssertSqlSafe(explain)).fetch_all(connection).await.unwrap();
        rows.iter().map(|row| row.get::<String, _>(0) + "\n").collect()
    }

    /// Plans are made once: for an empty store, for one that has grown since it was looked at, and for one that is known.
    #[tokio::test]
    async fn statements_walk_their_indexes_whatever_is_known_of_the_tables() {
        let server = TestServer::shared();
        let database = server.create_database();
        let url = server.url(&database);
        let store = PostgresStore::open(&url).await.unwrap();
        let grow = "INSERT INTO geminga.records (key, version, value) \
                    SELECT ('topics/' || n)::bytea, n, 'x' FROM generate_series(1, 50000) n; \
                    INSERT INTO geminga.changes (version, step, key) SELECT n, 0, 'k' FROM generate_series(1, 50000) n";
        for step in ["SELECT 1", grow, "ANALYZE geminga.records, geminga.changes"] {
            server.query(&database, step);
            let mut connection = Server::parse(&url).unwrap().connect(Role::Statements).await.unwrap();
            for (index, (statement, types, _, walked)) in WALKING.iter().enumerate() {
                let prepare = format!("PREPARE walking_{index} ({types}) AS {statement}");
                sqlx::raw_sql(sqlx::AssertSqlSafe(prepare)).execute(&mut connection).await.unwrap();
                let plan = plan(&mut connection, index).await;
                let table = walked.split('_').next().unwrap();
                assert!(plan.contains(&format!("using {walked} on {table}")), "after '{step}': {statement}\n{plan}");
                assert!(plan.contains("Index Cond"), "after '{step}': {statement}\n{plan}");
                assert!(!plan.contains(&format!("Seq Scan on {table} ")), "after '{step}': {statement}\n{plan}");
            }
        }
        drop(store);
    }
}
