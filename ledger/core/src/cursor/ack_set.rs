//! Which messages of one batch are still unacknowledged.

use crate::wire::{FormatError, Reader, put_u64};

/// Pulsar's `ack_set` of a batch that is acknowledged in part: bit *i* set means that the message with batch index *i*
/// is **not** acknowledged (`java.util.BitSet.toLongArray`: trailing zero words are left out).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AckSet {
    remaining: Box<[u64]>,
    batch_size: u32,
}

fn trim(words: &[u64]) -> &[u64] {
    let len = words.iter().rposition(|&word| word != 0).map_or(0, |last| last + 1);
    &words[..len]
}

fn ones(words: &[u64]) -> u32 {
    words.iter().map(|word| word.count_ones()).sum()
}

impl AckSet {
    /// What an ack with `ack_set` leaves of a batch of which all `batch_size` messages were unacknowledged. Bits beyond
    /// the batch are ignored. A size of 0 means unknown: it is then taken from the highest bit.
    pub fn of_whole_batch(ack_set: &[u64], batch_size: u32) -> AckSet {
        let mut words = ack_set[..ack_set.len().min((batch_size as usize).div_ceil(64))].to_vec();
        if batch_size == 0 {
            words = trim(ack_set).to_vec();
            let top = words.last().map_or(0, |word| 64 - word.leading_zeros() as usize);
            let size = words.len().saturating_sub(1) * 64 + top;
            return AckSet { remaining: words.into(), batch_size: size.try_into().unwrap_or(u32::MAX) };
        }
        if let Some(word) = words.get_mut(batch_size as usize / 64) {
            *word &= (1 << (batch_size % 64)) - 1;
        }
        AckSet { remaining: trim(&words).into(), batch_size }
    }

    /// Acknowledges what `ack_set` does not have set; returns how many messages that are newly acknowledged.
    pub fn intersect(&mut self, ack_set: &[u64]) -> u32 {
        let before = self.remaining();
        for (i, word) in self.remaining.iter_mut().enumerate() {
            *word &= ack_set.get(i).copied().unwrap_or(0);
        }
        let kept = trim(&self.remaining).len();
        if kept < self.remaining.len() {
            self.remaining = self.remaining[..kept].into();
        }
        before - self.remaining()
    }

    /// How many messages are not acknowledged.
    pub fn remaining(&self) -> u32 {
        ones(&self.remaining)
    }

    pub fn batch_size(&self) -> u32 {
        self.batch_size
    }

    /// As `CommandMessage.ack_set` and `CommandAck` carry it.
    pub fn to_longs(&self) -> Vec<i64> {
        self.remaining.iter().map(|&word| word as i64).collect()
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.remaining.len() * 8
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        put_u64(out, u64::from(self.batch_size));
        put_u64(out, self.remaining.len() as u64);
        self.remaining.iter().for_each(|word| out.extend_from_slice(&word.to_le_bytes()));
    }

    pub(crate) fn decode(reader: &mut Reader<'_>) -> Result<AckSet, FormatError> {
        let batch_size = reader.u32()?;
        let len = reader.u64()?;
        let bytes = reader.bytes(len.checked_mul(8).ok_or(FormatError::Truncated)?)?;
        let words: Vec<u64> = bytes.as_chunks::<8>().0.iter().map(|&word| u64::from_le_bytes(word)).collect();
        let set = AckSet { remaining: words.into(), batch_size };
        if set.remaining.last() == Some(&0) || set.remaining() > batch_size {
            return Err(FormatError::Invalid("ack set"));
        }
        Ok(set)
    }
}
