//! One command: prost accepts what we accept, and both write the same again.

#![no_main]

use bytes::BytesMut;
use geminga_wire_pulsar::{Command, proto};
use libfuzzer_sys::fuzz_target;
use prost::Message;

fuzz_target!(|data: &[u8]| {
    let Ok(command) = Command::decode(data) else { return };
    let mut out = BytesMut::new();
    command.encode(&mut out);
    assert_eq!(out.len(), command.encoded_len());
    let _ = (command.name(), command.request_id());
    let again = Command::decode(&out).expect("our own command");
    // Compared as text: NaN is not equal to itself.
    assert_eq!(format!("{again:?}"), format!("{command:?}"));
    if !matches!(command, Command::Unknown { .. }) {
        let prosts = proto::BaseCommand::decode(&out[..]).expect("our own command");
        assert_eq!(prosts.r#type, command.type_id());
        assert_eq!(prosts.encode_to_vec(), &out[..]);
    }
});
