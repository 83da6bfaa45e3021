//! `find`: which snapshots of a group hold a file. Only their catalogs are read.

use super::list::user_name;
use super::opened::Opened;
use super::restore::selection;
use crate::args::{namespace, namespace_of, option, output_options, parsed, repository};
use crate::encryption::{CryptParameters, key_options};
use crate::output::{check_format, column, left, print};
use crate::plugins::{Plugins, Types};
use crate::repository::Repository;
use crate::terminal::{CTIME, local_time, node_name};
use anyhow::{Result, anyhow, bail};
use clap::{Arg, ArgMatches, Command, value_parser};
use keepwell_engine::pattern::{PatternList, Verdict};
use keepwell_engine::plugin::{Alignment, Document, Layout, Rendering};
use keepwell_engine::report::shown_path;
use keepwell_model::catalog::CatalogKind;
use keepwell_model::names::ArchiveKind;
use keepwell_model::{ArchiveName, GroupId, SnapshotId};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

pub(crate) fn command(plugins: &Plugins) -> Command {
    Command::new("find")
        .about("Find files in all snapshots of a group")
        .long_about(
            "Find files in all snapshots of a group.\n\nOnly the catalogs are read. They know size and time \
             of files, so 'same' and 'changed' mean those; of other things a catalog tells only that they \
             are there. `keepwell diff` compares what is in files.",
        )
        .arg(
            Arg::new("pattern")
                .value_name("PATTERN")
                .help("As for `restore --pattern`: '*.conf', '/etc/**/*.conf', 'dir/'")
                .required(true)
                .value_parser(value_parser!(OsString)),
        )
        .arg(
            Arg::new("group")
                .value_name("GROUP")
                .help("TYPE/ID [default: host/ and this host's name]")
                .value_parser(parsed::<GroupId>()),
        )
        .arg(option("archive", "ARCHIVE", "Only in this archive, such as root.pxar"))
        .arg(repository())
        .arg(namespace())
        .args(key_options())
        .args(output_options(plugins))
}

/// A pattern for something to find.
pub(crate) fn searched(pattern: &[u8]) -> Result<PatternList> {
    let is_dot = |part: &[u8]| part == b"." || part == b"..";
    let finds_nothing = pattern.iter().all(|byte| *byte == b'/')
        || pattern.starts_with(b"!")
        || pattern.split(|byte| *byte == b'/').any(is_dot);
    if finds_nothing {
        let pattern = shown_path(pattern);
        bail!(
            "the pattern '{pattern}' finds nothing: give names from the root, such as '/etc/*.conf'"
        );
    }
    selection(std::iter::once(pattern))
}

/// Where a file was found: an archive as users call it, and the path in it.
type Place = (String, Vec<u8>);

struct Found {
    snapshot: SnapshotId,
    kind: CatalogKind,
    /// against the snapshot before, of those that have a catalog
    change: Option<&'static str>,
}

#[derive(Default)]
struct Search {
    patterns: PatternList,
    /// as users call it
    archive: Option<String>,
    /// by place, oldest first
    found: BTreeMap<Place, Vec<Found>>,
}

pub(crate) fn run(plugins: &Plugins, matches: &ArgMatches) -> Result<()> {
    check_format(plugins, matches)?;
    let mut parameters = CryptParameters::of(matches)?;
    let Some(pattern) = matches.get_one::<OsString>("pattern") else { bail!("missing argument") };
    let types = plugins.types();
    let archive = matches.get_one::<String>("archive");
    let mut search = Search {
        patterns: searched(pattern.as_bytes())?,
        archive: archive.map(|wanted| types.name_of_whole(&user_name(wanted))),
        ..Search::default()
    };
    let group = match matches.get_one::<GroupId>("group") {
        Some(group) => group.clone(),
        None => format!("host/{}", node_name()).parse()?,
    };
    let store = Repository::find(matches.get_one("repository"))?.open(matches)?;
    let namespace = namespace_of(matches);
    let (catalog, manifest) = (ArchiveName::catalog(), ArchiveName::manifest());
    let (catalog, manifest) = (catalog.as_str(), manifest.as_str());
    let mut items = store.snapshots(&namespace, Some(&group))?;
    if items.is_empty() {
        bail!("there is no backup of {group}: `keepwell list` shows what there is");
    }
    let whole = |name: &str| types.name_of_whole(&user_name(name));
    if let Some(wanted) = &search.archive {
        let files = items.iter().flat_map(|item| &item.files).map(|file| &file.filename);
        let mut found = files.filter(|file| whole(file) == *wanted).peekable();
        if found.peek().is_none() {
            bail!("no snapshot of {group} has an archive '{wanted}'");
        }
        if !found.any(|file| file.ends_with(ArchiveKind::Dynamic.extension()) && *file != catalog) {
            bail!("'{wanted}' is one file and has no names to find");
        }
    }
    items.sort_by_key(|item| item.backup_time);
    let is_part = |file: &str| whole(file) != user_name(file);
    items.retain(|item| {
        let has = |name: &str| item.files.iter().any(|file| file.filename == name);
        let is_listed = has(catalog) || item.files.iter().any(|file| is_part(&file.filename));
        is_listed && has(manifest)
    });
    if items.is_empty() {
        bail!("no snapshot of {group} has a catalog: they hold no file archives");
    }
    let key = parameters.unlock()?;
    let (mut before, mut unread) = (None, 0);
    for item in items {
        let snapshot = item.snapshot()?;
        let reader = store.sessions().open(&namespace, &snapshot).map_err(Into::into);
        let opened = reader.and_then(|reader| Opened::new(reader, &parameters, key.clone()));
        let searched =
            opened.and_then(|opened| search.search(plugins, &types, &opened, before.as_ref()));
        match searched {
            Ok(()) => before = Some(snapshot),
            // The others may be sound, or have another key.
            Err(error) => {
                unread += 1;
                // Some errors begin with the snapshot.
                let (prefix, error) = (format!("{snapshot}: "), format!("{error:#}"));
                tracing::info!("{prefix}{}", error.strip_prefix(&prefix).unwrap_or(&error));
            }
        }
    }
    print(plugins, matches, &search.document())?;
    match unread {
        0 => Ok(()),
        1 => Err(anyhow!("one snapshot could not be searched")),
        _ => Err(anyhow!("{unread} snapshots could not be searched")),
    }
}

impl Search {
    fn search(
        &mut self,
        plugins: &Plugins,
        types: &Types,
        opened: &Opened,
        before: Option<&SnapshotId>,
    ) -> Result<()> {
        let (mut new, mut archive) = (Vec::new(), String::new());
        opened.walk_names(plugins, &mut |path, entry| {
            let Some((file, path)) = path.split_first() else { return Ok(()) };
            if path.is_empty() {
                archive = types.name_of_whole(&user_name(&String::from_utf8_lossy(file)));
            }
            if path.is_empty() || self.archive.as_ref().is_some_and(|wanted| *wanted != archive) {
                return Ok(());
            }
            let whole = [b"/", &path.join(&b'/')[..]].concat();
            let is_directory = matches!(entry.kind, CatalogKind::Directory { .. });
            if self.patterns.judge(&whole, is_directory) == Verdict::Include {
                new.push(((archive.clone(), whole), entry.kind.clone()));
            }
            Ok(())
        })?;
        for (place, kind) in new {
            let rows = self.found.entry(place).or_default();
            let last = rows.last().filter(|last| Some(&last.snapshot) == before);
            let change = match last {
                None => Some("new"),
                Some(last) => change(&last.kind, &kind),
            };
            rows.push(Found { snapshot: opened.reader.snapshot().clone(), kind, change });
        }
        Ok(())
    }

    fn document(&self) -> Document {
        let (mut data, mut rows) = (Vec::new(), Vec::new());
        for ((archive, path), found) in &self.found {
            for Found { snapshot, kind, change } in found {
                let path = shown_path(path);
                let mut item = json!({
                    "archive": archive,
                    "path": path,
                    "snapshot": snapshot.to_string(),
                    "type": char::from(kind.letter()).to_string(),
                    "change": change,
                });
                let mut row = item.clone();
                if let CatalogKind::File { size, modified } = kind {
                    item["size"] = (*size).into();
                    item["mtime"] = (*modified).into();
                    row["size"] = (*size).into();
                    row["modified"] = local_time(*modified, CTIME).into();
                }
                data.push(item);
                rows.push(row);
            }
        }
        let columns = vec![
            left("archive"),
            left("path"),
            left("snapshot"),
            left("type"),
            column("size", Alignment::Right, Rendering::Bytes),
            left("modified"),
            left("change"),
        ];
        let display = Some(Value::Array(rows));
        Document { data: data.into(), display, layout: Layout::Table(columns) }
    }
}

/// As far as a catalog tells: of what is no file, nothing but that it is there.
fn change(before: &CatalogKind, after: &CatalogKind) -> Option<&'static str> {
    match (before, after) {
        (CatalogKind::File { .. }, CatalogKind::File { .. }) if before == after => Some("same"),
        (CatalogKind::File { .. }, CatalogKind::File { .. }) => Some("changed"),
        // One more name of a file may be its first one in the next snapshot.
        (CatalogKind::File { .. }, CatalogKind::HardLink)
        | (CatalogKind::HardLink, CatalogKind::File { .. }) => None,
        _ if before.letter() == after.letter() => None,
        _ => Some("changed"),
    }
}
