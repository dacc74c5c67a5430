//! The pure parts of a managed ledger: no I/O, no clock, no runtime.
//!
//! - [`ledger_list`]: which ledgers make up a topic, and position arithmetic on them.
//! - [`managed_ledger`]: the state machine that appends entries, rolls ledgers over and trims them.
//! - [`cursor`]: the acknowledgements of one subscription.
//! - [`cursor_log`]: one durable log for the cursors of a whole bundle.
//!
//! Drivers (the broker, and the simulation) feed events in and carry the returned actions out.

pub mod cursor;
pub mod ledger_list;
pub mod managed_ledger;
mod wire;

pub use wire::FormatError;
