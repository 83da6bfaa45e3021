//! The catalog shell, from a pipe and at a terminal.

use crate::support::{World, noise, shared};
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Stdio;

const SNAPSHOT: &str = "host/me/2023-11-14T22:13:20Z";

fn world() -> World {
    let world = World::new();
    world.write("tree/etc/app.conf", "a\n");
    world.write("tree/etc/deep/other.conf", "bb\n");
    world.write("tree/etc/deep/notes.txt", "c\n");
    world.write("tree/odd names/it's", "d\n");
    world.write("tree/large", noise(1, 1 << 20));
    fs::write(world.path("tree/odd names").join(std::ffi::OsStr::from_bytes(b"\xff\n")), "e")
        .unwrap();
    symlink("etc/deep", world.path("tree/link")).unwrap();
    symlink("/etc", world.path("tree/etc/deep/up")).unwrap();
    symlink("round", world.path("tree/round")).unwrap();
    // So that what is shown is the same each time.
    let touched = std::process::Command::new("find")
        .arg(world.path("tree"))
        .args(["-exec", "touch", "-h", "-d", "@1000", "{}", "+"])
        .status();
    assert!(touched.unwrap().success());
    world.ok("backup root.pxar:tree --backup-id me --backup-time 1700000000 --chunk-size 64");
    world
}

/// Runs a script in the shell.
fn script(world: &World, lines: &str) -> crate::support::Run {
    let mut command = world.command();
    command.args(["catalog", "shell", "host/me", "root.pxar"]);
    feed(command, lines.as_bytes())
}

fn feed(mut command: std::process::Command, lines: &[u8]) -> crate::support::Run {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // A shell that ends early leaves the rest unread.
    let _ = child.stdin.take().unwrap().write_all(lines);
    child.wait_with_output().unwrap().into()
}

#[test]
fn a_script_prints_what_the_reference_prints() {
    let Some(shared) = shared() else { return };
    let recorded = fs::read_to_string(shared.join("cmd/catalog-shell.txt")).unwrap();
    let (_, expected) = recorded.split_once("--- stdout ---\n").unwrap();
    // Help has words of its own.
    let (expected, _) = expected.split_once("Usage:").unwrap();
    let world = World::new();
    let mut command = world.command();
    command.env("PBS_REPOSITORY", shared.join("store"));
    command.args(["catalog", "shell", "host/plain/2023-11-14T22:13:20Z", "root.pxar"]);
    let lines = "ls\ncd files\npwd\nls\nstat hello.txt\nfind *.txt\nselect /links/rel\nlist-selected\nexit\nnothing";
    let run = feed(command, lines.as_bytes());
    assert_eq!((run.code, &*run.stdout), (Some(0), expected), "{}", run.stderr);
    run.says("Starting interactive shell");
}

#[test]
fn paths_go_where_links_and_dots_lead() {
    let world = world();
    let ok = |lines: &str| {
        let run = script(&world, lines);
        assert_eq!(run.code, Some(0), "{lines}: {}", run.stderr);
        run.stdout
    };
    assert_eq!(ok("ls"), "etc\nlarge\nlink\nodd names\nround\n");
    assert_eq!(ok("ls link"), "notes.txt\nother.conf\nup\n");
    assert_eq!(
        ok("cd etc/deep\nls up/deep/../app.conf\npwd\ncd\npwd"),
        "app.conf\n\"/etc/deep\"\n\"/\"\n"
    );
    assert_eq!(ok("cd ../../etc/./deep/..\npwd"), "\"/etc\"\n");
    assert_eq!(ok("cd link/\npwd"), "\"/etc/deep\"\n");
    assert_eq!(ok("ls odd\\ names/it\\'s"), "it's\n");
    assert_eq!(ok("stat link").lines().next(), Some("  File: /link -> \"etc/deep\""));
    assert!(ok("stat link/up/app.conf").starts_with("  File: /etc/app.conf\n  Size: 2 "));
    assert_eq!(ok("ls $'odd names/\\xff\\n'").as_bytes(), "\u{fffd}\n\n".as_bytes());
    for (line, problem) in [
        ("cd link", "target is a symlink"),
        ("cd etc/app.conf", "not a directory"),
        ("cd etc/app.conf/..", "not a directory"),
        ("ls nothing", "no such file or directory: \"nothing\""),
        ("ls \"\"", "no such file or directory"),
        ("ls round", "too many levels of symbolic links"),
        ("ls \"etc", "a quotation mark is not closed"),
        ("lost", "unrecognized subcommand 'lost'"),
        ("find [x", "invalid pattern '[x'"),
        ("select nothing", "no such file"),
        ("restore-selected out", "no entries selected"),
        ("restore - ", "extract"),
        ("restore out --pattern *.nothing", "nothing in the archive matches"),
    ] {
        let run = script(&world, &format!("{line}\npwd\n"));
        assert_eq!((run.code, &*run.stdout), (Some(255), "\"/\"\n"), "{line}: {}", run.stderr);
        run.says(problem).says("one command failed");
    }
    assert!(!world.path("out").exists());
}

#[test]
fn what_was_selected_is_restored() {
    let world = world();
    let run = script(
        &world,
        "select etc/deep\nselect /etc/deep\ndeselect large\nlist-selected\nrestore-selected one\n\
         clear-selected\nfind etc/**/*.conf --select\nlist-selected --patterns\nlist-selected\n\
         restore-selected two\nselect large\nrestore-selected three\ndeselect /large\n\
         restore four --pattern etc/**/*.conf\nrestore all\n",
    );
    let expected = "added path: \"/etc/deep\"\npath already selected: \"/etc/deep\"\n\
                    path not selected: \"/large\"\n\
                    /etc/deep\n/etc/deep/notes.txt\n/etc/deep/other.conf\n/etc/deep/up\n\
                    cleared selection\n/etc/app.conf\n/etc/deep/other.conf\n\"etc/**/*.conf\"\n\
                    /etc/app.conf\n/etc/deep/other.conf\n\
                    added path: \"/large\"\nremoved path from selection: \"/large\"\n";
    assert_eq!((run.code, &*run.stdout), (Some(0), expected), "{}", run.stderr);
    run.says("selected: \"etc/**/*.conf\"");
    let files = |name: &str| {
        let mut found = Vec::new();
        list(&world.path(name), "", &mut found);
        found.sort();
        found
    };
    assert_eq!(files("one"), ["etc/deep/notes.txt", "etc/deep/other.conf", "etc/deep/up"]);
    assert_eq!(files("two"), ["etc/app.conf", "etc/deep/other.conf"]);
    assert_eq!(files("three"), ["etc/app.conf", "etc/deep/other.conf", "large"]);
    assert_eq!(files("four"), files("two"));
    assert_eq!(files("all").len(), 9);
}

fn list(dir: &Path, above: &str, found: &mut Vec<String>) {
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let name = format!("{above}{}", entry.file_name().to_string_lossy());
        match entry.file_type().unwrap().is_dir() {
            true => list(&entry.path(), &format!("{name}/"), found),
            false => found.push(name),
        }
    }
}

/// Names come from the catalog alone, and where that is damaged, from the archive.
#[test]
fn chunks_are_read_when_they_are_needed() {
    let world = world();
    let remove = |archive: &str| {
        let index = fs::read(world.repo().join(SNAPSHOT).join(archive)).unwrap();
        let index = keepwell_model::Index::parse_dynamic(index).unwrap();
        for chunk in index.chunks() {
            let digest = chunk.digest.to_string();
            let _ = fs::remove_file(world.repo().join(".chunks").join(&digest[..4]).join(&digest));
        }
    };
    let looking = "ls\ncd etc\nls deep\nfind *.conf --select\nlist-selected\n";
    let expected = script(&world, looking).stdout;
    let kept = world.path("kept");
    let copied =
        std::process::Command::new("cp").arg("-a").arg(world.repo()).arg(&kept).status().unwrap();
    assert!(copied.success());
    remove("root.pxar.didx");
    let run = script(&world, looking);
    assert_eq!((run.code, &run.stdout), (Some(0), &expected), "{}", run.stderr);
    script(&world, "stat large\n").says("is damaged");
    fs::remove_dir_all(world.repo()).unwrap();
    fs::rename(&kept, world.repo()).unwrap();
    remove("catalog.pcat1.didx");
    let run = script(&world, looking);
    assert_eq!((run.code, &run.stdout), (Some(0), &expected), "{}", run.stderr);
    run.says("The names come from the archive itself");
    assert!(script(&world, "find *.conf\nrestore back\n").code == Some(0));
    assert_eq!(fs::read(world.path("back/large")).unwrap(), noise(1, 1 << 20));
}

#[test]
fn what_is_no_file_archive_is_refused() {
    let world = world();
    world.write("disk", noise(1, 4096));
    world.ok("backup disk.img:disk app.conf:disk --backup-id me --backup-time 1700000001");
    world.fails("catalog shell host/me disk.img").says("Can only mount pxar archives.");
    world.fails("catalog shell host/me other.pxar").says("other.pxar");
    world.fails("catalog shell host/you root.pxar").says("host/you");
    let run = world.fails("catalog shell host/me app.conf");
    run.says("is one file");
}

/// What a terminal without any abilities gets to see, from the prompt to the end.
#[test]
fn a_session_at_a_terminal_is_as_recorded() {
    let world = world();
    let mut command = world.command();
    command.env("TERM", "dumb").args(["catalog", "shell", SNAPSHOT, "root.pxar"]);
    let run = crate::terminal::run(
        command,
        &[
            ("pxar:/ > ", "ls"),
            ("pxar:/ > ", "find etc/**/*.conf --select"),
            ("pxar:/ > ", "list-selected"),
            ("pxar:/ > ", "cd 'odd names'"),
            ("pxar:/odd names > ", "stat it\\'s"),
            ("pxar:/odd names > ", "cd nowhere"),
            ("pxar:/odd names > ", "restore-selected target"),
            ("pxar:/odd names > ", "exit"),
        ],
    );
    let recorded = include_str!("../golden/shell-session.txt");
    assert_eq!(run.code, Some(0), "{}", run.stdout);
    assert_eq!(run.stdout.replace('\r', ""), recorded);
    assert_eq!(fs::read(world.path("target/etc/deep/other.conf")).unwrap(), b"bb\n");
}

/// What the editor sends when it begins to read keys.
const READS: &str = "[?2004h";

#[test]
fn tab_completes_commands_and_odd_names() {
    let world = world();
    let mut command = world.command();
    command.env("TERM", "xterm").args(["catalog", "shell", SNAPSHOT, "root.pxar"]);
    let run = crate::terminal::run(
        command,
        &[
            (READS, "st\todd\tit\t"),
            (READS, "cd o\t"),
            (READS, "stat $'\\xff\t"),
            (READS, "restore-s\ttar\t"),
            (READS, "exit"),
        ],
    );
    assert_eq!(run.code, Some(0), "{}", run.stdout);
    assert!(run.stdout.contains("no entries selected"), "{}", run.stdout);
    assert!(run.stdout.contains("  File: /odd names/it's\n"), "{}", run.stdout);
    assert!(run.stdout.contains("  File: /odd names/\\xFF\\n\n"), "{}", run.stdout);
}
