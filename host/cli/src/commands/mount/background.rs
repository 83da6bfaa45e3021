//! Going on in the background once all is well: we start ourselves again, because a process with
//! threads can't be forked, and wait for the other's word.

use crate::exit::Told;
use crate::output::write_out;
use crate::repository::Repository;
use anyhow::{Context, Result};
use clap::ArgMatches;
use keepwell_mount::Log;
use rustix::io::FdFlags;
use std::io::Read;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

/// Set for the other.
const MARK: &str = "KEEPWELL_IN_BACKGROUND";
/// Its last byte before it leaves the terminal.
const READY: u8 = 0;

/// Whether we are the one that goes to the background.
pub(super) fn is_it() -> bool {
    std::env::var_os(MARK).is_some()
}

/// The other keeps no descriptor of the caller open, a lock for one, but those that keys and passwords are
/// read from.
fn close_others(matches: &ArgMatches) -> Result<()> {
    let named = std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().ends_with(b"_FD"));
    let named = named.filter_map(|(_, value)| value.to_str()?.parse::<i32>().ok());
    let key = matches.try_get_one::<u32>("keyfd").ok().flatten();
    let kept: Vec<i32> = named.chain(key.and_then(|number| i32::try_from(*number).ok())).collect();
    for entry in std::fs::read_dir("/proc/self/fd")?.flatten() {
        let number = entry.file_name().to_str().and_then(|number| number.parse::<i32>().ok());
        let Some(number) = number.filter(|number| *number > 2 && !kept.contains(number)) else {
            continue;
        };
        // SAFETY: the descriptor is only borrowed for the call, which fails where it is not open; what
        // it belongs to does not change but for programs started later.
        #[allow(unsafe_code, reason = "there is no other way to name a descriptor of the caller")]
        let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
        let _ = rustix::io::fcntl_setfd(descriptor, FdFlags::CLOEXEC);
    }
    Ok(())
}

/// Starts it, and ends well when it is ready, or as badly as it does.
pub(super) fn start(matches: &ArgMatches) -> Result<()> {
    close_others(matches)?;
    let mut arguments = std::env::args_os();
    let mut command = Command::new("/proc/self/exe");
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    let command = command.args(arguments).env(MARK, "1").stdout(Stdio::piped());
    let mut child = command.spawn().context("unable to start the background process")?;
    let mut said = Vec::new();
    if let Some(mut out) = child.stdout.take() {
        out.read_to_end(&mut said)?;
    }
    if said.last() == Some(&READY) {
        said.pop();
        return write_out(&said);
    }
    write_out(&said)?;
    // Killed by a signal it has said nothing.
    match child.wait()?.code() {
        Some(_) => Err(Told.into()),
        None => Err(anyhow::anyhow!("the background process was killed")),
    }
}

/// Says that all is well and leaves the terminal.
pub(super) fn detach(repository: &Repository) -> Result<()> {
    write_out(&[READY])?;
    // It may lead a group already.
    let _ = rustix::process::setsid();
    // No directory is kept from being unmounted; a relative path stays what it was.
    if repository.is_found_everywhere() {
        std::env::set_current_dir("/")?;
    }
    let null = std::fs::File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    Ok(())
}

/// To the system's log: facility daemon, error.
pub(super) fn log() -> Log {
    let pid = std::process::id();
    Box::new(move |line| {
        let line = format!("<27>keepwell[{pid}]: {line}");
        let socket = UnixDatagram::unbound();
        // There may be no system log.
        let _ = socket.and_then(|socket| socket.send_to(line.as_bytes(), "/dev/log"));
    })
}
