//! From PostgreSQL's errors to metadata errors, and which of them may pass.

use geminga_metadata::MetadataError;

/// SQLSTATEs of damaged tables and indexes.
const CORRUPT: [&str; 2] = ["XX001", "XX002"];

/// Classes of SQLSTATEs, and single ones, after which the same statements may succeed on a new connection.
const TRANSIENT: [&str; 8] = [
    "08",    // the connection failed
    "40",    // serialization failures, deadlocks
    "53300", // too many connections
    "57",    // the server stops, starts, has crashed, or a statement took too long
    "55P03", // a lock was not to be had in time
    "25006", // read-only: this server is, or has become, a standby
    "25P03", // idle in a transaction for too long
    "25P04", // the transaction took too long
];

/// `subject` names the database for people.
pub(super) fn from_sqlx(subject: &str, error: sqlx::Error) -> MetadataError {
    let corrupt = match &error {
        sqlx::Error::Database(database) => database.code().is_some_and(|code| CORRUPT.contains(&&*code)),
        sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => true,
        _ => false,
    };
    match corrupt {
        true => MetadataError::Corrupt { subject: subject.to_owned(), reason: error.to_string() },
        false => MetadataError::Unavailable(format!("{subject}: {error}")),
    }
}

/// Whether trying again on a new connection may help.
pub(super) fn is_transient(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Database(database) => {
            database.code().is_some_and(|code| TRANSIENT.iter().any(|class| code.starts_with(class)))
        }
        sqlx::Error::Io(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => true,
        _ => false,
    }
}
