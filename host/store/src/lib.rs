//! Where snapshots and chunks lie. Two seams, [`ChunkStore`] and [`SnapshotStore`], and what
//! implements them: a directory as the reference server keeps it, and memory for tests.
//!
//! A store sees sealed chunks only, never plain bytes or keys. Layout and rules:
//! shared/spec/formats.md §4, §8. May use `model` only.

pub mod conformance;
mod crashed;
mod dir;
pub mod faulty;
pub mod files;
mod garbage;
mod layout;
mod lock;
mod memory;
mod session;
mod snapshots;
mod unused;

pub use dir::DirChunks;
pub use garbage::{Collection, GarbageStatus};
pub use layout::Layout;
pub use memory::MemoryChunks;
pub use snapshots::DirStore;

use keepwell_model::names::ArchiveKind;
use keepwell_model::{
    ArchiveName, AuthId, Blob, ChunkDigest, FileChecksum, GroupId, Index, Namespace, SealedChunk,
    SnapshotId, StoredChunk,
};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// What can go wrong in a store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    #[error("could not {action} '{}'", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("'{}' is not a datastore: it has no .chunks directory", path.display())]
    NotAStore { path: PathBuf },
    #[error("chunk {digest} is missing")]
    ChunkMissing { digest: ChunkDigest },
    #[error("chunk {digest} can't be stored: {problem}")]
    ChunkRefused { digest: ChunkDigest, problem: &'static str },
    #[error("{what} is locked: {why}")]
    Locked { what: String, why: &'static str },
    #[error("snapshot {snapshot} does not exist.")]
    SnapshotMissing { snapshot: SnapshotId },
    #[error("backup group {group} does not exist")]
    GroupMissing { group: GroupId },
    #[error("namespace not found")]
    NamespaceMissing { namespace: Namespace },
    #[error("{0}")]
    Refused(String),
    #[error("backup timestamp is older than last backup.")]
    TooOld { last: SnapshotId },
    #[error("cannot remove protected snapshot")]
    Protected { snapshot: SnapshotId },
    #[error("{snapshot}: {name} is damaged: {problem}")]
    Corrupt { snapshot: SnapshotId, name: ArchiveName, problem: String },
    #[error("a stored file name is impossible")]
    Name(#[from] keepwell_model::names::NameError),
    #[error(transparent)]
    Append(#[from] keepwell_model::index::AppendError),
    /// what went wrong on the way to a server, or there
    #[error(transparent)]
    Remote(Box<dyn std::error::Error + Send + Sync>),
    #[error("injected fault at call {call}")]
    Injected { call: u32 },
}

pub type Result<T> = std::result::Result<T, StoreError>;

/// Holds chunks by their digest. An object store with packs can implement it as well as a
/// directory.
///
/// `insert` is atomic and idempotent: after a crash of the process the chunk is whole or absent.
/// It is durable only after the session that stored it has finished. `read` returns the file as
/// stored and verifies nothing: opening does.
pub trait ChunkStore: Send + Sync {
    /// Stores a chunk unless it is there.
    fn insert(&self, chunk: &SealedChunk<'_>) -> Result<StoredChunk>;

    /// Marks a chunk as in use, so that no garbage collection takes it, and returns it; none where
    /// it is not there and must be inserted.
    fn touch(&self, digest: &ChunkDigest, plain_bytes: u64) -> Result<Option<StoredChunk>>;

    /// The stored file; [`StoreError::ChunkMissing`] where there is none.
    fn read(&self, digest: &ChunkDigest) -> Result<Vec<u8>>;
}

/// A group as a listing shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupInfo {
    pub group: GroupId,
    pub owner: String,
    /// first line of the group's notes
    pub comment: Option<String>,
}

/// A snapshot as it lies in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotInfo {
    pub snapshot: SnapshotId,
    pub owner: String,
    pub protected: bool,
    /// the manifest's file as stored; none where there is none: the snapshot is unfinished
    pub manifest: Option<Vec<u8>>,
    /// archives and blobs on disk, in the order of their names
    pub files: Vec<ArchiveName>,
}

/// Room on a store, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    pub total: u64,
    pub used: u64,
    pub available: u64,
}

/// What became of a deletion of a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    Done,
    /// protected snapshots remain
    KeptProtected,
    /// groups remain, since they were not to be deleted
    KeptGroups,
}

/// Where snapshots are made and read: a directory, or a server.
pub trait SessionStore: Send + Sync {
    /// Begins a snapshot. Nothing of it can be seen before [`BackupSession::finish`], and nothing
    /// remains of it when the session is dropped.
    fn begin(
        &self,
        namespace: &Namespace,
        snapshot: &SnapshotId,
        owner: &str,
    ) -> Result<Arc<dyn BackupSession>>;

    /// Opens a finished snapshot; while it is open, nobody can remove it.
    fn open(&self, namespace: &Namespace, snapshot: &SnapshotId)
    -> Result<Arc<dyn SnapshotReader>>;
}

/// Holds snapshots in groups in namespaces, and changes them.
pub trait SnapshotStore: SessionStore {
    /// Namespaces at and below `parent`, down to `depth` levels, in order, `parent` first.
    fn namespaces(&self, parent: &Namespace, depth: usize) -> Result<Vec<Namespace>>;
    /// Its parent must exist.
    fn create_namespace(&self, namespace: &Namespace) -> Result<()>;
    fn delete_namespace(&self, namespace: &Namespace, with_groups: bool) -> Result<Removal>;

    /// Groups that have snapshots, sorted.
    fn groups(&self, namespace: &Namespace) -> Result<Vec<GroupInfo>>;
    /// Snapshots of all groups or of one, sorted by group and time.
    fn snapshots(
        &self,
        namespace: &Namespace,
        group: Option<&GroupId>,
    ) -> Result<Vec<SnapshotInfo>>;
    fn capacity(&self) -> Result<Capacity>;

    /// Removes a snapshot that is neither protected nor in use.
    fn forget(&self, namespace: &Namespace, snapshot: &SnapshotId) -> Result<()>;
    fn protected(&self, namespace: &Namespace, snapshot: &SnapshotId) -> Result<bool>;
    fn set_protected(
        &self,
        namespace: &Namespace,
        snapshot: &SnapshotId,
        protected: bool,
    ) -> Result<()>;
    /// Replaces the manifest's blob; `change` gets the old one.
    fn update_manifest(
        &self,
        namespace: &Namespace,
        snapshot: &SnapshotId,
        change: &mut dyn FnMut(Blob) -> Result<Blob>,
    ) -> Result<()>;
    /// Gives a group to somebody else. Fails while a backup of it runs.
    fn change_owner(&self, namespace: &Namespace, group: &GroupId, owner: &AuthId) -> Result<()>;
    /// Adds the client's log to a finished snapshot that has none.
    fn add_log(&self, namespace: &Namespace, snapshot: &SnapshotId, log: &Blob) -> Result<()>;
}

/// One running backup.
pub trait BackupSession: Send + Sync {
    /// The newest finished snapshot of the group, if it can serve as a base: some chunks of it need
    /// not be stored again.
    fn previous(&self) -> Option<Arc<dyn SnapshotReader>>;
    fn create_index(&self, name: &ArchiveName, layout: IndexLayout) -> Result<Box<dyn IndexSink>>;
    fn put_blob(&self, name: &ArchiveName, blob: &Blob) -> Result<FileSummary>;
    /// Makes everything durable, then the snapshot visible. Call it once, at the end.
    fn finish(&self, manifest: &Blob) -> Result<()>;
}

/// How an index is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IndexLayout {
    Dynamic,
    /// `size` is the archive's length where it is known beforehand
    Fixed {
        chunk_bytes: u32,
        size: Option<u64>,
    },
}

impl IndexLayout {
    pub fn archive_kind(self) -> ArchiveKind {
        match self {
            Self::Dynamic => ArchiveKind::Dynamic,
            Self::Fixed { .. } => ArchiveKind::Fixed,
        }
    }
}

/// An index that is being written, in the order of the archive.
pub trait IndexSink: Send {
    /// Where this archive's chunks are stored before they are appended.
    fn chunks(&self) -> Arc<dyn ChunkStore>;
    fn append(&mut self, chunk: &StoredChunk) -> Result<()>;
    fn finish(self: Box<Self>) -> Result<FileSummary>;
}

/// What the manifest says of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileSummary {
    pub size: u64,
    pub checksum: FileChecksum,
}

/// An open snapshot.
pub trait SnapshotReader: Send + Sync {
    fn snapshot(&self) -> &SnapshotId;
    fn chunks(&self) -> &dyn ChunkStore;
    /// A whole file of the snapshot, unverified: compare it with the manifest.
    fn read_file(&self, name: &ArchiveName) -> Result<Vec<u8>>;
    fn read_index(&self, name: &ArchiveName) -> Result<Index> {
        parse_index(name, self.snapshot(), self.read_file(name)?)
    }
}

/// Reads an index's file.
pub fn parse_index(name: &ArchiveName, snapshot: &SnapshotId, bytes: Vec<u8>) -> Result<Index> {
    let parsed = match name.kind() {
        ArchiveKind::Fixed => Index::parse_fixed(bytes),
        _ => Index::parse_dynamic(bytes),
    };
    parsed.map_err(|problem| StoreError::Corrupt {
        snapshot: snapshot.clone(),
        name: name.clone(),
        problem: problem.to_string(),
    })
}
