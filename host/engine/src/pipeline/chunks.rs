//! Cuts a stream into chunks and keeps them in order.
//!
//! Where the previous archive is at hand, its chunks are expected again: a stretch that has the
//! digest of the chunk expected there ends where that chunk ended, since the cut depends on nothing
//! but the chunk's own bytes. So unchanged data is hashed, but not searched for cut points. What
//! turns out unexpected is cut in the ordinary way, until known chunks are met again.

use super::feed::Consumer;
use super::workers::{Answer, Buffer, Job, Pool, WorkerQueue};
use crate::error::{EngineError, Result};
use crate::progress::Counters;
use crossbeam_channel::{Receiver, Sender, bounded};
use keepwell_model::index::ChunkRange;
use keepwell_model::{ChunkDigest, Index, StoredChunk};
use keepwell_seal::Chunker;
use keepwell_store::{ChunkStore, FileSummary, IndexSink};
use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

/// Bytes read at once: what lies behind a cut is copied.
const READ_BYTES: usize = 256 << 10;
/// Expected chunks on their way to the workers, for which buffers are held back.
const EXPECTED_MAX: usize = 3;
/// How far ahead in the previous archive a known chunk is looked for.
const LOOK_AHEAD: usize = 512;

/// Where chunks end.
pub(crate) enum Cutter {
    Content(Chunker),
    Fixed(usize),
}

impl Cutter {
    fn size_max(&self) -> usize {
        match self {
            Self::Content(chunker) => chunker.size_max(),
            Self::Fixed(size) => *size,
        }
    }

    fn find_end(&mut self, chunk: &[u8]) -> Option<usize> {
        match self {
            Self::Content(chunker) => chunker.find_end(chunk),
            Self::Fixed(size) => (chunk.len() >= *size).then_some(*size),
        }
    }

    /// Whether no chunk but the last has a size that this would not give it.
    fn could_have_cut(&self, index: &Index) -> bool {
        let smallest = match self {
            Self::Content(chunker) => chunker.size_min(),
            Self::Fixed(size) => *size,
        };
        let sizes = smallest as u64..=self.size_max() as u64;
        let others = index.len().saturating_sub(1);
        index.chunks().take(others).all(|chunk| sizes.contains(&(chunk.end - chunk.start)))
    }

    fn reset(&mut self) {
        if let Self::Content(chunker) = self {
            chunker.reset();
        }
    }
}

type Receipt = Receiver<Result<Answer>>;

/// What the appender is told of: chunks in order.
enum Ordered {
    Pending(Receipt),
    Done(StoredChunk),
    /// The stream is complete. Without this it has failed, and there is no index.
    End,
}

/// What the appender tells back: which chunk of the stream was which.
struct Seen {
    number: u64,
    digest: ChunkDigest,
}

/// The previous archive's chunks.
struct Expectation {
    index: Arc<Index>,
    /// the chunk expected next; none while nothing known is met
    next: Option<usize>,
    /// where known chunks are looked for
    from: usize,
    seen: Receiver<Seen>,
    sent: VecDeque<Receipt>,
}

/// One stream of an archive on its way into an index.
pub(crate) struct ChunkStream {
    cutter: Cutter,
    pool: Pool,
    current: Buffer,
    jobs: Sender<Job>,
    chunks: Arc<dyn ChunkStore>,
    counters: Arc<Counters>,
    order: Option<Sender<Ordered>>,
    appender: Option<JoinHandle<Result<FileSummary>>>,
    expectation: Option<Expectation>,
    /// chunks handed over so far
    count: u64,
}

impl ChunkStream {
    /// `previous` is the index of the previous archive of this name.
    pub(crate) fn start(
        cutter: Cutter,
        workers: &WorkerQueue,
        index: Box<dyn IndexSink>,
        previous: Option<Arc<Index>>,
        counters: &Arc<Counters>,
    ) -> Result<Self> {
        let pool = Pool::new(cutter.size_max());
        let chunks = index.chunks();
        let (order, ordered) = bounded(workers.count + 1);
        // Room for all that the appender can have seen while the reader looks elsewhere.
        let (tell, seen) = bounded(64);
        let thread = thread::Builder::new().name("appender".into());
        let appender = thread
            .spawn(move || append(index, &ordered, &tell))
            .map_err(crate::error::io_error("start", "a thread"))?;
        // Chunks of other sizes were cut by other rules.
        let fits = |index: &Arc<Index>| !index.is_empty() && cutter.could_have_cut(index);
        let expectation = previous.filter(fits).map(|index| Expectation {
            index,
            next: Some(0),
            from: 0,
            seen,
            sent: VecDeque::new(),
        });
        let current = pool.take();
        let jobs = workers.jobs.clone();
        let counters = counters.clone();
        let (order, appender) = (Some(order), Some(appender));
        Ok(Self {
            cutter,
            pool,
            current,
            jobs,
            chunks,
            counters,
            order,
            appender,
            expectation,
            count: 0,
        })
    }

    /// Sends what is left, and waits until the index is complete.
    pub(crate) fn finish(mut self) -> Result<FileSummary> {
        match self.send_rest().and_then(|()| self.tell(Ordered::End)) {
            Ok(()) => self.join(),
            Err(error) => Err(self.fail(error)),
        }
    }

    /// Ends a stream that can't be completed. Where the appender failed, its error tells more.
    pub(crate) fn fail(mut self, error: EngineError) -> EngineError {
        match self.join() {
            Ok(_) | Err(EngineError::Worker) => error,
            Err(appending) => appending,
        }
    }

    fn join(&mut self) -> Result<FileSummary> {
        self.order = None;
        let appender = self.appender.take().ok_or(EngineError::Worker)?;
        appender.join().map_err(|_| EngineError::Worker)?
    }

    fn tell(&self, ordered: Ordered) -> Result<()> {
        let order = self.order.as_ref().ok_or(EngineError::Worker)?;
        order.send(ordered).map_err(|_| EngineError::Worker)
    }

    fn send_rest(&mut self) -> Result<()> {
        self.settle_all()?;
        self.cut_current()?;
        if self.current.length > 0 {
            let last = std::mem::replace(&mut self.current, self.pool.take());
            self.send(last)?;
        }
        Ok(())
    }

    fn job(&self, buffer: Buffer, expected: Option<ChunkDigest>) -> Result<Receipt> {
        let (answer, receipt) = bounded(1);
        let (pool, counters) = (self.pool.clone(), self.counters.clone());
        let chunks = self.chunks.clone();
        let job = Job { buffer, pool, expected, chunks, counters, answer };
        self.jobs.send(job).map_err(|_| EngineError::Worker)?;
        Ok(receipt)
    }

    fn send(&mut self, buffer: Buffer) -> Result<()> {
        let receipt = self.job(buffer, None)?;
        self.push(Ordered::Pending(receipt))
    }

    fn push(&mut self, ordered: Ordered) -> Result<()> {
        self.count += 1;
        self.tell(ordered)
    }

    /// Hands over all chunks whose end is in the current buffer.
    fn cut_current(&mut self) -> Result<()> {
        while let Some(end) = self.cutter.find_end(self.current.filled()) {
            let mut next = self.pool.take();
            let rest = &self.current.filled()[end..];
            next.bytes[..rest.len()].copy_from_slice(rest);
            next.length = rest.len();
            self.current.length = end;
            let chunk = std::mem::replace(&mut self.current, next);
            self.send(chunk)?;
        }
        Ok(())
    }

    /// The chunk expected now, if any. The last of the previous archive ended with it, not by a
    /// cut.
    fn expected(&self) -> Option<ChunkRange> {
        let expectation = self.expectation.as_ref()?;
        let next = expectation.next?;
        if next + 1 >= expectation.index.len() && matches!(self.cutter, Cutter::Content(_)) {
            return None;
        }
        let range = expectation.index.chunk(next)?;
        let length = range.end - range.start;
        (length <= self.cutter.size_max() as u64).then_some(range)
    }

    /// Hands over the current buffer as the chunk that was expected.
    fn send_expected(&mut self, digest: ChunkDigest) -> Result<()> {
        let chunk = std::mem::replace(&mut self.current, self.pool.take());
        self.cutter.reset();
        let receipt = self.job(chunk, Some(digest))?;
        if let Some(expectation) = &mut self.expectation {
            expectation.sent.push_back(receipt);
            expectation.next = expectation.next.map(|next| next + 1);
            // What the appender saw meanwhile was expected, too.
            expectation.seen.try_iter().for_each(drop);
        }
        while self.expectation.as_ref().is_some_and(|e| e.sent.len() > EXPECTED_MAX) {
            self.settle()?;
        }
        Ok(())
    }

    /// Waits for the first expected chunk on its way. If it was another, what was sent after it
    /// comes back as well and is cut anew.
    fn settle(&mut self) -> Result<()> {
        let receipt = self.expectation.as_mut().and_then(|e| e.sent.pop_front());
        let Some(receipt) = receipt else { return Ok(()) };
        match receipt.recv()?? {
            Answer::Expected(stored, buffer) => {
                self.pool.give(buffer);
                if let Some(expectation) = &mut self.expectation {
                    expectation.from += 1;
                }
                self.push(Ordered::Done(stored))
            }
            Answer::Unexpected(buffer) => self.take_back(buffer),
            Answer::Stored(_) => Err(EngineError::Worker),
        }
    }

    fn settle_all(&mut self) -> Result<()> {
        while self.expectation.as_ref().is_some_and(|expectation| !expectation.sent.is_empty()) {
            self.settle()?;
        }
        Ok(())
    }

    /// Cuts `first` and all that was sent after it in the ordinary way.
    fn take_back(&mut self, first: Buffer) -> Result<()> {
        let tail = std::mem::replace(&mut self.current, self.pool.take());
        let mut later = Vec::new();
        if let Some(expectation) = &mut self.expectation {
            expectation.next = None;
            later.extend(expectation.sent.drain(..));
        }
        self.refill(first)?;
        for receipt in later {
            match receipt.recv()?? {
                Answer::Unexpected(buffer) | Answer::Expected(_, buffer) => self.refill(buffer)?,
                Answer::Stored(_) => return Err(EngineError::Worker),
            }
        }
        self.refill(tail)
    }

    fn refill(&mut self, buffer: Buffer) -> Result<()> {
        let mut bytes = buffer.filled();
        while !bytes.is_empty() {
            let at = self.current.length;
            let room = (self.cutter.size_max() - at).min(READ_BYTES).min(bytes.len());
            let (now, later) = bytes.split_at(room);
            self.current.bytes[at..at + room].copy_from_slice(now);
            self.current.length += room;
            self.cut_current()?;
            bytes = later;
        }
        self.pool.give(buffer);
        Ok(())
    }

    /// Nothing is expected any more, until known chunks are met.
    fn forget_expectation(&mut self) -> Result<()> {
        if let Some(expectation) = &mut self.expectation {
            expectation.next = None;
        }
        self.settle_all()
    }

    /// Looks whether a chunk that the appender has seen is one of the previous archive; then what
    /// follows there is expected to follow here.
    fn find_known(&mut self) {
        let (count, length) = (self.count, self.current.length as u64);
        let Some(expectation) = &mut self.expectation else { return };
        let seen: Vec<Seen> = expectation.seen.try_iter().collect();
        for seen in seen.iter().rev() {
            let digest_at = |at| Some(expectation.index.chunk(at)?.digest);
            let mut ahead = expectation.from..expectation.from.saturating_add(LOOK_AHEAD);
            let Some(at) = ahead.find(|at| digest_at(*at) == Some(seen.digest)) else { continue };
            // The current chunk follows so many chunks after the one that was seen.
            let since = usize::try_from(count - seen.number).unwrap_or(usize::MAX);
            let next = at.saturating_add(since).saturating_add(1);
            let range = expectation.index.chunk(next);
            if range.is_some_and(|range| length < range.end - range.start) {
                expectation.next = Some(next);
                expectation.from = next;
            }
            return;
        }
    }
}

impl Consumer for ChunkStream {
    fn room(&mut self) -> Result<&mut [u8]> {
        let at = self.current.length;
        let end = match self.expected() {
            Some(range) => (range.end - range.start) as usize,
            None => self.cutter.size_max(),
        };
        let limit = end.saturating_sub(at).clamp(1, READ_BYTES);
        Ok(&mut self.current.bytes[at..at + limit])
    }

    fn filled(&mut self, length: usize) -> Result<()> {
        self.current.length += length;
        if let Some(range) = self.expected() {
            let expected = (range.end - range.start) as usize;
            return match self.current.length.cmp(&expected) {
                std::cmp::Ordering::Less => Ok(()),
                std::cmp::Ordering::Equal => self.send_expected(range.digest),
                std::cmp::Ordering::Greater => {
                    self.forget_expectation()?;
                    self.cut_current()
                }
            };
        }
        self.settle_all()?;
        self.cut_current()?;
        self.find_known();
        Ok(())
    }

    /// A chunk ends before them, wherever that is.
    fn known(&mut self, chunks: Vec<StoredChunk>) -> Result<()> {
        self.send_rest()?;
        self.cutter.reset();
        if let Some(expectation) = &mut self.expectation {
            expectation.next = None;
        }
        for chunk in chunks {
            Counters::add(&self.counters.chunks, 1);
            self.push(Ordered::Done(chunk))?;
        }
        Ok(())
    }
}

/// Appends chunks to the index in order.
fn append(
    mut index: Box<dyn IndexSink>,
    ordered: &Receiver<Ordered>,
    tell: &Sender<Seen>,
) -> Result<FileSummary> {
    for (number, ordered) in ordered.iter().enumerate() {
        let stored = match ordered {
            Ordered::End => return Ok(index.finish()?),
            Ordered::Done(stored) => stored,
            Ordered::Pending(receipt) => match receipt.recv()?? {
                Answer::Stored(stored) => stored,
                _ => return Err(EngineError::Worker),
            },
        };
        index.append(&stored)?;
        // Nobody has to listen.
        let _ = tell.try_send(Seen { number: number as u64 + 1, digest: stored.digest });
    }
    Err(EngineError::Worker)
}

/// Nothing may go on in the store when the backup is over.
impl Drop for ChunkStream {
    fn drop(&mut self) {
        let _ = self.join();
    }
}
