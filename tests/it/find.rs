//! Which snapshots of a group hold a file.

use crate::support::World;
use serde_json::{Value, json};

/// `backup --backup-time` gives sizes a second of their own; times of files are set.
fn world() -> World {
    let world = World::new();
    let write = |content: &str, modified: u64| {
        let path = world.write("tree/etc/app.conf", content);
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(modified);
        std::fs::File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
    };
    world.write("tree/etc/other.txt", "x");
    let backup =
        |time: u64| world.ok(&format!("backup root.pxar:tree --backup-id me --backup-time {time}"));
    backup(1_700_000_000);
    write("one", 1000);
    backup(1_700_000_001);
    backup(1_700_000_002);
    write("two two", 1000);
    backup(1_700_000_003);
    std::fs::remove_file(world.path("tree/etc/app.conf")).unwrap();
    backup(1_700_000_004);
    write("two two", 1000);
    backup(1_700_000_005);
    world
}

fn rows(found: &Value) -> Vec<Value> {
    let row = |item: &Value| json!([item["snapshot"], item["size"], item["mtime"], item["change"]]);
    found.as_array().unwrap().iter().map(row).collect()
}

#[test]
fn every_snapshot_that_has_it_is_told_and_what_changed() {
    let world = world();
    let found = world.ok("find app.conf host/me --output-format json").json();
    let at = |second: u32| format!("host/me/2023-11-14T22:13:2{second}Z");
    let expected = vec![
        json!([at(1), 3, 1000, "new"]),
        json!([at(2), 3, 1000, "same"]),
        json!([at(3), 7, 1000, "changed"]),
        json!([at(5), 7, 1000, "new"]),
    ];
    assert_eq!(rows(&found), expected);
    assert_eq!(found[0]["path"], "/etc/app.conf");
    assert_eq!(found[0]["archive"], "root.pxar");
    let text = world.ok("find /etc/*.conf host/me").stdout;
    assert!(text.contains("/etc/app.conf") && text.contains("changed"), "{text}");
    let directories = world.ok("find etc/ host/me --output-format json").json();
    assert_eq!(directories.as_array().unwrap().len(), 6);
    assert_eq!(
        (&directories[0]["change"], &directories[1]["change"]),
        (&json!("new"), &json!(null))
    );
    let none = world.ok("find *.nothing host/me --output-format json").json();
    assert_eq!(none, json!([]));
    world.fails("find app.conf host/me --archive other.pxar").says("has an archive 'other.pxar'");
}

#[test]
fn what_can_not_be_searched_is_told() {
    let world = world();
    world.fails("find x host/nobody").says("there is no backup of host/nobody");
    world.fails("find !x host/me").says("finds nothing");
    let run = world.run(["find", "", "host/me"]);
    run.assert_failed("find ''");
    run.says("finds nothing");
    world.fails("find [x host/me").says("invalid pattern '[x'");
    world.fails("find ../x host/me").says("finds nothing");
    world.fails("find / host/me").says("finds nothing");
    world.write("disk", "x");
    world.ok("backup root.pxar:tree disk.img:disk --backup-id both --backup-time 1700000000");
    world.fails("find x host/both --archive disk.img").says("has no names to find");
    world.ok("key create my.key --kdf none");
    world.ok("backup root.pxar:tree --backup-id me --backup-time 1700000006 --keyfile my.key");
    let run = world.fails("find app.conf host/me --output-format json");
    run.says("one snapshot could not be searched").says("2023-11-14T22:13:26Z").says("missing key");
    assert_eq!(run.json().as_array().unwrap().len(), 4, "the others were");
    let with_key = world.ok("find app.conf host/me --keyfile my.key --output-format json").json();
    assert_eq!(with_key.as_array().unwrap().len(), 5);
}
