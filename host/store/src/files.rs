//! Small files, written whole or not at all, also after a power cut.
//!
//! For the store's own files, and for keys, tickets and settings of the rooms above.

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

/// What becomes of a file that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    Keep,
    /// A link stays, and what it points to is replaced; the owner stays, too, where we may give
    /// files away.
    Replace,
}

/// Writes a file without its name or under a temporary one, makes it durable and gives it its name.
///
/// `mode` is what the file has in the end, whatever the umask. Fails with `AlreadyExists` where
/// there is one and it is to be kept.
pub fn write(path: &Path, bytes: &[u8], mode: u32, existing: Existing) -> io::Result<()> {
    match existing {
        Existing::Keep => {
            let fresh = Fresh { bytes, mode, owner: None };
            match write_unnamed(path, &fresh) {
                // Not all file systems have files without a name.
                Err(error) if is_unsupported(&error) => {
                    write_named(path, &fresh, RenameFlags::NOREPLACE)?;
                }
                other => other?,
            }
            sync_parent(path)
        }
        Existing::Replace => {
            let resolved = fs::canonicalize(path).ok();
            let path = resolved.as_deref().unwrap_or(path);
            let owner = fs::metadata(path).ok().map(|old| (old.uid(), old.gid()));
            let is_root = rustix::process::geteuid().is_root();
            let fresh = Fresh { bytes, mode, owner: owner.filter(|_| is_root) };
            match replace_unnamed(path, &fresh) {
                Err(error) if is_unsupported(&error) => {
                    write_named(path, &fresh, RenameFlags::empty())?;
                }
                other => other?,
            }
            sync_parent(path)
        }
    }
}

/// What a new file is to be.
pub(crate) struct Fresh<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) mode: u32,
    pub(crate) owner: Option<(u32, u32)>,
}

impl Fresh<'_> {
    fn fill(&self, file: &mut File) -> io::Result<()> {
        if let Some((uid, gid)) = self.owner {
            fchown(&*file, Some(uid), Some(gid))?;
        }
        // The umask may have taken some rights.
        file.set_permissions(Permissions::from_mode(self.mode))?;
        file.write_all(self.bytes)?;
        file.sync_all()
    }

    fn create(&self, path: &Path) -> io::Result<File> {
        OpenOptions::new().write(true).create_new(true).mode(self.mode).open(path)
    }

    /// Writes `temporary`, which must not be there, and moves it to `path`, whose directory is to
    /// be synced then.
    pub(crate) fn write_by_way_of(&self, temporary: &Path, path: &Path) -> io::Result<()> {
        self.finish(self.create(temporary)?, temporary, path, RenameFlags::empty())
    }

    fn finish(&self, mut file: File, from: &Path, to: &Path, flags: RenameFlags) -> io::Result<()> {
        let written = self
            .fill(&mut file)
            .and_then(|()| Ok(rustix::fs::renameat_with(CWD, from, CWD, to, flags)?));
        written.inspect_err(|_| {
            let _ = fs::remove_file(from);
        })
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn sync_parent(path: &Path) -> io::Result<()> {
    File::open(parent(path))?.sync_all()
}

fn is_unsupported(error: &io::Error) -> bool {
    [Errno::OPNOTSUPP, Errno::ISDIR, Errno::NOENT, Errno::INVAL]
        .iter()
        .any(|unsupported| error.raw_os_error() == Some(unsupported.raw_os_error()))
}

/// A crash leaves nothing of it.
fn write_unnamed(path: &Path, fresh: &Fresh<'_>) -> io::Result<()> {
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    let opened = rustix::fs::open(parent(path), flags, Mode::from_raw_mode(fresh.mode))?;
    let mut file = File::from(opened);
    fresh.fill(&mut file)?;
    let open_file = format!("/proc/self/fd/{}", file.as_raw_fd());
    rustix::fs::linkat(CWD, open_file, CWD, path, AtFlags::SYMLINK_FOLLOW)?;
    Ok(())
}

fn write_named(path: &Path, fresh: &Fresh<'_>, flags: RenameFlags) -> io::Result<()> {
    let dir = parent(path);
    remove_leftovers(dir);
    let (file, temporary) = numbered(dir, |temporary| fresh.create(temporary))?;
    fresh.finish(file, &temporary, path, flags)
}

/// Replaces a file by one that has its temporary name for a moment only, when it is complete.
fn replace_unnamed(path: &Path, fresh: &Fresh<'_>) -> io::Result<()> {
    let dir = parent(path);
    remove_leftovers(dir);
    let ((), temporary) = numbered(dir, |temporary| write_unnamed(temporary, fresh))?;
    fs::rename(&temporary, path).inspect_err(|_| {
        let _ = fs::remove_file(&temporary);
    })
}

/// Takes away what a process that was killed while it wrote has left: it may be a key.
fn remove_leftovers(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let process = name.strip_prefix(".keepwell-").filter(|rest| rest.ends_with(".tmp"));
        let process = process.and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        if process.is_some_and(|id| !Path::new(&format!("/proc/{id}")).exists()) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Makes something under the first temporary name that is free.
fn numbered<T>(dir: &Path, make: impl Fn(&Path) -> io::Result<T>) -> io::Result<(T, PathBuf)> {
    let mut number = 0;
    loop {
        let path = dir.join(format!(".keepwell-{}-{number}.tmp", std::process::id()));
        match make(&path) {
            Ok(made) => return Ok((made, path)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_kept_or_replaced_with_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        write(&path, b"one", 0o600, Existing::Keep).unwrap();
        let error = write(&path, b"two", 0o600, Existing::Keep).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"one");
        let is_root = rustix::process::geteuid().is_root();
        if is_root {
            std::os::unix::fs::chown(&path, Some(1234), Some(1235)).unwrap();
        }
        let before = fs::metadata(&path).unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("key", &link).unwrap();
        write(&link, b"three", 0o640, Existing::Replace).unwrap();
        let after = fs::metadata(&path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"three");
        assert_eq!(after.mode() & 0o7777, 0o640);
        assert_eq!((after.uid(), after.gid()), (before.uid(), before.gid()));
        assert!(link.is_symlink());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing temporary stays");
    }

    #[test]
    fn leftovers_of_dead_processes_go() {
        let dir = tempfile::tempdir().unwrap();
        // No process has an id as high.
        let dead = dir.path().join(".keepwell-4194999-0.tmp");
        let living = dir.path().join(format!(".keepwell-{}-7.tmp", std::process::id()));
        fs::write(&dead, b"secret").unwrap();
        fs::write(&living, b"secret").unwrap();
        write(&dir.path().join("key"), b"x", 0o600, Existing::Replace).unwrap();
        assert!(!dead.exists() && living.exists());
    }
}
