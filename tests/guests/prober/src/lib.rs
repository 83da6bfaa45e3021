//! A source that tries what takes a right, and archives what it got: option `probe` says what, and with which
//! argument ("read /etc/passwd").

use keepwell_sdk::archive::{
    ArchiveType, Argument, Chunking, File, Info, Origin, OriginKind, Plugin, Process, Reader,
    Request, Source, Stream, Summary, open_stream, paths, scratch, surroundings, web,
};
use keepwell_sdk::options::option;
use keepwell_sdk::single::SingleFile;
use keepwell_sdk::{Capability, Failure, OptionKind, OptionSpec};
use serde::Deserialize;

pub struct Prober;

#[derive(Deserialize)]
pub struct Options {
    #[serde(default)]
    probe: Vec<String>,
}

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
                Capability::Http("*".into()),
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
    Process::start(program, &words, b"input")
}

/// Status, one header and the body of an answer.
fn fetch(verb: &str, url: &str) -> Result<Vec<u8>, Failure> {
    let (method, body) = if verb == "send" { ("POST", b"sent".to_vec()) } else { ("GET", vec![]) };
    let key = web::Header { name: "X-Key".into(), value: "value".into() };
    let headers = vec![key];
    let request = web::Request { method: method.into(), url: url.into(), headers, body };
    let response = web::Response::fetch(&request)?;
    let headers = response.headers();
    let told = headers.iter().find(|header| header.name == "x-told").map(|header| &header.value);
    let mut line = format!("{} {told:?} ", response.status()).into_bytes();
    line.extend(read_all(&response.body()?)?);
    response.finish()?;
    Ok(line)
}

/// Of a pipe.
fn read_all(pipe: &File) -> Result<Vec<u8>, Failure> {
    let mut all = Vec::new();
    loop {
        let more = pipe.read_at(all.len() as u64, 100)?;
        if more.is_empty() {
            return Ok(all);
        }
        all.extend(more);
    }
}

/// What was got: a line.
fn probe(what: &str, stream: &Stream) -> Result<Vec<u8>, Failure> {
    let (verb, argument) = what.split_once(' ').unwrap_or((what, ""));
    Ok(match verb {
        "read" => paths::open_file(argument.as_bytes())?.read_at(0, 100)?,
        "list" => {
            let listed = paths::open_directory(argument.as_bytes())?.read(100)?;
            let names: Vec<Vec<u8>> = listed.into_iter().map(|child| child.name).collect();
            names.join(&b' ')
        }
        "run" => {
            run("sh", argument)?.finish(&[])?;
            b"ended well".to_vec()
        }
        "output" => {
            let process = run("sh", argument)?;
            let got = read_all(&process.output()?)?;
            process.finish(&[])?;
            got
        }
        // Nobody reads all of it.
        "held" => {
            let process = run("sh", argument)?;
            let output = process.output()?;
            let got = output.read_at(0, 2)?;
            process.finish(&[])?;
            got
        }
        "status" => run("sh", argument)?.finish(&[3, 4])?.to_string().into_bytes(),
        "spliced" | "half" => {
            let process = run("sh", argument)?;
            let length = stream.splice_to_end(&process.output()?)?;
            if verb == "spliced" {
                process.finish(&[])?;
            }
            length.to_string().into_bytes()
        }
        "copied" | "copied-half" => {
            let request = web::Request {
                method: "GET".into(),
                url: argument.into(),
                headers: Vec::new(),
                body: Vec::new(),
            };
            let response = web::Response::fetch(&request)?;
            let length = stream.splice_to_end(&response.body()?)?;
            if verb == "copied" {
                response.finish()?;
            }
            length.to_string().into_bytes()
        }
        // Takes bodies that do not end, and drops them.
        "hoard" => {
            let request = web::Request {
                method: "GET".into(),
                url: argument.into(),
                headers: Vec::new(),
                body: Vec::new(),
            };
            for _ in 0..100 {
                web::Response::fetch(&request)?.body()?;
            }
            b"had all".to_vec()
        }
        "note" => {
            scratch::write(b"note", argument.as_bytes())?;
            scratch::write(b"note", argument.as_bytes())?;
            let got = scratch::open(b"note")?.read_at(0, 100)?;
            scratch::remove(b"note")?;
            match scratch::open(b"note") {
                Err(Failure::NotFound(_)) => got,
                _ => b"still there".to_vec(),
            }
        }
        "pipe" => {
            let fifo = paths::open_file(argument.as_bytes())?;
            stream.splice(&fifo, 0, 1)?;
            b"spliced".to_vec()
        }
        "fetch" | "send" => fetch(verb, argument)?,
        "other" => {
            run(argument, "true")?.finish(&[])?;
            b"ended well".to_vec()
        }
        "variable" => surroundings::variable(argument)?.unwrap_or(b"(none)".to_vec()),
        "clock" => surroundings::now()?.seconds.to_string().into_bytes(),
        "random" => surroundings::random(16)?.len().to_string().into_bytes(),
        "scratch" => {
            let dir = String::from_utf8_lossy(&scratch::directory()?).into_owned();
            run("sh", &format!("{argument} > '{dir}/file'"))?.finish(&[])?;
            scratch::open(b"file")?.read_at(0, 100)?
        }
        "escape" => scratch::open(argument.as_bytes())?.read_at(0, 100)?,
        _ => return Err(Failure::Invalid(format!("no probe '{what}'"))),
    })
}

impl Source for Prober {
    type Options = Options;

    fn write_archive(_: Origin, _: Request, options: Options) -> Result<Summary, Failure> {
        let stream = open_stream(".probe", Chunking::ContentDefined, None)?;
        for what in &options.probe {
            let mut line = match probe(what, &stream) {
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
