//! `config`: which settings count, and where they come from.

use crate::args::output_options;
use crate::output::{left, print};
use crate::plugins::Plugins;
use anyhow::{Result, bail};
use clap::{ArgMatches, Command};
use keepwell_engine::plugin::{Document, Layout};
use serde_json::{Value, json};

pub(crate) fn command(plugins: &Plugins) -> Command {
    Command::new("config").about("Show settings").subcommand_required(true).subcommand(
        Command::new("show")
            .about("Show all settings and where they come from")
            .long_about(
                "Show all settings and where they come from.\n\nThey are read from \
                 /etc/keepwell/config.toml and from ~/.config/keepwell/config.toml, which goes \
                 first. The environment and options of the command line go before both.",
            )
            .args(output_options(plugins)),
    )
}

pub(crate) fn run(plugins: &Plugins, matches: &ArgMatches) -> Result<()> {
    let Some(("show", matches)) = matches.subcommand() else { bail!("no command was given") };
    let (mut data, mut rows) = (Vec::new(), Vec::new());
    for (key, value, origin) in plugins.config().all() {
        let origin = origin.to_string();
        rows.push(json!({ "key": key, "value": value.to_string(), "origin": origin }));
        data.push(json!({ "key": key, "value": value, "origin": origin }));
    }
    let display = Some(Value::Array(rows));
    let columns = ["key", "value", "origin"].map(left).into();
    let document = Document { data: data.into(), display, layout: Layout::Table(columns) };
    print(plugins, matches, &document)
}
