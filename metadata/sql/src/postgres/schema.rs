//! Brings a database's schema up to date, whoever else is about to.

use geminga_metadata::MetadataError;
use sqlx::{Connection, PgConnection, Row};

use super::error::from_sqlx;
use super::pool::Pool;
use super::session::{Role, Server};
use super::statements;
use crate::migration::{self, Step};

const SCHEMA: &[Step] =
    &[Step { version: 1, name: "records", sql: include_str!("../../../../migrations/postgres/0001_records.sql") }];

/// "GMNG": key of the advisory lock under which the schema is made.
const LOCK: i64 = 0x474d_4e47;
/// The first version with `gen_random_uuid`.
const SERVER_VERSION_MIN: i32 = 130_000;

/// Refuses a server that is too old, and warns of one that does not keep what it acknowledges.
pub(super) async fn check_server(server: &Server, pool: &Pool) -> Result<(), MetadataError> {
    let rows = pool.rows(|| sqlx::query(statements::SERVER_FACTS)).await?;
    let failed = |error| pool.failed(error);
    let version: i32 = rows[0].try_get(0).map_err(failed)?;
    if version < SERVER_VERSION_MIN {
        return Err(MetadataError::Invalid(format!("{}: it needs PostgreSQL 13 or newer", server.subject)));
    }
    let fsync: String = rows[0].try_get(1).map_err(failed)?;
    if fsync != "on" {
        tracing::warn!("{} runs with fsync=off: what it acknowledges may be lost in a crash", server.subject);
    }
    Ok(())
}

/// Only one process at a time does this; the others wait and find it done.
pub(super) async fn prepare(server: &Server) -> Result<(), MetadataError> {
    let failed = |error| from_sqlx(&server.subject, error);
    let mut connection = server.connect(Role::Migrator).await.map_err(failed)?;
    lock_and_create(&mut connection).await.map_err(failed)?;
    // What `run` does; a future of that could not go from thread to thread (its bounds are not general enough).
    let outcome = migration::migrator(SCHEMA).run_direct(None, &mut connection, false).await;
    // The lock ends with the connection.
    connection.close().await.map_err(failed)?;
    outcome.map_err(|error| migration::failed(&server.subject, error, from_sqlx))
}

/// Changes nothing: a schema that [`prepare`] would make or change is an error.
pub(super) async fn check(server: &Server) -> Result<(), MetadataError> {
    let failed = |error| from_sqlx(&server.subject, error);
    let mut connection = server.connect(Role::Migrator).await.map_err(failed)?;
    let found = last_step(&mut connection).await.map_err(failed)?;
    connection.close().await.map_err(failed)?;
    migration::check(&server.subject, found, SCHEMA)
}

async fn last_step(connection: &mut PgConnection) -> Result<Option<i64>, sqlx::Error> {
    let exists = "SELECT to_regclass('geminga._sqlx_migrations') IS NOT NULL";
    if !sqlx::query_scalar(exists).fetch_one(&mut *connection).await? {
        return Ok(None);
    }
    sqlx::query_scalar("SELECT max(version) FROM geminga._sqlx_migrations WHERE success").fetch_one(connection).await
}

/// Asks first whether the schema exists: `IF NOT EXISTS` wants the right to create one even when it has nothing to do.
async fn lock_and_create(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query("SELECT pg_advisory_lock($1)").bind(LOCK).execute(&mut *connection).await?;
    let exists: bool =
        sqlx::query_scalar("SELECT to_regnamespace('geminga') IS NOT NULL").fetch_one(&mut *connection).await?;
    if !exists {
        sqlx::query("CREATE SCHEMA geminga").execute(connection).await?;
    }
    Ok(())
}
