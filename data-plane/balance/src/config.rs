//! What can be set, with the reasons for the defaults.

use crate::BundleReport;

const SECOND: u64 = 1_000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;

/// Times are in milliseconds. "Mean" is the utilization that every broker would have if all had the same.
#[derive(Clone, Debug, Default)]
pub struct BalanceConfig {
    pub weights: WorkWeights,
    pub smoothing: Smoothing,
    pub hearing: Hearing,
    pub level: Level,
    pub fill: Fill,
    pub split: SplitLimits,
    pub moves: MoveLimits,
}

impl BalanceConfig {
    /// Time between two reports of a broker, and between two rounds, that the defaults are for.
    pub const INTERVAL_MS: u64 = 10 * SECOND;

    /// The defaults at another pace: what waits for some reports waits for as many. How loads are told from noise, and what moves
    /// may cost, stays as it is.
    pub fn with_interval(interval_ms: u64) -> Self {
        let mut config = Self::default();
        let Self { hearing, level, fill, .. } = &mut config;
        for time_ms in [
            &mut hearing.silent_after_ms,
            &mut hearing.warm_up_ms,
            &mut hearing.settle_ms,
            &mut level.confirm_ms,
            &mut fill.confirm_ms,
        ] {
            *time_ms = *time_ms * interval_ms / Self::INTERVAL_MS;
        }
        config
    }
}

/// What one unit of each measure costs, in cores. Measured on Geminga: a message of 1 KiB takes 0.7 µs in and out when
/// batched, 2.1 µs when not. Only their relation matters, since the brokers' CPU calibrates the sum.
#[derive(Clone, Debug)]
pub struct WorkWeights {
    pub message: f64,
    pub byte: f64,
    pub session: f64,
    pub topic: f64,
}

impl Default for WorkWeights {
    fn default() -> Self {
        Self { message: 0.5e-6, byte: 0.3e-9, session: 2e-6, topic: 1e-6 }
    }
}

impl WorkWeights {
    /// The cores that a bundle is estimated to keep busy.
    pub fn cores(&self, bundle: &BundleReport) -> f64 {
        self.message * bundle.messages()
            + self.byte * bundle.bytes()
            + self.session * f64::from(bundle.sessions())
            + self.topic * f64::from(bundle.topics)
    }
}

/// How a bundle's load is told from its noise. A bundle that doubles is believed after a minute and a half; sooner is not to be had
/// where rates over ten seconds are wrong by two thirds, unless one lets noise move bundles.
#[derive(Clone, Debug)]
pub struct Smoothing {
    /// Time constant of the estimate that decisions are made on.
    pub slow_ms: u64,
    /// Time constant of the one that notices jumps.
    pub fast_ms: u64,
    /// The quick one has to be so many times the slow one, or the reverse …
    pub jump_ratio: f64,
    /// … for so long. Then the slow one follows at once.
    pub jump_after_ms: u64,
    /// Where the quick one is so many times the slow one, which noise does not make it, that follows sooner.
    pub leap_ratio: f64,
}

impl Default for Smoothing {
    fn default() -> Self {
        Self { slow_ms: 10 * MINUTE, fast_ms: MINUTE, jump_ratio: 1.5, jump_after_ms: 50 * SECOND, leap_ratio: 2.1 }
    }
}

/// When what is known is enough to act on.
#[derive(Clone, Debug)]
pub struct Hearing {
    /// A broker that was not heard for so long gives and takes nothing.
    pub silent_after_ms: u64,
    /// From the first report to the first decision of a new leader.
    pub warm_up_ms: u64,
    /// The part of known brokers that has to be heard. With fewer, it is the leader who is cut off.
    pub least_heard: f64,
    /// After a bundle has got its owner, its rates tell of clients that come back, not of its load: for so long they are not
    /// looked at if older ones are known, and the bundle stays where it is.
    pub settle_ms: u64,
    /// A bundle that nobody has owned for so long is forgotten. At least the rest between two moves.
    pub forget_bundle_after_ms: u64,
}

impl Default for Hearing {
    fn default() -> Self {
        Self {
            silent_after_ms: 45 * SECOND,
            warm_up_ms: MINUTE,
            least_heard: 0.66,
            settle_ms: MINUTE,
            forget_bundle_after_ms: 24 * HOUR,
        }
    }
}

/// When a broker that has too much gives some away. One bundle's load can jump by a tenth of a broker between two reports, so that who is
/// to stay within 15 % must not be above 5 % for long before.
#[derive(Clone, Debug)]
pub struct Level {
    /// How far above the mean it has to be, as a part of the mean …
    pub trigger: f64,
    /// … and as a part of the machine, so that nothing moves on an idle cluster …
    pub least: f64,
    /// … for how long.
    pub confirm_ms: u64,
    /// So far above the mean it does not wait, if it has been known for that long.
    pub at_once: f64,
    /// It gives down to so far above the mean, and nobody takes above that, unless only larger bundles are left.
    pub goal: f64,
    /// The load of a bundle that is best to move, as a part of a broker's share.
    pub handy: f64,
    /// A plan that takes away less than this part of the surplus is not worth anybody's reconnect.
    pub least_gain: f64,
}

impl Default for Level {
    fn default() -> Self {
        Self {
            trigger: 0.04,
            least: 0.01,
            confirm_ms: 2 * MINUTE,
            at_once: 0.06,
            goal: 0.01,
            handy: 0.02,
            least_gain: 0.2,
        }
    }
}

/// When a broker that has too little, as after its start, is given its share in one go.
#[derive(Clone, Debug)]
pub struct Fill {
    /// How far below the mean it has to be, as a part of the mean …
    pub trigger: f64,
    /// … and as a part of the machine …
    pub least: f64,
    /// … for how long.
    pub confirm_ms: u64,
    /// It is filled up to so far below the mean. What it was filled with rests for a day, so it must have room for the day's waves.
    pub goal: f64,
    /// Others give down to so far below the mean. Less than `goal`, for the same reason as with `Level::goal`.
    pub donors: f64,
    /// A plan that brings less than this part of what is missing is not worth it.
    pub least_gain: f64,
    /// Who starts for the third time in this time has to stay up for a while before it is filled again …
    pub restart_window_ms: u64,
    /// … at first so long, then twice as long each time, up to the window.
    pub restart_wait_ms: u64,
}

impl Default for Fill {
    fn default() -> Self {
        Self {
            trigger: 0.20,
            least: 0.005,
            confirm_ms: 10 * SECOND,
            goal: 0.08,
            donors: 0.02,
            least_gain: 0.2,
            restart_window_ms: HOUR,
            restart_wait_ms: 5 * MINUTE,
        }
    }
}

/// When a bundle is too hot to be one. The first four are Pulsar's `loadBalancerNamespaceBundleMax…` with its defaults.
#[derive(Clone, Debug)]
pub struct SplitLimits {
    pub topics: u32,
    pub sessions: u32,
    /// In and out, per second.
    pub messages: f64,
    /// In and out, per second.
    pub bytes: f64,
    /// A bundle with more than this part of a mean broker's load can hardly be placed.
    pub share: f64,
    /// For that last reason, a bundle has to keep busy at least so many cores.
    pub share_least: f64,
    /// How long it has to be too hot. A bundle that has come out of a split is not split again sooner either.
    pub confirm_ms: u64,
    /// At once, in the cluster.
    pub in_flight: usize,
}

impl Default for SplitLimits {
    fn default() -> Self {
        Self {
            topics: 1_000,
            sessions: 1_000,
            messages: 30_000.0,
            bytes: 100.0 * 1024.0 * 1024.0,
            share: 0.05,
            share_least: 0.1,
            confirm_ms: 3 * MINUTE,
            in_flight: 16,
        }
    }
}

/// What moves may cost.
#[derive(Clone, Debug)]
pub struct MoveLimits {
    /// A bundle that was moved for levelling rests for so long, unless its broker leaves. So does one that a started broker was
    /// given, from being given to another …
    pub rest_ms: u64,
    /// … and, if there is nothing else to give, for so long from being levelled: loads become known in that.
    pub short_rest_ms: u64,
    /// Moves for levelling, per broker and hour. Three hours' can be saved up.
    pub per_broker_hour: f64,
    /// At once, to and from one broker together.
    pub in_flight_per_broker: usize,
    /// At once, in the cluster.
    pub in_flight: usize,
    /// A decision that no report has shown to be done by then has failed, if there was a report.
    pub timeout_ms: u64,
    /// How long a bundle is left alone after a failure; twice as long after each further one.
    pub retry_ms: u64,
    /// A broker for which no move helped is not tried again for so long.
    pub stuck_ms: u64,
    /// A broker that has failed to take so many in a row gets nothing for `retry_ms`.
    pub refusals: u32,
}

impl Default for MoveLimits {
    fn default() -> Self {
        Self {
            rest_ms: 24 * HOUR,
            short_rest_ms: 15 * MINUTE,
            per_broker_hour: 6.0,
            in_flight_per_broker: 64,
            in_flight: 256,
            timeout_ms: MINUTE,
            retry_ms: 5 * MINUTE,
            stuck_ms: 30 * SECOND,
            refusals: 3,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_another_pace_as_many_reports_are_waited_for() {
        let [usual, quick] = [BalanceConfig::INTERVAL_MS, SECOND].map(BalanceConfig::with_interval);
        assert_eq!(format!("{usual:?}"), format!("{:?}", BalanceConfig::default()));
        assert_eq!(quick.hearing.warm_up_ms, usual.hearing.warm_up_ms / 10);
        assert_eq!(quick.moves.rest_ms, usual.moves.rest_ms);
    }
}
