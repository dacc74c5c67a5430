//! From SQLite's errors to metadata errors.

use geminga_metadata::MetadataError;

/// SQLite's primary result codes for a damaged file and for one that is no database.
const CORRUPT: i64 = 11;
const NOT_A_DATABASE: i64 = 26;

/// `subject` names the database for people.
pub(super) fn from_sqlx(subject: &str, error: sqlx::Error) -> MetadataError {
    let primary_code = match &error {
        sqlx::Error::Database(database) => {
            database.code().and_then(|code| code.parse::<i64>().ok()).map(|code| code & 0xff)
        }
        _ => None,
    };
    match (primary_code, &error) {
        (Some(CORRUPT | NOT_A_DATABASE), _) | (None, sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_)) => {
            MetadataError::Corrupt { subject: subject.to_owned(), reason: error.to_string() }
        }
        _ => MetadataError::Unavailable(format!("{subject}: {error}")),
    }
}
