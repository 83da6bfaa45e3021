//! What is backed up comes back the same.

use crate::support::{World, is_root, noise, skipped};
use keepwell_test_support::tree::{describe, differences};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;

/// A tree with something of everything that does not need root.
fn make_tree(root: &Path) {
    let name = |bytes: &[u8]| root.join(std::ffi::OsStr::from_bytes(bytes));
    fs::create_dir_all(root.join("deep/er/and/deeper")).unwrap();
    fs::create_dir(root.join("empty")).unwrap();
    fs::write(root.join("a"), b"").unwrap();
    fs::write(root.join("deep/er/one"), b"1").unwrap();
    fs::write(root.join("deep/er/and/noise"), noise(1, 3_000_000)).unwrap();
    fs::write(name(b"latin1-\xe9\xff"), b"odd").unwrap();
    fs::write(name(b"new\nline"), b"odd").unwrap();
    fs::hard_link(root.join("deep/er/one"), root.join("z-link")).unwrap();
    symlink("deep/er", root.join("to-dir")).unwrap();
    symlink("does/not/exist", root.join("dangling")).unwrap();
    let sparse = fs::File::create(root.join("sparse")).unwrap();
    sparse.write_all_at(b"head", 0).unwrap();
    sparse.write_all_at(&noise(2, 5000), 3 << 20).unwrap();
    sparse.set_len(9 << 20).unwrap();
    fs::set_permissions(root.join("a"), fs::Permissions::from_mode(0o4751)).unwrap();
    fs::set_permissions(root.join("empty"), fs::Permissions::from_mode(0o1777)).unwrap();
    let fifo = root.join("fifo");
    let mode = rustix::fs::Mode::from_raw_mode(0o640);
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap();
    let _ = rustix::fs::setxattr(
        root.join("deep/er/one"),
        "user.note",
        b"kept",
        rustix::fs::XattrFlags::empty(),
    );
}

#[test]
fn a_tree_comes_back_the_same() {
    let world = World::new();
    let tree = world.path("tree");
    make_tree(&tree);
    let before = describe(&tree);
    world.ok("backup root.pxar:tree --backup-id me");
    assert_eq!(differences(&before, &describe(&tree)), Vec::<String>::new(), "source is as it was");
    world.ok("restore host/me root.pxar out");
    assert_eq!(differences(&before, &describe(&world.path("out"))), Vec::<String>::new());
}

#[test]
fn holes_are_not_read_and_come_back_as_holes() {
    use std::os::unix::fs::MetadataExt;
    let world = World::new();
    // A terabyte of nothing: reading it would take hours.
    let file = fs::File::create(world.path("disk")).unwrap();
    file.write_all_at(b"begin", 0).unwrap();
    file.write_all_at(b"end", (3 << 30) - 3).unwrap();
    world.ok("backup disk.img:disk --backup-id big");
    world.ok("restore host/big disk.img out");
    let restored = fs::metadata(world.path("out")).unwrap();
    assert_eq!(restored.len(), 3 << 30);
    assert!(restored.blocks() * 512 < 1 << 20, "{} blocks", restored.blocks());
    let out = fs::File::open(world.path("out")).unwrap();
    let mut bytes = [0; 5];
    out.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"begin");
    out.read_exact_at(&mut bytes[..3], (3 << 30) - 3).unwrap();
    assert_eq!(&bytes[..3], b"end");
}

#[test]
fn the_second_backup_stores_only_what_changed() {
    let world = World::new();
    fs::create_dir(world.path("tree")).unwrap();
    let mut data = noise(3, 30 << 20);
    world.write("tree/data", &data);
    world.ok("backup root.pxar:tree --backup-id me --backup-time 1000");
    let again =
        world.ok("backup root.pxar:tree --backup-id me --backup-time 1001 --output-format json");
    assert_eq!(again.json()["new-chunks"], 0);
    // A change in the middle, and one that moves everything behind it.
    data[15 << 20] ^= 1;
    data.splice(1000..1000, *b"inserted");
    fs::write(world.path("tree/data"), &data).unwrap();
    let third =
        world.ok("backup root.pxar:tree --backup-id me --backup-time 1002 --output-format json");
    let (all, new) =
        (third.json()["chunks"].as_u64().unwrap(), third.json()["new-chunks"].as_u64().unwrap());
    assert!(new <= 3 && all >= 5, "{new} of {all}");
    // Expecting the chunks of the previous snapshot must give the cut points of a first backup.
    world.ok("backup root.pxar:tree --backup-id other --backup-time 1000");
    let index = |group: &str, time: &str| {
        let bytes =
            fs::read(world.repo().join(format!("host/{group}/{time}/root.pxar.didx"))).unwrap();
        keepwell_model::Index::parse_dynamic(bytes).unwrap().checksum()
    };
    assert_eq!(index("me", "1970-01-01T00:16:42Z"), index("other", "1970-01-01T00:16:40Z"));
    world.ok("restore host/me root.pxar out");
    assert!(fs::read(world.path("out/data")).unwrap() == data);
}

#[test]
fn several_archives_make_one_snapshot() {
    let world = World::new();
    world.write("tree/file", b"content");
    world.write("disk", noise(4, 5_000_001));
    world.write("app.conf", b"key = value\n");
    world.write("run.log", b"");
    let run = world.ok(
        "backup root.pxar:tree drive.img:disk app.conf:app.conf run.log:run.log --backup-type vm --backup-id 7",
    );
    run.says("Upload image 'disk' to")
        .says("Upload config file 'app.conf'")
        .says("Upload log file 'run.log'");
    for (archive, source) in
        [("drive.img", "disk"), ("app.conf", "app.conf"), ("run.log", "run.log")]
    {
        world.ok(&format!("restore vm/7 {archive} out-{archive}"));
        let restored = fs::read(world.path(&format!("out-{archive}"))).unwrap();
        assert!(restored == fs::read(world.path(source)).unwrap(), "{archive}");
    }
    let raw = world.ok("restore vm/7 root.pxar -").stdout_bytes;
    world.write("raw.pxar", raw);
    world.ok("pxar extract raw.pxar x");
    assert_eq!(fs::read(world.path("x/file")).unwrap(), b"content");
}

#[test]
fn an_image_comes_from_a_pipe_and_from_a_block_device() {
    let world = World::new();
    let data = noise(5, 9_000_000);
    world.write("data", &data);
    let mut cat = std::process::Command::new("cat")
        .arg(world.path("data"))
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut command = world.command();
    command.args(["backup", "d.img:/dev/stdin", "--backup-id", "pipe"]);
    let output = command.stdin(cat.stdout.take().unwrap()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    cat.wait().unwrap();
    world.ok("restore host/pipe d.img out");
    assert!(fs::read(world.path("out")).unwrap() == data);
    if !is_root() {
        skipped("a loop device needs root");
        return;
    }
    let disk = world.write("disk", noise(6, 6 << 20));
    let attached = std::process::Command::new("losetup").args(["-f", "--show"]).arg(&disk).output();
    let Ok(attached) = attached.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned())
    else {
        return skipped("there is no losetup");
    };
    if attached.is_empty() {
        skipped("there is no loop device");
        return;
    }
    let run = world.run(["backup", &format!("disk.img:{attached}"), "--backup-id", "block"]);
    std::process::Command::new("losetup").args(["-d", &attached]).status().unwrap();
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    world.ok("restore host/block disk.img disk-out");
    assert!(fs::read(world.path("disk-out")).unwrap() == fs::read(disk).unwrap());
}

#[test]
fn a_copy_of_usr_comes_back_the_same() {
    let world = World::new();
    let source = Path::new("/usr/share/doc");
    if !source.is_dir() || !is_root() {
        skipped("a copy of system files needs root and /usr/share/doc");
        return;
    }
    world.ok("backup root.pxar:/usr/share/doc --backup-id usr");
    world.ok("restore host/usr root.pxar out");
    assert_eq!(differences(&describe(source), &describe(&world.path("out"))), Vec::<String>::new());
}

#[test]
fn what_may_not_be_changed_is_replaced_all_the_same() {
    if !crate::support::needs_root("chattr") {
        return;
    }
    let world = World::new();
    world.write("tree/a", b"1");
    let chattr = |flag: &str, name: &str| {
        let ran = std::process::Command::new("chattr").arg(flag).arg(world.path(name)).status();
        assert!(ran.unwrap().success(), "chattr {flag} {name}");
    };
    chattr("+a", "tree/a");
    assert!(rustix_mknod(&world.path("tree/pipe")));
    world.ok("backup root.pxar:tree --backup-id me");
    world.ok("restore host/me root.pxar out");
    chattr("-a", "out/a");
    world.ok("restore host/me root.pxar out --allow-existing-dirs --overwrite");
    chattr("-a", "out/a");
    chattr("-a", "tree/a");
    let mut names: Vec<_> =
        std::fs::read_dir(world.path("out")).unwrap().flatten().map(|e| e.file_name()).collect();
    names.sort();
    assert_eq!(names, ["a", "pipe"]);
}

fn rustix_mknod(path: &std::path::Path) -> bool {
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0).is_ok()
}

#[test]
fn a_pattern_that_selects_nothing_is_an_error() {
    let world = World::new();
    world.write("tree/a", b"1");
    world.write("disk", vec![1; 4096]);
    world.ok("backup root.pxar:tree disk.img:disk --backup-id me");
    world.fails("restore host/me root.pxar out --pattern nothing").says("matches --pattern");
    world.fails("restore host/me disk.img img --pattern a").says("one file");
    assert!(!world.path("img").exists());
}

/// What has a name in the target already is not the archive's file of that name.
#[test]
fn a_hard_link_is_never_made_to_a_foreign_file() {
    let world = World::new();
    world.write("tree/a", b"archived");
    fs::hard_link(world.path("tree/a"), world.path("tree/b")).unwrap();
    world.ok("backup root.pxar:tree --backup-id me");
    for options in ["--pattern b", "--pattern b --allow-existing-dirs --overwrite"] {
        let _ = fs::remove_dir_all(world.path("out"));
        world.write("out/a", b"mine");
        world.ok(&format!("restore host/me root.pxar out {options}"));
        assert_eq!(fs::read(world.path("out/b")).unwrap(), b"archived");
        assert_eq!(fs::read(world.path("out/a")).unwrap(), b"mine");
    }
    // Further names are links to the first that was selected.
    fs::hard_link(world.path("tree/a"), world.path("tree/c")).unwrap();
    world.ok("backup root.pxar:tree --backup-id more");
    world.ok("restore host/more root.pxar linked --pattern [bc]");
    assert_eq!(fs::read(world.path("linked/c")).unwrap(), b"archived");
    let links = |name: &str| {
        use std::os::unix::fs::MetadataExt;
        fs::metadata(world.path(name)).unwrap().nlink()
    };
    assert_eq!(links("linked/b"), 2);
    assert!(!world.path("linked/a").exists());
    fs::remove_file(world.path("out/b")).unwrap();
    let run = world.fails("restore host/me root.pxar out --keep-going");
    run.says("\"a\": failed to create file").says("one more name of \"a\", which was not restored");
    assert!(!world.path("out/b").exists());
    world.ok("restore host/me root.pxar out --overwrite");
    assert_eq!(fs::read(world.path("out/b")).unwrap(), b"archived");
}
