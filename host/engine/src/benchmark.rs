//! How fast this machine digests, compresses and encrypts, on one core.

use crate::error::{EngineError, Result};
use keepwell_seal::{EncryptionKey, Opener, Sealer};
use std::time::{Duration, Instant};

/// Bytes of the chunk that is worked on.
const CHUNK_BYTES: usize = 1 << 20;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Test {
    Sha256,
    Compress,
    Decompress,
    Encrypt,
    /// as a verification does: checksum, decompression and digest
    Verify,
}

/// Half of it repeats, as in ordinary files.
fn chunk() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut bytes = Vec::with_capacity(CHUNK_BYTES);
    while bytes.len() < CHUNK_BYTES {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let word = state.to_le_bytes();
        bytes.extend(word);
        bytes.extend(word);
    }
    bytes
}

/// Repeats the work for so long; bytes in a second.
pub fn speed(test: Test, key: &EncryptionKey, duration: Duration) -> Result<f64> {
    let failed = |problem: String| EngineError::Refused(format!("benchmark: {problem}"));
    let plain = chunk();
    let mut sealer = Sealer::new()?;
    let mut opener = Opener::new().map_err(|problem| failed(problem.to_string()))?;
    let sealed = sealer.seal(&plain, None)?;
    let digest = Sealer::digest(&plain, None);
    let mut scratch = plain.clone();
    let mut once = || -> Result<()> {
        match test {
            Test::Sha256 => {
                std::hint::black_box(Sealer::digest(&plain, None));
            }
            Test::Compress => {
                std::hint::black_box(sealer.seal_chunk(digest, &plain, None)?);
            }
            Test::Decompress => {
                let opened = opener.open(sealed.clone(), None);
                std::hint::black_box(opened.map_err(|problem| failed(problem.to_string()))?);
            }
            Test::Encrypt => {
                key.exercise(&mut scratch).map_err(|problem| failed(problem.to_string()))?;
            }
            Test::Verify => {
                let bytes = sealed.as_bytes().to_vec();
                let opened = opener.open_chunk(bytes, &digest, CHUNK_BYTES as u64, None);
                std::hint::black_box(opened.map_err(|problem| failed(problem.to_string()))?);
            }
        }
        Ok(())
    };
    let began = Instant::now();
    let mut bytes = 0.0;
    loop {
        once()?;
        bytes += CHUNK_BYTES as f64;
        let seconds = began.elapsed().as_secs_f64();
        if seconds >= duration.as_secs_f64() && seconds > 0.0 {
            return Ok(bytes / seconds);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_test_gives_a_speed() {
        let key = EncryptionKey::generate();
        for test in [Test::Sha256, Test::Compress, Test::Decompress, Test::Encrypt, Test::Verify] {
            assert!(speed(test, &key, Duration::ZERO).unwrap() > 0.0, "{test:?}");
        }
    }
}
