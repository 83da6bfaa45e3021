//! Where a source puts its archive: calls queue, and native threads do the work.

use crate::input::InputFile;
use crate::plugin::{EntryKind, Extent, Failure, Timestamp};
use crate::progress::{Cancel, Counters};
use crate::report::{Notice, Omission, Report};
use crate::reuse::{Balance, Reusable, Reuse, Tail};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded};
use keepwell_model::StoredChunk;
use keepwell_model::catalog::CatalogKind;
use std::sync::Arc;
use std::time::Duration;

/// Pieces that wait in a stream: each may hold a descriptor and some kilobytes.
const QUEUE_PIECES: usize = 128;
/// One call may not hand over more bytes than this.
const WRITE_BYTES_MAX: usize = 1 << 20;
/// Streams of one archive.
const STREAMS_MAX: usize = 4;
/// Directories within each other in a catalog.
const CATALOG_DEPTH_MAX: usize = 65_536;

/// How a stream is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chunking {
    ContentDefined,
    Fixed(u32),
    SingleBlob,
}

/// A piece of a stream.
pub(crate) enum Piece {
    Bytes(Vec<u8>),
    File {
        file: Arc<InputFile>,
        offset: u64,
        length: u64,
    },
    /// chunks that are stored already
    Known(Vec<StoredChunk>),
    /// a source of unknown size; the answer is its length
    ToEnd {
        file: Arc<InputFile>,
        answer: Sender<u64>,
    },
}

/// Opens streams and keeps the catalog: a snapshot, or a file.
pub(crate) trait Destination: Send {
    /// Starts a consumer of pieces; `size` is their length where that is known. Returns how long the stream will be, where that can be guessed.
    fn open_stream(
        &mut self,
        suffix: &str,
        chunking: Chunking,
        size: Option<u64>,
        pieces: Receiver<Piece>,
    ) -> Result<Option<u64>, Failure>;
    /// What of the previous archive a stream may take again, if anything.
    fn reusable(&self, stream: u32) -> Option<Arc<Reusable>>;
    fn catalog_open(&mut self) -> Result<(), Failure>;
    fn catalog_enter(&mut self, name: &[u8]) -> Result<(), Failure>;
    fn catalog_leave(&mut self) -> Result<(), Failure>;
    fn catalog_add(&mut self, name: &[u8], kind: &CatalogKind) -> Result<(), Failure>;
}

struct OpenStream {
    suffix: String,
    pieces: Sender<Piece>,
    /// what its source said before
    size: Option<u64>,
    /// its length so far
    position: u64,
    tail: Option<Tail>,
    balance: Balance,
}

/// Where content of the previous archive lies now, and how long the stream is with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reused {
    pub at: u64,
    pub position: u64,
}

/// What a source is given. When it is dropped, its streams end.
pub struct Sink {
    destination: Box<dyn Destination>,
    streams: Vec<OpenStream>,
    /// none before it is opened
    catalog_depth: Option<usize>,
    report: Report,
    cancel: Cancel,
    counters: Arc<Counters>,
}

impl Sink {
    pub(crate) fn new(
        destination: Box<dyn Destination>,
        report: Report,
        cancel: Cancel,
        counters: Arc<Counters>,
    ) -> Self {
        Self { destination, streams: Vec::new(), catalog_depth: None, report, cancel, counters }
    }

    /// Returns the stream's number.
    pub fn open_stream(
        &mut self,
        suffix: &str,
        chunking: Chunking,
        size: Option<u64>,
    ) -> Result<u32, Failure> {
        self.cancel.check()?;
        if self.streams.len() >= STREAMS_MAX {
            return Err(Failure::Invalid(format!("more than {STREAMS_MAX} streams")));
        }
        if !suffix.starts_with('.') {
            return Err(Failure::Invalid(format!("suffix {suffix:?} does not begin with '.'")));
        }
        if self.streams.iter().any(|open| open.suffix == suffix) {
            return Err(Failure::Invalid(format!("two streams are called {suffix:?}")));
        }
        if let Chunking::Fixed(size) = chunking
            && !size.is_power_of_two()
        {
            let text = format!("chunks of {size} bytes are not possible: it takes a power of two");
            return Err(Failure::Invalid(text));
        }
        let (pieces, queue) = bounded(QUEUE_PIECES);
        let guess = self.destination.open_stream(suffix, chunking, size, queue)?;
        Counters::add(&self.counters.total, size.or(guess).unwrap_or(0));
        self.streams.push(OpenStream {
            suffix: suffix.to_owned(),
            pieces,
            size,
            position: 0,
            tail: None,
            balance: Balance::default(),
        });
        Ok(self.streams.len() as u32 - 1)
    }

    /// A piece of so many bytes.
    fn send(&mut self, stream: u32, piece: Piece, length: u64) -> Result<(), Failure> {
        self.cancel.check()?;
        let stream = self.streams.get_mut(stream as usize);
        let stream = stream.ok_or_else(|| Failure::Invalid("no such stream".into()))?;
        let position = stream.position.checked_add(length);
        stream.position = position.ok_or_else(|| Failure::Invalid("length overflows".into()))?;
        stream.tail = None;
        // The consumer is gone when it failed; its own error is the one to show.
        stream.pieces.send(piece).map_err(|_| Failure::Cancelled)
    }

    pub fn write(&mut self, stream: u32, bytes: Vec<u8>) -> Result<(), Failure> {
        if bytes.len() > WRITE_BYTES_MAX {
            return Err(Failure::Invalid("more than 1 MiB in one write".into()));
        }
        let length = bytes.len() as u64;
        self.send(stream, Piece::Bytes(bytes), length)
    }

    pub fn splice(
        &mut self,
        stream: u32,
        file: Arc<InputFile>,
        offset: u64,
        length: u64,
    ) -> Result<(), Failure> {
        if offset.checked_add(length).is_none() {
            return Err(Failure::Invalid("length overflows".into()));
        }
        self.send(stream, Piece::File { file, offset, length }, length)
    }

    /// Waits until the source is read to its end; returns its length.
    pub fn splice_to_end(&mut self, stream: u32, file: Arc<InputFile>) -> Result<u64, Failure> {
        let (answer, length) = bounded(1);
        self.send(stream, Piece::ToEnd { file, answer }, 0)?;
        loop {
            match length.recv_timeout(Duration::from_millis(200)) {
                Ok(length) => {
                    if let Some(stream) = self.streams.get_mut(stream as usize) {
                        stream.position = stream.position.saturating_add(length);
                    }
                    return Ok(length);
                }
                Err(RecvTimeoutError::Disconnected) => return Err(Failure::Cancelled),
                // The consumer may have failed before it came to this piece, which then waits for
                // ever. A piece of nothing finds that out.
                Err(RecvTimeoutError::Timeout) => {
                    self.cancel.check()?;
                    let probe = self.streams.get(stream as usize);
                    let probe =
                        probe.map(|stream| stream.pieces.try_send(Piece::Bytes(Vec::new())));
                    if matches!(probe, Some(Err(TrySendError::Disconnected(_)))) {
                        return Err(Failure::Cancelled);
                    }
                }
            }
        }
    }

    /// Takes content of the previous archive again; none where it has to be read.
    pub fn reuse(
        &mut self,
        number: u32,
        previous: Extent,
        continues: bool,
    ) -> Result<Option<Reused>, Failure> {
        self.cancel.check()?;
        let stream = self.streams.get(number as usize);
        let stream = stream.ok_or_else(|| Failure::Invalid("no such stream".into()))?;
        // Streams are opened in the same order each time.
        let reusable = self.destination.reusable(number).filter(|_| previous.stream == number);
        let Some(reusable) = reusable else { return Ok(None) };
        let OpenStream { position, tail, balance, .. } = *stream;
        let taken = reusable.take(previous, position, tail, continues, balance)?;
        let Some(Reuse { chunks, at, tail }) = taken else { return Ok(None) };
        let length: u64 = chunks.iter().map(|chunk| chunk.plain_bytes).sum();
        Counters::add(&self.counters.reused_bytes, previous.length);
        Counters::add(&self.counters.reused_chunks, chunks.len() as u64);
        if !chunks.is_empty() {
            self.send(number, Piece::Known(chunks), length)?;
        }
        let stream = self.streams.get_mut(number as usize);
        let stream = stream.ok_or_else(|| Failure::Invalid("no such stream".into()))?;
        stream.tail = Some(tail);
        stream.balance.add(length, previous.length);
        Ok(Some(Reused { at, position: stream.position }))
    }

    /// Fails where what was written is not what was announced. To be asked when the source has come to its end.
    pub fn check_end(&self) -> Result<(), Failure> {
        if self.streams.is_empty() {
            return Err(Failure::Invalid("the source opened no stream".into()));
        }
        for OpenStream { suffix, size, position, .. } in &self.streams {
            if size.is_some_and(|size| size != *position) {
                let size = size.unwrap_or_default();
                let text = format!("stream '{suffix}' has {position} bytes and not {size}");
                return Err(Failure::Invalid(text));
            }
        }
        Ok(())
    }

    pub fn catalog_open(&mut self) -> Result<(), Failure> {
        self.catalog_depth = Some(0);
        self.destination.catalog_open()
    }

    fn in_catalog(&mut self) -> Result<&mut usize, Failure> {
        self.catalog_depth
            .as_mut()
            .ok_or(Failure::Invalid("the catalog has not been opened".into()))
    }

    pub fn catalog_enter(&mut self, name: &[u8]) -> Result<(), Failure> {
        Counters::add(&self.counters.entries, 1);
        let depth = self.in_catalog()?;
        *depth += 1;
        if *depth > CATALOG_DEPTH_MAX {
            return Err(Failure::Invalid(format!("more than {CATALOG_DEPTH_MAX} levels")));
        }
        self.destination.catalog_enter(name)
    }

    pub fn catalog_leave(&mut self) -> Result<(), Failure> {
        let depth = self.in_catalog()?;
        *depth = depth.saturating_sub(1);
        self.destination.catalog_leave()
    }

    pub fn catalog_add(
        &mut self,
        name: &[u8],
        kind: EntryKind,
        hard_link: bool,
        size: u64,
        modified: Timestamp,
    ) -> Result<(), Failure> {
        Counters::add(&self.counters.entries, 1);
        self.in_catalog()?;
        let kind = match kind {
            _ if hard_link => CatalogKind::HardLink,
            EntryKind::File => CatalogKind::File { size, modified: modified.seconds },
            EntryKind::Symlink => CatalogKind::Symlink,
            EntryKind::BlockDevice => CatalogKind::BlockDevice,
            EntryKind::CharacterDevice => CatalogKind::CharacterDevice,
            EntryKind::Fifo => CatalogKind::Fifo,
            EntryKind::Socket => CatalogKind::Socket,
            EntryKind::Directory => {
                return Err(Failure::Invalid("directories are entered, not added".into()));
            }
        };
        self.destination.catalog_add(name, &kind)
    }

    pub fn skipped(&mut self, path: &[Vec<u8>], reason: Omission, detail: &str) {
        self.report.skip(&path.join(&b'/'), reason, detail);
    }

    pub fn notify(&self, notice: Notice) {
        self.report.notify(notice);
    }

    pub fn cancel(&self) -> &Cancel {
        &self.cancel
    }
}
