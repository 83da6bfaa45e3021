//! Item types, hashes and fixed layouts of a pxar archive: shared/spec/pxar.md §1, §2, §5.

use siphasher::sip::SipHasher24;
use std::hash::Hasher;

/// Every item begins with its type and its full size, both little endian.
pub const HEADER_BYTES: u64 = 16;
/// Content of ENTRY, see [`Stat`].
pub const STAT_BYTES: u64 = 40;
/// Longest name or link target, without its NUL.
pub const PATH_BYTES_MAX: u64 = 4096;
/// An extended attribute's name, NUL and value.
pub const XATTR_BYTES_MAX: u64 = 256 + 65536;
/// "Not present" in an ACL word.
pub const ACL_ABSENT: u64 = u64::MAX;
/// Ends a goodbye table.
pub const GOODBYE_TAIL: u64 = 0xef5eed5b753e1555;
/// One row of a goodbye table.
pub const GOODBYE_ROW_BYTES: u64 = 24;

macro_rules! item_types {
    ($($name:ident = $value:literal,)*) => {
        $(pub const $name: u64 = $value;)*
    };
}

item_types! {
    FORMAT_VERSION = 0x730f6c75df16a40d,
    PRELUDE = 0xe309d79d9f7b771b,
    ENTRY = 0xd5956474e588acef,
    ENTRY_V1 = 0x11da850a1c1cceff,
    FILENAME = 0x16701121063917b3,
    SYMLINK = 0x27f971e7dbf5dc5f,
    DEVICE = 0x9fc9e906586d5ce9,
    XATTR = 0x0dab0229b57dcd03,
    ACL_USER = 0x2ce8540a457d55b8,
    ACL_GROUP = 0x136e3eceb04c03ab,
    ACL_GROUP_OBJ = 0x10868031e9582876,
    ACL_DEFAULT = 0xbbbb13415a6896f5,
    ACL_DEFAULT_USER = 0xc89357b40532cd1f,
    ACL_DEFAULT_GROUP = 0xf90a8a5816038ffe,
    FCAPS = 0x2da9dd9db5f7fb67,
    QUOTA_PROJID = 0xe07540e82f7d1cbb,
    HARDLINK = 0x51269c8422bd7275,
    PAYLOAD = 0x28147a1b0b7c1a25,
    PAYLOAD_REF = 0x419d3d6bc4ba977e,
    PAYLOAD_START_MARKER = 0x834c68c2194a4ed2,
    PAYLOAD_TAIL_MARKER = 0x6c72b78b984c81b5,
    GOODBYE = 0x2fec4fa642d5731d,
}

/// Hash of a name in a goodbye table.
pub fn name_hash(name: &[u8]) -> u64 {
    let mut hasher = SipHasher24::new_with_keys(0x83ac3f1cfbb450db, 0xaa4f1b6879369fbd);
    hasher.write(name);
    hasher.finish()
}

/// File type bits of st_mode.
pub mod file_type {
    pub const MASK: u64 = 0o170000;
    pub const SOCKET: u64 = 0o140000;
    pub const SYMLINK: u64 = 0o120000;
    pub const FILE: u64 = 0o100000;
    pub const BLOCK_DEVICE: u64 = 0o060000;
    pub const DIRECTORY: u64 = 0o040000;
    pub const CHARACTER_DEVICE: u64 = 0o020000;
    pub const FIFO: u64 = 0o010000;
}

/// Kernel bits of FS_IOC_GETFLAGS and their bits in an archive: shared/spec/pxar.md §7.
pub const FLAG_PAIRS: [(u32, u64); 10] = [
    (0x20, 0x10000),           // append only
    (0x80, 0x20000),           // no atime
    (0x4, 0x40000),            // compress
    (0x80_0000, 0x80000),      // no copy on write
    (0x40, 0x10_0000),         // no dump
    (0x1_0000, 0x20_0000),     // synchronous directory
    (0x10, 0x40_0000),         // immutable
    (0x8, 0x80_0000),          // synchronous
    (0x400, 0x100_0000),       // don't compress
    (0x2000_0000, 0x200_0000), // inherit project
];

/// Bits of FAT_IOCTL_GET_ATTRIBUTES and their bits in an archive.
pub const FAT_PAIRS: [(u32, u64); 3] = [(2, 0x2000), (4, 0x4000), (32, 0x8000)];

/// Bits of an archive for bits of the kernel.
pub fn stored_flags(pairs: &[(u32, u64)], kernel: u32) -> u64 {
    pairs.iter().filter(|(bit, _)| kernel & bit != 0).map(|(_, stored)| stored).sum()
}

/// The way back.
pub fn kernel_flags(pairs: &[(u32, u64)], stored: u64) -> u32 {
    pairs.iter().filter(|(_, bit)| stored & bit != 0).map(|(kernel, _)| kernel).sum()
}

/// One row of a goodbye table, positions absolute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GoodbyeRow {
    pub hash: u64,
    /// of the child's FILENAME header
    pub start: u64,
    pub end: u64,
}

/// The order in which sorted rows stand in a table: a complete binary search tree, by breadth.
pub fn search_tree_order(count: usize) -> Vec<usize> {
    let mut slots = vec![0; count];
    let mut pending = vec![(count, 0, 0)];
    while let Some((count, first, slot)) = pending.pop() {
        if count == 0 {
            continue;
        }
        let levels = count.ilog2();
        let full = 1usize << levels;
        let threshold = full + full / 2 - 1;
        let middle = if count > threshold { full - 1 } else { full - 1 - (threshold - count) };
        slots[slot] = first + middle;
        pending.push((middle, first, 2 * slot + 1));
        pending.push((count - middle - 1, first + middle + 1, 2 * slot + 2));
    }
    slots
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_hashes_never_change() {
        assert_eq!(name_hash(b"a"), 0x0c26e9067c2c7bcf);
        assert_eq!(name_hash(b"foo"), 0x026851e9bf213422);
        assert_eq!(name_hash(b".pxarexclude-cli"), 0x046975ce672e09eb);
        assert_eq!(name_hash(b"__PROXMOX_FORMAT_ENTRY_V2__"), ENTRY);
        assert_eq!(name_hash(b"__PROXMOX_FORMAT_GOODBYE__"), GOODBYE);
        assert_eq!(name_hash(b"__PROXMOX_FORMAT_PRELUDE__"), PRELUDE);
        assert_eq!(name_hash(b"__PROXMOX_FORMAT_PXAR_PAYLOAD_REF__"), PAYLOAD_REF);
        let marker = |which: &str| {
            name_hash(format!("__PROXMOX_FORMAT_PXAR_PAYLOAD_{which}_MARKER__").as_bytes())
        };
        assert_eq!(marker("START"), PAYLOAD_START_MARKER);
        assert_eq!(marker("TAIL"), PAYLOAD_TAIL_MARKER);
    }

    #[test]
    fn tables_are_search_trees() {
        assert_eq!(search_tree_order(5), [3, 1, 4, 0, 2]);
        assert_eq!(search_tree_order(10), [6, 3, 8, 1, 5, 7, 9, 0, 2, 4]);
        assert_eq!(search_tree_order(0), [0usize; 0]);
        for count in 1..200 {
            let order = search_tree_order(count);
            for slot in 1..count {
                let parent = (slot - 1) / 2;
                let left = slot % 2 == 1;
                assert_eq!(order[slot] < order[parent], left, "count {count} slot {slot}");
            }
        }
    }

    #[test]
    fn flags_map_both_ways() {
        for (kernel, stored) in FLAG_PAIRS {
            assert_eq!(stored_flags(&FLAG_PAIRS, kernel), stored);
            assert_eq!(kernel_flags(&FLAG_PAIRS, stored), kernel);
        }
        // s and u are not archived
        assert_eq!(stored_flags(&FLAG_PAIRS, 0x3), 0);
    }
}
