//! kill -9 at random points of a backup: what was there stays, no half snapshot is listed, and the
//! next backup works. `KEEPWELL_CRASHES` sets how many times (20).

use crate::support::{World, noise};
use keepwell_test_support::tree::{describe, differences};
use std::process::Stdio;
use std::time::Duration;

#[test]
fn a_killed_backup_loses_nothing() {
    let turns: u64 =
        std::env::var("KEEPWELL_CRASHES").ok().and_then(|n| n.parse().ok()).unwrap_or(20);
    let world = World::new();
    for i in 0..300 {
        world.write(&format!("tree/{}/{i}", i % 7), noise(i, 40_000));
    }
    let spec = "root.pxar:tree";
    world.ok(&format!("backup {spec} --backup-id me --backup-time 1000 --chunk-size 64"));
    let first = describe(&world.path("tree"));
    let mut time = 1000;
    let mut killed = 0;
    for turn in 0..turns {
        // Something new each time, so that there is something to lose.
        for i in 0..100 {
            world.write(&format!("tree/{}/{i}", i % 7), noise(1000 + turn * 100 + i, 40_000));
        }
        time += 1;
        let mut child = world
            .command()
            .args(["backup", spec, "--backup-id", "me", "--chunk-size", "64"])
            .args(["--backup-time", &time.to_string()])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Random enough: the machine's own timing does the rest.
        std::thread::sleep(Duration::from_micros(noise(turn, 8)[0] as u64 * 700));
        let _ = child.kill();
        killed += u32::from(!child.wait().unwrap().success());
        let listed = world.snapshots();
        // All of them after each kill; in long runs the ends, and all at last.
        let newest = if turns > 20 { 2 } else { listed.len() };
        for snapshot in listed.iter().take(1).chain(listed.iter().rev().take(newest)) {
            assert_restores(&world, snapshot);
        }
        assert_eq!(listed[0], "host/me/1000");
    }
    time += 1;
    world.ok(&format!("backup {spec} --backup-id me --backup-time {time} --chunk-size 64"));
    world.snapshots().iter().for_each(|snapshot| assert_restores(&world, snapshot));
    world.ok("restore host/me root.pxar last");
    world.ok("restore host/me/1970-01-01T00:16:40Z root.pxar first");
    assert_eq!(
        differences(&describe(&world.path("tree")), &describe(&world.path("last"))),
        Vec::<String>::new()
    );
    assert_eq!(differences(&first, &describe(&world.path("first"))), Vec::<String>::new());
    eprintln!("{killed} of {turns} backups were killed");
}

fn assert_restores(world: &World, snapshot: &str) {
    let seconds: i64 = snapshot.rsplit('/').next().unwrap().parse().unwrap();
    let name = keepwell_model::BackupTime::from_unix(seconds).unwrap();
    let run = world.run(["restore", &format!("host/me/{name}"), "root.pxar", "-"]);
    assert_eq!(run.code, Some(0), "{snapshot}: {}", run.stderr);
}
