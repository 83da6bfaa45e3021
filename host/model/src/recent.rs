//! Digests met a short while ago: what was done for them need not be done again.

use crate::digest::ChunkDigest;
use std::collections::HashSet;

/// Digests in each of two generations: 32 bytes each.
const GENERATION_MAX: usize = 1 << 19;

/// Remembers digests with bounded memory: at least the last half million.
#[derive(Debug, Default)]
pub struct RecentDigests {
    young: HashSet<ChunkDigest>,
    old: HashSet<ChunkDigest>,
}

impl RecentDigests {
    /// Whether it is new here.
    pub fn insert(&mut self, digest: ChunkDigest) -> bool {
        if self.young.contains(&digest) || self.old.contains(&digest) {
            return false;
        }
        if self.young.len() >= GENERATION_MAX {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_bounded() {
        let mut recent = RecentDigests::default();
        let digest = |number: u32| {
            let mut bytes = [0; 32];
            bytes[..4].copy_from_slice(&number.to_le_bytes());
            ChunkDigest::from_bytes(bytes)
        };
        for number in 0..3 * GENERATION_MAX as u32 {
            assert!(recent.insert(digest(number)));
            assert!(!recent.insert(digest(number)));
        }
        assert!(recent.young.len() + recent.old.len() <= 2 * GENERATION_MAX);
        assert!(recent.insert(digest(0)), "what was long ago is forgotten");
    }
}
