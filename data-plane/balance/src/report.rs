//! What brokers tell the leader about themselves and their bundles.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Arc<str>);

        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// Equality, without a look at the text where both are of one origin.
            pub(crate) fn is(&self, other: &Self) -> bool {
                Arc::ptr_eq(&self.0, &other.0) || self.0 == other.0
            }
        }

        impl<T: Into<Arc<str>>> From<T> for $name {
            fn from(name: T) -> Self {
                Self(name.into())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name! {
    /// A broker, under whatever name ownership records use. It keeps it when it restarts.
    BrokerId
}

name! {
    /// A bundle with its namespace, such as `public/default/0x00000000_0x40000000`. The balancer does not look into it.
    BundleId
}

/// One broker's state at one moment, with every bundle that it owns.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BrokerReport {
    pub broker: BrokerId,
    /// Higher after each start.
    pub incarnation: u64,
    /// Higher with each report of an incarnation, so that one that comes late is not taken for news.
    pub sequence: u64,
    /// The size of the machine: its share of the work is in proportion to it.
    pub cores: f64,
    /// The part of the machine that is busy, 0 to 1, whoever keeps it so.
    pub cpu: f64,
    /// False while it is leaving: it is given nothing and emptied.
    pub accepts: bool,
    pub bundles: Vec<BundleReport>,
}

/// A bundle as its owner sees it. Rates are averages since the last report, per second.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BundleReport {
    pub bundle: BundleId,
    /// Of the ownership. Where two brokers claim a bundle, the higher one has it.
    pub epoch: u64,
    pub messages_in: f64,
    pub messages_out: f64,
    pub bytes_in: f64,
    pub bytes_out: f64,
    pub topics: u32,
    pub producers: u32,
    pub consumers: u32,
    /// False where a split is impossible or not allowed, as when the namespace has as many bundles as it may.
    pub can_split: bool,
    /// Milliseconds since the balancer last moved it for levelling, where the owner knows: a new leader has no other memory of it.
    pub since_move_ms: Option<u64>,
    /// The same of the last move that filled a broker with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since_fill_ms: Option<u64>,
}

impl BundleReport {
    /// Those who have to connect again when it moves.
    pub fn sessions(&self) -> u32 {
        self.producers.saturating_add(self.consumers)
    }

    pub fn messages(&self) -> f64 {
        self.messages_in + self.messages_out
    }

    pub fn bytes(&self) -> f64 {
        self.bytes_in + self.bytes_out
    }
}

/// Why a report was not taken. Nothing has changed then.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum ReportRefused {
    #[error("broker {broker} has reported something newer already")]
    Stale { broker: BrokerId },
    #[error("broker {broker} reports {cores} cores and a CPU at {cpu}")]
    Machine { broker: BrokerId, cores: f64, cpu: f64 },
    #[error("broker {broker} reports a rate of bundle {bundle} that is negative or not a number")]
    Rate { broker: BrokerId, bundle: BundleId },
    #[error("broker {broker} reports bundle {bundle} twice")]
    Twice { broker: BrokerId, bundle: BundleId },
}

impl BrokerReport {
    /// Whether its numbers can be reckoned with.
    pub(crate) fn check(&self) -> Result<(), ReportRefused> {
        let broker = || self.broker.clone();
        let machine = self.cores.is_finite() && self.cores > 0.0 && self.cpu.is_finite() && self.cpu >= 0.0;
        if !machine {
            return Err(ReportRefused::Machine { broker: broker(), cores: self.cores, cpu: self.cpu });
        }
        let wrong = self.bundles.iter().find(|it| {
            let rates = [it.messages_in, it.messages_out, it.bytes_in, it.bytes_out];
            rates.iter().any(|rate| !rate.is_finite() || *rate < 0.0)
        });
        match wrong {
            Some(wrong) => Err(ReportRefused::Rate { broker: broker(), bundle: wrong.bundle.clone() }),
            None => Ok(()),
        }
    }
}
