//! Snapshots, groups and namespaces of a directory store.

use crate::crashed::{Marker, recover, set_aside};
use crate::dir::{DirChunks, Keeper, io, open_regular, sync_dir, temporary_suffix, write_durably};
use crate::layout::{Layout, NOTES, OWNER, PROTECTED, TEMPORARY};
use crate::lock::{DirLock, SoleLock, WriterLock};
use crate::session::DirSession;
use crate::unused::{discard, missing_above, remove_empty_dirs};
use crate::{
    BackupSession, Capacity, ChunkStore, GroupInfo, Removal, Result, SessionStore, SnapshotInfo,
    SnapshotReader, SnapshotStore, StoreError,
};
use keepwell_model::{
    ArchiveName, AuthId, BackupId, BackupTime, BackupType, Blob, ChunkDigest, GroupId, Namespace,
    SnapshotId,
};
use std::fs::{self, OpenOptions};
use std::io as std_io;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::thread;
use std::time::Duration;

const IN_USE: &str = "it is in use, possibly by a running backup or restore";
const RUNNING: &str = "another backup is already running";
/// What the reference's API takes when a namespace is made.
const COMPONENT_BYTES_MAX: usize = 32;
/// No file of a snapshot but chunks is larger: an index of 100 TiB is.
const FILE_BYTES_MAX: u64 = 2 << 30;

/// A datastore in a directory.
#[derive(Clone, Debug)]
pub struct DirStore {
    layout: Layout,
    keeper: Keeper,
    chunks: DirChunks,
    /// directories made for it, where we made it
    made: Option<Vec<PathBuf>>,
}

impl DirStore {
    /// Opens an existing datastore.
    pub fn open(root: &Path) -> Result<Self> {
        fs::metadata(root).map_err(io("open", root))?;
        let layout = Layout::new(root.to_owned());
        let chunks = DirChunks::open(layout.clone())?;
        Ok(Self { keeper: Keeper::of(root)?, layout, chunks, made: None })
    }

    /// Whether [`Self::create`] has something to do: there is nothing, or an empty directory.
    pub fn can_create(root: &Path) -> bool {
        match fs::read_dir(root) {
            // What a creation that was cut off left does not count.
            Ok(entries) => entries.flatten().all(|entry| {
                let name = entry.file_name();
                let name = name.to_string_lossy();
                name.starts_with(".chunks.tmp_") || name == ".lock" || name == "lost+found"
            }),
            Err(error) => error.kind() == std_io::ErrorKind::NotFound,
        }
    }

    /// Makes a datastore, with the directories above it that are missing; opens it where another
    /// process was faster.
    pub fn create(root: &Path) -> Result<Self> {
        let made = missing_above(root);
        Self::create_below(root, &made).inspect_err(|_| remove_empty_dirs(&made))
    }

    fn create_below(root: &Path, made: &[PathBuf]) -> Result<Self> {
        let layout = Layout::new(root.to_owned());
        let alone = loop {
            if layout.chunks().exists() {
                return Self::open(root);
            }
            fs::create_dir_all(root).map_err(io("create", root))?;
            match SoleLock::acquire(&layout.lock()) {
                // Who has it makes the store, or has made it and writes.
                Err(StoreError::Locked { .. }) => thread::sleep(Duration::from_millis(50)),
                // Its directory was taken away meanwhile, by a backup that stored nothing.
                Err(StoreError::Io { source, .. })
                    if source.kind() == std_io::ErrorKind::NotFound => {}
                other => match other? {
                    lock if lock.is_current(&layout.lock()) => break lock,
                    _ => {}
                },
            }
        };
        if layout.chunks().exists() {
            return Self::open(root);
        }
        let store = Self::make(layout.clone(), made.to_vec()).inspect_err(|_| {
            let _ = fs::remove_file(layout.lock());
        });
        drop(alone);
        store
    }

    fn make(layout: Layout, made: Vec<PathBuf>) -> Result<Self> {
        let root = layout.root();
        for entry in fs::read_dir(root).map_err(io("read", root))?.flatten() {
            if entry.file_name().to_string_lossy().starts_with(".chunks.tmp_") {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        let keeper = Keeper::of(root)?;
        keeper.own_path(&layout.lock())?;
        let chunks = DirChunks::create(layout.clone())?;
        Ok(Self { layout, keeper, chunks, made: Some(made) })
    }

    /// Removes a store that [`Self::create`] has just made, if nothing was stored in it and nobody
    /// else uses it; false where it stays.
    pub fn discard_unused(&self) -> Result<bool> {
        self.made.as_ref().map_or(Ok(false), |made| discard(&self.layout, made))
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    pub(crate) fn keeper(&self) -> Keeper {
        self.keeper
    }

    /// Moves a damaged chunk out of the way, so that the next backup stores it again. Returns where
    /// it lies; none where it is gone.
    pub fn set_aside(&self, digest: &ChunkDigest) -> Result<Option<PathBuf>> {
        set_aside(&self.layout.chunk(digest))
    }

    /// Where a group lies, for messages.
    pub fn group_path(&self, namespace: &Namespace, group: &GroupId) -> PathBuf {
        self.layout.group(namespace, group)
    }

    /// Who owns a group; none where there is no such group.
    pub fn owner_of(&self, namespace: &Namespace, group: &GroupId) -> Result<Option<String>> {
        self.require_namespace(namespace)?;
        Ok(self.owner(namespace, group))
    }

    /// Removes a group with its snapshots; false where protected ones remain.
    pub fn delete_group(&self, namespace: &Namespace, group: &GroupId) -> Result<bool> {
        self.require_group(namespace, group)?;
        self.remove_group(namespace, group)
    }

    fn require_group(&self, namespace: &Namespace, group: &GroupId) -> Result<()> {
        self.require_namespace(namespace)?;
        match self.layout.group(namespace, group).is_dir() {
            true => Ok(()),
            false => Err(StoreError::GroupMissing { group: group.clone() }),
        }
    }

    /// The notes of a group; empty where it has none.
    pub fn group_notes(&self, namespace: &Namespace, group: &GroupId) -> Result<String> {
        self.require_group(namespace, group)?;
        let path = self.layout.group(namespace, group).join(NOTES);
        match fs::read_to_string(&path) {
            Err(error) if error.kind() == std_io::ErrorKind::NotFound => Ok(String::new()),
            other => other.map_err(io("read", &path)),
        }
    }

    pub fn set_group_notes(&self, ns: &Namespace, group: &GroupId, notes: &str) -> Result<()> {
        self.require_group(ns, group)?;
        let path = self.layout.group(ns, group).join(NOTES);
        write_durably(&path, notes.as_bytes(), self.keeper)
    }

    /// What the last collection found, as it was written; none before the first.
    pub fn garbage_status(&self) -> Result<Option<serde_json::Value>> {
        let path = self.layout.root().join(".gc-status");
        match fs::read(&path) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
            Err(error) if error.kind() == std_io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io("read", &path)(error)),
        }
    }

    /// Chunks without a session, for verification and tests.
    pub fn chunks(&self) -> &dyn ChunkStore {
        &self.chunks
    }

    fn require_namespace(&self, namespace: &Namespace) -> Result<()> {
        if namespace.is_root() || self.layout.namespace(namespace).is_dir() {
            return Ok(());
        }
        Err(StoreError::NamespaceMissing { namespace: namespace.clone() })
    }

    fn make_dir(&self, path: &Path) -> Result<bool> {
        match fs::create_dir(path) {
            Ok(()) => self.keeper.own_path(path).map(|()| true),
            Err(error) if error.kind() == std_io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(io("create", path)(error)),
        }
    }

    /// Makes the group's directory and locks it; tells whether it is new.
    fn enter_group(&self, ns: &Namespace, group: &GroupId, owner: &str) -> Result<(DirLock, bool)> {
        let dir = self.layout.group(ns, group);
        self.make_dir(dir.parent().unwrap_or(&dir))?;
        let is_new = self.make_dir(&dir)?;
        let lock = DirLock::exclusive(&dir, &format!("backup group {group}"), RUNNING)?;
        let path = dir.join(OWNER);
        // Empty where a crash came between its making and its writing.
        let missing = fs::metadata(&path).map_or(true, |metadata| metadata.len() == 0);
        if missing {
            write_durably(&path, format!("{owner}\n").as_bytes(), self.keeper)?;
        }
        Ok((lock, is_new))
    }

    /// Takes away what crashed backups and removals left. The group is locked.
    fn sweep_group(&self, dir: &Path) -> Result<()> {
        for entry in fs::read_dir(dir).map_err(io("read", dir))?.flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with('.') && name.contains(TEMPORARY) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        Ok(())
    }

    fn open_snapshot(&self, ns: &Namespace, snapshot: &SnapshotId) -> Result<DirSnapshot> {
        let dir = self.layout.snapshot(ns, snapshot);
        if !dir.is_dir() {
            self.require_namespace(ns)?;
            return Err(StoreError::SnapshotMissing { snapshot: snapshot.clone() });
        }
        let lock = DirLock::shared(&dir, &format!("snapshot {snapshot}"), "it is being removed")?;
        let (layout, chunks) = (self.layout.clone(), self.chunks.clone());
        let (namespace, snapshot) = (ns.clone(), snapshot.clone());
        Ok(DirSnapshot { layout, chunks, namespace, snapshot, _lock: lock })
    }

    /// Locks a snapshot against everybody, for a change.
    fn seize(&self, ns: &Namespace, snapshot: &SnapshotId) -> Result<DirLock> {
        let dir = self.layout.snapshot(ns, snapshot);
        if !dir.is_dir() {
            self.require_namespace(ns)?;
            return Err(StoreError::SnapshotMissing { snapshot: snapshot.clone() });
        }
        DirLock::exclusive(&dir, &format!("snapshot {snapshot}"), IN_USE)
    }

    fn group_ids(&self, namespace: &Namespace) -> Result<Vec<GroupId>> {
        self.require_namespace(namespace)?;
        let mut groups = Vec::new();
        for kind in BackupType::ALL {
            let dir = self.layout.namespace(namespace).join(kind.as_str());
            let ids = names_in::<BackupId>(&dir)?;
            groups.extend(ids.into_iter().map(|id| GroupId { kind, id }));
        }
        groups.sort();
        Ok(groups)
    }

    fn times(&self, namespace: &Namespace, group: &GroupId) -> Result<Vec<BackupTime>> {
        let mut times = names_in::<BackupTime>(&self.layout.group(namespace, group))?;
        times.sort_unstable();
        Ok(times)
    }

    fn owner(&self, namespace: &Namespace, group: &GroupId) -> Option<String> {
        let path = self.layout.group(namespace, group).join(OWNER);
        let text = fs::read_to_string(path).ok()?;
        Some(text.lines().next()?.trim_end().to_owned())
    }

    fn info(&self, ns: &Namespace, snapshot: SnapshotId, owner: &str) -> Result<SnapshotInfo> {
        let dir = self.layout.snapshot(ns, &snapshot);
        let manifest = dir.join(ArchiveName::manifest().as_str());
        let manifest = match read_limited(&manifest) {
            Ok(bytes) => Some(bytes),
            Err(error) if error.kind() == std_io::ErrorKind::NotFound => None,
            Err(error) => {
                // The others are to be seen all the same.
                tracing::warn!("could not read '{}': {error}", manifest.display());
                None
            }
        };
        let mut files = names_in::<ArchiveName>(&dir)?;
        files.sort();
        let protected = dir.join(PROTECTED).exists();
        Ok(SnapshotInfo { snapshot, owner: owner.to_owned(), protected, manifest, files })
    }

    /// Takes a snapshot's directory out of sight, then away: a crash leaves it whole or invisible.
    fn remove_snapshot(&self, ns: &Namespace, snapshot: &SnapshotId) -> Result<()> {
        let dir = self.layout.snapshot(ns, snapshot);
        let hidden = format!(".{}{TEMPORARY}{}", snapshot.time, temporary_suffix());
        let group = self.layout.group(ns, &snapshot.group);
        let hidden = group.join(hidden);
        fs::rename(&dir, &hidden).map_err(io("remove", &dir))?;
        sync_dir(&group)?;
        match fs::remove_dir_all(&hidden) {
            // A backup of the group has swept it away.
            Err(error) if error.kind() == std_io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(io("remove", &hidden)),
        }
    }

    /// Removes a group; false where protected snapshots remain.
    fn remove_group(&self, ns: &Namespace, group: &GroupId) -> Result<bool> {
        let dir = self.layout.group(ns, group);
        let what = format!("backup group {group}");
        let _lock = DirLock::exclusive(&dir, &what, "possible running backup")?;
        let mut all = true;
        for time in self.times(ns, group)? {
            let snapshot = SnapshotId { group: group.clone(), time };
            match self.forget(ns, &snapshot) {
                Err(StoreError::Protected { .. }) => all = false,
                other => other?,
            }
        }
        if all {
            fs::remove_dir_all(&dir).map_err(io("remove", &dir))?;
        }
        Ok(all)
    }

    /// Removes what is empty of one namespace; false where something remains.
    fn remove_empty(&self, namespace: &Namespace) -> Result<bool> {
        let dir = self.layout.namespace(namespace);
        let remove = |path: &Path| match fs::remove_dir(path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == std_io::ErrorKind::NotFound => Ok(true),
            Err(error) if error.kind() == std_io::ErrorKind::DirectoryNotEmpty => Ok(false),
            Err(error) => Err(io("remove", path)(error)),
        };
        for part in BackupType::ALL.map(BackupType::as_str).into_iter().chain(["ns"]) {
            remove(&dir.join(part))?;
        }
        remove(&dir)
    }
}

/// Names in a directory that are legal; none where there is no directory.
fn names_in<T: FromStr>(dir: &Path) -> Result<Vec<T>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        // Something else than a directory there is nobody's backup.
        Err(error)
            if matches!(
                error.kind(),
                std_io::ErrorKind::NotFound | std_io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(Vec::new());
        }
        Err(error) => return Err(io("read", dir)(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(io("read", dir))?;
        names.extend(entry.file_name().to_str().and_then(|name| name.parse().ok()));
    }
    Ok(names)
}

fn read_limited(path: &Path) -> std_io::Result<Vec<u8>> {
    let mut file = open_regular(path)?;
    let size = file.metadata()?.len();
    if size > FILE_BYTES_MAX {
        let problem = format!("{size} bytes are too many for a file of a snapshot");
        return Err(std_io::Error::new(std_io::ErrorKind::InvalidData, problem));
    }
    let mut bytes = Vec::with_capacity(size as usize);
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

impl SessionStore for DirStore {
    fn begin(
        &self,
        namespace: &Namespace,
        snapshot: &SnapshotId,
        owner: &str,
    ) -> Result<Arc<dyn BackupSession>> {
        self.require_namespace(namespace)?;
        let writer = WriterLock::acquire(&self.layout.lock())?;
        let (group_lock, group_is_new) = self.enter_group(namespace, &snapshot.group, owner)?;
        let group_dir = self.layout.group(namespace, &snapshot.group);
        self.sweep_group(&group_dir)?;
        // What has no manifest was never finished.
        let manifest = ArchiveName::manifest();
        let mut finished: Vec<SnapshotId> = self
            .times(namespace, &snapshot.group)?
            .into_iter()
            .map(|time| SnapshotId { group: snapshot.group.clone(), time })
            .filter(|id| self.layout.file(namespace, id, &manifest).is_file())
            .collect();
        if let Some(last) = finished.pop_if(|last| last.time >= snapshot.time) {
            return Err(StoreError::TooOld { last });
        }
        if self.layout.snapshot(namespace, snapshot).exists() {
            return Err(StoreError::Refused("backup directory already exists.".into()));
        }
        let previous = finished.iter().rev().find_map(|id| {
            let reader: Arc<dyn SnapshotReader> = Arc::new(self.open_snapshot(namespace, id).ok()?);
            Some(reader)
        });
        recover(&self.layout)?;
        let marker = Marker::set(&self.layout, self.keeper)?;
        let name = format!(".{}{TEMPORARY}{}", snapshot.time, temporary_suffix());
        let work_dir = group_dir.join(name);
        self.make_dir(&work_dir)?;
        Ok(Arc::new(DirSession {
            layout: self.layout.clone(),
            keeper: self.keeper,
            chunks: self.chunks.clone(),
            namespace: namespace.clone(),
            snapshot: snapshot.clone(),
            work_dir,
            group_is_new,
            previous,
            finished: AtomicBool::new(false),
            indexes: AtomicU64::new(0),
            _group: group_lock,
            _writer: writer,
            _marker: marker,
        }))
    }

    fn open(
        &self,
        namespace: &Namespace,
        snapshot: &SnapshotId,
    ) -> Result<Arc<dyn SnapshotReader>> {
        Ok(Arc::new(self.open_snapshot(namespace, snapshot)?))
    }
}

impl SnapshotStore for DirStore {
    fn namespaces(&self, parent: &Namespace, depth: usize) -> Result<Vec<Namespace>> {
        self.require_namespace(parent)?;
        let mut found = vec![parent.clone()];
        if depth > 0 {
            let dir = self.layout.namespace(parent).join("ns");
            let mut names: Vec<String> = names_in(&dir)?;
            names.sort_unstable();
            for name in names {
                if let Ok(child) = parent.child(&name) {
                    found.extend(self.namespaces(&child, depth - 1)?);
                }
            }
        }
        Ok(found)
    }

    fn create_namespace(&self, namespace: &Namespace) -> Result<()> {
        let Some(parent) = namespace.parent() else {
            return Err(StoreError::Refused("root namespace is always present".into()));
        };
        if self.require_namespace(&parent).is_err() {
            let problem =
                format!("cannot create new namespace, parent {parent} doesn't already exists");
            return Err(StoreError::Refused(problem));
        }
        if let Some(long) = namespace.components().find(|name| name.len() > COMPONENT_BYTES_MAX) {
            let problem = format!("namespace component '{long}' has more than 32 characters");
            return Err(StoreError::Refused(problem));
        }
        let dir = self.layout.namespace(namespace);
        self.make_dir(dir.parent().unwrap_or(&dir))?;
        if !self.make_dir(&dir)? {
            return Err(StoreError::Refused(format!("namespace '{namespace}' already exists")));
        }
        Ok(())
    }

    fn delete_namespace(&self, namespace: &Namespace, with_groups: bool) -> Result<Removal> {
        if namespace.is_root() {
            return Err(StoreError::Refused("root namespace cannot be deleted".into()));
        }
        let mut all = self.namespaces(namespace, Namespace::DEPTH_MAX)?;
        all.reverse();
        let mut outcome = Removal::Done;
        for namespace in all {
            if with_groups {
                for group in self.group_ids(&namespace)? {
                    if !self.remove_group(&namespace, &group)? {
                        outcome = Removal::KeptProtected;
                    }
                }
            }
            if !self.remove_empty(&namespace)? && outcome == Removal::Done {
                outcome = Removal::KeptGroups;
            }
        }
        Ok(outcome)
    }

    fn groups(&self, namespace: &Namespace) -> Result<Vec<GroupInfo>> {
        let mut groups = Vec::new();
        for group in self.group_ids(namespace)? {
            let Some(owner) = self.owner(namespace, &group) else { continue };
            if self.times(namespace, &group)?.is_empty() {
                continue;
            }
            let notes = self.layout.group(namespace, &group).join(NOTES);
            let notes = fs::read_to_string(notes).unwrap_or_default();
            let comment = notes.lines().next().filter(|line| !line.is_empty()).map(str::to_owned);
            groups.push(GroupInfo { group, owner, comment });
        }
        Ok(groups)
    }

    fn snapshots(&self, ns: &Namespace, group: Option<&GroupId>) -> Result<Vec<SnapshotInfo>> {
        let groups = match group {
            Some(group) => {
                self.require_namespace(ns)?;
                vec![group.clone()]
            }
            None => self.group_ids(ns)?,
        };
        let mut found = Vec::new();
        for group in groups {
            let owner = self.owner(ns, &group).unwrap_or_default();
            for time in self.times(ns, &group)? {
                let snapshot = SnapshotId { group: group.clone(), time };
                found.push(self.info(ns, snapshot, &owner)?);
            }
        }
        Ok(found)
    }

    fn capacity(&self) -> Result<Capacity> {
        let root = self.layout.root();
        let stat = rustix::fs::statfs(root).map_err(|error| io("examine", root)(error.into()))?;
        let block = u64::try_from(stat.f_bsize).unwrap_or(0);
        Ok(Capacity {
            total: stat.f_blocks.saturating_mul(block),
            used: stat.f_blocks.saturating_sub(stat.f_bfree).saturating_mul(block),
            available: stat.f_bavail.saturating_mul(block),
        })
    }

    fn forget(&self, namespace: &Namespace, snapshot: &SnapshotId) -> Result<()> {
        let _lock = self.seize(namespace, snapshot)?;
        if self.protected(namespace, snapshot)? {
            return Err(StoreError::Protected { snapshot: snapshot.clone() });
        }
        self.remove_snapshot(namespace, snapshot)
    }

    fn protected(&self, namespace: &Namespace, snapshot: &SnapshotId) -> Result<bool> {
        let dir = self.layout.snapshot(namespace, snapshot);
        if !dir.is_dir() {
            self.require_namespace(namespace)?;
            return Err(StoreError::SnapshotMissing { snapshot: snapshot.clone() });
        }
        let path = dir.join(PROTECTED);
        path.try_exists().map_err(io("examine", &path))
    }

    fn set_protected(&self, ns: &Namespace, snapshot: &SnapshotId, protected: bool) -> Result<()> {
        let _lock = self.seize(ns, snapshot)?;
        let dir = self.layout.snapshot(ns, snapshot);
        let path = dir.join(PROTECTED);
        if protected {
            let mut options = OpenOptions::new();
            options
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)
                .map_err(io("create", &path))?;
            self.keeper.own_path(&path)?;
        } else {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != std_io::ErrorKind::NotFound => {
                    return Err(io("remove", &path)(error));
                }
                _ => {}
            }
        }
        sync_dir(&dir)
    }

    fn update_manifest(
        &self,
        namespace: &Namespace,
        snapshot: &SnapshotId,
        change: &mut dyn FnMut(Blob) -> Result<Blob>,
    ) -> Result<()> {
        let reader = self.open_snapshot(namespace, snapshot)?;
        let _turn = self.take_turn(namespace, &snapshot.group)?;
        let name = ArchiveName::manifest();
        let old = Blob::parse(reader.read_file(&name)?).map_err(|problem| StoreError::Corrupt {
            snapshot: snapshot.clone(),
            name: name.clone(),
            problem: problem.to_string(),
        })?;
        let path = self.layout.file(namespace, snapshot, &name);
        write_durably(&path, change(old)?.as_bytes(), self.keeper)
    }

    fn change_owner(&self, namespace: &Namespace, group: &GroupId, owner: &AuthId) -> Result<()> {
        self.require_namespace(namespace)?;
        let dir = self.layout.group(namespace, group);
        if !dir.is_dir() {
            return Err(StoreError::GroupMissing { group: group.clone() });
        }
        let what = format!("backup group {group}");
        let _group = DirLock::exclusive(&dir, &what, RUNNING)?;
        let _turn = self.take_turn(namespace, group)?;
        write_durably(&dir.join(OWNER), format!("{owner}\n").as_bytes(), self.keeper)
    }

    fn add_log(&self, namespace: &Namespace, snapshot: &SnapshotId, log: &Blob) -> Result<()> {
        let _reader = self.open_snapshot(namespace, snapshot)?;
        let _turn = self.take_turn(namespace, &snapshot.group)?;
        let path = self.layout.file(namespace, snapshot, &ArchiveName::client_log());
        if path.try_exists().map_err(io("examine", &path))? {
            return Err(StoreError::Refused("backup already contains a log.".into()));
        }
        write_durably(&path, log.as_bytes(), self.keeper)
    }
}

impl DirStore {
    /// Who holds it is the only one to change what lies in the group's snapshots. The snapshots
    /// themselves are locked as shared: they stay, and can be read.
    fn take_turn(&self, namespace: &Namespace, group: &GroupId) -> Result<fs::File> {
        let owner = self.layout.group(namespace, group).join(OWNER);
        loop {
            let turn = open_regular(&owner).map_err(io("open", &owner))?;
            let locked = rustix::fs::flock(&turn, rustix::fs::FlockOperation::LockExclusive);
            locked.map_err(|error| io("lock", &owner)(error.into()))?;
            // Meanwhile the file may have been replaced: then others lock the new one.
            let ours = turn.metadata().map_err(io("examine", &owner))?.ino();
            if fs::metadata(&owner).map_err(io("examine", &owner))?.ino() == ours {
                return Ok(turn);
            }
        }
    }
}

/// An open snapshot of a directory store.
pub(crate) struct DirSnapshot {
    layout: Layout,
    chunks: DirChunks,
    namespace: Namespace,
    snapshot: SnapshotId,
    _lock: DirLock,
}

impl SnapshotReader for DirSnapshot {
    fn snapshot(&self) -> &SnapshotId {
        &self.snapshot
    }

    fn chunks(&self) -> &dyn ChunkStore {
        &self.chunks
    }

    fn read_file(&self, name: &ArchiveName) -> Result<Vec<u8>> {
        let path = self.layout.file(&self.namespace, &self.snapshot, name);
        read_limited(&path).map_err(io("read", &path))
    }
}

#[cfg(test)]
mod tests;
