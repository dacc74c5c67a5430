//! What the engine needs of a disk: one flat folder of files.

pub mod real;
pub mod sim;

use std::io;

use crate::format::BLOCK_BYTES;

/// A folder on a disk that one engine owns.
pub trait Disk: Send + Sync + 'static {
    type File: DiskFile;

    /// Creates an empty file, replacing one of that name. Its name is durable after [`Disk::sync_folder`].
    fn create(&self, name: &str) -> io::Result<Self::File>;
    fn open(&self, name: &str) -> io::Result<Self::File>;
    fn list(&self) -> io::Result<Vec<String>>;
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Replaces a file of the new name.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Makes creations, removals and renames durable.
    fn sync_folder(&self) -> io::Result<()>;
    fn space(&self) -> io::Result<Space>;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    pub free_bytes: u64,
    pub total_bytes: u64,
}

pub trait DiskFile: Send + Sync + 'static {
    fn length(&self) -> io::Result<u64>;
    /// Fills as much of `buffer` as the file has; fewer bytes only at its end.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// The same for a large piece, past the page cache where the file system can: `buffer` is aligned in memory, and `offset`
    /// and length are multiples of a block.
    fn read_blocks_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// `bytes` are aligned in memory, and `offset` and length are multiples of a block. Durable after `sync_data`.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Makes every write that returned before the call durable. After an error it is unknown which of them are.
    fn sync_data(&self) -> io::Result<()>;
    /// Sets space aside up to this length, and makes the file that long.
    fn allocate(&self, bytes: u64) -> io::Result<()>;
    /// Gives back what is behind this length, which nobody needs. After a crash it may be there again.
    fn truncate(&self, bytes: u64) -> io::Result<()>;
    /// Whether several writes and syncs may be under way at once, each learning of its own failure.
    fn overlaps(&self) -> bool;
}

/// Whether a disk says that what is there cannot be read, as of a sector that has gone bad, and not that something else is wrong.
/// Reads past the page cache get the second from some disks, and the third from some that have checksums.
pub(crate) fn is_damage(error: &io::Error) -> bool {
    const EIO: i32 = 5;
    const ENODATA: i32 = 61;
    const EILSEQ: i32 = 84;
    matches!(error.raw_os_error(), Some(EIO | ENODATA | EILSEQ))
}

/// What stands in place of what cannot be read. Not zeros, as they are the length and the checksum of nothing.
const UNREADABLE: u8 = 0xff;

/// Reads as `read` does. In place of blocks that the disk cannot read comes what no checksum takes for what was there: so what is
/// beside the damage is found, and what it hit is told as of any other damage.
pub(crate) fn read_around(
    buffer: &mut [u8],
    offset: u64,
    read: impl Fn(&mut [u8], u64) -> io::Result<usize>,
) -> io::Result<usize> {
    read_around_noting(buffer, offset, read, |_| ())
}

/// The same; `unreadable` hears where each block begins that the disk cannot read.
pub(crate) fn read_around_noting(
    buffer: &mut [u8],
    offset: u64,
    read: impl Fn(&mut [u8], u64) -> io::Result<usize>,
    mut unreadable: impl FnMut(u64),
) -> io::Result<usize> {
    match read(buffer, offset) {
        Err(error) if is_damage(&error) => tracing::warn!(%error, offset, bytes = buffer.len(), "a disk cannot read"),
        done => return done,
    }
    let block = BLOCK_BYTES as u64;
    let mut filled = 0;
    while filled < buffer.len() {
        let at = offset + filled as u64;
        let rest = buffer.len() - filled;
        let piece = &mut buffer[filled..][..rest.min((block - at % block) as usize)];
        let count = match read(piece, at) {
            Err(error) if is_damage(&error) => {
                piece.fill(UNREADABLE);
                unreadable(at / block * block);
                piece.len()
            }
            done => done?,
        };
        filled += count;
        if count < piece.len() {
            break;
        }
    }
    Ok(filled)
}
