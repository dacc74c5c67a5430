//! A few connections for single statements: reads, and upkeep.

use std::time::Duration;

use geminga_metadata::MetadataError;
use parking_lot::Mutex;
use sqlx::postgres::{PgArguments, PgConnection, PgRow};
use sqlx::query::Query;
use sqlx::{Connection, Postgres};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout_at};

use super::error::{from_sqlx, is_transient};
use super::session::{Role, Server, timed_out};

const CONNECTIONS_MAX: usize = 4;
/// How long a statement may take with all its attempts.
const STATEMENT_TIME_MAX: Duration = Duration::from_secs(9);
/// How long one attempt may take, so that a connection whose other end has vanished leaves time for another one.
const ATTEMPT_TIME_MAX: Duration = Duration::from_secs(4);
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// Runs statements, again on another connection when one is lost: only statements that may be run twice.
pub(super) struct Pool {
    server: Server,
    idle: Mutex<Vec<PgConnection>>,
    permits: Semaphore,
}

impl Pool {
    pub fn new(server: Server) -> Self {
        Pool { server, idle: Mutex::default(), permits: Semaphore::new(CONNECTIONS_MAX) }
    }

    /// The rows of a statement, which `query` makes for every attempt. Fails as unavailable within ten seconds.
    pub async fn rows<'q>(
        &self,
        query: impl Fn() -> Query<'q, Postgres, PgArguments>,
    ) -> Result<Vec<PgRow>, MetadataError> {
        let deadline = Instant::now() + STATEMENT_TIME_MAX;
        let permit = timeout_at(deadline, self.permits.acquire());
        let permit = permit.await.map_err(|_| self.failed(timed_out("waiting for a connection")))?;
        let _permit = permit.map_err(|_| self.closed())?;
        loop {
            let attempt_ends = deadline.min(Instant::now() + ATTEMPT_TIME_MAX);
            let outcome = timeout_at(attempt_ends, self.attempt(query())).await;
            match outcome.unwrap_or_else(|_| Err(timed_out("a statement"))) {
                Ok(rows) => return Ok(rows),
                Err(error) if is_transient(&error) && Instant::now() + RETRY_PAUSE < deadline => {
                    // What has happened to one connection has probably happened to all.
                    self.idle.lock().clear();
                    sleep(RETRY_PAUSE).await;
                }
                Err(error) => return Err(self.failed(error)),
            }
        }
    }

    /// A connection comes back only after a success: nothing is known about its state otherwise.
    async fn attempt(&self, query: Query<'_, Postgres, PgArguments>) -> Result<Vec<PgRow>, sqlx::Error> {
        let idle = self.idle.lock().pop();
        let mut connection = match idle {
            Some(connection) => connection,
            None => self.server.connect(Role::Statements).await?,
        };
        let rows = query.fetch_all(&mut connection).await?;
        if !self.permits.is_closed() {
            self.idle.lock().push(connection);
        }
        Ok(rows)
    }

    /// Later statements fail as unavailable.
    pub async fn close(&self) {
        self.permits.close();
        let idle = std::mem::take(&mut *self.idle.lock());
        for connection in idle {
            // The server notices by itself when it cannot be told.
            let _ = tokio::time::timeout(RETRY_PAUSE, connection.close()).await;
        }
    }

    pub fn failed(&self, error: sqlx::Error) -> MetadataError {
        from_sqlx(&self.server.subject, error)
    }

    fn closed(&self) -> MetadataError {
        MetadataError::Unavailable(format!("{} is closed", self.server.subject))
    }
}
