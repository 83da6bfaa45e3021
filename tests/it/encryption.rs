//! Encrypted and signed backups: which key is used, what it protects, what is refused.

use crate::support::{Run, World, noise};
use keepwell_model::{Blob, BlobKind};
use keepwell_seal::{KeyFile, Opener, Sealer};
use std::fs;
use std::path::PathBuf;

/// A world with a tree, a configuration file and two keys.
fn world() -> World {
    let world = World::new();
    world.write("tree/dir/big", noise(1, 400_000));
    world.write("tree/small", "some text that compresses, some text that compresses");
    world.write("app.conf", "key = value\n");
    world.ok("key create a.key --kdf none");
    world.ok("key create b.key --kdf none");
    world
}

const SPECS: &str = "backup root.pxar:tree app.conf:app.conf --chunk-size 64 --backup-id me";

fn back_up(world: &World, time: u32, options: &str) -> Run {
    world.ok(format!("{SPECS} --backup-time {time} {options}").trim_end())
}

fn snapshot_dir(world: &World) -> PathBuf {
    world.repo().join("host/me/2023-11-14T22:13:20Z")
}

fn manifest(world: &World) -> serde_json::Value {
    let bytes = fs::read(snapshot_dir(world).join("index.json.blob")).unwrap();
    let json = Opener::new().unwrap().open(Blob::parse(bytes).unwrap(), None).unwrap();
    serde_json::from_slice(&json).unwrap()
}

fn put_manifest(world: &World, manifest: &serde_json::Value) {
    let json = serde_json::to_vec_pretty(manifest).unwrap();
    let blob = Sealer::new().unwrap().seal(&json, None).unwrap();
    fs::write(snapshot_dir(world).join("index.json.blob"), blob.as_bytes()).unwrap();
}

/// All files of chunks.
fn chunk_files(world: &World) -> Vec<PathBuf> {
    let dirs = fs::read_dir(world.repo().join(".chunks")).unwrap().flatten();
    let files = dirs.flat_map(|dir| fs::read_dir(dir.path()).unwrap().flatten());
    files.map(|file| file.path()).collect()
}

fn kind(path: &std::path::Path) -> BlobKind {
    BlobKind::of_magic(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn nothing_of_an_encrypted_backup_can_be_read_without_its_key() {
    let world = world();
    let run = back_up(&world, 1_700_000_000, "--keyfile a.key");
    run.says("Using encryption key from 'a.key'..\nEncryption key fingerprint: ");
    assert!(chunk_files(&world).iter().all(|path| kind(path).is_encrypted()));
    assert!(kind(&snapshot_dir(&world).join("app.conf.blob")).is_encrypted());
    let manifest = manifest(&world);
    let modes = manifest["files"].as_array().unwrap().iter().map(|file| &file["crypt-mode"]);
    assert!(modes.clone().count() == 3 && modes.clone().all(|mode| mode == "encrypt"));
    assert_eq!(manifest["signature"].as_str().unwrap().len(), 64);
    let shown = world.ok("key show a.key --output-format json").json();
    assert_eq!(manifest["unprotected"]["key-fingerprint"], shown["fingerprint"]);
    world.ok("restore host/me root.pxar out --keyfile a.key");
    assert_eq!(fs::read(world.path("out/dir/big")).unwrap(), noise(1, 400_000));
    let conf = world.ok("restore host/me app.conf - --keyfile a.key");
    assert_eq!(conf.stdout, "key = value\n");
    let dumped = world.ok("catalog dump host/me/2023-11-14T22:13:20Z --keyfile a.key");
    assert!(dumped.stdout.contains("\"./root.pxar.didx/dir/big\""), "{}", dumped.stdout);
    for line in [
        "restore host/me root.pxar no",
        "restore host/me app.conf no",
        "restore host/me root.pxar -",
        "restore host/me index.json no",
        "catalog dump host/me/2023-11-14T22:13:20Z",
    ] {
        world.fails(line).says("missing key - manifest was created with key ");
        let wrong = world.fails(&format!("{line} --keyfile b.key"));
        wrong.says("wrong key - unable to verify signature since manifest's key ");
        wrong.says("does not match provided key ");
        assert!(!world.path("no").exists(), "{line}");
    }
    // Listings need no key.
    let files = world.ok("snapshot files host/me/2023-11-14T22:13:20Z --output-format json").json();
    let of = |name: &str| {
        files.as_array().unwrap().iter().find(|file| file["filename"] == name).unwrap()["crypt-mode"].clone()
    };
    assert_eq!(
        (of("root.pxar.didx"), of("index.json.blob")),
        ("encrypt".into(), "sign-only".into())
    );
}

#[test]
fn a_signed_backup_is_stored_in_the_clear_and_checked() {
    let world = world();
    back_up(&world, 1_700_000_000, "--keyfile a.key --crypt-mode sign-only");
    assert!(chunk_files(&world).iter().all(|path| !kind(path).is_encrypted()));
    world.ok("restore host/me root.pxar out --keyfile a.key");
    world.fails("restore host/me root.pxar no").says("missing key");
    world.fails("restore host/me root.pxar no --keyfile b.key").says("wrong key");
    // It shares its chunks with backups that nobody signed.
    let run = back_up(&world, 1_700_000_001, "--output-format json");
    assert_eq!(run.json()["new-chunks"], 0);
}

/// Every row of the table in cli.md §1.
#[test]
fn the_key_and_the_mode_follow_from_the_options() {
    let world = world();
    fs::create_dir_all(world.path(".config/proxmox-backup")).unwrap();
    let default_key = world.path(".config/proxmox-backup/encryption-key.json");
    let default_master = world.path(".config/proxmox-backup/master-public.pem");
    let master = keepwell_seal::MasterKey::generate().unwrap().public().to_pem().unwrap();
    world.write("master.pem", &master);
    let mut time = 1_700_000_000;
    let mut mode_of = |options: &str| {
        time += 1;
        let line = format!("backup app.conf:app.conf --backup-id t --backup-time {time} {options}");
        let run = world.ok(line.trim_end());
        let list = world.ok("snapshot list host/t --output-format json").json();
        let newest = list.as_array().unwrap().last().unwrap()["files"].clone();
        let mode = newest.as_array().unwrap()[0]["crypt-mode"].clone();
        let wrapped = newest.to_string().contains("rsa-encrypted.key.blob");
        (mode.as_str().unwrap().to_owned(), wrapped, run.stderr)
    };
    let mut expect = |options: &str, mode: &str, wrapped: bool, said: &str| {
        let (found, found_wrapped, text) = mode_of(options);
        assert_eq!((found.as_str(), found_wrapped), (mode, wrapped), "{options}\n{text}");
        assert!(text.contains(said), "{options}: '{said}' is not in {text}");
    };
    let refused = |options: &str, said: &str| {
        world.fails(&format!("backup app.conf:app.conf --backup-id t {options}")).says(said);
    };
    // No defaults.
    expect("", "none", false, "");
    expect("--keyfile a.key", "encrypt", false, "Using encryption key from 'a.key'..");
    expect(
        "--keyfile a.key --master-pubkey-file master.pem",
        "encrypt",
        true,
        "Using master key from 'master.pem'..",
    );
    expect("--keyfile a.key --crypt-mode sign-only", "sign-only", false, "");
    expect(
        "--keyfile a.key --crypt-mode sign-only --master-pubkey-file master.pem",
        "sign-only",
        true,
        "",
    );
    expect("--crypt-mode none", "none", false, "");
    let no_key = "--crypt-mode without --keyfile and no default key file available";
    refused("--crypt-mode encrypt", no_key);
    refused("--crypt-mode sign-only", no_key);
    refused(
        "--master-pubkey-file master.pem",
        "--master-pubkey-file/--master-pubkey-fd specified, but no key available",
    );
    refused(
        "--crypt-mode none --keyfile a.key",
        "--keyfile/--keyfd and --crypt-mode=none are mutually exclusive",
    );
    refused(
        "--crypt-mode none --master-pubkey-file master.pem",
        "--master-pubkey-file/--master-pubkey-fd and --crypt-mode=none are mutually exclusive",
    );
    refused("--keyfile a.key --keyfd 9", "--keyfile and --keyfd are mutually exclusive");
    refused("--keyfile nope.key", "\"nope.key\"");
    refused("--keyfile app.conf", "encryption key 'app.conf': it is no key file");
    refused("--keyfd 77", "file descriptor 77");
    refused(
        "--keyfile a.key --master-pubkey-file app.conf",
        "master key 'app.conf': it is no public RSA key",
    );
    refused("--keyfile a.key --crypt-mode rot13", "rot13");
    // A default key.
    fs::copy(world.path("b.key"), &default_key).unwrap();
    expect("", "encrypt", false, "Using default encryption key..");
    expect("--master-pubkey-file master.pem", "encrypt", true, "");
    expect("--crypt-mode none", "none", false, "");
    expect("--crypt-mode encrypt", "encrypt", false, "Encrypting with default encryption key!");
    expect("--crypt-mode sign-only", "sign-only", false, "Encrypting with default encryption key!");
    expect("--keyfile a.key", "encrypt", false, "Using encryption key from 'a.key'..");
    // A default master key, too.
    fs::write(&default_master, &master).unwrap();
    expect("", "encrypt", true, "Using default master key..");
    expect("--keyfile a.key", "encrypt", true, "Using default master key..");
    expect("--crypt-mode sign-only", "sign-only", true, "Using default master key..");
    expect("--crypt-mode none", "none", false, "");
}

#[test]
fn a_key_and_its_password_come_from_where_the_user_says() {
    let world = world();
    let locked = [("Encryption Key Password: ", "secret ü1"), ("Verify Password: ", "secret ü1")];
    let run = world.typed(["key", "create", "locked.key", "--hint", "the hint"], &locked);
    assert_eq!(run.code, Some(0), "{}", run.stdout);
    world.write("password", "secret ü1\r\na comment");
    let run_with = |variable: &str, value: &str, time: u32| {
        let mut command = world.command();
        let line = format!("{SPECS} --keyfile locked.key --backup-time {time}");
        command.args(line.split(' ')).env(variable, value);
        Run::from(command.output().unwrap())
    };
    let password = world.path("password").display().to_string();
    let good = [
        ("PBS_ENCRYPTION_PASSWORD", "secret ü1".to_owned()),
        ("PBS_ENCRYPTION_PASSWORD_FILE", password.clone()),
        ("PBS_ENCRYPTION_PASSWORD_CMD", format!("cat '{password}'")),
    ];
    for (turn, (variable, value)) in good.into_iter().enumerate() {
        let run = run_with(variable, &value, 1_700_000_000 + turn as u32);
        assert_eq!(run.code, Some(0), "{variable}: {}", run.stderr);
    }
    let bad = [
        (
            "PBS_ENCRYPTION_PASSWORD",
            "wrong password",
            "Unable to decrypt key (password hint: the hint)",
        ),
        ("PBS_ENCRYPTION_PASSWORD", "abc", "Passphrase is too short!"),
        (
            "PBS_ENCRYPTION_PASSWORD_FD",
            "x",
            "unable to parse file descriptor in ENV(PBS_ENCRYPTION_PASSWORD_FD)",
        ),
        (
            "PBS_ENCRYPTION_PASSWORD_FILE",
            "nope",
            "unable to open file in ENV(PBS_ENCRYPTION_PASSWORD_FILE): 'nope'",
        ),
        (
            "PBS_ENCRYPTION_PASSWORD_CMD",
            "false",
            "command in ENV(PBS_ENCRYPTION_PASSWORD_CMD) failed",
        ),
        ("PBS_ENCRYPTION_PASSWORD_CMD", "'", "ENV(PBS_ENCRYPTION_PASSWORD_CMD) is no command"),
        ("UNUSED", "", "no password input mechanism available"),
    ];
    for (variable, value, error) in bad {
        let run = run_with(variable, value, 1_800_000_000);
        run.assert_failed(variable);
        run.says(error);
        assert!(!run.stderr.contains("wrong password'"), "passwords are not printed");
    }
    assert_eq!(world.snapshots().len(), 3);
    // Both from descriptors, as a shell opens them.
    let script = format!(
        "exec {} {SPECS} --backup-time 1900000000 --keyfd 8 8< locked.key 9< password",
        env!("CARGO_BIN_EXE_keepwell")
    );
    let shell = world.command();
    let mut command = std::process::Command::new("sh");
    command.args(["-c", &script]).current_dir(world.dir.path());
    command.envs(shell.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.env("PBS_ENCRYPTION_PASSWORD_FD", "9");
    let run = Run::from(command.output().unwrap());
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    run.says("Using encryption key from file descriptor..\n");
    // Typed.
    let restore = ["restore", "host/me", "app.conf", "typed", "--keyfile", "locked.key"];
    let run = world.typed(restore, &[("Encryption Key Password: ", "secret ü1")]);
    assert_eq!(run.code, Some(0), "{}", run.stdout);
}

#[test]
fn only_a_snapshot_of_the_same_key_is_built_on() {
    let world = world();
    let new_bytes = |time: u32, options: &str| {
        let options = format!("{options} --output-format json");
        let run = back_up(&world, time, options.trim_start());
        (run.json()["new-chunks"].as_u64().unwrap(), run.stderr)
    };
    let (all, text) = new_bytes(1_700_000_000, "--keyfile a.key");
    assert!(all > 2 && text.contains("No previous manifest available."));
    let (none, text) = new_bytes(1_700_000_001, "--keyfile a.key");
    assert!(none == 0 && text.contains("Downloading previous manifest (Tue Nov 14 22:13:20 2023)"));
    let (other, text) = new_bytes(1_700_000_002, "--keyfile b.key");
    assert_eq!(other, all, "another key has other chunks");
    assert!(text.contains("Couldn't re-use previous manifest - wrong key"), "{text}");
    let (plain, text) = new_bytes(1_700_000_003, "");
    assert_eq!(plain, all);
    assert!(text.contains("Couldn't re-use previous manifest - missing key"), "{text}");
    let (again, text) = new_bytes(1_700_000_004, "--keyfile a.key");
    assert!(again == 0 && !text.contains("Couldn't"), "{text}");
}

#[test]
fn what_changes_behind_the_keys_back_is_refused() {
    let world = world();
    back_up(&world, 1_700_000_000, "--keyfile a.key");
    let restore = "restore host/me root.pxar no --keyfile a.key";
    let good = manifest(&world);
    let refused = |change: &dyn Fn(&mut serde_json::Value), said: &str| {
        let mut bad = good.clone();
        change(&mut bad);
        put_manifest(&world, &bad);
        world.fails(restore).says(said);
        world.fails("restore host/me app.conf no --keyfile a.key").says(said);
        world.fails("catalog dump host/me/2023-11-14T22:13:20Z --keyfile a.key").says(said);
        assert!(!world.path("no").exists());
        put_manifest(&world, &good);
    };
    let wrong = "wrong signature in manifest";
    refused(&|m| m["files"][0]["csum"] = "0".repeat(64).into(), wrong);
    refused(&|m| m["files"][0]["size"] = 1.into(), wrong);
    refused(&|m| m["files"][0]["crypt-mode"] = "none".into(), wrong);
    refused(&|m| m["files"][0]["filename"] = "other.pxar.didx".into(), wrong);
    refused(&|m| m["files"].as_array_mut().unwrap().swap(0, 1), wrong);
    refused(&|m| m["files"].as_array_mut().unwrap().truncate(1), wrong);
    refused(&|m| m["added"] = 1.into(), wrong);
    refused(&|m| m["signature"] = "0".repeat(64).into(), wrong);
    refused(&|m| m["signature"] = "junk".into(), wrong);
    let unsigned = "is not signed, though it says that a key protects it";
    refused(&|m| m["signature"] = serde_json::Value::Null, unsigned);
    refused(
        &|m| {
            m["signature"] = serde_json::Value::Null;
            m["unprotected"] = serde_json::json!({});
        },
        unsigned,
    );
    refused(
        &|m| m["unprotected"]["key-fingerprint"] = ["00"; 32].join(":").into(),
        "wrong key - unable to verify signature",
    );
    refused(&|m| m["unprotected"]["key-fingerprint"] = "x".into(), "is not a fingerprint");
    refused(&|m| m["backup-id"] = "you".into(), "it is the manifest of host/you/");
    refused(
        &|m| m["backup-time"] = 1_700_000_001.into(),
        "it is the manifest of host/me/2023-11-14T22:13:21Z",
    );
    // What no signature covers may change: notes, and what a server writes.
    let mut noted = good.clone();
    noted["unprotected"]["notes"] = "changed".into();
    put_manifest(&world, &noted);
    world.ok("restore host/me root.pxar out --keyfile a.key");
    world.ok("snapshot notes update host/me/2023-11-14T22:13:20Z again");
    world.ok("restore host/me root.pxar out2 --keyfile a.key");
    // A manifest from another snapshot, signed with the same key.
    back_up(&world, 1_700_000_001, "--keyfile a.key");
    let other = world.repo().join("host/me/2023-11-14T22:13:21Z/index.json.blob");
    fs::copy(other, snapshot_dir(&world).join("index.json.blob")).unwrap();
    world
        .fails("restore host/me/2023-11-14T22:13:20Z root.pxar no --keyfile a.key")
        .says("it is the manifest of host/me/2023-11-14T22:13:21Z");
}

#[test]
fn changed_indexes_blobs_and_chunks_are_refused() {
    let world = world();
    back_up(&world, 1_700_000_000, "--keyfile a.key");
    let restore = "restore host/me root.pxar no --keyfile a.key";
    let refused = |path: &std::path::Path, bytes: &[u8], line: &str, said: &str| {
        let good = fs::read(path).unwrap();
        fs::write(path, bytes).unwrap();
        world.fails(line).says(said);
        let _ = fs::remove_dir_all(world.path("no"));
        fs::write(path, good).unwrap();
    };
    // Entries of the index in another order: all chunks are genuine.
    let index = snapshot_dir(&world).join("root.pxar.didx");
    let mut swapped = fs::read(&index).unwrap();
    assert!(swapped.len() > 4096 + 2 * 40);
    let (first, second) = swapped[4096..].split_at_mut(40);
    first[8..].swap_with_slice(&mut second[8..40]);
    refused(&index, &swapped, restore, "its checksum is not that of the manifest");
    // A chunk in place of another one; a chunk in the clear; one of another key; changed bytes.
    let bytes = fs::read(&index).unwrap();
    let digest = |at: usize| hex::encode(&bytes[4096 + at * 40 + 8..4096 + at * 40 + 40]);
    let file = |digest: &str| world.repo().join(".chunks").join(&digest[..4]).join(digest);
    let (one, two) = (file(&digest(0)), file(&digest(1)));
    let sealed = fs::read(&one).unwrap();
    refused(&one, &fs::read(&two).unwrap(), restore, &digest(0));
    let key = |name: &str| {
        KeyFile::parse(&fs::read(world.path(name)).unwrap()).unwrap().unlock(b"").unwrap()
    };
    let (a, b) = (key("a.key"), key("b.key"));
    let blob = |bytes: &[u8]| Blob::parse(bytes.to_vec()).unwrap();
    let plain = Opener::new().unwrap().open(blob(&sealed), Some(&a)).unwrap();
    let seal = |key| Sealer::new().unwrap().seal(&plain, key).unwrap().into_bytes();
    refused(&one, &seal(None), restore, "it is not encrypted, but its archive is");
    refused(&one, &seal(Some(&b)), restore, "it was encrypted with another key, or changed");
    for (at, said) in [
        (0, "unknown magic number"),
        (8, "wrong checksum"),
        (12, "another key, or changed"),
        (28, "another key, or changed"),
        (50, "wrong checksum"),
    ] {
        let mut bad = sealed.clone();
        bad[at] ^= 1;
        refused(&one, &bad, restore, said);
    }
    // With a checksum that fits.
    let mut bad = sealed.clone();
    bad[50] ^= 1;
    let bad = Blob::seal(blob(&sealed).kind(), bad).unwrap();
    refused(&one, bad.as_bytes(), restore, "another key, or changed");
    let conf = snapshot_dir(&world).join("app.conf.blob");
    let other = Sealer::new().unwrap().seal(b"key = other\n", Some(&a)).unwrap();
    let line = "restore host/me app.conf no --keyfile a.key";
    refused(&conf, other.as_bytes(), line, "it is not the file of the manifest");
    world.ok(restore);
}

/// Whoever can write to the repository, and has no key, can put a plain snapshot in place of another.
#[test]
fn a_snapshot_that_no_key_protects_is_told_from_the_others() {
    let world = world();
    back_up(&world, 1_700_000_000, "");
    let run = world.ok("restore host/me app.conf - --keyfile a.key");
    run.says("neither encrypted nor signed: the key vouches for nothing");
    for mode in ["encrypt", "sign-only"] {
        let line = format!("restore host/me app.conf no --keyfile a.key --crypt-mode {mode}");
        world.fails(&line).says("is neither encrypted nor signed");
        assert!(!world.path("no").exists());
    }
}

#[test]
fn a_default_key_that_is_lost_does_not_make_backups_plain() {
    let world = world();
    let config = world.path(".config/proxmox-backup");
    fs::create_dir_all(&config).unwrap();
    for (name, options) in [("encryption-key.json", ""), ("master-public.pem", " --keyfile a.key")]
    {
        let link = config.join(name);
        std::os::unix::fs::symlink("/nonexistent/key", &link).unwrap();
        world.fails(&format!("{SPECS}{options}")).says(name);
        fs::remove_file(link).unwrap();
    }
    assert!(world.snapshots().is_empty());
}

#[test]
fn a_log_joins_its_snapshot_once() {
    let world = world();
    back_up(&world, 1_700_000_000, "--keyfile a.key");
    back_up(&world, 1_700_000_001, "");
    world.write("run.log", "all went well\n");
    let log = |at: &str| world.repo().join(format!("host/me/{at}/client.log.blob"));
    let (secret, open) = ("2023-11-14T22:13:20Z", "2023-11-14T22:13:21Z");
    world.ok(&format!("snapshot upload-log host/me/{secret} run.log --keyfile a.key"));
    world.ok(&format!("upload-log host/me/{open} run.log --keyfile a.key --crypt-mode sign-only"));
    assert!(kind(&log(secret)).is_encrypted() && !kind(&log(open)).is_encrypted());
    let before = fs::read(log(secret)).unwrap();
    let read = world.ok(&format!("restore host/me/{secret} client.log - --keyfile a.key"));
    assert_eq!(read.stdout, "all went well\n");
    world.ok(&format!("restore host/me/{open} client.log log.txt"));
    assert_eq!(fs::read(world.path("log.txt")).unwrap(), b"all went well\n");
    back_up(&world, 1_700_000_002, "--keyfile a.key");
    let other = "snapshot upload-log host/me/2023-11-14T22:13:22Z run.log --keyfile b.key";
    world.fails(other).says("wrong key");
    world
        .fails(&format!("snapshot upload-log host/me/{secret} run.log"))
        .says("backup already contains a log.");
    assert_eq!(fs::read(log(secret)).unwrap(), before);
    world.fails(&format!("snapshot upload-log host/me/{secret} nope")).says("'nope'");
    world
        .fails("snapshot upload-log host/me/2024-11-14T22:13:21Z run.log")
        .says("snapshot host/me/2024-11-14T22:13:21Z does not exist");
    let files = world.ok(&format!("snapshot files host/me/{secret} --output-format json"));
    assert!(files.stdout.contains("client.log.blob"));
    world.ok(&format!("restore host/me/{open} root.pxar out"));
}

/// With all messages on, no secret is in what is printed or stored.
#[test]
fn secrets_are_never_printed() {
    let world = world();
    let typed = [("Encryption Key Password: ", "secret-one"), ("Verify Password: ", "secret-one")];
    world.typed(["key", "create", "locked.key"], &typed);
    let file = KeyFile::parse(&fs::read(world.path("locked.key")).unwrap()).unwrap();
    let raw = file.unlock(b"secret-one").unwrap();
    let now = file.created;
    let json: serde_json::Value =
        serde_json::from_str(&KeyFile::open(&raw, now, now).to_json()).unwrap();
    let secret = json["data"].as_str().unwrap().to_owned();
    for line in [
        format!("{SPECS} --keyfile locked.key --backup-time 1700000000"),
        "restore host/me root.pxar out --keyfile locked.key".into(),
        "restore host/me root.pxar missing/out --keyfile locked.key --pattern [".into(),
        "catalog dump host/me/2023-11-14T22:13:20Z --keyfile locked.key".into(),
        "help backup".into(),
        "key show locked.key".into(),
    ] {
        let mut command = world.command();
        command.args(line.split(' ')).env("PBS_LOG", "trace");
        command.env("PBS_ENCRYPTION_PASSWORD", "secret-one");
        let run = Run::from(command.output().unwrap());
        let text = run.stdout + &run.stderr;
        assert!(!text.contains("secret-one") && !text.contains(&secret), "{line}: {text}");
    }
}

#[test]
fn a_verification_with_the_key_sees_more() {
    let world = world();
    back_up(&world, 1_700_000_000, "--keyfile a.key");
    let chunk =
        chunk_files(&world).into_iter().find(|path| fs::metadata(path).unwrap().len() > 9999);
    let chunk = chunk.unwrap();
    let good = fs::read(&chunk).unwrap();
    let mut changed = good.clone();
    *changed.last_mut().unwrap() ^= 1;
    // Whoever changes a chunk can make its checksum right.
    let changed = Blob::seal(BlobKind::of_magic(&good).unwrap(), changed).unwrap();
    fs::write(&chunk, changed.as_bytes()).unwrap();
    world.ok("verify");
    assert!(world.ok("verify --keyfile b.key --ignore-verified=no").stdout.contains("wrong key"));
    // That it was found good without the key is no reason to skip it.
    let run = world.fails("verify --keyfile a.key");
    assert!(run.stdout.contains("is damaged"), "{}", run.stdout);
    fs::write(&chunk, good).unwrap();
    world.ok("verify --keyfile a.key --ignore-verified=no");
    let mut manifest = manifest(&world);
    manifest["signature"] = "0".repeat(64).into();
    put_manifest(&world, &manifest);
    world.ok("verify --ignore-verified=no");
    let run = world.fails("verify --keyfile a.key --ignore-verified=no");
    assert!(run.stdout.contains("wrong signature"), "{}", run.stdout);
    world.ok("backup root.pxar:tree --backup-id plain --crypt-mode none");
    let run = world.ok("verify host/plain --keyfile a.key");
    assert!(run.stdout.contains("the key vouches for nothing"), "{}", run.stdout);
    // That it was found good is no reason not to tell, either.
    world.fails("verify host/plain --keyfile a.key --crypt-mode sign-only");
    let run = world.ok("verify host/plain --keyfile a.key");
    assert!(run.stdout.contains("(recently verified; the key vouches for nothing)"));
    world.fails("verify host/me --keyfile b.key --crypt-mode encrypt --ignore-verified=no");
}

/// Disaster is no time to ask for a file that only backups need.
#[test]
fn who_reads_needs_no_master_key() {
    let world = world();
    back_up(&world, 1_700_000_000, "--keyfile a.key");
    fs::create_dir_all(world.path(".config/proxmox-backup")).unwrap();
    let master = world.path(".config/proxmox-backup/master-public.pem");
    std::os::unix::fs::symlink("/nowhere", master).unwrap();
    world.fails("backup root.pxar:tree --keyfile a.key").says("master-public.pem");
    world.ok("restore host/me root.pxar out --keyfile a.key");
    world.ok("verify --keyfile a.key");
    world.ok("catalog dump host/me/2023-11-14T22:13:20Z --keyfile a.key");
    world.ok("snapshot upload-log host/me/2023-11-14T22:13:20Z app.conf --keyfile a.key");
}

#[test]
fn a_plain_log_of_an_encrypted_snapshot_is_told() {
    let world = world();
    back_up(&world, 1_700_000_000, "--keyfile a.key");
    let snapshot = "host/me/2023-11-14T22:13:20Z";
    world.ok(&format!("snapshot upload-log {snapshot} app.conf")).says("stored as it is");
    let run = world.ok(&format!("restore {snapshot} client.log - --keyfile a.key"));
    run.says("nobody vouches for it");
    let demanded = format!("restore {snapshot} client.log - --keyfile a.key --crypt-mode encrypt");
    world.fails(&demanded).says("is not encrypted");
}
