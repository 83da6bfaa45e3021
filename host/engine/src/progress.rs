//! How far a verb has come, and how to stop it. Shared with whoever shows it.

use crate::plugin::Failure;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Counters that only grow. Read them from any thread, at any time.
#[derive(Debug, Default)]
pub struct Counters {
    /// bytes of archives made, or restored
    pub bytes: AtomicU64,
    /// bytes that had to be stored, before and after compression
    pub new_bytes: AtomicU64,
    pub stored_bytes: AtomicU64,
    pub entries: AtomicU64,
    /// bytes of the previous archive that were not read, and the chunks taken for them
    pub reused_bytes: AtomicU64,
    pub reused_chunks: AtomicU64,
    pub chunks: AtomicU64,
    pub new_chunks: AtomicU64,
    /// bytes expected in all; 0 where not known
    pub total: AtomicU64,
}

impl Counters {
    pub(crate) fn add(counter: &AtomicU64, amount: u64) {
        counter.fetch_add(amount, Ordering::Relaxed);
    }

    pub fn get(counter: &AtomicU64) -> u64 {
        counter.load(Ordering::Relaxed)
    }
}

/// Asks everything that shares it to stop soon.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Asks when this flag is set, by a signal handler for one.
    pub fn from_flag(flag: Arc<AtomicBool>) -> Self {
        Self(flag)
    }

    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn check(&self) -> Result<(), Failure> {
        if self.is_cancelled() { Err(Failure::Cancelled) } else { Ok(()) }
    }
}
