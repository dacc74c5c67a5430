//! Metadata in a SQL database. All SQL of Geminga is in this crate, its schema in `migrations/`.
//!
//! [`SqliteStore`] is the embedded backend. `overlay` decides commits without a database, so that another backend
//! needs only its own statements.

mod batch;
mod migration;
mod overlay;
mod queue;
mod sqlite;

pub use sqlite::SqliteStore;
