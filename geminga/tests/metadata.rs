//! `geminga metadata init`, and a server on the metadata that it has made.

use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};

use geminga_test_postgres::Server;

fn geminga() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_geminga"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("GEMINGA_") || name.starts_with("PG")) {
        command.env_remove(name);
    }
    command
}

fn init(url: &str, cluster: &str) -> Output {
    geminga().args(["metadata", "init", "--metadata-url", url, "--cluster", cluster]).output().unwrap()
}

fn succeeds(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

const RECORDS: &str = "SELECT convert_from(key, 'UTF8'), version FROM geminga.records ORDER BY key";

#[test]
fn init_may_be_repeated_and_standalone_goes_on_from_there() {
    let server = Server::shared();
    let database = server.create_database();
    let url = server.url(&database);
    let at_once = [(); 3].map(|()| {
        let url = url.clone();
        std::thread::spawn(move || init(&url, "east"))
    });
    at_once.into_iter().for_each(|init| succeeds(&init.join().unwrap()));
    let records = server.query(&database, RECORDS);
    let keys: Vec<&str> = records.lines().filter_map(|line| line.split('|').next()).collect();
    let expected =
        ["clusters/east", "namespaces/public/default", "namespaces/pulsar/system", "tenants/public", "tenants/pulsar"];
    assert_eq!(keys, expected);
    succeeds(&init(&url, "east"));
    assert_eq!(server.query(&database, RECORDS), records, "a second time changes nothing");

    let folder = tempfile::tempdir().unwrap();
    let mut standalone = geminga();
    standalone.args(["standalone", "--metadata-url", &url, "--cluster", "east", "--data-dir"]).arg(folder.path());
    standalone.args(["--pulsar-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0"]);
    let mut child = standalone.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let id = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
    assert!(child.wait().unwrap().success());
    assert!(line.starts_with("serving pulsar://127.0.0.1:"), "{line}");
    let cluster = "SELECT convert_from(value, 'UTF8') FROM geminga.records WHERE key = 'clusters/east'";
    assert!(server.query(&database, cluster).contains("pulsar://127.0.0.1:"), "its addresses are announced");
    assert!(!folder.path().join("metadata.db").exists());
}

#[test]
fn init_of_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", folder.path().join("metadata.db").display());
    succeeds(&init(&url, "east"));
    let written = std::fs::read(folder.path().join("metadata.db")).unwrap();
    succeeds(&init(&url, "east"));
    assert!(std::fs::read(folder.path().join("metadata.db")).unwrap() == written, "a second time changes nothing");
}

#[test]
fn what_cannot_be_opened_is_named_without_its_password() {
    let server = Server::shared();
    let nowhere = server.url("nowhere").replace("postgres@", "postgres:secret@");
    for (url, expected) in [("mysql://user:secret@host/x", "not supported"), (&*nowhere, "'nowhere'")] {
        let output = init(url, "east");
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success());
        assert!(complaint.starts_with("geminga: error: ") && complaint.lines().count() == 1, "{complaint}");
        assert!(complaint.contains(expected) && !complaint.contains("secret"), "{complaint}");
    }
}
