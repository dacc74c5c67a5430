//! Why something moves, or why nothing does.

use std::fmt;

use crate::BrokerId;

/// The state of the balance at the last round. Times are the leader's milliseconds.
#[derive(Clone, PartialEq, Debug)]
pub struct Explanation {
    pub at_ms: u64,
    /// Why nothing was decided, if so.
    pub pause: Option<Pause>,
    /// Utilization if all brokers that serve had the same.
    pub mean: f64,
    pub brokers: Vec<BrokerExplanation>,
    pub moves_under_way: usize,
    pub splits_under_way: usize,
    /// That levelling may make now.
    pub moves_left: usize,
}

#[derive(Clone, PartialEq, Debug)]
pub struct BrokerExplanation {
    pub broker: BrokerId,
    /// In busy cores, by the last reports; and with what is under way counted as done.
    pub load: f64,
    pub load_to_be: f64,
    pub cores: f64,
    pub bundles: usize,
    pub verdict: Verdict,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pause {
    NoReports,
    /// A new leader listens first.
    WarmsUp {
        until_ms: u64,
    },
    /// Perhaps it is the leader who hears nobody.
    FewHeard {
        heard: usize,
        known: usize,
    },
}

#[derive(Clone, PartialEq, Debug)]
pub enum Verdict {
    /// While nothing is decided.
    NotJudged,
    Balanced,
    Silent,
    Over {
        since_ms: u64,
        acts_ms: u64,
    },
    Shedding {
        moves: usize,
    },
    CannotShed(Obstacle),
    Under {
        since_ms: u64,
        acts_ms: u64,
    },
    Filling {
        moves: usize,
    },
    CannotFill(Obstacle),
    Draining {
        waiting: usize,
        moving: usize,
    },
    CannotDrain {
        waiting: usize,
        obstacle: Obstacle,
    },
}

#[derive(Clone, PartialEq, Debug)]
pub enum Obstacle {
    NobodyTakes,
    /// All others have their share or less, or have nothing that may move.
    NobodyGives,
    /// No bundle is small enough to leave things better than they are, and large enough to matter.
    NothingFits {
        cores: f64,
    },
    /// Those that fit were moved, have come or were refused of late.
    Resting {
        bundles: usize,
        until_ms: u64,
    },
    BudgetSpent,
    ManyUnderWay,
    KeepsStarting {
        until_ms: u64,
    },
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        if let Some(pause) = &self.pause {
            writeln!(f, "no decisions: {pause}")?;
        }
        let (moves, splits, left) = (self.moves_under_way, self.splits_under_way, self.moves_left);
        writeln!(f, "mean utilization {:.1} %", self.mean * 100.0)?;
        writeln!(f, "{moves} moves and {splits} splits under way, {left} moves left for levelling")?;
        for it in &self.brokers {
            let [now, to_be] = [it.load, it.load_to_be].map(|load| load / it.cores * 100.0);
            writeln!(f, "{}: {now:.1} %, to be {to_be:.1} %, {} bundles: {}", it.broker, it.bundles, it.verdict)?;
        }
        Ok(())
    }
}

impl fmt::Display for Pause {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::NoReports => f.write_str("no broker has reported"),
            Self::WarmsUp { until_ms } => write!(f, "the leader is new and listens until {until_ms}"),
            Self::FewHeard { heard, known } => write!(f, "only {heard} of {known} brokers are heard"),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::NotJudged => f.write_str("not judged"),
            Self::Balanced => f.write_str("has its share"),
            Self::Silent => f.write_str("has not reported of late: gives and takes nothing"),
            Self::Over { since_ms, acts_ms } => {
                write!(f, "too much since {since_ms}, gives from {acts_ms} if so still")
            }
            Self::Shedding { moves } => write!(f, "too much: gives {moves} bundles"),
            Self::CannotShed(obstacle) => write!(f, "too much, but {obstacle}"),
            Self::Under { since_ms, acts_ms } => {
                write!(f, "too little since {since_ms}, takes from {acts_ms} if so still")
            }
            Self::Filling { moves } => write!(f, "too little: takes {moves} bundles"),
            Self::CannotFill(obstacle) => write!(f, "too little, but {obstacle}"),
            Self::Draining { waiting, moving } => write!(f, "leaves: {moving} bundles move, {waiting} wait"),
            Self::CannotDrain { waiting, obstacle } => write!(f, "leaves with {waiting} bundles, but {obstacle}"),
        }
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::NobodyTakes => {
                f.write_str("no broker takes any: they leave, are silent, busy with moves or have refused")
            }
            Self::NobodyGives => f.write_str("no other broker has any to give"),
            Self::NothingFits { cores } => {
                write!(f, "no bundle has a load near {cores:.3} cores or less that would help")
            }
            Self::Resting { bundles, until_ms } => {
                write!(f, "{bundles} bundles that fit rest, the first until {until_ms}")
            }
            Self::BudgetSpent => f.write_str("the moves for this hour are spent"),
            Self::ManyUnderWay => f.write_str("enough moves are under way"),
            Self::KeepsStarting { until_ms } => write!(f, "it keeps starting: waits until {until_ms}"),
        }
    }
}
