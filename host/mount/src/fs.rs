//! Answers the kernel.

use crate::Log;
use crate::archive::{Lazy, OpenArchive, Problem, entry_at};
use crate::directory::{Child, Directory};
use crate::inode::{Inodes, Item, Key};
use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    IoctlFlags, KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyOpen, ReplyStatfs, ReplyXattr,
    Request,
};
use keepwell_engine::browse;
use keepwell_engine::plugin::{Entry, EntryKind, Node, Timestamp};
use std::collections::{HashMap, VecDeque};
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// What is in an archive stays as it is.
const FOREVER: Duration = Duration::from_secs(365 * 86_400);
/// What lists backups may change.
const SOON: Duration = Duration::from_secs(1);
/// Children asked of an archive at a time.
const BATCH: u32 = 512;
/// Archives that are open at a time; each has a cache of chunks.
const OPEN_MAX: usize = 4;
/// Entries kept for the requests that follow their being listed, and bytes of their attributes.
const ENTRIES_KEPT: usize = 4096;
const ENTRY_BYTES_KEPT: usize = 8 << 20;
const NAME_BYTES_MAX: u32 = 255;
const BLOCK_BYTES: u32 = 4096;
/// After which the log says the same again.
const TOLD_AGAIN: Duration = Duration::from_secs(10);
/// `FS_IOC_GETFLAGS`, which the kernel asks for with room for 4 bytes.
const GET_FLAGS: u32 = 0x8008_6601;

type Result<T> = std::result::Result<T, Problem>;

/// Places of entries: archive, place.
type Place = (u64, u64);

/// Entries met of late: a young generation and the one before.
#[derive(Default)]
struct Recent {
    young: HashMap<Place, Arc<Entry>>,
    old: HashMap<Place, Arc<Entry>>,
    bytes: usize,
}

impl Recent {
    fn get(&self, place: &Place) -> Option<Arc<Entry>> {
        self.young.get(place).or_else(|| self.old.get(place)).cloned()
    }

    fn put(&mut self, place: Place, entry: Arc<Entry>) {
        if self.young.len() >= ENTRIES_KEPT || self.bytes >= ENTRY_BYTES_KEPT {
            self.old = std::mem::take(&mut self.young);
            self.bytes = 0;
        }
        self.bytes += entry.metadata.extended.iter().map(|(_, value)| value.len()).sum::<usize>();
        self.young.insert(place, entry);
    }
}

/// A file that is open.
#[derive(Clone)]
struct OpenFile {
    archive: Arc<OpenArchive>,
    entry: Arc<Entry>,
}

/// A name in a directory that is being listed.
enum Listed {
    Entry(Vec<u8>, Arc<Entry>),
    Child(Vec<u8>, Item, bool, i64),
}

/// How far a directory is listed.
#[derive(Default)]
struct Listing {
    batch: Vec<Listed>,
    /// how many children came before the batch
    first: u64,
    last: Option<Node>,
    is_whole: bool,
}

/// A directory that is open.
struct OpenDirectory {
    number: u64,
    item: Item,
    listing: Mutex<Listing>,
}

pub(crate) struct Fs {
    log: Log,
    last_told: Mutex<Option<(String, Instant)>>,
    inodes: Mutex<Inodes>,
    recent: Mutex<Recent>,
    open: Mutex<VecDeque<Arc<Lazy>>>,
    files: Mutex<HashMap<u64, OpenFile>>,
    directories: Mutex<HashMap<u64, Arc<OpenDirectory>>>,
    next_handle: AtomicU64,
    /// who mounts: owner of what is in no archive
    owner: (u32, u32),
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Fs {
    pub(crate) fn new(root: Item, log: Log) -> Self {
        let owner = std::fs::metadata("/proc/self").map_or((0, 0), |me| (me.uid(), me.gid()));
        Self {
            log,
            last_told: Mutex::default(),
            inodes: Mutex::new(Inodes::new(root)),
            recent: Mutex::default(),
            open: Mutex::default(),
            files: Mutex::default(),
            directories: Mutex::default(),
            next_handle: AtomicU64::new(1),
            owner,
        }
    }

    /// What the kernel is told of a problem, once the log has it. It may ask again and again.
    fn told(&self, problem: Problem) -> Errno {
        if !problem.text.is_empty() {
            let mut last = locked(&self.last_told);
            let is_new = last
                .as_ref()
                .is_none_or(|(text, when)| *text != problem.text || when.elapsed() > TOLD_AGAIN);
            if is_new {
                (self.log)(&problem.text);
                *last = Some((problem.text, Instant::now()));
            }
        }
        problem.errno
    }

    fn item(&self, number: INodeNo) -> Result<Item> {
        locked(&self.inodes).item(number.0).ok_or_else(Problem::missing)
    }

    fn archive(&self, lazy: &Arc<Lazy>) -> Result<Arc<OpenArchive>> {
        let (archive, is_new) = lazy.open()?;
        if is_new {
            let mut open = locked(&self.open);
            open.push_back(lazy.clone());
            if open.len() > OPEN_MAX
                && let Some(oldest) = open.pop_front()
            {
                oldest.close();
            }
        }
        Ok(archive)
    }

    /// Asks an archive something. A plugin that died is of no more use.
    fn ask<T>(
        &self,
        lazy: &Arc<Lazy>,
        ask: impl FnOnce(&mut dyn keepwell_engine::plugin::Archive) -> Result<T>,
    ) -> Result<T> {
        let archive = self.archive(lazy)?;
        archive.with(ask).inspect_err(|problem| {
            if problem.is_fatal {
                lazy.close();
            }
        })
    }

    fn keep(&self, lazy: &Lazy, entry: Entry) -> Arc<Entry> {
        let entry = Arc::new(entry);
        locked(&self.recent).put((lazy.id, entry.node.at), entry.clone());
        entry
    }

    fn entry(&self, lazy: &Arc<Lazy>, node: Node) -> Result<Arc<Entry>> {
        if let Some(entry) = locked(&self.recent).get(&(lazy.id, node.at)) {
            return Ok(entry);
        }
        let entry = self.ask(lazy, |archive| entry_at(archive, node))?;
        Ok(self.keep(lazy, entry))
    }

    /// The archived entry that a number stands for.
    fn entry_of(&self, number: INodeNo) -> Result<(Arc<Lazy>, Arc<Entry>)> {
        match self.item(number)? {
            Item::Directory(_) => Err(Problem::of(Errno::EISDIR)),
            Item::Entry { archive, node } => {
                let entry = self.entry(&archive, node)?;
                Ok((archive, entry))
            }
        }
    }

    fn attributes(&self, number: u64, item: &Item) -> Result<FileAttr> {
        match item {
            Item::Directory(directory) => Ok(self.plain(number, true, directory.modified())),
            Item::Entry { archive, node } => {
                let entry = match self.entry(archive, *node) {
                    Ok(entry) => entry,
                    // What is in the root may be sound where the root itself is not.
                    Err(problem) if *node == Node::ROOT && problem.errno == Errno::EIO => {
                        self.told(problem);
                        return Ok(self.plain(number, true, 0));
                    }
                    Err(problem) => return Err(problem),
                };
                if *node == Node::ROOT && entry.metadata.kind == EntryKind::File {
                    // Such an archive knows nothing but the content.
                    let (size, plain) = (entry.metadata.size, self.plain(number, false, 0));
                    return Ok(FileAttr { size, blocks: size.div_ceil(512), ..plain });
                }
                Ok(attributes(number, &entry, self.archive(archive)?.links(&entry)))
            }
        }
    }

    /// Of what is in no archive.
    fn plain(&self, number: u64, is_directory: bool, modified: i64) -> FileAttr {
        let kind = if is_directory { FileType::Directory } else { FileType::RegularFile };
        let time = moment(Timestamp { seconds: modified, nanoseconds: 0 });
        FileAttr {
            ino: INodeNo(number),
            size: 0,
            blocks: 0,
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind,
            perm: if is_directory { 0o555 } else { 0o444 },
            nlink: 1,
            uid: self.owner.0,
            gid: self.owner.1,
            rdev: 0,
            blksize: BLOCK_BYTES,
            flags: 0,
        }
    }

    fn look_up(&self, parent: INodeNo, name: &OsStr) -> Result<(FileAttr, Duration)> {
        match self.item(parent)? {
            Item::Directory(directory) => {
                let found =
                    directory.list()?.into_iter().find(|(child, _)| child == name.as_bytes());
                let (name, child) = found.ok_or_else(Problem::missing)?;
                let key = Key::Named(parent.0, name);
                let (item, _, _) = self.child(&key, child);
                let attributes = self.attributes(0, &item)?;
                let number = locked(&self.inodes).tell(key, || item);
                Ok((FileAttr { ino: INodeNo(number), ..attributes }, SOON))
            }
            Item::Entry { archive, node } => {
                let entry = self.ask(&archive, |open| {
                    let found = open.child(node, name.as_bytes())?;
                    let found = found.ok_or_else(Problem::missing)?;
                    Ok(browse::resolve(open, found)?)
                })?;
                let entry = self.keep(&archive, entry);
                let links = self.archive(&archive)?.links(&entry);
                let number = self.tell(&archive, &entry);
                Ok((attributes(number, &entry, links), FOREVER))
            }
        }
    }

    fn tell(&self, archive: &Arc<Lazy>, entry: &Entry) -> u64 {
        let item = || Item::Entry { archive: archive.clone(), node: entry.node };
        locked(&self.inodes).tell(Key::Entry(archive.id, entry.node.at), item)
    }

    /// What a name stands for: what it stood for before, as long as the kernel remembers. Also whether
    /// it is a directory, and its time.
    fn child(&self, key: &Key, child: Child) -> (Item, bool, i64) {
        let known = locked(&self.inodes).known(key);
        match child {
            Child::Directory(directory) => {
                let modified = directory.modified();
                (known.unwrap_or(Item::Directory(directory)), true, modified)
            }
            Child::Archive(opener, is_directory) => {
                let new = || Item::Entry { archive: Arc::new(Lazy::new(opener)), node: Node::ROOT };
                (known.unwrap_or_else(new), is_directory, 0)
            }
        }
    }

    /// Fills the listing with the next children.
    fn list_on(&self, open: &OpenDirectory, listing: &mut Listing) -> Result<()> {
        listing.first += listing.batch.len() as u64;
        listing.batch.clear();
        let (lazy, node) = match &open.item {
            Item::Directory(directory) => {
                listing.batch = self.list_plain(open.number, &**directory)?;
                listing.is_whole = true;
                return Ok(());
            }
            Item::Entry { archive, node } => (archive, *node),
        };
        let (last, mut damaged) = (listing.last, Vec::new());
        let (found, last) = self.ask(lazy, |archive| {
            let (mut found, mut last) = (Vec::new(), last);
            for child in archive.children(node, last, BATCH)? {
                match child {
                    Ok(entry) => {
                        last = Some(entry.node);
                        let name = entry.name.clone();
                        match browse::resolve(archive, entry) {
                            Ok(entry) => found.push((name, entry)),
                            Err(error) => damaged.push(Problem::from(error)),
                        }
                    }
                    // It has no name that could be shown.
                    Err((node, failure)) => {
                        last = Some(node);
                        damaged.push(failure.into());
                    }
                }
            }
            Ok((found, last))
        })?;
        for problem in damaged {
            self.told(problem);
        }
        listing.is_whole = listing.last == last;
        listing.last = last;
        let kept =
            found.into_iter().map(|(name, entry)| Listed::Entry(name, self.keep(lazy, entry)));
        listing.batch = kept.collect();
        Ok(())
    }

    fn list_plain(&self, number: u64, directory: &dyn Directory) -> Result<Vec<Listed>> {
        let children = directory.list()?.into_iter();
        let listed = children.map(|(name, child)| {
            let (item, is_directory, modified) =
                self.child(&Key::Named(number, name.clone()), child);
            Listed::Child(name, item, is_directory, modified)
        });
        Ok(listed.collect())
    }

    /// Adds entries from an offset on until there is no more room.
    fn list(&self, open: &OpenDirectory, mut offset: u64, add: &mut Add<'_>) -> Result<()> {
        let mut listing = locked(&open.listing);
        while offset < 2 {
            let name = if offset == 0 { "." } else { ".." };
            let attributes = self.plain(open.number, true, 0);
            offset += 1;
            if add(offset, name.as_bytes(), &SOON, &attributes) {
                return Ok(());
            }
        }
        loop {
            let wanted = offset - 2;
            if wanted < listing.first {
                *listing = Listing::default();
            }
            let Some(at) = usize::try_from(wanted - listing.first).ok() else { return Ok(()) };
            if at >= listing.batch.len() {
                if listing.is_whole {
                    return Ok(());
                }
                self.list_on(open, &mut listing)?;
                continue;
            }
            offset += 1;
            let (number, is_full) = match &listing.batch[at] {
                Listed::Entry(name, entry) => {
                    let Item::Entry { archive, .. } = &open.item else { return Ok(()) };
                    let links = self.archive(archive)?.links(entry);
                    let number = self.tell(archive, entry);
                    (number, add(offset, name, &FOREVER, &attributes(number, entry, links)))
                }
                Listed::Child(name, item, is_directory, modified) => {
                    let key = Key::Named(open.number, name.clone());
                    let number = locked(&self.inodes).tell(key, || item.clone());
                    let attributes = self.plain(number, *is_directory, *modified);
                    // Of an archive more is known once it is open: the kernel is to ask.
                    (number, add(offset, name, &Duration::ZERO, &attributes))
                }
            };
            if is_full {
                locked(&self.inodes).forget(number, 1);
                return Ok(());
            }
        }
    }

    fn handle(&self) -> u64 {
        self.next_handle.fetch_add(1, Ordering::Relaxed)
    }

    fn open_file(&self, number: INodeNo) -> Result<FileHandle> {
        let (lazy, entry) = self.entry_of(number)?;
        let archive = self.archive(&lazy)?;
        let handle = self.handle();
        locked(&self.files).insert(handle, OpenFile { archive, entry });
        Ok(FileHandle(handle))
    }

    fn read_file(&self, handle: FileHandle, offset: u64, size: u32) -> Result<Vec<u8>> {
        let open = locked(&self.files).get(&handle.0).cloned();
        let OpenFile { archive, entry } = open.ok_or_else(|| Problem::of(Errno::EBADF))?;
        archive.read(&entry, offset, size).map_err(|problem| {
            let name = keepwell_engine::report::shown_path(&entry.name);
            Problem { text: format!("\"{name}\": {}", problem.text), ..problem }
        })
    }

    fn attribute(&self, number: INodeNo, name: &OsStr) -> Result<Vec<u8>> {
        let none = || Problem::of(Errno::NO_XATTR);
        if let Item::Directory(_) = self.item(number)? {
            return Err(none());
        }
        let (_, entry) = self.entry_of(number)?;
        let mut attributes = entry.metadata.extended.iter();
        let found = attributes.find(|(known, _)| known == name.as_bytes());
        found.map(|(_, value)| value.clone()).ok_or_else(none)
    }

    /// Names with a NUL behind each.
    fn attribute_names(&self, number: INodeNo) -> Result<Vec<u8>> {
        if let Item::Directory(_) = self.item(number)? {
            return Ok(Vec::new());
        }
        let (_, entry) = self.entry_of(number)?;
        let names = entry.metadata.extended.iter().map(|(name, _)| [&name[..], b"\0"].concat());
        Ok(names.collect::<Vec<_>>().concat())
    }
}

/// Adds an entry to an answer, and says that there was no room.
type Add<'a> = dyn FnMut(u64, &[u8], &Duration, &FileAttr) -> bool + 'a;

fn moment(time: Timestamp) -> SystemTime {
    let whole = Duration::from_secs(time.seconds.unsigned_abs());
    let seconds = match time.seconds < 0 {
        true => UNIX_EPOCH.checked_sub(whole),
        false => UNIX_EPOCH.checked_add(whole),
    };
    let nanoseconds = Duration::from_nanos(time.nanoseconds.into());
    seconds.and_then(|seconds| seconds.checked_add(nanoseconds)).unwrap_or(UNIX_EPOCH)
}

fn kind(kind: EntryKind) -> FileType {
    match kind {
        EntryKind::Directory => FileType::Directory,
        EntryKind::File => FileType::RegularFile,
        EntryKind::Symlink => FileType::Symlink,
        EntryKind::BlockDevice => FileType::BlockDevice,
        EntryKind::CharacterDevice => FileType::CharDevice,
        EntryKind::Fifo => FileType::NamedPipe,
        EntryKind::Socket => FileType::Socket,
    }
}

/// As the kernel packs a device's numbers into 32 bits.
fn device(numbers: Option<(u32, u32)>) -> u32 {
    let (major, minor) = numbers.unwrap_or_default();
    (minor & 0xff) | (major & 0xfff) << 8 | (minor & 0xf_ff00) << 12
}

fn attributes(number: u64, entry: &Entry, links: u32) -> FileAttr {
    let metadata = &entry.metadata;
    let size = match &metadata.link_target {
        Some(target) => target.len() as u64,
        None => metadata.size,
    };
    let time = moment(metadata.modified);
    FileAttr {
        ino: INodeNo(number),
        size,
        blocks: size.div_ceil(512),
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind: kind(metadata.kind),
        perm: (metadata.mode & 0o7777) as u16,
        // Of directories 1 says that the number is not known.
        nlink: if metadata.kind == EntryKind::File { links } else { 1 },
        uid: metadata.owner,
        gid: metadata.group,
        rdev: device(metadata.device),
        blksize: BLOCK_BYTES,
        flags: 0,
    }
}

/// The answer to a request for an extended attribute or their names.
fn reply_attribute(value: &[u8], size: u32, reply: ReplyXattr) {
    match u32::try_from(value.len()) {
        Ok(length) if size == 0 => reply.size(length),
        Ok(length) if length <= size => reply.data(value),
        _ => reply.error(Errno::ERANGE),
    }
}

impl Filesystem for Fs {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        config.add_capabilities(InitFlags::FUSE_DO_READDIRPLUS).map_err(|_| {
            io::Error::new(io::ErrorKind::Unsupported, "the kernel is too old (before 3.9)")
        })?;
        for wish in [
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_ASYNC_READ,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_POSIX_ACL,
            InitFlags::FUSE_HAS_IOCTL_DIR,
        ] {
            let _ = config.add_capabilities(wish);
        }
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.look_up(parent, name) {
            Ok((attributes, time)) => reply.entry(&time, &attributes, Generation(0)),
            Err(problem) => reply.error(self.told(problem)),
        }
    }

    fn forget(&self, _: &Request, number: INodeNo, lookups: u64) {
        locked(&self.inodes).forget(number.0, lookups);
    }

    fn getattr(&self, _: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let item = self.item(number);
        let time = if let Ok(Item::Directory(_)) = item { SOON } else { FOREVER };
        match item.and_then(|item| self.attributes(number.0, &item)) {
            Ok(attributes) => reply.attr(&time, &attributes),
            Err(problem) => reply.error(self.told(problem)),
        }
    }

    fn readlink(&self, _: &Request, number: INodeNo, reply: ReplyData) {
        match self.entry_of(number) {
            Ok((_, entry)) => match &entry.metadata.link_target {
                Some(target) => reply.data(target),
                None => reply.error(Errno::EINVAL),
            },
            Err(problem) => reply.error(self.told(problem)),
        }
    }

    fn open(&self, _: &Request, number: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.open_file(number) {
            Ok(handle) => reply.opened(handle, FopenFlags::FOPEN_KEEP_CACHE),
            Err(problem) => reply.error(self.told(problem)),
        }
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.read_file(handle, offset, size) {
            Ok(bytes) => reply.data(&bytes),
            Err(problem) => reply.error(self.told(problem)),
        }
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        locked(&self.files).remove(&handle.0);
        reply.ok();
    }

    fn opendir(&self, _: &Request, number: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.item(number) {
            Ok(item) => {
                // The kernel may keep what does not change.
                let flags = match item {
                    Item::Directory(_) => FopenFlags::empty(),
                    Item::Entry { .. } => {
                        FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE
                    }
                };
                let handle = self.handle();
                let open = OpenDirectory { number: number.0, item, listing: Mutex::default() };
                locked(&self.directories).insert(handle, Arc::new(open));
                reply.opened(FileHandle(handle), flags);
            }
            Err(problem) => reply.error(self.told(problem)),
        }
    }

    fn readdir(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let open = locked(&self.directories).get(&handle.0).cloned();
        let Some(open) = open else { return reply.error(Errno::EBADF) };
        let listed = self.list(&open, offset, &mut |offset, name, _, attributes| {
            let is_full =
                reply.add(attributes.ino, offset, attributes.kind, OsStr::from_bytes(name));
            // Here the kernel is told no numbers to remember.
            if !is_full && offset > 2 {
                locked(&self.inodes).forget(attributes.ino.0, 1);
            }
            is_full
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(problem) => reply.error(self.told(problem)),
        }
    }

    fn readdirplus(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let open = locked(&self.directories).get(&handle.0).cloned();
        let Some(open) = open else { return reply.error(Errno::EBADF) };
        let listed = self.list(&open, offset, &mut |offset, name, time, attributes| {
            let name = OsStr::from_bytes(name);
            reply.add(attributes.ino, offset, name, time, attributes, Generation(0))
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(problem) => reply.error(self.told(problem)),
        }
    }

    fn releasedir(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        reply: ReplyEmpty,
    ) {
        locked(&self.directories).remove(&handle.0);
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        reply.statfs(0, 0, 0, 0, 0, BLOCK_BYTES, NAME_BYTES_MAX, BLOCK_BYTES);
    }

    fn getxattr(&self, _: &Request, number: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        match self.attribute(number, name) {
            Ok(value) => reply_attribute(&value, size, reply),
            Err(problem) => reply.error(self.told(problem)),
        }
    }

    fn listxattr(&self, _: &Request, number: INodeNo, size: u32, reply: ReplyXattr) {
        match self.attribute_names(number) {
            Ok(names) => reply_attribute(&names, size, reply),
            Err(problem) => reply.error(self.told(problem)),
        }
    }

    fn ioctl(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        command: u32,
        _: &[u8],
        room: u32,
        reply: ReplyIoctl,
    ) {
        if command != GET_FLAGS || room < 4 {
            return reply.error(Errno::ENOTTY);
        }
        match self.entry_of(number) {
            Ok((_, entry)) => reply.ioctl(0, &entry.metadata.inode_flags.to_ne_bytes()),
            Err(_) => reply.error(Errno::ENOTTY),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_devices_are_the_kernels() {
        let of = |seconds, nanoseconds| moment(Timestamp { seconds, nanoseconds });
        assert_eq!(of(5, 1), UNIX_EPOCH + Duration::new(5, 1));
        assert_eq!(of(-5, 1), UNIX_EPOCH - Duration::from_secs(5) + Duration::from_nanos(1));
        assert_eq!(of(i64::MIN, 0), of(i64::MIN, 0));
        assert_eq!(device(Some((8, 1))), 0x801);
        assert_eq!(
            device(Some((259, 70_000))),
            (70_000 & 0xff) | 259 << 8 | (70_000 & 0xf_ff00) << 12
        );
    }
}
