//! What must hold for any bytes where this crate's formats are expected. Fuzz targets and property tests call it.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use crc_fast::crc32_iscsi as crc32c;

use crate::buffer::AlignedBuffer;
use crate::deleted;
use crate::disk::sim::SimDisk;
use crate::disk::{Disk, DiskFile};
use crate::engine::{Admission, Append, Begin, Engine, Request};
use crate::format::{
    BLOCK_BYTES, DATA_AT, RECORD_ALIGNMENT, RECORD_HEADER_BYTES, RecordHeader, RecordKind, SEAL_AT, Seal,
    SegmentHeader, SegmentKind, Slot, Table, VERSION, decode_manifest, encode_manifest, record_bytes, sealed,
};
use crate::index::footer;
use crate::options::LogOptions;

/// Each decoder, on the bytes as they are and with right checksums. What is taken is written the same again.
pub fn check_decoders(data: &[u8]) {
    let (segment, offset) = (3, 8192);
    RecordHeader::decode(data, segment, offset);
    let _ = (SegmentHeader::decode(data), Seal::decode(data, segment));
    if let Some(bytes) = sealed::record(data, segment, offset)
        && let Some(header) = RecordHeader::decode(&bytes, segment, offset)
    {
        assert_eq!(header.encode(segment, offset), bytes);
        assert!(header.record_bytes().is_multiple_of(RECORD_ALIGNMENT as u64));
        header.body_is_intact(data);
        if let Some(body) = data.get(..header.body_bytes as usize)
            && let Some(table) = Table::of(&header, body)
        {
            assert_eq!(table.slots().count() as u32, header.entry_count());
        }
    }
    if let Some(Ok(header)) = sealed::segment_header(data).map(|bytes| SegmentHeader::decode(&bytes)) {
        assert_eq!(SegmentHeader::decode(&header.encode()), Ok(header));
    }
    if let Some(Ok(seal)) = sealed::seal(data).map(|bytes| Seal::decode(&bytes, segment)) {
        assert_eq!(Seal::decode(&seal.encode(), segment), Ok(seal));
    }
    if let Some(lines) = decode_manifest(data) {
        assert_eq!(encode_manifest(&lines), data);
    }
    footer::check(data);
    deleted::check(data);
}

/// Opens a log of segments made of `data`, with right checksums around whatever they say. It opens or says why not, every
/// ledger answers, and what could be read can be read after the log was used, closed and opened again.
pub fn check_recovery(data: &[u8]) {
    let disk = SimDisk::new(1, 16 << 20);
    write_segments(&disk, &mut Input { left: data, bodies: BTreeMap::new() });
    let options = LogOptions { segment_bytes: 128 << 10, reserve_bytes: 64 << 10, ..LogOptions::default() };
    let Ok((engine, _)) = Engine::open(disk.clone(), options.clone()) else { return };
    let found = contents(&engine);
    use_log(&engine, &found);
    assert_eq!(contents_of(&engine, &found), found, "reads changed while the log was used");
    engine.shut_down().expect("the disk is fine");
    drop(engine);
    let (engine, _) = Engine::open(disk, options).expect("it opened before");
    assert_eq!(contents_of(&engine, &found), found, "reads changed with a restart");
}

type Contents = Vec<(u64, Vec<(u64, Bytes)>)>;

/// The first entries of each ledger, from its beginning on.
fn contents(engine: &Engine<SimDisk>) -> Contents {
    let ledgers = engine.ledgers();
    ledgers.into_iter().map(|ledger| (ledger, entries(engine, ledger))).collect()
}

fn contents_of(engine: &Engine<SimDisk>, known: &Contents) -> Contents {
    known.iter().map(|(ledger, _)| (*ledger, entries(engine, *ledger))).collect()
}

fn entries(engine: &Engine<SimDisk>, ledger: u64) -> Vec<(u64, Bytes)> {
    let last = engine.last_entry(ledger);
    engine.ledger_bytes(ledger);
    for entry in [u64::MAX, u64::MAX - 1, last.ok().flatten().unwrap_or(1)] {
        let _ = (engine.read(ledger, entry), engine.read_range(ledger, entry, u64::MAX, 1 << 20));
    }
    engine.read_range(ledger, 0, u64::MAX, 1 << 20).unwrap_or_default()
}

/// A new ledger, housekeeping, and what the log does by itself.
fn use_log(engine: &Engine<SimDisk>, found: &Contents) {
    let new = (1..).find(|id| found.iter().all(|(ledger, _)| ledger != id)).expect("ids are many");
    let mut queue = VecDeque::new();
    let entry = |entry| Append {
        ledger: new,
        entry,
        parts: [Bytes::from_static(b"new"), Bytes::new(), Bytes::new()],
        reserve: true,
    };
    queue.push_back(Request::Append {
        entries: vec![entry(0), entry(1)],
        admission: Admission::Whole,
        done: Box::new(|_| ()),
    });
    queue.push_back(Request::Fence { ledger: new, key: None, done: Box::new(|_| ()) });
    run(engine, &mut queue);
    engine.prepare_next().expect("the disk is fine");
    engine.seal_retired().expect("the disk is fine");
    engine.check_space();
    let housekeeping = engine.plan_reclaim(Box::new(|_| ())).expect("the disk is fine");
    queue.extend(housekeeping);
    run(engine, &mut queue);
    if let Some(plan) = engine.plan_compaction(|_, _| true)
        && let Ok(Some(request)) = engine.compact(&plan, &mut |_| true, Box::new(|_| ()))
    {
        queue.push_back(request);
    }
    run(engine, &mut queue);
    engine.dispose().expect("the disk is fine");
}

fn run(engine: &Engine<SimDisk>, queue: &mut VecDeque<Request>) {
    while let Begin::Commit(commit) = engine.begin(queue) {
        let written = commit.write();
        engine.finish(commit, written).into_iter().for_each(|outcome| outcome.tell());
    }
}

/// Reads choices and bytes from what a fuzzer gives; zeros when that is used up.
struct Input<'a> {
    left: &'a [u8],
    /// An entry has one content, however often it is appended: whoever writes it again has read it or was its writer.
    bodies: BTreeMap<(u64, u64), &'a [u8]>,
}

impl<'a> Input<'a> {
    fn byte(&mut self) -> u8 {
        let (first, rest) = self.left.split_first().unwrap_or((&0, &[]));
        self.left = rest;
        *first
    }

    /// Mostly small.
    fn number(&mut self) -> u64 {
        match self.byte() {
            255 => self.bytes(8).iter().fold(0, |number, byte| number << 8 | u64::from(*byte)),
            254 => u64::MAX - u64::from(self.byte()),
            small => u64::from(small),
        }
    }

    fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (head, rest) = self.left.split_at(count.min(self.left.len()));
        self.left = rest;
        head
    }

    fn body(&mut self, ledger: u64, entry: u64) -> &'a [u8] {
        let count = self.byte() as usize;
        let given = self.bytes(count);
        self.bodies.entry((ledger, entry)).or_insert(given)
    }
}

const SEGMENTS_MAX: u32 = 4;
const FILE_BYTES_MAX: usize = 64 << 10;

fn write_segments(disk: &SimDisk, input: &mut Input) {
    for segment in 1..=SEGMENTS_MAX {
        let bytes = segment_bytes(segment, input);
        let mut padded = AlignedBuffer::default();
        padded.extend_zeros(bytes.len().next_multiple_of(BLOCK_BYTES));
        padded.as_mut_slice()[..bytes.len()].copy_from_slice(&bytes);
        let file = disk.create(&format!("segment-{segment:08x}")).expect("the disk is fine");
        file.write_at(padded.as_slice(), 0).expect("the disk is fine");
        if input.left.is_empty() {
            break;
        }
    }
    disk.sync_folder().expect("the disk is fine");
}

fn segment_bytes(segment: u32, input: &mut Input) -> Vec<u8> {
    let choice = input.byte();
    let kind = if choice & 7 == 1 { SegmentKind::Compacted } else { SegmentKind::Log };
    let version = VERSION - u16::from(choice >> 3) % VERSION;
    let mut bytes = sealed::segment_header_of_version(&SegmentHeader { segment, kind }, version).to_vec();
    bytes.resize(DATA_AT as usize, 0);
    while !input.left.is_empty() && bytes.len() < FILE_BYTES_MAX {
        match input.byte() % 16 {
            0..=3 => add_record(RecordKind::Entry, segment, input, &mut bytes),
            4 | 5 => add_record(RecordKind::Entries, segment, input, &mut bytes),
            6 => bytes.resize(bytes.len().next_multiple_of(BLOCK_BYTES), 0),
            7 | 8 => add_record(RecordKind::Commit, segment, input, &mut bytes),
            9 => add_record(RecordKind::Fence, segment, input, &mut bytes),
            10 => add_record(RecordKind::Tombstone, segment, input, &mut bytes),
            11 => add_record(RecordKind::Manifest, segment, input, &mut bytes),
            12 => add_record(RecordKind::Pad, segment, input, &mut bytes),
            13 => {
                let count = input.byte() as usize;
                bytes.extend_from_slice(input.bytes(count));
                bytes.resize(bytes.len().next_multiple_of(RECORD_ALIGNMENT), 0);
            }
            14 => break,
            _ => {
                seal(segment, input, &mut bytes);
                break;
            }
        }
    }
    bytes
}

fn add_record(kind: RecordKind, segment: u32, input: &mut Input, bytes: &mut Vec<u8>) {
    let (mut ledger, mut entry) = (input.number(), input.number());
    let mut body = Vec::new();
    let (mut body_bytes, mut count, mut table) = (None, 0, Vec::new());
    match kind {
        RecordKind::Entry => {
            body.extend_from_slice(input.body(ledger, entry));
        }
        RecordKind::Entries => {
            count = u16::from(input.byte() % 5) + 1;
            entry = entry.min(u64::MAX - u64::from(count));
            for entry in entry..entry + u64::from(count) {
                let given = input.body(ledger, entry);
                table.extend(Slot::row(given.len() as u16, crc32c(given)));
                body.extend_from_slice(given);
            }
            // Sometimes it does not say what is there.
            table[0] ^= u8::from(input.byte() == 1);
        }
        // As a rule it proves what lies before it.
        RecordKind::Commit if ledger < 200 => (ledger, entry) = (u64::from(segment), bytes.len() as u64),
        RecordKind::Manifest => {
            for _ in 0..input.byte() % 5 {
                body.extend(u32::from(input.byte() % 6).to_le_bytes());
                body.extend(u32::from(input.byte() & 1).to_le_bytes());
                body.extend(input.number().wrapping_mul(512).wrapping_add(DATA_AT).to_le_bytes());
            }
        }
        RecordKind::Pad => body_bytes = Some(input.number() as u32 & 0x0fff_ffff),
        _ => (),
    }
    body.extend(&table);
    let body_crc = crc32c(if table.is_empty() { &body } else { &table });
    let header =
        RecordHeader { kind, body_bytes: body_bytes.unwrap_or(body.len() as u32), body_crc, ledger, entry, count };
    bytes.extend(header.encode(segment, bytes.len() as u64));
    bytes.extend(&body);
    let whole = record_bytes(body.len()) as usize - RECORD_HEADER_BYTES - body.len();
    bytes.resize(bytes.len() + whole, 0);
}

/// A seal and a directory of whatever the input says.
fn seal(segment: u32, input: &mut Input, bytes: &mut Vec<u8>) {
    let data_end = if input.byte() & 7 == 0 { input.number() } else { bytes.len() as u64 };
    let directory_at = bytes.len().next_multiple_of(BLOCK_BYTES) as u64;
    let count = input.byte() as usize * 4;
    let directory = input.bytes(count);
    let seal = Seal {
        segment,
        data_end,
        directory_at,
        directory_bytes: directory.len() as u32,
        directory_crc: crc32c(directory),
    };
    bytes.resize(directory_at as usize, 0);
    bytes.extend(directory);
    bytes[SEAL_AT as usize..][..seal.encode().len()].copy_from_slice(&seal.encode());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn decoders_bear_any_bytes(data in prop::collection::vec(any::<u8>(), 0..200)) {
            super::check_decoders(&data);
        }

        #[test]
        fn a_log_of_any_records_opens_or_says_why_not(data in prop::collection::vec(any::<u8>(), 0..3000)) {
            super::check_recovery(&data);
        }
    }
}
