//! A session that makes a snapshot. Spec: protocol.md §4.
//!
//! The store's own session works in a hidden directory: whatever ends this one before `finish`
//! leaves nothing behind but chunks.

use crate::access::{Privileges, owns};
use crate::api::{Caller, SnapshotPath};
use crate::error::{ApiError, ApiResult};
use crate::http::Place;
use crate::params::{Kind, Param, Params, at_least, is, optional, required};
use crate::server::{Server, TaskGuard, acl_path};
use crate::session::{self, Endpoint, Input, Reply, Rooms};
use crate::stores::{self, Purpose};
use crate::tasks::Task;
use hyper::upgrade::OnUpgrade;
use hyper::{Method, StatusCode};
use keepwell_engine::snapshot::UnverifiedManifest;
use keepwell_model::blob::{CHUNK_BYTES_MAX, HEADER_BYTES};
use keepwell_model::index::IndexEncoder;
use keepwell_model::names::ArchiveKind;
use keepwell_model::{
    ArchiveName, Blob, BlobKind, ChunkDigest, FileChecksum, SealedChunk, StoredChunk, is_safe_name,
};
use keepwell_seal::{OpenError, Opener, Sealer};
use keepwell_store::{
    BackupSession, IndexLayout, IndexSink, SessionStore, SnapshotReader, StoreError,
};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Largest encoded chunk or blob.
const ENCODED_BYTES_MAX: i64 = CHUNK_BYTES_MAX as i64 + 44;
/// Images have chunks of this size.
const IMAGE_CHUNK_BYTES: u64 = 4 << 20;
/// Writers of one session.
const WRITERS_MAX: u64 = 256;
/// An image of this many chunks has 64 TiB. All images of a session together have no more.
const IMAGE_CHUNKS_MAX: u64 = 1 << 24;
/// What is read of the previous snapshot is larger only for archives of more than 3 TiB.
const FILE_BYTES: usize = 32 << 20;

thread_local! {
    static OPENER: RefCell<Option<Opener>> = const { RefCell::new(None) };
}

/// Counts for the manifest.
#[derive(Default)]
struct Statistics {
    count: u64,
    size: u64,
    compressed_size: u64,
    duplicates: u64,
}

/// Slots of an image's index, filled in any order.
struct Slots {
    size: Option<u64>,
    /// slots up to the end, filled or not
    count: u64,
    /// by position: what was not filled takes no memory, whatever a client announces
    digests: BTreeMap<u64, ChunkDigest>,
    /// taken from the previous index, and changed in places
    incremental: bool,
    /// chunks shorter than 4 MiB that were uploaded
    short: u64,
}

enum Content {
    Dynamic,
    Fixed(Slots),
}

struct Writer {
    name: ArchiveName,
    content: Content,
    sink: Box<dyn IndexSink>,
    encoder: IndexEncoder,
    appended: u64,
}

#[derive(Default)]
struct State {
    /// chunks that may be named in an index, and their lengths
    known: HashMap<ChunkDigest, u64>,
    writers: HashMap<u64, Writer>,
    last_wid: u64,
    files: u64,
    /// an index could not be closed
    broken: bool,
    manifest: Option<Blob>,
    finished: bool,
    statistics: Statistics,
}

pub(crate) struct Backup {
    store_session: Arc<dyn BackupSession>,
    previous: Option<Arc<dyn SnapshotReader>>,
    state: Mutex<State>,
    task: Arc<Task>,
    snapshot: keepwell_model::SnapshotId,
    is_benchmark: bool,
}

const DIGEST: Kind = Kind::Form(is::<ChunkDigest>);
const NAME: Kind = Kind::Form(is_safe_name);
const WID: Param = required("wid", Kind::Integer { minimum: 1, maximum: WRITERS_MAX as i64 });
const CHUNK: &[Param] = &[
    WID,
    required("digest", DIGEST),
    required("size", Kind::Integer { minimum: 1, maximum: CHUNK_BYTES_MAX as i64 }),
    required("encoded-size", Kind::Integer { minimum: 13, maximum: ENCODED_BYTES_MAX }),
];
const APPEND: &[Param] =
    &[WID, required("digest-list", Kind::Texts), required("offset-list", Kind::Integers)];
const CSUM: Param = required("csum", Kind::Form(is::<FileChecksum>));
const DYNAMIC_CLOSE: &[Param] =
    &[WID, required("chunk-count", at_least(1)), required("size", at_least(1)), CSUM];
const FIXED_CLOSE: &[Param] =
    &[WID, required("chunk-count", at_least(0)), required("size", at_least(0)), CSUM];

macro_rules! endpoint {
    ($method:ident $name:literal $params:expr, $input:expr, $run:ident) => {
        endpoint!($method $name $params, $input, $run, 0)
    };
    ($method:ident $name:literal $params:expr, $input:expr, $run:ident, $answer:expr) => {
        Endpoint {
            method: Method::$method,
            name: $name,
            params: $params,
            input: $input,
            answer_bytes: $answer,
            run: Backup::$run,
        }
    };
}

const BLOB: Input = Input::Bytes {
    limit: ENCODED_BYTES_MAX as usize,
    longer: |announced, found| format!("got blob with unexpected length ({announced} != {found})"),
};
const CHUNK_BLOB: Input = Input::Bytes {
    limit: ENCODED_BYTES_MAX as usize,
    longer: |_, _| "uploaded chunk is larger than announced.".into(),
};

pub(crate) const ENDPOINTS: &[Endpoint<Backup>] = &[
    endpoint!(POST "blob" &[
        required("file-name", NAME),
        required("encoded-size", Kind::Integer { minimum: 12, maximum: ENCODED_BYTES_MAX }),
    ], BLOB, blob),
    endpoint!(POST "dynamic_index" &[required("archive-name", NAME)], Input::None, dynamic_index),
    endpoint!(PUT "dynamic_index" APPEND, Input::Json, dynamic_append),
    endpoint!(POST "dynamic_chunk" CHUNK, CHUNK_BLOB, dynamic_chunk),
    endpoint!(POST "dynamic_close" DYNAMIC_CLOSE, Input::None, dynamic_close),
    endpoint!(POST "fixed_index" &[
        required("archive-name", NAME),
        optional("size", at_least(1)),
        optional("reuse-csum", Kind::Form(is::<FileChecksum>)),
    ], Input::None, fixed_index),
    endpoint!(PUT "fixed_index" APPEND, Input::Json, fixed_append),
    endpoint!(POST "fixed_chunk" CHUNK, CHUNK_BLOB, fixed_chunk),
    endpoint!(POST "fixed_close" FIXED_CLOSE, Input::None, fixed_close),
    endpoint!(GET "previous" &[required("archive-name", NAME)], Input::None, previous, FILE_BYTES),
    endpoint!(GET "previous_backup_time" &[], Input::None, previous_backup_time),
    endpoint!(POST "finish" &[], Input::None, finish),
    endpoint!(POST "speedtest" &[], Input::Discarded, speedtest),
];

pub(crate) struct Prepared {
    backup: Backup,
    guard: TaskGuard,
}

const BENCHMARK: &str = "host/benchmark";

/// Checks that the caller may make the snapshot, and begins it. `upgradable` is what the head of
/// the request says.
pub(crate) fn prepare(
    server: &Arc<Server>,
    caller: &Caller,
    path: &SnapshotPath,
    benchmark: bool,
    upgradable: ApiResult<()>,
) -> ApiResult<Prepared> {
    let SnapshotPath { store: name, namespace, snapshot } = path;
    let group = &snapshot.group;
    if !server.privileges(&caller.id, name, namespace).has_any(Privileges::BACKUP) {
        let text = "permission check failed - missing Datastore.Backup on";
        let text = format!("{text} {}", acl_path(name, namespace));
        return Err(ApiError::new(StatusCode::FORBIDDEN, text));
    }
    let store = server.store(name, Purpose::Write)?;
    upgradable?;
    // Fails where there is no such namespace.
    store.owner_of(namespace, group).map_err(stores::not_found)?;
    match (group.to_string() == BENCHMARK, benchmark) {
        (true, false) => {
            return Err(ApiError::bad("unable to run benchmark without --benchmark flags"));
        }
        (false, true) => {
            return Err(ApiError::bad("benchmark flags is only allowed on 'host/benchmark'"));
        }
        _ => {}
    }
    let begun = store.begin(namespace, snapshot, caller.id.as_str());
    if let Err(StoreError::Locked { why, .. }) = &begun {
        let dir = store.group_path(namespace, group);
        let dir = dir.display();
        return Err(ApiError::bad(format!(
            "unable to acquire lock on backup group directory \"{dir}\" - {why}"
        )));
    }
    // The group is locked now: nobody gives it to somebody else.
    if let Some(owner) = store.owner_of(namespace, group).map_err(stores::not_found)?
        && !benchmark
        && !owns(&caller.id, &owner)
    {
        let text = format!("backup owner check failed ({} != {owner})", caller.id);
        return Err(ApiError::bad(text));
    }
    let begun = begun.map_err(stores::not_found)?;
    let previous = match begun.previous() {
        Some(reader) => {
            // One that was found damaged is no base for the next.
            let manifest = UnverifiedManifest::read(&*reader)?.unverified();
            (!manifest.verify_failed()).then_some(reader)
        }
        None => None,
    };
    let kind = if benchmark { "benchmark" } else { "backup" };
    let guard = server.start_session(kind, format!("{name}:{group}"), &caller.id)?;
    let task = guard.task.clone();
    let place = if namespace.is_root() { String::new() } else { format!("[{namespace}]:") };
    task.log(&format!("starting new {kind} on datastore '{name}': \"{place}{snapshot}\""));
    let (state, is_benchmark) = (Mutex::default(), benchmark);
    let snapshot = snapshot.clone();
    let backup = Backup { store_session: begun, previous, state, task, snapshot, is_benchmark };
    Ok(Prepared { backup, guard })
}

/// Serves the session once the connection has been upgraded.
pub(crate) async fn run(prepared: Prepared, upgrade: OnUpgrade, rooms: Rooms, place: Arc<Place>) {
    let Prepared { backup, guard } = prepared;
    let backup = Arc::new(backup);
    let task = backup.task.clone();
    let outcome = match upgrade.await {
        Ok(upgraded) => session::serve(upgraded, backup.clone(), ENDPOINTS, rooms, &task).await,
        Err(error) => Err(format!("connection error: {error}")),
    };
    // The store's session goes away here, on a thread that may block.
    let ended = tokio::task::spawn_blocking(move || {
        let outcome = backup.conclude(outcome);
        drop(backup);
        guard.end(&outcome);
    });
    let _ = ended.await;
    drop(place);
}

impl Backup {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What became of the backup, when its connection has ended in this way.
    fn conclude(&self, outcome: Result<(), String>) -> Result<(), String> {
        let finished = self.state().finished;
        match outcome {
            Ok(()) if finished => self.task.log("backup finished successfully"),
            Err(problem) if finished => {
                self.task.log(&format!("backup had errors but finished: {problem}"));
            }
            Ok(()) if self.is_benchmark => self.task.log("benchmark finished successfully"),
            Ok(()) => {
                self.task.log("removing unfinished backup");
                return Err("backup ended but finished flag is not set.".into());
            }
            Err(problem) => {
                self.task.log(&format!("backup failed: {problem}"));
                self.task.log("removing failed backup");
                tracing::info!("backup of {}: {problem}", self.snapshot);
                return Err(problem);
            }
        }
        Ok(())
    }

    /// The state of a backup that is still being made.
    fn open_state(&self) -> ApiResult<MutexGuard<'_, State>> {
        let state = self.state();
        match state.finished {
            true => Err(ApiError::bad("backup already marked as finished.")),
            false => Ok(state),
        }
    }

    fn blob(&self, params: &Params, body: Vec<u8>) -> ApiResult<Reply> {
        let given = params.text("file-name").unwrap_or_default();
        if !given.ends_with(".blob") {
            return Err(ApiError::bad(format!("wrong blob file extension: '{given}'")));
        }
        let name: ArchiveName = params.needed("file-name")?;
        let announced = params.integer("encoded-size").unwrap_or_default();
        if body.len() as i64 != announced {
            let length = body.len();
            let text = format!("got blob with unexpected length ({announced} != {length})");
            return Err(ApiError::bad(text));
        }
        check_magic(&body)?;
        let blob = Blob::parse(body).map_err(|error| ApiError::bad(error.to_string()))?;
        let mut state = self.open_state()?;
        let size = blob.as_bytes().len();
        if name == ArchiveName::manifest() {
            // It is written when all else is there.
            state.manifest = Some(blob);
        } else {
            self.store_session.put_blob(&name, &blob)?;
        }
        state.files += 1;
        state.statistics.size += size as u64;
        state.statistics.compressed_size += size as u64;
        self.task.log(&format!("add blob \"{name}\" ({size} bytes, comp: {size})"));
        Ok(().into())
    }

    fn add_writer(&self, params: &Params, kind: ArchiveKind, content: Content) -> ApiResult<Reply> {
        let given = params.text("archive-name").unwrap_or_default();
        let name: ArchiveName = match given.parse::<ArchiveName>() {
            Ok(name) if name.kind() == kind => name,
            _ => return Err(ApiError::bad(format!("wrong archive extension: '{given}'"))),
        };
        let mut state = self.open_state()?;
        if state.last_wid >= WRITERS_MAX {
            return Err(ApiError::bad("too many archives in one backup"));
        }
        let (layout, encoder) = match &content {
            Content::Dynamic => (IndexLayout::Dynamic, IndexEncoder::dynamic()),
            Content::Fixed(slots) => {
                let chunk_bytes = IMAGE_CHUNK_BYTES as u32;
                let layout = IndexLayout::Fixed { chunk_bytes, size: slots.size };
                (layout, IndexEncoder::fixed(chunk_bytes))
            }
        };
        let sink = self.store_session.create_index(&name, layout)?;
        state.last_wid += 1;
        let wid = state.last_wid;
        self.task.log(&format!("created new {} index {wid} (\"{name}\")", kind_name(kind)));
        state.writers.insert(wid, Writer { name, content, sink, encoder, appended: 0 });
        Ok(Reply::Data(wid.into()))
    }

    fn dynamic_index(&self, params: &Params, _: Vec<u8>) -> ApiResult<Reply> {
        self.add_writer(params, ArchiveKind::Dynamic, Content::Dynamic)
    }

    fn fixed_index(&self, params: &Params, _: Vec<u8>) -> ApiResult<Reply> {
        let size = params.integer("size").and_then(|size| u64::try_from(size).ok());
        let count = size.map(|size| size.div_ceil(IMAGE_CHUNK_BYTES));
        if count.is_some_and(|count| count > IMAGE_CHUNKS_MAX) {
            return Err(ApiError::bad("the image is too large"));
        }
        let mut slots = Slots::new(size, count.unwrap_or(0));
        if let Some(checksum) = params.parsed::<FileChecksum>("reuse-csum")? {
            if size.is_none() {
                return Err(ApiError::bad("size is required for incremental backups"));
            }
            self.reuse(params, &checksum, &mut slots)?;
        }
        self.add_writer(params, ArchiveKind::Fixed, Content::Fixed(slots))
    }

    /// Starts an image from the previous one.
    fn reuse(&self, params: &Params, checksum: &FileChecksum, slots: &mut Slots) -> ApiResult<()> {
        let none = "cannot reuse index - no valid previous backup exists";
        let previous = self.previous.as_ref().ok_or_else(|| ApiError::bad(none))?;
        let name: ArchiveName = params.needed("archive-name")?;
        let index = previous.read_index(&name)?;
        if index.checksum() != *checksum {
            let text = format!(
                "expected csum ({checksum}) doesn't match last backup's ({}), cannot do incremental backup",
                index.checksum()
            );
            return Err(ApiError::bad(text));
        }
        let (old, new) = (index.len() as u64, slots.count);
        if old != new {
            let text = format!("cannot reuse index - index sizes not equal ({old} != {new})");
            return Err(ApiError::bad(text));
        }
        self.open_state()?.check_slots(new)?;
        // To append them once more, a client has to read the previous index.
        slots.digests = (0..).zip(index.chunks().map(|chunk| chunk.digest)).collect();
        slots.incremental = true;
        Ok(())
    }

    fn dynamic_chunk(&self, params: &Params, body: Vec<u8>) -> ApiResult<Reply> {
        self.chunk(params, body, ArchiveKind::Dynamic)
    }

    fn fixed_chunk(&self, params: &Params, body: Vec<u8>) -> ApiResult<Reply> {
        self.chunk(params, body, ArchiveKind::Fixed)
    }

    fn chunk(&self, params: &Params, body: Vec<u8>, kind: ArchiveKind) -> ApiResult<Reply> {
        let wid = writer_id(params);
        let digest: ChunkDigest = params.needed("digest")?;
        let size = params.integer("size").unwrap_or_default().unsigned_abs();
        let announced = params.integer("encoded-size").unwrap_or_default();
        if body.len() as i64 != announced {
            return Err(ApiError::bad("uploaded chunk has unexpected size."));
        }
        let chunks = {
            let mut state = self.open_state()?;
            let writer = writer(&mut state, wid, kind)?;
            if let Content::Fixed(slots) = &mut writer.content {
                if size > IMAGE_CHUNK_BYTES {
                    let text = format!(
                        "fixed writer '{}' - got large chunk ({size} > {IMAGE_CHUNK_BYTES}",
                        writer.name
                    );
                    return Err(ApiError::bad(text));
                }
                if size < IMAGE_CHUNK_BYTES {
                    slots.short += 1;
                    if slots.short > 1 {
                        let text = format!(
                            "fixed writer '{wid}' - detected multiple end chunks (chunk size too small)"
                        );
                        return Err(ApiError::bad(text));
                    }
                }
            }
            writer.sink.chunks()
        };
        let kind = check_chunk(&body, &digest, size)?;
        let payload = body.get(HEADER_BYTES..).unwrap_or_default();
        let stored = chunks.insert(&SealedChunk::new(digest, size, kind, payload))?;
        let mut state = self.open_state()?;
        state.known.insert(digest, size);
        let statistics = &mut state.statistics;
        statistics.count += 1;
        statistics.size += size;
        statistics.compressed_size += stored.stored_bytes;
        statistics.duplicates += u64::from(stored.known);
        Ok(Reply::Data(digest.to_string().into()))
    }

    fn dynamic_append(&self, params: &Params, _: Vec<u8>) -> ApiResult<Reply> {
        self.append(params, ArchiveKind::Dynamic)
    }

    fn fixed_append(&self, params: &Params, _: Vec<u8>) -> ApiResult<Reply> {
        self.append(params, ArchiveKind::Fixed)
    }

    fn append(&self, params: &Params, kind: ArchiveKind) -> ApiResult<Reply> {
        let (digests, offsets) = (params.texts("digest-list"), params.integers("offset-list"));
        if digests.len() != offsets.len() {
            let (offsets, digests) = (offsets.len(), digests.len());
            let text = format!("offset list has wrong length ({offsets} != {digests})");
            return Err(ApiError::bad(text));
        }
        let mut state = self.open_state()?;
        let state = &mut *state;
        if kind == ArchiveKind::Fixed {
            state.check_slots(digests.len() as u64)?;
        }
        for (digest, offset) in digests.iter().zip(offsets) {
            let digest: ChunkDigest =
                digest.parse().map_err(|_| ApiError::bad(format!("'{digest}' is no digest")))?;
            let length = state.known.get(&digest).copied();
            let length = length.ok_or_else(|| ApiError::bad(format!("no such chunk {digest}")))?;
            let offset = u64::try_from(offset)
                .map_err(|_| ApiError::bad(format!("offset {offset} is negative")))?;
            let writer = writer(state, writer_id(params), kind)?;
            match &mut writer.content {
                Content::Dynamic => writer.push(&digest, length, offset)?,
                Content::Fixed(slots) => slots.set(&digest, length, offset)?,
            }
            writer.appended += 1;
        }
        Ok(().into())
    }

    fn dynamic_close(&self, params: &Params, _: Vec<u8>) -> ApiResult<Reply> {
        self.close(params, ArchiveKind::Dynamic)
    }

    fn fixed_close(&self, params: &Params, _: Vec<u8>) -> ApiResult<Reply> {
        self.close(params, ArchiveKind::Fixed)
    }

    /// A writer that can't be closed as announced is gone, and the backup can't be finished.
    fn close(&self, params: &Params, kind: ArchiveKind) -> ApiResult<Reply> {
        let mut state = self.open_state()?;
        let wid = writer_id(params);
        writer(&mut state, wid, kind)?;
        let Some(writer) = state.writers.remove(&wid) else { return Err(ApiError::internal()) };
        let name = writer.name.clone();
        match close_writer(writer, params, &state.known) {
            Ok((size, count)) => {
                state.files += 1;
                self.task.log(&format!("Upload statistics for '{name}'"));
                self.task.log(&format!("Size: {size}"));
                self.task.log(&format!("Chunk count: {count}"));
                Ok(().into())
            }
            Err(problem) => {
                state.broken = true;
                let kind = kind_name(kind);
                Err(ApiError::bad(format!("{kind} writer '{name}' close failed - {problem}")))
            }
        }
    }

    fn previous(&self, params: &Params, _: Vec<u8>) -> ApiResult<Reply> {
        let given = params.text("archive-name").unwrap_or_default();
        let previous = self.previous.as_ref();
        let previous = previous.ok_or_else(|| ApiError::bad("no valid previous backup"))?;
        let (name, bytes) = stores::read_file(&**previous, given)?;
        self.task.log(&format!("download '{name}' from previous backup."));
        if name.kind() != ArchiveKind::Blob {
            let index = keepwell_store::parse_index(&name, previous.snapshot(), bytes.clone())?;
            let mut state = self.open_state()?;
            for chunk in index.chunks() {
                state.known.insert(chunk.digest, chunk.end - chunk.start);
            }
            self.task.log(&format!("register chunks in '{name}' from previous backup."));
        }
        Ok(Reply::Bytes(bytes))
    }

    fn previous_backup_time(&self, _: &Params, _: Vec<u8>) -> ApiResult<Reply> {
        let time = self.previous.as_ref().map(|previous| previous.snapshot().time.unix());
        Ok(Reply::Data(time.map_or(Value::Null, Value::from)))
    }

    fn finish(&self, _: &Params, _: Vec<u8>) -> ApiResult<Reply> {
        let mut state = self.open_state()?;
        if state.broken || !state.writers.is_empty() {
            return Err(ApiError::bad("found open index writer - unable to finish backup"));
        }
        if state.files == 0 {
            let text = "backup does not contain valid files (file count == 0)";
            return Err(ApiError::bad(text));
        }
        let unable =
            |text: String| ApiError::bad(format!("unable to update manifest blob - {text}"));
        let manifest = state.manifest.take();
        let manifest = manifest.ok_or_else(|| unable("there is no index.json.blob".into()))?;
        let opened = UnverifiedManifest::open(&self.snapshot, manifest.into_bytes());
        let opened = opened.map_err(|error| unable(keepwell_engine::restore::chain(&error)))?;
        let mut manifest = opened.unverified();
        let Statistics { count, size, compressed_size, duplicates } = state.statistics;
        let statistics = json!({
            "count": count, "size": size,
            "compressed_size": compressed_size, "duplicates": duplicates,
        });
        manifest.unprotected.insert("chunk_upload_stats".into(), statistics);
        let sealed = Sealer::new().and_then(|mut sealer| sealer.seal(&manifest.to_json(), None));
        let sealed = sealed.map_err(|error| unable(error.to_string()))?;
        self.store_session.finish(&sealed)?;
        state.finished = true;
        self.task.log("successfully finished backup");
        Ok(().into())
    }

    fn speedtest(&self, _: &Params, _: Vec<u8>) -> ApiResult<Reply> {
        Ok(().into())
    }
}

fn kind_name(kind: ArchiveKind) -> &'static str {
    if kind == ArchiveKind::Fixed { "fixed" } else { "dynamic" }
}

fn writer_id(params: &Params) -> u64 {
    params.integer("wid").unwrap_or_default().unsigned_abs()
}

fn writer(state: &mut State, wid: u64, kind: ArchiveKind) -> ApiResult<&mut Writer> {
    let found = state.writers.get_mut(&wid).filter(|writer| writer.name.kind() == kind);
    let name = kind_name(kind);
    found.ok_or_else(|| ApiError::bad(format!("{name} writer '{wid}' not registered")))
}

/// Compares a writer with what its client says, and writes its index; returns size and chunks.
fn close_writer(
    mut writer: Writer,
    params: &Params,
    known: &HashMap<ChunkDigest, u64>,
) -> Result<(u64, u64), String> {
    let number = |name: &str| params.integer(name).unwrap_or_default().unsigned_abs();
    let (count, size) = (number("chunk-count"), number("size"));
    match &writer.content {
        Content::Fixed(slots) => slots.check(writer.appended, count, size)?,
        Content::Dynamic if writer.appended != count => {
            return Err(format!("unexpected chunk count ({} != {count})", writer.appended));
        }
        Content::Dynamic => {}
    }
    writer.fill(known)?;
    let found = writer.encoder.size();
    let is_incremental = matches!(&writer.content, Content::Fixed(slots) if slots.incremental);
    if found != size && !is_incremental {
        return Err(format!("unexpected file size ({found} != {size})"));
    }
    let announced = params.parsed::<FileChecksum>("csum").map_err(|error| error.message)?;
    if announced != Some(writer.encoder.checksum()) {
        return Err("got unexpected checksum".into());
    }
    let count = writer.encoder.count();
    let summary = writer.sink.finish().map_err(|error| error.to_string())?;
    Ok((summary.size, count))
}

impl Writer {
    /// The next chunk of a stream.
    fn push(&mut self, digest: &ChunkDigest, length: u64, offset: u64) -> ApiResult<()> {
        let end = self.encoder.size();
        if offset != end {
            let name = &self.name;
            let text = format!(
                "dynamic writer '{name}' append chunk failed - got strange chunk offset ({end} != {offset})"
            );
            return Err(ApiError::bad(text));
        }
        self.write(digest, length)
    }

    fn write(&mut self, digest: &ChunkDigest, length: u64) -> ApiResult<()> {
        let bad = |error: keepwell_model::index::AppendError| ApiError::bad(error.to_string());
        self.encoder.append(digest, length).map_err(bad)?;
        let digest = *digest;
        let chunk = StoredChunk { digest, plain_bytes: length, stored_bytes: 0, known: true };
        Ok(self.sink.append(&chunk)?)
    }

    /// Writes the slots of an image in their order.
    fn fill(&mut self, known: &HashMap<ChunkDigest, u64>) -> Result<(), String> {
        let Content::Fixed(slots) = &mut self.content else { return Ok(()) };
        let (digests, count, size) = (std::mem::take(&mut slots.digests), slots.count, slots.size);
        let in_order = (0u64..).zip(digests.keys()).take_while(|(expected, at)| expected == *at);
        let filled = in_order.count();
        if filled as u64 != count {
            return Err(format!("chunk {filled} is missing"));
        }
        for (position, digest) in digests {
            let length = known.get(&digest).copied().unwrap_or(IMAGE_CHUNK_BYTES);
            let start = position * IMAGE_CHUNK_BYTES;
            let length = match size {
                // A short chunk of the previous image is the last of this one.
                Some(size) => length.min(size.saturating_sub(start)),
                None => length,
            };
            self.write(&digest, length).map_err(|error| error.message)?;
        }
        Ok(())
    }
}

impl State {
    /// Fails where so many slots more would be too many.
    fn check_slots(&self, more: u64) -> ApiResult<()> {
        let slots = self.writers.values().map(|writer| match &writer.content {
            Content::Fixed(slots) => slots.digests.len() as u64,
            Content::Dynamic => 0,
        });
        match slots.sum::<u64>() + more > IMAGE_CHUNKS_MAX {
            true => Err(ApiError::bad("the images are too large")),
            false => Ok(()),
        }
    }
}

impl Slots {
    fn new(size: Option<u64>, count: u64) -> Self {
        Self { size, count, digests: BTreeMap::new(), incremental: false, short: 0 }
    }

    /// Puts a chunk where it begins.
    fn set(&mut self, digest: &ChunkDigest, length: u64, offset: u64) -> ApiResult<()> {
        let end = offset.checked_add(length);
        let bad = |text: String| Err(ApiError::bad(text));
        let Some(end) = end else { return bad(format!("got unaligned chunk (pos = {offset})")) };
        if !offset.is_multiple_of(IMAGE_CHUNK_BYTES) {
            return bad(format!("got unaligned chunk (pos = {offset})"));
        }
        if let Some(size) = self.size {
            if end > size {
                return bad(format!("write chunk data exceeds size ({end} >= {size})"));
            }
            if length != IMAGE_CHUNK_BYTES && end != size {
                return bad(format!("chunk with unexpected size {length} (pos = {offset})"));
            }
        }
        let position = offset / IMAGE_CHUNK_BYTES;
        if position >= IMAGE_CHUNKS_MAX {
            return bad("the image is too large".into());
        }
        self.count = self.count.max(position + 1);
        self.digests.insert(position, *digest);
        Ok(())
    }

    fn check(&self, appended: u64, count: u64, size: u64) -> Result<(), String> {
        if appended != count {
            return Err(format!("received wrong number of chunk ({appended} != {count})"));
        }
        let slots = self.count;
        if !self.incremental && slots != count {
            return Err(format!("unexpected chunk count ({slots} != {count})"));
        }
        match self.size {
            Some(expected) if !self.incremental && expected != size => {
                Err(format!("unexpected file size ({expected} != {size})"))
            }
            _ => Ok(()),
        }
    }
}

fn wrong_magic() -> ApiError {
    ApiError::bad("unable to parse raw blob - wrong magic")
}

fn check_magic(bytes: &[u8]) -> ApiResult<BlobKind> {
    BlobKind::of_magic(bytes).ok_or_else(wrong_magic)
}

/// Whether a chunk's content is what its name and length say, as far as that can be seen. Its
/// checksum does not matter: it is made anew when the chunk is stored.
fn check_chunk(bytes: &[u8], digest: &ChunkDigest, size: u64) -> ApiResult<BlobKind> {
    let kind = check_magic(bytes)?;
    if bytes.len() < kind.header_bytes() {
        return Err(ApiError::bad("unable to parse raw blob - too small"));
    }
    if kind.is_encrypted() {
        return Ok(kind);
    }
    let opened = OPENER.with_borrow_mut(|opener| {
        let opener = match opener {
            Some(opener) => opener,
            empty => empty.insert(Opener::new()?),
        };
        opener.check_plain_chunk(bytes, digest, size)
    });
    match opened {
        Ok(()) => Ok(kind),
        Err(OpenError::Digest) => Err(ApiError::bad("detected chunk with wrong digest.")),
        Err(OpenError::Length { found, .. }) => {
            Err(ApiError::bad(format!("detected chunk with wrong length ({size} != {found})")))
        }
        Err(other) => Err(ApiError::bad(other.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: ChunkDigest = ChunkDigest::from_bytes([7; 32]);

    #[test]
    fn slots_take_memory_for_what_was_appended() {
        let mut slots = Slots::new(None, 0);
        let last = IMAGE_CHUNKS_MAX - 1;
        slots.set(&DIGEST, 5000, last * IMAGE_CHUNK_BYTES).unwrap();
        assert_eq!((slots.count, slots.digests.len()), (IMAGE_CHUNKS_MAX, 1));
        slots.set(&DIGEST, 5000, IMAGE_CHUNKS_MAX * IMAGE_CHUNK_BYTES).unwrap_err();
        let error = slots.check(1, 1, 5000).unwrap_err();
        assert_eq!(error, format!("unexpected chunk count ({IMAGE_CHUNKS_MAX} != 1)"));
    }

    #[test]
    fn slots_are_filled_in_any_order_and_within_the_image() {
        let mut slots = Slots::new(Some(5_000_000), 2);
        assert!(slots.digests.is_empty());
        slots.set(&DIGEST, 805_696, IMAGE_CHUNK_BYTES).unwrap();
        slots.set(&DIGEST, IMAGE_CHUNK_BYTES, 0).unwrap();
        slots.set(&DIGEST, IMAGE_CHUNK_BYTES, 17).unwrap_err();
        slots.set(&DIGEST, IMAGE_CHUNK_BYTES, 2 * IMAGE_CHUNK_BYTES).unwrap_err();
        slots.set(&DIGEST, 1, u64::MAX).unwrap_err();
        slots.check(2, 2, 5_000_000).unwrap();
        assert_eq!(slots.digests.keys().copied().collect::<Vec<_>>(), [0, 1]);
    }
}
