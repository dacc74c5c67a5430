//! The blocks before the records of a segment, and the list of segments that make up the log.

use crc_fast::crc32_iscsi as crc32c;

use super::{DATA_AT, OFFSET_MAX, VERSION, u32_at, u64_at};

const HEADER_MAGIC: [u8; 8] = *b"GmLogSeg";
const SEAL_MAGIC: [u8; 8] = *b"GmLogEnd";

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

#[cfg(any(test, feature = "fuzzing"))]
pub(super) mod sealed {
    use super::*;

    pub fn segment_header(data: &[u8]) -> Option<[u8; 32]> {
        block(data, &HEADER_MAGIC)
    }

    /// As a program wrote it that knew this version only.
    pub fn segment_header_of_version(header: &SegmentHeader, version: u16) -> [u8; 32] {
        let mut bytes = header.encode();
        bytes[8..10].copy_from_slice(&version.to_le_bytes());
        segment_header(&bytes).expect("it is as long")
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
