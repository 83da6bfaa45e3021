//! Chunk indexes: which chunks make an archive. Spec: formats.md §5.
//!
//! A file is a header of 4096 bytes and then entries. Readers check form and order of the entries;
//! whether they are the right ones says the checksum in the manifest.

use crate::digest::{ChunkDigest, FileChecksum, RunningChecksum};
use zerocopy::little_endian::{I64, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

pub const HEADER_BYTES: usize = 4096;
pub const DYNAMIC_ENTRY_BYTES: usize = 40;
pub const FIXED_ENTRY_BYTES: usize = 32;
const DYNAMIC_MAGIC: [u8; 8] = [0x1c, 0x91, 0x4e, 0xa5, 0x19, 0xba, 0xb3, 0xcd];
const FIXED_MAGIC: [u8; 8] = [0x2f, 0x7f, 0x41, 0xed, 0x91, 0xfd, 0x0f, 0xcd];
/// Where the checksum lies in either header.
pub const CHECKSUM_OFFSET: u64 = 32;
/// No chunk is larger: a larger claim is meant to fill memory.
const CHUNK_BYTES_MAX: u64 = crate::blob::CHUNK_BYTES_MAX as u64;

/// The header of both kinds; the last two fields are used by fixed indexes only.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct Header {
    magic: [u8; 8],
    uuid: [u8; 16],
    created: I64,
    checksum: [u8; 32],
    size: U64,
    chunk_bytes: U64,
}
const _: () = assert!(size_of::<Header>() == 80);

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct DynamicEntry {
    end: U64,
    digest: [u8; 32],
}
const _: () = assert!(size_of::<DynamicEntry>() == DYNAMIC_ENTRY_BYTES);

/// A stretch of an archive and the chunk that holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkRange {
    pub start: u64,
    pub end: u64,
    pub digest: ChunkDigest,
}

/// Why bytes are no index.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum IndexError {
    #[error("index is too small ({0} bytes)")]
    TooSmall(usize),
    #[error("index has an unknown magic number")]
    Magic,
    #[error("index has {0} bytes of entries, which is no whole number of them")]
    Ragged(usize),
    #[error("index entry {0} does not follow the one before it")]
    Order(usize),
    #[error("index entry {0} claims a chunk of more than 16 MiB")]
    ChunkTooLarge(usize),
    #[error("index says {entries} entries of {chunk_bytes} bytes for an archive of {size} bytes")]
    Count { entries: usize, chunk_bytes: u64, size: u64 },
}

/// A chunk index in memory, as read: about 10 MiB for each TiB of archive.
pub struct Index {
    bytes: Vec<u8>,
    layout: Layout,
}

#[derive(Clone, Copy)]
enum Layout {
    Dynamic,
    Fixed { chunk_bytes: u64, size: u64 },
}

impl Index {
    /// Checks a whole `.didx` file.
    pub fn parse_dynamic(bytes: Vec<u8>) -> Result<Self, IndexError> {
        check_header(&bytes, DYNAMIC_MAGIC)?;
        let index = Self { bytes, layout: Layout::Dynamic };
        let mut previous = 0;
        for (position, entry) in index.dynamic_entries()?.iter().enumerate() {
            let end = entry.end.get();
            if end <= previous {
                return Err(IndexError::Order(position));
            }
            if end - previous > CHUNK_BYTES_MAX {
                return Err(IndexError::ChunkTooLarge(position));
            }
            previous = end;
        }
        Ok(index)
    }

    /// Checks a whole `.fidx` file.
    pub fn parse_fixed(bytes: Vec<u8>) -> Result<Self, IndexError> {
        let header = check_header(&bytes, FIXED_MAGIC)?;
        let (size, chunk_bytes) = (header.size.get(), header.chunk_bytes.get());
        let body = bytes.len() - HEADER_BYTES;
        if !body.is_multiple_of(FIXED_ENTRY_BYTES) {
            return Err(IndexError::Ragged(body));
        }
        let entries = body / FIXED_ENTRY_BYTES;
        let legal = chunk_bytes.is_power_of_two() && chunk_bytes <= CHUNK_BYTES_MAX;
        if !legal || size.div_ceil(chunk_bytes) != entries as u64 {
            return Err(IndexError::Count { entries, chunk_bytes, size });
        }
        Ok(Self { bytes, layout: Layout::Fixed { chunk_bytes, size } })
    }

    fn dynamic_entries(&self) -> Result<&[DynamicEntry], IndexError> {
        let body = &self.bytes[HEADER_BYTES..];
        <[DynamicEntry]>::ref_from_bytes(body).map_err(|_| IndexError::Ragged(body.len()))
    }

    /// Number of chunks.
    pub fn len(&self) -> usize {
        let body = self.bytes.len() - HEADER_BYTES;
        match self.layout {
            Layout::Dynamic => body / DYNAMIC_ENTRY_BYTES,
            Layout::Fixed { .. } => body / FIXED_ENTRY_BYTES,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Length of the archive in bytes.
    pub fn size(&self) -> u64 {
        match self.layout {
            Layout::Dynamic => self.len().checked_sub(1).map_or(0, |last| self.end(last)),
            Layout::Fixed { size, .. } => size,
        }
    }

    fn end(&self, position: usize) -> u64 {
        match self.layout {
            Layout::Dynamic => self
                .dynamic_entries()
                .ok()
                .and_then(|entries| entries.get(position))
                .map_or(0, |entry| entry.end.get()),
            Layout::Fixed { chunk_bytes, size } => {
                (position as u64 + 1).saturating_mul(chunk_bytes).min(size)
            }
        }
    }

    /// The chunk at `position`; none beyond the last.
    pub fn chunk(&self, position: usize) -> Option<ChunkRange> {
        if position >= self.len() {
            return None;
        }
        let start = position.checked_sub(1).map_or(0, |before| self.end(before));
        let digest = match self.layout {
            Layout::Dynamic => self.dynamic_entries().ok()?.get(position)?.digest,
            Layout::Fixed { .. } => {
                let at = HEADER_BYTES + position * FIXED_ENTRY_BYTES;
                *self.bytes.get(at..)?.first_chunk::<32>()?
            }
        };
        let digest = ChunkDigest::from_bytes(digest);
        Some(ChunkRange { start, end: self.end(position), digest })
    }

    pub fn chunks(&self) -> impl Iterator<Item = ChunkRange> + '_ {
        (0..self.len()).filter_map(|position| self.chunk(position))
    }

    /// Position of the chunk that holds this byte of the archive.
    pub fn position_of(&self, offset: u64) -> Option<usize> {
        if offset >= self.size() {
            return None;
        }
        match self.layout {
            Layout::Fixed { chunk_bytes, .. } => usize::try_from(offset / chunk_bytes).ok(),
            Layout::Dynamic => {
                let entries = self.dynamic_entries().ok()?;
                Some(entries.partition_point(|entry| entry.end.get() <= offset))
            }
        }
    }

    /// Over the entries, as the manifest lists it.
    pub fn checksum(&self) -> FileChecksum {
        FileChecksum::of(&self.bytes[HEADER_BYTES..])
    }

    /// What the header says of it; readers go by the manifest instead.
    pub fn stated_checksum(&self) -> FileChecksum {
        let mut stated = [0; 32];
        let at = CHECKSUM_OFFSET as usize;
        stated.copy_from_slice(&self.bytes[at..at + 32]);
        FileChecksum::from_bytes(stated)
    }
}

fn check_header(bytes: &[u8], magic: [u8; 8]) -> Result<&Header, IndexError> {
    if bytes.len() < HEADER_BYTES {
        return Err(IndexError::TooSmall(bytes.len()));
    }
    let (header, _) =
        Header::ref_from_prefix(bytes).map_err(|_| IndexError::TooSmall(bytes.len()))?;
    if header.magic != magic { Err(IndexError::Magic) } else { Ok(header) }
}

/// Makes an index: first the header, then each entry, at last the checksum for the header.
pub struct IndexEncoder {
    layout: EncoderLayout,
    checksum: RunningChecksum,
    size: u64,
    count: u64,
}

enum EncoderLayout {
    Dynamic,
    Fixed { chunk_bytes: u64 },
}

/// Why a chunk can't follow in a fixed index.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a chunk of {given} bytes can't follow in an index of chunks of {chunk_bytes} bytes")]
pub struct AppendError {
    given: u64,
    chunk_bytes: u64,
}

impl IndexEncoder {
    pub fn dynamic() -> Self {
        Self::with(EncoderLayout::Dynamic)
    }

    /// `chunk_bytes` is a power of two.
    pub fn fixed(chunk_bytes: u32) -> Self {
        Self::with(EncoderLayout::Fixed { chunk_bytes: chunk_bytes.into() })
    }

    fn with(layout: EncoderLayout) -> Self {
        Self { layout, checksum: RunningChecksum::default(), size: 0, count: 0 }
    }

    /// The header as it is now: right in all but the checksum until [`Self::finish`].
    pub fn header(&self, uuid: [u8; 16], created: i64, checksum: &FileChecksum) -> Vec<u8> {
        let (magic, size, chunk_bytes) = match self.layout {
            EncoderLayout::Dynamic => (DYNAMIC_MAGIC, 0, 0),
            EncoderLayout::Fixed { chunk_bytes } => (FIXED_MAGIC, self.size, chunk_bytes),
        };
        let header = Header {
            magic,
            uuid,
            created: created.into(),
            checksum: *checksum.as_bytes(),
            size: size.into(),
            chunk_bytes: chunk_bytes.into(),
        };
        let mut bytes = header.as_bytes().to_vec();
        bytes.resize(HEADER_BYTES, 0);
        bytes
    }

    /// Bytes of the entry of the next chunk, which holds `length` bytes.
    pub fn append(&mut self, digest: &ChunkDigest, length: u64) -> Result<Vec<u8>, AppendError> {
        let digest = *digest.as_bytes();
        let bytes = match self.layout {
            EncoderLayout::Dynamic => {
                let end = self.size + length;
                DynamicEntry { end: end.into(), digest }.as_bytes().to_vec()
            }
            EncoderLayout::Fixed { chunk_bytes } => {
                // Only the last chunk may be short.
                if length > chunk_bytes || !self.size.is_multiple_of(chunk_bytes) {
                    return Err(AppendError { given: length, chunk_bytes });
                }
                digest.to_vec()
            }
        };
        self.size += length;
        self.count += 1;
        self.checksum.update(&bytes);
        Ok(bytes)
    }

    /// Length of the archive so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Number of chunks so far.
    pub fn count(&self) -> u64 {
        self.count
    }

    pub fn checksum(&self) -> FileChecksum {
        self.checksum.clone().finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELLO: &str = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";

    fn encoded(mut encoder: IndexEncoder, lengths: &[u64]) -> (Vec<u8>, FileChecksum) {
        let digest = HELLO.parse().unwrap();
        let entries: Vec<u8> =
            lengths.iter().flat_map(|length| encoder.append(&digest, *length).unwrap()).collect();
        let checksum = encoder.checksum();
        let mut bytes = encoder.header([7; 16], 1_700_000_000, &checksum);
        bytes.extend(entries);
        (bytes, checksum)
    }

    #[test]
    fn dynamic_index_bytes_never_change() {
        let (bytes, checksum) = encoded(IndexEncoder::dynamic(), &[6, 6]);
        let expected = "b4712363196151367ce0d799376687442ba41154633497db1d820f66bd2aba29";
        assert_eq!(checksum.to_string(), expected);
        assert_eq!(
            hex::encode(&bytes[..32]),
            "1c914ea519bab3cd07070707070707070707070707070707\
             00f1536500000000"
        );
        assert_eq!(hex::encode(&bytes[4096..4104]), "0600000000000000");
        assert_eq!(hex::encode(&bytes[4136..4144]), "0c00000000000000");
        let index = Index::parse_dynamic(bytes.clone()).unwrap();
        assert_eq!((index.len(), index.size(), index.checksum()), (2, 12, checksum));
        assert_eq!(index.position_of(5), Some(0));
        assert_eq!(index.position_of(6), Some(1));
        assert_eq!(index.position_of(12), None);
        assert!(matches!(
            Index::parse_dynamic(bytes[..bytes.len() - 1].to_vec()),
            Err(IndexError::Ragged(79))
        ));
        assert!(matches!(Index::parse_fixed(bytes), Err(IndexError::Magic)));
    }

    #[test]
    fn fixed_index_bytes_never_change() {
        let (bytes, checksum) = encoded(IndexEncoder::fixed(8), &[8, 6]);
        let expected = "1cfae540ea49bccd13b2aba8136c3e9dd2d26b974915c190ec3440fc3a16d35e";
        assert_eq!(checksum.to_string(), expected);
        assert_eq!(hex::encode(&bytes[64..80]), "0e000000000000000800000000000000");
        let index = Index::parse_fixed(bytes.clone()).unwrap();
        assert_eq!((index.len(), index.size()), (2, 14));
        let last = index.chunk(1).unwrap();
        assert_eq!((last.start, last.end), (8, 14));
        assert!(Index::parse_fixed(bytes[..bytes.len() - 32].to_vec()).is_err());
    }

    #[test]
    fn impossible_indexes_are_refused() {
        let order = encoded(IndexEncoder::dynamic(), &[6, 0]).0;
        assert!(matches!(Index::parse_dynamic(order), Err(IndexError::Order(1))));
        let huge = encoded(IndexEncoder::dynamic(), &[6, 1 << 40]).0;
        assert!(matches!(Index::parse_dynamic(huge), Err(IndexError::ChunkTooLarge(1))));
        assert!(matches!(Index::parse_dynamic(vec![0; 99]), Err(IndexError::TooSmall(99))));
        let digest = HELLO.parse().unwrap();
        let mut fixed = IndexEncoder::fixed(8);
        fixed.append(&digest, 6).unwrap();
        assert!(fixed.append(&digest, 8).is_err());
    }

    proptest::proptest! {
        #[test]
        fn entries_read_as_they_were_written(lengths in proptest::collection::vec(1u64..9, 1..60)) {
            let index = Index::parse_dynamic(encoded(IndexEncoder::dynamic(), &lengths).0).unwrap();
            let read: Vec<u64> = index.chunks().map(|chunk| chunk.end - chunk.start).collect();
            proptest::prop_assert_eq!(&read, &lengths);
            for offset in 0..index.size() {
                let chunk = index.chunk(index.position_of(offset).unwrap()).unwrap();
                proptest::prop_assert!(chunk.start <= offset && offset < chunk.end);
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(tail in proptest::collection::vec(0u8.., 0..200)) {
            for magic in [DYNAMIC_MAGIC, FIXED_MAGIC] {
                let mut bytes = vec![0; HEADER_BYTES];
                bytes[..8].copy_from_slice(&magic);
                bytes.extend(&tail);
                let parsed = [Index::parse_dynamic(bytes.clone()), Index::parse_fixed(bytes)];
                for index in parsed.into_iter().flatten() {
                    let _ = (index.chunks().count(), index.checksum(), index.size());
                }
            }
        }
    }
}
