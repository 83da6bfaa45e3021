//! Wrong input gets one line that names the value, exit code 255, and nothing half-written.

use crate::support::{World, needs_root, noise, skipped};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

#[test]
fn backup_refuses_before_it_touches_anything() {
    let world = World::new();
    world.write("tree/file", b"x");
    world.write("empty", b"");
    let cases = [
        ("root.pxar:/nonexistent", "unable to access '/nonexistent' - No such file"),
        ("root.pxar:tree/file", "expected directory): 'tree/file'"),
        ("disk.img:tree", "expected file, block device or pipe): 'tree'"),
        ("app.conf:tree", "expected regular file): 'tree'"),
        ("disk.img:empty", "got zero-sized file 'empty'"),
        (
            "root.tar:tree",
            "'root.tar:tree' is not like NAME.TYPE:PATH (types: pxar, img, conf, log)",
        ),
        ("root.pxar", "'root.pxar' is not like"),
        ("ro.ot.pxar:tree", "'ro.ot'"),
        ("a.pxar:tree a.pxar:tree", "got target twice: 'a.pxar'"),
        ("a.pxar:tree --exclude [abc", "'[abc': unclosed character class"),
        ("a.pxar:tree --exclude foo\\", "trailing backslash"),
        ("a.pxar:tree --backup-id a/b", "'a/b'"),
        ("a.pxar:tree --backup-id ..", "'..'"),
        ("a.pxar:tree --backup-type disk", "'disk'"),
        ("a.pxar:tree --backup-time -5", "'-5'"),
        ("a.pxar:tree --backup-time now", "'now'"),
        ("a.pxar:tree --ns ../x", "'../x'"),
        ("a.pxar:tree --chunk-size 63", "Got unsupported chunk size '64512'"),
        ("a.pxar:tree --chunk-size 8192", "Got unsupported chunk size"),
        ("a.pxar:tree --entries-max many", "'many'"),
        ("a.pxar:tree --exclude-larger-than big", "'big' is not a size"),
        ("a.pxar:tree --include-dev /nonexistent", "unable to access '/nonexistent'"),
        ("a.pxar:tree --include-dev / --all-file-systems", "conflicts with option 'include-dev'"),
        ("a.pxar:tree --output-format xml", "no output format 'xml'"),
        ("a.pxar:tree --keyfile k", "--keyfile: unable to read \"k\""),
        ("a.pxar:tree --no-such-option", "--no-such-option"),
        ("a.pxar:tree --repository ::::", "unable to parse repository url '::::'"),
        ("a.pxar:tree --repository u@pbs@host:8007:store", "no password input mechanism available"),
    ];
    for (arguments, says) in cases {
        world.fails(&format!("backup {arguments}")).says(says);
    }
    let left: Vec<_> =
        fs::read_dir(world.repo()).unwrap().flatten().map(|e| e.file_name()).collect();
    assert_eq!(left, [".chunks"]);
}

/// What only the plugin can tell, and what comes up later.
#[test]
fn a_first_backup_of_which_nothing_comes_leaves_no_repository() {
    let world = World::new();
    world.write("tree/file", b"x");
    world.write("tree/other", b"x");
    fs::create_dir(world.path("own")).unwrap();
    for arguments in [
        "root.pxar:/proc --repository new/a/repo",
        "root.pxar:tree --exclude-if-present a/b --repository ./own",
        "root.pxar:tree --entries-max 1 --repository new/a/repo",
    ] {
        let run = world.fails(&format!("backup {arguments}"));
        run.says("Creating datastore in").says("again, if it is empty");
    }
    assert!(!world.path("new").exists());
    assert_eq!(fs::read_dir(world.path("own")).unwrap().count(), 0);
    // What was stored before something failed makes the next backup shorter.
    let run = world.fails("backup a.pxar:tree root.pxar:/proc --repository new/repo");
    run.says("refusing to backup a virtual file system");
    world.ok("backup a.pxar:tree --repository new/repo").says("Starting backup");
}

#[test]
fn several_first_backups_at_once_all_succeed() {
    let world = World::new();
    world.write("tree/file", b"x");
    let run = |id: u32| {
        let mut command = world.command();
        command.args(["backup", "root.pxar:tree", "--repository", "new/repo", "--backup-id"]);
        command.arg(format!("c{id}")).stderr(std::process::Stdio::piped()).spawn().unwrap()
    };
    for run in (0..4).map(run).collect::<Vec<_>>() {
        let output = run.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert!(world.path("new/repo/.lock").exists());
    let groups = world.ok("list --repository new/repo --output-format json").json();
    assert_eq!(groups.as_array().unwrap().len(), 4);
}

/// What stands where a value belongs is one, whatever it looks like.
#[test]
fn values_that_look_like_options_stay_as_they_are() {
    let world = World::new();
    for name in ["-foo_bar", "--foo-bar", "--dry-run"] {
        world.write(&format!("tree/{name}"), b"x");
    }
    world.ok("backup root.pxar:tree --backup-id me --exclude -foo_bar --exclude --dry-run");
    world.ok("restore host/me root.pxar out");
    assert!(world.path("out/--foo-bar").exists());
    assert!(!world.path("out/-foo_bar").exists() && !world.path("out/--dry-run").exists());
    world.ok("restore host/me root.pxar only --pattern --foo-bar");
    assert!(world.path("only/--foo-bar").exists());
    world.fails("backup a.conf:tree/-foo_bar --exclude [abc").says("unclosed character class");
    world.fails("prune host/me --policy nope").says("no retention policy 'nope'");
}

#[test]
fn a_stray_file_hides_no_snapshots() {
    let world = World::new();
    world.write("tree/file", b"x");
    world.ok("backup root.pxar:tree --backup-id me");
    world.write("repo/host/stray", b"");
    world.write("repo/vm", b"");
    assert_eq!(world.snapshots().len(), 1);
}

#[test]
fn a_default_key_is_not_silently_ignored() {
    let world = World::new();
    world.write("tree/file", b"x");
    world.write(".config/proxmox-backup/encryption-key.json", b"{}");
    world.fails("backup a.pxar:tree").says("encryption-key.json': it is no key file");
    assert!(world.snapshots().is_empty());
    world.ok("backup a.pxar:tree --crypt-mode none");
}

#[test]
fn commands_refuse_what_is_not_there() {
    let world = World::new();
    world.write("tree/file", b"x");
    world.ok("backup root.pxar:tree --backup-id me --backup-time 1700000000");
    let snapshot = "host/me/2023-11-14T22:13:20Z";
    let cases = [
        (
            format!("restore {snapshot} nope.pxar out"),
            "manifest does not contain file 'nope.pxar.didx'",
        ),
        (format!("restore {snapshot} root out"), "manifest does not contain file 'root.blob'"),
        (format!("restore {snapshot} ../x out"), "'../x.blob'"),
        (
            "restore host/me/2001-01-01T00:00:00Z root.pxar out".into(),
            "snapshot host/me/2001-01-01T00:00:00Z does not exist.",
        ),
        (
            "restore host/you root.pxar out".into(),
            "backup group host/you does not contain any snapshots.",
        ),
        ("restore me root.pxar out".into(), "'me'"),
        (format!("restore {snapshot} root.pxar out --pattern [x"), "invalid pattern '[x'"),
        (format!("restore {snapshot} root.pxar out --ns a"), "namespace not found"),
        ("snapshot forget host/me/2001-01-01T00:00:00Z".into(), "does not exist"),
        ("snapshot forget host/me".into(), "'host/me' is not like host/NAME/TIME"),
        ("snapshot notes show host/me/2001-01-01T00:00:00Z".into(), "does not exist"),
        (format!("snapshot protected update {snapshot} maybe"), "maybe"),
        (
            "namespace create a/b".into(),
            "cannot create new namespace, parent a doesn't already exists",
        ),
        ("namespace delete nope".into(), "namespace not found"),
        (
            "prune host/me --keep-last 0".into(),
            "'keep-last': value must have a minimum value of 1 (got 0)",
        ),
        ("prune host/me --keep-last x".into(), "'x' is no whole number"),
        ("prune host/me --policy nope".into(), "no retention policy 'nope'; there is keep"),
        ("catalog dump host/me".into(), "'host/me' is not like"),
        ("list --repository ./tree".into(), "'./tree' is not a datastore"),
        ("list --repository ./nowhere".into(), "'./nowhere'"),
        ("nonsense".into(), "nonsense"),
        ("pxar extract nowhere.pxar".into(), "unable to open archive 'nowhere.pxar'"),
        ("pxar create out.pxar tree/file".into(), "expected directory): 'tree/file'"),
        ("completion nonsense".into(), "nonsense"),
    ];
    for (line, says) in cases {
        world.fails(&line).says(says);
    }
    assert!(!world.path("out").exists() && !world.path("out.pxar").exists());
    let run = world.run(["list", "--repository", ""]);
    assert_eq!(run.code, Some(255));
    let mut bare = world.command();
    bare.env_remove("PBS_REPOSITORY").arg("list");
    let run = crate::support::Run::from(bare.output().unwrap());
    run.assert_failed("no repository");
    run.says("unable to get (default) repository");
}

#[test]
fn existing_targets_are_left_alone_unless_asked() {
    let world = World::new();
    world.write("tree/dir/file", b"new");
    world.write("disk", noise(1, 10_000));
    world.ok("backup root.pxar:tree disk.img:disk --backup-id me");
    world.write("out/dir/file", b"old");
    world.fails("restore host/me root.pxar out").says("\"dir\"").says("File exists");
    world
        .fails("restore host/me root.pxar out --allow-existing-dirs")
        .says("\"dir/file\"")
        .says("File exists");
    assert_eq!(fs::read(world.path("out/dir/file")).unwrap(), b"old");
    world.ok("restore host/me root.pxar out --allow-existing-dirs --overwrite");
    assert_eq!(fs::read(world.path("out/dir/file")).unwrap(), b"new");
    world.write("image", b"old");
    world.fails("restore host/me disk.img image").says("'image'").says("File exists");
    assert_eq!(fs::read(world.path("image")).unwrap(), b"old");
    world.fails("restore host/me disk.img no/such/dir/image").says("'no/such/dir/image'");
    world.write("x.pxar", b"old");
    world.fails("pxar create x.pxar tree").says("File exists");
}

#[test]
fn time_does_not_go_back() {
    let world = World::new();
    world.write("tree/file", b"x");
    world.ok("backup root.pxar:tree --backup-id me --backup-time 2000");
    for time in ["2000", "1999"] {
        let run =
            world.fails(&format!("backup root.pxar:tree --backup-id me --backup-time {time}"));
        run.says("backup timestamp is older than last backup.");
    }
    assert_eq!(world.snapshots().len(), 1);
}

#[test]
fn a_repository_without_permission_is_refused() {
    if !needs_root("running as somebody else") {
        return;
    }
    let world = World::new();
    world.write("tree/file", b"x");
    fs::set_permissions(world.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(world.repo(), fs::Permissions::from_mode(0o755)).unwrap();
    let run = |repository: &str| {
        let mut command = world.command();
        command.env_remove("XDG_CACHE_HOME").env("HOME", "/nonexistent");
        std::os::unix::process::CommandExt::uid(&mut command, 65534);
        command.args(["backup", "root.pxar:tree", "--repository", repository]);
        crate::support::Run::from(command.output().unwrap())
    };
    for repository in ["./repo", "./new"] {
        let run = run(repository);
        run.assert_failed(repository);
        run.says("Permission denied");
    }
    assert!(!world.path("new").exists());
}

#[test]
fn a_full_disk_is_said_and_leaves_nothing() {
    if !needs_root("mounting a small disk") {
        return;
    }
    let world = World::new();
    world.write("tree/file", noise(1, 30 << 20));
    let disk = world.path("disk");
    fs::create_dir(&disk).unwrap();
    let mounted =
        Command::new("mount").args(["-t", "tmpfs", "-o", "size=16m", "none"]).arg(&disk).status();
    if !mounted.is_ok_and(|status| status.success()) {
        skipped("mounting is not possible here");
        return;
    }
    fs::create_dir(disk.join(".chunks")).unwrap();
    let backup =
        world.run(["backup", "root.pxar:tree", "--repository", "./disk", "--backup-id", "me"]);
    let left = crate::support::contains_file(&disk.join("host"), "");
    let listed =
        world.run(["snapshot", "list", "--repository", "./disk", "--output-format", "json"]);
    world.ok("backup root.pxar:tree --backup-id me");
    for chunk in fs::read_dir(disk.join(".chunks")).unwrap().flatten() {
        fs::remove_dir_all(chunk.path()).unwrap();
    }
    let restore = world.run(["restore", "host/me", "root.pxar", "disk/out"]);
    let half = disk.join("out/file").exists();
    Command::new("umount").arg(&disk).status().unwrap();
    backup.assert_failed("full disk");
    backup.says("No space left on device").says("The disk is full");
    assert!(!left, "a half backup remains");
    assert_eq!(listed.stdout.trim(), "[]");
    restore.assert_failed("full disk");
    restore.says("No space left on device");
    assert!(!half, "half a file remains");
}

/// What is to be overwritten stays until the new file is complete, and other names of it stay.
#[test]
fn an_overwriting_restore_that_fails_loses_nothing() {
    let world = World::new();
    for i in 0..40 {
        world.write(&format!("tree/f{i:02}"), noise(i, 200_000));
    }
    world.write("tree/zsub/file", b"new");
    fs::hard_link(world.path("tree/f00"), world.path("tree/y-link")).unwrap();
    world.ok("backup root.pxar:tree --backup-id me --chunk-size 64");
    let precious = |target: &str| {
        for i in 0..40 {
            world.write(&format!("{target}/f{i:02}"), b"precious");
        }
        world.write(&format!("{target}/outside"), b"other");
    };
    precious("out");
    world.write("out/zsub", b"a file in the way");
    fs::hard_link(world.path("out/f07"), world.path("other-name")).unwrap();
    world.fails("restore host/me root.pxar out --overwrite --allow-existing-dirs").says("\"zsub\"");
    for i in 0..40 {
        // Files before the error are done.
        assert!(fs::read(world.path(&format!("out/f{i:02}"))).unwrap() == noise(i, 200_000), "{i}");
    }
    assert_eq!(fs::read(world.path("other-name")).unwrap(), b"precious");
    assert_eq!(fs::read(world.path("out/outside")).unwrap(), b"other");
    // A damaged chunk: nothing that was there is gone.
    precious("again");
    let index = fs::read_dir(world.repo().join("host/me")).unwrap().flatten();
    let index = index.map(|entry| entry.path().join("root.pxar.didx")).find(|path| path.is_file());
    let index = keepwell_model::Index::parse_dynamic(fs::read(index.unwrap()).unwrap()).unwrap();
    let digest = index.chunk(index.len() / 2).unwrap().digest.to_string();
    fs::remove_file(world.repo().join(".chunks").join(&digest[..4]).join(&digest)).unwrap();
    world.fails("restore host/me root.pxar again --overwrite").says(&digest);
    for i in 0..40 {
        let found = fs::read(world.path(&format!("again/f{i:02}"))).unwrap();
        assert!(found == b"precious" || found == noise(i, 200_000), "{i}");
    }
    assert!(!crate::support::contains_file(&world.path("again"), ".keepwell-"));
}

#[test]
fn overwriting_keeps_hard_links_of_the_archive() {
    use std::os::unix::fs::MetadataExt;
    let world = World::new();
    world.write("tree/a", noise(1, 3_000_000));
    fs::hard_link(world.path("tree/a"), world.path("tree/b")).unwrap();
    world.ok("backup root.pxar:tree --backup-id me");
    world.write("out/a", b"old");
    world.write("out/b", b"old, too");
    world.ok("restore host/me root.pxar out --overwrite");
    let inode = |name: &str| fs::metadata(world.path(name)).unwrap().ino();
    assert_eq!(inode("out/a"), inode("out/b"));
    assert!(fs::read(world.path("out/b")).unwrap() == noise(1, 3_000_000));
}

#[test]
fn an_empty_pipe_makes_no_snapshot() {
    let world = World::new();
    let mut command = world.command();
    command.args(["backup", "d.img:/dev/stdin", "--backup-id", "me"]);
    let mut nothing = Command::new("true").stdout(std::process::Stdio::piped()).spawn().unwrap();
    let output = command.stdin(nothing.stdout.take().unwrap()).output().unwrap();
    nothing.wait().unwrap();
    let run = crate::support::Run::from(output);
    run.assert_failed("empty pipe");
    run.says("got nothing from the pipe");
    assert!(world.snapshots().is_empty());
}

#[test]
fn what_only_servers_have_says_so() {
    let world = World::new();
    for line in ["login", "logout", "task list"] {
        world.fails(line).says("is a directory: this is for servers");
    }
    for line in [
        "admin init",
        "admin init srv --datastore x --user me@pbs --password-file p",
        "admin init srv --datastore store1 --user me@pam --password-file p",
        "admin user list --config nope/server.toml",
        "serve --config nope/server.toml",
        "serve",
    ] {
        world.fails(line);
    }
    assert!(!world.path("srv").exists());
    world.write("bad.toml", "listen = [\"nowhere\"]");
    world.fails("serve --config bad.toml").says("'bad.toml'");
    world.write("bad.toml", "no-such-key = 1");
    world.fails("serve --config bad.toml").says("no-such-key");
}

#[test]
fn a_wrong_value_shows_the_usage_of_its_command() {
    let world = World::new();
    world.fails("backup a.pxar:tree --backup-type disk").says("Usage: keepwell backup [OPTIONS]");
    world.fails("snap prot upd host/a x").says("Usage: keepwell snapshot protected update");
}
