//! Reading what a snapshot says of itself: its manifest, checked.

use crate::error::{EngineError, Result};
use keepwell_model::manifest::{CryptMode, ManifestFile};
use keepwell_model::{ArchiveName, Blob, FileChecksum, Index, Manifest, SnapshotId};
use keepwell_seal::Opener;
use keepwell_store::{SnapshotReader, StoreError};

fn damaged(snapshot: &SnapshotId, name: &ArchiveName, problem: impl ToString) -> EngineError {
    let (snapshot, name) = (snapshot.clone(), name.clone());
    EngineError::Damaged { snapshot, name, problem: problem.to_string() }
}

/// Opens a manifest's file; it must be that of `snapshot`.
pub fn open_manifest(snapshot: &SnapshotId, bytes: Vec<u8>) -> Result<Manifest> {
    let name = ArchiveName::manifest();
    let damaged = |problem: String| damaged(snapshot, &name, problem);
    let blob = Blob::parse(bytes).map_err(|problem| damaged(problem.to_string()))?;
    let json = Opener::new().and_then(|mut opener| opener.open(blob));
    let json = json.map_err(|problem| damaged(problem.to_string()))?;
    let manifest = Manifest::parse(&json).map_err(|problem| damaged(problem.to_string()))?;
    if manifest.snapshot != *snapshot {
        return Err(damaged(format!("it is the manifest of {}", manifest.snapshot)));
    }
    Ok(manifest)
}

/// Reads the manifest of an open snapshot.
pub fn read_manifest(reader: &dyn SnapshotReader) -> Result<Manifest> {
    let snapshot = reader.snapshot();
    match reader.read_file(&ArchiveName::manifest()) {
        Ok(bytes) => open_manifest(snapshot, bytes),
        Err(StoreError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            Err(EngineError::Unfinished { snapshot: snapshot.clone() })
        }
        Err(error) => Err(error.into()),
    }
}

/// A file that the manifest lists and that can be read without a key.
pub fn find<'a>(manifest: &'a Manifest, name: &ArchiveName) -> Result<&'a ManifestFile> {
    require_no_key(manifest)?;
    manifest.file(name).ok_or_else(|| EngineError::NotInManifest { name: name.clone() })
}

/// Encrypted and signed snapshots need a key, which comes with a later version.
pub fn require_no_key(manifest: &Manifest) -> Result<()> {
    let protected = manifest.files.iter().any(|file| file.crypt_mode != CryptMode::None);
    match manifest.key_fingerprint() {
        Some(fingerprint) => {
            let short = fingerprint.get(..23).unwrap_or(fingerprint).to_owned();
            Err(EngineError::MissingKey { fingerprint: short })
        }
        None if protected => Err(EngineError::MissingKey { fingerprint: "unknown".into() }),
        None => Ok(()),
    }
}

/// Reads an index and compares it with the manifest.
pub fn read_index(reader: &dyn SnapshotReader, file: &ManifestFile) -> Result<Index> {
    let index = reader.read_index(&file.name)?;
    let damaged = |problem| Err(damaged(reader.snapshot(), &file.name, problem));
    if index.size() != file.size {
        return damaged(format!("its size is {} instead of {}", index.size(), file.size));
    }
    if index.checksum() != file.checksum {
        return damaged("its checksum is not that of the manifest".into());
    }
    Ok(index)
}

/// Reads a blob, compares it with the manifest, and opens it.
pub fn read_blob(reader: &dyn SnapshotReader, file: &ManifestFile) -> Result<Vec<u8>> {
    let bytes = reader.read_file(&file.name)?;
    let damaged = |problem: String| damaged(reader.snapshot(), &file.name, problem);
    if bytes.len() as u64 != file.size || FileChecksum::of(&bytes) != file.checksum {
        return Err(damaged("it is not the file of the manifest".into()));
    }
    let blob = Blob::parse(bytes).map_err(|problem| damaged(problem.to_string()))?;
    let plain = Opener::new().and_then(|mut opener| opener.open(blob));
    plain.map_err(|problem| damaged(problem.to_string()))
}
