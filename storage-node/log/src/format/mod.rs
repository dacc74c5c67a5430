//! Bytes on disk: segment header, seal block and records. docs/formats.md has the layouts with their reasons.
//!
//! All numbers are little-endian. A record begins on an 8-byte boundary; a commit begins on a block boundary.

mod entries;
mod record;
mod segment;

pub use entries::{ENTRIES_MAX, ROW_BYTES, Slot, Table};
pub use record::{BODY_BYTES_MAX, RECORD_ALIGNMENT, RECORD_HEADER_BYTES, RecordHeader, RecordKind, record_bytes};
pub use segment::{
    BadBlock, ManifestLine, Seal, SegmentHeader, SegmentKind, checked, decode_manifest, encode_manifest,
};

pub const BLOCK_BYTES: usize = 4096;
/// The block that says that the segment is sealed, and where its index is.
pub const SEAL_AT: u64 = BLOCK_BYTES as u64;
/// Where the first commit begins.
pub const DATA_AT: u64 = 2 * BLOCK_BYTES as u64;
/// 2 added the records of replicas, 3 those of several entries. What has an earlier version is read as well.
pub const VERSION: u16 = 3;
/// Offsets in a segment fit into 32 bits.
const OFFSET_MAX: u64 = u32::MAX as u64;

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
    pub use super::record::sealed::record;
    pub use super::segment::sealed::{seal, segment_header, segment_header_of_version};
}

#[cfg(test)]
mod tests {
    use crc_fast::crc32_iscsi as crc32c;

    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    const RECORD: RecordHeader =
        RecordHeader { kind: RecordKind::Entry, body_bytes: 5, body_crc: 0x9a71_bb4c, ledger: 7, entry: 9, count: 0 };

    #[test]
    fn golden_bytes_of_version_3() {
        assert_eq!(crc32c(b"hello"), RECORD.body_crc);
        let (header, body) = entries();
        let golden = [
            (hex(&RECORD.encode(3, 8192)), include_str!("../../golden/record.hex")),
            (hex(&header.encode(3, 8192)) + &hex(&body), include_str!("../../golden/entries.hex")),
            (
                hex(&SegmentHeader { segment: 3, kind: SegmentKind::Compacted }.encode()),
                include_str!("../../golden/segment_header.hex"),
            ),
            (
                hex(&Seal { segment: 3, data_end: 12288, directory_at: 16384, directory_bytes: 80, directory_crc: 1 }
                    .encode()),
                include_str!("../../golden/seal.hex"),
            ),
            (
                hex(&encode_manifest(&[ManifestLine { segment: 2, kind: SegmentKind::Log, data_end: 12288 }])),
                include_str!("../../golden/manifest.hex"),
            ),
        ];
        for (bytes, expected) in golden {
            assert_eq!(bytes, expected.trim());
        }
    }

    /// `hello` and `!`, the entries 9 and 10.
    fn entries() -> (RecordHeader, Vec<u8>) {
        let mut body = b"hello!".to_vec();
        body.extend([Slot::row(5, crc32c(b"hello")), Slot::row(1, crc32c(b"!"))].concat());
        let kind = RecordKind::Entries;
        (RecordHeader { kind, body_bytes: 18, body_crc: crc32c(&body[6..]), ledger: 7, entry: 9, count: 2 }, body)
    }

    #[test]
    fn blocks_of_earlier_versions_are_read() {
        let bytes = |hex: &str| -> Vec<u8> {
            let digits = hex.trim().as_bytes().chunks(2);
            digits.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
        };
        let headers =
            [include_str!("../../golden/segment_header.v1.hex"), include_str!("../../golden/segment_header.v2.hex")];
        for header in headers {
            let expected = SegmentHeader { segment: 3, kind: SegmentKind::Compacted };
            assert_eq!(SegmentHeader::decode(&bytes(header)), Ok(expected));
        }
        for seal in [include_str!("../../golden/seal.v1.hex"), include_str!("../../golden/seal.v2.hex")] {
            let seal = Seal::decode(&bytes(seal), 3);
            assert_eq!(seal.map(|seal| (seal.data_end, seal.directory_bytes)), Ok((12288, 80)));
        }
    }

    #[test]
    fn a_newer_version_is_refused() {
        let header = SegmentHeader { segment: 3, kind: SegmentKind::Log };
        for version in 1..=VERSION {
            assert_eq!(SegmentHeader::decode(&sealed::segment_header_of_version(&header, version)), Ok(header));
        }
        let newer = sealed::segment_header_of_version(&header, VERSION + 1);
        assert_eq!(SegmentHeader::decode(&newer), Err(BadBlock::Newer(VERSION + 1)));
    }

    #[test]
    fn in_a_record_of_several_entries_every_flipped_bit_is_noticed_and_harms_no_other() {
        let (header, body) = entries();
        assert_eq!(RecordHeader::decode(&header.encode(3, 8192), 3, 8192), Some(header));
        let found = |body: &[u8]| -> Option<Vec<bool>> {
            Some(Table::of(&header, body)?.slots().map(|slot| slot.is_intact(body)).collect())
        };
        assert!(header.body_is_intact(&body) && found(&body) == Some(vec![true, true]));
        for bit in 0..body.len() * 8 {
            let mut damaged = body.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(!header.body_is_intact(&damaged));
            let of_first = matches!(bit / 8, 0..=4 | 6..=11);
            let found = found(&damaged).expect("it is whole");
            assert!(found[usize::from(of_first)], "bit {bit} harms the other entry");
            assert!(bit / 8 >= 6 || !found[usize::from(!of_first)], "bit {bit} is not noticed");
        }
        for bit in 0..RECORD_HEADER_BYTES * 8 {
            let mut damaged = header.encode(3, 8192);
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(RecordHeader::decode(&damaged, 3, 8192), None);
        }
    }

    #[test]
    fn a_row_that_is_lost_makes_no_empty_entry() {
        let (header, mut body) = entries();
        body[6..].fill(0);
        let table = Table::of(&header, &body).expect("it is whole");
        assert_eq!((table.slots().count(), table.slots().filter(|slot| slot.is_intact(&body)).count()), (2, 0));
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
