//! What differs between two archives of trees. Entries are compared by their metadata, and content by
//! the chunks that hold it: only where those differ is it read.

use crate::archive::{ChunkedArchive, Part};
use crate::browse::{self, ContentReader};
use crate::error::{EngineError, Result};
use crate::plugin::{Archive, Content, Entry, EntryKind, Failure, Node};
use crate::restore::{StoredContent, chain};
use keepwell_model::ChunkDigest;
use std::io::Read;
use std::sync::Arc;

/// Children asked of an archive at a time.
const BATCH: u32 = 1024;
/// Bytes of content compared at a time.
const PIECE_BYTES: u64 = 256 << 10;
/// Deeper trees are not followed: no file system holds one.
const DEPTH_MAX: usize = 2048;

/// One of the two archives.
pub struct Side {
    pub archive: Box<dyn Archive>,
    /// its streams
    pub stored: Vec<Arc<ChunkedArchive>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Added,
    Removed,
    /// the content, the target or the type
    Modified,
    /// nothing else
    Metadata,
    /// damage hides whether it changed
    Unreadable,
}

/// An entry that is not the same in both.
#[derive(Debug)]
pub struct Difference {
    /// names from the root with '/' between them; empty for the root
    pub path: Vec<u8>,
    pub change: Change,
    pub before: Option<Entry>,
    pub after: Option<Entry>,
    /// what of it differs, where it is in both
    pub what: Vec<&'static str>,
    /// why it can't be compared
    pub problem: Option<String>,
}

/// Hears of the differences, in the order of paths.
pub type Tell<'a> = dyn FnMut(Difference) -> Result<()> + 'a;

/// Compares two archives.
pub fn diff(before: &mut Side, after: &mut Side, tell: &mut Tell<'_>) -> Result<()> {
    let (one, other) = (before.archive.root()?, after.archive.root()?);
    let mut comparison = Comparison { before, after, tell };
    comparison.both(Vec::new(), one, other, 0)
}

struct Comparison<'a, 'b> {
    before: &'a mut Side,
    after: &'a mut Side,
    tell: &'a mut Tell<'b>,
}

impl<'b> Comparison<'_, 'b> {
    /// An entry that both have.
    fn both(&mut self, path: Vec<u8>, one: Entry, other: Entry, depth: usize) -> Result<()> {
        let resolved = browse::resolve(&mut *self.before.archive, one)
            .and_then(|one| Ok((one, browse::resolve(&mut *self.after.archive, other)?)));
        let (one, other) = match resolved {
            Ok(both) => both,
            Err(error) => return self.unreadable(&path, error),
        };
        let (kind, other_kind) = (one.metadata.kind, other.metadata.kind);
        if kind != other_kind {
            let (below, below_other) = (one.node, other.node);
            self.tell_of(&path, Change::Modified, one, other, vec!["type"])?;
            if kind == EntryKind::Directory {
                self.all_below(&path, below, Change::Removed)?;
            }
            if other_kind == EntryKind::Directory {
                self.all_below(&path, below_other, Change::Added)?;
            }
            return Ok(());
        }
        let nodes = (one.node, other.node);
        let mut what = differing_metadata(&one, &other);
        if kind == EntryKind::File {
            let same = match one.metadata.size == other.metadata.size {
                true => self.same_content(&one, &other),
                false => Ok(false),
            };
            match same {
                Ok(true) => {}
                Ok(false) => what.insert(0, "content"),
                Err(error) => return self.unreadable(&path, error),
            }
        }
        let is_modified = ["content", "target", "device"].iter().any(|part| what.contains(part));
        if !what.is_empty() {
            let change = if is_modified { Change::Modified } else { Change::Metadata };
            self.tell_of(&path, change, one, other, what)?;
        }
        match kind {
            EntryKind::Directory => self.children(&path, nodes, depth),
            _ => Ok(()),
        }
    }

    fn children(&mut self, path: &[u8], nodes: (Node, Node), depth: usize) -> Result<()> {
        if depth >= DEPTH_MAX {
            return Err(Failure::Corrupt("directories are nested too deep".into()).into());
        }
        let (ones, problem) = sorted(&mut *self.before.archive, nodes.0);
        let (others, other_problem) = sorted(&mut *self.after.archive, nodes.1);
        // What is missing from a damaged list was neither added nor removed.
        let is_whole = problem.is_none() && other_problem.is_none();
        if let Some(failure) = problem.or(other_problem) {
            self.unreadable(path, failure.into())?;
        }
        let mut ones = ones.into_iter().peekable();
        let mut others = others.into_iter().peekable();
        loop {
            let order = match (ones.peek(), others.peek()) {
                (None, None) => return Ok(()),
                (Some(_), None) => std::cmp::Ordering::Less,
                (None, Some(_)) => std::cmp::Ordering::Greater,
                (Some(one), Some(other)) => one.name.cmp(&other.name),
            };
            let one = ones.next_if(|_| order.is_le());
            let other = others.next_if(|_| order.is_ge());
            match (one, other) {
                (Some(one), Some(other)) => {
                    self.both(join(path, &one.name), one, other, depth + 1)?;
                }
                (Some(one), None) if is_whole => {
                    self.only(join(path, &one.name), one, Change::Removed)?;
                }
                (None, Some(other)) if is_whole => {
                    self.only(join(path, &other.name), other, Change::Added)?;
                }
                _ => {}
            }
        }
    }

    /// An entry that one of them has, and all below it.
    fn only(&mut self, path: Vec<u8>, entry: Entry, change: Change) -> Result<()> {
        let below = (entry.metadata.kind == EntryKind::Directory).then_some(entry.node);
        let (side, tell) = self.side(change);
        match browse::resolve(&mut *side.archive, entry) {
            Ok(entry) => tell(one_sided(path.clone(), change, entry))?,
            Err(error) => return self.unreadable(&path, error),
        }
        below.map_or(Ok(()), |directory| self.all_below(&path, directory, change))
    }

    fn all_below(&mut self, above: &[u8], directory: Node, change: Change) -> Result<()> {
        let (side, tell) = self.side(change);
        let walked = browse::walk(&mut *side.archive, directory, &mut |archive, path, entry| {
            let entry = browse::resolve(archive, entry)?;
            tell(one_sided(join(above, &path.join(&b'/')), change, entry))
        });
        walked.or_else(|error| self.unreadable(above, error))
    }

    /// Damage hides what is there; everything else ends the comparison.
    fn unreadable(&mut self, path: &[u8], error: EngineError) -> Result<()> {
        if !error.is_damage() {
            return Err(error);
        }
        (self.tell)(Difference {
            path: path.to_vec(),
            change: Change::Unreadable,
            before: None,
            after: None,
            what: Vec::new(),
            problem: Some(chain(&error)),
        })
    }

    /// The one that has what was added or removed, and who is told.
    fn side(&mut self, change: Change) -> (&mut Side, &mut Tell<'b>) {
        let side = if change == Change::Removed { &mut *self.before } else { &mut *self.after };
        (side, &mut *self.tell)
    }

    fn tell_of(
        &mut self,
        path: &[u8],
        change: Change,
        before: Entry,
        after: Entry,
        what: Vec<&'static str>,
    ) -> Result<()> {
        let (before, after) = (Some(before), Some(after));
        let (path, problem) = (path.to_vec(), None);
        (self.tell)(Difference { path, change, before, after, what, problem })
    }

    /// Whether two files of one size have the same bytes.
    fn same_content(&mut self, one: &Entry, other: &Entry) -> Result<bool> {
        let stored = (&self.before.stored[..], &self.after.stored[..]);
        if let (Some(one), Some(other)) = (pieces(stored.0, one), pieces(stored.1, other)) {
            return same_pieces(&one, &other);
        }
        let content =
            (StoredContent(self.before.stored.clone()), StoredContent(self.after.stored.clone()));
        let mut one = ContentReader::new(&mut *self.before.archive, &content.0, one);
        let mut other = ContentReader::new(&mut *self.after.archive, &content.1, other);
        loop {
            let (left, right) = (next_piece(&mut one)?, next_piece(&mut other)?);
            if left != right {
                return Ok(false);
            }
            if left.is_empty() {
                return Ok(true);
            }
        }
    }
}

fn one_sided(path: Vec<u8>, change: Change, entry: Entry) -> Difference {
    let (before, after) = match change {
        Change::Removed => (Some(entry), None),
        _ => (None, Some(entry)),
    };
    Difference { path, change, before, after, what: Vec::new(), problem: None }
}

fn join(above: &[u8], name: &[u8]) -> Vec<u8> {
    match above {
        [] => name.to_vec(),
        _ => [above, b"/", name].concat(),
    }
}

/// A part of a file's content, and the chunk that holds it.
struct Piece<'a> {
    stored: &'a ChunkedArchive,
    digest: ChunkDigest,
    part: Part,
}

impl Piece<'_> {
    fn length(&self) -> usize {
        self.part.to - self.part.from
    }
}

/// The content of a file whose bytes lie in the archive.
fn pieces<'a>(streams: &'a [Arc<ChunkedArchive>], entry: &Entry) -> Option<Vec<Piece<'a>>> {
    let Content::Stored(extents) = &entry.content else { return None };
    let mut pieces = Vec::new();
    for extent in extents {
        let stored = streams.get(extent.stream as usize)?;
        add_pieces(stored, extent.offset, extent.length, &mut pieces)?;
    }
    Some(pieces)
}

/// None where the stretch leaves the archive.
fn add_pieces<'a>(
    stored: &'a ChunkedArchive,
    offset: u64,
    length: u64,
    pieces: &mut Vec<Piece<'a>>,
) -> Option<()> {
    for part in stored.parts(offset, length)? {
        let digest = stored.index().chunk(part.position)?.digest;
        pieces.push(Piece { stored, digest, part });
    }
    Some(())
}

/// Whether these hold the same bytes. What lies at one place in one chunk is not read.
fn same_pieces(ones: &[Piece<'_>], others: &[Piece<'_>]) -> Result<bool> {
    let (mut ones, mut others) = (ones.iter(), others.iter());
    let (mut one, mut other) = (ones.next(), others.next());
    // How much of each piece has been compared.
    let (mut done, mut other_done) = (0, 0);
    while let (Some(left), Some(right)) = (one, other) {
        let length = (left.length() - done).min(right.length() - other_done);
        let (from, other_from) = (left.part.from + done, right.part.from + other_done);
        if left.digest != right.digest || from != other_from {
            let chunk = left.stored.chunk(left.part.position)?;
            let other_chunk = right.stored.chunk(right.part.position)?;
            let bytes = chunk.get(from..from + length);
            if bytes != other_chunk.get(other_from..other_from + length) {
                return Ok(false);
            }
        }
        (done, other_done) = (done + length, other_done + length);
        if done == left.length() {
            (one, done) = (ones.next(), 0);
        }
        if other_done == right.length() {
            (other, other_done) = (others.next(), 0);
        }
    }
    Ok(one.is_none() && other.is_none())
}

/// Whether two archives without entries have the same bytes.
pub fn same_bytes(one: &ChunkedArchive, other: &ChunkedArchive) -> Result<bool> {
    if one.index().size() != other.index().size() {
        return Ok(false);
    }
    let (mut left, mut right) = (Vec::new(), Vec::new());
    for (stored, pieces) in [(one, &mut left), (other, &mut right)] {
        add_pieces(stored, 0, stored.index().size(), pieces).ok_or(EngineError::Worker)?;
    }
    same_pieces(&left, &right)
}

/// Fewer bytes than `PIECE_BYTES` only at the end.
fn next_piece(reader: &mut ContentReader<'_>) -> Result<Vec<u8>> {
    let mut piece = Vec::new();
    let read = reader.take(PIECE_BYTES).read_to_end(&mut piece);
    read.map_err(|error| match error.downcast() {
        Ok(inner) => inner,
        Err(source) => EngineError::Io { action: "read", path: "content".into(), source },
    })?;
    Ok(piece)
}

/// All children of a directory by name, and what hides others of them.
fn sorted(archive: &mut dyn Archive, directory: Node) -> (Vec<Entry>, Option<Failure>) {
    let (mut entries, mut last, mut problem) = (Vec::<Entry>::new(), None, None);
    loop {
        let children = match archive.children(directory, last, BATCH) {
            Ok(children) if children.is_empty() => break,
            Ok(children) => children,
            Err(failure) => {
                problem = Some(failure);
                break;
            }
        };
        for child in children {
            match child {
                Ok(entry) => {
                    last = Some(entry.node);
                    entries.push(entry);
                }
                Err((node, failure)) => {
                    last = Some(node);
                    problem = Some(failure);
                }
            }
        }
    }
    entries.sort_by(|one, other| one.name.cmp(&other.name));
    (entries, problem)
}

/// What differs beside the content of files.
fn differing_metadata(one: &Entry, other: &Entry) -> Vec<&'static str> {
    let (a, b) = (&one.metadata, &other.metadata);
    let sorted = |attributes: &[(Vec<u8>, Vec<u8>)]| {
        let mut attributes = attributes.to_vec();
        attributes.sort_unstable();
        attributes
    };
    let differs = [
        ("target", a.link_target != b.link_target),
        ("device", a.device != b.device),
        ("mode", a.mode != b.mode),
        ("owner", a.owner != b.owner),
        ("group", a.group != b.group),
        ("mtime", a.modified != b.modified),
        ("attributes", a.inode_flags != b.inode_flags || a.fat_attributes != b.fat_attributes),
        ("project", a.project != b.project),
        ("xattrs", sorted(&a.extended) != sorted(&b.extended)),
    ];
    differs.into_iter().filter_map(|(name, differs)| differs.then_some(name)).collect()
}
