//! `garbage-collect`: what is needed stays, what is not goes after a day.

use crate::support::{World, noise};
use std::fs;
use std::path::PathBuf;
use std::process::Command;

fn chunks(world: &World) -> Vec<PathBuf> {
    let dirs = fs::read_dir(world.repo().join(".chunks")).unwrap().flatten();
    let files = dirs.flat_map(|dir| fs::read_dir(dir.path()).unwrap().flatten());
    files.map(|file| file.path()).collect()
}

/// As if nobody had used any chunk for so many hours.
fn age(world: &World, hours: u32) {
    let mut touch = Command::new("touch");
    touch.args(["-a", "-d", &format!("{hours} hours ago")]).args(chunks(world));
    assert!(touch.status().unwrap().success());
}

#[test]
fn chunks_of_forgotten_snapshots_go_after_a_day() {
    let world = World::new();
    world.write("tree/kept", noise(1, 500_000));
    world.ok("backup root.pxar:tree --backup-id a --chunk-size 64 --backup-time 1700000000");
    let needed = chunks(&world).len();
    world.write("tree/gone", noise(2, 500_000));
    world.ok("backup root.pxar:tree --backup-id a --chunk-size 64 --backup-time 1700000001");
    let all = chunks(&world).len();
    assert!(all > needed + 3);
    age(&world, 30);
    // Nothing is garbage yet.
    world.ok("garbage-collect");
    assert_eq!(chunks(&world).len(), all);
    world.ok("forget host/a/2023-11-14T22:13:21Z");
    age(&world, 23);
    let run = world.ok("garbage-collect --output-format json");
    let status = run.json();
    assert_eq!(status["pending-chunks"].as_u64().unwrap() as usize, all - needed);
    assert_eq!((chunks(&world).len(), status["removed-chunks"].as_u64()), (all, Some(0)));
    age(&world, 25);
    let run = world.ok("garbage-collect");
    assert!(run.stdout.contains(&format!("Removed chunks: {}\n", all - needed)), "{}", run.stdout);
    assert!(run.stdout.contains("processed 100% ("), "{}", run.stdout);
    assert_eq!(chunks(&world).len(), needed);
    world.ok("restore host/a root.pxar out");
    assert_eq!(fs::read(world.path("out/kept")).unwrap(), noise(1, 500_000));
    world.ok("backup root.pxar:tree --backup-id a --backup-time 1700000002");
    world.fails("garbage-collect --output-format xml").says("no output format 'xml'");
    world.fails("garbage-collect --repository ./nope").says("'./nope'");
}

#[test]
fn a_running_backup_and_a_collection_do_not_harm_each_other() {
    let world = World::new();
    let fifo = world.path("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let mut backup =
        world.command().args(["backup", "d.img:fifo", "--backup-id", "a"]).spawn().unwrap();
    // The backup opens the fifo when its session has begun.
    let writer = fs::OpenOptions::new().write(true).open(&fifo).unwrap();
    world.ok("garbage-collect");
    std::io::Write::write_all(&mut &writer, b"content").unwrap();
    drop(writer);
    assert!(backup.wait().unwrap().success());
    world.ok("garbage-collect");
    world.ok("restore host/a d.img out");
    assert_eq!(fs::read(world.path("out")).unwrap(), b"content");
}
