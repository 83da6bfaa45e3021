//! What a running plugin can reach: its handles, its limits, and how it is stopped.

#![allow(unreachable_pub, reason = "generated code re-exports the handles")]

use crate::archive::process::{Process, Teller};
use crate::archive::web::Fetched;
use crate::bindings::archive::ArchivePlugin;
use crate::bindings::archive::keepwell::types::log;
use crate::{Limits, LoadError, Plugin, Rights, Runtime, TICK, Web, wasi};
use keepwell_engine::Cancel;
use keepwell_engine::archive::RandomAccess;
use keepwell_engine::input::{Directory, InputFile};
use keepwell_engine::pattern::PatternList;
use keepwell_engine::plugin::Failure;
use keepwell_engine::report::{Notice, Report};
use keepwell_engine::sink::Sink;
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tempfile::TempDir;
use wasmtime::component::{Component, HasSelf, Linker, Resource, ResourceTable};
use wasmtime::{ResourceLimiter, Store, StoreLimits, StoreLimitsBuilder, UpdateDeadline};

pub struct DirectoryHandle(pub(crate) Directory);
pub struct FileHandle(pub(crate) Arc<InputFile>, pub(crate) Option<Arc<Unfinished>>);
pub struct PatternHandle(pub(crate) PatternList);
pub struct StreamHandle(pub(crate) u32);
pub struct BytesHandle(pub(crate) Arc<dyn RandomAccess>);
pub struct ProcessHandle(pub(crate) Process);
pub struct ResponseHandle(pub(crate) Fetched);

/// Where a pipe comes from: whether what was spliced is whole is known only when that has finished.
pub(crate) struct Unfinished {
    pub(crate) what: String,
    has_succeeded: AtomicBool,
}

impl Unfinished {
    pub(crate) fn new(what: &str) -> Arc<Self> {
        Arc::new(Self { what: what.to_owned(), has_succeeded: AtomicBool::new(false) })
    }

    fn has_succeeded(&self) -> bool {
        self.has_succeeded.load(Ordering::Relaxed)
    }

    pub(crate) fn succeed(&self) {
        self.has_succeeded.store(true, Ordering::Relaxed);
    }
}

/// The host's side of one instance.
pub(crate) struct State {
    plugin: String,
    limits: Limiter,
    pub(crate) table: ResourceTable,
    /// there only while a source writes
    pub(crate) sink: Option<Sink>,
    report: Option<Report>,
    /// of a source while it writes; nothing else has any
    pub(crate) rights: Option<Rights>,
    /// what its streams may be called
    pub(crate) suffixes: Vec<String>,
    /// what was spliced from pipes
    pub(crate) spliced: Vec<Arc<Unfinished>>,
    /// answers of web servers that it holds
    pub(crate) responses: usize,
    /// threads of bodies whose answers it dropped
    pub(crate) pumping: Vec<JoinHandle<std::io::Result<()>>>,
    pub(crate) web: Option<Arc<dyn Web>>,
    pub(crate) cancel: Cancel,
    /// made when it is first asked for
    pub(crate) scratch: Option<TempDir>,
    /// refusals that were told
    refused: HashSet<String>,
    /// things of WASI that the plugin holds, and how many it may
    pub(crate) stubs: usize,
    pub(crate) handles_max: usize,
    /// of the standard streams, what is no whole line yet
    printed: Vec<u8>,
    /// what the SDK's panic hook said
    panic: Option<String>,
    lines: u64,
    line_bytes: usize,
    /// ticks since it last read or wrote something
    idle: u32,
    is_foreign: bool,
}

/// The limits, and whether memory was refused.
struct Limiter {
    limits: StoreLimits,
    refused: bool,
}

impl ResourceLimiter for Limiter {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let grown = self.limits.memory_growing(current, desired, maximum)?;
        self.refused |= !grown;
        Ok(grown)
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        self.limits.table_growing(current, desired, maximum)
    }

    fn instances(&self) -> usize {
        self.limits.instances()
    }

    fn tables(&self) -> usize {
        self.limits.tables()
    }

    fn memories(&self) -> usize {
        self.limits.memories()
    }
}

/// A message longer than this is cut.
const LINE_BYTES_MAX: usize = 4096;
/// So many refusals are told.
const REFUSALS_MAX: usize = 100;
/// After so many lines, or so many bytes, a plugin is silent.
const LINES_MAX: u64 = 10_000;
const ALL_LINES_BYTES_MAX: usize = 1 << 20;

impl State {
    pub(crate) fn sink(&mut self) -> Result<&mut Sink, Failure> {
        self.sink.as_mut().ok_or_else(|| Failure::Denied("no archive is being made".into()))
    }

    /// What it may do; nothing unless it is a source that writes.
    pub(crate) fn rights(&self) -> &Rights {
        static NONE: LazyLock<Rights> = LazyLock::new(Rights::default);
        self.rights.as_ref().unwrap_or(&NONE)
    }

    /// Each once, and only as long as it is not known to be whole: a plugin may splice as often as it likes.
    pub(crate) fn note_spliced(&mut self, source: Arc<Unfinished>) {
        self.spliced.retain(|known| !known.has_succeeded() && !Arc::ptr_eq(known, &source));
        self.spliced.push(source);
    }

    /// Fails where something was spliced that may be half of what it should be.
    pub(crate) fn check_spliced(&self) -> Result<(), Failure> {
        let mut spliced = self.spliced.iter();
        match spliced.find(|source| !source.has_succeeded()) {
            Some(source) => {
                let what = &source.what;
                let text =
                    format!("it did not find out whether all of {what} came: it takes `finish`");
                Err(Failure::Invalid(text))
            }
            None => Ok(()),
        }
    }

    /// It reads or writes something, so it is not lost in an endless loop.
    pub(crate) fn is_busy(&mut self) {
        self.idle = 0;
    }

    /// Whether one more line is shown.
    fn may_say(&mut self, bytes: usize) -> bool {
        let could = self.lines < LINES_MAX && self.line_bytes < ALL_LINES_BYTES_MAX;
        self.lines += 1;
        self.line_bytes = self.line_bytes.saturating_add(bytes);
        let can = self.lines < LINES_MAX && self.line_bytes < ALL_LINES_BYTES_MAX;
        if could && !can {
            self.teller()(format!("plugin '{}' says more than is shown", self.plugin));
        }
        can
    }

    /// A failure that a plugin from outside returned tells its name.
    pub(crate) fn blamed(&self, failure: Failure) -> Failure {
        match self.is_foreign {
            true => failure.with_text(|text| {
                let text = text.get(..text.floor_char_boundary(LINE_BYTES_MAX)).unwrap_or_default();
                format!("plugin '{}': {}", self.plugin, plain(text))
            }),
            false => failure,
        }
    }

    /// Something that the plugin may not do is told once, with what would allow it.
    pub(crate) fn refused(&mut self, what: &str, key: &str, value: &str) -> Failure {
        let plugin = &self.plugin;
        let text = format!("plugin '{plugin}' is refused {what}");
        if self.rights.is_none() {
            return Failure::Denied(format!("{text}: only sources may, while they write"));
        }
        if self.refused.len() < REFUSALS_MAX && self.refused.insert(text.clone()) {
            let value = match key {
                "read" | "run" | "environment" | "http" => format!("['{value}']"),
                "scratch" => format!("'{value}'"),
                _ => value.to_owned(),
            };
            let advice = format!(
                "{text}: it takes `plugins.{plugin}.grants.{key} = {value}` in config.toml, if `keepwell plugin inspect` says that it asks for that"
            );
            self.teller()(one_line(&advice));
        }
        Failure::Denied(text)
    }

    /// A call into WASI that was refused.
    pub(crate) fn refused_call(&mut self, called: &str) {
        let text = format!("plugin '{}' may not call {called}", self.plugin);
        if self.refused.len() < REFUSALS_MAX && self.refused.insert(text.clone()) {
            self.teller()(text);
        }
    }

    /// What a plugin writes to its standard streams is shown line by line; of what
    /// is too long the rest is a line of its own.
    pub(crate) fn print(&mut self, bytes: impl Iterator<Item = u8>) {
        for byte in bytes {
            if byte != b'\n' && self.printed.len() < LINE_BYTES_MAX {
                self.printed.push(byte);
                continue;
            }
            let line = String::from_utf8_lossy(&std::mem::take(&mut self.printed)).into_owned();
            if !line.trim().is_empty() && self.may_say(line.len()) {
                self.teller()(format!("{}: {}", self.plugin, one_line(&line)));
            }
        }
    }

    /// Shows lines, from other threads as well.
    pub(crate) fn teller(&self) -> Teller {
        match self.report.clone() {
            Some(report) => Box::new(move |line| report.notify(Notice::Warning(line))),
            None => Box::new(|line| tracing::warn!("{line}")),
        }
    }

    pub(crate) fn push<T: Send + 'static>(&mut self, handle: T) -> wasmtime::Result<Resource<T>> {
        Ok(self.table.push(handle)?)
    }
}

impl crate::bindings::archive::keepwell::types::types::Host for State {}

impl log::Host for State {
    fn write(&mut self, level: log::Level, mut message: String) -> wasmtime::Result<()> {
        if let Some(text) = message.strip_prefix("panic: ") {
            self.panic = Some(one_line(text));
            return Ok(());
        }
        if message.len() > LINE_BYTES_MAX {
            message.truncate(message.floor_char_boundary(LINE_BYTES_MAX));
        }
        if !self.may_say(message.len()) {
            return Ok(());
        }
        let message = plain(&message);
        let Some(report) = &self.report else {
            let plugin = &self.plugin;
            match level {
                log::Level::Debug => tracing::debug!("{plugin}: {message}"),
                log::Level::Info => tracing::info!("{plugin}: {message}"),
                log::Level::Warning => tracing::warn!("{plugin}: {message}"),
            }
            return Ok(());
        };
        report.notify(match level {
            log::Level::Debug => Notice::Debug(message),
            log::Level::Info => Notice::Info(message),
            log::Level::Warning => Notice::Warning(message),
        });
        Ok(())
    }
}

/// Since 1970, for plugins that have the right to know it.
#[expect(clippy::disallowed_methods, reason = "the clock is asked for a plugin, not for the host")]
pub(crate) fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Nothing in it moves a terminal's cursor.
pub(crate) fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\t' => plain.push(' '),
            c if c.is_control() => plain.extend(c.escape_default()),
            c => plain.push(c),
        }
    }
    plain
}

fn one_line(text: &str) -> String {
    let text = text.lines().map(str::trim).collect::<Vec<_>>().join(" ");
    plain(&text.chars().take(500).collect::<String>())
}

/// How long an instance may run.
pub(crate) enum Patience {
    /// as long as the archive takes, until cancelled
    Until(Cancel),
    /// so long for one call
    Limited,
}

/// An instance for calls that end soon. It gets no handles, so what else it may import, because
/// it is a source as well, leads nowhere.
pub(crate) fn limited<Bindings>(
    plugin: &Plugin,
    instantiate: fn(&mut Store<State>, &Component, &Linker<State>) -> wasmtime::Result<Bindings>,
) -> Result<(Store<State>, Bindings), LoadError> {
    let component = plugin.component()?;
    let mut linker = Linker::new(plugin.runtime().engine());
    let mut store = store(plugin, None, Patience::Limited);
    let bindings = ArchivePlugin::add_to_linker::<_, HasSelf<_>>(&mut linker, |state| state)
        .and_then(|()| wasi::link(&mut linker, component, plugin.runtime().engine()))
        .and_then(|()| instantiate(&mut store, component, &linker))
        .map_err(|error| plugin.unusable(&error))?;
    Ok((store, bindings))
}

/// A store with the plugin's limits.
pub(crate) fn store(plugin: &Plugin, report: Option<Report>, patience: Patience) -> Store<State> {
    let runtime: &Runtime = plugin.runtime();
    let Limits { memory_bytes_max, call_time_max, handles_max, .. } = plugin.limits();
    runtime.start_ticker();
    let limits = StoreLimitsBuilder::new()
        .memory_size(memory_bytes_max)
        .table_elements(100_000)
        .instances(64)
        .tables(64)
        .memories(1)
        .trap_on_grow_failure(false)
        .build();
    let mut table = ResourceTable::new();
    table.set_max_capacity(handles_max);
    let state = State {
        plugin: plugin.name().to_owned(),
        limits: Limiter { limits, refused: false },
        table,
        sink: None,
        report,
        rights: None,
        suffixes: Vec::new(),
        spliced: Vec::new(),
        responses: 0,
        pumping: Vec::new(),
        web: runtime.web(),
        cancel: match &patience {
            Patience::Until(cancel) => cancel.clone(),
            Patience::Limited => Cancel::default(),
        },
        scratch: None,
        refused: HashSet::new(),
        stubs: 0,
        handles_max,
        printed: Vec::new(),
        panic: None,
        lines: 0,
        line_bytes: 0,
        idle: 0,
        is_foreign: plugin.is_foreign(),
    };
    let mut store = Store::new(runtime.engine(), state);
    store.limiter(|state| &mut state.limits);
    store.set_epoch_deadline(1);
    let mut started: Option<Instant> = None;
    let idle_max = u32::try_from(call_time_max.as_millis() / TICK.as_millis()).unwrap_or(u32::MAX);
    store.epoch_deadline_callback(move |mut store| match &patience {
        Patience::Until(cancel) if cancel.is_cancelled() => {
            Err(wasmtime::Error::msg("stopped by the user"))
        }
        Patience::Until(_) => {
            // Ticks that it computed: while the host works for it, none is seen.
            let state = store.data_mut();
            state.idle += 1;
            if state.idle <= idle_max {
                return Ok(UpdateDeadline::Continue(1));
            }
            let seconds = call_time_max.as_secs_f32();
            let problem =
                format!("it ran for more than {seconds} seconds without reading or writing");
            Err(wasmtime::Error::msg(problem))
        }
        Patience::Limited => {
            let started = started.get_or_insert_with(Instant::now);
            if started.elapsed() < call_time_max {
                Ok(UpdateDeadline::Continue(1))
            } else {
                let seconds = call_time_max.as_secs_f32();
                Err(wasmtime::Error::msg(format!("it ran for more than {seconds} seconds")))
            }
        }
    });
    store
}

/// One line for a call that trapped.
pub(crate) fn trap(store: &mut Store<State>, error: &wasmtime::Error) -> Failure {
    let state = store.data_mut();
    let problem = match state.panic.take() {
        Some(panic) => format!("it panicked: {panic}"),
        None if state.limits.refused => "it needs more memory than plugins may use".into(),
        None => one_line(&error.root_cause().to_string()),
    };
    Failure::Trap { plugin: state.plugin.clone(), problem }
}
