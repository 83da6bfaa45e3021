//! The verbs: backup, restore, list, prune, verify, catalog. And the seams that plugins implement.
//!
//! One file per verb. The data plane is here: reading, chunking, sealing, storing and writing on
//! native threads with bounded queues. Archive formats are not: those are plugins behind
//! [`plugin`]. The engine knows no wasmtime, no HTTP, no terminal, no clock and no environment.
//! May use `seal`, `store` and `model`.

mod ahead;
pub mod archive;
pub mod backup;
pub mod benchmark;
pub mod browse;
pub mod catalog;
pub mod diff;
pub mod error;
pub mod input;
pub mod list;
pub mod output;
pub mod pattern;
mod pipeline;
pub mod plugin;
pub mod progress;
pub mod prune;
pub mod report;
pub mod restore;
pub mod reuse;
pub mod sink;
pub mod snapshot;
pub mod stream;
pub mod tar;
pub mod verify;

pub use error::EngineError;
pub use progress::{Cancel, Counters};
