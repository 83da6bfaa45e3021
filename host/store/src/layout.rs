//! The only place that knows how a datastore is laid out on disk: formats.md §4, §8.

use keepwell_model::{ArchiveName, ChunkDigest, GroupId, Namespace, SnapshotId};
use std::path::{Path, PathBuf};

/// Paths of a datastore.
#[derive(Clone, Debug)]
pub struct Layout {
    root: PathBuf,
}

pub(crate) const CHUNK_DIRS: u32 = 65_536;
pub(crate) const OWNER: &str = "owner";
pub(crate) const NOTES: &str = "notes";
pub(crate) const PROTECTED: &str = ".protected";
/// Unfinished snapshots begin with a dot and carry this.
pub(crate) const TEMPORARY: &str = ".tmp_";

impl Layout {
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn lock(&self) -> PathBuf {
        self.root.join(".lock")
    }

    pub fn chunks(&self) -> PathBuf {
        self.root.join(".chunks")
    }

    /// The directory of chunks whose digests begin with these two bytes.
    pub fn chunk_dir(&self, prefix: u16) -> PathBuf {
        self.chunks().join(format!("{prefix:04x}"))
    }

    pub fn chunk(&self, digest: &ChunkDigest) -> PathBuf {
        let hex = digest.to_string();
        self.chunks().join(&hex[..4]).join(hex)
    }

    pub fn namespace(&self, namespace: &Namespace) -> PathBuf {
        let mut path = self.root.clone();
        for component in namespace.components() {
            path.push("ns");
            path.push(component);
        }
        path
    }

    pub fn group(&self, namespace: &Namespace, group: &GroupId) -> PathBuf {
        self.namespace(namespace).join(group.kind.as_str()).join(group.id.as_str())
    }

    pub fn snapshot(&self, namespace: &Namespace, snapshot: &SnapshotId) -> PathBuf {
        self.group(namespace, &snapshot.group).join(snapshot.time.to_string())
    }

    pub fn file(
        &self,
        namespace: &Namespace,
        snapshot: &SnapshotId,
        name: &ArchiveName,
    ) -> PathBuf {
        self.snapshot(namespace, snapshot).join(name.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_never_change() {
        let layout = Layout::new("/s".into());
        let namespace = "a/b".parse().unwrap();
        let snapshot = "host/x/2020-06-26T13:56:05Z".parse().unwrap();
        let file = layout.file(&namespace, &snapshot, &ArchiveName::manifest());
        let expected = "/s/ns/a/ns/b/host/x/2020-06-26T13:56:05Z/index.json.blob";
        assert_eq!(file, Path::new(expected));
        let digest: ChunkDigest = "ab".repeat(32).parse().unwrap();
        assert_eq!(layout.chunk(&digest), Path::new(&format!("/s/.chunks/abab/{digest}")));
        assert_eq!(layout.chunk_dir(10), Path::new("/s/.chunks/000a"));
    }
}
