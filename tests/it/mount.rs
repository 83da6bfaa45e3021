//! Archives and repositories as file systems, and images as block devices.

use crate::golden::{compare, golden_world, manifest_of, only_nodump};
use crate::served::{PASSWORD, Served, USER};
use crate::support::{Run, World, golden_tree, needs_root, noise, skipped};
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Whether file systems can be mounted here.
fn can_mount() -> bool {
    if !Path::new("/dev/fuse").exists() {
        skipped("mounting needs /dev/fuse");
        return false;
    }
    needs_root("mounting")
}

/// A mount point that nothing stays mounted on.
struct Point(PathBuf);

impl Point {
    fn new(world: &World, name: &str) -> Self {
        let path = world.path(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn is_mounted(&self) -> bool {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        mounts.lines().any(|line| line.split(' ').nth(1) == self.0.to_str())
    }

    fn unmount(&self) {
        let run = Command::new("umount").arg(&self.0).output().unwrap();
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    }
}

impl Drop for Point {
    fn drop(&mut self) {
        if self.is_mounted() {
            let _ = Command::new("umount").arg("-l").arg(&self.0).status();
        }
    }
}

fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Equal to the source tree, as the golden comparer sees it, while others read in it.
#[test]
fn a_mounted_golden_snapshot_is_the_source_tree() {
    if !can_mount() {
        return;
    }
    let Some((shared, _)) = golden_tree() else { return };
    let world = golden_world(&shared);
    let point = Point::new(&world, "golden");
    let target = point.0.display();
    world.ok(&format!("mount host/plain/2023-11-14T22:13:20Z root.pxar {target}"));
    let readers: Vec<_> = (0..8)
        .map(|_| {
            let mut tar = Command::new("tar");
            tar.args(["--xattrs", "--acls", "-cf", "/dev/null", "-C"]).arg(&point.0).arg(".");
            tar.spawn().unwrap()
        })
        .collect();
    let ours = world.path("ours.jsonl");
    manifest_of(&shared, &point.0, &ours);
    for mut reader in readers {
        assert!(reader.wait().unwrap().success());
    }
    // What the reference restored, but for a flag that it does not restore.
    let restored = shared.join("restore/plain.manifest.jsonl");
    let differences = compare(&shared, &restored, &ours);
    assert!(only_nodump(&differences), "{differences:#?}");
    let differences = compare(&shared, &shared.join("tree.manifest.jsonl"), &ours);
    // What its exclude files leave out, and flags that the format has no place for.
    let known = ["excl/", "'flags/d-T'", "'flags/f-s'", "'flags/f-u'"];
    let is_known = |line: &String| known.iter().any(|known| line.contains(known));
    assert!(differences.iter().all(is_known), "{differences:#?}");
    point.unmount();
}

fn world() -> World {
    let world = World::new();
    world.write("tree/a", "one");
    world.write("tree/b/c", noise(1, 9 << 20));
    world.write("tree/b/empty", "");
    fs::hard_link(world.path("tree/a"), world.path("tree/b/a-again")).unwrap();
    world.write("disk", noise(2, 5 << 20));
    world.write("app.conf", "key = value\n");
    world.ok(
        "backup root.pxar:tree disk.img:disk app.conf:app.conf --backup-id me --backup-time 1700000000",
    );
    world.ok("backup root.pxar:tree --backup-id fine --backup-time 1700000000 --chunk-size 256");
    world
}

#[test]
fn a_mount_ends_with_umount_or_a_signal() {
    if !can_mount() {
        return;
    }
    let world = world();
    let point = Point::new(&world, "by-umount");
    let mount = format!("mount host/me root.pxar {}", point.0.display());
    let run = world.ok(&mount);
    assert_eq!((&*run.stdout, &*run.stderr), ("", ""));
    assert_eq!(fs::read(point.0.join("b/c")).unwrap(), noise(1, 9 << 20));
    let names = |name: &str| fs::metadata(point.0.join(name)).unwrap();
    assert_eq!((names("a").nlink(), names("a").ino()), (2, names("b/a-again").ino()));
    assert_eq!(names("b/c").nlink(), 1);
    let refused = fs::write(point.0.join("new"), "x").unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    assert!(!point.0.join("nothing").exists());
    point.unmount();

    // While somebody uses it.
    world.ok(&mount);
    let open = fs::File::open(point.0.join("b/c")).unwrap();
    let pid = serving(&point.0);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    wait("it is unmounted", || !point.is_mounted());
    wait("its process ends", || rustix::process::test_kill_process(pid).is_err());
    assert!(open.read_at(&mut [0; 10], 5 << 20).is_err());
}

/// The process that serves a mount point: the one with its path among its words.
fn serving(point: &Path) -> rustix::process::Pid {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let mut serving = numbers.filter(|pid| {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut words = words.split(|byte| *byte == 0);
        words.any(|word| word == point.as_os_str().as_encoded_bytes())
    });
    rustix::process::Pid::from_raw(serving.next().unwrap()).unwrap()
}

#[test]
fn what_can_not_be_mounted_is_told_by_who_was_asked() {
    if !can_mount() {
        return;
    }
    let world = world();
    let point = Point::new(&world, "none");
    world.ok("key create my.key --kdf none");
    world.ok("backup root.pxar:tree --backup-id enc --keyfile my.key");
    world.fails("mount host/you root.pxar none").says("host/you");
    world.fails("mount host/me other.pxar none").says("other.pxar");
    world.fails("mount host/me root.pxar nowhere").says("unable to mount on 'nowhere'");
    world.fails("mount host/me root.pxar disk").says("it is no directory");
    world.fails("mount host/enc root.pxar none").says("Give the key with --keyfile");
    world.fails("mount host/me root.pxar").says("use mount SNAPSHOT ARCHIVE TARGET");
    world.fails("mount --all none more").says("use mount --all TARGET");
    world.fails("mount --all none --ns a/b").says("a/b");
    assert!(!point.is_mounted());
    world.ok("mount host/enc root.pxar none --keyfile my.key");
    assert_eq!(fs::read(point.0.join("a")).unwrap(), b"one");
    point.unmount();
}

#[test]
fn damage_is_an_error_of_what_it_hits() {
    if !can_mount() {
        return;
    }
    let world = world();
    let index =
        fs::read(world.repo().join("host/fine/2023-11-14T22:13:20Z/root.pxar.didx")).unwrap();
    let index = keepwell_model::Index::parse_dynamic(index).unwrap();
    let point = Point::new(&world, "damaged");
    let remove = |position: usize| {
        let digest = index.chunk(position).unwrap().digest.to_string();
        fs::remove_file(world.repo().join(".chunks").join(&digest[..4]).join(&digest)).unwrap();
    };
    // In the large file.
    remove(index.len() / 2);
    world.ok(&format!("mount host/fine root.pxar {}", point.0.display()));
    let error = fs::read(point.0.join("b/c")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(5));
    assert_eq!(fs::read(point.0.join("a")).unwrap(), b"one");
    point.unmount();
    // What the root says of itself.
    remove(0);
    world.ok(&format!("mount host/fine root.pxar {}", point.0.display()));
    assert!(fs::read_dir(&point.0).is_ok());
    assert_eq!(fs::read(point.0.join("a")).unwrap_err().raw_os_error(), Some(5));
    point.unmount();
}

#[test]
fn all_backups_are_directories() {
    if !can_mount() {
        return;
    }
    let world = world();
    world.ok("namespace create office");
    world.ok("namespace create office/host");
    world.ok("backup root.pxar:tree --ns office/host --backup-id deep --backup-time 1700000000");
    world.ok("key create my.key --kdf none");
    world.ok("backup root.pxar:tree --backup-id enc --keyfile my.key --backup-time 1700000000");
    let point = Point::new(&world, "all");
    world.ok(&format!("mount --all {}", point.0.display()));
    let names = |path: &str| {
        let entries = fs::read_dir(point.0.join(path)).unwrap().flatten();
        let mut names: Vec<String> =
            entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert_eq!(names(""), ["host", "office"]);
    assert_eq!(names("host"), ["enc", "fine", "me"]);
    let me = "host/me/2023-11-14T22:13:20Z";
    assert_eq!(names(me), ["app.conf", "disk.img", "root.pxar"]);
    assert_eq!(fs::read(point.0.join(me).join("disk.img")).unwrap(), noise(2, 5 << 20));
    assert_eq!(fs::read(point.0.join(me).join("app.conf")).unwrap(), b"key = value\n");
    assert_eq!(fs::read(point.0.join(me).join("root.pxar/b/c")).unwrap(), noise(1, 9 << 20));
    assert_eq!(fs::metadata(point.0.join(me)).unwrap().mtime(), 1_700_000_000);
    let deep = "office/ns:host/host/deep/2023-11-14T22:13:20Z/root.pxar";
    assert_eq!(names(deep), ["a", "b"]);
    let locked = fs::read_dir(point.0.join("host/enc/2023-11-14T22:13:20Z/root.pxar"));
    assert_eq!(locked.unwrap_err().raw_os_error(), Some(126), "ENOKEY");
    // What comes later is there, too.
    world.ok("backup root.pxar:tree --backup-id new --backup-time 1700000000");
    wait("the new group", || names("host") == ["enc", "fine", "me", "new"]);
    // More archives than are kept open.
    for time in 1..12 {
        world.ok(&format!("backup root.pxar:tree --backup-id many --backup-time {time}"));
    }
    wait("the new group", || names("host").len() == 5);
    for _ in 0..2 {
        for snapshot in names("host/many") {
            let file = point.0.join("host/many").join(snapshot).join("root.pxar/a");
            assert_eq!(fs::read(file).unwrap(), b"one");
        }
    }
    point.unmount();
}

#[test]
fn an_image_is_a_file_and_a_block_device() {
    if !can_mount() {
        return;
    }
    let world = world();
    let point = Point::new(&world, "image");
    world.ok(&format!("mount host/me disk.img {}", point.0.display()));
    assert_eq!(fs::read(point.0.join("disk.img")).unwrap(), noise(2, 5 << 20));
    point.unmount();

    world.fails("map host/me root.pxar").says("use the 'mount' command");
    world.fails("map host/me app.conf").says("Can only mount/map pxar archives and drive images.");
    world.fails("map host/me other.img").says("other.img");
    world.fails("unmap /dev/loop9999").says("nothing mapped to /dev/loop9999");
    world.fails("unmap nothing").says("no mapping for name 'nothing' found");
    if !Path::new("/dev/loop-control").exists() {
        return skipped("mapping needs loop devices");
    }
    let name = format!("{}:host/me/disk.img", world.repo().display());
    let said = world.ok("map host/me disk.img").stdout;
    let device = said.strip_prefix(&format!("Image '{name}' mapped on ")).unwrap().trim();
    assert_eq!(fs::read(device).unwrap(), noise(2, 5 << 20));
    world.fails("map host/me disk.img").says("already mapped, cannot map twice");
    let listed = world.ok("unmap").stdout;
    assert!(listed.contains(&format!("{device}:\t{name}\n")), "{listed}");
    world.ok(&format!("unmap {device}"));
    assert!(!world.ok("unmap").stdout.contains(&name));
    // By name, and after its process died.
    world.ok("map host/me disk.img");
    world.ok(&format!("unmap {name}"));
    world.ok("map host/me disk.img");
    let pids = fs::read_dir("/run/pbs-loopdev").unwrap().flatten();
    let tag = world.repo().display().to_string().replace('/', "-");
    let pid = pids
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&*tag))
        .find(|entry| entry.file_name().to_string_lossy().ends_with(".pid"))
        .map(|entry| fs::read_to_string(entry.path()).unwrap().parse().unwrap());
    let pid = rustix::process::Pid::from_raw(pid.unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    wait("it is gone", || rustix::process::test_kill_process(pid).is_err());
    let said = world.ok("map host/me disk.img").stdout;
    assert!(said.contains("mapped on"), "{said}");
    world.ok(&format!("unmap {name}"));
}

/// Several at once, in several namespaces, and never away from who uses it.
#[test]
fn maps_keep_out_of_each_others_way() {
    if !can_mount() || !Path::new("/dev/loop-control").exists() {
        return;
    }
    let world = world();
    world.ok("namespace create n1");
    world.write("other", noise(9, 3 << 20));
    world.ok("backup disk.img:other --backup-id me --ns n1 --backup-time 1700000000");
    let maps: Vec<_> = (0..4)
        .map(|_| {
            let mut command = world.command();
            command.args(["map", "host/me", "disk.img"]);
            command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
            command.spawn().unwrap()
        })
        .collect();
    let runs: Vec<Run> =
        maps.into_iter().map(|map| map.wait_with_output().unwrap().into()).collect();
    let (won, lost): (Vec<_>, Vec<_>) = runs.iter().partition(|run| run.code == Some(0));
    assert_eq!(won.len(), 1, "{:?}", runs.iter().map(|run| &run.stderr).collect::<Vec<_>>());
    lost.iter().for_each(|run| {
        run.says("already mapped, cannot map twice");
    });
    let device = won[0].stdout.trim().rsplit(' ').next().unwrap().to_owned();
    assert_eq!(fs::read(&device).unwrap(), noise(2, 5 << 20));
    let other = world.ok("map host/me disk.img --ns n1").stdout;
    let other = other.trim().rsplit(' ').next().unwrap().to_owned();
    assert_eq!(fs::read(&other).unwrap(), noise(9, 3 << 20));
    world.ok(&format!("unmap {other}"));
    let open = fs::File::open(&device).unwrap();
    world.fails(&format!("unmap {device}")).says("has it open");
    drop(open);
    world.ok(&format!("unmap {device}"));
    world.run(["unmap", ""]).assert_failed("no name");
}

#[test]
fn a_mount_holds_nothing_of_its_callers() {
    if !can_mount() {
        return;
    }
    let world = world();
    let point = Point::new(&world, "held");
    // A lock of a script that goes on.
    let script = format!(
        "exec 9>lock; flock 9; {} mount host/me root.pxar held; exec 9>&-; flock -n lock true",
        env!("CARGO_BIN_EXE_keepwell")
    );
    let mut command = Command::new("sh");
    command.args(["-c", &script]).current_dir(world.path(""));
    for (name, value) in world.command().get_envs() {
        value.map(|value| command.env(name, value));
    }
    let run = command.output().unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    assert!(point.is_mounted());
    world.fails("mount host/me root.pxar held").says("something is mounted there");
    let pid = rustix::process::Pid::from_raw(
        fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
            .find(|pid| {
                let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                words.split(|byte| *byte == 0).any(|word| word == b"held")
            })
            .unwrap(),
    );
    rustix::process::kill_process(pid.unwrap(), rustix::process::Signal::KILL).unwrap();
    wait("it is gone", || fs::read_dir(&point.0).is_err());
    // What the kernel still knows of the root decides which error it is.
    world.fails("mount host/me root.pxar held").says("- `umount held` first");
}

/// Runs as the served user.
fn served_run(served: &Served, line: &str) -> Run {
    let mut command = served.client_of(USER, PASSWORD);
    let run = Run::from(command.args(line.split(' ')).output().unwrap());
    assert_eq!(run.code, Some(0), "{line}: {}", run.stderr);
    run
}

/// Over the network a small file costs three chunks at most, and a silent server an error.
#[test]
fn a_server_is_asked_for_little_and_not_waited_for_long() {
    if !can_mount() {
        return;
    }
    let mut served = Served::new();
    served.world.write("tree/a-large", noise(1, 6 << 20));
    served.world.write("tree/dir/small", noise(2, 4096));
    served.world.write("tree/z-large", noise(3, 6 << 20));
    served.ok("backup root.pxar:tree --backup-id me --chunk-size 64");
    let point = Point::new(&served.world, "remote");
    let mut seen = served.log().len();
    served_run(&served, &format!("mount host/me root.pxar {} --patience 2", point.0.display()));
    let chunks = |served: &Served, seen: &mut usize| {
        let requests = served.requests(seen).into_iter();
        let chunks = requests.filter(|(_, target)| target.starts_with("/chunk"));
        chunks.filter(|(_, target)| !target.is_empty()).count()
    };
    let before = chunks(&served, &mut seen);
    assert_eq!(fs::read(point.0.join("dir/small")).unwrap(), noise(2, 4096));
    let fetched = before + chunks(&served, &mut seen);
    // One more for the catalog, which tells about hard links.
    assert!((1..=4).contains(&fetched), "{fetched} chunks: {}", served.log());
    served.kill();
    let error = fs::read(point.0.join("z-large")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(5));
    served.start();
    // Nobody waits again for some seconds, and an idle mount holds no server up.
    wait("the server is asked again", || fs::read(point.0.join("z-large")).is_ok());
    assert_eq!(fs::read(point.0.join("z-large")).unwrap(), noise(3, 6 << 20));
    point.unmount();
}

/// An archive in a file is mounted, too, until somebody unmounts it.
#[test]
fn an_archive_file_is_mounted() {
    if !can_mount() {
        return;
    }
    let world = world();
    world.ok("pxar create root.pxar tree");
    let point = Point::new(&world, "file");
    let mut child = world.command().args(["pxar", "mount", "root.pxar", "file"]).spawn().unwrap();
    wait("it is mounted", || point.is_mounted());
    assert_eq!(fs::read(point.0.join("b/c")).unwrap(), noise(1, 9 << 20));
    assert_eq!(fs::metadata(point.0.join("b/a-again")).unwrap().nlink(), 2);
    point.unmount();
    assert!(child.wait().unwrap().success());
    world.write("none.pxar", "none");
    world.fails("pxar mount none.pxar file").says("none.pxar");
}
