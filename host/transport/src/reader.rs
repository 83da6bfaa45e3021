//! A snapshot on a server, open for reading. Spec: protocol.md §5.
//!
//! A session that is lost is opened again: the server is asked for the same indexes, so that it
//! lends their chunks, and then for what was missing.

use crate::backup::snapshot_query;
use crate::client::Client;
use crate::error::{Error, Result};
use crate::query::Query;
use crate::session::Session;
use bytes::Bytes;
use keepwell_model::names::ArchiveKind;
use keepwell_model::{
    ArchiveName, ChunkDigest, Index, Namespace, SealedChunk, SnapshotId, StoredChunk,
};
use keepwell_store::{ChunkStore, SnapshotReader, StoreError};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// How long to wait before the next attempt at a lost session.
const PAUSES: [u64; 4] = [0, 1, 4, 10];
/// Largest index or blob, and largest chunk with its envelope.
const FILE_BYTES_MAX: usize = 2 << 30;
const CHUNK_BYTES_MAX: usize = (16 << 20) + 64;

/// Chunks asked for before they are wanted, where a reader goes through an archive in order.
const AHEAD_CHUNKS: usize = 4;

/// What will be wanted next.
#[derive(Default)]
struct Ahead {
    /// the chunks of the archive in their order, and where each stands first
    order: Vec<ChunkDigest>,
    places: HashMap<ChunkDigest, usize>,
    /// where the last chunk stood that was wanted, and the last that was asked for
    wanted: usize,
    asked: usize,
    coming: HashMap<ChunkDigest, oneshot::Receiver<Result<Bytes>>>,
}

impl Ahead {
    fn follow(&mut self, index: &Index) {
        let order: Vec<ChunkDigest> = index.chunks().map(|chunk| chunk.digest).collect();
        let mut places = HashMap::with_capacity(order.len());
        for (place, digest) in order.iter().enumerate() {
            places.entry(*digest).or_insert(place);
        }
        *self = Self { order, places, ..Self::default() };
    }

    /// What is coming of this chunk, and which are to be asked for now.
    fn want(
        &mut self,
        digest: &ChunkDigest,
    ) -> (Option<oneshot::Receiver<Result<Bytes>>>, Vec<ChunkDigest>) {
        let coming = self.coming.remove(digest);
        let Some(place) = self.places.get(digest).copied() else { return (coming, Vec::new()) };
        let in_order = place.abs_diff(self.wanted) <= AHEAD_CHUNKS;
        self.wanted = place;
        if !in_order {
            // Elsewhere: what was asked for is not wanted any more.
            self.coming.clear();
            self.asked = place;
            return (coming, Vec::new());
        }
        let first = self.asked.max(place) + 1;
        let last = (place + AHEAD_CHUNKS).min(self.order.len().saturating_sub(1));
        let next: Vec<ChunkDigest> = self.order.get(first..=last).unwrap_or_default().to_vec();
        self.asked = self.asked.max(last).max(place);
        // What comes twice in an archive is fetched when it is wanted.
        let fresh = next.into_iter().filter(|next| !self.coming.contains_key(next)).collect();
        (coming, fresh)
    }
}

/// The session, and how often it was opened.
struct Current {
    session: Session,
    generation: u64,
    /// what must be fetched again in a new session
    indexes: Vec<ArchiveName>,
}

pub(crate) struct RemoteReader {
    client: Arc<Client>,
    query: Query,
    snapshot: SnapshotId,
    current: Mutex<Current>,
    ahead: Mutex<Ahead>,
    /// Patience ended: until then nobody waits again, and then for a new session first.
    given_up: Mutex<Option<Instant>>,
}

/// How long nobody waits for a server that did not answer.
const GIVEN_UP: Duration = Duration::from_secs(5);

async fn open(client: &Client, query: &Query) -> Result<Session> {
    client.inner.upgrade("//api2/json/reader", query, crate::READER_PROTOCOL).await
}

fn chunk_query(digest: &ChunkDigest) -> Query {
    Query::new().with("digest", digest.to_string())
}

fn download_query(name: &ArchiveName) -> Query {
    Query::new().with("file-name", name.as_str())
}

impl RemoteReader {
    pub(crate) fn open(
        client: &Arc<Client>,
        store: &str,
        namespace: &Namespace,
        snapshot: &SnapshotId,
    ) -> Result<Self> {
        let query = snapshot_query(store, namespace, snapshot).with("debug", true);
        let session = client.block_on(open(client, &query))?;
        let current = Mutex::new(Current { session, generation: 0, indexes: Vec::new() });
        let (client, snapshot, ahead) = (client.clone(), snapshot.clone(), Mutex::default());
        Ok(Self { client, query, snapshot, current, ahead, given_up: Mutex::default() })
    }

    fn current(&self) -> (Session, u64) {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        (current.session.clone(), current.generation)
    }

    /// Asks for a chunk that will be wanted soon.
    fn ask_ahead(&self, digest: ChunkDigest) {
        let (session, _) = self.current();
        let (answer, coming) = oneshot::channel();
        self.client.runtime.spawn(async move {
            let chunk = session.get("chunk", &chunk_query(&digest), CHUNK_BYTES_MAX).await;
            // Nobody waits where the reader went elsewhere.
            let _ = answer.send(chunk);
        });
        let mut ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        ahead.coming.insert(digest, coming);
    }

    /// Opens a new session in place of a lost one, unless somebody else has.
    fn reopen(&self, lost: u64, deadline: Option<Instant>) -> Result<()> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.generation != lost {
            return Ok(());
        }
        let indexes = current.indexes.clone();
        current.session = self.client.block_on_until(deadline, async {
            let session = open(&self.client, &self.query).await?;
            for name in &indexes {
                session.get("download", &download_query(name), FILE_BYTES_MAX).await?;
            }
            Ok::<_, Error>(session)
        })?;
        current.generation += 1;
        Ok(())
    }

    /// Somebody waits who is told rather than kept waiting.
    fn is_impatient(&self) -> bool {
        self.client.inner.patience().is_some()
    }

    fn given_up(&self) -> MutexGuard<'_, Option<Instant>> {
        self.given_up.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks, as long as there is patience.
    fn fetch(&self, path: &str, query: &Query, bytes_max: usize) -> Result<Vec<u8>> {
        let given_up = *self.given_up();
        if given_up.is_some_and(|until| Instant::now() < until) {
            return Err(Error::Timeout("waiting for the server"));
        }
        let began = match given_up {
            None => Ok(()),
            Some(_) => self.reopen(self.current().1, self.client.deadline()),
        };
        let fetched = began.and_then(|()| self.fetch_on(path, query, bytes_max));
        *self.given_up() = match &fetched {
            Err(error) if error.is_lost() && self.is_impatient() => Some(Instant::now() + GIVEN_UP),
            Err(_) => given_up,
            Ok(_) => None,
        };
        fetched
    }

    /// Asks, and asks again in a new session where the old one is lost: with little patience once.
    fn fetch_on(&self, path: &str, query: &Query, bytes_max: usize) -> Result<Vec<u8>> {
        let attempts = if self.is_impatient() { 1 } else { PAUSES.len() };
        let mut pauses = PAUSES.iter().take(attempts);
        loop {
            let (session, generation) = self.current();
            let error = match self.client.block_on(session.get(path, query, bytes_max)) {
                Ok(bytes) => return Ok(bytes.into()),
                Err(error) if error.is_lost() => error,
                Err(error) => return Err(error),
            };
            drop(session);
            // It did not answer: a new session would wait as long.
            if matches!(error, Error::Timeout(_)) && attempts == 1 {
                return Err(error);
            }
            loop {
                let Some(pause) = pauses.next() else { return Err(error) };
                tracing::warn!("{error}: connecting again");
                let pause = Duration::from_secs(*pause);
                self.client.block_on(async {
                    tokio::time::sleep(pause).await;
                    Ok(())
                })?;
                match self.reopen(generation, self.client.deadline()) {
                    Ok(()) => break,
                    Err(error @ (Error::Status { .. } | Error::Interrupted)) => return Err(error),
                    Err(_) => {}
                }
            }
        }
    }
}

impl SnapshotReader for RemoteReader {
    fn snapshot(&self) -> &SnapshotId {
        &self.snapshot
    }

    fn chunks(&self) -> &dyn ChunkStore {
        self
    }

    fn read_file(&self, name: &ArchiveName) -> keepwell_store::Result<Vec<u8>> {
        let bytes = self.fetch("download", &download_query(name), FILE_BYTES_MAX)?;
        if name.kind() != ArchiveKind::Blob {
            let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
            if !current.indexes.contains(name) {
                current.indexes.push(name.clone());
            }
            drop(current);
            if let Ok(index) = keepwell_store::parse_index(name, &self.snapshot, bytes.clone()) {
                self.ahead.lock().unwrap_or_else(PoisonError::into_inner).follow(&index);
            }
        }
        Ok(bytes)
    }
}

impl ChunkStore for RemoteReader {
    fn insert(&self, chunk: &SealedChunk<'_>) -> keepwell_store::Result<StoredChunk> {
        let problem = "a snapshot that is read takes none";
        Err(StoreError::ChunkRefused { digest: chunk.digest, problem })
    }

    fn touch(&self, _: &ChunkDigest, _: u64) -> keepwell_store::Result<Option<StoredChunk>> {
        Ok(None)
    }

    fn read(&self, digest: &ChunkDigest) -> keepwell_store::Result<Vec<u8>> {
        let (coming, next) = self.ahead.lock().unwrap_or_else(PoisonError::into_inner).want(digest);
        for digest in next {
            self.ask_ahead(digest);
        }
        // What went wrong ahead of time is tried again.
        let gone = |_| Error::protocol("nobody asks for it any more");
        let coming = coming
            .map(|coming| self.client.block_on(async { coming.await.map_err(gone).flatten() }));
        if let Some(Ok(bytes)) = coming {
            return Ok(bytes.into());
        }
        Ok(self.fetch("chunk", &chunk_query(digest), CHUNK_BYTES_MAX)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keepwell_model::FileChecksum;
    use keepwell_model::index::IndexEncoder;

    fn digest(number: u8) -> ChunkDigest {
        ChunkDigest::from_bytes([number; 32])
    }

    fn ahead(count: u8) -> Ahead {
        let mut encoder = IndexEncoder::dynamic();
        let entries: Vec<Vec<u8>> =
            (0..count).map(|number| encoder.append(&digest(number), 10).unwrap()).collect();
        let mut bytes = encoder.header([0; 16], 0, &FileChecksum::from_bytes([0; 32]));
        entries.iter().for_each(|entry| bytes.extend(entry));
        let mut ahead = Ahead::default();
        ahead.follow(&Index::parse_dynamic(bytes).unwrap());
        ahead
    }

    #[test]
    fn who_reads_in_order_is_served_ahead() {
        let mut ahead = ahead(8);
        let next = |ahead: &mut Ahead, number| ahead.want(&digest(number)).1;
        assert_eq!(next(&mut ahead, 0), [1, 2, 3, 4].map(digest));
        assert_eq!(next(&mut ahead, 1), [digest(5)]);
        assert_eq!(next(&mut ahead, 2), [digest(6)]);
        // Several threads do not come quite in order.
        assert_eq!(next(&mut ahead, 4), [digest(7)]);
        assert!(next(&mut ahead, 3).is_empty());
        assert!(next(&mut ahead, 7).is_empty());
    }

    #[test]
    fn who_jumps_about_is_not() {
        let mut ahead = ahead(40);
        assert!(ahead.want(&digest(20)).1.is_empty());
        assert_eq!(ahead.want(&digest(21)).1, [22, 23, 24, 25].map(digest));
        assert!(ahead.want(&digest(3)).1.is_empty());
        assert!(ahead.want(&digest(99)).1.is_empty(), "of no archive");
    }
}
