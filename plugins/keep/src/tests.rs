//! Laws against a model that follows the text of the specification word for word.

use super::*;
use keepwell_sdk::retention::snapshot_at as snapshot;
use proptest::prelude::*;
use std::collections::HashSet;

fn verdicts(snapshots: &[Snapshot], options: &[(&str, u64)]) -> Vec<bool> {
    let options = options.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
    let decisions = Keep::decide(0, snapshots.to_vec(), options).unwrap();
    decisions.iter().map(|decision| decision.verdict == Verdict::Keep).collect()
}

const DAY: i64 = 86_400;

#[test]
fn the_example_of_the_specification_keeps_three() {
    let times = [3 * DAY + 18 * 3600, 3 * DAY + 6 * 3600, 2 * DAY + 43_200, DAY + 43_200];
    let kept = verdicts(&times.map(snapshot), &[("keep-last", 1), ("keep-daily", 2)]);
    assert_eq!(kept, [true, false, true, true]);
}

#[test]
fn only_the_newest_unfinished_snapshot_stays() {
    let mut list = [5, 4, 3, 2].map(|day| snapshot(day * DAY));
    list[0].finished = false;
    list[1].finished = false;
    list[3].finished = false;
    assert_eq!(verdicts(&list, &[("keep-last", 1)]), [true, false, true, false]);
}

#[test]
fn a_week_at_the_turn_of_the_year_is_one_week() {
    // 2020-12-31 and 2021-01-01 are both in ISO week 2020-W53.
    let list = [1_609_459_200 + 43_200, 1_609_372_800 + 43_200].map(snapshot);
    assert_eq!(verdicts(&list, &[("keep-weekly", 5)]), [true, false]);
    assert_eq!(verdicts(&list, &[("keep-yearly", 5)]), [true, true]);
}

#[test]
fn days_are_local_days() {
    let mut list = [20 * 3600 + DAY, 10 * 3600 + DAY].map(snapshot);
    assert_eq!(verdicts(&list, &[("keep-daily", 9)]), [true, false]);
    for entry in &mut list {
        entry.utc_offset_seconds = 5 * 3600;
    }
    assert_eq!(verdicts(&list, &[("keep-daily", 9)]), [true, true]);
}

/// Spec §2, step by step, over strings as the specification writes them.
fn model(snapshots: &[Snapshot], options: &[(&str, u64)]) -> Vec<bool> {
    let formats = [
        ("keep-last", "%s"),
        ("keep-hourly", "%Y/%m/%d/%H"),
        ("keep-daily", "%Y/%m/%d"),
        ("keep-weekly", "%G/%V"),
        ("keep-monthly", "%Y/%m"),
        ("keep-yearly", "%Y"),
    ];
    let id = |s: &Snapshot, format: &str| {
        let zone = FixedOffset::east_opt(s.utc_offset_seconds).unwrap();
        DateTime::from_timestamp(s.taken, 0)
            .unwrap()
            .with_timezone(&zone)
            .format(format)
            .to_string()
    };
    let mut marks = vec![""; snapshots.len()];
    let mut allow = true;
    for (mark, s) in marks.iter_mut().zip(snapshots) {
        if !s.finished {
            *mark = if allow { "keep-partial" } else { "remove" };
        }
        allow = false;
    }
    for (name, format) in formats {
        let Some((_, count)) = options.iter().find(|(given, _)| *given == name) else {
            continue;
        };
        let covered: HashSet<String> = (0..snapshots.len())
            .filter(|&i| marks[i] == "keep")
            .map(|i| id(&snapshots[i], format))
            .collect();
        let mut chosen = HashSet::new();
        for (i, s) in snapshots.iter().enumerate() {
            if !marks[i].is_empty() {
                continue;
            }
            if s.protected {
                marks[i] = "protected";
                continue;
            }
            let period = id(s, format);
            if covered.contains(&period) {
                continue;
            }
            if chosen.contains(&period) {
                marks[i] = "remove";
            } else if chosen.len() as u64 >= *count {
                break;
            } else {
                chosen.insert(period);
                marks[i] = "keep";
            }
        }
    }
    let kept = marks.iter().zip(snapshots);
    kept.map(|(mark, s)| s.protected || mark.starts_with("keep")).collect()
}

fn any_snapshots() -> impl Strategy<Value = Vec<Snapshot>> {
    let one = (0i64..400 * DAY, -43_200i32..43_200, 0u8..10, 0u8..10);
    prop::collection::vec(one, 0..40).prop_map(|mut list| {
        list.sort_by_key(|(taken, ..)| -taken);
        list.dedup_by_key(|(taken, ..)| *taken);
        let make = |(taken, utc_offset_seconds, finished, protected)| Snapshot {
            utc_offset_seconds,
            finished: finished > 0,
            protected: protected == 0,
            ..snapshot(taken)
        };
        list.into_iter().map(make).collect()
    })
}

proptest! {
    #[test]
    fn decisions_equal_the_model(
        snapshots in any_snapshots(),
        counts in prop::array::uniform6(prop::option::of(1u64..6)),
    ) {
        let options: Vec<(&str, u64)> = RULES
            .iter()
            .zip(counts)
            .filter_map(|(rule, count)| Some((rule.0, count?)))
            .collect();
        prop_assert_eq!(verdicts(&snapshots, &options), model(&snapshots, &options));
    }
}
