//! An entry as it is stored: what the broker keeps of it, and what is sent on.

#![no_main]

use geminga_broker::read_entry;
use geminga_model::Position;
use geminga_wire_pulsar::strip_broker_entry_metadata;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let data = bytes::Bytes::copy_from_slice(data);
    let Ok(entry) = read_entry(Position { ledger_id: 3, entry_id: 4 }, data.clone()) else { return };
    assert_eq!(entry.data, strip_broker_entry_metadata(&data));
    // Read again without what the broker put before it, it is the same message.
    let again = read_entry(entry.position, entry.data.clone()).expect("it was read before");
    assert_eq!(again.meta.sticky_key_hash, entry.meta.sticky_key_hash);
    assert_eq!(again.meta.num_messages, entry.meta.num_messages);
    assert_eq!(again.meta.publish_time, entry.meta.publish_time);
});
