//! Directories that are in no archive: what lists namespaces, groups and snapshots.

use crate::archive::{Opener, Problem};
use std::sync::Arc;

/// What is in such a directory.
pub enum Child {
    Directory(Arc<dyn Directory>),
    /// an archive, and whether it is a directory
    Archive(Opener, bool),
}

/// Is asked each time.
pub trait Directory: Send + Sync {
    fn list(&self) -> Result<Vec<(Vec<u8>, Child)>, Problem>;
    /// seconds since 1970
    fn modified(&self) -> i64 {
        0
    }
}
