//! Images: the bytes of a file, block device or pipe in fixed chunks of 4 MiB.

use keepwell_sdk::archive::{
    ArchiveType, Chunking, Info, Origin, OriginKind, Plugin, Reader, Request, Source, Summary,
    open_stream,
};
use keepwell_sdk::options::NoOptions;
use keepwell_sdk::single::SingleFile;
use keepwell_sdk::{EntryKind, Failure};

const CHUNK_BYTES: u32 = 4 << 20;

pub struct Image;

impl Plugin for Image {
    fn describe() -> Info {
        Info {
            name: "image".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            summary: "Images of files and block devices".into(),
            options: Vec::new(),
            capabilities: Vec::new(),
            archive_types: vec![ArchiveType {
                extension: "img".into(),
                origin: OriginKind::FileOrBlockDevice,
                noun: "image".into(),
                parts: Vec::new(),
            }],
        }
    }
}

impl Source for Image {
    type Options = NoOptions;

    fn write_archive(origin: Origin, request: Request, _: NoOptions) -> Result<Summary, Failure> {
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
    type Archive = SingleFile;
}

keepwell_sdk::export_archive_plugin!(Image);
