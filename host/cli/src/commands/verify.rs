//! `verify`: looks whether what the repository holds is sound.

use super::cancel_on_signal;
use crate::args::{flag, namespace, namespace_of, number, repository};
use crate::encryption::{CryptParameters, key_options};
use crate::repository::Repository;
use crate::store::{Store, parsed};
use crate::terminal::{now, upid};
use anyhow::{Result, bail};
use clap::{Arg, ArgMatches, Command};
use keepwell_engine::EngineError;
use keepwell_engine::snapshot::UnverifiedManifest;
use keepwell_engine::verify::{Seen, SkipVerified, Verification, VerifyKey};
use keepwell_model::{GroupId, Namespace, SnapshotId};
use keepwell_store::{SessionStore, SnapshotStore, StoreError};
use keepwell_transport::RemoteStore;
use std::io::Write;

pub(crate) fn command() -> Command {
    Command::new("verify")
        .about("Check all chunks and files of snapshots; damaged chunks are moved aside")
        .arg(
            Arg::new("what")
                .value_name("GROUP|SNAPSHOT")
                .help("Only TYPE/ID or TYPE/ID/TIME [default: everything]"),
        )
        .arg(repository())
        .arg(namespace())
        .arg(number("max-depth", "N", "Levels of namespaces below the given one [default: all]"))
        .arg(
            flag("ignore-verified", "Leave out snapshots that were verified before and found good")
                .default_value("true"),
        )
        .args(key_options())
        .arg(number("outdated-after", "DAYS", "Verify them again when it was longer ago than this"))
}

/// Asks a server to verify, and follows its task.
fn verify_there(
    store: &RemoteStore,
    matches: &ArgMatches,
    what: &What,
    namespace: &Namespace,
) -> Result<()> {
    for name in ["keyfile", "keyfd", "crypt-mode"] {
        if matches.contains_id(name) {
            bail!("a server verifies without keys: leave --{name} out");
        }
    }
    let query = match what {
        What::Everything => RemoteStore::namespace(namespace),
        What::Group(group) => RemoteStore::group(namespace, group),
        What::Snapshot(snapshot) => RemoteStore::snapshot(namespace, snapshot),
    };
    let depth = matches.get_one::<u64>("max-depth").copied();
    let days = matches.get_one::<u64>("outdated-after").copied();
    let ignores = matches.get_one::<bool>("ignore-verified").copied();
    let query = query
        .with_some("ignore-verified", ignores)
        .with_some("max-depth", depth.filter(|_| matches!(what, What::Everything)))
        .with_some("outdated-after", days);
    let upid: String = parsed(store.post("verify", &query)?)?;
    super::task::follow(store.client(), &upid, true)
}

/// What is to be verified.
enum What {
    Everything,
    Group(GroupId),
    Snapshot(SnapshotId),
}

fn what(matches: &ArgMatches) -> Result<What> {
    let Some(given) = matches.get_one::<String>("what") else { return Ok(What::Everything) };
    match given.matches('/').count() {
        1 => Ok(What::Group(given.parse()?)),
        _ => Ok(What::Snapshot(given.parse()?)),
    }
}

pub(crate) fn run(matches: &ArgMatches) -> Result<()> {
    let what = what(matches)?;
    let namespace = namespace_of(matches);
    let repository = Repository::find(matches.get_one("repository"))?;
    let store = match repository.open(matches)? {
        Store::Local(store) => store,
        Store::Remote(store) => return verify_there(&store, matches, &what, &namespace),
    };
    let mut parameters = CryptParameters::of(matches)?;
    if let Some(line) = parameters.announcement() {
        tracing::info!("{line}");
    }
    let demanded = parameters.demands_signature();
    let key = parameters.unlock()?.map(|key| VerifyKey { key, demanded });
    let is_named = key.is_some() && !parameters.is_default();
    let (kind, id) = match &what {
        What::Everything => ("verify", repository.to_string()),
        What::Group(group) => ("verify_group", format!("{repository}:{group}")),
        What::Snapshot(snapshot) => {
            let (group, time) = (&snapshot.group, snapshot.time.unix());
            ("verify_snapshot", format!("{repository}:{group}/{time:08X}"))
        }
    };
    let days = matches.get_one::<u64>("outdated-after").copied();
    let skip = SkipVerified {
        now: now(),
        // Who names a snapshot wants to know.
        none: matches.get_one::<bool>("ignore-verified") == Some(&false)
            || matches!(what, What::Snapshot(_)),
        outdated_after: days.map(|days| i64::try_from(days).unwrap_or(i64::MAX)),
    };
    let mut out = std::io::stdout().lock();
    let mut say = |line: &str| {
        // Who reads may have seen enough; the verification goes on.
        let _ = writeln!(out, "{line}");
    };
    let cancel = cancel_on_signal();
    let mut verification = Verification {
        store: &store,
        label: repository.to_string(),
        upid: upid(kind, id),
        skip,
        cancel: cancel.clone(),
        say: &mut say,
        key,
        seen: Seen::default(),
    };
    let failed = match &what {
        What::Everything => {
            let depth = matches.get_one::<u64>("max-depth").copied();
            let depth = depth.and_then(|depth| usize::try_from(depth).ok());
            let depth = depth.map_or(Namespace::DEPTH_MAX, |depth| depth.min(Namespace::DEPTH_MAX));
            let namespaces = store.namespaces(&namespace, depth)?;
            verification.namespaces(&namespaces, &|_| true)
        }
        What::Group(group) => {
            if store.snapshots(&namespace, Some(group))?.is_empty() {
                return Err(StoreError::GroupMissing { group: group.clone() }.into());
            }
            verification.group(&namespace, group)
        }
        What::Snapshot(snapshot) => {
            // Named by the user, it must be there, and of the key that was named.
            let reader = SessionStore::open(&store, &namespace, snapshot)?;
            if is_named && let Ok(manifest) = UnverifiedManifest::read(&*reader) {
                match manifest.verify(verification.key.as_ref().map(|given| &*given.key)) {
                    Err(error @ EngineError::WrongKey { .. }) => return Err(error.into()),
                    // The verification tells of all else.
                    _ => drop(reader),
                }
            }
            let sound = verification.snapshot(&namespace, snapshot);
            sound.map(|sound| if sound { Vec::new() } else { vec![snapshot.to_string()] })
        }
    };
    let failed = failed.map_err(|error| match error {
        EngineError::Cancelled => anyhow::anyhow!("interrupted: not everything was verified"),
        other => other.into(),
    })?;
    if failed.is_empty() {
        return Ok(());
    }
    say("Failed to verify the following snapshots/groups:");
    for name in &failed {
        say(&format!("\t{name}"));
    }
    bail!(
        "verification failed: {} snapshots are damaged - chunks that were moved aside are stored \
         again by the next backup, if their content is still there",
        failed.len()
    );
}
