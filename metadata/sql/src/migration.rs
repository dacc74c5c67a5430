//! The steps that bring a database's schema up to date, and what may be wrong with it.

use geminga_metadata::MetadataError;
use sqlx::SqlSafeStr;
use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};

/// A step of a schema, which never changes once it is released: databases keep its checksum.
pub(crate) struct Step {
    pub version: i64,
    pub name: &'static str,
    pub sql: &'static str,
}

/// sqlx has a macro for this, which compiles SQLite and the drivers once more for the compiler's use.
pub(crate) fn migrator(steps: &[Step]) -> Migrator {
    let migration = |step: &Step| {
        Migration::new(step.version, step.name.into(), MigrationType::Simple, step.sql.into_sql_str(), false)
    };
    Migrator::with_migrations(steps.iter().map(migration).collect())
}

/// Whether a schema that is to stay as it is is the one that these steps make; `found` is the last step that was taken.
pub(crate) fn check(subject: &str, found: Option<i64>, steps: &[Step]) -> Result<(), MetadataError> {
    let ours = steps.iter().map(|step| step.version).max().unwrap_or_default();
    match found {
        Some(found) if found == ours => Ok(()),
        Some(found) if found > ours => Err(newer(subject, found)),
        Some(found) => Err(MetadataError::Invalid(format!(
            "{subject} has schema {found}, and this version {ours}: 'geminga metadata init' brings it up to date"
        ))),
        None => Err(MetadataError::Invalid(format!("{subject} has no schema: 'geminga metadata init' makes it"))),
    }
}

fn newer(subject: &str, found: i64) -> MetadataError {
    MetadataError::Newer(format!("{subject} has schema {found}, which this version does not know"))
}

/// `subject` names the database for people; `from_sqlx` knows the backend's own errors.
pub(crate) fn failed(
    subject: &str,
    error: MigrateError,
    from_sqlx: fn(&str, sqlx::Error) -> MetadataError,
) -> MetadataError {
    match error {
        MigrateError::VersionMissing(version) => newer(subject, version),
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => from_sqlx(subject, error),
        other => MetadataError::Corrupt { subject: subject.to_owned(), reason: other.to_string() },
    }
}
