//! Describes a tree in full metadata, so that two can be compared.

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// One line for each entry, by path.
pub type Description = BTreeMap<String, String>;

/// Describes everything below `root`, and `root` itself.
pub fn describe(root: &Path) -> Description {
    let mut found = Description::new();
    let mut inodes = HashMap::new();
    let mut pending = vec![root.to_owned()];
    let mut all = Vec::new();
    while let Some(path) = pending.pop() {
        if fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_dir()) {
            let entries = fs::read_dir(&path).map(|entries| entries.flatten().collect::<Vec<_>>());
            pending.extend(entries.unwrap_or_default().into_iter().map(|entry| entry.path()));
        }
        all.push(path);
    }
    all.sort();
    for path in all {
        let relative = path.strip_prefix(root).unwrap_or(&path);
        let name = relative.as_os_str().as_bytes().escape_ascii().to_string();
        let line = entry(&path, &name, &mut inodes);
        found.insert(name, line);
    }
    found
}

fn entry(path: &Path, name: &str, inodes: &mut HashMap<(u64, u64), String>) -> String {
    let Ok(stat) = rustix::fs::statat(rustix::fs::CWD, path, AtFlags::SYMLINK_NOFOLLOW) else {
        return "gone".into();
    };
    let kind = FileType::from_raw_mode(stat.st_mode);
    let mut line = format!(
        "{kind:?} {:o} {}:{} {}.{:09}",
        stat.st_mode & 0o7777,
        stat.st_uid,
        stat.st_gid,
        stat.st_mtime,
        stat.st_mtime_nsec
    );
    match kind {
        FileType::RegularFile => {
            let content = fs::read(path).unwrap_or_default();
            line += &format!(" {} {}", stat.st_size, hex::encode(Sha256::digest(content)));
            if stat.st_nlink > 1 {
                let first = inodes.entry((stat.st_dev, stat.st_ino)).or_insert(name.to_owned());
                line += &format!(" = {first}");
            }
        }
        FileType::Symlink => line += &format!(" -> {:?}", fs::read_link(path).unwrap_or_default()),
        FileType::BlockDevice | FileType::CharacterDevice => line += &format!(" {}", stat.st_rdev),
        _ => {}
    }
    line + &attributes(path, kind)
}

fn attributes(path: &Path, kind: FileType) -> String {
    if !matches!(kind, FileType::RegularFile | FileType::Directory) {
        return String::new();
    }
    let mut text = String::new();
    let Ok(c_path) = CString::new(path.as_os_str().as_bytes()) else { return text };
    let mut names = vec![0; 65_536];
    let length = rustix::fs::listxattr(&*c_path, &mut names[..]).unwrap_or(0);
    let mut names: Vec<&[u8]> =
        names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()).collect();
    names.sort_unstable();
    for name in names {
        let mut value = vec![0; 65_536];
        let length = rustix::fs::getxattr(&*c_path, name, &mut value[..]).unwrap_or(0);
        text += &format!(" {}={}", name.escape_ascii(), hex::encode(&value[..length]));
    }
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    if let Ok(fd) = rustix::fs::open(path, flags, Mode::empty())
        && let Ok(flags) = rustix::fs::ioctl_getflags(&fd)
    {
        // Extents are the file system's business; 's' and 'u' are not archived.
        text += &format!(" flags {:x}", flags.bits() & !(0x8_0000 | 0x3 | 0x2_0000));
    }
    text
}

/// What differs, one line each.
pub fn differences(left: &Description, right: &Description) -> Vec<String> {
    let mut found = Vec::new();
    for (name, line) in left {
        match right.get(name) {
            None => found.push(format!("only left: {name}")),
            Some(other) if other != line => found.push(format!("{name}:\n  {line}\n  {other}")),
            Some(_) => {}
        }
    }
    found.extend(
        right.keys().filter(|n| !left.contains_key(*n)).map(|n| format!("only right: {n}")),
    );
    found
}
