//! All backups of a repository as directories: namespaces, types, ids, times, archives.

use super::{SHARED_CACHE_BYTES, open_archive, problem, reader_of};
use crate::args::namespace_of;
use crate::commands::opened::{ArchiveFiles, Opened};
use crate::encryption::CryptParameters;
use crate::plugins::{Plugins, Types};
use crate::repository::Repository;
use crate::store::Store;
use anyhow::Result;
use clap::ArgMatches;
use keepwell_model::names::BackupType;
use keepwell_model::{ArchiveName, GroupId, Namespace, SnapshotId};
use keepwell_mount::{Child, Directory, OpenArchive, Problem, Root};
use keepwell_seal::EncryptionKey;
use keepwell_wasm::Plugin;
use serde_json::Value;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// What all these directories share.
struct Backups {
    store: Store,
    parameters: CryptParameters,
    key: Option<Arc<EncryptionKey>>,
    /// by the extension of archives, with whether those are directories
    readers: HashMap<String, (Plugin, bool)>,
    types: Types,
}

/// Everything below the namespace that was given.
pub(super) fn root(plugins: &Plugins, matches: &ArgMatches) -> Result<Root> {
    let mut parameters = CryptParameters::of(matches)?;
    let store = Repository::find(matches.get_one("repository"))?.open(matches)?;
    let key = parameters.unlock()?;
    let readers = plugins.iter().flat_map(|loaded| &loaded.info.archive_types).filter_map(|kind| {
        Some((kind.extension.clone(), reader_of(plugins, &kind.extension).ok()?))
    });
    let (readers, types) = (readers.collect(), plugins.types());
    let namespace = namespace_of(matches);
    // Whether it can be read is found out now.
    store.groups(&namespace)?;
    let backups = Arc::new(Backups { store, parameters, key, readers, types });
    Ok(Root::Directory(Arc::new(InNamespace { backups, namespace })))
}

type Children = Result<Vec<(Vec<u8>, Child)>, Problem>;

/// An error with what it happened to.
fn at(place: impl std::fmt::Display) -> impl FnOnce(anyhow::Error) -> Problem {
    move |error| problem(&error.context(place.to_string()))
}

fn directory(name: String, directory: impl Directory + 'static) -> (Vec<u8>, Child) {
    (name.into_bytes(), Child::Directory(Arc::new(directory)))
}

struct InNamespace {
    backups: Arc<Backups>,
    namespace: Namespace,
}

impl InNamespace {
    fn namespaces(&self) -> Result<Vec<Namespace>> {
        let found = self.backups.store.namespaces(&self.namespace, Some(1))?;
        let found = found.get("data").and_then(Value::as_array).into_iter().flatten();
        let names = found.filter_map(|item| item.get("ns")?.as_str()?.parse::<Namespace>().ok());
        Ok(names.filter(|namespace| *namespace != self.namespace).collect())
    }
}

impl Directory for InNamespace {
    fn list(&self) -> Children {
        let Self { backups, namespace } = self;
        let failed = || at(format!("namespace '{namespace}'"));
        let mut children = Vec::new();
        for below in self.namespaces().map_err(failed())? {
            let name = below.components().last().unwrap_or_default().to_owned();
            // One that is called like a type of backup stands beside that.
            let name = match name.parse::<BackupType>() {
                Ok(_) => format!("ns:{name}"),
                Err(_) => name,
            };
            children.push(directory(name, Self { backups: backups.clone(), namespace: below }));
        }
        let groups = backups.store.groups(namespace).map_err(failed())?;
        let kinds: BTreeSet<BackupType> = groups.iter().map(|group| group.backup_type).collect();
        for kind in kinds {
            let (backups, namespace) = (backups.clone(), namespace.clone());
            children.push(directory(kind.to_string(), OfType { backups, namespace, kind }));
        }
        Ok(children)
    }
}

struct OfType {
    backups: Arc<Backups>,
    namespace: Namespace,
    kind: BackupType,
}

impl Directory for OfType {
    fn list(&self) -> Children {
        let Self { backups, namespace, kind } = self;
        let groups = backups.store.groups(namespace).map_err(at(kind))?.into_iter();
        let groups = groups.filter(|group| group.backup_type == *kind).filter_map(|group| {
            let id = group.backup_id;
            let group: GroupId = format!("{kind}/{id}").parse().ok()?;
            let (backups, namespace) = (backups.clone(), namespace.clone());
            Some(directory(id, OfGroup { backups, namespace, group }))
        });
        Ok(groups.collect())
    }
}

struct OfGroup {
    backups: Arc<Backups>,
    namespace: Namespace,
    group: GroupId,
}

impl Directory for OfGroup {
    fn list(&self) -> Children {
        let Self { backups, namespace, group } = self;
        let items = backups.store.snapshots(namespace, Some(group)).map_err(at(group))?;
        let manifest = ArchiveName::manifest();
        let is_finished = |file: &str| file == manifest.as_str();
        let items = items.into_iter();
        let items = items.filter(|item| item.files.iter().any(|file| is_finished(&file.filename)));
        let snapshots = items.filter_map(|item| {
            let snapshot = item.snapshot().ok()?;
            let files = item.files.into_iter().map(|file| file.filename).collect();
            let name = snapshot.to_string().rsplit('/').next()?.to_owned();
            let (backups, namespace) = (backups.clone(), namespace.clone());
            let of = OfSnapshot { backups, namespace, time: item.backup_time, snapshot, files };
            Some(directory(name, of))
        });
        Ok(snapshots.collect())
    }
}

struct OfSnapshot {
    backups: Arc<Backups>,
    namespace: Namespace,
    snapshot: SnapshotId,
    time: i64,
    /// as the store calls them
    files: Vec<String>,
}

impl Directory for OfSnapshot {
    fn list(&self) -> Children {
        let hidden = [
            ArchiveName::catalog(),
            ArchiveName::manifest(),
            ArchiveName::wrapped_key(),
            ArchiveName::client_log(),
        ];
        let names = self.files.iter().filter_map(|file| file.parse::<ArchiveName>().ok());
        let names = names.filter(|name| !hidden.contains(name));
        // Names of users, with the extension: archives that are kept in parts have one.
        let names: BTreeSet<(String, String)> = names
            .filter_map(|name| {
                let (label, extension) = name.user_name().rsplit_once('.')?;
                let whole = self.backups.types.kept_in_parts(extension);
                let extension = whole.map_or(extension, |whole| &whole.extension);
                Some((format!("{label}.{extension}"), extension.to_owned()))
            })
            .collect();
        let archives = names.into_iter().filter_map(|(name, extension)| {
            let (plugin, is_directory) = self.backups.readers.get(&extension)?.clone();
            let (backups, namespace) = (self.backups.clone(), self.namespace.clone());
            let (shown, snapshot) = (name.clone().into_bytes(), self.snapshot.clone());
            let opener = Box::new(move || {
                let opened = backups.open(&plugin, &namespace, &snapshot, &name);
                opened.map_err(at(format!("{snapshot}: {name}")))
            });
            Some((shown, Child::Archive(opener, is_directory)))
        });
        Ok(archives.collect())
    }

    fn modified(&self) -> i64 {
        self.time
    }
}

impl Backups {
    fn open(
        &self,
        plugin: &Plugin,
        namespace: &Namespace,
        snapshot: &SnapshotId,
        name: &str,
    ) -> Result<OpenArchive> {
        let reader = self.store.sessions().open(namespace, snapshot)?;
        let opened = Opened::new(reader, &self.parameters, self.key.clone())?;
        let files = ArchiveFiles::find(&self.types, &opened.manifest, name)?;
        open_archive(plugin, &opened, &files, SHARED_CACHE_BYTES)
    }
}
