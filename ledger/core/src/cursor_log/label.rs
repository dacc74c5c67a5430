//! What the first entry of a cursor log's ledger says of it, so that the list of the log's ledgers can be made anew from storage.
//!
//! ```text
//! entry    as of any record; its only one is of kind 4 (blob) under the id 2^64 - 2, which no cursor has
//! payload  version u8 = 1 | length varint | name | ledgers varint | ledger varint*
//! ```
//! To a reader that does not know labels it is a blob like any other.

use bytes::Bytes;

use super::record::{EntryReader, EntryWriter, Record};
use crate::wire::{FormatError, Reader, put_u64};

/// No cursor has this id.
const KEY: u64 = u64::MAX - 1;
const VERSION: u8 = 1;

/// See the module's head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// Of the log: that of its bundle.
    pub name: String,
    /// What the log had when the ledger was begun, oldest first; the ledger itself is the last.
    pub ledgers: Vec<u64>,
}

pub(crate) fn is_label(record: &Record) -> bool {
    matches!(record, Record::Blob { key: KEY, .. } | Record::BlobDropped { key: KEY })
}

impl Label {
    pub(crate) fn entry(&self) -> Bytes {
        let mut payload = vec![VERSION];
        put_u64(&mut payload, self.name.len() as u64);
        payload.extend_from_slice(self.name.as_bytes());
        put_u64(&mut payload, self.ledgers.len() as u64);
        self.ledgers.iter().for_each(|ledger| put_u64(&mut payload, *ledger));
        let (mut writer, mut entry) = (EntryWriter::default(), Bytes::new());
        // One that does not fit into an entry would not be found by whoever reads but the first.
        let max = payload.len() + 1024;
        let mut keep = |ready: super::record::ReadyEntry| entry = ready.bytes;
        writer.add(&Record::Blob { key: KEY, bytes: payload.into() }, 0, max, &mut keep);
        writer.seal(&mut keep);
        entry
    }

    /// The label that the first entry of a ledger is; `None` if it is none, as in ledgers that were written before there were labels.
    ///
    /// # Errors
    /// It is no entry of a cursor log, or a label of a version that is not known.
    pub fn of_entry(entry: &[u8]) -> Result<Option<Label>, FormatError> {
        let mut first = None;
        EntryReader::default().read(entry, &mut |record| {
            first.get_or_insert(record);
        })?;
        match first {
            Some(Record::Blob { key: KEY, bytes }) => Label::decode(&bytes).map(Some),
            _ => Ok(None),
        }
    }

    fn decode(payload: &[u8]) -> Result<Label, FormatError> {
        let mut reader = Reader(payload);
        match reader.u8()? {
            VERSION => {}
            other => return Err(FormatError::Version(other)),
        }
        let length = reader.u64()?;
        let name = String::from_utf8(reader.bytes(length)?.to_vec());
        let name = name.map_err(|_| FormatError::Invalid("name of a cursor log"))?;
        let count = reader.u64()?;
        // A ledger takes a byte at least.
        if count > payload.len() as u64 {
            return Err(FormatError::Truncated);
        }
        let ledgers = (0..count).map(|_| reader.u64()).collect::<Result<_, _>>()?;
        match reader.is_empty() {
            true => Ok(Label { name, ledgers }),
            false => Err(FormatError::Invalid("bytes behind a label")),
        }
    }
}
