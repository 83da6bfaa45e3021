//! Archives of directories as tar files (POSIX.1-2001, "pax"): `backup root.tar:/srv`. What a backup stores is a tar that
//! any `tar` reads (`restore SNAPSHOT root.tar - | tar t`), and the reader makes mount, shell, extract, find and diff
//! work on it.

pub mod format;
mod reader;
mod source;

use keepwell_sdk::archive::{ArchiveType, Info, OriginKind, Plugin};

pub struct Tar;

impl Plugin for Tar {
    fn describe() -> Info {
        Info {
            name: "tar".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            summary: "Directories as tar archives".into(),
            options: vec![source::exclude_option()],
            capabilities: Vec::new(),
            archive_types: vec![ArchiveType {
                extension: "tar".into(),
                origin: OriginKind::Directory,
                noun: "directory".into(),
                parts: Vec::new(),
            }],
        }
    }
}

keepwell_sdk::export_archive_plugin!(Tar);
