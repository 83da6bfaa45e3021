//! `garbage-collect`: removes chunks that no snapshot needs.

use super::cancel_on_signal;
use super::task::started;
use crate::args::{output_options, repository};
use crate::output::{check_format, message, print, wanted_format};
use crate::plugins::Plugins;
use crate::repository::Repository;
use crate::store::Store;
use crate::terminal::now;
use anyhow::Result;
use clap::{ArgMatches, Command};
use keepwell_store::Collection;
use keepwell_transport::Query;
use std::io::Write;

pub(crate) fn command(plugins: &Plugins) -> Command {
    Command::new("garbage-collect")
        .about("Remove chunks that no snapshot has needed for a day")
        .arg(repository())
        .args(output_options(plugins))
}

pub(crate) fn run(plugins: &Plugins, matches: &ArgMatches) -> Result<()> {
    check_format(plugins, matches)?;
    let repository = Repository::find(matches.get_one("repository"))?;
    let store = match repository.open(matches)? {
        Store::Local(store) => store,
        Store::Remote(store) => {
            let upid = store.post("gc", &Query::new())?;
            return started(plugins, matches, store.client(), upid);
        }
    };
    let cancel = cancel_on_signal();
    // For programs only the result counts.
    let quiet = wanted_format(plugins, matches) != "text";
    let mut out = std::io::stdout().lock();
    let mut say = |line: &str| {
        if !quiet {
            // Who reads may have seen enough; the collection goes on.
            let _ = writeln!(out, "{line}");
        }
    };
    say(&format!("starting garbage collection on store {repository}"));
    let collection =
        Collection { now: now(), upid: None, say: &mut say, is_over: &|| cancel.is_cancelled() };
    let status = store.collect_garbage(collection)?;
    drop(out);
    if quiet {
        print(plugins, matches, &message(serde_json::to_value(&status)?, ""))?;
    }
    Ok(())
}
