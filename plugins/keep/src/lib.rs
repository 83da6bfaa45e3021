//! The documented prune rules: `--keep-last`, `--keep-hourly` … `--keep-yearly`.
//!
//! Rules work in that order. A rule keeps the newest snapshot of each of its periods, counts only
//! periods that no earlier rule covers, and marks the others of its periods for removal for good.
//! Periods are those of the user's local time. Reference: shared/spec/semantics.md §2.

use chrono::{DateTime, Datelike, FixedOffset, Timelike};
use keepwell_sdk::options::option;
use keepwell_sdk::retention::{Decision, Info, Plugin, Policy, Snapshot, Verdict};
use keepwell_sdk::{Failure, OptionKind, OptionSpec};
use std::collections::HashMap;

pub struct Keep;

/// Name of a rule, its help, and the period that a moment belongs to.
type Rule = (&'static str, &'static str, fn(&DateTime<FixedOffset>) -> [i64; 4]);

const RULES: [Rule; 6] = [
    ("keep-last", "Keep the last N snapshots", |t| [t.timestamp(), 0, 0, 0]),
    ("keep-hourly", "Keep the newest snapshot of each of the last N hours that have one", |t| {
        [t.year().into(), t.month().into(), t.day().into(), t.hour().into()]
    }),
    ("keep-daily", "Keep the newest snapshot of each of the last N days that have one", |t| {
        [t.year().into(), t.month().into(), t.day().into(), 0]
    }),
    (
        "keep-weekly",
        "Keep the newest snapshot of each of the last N weeks (ISO) that have one",
        |t| [t.iso_week().year().into(), t.iso_week().week().into(), 0, 0],
    ),
    ("keep-monthly", "Keep the newest snapshot of each of the last N months that have one", |t| {
        [t.year().into(), t.month().into(), 0, 0]
    }),
    ("keep-yearly", "Keep the newest snapshot of each of the last N years that have one", |t| {
        [t.year().into(), 0, 0, 0]
    }),
];

impl Plugin for Keep {
    fn describe() -> Info {
        let options = RULES.map(|(name, help, _)| OptionSpec {
            minimum: Some(1),
            ..option(name, OptionKind::Integer, help)
        });
        Info {
            name: "keep".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            summary: "Keeps the last, hourly, daily, weekly, monthly and yearly snapshots".into(),
            options: options.into(),
            capabilities: Vec::new(),
        }
    }
}

impl Policy for Keep {
    /// a count for each rule
    type Options = HashMap<String, u64>;

    fn decide(
        _now: i64,
        snapshots: Vec<Snapshot>,
        options: HashMap<String, u64>,
    ) -> Result<Vec<Decision>, Failure> {
        let times = local_times(&snapshots)?;
        let mut marks = mark_unfinished(&snapshots);
        for (name, _, period_of) in RULES {
            if let Some(count) = options.get(name) {
                apply_rule(name, *count, &snapshots, &times, period_of, &mut marks);
            }
        }
        let decisions = marks.into_iter().zip(&snapshots).map(|(mark, snapshot)| {
            if snapshot.protected {
                return keep("protected");
            }
            mark.unwrap_or_else(|| remove("older than all rules"))
        });
        Ok(decisions.collect())
    }
}

fn local_times(snapshots: &[Snapshot]) -> Result<Vec<DateTime<FixedOffset>>, Failure> {
    let local = |snapshot: &Snapshot| {
        let offset = FixedOffset::east_opt(snapshot.utc_offset_seconds)?;
        Some(DateTime::from_timestamp(snapshot.taken, 0)?.with_timezone(&offset))
    };
    let times = snapshots.iter().map(|snapshot| {
        local(snapshot).ok_or_else(|| Failure::Invalid(format!("snapshot time {}", snapshot.taken)))
    });
    times.collect()
}

/// Only an unfinished snapshot that is the newest of all is kept: it may still be running.
fn mark_unfinished(snapshots: &[Snapshot]) -> Vec<Option<Decision>> {
    let marks = snapshots.iter().enumerate().map(|(position, snapshot)| {
        match (snapshot.finished, position) {
            (true, _) => None,
            (false, 0) => Some(keep("unfinished, but the newest")),
            (false, _) => Some(remove("unfinished")),
        }
    });
    marks.collect()
}

fn apply_rule(
    name: &str,
    count: u64,
    snapshots: &[Snapshot],
    times: &[DateTime<FixedOffset>],
    period_of: fn(&DateTime<FixedOffset>) -> [i64; 4],
    marks: &mut [Option<Decision>],
) {
    let kept = |(position, mark): (usize, &Option<Decision>)| {
        let kept = mark.as_ref().is_some_and(|mark| mark.verdict == Verdict::Keep);
        let counts = kept && snapshots[position].finished && !snapshots[position].protected;
        counts.then(|| period_of(&times[position]))
    };
    let covered: Vec<[i64; 4]> = marks.iter().enumerate().filter_map(kept).collect();
    let mut chosen: Vec<[i64; 4]> = Vec::new();
    for position in 0..snapshots.len() {
        if marks[position].is_some() {
            continue;
        }
        if snapshots[position].protected {
            marks[position] = Some(keep("protected"));
            continue;
        }
        let period = period_of(&times[position]);
        if covered.contains(&period) {
            continue;
        }
        marks[position] = Some(if chosen.contains(&period) {
            remove(&format!("{name}: the period has a newer one"))
        } else if chosen.len() as u64 >= count {
            return;
        } else {
            chosen.push(period);
            keep(name)
        });
    }
}

fn keep(reason: &str) -> Decision {
    Decision { verdict: Verdict::Keep, reason: reason.to_owned() }
}

fn remove(reason: &str) -> Decision {
    Decision { verdict: Verdict::Remove, reason: reason.to_owned() }
}

keepwell_sdk::export_retention_policy!(Keep);

#[cfg(test)]
mod tests;
