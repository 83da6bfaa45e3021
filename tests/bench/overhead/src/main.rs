//! What it costs that plugins are WebAssembly: the built-in ones as components in the host, against the same code
//! compiled natively, in nanoseconds for each entry; and the memory of an instance.
//!
//! `cargo run --release -p keepwell-bench-overhead [ENTRIES]`. The source can't run natively: its baseline is what the
//! host does for it alone, reading the directory and opening each file.

#![allow(clippy::print_stdout, reason = "it prints results")]

use anyhow::{Context, Result, anyhow};
use keepwell_engine::archive::RandomAccess;
use keepwell_engine::input::Directory;
use keepwell_engine::plugin::{
    Borders, Document, Failure, FormatEnvironment, Layout, OptionValue, Origin, PolicySnapshot,
    SourceRequest,
};
use keepwell_engine::report::Report;
use keepwell_engine::stream::write_archive;
use keepwell_engine::{Cancel, Counters};
use keepwell_sdk::archive::{Archive, Bytes, Reader, Walk};
use keepwell_sdk::formatter::{self, Formatter};
use keepwell_sdk::retention::{Policy, snapshot_at};
use keepwell_wasm::{Limits, Plugin, Runtime};
use plugin_json::Json;
use plugin_keep::Keep;
use plugin_pxar::Pxar;
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// The best of several runs: what else the machine does only makes it slower.
const RUNS: usize = 15;
/// Entries asked for at a time, as the host does.
const BATCH: u32 = 256;

fn best(mut run: impl FnMut() -> Result<()>) -> Result<Duration> {
    let mut best = Duration::MAX;
    for _ in 0..RUNS {
        let began = Instant::now();
        run()?;
        best = best.min(began.elapsed());
    }
    Ok(best)
}

fn report(what: &str, entries: usize, native: Duration, wasm: Duration) {
    let each = |time: Duration| time.as_nanos() as f64 / entries as f64;
    let (native, wasm) = (each(native), each(wasm));
    println!(
        "{what:34} {native:8.0} ns {wasm:8.0} ns  {:+7.0} ns  {:5.2}",
        wasm - native,
        wasm / native
    );
}

fn plugin(runtime: &Runtime, package: &str) -> Result<Plugin> {
    let mut all = keepwell_builtin::COMPONENTS.iter();
    let (_, bytes) = all.find(|(name, _)| *name == package).context("no such plugin")?;
    Ok(runtime.plugin(package, bytes))
}

/// Of this process, in bytes.
fn resident() -> Result<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let pages: u64 = statm.split(' ').nth(1).context("statm")?.parse()?;
    Ok(pages * 4096)
}

struct Memory(Arc<Vec<u8>>);

impl RandomAccess for Memory {
    fn size(&self) -> Option<u64> {
        Some(self.0.len() as u64)
    }

    fn read_at(&self, offset: u64, length: u32) -> Result<Vec<u8>, Failure> {
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(self.0.len());
        let to = from.saturating_add(length as usize).min(self.0.len());
        Ok(self.0[from..to].to_vec())
    }
}

#[derive(Clone, Default)]
struct Output(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Output {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().map_err(|_| std::io::Error::other("poisoned"))?.extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn archive(source: &Plugin, tree: &Path) -> Result<Vec<u8>> {
    let (report, _notices) = Report::new();
    let request = SourceRequest {
        archive_name: "bench".into(),
        archive_extension: "pxar".into(),
        suffixes: vec![".pxar".into()],
        options: Vec::new(),
        borders: Borders::Stay,
        entries_max: u64::MAX,
        previous: Vec::new(),
    };
    let out = Output::default();
    write_archive(
        &mut *source.source(report.clone(), Cancel::default())?,
        Origin::Directory(Directory::open_root(tree)?),
        request,
        vec![Box::new(out.clone())],
        report,
        Cancel::default(),
        Arc::new(Counters::default()),
    )?;
    let mut made = out.0.lock().map_err(|_| anyhow!("poisoned"))?;
    Ok(std::mem::take(&mut *made))
}

/// What the host does of an archive's making, without a plugin.
fn look(tree: &Path) -> Result<()> {
    let mut root = Directory::open_root(tree)?;
    loop {
        let children = root.read(BATCH)?;
        if children.is_empty() {
            return Ok(());
        }
        for child in &children {
            root.open_child(child)?;
        }
    }
}

fn source_and_reader(runtime: &Runtime, entries: usize) -> Result<()> {
    let tree = tempfile::tempdir()?;
    for number in 0..entries {
        std::fs::write(tree.path().join(format!("file-{number:08}")), b"")?;
    }
    let pxar = plugin(runtime, "plugin-pxar")?;
    let bytes = archive(&pxar, tree.path())?;
    let native = best(|| look(tree.path()))?;
    let wasm = best(|| archive(&pxar, tree.path()).map(|_| ()))?;
    report("source: an empty file of pxar", entries, native, wasm);

    let native = best(|| {
        let failed = |failure: keepwell_sdk::Failure| anyhow!("{}", failure.text().to_owned());
        let streams = vec![Bytes::from(bytes.clone())];
        let opened = <Pxar as Reader>::Archive::open(streams).map_err(failed)?;
        let walk = opened.walk().map_err(failed)?;
        while !walk.next(BATCH).map_err(failed)?.is_empty() {}
        Ok(())
    })?;
    let shared = Arc::new(bytes);
    let (events, _notices) = Report::new();
    let mut reader = pxar.reader(events, Cancel::default())?;
    let wasm = best(|| {
        let mut opened = reader.open(vec![Arc::new(Memory(shared.clone()))])?;
        opened.start_walk()?;
        while !opened.walk(BATCH)?.is_empty() {}
        Ok(())
    })?;
    report("reader: an entry of a walk, pxar", entries, native, wasm);

    let before = resident()?;
    let began = Instant::now();
    let count = 1000u32;
    let mut held = Vec::new();
    for _ in 0..count {
        held.push(reader.open(vec![Arc::new(Memory(shared.clone()))])?);
    }
    let each = (resident()? - before) / u64::from(count);
    println!(
        "an instance with an open archive: {} KiB, made in {} µs",
        each >> 10,
        (began.elapsed() / count).as_micros()
    );
    Ok(())
}

fn policy(runtime: &Runtime, entries: usize) -> Result<()> {
    let times = || (0..entries as i64).rev().map(|number| number * 3600);
    let snapshots: Vec<_> = times().map(snapshot_at).collect();
    let options = HashMap::from([("keep-daily".to_owned(), 100u64)]);
    let native = best(|| {
        let decided = Keep::decide(0, snapshots.clone(), options.clone());
        decided.map(|_| ()).map_err(|failure| anyhow!("{}", failure.text().to_owned()))
    })?;
    let snapshot = |taken| PolicySnapshot {
        taken,
        utc_offset_seconds: 0,
        finished: true,
        protected: false,
        size: None,
        verified: None,
        notes: String::new(),
        archives: Vec::new(),
    };
    let snapshots: Vec<_> = times().map(snapshot).collect();
    let options = vec![OptionValue { name: "keep-daily".into(), value: b"100".to_vec() }];
    let mut keep = plugin(runtime, "plugin-keep")?.retention()?;
    let wasm = best(|| Ok(keep.decide(0, snapshots.clone(), options.clone()).map(|_| ())?))?;
    report("policy: a snapshot of keep", entries, native, wasm);
    Ok(())
}

fn format(runtime: &Runtime, entries: usize) -> Result<()> {
    let row = |number: usize| serde_json::json!({ "backup-id": "web1", "size": number });
    let data = serde_json::Value::Array((0..entries).map(row).collect());
    let text = data.to_string();
    let native = best(|| {
        let document = formatter::Document {
            data: text.clone(),
            display: None,
            layout: formatter::Layout::Message,
        };
        let environment = formatter::Environment {
            format: "json".into(),
            borders: true,
            header: true,
            unicode: true,
            terminal_width: None,
        };
        let rendered = Json::render(document, environment, keepwell_sdk::options::NoOptions {});
        rendered.map(|_| ()).map_err(|failure| anyhow!("{}", failure.text().to_owned()))
    })?;
    let document = Document { data, display: None, layout: Layout::Message };
    let environment = FormatEnvironment {
        format: "json".into(),
        borders: true,
        header: true,
        unicode: true,
        terminal_width: None,
    };
    let mut json = plugin(runtime, "plugin-json")?.formatter()?;
    let wasm = best(|| Ok(json.render(&document, &environment, Vec::new()).map(|_| ())?))?;
    report("format: a row of json", entries, native, wasm);
    Ok(())
}

fn main() -> Result<()> {
    let entries = match std::env::args().nth(1) {
        Some(given) => given.parse().context("ENTRIES is a number")?,
        None => 20_000,
    };
    let runtime = Runtime::new(None, Limits::default(), None)?;
    println!("{:34} {:>11} {:>11}  {:>10}  ratio", "", "native", "wasm", "more");
    policy(&runtime, entries)?;
    format(&runtime, entries)?;
    source_and_reader(&runtime, entries)
}
