//! What is damaged in a repository is named, and the rest can be had.

use crate::support::{World, noise};
use std::fs;
use std::path::PathBuf;

/// Three files in chunks of their own.
fn world() -> World {
    let world = World::new();
    for (seed, name) in [(1, "a"), (2, "b"), (3, "c")] {
        world.write(&format!("tree/{name}"), noise(seed, 1 << 20));
    }
    world.write("disk", noise(4, 10 << 20));
    world.ok("backup root.pxar:tree disk.img:disk app.conf:/etc/hostname --backup-id me --chunk-size 64 --backup-time 1700000000");
    world
}

fn snapshot_file(world: &World, name: &str) -> PathBuf {
    world.repo().join("host/me/2023-11-14T22:13:20Z").join(name)
}

/// The files of an archive's chunks, and their digests.
fn chunks(world: &World, index: &str) -> Vec<(PathBuf, String)> {
    let bytes = fs::read(snapshot_file(world, index)).unwrap();
    let index = match index.ends_with(".didx") {
        true => keepwell_model::Index::parse_dynamic(bytes),
        false => keepwell_model::Index::parse_fixed(bytes),
    };
    let file =
        |digest: String| (world.repo().join(".chunks").join(&digest[..4]).join(&digest), digest);
    index.unwrap().chunks().map(|chunk| file(chunk.digest.to_string())).collect()
}

fn middle_chunk(world: &World, index: &str) -> (PathBuf, String) {
    let mut chunks = chunks(world, index);
    chunks.swap_remove(chunks.len() / 2)
}

#[test]
fn a_damaged_chunk_is_named_with_its_file_and_the_rest_comes_back() {
    let world = world();
    let (chunk, digest) = middle_chunk(&world, "root.pxar.didx");
    let good = fs::read(&chunk).unwrap();
    let mut flipped = good.clone();
    *flipped.last_mut().unwrap() ^= 1;
    // A chunk of the right form that is another one.
    let other = noise(9, 70_000);
    let swapped = keepwell_seal::Sealer::new().unwrap().seal(&other, None).unwrap().into_bytes();
    for (turn, damage) in
        [Some(flipped), Some(good[..99].to_vec()), Some(Vec::new()), Some(swapped), None]
            .into_iter()
            .enumerate()
    {
        match damage {
            Some(bytes) => fs::write(&chunk, bytes).unwrap(),
            None => fs::remove_file(&chunk).unwrap(),
        }
        let run = world.fails(&format!("restore host/me root.pxar out{turn}"));
        run.says(&digest).says("\"b\"").says("--keep-going");
        assert!(!world.path(&format!("out{turn}/b")).exists(), "no half file");
        let run = world.fails(&format!("restore host/me root.pxar kept{turn} --keep-going"));
        run.says(&digest).says("\"b\"").says("not complete");
        for (seed, name) in [(1, "a"), (3, "c")] {
            assert!(
                fs::read(world.path(&format!("kept{turn}/{name}"))).unwrap()
                    == noise(seed, 1 << 20)
            );
        }
        // What was sound of the damaged file is there, and it has its length.
        let salvaged = fs::read(world.path(&format!("kept{turn}/b"))).unwrap();
        assert_eq!(salvaged.len(), 1 << 20);
        assert_eq!(salvaged[..1000], noise(2, 1000));
    }
    fs::write(&chunk, good).unwrap();
    world.ok("restore host/me root.pxar whole");
}

#[test]
fn a_damaged_image_is_not_half_restored() {
    let world = world();
    let (chunk, digest) = middle_chunk(&world, "disk.img.fidx");
    fs::write(&chunk, b"garbage").unwrap();
    world.fails("restore host/me disk.img out").says(&digest);
    assert!(!world.path("out").exists());
    world.fails("restore host/me disk.img out --keep-going").says(&digest);
    assert_eq!(fs::metadata(world.path("out")).unwrap().len(), 10 << 20);
    world.fails("restore host/me disk.img -").says(&digest);
}

#[test]
fn damaged_indexes_blobs_manifests_and_catalogs_are_refused() {
    let world = world();
    let cases = [
        ("root.pxar.didx", "restore host/me root.pxar out"),
        ("disk.img.fidx", "restore host/me disk.img out"),
        ("app.conf.blob", "restore host/me app.conf out"),
        ("index.json.blob", "restore host/me root.pxar out"),
        ("catalog.pcat1.didx", "catalog dump host/me/2023-11-14T22:13:20Z"),
    ];
    for (name, command) in cases {
        let path = snapshot_file(&world, name);
        let good = fs::read(&path).unwrap();
        let mut flipped = good.clone();
        *flipped.last_mut().unwrap() ^= 1;
        for bytes in
            [flipped, good[..good.len() - 1].to_vec(), good[..good.len() / 2].to_vec(), Vec::new()]
        {
            fs::write(&path, bytes).unwrap();
            world.fails(command).says(name);
            assert!(!world.path("out").exists());
        }
        fs::remove_file(&path).unwrap();
        world.fails(command);
        fs::write(&path, good).unwrap();
    }
    world.ok("restore host/me root.pxar out");
}

#[test]
fn a_manifest_of_another_snapshot_is_refused() {
    let world = world();
    world.ok("backup root.pxar:tree --backup-id me --backup-time 1700000001");
    let other = world.repo().join("host/me/2023-11-14T22:13:21Z/index.json.blob");
    fs::copy(snapshot_file(&world, "index.json.blob"), other).unwrap();
    world
        .fails("restore host/me/2023-11-14T22:13:21Z root.pxar out")
        .says("it is the manifest of host/me/2023-11-14T22:13:20Z");
}

#[test]
fn a_damaged_previous_snapshot_only_costs_time() {
    let world = world();
    let path = snapshot_file(&world, "root.pxar.didx");
    fs::write(&path, b"garbage").unwrap();
    world.ok("backup root.pxar:tree --backup-id me --backup-time 1700000001");
    world.ok("restore host/me/2023-11-14T22:13:21Z root.pxar out");
    fs::write(world.repo().join("host/me/2023-11-14T22:13:21Z/index.json.blob"), b"garbage")
        .unwrap();
    let run = world.ok("backup root.pxar:tree --backup-id me --backup-time 1700000002");
    run.says("Couldn't re-use previous manifest - ");
    world.ok("restore host/me/2023-11-14T22:13:22Z root.pxar out2");
}

#[test]
fn damage_in_the_midst_of_small_files_costs_only_those() {
    let world = World::new();
    for i in 0..200 {
        world.write(&format!("tree/d{}/{i:03}", i / 50), noise(i, 5000));
    }
    world.ok("backup root.pxar:tree --backup-id me --chunk-size 64 --backup-time 1700000000");
    let chunks = chunks(&world, "root.pxar.didx");
    assert!(chunks.len() > 8);
    // Even the first, which holds the root.
    for (turn, (chunk, digest)) in chunks.iter().enumerate() {
        let good = fs::read(chunk).unwrap();
        fs::write(chunk, b"garbage").unwrap();
        // Without --keep-going the first place is told; without the root there is none.
        let run = world.fails(&format!("restore host/me root.pxar out{turn}"));
        run.says(digest).says("--keep-going");
        if turn > 0 {
            run.says("error at entry \"");
        }
        let run = world.fails(&format!("restore host/me root.pxar kept{turn} --keep-going"));
        run.says(digest).says("not complete");
        fs::write(chunk, good).unwrap();
        // A directory whose own entry is damaged has lost its name.
        let dirs = fs::read_dir(world.path(&format!("kept{turn}"))).unwrap().flatten();
        let dirs: Vec<PathBuf> = dirs.map(|entry| entry.path()).collect();
        let is_kept = |i: &u64| {
            let read = |dir: &PathBuf| fs::read(dir.join(format!("{i:03}")));
            dirs.iter().any(|dir| read(dir).is_ok_and(|bytes| bytes == noise(*i, 5000)))
        };
        // A chunk of at most 256 KiB holds about 50 of these files.
        let lost: Vec<u64> = (0..200).filter(|i| !is_kept(i)).collect();
        assert!(lost.len() < 55, "{} files did not come back without chunk {turn}", lost.len());
        for i in lost.iter().filter(|i| world.path(&format!("kept{turn}/d{}", *i / 50)).exists()) {
            if !world.path(&format!("kept{turn}/d{}/{i:03}", i / 50)).exists() {
                run.says(&format!("not restored: \"d{}/{i:03}\"", i / 50));
            }
        }
    }
}

#[test]
fn no_half_file_stays_under_another_name() {
    let world = World::new();
    world.write("tree/a", noise(1, 1 << 20));
    fs::hard_link(world.path("tree/a"), world.path("tree/z")).unwrap();
    world.ok("backup root.pxar:tree --backup-id me --chunk-size 64 --backup-time 1700000000");
    let (chunk, _) = middle_chunk(&world, "root.pxar.didx");
    fs::remove_file(&chunk).unwrap();
    world.fails("restore host/me root.pxar out").says("\"a\"");
    assert!(!world.path("out").exists());
    let run = world.fails("restore host/me root.pxar kept --keep-going");
    run.says("error at entry \"z\": it is one more name of \"a\", which is damaged");
}
