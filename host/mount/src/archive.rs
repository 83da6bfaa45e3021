//! Archives that are opened when they are first looked into, and what goes wrong with them.

use fuser::Errno;
use keepwell_engine::EngineError;
use keepwell_engine::browse;
use keepwell_engine::plugin::{
    Archive, Content, Entry, EntryKind, Event, Extent, Failure, Node, Reader,
};
use keepwell_engine::restore::ContentSource;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// No key fits: `ENOKEY`, which fuser has no name for.
const NO_KEY: i32 = 126;

/// Why a request fails: what the program is told, and what the log says.
#[derive(Debug)]
pub struct Problem {
    pub(crate) errno: Errno,
    pub(crate) text: String,
    /// the plugin has died
    pub(crate) is_fatal: bool,
}

impl Problem {
    pub fn missing() -> Self {
        Self::of(Errno::ENOENT)
    }

    /// Bytes that can't be had.
    pub fn unreadable(text: impl Into<String>) -> Self {
        Self { text: text.into(), ..Self::of(Errno::EIO) }
    }

    pub fn no_key(text: impl Into<String>) -> Self {
        Self { text: text.into(), ..Self::of(Errno::from_i32(NO_KEY)) }
    }

    pub(crate) fn of(errno: Errno) -> Self {
        Self { errno, text: String::new(), is_fatal: false }
    }
}

impl From<EngineError> for Problem {
    fn from(error: EngineError) -> Self {
        let is_fatal = matches!(error, EngineError::Plugin(Failure::Trap { .. }));
        Self { is_fatal, ..Self::unreadable(keepwell_engine::restore::chain(&error)) }
    }
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        EngineError::from(failure).into()
    }
}

/// How many names files have, by the places of their first entries. Archives don't tell before the
/// last of them has been met.
pub enum Links {
    /// files that are not in it have one
    Known(HashMap<u64, u32>),
    /// Any file may have more than one, and says so: what copies trees looks for them then.
    Unknown,
}

/// Counts the names of files that have further ones, given the paths of those.
pub fn further_names(
    archive: &mut dyn Archive,
    paths: impl Iterator<Item = Vec<Vec<u8>>>,
) -> Result<HashMap<u64, u32>, EngineError> {
    let mut names: HashMap<u64, u32> = HashMap::new();
    for path in paths {
        let entry = browse::find(archive, &path)?;
        if let Some(Entry { content: Content::HardLink { node, .. }, .. }) = entry {
            *names.entry(node.at).or_insert(1) += 1;
        }
    }
    Ok(names)
}

/// Counts them by walking through all entries; none where there are more than `max`.
pub fn links_of(
    archive: &mut dyn Archive,
    max: u64,
) -> Result<Option<HashMap<u64, u32>>, EngineError> {
    let (mut names, mut count) = (HashMap::new(), 0);
    archive.start_walk()?;
    loop {
        let events = archive.walk(WALK_BATCH)?;
        if events.is_empty() {
            return Ok(Some(names));
        }
        count += events.len() as u64;
        if count > max {
            return Ok(None);
        }
        for event in events {
            if let Event::Leaf(Entry { content: Content::HardLink { node, .. }, .. }) = event {
                *names.entry(node.at).or_insert(1) += 1;
            }
        }
    }
}

/// Events asked of a walk at a time.
const WALK_BATCH: u32 = 1024;

/// An archive that is open.
pub struct OpenArchive {
    /// The reader has to live as long as its archive, and is dropped after it.
    inner: Mutex<(Box<dyn Archive>, Box<dyn Reader>)>,
    content: Arc<dyn ContentSource>,
    links: Links,
}

impl OpenArchive {
    pub fn new(
        archive: Box<dyn Archive>,
        reader: Box<dyn Reader>,
        content: Arc<dyn ContentSource>,
        links: Links,
    ) -> Self {
        Self { inner: Mutex::new((archive, reader)), content, links }
    }

    /// Whether it is one file, and no tree.
    pub fn is_file(&self) -> bool {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.0.root().is_ok_and(|root| root.metadata.kind == EntryKind::File)
    }

    pub(crate) fn links(&self, entry: &Entry) -> u32 {
        match &self.links {
            Links::Known(names) => names.get(&entry.node.at).copied().unwrap_or(1),
            Links::Unknown => 2,
        }
    }

    fn lock(&self) -> MutexGuard<'_, (Box<dyn Archive>, Box<dyn Reader>)> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the plugin something.
    pub(crate) fn with<T>(
        &self,
        ask: impl FnOnce(&mut dyn Archive) -> Result<T, Problem>,
    ) -> Result<T, Problem> {
        ask(&mut *self.lock().0)
    }

    /// Bytes of a file; fewer only at its end.
    pub(crate) fn read(&self, entry: &Entry, offset: u64, length: u32) -> Result<Vec<u8>, Problem> {
        let extents = match &entry.content {
            Content::Stored(extents) => extents,
            Content::Computed => {
                return self.with(|archive| Ok(archive.read(entry.node, offset, length)?));
            }
            Content::None | Content::HardLink { .. } => return Ok(Vec::new()),
        };
        let mut bytes = Vec::with_capacity(length as usize);
        // Where the extent begins in the file.
        let mut start = 0u64;
        for extent in extents {
            let wanted = offset.saturating_add(bytes.len() as u64).saturating_sub(start);
            start = start.saturating_add(extent.length);
            let rest = u64::from(length) - bytes.len() as u64;
            if wanted >= extent.length || rest == 0 {
                continue;
            }
            let outside = || Problem::unreadable("content lies outside of the archive");
            let part = Extent {
                offset: extent.offset.checked_add(wanted).ok_or_else(outside)?,
                length: rest.min(extent.length - wanted),
                ..*extent
            };
            for part in self.content.parts(part).ok_or_else(outside)? {
                let fetched = self.content.fetch(&part)?;
                bytes.extend(fetched.bytes.get(fetched.from..fetched.to).unwrap_or_default());
            }
        }
        Ok(bytes)
    }
}

/// Opens an archive.
pub type Opener = Box<dyn Fn() -> Result<OpenArchive, Problem> + Send + Sync>;

/// An archive that is opened when it is first asked, and may be closed meanwhile.
pub(crate) struct Lazy {
    /// tells archives apart
    pub(crate) id: u64,
    opener: Opener,
    open: Mutex<Option<Arc<OpenArchive>>>,
}

impl Lazy {
    pub(crate) fn new(opener: Opener) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Self { id, opener, open: Mutex::default() }
    }

    /// And whether it was opened just now.
    pub(crate) fn open(&self) -> Result<(Arc<OpenArchive>, bool), Problem> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = &*open {
            return Ok((open.clone(), false));
        }
        let new = Arc::new((self.opener)()?);
        *open = Some(new.clone());
        Ok((new, true))
    }

    /// Who uses it now goes on; who asks next opens it again.
    pub(crate) fn close(&self) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// The entry at a node, or that of the file that it is one more name of.
pub(crate) fn entry_at(archive: &mut dyn Archive, node: Node) -> Result<Entry, Problem> {
    let entry = if node == Node::ROOT { archive.root()? } else { archive.entry(node)? };
    Ok(browse::resolve(archive, entry)?)
}
