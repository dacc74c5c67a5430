//! The task that owns the writing connection.

use std::sync::Arc;

use async_trait::async_trait;
use geminga_metadata::{ChangeFeed, MetadataError, prefix_end};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};

use super::error::{from_sqlx, of_commit};
use super::statements;
use crate::batch::{Batch, Decision, Transaction};
use crate::overlay::Writes;
use crate::queue::{Asked, Requests};

pub(super) struct Writer {
    pub connection: SqliteConnection,
    pub requests: Requests,
    pub subject: Arc<str>,
    pub feed: ChangeFeed,
}

impl Writer {
    pub async fn run(mut self) {
        while let Some(asked) = self.requests.next().await {
            self.transaction(asked).await;
        }
        super::close_connection(&self.subject, self.connection).await;
    }

    /// Runs a batch in one transaction, then answers every request of it.
    async fn transaction(&mut self, asked: Asked) {
        match self.attempt(&asked.batch).await {
            Ok(decision) => {
                self.feed.publish(decision.changes.iter().map(|(_, key)| key.as_str()));
                asked.succeed(decision);
            }
            Err(error) => {
                // Nothing was open when BEGIN itself failed.
                let _ = sqlx::query("ROLLBACK").execute(&mut self.connection).await;
                tracing::warn!(%error, requests = asked.len(), "could not commit metadata");
                asked.fail(&error);
            }
        }
    }

    async fn attempt(&mut self, batch: &Batch) -> Result<Decision, MetadataError> {
        let decision = self.decide(batch).await.map_err(|error| from_sqlx(&self.subject, error))?;
        let committed = sqlx::query("COMMIT").execute(&mut self.connection).await;
        committed.map_err(|error| of_commit(&self.subject, error))?;
        Ok(decision)
    }

    /// Everything in an open transaction.
    async fn decide(&mut self, batch: &Batch) -> Result<Decision, sqlx::Error> {
        sqlx::query("BEGIN IMMEDIATE").execute(&mut self.connection).await?;
        let last: i64 = sqlx::query_scalar(statements::LAST_VERSION).fetch_one(&mut self.connection).await?;
        let decision = batch.decide(&mut self.connection, last as u64).await?;
        self.connection.write(&decision.writes).await?;
        sqlx::query(statements::SET_LAST_VERSION).bind(decision.version as i64).execute(&mut self.connection).await?;
        Ok(decision)
    }
}

#[async_trait]
impl Transaction for SqliteConnection {
    async fn versions(&mut self, keys: &[&str]) -> Result<Vec<(String, u64)>, sqlx::Error> {
        let mut versions = Vec::with_capacity(keys.len());
        for (statement, keys) in statements::VERSIONS.pieces(keys) {
            let mut query = sqlx::query(statement);
            for key in keys {
                query = query.bind(*key);
            }
            for row in query.fetch_all(&mut *self).await? {
                versions.push(key_and_version(&row)?);
            }
        }
        Ok(versions)
    }

    async fn versions_under(&mut self, prefix: &str, limit: usize) -> Result<Vec<(String, u64)>, sqlx::Error> {
        let rows = sqlx::query(statements::VERSIONS_UNDER)
            .bind(prefix)
            .bind(prefix_end(prefix).unwrap_or_else(|| statements::BEYOND_ALL_KEYS.to_vec()))
            .bind(i64::try_from(limit).unwrap_or(i64::MAX))
            .fetch_all(self)
            .await?;
        rows.iter().map(key_and_version).collect()
    }

    async fn write(&mut self, writes: &Writes) -> Result<(), sqlx::Error> {
        for (statement, rows) in statements::PUT.pieces(&writes.puts) {
            let mut query = sqlx::query(statement);
            for (key, version, value) in rows {
                query = query.bind(key.as_str()).bind(*version as i64).bind(&value[..]);
            }
            query.execute(&mut *self).await?;
        }
        for (statement, keys) in statements::DELETE.pieces(&writes.deletes) {
            let mut query = sqlx::query(statement);
            for key in keys {
                query = query.bind(key.as_str());
            }
            query.execute(&mut *self).await?;
        }
        Ok(())
    }

    async fn allocate(&mut self, sequence: &str, count: u64) -> Result<u64, sqlx::Error> {
        let next: i64 =
            sqlx::query_scalar(statements::ALLOCATE).bind(sequence).bind(count as i64).fetch_one(self).await?;
        Ok(next as u64 - count)
    }
}

fn key_and_version(row: &SqliteRow) -> Result<(String, u64), sqlx::Error> {
    let version: i64 = row.try_get(1)?;
    Ok((row.try_get(0)?, version as u64))
}
