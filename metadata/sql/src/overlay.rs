//! Decides commits over a part of the records that was read before, and collects what has to be written.
//!
//! Pure: the caller loads every key that the commits name (see [`Footprint`]), applies the commits, writes
//! [`Overlay::into_writes`], all in one transaction. So a whole batch of commits costs a few statements, and each
//! commit of it still succeeds or fails on its own.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use bytes::Bytes;
use geminga_metadata::{Expect, MetadataError, Op};

/// A record as the batch sees it.
#[derive(Debug, Clone, PartialEq)]
struct Slot {
    /// None: there is no record.
    version: Option<u64>,
    /// What the batch has put.
    value: Option<Bytes>,
    /// The batch has changed it.
    dirty: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Overlay {
    slots: BTreeMap<String, Slot>,
}

/// What stood at a key before a commit changed it.
struct Undo {
    key: String,
    before: Slot,
    is_quiet: bool,
}

/// A commit that was applied.
#[derive(Debug, PartialEq)]
pub(crate) struct Applied {
    /// Of each step: that of the put record, or 0.
    pub versions: Vec<u64>,
    /// Keys that were changed and whose watches are to be told.
    pub told: Vec<String>,
    /// Something was changed, be it that nobody is told.
    pub has_written: bool,
}

/// What a batch of commits has to write.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Writes {
    pub puts: Vec<(String, u64, Bytes)>,
    pub deletes: Vec<String>,
}

/// What must be loaded before ops can be decided.
#[derive(Debug, Default)]
pub(crate) struct Footprint<'a> {
    pub keys: Vec<&'a str>,
    /// Every key under these.
    pub prefixes: Vec<&'a str>,
    /// Of the keys under these, the first few are enough: see [`Footprint::probe_limit`].
    pub probes: Vec<&'a str>,
}

impl<'a> Footprint<'a> {
    pub fn add(&mut self, ops: &'a [Op]) {
        let deletes_prefix = ops.iter().any(|op| matches!(op, Op::DeletePrefix { .. }));
        for op in ops {
            match op {
                Op::Put { key, .. } | Op::Delete { key, .. } | Op::Check { key, .. } => self.keys.push(key),
                Op::DeletePrefix { prefix } => self.prefixes.push(prefix),
                // What stands under the prefix may be deleted by a step before, any number of keys.
                Op::CheckEmpty { prefix } if deletes_prefix => self.prefixes.push(prefix),
                Op::CheckEmpty { prefix } => self.probes.push(prefix),
                Op::RaiseVersion { .. } => {}
            }
        }
    }

    /// So many keys of a probe that one is left when the commit itself deletes all that it names.
    pub fn probe_limit(&self) -> usize {
        self.keys.len() + 1
    }

    /// Whether ops need keys that they don't name, so that they are decided one commit at a time.
    pub fn needs_prefixes(ops: &[Op]) -> bool {
        ops.iter().any(|op| matches!(op, Op::DeletePrefix { .. } | Op::CheckEmpty { .. }))
    }
}

impl Overlay {
    /// Says what is stored under a key, unless the overlay knows better already.
    pub fn load(&mut self, key: String, version: Option<u64>) {
        match self.slots.entry(key) {
            Entry::Vacant(entry) => {
                entry.insert(Slot { version, value: None, dirty: false });
            }
            Entry::Occupied(mut entry) if !entry.get().dirty && version.is_some() => entry.get_mut().version = version,
            Entry::Occupied(_) => {}
        }
    }

    pub fn load_all(&mut self, records: Vec<(String, u64)>) {
        records.into_iter().for_each(|(key, version)| self.load(key, Some(version)));
    }

    /// Applies a commit that gets `version`, or nothing of it.
    pub fn apply(&mut self, ops: &[Op], version: u64) -> Result<Applied, MetadataError> {
        let mut undo = Vec::with_capacity(ops.len());
        let mut versions = Vec::with_capacity(ops.len());
        for op in ops {
            match self.step(op, version, &mut undo) {
                Ok(version) => versions.push(version),
                Err(error) => {
                    for Undo { key, before, .. } in undo.into_iter().rev() {
                        self.slots.insert(key, before);
                    }
                    return Err(error);
                }
            }
        }
        let has_written = !undo.is_empty();
        let told = undo.into_iter().filter(|change| !change.is_quiet).map(|change| change.key).collect();
        Ok(Applied { versions, told, has_written })
    }

    fn step(&mut self, op: &Op, version: u64, undo: &mut Vec<Undo>) -> Result<u64, MetadataError> {
        match op {
            Op::Put { key, value, expect, is_quiet } => {
                let slot = self.expect(key, *expect)?;
                let put = Slot { version: Some(version), value: Some(value.clone()), dirty: true };
                let before = std::mem::replace(slot, put);
                undo.push(Undo { key: key.clone(), before, is_quiet: *is_quiet });
                return Ok(version);
            }
            Op::Delete { key, expect } => {
                let slot = self.expect(key, *expect)?;
                if slot.version.is_some() {
                    let before = std::mem::replace(slot, Slot { version: None, value: None, dirty: true });
                    undo.push(Undo { key: key.clone(), before, is_quiet: false });
                }
            }
            Op::Check { key, expect } => {
                self.expect(key, *expect)?;
            }
            Op::CheckEmpty { prefix } => {
                let mut under = self.slots.range(prefix.clone()..).take_while(|(key, _)| key.starts_with(prefix));
                if let Some((key, _)) = under.find(|(_, slot)| slot.version.is_some()) {
                    return Err(MetadataError::Conflict { key: key.clone() });
                }
            }
            Op::RaiseVersion { .. } => {}
            Op::DeletePrefix { prefix } => {
                let under = self.slots.range_mut(prefix.clone()..).take_while(|(key, _)| key.starts_with(prefix));
                for (key, slot) in under.filter(|(_, slot)| slot.version.is_some()) {
                    let before = std::mem::replace(slot, Slot { version: None, value: None, dirty: true });
                    undo.push(Undo { key: key.clone(), before, is_quiet: false });
                }
            }
        }
        Ok(0)
    }

    fn expect(&mut self, key: &str, expect: Expect) -> Result<&mut Slot, MetadataError> {
        let Some(slot) = self.slots.get_mut(key) else {
            return Err(MetadataError::Bug(format!("the key '{key}' was not loaded")));
        };
        if !expect.holds(slot.version) {
            return Err(MetadataError::Conflict { key: key.to_owned() });
        }
        Ok(slot)
    }

    pub fn into_writes(self) -> Writes {
        let mut writes = Writes::default();
        for (key, slot) in self.slots {
            match slot {
                Slot { dirty: false, .. } => {}
                Slot { version: Some(version), value: Some(value), .. } => writes.puts.push((key, version, value)),
                _ => writes.deletes.push(key),
            }
        }
        writes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_sees_its_own_commits_and_refused_ones_leave_nothing() {
        let mut overlay = Overlay::default();
        overlay.load("a".into(), Some(5));
        overlay.load("b".into(), None);
        let put = |key: &str, expect| Op::put(key, "x", expect);
        let told = |versions: &[u64], keys: &[&str]| Applied {
            versions: versions.to_vec(),
            told: keys.iter().map(|key| (*key).to_owned()).collect(),
            has_written: true,
        };
        assert_eq!(overlay.apply(&[put("b", Expect::Absent)], 6).unwrap(), told(&[6], &["b"]));
        let refused = [Op::delete_prefix("a"), put("b", Expect::Any), Op::check("b", Expect::Version(6))];
        assert!(overlay.apply(&refused, 7).unwrap_err().is_conflict());
        let both = [Op::delete("b", Expect::Version(6)), put("a", Expect::Version(5))];
        assert_eq!(overlay.apply(&both, 8).unwrap(), told(&[0, 8], &["b", "a"]));
        assert!(overlay.apply(&[Op::check_empty("a")], 9).is_err());
        let nothing = Applied { versions: vec![0], told: Vec::new(), has_written: false };
        assert_eq!(overlay.apply(&[Op::check_empty("b")], 9).unwrap(), nothing);
        let quiet = [Op::put_quietly("a", "y", Expect::Version(8))];
        assert_eq!(overlay.apply(&quiet, 10).unwrap(), told(&[10], &[]));
        let writes = overlay.into_writes();
        assert_eq!(writes.puts, [("a".to_owned(), 10, "y".into())]);
        assert_eq!(writes.deletes, ["b"]);
    }
}
