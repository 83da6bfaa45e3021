//! Between the contract's generated types and the engine's.

use crate::PluginInfo;
use crate::bindings::archive::exports::keepwell::archive::{about, reader};
use crate::bindings::archive::keepwell::archive::archive_sink;
use crate::bindings::archive::keepwell::archive::filesystem;
use crate::bindings::archive::keepwell::types::types as wit;
use keepwell_engine::input::{Examined, Listed};
use keepwell_engine::plugin::{
    ArchiveType, Capability, Content, Entry, EntryKind, Event, Extent, Failure, Metadata, Node,
    OptionKind, OptionSpec, OptionValue, OriginKind, Timestamp,
};
use keepwell_engine::report::Omission;

impl From<wit::Failure> for Failure {
    fn from(failure: wit::Failure) -> Self {
        match failure {
            wit::Failure::NotFound(text) => Self::NotFound(text),
            wit::Failure::Denied(text) => Self::Denied(text),
            wit::Failure::Invalid(text) => Self::Invalid(text),
            wit::Failure::Unsupported(text) => Self::Unsupported(text),
            wit::Failure::Corrupt(text) => Self::Corrupt(text),
            wit::Failure::Io(text) => Self::Io(text),
            wit::Failure::Cancelled => Self::Cancelled,
            wit::Failure::Other(text) => Self::Other(text),
        }
    }
}

impl From<Failure> for wit::Failure {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::NotFound(text) => Self::NotFound(text),
            Failure::Denied(text) => Self::Denied(text),
            Failure::Invalid(text) => Self::Invalid(text),
            Failure::Unsupported(text) => Self::Unsupported(text),
            Failure::Corrupt(text) => Self::Corrupt(text),
            Failure::Io(text) => Self::Io(text),
            Failure::Cancelled => Self::Cancelled,
            Failure::Other(text) => Self::Other(text),
            trap @ Failure::Trap { .. } => Self::Other(trap.to_string()),
        }
    }
}

impl From<EntryKind> for wit::EntryKind {
    fn from(kind: EntryKind) -> Self {
        match kind {
            EntryKind::Directory => Self::Directory,
            EntryKind::File => Self::File,
            EntryKind::Symlink => Self::Symlink,
            EntryKind::BlockDevice => Self::BlockDevice,
            EntryKind::CharacterDevice => Self::CharacterDevice,
            EntryKind::Fifo => Self::Fifo,
            EntryKind::Socket => Self::Socket,
        }
    }
}

impl From<wit::EntryKind> for EntryKind {
    fn from(kind: wit::EntryKind) -> Self {
        match kind {
            wit::EntryKind::Directory => Self::Directory,
            wit::EntryKind::File => Self::File,
            wit::EntryKind::Symlink => Self::Symlink,
            wit::EntryKind::BlockDevice => Self::BlockDevice,
            wit::EntryKind::CharacterDevice => Self::CharacterDevice,
            wit::EntryKind::Fifo => Self::Fifo,
            wit::EntryKind::Socket => Self::Socket,
        }
    }
}

impl From<Metadata> for wit::Metadata {
    fn from(metadata: Metadata) -> Self {
        let extended = metadata.extended.into_iter();
        Self {
            kind: metadata.kind.into(),
            mode: metadata.mode,
            owner: metadata.owner,
            group: metadata.group,
            modified: wit::Timestamp {
                seconds: metadata.modified.seconds,
                nanoseconds: metadata.modified.nanoseconds,
            },
            size: metadata.size,
            inode_flags: metadata.inode_flags,
            fat_attributes: metadata.fat_attributes,
            project: metadata.project,
            device: metadata.device,
            link_target: metadata.link_target,
            extended: extended
                .map(|(name, value)| wit::ExtendedAttribute { name, value })
                .collect(),
        }
    }
}

impl From<wit::Metadata> for Metadata {
    fn from(metadata: wit::Metadata) -> Self {
        let extended = metadata.extended.into_iter();
        Self {
            kind: metadata.kind.into(),
            mode: metadata.mode & 0o7777,
            owner: metadata.owner,
            group: metadata.group,
            modified: metadata.modified.into(),
            size: metadata.size,
            inode_flags: metadata.inode_flags,
            fat_attributes: metadata.fat_attributes,
            project: metadata.project,
            device: metadata.device,
            link_target: metadata.link_target,
            extended: extended.map(|attribute| (attribute.name, attribute.value)).collect(),
        }
    }
}

impl From<wit::Timestamp> for Timestamp {
    fn from(time: wit::Timestamp) -> Self {
        Self { seconds: time.seconds, nanoseconds: time.nanoseconds.min(999_999_999) }
    }
}

impl From<Examined> for filesystem::Examined {
    fn from(examined: Examined) -> Self {
        let identity = examined.identity;
        Self {
            metadata: examined.metadata.into(),
            identity: filesystem::Identity {
                device: identity.device,
                inode: identity.inode,
                links: identity.links,
                filesystem: identity.filesystem,
            },
            incomplete: examined.incomplete,
        }
    }
}

impl From<Listed> for filesystem::Listed {
    fn from(listed: Listed) -> Self {
        Self { name: listed.name, kind: listed.kind.into() }
    }
}

impl From<filesystem::Listed> for Listed {
    fn from(listed: filesystem::Listed) -> Self {
        Self { name: listed.name, kind: listed.kind.into() }
    }
}

impl From<archive_sink::Extent> for Extent {
    fn from(extent: archive_sink::Extent) -> Self {
        Self { stream: extent.stream, offset: extent.offset, length: extent.length }
    }
}

impl From<archive_sink::Omission> for Omission {
    fn from(omission: archive_sink::Omission) -> Self {
        use archive_sink::Omission as Given;
        match omission {
            Given::MountPoint => Self::MountPoint,
            Given::Denied => Self::Denied,
            Given::Vanished => Self::Vanished,
            Given::Unsupported => Self::Unsupported,
            Given::Changed => Self::Changed,
            Given::Unreadable => Self::Unreadable,
            Given::TooLarge => Self::TooLarge,
            Given::Marked => Self::Marked,
        }
    }
}

impl From<wit::OptionSpec> for OptionSpec {
    fn from(spec: wit::OptionSpec) -> Self {
        let kind = match spec.kind {
            wit::OptionKind::Flag => OptionKind::Flag,
            wit::OptionKind::Integer => OptionKind::Integer,
            wit::OptionKind::Size => OptionKind::Size,
            wit::OptionKind::Duration => OptionKind::Duration,
            wit::OptionKind::Text => OptionKind::Text,
            wit::OptionKind::Pattern => OptionKind::Pattern,
        };
        let wit::OptionSpec { name, help, repeatable, default, minimum, choices, .. } = spec;
        let defaults = default.into_iter().collect();
        Self { name, kind, help, repeatable, defaults, minimum, choices }
    }
}

impl From<wit::Capability> for Capability {
    fn from(capability: wit::Capability) -> Self {
        match capability {
            wit::Capability::Read(path) => Self::Read(path),
            wit::Capability::Run(program) => Self::Run(program),
            wit::Capability::Environment(name) => Self::Environment(name),
            wit::Capability::Clock => Self::Clock,
            wit::Capability::Random => Self::Random,
            wit::Capability::Scratch(bytes) => Self::Scratch(bytes),
            wit::Capability::Http(host) => Self::Http(host),
        }
    }
}

pub(crate) fn option_values(options: Vec<OptionValue>) -> Vec<wit::OptionValue> {
    options.into_iter().map(|o| wit::OptionValue { name: o.name, value: o.value }).collect()
}

impl From<about::ArchiveType> for ArchiveType {
    fn from(given: about::ArchiveType) -> Self {
        let origin = match given.origin {
            about::OriginKind::Directory => OriginKind::Directory,
            about::OriginKind::File => OriginKind::File,
            about::OriginKind::FileOrBlockDevice => OriginKind::FileOrBlockDevice,
        };
        Self { extension: given.extension, origin, noun: given.noun, parts: given.parts }
    }
}

/// A description without roles.
pub(crate) fn info(
    name: String,
    version: String,
    summary: String,
    options: Vec<wit::OptionSpec>,
    capabilities: Vec<wit::Capability>,
) -> PluginInfo {
    PluginInfo {
        name,
        version,
        summary,
        options: options.into_iter().map(OptionSpec::from).collect(),
        capabilities: capabilities.into_iter().map(Capability::from).collect(),
        archive_types: Vec::new(),
        formats: Vec::new(),
        is_source: false,
        is_reader: false,
        is_retention: false,
        is_formatter: false,
    }
}

impl From<reader::Node> for Node {
    fn from(node: reader::Node) -> Self {
        Self { at: node.at, end: node.end }
    }
}

pub(crate) fn guest_node(node: Node) -> reader::Node {
    reader::Node { at: node.at, end: node.end }
}

/// An entry from a plugin: its name must be one, wherever it comes from.
pub(crate) fn entry(entry: reader::Entry, is_root: bool) -> Result<Entry, Failure> {
    let legal = |name: &[u8]| {
        !name.is_empty()
            && name.len() <= 4096
            && name != b"."
            && name != b".."
            && !name.contains(&b'/')
            && !name.contains(&0)
    };
    if !is_root && !legal(&entry.name) {
        let name = keepwell_engine::report::shown_path(&entry.name);
        return Err(Failure::Corrupt(format!("illegal file name \"{name}\" in the archive")));
    }
    let content = match entry.content {
        reader::Content::None => Content::None,
        reader::Content::Computed => Content::Computed,
        reader::Content::Stored(extents) => {
            Content::Stored(extents.into_iter().map(Extent::from).collect())
        }
        reader::Content::HardLink(link) => {
            if !link.path.iter().all(|name| legal(name)) {
                return Err(Failure::Corrupt("illegal target of a hard link".into()));
            }
            Content::HardLink { node: link.node.into(), path: link.path }
        }
    };
    let (node, metadata): (_, Metadata) = (entry.node.into(), entry.metadata.into());
    let is_link = matches!(content, Content::HardLink { .. });
    let lacks = match &metadata {
        _ if is_link => None,
        Metadata { kind: EntryKind::Symlink, link_target: None, .. } => Some("target"),
        Metadata { kind: EntryKind::File, size: 1.., .. } if content == Content::None => {
            Some("content")
        }
        _ => None,
    };
    if let Some(lacks) = lacks {
        let name = keepwell_engine::report::shown_path(&entry.name);
        return Err(Failure::Corrupt(format!("entry \"{name}\" lacks its {lacks}")));
    }
    Ok(Entry { name: entry.name, node, metadata, content })
}

pub(crate) fn event(given: reader::Event) -> Result<Event, Failure> {
    let (given, is_entered) = match given {
        reader::Event::Enter(given) => (entry(given, false)?, true),
        reader::Event::Leaf(given) => (entry(given, false)?, false),
        reader::Event::Leave => return Ok(Event::Leave),
    };
    if is_entered != (given.metadata.kind == EntryKind::Directory) {
        let name = keepwell_engine::report::shown_path(&given.name);
        let what = if is_entered { "entered and no directory" } else { "a directory, not entered" };
        return Err(Failure::Corrupt(format!("entry \"{name}\" is {what}")));
    }
    Ok(if is_entered { Event::Enter(given) } else { Event::Leaf(given) })
}
