//! A growable buffer whose first byte lies on a block boundary in memory, as direct I/O wants it.

use crate::format::BLOCK_BYTES;

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
}
