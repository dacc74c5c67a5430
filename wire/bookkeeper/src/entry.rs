//! What stands at the front of an entry's body, as BookKeeper's clients write it.

/// Ledger, entry, last add confirmed and length, eight big-endian bytes each. The digest follows, then the payload.
pub const ENTRY_HEAD_BYTES: usize = 32;
/// Ledger and last add confirmed; their digest follows.
pub(crate) const LAC_HEAD_BYTES: usize = 16;

/// Big-endian, as all numbers here.
fn i64_at(bytes: &[u8], at: usize) -> Option<i64> {
    Some(i64::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// The head of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryHead {
    pub ledger: i64,
    pub entry: i64,
    /// The last entry that the writer knew to be acknowledged when it sent this one; -1 for none.
    pub last_add_confirmed: i64,
    /// Bytes of payload in the ledger up to and with this entry.
    pub length: i64,
}

impl EntryHead {
    /// `None` if the body is too short for one.
    pub fn decode(body: &[u8]) -> Option<Self> {
        Some(Self {
            ledger: i64_at(body, 0)?,
            entry: i64_at(body, 8)?,
            last_add_confirmed: i64_at(body, 16)?,
            length: i64_at(body, 24)?,
        })
    }

    pub fn encode(&self) -> [u8; ENTRY_HEAD_BYTES] {
        let mut bytes = [0; ENTRY_HEAD_BYTES];
        for (at, value) in [self.ledger, self.entry, self.last_add_confirmed, self.length].into_iter().enumerate() {
            bytes[8 * at..8 * at + 8].copy_from_slice(&value.to_be_bytes());
        }
        bytes
    }
}

/// The head of what a writer sends to say how far its ledger is confirmed, without an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LacHead {
    pub ledger: i64,
    pub last_add_confirmed: i64,
}

impl LacHead {
    /// `None` if the body is too short for one.
    pub fn decode(body: &[u8]) -> Option<Self> {
        Some(Self { ledger: i64_at(body, 0)?, last_add_confirmed: i64_at(body, 8)? })
    }

    pub fn encode(&self) -> [u8; LAC_HEAD_BYTES] {
        let mut bytes = [0; LAC_HEAD_BYTES];
        bytes[..8].copy_from_slice(&self.ledger.to_be_bytes());
        bytes[8..].copy_from_slice(&self.last_add_confirmed.to_be_bytes());
        bytes
    }
}
