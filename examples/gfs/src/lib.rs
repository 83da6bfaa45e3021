//! A retention policy of durations (grandfather, father, son): everything of the last days, then one a day, a week, a
//! month, a year, each for as long as is said; and what its notes ask to keep.
//!
//! `prune GROUP --policy gfs --keep-within 2d --within-daily 14d --within-monthly 365d --keep-tagged release`

use keepwell_sdk::options::option;
use keepwell_sdk::retention::{Decision, Info, Plugin, Policy, Snapshot, Verdict};
use keepwell_sdk::{Failure, OptionKind, OptionSpec};
use serde::Deserialize;
use std::collections::HashSet;

pub struct Gfs;

/// What is given on the command line; durations are in seconds.
#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Options {
    keep_within: Option<i64>,
    within_daily: Option<i64>,
    within_weekly: Option<i64>,
    within_monthly: Option<i64>,
    within_yearly: Option<i64>,
    keep_tagged: Vec<String>,
}

/// Keeps the newest of each period, if it is younger than its option says.
struct Rule {
    name: &'static str,
    help: &'static str,
    limit: fn(&Options) -> Option<i64>,
    /// the period of a day since 1970 in local time
    period: fn(i64) -> i64,
}

const RULES: [Rule; 4] = [
    Rule {
        name: "within-daily",
        help: "Keep the newest of each day, if it is younger than this",
        limit: |options| options.within_daily,
        period: |day| day,
    },
    Rule {
        name: "within-weekly",
        help: "Keep the newest of each week, if it is younger than this",
        limit: |options| options.within_weekly,
        // Day 0 was a Thursday; weeks begin on Mondays.
        period: |day| (day + 3).div_euclid(7),
    },
    Rule {
        name: "within-monthly",
        help: "Keep the newest of each month, if it is younger than this",
        limit: |options| options.within_monthly,
        period: |day| {
            let (year, month) = month_of(day);
            year * 12 + month
        },
    },
    Rule {
        name: "within-yearly",
        help: "Keep the newest of each year, if it is younger than this",
        limit: |options| options.within_yearly,
        period: |day| month_of(day).0,
    },
];

impl Plugin for Gfs {
    fn describe() -> Info {
        let within =
            option("keep-within", OptionKind::Duration, "Keep all that are younger than this");
        let rules = RULES.map(|rule| option(rule.name, OptionKind::Duration, rule.help));
        let help = "Keep those whose notes have this word";
        let tagged =
            OptionSpec { repeatable: true, ..option("keep-tagged", OptionKind::Text, help) };
        Info {
            name: "gfs".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            summary: "Keeps everything for some time, then one a day, a week, a month, a year"
                .into(),
            options: [within].into_iter().chain(rules).chain([tagged]).collect(),
            capabilities: Vec::new(),
        }
    }
}

/// Year and month (0 to 11) of a day since 1970-01-01, in the Gregorian calendar.
fn month_of(day: i64) -> (i64, i64) {
    // Days since 0000-03-01, in eras of 400 years, each year from March on.
    let shifted = day + 719_468;
    let (era, of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let from_march = (5 * of_year + 2) / 153;
    let month = (from_march + 2) % 12;
    (era * 400 + year + i64::from(month < 2), month)
}

impl Policy for Gfs {
    type Options = Options;

    fn decide(
        now: i64,
        snapshots: Vec<Snapshot>,
        options: Options,
    ) -> Result<Vec<Decision>, Failure> {
        let mut met: HashSet<(&str, i64)> = HashSet::new();
        let decisions = snapshots.iter().map(|snapshot| {
            let age = now.saturating_sub(snapshot.taken);
            let is_within = |limit: Option<i64>| limit.is_some_and(|limit| age <= limit);
            let mut words = snapshot.notes.split_whitespace();
            if words.any(|word| options.keep_tagged.iter().any(|tag| tag == word)) {
                return keep("tagged");
            }
            // One that runs, or broke off: it can't stand for a day.
            if !snapshot.finished {
                return keep("not finished");
            }
            let day = (snapshot.taken + i64::from(snapshot.utc_offset_seconds)).div_euclid(86_400);
            let mut reason = is_within(options.keep_within).then_some("within");
            for Rule { name, limit, period, .. } in RULES {
                // It stands for its period even where another rule keeps it.
                if is_within(limit(&options)) && met.insert((name, period(day))) {
                    reason = reason.or(Some(name));
                }
            }
            reason.map_or_else(remove, keep)
        });
        Ok(decisions.collect())
    }
}

fn keep(reason: &str) -> Decision {
    Decision { verdict: Verdict::Keep, reason: reason.into() }
}

fn remove() -> Decision {
    Decision { verdict: Verdict::Remove, reason: "older than all rules".into() }
}

keepwell_sdk::export_retention_policy!(Gfs);

#[cfg(test)]
mod tests {
    use super::*;
    use keepwell_sdk::options::{given, parse};
    use keepwell_sdk::retention::snapshot_at;

    const DAY: i64 = 86_400;
    /// 2024-03-31T12:00:00Z, a Sunday.
    const NOW: i64 = 1_711_886_400;

    fn kept(ages: &[i64], options: &[(&str, &str)]) -> Vec<i64> {
        let snapshots = ages.iter().map(|age| snapshot_at(NOW - age)).collect();
        let options = parse(&given(options)).unwrap();
        let decisions = Gfs::decide(NOW, snapshots, options).unwrap();
        let kept = ages.iter().zip(decisions).filter(|(_, made)| made.verdict == Verdict::Keep);
        kept.map(|(age, _)| *age).collect()
    }

    #[test]
    fn months_are_those_of_the_calendar() {
        assert_eq!(month_of(0), (1970, 0));
        assert_eq!(month_of(-1), (1969, 11));
        assert_eq!(month_of(59), (1970, 2));
        assert_eq!(month_of(19_782), (2024, 1), "2024-02-29");
        assert_eq!(month_of(19_783), (2024, 2), "2024-03-01");
    }

    #[test]
    fn each_rule_keeps_as_long_as_it_says() {
        let hours: Vec<i64> = (0..72).map(|hour| hour * 3600).collect();
        assert_eq!(kept(&hours, &[("keep-within", "7200")]), [0, 3600, 7200]);
        // Now, and the last of the two days before.
        let days = kept(&hours, &[("within-daily", "172800")]);
        assert_eq!(days, [0, 13 * 3600, 37 * 3600]);
        let all: Vec<i64> = (0..800).map(|day| day * DAY).collect();
        let weeks = kept(&all, &[("within-weekly", "1209600")]);
        assert_eq!(weeks, [0, 7 * DAY, 14 * DAY], "Sundays");
        let months = kept(&all, &[("within-monthly", "7776000")]);
        assert_eq!(months, [0, 31 * DAY, 60 * DAY], "the last days of March, February, January");
        assert_eq!(kept(&all, &[("within-yearly", "43200000")]), [0, 91 * DAY, 456 * DAY]);
    }

    #[test]
    fn what_is_tagged_or_not_finished_stays() {
        let tagged = Snapshot { notes: "the release\n2.0".into(), ..snapshot_at(0) };
        let running = Snapshot { finished: false, ..snapshot_at(0) };
        let options = Options { keep_tagged: vec!["release".into()], ..Options::default() };
        let all = vec![tagged, running, snapshot_at(0)];
        let made = Gfs::decide(NOW, all, options).unwrap();
        let reasons: Vec<&str> = made.iter().map(|made| made.reason.as_str()).collect();
        assert_eq!(reasons, ["tagged", "not finished", "older than all rules"]);
    }
}
