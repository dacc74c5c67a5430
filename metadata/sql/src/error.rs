//! From database errors to metadata errors.

use geminga_metadata::MetadataError;
use sqlx::migrate::MigrateError;

/// SQLite's primary result codes for a damaged file and for one that is no database.
const CORRUPT: i64 = 11;
const NOT_A_DATABASE: i64 = 26;

/// `subject` names the database for people.
pub(crate) fn from_sqlx(subject: &str, error: sqlx::Error) -> MetadataError {
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

pub(crate) fn from_migration(subject: &str, error: MigrateError) -> MetadataError {
    match error {
        MigrateError::VersionMissing(version) => {
            MetadataError::Newer(format!("{subject} has schema {version}, which this version does not know"))
        }
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => from_sqlx(subject, error),
        other => MetadataError::Corrupt { subject: subject.to_owned(), reason: other.to_string() },
    }
}
