//! Reading what a snapshot says of itself: its manifest, checked.

use crate::error::{EngineError, Result};
use crate::restore::chain;
use keepwell_model::manifest::{ManifestError, ManifestFile};
use keepwell_model::{ArchiveName, Blob, FileChecksum, Index, Manifest, Namespace, SnapshotId};
use keepwell_seal::{EncryptionKey, Opener, Sealer};
use keepwell_store::{SnapshotReader, SnapshotStore, StoreError};
use serde_json::{Map, Value};

fn damaged(snapshot: &SnapshotId, name: &ArchiveName, problem: impl ToString) -> EngineError {
    let (snapshot, name) = (snapshot.clone(), name.clone());
    EngineError::Damaged { snapshot, name, problem: problem.to_string() }
}

/// A manifest as it was read, and the JSON that its signature covers. Nothing is verified yet.
pub struct UnverifiedManifest {
    manifest: Manifest,
    json: Vec<u8>,
}

impl UnverifiedManifest {
    /// Opens a manifest's file; it must be that of `snapshot`.
    pub fn open(snapshot: &SnapshotId, bytes: Vec<u8>) -> Result<Self> {
        let name = ArchiveName::manifest();
        let damaged = |problem: String| damaged(snapshot, &name, problem);
        let blob = Blob::parse(bytes).map_err(|problem| damaged(problem.to_string()))?;
        let json = Opener::new().and_then(|mut opener| opener.open(blob, None));
        let json = json.map_err(|problem| damaged(problem.to_string()))?;
        let manifest = Manifest::parse(&json).map_err(|problem| damaged(chain(&problem)))?;
        if manifest.snapshot != *snapshot {
            return Err(damaged(format!("it is the manifest of {}", manifest.snapshot)));
        }
        Ok(Self { manifest, json })
    }

    /// Reads that of an open snapshot.
    pub fn read(reader: &dyn SnapshotReader) -> Result<Self> {
        let snapshot = reader.snapshot();
        match reader.read_file(&ArchiveName::manifest()) {
            Ok(bytes) => Self::open(snapshot, bytes),
            Err(StoreError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                Err(EngineError::Unfinished { snapshot: snapshot.clone() })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// For those who have no key and read nothing but what is stated: listings.
    pub fn unverified(self) -> Manifest {
        self.manifest
    }

    /// Whether it names this key.
    pub fn is_of(&self, key: Option<&EncryptionKey>) -> bool {
        let stated = self.manifest.key_fingerprint().ok().flatten();
        stated == key.map(EncryptionKey::fingerprint)
    }

    /// The JSON as it was written.
    pub fn json(&self) -> &[u8] {
        &self.json
    }

    /// The manifest, once its signature is right. What no key protects is accepted with any key.
    pub fn verify(self, key: Option<&EncryptionKey>) -> Result<Manifest> {
        let Self { manifest, json } = self;
        let snapshot = || manifest.snapshot.clone();
        let problem = |problem: ManifestError| {
            damaged(&manifest.snapshot, &ArchiveName::manifest(), chain(&problem))
        };
        let stated = manifest.key_fingerprint().map_err(problem)?;
        let Some(key) = key else {
            if manifest.is_protected() {
                let fingerprint = stated.map_or("unknown".into(), |stated| stated.short());
                return Err(EngineError::MissingKey { fingerprint });
            }
            return Ok(manifest);
        };
        // Otherwise who can write to the store could take signatures away.
        if manifest.signature.is_none() && manifest.is_protected() {
            return Err(EngineError::Unsigned { snapshot: snapshot() });
        }
        let provided = key.fingerprint();
        if let Some(stated) = stated.filter(|stated| *stated != provided) {
            // Keys that begin alike are told apart by all of it.
            let (manifest, provided) = match (stated.short(), provided.short()) {
                (stated_short, short) if stated_short != short => (stated_short, short),
                _ => (stated.to_string(), provided.to_string()),
            };
            return Err(EngineError::WrongKey { manifest, provided });
        }
        if let Some(signature) = &manifest.signature {
            let text = Manifest::signed_text(&json).map_err(problem)?;
            if !key.verifies(&text, signature) {
                return Err(EngineError::WrongSignature { snapshot: snapshot() });
            }
        }
        Ok(manifest)
    }
}

/// Changes what no signature covers of a stored manifest: notes, what a verification found.
pub fn change_unprotected(
    store: &dyn SnapshotStore,
    namespace: &Namespace,
    snapshot: &SnapshotId,
    change: &dyn Fn(&mut Map<String, Value>),
) -> Result<()> {
    let mut rewrite = |old: Blob| {
        let opened = UnverifiedManifest::open(snapshot, old.into_bytes());
        let opened = opened.map_err(|error| StoreError::Refused(chain(&error)))?;
        let mut manifest = opened.unverified();
        change(&mut manifest.unprotected);
        let sealed = Sealer::new().and_then(|mut sealer| sealer.seal(&manifest.to_json(), None));
        sealed.map_err(|problem| StoreError::Refused(problem.to_string()))
    };
    Ok(store.update_manifest(namespace, snapshot, &mut rewrite)?)
}

/// A file that the manifest lists.
pub fn find<'a>(manifest: &'a Manifest, name: &ArchiveName) -> Result<&'a ManifestFile> {
    manifest.file(name).ok_or_else(|| EngineError::NotInManifest { name: name.clone() })
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

/// Reads a blob, compares it with the manifest, and opens it. The reference lists key blobs as
/// encrypted though they are not: either form is right.
pub fn read_blob(
    reader: &dyn SnapshotReader,
    file: &ManifestFile,
    key: Option<&EncryptionKey>,
) -> Result<Vec<u8>> {
    let bytes = reader.read_file(&file.name)?;
    let damaged = |problem: String| damaged(reader.snapshot(), &file.name, problem);
    if bytes.len() as u64 != file.size || FileChecksum::of(&bytes) != file.checksum {
        return Err(damaged("it is not the file of the manifest".into()));
    }
    let blob = Blob::parse(bytes).map_err(|problem| damaged(problem.to_string()))?;
    let plain = Opener::new().and_then(|mut opener| opener.open(blob, key));
    plain.map_err(|problem| damaged(problem.to_string()))
}
