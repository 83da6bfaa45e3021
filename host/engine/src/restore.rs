//! Restores an archive into a directory, or a single file.
//!
//! One thread walks the archive, makes directories, files and links in order; others fetch content
//! and write it. A directory gets its metadata when the last thing below it is done: that is when
//! nobody holds its [`Dir`] any more.

use crate::archive::{ChunkedArchive, RandomAccess};
use crate::browse::{self, EntryPath};
use crate::error::{EngineError, Result, io_error};
use crate::output::{self, NewFile, OutputOptions, Trouble};
use crate::pattern::{PatternList, Verdict};
use crate::plugin::{Archive, Content, Entry, EntryKind, Event, Extent, Failure, Metadata, Node};
use crate::progress::{Cancel, Counters};
use crate::report::shown_path;
use crossbeam_channel::{Receiver, Sender, bounded};
use keepwell_seal::Plaintext;
use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;

/// Events asked of a walk at a time.
const WALK_BATCH: u32 = 128;
/// Files waiting to be written; each holds a descriptor.
const QUEUE_JOBS: usize = 128;
/// Files whose further names are made links to their second; of others each is a file.
const MOVED_MAX: usize = 65_536;
/// Deeper trees are refused: each open level holds a descriptor.
const DEPTH_MAX: usize = 2048;

/// What to restore, and how.
#[derive(Default)]
pub struct RestoreRequest {
    pub options: OutputOptions,
    /// nothing in it: everything
    pub patterns: PatternList,
    /// Only these entries and what lies below them, by their names from the root. They are looked up one
    /// by one: the rest of the archive is not read. Then there are no patterns.
    pub paths: Vec<EntryPath>,
    /// go on after damage, and report it at the end
    pub keep_going: bool,
    /// the archive comes from a pipe: everything in its order, on one thread
    pub sequential: bool,
}

/// Where content comes from.
pub trait ContentSource: Send + Sync {
    /// Parts that make an extent, in order, each to be fetched on its own; none where it leaves the
    /// stream. They come one by one: a claimed size costs nothing.
    fn parts(&self, extent: Extent) -> Option<Parts<'_>>;
    /// The bytes of one part.
    fn fetch(&self, part: &ContentPart) -> Result<Fetched>;
}

/// Parts of an extent.
pub type Parts<'a> = Box<dyn Iterator<Item = ContentPart> + 'a>;

/// A part of an extent that can be fetched on its own.
#[derive(Clone, Copy, Debug)]
pub struct ContentPart {
    pub stream: u32,
    pub position: usize,
    pub from: usize,
    pub to: usize,
}

/// Bytes of a part.
pub struct Fetched {
    pub bytes: Arc<Plaintext>,
    pub from: usize,
    pub to: usize,
}

/// The chunked streams of a stored archive.
pub struct StoredContent(pub Vec<Arc<ChunkedArchive>>);

impl ContentSource for StoredContent {
    fn parts(&self, extent: Extent) -> Option<Parts<'_>> {
        let archive = self.0.get(extent.stream as usize)?;
        let Extent { stream, offset, length } = extent;
        let parts = archive.parts(offset, length)?.map(move |part| ContentPart {
            stream,
            position: part.position,
            from: part.from,
            to: part.to,
        });
        Some(Box::new(parts))
    }

    fn fetch(&self, part: &ContentPart) -> Result<Fetched> {
        let archive = self.0.get(part.stream as usize).ok_or(EngineError::Worker)?;
        let bytes = archive.chunk(part.position)?;
        Ok(Fetched { bytes, from: part.from, to: part.to })
    }
}

/// Content that is read piece by piece, not chunk by chunk: from a file, a blob, or a pipe.
pub struct PlainContent(pub Vec<Arc<dyn RandomAccess>>);

/// Bytes of a part of plain content.
const PLAIN_PART_BYTES: u64 = 1 << 20;

impl ContentSource for PlainContent {
    fn parts(&self, extent: Extent) -> Option<Parts<'_>> {
        let source = self.0.get(extent.stream as usize)?;
        let end = extent.offset.checked_add(extent.length)?;
        if source.size().is_some_and(|size| end > size) {
            return None;
        }
        let end = usize::try_from(end).ok()?;
        let start = usize::try_from(extent.offset).ok()?;
        let stream = extent.stream;
        let parts = (start..end).step_by(PLAIN_PART_BYTES as usize).map(move |from| {
            let to = from.saturating_add(PLAIN_PART_BYTES as usize).min(end);
            ContentPart { stream, position: 0, from, to }
        });
        Some(Box::new(parts))
    }

    fn fetch(&self, part: &ContentPart) -> Result<Fetched> {
        let source = self.0.get(part.stream as usize).ok_or(EngineError::Worker)?;
        let length = part.to - part.from;
        let bytes = source.read_at(part.from as u64, length as u32)?;
        if bytes.len() != length {
            let problem = format!("the archive ends before byte {}", part.to);
            return Err(Failure::Corrupt(problem).into());
        }
        Ok(Fetched { bytes: Arc::new(bytes.into()), from: 0, to: length })
    }
}

/// Files by the places of their entries in the archive, for hard links to them.
#[derive(Default)]
struct Files {
    /// not complete yet
    open: HashSet<u64>,
    fates: HashMap<u64, Fate>,
}

/// What became of a file that is not as the archive has it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// what has its name, if anything, is not ours
    Missing,
    /// it is there with what could be read of it
    Damaged,
}

/// What all threads of a restore share.
struct Shared {
    content: Arc<dyn ContentSource>,
    options: OutputOptions,
    keep_going: bool,
    cancel: Cancel,
    counters: Arc<Counters>,
    failed: AtomicBool,
    first: Mutex<Option<EngineError>>,
    troubles: AtomicU64,
    files: Mutex<Files>,
    completed: Condvar,
    on_trouble: Box<dyn Fn(&str) + Send + Sync>,
}

impl Shared {
    /// Notes an error; without `keep_going` the first one ends the restore.
    fn trouble(&self, error: EngineError) {
        self.troubles.fetch_add(1, Ordering::Relaxed);
        // A full disk gets no emptier.
        if self.keep_going && !error.is_no_space() {
            (self.on_trouble)(&chain(&error));
            return;
        }
        self.failed.store(true, Ordering::Relaxed);
        self.first.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }

    fn files(&self) -> MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, file: Node, fate: Fate) {
        self.files().fates.insert(file.at, fate);
    }

    fn leave_file(&self, file: Node) {
        self.files().open.remove(&file.at);
        self.completed.notify_all();
    }

    /// Waits until a file has its content and its name, and tells what is wrong with it.
    fn fate(&self, file: Node) -> Option<Fate> {
        let mut files = self.files();
        while files.open.contains(&file.at) {
            files = self.completed.wait(files).unwrap_or_else(PoisonError::into_inner);
        }
        files.fates.get(&file.at).copied()
    }

    fn is_over(&self) -> bool {
        self.failed.load(Ordering::Relaxed) || self.cancel.is_cancelled()
    }
}

/// An error and its causes on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    text
}

/// A directory of the target. Gets its metadata when dropped.
struct Dir {
    parent: Option<Arc<Dir>>,
    name: Vec<u8>,
    metadata: Metadata,
    fd: OnceLock<OwnedFd>,
    shared: Arc<Shared>,
    depth: usize,
    /// it is the user's, not the archive's: its metadata stays
    bare: bool,
    /// what is wanted lies below it: where it was there, its metadata stays
    is_above: bool,
    /// it was not there before
    is_new: AtomicBool,
}

impl Dir {
    fn path(&self) -> Vec<u8> {
        let mut names = vec![&self.name[..]];
        let mut dir = self;
        while let Some(parent) = &dir.parent {
            names.push(&parent.name);
            dir = parent;
        }
        names.reverse();
        names.iter().filter(|name| !name.is_empty()).copied().collect::<Vec<_>>().join(&b'/')
    }

    fn path_of(&self, name: &[u8]) -> String {
        let mut path = self.path();
        if !path.is_empty() && !name.is_empty() {
            path.push(b'/');
        }
        path.extend(name);
        // The root has no name.
        if path.is_empty() { "/".into() } else { shown_path(&path) }
    }

    fn error(&self, name: &[u8], trouble: Trouble) -> EngineError {
        let source = std::io::Error::from(trouble.error);
        let mut problem = format!("failed to {}: {source}", trouble.step);
        if trouble.step == "set owner" && trouble.error == rustix::io::Errno::PERM {
            problem += " (use --ignore-ownership to restore without root)";
        }
        if trouble.error == rustix::io::Errno::PERM {
            match trouble.step {
                "create special file" => {
                    problem += " (use --ignore-extract-device-errors to do without it)";
                }
                "overwrite" | "create file" | "create hard link" | "create directory" => {
                    problem += " (is something append-only or immutable? see lsattr and chattr)";
                }
                _ => {}
            }
        }
        if trouble.step == "set file capabilities" && trouble.error == rustix::io::Errno::PERM {
            problem += " (use --ignore-fcaps to restore without root)";
        }
        EngineError::Entry { path: self.path_of(name), problem }
    }

    /// Something in this directory can't be had.
    fn lost(&self, what: &str, failure: Failure) -> EngineError {
        let problem = format!("{what} can't be read: {failure}");
        EngineError::Lost { path: self.path_of(b""), problem }
    }

    /// The directory itself, made when it is first needed.
    fn open(&self) -> Result<BorrowedFd<'_>> {
        if let Some(fd) = self.fd.get() {
            return Ok(fd.as_fd());
        }
        let parent = self.parent.as_ref().ok_or(EngineError::Worker)?;
        let made = output::make_directory(
            parent.open()?,
            &self.name,
            &self.metadata,
            &self.shared.options,
        );
        let (fd, is_new) = made.map_err(|trouble| parent.error(&self.name, trouble))?;
        self.is_new.store(is_new, Ordering::Relaxed);
        Ok(self.fd.get_or_init(|| fd).as_fd())
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let Some(fd) = self.fd.get() else { return };
        let is_new = self.is_new.load(Ordering::Relaxed);
        if self.bare || self.is_above && !is_new || self.shared.is_over() {
            return;
        }
        let options = &self.shared.options;
        if is_new {
            output::narrow(fd.as_fd(), &self.metadata, options);
        }
        let applied = output::apply(fd.as_fd(), &self.metadata, options);
        let sealed = output::seal(fd.as_fd(), &self.metadata);
        if let Err(trouble) = applied.and(sealed) {
            let error = self.error(b"", trouble);
            self.shared.trouble(error);
        }
    }
}

/// A file that is being written by several threads. Finished when dropped.
struct OpenFile {
    dir: Arc<Dir>,
    name: Vec<u8>,
    node: Node,
    metadata: Metadata,
    file: File,
    /// the name under which it is written, where another is to be replaced
    temporary: Option<Vec<u8>>,
    damaged: AtomicBool,
    /// metadata of a single file is not restored, only content
    bare: bool,
}

impl OpenFile {
    fn complete(&self) -> Result<()> {
        let shared = &self.dir.shared;
        let damaged = self.damaged.load(Ordering::Relaxed);
        let written_as = self.temporary.as_deref().unwrap_or(&self.name);
        if shared.is_over() || damaged && !shared.keep_going {
            // Half a file is worse than none.
            rustix::fs::unlinkat(self.dir.open()?, written_as, rustix::fs::AtFlags::empty())
                .unwrap_or_default();
            shared.note(self.node, Fate::Missing);
            return Ok(());
        }
        if damaged {
            shared.note(self.node, Fate::Damaged);
        }
        let trouble = |trouble| self.dir.error(&self.name, trouble);
        let fd = self.file.as_fd();
        let applied = match self.bare {
            true => Ok(()),
            false => output::apply(fd, &self.metadata, &shared.options).map_err(trouble),
        };
        if let Some(temporary) = &self.temporary {
            let place = if self.bare { output::put_in_new_place } else { output::put_in_place };
            let placed = place(self.dir.open()?, temporary, &self.name);
            placed.map_err(|failed| {
                shared.note(self.node, Fate::Missing);
                trouble(failed)
            })?;
        }
        let sealed = match self.bare {
            true => Ok(()),
            false => output::seal(fd, &self.metadata).map_err(trouble),
        };
        applied.and(sealed)
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        if let Err(error) = self.complete() {
            self.dir.shared.trouble(error);
        }
        self.dir.shared.leave_file(self.node);
    }
}

/// A part of a file for a writer.
struct Job {
    file: Arc<OpenFile>,
    part: ContentPart,
    offset: u64,
}

fn write_parts(jobs: &Receiver<Job>) {
    jobs.iter().for_each(|job| job.write());
}

impl Job {
    fn write(self) {
        let job = self;
        let shared = &job.file.dir.shared;
        if shared.is_over() {
            return;
        }
        let written = shared.content.fetch(&job.part).and_then(|fetched| {
            let bytes = &fetched.bytes[fetched.from..fetched.to];
            let path = job.file.dir.path_of(&job.file.name);
            output::write_sparsely(&job.file.file, bytes, job.offset)
                .map_err(io_error("write", path))
        });
        Counters::add(&shared.counters.bytes, (job.part.to - job.part.from) as u64);
        if let Err(error) = written {
            job.file.damaged.store(true, Ordering::Relaxed);
            let path = job.file.dir.path_of(&job.file.name);
            let end = job.offset + (job.part.to - job.part.from) as u64;
            let problem = format!("bytes {} to {end}: {}", job.offset, chain(&error));
            shared.trouble(match error {
                error if error.is_damage() => EngineError::Lost { path, problem },
                _ => EngineError::Entry { path, problem },
            });
        }
    }
}

/// What became of a restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestoreSummary {
    pub entries: u64,
    pub bytes: u64,
}

/// Restores one archive.
pub struct Restore {
    pub request: RestoreRequest,
    pub content: Arc<dyn ContentSource>,
    pub cancel: Cancel,
    pub counters: Arc<Counters>,
    /// hears of each thing that could not be restored, with `keep_going`
    pub on_trouble: Box<dyn Fn(&str) + Send + Sync>,
}

impl Restore {
    /// Restores all that the patterns select of `archive` into `target`: a directory, or a new
    /// file where the archive is one.
    pub fn run(self, archive: &mut dyn Archive, target: &Path) -> Result<RestoreSummary> {
        let selects = !self.request.patterns.is_empty();
        let is_new = target.symlink_metadata().is_err();
        let outcome = self.run_into(archive, target);
        let is_nothing = match &outcome {
            Ok(summary) => selects && summary.entries == 0,
            Err(_) => true,
        };
        if is_new && is_nothing {
            // Where there is something in it, it stays.
            let _ = std::fs::remove_dir(target);
        }
        outcome
    }

    fn run_into(self, archive: &mut dyn Archive, target: &Path) -> Result<RestoreSummary> {
        let Self { mut request, content, cancel, counters, on_trouble } = self;
        // All of them, before anything is written.
        let paths = std::mem::take(&mut request.paths);
        let is_selection = !paths.is_empty();
        let mut found_damage = None;
        match browse::find_all(archive, paths.clone()) {
            Ok(found) => request.paths = found.into_iter().map(|(path, _)| path).collect(),
            // A table on the way is damaged: what the walk finds of them is restored.
            Err(error) if error.is_damage() && request.keep_going => {
                found_damage = Some(error);
                // The root is everything, as no pattern is.
                for path in paths.iter().filter(|_| !paths.contains(&Vec::new())) {
                    request.patterns.include_path(path);
                }
            }
            Err(error) => return Err(error),
        }
        // Of the root itself nothing is wanted, and it may lie far from what is.
        let root = match request.paths.is_empty() {
            true => archive.root(),
            false => Ok(lost_directory(Vec::new(), Node::ROOT)),
        };
        let (root, root_problem) = match root {
            Ok(root) => (root, None),
            // What is in it can be found from the other end.
            Err(failure) if request.keep_going && !request.sequential => {
                (lost_directory(Vec::new(), Node::ROOT), Some(failure))
            }
            Err(failure) => return Err(failure.into()),
        };
        if root.metadata.kind != EntryKind::Directory && !request.patterns.is_empty() {
            let problem = "the archive is one file: --pattern selects in trees of files only";
            return Err(EngineError::Refused(problem.into()));
        }
        let shared = Arc::new(Shared {
            content,
            options: request.options,
            keep_going: request.keep_going,
            cancel,
            counters,
            failed: AtomicBool::new(false),
            first: Mutex::default(),
            troubles: AtomicU64::new(0),
            files: Mutex::default(),
            completed: Condvar::new(),
            on_trouble,
        });
        if let Some(error) = found_damage {
            shared.trouble(error);
        }
        let threads = thread::available_parallelism().map_or(2, usize::from).clamp(2, 8);
        let (jobs, queue) = bounded(QUEUE_JOBS);
        let outcome = thread::scope(|scope| {
            for _ in 0..threads {
                let queue = queue.clone();
                scope.spawn(move || write_parts(&queue));
            }
            drop(queue);
            let RestoreRequest { patterns, paths, sequential, .. } = &request;
            let hasher = RandomState::new();
            let mut walk = Walk {
                shared: &shared,
                jobs,
                patterns,
                paths,
                is_selection,
                sequential: *sequential,
                skipped: 0,
                hasher,
                moved: HashMap::new(),
            };
            match root.metadata.kind {
                EntryKind::Directory => walk.directory(archive, root, root_problem, target),
                _ => walk.single_file(&root, target),
            }
        });
        let first = shared.first.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(error) = first {
            return Err(error);
        }
        if shared.cancel.is_cancelled() {
            return Err(EngineError::Cancelled);
        }
        outcome?;
        match shared.troubles.load(Ordering::Relaxed) {
            0 => Ok(RestoreSummary {
                entries: Counters::get(&shared.counters.entries),
                bytes: Counters::get(&shared.counters.bytes),
            }),
            troubles => Err(EngineError::Incomplete(troubles)),
        }
    }
}

/// A directory of which nothing is known but where it lies.
fn lost_directory(name: Vec<u8>, node: Node) -> Entry {
    let metadata = Metadata { mode: 0o700, ..Metadata::of_kind(EntryKind::Directory) };
    Entry { name, node, metadata, content: Content::None }
}

/// The walking thread's own.
struct Walk<'a> {
    shared: &'a Arc<Shared>,
    jobs: Sender<Job>,
    patterns: &'a PatternList,
    paths: &'a [EntryPath],
    /// paths were asked for: directories above them are not
    is_selection: bool,
    sequential: bool,
    /// directories entered below one that can't be restored
    skipped: u64,
    hasher: RandomState,
    /// files restored under another name than their first, by the place of that: their own entry,
    /// and where they are
    moved: HashMap<u64, (Node, Vec<Vec<u8>>)>,
}

/// An open directory of the walk, and whether what is in it is wanted unless a pattern says
/// otherwise.
struct Level {
    dir: Arc<Dir>,
    path: Vec<u8>,
    wanted: bool,
    /// the child met last, and its name
    last: Option<Node>,
    last_name: Vec<u8>,
    /// hashes of all names met, where one could take the place of another
    names: HashSet<u64>,
}

impl Level {
    fn new(dir: Arc<Dir>, path: Vec<u8>, wanted: bool) -> Self {
        let (last, last_name, names) = (None, Vec::new(), HashSet::new());
        Self { dir, path, wanted, last, last_name, names }
    }

    /// Notes a child. Two of one name are no work of a file system: where nothing is overwritten,
    /// the second fails by itself unless they stand beside each other.
    fn meet(&mut self, entry: &Entry, hash: Option<u64>) -> Result<()> {
        let twice = self.last.is_some() && self.last_name == entry.name
            || hash.is_some_and(|hash| !self.names.insert(hash));
        self.last = Some(entry.node);
        self.last_name.clone_from(&entry.name);
        match twice {
            false => Ok(()),
            true => Err(EngineError::Entry {
                path: self.dir.path_of(&entry.name),
                problem: "the archive has two entries of this name".into(),
            }),
        }
    }

    /// The walk ended here.
    fn lost(&self, failure: Failure) -> EngineError {
        let what = match shown_path(&self.last_name) {
            name if name.is_empty() => "what is in it".to_owned(),
            name => format!("what follows '{name}' in it"),
        };
        self.dir.lost(&what, failure)
    }
}

impl Walk<'_> {
    fn directory(
        &mut self,
        archive: &mut dyn Archive,
        root: Entry,
        root_problem: Option<Failure>,
        target: &Path,
    ) -> Result<()> {
        let shown = target.display().to_string();
        // Where something is chosen, a directory that is there stays as it is.
        let stays = !self.patterns.is_empty() && target.symlink_metadata().is_ok();
        let mut builder = std::fs::DirBuilder::new();
        let made = builder.mode(0o700).recursive(true).create(target);
        made.map_err(io_error("create target directory", &*shown))?;
        let fd = OwnedFd::from(File::open(target).map_err(io_error("open target", &*shown))?);
        let dir = Arc::new(Dir {
            parent: None,
            name: Vec::new(),
            metadata: root.metadata,
            fd: OnceLock::from(fd),
            shared: self.shared.clone(),
            depth: 0,
            bare: root_problem.is_some() || self.is_selection || stays,
            is_above: false,
            is_new: AtomicBool::new(false),
        });
        let (wanted, root_node) = (self.patterns.is_empty(), root.node);
        let mut levels = vec![Level::new(dir, Vec::new(), wanted)];
        let walked = match root_problem {
            Some(failure) => Err(failure.into()),
            None if !self.paths.is_empty() => return self.look_up(archive, &mut levels),
            None => self.walk(archive, &mut levels),
        };
        match walked {
            // The archive itself is damaged: what lies behind can be found through its tables.
            Err(EngineError::Plugin(failure)) if self.shared.keep_going && !self.sequential => {
                self.shared.trouble(failure.into());
                self.salvage(archive, root_node, &mut levels)
            }
            Err(EngineError::Plugin(failure @ (Failure::Corrupt(_) | Failure::Io(_)))) => {
                Err(levels.last().map_or(EngineError::Worker, |level| level.lost(failure)))
            }
            other => other,
        }
    }

    /// Each path, and what lies below it.
    fn look_up(&mut self, archive: &mut dyn Archive, levels: &mut Vec<Level>) -> Result<()> {
        let mut nodes = vec![Node::ROOT];
        let mut open: &[Vec<u8>] = &[];
        for path in self.paths {
            let Some((name, above)) = path.split_last() else {
                return self.below(archive, Node::ROOT, None, levels);
            };
            // Directories that this path shares with the one before stay open.
            let shared = open.iter().zip(above).take_while(|(open, name)| open == name).count();
            levels.truncate(1 + shared);
            nodes.truncate(1 + shared);
            open = above;
            for name in &above[shared..] {
                let entry = self.entry_of(archive, &nodes, path, name)?;
                nodes.push(entry.node);
                self.choose(levels, false);
                self.event(archive, Event::Enter(entry), levels)?;
            }
            let entry = self.entry_of(archive, &nodes, path, name)?;
            self.choose(levels, true);
            self.child(archive, entry, levels)?;
            if self.shared.is_over() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Whether what comes next in the directory that is open is wanted.
    fn choose(&self, levels: &mut [Level], wanted: bool) {
        if let Some(top) = levels.last_mut() {
            top.wanted = wanted;
        }
    }

    fn entry_of(
        &self,
        archive: &mut dyn Archive,
        nodes: &[Node],
        path: &[Vec<u8>],
        name: &[u8],
    ) -> Result<Entry> {
        let directory = *nodes.last().unwrap_or(&Node::ROOT);
        archive.child(directory, name)?.ok_or_else(|| browse::not_found(path))
    }

    /// Everything, in the order of the archive.
    fn walk(&mut self, archive: &mut dyn Archive, levels: &mut Vec<Level>) -> Result<()> {
        archive.start_walk()?;
        loop {
            let events = archive.walk(if self.sequential { 1 } else { WALK_BATCH })?;
            if events.is_empty() || self.shared.is_over() {
                return Ok(());
            }
            for event in events {
                self.event_or_trouble(archive, event, levels)?;
                if self.shared.is_over() {
                    return Ok(());
                }
            }
        }
    }

    /// Without `keep_going` an error ends the walk; what was begun before is completed.
    fn event_or_trouble(
        &mut self,
        archive: &mut dyn Archive,
        event: Event,
        levels: &mut Vec<Level>,
    ) -> Result<()> {
        match self.event(archive, event, levels) {
            Err(error) if self.shared.keep_going => {
                self.shared.trouble(error);
                Ok(())
            }
            other => other,
        }
    }

    /// Goes on after a walk that failed: with what follows in each directory that was open.
    fn salvage(
        &mut self,
        archive: &mut dyn Archive,
        root: Node,
        levels: &mut Vec<Level>,
    ) -> Result<()> {
        let mut nodes = vec![root];
        for level in &levels[1..] {
            let parent = *nodes.last().unwrap_or(&root);
            match archive.child(parent, &level.dir.name) {
                Ok(Some(entry)) => nodes.push(entry.node),
                Ok(None) => break,
                Err(failure) => {
                    self.shared.trouble(level.dir.lost("the rest of it", failure));
                    break;
                }
            }
        }
        levels.truncate(nodes.len());
        while let (Some(level), Some(node)) = (levels.last(), nodes.pop()) {
            let after = level.last;
            self.below(archive, node, after, levels)?;
            levels.pop();
        }
        Ok(())
    }

    /// Everything in a directory behind `after`, through its table.
    fn below(
        &mut self,
        archive: &mut dyn Archive,
        directory: Node,
        mut after: Option<Node>,
        levels: &mut Vec<Level>,
    ) -> Result<()> {
        while let Some(top) = levels.last().filter(|_| !self.shared.is_over()) {
            let children = match archive.children(directory, after, WALK_BATCH) {
                Ok(children) if children.is_empty() => return Ok(()),
                Ok(children) => children,
                Err(failure) => {
                    self.shared.trouble(top.dir.lost("the rest of it", failure));
                    return Ok(());
                }
            };
            for child in children {
                match child {
                    Err((node, failure)) => {
                        after = Some(node);
                        if let Some(top) = levels.last() {
                            self.shared.trouble(top.dir.lost("an entry in it", failure));
                        }
                        self.salvage_nameless(archive, node, levels)?;
                    }
                    Ok(entry) => {
                        after = Some(entry.node);
                        self.child(archive, entry, levels)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// An entry of the directory that is open, and what lies below it.
    fn child(
        &mut self,
        archive: &mut dyn Archive,
        entry: Entry,
        levels: &mut Vec<Level>,
    ) -> Result<()> {
        if entry.metadata.kind != EntryKind::Directory {
            return self.event_or_trouble(archive, Event::Leaf(entry), levels);
        }
        let node = entry.node;
        self.event_or_trouble(archive, Event::Enter(entry), levels)?;
        if self.skipped == 0 {
            self.below(archive, node, None, levels)?;
        }
        self.event_or_trouble(archive, Event::Leave, levels)
    }

    /// Where an entry is lost, but was a directory whose table is not, what is in that is restored
    /// into one with another name.
    fn salvage_nameless(
        &mut self,
        archive: &mut dyn Archive,
        node: Node,
        levels: &mut Vec<Level>,
    ) -> Result<()> {
        let is_directory = archive.children(node, None, 1).is_ok_and(|found| !found.is_empty());
        if !is_directory || self.skipped > 0 || !self.patterns.is_empty() {
            return Ok(());
        }
        let name = format!("keepwell-lost-{}", node.at).into_bytes();
        self.event_or_trouble(archive, Event::Enter(lost_directory(name, node)), levels)?;
        if self.skipped == 0 {
            self.below(archive, node, None, levels)?;
        }
        self.event_or_trouble(archive, Event::Leave, levels)
    }

    fn event(
        &mut self,
        archive: &mut dyn Archive,
        event: Event,
        levels: &mut Vec<Level>,
    ) -> Result<()> {
        if self.skipped > 0 {
            match event {
                Event::Enter(_) => self.skipped += 1,
                Event::Leave => self.skipped -= 1,
                Event::Leaf(entry) => self.shared.note(entry.node, Fate::Missing),
            }
            return Ok(());
        }
        match event {
            Event::Leave => {
                if levels.len() > 1 {
                    levels.pop();
                }
                Ok(())
            }
            Event::Enter(entry) => {
                let Some(top) = levels.last_mut() else { return Ok(()) };
                if let Err(twice) = top.meet(&entry, self.hash(&entry)) {
                    self.skipped = 1;
                    return Err(twice);
                }
                let (path, wanted) = self.judge(top, &entry);
                if top.dir.depth >= DEPTH_MAX {
                    self.skipped = 1;
                    let problem = format!("directories are nested more than {DEPTH_MAX} deep");
                    return Err(EngineError::Entry { path: top.dir.path_of(&entry.name), problem });
                }
                let dir = Arc::new(Dir {
                    parent: Some(top.dir.clone()),
                    name: entry.name,
                    metadata: entry.metadata,
                    fd: OnceLock::new(),
                    shared: self.shared.clone(),
                    depth: top.dir.depth + 1,
                    bare: false,
                    is_above: self.is_selection && !wanted,
                    is_new: AtomicBool::new(false),
                });
                // It is on the stack even where it can't be made: what is in it must not end up
                // in its parent.
                levels.push(Level::new(dir.clone(), path, wanted));
                if wanted {
                    if let Err(error) = dir.open() {
                        // Nothing in it can be restored, either.
                        levels.pop();
                        self.skipped = 1;
                        return Err(error);
                    }
                    Counters::add(&self.shared.counters.entries, 1);
                }
                Ok(())
            }
            Event::Leaf(entry) => {
                let Some(top) = levels.last_mut() else { return Ok(()) };
                let node = entry.node;
                let met = top.meet(&entry, self.hash(&entry));
                let (_, wanted) = self.judge(top, &entry);
                let dir = top.dir.clone();
                if !wanted {
                    return met;
                }
                let made = met.and_then(|()| self.leaf(archive, &dir, &levels[0].dir, entry));
                made.inspect_err(|_| self.shared.note(node, Fate::Missing))
            }
        }
    }

    /// The name's hash, where what has a name may be overwritten.
    fn hash(&self, entry: &Entry) -> Option<u64> {
        let options = &self.shared.options;
        let overwrites = options.allow_existing_dirs
            || options.overwrite_files
            || options.overwrite_symlinks
            || options.overwrite_hardlinks;
        overwrites.then(|| self.hasher.hash_one(&entry.name))
    }

    /// Whether the file at this path is selected.
    fn selects(&self, path: &[Vec<u8>]) -> bool {
        if !self.paths.is_empty() {
            return self.paths.iter().any(|chosen| path.starts_with(chosen));
        }
        let mut wanted = self.patterns.is_empty();
        let mut above = Vec::new();
        for (position, name) in path.iter().enumerate() {
            above.push(b'/');
            above.extend(name);
            wanted = match self.patterns.judge(&above, position + 1 < path.len()) {
                Verdict::Include => true,
                Verdict::Exclude => false,
                Verdict::None => wanted,
            };
        }
        wanted
    }

    /// The entry's path and whether it is wanted.
    fn judge(&self, level: &Level, entry: &Entry) -> (Vec<u8>, bool) {
        if self.patterns.is_empty() {
            return (Vec::new(), level.wanted);
        }
        let mut path = level.path.clone();
        path.push(b'/');
        path.extend(&entry.name);
        let is_directory = entry.metadata.kind == EntryKind::Directory;
        let wanted = match self.patterns.judge(&path, is_directory) {
            Verdict::Include => true,
            Verdict::Exclude => false,
            Verdict::None => level.wanted,
        };
        (path, wanted)
    }

    fn leaf(
        &mut self,
        archive: &mut dyn Archive,
        dir: &Arc<Dir>,
        root: &Arc<Dir>,
        entry: Entry,
    ) -> Result<()> {
        Counters::add(&self.shared.counters.entries, 1);
        let options = &self.shared.options;
        match (&entry.content, entry.metadata.kind) {
            (Content::HardLink { node, path }, _) => {
                let shown = || shown_path(&path.join(&b'/'));
                let at = dir.path_of(&entry.name);
                let moved;
                let (node, path) = match self.moved.get(&node.at) {
                    _ if self.selects(path) => (*node, path),
                    Some((first, at)) => {
                        moved = at.clone();
                        (*first, &moved)
                    }
                    None => return self.moved_file(archive, dir, entry),
                };
                // Under the target's name may be something else, or not all of it yet.
                let fate = self.shared.fate(node);
                if fate == Some(Fate::Missing) {
                    let problem =
                        format!("it is one more name of \"{}\", which was not restored", shown());
                    return Err(EngineError::Entry { path: at, problem });
                }
                output::make_hard_link(root.open()?, path, dir.open()?, &entry.name, options)
                    .map_err(|trouble| dir.error(&entry.name, trouble))?;
                match fate {
                    None => Ok(()),
                    Some(_) => {
                        let problem =
                            format!("it is one more name of \"{}\", which is damaged", shown());
                        Err(EngineError::Lost { path: at, problem })
                    }
                }
            }
            (_, EntryKind::File) => self.file(dir, entry),
            _ => output::make_special(dir.open()?, &entry.name, &entry.metadata, options)
                .map_err(|trouble| dir.error(&entry.name, trouble)),
        }
    }

    /// A file whose first name was not selected is restored under this one, which further links
    /// will be made to.
    fn moved_file(
        &mut self,
        archive: &mut dyn Archive,
        dir: &Arc<Dir>,
        entry: Entry,
    ) -> Result<()> {
        let Entry { name, node, content, .. } = entry;
        let Content::HardLink { node: first, path } = content else { return Ok(()) };
        let at = dir.path_of(&name);
        let shown = shown_path(&path.join(&b'/'));
        let refused = |problem: String| EngineError::Entry { path: at.clone(), problem };
        let target = archive.entry(first).map_err(|failure| {
            refused(format!(
                "its content is that of \"{shown}\", which was not selected: {failure}"
            ))
        })?;
        let is_other = path.last().is_some_and(|last| *last != target.name);
        if is_other
            || target.metadata.kind == EntryKind::Directory
            || matches!(target.content, Content::HardLink { .. })
        {
            return Err(refused(format!("it is a hard link to \"{shown}\", which is no file")));
        }
        if self.moved.len() < MOVED_MAX {
            let mut place =
                dir.path().split(|byte| *byte == b'/').map(<[u8]>::to_vec).collect::<Vec<_>>();
            place.retain(|name| !name.is_empty());
            place.push(name.clone());
            self.moved.insert(first.at, (node, place));
        }
        match target.metadata.kind {
            EntryKind::File => self.file(dir, Entry { name, node, ..target }),
            _ => {
                let options = &self.shared.options;
                output::make_special(dir.open()?, &name, &target.metadata, options)
                    .map_err(|trouble| dir.error(&name, trouble))
            }
        }
    }

    fn file(&mut self, dir: &Arc<Dir>, entry: Entry) -> Result<()> {
        let Entry { name, metadata, content, node } = entry;
        let extents = match content {
            Content::Stored(extents) => extents,
            Content::None => Vec::new(),
            Content::Computed | Content::HardLink { .. } => {
                let problem = "content that the plugin computes can't be restored yet".into();
                return Err(EngineError::Entry { path: dir.path_of(&name), problem });
            }
        };
        let total = extents.iter().try_fold(0u64, |sum, extent| sum.checked_add(extent.length));
        if total != Some(metadata.size) {
            let problem = "its content is not as long as its size says".into();
            return Err(EngineError::Entry { path: dir.path_of(&name), problem });
        }
        let made = output::make_file(dir.open()?, &name, &metadata, &self.shared.options);
        let NewFile { file, temporary } = made.map_err(|trouble| dir.error(&name, trouble))?;
        self.shared.files().open.insert(node.at);
        let file = OpenFile {
            dir: dir.clone(),
            name,
            node,
            metadata,
            file,
            temporary,
            damaged: AtomicBool::new(false),
            bare: false,
        };
        self.queue(file, &extents)
    }

    /// Hands the content to the writers.
    fn queue(&mut self, file: OpenFile, extents: &[Extent]) -> Result<()> {
        let file = Arc::new(file);
        let mut offset = 0;
        for extent in extents {
            let content = self.shared.content.clone();
            let Some(parts) = content.parts(*extent) else {
                file.damaged.store(true, Ordering::Relaxed);
                let path = file.dir.path_of(&file.name);
                let problem = "its content lies outside of the archive".into();
                return Err(EngineError::Entry { path, problem });
            };
            for part in parts {
                let damaged = self.sequential && file.damaged.load(Ordering::Relaxed);
                if damaged || self.shared.is_over() {
                    return Ok(());
                }
                let length = (part.to - part.from) as u64;
                let job = Job { file: file.clone(), part, offset };
                if self.sequential {
                    job.write();
                } else {
                    self.jobs.send(job).map_err(|_| EngineError::Worker)?;
                }
                offset += length;
            }
        }
        Ok(())
    }

    /// An archive that is one file becomes a new file.
    fn single_file(&mut self, root: &Entry, target: &Path) -> Result<()> {
        let shown = target.display().to_string();
        let cannot = || io_error("create target file", shown.clone());
        let Content::Stored(extents) = &root.content else {
            return Err(EngineError::Refused("the archive has no content".into()));
        };
        let parent = match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        let name = target
            .file_name()
            .ok_or_else(|| EngineError::Refused(format!("'{shown}' is no name for a file")))?;
        let mut options = std::fs::OpenOptions::new();
        if target.metadata().is_ok_and(|metadata| metadata.file_type().is_block_device()) {
            let problem = "is a device: restore to '-' and write that to it (… - > DEVICE)";
            return Err(EngineError::Refused(format!("'{shown}' {problem}")));
        }
        if target.symlink_metadata().is_ok() {
            return Err(cannot()(std::io::Error::from(rustix::io::Errno::EXIST)));
        }
        // Under its name it would look complete, whatever ends the restore.
        let temporary = output::temporary_name();
        let written_as = parent.join(OsStr::from_bytes(&temporary));
        let file = options.write(true).create_new(true).open(&written_as).map_err(cannot())?;
        file.set_len(root.metadata.size).map_err(|error| {
            let _ = std::fs::remove_file(&written_as);
            cannot()(error)
        })?;
        let fd = OwnedFd::from(File::open(&parent).map_err(cannot())?);
        let dir = Arc::new(Dir {
            parent: None,
            name: Vec::new(),
            metadata: Metadata::of_kind(EntryKind::Directory),
            fd: OnceLock::from(fd),
            shared: self.shared.clone(),
            depth: 0,
            bare: true,
            is_above: false,
            is_new: AtomicBool::new(false),
        });
        let file = OpenFile {
            dir,
            node: root.node,
            name: name.as_bytes().to_vec(),
            metadata: root.metadata.clone(),
            file,
            temporary: Some(temporary),
            damaged: AtomicBool::new(false),
            bare: true,
        };
        Counters::add(&self.shared.counters.entries, 1);
        self.queue(file, extents)
    }
}
