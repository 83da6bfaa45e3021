//! A terminal for the binary, and somebody who types.

use crate::support::Run;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::process::Command;

/// Runs a command at a pseudo-terminal; types each answer when its prompt has come.
pub fn run(command: Command, answers: &[(&str, &str)]) -> Run {
    converse(command, answers, false)
}

/// Runs a command at a pseudo-terminal, and asks it to end when its prompt has come. The terminal
/// must show what is typed then.
pub fn signalled(command: Command, prompt: &str) -> Run {
    converse(command, &[(prompt, "")], true)
}

fn converse(mut command: Command, answers: &[(&str, &str)], signal: bool) -> Run {
    let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&controller).unwrap();
    unlockpt(&controller).unwrap();
    let name = ptsname(&controller, Vec::new()).unwrap();
    let path = std::path::PathBuf::from(name.to_str().unwrap());
    let user = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    command.stdin(user.try_clone().unwrap());
    command.stdout(user.try_clone().unwrap());
    command.stderr(user);
    let mut child = command.spawn().unwrap();
    // With it go the copies of the user's side: reading ends when the child has ended.
    drop(command);
    // Kept open only where the terminal is looked at afterwards.
    let kept = signal.then(|| OpenOptions::new().read(true).write(true).open(&path).unwrap());
    let mut controller = File::from(controller);
    let (mut output, mut seen) = (Vec::new(), 0);
    let mut answers = answers.iter();
    let mut next = answers.next();
    let mut piece = [0; 4096];
    while let Ok(length @ 1..) = controller.read(&mut piece) {
        output.extend(&piece[..length]);
        if kept.is_some() && output.ends_with(b"interrupted\r\n") {
            break;
        }
        let text = String::from_utf8_lossy(&output[seen..]).into_owned();
        if let Some((prompt, answer)) = next
            && text.contains(prompt)
        {
            seen = output.len();
            if signal {
                let pid = rustix::process::Pid::from_child(&child);
                rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
                next = answers.next();
                continue;
            }
            controller.write_all(format!("{answer}\n").as_bytes()).unwrap();
            next = answers.next();
        }
    }
    let code = child.wait().unwrap().code();
    if let Some(kept) = kept {
        let modes = rustix::termios::tcgetattr(kept).unwrap().local_modes;
        assert!(
            modes.contains(rustix::termios::LocalModes::ECHO | rustix::termios::LocalModes::ICANON)
        );
    }
    assert!(next.is_none(), "no prompt {next:?} in {}", String::from_utf8_lossy(&output));
    let stdout = String::from_utf8_lossy(&output).replace("\r\n", "\n");
    Run { code, stderr: stdout.clone(), stdout, stdout_bytes: output }
}
