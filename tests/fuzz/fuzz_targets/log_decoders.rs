//! Records, segment headers, seals, manifests and index footers of the storage log.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| geminga_log::fuzzing::check_decoders(data));
