//! `verify`: finds damage, moves it aside, and the next backup heals it.

use crate::support::{World, noise};
use std::fs;
use std::path::PathBuf;

fn world() -> World {
    let world = World::new();
    world.write("tree/big", noise(1, 600_000));
    world.write("app.conf", "key = value\n");
    world.ok("backup root.pxar:tree app.conf:app.conf --chunk-size 64 --backup-id a --backup-time 1700000000");
    world
}

/// The chunks of the first snapshot's archive.
fn chunks(world: &World) -> Vec<PathBuf> {
    let index = world.repo().join("host/a/2023-11-14T22:13:20Z/root.pxar.didx");
    let index = keepwell_model::Index::parse_dynamic(fs::read(index).unwrap()).unwrap();
    let path = |digest: String| world.repo().join(".chunks").join(&digest[..4]).join(digest);
    index.chunks().map(|chunk| path(chunk.digest.to_string())).collect()
}

fn state(world: &World) -> serde_json::Value {
    let list = world.ok("snapshot list host/a --output-format json").json();
    list[0]["verification"].clone()
}

#[test]
fn a_sound_repository_is_found_sound_once() {
    let world = world();
    world.ok("namespace create x");
    world.ok("backup root.pxar:tree --backup-id b --ns x");
    let run = world.ok("verify");
    assert!(run.stdout.contains("found 2 groups\n"), "{}", run.stdout);
    assert!(run.stdout.contains("  check root.pxar.didx\n"), "{}", run.stdout);
    assert!(run.stdout.contains("(0 errors)\n"), "{}", run.stdout);
    assert!(run.stdout.contains("percentage done: 100.00% (2/2 groups)\n"), "{}", run.stdout);
    assert_eq!(state(&world)["state"], "ok");
    assert!(state(&world)["upid"].as_str().unwrap().starts_with("UPID:"));
    let again = world.ok("verify").stdout;
    assert!(again.contains("(recently verified)") && !again.contains("check"), "{again}");
    let forced = world.ok("verify host/a --ignore-verified false").stdout;
    assert!(forced.contains("check root.pxar.didx"), "{forced}");
    let old = world.ok("verify host/a --outdated-after 30").stdout;
    assert!(old.contains("(recently verified)"), "{old}");
    let named = world.ok("verify host/a/2023-11-14T22:13:20Z").stdout;
    assert!(named.contains("check app.conf.blob"), "{named}");
    world.fails("verify host/nope").says("backup group host/nope does not exist");
    world.fails("verify host/a/2024-11-14T22:13:20Z").says("does not exist");
    world.fails("verify bad").says("'bad'");
}

#[test]
fn damaged_chunks_are_moved_aside_and_come_back_with_the_next_backup() {
    let world = world();
    let chunks = chunks(&world);
    let good = fs::read(&chunks[1]).unwrap();
    let mut bad = good.clone();
    *bad.last_mut().unwrap() ^= 1;
    fs::write(&chunks[1], &bad).unwrap();
    fs::remove_file(&chunks[2]).unwrap();
    // A sound chunk under the name of another.
    fs::copy(&chunks[0], &chunks[3]).unwrap();
    let run = world.fails("verify");
    run.says("verification failed: 1 snapshots are damaged");
    let name = |at: usize| chunks[at].file_name().unwrap().to_str().unwrap().to_owned();
    for (at, problem) in [
        (1, "blob has a wrong checksum"),
        (2, "it is missing"),
        (3, "its content does not match its digest"),
    ] {
        let line = format!("chunk {} is damaged: {problem}\n", name(at));
        assert!(run.stdout.contains(&line), "{line} is not in {}", run.stdout);
    }
    assert!(run.stdout.contains("(3 errors)\n"), "{}", run.stdout);
    assert!(run.stdout.contains("\thost/a/2023-11-14T22:13:20Z\n"), "{}", run.stdout);
    assert_eq!(state(&world)["state"], "failed");
    assert_eq!(fs::read(chunks[1].with_extension("0.bad")).unwrap(), bad);
    assert!(!chunks[1].exists() && !chunks[3].exists() && chunks[0].exists());
    world.ok("backup root.pxar:tree --chunk-size 64 --backup-id a --backup-time 1700000001");
    assert_eq!(fs::read(&chunks[1]).unwrap(), good);
    let run = world.ok("verify");
    assert!(!run.stdout.contains("recently"), "what failed is looked at again: {}", run.stdout);
    assert_eq!(state(&world)["state"], "ok");
    world.ok("restore host/a/2023-11-14T22:13:20Z root.pxar out");
}

#[test]
fn other_damage_is_told_and_costs_no_chunk() {
    let world = world();
    let dir = world.repo().join("host/a/2023-11-14T22:13:20Z");
    for (name, said) in [
        ("app.conf.blob", "wrong checksum"),
        ("root.pxar.didx", "its checksum is not that of the manifest"),
        ("catalog.pcat1.didx", "its checksum is not that of the manifest"),
    ] {
        let good = fs::read(dir.join(name)).unwrap();
        let mut bad = good.clone();
        *bad.last_mut().unwrap() ^= 1;
        fs::write(dir.join(name), bad).unwrap();
        let run = world.fails("verify --ignore-verified false");
        assert!(run.stdout.contains(said), "{name}: {}", run.stdout);
        fs::write(dir.join(name), good).unwrap();
    }
    let manifest = fs::read(dir.join("index.json.blob")).unwrap();
    fs::write(dir.join("index.json.blob"), b"garbage").unwrap();
    let run = world.fails("verify");
    assert!(run.stdout.contains("manifest load error"), "{}", run.stdout);
    fs::write(dir.join("index.json.blob"), manifest).unwrap();
    let bad = chunks(&world).iter().filter(|path| !path.exists()).count();
    assert_eq!(bad, 0);
    world.ok("verify");
}

#[test]
fn encrypted_chunks_are_checked_without_their_key() {
    let world = World::new();
    world.write("tree/big", noise(1, 600_000));
    world.ok("key create a.key --kdf none");
    world.ok("backup root.pxar:tree --chunk-size 64 --backup-id a --backup-time 1700000000 --keyfile a.key");
    world.ok("verify");
    let chunks = chunks(&world);
    let good = fs::read(&chunks[1]).unwrap();
    fs::write(&chunks[1], &good[..good.len() - 1]).unwrap();
    let plain = keepwell_seal::Sealer::new().unwrap().seal(b"plain", None).unwrap();
    fs::write(&chunks[2], plain.as_bytes()).unwrap();
    let run = world.fails("verify --ignore-verified false");
    let text = "chunk CryptMode none does not match index CryptMode encrypt";
    assert!(run.stdout.contains(text) && run.stdout.contains("(2 errors)"), "{}", run.stdout);
    assert!(chunks[1].with_extension("0.bad").exists() && chunks[2].exists());
    world.ok("restore host/a index.json - --keyfile a.key");
}
