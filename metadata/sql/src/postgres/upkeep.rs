//! What each process does now and then: it follows the server's clock, and trims what nobody needs any more.

use std::sync::Arc;
use std::time::Duration;

use geminga_metadata::MetadataError;
use sqlx::Row;

use super::clock::ServerClock;
use super::pool::Pool;
use super::statements;

const INTERVAL: Duration = Duration::from_secs(10);
/// How long changes are kept for watches whose process has lost its connection; older ones it has to read anew.
const CHANGES_AGE: Duration = Duration::from_secs(120);
/// Changes that are trimmed at a time, so that no statement takes long.
const CHANGES_PER_TRIM: i64 = 5_000;
/// Far longer than any writer looks for its last transaction.
const WRITERS_AGE: Duration = Duration::from_secs(24 * 3600);

pub(super) async fn run(pool: Arc<Pool>, clock: Arc<ServerClock>) {
    let mut failing = false;
    loop {
        tokio::time::sleep(INTERVAL).await;
        let outcome = round(&pool, &clock).await;
        if let Err(error) = &outcome
            && !failing
        {
            tracing::warn!(%error, "could not trim metadata or ask for the time");
        }
        failing = outcome.is_err();
    }
}

async fn round(pool: &Pool, clock: &ServerClock) -> Result<(), MetadataError> {
    clock.refresh(pool).await?;
    while trim_changes(pool, CHANGES_AGE).await? >= CHANGES_PER_TRIM {}
    pool.rows(|| sqlx::query(statements::TRIM_WRITERS).bind(WRITERS_AGE.as_secs_f64())).await.map(drop)
}

/// Trims the oldest changes. Answers how many it has trimmed.
async fn trim_changes(pool: &Pool, age: Duration) -> Result<i64, MetadataError> {
    let trim = || sqlx::query(statements::TRIM_CHANGES).bind(age.as_secs_f64()).bind(CHANGES_PER_TRIM);
    pool.rows(trim).await?[0].try_get(0).map_err(|error| pool.failed(error))
}

#[cfg(test)]
mod tests {
    use geminga_metadata::{Expect, MetadataStore, Op};
    use geminga_test_postgres::Server;

    use super::*;
    use crate::PostgresStore;

    #[tokio::test]
    async fn trims_what_is_old_and_notes_how_far() {
        let server = Server::shared();
        let database = server.create_database();
        let store = PostgresStore::open(&server.url(&database)).await.unwrap();
        let put = |key: String| Op::put(key, "", Expect::Any);
        store.commit((0..CHANGES_PER_TRIM).map(|index| put(format!("k{index}"))).collect()).await.unwrap();
        let last = store.commit(vec![put("a".into()), put("b".into())]).await.unwrap()[0];

        round(&store.pool, &store.clock).await.unwrap();
        let kept = "SELECT count(*) FROM geminga.changes";
        assert_eq!(server.query(&database, kept), (CHANGES_PER_TRIM + 2).to_string(), "nothing is old");
        assert_eq!(server.query(&database, "SELECT count(*) FROM geminga.writers"), "1");

        assert_eq!(trim_changes(&store.pool, Duration::ZERO).await.unwrap(), CHANGES_PER_TRIM);
        let trimmed = "SELECT version FROM geminga.changes_trimmed";
        assert_eq!(server.query(&database, trimmed), (last - 1).to_string());
        assert_eq!(trim_changes(&store.pool, Duration::ZERO).await.unwrap(), 2);
        assert_eq!(trim_changes(&store.pool, Duration::ZERO).await.unwrap(), 0);
        assert_eq!(server.query(&database, trimmed), last.to_string());
    }
}
