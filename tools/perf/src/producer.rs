//! One producer as a pure state machine: which messages are due when, and what is in flight.
//!
//! Message `k` has sequence id `k` and, at a fixed rate, a scheduled time that doesn't depend on how the run goes.

use std::collections::VecDeque;

/// When messages are to be sent. Times are the run's nanoseconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    pub(crate) start_ns: u64,
    /// `None`: full speed.
    pub(crate) interval_ns: Option<f64>,
    /// Nothing is scheduled from here on.
    pub(crate) stop_ns: u64,
    /// Number of messages.
    pub(crate) quota: u64,
}

/// Bounds of batches and of what is in flight.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) batch_count: u32,
    pub(crate) batch_delay_ns: u64,
    pub(crate) max_count: u64,
    pub(crate) max_bytes: u64,
}

/// Sent, but without receipt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Batch {
    pub(crate) sequence_id: u64,
    pub(crate) count: u32,
    pub(crate) bytes: u64,
    /// When its first message was scheduled.
    pub(crate) first_ns: u64,
}

/// What a producer wants now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    Send {
        count: u32,
        first_ns: u64,
    },
    /// Nothing before this time.
    At(u64),
    /// Nothing before a receipt.
    Blocked,
    Done,
}

pub(crate) struct Producer {
    pace: Pace,
    limits: Limits,
    next: u64,
    in_flight: VecDeque<Batch>,
    count: u64,
    bytes: u64,
}

impl Producer {
    pub(crate) fn new(pace: Pace, limits: Limits) -> Self {
        Self { pace, limits, next: 0, in_flight: VecDeque::new(), count: 0, bytes: 0 }
    }

    fn scheduled(&self, index: u64, interval_ns: f64) -> u64 {
        self.pace.start_ns + (index as f64 * interval_ns) as u64
    }

    pub(crate) fn turn(&self, now: u64) -> Turn {
        let first_ns = match self.pace.interval_ns {
            Some(interval) => self.scheduled(self.next, interval),
            None => now.max(self.pace.start_ns),
        };
        if self.next >= self.pace.quota || first_ns >= self.pace.stop_ns {
            return Turn::Done;
        }
        if self.count >= self.limits.max_count || self.bytes >= self.limits.max_bytes {
            return Turn::Blocked;
        }
        let due = match self.pace.interval_ns {
            None if first_ns > now => return Turn::At(first_ns),
            None => u64::MAX,
            Some(interval) => {
                let ready = if self.in_flight.is_empty() { first_ns } else { self.ready_at(first_ns, interval) };
                if now < ready {
                    return Turn::At(ready);
                }
                let last = ((now.min(self.pace.stop_ns - 1) - self.pace.start_ns) as f64 / interval) as u64;
                (last + 1).saturating_sub(self.next).max(1)
            }
        };
        let room = self.limits.max_count - self.count;
        let count = due.min(self.pace.quota - self.next).min(room).min(u64::from(self.limits.batch_count));
        Turn::Send { count: count as u32, first_ns }
    }

    /// While others are in flight: when the next batch is full or its first message has waited long enough.
    fn ready_at(&self, first_ns: u64, interval: f64) -> u64 {
        let last = self.next + u64::from(self.limits.batch_count) - 1;
        self.scheduled(last, interval).min(first_ns + self.limits.batch_delay_ns)
    }

    /// The sequence id of the batch that is sent now.
    pub(crate) fn sent(&mut self, count: u32, first_ns: u64, bytes: u64) -> u64 {
        let sequence_id = self.next;
        self.next += u64::from(count);
        self.count += u64::from(count);
        self.bytes += bytes;
        self.in_flight.push_back(Batch { sequence_id, count, bytes, first_ns });
        sequence_id
    }

    /// The batch that a receipt or send error is for, and how many messages before it got neither (they never will:
    /// both come in order). `None` if it is in flight no more.
    pub(crate) fn answered(&mut self, sequence_id: u64) -> (Option<Batch>, u64) {
        let mut skipped = 0;
        while let Some(front) = self.in_flight.front().copied() {
            if front.sequence_id > sequence_id {
                break;
            }
            self.in_flight.pop_front();
            self.count -= u64::from(front.count);
            self.bytes -= front.bytes;
            if front.sequence_id == sequence_id {
                return (Some(front), skipped);
            }
            skipped += u64::from(front.count);
        }
        (None, skipped)
    }

    /// The scheduled time of each message of a batch, or one time for all.
    pub(crate) fn each_scheduled(&self, batch: &Batch, mut each: impl FnMut(u64, u64)) {
        match self.pace.interval_ns {
            Some(interval) if batch.count > 1 => {
                for index in batch.sequence_id..batch.sequence_id + u64::from(batch.count) {
                    each(self.scheduled(index, interval), 1);
                }
            }
            _ => each(batch.first_ns, u64::from(batch.count)),
        }
    }

    pub(crate) fn in_flight(&self) -> u64 {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FREE: Limits = Limits { batch_count: 1, batch_delay_ns: 1000, max_count: 10, max_bytes: 1 << 20 };
    const PACE: Pace = Pace { start_ns: 100, interval_ns: Some(50.0), stop_ns: 10_000, quota: u64::MAX };

    #[test]
    fn a_fixed_rate_catches_up_without_moving_its_schedule() {
        let mut p = Producer::new(PACE, FREE);
        assert_eq!(p.turn(0), Turn::At(100));
        for (k, first_ns) in [(0, 100), (1, 150), (2, 200)] {
            assert_eq!(p.turn(210), Turn::Send { count: 1, first_ns });
            assert_eq!(p.sent(1, first_ns, 10), k);
        }
        assert_eq!(p.turn(210), Turn::At(250));
        assert_eq!(p.turn(9_999), Turn::Send { count: 1, first_ns: 250 });
    }

    #[test]
    fn a_batch_goes_when_full_or_nothing_is_in_flight_or_it_waited_long_enough() {
        let sent_one = |batch_count, batch_delay_ns| {
            let mut p = Producer::new(PACE, Limits { batch_count, batch_delay_ns, ..FREE });
            assert_eq!(p.turn(100), Turn::Send { count: 1, first_ns: 100 });
            p.sent(1, 100, 10);
            p
        };
        let p = sent_one(4, 1000);
        assert_eq!(p.turn(290), Turn::At(300));
        assert_eq!(p.turn(300), Turn::Send { count: 4, first_ns: 150 });
        let mut p = sent_one(400, 120);
        assert_eq!(p.turn(200), Turn::At(270));
        assert_eq!(p.turn(270), Turn::Send { count: 3, first_ns: 150 });
        p.answered(0);
        assert_eq!(p.turn(200), Turn::Send { count: 2, first_ns: 150 }, "nothing is in flight");
    }

    #[test]
    fn what_is_in_flight_is_bounded_and_quota_and_stop_end_it() {
        let mut p = Producer::new(Pace { interval_ns: None, quota: 12, ..PACE }, Limits { batch_count: 8, ..FREE });
        assert_eq!(p.turn(100), Turn::Send { count: 8, first_ns: 100 });
        p.sent(8, 100, 80);
        assert_eq!(p.turn(120), Turn::Send { count: 2, first_ns: 120 });
        p.sent(2, 120, 20);
        assert_eq!(p.turn(130), Turn::Blocked);
        let first = Batch { sequence_id: 0, count: 8, bytes: 80, first_ns: 100 };
        assert_eq!(p.answered(0), (Some(first), 0));
        assert_eq!(p.turn(140), Turn::Send { count: 2, first_ns: 140 });
        p.sent(2, 140, 20);
        assert_eq!((p.turn(150), p.in_flight()), (Turn::Done, 4));
        assert_eq!(p.answered(10).1, 2, "the batch at 8 got no receipt");
        assert_eq!(p.answered(10), (None, 0));
        assert_eq!(Producer::new(PACE, FREE).turn(10_000), Turn::Send { count: 1, first_ns: 100 }, "still owed");
        assert_eq!(Producer::new(Pace { interval_ns: None, ..PACE }, FREE).turn(10_000), Turn::Done);
    }

    #[test]
    fn each_message_of_a_batch_has_its_own_scheduled_time() {
        let mut p = Producer::new(PACE, Limits { batch_count: 3, ..FREE });
        p.sent(3, 100, 30);
        let mut times = Vec::new();
        p.each_scheduled(&p.in_flight[0], |time, count| times.push((time, count)));
        assert_eq!(times, [(100, 1), (150, 1), (200, 1)]);
    }
}
