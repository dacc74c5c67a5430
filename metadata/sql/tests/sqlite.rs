//! The SQLite backend against the conformance suite, and what only a file can do: be damaged, foreign or newer.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use geminga_metadata::{Expect, MetadataError, MetadataStore, Op, conformance};
use geminga_metadata_sql::{SqliteStore, open_as_it_is};
use sqlx::{ConnectOptions, Connection};
use tempfile::TempDir;

async fn open(folder: &TempDir) -> Arc<SqliteStore> {
    Arc::new(SqliteStore::open(&folder.path().join("metadata.db")).await.unwrap())
}

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

macro_rules! conformance {
    ($($name:ident),*) => {$(
        #[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            let folder = folder();
            let store = open(&folder).await;
            conformance::$name(store.clone()).await;
            store.close().await;
        }
    )*};
}

conformance!(commits, scans, sequences, contention, watches, quiet_puts, repositories);

#[tokio::test]
async fn leases() {
    let folder = folder();
    let wait = async |step_ms| tokio::time::sleep(Duration::from_millis(step_ms)).await;
    conformance::leases(open(&folder).await, wait).await;
}

#[tokio::test]
async fn persistence() {
    let folder = folder();
    let first = open(&folder).await;
    conformance::persistence(first.clone(), async |store| {
        first.close().await;
        let left = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
        assert_eq!(left.collect::<Vec<_>>(), ["metadata.db"], "a closed store is one file");
        let closed = store.get("kept").await.unwrap_err();
        assert!(matches!(closed, MetadataError::Unavailable(_)), "a closed store answers errors: {closed}");
        assert!(store.commit(vec![Op::put("x", "", Expect::Any)]).await.is_err());
        open(&folder).await as Arc<dyn MetadataStore>
    })
    .await;
}

#[tokio::test]
async fn whoever_only_looks_makes_no_file_and_no_schema() {
    let folder = folder();
    let file = folder.path().join("metadata.db");
    let url = format!("sqlite:{}", file.display());
    assert!(open_as_it_is(&url).await.is_err() && !file.exists());
    std::fs::write(&file, b"").unwrap();
    let error = open_as_it_is(&url).await.err().unwrap();
    assert!(error.to_string().contains("has no schema"), "{error}");
    assert_eq!(std::fs::metadata(&file).unwrap().len(), 0);
    open(&folder).await.close().await;
    open_as_it_is(&url).await.unwrap().close().await;
}

/// As after a kill: the files are copied while the store is open and has not been told to close.
#[tokio::test]
async fn commits_survive_without_a_close() {
    let folder = folder();
    let store = open(&folder).await;
    let version = store.commit(vec![Op::put("a", "1", Expect::Absent)]).await.unwrap()[0];
    let copy = self::folder();
    for entry in std::fs::read_dir(folder.path()).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    assert_eq!(open(&copy).await.get("a").await.unwrap().unwrap().version, version);
}

async fn open_error(path: &Path) -> MetadataError {
    SqliteStore::open(path).await.err().expect("the file is refused")
}

#[tokio::test]
async fn damaged_foreign_and_newer_files_are_refused() {
    let folder = folder();
    let path = folder.path().join("noise.db");
    std::fs::write(&path, [0x5a; 8192]).unwrap();
    let error = open_error(&path).await;
    assert!(matches!(&error, MetadataError::Corrupt { subject, .. } if subject.contains("noise.db")), "{error}");

    let path = folder.path().join("foreign.db");
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&path).create_if_missing(true);
    let mut connection = options.connect().await.unwrap();
    sqlx::query("CREATE TABLE records (x)").execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    let error = open_error(&path).await;
    assert!(error.to_string().contains("not Geminga's"), "{error}");

    let path = folder.path().join("newer.db");
    SqliteStore::open(&path).await.unwrap().close().await;
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&path);
    let mut connection = options.connect().await.unwrap();
    let newer = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
                 VALUES (9999, 'future', 1, x'00', 0)";
    sqlx::query(newer).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    let error = open_error(&path).await;
    assert!(matches!(error, MetadataError::Newer(_)), "{error}");

    let error = open_error(&folder.path().join("missing/metadata.db")).await;
    assert!(matches!(error, MetadataError::Unavailable(_)), "{error}");
}

/// Concurrent commits share transactions. The bound is generous, for a busy machine; a commit per fsync fails it.
#[tokio::test(flavor = "multi_thread")]
async fn many_commits_are_quick() {
    let folder = folder();
    let started = Instant::now();
    let store = open(&folder).await;
    let open_ms = started.elapsed().as_millis();
    let started = Instant::now();
    let tasks: Vec<_> = (0..200)
        .map(|task| {
            let store = store.clone();
            tokio::spawn(async move {
                for index in 0..50 {
                    let key = format!("topics/public/default/persistent/topic-{task}-{index}");
                    store.commit(vec![Op::put(key, vec![b'x'; 150], Expect::Absent)]).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let elapsed = started.elapsed();
    println!("open {open_ms} ms, 10,000 commits in {} ms", elapsed.as_millis());
    assert_eq!(store.scan("topics/", None, 20_000).await.unwrap().len(), 10_000);
    assert!(elapsed < Duration::from_secs(10), "{elapsed:?}");
}

/// Set for the process of [`a_commit_that_fails_may_have_taken_place`] that may not write large files.
const LIMITED: &str = "GEMINGA_TEST_LIMITED_FILES";

/// What is in the log by then, whoever opens the file after a crash may find.
#[tokio::test]
async fn a_commit_that_fails_may_have_taken_place() {
    if std::env::var_os(LIMITED).is_none() {
        // A write that is refused is an error then, and no signal.
        let limited = "trap '' XFSZ; ulimit -f 2048; exec \"$0\" --exact a_commit_that_fails_may_have_taken_place";
        let test = std::env::current_exe().unwrap();
        let status = std::process::Command::new("sh").arg("-c").arg(limited).arg(test).env(LIMITED, "1").status();
        return assert!(status.unwrap().success());
    }
    let folder = folder();
    let store = open(&folder).await;
    store.commit(vec![Op::put("kept", "1", Expect::Absent)]).await.unwrap();
    let error = loop {
        let put = Op::put("large", vec![0x5a; 64 << 10], Expect::Any);
        if let Err(error) = store.commit(vec![put]).await {
            break error;
        }
    };
    assert!(matches!(error, MetadataError::OutcomeUnknown(_)), "{error}");
    assert_eq!(store.get("kept").await.unwrap().unwrap().value, "1");
}
