//! Chunks in a directory: `.chunks/abcd/<digest>`. Spec: formats.md §4.

use crate::files::Fresh;
use crate::layout::{CHUNK_DIRS, Layout};
use crate::lock::SweepLock;
use crate::{ChunkStore, Result, StoreError};
use keepwell_model::{Blob, BlobKind, ChunkDigest, SealedChunk, StoredChunk};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

const MAGIC_BYTES: u64 = 8;
/// No chunk's file is larger.
const CHUNK_FILE_BYTES_MAX: u64 = keepwell_model::blob::BLOB_BYTES_MAX as u64 + 64;

/// Chunks of one datastore.
#[derive(Clone, Debug)]
pub struct DirChunks {
    layout: Layout,
    keeper: Keeper,
}

/// Whom new files belong to: the owner of the store, when we are root and it is not.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Keeper(Option<(u32, u32)>);

impl Keeper {
    pub(crate) fn of(root: &Path) -> Result<Self> {
        let metadata = fs::metadata(root).map_err(io("examine", root))?;
        let owner = (metadata.uid(), metadata.gid());
        let is_root = rustix::process::geteuid().is_root();
        Ok(Self((is_root && owner != (0, 0)).then_some(owner)))
    }

    pub(crate) fn own_file(self, file: impl AsFd, path: &Path) -> Result<()> {
        let Some((uid, gid)) = self.0 else { return Ok(()) };
        std::os::unix::fs::fchown(file, Some(uid), Some(gid)).map_err(io("change owner of", path))
    }

    pub(crate) fn own_path(self, path: &Path) -> Result<()> {
        let Some((uid, gid)) = self.0 else { return Ok(()) };
        std::os::unix::fs::lchown(path, Some(uid), Some(gid)).map_err(io("change owner of", path))
    }
}

pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io { action, path, source }
}

/// A name that nobody else uses: formats.md §4.
pub(crate) fn temporary_suffix() -> String {
    const LETTERS: &[u8; 64] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-";
    // Names are created exclusively: random letters only make collisions rare.
    let mut random = [0; 6];
    let _ = getrandom::fill(&mut random);
    random.iter().map(|byte| char::from(LETTERS[usize::from(byte % 64)])).collect()
}

impl DirChunks {
    /// Opens the chunks of an existing store.
    pub(crate) fn open(layout: Layout) -> Result<Self> {
        let chunks = layout.chunks();
        match fs::metadata(&chunks) {
            Ok(metadata) if metadata.is_dir() => {}
            // Who may not look must not be told that there is nothing.
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(self::io("open", layout.root())(error));
            }
            _ => return Err(StoreError::NotAStore { path: layout.root().to_owned() }),
        }
        let keeper = Keeper::of(layout.root())?;
        Ok(Self { layout, keeper })
    }

    /// Makes `.chunks` with all its directories: whole or not at all.
    pub(crate) fn create(layout: Layout) -> Result<Self> {
        let root = layout.root();
        let keeper = Keeper::of(root)?;
        let fresh = root.join(format!(".chunks.tmp_{}", temporary_suffix()));
        let chunks = layout.chunks();
        let make = || {
            let mut builder = fs::DirBuilder::new();
            builder.mode(0o750);
            builder.create(&fresh).map_err(io("create", &fresh))?;
            keeper.own_path(&fresh)?;
            for prefix in 0..CHUNK_DIRS {
                let dir = fresh.join(format!("{prefix:04x}"));
                builder.create(&dir).map_err(io("create", &dir))?;
                keeper.own_path(&dir)?;
            }
            fs::rename(&fresh, &chunks).map_err(io("create", &chunks))?;
            sync_dir(root)
        };
        make().inspect_err(|_| {
            let _ = fs::remove_dir_all(&fresh);
        })?;
        Ok(Self { layout, keeper })
    }

    /// Writes a file under a temporary name and puts it in place.
    fn write(&self, path: &Path, chunk: &SealedChunk<'_>) -> Result<()> {
        let temporary = path.with_extension(format!("tmp_{}", temporary_suffix()));
        let written = self.create_temporary(&temporary).and_then(|mut file| {
            write_parts(&mut file, chunk.parts()).map_err(io("write", &temporary))?;
            // Starts writing to the disk without waiting, so that the sync at the end is short.
            let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
            drop(file);
            fs::rename(&temporary, path).map_err(io("write", path))
        });
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        written
    }

    fn create_temporary(&self, path: &Path) -> Result<File> {
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o644);
        let file = match options.open(path) {
            // A store may come with only the directories that hold something.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let dir = path.parent().unwrap_or(path);
                let made = fs::DirBuilder::new().mode(0o750).create(dir);
                made.or_else(|error| match error.kind() {
                    io::ErrorKind::AlreadyExists => Ok(()),
                    _ => Err(error),
                })
                .map_err(io("create", dir))?;
                self.keeper.own_path(dir)?;
                options.open(path)
            }
            other => other,
        };
        let file = file.map_err(io("create", path))?;
        file.set_permissions(fs::Permissions::from_mode(0o644)).map_err(io("create", path))?;
        self.keeper.own_file(&file, path)?;
        Ok(file)
    }

    /// The rules for a chunk that is there: formats.md §4. True keeps it.
    ///
    /// Beyond the reference, a smaller file is kept only if it is sound: after a power cut it may
    /// be a part of one. And a chunk in the clear, whose digest can be checked, takes the place of
    /// an encrypted one, which can't be what that digest says.
    fn keeps_existing(&self, chunk: &SealedChunk<'_>, size: u64) -> Result<bool> {
        let new = chunk.stored_bytes();
        let refused = |problem| StoreError::ChunkRefused { digest: chunk.digest, problem };
        if size == 0 {
            return Ok(false);
        }
        // A chunk that is uploaded again need not be read again.
        let limit = if size == new { MAGIC_BYTES } else { CHUNK_FILE_BYTES_MAX };
        let existing = match self.read_up_to(&chunk.digest, limit) {
            Err(StoreError::ChunkMissing { .. }) => return Ok(false),
            other => other?,
        };
        let kind = BlobKind::of_magic(&existing);
        let is_alike = kind.is_some_and(|kind| kind.is_encrypted() == chunk.kind().is_encrypted());
        if size == new && is_alike {
            return Ok(true);
        }
        if chunk.kind().is_encrypted() {
            return match kind {
                Some(BlobKind::Plain | BlobKind::Compressed) => {
                    Err(refused("Overwriting unencrypted chunk is not allowed"))
                }
                Some(BlobKind::Encrypted) if !chunk.kind().is_compressed() => {
                    Err(refused("an encrypted chunk of another size is there"))
                }
                Some(_) => Ok(true),
                None => Ok(false),
            };
        }
        Ok(is_alike && size < new && Blob::parse(existing).is_ok())
    }

    fn stored(chunk: &SealedChunk<'_>, stored_bytes: u64, known: bool) -> StoredChunk {
        let (digest, plain_bytes) = (chunk.digest, chunk.plain_bytes);
        StoredChunk { digest, plain_bytes, stored_bytes, known }
    }
}

impl ChunkStore for DirChunks {
    fn insert(&self, chunk: &SealedChunk<'_>) -> Result<StoredChunk> {
        let path = self.layout.chunk(&chunk.digest);
        let _in_use = path.parent().and_then(SweepLock::shared);
        match fs::symlink_metadata(&path) {
            Ok(metadata) if !metadata.is_file() => Err(StoreError::ChunkRefused {
                digest: chunk.digest,
                problem: "something that is no file has its name: `verify` moves it aside",
            }),
            Ok(metadata) if self.keeps_existing(chunk, metadata.len())? => {
                touch_file(&path).map_err(io("touch", &path))?;
                Ok(Self::stored(chunk, metadata.len(), true))
            }
            _ => {
                self.write(&path, chunk)?;
                Ok(Self::stored(chunk, chunk.stored_bytes(), false))
            }
        }
    }

    fn touch(&self, digest: &ChunkDigest, plain_bytes: u64) -> Result<Option<StoredChunk>> {
        let path = self.layout.chunk(digest);
        let _in_use = path.parent().and_then(SweepLock::shared);
        let metadata = match fs::symlink_metadata(&path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io("examine", &path)(error)),
        };
        // An empty file is the remains of a crash: it is to be inserted again.
        if !metadata.is_file() || metadata.len() == 0 {
            return Ok(None);
        }
        touch_file(&path).map_err(io("touch", &path))?;
        let digest = *digest;
        Ok(Some(StoredChunk { digest, plain_bytes, stored_bytes: metadata.len(), known: true }))
    }

    fn read(&self, digest: &ChunkDigest) -> Result<Vec<u8>> {
        self.read_up_to(digest, CHUNK_FILE_BYTES_MAX)
    }
}

impl DirChunks {
    fn read_up_to(&self, digest: &ChunkDigest, limit: u64) -> Result<Vec<u8>> {
        let path = self.layout.chunk(digest);
        let mut file = match open_regular(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(StoreError::ChunkMissing { digest: *digest });
            }
            Err(error) => return Err(io("open", &path)(error)),
        };
        let size = file.metadata().map_err(io("examine", &path))?.len();
        let mut bytes = Vec::with_capacity(size.min(limit) as usize);
        (&mut file).take(limit).read_to_end(&mut bytes).map_err(io("read", &path))?;
        Ok(bytes)
    }
}

/// Opens a file to read. What is none, such as a fifo, is refused and not waited for.
pub(crate) fn open_regular(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let file = options.read(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(io::ErrorKind::InvalidData, "it is no regular file")),
    }
}

/// Writes both parts, mostly with one call.
fn write_parts(file: &mut File, [header, payload]: [&[u8]; 2]) -> io::Result<()> {
    let parts = [io::IoSlice::new(header), io::IoSlice::new(payload)];
    let written = file.write_vectored(&parts)?;
    let (rest_of_header, rest) = match written.checked_sub(header.len()) {
        Some(of_payload) => (&[][..], &payload[of_payload..]),
        None => (&header[written..], payload),
    };
    file.write_all(rest_of_header)?;
    file.write_all(rest)
}

/// Sets the access time, which garbage collection goes by, and nothing else.
pub(crate) fn touch_file(path: &Path) -> io::Result<()> {
    let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW as _ };
    let keep = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT as _ };
    let times = Timestamps { last_access: now, last_modification: keep };
    Ok(rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Makes names in a directory durable.
pub(crate) fn sync_dir(path: &Path) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let synced = rustix::fs::open(path, flags, Mode::empty()).and_then(rustix::fs::fsync);
    synced.map_err(|error| io("sync", path)(error.into()))
}

/// Makes all that was written to the file system of `path` durable.
pub(crate) fn sync_file_system(path: &Path) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let synced = rustix::fs::open(path, flags, Mode::empty()).and_then(rustix::fs::syncfs);
    synced.map_err(|error| io("sync", path)(error.into()))
}

/// Writes a small file so that it is there whole or not at all, also after a power cut.
pub(crate) fn write_durably(path: &Path, bytes: &[u8], keeper: Keeper) -> Result<()> {
    // The name that the reference gives such files, and passes over.
    let temporary = path.with_extension(format!("tmp_{}", temporary_suffix()));
    let fresh = Fresh { bytes, mode: 0o644, owner: keeper.0 };
    fresh.write_by_way_of(&temporary, path).map_err(io("write", path))?;
    sync_dir(path.parent().unwrap_or(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Which of two files of one name stays: formats.md §4.
    #[test]
    fn an_existing_chunk_stays_by_the_rules() {
        use BlobKind::{Compressed, CompressedEncrypted, Encrypted, Plain};
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join(".chunks")).unwrap();
        let chunks = DirChunks::open(Layout::new(dir.path().to_owned())).unwrap();
        let digest = ChunkDigest::from_bytes([7; 32]);
        let path = Layout::new(dir.path().to_owned()).chunk(&digest);
        fs::create_dir(path.parent().unwrap()).unwrap();
        let chunk = |kind, payload| SealedChunk::new(digest, 1000, kind, payload);
        let (long, short): (&[u8], &[u8]) = (&[1; 500], &[2; 400]);
        let cases = [
            (Plain, long, Plain, long, Some(true)),
            (Plain, long, Compressed, short, Some(true)),
            (Compressed, short, Plain, long, Some(false)),
            // What is encrypted has another digest.
            (Plain, long, Encrypted, short, Some(false)),
            (Plain, long, Encrypted, long, Some(false)),
            (Encrypted, long, Plain, short, None),
            (Encrypted, long, Plain, long, None),
            (CompressedEncrypted, short, Encrypted, long, Some(true)),
            (Encrypted, long, CompressedEncrypted, short, Some(true)),
            (Encrypted, long, Encrypted, short, None),
        ];
        for (kind, payload, there, its_payload, kept) in cases {
            fs::write(&path, chunk(there, its_payload).parts().concat()).unwrap();
            let inserted = chunks.insert(&chunk(kind, payload)).map(|stored| stored.known).ok();
            assert_eq!(inserted, kept, "{kind:?} where {there:?} is");
            let now = fs::read(&path).unwrap();
            let (old, new) = (chunk(there, its_payload), chunk(kind, payload));
            let expected = if kept == Some(false) { new } else { old };
            assert_eq!(now, expected.parts().concat());
        }
        // No chunk at all, cut off, and empty.
        for bad in [vec![0; 512], chunk(Plain, short).parts().concat()[..100].to_vec(), Vec::new()]
        {
            fs::write(&path, bad).unwrap();
            assert!(!chunks.insert(&chunk(Plain, long)).unwrap().known);
            assert_eq!(fs::read(&path).unwrap(), chunk(Plain, long).parts().concat());
        }
    }
}
