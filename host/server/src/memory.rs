//! Room for the bodies of requests and answers: so many bytes may be in memory at a time, of one
//! session and of all.
//!
//! A body takes all its room at once, before anything of it is read, and nobody who holds room
//! waits for more: so what has begun can end, and the others wait for their turn.

use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Of one session.
const SESSION_BYTES: usize = 64 << 20;
/// Of all uploads. Answers have room of their own: who reads slowly holds no backups up.
const UPLOAD_BYTES: usize = 512 << 20;
const ANSWER_BYTES: usize = 512 << 20;
const _: () = assert!(SESSION_BYTES <= UPLOAD_BYTES && SESSION_BYTES <= ANSWER_BYTES);

/// The room of the whole server.
pub(crate) struct Memory {
    uploads: Arc<Semaphore>,
    answers: Arc<Semaphore>,
    sessions: Arc<AtomicU32>,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            uploads: Arc::new(Semaphore::new(UPLOAD_BYTES)),
            answers: Arc::new(Semaphore::new(ANSWER_BYTES)),
            sessions: Arc::default(),
        }
    }
}

impl Memory {
    /// For the uploads of one session.
    pub(crate) fn uploads(&self) -> Room {
        Room::of(&self.uploads)
    }

    /// For the answers of one session.
    pub(crate) fn answers(&self) -> Room {
        Room::of(&self.answers)
    }

    /// Counts one session more.
    pub(crate) fn begin_session(&self) -> Counted {
        let before = self.sessions.fetch_add(1, Ordering::Relaxed);
        Counted { all: self.sessions.clone(), count: before + 1 }
    }
}

/// A session that runs, until this is dropped.
pub(crate) struct Counted {
    all: Arc<AtomicU32>,
    /// how many ran when it began, itself included
    pub(crate) count: u32,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.all.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A session's part of it.
pub(crate) struct Room {
    own: Arc<Semaphore>,
    all: Arc<Semaphore>,
}

impl Room {
    fn of(all: &Arc<Semaphore>) -> Self {
        Self { own: Arc::new(Semaphore::new(SESSION_BYTES)), all: all.clone() }
    }

    /// Waits for room for so many bytes; who wants more than a session may have gets that.
    pub(crate) async fn take(&self, bytes: usize) -> Held {
        let count = u32::try_from(bytes.min(SESSION_BYTES)).unwrap_or(u32::MAX);
        // Semaphores fail only when they are closed, which nobody does.
        let own = self.own.clone().acquire_many_owned(count).await.ok();
        let all = self.all.clone().acquire_many_owned(count).await.ok();
        Held { own, all }
    }
}

/// Room that is given back when this is dropped.
pub(crate) struct Held {
    own: Option<OwnedSemaphorePermit>,
    all: Option<OwnedSemaphorePermit>,
}

impl Held {
    /// Gives back what is more than this.
    pub(crate) fn shrink_to(&mut self, bytes: usize) {
        for permit in [&mut self.own, &mut self.all].into_iter().flatten() {
            let spare = permit.num_permits().saturating_sub(bytes);
            drop(permit.split(spare));
        }
    }

    /// Bytes that hold their room until the last of them is gone, wherever they wait.
    pub(crate) fn bytes(mut self, bytes: Vec<u8>) -> Bytes {
        self.shrink_to(bytes.len());
        Bytes::from_owner(HeldBytes { bytes, _held: self })
    }
}

struct HeldBytes {
    bytes: Vec<u8>,
    _held: Held,
}

impl AsRef<[u8]> for HeldBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_session_has_so_much_and_all_have_so_much() {
        let memory = Memory::default();
        let (one, other) = (memory.uploads(), memory.uploads());
        let mut held = one.take(SESSION_BYTES + 1).await;
        assert_eq!(one.own.available_permits(), 0);
        assert_eq!(memory.uploads.available_permits(), UPLOAD_BYTES - SESSION_BYTES);
        held.shrink_to(1000);
        assert_eq!(one.own.available_permits(), SESSION_BYTES - 1000);
        let more = other.take(500).await;
        assert_eq!(memory.uploads.available_permits(), UPLOAD_BYTES - 1500);
        assert_eq!(memory.answers.available_permits(), ANSWER_BYTES);
        drop((held, more));
        assert_eq!(memory.uploads.available_permits(), UPLOAD_BYTES);
    }

    #[test]
    fn sessions_are_counted_while_they_run() {
        let memory = Memory::default();
        let (one, two) = (memory.begin_session(), memory.begin_session());
        assert_eq!((one.count, two.count), (1, 2));
        drop(one);
        assert_eq!(memory.begin_session().count, 2);
    }

    #[tokio::test]
    async fn bytes_hold_their_room_until_they_are_gone() {
        let memory = Memory::default();
        let room = memory.answers();
        let bytes = room.take(16 << 20).await.bytes(vec![7; 100]);
        assert_eq!(room.own.available_permits(), SESSION_BYTES - 100);
        let part = bytes.slice(10..20);
        drop(bytes);
        assert_eq!(room.own.available_permits(), SESSION_BYTES - 100);
        assert_eq!(&part[..], [7; 10]);
        drop(part);
        assert_eq!(room.own.available_permits(), SESSION_BYTES);
        assert_eq!(memory.answers.available_permits(), ANSWER_BYTES);
    }
}
