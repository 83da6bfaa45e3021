//! Walks a tree and says what its archive is made of: shared/spec/pxar.md §3 to §5, §8 to §10.
//!
//! Children are in byte order of their names. The walk keeps one frame for each open directory and
//! no recursion, so depth costs memory only.

use crate::encode::{self, Omit};
use crate::exclude::{Excludes, Marks};
use crate::format::{self, GoodbyeRow, HEADER_BYTES};
use crate::reference::{Children, Reference};
use keepwell_sdk::archive::{
    Borders, Bytes, Chunking, Directory, Examined, Extent, File, Listed, Omission, Opened, Origin,
    Request, Stream, Summary, catalog_add, catalog_enter, catalog_leave, catalog_open, open_stream,
    skipped,
};
use keepwell_sdk::options;
use keepwell_sdk::{EntryKind, Failure, Level, Metadata, Timestamp, empty_metadata, log};
use serde::Deserialize;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

/// Names asked for at a time.
const LIST_BATCH: u32 = 512;
/// Children opened at a time: descriptors are scarce.
const OPEN_BATCH: usize = 32;
/// Items collected before they are handed over.
const WRITE_BATCH_BYTES: usize = 32 << 10;
/// Most bytes that the host takes at once.
const WRITE_BYTES_MAX: usize = 1 << 20;
/// Deeper trees can't be restored, since each level takes a descriptor.
const DEPTH_MAX: usize = 2048;
/// Longer paths can't be the target of a hard link: spec §1.
const LINK_PATH_BYTES_MAX: usize = 4095;
/// Runs of unchanged files are ended when they are so long: directories that stay open, and metadata that
/// waits.
const RUN_DIRECTORIES_MAX: usize = 256;
const RUN_BYTES_MAX: usize = 8 << 20;
/// What lies between two unchanged files in the previous archive, where their chunks may still be one run.
const GAP_BYTES_MAX: u64 = 1 << 20;
/// Records the patterns of the command line, always last in the root: spec §10.
const EXCLUDE_RECORD: &[u8] = b".pxarexclude-cli";

/// What is given on the command line.
#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Options {
    pub(crate) exclude: Vec<options::Bytes>,
    pub(crate) skip_lost_and_found: bool,
    exclude_if_present: Vec<options::Bytes>,
    exclude_caches: bool,
    exclude_larger_than: Option<u64>,
    no_xattrs: bool,
    no_fcaps: bool,
    no_acls: bool,
    skip_e2big_xattr: bool,
    no_device_nodes: bool,
    no_fifos: bool,
    no_sockets: bool,
    change_detection_mode: Mode,
}

/// What the options ask for.
struct Settings {
    omit: Omit,
    skip_large_xattrs: bool,
    no_devices: bool,
    no_fifos: bool,
    no_sockets: bool,
    larger_than: Option<u64>,
    marks: Marks,
    mode: Mode,
}

/// How changes are found, and what is made of them.
#[derive(Clone, Copy, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
enum Mode {
    /// all in one stream, with a catalog
    #[default]
    Legacy,
    /// metadata and content in streams of their own
    Data,
    /// and content is taken again where the metadata is the same
    Metadata,
}

impl Settings {
    fn new(options: &Options) -> Result<Self, Failure> {
        let names: Vec<Vec<u8>> =
            options.exclude_if_present.iter().map(|name| name.0.clone()).collect();
        if let Some(bad) = names.iter().find(|name| name.is_empty() || name.contains(&b'/')) {
            let bad = String::from_utf8_lossy(bad);
            let problem = format!("--exclude-if-present '{bad}': give a file name without '/'");
            return Err(Failure::Invalid(problem));
        }
        // Capabilities and ACLs are extended attributes, too: without those there are none.
        let xattrs = options.no_xattrs;
        Ok(Self {
            omit: Omit {
                xattrs,
                fcaps: xattrs || options.no_fcaps,
                acls: xattrs || options.no_acls,
            },
            skip_large_xattrs: options.skip_e2big_xattr,
            no_devices: options.no_device_nodes,
            no_fifos: options.no_fifos,
            no_sockets: options.no_sockets,
            larger_than: options.exclude_larger_than,
            mode: options.change_detection_mode,
            marks: Marks { caches: options.exclude_caches, names },
        })
    }

    fn drops(&self, kind: EntryKind) -> bool {
        match kind {
            EntryKind::BlockDevice | EntryKind::CharacterDevice => self.no_devices,
            EntryKind::Fifo => self.no_fifos,
            EntryKind::Socket => self.no_sockets,
            _ => false,
        }
    }
}

/// An open directory.
struct Frame {
    name: Vec<u8>,
    place: Rc<Place>,
    /// what is left of it in the previous archive
    previous: Option<Children>,
    device: u64,
    /// of its FILENAME; of its ENTRY in the root
    start: u64,
    entry_start: u64,
    rows: Vec<GoodbyeRow>,
    pending: VecDeque<Listed>,
    listed_all: bool,
    /// entries met here, for the limit
    entries: u64,
    /// length of the pattern list before this directory's own
    patterns: u32,
    /// only this name is archived: a marked directory
    only: Option<Vec<u8>>,
}

struct Walk {
    out: Emitter,
    content: Content,
    reference: Option<Reference<Bytes>>,
    run: Option<Run>,
    frames: Vec<Frame>,
    excludes: Excludes,
    settings: Settings,
    borders: Borders,
    root_device: u64,
    entries_max: u64,
    entries_open: u64,
    entries_total: u64,
    /// inodes of which more names are to come
    links: HashMap<(u64, u64), FirstName>,
}

/// The first name of an inode: its FILENAME position, its path, and how many names are to come.
struct FirstName {
    start: u64,
    path: Vec<u8>,
    left: u32,
}

/// Where an entry's content comes from.
enum Source {
    None,
    File(File),
    /// the previous archive, from there on
    Previous(u64),
}

/// Collects items and keeps the position.
struct Emitter {
    stream: Stream,
    position: u64,
    buffer: Vec<u8>,
    /// something in the buffer is not known yet
    is_held: bool,
}

/// Files in a row whose content lies in a row in the previous archive. Where it lies now is written into
/// their entries once it is known.
struct Run {
    end: u64,
    files: Vec<Unchanged>,
    /// directories that they are in, which stay open
    directories: usize,
}

struct Unchanged {
    place: Rc<Place>,
    name: Vec<u8>,
    size: u64,
    modified: Timestamp,
    /// with its device
    inode: (u64, u64),
    /// of its PAYLOAD header in the previous archive
    at: u64,
    /// where in the metadata its new place belongs
    word: u64,
}

/// A directory to open files in, and its path.
struct Place {
    handle: Directory,
    path: Vec<Vec<u8>>,
}

impl Emitter {
    /// Position of the next byte.
    fn position(&self) -> u64 {
        self.position + self.buffer.len() as u64
    }

    fn flush(&mut self) -> Result<(), Failure> {
        for piece in self.buffer.chunks(WRITE_BYTES_MAX) {
            self.stream.write(piece)?;
        }
        self.position += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    fn flush_if_large(&mut self) -> Result<(), Failure> {
        let is_due = self.buffer.len() >= WRITE_BATCH_BYTES && !self.is_held;
        if is_due { self.flush() } else { Ok(()) }
    }

    /// Writes a word that was not known before.
    fn put_word(&mut self, position: u64, word: u64) {
        let at = (position - self.position) as usize;
        self.buffer[at..at + 8].copy_from_slice(&word.to_le_bytes());
    }

    fn splice(&mut self, file: &File, length: u64) -> Result<(), Failure> {
        self.flush()?;
        self.stream.splice(file, 0, length)?;
        self.position += length;
        Ok(())
    }
}

/// Where the content of files goes.
enum Content {
    /// between the metadata, and names into the catalog
    Within,
    /// into a stream of its own, which is so long
    Apart { stream: Stream, position: u64 },
}

impl Content {
    /// Opens the stream for the content of a split archive.
    fn apart() -> Result<Self, Failure> {
        let stream = open_stream(".ppxar", Chunking::ContentDefined, None)?;
        let mut marker = Vec::new();
        encode::header(&mut marker, format::PAYLOAD_START_MARKER, 0);
        stream.write(&marker)?;
        Ok(Self::Apart { stream, position: HEADER_BYTES })
    }

    fn finish(&self) -> Result<(), Failure> {
        let Self::Apart { stream, .. } = self else { return Ok(()) };
        let mut marker = Vec::new();
        encode::header(&mut marker, format::PAYLOAD_TAIL_MARKER, 0);
        stream.write(&marker)
    }

    fn is_within(&self) -> bool {
        matches!(self, Self::Within)
    }
}

/// Makes the archive.
pub(crate) fn write_archive(
    origin: Origin,
    request: Request,
    options: Options,
) -> Result<Summary, Failure> {
    let Origin::Directory(root) = origin else {
        return Err(Failure::Unsupported("a pxar archive is made of a directory".into()));
    };
    let examined = root.examine()?;
    if is_virtual(examined.identity.filesystem) {
        return Err(Failure::Unsupported("refusing to backup a virtual file system".into()));
    }
    let settings = Settings::new(&options)?;
    let excludes = Excludes::from_options(&options)?;
    let mut buffer = Vec::new();
    let (suffix, content) = match settings.mode {
        Mode::Legacy => (format!(".{}", request.archive_extension), Content::Within),
        Mode::Data | Mode::Metadata => {
            encode::prologue(&mut buffer, excludes.record());
            (".mpxar".into(), Content::apart()?)
        }
    };
    let stream = open_stream(&suffix, Chunking::ContentDefined, None)?;
    if content.is_within() {
        catalog_open();
    }
    let reference = match settings.mode {
        Mode::Metadata => reference(&request.archive_name, request.previous),
        Mode::Legacy | Mode::Data => None,
    };
    let mut walk = Walk {
        out: Emitter { stream, position: 0, buffer, is_held: false },
        content,
        reference,
        run: None,
        frames: Vec::new(),
        excludes,
        settings,
        borders: request.borders,
        root_device: examined.identity.device,
        entries_max: request.entries_max,
        entries_open: 0,
        entries_total: 0,
        links: HashMap::new(),
    };
    walk.enter(Vec::new(), root, &examined, 0)?;
    while !walk.frames.is_empty() {
        walk.step()?;
    }
    walk.take_run(false)?;
    walk.out.flush()?;
    walk.content.finish()?;
    Ok(Summary { entries: walk.entries_total })
}

impl Walk {
    /// The path of the directory on top, without slashes.
    fn path(&self) -> Vec<Vec<u8>> {
        self.frames.iter().skip(1).map(|frame| frame.name.clone()).collect()
    }

    fn path_of(&self, name: &[u8]) -> Vec<Vec<u8>> {
        let mut path = self.path();
        path.push(name.to_vec());
        path
    }

    /// Writes a directory's own items and puts it on top. Its patterns count from here.
    fn enter(
        &mut self,
        name: Vec<u8>,
        handle: Directory,
        examined: &Examined,
        start: u64,
    ) -> Result<(), Failure> {
        let is_root = self.frames.is_empty();
        self.accept_incomplete(&name, examined)?;
        // The root of a split archive begins with what says that it is one: spec §5, quirk B.
        let entry_start = if is_root { 0 } else { self.out.position() };
        encode::entry(&mut self.out.buffer, &examined.metadata, self.settings.omit);
        let path = if is_root { Vec::new() } else { self.path_of(&name) };
        let previous = match (&self.reference, self.frames.last_mut()) {
            (Some(reference), None) => reference.root(),
            (Some(reference), Some(parent)) => {
                parent.previous.as_mut().and_then(|above| reference.directory(above, &name))
            }
            (None, _) => None,
        };
        let place = Rc::new(Place { handle, path });
        let mut frame = Frame {
            name,
            place,
            previous,
            device: examined.identity.device,
            start,
            entry_start,
            rows: Vec::new(),
            pending: VecDeque::new(),
            listed_all: false,
            entries: 0,
            patterns: self.excludes.size(),
            only: None,
        };
        if !is_root && self.is_skipped_mount(examined) {
            frame.listed_all = true;
            let path = self.path_of(&frame.name);
            skipped(&path, Omission::MountPoint, "");
        } else if let Some(mark) = self.settings.marks.found_in(&frame.place.handle)? {
            skipped(&self.path_of(&frame.name), Omission::Marked, &String::from_utf8_lossy(&mark));
            frame.only = Some(mark);
        }
        if !is_root && self.content.is_within() {
            catalog_enter(&frame.name);
        }
        if !frame.listed_all {
            self.excludes.read_file_of(&frame.place.handle, &frame.place.path);
        }
        self.frames.push(frame);
        self.out.flush_if_large()
    }

    fn is_skipped_mount(&self, examined: &Examined) -> bool {
        let device = examined.identity.device;
        let crossed = self.frames.last().is_some_and(|parent| parent.device != device);
        crossed
            && (is_virtual(examined.identity.filesystem)
                || match &self.borders {
                    Borders::CrossAll => false,
                    Borders::Stay => device != self.root_device,
                    Borders::CrossListed(devices) => {
                        device != self.root_device && !devices.contains(&device)
                    }
                })
    }

    /// Handles the next children of the directory on top, or leaves it.
    fn step(&mut self) -> Result<(), Failure> {
        self.fill_pending()?;
        let Some(frame) = self.frames.last_mut() else {
            return Ok(());
        };
        match frame.pending.front() {
            None => self.leave(),
            Some(next) if next.kind == EntryKind::Directory => {
                let name = std::mem::take(&mut frame.pending[0].name);
                frame.pending.pop_front();
                self.child_directory(name)
            }
            Some(_) => {
                let is_leaf = |child: &&Listed| child.kind != EntryKind::Directory;
                let run = frame.pending.iter().take_while(is_leaf).take(OPEN_BATCH).count();
                let batch: Vec<Listed> = frame.pending.drain(..run).collect();
                self.leaves(&batch)
            }
        }
    }

    /// Reads names until some are left over from the excludes, or all are read.
    fn fill_pending(&mut self) -> Result<(), Failure> {
        let path = self.path();
        let is_root = path.is_empty();
        let Some(frame) = self.frames.last_mut() else {
            return Ok(());
        };
        while frame.pending.is_empty() && !frame.listed_all {
            let listed = match frame.place.handle.read(LIST_BATCH) {
                Err(Failure::Denied(detail) | Failure::NotFound(detail)) => {
                    skipped(&path, Omission::Denied, &detail);
                    Vec::new()
                }
                other => other?,
            };
            frame.listed_all = listed.is_empty();
            let kept = self.excludes.keep(&path, listed).into_iter().filter(|child| {
                !(is_root && child.name == EXCLUDE_RECORD || self.settings.drops(child.kind))
                    && frame.only.as_ref().is_none_or(|only| *only == child.name)
            });
            frame.pending.extend(kept);
            frame.entries += frame.pending.len() as u64;
            self.entries_open += frame.pending.len() as u64;
            self.entries_total += frame.pending.len() as u64;
        }
        if self.entries_open > self.entries_max {
            let problem =
                format!("exceeded allowed number of file entries (> {})", self.entries_max);
            return Err(Failure::Invalid(problem));
        }
        Ok(())
    }

    fn child_directory(&mut self, name: Vec<u8>) -> Result<(), Failure> {
        if self.frames.len() > DEPTH_MAX {
            let detail = format!("nested more than {DEPTH_MAX} deep");
            return self.omit(&name, Failure::Unsupported(detail));
        }
        let Some(frame) = self.frames.last() else {
            return Ok(());
        };
        match frame.place.handle.open_directory(&name) {
            Ok((handle, examined)) => {
                let start = self.out.position();
                encode::filename(&mut self.out.buffer, &name);
                self.enter(name, handle, &examined, start)
            }
            Err(failure) => self.omit(&name, failure),
        }
    }

    fn leaves(&mut self, batch: &[Listed]) -> Result<(), Failure> {
        let Some(frame) = self.frames.last() else {
            return Ok(());
        };
        let place = frame.place.clone();
        let known = self.find_unchanged(&place.handle, batch);
        let others = batch.iter().zip(&known).filter(|(_, known)| known.is_none());
        let others: Vec<Listed> = others.map(|(child, _)| child.clone()).collect();
        let opened = place.handle.open_children(&others);
        // Nothing may be left out without a word.
        if known.len() != batch.len() || opened.len() != others.len() {
            return Err(Failure::Other("the host did not answer for each child".into()));
        }
        let mut opened = opened.into_iter();
        for (child, known) in batch.iter().zip(known) {
            if let Some((examined, at)) = known {
                self.leaf(&child.name, &examined, Source::Previous(at))?;
                continue;
            }
            match opened.next() {
                Some(Ok(Opened { examined, handle })) => {
                    let source = handle.map_or(Source::None, Source::File);
                    self.leaf(&child.name, &examined, source)?;
                }
                Some(Err(failure)) => self.omit(&child.name, failure)?,
                None => {}
            }
        }
        self.out.flush_if_large()
    }

    /// Of each child what is known of it, and where its content lies in the previous archive: of files
    /// whose metadata is the same there. They are not opened.
    fn find_unchanged(
        &mut self,
        directory: &Directory,
        batch: &[Listed],
    ) -> Vec<Option<(Examined, u64)>> {
        let previous = self.frames.last_mut().and_then(|frame| frame.previous.as_mut());
        let (Some(reference), Some(children)) = (&self.reference, previous) else {
            return vec![None; batch.len()];
        };
        let mut entry = Vec::new();
        let examined = batch.iter().zip(directory.examine_children(batch));
        let unchanged = examined.map(|(child, examined)| {
            let examined = examined.ok()?;
            // Other names of the file may tell something else.
            if examined.metadata.kind != EntryKind::File || examined.identity.links > 1 {
                return None;
            }
            entry.clear();
            encode::entry(&mut entry, &examined.metadata, self.settings.omit);
            let size = examined.metadata.size;
            let at = reference.unchanged(children, &child.name, &entry, size)?;
            Some((examined, at))
        });
        unchanged.collect()
    }

    /// Reports an entry that can't be archived; other failures end the backup.
    fn omit(&mut self, name: &[u8], failure: Failure) -> Result<(), Failure> {
        let (why, detail) = match failure {
            Failure::Denied(detail) => (Omission::Denied, detail),
            Failure::NotFound(detail) => (Omission::Vanished, detail),
            Failure::Unsupported(detail) => (Omission::Unsupported, detail),
            other => return Err(other),
        };
        skipped(&self.path_of(name), why, &detail);
        Ok(())
    }

    fn accept_incomplete(&self, name: &[u8], examined: &Examined) -> Result<(), Failure> {
        match &examined.incomplete {
            None => Ok(()),
            // Nothing of them is wanted.
            Some(_) if self.settings.omit.all_attributes() => Ok(()),
            Some(problem) => {
                let path = self.path_of(name);
                if self.settings.skip_large_xattrs {
                    skipped(&path, Omission::Unsupported, &format!("left out: {problem}"));
                    return Ok(());
                }
                Err(Failure::Unsupported(format!(
                    "{}: {problem}; use --skip-e2big-xattr to leave them out",
                    String::from_utf8_lossy(&path.join(&b'/'))
                )))
            }
        }
    }

    fn leaf(&mut self, name: &[u8], examined: &Examined, source: Source) -> Result<(), Failure> {
        let metadata = &examined.metadata;
        let too_large = self.settings.larger_than.is_some_and(|limit| metadata.size > limit);
        if too_large && metadata.kind == EntryKind::File {
            let detail = format!("{} bytes", metadata.size);
            skipped(&self.path_of(name), Omission::TooLarge, &detail);
            return Ok(());
        }
        self.accept_incomplete(name, examined)?;
        let start = self.out.position();
        encode::filename(&mut self.out.buffer, name);
        let linked = self.write_hard_link(name, examined, start);
        if !linked {
            encode::entry(&mut self.out.buffer, metadata, self.settings.omit);
        }
        let mut apart = 0;
        match source {
            Source::Previous(at) => self.take_again(name, examined, at)?,
            Source::File(file) if metadata.kind == EntryKind::File && !linked => {
                apart = self.write_content(&file, metadata.size)?;
            }
            Source::File(_) | Source::None => {}
        }
        if self.content.is_within() {
            catalog_add(name, metadata.kind, linked, metadata.size, metadata.modified);
        }
        // Content counts, wherever it lies: spec §5, quirk A.
        let end = self.out.position() + apart;
        let row = GoodbyeRow { hash: format::name_hash(name), start, end };
        if let Some(frame) = self.frames.last_mut() {
            frame.rows.push(row);
        }
        Ok(())
    }

    /// Refers to content of the previous archive.
    fn take_again(&mut self, name: &[u8], examined: &Examined, at: u64) -> Result<(), Failure> {
        let (size, modified) = (examined.metadata.size, examined.metadata.modified);
        if let Some(run) = self.run.as_ref().filter(|run| run.end != at) {
            let gap = at.checked_sub(run.end);
            self.take_run(gap.is_some_and(|gap| gap < GAP_BYTES_MAX))?;
        }
        let Some(place) = self.frames.last().map(|frame| frame.place.clone()) else {
            return Ok(());
        };
        let word = self.out.position() + HEADER_BYTES;
        encode::payload_ref(&mut self.out.buffer, 0, size);
        self.out.is_held = true;
        let run = self.run.get_or_insert(Run { end: at, files: Vec::new(), directories: 0 });
        if run.files.last().is_none_or(|last| !Rc::ptr_eq(&last.place, &place)) {
            run.directories += 1;
        }
        run.end = at + HEADER_BYTES + size;
        let inode = (examined.identity.device, examined.identity.inode);
        let name = name.to_vec();
        run.files.push(Unchanged { place, name, size, modified, inode, at, word });
        let is_full =
            run.directories >= RUN_DIRECTORIES_MAX || self.out.buffer.len() >= RUN_BYTES_MAX;
        if is_full { self.take_run(true) } else { Ok(()) }
    }

    /// Ends the run: its content is taken again, or read where that is better. `continues`: what lies
    /// behind it will be asked for next.
    fn take_run(&mut self, continues: bool) -> Result<(), Failure> {
        let (Some(run), Content::Apart { stream, position }) = (self.run.take(), &mut self.content)
        else {
            return Ok(());
        };
        let reference = self.reference.as_ref();
        let again = Again { stream, position, reference, out: &mut self.out };
        again.take(&run.files, continues)?;
        self.out.is_held = false;
        self.out.flush_if_large()
    }

    /// Writes a file's content, and says how much of it is in the other stream.
    fn write_content(&mut self, file: &File, length: u64) -> Result<u64, Failure> {
        self.take_run(false)?;
        // An empty one, too: the host looks whether it has grown.
        match &mut self.content {
            Content::Within => {
                encode::header(&mut self.out.buffer, format::PAYLOAD, length);
                self.out.splice(file, length)?;
                Ok(0)
            }
            Content::Apart { stream, position } => {
                encode::payload_ref(&mut self.out.buffer, *position, length);
                write_payload(stream, length)?;
                stream.splice(file, 0, length)?;
                *position += HEADER_BYTES + length;
                Ok(length)
            }
        }
    }

    /// Writes a link to an inode met before; remembers one that may be met again.
    fn write_hard_link(&mut self, name: &[u8], examined: &Examined, start: u64) -> bool {
        let identity = examined.identity;
        if examined.metadata.kind != EntryKind::File || identity.links < 2 {
            return false;
        }
        let inode = (identity.device, identity.inode);
        if let Some(first) = self.links.get_mut(&inode) {
            encode::hard_link(&mut self.out.buffer, start - first.start, &first.path);
            first.left = first.left.saturating_sub(1);
            if first.left == 0 {
                self.links.remove(&inode);
            }
            return true;
        }
        let path = self.path_of(name).join(&b'/');
        if path.len() <= LINK_PATH_BYTES_MAX {
            let left = identity.links - 1;
            self.links.insert(inode, FirstName { start, path, left });
        }
        false
    }

    /// Ends the directory on top: goodbye table, catalog, and its row in the parent's table.
    fn leave(&mut self) -> Result<(), Failure> {
        if self.frames.len() == 1 {
            self.write_exclude_record()?;
        }
        let Some(frame) = self.frames.pop() else {
            return Ok(());
        };
        let position = self.out.position();
        encode::goodbye(&mut self.out.buffer, frame.rows, frame.entry_start, position);
        self.excludes.truncate(frame.patterns);
        self.entries_open -= frame.entries;
        if let Some(parent) = self.frames.last_mut() {
            if self.content.is_within() {
                catalog_leave();
            }
            let hash = format::name_hash(&frame.name);
            let end = self.out.position();
            parent.rows.push(GoodbyeRow { hash, start: frame.start, end });
        }
        self.out.flush_if_large()
    }

    fn write_exclude_record(&mut self) -> Result<(), Failure> {
        let text = self.excludes.record();
        // A split archive has them in front.
        if text.is_empty() || !self.content.is_within() {
            return Ok(());
        }
        let empty = empty_metadata(EntryKind::File);
        let metadata = Metadata { mode: 0o600, size: text.len() as u64, ..empty };
        let start = self.out.position();
        encode::filename(&mut self.out.buffer, EXCLUDE_RECORD);
        encode::entry(&mut self.out.buffer, &metadata, Omit::default());
        encode::header(&mut self.out.buffer, format::PAYLOAD, metadata.size);
        self.out.buffer.extend(text);
        catalog_add(EXCLUDE_RECORD, EntryKind::File, false, metadata.size, metadata.modified);
        let hash = format::name_hash(EXCLUDE_RECORD);
        let row = GoodbyeRow { hash, start, end: self.out.position() };
        if let Some(root) = self.frames.first_mut() {
            root.rows.push(row);
        }
        Ok(())
    }
}

/// The previous archive, if it has its metadata apart.
fn reference(name: &str, mut previous: Vec<Bytes>) -> Option<Reference<Bytes>> {
    let (Some(metadata), Some(payload), true) =
        (previous.pop(), previous.pop(), previous.is_empty())
    else {
        log(Level::Info, "No previous metadata index, continue without reference");
        return None;
    };
    let reference = Reference::open(payload, metadata);
    let text = match &reference {
        Some(_) => format!("Using previous index as metadata reference for '{name}.mpxar.didx'"),
        None => "The previous metadata can't be read, continue without reference".into(),
    };
    log(Level::Info, &text);
    reference
}

fn write_payload(stream: &Stream, length: u64) -> Result<(), Failure> {
    let mut header = Vec::new();
    encode::header(&mut header, format::PAYLOAD, length);
    stream.write(&header)
}

/// Content of the previous archive on its way into the new one.
struct Again<'a> {
    stream: &'a Stream,
    position: &'a mut u64,
    reference: Option<&'a Reference<Bytes>>,
    out: &'a mut Emitter,
}

impl Again<'_> {
    /// Files in a row are taken together. Where their chunks hold too much else they are halved, so that
    /// only those at the bad end are read.
    fn take(self, files: &[Unchanged], continues: bool) -> Result<(), Failure> {
        let mut rows = vec![(files, continues)];
        while let Some((files, continues)) = rows.pop() {
            let (Some(first), Some(last)) = (files.first(), files.last()) else { continue };
            let end = last.at + HEADER_BYTES + last.size;
            let wanted = Extent { stream: 0, offset: first.at, length: end - first.at };
            if let Some(reused) = self.stream.reuse(wanted, continues)? {
                *self.position = reused.position;
                for file in files {
                    self.out.put_word(file.word, reused.at + (file.at - first.at));
                }
            } else if let [file] = files {
                self.out.put_word(file.word, *self.position);
                read_unchanged(self.stream, file, self.reference)?;
                *self.position += HEADER_BYTES + file.size;
            } else {
                let middle = first.at + (end - first.at) / 2;
                let before = files.iter().take_while(|file| file.at < middle).count();
                let (left, right) = files.split_at(before.clamp(1, files.len() - 1));
                rows.push((right, continues));
                rows.push((left, false));
            }
        }
        Ok(())
    }
}

impl Unchanged {
    /// Whether what its name leads to is still the file that was examined.
    fn is(&self, now: &Examined) -> bool {
        let Timestamp { seconds, nanoseconds } = now.metadata.modified;
        self.inode == (now.identity.device, now.identity.inode)
            && self.size == now.metadata.size
            && (self.modified.seconds, self.modified.nanoseconds) == (seconds, nanoseconds)
    }
}

/// Content that is not worth being taken again. The entry is written: where the file is gone, or is another by
/// now, what belongs to the entry is copied from the previous archive. Zeros, or the content of the other, would be
/// taken for the file from then on.
fn read_unchanged(
    stream: &Stream,
    file: &Unchanged,
    reference: Option<&Reference<Bytes>>,
) -> Result<(), Failure> {
    write_payload(stream, file.size)?;
    let listed = Listed { name: file.name.clone(), kind: EntryKind::File };
    let opened = file.place.handle.open_children(&[listed]).pop();
    if let Some(Ok(Opened { handle: Some(handle), examined })) = &opened
        && file.is(examined)
    {
        return stream.splice(handle, 0, file.size);
    }
    let mut done = 0;
    while done < file.size {
        let now = (file.size - done).min(WRITE_BYTES_MAX as u64);
        let from = file.at + HEADER_BYTES + done;
        let piece = reference.map(|reference| reference.content(from, now as u32));
        match piece.unwrap_or(Ok(Vec::new()))? {
            piece if piece.is_empty() => {
                let name = String::from_utf8_lossy(&file.name).into_owned();
                return Err(Failure::Io(format!("{name}: it vanished, and so did its content")));
            }
            piece => {
                stream.write(&piece)?;
                done += piece.len() as u64;
            }
        }
    }
    Ok(())
}

/// File systems that hold no data of their own: spec §9.
fn is_virtual(magic: u64) -> bool {
    const VIRTUAL: [u64; 19] = [
        0x42494e4d, // binfmt_misc
        0x0027e0eb, // cgroup
        0x63677270, // cgroup2
        0x62656570, // configfs
        0x64626720, // debugfs
        0x1cd1,     // devpts
        0xde5e81e4, // efivarfs
        0x65735543, // fusectl
        0x958458f6, // hugetlbfs
        0x19800202, // mqueue
        0x6e667364, // nfsd
        0x9fa0,     // proc
        0x6165676c, // pstore
        0x67596969, // rpc_pipefs
        0x73636673, // securityfs
        0xf97cff8c, // selinuxfs
        0x43415d53, // smackfs
        0x62656572, // sysfs
        0x74726163, // tracefs
    ];
    VIRTUAL.contains(&magic)
}

/// Tells the user of something in a directory.
pub(crate) fn warn(path: &[Vec<u8>], text: &str) {
    let path = path.join(&b'/');
    log(Level::Warning, &format!("bad pattern in {:?}: {text}", String::from_utf8_lossy(&path)));
}

const _: () = assert!(HEADER_BYTES == 16);
