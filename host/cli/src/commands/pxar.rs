//! `pxar create|extract|list|mount`: archives in files and pipes.

use super::cancel_on_signal;
use super::mount::mount_file;
use super::restore::{self, output_of, output_options, pattern_option, selection};
use crate::args::{flag, is_set, number, option, option_values, plugin_options};
use crate::files;
use crate::notices::print_in_background;
use crate::plugins::{Loaded, Plugins};
use crate::progress::{Progress, progress_option};
use crate::terminal::{local_time, wants_debug};
use anyhow::{Context, Result, anyhow, bail};
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use keepwell_engine::archive::RandomAccess;
use keepwell_engine::input::Directory;
use keepwell_engine::output::OutputOptions;
use keepwell_engine::pattern::PatternList;
use keepwell_engine::plugin::{
    Archive, Borders, Content, Entry, EntryKind, Event, Origin, SourceRequest,
};
use keepwell_engine::report::Report;
use keepwell_engine::restore::{PlainContent, RestoreRequest};
use keepwell_engine::stream::{FileArchive, PipeArchive, write_archive};
use keepwell_engine::{Counters, EngineError};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const EXTENSION: &str = "pxar";
/// Deeper trees are not listed: none that can be restored is.
const DEPTH_MAX: u64 = 2048;

fn archive_argument() -> Arg {
    Arg::new("archive")
        .value_name("ARCHIVE")
        .help("Archive file; '-' for a pipe")
        .required(true)
        .value_parser(value_parser!(PathBuf))
}

pub(crate) fn command(plugins: &Plugins) -> Command {
    let options = match plugins.source_for(EXTENSION) {
        Some((loaded, _)) => {
            let name = loaded.info.name.as_str();
            loaded.info.options.iter().map(|spec| (name, spec)).collect()
        }
        None => Vec::new(),
    };
    let leave_out = |name, help| flag(name, help);
    Command::new("pxar")
        .about("Make, extract, list and mount pxar archives in files and pipes")
        .infer_subcommands(true)
        .subcommand_required(true)
        .subcommand(
            Command::new("create")
                .about("Make an archive of a directory")
                .arg(archive_argument())
                .arg(
                    Arg::new("source")
                        .value_name("SOURCE")
                        .help("Directory to archive")
                        .required(true)
                        .value_parser(value_parser!(PathBuf)),
                )
                .arg(flag("all-file-systems", "Enter all mounted file systems but virtual ones"))
                .arg(
                    number("entries-max", "N", "Most entries held in memory at a time")
                        .default_value("1048576"),
                )
                .args(plugin_options(&options))
                .arg(progress_option()),
        )
        .subcommand(
            Command::new("extract")
                .about("Extract an archive")
                .arg(archive_argument())
                .arg(
                    Arg::new("target")
                        .value_name("TARGET")
                        .help("Directory to extract into")
                        .default_value(".")
                        .value_parser(value_parser!(PathBuf)),
                )
                .arg(pattern_option())
                .arg(
                    option("files-from", "FILE", "Read patterns from a file, one on each line")
                        .action(ArgAction::Set)
                        .value_parser(value_parser!(PathBuf)),
                )
                .args(output_options())
                .arg(leave_out("no-xattrs", "Do not extract extended attributes"))
                .arg(leave_out("no-fcaps", "Do not extract file capabilities"))
                .arg(leave_out("no-acls", "Do not extract access control lists"))
                .arg(leave_out("no-device-nodes", "Do not extract device nodes"))
                .arg(leave_out("no-fifos", "Do not extract fifos"))
                .arg(leave_out("no-sockets", "Do not extract sockets"))
                .arg(flag("strict", "Stop at the first error"))
                .arg(progress_option()),
        )
        .subcommand(
            Command::new("list")
                .about("List what is in an archive; PXAR_LOG=debug shows metadata, too")
                .arg(archive_argument()),
        )
        .subcommand(
            Command::new("mount")
                .about(
                    "Mount an archive read-only, and stay in the foreground until it is unmounted",
                )
                .arg(archive_argument().help("Archive file"))
                .arg(
                    Arg::new("mountpoint")
                        .value_name("TARGET")
                        .help("Directory to mount on")
                        .required(true)
                        .value_parser(value_parser!(PathBuf)),
                )
                .arg(flag("verbose", "Does nothing: what can't be read is always told")),
        )
}

pub(crate) fn run(plugins: &Plugins, matches: &ArgMatches) -> Result<()> {
    match matches.subcommand() {
        Some(("create", matches)) => create(plugins, matches),
        Some(("extract", matches)) => extract(plugins, matches),
        Some(("list", matches)) => list(plugins, matches),
        Some(("mount", matches)) => mount(plugins, matches),
        _ => bail!("use create, extract, list or mount"),
    }
}

fn path<'a>(matches: &'a ArgMatches, name: &str) -> Result<&'a PathBuf> {
    matches.get_one(name).ok_or_else(|| anyhow!("missing argument: {name}"))
}

fn create(plugins: &Plugins, matches: &ArgMatches) -> Result<()> {
    let (loaded, archive_type) =
        plugins.source_for(EXTENSION).context("there is no plugin for pxar archives")?;
    let options = option_values(matches, &loaded.info.options)?;
    let (archive, source) = (path(matches, "archive")?, path(matches, "source")?);
    let shown = source.display();
    let metadata = std::fs::symlink_metadata(source)
        .map_err(|error| anyhow!("unable to access '{shown}' - {error}"))?;
    if !metadata.is_dir() {
        bail!("got unexpected file type (expected directory): '{shown}'");
    }
    let directory = Directory::open_root(source)
        .map_err(|error| anyhow!("unable to access '{shown}' - {error}"))?;
    // A pipe or a device is written to; a file that is there stays.
    let is_new = archive != Path::new("-")
        && !std::fs::metadata(archive).is_ok_and(|there| !there.is_file());
    let out: Box<dyn Write + Send> = if archive == Path::new("-") {
        Box::new(std::io::stdout())
    } else {
        let mut create = std::fs::OpenOptions::new();
        let file = create.write(true).create_new(is_new).mode(0o640).open(archive);
        Box::new(file.map_err(|error| files::not_created("archive", archive, &error))?)
    };
    let counters = Arc::new(Counters::default());
    let cancel = cancel_on_signal();
    let (report, notices) = Report::new();
    let progress = Progress::start(matches, counters.clone());
    let printer = print_in_background(notices, progress.shower.clone());
    let cross = is_set(matches, "all-file-systems");
    let request = SourceRequest {
        archive_name: "archive".into(),
        archive_extension: archive_type.extension.clone(),
        suffixes: archive_type.suffixes(),
        options,
        borders: if cross { Borders::CrossAll } else { Borders::Stay },
        entries_max: matches.get_one("entries-max").copied().unwrap_or(1 << 20),
        previous: Vec::new(),
    };
    let mut source = loaded.plugin.source(report.clone(), cancel.clone())?;
    let origin = Origin::Directory(directory);
    let written =
        write_archive(&mut *source, origin, request, vec![out], report, cancel.clone(), counters);
    drop(source);
    let _ = printer.join();
    progress.finish();
    if written.is_err() && is_new {
        // Half an archive is worse than none.
        let _ = std::fs::remove_file(archive);
    }
    written.map(|_| ()).map_err(|error| match cancel.is_cancelled() {
        true => anyhow!("interrupted: no archive was made"),
        false => anyhow::Error::from(error).context(format!("archive '{}'", archive.display())),
    })
}

/// The archive's bytes, and whether they come from a pipe.
fn open_archive(archive: &Path) -> Result<(Arc<dyn RandomAccess>, bool)> {
    if archive == Path::new("-") {
        return Ok((Arc::new(PipeArchive::new(Box::new(std::io::stdin()))), true));
    }
    let shown = archive.display();
    let missing = |error: std::io::Error| anyhow!("unable to open archive '{shown}' - {error}");
    let file = File::open(archive).map_err(missing)?;
    if file.metadata().map_err(missing)?.is_file() {
        return Ok((Arc::new(FileArchive::new(file).map_err(missing)?), false));
    }
    Ok((Arc::new(PipeArchive::new(Box::new(file))), true))
}

fn reader(plugins: &Plugins) -> Result<&Loaded> {
    plugins.reader_for(EXTENSION).context("there is no plugin for pxar archives")
}

fn mount(plugins: &Plugins, matches: &ArgMatches) -> Result<()> {
    let archive = path(matches, "archive")?;
    let shown = archive.display().to_string();
    let (bytes, sequential) = open_archive(archive).with_context(|| format!("'{shown}'"))?;
    if sequential {
        bail!("'{shown}' is no regular file: it can't be mounted");
    }
    let plugin = reader(plugins)?.plugin.clone();
    let target = path(matches, "mountpoint")?;
    mount_file(plugin, bytes, target, &shown).with_context(|| format!("'{shown}'"))
}

fn selected(matches: &ArgMatches) -> Result<PatternList> {
    let mut patterns: Vec<Vec<u8>> = matches
        .get_many::<OsString>("pattern")
        .into_iter()
        .flatten()
        .map(|pattern| pattern.as_bytes().to_vec())
        .collect();
    if let Some(file) = matches.get_one::<PathBuf>("files-from") {
        let shown = file.display();
        let text = std::fs::read(file).with_context(|| format!("unable to read '{shown}'"))?;
        let lines = text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
        patterns
            .extend(lines.filter(|line| !line.is_empty() && line[0] != b'#').map(<[u8]>::to_vec));
    }
    selection(patterns.iter().map(Vec::as_slice))
}

fn extract(plugins: &Plugins, matches: &ArgMatches) -> Result<()> {
    let loaded = reader(plugins)?;
    let patterns = selected(matches)?;
    let archive = path(matches, "archive")?;
    let shown = archive.display();
    let (bytes, sequential) = open_archive(archive).with_context(|| format!("'{shown}'"))?;
    let options = OutputOptions {
        ignore_xattrs: is_set(matches, "no-xattrs"),
        ignore_fcaps: is_set(matches, "no-fcaps"),
        ignore_acls: is_set(matches, "no-acls"),
        skip_devices: is_set(matches, "no-device-nodes"),
        skip_fifos: is_set(matches, "no-fifos"),
        skip_sockets: is_set(matches, "no-sockets"),
        ..output_of(matches)
    };
    let keep_going = !is_set(matches, "strict");
    let request =
        RestoreRequest { options, patterns, keep_going, sequential, ..RestoreRequest::default() };
    let content = Arc::new(PlainContent(vec![bytes.clone()]));
    let target = path(matches, "target")?;
    let selects = !request.patterns.is_empty();
    match restore::extract(matches, loaded, vec![bytes], content, request, target) {
        Err(error) if matches!(error.downcast_ref(), Some(EngineError::Incomplete(_))) => {
            bail!("there were errors")
        }
        Ok(summary) if selects && summary.entries == 0 => {
            bail!("nothing in '{shown}' matches - `keepwell pxar list` shows what there is")
        }
        Ok(_) => Ok(()),
        Err(error) => Err(error.context(format!("'{shown}'"))),
    }
}

fn list(plugins: &Plugins, matches: &ArgMatches) -> Result<()> {
    let archive = path(matches, "archive")?;
    list_archive(plugins, archive).map_err(|error| match error.downcast_ref::<std::io::Error>() {
        // What is printed has no reader any more.
        Some(io) if io.kind() == std::io::ErrorKind::BrokenPipe => error,
        _ => error.context(format!("'{}'", archive.display())),
    })
}

fn list_archive(plugins: &Plugins, path: &Path) -> Result<()> {
    let (bytes, sequential) = open_archive(path)?;
    let (report, _notices) = Report::new();
    let cancel = cancel_on_signal();
    let mut archive = reader(plugins)?.plugin.reader(report, cancel)?.open(vec![bytes])?;
    let long = wants_debug("PXAR_LOG");
    let mut out = BufWriter::new(std::io::stdout().lock());
    let root = archive.root()?;
    line(&mut out, b"/", &root, long)?;
    let listed = list_below(&mut *archive, &mut out, long, if sequential { 1 } else { 256 });
    out.flush()?;
    listed
}

fn list_below(
    archive: &mut dyn Archive,
    out: &mut dyn Write,
    long: bool,
    batch: u32,
) -> Result<()> {
    archive.start_walk()?;
    let mut path: Vec<u8> = Vec::new();
    let mut depth = 0u64;
    loop {
        let events = archive.walk(batch)?;
        if events.is_empty() {
            return Ok(());
        }
        for event in events {
            match event {
                Event::Leave => {
                    depth -= 1;
                    let end = path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
                    path.truncate(end);
                }
                Event::Enter(entry) => {
                    depth += 1;
                    if depth > DEPTH_MAX {
                        bail!("directories are nested more than {DEPTH_MAX} deep");
                    }
                    path.push(b'/');
                    path.extend(&entry.name);
                    line(out, &path, &entry, long)?;
                }
                Event::Leaf(entry) => {
                    let full = [&path[..], b"/", &entry.name].concat();
                    line(out, &full, &entry, long)?;
                }
            }
        }
    }
}

fn line(out: &mut dyn Write, path: &[u8], entry: &Entry, long: bool) -> Result<()> {
    let path = OsStr::from_bytes(path);
    if !long {
        writeln!(out, "{path:?}")?;
        return Ok(());
    }
    let metadata = &entry.metadata;
    let owner = format!("{}/{}", metadata.owner, metadata.group);
    let time = local_time(metadata.modified.seconds, "%Y-%m-%d %H:%M:%S");
    let size = match metadata.device {
        Some((major, minor)) => format!("{major},{minor}"),
        None => metadata.size.to_string(),
    };
    let link = match (&metadata.link_target, &entry.content) {
        (Some(target), _) => Some(target.clone()),
        (None, Content::HardLink { path, .. }) => Some(path.join(&b'/')),
        _ => None,
    };
    let link = link.map(|link| format!(" -> {:?}", OsStr::from_bytes(&link))).unwrap_or_default();
    writeln!(out, "{} {owner:<13} {time} {size:>8} {path:?}{link}", mode_text(entry))?;
    Ok(())
}

/// `-rw-r--r--+ `: type, rights, whether there are ACLs and extended attributes.
pub(crate) fn mode_text(entry: &Entry) -> String {
    let metadata = &entry.metadata;
    let kind = match (&entry.content, metadata.kind) {
        (Content::HardLink { .. }, _) => 'L',
        (_, EntryKind::File) => '-',
        (_, EntryKind::Directory) => 'd',
        (_, EntryKind::Symlink) => 'l',
        (_, EntryKind::BlockDevice) => 'b',
        (_, EntryKind::CharacterDevice) => 'c',
        (_, EntryKind::Fifo) => 'p',
        (_, EntryKind::Socket) => 's',
    };
    let mode = metadata.mode;
    let mut text = String::from(kind);
    for (shift, special, on, off) in
        [(6, 0o4000, 's', 'S'), (3, 0o2000, 's', 'S'), (0, 0o1000, 't', 'T')]
    {
        let bits = mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (mode & special != 0, bits & 1 != 0) {
            (true, true) => on,
            (true, false) => off,
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    let acl = |name: &[u8]| name.starts_with(b"system.posix_acl");
    let names = || metadata.extended.iter().map(|(name, _)| &name[..]);
    text.push(if names().any(acl) { '+' } else { ' ' });
    let attribute = |name: &[u8]| !acl(name) && name != b"security.capability";
    text.push(if names().any(attribute) { '+' } else { ' ' });
    text
}
