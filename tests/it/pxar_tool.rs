//! `pxar create|extract|list`, in files and pipes.

use crate::support::{World, noise};
use keepwell_test_support::tree::{describe, differences};
use std::fs;
use std::process::{Command, Stdio};

fn world() -> World {
    let world = World::new();
    world.write("tree/a.txt", b"text");
    world.write("tree/dir/b.txt", b"more");
    world.write("tree/dir/noise", noise(1, 3_000_000));
    fs::hard_link(world.path("tree/a.txt"), world.path("tree/dir/link")).unwrap();
    world
}

#[test]
fn create_list_and_extract_a_file() {
    let world = world();
    world.ok("pxar create x.pxar tree");
    let listed = world.ok("pxar list x.pxar").stdout;
    assert_eq!(
        listed,
        "\"/\"\n\"/a.txt\"\n\"/dir\"\n\"/dir/b.txt\"\n\"/dir/link\"\n\"/dir/noise\"\n"
    );
    world.ok("pxar extract x.pxar out");
    assert_eq!(
        differences(&describe(&world.path("tree")), &describe(&world.path("out"))),
        Vec::<String>::new()
    );
    let long = crate::support::Run::from(
        world.command().env("PXAR_LOG", "debug").args(["pxar", "list", "x.pxar"]).output().unwrap(),
    );
    assert!(
        long.stdout.contains(
            "L---------   0/0           1970-01-01 00:00:00        0 \"/dir/link\" -> \"a.txt\""
        ),
        "{}",
        long.stdout
    );
}

#[test]
fn archives_stream_through_pipes() {
    let world = world();
    let mut create = world
        .command()
        .args(["pxar", "create", "-", "tree"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let stream = create.stdout.take().unwrap();
    let extract =
        world.command().args(["pxar", "extract", "-", "out"]).stdin(stream).output().unwrap();
    assert!(create.wait().unwrap().success());
    assert!(extract.status.success(), "{}", String::from_utf8_lossy(&extract.stderr));
    assert_eq!(
        differences(&describe(&world.path("tree")), &describe(&world.path("out"))),
        Vec::<String>::new()
    );
    world.ok("pxar create x.pxar tree");
    let mut cat =
        Command::new("cat").arg(world.path("x.pxar")).stdout(Stdio::piped()).spawn().unwrap();
    let list = world
        .command()
        .args(["pxar", "list", "-"])
        .stdin(cat.stdout.take().unwrap())
        .output()
        .unwrap();
    cat.wait().unwrap();
    assert_eq!(String::from_utf8_lossy(&list.stdout), world.ok("pxar list x.pxar").stdout);
}

#[test]
fn patterns_select() {
    let world = world();
    world.ok("pxar create x.pxar tree");
    world.ok("pxar extract x.pxar txt --pattern **/*.txt");
    let names: Vec<String> = describe(&world.path("txt")).into_keys().collect();
    assert_eq!(names, ["", "a.txt", "dir", "dir/b.txt"]);
    world.write("patterns", "# comment\ndir\n!noise\n");
    world.ok("pxar extract x.pxar some --files-from patterns");
    let names: Vec<String> = describe(&world.path("some")).into_keys().collect();
    // The first name of the linked file was not selected: its content comes under this one.
    assert_eq!(names, ["", "dir", "dir/b.txt", "dir/link"]);
    assert_eq!(fs::read(world.path("some/dir/link")).unwrap(), b"text");
}

#[test]
fn errors_do_not_stop_an_extraction_unless_strict() {
    let world = world();
    world.ok("pxar create x.pxar tree");
    world.write("out/dir/b.txt", b"there");
    let run = world.fails("pxar extract x.pxar out --allow-existing-dirs");
    run.says("there were errors").says("\"dir/b.txt\"");
    assert_eq!(fs::read(world.path("out/dir/b.txt")).unwrap(), b"there");
    assert_eq!(fs::read(world.path("out/dir/noise")).unwrap().len(), 3_000_000);
    world.write("strict/a.txt", b"there");
    world.fails("pxar extract x.pxar strict --strict").says("\"a.txt\"");
    assert!(!world.path("strict/dir/noise").exists());
}

#[test]
fn a_device_that_can_not_be_written_stays() {
    let world = World::new();
    world.write("tree/file", b"x");
    std::os::unix::fs::symlink("/dev/full", world.path("full")).unwrap();
    world.fails("pxar create full tree").says("No space left");
    assert!(world.path("full").symlink_metadata().is_ok());
}
