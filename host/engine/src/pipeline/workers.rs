//! Threads that turn plain chunks into stored ones.

use crate::error::{EngineError, Result};
use crate::progress::Counters;
use crossbeam_channel::{Receiver, Sender, bounded};
use keepwell_model::{ChunkDigest, StoredChunk};
use keepwell_seal::{EncryptionKey, Sealer};
use keepwell_store::ChunkStore;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

/// More would cost memory, up to 32 MiB each, and gain little.
const WORKERS_MAX: usize = 8;

/// A buffer of a chunk's largest size; the bytes beyond `length` are left over from before.
pub(crate) struct Buffer {
    pub(crate) bytes: Vec<u8>,
    pub(crate) length: usize,
}

impl Buffer {
    pub(crate) fn filled(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// Buffers to be used again: fresh ones cost page faults.
#[derive(Clone)]
pub(crate) struct Pool {
    free: Arc<Mutex<Vec<Vec<u8>>>>,
    size: usize,
}

impl Pool {
    pub(crate) fn new(size: usize) -> Self {
        Self { free: Arc::default(), size }
    }

    pub(crate) fn take(&self) -> Buffer {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = free.pop().unwrap_or_else(|| vec![0; self.size]);
        Buffer { bytes, length: 0 }
    }

    pub(crate) fn give(&self, buffer: Buffer) {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).push(buffer.bytes);
    }
}

/// What a worker answers.
pub(crate) enum Answer {
    Stored(StoredChunk),
    /// The chunk is the expected one; its bytes may still be wanted.
    Expected(StoredChunk, Buffer),
    /// The bytes are not those of the expected chunk.
    Unexpected(Buffer),
}

/// One chunk for a worker.
pub(crate) struct Job {
    pub(crate) buffer: Buffer,
    pub(crate) pool: Pool,
    /// only this chunk is wanted; other bytes are handed back
    pub(crate) expected: Option<ChunkDigest>,
    /// where it is stored
    pub(crate) chunks: Arc<dyn ChunkStore>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) answer: Sender<Result<Answer>>,
}

/// The threads of one backup, shared by all its streams. Dropping it waits for them.
pub(crate) struct Workers {
    queue: Option<WorkerQueue>,
    threads: Vec<JoinHandle<()>>,
}

/// Where streams hand their chunks to the workers.
#[derive(Clone)]
pub(crate) struct WorkerQueue {
    pub(crate) jobs: Sender<Job>,
    /// how many threads there are
    pub(crate) count: usize,
}

impl Workers {
    pub(crate) fn start(key: Option<&Arc<EncryptionKey>>) -> Result<Self> {
        let count = thread::available_parallelism().map_or(1, usize::from).min(WORKERS_MAX);
        let (jobs, queue) = bounded::<Job>(1);
        let mut threads = Vec::new();
        for number in 0..count {
            let worker = Worker {
                queue: queue.clone(),
                sealer: Sealer::new()?,
                key: key.cloned(),
                zeros: HashMap::new(),
            };
            let thread = thread::Builder::new().name(format!("worker-{number}"));
            let started = thread.spawn(move || worker.run());
            threads.push(started.map_err(crate::error::io_error("start", "a worker thread"))?);
        }
        Ok(Self { queue: Some(WorkerQueue { jobs, count }), threads })
    }

    pub(crate) fn queue(&self) -> Option<WorkerQueue> {
        self.queue.clone()
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.queue = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

struct Worker {
    queue: Receiver<Job>,
    sealer: Sealer,
    /// encrypts the chunks, if there is one
    key: Option<Arc<EncryptionKey>>,
    /// digests of chunks of zeros by length: they are frequent, and dear to compute
    zeros: HashMap<usize, ChunkDigest>,
}

impl Worker {
    fn run(mut self) {
        while let Ok(job) = self.queue.recv() {
            let Job { buffer, pool, expected, chunks, counters, answer } = job;
            let outcome = self.store(buffer, &pool, expected, &*chunks, &counters);
            // Nobody waits any more where the backup failed elsewhere.
            let _ = answer.send(outcome);
        }
    }

    fn store(
        &mut self,
        buffer: Buffer,
        pool: &Pool,
        expected: Option<ChunkDigest>,
        chunks: &dyn ChunkStore,
        counters: &Counters,
    ) -> Result<Answer> {
        let plain = buffer.filled();
        let digest = self.digest(plain);
        if expected.is_some_and(|expected| expected != digest) {
            return Ok(Answer::Unexpected(buffer));
        }
        let stored = self.insert(digest, plain, chunks, counters)?;
        if expected.is_some() {
            return Ok(Answer::Expected(stored, buffer));
        }
        pool.give(buffer);
        Ok(Answer::Stored(stored))
    }

    fn insert(
        &mut self,
        digest: ChunkDigest,
        plain: &[u8],
        chunks: &dyn ChunkStore,
        counters: &Counters,
    ) -> Result<StoredChunk> {
        let length = plain.len() as u64;
        let stored = match chunks.touch(&digest, length)? {
            Some(stored) => stored,
            None => {
                chunks.insert(&self.sealer.seal_chunk(digest, plain, self.key.as_deref())?)?
            }
        };
        Counters::add(&counters.chunks, 1);
        if !stored.known {
            Counters::add(&counters.new_chunks, 1);
            Counters::add(&counters.new_bytes, length);
            Counters::add(&counters.stored_bytes, stored.stored_bytes);
        }
        Ok(stored)
    }

    fn digest(&mut self, plain: &[u8]) -> ChunkDigest {
        let key = self.key.as_deref();
        if !is_zero(plain) {
            return Sealer::digest(plain, key);
        }
        *self.zeros.entry(plain.len()).or_insert_with(|| Sealer::digest(plain, key))
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    // Comparing a slice with itself, one byte on, is a memcmp.
    bytes.first() == Some(&0) && bytes[..bytes.len() - 1] == bytes[1..]
}

impl From<crossbeam_channel::RecvError> for EngineError {
    fn from(_: crossbeam_channel::RecvError) -> Self {
        Self::Worker
    }
}
