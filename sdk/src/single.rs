//! The reader of archives that are one file and nothing else: images, configuration files.

use crate::archive::{Archive, Bytes, Children, Content, Entry, Event, Extent, Node, Walk};
use crate::{EntryKind, Failure, Metadata, empty_metadata};

/// An archive whose only stream is the content of one file.
pub struct SingleFile {
    size: u64,
}

impl Archive for SingleFile {
    type Walk = Nothing;

    fn open(streams: Vec<Bytes>) -> Result<Self, Failure> {
        let [stream] = &streams[..] else {
            return Err(Failure::Invalid("the archive of a single file has one stream".into()));
        };
        let size = stream.size();
        let size = size.ok_or(Failure::Unsupported("a single file from a pipe".into()))?;
        Ok(Self { size })
    }

    fn root(&self) -> Result<Entry, Failure> {
        let metadata = Metadata { mode: 0o600, size: self.size, ..empty_metadata(EntryKind::File) };
        let extent = Extent { stream: 0, offset: 0, length: self.size };
        let node = Node { at: 0, end: self.size };
        Ok(Entry { name: Vec::new(), node, metadata, content: Content::Stored(vec![extent]) })
    }

    fn children(&self, _: Node, _: Option<Node>, _: u32) -> Result<Children, Failure> {
        Ok(Vec::new())
    }

    fn child(&self, _: Node, _: &[u8]) -> Result<Option<Entry>, Failure> {
        Ok(None)
    }

    fn entry(&self, _: Node) -> Result<Entry, Failure> {
        self.root()
    }

    fn walk(&self) -> Result<Nothing, Failure> {
        Ok(Nothing)
    }
}

/// A single file has nothing below it.
pub struct Nothing;

impl Walk for Nothing {
    fn next(&self, _max: u32) -> Result<Vec<Event>, Failure> {
        Ok(Vec::new())
    }
}
