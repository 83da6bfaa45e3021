//! Compiles the guests that tests use.

use std::path::Path;

fn main() {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let guests = [
        ("guest-hostile", "tests/guests/hostile"),
        ("keep-weekly", "examples/keep-weekly"),
        ("guest-prober", "tests/guests/prober"),
        ("source-dump", "examples/dump"),
        ("source-sqlite", "examples/sqlite"),
        ("policy-gfs", "examples/gfs"),
        ("output-formats", "examples/formats"),
        ("archive-tar", "examples/tar"),
    ];
    keepwell_guest_build::main(&workspace, &guests);
}
