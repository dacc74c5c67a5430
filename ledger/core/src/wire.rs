//! The primitives of this crate's binary formats: LEB128 integers and checked reads. docs/formats.md has the layouts.

use geminga_model::Position;

/// The bytes are not a record of the version they claim, or of one that this version reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    #[error("record is cut short")]
    Truncated,
    #[error("record has version {0}, which this version does not read")]
    Version(u8),
    #[error("checksum does not match")]
    Checksum,
    #[error("invalid {0}")]
    Invalid(&'static str),
}

pub(crate) fn put_u64(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A position as ledger, then entry + 1 (so that -1 takes one byte).
pub(crate) fn put_position(out: &mut Vec<u8>, pos: Position) {
    put_u64(out, pos.ledger_id);
    put_u64(out, pos.entry_id.wrapping_add(1) as u64);
}

/// Reads from the front of a slice.
pub(crate) struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn u8(&mut self) -> Result<u8, FormatError> {
        let (&first, rest) = self.0.split_first().ok_or(FormatError::Truncated)?;
        self.0 = rest;
        Ok(first)
    }

    pub fn u64(&mut self) -> Result<u64, FormatError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(FormatError::Invalid("integer"))
    }

    pub fn u32(&mut self) -> Result<u32, FormatError> {
        u32::try_from(self.u64()?).map_err(|_| FormatError::Invalid("integer"))
    }

    pub fn position(&mut self) -> Result<Position, FormatError> {
        let ledger_id = self.u64()?;
        let entry_id = (self.u64()? as i64).wrapping_sub(1);
        Ok(Position { ledger_id, entry_id })
    }

    pub fn bytes(&mut self, len: u64) -> Result<&'a [u8], FormatError> {
        let len = usize::try_from(len).map_err(|_| FormatError::Truncated)?;
        let (head, rest) = self.0.split_at_checked(len).ok_or(FormatError::Truncated)?;
        self.0 = rest;
        Ok(head)
    }
}
