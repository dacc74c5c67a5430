//! A folder of a mounted file system.
//!
//! Writes and large reads are direct where the file system can (docs/formats.md has the figures). Small reads go through the
//! page cache: they only ever touch blocks that were written once and synced.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Advice, FallocateFlags, FlockOperation, OFlags};

use super::{Disk, DiskFile, Space};
use crate::error::OpenError;
use crate::format::BLOCK_BYTES;

const LOCK_NAME: &str = "lock";
/// A process that was killed holds its lock until its last write has returned.
const LOCK_PATIENCE: Duration = Duration::from_millis(500);
const LOCK_RETRY: Duration = Duration::from_millis(10);

pub struct RealDisk {
    folder: PathBuf,
    /// For `fsync` of the folder.
    handle: File,
    /// Holds the exclusive lock as long as it is open.
    _lock: File,
    direct: bool,
}

impl RealDisk {
    /// Creates the folder if need be and locks it against other processes and other logs of this one.
    pub fn open(folder: &Path) -> Result<Self, OpenError> {
        let failed = |action| {
            let folder = folder.display().to_string();
            move |source| OpenError::Io { action, folder, source }
        };
        std::fs::create_dir_all(folder).map_err(failed("creating the folder"))?;
        let handle = File::open(folder).map_err(failed("opening the folder"))?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(folder.join(LOCK_NAME))
            .map_err(failed("creating the lock file"))?;
        lock_exclusively(&lock, folder)?;
        let direct = takes_direct_writes(folder).map_err(failed("writing a first file"))?;
        if !direct {
            tracing::warn!(folder = %folder.display(), "the file system has no direct I/O, log writes are buffered");
        }
        Ok(Self { folder: folder.to_owned(), handle, _lock: lock, direct })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn open_handles(&self, path: &Path) -> io::Result<RealFile> {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        if self.direct {
            options.custom_flags(OFlags::DIRECT.bits() as i32);
        }
        let (write, read) = (options.open(path)?, File::open(path)?);
        // No read-ahead: it could load blocks into the page cache that a direct write is just changing.
        rustix::fs::fadvise(&read, 0, None, Advice::Random)?;
        Ok(RealFile { write, read, direct: self.direct })
    }
}

fn lock_exclusively(lock: &File, folder: &Path) -> Result<(), OpenError> {
    let give_up = Instant::now() + LOCK_PATIENCE;
    loop {
        match rustix::fs::flock(lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < give_up => std::thread::sleep(LOCK_RETRY),
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(OpenError::Locked(folder.display().to_string())),
            Err(error) => {
                let folder = folder.display().to_string();
                return Err(OpenError::Io { action: "locking the folder", folder, source: error.into() });
            }
        }
    }
}

fn takes_direct_writes(folder: &Path) -> io::Result<bool> {
    let path = folder.join("direct-probe");
    File::create(&path)?;
    let mut options = OpenOptions::new();
    let opened = options.write(true).custom_flags(OFlags::DIRECT.bits() as i32).open(&path);
    std::fs::remove_file(&path)?;
    match opened {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(false),
        Err(error) => Err(error),
    }
}

impl Disk for RealDisk {
    type File = RealFile;

    fn create(&self, name: &str) -> io::Result<RealFile> {
        let path = self.path(name);
        File::create(&path)?;
        self.open_handles(&path)
    }

    fn open(&self, name: &str) -> io::Result<RealFile> {
        self.open_handles(&self.path(name))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for file in std::fs::read_dir(&self.folder)? {
            if let Ok(name) = file?.file_name().into_string() {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.path(name))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.path(from), self.path(to))
    }

    fn sync_folder(&self) -> io::Result<()> {
        self.handle.sync_all()
    }

    fn space(&self) -> io::Result<Space> {
        let figures = rustix::fs::fstatvfs(self.handle.as_fd())?;
        Ok(Space { free_bytes: figures.f_bavail * figures.f_frsize, total_bytes: figures.f_blocks * figures.f_frsize })
    }
}

pub struct RealFile {
    write: File,
    read: File,
    direct: bool,
}

impl DiskFile for RealFile {
    fn length(&self) -> io::Result<u64> {
        Ok(self.read.metadata()?.len())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        fill(&self.read, buffer, offset, 1)
    }

    fn read_blocks_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        if self.direct { fill(&self.write, buffer, offset, BLOCK_BYTES) } else { self.read_at(buffer, offset) }
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write.write_all_at(bytes, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.write.sync_data()
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        match rustix::fs::fallocate(self.write.as_fd(), FallocateFlags::empty(), 0, bytes) {
            Ok(()) => self.write.sync_all(),
            Err(rustix::io::Errno::OPNOTSUPP) => self.write.set_len(bytes),
            Err(error) => Err(error.into()),
        }
    }

    fn truncate(&self, bytes: u64) -> io::Result<()> {
        self.write.set_len(bytes)
    }

    /// Buffered writes share one error state per open file: the error of one write could be told to another's sync.
    fn overlaps(&self) -> bool {
        self.direct
    }
}

/// Reads until the buffer is full or the file ends: at a read of nothing, or of what is no multiple of `unit`.
fn fill(file: &File, buffer: &mut [u8], offset: u64, unit: usize) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(count) => {
                filled += count;
                if !filled.is_multiple_of(unit) {
                    break;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
