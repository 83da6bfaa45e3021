//! Makes a snapshot: archive after archive, then catalog and manifest.

use crate::error::{EngineError, Result};
use crate::pipeline::MadeUp;
use crate::pipeline::{ChunkStream, Consumer, Cutter, WorkerQueue, Workers, feed};
use crate::plugin::{Failure, Origin, Source, SourceRequest};
use crate::progress::{Cancel, Counters};
use crate::report::{Report, Skipped};
use crate::reuse::{self, Reusable};
use crate::sink::{Chunking, Destination, Piece, Sink};
use crate::snapshot::{UnverifiedManifest, read_index};
use crossbeam_channel::Receiver;
use keepwell_model::blob::{ENCRYPTED_HEADER_BYTES, HEADER_BYTES};
use keepwell_model::catalog::{CatalogKind, CatalogWriter};
use keepwell_model::manifest::{CryptMode, ManifestFile};
use keepwell_model::names::ArchiveKind;
use keepwell_model::{
    ArchiveLabel, ArchiveName, AuthId, Blob, BlobKind, Index, Manifest, Namespace, SnapshotId,
};
use keepwell_seal::{Chunker, EncryptionKey, Protection, SealError, Sealer};
use keepwell_store::{BackupSession, FileSummary, IndexLayout, SessionStore, SnapshotReader};
use serde_json::json;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

/// Most bytes of a `.conf` or `.log`, as they are and as they are stored: the reference server
/// takes no larger blob.
const SINGLE_BLOB_BYTES_MAX: usize = keepwell_model::blob::BLOB_BYTES_MAX;
const STORED_BLOB_BYTES_MAX: usize = (16 << 20) + ENCRYPTED_HEADER_BYTES;
/// Catalog bytes collected before they are cut.
const CATALOG_BATCH_BYTES: usize = 64 << 10;

/// What to back up into, and as what.
#[derive(Clone, Debug)]
pub struct BackupTarget {
    pub namespace: Namespace,
    pub snapshot: SnapshotId,
    pub owner: AuthId,
    pub protection: Protection,
    /// average of content-defined chunks and size of fixed ones, where the user asks for it
    pub chunk_bytes: Option<u32>,
}

/// What became of one archive.
#[derive(Clone, Debug)]
pub struct ArchiveSummary {
    /// names as the store has them, in the order in which the streams were opened
    pub names: Vec<ArchiveName>,
    pub entries: u64,
    /// length, and how much of it was not in the store before
    pub bytes: u64,
    pub new_bytes: u64,
    /// bytes that the new chunks take
    pub stored_bytes: u64,
    pub chunks: u64,
    pub new_chunks: u64,
    /// of the previous archive, not read
    pub reused_bytes: u64,
    pub reused_chunks: u64,
}

/// What became of the backup.
#[derive(Clone, Debug)]
pub struct BackupSummary {
    pub skipped: Vec<Skipped>,
    pub skipped_count: u64,
    /// of those, against the user's will
    pub trouble_count: u64,
}

/// The snapshot that this one builds on.
struct Previous {
    reader: Arc<dyn SnapshotReader>,
    manifest: Manifest,
}

/// A running backup. Nothing of it can be seen before [`Backup::finish`].
///
/// The order of the fields is that of the end: streams, then workers, then the session, which
/// takes away what was not finished.
pub struct Backup {
    catalog: Arc<Mutex<Option<Catalog>>>,
    workers: Workers,
    session: Arc<dyn BackupSession>,
    target: BackupTarget,
    previous: Option<Arc<Previous>>,
    previous_problem: Option<(SnapshotId, EngineError)>,
    manifest: Manifest,
    report: Report,
    cancel: Cancel,
    counters: Arc<Counters>,
}

impl Backup {
    pub fn begin(
        store: &dyn SessionStore,
        target: BackupTarget,
        report: Report,
        cancel: Cancel,
        counters: Arc<Counters>,
    ) -> Result<Self> {
        if let Some(bytes) = target.chunk_bytes {
            Chunker::new(bytes)?;
        }
        let session = store.begin(&target.namespace, &target.snapshot, target.owner.as_str())?;
        let workers = Workers::start(target.protection.encryption())?;
        let key = target.protection.key().map(|key| &**key);
        let mut previous_problem = None;
        let previous = session.previous().and_then(|reader| {
            let opened = UnverifiedManifest::read(&*reader);
            match opened.and_then(|manifest| manifest.verify(key)) {
                Ok(manifest) => Some(Arc::new(Previous { reader, manifest })),
                Err(problem) => {
                    previous_problem = Some((reader.snapshot().clone(), problem));
                    None
                }
            }
        });
        let mut manifest = Manifest::new(target.snapshot.clone());
        if let Some(key) = key {
            manifest.set_key_fingerprint(&key.fingerprint());
        }
        let catalog = Arc::default();
        Ok(Self {
            session,
            target,
            workers,
            previous,
            previous_problem,
            manifest,
            catalog,
            report,
            cancel,
            counters,
        })
    }

    /// The snapshot that this one builds on.
    pub fn previous(&self) -> Option<&SnapshotId> {
        self.previous.as_ref().map(|previous| &previous.manifest.snapshot)
    }

    /// The last snapshot where it can't be built on, and why.
    pub fn previous_problem(&self) -> Option<&(SnapshotId, EngineError)> {
        self.previous_problem.as_ref()
    }

    /// The files of the previous archive that these parts made, in their order; none where one of them is
    /// missing, or the key is another.
    pub fn previous_files(&self, label: &ArchiveLabel, parts: &[String]) -> Vec<ManifestFile> {
        let Some(previous) = &self.previous else { return Vec::new() };
        let files = parts.iter().map(|part| {
            let name = ArchiveName::new(label, &format!(".{part}"), ArchiveKind::Dynamic).ok()?;
            let file = previous.manifest.file(&name)?;
            has_our_digests(file, &self.target.protection).then(|| file.clone())
        });
        files.collect::<Option<_>>().unwrap_or_default()
    }

    /// Runs one source and waits until its archive is stored.
    pub fn add_archive(
        &mut self,
        source: &mut dyn Source,
        label: &ArchiveLabel,
        origin: Origin,
        request: SourceRequest,
    ) -> Result<ArchiveSummary> {
        let before = Totals::of(&self.counters);
        let open = Arc::new(Mutex::new(Vec::new()));
        let catalog_problem = CatalogProblem::default();
        let destination = SnapshotDestination {
            session: self.session.clone(),
            jobs: self.workers.queue().ok_or(EngineError::Worker)?,
            label: label.clone(),
            chunk_bytes: self.target.chunk_bytes,
            protection: self.target.protection.clone(),
            previous: self.previous.clone(),
            catalog: self.catalog.clone(),
            catalog_problem: catalog_problem.clone(),
            open: open.clone(),
            report: self.report.clone(),
            cancel: self.cancel.clone(),
            counters: self.counters.clone(),
        };
        let sink = Sink::new(
            Box::new(destination),
            self.report.clone(),
            self.cancel.clone(),
            self.counters.clone(),
        );
        // The sink goes with the source: when that returns, all streams have ended.
        let outcome = source.write_archive(origin, request, sink);
        let streams = std::mem::take(&mut *open.lock().unwrap_or_else(PoisonError::into_inner));
        let mut names = Vec::new();
        let mut failed = None;
        for stream in streams {
            let OpenStream { name, thread, .. } = stream;
            match thread.join().map_err(|_| EngineError::Worker)? {
                Ok((summary, made_up)) => {
                    self.list(&name, summary);
                    if !made_up.is_empty() {
                        reuse::note_made_up(&mut self.manifest, &name, &made_up);
                    }
                    names.push(name);
                }
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        if self.cancel.is_cancelled() {
            return Err(EngineError::Cancelled);
        }
        let catalog = catalog_problem.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(problem) = catalog {
            return Err(problem);
        }
        self.catalog_end_archive()?;
        // A source whose stream failed is told that it was cancelled.
        let entries = match (outcome, failed) {
            (Err(Failure::Cancelled) | Ok(_), Some(error)) => return Err(error),
            (Err(failure), _) => return Err(failure.into()),
            (Ok(summary), None) => summary.entries,
        };
        if names.is_empty() {
            let problem = "the source opened no stream: there is no archive";
            return Err(Failure::Invalid(problem.into()).into());
        }
        Ok(Totals::of(&self.counters).since(&before, names, entries))
    }

    fn list(&mut self, name: &ArchiveName, summary: FileSummary) {
        let FileSummary { size, checksum } = summary;
        let crypt_mode = self.target.protection.mode();
        self.manifest.files.push(ManifestFile { name: name.clone(), crypt_mode, size, checksum });
    }

    fn catalog_end_archive(&self) -> Result<()> {
        match &mut *self.catalog.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(catalog) => catalog.end_archive(),
            None => Ok(()),
        }
    }

    /// Stores the key itself, wrapped for a master key: spec formats.md §11.
    pub fn add_wrapped_key(&mut self, wrapped: &[u8]) -> Result<()> {
        let name = ArchiveName::wrapped_key();
        let header = [0; HEADER_BYTES];
        let blob = Blob::seal(BlobKind::Plain, [&header, wrapped].concat());
        let blob = blob.map_err(SealError::from)?;
        let summary = self.session.put_blob(&name, &blob)?;
        // Listed as encrypted although the blob is not: as the reference does.
        self.list(&name, summary);
        Ok(())
    }

    /// Stores the catalog of all archives; to be called once, behind the last of them.
    pub fn finish_catalog(&mut self) -> Result<Option<u64>> {
        let catalog = self.catalog.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(catalog) = catalog else { return Ok(None) };
        let summary = catalog.finish()?;
        self.list(&ArchiveName::catalog(), summary);
        Ok(Some(summary.size))
    }

    /// Stores the manifest and makes the snapshot visible.
    pub fn finish(mut self) -> Result<BackupSummary> {
        if self.cancel.is_cancelled() {
            return Err(EngineError::Cancelled);
        }
        self.finish_catalog()?;
        let totals = Totals::of(&self.counters);
        self.manifest.unprotected.insert(
            "chunk_upload_stats".into(),
            json!({
                "count": totals.chunks,
                "size": totals.bytes,
                "compressed_size": totals.stored_bytes,
                "duplicates": totals.chunks - totals.new_chunks,
            }),
        );
        if let Some(key) = self.target.protection.key() {
            let text = Manifest::signed_text(&self.manifest.to_json())
                .map_err(|problem| EngineError::Refused(problem.to_string()))?;
            self.manifest.signature = Some(key.sign(&text));
        }
        let manifest = Sealer::new()?.seal(&self.manifest.to_json(), None)?;
        if self.cancel.is_cancelled() {
            return Err(EngineError::Cancelled);
        }
        self.session.finish(&manifest)?;
        let (skipped_count, trouble_count) = self.report.counts();
        let skipped = self.report.skipped();
        Ok(BackupSummary { skipped, skipped_count, trouble_count })
    }
}

/// Counters at one moment.
struct Totals {
    bytes: u64,
    new_bytes: u64,
    stored_bytes: u64,
    chunks: u64,
    new_chunks: u64,
    reused_bytes: u64,
    reused_chunks: u64,
}

impl Totals {
    fn of(counters: &Counters) -> Self {
        Self {
            bytes: Counters::get(&counters.bytes),
            new_bytes: Counters::get(&counters.new_bytes),
            stored_bytes: Counters::get(&counters.stored_bytes),
            chunks: Counters::get(&counters.chunks),
            new_chunks: Counters::get(&counters.new_chunks),
            reused_bytes: Counters::get(&counters.reused_bytes),
            reused_chunks: Counters::get(&counters.reused_chunks),
        }
    }

    fn since(&self, before: &Self, names: Vec<ArchiveName>, entries: u64) -> ArchiveSummary {
        ArchiveSummary {
            names,
            entries,
            bytes: self.bytes - before.bytes,
            new_bytes: self.new_bytes - before.new_bytes,
            stored_bytes: self.stored_bytes - before.stored_bytes,
            chunks: self.chunks - before.chunks,
            new_chunks: self.new_chunks - before.new_chunks,
            reused_bytes: self.reused_bytes - before.reused_bytes,
            reused_chunks: self.reused_chunks - before.reused_chunks,
        }
    }
}

/// A stream on its way, and what it may take again.
type Started = (JoinHandle<Result<Finished>>, Option<Arc<Reusable>>);

/// What became of a stream, and what of it is made up.
type Finished = (FileSummary, Vec<MadeUp>);

/// Chunks that are encrypted have other digests than those that are not.
fn has_our_digests(file: &ManifestFile, protection: &Protection) -> bool {
    let is_encrypted = |mode| mode == CryptMode::Encrypt;
    is_encrypted(file.crypt_mode) == is_encrypted(protection.mode())
}

struct OpenStream {
    name: ArchiveName,
    reusable: Option<Arc<Reusable>>,
    thread: JoinHandle<Result<Finished>>,
}

/// Why the catalog could not be written; plugins are told only that it is over.
type CatalogProblem = Arc<Mutex<Option<EngineError>>>;

/// A snapshot as a source's destination.
struct SnapshotDestination {
    session: Arc<dyn BackupSession>,
    jobs: WorkerQueue,
    label: ArchiveLabel,
    chunk_bytes: Option<u32>,
    protection: Protection,
    previous: Option<Arc<Previous>>,
    catalog: Arc<Mutex<Option<Catalog>>>,
    catalog_problem: CatalogProblem,
    open: Arc<Mutex<Vec<OpenStream>>>,
    report: Report,
    cancel: Cancel,
    counters: Arc<Counters>,
}

fn failure(error: EngineError) -> Failure {
    match error {
        EngineError::Plugin(failure) => failure,
        other => Failure::Other(other.to_string()),
    }
}

impl SnapshotDestination {
    /// The index of the previous archive of this name, if it can be had.
    fn previous_index(&self, name: &ArchiveName) -> Option<Index> {
        let previous = self.previous.as_ref()?;
        let file = previous.manifest.file(name)?;
        if !has_our_digests(file, &self.protection) {
            return None;
        }
        read_index(&*previous.reader, file).ok()
    }

    fn start_stream(
        &self,
        name: &ArchiveName,
        chunking: Chunking,
        size: Option<u64>,
        pieces: Receiver<Piece>,
    ) -> Result<Started> {
        let (report, cancel) = (self.report.clone(), self.cancel.clone());
        let counters = self.counters.clone();
        let builder = thread::Builder::new().name("reader".into());
        let mut reusable = None;
        let stream = match chunking {
            Chunking::SingleBlob => {
                let (session, name) = (self.session.clone(), name.clone());
                let key = self.protection.encryption().cloned();
                let write = move || {
                    let mut blob = BlobConsumer { name, key, bytes: Vec::new(), filled: 0 };
                    feed(&pieces, &mut blob, &report, &cancel, &counters)?;
                    Ok((blob.store(&*session, &counters)?, Vec::new()))
                };
                let started = builder.spawn(write);
                return Ok((started.map_err(crate::error::io_error("start", "a thread"))?, None));
            }
            Chunking::ContentDefined => {
                let average = self.chunk_bytes.unwrap_or(Chunker::ARCHIVE_AVERAGE);
                let cutter = Cutter::Content(Chunker::new(average)?);
                // A server lends the previous chunks to who has read their index.
                let previous = self.previous_index(name).map(Arc::new);
                let index = self.session.create_index(name, IndexLayout::Dynamic)?;
                let chunks = index.chunks();
                let made_up = self
                    .previous
                    .as_ref()
                    .map_or_else(Vec::new, |previous| reuse::made_up_of(&previous.manifest, name));
                reusable =
                    previous.clone().map(|index| Arc::new(Reusable { index, chunks, made_up }));
                ChunkStream::start(cutter, &self.jobs, index, previous, &counters)?
            }
            Chunking::Fixed(chunk_bytes) => {
                let chunk_bytes = self.chunk_bytes.unwrap_or(chunk_bytes);
                if !chunk_bytes.is_power_of_two() || !(4096..=16 << 20).contains(&chunk_bytes) {
                    let problem = format!("chunks of {chunk_bytes} bytes are not possible");
                    return Err(Failure::Invalid(problem).into());
                }
                let layout = IndexLayout::Fixed { chunk_bytes, size };
                // Only to borrow its chunks: where these end needs no guess.
                self.previous_index(name);
                let index = self.session.create_index(name, layout)?;
                let cutter = Cutter::Fixed(chunk_bytes as usize);
                ChunkStream::start(cutter, &self.jobs, index, None, &counters)?
            }
        };
        let mut stream = stream;
        let run = move || {
            let fed = feed(&pieces, &mut stream, &report, &cancel, &counters);
            // Whoever still sends must not wait for ever.
            drop(pieces);
            match fed {
                Ok(made_up) => Ok((stream.finish()?, made_up)),
                Err(error) => Err(stream.fail(error)),
            }
        };
        let started = builder.spawn(run).map_err(crate::error::io_error("start", "a thread"))?;
        Ok((started, reusable))
    }
}

impl Destination for SnapshotDestination {
    fn reusable(&self, stream: u32) -> Option<Arc<Reusable>> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.get(stream as usize)?.reusable.clone()
    }

    fn open_stream(
        &mut self,
        suffix: &str,
        chunking: Chunking,
        size: Option<u64>,
        pieces: Receiver<Piece>,
    ) -> std::result::Result<Option<u64>, Failure> {
        let kind = match chunking {
            Chunking::ContentDefined => ArchiveKind::Dynamic,
            Chunking::Fixed(_) => ArchiveKind::Fixed,
            Chunking::SingleBlob => ArchiveKind::Blob,
        };
        let name = ArchiveName::new(&self.label, suffix, kind);
        let name = name.map_err(|problem| Failure::Invalid(problem.to_string()))?;
        let (thread, reusable) =
            self.start_stream(&name, chunking, size, pieces).map_err(failure)?;
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        // About as long as last time.
        let before = self.previous.as_ref().and_then(|previous| previous.manifest.file(&name));
        let guess = before.map(|file| file.size);
        open.push(OpenStream { name, reusable, thread });
        Ok(guess)
    }

    fn catalog_open(&mut self) -> std::result::Result<(), Failure> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let first = open.first().map(|stream| stream.name.clone());
        let name = first.ok_or_else(|| Failure::Invalid("there is no stream yet".into()))?;
        drop(open);
        let mut catalog = self.catalog.lock().unwrap_or_else(PoisonError::into_inner);
        let catalog = match &mut *catalog {
            Some(catalog) => catalog,
            empty => empty.insert(Catalog::start(&self.session, &self.jobs).map_err(failure)?),
        };
        catalog.begin_archive(&name).map_err(failure)
    }

    fn catalog_enter(&mut self, name: &[u8]) -> std::result::Result<(), Failure> {
        self.with_catalog(|catalog| catalog.writer.enter(name))
    }

    fn catalog_leave(&mut self) -> std::result::Result<(), Failure> {
        self.with_catalog(|catalog| match catalog.writer.depth() > 2 {
            true => catalog.writer.leave(),
            false => Ok(()),
        })
    }

    fn catalog_add(&mut self, name: &[u8], kind: &CatalogKind) -> std::result::Result<(), Failure> {
        self.with_catalog(|catalog| catalog.writer.add(name, kind))
    }
}

impl SnapshotDestination {
    fn with_catalog(
        &self,
        change: impl FnOnce(
            &mut Catalog,
        ) -> std::result::Result<(), keepwell_model::catalog::CatalogError>,
    ) -> std::result::Result<(), Failure> {
        let mut slot = self.catalog.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(catalog) = slot.as_mut().filter(|catalog| catalog.in_archive) else {
            return Err(Failure::Invalid("the catalog has not been opened".into()));
        };
        change(catalog).map_err(|problem| Failure::Invalid(problem.to_string()))?;
        if let Err(error) = catalog.pass_on(CATALOG_BATCH_BYTES) {
            let error = match slot.take() {
                Some(catalog) => catalog.stream.fail(error),
                None => error,
            };
            *self.catalog_problem.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            return Err(Failure::Cancelled);
        }
        Ok(())
    }
}

/// The catalog of the snapshot, for all archives that have entries.
struct Catalog {
    writer: CatalogWriter,
    stream: ChunkStream,
    in_archive: bool,
}

impl Catalog {
    fn start(session: &Arc<dyn BackupSession>, workers: &WorkerQueue) -> Result<Self> {
        let index = session.create_index(&ArchiveName::catalog(), IndexLayout::Dynamic)?;
        let cutter = Cutter::Content(Chunker::new(Chunker::CATALOG_AVERAGE)?);
        // Its bytes are not the archives': they are counted apart.
        let stream = ChunkStream::start(cutter, workers, index, None, &Arc::default())?;
        Ok(Self { writer: CatalogWriter::new(), stream, in_archive: false })
    }

    fn begin_archive(&mut self, name: &ArchiveName) -> Result<()> {
        if self.in_archive {
            return Err(Failure::Invalid("the catalog is open already".into()).into());
        }
        self.writer.enter(name.as_str().as_bytes())?;
        self.in_archive = true;
        Ok(())
    }

    fn end_archive(&mut self) -> Result<()> {
        if self.in_archive {
            while self.writer.depth() > 1 {
                self.writer.leave()?;
            }
            self.in_archive = false;
        }
        Ok(())
    }

    fn pass_on(&mut self, at_least: usize) -> Result<()> {
        if self.writer.pending() < at_least {
            return Ok(());
        }
        let bytes = self.writer.take();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let room = self.stream.room()?;
            let length = room.len().min(rest.len());
            room[..length].copy_from_slice(&rest[..length]);
            self.stream.filled(length)?;
            rest = &rest[length..];
        }
        Ok(())
    }

    fn finish(mut self) -> Result<FileSummary> {
        self.writer.finish()?;
        self.pass_on(0)?;
        self.stream.finish()
    }
}

/// A blob is small: it is collected, sealed and stored in one piece.
struct BlobConsumer {
    name: ArchiveName,
    key: Option<Arc<EncryptionKey>>,
    bytes: Vec<u8>,
    filled: usize,
}

impl Consumer for BlobConsumer {
    fn room(&mut self) -> Result<&mut [u8]> {
        if self.filled >= SINGLE_BLOB_BYTES_MAX {
            return Err(self.too_large("has more than 128 MiB"));
        }
        if self.bytes.len() == self.filled {
            let grown = (self.filled * 2).clamp(64 << 10, SINGLE_BLOB_BYTES_MAX);
            self.bytes.resize(grown, 0);
        }
        Ok(&mut self.bytes[self.filled..])
    }

    fn filled(&mut self, length: usize) -> Result<()> {
        self.filled += length;
        Ok(())
    }
}

impl BlobConsumer {
    fn too_large(&self, problem: &str) -> EngineError {
        let name = self.name.user_name();
        EngineError::Refused(format!("'{name}' {problem}: back it up as an image (NAME.img:PATH)"))
    }

    fn store(self, session: &dyn BackupSession, counters: &Counters) -> Result<FileSummary> {
        let plain = &self.bytes[..self.filled];
        let blob: Blob = Sealer::new()?.seal(plain, self.key.as_deref())?;
        if blob.as_bytes().len() > STORED_BLOB_BYTES_MAX {
            return Err(self.too_large("has more than 16 MiB, even compressed"));
        }
        let summary = session.put_blob(&self.name, &blob)?;
        Counters::add(&counters.new_bytes, plain.len() as u64);
        Counters::add(&counters.stored_bytes, summary.size);
        Ok(summary)
    }
}
