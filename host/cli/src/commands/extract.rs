//! `extract`: single files and directories, without reading the rest of the archive.

use super::opened::{Opened, open_with};
use super::restore::{
    self, archive_argument, ignore_options, output_of, output_options, snapshot_or_group,
};
use crate::args::{is_set, limits, namespace, option, repository};
use crate::encryption::key_options;
use crate::plugins::Plugins;
use crate::progress::progress_option;
use anyhow::{Result, anyhow, bail};
use clap::{Arg, ArgMatches, Command, value_parser};
use keepwell_engine::browse::{self, ContentReader, EntryPath};
use keepwell_engine::plugin::{Archive, EntryKind};
use keepwell_engine::report::shown_path;
use keepwell_engine::restore::{ContentSource, RestoreRequest};
use keepwell_engine::tar::TarWriter;
use keepwell_engine::{Cancel, EngineError};
use std::ffi::OsString;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

pub(crate) fn command() -> Command {
    Command::new("extract")
        .about("Restore single files and directories, without reading the rest")
        .arg(snapshot_or_group("snapshot"))
        .arg(archive_argument("Such as root.pxar"))
        .arg(
            Arg::new("path")
                .value_name("PATH")
                .help("Path in the archive, such as etc/fstab")
                .required(true)
                .num_args(1..)
                .value_parser(value_parser!(OsString)),
        )
        .arg(
            option(
                "to",
                "DIR|-",
                "Directory for them, or '-': a file as it is, else a tar, to stdout",
            )
            .required(true)
            .value_parser(value_parser!(PathBuf)),
        )
        .args(output_options())
        .args(ignore_options())
        .arg(repository())
        .arg(namespace())
        .args(key_options())
        .args(limits())
        .arg(progress_option())
}

pub(crate) fn run(plugins: &Plugins, matches: &ArgMatches) -> Result<()> {
    let text = |name: &str| matches.get_one::<String>(name).cloned().unwrap_or_default();
    let given = matches.get_many::<OsString>("path").into_iter().flatten();
    let paths: Vec<EntryPath> = given.map(|path| names(path.as_bytes())).collect::<Result<_>>()?;
    let Some(target) = matches.get_one::<PathBuf>("to") else { bail!("missing argument: --to") };
    let opened = Opened::of(matches, &text("snapshot"))?;
    let (name, stored) = opened.archive(plugins, &text("archive-name"))?;
    let extension = &name.extension;
    let loaded = plugins
        .reader_for(extension)
        .ok_or_else(|| anyhow!("there is no plugin that reads '{extension}' archives"))?;
    if target == Path::new("-") && is_set(matches, "keep-going") {
        bail!("--keep-going can't be used with '--to -': half a file would look like a whole one");
    }
    if target != Path::new("-") {
        let request = RestoreRequest {
            options: output_of(matches),
            paths,
            keep_going: is_set(matches, "keep-going"),
            ..RestoreRequest::default()
        };
        let (streams, source) = (stored.streams(), stored.source());
        let extracted = restore::extract(matches, loaded, streams, source, request, target);
        return loaded.blamed(extracted).map(|_| ());
    }
    let (_reader, mut archive) = open_with(&loaded.plugin, stored.streams(), Cancel::default())?;
    // Without the types: a broken pipe is no success, and no hint fits.
    let streamed = stream(&mut *archive, &*stored.source(), paths);
    loaded.blamed(streamed).map_err(|error| anyhow!("{error:#}"))
}

/// The names of a path in an archive.
fn names(path: &[u8]) -> Result<EntryPath> {
    let names = path.split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b"."));
    let names: EntryPath = names.map(<[u8]>::to_vec).collect();
    if path.is_empty() {
        bail!("a path is empty: give '/' for the whole archive");
    }
    match names.iter().any(|name| name == b"..") {
        true => bail!("path \"{}\" has a '..': give it from the archive's root", shown_path(path)),
        false => Ok(names),
    }
}

/// One file as it is; anything else as a tar.
fn stream(
    archive: &mut dyn Archive,
    content: &dyn ContentSource,
    paths: Vec<EntryPath>,
) -> Result<()> {
    let entries = browse::find_all(archive, paths)?;
    let mut out = BufWriter::new(io::stdout().lock());
    let single = match &entries[..] {
        [(_, entry)] => Some(browse::resolve(archive, entry.clone())?),
        _ => None,
    };
    if let Some(entry) = single.filter(|entry| entry.metadata.kind == EntryKind::File) {
        let copied = io::copy(&mut ContentReader::new(archive, content, &entry), &mut out);
        copied.and_then(|_| out.flush()).map_err(|error| {
            match error.downcast::<EngineError>() {
                Ok(inner) => anyhow::Error::from(inner),
                Err(error) => anyhow!("stdout can't be written to: {error}"),
            }
        })?;
        return Ok(());
    }
    if io::stdout().is_terminal() {
        bail!("a tar is nothing for a terminal: send it to a file or a pipe");
    }
    let whole: Vec<EntryPath> = entries.iter().map(|(path, _)| path.clone()).collect();
    let mut tar = TarWriter::new(out, content, &whole);
    for (path, entry) in entries {
        let path = path.join(&b'/');
        let below = (entry.metadata.kind == EntryKind::Directory).then_some(entry.node);
        if !path.is_empty() {
            tar.add(archive, &path, entry)?;
        }
        if let Some(directory) = below {
            tar.add_below(archive, directory, &path)?;
        }
    }
    let (mut out, left_out) = tar.finish()?;
    if left_out > 0 {
        tracing::info!("not in the tar, which can't hold them: {left_out} sockets");
    }
    Ok(out.flush()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_names_from_the_root() {
        let of = |path: &str| names(path.as_bytes()).map(|names| names.concat()).ok();
        assert_eq!(names(b"/etc//./fstab/").unwrap(), [b"etc".to_vec(), b"fstab".to_vec()]);
        assert_eq!(of("/").as_deref(), Some(&b""[..]));
        assert!(of("etc/../x").is_none() && of("..").is_none() && of("").is_none());
    }
}
