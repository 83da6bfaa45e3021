//! What is left out: patterns of the command line, `.pxarexclude` files, and marked directories.
//! Matching itself is the host's: shared/spec/semantics.md §10.

use crate::source::{Options, warn};
use keepwell_sdk::archive::{Directory, File, Listed, PatternList, Verdict};
use keepwell_sdk::{EntryKind, Failure};

const EXCLUDE_FILE: &[u8] = b".pxarexclude";
/// A control file larger than this is no control file.
const EXCLUDE_FILE_BYTES_MAX: u64 = 16 << 20;
const CACHE_TAG: &[u8] = b"CACHEDIR.TAG";
const CACHE_SIGNATURE: &[u8] = b"Signature: 8a477f597d28d172789f06886806bc55";

/// Lines of one file that are told of.
const BAD_TOLD_MAX: u64 = 20;

/// The patterns in force, those of the command line first.
pub(crate) struct Excludes {
    list: PatternList,
    size: u32,
    record: Vec<u8>,
}

impl Excludes {
    pub(crate) fn from_options(options: &Options) -> Result<Self, Failure> {
        let mut excludes = Self { list: PatternList::new(), size: 0, record: Vec::new() };
        let lost = options.skip_lost_and_found.then_some(&b"lost+found"[..]);
        for pattern in options.exclude.iter().map(|pattern| &pattern.0[..]).chain(lost) {
            excludes.list.push(pattern, &[]).map_err(|problem| {
                let pattern = String::from_utf8_lossy(pattern);
                Failure::Invalid(format!("exclude pattern '{pattern}': {problem}"))
            })?;
            excludes.size += 1;
            excludes.record.extend(record_line(pattern));
        }
        Ok(excludes)
    }

    /// Content of `.pxarexclude-cli`.
    pub(crate) fn record(&self) -> &[u8] {
        &self.record
    }

    pub(crate) fn size(&self) -> u32 {
        self.size
    }

    pub(crate) fn truncate(&mut self, size: u32) {
        if size < self.size {
            self.list.truncate(size);
            self.size = size;
        }
    }

    /// Children of `directory` that no pattern excludes.
    pub(crate) fn keep(&self, directory: &[Vec<u8>], children: Vec<Listed>) -> Vec<Listed> {
        if self.size == 0 || children.is_empty() {
            return children;
        }
        let verdicts = self.list.judge(directory, &children);
        let kept = children.into_iter().zip(verdicts);
        kept.filter(|(_, verdict)| *verdict != Verdict::Exclude).map(|(child, _)| child).collect()
    }

    /// Appends the patterns of the directory's `.pxarexclude`, where it has a readable one.
    pub(crate) fn read_file_of(&mut self, directory: &Directory, path: &[Vec<u8>]) {
        let Some(text) = read_control_file(directory, EXCLUDE_FILE) else {
            return;
        };
        let mut bad = 0u64;
        for line in text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii) {
            if line.is_empty() || line[0] == b'#' {
                continue;
            }
            match self.list.push(line, path) {
                Ok(()) => self.size += 1,
                // A file of rubbish is told once, a few mistakes each.
                Err(_) if bad >= BAD_TOLD_MAX => bad += 1,
                Err(problem) => {
                    bad += 1;
                    warn(path, &problem);
                }
            }
        }
        if bad > BAD_TOLD_MAX {
            warn(path, &format!("{} more lines are of no use", bad - BAD_TOLD_MAX));
        }
    }
}

/// `!` in front, no trailing slashes, one `/` if only directories match.
fn record_line(pattern: &[u8]) -> Vec<u8> {
    let slashes = pattern.iter().rev().take_while(|byte| **byte == b'/').count();
    let mut line = pattern[..pattern.len() - slashes].to_vec();
    if slashes > 0 {
        line.push(b'/');
    }
    line.push(b'\n');
    line
}

fn open_control_file(directory: &Directory, name: &[u8]) -> Option<File> {
    let listed = Listed { name: name.to_vec(), kind: EntryKind::File };
    directory.open_children(&[listed]).pop()?.ok()?.handle
}

fn read_control_file(directory: &Directory, name: &[u8]) -> Option<Vec<u8>> {
    let file = open_control_file(directory, name)?;
    let mut text = Vec::new();
    loop {
        let piece = file.read_at(text.len() as u64, 64 << 10).ok()?;
        if piece.is_empty() || text.len() as u64 > EXCLUDE_FILE_BYTES_MAX {
            return Some(text);
        }
        text.extend(piece);
    }
}

/// Files whose presence says: leave out what is in this directory.
pub(crate) struct Marks {
    /// CACHEDIR.TAG with its signature
    pub(crate) caches: bool,
    pub(crate) names: Vec<Vec<u8>>,
}

impl Marks {
    /// The mark that `directory` bears, if any; the mark itself is archived.
    pub(crate) fn found_in(&self, directory: &Directory) -> Result<Option<Vec<u8>>, Failure> {
        if self.caches
            && let Some(tag) = open_control_file(directory, CACHE_TAG)
            && tag.read_at(0, CACHE_SIGNATURE.len() as u32)? == CACHE_SIGNATURE
        {
            return Ok(Some(CACHE_TAG.to_vec()));
        }
        let found = self.names.iter().find(|name| open_control_file(directory, name).is_some());
        Ok(found.cloned())
    }
}
