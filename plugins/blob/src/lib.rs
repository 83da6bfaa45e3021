//! Single small files, kept whole: configuration files and logs.

use keepwell_sdk::archive::{
    Archive, ArchiveType, Bytes, Children, Chunking, Content, Entry, Event, Extent, Info, Node,
    Origin, OriginKind, Plugin, Reader, Request, Source, Summary, Walk, open_stream,
};
use keepwell_sdk::{EntryKind, Failure, Metadata, Timestamp};

pub struct Blob;

impl Plugin for Blob {
    fn describe() -> Info {
        Info {
            name: "blob".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            summary: "Single small files: configuration and logs".into(),
            options: Vec::new(),
            archive_types: vec![
                archive_type("conf", "config file"),
                archive_type("log", "log file"),
            ],
        }
    }
}

fn archive_type(extension: &str, noun: &str) -> ArchiveType {
    ArchiveType { extension: extension.into(), origin: OriginKind::File, noun: noun.into() }
}

impl Source for Blob {
    fn write_archive(origin: Origin, request: Request) -> Result<Summary, Failure> {
        let Origin::File(file) = origin else {
            return Err(Failure::Unsupported("a blob is made of a file".into()));
        };
        let size = file.examine()?.metadata.size;
        let suffix = format!(".{}", request.archive_extension);
        let stream = open_stream(&suffix, Chunking::SingleBlob, Some(size))?;
        stream.splice(&file, 0, size)?;
        Ok(Summary { entries: 1 })
    }
}

impl Reader for Blob {
    type Archive = BlobArchive;
}

pub struct BlobArchive {
    size: u64,
}

impl BlobArchive {
    fn whole(&self) -> Entry {
        Entry {
            name: Vec::new(),
            node: Node { at: 0, end: self.size },
            metadata: Metadata {
                kind: EntryKind::File,
                mode: 0o600,
                owner: 0,
                group: 0,
                modified: Timestamp { seconds: 0, nanoseconds: 0 },
                size: self.size,
                inode_flags: 0,
                fat_attributes: 0,
                project: None,
                device: None,
                link_target: None,
                extended: Vec::new(),
            },
            content: Content::Stored(vec![Extent { stream: 0, offset: 0, length: self.size }]),
        }
    }
}

impl Archive for BlobArchive {
    type Walk = Nothing;

    fn open(streams: Vec<Bytes>) -> Result<Self, Failure> {
        let [stream] = &streams[..] else {
            return Err(Failure::Invalid("a blob has one stream".into()));
        };
        let size = stream.size().ok_or(Failure::Unsupported("a blob from a pipe".into()))?;
        Ok(Self { size })
    }
    fn root(&self) -> Result<Entry, Failure> {
        Ok(self.whole())
    }
    fn children(&self, _: Node, _: Option<Node>, _: u32) -> Result<Children, Failure> {
        Ok(Vec::new())
    }
    fn child(&self, _: Node, _: &[u8]) -> Result<Option<Entry>, Failure> {
        Ok(None)
    }
    fn entry(&self, _: Node) -> Result<Entry, Failure> {
        self.root()
    }
    fn walk(&self) -> Result<Nothing, Failure> {
        Ok(Nothing)
    }
}

/// A blob has nothing below its root.
pub struct Nothing;

impl Walk for Nothing {
    fn next(&self, _max: u32) -> Result<Vec<Event>, Failure> {
        Ok(Vec::new())
    }
}

keepwell_sdk::export_archive_plugin!(Blob);
