//! The PostgreSQL backend against real servers.

mod conformance;
mod outages;
mod processes;
mod proxy;
mod schema;

use std::sync::Arc;

use geminga_metadata_sql::PostgresStore;
use geminga_test_postgres::Server;

async fn open(url: &str) -> Arc<PostgresStore> {
    Arc::new(PostgresStore::open(url).await.unwrap())
}

/// A server, and an empty database on it.
fn database() -> (Arc<Server>, String) {
    let server = Server::shared();
    let name = server.create_database();
    (server, name)
}
