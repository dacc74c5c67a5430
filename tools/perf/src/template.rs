//! The payload that all batches share, and the header that is written before it.

use bytes::{BufMut, Bytes, BytesMut};
use geminga_wire_pulsar::{
    SendHeader, append_single_message, crc32c, crc32c_combine, encode_payload_header_with, encode_send_header,
    payload_header_len, proto,
};
use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};

use crate::link::Outbox;

/// What metadata and frame may add to a payload of the broker's maximal message size.
const METADATA_ROOM: usize = 1024;

/// Property of a batch's metadata: nanoseconds between the times at which its messages were scheduled.
pub(crate) const INTERVAL_PROPERTY: &str = "i";

/// Messages whose first `n` make a batch of `n`.
pub(crate) struct Template {
    payload: Bytes,
    batched: bool,
    /// `ends[n]`: bytes of the first `n` messages; `crcs[n]`: their checksum; `shifts[n]`: what they do to that of what precedes.
    ends: Vec<usize>,
    crcs: Vec<u32>,
    shifts: Vec<Shift>,
}

impl Template {
    /// Messages of `size` random bytes each; as many as `max_messages` and `max_bytes` allow, but at least one.
    pub(crate) fn new(size: usize, max_messages: u32, max_bytes: usize) -> Self {
        let batched = max_messages > 1;
        let mut rng = SmallRng::seed_from_u64(size as u64);
        let mut body = vec![0; size];
        let mut payload = BytesMut::new();
        let (mut ends, mut crcs, mut shifts) = (vec![0], vec![0], vec![Shift::over(0)]);
        let mut one_message = None;
        for _ in 0..max_messages.max(1) {
            rng.fill_bytes(&mut body);
            let start = payload.len();
            if batched {
                let single = proto::SingleMessageMetadata { payload_size: size as i32, ..Default::default() };
                append_single_message(&single, &body, &mut payload);
            } else {
                payload.put_slice(&body);
            }
            if ends.len() > 1 && payload.len() > max_bytes {
                payload.truncate(start);
                break;
            }
            // All messages are as long.
            let message: &Shift = one_message.get_or_insert_with(|| Shift::over(payload.len() - start));
            let count = crcs.len() - 1;
            ends.push(payload.len());
            crcs.push(message.apply(crcs[count]) ^ crc32c(&payload[start..]));
            shifts.push(shifts[count].and(message));
        }
        Self { payload: payload.freeze(), batched, ends, crcs, shifts }
    }

    /// The most messages that fit a batch.
    pub(crate) fn max_count(&self) -> u32 {
        (self.ends.len() - 1) as u32
    }

    /// Bytes that `count` messages take on the wire, without headers.
    pub(crate) fn len(&self, count: u32) -> usize {
        self.ends[count as usize]
    }

    /// True if a broker with this limit takes a full batch.
    pub(crate) fn fits(&self, max_message_size: usize) -> bool {
        self.payload.len() + METADATA_ROOM <= max_message_size
    }

    fn checksum(&self, header: &[u8], count: u32) -> u32 {
        let count = count as usize;
        self.shifts[count].apply(crc32c(header)) ^ self.crcs[count]
    }

    /// Appends a SEND of the first `count` messages, from sequence id `sequence_id` on. The other fields of `metadata` are
    /// the caller's.
    pub(crate) fn send(
        &self,
        producer_id: u64,
        sequence_id: u64,
        count: u32,
        metadata: &mut proto::MessageMetadata,
        out: &mut Outbox,
    ) {
        metadata.sequence_id = sequence_id;
        let highest = if count > 1 { sequence_id + u64::from(count) - 1 } else { 0 };
        if self.batched {
            metadata.num_messages_in_batch = Some(count as i32);
            metadata.highest_sequence_id = Some(highest).filter(|_| count > 1);
        }
        let header = SendHeader {
            producer_id,
            sequence_id,
            highest_sequence_id: highest,
            num_messages: count,
            ..Default::default()
        };
        let len = self.len(count);
        out.write(|head| {
            encode_send_header(&header, payload_header_len(metadata) + len, head);
            encode_payload_header_with(metadata, |header| self.checksum(header, count), head);
        });
        out.share(&self.payload, len);
    }
}

/// What a CRC32C becomes behind a fixed number of further bytes. It is linear in its bits, so what each becomes is enough.
struct Shift([u32; 32]);

impl Shift {
    fn over(len: usize) -> Self {
        Self(std::array::from_fn(|bit| crc32c_combine(1 << bit, 0, len as u64)))
    }

    fn apply(&self, crc: u32) -> u32 {
        let of_bit = |(bit, shifted): (usize, &u32)| shifted & 0u32.wrapping_sub(crc >> bit & 1);
        self.0.iter().enumerate().map(of_bit).fold(0, |sum, shifted| sum ^ shifted)
    }

    /// Over as many bytes as both together.
    fn and(&self, next: &Shift) -> Self {
        Self(self.0.map(|shifted| next.apply(shifted)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use geminga_wire_pulsar::{Command, SingleMessages, parse_payload, peek_frame};

    #[test]
    fn each_count_makes_a_frame_with_a_right_checksum() {
        for (size, max_messages) in [(0, 1), (100, 1), (10, 7), (5000, 3)] {
            let template = Template::new(size, max_messages, 1 << 20);
            assert_eq!(template.max_count(), max_messages);
            for count in 1..=max_messages {
                let mut metadata = proto::MessageMetadata { producer_name: "p".into(), ..Default::default() };
                let mut out = Outbox::default();
                template.send(3, 40, count, &mut metadata, &mut out);
                let bytes = out.to_vec();
                let frame = peek_frame(&bytes, 1 << 20).unwrap().unwrap();
                assert_eq!(frame.size, bytes.len());
                let Command::Send(send) = frame.command else { panic!("not SEND") };
                assert_eq!((send.sequence_id, send.num_messages() as u32), (40, count));
                let view = parse_payload(frame.payload).unwrap();
                assert!(view.verify_checksum(), "size {size}, {count} of {max_messages}");
                assert_eq!(view.meta.num_messages, count);
                if view.meta.batched {
                    let sizes: Vec<_> =
                        SingleMessages::new(view.payload(), count).map(|m| m.unwrap().payload.len()).collect();
                    assert_eq!(sizes, vec![size; count as usize]);
                }
            }
        }
    }

    #[test]
    fn bytes_bound_a_batch() {
        assert_eq!(Template::new(1000, 1000, 10_000).max_count(), 9);
        assert_eq!(Template::new(1000, 1000, 10).max_count(), 1);
    }
}
