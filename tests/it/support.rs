//! Runs the binary in an environment of its own.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A directory with a repository in it, and the binary to use on it.
pub struct World {
    pub dir: tempfile::TempDir,
}

/// What a run printed and how it ended.
pub struct Run {
    pub code: Option<i32>,
    pub stdout: String,
    pub stdout_bytes: Vec<u8>,
    pub stderr: String,
}

impl World {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        // Directories of chunks are made when needed: 65536 for each test would take minutes.
        fs::create_dir_all(dir.path().join("repo/.chunks")).unwrap();
        Self { dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn repo(&self) -> PathBuf {
        self.path("repo")
    }

    /// The binary with the repository set and nothing else of the outer environment.
    pub fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_keepwell"));
        command.env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("HOME", self.dir.path());
        command.env("TZ", "UTC");
        command.env("LANG", "C.UTF-8");
        // Compiled plugins are shared by all tests.
        command.env("XDG_CACHE_HOME", Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache"));
        command.env("PBS_REPOSITORY", self.repo());
        command.current_dir(self.dir.path());
        command.stdin(Stdio::null());
        command
    }

    pub fn run<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Run {
        let output = self.command().args(arguments).output().expect("the binary runs");
        Run::from(output)
    }

    /// Runs it at a terminal, and types each answer when its prompt has come. All that it prints
    /// is in `stdout`.
    pub fn typed<A: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
        answers: &[(&str, &str)],
    ) -> Run {
        let mut command = self.command();
        command.args(arguments);
        crate::terminal::run(command, answers)
    }

    /// Runs words separated by blanks; it must succeed.
    pub fn ok(&self, line: &str) -> Run {
        let run = self.run(line.split(' '));
        assert_eq!(run.code, Some(0), "{line}\n{}", run.stderr);
        run
    }

    /// Runs words separated by blanks; it must fail as every error does, with one line and perhaps
    /// a hint.
    pub fn fails(&self, line: &str) -> Run {
        let run = self.run(line.split(' '));
        run.assert_failed(line);
        run
    }

    /// A file with this content, with the directories above it.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    /// Snapshots as `snapshot list` gives them.
    pub fn snapshots(&self) -> Vec<String> {
        let listed = self.ok("snapshot list --output-format json").json();
        let text = |item: &serde_json::Value| {
            format!(
                "{}/{}/{}",
                item["backup-type"].as_str().unwrap(),
                item["backup-id"].as_str().unwrap(),
                item["backup-time"]
            )
        };
        listed.as_array().unwrap().iter().map(text).collect()
    }
}

impl From<Output> for Run {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            stdout_bytes: output.stdout,
        }
    }
}

impl Run {
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {}", self.stdout))
    }

    pub fn assert_ok(self, what: &str) -> Self {
        assert_eq!(self.code, Some(0), "{what}: {}", self.stderr);
        self
    }

    pub fn assert_failed(&self, what: &str) {
        assert_eq!(self.code, Some(255), "{what}: {}{}", self.stdout, self.stderr);
        let errors = self.stderr.lines().filter(|line| line.starts_with("Error: ")).count();
        assert_eq!(errors, 1, "{what}: one line says what is wrong: {}", self.stderr);
        assert!(!self.stderr.contains("thread '"), "{what}: {}", self.stderr);
    }

    /// The error names this value.
    pub fn says(&self, text: &str) -> &Self {
        assert!(self.stderr.contains(text), "'{text}' is not in: {}", self.stderr);
        self
    }
}

impl Run {
    pub fn lacks(&self, text: &str) -> &Self {
        assert!(!self.stderr.contains(text), "'{text}' is in: {}", self.stderr);
        self
    }
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A test that can't run here says so. In CI nothing may be skipped.
pub fn skipped(why: &str) {
    assert!(std::env::var_os("KEEPWELL_TEST_ALL").is_none(), "skipped: {why}");
    eprintln!("skipped: {why}");
}

fn has_program(name: &str) -> bool {
    Command::new(name).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

/// Where the golden data lies; says so where it is not there.
pub fn shared() -> Option<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/golden");
    let dir = dir.canonicalize().ok();
    if dir.is_none() {
        skipped("../shared/golden is not beside the project");
    }
    dir
}

/// The golden source tree, made once; needs root.
pub fn golden_tree() -> Option<(PathBuf, PathBuf)> {
    static TREE: std::sync::Mutex<Option<PathBuf>> = std::sync::Mutex::new(None);
    let shared = shared()?;
    if !is_root() {
        skipped("the golden tree needs root");
        return None;
    }
    if let Some(missing) = ["python3", "setfacl", "chattr"].iter().find(|tool| !has_program(tool)) {
        skipped(&format!("the golden tree needs {missing}"));
        return None;
    }
    let mut tree = TREE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if tree.is_none() {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("golden-tree");
        let made = Command::new("python3").arg(shared.join("gen_tree.py")).arg(&path).output();
        let made = made.expect("python3 runs");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        *tree = Some(path);
    }
    Some((shared, tree.clone().unwrap()))
}

/// Runs a test's body only as root.
pub fn needs_root(what: &str) -> bool {
    if !is_root() {
        skipped(&format!("{what} needs root"));
    }
    is_root()
}

/// Bytes that don't compress, the same each time.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(length + 8);
    while out.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend(state.to_le_bytes());
    }
    out.truncate(length);
    out
}

/// Whether a file lies anywhere below, by a part of its name.
pub fn contains_file(dir: &Path, part: &str) -> bool {
    fs::read_dir(dir).is_ok_and(|entries| {
        entries.flatten().any(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            name.contains(part) || entry.path().is_dir() && contains_file(&entry.path(), part)
        })
    })
}
