//! Who a node is: a name that is written on each of its disks, and lasts as long as what is on them.

use std::path::Path;

use rand::Rng;
use serde::{Deserialize, Serialize};

use crate::state_file::{self, Problem, StateFileError};

/// File in each data directory.
const FILE: &str = "identity";

/// What is written in a data directory about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Of the node.
    pub id: String,
    /// Of this directory. Nodes that had one directory did not write it: it is then the node's.
    #[serde(default)]
    pub directory: String,
    /// The directories of the node, this one included. Empty in one that was marked and not counted yet.
    #[serde(default)]
    pub directories: Vec<String>,
    /// Grows with each change of `directories`: the greatest one counts.
    #[serde(default)]
    pub revision: u64,
    /// Of ledgers with smaller ids of which there is nothing, the node does not know whether it had them.
    #[serde(default)]
    pub limbo_below: u64,
    /// Of ledgers with smaller ids it is settled what this node lacks, if it has `limbo_below`: see limbo.rs.
    #[serde(default)]
    pub settled_below: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("{folder} has ledgers but no file '{FILE}': it was damaged or put together from several disks")]
    Missing { folder: String },
    #[error(transparent)]
    Unreadable(#[from] StateFileError),
    #[error("{folder} cannot be read: {source}")]
    Io { folder: String, source: std::io::Error },
    #[error("the data directories belong to several nodes, {0} and {1}: give each node its own")]
    SeveralNodes(String, String),
    #[error("{0} and {1} are copies of one data directory: a disk must not be used twice")]
    Twice(String, String),
    #[error("no data directory can be used")]
    NoDirectory,
}

impl Identity {
    /// `None` where there is none.
    ///
    /// # Errors
    /// It cannot be read, or makes no sense.
    pub fn read(folder: &Path) -> Result<Option<Self>, StateFileError> {
        let Some(mut identity) = state_file::read::<Self>(FILE, folder)? else { return Ok(None) };
        if identity.id.is_empty() {
            return Err(StateFileError::new(FILE, folder, Problem::Damaged("it has no name".to_owned())));
        }
        if identity.directory.is_empty() {
            identity.directory = identity.id.clone();
            identity.directories = vec![identity.id.clone()];
        }
        Ok(Some(identity))
    }

    /// Whether what is there is from a build that wrote no checksum.
    pub fn is_unchecked(folder: &Path) -> bool {
        state_file::is_unchecked(FILE, folder)
    }

    /// Replaces what is there, durably.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, folder: &Path) -> Result<(), StateFileError> {
        state_file::write(FILE, folder, self)
    }

    /// A name that nobody has.
    pub fn new_name() -> String {
        format!("{:016x}", rand::rng().random::<u64>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state_file::tests::check_damage;

    #[test]
    fn what_is_written_is_read_and_damage_is_no_absence() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        assert_eq!(Identity::read(folder.path()).expect("an empty folder"), None);
        let identity = Identity {
            id: "n".into(),
            directory: "a".into(),
            directories: vec!["a".into(), "b".into()],
            revision: 3,
            limbo_below: 7,
            settled_below: 7,
        };
        identity.write(folder.path()).expect("written");
        assert_eq!(Identity::read(folder.path()).expect("readable"), Some(identity));
        check_damage(FILE, folder.path(), || Identity::read(folder.path()));
        std::fs::write(folder.path().join(FILE), b"{\"id\":\"\"}").expect("written");
        Identity::read(folder.path()).expect_err("it has no name");
    }

    #[test]
    fn the_file_of_a_node_with_one_directory_names_the_directory_too() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(folder.path().join(FILE), b"{\"id\":\"00c0ffee\"}").expect("written");
        let identity = Identity::read(folder.path()).expect("readable").expect("there");
        assert_eq!((&identity.directory[..], identity.directories.len(), identity.limbo_below), ("00c0ffee", 1, 0));
    }
}
