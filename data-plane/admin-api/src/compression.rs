//! Payloads that producers compressed, for those who look at single messages.

use std::io::Read;

use bytes::Bytes;
use geminga_wire_pulsar::proto::CompressionType;

/// More than any payload has: what claims to be larger is handed out as it is.
const BYTES_MAX: usize = 128 << 20;

/// The payload as it was before the producer compressed it; `None` if that does not succeed.
pub(crate) fn uncompressed(codec: CompressionType, payload: &[u8], size: u32) -> Option<Bytes> {
    let size = usize::try_from(size).ok().filter(|size| *size <= BYTES_MAX)?;
    let data = match codec {
        CompressionType::None => payload.to_vec(),
        CompressionType::Lz4 => lz4_flex::block::decompress(payload, size).ok()?,
        CompressionType::Zlib => read(flate2::read::ZlibDecoder::new(payload), size)?,
        CompressionType::Zstd => read(ruzstd::decoding::StreamingDecoder::new(payload).ok()?, size)?,
        CompressionType::Snappy => {
            let claimed = snap::raw::decompress_len(payload).ok()?;
            if claimed != size {
                return None;
            }
            snap::raw::Decoder::new().decompress_vec(payload).ok()?
        }
    };
    (data.len() == size).then(|| data.into())
}

/// At most one byte more than there should be.
fn read(decoder: impl Read, size: usize) -> Option<Vec<u8>> {
    let mut data = Vec::new();
    decoder.take(size as u64 + 1).read_to_end(&mut data).ok()?;
    Some(data)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const TEXT: &[u8] =
        b"zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz";

    #[test]
    fn every_codec_gives_back_what_went_in() {
        let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
        zlib.write_all(TEXT).unwrap();
        // As Pulsar's Python client writes it.
        let zstd = [40, 181, 47, 253, 32, 100, 69, 0, 0, 16, 122, 122, 1, 0, 63, 1, 44];
        for (codec, payload) in [
            (CompressionType::None, TEXT.to_vec()),
            (CompressionType::Lz4, lz4_flex::block::compress(TEXT)),
            (CompressionType::Zlib, zlib.finish().unwrap()),
            (CompressionType::Zstd, zstd.to_vec()),
            (CompressionType::Snappy, snap::raw::Encoder::new().compress_vec(TEXT).unwrap()),
        ] {
            let got = uncompressed(codec, &payload, TEXT.len() as u32);
            assert_eq!(got.as_deref(), Some(TEXT), "{codec:?}");
            for wrong in [0, 99, 101, u32::MAX] {
                assert_eq!(uncompressed(codec, &payload, wrong), None, "{codec:?} {wrong}");
            }
            if codec != CompressionType::None {
                assert_eq!(uncompressed(codec, b"nonsense", 100), None, "{codec:?}");
            }
        }
    }
}
