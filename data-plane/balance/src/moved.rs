//! How long a bundle is left where it is after moves.

use crate::MoveLimits;

/// When the balancer last moved a bundle for balance's sake, and when before that. Times are the leader's.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Moved {
    last_ms: Option<u64>,
    before_ms: Option<u64>,
}

/// How well rested a bundle has to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Rest {
    Whole,
    /// The broker that has it is well above its share, and has nothing else to give.
    Short,
}

impl Moved {
    /// It has moved, as was asked at `asked_ms`. Its new owner may have told of that already.
    pub fn note(&mut self, asked_ms: u64, now_ms: u64) {
        if self.last_ms.is_none_or(|last| last < asked_ms) {
            self.before_ms = self.last_ms;
        }
        self.last_ms = Some(now_ms);
    }

    /// What an owner tells, who may know of moves that another leader has made.
    pub fn learn(&mut self, last_ms: Option<u64>, before_ms: Option<u64>) {
        self.last_ms = self.last_ms.max(last_ms);
        self.before_ms = self.before_ms.max(before_ms);
    }

    /// From when on it may be moved again: with whole rests between moves always, and with a short one if there was none such
    /// before, so that a bundle does not move three times in the time of two rests.
    pub fn free_from_ms(&self, rest: Rest, limits: &MoveLimits) -> u64 {
        let rest_ms = match rest {
            Rest::Whole => limits.rest_ms,
            Rest::Short => limits.short_rest_ms,
        };
        let last = self.last_ms.map_or(0, |last| last + rest_ms);
        let before = self.before_ms.map_or(0, |before| before + 2 * limits.rest_ms);
        last.max(before)
    }
}
