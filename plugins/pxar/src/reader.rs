//! The contract's reader over [`Decoder`].

use crate::decode::{Decoded, Decoder, Next, ReadAt};
use crate::format::{GoodbyeRow, name_hash};
use keepwell_sdk::archive::{Archive, Bytes, Children, Damage, Entry, Event, Node, Walk};
use keepwell_sdk::{EntryKind, Failure};
use std::cell::RefCell;
use std::rc::Rc;

impl ReadAt for Bytes {
    fn read_at(&self, offset: u64, length: u32) -> Result<Vec<u8>, Failure> {
        Bytes::read_at(self, offset, length)
    }
    fn size(&self) -> Option<u64> {
        Bytes::size(self)
    }
}

pub struct PxarArchive {
    decoder: Rc<Decoder<Bytes>>,
    /// the table used last, in the order of the archive, and where it ends
    table: RefCell<Option<(u64, Table)>>,
}

type Table = Rc<Vec<GoodbyeRow>>;

impl PxarArchive {
    /// The table that ends there. A large one is asked for again and again.
    fn table(&self, end: u64) -> Result<Table, Failure> {
        if let Some((known, rows)) = &*self.table.borrow()
            && *known == end
        {
            return Ok(rows.clone());
        }
        let (_, mut rows) = self.decoder.table(end)?;
        rows.sort_unstable_by_key(|row| row.start);
        let rows = Rc::new(rows);
        *self.table.borrow_mut() = Some((end, rows.clone()));
        Ok(rows)
    }

    /// Where a directory's table ends.
    fn end_of(&self, directory: Node) -> Result<u64, Failure> {
        match (directory.end, directory.at) {
            (0, 0) => {
                self.decoder.size().ok_or(Failure::Unsupported("a pxar archive in a pipe".into()))
            }
            (0, at) => Err(Failure::Invalid(format!("directory {at} comes from a walk"))),
            (end, _) => Ok(end),
        }
    }

    /// The child that begins at `start`; `end` is where its table says that it ends.
    fn entry_at(&self, start: u64, end: u64) -> Result<Entry, Failure> {
        match self.decoder.next(start)? {
            Next::Entry(decoded) => {
                let mut entry = decoded.entry;
                entry.node.end = end;
                Ok(entry)
            }
            Next::End { .. } => Err(Failure::Corrupt(format!("pxar archive: no entry at {start}"))),
        }
    }
}

impl Archive for PxarArchive {
    type Walk = PxarWalk;

    fn open(mut streams: Vec<Bytes>) -> Result<Self, Failure> {
        let decoder = match (streams.pop(), streams.pop(), streams.len()) {
            (Some(stream), None, 0) => Decoder::new(stream),
            (Some(metadata), Some(payload), 0) => {
                let bytes = payload
                    .size()
                    .ok_or(Failure::Unsupported("a split pxar archive in a pipe".into()))?;
                Decoder::split(metadata, bytes)
            }
            _ => return Err(Failure::Invalid("a pxar archive has one stream or two".into())),
        };
        Ok(Self { decoder: Rc::new(decoder), table: RefCell::default() })
    }

    fn root(&self) -> Result<Entry, Failure> {
        Ok(self.decoder.root()?.entry)
    }

    fn children(&self, dir: Node, after: Option<Node>, max: u32) -> Result<Children, Failure> {
        let rows = self.table(self.end_of(dir)?)?;
        if after.is_none() && rows.windows(2).any(|pair| pair[0].end > pair[1].start) {
            let problem =
                format!("pxar archive: the table that ends at {} overlaps itself", dir.end);
            return Err(Failure::Corrupt(problem));
        }
        let from = after.map_or(0, |after| rows.partition_point(|row| row.start <= after.at));
        let rest = rows[from..].iter();
        let read = |row: &GoodbyeRow| {
            let node = Node { at: row.start, end: row.end };
            self.entry_at(row.start, row.end).map_err(|failure| Damage { node, failure })
        };
        Ok(rest.take(max as usize).map(read).collect())
    }

    fn child(&self, directory: Node, name: &[u8]) -> Result<Option<Entry>, Failure> {
        let hash = name_hash(name);
        let rows = self.table(self.end_of(directory)?)?;
        for row in rows.iter().filter(|row| row.hash == hash) {
            let entry = self.entry_at(row.start, row.end)?;
            if entry.name == name {
                return Ok(Some(entry));
            }
        }
        Ok(None)
    }

    fn entry(&self, node: Node) -> Result<Entry, Failure> {
        if node.at == 0 { self.root() } else { self.entry_at(node.at, node.end) }
    }

    fn walk(&self) -> Result<PxarWalk, Failure> {
        let Decoded { next, .. } = self.decoder.root()?;
        let place = Place { next, depth: 1 };
        Ok(PxarWalk { decoder: self.decoder.clone(), place: RefCell::new(place) })
    }
}

/// Metadata handed over at once, beyond which a batch is full.
const BATCH_BYTES_MAX: usize = 1 << 20;

struct Place {
    next: u64,
    /// directories entered and not left; 0 at the end
    depth: u64,
}

pub struct PxarWalk {
    decoder: Rc<Decoder<Bytes>>,
    place: RefCell<Place>,
}

impl Walk for PxarWalk {
    fn next(&self, max: u32) -> Result<Vec<Event>, Failure> {
        let mut place = self.place.borrow_mut();
        let mut events = Vec::new();
        let mut bytes = 0;
        while events.len() < max as usize && bytes < BATCH_BYTES_MAX && place.depth > 0 {
            let next = self.decoder.next(place.next).and_then(|next| match next {
                // Nothing follows the last table that would miss its end.
                Next::End { next } if place.depth == 1 && !self.decoder.reaches(next) => {
                    Err(Failure::Corrupt("pxar archive: it ends within its last table".into()))
                }
                other => Ok(other),
            });
            let next = match next {
                Ok(next) => next,
                // What was read counts; the next call meets the failure again.
                Err(_) if !events.is_empty() => break,
                Err(failure) => return Err(failure),
            };
            match next {
                Next::End { next } => {
                    place.next = next;
                    place.depth -= 1;
                    if place.depth > 0 {
                        events.push(Event::Leave);
                    }
                }
                Next::Entry(decoded) => {
                    place.next = decoded.next;
                    let attributes = decoded.entry.metadata.extended.iter();
                    bytes += attributes.map(|attribute| attribute.value.len()).sum::<usize>();
                    if decoded.entry.metadata.kind == EntryKind::Directory {
                        place.depth += 1;
                        events.push(Event::Enter(decoded.entry));
                    } else {
                        events.push(Event::Leaf(decoded.entry));
                    }
                }
            }
        }
        Ok(events)
    }
}
