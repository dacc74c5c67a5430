//! Clients whose messages are deduplicated. They number what they send and keep it until there is a receipt; when a
//! connection ends, they connect to whoever owns the topic by then and send again all that they keep.

use std::collections::VecDeque;

use geminga_topic::dedup::Deduplication;
use rand::Rng;
use rand::rngs::SmallRng;

use crate::ledger_oracle::{BATCH, Entry, Origin};

/// Messages kept without a receipt; beyond, nothing new is sent.
const MAX_PENDING: usize = 12;

#[derive(Clone, Copy, Debug)]
pub struct Message {
    pub sequence: u64,
    pub messages: u32,
}

#[derive(Debug)]
pub struct Producer {
    pub topic: usize,
    number: u64,
    /// The owner it is connected to, and the number of the connection.
    pub owner: u32,
    pub connection: u64,
    next_sequence: u64,
    pending: VecDeque<Message>,
    /// How many of those were sent on this connection.
    sent: usize,
    /// What it has receipts for.
    received: Vec<Message>,
}

/// What an owner says to a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A receipt or an error follows.
    Taken,
    /// It was stored before.
    Receipt,
    Refused,
}

/// Under which an owner knows a producer.
pub fn name(number: u64) -> String {
    format!("p{number}")
}

impl Producer {
    pub fn new(number: u64, topic: usize) -> Producer {
        Producer {
            topic,
            number,
            owner: 0,
            connection: 0,
            next_sequence: 0,
            pending: VecDeque::new(),
            sent: 0,
            received: Vec::new(),
        }
    }

    pub fn is_idle(&self) -> bool {
        self.pending.is_empty()
    }

    pub fn connected(&mut self, owner: u32, connection: u64) {
        (self.owner, self.connection, self.sent) = (owner, connection, 0);
    }

    /// The application sends something new, or by mistake something that it has sent before.
    pub fn write(&mut self, rng: &mut SmallRng) {
        if self.pending.len() >= MAX_PENDING {
            return;
        }
        if !self.received.is_empty() && rng.random_bool(0.15) {
            let again = self.received[rng.random_range(0..self.received.len())];
            if self.pending.is_empty() {
                self.pending.push_back(again);
            }
            return;
        }
        let message = Message { sequence: self.next_sequence, messages: rng.random_range(1..=BATCH) };
        self.next_sequence += u64::from(message.messages);
        self.pending.push_back(message);
    }

    /// The next message that was not sent on this connection.
    pub fn unsent(&self, id: u64) -> Option<Entry> {
        let Message { sequence, messages } = *self.pending.get(self.sent)?;
        let origin = Origin { producer: self.number, sequence, connection: self.connection };
        Some(Entry { id, messages, index: 0, origin: Some(origin) })
    }

    /// The one that was [`unsent`](Self::unsent) got this answer.
    pub fn answered(&mut self, answer: Answer) {
        match answer {
            Answer::Taken | Answer::Refused => self.sent += 1,
            Answer::Receipt => self.received.extend(self.pending.remove(self.sent)),
        }
    }

    pub fn receipt(&mut self, origin: Origin) {
        if origin.connection != self.connection {
            return;
        }
        if let Some(at) = self.pending.iter().position(|message| message.sequence == origin.sequence) {
            self.received.extend(self.pending.remove(at));
            self.sent = self.sent.saturating_sub(1);
        }
    }
}

/// A stored entry that deduplication has not heard of since its snapshot.
pub fn replay(dedup: &mut Deduplication, entry: &Entry, position: geminga_model::Position, now_ms: u64) {
    if let Some(origin) = entry.origin {
        dedup.replayed(&name(origin.producer), entry.highest_sequence(), position, now_ms);
    }
}
