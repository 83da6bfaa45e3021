//! An open repository: what commands ask of a directory and of a server alike.

use anyhow::{Context, Result, bail};
use keepwell_engine::list::{self, FileItem, GroupItem, SnapshotItem};
use keepwell_engine::snapshot::{UnverifiedManifest, change_unprotected};
use keepwell_model::{AuthId, Blob, GroupId, Namespace, SnapshotId};
use keepwell_store::{DirStore, Removal, SessionStore, SnapshotStore};
use keepwell_transport::{Query, RemoteStore};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

pub(crate) enum Store {
    Local(DirStore),
    Remote(RemoteStore),
}

/// What a server sent, as what it should be.
pub(crate) fn parsed<T: DeserializeOwned>(value: Value) -> Result<T> {
    serde_json::from_value(value).context("unexpected answer of the server")
}

impl Store {
    /// For backups and restores.
    pub(crate) fn sessions(&self) -> &dyn SessionStore {
        match self {
            Self::Local(store) => store,
            Self::Remote(store) => store,
        }
    }

    /// Takes away one that was made for a backup of which nothing came; false where it stays.
    pub(crate) fn discard_unused(&self) -> bool {
        match self {
            Self::Local(store) => store.discard_unused().unwrap_or(false),
            Self::Remote(_) => false,
        }
    }

    pub(crate) fn groups(&self, namespace: &Namespace) -> Result<Vec<GroupItem>> {
        match self {
            Self::Local(store) => Ok(list::groups(store, namespace)?),
            Self::Remote(store) => parsed(store.get("groups", &RemoteStore::namespace(namespace))?),
        }
    }

    pub(crate) fn snapshots(
        &self,
        namespace: &Namespace,
        group: Option<&GroupId>,
    ) -> Result<Vec<SnapshotItem>> {
        match self {
            Self::Local(store) => Ok(list::snapshots(store, namespace, group)?),
            Self::Remote(store) => {
                let query = match group {
                    Some(group) => RemoteStore::group(namespace, group),
                    None => RemoteStore::namespace(namespace),
                };
                parsed(store.get("snapshots", &query)?)
            }
        }
    }

    pub(crate) fn files(&self, ns: &Namespace, snapshot: &SnapshotId) -> Result<Vec<FileItem>> {
        match self {
            Self::Local(store) => Ok(list::files(store, ns, snapshot)?),
            Self::Remote(store) => {
                parsed(store.get("files", &RemoteStore::snapshot(ns, snapshot))?)
            }
        }
    }

    pub(crate) fn forget(&self, namespace: &Namespace, snapshot: &SnapshotId) -> Result<()> {
        match self {
            Self::Local(store) => Ok(store.forget(namespace, snapshot)?),
            Self::Remote(store) => {
                store.delete("snapshots", &RemoteStore::snapshot(namespace, snapshot))?;
                Ok(())
            }
        }
    }

    pub(crate) fn notes(&self, namespace: &Namespace, snapshot: &SnapshotId) -> Result<String> {
        match self {
            Self::Local(store) => {
                let reader = SessionStore::open(store, namespace, snapshot)?;
                Ok(UnverifiedManifest::read(&*reader)?.unverified().notes().to_owned())
            }
            Self::Remote(store) => {
                let notes = store.get("notes", &RemoteStore::snapshot(namespace, snapshot))?;
                parsed::<Option<String>>(notes).map(Option::unwrap_or_default)
            }
        }
    }

    pub(crate) fn set_notes(
        &self,
        ns: &Namespace,
        snapshot: &SnapshotId,
        notes: &str,
    ) -> Result<()> {
        match self {
            Self::Local(store) => Ok(change_unprotected(store, ns, snapshot, &|unprotected| {
                unprotected.insert("notes".into(), notes.into());
            })?),
            Self::Remote(store) => {
                store.put("notes", &RemoteStore::snapshot(ns, snapshot).with("notes", notes))?;
                Ok(())
            }
        }
    }

    pub(crate) fn protected(&self, namespace: &Namespace, snapshot: &SnapshotId) -> Result<bool> {
        match self {
            Self::Local(store) => Ok(store.protected(namespace, snapshot)?),
            Self::Remote(store) => {
                parsed(store.get("protected", &RemoteStore::snapshot(namespace, snapshot))?)
            }
        }
    }

    pub(crate) fn set_protected(
        &self,
        namespace: &Namespace,
        snapshot: &SnapshotId,
        protected: bool,
    ) -> Result<()> {
        match self {
            Self::Local(store) => Ok(store.set_protected(namespace, snapshot, protected)?),
            Self::Remote(store) => {
                let query = RemoteStore::snapshot(namespace, snapshot);
                store.put("protected", &query.with("protected", protected))?;
                Ok(())
            }
        }
    }

    pub(crate) fn add_log(&self, ns: &Namespace, snapshot: &SnapshotId, log: Blob) -> Result<()> {
        match self {
            Self::Local(store) => Ok(store.add_log(ns, snapshot, &log)?),
            Self::Remote(store) => Ok(store.upload_log(ns, snapshot, log.into_bytes())?),
        }
    }

    pub(crate) fn change_owner(
        &self,
        ns: &Namespace,
        group: &GroupId,
        owner: &AuthId,
    ) -> Result<()> {
        match self {
            Self::Local(store) => Ok(store.change_owner(ns, group, owner)?),
            Self::Remote(store) => {
                let query = RemoteStore::group(ns, group).with("new-owner", owner.as_str());
                store.post("change-owner", &query)?;
                Ok(())
            }
        }
    }

    /// The whole answer of the API: namespaces at and below `parent`.
    pub(crate) fn namespaces(&self, parent: &Namespace, depth: Option<u64>) -> Result<Value> {
        match self {
            Self::Local(store) => {
                let depth = depth.and_then(|depth| usize::try_from(depth).ok());
                let depth = depth.unwrap_or(Namespace::DEPTH_MAX).min(Namespace::DEPTH_MAX);
                let found = store.namespaces(parent, depth)?;
                let rows: Vec<Value> =
                    found.iter().map(|ns| json!({ "ns": ns.to_string() })).collect();
                Ok(json!({ "data": rows }))
            }
            Self::Remote(store) => {
                let parent = (!parent.is_root()).then(|| parent.to_string());
                let query = Query::new().with_some("max-depth", depth).with_some("parent", parent);
                Ok(store.get_whole("namespace", &query)?)
            }
        }
    }

    pub(crate) fn create_namespace(&self, namespace: &Namespace) -> Result<()> {
        match self {
            Self::Local(store) => Ok(store.create_namespace(namespace)?),
            Self::Remote(store) => {
                let Some(parent) = namespace.parent() else {
                    bail!("root namespace is always present");
                };
                let name = namespace.components().last().unwrap_or_default();
                let query = Query::new().with("name", name).with("parent", parent.to_string());
                store.post("namespace", &query)?;
                Ok(())
            }
        }
    }

    pub(crate) fn delete_namespace(&self, namespace: &Namespace, with_groups: bool) -> Result<()> {
        match self {
            Self::Local(store) => match store.delete_namespace(namespace, with_groups)? {
                Removal::Done => Ok(()),
                Removal::KeptProtected => {
                    bail!("group only partially deleted due to protected snapshots")
                }
                Removal::KeptGroups => {
                    bail!(
                        "only partially deleted due to existing groups but `delete-groups` not true"
                    )
                }
            },
            Self::Remote(store) => {
                if namespace.is_root() {
                    bail!("root namespace cannot be deleted");
                }
                let flag = with_groups.then_some(true);
                let query = RemoteStore::namespace(namespace).with_some("delete-groups", flag);
                store.delete("namespace", &query)?;
                Ok(())
            }
        }
    }

    /// `total`, `used` and `avail`, in bytes.
    pub(crate) fn status(&self) -> Result<Value> {
        match self {
            Self::Local(store) => {
                let room = store.capacity()?;
                let (total, used, avail) = (room.total, room.used, room.available);
                Ok(json!({ "total": total, "used": used, "avail": avail }))
            }
            Self::Remote(store) => Ok(store.get("status", &Query::new())?),
        }
    }
}
