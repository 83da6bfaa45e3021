//! Reads ahead: who reads one chunk after another gets the next ones from the cache.

use crate::archive::OpenArchive;
use crossbeam_channel::{Sender, bounded};
use keepwell_engine::restore::ContentPart;
use std::sync::{Arc, Mutex, PoisonError};

/// Chunks fetched before they are asked for.
const DEPTH: usize = 3;
/// Readers of one archive that are told apart.
const CURSORS: usize = 16;
/// Chunks in a row that make a reader one who will want the next.
const RUN: u32 = 2;
const THREADS: usize = 2;
const QUEUE: usize = 16;

/// Where a reader is.
#[derive(Clone, Copy, Default)]
struct Cursor {
    stream: u32,
    position: usize,
    run: u32,
    used: u64,
}

/// Those of one archive.
#[derive(Default)]
pub(crate) struct Cursors(Mutex<([Cursor; CURSORS], u64)>);

impl Cursors {
    /// Notes what was read, and says whether the next chunks are wanted now.
    fn meet(&self, part: &ContentPart) -> bool {
        let mut guard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (cursors, clock) = &mut *guard;
        *clock += 1;
        let (stream, position) = (part.stream, part.position);
        let near = |cursor: &&mut Cursor| {
            cursor.used > 0
                && cursor.stream == stream
                && (cursor.position == position || cursor.position.checked_add(1) == Some(position))
        };
        if let Some(cursor) = cursors.iter_mut().find(near) {
            cursor.used = *clock;
            if cursor.position == position {
                return false;
            }
            cursor.position = position;
            cursor.run += 1;
            return cursor.run >= RUN;
        }
        if let Some(oldest) = cursors.iter_mut().min_by_key(|cursor| cursor.used) {
            *oldest = Cursor { stream, position, run: 0, used: *clock };
        }
        false
    }
}

/// Threads that fetch.
pub(crate) struct ReadAhead(Sender<(Arc<OpenArchive>, ContentPart)>);

impl ReadAhead {
    pub(crate) fn new() -> Self {
        let (sender, wanted) = bounded::<(Arc<OpenArchive>, ContentPart)>(QUEUE);
        for _ in 0..THREADS {
            let wanted = wanted.clone();
            std::thread::spawn(move || {
                for (archive, part) in wanted {
                    // Who reads it will hear of an error.
                    let _ = archive.content.fetch(&part);
                }
            });
        }
        Self(sender)
    }

    /// Hears of every part that is read.
    pub(crate) fn met(&self, archive: &Arc<OpenArchive>, part: &ContentPart) {
        if !archive.cursors.meet(part) {
            return;
        }
        for position in (part.position + 1..).take(DEPTH) {
            let next = ContentPart { position, from: 0, to: 0, ..*part };
            if self.0.try_send((archive.clone(), next)).is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn met(cursors: &Cursors, positions: &[usize]) -> Vec<bool> {
        let part =
            |position: &usize| ContentPart { stream: 0, position: *position, from: 0, to: 1 };
        positions.iter().map(|position| cursors.meet(&part(position))).collect()
    }

    #[test]
    fn who_reads_on_is_read_ahead_for() {
        let cursors = Cursors::default();
        assert_eq!(
            met(&cursors, &[5, 5, 6, 6, 7, 7, 8]),
            [false, false, false, false, true, false, true]
        );
        // Two at once, and one who jumps about.
        assert_eq!(
            met(&cursors, &[100, 9, 101, 40, 10, 102]),
            [false, true, false, false, true, true]
        );
        assert_eq!(met(&cursors, &[200, 300, 400, 500]), [false; 4]);
    }
}
