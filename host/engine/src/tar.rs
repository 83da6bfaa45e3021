//! Entries of an archive as a tar, with owners, times and modes. Extended attributes and the like are
//! left out, and a hard link is one more file: what it links to may lie beyond what is asked for.

use crate::browse::{self, ContentReader};
use crate::error::{EngineError, Result};
use crate::plugin::{Archive, Content, Entry, EntryKind, Node};
use crate::restore::ContentSource;
use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;

/// Writes a tar.
pub struct TarWriter<'a, W: Write> {
    tar: tar::Builder<W>,
    content: &'a dyn ContentSource,
}

fn failed(error: io::Error) -> EngineError {
    EngineError::Io { action: "write", path: "the tar".into(), source: error }
}

impl<'a, W: Write> TarWriter<'a, W> {
    /// `content` is that of the archive whose entries will be added.
    pub fn new(out: W, content: &'a dyn ContentSource) -> Self {
        Self { tar: tar::Builder::new(out), content }
    }

    /// Adds an entry under a path, without what lies below it.
    pub fn add(&mut self, archive: &mut dyn Archive, path: &[u8], entry: Entry) -> Result<()> {
        let entry = browse::resolve(archive, entry)?;
        let path = OsStr::from_bytes(path);
        let mut header = header(&entry);
        let added = match entry.metadata.kind {
            // A tar has no sockets.
            EntryKind::Socket => Ok(()),
            EntryKind::Symlink => {
                let target = entry.metadata.link_target.as_deref().unwrap_or_default();
                self.tar.append_link(&mut header, path, OsStr::from_bytes(target))
            }
            EntryKind::File => {
                header.set_size(stored_size(&entry));
                let content = ContentReader::new(archive, self.content, &entry);
                self.tar.append_data(&mut header, path, content)
            }
            _ => self.tar.append_data(&mut header, path, io::empty()),
        };
        added.map_err(failed)
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

    pub fn finish(self) -> Result<W> {
        self.tar.into_inner().map_err(failed)
    }
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
