//! `mount`: archives as a file system. `map` and `unmap` are in a module of their own.

mod all;
mod background;
pub(crate) mod map;

use super::opened::{ArchiveFiles, Opened, StoredArchive, open_with};
use super::restore::snapshot_or_group;
use crate::args::{flag, is_set, limits, namespace, patience, repository};
use crate::encryption::key_options;
use crate::plugins::Plugins;
use crate::repository::Repository;
use anyhow::{Result, anyhow, bail};
use clap::{Arg, ArgMatches, Command, value_parser};
use keepwell_engine::archive::RandomAccess;
use keepwell_engine::catalog::Catalog;
use keepwell_engine::plugin::Archive;
use keepwell_engine::restore::PlainContent;
use keepwell_engine::{Cancel, EngineError};
use keepwell_model::ArchiveName;
use keepwell_mount::{Child, Directory, Links, Log, Mounted, OpenArchive, Opener, Problem, Root};
use keepwell_mount::{Unmounter, further_names, links_of};
use keepwell_wasm::Plugin;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Opened chunks that are kept for a stream: of one archive, and of several.
const CACHE_BYTES: usize = 48 << 20;
const SHARED_CACHE_BYTES: usize = 20 << 20;
/// Further names of files that are counted. Where there are more, each file says that it may have some.
const NAMES_COUNTED: usize = 20_000;
/// Entries of metadata that lies apart, walked to count names.
const ENTRIES_WALKED: u64 = 2_000_000;
/// ENOTCONN: nobody serves the mount any more.
const NOT_CONNECTED: i32 = 107;
/// How long a file system that was unmounted may be held by who uses it.
const GRACE: Duration = Duration::from_secs(2);

pub(crate) fn command() -> Command {
    let path = |name: &'static str| Arg::new(name).value_parser(value_parser!(PathBuf));
    Command::new("mount")
        .about("Mount an archive, or all backups, read-only")
        .long_about(
            "Mount an archive, or all backups, read-only.\n\nComes back when it is mounted; `umount TARGET` \
             ends it. An image shows as a file. With --all, TARGET has directories for namespaces, \
             types, ids and times, and in those the archives.",
        )
        .override_usage(
            "keepwell mount [OPTIONS] SNAPSHOT ARCHIVE TARGET\n       keepwell mount [OPTIONS] --all TARGET",
        )
        .arg(snapshot_or_group("snapshot").required(false))
        .arg(Arg::new("archive-name").value_name("ARCHIVE").help("Such as root.pxar or drive.img"))
        .arg(path("target").value_name("TARGET").help("Directory to mount on"))
        .arg(flag("all", "Mount all backups of the repository"))
        .args(options())
}

/// What `mount` and `map` share.
fn options() -> Vec<Arg> {
    let verbose = flag("verbose", "Stay in the foreground, and tell what can't be read");
    let mut options = vec![verbose, repository(), namespace()];
    options.extend(key_options());
    options.extend(limits());
    options.push(patience());
    options
}

pub(crate) fn run(plugins: &Plugins, matches: &ArgMatches) -> Result<()> {
    let text = |name: &str| matches.get_one::<String>(name);
    let words = (text("snapshot"), text("archive-name"), matches.get_one::<PathBuf>("target"));
    let is_all = is_set(matches, "all");
    let (snapshot, archive, target) = match (is_all, words) {
        (true, (Some(target), None, None)) => ("", "", Path::new(target)),
        (true, _) => bail!("use mount --all TARGET, with nothing else"),
        (false, (Some(snapshot), Some(archive), Some(target))) => {
            (snapshot.as_str(), archive.as_str(), target.as_path())
        }
        (false, _) => bail!("use mount SNAPSHOT ARCHIVE TARGET, or mount --all TARGET"),
    };
    let in_background = !is_set(matches, "verbose");
    if in_background && !background::is_it() {
        return background::start(matches);
    }
    let target = mount_point(target)?;
    let repository = Repository::find(matches.get_one("repository"))?;
    let (root, source) = match is_all {
        true => (all::root(plugins, matches)?, repository.to_string()),
        false => {
            let opened = Opened::of(matches, snapshot)?;
            let source = format!("{repository}:{}/{archive}", opened.reader.snapshot());
            (root_of(plugins, opened, archive)?, source)
        }
    };
    serve(root, &target, &source, in_background.then_some(&repository))
}

/// Mounts, and answers until it is unmounted. In the background where there is a repository to be found
/// from there.
fn serve(root: Root, target: &Path, source: &str, repository: Option<&Repository>) -> Result<()> {
    let mut mounted = mounted(root, target, source, log(repository.is_some()))?;
    end_on_signal(mounted.unmounter(), || {})?;
    if let Some(repository) = repository {
        background::detach(repository)?;
    }
    Ok(mounted.run()?)
}

fn mount_point(given: &Path) -> Result<PathBuf> {
    let shown = given.display();
    let failed = |error: std::io::Error| match error.raw_os_error() {
        Some(NOT_CONNECTED) => anyhow!(
            "unable to mount on '{shown}': there is a mount whose process is gone - `umount {shown}` first"
        ),
        _ => anyhow!("unable to mount on '{shown}': {error}"),
    };
    let target = given.canonicalize().map_err(failed)?;
    if !target.metadata().map_err(failed)?.is_dir() {
        bail!("unable to mount on '{shown}': it is no directory");
    }
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let is_taken = mounts.lines().any(|line| {
        let mut fields = line.split(' ').skip(1);
        fields.next() == target.to_str()
            && fields.next().is_some_and(|kind| kind.starts_with("fuse"))
    });
    match is_taken {
        true => bail!(
            "unable to mount on '{shown}': something is mounted there - `umount {shown}` first"
        ),
        false => Ok(target),
    }
}

/// An archive that is a file, in the foreground.
pub(crate) fn mount_file(
    plugin: Plugin,
    bytes: Arc<dyn RandomAccess>,
    target: &Path,
    source: &str,
) -> Result<()> {
    let target = mount_point(target)?;
    let open = move || -> Result<OpenArchive> {
        let (reader, mut archive) = open_with(&plugin, vec![bytes.clone()], Cancel::default())?;
        archive.root()?;
        let links = links_of(&mut *archive, ENTRIES_WALKED);
        let links = links.ok().flatten().map_or(Links::Unknown, Links::Known);
        let content = Arc::new(PlainContent(vec![bytes.clone()]));
        Ok(OpenArchive::new(archive, reader, content, links))
    };
    open()?;
    let root = Root::Archive(Box::new(move || open().map_err(|error| problem(&error))));
    serve(root, &target, source, None)
}

fn log(in_background: bool) -> Log {
    match in_background {
        true => background::log(),
        false => Box::new(|line| tracing::info!("{line}")),
    }
}

fn mounted(root: Root, target: &Path, source: &str, log: Log) -> Result<Mounted> {
    Mounted::new(root, target, source, log).map_err(|error| {
        let is_shut = std::fs::File::options().read(true).write(true).open("/dev/fuse").is_err();
        let hint = match error.kind() {
            std::io::ErrorKind::PermissionDenied if is_shut => " - /dev/fuse can't be opened",
            std::io::ErrorKind::NotFound => " - is FUSE there (modprobe fuse)?",
            std::io::ErrorKind::PermissionDenied => {
                " - without root, fusermount3 has to be installed"
            }
            _ => "",
        };
        anyhow!("unable to mount on '{}': {}{hint}", target.display(), error.to_string().trim())
    })
}

/// The root of an archive; where that is a file, a directory with it.
fn root_of(plugins: &Plugins, opened: Opened, given: &str) -> Result<Root> {
    let files = ArchiveFiles::find(&plugins.types(), &opened.manifest, given)?;
    let (plugin, is_directory) = reader_of(plugins, &files.extension)?;
    let name = files.name.clone();
    let first = open_archive(&plugin, &opened, &files, CACHE_BYTES)?;
    // A source may make one file of a directory.
    let is_directory = is_directory && !first.is_file();
    let opener = opener(first, plugin, Arc::new(opened), files);
    Ok(match is_directory {
        true => Root::Archive(opener),
        false => Root::Directory(Arc::new(OneFile { name, opener: Arc::new(opener) })),
    })
}

/// The plugin that reads archives of an extension, and whether those are directories.
fn reader_of(plugins: &Plugins, extension: &str) -> Result<(Plugin, bool)> {
    let loaded = plugins
        .reader_for(extension)
        .ok_or_else(|| anyhow!("there is no plugin that reads '{extension}' archives"))?;
    Ok((loaded.plugin.clone(), loaded.makes_directories(extension)))
}

/// Gives the archive that is open already, and opens it again whenever it was closed.
fn opener(first: OpenArchive, plugin: Plugin, opened: Arc<Opened>, files: ArchiveFiles) -> Opener {
    let first = Mutex::new(Some(first));
    Box::new(move || {
        let first = first.lock().unwrap_or_else(PoisonError::into_inner).take();
        match first {
            Some(open) => Ok(open),
            None => {
                open_archive(&plugin, &opened, &files, CACHE_BYTES).map_err(|error| problem(&error))
            }
        }
    })
}

fn problem(error: &anyhow::Error) -> Problem {
    let text = format!("{error:#}");
    match error.downcast_ref() {
        Some(EngineError::MissingKey { .. } | EngineError::WrongKey { .. }) => {
            Problem::no_key(text)
        }
        _ => Problem::unreadable(text),
    }
}

fn open_archive(
    plugin: &Plugin,
    opened: &Opened,
    files: &ArchiveFiles,
    cache_bytes: usize,
) -> Result<OpenArchive> {
    let stored = StoredArchive::open(&opened.reader, files, opened.key.as_ref())?;
    if let StoredArchive::Chunked(streams) = &stored {
        for stream in streams {
            stream.limit_cache(cache_bytes);
            stream.read_ahead();
        }
    }
    let (reader, mut archive) = open_with(plugin, stored.streams(), Cancel::default())?;
    let names = match &files.files[..] {
        [file] => names_by_catalog(opened, &file.name, &mut *archive),
        _ => links_of(&mut *archive, ENTRIES_WALKED),
    };
    let links = match names {
        Ok(Some(names)) => Links::Known(names),
        // An archive that is one file has no catalog, and needs none.
        Err(EngineError::Refused(_)) => Links::Known(HashMap::new()),
        Ok(None) | Err(_) => Links::Unknown,
    };
    Ok(OpenArchive::new(archive, reader, stored.source(), links))
}

type Names = Option<HashMap<u64, u32>>;

fn names_by_catalog(
    opened: &Opened,
    name: &ArchiveName,
    archive: &mut dyn Archive,
) -> Result<Names, EngineError> {
    let catalog = Catalog::open(&opened.reader, &opened.manifest, opened.key.as_ref())?;
    match catalog.hard_links(name, NAMES_COUNTED)? {
        Some(paths) => further_names(archive, paths.into_iter()).map(Some),
        None => Ok(None),
    }
}

/// A directory that shows an archive as a file.
struct OneFile {
    name: String,
    opener: Arc<Opener>,
}

impl Directory for OneFile {
    fn list(&self) -> Result<Vec<(Vec<u8>, Child)>, Problem> {
        let opener = self.opener.clone();
        let child = Child::Archive(Box::new(move || opener()), false);
        Ok(vec![(self.name.as_bytes().to_vec(), child)])
    }
}

/// Unmounts when a signal asks for the end, also while somebody uses it. `before` is done first.
fn end_on_signal(mut unmounter: Unmounter, before: impl FnOnce() + Send + 'static) -> Result<()> {
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM])?;
    std::thread::spawn(move || {
        if signals.forever().next().is_none() {
            return;
        }
        before();
        let ended = unmounter.unmount();
        if let Err(error) = ended {
            tracing::info!("unable to unmount: {error}");
        }
        // Whoever holds files open, or a silent server, must not keep us.
        std::thread::sleep(GRACE);
        #[allow(clippy::exit, reason = "nothing is left to be tidied up")]
        std::process::exit(0);
    });
    Ok(())
}
