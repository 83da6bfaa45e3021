//! Makes the archive: a directory, then what is in it, in the order of names.

use crate::Tar;
use crate::format::{self, BLOCK, Member};
use keepwell_sdk::archive::{
    Borders, Chunking, Directory, Examined, Listed, Omission, Opened, Origin, PatternList, Request,
    Source, Stream, Summary, Verdict, catalog_add, catalog_enter, catalog_leave, catalog_open,
    open_stream, skipped,
};
use keepwell_sdk::options::{Bytes, option};
use keepwell_sdk::{EntryKind, Failure, OptionKind, OptionSpec};
use serde::Deserialize;
use std::collections::HashMap;

/// Names read, and files opened, at a time.
const BATCH: u32 = 256;
/// Of a buffer that is handed over.
const WRITE_BYTES: usize = 256 << 10;
/// Deeper trees could not be restored.
const DEPTH_MAX: usize = 2000;

/// What is given on the command line.
#[derive(Deserialize)]
pub struct Options {
    #[serde(default)]
    exclude: Vec<Bytes>,
}

pub fn exclude_option() -> OptionSpec {
    let help = "Leave out what matches a pattern, such as '*.o', '/tmp' or 'cache/'";
    OptionSpec { repeatable: true, ..option("exclude", OptionKind::Pattern, help) }
}

struct Writer {
    stream: Stream,
    buffer: Vec<u8>,
    excludes: PatternList,
    borders: Borders,
    root_device: u64,
    /// the first names of files that have several
    links: HashMap<(u64, u64), Vec<u8>>,
    entries: u64,
}

impl Source for Tar {
    type Options = Options;

    fn write_archive(
        origin: Origin,
        request: Request,
        options: Options,
    ) -> Result<Summary, Failure> {
        let Origin::Directory(root) = origin else {
            return Err(Failure::Unsupported("a tar is made of a directory".into()));
        };
        let excludes = PatternList::new();
        for Bytes(pattern) in &options.exclude {
            excludes.push(pattern, &[]).map_err(Failure::Invalid)?;
        }
        let examined = root.examine()?;
        let stream = open_stream(".tar", Chunking::ContentDefined, None)?;
        catalog_open();
        let mut writer = Writer {
            stream,
            buffer: Vec::new(),
            excludes,
            borders: request.borders,
            root_device: examined.identity.device,
            links: HashMap::new(),
            entries: 0,
        };
        writer.member(&[], &examined)?;
        writer.directory(&root, &mut Vec::new())?;
        // Two blocks of zeros are the end.
        writer.buffer.resize(writer.buffer.len() + 2 * BLOCK, 0);
        writer.flush()?;
        Ok(Summary { entries: writer.entries })
    }
}

impl Writer {
    fn flush(&mut self) -> Result<(), Failure> {
        if !self.buffer.is_empty() {
            self.stream.write(&self.buffer)?;
            self.buffer.clear();
        }
        Ok(())
    }

    /// Writes a header; the first name of a file with several is known from then on.
    fn member(&mut self, path: &[Vec<u8>], examined: &Examined) -> Result<bool, Failure> {
        let (path, metadata) = (path.join(&b'/'), examined.metadata.clone());
        let identity = (examined.identity.device, examined.identity.inode);
        let mut hard_link = None;
        if metadata.kind == EntryKind::File && examined.identity.links > 1 {
            hard_link = self.links.get(&identity).cloned();
            if hard_link.is_none() {
                self.links.insert(identity, path.clone());
            }
        }
        let is_link = hard_link.is_some();
        self.buffer.extend(format::encode(&Member { path, metadata, hard_link }));
        self.entries += 1;
        if self.buffer.len() >= WRITE_BYTES {
            self.flush()?;
        }
        Ok(is_link)
    }

    /// What is in a directory. `path` is the same afterwards.
    fn directory(&mut self, directory: &Directory, path: &mut Vec<Vec<u8>>) -> Result<(), Failure> {
        loop {
            let listed = match directory.read(BATCH) {
                Err(Failure::Denied(detail) | Failure::NotFound(detail)) => {
                    skipped(path, Omission::Denied, &detail);
                    return Ok(());
                }
                other => other?,
            };
            if listed.is_empty() {
                return Ok(());
            }
            let verdicts = self.excludes.judge(path, &listed);
            let kept = listed.into_iter().zip(verdicts);
            let kept: Vec<Listed> = kept
                .filter(|(_, verdict)| *verdict != Verdict::Exclude)
                .map(|(it, _)| it)
                .collect();
            let mut rest = &kept[..];
            while let Some(next) = rest.first() {
                if next.kind == EntryKind::Directory {
                    self.child_directory(directory, path, &next.name)?;
                    rest = &rest[1..];
                    continue;
                }
                let is_leaf = |child: &&Listed| child.kind != EntryKind::Directory;
                let (leaves, others) = rest.split_at(rest.iter().take_while(is_leaf).count());
                self.leaves(directory, path, leaves)?;
                rest = others;
            }
        }
    }

    fn child_directory(
        &mut self,
        parent: &Directory,
        path: &mut Vec<Vec<u8>>,
        name: &[u8],
    ) -> Result<(), Failure> {
        path.push(name.to_vec());
        let entered = match parent.open_directory(name) {
            Ok((_, examined)) if self.is_other_mount(&examined) => {
                skipped(path, Omission::MountPoint, "");
                Ok(())
            }
            Ok(_) if path.len() > DEPTH_MAX => {
                skipped(path, Omission::Unsupported, "nested too deep");
                Ok(())
            }
            Ok((directory, examined)) => {
                self.member(path, &examined)?;
                catalog_enter(name);
                self.directory(&directory, path)?;
                catalog_leave();
                Ok(())
            }
            Err(failure) => omit(path, failure),
        };
        path.pop();
        entered
    }

    fn is_other_mount(&self, examined: &Examined) -> bool {
        let device = examined.identity.device;
        device != self.root_device
            && match &self.borders {
                Borders::Stay => true,
                Borders::CrossAll => false,
                Borders::CrossListed(devices) => !devices.contains(&device),
            }
    }

    fn leaves(
        &mut self,
        directory: &Directory,
        path: &mut Vec<Vec<u8>>,
        leaves: &[Listed],
    ) -> Result<(), Failure> {
        for (child, opened) in leaves.iter().zip(directory.open_children(leaves)) {
            path.push(child.name.clone());
            match opened {
                Ok(opened) => self.leaf(path, &child.name, &opened)?,
                Err(failure) => omit(path, failure)?,
            }
            path.pop();
        }
        Ok(())
    }

    fn leaf(&mut self, path: &[Vec<u8>], name: &[u8], opened: &Opened) -> Result<(), Failure> {
        let metadata = &opened.examined.metadata;
        if metadata.kind == EntryKind::Socket {
            skipped(path, Omission::Unsupported, "a tar has no sockets");
            return Ok(());
        }
        if let Some(problem) = &opened.examined.incomplete {
            skipped(path, Omission::Unsupported, problem);
        }
        let is_link = self.member(path, &opened.examined)?;
        catalog_add(name, metadata.kind, is_link, metadata.size, metadata.modified);
        if let Some(file) = opened.handle.as_ref().filter(|_| !is_link) {
            self.flush()?;
            // Whatever becomes of the file: exactly so many bytes.
            self.stream.splice(file, 0, metadata.size)?;
            self.buffer.resize(format::padding(metadata.size) as usize, 0);
        }
        Ok(())
    }
}

/// Reports what can't be archived; other failures end the backup.
fn omit(path: &[Vec<u8>], failure: Failure) -> Result<(), Failure> {
    let (why, detail) = match failure {
        Failure::Denied(detail) => (Omission::Denied, detail),
        Failure::NotFound(detail) => (Omission::Vanished, detail),
        Failure::Unsupported(detail) => (Omission::Unsupported, detail),
        other => return Err(other),
    };
    skipped(path, why, &detail);
    Ok(())
}
