//! `backup`.

use super::cancel_on_signal;
use crate::args::{
    check_options, flag, is_set, limits, namespace, namespace_of, number, option, option_values,
    output_format, parsed, plugin_options, repository,
};
use crate::encryption::{CryptParameters, key_options, master_options};
use crate::notices::print_in_background;
use crate::output::{check_format, message, print, wanted_format};
use crate::plugins::{Loaded, Plugins};
use crate::progress::{Progress, Shower, progress_option};
use crate::repository::Repository;
use crate::store::Store;
use crate::terminal::{CTIME, local_time, node_name, now, owner};
use anyhow::{Context, Result, anyhow, bail};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use keepwell_engine::archive::RandomAccess;
use keepwell_engine::backup::{ArchiveSummary, Backup, BackupSummary, BackupTarget};
use keepwell_engine::input::{Directory, InputFile};
use keepwell_engine::plugin::{
    ArchiveType, Borders, EntryKind, Failure, OptionValue, Origin, OriginKind, SourceRequest,
};
use keepwell_engine::report::{Omission, Report};
use keepwell_engine::restore::chain;
use keepwell_engine::reuse::previous_streams;
use keepwell_engine::{Cancel, Counters, EngineError};
use keepwell_model::size::human;
use keepwell_model::{
    ArchiveLabel, ArchiveName, BackupId, BackupTime, BackupType, GroupId, Namespace, SnapshotId,
};
use keepwell_seal::{EncryptionKey, Protection};
use serde_json::{Value, json};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

pub(crate) fn command(plugins: &Plugins) -> Command {
    let types = plugins.extensions().join(", ");
    let options = plugins.options(&|info| info.is_source || info.is_formatter);
    Command::new("backup")
        .about("Back up one or more archives as a new snapshot")
        .arg(
            Arg::new("backupspec")
                .value_name("NAME.TYPE:PATH")
                .help(format!("Archive to make, and of what; types: {types}"))
                .required(true)
                .action(ArgAction::Append)
                .value_parser(value_parser!(std::ffi::OsString)),
        )
        .arg(repository())
        .arg(namespace())
        .arg(
            option("backup-id", "ID", "Name of the group [default: this host's name]")
                .value_parser(parsed::<BackupId>()),
        )
        .arg(
            option("backup-type", "TYPE", "Type of the group: host, vm or ct")
                .value_parser(
                    PossibleValuesParser::new(["host", "vm", "ct"])
                        .try_map(|text| text.parse::<BackupType>()),
                )
                .default_value("host"),
        )
        .arg(
            option("backup-time", "EPOCH", "Time of the snapshot, in seconds [default: now]")
                .value_parser(value_parser!(i64))
                .allow_hyphen_values(true),
        )
        .arg(number(
            "chunk-size",
            "KiB",
            "Chunk size: a power of two from 64 to 4096 [default: 4096]",
        ))
        .arg(
            option(
                "include-dev",
                "PATH",
                "Also enter the file system mounted there (can be repeated)",
            )
            .action(ArgAction::Append)
            .value_parser(value_parser!(PathBuf)),
        )
        .arg(flag("all-file-systems", "Enter all mounted file systems but virtual ones"))
        .arg(
            number("entries-max", "N", "Most entries held in memory at a time")
                .value_parser(value_parser!(u64).range(1..))
                .default_value("1048576"),
        )
        .arg(flag("dry-run", "Only say what would be done; touches nothing"))
        .arg(flag("strict", "Fail when something could not be read; the snapshot stays"))
        .args(plugin_options(&options))
        .args(key_options())
        .args(master_options())
        .args(limits())
        .arg(progress_option())
        .arg(output_format(plugins))
}

/// One archive to make.
struct Spec<'a> {
    label: ArchiveLabel,
    archive_type: &'a ArchiveType,
    loaded: &'a Loaded,
    path: PathBuf,
    options: Vec<OptionValue>,
}

impl Spec<'_> {
    /// `root.pxar`
    fn target(&self) -> String {
        format!("{}.{}", self.label, self.archive_type.extension)
    }
}

fn parse_spec<'a>(plugins: &'a Plugins, given: &std::ffi::OsString) -> Result<Spec<'a>> {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let shown = given.to_string_lossy();
    let types = || plugins.extensions().join(", ");
    let wrong = || {
        anyhow!(
            "parameter verification failed - 'backupspec': '{shown}' is not like NAME.TYPE:PATH \
             (types: {})",
            types()
        )
    };
    let bytes = given.as_bytes();
    let colon = bytes.iter().position(|byte| *byte == b':').ok_or_else(wrong)?;
    let (target, path) = (&bytes[..colon], &bytes[colon + 1..]);
    let target = std::str::from_utf8(target).map_err(|_| wrong())?;
    let (label, extension) = target.rsplit_once('.').ok_or_else(wrong)?;
    let (loaded, archive_type) = plugins.source_for(extension).ok_or_else(wrong)?;
    let label = label.parse().with_context(wrong)?;
    if path.is_empty() {
        return Err(wrong());
    }
    let path = PathBuf::from(std::ffi::OsString::from_vec(path.to_vec()));
    Ok(Spec { label, archive_type, loaded, path, options: Vec::new() })
}

/// The source, of the kind that the archive type wants; nothing is read yet.
fn check_source(spec: &Spec<'_>) -> Result<()> {
    let path = spec.path.display();
    let metadata = std::fs::metadata(&spec.path)
        .map_err(|error| anyhow!("unable to access '{path}' - {error}"))?;
    let kind = metadata.file_type();
    let (fits, expected) = match spec.archive_type.origin {
        OriginKind::Directory => (kind.is_dir(), "directory"),
        OriginKind::File => (kind.is_file(), "regular file"),
        OriginKind::FileOrBlockDevice => (
            kind.is_file() || kind.is_block_device() || kind.is_fifo(),
            "file, block device or pipe",
        ),
    };
    if !fits {
        bail!("got unexpected file type (expected {expected}): '{path}'");
    }
    if spec.archive_type.origin == OriginKind::FileOrBlockDevice
        && kind.is_file()
        && metadata.len() == 0
    {
        bail!("got zero-sized file '{path}'");
    }
    Ok(())
}

/// Where the repository lies below a directory that is backed up, if it does.
fn repository_below(root: &std::path::Path, repository: &Repository) -> Result<Option<Vec<u8>>> {
    use std::os::unix::ffi::OsStrExt;
    let Repository::Local { path, .. } = repository else { return Ok(None) };
    let (Ok(root_path), Ok(path)) = (root.canonicalize(), path.canonicalize()) else {
        return Ok(None);
    };
    match path.strip_prefix(&root_path) {
        Ok(rest) if rest.as_os_str().is_empty() => {
            bail!(
                "'{}' is the repository itself: choose another one for its backup",
                root.display()
            )
        }
        Ok(rest) => Ok(Some(rest.as_os_str().as_bytes().to_vec())),
        Err(_) => Ok(None),
    }
}

fn open_origin(spec: &Spec<'_>, repository: &Repository, report: &Report) -> Result<Origin> {
    let path = spec.path.display();
    let denied = |error: std::io::Error| anyhow!("unable to access '{path}' - {error}");
    Ok(match spec.archive_type.origin {
        OriginKind::Directory => {
            let mut directory = Directory::open_root(&spec.path).map_err(denied)?;
            if let Some(path) = repository_below(&spec.path, repository)? {
                // It would hold itself, and grow with every backup.
                report.skip(&path, Omission::Repository, "");
                directory.hide(&path);
            }
            Origin::Directory(directory)
        }
        _ => {
            let file = InputFile::open_named(&spec.path).map_err(denied)?;
            if file.kind == EntryKind::BlockDevice && file.size == 0 {
                bail!("got zero-sized file '{path}'");
            }
            Origin::File(Arc::new(file))
        }
    })
}

fn borders(matches: &ArgMatches) -> Result<Borders> {
    let listed: Vec<&PathBuf> = matches.get_many("include-dev").into_iter().flatten().collect();
    if is_set(matches, "all-file-systems") {
        if !listed.is_empty() {
            bail!("option 'all-file-systems' conflicts with option 'include-dev'");
        }
        return Ok(Borders::CrossAll);
    }
    if listed.is_empty() {
        return Ok(Borders::Stay);
    }
    let device = |path: &&PathBuf| {
        let metadata = std::fs::metadata(path);
        let shown = path.display();
        Ok(metadata.map_err(|error| anyhow!("unable to access '{shown}' - {error}"))?.dev())
    };
    Ok(Borders::CrossListed(listed.iter().map(device).collect::<Result<_>>()?))
}

fn chunk_bytes(matches: &ArgMatches) -> Result<Option<u32>> {
    let Some(kib) = matches.get_one::<u64>("chunk-size") else { return Ok(None) };
    if !kib.is_power_of_two() || !(64..=4096).contains(kib) {
        bail!(
            "Got unsupported chunk size '{}': give a power of two from 64 to 4096 (KiB)",
            kib.saturating_mul(1024)
        );
    }
    Ok(Some((kib * 1024) as u32))
}

struct Plan<'a> {
    repository: Repository,
    namespace: Namespace,
    snapshot: SnapshotId,
    specs: Vec<Spec<'a>>,
    borders: Borders,
    chunk_bytes: Option<u32>,
    entries_max: u64,
    parameters: CryptParameters,
    started: Instant,
}

impl Plan<'_> {
    /// What goes where, for a line that says so.
    fn describe(&self, spec: &Spec<'_>) -> String {
        let (noun, path, target) = (&spec.archive_type.noun, spec.path.display(), spec.target());
        // How archives of other types are kept is their plugins' business.
        let stored = match &*spec.archive_type.extension {
            "pxar" | "img" | "conf" | "log" => ArchiveName::from_user(&target).ok(),
            _ => None,
        };
        let stored = stored.map_or(target, |name| name.to_string());
        format!("{noun} '{path}' to '{}' as {stored}", self.repository)
    }
}

fn plan<'a>(plugins: &'a Plugins, matches: &ArgMatches) -> Result<Plan<'a>> {
    let given = matches.get_many::<std::ffi::OsString>("backupspec").into_iter().flatten();
    let mut specs = given.map(|given| parse_spec(plugins, given)).collect::<Result<Vec<_>>>()?;
    for (position, spec) in specs.iter().enumerate() {
        if specs[..position].iter().any(|other| other.target() == spec.target()) {
            bail!("got target twice: '{}'", spec.target());
        }
    }
    specs.iter().try_for_each(check_source)?;
    check_options(matches, &plugins.options(&|info| info.is_source))?;
    for spec in &mut specs {
        spec.options = option_values(matches, &spec.loaded.options)?;
    }
    let id = match matches.get_one::<BackupId>("backup-id") {
        Some(id) => id.clone(),
        None => node_name().parse().context("this host's name is no backup id: use --backup-id")?,
    };
    let kind = matches.get_one("backup-type").copied().unwrap_or(BackupType::Host);
    let time = matches.get_one::<i64>("backup-time").copied().unwrap_or_else(now);
    let snapshot = SnapshotId { group: GroupId { kind, id }, time: BackupTime::from_unix(time)? };
    let repository = Repository::find(matches.get_one("repository"))?;
    for spec in specs.iter().filter(|spec| spec.archive_type.origin == OriginKind::Directory) {
        repository_below(&spec.path, &repository)?;
    }
    let namespace = namespace_of(matches);
    if !namespace.is_root() && repository.is_missing() {
        bail!("namespace '{namespace}' not found: there is no repository '{repository}' yet");
    }
    Ok(Plan {
        repository,
        namespace,
        snapshot,
        specs,
        borders: borders(matches)?,
        chunk_bytes: chunk_bytes(matches)?,
        entries_max: matches.get_one("entries-max").copied().unwrap_or(1 << 20),
        parameters: CryptParameters::for_backup(matches)?,
        started: Instant::now(),
    })
}

pub(crate) fn run(plugins: &Plugins, matches: &ArgMatches) -> Result<()> {
    check_format(plugins, matches)?;
    let mut plan = plan(plugins, matches)?;
    // A bar would run over the prompt for a password.
    let shower = Shower::plain();
    announce(&plan, &shower);
    let keys = plan.parameters.prepare(&|text| shower.line(text))?;
    let counters = Arc::new(Counters::default());
    let cancel = cancel_on_signal();
    let (report, notices) = Report::new();
    let progress = Progress::start(matches, counters.clone());
    let shower = progress.shower.clone();
    let printer = print_in_background(notices, shower.clone());
    let outcome = if is_set(matches, "dry-run") {
        drop(report);
        dry_run(matches, &plan, &shower).map(|()| None)
    } else {
        with_store(&plan, matches, &shower, |store| {
            back_up(store, &plan, keys, report, cancel.clone(), counters, &shower).map(Some)
        })
    };
    let _ = printer.join();
    progress.finish();
    let Some((archives, summary)) = outcome.map_err(|error| interrupted(error, &cancel))? else {
        return Ok(());
    };
    // The bar is gone.
    conclude(&plan, &summary, &Shower::plain());
    if wanted_format(plugins, matches) != "text" {
        print(plugins, matches, &message(summary_json(&plan, &archives, &summary), ""))?;
    }
    if is_set(matches, "strict") && summary.trouble_count > 0 {
        bail!(
            "{} entries could not be backed up as they are (--strict); the snapshot is there",
            summary.trouble_count
        );
    }
    Ok(())
}

fn interrupted(error: anyhow::Error, cancel: &Cancel) -> anyhow::Error {
    // The server may have made it.
    let is_undecided = error
        .chain()
        .any(|cause| matches!(cause.downcast_ref(), Some(keepwell_transport::Error::Undecided(_))));
    match cancel.is_cancelled() && !is_undecided {
        true => anyhow!("interrupted: no snapshot was made"),
        false => error,
    }
}

fn announce(plan: &Plan<'_>, shower: &Shower) {
    let prefix =
        if plan.namespace.is_root() { String::new() } else { format!("[{}]:", plan.namespace) };
    shower.line(&format!("Starting backup: {prefix}{}", plan.snapshot));
    shower.line(&format!("Client name: {}", node_name()));
    shower.line(&format!("Starting backup protocol: {}", local_time(now(), CTIME)));
}

fn dry_run(matches: &ArgMatches, plan: &Plan<'_>, shower: &Shower) -> Result<()> {
    if let Some(store) = plan.repository.open_for_dry_run(matches)? {
        store.groups(&plan.namespace)?;
    }
    for spec in &plan.specs {
        shower.line(&format!("Would upload {}", plan.describe(spec)));
    }
    shower.line("dry-run: no upload happened");
    Ok(())
}

/// Opens the repository for `work`. One that was made for it does not stay if nothing came of it.
fn with_store<T>(
    plan: &Plan<'_>,
    matches: &ArgMatches,
    shower: &Shower,
    work: impl FnOnce(&Arc<Store>) -> Result<T>,
) -> Result<T> {
    let is_new = plan.repository.is_missing();
    let store = plan.repository.open_or_create(matches, &|text| shower.line(text))?;
    let store = Arc::new(store);
    let outcome = work(&store);
    if outcome.is_err() && is_new {
        // It has 65,536 directories: that takes seconds.
        shower.line(&format!(
            "Nothing came of it: removing datastore '{}' again, if it is empty",
            plan.repository
        ));
        if !store.discard_unused() {
            shower.line("It is not empty, or in use: it stays");
        }
    }
    outcome
}

/// The previous archive's streams, for sources that keep their archives in parts.
fn previous_of(
    store: &Arc<Store>,
    plan: &Plan<'_>,
    backup: &Backup,
    spec: &Spec<'_>,
    key: Option<&Arc<EncryptionKey>>,
) -> Vec<Arc<dyn RandomAccess>> {
    let files = backup.previous_files(&spec.label, &spec.archive_type.parts);
    let Some(snapshot) = backup.previous().filter(|_| !files.is_empty()).cloned() else {
        return Vec::new();
    };
    let (store, namespace) = (store.clone(), plan.namespace.clone());
    let open = move || Ok(store.sessions().open(&namespace, &snapshot)?);
    previous_streams(files, key, Box::new(open))
}

fn back_up(
    store: &Arc<Store>,
    plan: &Plan<'_>,
    (protection, wrapped_key): (Protection, Option<Vec<u8>>),
    report: Report,
    cancel: Cancel,
    counters: Arc<Counters>,
    shower: &Shower,
) -> Result<(Vec<(String, ArchiveSummary)>, BackupSummary)> {
    let key = protection.encryption().cloned();
    let target = BackupTarget {
        namespace: plan.namespace.clone(),
        snapshot: plan.snapshot.clone(),
        owner: owner()?,
        protection,
        chunk_bytes: plan.chunk_bytes,
    };
    let mut backup =
        Backup::begin(store.sessions(), target, report.clone(), cancel.clone(), counters)?;
    let problem = backup.previous_problem();
    match backup.previous().or(problem.map(|(snapshot, _)| snapshot)) {
        Some(previous) => {
            let time = local_time(previous.time.unix(), CTIME);
            shower.line(&format!("Downloading previous manifest ({time})"));
        }
        None => shower.line("No previous manifest available."),
    }
    if let Some((_, problem)) = problem {
        shower.line(&format!("Couldn't re-use previous manifest - {}", chain(problem)));
    }
    let mut archives = Vec::new();
    for spec in &plan.specs {
        shower.line(&format!("Upload {}", plan.describe(spec)));
        let began = Instant::now();
        report.begin_archive(spec.target());
        let request = SourceRequest {
            archive_name: spec.label.to_string(),
            archive_extension: spec.archive_type.extension.clone(),
            suffixes: spec.archive_type.suffixes(),
            options: spec.options.clone(),
            borders: plan.borders.clone(),
            entries_max: plan.entries_max,
            previous: previous_of(store, plan, &backup, spec, key.as_ref()),
        };
        let mut source = spec.loaded.plugin.source(report.clone(), cancel.clone())?;
        let origin = open_origin(spec, &plan.repository, &report)?;
        let summary = backup.add_archive(&mut *source, &spec.label, origin, request);
        let summary = summary.map_err(|error| match error {
            EngineError::Plugin(Failure::Unsupported(problem)) => {
                anyhow!("{problem}: '{}' - choose another source", spec.path.display())
            }
            other => other.into(),
        })?;
        if summary.chunks > 0 {
            tell_speed(&spec.target(), &summary, began.elapsed().as_secs_f64(), shower);
        }
        archives.push((spec.target(), summary));
    }
    if let Some(bytes) = backup.finish_catalog()? {
        shower.line(&format!("Uploaded backup catalog ({})", human(bytes)));
    }
    if let Some(wrapped) = wrapped_key {
        let name = ArchiveName::wrapped_key();
        shower.line(&format!("Upload RSA encoded key to '{}' as {name}", plan.repository));
        backup.add_wrapped_key(&wrapped)?;
    }
    let summary = backup.finish()?;
    Ok((archives, summary))
}

fn tell_speed(target: &str, summary: &ArchiveSummary, seconds: f64, shower: &Shower) {
    let ArchiveSummary { bytes, new_bytes, stored_bytes, .. } = summary;
    shower.line(&format!(
        "{target}: had to backup {} of {} (compressed {}) in {seconds:.2}s",
        human(*new_bytes),
        human(*bytes),
        human(*stored_bytes)
    ));
    let speed = if seconds > 0.0 { *new_bytes as f64 / seconds } else { 0.0 };
    shower.line(&format!("{target}: average backup speed: {}/s", human(speed as u64)));
    if summary.reused_bytes > 0 {
        shower.line(&format!(
            "{target}: reused {} from previous snapshot for unchanged files ({} chunks)",
            human(summary.reused_bytes),
            summary.reused_chunks
        ));
    }
    let reused = bytes.saturating_sub(*new_bytes);
    if reused > 0 && *bytes > 1 << 20 {
        let percent = reused as f64 * 100.0 / *bytes as f64;
        let reused = human(reused);
        shower.line(&format!(
            "{target}: backup was done incrementally, reused {reused} ({percent:.1}%)"
        ));
    }
}

fn conclude(plan: &Plan<'_>, summary: &BackupSummary, shower: &Shower) {
    let mut text = String::new();
    if summary.trouble_count > 0 {
        text += &format!("Skipped or changed while reading: {} entries\n", summary.trouble_count);
        let troubles = summary.skipped.iter().filter(|skipped| !skipped.reason.is_intended());
        for skipped in troubles.take(20) {
            text += &format!("  \"{}\": {}\n", skipped.path, reason(skipped));
        }
        if summary.trouble_count > 20 {
            text += &format!("  … and {} more\n", summary.trouble_count - 20);
        }
    }
    text += &format!("Duration: {:.2}s\n", plan.started.elapsed().as_secs_f64());
    text += &format!("End Time: {}\n", local_time(now(), CTIME));
    shower.line(text.trim_end());
}

fn reason(skipped: &keepwell_engine::report::Skipped) -> String {
    let reason = serde_json::to_value(skipped.reason).unwrap_or_default();
    match (reason.as_str().unwrap_or_default(), skipped.detail.as_str()) {
        (reason, "") => reason.to_owned(),
        (_, detail) => detail.to_owned(),
    }
}

fn summary_json(
    plan: &Plan<'_>,
    archives: &[(String, ArchiveSummary)],
    summary: &BackupSummary,
) -> Value {
    let sum =
        |field: fn(&ArchiveSummary) -> u64| archives.iter().map(|(_, a)| field(a)).sum::<u64>();
    let each: Vec<Value> = archives
        .iter()
        .map(|(name, archive)| {
            json!({
                "name": name,
                "files": archive.entries,
                "bytes": archive.bytes,
                "new-bytes": archive.new_bytes,
                "stored-bytes": archive.stored_bytes,
                "chunks": archive.chunks,
                "new-chunks": archive.new_chunks,
            })
        })
        .collect();
    let seconds = (plan.started.elapsed().as_secs_f64() * 1000.0).round() / 1000.0;
    json!({
        "snapshot": plan.snapshot.to_string(),
        "namespace": plan.namespace.to_string(),
        "bytes": sum(|archive| archive.bytes),
        "new-bytes": sum(|archive| archive.new_bytes),
        "stored-bytes": sum(|archive| archive.stored_bytes),
        "chunks": sum(|archive| archive.chunks),
        "new-chunks": sum(|archive| archive.new_chunks),
        "files": sum(|archive| archive.entries),
        "archives": each,
        "skipped": summary.skipped,
        "skipped-count": summary.skipped_count,
        "seconds": seconds,
    })
}
