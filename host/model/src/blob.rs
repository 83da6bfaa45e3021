//! The envelope of chunks and small files: magic, CRC, payload. Spec: formats.md §1, §2.
//!
//! This module knows the form, not what is in it: compression and encryption are `seal`'s.

/// Most bytes a chunk may hold before it is sealed.
pub const CHUNK_BYTES_MAX: usize = 16 << 20;
/// Most bytes any blob may hold before it is sealed.
pub const BLOB_BYTES_MAX: usize = 128 << 20;
/// Magic and CRC.
pub const HEADER_BYTES: usize = 12;
/// Magic, CRC, initialisation vector and tag.
pub const ENCRYPTED_HEADER_BYTES: usize = 44;

/// What the payload is, told by the magic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlobKind {
    Plain,
    Compressed,
    Encrypted,
    CompressedEncrypted,
}

impl BlobKind {
    const ALL: [Self; 4] =
        [Self::Plain, Self::Compressed, Self::Encrypted, Self::CompressedEncrypted];

    /// First 8 bytes of SHA-256 over a label: formats.md §1.
    pub const fn magic(self) -> [u8; 8] {
        match self {
            Self::Plain => [0x42, 0xab, 0x38, 0x07, 0xbe, 0x83, 0x70, 0xa1],
            Self::Compressed => [0x31, 0xb9, 0x58, 0x42, 0x6f, 0xb6, 0xa3, 0x7f],
            Self::Encrypted => [0x7b, 0x67, 0x85, 0xbe, 0x22, 0x2d, 0x4c, 0xf0],
            Self::CompressedEncrypted => [0xe6, 0x59, 0x1b, 0xbf, 0x0b, 0xbf, 0xd8, 0x0b],
        }
    }

    pub const fn header_bytes(self) -> usize {
        if self.is_encrypted() { ENCRYPTED_HEADER_BYTES } else { HEADER_BYTES }
    }

    pub const fn is_encrypted(self) -> bool {
        matches!(self, Self::Encrypted | Self::CompressedEncrypted)
    }

    pub const fn is_compressed(self) -> bool {
        matches!(self, Self::Compressed | Self::CompressedEncrypted)
    }

    /// The kind of a file that begins with these bytes.
    pub fn of_magic(bytes: &[u8]) -> Option<Self> {
        let magic = bytes.first_chunk::<8>()?;
        Self::ALL.into_iter().find(|kind| kind.magic() == *magic)
    }
}

/// An envelope whose form and CRC are right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob {
    kind: BlobKind,
    bytes: Vec<u8>,
}

/// Why bytes are no blob.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BlobError {
    #[error("blob too small ({0} bytes)")]
    TooSmall(usize),
    #[error("blob too large ({0} bytes)")]
    TooLarge(usize),
    #[error("blob has an unknown magic number")]
    Magic,
    #[error("blob has a wrong checksum")]
    Checksum,
}

impl Blob {
    /// Checks form and CRC of a file as read.
    pub fn parse(bytes: Vec<u8>) -> Result<Self, BlobError> {
        if bytes.len() < HEADER_BYTES {
            return Err(BlobError::TooSmall(bytes.len()));
        }
        let kind = BlobKind::of_magic(&bytes).ok_or(BlobError::Magic)?;
        if bytes.len() < kind.header_bytes() {
            return Err(BlobError::TooSmall(bytes.len()));
        }
        if bytes.len() > BLOB_BYTES_MAX + ENCRYPTED_HEADER_BYTES {
            return Err(BlobError::TooLarge(bytes.len()));
        }
        let stored = u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
        if crc32fast::hash(&bytes[kind.header_bytes()..]) != stored {
            return Err(BlobError::Checksum);
        }
        Ok(Self { kind, bytes })
    }

    /// Completes an envelope: `bytes` has room for the header in front of the payload. For
    /// encrypted kinds, vector and tag are there already.
    pub fn seal(kind: BlobKind, mut bytes: Vec<u8>) -> Result<Self, BlobError> {
        if bytes.len() < kind.header_bytes() {
            return Err(BlobError::TooSmall(bytes.len()));
        }
        let checksum = crc32fast::hash(&bytes[kind.header_bytes()..]);
        bytes[..8].copy_from_slice(&kind.magic());
        bytes[8..12].copy_from_slice(&checksum.to_le_bytes());
        Ok(Self { kind, bytes })
    }

    pub fn kind(&self) -> BlobKind {
        self.kind
    }

    /// The whole file.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub fn payload(&self) -> &[u8] {
        &self.bytes[self.kind.header_bytes()..]
    }

    /// The payload without a copy of it.
    pub fn into_payload(mut self) -> Vec<u8> {
        self.bytes.drain(..self.kind.header_bytes());
        self.bytes
    }

    /// The file's bytes, to be used again as a buffer.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest, Sha256};

    fn hello() -> Vec<u8> {
        let mut bytes = vec![0; HEADER_BYTES];
        bytes.extend(b"hello\n");
        bytes
    }

    #[test]
    fn blob_bytes_never_change() {
        let blob = Blob::seal(BlobKind::Plain, hello()).unwrap();
        let expected = "42ab3807be8370a120303a3668656c6c6f0a";
        assert_eq!(hex::encode(blob.as_bytes()), expected);
        assert_eq!(Blob::parse(hex::decode(expected).unwrap()).unwrap().payload(), b"hello\n");
        let empty = Blob::seal(BlobKind::Plain, vec![0; 12]).unwrap();
        assert_eq!(hex::encode(empty.as_bytes()), "42ab3807be8370a100000000");
    }

    #[test]
    fn magics_are_derived_from_their_labels() {
        let labels = [
            "Proxmox Backup uncompressed blob v1.0",
            "Proxmox Backup zstd compressed blob v1.0",
            "Proxmox Backup encrypted blob v1.0",
            "Proxmox Backup zstd compressed encrypted blob v1.0",
        ];
        for (kind, label) in BlobKind::ALL.into_iter().zip(labels) {
            assert_eq!(kind.magic(), Sha256::digest(label)[..8]);
        }
    }

    #[test]
    fn the_checksum_leaves_vector_and_tag_out() {
        let text = "7b6785be222d4cf0c6d287bea0a1a2a3a4a5a6a7a8a9aaabacadaeaf\
                    bb08da3d8e1eadcf858337a645d9d07742c64fd077c7";
        let blob = Blob::parse(hex::decode(text).unwrap()).unwrap();
        assert_eq!((blob.kind(), blob.payload().len()), (BlobKind::Encrypted, 6));
    }

    #[test]
    fn damage_is_noticed() {
        let good = Blob::seal(BlobKind::Compressed, hello()).unwrap().into_bytes();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(Blob::parse(bad).is_err(), "byte {at}");
            assert!(Blob::parse(good[..at].to_vec()).is_err(), "cut at {at}");
        }
    }
}
