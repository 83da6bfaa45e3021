//! Turns bytes into sealed chunks and back: chunking, digest, compression, encryption, and the keys
//! for it.
//!
//! CPU only: nothing here touches disk, network or clock. A digest is over plain bytes, so equal
//! chunks meet whatever their compression. Compressed bytes are used only when smaller. Secrets are
//! wiped when they are dropped, and nothing here prints one. Bytes of the envelope: `model::blob`;
//! the chunker, keys and key files: shared/spec/formats.md §2, §3, §6, §10, §11. May use `model`
//! only.

mod buzhash_table;
pub mod chunker;
pub mod key;
pub mod key_file;
pub mod master_key;
mod random;
pub mod sealer;

pub use chunker::{Chunker, ChunkerError};
pub use key::{EncryptionKey, Protection};
pub use key_file::{KdfKind, KeyFile, KeyFileError, KeyTime};
pub use master_key::{MasterKey, MasterKeyError, MasterPublicKey};
pub use sealer::{OpenError, Opener, Plaintext, SealError, Sealer};
