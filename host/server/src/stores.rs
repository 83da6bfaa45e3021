//! The datastores of the server, as the configuration has them now.

use crate::config::{Datastore, Datastores, MaintenanceKind};
use crate::error::{ApiError, ApiResult};
use hyper::StatusCode;
use keepwell_model::{ArchiveName, GroupId, Namespace, SnapshotId};
use keepwell_store::{DirStore, SnapshotReader, StoreError};

/// What somebody wants of a datastore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    Read,
    Write,
}

/// Opens a datastore, unless maintenance forbids it.
pub(crate) fn open(all: &Datastores, name: &str, purpose: Purpose) -> ApiResult<DirStore> {
    let missing = || ApiError::bad(format!("no such datastore '{name}'"));
    let store = all.find(name).ok_or_else(missing)?;
    check_maintenance(store, purpose)?;
    Ok(DirStore::open(&store.path)?)
}

/// Where a session's namespace is missing, that is 404.
pub(crate) fn not_found(error: StoreError) -> ApiError {
    match error {
        StoreError::NamespaceMissing { .. } => {
            ApiError::new(StatusCode::NOT_FOUND, error.to_string())
        }
        other => other.into(),
    }
}

/// Of a removal that somebody who uses the snapshot or the group prevents.
pub(crate) fn in_use(
    error: StoreError,
    store: &DirStore,
    namespace: &Namespace,
    group: &GroupId,
) -> ApiError {
    let StoreError::Locked { what, why } = &error else { return error.into() };
    let dir = store.group_path(namespace, group);
    let snapshot = what.strip_prefix("snapshot ").and_then(|name| name.parse::<SnapshotId>().ok());
    let (what, dir, why) = match snapshot {
        Some(snapshot) => {
            ("snapshot", dir.join(snapshot.time.to_string()), "possibly running or in use")
        }
        None => ("backup group", dir, *why),
    };
    let dir = dir.display();
    ApiError::bad(format!("unable to acquire lock on {what} directory \"{dir}\" - {why}"))
}

fn no_such_file(name: &str) -> ApiError {
    let text = format!("open file \"{name}\" failed - not found");
    ApiError::new(StatusCode::NOT_FOUND, text)
}

/// A file that a client names.
pub(crate) fn parse_file_name(given: &str) -> ApiResult<ArchiveName> {
    given.parse().map_err(|_| ApiError::bad(format!("unknown archive type: \"{given}\"")))
}

/// The bytes of a snapshot's file that a client names, as they are stored.
pub(crate) fn read_file(
    reader: &dyn SnapshotReader,
    given: &str,
) -> ApiResult<(ArchiveName, Vec<u8>)> {
    let name: ArchiveName = parse_file_name(given)?;
    match reader.read_file(&name) {
        Ok(bytes) => Ok((name, bytes)),
        Err(StoreError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            Err(no_such_file(given))
        }
        Err(other) => Err(other.into()),
    }
}

fn check_maintenance(store: &Datastore, purpose: Purpose) -> ApiResult<()> {
    let Some(maintenance) = &store.maintenance else { return Ok(()) };
    let mode = match maintenance.kind {
        MaintenanceKind::ReadOnly if purpose == Purpose::Read => return Ok(()),
        MaintenanceKind::ReadOnly => "read-only maintenance mode",
        MaintenanceKind::Offline => "offline maintenance mode",
        MaintenanceKind::Delete => "datastore is being deleted",
    };
    let (name, message) = (&store.name, &maintenance.message);
    let text = match maintenance.kind {
        MaintenanceKind::Delete => format!("datastore '{name}' is in {mode}"),
        _ => format!("datastore '{name}' is in {mode}: {message}"),
    };
    Err(ApiError::bad(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_use_is_named_by_its_directory() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(".chunks")).unwrap();
        let store = DirStore::open(dir.path()).unwrap();
        let group = "host/a".parse().unwrap();
        let said = |what: &str| {
            let error = StoreError::Locked { what: what.into(), why: "why" };
            in_use(error, &store, &Namespace::default(), &group).message
        };
        assert!(said("backup group host/a").ends_with("/host/a\" - why"));
        assert!(
            said("snapshot host/a/2023-11-14T22:13:20Z")
                .ends_with("/host/a/2023-11-14T22:13:20Z\" - possibly running or in use")
        );
    }
}
