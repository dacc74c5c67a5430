//! What the leader is to have done.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{BrokerId, BundleId};

/// Whoever carries it out does so only if the ownership is still the one of that epoch.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Decision {
    Move { bundle: BundleId, epoch: u64, from: BrokerId, to: BrokerId, reason: Reason },
    Split { bundle: BundleId, epoch: u64, owner: BrokerId, reason: SplitReason },
}

impl Decision {
    pub fn bundle(&self) -> &BundleId {
        match self {
            Self::Move { bundle, .. } | Self::Split { bundle, .. } => bundle,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Reason {
    /// Its broker leaves. Such moves are not counted against the bundle.
    Drain,
    /// Its broker has more than its share for a while.
    Level,
    /// The other broker has far less than its share, as after a start.
    Fill,
}

impl Reason {
    pub fn is_forced(self) -> bool {
        self == Self::Drain
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum SplitReason {
    Topics,
    Sessions,
    Messages,
    Bytes,
    /// It has too great a part of a broker's share to be placed well.
    Share,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Drain => "its broker leaves",
            Self::Level => "its broker has more than its share",
            Self::Fill => "the other broker has far less than its share",
        })
    }
}

impl fmt::Display for SplitReason {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Topics => "too many topics",
            Self::Sessions => "too many producers and consumers",
            Self::Messages => "too many messages per second",
            Self::Bytes => "too many bytes per second",
            Self::Share => "too great a part of a broker's share",
        })
    }
}
