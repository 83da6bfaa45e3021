//! Turns bytes into sealed chunks and back: chunking, digest, compression.
//!
//! CPU only: nothing here touches disk, network or clock. A digest is over plain bytes, so equal
//! chunks meet whatever their compression. Compressed bytes are used only when smaller. Bytes of
//! the envelope: `model::blob`; the chunker: shared/spec/formats.md §6. May use `model` only.

mod buzhash_table;
pub mod chunker;
pub mod sealer;

pub use chunker::{Chunker, ChunkerError};
pub use sealer::{OpenError, Opener, SealError, Sealer};
