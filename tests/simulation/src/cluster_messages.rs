//! What the machines of a simulated cluster say to each other.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;
use std::rc::Rc;

use bytes::Bytes;
use geminga_model::Position;

use crate::ledger_oracle::Entry;

/// A broker asks a storage node.
#[derive(Clone, Debug)]
pub enum Call {
    Add {
        ledger: u64,
        entry: u64,
        body: Bytes,
        recovery: bool,
    },
    /// The last entry of the ledger, fencing it if `fences`.
    Last {
        ledger: u64,
        fences: bool,
    },
    Read {
        ledger: u64,
        entry: u64,
        fences: bool,
    },
    /// Which entries of the ledger it has.
    List {
        ledger: u64,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Added,
    Fenced,
    /// Not added, and nobody knows more.
    Failed,
    /// An entry as it is stored.
    Here(Bytes),
    Listed(BTreeSet<u64>),
    /// There certainly is none.
    Absent,
    /// It may be there.
    Unknown,
    /// Metadata have done what was asked.
    Metadata,
    /// A time is over.
    Time,
}

/// Something to be done at the metadata store, once.
#[derive(Clone)]
pub struct Ask {
    pub what: &'static str,
    run: Rc<RefCell<Option<Run>>>,
}

type Run = Box<dyn FnOnce()>;

impl Ask {
    pub fn new(what: &'static str, run: impl FnOnce() + 'static) -> Ask {
        Ask { what, run: Rc::new(RefCell::new(Some(Box::new(run)))) }
    }

    /// Whether it was done now; a message that comes twice does nothing the second time.
    pub fn carry_out(&self) -> bool {
        let run = self.run.borrow_mut().take();
        run.map(|run| run()).is_some()
    }
}

impl fmt::Debug for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what)
    }
}

/// A client says on its connection.
#[derive(Clone, Debug)]
pub enum ToBroker {
    /// The first message: for which topic, and as a consumer of which of its subscriptions.
    Connect {
        topic: usize,
        subscription: Option<usize>,
    },
    Publish(Vec<Entry>),
    Flow(u32),
    Ack {
        positions: Vec<Position>,
        cumulative: bool,
        request: Option<u64>,
    },
    /// Give me these again.
    Redeliver(Vec<Position>),
    Seek {
        position: Position,
        request: u64,
    },
    Ping,
}

#[derive(Clone, Debug)]
pub enum ToClient {
    Connected,
    /// Try there.
    Owner(usize),
    NotReady,
    /// Sequence ids of what is stored.
    Receipts(Vec<u64>),
    /// A message was not stored; nothing that follows on this connection will be.
    Refused(u64),
    Messages(Vec<Message>),
    /// An ack or a seek is durable.
    Done(u64),
    Pong,
    Closed,
}

#[derive(Clone, Debug)]
pub struct Message {
    pub position: Position,
    pub payload: Bytes,
}
