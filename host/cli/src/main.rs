//! The `keepwell` binary, and the only composition root: arguments, environment, terminal and
//! clock end here; everything below gets values.

mod args;
mod commands;
mod config;
mod encryption;
mod exit;
mod files;
mod notices;
mod output;
mod plugins;
mod progress;
mod remote;
mod repository;
mod secrets;
mod signals;
mod store;
mod terminal;
mod words;

use std::process::ExitCode;

fn main() -> ExitCode {
    exit::report(run(std::env::args_os().collect()))
}

fn run(arguments: Vec<std::ffi::OsString>) -> anyhow::Result<()> {
    terminal::start_logging(&arguments);
    terminal::raise_open_files();
    terminal::forbid_core_dumps();
    let mut plugins = plugins::Plugins::load()?;
    let mut command = args::command(&plugins);
    while let Some((verb, option)) = args::clash(&command) {
        plugins.refuse_clashing(&verb, &option)?;
        command = args::command(&plugins);
    }
    let matches = args::parse(command, arguments)?;
    commands::run(plugins, &matches)
}
