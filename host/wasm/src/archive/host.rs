//! The functions that sources and readers import. Each checks what it is given: lengths are
//! bounded before anything is allocated.

use crate::bindings::archive::keepwell::archive::{
    archive_sink, filesystem, patterns, random_access,
};
use crate::bindings::archive::keepwell::types::types as wit;
use crate::state::{
    BytesHandle, DirectoryHandle, FileHandle, PatternHandle, State, StreamHandle, plain,
};
use keepwell_engine::input::Listed;
use keepwell_engine::pattern::{PatternList, Verdict};
use keepwell_engine::plugin::{EntryKind, Failure};
use keepwell_engine::sink::{Chunking, Reused};
use std::sync::Arc;
use wasmtime::component::Resource;

type Answer<T> = wasmtime::Result<Result<T, wit::Failure>>;

/// Names and bytes handed out at once: a plugin can't make the host allocate more.
const LIST_MAX: u32 = 16_384;
pub(super) const READ_BYTES_MAX: u32 = 1 << 20;
const OPEN_MAX: usize = 1024;
const TOO_MANY: &str = "too many children at once";
const PATTERNS_MAX: usize = 10_000;
/// Longer paths and texts in a report are cut.
const TEXT_BYTES_MAX: usize = 4096;

pub(super) fn answer<T>(outcome: Result<T, Failure>) -> Answer<T> {
    Ok(outcome.map_err(wit::Failure::from))
}

impl filesystem::Host for State {}

impl filesystem::HostDirectory for State {
    fn examine(&mut self, this: Resource<DirectoryHandle>) -> Answer<filesystem::Examined> {
        answer(self.table.get(&this)?.0.examine().map(Into::into))
    }

    fn read(
        &mut self,
        this: Resource<DirectoryHandle>,
        max: u32,
    ) -> Answer<Vec<filesystem::Listed>> {
        self.is_busy();
        let listed = self.table.get_mut(&this)?.0.read(max.min(LIST_MAX));
        answer(listed.map(|names| names.into_iter().map(Into::into).collect()))
    }

    fn open_directory(
        &mut self,
        this: Resource<DirectoryHandle>,
        name: Vec<u8>,
    ) -> Answer<(Resource<DirectoryHandle>, filesystem::Examined)> {
        match self.table.get(&this)?.0.open_directory(&name) {
            Ok((directory, examined)) => {
                let handle = self.push(DirectoryHandle(directory))?;
                Ok(Ok((handle, examined.into())))
            }
            Err(failure) => answer(Err(failure)),
        }
    }

    fn open_children(
        &mut self,
        this: Resource<DirectoryHandle>,
        children: Vec<filesystem::Listed>,
    ) -> wasmtime::Result<Vec<Result<filesystem::Opened, wit::Failure>>> {
        self.is_busy();
        let mut all = Vec::with_capacity(children.len().min(OPEN_MAX));
        for (position, child) in children.into_iter().enumerate() {
            if position >= OPEN_MAX {
                all.push(Err(wit::Failure::Invalid(TOO_MANY.into())));
                continue;
            }
            let opened = match self.table.get(&this)?.0.open_child(&Listed::from(child)) {
                Ok(opened) => opened,
                Err(failure) => {
                    all.push(Err(failure.into()));
                    continue;
                }
            };
            let handle = match opened.handle {
                Some(file) => Some(self.push(FileHandle(file, None))?),
                None => None,
            };
            all.push(Ok(filesystem::Opened { examined: opened.examined.into(), handle }));
        }
        Ok(all)
    }

    fn examine_children(
        &mut self,
        this: Resource<DirectoryHandle>,
        children: Vec<filesystem::Listed>,
    ) -> wasmtime::Result<Vec<Result<filesystem::Examined, wit::Failure>>> {
        self.is_busy();
        let directory = &self.table.get(&this)?.0;
        let examine = |(position, child)| match position < OPEN_MAX {
            true => directory.examine_child(&Listed::from(child)).map(Into::into),
            false => Err(Failure::Invalid(TOO_MANY.into())),
        };
        let examined = children.into_iter().enumerate().map(examine);
        Ok(examined.map(|examined| examined.map_err(wit::Failure::from)).collect())
    }

    fn drop(&mut self, this: Resource<DirectoryHandle>) -> wasmtime::Result<()> {
        self.table.delete(this)?;
        Ok(())
    }
}

impl filesystem::HostFile for State {
    fn examine(&mut self, this: Resource<FileHandle>) -> Answer<filesystem::Examined> {
        answer(self.table.get(&this)?.0.examine().map(Into::into))
    }

    fn read_at(&mut self, this: Resource<FileHandle>, offset: u64, length: u32) -> Answer<Vec<u8>> {
        self.is_busy();
        let file = &self.table.get(&this)?.0;
        let mut bytes = vec![0; length.min(READ_BYTES_MAX) as usize];
        let read = file.read_or_wait(&mut bytes, offset, &self.cancel);
        answer(read.map(|read| {
            bytes.truncate(read);
            bytes
        }))
    }

    fn drop(&mut self, this: Resource<FileHandle>) -> wasmtime::Result<()> {
        self.table.delete(this)?;
        Ok(())
    }
}

impl patterns::Host for State {}

impl patterns::HostPatternList for State {
    fn new(&mut self) -> wasmtime::Result<Resource<PatternHandle>> {
        self.push(PatternHandle(PatternList::default()))
    }

    fn push(
        &mut self,
        this: Resource<PatternHandle>,
        pattern: Vec<u8>,
        base: Vec<Vec<u8>>,
    ) -> wasmtime::Result<Result<(), String>> {
        let list = &mut self.table.get_mut(&this)?.0;
        if list.len() >= PATTERNS_MAX {
            return Ok(Err(format!("more than {PATTERNS_MAX} patterns")));
        }
        let base = rooted(&base);
        Ok(list.push(&pattern, &base).map_err(|problem| problem.to_string()))
    }

    fn size(&mut self, this: Resource<PatternHandle>) -> wasmtime::Result<u32> {
        Ok(u32::try_from(self.table.get(&this)?.0.len()).unwrap_or(u32::MAX))
    }

    fn truncate(&mut self, this: Resource<PatternHandle>, size: u32) -> wasmtime::Result<()> {
        self.table.get_mut(&this)?.0.truncate(size as usize);
        Ok(())
    }

    fn judge(
        &mut self,
        this: Resource<PatternHandle>,
        directory: Vec<Vec<u8>>,
        children: Vec<filesystem::Listed>,
    ) -> wasmtime::Result<Vec<patterns::Verdict>> {
        let list = &self.table.get(&this)?.0;
        let mut path = rooted(&directory);
        path.push(b'/');
        let length = path.len();
        let verdicts = children.into_iter().map(|child| {
            path.truncate(length);
            path.extend(&child.name);
            let is_directory = EntryKind::from(child.kind) == EntryKind::Directory;
            match list.judge(&path, is_directory) {
                Verdict::None => patterns::Verdict::None,
                Verdict::Include => patterns::Verdict::Include,
                Verdict::Exclude => patterns::Verdict::Exclude,
            }
        });
        Ok(verdicts.collect())
    }

    fn drop(&mut self, this: Resource<PatternHandle>) -> wasmtime::Result<()> {
        self.table.delete(this)?;
        Ok(())
    }
}

/// `/a/b`; nothing for the root.
fn rooted(path: &[Vec<u8>]) -> Vec<u8> {
    path.iter().flat_map(|name| [b"/", &name[..]].concat()).collect()
}

impl archive_sink::HostStream for State {
    fn write(&mut self, this: Resource<StreamHandle>, bytes: Vec<u8>) -> Answer<()> {
        self.is_busy();
        let stream = self.table.get(&this)?.0;
        answer(self.sink().and_then(|sink| sink.write(stream, bytes)))
    }

    fn splice(
        &mut self,
        this: Resource<StreamHandle>,
        source: Resource<FileHandle>,
        offset: u64,
        length: u64,
    ) -> Answer<()> {
        self.is_busy();
        let stream = self.table.get(&this)?.0;
        let file = Arc::clone(&self.table.get(&source)?.0);
        if !file.has_positions() {
            let text = "a pipe is spliced to its end".into();
            return answer(Err(Failure::Unsupported(text)));
        }
        answer(self.sink().and_then(|sink| sink.splice(stream, file, offset, length)))
    }

    fn splice_to_end(
        &mut self,
        this: Resource<StreamHandle>,
        source: Resource<FileHandle>,
    ) -> Answer<u64> {
        self.is_busy();
        let stream = self.table.get(&this)?.0;
        let FileHandle(file, unfinished) = self.table.get(&source)?;
        let (file, unfinished) = (Arc::clone(file), unfinished.clone());
        if let Some(unfinished) = unfinished {
            self.note_spliced(unfinished);
        }
        answer(self.sink().and_then(|sink| sink.splice_to_end(stream, file)))
    }

    fn reuse(
        &mut self,
        this: Resource<StreamHandle>,
        previous: archive_sink::Extent,
        continues: bool,
    ) -> Answer<Option<archive_sink::Reused>> {
        self.is_busy();
        let stream = self.table.get(&this)?.0;
        let reused = self.sink().and_then(|sink| sink.reuse(stream, previous.into(), continues));
        answer(reused.map(|reused| {
            reused.map(|Reused { at, position }| archive_sink::Reused { at, position })
        }))
    }

    fn suggest_boundary(&mut self, _this: Resource<StreamHandle>) -> wasmtime::Result<()> {
        // A hint that content-defined chunking of version 1 archives has no use for.
        Ok(())
    }

    fn drop(&mut self, this: Resource<StreamHandle>) -> wasmtime::Result<()> {
        self.table.delete(this)?;
        Ok(())
    }
}

/// Catalog calls have no answer: what is wrong with one ends the plugin.
fn or_trap(outcome: Result<(), Failure>) -> wasmtime::Result<()> {
    outcome.map_err(|failure| wasmtime::Error::msg(format!("catalog: {failure}")))
}

impl archive_sink::Host for State {
    fn open_stream(
        &mut self,
        suffix: String,
        chunking: archive_sink::Chunking,
        size: Option<u64>,
    ) -> Answer<Resource<StreamHandle>> {
        let chunking = match chunking {
            archive_sink::Chunking::ContentDefined => Chunking::ContentDefined,
            archive_sink::Chunking::Fixed(size) => Chunking::Fixed(size),
            archive_sink::Chunking::SingleBlob => Chunking::SingleBlob,
        };
        if !self.suffixes.contains(&suffix) {
            let (given, known) = (plain(&suffix), self.suffixes.join(", "));
            let text = format!("a stream '{given}', where there are {known}: see archive-type");
            return answer(Err(Failure::Invalid(text)));
        }
        match self.sink().and_then(|sink| sink.open_stream(&suffix, chunking, size)) {
            Ok(stream) => Ok(Ok(self.push(StreamHandle(stream))?)),
            Err(failure) => answer(Err(failure)),
        }
    }

    fn catalog_open(&mut self) -> wasmtime::Result<()> {
        or_trap(self.sink().and_then(|sink| sink.catalog_open()))
    }

    fn catalog_enter(&mut self, name: Vec<u8>) -> wasmtime::Result<()> {
        or_trap(self.sink().and_then(|sink| sink.catalog_enter(&name)))
    }

    fn catalog_leave(&mut self) -> wasmtime::Result<()> {
        or_trap(self.sink().and_then(|sink| sink.catalog_leave()))
    }

    fn catalog_add(
        &mut self,
        name: Vec<u8>,
        kind: wit::EntryKind,
        hard_link: bool,
        size: u64,
        modified: wit::Timestamp,
    ) -> wasmtime::Result<()> {
        let added = self.sink().and_then(|sink| {
            sink.catalog_add(&name, kind.into(), hard_link, size, modified.into())
        });
        or_trap(added)
    }

    fn skipped(
        &mut self,
        path: Vec<Vec<u8>>,
        why: archive_sink::Omission,
        detail: String,
    ) -> wasmtime::Result<()> {
        let mut left = TEXT_BYTES_MAX;
        let path: Vec<Vec<u8>> = path
            .into_iter()
            .take_while(|name| {
                left = left.saturating_sub(name.len() + 1);
                left > 0
            })
            .collect();
        let detail = &detail[..detail.floor_char_boundary(TEXT_BYTES_MAX)];
        if let Ok(sink) = self.sink() {
            sink.skipped(&path, why.into(), &plain(detail));
        }
        Ok(())
    }
}

impl random_access::Host for State {}

impl random_access::HostBytes for State {
    fn size(&mut self, this: Resource<BytesHandle>) -> wasmtime::Result<Option<u64>> {
        Ok(self.table.get(&this)?.0.size())
    }

    fn read_at(
        &mut self,
        this: Resource<BytesHandle>,
        offset: u64,
        length: u32,
    ) -> Answer<Vec<u8>> {
        self.is_busy();
        let length = length.min(READ_BYTES_MAX);
        answer(self.table.get(&this)?.0.read_at(offset, length))
    }

    fn drop(&mut self, this: Resource<BytesHandle>) -> wasmtime::Result<()> {
        self.table.delete(this)?;
        Ok(())
    }
}
