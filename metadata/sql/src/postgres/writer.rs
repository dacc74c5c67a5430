//! The task that owns the writing connection.
//!
//! Everybody who commits locks the same row first, so that transactions, of all processes, come one after the other:
//! versions become visible in their order, and what a batch has read stays true until it is committed.
//!
//! When a connection is lost after COMMIT was sent, only the server knows whether the transaction took place. Each
//! transaction therefore stores its writer's name and its number. The writer connects again, takes the lock, which waits
//! for whatever is left of the lost transaction, and looks: the number is there, and the batch is answered as
//! decided; or it is not, and the batch is decided anew. When the server does not come back in time for that, the
//! answer is [`MetadataError::OutcomeUnknown`].

use std::time::Duration;

use async_trait::async_trait;
use geminga_metadata::{MetadataError, prefix_end};
use sqlx::postgres::PgRow;
use sqlx::{Connection, PgConnection, Row};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::error::{from_sqlx, is_transient};
use super::session::{Role, Server, timed_out};
use super::statements;
use crate::batch::{Batch, Decision, Transaction};
use crate::overlay::Writes;
use crate::queue::{Asked, Requests};

/// How old a request may be when its transaction begins.
const QUEUE_TIME_MAX: Duration = Duration::from_secs(5);
/// How long a transaction may take with all its attempts. Together with [`QUEUE_TIME_MAX`] below ten seconds.
const BATCH_TIME_MAX: Duration = Duration::from_millis(4500);
const RETRY_PAUSE: Duration = Duration::from_millis(50);

pub(super) struct Writer {
    server: Server,
    requests: Requests,
    /// Unique to this process and opening of the store.
    name: String,
    connection: Option<PgConnection>,
    /// Number of the current batch.
    batch: i64,
}

impl Writer {
    pub fn new(server: Server, requests: Requests, name: String) -> Self {
        Writer { server, requests, name, connection: None, batch: 0 }
    }

    pub async fn run(mut self) {
        let late = MetadataError::Unavailable(format!("{} has been busy for too long", self.server.subject));
        while let Some(asked) = self.requests.next().await {
            let asked = asked.younger_than(QUEUE_TIME_MAX, &late);
            if asked.len() > 0 {
                self.batch += 1;
                self.transaction(asked).await;
            }
        }
        if let Some(connection) = self.connection {
            // The server notices by itself when it cannot be told.
            let _ = timeout(RETRY_PAUSE, connection.close()).await;
        }
    }

    /// Runs a batch in one transaction, then answers every request of it.
    async fn transaction(&mut self, asked: Asked) {
        let deadline = Instant::now() + BATCH_TIME_MAX;
        let mut unanswered = None;
        let error = loop {
            let attempt = timeout_at(deadline, self.attempt(&asked.batch, &mut unanswered)).await;
            let error = match attempt.unwrap_or_else(|_| Err(timed_out("a commit"))) {
                Ok(decision) => return asked.succeed(decision),
                Err(error) => error,
            };
            // Nothing is known about its state. What it has open ends with it.
            self.connection = None;
            let may_help = unanswered.is_some() || is_transient(&error);
            if !may_help || Instant::now() + RETRY_PAUSE >= deadline {
                break error;
            }
            sleep(RETRY_PAUSE).await;
        };
        let error = match unanswered {
            Some(_) => MetadataError::OutcomeUnknown(format!("{}: {error}", self.server.subject)),
            None => from_sqlx(&self.server.subject, error),
        };
        tracing::warn!(%error, requests = asked.len(), "could not commit metadata");
        asked.fail(&error);
    }

    /// `unanswered` is what an attempt has decided whose COMMIT got no answer. Whoever finds it there after an error
    /// does not know whether it took place.
    async fn attempt(&mut self, batch: &Batch, unanswered: &mut Option<Decision>) -> Result<Decision, sqlx::Error> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => none.insert(self.server.connect(Role::Writer).await?),
        };
        let last_version = begin(connection).await?;
        if unanswered.is_some() {
            let took_place = last_batch(connection, &self.name).await? == Some(self.batch);
            if took_place {
                let ended = rollback(connection).await;
                if ended.is_err() {
                    self.connection = None;
                }
                // Not before: time may be over at any wait, and what took place must not pass for what did not.
                return unanswered.take().ok_or(sqlx::Error::WorkerCrashed);
            }
            *unanswered = None;
        }
        let decision = batch.decide(connection, last_version).await?;
        if decision.is_read_only() {
            rollback(connection).await?;
            return Ok(decision);
        }
        conclude(connection, &decision, &self.name, self.batch).await?;
        let commit = if decision.changes.is_empty() { "COMMIT" } else { statements::NOTIFY_AND_COMMIT };
        *unanswered = Some(decision);
        sqlx::raw_sql(commit).execute(connection).await?;
        unanswered.take().ok_or(sqlx::Error::WorkerCrashed)
    }
}

/// Opens a transaction that nobody else's runs beside. Answers the last version.
async fn begin(connection: &mut PgConnection) -> Result<u64, sqlx::Error> {
    let rows = sqlx::raw_sql(statements::BEGIN).fetch_all(connection).await?;
    let version: i64 = rows.first().ok_or(sqlx::Error::RowNotFound)?.try_get(0)?;
    Ok(version as u64)
}

async fn rollback(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::raw_sql("ROLLBACK").execute(connection).await.map(drop)
}

async fn last_batch(connection: &mut PgConnection, writer: &str) -> Result<Option<i64>, sqlx::Error> {
    sqlx::query_scalar(statements::LAST_BATCH).bind(writer).fetch_optional(connection).await
}

async fn conclude(
    connection: &mut PgConnection,
    decision: &Decision,
    writer: &str,
    batch: i64,
) -> Result<(), sqlx::Error> {
    delete(connection, &decision.writes.deletes).await?;
    let puts = Puts::of(&decision.writes);
    let (mut versions, mut steps, mut keys) = (Vec::new(), Vec::new(), Vec::new());
    for commit in decision.changes.chunk_by(|one, next| one.0 == next.0) {
        for (step, (version, key)) in (0i32..).zip(commit) {
            versions.push(*version as i64);
            steps.push(step);
            keys.push(key.as_bytes());
        }
    }
    sqlx::query(statements::CONCLUDE)
        .bind(decision.version as i64)
        .bind(versions)
        .bind(steps)
        .bind(keys)
        .bind(writer)
        .bind(batch)
        .bind(puts.keys)
        .bind(puts.versions)
        .bind(puts.values)
        .execute(connection)
        .await
        .map(drop)
}

/// Records to be put, column by column.
struct Puts<'w> {
    keys: Vec<&'w [u8]>,
    versions: Vec<i64>,
    values: Vec<&'w [u8]>,
}

impl<'w> Puts<'w> {
    fn of(writes: &'w Writes) -> Self {
        Puts {
            keys: writes.puts.iter().map(|(key, ..)| key.as_bytes()).collect(),
            versions: writes.puts.iter().map(|(_, version, _)| *version as i64).collect(),
            values: writes.puts.iter().map(|(.., value)| &value[..]).collect(),
        }
    }
}

async fn delete(connection: &mut PgConnection, keys: &[String]) -> Result<(), sqlx::Error> {
    if keys.is_empty() {
        return Ok(());
    }
    let keys: Vec<&[u8]> = keys.iter().map(|key| key.as_bytes()).collect();
    sqlx::query(statements::DELETE).bind(keys).execute(connection).await.map(drop)
}

#[async_trait]
impl Transaction for PgConnection {
    async fn versions(&mut self, keys: &[&str]) -> Result<Vec<(String, u64)>, sqlx::Error> {
        let keys: Vec<&[u8]> = keys.iter().map(|key| key.as_bytes()).collect();
        let rows = sqlx::query(statements::VERSIONS).bind(keys).fetch_all(self).await?;
        rows.iter().map(key_and_version).collect()
    }

    async fn versions_under(&mut self, prefix: &str, limit: usize) -> Result<Vec<(String, u64)>, sqlx::Error> {
        let rows = sqlx::query(statements::VERSIONS_UNDER)
            .bind(prefix.as_bytes())
            .bind(prefix_end(prefix).unwrap_or_else(|| statements::BEYOND_ALL_KEYS.to_vec()))
            .bind(i64::try_from(limit).unwrap_or(i64::MAX))
            .fetch_all(self)
            .await?;
        rows.iter().map(key_and_version).collect()
    }

    async fn write(&mut self, writes: &Writes) -> Result<(), sqlx::Error> {
        if !writes.puts.is_empty() {
            let Puts { keys, versions, values } = Puts::of(writes);
            sqlx::query(statements::PUT).bind(keys).bind(versions).bind(values).execute(&mut *self).await?;
        }
        delete(self, &writes.deletes).await
    }

    async fn allocate(&mut self, sequence: &str, count: u64) -> Result<u64, sqlx::Error> {
        let next: i64 =
            sqlx::query_scalar(statements::ALLOCATE).bind(sequence).bind(count as i64).fetch_one(self).await?;
        Ok(next as u64 - count)
    }
}

fn key_and_version(row: &PgRow) -> Result<(String, u64), sqlx::Error> {
    let version: i64 = row.try_get(1)?;
    Ok((super::key(row, 0)?, version as u64))
}
