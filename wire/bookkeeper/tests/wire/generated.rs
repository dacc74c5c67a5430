//! `src/proto.rs` is what `proto/Bookie.proto` generates: `UPDATE_PROTO=1` writes it, otherwise this test compares.

use std::path::PathBuf;
use std::{env, fs};

#[test]
fn proto_rs_is_up_to_date() {
    // At run time: checkouts that share a target directory share binaries too.
    let root = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo runs this"));
    let descriptors = protox::compile(["Bookie.proto"], [root.join("proto")]).expect("the schema compiles");
    let out = tempdir();
    prost_build::Config::new().bytes(["."]).out_dir(out.0.as_path()).compile_fds(descriptors).expect("prost generates");
    let generated = fs::read_to_string(out.0.join("bookie.rs")).expect("the generated file");
    let committed = root.join("src/proto.rs");
    if env::var_os("UPDATE_PROTO").is_some() {
        fs::write(&committed, &generated).expect("src/proto.rs can be written");
    }
    let on_disk = fs::read_to_string(&committed).unwrap_or_default();
    assert!(
        on_disk == generated,
        "src/proto.rs is stale: UPDATE_PROTO=1 cargo test -p geminga-wire-bookkeeper --test wire"
    );
}

struct TempDir(std::path::PathBuf);

fn tempdir() -> TempDir {
    let dir = env::temp_dir().join(format!("geminga-wire-bookkeeper-{}", std::process::id()));
    fs::create_dir_all(&dir).expect("a temporary directory");
    TempDir(dir)
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
