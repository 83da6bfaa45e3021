//! Files that the user keeps, such as keys.

use anyhow::Result;
use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

pub(crate) use keepwell_store::files::{Existing, write};

/// Keys and passwords are smaller.
const SMALL_MAX: u64 = 1 << 20;

/// Why a file was not made, and what to do.
pub(crate) fn not_created(what: &str, path: &Path, error: &std::io::Error) -> anyhow::Error {
    let remedy = match error.kind() {
        std::io::ErrorKind::AlreadyExists => " - choose another name, or move it away",
        _ => "",
    };
    anyhow::anyhow!("unable to create {what} '{}' - {error}{remedy}", path.display())
}

/// Fails where somebody else than this user and root may change a file or directory.
pub(crate) fn only_ours(path: &Path, metadata: &Metadata) -> Result<()> {
    let us = rustix::process::geteuid().as_raw();
    if (metadata.uid() != 0 && metadata.uid() != us) || metadata.mode() & 0o022 != 0 {
        let shown = path.display();
        anyhow::bail!("others may change '{shown}': make it yours, and `chmod go-w` it");
    }
    Ok(())
}

/// Reads a small file, such as a key; the error names it.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    let failed = |error: std::io::Error| anyhow::anyhow!("unable to read {path:?} - {error}");
    let file = File::open(path).map_err(failed)?;
    // A buffer that grows leaves copies behind, perhaps of a key.
    let size = file.metadata().map_or(0, |metadata| metadata.len()).min(SMALL_MAX);
    let mut bytes = Vec::with_capacity(size as usize + 1024);
    file.take(SMALL_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > SMALL_MAX {
        anyhow::bail!("unable to read {path:?} - it is too large for a key");
    }
    Ok(bytes)
}
