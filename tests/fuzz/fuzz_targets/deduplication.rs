//! Snapshots of what deduplication knows.

#![no_main]

use geminga_topic::dedup::Deduplication;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok((mut dedup, position)) = Deduplication::decode(data, 1000) else { return };
    let bytes = dedup.encode(position);
    let (again, at) = Deduplication::decode(&bytes, 1000).expect("our own snapshot");
    assert_eq!((again.producers(), at), (dedup.producers(), position));
    assert_eq!(again.encode(at).len(), bytes.len());
    let known = dedup.last_sequence_id("");
    let verdict = dedup.check("", 7, 9, false);
    dedup.persisted("", 9, position);
    assert!(dedup.last_sequence_id("") as u64 >= 9, "{known} {verdict:?}");
    dedup.expire(u64::MAX);
});
