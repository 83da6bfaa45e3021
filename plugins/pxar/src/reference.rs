//! The previous archive, walked beside the tree: which files are in it as they are now.
//!
//! Names are in the same order in both, so each directory is gone through once. What can't be read is
//! not found: then the file is read.

use crate::decode::{Decoder, ReadAt};
use crate::format::GoodbyeRow;
use keepwell_sdk::Failure;
use std::collections::VecDeque;

pub struct Reference<R> {
    decoder: Decoder<R>,
    payload: R,
}

/// What is left of a directory of it.
pub struct Children {
    rows: VecDeque<GoodbyeRow>,
    /// the first row's name, and where its entry begins
    first: Option<(Vec<u8>, u64)>,
}

impl<R: ReadAt> Reference<R> {
    /// Of the streams of a split archive; none where it can't be read.
    pub fn open(payload: R, metadata: R) -> Option<Self> {
        let decoder = Decoder::split(metadata, payload.size()?);
        decoder.root().ok()?;
        Some(Self { decoder, payload })
    }

    /// Content of the previous archive.
    pub fn content(&self, offset: u64, length: u32) -> Result<Vec<u8>, Failure> {
        self.payload.read_at(offset, length)
    }

    pub fn root(&self) -> Option<Children> {
        self.children(self.decoder.size()?)
    }

    fn children(&self, end: u64) -> Option<Children> {
        let (_, mut rows) = self.decoder.table(end).ok()?;
        rows.sort_unstable_by_key(|row| row.start);
        Some(Children { rows: rows.into(), first: None })
    }

    /// Goes on to a name, which no name asked for before may follow.
    fn find(&self, children: &mut Children, name: &[u8]) -> Option<(GoodbyeRow, u64)> {
        loop {
            let row = *children.rows.front()?;
            if children.first.is_none() {
                children.first = self.decoder.name_at(row.start).ok();
            }
            let met = match &children.first {
                Some((first, _)) if &first[..] > name => return None,
                Some((first, entry)) if first == name => Some((row, *entry)),
                _ => None,
            };
            children.rows.pop_front();
            children.first = None;
            if met.is_some() {
                return met;
            }
        }
    }

    /// The directory of this name.
    pub fn directory(&self, children: &mut Children, name: &[u8]) -> Option<Children> {
        let (row, _) = self.find(children, name)?;
        self.children(row.end)
    }

    /// Where the PAYLOAD header of a file lies whose name, ENTRY and metadata items, here as they would be written
    /// now, and size are the same.
    pub fn unchanged(
        &self,
        children: &mut Children,
        name: &[u8],
        entry: &[u8],
        size: u64,
    ) -> Option<u64> {
        let (_, start) = self.find(children, name)?;
        self.decoder.payload_of(start, entry, size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encode::{self, Omit};
    use crate::format::{HEADER_BYTES, name_hash};
    use keepwell_sdk::{EntryKind, Metadata, empty_metadata};

    fn file(size: u64, mode: u32) -> Metadata {
        Metadata { size, mode, ..empty_metadata(EntryKind::File) }
    }

    fn entry(metadata: &Metadata) -> Vec<u8> {
        let mut out = Vec::new();
        encode::entry(&mut out, metadata, Omit::default());
        out
    }

    /// A root with files of these names and sizes, one after the other in the payload.
    fn archive(names: &[(&str, u64)]) -> (Vec<u8>, u64) {
        let mut out = Vec::new();
        encode::prologue(&mut out, b"*.o\n");
        encode::entry(&mut out, &empty_metadata(EntryKind::Directory), Omit::default());
        let (mut rows, mut payload) = (Vec::new(), HEADER_BYTES);
        for (name, size) in names {
            let start = out.len() as u64;
            encode::filename(&mut out, name.as_bytes());
            out.extend(entry(&file(*size, 0o644)));
            encode::payload_ref(&mut out, payload, *size);
            payload += HEADER_BYTES + size;
            let (hash, end) = (name_hash(name.as_bytes()), out.len() as u64 + size);
            rows.push(GoodbyeRow { hash, start, end });
        }
        let position = out.len() as u64;
        encode::goodbye(&mut out, rows, 0, position);
        (out, payload + HEADER_BYTES)
    }

    #[test]
    fn unchanged_files_are_found_in_order() {
        let (metadata, payload) = archive(&[("a", 5), ("c", 7), ("d", 0), ("x", 9)]);
        let payload = vec![7; payload as usize];
        let reference = Reference::open(&payload[..], &metadata[..]).unwrap();
        assert_eq!(reference.content(3, 2).unwrap(), [7, 7]);
        let mut root = reference.root().unwrap();
        let mut find = |name: &str, size, mode| {
            let entry = entry(&file(size, mode));
            reference.unchanged(&mut root, name.as_bytes(), &entry, size)
        };
        assert_eq!(find("a", 5, 0o644), Some(16));
        assert_eq!(find("b", 5, 0o644), None);
        assert_eq!(find("c", 7, 0o600), None, "other rights");
        assert_eq!(find("d", 1, 0o644), None, "another size");
        assert_eq!(find("x", 9, 0o644), Some(16 + 21 + 23 + 16));
        assert_eq!(find("y", 9, 0o644), None);
    }

    #[test]
    fn damaged_references_find_nothing() {
        let (metadata, payload) = archive(&[("a", 5)]);
        let payload = vec![0; payload as usize];
        assert!(Reference::open(&payload[..], &metadata[..40]).is_none());
        let cut = Reference::open(&payload[..], &metadata[..metadata.len() - 1]).unwrap();
        assert!(cut.root().is_none());
        let short = Reference::open(&payload[..20], &metadata[..]).unwrap();
        let entry = entry(&file(5, 0o644));
        let mut root = short.root().unwrap();
        assert_eq!(short.unchanged(&mut root, b"a", &entry, 5), None, "beyond the payload");
    }
}
