//! The folder that a server owns, and the lock that keeps a second one out.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// Another process has the folder.
#[derive(Debug, thiserror::Error)]
#[error("data folder {folder} is in use by another process (pid {owner})")]
pub struct InUse {
    folder: String,
    owner: String,
}

/// A folder that is locked for as long as this lives. The kernel unlocks it when the process ends, however it ends.
pub struct DataDir {
    path: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Creates the folder when it is missing, and locks it.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(path).with_context(|| format!("cannot create data folder {}", path.display()))?;
        std::fs::read_dir(path).with_context(|| format!("cannot read data folder {}", path.display()))?;
        let lock_path = path.join("lock");
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&lock_path)
            .with_context(|| format!("cannot write to data folder {}", path.display()))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let mut owner = String::new();
                // The owner's id is a courtesy.
                let _ = lock.read_to_string(&mut owner);
                return Err(InUse { folder: path.display().to_string(), owner: owner.trim().to_owned() }.into());
            }
            Err(error) => {
                return Err(error).with_context(|| format!("cannot lock data folder {}", path.display()));
            }
        }
        lock.set_len(0)
            .and_then(|()| lock.rewind())
            .and_then(|()| writeln!(lock, "{}", std::process::id()))
            .with_context(|| format!("cannot write to data folder {}", path.display()))?;
        Ok(DataDir { path: path.to_owned(), _lock: lock })
    }

    /// The folder of the embedded storage node's log.
    pub fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    /// The SQLite file, unless the settings name another.
    pub fn metadata_file(&self) -> PathBuf {
        self.path.join("metadata.db")
    }
}
