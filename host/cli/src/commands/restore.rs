//! `restore`.

use super::cancel_on_signal;
use super::opened::{ArchiveFiles, StoredArchive, Streams, find_snapshot};
use crate::args::{
    flag, is_set, limits, namespace, namespace_of, option, output_format, repository,
};
use crate::encryption::{CryptParameters, key_options, verified};
use crate::files;
use crate::notices::print_in_background;
use crate::output::write_out;
use crate::plugins::{Loaded, Plugins};
use crate::progress::{Progress, progress_option};
use crate::repository::Repository;
use anyhow::{Context, Result, anyhow, bail};
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use keepwell_engine::catalog::walk;
use keepwell_engine::output::OutputOptions;
use keepwell_engine::pattern::PatternList;
use keepwell_engine::report::{Report, shown_path};
use keepwell_engine::restore::{ContentSource, Restore, RestoreRequest, RestoreSummary, chain};
use keepwell_engine::snapshot::UnverifiedManifest;
use keepwell_engine::{Cancel, Counters, EngineError};
use keepwell_model::manifest::ManifestFile;
use keepwell_model::names::ArchiveKind;
use keepwell_model::{ArchiveName, Manifest};
use keepwell_seal::EncryptionKey;
use keepwell_store::{SnapshotReader, StoreError};
use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// Names of lost entries that are told.
const LOST_TOLD_MAX: u64 = 1000;

/// Options that say what may be replaced and which metadata to leave alone.
pub(crate) fn output_options() -> Vec<Arg> {
    vec![
        flag("allow-existing-dirs", "Restore into directories that exist"),
        flag("overwrite", "Overwrite files, symbolic links and hard links that exist"),
        flag("overwrite-files", "Overwrite files that exist"),
        flag("overwrite-symlinks", "Overwrite symbolic links that exist"),
        flag("overwrite-hardlinks", "Overwrite hard links that exist"),
    ]
}

/// Options of what need not succeed.
pub(crate) fn ignore_options() -> [Arg; 7] {
    [
        flag("ignore-acls", "Do not restore access control lists"),
        flag("ignore-xattrs", "Do not restore extended attributes"),
        flag("ignore-fcaps", "Do not restore file capabilities"),
        flag("ignore-ownership", "Do not restore owners and groups"),
        flag("ignore-permissions", "Do not restore permissions"),
        flag("ignore-extract-device-errors", "Go on when a device can't be made"),
        flag("keep-going", "Go on after damage, and fail at the end"),
    ]
}

pub(crate) fn snapshot_or_group(id: &'static str) -> Arg {
    Arg::new(id)
        .value_name("SNAPSHOT")
        .help("TYPE/ID/TIME, or TYPE/ID for the newest finished one")
        .required(true)
}

pub(crate) fn archive_argument(help: &'static str) -> Arg {
    Arg::new("archive-name").value_name("ARCHIVE").help(help).required(true)
}

pub(crate) fn command(plugins: &Plugins) -> Command {
    Command::new("restore")
        .about("Restore an archive of a snapshot")
        .arg(snapshot_or_group("snapshot"))
        .arg(archive_argument("Such as root.pxar, drive.img, app.conf or index.json"))
        .arg(
            Arg::new("target")
                .value_name("TARGET")
                .help("Directory for a file archive, new file for others, '-' for stdout")
                .required(true)
                .value_parser(value_parser!(PathBuf)),
        )
        .arg(pattern_option())
        .args(output_options())
        .args(ignore_options())
        .arg(repository())
        .arg(namespace())
        .args(key_options())
        .args(limits())
        .arg(progress_option())
        .arg(output_format(plugins).hide(true))
}

pub(crate) fn pattern_option() -> Arg {
    option("pattern", "PATTERN", "Restore only what matches (can be repeated; later ones win)")
        .action(ArgAction::Append)
        .value_parser(value_parser!(OsString))
        .allow_hyphen_values(true)
}

/// Patterns that select; `!` in front of one takes away.
pub(crate) fn selection<'a>(patterns: impl Iterator<Item = &'a [u8]>) -> Result<PatternList> {
    let mut list = PatternList::default();
    for pattern in patterns {
        // A pattern selects where an exclude would leave out: the signs are the other way round.
        let selecting = match pattern.strip_prefix(b"!") {
            Some(rest) => rest.to_vec(),
            None => [b"!", pattern].concat(),
        };
        let shown = String::from_utf8_lossy(pattern);
        list.push(&selecting, b"")
            .map_err(|problem| anyhow!("invalid pattern '{shown}': {problem}"))?;
    }
    Ok(list)
}

pub(crate) fn patterns_of(matches: &ArgMatches) -> Result<PatternList> {
    let given = matches.get_many::<OsString>("pattern").into_iter().flatten();
    selection(given.map(|pattern| pattern.as_bytes()))
}

/// What the common options say.
pub(crate) fn output_of(matches: &ArgMatches) -> OutputOptions {
    let set = |name: &str| matches.try_get_one::<bool>(name).ok().flatten() == Some(&true);
    let all = set("overwrite");
    OutputOptions {
        allow_existing_dirs: set("allow-existing-dirs"),
        overwrite_files: all || set("overwrite-files"),
        overwrite_symlinks: all || set("overwrite-symlinks"),
        overwrite_hardlinks: all || set("overwrite-hardlinks"),
        ignore_acls: set("ignore-acls"),
        ignore_xattrs: set("ignore-xattrs"),
        ignore_fcaps: set("ignore-fcaps"),
        ignore_ownership: set("ignore-ownership"),
        ignore_permissions: set("ignore-permissions"),
        ignore_device_errors: set("ignore-extract-device-errors"),
        ..OutputOptions::default()
    }
}

pub(crate) fn run(plugins: &Plugins, matches: &ArgMatches) -> Result<()> {
    let mut parameters = CryptParameters::of(matches)?;
    let text = |name: &str| matches.get_one::<String>(name).cloned().unwrap_or_default();
    let patterns = patterns_of(matches)?;
    let store = Repository::find(matches.get_one("repository"))?.open(matches)?;
    let namespace = namespace_of(matches);
    let snapshot = find_snapshot(&store, &namespace, &text("snapshot"))?;
    let given = text("archive-name");
    let name = ArchiveName::from_user(&given)?;
    let target = matches.get_one::<PathBuf>("target").context("missing argument: target")?;
    let reader = store.sessions().open(&namespace, &snapshot)?;
    let key = parameters.unlock()?;
    let unverified = UnverifiedManifest::read(&*reader)?;
    let json = unverified.json().to_vec();
    // The key that a master key wrapped is for those who have lost theirs.
    let has_none = key.is_none() || parameters.is_default() && !unverified.is_of(key.as_deref());
    let manifest = if name == ArchiveName::wrapped_key() && has_none {
        tracing::info!(
            "Restoring encrypted key blob without original key - skipping manifest fingerprint \
             check!"
        );
        unverified.unverified()
    } else {
        verified(unverified, &parameters, key.as_ref())?
    };
    if let (Some(_), Some(line), Some(key)) = (&manifest.signature, parameters.announcement(), &key)
    {
        tracing::info!("{line}");
        tracing::info!("Fingerprint: {}", key.fingerprint().short());
    }
    if name == ArchiveName::manifest() {
        return restore_manifest(&json, target);
    }
    if name == ArchiveName::client_log() && manifest.file(&name).is_none() {
        // No manifest lists it: it came later.
        let log = read_log(&*reader, &manifest, &parameters, key.as_deref())?;
        return match target == Path::new("-") {
            true => write_out(&log),
            false => write_new_file(target, &log),
        };
    }
    let archive = ArchiveFiles::find(&plugins.types(), &manifest, &given)?;
    let content = StoredArchive::open(&reader, &archive, key.as_ref())?;
    let ArchiveFiles { name, extension, .. } = &archive;
    if target == Path::new("-") {
        if !patterns.is_empty() || is_set(matches, "keep-going") {
            bail!("--pattern and --keep-going can't be used with the target '-'");
        }
        // Without the types: a broken pipe is no success, and no hint fits.
        return content.write_out().map_err(|error| anyhow!("{error:#}"));
    }
    let request = RestoreRequest {
        options: output_of(matches),
        patterns,
        keep_going: is_set(matches, "keep-going"),
        ..RestoreRequest::default()
    };
    match plugins.reader_for(extension) {
        Some(loaded) => {
            let selects = !request.patterns.is_empty();
            let began = Instant::now();
            let extracted =
                extract(matches, loaded, content.streams(), content.source(), request, target);
            if let Err(error) = &extracted
                && !selects
                && matches!(error.downcast_ref(), Some(EngineError::Incomplete(_)))
            {
                name_lost(&reader, &manifest, key.as_ref(), &archive, target);
            }
            let summary = loaded.blamed(extracted)?;
            if selects && summary.entries == 0 {
                bail!(
                    "nothing in {name} matches --pattern - `keepwell catalog dump` shows what there is"
                );
            }
            if archive.kind() == ArchiveKind::Fixed {
                tell_image(summary.bytes, began.elapsed().as_secs_f64());
            }
            Ok(())
        }
        None => match &content {
            StoredArchive::Blob(bytes) => write_new_file(target, bytes),
            StoredArchive::Chunked(_) => bail!(
                "there is no plugin that reads '{extension}' archives: restore it to '-' to get its bytes"
            ),
        },
    }
}

/// The log that a client added later: no signature covers it.
fn read_log(
    reader: &dyn SnapshotReader,
    manifest: &Manifest,
    parameters: &CryptParameters,
    key: Option<&EncryptionKey>,
) -> Result<Vec<u8>> {
    let name = ArchiveName::client_log();
    let snapshot = reader.snapshot();
    let bytes = reader.read_file(&name).map_err(|error| match error {
        StoreError::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            anyhow!("snapshot {snapshot} has no {}", name.user_name())
        }
        other => other.into(),
    })?;
    let damaged = || format!("{snapshot}: {name}");
    let blob = keepwell_model::Blob::parse(bytes).with_context(damaged)?;
    if manifest.is_protected() && !blob.kind().is_encrypted() {
        if parameters.demands_signature() {
            bail!(
                "{name} of {snapshot} is not encrypted: leave --crypt-mode out to read it nevertheless"
            );
        }
        tracing::info!("The log is not encrypted: nobody vouches for it");
    }
    keepwell_seal::Opener::new()?.open(blob, key).with_context(damaged)
}

/// Says what the catalog lists and the target has not, after a restore that was not complete.
fn name_lost(
    reader: &Arc<dyn SnapshotReader>,
    manifest: &Manifest,
    key: Option<&Arc<EncryptionKey>>,
    archive: &ArchiveFiles,
    target: &Path,
) {
    // Only archives of one file are in a catalog.
    let [ManifestFile { name, .. }] = &archive.files[..] else { return };
    let (mut lost, mut told) = (0u64, Vec::<u8>::new());
    let walked = walk(reader, manifest, key, &mut |path, _| {
        let Some((archive, path)) = path.split_first() else { return Ok(()) };
        if archive != name.as_str().as_bytes() || path.is_empty() {
            return Ok(());
        }
        let path = path.join(&b'/');
        let is_below = path.strip_prefix(&told[..]).is_some_and(|rest| rest.starts_with(b"/"));
        if target.join(OsStr::from_bytes(&path)).symlink_metadata().is_err() {
            lost += 1;
            if lost <= LOST_TOLD_MAX && (told.is_empty() || !is_below) {
                tracing::info!("not restored: \"{}\"", shown_path(&path));
                told = path;
            }
        }
        Ok(())
    });
    match walked {
        Ok(()) if lost > 0 => tracing::info!("{lost} entries of the catalog were not restored"),
        Ok(()) => {}
        Err(error) => tracing::info!("the catalog can't tell what is missing: {error}"),
    }
}

/// Runs a restore, with progress and messages on the terminal.
pub(crate) fn extract(
    matches: &ArgMatches,
    loaded: &Loaded,
    streams: Streams,
    content: Arc<dyn ContentSource>,
    request: RestoreRequest,
    target: &Path,
) -> Result<RestoreSummary> {
    let counters = Arc::new(Counters::default());
    let total = match request.paths.is_empty() {
        true => streams.iter().filter_map(|stream| stream.size()).sum(),
        false => 0,
    };
    counters.total.store(total, std::sync::atomic::Ordering::Relaxed);
    let cancel = cancel_on_signal();
    let (report, notices) = Report::new();
    let progress = Progress::start(matches, counters.clone());
    let shower = progress.shower.clone();
    let printer = print_in_background(notices, shower.clone());
    let opened = loaded.plugin.reader(report, cancel.clone())?.open(streams);
    let outcome = opened.map_err(EngineError::from).and_then(|mut archive| {
        let told = Mutex::new(String::new());
        let restore = Restore {
            request,
            content,
            cancel: cancel.clone(),
            counters: counters.clone(),
            on_trouble: Box::new(move |text| {
                // One damaged chunk may hold many entries of a directory.
                let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
                if *told != text {
                    shower.line(&format!("error: {text}"));
                    text.clone_into(&mut *told);
                }
            }),
        };
        restore.run(&mut *archive, target)
    });
    let _ = printer.join();
    progress.finish();
    let is_going = is_set(matches, "keep-going");
    outcome.map_err(|error| interrupted(error, &cancel, is_going))
}

const KEEP_GOING: &str =
    "Use --keep-going to restore what is not damaged, and to be told what is lost.";

fn interrupted(error: EngineError, cancel: &Cancel, is_going: bool) -> anyhow::Error {
    if cancel.is_cancelled() {
        return anyhow!("interrupted: the restore is not complete");
    }
    match error {
        EngineError::Lost { .. } if !is_going => {
            anyhow!("error extracting archive - {error} - {KEEP_GOING}")
        }
        error if error.is_damage() && !is_going => anyhow!("{} - {KEEP_GOING}", chain(&error)),
        EngineError::Entry { .. } | EngineError::Lost { .. } => {
            let text = format!("error extracting archive - {error}");
            anyhow::Error::from(error).context(text)
        }
        other => other.into(),
    }
}

fn write_new_file(target: &Path, bytes: &[u8]) -> Result<()> {
    let mut options = std::fs::OpenOptions::new();
    let file = options.write(true).create_new(true).open(target);
    let mut file = file.map_err(|error| files::not_created("target file", target, &error))?;
    file.write_all(bytes).inspect_err(|_| {
        let _ = std::fs::remove_file(target);
    })?;
    Ok(())
}

/// `index.json` as it was written replaces what is there, whole or not at all.
fn restore_manifest(json: &[u8], target: &Path) -> Result<()> {
    if target == Path::new("-") {
        return write_out(json);
    }
    files::write(target, json, 0o644, files::Existing::Replace)
        .map_err(|error| files::not_created("target file", target, &error))
}

fn tell_image(bytes: u64, seconds: f64) {
    let speed = bytes as f64 / (1024.0 * 1024.0) / seconds.max(0.001);
    tracing::info!(
        "restore image complete (bytes={bytes}, duration={seconds:.2}s, speed={speed:.2}MB/s)"
    );
}
