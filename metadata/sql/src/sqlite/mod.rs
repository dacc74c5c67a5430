//! The embedded backend: one SQLite file in WAL mode with `synchronous=FULL`.
//!
//! One connection writes. All commits and allocations that wait for it share a transaction, and so an fsync; each has
//! its own result (see [`crate::batch`]). Reads go over a few other connections and never wait for the writer.

mod error;
mod statements;
mod writer;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use geminga_metadata::{ChangeFeed, MetadataError, MetadataStore, Op, Record, Watch, prefix_end};
use parking_lot::Mutex;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, Row, SqliteConnection};
use tokio::task::JoinHandle;

use crate::Schema;
use crate::migration::{self, Step};
use crate::queue::{Queue, queue};
use error::from_sqlx;
use writer::Writer;

const SCHEMA: &[Step] =
    &[Step { version: 1, name: "records", sql: include_str!("../../../../migrations/sqlite/0001_records.sql") }];

/// "GMNG", in the header of our files.
const APPLICATION_ID: i64 = 0x474d_4e47;
const READERS_MAX: u32 = 4;
/// How long a statement waits when another process holds the file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// A [`MetadataStore`] in a SQLite file. [Close](MetadataStore::close) it to leave a tidy file; after a crash the next open
/// finds every commit that returned.
pub struct SqliteStore {
    subject: Arc<str>,
    readers: SqlitePool,
    queue: Queue,
    task: Mutex<Option<JoinHandle<()>>>,
    feed: ChangeFeed,
}

impl SqliteStore {
    /// Opens the file, creating it and bringing its schema up to date. Its folder must exist. Needs a tokio runtime.
    pub async fn open(path: &Path) -> Result<Self, MetadataError> {
        Self::open_with(path, Schema::UpToDate).await
    }

    pub(crate) async fn open_with(path: &Path, schema: Schema) -> Result<Self, MetadataError> {
        let subject: Arc<str> = format!("metadata file {}", path.display()).into();
        let options = SqliteConnectOptions::new()
            .filename(path)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY_TIMEOUT)
            .pragma("journal_size_limit", "67108864")
            .thread_name(|index| format!("metadata-{index}"))
            .disable_statement_logging();
        let options = match schema {
            Schema::UpToDate => options.create_if_missing(true).journal_mode(SqliteJournalMode::Wal),
            Schema::AsItIs => options,
        };
        let failed = |error| from_sqlx(&subject, error);
        let mut connection = options.connect().await.map_err(failed)?;
        check_application(&subject, &mut connection).await?;
        match schema {
            Schema::UpToDate => migration::migrator(SCHEMA)
                .run(&mut connection)
                .await
                .map_err(|error| migration::failed(&subject, error, from_sqlx))?,
            Schema::AsItIs => {
                let found = last_step(&mut connection).await.map_err(failed)?;
                migration::check(&subject, found, SCHEMA)?;
            }
        }
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS_MAX)
            .test_before_acquire(false)
            .connect_lazy_with(options.read_only(true).create_if_missing(false));
        let feed = ChangeFeed::default();
        let (queue, requests) = queue(subject.clone());
        let writer = Writer { connection, requests, subject: subject.clone(), feed: feed.clone() };
        let task = Mutex::new(Some(tokio::spawn(writer.run())));
        Ok(SqliteStore { subject, readers, queue, task, feed })
    }

    fn failed(&self, error: sqlx::Error) -> MetadataError {
        from_sqlx(&self.subject, error)
    }
}

/// Of the schema; `None` if there is none.
async fn last_step(connection: &mut SqliteConnection) -> Result<Option<i64>, sqlx::Error> {
    let exists = "SELECT count(*) > 0 FROM sqlite_schema WHERE name = '_sqlx_migrations'";
    if !sqlx::query_scalar(exists).fetch_one(&mut *connection).await? {
        return Ok(None);
    }
    sqlx::query_scalar("SELECT max(version) FROM _sqlx_migrations WHERE success").fetch_one(connection).await
}

/// Refuses a database that somebody else made.
async fn check_application(subject: &str, connection: &mut SqliteConnection) -> Result<(), MetadataError> {
    let failed = |error| from_sqlx(subject, error);
    let id: i64 = sqlx::query_scalar("PRAGMA application_id").fetch_one(&mut *connection).await.map_err(failed)?;
    let objects: i64 =
        sqlx::query_scalar("SELECT count(*) FROM sqlite_schema").fetch_one(connection).await.map_err(failed)?;
    if id != APPLICATION_ID && objects > 0 {
        return Err(MetadataError::Corrupt {
            subject: subject.to_owned(),
            reason: "it is a SQLite database that is not Geminga's".to_owned(),
        });
    }
    Ok(())
}

fn record(row: &sqlx::sqlite::SqliteRow, version: usize, value: usize) -> Result<Record, sqlx::Error> {
    let version: i64 = row.try_get(version)?;
    let value: Vec<u8> = row.try_get(value)?;
    Ok(Record { value: value.into(), version: version as u64 })
}

#[async_trait]
impl MetadataStore for SqliteStore {
    async fn get(&self, key: &str) -> Result<Option<Record>, MetadataError> {
        let row = sqlx::query(statements::GET).bind(key).fetch_optional(&self.readers).await;
        let row = row.map_err(|error| self.failed(error))?;
        row.map(|row| record(&row, 0, 1)).transpose().map_err(|error| self.failed(error))
    }

    async fn scan(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, Record)>, MetadataError> {
        let (statement, start) = match after {
            Some(after) if after >= prefix => (statements::SCAN_AFTER, after),
            _ => (statements::SCAN_FROM, prefix),
        };
        let rows = sqlx::query(statement)
            .bind(start)
            .bind(prefix_end(prefix).unwrap_or_else(|| statements::BEYOND_ALL_KEYS.to_vec()))
            .bind(i64::try_from(limit).unwrap_or(i64::MAX))
            .fetch_all(&self.readers)
            .await
            .map_err(|error| self.failed(error))?;
        rows.iter()
            .map(|row| Ok((row.try_get(0)?, record(row, 1, 2)?)))
            .collect::<Result<_, sqlx::Error>>()
            .map_err(|error| self.failed(error))
    }

    async fn commit(&self, ops: Vec<Op>) -> Result<Vec<u64>, MetadataError> {
        ops.iter().try_for_each(Op::validate)?;
        if ops.is_empty() {
            return Ok(Vec::new());
        }
        self.queue.commit(ops).await
    }

    async fn allocate(&self, sequence: &str, count: u64) -> Result<u64, MetadataError> {
        if count == 0 || count > u64::from(u32::MAX) {
            return Err(MetadataError::Invalid("an allocation is of 1 to 4294967295 ids".into()));
        }
        self.queue.allocate(sequence, count).await
    }

    async fn next_of(&self, sequence: &str) -> Result<u64, MetadataError> {
        let next = sqlx::query_scalar(statements::NEXT_OF).bind(sequence).fetch_optional(&self.readers).await;
        let next: Option<i64> = next.map_err(|error| self.failed(error))?;
        Ok(next.map_or(1, |next| next as u64))
    }

    async fn watch(&self, prefix: &str) -> Result<Watch, MetadataError> {
        Ok(self.feed.watch(prefix))
    }

    /// SQLite calls nobody.
    fn hears_other_processes(&self) -> bool {
        false
    }

    fn now_ms(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_millis() as u64)
    }

    async fn close(&self) {
        // Readers first: the last connection checkpoints and removes the WAL, which a read-only one cannot.
        self.readers.close().await;
        self.queue.close();
        let task = self.task.lock().take();
        if let Some(task) = task
            && let Err(error) = task.await
        {
            tracing::error!(%error, "metadata writer failed");
        }
    }
}

impl Drop for SqliteStore {
    fn drop(&mut self) {
        self.queue.close();
    }
}

/// Closes the writer's connection, which checkpoints the WAL.
async fn close_connection(subject: &str, connection: SqliteConnection) {
    if let Err(error) = connection.close().await {
        tracing::warn!(%error, "could not close the {subject}");
    }
}
