//! Against what the reference wrote: ../shared/golden.

use crate::support::{World, golden_tree, shared};
use std::fs;
use std::path::Path;
use std::process::Command;

/// A world whose repository is a copy of the golden store, without copying the chunks.
pub(crate) fn golden_world(shared: &Path) -> World {
    let world = World::new();
    let parts = ["host", "ns", "vm", ".lock"].map(|part| shared.join("store").join(part));
    let mut copy = Command::new("cp");
    copy.args(["-r", "--no-preserve=mode"]).args(parts).arg(world.repo());
    assert!(copy.status().unwrap().success());
    for prefix in fs::read_dir(shared.join("store/.chunks")).unwrap().flatten() {
        let target = world.repo().join(".chunks").join(prefix.file_name());
        fs::create_dir(&target).unwrap();
        for chunk in fs::read_dir(prefix.path()).unwrap().flatten() {
            fs::copy(chunk.path(), target.join(chunk.file_name())).unwrap();
        }
    }
    world
}

pub(crate) fn manifest_of(shared: &Path, root: &Path, out: &Path) {
    let listed =
        Command::new("python3").arg(shared.join("manifest.py")).arg(root).output().unwrap();
    assert!(listed.status.success());
    fs::write(out, listed.stdout).unwrap();
}

/// Lines of the golden comparer.
pub(crate) fn compare(shared: &Path, golden: &Path, ours: &Path) -> Vec<String> {
    let mut command = Command::new("python3");
    command.arg(shared.join("manifest.py")).arg("--diff").arg(golden).arg(ours);
    let text = String::from_utf8_lossy(&command.output().unwrap().stdout).into_owned();
    let lines = text.lines().filter(|line| !line.ends_with(" differences"));
    lines.map(|line| line.chars().take(200).collect()).collect()
}

/// The nodump attribute is stored but not restored by the reference; we restore it.
pub(crate) fn only_nodump(differences: &[String]) -> bool {
    differences.iter().all(|line| line.contains("flags/") && line.contains("fsflags"))
}

/// A key of the golden data.
pub(crate) fn key(shared: &Path, name: &str) -> String {
    shared.join("keys").join(name).display().to_string()
}

#[test]
fn every_golden_snapshot_restores_to_its_manifest() {
    let Some((shared, _)) = golden_tree() else { return };
    let world = golden_world(&shared);
    let with_key = ["--keyfile", &key(&shared, "plain.key")];
    let imported = ["--keyfile", &key(&shared, "imported.key")];
    let trees: [(&str, &str, &[&str]); 10] = [
        ("host/plain/2023-11-14T22:13:20Z", "plain", &[]),
        ("host/plain/2024-03-09T16:01:40Z", "mod", &[]),
        ("host/plain", "group-latest", &[]),
        ("host/excl/2023-11-14T22:14:50Z", "excl", &[]),
        ("host/bytoken/2023-11-14T22:15:10Z", "token", &[]),
        ("host/nshost/2023-11-14T22:14:30Z", "ns", &["--ns", "a/b"]),
        ("host/enc/2023-11-14T22:13:30Z", "enc", &with_key),
        ("host/signed/2023-11-14T22:13:50Z", "signed", &with_key),
        ("host/enc/2023-11-14T22:13:30Z", "master-imported-key", &imported),
        // What is neither signed nor encrypted can be read with any key at hand.
        ("host/plain", "group-latest", &with_key),
    ];
    for (turn, (snapshot, name, options)) in trees.into_iter().enumerate() {
        let target = format!("out-{turn}");
        let arguments = [&["restore", snapshot, "root.pxar", &target], options].concat();
        let run = world.run(arguments);
        assert_eq!(run.code, Some(0), "{name}: {}", run.stderr);
        let ours = world.path(&format!("{name}.jsonl"));
        manifest_of(&shared, &world.path(&target), &ours);
        let golden = shared.join(format!("restore/{name}.manifest.jsonl"));
        let found = compare(&shared, &golden, &ours);
        assert!(only_nodump(&found), "{name}: {found:#?}");
    }
    let arguments = ["restore", "host/enc", "root.pxar", "out-mod-enc"];
    assert_eq!(world.run([&arguments[..], &with_key].concat()).code, Some(0));
    manifest_of(&shared, &world.path("out-mod-enc"), &world.path("mod-enc.jsonl"));
    let golden = shared.join("restore/mod.manifest.jsonl");
    let found = compare(&shared, &golden, &world.path("mod-enc.jsonl"));
    assert!(only_nodump(&found), "mod-enc: {found:#?}");
    let flags =
        "--ignore-acls true --ignore-xattrs true --ignore-ownership true --ignore-permissions true";
    world.ok(&format!("restore host/plain/2023-11-14T22:13:20Z root.pxar out-flags {flags}"));
    manifest_of(&shared, &world.path("out-flags"), &world.path("flags.jsonl"));
    let golden = shared.join("restore/flags.manifest.jsonl");
    let found = compare(&shared, &golden, &world.path("flags.jsonl"));
    assert!(only_nodump(&found), "flags: {found:#?}");
    // Restored trees have files that nobody can remove before this.
    let _ = Command::new("chattr").args(["-R", "-i", "-a"]).arg(world.dir.path()).output();
}

#[test]
fn the_golden_store_is_found_sound_and_holds_no_garbage() {
    let Some(shared) = shared() else { return };
    let world = golden_world(&shared);
    let run = world.ok("verify");
    assert!(run.stdout.contains("verified 12.83/42.55 MiB in "), "{}", run.stdout);
    assert!(!run.stdout.contains("damaged"), "{}", run.stdout);
    let key = key(&shared, "plain.key");
    // The outcome is written where no signature covers it.
    world.ok(&format!("restore host/signed root.pxar - --keyfile {key}"));
    let status = world.ok("garbage-collect --output-format json").json();
    assert_eq!(
        (status["removed-chunks"].as_u64(), status["pending-chunks"].as_u64()),
        (Some(0), Some(0))
    );
    assert!(status["disk-chunks"].as_u64().unwrap() > 10);
}

#[test]
fn golden_images_and_blobs_restore_to_the_same_bytes() {
    let Some(shared) = shared() else { return };
    let world = golden_world(&shared);
    let sums = fs::read_to_string(shared.join("restore/sha-restored.txt")).unwrap();
    let cases = [
        ("vm/100/2023-11-14T22:14:10Z", "drive.img", "TARGET/img"),
        ("vm/101/2023-11-14T22:14:11Z", "odd.img", "TARGET/img-odd"),
        ("host/blobs/2023-11-14T22:14:40Z", "app.conf", "TARGET/blob-conf"),
        ("host/blobs/2023-11-14T22:14:40Z", "run.log", "TARGET/blob-log"),
    ];
    for (snapshot, archive, name) in cases {
        let run = world.ok(&format!("restore {snapshot} {archive} restored"));
        let bytes = fs::read(world.path("restored")).unwrap();
        let sum = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(&bytes));
        let line = sums.lines().find(|line| line.ends_with(name)).unwrap();
        assert!(line.starts_with(&sum), "{archive}");
        let is_image = archive.ends_with(".img");
        assert_eq!(run.stderr.contains("restore image complete (bytes="), is_image);
        let piped = world.ok(&format!("restore {snapshot} {archive} -"));
        assert_eq!(piped.stdout_bytes, bytes);
        fs::remove_file(world.path("restored")).unwrap();
    }
}

#[test]
fn encrypted_golden_blobs_and_logs_restore_to_the_same_bytes() {
    let Some(shared) = shared() else { return };
    let world = golden_world(&shared);
    let key = key(&shared, "plain.key");
    let plain = |name: &str| {
        world.ok(&format!("restore host/blobs/2023-11-14T22:14:40Z {name} -")).stdout_bytes
    };
    for id in ["blobsenc", "blobssig"] {
        for name in ["app.conf", "run.log"] {
            let run = world.ok(&format!("restore host/{id} {name} - --keyfile {key}"));
            assert_eq!(run.stdout_bytes, plain(name), "{id} {name}");
            run.says(&format!("Using encryption key from '{key}'..\n"));
            run.says("Fingerprint: a9:25:fc:8b:55:80:ca:f5\n");
            let fails = world.fails(&format!("restore host/{id} {name} -"));
            fails.says("missing key - manifest was created with key a9:25:fc:8b:55:80:ca:f5");
        }
    }
    let log = "host/enc/2023-11-14T22:13:30Z/client.log.blob";
    let log = keepwell_model::Blob::parse(fs::read(world.repo().join(log)).unwrap()).unwrap();
    let file = keepwell_seal::KeyFile::parse(&fs::read(key).unwrap()).unwrap();
    let mut opener = keepwell_seal::Opener::new().unwrap();
    let opened = opener.open(log, Some(&file.unlock(b"").unwrap())).unwrap();
    assert_eq!(opened, plain("run.log"));
}

/// The golden master key gives both golden keys back.
#[test]
fn wrapped_golden_keys_come_back_with_the_golden_master_key() {
    let Some(shared) = shared() else { return };
    let world = golden_world(&shared);
    let run = world.ok("restore host/master2 rsa-encrypted.key restored.key");
    run.says("Restoring encrypted key blob without original key - skipping manifest");
    let restored = fs::read(world.path("restored.key")).unwrap();
    assert_eq!(restored, fs::read(key(&shared, "rsa-encrypted2.key")).unwrap());
    let private = key(&shared, "master/master-private.pem");
    let import = |wrapped: &str, out: &str| {
        let line = format!(
            "key import-with-master-key {out} --master-keyfile {private} --encrypted-keyfile \
             {wrapped} --kdf none"
        );
        let run = world.typed(line.split(' '), &[("Master Key Password: ", "masterpw1")]);
        assert_eq!(run.code, Some(0), "{}", run.stdout);
        keepwell_seal::KeyFile::parse(&fs::read(world.path(out)).unwrap()).unwrap()
    };
    let scrypt = import("restored.key", "scrypt.key");
    let golden = fs::read(key(&shared, "scrypt.key")).unwrap();
    let golden = keepwell_seal::KeyFile::parse(&golden).unwrap();
    assert_eq!((scrypt.fingerprint, scrypt.created), (golden.fingerprint, golden.created));
    world.ok("restore host/master2 root.pxar out --keyfile scrypt.key");
    let plain = import(&key(&shared, "rsa-encrypted.key"), "plain.key");
    let golden = fs::read(key(&shared, "imported.key")).unwrap();
    let golden = keepwell_seal::KeyFile::parse(&golden).unwrap();
    assert_eq!(
        (plain.fingerprint, plain.created, plain.unlock(b"").unwrap().sign(b"x")),
        (golden.fingerprint, golden.created, golden.unlock(b"").unwrap().sign(b"x"))
    );
}

#[test]
fn golden_keys_are_shown_as_the_reference_shows_them() {
    let Some(shared) = shared() else { return };
    let world = World::new();
    let recorded = |name: &str| {
        let text = fs::read_to_string(shared.join(format!("key/{name}.txt"))).unwrap();
        let stdout = text.split("--- stdout ---\n").nth(1).unwrap();
        stdout.split("--- stderr ---").next().unwrap().to_owned()
    };
    for name in ["plain", "pbkdf2", "scrypt"] {
        let path = key(&shared, &format!("{name}.key"));
        for format in ["json", "json-pretty"] {
            let run = world.ok(&format!("key show {path} --output-format {format}"));
            let golden = recorded(&format!("key-show-{name}-{format}"));
            let golden = golden.replace(&format!("GOLDEN/keys/{name}.key"), &path);
            assert_eq!(run.stdout.trim_end(), golden.trim_end(), "{name} {format}");
        }
        // The path differs in length, so of the table everything but its row and the borders.
        let run = world.ok(&format!("key show {path}"));
        let cells = |text: &str| -> Vec<Vec<String>> {
            let rows =
                text.lines().filter(|line| line.starts_with('│') && !line.contains("/keys/"));
            rows.map(|row| row.split('│').map(|cell| cell.trim().to_owned()).collect()).collect()
        };
        let golden = recorded(&format!("key-show-{name}-text"));
        assert_eq!(cells(&run.stdout), cells(&golden));
        assert!(cells(&golden).len() > 4);
    }
    let public = key(&shared, "master/master-public.pem");
    let run = world.ok(&format!("key import-master-pubkey {public}"));
    let golden = fs::read_to_string(shared.join("key/key-import-master-pubkey.txt")).unwrap();
    let golden = golden.split("--- stderr ---\n").nth(1).unwrap();
    let config = world.path(".config").display().to_string();
    let golden = golden.replace("GOLDEN/keys/master/master-public.pem", &public);
    assert_eq!(run.stderr, golden.replace("XDG/config", &config));
    let imported = world.path(".config/proxmox-backup/master-public.pem");
    assert_eq!(fs::read(&imported).unwrap(), fs::read(&public).unwrap());
    let shown = world.ok("key show-master-pubkey --output-format json").stdout;
    let golden = recorded("key-show-master-pubkey-json");
    let golden = golden.replace("XDG/config", &config);
    assert_eq!(shown.trim_end(), golden.trim_end());
}

/// The reference's paper shows the same text; its QR code may be drawn in another way.
#[test]
fn golden_keys_on_paper_have_the_text_of_the_reference() {
    let Some(shared) = shared() else { return };
    let world = World::new();
    let is_code = |line: &&str| !line.contains(['█', '▀', '▄']) && !line.starts_with("src=");
    for (name, options) in [
        ("text-plain", "plain.key --output-format text"),
        ("text-scrypt", "scrypt.key --output-format text"),
        ("text-pbkdf2", "pbkdf2.key --output-format text"),
        ("html-plain", "plain.key --output-format html"),
        ("default-plain", "plain.key"),
    ] {
        let run = world.ok(&format!("key paperkey {}", key(&shared, options)));
        let golden = fs::read_to_string(shared.join(format!("key/key-paperkey-{name}.txt")));
        let golden = golden.unwrap();
        let golden = golden.split("--- stdout ---\n").nth(1).unwrap();
        let golden = golden.split("--- stderr ---").next().unwrap();
        let text = |page: &str| -> Vec<String> {
            page.trim_end().lines().filter(is_code).map(str::to_owned).collect()
        };
        assert_eq!(text(&run.stdout), text(golden), "{name}");
        assert_eq!(
            run.stdout.matches("src=\"data:image/svg+xml;base64,").count(),
            golden.matches("src=\"").count()
        );
    }
}

#[test]
fn archives_have_the_bytes_of_the_reference() {
    let Some((shared, tree)) = golden_tree() else { return };
    let world = World::new();
    let make = |name: &str, source: &str, options: &str| {
        let target = world.path(&format!("{name}.pxar"));
        let mut arguments = vec!["pxar".into(), "create".into(), target.clone().into_os_string()];
        arguments.push(tree.join(source).into_os_string());
        arguments.extend(options.split(' ').filter(|o| !o.is_empty()).map(Into::into));
        let run = world.run(&arguments);
        assert_eq!(run.code, Some(0), "{name}: {}", run.stderr);
        let golden = fs::read(shared.join(format!("pxar/{name}.pxar"))).unwrap();
        assert!(fs::read(target).unwrap() == golden, "{name} differs");
    };
    for name in ["acl", "links", "names", "modes", "flags", "special", "times", "xattr"] {
        make(name, name, "");
    }
    make("empty", "emptydir", "");
    make("exclude-cli", "links", "--exclude hl-* --exclude !hl-a --exclude /sub/");
    for name in ["bad", "crlf", "doc", "dot", "nonl", "ovr"] {
        make(&format!("exclroot-{name}"), &format!("excl/{name}"), "");
    }
    make("no-acls", "acl", "--no-acls true");
    make("no-fcaps", "xattr", "--no-fcaps true");
    make("no-xattrs", "xattr", "--no-xattrs");
}

/// Length and digest of each chunk of a dynamic index.
fn chunks(index: &Path) -> Vec<(u64, String)> {
    let bytes = fs::read(index).unwrap();
    let index = keepwell_model::Index::parse_dynamic(bytes).unwrap();
    index.chunks().map(|chunk| (chunk.end - chunk.start, chunk.digest.to_string())).collect()
}

/// In two chunks our archive of the golden tree differs from the reference's: the one that holds
/// `excl/`, where patterns follow the documentation, and the last, whose table holds distances to
/// the start. All others must have the same digests: data meets what existing clients stored.
#[test]
fn chunks_of_the_golden_tree_have_the_golden_digests() {
    let Some((shared, tree)) = golden_tree() else { return };
    let world = World::new();
    let spec = format!("root.pxar:{}", tree.display());
    let key = key(&shared, "plain.key");
    let with_key = format!("--keyfile {key}");
    let signed = format!("{with_key} --crypt-mode sign-only");
    for (id, at, time, options) in [
        ("plain", "2023-11-14T22:13:20Z", 1_700_000_000, ""),
        ("enc", "2023-11-14T22:13:30Z", 1_700_000_010, &with_key),
        ("signed", "2023-11-14T22:13:50Z", 1_700_000_030, &signed),
    ] {
        let line = format!("backup {spec} --backup-id {id} --backup-time {time} {options}");
        let run = world.ok(line.trim_end());
        run.says("bad pattern in \"excl/bad\": trailing backslash in pattern");
        let path = format!("host/{id}/{at}/root.pxar.didx");
        let (golden, ours) =
            (chunks(&shared.join("store").join(&path)), chunks(&world.repo().join(&path)));
        assert_eq!(golden.len(), ours.len());
        let differing: Vec<usize> = (0..golden.len()).filter(|i| golden[*i] != ours[*i]).collect();
        assert_eq!(differing, [0, golden.len() - 1], "{id}");
        // Six entries out that the documentation excludes, one in that it does not.
        assert_eq!(golden[0].0 - ours[0].0, 605);
    }
}

/// Where the rules agree, everything is the same: whole indexes, checksums, catalogs.
#[test]
fn whole_snapshots_have_the_golden_checksums() {
    let Some((shared, tree)) = golden_tree() else { return };
    let world = World::new();
    let cases = [
        ("links", "bytoken", 1_700_000_110, "2023-11-14T22:15:10Z"),
        ("emptydir", "emptydir", 1_700_000_091, "2023-11-14T22:14:51Z"),
    ];
    for (part, id, time, name) in cases {
        let source = tree.join(part);
        let spec = format!("root.pxar:{}", source.display());
        world.ok(&format!("backup {spec} --backup-id {id} --backup-time {time}"));
        let golden = shared.join(format!("manifests/host__{id}__{name}__index.json"));
        let golden: serde_json::Value = serde_json::from_slice(&fs::read(golden).unwrap()).unwrap();
        let ours = world.ok(&format!("restore host/{id} index.json -")).json();
        assert_eq!(ours["files"], golden["files"], "{id}");
    }
}

#[test]
fn the_golden_store_lists_as_the_reference_lists_it() {
    let Some(shared) = shared() else { return };
    let world = golden_world(&shared);
    let golden_json = |file: &str| -> serde_json::Value {
        let text = fs::read_to_string(shared.join(file)).unwrap();
        let line = text.lines().skip_while(|line| *line != "--- stdout ---").nth(1).unwrap();
        serde_json::from_str(line).unwrap()
    };
    let ours = world.ok("snapshot list --output-format json").json();
    let golden = golden_json("cmd/snapshot-list-json.txt");
    let find = |list: &serde_json::Value, id: &str, time: &serde_json::Value| {
        let items = list.as_array().unwrap().iter();
        items.into_iter().find(|i| i["backup-id"] == id && i["backup-time"] == *time).cloned()
    };
    let mut compared = 0;
    for item in ours.as_array().unwrap() {
        let id = item["backup-id"].as_str().unwrap();
        if let Some(mut other) = find(&golden, id, &item["backup-time"]) {
            // Notes, logs and protection were changed between the recording and the copy.
            let mut item = item.clone();
            for list in [&mut item, &mut other] {
                for key in ["comment", "protected", "files", "size"] {
                    list.as_object_mut().unwrap().remove(key);
                }
            }
            assert_eq!(item, other);
            compared += 1;
        }
    }
    assert!(compared >= 12, "{compared}");
    let namespaces = world.ok("namespace list --output-format json").json();
    assert_eq!(namespaces, golden_json("cmd/namespace-list-json.txt"));
    let pruned = world.ok("prune host/plain --dry-run true --keep-daily 2 --output-format json");
    assert_eq!(pruned.json(), golden_json("cmd/prune-dry-json-keep-daily_2.txt"));
    let stdout_of = |file: &str| {
        let text = fs::read_to_string(shared.join(file)).unwrap();
        let after = text.split_once("--- stdout ---\n").unwrap().1;
        after.split_once("--- stderr ---").unwrap().0.to_owned()
    };
    for options in ["keep-daily_2", "keep-last_1", "keep-hourly_1_keep-yearly_1", "none"] {
        let given: String =
            options
                .split('_')
                .filter(|word| *word != "none")
                .map(|word| {
                    if word.starts_with("keep") { format!(" --{word}") } else { format!(" {word}") }
                })
                .collect();
        let table = world.ok(&format!("prune host/plain --dry-run{given}"));
        assert_eq!(table.stdout, stdout_of(&format!("cmd/prune-dry-{options}.txt")));
    }
    let notes = world.ok("snapshot notes show host/noted/2023-11-14T22:15:00Z");
    assert_eq!(notes.stdout, stdout_of("cmd/notes-show-text.txt"));
    let protected = world.ok("snapshot protected show host/noted/2023-11-14T22:15:00Z");
    assert_eq!(protected.stdout, "true\n");
    let text = world.ok("list").stdout;
    let line =
        "│ host/blobs    │ host/blobs/2023-11-14T22:14:40Z    │            1 │ app.conf index.json";
    assert!(text.contains(line), "{text}");
}

#[test]
fn the_golden_catalog_dumps_as_the_reference_dumps_it() {
    let Some(shared) = shared() else { return };
    let world = golden_world(&shared);
    let dumped = world.ok("catalog dump host/plain/2023-11-14T22:13:20Z").stdout;
    let golden = fs::read_to_string(shared.join("cmd/catalog-dump-plain.txt")).unwrap();
    let golden: Vec<&str> =
        golden.lines().skip_while(|line| *line != "--- stderr ---").skip(1).collect();
    assert_eq!(dumped.lines().collect::<Vec<_>>(), golden);
    world.fails("catalog dump vm/100/2023-11-14T22:14:10Z").says("has no catalog");
}

#[test]
fn encrypted_snapshots_say_that_they_need_a_key() {
    let Some(shared) = shared() else { return };
    let world = golden_world(&shared);
    for group in ["host/enc", "host/signed", "host/blobsenc"] {
        let run = world.fails(&format!("restore {group} root.pxar out"));
        run.says("missing key - manifest was created with key a9:25:fc:8b:55:80:ca:f5");
        assert!(!world.path("out").exists());
    }
    world.fails("catalog dump host/enc/2023-11-14T22:13:30Z").says("missing key");
}

/// A backup into a store that the reference wrote builds on what is there.
#[test]
fn a_backup_into_the_golden_store_reuses_its_chunks() {
    let Some((shared, tree)) = golden_tree() else { return };
    let world = golden_world(&shared);
    let owner = fs::read_to_string(world.repo().join("host/plain/owner")).unwrap();
    let spec = format!("root.pxar:{}", tree.display());
    let run = world.ok(&format!("backup {spec} --backup-id plain --output-format json"));
    run.says("Downloading previous manifest (Sat Mar  9 16:03:20 2024)");
    let summary = run.json();
    assert_eq!(summary["chunks"], 6);
    // The first and the last chunk, as above.
    assert_eq!(summary["new-chunks"], 2);
    assert_eq!(fs::read_to_string(world.repo().join("host/plain/owner")).unwrap(), owner);
}
