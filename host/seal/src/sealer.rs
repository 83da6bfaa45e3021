//! Seals chunks and blobs, and opens them. Spec: formats.md §2.

use crate::key::{EncryptionKey, IV_BYTES, NotAuthentic, TAG_BYTES};
use keepwell_model::blob::{
    BLOB_BYTES_MAX, BlobError, CHUNK_BYTES_MAX, ENCRYPTED_HEADER_BYTES, HEADER_BYTES,
};
use keepwell_model::{Blob, BlobKind, ChunkDigest, SealedChunk};
use sha2::{Digest, Sha256};
use std::io;
use std::ops::Deref;
use zstd::bulk::{Compressor, Decompressor};

/// The reference's level: frames of any level can be read.
const LEVEL: i32 = 1;

/// Why bytes can't be sealed.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    #[error("{0} bytes are too many for a blob: 128 MiB are allowed")]
    TooLarge(usize),
    #[error("encryption failed")]
    Encrypt(#[from] NotAuthentic),
    #[error("compression failed")]
    Compress(#[source] io::Error),
    #[error(transparent)]
    Blob(#[from] BlobError),
}

/// Why a blob can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("it is encrypted, and no key was given")]
    MissingKey,
    #[error("it is encrypted, but its archive is not")]
    Encrypted,
    #[error("it is not encrypted, but its archive is")]
    NotEncrypted,
    #[error(transparent)]
    NotAuthentic(#[from] NotAuthentic),
    #[error("decompression failed")]
    Decompress(#[source] io::Error),
    #[error("its content does not match its digest")]
    Digest,
    #[error("it holds {found} bytes instead of {expected}")]
    Length { expected: u64, found: u64 },
    #[error(transparent)]
    Blob(#[from] BlobError),
}

/// Vector and tag, which follow magic and checksum of what is encrypted.
const AUTHENTICATION_BYTES: usize = ENCRYPTED_HEADER_BYTES - HEADER_BYTES;

/// Seals. Holds a compressor and a buffer: make one for each thread and keep it.
pub struct Sealer {
    compressor: Compressor<'static>,
    /// room for vector and tag, then what was compressed or encrypted
    scratch: Vec<u8>,
}

impl Sealer {
    pub fn new() -> Result<Self, SealError> {
        let compressor = Compressor::new(LEVEL).map_err(SealError::Compress)?;
        Ok(Self { compressor, scratch: Vec::new() })
    }

    /// The name of a chunk, which depends on the key that encrypts it.
    pub fn digest(plain: &[u8], key: Option<&EncryptionKey>) -> ChunkDigest {
        match key {
            Some(key) => key.digest(plain),
            None => ChunkDigest::from_bytes(Sha256::digest(plain).into()),
        }
    }

    /// Seals a chunk whose digest is known already. Nothing is copied: the payload lies in `plain`
    /// or in this sealer.
    pub fn seal_chunk<'a>(
        &'a mut self,
        digest: ChunkDigest,
        plain: &'a [u8],
        key: Option<&EncryptionKey>,
    ) -> Result<SealedChunk<'a>, SealError> {
        let (kind, payload) = self.pack(plain, key)?;
        Ok(SealedChunk::new(digest, plain.len() as u64, kind, payload))
    }

    pub fn seal(&mut self, plain: &[u8], key: Option<&EncryptionKey>) -> Result<Blob, SealError> {
        let (kind, payload) = self.pack(plain, key)?;
        let mut bytes = vec![0; HEADER_BYTES];
        bytes.extend_from_slice(payload);
        Ok(Blob::seal(kind, bytes)?)
    }

    /// Compresses, keeps the result when it is smaller, and encrypts it.
    fn pack<'a>(
        &'a mut self,
        plain: &'a [u8],
        key: Option<&EncryptionKey>,
    ) -> Result<(BlobKind, &'a [u8]), SealError> {
        if plain.len() > BLOB_BYTES_MAX {
            return Err(SealError::TooLarge(plain.len()));
        }
        let needed = AUTHENTICATION_BYTES + plain.len();
        if self.scratch.len() < needed {
            self.scratch.resize(needed, 0);
        }
        let (front, room) = self.scratch[..needed].split_at_mut(AUTHENTICATION_BYTES);
        // Room for one byte less than the plain size: what does not fit is not wanted.
        let less = plain.len().saturating_sub(1);
        let compressed = self.compressor.compress_to_buffer(plain, &mut room[..less]).ok();
        let (kind, length, (iv, tag)) = match (compressed, key.map(EncryptionKey::cipher)) {
            (None, None) => return Ok((BlobKind::Plain, plain)),
            (Some(length), None) => {
                let end = AUTHENTICATION_BYTES + length;
                return Ok((BlobKind::Compressed, &self.scratch[AUTHENTICATION_BYTES..end]));
            }
            (Some(length), Some(cipher)) => {
                let sealed = cipher.encrypt_in_place(&mut room[..length])?;
                (BlobKind::CompressedEncrypted, length, sealed)
            }
            (None, Some(cipher)) => {
                (BlobKind::Encrypted, plain.len(), cipher.encrypt(plain, room)?)
            }
        };
        front[..IV_BYTES].copy_from_slice(&iv);
        front[IV_BYTES..].copy_from_slice(&tag);
        Ok((kind, &self.scratch[..AUTHENTICATION_BYTES + length]))
    }
}

/// What was sealed. Where it was not compressed, it lies behind its envelope: moving it to the front would
/// be a copy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plaintext {
    bytes: Vec<u8>,
    start: usize,
}

impl Deref for Plaintext {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes.get(self.start..).unwrap_or_default()
    }
}

impl From<Vec<u8>> for Plaintext {
    fn from(bytes: Vec<u8>) -> Self {
        Self { bytes, start: 0 }
    }
}

impl From<Plaintext> for Vec<u8> {
    fn from(plain: Plaintext) -> Self {
        let mut bytes = plain.bytes;
        bytes.drain(..plain.start.min(bytes.len()));
        bytes
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

    /// Opens a chunk and checks that it is the one asked for. With a key it must be encrypted,
    /// without one it must not: no other form has this digest.
    pub fn open_chunk(
        &mut self,
        bytes: Vec<u8>,
        digest: &ChunkDigest,
        length: u64,
        key: Option<&EncryptionKey>,
    ) -> Result<Plaintext, OpenError> {
        let blob = Blob::parse(bytes)?;
        match (blob.kind().is_encrypted(), key) {
            (true, None) => return Err(OpenError::Encrypted),
            (false, Some(_)) => return Err(OpenError::NotEncrypted),
            _ => {}
        }
        let limit = usize::try_from(length).unwrap_or(usize::MAX);
        let plain = self.unpack(blob, key, |_| limit)?;
        if plain.len() as u64 != length {
            return Err(OpenError::Length { expected: length, found: plain.len() as u64 });
        }
        if Sealer::digest(&plain, key) != *digest {
            return Err(OpenError::Digest);
        }
        Ok(plain)
    }

    /// Whether a chunk in the clear holds what its name and length say. Spec: protocol.md §4.3.
    pub fn check_plain_chunk(
        &mut self,
        bytes: &[u8],
        digest: &ChunkDigest,
        length: u64,
    ) -> Result<(), OpenError> {
        let kind = BlobKind::of_magic(bytes).ok_or(BlobError::Magic)?;
        if kind.is_encrypted() {
            return Err(OpenError::Encrypted);
        }
        let content = bytes.get(HEADER_BYTES..).ok_or(BlobError::TooSmall(bytes.len()))?;
        let unpacked;
        let plain = match kind.is_compressed() {
            false => content,
            true => {
                let stated = zstd::zstd_safe::get_frame_content_size(content).ok().flatten();
                if let Some(found) = stated.filter(|stated| *stated != length) {
                    return Err(OpenError::Length { expected: length, found });
                }
                let limit = usize::try_from(length).unwrap_or(0).min(CHUNK_BYTES_MAX);
                let outcome = self.decompressor.decompress(content, limit);
                unpacked = outcome.map_err(OpenError::Decompress)?;
                &unpacked
            }
        };
        if plain.len() as u64 != length {
            return Err(OpenError::Length { expected: length, found: plain.len() as u64 });
        }
        match Sealer::digest(plain, None) == *digest {
            true => Ok(()),
            false => Err(OpenError::Digest),
        }
    }

    /// Opens a blob of any content, encrypted or not.
    pub fn open(&mut self, blob: Blob, key: Option<&EncryptionKey>) -> Result<Vec<u8>, OpenError> {
        let stated_size = |frame: &[u8]| {
            let size = zstd::zstd_safe::get_frame_content_size(frame).ok().flatten();
            size.and_then(|size| usize::try_from(size).ok()).unwrap_or(BLOB_BYTES_MAX)
        };
        Ok(self.unpack(blob, key, stated_size)?.into())
    }

    /// `limit` says how long the content of a frame may be.
    fn unpack(
        &mut self,
        blob: Blob,
        key: Option<&EncryptionKey>,
        limit: impl Fn(&[u8]) -> usize,
    ) -> Result<Plaintext, OpenError> {
        let kind = blob.kind();
        let mut bytes = blob.into_bytes();
        if kind.is_encrypted() {
            let key = key.ok_or(OpenError::MissingKey)?;
            let (header, sealed) = bytes.split_at_mut(ENCRYPTED_HEADER_BYTES);
            let (mut iv, mut tag) = ([0; IV_BYTES], [0; TAG_BYTES]);
            iv.copy_from_slice(&header[HEADER_BYTES..HEADER_BYTES + IV_BYTES]);
            tag.copy_from_slice(&header[HEADER_BYTES + IV_BYTES..]);
            key.cipher().decrypt(iv, tag, sealed)?;
        }
        if !kind.is_compressed() {
            return Ok(Plaintext { bytes, start: kind.header_bytes() });
        }
        let frame = &bytes[kind.header_bytes()..];
        let limit = limit(frame).min(BLOB_BYTES_MAX);
        let plain = self.decompressor.decompress(frame, limit).map_err(OpenError::Decompress)?;
        Ok(plain.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::tests::counting_key;
    use proptest::prelude::*;

    #[test]
    fn four_mebibytes_of_zeros_have_the_known_digest() {
        let expected = "bb9f8df61474d25e71fa00722318cd387396ca1736605e1248821cc0de3d3af8";
        assert_eq!(Sealer::digest(&vec![0; 4 << 20], None).to_string(), expected);
    }

    #[test]
    fn what_lies_behind_an_envelope_is_what_was_sealed() {
        for plain in [&b"hello"[..], b""] {
            let blob = Sealer::new().unwrap().seal(plain, None).unwrap();
            let opened = Opener::new().unwrap().unpack(blob, None, |_| 0).unwrap();
            assert_eq!(&opened[..], plain);
            assert_eq!(Vec::from(opened), plain);
        }
        assert_eq!(Vec::from(Plaintext::from(b"x".to_vec())), b"x");
    }

    #[test]
    fn only_what_shrinks_is_compressed() {
        let mut sealer = Sealer::new().unwrap();
        assert_eq!(sealer.seal(b"", None).unwrap().kind(), BlobKind::Plain);
        assert_eq!(sealer.seal(b"hello\n", None).unwrap().kind(), BlobKind::Plain);
        let zeros = sealer.seal(&[0; 4096], None).unwrap();
        assert_eq!(zeros.kind(), BlobKind::Compressed);
        assert!(zeros.as_bytes().len() < 100);
    }

    #[test]
    fn a_frame_that_grows_beyond_the_index_is_refused() {
        let chunk = Sealer::new().unwrap().seal(&vec![0; 1 << 20], None).unwrap().into_bytes();
        let digest = Sealer::digest(&[0; 1 << 20], None);
        let mut opener = Opener::new().unwrap();
        assert!(opener.open_chunk(chunk.clone(), &digest, 1 << 10, None).is_err());
        assert!(matches!(
            opener.open_chunk(chunk.clone(), &digest, 2 << 20, None),
            Err(OpenError::Length { .. })
        ));
        assert!(opener.open_chunk(chunk.clone(), &digest, 1 << 20, None).is_ok());
        let other = Sealer::digest(b"other", None);
        assert!(matches!(opener.open_chunk(chunk, &other, 1 << 20, None), Err(OpenError::Digest)));
    }

    #[test]
    fn encrypted_blobs_are_those_of_the_specification() {
        let text = "7b6785be222d4cf0c6d287bea0a1a2a3a4a5a6a7a8a9aaabacadaeaf\
                    bb08da3d8e1eadcf858337a645d9d07742c64fd077c7";
        let blob = || Blob::parse(hex::decode(text).unwrap()).unwrap();
        let mut opener = Opener::new().unwrap();
        assert_eq!(opener.open(blob(), Some(&counting_key())).unwrap(), b"hello\n");
        assert!(matches!(opener.open(blob(), None), Err(OpenError::MissingKey)));
        let other = EncryptionKey::generate();
        assert!(matches!(opener.open(blob(), Some(&other)), Err(OpenError::NotAuthentic(_))));
    }

    #[test]
    fn a_chunk_must_have_the_form_of_its_archive() {
        let (mut sealer, mut opener) = (Sealer::new().unwrap(), Opener::new().unwrap());
        let key = counting_key();
        let mut chunk = |key: Option<&EncryptionKey>| {
            let digest = Sealer::digest(b"data", key);
            (digest, sealer.seal_chunk(digest, b"data", key).unwrap().parts().concat())
        };
        let (plain_digest, plain) = chunk(None);
        let (digest, encrypted) = chunk(Some(&key));
        assert_ne!(plain_digest, digest);
        let mut open =
            |bytes: &[u8], digest, key| opener.open_chunk(bytes.to_vec(), digest, 4, key);
        assert!(matches!(open(&plain, &digest, Some(&key)), Err(OpenError::NotEncrypted)));
        assert!(matches!(open(&encrypted, &plain_digest, None), Err(OpenError::Encrypted)));
        assert!(matches!(open(&encrypted, &plain_digest, Some(&key)), Err(OpenError::Digest)));
        assert_eq!(&open(&encrypted, &digest, Some(&key)).unwrap()[..], b"data");
        for at in 0..encrypted.len() * 8 {
            let mut bad = encrypted.clone();
            bad[at / 8] ^= 1 << (at % 8);
            assert!(open(&bad, &digest, Some(&key)).is_err(), "bit {at}");
        }
    }

    proptest! {
        #[test]
        fn what_is_sealed_opens_to_the_same(
            plain in prop::collection::vec(0u8..4, 0..5000),
            secret in any::<bool>(),
        ) {
            let key = secret.then(counting_key);
            let key = key.as_ref();
            let mut opener = Opener::new().unwrap();
            let digest = Sealer::digest(&plain, key);
            let mut sealer = Sealer::new().unwrap();
            let bytes = sealer.seal_chunk(digest, &plain, key).unwrap().parts().concat();
            let header = if secret { 44 } else { 12 };
            prop_assert!(bytes.len() <= plain.len() + header);
            let blob = sealer.seal(&plain, key).unwrap();
            prop_assert_eq!(blob.as_bytes() == &bytes[..], !secret, "each vector is new");
            prop_assert_eq!(blob.kind().is_encrypted(), secret);
            prop_assert_eq!(opener.open(blob, key).unwrap(), plain.clone());
            let opened = opener.open_chunk(bytes, &digest, plain.len() as u64, key);
            prop_assert_eq!(&opened.unwrap()[..], &plain[..]);
        }

        #[test]
        fn arbitrary_bytes_never_panic(payload in prop::collection::vec(any::<u8>(), 44..200)) {
            for kind in [BlobKind::Compressed, BlobKind::CompressedEncrypted] {
                let blob = Blob::seal(kind, payload.clone()).unwrap();
                let _ = Opener::new().unwrap().open(blob, Some(&counting_key()));
            }
        }
    }
}
