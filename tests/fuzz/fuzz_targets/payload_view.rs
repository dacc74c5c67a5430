//! An entry: the scan agrees with prost wherever both accept it, and everything it offers can be used.

#![no_main]

use geminga_wire_pulsar::{SingleMessages, frame_payload, parse_payload, strip_broker_entry_metadata};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let stripped = strip_broker_entry_metadata(&data.to_vec().into());
    assert!(data.ends_with(&stripped));
    SingleMessages::new(data, u32::MAX).for_each(drop);
    let Ok(view) = parse_payload(data) else { return };
    assert_eq!(&data[view.client_offset..], &stripped[..]);
    let _ = (view.verify_checksum(), view.sticky_key_hash(), view.meta.last_sequence_id());
    for message in SingleMessages::new(view.payload(), view.meta.num_messages).flatten() {
        let _ = message.full_metadata();
    }
    let Ok(full) = view.full_metadata() else { return };
    assert_eq!(view.producer_name(), full.producer_name);
    assert_eq!(view.meta.sequence_id, full.sequence_id);
    assert_eq!(view.meta.publish_time, full.publish_time);
    assert_eq!(view.meta.batched, full.num_messages_in_batch.is_some());
    assert_eq!(view.meta.num_messages as i32, full.num_messages_in_batch());
    assert_eq!(view.partition_key(), full.partition_key.as_deref().map(str::as_bytes));
    assert_eq!(view.ordering_key(), full.ordering_key.as_deref());
    assert_eq!(view.replicated_from(), full.replicated_from.as_deref());
    assert_eq!(view.meta.encrypted, !full.encryption_keys.is_empty());
    assert_eq!(view.meta.deliver_at_time, full.deliver_at_time);
    assert_eq!(view.meta.marker_type, full.marker_type);
    assert_eq!(view.meta.txn_id.is_some(), full.txnid_least_bits.is_some() || full.txnid_most_bits.is_some());

    let again = frame_payload(&full, view.payload());
    let view_again = parse_payload(&again).expect("our own entry");
    assert!(view_again.verify_checksum());
    assert_eq!(view_again.sticky_key_hash(), view.sticky_key_hash());
});
