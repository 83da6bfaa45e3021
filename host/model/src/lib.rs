//! The nouns of a backup and their bytes: digests, names, times, the blob envelope, indexes,
//! manifest and catalog.
//!
//! Everything here is a value or a pure function. No I/O, no clock, no keys, no compression: those
//! are `store`, `cli` and `seal`. Byte layouts: shared/spec/formats.md and catalog.md.

pub mod blob;
pub mod catalog;
pub mod chunk;
pub mod digest;
pub mod duration;
pub mod index;
pub mod manifest;
pub mod names;
pub mod recent;
pub mod size;
pub mod upid;

pub use blob::{Blob, BlobKind};
pub use chunk::{SealedChunk, StoredChunk};
pub use digest::{ChunkDigest, FileChecksum, KeyFingerprint};
pub use index::{ChunkRange, Index};
pub use manifest::Manifest;
pub use names::{
    ArchiveLabel, ArchiveName, AuthId, BackupId, BackupTime, BackupType, GroupId, Namespace,
    SnapshotId, is_safe_name,
};
pub use recent::RecentDigests;
pub use upid::Upid;
