//! Content of the previous archive, taken again without being read: chunks that hold it go into the new
//! index as they are. Also hands that archive to the source, which finds out what is unchanged.
//!
//! What surrounds wanted bytes in their chunks comes with them, as padding that nobody reads.

use crate::archive::{ChunkedArchive, RandomAccess};
use crate::error::Result;
use crate::pipeline::MadeUp;
use crate::plugin::{Extent, Failure};
use crate::restore::chain;
use keepwell_model::manifest::ManifestFile;
use keepwell_model::{ArchiveName, Index, Manifest, StoredChunk};
use keepwell_seal::EncryptionKey;
use keepwell_store::{ChunkStore, SnapshotReader};
use serde_json::{Map, Value, json};
use std::sync::{Arc, Mutex, PoisonError};

/// Padding is worth less than so many times its bytes: more than a tenth is not taken.
const PADDING_SHARE: u64 = 10;

/// What can be taken again for one stream.
pub(crate) struct Reusable {
    pub(crate) index: Arc<Index>,
    pub(crate) chunks: Arc<dyn ChunkStore>,
    /// what is no content, whatever the metadata says
    pub(crate) made_up: Vec<MadeUp>,
}

/// Where a manifest tells of stretches that are zeros because a file could not be read.
const MADE_UP: &str = "keepwell-made-up";
/// More are told as if all were.
const MADE_UP_MAX: usize = 1000;

/// Notes what of a file must not be taken again.
pub(crate) fn note_made_up(manifest: &mut Manifest, name: &ArchiveName, made_up: &[MadeUp]) {
    let all = [(0, u64::MAX)];
    let told = if made_up.len() > MADE_UP_MAX { &all[..] } else { made_up };
    let slot = manifest.unprotected.entry(MADE_UP).or_insert_with(|| Value::Object(Map::new()));
    if let Value::Object(files) = slot {
        files.insert(name.to_string(), json!(told));
    }
}

/// What of a file must not be taken again. What can't be understood is all of it.
pub(crate) fn made_up_of(manifest: &Manifest, name: &ArchiveName) -> Vec<MadeUp> {
    let told = manifest.unprotected.get(MADE_UP).and_then(|files| files.get(name.as_str()));
    match told {
        None => Vec::new(),
        Some(told) => serde_json::from_value(told.clone()).unwrap_or(vec![(0, u64::MAX)]),
    }
}

/// The last chunk that was taken, as long as nothing was put behind it: its place in the previous
/// archive, and where it begins now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tail {
    pub(crate) chunk: usize,
    pub(crate) start: u64,
}

/// What a stream has taken so far, and how much of that is wanted: in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Balance {
    pub(crate) taken: u64,
    pub(crate) wanted: u64,
}

impl Balance {
    pub(crate) fn add(&mut self, taken: u64, wanted: u64) {
        self.taken = self.taken.saturating_add(taken);
        self.wanted = self.wanted.saturating_add(wanted);
    }

    fn is_padded(self) -> bool {
        self.taken.saturating_sub(self.wanted).saturating_mul(PADDING_SHARE) > self.taken
    }
}

/// What is put into the stream, where the wanted bytes lie then, and its new tail.
#[derive(Debug)]
pub(crate) struct Reuse {
    pub(crate) chunks: Vec<StoredChunk>,
    pub(crate) at: u64,
    pub(crate) tail: Tail,
}

impl Reusable {
    /// None where the chunks are not there any more, or hold too much else. `position` is the
    /// stream's length so far; `continues` says that what lies behind will be wanted next. How much of it is not
    /// known, so chunks are taken on trust only as long as the stream has little padding so far.
    pub(crate) fn take(
        &self,
        wanted: Extent,
        position: u64,
        tail: Option<Tail>,
        continues: bool,
        mut balance: Balance,
    ) -> std::result::Result<Option<Reuse>, Failure> {
        let Some(end) = wanted.offset.checked_add(wanted.length).filter(|_| wanted.length > 0)
        else {
            return Ok(None);
        };
        let is_made_up =
            |(from, length): &MadeUp| *from < end && wanted.offset < from.saturating_add(*length);
        if self.made_up.iter().any(is_made_up) {
            return Ok(None);
        }
        let (Some(first), Some(last)) =
            (self.index.position_of(wanted.offset), self.index.position_of(end - 1))
        else {
            return Ok(None);
        };
        let tail = tail.filter(|tail| tail.chunk == first);
        let range = |at| self.index.chunk(at).ok_or_else(|| Failure::Other("no such chunk".into()));
        let from = if tail.is_some() { first + 1 } else { first };
        let (mut taken, mut useful) = (0, 0);
        for at in from..=last {
            let chunk = range(at)?;
            let used_to = if continues && at == last { chunk.end } else { chunk.end.min(end) };
            taken += chunk.end - chunk.start;
            useful += used_to - chunk.start.max(wanted.offset);
        }
        balance.add(taken, wanted.length);
        let here = Balance { taken, wanted: useful };
        if here.is_padded() || (continues && balance.is_padded()) {
            return Ok(None);
        }
        let mut chunks = Vec::with_capacity(last + 1 - from);
        for at in from..=last {
            let chunk = range(at)?;
            let touched = self.chunks.touch(&chunk.digest, chunk.end - chunk.start);
            match touched.map_err(|error| Failure::Io(chain(&error)))? {
                Some(stored) => chunks.push(stored),
                // What is gone has to be stored again.
                None => return Ok(None),
            }
        }
        let start = tail.map_or(position, |tail| tail.start);
        let at = start + (wanted.offset - range(first)?.start);
        let last_bytes = range(last)?.end - range(last)?.start;
        let tail = match (tail, last == first) {
            (Some(tail), true) => tail,
            _ => Tail { chunk: last, start: position + taken - last_bytes },
        };
        Ok(Some(Reuse { chunks, at, tail }))
    }
}

/// Opens the previous snapshot for reading.
pub type OpenSnapshot = Box<dyn Fn() -> Result<Arc<dyn SnapshotReader>> + Send + Sync>;

/// The previous snapshot, opened when it is first read.
struct LazySnapshot {
    open: OpenSnapshot,
    reader: Mutex<Option<Arc<dyn SnapshotReader>>>,
}

impl LazySnapshot {
    fn reader(&self) -> Result<Arc<dyn SnapshotReader>> {
        let mut reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        match &*reader {
            Some(reader) => Ok(reader.clone()),
            None => Ok(reader.insert((self.open)()?).clone()),
        }
    }
}

/// A stream of the previous archive, opened when it is first read.
struct LazyStream {
    snapshot: Arc<LazySnapshot>,
    file: ManifestFile,
    key: Option<Arc<EncryptionKey>>,
    archive: Mutex<Option<Arc<ChunkedArchive>>>,
}

impl LazyStream {
    fn archive(&self) -> Result<Arc<ChunkedArchive>> {
        let mut archive = self.archive.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(archive) = &*archive {
            return Ok(archive.clone());
        }
        let opened = ChunkedArchive::open(self.snapshot.reader()?, &self.file, self.key.as_ref())?;
        let opened = Arc::new(opened);
        opened.read_ahead();
        Ok(archive.insert(opened).clone())
    }
}

impl RandomAccess for LazyStream {
    fn size(&self) -> Option<u64> {
        Some(self.file.size)
    }

    fn read_at(&self, offset: u64, length: u32) -> std::result::Result<Vec<u8>, Failure> {
        let archive = self.archive().map_err(|error| Failure::Io(chain(&error)))?;
        archive.read_at(offset, length)
    }
}

/// The streams of the previous archive for a source; nothing is read before the source does.
pub fn previous_streams(
    files: Vec<ManifestFile>,
    key: Option<&Arc<EncryptionKey>>,
    open: OpenSnapshot,
) -> Vec<Arc<dyn RandomAccess>> {
    let snapshot = Arc::new(LazySnapshot { open, reader: Mutex::default() });
    let stream = |file| {
        let (snapshot, key) = (snapshot.clone(), key.cloned());
        Arc::new(LazyStream { snapshot, file, key, archive: Mutex::default() })
            as Arc<dyn RandomAccess>
    };
    files.into_iter().map(stream).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use keepwell_model::index::IndexEncoder;
    use keepwell_model::{ChunkDigest, FileChecksum, SealedChunk};

    /// Has all chunks but one.
    struct Without(Option<ChunkDigest>);

    impl ChunkStore for Without {
        fn insert(&self, _: &SealedChunk<'_>) -> keepwell_store::Result<StoredChunk> {
            unreachable!("what is taken again is not stored")
        }
        fn touch(
            &self,
            digest: &ChunkDigest,
            plain_bytes: u64,
        ) -> keepwell_store::Result<Option<StoredChunk>> {
            let stored = StoredChunk { digest: *digest, plain_bytes, stored_bytes: 1, known: true };
            Ok((self.0 != Some(*digest)).then_some(stored))
        }
        fn read(&self, _: &ChunkDigest) -> keepwell_store::Result<Vec<u8>> {
            unreachable!("what is taken again is not read")
        }
    }

    fn digest(number: u8) -> ChunkDigest {
        ChunkDigest::from_bytes([number; 32])
    }

    /// Four chunks of 100 bytes.
    fn reusable(without: Option<u8>) -> Reusable {
        let mut encoder = IndexEncoder::dynamic();
        let entries: Vec<Vec<u8>> =
            (0..4).map(|number| encoder.append(&digest(number), 100).unwrap()).collect();
        let mut bytes = encoder.header([0; 16], 0, &FileChecksum::from_bytes([0; 32]));
        entries.iter().for_each(|entry| bytes.extend(entry));
        let index = Index::parse_dynamic(bytes).unwrap();
        Reusable {
            index: Arc::new(index),
            chunks: Arc::new(Without(without.map(digest))),
            made_up: Vec::new(),
        }
    }

    fn extent(offset: u64, length: u64) -> Extent {
        Extent { stream: 0, offset, length }
    }

    #[test]
    fn whole_chunks_are_taken_and_the_last_one_is_used_on() {
        let previous = reusable(None);
        let rich = Balance { taken: 10_000, wanted: 10_000 };
        let first = previous.take(extent(5, 245), 1000, None, true, rich).unwrap().unwrap();
        let digests: Vec<_> = first.chunks.iter().map(|chunk| chunk.digest).collect();
        assert_eq!((digests, first.at), ([0, 1, 2].map(digest).to_vec(), 1005));
        assert_eq!(first.tail, Tail { chunk: 2, start: 1200 });
        // What follows in the same chunk needs nothing more; in the next one that.
        let tail = Some(first.tail);
        let next = previous.take(extent(250, 20), 1300, tail, false, rich).unwrap().unwrap();
        assert_eq!((next.chunks.len(), next.at, next.tail), (0, 1250, first.tail));
        let tail = Some(next.tail);
        let on = previous.take(extent(270, 130), 1300, tail, false, rich).unwrap().unwrap();
        assert_eq!((on.chunks.len(), on.at), (1, 1270));
        assert_eq!(on.tail, Tail { chunk: 3, start: 1300 });
    }

    #[test]
    fn what_is_made_up_is_not_taken() {
        let made_up = Reusable { made_up: vec![(150, 10)], ..reusable(None) };
        let none = Balance::default();
        let taken = |from, length| {
            made_up.take(extent(from, length), 0, None, false, none).unwrap().is_some()
        };
        assert!(taken(0, 100) && !taken(0, 151) && !taken(100, 100));
        assert!(taken(200, 100));
        let mut manifest = Manifest::new("host/a/2020-01-01T00:00:00Z".parse().unwrap());
        let name: ArchiveName = "a.ppxar.didx".parse().unwrap();
        assert!(made_up_of(&manifest, &name).is_empty());
        note_made_up(&mut manifest, &name, &[(1, 2), (3, 4)]);
        assert_eq!(made_up_of(&manifest, &name), [(1, 2), (3, 4)]);
        note_made_up(&mut manifest, &name, &vec![(1, 1); MADE_UP_MAX + 1]);
        assert_eq!(made_up_of(&manifest, &name), [(0, u64::MAX)]);
        manifest.unprotected.insert(MADE_UP.into(), json!({ "a.ppxar.didx": "?" }));
        assert_eq!(made_up_of(&manifest, &name), [(0, u64::MAX)]);
    }

    #[test]
    fn what_is_to_be_wanted_next_counts_only_where_there_is_little_padding() {
        let previous = reusable(None);
        let taken =
            |balance| previous.take(extent(0, 5), 0, None, true, balance).unwrap().is_some();
        let balance = |taken, wanted| Balance { taken, wanted };
        assert!(!taken(Balance::default()), "a few bytes of a chunk, and a promise");
        assert!(taken(balance(1000, 1000)) && taken(balance(1000, 990)));
        assert!(!taken(balance(1000, 980)), "it was not kept before");
    }

    #[test]
    fn too_much_padding_and_missing_chunks_are_not_taken() {
        let previous = reusable(None);
        let taken = |from, length, continues| {
            let rich = Balance { taken: 10_000, wanted: 10_000 };
            previous.take(extent(from, length), 0, None, continues, rich).unwrap().is_some()
        };
        assert!(!taken(0, 80, false) && taken(0, 80, true) && taken(0, 90, false));
        assert!(!taken(20, 80, false) && !taken(20, 80, true) && taken(20, 380, false));
        assert!(!taken(0, 0, false) && !taken(390, 20, false) && !taken(u64::MAX, 2, false));
        let none = Balance::default();
        assert!(reusable(Some(1)).take(extent(0, 200), 0, None, false, none).unwrap().is_none());
        assert!(reusable(Some(2)).take(extent(0, 200), 0, None, false, none).unwrap().is_some());
    }
}
