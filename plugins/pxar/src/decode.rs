//! Reads entries and goodbye tables: shared/spec/pxar.md §1 to §5. Every byte is hostile.

use crate::acl::{Acl, present};
use crate::format::{self, GoodbyeRow, HEADER_BYTES, PATH_BYTES_MAX, file_type};
use keepwell_sdk::archive::{Content, Entry, Extent, Link, Node};
use keepwell_sdk::{EntryKind, ExtendedAttribute, Failure, Metadata, Timestamp, empty_metadata};
use std::cell::RefCell;

/// Where an archive's bytes come from.
pub trait ReadAt {
    /// Fewer bytes than asked only at the end.
    fn read_at(&self, offset: u64, length: u32) -> Result<Vec<u8>, Failure>;
    /// None where it is not known, in a pipe.
    fn size(&self) -> Option<u64>;
}

impl ReadAt for &[u8] {
    fn read_at(&self, offset: u64, length: u32) -> Result<Vec<u8>, Failure> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(self.len());
        let end = start.saturating_add(length as usize).min(self.len());
        Ok(self[start..end].to_vec())
    }
    fn size(&self) -> Option<u64> {
        Some(self.len() as u64)
    }
}

/// A table larger than this (40 million entries) is not read: it would fill the plugin's memory.
const TABLE_BYTES_MAX: u64 = 1 << 30;
/// Bytes read at once after a jump, and the most while reading on.
const WINDOW_BYTES: (u32, u32) = (4 << 10, 64 << 10);
/// The host hands out large items in pieces.
const READ_BYTES: u32 = 1 << 20;
/// Where content lies, of one stream and of two: the stream opened first.
const PAYLOAD_STREAM: u32 = 0;
/// One entry may not carry more metadata than this.
const EXTENDED_BYTES_MAX: usize = 16 << 20;

struct Window {
    start: u64,
    bytes: Vec<u8>,
    next: u32,
}

/// A prelude larger than this is none.
const PRELUDE_BYTES_MAX: u64 = 1 << 20;

/// Reads items of one archive.
pub struct Decoder<R> {
    source: R,
    window: RefCell<Window>,
    /// content lies in a stream of its own, of this length: spec §11
    payload: Option<u64>,
}

/// An item's header.
#[derive(Clone, Copy)]
struct Item {
    kind: u64,
    /// where the content lies
    start: u64,
    end: u64,
}

/// An entry and where the next item begins. For a directory, its first child.
pub struct Decoded {
    pub entry: Entry,
    pub next: u64,
}

/// What follows an entry.
pub enum Next {
    Entry(Box<Decoded>),
    /// A goodbye table: the directory ends.
    End {
        next: u64,
    },
}

fn corrupt(position: u64, problem: &str) -> Failure {
    Failure::Corrupt(format!("pxar archive, byte {position}: {problem}"))
}

impl<R: ReadAt> Decoder<R> {
    pub fn new(source: R) -> Self {
        let window = Window { start: 0, bytes: Vec::new(), next: WINDOW_BYTES.0 };
        Self { source, window: RefCell::new(window), payload: None }
    }

    /// Of a split archive: its metadata, and how long the stream with its content is.
    pub fn split(metadata: R, payload_bytes: u64) -> Self {
        Self { payload: Some(payload_bytes), ..Self::new(metadata) }
    }

    pub fn size(&self) -> Option<u64> {
        self.source.size()
    }

    /// Whether the archive is at least so long.
    pub fn reaches(&self, end: u64) -> bool {
        match self.size() {
            Some(size) => end <= size,
            None => end
                .checked_sub(1)
                .is_none_or(|last| self.source.read_at(last, 1).is_ok_and(|byte| !byte.is_empty())),
        }
    }

    /// Exactly `length` bytes.
    fn read(&self, position: u64, length: u64) -> Result<Vec<u8>, Failure> {
        let mut window = self.window.borrow_mut();
        let end =
            position.checked_add(length).ok_or_else(|| corrupt(position, "size overflows"))?;
        let held = window.start + window.bytes.len() as u64;
        if position < window.start || end > held {
            let on = position >= window.start && position <= held;
            window.next = if on { (window.next * 2).min(WINDOW_BYTES.1) } else { WINDOW_BYTES.0 };
            let ask = u32::try_from(length).map_err(|_| corrupt(position, "item is too large"))?;
            // What lies behind may be damaged: then what is asked for can still be had.
            let bytes = match self.source.read_at(position, ask.max(window.next)) {
                Err(Failure::Corrupt(_)) if ask < window.next => {
                    self.source.read_at(position, ask)?
                }
                other => other?,
            };
            let mut bytes = bytes;
            while (bytes.len() as u64) < length {
                let more = self.source.read_at(position + bytes.len() as u64, READ_BYTES)?;
                if more.is_empty() {
                    break;
                }
                bytes.extend(more);
            }
            if (bytes.len() as u64) < length {
                return Err(corrupt(position, "the archive ends in the middle of an entry"));
            }
            window.start = position;
            window.bytes = bytes;
        }
        let from = (position - window.start) as usize;
        Ok(window.bytes[from..from + length as usize].to_vec())
    }

    fn words<const N: usize>(&self, item: &Item) -> Result<[u64; N], Failure> {
        if item.end - item.start != 8 * N as u64 {
            return Err(corrupt(item.start, "item has a wrong size"));
        }
        let bytes = self.read(item.start, 8 * N as u64)?;
        let mut words = [0; N];
        for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        Ok(words)
    }

    fn item(&self, position: u64) -> Result<Item, Failure> {
        let bytes = self.read(position, HEADER_BYTES)?;
        let (words, _) = bytes.as_chunks::<8>();
        let [kind, size] = [words[0], words[1]].map(u64::from_le_bytes);
        let content = size
            .checked_sub(HEADER_BYTES)
            .ok_or_else(|| corrupt(position, "item is smaller than its header"))?;
        let start = position + HEADER_BYTES;
        let end = start.checked_add(content).ok_or_else(|| corrupt(position, "size overflows"))?;
        Ok(Item { kind, start, end })
    }

    /// Content of an item of at most `max` bytes.
    fn content(&self, item: &Item, max: u64) -> Result<Vec<u8>, Failure> {
        if item.end - item.start > max {
            return Err(corrupt(item.start, "item is too large"));
        }
        self.read(item.start, item.end - item.start)
    }

    /// Text that ends with the only NUL in it.
    fn terminated(&self, item: &Item, bytes: &[u8]) -> Result<Vec<u8>, Failure> {
        match bytes.split_last() {
            Some((0, text)) if !text.is_empty() && !text.contains(&0) => Ok(text.to_vec()),
            _ => Err(corrupt(item.start, "name or target is empty or badly terminated")),
        }
    }

    fn name(&self, item: &Item) -> Result<Vec<u8>, Failure> {
        let name = self.terminated(item, &self.content(item, PATH_BYTES_MAX + 1)?)?;
        if name.contains(&b'/') || name == b"." || name == b".." {
            let shown = String::from_utf8_lossy(&name).into_owned();
            return Err(corrupt(item.start, &format!("illegal file name {shown:?}")));
        }
        Ok(name)
    }

    /// The directory that the archive is made of.
    pub fn root(&self) -> Result<Decoded, Failure> {
        let decoded = self.body(0, self.first()?, Vec::new())?;
        if decoded.entry.metadata.kind != EntryKind::Directory {
            return Err(corrupt(0, "the root is not a directory"));
        }
        Ok(decoded)
    }

    /// Where the root's ENTRY is, behind what says how to read the rest.
    fn first(&self) -> Result<u64, Failure> {
        let item = self.item(0)?;
        if item.kind != format::FORMAT_VERSION {
            return Ok(0);
        }
        let [version] = self.words(&item)?;
        if !(1..=2).contains(&version) {
            return Err(Failure::Unsupported(format!("unknown format version {version}")));
        }
        if version == 2 && self.payload.is_none() {
            let problem = "the archive's content lies in a second stream, which is not there";
            return Err(Failure::Unsupported(problem.into()));
        }
        let prelude = self.item(item.end)?;
        match prelude.kind {
            format::PRELUDE if prelude.end - prelude.start <= PRELUDE_BYTES_MAX => Ok(prelude.end),
            format::PRELUDE => Err(corrupt(item.end, "the prelude is too large")),
            _ => Ok(item.end),
        }
    }

    /// The entry or table at `position`, which is that of a FILENAME or GOODBYE.
    pub fn next(&self, position: u64) -> Result<Next, Failure> {
        let item = self.item(position)?;
        match item.kind {
            format::GOODBYE => Ok(Next::End { next: item.end }),
            format::FILENAME => {
                let name = self.name(&item)?;
                Ok(Next::Entry(Box::new(self.body(position, item.end, name)?)))
            }
            _ => Err(corrupt(position, "expected a file name or the end of a directory")),
        }
    }

    /// The name of the entry at `position`, and where what follows it begins.
    pub fn name_at(&self, position: u64) -> Result<(Vec<u8>, u64), Failure> {
        let item = self.item(position)?;
        match item.kind {
            format::FILENAME => Ok((self.name(&item)?, item.end)),
            _ => Err(corrupt(position, "expected a file name")),
        }
    }

    /// Where the PAYLOAD header of a file lies in the other stream, if the items from `position` on are these
    /// and its content has this size.
    pub fn payload_of(&self, position: u64, items: &[u8], size: u64) -> Option<u64> {
        if self.read(position, items.len() as u64).ok()? != items {
            return None;
        }
        let item = self.item(position + items.len() as u64).ok()?;
        let [at, length] = self.words(&item).ok()?;
        let end = at.checked_add(HEADER_BYTES)?.checked_add(length)?;
        let fits = self.payload.is_some_and(|bytes| end <= bytes);
        (item.kind == format::PAYLOAD_REF && length == size && fits).then_some(at)
    }

    /// An entry's items from `position` on; `at` is where its FILENAME is.
    fn body(&self, at: u64, position: u64, name: Vec<u8>) -> Result<Decoded, Failure> {
        let item = self.item(position)?;
        match item.kind {
            format::HARDLINK => self.hard_link(at, &item, name),
            format::ENTRY | format::ENTRY_V1 => {
                let metadata = self.stat(&item)?;
                Body { at, name, metadata, access: Acl::default(), default: None, held: 0 }
                    .read(self, item.end)
            }
            _ => Err(corrupt(position, "expected an entry")),
        }
    }

    fn hard_link(&self, at: u64, item: &Item, name: Vec<u8>) -> Result<Decoded, Failure> {
        let bytes = self.content(item, PATH_BYTES_MAX + 9)?;
        let (distance, path) = bytes
            .split_first_chunk::<8>()
            .ok_or_else(|| corrupt(item.start, "hard link is too short"))?;
        let target = at
            .checked_sub(u64::from_le_bytes(*distance))
            .filter(|target| *target < at)
            .ok_or_else(|| corrupt(item.start, "hard link points outside of what came before"))?;
        let path = self.terminated(item, path)?;
        let path: Vec<Vec<u8>> = path.split(|byte| *byte == b'/').map(<[u8]>::to_vec).collect();
        if path.iter().any(|part| part.is_empty() || *part == b"." || *part == b"..") {
            return Err(corrupt(item.start, "hard link target is not a plain relative path"));
        }
        let link = Link { node: Node { at: target, end: 0 }, path };
        let metadata = empty_metadata(EntryKind::File);
        let node = Node { at, end: item.end };
        let content = Content::HardLink(link);
        Ok(Decoded { entry: Entry { name, node, metadata, content }, next: item.end })
    }

    fn stat(&self, item: &Item) -> Result<Metadata, Failure> {
        let old = item.kind == format::ENTRY_V1;
        let size = if old { 32 } else { format::STAT_BYTES };
        if item.end - item.start != size {
            return Err(corrupt(item.start, "entry has a wrong size"));
        }
        let bytes = self.read(item.start, size)?;
        let word = |at: usize| -> u64 { u64::from_le_bytes(bytes.as_chunks::<8>().0[at / 8]) };
        let half = |at: usize| -> u32 { u32::from_le_bytes(bytes.as_chunks::<4>().0[at / 4]) };
        let modified = if old {
            let nanoseconds = word(24);
            Timestamp {
                seconds: (nanoseconds / 1_000_000_000) as i64,
                nanoseconds: (nanoseconds % 1_000_000_000) as u32,
            }
        } else {
            Timestamp { seconds: word(24) as i64, nanoseconds: half(32) }
        };
        if modified.nanoseconds > 999_999_999 {
            return Err(corrupt(item.start, "time has too many nanoseconds"));
        }
        let mode = word(0);
        let kind = match mode & file_type::MASK {
            file_type::DIRECTORY => EntryKind::Directory,
            file_type::FILE => EntryKind::File,
            file_type::SYMLINK => EntryKind::Symlink,
            file_type::BLOCK_DEVICE => EntryKind::BlockDevice,
            file_type::CHARACTER_DEVICE => EntryKind::CharacterDevice,
            file_type::FIFO => EntryKind::Fifo,
            file_type::SOCKET => EntryKind::Socket,
            _ => return Err(corrupt(item.start, "entry is of no known kind")),
        };
        Ok(Metadata {
            mode: (mode & 0o7777) as u32,
            owner: half(16),
            group: half(20),
            modified,
            inode_flags: format::kernel_flags(&format::FLAG_PAIRS, word(8)),
            fat_attributes: format::kernel_flags(&format::FAT_PAIRS, word(8)),
            ..empty_metadata(kind)
        })
    }

    /// Rows of the table of a directory that ends at `end`, and where its ENTRY begins.
    pub fn table(&self, end: u64) -> Result<(u64, Vec<GoodbyeRow>), Failure> {
        let row = |bytes: &[u8]| -> [u64; 3] {
            let (words, _) = bytes.as_chunks::<8>();
            [words[0], words[1], words[2]].map(u64::from_le_bytes)
        };
        let tail_start = end
            .checked_sub(format::GOODBYE_ROW_BYTES)
            .ok_or_else(|| corrupt(end, "no room for a goodbye table"))?;
        let [marker, distance, size] = row(&self.read(tail_start, format::GOODBYE_ROW_BYTES)?);
        let start = end.checked_sub(size);
        let entry = start.and_then(|start| start.checked_sub(distance));
        let (Some(start), Some(entry)) = (start, entry) else {
            return Err(corrupt(tail_start, "goodbye table points before the archive"));
        };
        let item = self.item(start)?;
        let content = item.end - item.start;
        let whole_rows = content % format::GOODBYE_ROW_BYTES == 0;
        let fits = item.kind == format::GOODBYE && item.end == end && whole_rows;
        if marker != format::GOODBYE_TAIL || !fits || content > TABLE_BYTES_MAX {
            return Err(corrupt(tail_start, "expected a goodbye table"));
        }
        let bytes = self.read(item.start, content - format::GOODBYE_ROW_BYTES)?;
        let is_split = self.payload.is_some();
        let rows = bytes.chunks_exact(format::GOODBYE_ROW_BYTES as usize).map(|bytes| {
            let [hash, distance, size] = row(bytes);
            let child = start.checked_sub(distance).filter(|child| *child >= entry);
            let end = child.and_then(|child| child.checked_add(size));
            // Of a file in a split archive it may count content that lies elsewhere.
            let end = if is_split { end.map(|end| end.min(start)) } else { end };
            match (child, end.filter(|end| *end <= start)) {
                (Some(child), Some(end)) if child < end => {
                    Ok(GoodbyeRow { hash, start: child, end })
                }
                _ => Err(corrupt(start, "goodbye table points outside its directory")),
            }
        });
        let mut rows = rows.collect::<Result<Vec<_>, _>>()?;
        if is_split {
            rows.sort_unstable_by_key(|row| row.start);
            for at in 1..rows.len() {
                rows[at - 1].end = rows[at - 1].end.min(rows[at].start);
            }
        }
        Ok((entry, rows))
    }
}

/// An entry whose metadata items are being read.
struct Body {
    at: u64,
    name: Vec<u8>,
    metadata: Metadata,
    access: Acl,
    default: Option<Acl>,
    held: usize,
}

impl Body {
    fn read<R: ReadAt>(
        mut self,
        decoder: &Decoder<R>,
        mut position: u64,
    ) -> Result<Decoded, Failure> {
        use EntryKind as Kind;
        loop {
            let item = decoder.item(position)?;
            let kind = self.metadata.kind;
            match item.kind {
                format::PAYLOAD if kind == Kind::File && decoder.payload.is_none() => {
                    let length = item.end - item.start;
                    if decoder.size().is_some_and(|size| item.end > size) {
                        return Err(corrupt(position, "content reaches beyond the archive"));
                    }
                    self.metadata.size = length;
                    let extent = Extent { stream: PAYLOAD_STREAM, offset: item.start, length };
                    return Ok(self.finish(Content::Stored(vec![extent]), item.end));
                }
                format::PAYLOAD_REF if kind == Kind::File => {
                    let [at, length] = decoder.words(&item)?;
                    let offset = at.checked_add(HEADER_BYTES);
                    let end = offset.and_then(|offset| offset.checked_add(length));
                    let (Some(offset), Some(end)) = (offset, end) else {
                        return Err(corrupt(position, "content reaches beyond the archive"));
                    };
                    if decoder.payload.is_none_or(|bytes| end > bytes) {
                        return Err(corrupt(position, "content reaches beyond its stream"));
                    }
                    self.metadata.size = length;
                    let extent = Extent { stream: PAYLOAD_STREAM, offset, length };
                    return Ok(self.finish(Content::Stored(vec![extent]), item.end));
                }
                format::SYMLINK if kind == Kind::Symlink => {
                    let target = decoder.content(&item, PATH_BYTES_MAX + 1)?;
                    self.metadata.link_target = Some(decoder.terminated(&item, &target)?);
                    return Ok(self.finish(Content::None, item.end));
                }
                format::DEVICE if matches!(kind, Kind::BlockDevice | Kind::CharacterDevice) => {
                    let numbers = decoder.words::<2>(&item)?.map(u32::try_from);
                    let [Ok(major), Ok(minor)] = numbers else {
                        return Err(corrupt(position, "device number is too large"));
                    };
                    self.metadata.device = Some((major, minor));
                    return Ok(self.finish(Content::None, item.end));
                }
                format::FILENAME | format::GOODBYE
                    if matches!(kind, Kind::Directory | Kind::Fifo | Kind::Socket) =>
                {
                    return Ok(self.finish(Content::None, position));
                }
                _ => self.metadata_item(decoder, &item)?,
            }
            position = item.end;
        }
    }

    fn metadata_item<R: ReadAt>(
        &mut self,
        decoder: &Decoder<R>,
        item: &Item,
    ) -> Result<(), Failure> {
        let default = || self.default.clone().unwrap_or_default();
        match item.kind {
            format::XATTR => {
                let bytes = decoder.content(item, format::XATTR_BYTES_MAX)?;
                let end = bytes.iter().position(|byte| *byte == 0).filter(|end| *end > 0);
                let end = end.ok_or_else(|| corrupt(item.start, "attribute has no name"))?;
                let (name, value) = (bytes[..end].to_vec(), bytes[end + 1..].to_vec());
                // These have items of their own.
                if name.starts_with(b"system.") || name == b"security.capability" {
                    return Err(corrupt(item.start, "attribute has a name that is not allowed"));
                }
                self.push(ExtendedAttribute { name, value }, item)?;
            }
            format::FCAPS => {
                let value = decoder.content(item, format::XATTR_BYTES_MAX)?;
                self.push(
                    ExtendedAttribute { name: b"security.capability".to_vec(), value },
                    item,
                )?;
            }
            format::ACL_USER => {
                let [id, rights] = decoder.words(item)?;
                let named = self.id(id, rights, item)?;
                self.access.users.push(named);
            }
            format::ACL_GROUP => {
                let [id, rights] = decoder.words(item)?;
                let named = self.id(id, rights, item)?;
                self.access.groups.push(named);
            }
            format::ACL_GROUP_OBJ => {
                let [rights] = decoder.words(item)?;
                self.access.group_obj = Some(rights);
            }
            format::ACL_DEFAULT => {
                let base: [u64; 4] = decoder.words(item)?;
                let [user_obj, group_obj, other, mask] = base.map(present);
                self.default = Some(Acl { user_obj, group_obj, other, mask, ..default() });
            }
            format::ACL_DEFAULT_USER => {
                let [id, rights] = decoder.words(item)?;
                let mut acl = default();
                acl.users.push(self.id(id, rights, item)?);
                self.default = Some(acl);
            }
            format::ACL_DEFAULT_GROUP => {
                let [id, rights] = decoder.words(item)?;
                let mut acl = default();
                acl.groups.push(self.id(id, rights, item)?);
                self.default = Some(acl);
            }
            format::QUOTA_PROJID => {
                let [project] = decoder.words(item)?;
                let project = u32::try_from(project);
                self.metadata.project =
                    Some(project.map_err(|_| corrupt(item.start, "project id is too large"))?);
            }
            _ => return Err(corrupt(item.start, "item does not belong to this entry")),
        }
        Ok(())
    }

    /// A named ACL entry. The kernel takes ids of 32 bits; the count is bounded with all else.
    fn id(&mut self, id: u64, rights: u64, item: &Item) -> Result<(u64, u64), Failure> {
        self.hold(16, item)?;
        match u32::try_from(id) {
            Ok(id) if id != u32::MAX && rights <= 7 => Ok((id.into(), rights)),
            _ => Err(corrupt(item.start, "ACL entry is not possible")),
        }
    }

    fn push(&mut self, attribute: ExtendedAttribute, item: &Item) -> Result<(), Failure> {
        self.hold(attribute.name.len() + attribute.value.len(), item)?;
        self.metadata.extended.push(attribute);
        Ok(())
    }

    fn hold(&mut self, bytes: usize, item: &Item) -> Result<(), Failure> {
        self.held += bytes;
        if self.held > EXTENDED_BYTES_MAX {
            return Err(corrupt(item.start, "entry has too much metadata"));
        }
        Ok(())
    }

    fn finish(mut self, content: Content, next: u64) -> Decoded {
        let attribute = |name: &[u8], acl: &Acl| ExtendedAttribute {
            name: name.to_vec(),
            value: acl.to_kernel(),
        };
        if self.access != Acl::default() {
            let acl = self.access.completed_from_mode(self.metadata.mode);
            self.metadata.extended.push(attribute(b"system.posix_acl_access", &acl));
        }
        if let Some(acl) = &self.default {
            self.metadata.extended.push(attribute(b"system.posix_acl_default", acl));
        }
        let is_directory = self.metadata.kind == EntryKind::Directory;
        let node = Node { at: self.at, end: if is_directory { 0 } else { next } };
        let entry = Entry { name: self.name, node, metadata: self.metadata, content };
        Decoded { entry, next }
    }
}

#[cfg(test)]
mod tests;
