//! A reader of protobuf fields for the messages that are scanned rather than decoded.

use thiserror::Error;

/// Why a message could not be scanned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum FieldError {
    #[error("the message ends inside a field")]
    Truncated,
    #[error("a varint is longer than 10 bytes")]
    LongVarint,
    #[error("field number {0} is not valid")]
    FieldNumber(u64),
    #[error("wire type {wire_type} of field {field} is not expected")]
    WireType { field: u32, wire_type: u8 },
    #[error("field {0} is not UTF-8")]
    Utf8(u32),
    #[error("the required field {0} is missing")]
    Missing(&'static str),
}

/// Where a value lies in the slice that was scanned: outlives the borrow, so that it can be kept beside a `Bytes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Span {
    pub start: u32,
    pub len: u32,
}

impl Span {
    pub(crate) fn new(start: usize, len: usize) -> Self {
        Self { start: start as u32, len: len as u32 }
    }

    /// The bytes, out of the slice (or an equal one) that the span was made from.
    ///
    /// # Panics
    /// If `whole` is shorter than that slice.
    pub fn of<'a>(&self, whole: &'a [u8]) -> &'a [u8] {
        &whole[self.start as usize..][..self.len as usize]
    }

    pub fn range(&self) -> std::ops::Range<usize> {
        self.start as usize..self.start as usize + self.len as usize
    }
}

/// One field's value; spans count from the start of the reader's slice.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Value {
    Varint(u64),
    Fixed64,
    Bytes(Span),
    Fixed32,
}

/// Reads the fields of `buf[start..end]` in order.
pub(crate) struct Fields<'a> {
    buf: &'a [u8],
    pos: usize,
}

impl<'a> Fields<'a> {
    /// The message lies at `start..end`, which must be inside `buf`; spans count from the start of `buf`.
    pub(crate) fn new(buf: &'a [u8], start: usize, end: usize) -> Self {
        Self { buf: &buf[..end], pos: start }
    }

    #[inline]
    fn varint(&mut self) -> Result<u64, FieldError> {
        let byte = *self.buf.get(self.pos).ok_or(FieldError::Truncated)?;
        if byte < 0x80 {
            self.pos += 1;
            return Ok(u64::from(byte));
        }
        self.long_varint()
    }

    fn long_varint(&mut self) -> Result<u64, FieldError> {
        let mut value = 0u64;
        for i in 0..10 {
            let byte = *self.buf.get(self.pos + i).ok_or(FieldError::Truncated)?;
            value |= u64::from(byte & 0x7f) << (7 * i);
            if byte < 0x80 {
                self.pos += i + 1;
                return Ok(value);
            }
        }
        Err(FieldError::LongVarint)
    }

    fn skip(&mut self, len: u64) -> Result<Span, FieldError> {
        let left = (self.buf.len() - self.pos) as u64;
        if len > left {
            return Err(FieldError::Truncated);
        }
        let span = Span::new(self.pos, len as usize);
        self.pos += len as usize;
        Ok(span)
    }

    /// The next field's number and value; `None` at the end.
    #[inline]
    pub(crate) fn next(&mut self) -> Result<Option<(u32, Value)>, FieldError> {
        if self.pos >= self.buf.len() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let number = tag >> 3;
        if number == 0 || number > 0x1fff_ffff {
            return Err(FieldError::FieldNumber(number));
        }
        let field = number as u32;
        let value = match (tag & 7) as u8 {
            0 => Value::Varint(self.varint()?),
            1 => {
                self.skip(8)?;
                Value::Fixed64
            }
            2 => {
                let len = self.varint()?;
                Value::Bytes(self.skip(len)?)
            }
            5 => {
                self.skip(4)?;
                Value::Fixed32
            }
            wire_type => return Err(FieldError::WireType { field, wire_type }),
        };
        Ok(Some((field, value)))
    }
}

impl Value {
    fn wire_type(self) -> u8 {
        match self {
            Value::Varint(_) => 0,
            Value::Fixed64 => 1,
            Value::Bytes(_) => 2,
            Value::Fixed32 => 5,
        }
    }

    #[inline]
    pub(crate) fn varint(self, field: u32) -> Result<u64, FieldError> {
        match self {
            Value::Varint(v) => Ok(v),
            other => Err(FieldError::WireType { field, wire_type: other.wire_type() }),
        }
    }

    #[inline]
    pub(crate) fn bytes(self, field: u32) -> Result<Span, FieldError> {
        match self {
            Value::Bytes(span) => Ok(span),
            other => Err(FieldError::WireType { field, wire_type: other.wire_type() }),
        }
    }
}
