//! Adds on their way to the log: those of one ledger that come after each other go together, and are answered together.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use bytes::Bytes;
use geminga_log::{Append, AppendError};
use geminga_wire_bookkeeper::{Add, Code, ENTRY_NONE, EntryHead, MasterKey, ReplyTo, Response};

use crate::connection::Connection;
use crate::errors;

/// Adds handed to the log at once.
const ADDS_MAX: usize = 1024;

/// Adds of one ledger under one key.
pub struct Adds {
    ledger: u64,
    key: MasterKey,
    recovery: bool,
    entries: Vec<Append>,
    replies: Vec<ReplyTo>,
    last_add_confirmed: i64,
    bytes: u64,
}

impl Connection {
    /// Takes an add in, after handing over what it does not belong to.
    pub fn gather(self: &Arc<Self>, gathered: &mut Option<Adds>, reply_to: ReplyTo, add: Add) {
        let (Ok(ledger), Ok(entry)) = (u64::try_from(add.ledger), u64::try_from(add.entry)) else {
            return self.answer(&reply_to, Code::BadRequest, &Response::Empty);
        };
        // The body says itself what it is of: what is stored under another name could never be read.
        let Some(head) =
            EntryHead::decode(&add.body).filter(|head| (head.ledger, head.entry) == (add.ledger, add.entry))
        else {
            return self.answer(&reply_to, Code::BadRequest, &Response::Empty);
        };
        let goes_on = gathered.as_ref().is_some_and(|adds| {
            (adds.ledger, adds.key, adds.recovery) == (ledger, add.master_key, add.recovery)
                && adds.entries.len() < ADDS_MAX
        });
        if !goes_on {
            self.hand_over(gathered);
        }
        let adds = gathered.get_or_insert_with(|| Adds {
            ledger,
            key: add.master_key,
            recovery: add.recovery,
            entries: Vec::new(),
            replies: Vec::new(),
            last_add_confirmed: ENTRY_NONE,
            bytes: 0,
        });
        let bytes = add.body.len() as u64;
        self.node.adding.take(bytes);
        self.adding.take(bytes);
        adds.bytes += bytes;
        adds.last_add_confirmed = adds.last_add_confirmed.max(head.last_add_confirmed);
        adds.replies.push(reply_to);
        adds.entries.push(Append {
            ledger,
            entry,
            parts: [add.body, Bytes::new(), Bytes::new()],
            // What repairs a ledger, or is urgent, may use the reserve of a disk that is full.
            reserve: add.recovery || add.high_priority,
        });
    }

    pub fn hand_over(self: &Arc<Self>, gathered: &mut Option<Adds>) {
        let Some(Adds { ledger, key, recovery, entries, replies, last_add_confirmed, bytes }) = gathered.take() else {
            return;
        };
        let is_repair = entries.iter().all(|entry| entry.reserve);
        let is_refused = self.node.is_draining() && !is_repair;
        let (connection, since) = (self.clone(), Instant::now());
        let done = Box::new(move |result: Result<(), AppendError>| {
            let stats = &connection.node.stats;
            connection.node.adding.give_back(bytes);
            connection.adding.give_back(bytes);
            let code = match &result {
                Ok(()) => {
                    connection.node.confirmed.advance(ledger, last_add_confirmed);
                    stats.added_bytes.fetch_add(bytes, Ordering::Relaxed);
                    Code::Ok
                }
                Err(error) => {
                    tracing::debug!(ledger, %error, "adds were refused");
                    stats.failed_adds.fetch_add(replies.len() as u64, Ordering::Relaxed);
                    errors::of_append(error)
                }
            };
            stats.add_time.record_many(since.elapsed(), replies.len() as u64);
            connection.answer_all(replies.iter().map(|reply_to| (*reply_to, code, Response::Empty)));
        });
        if is_refused {
            return done(Err(AppendError::ReadOnly("this node is draining".to_owned())));
        }
        self.node.log.append_to_replica(entries, key, recovery, done);
    }
}
