//! Reads the catalog of a snapshot.

use crate::archive::{ChunkedArchive, RandomAccess};
use crate::error::{EngineError, Result};
use crate::snapshot::find;
use keepwell_model::catalog::{CatalogBytes, CatalogError, CatalogReader, Visit};
use keepwell_model::{ArchiveName, Manifest};
use keepwell_seal::EncryptionKey;
use keepwell_store::SnapshotReader;
use std::sync::Arc;

struct StoredCatalog(ChunkedArchive);

impl CatalogBytes for StoredCatalog {
    fn size(&self) -> u64 {
        self.0.index().size()
    }

    fn read(&self, offset: u64, length: usize) -> std::result::Result<Vec<u8>, CatalogError> {
        let mut bytes = Vec::with_capacity(length);
        while bytes.len() < length {
            let ask = u32::try_from(length - bytes.len()).unwrap_or(u32::MAX);
            let piece = self.0.read_at(offset + bytes.len() as u64, ask);
            let piece = piece.map_err(|failure| CatalogError::Read(Box::new(failure)))?;
            if piece.is_empty() {
                let problem = "it ends too early";
                return Err(CatalogError::Corrupt { at: offset, problem });
            }
            bytes.extend(piece);
        }
        Ok(bytes)
    }
}

/// Calls `visit` with the path and entry of everything in the catalog, in order.
pub fn walk(
    reader: &Arc<dyn SnapshotReader>,
    manifest: &Manifest,
    key: Option<&Arc<EncryptionKey>>,
    visit: &mut Visit<'_>,
) -> Result<()> {
    let name = ArchiveName::catalog();
    let file = find(manifest, &name).map_err(|error| match error {
        EngineError::NotInManifest { .. } => EngineError::Refused(format!(
            "snapshot {} has no catalog: it holds no file archive",
            reader.snapshot()
        )),
        other => other,
    })?;
    let bytes = StoredCatalog(ChunkedArchive::open(reader.clone(), file, key)?);
    Ok(CatalogReader::open(bytes)?.walk(visit)?)
}
