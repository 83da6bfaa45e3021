//! Stored archives as bytes: chunks fetched, opened and verified on demand, kept in a bounded
//! cache that all threads share.

use crate::ahead::ReadAhead;
use crate::error::{EngineError, Result};
use crate::plugin::Failure;
use crate::restore::chain;
use crate::snapshot::read_index;
use crossbeam_channel::bounded;
use keepwell_model::manifest::{CryptMode, ManifestFile};
use keepwell_model::{ArchiveName, ChunkDigest, Index};
use keepwell_seal::{EncryptionKey, Opener, Plaintext};
use keepwell_store::SnapshotReader;
use std::cell::RefCell;
use std::collections::HashMap;
use std::io::Write;
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::thread;

/// Bytes of opened chunks kept for one archive.
const CACHE_BYTES_MAX: usize = 48 << 20;
/// A plugin may not ask for more at once.
const READ_BYTES_MAX: u32 = 16 << 20;

/// Bytes that plugins read.
pub trait RandomAccess: Send + Sync {
    /// None where it is not known, in a pipe.
    fn size(&self) -> Option<u64>;
    /// Fewer bytes than asked only at the end.
    fn read_at(&self, offset: u64, length: u32) -> std::result::Result<Vec<u8>, Failure>;
}

thread_local! {
    /// A decompressor is dear to make and can't be shared.
    static OPENER: RefCell<Option<Opener>> = const { RefCell::new(None) };
}

enum Slot {
    /// Some thread is at it.
    Loading,
    Ready {
        bytes: Arc<Plaintext>,
        used: u64,
    },
}

struct Cache {
    slots: HashMap<usize, Slot>,
    bytes: usize,
    limit: usize,
    clock: u64,
}

impl Default for Cache {
    fn default() -> Self {
        Self { slots: HashMap::new(), bytes: 0, limit: CACHE_BYTES_MAX, clock: 0 }
    }
}

/// An archive made of chunks.
pub struct ChunkedArchive {
    reader: Arc<dyn SnapshotReader>,
    name: ArchiveName,
    index: Index,
    key: Option<Arc<EncryptionKey>>,
    cache: Mutex<Cache>,
    loaded: Condvar,
    ahead: OnceLock<ReadAhead>,
}

impl ChunkedArchive {
    /// Opens the archive that a manifest lists. The key is used if the archive is encrypted.
    pub fn open(
        reader: Arc<dyn SnapshotReader>,
        file: &ManifestFile,
        key: Option<&Arc<EncryptionKey>>,
    ) -> Result<Self> {
        let index = read_index(&*reader, file)?;
        let key = key.filter(|_| file.crypt_mode == CryptMode::Encrypt).cloned();
        let (name, cache) = (file.name.clone(), Mutex::default());
        let (loaded, ahead) = (Condvar::new(), OnceLock::new());
        Ok(Self { reader, name, index, key, cache, loaded, ahead })
    }

    pub fn index(&self) -> &Index {
        &self.index
    }

    /// Keeps so many bytes of opened chunks, for those who have many archives open.
    pub fn limit_cache(&self, bytes: usize) {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner).limit = bytes;
    }

    /// From now on chunks are fetched before those who read one after another ask for them.
    pub fn read_ahead(self: &Arc<Self>) {
        self.ahead.get_or_init(|| ReadAhead::of(self));
    }

    /// The plain bytes of the chunk at `position`, verified.
    pub fn chunk(&self, position: usize) -> Result<Arc<Plaintext>> {
        if let Some(ahead) = self.ahead.get() {
            ahead.met(position, self.index.len());
        }
        self.cached(position)
    }

    pub(crate) fn cached(&self, position: usize) -> Result<Arc<Plaintext>> {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            cache.clock += 1;
            let now = cache.clock;
            match cache.slots.get_mut(&position) {
                Some(Slot::Ready { bytes, used }) => {
                    *used = now;
                    return Ok(bytes.clone());
                }
                Some(Slot::Loading) => {
                    cache = self.loaded.wait(cache).unwrap_or_else(PoisonError::into_inner);
                }
                None => break,
            }
        }
        cache.slots.insert(position, Slot::Loading);
        drop(cache);
        let loaded = self.load(position);
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.slots.remove(&position);
        if let Ok(bytes) = &loaded {
            cache.insert(position, bytes.clone());
        }
        drop(cache);
        self.loaded.notify_all();
        loaded
    }

    fn load(&self, position: usize) -> Result<Arc<Plaintext>> {
        let range = self.index.chunk(position).ok_or(EngineError::Worker)?;
        let damaged = |digest: ChunkDigest, problem: String| EngineError::ChunkDamaged {
            digest,
            name: self.name.clone(),
            problem,
        };
        let bytes = self.reader.chunks().read(&range.digest).map_err(|problem| match problem {
            keepwell_store::StoreError::ChunkMissing { digest } => {
                damaged(digest, "it is missing".into())
            }
            other => other.into(),
        })?;
        let length = range.end - range.start;
        let opened = OPENER.with_borrow_mut(|opener| {
            let opener = match opener {
                Some(opener) => opener,
                empty => empty.insert(Opener::new()?),
            };
            opener.open_chunk(bytes, &range.digest, length, self.key.as_deref())
        });
        Ok(Arc::new(opened.map_err(|problem| damaged(range.digest, problem.to_string()))?))
    }

    /// Parts of chunks that make a stretch of the archive, in order. None where the stretch leaves
    /// the archive.
    pub fn parts(&self, offset: u64, length: u64) -> Option<impl Iterator<Item = Part> + '_> {
        let end = offset.checked_add(length).filter(|end| *end <= self.index.size())?;
        let first = if length == 0 { None } else { self.index.position_of(offset) };
        let positions = first.into_iter().flat_map(move |first| first..self.index.len());
        let part = move |position| {
            let range = self.index.chunk(position).filter(|range| range.start < end)?;
            let from = offset.max(range.start) - range.start;
            let to = range.end.min(end) - range.start;
            Some(Part { position, from: from as usize, to: to as usize })
        };
        Some(positions.map_while(part))
    }

    /// Writes the whole archive to `out`, opening chunks ahead on several threads.
    pub fn write_to(&self, out: &mut dyn Write) -> Result<()> {
        let threads = thread::available_parallelism().map_or(2, usize::from).min(4);
        thread::scope(|scope| {
            let (tickets, work) = bounded(threads);
            let (order, ready) = bounded(threads + 1);
            for _ in 0..threads {
                let work = work.clone();
                scope.spawn(move || {
                    for (position, answer) in work {
                        let answer: crossbeam_channel::Sender<Result<Arc<Plaintext>>> = answer;
                        let _ = answer.send(self.load(position));
                    }
                });
            }
            drop(work);
            scope.spawn(move || {
                for position in 0..self.index.len() {
                    let (answer, receipt) = bounded(1);
                    if tickets.send((position, answer)).is_err() || order.send(receipt).is_err() {
                        return;
                    }
                }
            });
            for receipt in ready {
                let bytes = receipt.recv()??;
                out.write_all(&bytes).map_err(crate::error::io_error("write to", "output"))?;
            }
            out.flush().map_err(crate::error::io_error("write to", "output"))
        })
    }
}

/// A part of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    pub position: usize,
    pub from: usize,
    pub to: usize,
}

impl Cache {
    fn insert(&mut self, position: usize, bytes: Arc<Plaintext>) {
        self.bytes += bytes.len();
        let used = self.clock;
        self.slots.insert(position, Slot::Ready { bytes, used });
        while self.bytes > self.limit {
            let ready = self.slots.iter().filter_map(|(at, slot)| match slot {
                Slot::Ready { used, .. } if *at != position => Some((*used, *at)),
                _ => None,
            });
            let Some((_, oldest)) = ready.min() else { return };
            if let Some(Slot::Ready { bytes, .. }) = self.slots.remove(&oldest) {
                self.bytes -= bytes.len();
            }
        }
    }
}

impl RandomAccess for ChunkedArchive {
    fn size(&self) -> Option<u64> {
        Some(self.index.size())
    }

    fn read_at(&self, offset: u64, length: u32) -> std::result::Result<Vec<u8>, Failure> {
        let rest = self.index.size().saturating_sub(offset);
        let length = rest.min(length.min(READ_BYTES_MAX).into());
        let parts = self.parts(offset, length);
        let parts = parts.ok_or_else(|| Failure::Corrupt(format!("{} is too short", self.name)))?;
        let mut bytes = Vec::with_capacity(length as usize);
        for part in parts {
            let chunk = self.chunk(part.position).map_err(|error| match error {
                EngineError::Store(error) => Failure::Io(chain(&error)),
                other => Failure::Corrupt(other.to_string()),
            })?;
            bytes.extend(&chunk[part.from..part.to]);
        }
        Ok(bytes)
    }
}

/// An archive in memory: a blob.
pub struct BlobArchive(pub Arc<Vec<u8>>);

impl RandomAccess for BlobArchive {
    fn size(&self) -> Option<u64> {
        Some(self.0.len() as u64)
    }

    fn read_at(&self, offset: u64, length: u32) -> std::result::Result<Vec<u8>, Failure> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(self.0.len());
        let end = start.saturating_add(length as usize).min(self.0.len());
        Ok(self.0[start..end].to_vec())
    }
}
