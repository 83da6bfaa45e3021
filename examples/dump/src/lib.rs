//! A source for archives of what a command prints: `backup db.dump:FILE`, where FILE names the program and its
//! arguments, one on each line.

use keepwell_sdk::archive::{
    ArchiveType, Argument, Chunking, Info, Origin, OriginKind, Plugin, Process, Reader, Request,
    Source, Summary, open_stream,
};
use keepwell_sdk::options::NoOptions;
use keepwell_sdk::single::SingleFile;
use keepwell_sdk::{Capability, Failure};

/// Longer command files are none.
const FILE_BYTES_MAX: u32 = 64 << 10;

pub struct Dump;

impl Plugin for Dump {
    fn describe() -> Info {
        Info {
            name: "dump".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            summary: "What a command prints, such as pg_dump".into(),
            options: Vec::new(),
            // Whatever is granted: `plugins.dump.grants.run = ["pg_dump"]`.
            capabilities: vec![Capability::Run("*".into()), Capability::Environment("*".into())],
            archive_types: vec![ArchiveType {
                extension: "dump".into(),
                origin: OriginKind::File,
                noun: "output of a command".into(),
                parts: Vec::new(),
            }],
        }
    }
}

/// Program and arguments; lines that are empty or begin with '#' do not count.
fn words(text: &[u8]) -> Vec<Vec<u8>> {
    let lines = text.split(|byte| *byte == b'\n').map(|line| line.trim_ascii_end());
    lines.filter(|line| !line.is_empty() && line[0] != b'#').map(<[u8]>::to_vec).collect()
}

impl Source for Dump {
    type Options = NoOptions;

    fn write_archive(origin: Origin, request: Request, _: NoOptions) -> Result<Summary, Failure> {
        let Origin::File(file) = origin else {
            return Err(Failure::Unsupported("a command is read from a file".into()));
        };
        if file.examine()?.metadata.size > FILE_BYTES_MAX.into() {
            return Err(Failure::Invalid("the file with the command is too large".into()));
        }
        let mut words = words(&file.read_at(0, FILE_BYTES_MAX)?).into_iter();
        let program = words.next().ok_or(Failure::Invalid("the file names no command".into()))?;
        let program = String::from_utf8(program)
            .map_err(|_| Failure::Invalid("the name of the command is not UTF-8".into()))?;
        let arguments: Vec<Argument<'_>> = words.map(Argument::Plain).collect();
        let process = Process::start(&program, &arguments, &[])?;
        let suffix = format!(".{}", request.archive_extension);
        let stream = open_stream(&suffix, Chunking::ContentDefined, None)?;
        stream.splice_to_end(&process.output()?)?;
        // Half a dump is none: this fails unless the command succeeds.
        process.finish(&[])?;
        Ok(Summary { entries: 1 })
    }
}

impl Reader for Dump {
    type Archive = SingleFile;
}

keepwell_sdk::export_archive_plugin!(Dump);

#[cfg(test)]
mod tests {
    #[test]
    fn a_line_is_an_argument() {
        let text = b"# nightly\npg_dump\n--format=custom\r\n\n my db \n";
        assert_eq!(super::words(text), [&b"pg_dump"[..], b"--format=custom", b" my db"]);
        assert!(super::words(b"\n# nothing\n").is_empty());
    }
}
