//! Opening: by several processes at once, by one that is too old, and where there is nothing to open.

use geminga_metadata::{Expect, MetadataError, MetadataStore, Op};
use geminga_metadata_sql::{PostgresStore, open_as_it_is};

use crate::{database, open};

async fn open_error(url: &str) -> MetadataError {
    PostgresStore::open(url).await.err().expect("the database is refused")
}

#[tokio::test(flavor = "multi_thread")]
async fn several_processes_may_open_an_empty_database_at_once() {
    let (server, database) = database();
    let opening: Vec<_> = (0..6)
        .map(|_| {
            let url = server.url(&database);
            tokio::spawn(async move { open(&url).await })
        })
        .collect();
    for (index, task) in opening.into_iter().enumerate() {
        let store = task.await.unwrap();
        store.commit(vec![Op::put(format!("k{index}"), "", Expect::Absent)]).await.unwrap();
        store.close().await;
    }
    let tables =
        "SELECT count(*) FROM pg_tables WHERE schemaname NOT IN ('geminga', 'pg_catalog', 'information_schema')";
    assert_eq!(server.query(&database, tables), "0", "everything is in the schema geminga");
    assert_eq!(server.query(&database, "SELECT count(*) FROM geminga.records"), "6");
}

#[tokio::test]
async fn a_newer_schema_and_a_missing_database_are_refused() {
    let (server, database) = database();
    open(&server.url(&database)).await.close().await;
    server.query(
        &database,
        "INSERT INTO geminga._sqlx_migrations (version, description, success, checksum, execution_time) \
         VALUES (9999, 'future', true, '', 0)",
    );
    let error = open_error(&server.url(&database)).await;
    assert!(matches!(error, MetadataError::Newer(_)), "{error}");

    let error = open_error(&server.url("nowhere")).await;
    assert!(matches!(&error, MetadataError::Unavailable(text) if text.contains("nowhere")), "{error}");
    let error = geminga_metadata_sql::open("mysql://user:secret@host/x").await.err().unwrap();
    assert!(matches!(error, MetadataError::Invalid(_)) && !error.to_string().contains("secret"), "{error}");
}

/// A process that may use the schema needs no right to create one.
#[tokio::test]
async fn the_owner_of_the_schema_need_not_own_the_database() {
    let (server, database) = database();
    server.query(&database, "CREATE ROLE broker LOGIN");
    server.query(&database, "CREATE SCHEMA geminga AUTHORIZATION broker");
    let url = server.url(&database).replace("postgres@", "broker@");
    for _ in 0..2 {
        let store = open(&url).await;
        store.commit(vec![Op::put("k", "", Expect::Any)]).await.unwrap();
        store.close().await;
    }
}

#[tokio::test]
async fn whoever_only_looks_makes_no_schema_and_changes_none() {
    let (server, database) = database();
    let url = server.url(&database);
    let refused = async || open_as_it_is(&url).await.err().expect("it is refused").to_string();
    assert!(refused().await.contains("has no schema: 'geminga metadata init' makes it"));
    assert_eq!(server.query(&database, "SELECT count(*) FROM pg_namespace WHERE nspname = 'geminga'"), "0");
    open(&url).await.close().await;
    let store = open_as_it_is(&url).await.expect("it is this version's");
    assert!(store.get("k").await.expect("it can be read").is_none());
    store.close().await;
    server.query(&database, "UPDATE geminga._sqlx_migrations SET version = 0");
    let error = refused().await;
    assert!(error.contains("has schema 0, and this version 1"), "{error}");
    assert_eq!(server.query(&database, "SELECT version FROM geminga._sqlx_migrations"), "0");
    server.query(&database, "UPDATE geminga._sqlx_migrations SET version = 9999");
    assert!(matches!(open_as_it_is(&url).await.err(), Some(MetadataError::Newer(_))));
}
