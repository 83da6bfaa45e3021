//! `completion` and `man`: made from the command line's own definition.

use crate::output::write_out;
use anyhow::{Context, Result, bail};
use clap::{Arg, ArgMatches, Command, value_parser};
use clap_complete::Shell;
use std::path::PathBuf;

pub(crate) fn completion_command() -> Command {
    Command::new("completion").about("Print a completion script for a shell").arg(
        Arg::new("shell")
            .value_name("SHELL")
            .help("The shell")
            .required(true)
            .value_parser(value_parser!(Shell)),
    )
}

pub(crate) fn completion(mut command: Command, matches: &ArgMatches) -> Result<()> {
    let Some(shell) = matches.get_one::<Shell>("shell") else { bail!("missing argument: shell") };
    let mut script = Vec::new();
    clap_complete::generate(*shell, &mut command, "keepwell", &mut script);
    write_out(&script)
}

pub(crate) fn man_command() -> Command {
    Command::new("man").about("Write manual pages into a directory").arg(
        Arg::new("dir")
            .value_name("DIR")
            .help("Where to write them; made if missing")
            .required(true)
            .value_parser(value_parser!(PathBuf)),
    )
}

pub(crate) fn man(command: Command, matches: &ArgMatches) -> Result<()> {
    let Some(dir) = matches.get_one::<PathBuf>("dir") else { bail!("missing argument: dir") };
    let shown = dir.display();
    std::fs::create_dir_all(dir).with_context(|| format!("unable to create '{shown}'"))?;
    clap_mangen::generate_to(command, dir).with_context(|| format!("unable to write to '{shown}'"))
}
