//! Listings, notes, protection, namespaces, prune, status, version, help, completion, man.

use crate::support::World;
use std::fs;

fn world_with(times: &[i64]) -> World {
    let world = World::new();
    world.write("tree/file", b"x");
    for time in times {
        world.ok(&format!("backup root.pxar:tree --backup-id me --backup-time {time}"));
    }
    world
}

#[test]
fn listings_come_as_table_and_json() {
    let world = world_with(&[1_700_000_000]);
    let list = world.ok("list");
    assert!(list.stdout.starts_with("┌─────────┬"), "{}", list.stdout);
    assert!(list.stdout.contains("│ host/me │ host/me/2023-11-14T22:13:20Z │            1 │ catalog.pcat1 index.json root.pxar │"));
    let groups = world.ok("list --output-format json").json();
    assert_eq!((&groups[0]["backup-id"], &groups[0]["backup-count"]), (&"me".into(), &1.into()));
    let files = world.ok("snapshot files host/me/2023-11-14T22:13:20Z --output-format json").json();
    let names: Vec<&str> =
        files.as_array().unwrap().iter().map(|f| f["filename"].as_str().unwrap()).collect();
    assert_eq!(names, ["root.pxar.didx", "catalog.pcat1.didx", "index.json.blob"]);
    assert_eq!(
        world.ok("files host/me/2023-11-14T22:13:20Z").stdout,
        world.ok("snapshot files host/me/2023-11-14T22:13:20Z").stdout
    );
    // Words may be shortened, dashes may be single, underscores are dashes.
    assert_eq!(
        world.ok("snapshot l -output_format json").stdout,
        world.ok("snapshots --output-format=json").stdout
    );
}

#[test]
fn the_environment_changes_the_output() {
    let world = world_with(&[1_700_000_000]);
    let with = |name: &str, value: &str| {
        let mut command = world.command();
        let output = command.env(name, value).arg("list").output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(with("PROXMOX_OUTPUT_FORMAT", "json").starts_with("[{"));
    assert!(with("PROXMOX_OUTPUT_NO_BORDER", "").starts_with("host/me host/me/2023"));
    let headless = with("PROXMOX_OUTPUT_NO_HEADER", "1");
    assert!(headless.starts_with('┌') && !headless.contains("group"), "{headless}");
    assert!(with("LC_ALL", "de_DE.ISO-8859-1").starts_with("+---------+"));
}

#[test]
fn notes_and_protection_can_be_changed() {
    let world = world_with(&[1_700_000_000]);
    let snapshot = "host/me/2023-11-14T22:13:20Z";
    assert_eq!(world.ok(&format!("snapshot notes show {snapshot}")).stdout, "\n");
    let run = world.run(["snapshot", "notes", "update", snapshot, "first äö\nsecond"]);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert_eq!(world.ok(&format!("snapshot notes show {snapshot}")).stdout, "first äö\nsecond\n");
    let listed = world.ok("snapshot list --output-format json").json();
    assert_eq!(listed[0]["comment"], "first äö");
    world.ok(&format!("restore {snapshot} root.pxar out"));
    world.ok(&format!("snapshot protected update {snapshot} true"));
    assert_eq!(
        world.ok(&format!("snapshot protected show {snapshot} --output-format json")).stdout,
        "{\"protected\":true}\n"
    );
    world.fails(&format!("snapshot forget {snapshot}")).says("cannot remove protected snapshot");
    world.ok(&format!("snapshot protected update {snapshot} off"));
    world.ok(&format!("snapshot forget {snapshot}"));
    assert!(world.snapshots().is_empty());
    assert_eq!(world.ok("list").stdout, "");
}

#[test]
fn prune_keeps_what_the_policy_keeps() {
    let days: Vec<i64> = (0..6).map(|day| 1_700_000_000 + day * 86_400).collect();
    let world = world_with(&days);
    let dry = world
        .ok("prune host/me --keep-last 1 --keep-daily 2 --dry-run --output-format json")
        .json();
    let kept = |json: &serde_json::Value| {
        json.as_array()
            .unwrap()
            .iter()
            .filter(|i| i["keep"] == true)
            .map(|i| i["backup-time"].as_i64().unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(kept(&dry), days[3..]);
    assert_eq!(world.snapshots().len(), 6, "a dry run removes nothing");
    let nothing = world.ok("prune host/me --quiet");
    assert_eq!(
        (nothing.stdout.as_str(), world.snapshots().len()),
        ("", 6),
        "without options all is kept"
    );
    let first = keepwell_model::BackupTime::from_unix(days[0]).unwrap();
    world.ok(&format!("snapshot protected update host/me/{first} true"));
    let table = world.ok("prune host/me --keep-last 2").stdout;
    assert!(
        table.contains("│ snapshot                     │                     date │ action │"),
        "{table}"
    );
    assert_eq!(world.snapshots(), [days[0], days[4], days[5]].map(|t| format!("host/me/{t}")));
}

#[test]
fn namespaces_are_listed_and_deleted() {
    let world = world_with(&[]);
    world.ok("namespace create a");
    world.ok("namespace create a/b");
    assert_eq!(world.ok("namespace list").stdout, "a\na/b\n");
    assert_eq!(
        world.ok("namespace list --max-depth 1 --output-format json").stdout,
        "{\"data\":[{\"ns\":\"\"},{\"ns\":\"a\"}]}\n"
    );
    world.ok("backup root.pxar:tree --ns a/b --backup-id me");
    world.fails("namespace delete a").says("existing groups");
    world.ok("namespace delete a --delete-groups true");
    assert_eq!(world.ok("namespace list").stdout, "");
}

#[test]
fn status_shows_room() {
    let world = world_with(&[]);
    let json = world.ok("status --output-format json").json();
    assert!(json["total"].as_u64().unwrap() >= json["avail"].as_u64().unwrap());
    let text = world.ok("status").stdout;
    let rows: Vec<&str> = text.lines().filter(|line| line.starts_with('│')).collect();
    assert!(rows.len() == 3 && rows[0].contains("total") && rows[0].contains("(100 %)"), "{text}");
}

#[test]
fn help_version_completion_and_manual_pages() {
    let world = world_with(&[]);
    assert_eq!(
        world.ok("version").stdout,
        format!("client version: {}\n", env!("CARGO_PKG_VERSION"))
    );
    let version = world.ok("version --output-format json").json();
    assert!(version["client"]["version"].is_string());
    for line in [
        "help",
        "--help",
        "-h",
        "backup --help",
        "help backup",
        "help snapshot notes",
        "snapshot notes show --help",
    ] {
        let help = world.ok(line);
        assert!(help.stdout.contains("Usage:"), "{line}");
    }
    // What plugins declare is there, with help.
    let backup = world.ok("backup --help").stdout;
    for text in ["--exclude-if-present <TEXT>", "CACHEDIR.TAG", "Options of plugin 'pxar'"] {
        assert!(backup.contains(text), "{text}");
    }
    assert!(world.ok("prune --help").stdout.contains("--keep-weekly <N>"));
    for shell in ["bash", "zsh", "fish"] {
        assert!(world.ok(&format!("completion {shell}")).stdout.contains("keepwell"));
    }
    world.ok("man pages");
    let page = fs::read_to_string(world.path("pages/keepwell-backup.1")).unwrap();
    assert!(
        page.contains(".TH keepwell-backup 1") || page.contains(".TH keepwell\\-backup 1"),
        "{page}"
    );
    let nothing = world.run::<&str>([]);
    nothing.assert_failed("no command");
    assert!(nothing.stderr.contains("Usage:"));
}

#[test]
fn a_group_gets_another_owner() {
    let world = World::new();
    world.write("tree/file", b"x");
    world.ok("backup root.pxar:tree --backup-id a");
    world.ok("change-owner host/a somebody@pbs!token");
    let list = world.ok("list --output-format json").json();
    assert_eq!(list[0]["owner"], "somebody@pbs!token");
    assert_eq!(std::fs::read(world.repo().join("host/a/owner")).unwrap(), b"somebody@pbs!token\n");
    world.fails("change-owner host/a nobody").says("'nobody' is not like USER@REALM");
    world.fails("change-owner host/nope a@pam").says("backup group host/nope does not exist");
    world.fails("change-owner a a@pam").says("'a'");
}

#[test]
fn a_benchmark_measures_what_it_can_without_a_server() {
    let world = World::new();
    let json = world.ok("benchmark --output-format json").json();
    assert_eq!(json["tls"], serde_json::json!({ "top": 1_235_000_000.0 }));
    for name in ["sha256", "compress", "decompress", "verify", "aes256_gcm"] {
        assert!(json[name]["speed"].as_f64().unwrap() > 0.0, "{name}");
    }
    world.fails("benchmark --keyfile nope").says("\"nope\"");
}
