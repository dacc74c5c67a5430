//! Where a bundle goes that nobody owns.

use serde::{Deserialize, Serialize};

use crate::{BrokerId, BundleId};

/// As much of a broker as choosing among them takes. The leader hands these out; they may be seconds old.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct BrokerSummary {
    pub broker: BrokerId,
    pub cores: f64,
    /// Its load by the cores that it has.
    pub utilization: f64,
    pub accepts: bool,
}

/// Differences below these do not decide: a part of the greater utilization, and of the machine.
const ALIKE: f64 = 0.05;
const ALIKE_LEAST: f64 = 0.005;

/// The broker for a bundle without an owner, or `None` if none accepts.
///
/// Each bundle has its own order of brokers (rendezvous hashing, weighted by cores), and the less loaded of its first two is
/// taken. So several brokers that place one bundle with the same summaries agree; those that place many at once, without
/// seeing each other's choices, do not bury the one broker that all believe to be idle; and the loss of a broker does not
/// change where other bundles would go. The order is part of what brokers of different builds agree on.
pub fn choose<'a>(bundle: &BundleId, brokers: &'a [BrokerSummary]) -> Option<&'a BrokerId> {
    let mut first: Option<(f64, &BrokerSummary)> = None;
    let mut second: Option<(f64, &BrokerSummary)> = None;
    for summary in brokers.iter().filter(|it| it.accepts) {
        let candidate = Some((distance(bundle, summary), summary));
        if first.is_none_or(|best| is_before(candidate, best)) {
            second = first;
            first = candidate;
        } else if second.is_none_or(|best| is_before(candidate, best)) {
            second = candidate;
        }
    }
    let (_, first) = first?;
    match second {
        Some((_, second)) if is_clearly_less(second.utilization, first.utilization) => Some(&second.broker),
        _ => Some(&first.broker),
    }
}

fn is_before(candidate: Option<(f64, &BrokerSummary)>, best: (f64, &BrokerSummary)) -> bool {
    candidate.is_some_and(|(distance, summary)| (distance, &summary.broker) < (best.0, &best.1.broker))
}

fn is_clearly_less(utilization: f64, than: f64) -> bool {
    than - utilization > (ALIKE * than).max(ALIKE_LEAST)
}

/// Exponentially distributed with the cores as its rate, so that a broker is nearest for its part of all cores' bundles.
fn distance(bundle: &BundleId, summary: &BrokerSummary) -> f64 {
    let hash = mixed(hash(summary.broker.as_str(), hash(bundle.as_str(), FNV_BASIS)));
    -unit(hash).ln() / summary.cores.max(f64::MIN_POSITIVE)
}

const FNV_BASIS: u64 = 0xcbf2_9ce4_8422_2325;

/// FNV-1a of the text and its length.
fn hash(text: &str, seed: u64) -> u64 {
    let bytes = text.bytes().chain((text.len() as u64).to_le_bytes());
    bytes.fold(seed, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// The finalizer of SplitMix64, as FNV's upper bits are poor.
pub(crate) fn mixed(hash: u64) -> u64 {
    let hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

/// The upper 53 bits, as a number above 0 and up to 1.
pub(crate) fn unit(hash: u64) -> f64 {
    ((hash >> 11) + 1) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn brokers(utilizations: &[f64]) -> Vec<BrokerSummary> {
        let each = utilizations.iter().enumerate().map(|(number, utilization)| BrokerSummary {
            broker: format!("broker-{number}").into(),
            cores: 4.0,
            utilization: *utilization,
            accepts: true,
        });
        each.collect()
    }

    fn counts(bundles: u32, brokers: &[BrokerSummary]) -> Vec<u32> {
        let mut counts = vec![0; brokers.len()];
        for number in 0..bundles {
            let chosen = choose(&format!("public/default/{number:#010x}").into(), brokers).expect("one accepts");
            counts[brokers.iter().position(|it| it.broker == *chosen).expect("one of them")] += 1;
        }
        counts
    }

    #[test]
    fn brokers_that_are_alike_share_evenly_and_by_their_cores() {
        let mut alike = brokers(&[0.5; 10]);
        assert!(counts(10_000, &alike).iter().all(|count| (900..1_100).contains(count)));
        alike[3].cores = 12.0;
        let counts = counts(12_000, &alike);
        assert!((2_800..3_200).contains(&counts[3]), "{counts:?}");
    }

    #[test]
    fn an_idle_broker_gets_more_but_not_all() {
        let counts = counts(10_000, &brokers(&[0.5, 0.5, 0.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]));
        assert!((1_700..2_200).contains(&counts[2]), "{counts:?}");
    }

    #[test]
    fn who_does_not_accept_is_given_nothing_and_changes_nothing_for_others() {
        let all = brokers(&[0.5; 10]);
        let mut without = all.clone();
        without[7].accepts = false;
        for number in 0..1_000 {
            let bundle = BundleId::from(format!("a/b/{number}"));
            let (before, after) = (choose(&bundle, &all), choose(&bundle, &without));
            assert_ne!(after, Some(&all[7].broker));
            assert!(before == after || before == Some(&all[7].broker));
        }
        without.iter_mut().for_each(|it| it.accepts = false);
        assert_eq!(choose(&"a/b/c".into(), &without), None);
    }

    /// Brokers of another build have to choose the same.
    #[test]
    fn the_order_stays_what_it_is() {
        let chosen: Vec<String> = (0..8)
            .map(|number| choose(&format!("a/b/{number}").into(), &brokers(&[0.5; 5])).expect("accepts").to_string())
            .collect();
        let expected = "broker-4 broker-2 broker-1 broker-3 broker-1 broker-1 broker-2 broker-0";
        assert_eq!(chosen.join(" "), expected);
    }
}
