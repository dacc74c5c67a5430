//! The server's clock, as this process knows it.

use std::time::{Duration, Instant};

use geminga_metadata::MetadataError;
use parking_lot::RwLock;
use sqlx::Row;

use super::pool::Pool;
use super::statements;

/// Questions per measurement; the quickest answer counts.
const SAMPLES: usize = 3;

/// Follows the clock of the server, so that all processes agree on when a lease expires, whatever their own clocks say.
///
/// A measurement is wrong by at most half of its round trip. Until the next one the time goes on by this machine's
/// monotonic clock.
pub(super) struct ServerClock {
    reading: RwLock<Reading>,
}

#[derive(Clone, Copy)]
struct Reading {
    server_ms: u64,
    at: Instant,
    round_trip: Duration,
}

impl ServerClock {
    pub async fn measure(pool: &Pool) -> Result<Self, MetadataError> {
        Ok(ServerClock { reading: RwLock::new(measure(pool).await?) })
    }

    pub async fn refresh(&self, pool: &Pool) -> Result<(), MetadataError> {
        let reading = measure(pool).await?;
        *self.reading.write() = reading;
        Ok(())
    }

    /// Milliseconds since the Unix epoch.
    pub fn now_ms(&self) -> u64 {
        self.reading.read().now_ms(Instant::now())
    }
}

impl Reading {
    /// The server answered `server_ms` some time between the two instants: in the middle, as far as anybody can tell.
    fn new(server_ms: u64, asked: Instant, answered: Instant) -> Self {
        let round_trip = answered - asked;
        Reading { server_ms, at: asked + round_trip / 2, round_trip }
    }

    fn now_ms(self, now: Instant) -> u64 {
        self.server_ms + now.saturating_duration_since(self.at).as_millis() as u64
    }
}

async fn measure(pool: &Pool) -> Result<Reading, MetadataError> {
    let mut best = ask(pool).await?;
    for _ in 1..SAMPLES {
        let reading = ask(pool).await?;
        if reading.round_trip < best.round_trip {
            best = reading;
        }
    }
    Ok(best)
}

async fn ask(pool: &Pool) -> Result<Reading, MetadataError> {
    let asked = Instant::now();
    let rows = pool.rows(|| sqlx::query(statements::NOW_MS)).await?;
    let answered = Instant::now();
    let server_ms: i64 = rows[0].try_get(0).map_err(|error| pool.failed(error))?;
    Ok(Reading::new(server_ms as u64, asked, answered))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_time_goes_on_from_the_middle_of_the_round_trip() {
        let asked = Instant::now();
        let after = |ms| asked + Duration::from_millis(ms);
        let reading = Reading::new(1_000_000, asked, after(40));
        assert_eq!(reading.now_ms(after(20)), 1_000_000);
        assert_eq!(reading.now_ms(after(520)), 1_000_500);
    }
}
