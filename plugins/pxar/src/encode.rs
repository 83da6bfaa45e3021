//! Turns metadata and positions into items. Pure: bytes in, bytes out.

use crate::acl::{Acl, stored};
use crate::format::{self, GoodbyeRow, HEADER_BYTES, STAT_BYTES, file_type};
use keepwell_sdk::{EntryKind, Metadata};

/// Which metadata to leave out.
#[derive(Clone, Copy, Default)]
pub struct Omit {
    pub xattrs: bool,
    pub fcaps: bool,
    pub acls: bool,
}

impl Omit {
    /// Whether no extended attribute is archived.
    pub fn all_attributes(self) -> bool {
        self.xattrs && self.fcaps && self.acls
    }
}

/// An item's header; `content` is the length of what follows.
pub fn header(out: &mut Vec<u8>, item_type: u64, content: u64) {
    out.extend(item_type.to_le_bytes());
    out.extend((HEADER_BYTES + content).to_le_bytes());
}

fn words(out: &mut Vec<u8>, item_type: u64, words: &[u64]) {
    header(out, item_type, 8 * words.len() as u64);
    out.extend(words.iter().flat_map(|word| word.to_le_bytes()));
}

fn nul_terminated(out: &mut Vec<u8>, item_type: u64, text: &[u8]) {
    header(out, item_type, text.len() as u64 + 1);
    out.extend(text);
    out.push(0);
}

/// What a split archive's metadata begins with; `exclude` are the patterns of the command line, a line for
/// each: spec §10, §11.
pub fn prologue(out: &mut Vec<u8>, exclude: &[u8]) {
    words(out, format::FORMAT_VERSION, &[2]);
    if !exclude.is_empty() {
        let prelude = format!("{{\"exclude-patterns\":\"{}\"}}", json_escaped(exclude));
        header(out, format::PRELUDE, prelude.len() as u64);
        out.extend(prelude.as_bytes());
    }
}

fn json_escaped(text: &[u8]) -> String {
    let mut out = String::new();
    for c in String::from_utf8_lossy(text).chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out += "\\n",
            c if c < ' ' => out += &format!("\\u{:04x}", c as u32),
            c => out.push(c),
        }
    }
    out
}

/// Where a file's content lies in the other stream: the place of its PAYLOAD header, and its length.
pub fn payload_ref(out: &mut Vec<u8>, position: u64, length: u64) {
    words(out, format::PAYLOAD_REF, &[position, length]);
}

pub fn filename(out: &mut Vec<u8>, name: &[u8]) {
    nul_terminated(out, format::FILENAME, name);
}

/// ENTRY and all metadata items, and the item that tells a link or a device. Content of files
/// follows: PAYLOAD's header is the caller's.
pub fn entry(out: &mut Vec<u8>, metadata: &Metadata, omit: Omit) {
    stat(out, metadata);
    let mut access = None;
    let mut default = None;
    let mut fcaps = None;
    for attribute in &metadata.extended {
        match &attribute.name[..] {
            b"system.posix_acl_access" if !omit.acls => access = Acl::from_kernel(&attribute.value),
            b"system.posix_acl_default" if !omit.acls => {
                default = Acl::from_kernel(&attribute.value);
            }
            b"security.capability" if !omit.fcaps => fcaps = Some(&attribute.value),
            name if is_archived(name) && !omit.xattrs => {
                let length = name.len() + 1 + attribute.value.len();
                header(out, format::XATTR, length as u64);
                out.extend(name);
                out.push(0);
                out.extend(&attribute.value);
            }
            _ => {}
        }
    }
    if let Some(acl) = access {
        access_acl(out, &acl);
    }
    if let Some(acl) = default.filter(|_| metadata.kind == EntryKind::Directory) {
        default_acl(out, &acl);
    }
    if let Some(value) = fcaps {
        header(out, format::FCAPS, value.len() as u64);
        out.extend(value);
    }
    if let Some(project) = metadata.project {
        words(out, format::QUOTA_PROJID, &[u64::from(project)]);
    }
    if let Some(target) = &metadata.link_target {
        nul_terminated(out, format::SYMLINK, target);
    }
    if let Some((major, minor)) = metadata.device {
        words(out, format::DEVICE, &[u64::from(major), u64::from(minor)]);
    }
}

/// Attributes of other prefixes belong to the system, not to the file: spec §8.
fn is_archived(name: &[u8]) -> bool {
    name.len() <= 255
        && (name.starts_with(b"user.")
            || name.starts_with(b"trusted.")
            || name == b"security.NTACL")
}

fn stat(out: &mut Vec<u8>, metadata: &Metadata) {
    let kind = match metadata.kind {
        EntryKind::Directory => file_type::DIRECTORY,
        EntryKind::File => file_type::FILE,
        EntryKind::Symlink => file_type::SYMLINK,
        EntryKind::BlockDevice => file_type::BLOCK_DEVICE,
        EntryKind::CharacterDevice => file_type::CHARACTER_DEVICE,
        EntryKind::Fifo => file_type::FIFO,
        EntryKind::Socket => file_type::SOCKET,
    };
    let flags = format::stored_flags(&format::FLAG_PAIRS, metadata.inode_flags)
        | format::stored_flags(&format::FAT_PAIRS, metadata.fat_attributes);
    header(out, format::ENTRY, STAT_BYTES);
    out.extend((kind | u64::from(metadata.mode)).to_le_bytes());
    out.extend(flags.to_le_bytes());
    out.extend(metadata.owner.to_le_bytes());
    out.extend(metadata.group.to_le_bytes());
    out.extend(metadata.modified.seconds.to_le_bytes());
    out.extend(metadata.modified.nanoseconds.to_le_bytes());
    out.extend([0; 4]);
}

fn access_acl(out: &mut Vec<u8>, acl: &Acl) {
    for (id, rights) in &acl.users {
        words(out, format::ACL_USER, &[*id, *rights]);
    }
    for (id, rights) in &acl.groups {
        words(out, format::ACL_GROUP, &[*id, *rights]);
    }
    if let (Some(_), Some(rights)) = (acl.mask, acl.group_obj) {
        words(out, format::ACL_GROUP_OBJ, &[rights]);
    }
}

fn default_acl(out: &mut Vec<u8>, acl: &Acl) {
    if acl.has_base_entry() {
        let base = [acl.user_obj, acl.group_obj, acl.other, acl.mask].map(stored);
        words(out, format::ACL_DEFAULT, &base);
    }
    for (id, rights) in &acl.users {
        words(out, format::ACL_DEFAULT_USER, &[*id, *rights]);
    }
    for (id, rights) in &acl.groups {
        words(out, format::ACL_DEFAULT_GROUP, &[*id, *rights]);
    }
}

/// A HARDLINK item. `distance` is from the target's FILENAME to this entry's.
pub fn hard_link(out: &mut Vec<u8>, distance: u64, target: &[u8]) {
    header(out, format::HARDLINK, 8 + target.len() as u64 + 1);
    out.extend(distance.to_le_bytes());
    out.extend(target);
    out.push(0);
}

/// The table that ends a directory. `entry_start` is where the directory's own ENTRY begins,
/// `position` where this table does.
pub fn goodbye(out: &mut Vec<u8>, mut rows: Vec<GoodbyeRow>, entry_start: u64, position: u64) {
    rows.sort_unstable_by_key(|row| row.hash);
    let content = format::GOODBYE_ROW_BYTES * (rows.len() as u64 + 1);
    header(out, format::GOODBYE, content);
    let mut push = |row: [u64; 3]| out.extend(row.iter().flat_map(|word| word.to_le_bytes()));
    for index in format::search_tree_order(rows.len()) {
        let row = &rows[index];
        push([row.hash, position - row.start, row.end - row.start]);
    }
    push([format::GOODBYE_TAIL, position - entry_start, HEADER_BYTES + content]);
}
