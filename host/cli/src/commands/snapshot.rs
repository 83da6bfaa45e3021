//! `snapshot`: list, files, forget, upload-log, notes, protected.

use super::list::user_names;
use crate::args::{namespace, namespace_of, output_options, parsed, repository};
use crate::encryption::{CryptParameters, key_options};
use crate::output::{column, left, message, print, right};
use crate::plugins::Plugins;
use crate::repository::Repository;
use crate::store::Store;
use anyhow::{Context, Result, anyhow, bail};
use clap::{Arg, ArgMatches, Command, value_parser};
use keepwell_engine::plugin::{Alignment, Document, Layout, Rendering};
use keepwell_engine::snapshot::UnverifiedManifest;
use keepwell_model::{GroupId, SnapshotId};
use keepwell_seal::Sealer;
use serde_json::{Value, json};
use std::io::Read;
use std::path::PathBuf;

/// What a server takes.
const LOG_BYTES_MAX: u64 = 16 << 20;

pub(crate) fn snapshot_argument() -> Arg {
    Arg::new("snapshot")
        .value_name("SNAPSHOT")
        .help("TYPE/ID/TIME, such as host/web1/2024-01-31T12:00:00Z")
        .required(true)
        .value_parser(parsed::<SnapshotId>())
}

pub(crate) fn group_argument() -> Arg {
    Arg::new("group")
        .value_name("GROUP")
        .help("TYPE/ID, such as host/web1")
        .required(true)
        .value_parser(parsed::<GroupId>())
}

pub(crate) fn command(plugins: &Plugins) -> Command {
    Command::new("snapshot")
        .about("List, change and remove snapshots")
        .infer_subcommands(true)
        .subcommand_required(true)
        .subcommand(list_command(plugins, "list"))
        .subcommand(files_command(plugins))
        .subcommand(forget_command())
        .subcommand(upload_log_command())
        .subcommand(
            Command::new("notes")
                .about("Show or change the notes of a snapshot")
                .infer_subcommands(true)
                .subcommand_required(true)
                .subcommand(with_snapshot("show", "Show the notes").args(output_options(plugins)))
                .subcommand(with_snapshot("update", "Replace the notes").arg(
                    Arg::new("notes").value_name("NOTES").help("The new text").required(true),
                )),
        )
        .subcommand(
            Command::new("protected")
                .about("Show or change whether a snapshot is protected from removal")
                .infer_subcommands(true)
                .subcommand_required(true)
                .subcommand(
                    with_snapshot("show", "Show the protection").args(output_options(plugins)),
                )
                .subcommand(
                    with_snapshot("update", "Protect it or not").arg(
                        Arg::new("protected")
                            .value_name("BOOL")
                            .help("true or false")
                            .required(true)
                            .value_parser(|text: &str| {
                                crate::words::parse_bool(text).ok_or("use true or false")
                            }),
                    ),
                ),
        )
}

fn with_snapshot(name: &'static str, about: &'static str) -> Command {
    Command::new(name).about(about).arg(snapshot_argument()).arg(repository()).arg(namespace())
}

pub(crate) fn list_command(plugins: &Plugins, name: &'static str) -> Command {
    Command::new(name)
        .about("List snapshots")
        .arg(
            Arg::new("group")
                .value_name("GROUP")
                .help("Only those of TYPE/ID")
                .value_parser(parsed::<GroupId>()),
        )
        .arg(repository())
        .arg(namespace())
        .args(output_options(plugins))
}

pub(crate) fn files_command(plugins: &Plugins) -> Command {
    with_snapshot("files", "List the files of a snapshot").args(output_options(plugins))
}

pub(crate) fn forget_command() -> Command {
    with_snapshot("forget", "Remove a snapshot")
}

pub(crate) fn upload_log_command() -> Command {
    with_snapshot("upload-log", "Add a log to a snapshot, as client.log.blob")
        .arg(
            Arg::new("logfile")
                .value_name("LOGFILE")
                .help("File to add")
                .required(true)
                .value_parser(value_parser!(PathBuf)),
        )
        .args(key_options())
}

pub(crate) fn run(plugins: &Plugins, matches: &ArgMatches) -> Result<()> {
    match matches.subcommand() {
        Some(("list", matches)) => list(plugins, matches),
        Some(("files", matches)) => files(plugins, matches),
        Some(("forget", matches)) => forget(matches),
        Some(("upload-log", matches)) => upload_log(matches),
        Some(("notes", matches)) => match matches.subcommand() {
            Some(("show", matches)) => show_notes(plugins, matches),
            Some(("update", matches)) => update_notes(matches),
            _ => bail!("use show or update"),
        },
        Some(("protected", matches)) => match matches.subcommand() {
            Some(("show", matches)) => show_protected(plugins, matches),
            Some(("update", matches)) => update_protected(matches),
            _ => bail!("use show or update"),
        },
        _ => bail!("use list, files, forget, upload-log, notes or protected"),
    }
}

fn open(matches: &ArgMatches) -> Result<Store> {
    Repository::find(matches.get_one("repository"))?.open(matches)
}

/// The snapshot that was named; clap has made sure that there is one.
pub(crate) fn snapshot_of(matches: &ArgMatches) -> Result<&SnapshotId> {
    matches.get_one("snapshot").ok_or_else(|| anyhow::anyhow!("missing argument: snapshot"))
}

pub(crate) fn list(plugins: &Plugins, matches: &ArgMatches) -> Result<()> {
    let store = open(matches)?;
    let group = matches.get_one::<GroupId>("group");
    let mut items = store.snapshots(&namespace_of(matches), group)?;
    items
        .sort_by_key(|item| (format!("{}/{}", item.backup_type, item.backup_id), item.backup_time));
    let rows: Vec<Value> = items
        .iter()
        .map(|item| {
            Ok(json!({
                "snapshot": item.snapshot()?.to_string(),
                "size": item.size,
                "files": user_names(item.files.iter().map(|file| file.filename.as_str())),
            }))
        })
        .collect::<Result<_>>()?;
    let size = column("size", Alignment::Right, Rendering::Bytes);
    let document = Document {
        data: serde_json::to_value(&items)?,
        display: Some(rows.into()),
        layout: Layout::Table(vec![left("snapshot"), size, left("files")]),
    };
    print(plugins, matches, &document)
}

pub(crate) fn files(plugins: &Plugins, matches: &ArgMatches) -> Result<()> {
    let store = open(matches)?;
    let items = store.files(&namespace_of(matches), snapshot_of(matches)?)?;
    let mut sorted = items.clone();
    sorted.sort_by(|a, b| a.filename.cmp(&b.filename));
    let columns = vec![left("filename"), left("crypt-mode"), right("size")];
    let document = Document {
        data: serde_json::to_value(&items)?,
        display: Some(serde_json::to_value(&sorted)?),
        layout: Layout::Table(columns),
    };
    print(plugins, matches, &document)
}

pub(crate) fn forget(matches: &ArgMatches) -> Result<()> {
    open(matches)?.forget(&namespace_of(matches), snapshot_of(matches)?)
}

/// The log is encrypted where the mode says so; nobody signs it.
pub(crate) fn upload_log(matches: &ArgMatches) -> Result<()> {
    let mut parameters = CryptParameters::of(matches)?;
    let snapshot = snapshot_of(matches)?;
    let path = matches.get_one::<PathBuf>("logfile").context("missing argument: logfile")?;
    let shown = path.display();
    let denied = |error: std::io::Error| anyhow!("unable to read log file '{shown}' - {error}");
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(denied)?;
    file.take(LOG_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(denied)?;
    if bytes.len() as u64 > LOG_BYTES_MAX {
        bail!("log file '{shown}' has more than 16 MiB: a snapshot takes no larger one");
    }
    let store = open(matches)?;
    let (protection, _) = parameters.prepare(&|text| tracing::debug!("{text}"))?;
    if let Some(key) = protection.key() {
        // Only the snapshot's own key can be the right one for its log.
        let reader = store.sessions().open(&namespace_of(matches), snapshot)?;
        UnverifiedManifest::read(&*reader)?.verify(Some(key))?;
    }
    let key = protection.encryption().map(|key| &**key);
    if key.is_none() {
        let reader = store.sessions().open(&namespace_of(matches), snapshot)?;
        if UnverifiedManifest::read(&*reader)?.unverified().is_protected() {
            tracing::warn!("the snapshot has a key, but this log is stored as it is");
        }
    }
    let log = Sealer::new()?.seal(&bytes, key)?;
    store.add_log(&namespace_of(matches), snapshot, log)
}

fn show_notes(plugins: &Plugins, matches: &ArgMatches) -> Result<()> {
    let notes = open(matches)?.notes(&namespace_of(matches), snapshot_of(matches)?)?;
    print(plugins, matches, &message(json!({ "notes": notes }), notes.as_str()))
}

fn update_notes(matches: &ArgMatches) -> Result<()> {
    let store = open(matches)?;
    let snapshot = snapshot_of(matches)?;
    let notes = matches.get_one::<String>("notes").cloned().unwrap_or_default();
    store.set_notes(&namespace_of(matches), snapshot, &notes)
}

fn show_protected(plugins: &Plugins, matches: &ArgMatches) -> Result<()> {
    let protected = open(matches)?.protected(&namespace_of(matches), snapshot_of(matches)?)?;
    let document = message(json!({ "protected": protected }), protected.to_string());
    print(plugins, matches, &document)
}

fn update_protected(matches: &ArgMatches) -> Result<()> {
    let protected = matches.get_one::<bool>("protected").copied().unwrap_or(false);
    let namespace = namespace_of(matches);
    open(matches)?.set_protected(&namespace, snapshot_of(matches)?, protected)
}
