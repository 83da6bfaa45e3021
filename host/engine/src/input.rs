//! What a source may read: handles to directories and files, metadata from their descriptors.
//!
//! Reading follows shared/spec/pxar.md §8: no symbolic link is followed, access times are left
//! alone where the kernel allows it, and what a file system can't do is not an error.

pub(crate) mod attributes;

use crate::Cancel;
use crate::plugin::{EntryKind, Failure, Metadata, Timestamp};
use crate::report::shown_path;
use attributes::{ChildName, Probes};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, RawMode, ResolveFlags, Stat};
use rustix::io::Errno;
use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Where an inode lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    pub device: u64,
    pub inode: u64,
    pub links: u32,
    pub filesystem: u64,
}

#[derive(Clone, Debug)]
pub struct Examined {
    pub metadata: Metadata,
    pub identity: Identity,
    pub incomplete: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    pub name: Vec<u8>,
    pub kind: EntryKind,
}

pub struct Opened {
    pub examined: Examined,
    pub handle: Option<Arc<InputFile>>,
}

/// The way from the root to an entry, for messages only.
#[derive(Debug)]
struct Place {
    parent: Option<Arc<Place>>,
    name: Vec<u8>,
}

impl Place {
    fn path(&self) -> Vec<u8> {
        let mut names = vec![&self.name[..]];
        let mut place = self;
        while let Some(parent) = &place.parent {
            names.push(&parent.name);
            place = parent;
        }
        names.reverse();
        // The root has no name.
        names.iter().filter(|name| !name.is_empty()).copied().collect::<Vec<_>>().join(&b'/')
    }
}

/// A directory that a source may read.
pub struct Directory {
    fd: OwnedFd,
    place: Arc<Place>,
    probes: Arc<Probes>,
    /// names still to be handed out, the next one last; none before the first read
    names: Option<Vec<Listed>>,
    /// what must not be listed: a path from the root
    hidden: Option<Arc<[u8]>>,
}

/// A file that a source may read.
#[derive(Debug)]
pub struct InputFile {
    file: File,
    place: Arc<Place>,
    probes: Arc<Probes>,
    /// as it was when the file was opened
    pub size: u64,
    /// it has fewer blocks than its size needs
    pub is_sparse: bool,
    pub kind: EntryKind,
    /// bytes that were read on
    read: AtomicU64,
}

const OPEN_FLAGS: OFlags = OFlags::RDONLY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NOCTTY)
    .union(OFlags::CLOEXEC)
    .union(OFlags::NONBLOCK);

impl Directory {
    /// The directory that the user named; a symbolic link to one is followed.
    pub fn open_root(path: &Path) -> std::io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Self::from_fd(rustix::fs::open(path, flags, Mode::empty())?)
    }

    /// A directory that is open.
    pub fn from_fd(fd: OwnedFd) -> std::io::Result<Self> {
        if kind_of(rustix::fs::fstat(&fd)?.st_mode) != EntryKind::Directory {
            return Err(Errno::NOTDIR.into());
        }
        let place = Arc::new(Place { parent: None, name: Vec::new() });
        Ok(Self { fd, place, probes: Arc::default(), names: None, hidden: None })
    }

    /// Leaves out what lies at this path below the root: the repository, when it is in the tree
    /// that is backed up.
    pub fn hide(&mut self, path: &[u8]) {
        self.hidden = Some(path.into());
    }

    /// The name that must not be listed here, if any.
    fn hidden_name(&self) -> Option<&[u8]> {
        let hidden = self.hidden.as_deref()?;
        let here = self.place.path();
        let rest = match here.is_empty() {
            true => hidden,
            false => hidden.strip_prefix(&here[..])?.strip_prefix(b"/")?,
        };
        (!rest.contains(&b'/')).then_some(rest)
    }

    fn child(&self, name: &[u8]) -> Arc<Place> {
        Arc::new(Place { parent: Some(self.place.clone()), name: name.to_vec() })
    }

    pub fn examine(&self) -> Result<Examined, Failure> {
        let probed = self.probes.probe(self.fd.as_fd());
        Ok(probed.map_err(|error| failure(error, &self.place))?.into())
    }

    /// The next names in byte order.
    pub fn read(&mut self, max: u32) -> Result<Vec<Listed>, Failure> {
        let hidden = match self.names {
            Some(_) => None,
            None => self.hidden_name().map(<[u8]>::to_vec),
        };
        let names = match &mut self.names {
            Some(names) => names,
            empty => {
                let mut listed = list(&self.fd).map_err(|error| failure(error, &self.place))?;
                if let Some(hidden) = hidden {
                    listed.retain(|child| child.name != hidden);
                }
                empty.insert(listed)
            }
        };
        let rest = names.len().saturating_sub(max as usize);
        let mut batch = names.split_off(rest);
        batch.reverse();
        Ok(batch)
    }

    pub fn open_directory(&self, name: &[u8]) -> Result<(Directory, Examined), Failure> {
        check_name(name)?;
        let place = self.child(name);
        let flags = OPEN_FLAGS | OFlags::DIRECTORY;
        let fd = open_quietly(&self.fd, name, flags).map_err(|error| failure(error, &place))?;
        let (probes, hidden) = (self.probes.clone(), self.hidden.clone());
        let directory = Directory { fd, place, probes, names: None, hidden };
        let examined = directory.examine()?;
        Ok((directory, examined))
    }

    pub fn open_child(&self, child: &Listed) -> Result<Opened, Failure> {
        check_name(&child.name)?;
        let opened = match child.kind {
            EntryKind::File => self.open_file(&child.name),
            _ => match self.examine_link(&child.name) {
                // It was something else a moment ago: a file must have a handle.
                Ok(opened) if opened.examined.metadata.kind == EntryKind::File => {
                    self.open_file(&child.name)
                }
                other => other,
            },
        };
        let opened = opened.and_then(|opened| match opened.examined.metadata.kind {
            // It keeps changing: what was listed is not there any more.
            EntryKind::File if opened.handle.is_none() => Err(Errno::NOENT),
            EntryKind::Directory => Err(Errno::NOENT),
            _ => Ok(opened),
        });
        opened.map_err(|error| failure(error, &self.child(&child.name)))
    }

    /// What can be known of a child that is no directory. A file is not opened where all of it can be
    /// known without.
    pub fn examine_child(&self, child: &Listed) -> Result<Examined, Failure> {
        check_name(&child.name)?;
        if child.kind == EntryKind::File
            && let Ok(Some(examined)) = self.examine_closed(&child.name)
        {
            return Ok(examined);
        }
        Ok(self.open_child(child)?.examined)
    }

    /// None where the file has to be opened.
    fn examine_closed(&self, name: &[u8]) -> Result<Option<Examined>, Errno> {
        let name = CString::new(name).map_err(|_| Errno::INVAL)?;
        let child = ChildName { directory: self.fd.as_fd(), name: &name };
        Ok(self.probes.probe_closed(child)?.map(Into::into))
    }

    fn open_file(&self, name: &[u8]) -> Result<Opened, Errno> {
        let fd = match open_quietly(&self.fd, name, OPEN_FLAGS) {
            // It was a file a moment ago: now it is a link, a socket or a device.
            Err(Errno::LOOP | Errno::NXIO | Errno::NODEV) => return self.examine_link(name),
            other => other?,
        };
        let examined = self.probes.probe(fd.as_fd())?;
        if examined.metadata.kind != EntryKind::File {
            return self.examine_link(name);
        }
        let file = InputFile {
            file: fd.into(),
            place: self.child(name),
            probes: self.probes.clone(),
            size: examined.metadata.size,
            is_sparse: examined.blocks.saturating_mul(512) < examined.metadata.size,
            kind: EntryKind::File,
            read: AtomicU64::new(0),
        };
        Ok(Opened { examined: examined.into(), handle: Some(Arc::new(file)) })
    }

    /// What can be known of something without opening it.
    fn examine_link(&self, name: &[u8]) -> Result<Opened, Errno> {
        let stat = rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let mut metadata = metadata_of(&stat);
        if metadata.kind == EntryKind::Symlink {
            // EINVAL: it is no link any more.
            let target = rustix::fs::readlinkat(&self.fd, name, Vec::new());
            let target = target.map_err(|e| if e == Errno::INVAL { Errno::NOENT } else { e })?;
            metadata.link_target = Some(target.into_bytes());
        }
        let identity = Identity {
            device: stat.st_dev,
            inode: stat.st_ino,
            links: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
            filesystem: 0,
        };
        Ok(Opened { examined: Examined { metadata, identity, incomplete: None }, handle: None })
    }
}

impl InputFile {
    /// The file, block device or pipe that the user named; links are followed.
    pub fn open_named(path: &Path) -> std::io::Result<Self> {
        // A pipe whose other end nobody has opened is waited for where it is read.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
        Self::from_fd(rustix::fs::open(path, flags, Mode::empty())?, path)
    }

    /// A file, block device or pipe that is open.
    pub fn from_fd(fd: OwnedFd, path: &Path) -> std::io::Result<Self> {
        let file = File::from(fd);
        let stat = rustix::fs::fstat(&file)?;
        let kind = kind_of(stat.st_mode);
        let size = match kind {
            EntryKind::BlockDevice => rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0))?,
            _ => u64::try_from(stat.st_size).unwrap_or(0),
        };
        let blocks = u64::try_from(stat.st_blocks).unwrap_or(0);
        let is_sparse = kind == EntryKind::File && blocks.saturating_mul(512) < size;
        let name = path.file_name().unwrap_or(path.as_os_str());
        let name = std::os::unix::ffi::OsStrExt::as_bytes(name).to_vec();
        let place = Arc::new(Place { parent: None, name });
        let (probes, read) = (Arc::default(), AtomicU64::new(0));
        Ok(Self { file, place, probes, size, is_sparse, kind, read })
    }

    pub fn examine(&self) -> Result<Examined, Failure> {
        let examined = self.probes.probe(self.file.as_fd());
        let mut examined: Examined = examined.map_err(|error| failure(error, &self.place))?.into();
        examined.metadata.size = self.size;
        Ok(examined)
    }

    /// Reads at a position; 0 at the end.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<usize> {
        loop {
            match self.file.read_at(buffer, offset) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }

    /// Waits a moment for bytes or the end, in pipes; false where there is nothing yet.
    pub fn wait(&self) -> std::io::Result<bool> {
        self.wait_for(Duration::from_millis(200))
    }

    /// The same, at most so long, which is less than a second.
    pub fn wait_for(&self, moment: Duration) -> std::io::Result<bool> {
        let moment = Timespec { tv_sec: 0, tv_nsec: moment.subsec_nanos().into() };
        let mut polled = [PollFd::new(&self.file, PollFlags::IN)];
        match poll(&mut polled, Some(&moment)) {
            Ok(count) => Ok(count > 0),
            Err(Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads on, for pipes; 0 at the end.
    pub fn read_on(&self, buffer: &mut [u8]) -> std::io::Result<usize> {
        loop {
            match std::io::Read::read(&mut &self.file, buffer) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Ok(read) => {
                    self.read.fetch_add(read as u64, Ordering::Relaxed);
                    return Ok(read);
                }
                error => return error,
            }
        }
    }

    /// Whether it can be read at any position, unlike a pipe.
    pub fn has_positions(&self) -> bool {
        matches!(self.kind, EntryKind::File | EntryKind::BlockDevice)
    }

    /// Reads at a position, where that is possible; what can only be read on is waited for. 0 at the end.
    pub fn read_or_wait(
        &self,
        buffer: &mut [u8],
        offset: u64,
        cancel: &Cancel,
    ) -> Result<usize, Failure> {
        let failed = |error: std::io::Error| Failure::Io(error.to_string());
        if self.has_positions() {
            return self.read_at(buffer, offset).map_err(failed);
        }
        let read = self.read.load(Ordering::Relaxed);
        if offset != read {
            let text = format!("a pipe is read on: its next byte is {read}, not {offset}");
            return Err(Failure::Unsupported(text));
        }
        while !buffer.is_empty() {
            cancel.check()?;
            if !self.wait().map_err(failed)? {
                continue;
            }
            match self.read_on(buffer) {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                other => return other.map_err(failed),
            }
        }
        Ok(0)
    }

    /// Its size now.
    pub fn current_size(&self) -> std::io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// The next stretch of data at or after `offset`: where it begins and ends. None where only a
    /// hole follows.
    pub fn next_data(&self, offset: u64) -> std::io::Result<Option<(u64, u64)>> {
        use rustix::fs::{SeekFrom, seek};
        let start = match seek(&self.file, SeekFrom::Data(offset)) {
            Err(Errno::NXIO) => return Ok(None),
            other => other?,
        };
        Ok(Some((start, seek(&self.file, SeekFrom::Hole(start))?)))
    }

    /// Whether the user named this very file: it is all that is archived.
    pub fn is_named(&self) -> bool {
        self.place.parent.is_none()
    }

    /// Where it lies on this machine.
    pub fn full_path(&self) -> std::io::Result<PathBuf> {
        std::fs::read_link(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }

    /// From the root, for messages.
    pub fn path(&self) -> Vec<u8> {
        self.place.path()
    }
}

/// Opens what lies below a directory, or the directory itself for an empty path, to be read. No link and no
/// ".." leads out of it.
pub fn open_beneath(root: &Path, path: &Path) -> std::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    if path.as_os_str().is_empty() {
        return Ok(rustix::fs::open(root, flags, Mode::empty())?);
    }
    let root = rustix::fs::open(root, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    Ok(rustix::fs::openat2(&root, path, flags, Mode::empty(), resolve)?)
}

/// One component, so that nothing outside of the handle can be reached.
pub fn check_name(name: &[u8]) -> Result<(), Failure> {
    let legal = !name.is_empty() && name != b"." && name != b".." && !name.contains(&b'/');
    if legal && !name.contains(&0) {
        return Ok(());
    }
    Err(Failure::Invalid(format!("'{}' is no name of a child", shown_path(name))))
}

/// Opens without changing the access time where that is allowed.
fn open_quietly(dir: &OwnedFd, name: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    match rustix::fs::openat(dir, name, flags | OFlags::NOATIME, Mode::empty()) {
        Err(Errno::PERM) => rustix::fs::openat(dir, name, flags, Mode::empty()),
        other => other,
    }
}

/// All names, the first in byte order last.
fn list(fd: &OwnedFd) -> Result<Vec<Listed>, Errno> {
    let mut names = Vec::new();
    // Not `read_from`: that opens ".", which takes the right to search.
    for entry in Dir::new(fd.try_clone().map_err(|_| Errno::MFILE)?)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        let kind = match entry.file_type() {
            FileType::RegularFile => EntryKind::File,
            FileType::Directory => EntryKind::Directory,
            FileType::Symlink => EntryKind::Symlink,
            FileType::BlockDevice => EntryKind::BlockDevice,
            FileType::CharacterDevice => EntryKind::CharacterDevice,
            FileType::Fifo => EntryKind::Fifo,
            FileType::Socket => EntryKind::Socket,
            FileType::Unknown => match rustix::fs::statat(fd, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => kind_of(stat.st_mode),
                Err(_) => EntryKind::File,
            },
        };
        names.push(Listed { name: name.to_vec(), kind });
    }
    names.sort_unstable_by(|a, b| b.name.cmp(&a.name));
    Ok(names)
}

fn kind_of(mode: RawMode) -> EntryKind {
    match FileType::from_raw_mode(mode) {
        FileType::Directory => EntryKind::Directory,
        FileType::Symlink => EntryKind::Symlink,
        FileType::BlockDevice => EntryKind::BlockDevice,
        FileType::CharacterDevice => EntryKind::CharacterDevice,
        FileType::Fifo => EntryKind::Fifo,
        FileType::Socket => EntryKind::Socket,
        FileType::RegularFile | FileType::Unknown => EntryKind::File,
    }
}

fn metadata_of(stat: &Stat) -> Metadata {
    let kind = kind_of(stat.st_mode);
    let is_device = matches!(kind, EntryKind::BlockDevice | EntryKind::CharacterDevice);
    let device = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    Metadata {
        mode: stat.st_mode & 0o7777,
        owner: stat.st_uid,
        group: stat.st_gid,
        modified: Timestamp {
            seconds: stat.st_mtime,
            nanoseconds: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
        },
        size: if kind == EntryKind::File { u64::try_from(stat.st_size).unwrap_or(0) } else { 0 },
        device: is_device.then_some(device),
        ..Metadata::of_kind(kind)
    }
}

fn failure(error: Errno, place: &Place) -> Failure {
    let text = format!("{}: {}", shown_path(&place.path()), std::io::Error::from(error));
    match error {
        // Something else has its name now: what was listed is gone.
        Errno::NOENT | Errno::STALE | Errno::NOTDIR | Errno::LOOP => Failure::NotFound(text),
        // Leased to a client of a file server.
        Errno::ACCESS | Errno::PERM | Errno::AGAIN => Failure::Denied(text),
        // One damaged place of a disk does not keep the rest from being backed up.
        Errno::IO | Errno::BADMSG | Errno::UCLEAN | Errno::REMOTEIO | Errno::NODATA => {
            Failure::Denied(text)
        }
        _ => Failure::Io(text),
    }
}
