//! Garbage collection: shared/spec/semantics.md §4.
//!
//! Marks what the indexes name by setting its access time, then removes chunks that nobody has
//! marked for 24 hours and 5 minutes. Backups may run meanwhile: what they have used since they began
//! stays, since their markers tell when that was (`crashed.rs`), and no chunk is removed while
//! somebody is about to use it ([`SweepLock`]). It begins with a test that access times can be set
//! here at all, and ends at the first index that it can't read: what that names would be lost.

use crate::crashed::oldest_writer;
use crate::dir::{io, open_regular, temporary_suffix, touch_file, write_durably};
use crate::lock::{CollectorLock, SweepLock};
use crate::{DirStore, Result, StoreError};
use keepwell_model::{ChunkDigest, Index, RecentDigests};
use serde::Serialize;
use std::collections::HashSet;
use std::fs::{self, FileTimes};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

/// Unused chunks stay as long as an access time may be wrong on a file system with `relatime`.
const GRACE_SECONDS: i64 = 24 * 3600;
const SLACK_SECONDS: i64 = 5 * 60;
/// `<digest>.tmp_XXXXXX`: what an interrupted write left.
const LEFTOVER_LENGTH: usize = 75;

/// What a collection found and did; the form of `.gc-status`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct GarbageStatus {
    pub upid: Option<String>,
    pub index_file_count: u64,
    /// sizes of all archives
    pub index_data_bytes: u64,
    pub disk_bytes: u64,
    pub disk_chunks: u64,
    pub removed_bytes: u64,
    pub removed_chunks: u64,
    /// unused, but not for long enough
    pub pending_bytes: u64,
    pub pending_chunks: u64,
    pub removed_bad: u64,
    pub still_bad: u64,
}

/// How a collection runs.
pub struct Collection<'a> {
    /// seconds since the epoch
    pub now: i64,
    /// of the task, where there is one
    pub upid: Option<String>,
    /// hears each line of the log
    pub say: &'a mut dyn FnMut(&str),
    /// asked again and again; true ends the collection
    pub is_over: &'a dyn Fn() -> bool,
}

impl DirStore {
    /// Removes chunks that no index names and no running backup uses. Fails at once where another
    /// collection, or a backup of the reference, is running.
    pub fn collect_garbage(&self, collection: Collection<'_>) -> Result<GarbageStatus> {
        let _lock = CollectorLock::acquire(&self.layout().lock())?;
        self.check_access_times()?;
        let started = collection.now;
        // Whoever begins later uses chunks later than this.
        let oldest_writer = oldest_writer(self.layout())?.and_then(|oldest| {
            let since = oldest.duration_since(UNIX_EPOCH).ok()?;
            i64::try_from(since.as_secs()).ok()
        });
        let oldest = (started - GRACE_SECONDS).min(oldest_writer.unwrap_or(started));
        let oldest = oldest - SLACK_SECONDS;
        let status = GarbageStatus { upid: collection.upid.clone(), ..GarbageStatus::default() };
        let mut run = Run { store: self, collection, status, started, oldest, leftovers: 0 };
        run.mark()?;
        run.sweep()?;
        run.summarise();
        let json = serde_json::to_vec(&run.status).unwrap_or_default();
        write_durably(&self.layout().root().join(".gc-status"), &json, self.keeper())?;
        Ok(run.status)
    }

    /// A file system that does not keep access times would lose every chunk.
    fn check_access_times(&self) -> Result<()> {
        let path = self.layout().chunks().join(format!("atime.tmp_{}", temporary_suffix()));
        let outcome = (|| {
            let file = fs::File::create_new(&path).map_err(io("create", &path))?;
            let past = UNIX_EPOCH + Duration::from_secs(86_400);
            let times = FileTimes::new().set_accessed(past);
            file.set_times(times).map_err(io("touch", &path))?;
            let accessed = || fs::symlink_metadata(&path).map(|metadata| metadata.atime());
            let before = accessed().map_err(io("examine", &path))?;
            touch_file(&path).map_err(io("touch", &path))?;
            let after = accessed().map_err(io("examine", &path))?;
            if before == 86_400 && after > before {
                return Ok(());
            }
            Err(StoreError::Refused(format!(
                "the file system of '{}' does not keep access times: garbage can't be told from \
                 chunks in use",
                self.layout().root().display()
            )))
        })();
        let _ = fs::remove_file(&path);
        outcome
    }
}

struct Run<'s, 'a> {
    store: &'s DirStore,
    collection: Collection<'a>,
    status: GarbageStatus,
    started: i64,
    /// what was used before this may go
    oldest: i64,
    leftovers: u64,
}

impl Run<'_, '_> {
    fn say(&mut self, text: &str) {
        (self.collection.say)(text);
    }

    fn check(&self) -> Result<()> {
        match (self.collection.is_over)() {
            true => Err(StoreError::Refused("interrupted: garbage may remain".into())),
            false => Ok(()),
        }
    }

    /// Says a line each time another percent is done.
    fn progress(&mut self, shown: &mut u64, done: u64, of: u64, line: impl Fn(u64) -> String) {
        let percent = (done * 100).checked_div(of).unwrap_or(100);
        if percent > *shown {
            *shown = percent;
            self.say(&line(percent));
        }
    }

    fn mark(&mut self) -> Result<()> {
        self.say("Start GC phase1 (mark used chunks)");
        let mut indexes = Vec::new();
        find_indexes(self.store.layout().root(), &mut indexes, &mut HashSet::new())?;
        let (count, mut shown) = (indexes.len() as u64, 0);
        let (mut marked, mut touched, mut named) = (RecentDigests::default(), 0u64, 0u64);
        for (done, path) in (1..).zip(indexes) {
            self.check()?;
            if let Some(index) = read_index(&path)? {
                self.status.index_file_count += 1;
                self.status.index_data_bytes += index.size();
                for chunk in index.chunks() {
                    named += 1;
                    if marked.insert(chunk.digest) {
                        touched += 1;
                        self.mark_chunk(&chunk.digest, &path)?;
                    }
                }
            }
            self.progress(&mut shown, done, count, |percent| {
                format!("marked {percent}% ({done} of {count} index files)")
            });
        }
        let saved = named - touched;
        self.say(&format!("marked {touched} chunks, saved touching {saved} of them again"));
        Ok(())
    }

    fn mark_chunk(&mut self, digest: &ChunkDigest, index: &Path) -> Result<()> {
        let path = self.store.layout().chunk(digest);
        match touch_file(&path) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(io("touch", &path)(error)),
        }
        let index = index.display();
        self.say(&format!(
            "warning: unable to access non-existent chunk {digest}, required by \"{index}\""
        ));
        // What was moved aside may be all that is left of it.
        for n in 0..10 {
            let _ = touch_file(&path.with_extension(format!("{n}.bad")));
        }
        Ok(())
    }

    fn sweep(&mut self) -> Result<()> {
        self.say("Start GC phase2 (sweep unused chunks)");
        let (mut shown, mut count) = (0, 0u64);
        for prefix in 0..=u16::MAX {
            self.check()?;
            let dir = self.store.layout().chunk_dir(prefix);
            let _nobody_uses_them = SweepLock::exclusive(&dir);
            let entries = match fs::read_dir(&dir) {
                Ok(entries) => Some(entries),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
                Err(error) => return Err(io("read", &dir)(error)),
            };
            for entry in entries.into_iter().flatten() {
                let entry = entry.map_err(io("read", &dir))?;
                let Some(kind) = Kind::of(&entry.file_name().to_string_lossy()) else { continue };
                self.sweep_file(&entry.path(), kind)?;
                count += u64::from(kind != Kind::Leftover);
            }
            self.progress(&mut shown, u64::from(prefix) + 1, 1 << 16, |percent| {
                format!("processed {percent}% ({count} chunks)")
            });
        }
        Ok(())
    }

    fn sweep_file(&mut self, path: &Path, kind: Kind) -> Result<()> {
        let metadata = match fs::symlink_metadata(path) {
            Ok(metadata) if metadata.is_file() => metadata,
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(io("examine", path)(error)),
        };
        let (used, bytes) = (metadata.atime(), metadata.len());
        let (status, oldest) = (&mut self.status, self.oldest);
        if used < oldest && (kind != Kind::Leftover || metadata.mtime() < oldest) {
            fs::remove_file(path).map_err(io("remove", path))?;
            status.removed_bytes += bytes;
            match kind {
                Kind::Chunk => status.removed_chunks += 1,
                Kind::Bad => status.removed_bad += 1,
                Kind::Leftover => self.leftovers += 1,
            }
        } else if used < self.started {
            match kind {
                Kind::Chunk => {
                    status.pending_chunks += 1;
                    status.pending_bytes += bytes;
                }
                Kind::Bad => status.still_bad += 1,
                Kind::Leftover => {}
            }
        } else if kind == Kind::Chunk {
            status.disk_chunks += 1;
            status.disk_bytes += bytes;
        }
        Ok(())
    }

    fn summarise(&mut self) {
        let status = self.status.clone();
        let human = keepwell_model::size::human;
        self.say(&format!("Removed garbage: {}", human(status.removed_bytes)));
        self.say(&format!("Removed chunks: {}", status.removed_chunks));
        if status.pending_chunks > 0 {
            let (bytes, chunks) = (human(status.pending_bytes), status.pending_chunks);
            self.say(&format!("Pending removals: {bytes} (in {chunks} chunks)"));
        }
        if status.removed_bad > 0 {
            self.say(&format!("Removed bad chunks: {}", status.removed_bad));
        }
        if status.still_bad > 0 {
            self.say(&format!("Leftover bad chunks: {}", status.still_bad));
        }
        if self.leftovers > 0 {
            self.say(&format!("Removed leftovers of interrupted writes: {}", self.leftovers));
        }
        self.say(&format!("Original data usage: {}", human(status.index_data_bytes)));
        let (data, disk) = (status.index_data_bytes as f64, status.disk_bytes as f64);
        let share = if data > 0.0 { disk * 100.0 / data } else { 0.0 };
        self.say(&format!("On-Disk usage: {} ({share:.2}%)", human(status.disk_bytes)));
        self.say(&format!("On-Disk chunks: {}", status.disk_chunks));
        let factor = if disk > 0.0 { data / disk } else { 1.0 };
        self.say(&format!("Deduplication factor: {factor:.2}"));
        if let Some(average) = status.disk_bytes.checked_div(status.disk_chunks) {
            self.say(&format!("Average chunk size: {}", human(average)));
        }
    }
}

/// What lies in a directory of chunks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Chunk,
    /// moved aside
    Bad,
    /// of an interrupted write
    Leftover,
}

impl Kind {
    fn of(name: &str) -> Option<Self> {
        let (digest, rest) = name.split_at_checked(64)?;
        digest.parse::<ChunkDigest>().ok()?;
        match rest {
            "" => Some(Self::Chunk),
            _ if rest.len() == 6 && rest.ends_with(".bad") => Some(Self::Bad),
            _ if name.len() == LEFTOVER_LENGTH && rest.starts_with(".tmp_") => Some(Self::Leftover),
            _ => None,
        }
    }
}

fn link_broken(path: &Path, source: &std::io::Error) -> StoreError {
    StoreError::Refused(format!(
        "'{}' leads nowhere ({source}): snapshots may lie there - nothing was removed",
        path.display()
    ))
}

/// Indexes anywhere in the store, also behind links, in the order of their paths; `links` are the
/// directories that links led to. Hidden names are left out.
fn find_indexes(
    dir: &Path,
    found: &mut Vec<PathBuf>,
    links: &mut HashSet<(u64, u64)>,
) -> Result<()> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(dir).map_err(io("read", dir))? {
        let entry = entry.map_err(io("read", dir))?;
        if !entry.file_name().as_encoded_bytes().starts_with(b".") {
            let path = entry.path();
            // Behind a link there may be snapshots as well. One that leads nowhere may lead to a
            // disk that is not there at the moment.
            let kind = match entry.file_type().map_err(io("examine", &path))? {
                kind if kind.is_symlink() => {
                    let metadata = fs::metadata(&path);
                    let metadata = metadata.map_err(|source| link_broken(&path, &source))?;
                    // Links may lead in a circle.
                    if metadata.is_dir() && !links.insert((metadata.dev(), metadata.ino())) {
                        continue;
                    }
                    metadata.file_type()
                }
                kind => kind,
            };
            entries.push((path, kind));
        }
    }
    entries.sort_by(|(a, _), (b, _)| a.cmp(b));
    for (path, kind) in entries {
        if path.extension().is_some_and(|kind| kind == "didx" || kind == "fidx") {
            // Whatever it is: one that can't be read ends the collection.
            found.push(path);
        } else if kind.is_dir() {
            match find_indexes(&path, found, links) {
                // Snapshots may go away while this runs.
                Err(StoreError::Io { source, .. })
                    if source.kind() == std::io::ErrorKind::NotFound => {}
                Err(StoreError::Io { source, .. })
                    if source.kind() == std::io::ErrorKind::PermissionDenied
                        && path.ends_with("lost+found") => {}
                other => other?,
            }
        }
    }
    Ok(())
}

/// An index, or none where it is gone.
fn read_index(path: &Path) -> Result<Option<Index>> {
    let mut bytes = Vec::new();
    let read =
        open_regular(path).and_then(|mut file| std::io::Read::read_to_end(&mut file, &mut bytes));
    match read {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io("read", path)(error)),
    }
    let parsed = match path.extension().is_some_and(|kind| kind == "fidx") {
        true => Index::parse_fixed(bytes),
        false => Index::parse_dynamic(bytes),
    };
    parsed.map(Some).map_err(|problem| {
        StoreError::Refused(format!(
            "can't open index '{}': {problem} - nothing was removed, since its chunks can't be \
             told; forget its snapshot if it is lost",
            path.display()
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SessionStore;
    use crate::{IndexLayout, SnapshotStore};
    use keepwell_model::{Blob, BlobKind, Namespace, SealedChunk, SnapshotId};

    const DAY: Duration = Duration::from_secs(86_400);

    struct World {
        dir: tempfile::TempDir,
        store: DirStore,
    }

    impl World {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir(dir.path().join(".chunks")).unwrap();
            let store = DirStore::open(dir.path()).unwrap();
            Self { dir, store }
        }

        fn digest(number: u8) -> ChunkDigest {
            ChunkDigest::from_bytes([number; 32])
        }

        /// A snapshot whose archive consists of these chunks.
        fn back_up(&self, time: &str, chunks: &[u8]) {
            let snapshot: SnapshotId = format!("host/a/{time}").parse().unwrap();
            let session = self.store.begin(&Namespace::default(), &snapshot, "root@pam").unwrap();
            let name = "root.pxar.didx".parse().unwrap();
            let mut index = session.create_index(&name, IndexLayout::Dynamic).unwrap();
            for number in chunks {
                let payload = [*number; 100];
                let sealed =
                    SealedChunk::new(Self::digest(*number), 100, BlobKind::Plain, &payload);
                let stored = index.chunks().insert(&sealed).unwrap();
                index.append(&stored).unwrap();
            }
            index.finish().unwrap();
            session.finish(&Blob::seal(BlobKind::Plain, vec![0; 12]).unwrap()).unwrap();
        }

        fn path(&self, number: u8) -> PathBuf {
            self.store.layout().chunk(&Self::digest(number))
        }

        /// The file system's clock.
        fn now(&self) -> i64 {
            let path = self.dir.path().join(".clock");
            fs::write(&path, b"").unwrap();
            fs::metadata(&path).unwrap().mtime()
        }

        /// As if nobody had used it for so long.
        fn age(&self, path: &Path, by: Duration) {
            let past = UNIX_EPOCH + Duration::from_secs(self.now() as u64) - by;
            let times = FileTimes::new().set_accessed(past).set_modified(past);
            fs::File::options().write(true).open(path).unwrap().set_times(times).unwrap();
        }

        fn collect(&self) -> (Result<GarbageStatus>, Vec<String>) {
            let mut lines = Vec::new();
            let mut say = |line: &str| lines.push(line.to_owned());
            let now = self.now();
            let collection = Collection { now, upid: None, say: &mut say, is_over: &|| false };
            let outcome = self.store.collect_garbage(collection);
            (outcome, lines)
        }
    }

    #[test]
    fn what_lies_behind_a_link_is_no_garbage() {
        let world = World::new();
        world.back_up("2020-01-01T00:00:00Z", &[1, 2]);
        let elsewhere = tempfile::tempdir().unwrap();
        let group = world.dir.path().join("host/a");
        let moved = elsewhere.path().join("a");
        fs::create_dir(&moved).unwrap();
        for entry in fs::read_dir(&group).unwrap().flatten() {
            let to = moved.join(entry.file_name());
            let copied =
                std::process::Command::new("cp").arg("-a").arg(entry.path()).arg(&to).status();
            assert!(copied.unwrap().success());
        }
        fs::remove_dir_all(&group).unwrap();
        std::os::unix::fs::symlink(&moved, &group).unwrap();
        // In a circle.
        std::os::unix::fs::symlink(world.dir.path(), moved.join("all")).unwrap();
        for number in [1, 2] {
            world.age(&world.path(number), Duration::from_secs(3 * 86_400));
        }
        world.collect().0.unwrap();
        assert!(world.path(1).exists() && world.path(2).exists());
        // Where a link leads nowhere, nobody can tell what is garbage.
        fs::rename(&moved, elsewhere.path().join("b")).unwrap();
        for number in [1, 2] {
            world.age(&world.path(number), Duration::from_secs(3 * 86_400));
        }
        let error = world.collect().0.unwrap_err().to_string();
        assert!(error.contains("leads nowhere"), "{error}");
        fs::remove_file(&group).unwrap();
        fs::create_dir_all(world.dir.path().join("x/i.img.fidx")).unwrap();
        world.collect().0.unwrap_err();
        assert!(world.path(1).exists() && world.path(2).exists());
    }

    #[test]
    fn only_what_nobody_has_used_for_a_day_is_removed() {
        let world = World::new();
        world.back_up("2020-01-01T00:00:00Z", &[1, 2, 1]);
        world.back_up("2020-01-02T00:00:00Z", &[2, 3]);
        world.back_up("2020-01-03T00:00:00Z", &[4, 5, 6]);
        let old = DAY * 2;
        for number in 1..=6 {
            world.age(&world.path(number), old);
        }
        let namespace = Namespace::default();
        world.store.forget(&namespace, &"host/a/2020-01-03T00:00:00Z".parse().unwrap()).unwrap();
        world.age(&world.path(5), DAY);
        world.age(&world.path(6), DAY + Duration::from_secs(360));
        let bad = world.path(7).with_extension("0.bad");
        fs::create_dir_all(bad.parent().unwrap()).unwrap();
        let leftover = world.path(7).with_extension("tmp_abcDEF");
        let young = world.path(7).with_extension("tmp_abcDEG");
        let strange = world.path(7).with_extension("keep");
        for path in [&bad, &leftover, &young, &strange] {
            fs::write(path, b"x").unwrap();
        }
        for path in [&bad, &leftover, &strange] {
            world.age(path, old);
        }
        let (status, lines) = world.collect();
        let status = status.unwrap();
        assert_eq!((status.index_file_count, status.index_data_bytes), (2, 500));
        assert_eq!((status.disk_chunks, status.disk_bytes), (3, 3 * 112));
        assert_eq!((status.removed_chunks, status.pending_chunks), (2, 1));
        assert_eq!((status.removed_bad, status.still_bad), (1, 0));
        let there = (1..=6).filter(|number| world.path(*number).exists());
        assert_eq!(there.collect::<Vec<_>>(), [1, 2, 3, 5]);
        assert!(!bad.exists() && !leftover.exists() && young.exists() && strange.exists());
        assert!(
            lines.contains(&"marked 3 chunks, saved touching 2 of them again".into()),
            "{lines:?}"
        );
        assert!(lines.contains(&"Pending removals: 112 B (in 1 chunks)".into()), "{lines:?}");
        let stored = fs::read_to_string(world.dir.path().join(".gc-status")).unwrap();
        let stored: serde_json::Value = serde_json::from_str(&stored).unwrap();
        assert_eq!(stored["disk-chunks"], 3);
    }

    #[test]
    fn a_missing_chunk_keeps_what_was_moved_aside_for_it() {
        let world = World::new();
        world.back_up("2020-01-01T00:00:00Z", &[1]);
        let bad = world.path(1).with_extension("0.bad");
        fs::rename(world.path(1), &bad).unwrap();
        world.age(&bad, DAY * 2);
        let (status, lines) = world.collect();
        assert_eq!((status.unwrap().removed_bad, bad.exists()), (0, true));
        assert!(lines.iter().any(|line| line.contains("unable to access non-existent chunk 0101")));
    }

    #[test]
    fn an_index_that_cannot_be_read_stops_it_before_anything_goes() {
        let world = World::new();
        world.back_up("2020-01-01T00:00:00Z", &[1]);
        world.back_up("2020-01-02T00:00:00Z", &[2]);
        let index = world.dir.path().join("host/a/2020-01-02T00:00:00Z/root.pxar.didx");
        fs::write(&index, b"garbage").unwrap();
        for number in [1, 2] {
            world.age(&world.path(number), DAY * 2);
        }
        let (status, _) = world.collect();
        let error = status.unwrap_err().to_string();
        assert!(
            error.contains("root.pxar.didx") && error.contains("nothing was removed"),
            "{error}"
        );
        assert!(world.path(1).exists() && world.path(2).exists());
    }

    #[test]
    fn what_a_running_backup_uses_stays_however_long_it_runs() {
        let world = World::new();
        world.back_up("2020-01-01T00:00:00Z", &[1]);
        fs::remove_dir_all(world.dir.path().join("host/a/2020-01-01T00:00:00Z")).unwrap();
        let snapshot = "host/a/2020-01-02T00:00:00Z".parse().unwrap();
        let session = world.store.begin(&Namespace::default(), &snapshot, "root@pam").unwrap();
        // It has run for three days, and used the chunk two days ago.
        let markers = fs::read_dir(world.dir.path()).unwrap().flatten();
        let marker = markers
            .map(|entry| entry.path())
            .find(|path| path.file_name().unwrap().to_string_lossy().starts_with(".writing"));
        world.age(&marker.unwrap(), DAY * 3);
        world.age(&world.path(1), DAY * 2);
        world.collect().0.unwrap();
        assert!(world.path(1).exists());
        drop(session);
        world.age(&world.path(1), DAY * 2);
        world.collect().0.unwrap();
        assert!(!world.path(1).exists());
    }

    #[test]
    fn backups_begin_while_it_runs_and_other_collections_do_not() {
        let world = World::new();
        let snapshot = "host/a/2020-01-01T00:00:00Z".parse().unwrap();
        let mut tried = None;
        let mut say = |_: &str| {
            tried.get_or_insert_with(|| {
                let begun = world.store.begin(&Namespace::default(), &snapshot, "root@pam");
                (begun.is_ok(), world.collect().0.is_err())
            });
        };
        let now = world.now();
        let collection = Collection { now, upid: None, say: &mut say, is_over: &|| false };
        world.store.collect_garbage(collection).unwrap();
        assert_eq!(tried, Some((true, true)));
    }

    #[test]
    fn who_uses_a_chunk_holds_up_who_sweeps() {
        let world = World::new();
        world.back_up("2020-01-01T00:00:00Z", &[1]);
        let dir = world.path(1).parent().unwrap().to_owned();
        let used = SweepLock::shared(&dir).unwrap();
        let (done, sweeping) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let _sweep = SweepLock::exclusive(&dir);
            done.send(()).unwrap();
        });
        assert!(sweeping.recv_timeout(Duration::from_millis(100)).is_err());
        drop(used);
        sweeping.recv_timeout(Duration::from_secs(30)).unwrap();
    }
}
