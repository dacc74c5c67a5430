//! The hash by which Key_Shared subscriptions place messages, equal to the one of Pulsar 4 brokers:
//! `Murmur3_32Hash` (seed 0, sign bit cleared) of the sticky key, then reduced to the selector's range.

/// Hash values of the auto-split and sticky-range selectors: 0 to 65535.
pub const STICKY_HASH_RANGE: u32 = 65536;

/// What a message without any key hashes.
const NO_KEY: &[u8] = b"NONE_KEY";

/// MurmurHash3 x86 32-bit with seed 0, fed in pieces.
struct Murmur3 {
    hash: u32,
    tail: u32,
    tail_len: u32,
    len: u32,
}

impl Murmur3 {
    fn new() -> Self {
        Self { hash: 0, tail: 0, tail_len: 0, len: 0 }
    }

    fn mix(word: u32) -> u32 {
        word.wrapping_mul(0xcc9e_2d51).rotate_left(15).wrapping_mul(0x1b87_3593)
    }

    fn block(&mut self, word: u32) {
        self.hash = (self.hash ^ Self::mix(word)).rotate_left(13).wrapping_mul(5).wrapping_add(0xe654_6b64);
    }

    fn byte(&mut self, byte: u8) {
        self.tail |= u32::from(byte) << (8 * self.tail_len);
        self.tail_len += 1;
        self.len = self.len.wrapping_add(1);
        if self.tail_len == 4 {
            let word = std::mem::take(&mut self.tail);
            self.tail_len = 0;
            self.block(word);
        }
    }

    fn update(&mut self, mut bytes: &[u8]) {
        while self.tail_len != 0 && !bytes.is_empty() {
            self.byte(bytes[0]);
            bytes = &bytes[1..];
        }
        let (words, rest) = bytes.as_chunks::<4>();
        for word in words {
            self.block(u32::from_le_bytes(*word));
        }
        self.len = self.len.wrapping_add(4 * words.len() as u32);
        for byte in rest {
            self.byte(*byte);
        }
    }

    fn finish(self) -> u32 {
        let mut hash = self.hash ^ Self::mix(self.tail) ^ self.len;
        hash = (hash ^ (hash >> 16)).wrapping_mul(0x85eb_ca6b);
        hash = (hash ^ (hash >> 13)).wrapping_mul(0xc2b2_ae35);
        hash ^ (hash >> 16)
    }
}

/// MurmurHash3 x86 32-bit, seed 0, all 32 bits.
pub fn murmur3_32(bytes: &[u8]) -> u32 {
    let mut hash = Murmur3::new();
    hash.update(bytes);
    hash.finish()
}

/// Pulsar's hash of a sticky key: 31 bits.
pub fn sticky_hash_of_key(key: &[u8]) -> u32 {
    murmur3_32(key) & 0x7fff_ffff
}

/// The sticky hash of a key that is sent in base 64; one that doesn't decode counts as no key, as in Pulsar.
pub(crate) fn sticky_hash_of_base64(key: &[u8]) -> u32 {
    let mut hash = Murmur3::new();
    match decode_base64(key, |byte| hash.byte(byte)) {
        Some(()) => hash.finish() & 0x7fff_ffff,
        None => sticky_hash_of_key(NO_KEY),
    }
}

/// The sticky hash of a message without key: of `producer-sequence`, the sequence id in Java's signed decimal.
pub(crate) fn sticky_hash_of_fallback(producer: &[u8], sequence_id: u64) -> u32 {
    let mut digits = [0u8; 21];
    let mut at = digits.len();
    let signed = sequence_id as i64;
    let mut rest = signed.unsigned_abs();
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if signed < 0 {
        at -= 1;
        digits[at] = b'-';
    }
    let mut hash = Murmur3::new();
    hash.update(producer);
    hash.update(b"-");
    hash.update(&digits[at..]);
    hash.finish() & 0x7fff_ffff
}

/// A sticky hash in the range of the auto-split and sticky-range selectors, 1 to 65535: 0 means "no hash" to Pulsar,
/// so that it is moved to 1.
pub const fn sticky_hash_slot(sticky_hash: u32) -> u16 {
    let slot = (sticky_hash % STICKY_HASH_RANGE) as u16;
    if slot == 0 { 1 } else { slot }
}

/// A sticky hash in the range of the consistent-hashing selector: 1 to 2^31 - 1.
pub const fn consistent_hash_slot(sticky_hash: u32) -> u32 {
    sticky_hash % 0x7fff_ffff + 1
}

/// Base 64 as `java.util.Base64.getDecoder()` reads it: the plain alphabet, padding optional but exact, bits left over
/// in the last unit ignored.
fn decode_base64(text: &[u8], mut out: impl FnMut(u8)) -> Option<()> {
    let padding = text.iter().rev().take_while(|c| **c == b'=').count();
    let digits = &text[..text.len() - padding];
    let in_last_unit = digits.len() % 4;
    if in_last_unit == 1 || (padding > 0 && (in_last_unit == 0 || in_last_unit + padding != 4)) {
        return None;
    }
    for unit in digits.chunks(4) {
        let mut bits = 0u32;
        for (i, c) in unit.iter().enumerate() {
            bits |= u32::from(base64_digit(*c)?) << (18 - 6 * i);
        }
        for i in 0..unit.len() - 1 {
            out((bits >> (16 - 8 * i)) as u8);
        }
    }
    Some(())
}

fn base64_digit(c: u8) -> Option<u8> {
    Some(match c {
        b'A'..=b'Z' => c - b'A',
        b'a'..=b'z' => c - b'a' + 26,
        b'0'..=b'9' => c - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    })
}
