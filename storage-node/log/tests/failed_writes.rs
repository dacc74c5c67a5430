//! What the writer of a ledger hears after one of its writes failed.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use geminga_log::disk::sim::{Faults, SimDisk};
use geminga_log::engine::{Begin, Engine, Request};
use geminga_log::{Admission, Append, AppendError, LogOptions};

fn append(engine: &Engine<SimDisk>, entry: u64) -> Result<(), AppendError> {
    let answer = Arc::new(Mutex::new(None));
    let told = answer.clone();
    let parts = [Bytes::from_static(b"entry"), Bytes::new(), Bytes::new()];
    let done = Box::new(move |result| *told.lock().unwrap() = Some(result));
    run(
        engine,
        Request::Append {
            entries: vec![Append { ledger: 1, entry, parts, reserve: false }],
            admission: Admission::Whole,
            done,
        },
    );
    answer.lock().unwrap().take().expect("an answer")
}

fn run(engine: &Engine<SimDisk>, request: Request) {
    let mut queue = VecDeque::from([request]);
    while let Begin::Commit(commit) = engine.begin(&mut queue) {
        let written = commit.write();
        engine.finish(commit, written).into_iter().for_each(|outcome| outcome.tell());
    }
}

/// "Fenced" tells a writer that somebody has taken its place, which a failing disk must not.
#[test]
fn only_a_fence_is_called_a_fence() {
    let disk = SimDisk::new(1, 64 << 20);
    let (engine, _) = Engine::open(disk.clone(), LogOptions::default()).unwrap();
    assert_eq!(append(&engine, 0), Ok(()));
    disk.set_faults(Faults { write_error: 0.0, sync_error: 1.0 });
    assert!(matches!(append(&engine, 1), Err(AppendError::Io(_))));
    disk.set_faults(Faults::default());
    assert_eq!(append(&engine, 2), Err(AppendError::GivenUp), "it would leave a gap");
    run(&engine, Request::Fence { ledger: 1, key: None, done: Box::new(|last| assert_eq!(last.unwrap(), Some(0))) });
    assert_eq!(append(&engine, 1), Err(AppendError::Fenced));
}
