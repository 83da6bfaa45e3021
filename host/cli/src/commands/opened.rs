//! A snapshot opened for looking into it: for all commands that read archives.

use crate::args::namespace_of;
use crate::encryption::{CryptParameters, verified};
use crate::output::write_out;
use crate::plugins::{Plugins, Types};
use crate::repository::Repository;
use crate::store::Store;
use anyhow::{Result, anyhow, bail};
use clap::ArgMatches;
use keepwell_engine::archive::{BlobArchive, ChunkedArchive, RandomAccess};
use keepwell_engine::catalog::{walk, walk_archive};
use keepwell_engine::diff::same_bytes;
use keepwell_engine::list::newest;
use keepwell_engine::plugin::{Archive, Reader};
use keepwell_engine::report::Report;
use keepwell_engine::restore::{ContentSource, PlainContent, StoredContent};
use keepwell_engine::snapshot::{UnverifiedManifest, find, read_blob};
use keepwell_engine::{Cancel, EngineError};
use keepwell_model::catalog::Visit;
use keepwell_model::manifest::ManifestFile;
use keepwell_model::names::ArchiveKind;
use keepwell_model::{ArchiveName, GroupId, Manifest, Namespace, SnapshotId};
use keepwell_seal::EncryptionKey;
use keepwell_store::SnapshotReader;
use keepwell_wasm::Plugin;
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
    pub(crate) fn archive(
        &self,
        plugins: &Plugins,
        given: &str,
    ) -> Result<(ArchiveFiles, StoredArchive)> {
        let files = ArchiveFiles::find(&plugins.types(), &self.manifest, given)?;
        let stored = StoredArchive::open(&self.reader, &files, self.key.as_ref())?;
        Ok((files, stored))
    }
}

impl Opened {
    /// Calls `visit` with the path, which begins with a file of the snapshot, and entry of everything that
    /// the catalog knows, or the metadata of archives that need none.
    pub(crate) fn walk_names(&self, plugins: &Plugins, visit: &mut Visit<'_>) -> Result<()> {
        let (catalog, key) = (ArchiveName::catalog(), self.key.as_ref());
        let all = ArchiveFiles::all(&plugins.types(), &self.manifest);
        let split: Vec<&ArchiveFiles> = all.iter().filter(|a| a.files.len() > 1).collect();
        if split.is_empty() || self.manifest.file(&catalog).is_some() {
            walk(&self.reader, &self.manifest, key, visit)?;
        }
        for archive in split {
            let loaded = plugins.reader_for(&archive.extension);
            let loaded = loaded
                .ok_or_else(|| anyhow!("there is no plugin that reads '{}'", archive.name))?;
            let Some(metadata) = archive.files.last() else { continue };
            let stored = StoredArchive::open(&self.reader, archive, key)?;
            let (_reader, mut open) =
                open_with(&loaded.plugin, stored.streams(), Cancel::default())?;
            walk_archive(&mut *open, metadata.name.as_str().as_bytes(), visit)?;
        }
        Ok(())
    }
}

/// An archive, and the files of a snapshot that it is kept in: one, or several where its metadata
/// and its content lie apart.
#[derive(Clone)]
pub(crate) struct ArchiveFiles {
    /// as users call it: `root.pxar`
    pub(crate) name: String,
    /// which tells the plugin that reads it
    pub(crate) extension: String,
    /// in the order in which their streams were opened
    pub(crate) files: Vec<ManifestFile>,
}

impl ArchiveFiles {
    /// All that a snapshot has.
    pub(crate) fn all(types: &Types, manifest: &Manifest) -> Vec<Self> {
        let mut found: Vec<Self> = Vec::new();
        for file in &manifest.files {
            let archive = Self::split(types, manifest, &file.name).unwrap_or_else(|| Self {
                name: file.name.user_name().to_owned(),
                extension: file.name.archive_extension().to_owned(),
                files: vec![file.clone()],
            });
            if !found.iter().any(|known| known.files[0].name == archive.files[0].name) {
                found.push(archive);
            }
        }
        found
    }

    /// The archive that a file is a part of.
    fn split(types: &Types, manifest: &Manifest, part: &ArchiveName) -> Option<Self> {
        let (label, extension) = part.user_name().rsplit_once('.')?;
        let whole = types.kept_in_parts(extension)?;
        let files = whole.parts.iter().map(|part| {
            let name = format!("{label}.{part}.{}", ArchiveKind::Dynamic.extension());
            manifest.file(&name.parse().ok()?).cloned()
        });
        let (name, extension) = (format!("{label}.{}", whole.extension), whole.extension.clone());
        Some(Self { name, extension, files: files.collect::<Option<_>>()? })
    }

    /// What a manifest has under this name: an archive's own, or that of a file that it is kept in.
    pub(crate) fn find(types: &Types, manifest: &Manifest, given: &str) -> Result<Self> {
        if given.is_empty() {
            bail!("the name of the archive is empty");
        }
        let name = ArchiveName::from_user(given)?;
        let all = Self::all(types, manifest);
        let has = |archive: &&Self| archive.files.iter().any(|file| file.name == name);
        // How archives of other types are kept their names do not tell.
        let is_called = |archive: &&Self| {
            let mut files = archive.files.iter();
            archive.name == given
                || archive.name == name.user_name()
                || files.any(|file| file.name.user_name() == given)
        };
        match all.iter().find(has).or_else(|| all.iter().find(is_called)) {
            Some(archive) => Ok(archive.clone()),
            None => match find(manifest, &name) {
                Ok(_) => Err(anyhow!("'{given}' is kept in no file of the snapshot")),
                Err(error) => Err(error.into()),
            },
        }
    }

    /// How its content is kept.
    pub(crate) fn kind(&self) -> ArchiveKind {
        self.files.first().map_or(ArchiveKind::Blob, |file| file.name.kind())
    }
}

pub(crate) type Streams = Vec<Arc<dyn RandomAccess>>;

/// Opens an archive with the plugin that reads it. The reader has to live as long as its archive: bind
/// both, the archive last.
pub(crate) fn open_with(
    plugin: &Plugin,
    streams: Streams,
    cancel: Cancel,
) -> Result<(Box<dyn Reader>, Box<dyn Archive>)> {
    // What it has to say of its work nobody waits for.
    let (report, _) = Report::new();
    let mut reader = plugin.reader(report, cancel)?;
    let archive = reader.open(streams).map_err(EngineError::from)?;
    Ok((reader, archive))
}

/// An archive's content as the store has it.
pub(crate) enum StoredArchive {
    /// by streams, of which there is at least one
    Chunked(Vec<Arc<ChunkedArchive>>),
    Blob(Arc<Vec<u8>>),
}

impl StoredArchive {
    pub(crate) fn open(
        reader: &Arc<dyn SnapshotReader>,
        archive: &ArchiveFiles,
        key: Option<&Arc<EncryptionKey>>,
    ) -> Result<Self> {
        if let ([file], ArchiveKind::Blob) = (&archive.files[..], archive.kind()) {
            return Ok(Self::Blob(Arc::new(read_blob(&**reader, file, key.map(|key| &**key))?)));
        }
        let open = |file| ChunkedArchive::open(reader.clone(), file, key).map(Arc::new);
        Ok(Self::Chunked(archive.files.iter().map(open).collect::<Result<_, _>>()?))
    }

    /// What a reader plugin reads.
    pub(crate) fn streams(&self) -> Streams {
        match self {
            Self::Chunked(streams) => {
                streams.iter().map(|stream| stream.clone() as Arc<dyn RandomAccess>).collect()
            }
            Self::Blob(bytes) => vec![Arc::new(BlobArchive(bytes.clone()))],
        }
    }

    /// Where the content of its entries comes from.
    pub(crate) fn source(&self) -> Arc<dyn ContentSource> {
        match self {
            Self::Chunked(streams) => Arc::new(StoredContent(streams.clone())),
            Self::Blob(bytes) => Arc::new(PlainContent(vec![Arc::new(BlobArchive(bytes.clone()))])),
        }
    }

    /// Its length in bytes.
    pub(crate) fn size(&self) -> u64 {
        match self {
            Self::Chunked(streams) => streams.iter().map(|stream| stream.index().size()).sum(),
            Self::Blob(bytes) => bytes.len() as u64,
        }
    }

    /// Whatever keys and chunks they are stored with.
    pub(crate) fn has_same_bytes(&self, other: &Self) -> Result<bool, EngineError> {
        match (self, other) {
            (Self::Chunked(one), Self::Chunked(other)) => match (&one[..], &other[..]) {
                ([one], [other]) => same_bytes(one, other),
                _ => Ok(false),
            },
            (Self::Blob(one), Self::Blob(other)) => Ok(one == other),
            _ => Ok(false),
        }
    }

    /// All of it, to stdout.
    pub(crate) fn write_out(&self) -> Result<()> {
        match self {
            Self::Chunked(streams) => match &streams[..] {
                [stream] => Ok(stream.write_to(&mut BufWriter::new(std::io::stdout().lock()))?),
                _ => bail!("unable to pipe split archive: restore it into a directory"),
            },
            Self::Blob(bytes) => write_out(bytes),
        }
    }
}
