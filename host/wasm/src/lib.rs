//! Runs plugins: WebAssembly components, each in a store of its own with only what it was granted.
//!
//! [`Runtime`] compiles components and caches the code; [`Plugin`] is one of them and makes
//! instances that implement the engine's seams. What a component implements is read from its
//! exports. A trap, endless work or too much memory ends in one error that names the plugin. May
//! use `engine`.

mod archive;
mod bindings;
mod cache;
mod convert;
mod formatter;
mod retention;
mod rights;
mod state;
mod wasi;

pub use archive::web::{Url, Web, WebRequest, WebResponse, web_place};
pub use cache::CodeCache;
pub use rights::Rights;

use keepwell_engine::Cancel;
use keepwell_engine::plugin::{
    ArchiveType, Capability, Failure, Formatter, OptionKind, OptionSpec, Reader, RetentionPolicy,
    Source,
};
use keepwell_engine::report::Report;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use wasmtime::component::Component;
use wasmtime::{Config, Engine};

/// What a plugin may use.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub memory_bytes_max: usize,
    /// of retention policies and formatters; and how long archives may compute without reading or writing
    pub call_time_max: Duration,
    /// open directories, files and streams of one instance
    pub handles_max: usize,
    /// bytes that a formatter may return
    pub output_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory_bytes_max: 256 << 20,
            call_time_max: Duration::from_secs(10),
            handles_max: 65_536,
            output_bytes_max: 64 << 20,
        }
    }
}

/// Why a component can't be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("plugin '{name}' is no component that this version can run: {problem}")]
    Component { name: String, problem: String },
    #[error("plugin '{name}' implements none of source, reader, retention policy and formatter")]
    NoRole { name: String },
    #[error("plugin '{name}' implements {found}, which this version does not know: it has @0.1.0")]
    OtherVersion { name: String, found: String },
    #[error("unable to read plugin '{file}': {problem}")]
    Unreadable { file: String, problem: String },
    #[error("the runtime for plugins can't be started: {0}")]
    Runtime(String),
    #[error(transparent)]
    Describe(#[from] Failure),
}

/// What a plugin says of itself, and what it implements.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PluginInfo {
    pub name: String,
    pub version: String,
    pub summary: String,
    pub options: Vec<OptionSpec>,
    pub capabilities: Vec<Capability>,
    pub archive_types: Vec<ArchiveType>,
    pub formats: Vec<String>,
    pub is_source: bool,
    pub is_reader: bool,
    pub is_retention: bool,
    pub is_formatter: bool,
}

impl PluginInfo {
    /// Of a component with several roles, each of which describes it.
    fn merge(mut self, other: Self) -> Self {
        for option in other.options {
            if self.options.iter().all(|known| known.name != option.name) {
                self.options.push(option);
            }
        }
        for capability in other.capabilities {
            if !self.capabilities.contains(&capability) {
                self.capabilities.push(capability);
            }
        }
        self.archive_types.extend(other.archive_types);
        self.formats.extend(other.formats);
        self
    }

    /// Names end up in command lines and messages.
    fn check(&self) -> Result<(), String> {
        let legal = |name: &str| {
            let is_legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            (1..=64).contains(&name.len()) && !name.starts_with('-') && name.chars().all(is_legal)
        };
        let names = std::iter::once(&self.name)
            .chain(self.options.iter().map(|option| &option.name))
            .chain(self.archive_types.iter().map(|archive_type| &archive_type.extension))
            .chain(&self.formats);
        for name in names {
            if !legal(name) {
                return Err(format!(
                    "{name:?} is no name: use up to 64 lower-case letters, digits and '-'"
                ));
            }
            if name == "help" || name == "version" {
                return Err(format!("nothing can be called {name:?}: that is Keepwell's own"));
            }
        }
        let words = self.archive_types.iter().map(|archive_type| &archive_type.noun);
        let texts = words
            .chain(self.options.iter().map(|option| &option.help))
            .chain(self.options.iter().flat_map(|option| &option.choices));
        for text in texts.chain([&self.summary, &self.version]) {
            check_text(text)?;
        }
        self.capabilities.iter().try_for_each(check_capability)?;
        for (number, option) in self.options.iter().enumerate() {
            if self.options.iter().take(number).any(|known| known.name == option.name) {
                return Err(format!("option '{}' is declared twice", option.name));
            }
        }
        let has_default =
            |option: &&OptionSpec| option.kind == OptionKind::Flag && !option.defaults.is_empty();
        if let Some(flag) = self.options.iter().find(has_default) {
            return Err(format!("flag '{}' has a default: flags are false", flag.name));
        }
        let is_no_choice = |option: &&OptionSpec| {
            let mut defaults = option.defaults.iter();
            !option.choices.is_empty()
                && (option.kind != OptionKind::Text
                    || defaults.any(|default| !option.choices.contains(default)))
        };
        match self.options.iter().find(is_no_choice) {
            Some(option) => {
                let name = &option.name;
                Err(format!(
                    "option '{name}': choices are for texts, and the default is one of them"
                ))
            }
            None => Ok(()),
        }
    }
}

/// It ends up in terminals, where people decide by it.
fn check_text(text: &str) -> Result<(), String> {
    // What has no width, or turns the direction of writing, makes a text look like another.
    let is_hidden = |c: char| matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
    match text.chars().any(|c| c.is_control() || is_hidden(c)) {
        true => Err(format!("{text:?} is not one line of text")),
        false => Ok(()),
    }
}

/// Whether there can be such a thing.
fn check_capability(asked: &Capability) -> Result<(), String> {
    let (text, is_right) = match asked {
        Capability::Clock | Capability::Random | Capability::Scratch(1..) => return Ok(()),
        Capability::Scratch(_) => return Err("it asks for no space for temporary files".into()),
        Capability::Read(path) => (path, rights::is_plain(Path::new(path))),
        Capability::Run(program) => (program, !program.is_empty()),
        Capability::Environment(name) => (name, !name.is_empty() && !name.contains('=')),
        Capability::Http(place) => (place, web_place(place).is_some()),
    };
    check_text(text)?;
    match is_right || text == rights::ANY {
        true => Ok(()),
        false => Err(format!("it asks for something that there is not: {asked}")),
    }
}

/// Names of interfaces, with their versions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interfaces {
    pub imports: Vec<String>,
    pub exports: Vec<String>,
}

/// The engine that all plugins share.
#[derive(Clone)]
pub struct Runtime {
    shared: Arc<Shared>,
}

struct Shared {
    engine: Engine,
    cache: Option<CodeCache>,
    limits: Limits,
    web: Option<Arc<dyn Web>>,
    ticker: OnceLock<()>,
}

/// How often a running plugin looks whether it should stop.
pub(crate) const TICK: Duration = Duration::from_millis(20);

impl Runtime {
    /// `cache` keeps compiled code; without one, every start compiles. `web` makes the requests of plugins.
    pub fn new(
        cache: Option<CodeCache>,
        limits: Limits,
        web: Option<Arc<dyn Web>>,
    ) -> Result<Self, LoadError> {
        let mut config = Config::new();
        config.wasm_component_model(true);
        config.epoch_interruption(true);
        config.generate_address_map(false);
        config.wasm_backtrace_max_frames(None);
        let engine = Engine::new(&config).map_err(|error| LoadError::Runtime(error.to_string()))?;
        let ticker = OnceLock::new();
        Ok(Self { shared: Arc::new(Shared { engine, cache, limits, web, ticker }) })
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.shared.engine
    }

    pub(crate) fn web(&self) -> Option<Arc<dyn Web>> {
        self.shared.web.clone()
    }

    /// Epochs pass from now on, as long as the engine lives.
    pub(crate) fn start_ticker(&self) {
        self.shared.ticker.get_or_init(|| {
            let engine = self.shared.engine.weak();
            std::thread::spawn(move || {
                while let Some(engine) = engine.upgrade() {
                    engine.increment_epoch();
                    drop(engine);
                    std::thread::sleep(TICK);
                }
            });
        });
    }

    /// Makes a plugin of a component. Nothing is compiled before it is needed.
    pub fn plugin(&self, name: &str, bytes: &'static [u8]) -> Plugin {
        self.made_of(name, Origin::Memory(bytes), hex::encode(Sha256::digest(bytes)))
    }

    /// Makes a plugin of a file. It is not even read before it is needed, where the cache knows its SHA-256.
    pub fn plugin_file(&self, file: &Path) -> Result<Plugin, LoadError> {
        let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let read = OnceLock::new();
        let hash = self.known_hash(file, &read).map_err(|error| unreadable(file, &error))?;
        Ok(self.made_of(&name, Origin::File { file: file.to_owned(), read }, hash))
    }

    fn known_hash(&self, file: &Path, read: &OnceLock<Vec<u8>>) -> std::io::Result<String> {
        let cache = self.shared.cache.as_ref();
        let metadata = std::fs::metadata(file)?;
        if let Some(hash) = cache.and_then(|cache| cache.load_hash(file, &metadata)) {
            return Ok(hash);
        }
        let bytes = read_component(file)?;
        let hash = hex::encode(Sha256::digest(&bytes));
        if let Some(cache) = cache {
            cache.store_hash(file, &metadata, &hash);
        }
        let _ = read.set(bytes);
        Ok(hash)
    }

    fn made_of(&self, name: &str, origin: Origin, hash: String) -> Plugin {
        let (runtime, name) = (self.clone(), name.to_owned());
        let (code, allowed) = (OnceLock::new(), OnceLock::new());
        Plugin { inner: Arc::new(Inner { runtime, name, origin, hash, code, allowed }) }
    }
}

/// Larger components are none.
const COMPONENT_BYTES_MAX: u64 = 256 << 20;

fn read_component(file: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::{Error, Read};
    // Not opened before it is known to be a file: opening a pipe would wait.
    if !std::fs::metadata(file)?.is_file() {
        return Err(Error::other("it is no regular file"));
    }
    let mut bytes = Vec::new();
    std::fs::File::open(file)?.take(COMPONENT_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > COMPONENT_BYTES_MAX {
        true => Err(Error::other("it has more than 256 MiB")),
        false => Ok(bytes),
    }
}

fn unreadable(file: &Path, problem: &dyn std::fmt::Display) -> LoadError {
    LoadError::Unreadable { file: file.display().to_string(), problem: problem.to_string() }
}

/// Where a component is.
enum Origin {
    Memory(&'static [u8]),
    File { file: PathBuf, read: OnceLock<Vec<u8>> },
}

/// A component.
#[derive(Clone)]
pub struct Plugin {
    inner: Arc<Inner>,
}

struct Inner {
    runtime: Runtime,
    name: String,
    origin: Origin,
    hash: String,
    code: OnceLock<Component>,
    allowed: OnceLock<Allowed>,
}

/// What the administrator says of a plugin.
struct Allowed {
    /// what the plugin calls itself
    name: String,
    rights: Rights,
    limits: Limits,
}

impl Plugin {
    /// What it calls itself, once that is known; before that where it comes from.
    pub fn name(&self) -> &str {
        self.inner.allowed.get().map_or(&self.inner.name, |allowed| &allowed.name)
    }

    /// Of the component, in hexadecimal digits.
    pub fn sha256(&self) -> &str {
        &self.inner.hash
    }

    /// Whether it is none of those that are built in.
    pub(crate) fn is_foreign(&self) -> bool {
        matches!(self.inner.origin, Origin::File { .. })
    }

    /// The component. Fails where its file can't be read, or has changed since it was looked at.
    pub fn bytes(&self) -> Result<&[u8], LoadError> {
        let (file, read) = match &self.inner.origin {
            Origin::Memory(bytes) => return Ok(bytes),
            Origin::File { file, read } => (file, read),
        };
        if let Some(bytes) = read.get() {
            return Ok(bytes);
        }
        let bytes = read_component(file).map_err(|error| unreadable(file, &error))?;
        if hex::encode(Sha256::digest(&bytes)) != self.inner.hash {
            return Err(unreadable(file, &"it changed meanwhile"));
        }
        Ok(read.get_or_init(|| bytes))
    }

    /// What it asks of its host, and what it offers.
    pub fn interfaces(&self) -> Result<Interfaces, LoadError> {
        let (component, engine) = (self.component()?.component_type(), self.inner.runtime.engine());
        let imports = component.imports(engine).map(|(name, _)| name.to_owned()).collect();
        let exports = component.exports(engine).map(|(name, _)| name.to_owned()).collect();
        Ok(Interfaces { imports, exports })
    }

    /// Compiled code, from the cache if it is there.
    pub(crate) fn component(&self) -> Result<&Component, LoadError> {
        if let Some(component) = self.inner.code.get() {
            return Ok(component);
        }
        let engine = self.inner.runtime.engine();
        let cache = self.inner.runtime.shared.cache.as_ref();
        let cached = cache.and_then(|cache| cache.load(engine, &self.inner.hash));
        let component = match cached {
            Some(component) => component,
            None => {
                let bytes = self.bytes()?;
                if bytes.starts_with(b"\0asm\x01\0\0\0") {
                    let problem = "it is a module: `keepwell plugin build`, or `wasm-tools component new`, \
                                   makes a component of one";
                    let name = self.inner.name.clone();
                    return Err(LoadError::Component { name, problem: problem.into() });
                }
                let compiled = Component::new(engine, bytes);
                let component = compiled.map_err(|error| self.unusable(&error))?;
                if let Some(cache) = cache {
                    cache.store(engine, &self.inner.hash, &component);
                }
                component
            }
        };
        Ok(self.inner.code.get_or_init(|| component))
    }

    fn unusable(&self, error: &wasmtime::Error) -> LoadError {
        LoadError::Component { name: self.inner.name.clone(), problem: format!("{error:#}") }
    }

    /// What the plugin says of itself; cached with its code.
    pub fn info(&self) -> Result<PluginInfo, LoadError> {
        let cache = self.inner.runtime.shared.cache.as_ref();
        if let Some(info) = cache.and_then(|cache| cache.load_info(&self.inner.hash)) {
            return Ok(info);
        }
        let info = self.describe()?;
        if let Some(cache) = cache {
            cache.store_info(&self.inner.hash, &info);
        }
        Ok(info)
    }

    /// What the plugin says of itself when it is asked anew.
    pub fn describe(&self) -> Result<PluginInfo, LoadError> {
        let component = self.component()?;
        let has = |interface: &str| component.get_export(None, interface).is_some();
        let is_source = has("keepwell:archive/source@0.1.0");
        let is_reader = has("keepwell:archive/reader@0.1.0");
        let is_retention = has("keepwell:retention/policy@0.1.0");
        let is_formatter = has("keepwell:formatter/formatter@0.1.0");
        let mut described = Vec::new();
        if is_source || is_reader {
            described.push(archive::describe(self)?);
        }
        if is_retention {
            described.push(retention::describe(self)?);
        }
        if is_formatter {
            described.push(formatter::describe(self)?);
        }
        let merged = described.into_iter().reduce(PluginInfo::merge);
        let Some(mut info) = merged else { return Err(self.no_role()) };
        info.check()
            .map_err(|problem| LoadError::Component { name: self.inner.name.clone(), problem })?;
        info.is_source = is_source;
        info.is_reader = is_reader;
        info.is_retention = is_retention;
        info.is_formatter = is_formatter;
        Ok(info)
    }

    /// It has no role, or one of another version of the contract.
    fn no_role(&self) -> LoadError {
        let name = self.inner.name.clone();
        let exports = self.interfaces().map(|interfaces| interfaces.exports).unwrap_or_default();
        let mut exports = exports.into_iter().filter(|name| name.starts_with("keepwell:"));
        match exports.find(|name| !name.contains("/about@")) {
            Some(found) => LoadError::OtherVersion { name, found },
            None => LoadError::NoRole { name },
        }
    }

    /// A source. It can read only what it is given for each archive.
    pub fn source(&self, report: Report, cancel: Cancel) -> Result<Box<dyn Source>, LoadError> {
        Ok(Box::new(archive::WasmSource::new(self, report, cancel)?))
    }

    /// A reader of archives.
    pub fn reader(&self, report: Report, cancel: Cancel) -> Result<Box<dyn Reader>, LoadError> {
        Ok(Box::new(archive::WasmReader::new(self, report, cancel)?))
    }

    pub fn retention(&self) -> Result<Box<dyn RetentionPolicy>, LoadError> {
        Ok(Box::new(retention::WasmPolicy::new(self)?))
    }

    pub fn formatter(&self) -> Result<Box<dyn Formatter>, LoadError> {
        Ok(Box::new(formatter::WasmFormatter::new(self)?))
    }

    pub(crate) fn runtime(&self) -> &Runtime {
        &self.inner.runtime
    }

    /// Says once what its instances may do and use, from then on. Before that they have no rights.
    pub fn allow(&self, name: &str, rights: Rights, limits: Limits) {
        let _ = self.inner.allowed.set(Allowed { name: name.to_owned(), rights, limits });
    }

    pub(crate) fn rights(&self) -> Rights {
        self.inner.allowed.get().map(|allowed| allowed.rights.clone()).unwrap_or_default()
    }

    pub(crate) fn limits(&self) -> Limits {
        self.inner.allowed.get().map_or(self.inner.runtime.shared.limits, |allowed| allowed.limits)
    }
}

#[cfg(test)]
mod tests;
