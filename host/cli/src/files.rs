//! Files that the user keeps: written whole or not at all.

use anyhow::Result;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use std::fs::{File, OpenOptions, Permissions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Keys and passwords are smaller.
const SMALL_MAX: u64 = 1 << 20;

/// What becomes of a file that is there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Existing {
    Keep,
    /// A link stays, and what it points to is replaced.
    Replace,
}

/// Writes a file without its name or under a temporary one, makes it durable and gives it its name.
///
/// Fails with `AlreadyExists` where there is one and it is to be kept.
pub(crate) fn write(
    path: &Path,
    bytes: &[u8],
    mode: u32,
    existing: Existing,
) -> std::io::Result<()> {
    let resolved = match existing {
        Existing::Replace => std::fs::canonicalize(path).ok(),
        Existing::Keep => None,
    };
    let path = resolved.as_deref().unwrap_or(path);
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let dir = parent.unwrap_or(Path::new("."));
    match existing {
        Existing::Keep => match write_unnamed(dir, path, bytes, mode) {
            // Not all file systems have files without a name.
            Err(error) if is_unsupported(&error) => write_named(dir, path, bytes, mode, existing)?,
            other => other?,
        },
        Existing::Replace => write_named(dir, path, bytes, mode, existing)?,
    }
    File::open(dir)?.sync_all()
}

fn is_unsupported(error: &std::io::Error) -> bool {
    [Errno::OPNOTSUPP, Errno::ISDIR, Errno::NOENT, Errno::INVAL]
        .iter()
        .any(|unsupported| error.raw_os_error() == Some(unsupported.raw_os_error()))
}

fn fill(file: &mut File, bytes: &[u8], mode: u32) -> std::io::Result<()> {
    // The umask may have taken some rights.
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// A crash leaves nothing of it.
fn write_unnamed(dir: &Path, path: &Path, bytes: &[u8], mode: u32) -> std::io::Result<()> {
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::open(dir, flags, Mode::from_raw_mode(mode))?);
    fill(&mut file, bytes, mode)?;
    let open_file = format!("/proc/self/fd/{}", file.as_raw_fd());
    rustix::fs::linkat(CWD, open_file, CWD, path, AtFlags::SYMLINK_FOLLOW)?;
    Ok(())
}

fn write_named(
    dir: &Path,
    path: &Path,
    bytes: &[u8],
    mode: u32,
    existing: Existing,
) -> std::io::Result<()> {
    remove_leftovers(dir);
    let (mut file, temporary) = create_temporary(dir, mode)?;
    let flags = match existing {
        Existing::Keep => RenameFlags::NOREPLACE,
        Existing::Replace => RenameFlags::empty(),
    };
    let written = fill(&mut file, bytes, mode)
        .and_then(|()| Ok(rustix::fs::renameat_with(CWD, &temporary, CWD, path, flags)?));
    written.inspect_err(|_| {
        let _ = std::fs::remove_file(&temporary);
    })
}

/// Takes away what a process that was killed while it wrote has left: it may be a key.
fn remove_leftovers(dir: &Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let process = name.strip_prefix(".keepwell-").filter(|rest| rest.ends_with(".tmp"));
        let process = process.and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        if process.is_some_and(|id| !Path::new(&format!("/proc/{id}")).exists()) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

fn create_temporary(dir: &Path, mode: u32) -> std::io::Result<(File, PathBuf)> {
    let mut number = 0;
    loop {
        let path = dir.join(format!(".keepwell-{}-{number}.tmp", std::process::id()));
        let mut options = OpenOptions::new();
        match options.write(true).create_new(true).mode(mode).open(&path) {
            Ok(file) => return Ok((file, path)),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => number += 1,
            Err(error) => return Err(error),
        }
    }
}

/// Why a file was not made, and what to do.
pub(crate) fn not_created(what: &str, path: &Path, error: &std::io::Error) -> anyhow::Error {
    let remedy = match error.kind() {
        std::io::ErrorKind::AlreadyExists => " - choose another name, or move it away",
        _ => "",
    };
    anyhow::anyhow!("unable to create {what} '{}' - {error}{remedy}", path.display())
}

/// Reads a small file, such as a key; the error names it.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    let failed = |error: std::io::Error| anyhow::anyhow!("unable to read {path:?} - {error}");
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(SMALL_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > SMALL_MAX {
        anyhow::bail!("unable to read {path:?} - it is too large for a key");
    }
    Ok(bytes)
}
