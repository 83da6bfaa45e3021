//! `diff`: what changed between two snapshots.

use super::opened::{ArchiveFiles, Opened, StoredArchive, open_with};
use super::restore::snapshot_or_group;
use crate::args::{limits, namespace, option, output_options, repository};
use crate::encryption::key_options;
use crate::output::{check_format, column, left, print};
use crate::plugins::Plugins;
use anyhow::{Result, bail};
use clap::{ArgMatches, Command};
use keepwell_engine::Cancel;
use keepwell_engine::diff::{Change, Difference, Side, diff};
use keepwell_engine::plugin::{Alignment, Document, Entry, EntryKind, Layout, Rendering};
use keepwell_engine::report::shown_path;
use keepwell_engine::restore::chain;
use keepwell_model::ArchiveName;
use keepwell_model::names::ArchiveKind;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

pub(crate) fn command(plugins: &Plugins) -> Command {
    Command::new("diff")
        .about("Show what changed between two snapshots")
        .arg(snapshot_or_group("before"))
        .arg(snapshot_or_group("after").help("The other one"))
        .arg(option("archive", "ARCHIVE", "Only this archive, such as root.pxar"))
        .arg(repository())
        .arg(namespace())
        .args(key_options())
        .args(limits())
        .args(output_options(plugins))
}

pub(crate) fn run(plugins: &Plugins, matches: &ArgMatches) -> Result<()> {
    check_format(plugins, matches)?;
    let text = |name: &str| matches.get_one::<String>(name).map_or("", String::as_str);
    let only = matches.get_one::<String>("archive");
    let [before, after] = Opened::all_of(matches, [text("before"), text("after")])?;
    let types = plugins.types();
    let all = |opened: &Opened| ArchiveFiles::all(&types, &opened.manifest);
    let (ones, others) = (all(&before), all(&after));
    let mut names: BTreeSet<&str> =
        ones.iter().chain(&others).map(|archive| archive.name.as_str()).collect();
    // What is derived from the others.
    for derived in [ArchiveName::catalog(), ArchiveName::wrapped_key()] {
        names.remove(derived.user_name());
    }
    if let Some(only) = only {
        let found =
            [&before, &after].map(|opened| ArchiveFiles::find(&types, &opened.manifest, only));
        let wanted: Vec<String> = found.into_iter().flatten().map(|archive| archive.name).collect();
        names.retain(|name| wanted.iter().any(|wanted| wanted == name));
        if names.is_empty() {
            bail!("neither snapshot has an archive '{only}'");
        }
    }
    let mut items = Vec::new();
    for name in names {
        let of = |archives: &[ArchiveFiles]| archives.iter().find(|a| a.name == name).cloned();
        let sides = [(&before, of(&ones)), (&after, of(&others))];
        compare(plugins, sides, name, &mut items)?;
    }
    let unreadable = items.iter().filter(|item| item.contains_key("problem")).count();
    print(plugins, matches, &document(items))?;
    match unreadable {
        0 => Ok(()),
        1 => bail!("one entry could not be compared: a backup is damaged there"),
        _ => bail!("{unreadable} entries could not be compared: a backup is damaged there"),
    }
}

/// Adds what differs in one archive.
fn compare(
    plugins: &Plugins,
    [before, after]: [(&Opened, Option<ArchiveFiles>); 2],
    archive: &str,
    items: &mut Vec<Map<String, Value>>,
) -> Result<()> {
    let open = |(opened, files): &(&Opened, Option<ArchiveFiles>)| {
        let Some(files) = files else { return Ok(None) };
        let stored = StoredArchive::open(&opened.reader, files, opened.key.as_ref())?;
        anyhow::Ok(Some((stored.size(), stored)))
    };
    let sums = |files: &ArchiveFiles| -> Vec<_> {
        files.files.iter().map(|file| (file.checksum, file.size)).collect()
    };
    if before.1.as_ref().map(sums) == after.1.as_ref().map(sums) {
        return Ok(());
    }
    let files = before.1.as_ref().or(after.1.as_ref());
    let Some((extension, kind)) = files.map(|files| (files.extension.clone(), files.kind())) else {
        return Ok(());
    };
    let mut tell_whole = |change: &str, what: &[&str], sizes: [Option<u64>; 2]| {
        let mut item = item(archive, "", change, what);
        put_sizes(&mut item, sizes);
        items.push(item);
    };
    let ((size, one), (other_size, other)) = match (open(&before)?, open(&after)?) {
        (Some(one), Some(other)) => (one, other),
        (one, other) => {
            let change = if one.is_some() { "removed" } else { "added" };
            tell_whole(change, &[], [one, other].map(|side| side.map(|(size, _)| size)));
            return Ok(());
        }
    };
    let loaded = plugins.reader_for(&extension);
    let (Some(loaded), StoredArchive::Chunked(left), StoredArchive::Chunked(right)) =
        (loaded.filter(|_| kind == ArchiveKind::Dynamic), &one, &other)
    else {
        // Something without entries.
        match one.has_same_bytes(&other) {
            Ok(true) => {}
            Ok(false) => tell_whole("modified", &["content"], [Some(size), Some(other_size)]),
            Err(error) if error.is_damage() => {
                tell_whole("unreadable", &[], [Some(size), Some(other_size)]);
                put_problem(items, &chain(&error));
            }
            Err(error) => return Err(error.into()),
        }
        return Ok(());
    };
    let open = |side: &StoredArchive| open_with(&loaded.plugin, side.streams(), Cancel::default());
    let ((_reader, opened), (_other_reader, other_opened)) = (open(&one)?, open(&other)?);
    let mut left = Side { archive: opened, stored: left.clone() };
    let mut right = Side { archive: other_opened, stored: right.clone() };
    let mut tell = |difference: Difference| {
        items.push(of_difference(archive, &difference));
        Ok(())
    };
    loaded.blamed(diff(&mut left, &mut right, &mut tell).map_err(Into::into))
}

fn item(archive: &str, path: &str, change: &str, what: &[&str]) -> Map<String, Value> {
    let item = json!({ "archive": archive, "path": path, "change": change, "what": what });
    match item {
        Value::Object(item) => item,
        _ => Map::new(),
    }
}

fn put_sizes(item: &mut Map<String, Value>, [before, after]: [Option<u64>; 2]) {
    for (key, size) in [("size-before", before), ("size-after", after)] {
        if let Some(size) = size {
            item.insert(key.into(), size.into());
        }
    }
}

/// Of the item told last.
fn put_problem(items: &mut [Map<String, Value>], problem: &str) {
    if let Some(item) = items.last_mut() {
        item.insert("problem".into(), problem.into());
    }
}

/// As listings of files call them.
fn kind_name(kind: EntryKind) -> &'static str {
    match kind {
        EntryKind::Directory => "directory",
        EntryKind::File => "file",
        EntryKind::Symlink => "symlink",
        EntryKind::BlockDevice => "block device",
        EntryKind::CharacterDevice => "character device",
        EntryKind::Fifo => "fifo",
        EntryKind::Socket => "socket",
    }
}

fn of_difference(archive: &str, difference: &Difference) -> Map<String, Value> {
    let change = match difference.change {
        Change::Added => "added",
        Change::Removed => "removed",
        Change::Modified => "modified",
        Change::Metadata => "metadata",
        Change::Unreadable => "unreadable",
    };
    let path = format!("/{}", shown_path(&difference.path));
    let mut item = item(archive, &path, change, &difference.what);
    let (before, after) = (difference.before.as_ref(), difference.after.as_ref());
    let size = |entry: Option<&Entry>| {
        let metadata = entry.map(|entry| &entry.metadata);
        metadata.filter(|found| found.kind == EntryKind::File).map(|found| found.size)
    };
    put_sizes(&mut item, [size(before), size(after)]);
    for (key, entry) in [("mtime-before", before), ("mtime-after", after)] {
        if let Some(entry) = entry {
            item.insert(key.into(), entry.metadata.modified.seconds.into());
        }
    }
    for (key, entry) in [("type-before", before), ("type-after", after)] {
        if let Some(entry) = entry {
            item.insert(key.into(), kind_name(entry.metadata.kind).into());
        }
    }
    if let Some(problem) = &difference.problem {
        item.insert("problem".into(), problem.clone().into());
    }
    item
}

/// A changed type as what became of what.
fn told(item: &Map<String, Value>, what: &str) -> String {
    let kind = |key| item.get(key).and_then(Value::as_str).unwrap_or_default();
    match what {
        "type" => format!("{} is now {}", kind("type-before"), kind("type-after")),
        _ => what.to_owned(),
    }
}

fn document(items: Vec<Map<String, Value>>) -> Document {
    let rows = items.iter().map(|item| {
        let mut row = item.clone();
        let what = item.get("what").and_then(Value::as_array).into_iter().flatten();
        let what: Vec<String> =
            what.filter_map(Value::as_str).map(|what| told(item, what)).collect();
        let what =
            item.get("problem").and_then(Value::as_str).map_or(what.join(", "), str::to_owned);
        row.insert("what".into(), what.into());
        Value::Object(row)
    });
    let rows = rows.collect();
    let size = |key| column(key, Alignment::Right, Rendering::Bytes);
    let columns = vec![
        left("change"),
        left("archive"),
        left("path"),
        size("size-before"),
        size("size-after"),
        left("what"),
    ];
    let data = items.into_iter().map(Value::Object).collect();
    Document { data, display: Some(Value::Array(rows)), layout: Layout::Table(columns) }
}
