//! Keeps the newest snapshot of each of the last `--weeks` weeks: a whole retention policy.

use keepwell_sdk::options::option;
use keepwell_sdk::retention::{Decision, Info, Plugin, Policy, Snapshot, Verdict};
use keepwell_sdk::{Failure, OptionKind, OptionSpec};
use serde::Deserialize;

const WEEK_SECONDS: i64 = 7 * 86_400;

pub struct KeepWeekly;

/// What is given on the command line.
#[derive(Deserialize)]
pub struct Options {
    weeks: Option<u64>,
}

impl Plugin for KeepWeekly {
    fn describe() -> Info {
        let weeks = option("weeks", OptionKind::Integer, "How many weeks to keep");
        Info {
            name: "keep-weekly".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            summary: "Keeps one snapshot for each of the last weeks".into(),
            options: vec![OptionSpec { minimum: Some(1), ..weeks }],
            capabilities: Vec::new(),
        }
    }
}

impl Policy for KeepWeekly {
    type Options = Options;

    fn decide(
        _now: i64,
        snapshots: Vec<Snapshot>,
        options: Options,
    ) -> Result<Vec<Decision>, Failure> {
        let weeks = options.weeks.unwrap_or(u64::MAX);
        let mut seen: Vec<i64> = Vec::new();
        let decide = |snapshot: Snapshot| {
            let local = snapshot.taken + i64::from(snapshot.utc_offset_seconds);
            let week = local.div_euclid(WEEK_SECONDS);
            let (verdict, reason) = if seen.contains(&week) {
                (Verdict::Remove, "the week has a newer one")
            } else if seen.len() as u64 == weeks {
                (Verdict::Remove, "older than the weeks to keep")
            } else {
                seen.push(week);
                (Verdict::Keep, "newest of its week")
            };
            Decision { verdict, reason: reason.into() }
        };
        Ok(snapshots.into_iter().map(decide).collect())
    }
}

keepwell_sdk::export_retention_policy!(KeepWeekly);

#[cfg(test)]
mod tests {
    use super::*;
    use keepwell_sdk::retention::snapshot_at;

    #[test]
    fn one_of_each_week_is_kept() {
        let times = [20, 19, 10, 2, 1].map(|day| snapshot_at(day * 86_400));
        let decisions = KeepWeekly::decide(0, times.into(), Options { weeks: Some(2) }).unwrap();
        let kept: Vec<bool> = decisions.iter().map(|d| d.verdict == Verdict::Keep).collect();
        assert_eq!(kept, [true, false, true, false, false]);
    }
}
