//! `plugin test`: whether a component keeps to the contract, in each of its roles.
//!
//! It is given what hosts give: trees, archives whole and damaged, snapshots, documents. A damaged archive, or a file of
//! another kind, it may refuse with a failure; snapshots and documents it may not, and a trap is never right.

use crate::args::option_values;
use crate::plugins::Loaded;
use anyhow::{Context, Result, anyhow, bail};
use clap::ArgMatches;
use keepwell_engine::archive::RandomAccess;
use keepwell_engine::browse::ContentReader;
use keepwell_engine::input::{Directory, InputFile};
use keepwell_engine::plugin::{
    Alignment, Archive, ArchiveType, Borders, Column, Content, Decision, Document, Entry,
    EntryKind, Event, Failure, FormatEnvironment, Layout, Node, OptionKind, OptionSpec,
    OptionValue, Origin, OriginKind, PolicySnapshot, Rendering, SourceRequest,
};
use keepwell_engine::report::Report;
use keepwell_engine::restore::PlainContent;
use keepwell_engine::stream::write_archive;
use keepwell_engine::{Cancel, Counters, EngineError};
use serde_json::json;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// What was tried, and what is wrong; nothing where all is right.
pub(super) struct Finding {
    pub(super) check: String,
    pub(super) problem: Option<String>,
}

/// Tries all that a plugin offers.
/// `clash` is an option of it that a command has itself.
pub(super) fn test(loaded: &Loaded, clash: Option<(String, String)>) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let mut note = |check: String, outcome: Result<()>| {
        findings.push(Finding { check, problem: outcome.err().map(|error| format!("{error:#}")) });
    };
    note("it describes itself the same each time".into(), describes_itself(loaded, clash));
    let info = &loaded.info;
    if info.is_retention {
        for (name, options) in choices(&info.options) {
            let tried = with_defaults(&info.options, options);
            note(format!("policy with {name}"), tried.and_then(|all| policy(loaded, &all)));
        }
    }
    if info.is_formatter {
        for format in &info.formats {
            note(format!("format {format}"), formatter(loaded, format));
        }
    }
    if info.is_source {
        let work = tempfile::tempdir()?;
        make_tree(work.path())?;
        for kind in &info.archive_types {
            let archive = source(loaded, kind, work.path());
            let made = archive.as_ref().map(|_| ()).map_err(|error| anyhow!("{error:#}"));
            note(format!("source of .{}", kind.extension), made);
            let Some(made) = archive.ok().flatten().filter(|_| info.is_reader) else { continue };
            let tree = work.path().join("tree");
            let tree = (kind.origin == OriginKind::Directory).then_some(tree.as_path());
            note(format!("reader of .{}", kind.extension), reader(loaded, &made, tree));
            note(format!("reader of damaged .{}", kind.extension), damaged(loaded, &made.streams));
        }
    } else if info.is_reader {
        note("reader of rubbish".into(), damaged(loaded, &[vec![7; 5000]]));
    }
    Ok(findings)
}

fn describes_itself(loaded: &Loaded, clash: Option<(String, String)>) -> Result<()> {
    if loaded.plugin.describe()? != loaded.info {
        bail!("its description changes");
    }
    if let Some((verb, option)) = clash {
        bail!("it declares --{option}, which `{verb}` has itself");
    }
    match loaded.info.options.iter().find(|option| option.help.trim().is_empty()) {
        Some(option) => bail!("option '{}' has no help", option.name),
        None => Ok(()),
    }
}

/// No options, and each with a value.
fn choices(specs: &[OptionSpec]) -> Vec<(String, Vec<OptionValue>)> {
    let one = |spec: &OptionSpec| {
        let number = spec.minimum.unwrap_or(1).max(1).to_string();
        let value = match spec.kind {
            OptionKind::Flag => "true".into(),
            OptionKind::Integer | OptionKind::Size | OptionKind::Duration => number,
            OptionKind::Text => spec.choices.first().cloned().unwrap_or("x".into()),
            OptionKind::Pattern => "*.o".into(),
        };
        let given = OptionValue { name: spec.name.clone(), value: value.into_bytes() };
        (format!("--{}", spec.name), vec![given])
    };
    let none = ("no option".to_owned(), Vec::new());
    std::iter::once(none).chain(specs.iter().map(one)).collect()
}

/// What was given, and defaults for the rest.
fn with_defaults(specs: &[OptionSpec], given: Vec<OptionValue>) -> Result<Vec<OptionValue>> {
    let mut all = defaults(specs)?;
    all.retain(|default| given.iter().all(|given| given.name != default.name));
    all.extend(given);
    Ok(all)
}

/// A trap is a violation, any other failure an answer.
fn no_trap<T>(outcome: std::result::Result<T, Failure>) -> Result<Option<T>> {
    match outcome {
        Ok(value) => Ok(Some(value)),
        Err(trap @ Failure::Trap { .. }) => Err(trap.into()),
        Err(_) => Ok(None),
    }
}

fn policy(loaded: &Loaded, options: &[OptionValue]) -> Result<()> {
    const NOW: i64 = 1_700_000_000;
    let snapshot = |number: i64| PolicySnapshot {
        taken: NOW - number * 40_000,
        utc_offset_seconds: if number % 3 == 0 { -12 * 3600 } else { 14 * 3600 },
        finished: number % 7 != 1,
        protected: number % 11 == 0,
        size: (number % 2 == 0).then_some(u64::MAX),
        verified: [None, Some(true), Some(false)][number.unsigned_abs() as usize % 3],
        notes: "n\u{f6}te\nsecond line".into(),
        archives: vec!["root.pxar.didx".into()],
    };
    for count in [0, 1, 200] {
        let snapshots: Vec<PolicySnapshot> = (0..count).map(snapshot).collect();
        let decide = || -> Result<Vec<Decision>> {
            let mut policy = loaded.plugin.retention()?;
            Ok(policy.decide(NOW, snapshots.clone(), options.to_vec())?)
        };
        if decide()? != decide()? {
            bail!("of the same {count} snapshots it does not always keep the same");
        }
    }
    Ok(())
}

fn formatter(loaded: &Loaded, format: &str) -> Result<()> {
    let column = |key, alignment, rendering| Column { key, header: key, alignment, rendering };
    let columns = || {
        vec![
            column("name", Alignment::Left, Rendering::Text),
            column("size", Alignment::Right, Rendering::Bytes),
            column("kept", Alignment::Right, Rendering::Boolean),
        ]
    };
    let rows = json!([
        { "name": "a\nb\u{1f980}", "size": 1_500_000, "kept": true, "files": ["x", "y"] },
        { "name": "", "size": 0 },
        { "other": null },
    ]);
    let lines = json!(["one", "two\u{1b}[31m"]);
    let documents = [
        (rows.clone(), Layout::Table(columns())),
        (json!([]), Layout::Table(columns())),
        (rows[0].clone(), Layout::Properties(columns())),
        (json!([["a", "b"], ["c"]]), Layout::Grid(vec![Alignment::Left, Alignment::Right])),
        (lines, Layout::Message),
        (json!("text"), Layout::Message),
    ];
    for (data, layout) in documents {
        for plain in [true, false] {
            let display = (!plain).then(|| data.clone());
            let document = Document { data: data.clone(), display, layout: layout.clone() };
            let environment = FormatEnvironment {
                format: format.to_owned(),
                borders: !plain,
                header: plain,
                unicode: !plain,
                terminal_width: (!plain).then_some(20),
            };
            let render = || -> Result<Vec<u8>> {
                let mut formatter = loaded.plugin.formatter()?;
                let defaults = defaults(&loaded.options)?;
                Ok(formatter.render(&document, &environment, defaults)?)
            };
            let rendered = render().with_context(|| format!("document {data}"))?;
            if rendered != render()? {
                bail!("it does not always print the same");
            }
        }
    }
    Ok(())
}

/// What counts where nothing is given.
fn defaults(specs: &[OptionSpec]) -> Result<Vec<OptionValue>> {
    option_values(&ArgMatches::default(), specs)
}

/// A tree with a bit of everything, and a file.
fn make_tree(work: &Path) -> Result<()> {
    let tree = work.join("tree");
    std::fs::create_dir_all(tree.join("a/b/c"))?;
    std::fs::create_dir(tree.join("void"))?;
    let long = "n".repeat(250);
    for (name, size) in
        [("empty", 0), ("a/one", 1), ("a/b/block", 512), ("a/b/c/large", 300_000), (&long, 10)]
    {
        let bytes: Vec<u8> = (0..size).map(|at: u32| (at * 7 % 251) as u8).collect();
        std::fs::write(tree.join(name), bytes)?;
    }
    std::fs::write(tree.join("odd \n \u{e4} name"), "odd")?;
    std::fs::hard_link(tree.join("a/one"), tree.join("z-again"))?;
    std::os::unix::fs::symlink("a/../nowhere", tree.join("link"))?;
    std::fs::copy(tree.join("a/b/c/large"), work.join("file"))?;
    Ok(())
}

/// Bytes of an archive.
#[derive(Clone, Default)]
struct Memory {
    bytes: Arc<Mutex<Vec<u8>>>,
    /// it was opened, and has come to its end
    is_flushed: Arc<AtomicBool>,
}

impl From<Vec<u8>> for Memory {
    fn from(bytes: Vec<u8>) -> Self {
        Self { bytes: Arc::new(Mutex::new(bytes)), is_flushed: Arc::default() }
    }
}

impl Memory {
    fn bytes(&self) -> std::sync::MutexGuard<'_, Vec<u8>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write for Memory {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.bytes().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.is_flushed.store(true, Ordering::Relaxed);
        Ok(())
    }
}

impl RandomAccess for Memory {
    fn size(&self) -> Option<u64> {
        Some(self.bytes().len() as u64)
    }

    fn read_at(&self, offset: u64, length: u32) -> std::result::Result<Vec<u8>, Failure> {
        let bytes = self.bytes();
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
        let to = from.saturating_add(length as usize).min(bytes.len());
        Ok(bytes[from..to].to_vec())
    }
}

/// An archive, and how many entries its source says it has.
#[derive(PartialEq)]
struct Made {
    streams: Vec<Vec<u8>>,
    entries: u64,
}

/// The archive of the tree or the file; none where the plugin may refuse to make it.
fn source(loaded: &Loaded, kind: &ArchiveType, work: &Path) -> Result<Option<Made>> {
    let make = || -> Result<std::result::Result<Made, EngineError>> {
        let origin = match kind.origin {
            OriginKind::Directory => Origin::Directory(Directory::open_root(&work.join("tree"))?),
            _ => Origin::File(Arc::new(InputFile::open_named(&work.join("file"))?)),
        };
        let (report, _notices) = Report::new();
        let mut source = loaded.plugin.source(report.clone(), Cancel::default())?;
        let request = SourceRequest {
            archive_name: "test".into(),
            archive_extension: kind.extension.clone(),
            suffixes: kind.suffixes(),
            options: defaults(&loaded.options)?,
            borders: Borders::Stay,
            entries_max: 1 << 20,
            previous: Vec::new(),
        };
        let outs: [Memory; STREAMS_MAX] = std::array::from_fn(|_| Memory::default());
        let boxed = outs.iter().map(|out| Box::new(out.clone()) as Box<dyn Write + Send>);
        let written = write_archive(
            &mut *source,
            origin,
            request,
            boxed.collect(),
            report,
            Cancel::default(),
            Arc::new(Counters::default()),
        );
        let opened = outs.iter().filter(|out| out.is_flushed.load(Ordering::Relaxed));
        let streams = opened.map(|out| std::mem::take(&mut *out.bytes())).collect();
        Ok(written.map(|summary| Made { streams, entries: summary.entries }))
    };
    // Files of its own kind only, or rights that it was not granted.
    let may_refuse = kind.origin != OriginKind::Directory || !loaded.info.capabilities.is_empty();
    let made = match make()? {
        Ok(made) => made,
        Err(EngineError::Plugin(failure))
            if !matches!(failure, Failure::Trap { .. }) && may_refuse =>
        {
            return Ok(None);
        }
        Err(error) => return Err(error.into()),
    };
    let is_nothing = made.streams.iter().all(Vec::is_empty) && made.entries == 0;
    if kind.origin == OriginKind::Directory && is_nothing {
        bail!("it makes nothing of a tree");
    }
    match make()? {
        Ok(again) if again == made => Ok(Some(made)),
        // What a command prints may change.
        Ok(_) if !loaded.info.capabilities.is_empty() => Ok(Some(made)),
        Ok(_) => bail!("the same tree does not always make the same archive"),
        Err(error) => Err(error.into()),
    }
}

/// Of directories in each other; those of the tree are fewer.
const DEPTH_MAX: usize = 100;
/// Of one archive: what the host takes.
const STREAMS_MAX: usize = 4;

type Names = Vec<Vec<u8>>;

fn open(
    loaded: &Loaded,
    streams: &[Vec<u8>],
) -> Result<std::result::Result<Box<dyn Archive>, Failure>> {
    let (report, _notices) = Report::new();
    let mut reader = loaded.plugin.reader(report, Cancel::default())?;
    Ok(reader.open(readable(streams)))
}

fn readable(streams: &[Vec<u8>]) -> Vec<Arc<dyn RandomAccess>> {
    let stream = |bytes: &Vec<u8>| Arc::new(Memory::from(bytes.clone())) as Arc<dyn RandomAccess>;
    streams.iter().map(stream).collect()
}

/// Everything below a directory, by the random access that mounts use.
fn descend(
    archive: &mut dyn Archive,
    directory: Node,
    path: &Names,
    found: &mut BTreeMap<Names, Entry>,
) -> Result<()> {
    if path.len() > DEPTH_MAX {
        bail!("its directories have no end");
    }
    let mut after = None;
    loop {
        // Few at a time, so that it has to go on.
        let children = archive.children(directory, after, 2)?;
        if children.len() > 2 {
            bail!("it returned {} children where 2 were asked for", children.len());
        }
        if children.is_empty() {
            return Ok(());
        }
        for child in children {
            let entry = child.map_err(|(_, failure)| failure)?;
            let path: Names = path.iter().cloned().chain([entry.name.clone()]).collect();
            after = Some(entry.node);
            if archive.child(directory, &entry.name)?.as_ref() != Some(&entry) {
                bail!("'{}' is not found by its name", shown(&path));
            }
            if archive.entry(entry.node)?.metadata != entry.metadata {
                bail!("'{}' is not found by its node", shown(&path));
            }
            if entry.metadata.kind == EntryKind::Directory {
                descend(archive, entry.node, &path, found)?;
            }
            if found.insert(path.clone(), entry).is_some() {
                bail!("'{}' is there twice", shown(&path));
            }
        }
    }
}

fn shown(path: &Names) -> String {
    String::from_utf8_lossy(&path.join(&b'/')).escape_debug().to_string()
}

fn reader(loaded: &Loaded, made: &Made, tree: Option<&Path>) -> Result<()> {
    let Made { streams, entries } = made;
    let mut archive = open(loaded, streams)??;
    let root = archive.root()?;
    let is_directory = root.metadata.kind == EntryKind::Directory;
    if !is_directory && root.metadata.kind != EntryKind::File {
        bail!("its root is a {:?}", root.metadata.kind);
    }
    let mut found = BTreeMap::new();
    if is_directory {
        descend(&mut *archive, root.node, &Vec::new(), &mut found)?;
        if archive.child(root.node, b"not there")?.is_some() {
            bail!("it finds what is not there");
        }
    }
    let walked = walked(&mut *archive)?;
    if walked.keys().ne(found.keys()) {
        bail!("a walk meets other entries than its directories have");
    }
    let content = PlainContent(readable(streams));
    if !is_directory {
        return read_whole(&mut *archive, &content, &root, "the file").map(|_| ());
    }
    // The root may count.
    if *entries > found.len() as u64 + 1 {
        bail!("of {entries} entries that its source says there are it shows {}", found.len());
    }
    let Some(tree) = tree else { return Ok(()) };
    for (path, entry) in &found {
        let there = tree.join(std::str::from_utf8(&path.join(&b'/'))?);
        let is_plain = matches!(entry.content, Content::Stored(_) | Content::Computed);
        if entry.metadata.kind == EntryKind::File && is_plain {
            let stored = read_whole(&mut *archive, &content, entry, &shown(path))?;
            if std::fs::read(&there).ok().as_ref() != Some(&stored) {
                bail!("'{}' is not what it was", shown(path));
            }
        }
    }
    Ok(())
}

fn read_whole(
    archive: &mut dyn Archive,
    content: &PlainContent,
    entry: &Entry,
    shown: &str,
) -> Result<Vec<u8>> {
    let mut stored = Vec::new();
    let mut reader = ContentReader::new(archive, content, entry);
    reader.read_to_end(&mut stored).map_err(|error| anyhow!("'{shown}': {error}"))?;
    if stored.len() as u64 != entry.metadata.size {
        bail!("'{shown}' has not the size that it should have");
    }
    Ok(stored)
}

fn walked(archive: &mut dyn Archive) -> Result<BTreeMap<Names, Entry>> {
    let (mut found, mut path) = (BTreeMap::new(), Names::new());
    let mut note = |path: Names, entry: Entry| match found.insert(path.clone(), entry) {
        Some(_) => Err(anyhow!("its walk meets '{}' twice", shown(&path))),
        None => Ok(()),
    };
    archive.start_walk()?;
    loop {
        let events = archive.walk(3)?;
        if events.is_empty() {
            return Ok(found);
        }
        for event in events {
            match event {
                Event::Leave => {
                    path.pop();
                }
                Event::Enter(entry) => {
                    path.push(entry.name.clone());
                    if path.len() > DEPTH_MAX {
                        bail!("the directories of its walk have no end");
                    }
                    note(path.clone(), entry)?;
                }
                Event::Leaf(entry) => {
                    let path = path.iter().cloned().chain([entry.name.clone()]).collect();
                    note(path, entry)?;
                }
            }
        }
    }
}

/// Cut off and with wrong bytes: failures, and no traps.
fn damaged(loaded: &Loaded, streams: &[Vec<u8>]) -> Result<()> {
    for number in 0..60usize {
        let mut all = streams.to_vec();
        let count = all.len().max(1);
        let Some(broken) = all.get_mut(number % count) else { return Ok(()) };
        let at = broken.len() * number / 60;
        match number % 3 {
            0 => broken.truncate(at),
            1 => broken.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 0xff),
            _ => broken[at..].iter_mut().take(8).for_each(|byte| *byte = 0xff),
        }
        let Some(mut archive) = no_trap(open(loaded, &all)?)? else { continue };
        let Some(root) = no_trap(archive.root())? else { continue };
        no_trap(archive.children(root.node, None, 100))?;
        no_trap(archive.entry(Node { at: u64::MAX, end: 3 }))?;
        if no_trap(archive.start_walk())?.is_some() {
            for _ in 0..1000 {
                match no_trap(archive.walk(100))? {
                    Some(events) if !events.is_empty() => {}
                    _ => break,
                }
            }
        }
    }
    Ok(())
}
