//! The functions that take a right: paths, commands, scratch space, environment, clock, random.

use super::host::{READ_BYTES_MAX, answer};
use super::process::Process;
use crate::bindings::archive::keepwell::archive::{commands, paths, scratch, surroundings};
use crate::bindings::archive::keepwell::types::types as wit;
use crate::rights::is_plain;
use crate::state::{DirectoryHandle, FileHandle, ProcessHandle, State, Unfinished, now};
use keepwell_engine::input::{Directory, InputFile, check_name, open_beneath};
use keepwell_engine::plugin::{EntryKind, Failure};
use keepwell_engine::report::shown_path;
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use wasmtime::component::Resource;

type Answer<T> = wasmtime::Result<Result<T, wit::Failure>>;

const ARGUMENTS_MAX: usize = 1000;
const INPUT_BYTES_MAX: usize = 1 << 20;

fn io(what: &str, error: &std::io::Error) -> Failure {
    let text = format!("{what}: {error}");
    match error.kind() {
        std::io::ErrorKind::NotFound => Failure::NotFound(text),
        std::io::ErrorKind::PermissionDenied => Failure::Denied(text),
        std::io::ErrorKind::CrossesDevices => {
            Failure::Denied(format!("{what}: a link leads out of what is granted"))
        }
        _ => Failure::Io(text),
    }
}

impl State {
    /// What a path names, if it may be read. Symbolic links lead nowhere else.
    fn open_granted(&mut self, path: &Path) -> Result<OwnedFd, Failure> {
        let shown = shown_path(path.as_os_str().as_bytes());
        if !is_plain(path) {
            return Err(Failure::Invalid(format!("'{shown}' is no absolute path without '..'")));
        }
        let Some((root, rest)) = self.rights().path(path) else {
            return Err(self.refused(&format!("reading '{shown}'"), "read", &shown));
        };
        open_beneath(root, rest).map_err(|error| io(&shown, &error))
    }

    fn scratch(&mut self) -> Result<(&Path, u64), Failure> {
        let Some(max) = self.rights().scratch else {
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
        let (Some(dir), Some(max)) = (&self.scratch, self.rights().scratch) else { return Ok(()) };
        if size_of(dir.path()) > max {
            return Err(Failure::Denied(format!("its temporary files have more than {max} bytes")));
        }
        Ok(())
    }

    fn start(
        &mut self,
        program: &str,
        arguments: Vec<commands::Argument>,
        input: Vec<u8>,
    ) -> wasmtime::Result<Result<Process, Failure>> {
        if !self.rights().run.iter().any(|granted| granted == program) {
            return Ok(Err(self.refused(&format!("running '{program}'"), "run", program)));
        }
        if arguments.len() > ARGUMENTS_MAX {
            return Ok(Err(Failure::Invalid("too many arguments".into())));
        }
        if input.len() > INPUT_BYTES_MAX {
            return Ok(Err(Failure::Invalid("the input of a command has at most 1 MiB".into())));
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
        let environment = &self.rights().environment;
        let started = Process::start(program, &words, input, environment, self.teller());
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
    fn open_directory(&mut self, path: Vec<u8>) -> Answer<Resource<DirectoryHandle>> {
        let path = PathBuf::from(OsString::from_vec(path));
        let opened = self.open_granted(&path).and_then(|fd| {
            Directory::from_fd(fd).map_err(|error| io(&path.to_string_lossy(), &error))
        });
        match opened {
            Ok(directory) => Ok(Ok(self.push(DirectoryHandle(directory))?)),
            Err(failure) => answer(Err(failure)),
        }
    }

    fn open_file(&mut self, path: Vec<u8>) -> Answer<Resource<FileHandle>> {
        let path = PathBuf::from(OsString::from_vec(path));
        let opened = self.open_granted(&path).and_then(|fd| file_of(fd, &path));
        self.push_file(opened, None)
    }
}

/// A file that can come to an end.
fn file_of(fd: OwnedFd, path: &Path) -> Result<InputFile, Failure> {
    let shown = shown_path(path.as_os_str().as_bytes());
    let file = InputFile::from_fd(fd, path).map_err(|error| io(&shown, &error))?;
    match file.kind {
        EntryKind::File | EntryKind::BlockDevice | EntryKind::Fifo => Ok(file),
        _ => Err(Failure::Unsupported(format!("{shown}: no file, block device or pipe"))),
    }
}

impl State {
    pub(super) fn push_file(
        &mut self,
        file: Result<InputFile, Failure>,
        from: Option<Arc<Unfinished>>,
    ) -> Answer<Resource<FileHandle>> {
        match file {
            Ok(file) => Ok(Ok(self.push(FileHandle(Arc::new(file), from))?)),
            Err(failure) => answer(Err(failure)),
        }
    }

    /// A name in the scratch space.
    fn scratch_name(&mut self, name: Vec<u8>) -> Result<PathBuf, Failure> {
        check_name(&name)?;
        Ok(self.scratch()?.0.join(OsString::from_vec(name)))
    }
}

impl commands::Host for State {}

impl commands::HostProcess for State {
    fn start(
        &mut self,
        program: String,
        arguments: Vec<commands::Argument>,
        input: Vec<u8>,
    ) -> Answer<Resource<ProcessHandle>> {
        match Self::start(self, &program, arguments, input)? {
            Ok(process) => Ok(Ok(self.push(ProcessHandle(process))?)),
            Err(failure) => answer(Err(failure)),
        }
    }

    fn output(&mut self, this: Resource<ProcessHandle>) -> Answer<Resource<FileHandle>> {
        let process = &mut self.table.get_mut(&this)?.0;
        let (taken, from) = (process.take_output(), process.unfinished.clone());
        self.push_file(taken, Some(from))
    }

    fn finish(&mut self, this: Resource<ProcessHandle>, accepted: Vec<u32>) -> Answer<u32> {
        loop {
            if let Err(failure) = self.check_scratch() {
                self.table.get_mut(&this)?.0.kill();
                return answer(Err(failure));
            }
            if self.cancel.is_cancelled() {
                self.table.get_mut(&this)?.0.kill();
                return answer(Err(Failure::Cancelled));
            }
            if let Some(ended) = self.table.get_mut(&this)?.0.wait_a_moment(&accepted) {
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
    fn directory(&mut self) -> Answer<Vec<u8>> {
        let directory = self.scratch().map(|(path, _)| path.as_os_str().as_bytes().to_vec());
        answer(directory)
    }

    fn write(&mut self, name: Vec<u8>, content: Vec<u8>) -> Answer<()> {
        let written = self.scratch_name(name).and_then(|path| {
            let (dir, max) = self.scratch()?;
            let size = content.len() as u64;
            if content.len() > INPUT_BYTES_MAX || size_of(dir).saturating_add(size) > max {
                let text = "a file of at most 1 MiB, and all of at most what was granted";
                return Err(Failure::Denied(text.into()));
            }
            // What lies there may be a link that a command made.
            let _ = std::fs::remove_file(&path);
            let made = std::fs::File::create_new(&path);
            made.and_then(|mut file| std::io::Write::write_all(&mut file, &content))
                .map_err(|error| io(&path.to_string_lossy(), &error))
        });
        answer(written)
    }

    fn open(&mut self, name: Vec<u8>) -> Answer<Resource<FileHandle>> {
        let opened = self.check_scratch().and_then(|()| {
            let path = self.scratch_name(name)?;
            let (dir, _) = self.scratch()?;
            let name = path.strip_prefix(dir).unwrap_or(&path);
            let fd =
                open_beneath(dir, name).map_err(|error| io(&name.to_string_lossy(), &error))?;
            file_of(fd, name)
        });
        self.push_file(opened, None)
    }

    fn remove(&mut self, name: Vec<u8>) -> Answer<()> {
        let removed = self.scratch_name(name).and_then(|path| {
            std::fs::remove_file(&path).map_err(|error| io(&path.to_string_lossy(), &error))
        });
        answer(removed)
    }
}

impl surroundings::Host for State {
    fn variable(&mut self, name: String) -> Answer<Option<Vec<u8>>> {
        if !self.rights().environment.contains(&name) {
            let what = format!("the environment variable '{name}'");
            return answer(Err(self.refused(&what, "environment", &name)));
        }
        answer(Ok(std::env::var_os(name).map(OsStringExt::into_vec)))
    }

    fn now(&mut self) -> Answer<wit::Timestamp> {
        if !self.rights().clock {
            return answer(Err(self.refused("the time", "clock", "true")));
        }
        let now = now();
        let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        answer(Ok(wit::Timestamp { seconds, nanoseconds: now.subsec_nanos() }))
    }

    fn random(&mut self, length: u32) -> Answer<Vec<u8>> {
        if !self.rights().random {
            return answer(Err(self.refused("random numbers", "random", "true")));
        }
        let mut bytes = vec![0; length.min(READ_BYTES_MAX) as usize];
        let filled = getrandom::fill(&mut bytes);
        answer(filled.map(|()| bytes).map_err(|error| Failure::Io(error.to_string())))
    }
}
