//! Line editing, with completion of commands and paths.

use super::browser::Browser;
use super::line::{quoted, split};
use rustyline::completion::{Completer, Pair};
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::validate::Validator;
use rustyline::{Context, Helper};
use std::cell::RefCell;
use std::os::unix::ffi::OsStringExt;
use std::rc::Rc;

/// What the words of a command are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Words {
    /// in the archive
    Paths,
    /// on this host
    Targets,
    Commands,
    Other,
}

/// Completes what stands before the cursor.
pub(super) struct Completion<'a> {
    pub(super) browser: Rc<RefCell<Browser<'a>>>,
    pub(super) commands: Vec<(String, Words)>,
}

/// A name, and whether it is a directory.
type Candidate = (Vec<u8>, bool);

impl Completion<'_> {
    /// Where the word begins that is completed, and what may stand there.
    fn candidates(&self, line: &str) -> (usize, Vec<String>) {
        let (mut words, problem) = split(line.as_bytes());
        let ends_open = problem.is_some() || !line.ends_with(|c: char| c.is_ascii_whitespace());
        // A blank behind `\` belongs to the word.
        let ends_open = ends_open || line.trim_end_matches(' ').ends_with('\\');
        let (start, typed) = match words.pop() {
            Some(word) if ends_open => (word.start, word.bytes),
            Some(word) => {
                words.push(word);
                (line.len(), Vec::new())
            }
            None => (line.len(), Vec::new()),
        };
        let kind = words.first().map_or(Words::Commands, |first| {
            let known = self.commands.iter().find(|(name, _)| name.as_bytes() == first.bytes);
            known.map_or(Words::Other, |(_, words)| *words)
        });
        if kind == Words::Commands {
            let names = self.commands.iter().map(|(name, _)| name);
            let fitting = names.filter(|name| name.as_bytes().starts_with(&typed));
            return (start, fitting.map(|name| format!("{name} ")).collect());
        }
        let (above, begun) = match typed.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => typed.split_at(slash + 1),
            None => (&[][..], &typed[..]),
        };
        let found = match kind {
            Words::Paths => self.archived(above),
            Words::Targets => local(above),
            Words::Commands | Words::Other => Vec::new(),
        };
        let fitting = found.into_iter().filter(|(name, _)| name.starts_with(begun));
        // Names that begin with a dot are offered to those who ask for them.
        let fitting =
            fitting.filter(|(name, _)| !name.starts_with(b".") || begun.starts_with(b"."));
        let written = fitting.map(|(name, is_directory)| {
            let mut path = [above, &name].concat();
            // It would be taken for an option.
            if path.starts_with(b"-") {
                path.splice(0..0, *b"./");
            }
            if is_directory {
                path.push(b'/');
            }
            let end = if is_directory { "" } else { " " };
            quoted(&path) + end
        });
        (start, written.collect())
    }

    fn archived(&self, above: &[u8]) -> Vec<Candidate> {
        let Ok(mut browser) = self.browser.try_borrow_mut() else { return Vec::new() };
        let above = if above.is_empty() { b"." } else { above };
        let found = browser.list_path(above).unwrap_or_default().into_iter();
        found.map(|named| (named.name, named.directory.is_some())).collect()
    }
}

/// Directories of this host.
fn local(above: &[u8]) -> Vec<Candidate> {
    let above = if above.is_empty() { b"." } else { above };
    let above = std::ffi::OsString::from_vec(above.to_vec());
    let Ok(entries) = std::fs::read_dir(above) else { return Vec::new() };
    let directories = entries.flatten().filter(|entry| entry.path().is_dir());
    let mut found: Vec<Candidate> =
        directories.map(|entry| (entry.file_name().into_vec(), true)).collect();
    found.sort();
    found
}

impl Completer for Completion<'_> {
    type Candidate = Pair;

    fn complete(
        &self,
        line: &str,
        pos: usize,
        _: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<Pair>)> {
        let (start, candidates) = self.candidates(line.get(..pos).unwrap_or(line));
        let pairs =
            candidates.into_iter().map(|text| Pair { display: text.clone(), replacement: text });
        Ok((start, pairs.collect()))
    }
}

impl Hinter for Completion<'_> {
    type Hint = String;
}
impl Highlighter for Completion<'_> {}
impl Validator for Completion<'_> {}
impl Helper for Completion<'_> {}
