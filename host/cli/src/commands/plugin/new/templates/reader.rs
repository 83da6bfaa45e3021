//! A source and a reader of flat archives: the files of a directory, each behind a line with its size and name.
//! `keepwell backup logs.{name}:/var/log/app`; restore, mount, shell, find and diff work on it.
//!
//! A reader says which entries there are and where their content lies; the host moves the bytes.

use keepwell_sdk::archive::{
    Archive, ArchiveType, Bytes, Children, Chunking, Content, Entry, Event, Extent, Info, Node,
    Omission, Origin, OriginKind, Plugin, Reader, Request, Source, Summary, Walk, catalog_add,
    catalog_open, open_stream, skipped,
};
use keepwell_sdk::options::NoOptions;
use keepwell_sdk::{EntryKind, Failure, Metadata, empty_metadata};
use std::cell::RefCell;
use std::rc::Rc;

pub struct {Type}Plugin;

impl Plugin for {Type}Plugin {
    fn describe() -> Info {
        Info {
            name: "{name}".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            summary: "The files of a directory, without what is below it".into(),
            options: Vec::new(),
            capabilities: Vec::new(),
            archive_types: vec![ArchiveType {
                extension: "{name}".into(),
                origin: OriginKind::Directory,
                noun: "directory".into(),
                parts: Vec::new(),
            }],
        }
    }
}

/// The line in front of a file: its size, the length of its name, and the name, which may hold any bytes.
fn head(size: u64, name: &[u8]) -> Vec<u8> {
    [format!("{size} {} ", name.len()).as_bytes(), name, b"\n"].concat()
}

/// Longer than any line.
const HEAD_BYTES_MAX: u32 = 8192;

impl Source for {Type}Plugin {
    type Options = NoOptions;

    fn write_archive(origin: Origin, request: Request, _: NoOptions) -> Result<Summary, Failure> {
        let Origin::Directory(directory) = origin else {
            return Err(Failure::Unsupported("it takes a directory".into()));
        };
        let suffix = format!(".{}", request.archive_extension);
        let stream = open_stream(&suffix, Chunking::ContentDefined, None)?;
        // For `find`, which looks there and not into archives.
        catalog_open();
        let mut entries = 0;
        loop {
            let mut children = directory.read(256)?;
            if children.is_empty() {
                return Ok(Summary { entries });
            }
            children.retain(|child| child.kind == EntryKind::File);
            for (child, opened) in children.iter().zip(directory.open_children(&children)) {
                let opened = match opened {
                    Ok(opened) => opened,
                    // It ends up in the report, and the backup goes on.
                    Err(Failure::Denied(why)) => {
                        skipped(&[child.name.clone()], Omission::Denied, &why);
                        continue;
                    }
                    Err(Failure::NotFound(why)) => {
                        skipped(&[child.name.clone()], Omission::Vanished, &why);
                        continue;
                    }
                    Err(other) => return Err(other),
                };
                let Some(file) = opened.handle else { continue };
                let Metadata { size, modified, .. } = opened.examined.metadata;
                catalog_add(&child.name, EntryKind::File, false, size, modified);
                stream.write(&head(size, &child.name))?;
                stream.splice(&file, 0, size)?;
                entries += 1;
            }
        }
    }
}

/// An open archive. It reads forward as far as it is asked, and holds no list: an archive may be large.
pub struct Flat {
    stream: Rc<Bytes>,
}

/// A file: where its line begins, where its content is, and its name.
struct Found {
    at: u64,
    content: u64,
    size: u64,
    name: Vec<u8>,
}

impl Found {
    /// The file whose line begins at `at`; none at the end. What does not fit is refused: an archive may be damaged,
    /// or made by somebody who means harm.
    fn read(stream: &Bytes, at: u64) -> Result<Option<Self>, Failure> {
        let corrupt = || Failure::Corrupt(format!("there is no file at byte {at}"));
        let head = stream.read_at(at, HEAD_BYTES_MAX)?;
        if head.is_empty() {
            return Ok(None);
        }
        let mut parts = head.splitn(3, |byte| *byte == b' ');
        let mut number = || {
            let digits = std::str::from_utf8(parts.next()?).ok()?;
            digits.parse::<u64>().ok()
        };
        let (size, length) = number().zip(number()).ok_or_else(corrupt)?;
        let rest = parts.next().ok_or_else(corrupt)?;
        let length = usize::try_from(length).map_err(|_| corrupt())?;
        let name = rest.get(..length).filter(|_| rest.get(length) == Some(&b'\n'));
        let name = name.ok_or_else(corrupt)?.to_vec();
        let content = at + (head.len() - rest.len() + length + 1) as u64;
        let end = content.checked_add(size).ok_or_else(corrupt)?;
        match stream.size() {
            Some(whole) if end > whole => Err(corrupt()),
            _ => Ok(Some(Self { at, content, size, name })),
        }
    }

    fn end(&self) -> u64 {
        self.content + self.size
    }

    fn entry(self) -> Entry {
        let metadata =
            Metadata { mode: 0o644, size: self.size, ..empty_metadata(EntryKind::File) };
        let extent = Extent { stream: 0, offset: self.content, length: self.size };
        // Two zeros are the root, so files count from 1.
        let node = Node { at: self.at + 1, end: self.end() };
        Entry { name: self.name, node, metadata, content: Content::Stored(vec![extent]) }
    }
}

impl Reader for {Type}Plugin {
    type Archive = Flat;
}

impl Archive for Flat {
    type Walk = FlatWalk;

    fn open(streams: Vec<Bytes>) -> Result<Self, Failure> {
        let mut streams = streams.into_iter();
        match (streams.next(), streams.next()) {
            (Some(stream), None) => Ok(Self { stream: Rc::new(stream) }),
            _ => Err(Failure::Invalid("the archive has one stream".into())),
        }
    }

    fn root(&self) -> Result<Entry, Failure> {
        let metadata = Metadata { mode: 0o755, ..empty_metadata(EntryKind::Directory) };
        let node = Node { at: 0, end: 0 };
        Ok(Entry { name: Vec::new(), node, metadata, content: Content::None })
    }

    fn children(&self, dir: Node, after: Option<Node>, max: u32) -> Result<Children, Failure> {
        let mut children = Vec::new();
        if dir.at != 0 {
            return Ok(children);
        }
        let mut at = after.map_or(0, |node| node.end);
        while children.len() < max as usize {
            let Some(found) = Found::read(&self.stream, at)? else { break };
            at = found.end();
            children.push(Ok(found.entry()));
        }
        Ok(children)
    }

    fn child(&self, directory: Node, name: &[u8]) -> Result<Option<Entry>, Failure> {
        let mut at = 0;
        while directory.at == 0 {
            let Some(found) = Found::read(&self.stream, at)? else { break };
            at = found.end();
            if found.name == name {
                return Ok(Some(found.entry()));
            }
        }
        Ok(None)
    }

    fn entry(&self, node: Node) -> Result<Entry, Failure> {
        let Some(at) = node.at.checked_sub(1) else { return self.root() };
        let found = Found::read(&self.stream, at)?;
        Ok(found.ok_or_else(|| Failure::NotFound(format!("entry {at}")))?.entry())
    }

    fn walk(&self) -> Result<FlatWalk, Failure> {
        Ok(FlatWalk { stream: Rc::clone(&self.stream), at: RefCell::new(0) })
    }
}

/// All files, one after the other.
pub struct FlatWalk {
    stream: Rc<Bytes>,
    at: RefCell<u64>,
}

impl Walk for FlatWalk {
    fn next(&self, max: u32) -> Result<Vec<Event>, Failure> {
        let mut events = Vec::new();
        let mut at = self.at.borrow_mut();
        while events.len() < max as usize {
            let Some(found) = Found::read(&self.stream, *at)? else { break };
            *at = found.end();
            events.push(Event::Leaf(found.entry()));
        }
        Ok(events)
    }
}

keepwell_sdk::export_archive_plugin!({Type}Plugin);

#[cfg(test)]
mod tests {
    use super::*;

    fn open(bytes: &[u8]) -> Flat {
        Flat::open(vec![Bytes::from(bytes.to_vec())]).unwrap()
    }

    #[test]
    fn files_are_found() {
        let flat = open(&[&head(3, b"a b\n")[..], b"abc", &head(0, b"x")].concat());
        let root = flat.root().unwrap().node;
        let children = flat.children(root, None, 10).unwrap();
        let names: Vec<Vec<u8>> = children.into_iter().map(|child| child.unwrap().name).collect();
        assert_eq!(names, [&b"a b\n"[..], b"x"]);
        let found = flat.child(root, b"x").unwrap().unwrap();
        assert_eq!(flat.entry(found.node).unwrap(), found);
        assert_eq!(flat.walk().unwrap().next(10).unwrap().len(), 2);
        assert_eq!(flat.child(root, b"y").unwrap(), None);
    }

    #[test]
    fn damage_is_told() {
        for damaged in ["x", "1 1 a", "1 1 a\n", "1 9 a\nb", "99999999999999999999 1 a\n", "1 1 a b"] {
            let flat = open(damaged.as_bytes());
            assert!(matches!(flat.walk().unwrap().next(10), Err(Failure::Corrupt(_))), "{damaged}");
        }
    }
}
