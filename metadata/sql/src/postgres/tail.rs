//! Follows the log of changes, of all processes, and tells this process's watches.

use std::convert::Infallible;
use std::time::Duration;

use geminga_metadata::ChangeFeed;
use sqlx::Row;
use sqlx::postgres::{PgListener, PgPoolOptions, PgRow};
use tokio::time::{sleep, timeout};

use super::session::{Role, Server, timed_out};
use super::statements;

/// How often the log is read although nobody has called: a connection may be dead without a sign of it.
const POLL_INTERVAL: Duration = Duration::from_secs(5);
/// How long connecting, and one read of the log, may take.
const STEP_TIME_MAX: Duration = Duration::from_secs(5);
const RECONNECT_PAUSE: Duration = Duration::from_millis(250);
/// Changes per read: bounds what is held of them, as a key has up to 64 KiB.
const CHANGES_PER_READ: usize = 256;

/// A place in the log of changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Position {
    version: i64,
    step: i32,
}

impl Position {
    fn after_all_of(version: i64) -> Self {
        Position { version, step: i32::MAX }
    }
}

pub(super) struct Tail {
    server: Server,
    feed: ChangeFeed,
    seen: Position,
    lost: bool,
}

/// What one read of the log has found.
struct Found {
    changes: Vec<(Position, String)>,
    last_version: i64,
    /// The last version whose changes are gone.
    trimmed: i64,
}

impl Tail {
    /// Begins after `version`.
    pub fn new(server: Server, feed: ChangeFeed, version: i64) -> Self {
        Tail { server, feed, seen: Position::after_all_of(version), lost: false }
    }

    pub async fn run(mut self) {
        loop {
            let Err(error) = self.follow().await;
            if !self.lost {
                tracing::warn!(%error, "watches of the {} wait until it is back", self.server.subject);
            }
            self.lost = true;
            sleep(RECONNECT_PAUSE).await;
        }
    }

    /// Listens first and reads then, so that a change is in what is read, or calls later.
    async fn follow(&mut self) -> Result<Infallible, sqlx::Error> {
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .max_lifetime(None)
            .idle_timeout(None)
            .acquire_timeout(STEP_TIME_MAX)
            .connect_lazy_with(self.server.options(Role::Statements));
        let mut listener = PgListener::connect_with(&pool).await?;
        listener.eager_reconnect(false);
        within(listener.listen(statements::CHANNEL)).await?;
        loop {
            while !self.read(&mut listener).await? {}
            if self.lost {
                tracing::info!("watches of the {} go on", self.server.subject);
                self.lost = false;
            }
            match timeout(POLL_INTERVAL, listener.try_recv()).await {
                Ok(Ok(None)) => return Err(sqlx::Error::Io(std::io::ErrorKind::ConnectionAborted.into())),
                Ok(Err(error)) => return Err(error),
                // One read answers all calls before it.
                Ok(Ok(Some(_))) => while listener.next_buffered().is_some() {},
                Err(_) => {}
            }
        }
    }

    /// Publishes what is new. Answers whether that was all.
    async fn read(&mut self, listener: &mut PgListener) -> Result<bool, sqlx::Error> {
        let query = sqlx::query(statements::CHANGES_AFTER)
            .bind(self.seen.version)
            .bind(self.seen.step)
            .bind(CHANGES_PER_READ as i64);
        let found = Found::new(&within(query.fetch_all(listener)).await?)?;
        Ok(self.publish(found))
    }

    fn publish(&mut self, found: Found) -> bool {
        let trimmed = Position::after_all_of(found.trimmed);
        if self.seen < trimmed {
            self.feed.resync();
            self.seen = trimmed;
        }
        // Another server has taken over that lacks the last commits of the one before.
        if self.seen.version > found.last_version {
            self.feed.resync();
            self.seen = Position::after_all_of(found.last_version);
        }
        self.feed.publish(found.changes.iter().map(|(_, key)| key.as_str()));
        let complete = found.changes.len() < CHANGES_PER_READ;
        match found.changes.last() {
            Some((position, _)) if !complete => self.seen = *position,
            _ => self.seen = Position::after_all_of(found.last_version),
        }
        complete
    }
}

async fn within<T>(step: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, sqlx::Error> {
    timeout(STEP_TIME_MAX, step).await.unwrap_or_else(|_| Err(timed_out("following changes")))
}

impl Found {
    fn new(rows: &[PgRow]) -> Result<Self, sqlx::Error> {
        let first = rows.first().ok_or(sqlx::Error::RowNotFound)?;
        let mut changes = Vec::new();
        for row in rows {
            if let Some(version) = row.try_get(2)? {
                changes.push((Position { version, step: row.try_get(3)? }, super::key(row, 4)?));
            }
        }
        Ok(Found { changes, last_version: first.try_get(0)?, trimmed: first.try_get(1)? })
    }
}

#[cfg(test)]
mod tests {
    use geminga_metadata::WatchEvent;

    use super::*;

    fn found(changes: &[(i64, i32)], last_version: i64, trimmed: i64) -> Found {
        let change = |&(version, step): &(i64, i32)| (Position { version, step }, format!("k{version}.{step}"));
        Found { changes: changes.iter().map(change).collect(), last_version, trimmed }
    }

    #[tokio::test]
    async fn what_was_trimmed_or_lost_is_not_missed_in_silence() {
        let feed = ChangeFeed::default();
        let mut watch = feed.watch("k");
        let mut tail = Tail::new(Server::parse("postgres://localhost/x").unwrap(), feed, 10);
        assert!(tail.publish(found(&[(11, 0), (11, 1)], 12, 10)));
        assert_eq!(tail.seen, Position::after_all_of(12), "a commit without changes is behind it too");
        assert!(tail.publish(found(&[(16, 0)], 16, 14)), "13 and 14 are trimmed");
        assert!(tail.publish(found(&[], 5, 0)), "the server has forgotten everything after 5");
        assert_eq!(tail.seen, Position::after_all_of(5));
        let full: Vec<(i64, i32)> = (0..CHANGES_PER_READ as i32).map(|step| (6, step)).collect();
        assert!(!tail.publish(found(&full, 9, 0)));
        assert_eq!(tail.seen, Position { version: 6, step: CHANGES_PER_READ as i32 - 1 });
        let changed = |key: &str| WatchEvent::Changed(key.to_owned());
        let expected = [changed("k11.0"), changed("k11.1"), WatchEvent::Resync, changed("k16.0"), WatchEvent::Resync];
        for event in expected {
            assert_eq!(watch.next().await, Some(event));
        }
    }
}
