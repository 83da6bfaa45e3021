//! Locks, as the reference server takes them: shared/spec/formats.md §4, §8.
//!
//! | what | how | who |
//! |---|---|---|
//! | `.lock` | fcntl record lock, whole file; ours: see [`CollectorLock`] | shared: writers of indexes; exclusive: garbage collection, removal of an unused store |
//! | group directory | flock, exclusive | backup, deletion |
//! | snapshot directory | flock, shared | readers, backups that build on it |
//! | snapshot directory | flock, exclusive | forget, prune, protection, notes |
//! | directory of chunks | flock, waiting; only ours | shared: who touches or inserts one; exclusive: who sweeps it |

use crate::{Result, StoreError};
use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

/// A lock on a directory, held until dropped.
pub(crate) struct DirLock {
    _directory: OwnedFd,
}

impl DirLock {
    /// Exclusive, without waiting.
    pub(crate) fn exclusive(path: &Path, what: &str, why: &'static str) -> Result<Self> {
        Self::take(path, FlockOperation::NonBlockingLockExclusive, what, why)
    }

    /// Shared, without waiting.
    pub(crate) fn shared(path: &Path, what: &str, why: &'static str) -> Result<Self> {
        Self::take(path, FlockOperation::NonBlockingLockShared, what, why)
    }

    fn take(path: &Path, operation: FlockOperation, what: &str, why: &'static str) -> Result<Self> {
        let io = |source: rustix::io::Errno| StoreError::Io {
            action: "lock",
            path: path.to_owned(),
            source: source.into(),
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = open(path, flags, Mode::empty()).map_err(io)?;
        match flock(&directory, operation) {
            Ok(()) => Ok(Self { _directory: directory }),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                Err(StoreError::Locked { what: what.to_owned(), why })
            }
            Err(error) => Err(io(error)),
        }
    }
}

/// A hold on a directory of chunks: what is touched under it is not swept away meanwhile.
pub(crate) struct SweepLock {
    _directory: OwnedFd,
}

impl SweepLock {
    /// For who uses a chunk; none where there is no such directory.
    pub(crate) fn shared(path: &Path) -> Option<Self> {
        Self::take(path, FlockOperation::LockShared)
    }

    /// For who removes chunks.
    pub(crate) fn exclusive(path: &Path) -> Option<Self> {
        Self::take(path, FlockOperation::LockExclusive)
    }

    fn take(path: &Path, operation: FlockOperation) -> Option<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = open(path, flags, Mode::empty()).ok()?;
        loop {
            match flock(&directory, operation) {
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return None,
                Ok(()) => return Some(Self { _directory: directory }),
            }
        }
    }
}

/// A writer's share of `.lock`, held until dropped: its first byte.
///
/// The reference takes record locks of its process (F_SETLK), which vanish when any descriptor of
/// the file is closed: a backup of the directory that holds the repository would lose it. Ours is
/// an open file description lock (F_OFD_SETLK): it conflicts with those, and stays.
pub(crate) struct WriterLock {
    _file: File,
}

impl WriterLock {
    pub(crate) fn acquire(path: &Path) -> Result<Self> {
        let why = "another process is collecting garbage; try again when it is done";
        let mut tries = 0;
        loop {
            match lock_store(path, libc::F_RDLCK, FIRST, why) {
                // Perhaps somebody only looks whether the store has to be made.
                Err(StoreError::Locked { .. }) if tries < 10 => {
                    tries += 1;
                    std::thread::sleep(Duration::from_millis(50));
                }
                other => return Ok(Self { _file: other? }),
            }
        }
    }
}

/// All of `.lock` but its first byte, held until dropped: no other collection runs, and no writer
/// of the reference, which locks the whole file. Ours may go on: a collection knows since when they
/// run (`crashed.rs`) and spares what they have touched.
pub(crate) struct CollectorLock {
    _file: File,
}

impl CollectorLock {
    pub(crate) fn acquire(path: &Path) -> Result<Self> {
        let why = "another garbage collection, or a backup of another program, is running; try again when it is done";
        Ok(Self { _file: lock_store(path, libc::F_WRLCK, OTHERS, why)? })
    }
}

/// All of `.lock`, held until dropped: nobody writes, nobody collects.
pub(crate) struct SoleLock {
    file: File,
}

impl SoleLock {
    pub(crate) fn acquire(path: &Path) -> Result<Self> {
        Ok(Self { file: lock_store(path, libc::F_WRLCK, WHOLE, "it is in use")? })
    }

    /// Whether the file that is locked still has this name.
    pub(crate) fn is_current(&self, path: &Path) -> bool {
        let (ours, named) = (self.file.metadata(), path.metadata());
        ours.is_ok_and(|ours| named.is_ok_and(|named| ours.ino() == named.ino()))
    }
}

/// Bytes of a lock file; a length of 0 has no end.
#[derive(Clone, Copy)]
struct Stretch {
    start: i64,
    length: i64,
}

const FIRST: Stretch = Stretch { start: 0, length: 1 };
const OTHERS: Stretch = Stretch { start: 1, length: 0 };
const WHOLE: Stretch = Stretch { start: 0, length: 0 };

/// Opens a store's lock file and locks these bytes of it.
fn lock_store(path: &Path, kind: libc::c_int, bytes: Stretch, why: &'static str) -> Result<File> {
    let io = |source| StoreError::Io { action: "open", path: path.to_owned(), source };
    let mut options = std::fs::OpenOptions::new();
    let file =
        options.read(true).write(true).create(true).truncate(false).open(path).map_err(io)?;
    match record_lock(&file, kind, bytes) {
        Ok(()) => Ok(file),
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Err(StoreError::Locked {
            what: format!("datastore '{}'", path.parent().unwrap_or(path).display()),
            why,
        }),
        Err(source) => Err(StoreError::Io { action: "lock", path: path.to_owned(), source }),
    }
}

/// Locks bytes of a file, without waiting.
#[allow(unsafe_code, reason = "rustix has no words for open file description locks")]
fn record_lock(file: &File, kind: libc::c_int, bytes: Stretch) -> std::io::Result<()> {
    let lock = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: bytes.start,
        l_len: bytes.length,
        l_pid: 0,
    };
    // SAFETY: the descriptor is open, and F_OFD_SETLK reads one struct flock.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) } {
        -1 => Err(std::io::Error::last_os_error()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writers_share_and_a_foreign_collector_waits_for_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(".lock");
        let first = WriterLock::acquire(&path).unwrap();
        let second = WriterLock::acquire(&path).unwrap();
        drop(first);
        // Closing another descriptor of the file must not give the lock away.
        drop(File::open(&path).unwrap());
        let mut options = std::fs::OpenOptions::new();
        let collector = options.read(true).write(true).open(&path).unwrap();
        assert!(record_lock(&collector, libc::F_WRLCK, WHOLE).is_err());
        drop(second);
        record_lock(&collector, libc::F_WRLCK, WHOLE).unwrap();
        assert!(matches!(WriterLock::acquire(&path), Err(StoreError::Locked { .. })));
    }

    #[test]
    fn our_collector_waits_for_foreign_writers_and_other_collectors_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(".lock");
        let writer = WriterLock::acquire(&path).unwrap();
        let collector = CollectorLock::acquire(&path).unwrap();
        WriterLock::acquire(&path).unwrap();
        assert!(matches!(CollectorLock::acquire(&path), Err(StoreError::Locked { .. })));
        let mut options = std::fs::OpenOptions::new();
        let foreign = options.read(true).write(true).open(&path).unwrap();
        assert!(record_lock(&foreign, libc::F_RDLCK, WHOLE).is_err());
        drop(collector);
        record_lock(&foreign, libc::F_RDLCK, WHOLE).unwrap();
        assert!(matches!(CollectorLock::acquire(&path), Err(StoreError::Locked { .. })));
        drop(writer);
    }
}
