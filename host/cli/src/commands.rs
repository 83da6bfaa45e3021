//! The verbs: each module makes its clap command and runs it.

mod backup;
mod catalog;
mod documents;
mod list;
mod namespace;
mod prune;
mod pxar;
mod restore;
mod snapshot;
mod status;
mod version;

use crate::args;
use crate::plugins::Plugins;
use anyhow::{Result, bail};
use clap::{ArgMatches, Command};
use keepwell_engine::Cancel;

/// All verbs, in the order of the help.
pub(crate) fn all(plugins: &Plugins) -> Vec<Command> {
    vec![
        backup::command(plugins),
        restore::command(plugins),
        list::command(plugins),
        snapshot::command(plugins),
        snapshot::list_command(plugins, "snapshots").hide(true),
        snapshot::files_command(plugins).hide(true),
        snapshot::forget_command().hide(true),
        namespace::command(plugins),
        prune::command(plugins),
        catalog::command(plugins),
        status::command(plugins),
        pxar::command(plugins),
        version::command(plugins),
        documents::completion_command(),
        documents::man_command(),
    ]
}

pub(crate) fn run(plugins: &Plugins, matches: &ArgMatches) -> Result<()> {
    let Some((name, matches)) = matches.subcommand() else { bail!("no command was given") };
    match name {
        "backup" => backup::run(plugins, matches),
        "restore" => restore::run(plugins, matches),
        "list" => list::run(plugins, matches),
        "snapshot" => snapshot::run(plugins, matches),
        "snapshots" => snapshot::list(plugins, matches),
        "files" => snapshot::files(plugins, matches),
        "forget" => snapshot::forget(matches),
        "namespace" => namespace::run(plugins, matches),
        "prune" => prune::run(plugins, matches),
        "catalog" => catalog::run(matches),
        "status" => status::run(plugins, matches),
        "pxar" => pxar::run(plugins, matches),
        "version" => version::run(plugins, matches),
        "completion" => documents::completion(args::command(plugins, &[])?, matches),
        "man" => documents::man(args::command(plugins, &[])?, matches),
        other => bail!("unknown command '{other}'"),
    }
}

/// Ctrl-C and SIGTERM ask to stop; the second time they stop.
pub(crate) fn cancel_on_signal() -> Cancel {
    let cancel = Cancel::default();
    let asked = cancel.clone();
    let _ = ctrlc::set_handler(move || {
        if asked.is_cancelled() {
            #[allow(clippy::exit, reason = "the user insists")]
            std::process::exit(255);
        }
        asked.cancel();
    });
    cancel
}
