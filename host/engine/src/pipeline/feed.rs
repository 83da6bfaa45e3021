//! Reads pieces into the buffers of a consumer.

use crate::error::{EngineError, Result};
use crate::input::InputFile;
use crate::plugin::Failure;
use crate::progress::{Cancel, Counters};
use crate::report::{Omission, Report};
use crate::sink::Piece;
use crossbeam_channel::Receiver;
use keepwell_model::StoredChunk;

/// What a disk reads at least: a bad place costs so much.
const BLOCK_BYTES: u64 = 4096;

/// Takes the bytes of a stream, in order.
pub(crate) trait Consumer {
    /// Room for the next bytes, never empty.
    fn room(&mut self) -> Result<&mut [u8]>;
    /// The first `length` bytes of the room have been filled.
    fn filled(&mut self, length: usize) -> Result<()>;
    /// Takes chunks that are stored already, between others. Only what is made of chunks can.
    fn known(&mut self, _chunks: Vec<StoredChunk>) -> Result<()> {
        Err(EngineError::Worker)
    }
}

/// Feeds a consumer until the source is done with the stream.
pub(crate) fn feed(
    pieces: &Receiver<Piece>,
    consumer: &mut dyn Consumer,
    report: &Report,
    cancel: &Cancel,
    counters: &Counters,
) -> Result<Vec<MadeUp>> {
    let (position, made_up) = (0, Vec::new());
    let mut feeder = Feeder { consumer, position, made_up, report, cancel, counters };
    for piece in pieces {
        match piece {
            Piece::Bytes(bytes) => feeder.bytes(&bytes)?,
            Piece::File { file, offset, length } => feeder.file(&file, offset, length)?,
            Piece::Known(chunks) => {
                let bytes: u64 = chunks.iter().map(|chunk| chunk.plain_bytes).sum();
                Counters::add(&counters.bytes, bytes);
                feeder.position += bytes;
                feeder.consumer.known(chunks)?;
            }
            Piece::ToEnd { file, answer } => {
                let length = feeder.rest(&file)?;
                let _ = answer.send(length);
            }
        }
    }
    let made_up = feeder.made_up;
    cancel.check()?;
    Ok(made_up)
}

/// A stretch of a stream that is zeros because the source could not be read: where it begins, and its
/// length. It must not be taken for content again.
pub(crate) type MadeUp = (u64, u64);

struct Feeder<'a> {
    consumer: &'a mut dyn Consumer,
    /// of the stream so far
    position: u64,
    made_up: Vec<MadeUp>,
    report: &'a Report,
    cancel: &'a Cancel,
    counters: &'a Counters,
}

impl Feeder<'_> {
    fn filled(&mut self, length: usize) -> Result<()> {
        Counters::add(&self.counters.bytes, length as u64);
        self.position += length as u64;
        self.consumer.filled(length)
    }

    fn bytes(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let room = self.consumer.room()?;
            let length = room.len().min(bytes.len());
            let (now, later) = bytes.split_at(length);
            room[..length].copy_from_slice(now);
            self.filled(length)?;
            bytes = later;
        }
        Ok(())
    }

    fn zeros(&mut self, mut length: u64) -> Result<()> {
        while length > 0 {
            self.cancel.check()?;
            let room = self.consumer.room()?;
            let now = room.len().min(usize::try_from(length).unwrap_or(usize::MAX));
            room[..now].fill(0);
            self.filled(now)?;
            length -= now as u64;
        }
        Ok(())
    }

    /// Exactly `length` bytes, whatever became of the file.
    fn file(&mut self, file: &InputFile, offset: u64, length: u64) -> Result<()> {
        let end = offset + length;
        let mut at = offset;
        while at < end {
            self.cancel.check()?;
            let mut data_end = end;
            if file.is_sparse {
                let (start, stop) = match file.next_data(at) {
                    Ok(Some(data)) => data,
                    Ok(None) if file.current_size().is_ok_and(|size| size >= end) => (end, end),
                    // Not a hole but the end: read on, and notice it below.
                    Ok(None) | Err(_) => (at, end),
                };
                let hole = start.min(end) - at;
                self.zeros(hole)?;
                at += hole;
                data_end = stop.min(end).max(at);
            }
            at = self.data(file, at, data_end)?;
            if at < data_end {
                self.short(file, end - at)?;
                return Ok(());
            }
        }
        if file.size != end {
            return Ok(());
        }
        // One byte more than announced: the file grew while it was read.
        if file.read_at(&mut [0], end).is_ok_and(|read| read > 0) {
            let detail = "file size increased while reading, file will be truncated!";
            self.report.skip(&file.path(), Omission::Changed, detail);
        }
        Ok(())
    }

    /// Reads up to `end`; returns how far it came.
    fn data(&mut self, file: &InputFile, mut at: u64, end: u64) -> Result<u64> {
        while at < end {
            self.cancel.check()?;
            let room = self.consumer.room()?;
            let now = room.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
            match file.read_at(&mut room[..now], at) {
                Ok(0) => return Ok(at),
                Ok(read) => {
                    self.filled(read)?;
                    at += read as u64;
                }
                Err(error) => at = self.unreadable(file, at, end, error)?,
            }
        }
        Ok(at)
    }

    /// One file of many that can't be read in places has zeros there; what the user named must be
    /// whole. Reads on block by block until one is good; returns how far it came.
    fn unreadable(
        &mut self,
        file: &InputFile,
        mut at: u64,
        end: u64,
        error: std::io::Error,
    ) -> Result<u64> {
        if file.is_named() {
            let path = crate::report::shown_path(&file.path());
            return Err(EngineError::Io { action: "read", path, source: error });
        }
        let mut lost = 0;
        let mut block = [0; BLOCK_BYTES as usize];
        while at < end {
            self.cancel.check()?;
            let length = (BLOCK_BYTES - at % BLOCK_BYTES).min(end - at);
            let read = file.read_at(&mut block[..length as usize], at);
            match read {
                Err(_) => {
                    self.zeros(length)?;
                    lost += length;
                    at += length;
                }
                Ok(read) if lost == 0 => {
                    // Only the long read failed.
                    self.bytes(&block[..read])?;
                    at += read as u64;
                    if read == 0 || at.is_multiple_of(BLOCK_BYTES * 64) {
                        return Ok(at);
                    }
                }
                Ok(_) => break,
            }
        }
        if lost > 0 {
            self.made_up.push((self.position - lost, lost));
            let detail = format!("{lost} bytes up to {at} can't be read and are zeros: {error}");
            self.report.skip(&file.path(), Omission::Unreadable, &detail);
        }
        Ok(at)
    }

    fn short(&mut self, file: &InputFile, missing: u64) -> Result<()> {
        if file.kind != crate::plugin::EntryKind::File {
            let path = crate::report::shown_path(&file.path());
            let problem = format!("{path}: {missing} bytes fewer than its size says");
            return Err(Failure::Io(problem).into());
        }
        let detail = "file size shrunk while reading, file will be padded with zeros!";
        self.report.skip(&file.path(), Omission::Changed, detail);
        self.made_up.push((self.position, missing));
        self.zeros(missing)
    }

    fn rest(&mut self, file: &InputFile) -> Result<u64> {
        let mut length = 0;
        loop {
            self.cancel.check()?;
            let failed = |source| EngineError::Io {
                action: "read",
                path: crate::report::shown_path(&file.path()),
                source,
            };
            if !file.wait().map_err(failed)? {
                continue;
            }
            let room = self.consumer.room()?;
            let read = match file.read_on(room) {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
                other => other.map_err(failed)?,
            };
            if read == 0 {
                return Ok(length);
            }
            self.filled(read)?;
            length += read as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::{Directory, Listed};
    use crate::plugin::EntryKind;
    use std::path::Path;
    use std::sync::Arc;

    struct Collected(Vec<u8>, [u8; 5000]);

    impl Consumer for Collected {
        fn room(&mut self) -> Result<&mut [u8]> {
            Ok(&mut self.1)
        }
        fn filled(&mut self, length: usize) -> Result<()> {
            self.0.extend(&self.1[..length]);
            Ok(())
        }
    }

    /// Feeds what can't be read: our memory where there is none.
    fn feed_unreadable(file: Arc<InputFile>) -> (Result<Vec<MadeUp>>, Vec<u8>, Report) {
        let (report, _notices) = Report::new();
        let (send, pieces) = crossbeam_channel::bounded(1);
        send.send(Piece::File { file, offset: 0, length: 10_000 }).unwrap();
        drop(send);
        let mut consumer = Collected(Vec::new(), [7; 5000]);
        let cancel = Cancel::default();
        let fed = feed(&pieces, &mut consumer, &report, &cancel, &Counters::default());
        (fed, consumer.0, report)
    }

    #[test]
    fn one_file_of_many_that_can_not_be_read_is_zeros_and_told() {
        let dir = Directory::open_root(Path::new("/proc/self")).unwrap();
        let listed = Listed { name: b"mem".to_vec(), kind: EntryKind::File };
        let opened = dir.open_child(&listed).unwrap();
        let mut file = Arc::try_unwrap(opened.handle.unwrap()).unwrap();
        file.size = 10_000;
        let (fed, bytes, report) = feed_unreadable(Arc::new(file));
        assert_eq!(fed.unwrap(), [(0, 10_000)]);
        assert_eq!(bytes, vec![0; 10_000]);
        let skipped = report.skipped();
        assert_eq!(skipped.len(), 1);
        assert_eq!(skipped[0].reason, Omission::Unreadable);
        assert!(skipped[0].detail.starts_with("10000 bytes up to 10000 can't be read"));
    }

    #[test]
    fn what_the_user_named_must_be_whole() {
        let file = InputFile::open_named(Path::new("/proc/self/mem")).unwrap();
        let (fed, _, _) = feed_unreadable(Arc::new(file));
        assert!(matches!(fed, Err(EngineError::Io { action: "read", .. })));
    }
}
