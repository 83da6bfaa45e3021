//! Compiled code and descriptions on disk.
//!
//! Loading compiled code means trusting it as much as our own binary. So it is kept in a directory
//! of mode 0700 that belongs to us, in files that we wrote, named by the component's SHA-256 and by
//! all that the code depends on (wasmtime's version, its settings, the CPU). A directory or file
//! that anybody else could have touched is not used.
#![allow(unsafe_code, reason = "loading compiled code; see `CodeCache::load`")]

use crate::PluginInfo;
use sha2::{Digest, Sha256};
use std::fs::{self, Metadata, OpenOptions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use wasmtime::Engine;
use wasmtime::component::Component;

/// A private directory.
#[derive(Debug)]
pub struct CodeCache {
    dir: PathBuf,
}

/// At the end of each file stands a SHA-256.
const CHECKSUM_BYTES: usize = 32;

/// Clocks of file systems are finer.
const TICK_SECONDS: i64 = 2;

/// Raised when the form of [`PluginInfo`] changes.
const INFO_VERSION: u32 = 5;

impl CodeCache {
    /// Opens or makes the directory; none where it is not private.
    pub fn open(dir: &Path) -> Option<Self> {
        let mut builder = fs::DirBuilder::new();
        if let Err(error) = builder.mode(0o700).recursive(true).create(dir) {
            tracing::debug!(dir = %dir.display(), %error, "no cache for compiled plugins");
            return None;
        }
        let private = is_private(dir, 0o077);
        if !private {
            tracing::debug!(dir = %dir.display(), "cache directory is not private: not used");
        }
        private.then(|| Self { dir: dir.to_owned() })
    }

    fn code_file(&self, engine: &Engine, hash: &str) -> PathBuf {
        let mut hasher = DefaultHasher::new();
        engine.precompile_compatibility_hash().hash(&mut hasher);
        self.dir.join(format!("{hash}-{:016x}.cwasm", hasher.finish()))
    }

    fn info_file(&self, hash: &str) -> PathBuf {
        self.dir.join(format!("{hash}-{INFO_VERSION}.json"))
    }

    pub(crate) fn load(&self, engine: &Engine, hash: &str) -> Option<Component> {
        let file = self.code_file(engine, hash);
        if !is_private(&file, 0o022) {
            return None;
        }
        let code = &read(&file)?;
        // SAFETY: the bytes are those of a file that was written by `store` below: it lies in a directory that only we can
        // write, is owned by us and writable by nobody else, and appears there by rename when
        // complete. Its name binds it to this component, wasmtime build, settings and CPU, and its
        // checksum shows that no bit has changed since.
        let loaded = unsafe { Component::deserialize(engine, code) };
        loaded.inspect_err(|error| tracing::debug!(%error, "cached code is not usable")).ok()
    }

    pub(crate) fn store(&self, engine: &Engine, hash: &str, component: &Component) {
        if let Ok(code) = component.serialize() {
            self.write(&self.code_file(engine, hash), &code);
        }
    }

    pub(crate) fn load_info(&self, hash: &str) -> Option<PluginInfo> {
        let file = self.info_file(hash);
        if !is_private(&file, 0o022) {
            return None;
        }
        serde_json::from_slice(&read(&file)?).ok()
    }

    pub(crate) fn store_info(&self, hash: &str, info: &PluginInfo) {
        if let Ok(json) = serde_json::to_vec(info) {
            self.write(&self.info_file(hash), &json);
        }
    }

    /// Which SHA-256 a file had when it was last read, unless it may have changed since.
    pub(crate) fn load_hash(&self, file: &Path, metadata: &Metadata) -> Option<String> {
        let note = self.hash_file(file, metadata);
        let noted = fs::metadata(&note).ok().filter(|_| is_private(&note, 0o022))?;
        // A change within the same tick of the file system's clock would not show.
        let age = noted.mtime().checked_sub(metadata.ctime())?;
        let hash = String::from_utf8(read(&note)?).ok()?;
        (age >= TICK_SECONDS).then_some(hash)
    }

    pub(crate) fn store_hash(&self, file: &Path, metadata: &Metadata, hash: &str) {
        self.write(&self.hash_file(file, metadata), hash.as_bytes());
    }

    /// Named by all that a change would change.
    fn hash_file(&self, file: &Path, metadata: &Metadata) -> PathBuf {
        let mut name = Sha256::new().chain_update(file.as_os_str().as_encoded_bytes());
        for number in [metadata.dev(), metadata.ino(), metadata.size()] {
            name.update(number.to_le_bytes());
        }
        let (modified, changed) = (metadata.mtime_nsec(), metadata.ctime_nsec());
        for number in [metadata.mtime(), modified, metadata.ctime(), changed] {
            name.update(number.to_le_bytes());
        }
        self.dir.join(format!("{}.sha256", hex::encode(name.finalize())))
    }

    /// Whole or not at all. A cache that can't be written is no error.
    fn write(&self, file: &Path, bytes: &[u8]) {
        let temporary = file.with_extension(format!("tmp{}", std::process::id()));
        let mut options = OpenOptions::new();
        let written = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)
            .and_then(|mut out| {
                out.write_all(bytes)?;
                out.write_all(&checksum(file, bytes))?;
                out.sync_all()
            })
            .and_then(|()| fs::rename(&temporary, file));
        if let Err(error) = written {
            let _ = fs::remove_file(&temporary);
            tracing::debug!(file = %file.display(), %error, "cache was not written");
        }
    }
}

/// Of what a file holds, and of its name: one can't take the place of another.
fn checksum(file: &Path, content: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let name = file.file_name().unwrap_or_default().as_encoded_bytes();
    Sha256::new().chain_update(name).chain_update(content).finalize().into()
}

/// The content of a file, if nothing has changed in it.
fn read(file: &Path) -> Option<Vec<u8>> {
    let mut bytes = fs::read(file).ok()?;
    let (content, stored) = bytes.split_last_chunk::<CHECKSUM_BYTES>()?;
    if checksum(file, content) != *stored {
        tracing::debug!(file = %file.display(), "cached file is damaged");
        return None;
    }
    bytes.truncate(content.len());
    Some(bytes)
}

/// Ours, no symbolic link, and without these permission bits.
fn is_private(path: &Path, forbidden: u32) -> bool {
    let us = rustix::process::geteuid().as_raw();
    fs::symlink_metadata(path).is_ok_and(|metadata| {
        // No link, and nothing that is waited for when it is read.
        (metadata.is_file() || metadata.is_dir())
            && metadata.uid() == us
            && metadata.mode() & forbidden == 0
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_hash_is_known_until_the_file_changes() {
        let dir = tempfile::tempdir().unwrap();
        let cache = CodeCache::open(&dir.path().join("cache")).unwrap();
        let file = dir.path().join("plugin.wasm");
        fs::write(&file, "one").unwrap();
        let known = || cache.load_hash(&file, &fs::metadata(&file).unwrap());
        let metadata = fs::metadata(&file).unwrap();
        assert_eq!(known(), None);
        cache.store_hash(&file, &metadata, "11");
        assert_eq!(known(), None, "too fresh");
        let note = cache.hash_file(&file, &metadata);
        let later = metadata.modified().unwrap() + std::time::Duration::from_secs(5);
        fs::File::open(&note).unwrap().set_modified(later).unwrap();
        assert_eq!(known().as_deref(), Some("11"));
        fs::write(&file, "two").unwrap();
        assert_eq!(known(), None);
    }

    #[test]
    fn only_a_private_directory_is_used() {
        let dir = tempfile::tempdir().unwrap();
        let inside = dir.path().join("a/b");
        assert!(CodeCache::open(&inside).is_some());
        fs::set_permissions(&inside, fs::Permissions::from_mode(0o750)).unwrap();
        assert!(CodeCache::open(&inside).is_none());
        fs::set_permissions(&inside, fs::Permissions::from_mode(0o700)).unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&inside, &link).unwrap();
        assert!(CodeCache::open(&link).is_none());
    }
}
