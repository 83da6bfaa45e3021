//! Listings of groups, snapshots and files, in the shapes of the reference's API.

use crate::error::Result;
use crate::snapshot::UnverifiedManifest;
use keepwell_model::manifest::CryptMode;
use keepwell_model::{
    ArchiveName, BackupTime, BackupType, GroupId, Manifest, Namespace, SnapshotId,
};
use keepwell_store::{SnapshotInfo, SnapshotStore};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::HashSet;

/// A snapshot as the items of the API name it.
pub(crate) fn snapshot_id(kind: BackupType, id: &str, time: i64) -> Result<SnapshotId> {
    let group = GroupId { kind, id: id.parse()? };
    Ok(SnapshotId { group, time: BackupTime::from_unix(time)? })
}

/// A group: one line of `list`. What a newer server adds is kept.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct GroupItem {
    pub backup_count: u64,
    pub backup_id: String,
    pub backup_type: BackupType,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    pub files: Vec<String>,
    pub last_backup: i64,
    #[serde(default)]
    pub owner: String,
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

impl GroupItem {
    pub fn last(&self) -> Result<SnapshotId> {
        snapshot_id(self.backup_type, &self.backup_id, self.last_backup)
    }
}

/// A file: what only the manifest knows is missing for others.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct FileItem {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub crypt_mode: Option<CryptMode>,
    pub filename: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
}

/// A snapshot: one line of `snapshot list`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct SnapshotItem {
    pub backup_id: String,
    pub backup_time: i64,
    pub backup_type: BackupType,
    /// first line of the notes
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    pub files: Vec<FileItem>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
    #[serde(default)]
    pub owner: String,
    #[serde(default)]
    pub protected: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verification: Option<Value>,
    /// all of them, which only the store itself tells
    #[serde(skip)]
    pub notes: String,
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

impl SnapshotItem {
    pub fn snapshot(&self) -> Result<SnapshotId> {
        snapshot_id(self.backup_type, &self.backup_id, self.backup_time)
    }

    /// Whether there is a manifest.
    pub fn is_finished(&self) -> bool {
        let manifest = ArchiveName::manifest();
        self.files.iter().any(|file| file.filename == manifest.as_str())
    }
}

/// Groups of a namespace, sorted.
pub fn groups(store: &dyn SnapshotStore, namespace: &Namespace) -> Result<Vec<GroupItem>> {
    let mut items = Vec::new();
    for info in store.groups(namespace)? {
        let snapshots = store.snapshots(namespace, Some(&info.group))?;
        // The newest finished one, or the newest of all where none is.
        let finished = snapshots.iter().rev().find(|snapshot| snapshot.manifest.is_some());
        let Some(last) = finished.or(snapshots.last()) else { continue };
        items.push(GroupItem {
            backup_count: snapshots.len() as u64,
            backup_id: info.group.id.to_string(),
            backup_type: info.group.kind,
            comment: info.comment,
            files: last.files.iter().map(ArchiveName::to_string).collect(),
            last_backup: last.snapshot.time.unix(),
            owner: info.owner,
            rest: Map::new(),
        });
    }
    Ok(items)
}

/// Snapshots of a namespace, or of one group of it.
pub fn snapshots(
    store: &dyn SnapshotStore,
    namespace: &Namespace,
    group: Option<&GroupId>,
) -> Result<Vec<SnapshotItem>> {
    Ok(store.snapshots(namespace, group)?.into_iter().map(item).collect())
}

fn item(info: SnapshotInfo) -> SnapshotItem {
    let manifest_bytes = info.manifest.as_ref().map_or(0, |bytes| bytes.len() as u64);
    let manifest = info.manifest.and_then(|bytes| {
        let opened = UnverifiedManifest::open(&info.snapshot, bytes);
        let opened = opened.inspect_err(|problem| tracing::warn!("{problem}")).ok();
        opened.map(UnverifiedManifest::unverified)
    });
    let files = files_of(manifest.as_ref(), manifest_bytes, &info.files);
    let notes = manifest.as_ref().map_or("", Manifest::notes).to_owned();
    let manifest = manifest.as_ref();
    SnapshotItem {
        backup_id: info.snapshot.group.id.to_string(),
        backup_time: info.snapshot.time.unix(),
        backup_type: info.snapshot.group.kind,
        comment: notes.lines().next().filter(|line| !line.is_empty()).map(str::to_owned),
        fingerprint: manifest
            .and_then(|manifest| manifest.key_fingerprint().ok().flatten())
            .map(|fingerprint| fingerprint.to_string()),
        owner: info.owner,
        protected: info.protected,
        size: manifest
            .map(|_| files.iter().filter_map(|file| file.size).fold(0, u64::saturating_add)),
        verification: manifest.and_then(Manifest::verify_state).cloned(),
        files,
        notes,
        rest: Map::new(),
    }
}

/// Those of the manifest, the manifest, and others on disk.
fn files_of(
    manifest: Option<&Manifest>,
    manifest_bytes: u64,
    on_disk: &[ArchiveName],
) -> Vec<FileItem> {
    let mut files = Vec::new();
    let mut push = |name: &ArchiveName, crypt_mode, size| {
        files.push(FileItem { crypt_mode, filename: name.to_string(), size });
    };
    if let Some(manifest) = manifest {
        for file in &manifest.files {
            push(&file.name, Some(file.crypt_mode), Some(file.size));
        }
        let signed = manifest.signature.is_some();
        let mode = if signed { CryptMode::SignOnly } else { CryptMode::None };
        push(&ArchiveName::manifest(), Some(mode), Some(manifest_bytes));
    }
    let own = ArchiveName::manifest();
    let listed: HashSet<&ArchiveName> = manifest
        .into_iter()
        .flat_map(|manifest| manifest.files.iter().map(|file| &file.name).chain([&own]))
        .collect();
    for name in on_disk.iter().filter(|name| !listed.contains(name)) {
        push(name, None, None);
    }
    files
}

/// Files of one snapshot.
pub fn files(
    store: &dyn SnapshotStore,
    namespace: &Namespace,
    snapshot: &SnapshotId,
) -> Result<Vec<FileItem>> {
    let reader = store.open(namespace, snapshot)?;
    let all = store.snapshots(namespace, Some(&snapshot.group))?;
    let found = all.into_iter().find(|info| info.snapshot == *reader.snapshot());
    Ok(found.map(item).map(|item| item.files).unwrap_or_default())
}

/// The newest finished one of a group's snapshots, and those newer ones that are not finished.
pub fn newest(mut items: Vec<SnapshotItem>) -> Result<(Option<SnapshotId>, Vec<SnapshotId>)> {
    let mut skipped = Vec::new();
    items.sort_by_key(|item| std::cmp::Reverse(item.backup_time));
    for item in items {
        if item.is_finished() {
            return Ok((Some(item.snapshot()?), skipped));
        }
        skipped.push(item.snapshot()?);
    }
    Ok((None, skipped))
}
