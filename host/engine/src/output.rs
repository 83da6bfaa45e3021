//! Writing what an archive holds below an open directory. Names are single components and no
//! symbolic link is followed, so nothing outside of the target can be reached.
//!
//! Order of metadata and what is ignored: shared/spec/pxar.md §12.

use crate::input::attributes::{fat_attributes, fsxattr, set_fat_attributes, set_fsxattr};
use crate::plugin::{EntryKind, ExtendedAttribute, Metadata};
use rustix::fs::{
    AtFlags, FileType, IFlags, Mode, OFlags, RenameFlags, ResolveFlags, Timespec, Timestamps,
    UTIME_OMIT, XattrFlags,
};
use rustix::io::Errno;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};

/// Which metadata to leave alone, and what may be replaced.
#[derive(Clone, Copy, Debug, Default)]
pub struct OutputOptions {
    pub allow_existing_dirs: bool,
    pub overwrite_files: bool,
    pub overwrite_symlinks: bool,
    pub overwrite_hardlinks: bool,
    pub ignore_acls: bool,
    pub ignore_xattrs: bool,
    pub ignore_fcaps: bool,
    pub ignore_ownership: bool,
    pub ignore_permissions: bool,
    pub ignore_device_errors: bool,
    pub skip_devices: bool,
    pub skip_fifos: bool,
    pub skip_sockets: bool,
}

/// A step that failed, and how.
#[derive(Debug)]
pub(crate) struct Trouble {
    pub(crate) step: &'static str,
    pub(crate) error: Errno,
}

type Outcome<T> = Result<T, Trouble>;

fn step(step: &'static str) -> impl Fn(Errno) -> Trouble {
    move |error| Trouble { step, error }
}

const NAME_FLAGS: OFlags = OFlags::NOFOLLOW.union(OFlags::CLOEXEC);

/// Makes a directory below another and opens it; tells whether it is new.
pub(crate) fn make_directory(
    parent: BorrowedFd<'_>,
    name: &[u8],
    metadata: &Metadata,
    options: &OutputOptions,
) -> Outcome<(OwnedFd, bool)> {
    // Nobody else may look in before it has its final rights, and we must be able to write.
    let mode = if options.ignore_permissions { metadata.mode | OWNER_ALL } else { OWNER_ALL };
    let is_new = match rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(mode)) {
        Err(Errno::EXIST) if options.allow_existing_dirs => false,
        other => other.map(|()| true).map_err(step("create directory"))?,
    };
    let flags = NAME_FLAGS | OFlags::DIRECTORY | OFlags::RDONLY;
    let fd = rustix::fs::openat(parent, name, flags, Mode::empty());
    Ok((fd.map_err(step("enter directory"))?, is_new))
}

const OWNER_ALL: u32 = 0o700;

/// Takes away from a new directory what only its making needed, where permissions are ignored.
pub(crate) fn narrow(fd: BorrowedFd<'_>, metadata: &Metadata, options: &OutputOptions) {
    let lent = OWNER_ALL & !metadata.mode;
    if options.ignore_permissions
        && lent != 0
        && let Ok(stat) = rustix::fs::fstat(fd)
    {
        let _ = rustix::fs::fchmod(fd, Mode::from_raw_mode(stat.st_mode & 0o7777 & !lent));
    }
}

/// A new file, and the name under which it is written where another is to be replaced.
pub(crate) struct NewFile {
    pub(crate) file: File,
    pub(crate) temporary: Option<Vec<u8>>,
}

/// A name for what is not complete yet.
pub(crate) fn temporary_name() -> Vec<u8> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    format!(".keepwell-{}-{number}.tmp", std::process::id()).into_bytes()
}

/// Makes a file of this length, all of it a hole. What has its name stays as it is until the new
/// one is complete, see [`put_in_place`].
pub(crate) fn make_file(
    parent: BorrowedFd<'_>,
    name: &[u8],
    metadata: &Metadata,
    options: &OutputOptions,
) -> Outcome<NewFile> {
    let flags = NAME_FLAGS | OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
    let mode = Mode::from_raw_mode(0o600);
    let mut temporary = None;
    let mut made = rustix::fs::openat(parent, name, flags, mode);
    if matches!(made, Err(Errno::EXIST)) && options.overwrite_files {
        let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW);
        let stat = stat.map_err(step("overwrite"))?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            return Err(Trouble { step: "overwrite a directory with a file", error: Errno::ISDIR });
        }
        let hidden = temporary_name();
        made = rustix::fs::openat(parent, &hidden[..], flags, mode);
        temporary = Some(hidden);
    }
    let fd = made.map_err(step("create file"))?;
    let written_as = temporary.as_deref().unwrap_or(name);
    let early = metadata.inode_flags & EARLY_FLAGS;
    if early != 0
        && let Ok(current) = rustix::fs::ioctl_getflags(&fd)
    {
        // They only work while the file is empty; not all file systems know them.
        let flags = IFlags::from_bits_retain(current.bits() | early);
        let _ = rustix::fs::ioctl_setflags(&fd, flags);
    }
    if metadata.size > 0
        && let Err(error) = rustix::fs::ftruncate(&fd, metadata.size)
    {
        let _ = rustix::fs::unlinkat(parent, written_as, AtFlags::empty());
        return Err(Trouble { step: "set file size", error });
    }
    Ok(NewFile { file: fd.into(), temporary })
}

/// Gives a complete file its name, which nothing has.
pub(crate) fn put_in_new_place(
    parent: BorrowedFd<'_>,
    temporary: &[u8],
    name: &[u8],
) -> Outcome<()> {
    let flags = RenameFlags::NOREPLACE;
    let renamed = match rustix::fs::renameat_with(parent, temporary, parent, name, flags) {
        // Not all file systems can.
        Err(Errno::INVAL) => match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Err(Errno::EXIST),
            Err(_) => rustix::fs::renameat(parent, temporary, parent, name),
        },
        other => other,
    };
    renamed.map_err(|error| {
        let _ = rustix::fs::unlinkat(parent, temporary, AtFlags::empty());
        Trouble { step: "create file", error }
    })
}

/// Gives a complete file its name, and takes it from what has it.
pub(crate) fn put_in_place(parent: BorrowedFd<'_>, temporary: &[u8], name: &[u8]) -> Outcome<()> {
    let rename = || rustix::fs::renameat(parent, temporary, parent, name);
    // What is there may be immutable or append-only; it is to go.
    let renamed = match rename() {
        Err(Errno::PERM) => without_flags(parent, name, rename),
        other => other,
    };
    renamed.map_err(|error| {
        let _ = rustix::fs::unlinkat(parent, temporary, AtFlags::empty());
        Trouble { step: "overwrite", error }
    })
}

/// No atime, compress, no copy on write, don't compress, inherit project.
const EARLY_FLAGS: u32 = 0x80 | 0x4 | 0x80_0000 | 0x400 | 0x2000_0000;
/// All that an archive keeps.
const KEPT_FLAGS: u32 = EARLY_FLAGS | 0x20 | 0x40 | 0x1_0000 | 0x10 | 0x8;
const BLOCK_BYTES: usize = 4096;

/// Writes bytes into a file made by [`make_file`]; blocks of zeros stay holes.
pub(crate) fn write_sparsely(file: &File, bytes: &[u8], offset: u64) -> std::io::Result<()> {
    let is_zero =
        |block: &[u8]| block.first() == Some(&0) && block[..block.len() - 1] == block[1..];
    let mut run = 0;
    let mut at = 0;
    for block in bytes.chunks(BLOCK_BYTES) {
        if is_zero(block) {
            if run < at {
                file.write_all_at(&bytes[run..at], offset + run as u64)?;
            }
            run = at + block.len();
        }
        at += block.len();
    }
    if run < at {
        file.write_all_at(&bytes[run..at], offset + run as u64)?;
    }
    Ok(())
}

/// Makes a link, device, fifo or socket, with its metadata.
pub(crate) fn make_special(
    parent: BorrowedFd<'_>,
    name: &[u8],
    metadata: &Metadata,
    options: &OutputOptions,
) -> Outcome<()> {
    let skipped = match metadata.kind {
        EntryKind::BlockDevice | EntryKind::CharacterDevice => options.skip_devices,
        EntryKind::Fifo => options.skip_fifos,
        EntryKind::Socket => options.skip_sockets,
        _ => false,
    };
    if skipped {
        return Ok(());
    }
    if metadata.kind == EntryKind::Symlink {
        let target = metadata.link_target.as_deref().unwrap_or_default();
        let make = || rustix::fs::symlinkat(target, parent, name);
        replacing(parent, name, options.overwrite_symlinks, make)
            .map_err(step("create symbolic link"))?;
    } else {
        let kind = match metadata.kind {
            EntryKind::BlockDevice => FileType::BlockDevice,
            EntryKind::CharacterDevice => FileType::CharacterDevice,
            EntryKind::Fifo => FileType::Fifo,
            _ => FileType::Socket,
        };
        let (major, minor) = metadata.device.unwrap_or_default();
        let device = rustix::fs::makedev(major, minor);
        let mode = Mode::from_raw_mode(metadata.mode);
        let make = || rustix::fs::mknodat(parent, name, kind, mode, device);
        match replacing(parent, name, options.overwrite_files, make) {
            Err(_) if options.ignore_device_errors => return Ok(()),
            other => other.map_err(step("create special file"))?,
        }
    }
    apply_to_name(parent, name, metadata, options)
}

/// Makes one more name of a file below `root`.
pub(crate) fn make_hard_link(
    root: BorrowedFd<'_>,
    target: &[Vec<u8>],
    parent: BorrowedFd<'_>,
    name: &[u8],
    options: &OutputOptions,
) -> Outcome<()> {
    let Some((last, dirs)) = target.split_last() else {
        return Err(Trouble { step: "create hard link", error: Errno::NOENT });
    };
    let opened;
    let target_dir = if dirs.is_empty() {
        root
    } else {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let path = dirs.join(&b'/');
        opened = rustix::fs::openat2(root, &path[..], flags, Mode::empty(), resolve)
            .map_err(step("find target of hard link"))?;
        opened.as_fd()
    };
    let make = || rustix::fs::linkat(target_dir, &last[..], parent, name, AtFlags::empty());
    match replacing(parent, name, options.overwrite_hardlinks, make) {
        // The first name may already be immutable or append-only.
        Err(Errno::PERM) => without_flags(target_dir, last, || {
            replacing(parent, name, options.overwrite_hardlinks, make)
        }),
        other => other,
    }
    .map_err(step("create hard link"))
}

/// Runs `change` while a file is neither immutable nor append-only.
fn without_flags(
    dir: BorrowedFd<'_>,
    name: &[u8],
    change: impl FnOnce() -> Result<(), Errno>,
) -> Result<(), Errno> {
    const FORBIDDING: u32 = 0x10 | 0x20;
    let flags = NAME_FLAGS | OFlags::RDONLY | OFlags::NONBLOCK;
    let file = rustix::fs::openat(dir, name, flags, Mode::empty())?;
    // Where there are no such flags, they were not what forbade it.
    let kept = rustix::fs::ioctl_getflags(&file).map_err(|_| Errno::PERM)?;
    let without = IFlags::from_bits_retain(kept.bits() & !FORBIDDING);
    if without == kept {
        return Err(Errno::PERM);
    }
    rustix::fs::ioctl_setflags(&file, without)?;
    let changed = change();
    rustix::fs::ioctl_setflags(&file, kept)?;
    changed
}

/// Tries again after removing what has the name, where that is allowed. Directories stay.
fn replacing(
    parent: BorrowedFd<'_>,
    name: &[u8],
    allowed: bool,
    make: impl Fn() -> Result<(), Errno>,
) -> Result<(), Errno> {
    match make() {
        Err(Errno::EXIST) if allowed => {
            let unlink = || rustix::fs::unlinkat(parent, name, AtFlags::empty());
            match unlink() {
                Err(Errno::PERM) => without_flags(parent, name, unlink)?,
                other => other?,
            }
            make()
        }
        other => other,
    }
}

/// File systems without a feature lose it; that is no error.
fn tolerant(outcome: Result<(), Errno>) -> Result<(), Errno> {
    match outcome {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
        other => other,
    }
}

fn times(metadata: &Metadata) -> Timestamps {
    let modified = metadata.modified;
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT as _ },
        last_modification: Timespec {
            tv_sec: modified.seconds,
            tv_nsec: modified.nanoseconds.into(),
        },
    }
}

fn apply_to_name(
    parent: BorrowedFd<'_>,
    name: &[u8],
    metadata: &Metadata,
    options: &OutputOptions,
) -> Outcome<()> {
    let (uid, gid) = owners(metadata);
    if !options.ignore_ownership {
        let changed = rustix::fs::chownat(parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW);
        tolerant(changed).map_err(step("set owner"))?;
    }
    if !options.ignore_permissions && metadata.kind != EntryKind::Symlink {
        let mode = Mode::from_raw_mode(metadata.mode);
        let changed = rustix::fs::chmodat(parent, name, mode, AtFlags::empty());
        tolerant(changed).map_err(step("set permissions"))?;
    }
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    tolerant(rustix::fs::utimensat(parent, name, &times(metadata), flags)).map_err(step("set time"))
}

fn owners(metadata: &Metadata) -> (Option<rustix::fs::Uid>, Option<rustix::fs::Gid>) {
    let uid = rustix::fs::Uid::from_raw(metadata.owner);
    let gid = rustix::fs::Gid::from_raw(metadata.group);
    (Some(uid), Some(gid))
}

/// Gives a file or directory its metadata, all but what could forbid to touch it afterwards. One
/// step that fails does not keep the others from being done; the first failure is told.
pub(crate) fn apply(
    fd: BorrowedFd<'_>,
    metadata: &Metadata,
    options: &OutputOptions,
) -> Outcome<()> {
    let mut first = Ok(());
    let mut done = |what: &'static str, outcome: Result<(), Errno>| {
        if first.is_ok() {
            first = outcome.map_err(step(what));
        }
    };
    if !options.ignore_ownership {
        let (uid, gid) = owners(metadata);
        done("set owner", tolerant(rustix::fs::fchown(fd, uid, gid)));
    }
    let (capabilities, others): (Vec<_>, Vec<_>) =
        metadata.extended.iter().partition(|(name, _)| name == b"security.capability");
    done("set extended attributes", set_extended(fd, &others, options));
    done("set file capabilities", set_extended(fd, &capabilities, options));
    if let Some(project) = metadata.project
        && let Ok(mut value) = fsxattr(fd)
    {
        value.project = project;
        done("set quota project", tolerant(set_fsxattr(fd, value)));
    }
    if !options.ignore_permissions {
        let mode = Mode::from_raw_mode(metadata.mode);
        done("set permissions", tolerant(rustix::fs::fchmod(fd, mode)));
    }
    done("set time", tolerant(rustix::fs::futimens(fd, &times(metadata))));
    first
}

/// The last thing that happens to a file or directory: it may be immutable now.
pub(crate) fn seal(fd: BorrowedFd<'_>, metadata: &Metadata) -> Outcome<()> {
    if metadata.fat_attributes != 0
        && let Ok(current) = fat_attributes(fd)
    {
        // Only FAT has them. "Read only" is among them, and belongs to the permissions.
        let wanted = metadata.fat_attributes & FAT_KEPT | current & !FAT_KEPT;
        let _ = set_fat_attributes(fd, wanted);
    }
    match metadata.inode_flags {
        0 => Ok(()),
        flags => set_flags(fd, flags).map_err(step("set attributes (chattr)")),
    }
}

/// Hidden, system, archive.
const FAT_KEPT: u32 = 0x02 | 0x04 | 0x20;

fn set_flags(fd: BorrowedFd<'_>, wanted: u32) -> Result<(), Errno> {
    let Ok(current) = rustix::fs::ioctl_getflags(fd) else { return Ok(()) };
    let current = current.bits();
    let new = wanted & KEPT_FLAGS | current & !KEPT_FLAGS;
    if new == current {
        return Ok(());
    }
    match rustix::fs::ioctl_setflags(fd, IFlags::from_bits_retain(new as _)) {
        // Flags that another file system knew.
        Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::INVAL) => Ok(()),
        other => other,
    }
}

/// Others mean something to the kernel, and no archive of ours has them: pxar.md §12.
fn is_restorable(name: &[u8]) -> bool {
    let known: [&[u8]; 4] = [
        b"security.capability",
        b"security.NTACL",
        b"system.posix_acl_access",
        b"system.posix_acl_default",
    ];
    name.starts_with(b"user.") || name.starts_with(b"trusted.") || known.contains(&name)
}

fn set_extended(
    fd: BorrowedFd<'_>,
    attributes: &[&ExtendedAttribute],
    options: &OutputOptions,
) -> Result<(), Errno> {
    let mut first = Ok(());
    for (name, value) in attributes {
        let ignored = match &name[..] {
            b"security.capability" => options.ignore_fcaps,
            b"system.posix_acl_access" | b"system.posix_acl_default" => options.ignore_acls,
            _ => options.ignore_xattrs,
        };
        if ignored {
            continue;
        }
        if !is_restorable(name) {
            first = first.and(Err(Errno::NOTSUP));
            continue;
        }
        match rustix::fs::fsetxattr(fd, &name[..], value, XattrFlags::empty()) {
            Err(Errno::OPNOTSUPP) => {}
            other => first = first.and(other),
        }
    }
    first
}
