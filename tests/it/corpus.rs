//! The kept corpora of the fuzz targets: what once was interesting stays tested.

use keepwell_test_support::fuzz::TARGETS;
use std::fs;
use std::path::Path;

#[test]
fn corpora_are_replayed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz/corpus");
    for (name, target) in TARGETS {
        let files: Vec<_> = fs::read_dir(root.join(name)).unwrap().flatten().collect();
        assert!(!files.is_empty(), "no corpus for {name}");
        for file in files {
            target(&fs::read(file.path()).unwrap());
        }
    }
}
