//! All integration tests of the crate in one binary.

mod cursor;
mod cursor_log;
mod formats;
mod managed_ledger;
