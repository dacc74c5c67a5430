//! Which entries of a ledger a node has, as it answers in a listing.
//!
//! 64 bytes of head (`u32` version 0, `u32` number of groups, zeros), then groups of 24 bytes: `i64` first entry of the first
//! sequence, `i64` first entry of the last sequence, `u32` entries in each sequence, `u32` distance between the sequences'
//! beginnings (0 if there is one). All big-endian. Source: `AvailabilityOfEntriesOfLedger` of BookKeeper 4.17.

use bytes::{BufMut, Bytes, BytesMut};
use thiserror::Error;

const HEAD_BYTES: usize = 64;
const GROUP_BYTES: usize = 24;
const VERSION: u32 = 0;
/// A list with more groups is not believed: 24 MB of it.
pub const MAX_GROUPS: usize = 1_000_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Group {
    first: u64,
    last_start: u64,
    size: u32,
    period: u32,
}

impl Group {
    fn contains(&self, entry: u64) -> bool {
        let Some(offset) = entry.checked_sub(self.first) else { return false };
        if self.period == 0 {
            return offset < u64::from(self.size);
        }
        entry < self.last_start.saturating_add(u64::from(self.size))
            && offset % u64::from(self.period) < u64::from(self.size)
    }
}

/// The list, for asking what is in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EntryList {
    groups: Vec<Group>,
}

#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum EntryListError {
    #[error("version {0} of a list of entries is not known")]
    Version(u32),
    #[error("a list of entries is malformed")]
    Malformed,
}

impl EntryList {
    /// From stretches of consecutive entries in ascending order, each as its first entry and their number.
    pub fn from_stretches(stretches: impl IntoIterator<Item = (u64, u64)>) -> Self {
        let mut groups: Vec<Group> = Vec::new();
        for (mut first, mut count) in stretches {
            while count > 0 {
                let size = count.min(i32::MAX as u64) as u32;
                match groups.last_mut() {
                    Some(group) if Self::continues(group, first, size) => {
                        group.period = (first - group.last_start) as u32;
                        group.last_start = first;
                    }
                    _ => groups.push(Group { first, last_start: first, size, period: 0 }),
                }
                first += u64::from(size);
                count -= u64::from(size);
            }
        }
        Self { groups }
    }

    fn continues(group: &Group, first: u64, size: u32) -> bool {
        let distance = first.wrapping_sub(group.last_start);
        group.size == size
            && distance <= i32::MAX as u64
            && distance >= u64::from(size)
            && (group.period == 0 || u64::from(group.period) == distance)
    }

    pub fn contains(&self, entry: u64) -> bool {
        let after = self.groups.partition_point(|group| group.first <= entry);
        after > 0 && self.groups[after - 1].contains(entry)
    }

    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(HEAD_BYTES + self.groups.len() * GROUP_BYTES);
        out.put_u32(VERSION);
        out.put_u32(self.groups.len() as u32);
        out.put_bytes(0, HEAD_BYTES - 8);
        for group in &self.groups {
            out.put_u64(group.first);
            out.put_u64(group.last_start);
            out.put_u32(group.size);
            out.put_u32(group.period);
        }
        out.freeze()
    }

    /// # Errors
    /// See [`EntryListError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, EntryListError> {
        let u32_at = |at: usize| bytes.get(at..).and_then(|rest| rest.first_chunk()).map(|b| u32::from_be_bytes(*b));
        let u64_at = |at: usize| bytes.get(at..).and_then(|rest| rest.first_chunk()).map(|b| u64::from_be_bytes(*b));
        let version = u32_at(0).ok_or(EntryListError::Malformed)?;
        if version > VERSION {
            return Err(EntryListError::Version(version));
        }
        let count = u32_at(4).ok_or(EntryListError::Malformed)? as usize;
        if count > MAX_GROUPS || bytes.len() < HEAD_BYTES + count * GROUP_BYTES {
            return Err(EntryListError::Malformed);
        }
        let mut groups: Vec<Group> = Vec::with_capacity(count);
        for at in (0..count).map(|n| HEAD_BYTES + n * GROUP_BYTES) {
            let group = (|| {
                Some(Group {
                    first: u64_at(at)?,
                    last_start: u64_at(at + 8)?,
                    size: u32_at(at + 16)?,
                    period: u32_at(at + 20)?,
                })
            })()
            .ok_or(EntryListError::Malformed)?;
            let is_single = group.period == 0;
            let sound = group.size > 0
                && group.last_start.checked_add(u64::from(group.size)).is_some()
                && if is_single { group.last_start == group.first } else { group.last_start > group.first };
            if !sound || groups.last().is_some_and(|before| before.first >= group.first) {
                return Err(EntryListError::Malformed);
            }
            groups.push(group);
        }
        Ok(Self { groups })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn striped_entries_are_one_group() {
        // Two of three entries, as one node of an ensemble of three with a write quorum of two has them.
        let list = EntryList::from_stretches((0..1000).map(|n| (3 * n, 2)));
        assert_eq!(list.groups.len(), 1);
        assert_eq!(list.encode().len(), HEAD_BYTES + GROUP_BYTES);
        for entry in 0..3100 {
            assert_eq!(list.contains(entry), entry < 3000 && entry % 3 < 2, "{entry}");
        }
    }

    proptest! {
        #[test]
        fn a_list_has_what_was_put_into_it(gaps in prop::collection::vec((1_u64..5, 1_u64..4), 0..40)) {
            let (mut at, mut stretches, mut entries) = (0, Vec::new(), Vec::new());
            for (gap, count) in gaps {
                at += gap;
                stretches.push((at, count));
                entries.extend(at..at + count);
                at += count;
            }
            let list = EntryList::from_stretches(stretches);
            prop_assert_eq!(EntryList::decode(&list.encode()), Ok(list.clone()));
            for entry in 0..at + 3 {
                prop_assert_eq!(list.contains(entry), entries.contains(&entry));
            }
        }

        #[test]
        fn arbitrary_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..200), count: u32, entry: u64) {
            let mut bytes = bytes;
            if bytes.len() >= 8 {
                bytes[..4].fill(0);
                bytes[4..8].copy_from_slice(&(count % 8).to_be_bytes());
            }
            if let Ok(list) = EntryList::decode(&bytes) {
                list.contains(entry);
            }
        }
    }
}
