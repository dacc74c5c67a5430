//! How many messages and bytes may pass in a time.
//!
//! A [`RateLimit`] holds what may still pass, fills up with time, and never holds more than one period's worth. Taking more
//! than there is is allowed, since nobody knows a batch's size before it comes: then nothing passes until that is made up for.

/// What may pass in each period; 0 means any number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rate {
    pub messages: u64,
    pub bytes: u64,
    pub period_ms: u64,
}

impl Rate {
    pub fn is_limited(&self) -> bool {
        self.messages > 0 || self.bytes > 0
    }
}

/// See the module's head. Times are in milliseconds since the epoch.
#[derive(Clone, Debug)]
pub struct RateLimit {
    rate: Rate,
    messages: Bucket,
    bytes: Bucket,
}

impl RateLimit {
    pub fn new(rate: Rate, now: u64) -> Self {
        RateLimit {
            rate,
            messages: Bucket::new(rate.messages, rate.period_ms, now),
            bytes: Bucket::new(rate.bytes, rate.period_ms, now),
        }
    }

    pub fn rate(&self) -> Rate {
        self.rate
    }

    /// Another rate holds from now on; what has passed still counts.
    pub fn change(&mut self, rate: Rate, now: u64) {
        if rate == self.rate {
            return;
        }
        let mut next = RateLimit::new(rate, now);
        self.messages.fill(now);
        self.bytes.fill(now);
        next.messages.level = next.messages.level.min(self.messages.level);
        next.bytes.level = next.bytes.level.min(self.bytes.level);
        *self = next;
    }

    /// Milliseconds until something may pass, 0 if it may now.
    pub fn wait_ms(&mut self, now: u64) -> u64 {
        self.messages.wait_ms(now).max(self.bytes.wait_ms(now))
    }

    /// Messages and bytes that may pass now.
    pub fn room(&mut self, now: u64) -> (u64, u64) {
        (self.messages.room(now), self.bytes.room(now))
    }

    /// So much has passed.
    pub fn take(&mut self, now: u64, messages: u64, bytes: u64) {
        self.messages.take(now, messages);
        self.bytes.take(now, bytes);
    }

    /// Whether all that has passed is made up for.
    pub fn is_full(&mut self, now: u64) -> bool {
        self.messages.is_full(now) && self.bytes.is_full(now)
    }
}

#[derive(Clone, Debug)]
struct Bucket {
    /// What fits, and comes in each period; infinite without a limit.
    size: f64,
    per_ms: f64,
    level: f64,
    at: u64,
}

impl Bucket {
    fn new(per_period: u64, period_ms: u64, now: u64) -> Self {
        let size = if per_period == 0 { f64::INFINITY } else { per_period as f64 };
        Bucket { size, per_ms: size / period_ms.max(1) as f64, level: size, at: now }
    }

    fn fill(&mut self, now: u64) {
        if self.size.is_finite() {
            self.level = (self.level + now.saturating_sub(self.at) as f64 * self.per_ms).min(self.size);
            self.at = self.at.max(now);
        }
    }

    fn wait_ms(&mut self, now: u64) -> u64 {
        self.fill(now);
        if self.level >= 1.0 { 0 } else { ((1.0 - self.level) / self.per_ms).ceil() as u64 }
    }

    fn room(&mut self, now: u64) -> u64 {
        self.fill(now);
        self.level.max(0.0) as u64
    }

    fn take(&mut self, now: u64, amount: u64) {
        self.fill(now);
        self.level -= amount as f64;
    }

    fn is_full(&mut self, now: u64) -> bool {
        self.fill(now);
        self.level >= self.size
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_as_much_as_the_rate_says() {
        let mut limit = RateLimit::new(Rate { messages: 10, bytes: 0, period_ms: 1000 }, 5_000);
        let mut passed = 0;
        for now in 5_000..15_000 {
            while limit.wait_ms(now) == 0 {
                limit.take(now, 1, 1_000_000);
                passed += 1;
            }
        }
        assert_eq!(passed, 10 + 99, "one period's worth at once, then one each 100 ms");
        assert_eq!(limit.room(15_000), (1, u64::MAX));
        assert!(!limit.is_full(15_000) && limit.is_full(16_000));
    }

    #[test]
    fn what_was_too_much_is_made_up_for() {
        let mut limit = RateLimit::new(Rate { messages: 0, bytes: 1000, period_ms: 100 }, 0);
        assert_eq!(limit.room(0), (u64::MAX, 1000));
        limit.take(0, 1, 5000);
        assert_eq!((limit.wait_ms(0), limit.room(0).1), (401, 0));
        assert_eq!(limit.wait_ms(400), 1);
        assert_eq!(limit.wait_ms(401), 0);
        assert_eq!(limit.room(100_000).1, 1000, "no more than one period is saved up");
    }
}
