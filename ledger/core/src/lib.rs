//! The pure parts of a managed ledger: no I/O, no clock, no runtime.
//!
//! - [`ledger_list`]: which ledgers make up a topic, and position arithmetic on them.
//! - [`managed_ledger`]: the state machine that appends entries, rolls ledgers over and trims them.
//! - [`cursor`]: the acknowledgements of one subscription.
//! - [`cursor_log`]: one durable log for the cursors of a whole bundle.
//!
//! Drivers (the broker, and the simulation) feed events in and carry the returned actions out.

mod confirmations;
pub mod cursor;
pub mod cursor_log;
pub mod ledger_list;
pub mod managed_ledger;
mod wire;

pub use cursor::{AckKind, AckOutcome, Cursor, CursorDelta, CursorSnapshot};
pub use cursor_log::CursorLog;
pub use ledger_list::{LedgerList, LedgerSpan, TimeSeek};
pub use managed_ledger::ManagedLedger;
pub use wire::FormatError;
