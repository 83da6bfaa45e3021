//! Reads ahead: who reads one chunk of an archive after another finds the next ones in the cache.

use crate::archive::ChunkedArchive;
use crossbeam_channel::{Sender, bounded};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// Chunks fetched before they are asked for.
const DEPTH: usize = 3;
/// Readers that are told apart.
const CURSORS: usize = 16;
/// Chunks in a row that make a reader one who will want the next.
const RUN: u32 = 2;
const THREADS: usize = 2;
const QUEUE: usize = 16;

/// Where a reader is.
#[derive(Clone, Copy, Default)]
struct Cursor {
    position: usize,
    run: u32,
    used: u64,
}

#[derive(Default)]
struct Cursors {
    cursors: [Cursor; CURSORS],
    clock: u64,
}

impl Cursors {
    /// Notes what was read, and says whether the next chunks are wanted now.
    fn meet(&mut self, position: usize) -> bool {
        self.clock += 1;
        let near = |cursor: &&mut Cursor| {
            let next = cursor.position.checked_add(1);
            cursor.used > 0 && (cursor.position == position || next == Some(position))
        };
        if let Some(cursor) = self.cursors.iter_mut().find(near) {
            cursor.used = self.clock;
            if cursor.position == position {
                return false;
            }
            cursor.position = position;
            cursor.run += 1;
            return cursor.run >= RUN;
        }
        if let Some(oldest) = self.cursors.iter_mut().min_by_key(|cursor| cursor.used) {
            *oldest = Cursor { position, run: 0, used: self.clock };
        }
        false
    }
}

/// Threads that fetch the chunks of an archive. They end with it.
pub(crate) struct ReadAhead {
    cursors: Mutex<Cursors>,
    wanted: Sender<usize>,
}

impl ReadAhead {
    pub(crate) fn of(archive: &Arc<ChunkedArchive>) -> Self {
        let (sender, wanted) = bounded::<usize>(QUEUE);
        for _ in 0..THREADS {
            let (wanted, archive) = (wanted.clone(), Arc::downgrade(archive));
            thread::spawn(move || {
                for position in wanted {
                    let Some(archive) = archive.upgrade() else { return };
                    // Who reads it will hear of an error.
                    let _ = archive.cached(position);
                }
            });
        }
        Self { cursors: Mutex::default(), wanted: sender }
    }

    /// Hears of every chunk that is read, of `count`.
    pub(crate) fn met(&self, position: usize, count: usize) {
        let mut cursors = self.cursors.lock().unwrap_or_else(PoisonError::into_inner);
        if !cursors.meet(position) {
            return;
        }
        drop(cursors);
        for next in (position + 1..count).take(DEPTH) {
            if self.wanted.try_send(next).is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn met(cursors: &mut Cursors, positions: &[usize]) -> Vec<bool> {
        positions.iter().map(|position| cursors.meet(*position)).collect()
    }

    #[test]
    fn who_reads_on_is_read_ahead_for() {
        let mut cursors = Cursors::default();
        let found = met(&mut cursors, &[5, 5, 6, 6, 7, 7, 8]);
        assert_eq!(found, [false, false, false, false, true, false, true]);
        // Two at once, and one who jumps about.
        let found = met(&mut cursors, &[100, 9, 101, 40, 10, 102]);
        assert_eq!(found, [false, true, false, false, true, true]);
        assert_eq!(met(&mut cursors, &[200, 300, 400, 500]), [false; 4]);
    }
}
