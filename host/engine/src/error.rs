//! What can go wrong in a verb.

use crate::plugin::Failure;
use keepwell_model::{ArchiveName, ChunkDigest, SnapshotId};
use keepwell_store::StoreError;
use std::io;

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Plugin(#[from] Failure),
    #[error("interrupted")]
    Cancelled,
    #[error("unable to {action} '{path}'")]
    Io {
        action: &'static str,
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("{0}")]
    Refused(String),
    #[error(transparent)]
    Seal(#[from] keepwell_seal::SealError),
    #[error(transparent)]
    ChunkSize(#[from] keepwell_seal::ChunkerError),
    #[error("{snapshot}: {name} is damaged: {problem}")]
    Damaged { snapshot: SnapshotId, name: ArchiveName, problem: String },
    #[error("chunk {digest} of {name} is damaged: {problem}")]
    ChunkDamaged { digest: ChunkDigest, name: ArchiveName, problem: String },
    #[error("snapshot {snapshot} is not finished: it has no manifest")]
    Unfinished { snapshot: SnapshotId },
    #[error("missing key - manifest was created with key {fingerprint}")]
    MissingKey { fingerprint: String },
    #[error(
        "wrong key - unable to verify signature since manifest's key {manifest} does not match \
         provided key {provided}"
    )]
    WrongKey { manifest: String, provided: String },
    #[error("wrong signature in manifest")]
    WrongSignature { snapshot: SnapshotId },
    #[error("the manifest of {snapshot} is not signed, though it says that a key protects it")]
    Unsigned { snapshot: SnapshotId },
    #[error("manifest does not contain file '{name}'")]
    NotInManifest { name: ArchiveName },
    #[error(transparent)]
    Name(#[from] keepwell_model::names::NameError),
    #[error(transparent)]
    Catalog(#[from] keepwell_model::catalog::CatalogError),
    #[error("error at entry \"{path}\": {problem}")]
    Entry { path: String, problem: String },
    /// The archive is damaged there.
    #[error("error at entry \"{path}\": {problem}")]
    Lost { path: String, problem: String },
    #[error("the restore is not complete: {0} errors")]
    Incomplete(u64),
    #[error("a worker ended unexpectedly")]
    Worker,
}

impl EngineError {
    /// Whether stored bytes are damaged or missing: what lies elsewhere may be sound.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::ChunkDamaged { .. } | Self::Damaged { .. } | Self::Lost { .. } => true,
            Self::Store(error) => matches!(error, StoreError::Corrupt { .. }),
            Self::Plugin(failure) => matches!(failure, Failure::Corrupt(_)),
            Self::Catalog(error) => !matches!(error, keepwell_model::catalog::CatalogError::Name),
            _ => false,
        }
    }

    /// Whether the target is full: trying on is of no use.
    pub(crate) fn is_no_space(&self) -> bool {
        match self {
            Self::Io { source, .. } => {
                matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            }
            // ENOSPC and EDQUOT.
            Self::Entry { problem, .. } => {
                problem.contains("(os error 28)") || problem.contains("(os error 122)")
            }
            _ => false,
        }
    }
}

pub type Result<T> = std::result::Result<T, EngineError>;

pub(crate) fn io_error(
    action: &'static str,
    path: impl Into<String>,
) -> impl FnOnce(io::Error) -> EngineError {
    let path = path.into();
    move |source| EngineError::Io { action, path, source }
}
