//! Locks, as the reference server takes them: shared/spec/formats.md §4, §8.
//!
//! | what | how | who |
//! |---|---|---|
//! | `.lock` | fcntl record lock, whole file | shared: writers of indexes; exclusive: garbage collection |
//! | group directory | flock, exclusive | backup, deletion |
//! | snapshot directory | flock, shared | readers, backups that build on it |
//! | snapshot directory | flock, exclusive | forget, prune, protection, notes |

use crate::{Result, StoreError};
use rustix::fs::{FlockOperation, Mode, OFlags, fcntl_lock, flock, open};
use std::collections::HashMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

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

/// The process's hold on `.lock`. Record locks belong to the process and vanish when any
/// descriptor of the file is closed, so the file is opened once and never closed.
struct ProcessLock {
    file: File,
    holders: Mutex<u32>,
}

static PROCESS_LOCKS: Mutex<Option<HashMap<PathBuf, Arc<ProcessLock>>>> = Mutex::new(None);

/// A writer's share of `.lock`, held until dropped.
pub(crate) struct WriterLock {
    lock: Arc<ProcessLock>,
}

impl WriterLock {
    pub(crate) fn acquire(path: &Path) -> Result<Self> {
        let lock = process_lock(path)?;
        let mut holders = lock.holders.lock().unwrap_or_else(PoisonError::into_inner);
        if *holders == 0 {
            let taken = fcntl_lock(&lock.file, FlockOperation::NonBlockingLockShared);
            taken.map_err(|_| StoreError::Locked {
                what: format!("datastore '{}'", path.parent().unwrap_or(path).display()),
                why: "another process is collecting garbage; try again when it is done",
            })?;
        }
        *holders += 1;
        drop(holders);
        Ok(Self { lock })
    }
}

impl Drop for WriterLock {
    fn drop(&mut self) {
        let mut holders = self.lock.holders.lock().unwrap_or_else(PoisonError::into_inner);
        *holders -= 1;
        if *holders == 0 {
            let _ = fcntl_lock(&self.lock.file, FlockOperation::NonBlockingUnlock);
        }
    }
}

fn process_lock(path: &Path) -> Result<Arc<ProcessLock>> {
    let io = |source| StoreError::Io { action: "open", path: path.to_owned(), source };
    let mut all = PROCESS_LOCKS.lock().unwrap_or_else(PoisonError::into_inner);
    let all = all.get_or_insert_default();
    let parent = path.parent().unwrap_or(path);
    let key = parent.canonicalize().map_err(io)?.join(".lock");
    if let Some(lock) = all.get(&key) {
        return Ok(lock.clone());
    }
    let mut options = std::fs::OpenOptions::new();
    let file =
        options.read(true).write(true).create(true).truncate(false).open(path).map_err(io)?;
    let lock = Arc::new(ProcessLock { file, holders: Mutex::new(0) });
    all.insert(key, lock.clone());
    Ok(lock)
}
