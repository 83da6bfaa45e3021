//! Applies a retention policy to a group.

use crate::error::{EngineError, Result};
use crate::list::{SnapshotItem, snapshot_id, snapshots};
use crate::plugin::{Failure, OptionValue, PolicySnapshot, RetentionPolicy};
use keepwell_model::{BackupType, GroupId, Namespace, SnapshotId};
use keepwell_store::{SnapshotStore, StoreError};
use serde::{Deserialize, Serialize};

/// What happens to a snapshot.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PruneItem {
    pub backup_id: String,
    pub backup_time: i64,
    pub backup_type: BackupType,
    pub keep: bool,
    pub protected: bool,
    #[serde(skip)]
    pub reason: String,
}

impl PruneItem {
    pub fn snapshot(&self) -> Result<SnapshotId> {
        snapshot_id(self.backup_type, &self.backup_id, self.backup_time)
    }
}

/// When it is, and where: prune goes by the user's days and weeks.
pub struct Time<'a> {
    pub now: i64,
    /// local time minus UTC, in seconds, at a moment
    pub utc_offset: &'a dyn Fn(i64) -> i32,
}

/// Asks the policy; oldest first. Without options everything is kept.
pub fn plan(
    store: &dyn SnapshotStore,
    namespace: &Namespace,
    group: &GroupId,
    policy: &mut dyn RetentionPolicy,
    options: Vec<OptionValue>,
    time: &Time<'_>,
) -> Result<Vec<PruneItem>> {
    let mut list = snapshots(store, namespace, Some(group))?;
    if list.is_empty() {
        // A mistyped name must not look like a group with nothing to prune.
        return Err(StoreError::GroupMissing { group: group.clone() }.into());
    }
    list.reverse();
    let decisions = if options.is_empty() || list.is_empty() {
        Vec::new()
    } else {
        let seen = list.iter().map(|item| policy_snapshot(item, time)).collect();
        let decisions = policy.decide(time.now, seen, options)?;
        if decisions.len() != list.len() {
            let (found, wanted) = (decisions.len(), list.len());
            let problem = format!("the policy made {found} decisions for {wanted} snapshots");
            return Err(Failure::Invalid(problem).into());
        }
        decisions
    };
    let mut decisions = decisions.into_iter();
    let mut items: Vec<PruneItem> = list
        .into_iter()
        .map(|item| {
            let decision = decisions.next();
            let keep = decision.as_ref().is_none_or(|decision| decision.keep);
            PruneItem {
                backup_id: item.backup_id,
                backup_time: item.backup_time,
                backup_type: item.backup_type,
                // Whatever the policy says.
                keep: keep || item.protected,
                protected: item.protected,
                reason: decision.map(|decision| decision.reason).unwrap_or_default(),
            }
        })
        .collect();
    items.reverse();
    Ok(items)
}

fn policy_snapshot(item: &SnapshotItem, time: &Time<'_>) -> PolicySnapshot {
    let state = item.verification.as_ref().and_then(|v| v.get("state")).and_then(|s| s.as_str());
    PolicySnapshot {
        taken: item.backup_time,
        utc_offset_seconds: (time.utc_offset)(item.backup_time),
        finished: item.is_finished(),
        protected: item.protected,
        size: item.size,
        verified: state.map(|state| state == "ok"),
        notes: item.notes.clone(),
        archives: item.files.iter().map(|file| file.filename.clone()).collect(),
    }
}

/// Removes what the plan does not keep. What can't be removed is reported; the others go.
pub fn apply(
    store: &dyn SnapshotStore,
    namespace: &Namespace,
    items: &[PruneItem],
    on_trouble: &mut dyn FnMut(&SnapshotId, &EngineError),
) -> u64 {
    let mut troubles = 0;
    for item in items.iter().filter(|item| !item.keep) {
        let Ok(snapshot) = item.snapshot() else { continue };
        if let Err(error) = store.forget(namespace, &snapshot) {
            troubles += 1;
            on_trouble(&snapshot, &error.into());
        }
    }
    troubles
}
