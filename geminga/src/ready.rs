//! The ready file: it exists, complete, exactly while both ports serve.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Serialize;

#[derive(Serialize)]
struct Ready {
    pid: u32,
    pulsar: String,
    http: String,
}

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
    pub fn write(path: &Path, pulsar: SocketAddr, http: SocketAddr) -> anyhow::Result<Self> {
        let ready = Ready { pid: std::process::id(), pulsar: pulsar.to_string(), http: http.to_string() };
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(format!(".{}.tmp", ready.pid));
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
