//! The verbs: each module makes its clap command and runs it.

mod backup;
mod benchmark;
mod catalog;
mod config;
mod diff;
mod documents;
mod extract;
mod find;
mod garbage;
mod key;
mod list;
mod login;
mod mount;
mod namespace;
mod opened;
mod owner;
mod plugin;
mod prune;
mod pxar;
mod restore;
mod server;
mod shell;
mod snapshot;
mod status;
mod task;
mod verify;
mod version;

use crate::args;
use crate::plugins::Plugins;
pub(crate) use crate::signals::cancel_on_signal;
use anyhow::{Result, bail};
use clap::{ArgMatches, Command};

/// All verbs, in the order of the help.
pub(crate) fn all(plugins: &Plugins) -> Vec<Command> {
    vec![
        backup::command(plugins),
        restore::command(plugins),
        extract::command(),
        list::command(plugins),
        snapshot::command(plugins),
        snapshot::list_command(plugins, "snapshots").hide(true),
        snapshot::files_command(plugins).hide(true),
        snapshot::forget_command().hide(true),
        namespace::command(plugins),
        prune::command(plugins),
        catalog::command(plugins),
        mount::command(),
        mount::map::map_command(),
        mount::map::unmap_command(),
        find::command(plugins),
        diff::command(plugins),
        garbage::command(plugins),
        verify::command(),
        owner::command(),
        benchmark::command(plugins),
        status::command(plugins),
        pxar::command(plugins),
        plugin::command(plugins),
        config::command(plugins),
        key::command(plugins),
        snapshot::upload_log_command().hide(true),
        login::login_command(),
        login::logout_command(),
        task::command(plugins),
        server::serve_command(),
        server::admin_command(plugins),
        version::command(plugins),
        documents::completion_command(),
        documents::man_command(),
    ]
}

pub(crate) fn run(mut plugins: Plugins, matches: &ArgMatches) -> Result<()> {
    let Some((name, matches)) = matches.subcommand() else { bail!("no command was given") };
    if name == "plugin" {
        return plugin::run(plugins, matches);
    }
    if name != "config" {
        plugins.check_settings()?;
    }
    let plugins = &plugins;
    match name {
        "backup" => backup::run(plugins, matches),
        "config" => config::run(plugins, matches),
        "restore" => restore::run(plugins, matches),
        "extract" => extract::run(plugins, matches),
        "list" => list::run(plugins, matches),
        "snapshot" => snapshot::run(plugins, matches),
        "snapshots" => snapshot::list(plugins, matches),
        "files" => snapshot::files(plugins, matches),
        "forget" => snapshot::forget(matches),
        "namespace" => namespace::run(plugins, matches),
        "prune" => prune::run(plugins, matches),
        "mount" => mount::run(plugins, matches),
        "map" => mount::map::map(plugins, matches),
        "unmap" => mount::map::unmap(matches),
        "catalog" => catalog::run(plugins, matches),
        "find" => find::run(plugins, matches),
        "diff" => diff::run(plugins, matches),
        "status" => status::run(plugins, matches),
        "key" => key::run(plugins, matches),
        "upload-log" => snapshot::upload_log(matches),
        "change-owner" => owner::run(matches),
        "benchmark" => benchmark::run(plugins, matches),
        "verify" => verify::run(matches),
        "garbage-collect" => garbage::run(plugins, matches),
        "pxar" => pxar::run(plugins, matches),
        "login" => login::login(matches),
        "logout" => login::logout(matches),
        "task" => task::run(plugins, matches),
        "serve" => server::serve(matches),
        "admin" => server::admin(plugins, matches),
        "version" => version::run(plugins, matches),
        "completion" => documents::completion(args::command(plugins), matches),
        "man" => documents::man(args::command(plugins), matches),
        other => bail!("there is no command '{other}'"),
    }
}
