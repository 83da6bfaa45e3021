//! Archives whose metadata and content lie apart, and content that is taken again without being read.

use crate::served::Served;
use crate::support::{Run, World, noise};
use rustix::fs::inotify;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

const FIRST: &str = "host/me/2023-11-14T22:13:20Z";

/// Forty directories with files of some kilobytes, hard links and the rest.
fn tree(world: &World) {
    for dir in 0..40u64 {
        for file in 0..25u64 {
            world.write(&format!("tree/d{dir:02}/f{file:02}"), noise(dir * 100 + file, 9000));
        }
    }
    world.write("tree/d00/empty", "");
    fs::hard_link(world.path("tree/d01/f01"), world.path("tree/d02/linked")).unwrap();
    std::os::unix::fs::symlink("d00/f00", world.path("tree/link")).unwrap();
    let touched = Command::new("find")
        .arg(world.path("tree"))
        .args(["-exec", "touch", "-h", "-d", "@1000.5", "{}", "+"])
        .status();
    assert!(touched.unwrap().success());
}

fn backup(world: &World, mode: &str, time: u64, more: &str) -> Run {
    let line = format!(
        "backup root.pxar:tree --backup-id me --chunk-size 64 --backup-time {time} --change-detection-mode {mode} {more}"
    );
    world.ok(line.trim_end())
}

/// Restores a snapshot, which must be the tree as it is.
fn is_restored(world: &World, snapshot: &str, more: &str) {
    let out = world.path("restored");
    let _ = fs::remove_dir_all(&out);
    world.ok(format!("restore {snapshot} root.pxar restored {more}").trim_end());
    let same = Command::new("diff")
        .args(["-r", "--no-dereference"])
        .arg(world.path("tree"))
        .arg(&out)
        .output()
        .unwrap();
    assert!(same.status.success(), "{}", String::from_utf8_lossy(&same.stdout));
    let (source, restored) = (world.path("tree/d03/f03"), out.join("d03/f03"));
    let of = |path: &Path| fs::metadata(path).unwrap();
    assert_eq!(of(&source).modified().unwrap(), of(&restored).modified().unwrap());
    assert_eq!(of(&source).mode(), of(&restored).mode());
    assert_eq!(of(&out.join("d01/f01")).ino(), of(&out.join("d02/linked")).ino());
}

/// Bytes that a run says it took from the previous snapshot.
fn reused(run: &Run) -> bool {
    run.stderr.contains("from previous snapshot for unchanged files")
}

fn at(second: u64) -> String {
    format!("host/me/2023-11-14T22:13:{:02}Z", 20 + second)
}

#[test]
fn split_archives_are_read_by_all_that_read_archives() {
    let world = World::new();
    tree(&world);
    backup(&world, "data", 1_700_000_000, "--exclude *.none");
    let files = world.ok(&format!("snapshot files {FIRST} --output-format json")).stdout;
    assert!(files.contains("root.mpxar.didx") && files.contains("root.ppxar.didx"), "{files}");
    assert!(!files.contains("catalog") && !files.contains("\"root.pxar"), "{files}");
    is_restored(&world, FIRST, "");
    for name in ["root.pxar", "root.mpxar", "root.ppxar.didx"] {
        let run = world.ok(&format!("extract {FIRST} {name} d03/f03 --to -"));
        assert_eq!(run.stdout_bytes, noise(303, 9000));
    }
    world.fails(&format!("restore {FIRST} root.pxar -")).says("unable to pipe split archive");
    world.fails(&format!("restore {FIRST} other.pxar out")).says("other.pxar.didx");
    let dump = world.ok(&format!("catalog dump {FIRST}")).stdout;
    assert!(dump.starts_with("d \"./root.mpxar.didx\"\nd \"./root.mpxar.didx/d00\"\n"), "{dump}");
    assert!(dump.contains("h \"./root.mpxar.didx/d02/linked\""), "{dump}");
    assert_eq!(dump.lines().count(), 1 + 40 + 40 * 25 + 3);
    let found = world.ok("find f03 host/me --archive root.pxar --output-format json").json();
    assert_eq!(found.as_array().unwrap().len(), 40);
    assert_eq!(found[0]["archive"], "root.pxar");
    // The same tree in one stream, and with a key, is no other.
    world.ok("key create my.key --kdf none");
    backup(&world, "legacy", 1_700_000_001, "--exclude *.none --keyfile my.key");
    let line = format!("diff {FIRST} {} --keyfile my.key --output-format json", at(1));
    let differences = world.ok(&line).json();
    let paths: Vec<_> = differences.as_array().unwrap().iter().map(|d| &d["path"]).collect();
    assert_eq!(paths, ["/.pxarexclude-cli"]);
    world.ok("verify");
}

#[test]
fn the_shell_looks_into_split_archives() {
    let world = World::new();
    tree(&world);
    backup(&world, "data", 1_700_000_000, "");
    world.write(
        "script",
        "cd d02\nls linked\nstat linked\nfind f0[12]\nselect /d01\nrestore-selected out\n",
    );
    let mut command = world.command();
    command.args(["catalog", "shell", FIRST, "root.pxar"]);
    command.stdin(fs::File::open(world.path("script")).unwrap());
    let run = Run::from(command.output().unwrap());
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert!(run.stdout.starts_with("linked\n  File: /d02/linked\n  Size: 9000 "), "{}", run.stdout);
    assert_eq!(run.stdout.matches("/f01\n").count(), 40);
    assert_eq!(fs::read(world.path("out/d01/f07")).unwrap(), noise(107, 9000));
}

#[test]
fn unchanged_files_are_not_read_again() {
    let world = World::new();
    tree(&world);
    let run = backup(&world, "metadata", 1_700_000_000, "");
    run.says("No previous metadata index, continue without reference");
    // What is not read may be anything, as long as its metadata is the same.
    let file = world.path("tree/d20/f20");
    let kept = fs::read(&file).unwrap();
    fs::write(&file, noise(9, 9000)).unwrap();
    let touch = |path: &Path| {
        let touched = Command::new("touch").args(["-d", "@1000.5"]).arg(path).status();
        assert!(touched.unwrap().success());
    };
    touch(&file);
    let run = backup(&world, "metadata", 1_700_000_001, "");
    run.says("Using previous index as metadata reference for 'root.mpxar.didx'");
    assert!(reused(&run), "{}", run.stderr);
    fs::write(&file, kept).unwrap();
    touch(&file);
    is_restored(&world, &at(1), "");

    // Whatever changes is read, and the rest stays right.
    fs::write(world.path("tree/d10/f10"), noise(1, 12_345)).unwrap();
    fs::remove_file(world.path("tree/d11/f11")).unwrap();
    fs::rename(world.path("tree/d12"), world.path("tree/d12-moved")).unwrap();
    fs::create_dir(world.path("tree/d13/new")).unwrap();
    fs::write(world.path("tree/d13/new/file"), "new").unwrap();
    fs::set_permissions(world.path("tree/d03/f03"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::remove_file(world.path("tree/d14/f14")).unwrap();
    fs::create_dir(world.path("tree/d14/f14")).unwrap();
    let run = backup(&world, "metadata", 1_700_000_002, "");
    assert!(reused(&run), "{}", run.stderr);
    is_restored(&world, &at(2), "");
    // Again and again, so that padding of padding is met.
    for time in 3..8u64 {
        for file in (time..25).step_by(7) {
            let path = world.path(&format!("tree/d{:02}/f{file:02}", time * 5));
            fs::write(path, noise(time + file, 7000 + time as usize)).unwrap();
        }
        backup(&world, "metadata", 1_700_000_000 + time, "");
        is_restored(&world, &at(time), "");
    }
    backup(&world, "legacy", 1_700_000_008, "");
    is_restored(&world, &at(8), "");
    world.ok("verify");
}

/// Whether the metadata of a file can be had without opening it, so that the tests may expect that.
fn can_look_from_outside(path: &Path) -> bool {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    // ext2 to ext4, XFS, tmpfs.
    let kinds = [0xef53, 0x5846_5342, 0x0102_1994];
    version >= (6, 17) && kinds.contains(&(rustix::fs::statfs(path).unwrap().f_type as u64))
}

#[test]
fn unchanged_files_are_not_opened() {
    let world = World::new();
    tree(&world);
    if !can_look_from_outside(&world.path("tree")) {
        eprintln!("skipped: it takes Linux 6.17 and ext4, XFS or tmpfs");
        return;
    }
    backup(&world, "metadata", 1_700_000_000, "");
    fs::write(world.path("tree/d20/f07"), "changed").unwrap();
    let watches = inotify::init(inotify::CreateFlags::NONBLOCK).unwrap();
    for file in 0..25u64 {
        let path = world.path(&format!("tree/d20/f{file:02}"));
        inotify::add_watch(&watches, path, inotify::WatchFlags::OPEN).unwrap();
    }
    let run = backup(&world, "metadata", 1_700_000_001, "");
    assert!(reused(&run), "{}", run.stderr);
    let mut room = [std::mem::MaybeUninit::uninit(); 4096];
    let mut opened = inotify::Reader::new(&watches, &mut room);
    let mut seen = BTreeSet::new();
    while let Ok(event) = opened.next() {
        seen.insert(event.wd());
    }
    assert_eq!(seen.len(), 1, "only the file that was changed");
    is_restored(&world, &at(1), "");
}

/// A change next to a chunk that holds much else makes only what is beside it be read.
#[test]
fn of_many_files_only_those_at_the_bad_end_are_read() {
    let world = World::new();
    for file in 0..40u64 {
        world.write(&format!("tree/d03/f{file:02}"), noise(file, 30_000));
    }
    world.write("tree/d01/f01", "");
    fs::create_dir(world.path("tree/d02")).unwrap();
    fs::hard_link(world.path("tree/d01/f01"), world.path("tree/d02/linked")).unwrap();
    // One chunk of zeros, of which the files before and behind the change have a part.
    world.write("tree/d03/g", vec![0; 80_000]);
    world.write("tree/d03/i", vec![0; 500_000]);
    backup(&world, "metadata", 1_700_000_000, "");
    world.write("tree/d03/h", "new");
    let run = backup(&world, "metadata", 1_700_000_001, "");
    assert!(reused(&run), "{}", run.stderr);
    is_restored(&world, &at(1), "");
}

/// Small files, between which some are deleted and others are new, must not each bring a large chunk along.
#[test]
fn archives_do_not_grow_by_what_nobody_wants() {
    let world = World::new();
    let small = |name: &str, seed| world.write(&format!("tree/d03/{name}"), noise(seed, 500));
    for number in 0..40u64 {
        for (at, name) in ["a", "b", "c"].into_iter().enumerate() {
            small(&format!("p{number:02}{name}"), number * 3 + at as u64);
        }
    }
    small("f03", 999);
    world.write("tree/d03/q", vec![0; 300_000]);
    world.write("tree/d01/f01", "");
    fs::create_dir(world.path("tree/d02")).unwrap();
    fs::hard_link(world.path("tree/d01/f01"), world.path("tree/d02/linked")).unwrap();
    backup(&world, "data", 1_700_000_000, "");
    fs::remove_file(world.path("tree/d03/q")).unwrap();
    for number in 0..40u64 {
        fs::remove_file(world.path(&format!("tree/d03/p{number:02}b"))).unwrap();
        small(&format!("p{number:02}d"), 500 + number);
    }
    for time in 1..3u64 {
        backup(&world, "metadata", 1_700_000_000 + time, "");
        is_restored(&world, &at(time), "");
        let index = fs::read(world.repo().join(at(time)).join("root.ppxar.didx")).unwrap();
        let index = keepwell_model::Index::parse_dynamic(index).unwrap();
        let size = index.chunk(index.len() - 1).unwrap().end;
        assert!(size < 100_000, "60 kB of content lie in {size} bytes");
    }
}

#[test]
fn what_can_not_be_taken_again_is_read() {
    let world = World::new();
    tree(&world);
    world.ok("key create my.key --kdf none");
    world.ok("key create other.key --kdf none");
    backup(&world, "metadata", 1_700_000_000, "--keyfile my.key");
    let run = backup(&world, "metadata", 1_700_000_001, "--keyfile my.key");
    assert!(reused(&run), "{}", run.stderr);
    is_restored(&world, &at(1), "--keyfile my.key");
    // Another key, and none.
    assert!(!reused(&backup(&world, "metadata", 1_700_000_002, "--keyfile other.key")));
    is_restored(&world, &at(2), "--keyfile other.key");
    assert!(!reused(&backup(&world, "metadata", 1_700_000_003, "")));
    is_restored(&world, &at(3), "");
    // A chunk that is gone.
    let index = fs::read(world.repo().join(at(3)).join("root.ppxar.didx")).unwrap();
    let index = keepwell_model::Index::parse_dynamic(index).unwrap();
    let digest = index.chunk(index.len() / 2).unwrap().digest.to_string();
    fs::remove_file(world.repo().join(".chunks").join(&digest[..4]).join(&digest)).unwrap();
    backup(&world, "metadata", 1_700_000_004, "");
    is_restored(&world, &at(4), "");
    // Damaged metadata: everything is read.
    let index = fs::read(world.repo().join(at(4)).join("root.mpxar.didx")).unwrap();
    let index = keepwell_model::Index::parse_dynamic(index).unwrap();
    for chunk in index.chunks() {
        let digest = chunk.digest.to_string();
        let path = world.repo().join(".chunks").join(&digest[..4]).join(&digest);
        let mut bytes = fs::read(&path).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        fs::write(&path, bytes).unwrap();
    }
    backup(&world, "metadata", 1_700_000_005, "--chunk-size 128");
    let wrong = ["backup", "root.pxar:tree", "--dry-run", "--change-detection-mode", "some"];
    let run = world.run(wrong);
    run.assert_failed("some");
    run.says("'change-detection-mode': 'some' is none of legacy, data, metadata");
}

#[test]
fn a_server_lends_what_is_unchanged() {
    let served = Served::new();
    tree(&served.world);
    let line =
        "backup root.pxar:tree --backup-id me --chunk-size 64 --change-detection-mode metadata";
    served.ok(&format!("{line} --backup-time 1700000000"));
    let mut seen = served.log().len();
    let run = served.ok(&format!("{line} --backup-time 1700000001"));
    assert!(reused(&run), "{}", run.stderr);
    let requests = served.requests(&mut seen);
    let sent = requests.iter().filter(|(_, target)| target.starts_with("/dynamic_chunk")).count();
    let index = fs::read(served.world.repo().join(FIRST).join("root.ppxar.didx")).unwrap();
    let chunks = keepwell_model::Index::parse_dynamic(index).unwrap().len();
    assert!(sent * 4 < chunks, "{sent} chunks of {chunks} were sent");
    served.ok("restore host/me root.pxar restored");
    let same = Command::new("diff")
        .args(["-r", "--no-dereference"])
        .arg(served.world.path("tree"))
        .arg(served.world.path("restored"))
        .status();
    assert!(same.unwrap().success());
}

/// What is away for a moment while others are backed up is in the snapshot as it was, or not at all, and
/// never zeros from then on.
#[test]
fn what_vanishes_for_a_moment_does_not_become_zeros() {
    let world = World::new();
    for file in 0..4u64 {
        world.write(&format!("tree/a/large{file}"), noise(file, 12 << 20));
    }
    for file in 0..600u64 {
        world.write(&format!("tree/z/s{file:03}"), format!("content {file}"));
    }
    let backup = |time: u64| {
        let mut command = world.command();
        command.args(["backup", "root.pxar:tree", "--backup-id", "me", "--backup-time"]);
        command.arg(time.to_string()).args(["--change-detection-mode", "metadata"]);
        command
    };
    assert!(backup(1_700_000_000).output().unwrap().status.success());
    fs::create_dir(world.path("hide")).unwrap();
    let names: Vec<String> = (300..400).map(|file| format!("s{file}")).collect();
    for (turn, delay) in [20, 60, 120, 200].into_iter().enumerate() {
        for file in 0..4u64 {
            fs::write(
                world.path(&format!("tree/a/large{file}")),
                noise(9 + file + delay, 12 << 20),
            )
            .unwrap();
        }
        let mut child = backup(1_700_000_001 + turn as u64).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(delay));
        let go = |from: &str, to: &str| {
            for name in &names {
                fs::rename(world.path(from).join(name), world.path(to).join(name)).unwrap();
            }
        };
        go("tree/z", "hide");
        assert!(child.wait().unwrap().success());
        go("hide", "tree/z");
        world.ok(&format!("restore {} root.pxar out{turn}", at(1 + turn as u64)));
        for name in &names {
            let restored = fs::read(world.path(&format!("out{turn}/z/{name}")));
            let source = fs::read(world.path(&format!("tree/z/{name}"))).unwrap();
            assert!(restored.is_err() || restored.is_ok_and(|bytes| bytes == source), "{name}");
        }
    }
    assert!(backup(1_700_000_010).output().unwrap().status.success());
    world.ok("restore host/me root.pxar last");
    let same =
        Command::new("diff").arg("-r").arg(world.path("tree")).arg(world.path("last")).status();
    assert!(same.unwrap().success());
}
