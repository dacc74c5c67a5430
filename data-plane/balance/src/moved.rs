//! How long a bundle is left where it is after moves.

use crate::{MoveLimits, Reason};

/// When the balancer last moved a bundle, by why. Times are the leader's.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Moved {
    levelled_ms: Option<u64>,
    filled_ms: Option<u64>,
}

/// How well rested a bundle has to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Rest {
    /// Whatever it was moved for.
    Whole,
    /// Since it was moved for levelling; if a started broker was given it, a short rest does.
    SinceLevelled,
}

impl Moved {
    pub fn note(&mut self, reason: Reason, now_ms: u64) {
        match reason {
            Reason::Drain => {}
            Reason::Level => self.levelled_ms = Some(now_ms),
            Reason::Fill => self.filled_ms = Some(now_ms),
        }
    }

    /// What an owner tells, who may know of moves that another leader has made.
    pub fn learn(&mut self, levelled_ms: Option<u64>, filled_ms: Option<u64>) {
        self.levelled_ms = self.levelled_ms.max(levelled_ms);
        self.filled_ms = self.filled_ms.max(filled_ms);
    }

    /// From when on it may be moved again.
    pub fn free_from_ms(&self, rest: Rest, limits: &MoveLimits) -> u64 {
        let rest_after_fill_ms = match rest {
            Rest::Whole => limits.rest_ms,
            Rest::SinceLevelled => limits.short_rest_ms,
        };
        let after = |moved: Option<u64>, rest_ms: u64| moved.map_or(0, |moved_ms| moved_ms + rest_ms);
        after(self.levelled_ms, limits.rest_ms).max(after(self.filled_ms, rest_after_fill_ms))
    }
}
