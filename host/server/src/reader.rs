//! A session that reads a snapshot. Spec: protocol.md §5.

use crate::access::Privileges;
use crate::api::{Caller, SnapshotPath};
use crate::error::{ApiError, ApiResult};
use crate::http::Place;
use crate::params::{Kind, Params, is, required};
use crate::server::{Server, TaskGuard, acl_path};
use crate::session::{self, Endpoint, Input, Reply, Rooms};
use crate::stores::{self, Purpose};
use crate::tasks::Task;
use hyper::Method;
use hyper::upgrade::OnUpgrade;
use keepwell_model::blob::CHUNK_BYTES_MAX;
use keepwell_model::names::ArchiveKind;
use keepwell_model::{ChunkDigest, is_safe_name};
use keepwell_store::{SessionStore, SnapshotReader};
use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

/// What a speed test sends.
const SPEEDTEST_BYTES: usize = 1 << 20;
/// With the longest header.
const CHUNK_BYTES: usize = CHUNK_BYTES_MAX + 44;
/// An index is larger only for archives of more than 3 TiB.
const FILE_BYTES: usize = 32 << 20;

pub(crate) struct Reading {
    reader: Arc<dyn SnapshotReader>,
    /// chunks of the indexes that were read
    allowed: Mutex<HashSet<ChunkDigest>>,
    task: Arc<Task>,
}

pub(crate) const ENDPOINTS: &[Endpoint<Reading>] = &[
    Endpoint {
        method: Method::GET,
        name: "chunk",
        params: &[required("digest", Kind::Form(is::<ChunkDigest>))],
        input: Input::None,
        answer_bytes: CHUNK_BYTES,
        run: Reading::chunk,
    },
    Endpoint {
        method: Method::GET,
        name: "download",
        params: &[required("file-name", Kind::Form(is_safe_name))],
        input: Input::None,
        answer_bytes: FILE_BYTES,
        run: Reading::download,
    },
    Endpoint {
        method: Method::GET,
        name: "speedtest",
        params: &[],
        input: Input::None,
        answer_bytes: SPEEDTEST_BYTES,
        run: Reading::speedtest,
    },
];

/// Checks that the caller may read the snapshot, and opens it. `upgradable` is what the head of
/// the request says.
pub(crate) fn prepare(
    server: &Arc<Server>,
    caller: &Caller,
    path: &SnapshotPath,
    upgradable: ApiResult<()>,
) -> ApiResult<Prepared> {
    let SnapshotPath { store: name, namespace, snapshot } = path;
    let privileges = server.privileges(&caller.id, name, namespace);
    if !privileges.has_any(Privileges::READ.and(Privileges::BACKUP)) {
        let text = format!("no permissions on {}", acl_path(name, namespace));
        return Err(ApiError::bad(text));
    }
    let store = server.store(name, Purpose::Read)?;
    upgradable?;
    let owner = store.owner_of(namespace, &snapshot.group).map_err(stores::not_found)?;
    if !privileges.has_any(Privileges::READ)
        && !owner.is_some_and(|owner| crate::access::owns(&caller.id, &owner))
    {
        return Err(ApiError::bad("backup owner check failed!"));
    }
    let reader = store.open(namespace, snapshot)?;
    let id = format!("{name}:{}/{:08X}", snapshot.group, snapshot.time.unix());
    let guard = server.start_session("reader", id, &caller.id)?;
    guard.task.log(&format!("starting new backup reader datastore '{name}': {snapshot}"));
    Ok(Prepared { reader, guard })
}

pub(crate) struct Prepared {
    reader: Arc<dyn SnapshotReader>,
    guard: TaskGuard,
}

/// Serves the session once the connection has been upgraded.
pub(crate) async fn run(prepared: Prepared, upgrade: OnUpgrade, rooms: Rooms, place: Arc<Place>) {
    let Prepared { reader, guard } = prepared;
    let task = guard.task.clone();
    let outcome = match upgrade.await {
        Ok(upgraded) => {
            let session =
                Arc::new(Reading { reader, allowed: Mutex::default(), task: task.clone() });
            session::serve(upgraded, session, ENDPOINTS, rooms, &task).await
        }
        Err(error) => Err(format!("connection error: {error}")),
    };
    // A reader may leave at any time.
    let outcome = outcome.or_else(|problem| match problem.starts_with("connection error") {
        true => {
            task.log(&problem);
            tracing::info!("{}: {problem}", task.upid);
            Ok(())
        }
        false => Err(problem),
    });
    task.log("reader finished successfully");
    guard.end(&outcome);
    drop(place);
}

impl Reading {
    fn download(&self, params: &Params, _: Vec<u8>) -> ApiResult<Reply> {
        let given = params.text("file-name").unwrap_or_default();
        let (name, bytes) = stores::read_file(&*self.reader, given)?;
        self.task.log(&format!("download \"{given}\""));
        if name.kind() != ArchiveKind::Blob {
            let index = keepwell_store::parse_index(&name, self.reader.snapshot(), bytes.clone())?;
            let mut allowed = self.allowed.lock().unwrap_or_else(PoisonError::into_inner);
            allowed.extend(index.chunks().map(|chunk| chunk.digest));
            self.task.log(&format!("register chunks in '{given}' as downloadable."));
        }
        Ok(Reply::Bytes(bytes))
    }

    fn chunk(&self, params: &Params, _: Vec<u8>) -> ApiResult<Reply> {
        let digest: ChunkDigest = params.needed("digest")?;
        let allowed = self.allowed.lock().unwrap_or_else(PoisonError::into_inner).contains(&digest);
        if !allowed {
            let text = format!("download chunk {digest} not allowed");
            return Err(ApiError::unauthorized(text));
        }
        Ok(Reply::Bytes(self.reader.chunks().read(&digest)?))
    }

    fn speedtest(&self, _: &Params, _: Vec<u8>) -> ApiResult<Reply> {
        Ok(Reply::Bytes(vec![b'A'; SPEEDTEST_BYTES]))
    }
}
