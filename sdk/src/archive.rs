//! For plugins that make archives and look into them (world `keepwell:archive/archive-plugin`).

use crate::bindings::archive_about::exports::keepwell::archive::about as exported_about;
use crate::bindings::archive_reader::exports::keepwell::archive::reader as exported;
use crate::bindings::archive_source::exports::keepwell::archive::source as exported_source;
use crate::bindings::archive_source::keepwell::archive as imported;
use crate::{Failure, options};
use serde::de::DeserializeOwned;

pub use exported::{Content, Damage, Entry, Event, Link, Node};
pub use exported_about::{ArchiveType, Info, OriginKind};
pub use exported_source::{Borders, Origin, Summary};
pub use imported::archive_sink::{
    Chunking, Extent, Omission, Reused, Stream, catalog_add, catalog_enter, catalog_leave,
    catalog_open, open_stream, skipped,
};
pub use imported::commands::{Argument, Process};
pub use imported::filesystem::{Directory, Examined, File, Identity, Listed, Opened};
pub use imported::patterns::{PatternList, Verdict};
pub use imported::{commands, paths, scratch, surroundings, web};

/// What the plugin says of itself.
pub trait Plugin {
    /// Must give the same answer each time; the host caches it.
    fn describe() -> Info;
}

/// What a source is asked for, besides where to read.
pub struct Request {
    /// without extension
    pub archive_name: String,
    /// the extension that chose this plugin, without dot
    pub archive_extension: String,
    /// which mount borders to cross
    pub borders: Borders,
    /// limit on entries held in memory at a time
    pub entries_max: u64,
    /// The streams of the previous snapshot's archive of this name, in the order in which they were opened; empty
    /// where there is none.
    pub previous: Vec<Bytes>,
}

/// A plugin that makes archives.
pub trait Source {
    /// what its options are read into, see [`crate::options`]
    type Options: DeserializeOwned;

    /// Makes one archive from what the user named. A failure, or a trap, discards it.
    fn write_archive(
        origin: Origin,
        request: Request,
        options: Self::Options,
    ) -> Result<Summary, Failure>;
}

/// A stored stream, read at any position; in tests it is made of bytes.
pub struct Bytes(Stored);

enum Stored {
    Host(imported::random_access::Bytes),
    Memory(Vec<u8>),
}

impl Bytes {
    /// Its length in bytes; none where it comes from a pipe.
    pub fn size(&self) -> Option<u64> {
        match &self.0 {
            Stored::Host(stream) => stream.size(),
            Stored::Memory(bytes) => Some(bytes.len() as u64),
        }
    }

    /// At most 1 MiB at a time; fewer bytes than that and than asked only at the end.
    pub fn read_at(&self, offset: u64, length: u32) -> Result<Vec<u8>, Failure> {
        let bytes = match &self.0 {
            Stored::Host(stream) => return stream.read_at(offset, length),
            Stored::Memory(bytes) => bytes,
        };
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
        let length = length.min(READ_BYTES_MAX) as usize;
        let end = start.saturating_add(length).min(bytes.len());
        Ok(bytes.get(start..end).unwrap_or_default().to_vec())
    }
}

const READ_BYTES_MAX: u32 = 1 << 20;

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self(Stored::Memory(bytes))
    }
}

fn of_host(streams: Vec<imported::random_access::Bytes>) -> Vec<Bytes> {
    streams.into_iter().map(|stream| Bytes(Stored::Host(stream))).collect()
}

/// A plugin that looks into archives. Restore, mount, shell, find and diff are the host's, over this.
pub trait Reader {
    /// what an open archive is
    type Archive: Archive;
}

/// Children of a directory; one that can't be read does not hide the others.
pub type Children = Vec<Result<Entry, Damage>>;

/// An open archive. What is not called in some order may be called in any, and many times.
pub trait Archive: Sized + 'static {
    /// what a walk through it is
    type Walk: Walk;

    /// `streams`: those that the source opened, in that order.
    fn open(streams: Vec<Bytes>) -> Result<Self, Failure>;

    /// The entry that the archive was made of; its name is empty.
    fn root(&self) -> Result<Entry, Failure>;

    /// Children after the given one (none: from the first) in archive order, at most `max`; empty at the end.
    fn children(&self, dir: Node, after: Option<Node>, max: u32) -> Result<Children, Failure>;

    /// The child of this name, if there is one.
    fn child(&self, directory: Node, name: &[u8]) -> Result<Option<Entry>, Failure>;

    /// The entry that a node names.
    fn entry(&self, node: Node) -> Result<Entry, Failure>;

    /// Only called for entries whose content is `computed`.
    fn read(&self, node: Node, _offset: u64, _length: u32) -> Result<Vec<u8>, Failure> {
        Err(Failure::Unsupported(format!("entry {} has no computed content", node.at)))
    }

    /// Everything below the root in archive order, in one pass that only reads forward.
    fn walk(&self) -> Result<Self::Walk, Failure>;
}

/// A walk through an archive, see `keepwell:archive/reader`.
pub trait Walk: 'static {
    /// At most `max` events; empty at the end. A directory's entry comes before what is in it.
    fn next(&self, max: u32) -> Result<Vec<Event>, Failure>;
}

#[doc(hidden)]
pub struct Adapter<P>(std::marker::PhantomData<P>);

impl<P: Plugin> exported_about::Guest for Adapter<P> {
    fn describe() -> Info {
        crate::install_panic_hook();
        P::describe()
    }
}

impl<P: Source> exported_source::Guest for Adapter<P> {
    fn write_archive(origin: Origin, given: exported_source::Request) -> Result<Summary, Failure> {
        crate::install_panic_hook();
        let options = options::parse(&given.options)?;
        let request = Request {
            archive_name: given.archive_name,
            archive_extension: given.archive_extension,
            borders: given.borders,
            entries_max: given.entries_max,
            previous: of_host(given.previous),
        };
        P::write_archive(origin, request, options)
    }
}

#[doc(hidden)]
pub struct ArchiveAdapter<A>(A);
#[doc(hidden)]
pub struct WalkAdapter<W>(W);

impl<P: Reader + 'static> exported::Guest for Adapter<P> {
    type Archive = ArchiveAdapter<P::Archive>;
    type Walk = WalkAdapter<<P::Archive as Archive>::Walk>;
}

impl<A: Archive> exported::GuestArchive for ArchiveAdapter<A> {
    fn open(streams: Vec<imported::random_access::Bytes>) -> Result<exported::Archive, Failure> {
        crate::install_panic_hook();
        Ok(exported::Archive::new(ArchiveAdapter(A::open(of_host(streams))?)))
    }
    fn root(&self) -> Result<Entry, Failure> {
        self.0.root()
    }
    fn children(&self, dir: Node, after: Option<Node>, max: u32) -> Result<Children, Failure> {
        self.0.children(dir, after, max)
    }
    fn child(&self, directory: Node, name: Vec<u8>) -> Result<Option<Entry>, Failure> {
        self.0.child(directory, &name)
    }
    fn entry(&self, node: Node) -> Result<Entry, Failure> {
        self.0.entry(node)
    }
    fn read(&self, node: Node, offset: u64, length: u32) -> Result<Vec<u8>, Failure> {
        self.0.read(node, offset, length)
    }
    fn walk(&self) -> Result<exported::Walk, Failure> {
        Ok(exported::Walk::new(WalkAdapter(self.0.walk()?)))
    }
}

impl<W: Walk> exported::GuestWalk for WalkAdapter<W> {
    fn next(&self, max: u32) -> Result<Vec<Event>, Failure> {
        self.0.next(max)
    }
}

/// Makes the component of a type that implements `archive::Plugin` and `archive::Source`.
#[macro_export]
macro_rules! export_archive_source {
    ($plugin:ty) => {
        #[cfg(target_family = "wasm")]
        const _: () = {
            use $crate::bindings;
            type Exported = $crate::archive::Adapter<$plugin>;
            bindings::archive_about::export_bindings!(Exported with_types_in bindings::archive_about);
            bindings::archive_source::export_bindings!(Exported with_types_in bindings::archive_source);
        };
    };
}

/// Makes the component of a type that implements `archive::Plugin` and `archive::Reader`.
#[macro_export]
macro_rules! export_archive_reader {
    ($plugin:ty) => {
        #[cfg(target_family = "wasm")]
        const _: () = {
            use $crate::bindings;
            type Exported = $crate::archive::Adapter<$plugin>;
            bindings::archive_about::export_bindings!(Exported with_types_in bindings::archive_about);
            bindings::archive_reader::export_bindings!(Exported with_types_in bindings::archive_reader);
        };
    };
}

/// Makes the component of a type that implements `archive::Plugin`, `archive::Source` and
/// `archive::Reader`.
#[macro_export]
macro_rules! export_archive_plugin {
    ($plugin:ty) => {
        $crate::export_archive_source!($plugin);
        #[cfg(target_family = "wasm")]
        const _: () = {
            use $crate::bindings;
            type Exported = $crate::archive::Adapter<$plugin>;
            bindings::archive_reader::export_bindings!(Exported with_types_in bindings::archive_reader);
        };
    };
}
