//! A program that a plugin runs.

use crate::state::Unfinished;
use keepwell_engine::input::InputFile;
use keepwell_engine::plugin::Failure;
use rustix::process::{Pid, Signal, kill_process_group};
use std::ffi::OsString;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Shows a line to the user.
pub(crate) type Teller = Box<dyn Fn(String) + Send>;

/// Of the environment, whatever is granted.
const PLAIN: [&str; 8] = ["PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "TZ", "TMPDIR"];
/// Lines of standard error that are shown; the rest is read and dropped.
const LINES_MAX: usize = 100;
const LINE_BYTES_MAX: usize = 4096;
/// A program that has ended may have left others behind that hold its standard error.
const ERRORS_WAIT: Duration = Duration::from_secs(1);

/// Killed when dropped.
pub(crate) struct Process {
    program: String,
    child: Child,
    output: Option<ChildStdout>,
    /// what of the output was not read, once it was taken
    rest: Rest,
    errors: Option<JoinHandle<()>>,
    /// nobody waits for its standard error any more
    is_over: Arc<AtomicBool>,
    ended: Option<Instant>,
    pub(crate) unfinished: Arc<Unfinished>,
}

impl Process {
    pub(crate) fn start(
        program: &str,
        arguments: &[OsString],
        input: Vec<u8>,
        environment: &[String],
        teller: Teller,
    ) -> std::io::Result<Self> {
        let mut command = Command::new(program);
        command.args(arguments).env_clear();
        let names = PLAIN.into_iter().chain(environment.iter().map(String::as_str));
        command.envs(names.filter_map(|name| Some((name, std::env::var_os(name)?))));
        command.stdin(if input.is_empty() { Stdio::null() } else { Stdio::piped() });
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        // With all that it starts, it is ended by us.
        command.process_group(0);
        let mut child = command.spawn()?;
        let (stdin, output, errors) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let unfinished = Unfinished::new(&format!("the output of '{program}'"));
        let (program, rest) = (program.to_owned(), Rest::default());
        // Killed, if what follows fails.
        let is_over = Arc::<AtomicBool>::default();
        let mut process =
            Self { program, child, output, rest, errors: None, is_over, ended: None, unfinished };
        if let Some(mut stdin) = stdin {
            // It may end without having read all of it.
            let feed = move || drop(stdin.write_all(&input));
            std::thread::Builder::new().name("input".into()).spawn(feed)?;
        }
        if let Some(errors) = errors {
            let name = process.program.clone();
            let (errors, is_over) =
                (InputFile::from_fd(errors.into(), Path::new(&name))?, process.is_over.clone());
            let thread = std::thread::Builder::new().name("errors".into());
            let telling = move || tell(&name, &errors, &is_over, &teller);
            process.errors = Some(thread.spawn(telling)?);
        }
        Ok(process)
    }

    pub(crate) fn take_output(&mut self) -> Result<InputFile, Failure> {
        let Some(output) = self.output.take() else {
            return Err(Failure::Invalid(format!("the output of '{}' is taken", self.program)));
        };
        let file = self.rest.keep(OwnedFd::from(output), &self.program);
        file.map_err(|error| Failure::Io(error.to_string()))
    }

    /// How it ended; none where it has not.
    pub(crate) fn wait_a_moment(&mut self, accepted: &[u32]) -> Option<Result<u32, Failure>> {
        // Nobody reads it any more.
        self.output = None;
        let status = match self.child.try_wait() {
            Ok(Some(status)) => status,
            Ok(None) => {
                self.rest.drop_some();
                return None;
            }
            Err(error) => return Some(Err(Failure::Io(error.to_string()))),
        };
        let ended = *self.ended.get_or_insert_with(Instant::now);
        let speaks = self.errors.as_ref().is_some_and(|errors| !errors.is_finished());
        if speaks && ended.elapsed() < ERRORS_WAIT {
            std::thread::sleep(MOMENT);
            return None;
        }
        self.is_over.store(true, Ordering::Relaxed);
        match status.code().and_then(|code| u32::try_from(code).ok()) {
            Some(code) if code == 0 || accepted.contains(&code) => {
                self.unfinished.succeed();
                Some(Ok(code))
            }
            _ => Some(Err(Failure::Other(format!("'{}' failed: {status}", self.program)))),
        }
    }

    pub(crate) fn kill(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        // Its number is its own as long as it was not waited for.
        if self.ended.is_none() {
            let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        }
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

const MOMENT: Duration = Duration::from_millis(10);

/// A second hold of a pipe that was given away: what nobody read of it would keep who writes to it.
#[derive(Default)]
pub(crate) struct Rest(Option<InputFile>);

impl Rest {
    /// The pipe as a file, to be given away.
    pub(crate) fn keep(&mut self, pipe: OwnedFd, name: &str) -> std::io::Result<InputFile> {
        let again = pipe.try_clone()?;
        self.0 = Some(InputFile::from_fd(again, Path::new(name))?);
        InputFile::from_fd(pipe, Path::new(name))
    }

    /// Reads on for a moment, or waits.
    pub(crate) fn drop_some(&self) {
        let read = match &self.0 {
            Some(pipe) if matches!(pipe.wait_for(MOMENT), Ok(true)) => {
                pipe.read_on(&mut vec![0; 64 << 10])
            }
            Some(_) => return,
            None => Ok(0),
        };
        if !matches!(read, Ok(1..)) {
            std::thread::sleep(MOMENT);
        }
    }
}

/// Shows lines of standard error until it ends, or nobody waits for it any more.
fn tell(program: &str, errors: &InputFile, is_over: &AtomicBool, teller: &Teller) {
    let (mut line, mut lines, mut buffer) = (Vec::new(), 0, vec![0; 4096]);
    let mut show = |line: &mut Vec<u8>| {
        let text = String::from_utf8_lossy(line).trim_end().to_owned();
        line.clear();
        lines += 1;
        if lines <= LINES_MAX {
            teller(format!("{program}: {text}"));
        }
    };
    loop {
        let read = match errors.wait_for(MOMENT * 10) {
            Ok(true) => errors.read_on(&mut buffer),
            Ok(false) if is_over.load(Ordering::Relaxed) => break,
            Ok(false) => continue,
            Err(_) => break,
        };
        let Ok(read @ 1..) = read else { break };
        for byte in buffer.iter().take(read) {
            match byte {
                b'\n' => show(&mut line),
                byte => line.push(*byte),
            }
            if line.len() == LINE_BYTES_MAX {
                show(&mut line);
            }
        }
    }
    if !line.is_empty() {
        show(&mut line);
    }
}
