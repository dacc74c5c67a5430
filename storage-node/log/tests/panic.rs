//! A panic on a thread of the log, which runs callbacks.

use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use geminga_log::{Append, Log, LogOptions};

/// Where the process that is to end keeps its log.
const FOLDER: &str = "GEMINGA_LOG_THAT_PANICS";

#[test]
fn a_panic_ends_the_process_instead_of_leaving_it_without_its_log() {
    if let Some(folder) = std::env::var_os(FOLDER) {
        let (log, _) = Log::open(folder.as_ref(), LogOptions::default()).expect("opens");
        let parts = [Bytes::from_static(b"head"), Bytes::from_static(b"body"), Bytes::from_static(b"tail")];
        let append = Append { ledger: 1, entry: 0, parts, reserve: false };
        log.append(vec![append], Box::new(|_| panic!("meant")));
        std::thread::sleep(Duration::from_secs(20));
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let this = std::env::current_exe().expect("a test has a binary");
    let ended = Command::new(this).env(FOLDER, folder.path()).output().expect("starts");
    assert_eq!(ended.status.signal(), Some(6), "it aborts: {ended:?}");
}
