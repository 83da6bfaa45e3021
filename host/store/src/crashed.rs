//! What a power cut may have left: chunks whose names are there and whose bytes are not.
//!
//! Chunks are made durable together, at the end of a backup. So each running backup has a marker,
//! a locked file `.writing.tmp_XXXXXX` in the store. A marker that nobody locks tells of a backup
//! that was cut off: all chunks written since it was made are looked at, once, and those that are
//! damaged are moved out of the way, so that the next backup writes them again.

use crate::Result;
use crate::dir::{Keeper, io, temporary_suffix};
use crate::layout::Layout;
use keepwell_model::{Blob, ChunkDigest};
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

const PREFIX: &str = ".writing.tmp_";
const EARLY_PREFIX: &str = ".marking.tmp_";
/// Only a crash leaves one for so long.
const EARLY_MAX: Duration = Duration::from_secs(3600);
/// Clocks of file systems are coarse.
const SLACK: Duration = Duration::from_secs(2);

/// A running backup's marker; gone when dropped.
pub(crate) struct Marker {
    path: PathBuf,
    _file: File,
}

impl Marker {
    pub(crate) fn set(layout: &Layout, keeper: Keeper) -> Result<Self> {
        let suffix = temporary_suffix();
        let path = layout.root().join(format!("{PREFIX}{suffix}"));
        // It gets its name when it is locked: until then another backup would take it for stale.
        let early = layout.root().join(format!("{EARLY_PREFIX}{suffix}"));
        let mut options = OpenOptions::new();
        let file =
            options.write(true).create_new(true).open(&early).map_err(io("create", &early))?;
        let named = (|| {
            keeper.own_file(&file, &early)?;
            let locked = flock(&file, FlockOperation::NonBlockingLockExclusive);
            locked.map_err(|error| io("lock", &early)(error.into()))?;
            fs::rename(&early, &path).map_err(io("create", &path))
        })();
        if named.is_err() {
            let _ = fs::remove_file(&early);
        }
        named?;
        // The marker is there before the first chunk is.
        crate::dir::sync_dir(layout.root())?;
        Ok(Self { path, _file: file })
    }
}

impl Drop for Marker {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Since when the oldest of the running backups runs; none where none does.
pub(crate) fn oldest_writer(layout: &Layout) -> Result<Option<SystemTime>> {
    let root = layout.root();
    let mut oldest: Option<SystemTime> = None;
    for entry in fs::read_dir(root).map_err(io("read", root))?.flatten() {
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        // Whether it is still locked does not matter: a stale one is swept by the next backup.
        if let Ok(made) = entry.metadata().and_then(|metadata| metadata.modified()) {
            oldest = Some(oldest.map_or(made, |earlier| earlier.min(made)));
        }
    }
    Ok(oldest.map(|oldest| oldest - SLACK))
}

/// Looks for markers of backups that were cut off, and at the chunks that those wrote.
pub(crate) fn recover(layout: &Layout) -> Result<()> {
    let root = layout.root();
    let mut since: Option<SystemTime> = None;
    let mut stale = Vec::new();
    for entry in fs::read_dir(root).map_err(io("read", root))?.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(EARLY_PREFIX) {
            let made = entry.metadata().and_then(|metadata| metadata.modified());
            let age = made.ok().and_then(|made| made.elapsed().ok());
            if age.is_some_and(|age| age > EARLY_MAX) {
                let _ = fs::remove_file(entry.path());
            }
        }
        if !name.starts_with(PREFIX) {
            continue;
        }
        let Ok(file) = File::open(entry.path()) else { continue };
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            continue;
        }
        // One that was given up just now has no name any more.
        if file.metadata().is_ok_and(|metadata| metadata.nlink() == 0) {
            continue;
        }
        if let Ok(made) = file.metadata().and_then(|metadata| metadata.modified()) {
            since = Some(since.map_or(made, |earlier| earlier.min(made)));
        }
        stale.push((entry.path(), file));
    }
    if let Some(since) = since {
        tracing::info!("A backup was cut off: looking at the chunks that it wrote");
        check_chunks(&layout.chunks(), since - SLACK)?;
    }
    for (path, _locked) in stale {
        let _ = fs::remove_file(path);
    }
    Ok(())
}

fn check_chunks(chunks: &Path, since: SystemTime) -> Result<()> {
    for dir in fs::read_dir(chunks).map_err(io("read", chunks))?.flatten() {
        let Ok(files) = fs::read_dir(dir.path()) else { continue };
        for file in files.flatten() {
            let name = file.file_name();
            let is_chunk = name.to_str().is_some_and(|name| name.parse::<ChunkDigest>().is_ok());
            let is_new = file
                .metadata()
                .and_then(|metadata| metadata.modified())
                .is_ok_and(|modified| modified >= since);
            if is_chunk && is_new {
                check_chunk(&file.path())?;
            }
        }
    }
    Ok(())
}

/// Moves a chunk aside that is no blob: under the name that verification gives it.
fn check_chunk(path: &Path) -> Result<()> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io("read", path)(error)),
    };
    if Blob::parse(bytes).is_ok() {
        return Ok(());
    }
    tracing::warn!("chunk {} is damaged and was moved aside", path.display());
    set_aside(path).map(|_| ())
}

/// Gives a damaged chunk the name of such, and returns that; none where the chunk is gone.
pub(crate) fn set_aside(path: &Path) -> Result<Option<PathBuf>> {
    let free = (0..9).map(|n| path.with_extension(format!("{n}.bad"))).find(|bad| !bad.exists());
    let bad = free.unwrap_or_else(|| path.with_extension("9.bad"));
    match fs::rename(path, &bad) {
        Ok(()) => Ok(Some(bad)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io("move aside", path)(error)),
    }
}
