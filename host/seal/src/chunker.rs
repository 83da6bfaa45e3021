//! Finds where content-defined chunks end, byte for byte as the reference does, so that data
//! meets what existing clients stored.

use crate::buzhash_table::TABLE;

/// Bytes that the rolling hash sees.
const WINDOW: usize = 64;

/// Stretches scanned side by side, and how long they must be to be worth it.
const LANES: usize = 4;
const LANE_BYTES_MIN: usize = 4096;

/// The hash of the last bytes of `data`.
fn window_hash(data: &[u8]) -> u32 {
    let window = &data[data.len() - WINDOW..];
    window.iter().fold(0, |hash: u32, byte| hash.rotate_left(1) ^ TABLE[usize::from(*byte)])
}

/// The hash one byte on. The byte that leaves has been rotated by 64, which is not at all.
#[inline(always)]
fn roll(hash: u32, leaving: u8, entering: u8) -> u32 {
    hash.rotate_left(1) ^ TABLE[usize::from(leaving)] ^ TABLE[usize::from(entering)]
}

/// Finds the end of one chunk after the other.
///
/// A chunk ends after a byte at which the hash of the last 64 bytes is in a small range, not before
/// a quarter of the average size, and at four times it in any case. What lies before the window
/// at the smallest size has no say, and is not looked at.
#[derive(Clone, Debug)]
pub struct Chunker {
    size_min: usize,
    size_max: usize,
    mask: u32,
    /// bytes of the current chunk that have been looked at
    scanned: usize,
    hash: u32,
}

/// A size that is no power of two between 64 KiB and 4 MiB.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("Got unsupported chunk size '{0}'")]
pub struct ChunkerError(u64);

impl Chunker {
    /// Average chunk size of file archives, in bytes.
    pub const ARCHIVE_AVERAGE: u32 = 4 << 20;
    /// Average chunk size of catalogs, in bytes.
    pub const CATALOG_AVERAGE: u32 = 512 << 10;

    /// `average` is a power of two from 64 KiB to 4 MiB.
    pub fn new(average: u32) -> Result<Self, ChunkerError> {
        if !average.is_power_of_two() || !(64 << 10..=4 << 20).contains(&average) {
            return Err(ChunkerError(average.into()));
        }
        let average_bytes = average as usize;
        Ok(Self {
            size_min: average_bytes / 4,
            size_max: average_bytes * 4,
            mask: 2 * average - 1,
            scanned: 0,
            hash: 0,
        })
    }

    /// Fewest bytes of a chunk that is not the last.
    pub fn size_min(&self) -> usize {
        self.size_min
    }

    /// Most bytes of a chunk.
    pub fn size_max(&self) -> usize {
        self.size_max
    }

    /// Looks at the bytes of the current chunk, of which all that was passed before is passed
    /// again with more behind it. Returns the chunk's length once its end is among them.
    pub fn find_end(&mut self, chunk: &[u8]) -> Option<usize> {
        let first_test = self.size_min;
        let end = chunk.len().min(self.size_max);
        if end < first_test {
            return None;
        }
        if self.scanned < first_test {
            let window = &chunk[first_test - WINDOW..first_test];
            self.hash = window
                .iter()
                .fold(0, |hash: u32, byte| hash.rotate_left(1) ^ TABLE[usize::from(*byte)]);
            self.scanned = first_test;
            if self.is_end(self.hash) {
                return self.cut(first_test);
            }
        }
        let (found, hash) = self.scan(chunk, self.scanned, end);
        if let Some(length) = found {
            return self.cut(length);
        }
        self.hash = hash;
        self.scanned = end;
        if end == self.size_max { self.cut(end) } else { None }
    }

    /// Looks for the first end in `chunk[start..end]`; `self.hash` is that before `start`. Returns
    /// it, and the hash at `end`.
    fn scan(&self, chunk: &[u8], start: usize, end: usize) -> (Option<usize>, u32) {
        let lane = (end - start) / LANES / WINDOW * WINDOW;
        if lane < LANE_BYTES_MIN {
            return self.scan_one(chunk, start, end, self.hash);
        }
        // An end is rare: mostly it is enough to know that there is none, and that several
        // lanes find out at once.
        match self.scan_lanes(chunk, start, lane) {
            Some(hash) => self.scan_one(chunk, start + LANES * lane, end, hash),
            None => self.scan_one(chunk, start, end, self.hash),
        }
    }

    /// One byte after the other.
    fn scan_one(
        &self,
        chunk: &[u8],
        start: usize,
        end: usize,
        mut hash: u32,
    ) -> (Option<usize>, u32) {
        let leaving = &chunk[start - WINDOW..end - WINDOW];
        for (position, (out, byte)) in leaving.iter().zip(&chunk[start..end]).enumerate() {
            hash = roll(hash, *out, *byte);
            if self.is_end(hash) {
                return (Some(start + position + 1), hash);
            }
        }
        (None, hash)
    }

    /// Scans several stretches of `lane` bytes side by side, which the processor does at once. The
    /// hash at the end of the last, or none where any of them holds an end.
    fn scan_lanes(&self, chunk: &[u8], start: usize, lane: usize) -> Option<u32> {
        let mut hashes = [self.hash; LANES];
        for (number, hash) in hashes.iter_mut().enumerate().skip(1) {
            *hash = window_hash(&chunk[..start + number * lane]);
        }
        // Whole blocks: fixed sizes need no checks of bounds.
        let blocks = |from: usize| chunk[from..from + lane].as_chunks::<WINDOW>().0.iter();
        let [in0, in1, in2, in3] = [0, 1, 2, 3].map(|n| blocks(start + n * lane));
        let [out0, out1, out2, out3] = [0, 1, 2, 3].map(|n| blocks(start + n * lane - WINDOW));
        let pairs = in0.zip(out0).zip(in1.zip(out1)).zip(in2.zip(out2).zip(in3.zip(out3)));
        for (((in0, out0), (in1, out1)), ((in2, out2), (in3, out3))) in pairs {
            let mut found = false;
            for at in 0..WINDOW {
                hashes[0] = roll(hashes[0], out0[at], in0[at]);
                hashes[1] = roll(hashes[1], out1[at], in1[at]);
                hashes[2] = roll(hashes[2], out2[at], in2[at]);
                hashes[3] = roll(hashes[3], out3[at], in3[at]);
                found |= hashes.iter().any(|hash| self.is_end(*hash));
            }
            if found {
                return None;
            }
        }
        Some(hashes[LANES - 1])
    }

    #[inline(always)]
    fn is_end(&self, hash: u32) -> bool {
        hash & self.mask >= self.mask - 2
    }

    fn cut(&mut self, length: usize) -> Option<usize> {
        self.reset();
        Some(length)
    }

    /// Begins a new chunk.
    pub fn reset(&mut self) {
        self.scanned = 0;
        self.hash = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Spec §6, one byte at a time, nothing left out.
    struct Model {
        average: u32,
        hash: u32,
        window: [u8; 64],
        fill: usize,
        size: usize,
    }

    impl Model {
        fn feed(&mut self, byte: u8) -> bool {
            let mask = 2 * self.average - 1;
            let entering = TABLE[usize::from(byte)];
            if self.fill < 64 {
                self.window[self.fill] = byte;
                self.hash = self.hash.rotate_left(1) ^ entering;
                self.fill += 1;
                self.size += 1;
                return false;
            }
            let slot = self.size & 63;
            let leaving = TABLE[usize::from(self.window[slot])];
            self.hash = self.hash.rotate_left(1) ^ leaving ^ entering;
            self.window[slot] = byte;
            self.size += 1;
            let average = self.average as usize;
            let cut = self.size >= average * 4
                || (self.size >= average / 4 && self.hash & mask >= mask - 2);
            if cut {
                (self.hash, self.fill, self.size) = (0, 0, 0);
            }
            cut
        }
    }

    fn model_lengths(average: u32, data: &[u8]) -> Vec<usize> {
        let mut model = Model { average, hash: 0, window: [0; 64], fill: 0, size: 0 };
        let mut lengths = vec![0];
        for byte in data {
            *lengths.last_mut().unwrap() += 1;
            if model.feed(*byte) {
                lengths.push(0);
            }
        }
        lengths.retain(|length| *length > 0);
        lengths
    }

    /// Chunk lengths when the data comes in pieces of these sizes.
    fn lengths(average: u32, data: &[u8], pieces: &[usize]) -> Vec<usize> {
        let mut chunker = Chunker::new(average).unwrap();
        let mut lengths = Vec::new();
        let (mut start, mut seen) = (0, 0);
        let mut pieces = pieces.iter().cycle();
        while seen < data.len() {
            seen = (seen + pieces.next().unwrap()).min(data.len());
            while let Some(length) = chunker.find_end(&data[start..seen]) {
                lengths.push(length);
                start += length;
            }
        }
        if start < data.len() {
            lengths.push(data.len() - start);
        }
        lengths
    }

    #[test]
    fn cut_points_never_change() {
        let counter: Vec<u8> = (0u32..262_144).flat_map(u32::to_le_bytes).collect();
        let expected = [143_377, 262_144, 262_144, 262_144, 118_767];
        assert_eq!(lengths(64 << 10, &counter, &[1 << 20]), expected);
        assert_eq!(lengths(64 << 10, &counter, &[4096]), expected);
        assert_eq!(lengths(64 << 10, &[0; 1 << 20], &[70_001]), [262_144; 4]);
    }

    #[test]
    fn other_sizes_are_refused() {
        for bad in [0, 1, 63 << 10, 65 << 10, 8 << 20] {
            assert!(Chunker::new(bad).is_err(), "{bad}");
        }
    }

    fn noise(seed: u64, length: usize) -> Vec<u8> {
        let mut state = seed | 1;
        let word = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        };
        std::iter::repeat_with(word).take(length).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn cut_points_equal_the_model(
            seed in any::<u64>(),
            length in 0usize..1_500_000,
            constant in prop::option::of(0usize..900_000),
            pieces in prop::collection::vec(1usize..300_000, 1..6),
        ) {
            let mut data = noise(seed, length);
            if let Some(at) = constant.filter(|at| *at < length) {
                data[at..].fill(7);
            }
            prop_assert_eq!(
                lengths(64 << 10, &data, &pieces),
                model_lengths(64 << 10, &data)
            );
        }
    }
}
