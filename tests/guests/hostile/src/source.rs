//! Archives made with ill will.

use crate::{Hostile, Options, misbehave, mode};
use keepwell_sdk::archive::{
    ArchiveType, Chunking, Directory, Extent, File, Info, Listed, Omission, Origin, OriginKind,
    PatternList, Plugin, Request, Source, Summary, catalog_add, catalog_enter, catalog_leave,
    catalog_open, open_stream, skipped,
};
use keepwell_sdk::{EntryKind, Failure, Timestamp};

const NO_TIME: Timestamp = Timestamp { seconds: 0, nanoseconds: 0 };

impl Plugin for Hostile {
    fn describe() -> Info {
        Info {
            name: "hostile".into(),
            version: "0.0.0".into(),
            summary: "Misbehaves".into(),
            options: mode(),
            capabilities: Vec::new(),
            archive_types: vec![ArchiveType {
                extension: "hostile".into(),
                origin: OriginKind::Directory,
                noun: "tree".into(),
                parts: (0..5).map(|number| format!("s{number}")).collect(),
            }],
        }
    }
}

/// A file of the directory.
fn file(directory: &Directory) -> Result<File, Failure> {
    let listed = Listed { name: b"file".to_vec(), kind: EntryKind::File };
    let opened = directory.open_children(&[listed]).pop();
    let opened = opened.ok_or(Failure::Other("no answer".into()))??;
    opened.handle.ok_or(Failure::Other("no file".into()))
}

fn run(directory: &Directory, mode: &str) -> Result<(), Failure> {
    misbehave(mode.as_bytes());
    if let Some(mode) = mode.strip_prefix("read-") {
        // The rest is the reader's.
        let stream = open_stream(".hostile", Chunking::ContentDefined, None)?;
        return stream.write(mode.as_bytes());
    }
    if let Some(name) = mode.strip_prefix("open ") {
        let listed = Listed { name: name.as_bytes().to_vec(), kind: EntryKind::File };
        let opened = directory.open_children(&[listed]).pop();
        opened.ok_or(Failure::Other("no answer".into()))??;
        return Err(Failure::Other("it was opened".into()));
    }
    if let Some(name) = mode.strip_prefix("enter ") {
        directory.open_directory(name.as_bytes())?;
        return Err(Failure::Other("it was entered".into()));
    }
    if let Some(suffix) = mode.strip_prefix("suffix ") {
        return open_stream(suffix, Chunking::ContentDefined, None).map(|_| ());
    }
    let stream = open_stream(".hostile", Chunking::ContentDefined, None)?;
    match mode {
        "nothing" => {}
        "handles" => {
            let mut all = Vec::new();
            loop {
                all.push(PatternList::new());
            }
        }
        "patterns" => {
            let list = PatternList::new();
            for _ in 0..1_000_000 {
                list.push(b"*a*b*c*", &[]).map_err(Failure::Invalid)?;
            }
        }
        "streams" => {
            for number in 0..100_000 {
                open_stream(&format!(".s{number}"), Chunking::ContentDefined, None)?;
            }
        }
        "twice" => {
            open_stream(".hostile", Chunking::ContentDefined, None)?;
        }
        "large-write" => stream.write(&vec![0; 20 << 20])?,
        "chunks" => {
            open_stream(".s0", Chunking::Fixed(3), None)?;
        }
        "short" => {
            let other = open_stream(".s0", Chunking::ContentDefined, Some(10))?;
            other.write(b"twenty bytes are here")?;
        }
        "splice" => stream.splice(&file(directory)?, u64::MAX, u64::MAX)?,
        "far" => stream.splice(&file(directory)?, 1 << 40, 10)?,
        "reuse" => {
            let all = Extent { stream: 0, offset: 0, length: u64::MAX };
            let taken = stream.reuse(all, true)?;
            return Err(Failure::Other(format!("reused {}", taken.is_some())));
        }
        "leave" => {
            catalog_open();
            catalog_leave();
        }
        "unopened" => catalog_enter(b"a"),
        "names" => {
            catalog_open();
            catalog_add(b"../../etc/passwd", EntryKind::File, false, 0, NO_TIME);
        }
        "deep" => {
            catalog_open();
            loop {
                catalog_enter(b"a");
            }
        }
        "skipped" => {
            let path = vec![vec![b'/'; 1000]; 10_000];
            skipped(&path, Omission::Denied, &"\x1b[2J\n".repeat(100_000));
        }
        "judge" => {
            let child = Listed { name: b"a".to_vec(), kind: EntryKind::File };
            PatternList::new().judge(&vec![vec![b'a'; 4096]; 1000], &vec![child; 1_000_000]);
        }
        "children" => {
            let child = Listed { name: b"file".to_vec(), kind: EntryKind::File };
            directory.open_children(&vec![child.clone(); 100_000]);
            directory.examine_children(&vec![child; 100_000]);
        }
        _ => return Err(Failure::Invalid(format!("no mode '{mode}'"))),
    }
    Ok(())
}

impl Source for Hostile {
    type Options = Options;

    fn write_archive(origin: Origin, _: Request, options: Options) -> Result<Summary, Failure> {
        let Origin::Directory(directory) = origin else {
            return Err(Failure::Unsupported("no directory".into()));
        };
        run(&directory, &options.mode)?;
        Ok(Summary { entries: u64::MAX })
    }
}
