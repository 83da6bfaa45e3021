//! A snapshot opened for looking into it: for all commands that read archives.

use crate::args::namespace_of;
use crate::encryption::{CryptParameters, verified};
use crate::output::write_out;
use crate::repository::Repository;
use crate::store::Store;
use anyhow::{Result, anyhow};
use clap::ArgMatches;
use keepwell_engine::EngineError;
use keepwell_engine::archive::{BlobArchive, ChunkedArchive, RandomAccess};
use keepwell_engine::diff::same_bytes;
use keepwell_engine::list::newest;
use keepwell_engine::restore::{ContentSource, PlainContent, StoredContent};
use keepwell_engine::snapshot::{UnverifiedManifest, find, read_blob};
use keepwell_model::manifest::ManifestFile;
use keepwell_model::names::ArchiveKind;
use keepwell_model::{ArchiveName, GroupId, Manifest, Namespace, SnapshotId};
use keepwell_seal::EncryptionKey;
use keepwell_store::SnapshotReader;
use std::io::BufWriter;
use std::sync::Arc;

/// A snapshot, with a manifest that the key has verified.
pub(crate) struct Opened {
    pub(crate) reader: Arc<dyn SnapshotReader>,
    pub(crate) manifest: Manifest,
    pub(crate) key: Option<Arc<EncryptionKey>>,
}

/// The snapshot named, or the newest finished one of the group named.
pub(crate) fn find_snapshot(
    store: &Store,
    namespace: &Namespace,
    given: &str,
) -> Result<SnapshotId> {
    if given.matches('/').count() != 1 {
        return Ok(given.parse()?);
    }
    let group: GroupId = given.parse()?;
    let (found, skipped) = newest(store.snapshots(namespace, Some(&group))?)?;
    for snapshot in &skipped {
        tracing::info!("skipped not finished snapshot {snapshot}");
    }
    found.ok_or_else(|| match skipped.is_empty() {
        true => anyhow!("backup group {group} does not contain any snapshots."),
        false => anyhow!("backup group {group} does not contain any finished snapshots."),
    })
}

impl Opened {
    pub(crate) fn new(
        reader: Arc<dyn SnapshotReader>,
        parameters: &CryptParameters,
        key: Option<Arc<EncryptionKey>>,
    ) -> Result<Self> {
        let manifest = verified(UnverifiedManifest::read(&*reader)?, parameters, key.as_ref())?;
        Ok(Self { reader, manifest, key })
    }

    /// By the options for repository, namespace and key; `given` is a snapshot or a group.
    pub(crate) fn of(matches: &ArgMatches, given: &str) -> Result<Self> {
        let [opened] = Self::all_of(matches, [given])?;
        Ok(opened)
    }

    /// Several; a passphrase is asked for once.
    pub(crate) fn all_of<const N: usize>(
        matches: &ArgMatches,
        given: [&str; N],
    ) -> Result<[Self; N]> {
        let mut parameters = CryptParameters::of(matches)?;
        let store = Repository::find(matches.get_one("repository"))?.open(matches)?;
        let namespace = namespace_of(matches);
        let mut readers = Vec::with_capacity(N);
        for given in given {
            let snapshot = find_snapshot(&store, &namespace, given)?;
            readers.push(store.sessions().open(&namespace, &snapshot)?);
        }
        let key = parameters.unlock()?;
        let opened = readers.into_iter().map(|reader| Self::new(reader, &parameters, key.clone()));
        let opened: Vec<Self> = opened.collect::<Result<_>>()?;
        opened.try_into().map_err(|_| anyhow!("not all snapshots were opened"))
    }

    /// The archive of this name, as users write it.
    pub(crate) fn archive(&self, given: &str) -> Result<(ArchiveName, StoredArchive)> {
        let file = file_of(&self.manifest, given)?;
        Ok((file.name.clone(), StoredArchive::open(&self.reader, file, self.key.as_ref())?))
    }
}

/// What a manifest has under this name. How archives of other types are kept their names do not
/// tell.
pub(crate) fn file_of<'a>(manifest: &'a Manifest, given: &str) -> Result<&'a ManifestFile> {
    let name = ArchiveName::from_user(given)?;
    match manifest.file(&name).or_else(|| manifest.file_called(given)) {
        Some(file) => Ok(file),
        None => Ok(find(manifest, &name)?),
    }
}

pub(crate) type Streams = Vec<Arc<dyn RandomAccess>>;

/// An archive's content as the store has it.
pub(crate) enum StoredArchive {
    Chunked(Arc<ChunkedArchive>),
    Blob(Arc<Vec<u8>>),
}

impl StoredArchive {
    pub(crate) fn open(
        reader: &Arc<dyn SnapshotReader>,
        file: &ManifestFile,
        key: Option<&Arc<EncryptionKey>>,
    ) -> Result<Self> {
        Ok(match file.name.kind() {
            ArchiveKind::Blob => {
                Self::Blob(Arc::new(read_blob(&**reader, file, key.map(|key| &**key))?))
            }
            _ => Self::Chunked(Arc::new(ChunkedArchive::open(reader.clone(), file, key)?)),
        })
    }

    /// What a reader plugin reads.
    pub(crate) fn streams(&self) -> Streams {
        match self {
            Self::Chunked(archive) => vec![archive.clone()],
            Self::Blob(bytes) => vec![Arc::new(BlobArchive(bytes.clone()))],
        }
    }

    /// Where the content of its entries comes from.
    pub(crate) fn source(&self) -> Arc<dyn ContentSource> {
        match self {
            Self::Chunked(archive) => Arc::new(StoredContent(vec![archive.clone()])),
            Self::Blob(bytes) => Arc::new(PlainContent(vec![Arc::new(BlobArchive(bytes.clone()))])),
        }
    }

    /// Its length in bytes.
    pub(crate) fn size(&self) -> u64 {
        match self {
            Self::Chunked(archive) => archive.index().size(),
            Self::Blob(bytes) => bytes.len() as u64,
        }
    }

    /// Whatever keys and chunks they are stored with.
    pub(crate) fn has_same_bytes(&self, other: &Self) -> Result<bool, EngineError> {
        match (self, other) {
            (Self::Chunked(one), Self::Chunked(other)) => same_bytes(one, other),
            (Self::Blob(one), Self::Blob(other)) => Ok(one == other),
            _ => Ok(false),
        }
    }

    /// All of it, to stdout.
    pub(crate) fn write_out(&self) -> Result<()> {
        match self {
            Self::Chunked(archive) => {
                Ok(archive.write_to(&mut BufWriter::new(std::io::stdout().lock()))?)
            }
            Self::Blob(bytes) => write_out(bytes),
        }
    }
}
