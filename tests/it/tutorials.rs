//! The README's tutorials, followed with copy and paste: a plugin of each kind, from nothing to its use.
//!
//! They run cargo, which takes what it needs from the registry.

use crate::support::World;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The script of a tutorial: its commands as they are, and its code put where the text says. What `plugin new` writes
/// has to pass its tests before that.
fn script(readme: &str, heading: &str) -> String {
    let start = readme.find(&format!("\n### {heading}\n")).expect(heading) + 1;
    let section = &readme[start..];
    let end = section[3..].find("\n##").map_or(section.len(), |at| at + 3);
    let mut script = String::from("set -eux -o pipefail\n");
    // None outside of a block; in one, what ends it.
    let mut ends: Option<&str> = None;
    for line in section[..end].lines() {
        match (ends, line) {
            (None, "```sh") => ends = Some(""),
            (None, "```rust") => {
                script += "cargo test\ncat > src/lib.rs <<'END OF CODE'\n";
                ends = Some("END OF CODE\n");
            }
            (None, _) => {}
            (Some(last), "```") => {
                script += last;
                ends = None;
            }
            (Some(_), line) => script += &format!("{line}\n"),
        }
    }
    assert!(ends.is_none() && script.contains("plugin new") && script.contains("END OF CODE"));
    script
}

/// Follows a tutorial, and returns what it printed.
fn follow(heading: &str) -> (World, String) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let readme = std::fs::read_to_string(root.join("README.md")).unwrap();
    let world = World::new();
    world.write("etc/file", b"x");
    for time in [1000, 2000, 3000] {
        let backup = format!("backup etc.pxar:etc --backup-id web1 --backup-time {time}");
        world.ok(&backup);
    }
    let home = PathBuf::from(std::env::var_os("HOME").unwrap_or_default());
    let elsewhere = |name: &str, below: &str| {
        std::env::var_os(name).map_or_else(|| home.join(below), PathBuf::from)
    };
    let mut command: Command = world.command();
    let binaries = [Path::new(env!("CARGO_BIN_EXE_keepwell")), Path::new(env!("CARGO"))];
    let binaries = binaries.map(|program| program.parent().unwrap().to_owned());
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = binaries.into_iter().chain(std::env::split_paths(&path));
    let temporary = Path::new(env!("CARGO_TARGET_TMPDIR"));
    command.env("PATH", std::env::join_paths(path).unwrap());
    command.env("CARGO_HOME", elsewhere("CARGO_HOME", ".cargo"));
    command.env("RUSTUP_HOME", elsewhere("RUSTUP_HOME", ".rustup"));
    // What all of them need is compiled once.
    command.env("CARGO_TARGET_DIR", temporary.join("tutorials"));
    let unpacked = temporary.with_file_name("guest-toolchain").join("bin/rustc");
    if unpacked.is_file() {
        command.env("GUEST_RUSTC", unpacked);
    }
    // The machine's own logs are whatever they are.
    world.write("logs/a.log", b"a".repeat(5000));
    world.write("logs/b.log", b"bb");
    let script = script(&readme, heading).replace("/var/log", "$HOME/logs");
    let arguments = ["-c".to_owned(), script];
    let mut bash = Command::new("bash");
    bash.env_clear().current_dir(&world.dir).args(arguments);
    bash.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let output = bash.stdin(std::process::Stdio::null()).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{heading}\n{printed}\n{told}");
    assert!(!told.contains("warning: "), "{told}");
    (world, printed)
}

#[test]
fn the_tutorials_make_plugins_that_work() {
    let (world, printed) = follow("A retention policy");
    assert_eq!(printed.matches("keep │").count(), 2, "{printed}");
    assert_eq!(world.snapshots().len(), 3, "nothing was removed");
    let (_, printed) = follow("An output format");
    assert!(printed.contains("web1\t1000\nweb1\t2000\nweb1\t3000\n"), "{printed}");
    let (_, printed) = follow("A source");
    let expected = format!("==> a.log <==\n{}==> b.log <==\nbb", "a".repeat(4096));
    assert!(printed.contains(&expected), "{printed}");
    let (world, printed) = follow("A reader");
    assert!(printed.contains("test each_message_is_a_file ... ok"), "{printed}");
    let messages = world.path("mbox/messages");
    let first = std::fs::read_to_string(messages.join("000000000000.eml")).unwrap();
    assert_eq!(first, "From a\nSubject: one\n\nHello\n\n");
    assert_eq!(std::fs::read_dir(messages).unwrap().count(), 2);
}

#[test]
fn what_can_be_no_project_is_told() {
    let world = World::new();
    let fails = |line: &str| world.fails(line);
    for name in ["Keep", "2x", "a-", "a_b", "a/b", "../a", "\u{e4}"] {
        let told = format!("'{name}' is no name of a plugin");
        fails(&format!("plugin new --kind retention {name}")).says(&told);
    }
    for name in ["json", "pxar", "mpxar", "log", "text", "test", "help", "fn"] {
        fails(&format!("plugin new --kind source {name}")).says(&format!("'{name}' is taken"));
    }
    fails("plugin new --kind other mine").says("other");
    world.write("mine/file", b"x");
    fails("plugin new --kind source mine").says("'mine' is there already");
    fails("plugin build mine").says("'mine' has no Cargo.toml");
    fails("plugin build mine --output mine/file").says("'mine/file' is there and no component");
    fails("plugin build mine --output /dev/null").says("'/dev/null' is no file");
    fails("plugin build mine --output mine").says("'mine' is no file");
    assert_eq!(std::fs::read_dir(world.path("mine")).unwrap().count(), 1);
}
