//! Bundles: the hash ranges of a namespace. One broker has them all, so they only say which topics a request is about.

use geminga_broker::BrokerError;
use geminga_metadata::Policies;
use geminga_metadata::policies::BundlesData;
use geminga_model::NamespaceName;

use crate::error::{ApiError, Result};

/// A hash range without its end, but for the last one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bundle {
    low: u64,
    high: u64,
}

const FULL: u64 = 0xffff_ffff;

impl Bundle {
    /// `0x00000000_0x40000000`.
    fn parse(text: &str) -> Option<Self> {
        let (low, high) = text.split_once('_')?;
        Some(Self { low: boundary(low)?, high: boundary(high)? })
    }

    pub fn contains(&self, topic: &str) -> bool {
        let hash = u64::from(crc32(topic.as_bytes()));
        hash >= self.low && (hash < self.high || (self.high == FULL && hash == FULL))
    }
}

/// Whether a segment of a path is meant to name a bundle.
pub(crate) fn is_bundle(segment: &str) -> bool {
    segment.starts_with("0x") && Bundle::parse(segment).is_some()
}

fn boundary(text: &str) -> Option<u64> {
    u64::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}

/// The namespace's bundles, each with its name.
fn of(policies: &Policies) -> impl Iterator<Item = (String, Bundle)> {
    let pairs = policies.bundles.iter().flat_map(|bundles| bundles.boundaries.windows(2));
    pairs.filter_map(|pair| {
        let name = format!("{}_{}", pair[0], pair[1]);
        Bundle::parse(&name).map(|bundle| (name, bundle))
    })
}

/// The bundle that a topic is in.
pub(crate) fn of_topic(policies: &Policies, topic: &str) -> Option<String> {
    of(policies).find(|(_, bundle)| bundle.contains(topic)).map(|(name, _)| name)
}

/// A bundle by its name, which must be one of the namespace's.
pub(crate) fn named(policies: &Policies, namespace: &NamespaceName, name: &str) -> Result<Bundle> {
    let wanted = Bundle::parse(name)
        .ok_or_else(|| ApiError::precondition(format!("Invalid bundle range {name} of namespace {namespace}")))?;
    if of(policies).any(|(_, bundle)| bundle == wanted) {
        return Ok(wanted);
    }
    Err(ApiError::precondition(match of(policies).find(|(_, bundle)| bundle.low == wanted.low) {
        Some((expected, _)) => format!(
            "Invalid upper boundary for bundle {namespace}/{name}. Expected upper boundary of {namespace}/{expected}"
        ),
        None => format!("Invalid lower boundary for bundle {namespace}/{name}"),
    }))
}

/// Cuts a bundle into halves.
pub(crate) fn split(bundles: &mut BundlesData, bundle: Bundle) -> geminga_broker::Result<()> {
    let middle = bundle.low + (bundle.high - bundle.low) / 2;
    let at = bundles.boundaries.iter().position(|text| boundary(text) == Some(bundle.high));
    let at = at.filter(|_| middle > bundle.low && middle < bundle.high);
    let at = at.ok_or_else(|| BrokerError::PreconditionFailed("the bundle cannot be split".into()))?;
    bundles.boundaries.insert(at, format!("0x{middle:08x}"));
    bundles.bundle_count += 1;
    Ok(())
}

/// CRC-32 (ISO-HDLC), bit by bit: names are short.
fn crc32(data: &[u8]) -> u32 {
    !data.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policies(bundle_count: u32) -> Policies {
        Policies { bundles: Some(BundlesData::even(bundle_count)), ..Policies::default() }
    }

    #[test]
    fn topics_are_placed_by_crc_32() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        // As Apache Pulsar 4.0.8 places it.
        let placed = of_topic(&policies(4), "persistent://public/default/a");
        assert_eq!(placed.as_deref(), Some("0xc0000000_0xffffffff"));
    }

    #[test]
    fn a_split_halves_one_bundle() {
        let mut policies = policies(4);
        let namespace: NamespaceName = "public/default".parse().unwrap();
        let bundle = named(&policies, &namespace, "0x00000000_0x40000000").unwrap();
        split(policies.bundles.as_mut().unwrap(), bundle).unwrap();
        let bundles = policies.bundles.clone().unwrap();
        assert_eq!(bundles.bundle_count, 5);
        assert_eq!(bundles.boundaries[..3], ["0x00000000", "0x20000000", "0x40000000"]);
        assert!(named(&policies, &namespace, "0x00000000_0x40000000").is_err());
        let last = named(&policies, &namespace, "0xc0000000_0xffffffff").unwrap();
        split(policies.bundles.as_mut().unwrap(), last).unwrap();
        assert_eq!(policies.bundles.unwrap().boundaries[5..], ["0xdfffffff", "0xffffffff"]);
    }
}
