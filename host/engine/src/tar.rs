//! Entries of an archive as a tar, with owners, times, modes and extended attributes (as GNU tar and
//! libarchive keep them, ACLs among them). Sockets are left out: a tar has none.

use crate::browse::{self, ContentReader, EntryPath};
use crate::error::{EngineError, Result};
use crate::plugin::{Archive, Content, Entry, EntryKind, Metadata, Node, Timestamp};
use crate::report::shown_path;
use crate::restore::{ContentSource, chain};
use std::io::{self, Read, Write};

/// What GNU tar calls an entry that only names the next one.
const LONG_LINK: &[u8] = b"././@LongLink";

/// Writes a tar.
pub struct TarWriter<'a, W: Write> {
    tar: tar::Builder<W>,
    content: &'a dyn ContentSource,
    whole: &'a [EntryPath],
    left_out: u64,
}

fn failed(error: io::Error) -> EngineError {
    EngineError::Io { action: "write", path: "the tar".into(), source: error }
}

/// What was read for the tar has an error of its own.
fn failed_at(path: &[u8]) -> impl FnOnce(io::Error) -> EngineError {
    let path = shown_path(path);
    move |error| match error.downcast::<EngineError>() {
        Ok(inner) => EngineError::Lost { path, problem: chain(&inner) },
        Err(error) => failed(error),
    }
}

impl<'a, W: Write> TarWriter<'a, W> {
    /// `content` is that of the archive whose entries will be added. Of the paths in `whole` all will be, in
    /// the archive's order: further names of files below them become links to the first. Other
    /// links are files.
    pub fn new(out: W, content: &'a dyn ContentSource, whole: &'a [EntryPath]) -> Self {
        Self { tar: tar::Builder::new(out), content, whole, left_out: 0 }
    }

    /// Adds an entry under a path, without what lies below it.
    pub fn add(&mut self, archive: &mut dyn Archive, path: &[u8], entry: Entry) -> Result<()> {
        let first = match &entry.content {
            Content::HardLink { path, .. } if self.has(path) => Some(path.join(&b'/')),
            _ => None,
        };
        let entry = browse::resolve(archive, entry)?;
        let shown = path;
        let mut header = header(&entry);
        if let Some(first) = first {
            header.set_entry_type(tar::EntryType::Link);
            self.name(&mut header, shown, b'L').map_err(failed)?;
            self.name(&mut header, &first, b'K').map_err(failed)?;
            header.set_cksum();
            return self.tar.append(&header, io::empty()).map_err(failed);
        }
        if entry.metadata.kind == EntryKind::Socket {
            self.left_out += 1;
            return Ok(());
        }
        self.extensions(&entry.metadata).map_err(failed)?;
        let target = match entry.metadata.kind {
            EntryKind::Symlink => entry.metadata.link_target.as_deref(),
            _ => None,
        };
        self.name(&mut header, shown, b'L').map_err(failed)?;
        if let Some(target) = target {
            self.name(&mut header, target, b'K').map_err(failed)?;
        }
        let added = match entry.metadata.kind {
            EntryKind::File => {
                header.set_size(stored_size(&entry));
                header.set_cksum();
                let content = ContentReader::new(archive, self.content, &entry);
                self.tar.append(&header, content)
            }
            _ => {
                header.set_cksum();
                self.tar.append(&header, io::empty())
            }
        };
        added.map_err(failed_at(shown))
    }

    /// Puts a name (`L`) or a link's target (`K`), any bytes, into the header, and what has no room there in
    /// front of it, as GNU tar does.
    fn name(&mut self, header: &mut tar::Header, name: &[u8], kind: u8) -> io::Result<()> {
        let bytes = header.as_old_mut();
        let field = if kind == b'L' { &mut bytes.name } else { &mut bytes.linkname };
        let kept = name.len().min(field.len());
        field.fill(0);
        field[..kept].copy_from_slice(&name[..kept]);
        if name.len() < field.len() {
            return Ok(());
        }
        let mut long = tar::Header::new_gnu();
        long.as_old_mut().name[..LONG_LINK.len()].copy_from_slice(LONG_LINK);
        long.set_entry_type(tar::EntryType::new(kind));
        long.set_mode(0o644);
        long.set_uid(0);
        long.set_gid(0);
        long.set_mtime(0);
        long.set_size(name.len() as u64 + 1);
        long.set_cksum();
        self.tar.append(&long, name.chain(&[0][..]))
    }

    fn has(&self, path: &[Vec<u8>]) -> bool {
        self.whole.iter().any(|whole| path.starts_with(whole))
    }

    /// What a header has no room for.
    fn extensions(&mut self, metadata: &Metadata) -> io::Result<()> {
        let mut records = Vec::new();
        let modified = metadata.modified;
        if modified.nanoseconds != 0 || modified.seconds < 0 {
            records.push(("mtime".to_owned(), decimal(modified).into_bytes()));
        }
        for (name, value) in &metadata.extended {
            // Who restores ACLs wants them as text.
            let acl = match &name[..] {
                b"system.posix_acl_access" => Some("SCHILY.acl.access"),
                b"system.posix_acl_default" => Some("SCHILY.acl.default"),
                _ => None,
            };
            if let Some((record, text)) = acl.zip(acl_text(value)) {
                records.push((record.to_owned(), text.into_bytes()));
            }
            // A record's name is text.
            if let Ok(name) = std::str::from_utf8(name) {
                records.push((format!("SCHILY.xattr.{name}"), value.clone()));
            }
        }
        let records = records.iter().map(|(key, value)| (&key[..], &value[..]));
        self.tar.append_pax_extensions(records)
    }

    /// Adds all that lies below a directory, whose own path is `above`; empty for none.
    pub fn add_below(
        &mut self,
        archive: &mut dyn Archive,
        directory: Node,
        above: &[u8],
    ) -> Result<()> {
        browse::walk(archive, directory, &mut |archive, path, entry| {
            let path = path.join(&b'/');
            match above {
                [] => self.add(archive, &path, entry),
                _ => self.add(archive, &[above, b"/", &path].concat(), entry),
            }
        })
    }

    /// What it was written to, and how many entries are not in it.
    pub fn finish(self) -> Result<(W, u64)> {
        Ok((self.tar.into_inner().map_err(failed)?, self.left_out))
    }
}

/// A kernel's ACL as `getfacl -n` writes it, with commas; none where it is none.
fn acl_text(value: &[u8]) -> Option<String> {
    let entries = value.strip_prefix(&2u32.to_le_bytes())?;
    let (entries, []) = entries.as_chunks::<8>() else { return None };
    let text = entries.iter().map(|entry| {
        let [tag, rights] = [[entry[0], entry[1]], [entry[2], entry[3]]].map(u16::from_le_bytes);
        let id = u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]);
        let who = match tag {
            0x01 => "user:".to_owned(),
            0x02 => format!("user:{id}"),
            0x04 => "group:".to_owned(),
            0x08 => format!("group:{id}"),
            0x10 => "mask:".to_owned(),
            0x20 => "other:".to_owned(),
            _ => return None,
        };
        let right = |bit, letter| if rights & bit != 0 { letter } else { '-' };
        Some(format!("{who}:{}{}{}", right(4, 'r'), right(2, 'w'), right(1, 'x')))
    });
    Some(text.collect::<Option<Vec<_>>>()?.join(","))
}

/// Seconds with their fraction. Nanoseconds count forward, also from negative seconds.
fn decimal(time: Timestamp) -> String {
    let nanoseconds = i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanoseconds);
    let sign = if nanoseconds < 0 { "-" } else { "" };
    let magnitude = nanoseconds.unsigned_abs();
    format!("{sign}{}.{:09}", magnitude / 1_000_000_000, magnitude % 1_000_000_000)
}

/// Bytes of content that a header announces.
pub fn stored_size(entry: &Entry) -> u64 {
    match &entry.content {
        Content::Stored(extents) => extents.iter().map(|extent| extent.length).sum(),
        _ => entry.metadata.size,
    }
}

fn header(entry: &Entry) -> tar::Header {
    let metadata = &entry.metadata;
    let mut header = tar::Header::new_gnu();
    header.set_mode(metadata.mode & 0o7777);
    header.set_uid(metadata.owner.into());
    header.set_gid(metadata.group.into());
    header.set_mtime(u64::try_from(metadata.modified.seconds).unwrap_or(0));
    header.set_size(0);
    header.set_entry_type(match metadata.kind {
        EntryKind::Directory => tar::EntryType::Directory,
        EntryKind::File => tar::EntryType::Regular,
        EntryKind::Symlink => tar::EntryType::Symlink,
        EntryKind::BlockDevice => tar::EntryType::Block,
        EntryKind::CharacterDevice => tar::EntryType::Char,
        EntryKind::Fifo | EntryKind::Socket => tar::EntryType::Fifo,
    });
    if let Some((major, minor)) = metadata.device {
        // A GNU header has room for them.
        let _ = header.set_device_major(major).and_then(|()| header.set_device_minor(minor));
    }
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acls_are_text() {
        let entry = |tag: u16, rights: u16, id: u32| {
            [&tag.to_le_bytes()[..], &rights.to_le_bytes(), &id.to_le_bytes()].concat()
        };
        let kernel = [
            2u32.to_le_bytes().to_vec(),
            entry(1, 6, u32::MAX),
            entry(2, 5, 1000),
            entry(4, 4, u32::MAX),
            entry(16, 7, u32::MAX),
            entry(32, 0, u32::MAX),
        ];
        let text = "user::rw-,user:1000:r-x,group::r--,mask::rwx,other::---";
        assert_eq!(acl_text(&kernel.concat()).as_deref(), Some(text));
        assert_eq!(acl_text(b"\x02\0\0\0short"), None);
        assert_eq!(acl_text(b"\x01\0\0\0"), None);
    }

    #[test]
    fn times_before_1970_have_their_fraction() {
        let of = |seconds, nanoseconds| decimal(Timestamp { seconds, nanoseconds });
        assert_eq!(of(1, 5), "1.000000005");
        assert_eq!(of(-2, 500_000_000), "-1.500000000");
        assert_eq!(of(-1, 999_999_999), "-0.000000001");
    }
}
