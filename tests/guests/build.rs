//! Compiles the guests that tests use.

use std::path::Path;

fn main() {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    keepwell_guest_build::main(&workspace, &[("guest-hostile", "tests/guests/hostile")]);
}
