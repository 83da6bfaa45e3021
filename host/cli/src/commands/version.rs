//! `version`.

use crate::args::{output_options, repository};
use crate::output::{message, print};
use crate::plugins::Plugins;
use crate::remote;
use crate::repository::Repository;
use anyhow::Result;
use clap::{ArgMatches, Command};
use keepwell_transport::Query;
use serde_json::{Value, json};

pub(crate) fn command(plugins: &Plugins) -> Command {
    Command::new("version")
        .about("Show the version")
        .arg(repository())
        .args(output_options(plugins))
}

pub(crate) fn run(plugins: &Plugins, matches: &ArgMatches) -> Result<()> {
    let version = env!("CARGO_PKG_VERSION");
    let (release, patch) = version.rsplit_once('.').unwrap_or((version, "0"));
    let client = json!({ "version": release, "release": patch, "repoid": "" });
    let mut data = json!({ "client": client });
    let mut lines = vec![Value::from(format!("client version: {version}"))];
    // Only a server has a version of its own; none has to be named.
    let given: Option<&String> = matches.get_one("repository");
    let repository = Repository::find(given);
    if let (Some(_), Err(error)) = (given, &repository) {
        tracing::error!("could not connect to server - {error}");
    }
    if let Ok(Repository::Server(server)) = repository {
        let asked = remote::open(&server, matches)
            .and_then(|store| Ok(store.client().get("/api2/json/version", &Query::new())?));
        match asked {
            Ok(answer) => {
                let part = |name: &str| answer.get(name).and_then(Value::as_str).unwrap_or("?");
                let line = format!("server version: {}.{}", part("version"), part("release"));
                lines.push(line.into());
                data["server"] = answer;
            }
            Err(error) => tracing::error!("could not connect to server - {error}"),
        }
    }
    print(plugins, matches, &message(data, lines))
}
