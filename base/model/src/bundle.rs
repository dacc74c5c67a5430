//! Bundles: a namespace's topics by ranges of the hash of their names, which is how they are given to brokers.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::name::{InvalidName, NamespaceName};

/// The last boundary of a namespace's ranges, which belongs to the last range.
const FULL: u32 = u32::MAX;

/// A range of topic hashes: from `low`, up to but without `high`, unless `high` is the largest hash, which the range then has
/// too. Written `0x00000000_0x40000000`, as Pulsar does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BundleRange {
    pub low: u32,
    pub high: u32,
}

impl BundleRange {
    pub const ALL: BundleRange = BundleRange { low: 0, high: FULL };

    pub fn contains(&self, hash: u32) -> bool {
        hash >= self.low && (hash < self.high || self.high == FULL && hash == FULL)
    }

    /// The range of a list of boundaries (`0x` and hexadecimal digits, growing) that has the hash.
    pub fn of_hash(hash: u32, boundaries: &[String]) -> Option<BundleRange> {
        BundleRange::all_of(boundaries).find(|range| range.contains(hash))
    }

    /// Every range of a namespace, which has one for all hashes as long as nobody has given it boundaries.
    pub fn of_namespace(boundaries: Option<&[String]>) -> Vec<BundleRange> {
        let ranges: Vec<BundleRange> = boundaries.map(BundleRange::all_of).into_iter().flatten().collect();
        if ranges.is_empty() { vec![BundleRange::ALL] } else { ranges }
    }

    /// Every range of a list of boundaries.
    pub fn all_of(boundaries: &[String]) -> impl Iterator<Item = BundleRange> {
        boundaries.windows(2).filter_map(|pair| {
            let range = BundleRange { low: boundary(&pair[0])?, high: boundary(&pair[1])? };
            (range.low < range.high).then_some(range)
        })
    }
}

fn boundary(text: &str) -> Option<u32> {
    u32::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}

impl fmt::Display for BundleRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0x{:08x}_0x{:08x}", self.low, self.high)
    }
}

impl FromStr for BundleRange {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed = text.split_once('_').and_then(|(low, high)| Some((boundary(low)?, boundary(high)?)));
        match parsed {
            Some((low, high)) if low < high => Ok(BundleRange { low, high }),
            _ => Err(InvalidName(format!("Invalid bundle range '{text}'"))),
        }
    }
}

/// The hash by which Pulsar puts topics into bundles: CRC-32 (ISO-HDLC) of the full name.
pub fn topic_hash(topic: &str) -> u32 {
    // Bit by bit: names are short, and this is asked when a topic is looked up, not for each message.
    !topic.bytes().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 })
    })
}

/// `tenant/namespace/0x00000000_0x40000000`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BundleName {
    pub namespace: NamespaceName,
    pub range: BundleRange,
}

impl fmt::Display for BundleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.range)
    }
}

impl FromStr for BundleName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (namespace, range) =
            text.rsplit_once('/').ok_or_else(|| InvalidName(format!("Invalid bundle name '{text}'")))?;
        Ok(BundleName { namespace: NamespaceName::parse(namespace)?, range: range.parse()? })
    }
}

impl Serialize for BundleName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for BundleName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_are_placed_by_crc_32() {
        assert_eq!(topic_hash("123456789"), 0xcbf4_3926);
        let boundaries = ["0x00000000", "0x40000000", "0x80000000", "0xc0000000", "0xffffffff"].map(str::to_owned);
        // As Apache Pulsar 4.0.8 places it.
        let range = BundleRange::of_hash(topic_hash("persistent://public/default/a"), &boundaries).unwrap();
        assert_eq!(range.to_string(), "0xc0000000_0xffffffff");
        assert!(range.contains(u32::MAX) && !range.contains(0xbfff_ffff));
        assert_eq!(BundleRange::all_of(&boundaries).count(), 4);
    }

    #[test]
    fn names_are_read_back() {
        let name: BundleName = "public/default/0x40000000_0x80000000".parse().unwrap();
        assert_eq!(name.to_string().parse::<BundleName>().unwrap(), name);
        assert!(!name.range.contains(0x8000_0000));
        for bad in ["public/default", "public/default/0x4_", "public/default/0x8_0x4", "x/0x0_0x1"] {
            assert!(bad.parse::<BundleName>().is_err(), "{bad}");
        }
    }
}
