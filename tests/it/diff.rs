//! What changed between two snapshots.

use crate::support::{World, noise};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::time::{Duration, UNIX_EPOCH};

const FIRST: &str = "host/me/2023-11-14T22:13:20Z";
const SECOND: &str = "host/me/2023-11-14T22:13:21Z";

fn world() -> World {
    let world = World::new();
    world.write("tree/large", noise(1, 3 << 20));
    world.write("tree/other", noise(2, 3 << 20));
    world.write("tree/grows", "a");
    world.write("tree/same-size", "one");
    world.write("tree/dir/gone/deep", "x");
    world.write("tree/dir/mode", "x");
    world.write("tree/dir/touched", "x");
    world.write("tree/becomes", "file");
    world.write("tree/linked", "l");
    fs::hard_link(world.path("tree/linked"), world.path("tree/dir/link")).unwrap();
    symlink("here", world.path("tree/target")).unwrap();
    world.write("disk", noise(3, 1 << 20));
    world.write("app.conf", "a");
    set_times(&world);
    world.ok("backup root.pxar:tree disk.img:disk app.conf:app.conf --backup-id me --backup-time 1700000000");
    world.write("tree/grows", "bb");
    world.write("tree/same-size", "two");
    fs::remove_dir_all(world.path("tree/dir/gone")).unwrap();
    world.write("tree/dir/new/file", "12345");
    fs::set_permissions(world.path("tree/dir/mode"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::remove_file(world.path("tree/becomes")).unwrap();
    world.write("tree/becomes/dir", "d");
    fs::remove_file(world.path("tree/target")).unwrap();
    symlink("there", world.path("tree/target")).unwrap();
    world.write("app.conf", "b");
    set_times(&world);
    let touched = fs::File::options().write(true).open(world.path("tree/dir/touched")).unwrap();
    touched.set_modified(UNIX_EPOCH + Duration::from_secs(2000)).unwrap();
    world.ok("backup root.pxar:tree disk.img:disk app.conf:app.conf --backup-id me --backup-time 1700000001");
    world
}

/// So that times are no difference.
fn set_times(world: &World) {
    let run = std::process::Command::new("find")
        .arg(world.path("tree"))
        .args(["-exec", "touch", "-h", "-d", "@1000", "{}", "+"])
        .status();
    assert!(run.unwrap().success());
}

fn lines(found: &Value) -> Vec<String> {
    let line = |item: &Value| {
        let what: Vec<&str> =
            item["what"].as_array().unwrap().iter().map(|what| what.as_str().unwrap()).collect();
        let (archive, path) = (item["archive"].as_str().unwrap(), item["path"].as_str().unwrap());
        format!("{} {archive} {path} {}", item["change"].as_str().unwrap(), what.join(","))
            .trim_end()
            .to_owned()
    };
    found.as_array().unwrap().iter().map(line).collect()
}

const EXPECTED: [&str; 12] = [
    "modified app.conf  content",
    "modified root.pxar /becomes type",
    "added root.pxar /becomes/dir",
    "removed root.pxar /dir/gone",
    "removed root.pxar /dir/gone/deep",
    "metadata root.pxar /dir/mode mode",
    "added root.pxar /dir/new",
    "added root.pxar /dir/new/file",
    "metadata root.pxar /dir/touched mtime",
    "modified root.pxar /grows content",
    "modified root.pxar /same-size content",
    "modified root.pxar /target target",
];

#[test]
fn every_change_is_told_once() {
    let world = world();
    let found = world.ok(&format!("diff {FIRST} {SECOND} --output-format json")).json();
    assert_eq!(lines(&found), EXPECTED);
    let grows = &found[9];
    assert_eq!((grows["size-before"].as_u64(), grows["size-after"].as_u64()), (Some(1), Some(2)));
    let text = world.ok(&format!("diff {FIRST} host/me")).stdout;
    assert!(text.contains("/dir/new/file") && text.contains("same-size"), "{text}");
    assert!(text.contains("file is now directory"), "{text}");
    let nothing = world.ok(&format!("diff {SECOND} {SECOND} --output-format json")).json();
    assert_eq!(nothing.as_array().unwrap().len(), 0);
    let one = format!("diff {FIRST} {SECOND} --archive app.conf --output-format json");
    assert_eq!(lines(&world.ok(&one).json()), ["modified app.conf  content"]);
    // The other way round.
    let back = world.ok(&format!("diff {SECOND} {FIRST} --output-format json")).json();
    assert_eq!(back.as_array().unwrap().len(), 12);
    assert!(lines(&back).contains(&"added root.pxar /dir/gone/deep".to_owned()));
}

/// Chunks that both snapshots have are not read for what lies in them.
#[test]
fn unchanged_content_is_not_read() {
    let world = World::new();
    world.write("tree/a", "1");
    world.write("tree/large", noise(5, 8 << 20));
    world.write("tree/z", "1");
    world.ok("backup root.pxar:tree --backup-id me --chunk-size 64 --backup-time 1700000000");
    world.write("tree/z", "2");
    world.ok("backup root.pxar:tree --backup-id me --chunk-size 64 --backup-time 1700000001");
    let index = fs::read(world.repo().join(FIRST).join("root.pxar.didx")).unwrap();
    let index = keepwell_model::Index::parse_dynamic(index).unwrap();
    // Somewhere within the large file.
    for position in index.len() / 4..index.len() / 2 {
        let digest = index.chunk(position).unwrap().digest.to_string();
        fs::remove_file(world.repo().join(".chunks").join(&digest[..4]).join(&digest)).unwrap();
    }
    let found = world.ok(&format!("diff {FIRST} {SECOND} --output-format json")).json();
    assert!(lines(&found).contains(&"modified root.pxar /z content,mtime".to_owned()), "{found}");
    assert!(!found.to_string().contains("large"), "{found}");
}

#[test]
fn snapshots_and_archives_that_are_not_there_are_named() {
    let world = world();
    world.fails(&format!("diff {FIRST} host/me/2020-01-01T00:00:00Z")).says("does not exist");
    world.fails(&format!("diff {FIRST} {SECOND} --archive x.pxar")).says("has an archive 'x.pxar'");
    world.fails(&format!("diff {FIRST}")).says("required");
}

/// Images and blobs are compared by what is in them, whatever they are stored as.
#[test]
fn keys_and_chunk_sizes_are_no_difference() {
    let world = World::new();
    world.write("disk", noise(3, 9 << 20));
    world.write("app.conf", "a");
    world.ok("key create my.key --kdf none");
    let backup = |time: u64, options: &str| {
        let line = format!(
            "backup disk.img:disk app.conf:app.conf --backup-id me --backup-time {time} {options}"
        );
        world.ok(line.trim_end());
    };
    backup(1_700_000_000, "");
    backup(1_700_000_001, "--keyfile my.key");
    backup(1_700_000_002, "--keyfile my.key --chunk-size 1024");
    let diff = |one: &str, other: &str| {
        let run = format!("diff host/me/2023-11-14T22:13:{one}Z host/me/2023-11-14T22:13:{other}Z");
        world.ok(&format!("{run} --keyfile my.key --output-format json")).json()
    };
    assert_eq!(diff("20", "21"), serde_json::json!([]));
    assert_eq!(diff("21", "22"), serde_json::json!([]));
    let mut changed = noise(3, 9 << 20);
    changed[5 << 20] ^= 1;
    world.write("disk", changed);
    backup(1_700_000_003, "--keyfile my.key --chunk-size 1024");
    let found = diff("20", "23");
    assert_eq!(lines(&found), ["modified disk.img  content"]);
    assert_eq!(found[0]["size-before"], 9 << 20);
}

/// Damage in one file hides neither the others nor that it is there.
#[test]
fn what_damage_hides_is_named() {
    let world = World::new();
    world.write("tree/a", "1");
    world.write("tree/large", noise(5, 2 << 20));
    world.write("tree/z", "1");
    world.ok("backup root.pxar:tree --backup-id me --chunk-size 64 --backup-time 1700000000");
    let mut other = noise(5, 2 << 20);
    other[1 << 20] ^= 1;
    world.write("tree/large", other);
    world.write("tree/z", "2");
    world.ok("backup root.pxar:tree --backup-id me --chunk-size 64 --backup-time 1700000001");
    let chunks = |snapshot: &str| {
        let index = fs::read(world.repo().join(snapshot).join("root.pxar.didx")).unwrap();
        let index = keepwell_model::Index::parse_dynamic(index).unwrap();
        index.chunks().map(|chunk| chunk.digest.to_string()).collect::<Vec<_>>()
    };
    let (before, after) = (chunks(FIRST), chunks(SECOND));
    // The first that differs holds its time, the second its content.
    let gone = before.iter().filter(|digest| !after.contains(digest)).nth(1).unwrap();
    fs::remove_file(world.repo().join(".chunks").join(&gone[..4]).join(gone)).unwrap();
    let run = world.fails(&format!("diff {FIRST} {SECOND} --output-format json"));
    run.says("one entry could not be compared");
    let found = run.json();
    let lines = lines(&found);
    assert!(lines.contains(&"unreadable root.pxar /large".to_owned()), "{lines:?}");
    assert!(lines.iter().any(|line| line.starts_with("modified root.pxar /z")), "{lines:?}");
    assert!(found.to_string().contains(gone), "{found}");
}
