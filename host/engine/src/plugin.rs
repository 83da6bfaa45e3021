//! What plugins are to the engine: four traits and the words of the contract as native types.
//!
//! `wasm` implements the traits over components; tests implement them with plain structs. The
//! meaning of every word is documented in `wit/`.

use crate::archive::RandomAccess;
use crate::input::{Directory, InputFile};
use crate::sink::Sink;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Why a plugin's call, or a call of a plugin, failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    Denied(String),
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    Unsupported(String),
    #[error("{0}")]
    Corrupt(String),
    #[error("{0}")]
    Io(String),
    #[error("cancelled")]
    Cancelled,
    #[error("{0}")]
    Other(String),
    /// The plugin died: a panic, endless work, too much memory.
    #[error("plugin '{plugin}' failed: {problem}")]
    Trap { plugin: String, problem: String },
}

impl Failure {
    /// The same, with another text.
    #[must_use]
    pub fn with_text(self, change: impl FnOnce(String) -> String) -> Self {
        match self {
            Self::NotFound(text) => Self::NotFound(change(text)),
            Self::Denied(text) => Self::Denied(change(text)),
            Self::Invalid(text) => Self::Invalid(change(text)),
            Self::Unsupported(text) => Self::Unsupported(change(text)),
            Self::Corrupt(text) => Self::Corrupt(change(text)),
            Self::Io(text) => Self::Io(change(text)),
            Self::Other(text) => Self::Other(change(text)),
            other @ (Self::Cancelled | Self::Trap { .. }) => other,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EntryKind {
    Directory,
    File,
    Symlink,
    BlockDevice,
    CharacterDevice,
    Fifo,
    Socket,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timestamp {
    pub seconds: i64,
    pub nanoseconds: u32,
}

/// Name and value, in the kernel's form.
pub type ExtendedAttribute = (Vec<u8>, Vec<u8>);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metadata {
    pub kind: EntryKind,
    pub mode: u32,
    pub owner: u32,
    pub group: u32,
    pub modified: Timestamp,
    pub size: u64,
    pub inode_flags: u32,
    pub fat_attributes: u32,
    pub project: Option<u32>,
    pub device: Option<(u32, u32)>,
    pub link_target: Option<Vec<u8>>,
    pub extended: Vec<ExtendedAttribute>,
}

impl Metadata {
    /// Of an entry of which nothing else is known.
    pub fn of_kind(kind: EntryKind) -> Self {
        Self {
            kind,
            mode: 0,
            owner: 0,
            group: 0,
            modified: Timestamp::default(),
            size: 0,
            inode_flags: 0,
            fat_attributes: 0,
            project: None,
            device: None,
            link_target: None,
            extended: Vec::new(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OptionKind {
    Flag,
    Integer,
    Size,
    Duration,
    Text,
    Pattern,
}

/// An option that a plugin declares.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OptionSpec {
    pub name: String,
    pub kind: OptionKind,
    pub help: String,
    pub repeatable: bool,
    /// what counts where none is given: several only where the option is repeatable
    pub defaults: Vec<String>,
    pub minimum: Option<u64>,
    /// of a text; any where there are none
    pub choices: Vec<String>,
}

/// What a plugin asks for, or is granted, beyond what every plugin may do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Capability {
    /// an absolute path, and what lies below it
    Read(String),
    Run(String),
    Environment(String),
    Clock,
    Random,
    /// bytes
    Scratch(u64),
    /// a host, perhaps with a port
    Http(String),
}

impl std::fmt::Display for Capability {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Read(path) => write!(f, "read {path}"),
            Self::Run(program) => write!(f, "run {program}"),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Clock => f.write_str("clock"),
            Self::Random => f.write_str("random"),
            Self::Scratch(u64::MAX) => f.write_str("scratch *"),
            Self::Scratch(bytes) => write!(f, "scratch {bytes} bytes"),
            Self::Http(host) => write!(f, "http {host}"),
        }
    }
}

/// An option as given, checked against its spec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OptionValue {
    pub name: String,
    pub value: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OriginKind {
    Directory,
    File,
    FileOrBlockDevice,
}

/// A kind of archive that a plugin serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchiveType {
    pub extension: String,
    pub origin: OriginKind,
    pub noun: String,
    /// extensions of its streams, where it may also be kept in several
    #[serde(default)]
    pub parts: Vec<String>,
}

/// What a source reads.
pub enum Origin {
    Directory(Directory),
    File(Arc<InputFile>),
}

/// Which mount borders a source may cross.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Borders {
    Stay,
    CrossAll,
    /// ids of devices
    CrossListed(Vec<u64>),
}

pub struct SourceRequest {
    pub archive_name: String,
    pub archive_extension: String,
    /// what streams may be called: the extension and its parts, with dots
    pub suffixes: Vec<String>,
    pub options: Vec<OptionValue>,
    pub borders: Borders,
    pub entries_max: u64,
    pub previous: Vec<Arc<dyn RandomAccess>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceSummary {
    pub entries: u64,
}

impl ArchiveType {
    /// What streams of such archives may be called, with dots.
    pub fn suffixes(&self) -> Vec<String> {
        let names = std::iter::once(&self.extension).chain(&self.parts);
        names.map(|name| format!(".{name}")).collect()
    }
}

/// Makes archives.
pub trait Source: Send {
    fn write_archive(
        &mut self,
        origin: Origin,
        request: SourceRequest,
        sink: Sink,
    ) -> Result<SourceSummary, Failure>;
}

/// A stretch of one of an archive's streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    pub stream: u32,
    pub offset: u64,
    pub length: u64,
}

/// Names an entry within its archive; both numbers are the plugin's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    pub at: u64,
    pub end: u64,
}

impl Node {
    /// The root, as the contract has it.
    pub const ROOT: Self = Self { at: 0, end: 0 };
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    None,
    Stored(Vec<Extent>),
    Computed,
    /// path from the archive's root to an entry met before
    HardLink {
        node: Node,
        path: Vec<Vec<u8>>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub name: Vec<u8>,
    pub node: Node,
    pub metadata: Metadata,
    pub content: Content,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Enter(Entry),
    Leaf(Entry),
    Leave,
}

/// A child of a directory, or where one lies that can't be read, and why.
pub type Child = Result<Entry, (Node, Failure)>;

/// Opens archives.
pub trait Reader: Send {
    fn open(&mut self, streams: Vec<Arc<dyn RandomAccess>>) -> Result<Box<dyn Archive>, Failure>;
}

/// An open archive.
pub trait Archive: Send {
    fn root(&mut self) -> Result<Entry, Failure>;
    fn children(
        &mut self,
        directory: Node,
        after: Option<Node>,
        max: u32,
    ) -> Result<Vec<Child>, Failure>;
    fn child(&mut self, directory: Node, name: &[u8]) -> Result<Option<Entry>, Failure>;
    fn entry(&mut self, node: Node) -> Result<Entry, Failure>;
    fn read(&mut self, node: Node, offset: u64, length: u32) -> Result<Vec<u8>, Failure>;
    /// Begins a walk, or begins it again.
    fn start_walk(&mut self) -> Result<(), Failure>;
    /// Next events of the walk, at most `max`; empty at the end.
    fn walk(&mut self, max: u32) -> Result<Vec<Event>, Failure>;
}

/// A snapshot as a policy sees it.
#[derive(Clone, Debug)]
pub struct PolicySnapshot {
    pub taken: i64,
    pub utc_offset_seconds: i32,
    pub finished: bool,
    pub protected: bool,
    pub size: Option<u64>,
    pub verified: Option<bool>,
    pub notes: String,
    pub archives: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    pub keep: bool,
    pub reason: String,
}

/// Decides which snapshots to keep.
pub trait RetentionPolicy: Send {
    /// One decision for each snapshot, newest first.
    fn decide(
        &mut self,
        now: i64,
        snapshots: Vec<PolicySnapshot>,
        options: Vec<OptionValue>,
    ) -> Result<Vec<Decision>, Failure>;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alignment {
    Left,
    Right,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rendering {
    Text,
    Bytes,
    Boolean,
}

#[derive(Clone, Debug)]
pub struct Column {
    pub key: &'static str,
    pub header: &'static str,
    pub alignment: Alignment,
    pub rendering: Rendering,
}

#[derive(Clone, Debug)]
pub enum Layout {
    Table(Vec<Column>),
    Properties(Vec<Column>),
    Grid(Vec<Alignment>),
    Message,
}

/// What a command has to say.
#[derive(Clone, Debug)]
pub struct Document {
    pub data: serde_json::Value,
    pub display: Option<serde_json::Value>,
    pub layout: Layout,
}

#[derive(Clone, Debug)]
pub struct FormatEnvironment {
    pub format: String,
    pub borders: bool,
    pub header: bool,
    pub unicode: bool,
    pub terminal_width: Option<u32>,
}

/// Prints documents.
pub trait Formatter: Send {
    fn render(
        &mut self,
        document: &Document,
        environment: &FormatEnvironment,
        options: Vec<OptionValue>,
    ) -> Result<Vec<u8>, Failure>;
}
