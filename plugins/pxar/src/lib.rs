//! The pxar file archive, of one stream and of two: source and reader.
//!
//! Bytes: shared/spec/pxar.md. This crate uses keepwell-sdk only. `format`, `acl`, `encode` and
//! `decode` are pure and tested natively; `source` and `reader` speak with the host.

pub mod acl;
pub mod decode;
pub mod encode;
mod exclude;
pub mod format;
mod reader;
pub mod reference;
mod source;

use keepwell_sdk::archive::{
    ArchiveType, Info, Origin, OriginKind, Plugin, Reader, Request, Source, Summary,
};
use keepwell_sdk::options::option;
use keepwell_sdk::{Failure, OptionKind, OptionSpec};

pub struct Pxar;

impl Plugin for Pxar {
    fn describe() -> Info {
        let switch = |name, help| option(name, OptionKind::Flag, help);
        let repeated = |spec| OptionSpec { repeatable: true, ..spec };
        let options = vec![
            repeated(option(
                "exclude",
                OptionKind::Pattern,
                "Leave out what matches this pattern (can be repeated; later ones win)",
            )),
            switch("exclude-caches", "Leave out the content of directories with a CACHEDIR.TAG"),
            repeated(option(
                "exclude-if-present",
                OptionKind::Text,
                "Leave out the content of directories that hold a file of this name",
            )),
            option("exclude-larger-than", OptionKind::Size, "Leave out files larger than this"),
            switch("skip-lost-and-found", "Leave out lost+found directories"),
            switch("skip-e2big-xattr", "Leave out extended attributes that are too large to read"),
            switch("no-xattrs", "Do not archive extended attributes"),
            switch("no-fcaps", "Do not archive file capabilities"),
            switch("no-acls", "Do not archive access control lists"),
            switch("no-device-nodes", "Do not archive device nodes"),
            switch("no-fifos", "Do not archive fifos"),
            switch("no-sockets", "Do not archive sockets"),
            OptionSpec {
                default: Some("legacy".into()),
                choices: ["legacy", "data", "metadata"].map(Into::into).into(),
                ..option(
                    "change-detection-mode",
                    OptionKind::Text,
                    "legacy: one archive and a catalog; data: metadata and content apart; metadata: and \
                     what is as before is not read",
                )
            },
        ];
        Info {
            name: "pxar".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            summary: "File trees with all their metadata".into(),
            options,
            capabilities: Vec::new(),
            archive_types: vec![ArchiveType {
                extension: "pxar".into(),
                origin: OriginKind::Directory,
                noun: "directory".into(),
                parts: vec!["ppxar".into(), "mpxar".into()],
            }],
        }
    }
}

impl Source for Pxar {
    type Options = source::Options;

    fn write_archive(
        origin: Origin,
        request: Request,
        options: source::Options,
    ) -> Result<Summary, Failure> {
        source::write_archive(origin, request, options)
    }
}

impl Reader for Pxar {
    type Archive = reader::PxarArchive;
}

keepwell_sdk::export_archive_plugin!(Pxar);
