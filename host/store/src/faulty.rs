//! A decorator that makes one call fail: with it, a test tries "fail at call 0, 1, 2 …" until a run
//! meets no fault, and looks at the store after each.

use crate::{
    BackupSession, Capacity, ChunkStore, FileSummary, GroupInfo, IndexLayout, IndexSink, Removal,
    Result, SessionStore, SnapshotInfo, SnapshotReader, SnapshotStore, StoreError,
};
use keepwell_model::{
    ArchiveName, AuthId, Blob, ChunkDigest, GroupId, Namespace, SealedChunk, SnapshotId,
    StoredChunk,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Counts calls, and fails one.
#[derive(Clone, Default)]
pub struct Fuse {
    left: Arc<AtomicU32>,
    at: u32,
}

impl Fuse {
    /// Call number `at`, counted from 0, fails; the others work.
    pub fn at(at: u32) -> Self {
        Self { left: Arc::new(AtomicU32::new(at)), at }
    }

    fn burn(&self) -> Result<()> {
        match self.left.fetch_sub(1, Ordering::Relaxed) {
            0 => Err(StoreError::Injected { call: self.at }),
            _ => Ok(()),
        }
    }

    /// Whether the call to fail has been met.
    pub fn blown(&self) -> bool {
        self.left.load(Ordering::Relaxed) > u32::MAX / 2
    }
}

/// A store whose writing calls burn a fuse.
pub struct Faulty<S> {
    pub inner: S,
    pub fuse: Fuse,
}

struct FaultySession {
    inner: Arc<dyn BackupSession>,
    fuse: Fuse,
}

struct FaultyChunks {
    inner: Arc<dyn ChunkStore>,
    fuse: Fuse,
}

struct FaultyIndex {
    inner: Box<dyn IndexSink>,
    fuse: Fuse,
}

impl<S: SnapshotStore> SessionStore for Faulty<S> {
    fn begin(
        &self,
        namespace: &Namespace,
        snapshot: &SnapshotId,
        owner: &str,
    ) -> Result<Arc<dyn BackupSession>> {
        self.fuse.burn()?;
        let inner = self.inner.begin(namespace, snapshot, owner)?;
        Ok(Arc::new(FaultySession { inner, fuse: self.fuse.clone() }))
    }
    fn open(
        &self,
        namespace: &Namespace,
        snapshot: &SnapshotId,
    ) -> Result<Arc<dyn SnapshotReader>> {
        self.inner.open(namespace, snapshot)
    }
}

impl<S: SnapshotStore> SnapshotStore for Faulty<S> {
    fn namespaces(&self, parent: &Namespace, depth: usize) -> Result<Vec<Namespace>> {
        self.inner.namespaces(parent, depth)
    }
    fn create_namespace(&self, namespace: &Namespace) -> Result<()> {
        self.fuse.burn()?;
        self.inner.create_namespace(namespace)
    }
    fn delete_namespace(&self, namespace: &Namespace, with_groups: bool) -> Result<Removal> {
        self.fuse.burn()?;
        self.inner.delete_namespace(namespace, with_groups)
    }
    fn groups(&self, namespace: &Namespace) -> Result<Vec<GroupInfo>> {
        self.inner.groups(namespace)
    }
    fn snapshots(
        &self,
        namespace: &Namespace,
        group: Option<&GroupId>,
    ) -> Result<Vec<SnapshotInfo>> {
        self.inner.snapshots(namespace, group)
    }
    fn capacity(&self) -> Result<Capacity> {
        self.inner.capacity()
    }
    fn forget(&self, namespace: &Namespace, snapshot: &SnapshotId) -> Result<()> {
        self.fuse.burn()?;
        self.inner.forget(namespace, snapshot)
    }
    fn protected(&self, namespace: &Namespace, snapshot: &SnapshotId) -> Result<bool> {
        self.inner.protected(namespace, snapshot)
    }
    fn set_protected(&self, ns: &Namespace, snapshot: &SnapshotId, protected: bool) -> Result<()> {
        self.fuse.burn()?;
        self.inner.set_protected(ns, snapshot, protected)
    }
    fn update_manifest(
        &self,
        namespace: &Namespace,
        snapshot: &SnapshotId,
        change: &mut dyn FnMut(Blob) -> Result<Blob>,
    ) -> Result<()> {
        self.fuse.burn()?;
        self.inner.update_manifest(namespace, snapshot, change)
    }
    fn change_owner(&self, namespace: &Namespace, group: &GroupId, owner: &AuthId) -> Result<()> {
        self.fuse.burn()?;
        self.inner.change_owner(namespace, group, owner)
    }
    fn add_log(&self, namespace: &Namespace, snapshot: &SnapshotId, log: &Blob) -> Result<()> {
        self.fuse.burn()?;
        self.inner.add_log(namespace, snapshot, log)
    }
}

impl ChunkStore for FaultyChunks {
    fn insert(&self, chunk: &SealedChunk<'_>) -> Result<StoredChunk> {
        self.fuse.burn()?;
        self.inner.insert(chunk)
    }
    fn touch(&self, digest: &ChunkDigest, plain_bytes: u64) -> Result<Option<StoredChunk>> {
        self.fuse.burn()?;
        self.inner.touch(digest, plain_bytes)
    }
    fn read(&self, digest: &ChunkDigest) -> Result<Vec<u8>> {
        self.fuse.burn()?;
        self.inner.read(digest)
    }
}

impl BackupSession for FaultySession {
    fn previous(&self) -> Option<Arc<dyn SnapshotReader>> {
        self.inner.previous()
    }
    fn create_index(&self, name: &ArchiveName, layout: IndexLayout) -> Result<Box<dyn IndexSink>> {
        self.fuse.burn()?;
        let inner = self.inner.create_index(name, layout)?;
        Ok(Box::new(FaultyIndex { inner, fuse: self.fuse.clone() }))
    }
    fn put_blob(&self, name: &ArchiveName, blob: &Blob) -> Result<FileSummary> {
        self.fuse.burn()?;
        self.inner.put_blob(name, blob)
    }
    fn finish(&self, manifest: &Blob) -> Result<()> {
        self.fuse.burn()?;
        self.inner.finish(manifest)
    }
}

impl IndexSink for FaultyIndex {
    fn chunks(&self) -> Arc<dyn ChunkStore> {
        Arc::new(FaultyChunks { inner: self.inner.chunks(), fuse: self.fuse.clone() })
    }
    fn append(&mut self, chunk: &StoredChunk) -> Result<()> {
        self.fuse.burn()?;
        self.inner.append(chunk)
    }
    fn finish(self: Box<Self>) -> Result<FileSummary> {
        self.fuse.burn()?;
        self.inner.finish()
    }
}
