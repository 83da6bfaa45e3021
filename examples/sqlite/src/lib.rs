//! A source for consistent copies of SQLite databases that are in use: `backup app.sqlite:/srv/app/app.db`.
//!
//! The copy is made by the `sqlite3` program's backup command, which takes the locks that writers respect.

use keepwell_sdk::archive::{
    ArchiveType, Argument, Chunking, Info, Origin, OriginKind, Plugin, Process, Reader, Request,
    Source, Summary, open_stream, scratch,
};
use keepwell_sdk::options::NoOptions;
use keepwell_sdk::single::SingleFile;
use keepwell_sdk::{Capability, Failure};

const PROGRAM: &str = "sqlite3";
const MAGIC: &[u8] = b"SQLite format 3\0";
const COPY: &str = "copy.db";

pub struct Sqlite;

impl Plugin for Sqlite {
    fn describe() -> Info {
        Info {
            name: "sqlite".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            summary: "Consistent copies of SQLite databases in use".into(),
            options: Vec::new(),
            capabilities: vec![Capability::Run(PROGRAM.into()), Capability::Scratch(u64::MAX)],
            archive_types: vec![ArchiveType {
                extension: "sqlite".into(),
                origin: OriginKind::File,
                noun: "database".into(),
                parts: Vec::new(),
            }],
        }
    }
}

impl Source for Sqlite {
    type Options = NoOptions;

    fn write_archive(origin: Origin, request: Request, _: NoOptions) -> Result<Summary, Failure> {
        let Origin::File(file) = origin else {
            return Err(Failure::Unsupported("a database is a file".into()));
        };
        if file.read_at(0, MAGIC.len() as u32)? != MAGIC {
            return Err(Failure::Invalid("it is no SQLite database".into()));
        }
        let copy = [&scratch::directory()?, &b"/"[..], COPY.as_bytes()].concat();
        let plain = |text: &str| Argument::Plain(text.as_bytes().to_vec());
        // Writers may keep it busy for a while.
        let arguments = [
            plain("-cmd"),
            plain(".timeout 60000"),
            Argument::PathOf(&file),
            Argument::Plain([b".backup '", &copy[..], b"'"].concat()),
        ];
        Process::start(PROGRAM, &arguments, &[])?.finish(&[])?;
        let copy = scratch::open(COPY.as_bytes())?;
        let size = copy.examine()?.metadata.size;
        let suffix = format!(".{}", request.archive_extension);
        let stream = open_stream(&suffix, Chunking::ContentDefined, Some(size))?;
        stream.splice(&copy, 0, size)?;
        Ok(Summary { entries: 1 })
    }
}

impl Reader for Sqlite {
    type Archive = SingleFile;
}

keepwell_sdk::export_archive_plugin!(Sqlite);
