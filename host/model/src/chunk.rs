//! A chunk on its way: plain, sealed, stored. Each stage has one producer.

use crate::blob::{BlobKind, HEADER_BYTES};
use crate::digest::ChunkDigest;

/// A chunk ready to be stored: the two parts of its file. Made by `seal` only; the payload stays
/// where it was made.
#[derive(Clone, Copy, Debug)]
pub struct SealedChunk<'a> {
    pub digest: ChunkDigest,
    /// length before sealing
    pub plain_bytes: u64,
    kind: BlobKind,
    header: [u8; HEADER_BYTES],
    payload: &'a [u8],
}

impl<'a> SealedChunk<'a> {
    /// `payload` is what follows magic and checksum.
    pub fn new(digest: ChunkDigest, plain_bytes: u64, kind: BlobKind, payload: &'a [u8]) -> Self {
        let mut header = [0; HEADER_BYTES];
        let covered = payload.get(kind.header_bytes() - HEADER_BYTES..).unwrap_or_default();
        header[..8].copy_from_slice(&kind.magic());
        header[8..].copy_from_slice(&crc32fast::hash(covered).to_le_bytes());
        Self { digest, plain_bytes, kind, header, payload }
    }

    pub fn kind(&self) -> BlobKind {
        self.kind
    }

    /// What its file consists of.
    pub fn parts(&self) -> [&[u8]; 2] {
        [&self.header, self.payload]
    }

    /// Length of its file.
    pub fn stored_bytes(&self) -> u64 {
        (HEADER_BYTES + self.payload.len()) as u64
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Blob;

    #[test]
    fn the_parts_make_a_blob() {
        let digest = ChunkDigest::from_bytes([1; 32]);
        let encrypted: Vec<u8> = (0..50).collect();
        for kind in [BlobKind::Plain, BlobKind::Encrypted] {
            let chunk = SealedChunk::new(digest, 6, kind, &encrypted);
            let blob = Blob::parse(chunk.parts().concat()).unwrap();
            assert_eq!(blob.kind(), kind);
            assert_eq!(blob.as_bytes().len() as u64, chunk.stored_bytes());
        }
    }
}
