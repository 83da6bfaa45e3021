//! Metadata beyond stat: inode flags, FAT attributes, project ids, extended attributes.
//!
//! The only module of the engine with unsafe code: calls that rustix has no words for.
#![allow(unsafe_code, reason = "calls without a safe wrapper, each with its SAFETY comment")]

use super::{Examined, Identity, metadata_of};
use crate::plugin::{EntryKind, ExtendedAttribute, Metadata};
use rustix::fs::{Access, AtFlags, IFlags, Stat, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use rustix::ioctl::{Getter, Setter, ioctl, opcode};
use std::collections::HashSet;
use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Mutex, PoisonError, RwLock};

const MSDOS: u64 = 0x4d44;
/// Those whose every inode flag `CLOSED_FLAGS` and statx tell: ext2 to ext4, XFS, tmpfs.
const WITH_CLOSED_FLAGS: [u64; 3] = [0xef53, 0x5846_5342, 0x0102_1994];
const FUSE: u64 = 0x6573_5546;
/// File systems with project ids.
const WITH_PROJECTS: [u64; 4] = [0xef53, 0x5846_5342, FUSE, 0x2fc1_2fc1];
/// The kernel hands out lists and values of at most this.
const XATTR_BYTES_MAX: usize = 64 << 10;

/// `struct fsxattr` of linux/fs.h.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct FsXattr {
    pub(crate) flags: u32,
    extent_size: u32,
    extents: u32,
    pub(crate) project: u32,
    cow_extent_size: u32,
    padding: [u8; 8],
}
const _: () = assert!(size_of::<FsXattr>() == 28);

const GET_XATTR: u32 = opcode::read::<FsXattr>(b'X', 31);
const SET_XATTR: u32 = opcode::write::<FsXattr>(b'X', 32);
const GET_FAT: u32 = opcode::read::<u32>(b'r', 0x10);
const SET_FAT: u32 = opcode::write::<u32>(b'r', 0x11);

pub(crate) fn fsxattr(fd: BorrowedFd<'_>) -> Result<FsXattr, Errno> {
    // SAFETY: FS_IOC_FSGETXATTR writes one struct fsxattr, which FsXattr mirrors.
    unsafe { ioctl(fd, Getter::<GET_XATTR, FsXattr>::new()) }
}

pub(crate) fn set_fsxattr(fd: BorrowedFd<'_>, value: FsXattr) -> Result<(), Errno> {
    // SAFETY: FS_IOC_FSSETXATTR reads one struct fsxattr, which FsXattr mirrors.
    unsafe { ioctl(fd, Setter::<SET_XATTR, FsXattr>::new(value)) }
}

pub(crate) fn fat_attributes(fd: BorrowedFd<'_>) -> Result<u32, Errno> {
    // SAFETY: FAT_IOCTL_GET_ATTRIBUTES writes one 32-bit word.
    unsafe { ioctl(fd, Getter::<GET_FAT, u32>::new()) }
}

pub(crate) fn set_fat_attributes(fd: BorrowedFd<'_>, value: u32) -> Result<(), Errno> {
    // SAFETY: FAT_IOCTL_SET_ATTRIBUTES reads one 32-bit word.
    unsafe { ioctl(fd, Setter::<SET_FAT, u32>::new(value)) }
}

/// `struct file_attr` of linux/fs.h.
#[repr(C)]
#[derive(Default)]
struct FileAttr {
    flags: u64,
    extent_size: u32,
    extents: u32,
    project: u32,
    cow_extent_size: u32,
}
const _: () = assert!(size_of::<FileAttr>() == 24);

/// `struct xattr_args` of linux/xattr.h.
#[repr(C, align(8))]
struct XattrArgs {
    value: u64,
    size: u32,
    flags: u32,
}
const _: () = assert!(size_of::<XattrArgs>() == 16);

/// Their numbers are the same on all processors that Rust has.
const SYS_GETXATTRAT: libc::c_long = 464;
const SYS_LISTXATTRAT: libc::c_long = 465;
const SYS_FILE_GETATTR: libc::c_long = 468;

/// What a system call gave back.
fn outcome(given: libc::c_long) -> Result<usize, Errno> {
    usize::try_from(given)
        .map_err(|_| Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::NOSYS))
}

/// A child of an open directory. Links are not followed, and nothing is opened.
#[derive(Clone, Copy)]
pub(super) struct ChildName<'a> {
    pub(super) directory: BorrowedFd<'a>,
    pub(super) name: &'a CStr,
}

impl ChildName<'_> {
    /// `file_getattr`, of Linux 6.17.
    fn attr(self) -> Result<FileAttr, Errno> {
        let (directory, name) = (self.directory.as_raw_fd(), self.name.as_ptr());
        let (mut found, size) = (FileAttr::default(), size_of::<FileAttr>());
        let flags = libc::AT_SYMLINK_NOFOLLOW;
        // SAFETY: the kernel reads a name that ends with 0, and writes at most `size` bytes of plain
        // numbers into `found`.
        outcome(unsafe {
            libc::syscall(SYS_FILE_GETATTR, directory, name, &raw mut found, size, flags)
        })?;
        Ok(found)
    }

    /// `listxattrat`, of Linux 6.13.
    fn list(self, room: &mut [u8]) -> Result<usize, Errno> {
        let (directory, name) = (self.directory.as_raw_fd(), self.name.as_ptr());
        let flags = libc::AT_SYMLINK_NOFOLLOW;
        // SAFETY: the kernel reads a name that ends with 0, and writes at most as many bytes as there is
        // room for.
        outcome(unsafe {
            libc::syscall(SYS_LISTXATTRAT, directory, name, flags, room.as_mut_ptr(), room.len())
        })
    }

    /// `getxattrat`, of Linux 6.13.
    fn get(self, attribute: &CStr, room: &mut [u8]) -> Result<usize, Errno> {
        let (directory, name) = (self.directory.as_raw_fd(), self.name.as_ptr());
        let flags = libc::AT_SYMLINK_NOFOLLOW;
        let size = u32::try_from(room.len()).unwrap_or(u32::MAX);
        let mut args = XattrArgs { value: room.as_mut_ptr() as u64, size, flags: 0 };
        // SAFETY: the kernel reads names that end with 0 and `args`, and writes at most as many bytes as
        // there is room for.
        outcome(unsafe {
            libc::syscall(
                SYS_GETXATTRAT,
                directory,
                name,
                flags,
                attribute.as_ptr(),
                &raw mut args,
                size_of::<XattrArgs>(),
            )
        })
    }
}

/// The kernel's inode flags by those of `file_getattr`: FS_XFLAG_* and FS_*_FL of linux/fs.h.
const CLOSED_FLAGS: [(u64, IFlags); 6] = [
    (0x8, IFlags::IMMUTABLE),
    (0x10, IFlags::APPEND),
    (0x20, IFlags::SYNC),
    (0x40, IFlags::NOATIME),
    (0x80, IFlags::NODUMP),
    (0x200, IFlags::from_bits_retain(0x2000_0000)),
];

/// What was learned of file systems: which kind they are, and what they can't do.
#[derive(Debug, Default)]
pub(super) struct Probes {
    /// the last device looked at, and its magic number
    last: RwLock<Option<(u64, u64)>>,
    without_xattrs: Mutex<HashSet<u64>>,
}

/// Metadata with the number of blocks.
pub(super) struct Probed {
    pub(super) metadata: Metadata,
    pub(super) identity: Identity,
    pub(super) incomplete: Option<String>,
    pub(super) blocks: u64,
}

impl Probed {
    fn of(stat: &Stat, metadata: Metadata, filesystem: u64) -> Self {
        let links = u32::try_from(stat.st_nlink).unwrap_or(u32::MAX);
        let identity = Identity { device: stat.st_dev, inode: stat.st_ino, links, filesystem };
        let blocks = u64::try_from(stat.st_blocks).unwrap_or(0);
        Self { metadata, identity, incomplete: None, blocks }
    }
}

/// Whose extended attributes are read.
#[derive(Clone, Copy)]
enum Named<'a> {
    Open(BorrowedFd<'a>),
    Child(ChildName<'a>),
}

impl Named<'_> {
    fn list(self, room: &mut [u8]) -> Result<usize, Errno> {
        match self {
            Self::Open(fd) => rustix::fs::flistxattr(fd, room),
            Self::Child(child) => child.list(room),
        }
    }

    fn get(self, attribute: &CStr, room: &mut [u8]) -> Result<usize, Errno> {
        match self {
            Self::Open(fd) => rustix::fs::fgetxattr(fd, attribute, room),
            Self::Child(child) => child.get(attribute, room),
        }
    }
}

impl From<Probed> for Examined {
    fn from(probed: Probed) -> Self {
        let Probed { metadata, identity, incomplete, .. } = probed;
        Self { metadata, identity, incomplete }
    }
}

impl Probes {
    /// Everything that a descriptor tells.
    pub(super) fn probe(&self, fd: BorrowedFd<'_>) -> Result<Probed, Errno> {
        let stat = rustix::fs::fstat(fd)?;
        let mut metadata = metadata_of(&stat);
        let filesystem = self.magic(fd, stat.st_dev)?;
        let mut incomplete = None;
        if matches!(metadata.kind, EntryKind::File | EntryKind::Directory) {
            metadata.inode_flags =
                rustix::fs::ioctl_getflags(fd).map_or(0, |flags: IFlags| flags.bits());
            if filesystem == MSDOS || filesystem == FUSE {
                metadata.fat_attributes = fat_attributes(fd).unwrap_or(0);
            }
            if WITH_PROJECTS.contains(&filesystem) {
                metadata.project =
                    fsxattr(fd).ok().map(|value| value.project).filter(|project| *project != 0);
            }
            (metadata.extended, incomplete) = self.extended(Named::Open(fd), stat.st_dev)?;
        }
        Ok(Probed { incomplete, ..Probed::of(&stat, metadata, filesystem) })
    }

    /// The same of a regular file that is not opened. Of the inode flags only those that archives keep.
    /// None where that is not possible: with older kernels, or on other file systems.
    pub(super) fn probe_closed(&self, child: ChildName<'_>) -> Result<Option<Probed>, Errno> {
        let ChildName { directory, name } = child;
        let stat = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let mut metadata = metadata_of(&stat);
        // A file may be mounted on one.
        if metadata.kind != EntryKind::File || rustix::fs::fstat(directory)?.st_dev != stat.st_dev {
            return Ok(None);
        }
        let filesystem = self.magic(directory, stat.st_dev)?;
        if !WITH_CLOSED_FLAGS.contains(&filesystem) {
            return Ok(None);
        }
        // What may not be read is reported, whatever is known of it.
        let quiet = AtFlags::EACCESS | AtFlags::SYMLINK_NOFOLLOW;
        if rustix::fs::accessat(directory, name, Access::READ_OK, quiet).is_err() {
            return Ok(None);
        }
        let Ok(attr) = child.attr() else { return Ok(None) };
        let set = CLOSED_FLAGS.iter().filter(|(bit, _)| attr.flags & bit != 0);
        let mut flags = set.fold(IFlags::empty(), |flags, (_, flag)| flags | *flag);
        let named = Named::Child(child);
        let (extended, incomplete) = self.extended(named, stat.st_dev)?;
        let again =
            rustix::fs::statx(directory, name, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS)?;
        let changed = (again.stx_ctime.tv_sec, u64::from(again.stx_ctime.tv_nsec));
        if again.stx_ino != stat.st_ino || changed != (stat.st_ctime, stat.st_ctime_nsec as u64) {
            // Another file has the name by now.
            return Ok(None);
        }
        if again.stx_attributes.contains(StatxAttributes::COMPRESSED) {
            flags |= IFlags::COMPRESSED;
        }
        metadata.inode_flags = flags.bits();
        if WITH_PROJECTS.contains(&filesystem) && attr.project != 0 {
            metadata.project = Some(attr.project);
        }
        metadata.extended = extended;
        Ok(Some(Probed { incomplete, ..Probed::of(&stat, metadata, filesystem) }))
    }

    fn magic(&self, fd: BorrowedFd<'_>, device: u64) -> Result<u64, Errno> {
        let last = *self.last.read().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, magic)) = last
            && known == device
        {
            return Ok(magic);
        }
        let magic = rustix::fs::fstatfs(fd)?.f_type as u64;
        *self.last.write().unwrap_or_else(PoisonError::into_inner) = Some((device, magic));
        Ok(magic)
    }

    /// Attributes in the kernel's order, and what could not be read of them.
    fn extended(
        &self,
        named: Named<'_>,
        device: u64,
    ) -> Result<(Vec<ExtendedAttribute>, Option<String>), Errno> {
        let lacking = || self.without_xattrs.lock().unwrap_or_else(PoisonError::into_inner);
        if lacking().contains(&device) {
            return Ok((Vec::new(), None));
        }
        let names = match read_growing(|buffer| named.list(buffer)) {
            Ok(names) => names,
            // A call that a kernel or a sandbox lacks tells nothing of the file system.
            Err(Errno::NOSYS) if matches!(named, Named::Child(_)) => return Err(Errno::NOSYS),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                lacking().insert(device);
                return Ok((Vec::new(), None));
            }
            Err(Errno::TOOBIG) => {
                let problem = "the list of extended attributes is too large (E2BIG)";
                return Ok((Vec::new(), Some(problem.into())));
            }
            Err(Errno::BADF) => return Ok((Vec::new(), None)),
            Err(error) => return Err(error),
        };
        let mut found = Vec::new();
        for name in names.split_inclusive(|byte| *byte == 0) {
            let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
            match read_growing(|buffer| named.get(name, buffer)) {
                Ok(value) => found.push((name.to_bytes().to_vec(), value)),
                // It has gone since it was listed.
                Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
                Err(Errno::TOOBIG) => {
                    let name = name.to_string_lossy();
                    let problem = format!("extended attribute {name} is too large (E2BIG)");
                    return Ok((found, Some(problem)));
                }
                // Those of other namespaces may be forbidden: they are not archived anyway.
                Err(Errno::PERM | Errno::ACCESS) => {}
                Err(error) => return Err(error),
            }
        }
        Ok((found, None))
    }
}

/// Calls `read` with a buffer that grows while it is too small.
fn read_growing(mut read: impl FnMut(&mut [u8]) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    let mut small = [0u8; 1024];
    match read(&mut small) {
        Ok(length) => return Ok(small[..length].to_vec()),
        Err(Errno::RANGE) => {}
        Err(error) => return Err(error),
    }
    let mut buffer = vec![0; XATTR_BYTES_MAX];
    match read(&mut buffer) {
        Ok(length) => {
            buffer.truncate(length);
            Ok(buffer)
        }
        Err(Errno::RANGE) => Err(Errno::TOOBIG),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::path::Path;

    /// Sets inode flags, as far as one may, and a named attribute.
    fn marked(dir: &Path, flags: IFlags) -> File {
        let file = File::create(dir.join("file")).unwrap();
        let _ =
            rustix::fs::fsetxattr(&file, "user.note", &[7; 2000], rustix::fs::XattrFlags::empty());
        if let Ok(now) = rustix::fs::ioctl_getflags(&file) {
            let _ = rustix::fs::ioctl_setflags(&file, now | flags);
        }
        file
    }

    #[test]
    fn what_is_not_opened_tells_the_same() {
        // What archives keep of regular files: spec pxar.md §7.
        const KEPT: u32 = 0x20 | 0x80 | 0x4 | 0x80_0000 | 0x40 | 0x10 | 0x8 | 0x400 | 0x2000_0000;
        let all = [
            IFlags::empty(),
            IFlags::NODUMP,
            IFlags::NOATIME,
            IFlags::SYNC,
            IFlags::COMPRESSED,
            IFlags::APPEND,
            IFlags::NODUMP | IFlags::NOATIME | IFlags::SYNC | IFlags::COMPRESSED,
        ];
        let probes = Probes::default();
        let mut compared = 0;
        for base in [std::env::temp_dir().as_path(), Path::new("/dev/shm")] {
            for flags in all {
                let Ok(dir) = tempfile::tempdir_in(base) else { continue };
                let file = marked(dir.path(), flags);
                let mut opened = probes.probe(file.as_fd()).unwrap();
                let directory = File::open(dir.path()).unwrap();
                let child = ChildName { directory: directory.as_fd(), name: c"file" };
                let closed = probes.probe_closed(child).unwrap();
                // So that it can be removed.
                if let Ok(now) = rustix::fs::ioctl_getflags(&file) {
                    let _ = rustix::fs::ioctl_setflags(&file, now - IFlags::APPEND);
                }
                let Some(closed) = closed else { continue };
                compared += 1;
                opened.metadata.inode_flags &= KEPT;
                assert_eq!(closed.metadata, opened.metadata, "{flags:?}");
                assert_eq!(closed.identity, opened.identity);
                assert_eq!((closed.blocks, &closed.incomplete), (opened.blocks, &None));
            }
        }
        if compared == 0 {
            eprintln!("skipped: it takes Linux 6.17 and ext4, XFS or tmpfs");
        }
    }

    #[test]
    fn ioctls_of_this_file_system_answer_or_refuse() {
        let file = tempfile::tempfile().unwrap();
        if let Ok(value) = fsxattr(file.as_fd()) {
            assert_eq!(value.padding, [0; 8]);
            // Setting what is there changes nothing, but may be forbidden.
            let _ = set_fsxattr(file.as_fd(), value);
            assert_eq!(fsxattr(file.as_fd()).unwrap().project, value.project);
        }
        assert!(fat_attributes(file.as_fd()).is_err(), "a FAT file system for temporary files?");
        assert!(set_fat_attributes(file.as_fd(), 0).is_err());
    }
}
