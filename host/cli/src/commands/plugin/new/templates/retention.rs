//! Keeps the newest snapshots of a group: `keepwell prune GROUP --policy {name} --newest 3`.

use keepwell_sdk::options::option;
use keepwell_sdk::retention::{Decision, Info, Plugin, Policy, Snapshot, Verdict};
use keepwell_sdk::{Failure, OptionKind, OptionSpec};
use serde::Deserialize;

pub struct {Type}Plugin;

/// What is given on the command line.
#[derive(Deserialize)]
pub struct Options {
    newest: usize,
}

impl Plugin for {Type}Plugin {
    fn describe() -> Info {
        let newest = option("newest", OptionKind::Integer, "How many snapshots to keep");
        Info {
            name: "{name}".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            summary: "Keeps the newest snapshots".into(),
            options: vec![OptionSpec { default: Some("7".into()), minimum: Some(1), ..newest }],
            capabilities: Vec::new(),
        }
    }
}

impl Policy for {Type}Plugin {
    type Options = Options;

    fn decide(
        _now: i64,
        snapshots: Vec<Snapshot>,
        options: Options,
    ) -> Result<Vec<Decision>, Failure> {
        // They come newest first, and as many decisions are expected.
        let decide = |(position, _)| match position < options.newest {
            true => Decision { verdict: Verdict::Keep, reason: "one of the newest".into() },
            false => Decision { verdict: Verdict::Remove, reason: "older".into() },
        };
        Ok(snapshots.into_iter().enumerate().map(decide).collect())
    }
}

keepwell_sdk::export_retention_policy!({Type}Plugin);

#[cfg(test)]
mod tests {
    use super::*;
    use keepwell_sdk::retention::snapshot_at;

    #[test]
    fn the_newest_are_kept() {
        let snapshots = [30, 20, 10].map(snapshot_at).to_vec();
        let decisions = {Type}Plugin::decide(40, snapshots, Options { newest: 2 }).unwrap();
        let kept: Vec<bool> = decisions.iter().map(|d| d.verdict == Verdict::Keep).collect();
        assert_eq!(kept, [true, true, false]);
    }
}
