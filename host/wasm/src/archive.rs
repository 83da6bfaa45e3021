//! Sources and readers of contract 0.1: the host's functions, and the engine's seams over exports.

mod capabilities;
mod host;
pub(crate) mod process;
pub(crate) mod web;

use crate::bindings::archive::ArchivePlugin;
use crate::bindings::archive::exports::keepwell::archive::{about, reader, source};
use crate::convert::{entry, event, guest_node, info, option_values};
use crate::state::{BytesHandle, DirectoryHandle, FileHandle, Patience, State, store, trap};
use crate::{LoadError, Plugin, PluginInfo, wasi};
use keepwell_engine::Cancel;
use keepwell_engine::archive::RandomAccess;
use keepwell_engine::plugin::{
    Archive, Borders, Child, Entry, Event, Failure, Node, Origin, Reader, Source, SourceRequest,
    SourceSummary,
};
use keepwell_engine::report::Report;
use keepwell_engine::sink::Sink;
use std::sync::Arc;
use wasmtime::Store;
use wasmtime::component::{HasSelf, Instance, InstancePre, Linker, Resource, ResourceAny};

/// Links a component with all that archives may import; what it imports beyond that is refused.
fn link(plugin: &Plugin) -> Result<InstancePre<State>, LoadError> {
    let component = plugin.component()?;
    let mut linker = Linker::new(plugin.runtime().engine());
    ArchivePlugin::add_to_linker::<_, HasSelf<_>>(&mut linker, |state| state)
        .and_then(|()| wasi::link(&mut linker, component, plugin.runtime().engine()))
        .and_then(|()| linker.instantiate_pre(component))
        .map_err(|error| plugin.unusable(&error))
}

/// An instance in a store of its own.
fn instantiate(
    plugin: &Plugin,
    pre: &InstancePre<State>,
    report: Option<Report>,
    patience: Patience,
) -> Result<(Store<State>, Instance), LoadError> {
    let mut store = store(plugin, report, patience);
    let instance = pre.instantiate(&mut store).map_err(|error| plugin.unusable(&error))?;
    Ok((store, instance))
}

pub(crate) fn describe(plugin: &Plugin) -> Result<PluginInfo, LoadError> {
    let pre = link(plugin)?;
    let (mut store, instance) = instantiate(plugin, &pre, None, Patience::Limited)?;
    let guest = about::GuestIndices::new(&pre)
        .and_then(|indices| indices.load(&mut store, &instance))
        .map_err(|error| plugin.unusable(&error))?;
    let described = guest.call_describe(&mut store);
    let given = described.map_err(|error| trap(&mut store, &error))?;
    let mut described =
        info(given.name, given.version, given.summary, given.options, given.capabilities);
    described.archive_types = given.archive_types.into_iter().map(Into::into).collect();
    Ok(described)
}

/// A linked plugin, with what its instances report to and are stopped by.
struct Linked<Indices> {
    plugin: Plugin,
    pre: InstancePre<State>,
    indices: Indices,
    report: Report,
    cancel: Cancel,
}

impl<Indices> Linked<Indices> {
    fn new(
        plugin: &Plugin,
        find: fn(&InstancePre<State>) -> wasmtime::Result<Indices>,
        report: Report,
        cancel: Cancel,
    ) -> Result<Self, LoadError> {
        let pre = link(plugin)?;
        let indices = find(&pre).map_err(|error| plugin.unusable(&error))?;
        Ok(Self { plugin: plugin.clone(), pre, indices, report, cancel })
    }

    /// A new instance, and its exports as `load` finds them.
    fn start<Guest>(
        &self,
        load: fn(&Indices, &mut Store<State>, &Instance) -> wasmtime::Result<Guest>,
    ) -> Result<(Store<State>, Guest), Failure> {
        let patience = Patience::Until(self.cancel.clone());
        let report = Some(self.report.clone());
        let failure = |error: LoadError| Failure::Other(error.to_string());
        let (mut store, instance) =
            instantiate(&self.plugin, &self.pre, report, patience).map_err(failure)?;
        let guest = load(&self.indices, &mut store, &instance)
            .map_err(|error| failure(self.plugin.unusable(&error)))?;
        Ok((store, guest))
    }
}

/// A source: one instance for each archive.
pub(crate) struct WasmSource(Linked<source::GuestIndices>);

impl WasmSource {
    pub(crate) fn new(plugin: &Plugin, report: Report, cancel: Cancel) -> Result<Self, LoadError> {
        Ok(Self(Linked::new(plugin, source::GuestIndices::new, report, cancel)?))
    }
}

impl Source for WasmSource {
    fn write_archive(
        &mut self,
        origin: Origin,
        request: SourceRequest,
        sink: Sink,
    ) -> Result<SourceSummary, Failure> {
        let (mut store, guest) =
            self.0.start(|indices, store, instance| indices.load(store, instance))?;
        let state = store.data_mut();
        state.sink = Some(sink);
        state.rights = Some(self.0.plugin.rights());
        state.suffixes = request.suffixes.clone();
        let granted = |error: wasmtime::Error| Failure::Other(error.to_string());
        let origin = match origin {
            Origin::Directory(directory) => {
                source::Origin::Directory(state.push(DirectoryHandle(directory)).map_err(granted)?)
            }
            Origin::File(file) => {
                source::Origin::File(state.push(FileHandle(file, None)).map_err(granted)?)
            }
        };
        let previous = grant(state, request.previous).map_err(granted)?;
        let request = source::Request {
            archive_name: request.archive_name,
            archive_extension: request.archive_extension,
            options: option_values(request.options),
            borders: match request.borders {
                Borders::Stay => source::Borders::Stay,
                Borders::CrossAll => source::Borders::CrossAll,
                Borders::CrossListed(devices) => source::Borders::CrossListed(devices),
            },
            entries_max: request.entries_max,
            previous,
        };
        let written = guest.call_write_archive(&mut store, origin, &request);
        let outcome = match written {
            Ok(outcome) => {
                let outcome = outcome.map_err(Failure::from);
                let outcome = outcome.and_then(|summary| {
                    store.data().check_spliced()?;
                    store.data_mut().sink()?.check_end()?;
                    Ok(summary)
                });
                outcome.map_err(|failure| store.data().blamed(failure))
            }
            Err(_) if self.0.cancel.is_cancelled() => Err(Failure::Cancelled),
            Err(error) => Err(trap(&mut store, &error)),
        };
        // The streams end here.
        store.data_mut().sink = None;
        Ok(SourceSummary { entries: outcome?.entries })
    }
}

fn grant(
    state: &mut State,
    streams: Vec<Arc<dyn RandomAccess>>,
) -> wasmtime::Result<Vec<Resource<BytesHandle>>> {
    streams.into_iter().map(|stream| state.push(BytesHandle(stream))).collect()
}

/// A reader: one instance for each open archive.
pub(crate) struct WasmReader(Linked<reader::GuestIndices>);

impl WasmReader {
    pub(crate) fn new(plugin: &Plugin, report: Report, cancel: Cancel) -> Result<Self, LoadError> {
        Ok(Self(Linked::new(plugin, reader::GuestIndices::new, report, cancel)?))
    }
}

impl Reader for WasmReader {
    fn open(&mut self, streams: Vec<Arc<dyn RandomAccess>>) -> Result<Box<dyn Archive>, Failure> {
        let (mut store, guest) =
            self.0.start(|indices, store, instance| indices.load(store, instance))?;
        let streams = grant(store.data_mut(), streams);
        let streams = streams.map_err(|error| Failure::Other(error.to_string()))?;
        let opened = guest.archive().call_open(&mut store, &streams);
        let archive = opened
            .map_err(|error| trap(&mut store, &error))?
            .map_err(|failure| store.data().blamed(failure.into()))?;
        Ok(Box::new(WasmArchive { store, guest, archive, walk: None, walk_depth: 0 }))
    }
}

struct WasmArchive {
    store: Store<State>,
    guest: reader::Guest,
    archive: ResourceAny,
    walk: Option<ResourceAny>,
    /// directories that the walk has entered and not left
    walk_depth: u64,
}

impl WasmArchive {
    fn done<T>(
        &mut self,
        outcome: wasmtime::Result<
            Result<T, crate::bindings::archive::keepwell::types::types::Failure>,
        >,
    ) -> Result<T, Failure> {
        self.store.data_mut().is_busy();
        let outcome = outcome.map_err(|error| trap(&mut self.store, &error))?;
        outcome.map_err(|failure| self.store.data().blamed(failure.into()))
    }

    /// An event of the walk. Nothing is left that was not entered: the root is neither.
    fn event_of(&mut self, given: reader::Event) -> Result<Event, Failure> {
        let event = event(given).map_err(|failure| self.store.data().blamed(failure))?;
        match &event {
            Event::Enter(_) => self.walk_depth += 1,
            Event::Leaf(_) => {}
            Event::Leave if self.walk_depth > 0 => self.walk_depth -= 1,
            Event::Leave => {
                let problem = Failure::Corrupt("the walk leaves what it did not enter".into());
                return Err(self.store.data().blamed(problem));
            }
        }
        Ok(event)
    }

    /// An entry that it returned.
    fn entry_of(&self, given: reader::Entry, is_root: bool) -> Result<Entry, Failure> {
        entry(given, is_root).map_err(|failure| self.store.data().blamed(failure))
    }
}

impl Archive for WasmArchive {
    fn root(&mut self) -> Result<Entry, Failure> {
        let called = self.guest.archive().call_root(&mut self.store, self.archive);
        let given = self.done(called)?;
        self.entry_of(given, true)
    }

    fn children(
        &mut self,
        directory: Node,
        after: Option<Node>,
        max: u32,
    ) -> Result<Vec<Child>, Failure> {
        let called = self.guest.archive().call_children(
            &mut self.store,
            self.archive,
            guest_node(directory),
            after.map(guest_node),
            max,
        );
        let children = self.done(called)?.into_iter().map(|child| match child {
            Ok(given) => {
                let node = given.node.into();
                self.entry_of(given, false).map_err(|failure| (node, failure))
            }
            Err(damage) => Err((damage.node.into(), damage.failure.into())),
        });
        Ok(children.collect())
    }

    fn child(&mut self, directory: Node, name: &[u8]) -> Result<Option<Entry>, Failure> {
        let node = guest_node(directory);
        let name = name.to_vec();
        let called = self.guest.archive().call_child(&mut self.store, self.archive, node, &name);
        self.done(called)?.map(|given| self.entry_of(given, false)).transpose()
    }

    fn entry(&mut self, node: Node) -> Result<Entry, Failure> {
        let node = guest_node(node);
        let called = self.guest.archive().call_entry(&mut self.store, self.archive, node);
        let given = self.done(called)?;
        self.entry_of(given, true)
    }

    fn read(&mut self, node: Node, offset: u64, length: u32) -> Result<Vec<u8>, Failure> {
        let node = guest_node(node);
        let called =
            self.guest.archive().call_read(&mut self.store, self.archive, node, offset, length);
        self.done(called)
    }

    fn start_walk(&mut self) -> Result<(), Failure> {
        let called = self.guest.archive().call_walk(&mut self.store, self.archive);
        self.walk = Some(self.done(called)?);
        self.walk_depth = 0;
        Ok(())
    }

    fn walk(&mut self, max: u32) -> Result<Vec<Event>, Failure> {
        let walk = self.walk.ok_or_else(|| Failure::Invalid("the walk has not begun".into()))?;
        let called = self.guest.walk().call_next(&mut self.store, walk, max);
        let events = self.done(called)?;
        events.into_iter().map(|given| self.event_of(given)).collect()
    }
}
