//! A storage log whose segments hold any records, with right checksums: it opens, answers, and opens again.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| geminga_log::fuzzing::check_recovery(data));
