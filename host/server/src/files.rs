//! Small files of the server's own: written whole or not at all.

use crate::error::{Result, io};
use keepwell_store::files::Existing;
use std::fs;
use std::path::Path;

/// Readable by the server alone.
pub(crate) const SECRET: u32 = 0o600;
pub(crate) const PUBLIC: u32 = 0o644;

pub(crate) fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    keepwell_store::files::write(path, bytes, mode, Existing::Replace).map_err(io("write", path))
}

/// None where there is no such file.
pub(crate) fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io("read", path)(error)),
    }
}
