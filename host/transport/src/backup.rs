//! A backup into a server: one session, in which chunks are uploaded side by side.
//! Spec: protocol.md §4.
//!
//! Uploading returns before the server has answered; an index takes a chunk only when it has. So
//! the line is kept full while the next chunks are made, and the order of the index stays.

use crate::client::Client;
use crate::error::{Error, Result};
use crate::network::Network;
use crate::query::Query;
use crate::session::Session;
use bytes::Bytes;
use keepwell_model::index::IndexEncoder;
use keepwell_model::{
    ArchiveName, BackupTime, Blob, ChunkDigest, FileChecksum, Index, Namespace, SealedChunk,
    SnapshotId, StoredChunk,
};
use keepwell_store::{
    BackupSession, ChunkStore, FileSummary, IndexLayout, IndexSink, SnapshotReader, StoreError,
};
use serde_json::{Value, json};
use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use tokio::sync::Semaphore;

/// Bytes on their way: as many as a server's window takes.
const IN_FLIGHT_BYTES_MAX: u32 = 32 << 20;
/// What a chunk counts at least, so that there are not too many at once.
const IN_FLIGHT_BYTES_MIN: u32 = 512 << 10;
/// Chunks that an index is told of at once.
const APPEND_CHUNKS: usize = 64;
/// A server's images have chunks of this size.
const IMAGE_CHUNK_BYTES: u32 = 4 << 20;
/// The largest file of the previous snapshot that is taken.
const FILE_BYTES_MAX: usize = 2 << 30;

/// What a speed test sends with one request, and requests side by side.
const SPEEDTEST_BYTES: usize = 4 << 20;
const SPEEDTEST_REQUESTS: usize = 8;

/// What all parts of a session share.
struct Shared {
    session: Session,
    runtime: Arc<Network>,
    /// room for chunks on their way, in bytes
    room: Arc<Semaphore>,
    /// chunks of the previous snapshot that the server lends, by archive
    lent: Mutex<HashMap<ArchiveName, HashSet<ChunkDigest>>>,
}

impl Shared {
    fn block_on<T>(&self, future: impl Future<Output = Result<T>>) -> Result<T> {
        self.runtime.run(future)
    }
}

pub(crate) struct RemoteBackup {
    shared: Arc<Shared>,
    previous: Option<Arc<dyn SnapshotReader>>,
}

impl RemoteBackup {
    pub(crate) fn begin(
        client: &Client,
        store: &str,
        namespace: &Namespace,
        snapshot: &SnapshotId,
        benchmark: bool,
    ) -> Result<Self> {
        let query = snapshot_query(store, namespace, snapshot)
            .with("benchmark", benchmark)
            .with("debug", true);
        let (session, previous) = client.block_on(async {
            let path = "//api2/json/backup";
            let session = client.inner.upgrade(path, &query, crate::BACKUP_PROTOCOL).await?;
            let previous = session.get_value("previous_backup_time", &Query::new()).await?;
            Ok::<_, Error>((session, previous))
        })?;
        let shared = Arc::new(Shared {
            session,
            runtime: client.runtime.clone(),
            room: Arc::new(Semaphore::new(IN_FLIGHT_BYTES_MAX as usize)),
            lent: Mutex::default(),
        });
        let time = previous.as_i64().and_then(|time| BackupTime::from_unix(time).ok());
        let previous = time.map(|time| {
            let snapshot = SnapshotId { group: snapshot.group.clone(), time };
            Arc::new(Previous { shared: shared.clone(), snapshot }) as Arc<dyn SnapshotReader>
        });
        Ok(Self { shared, previous })
    }
}

/// Which snapshot, as parameters.
pub(crate) fn snapshot_query(store: &str, namespace: &Namespace, snapshot: &SnapshotId) -> Query {
    let namespace = (!namespace.is_root()).then(|| namespace.to_string());
    Query::new()
        .with("backup-id", snapshot.group.id.as_str())
        .with("backup-time", snapshot.time.unix())
        .with("backup-type", snapshot.group.kind.as_str())
        .with_some("ns", namespace)
        .with("store", store)
}

impl BackupSession for RemoteBackup {
    fn previous(&self) -> Option<Arc<dyn SnapshotReader>> {
        self.previous.clone()
    }

    fn create_index(
        &self,
        name: &ArchiveName,
        layout: IndexLayout,
    ) -> keepwell_store::Result<Box<dyn IndexSink>> {
        let query = Query::new().with("archive-name", name.as_str());
        let (kind, query, encoder) = match layout {
            IndexLayout::Dynamic => (Kind::Dynamic, query, IndexEncoder::dynamic()),
            IndexLayout::Fixed { chunk_bytes: IMAGE_CHUNK_BYTES, size } => {
                let query = query.with_some("size", size);
                (Kind::Fixed, query, IndexEncoder::fixed(IMAGE_CHUNK_BYTES))
            }
            IndexLayout::Fixed { .. } => {
                let problem =
                    "a server takes images in chunks of 4 MiB only: leave --chunk-size out";
                return Err(StoreError::Refused(problem.into()));
            }
        };
        let shared = &self.shared;
        let path = kind.path("index");
        let wid = shared.block_on(shared.session.post(&path, &query))?;
        let wid = wid.as_u64().ok_or_else(|| Error::protocol("the server gave no writer id"))?;
        let lent = shared.lent.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
        let uploads = Uploads {
            shared: shared.clone(),
            kind,
            wid,
            state: Mutex::new(State {
                known: lent.unwrap_or_default(),
                on_their_way: HashSet::new(),
                failed: None,
            }),
            changed: Condvar::new(),
        };
        let (uploads, batch) = (Arc::new(uploads), Vec::new());
        Ok(Box::new(RemoteIndex { uploads, encoder, batch, count: 0 }))
    }

    fn put_blob(&self, name: &ArchiveName, blob: &Blob) -> keepwell_store::Result<FileSummary> {
        let bytes = Bytes::copy_from_slice(blob.as_bytes());
        let size = bytes.len() as u64;
        let checksum = FileChecksum::of(&bytes);
        let query = Query::new().with("encoded-size", size).with("file-name", name.as_str());
        self.shared.block_on(self.shared.session.upload("blob", &query, bytes))?;
        Ok(FileSummary { size, checksum })
    }

    fn finish(&self, manifest: &Blob) -> keepwell_store::Result<()> {
        self.put_blob(&ArchiveName::manifest(), manifest)?;
        let finished = self.shared.block_on(self.shared.session.post("finish", &Query::new()));
        finished.map_err(Error::of_finish)?;
        Ok(())
    }
}

/// The snapshot before, as far as a server shows it to who makes the next one.
struct Previous {
    shared: Arc<Shared>,
    snapshot: SnapshotId,
}

impl SnapshotReader for Previous {
    fn snapshot(&self) -> &SnapshotId {
        &self.snapshot
    }

    fn chunks(&self) -> &dyn ChunkStore {
        self
    }

    fn read_file(&self, name: &ArchiveName) -> keepwell_store::Result<Vec<u8>> {
        let query = Query::new().with("archive-name", name.as_str());
        let file = self.shared.session.get("previous", &query, FILE_BYTES_MAX);
        Ok(self.shared.block_on(file)?.into())
    }

    /// From now on the server lends the chunks of this index.
    fn read_index(&self, name: &ArchiveName) -> keepwell_store::Result<Index> {
        let index = keepwell_store::parse_index(name, &self.snapshot, self.read_file(name)?)?;
        let digests = index.chunks().map(|chunk| chunk.digest).collect();
        let mut lent = self.shared.lent.lock().unwrap_or_else(PoisonError::into_inner);
        lent.insert(name.clone(), digests);
        Ok(index)
    }
}

/// Its chunks can't be read in a backup, and need not.
impl ChunkStore for Previous {
    fn insert(&self, chunk: &SealedChunk<'_>) -> keepwell_store::Result<StoredChunk> {
        Err(StoreError::ChunkMissing { digest: chunk.digest })
    }

    fn touch(&self, _: &ChunkDigest, _: u64) -> keepwell_store::Result<Option<StoredChunk>> {
        Ok(None)
    }

    fn read(&self, digest: &ChunkDigest) -> keepwell_store::Result<Vec<u8>> {
        Err(StoreError::ChunkMissing { digest: *digest })
    }
}

/// Which of the two kinds of index, as paths call it.
#[derive(Clone, Copy)]
enum Kind {
    Dynamic,
    Fixed,
}

impl Kind {
    fn path(self, what: &str) -> String {
        match self {
            Self::Dynamic => format!("dynamic_{what}"),
            Self::Fixed => format!("fixed_{what}"),
        }
    }
}

struct State {
    /// lent, uploaded or on their way
    known: HashSet<ChunkDigest>,
    on_their_way: HashSet<ChunkDigest>,
    /// stays, so that everybody hears of it
    failed: Option<Arc<Error>>,
}

impl State {
    fn check(&self) -> Result<()> {
        self.failed.clone().map_or(Ok(()), |error| Err(Error::Upload(error)))
    }
}

/// The chunks of one archive on their way to the server.
struct Uploads {
    shared: Arc<Shared>,
    kind: Kind,
    wid: u64,
    state: Mutex<State>,
    changed: Condvar,
}

impl Uploads {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known(&self, digest: &ChunkDigest, plain_bytes: u64) -> Result<Option<StoredChunk>> {
        let state = self.state();
        state.check()?;
        let digest = *digest;
        let stored = StoredChunk { digest, plain_bytes, stored_bytes: 0, known: true };
        Ok(state.known.contains(&digest).then_some(stored))
    }

    fn query(&self, chunk: &SealedChunk<'_>) -> Query {
        Query::new()
            .with("digest", chunk.digest.to_string())
            .with("encoded-size", chunk.stored_bytes())
            .with("size", chunk.plain_bytes)
            .with("wid", self.wid)
    }

    /// Waits until none of these is on its way.
    fn wait_for(&self, chunks: &[(ChunkDigest, u64)]) -> Result<()> {
        let mut state = self.state();
        loop {
            state.check()?;
            if !chunks.iter().any(|(digest, _)| state.on_their_way.contains(digest)) {
                return Ok(());
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn arrived(&self, digest: &ChunkDigest, outcome: Result<Value>) {
        let mut state = self.state();
        match outcome {
            Ok(_) => {
                state.on_their_way.remove(digest);
            }
            // The first one tells what happened.
            Err(error) => {
                state.failed.get_or_insert_with(|| Arc::new(error));
            }
        }
        drop(state);
        self.changed.notify_all();
    }
}

/// What a worker sees.
struct RemoteChunks(Arc<Uploads>);

impl ChunkStore for RemoteChunks {
    fn insert(&self, chunk: &SealedChunk<'_>) -> keepwell_store::Result<StoredChunk> {
        let uploads = &self.0;
        let (digest, plain_bytes) = (chunk.digest, chunk.plain_bytes);
        let stored_bytes = chunk.stored_bytes();
        {
            let mut state = uploads.state();
            if !state.known.insert(digest) {
                return Ok(StoredChunk { digest, plain_bytes, stored_bytes, known: true });
            }
            state.on_their_way.insert(digest);
        }
        let weight = u32::try_from(stored_bytes).unwrap_or(u32::MAX);
        let weight = weight.clamp(IN_FLIGHT_BYTES_MIN, IN_FLIGHT_BYTES_MAX);
        let room = uploads.shared.room.clone().acquire_many_owned(weight);
        let over = |_| Error::protocol("the session is over");
        let room = uploads.shared.block_on(async { room.await.map_err(over) })?;
        let body = Bytes::from(chunk.parts().concat());
        let (query, path) = (uploads.query(chunk), uploads.kind.path("chunk"));
        let uploads = uploads.clone();
        uploads.shared.runtime.clone().spawn(async move {
            let outcome = uploads.shared.session.upload(&path, &query, body).await;
            drop(room);
            uploads.arrived(&digest, outcome);
        });
        Ok(StoredChunk { digest, plain_bytes, stored_bytes, known: false })
    }

    fn touch(
        &self,
        digest: &ChunkDigest,
        plain_bytes: u64,
    ) -> keepwell_store::Result<Option<StoredChunk>> {
        Ok(self.0.known(digest, plain_bytes)?)
    }

    fn read(&self, digest: &ChunkDigest) -> keepwell_store::Result<Vec<u8>> {
        Err(StoreError::ChunkMissing { digest: *digest })
    }
}

struct RemoteIndex {
    uploads: Arc<Uploads>,
    encoder: IndexEncoder,
    /// chunks that the server has not been told of, and where they start
    batch: Vec<(ChunkDigest, u64)>,
    count: u64,
}

impl RemoteIndex {
    /// Tells the server which chunks follow, once it has them.
    fn flush(&mut self) -> Result<()> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let batch = std::mem::take(&mut self.batch);
        self.uploads.wait_for(&batch)?;
        let digests: Vec<String> = batch.iter().map(|(digest, _)| digest.to_string()).collect();
        let offsets: Vec<u64> = batch.iter().map(|(_, offset)| *offset).collect();
        let wid = self.uploads.wid;
        let body = json!({ "digest-list": digests, "offset-list": offsets, "wid": wid });
        let (shared, path) = (&self.uploads.shared, self.uploads.kind.path("index"));
        shared.block_on(shared.session.put_json(&path, body.to_string().into()))?;
        Ok(())
    }
}

impl IndexSink for RemoteIndex {
    fn chunks(&self) -> Arc<dyn ChunkStore> {
        Arc::new(RemoteChunks(self.uploads.clone()))
    }

    fn append(&mut self, chunk: &StoredChunk) -> keepwell_store::Result<()> {
        self.batch.push((chunk.digest, self.encoder.size()));
        self.encoder.append(&chunk.digest, chunk.plain_bytes)?;
        self.count += 1;
        if self.batch.len() >= APPEND_CHUNKS {
            self.flush()?;
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> keepwell_store::Result<FileSummary> {
        self.flush()?;
        let (checksum, size) = (self.encoder.checksum(), self.encoder.size());
        let query = Query::new()
            .with("chunk-count", self.count)
            .with("csum", checksum.to_string())
            .with("size", size)
            .with("wid", self.uploads.wid);
        let (shared, path) = (&self.uploads.shared, self.uploads.kind.path("close"));
        shared.block_on(shared.session.post(&path, &query))?;
        Ok(FileSummary { size, checksum })
    }
}

/// Uploads for so many seconds, and throws it away: bytes a second. Spec: protocol.md §6.
pub(crate) fn upload_speed(client: &Client, store: &str, now: i64, seconds: f64) -> Result<f64> {
    let problem = |problem: keepwell_model::names::NameError| Error::protocol(problem.to_string());
    let snapshot = SnapshotId {
        group: "host/benchmark".parse().map_err(problem)?,
        time: BackupTime::from_unix(now).map_err(problem)?,
    };
    let backup = RemoteBackup::begin(client, store, &Namespace::default(), &snapshot, true)?;
    let data: Vec<u8> = (0..SPEEDTEST_BYTES).map(|at| at.to_le_bytes()[at % 4]).collect();
    let data = Bytes::from(data);
    let shared = &backup.shared;
    shared.block_on(async {
        let started = std::time::Instant::now();
        let mut sent: u64 = 0;
        let mut running = tokio::task::JoinSet::new();
        loop {
            while running.len() < SPEEDTEST_REQUESTS && started.elapsed().as_secs_f64() < seconds {
                let (session, data) = (shared.session.clone(), data.clone());
                running
                    .spawn(async move { session.upload("speedtest", &Query::new(), data).await });
            }
            let Some(done) = running.join_next().await else { break };
            done.map_err(|_| Error::protocol("a speed test was cut off"))??;
            sent += data.len() as u64;
        }
        Ok(sent as f64 / started.elapsed().as_secs_f64())
    })
}
