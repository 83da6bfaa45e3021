//! Archives outside of a repository: in files and pipes. And making one there.

use crate::archive::RandomAccess;
use crate::error::{EngineError, Result, io_error};
use crate::pipeline::{Consumer, feed};
use crate::plugin::{Failure, Origin, Source, SourceRequest, SourceSummary};
use crate::progress::{Cancel, Counters};
use crate::report::Report;
use crate::reuse::Reusable;
use crate::sink::{Chunking, Destination, Piece, Sink};
use crossbeam_channel::Receiver;
use keepwell_model::catalog::CatalogKind;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

/// How far back a pipe can be read again.
const BACK_BYTES: usize = 1 << 20;
const BUFFER_BYTES: usize = 1 << 20;

/// An archive in a file that can be read anywhere.
pub struct FileArchive {
    file: File,
    size: u64,
}

impl FileArchive {
    pub fn new(file: File) -> std::io::Result<Self> {
        let size = file.metadata()?.len();
        Ok(Self { file, size })
    }
}

impl RandomAccess for FileArchive {
    fn size(&self) -> Option<u64> {
        Some(self.size)
    }

    fn read_at(&self, offset: u64, length: u32) -> std::result::Result<Vec<u8>, Failure> {
        let rest = self.size.saturating_sub(offset).min(length.into());
        let mut bytes = vec![0; rest as usize];
        let mut filled = 0;
        while filled < bytes.len() {
            match self.file.read_at(&mut bytes[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Failure::Io(error.to_string())),
            }
        }
        bytes.truncate(filled);
        Ok(bytes)
    }
}

/// An archive in a pipe: forward only, with a little memory.
pub struct PipeArchive {
    state: Mutex<Pipe>,
}

struct Pipe {
    input: Box<dyn Read + Send>,
    /// bytes held, and where the first of them lies
    held: Vec<u8>,
    start: u64,
}

impl PipeArchive {
    pub fn new(input: Box<dyn Read + Send>) -> Self {
        Self { state: Mutex::new(Pipe { input, held: Vec::new(), start: 0 }) }
    }
}

impl RandomAccess for PipeArchive {
    fn size(&self) -> Option<u64> {
        None
    }

    fn read_at(&self, offset: u64, length: u32) -> std::result::Result<Vec<u8>, Failure> {
        let mut pipe = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if offset < pipe.start {
            return Err(Failure::Unsupported("a pipe can't be read again".into()));
        }
        let end = offset.saturating_add(length.into());
        let mut buffer = [0; 64 << 10];
        while pipe.start + (pipe.held.len() as u64) < end {
            let wanted = end - pipe.start - pipe.held.len() as u64;
            let now = buffer.len().min(usize::try_from(wanted).unwrap_or(usize::MAX));
            match pipe.input.read(&mut buffer[..now]) {
                Ok(0) => break,
                Ok(read) => pipe.held.extend(&buffer[..read]),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Failure::Io(error.to_string())),
            }
            // What lies far before the offset is not asked for again.
            let keep_from = offset.saturating_sub(BACK_BYTES as u64);
            let droppable = keep_from.saturating_sub(pipe.start).min(pipe.held.len() as u64);
            if droppable as usize >= BACK_BYTES {
                pipe.held.drain(..droppable as usize);
                pipe.start += droppable;
            }
        }
        let from = usize::try_from(offset - pipe.start).unwrap_or(usize::MAX).min(pipe.held.len());
        let to = from.saturating_add(length as usize).min(pipe.held.len());
        Ok(pipe.held[from..to].to_vec())
    }
}

/// Runs a source and writes its streams to `outs`, in the order in which they are opened. It fails to open more.
pub fn write_archive(
    source: &mut dyn Source,
    origin: Origin,
    request: SourceRequest,
    outs: Vec<Box<dyn Write + Send>>,
    report: Report,
    cancel: Cancel,
    counters: Arc<Counters>,
) -> Result<SourceSummary> {
    let threads = Arc::new(Mutex::new(Vec::new()));
    let destination = FileDestination {
        outs: outs.into(),
        threads: threads.clone(),
        report: report.clone(),
        cancel: cancel.clone(),
        counters: counters.clone(),
    };
    let sink = Sink::new(Box::new(destination), report, cancel.clone(), counters);
    let outcome = source.write_archive(origin, request, sink);
    let threads = std::mem::take(&mut *threads.lock().unwrap_or_else(PoisonError::into_inner));
    let mut written = Ok(());
    for thread in threads {
        let ended = thread.join().map_err(|_| EngineError::Worker)?;
        written = written.and(ended);
    }
    if cancel.is_cancelled() {
        return Err(EngineError::Cancelled);
    }
    match (outcome, written) {
        (Err(Failure::Cancelled) | Ok(_), Err(error)) => Err(error),
        (outcome, _) => Ok(outcome?),
    }
}

struct FileDestination {
    outs: VecDeque<Box<dyn Write + Send>>,
    threads: Arc<Mutex<Vec<JoinHandle<Result<()>>>>>,
    report: Report,
    cancel: Cancel,
    counters: Arc<Counters>,
}

impl Destination for FileDestination {
    fn reusable(&self, _: u32) -> Option<Arc<Reusable>> {
        None
    }

    fn open_stream(
        &mut self,
        _suffix: &str,
        _chunking: Chunking,
        _size: Option<u64>,
        pieces: Receiver<Piece>,
    ) -> std::result::Result<Option<u64>, Failure> {
        let Some(out) = self.outs.pop_front() else {
            return Err(Failure::Unsupported("a file takes one stream".into()));
        };
        let (report, cancel) = (self.report.clone(), self.cancel.clone());
        let counters = self.counters.clone();
        let write = move || {
            let mut writer = FileConsumer { out, buffer: vec![0; BUFFER_BYTES], filled: 0 };
            feed(&pieces, &mut writer, &report, &cancel, &counters)?;
            writer.flush()
        };
        let started = thread::Builder::new().name("writer".into()).spawn(write);
        let started = started.map_err(|error| Failure::Io(error.to_string()))?;
        self.threads.lock().unwrap_or_else(PoisonError::into_inner).push(started);
        Ok(None)
    }

    fn catalog_open(&mut self) -> std::result::Result<(), Failure> {
        Ok(())
    }
    fn catalog_enter(&mut self, _name: &[u8]) -> std::result::Result<(), Failure> {
        Ok(())
    }
    fn catalog_leave(&mut self) -> std::result::Result<(), Failure> {
        Ok(())
    }
    fn catalog_add(&mut self, _: &[u8], _: &CatalogKind) -> std::result::Result<(), Failure> {
        Ok(())
    }
}

struct FileConsumer {
    out: Box<dyn Write + Send>,
    buffer: Vec<u8>,
    filled: usize,
}

impl FileConsumer {
    fn flush(&mut self) -> Result<()> {
        let written = self.out.write_all(&self.buffer[..self.filled]);
        self.filled = 0;
        written.and_then(|()| self.out.flush()).map_err(io_error("write to", "archive"))
    }
}

impl Consumer for FileConsumer {
    fn room(&mut self) -> Result<&mut [u8]> {
        if self.filled == self.buffer.len() {
            self.flush()?;
        }
        Ok(&mut self.buffer[self.filled..])
    }

    fn filled(&mut self, length: usize) -> Result<()> {
        self.filled += length;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_reads_forward_and_a_little_back() {
        let data: Vec<u8> = (0..6_000_000u32).map(|i| (i / 7) as u8).collect();
        let pipe = PipeArchive::new(Box::new(std::io::Cursor::new(data.clone())));
        assert_eq!(pipe.read_at(0, 100).unwrap(), data[..100]);
        assert_eq!(pipe.read_at(5_000_000, 100).unwrap(), data[5_000_000..5_000_100]);
        assert_eq!(pipe.read_at(4_999_000, 10).unwrap(), data[4_999_000..4_999_010]);
        assert!(pipe.read_at(100, 1).is_err());
        assert_eq!(pipe.read_at(5_999_990, 100).unwrap().len(), 10);
        assert!(pipe.read_at(6_000_000, 100).unwrap().is_empty());
    }
}
