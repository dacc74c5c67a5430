//! Buffers whose first byte lies on a block boundary in memory, as direct I/O wants it: one that grows, and one for large
//! reads, of two sizes and used again.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::format::BLOCK_BYTES;

/// Size of a buffer for large reads: a piece of 1 MiB, what comes with it at both ends included.
pub const READ_BUFFER_BYTES: usize = (1 << 20) + (256 << 10);
/// The same for a piece of 512 KiB, as whoever keeps a part of it keeps all of it.
const SMALLER_BYTES: usize = (512 << 10) + (192 << 10);
/// Buffers of each size that are kept for the next reads.
const KEPT: usize = 8;

/// Keeps its memory when cleared.
#[derive(Default)]
pub struct AlignedBuffer {
    memory: Vec<u8>,
    skip: usize,
}

impl AlignedBuffer {
    pub fn with_capacity(bytes: usize) -> Self {
        let mut buffer = Self::default();
        buffer.reserve(bytes);
        buffer
    }

    pub fn len(&self) -> usize {
        self.memory.len() - self.skip
    }

    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn capacity(&self) -> usize {
        self.memory.capacity()
    }

    pub fn clear(&mut self) {
        self.memory.truncate(self.skip);
    }

    /// Makes room for `bytes` more without a later move.
    pub fn reserve(&mut self, bytes: usize) {
        if self.memory.capacity() - self.memory.len() >= bytes && self.memory.capacity() > 0 {
            return;
        }
        let length = self.len();
        let capacity = (length + bytes).max(length * 2).next_multiple_of(BLOCK_BYTES);
        let mut memory: Vec<u8> = Vec::with_capacity(capacity + BLOCK_BYTES);
        let skip = memory.as_ptr().align_offset(BLOCK_BYTES);
        assert!(skip < BLOCK_BYTES, "a byte pointer can always be aligned");
        memory.resize(skip, 0);
        memory.extend_from_slice(self.as_slice());
        (self.memory, self.skip) = (memory, skip);
    }

    pub fn extend(&mut self, bytes: &[u8]) {
        self.reserve(bytes.len());
        self.memory.extend_from_slice(bytes);
    }

    pub fn extend_zeros(&mut self, count: usize) {
        self.reserve(count);
        let length = self.memory.len() + count;
        self.memory.resize(length, 0);
    }

    /// Fills the last block with zeros.
    pub fn pad_to_block(&mut self) {
        self.extend_zeros(self.len().next_multiple_of(BLOCK_BYTES) - self.len());
    }

    pub fn as_slice(&self) -> &[u8] {
        &self.memory[self.skip..]
    }

    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.memory[self.skip..]
    }
}

/// Read buffers that are free. Memory that is used again needs neither be zeroed nor mapped by the kernel anew. Clones share
/// the pools.
#[derive(Clone, Default)]
pub struct ReadBuffers {
    smaller: Arc<Mutex<Pool>>,
    large: Arc<Mutex<Pool>>,
}

#[derive(Default)]
struct Pool {
    free: Vec<AlignedBuffer>,
    /// The fewest that were free since the pool was last trimmed.
    spare: usize,
}

impl ReadBuffers {
    /// Room for so many bytes, [`READ_BUFFER_BYTES`] at most, with whatever was there before.
    pub fn take(&self, bytes: usize) -> ReadBuffer {
        let (home, size) = match bytes <= SMALLER_BYTES {
            true => (&self.smaller, SMALLER_BYTES),
            false => (&self.large, READ_BUFFER_BYTES),
        };
        let mut pool = home.lock();
        let buffer = pool.free.pop();
        pool.spare = pool.spare.min(pool.free.len());
        drop(pool);
        let buffer = buffer.unwrap_or_else(|| {
            let mut buffer = AlignedBuffer::with_capacity(size);
            buffer.extend_zeros(size);
            buffer
        });
        ReadBuffer { buffer, start: 0, end: 0, home: home.clone() }
    }

    /// Frees what nobody has used since the last call.
    pub fn trim(&self) {
        for pool in [&self.smaller, &self.large] {
            let mut pool = pool.lock();
            let left = pool.free.len() - pool.spare;
            pool.free.truncate(left);
            pool.spare = left;
        }
    }
}

/// Goes back to its pool when dropped, with the last slice of [`ReadBuffer::freeze`].
pub struct ReadBuffer {
    buffer: AlignedBuffer,
    start: usize,
    end: usize,
    home: Arc<Mutex<Pool>>,
}

impl ReadBuffer {
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        self.buffer.as_mut_slice()
    }

    /// These bytes of it, without a copy.
    pub fn freeze(mut self, range: std::ops::Range<usize>) -> Bytes {
        (self.start, self.end) = (range.start, range.end);
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for ReadBuffer {
    fn as_ref(&self) -> &[u8] {
        &self.buffer.as_slice()[self.start..self.end]
    }
}

impl Drop for ReadBuffer {
    fn drop(&mut self) {
        let mut pool = self.home.lock();
        if pool.free.len() < KEPT {
            pool.free.push(std::mem::take(&mut self.buffer));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_survives_growth_and_stays_aligned() {
        let mut buffer = AlignedBuffer::default();
        for byte in 0..20_000_u32 {
            buffer.extend(&[byte as u8]);
            assert_eq!(buffer.as_slice().as_ptr().align_offset(BLOCK_BYTES), 0);
        }
        assert!(buffer.as_slice().iter().enumerate().all(|(at, &byte)| byte == at as u8));
        buffer.pad_to_block();
        assert_eq!(buffer.len(), 20_480);
        buffer.clear();
        assert!(buffer.is_empty() && buffer.capacity() > 20_000);
    }

    #[test]
    fn a_read_buffer_comes_back_with_its_last_slice() {
        let pool = ReadBuffers::default();
        let mut buffer = pool.take(SMALLER_BYTES + 1);
        assert_eq!(buffer.as_mut_slice().len(), READ_BUFFER_BYTES);
        buffer.as_mut_slice()[5000] = 7;
        let all = buffer.freeze(4096..8192);
        let slice = all.slice(904..905);
        drop(all);
        assert!(pool.large.lock().free.is_empty());
        assert_eq!(&slice[..], [7]);
        drop(slice);
        assert_eq!(pool.take(SMALLER_BYTES).as_mut_slice().len(), SMALLER_BYTES, "not that one");
        assert_eq!(pool.take(READ_BUFFER_BYTES).as_mut_slice()[5000], 7, "the same memory");
        pool.trim();
        assert_eq!(pool.large.lock().free.len(), 1, "it was in use meanwhile");
        pool.trim();
        assert!(pool.large.lock().free.is_empty());
    }
}
