//! A chunk on its way: plain, sealed, stored. Each stage has one producer.

use crate::blob::Blob;
use crate::digest::ChunkDigest;

/// A chunk ready to be stored. Made by `seal` only.
#[derive(Clone, Debug)]
pub struct SealedChunk {
    pub digest: ChunkDigest,
    /// length before sealing
    pub plain_bytes: u64,
    pub blob: Blob,
}

/// A chunk that a store holds: only a store makes one, and only such can go into an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredChunk {
    pub digest: ChunkDigest,
    pub plain_bytes: u64,
    /// length of its file
    pub stored_bytes: u64,
    /// whether it was there before
    pub known: bool,
}
