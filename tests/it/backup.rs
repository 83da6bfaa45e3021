//! Options of `backup`, what it says and what it leaves out.

use crate::support::{World, contains_file, is_root, needs_root, noise, skipped};
use std::fs;
use std::process::{Command, Stdio};

/// Paths in the newest snapshot of a group, from its catalog.
fn listed(world: &World, group: &str) -> Vec<String> {
    let snapshot = world.ok(&format!("snapshot list {group} --output-format json")).json();
    let last = snapshot.as_array().unwrap().last().unwrap()["backup-time"].as_i64().unwrap();
    let time = keepwell_model::BackupTime::from_unix(last).unwrap();
    let dump = world.ok(&format!("catalog dump {group}/{time}")).stdout;
    dump.lines()
        .filter_map(|line| line.split('"').nth(1))
        .filter_map(|path| path.strip_prefix("./root.pxar.didx/"))
        .map(str::to_owned)
        .collect()
}

#[test]
fn it_says_what_the_documentation_says() {
    let world = World::new();
    world.write("tree/file", b"x");
    let run = world.ok("backup root.pxar:tree --backup-id me --backup-time 1700000000");
    let lines: Vec<&str> = run.stderr.lines().collect();
    assert_eq!(lines[0], "Starting backup: host/me/2023-11-14T22:13:20Z");
    assert!(lines[1].starts_with("Client name: "));
    assert!(lines[2].starts_with("Starting backup protocol: "));
    assert_eq!(lines[3], "No previous manifest available.");
    let repo = world.repo();
    assert_eq!(
        lines[4],
        format!("Upload directory 'tree' to '{}' as root.pxar.didx", repo.display())
    );
    assert!(lines[5].starts_with("root.pxar: had to backup "), "{}", lines[5]);
    assert!(lines[6].starts_with("root.pxar: average backup speed: "));
    assert!(lines[7].starts_with("Uploaded backup catalog ("));
    assert!(lines[8].starts_with("Duration: ") && lines[8].ends_with('s'));
    assert!(lines[9].starts_with("End Time: "));
    assert_eq!(run.stdout, "");
    let second = world.ok("backup root.pxar:tree --backup-id me --backup-time 1700000001");
    second.says("Downloading previous manifest (Tue Nov 14 22:13:20 2023)");
}

#[test]
fn a_new_repository_is_made_with_a_message() {
    let world = World::new();
    world.write("tree/file", b"x");
    let run = world.ok("backup root.pxar:tree --repository ./new/store --backup-id me");
    run.says("Creating datastore in './new/store'");
    assert_eq!(fs::read_dir(world.path("new/store/.chunks")).unwrap().count(), 65_536);
    assert!(world.path("new/store/.lock").is_file());
    world.ok("list --repository file:new/store");
}

#[test]
fn excludes_follow_the_documentation() {
    let world = World::new();
    for name in [
        "folder/subfolder0/file0",
        "folder/subfolder0/file1",
        "folder/subfolder0/file2",
        "folder/subfolder0/file3",
        "folder/subfolder1/file0",
        "folder/subfolder1/file1",
        "folder/subfolder1/file2",
        "folder/subfolder1/file3",
    ] {
        world.write(name, name);
    }
    world.write("folder/.pxarexclude", "/subfolder0/file1\n/subfolder1/*\n!/subfolder1/file2\n");
    world.write("folder/subfolder0/.pxarexclude", "file3\n");
    world.ok("backup root.pxar:folder --backup-id doc");
    assert_eq!(
        listed(&world, "host/doc"),
        [
            ".pxarexclude",
            "subfolder0",
            "subfolder0/.pxarexclude",
            "subfolder0/file0",
            "subfolder0/file2",
            "subfolder1",
            "subfolder1/file2"
        ]
    );
    // The same below another directory: a leading '/' is the directory's own.
    fs::create_dir(world.path("above")).unwrap();
    fs::rename(world.path("folder"), world.path("above/folder")).unwrap();
    world.ok("backup root.pxar:above --backup-id deep --exclude=file0 --exclude [!s]ubfolder9");
    assert_eq!(
        listed(&world, "host/deep"),
        [
            "folder",
            "folder/.pxarexclude",
            "folder/subfolder0",
            "folder/subfolder0/.pxarexclude",
            "folder/subfolder0/file2",
            "folder/subfolder1",
            "folder/subfolder1/file2",
            ".pxarexclude-cli"
        ]
    );
    world.ok("restore host/deep root.pxar out --pattern .pxarexclude-cli");
    assert_eq!(fs::read(world.path("out/.pxarexclude-cli")).unwrap(), b"file0\n[!s]ubfolder9\n");
}

#[test]
fn caches_marked_and_large_things_are_left_out() {
    let world = World::new();
    world.write("tree/cache/CACHEDIR.TAG", "Signature: 8a477f597d28d172789f06886806bc55\n");
    world.write("tree/cache/junk", "x");
    world.write("tree/fake/CACHEDIR.TAG", "not one\n");
    world.write("tree/fake/kept", "x");
    world.write("tree/marked/.nobackup", "");
    world.write("tree/marked/sub/junk", "x");
    world.write("tree/big", noise(1, 5000));
    world.write("tree/lost+found/x", "x");
    let run = world.ok(
        "backup root.pxar:tree --backup-id me --exclude-caches --exclude-if-present .nobackup \
        --exclude-larger-than 4KiB --skip-lost-and-found --output-format json"
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
            .as_str(),
    );
    assert_eq!(
        listed(&world, "host/me"),
        [
            "cache",
            "cache/CACHEDIR.TAG",
            "fake",
            "fake/CACHEDIR.TAG",
            "fake/kept",
            "marked",
            "marked/.nobackup",
            ".pxarexclude-cli"
        ]
    );
    let skipped = run.json()["skipped"].clone();
    let reasons: Vec<(&str, &str)> = skipped
        .as_array()
        .unwrap()
        .iter()
        .map(|s| (s["path"].as_str().unwrap(), s["reason"].as_str().unwrap()))
        .collect();
    assert_eq!(reasons, [("big", "too-large"), ("cache", "marked"), ("marked", "marked")]);
}

#[test]
fn the_json_summary_adds_up() {
    let world = World::new();
    world.write("tree/a", noise(9, 3_000_000));
    world.write("tree/b", b"x");
    let summary = world
        .ok("backup root.pxar:tree --backup-id me --backup-time 1700000000 --output-format json")
        .json();
    assert_eq!(summary["snapshot"], "host/me/2023-11-14T22:13:20Z");
    assert_eq!(summary["files"], 2);
    assert_eq!(summary["bytes"], summary["new-bytes"]);
    assert!(summary["bytes"].as_u64().unwrap() > 3_000_000);
    assert!(summary["seconds"].is_number() && summary["skipped"].as_array().unwrap().is_empty());
    assert_eq!(summary["archives"][0]["name"], "root.pxar");
    let pretty = world.ok("backup root.pxar:tree --backup-id me --output-format json-pretty");
    assert_eq!(pretty.json()["new-bytes"], 0);
    assert!(pretty.stdout.contains("\n  \"bytes\": "));
}

#[test]
fn a_dry_run_touches_nothing() {
    let world = World::new();
    world.write("tree/file", b"x");
    let run = world.ok("backup root.pxar:tree --dry-run --repository ./nowhere");
    run.says("Would upload directory 'tree' to './nowhere' as root.pxar.didx")
        .says("dry-run: no upload happened");
    assert!(!world.path("nowhere").exists());
    let before = fs::read_dir(world.repo()).unwrap().count();
    world.ok("backup root.pxar:tree --dry-run true --backup-id me");
    assert_eq!(fs::read_dir(world.repo()).unwrap().count(), before);
    world.fails("backup root.pxar:tree --dry-run --ns no/such").says("namespace not found");
}

#[test]
fn chunk_size_and_entries_max_do_what_they_say() {
    let world = World::new();
    world.write("tree/file", noise(2, 8 << 20));
    world.write("disk", noise(3, 1 << 20));
    let small = world.ok("backup root.pxar:tree disk.img:disk --backup-id me --chunk-size 64 --output-format json").json();
    assert!(small["archives"][0]["chunks"].as_u64().unwrap() > 60);
    assert_eq!(small["archives"][1]["chunks"], 16);
    world.ok("restore host/me disk.img out");
    assert!(fs::read(world.path("out")).unwrap() == noise(3, 1 << 20));
    for i in 0..20 {
        world.write(&format!("many/{i}"), b"");
    }
    world.ok("backup root.pxar:many --backup-id many --entries-max 20");
    let run = world.fails("backup root.pxar:many --backup-id few --entries-max 19");
    run.says("exceeded allowed number of file entries (> 19)").says("--entries-max");
    assert_eq!(world.snapshots().len(), 2);
}

#[test]
fn mount_points_are_not_entered_unless_asked() {
    if !needs_root("mounting") {
        return;
    }
    let world = World::new();
    world.write("tree/other/below", b"hidden by the mount");
    world.write("tree/proc/x", b"");
    let mount = |kind: &str, at: &str| {
        let status = Command::new("mount").args(["-t", kind, "none"]).arg(world.path(at)).status();
        status.is_ok_and(|status| status.success())
    };
    if !mount("tmpfs", "tree/other") || !mount("proc", "tree/proc") {
        skipped("mounting is not possible here");
        return;
    }
    world.write("tree/other/mounted", b"x");
    let plain = world.run(["backup", "root.pxar:tree", "--backup-id", "plain"]);
    let listed_plain = listed(&world, "host/plain");
    let device = world.run([
        "backup",
        "root.pxar:tree",
        "--backup-id",
        "dev",
        "--include-dev",
        "tree/other",
    ]);
    let all = world.run(["backup", "root.pxar:tree", "--backup-id", "all", "--all-file-systems"]);
    for at in ["tree/other", "tree/proc"] {
        Command::new("umount").arg(world.path(at)).status().unwrap();
    }
    plain.says("skip mount point: \"/other\"").says("skip mount point: \"/proc\"");
    assert_eq!(listed_plain, ["other", "proc"]);
    assert_eq!((device.code, all.code), (Some(0), Some(0)), "{}{}", device.stderr, all.stderr);
    for group in ["host/dev", "host/all"] {
        // A virtual file system stays out in any case.
        assert_eq!(listed(&world, group), ["other", "other/mounted", "proc"]);
    }
    world
        .fails("backup root.pxar:/proc --backup-id p")
        .says("refusing to backup a virtual file system");
}

#[test]
fn unreadable_files_are_skipped_and_reported() {
    if is_root() {
        // Root reads everything: run as somebody else.
        let world = World::new();
        world.write("tree/open", b"x");
        let closed = world.write("tree/closed", b"x");
        let status =
            Command::new("chown").args(["-R", "65534:65534"]).arg(world.dir.path()).status();
        assert!(status.unwrap().success());
        Command::new("chown").arg("0:0").arg(&closed).status().unwrap();
        Command::new("chmod").arg("600").arg(&closed).status().unwrap();
        Command::new("chmod").arg("755").arg(world.dir.path()).status().unwrap();
        let run = |strict: &[&str]| {
            let mut command = world.command();
            command.env("XDG_CACHE_HOME", world.path("cache"));
            std::os::unix::process::CommandExt::uid(&mut command, 65534);
            command.args([
                "backup",
                "root.pxar:tree",
                "--backup-id",
                "me",
                "--output-format",
                "json",
            ]);
            crate::support::Run::from(command.args(strict).output().unwrap())
        };
        let lenient = run(&["--backup-time", "1000"]);
        assert_eq!(lenient.code, Some(0), "{}", lenient.stderr);
        lenient.says("failed to open file: \"closed\": access denied");
        let skipped = &lenient.json()["skipped"][0];
        assert_eq!(
            (skipped["path"].as_str(), skipped["reason"].as_str()),
            (Some("closed"), Some("denied"))
        );
        let strict = run(&["--backup-time", "1001", "--strict"]);
        strict.assert_failed("--strict");
        strict.says("1 entries could not be backed up");
        assert_eq!(world.snapshots().len(), 2);
    } else {
        skipped("making a file of somebody else needs root");
    }
}

#[test]
fn files_that_change_while_they_are_read_keep_the_archive_valid() {
    let world = World::new();
    for i in 0..40 {
        world.write(&format!("tree/{i:02}"), noise(i, 400_000));
    }
    let tree = world.path("tree");
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let meddler = std::thread::spawn({
        let stop = stop.clone();
        move || {
            let mut turn = 0u64;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let path = tree.join(format!("{:02}", turn % 40));
                match turn % 3 {
                    0 => drop(fs::write(&path, b"short")),
                    1 => drop(fs::remove_file(&path)),
                    _ => drop(fs::write(&path, noise(turn, 900_000))),
                }
                turn += 7;
            }
        }
    });
    for turn in 0..5 {
        let run = world.run([
            "backup",
            "root.pxar:tree",
            "--backup-id",
            "me",
            "--backup-time",
            &(1000 + turn).to_string(),
        ]);
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        world.ok(&format!("restore host/me root.pxar out{turn}"));
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    meddler.join().unwrap();
}

#[test]
fn an_interrupted_backup_leaves_no_snapshot_and_says_so() {
    let world = World::new();
    // A pipe that never ends.
    let mut child = world
        .command()
        .args(["backup", "d.img:/dev/stdin", "--backup-id", "me"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || {
        let data = noise(1, 1 << 20);
        while std::io::Write::write_all(&mut input, &data).is_ok() {}
    });
    while !contains_file(&world.repo().join("host"), "tmp_fidx") {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    let run = crate::support::Run::from(output);
    run.assert_failed("interrupted");
    run.says("interrupted: no snapshot was made");
    assert!(world.snapshots().is_empty());
    assert!(!world.repo().join("host/me").exists(), "nothing of it remains");
}

#[test]
fn progress_is_json_where_asked() {
    let world = World::new();
    world.write("tree/file", noise(1, 100_000));
    let run = world.ok("backup root.pxar:tree --backup-id me --progress json");
    let last = run.stderr.lines().rfind(|line| line.starts_with('{')).unwrap();
    let last: serde_json::Value = serde_json::from_str(last).unwrap();
    assert_eq!((last["type"].as_str(), last["done"].as_bool()), (Some("progress"), Some(true)));
    assert!(last["bytes"].as_u64().unwrap() > 100_000);
}

#[test]
fn namespaces_take_backups_once_they_exist() {
    let world = World::new();
    world.write("tree/file", b"x");
    world.fails("backup root.pxar:tree --ns a/b --backup-id me").says("namespace not found");
    world.ok("namespace create a");
    world.ok("namespace create a/b");
    let run = world.ok("backup root.pxar:tree --ns a/b --backup-id me --backup-time 1700000070");
    run.says("Starting backup: [a/b]:host/me/2023-11-14T22:14:30Z");
    assert!(world.snapshots().is_empty());
    assert!(world.repo().join("ns/a/ns/b/host/me/2023-11-14T22:14:30Z/index.json.blob").is_file());
    world.ok("restore host/me root.pxar out --ns a/b");
}

#[test]
fn a_quiet_log_is_quiet() {
    let world = World::new();
    world.write("tree/file", b"x");
    let run = |level: &str, id: &str| {
        let mut command = world.command();
        command.env("PBS_LOG", level).args(["backup", "root.pxar:tree", "--backup-id", id]);
        let output = command.output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    assert_eq!(run("error", "a"), "");
    assert!(run("info", "b").contains("Starting backup"));
}

#[test]
fn the_repository_is_not_backed_up_into_itself() {
    let world = World::new();
    world.write("deep/file", b"x");
    let run = world.ok(&format!("backup root.pxar:{} --backup-id me", world.dir.path().display()));
    run.says("skip the repository itself: \"/repo\"");
    world.ok("restore host/me root.pxar out");
    assert!(world.path("out/deep/file").exists());
    assert!(!world.path("out/repo").exists());
    let own = format!("backup root.pxar:{} --backup-id other", world.repo().display());
    world.fails(&own).says("is the repository itself");
}

#[test]
fn a_log_may_be_long_where_it_is_short_when_compressed() {
    let world = World::new();
    world.write("long.log", vec![b'x'; 20 << 20]);
    world.ok("backup a.log:long.log --backup-id me");
    world.ok("restore host/me a.log out");
    assert!(std::fs::read(world.path("out")).unwrap() == vec![b'x'; 20 << 20]);
    world.write("noise.log", crate::support::noise(1, 17 << 20));
    world
        .fails("backup a.log:noise.log --backup-id other")
        .says("more than 16 MiB, even compressed");
}
