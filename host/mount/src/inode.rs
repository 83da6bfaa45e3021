//! The numbers by which the kernel knows what it was shown, as long as it remembers them.

use crate::archive::Lazy;
use crate::directory::Directory;
use keepwell_engine::plugin::Node;
use std::collections::HashMap;
use std::sync::Arc;

/// What a number stands for.
#[derive(Clone)]
pub(crate) enum Item {
    Directory(Arc<dyn Directory>),
    Entry { archive: Arc<Lazy>, node: Node },
}

/// What makes two things the same.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) enum Key {
    /// by name in a directory that is in no archive
    Named(u64, Vec<u8>),
    /// archive and place: all names of a file have one
    Entry(u64, u64),
}

struct Inode {
    item: Item,
    key: Key,
    /// how often the kernel was told of it
    lookups: u64,
}

/// The number of the root.
pub(crate) const ROOT: u64 = 1;

pub(crate) struct Inodes {
    by_number: HashMap<u64, Inode>,
    by_key: HashMap<Key, u64>,
    next: u64,
}

impl Inodes {
    pub(crate) fn new(root: Item) -> Self {
        let key = Key::Named(0, Vec::new());
        let root = Inode { item: root, key, lookups: 1 };
        Self { by_number: HashMap::from([(ROOT, root)]), by_key: HashMap::new(), next: ROOT + 1 }
    }

    pub(crate) fn item(&self, number: u64) -> Option<Item> {
        self.by_number.get(&number).map(|inode| inode.item.clone())
    }

    /// What the kernel knows under this key.
    pub(crate) fn known(&self, key: &Key) -> Option<Item> {
        self.by_key.get(key).and_then(|number| self.item(*number))
    }

    /// The number under which the kernel is told of something.
    pub(crate) fn tell(&mut self, key: Key, item: impl FnOnce() -> Item) -> u64 {
        if let Some(number) = self.by_key.get(&key)
            && let Some(inode) = self.by_number.get_mut(number)
        {
            inode.lookups += 1;
            return *number;
        }
        let number = self.next;
        self.next += 1;
        self.by_key.insert(key.clone(), number);
        self.by_number.insert(number, Inode { item: item(), key, lookups: 1 });
        number
    }

    /// The kernel has forgotten that it was told so often.
    pub(crate) fn forget(&mut self, number: u64, lookups: u64) {
        let Some(inode) = self.by_number.get_mut(&number).filter(|_| number != ROOT) else {
            return;
        };
        inode.lookups = inode.lookups.saturating_sub(lookups);
        if inode.lookups == 0
            && let Some(inode) = self.by_number.remove(&number)
        {
            self.by_key.remove(&inode.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::Problem;
    use crate::directory::Child;

    struct Empty;

    impl Directory for Empty {
        fn list(&self) -> Result<Vec<(Vec<u8>, Child)>, Problem> {
            Ok(Vec::new())
        }
    }

    #[test]
    fn what_the_kernel_forgets_is_forgotten() {
        let item = || Item::Directory(Arc::new(Empty));
        let mut inodes = Inodes::new(item());
        let first = inodes.tell(Key::Entry(0, 7), item);
        assert_eq!(inodes.tell(Key::Entry(0, 7), item), first, "all names of a file");
        let other = inodes.tell(Key::Entry(1, 7), item);
        assert_ne!(first, other);
        inodes.forget(first, 1);
        assert!(inodes.item(first).is_some());
        inodes.forget(first, 1);
        assert!(inodes.item(first).is_none() && inodes.known(&Key::Entry(0, 7)).is_none());
        inodes.forget(ROOT, 99);
        assert!(inodes.item(ROOT).is_some() && inodes.item(other).is_some());
        // Numbers are not used again.
        assert!(inodes.tell(Key::Entry(0, 7), item) > other);
    }
}
