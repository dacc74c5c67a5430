//! Bytes on disk: segment header, seal block and records. docs/formats.md has the layouts with their reasons.
//!
//! All numbers are little-endian. A record begins on an 8-byte boundary; a commit begins on a block boundary.

use crc_fast::crc32_iscsi as crc32c;

pub const BLOCK_BYTES: usize = 4096;
/// The block that says that the segment is sealed, and where its index is.
pub const SEAL_AT: u64 = BLOCK_BYTES as u64;
/// Where the first commit begins.
pub const DATA_AT: u64 = 2 * BLOCK_BYTES as u64;
pub const RECORD_HEADER_BYTES: usize = 32;
pub const RECORD_ALIGNMENT: usize = 8;
/// 2 added the records of replicas. What has version 1 is read as well.
pub const VERSION: u16 = 2;
/// Offsets in a segment fit into 32 bits.
const OFFSET_MAX: u64 = u32::MAX as u64;
/// The longest body that a record header can state.
pub const BODY_BYTES_MAX: usize = (1 << 28) - 1;

const HEADER_MAGIC: [u8; 8] = *b"GmLogSeg";
const SEAL_MAGIC: [u8; 8] = *b"GmLogEnd";
const KIND_SHIFT: u32 = 28;

/// Numbers are never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum RecordKind {
    /// One entry of a ledger.
    Entry = 1,
    /// Begins each commit. `ledger` and `entry` are the segment and offset up to which the log was durable by then.
    Commit = 2,
    /// Fills up to the next block boundary.
    Pad = 3,
    /// The ledger takes no more entries; `entry` is the number of the first entry that does not belong to it, all bits set if
    /// it is a replica.
    Fence = 4,
    /// The ledger is deleted.
    Tombstone = 5,
    /// The body lists the segments that make up the log, other than this one.
    Manifest = 6,
    /// The body is the master key of the ledger, which is a replica.
    Key = 7,
    /// `entry` is a last add confirmed, the body what its writer sent to say so.
    ExplicitLac = 8,
}

impl RecordKind {
    fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            1 => Self::Entry,
            2 => Self::Commit,
            3 => Self::Pad,
            4 => Self::Fence,
            5 => Self::Tombstone,
            6 => Self::Manifest,
            7 => Self::Key,
            8 => Self::ExplicitLac,
            _ => return None,
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordHeader {
    pub kind: RecordKind,
    pub body_bytes: u32,
    pub body_crc: u32,
    pub ledger: u64,
    pub entry: u64,
}

impl RecordHeader {
    /// `segment` and `offset` go into the checksum, so that a record is valid only where it was written: neither what a
    /// recycled file held before nor a misdirected write is taken for one.
    pub fn encode(&self, segment: u32, offset: u64) -> [u8; RECORD_HEADER_BYTES] {
        debug_assert!(self.body_bytes as usize <= BODY_BYTES_MAX && offset.is_multiple_of(RECORD_ALIGNMENT as u64));
        let mut bytes = [0; RECORD_HEADER_BYTES];
        bytes[4..8].copy_from_slice(&self.body_crc.to_le_bytes());
        bytes[8..12].copy_from_slice(&(self.body_bytes | (self.kind as u32) << KIND_SHIFT).to_le_bytes());
        bytes[12..16].copy_from_slice(&segment.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.ledger.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.entry.to_le_bytes());
        let crc = header_crc(&bytes, offset);
        bytes[0..4].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// `None` unless this is the header of a record written at `offset` of `segment`.
    pub fn decode(bytes: &[u8], segment: u32, offset: u64) -> Option<Self> {
        let bytes: &[u8; RECORD_HEADER_BYTES] = bytes.get(..RECORD_HEADER_BYTES)?.try_into().ok()?;
        if u32_at(bytes, 12) != segment || u32_at(bytes, 0) != header_crc(bytes, offset) {
            return None;
        }
        let length_and_kind = u32_at(bytes, 8);
        Some(Self {
            kind: RecordKind::from_number(length_and_kind >> KIND_SHIFT)?,
            body_bytes: length_and_kind & BODY_BYTES_MAX as u32,
            body_crc: u32_at(bytes, 4),
            ledger: u64_at(bytes, 16),
            entry: u64_at(bytes, 24),
        })
    }

    /// Header, body and what fills up to the next record.
    pub fn record_bytes(&self) -> u64 {
        record_bytes(self.body_bytes as usize)
    }

    pub fn body_is_intact(&self, body: &[u8]) -> bool {
        self.kind == RecordKind::Pad || (body.len() == self.body_bytes as usize && crc32c(body) == self.body_crc)
    }
}

fn header_crc(bytes: &[u8; RECORD_HEADER_BYTES], offset: u64) -> u32 {
    let mut covered = [0; RECORD_HEADER_BYTES + 4];
    covered[..RECORD_HEADER_BYTES - 4].copy_from_slice(&bytes[4..]);
    covered[RECORD_HEADER_BYTES - 4..].copy_from_slice(&offset.to_le_bytes());
    crc32c(&covered)
}

pub const fn record_bytes(body_bytes: usize) -> u64 {
    (RECORD_HEADER_BYTES + body_bytes).next_multiple_of(RECORD_ALIGNMENT) as u64
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum SegmentKind {
    /// Holds commits in the order in which they were made.
    Log = 0,
    /// Holds the live entries of compacted segments. Part of the log once a manifest names it.
    Compacted = 1,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHeader {
    pub segment: u32,
    pub kind: SegmentKind,
}

/// Why a block is not what it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadBlock {
    Damaged,
    Newer(u16),
}

impl SegmentHeader {
    pub fn encode(&self) -> [u8; 32] {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&HEADER_MAGIC);
        bytes[8..10].copy_from_slice(&VERSION.to_le_bytes());
        bytes[10] = self.kind as u8;
        bytes[12..16].copy_from_slice(&self.segment.to_le_bytes());
        let crc = crc32c(&bytes[..28]);
        bytes[28..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, BadBlock> {
        let version = checked(bytes, 32, &HEADER_MAGIC)?;
        if version > VERSION {
            return Err(BadBlock::Newer(version));
        }
        let kind = match bytes[10] {
            0 => SegmentKind::Log,
            1 => SegmentKind::Compacted,
            _ => return Err(BadBlock::Damaged),
        };
        Ok(Self { segment: u32_at(bytes, 12), kind })
    }
}

/// Says that the segment is complete and where its index directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seal {
    pub segment: u32,
    /// Records lie in `DATA_AT..data_end`; whatever follows is no record.
    pub data_end: u64,
    pub directory_at: u64,
    pub directory_bytes: u32,
    pub directory_crc: u32,
}

const SEAL_BYTES: usize = 48;

impl Seal {
    pub fn encode(&self) -> [u8; SEAL_BYTES] {
        let mut bytes = [0; SEAL_BYTES];
        bytes[..8].copy_from_slice(&SEAL_MAGIC);
        bytes[8..10].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.segment.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.data_end.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.directory_at.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.directory_bytes.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.directory_crc.to_le_bytes());
        let crc = crc32c(&bytes[..SEAL_BYTES - 4]);
        bytes[SEAL_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub fn decode(bytes: &[u8], segment: u32) -> Result<Self, BadBlock> {
        let version = checked(bytes, SEAL_BYTES, &SEAL_MAGIC)?;
        if version > VERSION {
            return Err(BadBlock::Newer(version));
        }
        let seal = Self {
            segment: u32_at(bytes, 12),
            data_end: u64_at(bytes, 16),
            directory_at: u64_at(bytes, 24),
            directory_bytes: u32_at(bytes, 32),
            directory_crc: u32_at(bytes, 36),
        };
        let plausible = seal.segment == segment && (DATA_AT..=OFFSET_MAX).contains(&seal.data_end);
        if plausible { Ok(seal) } else { Err(BadBlock::Damaged) }
    }
}

/// The version of a block with this magic and a right checksum in its last four bytes.
pub fn checked(bytes: &[u8], length: usize, magic: &[u8; 8]) -> Result<u16, BadBlock> {
    let bytes = bytes.get(..length).ok_or(BadBlock::Damaged)?;
    let crc_at = length - 4;
    if bytes[..8] != magic[..] || crc32c(&bytes[..crc_at]) != u32_at(bytes, crc_at) {
        return Err(BadBlock::Damaged);
    }
    Ok(u16::from_le_bytes([bytes[8], bytes[9]]))
}

/// A segment that is part of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ManifestLine {
    pub segment: u32,
    pub kind: SegmentKind,
    pub data_end: u64,
}

const MANIFEST_LINE_BYTES: usize = 16;

pub fn encode_manifest(lines: &[ManifestLine]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(lines.len() * MANIFEST_LINE_BYTES);
    for line in lines {
        bytes.extend(line.segment.to_le_bytes());
        bytes.extend((line.kind as u32).to_le_bytes());
        bytes.extend(line.data_end.to_le_bytes());
    }
    bytes
}

/// `None` if these are not whole, known lines.
pub fn decode_manifest(bytes: &[u8]) -> Option<Vec<ManifestLine>> {
    if !bytes.len().is_multiple_of(MANIFEST_LINE_BYTES) {
        return None;
    }
    let line = |line: &[u8]| {
        let kind = match u32_at(line, 4) {
            0 => SegmentKind::Log,
            1 => SegmentKind::Compacted,
            _ => return None,
        };
        let data_end = u64_at(line, 8);
        (data_end <= OFFSET_MAX).then(|| ManifestLine { segment: u32_at(line, 0), kind, data_end })
    };
    bytes.chunks_exact(MANIFEST_LINE_BYTES).map(line).collect()
}

/// The four bytes at `at`, which the caller knows to be there.
pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

/// The eight bytes at `at`, which the caller knows to be there.
pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// Any bytes with the magic, the segment and the checksum that each format wants.
#[cfg(any(test, feature = "fuzzing"))]
pub mod sealed {
    use super::*;

    pub fn record(data: &[u8], segment: u32, offset: u64) -> Option<[u8; RECORD_HEADER_BYTES]> {
        let mut bytes = *data.first_chunk()?;
        bytes[12..16].copy_from_slice(&segment.to_le_bytes());
        let crc = header_crc(&bytes, offset);
        bytes[0..4].copy_from_slice(&crc.to_le_bytes());
        Some(bytes)
    }

    pub fn segment_header(data: &[u8]) -> Option<[u8; 32]> {
        block(data, &HEADER_MAGIC)
    }

    pub fn seal(data: &[u8]) -> Option<[u8; SEAL_BYTES]> {
        block(data, &SEAL_MAGIC)
    }

    fn block<const N: usize>(data: &[u8], magic: &[u8; 8]) -> Option<[u8; N]> {
        let mut bytes = *data.first_chunk::<N>()?;
        bytes[..8].copy_from_slice(magic);
        let crc = crc32c(&bytes[..N - 4]);
        bytes[N - 4..].copy_from_slice(&crc.to_le_bytes());
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    const RECORD: RecordHeader =
        RecordHeader { kind: RecordKind::Entry, body_bytes: 5, body_crc: 0x9a71_bb4c, ledger: 7, entry: 9 };

    #[test]
    fn golden_bytes_of_version_2() {
        assert_eq!(crc32c(b"hello"), RECORD.body_crc);
        let golden = [
            (hex(&RECORD.encode(3, 8192)), include_str!("../golden/record.hex")),
            (
                hex(&SegmentHeader { segment: 3, kind: SegmentKind::Compacted }.encode()),
                include_str!("../golden/segment_header.hex"),
            ),
            (
                hex(&Seal { segment: 3, data_end: 12288, directory_at: 16384, directory_bytes: 80, directory_crc: 1 }
                    .encode()),
                include_str!("../golden/seal.hex"),
            ),
            (
                hex(&encode_manifest(&[ManifestLine { segment: 2, kind: SegmentKind::Log, data_end: 12288 }])),
                include_str!("../golden/manifest.hex"),
            ),
        ];
        for (bytes, expected) in golden {
            assert_eq!(bytes, expected.trim());
        }
    }

    #[test]
    fn blocks_of_version_1_are_read() {
        let bytes = |hex: &str| -> Vec<u8> {
            let digits = hex.trim().as_bytes().chunks(2);
            digits.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
        };
        let header = SegmentHeader::decode(&bytes(include_str!("../golden/segment_header.v1.hex")));
        assert_eq!(header, Ok(SegmentHeader { segment: 3, kind: SegmentKind::Compacted }));
        let seal = Seal::decode(&bytes(include_str!("../golden/seal.v1.hex")), 3);
        assert_eq!(seal.map(|seal| (seal.data_end, seal.directory_bytes)), Ok((12288, 80)));
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let record = RECORD.encode(3, 8192);
        assert_eq!(RecordHeader::decode(&record, 3, 8192), Some(RECORD));
        assert_eq!(RecordHeader::decode(&record, 4, 8192), None);
        assert_eq!(RecordHeader::decode(&record, 3, 8200), None);
        let header = SegmentHeader { segment: 3, kind: SegmentKind::Log };
        let seal = Seal { segment: 3, data_end: 12288, directory_at: 16384, directory_bytes: 80, directory_crc: 1 };
        assert_eq!(SegmentHeader::decode(&header.encode()), Ok(header));
        assert_eq!(Seal::decode(&seal.encode(), 3), Ok(seal));
        for bit in 0..RECORD_HEADER_BYTES * 8 {
            let flip = |bytes: &mut [u8]| bytes[bit / 8] ^= 1 << (bit % 8);
            let (mut record, mut header, mut seal) = (record, header.encode(), seal.encode());
            flip(&mut record);
            flip(&mut header);
            flip(&mut seal);
            assert_eq!(RecordHeader::decode(&record, 3, 8192), None);
            assert_eq!(SegmentHeader::decode(&header), Err(BadBlock::Damaged));
            assert_eq!(Seal::decode(&seal, 3), Err(BadBlock::Damaged));
        }
    }
}
