//! Plugins that were built against released versions of the contract go on working. Their components are fixtures, and
//! never built again: wit/README.md, "Versions".

use crate::support::{Run, World, noise};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/contract-0.1.0")
}

/// A world with one of the components, and settings.
struct Old(World);

impl Old {
    fn new(name: &str, settings: &str) -> Self {
        let world = World::new();
        let packed = fs::read(fixtures().join(format!("{name}.wasm.zst"))).unwrap();
        let component = zstd::decode_all(&packed[..]).unwrap();
        world.write(&format!("plugins/{name}.wasm"), component);
        world.write(".config/keepwell/config.toml", settings);
        let old = Self(world);
        let listed = old.ok("plugin list --output-format json");
        assert!(listed.stdout.contains(&format!("plugins/{name}.wasm")), "{}", listed.stdout);
        old
    }

    fn ok(&self, line: &str) -> Run {
        let mut command = self.0.command();
        command.env("KEEPWELL_PLUGIN_PATH", self.0.path("plugins"));
        Run::from(command.args(line.split(' ')).output().unwrap()).assert_ok(line)
    }

    fn same(&self, one: &str, other: &str) {
        let mut diff = std::process::Command::new("diff");
        diff.args(["-r", "--no-dereference"]).arg(self.0.path(one)).arg(self.0.path(other));
        let compared = diff.output().unwrap();
        assert!(compared.status.success(), "{}", String::from_utf8_lossy(&compared.stdout));
    }
}

#[test]
fn all_that_were_released_keep_to_their_contract() {
    let mut tried = 0;
    for file in fs::read_dir(fixtures()).unwrap().flatten() {
        let file = file.file_name().into_string().unwrap();
        let name = file.strip_suffix(".wasm.zst").unwrap();
        let old = Old::new(name, "");
        let inspected = old.ok(&format!("plugin inspect plugins/{name}.wasm")).stdout;
        assert!(inspected.contains("@0.1.0"), "{inspected}");
        old.ok(&format!("plugin test plugins/{name}.wasm"));
        tried += 1;
    }
    assert_eq!(tried, 5);
}

#[test]
fn an_old_source_and_reader_of_trees_works() {
    let old = Old::new("plugin-pxar", "");
    let world = &old.0;
    let installed = world.ok("plugin install --yes plugins/plugin-pxar.wasm");
    installed.says("it takes the place of what is built in: plugin 'pxar', .pxar");
    world.ok("plugin remove pxar");
    world.write("tree/a/large", noise(1, 3_000_000));
    world.write("tree/a/small", "content");
    world.write("tree/left.o", "x");
    std::os::unix::fs::symlink("a/small", world.path("tree/link")).unwrap();
    for (time, mode) in (1..).zip(["legacy", "data", "metadata", "metadata"]) {
        let _ = fs::remove_dir_all(world.path("out"));
        old.ok(&format!(
            "backup t.pxar:tree --backup-id me --backup-time {time} --exclude *.o \
             --change-detection-mode {mode}"
        ));
        old.ok("restore host/me t.pxar out");
        fs::copy(world.path("tree/left.o"), world.path("out/left.o")).unwrap();
        let _ = fs::remove_file(world.path("out/.pxarexclude-cli"));
        old.same("tree", "out");
    }
}

#[test]
fn an_old_plugin_for_tars_works() {
    let old = Old::new("archive-tar", "");
    let world = &old.0;
    world.write("tree/a/large", noise(2, 300_000));
    world.write("tree/a/left.o", "x");
    fs::hard_link(world.path("tree/a/large"), world.path("tree/again")).unwrap();
    old.ok("backup t.tar:tree --backup-id me --exclude *.o");
    fs::remove_file(world.path("tree/a/left.o")).unwrap();
    old.ok("restore host/me t.tar out");
    old.same("tree", "out");
    assert!(old.ok("find large host/me").stdout.contains("/a/large"));
}

#[test]
fn old_capabilities_are_had() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 4096]);
        let answer = "HTTP/1.1 200 OK\r\nX-Told: it\r\nContent-Length: 2\r\n\r\nhi";
        stream.write_all(answer.as_bytes()).unwrap();
    });
    let grants = "[plugins.prober.grants]\nread = ['/']\nrun = ['sh']\nenvironment = ['HOME']\n\
                  clock = true\nrandom = true\nscratch = '1MiB'\nhttp = ['localhost:PORT']\n";
    let old = Old::new("guest-prober", &grants.replace("PORT", &port.to_string()));
    old.0.write("file", "");
    old.0.write("data/file", "mine");
    let read = format!("read {}", old.0.path("data/file").display());
    let probes = [
        &read,
        "output printf x",
        "scratch printf y",
        "variable HOME",
        "clock",
        "random",
        &format!("fetch http://localhost:{port}/"),
        "status exit 3",
        "note x",
    ];
    let mut command = old.0.command();
    command.env("KEEPWELL_PLUGIN_PATH", old.0.path("plugins"));
    command.args(["backup", "a.probe:file", "--backup-id", "me"]);
    probes.iter().for_each(|probe| _ = command.args(["--probe", probe]));
    Run::from(command.output().unwrap()).assert_ok("probes");
    let got = old.ok("restore host/me a.probe -").stdout;
    let got: Vec<&str> = got.lines().collect();
    assert!(got[0] == "mine" && got[1] == "x", "{got:?}");
    assert!(got[2] == "y" && got[3].starts_with('/'), "{got:?}");
    assert!(got[4].parse::<u64>().is_ok() && got[5] == "16", "{got:?}");
    assert_eq!(got[6..], ["200 Some(\"it\") hi", "3", "x"]);
}

#[test]
fn an_old_policy_and_an_old_format_work() {
    let old = Old::new("keep-weekly", "");
    old.0.write("tree/file", "x");
    for day in [1, 2, 10] {
        old.ok(&format!("backup t.pxar:tree --backup-id me --backup-time {}", day * 86_400));
    }
    old.ok("prune host/me --policy keep-weekly --weeks 2");
    assert_eq!(old.0.snapshots(), [2, 10].map(|day| format!("host/me/{}", day * 86_400)));
    let old = Old::new("output-formats", "");
    old.0.write("tree/file", "x");
    old.ok("backup t.pxar:tree --backup-id me --backup-time 86400");
    let printed = old.ok("snapshot list --output-format csv --csv-separator ;").stdout;
    assert!(printed.contains("me;86400;host;"), "{printed}");
}
