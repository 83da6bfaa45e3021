//! A datastore on a server.

use crate::backup::RemoteBackup;
use crate::client::{Client, datastore_path};
use crate::error::Result;
use crate::query::Query;
use crate::reader::RemoteReader;
use keepwell_model::{GroupId, Namespace, SnapshotId};
use keepwell_store::{BackupSession, SessionStore, SnapshotReader};
use serde_json::Value;
use std::sync::Arc;

/// One of a server's datastores. Listings come as the server sends them.
pub struct RemoteStore {
    client: Arc<Client>,
    name: String,
}

impl RemoteStore {
    pub fn new(client: Client, name: String) -> Self {
        Self { client: Arc::new(client), name }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    /// GET of what lies under this datastore.
    pub fn get(&self, what: &str, query: &Query) -> Result<Value> {
        self.client.get(&datastore_path(&self.name, what), query)
    }

    /// The whole answer.
    pub fn get_whole(&self, what: &str, query: &Query) -> Result<Value> {
        self.client.get_whole(&datastore_path(&self.name, what), query)
    }

    pub fn post(&self, what: &str, query: &Query) -> Result<Value> {
        self.client.post(&datastore_path(&self.name, what), query)
    }

    pub fn put(&self, what: &str, query: &Query) -> Result<Value> {
        self.client.put(&datastore_path(&self.name, what), query)
    }

    pub fn delete(&self, what: &str, query: &Query) -> Result<Value> {
        self.client.delete(&datastore_path(&self.name, what), query)
    }

    /// Adds the client's log to a snapshot: a complete blob.
    pub fn upload_log(&self, ns: &Namespace, snapshot: &SnapshotId, log: Vec<u8>) -> Result<()> {
        let query = Self::snapshot(ns, snapshot);
        self.client.upload(&datastore_path(&self.name, "upload-backup-log"), &query, log)?;
        Ok(())
    }

    /// A file of a snapshot, as it is.
    pub fn download(&self, ns: &Namespace, snapshot: &SnapshotId, file: &str) -> Result<Vec<u8>> {
        let query = Self::snapshot(ns, snapshot).with("file-name", file);
        self.client.download(&datastore_path(&self.name, "download"), &query)
    }

    /// Parameters for a namespace.
    pub fn namespace(namespace: &Namespace) -> Query {
        let namespace = (!namespace.is_root()).then(|| namespace.to_string());
        Query::new().with_some("ns", namespace)
    }

    /// Parameters for a group.
    pub fn group(namespace: &Namespace, group: &GroupId) -> Query {
        Self::namespace(namespace)
            .with("backup-id", group.id.as_str())
            .with("backup-type", group.kind.as_str())
    }

    /// Parameters for a snapshot.
    pub fn snapshot(namespace: &Namespace, snapshot: &SnapshotId) -> Query {
        Self::group(namespace, &snapshot.group).with("backup-time", snapshot.time.unix())
    }

    /// Measures how fast this server takes what is sent to it, in bytes a second.
    pub fn upload_speed(&self, now: i64, seconds: f64) -> Result<f64> {
        crate::backup::upload_speed(&self.client, &self.name, now, seconds)
    }
}

impl SessionStore for RemoteStore {
    /// The server knows who the owner is.
    fn begin(
        &self,
        namespace: &Namespace,
        snapshot: &SnapshotId,
        _: &str,
    ) -> keepwell_store::Result<Arc<dyn BackupSession>> {
        let session = RemoteBackup::begin(&self.client, &self.name, namespace, snapshot, false)?;
        Ok(Arc::new(session))
    }

    fn open(
        &self,
        namespace: &Namespace,
        snapshot: &SnapshotId,
    ) -> keepwell_store::Result<Arc<dyn SnapshotReader>> {
        Ok(Arc::new(RemoteReader::open(&self.client, &self.name, namespace, snapshot)?))
    }
}
