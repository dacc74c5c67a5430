//! From SQLite's errors to metadata errors.

use geminga_metadata::MetadataError;

/// SQLite's primary result codes for a damaged file and for one that is no database.
const CORRUPT: i64 = 11;
const NOT_A_DATABASE: i64 = 26;

/// Somebody else has the file locked.
const BUSY: i64 = 5;

fn primary_code(error: &sqlx::Error) -> Option<i64> {
    let code = error.as_database_error()?.code()?.parse::<i64>().ok()?;
    Some(code & 0xff)
}

/// Of a COMMIT. When the disk is full or fails, its frames may be in the log all the same, where who opens the file after a crash
/// finds them; the next commit of this process writes over them.
pub(super) fn of_commit(subject: &str, error: sqlx::Error) -> MetadataError {
    match primary_code(&error) {
        Some(BUSY) => from_sqlx(subject, error),
        _ => MetadataError::OutcomeUnknown(format!("{subject}: {error}")),
    }
}

/// `subject` names the database for people.
pub(super) fn from_sqlx(subject: &str, error: sqlx::Error) -> MetadataError {
    match (primary_code(&error), &error) {
        (Some(CORRUPT | NOT_A_DATABASE), _) | (None, sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_)) => {
            MetadataError::Corrupt { subject: subject.to_owned(), reason: error.to_string() }
        }
        _ => MetadataError::Unavailable(format!("{subject}: {error}")),
    }
}
