//! For plugins that make archives and look into them (world `keepwell:archive/archive-plugin`).

use crate::Failure;
use crate::archive_bindings as bindings;
use bindings::exports::keepwell::archive::reader as exported;

pub use bindings::exports::keepwell::archive::reader::{Content, Damage, Entry, Event, Link, Node};
pub use bindings::exports::keepwell::archive::source::{Borders, Origin, Request, Summary};
pub use bindings::keepwell::archive::archive_sink::{
    Chunking, Extent, Omission, Reused, Stream, catalog_add, catalog_enter, catalog_leave,
    catalog_open, open_stream, skipped,
};
pub use bindings::keepwell::archive::commands::{Argument, Process};
pub use bindings::keepwell::archive::filesystem::{
    Directory, Examined, File, Identity, Listed, Opened,
};
pub use bindings::keepwell::archive::patterns::{PatternList, Verdict};
pub use bindings::keepwell::archive::random_access::Bytes;
pub use bindings::keepwell::archive::{paths, scratch, surroundings};

pub use bindings::exports::keepwell::archive::about::{ArchiveType, Info, OriginKind};

/// What the plugin says of itself.
pub trait Plugin {
    /// Must give the same answer each time; the host caches it.
    fn describe() -> Info;
}

/// A plugin that makes archives.
pub trait Source {
    /// Makes one archive from what the user named.
    fn write_archive(origin: Origin, request: Request) -> Result<Summary, Failure>;
}

/// A plugin that looks into archives.
pub trait Reader {
    type Archive: Archive;
}

/// Children of a directory; one that can't be read does not hide the others.
pub type Children = Vec<Result<Entry, Damage>>;

/// An open archive.
pub trait Archive: Sized + 'static {
    type Walk: Walk;
    fn open(streams: Vec<Bytes>) -> Result<Self, Failure>;
    fn root(&self) -> Result<Entry, Failure>;
    fn children(&self, dir: Node, after: Option<Node>, max: u32) -> Result<Children, Failure>;
    fn child(&self, directory: Node, name: &[u8]) -> Result<Option<Entry>, Failure>;
    fn entry(&self, node: Node) -> Result<Entry, Failure>;
    /// Only called for entries whose content is `computed`.
    fn read(&self, node: Node, _offset: u64, _length: u32) -> Result<Vec<u8>, Failure> {
        Err(Failure::Unsupported(format!("entry {} has no computed content", node.at)))
    }
    fn walk(&self) -> Result<Self::Walk, Failure>;
}

/// A walk through an archive, see `keepwell:archive/reader`.
pub trait Walk: 'static {
    fn next(&self, max: u32) -> Result<Vec<Event>, Failure>;
}

#[doc(hidden)]
pub struct Adapter<P>(std::marker::PhantomData<P>);

impl<P: Plugin> bindings::exports::keepwell::archive::about::Guest for Adapter<P> {
    fn describe() -> Info {
        crate::install_panic_hook();
        P::describe()
    }
}

impl<P: Source> bindings::exports::keepwell::archive::source::Guest for Adapter<P> {
    fn write_archive(origin: Origin, request: Request) -> Result<Summary, Failure> {
        crate::install_panic_hook();
        P::write_archive(origin, request)
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
    fn open(streams: Vec<Bytes>) -> Result<exported::Archive, Failure> {
        crate::install_panic_hook();
        Ok(exported::Archive::new(ArchiveAdapter(A::open(streams)?)))
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

/// Makes the component of a type that implements `Plugin`, `archive::Source` and
/// `archive::Reader`.
#[macro_export]
macro_rules! export_archive_plugin {
    ($plugin:ty) => {
        #[cfg(target_family = "wasm")]
        const _: () = {
            type Exported = $crate::archive::Adapter<$plugin>;
            $crate::archive_bindings::export_bindings!(Exported with_types_in $crate::archive_bindings);
        };
    };
}
