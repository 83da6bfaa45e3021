//! Seals chunks and blobs, and opens them. Spec: formats.md §2.

use keepwell_model::blob::{BLOB_BYTES_MAX, BlobError, HEADER_BYTES};
use keepwell_model::{Blob, BlobKind, ChunkDigest, SealedChunk};
use sha2::{Digest, Sha256};
use std::io;
use zstd::bulk::{Compressor, Decompressor};

/// The reference's level: frames of any level can be read.
const LEVEL: i32 = 1;

/// Why bytes can't be sealed.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    #[error("{0} bytes are too many for a blob: 128 MiB are allowed")]
    TooLarge(usize),
    #[error("compression failed")]
    Compress(#[source] io::Error),
    #[error(transparent)]
    Blob(#[from] BlobError),
}

/// Why a blob can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("it is encrypted, and encryption comes with a later version")]
    Encrypted,
    #[error("decompression failed")]
    Decompress(#[source] io::Error),
    #[error("its content does not match its digest")]
    Digest,
    #[error("it holds {found} bytes instead of {expected}")]
    Length { expected: u64, found: u64 },
    #[error(transparent)]
    Blob(#[from] BlobError),
}

/// Seals. Holds a compressor: make one for each thread and keep it.
pub struct Sealer {
    compressor: Compressor<'static>,
    scratch: Vec<u8>,
}

impl Sealer {
    pub fn new() -> Result<Self, SealError> {
        let compressor = Compressor::new(LEVEL).map_err(SealError::Compress)?;
        Ok(Self { compressor, scratch: Vec::new() })
    }

    /// The name of a chunk.
    pub fn digest(plain: &[u8]) -> ChunkDigest {
        ChunkDigest::from_bytes(Sha256::digest(plain).into())
    }

    /// Seals a chunk whose digest is known already. Nothing is copied: the payload lies in `plain`
    /// or in this sealer.
    pub fn seal_chunk<'a>(
        &'a mut self,
        digest: ChunkDigest,
        plain: &'a [u8],
    ) -> Result<SealedChunk<'a>, SealError> {
        let (kind, payload) = self.compress(plain)?;
        Ok(SealedChunk::new(digest, plain.len() as u64, kind, payload))
    }

    pub fn seal(&mut self, plain: &[u8]) -> Result<Blob, SealError> {
        let (kind, payload) = self.compress(plain)?;
        let mut bytes = vec![0; HEADER_BYTES];
        bytes.extend_from_slice(payload);
        Ok(Blob::seal(kind, bytes)?)
    }

    /// Compresses, and keeps the result when it is smaller.
    fn compress<'a>(&'a mut self, plain: &'a [u8]) -> Result<(BlobKind, &'a [u8]), SealError> {
        if plain.len() > BLOB_BYTES_MAX {
            return Err(SealError::TooLarge(plain.len()));
        }
        // Room for one byte less than the plain size: what does not fit is not wanted.
        let room = plain.len().saturating_sub(1);
        if self.scratch.len() < room {
            self.scratch.resize(room, 0);
        }
        match self.compressor.compress_to_buffer(plain, &mut self.scratch[..room]) {
            Ok(length) => Ok((BlobKind::Compressed, &self.scratch[..length])),
            Err(_) => Ok((BlobKind::Plain, plain)),
        }
    }
}

/// Opens. Holds a decompressor: make one for each thread and keep it.
pub struct Opener {
    decompressor: Decompressor<'static>,
}

impl Opener {
    pub fn new() -> Result<Self, OpenError> {
        Ok(Self { decompressor: Decompressor::new().map_err(OpenError::Decompress)? })
    }

    /// Opens a chunk and checks that it is the one asked for.
    pub fn open_chunk(
        &mut self,
        bytes: Vec<u8>,
        digest: &ChunkDigest,
        length: u64,
    ) -> Result<Vec<u8>, OpenError> {
        let limit = usize::try_from(length).unwrap_or(usize::MAX);
        let plain = self.open_limited(Blob::parse(bytes)?, limit)?;
        if plain.len() as u64 != length {
            return Err(OpenError::Length { expected: length, found: plain.len() as u64 });
        }
        if Sealer::digest(&plain) != *digest {
            return Err(OpenError::Digest);
        }
        Ok(plain)
    }

    /// Opens a blob of any content.
    pub fn open(&mut self, blob: Blob) -> Result<Vec<u8>, OpenError> {
        let limit = match blob.kind() {
            BlobKind::Compressed => zstd::zstd_safe::get_frame_content_size(blob.payload())
                .ok()
                .flatten()
                .and_then(|size| usize::try_from(size).ok())
                .unwrap_or(BLOB_BYTES_MAX)
                .min(BLOB_BYTES_MAX),
            _ => BLOB_BYTES_MAX,
        };
        self.open_limited(blob, limit)
    }

    fn open_limited(&mut self, blob: Blob, limit: usize) -> Result<Vec<u8>, OpenError> {
        match blob.kind() {
            BlobKind::Plain => Ok(blob.into_payload()),
            BlobKind::Compressed => self
                .decompressor
                .decompress(blob.payload(), limit.min(BLOB_BYTES_MAX))
                .map_err(OpenError::Decompress),
            BlobKind::Encrypted | BlobKind::CompressedEncrypted => Err(OpenError::Encrypted),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn four_mebibytes_of_zeros_have_the_known_digest() {
        let expected = "bb9f8df61474d25e71fa00722318cd387396ca1736605e1248821cc0de3d3af8";
        assert_eq!(Sealer::digest(&vec![0; 4 << 20]).to_string(), expected);
    }

    #[test]
    fn only_what_shrinks_is_compressed() {
        let mut sealer = Sealer::new().unwrap();
        assert_eq!(sealer.seal(b"").unwrap().kind(), BlobKind::Plain);
        assert_eq!(sealer.seal(b"hello\n").unwrap().kind(), BlobKind::Plain);
        let zeros = sealer.seal(&[0; 4096]).unwrap();
        assert_eq!(zeros.kind(), BlobKind::Compressed);
        assert!(zeros.as_bytes().len() < 100);
    }

    #[test]
    fn a_frame_that_grows_beyond_the_index_is_refused() {
        let chunk = Sealer::new().unwrap().seal(&vec![0; 1 << 20]).unwrap().into_bytes();
        let digest = Sealer::digest(&[0; 1 << 20]);
        let mut opener = Opener::new().unwrap();
        assert!(opener.open_chunk(chunk.clone(), &digest, 1 << 10).is_err());
        assert!(matches!(
            opener.open_chunk(chunk.clone(), &digest, 2 << 20),
            Err(OpenError::Length { .. })
        ));
        assert!(opener.open_chunk(chunk.clone(), &digest, 1 << 20).is_ok());
        let other = Sealer::digest(b"other");
        assert!(matches!(opener.open_chunk(chunk, &other, 1 << 20), Err(OpenError::Digest)));
    }

    proptest! {
        #[test]
        fn what_is_sealed_opens_to_the_same(plain in prop::collection::vec(0u8..4, 0..5000)) {
            let mut opener = Opener::new().unwrap();
            let digest = Sealer::digest(&plain);
            let mut sealer = Sealer::new().unwrap();
            let bytes = sealer.seal_chunk(digest, &plain).unwrap().parts().concat();
            prop_assert!(bytes.len() <= plain.len() + 12);
            let blob = sealer.seal(&plain).unwrap();
            prop_assert_eq!(blob.as_bytes(), &bytes[..]);
            prop_assert_eq!(opener.open(blob).unwrap(), plain.clone());
            prop_assert_eq!(opener.open_chunk(bytes, &digest, plain.len() as u64).unwrap(), plain);
        }

        #[test]
        fn arbitrary_bytes_never_panic(payload in prop::collection::vec(any::<u8>(), 12..200)) {
            let blob = Blob::seal(BlobKind::Compressed, payload).unwrap();
            let _ = Opener::new().unwrap().open(blob);
        }
    }
}
