//! A source that tries what takes a right, and archives what it got: option `probe` says what, and with which
//! argument ("read /etc/passwd").

use keepwell_sdk::archive::{
    ArchiveType, Argument, Chunking, Info, Origin, OriginKind, Plugin, Process, Reader, Request,
    Source, Summary, open_stream, paths, scratch, surroundings,
};
use keepwell_sdk::options::{option, values};
use keepwell_sdk::single::SingleFile;
use keepwell_sdk::{Capability, Failure, OptionKind, OptionSpec};

pub struct Prober;

impl Plugin for Prober {
    fn describe() -> Info {
        let probe = option("probe", OptionKind::Text, "What to try");
        Info {
            name: "prober".into(),
            version: "0.0.0".into(),
            summary: "Tries what takes a right".into(),
            options: vec![OptionSpec { repeatable: true, ..probe }],
            capabilities: vec![
                Capability::Read("*".into()),
                Capability::Run("sh".into()),
                Capability::Environment("*".into()),
                Capability::Clock,
                Capability::Random,
                Capability::Scratch(1 << 20),
            ],
            archive_types: vec![ArchiveType {
                extension: "probe".into(),
                origin: OriginKind::File,
                noun: "probe".into(),
                parts: Vec::new(),
            }],
        }
    }
}

fn run(program: &str, script: &str) -> Result<Process, Failure> {
    let words = ["-c", script].map(|word| Argument::Plain(word.as_bytes().to_vec()));
    Process::start(program, &words)
}

/// What was got: a line.
fn probe(what: &str) -> Result<Vec<u8>, Failure> {
    let (verb, argument) = what.split_once(' ').unwrap_or((what, ""));
    Ok(match verb {
        "read" => paths::open_file(argument)?.read_at(0, 100)?,
        "list" => {
            let listed = paths::open_directory(argument)?.read(100)?;
            let names: Vec<Vec<u8>> = listed.into_iter().map(|child| child.name).collect();
            names.join(&b' ')
        }
        "run" => {
            run("sh", argument)?.finish()?;
            b"ended well".to_vec()
        }
        "other" => {
            run(argument, "true")?.finish()?;
            b"ended well".to_vec()
        }
        "variable" => surroundings::variable(argument)?.unwrap_or(b"(none)".to_vec()),
        "clock" => surroundings::now()?.seconds.to_string().into_bytes(),
        "random" => surroundings::random(16)?.len().to_string().into_bytes(),
        "scratch" => {
            let dir = scratch::path()?;
            run("sh", &format!("{argument} > '{dir}/file'"))?.finish()?;
            scratch::open(b"file")?.read_at(0, 100)?
        }
        "escape" => scratch::open(argument.as_bytes())?.read_at(0, 100)?,
        _ => return Err(Failure::Invalid(format!("no probe '{what}'"))),
    })
}

impl Source for Prober {
    fn write_archive(_: Origin, request: Request) -> Result<Summary, Failure> {
        let stream = open_stream(".probe", Chunking::ContentDefined, None)?;
        for what in values(&request.options, "probe") {
            let what = String::from_utf8_lossy(what);
            let mut line = match probe(&what) {
                Ok(got) => got,
                Err(failure) => format!("{failure}").into_bytes(),
            };
            line.push(b'\n');
            stream.write(&line)?;
        }
        Ok(Summary { entries: 1 })
    }
}

impl Reader for Prober {
    type Archive = SingleFile;
}

keepwell_sdk::export_archive_plugin!(Prober);
