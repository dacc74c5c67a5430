//! The ready file: it exists, complete, exactly while the ports serve.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::{Map, Value};

/// Removes the file when dropped.
pub struct ReadyFile {
    path: PathBuf,
}

impl ReadyFile {
    /// Removes what a crashed predecessor left.
    pub fn clear(path: &Path) -> anyhow::Result<()> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove the old ready file {}", path.display()))
            }
            _ => Ok(()),
        }
    }

    /// Writes the file under another name first, so that a reader never sees half of it.
    ///
    /// It is an object with the process id and the address that each named port got.
    pub fn write(path: &Path, ports: &[(&str, SocketAddr)]) -> anyhow::Result<Self> {
        let pid = std::process::id();
        let mut ready = Map::from_iter([("pid".to_owned(), Value::from(pid))]);
        ready.extend(ports.iter().map(|(name, address)| ((*name).to_owned(), Value::from(address.to_string()))));
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(format!(".{pid}.tmp"));
        let temporary = PathBuf::from(temporary);
        std::fs::write(&temporary, serde_json::to_vec(&ready)?)
            .and_then(|()| std::fs::rename(&temporary, path))
            .with_context(|| format!("cannot write the ready file {}", path.display()))?;
        Ok(ReadyFile { path: path.to_owned() })
    }
}

impl Drop for ReadyFile {
    fn drop(&mut self) {
        if let Err(error) = ReadyFile::clear(&self.path) {
            tracing::warn!("{error:#}");
        }
    }
}
