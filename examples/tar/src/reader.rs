//! Looks into tars. A tar has no table of contents: its headers are read once, when it is opened, and the content between
//! them is passed over.

use crate::Tar;
use crate::format::{self, Found, Member};
use keepwell_sdk::archive::{
    Archive, Bytes, Children, Content, Entry, Event, Extent, Link, Node, Reader, Walk,
};
use keepwell_sdk::{EntryKind, Failure, empty_metadata};
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

impl Reader for Tar {
    type Archive = Contents;
}

/// An entry, and what is in it.
struct Item {
    name: Vec<u8>,
    member: Member,
    content: u64,
    children: Vec<usize>,
}

/// Entries in the order of the archive; the first is the root. Nodes are their numbers.
struct Tree {
    items: Vec<Item>,
    by_path: HashMap<Vec<u8>, usize>,
}

#[derive(Clone)]
pub struct Contents(Rc<Tree>);

impl Tree {
    fn read(stream: &Bytes) -> Result<Self, Failure> {
        let read = |at, length: usize| stream.read_at(at, length as u32);
        let root = Member { path: Vec::new(), metadata: directory(), hard_link: None };
        let root = Item { name: Vec::new(), member: root, content: 0, children: Vec::new() };
        let mut tree = Self { items: vec![root], by_path: HashMap::from([(Vec::new(), 0)]) };
        let mut at = 0;
        while let Some(found) = format::decode(at, &read)? {
            at = found.next;
            tree.add(found)?;
        }
        Ok(tree)
    }

    fn add(&mut self, found: Found) -> Result<(), Failure> {
        let Found { member, content, .. } = found;
        if let Some(known) = self.by_path.get(&member.path) {
            // The root, or a directory that other tars name only after what is in it.
            let item = &mut self.items[*known];
            if item.member.metadata.kind != EntryKind::Directory {
                let path = String::from_utf8_lossy(&member.path).into_owned();
                return Err(Failure::Corrupt(format!("the tar has two files '{path}'")));
            }
            item.member = member;
            return Ok(());
        }
        let parent = self.parent(&member.path)?;
        self.put(parent, member, content);
        Ok(())
    }

    /// The directory that something is in; made up where the tar does not name it.
    fn parent(&mut self, path: &[u8]) -> Result<usize, Failure> {
        let mut parent = 0;
        for (at, _) in path.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
            parent = match self.by_path.get(&path[..at]) {
                Some(known) => *known,
                None => {
                    let member = Member {
                        path: path[..at].to_vec(),
                        metadata: directory(),
                        hard_link: None,
                    };
                    self.put(parent, member, 0)
                }
            };
            if self.items[parent].member.metadata.kind != EntryKind::Directory {
                let path = String::from_utf8_lossy(path).into_owned();
                return Err(Failure::Corrupt(format!("'{path}' lies in what is no directory")));
            }
        }
        Ok(parent)
    }

    fn put(&mut self, parent: usize, member: Member, content: u64) -> usize {
        let number = self.items.len();
        let name = member.path.rsplit(|byte| *byte == b'/').next().unwrap_or_default().to_vec();
        self.by_path.insert(member.path.clone(), number);
        self.items[parent].children.push(number);
        self.items.push(Item { name, member, content, children: Vec::new() });
        number
    }

    fn item(&self, node: Node) -> Result<(usize, &Item), Failure> {
        let number = usize::try_from(node.at).unwrap_or(usize::MAX);
        let item = self.items.get(number);
        Ok((number, item.ok_or(Failure::Invalid(format!("there is no entry {number}")))?))
    }

    fn entry(&self, number: usize) -> Entry {
        let Item { name, member, content, .. } = &self.items[number];
        let metadata = member.metadata.clone();
        let linked = member.hard_link.as_ref().map(|path| {
            let first = self.by_path.get(path).copied();
            let path = path.split(|byte| *byte == b'/').map(<[u8]>::to_vec).collect();
            // A target that is not there is left to the host.
            Link { node: node(first.unwrap_or(number)), path }
        });
        let content = match (linked, metadata.kind) {
            (Some(link), _) => Content::HardLink(link),
            (None, EntryKind::File) => Content::Stored(match metadata.size {
                0 => Vec::new(),
                length => vec![Extent { stream: 0, offset: *content, length }],
            }),
            (None, _) => Content::None,
        };
        Entry { name: name.clone(), node: node(number), metadata, content }
    }
}

fn directory() -> keepwell_sdk::Metadata {
    keepwell_sdk::Metadata { mode: 0o755, ..empty_metadata(EntryKind::Directory) }
}

fn node(number: usize) -> Node {
    Node { at: number as u64, end: number as u64 }
}

impl Archive for Contents {
    type Walk = Steps;

    fn open(streams: Vec<Bytes>) -> Result<Self, Failure> {
        match &streams[..] {
            [stream] => Ok(Self(Rc::new(Tree::read(stream)?))),
            _ => Err(Failure::Invalid("a tar has one stream".into())),
        }
    }

    fn root(&self) -> Result<Entry, Failure> {
        Ok(self.0.entry(0))
    }

    fn children(&self, dir: Node, after: Option<Node>, max: u32) -> Result<Children, Failure> {
        let (_, item) = self.0.item(dir)?;
        let from = match after {
            None => 0,
            // Numbers grow along the archive.
            Some(after) => item.children.partition_point(|child| *child as u64 <= after.at),
        };
        let children = item.children[from..].iter().take(max as usize);
        Ok(children.map(|child| Ok(self.0.entry(*child))).collect())
    }

    fn child(&self, directory: Node, name: &[u8]) -> Result<Option<Entry>, Failure> {
        let (_, item) = self.0.item(directory)?;
        let path = match &item.member.path[..] {
            b"" => name.to_vec(),
            path => [path, b"/", name].concat(),
        };
        Ok(self.0.by_path.get(&path).map(|number| self.0.entry(*number)))
    }

    fn entry(&self, node: Node) -> Result<Entry, Failure> {
        let (number, _) = self.0.item(node)?;
        Ok(self.0.entry(number))
    }

    fn walk(&self) -> Result<Steps, Failure> {
        Ok(Steps { tree: self.0.clone(), open: RefCell::new(vec![(0, 0)]) })
    }
}

pub struct Steps {
    tree: Rc<Tree>,
    /// directories, and how many of their children were met
    open: RefCell<Vec<(usize, usize)>>,
}

impl Walk for Steps {
    fn next(&self, max: u32) -> Result<Vec<Event>, Failure> {
        let (mut open, mut events) = (self.open.borrow_mut(), Vec::new());
        while events.len() < max as usize {
            let Some((directory, met)) = open.last_mut() else { break };
            let Some(child) = self.tree.items[*directory].children.get(*met).copied() else {
                open.pop();
                if !open.is_empty() {
                    events.push(Event::Leave);
                }
                continue;
            };
            *met += 1;
            let entry = self.tree.entry(child);
            if entry.metadata.kind == EntryKind::Directory {
                open.push((child, 0));
                events.push(Event::Enter(entry));
            } else {
                events.push(Event::Leaf(entry));
            }
        }
        Ok(events)
    }
}
