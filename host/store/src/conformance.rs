//! What every [`ChunkStore`] must do. Each implementation's tests run it.

use crate::{ChunkStore, StoreError};
use keepwell_model::{BlobKind, ChunkDigest, SealedChunk};

/// A chunk with this payload; its digest is made up.
pub fn chunk(name: u8, payload: &[u8]) -> SealedChunk<'_> {
    let digest = ChunkDigest::from_bytes([name; 32]);
    SealedChunk::new(digest, payload.len() as u64, BlobKind::Plain, payload)
}

/// Panics where the store breaks its contract.
#[allow(clippy::unwrap_used, reason = "a test that fails should say where")]
pub fn run(store: &dyn ChunkStore) {
    let first = chunk(1, b"first");
    assert!(matches!(store.read(&first.digest), Err(StoreError::ChunkMissing { .. })));
    assert!(store.touch(&first.digest, 5).unwrap().is_none());

    let stored = store.insert(&first).unwrap();
    assert!(!stored.known);
    assert_eq!((stored.digest, stored.plain_bytes, stored.stored_bytes), (first.digest, 5, 17));
    assert_eq!(store.read(&first.digest).unwrap(), first.parts().concat());

    let again = store.insert(&first).unwrap();
    assert!(again.known, "inserting again is no new chunk");
    assert_eq!(store.touch(&first.digest, 5).unwrap(), Some(again));

    let second = chunk(2, b"");
    store.insert(&second).unwrap();
    assert_eq!(store.read(&second.digest).unwrap(), second.parts().concat());
    assert_eq!(store.read(&first.digest).unwrap(), first.parts().concat());

    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for name in 3..40 {
                    store.insert(&chunk(name, &[name; 999])).unwrap();
                }
            });
        }
    });
    for name in 3..40 {
        let digest = ChunkDigest::from_bytes([name; 32]);
        assert_eq!(store.read(&digest).unwrap(), chunk(name, &[name; 999]).parts().concat());
    }
}
