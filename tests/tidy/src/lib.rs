//! The tree of the repository as a test sees it; what is checked is in `tests/tidy.rs`.

use std::path::PathBuf;
use std::process::Command;

/// The folder of the workspace's Cargo.toml. Asked for at run time: checkouts that share a target directory share binaries too.
pub fn root() -> PathBuf {
    let own = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo runs this"));
    own.ancestors().nth(2).expect("this crate is two folders below the workspace").to_owned()
}

/// What a command prints. Panics when it fails: then nothing can be checked.
pub fn output(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).current_dir(root()).output();
    let output = output.unwrap_or_else(|error| panic!("{program} cannot be started: {error}"));
    assert!(output.status.success(), "{program} {args:?} fails: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap_or_else(|_| panic!("{program} {args:?} prints text that is not UTF-8"))
}

/// Text files that git knows, as they are in the work tree.
pub fn text_files() -> Vec<(String, String)> {
    let listing = output("git", &["-c", "safe.directory=*", "ls-files", "-z"]);
    let names = listing.split('\0').filter(|name| !name.is_empty());
    names.filter_map(|name| Some((name.to_owned(), std::fs::read_to_string(root().join(name)).ok()?))).collect()
}
