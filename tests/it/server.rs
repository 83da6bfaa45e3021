//! A server and its clients, over TLS: every command, the requests that are made, rights, and what
//! becomes of backups whose client or server dies.

use crate::served::{PASSWORD, SNAPSHOT, Served, USER, tree};
use crate::support::{Run, noise, shared};
use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

#[test]
fn every_command_works_on_a_server() {
    let served = Served::new();
    tree(&served.world);
    let backup = "backup root.pxar:tree disk.img:disk app.conf:app.conf --backup-id me";
    let first = served.ok(&format!("{backup} --backup-time 1700000000 --output-format json"));
    first.says("No previous manifest available.");
    let again =
        served.ok(&format!("{backup} --backup-time 1700000001 --output-format json")).json();
    for archive in again["archives"].as_array().unwrap().iter().take(2) {
        assert_eq!(archive["new-bytes"], 0, "{archive}");
    }
    served.ok("restore host/me root.pxar out");
    assert!(fs::read(served.world.path("out/big")).unwrap() == noise(1, 9 << 20));
    served.ok("restore host/me disk.img img");
    assert!(fs::read(served.world.path("img")).unwrap() == noise(2, 9 << 20));
    assert_eq!(served.ok("restore host/me app.conf -").stdout, "key = value\n");
    let groups = served.ok("list --output-format json").json();
    assert_eq!((&groups[0]["backup-count"], &groups[0]["owner"]), (&2.into(), &USER.into()));
    assert_eq!(served.ok("snapshot list --output-format json").json().as_array().unwrap().len(), 2);
    assert!(served.ok(&format!("snapshot files {SNAPSHOT}")).stdout.contains("root.pxar.didx"));
    assert!(served.ok(&format!("catalog dump {SNAPSHOT}")).stdout.contains("dir/small"));
    served.ok(&format!("snapshot notes update {SNAPSHOT} two%20words"));
    assert_eq!(served.ok(&format!("snapshot notes show {SNAPSHOT}")).stdout, "two%20words\n");
    served.ok(&format!("snapshot protected update {SNAPSHOT} true"));
    assert_eq!(served.ok(&format!("snapshot protected show {SNAPSHOT}")).stdout, "true\n");
    served.fails(&format!("snapshot forget {SNAPSHOT}")).says("cannot remove protected snapshot");
    served.ok(&format!("snapshot protected update {SNAPSHOT} false"));
    served.ok(&format!("snapshot upload-log {SNAPSHOT} app.conf"));
    assert_eq!(served.ok(&format!("restore {SNAPSHOT} client.log -")).stdout, "key = value\n");
    served.ok("namespace create a");
    served.ok("namespace create a/b");
    assert_eq!(served.ok("namespace list").stdout, "a\na/b\n");
    served.ok("backup root.pxar:tree --ns a/b --backup-id there");
    served.ok("restore host/there root.pxar there --ns a/b");
    served.fails("namespace delete a/b").says("only partially deleted due to existing groups");
    served.ok("namespace delete a/b --delete-groups");
    assert!(served.ok("status").stdout.contains("total"));
    assert!(served.ok("version").stdout.contains("server version: 3.2.4"));
    assert!(served.ok("verify").stdout.contains("TASK OK"));
    assert!(served.ok("garbage-collect").stdout.contains("TASK OK"));
    let upid = served.ok("garbage-collect --output-format json").json();
    assert!(served.ok(&format!("task log {}", upid.as_str().unwrap())).stdout.contains("TASK OK"));
    assert!(served.ok("task list --all").stdout.contains("garbage_collection"));
    served.ok(&format!("change-owner host/me {USER}"));
    served.ok(&format!("snapshot forget {SNAPSHOT}"));
    let pruned = served.ok("prune host/me --keep-last 1 --output-format json").json();
    assert_eq!(pruned[0]["keep"], true);
    served.fails("restore host/me nope.pxar out2").says("manifest does not contain file");
    served.fails(&format!("restore {SNAPSHOT} root.pxar out2")).says("does not exist");
    served.fails("list --ns nope").says("namespace");
    let names = fs::read_dir(served.world.repo().join("host/me")).unwrap().flatten();
    assert_eq!(names.filter(|entry| entry.path().is_dir()).count(), 1);
}

#[test]
fn encrypted_backups_go_to_a_server_and_come_back() {
    let served = Served::new();
    tree(&served.world);
    served.world.ok("key create a.key --kdf none");
    let backup = "backup root.pxar:tree app.conf:app.conf --backup-id me --keyfile a.key";
    served.ok(&format!("{backup} --backup-time 1700000000"));
    served.ok(&format!("{backup} --backup-time 1700000001")).says("reused 9");
    served.fails("restore host/me root.pxar out").says("missing key");
    served.ok("restore host/me root.pxar out --keyfile a.key");
    assert!(fs::read(served.world.path("out/big")).unwrap() == noise(1, 9 << 20));
    served.ok("verify");
}

/// Names of parameters only: digests and sizes differ.
fn shape((method, target): &(String, String)) -> String {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let names = query.split('&').filter(|part| !part.is_empty());
    let mut names: Vec<&str> = names.filter_map(|part| part.split('=').next()).collect();
    names.sort_unstable();
    let archive = query.split('&').find(|part| part.starts_with("archive-name=catalog"));
    format!("{method} {path} {} {}", names.join(","), archive.unwrap_or_default())
}

/// The recorded requests of the reference client.
fn recorded(name: &str) -> Option<Vec<(String, String)>> {
    let path = shared()?.join("http").join(format!("{name}.jsonl"));
    let text = fs::read_to_string(path).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let requests = lines.filter(|line| line["dir"] == "C>S" && !line["headers"].is_null());
    let request = requests.map(|line| {
        if line["proto"] == "h1" {
            let words: Vec<&str> = line["line"].as_str().unwrap().split(' ').collect();
            return (words[0].to_owned(), words[1].to_owned());
        }
        let header = |name: &str| {
            let headers = line["headers"].as_array().unwrap();
            let found = headers.iter().find(|header| header[0] == name).unwrap();
            found[1].as_str().unwrap().to_owned()
        };
        (header(":method"), header(":path"))
    });
    Some(request.collect())
}

/// Several chunks and the two writers that begin side by side count once, in any order.
fn shapes(requests: &[(String, String)]) -> Vec<String> {
    let mut shapes: Vec<String> = requests.iter().map(shape).collect();
    // A bare question mark says nothing.
    for shape in &mut shapes {
        *shape = shape.replace("? ", " ");
    }
    shapes.dedup();
    let begins = |shape: &String| {
        shape.starts_with("POST /dynamic_index") || shape.starts_with("GET /previous ")
    };
    let mut at = 0;
    while at < shapes.len() {
        let run = shapes[at..].iter().take_while(|shape| begins(shape)).count();
        shapes[at..at + run].sort();
        at += run.max(1);
    }
    shapes.dedup();
    shapes
}

#[test]
fn requests_are_those_of_the_reference_client() {
    let served = Served::new();
    tree(&served.world);
    let mut seen = 0;
    let plain = "backup files.pxar:tree --backup-id cap";
    let image = "backup drive.img:disk --backup-type vm --backup-id 900";
    served.ok("namespace create a");
    served.ok("namespace create a/b");
    served.requests(&mut seen);
    let captured = "host/cap/2023-11-14T22:30:00Z";
    let cases = [
        ("backup-plain", format!("{plain} --backup-time 1700001000")),
        ("backup-incremental", format!("{plain} --backup-time 1700001010")),
        ("backup-img", format!("{image} --backup-time 1700001030")),
        ("backup-img-incremental", format!("{image} --backup-time 1700001040")),
        ("backup-ns", "backup l.pxar:tree --ns a/b --backup-id capns".into()),
        ("restore-pxar", format!("restore {captured} files.pxar out")),
        ("restore-latest-of-group", "restore host/cap files.pxar out2".into()),
        ("catalog-dump", format!("catalog dump {captured}")),
        ("list-fresh", "list".into()),
        ("snapshot-list", "snapshot list".into()),
        ("snapshot-files", format!("snapshot files {captured}")),
        ("status", "status".into()),
        ("version", "version".into()),
        ("ns-list", "namespace list".into()),
        ("ns-create", "namespace create capns".into()),
        ("ns-delete", "namespace delete capns".into()),
        ("notes-update", format!("snapshot notes update {captured} some")),
        ("notes-show", format!("snapshot notes show {captured}")),
        ("protected-update", format!("snapshot protected update {captured} false")),
        ("task-list", "task list".into()),
        ("change-owner", format!("change-owner host/cap {USER}")),
        ("prune-dry", "prune host/cap --keep-last 1 --dry-run".into()),
        ("prune", "prune host/cap --keep-last 1".into()),
        ("forget", "snapshot forget host/cap/2023-11-14T22:30:10Z".into()),
    ];
    for (name, line) in cases {
        let Some(recorded) = recorded(name) else { return };
        served.ok(&line);
        assert_eq!(shapes(&served.requests(&mut seen)), shapes(&recorded), "{name}: {line}");
    }
    let login = served
        .client_of(USER, PASSWORD)
        .env("XDG_RUNTIME_DIR", served.world.path("run"))
        .arg("login")
        .status();
    assert!(login.unwrap().success());
    assert_eq!(shapes(&served.requests(&mut seen)), shapes(&recorded("login").unwrap()));
}

#[test]
fn who_may_not_log_in_learns_nothing() {
    let served = Served::new();
    for (user, password) in [(USER, "wrong"), ("nobody@pbs", PASSWORD), ("root@pam", PASSWORD)] {
        let run = served.run_as(user, password, "list");
        run.assert_failed("login");
        run.says("permission check failed.");
    }
    let mut command = served.client_of(USER, PASSWORD);
    let other = served.fingerprint.replace(&served.fingerprint[..2], "00");
    let run = Run::from(command.env("PBS_FINGERPRINT", other).arg("list").output().unwrap());
    run.assert_failed("a wrong fingerprint");
    run.says("WARNING: certificate fingerprint does not match expected fingerprint!");
    run.says("Certificate fingerprint was not confirmed.");
}

#[test]
fn a_ticket_is_kept_from_login_to_logout() {
    let served = Served::new();
    let run = |arguments: &str, password: Option<&str>| {
        let mut command = served.client_of(USER, password.unwrap_or_default());
        if password.is_none() {
            command.env_remove("PBS_PASSWORD");
        }
        command.env("XDG_RUNTIME_DIR", served.world.path("run"));
        Run::from(command.args(arguments.split(' ')).output().unwrap())
    };
    assert_eq!(run("login", Some(PASSWORD)).code, Some(0));
    assert_eq!(run("list", None).code, Some(0));
    assert_eq!(run("logout", None).code, Some(0));
    run("list", None).says("no password input mechanism available");
    // What the server does not take any more is no reason to fail.
    assert_eq!(run("login", Some(PASSWORD)).code, Some(0));
    let path = served.world.path("run/proxmox-backup/tickets");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("::", "::AAAA")).unwrap();
    assert_eq!(run("list", Some(PASSWORD)).code, Some(0));
}

#[test]
fn rights_follow_roles_owners_and_namespaces() {
    let served = Served::new();
    let admin = |line: &str| served.world.ok(&format!("{line} --config srv/server.toml"));
    tree(&served.world);
    served.ok("namespace create ns");
    let roles = [
        "DatastoreBackup",
        "DatastorePowerUser",
        "DatastoreReader",
        "DatastoreAudit",
        "DatastoreAdmin",
        "NoAccess",
    ];
    for role in roles {
        let user = format!("{}@pbs", role.to_lowercase());
        admin(&format!("admin user create {user} --password-file password"));
        admin(&format!("admin acl update /datastore/store1 {role} --auth-id {user}"));
    }
    served.ok("backup a.conf:app.conf --backup-id foreign --backup-time 1700000000");
    let foreign = "host/foreign/2023-11-14T22:13:20Z";
    // Command, and the roles that may; backups make groups of their own.
    let cases: [(&str, &[&str]); 9] = [
        (
            "backup a.conf:app.conf --backup-id ID",
            &["DatastoreBackup", "DatastorePowerUser", "DatastoreAdmin"],
        ),
        ("backup a.conf:app.conf --backup-id foreign", &[]),
        (
            "list",
            &[
                "DatastoreBackup",
                "DatastorePowerUser",
                "DatastoreReader",
                "DatastoreAudit",
                "DatastoreAdmin",
            ],
        ),
        ("restore host/foreign a.conf -", &["DatastoreReader", "DatastoreAdmin"]),
        ("snapshot notes show FOREIGN", &["DatastoreReader", "DatastoreAudit", "DatastoreAdmin"]),
        ("snapshot notes update FOREIGN x", &["DatastoreAdmin"]),
        ("prune host/foreign --keep-last 1", &["DatastoreAdmin"]),
        ("namespace create ns/ID", &["DatastoreAdmin"]),
        ("garbage-collect", &["DatastoreAdmin"]),
    ];
    for (line, may) in cases {
        for role in roles {
            let id = role.to_lowercase();
            let line = line.replace("ID", &id).replace("FOREIGN", foreign);
            let run = served.run_as(&format!("{id}@pbs"), PASSWORD, &line);
            let expected = if may.contains(&role) { Some(0) } else { Some(255) };
            assert_eq!(run.code, expected, "{role}: {line}\n{}", run.stderr);
        }
    }
    // Their own groups only.
    let own = |user: &str, line: &str| served.run_as(&format!("{user}@pbs"), PASSWORD, line).code;
    assert_eq!(own("datastorebackup", "restore host/datastorebackup a.conf -"), Some(0));
    assert_eq!(own("datastorebackup", "prune host/datastorebackup --keep-last 1"), Some(255));
    assert_eq!(own("datastorepoweruser", "prune host/datastorepoweruser --keep-last 1"), Some(0));
    let seen = served.run_as("datastorebackup@pbs", PASSWORD, "list --output-format json").json();
    assert_eq!(seen.as_array().unwrap().len(), 1, "{seen}");
    // A namespace of their own.
    admin("admin user create narrow@pbs --password-file password");
    admin("admin acl update /datastore/store1/ns DatastoreBackup --auth-id narrow@pbs");
    assert_eq!(own("narrow", "backup a.conf:app.conf --backup-id n --ns ns"), Some(0));
    assert_eq!(own("narrow", "backup a.conf:app.conf --backup-id n"), Some(255));
    // A token, which may no more than its user.
    let made = admin("admin token create narrow@pbs!tok").stdout;
    let secret = made.lines().find_map(|line| line.strip_prefix("Secret: ")).unwrap();
    let token = |line: &str| served.run_as("narrow@pbs!tok", secret, line).code;
    assert_eq!(token("backup a.conf:app.conf --backup-id t --ns ns"), Some(255));
    admin("admin acl update / Admin --auth-id narrow@pbs!tok");
    assert_eq!(token("backup a.conf:app.conf --backup-id t --ns ns"), Some(0));
    assert_eq!(
        token("backup a.conf:app.conf --backup-id n --ns ns"),
        Some(255),
        "its user's group"
    );
    assert_eq!(token("garbage-collect"), Some(255));
    admin("admin user update narrow@pbs --enable=no");
    assert_eq!(token("list --ns ns"), Some(255));
    assert!(!served.log().contains(secret) && !served.log().contains(PASSWORD));
}

#[test]
fn maintenance_keeps_clients_out() {
    let served = Served::new();
    tree(&served.world);
    let admin = |line: &str| served.world.ok(&format!("{line} --config srv/server.toml"));
    served.ok("backup a.conf:app.conf --backup-id me");
    admin("admin datastore update store1 --maintenance read-only --maintenance-message disk");
    served.ok("list");
    served.fails("backup a.conf:app.conf --backup-id me").says("read-only maintenance mode: disk");
    admin("admin datastore update store1 --maintenance-message cable");
    served.fails("backup a.conf:app.conf --backup-id me").says("read-only maintenance mode: cable");
    admin("admin datastore update store1 --maintenance offline");
    served.fails("list").says("datastore 'store1' is in offline maintenance mode:");
    admin("admin datastore update store1 --maintenance none");
    served.ok("list");
    let message = "admin datastore update store1 --maintenance-message disk";
    served.world.fails(&format!("{message} --config srv/server.toml")).says("not in maintenance");
}

/// What a backup that did not finish may leave: nothing that is seen.
/// Between no time and a second, so that a backup is hit anywhere.
fn some_time(turn: u64) -> Duration {
    Duration::from_millis(u64::from(noise(turn, 1)[0]) * 4)
}

fn left_over(repo: &Path, group: &str) -> Vec<String> {
    let entries = fs::read_dir(repo.join("host").join(group)).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name != "owner").collect()
}

#[test]
fn a_backup_whose_client_dies_leaves_nothing() {
    let served = Served::new();
    served.world.write("tree/big", noise(3, 64 << 20));
    for turn in 0..20 {
        let mut client = served.client_of(USER, PASSWORD);
        client.args(["backup", "root.pxar:tree", "--backup-id", "me", "--rate", "20MB"]);
        let mut child = client.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(some_time(turn));
        child.kill().unwrap();
        child.wait().unwrap();
        served.wait("the end of its task", || left_over(&served.world.repo(), "me").is_empty());
    }
    served.wait("the end of all tasks", || {
        served.ok("task list --output-format json").json().as_array().unwrap().is_empty()
    });
    served.ok("backup root.pxar:tree --backup-id me");
    served.ok("verify");
}

#[test]
fn a_server_that_dies_loses_nothing() {
    let mut served = Served::new();
    served.world.write("tree/big", noise(4, 64 << 20));
    served.world.write("small/file", "small");
    served.ok("backup root.pxar:small --backup-id me --backup-time 1700000000");
    for turn in 20..40 {
        let mut client = served.client_of(USER, PASSWORD);
        client.args(["backup", "root.pxar:tree", "--backup-id", "me", "--rate", "20MB"]);
        let child = client.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(some_time(turn));
        served.kill();
        let run = Run::from(child.wait_with_output().unwrap());
        run.assert_failed("a backup whose server died");
        served.start();
        let listed = served.ok("snapshot list --output-format json").json();
        assert_eq!(listed.as_array().unwrap().len(), 1, "{listed}");
    }
    served.ok("restore host/me root.pxar out");
    served.ok("backup root.pxar:tree --backup-id me");
    assert!(left_over(&served.world.repo(), "me").iter().all(|name| !name.starts_with('.')));
    served.ok("verify");
    assert!(served.ok("task list --all").stdout.contains("unknown"));
}

#[test]
fn a_restore_goes_on_when_the_server_comes_back() {
    let mut served = Served::new();
    served.world.write("tree/big", noise(5, 48 << 20));
    served.ok("backup root.pxar:tree --backup-id me");
    let mut client = served.client_of(USER, PASSWORD);
    client.args(["restore", "host/me", "root.pxar", "out", "--rate", "16MB"]);
    let child = client.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(700));
    served.kill();
    served.start();
    let run = Run::from(child.wait_with_output().unwrap());
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    run.says("was lost: connecting again");
    assert!(fs::read(served.world.path("out/big")).unwrap() == noise(5, 48 << 20));
}

#[test]
fn who_speaks_no_tls_is_sent_elsewhere_and_who_says_nothing_goes() {
    let served = Served::new();
    let ask = |text: &[u8]| {
        let mut stream = TcpStream::connect(("127.0.0.1", served.port)).unwrap();
        stream.write_all(text).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    };
    let answer = ask(b"GET /x?y HTTP/1.1\r\nHost: h:1\r\nConnection: close\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 301 ") && answer.contains("location: https://h:1/x?y"));
    let answer =
        ask(b"POST / HTTP/1.1\r\nHost: h:1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 308 "), "{answer}");
    for junk in [&b"\x16\x03\x01\x00\x05hello"[..], b"\x16", &noise(1, 100_000), b"\r\n\r\n"] {
        ask(junk);
    }
    let silent: Vec<TcpStream> =
        (0..50).map(|_| TcpStream::connect(("127.0.0.1", served.port)).unwrap()).collect();
    served.ok("list");
    drop(silent);
}

#[test]
fn many_clients_back_up_at_once() {
    let served = Served::new();
    served.world.write("tree/big", noise(6, 5 << 20));
    let clients: Vec<Child> = (0..50)
        .map(|number| {
            served.world.write(&format!("own{number}/file"), noise(100 + number, 1 << 20));
            let id = format!("h{number}");
            let mut client = served.client_of(USER, PASSWORD);
            client.args([
                "backup",
                "root.pxar:tree",
                &format!("own.pxar:own{number}"),
                "--backup-id",
                &id,
            ]);
            client.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    for client in clients {
        let run = Run::from(client.wait_with_output().unwrap());
        assert_eq!(run.code, Some(0), "{}", run.stderr);
    }
    let groups = served.ok("list --output-format json").json();
    assert_eq!(groups.as_array().unwrap().len(), 50);
    served.ok("verify");
    let owners: BTreeSet<String> =
        groups.as_array().unwrap().iter().map(|g| g["owner"].to_string()).collect();
    assert_eq!(owners.len(), 1);
}

#[test]
fn the_example_of_a_configuration_is_read() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/server.toml");
    let text = fs::read_to_string(&path).unwrap();
    let config = keepwell_server::Config::load(&path).unwrap();
    assert_eq!(config.listen[0].port(), 8007);
    // All keys are explained there.
    for key in [
        "listen",
        "certificate",
        "key",
        "state",
        "node",
        "connections-max",
        "login-failures-max",
        "shutdown-grace-seconds",
        "tasks-kept",
    ] {
        assert!(text.contains(&format!("\n{key} = ")), "{key}");
    }
}

/// One recorded call of the API, but logins and upgrades: request and answer.
struct Recorded {
    method: String,
    target: String,
    body: Option<serde_json::Value>,
    status: u16,
    answer: String,
}

fn recorded_calls(name: &str) -> Option<Vec<Recorded>> {
    let path = shared()?.join("http").join(format!("{name}.jsonl"));
    let text = fs::read_to_string(path).unwrap();
    let mut calls: Vec<Recorded> = Vec::new();
    for line in text.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let (asks, words) = (line["dir"] == "C>S", line["line"].as_str().unwrap_or_default());
        let mut words = words.split(' ');
        let body = line["body"].as_str();
        match (asks, line["proto"] == "h1", calls.last_mut()) {
            (true, true, _) => calls.push(Recorded {
                method: words.next().unwrap().into(),
                target: words.next().unwrap().into(),
                body: None,
                status: 0,
                answer: String::new(),
            }),
            (false, true, Some(call)) => {
                call.status = words.nth(1).unwrap().parse().unwrap();
            }
            (true, false, Some(call)) if line["stream"].is_null() => {
                call.body = body.map(|body| serde_json::from_str(body).unwrap_or_default());
            }
            (false, false, Some(call)) if line["stream"].is_null() => {
                call.answer += body.unwrap_or_default();
            }
            _ => {}
        }
    }
    calls.retain(|call| !call.target.contains("access/ticket") && call.status != 101);
    Some(calls)
}

/// Only some items have these.
const SOMETIMES: [&str; 7] =
    ["comment", "verification", "fingerprint", "size", "crypt-mode", "endtime", "status"];

/// Whether two answers have the same keys and types all the way down; lists by their first items.
fn same_shape(ours: &serde_json::Value, recorded: &serde_json::Value, at: &str) {
    use serde_json::Value;
    match (ours, recorded) {
        (Value::Object(ours), Value::Object(recorded)) => {
            for key in ours.keys().chain(recorded.keys()) {
                let both = ours.get(key).zip(recorded.get(key));
                match both {
                    Some((ours, recorded)) => same_shape(ours, recorded, &format!("{at}.{key}")),
                    None => {
                        assert!(SOMETIMES.contains(&key.as_str()), "{at}.{key} has one side only")
                    }
                }
            }
        }
        (Value::Array(ours), Value::Array(recorded)) => {
            if let Some((ours, recorded)) = ours.first().zip(recorded.first()) {
                same_shape(ours, recorded, &format!("{at}[]"));
            }
        }
        (Value::Null, Value::Null)
        | (Value::Bool(_), Value::Bool(_))
        | (Value::Number(_), Value::Number(_))
        | (Value::String(_), Value::String(_)) => {}
        _ => panic!("{at}: {ours} is not like {recorded}"),
    }
}

impl Served {
    /// A client that sends what it is told.
    fn raw_client(&self) -> keepwell_transport::Client {
        use keepwell_transport::{Client, ClientOptions, Secret, Trust};
        let client = Client::new(ClientOptions {
            host: "127.0.0.1".into(),
            port: self.port,
            user: USER.parse().unwrap(),
            trust: Trust {
                expected: Some(self.fingerprint.parse().unwrap()),
                known: None,
                confirm: Box::new(|_, _| false),
            },
            proxy: None,
            limit: None,
            patience: None,
            cache: None,
            now: || 0,
            interrupt: std::sync::Arc::default(),
        });
        let client = client.unwrap();
        client.login(Secret::Password(PASSWORD.to_owned().into())).unwrap();
        client
    }
}

fn replay(
    client: &keepwell_transport::Client,
    call: &Recorded,
) -> Result<serde_json::Value, (u16, String)> {
    use keepwell_transport::{Error, Query, query};
    let (path, text) = call.target.split_once('?').unwrap_or((&call.target, ""));
    let mut parameters = Query::new();
    for (name, value) in query::decode(text).unwrap() {
        parameters = parameters.with(&name, value);
    }
    for (name, value) in call.body.iter().filter_map(|body| body.as_object()).flatten() {
        parameters = parameters.with(name, value.clone());
    }
    let data = |value| serde_json::json!({ "data": value });
    let outcome = match call.method.as_str() {
        "GET" => client.get_whole(path, &parameters),
        "POST" => client.post(path, &parameters).map(data),
        "PUT" => client.put(path, &parameters).map(data),
        _ => client.delete(path, &parameters).map(data),
    };
    outcome.map_err(|error| match error {
        Error::Status { status, message } => (status, message),
        other => panic!("{}: {other}", call.target),
    })
}

#[test]
fn recorded_calls_get_the_recorded_answers() {
    let served = Served::new();
    tree(&served.world);
    // What was there when the calls were recorded.
    served.ok("namespace create a");
    served.ok("namespace create a/b");
    for (time, line) in [
        (1_700_001_000, "files.pxar:tree --backup-id cap"),
        (1_700_001_010, "files.pxar:tree --backup-id cap"),
        (1_700_001_060, "l.pxar:tree --backup-id captok"),
    ] {
        served.ok(&format!("backup {line} --backup-time {time}"));
    }
    let client = served.raw_client();
    let names = [
        "list-fresh",
        "snapshot-list",
        "snapshot-files",
        "status",
        "version",
        "ns-list",
        "ns-create",
        "ns-delete",
        "notes-update",
        "notes-show",
        "protected-update",
        "protected-show",
        "forget-protected",
        "task-list",
        "prune-dry",
        "prune",
        "forget",
    ];
    for name in names {
        let Some(calls) = recorded_calls(name) else { return };
        assert!(!calls.is_empty(), "{name}");
        for call in calls {
            let what = format!("{name}: {} {}", call.method, call.target);
            if call.target.contains("api2/json/backup") {
                continue;
            }
            match replay(&client, &call) {
                Ok(ours) => {
                    assert_eq!(call.status, 200, "{what}: {}", call.answer);
                    if let Ok(recorded) = serde_json::from_str(&call.answer) {
                        same_shape(&ours, &recorded, &what);
                    }
                }
                Err((status, message)) => {
                    assert_eq!(
                        (status, message.as_str()),
                        (call.status, call.answer.as_str()),
                        "{what}"
                    );
                }
            }
        }
    }
}

#[test]
fn jobs_run_when_they_are_due() {
    let served = Served::new();
    tree(&served.world);
    for time in 1_700_000_000..1_700_000_003 {
        served.ok(&format!("backup a.conf:app.conf --backup-id me --backup-time {time}"));
    }
    let admin = |arguments: &[&str]| {
        let arguments = arguments.iter().chain(&["--config", "srv/server.toml"]);
        let run = served.world.run(arguments);
        assert_eq!(run.code, Some(0), "{}", run.stderr);
    };
    // Every second, as far as the server looks.
    let often = "*:*:*";
    admin(&[
        "admin",
        "datastore",
        "update",
        "store1",
        "--gc-schedule",
        often,
        "--prune-schedule",
        often,
        "--verify-schedule",
        often,
        "--keep-last",
        "1",
    ]);
    served.wait("the jobs", || {
        let listed = served.ok("snapshot list --output-format json").json();
        let archive =
            fs::read_to_string(served.world.path("srv/tasks/archive")).unwrap_or_default();
        let done = ["garbage_collection", "prunejob", "verificationjob"];
        listed.as_array().unwrap().len() == 1
            && !listed[0]["verification"].is_null()
            && done.iter().all(|kind| archive.contains(&format!(":{kind}:")))
    });
    admin(&[
        "admin",
        "datastore",
        "update",
        "store1",
        "--gc-schedule",
        "",
        "--prune-schedule",
        "",
        "--verify-schedule",
        "",
    ]);
    served
        .world
        .fails("admin datastore update store1 --gc-schedule often --config srv/server.toml")
        .says("'often' is no calendar event");
}

#[test]
fn a_service_manager_hands_over_its_socket_and_is_told() {
    let mut served = Served::new();
    served.kill();
    let notified = served.world.path("notify");
    let manager = std::os::unix::net::UnixDatagram::bind(&notified).unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    // Python holds the socket as descriptor 3 and becomes the server, as systemd does.
    let script = format!(
        "import os, socket\n\
         s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\n\
         s.bind(('127.0.0.1', {port})); s.listen(9); fd = s.detach()\n\
         fd == 3 or os.dup2(fd, 3); os.set_inheritable(3, True)\n\
         os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()), NOTIFY_SOCKET={notified:?})\n\
         os.execv({binary:?}, ['keepwell', 'serve', '--config', 'srv/server.toml'])\n",
        port = served.port,
        binary = env!("CARGO_BIN_EXE_keepwell"),
    );
    let mut command = Command::new("python3");
    let log = fs::File::create(served.log_path()).unwrap();
    command.args(["-c", &script]).current_dir(served.world.dir.path()).stderr(log);
    let Ok(child) = command.spawn() else { return crate::support::skipped("python3 is missing") };
    served.child = Some(child);
    let mut said = [0; 64];
    let length =
        manager.recv(&mut said).unwrap_or_else(|error| panic!("{error}: {}", served.log()));
    assert_eq!(&said[..length], b"READY=1");
    served.ok("list");
    assert!(served.log().contains("1 sockets of the service manager"), "{}", served.log());
    // A new certificate counts from SIGHUP on.
    served.world.ok("admin cert renew --config srv/server.toml");
    let pid = rustix::process::Pid::from_raw(served.child.as_ref().unwrap().id() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
    served.wait("the new certificate", || served.log().contains("read again"));
    served.fails("list").says("does not match expected fingerprint");
    // SIGTERM ends it in peace.
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(served.child.take().unwrap().wait().unwrap().success());
}

/// The manifest of a snapshot without files, as it is uploaded.
fn manifest_of(group: &str, time: i64) -> Vec<u8> {
    let time = keepwell_model::BackupTime::from_unix(time).unwrap();
    let snapshot = keepwell_model::SnapshotId { group: group.parse().unwrap(), time };
    let json = keepwell_model::Manifest::new(snapshot).to_json();
    keepwell_seal::Sealer::new().unwrap().seal(&json, None).unwrap().into_bytes()
}

impl Served {
    /// The session of a backup that sends what it is told.
    fn raw_backup(
        &self,
        client: &keepwell_transport::Client,
        id: &str,
    ) -> keepwell_transport::BareSession {
        let query = keepwell_transport::Query::new()
            .with("store", "store1")
            .with("backup-type", "host")
            .with("backup-id", id)
            .with("backup-time", 1_700_000_000);
        let protocol = keepwell_transport::BACKUP_PROTOCOL;
        client.bare_session("/api2/json/backup", &query, protocol).unwrap()
    }

    /// The most memory that the server has had, in MiB.
    fn peak_memory(&self) -> u64 {
        let path = format!("/proc/{}/status", self.child.as_ref().unwrap().id());
        let status = fs::read_to_string(path).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        peak.trim().trim_end_matches(" kB").parse::<u64>().unwrap() >> 10
    }
}

#[test]
fn an_image_takes_memory_for_what_was_appended() {
    let served = Served::new();
    let client = served.raw_client();
    let session = served.raw_backup(&client, "raw");
    let before = served.peak_memory();
    // 64 TiB each.
    for number in 0..50 {
        let target = format!("fixed_index?archive-name=d{number}.img.fidx&size=70368744177664");
        session.call("POST", &target, vec![]).unwrap();
    }
    session.call("POST", "fixed_index?archive-name=e.img.fidx", vec![]).unwrap();
    let content = noise(1, 5000);
    let digest = keepwell_seal::Sealer::digest(&content, None);
    let blob = [&[0; 12], &content[..]].concat();
    let blob = keepwell_model::Blob::seal(keepwell_model::BlobKind::Plain, blob).unwrap();
    let chunk = format!("fixed_chunk?wid=51&digest={digest}&size=5000&encoded-size=5012");
    session.call("POST", &chunk, blob.into_bytes()).unwrap();
    let last = ((1u64 << 24) - 1) * (4 << 20);
    let append = format!("{{\"wid\":51,\"digest-list\":[\"{digest}\"],\"offset-list\":[{last}]}}");
    session.call("PUT", "fixed_index", append.into_bytes()).unwrap();
    let grown = served.peak_memory() - before;
    assert!(grown < 100, "{grown} MiB");
}

#[test]
fn uploads_wait_for_room_and_all_come_in() {
    let served = Served::new();
    let client = served.raw_client();
    let session = served.raw_backup(&client, "raw");
    session.call("POST", "dynamic_index?archive-name=a.pxar.didx", vec![]).unwrap();
    // As many at once as there are streams, four times what a session has room for.
    std::thread::scope(|scope| {
        for number in 0..16 {
            let session = &session;
            scope.spawn(move || {
                let content = noise(number, 16 << 20);
                let digest = keepwell_seal::Sealer::digest(&content, None);
                let blob = [&[0; 12], &content[..]].concat();
                let blob = keepwell_model::Blob::seal(keepwell_model::BlobKind::Plain, blob);
                let target = format!(
                    "dynamic_chunk?wid=1&digest={digest}&size=16777216&encoded-size=16777228"
                );
                session.call("POST", &target, blob.unwrap().into_bytes()).unwrap();
            });
        }
    });
}

#[test]
fn one_server_uses_a_state_and_takes_it_over_when_it_listens() {
    let served = Served::new();
    let world = &served.world;
    let client = served.raw_client();
    let session = served.raw_backup(&client, "raw");
    let active = |state: &str| {
        let text = fs::read_to_string(world.path(state).join("tasks/active")).unwrap();
        text.lines().count()
    };
    assert_eq!(active("srv"), 1);
    world.fails("serve --config srv/server.toml").says("another server is running with the state");
    assert_eq!(active("srv"), 1);
    // An administrator may change things meanwhile.
    world.ok("admin user create a@b@pbs --password-file password --config srv/server.toml");
    assert!(world.ok("admin user list --config srv/server.toml").stdout.contains("a@b@pbs"));
    drop(session);
    // Nor is anything changed by a server that can't listen.
    let upid = "UPID:pbs:000003E8:00001A2B:00000005:65A1B2C3:backup:x:root@pam:\n";
    world.write("other/server.toml", format!("listen = [\"127.0.0.1:{}\"]\n", served.port));
    world.write("other/tasks/active", upid);
    world.fails("serve --config other/server.toml").says("could not listen");
    assert_eq!(active("other"), 1);
}

#[test]
fn logins_at_once_are_counted_one_by_one() {
    let served = Served::with_config("login-failures-max = 2\n");
    std::thread::scope(|scope| {
        for _ in 0..10 {
            scope.spawn(|| served.run_as("root@pam", "wrong", "list").assert_failed("a login"));
        }
    });
    let log = served.log();
    let failures = log.lines().filter(|line| line.contains("authentication failure;"));
    let (refused, looked_at): (Vec<&str>, Vec<&str>) =
        failures.partition(|line| line.contains("too many failures from this address"));
    assert_eq!((refused.len(), looked_at.len()), (8, 2), "{log}");
}

#[test]
fn tasks_of_the_api_have_the_shapes_of_the_reference() {
    use keepwell_transport::Query;
    let served = Served::new();
    tree(&served.world);
    // Such a name is long in that of a task.
    let id = format!("a{}", "-".repeat(200));
    served.ok(&format!("backup a.conf:app.conf --backup-id {id}"));
    served.ok("backup a.conf:app.conf --backup-id me --backup-time 1700000000");
    let client = served.raw_client();
    let base = "/api2/json/admin/datastore/store1";
    let status = || client.get(&format!("{base}/gc"), &Query::new()).unwrap();
    let none = status();
    assert_eq!((&none["disk-chunks"], none.get("upid")), (&0.into(), None), "there was none yet");
    served.ok("garbage-collect");
    let status = status();
    assert_eq!(status["last-run-state"], "OK", "{status}");
    assert!(status["duration"].is_i64() && status["last-run-endtime"].is_i64(), "{status}");
    let group = Query::new().with("backup-type", "host").with("backup-id", "me");
    let prune = |query: Query| client.post(&format!("{base}/prune"), &query).unwrap();
    let upid = prune(group.clone().with("use-task", true));
    assert!(upid.as_str().is_some_and(|upid| upid.starts_with("UPID:")), "{upid}");
    let listed = prune(group.clone().with("use-task", true).with("dry-run", true));
    assert_eq!(listed[0]["keep"], true, "{listed}");
    assert_eq!(prune(group)[0]["keep"], true);
}

#[test]
fn a_verification_stays_within_rights_and_names_namespaces() {
    let served = Served::new();
    let admin = |line: &str| served.world.ok(&format!("{line} --config srv/server.toml"));
    tree(&served.world);
    served.ok("namespace create ns");
    served.ok("backup a.conf:app.conf --backup-id top");
    served.ok("backup a.conf:app.conf --backup-id deep --ns ns");
    admin("admin user create carol@pbs --password-file password");
    admin("admin acl update /datastore/store1 DatastoreReader --auth-id carol@pbs");
    admin("admin acl update /datastore/store1/ns NoAccess --auth-id carol@pbs");
    let verified = |user: &str| {
        let run = served.run_as(user, PASSWORD, "verify");
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        run.stdout
    };
    let (all, some) = (verified(USER), verified("carol@pbs"));
    assert!(all.contains("store1:host/top") && all.contains("store1:ns:host/deep"), "{all}");
    assert!(some.contains("store1:host/top") && !some.contains("host/deep"), "{some}");
}

#[test]
fn a_directory_belongs_to_one_datastore_by_whatever_name() {
    let served = Served::new();
    std::os::unix::fs::symlink("repo", served.world.path("alias")).unwrap();
    for path in ["alias", "alias/below"] {
        served
            .world
            .fails(&format!("admin datastore create other {path} --config srv/server.toml"))
            .says("lie in each other");
    }
}

/// What the reference's server answered to odd requests (golden http/probe.txt), and ours must.
#[test]
fn odd_requests_of_a_backup_get_the_recorded_answers() {
    use keepwell_transport::{BACKUP_PROTOCOL, Error, Query};
    let served = Served::new();
    let client = served.raw_client();
    let begin = |kind: &str, time: u64| {
        let query = Query::new()
            .with("store", "store1")
            .with("backup-type", kind)
            .with("backup-id", "probe")
            .with("backup-time", time);
        let began = || client.bare_session("/api2/json/backup", &query, BACKUP_PROTOCOL);
        // The session before ends a moment after its connection.
        let mut session = began();
        for _ in 0..100 {
            match &session {
                Err(Error::Status { message, .. }) if message.contains("already running") => {
                    std::thread::sleep(Duration::from_millis(50));
                    session = began();
                }
                _ => break,
            }
        }
        session.unwrap()
    };
    let chunk = |content: &[u8]| {
        let digest = keepwell_seal::Sealer::digest(content, None);
        let blob = [&[0; 12], content].concat();
        let kind = keepwell_model::BlobKind::Plain;
        (digest.to_string(), keepwell_model::Blob::seal(kind, blob).unwrap().into_bytes())
    };
    let content = noise(1, 1800);
    let (digest, blob) = chunk(&content);
    let mut crc = blob.clone();
    crc[9] ^= 1;
    let mut magic = blob.clone();
    magic[0] ^= 1;
    let upload = format!("dynamic_chunk?wid=1&digest={digest}&size=1800&encoded-size=1812");
    let unknown = "ab".repeat(32);
    let append = |digests: &str, offsets: &str| {
        format!("{{\"wid\":1,\"digest-list\":[{digests}],\"offset-list\":[{offsets}]}}")
            .into_bytes()
    };
    let quoted = format!("\"{digest}\"");
    let csum = {
        let mut index = keepwell_model::index::IndexEncoder::dynamic();
        index.append(&digest.parse().unwrap(), 1800).unwrap();
        index.checksum().to_string()
    };
    let close = format!("dynamic_close?wid=1&chunk-count=1&size=1800&csum={csum}");
    let verification = "parameter verification failed - ";
    let session = begin("host", 1_795_400_601);
    let cases: Vec<(&str, String, Vec<u8>, u16, String)> = vec![
        ("GET", "nope".into(), vec![], 404, "Path '/nope' not found.".into()),
        ("GET", "previous_backup_time".into(), vec![], 200, r#"{"data":null}"#.into()),
        (
            "GET",
            "previous?archive-name=index.json.blob".into(),
            vec![],
            400,
            "no valid previous backup".into(),
        ),
        (
            "POST",
            "dynamic_index?archive-name=a.pxar.didx&foo=1".into(),
            vec![],
            400,
            format!("{verification}'foo': schema does not allow additional properties."),
        ),
        (
            "POST",
            "dynamic_index?archive-name=a.pxar".into(),
            vec![],
            400,
            "wrong archive extension: 'a.pxar'".into(),
        ),
        (
            "POST",
            "dynamic_index?archive-name=a.img.fidx".into(),
            vec![],
            400,
            "wrong archive extension: 'a.img.fidx'".into(),
        ),
        (
            "POST",
            "dynamic_index?archive-name=..%2Fa.didx".into(),
            vec![],
            400,
            format!("{verification}'archive-name': value does not match the regex pattern"),
        ),
        (
            "POST",
            "fixed_index?archive-name=z.img.fidx&size=0".into(),
            vec![],
            400,
            format!("{verification}'size': value must have a minimum value of 1 (got 0)"),
        ),
        (
            "POST",
            "dynamic_index?archive-name=a.pxar.didx".into(),
            vec![],
            200,
            r#"{"data":1}"#.into(),
        ),
        (
            "POST",
            "dynamic_index?archive-name=a.pxar.didx".into(),
            vec![],
            200,
            r#"{"data":2}"#.into(),
        ),
        (
            "POST",
            upload.replace("wid=1&", "wid=77&"),
            blob.clone(),
            400,
            "dynamic writer '77' not registered".into(),
        ),
        (
            "PUT",
            "dynamic_index".into(),
            append(&format!("\"{unknown}\""), "0"),
            400,
            format!("no such chunk {unknown}"),
        ),
        (
            "POST",
            upload.replace(&digest, &"0".repeat(64)),
            blob.clone(),
            400,
            "detected chunk with wrong digest.".into(),
        ),
        (
            "POST",
            upload.replace("&size=1800", "&size=1801"),
            blob.clone(),
            400,
            "detected chunk with wrong length (1801 != 1800)".into(),
        ),
        (
            "POST",
            upload.replace("1812", "1813"),
            blob.clone(),
            400,
            "uploaded chunk has unexpected size.".into(),
        ),
        (
            "POST",
            upload.replace("1812", "1811"),
            blob.clone(),
            400,
            "uploaded chunk is larger than announced.".into(),
        ),
        ("POST", upload.clone(), magic, 400, "unable to parse raw blob - wrong magic".into()),
        ("POST", upload.clone(), crc, 200, format!(r#"{{"data":"{digest}"}}"#)),
        (
            "PUT",
            "dynamic_index".into(),
            append(&quoted, "5"),
            400,
            "dynamic writer 'a.pxar.didx' append chunk failed - got strange chunk offset (0 != 5)"
                .into(),
        ),
        (
            "PUT",
            "dynamic_index".into(),
            append(&quoted, "0,1"),
            400,
            "offset list has wrong length (2 != 1)".into(),
        ),
        ("PUT", "dynamic_index".into(), append(&quoted, "0"), 200, r#"{"data":null}"#.into()),
        (
            "POST",
            close.replace("count=1", "count=0"),
            vec![],
            400,
            format!("{verification}'chunk-count': value must have a minimum value of 1 (got 0)"),
        ),
        (
            "POST",
            close.replace("count=1", "count=2"),
            vec![],
            400,
            "dynamic writer 'a.pxar.didx' close failed - unexpected chunk count (1 != 2)".into(),
        ),
        ("POST", close.clone(), vec![], 400, "dynamic writer '1' not registered".into()),
        (
            "POST",
            "finish".into(),
            vec![],
            400,
            "found open index writer - unable to finish backup".into(),
        ),
        (
            "POST",
            "blob?file-name=x.conf.blob&encoded-size=5".into(),
            blob.clone(),
            400,
            format!("{verification}'encoded-size': value must have a minimum value of 12 (got 5)"),
        ),
        (
            "POST",
            "blob?file-name=x.conf&encoded-size=1812".into(),
            blob.clone(),
            400,
            "wrong blob file extension: 'x.conf'".into(),
        ),
        (
            "POST",
            "blob?file-name=x.conf.blob&encoded-size=100".into(),
            noise(3, 100),
            400,
            "unable to parse raw blob - wrong magic".into(),
        ),
        (
            "POST",
            "blob?file-name=x.conf.blob&encoded-size=1812".into(),
            blob.clone(),
            200,
            r#"{"data":null}"#.into(),
        ),
        (
            "POST",
            "blob?file-name=x.conf.blob&encoded-size=1812".into(),
            blob.clone(),
            200,
            r#"{"data":null}"#.into(),
        ),
        ("POST", "speedtest".into(), vec![0; 1000], 200, r#"{"data":null}"#.into()),
    ];
    let check = |session: &keepwell_transport::BareSession,
                 cases: Vec<(&str, String, Vec<u8>, u16, String)>| {
        for (method, target, body, status, text) in cases {
            let answer = match session.call(method, &target, body) {
                Ok(bytes) => (200, String::from_utf8(bytes).unwrap()),
                Err(Error::Status { status, message }) => (status, message),
                Err(error) => panic!("{method} {target}: {error}"),
            };
            assert_eq!(answer, (status, text), "{method} {target}");
        }
    };
    check(&session, cases);
    drop(session);
    let session = begin("host", 1_795_400_611);
    check(
        &session,
        vec![(
            "POST",
            "finish".into(),
            vec![],
            400,
            "backup does not contain valid files (file count == 0)".into(),
        )],
    );
    drop(session);
    // Slots of an image in any order.
    let session = begin("vm", 1_795_400_621);
    let (small, small_blob) = chunk(&noise(5, 805_696));
    let (full, full_blob) = chunk(&noise(6, 4 << 20));
    let mut image = keepwell_model::index::IndexEncoder::fixed(4 << 20);
    image.append(&full.parse().unwrap(), 4 << 20).unwrap();
    image.append(&small.parse().unwrap(), 805_696).unwrap();
    let csum = image.checksum();
    let one = |digest: &str, offset: u64| append(&format!("\"{digest}\""), &offset.to_string());
    let manifest = manifest_of("vm/probe", 1_795_400_621);
    check(
        &session,
        vec![
            (
                "POST",
                "fixed_index?archive-name=d.img.fidx&size=5000000".into(),
                vec![],
                200,
                r#"{"data":1}"#.into(),
            ),
            (
                "POST",
                format!("fixed_chunk?wid=1&digest={small}&size=805696&encoded-size=805708"),
                small_blob,
                200,
                format!(r#"{{"data":"{small}"}}"#),
            ),
            ("PUT", "fixed_index".into(), one(&small, 4 << 20), 200, r#"{"data":null}"#.into()),
            (
                "POST",
                format!("fixed_chunk?wid=1&digest={full}&size=4194304&encoded-size=4194316"),
                full_blob,
                200,
                format!(r#"{{"data":"{full}"}}"#),
            ),
            ("PUT", "fixed_index".into(), one(&full, 0), 200, r#"{"data":null}"#.into()),
            (
                "PUT",
                "fixed_index".into(),
                one(&full, 17),
                400,
                "got unaligned chunk (pos = 17)".into(),
            ),
            (
                "POST",
                format!("fixed_close?wid=1&chunk-count=2&size=5000000&csum={csum}"),
                vec![],
                200,
                r#"{"data":null}"#.into(),
            ),
            (
                "POST",
                format!("blob?file-name=index.json.blob&encoded-size={}", manifest.len()),
                manifest,
                200,
                r#"{"data":null}"#.into(),
            ),
            (
                "POST",
                format!(
                    "fixed_index?archive-name=e.img.fidx&size=5000000&reuse-csum={}",
                    "0".repeat(64)
                ),
                vec![],
                400,
                "cannot reuse index - no valid previous backup exists".into(),
            ),
            ("POST", "finish".into(), vec![], 200, r#"{"data":null}"#.into()),
        ],
    );
    drop(session);
    // The image once more, from the previous one.
    let session = begin("vm", 1_795_400_631);
    let index = "fixed_index?archive-name=d.img.fidx&size=5000000";
    let none = "0".repeat(64);
    check(
        &session,
        vec![
            (
                "POST",
                format!("{index}&reuse-csum={none}"),
                vec![],
                400,
                format!(
                    "expected csum ({none}) doesn't match last backup's ({csum}), cannot do incremental backup"
                ),
            ),
            ("POST", format!("{index}&reuse-csum={csum}"), vec![], 200, r#"{"data":1}"#.into()),
            ("PUT", "fixed_index".into(), one(&full, 0), 400, format!("no such chunk {full}")),
            (
                "POST",
                format!("fixed_close?wid=1&chunk-count=1&size=5000000&csum={csum}"),
                vec![],
                400,
                "fixed writer 'd.img.fidx' close failed - received wrong number of chunk (0 != 1)"
                    .into(),
            ),
        ],
    );
    drop(session);
    served.wait("the end of the sessions", || left_over(&served.world.repo(), "probe").is_empty());
}

/// Status and text of an answer that is an error.
fn refusal<T: std::fmt::Debug>(answer: Result<T, keepwell_transport::Error>) -> (u16, String) {
    match answer.unwrap_err() {
        keepwell_transport::Error::Status { status, message } => (status, message),
        other => panic!("{other}"),
    }
}

#[test]
fn who_has_a_ticket_is_not_held_up_by_failed_logins() {
    use keepwell_transport::Query;
    let served = Served::with_config("login-failures-max = 1\n");
    let client = served.raw_client();
    let login = |password: &str| {
        let query = Query::new().with("username", USER).with("password", password);
        client.post("/api2/json/access/ticket", &query)
    };
    let ticket = login(PASSWORD).unwrap()["ticket"].as_str().unwrap().to_owned();
    served.run_as(USER, "wrong", "list").assert_failed("a login");
    served.run_as(USER, PASSWORD, "list").assert_failed("a login");
    login(&ticket).unwrap();
}

#[test]
fn the_api_says_clearly_what_is_wrong() {
    use keepwell_transport::Query;
    let served = Served::new();
    let world = &served.world;
    tree(world);
    world.write("log.json", "{\"a\": 1}");
    served.ok("backup root.pxar:tree --backup-id me --backup-time 1700000000");
    served.ok(&format!("snapshot upload-log {SNAPSHOT} log.json"));
    let client = served.raw_client();
    let base = "/api2/json/admin/datastore/store1";
    let tasks = "/api2/json/nodes/localhost/tasks";
    // Half a target is none.
    for name in ["backup-type", "backup-id"] {
        let query = Query::new().with(name, "host");
        let (status, text) = refusal(client.post(&format!("{base}/verify"), &query));
        assert!(status == 400 && text.contains("belong together"), "{status} {text}");
    }
    let (status, text) = refusal(client.get(tasks, &Query::new().with("statusfilter", "good")));
    assert!(status == 400 && text.contains("'statusfilter'"), "{status} {text}");
    assert_eq!(client.get(tasks, &Query::new()).unwrap()[0]["node"], "localhost");
    // What the manifest does not name can be read as well.
    let decoded = |name: &str| {
        let query = Query::new()
            .with("backup-type", "host")
            .with("backup-id", "me")
            .with("backup-time", 1_700_000_000)
            .with("file-name", name);
        client.get_whole(&format!("{base}/download-decoded"), &query).unwrap()
    };
    assert_eq!(decoded("index.json.blob")["backup-id"], "me");
    assert_eq!(decoded("client.log.blob")["a"], 1);
    served.ok(&format!("snapshot protected update {SNAPSHOT} true"));
    let dry = Query::new().with("dry-run", true);
    let upid = client.post(&format!("{base}/prune-datastore"), &dry).unwrap();
    let log = served.ok(&format!("task log {}", upid.as_str().unwrap())).stdout;
    assert!(log.contains(&format!("would protected {SNAPSHOT}")), "{log}");
    assert!(log.contains("root namespace, down to full depth"), "{log}");
    let session = served.raw_backup(&client, "raw");
    let group = Query::new().with("backup-type", "host").with("backup-id", "raw");
    let (_, text) = refusal(client.delete(&format!("{base}/groups"), &group));
    assert!(text.starts_with("unable to acquire lock on backup group directory \""), "{text}");
    assert!(text.ends_with("raw\" - possible running backup"), "{text}");
    drop(session);
    // A chunk is gone.
    let dirs = fs::read_dir(world.repo().join(".chunks")).unwrap().flatten();
    let mut chunks = dirs.flat_map(|dir| fs::read_dir(dir.path()).into_iter().flatten().flatten());
    fs::remove_file(chunks.next().unwrap().path()).unwrap();
    assert!(served.ok("garbage-collect").stdout.contains("TASK WARNINGS: 1"));
    let failed = client.get(tasks, &Query::new().with("errors", true)).unwrap();
    let of_collections = |task: &&serde_json::Value| task["worker_type"] == "garbage_collection";
    assert_eq!(failed.as_array().unwrap().iter().filter(of_collections).count(), 0, "{failed}");
    let mut plain = TcpStream::connect(("127.0.0.1", served.port)).unwrap();
    plain.write_all(b"GET /x HTTP/1.0\r\n\r\n").unwrap();
    plain.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer);
    assert!(String::from_utf8_lossy(&answer).contains(" 400 Bad Request"), "{answer:?}");
}

#[test]
fn what_would_not_work_is_not_administered() {
    let served = Served::new();
    let world = &served.world;
    let init = "admin init other --user me@pbs --password-file password";
    world.fails(&format!("{init} --datastore store1=")).says("has no path");
    world.fails(&format!("{init} --datastore store1 --listen 127.0.0.1:0")).says("port 0");
    assert!(!world.path("other").exists());
    let fails = |line: &str| world.fails(&format!("{line} --config srv/server.toml"));
    fails("admin user create bob@pam --password-file password").says("use passwd");
    let deep = "/datastore/store1/a/b/c/d/e/f/g/h";
    fails(&format!("admin acl update {deep} Admin --auth-id {USER}")).says("too deep");
    world.ok("admin cert renew --config srv/server.toml");
    let key = fs::read(world.path("srv/proxy.key")).unwrap();
    world.write("srv/proxy.pem", "of somebody else");
    fails("admin cert renew").says("is not replaced");
    assert!(fs::read(world.path("srv/proxy.key")).unwrap() == key);
}

#[test]
fn a_body_that_would_be_too_long_is_not_waited_for() {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, ServerName};
    use std::sync::Arc;
    let served = Served::new();
    let pem = fs::read(served.world.path("srv/proxy.pem")).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(&pem).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").unwrap();
    let tls = rustls::ClientConnection::new(Arc::new(tls), name).unwrap();
    let stream = TcpStream::connect(("127.0.0.1", served.port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut stream = rustls::StreamOwned::new(tls, stream);
    let head = "POST /api2/json/access/ticket HTTP/1.1\r\nHost: localhost\r\n\
                Content-Type: application/json\r\nContent-Length: 600000\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 400");
}
