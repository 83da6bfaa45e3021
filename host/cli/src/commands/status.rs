//! `status`: room on the repository.

use crate::args::{output_options, repository};
use crate::output::{print, wanted_format};
use crate::plugins::Plugins;
use crate::repository::Repository;
use anyhow::{Result, bail};
use clap::{ArgMatches, Command};
use keepwell_engine::plugin::{Alignment, Document, Layout};
use serde_json::json;

pub(crate) fn command(plugins: &Plugins) -> Command {
    Command::new("status")
        .about("Show how much room the repository has")
        .arg(repository())
        .args(output_options(plugins))
}

pub(crate) fn run(plugins: &Plugins, matches: &ArgMatches) -> Result<()> {
    let data = Repository::find(matches.get_one("repository"))?.open(matches)?.status()?;
    let number = |name: &str| data.get(name).and_then(serde_json::Value::as_u64).unwrap_or(0);
    let total = number("total");
    if total == 0 && wanted_format(plugins, matches) == "text" {
        bail!("Cannot render total percentage: denominator is zero");
    }
    let row = |name: &str| {
        let value = number(name);
        let percent = value.saturating_add(total / 200).saturating_mul(100) / total.max(1);
        json!([name, format!("{value} {:>8}", format!("({percent} %)"))])
    };
    let rows = [row("total"), row("used"), row("avail")];
    let document = Document {
        data,
        display: Some(json!(rows)),
        layout: Layout::Grid(vec![Alignment::Left, Alignment::Right]),
    };
    print(plugins, matches, &document)
}
