//! One backup into a directory store: a hidden directory that becomes the snapshot at the end.

use crate::crashed::Marker;
use crate::dir::{DirChunks, Keeper, io, sync_dir, sync_file_system, write_durably};
use crate::layout::Layout;
use crate::lock::{DirLock, WriterLock};
use crate::{
    BackupSession, ChunkStore, FileSummary, IndexLayout, IndexSink, Result, SnapshotReader,
    StoreError,
};
use keepwell_model::index::{CHECKSUM_OFFSET, IndexEncoder};
use keepwell_model::{ArchiveName, Blob, FileChecksum, Namespace, SnapshotId, StoredChunk};
use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

pub(crate) struct DirSession {
    pub(crate) layout: Layout,
    pub(crate) keeper: Keeper,
    pub(crate) chunks: DirChunks,
    pub(crate) namespace: Namespace,
    pub(crate) snapshot: SnapshotId,
    /// hidden until the end
    pub(crate) work_dir: PathBuf,
    /// to be taken away again if nothing comes of it
    pub(crate) group_is_new: bool,
    pub(crate) previous: Option<Arc<dyn SnapshotReader>>,
    pub(crate) finished: AtomicBool,
    /// begun so far
    pub(crate) indexes: AtomicU64,
    pub(crate) _group: DirLock,
    pub(crate) _writer: WriterLock,
    pub(crate) _marker: Marker,
}

impl BackupSession for DirSession {
    fn previous(&self) -> Option<Arc<dyn SnapshotReader>> {
        self.previous.clone()
    }

    fn create_index(&self, name: &ArchiveName, layout: IndexLayout) -> Result<Box<dyn IndexSink>> {
        let encoder = match layout {
            IndexLayout::Dynamic => IndexEncoder::dynamic(),
            IndexLayout::Fixed { chunk_bytes, .. } => IndexEncoder::fixed(chunk_bytes),
        };
        let path = self.work_dir.join(name.as_str());
        let extension = name.kind().extension();
        // A client may begin an archive again: the last that is finished counts.
        let number = self.indexes.fetch_add(1, Ordering::Relaxed);
        let temporary = path.with_extension(format!("tmp_{extension}{number}"));
        let mut options = OpenOptions::new();
        let file = options.write(true).create_new(true).open(&temporary);
        let file = file.map_err(io("create", &temporary))?;
        self.keeper.own_file(&file, &temporary)?;
        let mut uuid = [0; 16];
        let _ = getrandom::fill(&mut uuid);
        uuid[6] = uuid[6] & 0x0f | 0x40;
        uuid[8] = uuid[8] & 0x3f | 0x80;
        let created = self.snapshot.time.unix();
        let mut out = BufWriter::with_capacity(64 << 10, file);
        let header = encoder.header(uuid, created, &FileChecksum::from_bytes([0; 32]));
        out.write_all(&header).map_err(io("write", &temporary))?;
        let chunks = self.chunks.clone();
        Ok(Box::new(DirIndex { encoder, chunks, out, uuid, created, temporary, path }))
    }

    fn put_blob(&self, name: &ArchiveName, blob: &Blob) -> Result<FileSummary> {
        let path = self.work_dir.join(name.as_str());
        fs::write(&path, blob.as_bytes()).map_err(io("write", &path))?;
        self.keeper.own_path(&path)?;
        let size = blob.as_bytes().len() as u64;
        Ok(FileSummary { size, checksum: FileChecksum::of(blob.as_bytes()) })
    }

    fn finish(&self, manifest: &Blob) -> Result<()> {
        let target = self.layout.snapshot(&self.namespace, &self.snapshot);
        if target.exists() {
            return Err(StoreError::TooOld { last: self.snapshot.clone() });
        }
        // All that the manifest will promise is on the disk before there is a manifest.
        sync_file_system(self.layout.root())?;
        let name = ArchiveName::manifest();
        write_durably(&self.work_dir.join(name.as_str()), manifest.as_bytes(), self.keeper)?;
        fs::rename(&self.work_dir, &target).map_err(io("create", &target))?;
        self.finished.store(true, Ordering::Relaxed);
        sync_dir(&self.layout.group(&self.namespace, &self.snapshot.group))
    }
}

impl Drop for DirSession {
    fn drop(&mut self) {
        if *self.finished.get_mut() {
            return;
        }
        let _ = fs::remove_dir_all(&self.work_dir);
        if self.group_is_new {
            let group = self.layout.group(&self.namespace, &self.snapshot.group);
            let empty = fs::read_dir(&group).is_ok_and(|entries| entries.count() == 1);
            if empty {
                let _ = fs::remove_file(group.join(crate::layout::OWNER));
                let _ = fs::remove_dir(&group);
            }
        }
    }
}

struct DirIndex {
    encoder: IndexEncoder,
    chunks: DirChunks,
    out: BufWriter<File>,
    uuid: [u8; 16],
    created: i64,
    temporary: PathBuf,
    path: PathBuf,
}

impl IndexSink for DirIndex {
    fn chunks(&self) -> Arc<dyn ChunkStore> {
        Arc::new(self.chunks.clone())
    }

    fn append(&mut self, chunk: &StoredChunk) -> Result<()> {
        let entry = self.encoder.append(&chunk.digest, chunk.plain_bytes)?;
        self.out.write_all(&entry).map_err(io("write", &self.temporary))
    }

    fn finish(mut self: Box<Self>) -> Result<FileSummary> {
        let checksum = self.encoder.checksum();
        let header = self.encoder.header(self.uuid, self.created, &checksum);
        let write = |out: &mut BufWriter<File>| {
            out.seek(SeekFrom::Start(0))?;
            out.write_all(&header)?;
            out.flush()
        };
        write(&mut self.out).map_err(io("write", &self.temporary))?;
        fs::rename(&self.temporary, &self.path).map_err(io("write", &self.path))?;
        Ok(FileSummary { size: self.encoder.size(), checksum })
    }
}

const _: () = assert!(CHECKSUM_OFFSET < 4096);
