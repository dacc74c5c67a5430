//! `src/proto.rs` is what `proto/StorageNode.proto` generates: `UPDATE_PROTO=1` writes it, otherwise this test compares.

use std::path::PathBuf;
use std::{env, fs};

#[test]
fn proto_rs_is_up_to_date() {
    // At run time: checkouts that share a target directory share binaries too.
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo runs this"));
    let descriptors = protox::compile(["StorageNode.proto"], [root.join("proto")]).expect("the schema compiles");
    let out = tempfile::tempdir().expect("a temporary folder");
    tonic_prost_build::configure().out_dir(out.path()).compile_fds(descriptors).expect("tonic generates");
    let generated = fs::read_to_string(out.path().join("geminga.storage.v1.rs")).expect("the generated file");
    let committed = root.join("src/proto.rs");
    if env::var_os("UPDATE_PROTO").is_some() {
        fs::write(&committed, &generated).expect("src/proto.rs can be written");
    }
    let on_disk = fs::read_to_string(&committed).unwrap_or_default();
    assert!(
        on_disk == generated,
        "src/proto.rs is stale: UPDATE_PROTO=1 cargo test -p geminga-wire-control --test generated"
    );
}
