//! Images: the bytes of a file, block device or pipe in fixed chunks of 4 MiB.

use keepwell_sdk::archive::{
    Archive, ArchiveType, Bytes, Children, Chunking, Content, Entry, Event, Extent, Info, Node,
    Origin, OriginKind, Plugin, Reader, Request, Source, Summary, Walk, open_stream,
};
use keepwell_sdk::{EntryKind, Failure, Metadata, Timestamp};

const CHUNK_BYTES: u32 = 4 << 20;

pub struct Image;

impl Plugin for Image {
    fn describe() -> Info {
        Info {
            name: "image".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            summary: "Images of files and block devices".into(),
            options: Vec::new(),
            archive_types: vec![ArchiveType {
                extension: "img".into(),
                origin: OriginKind::FileOrBlockDevice,
                noun: "image".into(),
            }],
        }
    }
}

impl Source for Image {
    fn write_archive(origin: Origin, request: Request) -> Result<Summary, Failure> {
        let Origin::File(file) = origin else {
            return Err(Failure::Unsupported("an image is made of a file or device".into()));
        };
        let metadata = file.examine()?.metadata;
        let size = (metadata.kind != EntryKind::Fifo).then_some(metadata.size);
        let suffix = format!(".{}", request.archive_extension);
        let stream = open_stream(&suffix, Chunking::Fixed(CHUNK_BYTES), size)?;
        match size {
            Some(size) => stream.splice(&file, 0, size)?,
            None if stream.splice_to_end(&file)? == 0 => {
                return Err(Failure::Invalid("got nothing from the pipe".into()));
            }
            None => {}
        }
        Ok(Summary { entries: 1 })
    }
}

impl Reader for Image {
    type Archive = ImageArchive;
}

pub struct ImageArchive {
    size: u64,
}

impl ImageArchive {
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

impl Archive for ImageArchive {
    type Walk = Nothing;

    fn open(streams: Vec<Bytes>) -> Result<Self, Failure> {
        let [stream] = &streams[..] else {
            return Err(Failure::Invalid("an image has one stream".into()));
        };
        let size = stream.size().ok_or(Failure::Unsupported("an image from a pipe".into()))?;
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

/// An image has nothing below its root.
pub struct Nothing;

impl Walk for Nothing {
    fn next(&self, _max: u32) -> Result<Vec<Event>, Failure> {
        Ok(Vec::new())
    }
}

keepwell_sdk::export_archive_plugin!(Image);
