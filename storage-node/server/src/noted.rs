//! Lists of ledgers that outlast a restart: each is a file in every data directory as long as it names any.

use std::collections::BTreeSet;
use std::path::PathBuf;

use crate::state_file::{self, StateFileError};

/// Ledgers that metadata did not know while metadata were older than storage, as after a restore. Nobody can tell which of them
/// were deleted: they stay until metadata know them again, or somebody removes the note.
pub(crate) const DOUBTFUL: &str = "doubtful";
/// Ledgers of which not everything is here again that this node has to have: see limbo.rs.
pub(crate) const UNFINISHED: &str = "unfinished";

#[derive(Debug, Default)]
pub(crate) struct Noted {
    file: &'static str,
    folders: Vec<PathBuf>,
    ledgers: BTreeSet<u64>,
}

impl Noted {
    /// # Errors
    /// A note is there and cannot be read: which ledgers it names is unknown then.
    pub fn read(file: &'static str, folders: Vec<PathBuf>) -> Result<Self, StateFileError> {
        let mut ledgers = BTreeSet::new();
        for folder in &folders {
            ledgers.extend(state_file::read::<BTreeSet<u64>>(file, folder)?.unwrap_or_default());
        }
        Ok(Self { file, folders, ledgers })
    }

    pub fn ledgers(&self) -> &BTreeSet<u64> {
        &self.ledgers
    }

    /// Notes more of them, durably.
    pub fn note(&mut self, ledgers: &BTreeSet<u64>) -> Result<(), StateFileError> {
        self.replace(self.ledgers.union(ledgers).copied().collect())
    }

    /// Forgets all but these.
    pub fn keep(&mut self, ledgers: &BTreeSet<u64>) -> Result<(), StateFileError> {
        self.replace(self.ledgers.intersection(ledgers).copied().collect())
    }

    fn replace(&mut self, ledgers: BTreeSet<u64>) -> Result<(), StateFileError> {
        if ledgers == self.ledgers {
            return Ok(());
        }
        // In memory first where they get more, and last where they get fewer: a write that fails forgets nothing.
        self.ledgers.extend(&ledgers);
        for folder in &self.folders {
            if ledgers.is_empty() {
                state_file::remove(self.file, folder)?;
            } else {
                state_file::write(self.file, folder, &ledgers)?;
            }
        }
        self.ledgers = ledgers;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state_file::tests::check_damage;

    #[test]
    fn notes_outlast_a_restart_and_a_lost_directory_and_damage_is_no_absence() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let folders = [folder.path().join("a"), folder.path().join("b")];
        folders.iter().for_each(|folder| std::fs::create_dir(folder).expect("a folder"));
        let read = || Noted::read(DOUBTFUL, folders.to_vec());
        let mut noted = read().expect("nothing is noted");
        noted.note(&BTreeSet::from([3, 5])).expect("written");
        noted.note(&BTreeSet::from([9])).expect("written");
        std::fs::remove_file(folders[0].join(DOUBTFUL)).expect("it was there");
        let mut noted = read().expect("readable");
        assert_eq!(noted.ledgers(), &BTreeSet::from([3, 5, 9]));
        noted.keep(&BTreeSet::from([4, 5])).expect("written");
        assert_eq!(read().expect("readable").ledgers(), &BTreeSet::from([5]));
        check_damage(DOUBTFUL, &folders[1], || read().map(|noted| noted.ledgers().clone()));
        noted.keep(&BTreeSet::new()).expect("removed");
        assert!(read().expect("nothing is noted").ledgers().is_empty());
    }
}
