//! Looks up single entries of a stored archive and reads what lies below them, in order: for who
//! browses a snapshot and does not restore it.

use crate::error::{EngineError, Result};
use crate::plugin::{Archive, Content, Entry, EntryKind, Failure, Node};
use crate::report::shown_path;
use crate::restore::{ContentSource, Parts};
use std::io;

/// Children asked of an archive at a time.
const BATCH: u32 = 128;
/// Bytes of computed content asked for at a time.
const COMPUTED_BYTES: u32 = 1 << 20;
/// Deeper trees are not followed: no file system holds one.
const DEPTH_MAX: usize = 2048;

/// The entry at a path of names from the archive's root; the root where there are none. The root
/// is not read otherwise: it may lie far from what is looked for.
pub fn find(archive: &mut dyn Archive, path: &[impl AsRef<[u8]>]) -> Result<Option<Entry>> {
    let mut found: Option<Entry> = None;
    for name in path {
        let directory = match &found {
            None => Node::ROOT,
            Some(entry) if entry.metadata.kind == EntryKind::Directory => entry.node,
            Some(_) => return Ok(None),
        };
        found = archive.child(directory, name.as_ref())?;
        if found.is_none() {
            return Ok(None);
        }
    }
    match found {
        Some(entry) => Ok(Some(entry)),
        None => Ok(Some(archive.root()?)),
    }
}

/// Names from an archive's root.
pub type EntryPath = Vec<Vec<u8>>;

/// The entries at these paths, in the order of archives: the first name of a file comes before its
/// further ones. What lies below another of them is left out; one that is not there is an error.
pub fn find_all(
    archive: &mut dyn Archive,
    mut paths: Vec<EntryPath>,
) -> Result<Vec<(EntryPath, Entry)>> {
    paths.sort_unstable();
    paths.dedup_by(|path, above| path.starts_with(above));
    let found = paths.into_iter().map(|path| match find(archive, &path)? {
        Some(entry) if !path.is_empty() || entry.metadata.kind == EntryKind::Directory => {
            Ok((path, entry))
        }
        Some(_) => Err(EngineError::Refused(ONE_FILE.into())),
        None if archive.root().is_ok_and(|root| root.metadata.kind != EntryKind::Directory) => {
            Err(EngineError::Refused(ONE_FILE.into()))
        }
        None => Err(not_found(&path)),
    });
    found.collect()
}

const ONE_FILE: &str = "the archive is one file and has no paths: use `restore` to get it";

pub(crate) fn not_found(path: &[Vec<u8>]) -> EngineError {
    let path = shown_path(&path.join(&b'/'));
    EngineError::Refused(format!("there is no \"{path}\" in the archive"))
}

/// The entry itself, or the one that a hard link stands for.
pub fn resolve(archive: &mut dyn Archive, entry: Entry) -> Result<Entry> {
    let Content::HardLink { node, .. } = entry.content else { return Ok(entry) };
    let original = archive.entry(node)?;
    match original.content {
        Content::HardLink { .. } => {
            Err(Failure::Corrupt("a hard link to a hard link".into()).into())
        }
        _ => Ok(Entry { name: entry.name, ..original }),
    }
}

/// Reads a file's content from the start. Errors of the engine come as causes of `io::Error`.
pub struct ContentReader<'a> {
    archive: &'a mut dyn Archive,
    source: &'a dyn ContentSource,
    entry: &'a Entry,
    /// extents begun
    extents: usize,
    parts: Option<Parts<'a>>,
    /// bytes at hand, and how many of them are taken
    piece: Vec<u8>,
    taken: usize,
    /// bytes of computed content asked for so far
    offset: u64,
}

impl<'a> ContentReader<'a> {
    pub fn new(
        archive: &'a mut dyn Archive,
        source: &'a dyn ContentSource,
        entry: &'a Entry,
    ) -> Self {
        let piece = Vec::new();
        Self { archive, source, entry, extents: 0, parts: None, piece, taken: 0, offset: 0 }
    }

    /// The next bytes; none at the end.
    fn next_piece(&mut self) -> Result<Vec<u8>> {
        match &self.entry.content {
            Content::Stored(extents) => loop {
                if let Some(part) = self.parts.as_mut().and_then(Iterator::next) {
                    let fetched = self.source.fetch(&part)?;
                    let bytes = fetched.bytes.get(fetched.from..fetched.to).unwrap_or_default();
                    return Ok(bytes.to_vec());
                }
                let Some(extent) = extents.get(self.extents) else { return Ok(Vec::new()) };
                self.extents += 1;
                let outside = || Failure::Corrupt("content lies outside of the archive".into());
                self.parts = Some(self.source.parts(*extent).ok_or_else(outside)?);
            },
            Content::Computed if self.offset < self.entry.metadata.size => {
                let bytes = self.archive.read(self.entry.node, self.offset, COMPUTED_BYTES)?;
                if bytes.is_empty() {
                    return Err(Failure::Corrupt("content ends too early".into()).into());
                }
                self.offset += bytes.len() as u64;
                Ok(bytes)
            }
            _ => Ok(Vec::new()),
        }
    }
}

impl io::Read for ContentReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.taken == self.piece.len() {
            self.piece = self.next_piece().map_err(io::Error::other)?;
            self.taken = 0;
        }
        let rest = &self.piece[self.taken..];
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        self.taken += count;
        Ok(count)
    }
}

/// What to do with an entry: its path from the directory walked, and the archive to read from.
pub type Visit<'a> = dyn FnMut(&mut dyn Archive, &[Vec<u8>], Entry) -> Result<()> + 'a;

/// Visits all below a directory, parents first.
pub fn walk(archive: &mut dyn Archive, directory: Node, visit: &mut Visit<'_>) -> Result<()> {
    let mut path: Vec<Vec<u8>> = Vec::new();
    // A level: its directory, the child seen last, and children not visited yet.
    let mut levels = vec![Level { directory, last: None, waiting: Vec::new().into_iter() }];
    while let Some(level) = levels.last_mut() {
        let Some(entry) = level.waiting.next() else {
            let children = archive.children(level.directory, level.last, BATCH)?;
            if children.is_empty() {
                levels.pop();
                path.pop();
                continue;
            }
            let children: std::result::Result<Vec<Entry>, Failure> =
                children.into_iter().map(|child| child.map_err(|(_, failure)| failure)).collect();
            level.waiting = children?.into_iter();
            continue;
        };
        level.last = Some(entry.node);
        let below = (entry.metadata.kind == EntryKind::Directory).then_some(entry.node);
        path.push(entry.name.clone());
        visit(archive, &path, entry)?;
        match below {
            Some(_) if levels.len() >= DEPTH_MAX => {
                return Err(Failure::Corrupt("directories are nested too deep".into()).into());
            }
            Some(directory) => {
                levels.push(Level { directory, last: None, waiting: Vec::new().into_iter() });
            }
            None => {
                path.pop();
            }
        }
    }
    Ok(())
}

struct Level {
    directory: Node,
    last: Option<Node>,
    waiting: std::vec::IntoIter<Entry>,
}
