//! Single small files, kept whole: configuration files and logs.

use keepwell_sdk::Failure;
use keepwell_sdk::archive::{
    ArchiveType, Chunking, Info, Origin, OriginKind, Plugin, Reader, Request, Source, Summary,
    open_stream,
};
use keepwell_sdk::options::NoOptions;
use keepwell_sdk::single::SingleFile;

pub struct Blob;

impl Plugin for Blob {
    fn describe() -> Info {
        Info {
            name: "blob".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            summary: "Single small files: configuration and logs".into(),
            options: Vec::new(),
            capabilities: Vec::new(),
            archive_types: vec![
                archive_type("conf", "config file"),
                archive_type("log", "log file"),
            ],
        }
    }
}

fn archive_type(extension: &str, noun: &str) -> ArchiveType {
    ArchiveType {
        extension: extension.into(),
        origin: OriginKind::File,
        noun: noun.into(),
        parts: Vec::new(),
    }
}

impl Source for Blob {
    type Options = NoOptions;

    fn write_archive(origin: Origin, request: Request, _: NoOptions) -> Result<Summary, Failure> {
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
    type Archive = SingleFile;
}

keepwell_sdk::export_archive_plugin!(Blob);
