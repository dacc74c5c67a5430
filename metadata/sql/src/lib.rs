//! Metadata in a SQL database. All SQL of Geminga is in this crate, its schema in `migrations/`.
//!
//! [`SqliteStore`] is the embedded backend, [`PostgresStore`] the one for several processes; [`open`] takes either by its
//! URL. Both decide commits without the database (`overlay`), many in one transaction (`batch`), and have only their own
//! statements.

mod batch;
mod migration;
mod overlay;
mod postgres;
mod queue;
mod sqlite;

use std::path::Path;
use std::sync::Arc;

use geminga_metadata::{MetadataError, MetadataStore};

pub use postgres::PostgresStore;
pub use sqlite::SqliteStore;

/// Opens the store that a URL names: `sqlite:FILE`, or `postgres://user@host:5432/database`. Creates the file, but not
/// the database, and brings the schema up to date. Needs a tokio runtime.
pub async fn open(url: &str) -> Result<Arc<dyn MetadataStore>, MetadataError> {
    open_with(url, Schema::UpToDate).await
}

/// The same for one who only looks: creates no file and leaves the schema as it is, which is an error where this version would have to
/// make or change it.
pub async fn open_as_it_is(url: &str) -> Result<Arc<dyn MetadataStore>, MetadataError> {
    open_with(url, Schema::AsItIs).await
}

/// What opening does to the schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Schema {
    UpToDate,
    AsItIs,
}

async fn open_with(url: &str, schema: Schema) -> Result<Arc<dyn MetadataStore>, MetadataError> {
    // The rest of the URL may have a password.
    let scheme = url.split(':').next().unwrap_or_default();
    let file = url.strip_prefix("sqlite:").map(|file| file.strip_prefix("//").unwrap_or(file));
    match (scheme, file) {
        ("postgres" | "postgresql", _) => Ok(Arc::new(PostgresStore::open_with(url, schema).await?)),
        (_, Some(file)) if !file.is_empty() => Ok(Arc::new(SqliteStore::open_with(Path::new(file), schema).await?)),
        _ => Err(MetadataError::Invalid(format!(
            "metadata URL '{scheme}:…' is not supported, use sqlite:FILE or postgres://USER@HOST/DATABASE"
        ))),
    }
}
