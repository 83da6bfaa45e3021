//! A server of its own for each test, and clients that use it.

use crate::support::{Run, World, noise};
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub(crate) const USER: &str = "me@pbs";
pub(crate) const PASSWORD: &str = "secret12";
pub(crate) const SNAPSHOT: &str = "host/me/2023-11-14T22:13:20Z";

/// A server in a directory of its own, and a world whose repository is there.
pub(crate) struct Served {
    pub(crate) world: World,
    pub(crate) port: u16,
    pub(crate) fingerprint: String,
    pub(crate) child: Option<Child>,
}

impl Served {
    pub(crate) fn new() -> Self {
        Self::with_config("")
    }

    /// With these lines more in its configuration.
    pub(crate) fn with_config(lines: &str) -> Self {
        let world = World::new();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        world.write("password", PASSWORD);
        world.ok(&format!(
            "admin init srv --datastore store1=repo --user {USER} --password-file password --listen 127.0.0.1:{port}"
        ));
        let config = fs::read_to_string(world.path("srv/server.toml")).unwrap();
        world.write("srv/server.toml", config + lines);
        let info = world.ok("admin cert info --config srv/server.toml").stdout;
        let fingerprint = info.lines().find_map(|line| line.strip_prefix("Fingerprint: "));
        let fingerprint = fingerprint.unwrap().to_owned();
        let mut served = Self { world, port, fingerprint, child: None };
        served.start();
        served
    }

    pub(crate) fn log_path(&self) -> PathBuf {
        self.world.path("serve.log")
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// Starts the server and waits until it listens.
    pub(crate) fn start(&mut self) {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log_path()).unwrap();
        let mut command = self.world.command();
        command
            .args(["serve", "--config", "srv/server.toml"])
            .env("PBS_LOG", "debug,hyper=info,h2=info");
        command.stdout(Stdio::null()).stderr(log);
        self.child = Some(command.spawn().unwrap());
        self.wait("a server", || TcpStream::connect(("127.0.0.1", self.port)).is_ok());
    }

    pub(crate) fn wait(&self, what: &str, mut done: impl FnMut() -> bool) {
        let began = Instant::now();
        while !done() {
            assert!(began.elapsed() < Duration::from_secs(60), "{what}: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// A client that logs in as this user.
    pub(crate) fn client_of(&self, user: &str, password: &str) -> Command {
        let mut command = self.world.command();
        command.env("PBS_REPOSITORY", format!("{user}@127.0.0.1:{}:store1", self.port));
        command.env("PBS_PASSWORD", password).env("PBS_FINGERPRINT", &self.fingerprint);
        command
    }

    pub(crate) fn run_as(&self, user: &str, password: &str, line: &str) -> Run {
        let mut command = self.client_of(user, password);
        Run::from(command.args(line.split(' ')).output().unwrap())
    }

    pub(crate) fn ok(&self, line: &str) -> Run {
        let run = self.run_as(USER, PASSWORD, line);
        assert_eq!(run.code, Some(0), "{line}\n{}\n{}", run.stderr, self.log());
        run
    }

    pub(crate) fn fails(&self, line: &str) -> Run {
        let run = self.run_as(USER, PASSWORD, line);
        run.assert_failed(line);
        run
    }

    /// What the server was asked since the last call: method, and path with parameters.
    pub(crate) fn requests(&self, seen: &mut usize) -> Vec<(String, String)> {
        let log = self.log();
        let new = log[*seen..].to_owned();
        *seen = log.len();
        let asked = new.lines().filter_map(|line| {
            let rest = line.strip_prefix("request: ").or_else(|| line.strip_prefix("session: "))?;
            let (method, target) = rest.split_once(' ')?;
            Some((method.to_owned(), target.to_owned()))
        });
        asked.collect()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if self.child.is_some() {
            self.kill();
        }
    }
}

pub(crate) fn tree(world: &World) {
    world.write("tree/big", noise(1, 9 << 20));
    world.write("tree/dir/small", "small");
    world.write("disk", noise(2, 9 << 20));
    world.write("app.conf", "key = value\n");
}
