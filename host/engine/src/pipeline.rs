//! From pieces to stored chunks: one reader for each stream, workers for all, one appender for
//! each index.
//!
//! ```text
//! source ─pieces→ reader: fills buffers, cuts ─jobs→ workers: digest, touch or seal and insert
//!                    └────────── receipts, in order ──────────→ appender: index
//! ```
//!
//! Every queue is bounded, and so is the number of buffers: memory does not grow with the archive.

pub(crate) mod chunks;
pub(crate) mod feed;
pub(crate) mod workers;

pub(crate) use chunks::{ChunkStream, Cutter};
pub(crate) use feed::{Consumer, MadeUp, feed};
pub(crate) use workers::{WorkerQueue, Workers};
