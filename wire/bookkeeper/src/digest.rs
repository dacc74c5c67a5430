//! Digests of entries, and the master key of a ledger. Both follow from the ledger's password.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use crc_fast::CrcAlgorithm;
use hmac::{Hmac, KeyInit, Mac};
use sha1::{Digest as _, Sha1};
use thiserror::Error;

use crate::entry::{ENTRY_HEAD_BYTES, EntryHead, LAC_HEAD_BYTES, LacHead};

/// Proves to a storage node that a client knows the ledger's password: SHA-1 of "ledger" and the password.
pub type MasterKey = [u8; 20];

/// The master key that goes with a password, which may be empty.
pub fn master_key(password: &[u8]) -> MasterKey {
    derive("ledger", password)
}

fn derive(purpose: &str, password: &[u8]) -> [u8; 20] {
    let mut hash = Sha1::new();
    hash.update(purpose.as_bytes());
    hash.update(password);
    hash.finalize().into()
}

/// As named in a ledger's metadata.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DigestKind {
    Crc32,
    Hmac,
    Crc32c,
    Dummy,
}

/// Computes and checks what stands between an entry's head and its payload.
#[derive(Clone)]
pub struct Digest {
    ledger: i64,
    kind: DigestKind,
    mac: Option<Hmac<Sha1>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum DigestError {
    #[error("the entry is shorter than its head and digest")]
    TooShort,
    #[error("the digest is wrong")]
    Mismatch,
    #[error("it is another entry than the one asked for")]
    OtherEntry,
}

impl Digest {
    pub fn new(ledger: i64, kind: DigestKind, password: &[u8]) -> Self {
        let mac = (kind == DigestKind::Hmac)
            .then(|| Hmac::new_from_slice(&derive("mac", password)).expect("HMAC takes keys of any length"));
        Self { ledger, kind, mac }
    }

    pub fn bytes(&self) -> usize {
        match self.kind {
            DigestKind::Crc32 => 8,
            DigestKind::Hmac => 20,
            DigestKind::Crc32c => 4,
            DigestKind::Dummy => 0,
        }
    }

    /// Of `head` followed by the parts of the payload.
    fn write(&self, head: &[u8], payload: &[&[u8]], out: &mut impl BufMut) {
        match (self.kind, &self.mac) {
            (DigestKind::Crc32c, _) => {
                out.put_u32(crc_over(CrcAlgorithm::Crc32Iscsi, head, payload));
            }
            (DigestKind::Crc32, _) => {
                out.put_u64(u64::from(crc_over(CrcAlgorithm::Crc32IsoHdlc, head, payload)));
            }
            (DigestKind::Hmac, Some(mac)) => {
                let mut mac = mac.clone();
                mac.update(head);
                payload.iter().for_each(|part| mac.update(part));
                out.put_slice(&mac.finalize().into_bytes());
            }
            (DigestKind::Hmac | DigestKind::Dummy, _) => (),
        }
    }

    /// Head and digest of an entry, to be followed by its payload. `length` counts the ledger's payload up to and with it.
    pub fn entry_head(&self, entry: i64, last_add_confirmed: i64, length: i64, payload: &[&[u8]]) -> Bytes {
        let head = EntryHead { ledger: self.ledger, entry, last_add_confirmed, length }.encode();
        let mut out = BytesMut::with_capacity(ENTRY_HEAD_BYTES + self.bytes());
        out.put_slice(&head);
        self.write(&head, payload, &mut out);
        out.freeze()
    }

    /// Checks an entry and takes its head off, leaving the payload.
    ///
    /// # Errors
    /// See [`DigestError`].
    pub fn open(&self, entry: i64, mut body: Bytes) -> Result<(EntryHead, Bytes), DigestError> {
        let head = EntryHead::decode(&body).ok_or(DigestError::TooShort)?;
        let payload_at = ENTRY_HEAD_BYTES + self.bytes();
        let payload = body.get(payload_at..).ok_or(DigestError::TooShort)?;
        self.check(&body[..ENTRY_HEAD_BYTES], payload, &body[ENTRY_HEAD_BYTES..payload_at])?;
        if (head.ledger, head.entry) != (self.ledger, entry) {
            return Err(DigestError::OtherEntry);
        }
        body.advance(payload_at);
        Ok((head, body))
    }

    /// The body of an explicit last add confirmed.
    pub fn lac(&self, last_add_confirmed: i64) -> Bytes {
        let head = LacHead { ledger: self.ledger, last_add_confirmed }.encode();
        let mut out = BytesMut::with_capacity(LAC_HEAD_BYTES + self.bytes());
        out.put_slice(&head);
        self.write(&head, &[], &mut out);
        out.freeze()
    }

    /// Checks an explicit last add confirmed.
    ///
    /// # Errors
    /// See [`DigestError`].
    pub fn open_lac(&self, body: &[u8]) -> Result<i64, DigestError> {
        let head = LacHead::decode(body).ok_or(DigestError::TooShort)?;
        let digest = body.get(LAC_HEAD_BYTES..LAC_HEAD_BYTES + self.bytes()).ok_or(DigestError::TooShort)?;
        self.check(&body[..LAC_HEAD_BYTES], &[], digest)?;
        if head.ledger != self.ledger {
            return Err(DigestError::OtherEntry);
        }
        Ok(head.last_add_confirmed)
    }

    fn check(&self, head: &[u8], payload: &[u8], found: &[u8]) -> Result<(), DigestError> {
        let mut expected = [0; 20];
        self.write(head, &[payload], &mut &mut expected[..]);
        if found == &expected[..self.bytes()] { Ok(()) } else { Err(DigestError::Mismatch) }
    }
}

/// One pass over all of it: combining the checksums of the parts takes some 20 µs for each.
fn crc_over(algorithm: CrcAlgorithm, head: &[u8], payload: &[&[u8]]) -> u32 {
    let mut crc = crc_fast::Digest::new(algorithm);
    crc.update(head);
    payload.iter().for_each(|part| crc.update(part));
    crc.finalize() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    const KINDS: [DigestKind; 4] = [DigestKind::Crc32, DigestKind::Hmac, DigestKind::Crc32c, DigestKind::Dummy];

    #[test]
    fn an_entry_opens_as_it_was_closed_and_no_other() {
        for kind in KINDS {
            let digest = Digest::new(7, kind, b"secret");
            let head = digest.entry_head(3, 2, 99, &[b"pay", b"load"]);
            let body: Bytes = [&head[..], b"payload"].concat().into();
            let (opened, payload) = digest.open(3, body.clone()).expect("it is whole");
            assert_eq!((opened.entry, opened.last_add_confirmed, opened.length), (3, 2, 99));
            assert_eq!(payload, "payload");
            assert_eq!(digest.open(4, body.clone()), Err(DigestError::OtherEntry));
            assert_eq!(digest.open(3, body.slice(..20)), Err(DigestError::TooShort));
            assert_eq!(digest.open_lac(&digest.lac(41)), Ok(41));
            if kind != DigestKind::Dummy {
                let mut damaged = body.to_vec();
                *damaged.last_mut().expect("not empty") ^= 1;
                assert_eq!(digest.open(3, damaged.into()), Err(DigestError::Mismatch));
            }
        }
    }
}
