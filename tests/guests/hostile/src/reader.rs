//! Archives that lie about what is in them.

use crate::{Hostile, misbehave};
use keepwell_sdk::archive::{
    Archive, Bytes, Children, Content, Damage, Entry, Event, Extent, Link, Node, Reader, Walk,
};
use keepwell_sdk::{EntryKind, ExtendedAttribute, Failure, empty_metadata};
use std::cell::Cell;

impl Reader for Hostile {
    type Archive = Lies;
}

/// The mode that the archive holds.
pub struct Lies(String);

/// The mode, and whether all was told.
pub struct Steps(String, Cell<bool>);

fn entry(name: &str, kind: EntryKind, at: u64, content: Content) -> Entry {
    let mut metadata = empty_metadata(kind);
    metadata.mode = 0o755;
    Entry { name: name.into(), node: Node { at, end: at + 1 }, metadata, content }
}

fn directory(name: &str, at: u64) -> Entry {
    entry(name, EntryKind::Directory, at, Content::None)
}

fn stored(name: &str, offset: u64, length: u64) -> Entry {
    let content = Content::Stored(vec![Extent { stream: 0, offset, length }]);
    let mut file = entry(name, EntryKind::File, 7, content);
    file.metadata.size = length;
    file
}

/// The one child of each directory.
fn child(mode: &str) -> Entry {
    match mode {
        "cycle" => directory("again", 0),
        "self" => directory("again", 5),
        "dotdot" => stored("..", 0, 1),
        "slash" => stored("a/b", 0, 1),
        "empty" => stored("", 0, 1),
        "zero" => stored("a\0b", 0, 1),
        "long" => stored(&"x".repeat(10_000), 0, 1),
        "beyond" => stored("file", 1 << 40, 1 << 40),
        "overflow" => stored("file", u64::MAX, u64::MAX),
        "stream" => {
            let extent = Extent { stream: 77, offset: 0, length: 1 };
            entry("file", EntryKind::File, 7, Content::Stored(vec![extent]))
        }
        "size" => {
            let mut file = stored("file", 0, 1);
            file.metadata.size = u64::MAX;
            file
        }
        "link" => {
            let link = Link { node: Node { at: 99, end: 100 }, path: vec![b"..".to_vec()] };
            entry("file", EntryKind::File, 8, Content::HardLink(link))
        }
        "target" => {
            let mut link = entry("link", EntryKind::Symlink, 8, Content::None);
            link.metadata.link_target = Some(vec![b'x'; 1 << 20]);
            link
        }
        "mode" => {
            let mut file = stored("file", 0, 1);
            file.metadata.mode = u32::MAX;
            file.metadata.modified.nanoseconds = u32::MAX;
            file.metadata.modified.seconds = i64::MIN;
            file
        }
        "attributes" => {
            let mut file = stored("file", 0, 1);
            let bomb = ExtendedAttribute { name: vec![b'u'; 1000], value: vec![0; 1 << 20] };
            file.metadata.extended = vec![bomb; 30];
            file
        }
        _ => stored("file", 0, 1),
    }
}

impl Archive for Lies {
    type Walk = Steps;

    fn open(streams: Vec<Bytes>) -> Result<Self, Failure> {
        let stream = streams.first().ok_or(Failure::Corrupt("no stream".into()))?;
        let mode = String::from_utf8_lossy(&stream.read_at(0, 100)?).into_owned();
        if mode == "handles" {
            loop {
                stream.read_at(0, 1 << 20)?;
            }
        }
        Ok(Self(mode))
    }

    fn root(&self) -> Result<Entry, Failure> {
        misbehave(self.0.as_bytes());
        Ok(directory("", 0))
    }

    fn children(&self, _: Node, after: Option<Node>, _: u32) -> Result<Children, Failure> {
        match (&self.0[..], after) {
            ("many", _) => Ok((0..1_000_000).map(|_| Ok(directory("a", 1))).collect()),
            ("endless", after) => {
                let at = after.map_or(1, |node| node.at + 1);
                Ok(vec![Ok(stored(&format!("f{at}"), 0, 1)); 1])
            }
            ("damaged", _) => {
                let node = Node { at: 1, end: 2 };
                Ok(vec![Err(Damage { node, failure: Failure::Corrupt("so it is".into()) })])
            }
            (_, Some(_)) => Ok(Vec::new()),
            (mode, None) => Ok(vec![Ok(child(mode))]),
        }
    }

    fn child(&self, _: Node, name: &[u8]) -> Result<Option<Entry>, Failure> {
        let found = child(&self.0);
        Ok((found.name == name).then_some(found))
    }

    fn entry(&self, _: Node) -> Result<Entry, Failure> {
        Ok(child(&self.0))
    }

    fn walk(&self) -> Result<Steps, Failure> {
        misbehave(self.0.as_bytes());
        Ok(Steps(self.0.clone(), Cell::new(false)))
    }
}

impl Walk for Steps {
    fn next(&self, _: u32) -> Result<Vec<Event>, Failure> {
        Ok(match &self.0[..] {
            "cycle" | "self" => vec![Event::Enter(directory("again", 1))],
            "endless" => vec![Event::Leaf(stored("same", 0, 1))],
            "leave" => vec![Event::Leave, Event::Leave],
            "many" => vec![Event::Leave; 1_000_000],
            _ if self.1.replace(true) => Vec::new(),
            mode => vec![Event::Leaf(child(mode))],
        })
    }
}
