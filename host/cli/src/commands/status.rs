//! `status`: room on the repository.

use crate::args::{output_format, repository};
use crate::output::print;
use crate::plugins::Plugins;
use crate::repository::Repository;
use anyhow::{Result, bail};
use clap::{ArgMatches, Command};
use keepwell_engine::plugin::{Alignment, Document, Layout};
use keepwell_store::SnapshotStore;
use serde_json::json;

pub(crate) fn command(plugins: &Plugins) -> Command {
    Command::new("status")
        .about("Show how much room the repository has")
        .arg(repository())
        .arg(output_format(plugins))
}

pub(crate) fn run(plugins: &Plugins, matches: &ArgMatches) -> Result<()> {
    let capacity = Repository::find(matches.get_one("repository"))?.open()?.capacity()?;
    if capacity.total == 0 {
        bail!("Cannot render total percentage: denominator is zero");
    }
    let row = |name: &str, value: u64| {
        let percent = (value + capacity.total / 200) * 100 / capacity.total;
        json!([name, format!("{value}{:>8}", format!(" ({percent} %)"))])
    };
    let rows = [
        row("total", capacity.total),
        row("used", capacity.used),
        row("avail", capacity.available),
    ];
    let document = Document {
        data: json!({
            "total": capacity.total, "used": capacity.used, "avail": capacity.available,
        }),
        display: Some(json!(rows)),
        layout: Layout::Grid(vec![Alignment::Left, Alignment::Right]),
    };
    print(plugins, matches, &document)
}
