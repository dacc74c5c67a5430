//! Lists of ledgers that outlast a restart: each is a file in every data directory as long as it names any.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::path::PathBuf;

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
    pub fn read(file: &'static str, folders: Vec<PathBuf>) -> io::Result<Self> {
        let mut ledgers = BTreeSet::new();
        for folder in &folders {
            match std::fs::read(folder.join(file)) {
                Ok(bytes) => ledgers.extend(serde_json::from_slice::<BTreeSet<u64>>(&bytes)?),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Self { file, folders, ledgers })
    }

    pub fn ledgers(&self) -> &BTreeSet<u64> {
        &self.ledgers
    }

    /// Notes more of them, durably.
    pub fn note(&mut self, ledgers: &BTreeSet<u64>) -> io::Result<()> {
        self.replace(self.ledgers.union(ledgers).copied().collect())
    }

    /// Forgets all but these.
    pub fn keep(&mut self, ledgers: &BTreeSet<u64>) -> io::Result<()> {
        self.replace(self.ledgers.intersection(ledgers).copied().collect())
    }

    fn replace(&mut self, ledgers: BTreeSet<u64>) -> io::Result<()> {
        if ledgers == self.ledgers {
            return Ok(());
        }
        // In memory first where they get more, and last where they get fewer: a write that fails forgets nothing.
        self.ledgers.extend(&ledgers);
        let bytes = serde_json::to_vec(&ledgers)?;
        for folder in &self.folders {
            if ledgers.is_empty() {
                match std::fs::remove_file(folder.join(self.file)) {
                    Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            } else {
                let temporary = folder.join(format!("{}.new", self.file));
                let mut file = File::create(&temporary)?;
                file.write_all(&bytes)?;
                file.sync_all()?;
                std::fs::rename(&temporary, folder.join(self.file))?;
            }
            File::open(folder)?.sync_all()?;
        }
        self.ledgers = ledgers;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        std::fs::write(folders[1].join(DOUBTFUL), b"[3").expect("written");
        read().expect_err("damaged");
        noted.keep(&BTreeSet::new()).expect("removed");
        assert!(read().expect("nothing is noted").ledgers().is_empty());
    }
}
