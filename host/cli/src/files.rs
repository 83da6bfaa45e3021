//! Files that the user keeps: written whole or not at all.

use anyhow::Result;
use std::fs::{File, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// What becomes of a file that is there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Existing {
    Keep,
    Replace,
}

/// Writes a file under a temporary name, makes it durable and gives it its name.
///
/// Fails with `AlreadyExists` where there is one and it is to be kept.
pub(crate) fn write(
    path: &Path,
    bytes: &[u8],
    mode: u32,
    existing: Existing,
) -> std::io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let dir = parent.unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    builder.prefix(".keepwell-").permissions(Permissions::from_mode(mode));
    let mut file = builder.tempfile_in(dir)?;
    file.write_all(bytes)?;
    // The umask may have taken some.
    file.as_file().set_permissions(Permissions::from_mode(mode))?;
    file.as_file().sync_all()?;
    match existing {
        Existing::Keep => file.persist_noclobber(path)?,
        Existing::Replace => file.persist(path)?,
    };
    File::open(dir)?.sync_all()
}

/// Why a file was not made, and what to do.
pub(crate) fn not_created(what: &str, path: &Path, error: &std::io::Error) -> anyhow::Error {
    let remedy = match error.kind() {
        std::io::ErrorKind::AlreadyExists => " - choose another name, or move it away",
        _ => "",
    };
    anyhow::anyhow!("unable to create {what} '{}' - {error}{remedy}", path.display())
}

/// Reads a small file; the error names it.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|error| anyhow::anyhow!("unable to read {path:?} - {error}"))
}
