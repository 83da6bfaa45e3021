//! `version`.

use crate::args::{output_format, repository};
use crate::output::{message, print};
use crate::plugins::Plugins;
use anyhow::Result;
use clap::{ArgMatches, Command};
use serde_json::json;

pub(crate) fn command(plugins: &Plugins) -> Command {
    Command::new("version").about("Show the version").arg(repository()).arg(output_format(plugins))
}

pub(crate) fn run(plugins: &Plugins, matches: &ArgMatches) -> Result<()> {
    let version = env!("CARGO_PKG_VERSION");
    let (release, patch) = version.rsplit_once('.').unwrap_or((version, "0"));
    let client = json!({ "version": release, "release": patch, "repoid": "" });
    let document = message(json!({ "client": client }), format!("client version: {version}"));
    print(plugins, matches, &document)
}
