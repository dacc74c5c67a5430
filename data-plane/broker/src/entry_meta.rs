//! From a message's wire metadata to the little that topics keep of it.

use bytes::Bytes;
use geminga_model::Position;
use geminga_topic::{Entry, EntryFlags, EntryMeta};
use geminga_wire_pulsar::{PayloadError, PayloadView};

/// Reads an entry as it is stored: broker entry metadata, then what the producer sent.
pub fn read_entry(position: Position, data: Bytes) -> Result<Entry, PayloadError> {
    let view = geminga_wire_pulsar::parse_payload(&data)?;
    let meta = entry_meta(&view);
    let body = data.slice(view.client_offset..);
    Ok(Entry { position, meta, data: body })
}

/// What a topic needs to know of a message.
pub fn entry_meta(view: &PayloadView<'_>) -> EntryMeta {
    let wire = &view.meta;
    let broker = view.broker_entry.unwrap_or_default();
    let mut meta = EntryMeta {
        num_messages: wire.num_messages,
        sticky_key_hash: view.sticky_key_hash(),
        publish_time: wire.publish_time,
        deliver_at: wire.deliver_at_time.and_then(|at| u64::try_from(at).ok()).unwrap_or(0),
        broker_timestamp: broker.timestamp.unwrap_or(0),
        index: broker.index,
        flags: EntryFlags {
            has_key: wire.partition_key.is_some() || wire.ordering_key.is_some(),
            is_marker: wire.marker_type.is_some(),
            batch: wire.batched,
            encrypted: wire.encrypted,
        },
        ..EntryMeta::default()
    };
    if let Some(chunk) = wire.chunk {
        meta.chunk_uuid_hash = u64::from(geminga_wire_pulsar::murmur3_32(chunk.uuid.of(view.entry()))) | 1 << 32;
        meta.chunk_id = chunk.id.max(0) as u32;
        meta.num_chunks = chunk.num_chunks.max(0) as u32;
    }
    meta
}
