//! Plugins as an outsider meets them: what they declare becomes flags, what they do wrong is one
//! line.

use crate::support::World;
use std::fs;

#[test]
fn compiled_code_is_cached_where_only_we_can_write() {
    use std::os::unix::fs::PermissionsExt;
    let world = World::new();
    let run = |mode: u32| {
        let cache = world.path("cache/keepwell");
        fs::create_dir_all(&cache).unwrap();
        fs::set_permissions(&cache, fs::Permissions::from_mode(mode)).unwrap();
        let output = world
            .command()
            .env("XDG_CACHE_HOME", world.path("cache"))
            .arg("version")
            .output()
            .unwrap();
        assert!(output.status.success());
        fs::read_dir(cache).unwrap().count()
    };
    assert_eq!(run(0o755), 0, "a directory that others may read is not used");
    let kept = run(0o700);
    assert!(kept >= 12, "code and description of six plugins, not {kept}");
    // Garbage in place of code is compiled again, not trusted.
    for file in fs::read_dir(world.path("cache/keepwell")).unwrap().flatten() {
        fs::write(file.path(), b"garbage").unwrap();
    }
    assert_eq!(run(0o700), kept);
    // Without any cache it works, too.
    let output = world
        .command()
        .env_remove("HOME")
        .env_remove("XDG_CACHE_HOME")
        .arg("version")
        .output()
        .unwrap();
    assert!(output.status.success());
}

#[test]
fn what_is_no_component_is_refused_with_its_name() {
    let world = World::new();
    world.write("plugins/broken.wasm", b"not wasm");
    let run = |dir: &str| {
        let output =
            world.command().env("KEEPWELL_PLUGIN_PATH", world.path(dir)).arg("version").output();
        crate::support::Run::from(output.unwrap())
    };
    let broken = run("plugins");
    broken.assert_failed("broken plugin");
    broken.says("'broken'");
    let missing = run("nowhere");
    missing.assert_failed("missing directory");
    missing.says("nowhere");
}
