//! Ids of ledgers that were deleted: remembered for good, so that what comes late, an add on a slow network or a writer that was
//! asleep, does not bring one of them into being again.
//!
//! Ids ascend and most ledgers go some day, so that a few ranges have them all. A tombstone in the log says it first; before the
//! last tombstone of a ledger is dropped with its segment, the file `deleted` says it as well ([`encode`]).

use std::collections::BTreeMap;

use crc_fast::crc32_iscsi as crc32c;

use crate::format::{BadBlock, checked, u32_at, u64_at};
use crate::planted::{Bug, is_planted};

/// In the folder of the log.
pub const FILE: &str = "deleted";
/// While it is written.
pub const NEW_FILE: &str = "deleted-new";
const MAGIC: [u8; 8] = *b"GmLogDel";
pub const VERSION: u16 = 1;
const HEAD_BYTES: usize = 32;
const RANGE_BYTES: usize = 16;

/// A set of ids, as ranges that do not touch each other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IdRanges {
    /// First and last id.
    ranges: BTreeMap<u64, u64>,
}

impl IdRanges {
    pub fn contains(&self, id: u64) -> bool {
        self.ranges.range(..=id).next_back().is_some_and(|(_, last)| id <= *last)
    }

    /// Adds all ids from `first` to `last`. Whether any of them is new.
    pub fn insert(&mut self, first: u64, last: u64) -> bool {
        let (mut from, mut to) = (first, last);
        if let Some((&before, &end)) = self.ranges.range(..=first).next_back() {
            if end >= last {
                return false;
            }
            if end >= first.saturating_sub(1) {
                from = before;
            }
        }
        while let Some((&next, &end)) = self.ranges.range(from..=to.saturating_add(1)).next() {
            to = to.max(end);
            self.ranges.remove(&next);
        }
        self.ranges.insert(from, to);
        true
    }

    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> {
        self.ranges.iter().map(|(first, last)| (*first, *last))
    }

    /// What lies between the ranges, each with its first and last id.
    pub fn gaps(&self) -> impl Iterator<Item = (u64, u64)> {
        self.iter().zip(self.iter().skip(1)).map(|((_, end), (next, _))| (end + 1, next - 1))
    }

    pub fn len(&self) -> usize {
        self.ranges.len()
    }
}

/// The bytes of the file: a head with a checksum of its own, and the ranges.
pub fn encode(ids: &IdRanges) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEAD_BYTES + ids.len() * RANGE_BYTES);
    bytes.resize(HEAD_BYTES, 0);
    for (first, last) in ids.iter() {
        bytes.extend(first.to_le_bytes());
        bytes.extend(last.to_le_bytes());
    }
    write_head(&mut bytes, VERSION);
    bytes
}

/// Says of the ranges behind the head how many there are, and their checksum.
fn write_head(bytes: &mut [u8], version: u16) {
    let (head, body) = bytes.split_at_mut(HEAD_BYTES);
    head[..8].copy_from_slice(&MAGIC);
    head[8..10].copy_from_slice(&version.to_le_bytes());
    head[16..24].copy_from_slice(&((body.len() / RANGE_BYTES) as u64).to_le_bytes());
    head[24..28].copy_from_slice(&crc32c(body).to_le_bytes());
    let crc = crc32c(&head[..HEAD_BYTES - 4]);
    head[HEAD_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
}

/// The ids in a file; whatever is behind them fills up a block.
///
/// # Errors
/// The file is damaged, or of a newer version.
pub fn decode(bytes: &[u8]) -> Result<IdRanges, BadBlock> {
    let version = checked(bytes, HEAD_BYTES, &MAGIC)?;
    if version > VERSION {
        return Err(BadBlock::Newer(version));
    }
    let count = usize::try_from(u64_at(bytes, 16)).ok();
    let length = count.and_then(|count| count.checked_mul(RANGE_BYTES)).ok_or(BadBlock::Damaged)?;
    let body = bytes[HEAD_BYTES..].get(..length).ok_or(BadBlock::Damaged)?;
    if crc32c(body) != u32_at(bytes, 24) && !is_planted(Bug::StateUnchecked) {
        return Err(BadBlock::Damaged);
    }
    let mut ranges = BTreeMap::new();
    let mut least = 0;
    for (at, range) in body.chunks_exact(RANGE_BYTES).enumerate() {
        let (first, last) = (u64_at(range, 0), u64_at(range, 8));
        if first > last || at > 0 && first <= least {
            return Err(BadBlock::Damaged);
        }
        least = last.saturating_add(1);
        ranges.insert(first, last);
    }
    Ok(IdRanges { ranges })
}

/// Any ranges, with right checksums: what is taken is written the same again.
#[cfg(any(test, feature = "fuzzing"))]
pub fn check(data: &[u8]) {
    let _ = decode(data);
    let mut bytes = vec![0; HEAD_BYTES];
    bytes.extend(&data[..data.len() / RANGE_BYTES * RANGE_BYTES]);
    write_head(&mut bytes, VERSION);
    if let Ok(ids) = decode(&bytes) {
        assert_eq!(encode(&ids), bytes);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn ids(ranges: &[(u64, u64)]) -> IdRanges {
        let mut ids = IdRanges::default();
        for (first, last) in ranges {
            ids.insert(*first, *last);
        }
        ids
    }

    #[test]
    fn golden_bytes_of_version_1() {
        let bytes: String = encode(&ids(&[(3, 9), (12, 12)])).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(bytes, include_str!("../golden/deleted.hex").trim());
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let whole = encode(&ids(&[(3, 9), (12, 12), (20, u64::MAX)]));
        let mut padded = whole.clone();
        padded.resize(4096, 0);
        assert_eq!(decode(&padded), Ok(ids(&[(3, 9), (12, 12), (20, u64::MAX)])));
        for bit in 0..whole.len() * 8 {
            let mut bytes = padded.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&bytes), Err(BadBlock::Damaged), "bit {bit}");
        }
        for length in 0..whole.len() {
            assert_eq!(decode(&whole[..length]), Err(BadBlock::Damaged), "{length} bytes");
        }
        let mut newer = encode(&IdRanges::default());
        write_head(&mut newer, 2);
        assert_eq!(decode(&newer), Err(BadBlock::Newer(2)));
    }

    #[test]
    fn the_ends_of_the_numbers_are_numbers_like_others() {
        let mut all = ids(&[(0, 0), (u64::MAX, u64::MAX)]);
        assert_eq!(all.gaps().collect::<Vec<_>>(), [(1, u64::MAX - 1)]);
        assert!(all.insert(1, u64::MAX - 1));
        assert_eq!(all.iter().collect::<Vec<_>>(), [(0, u64::MAX)]);
        assert!(!all.insert(5, 7));
    }

    proptest! {
        #[test]
        fn ranges_are_a_set_of_ids(inserted in prop::collection::vec((0_u64..60, 0_u64..6), 0..30)) {
            let (mut ids, mut model) = (IdRanges::default(), BTreeSet::new());
            for (first, more) in inserted {
                let is_new = (first..=first + more).any(|id| !model.contains(&id));
                model.extend(first..=first + more);
                prop_assert_eq!(ids.insert(first, first + more), is_new);
                let (ranges, gaps): (Vec<_>, Vec<_>) = (ids.iter().collect(), ids.gaps().collect());
                prop_assert!(ranges.windows(2).all(|two| two[0].1 + 1 < two[1].0), "{:?}", ranges);
                prop_assert!(gaps.iter().all(|(first, last)| (*first..=*last).all(|id| !model.contains(&id))));
                prop_assert_eq!(gaps.len(), ranges.len() - 1);
            }
            prop_assert!((0..70).all(|id| ids.contains(id) == model.contains(&id)));
            prop_assert_eq!(decode(&encode(&ids)), Ok(ids));
        }
    }
}
