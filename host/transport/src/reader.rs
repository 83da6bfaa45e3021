//! A snapshot on a server, open for reading. Spec: protocol.md §5.
//!
//! A session that is lost is opened again: the server is asked for the same indexes, so that it
//! lends their chunks, and then for what was missing.

use crate::backup::snapshot_query;
use crate::client::Client;
use crate::error::{Error, Result};
use crate::query::Query;
use crate::session::Session;
use keepwell_model::names::ArchiveKind;
use keepwell_model::{ArchiveName, ChunkDigest, Namespace, SealedChunk, SnapshotId, StoredChunk};
use keepwell_store::{ChunkStore, SnapshotReader, StoreError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How long to wait before the next attempt at a lost session.
const PAUSES: [u64; 4] = [0, 1, 4, 10];
/// Largest index or blob, and largest chunk with its envelope.
const FILE_BYTES_MAX: usize = 2 << 30;
const CHUNK_BYTES_MAX: usize = (16 << 20) + 64;

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
}

async fn open(client: &Client, query: &Query) -> Result<Session> {
    client.inner.upgrade("//api2/json/reader", query, crate::READER_PROTOCOL).await
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
        Ok(Self { client: client.clone(), query, snapshot: snapshot.clone(), current })
    }

    fn current(&self) -> (Session, u64) {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        (current.session.clone(), current.generation)
    }

    /// Opens a new session in place of a lost one, unless somebody else has.
    fn reopen(&self, lost: u64) -> Result<()> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.generation != lost {
            return Ok(());
        }
        let indexes = current.indexes.clone();
        current.session = self.client.block_on(async {
            let session = open(&self.client, &self.query).await?;
            for name in &indexes {
                session.get("download", &download_query(name), FILE_BYTES_MAX).await?;
            }
            Ok::<_, Error>(session)
        })?;
        current.generation += 1;
        Ok(())
    }

    /// Asks, and asks again in a new session where the old one is lost.
    fn fetch(&self, path: &str, query: &Query, bytes_max: usize) -> Result<Vec<u8>> {
        let mut pauses = PAUSES.iter();
        loop {
            let (session, generation) = self.current();
            let error = match self.client.block_on(session.get(path, query, bytes_max)) {
                Ok(bytes) => return Ok(bytes.into()),
                Err(error) if error.is_lost() => error,
                Err(error) => return Err(error),
            };
            drop(session);
            loop {
                let Some(pause) = pauses.next() else { return Err(error) };
                tracing::warn!("{error}: connecting again");
                std::thread::sleep(Duration::from_secs(*pause));
                match self.reopen(generation) {
                    Ok(()) => break,
                    Err(Error::Status { status, message }) => {
                        return Err(Error::Status { status, message });
                    }
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
        let query = Query::new().with("digest", digest.to_string());
        Ok(self.fetch("chunk", &query, CHUNK_BYTES_MAX)?)
    }
}
