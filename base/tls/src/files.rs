//! Files that are read again when they have changed.

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;

use crate::error::TlsError;

/// The times of files are asked for no more often than this.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Time of last change and size of each file.
type Stamp = Vec<Option<(SystemTime, u64)>>;

type Make<T> = dyn Fn(&[PathBuf]) -> Result<T, TlsError> + Send + Sync;

/// What was made of some files, made anew when one of them has changed.
pub struct Watched<T> {
    files: Vec<PathBuf>,
    make: Box<Make<T>>,
    current: Mutex<Current<T>>,
}

struct Current<T> {
    value: T,
    /// Of the files when they were read last, whether or not that went well.
    stamp: Stamp,
    looked: Instant,
}

impl<T: Clone> Watched<T> {
    /// # Errors
    /// Those of `make`.
    pub fn new(
        files: Vec<PathBuf>,
        make: impl Fn(&[PathBuf]) -> Result<T, TlsError> + Send + Sync + 'static,
    ) -> Result<Self, TlsError> {
        // The stamp comes first: a change while the files are read is seen at the next look.
        let stamp = stamp(&files);
        let value = make(&files)?;
        let current = Mutex::new(Current { value, stamp, looked: Instant::now() });
        Ok(Self { files, make: Box::new(make), current })
    }

    /// The newest that could be made.
    pub fn get(&self) -> T {
        let mut current = self.current.lock();
        if current.looked.elapsed() >= LOOK_INTERVAL {
            current.looked = Instant::now();
            let stamp = stamp(&self.files);
            if stamp != current.stamp {
                current.stamp = stamp;
                match (self.make)(&self.files) {
                    Ok(value) => {
                        current.value = value;
                        tracing::info!(files = ?self.files, "read the changed files for TLS");
                    }
                    Err(error) => {
                        tracing::warn!(%error, "could not use the changed files for TLS, those from before stay in use");
                    }
                }
            }
        }
        current.value.clone()
    }
}

fn stamp(files: &[PathBuf]) -> Stamp {
    let one = |file: &PathBuf| {
        let metadata = std::fs::metadata(file).ok()?;
        Some((metadata.modified().ok()?, metadata.len()))
    };
    files.iter().map(one).collect()
}
