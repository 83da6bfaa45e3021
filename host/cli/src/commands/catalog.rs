//! `catalog`: `dump`; `shell` has a module of its own.

use super::opened::Opened;
use super::shell;
use super::snapshot::{snapshot_argument, snapshot_of};
use crate::args::{namespace, repository};
use crate::encryption::key_options;
use crate::plugins::Plugins;
use crate::terminal::local_time;
use anyhow::{Result, bail};
use clap::{ArgMatches, Command};
use keepwell_model::catalog::{CatalogError, CatalogKind};
use std::ffi::OsStr;
use std::io::{BufWriter, Write};
use std::os::unix::ffi::OsStrExt;

pub(crate) fn command(_plugins: &Plugins) -> Command {
    Command::new("catalog")
        .about("Look into the catalog of a snapshot")
        .infer_subcommands(true)
        .subcommand_required(true)
        .subcommand(
            Command::new("dump")
                .about("List everything in the catalog")
                .arg(snapshot_argument())
                .arg(repository())
                .arg(namespace())
                .args(key_options()),
        )
        .subcommand(shell::command())
}

pub(crate) fn run(plugins: &Plugins, matches: &ArgMatches) -> Result<()> {
    match matches.subcommand() {
        Some(("dump", matches)) => dump(plugins, matches),
        Some(("shell", matches)) => shell::run(plugins, matches),
        _ => bail!("use dump or shell"),
    }
}

fn dump(plugins: &Plugins, matches: &ArgMatches) -> Result<()> {
    let opened = Opened::of(matches, &snapshot_of(matches)?.to_string())?;
    let mut out = BufWriter::new(std::io::stdout().lock());
    let written = opened.walk_names(plugins, &mut |path, entry| {
        let path = [&b"./"[..], &path.join(&b'/')].concat();
        let shown = OsStr::from_bytes(&path);
        let letter = char::from(entry.kind.letter());
        let line = match entry.kind {
            CatalogKind::File { size, modified } => {
                // In local time, although it ends in Z: as the reference prints it.
                let time = local_time(modified, "%FT%TZ");
                writeln!(out, "{letter} {shown:?} {size} {time}")
            }
            _ => writeln!(out, "{letter} {shown:?}"),
        };
        line.map_err(|error| CatalogError::Read(Box::new(error)))
    });
    if let Err(error) = written {
        // Whoever reads it has seen enough.
        let mut io = error.chain().filter_map(|cause| cause.downcast_ref::<std::io::Error>());
        if io.any(|io| io.kind() == std::io::ErrorKind::BrokenPipe) {
            return Ok(());
        }
        return Err(error);
    }
    Ok(out.flush()?)
}
