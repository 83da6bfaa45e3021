//! Plugins as an outsider meets them: what they declare becomes flags, what they do wrong is one
//! line.

use crate::served::Served;
use crate::support::{Run, World};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;

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
    // A bit that has changed would make the code do anything.
    for file in fs::read_dir(world.path("cache/keepwell")).unwrap().flatten() {
        let mut bytes = fs::read(file.path()).unwrap();
        let middle = bytes.len() / 2;
        let end = bytes.len().min(middle + 4096);
        bytes[middle..end].fill(0);
        fs::write(file.path(), bytes).unwrap();
    }
    assert_eq!(run(0o700), kept);
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
fn a_newer_contract_is_told() {
    let world = World::new();
    let (_, bytes) = keepwell_test_guests::COMPONENTS[1];
    let (old, new) = (b"keepwell:retention/policy@0.1.0", b"keepwell:retention/policy@0.2.0");
    let mut bytes = bytes.to_vec();
    let mut at = 0;
    while let Some(found) = bytes[at..].windows(old.len()).position(|window| window == old) {
        bytes[at + found..][..new.len()].copy_from_slice(new);
        at += found + new.len();
    }
    assert!(at > 0);
    world.write("newer.wasm", bytes);
    world.fails("plugin inspect newer.wasm").says("implements keepwell:retention/policy@0.2.0");
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

/// A policy from outside: its own option is a flag, and what it says is only done within limits.
#[test]
fn a_policy_from_outside_is_used_by_name() {
    let world = World::new();
    let (_, bytes) = keepwell_test_guests::COMPONENTS[0];
    world.write("plugins/hostile.wasm", bytes);
    world.write("tree/file", b"x");
    for time in [1000, 1001] {
        world.ok(&format!("backup root.pxar:tree --backup-id me --backup-time {time}"));
    }
    let run = |line: &str| {
        let mut command = world.command();
        command.env("KEEPWELL_PLUGIN_PATH", world.path("plugins")).args(line.split(' '));
        crate::support::Run::from(command.output().unwrap())
    };
    assert!(run("prune --help").stdout.contains("How to misbehave"));
    let panicked = run("prune host/me --policy hostile --mode panic");
    panicked.assert_failed("a policy that panics");
    panicked.says("plugin 'hostile' failed: it panicked").says("a deliberate panic");
    run("prune host/me --policy hostile --mode few").says("made 1 decisions for 2 snapshots");
    world.ok("snapshot protected update host/me/1970-01-01T00:16:40Z true");
    let pruned = run("prune host/me --policy hostile --mode all --output-format json");
    assert_eq!(pruned.code, Some(0), "{}", pruned.stderr);
    assert_eq!(
        world.snapshots(),
        ["host/me/1000"],
        "a protected snapshot stays, whatever a policy says"
    );
}

#[test]
fn the_example_policy_keeps_a_snapshot_a_week() {
    let world = World::new();
    let (name, bytes) = keepwell_test_guests::COMPONENTS[1];
    world.write(&format!("plugins/{name}.wasm"), bytes);
    world.write("tree/file", b"x");
    for day in [1, 2, 10, 19, 20] {
        world.ok(&format!("backup root.pxar:tree --backup-id me --backup-time {}", day * 86_400));
    }
    let run = |line: &str| {
        let mut command = world.command();
        command.env("KEEPWELL_PLUGIN_PATH", world.path("plugins")).args(line.split(' '));
        crate::support::Run::from(command.output().unwrap())
    };
    run("prune host/me --policy keep-weekly --weeks 0").says("minimum value of 1 (got 0)");
    let pruned = run("prune host/me --policy keep-weekly --weeks 2");
    assert_eq!(pruned.code, Some(0), "{}", pruned.stderr);
    assert_eq!(world.snapshots(), [10, 20].map(|day| format!("host/me/{}", day * 86_400)));
}

/// Runs a command with directories of the world in the environment.
fn run_with(world: &World, places: &[(&str, &str)], line: &str) -> Run {
    let mut command = world.command();
    command.envs(places.iter().map(|(name, dir)| (name, world.path(dir))));
    Run::from(command.args(line.split(' ')).output().unwrap())
}

#[test]
fn what_is_installed_is_used_until_it_changes() {
    let world = World::new();
    let (_, bytes) = keepwell_test_guests::COMPONENTS[1];
    world.write("weekly.wasm", bytes);
    let run = |line: &str| run_with(&world, &[("XDG_DATA_HOME", "data")], line);
    let ok = |line: &str| run(line).assert_ok(line);
    let shown = ok("plugin inspect weekly.wasm --output-format json").stdout;
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert_eq!((&shown["name"], &shown["size"]), (&"keep-weekly".into(), &bytes.len().into()));
    assert_eq!(shown["kinds"], serde_json::json!(["retention"]));
    assert_eq!(shown["options"][0]["name"], "weeks");
    assert_eq!(shown["exports"][1], "keepwell:retention/policy@0.1.0");
    // Nobody is there to be asked.
    run("plugin install weekly.wasm").says("use --yes");
    run("prune host/me --policy keep-weekly --weeks 2").assert_failed("not installed");
    let installed = ok("plugin install weekly.wasm --yes");
    installed.says("installed 'keep-weekly'");
    let hash = shown["sha256"].as_str().unwrap();
    assert!(installed.stdout.contains(hash), "{}", installed.stdout);
    assert!(ok("plugin list").stdout.contains("keep-weekly"));
    let help = ok("prune --help").stdout;
    assert!(help.contains("--weeks") && help.contains("Retention policy: keep-weekly, "), "{help}");

    // Another file of that name is not used, and nothing else is kept from working.
    let file = world.path("data/keepwell/plugins/keep-weekly.wasm");
    let (_, hostile) = keepwell_test_guests::COMPONENTS[0];
    fs::write(&file, hostile).unwrap();
    let version = ok("version");
    version.says("it has changed since it was installed");
    assert!(!ok("prune --help").stdout.contains("How to misbehave"));
    let listed = ok("plugin list --output-format json").stdout;
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    let problem = listed.as_array().unwrap().last().unwrap()["problem"].as_str().unwrap();
    assert!(problem.contains("has changed"), "{problem}");
    fs::write(world.path("data/keepwell/plugins/dropped.wasm"), bytes).unwrap();
    ok("version").says("it was not installed");
    fs::remove_file(world.path("data/keepwell/plugins/dropped.wasm")).unwrap();
    let again = format!("plugin install {} --yes", world.path("weekly.wasm").display());
    ok(&again);
    assert!(!ok("version").stderr.contains("not used"));

    run("plugin remove ../weekly").says("is no name of a plugin");
    run("plugin remove pxar").says("built in");
    ok("plugin remove keep-weekly").says("removed 'keep-weekly'");
    run("plugin remove keep-weekly").assert_failed("removed twice");
    assert!(!file.exists() && !ok("prune --help").stdout.contains("--weeks"));
}

#[test]
fn settings_count_where_nothing_else_is_said() {
    let world = World::new();
    let (name, bytes) = keepwell_test_guests::COMPONENTS[1];
    world.write(&format!("plugins/{name}.wasm"), bytes);
    world.write("tree/file.o", b"x");
    world.write("tree/file", b"x");
    let places = [("XDG_CONFIG_HOME", "config"), ("KEEPWELL_PLUGIN_PATH", "plugins")];
    let run = |line: &str| run_with(&world, &places, line);
    let ok = |line: &str| run(line).assert_ok(line);
    let config = world.path("config/keepwell/config.toml");
    let mode = |mode| fs::set_permissions(&config, fs::Permissions::from_mode(mode)).unwrap();
    let write = |text: &str| {
        world.write("config/keepwell/config.toml", text);
        mode(0o644);
    };
    write(
        "policy = 'keep-weekly'\noutput-format = 'json'\nlimits.memory = '32MiB'\n\
         plugins.pxar.options = { exclude = ['*.o', '/nothing'], no-fifos = true }\n\
         plugins.keep-weekly.options.weeks = 3\n",
    );
    for time in [1000, 1001] {
        ok(&format!("backup root.pxar:tree --backup-id me --backup-time {time}"));
    }
    let dumped = ok("catalog dump host/me/1970-01-01T00:16:40Z").stdout;
    assert!(dumped.contains("/file\"") && !dumped.contains("file.o"), "{dumped}");
    ok("backup root.pxar:tree --backup-id me --backup-time 1002 --exclude file");
    let dumped = ok("catalog dump host/me/1970-01-01T00:16:42Z").stdout;
    assert!(dumped.contains("file.o") && !dumped.contains("/file\""), "the command line: {dumped}");
    // Several weeks, of which there is one: the newest stays.
    let pruned = ok("prune host/me --dry-run").stdout;
    let pruned: serde_json::Value = serde_json::from_str(&pruned).unwrap();
    let kept = pruned.as_array().unwrap().iter().filter(|item| item["keep"] == true).count();
    assert_eq!(kept, 1, "{pruned}");
    assert!(ok("prune host/me --dry-run --output-format text").stdout.contains("snapshot"));

    let shown = ok("config show --output-format json").stdout;
    let shown: Vec<serde_json::Value> = serde_json::from_str(&shown).unwrap();
    let of = |key: &str| shown.iter().find(|item| item["key"] == key).unwrap();
    assert_eq!(of("policy")["value"], "keep-weekly");
    assert!(of("limits.memory")["origin"].as_str().unwrap().ends_with("keepwell/config.toml"));
    assert_eq!(of("limits.call-seconds")["origin"], "default");

    write("polcy = 'x'");
    let wrong = run("version");
    wrong.assert_failed("an unknown setting");
    wrong.says("config.toml': polcy: there is no such setting");
    write("plugins.pxar.options.nothing = 1");
    run("version").says("plugins.pxar.options.nothing: the plugin has no such option");
    write("plugins.pxar.options.no-fifos = 'often'");
    run("version").says("is true or false");
    write("plugins.pxar.options.exclude-larger-than = 'much'");
    run("version").says("config.toml': plugins.pxar.options.exclude-larger-than: ");
    write("plugins.pxr.options.exclude = 'x'");
    ok("version").says("the settings are about plugin 'pxr', and there is none");
    write("plugins.pxar.options.exclude-larger-than = ['1', '2']");
    run("version").says("takes one value");
    write("archive-types.pxar = 'other'");
    let missing = run("backup root.pxar:tree");
    missing.assert_failed("a plugin that is not there");
    missing.says("the settings want plugin 'other' for '.pxar', and none of that name serves it");
    // Looking and removing go on.
    write("plugins.keep-weekly.options.months = 3");
    run("version").assert_failed("an option that the plugin lacks");
    ok("plugin list");
    ok("config show");
    // A file is one stream; and it is not made by the settings.
    write("plugins.pxar.options.change-detection-mode = 'metadata'");
    ok("pxar create tree.pxar tree");
    // Nobody else may say what plugins do.
    mode(0o666);
    ok("version").says("the settings are not used: others may change");
}

/// A world with a plugin of the tests and settings for it.
struct Granted {
    world: World,
}

impl Granted {
    fn new(number: usize, settings: &str) -> Self {
        let world = World::new();
        let (name, bytes) = keepwell_test_guests::COMPONENTS[number];
        world.write(&format!("plugins/{name}.wasm"), bytes);
        world.write("config/keepwell/config.toml", settings);
        let config = world.path("config/keepwell/config.toml");
        fs::set_permissions(config, fs::Permissions::from_mode(0o644)).unwrap();
        Self { world }
    }

    fn run(&self, arguments: &[&str]) -> Run {
        self.run_with(arguments, |_| {})
    }

    fn run_with(&self, arguments: &[&str], prepare: impl Fn(&mut Command)) -> Run {
        let mut command = self.world.command();
        prepare(&mut command);
        for (name, dir) in [("XDG_CONFIG_HOME", "config"), ("KEEPWELL_PLUGIN_PATH", "plugins")] {
            command.env(name, self.world.path(dir));
        }
        fs::create_dir_all(self.world.path("tmp")).unwrap();
        command.env("TMPDIR", self.world.path("tmp")).env("PROBE", "of the environment");
        Run::from(command.args(arguments).output().unwrap())
    }

    /// What probes get, and what the user is told.
    fn probe(&self, probes: &[&str]) -> (Vec<String>, String) {
        self.probe_with(probes, |_| {})
    }

    /// What is said of a probe whose archive is not made.
    fn refused(&self, probe: &str) -> Run {
        self.world.write("file", "");
        let _ = fs::remove_dir_all(self.world.path("repo/host"));
        let run = self.run(&["backup", "a.probe:file", "--backup-id", "me", "--probe", probe]);
        run.assert_failed(probe);
        assert!(self.world.snapshots().is_empty(), "half an archive is none");
        run
    }

    fn probe_with(&self, probes: &[&str], prepare: impl Fn(&mut Command)) -> (Vec<String>, String) {
        self.world.write("file", "");
        let _ = fs::remove_dir_all(self.world.path("repo/host"));
        let mut arguments = vec!["backup", "a.probe:file", "--backup-id", "me"];
        probes.iter().for_each(|probe| arguments.extend(["--probe", probe]));
        let told = self.run_with(&arguments, prepare).assert_ok("probes").stderr;
        let got = self.run(&["restore", "host/me", "a.probe", "-"]).assert_ok("restore").stdout;
        (got.lines().map(str::to_owned).collect(), told)
    }
}

const PROBES: [&str; 10] = [
    "read /etc/passwd",
    "list /etc",
    "run exit 0",
    "other env",
    "variable PROBE",
    "clock",
    "random",
    "scratch echo x",
    "fetch http://127.0.0.1:9/",
    "fetch https://localhost/",
];

#[test]
fn nothing_is_had_without_a_grant() {
    let granted = Granted::new(2, "");
    let (got, told) = granted.probe(&PROBES);
    assert_eq!(got.len(), PROBES.len());
    for line in got {
        assert!(line.contains("plugin 'prober' is refused "), "{line}");
    }
    assert!(told.contains("is refused reading '/etc/passwd': it takes"), "{told}");
    assert!(told.contains("plugins.prober.grants.run = ['sh']"), "{told}");
    assert!(told.contains("plugins.prober.grants.http = ['127.0.0.1:9']"), "{told}");
    // What it would take is told as config.toml has it.
    let inspected = granted.run(&["plugin", "inspect", "plugins/guest-prober.wasm"]);
    let inspected = inspected.assert_ok("inspect").stdout;
    let (_, settings) = inspected.split_once("config.toml takes:\n").unwrap();
    granted.world.write("config/keepwell/config.toml", settings);
    let shown = granted.run(&["config", "show"]).assert_ok("config show").stdout;
    for grant in ["read", "run", "environment", "http", "clock", "random", "scratch"] {
        assert!(shown.contains(&format!("plugins.prober.grants.{grant}")), "{shown}");
    }
    assert!(settings.contains("run = [\"sh\"]"), "{settings}");
}

/// A server that answers each connection with what belongs to its path, and what it was asked.
fn web_server(answers: &'static [(&str, &str)]) -> (u16, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (asked, hear) = mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, mut buffer) = (stream.unwrap(), [0; 4096]);
            let mut request = Vec::new();
            // The one that has a body ends with it.
            while !request.ends_with(if request.starts_with(b"POST") {
                b"sent"
            } else {
                b"\r\n\r\n"
            }) {
                let read = stream.read(&mut buffer).unwrap();
                request.extend(&buffer[..read]);
            }
            let request = String::from_utf8(request).unwrap();
            let path = request.split(' ').nth(1).unwrap();
            let (_, answer) = answers.iter().find(|(known, _)| *known == path).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
            let _ = asked.send(request);
        }
    });
    (port, hear)
}

#[test]
fn web_servers_that_are_granted_are_asked() {
    let served = Served::new();
    let (port, asked) = web_server(&[
        ("/a?b", "HTTP/1.1 200 OK\r\nX-Told: this\r\nContent-Length: 5\r\n\r\nhello"),
        ("/half", "HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello"),
        ("/open", "HTTP/1.0 200 OK\r\n\r\nhello"),
        ("/moved", "HTTP/1.1 302 Found\r\nLocation: /a\r\nContent-Length: 0\r\n\r\n"),
    ]);
    let granted = Granted::new(2, "");
    let settings = format!(
        "[plugins.prober.grants]\nrun = ['sh']\nhttp = ['127.0.0.1:{port}', 'LOCALHOST:{}']\n",
        served.port
    );
    granted.world.write("config/keepwell/config.toml", settings);
    let url = |path: &str| format!("http://127.0.0.1:{port}/{path}");
    let https = format!("fetch https://localhost:{}/api2/json/none", served.port);
    let probes = [
        format!("fetch {}", url("a?b")),
        format!("send {}", url("a?b")),
        format!("fetch {}", url("half")),
        format!("fetch {}", url("moved")),
        format!("fetch http://localhost:{port}/a"),
        "fetch gopher://a/".to_owned(),
        "output printf one; sleep 0.1; printf two".to_owned(),
        https.clone(),
        format!("fetch {}", url("open")),
        format!("copied {}", url("a?b")),
    ];
    let probes: Vec<&str> = probes.iter().map(String::as_str).collect();
    let (got, told) = granted.probe(&probes);
    assert_eq!(got[0], "200 Some(\"this\") hello");
    assert_eq!(got[1], got[0]);
    assert!(got[2].contains("was lost"), "half an answer is none: {got:?}");
    assert_eq!(got[3], "302 None ");
    assert!(got[4].contains("is refused answers of 'localhost:"), "{got:?}");
    assert!(got[5].contains("no URL of a web server: 'gopher://a/'"), "{got:?}");
    assert_eq!(got[6], "onetwo");
    assert!(got[7].contains("none that this system trusts"), "{got:?}");
    assert!(told.contains("plugins.prober.grants.http = ['localhost:"), "{told}");
    let requests: Vec<String> = asked.try_iter().collect();
    assert_eq!(requests.len(), 6, "{requests:?}");
    assert!(requests[0].contains("\r\nx-key: value\r\n"), "{requests:?}");
    assert!(requests[1].starts_with("POST ") && requests[1].ends_with("\r\n\r\nsent"));
    assert!(got[8].contains("did not say where its answer ends"), "{got:?}");
    assert_eq!(got[9], "hello5", "content and its length");
    for half in ["copied-half", "copied"] {
        let probe = format!("{half} {}", url(if half == "copied" { "half" } else { "a?b" }));
        let refused = granted.refused(&probe);
        refused.says("plugin 'prober': it did not find out whether all of the answer of http://");
    }
    // A system that trusts it.
    let roots = served.world.path("srv/proxy.pem");
    let (got, _) = granted.probe_with(&[&https], |command| {
        command.env("SSL_CERT_FILE", &roots);
    });
    assert!(got[0].starts_with("401 None "), "{got:?}");
}

#[test]
fn answers_that_do_not_end_are_counted_when_they_are_dropped() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let place = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut held = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n");
            held.push(stream);
        }
    });
    let granted = Granted::new(2, &format!("plugins.prober.grants.http = ['{place}']\n"));
    let (got, _) = granted.probe(&[&format!("hoard http://{place}/")]);
    assert!(got[0].contains("more than 16 answers at a time"), "{got:?}");
}

/// Ctrl-C while a plugin waits for what does not come.
#[test]
fn what_a_plugin_waits_for_holds_nobody() {
    // The first answers nothing, the second half of what it announced.
    let (silent, half) = (TcpListener::bind("127.0.0.1:0"), TcpListener::bind("127.0.0.1:0"));
    let (silent, half) = (silent.unwrap(), half.unwrap());
    let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
    let settings = format!(
        "[plugins.prober.grants]\nrun = ['sh']\nhttp = ['127.0.0.1:{}', '127.0.0.1:{}']\n",
        port(&silent),
        port(&half)
    );
    let granted = Granted::new(2, &settings);
    granted.world.write("file", "");
    let (begun, begin) = (granted.world.path("begun"), "touch begun; sleep 60");
    let probes = [
        format!("fetch http://127.0.0.1:{}/", port(&silent)),
        format!("fetch http://127.0.0.1:{}/", port(&half)),
        format!("run {begin}"),
        format!("output {begin}"),
        format!("spliced {begin}"),
    ];
    for (number, probe) in probes.iter().enumerate() {
        let mut command = granted.world.command();
        for (name, dir) in [("XDG_CONFIG_HOME", "config"), ("KEEPWELL_PLUGIN_PATH", "plugins")] {
            command.env(name, granted.world.path(dir));
        }
        command.args(["backup", "a.probe:file", "--backup-id", "me", "--probe", probe]);
        let child = command.stderr(std::process::Stdio::piped()).spawn().unwrap();
        // Held open to the end of the turn.
        let _held = match number {
            0 => Some(silent.accept().unwrap().0),
            1 => {
                let (mut stream, _) = half.accept().unwrap();
                let _ = stream.read(&mut [0; 4096]).unwrap();
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc").unwrap();
                Some(stream)
            }
            _ => {
                while !begun.exists() {
                    std::thread::sleep(std::time::Duration::from_millis(20));
                }
                fs::remove_file(&begun).unwrap();
                None
            }
        };
        rustix::process::kill_process(
            rustix::process::Pid::from_child(&child),
            rustix::process::Signal::INT,
        )
        .unwrap();
        let run = Run::from(child.wait_with_output().unwrap());
        run.assert_failed(probe);
        run.says("interrupted: no snapshot was made");
    }
    assert!(granted.world.snapshots().is_empty());
}

#[test]
fn what_is_asked_for_and_granted_is_had() {
    let granted = Granted::new(
        2,
        "[plugins.prober.grants]\nread = ['/srv']\nrun = ['sh', 'env']\nclock = true\nrandom = true\n\
         environment = ['PROBE']\nscratch = '1KiB'\n",
    );
    let (dir, world) = (granted.world.path("data"), &granted.world);
    world.write("data/in/file", "inside");
    world.write("outside", "outside");
    std::os::unix::fs::symlink("../../outside", dir.join("in/link")).unwrap();
    let made = Command::new("mkfifo").arg(dir.join("in/fifo")).status().unwrap();
    assert!(made.success());
    let settings = fs::read_to_string(world.path("config/keepwell/config.toml")).unwrap();
    let settings = settings.replace("/srv", &dir.to_string_lossy());
    fs::write(world.path("config/keepwell/config.toml"), settings).unwrap();
    let inside = |rest: &str| format!("{}/{rest}", dir.display());
    let (file, link) = (inside("in/file"), inside("in/link"));
    let (climbing, own) = (inside("../outside"), dir.display());
    let (got, told) = granted.probe(&[
        &format!("read {file}"),
        &format!("list {own}"),
        &format!("read {link}"),
        &format!("read {climbing}"),
        &format!("read {}", world.path("outside").display()),
        "run exit 0",
        "run echo complaint >&2; exit 3",
        "run test -z \"$PBS_REPOSITORY\" && test -n \"$PROBE\"",
        "other env",
        "variable PROBE",
        "variable HOME",
        "random",
        "scratch printf short",
        "scratch seq 1000",
        "escape ../../etc/passwd",
    ]);
    let (pipes, _) = granted.probe(&[
        "output cat",
        "status exit 4",
        "status exit 5",
        "held seq 1000000",
        "note written",
        &format!("pipe {}", inside("in/fifo")),
        "spliced printf whole",
        "run sleep 20 & exit 0",
    ]);
    assert_eq!(got[0..2], ["inside", "in"]);
    for line in &got[2..5] {
        assert!(
            !line.contains("outside")
                || line.contains("no absolute path")
                || line.contains("is refused"),
            "{got:?}"
        );
    }
    assert_eq!(got[5], "ended well");
    assert!(got[6].contains("exit status: 3"), "{got:?}");
    assert!(told.contains("sh: complaint"), "{told}");
    assert_eq!(got[7], "ended well", "only what is granted of the environment");
    assert!(got[8].contains("is refused running 'env'"), "it did not ask for that: {got:?}");
    assert_eq!(got[9], "of the environment");
    assert!(got[10].contains("is refused"), "{got:?}");
    assert_eq!(got[11..13], ["16", "short"]);
    assert!(got[13].contains("more than 1024 bytes"), "{got:?}");
    assert!(!got[14].contains("root"), "{got:?}");
    assert_eq!(pipes[..2], ["input", "4"]);
    assert!(pipes[2].contains("exit status: 5"), "{pipes:?}");
    // Of "1\n": what nobody reads keeps nobody.
    assert_eq!(pipes[3..6], ["1", "", "written"]);
    assert!(pipes[6].contains("a pipe is spliced to its end"), "{pipes:?}");
    assert_eq!(pipes[7..], ["whole5", "ended well"]);
    for half in ["half printf half", "spliced printf half; exit 1"] {
        let refused = granted.refused(half);
        refused.says("it did not find out whether all of the output of 'sh' came");
    }
    let (got, _) = granted.probe(&["clock"]);
    assert!(got[0].parse::<u64>().unwrap() > 1_700_000_000);
    assert_eq!(fs::read_dir(world.path("tmp")).unwrap().count(), 0, "scratch space is removed");
}

#[test]
fn a_command_is_backed_up() {
    let granted = Granted::new(3, "plugins.dump.grants.run = ['sh']\n");
    let world = &granted.world;
    world.write("app.dump", "# a script\nsh\n-c\nseq 100000\n");
    granted.run(&["backup", "app.dump:app.dump", "--backup-id", "me"]).assert_ok("backup");
    let out = granted.run(&["restore", "host/me", "app.dump", "-"]).assert_ok("restore").stdout;
    assert_eq!(out.lines().count(), 100_000);
    granted.run(&["restore", "host/me", "app.dump", "out"]).assert_ok("restore into a file");
    assert_eq!(fs::read_to_string(world.path("out")).unwrap(), out);
    // Half a dump is none, and neither is one that may not be made.
    for (text, told) in [
        ("sh\n-c\necho half; exit 1\n", "'sh' failed: exit status: 1"),
        ("seq\n3\n", "is refused running 'seq'"),
        ("# nothing\n", "the file names no command"),
    ] {
        world.write("app.dump", text);
        let failed = granted.run(&["backup", "app.dump:app.dump", "--backup-id", "other"]);
        failed.assert_failed(text);
        failed.says(told);
    }
    assert!(!granted.run(&["list"]).stdout.contains("other"));
}

#[test]
fn a_database_in_use_is_backed_up() {
    if std::process::Command::new("sqlite3").arg("--version").output().is_err() {
        return crate::support::skipped("it takes the sqlite3 program");
    }
    let granted =
        Granted::new(4, "[plugins.sqlite.grants]\nrun = ['sqlite3']\nscratch = '100MiB'\n");
    let world = &granted.world;
    let sqlite = |database: &str, script: &str| {
        let output = std::process::Command::new("sqlite3")
            .args([&world.path(database).into_os_string(), &script.into()])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    sqlite("app.db", "PRAGMA journal_mode=WAL; CREATE TABLE t(a, b);");
    // A writer that never leaves the sum of a transaction half written.
    let database = world.path("app.db");
    let writer = std::thread::spawn(move || {
        for round in 0..40 {
            let script = format!(
                ".timeout 60000\nBEGIN; INSERT INTO t VALUES({round}, zeroblob(20000)); INSERT INTO t \
                 VALUES(-{round}, zeroblob(20000)); COMMIT;"
            );
            let ran = std::process::Command::new("sqlite3").arg(&database).arg(script).output();
            assert!(ran.unwrap().status.success());
        }
    });
    for number in 0..3 {
        let id = format!("b{number}");
        granted.run(&["backup", "app.sqlite:app.db", "--backup-id", &id]).assert_ok("backup");
        let copy = format!("copy{number}");
        let group = format!("host/{id}");
        granted.run(&["restore", &group, "app.sqlite", &copy]).assert_ok("restore");
        assert_eq!(sqlite(&copy, "PRAGMA integrity_check;"), "ok");
        assert_eq!(sqlite(&copy, "SELECT total(a) = 0 AND count(*) % 2 = 0 FROM t;"), "1");
    }
    writer.join().unwrap();
    world.write("no.db", "something else");
    let wrong = granted.run(&["backup", "app.sqlite:no.db", "--backup-id", "no"]);
    wrong.assert_failed("no database");
    wrong.says("it is no SQLite database");
}

/// Where the examples lie.
fn example(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples").join(name)
}

/// Runs a tool that makes a component; false where it is not there.
fn made(command: &mut std::process::Command) -> bool {
    match command.output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
        made => {
            let made = made.unwrap();
            assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
            true
        }
    }
}

#[test]
fn a_policy_in_python_is_used() {
    let world = World::new();
    // It writes beside its source.
    world.write("python/app.py", fs::read(example("python-spread/app.py")).unwrap());
    fs::create_dir(world.path("plugins")).unwrap();
    let contract = |package: &str| example("../wit").join(package);
    let mut command = std::process::Command::new("componentize-py");
    command.arg("-d").arg(contract("types")).arg("-d").arg(contract("retention"));
    command.args(["-w", "keepwell:retention/retention-policy", "componentize", "app", "-o"]);
    command.arg(world.path("plugins/spread.wasm")).current_dir(world.path("python"));
    if !made(&mut command) {
        return crate::support::skipped("it takes componentize-py");
    }
    world.write("file.conf", "x");
    let day = 86_400;
    let now = 1_700_000_000;
    for age in [400, 300, 200, 100, 9, 8, 5, 4, 3, 2, 1, 0] {
        let time = now - age * day;
        world.ok(&format!("backup a.conf:file.conf --backup-id me --backup-time {time}"));
    }
    let run = |line: &str| run_with(&world, &[("KEEPWELL_PLUGIN_PATH", "plugins")], line);
    assert!(run("prune --help").stdout.contains("--keep-spread"));
    let line = "prune host/me --policy spread --keep-spread 3 --dry-run --output-format json";
    let pruned = run(line).assert_ok(line).json();
    let kept: Vec<i64> = pruned
        .as_array()
        .unwrap()
        .iter()
        .filter(|item| item["keep"] == true)
        .map(|item| (now - item["backup-time"].as_i64().unwrap()) / day)
        .collect();
    // All are years old by now: the newest.
    assert_eq!(kept, [0], "{pruned}");
    run("prune host/me --policy spread --keep-spread 0").says("minimum value of 1");
}

#[test]
fn a_format_in_javascript_is_used() {
    let world = World::new();
    fs::create_dir(world.path("plugins")).unwrap();
    let script = example("js-markdown/build.mjs");
    if !example("js-markdown/node_modules").exists() {
        return crate::support::skipped("it takes `npm ci` in examples/js-markdown");
    }
    let mut command = std::process::Command::new("node");
    if !made(command.arg(script).arg(world.path("plugins/markdown.wasm"))) {
        return crate::support::skipped("it takes node");
    }
    world.write("file.conf", "x");
    world.ok("backup a.conf:file.conf --backup-id me --backup-time 1000");
    let run = |line: &str| run_with(&world, &[("KEEPWELL_PLUGIN_PATH", "plugins")], line);
    let listed = run("list --output-format markdown").assert_ok("list").stdout;
    let expected = "| group | last snapshot | backup-count | files |\n| :-- | :-- | --: | :-- |\n\
                    | host/me | host/me/1970-01-01T00:16:40Z | 1 | a.conf index.json |\n";
    assert_eq!(listed, expected);
    run("list --output-format markup").says("use one of markdown, ");
    assert!(run("list --help").stdout.contains("markdown"));
}

/// The plugin that misbehaves, with little time and memory.
fn hostile() -> Granted {
    let granted = Granted::new(0, "limits = { call-seconds = 1, memory = '64MiB' }\n");
    granted.world.write("dir/file", "content");
    granted.world.write("secret", "secret");
    granted
}

/// One line that names the plugin.
fn is_blamed(run: &Run, what: &str, told: &str) {
    run.assert_failed(what);
    let line = run.stderr.lines().find(|line| line.starts_with("Error: ")).unwrap();
    assert!(line.contains("plugin 'hostile'") && line.contains(told), "{what}: {line}");
    assert!(run.stderr.len() < 2 << 20, "{what}: it says too much");
    assert!(!run.stderr.contains('\x1b'), "{what}: it writes to the terminal");
}

#[test]
fn hostile_sources_are_contained() {
    let granted = hostile();
    granted.world.write("other.conf", "x");
    granted.run(&["backup", "a.conf:other.conf", "--backup-id", "there"]).assert_ok("first");
    for (mode, told) in [
        ("panic", "it panicked"),
        ("loop", "for more than 1 seconds without reading or writing"),
        ("deep", "more than 65536 levels"),
        ("memory", "more memory than plugins may use"),
        ("recurse", "call stack exhausted"),
        ("handles", "no free keys"),
        ("patterns", "more than 10000 patterns"),
        ("streams", "more than 4 streams"),
        ("twice", "two streams are called"),
        ("large-write", "more than 1 MiB in one write"),
        ("chunks", "chunks of 3 bytes"),
        ("splice", "length overflows"),
        ("reuse", "reused false"),
        ("unopened", "has not been opened"),
        ("names", "NUL or '/'"),
        ("open ../secret", "no name of a child"),
        ("open ..", "no name of a child"),
        ("open ", "no name of a child"),
        ("enter ..", "no name of a child"),
        ("enter /etc", "no name of a child"),
        ("suffix ../../x", "a stream '../../x', where there are .hostile, .s0"),
        ("suffix .pxar", "a stream '.pxar', where there are"),
        ("suffix ", "a stream '', where there are"),
        ("short", "stream '.s0' has 21 bytes and not 10"),
    ] {
        let arguments = ["backup", "a.hostile:dir", "--backup-id", "me", "--mode", mode];
        is_blamed(&granted.run(&arguments), mode, told);
    }
    // Nothing of it is left, and what was there is.
    let listed = granted.run(&["list", "--output-format", "json"]).assert_ok("list").stdout;
    assert!(listed.contains("there") && !listed.contains("\"me\""), "{listed}");
    for mode in ["flood", "skipped", "judge", "children", "far"] {
        let id = format!("id-{mode}");
        let run = granted.run(&["backup", "a.hostile:dir", "--backup-id", &id, "--mode", mode]);
        assert!(run.stderr.len() < 2 << 20 && !run.stderr.contains('\x1b'), "{mode}");
    }
    granted.run(&["verify"]).assert_ok("verify");
}

#[test]
fn hostile_readers_are_contained() {
    let granted = hostile();
    for (mode, told) in [
        ("panic", "it panicked"),
        ("loop", "without reading or writing"),
        ("memory", "more memory than plugins may use"),
        ("recurse", "call stack exhausted"),
        ("cycle", "again/again"),
        ("self", "again/again"),
        ("dotdot", "illegal file name"),
        ("slash", "illegal file name"),
        ("empty", "illegal file name"),
        ("zero", "illegal file name"),
        ("long", "illegal file name"),
        ("beyond", "outside of the archive"),
        ("overflow", "failed to set file size"),
        ("stream", "not as long as its size says"),
        ("size", "not as long as its size says"),
        ("link", "illegal target of a hard link"),
        ("target", "symbolic link"),
        ("many", "more memory than plugins may use"),
        ("endless", "two entries of this name"),
        ("leave", "leaves what it did not enter"),
    ] {
        let (id, what) = (format!("r-{mode}"), format!("read-{mode}"));
        let arguments = ["backup", "a.hostile:dir", "--backup-id", &id, "--mode", &what];
        granted.run(&arguments).assert_ok(mode);
        let (group, out) = (format!("host/{id}"), format!("out-{mode}"));
        is_blamed(&granted.run(&["restore", &group, "a.hostile", &out]), mode, told);
        let extracted = granted.run(&["extract", &group, "a.hostile", "x", "--to", "here"]);
        assert!(extracted.code == Some(255), "{mode}: {}", extracted.stderr);
    }
    assert_eq!(fs::read_to_string(granted.world.path("secret")).unwrap(), "secret");
    assert!(!granted.world.path("b").exists() && !granted.world.path("out-slash/a").exists());
}

#[test]
fn hostile_formatters_and_policies_are_contained() {
    let granted = hostile();
    for (format, told) in [
        ("panic", "it panicked"),
        ("loop", "it ran for more than 1 seconds"),
        ("memory", "more memory than plugins may use"),
        ("recurse", "call stack exhausted"),
        ("gigabytes", "plugin 'hostile'"),
    ] {
        is_blamed(&granted.run(&["version", "--output-format", format]), format, told);
    }
    assert!(granted.run(&["version", "--output-format", "flood"]).stderr.len() < 2 << 20);
    granted.world.write("a.conf", "x");
    for time in ["1000", "2000"] {
        let line = ["backup", "a.conf:a.conf", "--backup-id", "me", "--backup-time", time];
        granted.run(&line).assert_ok("backup");
    }
    let prune = |mode: &str, more: &[&str]| {
        let line = ["prune", "host/me", "--policy", "hostile", "--mode", mode];
        granted.run(&[&line[..], more].concat())
    };
    for (mode, told) in [
        ("panic", "it panicked"),
        ("loop", "it ran for more than 1 seconds"),
        ("fail", "it does not want to"),
        ("few", "1 decisions for 2 snapshots"),
        ("many", "1000000 decisions for 2 snapshots"),
    ] {
        is_blamed(&prune(mode, &[]), mode, told);
    }
    // What keeps nothing is shown, and not done.
    prune("all", &["--dry-run"]).assert_ok("a dry run");
    let refused = prune("all", &[]);
    refused.assert_failed("nothing is kept");
    refused.says("policy 'hostile' keeps nothing of host/me");
    assert!(refused.stdout.contains("remove"), "{}", refused.stdout);
    assert_eq!(granted.world.snapshots().len(), 2);
    prune("all", &["--allow-empty"]).assert_ok("allowed");
    assert_eq!(granted.world.snapshots().len(), 0);
}

#[test]
fn the_example_policy_of_durations_is_used() {
    let granted = Granted::new(5, "");
    let world = &granted.world;
    world.write("a.conf", "x");
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    for days in [400, 300, 20, 10, 2, 1] {
        let time = (now - days * 86_400).to_string();
        let line = ["backup", "a.conf:a.conf", "--backup-id", "me", "--backup-time", &time];
        granted.run(&line).assert_ok("backup");
    }
    let oldest = granted.run(&["snapshot", "list", "host/me", "--output-format", "json"]).json();
    let oldest = oldest[0]["backup-time"].as_i64().unwrap();
    let help = granted.run(&["prune", "--help"]).stdout;
    assert!(help.contains("--keep-within") && help.contains("--keep-tagged"), "{help}");
    let line = ["prune", "host/me", "--policy", "gfs", "--keep-within", "3d", "--within-yearly"];
    let pruned = granted.run(&[&line[..], &["52w1d", "--output-format", "json"]].concat());
    let pruned = pruned.assert_ok("prune").json();
    let kept = |item: &&serde_json::Value| item["keep"] == true;
    let kept = pruned.as_array().unwrap().iter().filter(kept).count();
    assert!((2..=3).contains(&kept), "those of three days, and one of last year: {pruned}");
    assert_eq!(pruned[0]["backup-time"].as_i64(), Some(oldest));
    granted.run(&[&line[..], &["soon"]].concat()).says("within-yearly");
}

#[test]
fn the_example_formats_are_used() {
    let granted = Granted::new(6, "");
    granted.world.write("a.conf", "x");
    let line = ["backup", "a.conf:a.conf", "--backup-id", "me", "--backup-time", "1000"];
    granted.run(&line).assert_ok("backup");
    let list = |format: &str| {
        granted.run(&["list", "--output-format", format, "--csv-separator", ";"]).assert_ok(format)
    };
    let csv = list("csv").stdout;
    assert!(csv.starts_with("backup-count;backup-id;backup-type;"), "{csv}");
    assert!(csv.contains("1;me;host;"), "{csv}");
    assert!(list("yaml").stdout.contains("  \"backup-id\": \"me\"\n"));
    let metrics = list("prometheus").stdout;
    assert!(metrics.contains("keepwell_last_backup{backup_id=\"me\""), "{metrics}");
    assert!(granted.run(&["list", "--help"]).stdout.contains("--metric-prefix"));
}

#[test]
fn tars_are_made_and_looked_into() {
    let granted = Granted::new(7, "");
    let world = &granted.world;
    world.write("tree/a/file", "content");
    world.write("tree/a/large", crate::support::noise(1, 3_000_000));
    world.write("tree/a/left.o", "x");
    world.write(&format!("tree/{}/deep", "d".repeat(200)), "deep");
    world.write("tree/\u{fc}ml\u{e4}ut \n line", "odd");
    world.write("tree/empty", "");
    fs::create_dir(world.path("tree/void")).unwrap();
    fs::hard_link(world.path("tree/a/file"), world.path("tree/z-link")).unwrap();
    std::os::unix::fs::symlink("a/file", world.path("tree/symlink")).unwrap();
    fs::set_permissions(world.path("tree/a/large"), fs::Permissions::from_mode(0o6755)).unwrap();
    let backup = ["backup", "t.tar:tree", "--backup-id", "me", "--exclude", "*.o"];
    granted.run(&backup).assert_ok("backup");
    fs::remove_file(world.path("tree/a/left.o")).unwrap();
    let same = |one: &str, other: &str| {
        let mut diff = std::process::Command::new("diff");
        diff.args(["-r", "--no-dereference"]).arg(world.path(one)).arg(world.path(other));
        let compared = diff.output().unwrap();
        assert!(compared.status.success(), "{}", String::from_utf8_lossy(&compared.stdout));
    };
    granted.run(&["restore", "host/me", "t.tar", "out"]).assert_ok("restore");
    same("tree", "out");
    use std::os::unix::fs::MetadataExt;
    let of = |path: &str| fs::metadata(world.path(path)).unwrap();
    assert_eq!(of("out/a/file").ino(), of("out/z-link").ino());
    assert_eq!(of("out/a/large").mode(), of("tree/a/large").mode());
    let time = |path| (of(path).mtime(), of(path).mtime_nsec());
    assert_eq!(time("out/a/file"), time("tree/a/file"));
    assert_eq!(time("out/void"), time("tree/void"));

    // The same with what the host makes of any archive.
    granted.run(&["extract", "host/me", "t.tar", "a", "--to", "some"]).assert_ok("extract");
    same("tree/a", "some/a");
    let found = granted.run(&["find", "large", "host/me"]).assert_ok("find").stdout;
    assert!(found.contains("/a/large"), "{found}");
    let mut shell = world.command();
    shell.env("KEEPWELL_PLUGIN_PATH", world.path("plugins"));
    shell.args(["catalog", "shell", "host/me", "t.tar"]).stdin(std::process::Stdio::piped());
    let mut shell = shell.stdout(std::process::Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut shell.stdin.take().unwrap(), b"cd a\nstat large\n").unwrap();
    let told = shell.wait_with_output().unwrap();
    assert!(String::from_utf8_lossy(&told.stdout).contains("Size: 3000000"));
    if crate::support::is_root() && Path::new("/dev/fuse").exists() {
        fs::create_dir(world.path("mnt")).unwrap();
        granted.run(&["mount", "host/me", "t.tar", "mnt"]).assert_ok("mount");
        let compared =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| same("tree", "mnt")));
        let ended = std::process::Command::new("umount").arg(world.path("mnt")).status();
        assert!(ended.unwrap().success());
        compared.unwrap();
    }

    // It is a tar, and what other programs make is one for us.
    let whole = granted.run(&["restore", "host/me", "t.tar", "-"]).assert_ok("restore");
    world.write("t.tar", &whole.stdout_bytes);
    fs::create_dir(world.path("untarred")).unwrap();
    let mut tar = std::process::Command::new("tar");
    tar.arg("xf").arg(world.path("t.tar")).arg("-C").arg(world.path("untarred"));
    assert!(tar.status().unwrap().success());
    same("tree", "untarred");
    assert_eq!(of("untarred/a/large").mode(), of("tree/a/large").mode());
    // Changed and the same again.
    world.write("tree/a/file", "changed");
    std::thread::sleep(std::time::Duration::from_millis(1100));
    granted.run(&backup).assert_ok("again");
    let snapshots = granted.run(&["snapshot", "list", "--output-format", "json"]).json();
    let first = chrono_text(snapshots[0]["backup-time"].as_i64().unwrap());
    let line = ["diff", &format!("host/me/{first}"), "host/me", "--output-format", "json"];
    let differences = granted.run(&line).assert_ok("diff").stdout;
    assert!(differences.contains("/a/file") && !differences.contains("large"), "{differences}");
}

/// A time as snapshots are named by.
fn chrono_text(seconds: i64) -> String {
    let output = std::process::Command::new("date")
        .args(["-u", "+%Y-%m-%dT%H:%M:%SZ", "-d", &format!("@{seconds}")])
        .output();
    String::from_utf8_lossy(&output.unwrap().stdout).trim().to_owned()
}

#[test]
fn plugins_are_tested_against_the_contract() {
    let world = World::new();
    let guests = keepwell_test_guests::COMPONENTS.iter();
    for (name, bytes) in keepwell_builtin::COMPONENTS.iter().chain(guests) {
        world.write(&format!("{name}.wasm"), bytes);
        let tested = world.run(["plugin", "test", &format!("{name}.wasm")]);
        if *name == "guest-hostile" {
            tested.assert_failed("a hostile plugin");
            assert!(tested.stdout.contains("FAILED  "), "{}", tested.stdout);
            continue;
        }
        let tested = tested.assert_ok(name);
        assert!(!tested.stdout.contains("FAILED"), "{name}: {}", tested.stdout);
        assert!(tested.stdout.contains("ok      it describes itself"), "{name}: {}", tested.stdout);
    }
    let tested = world.run(["plugin", "test", "archive-tar.wasm", "--output-format", "json"]);
    let checks = tested.assert_ok("json").json();
    let checks = checks.as_array().unwrap();
    assert!(checks.iter().any(|check| check["check"] == "reader of damaged .tar"), "{checks:?}");
}
