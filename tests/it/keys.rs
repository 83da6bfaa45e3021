//! `key`: files, prompts and master keys.

use crate::support::{World, noise};
use keepwell_seal::KeyFile;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

const TWICE: [(&str, &str); 2] =
    [("Encryption Key Password: ", "secret1"), ("Verify Password: ", "secret1")];

fn key_file(path: &Path) -> KeyFile {
    KeyFile::parse(&fs::read(path).unwrap()).unwrap()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

/// The documentation's walk-through, from a new key to the one that the master key gave back.
#[test]
fn a_lost_key_comes_back_with_the_master_key() {
    let world = World::new();
    world.write("tree/file", noise(1, 300_000));
    let run = world.typed(["key", "create"], &TWICE);
    assert_eq!(run.code, Some(0), "{}", run.stdout);
    let default = world.path(".config/proxmox-backup/encryption-key.json");
    run.says(&format!("creating default key at: {default:?}\n"));
    run.says("Encryption Key Password: *******\nVerify Password: *******\n");
    assert_eq!((mode(&default), mode(default.parent().unwrap())), (0o600, 0o700));
    let run = world.typed(
        ["key", "create-master-key"],
        &[("Master Key Password: ", "master1"), ("Verify Password: ", "master1")],
    );
    assert_eq!(run.code, Some(0), "{}", run.stdout);
    run.says("Generating 4096-bit RSA key..\nModulus: ");
    run.says("Writing public master key to master-public.pem\n");
    assert_eq!(mode(&world.path("master-private.pem")), 0o600);
    world.ok("key import-master-pubkey master-public.pem");
    let run = world.typed(
        ["backup", "root.pxar:tree", "--backup-id", "me"],
        &[("Encryption Key Password: ", "secret1")],
    );
    assert_eq!(run.code, Some(0), "{}", run.stdout);
    run.says("Using default encryption key..\n").says("Using default master key..\n");
    run.says("Upload RSA encoded key to '").says("' as rsa-encrypted.key.blob\n");
    // The key is lost.
    let lost = key_file(&default);
    fs::remove_file(&default).unwrap();
    world
        .fails("restore host/me root.pxar out")
        .says("missing key - manifest was created with key");
    world
        .ok("restore host/me rsa-encrypted.key wrapped")
        .says("without original key - skipping manifest fingerprint check!");
    let import = "key import-with-master-key back.key --master-keyfile master-private.pem \
                  --encrypted-keyfile wrapped";
    let run = world.typed(import.split_whitespace(), &[("Master Key Password: ", "wrong")]);
    run.assert_failed("wrong master password");
    run.says("it can't be decrypted (wrong password?)");
    assert!(!world.path("back.key").exists());
    let run = world.typed(
        import.split_whitespace(),
        &[
            ("Master Key Password: ", "master1"),
            ("New Password: ", "another"),
            ("Verify Password: ", "another"),
        ],
    );
    assert_eq!(run.code, Some(0), "{}", run.stdout);
    let back = key_file(&world.path("back.key"));
    assert_eq!((back.fingerprint, back.created), (lost.fingerprint, lost.created));
    assert_eq!(mode(&world.path("back.key")), 0o600);
    let restore = ["restore", "host/me", "root.pxar", "out", "--keyfile", "back.key"];
    let run = world.typed(restore, &[("Encryption Key Password: ", "another")]);
    assert_eq!(run.code, Some(0), "{}", run.stdout);
    assert_eq!(fs::read(world.path("out/file")).unwrap(), noise(1, 300_000));
}

#[test]
fn what_is_typed_wrong_makes_no_key() {
    let world = World::new();
    let create = ["key", "create", "new.key"];
    let cases = [
        ("secret1", "secret2", "Error: Passwords do not match!"),
        ("abc", "abc", "Error: Password too short!"),
    ];
    for (first, second, error) in cases {
        let run = world
            .typed(create, &[("Encryption Key Password: ", first), ("Verify Password: ", second)]);
        run.assert_failed(error);
        run.says(error);
        assert!(!run.stdout.contains(first), "what is typed is not shown");
        assert!(!world.path("new.key").exists());
    }
    world.fails("key create new.key").says("unable to read passphrase - no tty");
    world
        .fails("key create new.key --kdf none --hint h")
        .says("password hint not allowed for Kdf::None");
    world.fails("key create new.key --kdf rot13").says("rot13");
    world.fails(&format!("key create new.key --hint {}", "x".repeat(65))).says("1 to 64");
    world.fails("key create missing/new.key --kdf none").says("Unable to store key file");
    world.fails("key show").says("no encryption file provided and no default file found");
    world.fails("key show nope.key").says("unable to read \"nope.key\" - No such file");
    world.fails("key show-master-pubkey").says("No path specified and no default master key");
    world.write("junk", "{}");
    for line in ["key show junk", "key paperkey junk", "key import-master-pubkey junk"] {
        world.fails(line).says("junk");
    }
    world.fails("key create-master-key").says("no tty");
    assert!(!world.path(".config").exists());
}

#[test]
fn a_key_is_never_overwritten_by_a_new_one() {
    let world = World::new();
    world.ok("key create a.key --kdf none");
    let before = fs::read(world.path("a.key")).unwrap();
    for path in ["a.key", "./a.key"] {
        world
            .fails(&format!("key create {path} --kdf none"))
            .says("Unable to store key file")
            .says("File exists (os error 17)");
    }
    world.ok("key create --kdf none");
    world.fails("key create --kdf none").says("File exists (os error 17)");
    world
        .fails("key import-with-master-key --master-keyfile x --encrypted-keyfile y --kdf none")
        .says("Please remove default encryption key at ");
    assert_eq!(fs::read(world.path("a.key")).unwrap(), before);
    world.write("master-private.pem", "precious");
    let run = world.typed(["key", "create-master-key"], &[]);
    run.assert_failed("create-master-key");
    run.says("'master-private.pem' exists here");
    assert_eq!(fs::read(world.path("master-private.pem")).unwrap(), b"precious");
}

#[test]
fn a_link_to_a_key_stays_one() {
    let world = World::new();
    world.ok("key create real.key --kdf none");
    std::os::unix::fs::symlink("real.key", world.path("link.key")).unwrap();
    let new = [("New Password: ", "secret1"), ("Verify Password: ", "secret1")];
    let run = world.typed(["key", "change-passphrase", "link.key"], &new);
    assert_eq!(run.code, Some(0), "{}", run.stdout);
    assert!(fs::symlink_metadata(world.path("link.key")).unwrap().is_symlink());
    assert_eq!(key_file(&world.path("real.key")).kdf().as_str(), "scrypt");
    let names = fs::read_dir(world.dir.path()).unwrap().flatten().map(|entry| entry.file_name());
    assert!(!names.into_iter().any(|name| name.to_string_lossy().contains(".keepwell-")));
}

#[test]
fn what_is_no_key_is_not_shown() {
    let world = World::new();
    world.write("secret.txt", "\"MYSECRET\"");
    world.write("other.txt", r#"{"kdf":"MYSECRET","created":"MYSECRET"}"#);
    for name in ["secret.txt", "other.txt"] {
        let run = world.fails(&format!("key show {name}"));
        run.says("it is no key file (line 1, column ");
        assert!(!run.stderr.contains("MYSECRET"), "{}", run.stderr);
    }
    world.fails("key show /dev/zero").says("too large for a key");
    world.fails("backup a.conf:secret.txt --keyfile /dev/zero").says("too large for a key");
}

/// A signal at a prompt ends it, and the terminal works as before.
#[test]
fn a_signal_ends_a_prompt() {
    let world = World::new();
    let mut command = world.command();
    command.args(["key", "create", "new.key"]);
    let run = crate::terminal::signalled(command, "Encryption Key Password: ");
    run.assert_failed("SIGTERM at the prompt");
    run.says("interrupted");
    assert!(!world.path("new.key").exists());
}

#[test]
fn a_passphrase_can_be_changed_and_taken_away() {
    let world = World::new();
    world.ok("key create a.key --kdf none");
    let path = world.path("a.key");
    let plain = key_file(&path);
    let fingerprint = plain.fingerprint;
    let new = [("New Password: ", "secret1"), ("Verify Password: ", "secret1")];
    let change = |options: &str, answers: &[(&str, &str)]| {
        let line = format!("key change-passphrase a.key {options}");
        let run = world.typed(line.split_whitespace(), answers);
        assert_eq!(run.code, Some(0), "{}", run.stdout);
        key_file(&path)
    };
    let locked = change("--kdf pbkdf2 --hint colour", &new);
    assert_eq!((locked.kdf().as_str(), locked.hint.as_deref()), ("pbkdf2", Some("colour")));
    assert_eq!((locked.fingerprint, locked.created), (fingerprint, plain.created));
    let wrong = world
        .typed(["key", "change-passphrase", "a.key"], &[("Encryption Key Password: ", "secret2")]);
    wrong.assert_failed("wrong password");
    wrong.says("Unable to decrypt key (password hint: colour)");
    let old = ("Encryption Key Password: ", "secret1");
    let locked = change("", &[old, new[0], new[1]]);
    assert_eq!((locked.kdf().as_str(), locked.hint), ("scrypt", None));
    assert_eq!(mode(&path), 0o600);
    let opened = change("--kdf none", &[old]);
    assert_eq!(opened.unlock(b"").unwrap().fingerprint(), fingerprint.unwrap());
    world.fails("key change-passphrase a.key").says("unable to change passphrase - no tty");
}

#[test]
fn what_was_left_by_a_killed_process_goes() {
    let world = World::new();
    world.ok("key create a.key --kdf none");
    // No process has this number.
    world.write(".keepwell-4999999-0.tmp", b"a key");
    world.write(".keepwell-1-0.tmp", b"of a process that runs");
    let run = world.typed(
        ["key", "change-passphrase", "a.key"],
        &[("New Password: ", "secret1"), ("Verify Password: ", "secret1")],
    );
    assert_eq!(run.code, Some(0), "{}", run.stdout);
    assert!(!world.path(".keepwell-4999999-0.tmp").exists());
    assert!(world.path(".keepwell-1-0.tmp").exists());
}

#[test]
fn a_command_that_prints_without_end_gives_its_first_line() {
    let world = World::new();
    world.write("tree/file", b"x");
    world.ok("key create a.key --kdf none");
    let mut command = world.command();
    command.args(["backup", "root.pxar:tree", "--keyfile", "a.key"]);
    command.env("PBS_ENCRYPTION_PASSWORD_CMD", "yes secret");
    assert!(command.status().unwrap().success(), "a key without a password asks nobody");
    let locked = world.typed(
        ["key", "change-passphrase", "a.key"],
        &[("New Password: ", "secret"), ("Verify Password: ", "secret")],
    );
    assert_eq!(locked.code, Some(0), "{}", locked.stdout);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("PBS_ENCRYPTION_PASSWORD_CMD) failed: 'yes'"), "{said}");
}
