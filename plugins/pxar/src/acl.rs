//! POSIX ACLs: the kernel's extended attributes and the archive's items.
//!
//! In an archive the owner's and others' rights are those of the mode, and the mode's group bits
//! are the mask where there is one: shared/spec/pxar.md §8, §12.

use crate::format::ACL_ABSENT;

const VERSION: u32 = 2;
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;
const NO_ID: u32 = u32::MAX;

/// Named entries (id, rights), sorted, and the rights of the four base entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Acl {
    pub users: Vec<(u64, u64)>,
    pub groups: Vec<(u64, u64)>,
    pub user_obj: Option<u64>,
    pub group_obj: Option<u64>,
    pub other: Option<u64>,
    pub mask: Option<u64>,
}

impl Acl {
    /// Reads the kernel's form: a version, then entries of tag, rights and id.
    pub fn from_kernel(value: &[u8]) -> Option<Self> {
        let (version, entries) = value.split_first_chunk::<4>()?;
        if u32::from_le_bytes(*version) != VERSION || entries.len() % 8 != 0 {
            return None;
        }
        let mut acl = Self::default();
        for entry in entries.chunks_exact(8) {
            let tag = u16::from_le_bytes([entry[0], entry[1]]);
            let rights = u64::from(u16::from_le_bytes([entry[2], entry[3]]));
            let id = u64::from(u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]));
            match tag {
                USER_OBJ => acl.user_obj = Some(rights),
                USER => acl.users.push((id, rights)),
                GROUP_OBJ => acl.group_obj = Some(rights),
                GROUP => acl.groups.push((id, rights)),
                MASK => acl.mask = Some(rights),
                OTHER => acl.other = Some(rights),
                _ => return None,
            }
        }
        acl.users.sort_unstable();
        acl.groups.sort_unstable();
        Some(acl)
    }

    /// The kernel's form, entries in the order that it demands.
    pub fn to_kernel(&self) -> Vec<u8> {
        let mut value = VERSION.to_le_bytes().to_vec();
        let mut push = |tag: u16, rights: u64, id: u32| {
            value.extend(tag.to_le_bytes());
            value.extend((rights as u16 & 7).to_le_bytes());
            value.extend(id.to_le_bytes());
        };
        if let Some(rights) = self.user_obj {
            push(USER_OBJ, rights, NO_ID);
        }
        for (id, rights) in &self.users {
            push(USER, *rights, *id as u32);
        }
        if let Some(rights) = self.group_obj {
            push(GROUP_OBJ, rights, NO_ID);
        }
        for (id, rights) in &self.groups {
            push(GROUP, *rights, *id as u32);
        }
        if let Some(rights) = self.mask {
            push(MASK, rights, NO_ID);
        }
        if let Some(rights) = self.other {
            push(OTHER, rights, NO_ID);
        }
        value
    }

    /// Completes an access ACL from the mode. `self.group_obj` is what the archive holds.
    pub fn completed_from_mode(mut self, mode: u32) -> Self {
        let group_bits = u64::from(mode >> 3 & 7);
        self.user_obj = Some(u64::from(mode >> 6 & 7));
        self.other = Some(u64::from(mode & 7));
        let named = !self.users.is_empty() || !self.groups.is_empty();
        if self.group_obj.is_some() {
            self.mask = Some(group_bits);
        } else {
            self.group_obj = Some(group_bits);
            self.mask = named.then_some(group_bits);
        }
        self
    }

    pub fn has_base_entry(&self) -> bool {
        [self.user_obj, self.group_obj, self.other, self.mask].iter().any(Option::is_some)
    }
}

/// A base entry as stored.
pub fn stored(rights: Option<u64>) -> u64 {
    rights.unwrap_or(ACL_ABSENT)
}

/// A stored base entry.
pub fn present(rights: u64) -> Option<u64> {
    (rights != ACL_ABSENT).then_some(rights)
}
