fn main() {
    // A new migration must rebuild the crate that embeds it.
    println!("cargo:rerun-if-changed=../../migrations");
}
