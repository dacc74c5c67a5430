//! Pulsar's hash of keys and consumer names.

/// Slots that keys are hashed to (`StickyKeyConsumerSelector.DEFAULT_RANGE_SIZE`).
pub const HASH_RANGE_SIZE: u32 = 65_536;

/// MurmurHash3 x86 32-bit with seed 0, without its sign bit, as `Murmur3_32Hash.makeHash` returns it.
pub fn sticky_key_hash(key: &[u8]) -> u32 {
    murmur3_32(key) & 0x7fff_ffff
}

fn murmur3_32(data: &[u8]) -> u32 {
    const C1: u32 = 0xcc9e_2d51;
    const C2: u32 = 0x1b87_3593;
    let mix = |k: u32| k.wrapping_mul(C1).rotate_left(15).wrapping_mul(C2);
    let (words, tail) = data.as_chunks::<4>();
    let mut hash = 0u32;
    for &word in words {
        hash = (hash ^ mix(u32::from_le_bytes(word))).rotate_left(13).wrapping_mul(5).wrapping_add(0xe654_6b64);
    }
    if !tail.is_empty() {
        let k = tail.iter().rev().fold(0u32, |k, &byte| k << 8 | u32::from(byte));
        hash ^= mix(k);
    }
    hash ^= data.len() as u32;
    hash = (hash ^ hash >> 16).wrapping_mul(0x85eb_ca6b);
    hash = (hash ^ hash >> 13).wrapping_mul(0xc2b2_ae35);
    hash ^ hash >> 16
}

/// The slot of a hash among consumers that share the range automatically. 0 is not used: it means "no hash" in Pulsar.
pub fn auto_split_slot(hash: u32) -> u16 {
    (hash % (HASH_RANGE_SIZE - 1) + 1) as u16
}

/// The slot of a hash among consumers with ranges of their own.
pub fn sticky_slot(hash: u32) -> u16 {
    ((hash % HASH_RANGE_SIZE) as u16).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn murmur3_reference_values() {
        assert_eq!(murmur3_32(b""), 0);
        assert_eq!(murmur3_32(b"test"), 0xba6b_d213);
        assert_eq!(murmur3_32(b"Hello, world!"), 0xc036_3e43);
        assert_eq!(murmur3_32(b"The quick brown fox jumps over the lazy dog"), 0x2e4f_f723);
    }
}
