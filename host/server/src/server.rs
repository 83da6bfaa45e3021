//! The server as a whole: its configuration, which may change while it runs, and its parts.

use crate::access::{Access, Privileges, Verifier};
use crate::auth::Failures;
use crate::config::{Config, Datastores};
use crate::error::{ApiError, ApiResult, Result, io, refused};
use crate::http;
use crate::keys::{self, AuthKeys};
use crate::memory::Memory;
use crate::stores::{self, Purpose};
use crate::tasks::{Identity, Task, Tasks};
use keepwell_engine::Cancel;
use keepwell_engine::plugin::{Reader, RetentionPolicy};
use keepwell_model::{AuthId, Namespace};
use keepwell_store::DirStore;
use std::fs::{File, OpenOptions, TryLockError};
use std::future::Future;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// Makes a reader of archives by their extension.
pub type ReaderMaker = Box<dyn Fn(&str, Cancel) -> Result<Box<dyn Reader>, String> + Send + Sync>;

/// What the server is told of the world around it.
pub struct Environment {
    pub identity: Identity,
    /// Unix seconds
    pub now: fn() -> i64,
    /// local time minus UTC in seconds, at a moment
    pub utc_offset: fn(i64) -> i32,
    /// a retention policy with the documented rules
    pub policy: Box<dyn Fn() -> Result<Box<dyn RetentionPolicy>, String> + Send + Sync>,
    /// reads archives of an extension, until it is cancelled
    pub reader: ReaderMaker,
    /// `3.2.4`: the version whose behaviour clients may expect
    pub version: &'static str,
}

/// Device, inode, time of change and length: another file is another stamp.
type Stamp = Option<(u64, u64, i64, i64, u64)>;

fn stamp(path: &Path) -> Stamp {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino(), metadata.mtime(), metadata.mtime_nsec(), metadata.len()))
}

/// A file of the state, read again when it has changed.
struct Reloaded<T> {
    path: std::path::PathBuf,
    current: Mutex<(Stamp, Arc<T>)>,
}

impl<T> Reloaded<T> {
    fn new(path: std::path::PathBuf, value: T) -> Self {
        let current = Mutex::new((stamp(&path), Arc::new(value)));
        Self { path, current }
    }

    /// What can't be read leaves everything as it was.
    fn get(&self, load: impl FnOnce() -> Result<T>) -> Arc<T> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let now = stamp(&self.path);
        if now != current.0 {
            current.0 = now;
            match load() {
                Ok(value) => current.1 = Arc::new(value),
                Err(error) => tracing::error!("{error}: what was read before is used"),
            }
        }
        current.1.clone()
    }
}

/// A running server.
pub struct Server {
    pub(crate) config: Config,
    pub(crate) environment: Environment,
    pub(crate) keys: AuthKeys,
    pub(crate) tasks: Tasks,
    pub(crate) failures: Failures,
    pub(crate) passwords: Verifier,
    pub(crate) memory: Memory,
    tls: RwLock<Arc<rustls::ServerConfig>>,
    access: Reloaded<Access>,
    datastores: Reloaded<Datastores>,
    _only: File,
}

/// Makes this the only server of a state. `keepwell admin` locks the directory itself.
fn be_the_only_one(state: &Path) -> Result<File> {
    let path = state.join("server.lock");
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(false).open(&path);
    let file = file.map_err(io("create", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            let state = state.display();
            Err(refused(format!("another server is running with the state in '{state}'")))
        }
        Err(TryLockError::Error(error)) => Err(io("lock", &path)(error)),
    }
}

impl Server {
    /// Reads what is there and makes what is missing.
    pub fn open(config: Config, environment: Environment) -> Result<Arc<Self>> {
        let state = &config.state;
        let only = be_the_only_one(state)?;
        keys::ensure_certificate(&config, &environment.identity.node, (environment.now)())?;
        let keys = AuthKeys::load_or_make(state)?;
        let identity = environment.identity.clone();
        let tasks = Tasks::open(state, identity, config.tasks_kept)?;
        let access = Reloaded::new(Access::path(state), Access::load(state)?);
        let datastores = Reloaded::new(Datastores::path(state), Datastores::load(state)?);
        let failures = Failures::new(config.login_failures_max);
        let passwords = Verifier::start();
        let tls = RwLock::new(keys::tls(&config)?);
        Ok(Arc::new(Self {
            config,
            environment,
            keys,
            tasks,
            failures,
            passwords,
            memory: Memory::default(),
            tls,
            access,
            datastores,
            _only: only,
        }))
    }

    /// Reads the certificate again. What runs goes on with the old one; a new one that is not good
    /// is not used.
    pub fn reload(&self) -> Result<()> {
        let acceptor = keys::tls(&self.config)?;
        *self.tls.write().unwrap_or_else(PoisonError::into_inner) = acceptor;
        Ok(())
    }

    pub(crate) fn tls(&self) -> Arc<rustls::ServerConfig> {
        self.tls.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Serves until `stop` is done; then running sessions may finish. Listens where the
    /// configuration says, unless sockets are handed over.
    pub fn run(
        self: &Arc<Self>,
        sockets: Vec<std::net::TcpListener>,
        ready: impl FnOnce(),
        stop: impl Future<Output = ()>,
    ) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .thread_name("server")
            .enable_all()
            .build()
            .map_err(|error| refused(format!("unable to start threads: {error}")))?;
        runtime.block_on(async {
            let listeners = http::listen(self, sockets).await?;
            self.tasks.recover(self.now())?;
            ready();
            http::serve(self.clone(), listeners, stop).await
        })
    }

    pub(crate) fn now(&self) -> i64 {
        (self.environment.now)()
    }

    pub(crate) fn access(&self) -> Arc<Access> {
        self.access.get(|| Access::load(&self.config.state))
    }

    pub(crate) fn datastores(&self) -> Arc<Datastores> {
        self.datastores.get(|| Datastores::load(&self.config.state))
    }

    pub(crate) fn store(&self, name: &str, purpose: Purpose) -> ApiResult<DirStore> {
        stores::open(&self.datastores(), name, purpose)
    }

    /// What somebody may do with a datastore or a namespace of it.
    pub(crate) fn privileges(&self, id: &AuthId, store: &str, ns: &Namespace) -> Privileges {
        self.access().privileges(id, &acl_path(store, ns))
    }

    pub(crate) fn start_task(
        &self,
        kind: &str,
        id: Option<String>,
        user: &AuthId,
    ) -> ApiResult<Arc<Task>> {
        Ok(self.tasks.start(kind, id, user, self.now())?)
    }

    /// Starts the task of a session.
    pub(crate) fn start_session(
        self: &Arc<Self>,
        kind: &str,
        id: String,
        user: &AuthId,
    ) -> ApiResult<TaskGuard> {
        let task = self.start_task(kind, Some(id), user)?;
        Ok(TaskGuard { server: self.clone(), task, ended: false })
    }

    /// Runs work on a thread of its own as a task; returns the task's name.
    pub(crate) fn spawn_task(
        self: &Arc<Self>,
        kind: &str,
        id: Option<String>,
        user: &AuthId,
        work: impl FnOnce(&Self, &Task) -> ApiResult<()> + Send + 'static,
    ) -> ApiResult<String> {
        let task = self.start_task(kind, id, user)?;
        let upid = task.upid.to_string();
        let server = self.clone();
        let thread = std::thread::Builder::new().name("task".into());
        let spawned = thread.spawn(move || {
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                work(&server, &task).map_err(|error| error.message)
            }));
            let outcome = outcome.unwrap_or_else(|_| Err("internal error".into()));
            server.tasks.end(&task, &outcome, server.now());
        });
        spawned.map_err(|error| ApiError::bad(format!("unable to start a thread: {error}")))?;
        Ok(upid)
    }
}

/// A task that ends when this is dropped, however that comes about: its client may be gone before
/// the session has begun.
pub(crate) struct TaskGuard {
    server: Arc<Server>,
    pub(crate) task: Arc<Task>,
    ended: bool,
}

impl TaskGuard {
    pub(crate) fn end(mut self, outcome: &Result<(), String>) {
        self.ended = true;
        self.server.tasks.end(&self.task, outcome, self.server.now());
    }
}

impl Drop for TaskGuard {
    fn drop(&mut self) {
        if !self.ended {
            let outcome = Err("the connection was lost before the session began".to_owned());
            self.server.tasks.end(&self.task, &outcome, self.server.now());
        }
    }
}

/// `/datastore/store1/a/b`
pub(crate) fn acl_path(store: &str, namespace: &Namespace) -> String {
    match namespace.is_root() {
        true => format!("/datastore/{store}"),
        false => format!("/datastore/{store}/{namespace}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_has_one_server() {
        let dir = tempfile::tempdir().unwrap();
        let only = be_the_only_one(dir.path()).unwrap();
        let error = be_the_only_one(dir.path()).unwrap_err().to_string();
        assert!(error.starts_with("another server is running with the state in '"), "{error}");
        // An administrator may change things meanwhile.
        File::open(dir.path()).unwrap().try_lock().unwrap();
        drop(only);
        be_the_only_one(dir.path()).unwrap();
    }
}
