//! Reads the catalog of a snapshot.

use crate::archive::{ChunkedArchive, RandomAccess};
use crate::error::{EngineError, Result};
use crate::plugin::{Archive, Content, Entry, EntryKind, Event};
use crate::snapshot::find;
use keepwell_model::catalog::{
    CatalogBytes, CatalogEntry, CatalogError, CatalogKind, CatalogReader, Visit,
};
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

/// A snapshot's catalog.
pub struct Catalog(CatalogReader<StoredCatalog>);

impl Catalog {
    pub fn open(
        reader: &Arc<dyn SnapshotReader>,
        manifest: &Manifest,
        key: Option<&Arc<EncryptionKey>>,
    ) -> Result<Self> {
        let name = ArchiveName::catalog();
        let file = find(manifest, &name).map_err(|error| match error {
            EngineError::NotInManifest { .. } => EngineError::Refused(format!(
                "snapshot {} has no catalog: it holds no file archive",
                reader.snapshot()
            )),
            other => other,
        })?;
        let bytes = StoredCatalog(ChunkedArchive::open(reader.clone(), file, key)?);
        Ok(Self(CatalogReader::open(bytes)?))
    }

    /// The snapshot's file archives, as directories.
    pub fn archives(&self) -> Result<Vec<CatalogEntry>> {
        Ok(self.0.directory(self.0.root()?)?)
    }

    /// Paths of the further names of files in an archive; none where there are more than `max`.
    pub fn hard_links(
        &self,
        archive: &ArchiveName,
        max: usize,
    ) -> Result<Option<Vec<Vec<Vec<u8>>>>> {
        let mut found = Vec::new();
        self.0.walk(&mut |path, entry| {
            let Some((first, path)) = path.split_first() else { return Ok(()) };
            let is_link = entry.kind == CatalogKind::HardLink;
            if is_link && first == archive.as_str().as_bytes() && found.len() <= max {
                found.push(path.to_vec());
            }
            Ok(())
        })?;
        Ok((found.len() <= max).then_some(found))
    }

    /// Entries of the directory whose block lies there.
    pub fn directory(&self, block: u64) -> Result<Vec<CatalogEntry>> {
        Ok(self.0.directory(block)?)
    }
}

/// Events asked of a walk at a time.
const WALK_BATCH: u32 = 1024;

/// Calls `visit` with the path, which begins with `name`, and entry of everything in an archive whose
/// metadata is as good as a catalog, in order.
pub fn walk_archive(archive: &mut dyn Archive, name: &[u8], visit: &mut Visit<'_>) -> Result<()> {
    let mut path = vec![name.to_vec()];
    let root = CatalogKind::Directory { block: 0 };
    visit(&path, &CatalogEntry { name: name.to_vec(), kind: root })?;
    archive.start_walk()?;
    loop {
        let events = archive.walk(WALK_BATCH)?;
        if events.is_empty() {
            return Ok(());
        }
        for event in events {
            let (entry, is_directory) = match event {
                Event::Leave => {
                    path.pop();
                    continue;
                }
                Event::Enter(entry) => (entry, true),
                Event::Leaf(entry) => (entry, false),
            };
            let (name, kind) = (entry.name.clone(), kind_of(&entry));
            path.push(name.clone());
            visit(&path, &CatalogEntry { name, kind })?;
            if !is_directory {
                path.pop();
            }
        }
    }
}

/// As a catalog would tell it.
pub fn kind_of(entry: &Entry) -> CatalogKind {
    let metadata = &entry.metadata;
    match (&entry.content, metadata.kind) {
        (Content::HardLink { .. }, _) => CatalogKind::HardLink,
        (_, EntryKind::Directory) => CatalogKind::Directory { block: 0 },
        (_, EntryKind::File) => {
            CatalogKind::File { size: metadata.size, modified: metadata.modified.seconds }
        }
        (_, EntryKind::Symlink) => CatalogKind::Symlink,
        (_, EntryKind::BlockDevice) => CatalogKind::BlockDevice,
        (_, EntryKind::CharacterDevice) => CatalogKind::CharacterDevice,
        (_, EntryKind::Fifo) => CatalogKind::Fifo,
        (_, EntryKind::Socket) => CatalogKind::Socket,
    }
}

/// Calls `visit` with the path and entry of everything in the catalog, in order.
pub fn walk(
    reader: &Arc<dyn SnapshotReader>,
    manifest: &Manifest,
    key: Option<&Arc<EncryptionKey>>,
    visit: &mut Visit<'_>,
) -> Result<()> {
    Ok(Catalog::open(reader, manifest, key)?.0.walk(visit)?)
}

/// Entries of the directory at a path, whose first name is an archive's; none where there is no
/// such directory.
pub fn list(
    reader: &Arc<dyn SnapshotReader>,
    manifest: &Manifest,
    key: Option<&Arc<EncryptionKey>>,
    path: &[&[u8]],
) -> Result<Option<Vec<CatalogEntry>>> {
    let catalog = Catalog::open(reader, manifest, key)?;
    let mut entries = catalog.archives()?;
    for name in path {
        let found = entries.iter().find(|entry| entry.name == *name);
        let Some(CatalogKind::Directory { block }) = found.map(|entry| &entry.kind) else {
            return Ok(None);
        };
        entries = catalog.directory(*block)?;
    }
    Ok(Some(entries))
}
