//! The backend for several processes: tables in a PostgreSQL database, in the schema `geminga`.
//!
//! A process has up to six connections. One writes (`writer`): all commits and allocations that wait for it share a
//! transaction. One listens for changes (`tail`). The others read (`pool`). Each is made again when it is lost, and each
//! call ends within ten seconds, whatever the server does.

mod clock;
mod error;
mod pool;
mod schema;
mod session;
mod statements;
mod tail;
mod upkeep;
mod writer;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use geminga_metadata::{ChangeFeed, MetadataError, MetadataStore, Op, Record, Watch, prefix_end};
use parking_lot::Mutex;
use sqlx::Row;
use sqlx::postgres::PgRow;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::Schema;
use crate::queue::{Queue, queue};
use clock::ServerClock;
use pool::Pool;
use session::Server;
use tail::Tail;
use writer::Writer;

/// The writer answers sooner by itself; this is for a queue that is full.
const CALL_TIME_MAX: Duration = Duration::from_secs(10);

/// A [`MetadataStore`] in a PostgreSQL database, for any number of processes.
///
/// - While the server is away, calls try again for some seconds and then fail as [`MetadataError::Unavailable`]. When it
///   is back, everything goes on by itself.
/// - Watches see the changes of all processes. After a lost connection they go on where they were, or say
///   [`geminga_metadata::WatchEvent::Resync`] when that is longer ago than changes are kept (two minutes).
/// - [`MetadataStore::now_ms`] is the server's clock, measured every ten seconds.
pub struct PostgresStore {
    pool: Arc<Pool>,
    queue: Queue,
    feed: ChangeFeed,
    clock: Arc<ServerClock>,
    subject: Arc<str>,
    writer: Mutex<Option<JoinHandle<()>>>,
    background: [JoinHandle<()>; 2],
}

impl PostgresStore {
    /// Connects to the database that a URL like `postgres://user@host:5432/database` names, and brings its schema up to
    /// date. The database must exist, and the user must be allowed to create a schema in it, or own the schema
    /// `geminga`. Needs a tokio runtime.
    pub async fn open(url: &str) -> Result<Self, MetadataError> {
        Self::open_with(url, Schema::UpToDate).await
    }

    pub(crate) async fn open_with(url: &str, schema: Schema) -> Result<Self, MetadataError> {
        let server = Server::parse(url)?;
        let pool = Arc::new(Pool::new(server.clone()));
        schema::check_server(&server, &pool).await?;
        match schema {
            Schema::UpToDate => schema::prepare(&server).await?,
            Schema::AsItIs => schema::check(&server).await?,
        }
        let clock = Arc::new(ServerClock::measure(&pool).await?);
        let rows = pool.rows(|| sqlx::query(statements::NEW_WRITER)).await?;
        let [name, version] = [0, 1];
        let name: String = rows[0].try_get(name).map_err(|error| pool.failed(error))?;
        let version: i64 = rows[0].try_get(version).map_err(|error| pool.failed(error))?;

        let feed = ChangeFeed::default();
        let subject = server.subject.clone();
        let (queue, requests) = queue(subject.clone());
        let tail = Tail::new(server.clone(), feed.clone(), version);
        let writer = Writer::new(server, requests, name);
        let background = [tokio::spawn(tail.run()), tokio::spawn(upkeep::run(pool.clone(), clock.clone()))];
        let writer = Mutex::new(Some(tokio::spawn(writer.run())));
        Ok(PostgresStore { pool, queue, feed, clock, subject, writer, background })
    }

    async fn within<T>(
        &self,
        answer: impl Future<Output = Result<T, MetadataError>> + Send,
    ) -> Result<T, MetadataError> {
        let late = |_| Err(MetadataError::OutcomeUnknown(format!("{} does not answer", self.subject)));
        timeout(CALL_TIME_MAX, answer).await.unwrap_or_else(late)
    }
}

fn key(row: &PgRow, column: usize) -> Result<String, sqlx::Error> {
    String::from_utf8(row.try_get(column)?).map_err(|error| sqlx::Error::Decode(error.into()))
}

fn record(row: &PgRow, version: usize, value: usize) -> Result<Record, sqlx::Error> {
    let version: i64 = row.try_get(version)?;
    let value: Vec<u8> = row.try_get(value)?;
    Ok(Record { value: value.into(), version: version as u64 })
}

#[async_trait]
impl MetadataStore for PostgresStore {
    async fn get(&self, key: &str) -> Result<Option<Record>, MetadataError> {
        let rows = self.pool.rows(|| sqlx::query(statements::GET).bind(key.as_bytes())).await?;
        rows.first().map(|row| record(row, 0, 1)).transpose().map_err(|error| self.pool.failed(error))
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
        let end = prefix_end(prefix).unwrap_or_else(|| statements::BEYOND_ALL_KEYS.to_vec());
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = self.pool.rows(|| sqlx::query(statement).bind(start.as_bytes()).bind(&end[..]).bind(limit)).await?;
        rows.iter()
            .map(|row| Ok((self::key(row, 0)?, record(row, 1, 2)?)))
            .collect::<Result<_, sqlx::Error>>()
            .map_err(|error| self.pool.failed(error))
    }

    async fn commit(&self, ops: Vec<Op>) -> Result<Vec<u64>, MetadataError> {
        ops.iter().try_for_each(Op::validate)?;
        if ops.is_empty() {
            return Ok(Vec::new());
        }
        self.within(self.queue.commit(ops)).await
    }

    async fn allocate(&self, sequence: &str, count: u64) -> Result<u64, MetadataError> {
        if count == 0 || count > u64::from(u32::MAX) {
            return Err(MetadataError::Invalid("an allocation is of 1 to 4294967295 ids".into()));
        }
        self.within(self.queue.allocate(sequence, count)).await
    }

    async fn next_of(&self, sequence: &str) -> Result<u64, MetadataError> {
        let rows = self.pool.rows(|| sqlx::query(statements::NEXT_OF).bind(sequence)).await?;
        let next = rows.first().map(|row| row.try_get::<i64, _>(0)).transpose();
        Ok(next.map_err(|error| self.pool.failed(error))?.map_or(1, |next| next as u64))
    }

    /// Needs no connection. May also tell of changes from just before.
    async fn watch(&self, prefix: &str) -> Result<Watch, MetadataError> {
        Ok(self.feed.watch(prefix))
    }

    fn now_ms(&self) -> u64 {
        self.clock.now_ms()
    }

    async fn close(&self) {
        self.background.iter().for_each(JoinHandle::abort);
        self.queue.close();
        let writer = self.writer.lock().take();
        if let Some(writer) = writer
            && let Err(error) = writer.await
        {
            tracing::error!(%error, "metadata writer failed");
        }
        self.pool.close().await;
    }
}

impl Drop for PostgresStore {
    fn drop(&mut self) {
        self.background.iter().for_each(JoinHandle::abort);
        self.queue.close();
    }
}
