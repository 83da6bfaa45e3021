//! Passphrases: from the environment or typed at a terminal. Spec: cli.md §1.
//!
//! None is ever printed, and all are wiped when they are dropped.

use crate::signals::Watch;
use anyhow::{Context, Result, anyhow, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use std::ffi::OsString;
use std::io::{IsTerminal, Read, Write, stdin};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use zeroize::Zeroizing;

pub(crate) type Secret = Zeroizing<String>;

const BYTES_MAX: u64 = 64 << 10;

/// The passphrase of a key file: from `PBS_ENCRYPTION_PASSWORD` and its kin, or typed.
pub(crate) fn key_passphrase() -> Result<Secret> {
    if let Some(secret) = from_environment("PBS_ENCRYPTION_PASSWORD")? {
        return Ok(secret);
    }
    if !stdin().is_terminal() {
        bail!(
            "no password input mechanism available - set PBS_ENCRYPTION_PASSWORD, or run it on a \
             terminal"
        );
    }
    ask("Encryption Key Password: ")
}

/// The password of a user of a server: from `PBS_PASSWORD` and its kin, or typed.
pub(crate) fn login_password(user: &str) -> Result<Secret> {
    if let Some(secret) = from_environment("PBS_PASSWORD")? {
        return Ok(secret);
    }
    if !stdin().is_terminal() {
        bail!("no password input mechanism available - set PBS_PASSWORD, or run it on a terminal");
    }
    ask(&format!("Password for \"{user}\": "))
}

/// A new passphrase, typed twice.
pub(crate) fn new_passphrase(prompt: &str) -> Result<Secret> {
    new_password(prompt, keepwell_seal::key_file::PASSPHRASE_BYTES_MIN)
}

/// A new password of at least so many bytes, typed twice.
pub(crate) fn new_password(prompt: &str, bytes_min: usize) -> Result<Secret> {
    let secret = ask(prompt)?;
    let again = ask("Verify Password: ")?;
    if *secret != *again {
        bail!("Passwords do not match!");
    }
    if secret.len() < bytes_min {
        bail!("Password too short!");
    }
    Ok(secret)
}

pub(crate) fn has_terminal() -> bool {
    stdin().is_terminal()
}

/// The first that is defined of `NAME`, `NAME_FD`, `NAME_FILE` and `NAME_CMD`; its first line.
pub(crate) fn from_environment(name: &str) -> Result<Option<Secret>> {
    if let Some(value) = std::env::var_os(name) {
        return first_line(name, OsString::into_encoded_bytes(value)).map(Some);
    }
    let variable = |kind: &str| {
        let name = format!("{name}_{kind}");
        std::env::var_os(&name).map(|value| (name, value))
    };
    if let Some((name, value)) = variable("FD") {
        let number = value.to_str().and_then(|text| text.parse::<u32>().ok());
        let number = number.ok_or_else(|| {
            anyhow!("unable to parse file descriptor in ENV({name}): it is no number")
        })?;
        let bytes = read_descriptor(number)
            .with_context(|| format!("unable to read file descriptor in ENV({name})"))?;
        return first_line(&name, bytes.to_vec()).map(Some);
    }
    if let Some((name, value)) = variable("FILE") {
        let shown = value.display();
        let file = std::fs::File::open(&value)
            .map_err(|error| anyhow!("unable to open file in ENV({name}): '{shown}' - {error}"))?;
        let mut bytes = Vec::with_capacity(64 << 10);
        file.take(BYTES_MAX)
            .read_to_end(&mut bytes)
            .map_err(|error| anyhow!("unable to read file in ENV({name}): '{shown}' - {error}"))?;
        return first_line(&name, bytes).map(Some);
    }
    if let Some((name, value)) = variable("CMD") {
        let command = value.to_str().ok_or_else(|| anyhow!("{name} contains bad characters"))?;
        return first_line(&name, output_of(&name, command)?).map(Some);
    }
    Ok(None)
}

/// All that an open descriptor of ours has to say; it is closed then.
#[allow(unsafe_code, reason = "a number is all that the user has for a descriptor")]
pub(crate) fn read_descriptor(number: u32) -> Result<Zeroizing<Vec<u8>>> {
    use std::os::fd::FromRawFd;
    let failed = |error: std::io::Error| anyhow!("file descriptor {number}: {error}");
    let raw = i32::try_from(number).map_err(|_| anyhow!("file descriptor {number}: no such"))?;
    // SAFETY: the user hands the descriptor over by its number, and nothing here keeps it. Where it
    // is not open, reading fails. Options are read before this process opens files that it keeps.
    let file = unsafe { std::fs::File::from_raw_fd(raw) };
    // A buffer that grows would leave copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(64 << 10));
    file.take(BYTES_MAX).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

/// Runs a command without a shell; its words are split as a shell would.
fn output_of(name: &str, command: &str) -> Result<Vec<u8>> {
    let words = shlex::split(command).filter(|words| !words.is_empty());
    let words =
        words.ok_or_else(|| anyhow!("ENV({name}) is no command: empty, or unbalanced quotes"))?;
    // Arguments may be secrets.
    let program = &words[0];
    let failed = |error| anyhow!("unable to run command in ENV({name}): '{program}' - {error}");
    let mut child = Command::new(program)
        .args(&words[1..])
        .stdin(Stdio::inherit())
        .stderr(Stdio::inherit())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let mut printed = Vec::new();
    if let Some(out) = child.stdout.take() {
        // What goes on printing meets a closed pipe.
        out.take(BYTES_MAX).read_to_end(&mut printed).map_err(failed)?;
    }
    let status = child.wait().map_err(failed)?;
    if !status.success() {
        bail!("command in ENV({name}) failed: '{program}' - {status}");
    }
    Ok(printed)
}

fn first_line(name: &str, bytes: Vec<u8>) -> Result<Secret> {
    let bytes = Zeroizing::new(bytes);
    let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let text = std::str::from_utf8(line).map_err(|_| anyhow!("{name} contains bad characters"))?;
    Ok(Zeroizing::new(text.to_owned()))
}

/// Keys come one by one and unseen; drop gives the terminal back.
struct Unseen {
    before: Termios,
    /// whether a signal asks to stop
    watch: Watch,
}

impl Unseen {
    fn start() -> Result<Self> {
        let watch = Watch::start();
        let before = tcgetattr(stdin())?;
        let mut unseen = before.clone();
        unseen.local_modes -= LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG;
        tcsetattr(stdin(), OptionalActions::Drain, &unseen)?;
        Ok(Self { before, watch })
    }
}

impl Drop for Unseen {
    fn drop(&mut self) {
        let _ = tcsetattr(stdin(), OptionalActions::Drain, &self.before);
    }
}

/// Asks at the terminal; a star stands for each character. The prompt goes to stderr: stdout may be
/// an archive.
pub(crate) fn ask(prompt: &str) -> Result<Secret> {
    if !has_terminal() {
        bail!("unable to read passphrase - no tty");
    }
    let mut shown = prompt_place();
    // Before the prompt: who types at once is not to be seen, either.
    let unseen = Unseen::start()?;
    write!(shown, "{prompt}")?;
    shown.flush()?;
    let typed = read_line(&mut Keys(unseen.watch.flag()), &mut *shown);
    drop(unseen);
    writeln!(shown)?;
    typed
}

/// Where a prompt is seen: not where messages were sent to a file.
fn prompt_place() -> Box<dyn Write> {
    if !std::io::stderr().is_terminal()
        && let Ok(terminal) = std::fs::File::options().write(true).open("/proc/self/fd/0")
    {
        return Box::new(terminal);
    }
    Box::new(std::io::stderr())
}

/// Keys such as arrows come as several bytes: none of them is part of a password.
enum Escape {
    None,
    Begun,
    Sequence,
}

impl Escape {
    /// Whether this byte belongs to such a key.
    fn takes(&mut self, byte: u8) -> bool {
        let (next, taken) = match (&self, byte) {
            (_, 27) => (Self::Begun, true),
            (Self::Begun, b'[' | b'O') => (Self::Sequence, true),
            (Self::Sequence, 0x20..=0x3f) => (Self::Sequence, true),
            (Self::Sequence, 0x40..=0x7e) => (Self::None, true),
            _ => (Self::None, false),
        };
        *self = next;
        taken
    }
}

/// Takes the last star away.
const RUB_OUT: &str = "\x08 \x08";

/// The terminal's keys, past the buffer of the standard library, which nobody would wipe. They end
/// when the flag is set.
struct Keys(Arc<AtomicBool>);

impl Read for Keys {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let wait = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
        while !self.0.load(Ordering::Relaxed) {
            let input = stdin();
            let mut ready = [PollFd::new(&input, PollFlags::IN)];
            match poll(&mut ready, Some(&wait)) {
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) => return Ok(rustix::io::read(&input, &mut *out)?),
                Err(error) => return Err(error.into()),
            }
        }
        Err(std::io::Error::other("interrupted"))
    }
}

fn read_line(keys: &mut dyn Read, shown: &mut dyn Write) -> Result<Secret> {
    // Room for all of it: growing would leave copies behind.
    let mut typed = Zeroizing::new(Vec::with_capacity(BYTES_MAX as usize));
    let is_first_byte = |byte: u8| byte & 0xc0 != 0x80;
    let mut key = [0];
    let mut escape = Escape::None;
    loop {
        if keys.read(&mut key)? == 0 {
            bail!("no password was typed");
        }
        if escape.takes(key[0]) {
            continue;
        }
        match key[0] {
            b'\n' | b'\r' => break,
            3 => bail!("interrupted"),
            4 if typed.is_empty() => bail!("no password was typed"),
            // Backspace.
            8 | 127 => {
                let before = typed.len();
                while typed.pop().is_some_and(|byte| !is_first_byte(byte)) {}
                if before > 0 {
                    write!(shown, "{RUB_OUT}")?;
                }
            }
            // Ctrl-U.
            21 => {
                let characters = typed.iter().filter(|byte| is_first_byte(**byte)).count();
                write!(shown, "{}", RUB_OUT.repeat(characters))?;
                typed.clear();
            }
            byte if byte >= 32 && (typed.len() as u64) < BYTES_MAX => {
                typed.push(byte);
                if is_first_byte(byte) {
                    write!(shown, "*")?;
                }
            }
            _ => {}
        }
        shown.flush()?;
    }
    let text = std::str::from_utf8(&typed).map_err(|_| anyhow!("password is not UTF-8"))?;
    Ok(Zeroizing::new(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(keys: &[u8]) -> Result<(String, String)> {
        let mut shown = Vec::new();
        let secret = read_line(&mut &keys[..], &mut shown)?;
        Ok((secret.to_string(), String::from_utf8(shown)?))
    }

    #[test]
    fn a_star_stands_for_each_character() {
        assert_eq!(typed("pässe\n".as_bytes()).unwrap(), ("pässe".into(), "*****".into()));
        assert_eq!(typed("aä\x7f\x7fbc\r".as_bytes()).unwrap().0, "bc");
        assert_eq!(typed(b"wrong\x15right\n").unwrap().0, "right");
        assert_eq!(typed(b"\x7f\x08secret\n").unwrap(), ("secret".into(), "******".into()));
        assert_eq!(typed(b"x\x7f\x7f\x7fok\n").unwrap().0, "ok");
        assert_eq!(typed(b"sec\x1b[D\x1bOA\x1b[3~ret\n").unwrap().0, "secret");
        for ended in [&b"abc"[..], b"\x04", b"ab\x03\n", b"\xff\n"] {
            assert!(typed(ended).is_err(), "{ended:?}");
        }
    }

    #[test]
    fn the_first_line_is_the_password() {
        let line = |text: &[u8]| first_line("X", text.to_vec()).map(|secret| secret.to_string());
        assert_eq!(line(b"one\r\ntwo\n").unwrap(), "one");
        assert_eq!(line(b"").unwrap(), "");
        assert_eq!(line(b"\xff").unwrap_err().to_string(), "X contains bad characters");
    }
}
