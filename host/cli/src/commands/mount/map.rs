//! `map` and `unmap`: an image as a block device, a loop device over a file that FUSE serves. Names,
//! places and messages are the reference's (cli.md, map), so that either takes back what the other mapped.

use super::{
    CACHE_BYTES, background, end_on_signal, log, mounted, open_archive, opener, options, reader_of,
};
use crate::args::{is_set, namespace_of};
use crate::commands::opened::{ArchiveFiles, Opened};
use crate::commands::restore::snapshot_or_group;
use crate::output::write_out;
use crate::plugins::Plugins;
use crate::repository::Repository;
use anyhow::{Context, Result, anyhow, bail};
use clap::{Arg, ArgMatches, Command};
use keepwell_mount::{Mounted, Root};
use rustix::fs::FlockOperation;
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use std::fmt::Write;
use std::fs::{self, DirBuilder, File};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Where mapped images and their processes are noted.
const STATE_DIR: &str = "/run/pbs-loopdev";
/// How long a process is waited for, and how often it is looked for.
const WAIT: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Block devices consist of these.
const SECTOR_BYTES: u64 = 512;

pub(crate) fn map_command() -> Command {
    Command::new("map")
        .about("Make an image a block device, read-only")
        .arg(snapshot_or_group("snapshot"))
        .arg(
            Arg::new("archive-name").value_name("ARCHIVE").help("Such as drive.img").required(true),
        )
        .args(options())
}

pub(crate) fn unmap_command() -> Command {
    Command::new("unmap").about("Take back what `map` made, or list it").arg(
        Arg::new("name")
            .value_name("NAME")
            .help("Name as `map` told it, or /dev/loopN, or N [default: list what is mapped]"),
    )
}

/// As systemd escapes names of units.
fn escaped(name: &str) -> String {
    let mut out = String::new();
    for (at, byte) in name.bytes().enumerate() {
        match byte {
            b'/' => out.push('-'),
            b'.' if at == 0 => out += "\\x2e",
            byte if byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b':' | b'.') => {
                out.push(char::from(byte));
            }
            byte => {
                let _ = write!(out, "\\x{byte:02x}");
            }
        }
    }
    out
}

/// None where it is nothing that was escaped.
fn unescaped(name: &str) -> Option<String> {
    let (mut out, mut bytes) = (Vec::new(), name.bytes());
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'-' => b'/',
            b'\\' if bytes.next() == Some(b'x') => {
                let digits = [bytes.next()?, bytes.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            b'\\' => return None,
            byte => byte,
        });
    }
    String::from_utf8(out).ok()
}

/// An image that is mapped, or was.
struct Mapping {
    /// the file that FUSE serves
    path: PathBuf,
}

impl Mapping {
    fn named(name: &str) -> Self {
        Self { path: Path::new(STATE_DIR).join(escaped(name)) }
    }

    fn pid_file(&self) -> PathBuf {
        self.path.with_extension("pid")
    }

    /// The process that serves it, if that runs.
    fn process(&self) -> Option<Pid> {
        let number = fs::read_to_string(self.pid_file()).ok()?.trim().parse().ok()?;
        let pid = Pid::from_raw(number)?;
        // The number may be another's by now.
        let arguments = fs::read(format!("/proc/{number}/cmdline")).ok()?;
        let is_ours = arguments.split(|byte| *byte == 0).any(|word| word == b"map");
        (is_ours && test_kill_process(pid).is_ok()).then_some(pid)
    }

    /// The loop device over it.
    fn device(&self) -> Option<String> {
        loop_devices().into_iter().find(|(_, file)| *file == self.path).map(|(device, _)| device)
    }

    /// What a process left that ended without a word.
    fn clean(&self) {
        if let Some(device) = self.device() {
            let _ = std::process::Command::new("losetup").args(["-d", &device]).output();
        }
        let _ = rustix::mount::unmount(&self.path, UnmountFlags::DETACH);
        let _ = fs::remove_file(self.pid_file());
        let _ = fs::remove_file(&self.path);
    }
}

/// Loop devices in use, with the files behind them.
fn loop_devices() -> Vec<(String, PathBuf)> {
    let entries = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let devices = entries.filter_map(|entry| {
        let file = fs::read_to_string(entry.path().join("loop/backing_file")).ok()?;
        let name = entry.file_name().into_string().ok()?;
        Some((format!("/dev/{name}"), PathBuf::from(file.trim_end_matches('\n'))))
    });
    devices.collect()
}

pub(crate) fn map(plugins: &Plugins, matches: &ArgMatches) -> Result<()> {
    let text = |name: &str| matches.get_one::<String>(name).map_or("", String::as_str);
    let (snapshot, archive) = (text("snapshot"), text("archive-name"));
    if archive.ends_with(".pxar") || archive.ends_with(".pxar.didx") {
        bail!("use the 'mount' command to mount pxar archives");
    }
    if !archive.ends_with(".img") && !archive.ends_with(".img.fidx") {
        bail!("Can only mount/map pxar archives and drive images.");
    }
    if !rustix::process::geteuid().is_root() {
        bail!("only root can map images: `keepwell mount` shows {archive} as a file");
    }
    let in_background = !is_set(matches, "verbose");
    if in_background && !background::is_it() {
        return background::start(matches);
    }
    let repository = Repository::find(matches.get_one("repository"))?;
    let opened = Opened::of(matches, snapshot)?;
    let files = ArchiveFiles::find(&plugins.types(), &opened.manifest, archive)?;
    let (plugin, _) = reader_of(plugins, &files.extension)?;
    let size: u64 = files.files.iter().map(|file| file.size).sum();
    if !size.is_multiple_of(SECTOR_BYTES) {
        tracing::warn!(
            "{archive} has {size} bytes: a device ends with the last whole {SECTOR_BYTES} of them"
        );
    }
    let first = open_archive(&plugin, &opened, &files, CACHE_BYTES)?;
    let opener = opener(first, plugin, Arc::new(opened), files);

    let namespace = namespace_of(matches);
    let place = if namespace.is_root() { String::new() } else { format!("{namespace}/") };
    let name = format!("{repository}:{place}{snapshot}/{archive}");
    let mapping = Mapping::named(&name);
    let turn = take_turn()?;
    if mapping.process().is_some() {
        bail!("the given archive is already mapped, cannot map twice");
    }
    mapping.clean();
    File::create_new(&mapping.path).map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => {
            anyhow!("the given archive is already mapped, cannot map twice")
        }
        _ => anyhow!("unable to create '{}': {error}", mapping.path.display()),
    })?;
    let served = serve(&mapping, opener, &name, turn, in_background.then_some(&repository));
    // However it ended.
    mapping.clean();
    served
}

/// One at a time changes what is mapped.
fn take_turn() -> Result<File> {
    DirBuilder::new().recursive(true).mode(0o700).create(STATE_DIR)?;
    let turn = File::open(STATE_DIR)?;
    rustix::fs::flock(&turn, FlockOperation::LockExclusive)?;
    Ok(turn)
}

/// Serves the image until it is taken back, in the background where there is a repository to be found
/// from there.
fn serve(
    mapping: &Mapping,
    opener: keepwell_mount::Opener,
    name: &str,
    turn: File,
    repository: Option<&Repository>,
) -> Result<()> {
    let in_background = repository.is_some();
    let root = Root::Archive(opener);
    let mut mounted: Mounted = mounted(root, &mapping.path, name, log(in_background))?;
    let path = mapping.path.clone();
    end_on_signal(mounted.unmounter(), move || Mapping { path }.clean())?;
    let serving = std::thread::spawn(move || mounted.run());
    let mut first = [0];
    let tested = File::open(&mapping.path).and_then(|mut image| image.read(&mut first));
    tested.context("unable to read the image")?;
    let device = loop_device(&mapping.path)?;
    fs::write(mapping.pid_file(), std::process::id().to_string())?;
    write_out(format!("Image '{name}' mapped on {device}\n").as_bytes())?;
    drop(turn);
    if let Some(repository) = repository {
        background::detach(repository)?;
    }
    serving.join().map_err(|_| anyhow!("a thread ended unexpectedly"))??;
    Ok(())
}

/// A new loop device over a file, with its partitions.
fn loop_device(path: &Path) -> Result<String> {
    let run = std::process::Command::new("losetup")
        .args(["--find", "--show", "--read-only", "--partscan", "--"])
        .arg(path)
        .output()
        .context("unable to run losetup (of util-linux)")?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    match run.status.success() {
        true => Ok(text(&run.stdout)),
        false => bail!("no loop device can be made: {}", text(&run.stderr)),
    }
}

pub(crate) fn unmap(matches: &ArgMatches) -> Result<()> {
    let Some(name) = matches.get_one::<String>("name") else { return list() };
    let device = match name.parse::<u32>() {
        Ok(number) => Some(format!("/dev/loop{number}")),
        Err(_) => name.starts_with("/dev/loop").then(|| name.clone()),
    };
    let mapping = match &device {
        Some(device) => {
            let found = loop_devices().into_iter().find(|(known, _)| known == device);
            let found = found.filter(|(_, file)| file.starts_with(STATE_DIR));
            let (_, path) = found.ok_or_else(|| anyhow!("nothing mapped to {device}"))?;
            Mapping { path }
        }
        None => Mapping::named(name),
    };
    let missing = || anyhow!("no mapping for name '{name}' found");
    if name.is_empty() || !Path::new(STATE_DIR).is_dir() {
        return Err(missing());
    }
    let _turn = take_turn()?;
    if mapping.path.symlink_metadata().is_err() {
        return Err(missing());
    }
    if let Some(device) = mapping.device()
        && let Some(user) = user_of(&device)
    {
        bail!("{device} is in use: {user} - end that first");
    }
    let Some(pid) = mapping.process() else {
        mapping.clean();
        return Ok(());
    };
    kill_process(pid, Signal::INT)?;
    let mut waited = Duration::ZERO;
    while test_kill_process(pid).is_ok() {
        if waited >= WAIT {
            bail!("timed out waiting for PID '{}' to exit", pid.as_raw_nonzero());
        }
        std::thread::sleep(LOOK_EVERY);
        waited += LOOK_EVERY;
    }
    mapping.clean();
    Ok(())
}

/// Who uses a device or a partition of it.
fn user_of(device: &str) -> Option<String> {
    // Not those whose number only begins alike.
    let is_it = |path: &str| {
        path.strip_prefix(device).is_some_and(|rest| rest.is_empty() || rest.starts_with('p'))
    };
    if let Some(place) = mounted_on(&is_it) {
        return Some(format!("it is mounted on '{place}'"));
    }
    let above = loop_devices().into_iter().find(|(_, file)| file.to_str().is_some_and(is_it));
    if let Some((other, _)) = above {
        return Some(format!("{other} is made of it"));
    }
    let name = device.strip_prefix("/dev/")?;
    let mut holders = fs::read_dir(format!("/sys/block/{name}/holders")).ok()?.flatten();
    if let Some(holder) = holders.next() {
        return Some(format!("{} is made of it", holder.file_name().display()));
    }
    // Others open a new device for a moment, to see what is on it.
    for _ in 0..5 {
        opened_by(&is_it)?;
        std::thread::sleep(LOOK_EVERY);
    }
    opened_by(&is_it).map(|pid| format!("process {pid} has it open"))
}

/// A process that has such a file open.
fn opened_by(is_it: &dyn Fn(&str) -> bool) -> Option<u32> {
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let mut numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers.find(|pid| {
        let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        open.into_iter()
            .any(|fd| fs::read_link(fd.path()).is_ok_and(|path| path.to_str().is_some_and(is_it)))
    })
}

/// Where a device is mounted.
fn mounted_on(is_it: &dyn Fn(&str) -> bool) -> Option<String> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    let mut lines = mounts.lines().map(|line| line.split(' '));
    lines.find_map(|mut fields| {
        let device = fields.next()?;
        fields.next().filter(|_| is_it(device)).map(str::to_owned)
    })
}

/// Everything that is mapped; what was left over goes.
fn list() -> Result<()> {
    let mut lines = String::new();
    let _turn = Path::new(STATE_DIR).is_dir().then(take_turn).transpose()?;
    for entry in fs::read_dir(STATE_DIR).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = entry.file_name().into_string().unwrap_or_default();
        if path.extension().is_some_and(|extension| extension == "pid") {
            continue;
        }
        let mapping = Mapping { path };
        let Some(name) = unescaped(&name) else { continue };
        if mapping.process().is_none() {
            mapping.clean();
            continue;
        }
        let device = mapping.device().unwrap_or_else(|| "(unmapped)".into());
        let _ = writeln!(lines, "{device}:\t{name}");
    }
    if lines.is_empty() {
        lines = "Nothing mapped.\n".into();
    }
    write_out(lines.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_escaped_as_for_units() {
        let name = "me@pbs@host:8007:store:host/a-b/2023-11-14T22:13:20Z/drive.img";
        let expected =
            "me\\x40pbs\\x40host:8007:store:host-a\\x2db-2023\\x2d11\\x2d14T22:13:20Z-drive.img";
        assert_eq!(escaped(name), expected);
        assert_eq!(unescaped(expected).as_deref(), Some(name));
        assert_eq!(escaped(".x"), "\\x2ex");
        for wrong in ["a\\", "a\\x4", "a\\y00", "a\\xzz"] {
            assert_eq!(unescaped(wrong), None, "{wrong}");
        }
    }
}
