//! The functions that take a right: paths, commands, scratch space, environment, clock, random.

use super::host::{READ_BYTES_MAX, answer};
use super::process::Process;
use crate::bindings::archive::keepwell::archive::{commands, paths, scratch, surroundings};
use crate::bindings::archive::keepwell::types::types as wit;
use crate::state::{DirectoryHandle, FileHandle, ProcessHandle, State, now};
use keepwell_engine::input::{Directory, InputFile, open_beneath};
use keepwell_engine::plugin::Failure;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use wasmtime::component::Resource;

type Answer<T> = wasmtime::Result<Result<T, wit::Failure>>;

const ARGUMENTS_MAX: usize = 1000;

fn io(what: &str, error: &std::io::Error) -> Failure {
    let text = format!("{what}: {error}");
    match error.kind() {
        std::io::ErrorKind::NotFound => Failure::NotFound(text),
        std::io::ErrorKind::PermissionDenied => Failure::Denied(text),
        _ => Failure::Io(text),
    }
}

impl State {
    /// What a path names, if it may be read. Symbolic links lead nowhere else.
    fn open_granted(&mut self, path: &str) -> Result<std::os::fd::OwnedFd, Failure> {
        let Some((root, rest)) = self.rights.path(Path::new(path)) else {
            return Err(self.refused(&format!("to read '{path}'"), "read", path));
        };
        open_beneath(root, rest).map_err(|error| io(path, &error))
    }

    fn scratch(&mut self) -> Result<(&Path, u64), Failure> {
        let Some(max) = self.rights.scratch else {
            return Err(self.refused("space for temporary files", "scratch", "SIZE"));
        };
        let made = match self.scratch.take() {
            Some(made) => made,
            None => tempfile::Builder::new()
                .prefix("keepwell-")
                .tempdir()
                .map_err(|error| io("scratch space", &error))?,
        };
        Ok((self.scratch.insert(made).path(), max))
    }

    /// Fails where more lies in the scratch space than was granted.
    fn check_scratch(&mut self) -> Result<(), Failure> {
        let (Some(dir), Some(max)) = (&self.scratch, self.rights.scratch) else { return Ok(()) };
        if size_of(dir.path()) > max {
            return Err(Failure::Denied(format!("its temporary files have more than {max} bytes")));
        }
        Ok(())
    }

    fn start(
        &mut self,
        program: &str,
        arguments: Vec<commands::Argument>,
    ) -> wasmtime::Result<Result<Process, Failure>> {
        if !self.rights.run.iter().any(|granted| granted == program) {
            return Ok(Err(self.refused(&format!("to run '{program}'"), "run", program)));
        }
        if arguments.len() > ARGUMENTS_MAX {
            return Ok(Err(Failure::Invalid("too many arguments".into())));
        }
        let mut words: Vec<OsString> = Vec::with_capacity(arguments.len());
        for argument in arguments {
            words.push(match argument {
                commands::Argument::Plain(bytes) => OsString::from_vec(bytes),
                commands::Argument::PathOf(file) => match self.table.get(&file)?.0.full_path() {
                    Ok(path) => path.into_os_string(),
                    Err(error) => return Ok(Err(io("an open file", &error))),
                },
            });
        }
        if words.iter().any(|word| word.as_bytes().contains(&0)) {
            return Ok(Err(Failure::Invalid("an argument has a zero byte".into())));
        }
        let started = Process::start(program, &words, &self.rights.environment, self.teller());
        Ok(started.map_err(|error| io(program, &error)))
    }
}

/// Of all that lies in a directory.
fn size_of(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let sizes = entries.map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => size_of(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    });
    sizes.fold(0, u64::saturating_add)
}

impl paths::Host for State {
    fn open_directory(&mut self, path: String) -> Answer<Resource<DirectoryHandle>> {
        match self
            .open_granted(&path)
            .and_then(|fd| Directory::from_fd(fd).map_err(|error| io(&path, &error)))
        {
            Ok(directory) => Ok(Ok(self.push(DirectoryHandle(directory))?)),
            Err(failure) => answer(Err(failure)),
        }
    }

    fn open_file(&mut self, path: String) -> Answer<Resource<FileHandle>> {
        let opened = self.open_granted(&path).and_then(|fd| {
            InputFile::from_fd(fd, Path::new(&path)).map_err(|error| io(&path, &error))
        });
        self.push_file(opened)
    }
}

impl State {
    fn push_file(&mut self, file: Result<InputFile, Failure>) -> Answer<Resource<FileHandle>> {
        match file {
            Ok(file) => Ok(Ok(self.push(FileHandle(Arc::new(file)))?)),
            Err(failure) => answer(Err(failure)),
        }
    }
}

impl commands::Host for State {}

impl commands::HostProcess for State {
    fn start(
        &mut self,
        program: String,
        arguments: Vec<commands::Argument>,
    ) -> Answer<Resource<ProcessHandle>> {
        match Self::start(self, &program, arguments)? {
            Ok(process) => Ok(Ok(self.push(ProcessHandle(process))?)),
            Err(failure) => answer(Err(failure)),
        }
    }

    fn output(&mut self, this: Resource<ProcessHandle>) -> Answer<Resource<FileHandle>> {
        let process = &mut self.table.get_mut(&this)?.0;
        let taken = process.take_output();
        self.push_file(taken)
    }

    fn finish(&mut self, this: Resource<ProcessHandle>) -> Answer<()> {
        loop {
            if let Err(failure) = self.check_scratch() {
                self.table.get_mut(&this)?.0.kill();
                return answer(Err(failure));
            }
            if self.cancel.is_cancelled() {
                self.table.get_mut(&this)?.0.kill();
                return answer(Err(Failure::Cancelled));
            }
            if let Some(ended) = self.table.get_mut(&this)?.0.wait_a_moment() {
                return answer(ended);
            }
        }
    }

    fn drop(&mut self, this: Resource<ProcessHandle>) -> wasmtime::Result<()> {
        self.table.delete(this)?;
        Ok(())
    }
}

impl scratch::Host for State {
    fn path(&mut self) -> Answer<String> {
        let path = self.scratch().and_then(|(path, _)| match path.to_str() {
            Some(path) => Ok(path.to_owned()),
            None => Err(Failure::Unsupported("TMPDIR is not UTF-8".into())),
        });
        answer(path)
    }

    fn open(&mut self, name: Vec<u8>) -> Answer<Resource<FileHandle>> {
        let name = PathBuf::from(OsString::from_vec(name));
        let opened = self.check_scratch().and_then(|()| {
            let (dir, _) = self.scratch()?;
            let fd = open_beneath(dir, &name);
            fd.and_then(|fd| InputFile::from_fd(fd, &name))
                .map_err(|error| io(&name.to_string_lossy(), &error))
        });
        self.push_file(opened)
    }
}

impl surroundings::Host for State {
    fn variable(&mut self, name: String) -> Answer<Option<Vec<u8>>> {
        if !self.rights.environment.contains(&name) {
            let what = format!("the environment variable '{name}'");
            return answer(Err(self.refused(&what, "environment", &name)));
        }
        answer(Ok(std::env::var_os(name).map(OsStringExt::into_vec)))
    }

    fn now(&mut self) -> Answer<wit::Timestamp> {
        if !self.rights.clock {
            return answer(Err(self.refused("the time", "clock", "true")));
        }
        let now = now();
        let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        answer(Ok(wit::Timestamp { seconds, nanoseconds: now.subsec_nanos() }))
    }

    fn random(&mut self, length: u32) -> Answer<Vec<u8>> {
        if !self.rights.random {
            return answer(Err(self.refused("random numbers", "random", "true")));
        }
        let mut bytes = vec![0; length.min(READ_BYTES_MAX) as usize];
        let filled = getrandom::fill(&mut bytes);
        answer(filled.map(|()| bytes).map_err(|error| Failure::Io(error.to_string())))
    }
}
