//! Metadata in a SQL database. All SQL of Geminga is in this crate, its schema in `migrations/`.
//!
//! [`SqliteStore`] is the embedded backend. `overlay` decides commits without a database, so that another backend
//! needs only its own statements.

mod error;
mod overlay;
mod sqlite;

pub use sqlite::SqliteStore;
