//! What the shell looks into: the names in the catalog, and the archive once more than those is
//! needed. Where a snapshot has no catalog of the archive, or a damaged one, the names come from
//! the archive.

use crate::commands::opened::{ArchiveFiles, Opened, StoredArchive, open_with};
use crate::plugins::{Loaded, Plugins};
use anyhow::{Result, anyhow, bail};
use keepwell_engine::Cancel;
use keepwell_engine::browse::{self, EntryPath};
use keepwell_engine::catalog::{Catalog, kind_of};
use keepwell_engine::plugin::{Archive, Entry, EntryKind, Node, Reader};
use keepwell_engine::report::shown_path;
use keepwell_model::ArchiveName;
use keepwell_model::catalog::CatalogKind;
use std::collections::VecDeque;

/// Links that lead to links that lead to links are followed this often.
const LINKS_MAX: u32 = 40;
/// Children asked of an archive at a time.
const BATCH: u32 = 1024;
/// Deeper trees are not followed: no file system holds one.
const DEPTH_MAX: usize = 2048;

/// A name in a directory.
#[derive(Clone)]
pub(super) struct Named {
    pub(super) name: Vec<u8>,
    /// as the catalog writes kinds
    letter: u8,
    /// where what is in it is listed, if it is a directory
    pub(super) directory: Option<Node>,
}

enum Names {
    /// and the block of the archive's root
    Catalog(Box<Catalog>, u64),
    Archive,
}

/// An archive and the reader that it lives in; dropped in this order.
struct OpenArchive {
    archive: Box<dyn Archive>,
    _reader: Box<dyn Reader>,
}

pub(super) struct Browser<'a> {
    loaded: &'a Loaded,
    opened: Opened,
    files: ArchiveFiles,
    names: Names,
    archive: Option<OpenArchive>,
    cancel: Cancel,
    /// the current directory
    cwd: Vec<Named>,
}

pub(super) fn path_of(steps: &[Named]) -> EntryPath {
    steps.iter().map(|step| step.name.clone()).collect()
}

/// Is told a path and its entry, and says whether to go below it.
pub(super) type Visit<'a> = dyn FnMut(&[Vec<u8>], &Named) -> Result<bool> + 'a;

/// `/` and the names.
pub(super) fn joined(path: &[Vec<u8>]) -> Vec<u8> {
    [&b"/"[..], &path.join(&b'/')].concat()
}

impl<'a> Browser<'a> {
    /// `given` is the archive as users call it.
    pub(super) fn open(
        plugins: &'a Plugins,
        opened: Opened,
        given: &str,
        cancel: Cancel,
    ) -> Result<Self> {
        let files = ArchiveFiles::find(&plugins.types(), &opened.manifest, given)?;
        let extension = &files.extension;
        let loaded = plugins
            .reader_for(extension)
            .ok_or_else(|| anyhow!("there is no plugin that reads '{extension}' archives"))?;
        let names = match &files.files[..] {
            [file] => catalog_of(&opened, &file.name).unwrap_or_else(|error| {
                tracing::info!("The names come from the archive itself: {error:#}");
                Names::Archive
            }),
            // Metadata that lies apart is as good as a catalog.
            _ => Names::Archive,
        };
        let cwd = Vec::new();
        let mut browser = Self { loaded, opened, files, names, archive: None, cancel, cwd };
        if matches!(browser.names, Names::Archive)
            && browser.archive()?.root()?.metadata.kind != EntryKind::Directory
        {
            bail!("{given} is one file and has no names to look into: use `restore` to get it");
        }
        Ok(browser)
    }

    pub(super) fn loaded(&self) -> &'a Loaded {
        self.loaded
    }

    /// As the store has it.
    pub(super) fn stored(&self) -> Result<StoredArchive> {
        StoredArchive::open(&self.opened.reader, &self.files, self.opened.key.as_ref())
    }

    /// The archive itself, opened when it is first needed.
    fn archive(&mut self) -> Result<&mut dyn Archive> {
        if self.archive.is_none() {
            let (plugin, streams) = (&self.loaded.plugin, self.stored()?.streams());
            let (reader, archive) = open_with(plugin, streams, self.cancel.clone())?;
            self.archive = Some(OpenArchive { archive, _reader: reader });
        }
        match &mut self.archive {
            Some(open) => Ok(&mut *open.archive),
            None => Err(anyhow!("the archive is not open")),
        }
    }

    /// The archive's own entry at a path, with the content of a link's file.
    pub(super) fn entry(&mut self, path: &[Vec<u8>]) -> Result<Entry> {
        let archive = self.archive()?;
        match browse::find(archive, path)? {
            Some(entry) => Ok(browse::resolve(archive, entry)?),
            None => bail!("the catalog has {}, the archive has not", shown(&joined(path))),
        }
    }

    pub(super) fn cwd(&self) -> EntryPath {
        path_of(&self.cwd)
    }

    pub(super) fn root(&self) -> Node {
        match self.names {
            Names::Catalog(_, block) => Node { at: block, end: 0 },
            Names::Archive => Node::ROOT,
        }
    }

    /// What is in a directory, in the archive's order.
    pub(super) fn list(&mut self, directory: Node) -> Result<Vec<Named>> {
        if let Names::Catalog(catalog, _) = &self.names {
            let entries = catalog.directory(directory.at)?.into_iter();
            return Ok(entries.map(of_catalog).collect());
        }
        let (mut found, mut last) = (Vec::new(), None);
        loop {
            let children = self.archive()?.children(directory, last, BATCH)?;
            if children.is_empty() {
                return Ok(found);
            }
            for child in children {
                match child {
                    Ok(entry) => {
                        last = Some(entry.node);
                        found.push(of_entry(entry));
                    }
                    Err((node, failure)) => {
                        last = Some(node);
                        tracing::info!("an entry can't be read: {failure}");
                    }
                }
            }
        }
    }

    /// The names on the way from the root to what a path names, without links and dots. A link at the
    /// end is followed where that is asked for, or the path ends with a slash.
    pub(super) fn resolve(&mut self, path: &[u8], follow: bool) -> Result<Vec<Named>> {
        let missing = || anyhow!("no such file or directory: {}", shown(path));
        if path.is_empty() {
            return Err(missing());
        }
        let mut steps = if path.starts_with(b"/") { Vec::new() } else { self.cwd.clone() };
        let mut rest: VecDeque<Vec<u8>> = names(path);
        let mut links = 0;
        while let Some(name) = rest.pop_front() {
            let directory = match steps.last() {
                None => self.root(),
                Some(step) => step.directory.ok_or_else(|| {
                    anyhow!("not a directory: {}", shown(&joined(&path_of(&steps))))
                })?,
            };
            match &name[..] {
                b"." => continue,
                // The root is its own parent.
                b".." => {
                    steps.pop();
                    continue;
                }
                _ => {}
            }
            let found = self.list(directory)?.into_iter().find(|entry| entry.name == name);
            let found = found.ok_or_else(missing)?;
            let is_link = found.letter == CatalogKind::Symlink.letter();
            if is_link && (follow || !rest.is_empty()) {
                links += 1;
                if links > LINKS_MAX {
                    bail!("too many levels of symbolic links: {}", shown(path));
                }
                let mut at = path_of(&steps);
                at.push(name);
                let target = self.entry(&at)?.metadata.link_target.ok_or_else(|| {
                    let at = shown(&joined(&at));
                    anyhow!("catalog symlink {at} not a symlink in the archive")
                })?;
                if target.starts_with(b"/") {
                    steps.clear();
                }
                let mut target = names(&target);
                target.append(&mut rest);
                rest = target;
            } else {
                steps.push(found);
            }
            if steps.len() > DEPTH_MAX {
                bail!("directories are nested too deep: {}", shown(path));
            }
        }
        Ok(steps)
    }

    /// Makes another directory the current one. A link is not followed.
    pub(super) fn change_directory(&mut self, path: &[u8]) -> Result<()> {
        let steps = self.resolve(path, false)?;
        if let Some(last) = steps.last().filter(|last| last.directory.is_none()) {
            match last.letter == CatalogKind::Symlink.letter() {
                true => bail!("target is a symlink: {} (`stat` tells where to)", shown(path)),
                false => bail!("not a directory: {}", shown(path)),
            }
        }
        self.cwd = steps;
        Ok(())
    }

    /// Where `cd` and completion look: what is in the directory that a path names.
    pub(super) fn list_path(&mut self, path: &[u8]) -> Result<Vec<Named>> {
        let steps = self.resolve(path, true)?;
        match steps.last() {
            None => self.list(self.root()),
            Some(Named { directory: Some(directory), .. }) => self.list(*directory),
            Some(file) => Ok(vec![file.clone()]),
        }
    }

    /// Calls `visit` with the path of everything in the archive, parents first. It says whether
    /// what is below a directory is of interest.
    pub(super) fn walk(&mut self, visit: &mut Visit<'_>) -> Result<()> {
        let mut path = EntryPath::new();
        let mut levels = vec![self.list(self.root())?.into_iter()];
        while let Some(level) = levels.last_mut() {
            if self.cancel.is_cancelled() {
                bail!("interrupted");
            }
            let Some(named) = level.next() else {
                levels.pop();
                path.pop();
                continue;
            };
            path.push(named.name.clone());
            let goes_on = visit(&path, &named)?;
            match named.directory.filter(|_| goes_on) {
                Some(_) if levels.len() >= DEPTH_MAX => bail!("directories are nested too deep"),
                Some(directory) => levels.push(self.list(directory)?.into_iter()),
                None => {
                    path.pop();
                }
            }
        }
        Ok(())
    }
}

fn catalog_of(opened: &Opened, name: &ArchiveName) -> Result<Names> {
    let catalog = Catalog::open(&opened.reader, &opened.manifest, opened.key.as_ref())?;
    let archives = catalog.archives()?;
    let found = archives.iter().find(|entry| entry.name == name.as_str().as_bytes());
    match found.map(|entry| &entry.kind) {
        Some(CatalogKind::Directory { block }) => {
            let block = *block;
            Ok(Names::Catalog(Box::new(catalog), block))
        }
        _ => bail!("archive not found in catalog"),
    }
}

fn of_catalog(entry: keepwell_model::catalog::CatalogEntry) -> Named {
    let letter = entry.kind.letter();
    let directory = match entry.kind {
        CatalogKind::Directory { block } => Some(Node { at: block, end: 0 }),
        _ => None,
    };
    Named { name: entry.name, letter, directory }
}

fn of_entry(entry: Entry) -> Named {
    let kind = kind_of(&entry);
    let directory = (entry.metadata.kind == EntryKind::Directory).then_some(entry.node);
    Named { name: entry.name, letter: kind.letter(), directory }
}

/// A slash at the end asks for a directory, as a dot behind it does.
fn names(path: &[u8]) -> VecDeque<Vec<u8>> {
    let parts = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty());
    let mut names: VecDeque<Vec<u8>> = parts.map(<[u8]>::to_vec).collect();
    if path.ends_with(b"/") {
        names.push_back(b".".to_vec());
    }
    names
}

/// In quotation marks, for messages.
pub(super) fn shown(path: &[u8]) -> String {
    format!("\"{}\"", shown_path(path))
}
