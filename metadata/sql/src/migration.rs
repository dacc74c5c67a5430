//! What may be wrong with a database's schema.

use geminga_metadata::MetadataError;
use sqlx::migrate::MigrateError;

/// `subject` names the database for people; `from_sqlx` knows the backend's own errors.
pub(crate) fn failed(
    subject: &str,
    error: MigrateError,
    from_sqlx: fn(&str, sqlx::Error) -> MetadataError,
) -> MetadataError {
    match error {
        MigrateError::VersionMissing(version) => {
            MetadataError::Newer(format!("{subject} has schema {version}, which this version does not know"))
        }
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => from_sqlx(subject, error),
        other => MetadataError::Corrupt { subject: subject.to_owned(), reason: other.to_string() },
    }
}
