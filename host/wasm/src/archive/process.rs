//! A program that a plugin runs.

use keepwell_engine::input::InputFile;
use keepwell_engine::plugin::Failure;
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

/// Shows a line to the user.
pub(crate) type Teller = Box<dyn Fn(String) + Send>;

/// Of the environment, whatever is granted.
const PLAIN: [&str; 8] = ["PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "TZ", "TMPDIR"];
/// Lines of standard error that are shown; the rest is read and dropped.
const LINES_MAX: usize = 100;
const LINE_BYTES_MAX: u64 = 4096;

/// Killed when dropped.
pub(crate) struct Process {
    program: String,
    child: Child,
    output: Option<ChildStdout>,
    errors: Option<JoinHandle<()>>,
}

impl Process {
    pub(crate) fn start(
        program: &str,
        arguments: &[OsString],
        environment: &[String],
        teller: Teller,
    ) -> std::io::Result<Self> {
        let mut command = Command::new(program);
        command.args(arguments).env_clear();
        let names = PLAIN.into_iter().chain(environment.iter().map(String::as_str));
        command.envs(names.filter_map(|name| Some((name, std::env::var_os(name)?))));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let (output, errors) = (child.stdout.take(), child.stderr.take());
        let name = program.to_owned();
        let errors = errors.map(|errors| std::thread::spawn(move || tell(&name, errors, &teller)));
        Ok(Self { program: program.to_owned(), child, output, errors })
    }

    pub(crate) fn take_output(&mut self) -> Result<InputFile, Failure> {
        let Some(output) = self.output.take() else {
            return Err(Failure::Invalid(format!("the output of '{}' is taken", self.program)));
        };
        InputFile::from_fd(OwnedFd::from(output), Path::new(&self.program))
            .map_err(|error| Failure::Io(error.to_string()))
    }

    /// How it ended; none where it has not.
    pub(crate) fn wait_a_moment(&mut self) -> Option<Result<(), Failure>> {
        // Nobody reads it any more.
        self.output = None;
        let status = match self.child.try_wait() {
            Ok(Some(status)) => status,
            Ok(None) => {
                std::thread::sleep(Duration::from_millis(10));
                return None;
            }
            Err(error) => return Some(Err(Failure::Io(error.to_string()))),
        };
        if let Some(errors) = self.errors.take() {
            let _ = errors.join();
        }
        Some(match status.success() {
            true => Ok(()),
            false => Err(Failure::Other(format!("'{}' failed: {status}", self.program))),
        })
    }

    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn tell(program: &str, errors: ChildStderr, teller: &Teller) {
    let mut errors = BufReader::new(errors);
    let mut line = Vec::new();
    for number in 0.. {
        line.clear();
        match errors.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) if number < LINES_MAX => {
                teller(format!("{program}: {}", String::from_utf8_lossy(&line).trim_end()));
            }
            Ok(_) => {}
        }
    }
}
