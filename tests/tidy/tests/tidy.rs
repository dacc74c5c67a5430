//! Rules that no compiler checks: which crate may depend on which, and what no file may contain.

use std::collections::{BTreeMap, BTreeSet};

use geminga_tidy::{output, text_files};
use serde_json::Value;

/// Crates without clock, socket, thread or runtime, and those that none of them may name.
const PURE: [&str; 8] = [
    "geminga-doctor",
    "geminga-balance",
    "geminga-ensemble",
    "geminga-model",
    "geminga-wire-bookkeeper",
    "geminga-wire-pulsar",
    "geminga-ledger",
    "geminga-topic",
];
/// With files and threads of its own, on which no runtime is to be forced.
const WITHOUT_RUNTIME: [&str; 1] = ["geminga-log"];
const IMPURE: [&str; 6] = ["tokio", "axum", "sqlx", "socket2", "async-trait", "tower"];

/// Each crate of the workspace with the crates of ours that it may depend on: the arrows of ARCHITECTURE.md.
const ARROWS: &[(&str, &[&str])] = &[
    ("geminga-model", &[]),
    ("geminga-observe", &[]),
    ("geminga-flow", &[]),
    ("geminga-tls", &[]),
    ("geminga-wire-pulsar", &[]),
    ("geminga-wire-bookkeeper", &[]),
    ("geminga-wire-control", &[]),
    ("geminga-log", &[]),
    (
        "geminga-storage-node",
        &[
            "geminga-flow",
            "geminga-log",
            "geminga-metadata",
            "geminga-observe",
            "geminga-tls",
            "geminga-wire-bookkeeper",
        ],
    ),
    (
        "geminga-repair",
        &[
            "geminga-ensemble",
            "geminga-ledger-client",
            "geminga-metadata",
            "geminga-observe",
            "geminga-replicated-ledgers",
        ],
    ),
    ("geminga-repair (dev)", &["geminga-log", "geminga-storage-node"]),
    ("geminga-doctor", &["geminga-ensemble"]),
    ("geminga-storage-node-control", &["geminga-storage-node", "geminga-tls", "geminga-wire-control"]),
    ("geminga-storage-node-control (dev)", &["geminga-log"]),
    ("geminga-metadata", &["geminga-model"]),
    ("geminga-metadata-sql", &["geminga-metadata", "geminga-model"]),
    ("geminga-ledger", &["geminga-model"]),
    ("geminga-ensemble", &[]),
    ("geminga-balance", &[]),
    ("geminga-ownership", &["geminga-metadata", "geminga-model"]),
    ("geminga-ledger-client", &["geminga-ledger", "geminga-log", "geminga-metadata", "geminga-model"]),
    (
        "geminga-replicated-ledgers",
        &[
            "geminga-ensemble",
            "geminga-flow",
            "geminga-ledger-client",
            "geminga-metadata",
            "geminga-tls",
            "geminga-wire-bookkeeper",
        ],
    ),
    ("geminga-replicated-ledgers (dev)", &["geminga-log", "geminga-storage-node"]),
    ("geminga-topic", &["geminga-ledger", "geminga-model"]),
    (
        "geminga-broker",
        &[
            "geminga-balance",
            "geminga-flow",
            "geminga-ledger",
            "geminga-ledger-client",
            "geminga-metadata",
            "geminga-model",
            "geminga-observe",
            "geminga-ownership",
            "geminga-topic",
            "geminga-wire-pulsar",
        ],
    ),
    (
        "geminga-protocol-pulsar",
        &["geminga-broker", "geminga-flow", "geminga-model", "geminga-observe", "geminga-topic", "geminga-wire-pulsar"],
    ),
    (
        "geminga-admin-api",
        &["geminga-broker", "geminga-metadata", "geminga-model", "geminga-topic", "geminga-wire-pulsar"],
    ),
    ("geminga-proxy", &["geminga-flow", "geminga-observe", "geminga-tls", "geminga-wire-pulsar"]),
    ("geminga-perf", &["geminga-wire-pulsar"]),
    (
        "geminga-simulation",
        &[
            "geminga-ensemble",
            "geminga-ledger",
            "geminga-log",
            "geminga-metadata",
            "geminga-model",
            "geminga-ownership",
            "geminga-topic",
            "geminga-wire-bookkeeper",
        ],
    ),
    ("geminga-test-postgres", &[]),
    ("geminga-tidy", &[]),
    (
        "geminga",
        &[
            "geminga-admin-api",
            "geminga-broker",
            "geminga-doctor",
            "geminga-ensemble",
            "geminga-flow",
            "geminga-ledger",
            "geminga-ledger-client",
            "geminga-log",
            "geminga-metadata",
            "geminga-metadata-sql",
            "geminga-model",
            "geminga-observe",
            "geminga-perf",
            "geminga-protocol-pulsar",
            "geminga-proxy",
            "geminga-repair",
            "geminga-replicated-ledgers",
            "geminga-storage-node",
            "geminga-tls",
            "geminga-storage-node-control",
            "geminga-wire-pulsar",
        ],
    ),
    // Tests of a crate may start a broker on ledgers in memory.
    ("geminga-admin-api (dev)", &["geminga-ledger-client"]),
    ("geminga-protocol-pulsar (dev)", &["geminga-ledger-client", "geminga-metadata"]),
    ("geminga-metadata-sql (dev)", &["geminga-test-postgres"]),
    ("geminga (dev)", &["geminga-test-postgres"]),
];

const MAX_LINES: usize = 900;
/// Written by a program or by cargo.
const GENERATED: [&str; 5] = [
    "wire/bookkeeper/src/proto.rs",
    "wire/control/src/proto.rs",
    "wire/pulsar/src/proto.rs",
    "Cargo.lock",
    "tests/fuzz/Cargo.lock",
];

/// The packages that each crate names: for its build, and for its tests.
fn dependencies() -> BTreeMap<String, (BTreeSet<String>, BTreeSet<String>)> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let metadata = output(&cargo, &["metadata", "--format-version", "1", "--offline", "--no-deps"]);
    let metadata: Value = serde_json::from_str(&metadata).expect("cargo metadata prints JSON");
    let text = |value: &Value| value.as_str().expect("a text in cargo's metadata").to_owned();
    let mut all = BTreeMap::new();
    for package in metadata["packages"].as_array().expect("packages in cargo's metadata") {
        let (mut build, mut tests) = (BTreeSet::new(), BTreeSet::new());
        for dependency in package["dependencies"].as_array().expect("dependencies in cargo's metadata") {
            let kind = if dependency["kind"] == "dev" { &mut tests } else { &mut build };
            kind.insert(text(&dependency["name"]));
        }
        all.insert(text(&package["name"]), (build, tests));
    }
    all
}

#[test]
fn dependencies_follow_the_arrows() {
    let allowed = |name: &str| ARROWS.iter().find(|(of, _)| *of == name).map(|(_, allowed)| *allowed);
    let mut wrong = Vec::new();
    for (name, (build, tests)) in dependencies() {
        let Some(arrows) = allowed(&name) else {
            wrong.push(format!("{name} is not in ARROWS: add it here and to ARCHITECTURE.md"));
            continue;
        };
        let for_tests = allowed(&format!("{name} (dev)")).unwrap_or_default();
        for other in build.iter().filter(|other| is_ours(other) && !arrows.contains(&other.as_str())) {
            wrong.push(format!("{name} must not depend on {other}"));
        }
        for other in tests.iter().filter(|other| is_ours(other)) {
            if !arrows.contains(&other.as_str()) && !for_tests.contains(&other.as_str()) {
                wrong.push(format!("tests of {name} must not depend on {other}"));
            }
        }
        if build.contains("sqlx") && name != "geminga-metadata-sql" {
            wrong.push(format!("{name} names sqlx, which only geminga-metadata-sql may"));
        }
        let named = build.iter().filter(|other| IMPURE.contains(&other.as_str()));
        if PURE.contains(&name.as_str()) {
            wrong.extend(named.map(|other| format!("{name} is pure and must not name {other}")));
        } else if WITHOUT_RUNTIME.contains(&name.as_str()) {
            wrong.extend(named.map(|other| format!("{name} has no runtime and must not name {other}")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn is_ours(package: &str) -> bool {
    package == "geminga" || package.starts_with("geminga-")
}

/// A feature that tests alone switch on makes cargo build its package twice, with all that depends on it: once for the tests, and
/// once for the server of the suites.
#[test]
fn tests_share_what_the_server_is_built_from() {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let features = |selection: &[&str]| -> BTreeSet<String> {
        let args = ["tree", "--offline", "--prefix", "none", "--format", "{p} with {f}"];
        let tree = output(&cargo, &[&args[..], selection].concat());
        tree.lines().map(|line| line.trim_end_matches("(*)").trim().to_owned()).collect()
    };
    let server = features(&["--package", "geminga", "--edges", "normal,build"]);
    let tests = features(&["--workspace", "--edges", "normal,build,dev"]);
    let other: Vec<&String> = server.difference(&tests).collect();
    assert!(other.is_empty(), "tests build these with other features: {other:#?}");
}

#[test]
fn no_file_is_too_long() {
    let long: Vec<String> = text_files()
        .into_iter()
        .filter(|(name, _)| !GENERATED.contains(&name.as_str()))
        .map(|(name, text)| (name, text.lines().count()))
        .filter(|(_, lines)| *lines > MAX_LINES)
        .map(|(name, lines)| format!("{name}: {lines} lines, more than {MAX_LINES}"))
        .collect();
    assert!(long.is_empty(), "{}", long.join("\n"));
}

/// The banned words are put together here, so that this file does not contain them.
#[test]
fn nothing_is_left_undone() {
    let banned = [concat!("todo", "!("), concat!("unimplemented", "!("), concat!("#[", "ignore"), concat!("dbg", "!(")];
    forbid(|name| name.ends_with(".rs"), &banned);
}

#[test]
fn nothing_depends_on_one_machine() {
    let folders = [concat!("/", "work/"), concat!("/", "root/"), concat!("/", "home/"), concat!("/", "opt/")];
    forbid(|name| name != "Cargo.lock", &folders);
}

/// Sources come from crates.io by name only.
#[test]
fn packages_come_from_the_public_registry() {
    let (_, lock) = text_files().into_iter().find(|(name, _)| name == "Cargo.lock").expect("Cargo.lock is in the tree");
    let foreign = lock.lines().filter(|line| line.starts_with("source = "));
    let foreign: Vec<&str> = foreign.filter(|line| !line.contains("github.com/rust-lang/crates.io-index")).collect();
    assert!(foreign.is_empty(), "{foreign:?}");
}

fn forbid(file: impl Fn(&str) -> bool, banned: &[&str]) {
    let mut found = Vec::new();
    for (name, text) in text_files().into_iter().filter(|(name, _)| file(name)) {
        for (number, line) in text.lines().enumerate() {
            found.extend(
                banned.iter().filter(|word| line.contains(**word)).map(|word| format!("{name}:{}: {word}", number + 1)),
            );
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}
