//! The test kit: a plugin's component in a real host. Not for wasm: `tests/` of a plugin use it.
//!
//! ```no_run
//! use keepwell_sdk::testing::Component;
//!
//! let plugin = Component::build(env!("CARGO_MANIFEST_DIR"));
//! plugin.assert_conforms();
//! std::fs::write(plugin.dir().join("file"), "content").unwrap();
//! plugin.run(&["backup", "a.mine:file", "--backup-id", "me"]).assert_ok();
//! assert_eq!(plugin.run(&["restore", "host/me", "a.mine", "-"]).assert_ok().stdout, "content");
//! ```
//!
//! The host is the `keepwell` that the environment variable `KEEPWELL` names, or else the one in `PATH`. What goes wrong
//! here ends the test with what the host said.

use std::fs::DirBuilder;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// A component, and a directory of its own in which a host with it works; that is removed in the end.
pub struct Component {
    dir: PathBuf,
    file: PathBuf,
}

/// What came of a command.
#[derive(Debug)]
pub struct Run {
    /// whether its exit code was 0
    pub is_success: bool,
    /// what it printed; bytes that are no text are replaced
    pub stdout: String,
    /// what it said besides
    pub stderr: String,
}

impl Run {
    /// Ends the test unless the command succeeded.
    #[track_caller]
    pub fn assert_ok(self) -> Self {
        assert!(self.is_success, "the command failed\n{}{}", self.stdout, self.stderr);
        self
    }
}

/// A new, empty directory that nobody else can write to.
fn new_dir() -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    for _ in 0..1000 {
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("keepwell-plugin-test-{}-{count}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        let made = DirBuilder::new().mode(0o700).create(&dir);
        let made = made.and_then(|()| std::fs::create_dir_all(dir.join("plugins")));
        match made.and_then(|()| std::fs::create_dir_all(dir.join("repo/.chunks"))) {
            Ok(()) => return dir,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => panic!("unable to make {}: {error}", dir.display()),
        }
    }
    panic!("{} is full of old tests", std::env::temp_dir().display())
}

fn run(command: &mut Command) -> Run {
    match command.stdin(Stdio::null()).output() {
        Ok(output) => Run {
            is_success: output.status.success(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        },
        Err(error) => {
            let name = command.get_program().to_string_lossy();
            panic!(
                "unable to run '{name}': {error}; set KEEPWELL to the program, or put it into PATH"
            )
        }
    }
}

fn keepwell() -> Command {
    Command::new(std::env::var_os("KEEPWELL").unwrap_or("keepwell".into()))
}

impl Component {
    /// Builds the plugin whose Cargo.toml is in that directory: `env!("CARGO_MANIFEST_DIR")` is the one that is tested.
    #[track_caller]
    pub fn build(manifest_dir: &str) -> Self {
        let dir = new_dir();
        let file = dir.join("plugins/plugin.wasm");
        let mut command = keepwell();
        command.args(["plugin", "build", manifest_dir, "--output"]).arg(&file);
        run(&mut command).assert_ok();
        Self { dir, file }
    }

    /// A component that is there, in whatever language it was written.
    #[track_caller]
    pub fn of_file(component: impl AsRef<Path>) -> Self {
        let (dir, component) = (new_dir(), component.as_ref());
        let file = dir.join("plugins/plugin.wasm");
        if let Err(error) = std::fs::copy(component, &file) {
            panic!("unable to copy {}: {error}", component.display());
        }
        Self { dir, file }
    }

    /// Where commands are run, and what their relative paths begin at.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The component's own file.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Ends the test unless the component keeps to the contract, as `keepwell plugin test` sees it.
    #[track_caller]
    pub fn assert_conforms(&self) {
        let file = self.file.to_string_lossy().into_owned();
        self.run(&["plugin", "test", &file]).assert_ok();
    }

    /// What config.toml says from now on: grants, limits, options.
    #[track_caller]
    pub fn configure(&self, config: &str) {
        let dir = self.dir.join("config/keepwell");
        let written = std::fs::create_dir_all(&dir)
            .and_then(|()| std::fs::write(dir.join("config.toml"), config));
        if let Err(error) = written {
            panic!("unable to write config.toml: {error}");
        }
    }

    /// Runs `keepwell` with the plugin. The repository is a directory of its own, and so are its settings and caches.
    pub fn run(&self, arguments: &[&str]) -> Run {
        let mut command = keepwell();
        command.args(arguments).current_dir(&self.dir);
        // What the user has set is not the test's.
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            if ["PBS_", "PROXMOX_", "ALL_PROXY"].iter().any(|prefix| name.starts_with(prefix)) {
                command.env_remove(name);
            }
        }
        for (name, dir) in [
            ("HOME", "home"),
            ("XDG_CONFIG_HOME", "config"),
            ("XDG_CACHE_HOME", "cache"),
            ("XDG_DATA_HOME", "data"),
            ("KEEPWELL_PLUGIN_PATH", "plugins"),
            ("PBS_REPOSITORY", "repo"),
        ] {
            command.env(name, self.dir.join(dir));
        }
        run(&mut command)
    }
}

impl Drop for Component {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
