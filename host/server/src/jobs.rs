//! What is done by itself: collections, prunes and verifications by calendar.
//!
//! When a job ran last is kept in `jobs.toml`, so that a server that was off catches up once.

use crate::access::SUPERUSER;
use crate::api::admin::{RULES, StorePrune, StoreVerify, start_garbage, start_prune, start_verify};
use crate::calendar::CalendarEvent;
use crate::config::{Datastore, load, save};
use crate::error::{ApiError, ApiResult, Result};
use crate::files;
use crate::server::Server;
use keepwell_engine::plugin::OptionValue;
use keepwell_model::{AuthId, Namespace};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// How often the clock is looked at.
pub(crate) const PERIOD: Duration = Duration::from_secs(5);

/// Unix seconds at which each job began last.
#[derive(Default, Serialize, Deserialize)]
struct LastRuns {
    #[serde(default)]
    last: BTreeMap<String, i64>,
}

/// The clock of the jobs.
pub(crate) struct Scheduler {
    server: Arc<Server>,
    runs: LastRuns,
    path: PathBuf,
}

impl Scheduler {
    pub(crate) fn new(server: Arc<Server>) -> Result<Self> {
        let path = server.config.state.join("jobs.toml");
        Ok(Self { runs: load(&path)?, server, path })
    }

    /// Starts what is due.
    pub(crate) fn tick(&mut self) {
        let stores = self.server.datastores();
        for store in stores.list.iter().filter(|store| store.maintenance.is_none()) {
            let jobs = &store.jobs;
            let due = [
                ("gc", &jobs.gc_schedule, start_gc_job as Start),
                ("prune", &jobs.prune_schedule, start_prune_job),
                ("verify", &jobs.verify_schedule, start_verify_job),
            ];
            for (kind, schedule, start) in due {
                let Some(schedule) = schedule else { continue };
                if self.is_due(&format!("{kind}:{}", store.name), schedule) {
                    let started = superuser().and_then(|user| start(&self.server, store, &user));
                    if let Err(error) = started {
                        tracing::error!("{kind} job of '{}': {}", store.name, error.message);
                    }
                }
            }
        }
    }

    /// Whether a job is to begin now; then it counts as begun.
    fn is_due(&mut self, job: &str, schedule: &str) -> bool {
        let now = self.server.now();
        let Ok(event) = schedule.parse::<CalendarEvent>() else { return false };
        // A new job waits for its first time.
        let last = *self.runs.last.entry(job.to_owned()).or_insert(now);
        if event.next_after(last).is_none_or(|next| next > now) {
            return false;
        }
        self.runs.last.insert(job.to_owned(), now);
        if let Err(error) = save(&self.path, &self.runs, files::PUBLIC) {
            tracing::error!("unable to note that a job began: {error}");
        }
        true
    }
}

type Start = fn(&Arc<Server>, &Datastore, &AuthId) -> ApiResult<String>;

fn superuser() -> ApiResult<AuthId> {
    SUPERUSER.parse().map_err(|_| ApiError::internal())
}

fn start_gc_job(server: &Arc<Server>, store: &Datastore, user: &AuthId) -> ApiResult<String> {
    start_garbage(server, &store.name, user)
}

fn start_prune_job(server: &Arc<Server>, store: &Datastore, user: &AuthId) -> ApiResult<String> {
    let keep = RULES.iter().filter_map(|rule| Some((*rule, store.jobs.keep.get(*rule)?)));
    let rules = keep.map(|(rule, count)| OptionValue {
        name: rule.into(),
        value: count.to_string().into_bytes(),
    });
    let prune = StorePrune {
        name: store.name.clone(),
        namespace: Namespace::default(),
        depth: Namespace::DEPTH_MAX,
        rules: rules.collect(),
        dry_run: false,
    };
    start_prune(server, "prunejob", user, prune)
}

fn start_verify_job(server: &Arc<Server>, store: &Datastore, user: &AuthId) -> ApiResult<String> {
    let verify = StoreVerify {
        name: store.name.clone(),
        namespace: Namespace::default(),
        depth: Namespace::DEPTH_MAX,
        group: None,
        snapshot: None,
        ignore_verified: true,
        outdated_after: store.jobs.verify_outdated_after,
    };
    start_verify(server, Some("verificationjob"), user, verify)
}
