//! Chunks in memory, for tests. Stricter than a disk: a chunk of the same name with other bytes is
//! refused.

use crate::{ChunkStore, Result, StoreError};
use keepwell_model::{ChunkDigest, SealedChunk, StoredChunk};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

#[derive(Default)]
pub struct MemoryChunks {
    chunks: Mutex<HashMap<ChunkDigest, Vec<u8>>>,
}

impl MemoryChunks {
    fn with<T>(&self, use_it: impl FnOnce(&mut HashMap<ChunkDigest, Vec<u8>>) -> T) -> T {
        use_it(&mut self.chunks.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl ChunkStore for MemoryChunks {
    fn insert(&self, chunk: &SealedChunk<'_>) -> Result<StoredChunk> {
        let bytes = chunk.parts().concat();
        let (digest, plain_bytes) = (chunk.digest, chunk.plain_bytes);
        let stored_bytes = bytes.len() as u64;
        self.with(|chunks| match chunks.get(&digest) {
            Some(other) if *other != bytes => {
                Err(StoreError::ChunkRefused { digest, problem: "other bytes have its name" })
            }
            Some(_) => Ok(StoredChunk { digest, plain_bytes, stored_bytes, known: true }),
            None => {
                chunks.insert(digest, bytes);
                Ok(StoredChunk { digest, plain_bytes, stored_bytes, known: false })
            }
        })
    }

    fn touch(&self, digest: &ChunkDigest, plain_bytes: u64) -> Result<Option<StoredChunk>> {
        let digest = *digest;
        Ok(self.with(|chunks| {
            let stored_bytes = chunks.get(&digest)?.len() as u64;
            Some(StoredChunk { digest, plain_bytes, stored_bytes, known: true })
        }))
    }

    fn read(&self, digest: &ChunkDigest) -> Result<Vec<u8>> {
        let found = self.with(|chunks| chunks.get(digest).cloned());
        found.ok_or(StoreError::ChunkMissing { digest: *digest })
    }
}
