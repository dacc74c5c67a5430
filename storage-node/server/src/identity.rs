//! Who a node is: a name that is written on its disk, and lasts as long as what is on it.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use rand::Rng;
use serde::{Deserialize, Serialize};

/// File in the node's data folder.
const FILE: &str = "identity";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub id: String,
}

#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("{folder} has ledgers but no file '{FILE}': it was damaged or put together from several disks")]
    Missing { folder: String },
    #[error("the file '{FILE}' in {folder} is damaged: {reason}")]
    Damaged { folder: String, reason: String },
    #[error("the file '{FILE}' in {folder} cannot be read or written: {source}")]
    Io { folder: String, source: io::Error },
}

impl Identity {
    /// Reads it, or makes a new one for a folder that has no ledgers.
    ///
    /// # Errors
    /// See [`IdentityError`]; a disk is never given a new name while there is anything on it.
    pub fn open(folder: &Path, has_ledgers: bool) -> Result<Self, IdentityError> {
        let name = || folder.display().to_string();
        let failed = |source| IdentityError::Io { folder: name(), source };
        match std::fs::read(folder.join(FILE)) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|error| IdentityError::Damaged { folder: name(), reason: error.to_string() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound && has_ledgers => {
                Err(IdentityError::Missing { folder: name() })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let identity = Identity { id: format!("{:016x}", rand::rng().random::<u64>()) };
                identity.write(folder).map_err(failed)?;
                Ok(identity)
            }
            Err(error) => Err(failed(error)),
        }
    }

    fn write(&self, folder: &Path) -> io::Result<()> {
        let temporary = folder.join(format!("{FILE}.new"));
        let mut file = File::create(&temporary)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        file.sync_all()?;
        std::fs::rename(&temporary, folder.join(FILE))?;
        File::open(folder)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_keeps_its_name_and_none_with_ledgers_gets_a_new_one() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let first = Identity::open(folder.path(), false).expect("an empty folder");
        assert_eq!(Identity::open(folder.path(), true).expect("it has one"), first);
        std::fs::write(folder.path().join(FILE), b"{").expect("written");
        assert!(matches!(Identity::open(folder.path(), true), Err(IdentityError::Damaged { .. })));
        std::fs::remove_file(folder.path().join(FILE)).expect("removed");
        assert!(matches!(Identity::open(folder.path(), true), Err(IdentityError::Missing { .. })));
        assert_ne!(Identity::open(folder.path(), false).expect("an empty folder"), first);
    }
}
