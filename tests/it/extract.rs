//! Single files and directories come out of an archive without the rest of it.

use crate::support::{World, noise};
use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;

/// A tree with hard links, of which some lie elsewhere, between two large files.
fn world() -> World {
    let world = World::new();
    world.write("tree/a-large", noise(1, 2 << 20));
    world.write("tree/etc/fstab", "fstab\n");
    world.write("tree/etc/deep/x.conf", "x\n");
    world.write("tree/home/me/small", noise(2, 4096));
    world.write("tree/z-large", noise(3, 2 << 20));
    fs::hard_link(world.path("tree/etc/fstab"), world.path("tree/home/me/linked")).unwrap();
    fs::hard_link(world.path("tree/etc/fstab"), world.path("tree/home/me/more")).unwrap();
    std::os::unix::fs::symlink("fstab", world.path("tree/etc/link")).unwrap();
    fs::set_permissions(world.path("tree/etc"), fs::Permissions::from_mode(0o710)).unwrap();
    world.ok("backup root.pxar:tree --backup-id me --chunk-size 64 --backup-time 1700000000");
    world
}

fn mode(world: &World, path: &str) -> u32 {
    fs::symlink_metadata(world.path(path)).unwrap().mode() & 0o7777
}

#[test]
fn files_and_directories_come_out_under_their_paths() {
    let world = world();
    fs::create_dir(world.path("out")).unwrap();
    fs::set_permissions(world.path("out"), fs::Permissions::from_mode(0o750)).unwrap();
    world.ok("extract host/me root.pxar etc/deep /home/me/small home/me/linked home/me/more etc/link --to out");
    assert_eq!(fs::read(world.path("out/etc/deep/x.conf")).unwrap(), b"x\n");
    assert_eq!(fs::read(world.path("out/home/me/small")).unwrap(), noise(2, 4096));
    assert_eq!(fs::read_link(world.path("out/etc/link")).unwrap().to_str(), Some("fstab"));
    assert!(!world.path("out/etc/fstab").exists() && !world.path("out/a-large").exists());
    assert_eq!(mode(&world, "out/etc"), 0o710, "directories above have their metadata");
    assert_eq!(mode(&world, "out"), 0o750, "the target is the user's");
    // The first name was not asked for: its content comes under the second.
    assert_eq!(fs::read(world.path("out/home/me/linked")).unwrap(), b"fstab\n");
    let inode = |path: &str| fs::metadata(world.path(path)).unwrap().ino();
    assert_eq!(inode("out/home/me/linked"), inode("out/home/me/more"));

    world.ok("extract host/me root.pxar home etc/fstab home/me --to both");
    let inode = |path: &str| fs::metadata(world.path(path)).unwrap().ino();
    assert_eq!(inode("both/home/me/linked"), inode("both/etc/fstab"), "in the archive's order");
    world.ok("extract host/me root.pxar / --to all");
    assert_eq!(fs::read(world.path("all/z-large")).unwrap(), noise(3, 2 << 20));
}

#[test]
fn a_file_and_a_tar_go_to_stdout() {
    let world = world();
    let run = |arguments: &str| world.ok(arguments).stdout_bytes;
    assert_eq!(run("extract host/me root.pxar home/me/small --to -"), noise(2, 4096));
    assert_eq!(run("extract host/me root.pxar home/me/linked --to -"), b"fstab\n");
    let tar = run("extract host/me root.pxar etc home/me/small --to -");
    let mut names = Vec::new();
    for entry in tar::Archive::new(&tar[..]).entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        names.push((entry.path().unwrap().display().to_string(), content.len()));
    }
    names.sort();
    let expected = [
        ("etc", 0),
        ("etc/deep", 0),
        ("etc/deep/x.conf", 2),
        ("etc/fstab", 6),
        ("etc/link", 0),
        ("home/me/small", 4096),
    ];
    assert_eq!(names, expected.map(|(name, length)| (name.to_owned(), length)));
}

/// The end of the archive with the table of the root, that of a directory, and the file.
#[test]
fn a_small_file_needs_three_chunks_at_most() {
    let world = world();
    let index = world.repo().join("host/me/2023-11-14T22:13:20Z/root.pxar.didx");
    let index = keepwell_model::Index::parse_dynamic(fs::read(index).unwrap()).unwrap();
    let mut needed = 0;
    for chunk in index.chunks() {
        let digest = chunk.digest.to_string();
        let file = world.repo().join(".chunks").join(&digest[..4]).join(&digest);
        let away = file.with_extension("away");
        fs::rename(&file, &away).unwrap();
        let run = world.run("extract host/me root.pxar home/me/small --to -".split(' '));
        needed += usize::from(run.code != Some(0));
        fs::rename(&away, &file).unwrap();
    }
    assert!(index.len() > 20, "{} chunks", index.len());
    assert!((1..=3).contains(&needed), "{needed} of {} chunks", index.len());
}

#[test]
fn what_is_not_there_is_told_before_anything_is_written() {
    let world = world();
    let run = world.fails("extract host/me root.pxar etc/fstab etc/nothing --to out");
    run.says("there is no \"etc/nothing\" in the archive");
    assert!(!world.path("out").exists());
    world.fails("extract host/me root.pxar etc/fstab/x --to out").says("there is no");
    world.fails("extract host/me root.pxar ../etc --to out").says("has a '..'");
    world.fails("extract host/me other.pxar etc --to out").says("other.pxar");
    world.fails("extract host/me root.pxar nothing --to -").says("there is no \"nothing\"");
    world.fails("extract host/me root.pxar etc").says("--to");
    let run = world.run(["extract", "host/me", "root.pxar", "", "--to", "out2"]);
    run.assert_failed("an empty path");
    run.says("a path is empty");
    world.write("disk", noise(1, 4096));
    world.ok("backup disk.img:disk --backup-id image");
    for path in ["/", "disk", "disk.img"] {
        world.fails(&format!("extract host/image disk.img {path} --to out2")).says("use `restore`");
    }
    assert!(!world.path("out2").exists());
    world.ok("extract host/me root.pxar etc/fstab --to out");
    world.fails("extract host/me root.pxar etc/fstab --to out").says("File exists");
    // What lies above what is asked for stays as it is.
    fs::set_permissions(world.path("out/etc"), fs::Permissions::from_mode(0o701)).unwrap();
    world.ok("extract host/me root.pxar etc/fstab --to out --allow-existing-dirs --overwrite");
    assert_eq!(mode(&world, "out/etc"), 0o701);
}

/// A tar says as much as it can: links, extended attributes, fractions of seconds.
#[test]
fn a_tar_has_links_attributes_and_exact_times() {
    let world = world();
    let file = world.path("tree/etc/deep/x.conf");
    rustix::fs::setxattr(&file, "user.keepwell", b"value", rustix::fs::XattrFlags::empty())
        .unwrap();
    let time = std::time::UNIX_EPOCH + std::time::Duration::new(1000, 5);
    fs::File::options().write(true).open(&file).unwrap().set_modified(time).unwrap();
    drop(std::os::unix::net::UnixListener::bind(world.path("tree/etc/socket")).unwrap());
    world.ok("backup root.pxar:tree --backup-id me --backup-time 1700000001");
    let run = world.ok("extract host/me root.pxar etc home --to -");
    run.says("can't hold them: 1 sockets");
    world.write("x.tar", &run.stdout_bytes);
    fs::create_dir(world.path("untarred")).unwrap();
    let untar = std::process::Command::new("tar")
        .args(["--xattrs", "-xf"])
        .arg(world.path("x.tar"))
        .arg("-C")
        .arg(world.path("untarred"))
        .status();
    assert!(untar.unwrap().success());
    let made = world.path("untarred/etc/deep/x.conf");
    let mut value = [0u8; 16];
    let length = rustix::fs::getxattr(&made, "user.keepwell", &mut value).unwrap();
    assert_eq!(&value[..length], b"value");
    assert_eq!(fs::metadata(&made).unwrap().modified().unwrap(), time);
    let inode = |path: &str| fs::metadata(world.path(path)).unwrap().ino();
    assert_eq!(inode("untarred/home/me/linked"), inode("untarred/etc/fstab"));
    assert!(!world.path("untarred/etc/socket").exists());
}

/// Where the way to a path is damaged, what a walk finds of it is restored; and damage is told with
/// the file's name.
#[test]
fn damage_is_named_and_walked_around() {
    let world = world();
    let index = world.repo().join("host/me/2023-11-14T22:13:20Z/root.pxar.didx");
    let index = keepwell_model::Index::parse_dynamic(fs::read(index).unwrap()).unwrap();
    let file = |position: usize| {
        let digest = index.chunk(position).unwrap().digest.to_string();
        world.repo().join(".chunks").join(&digest[..4]).join(&digest)
    };
    // The table of the root is at the end.
    let (last, away) = (file(index.len() - 1), world.path("away"));
    fs::rename(&last, &away).unwrap();
    world.fails("extract host/me root.pxar etc --to plain").says("Use --keep-going");
    let run = world.fails("extract host/me root.pxar etc --to going --keep-going");
    run.says("the restore is not complete").lacks("Use --keep-going");
    assert_eq!(fs::read(world.path("going/etc/fstab")).unwrap(), b"fstab\n");
    assert!(!world.path("going/home").exists());
    fs::rename(&away, &last).unwrap();
    fs::remove_file(file(index.len() / 4)).unwrap();
    let run = world.fails("extract host/me root.pxar a-large etc --to -");
    run.says("a-large").says("chunk").lacks("write 'the tar'");
    let run = world.fails("extract host/me root.pxar a-large --to - --keep-going");
    run.says("can't be used");
}

#[test]
fn a_target_that_is_there_stays_as_it_is_where_something_is_chosen() {
    let world = world();
    fs::create_dir(world.path("out")).unwrap();
    fs::set_permissions(world.path("out"), fs::Permissions::from_mode(0o1777)).unwrap();
    world.ok("restore host/me root.pxar out --pattern etc/fstab");
    assert_eq!(mode(&world, "out"), 0o1777);
    world.ok("restore host/me root.pxar new --pattern etc/fstab");
    assert_eq!(mode(&world, "new"), mode(&world, "tree"));
}

/// Names that are long, and no text, are in a tar as they are.
#[test]
fn long_and_odd_names_are_in_a_tar() {
    use std::os::unix::ffi::OsStrExt;
    let world = World::new();
    let odd = std::ffi::OsStr::from_bytes(b"\xff\n");
    let (dir, name) = (world.path("tree").join(odd), "d".repeat(120));
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join(&name), "content").unwrap();
    fs::write(dir.join("a".repeat(98 - 3)), "just fits").unwrap();
    std::os::unix::fs::symlink(odd, dir.join("link")).unwrap();
    std::os::unix::fs::symlink("t".repeat(300), dir.join("long")).unwrap();
    fs::hard_link(dir.join(&name), dir.join("e".repeat(200))).unwrap();
    world.ok("backup root.pxar:tree --backup-id me");
    let run = world.ok("extract host/me root.pxar / --to -");
    world.write("x.tar", &run.stdout_bytes);
    fs::create_dir(world.path("out")).unwrap();
    let mut untar = std::process::Command::new("tar");
    untar.arg("-xf").arg(world.path("x.tar")).arg("-C").arg(world.path("out"));
    assert!(untar.status().unwrap().success());
    let mut diff = std::process::Command::new("diff");
    diff.args(["-r", "--no-dereference"]).arg(world.path("tree")).arg(world.path("out"));
    let run = diff.output().unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stdout));
}
