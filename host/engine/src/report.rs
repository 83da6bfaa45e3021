//! What was left out of a backup, or changed under way: a result, not a log line.

use serde::Serialize;
use std::fmt::Write;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

/// Why something is not, or not fully, in the archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Omission {
    MountPoint,
    Denied,
    Vanished,
    Unsupported,
    Changed,
    /// reading failed: it is left out, or the parts that could not be read are zeros
    Unreadable,
    TooLarge,
    Marked,
    /// the repository that the backup goes into
    Repository,
}

impl Omission {
    /// Whether the user wanted it so.
    pub fn is_intended(self) -> bool {
        matches!(self, Self::MountPoint | Self::TooLarge | Self::Marked | Self::Repository)
    }
}

/// One entry of the report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Skipped {
    /// such as root.pxar
    pub archive: String,
    /// from the archive's root, as text
    pub path: String,
    pub reason: Omission,
    pub detail: String,
}

/// A message for the user while a verb runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    Debug(String),
    Info(String),
    Warning(String),
    Skipped(Skipped),
}

/// More are counted but not kept: memory does not grow with the trouble.
const KEPT_MAX: usize = 10_000;

#[derive(Default)]
struct Kept {
    archive: String,
    skipped: Vec<Skipped>,
    count: u64,
    troubles: u64,
}

/// Collects what was skipped and passes notices on. Clones share everything.
#[derive(Clone)]
pub struct Report {
    kept: Arc<Mutex<Kept>>,
    notices: Sender<Notice>,
}

impl Report {
    /// A report and where its notices come out.
    pub fn new() -> (Self, Receiver<Notice>) {
        let (notices, out) = channel();
        (Self { kept: Arc::default(), notices }, out)
    }

    pub fn notify(&self, notice: Notice) {
        // Nobody listens any more: the verb is over.
        let _ = self.notices.send(notice);
    }

    /// What is skipped from now on belongs to this archive.
    pub fn begin_archive(&self, name: String) {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).archive = name;
    }

    pub fn skip(&self, path: &[u8], reason: Omission, detail: &str) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let name = shown_path(path.rsplit(|byte| *byte == b'/').next().unwrap_or_default());
        // Failures name their file, which the path does already.
        let detail = detail.strip_prefix(&format!("{name}: ")).unwrap_or(detail).to_owned();
        let path = shown_path(path);
        let skipped = Skipped { archive: kept.archive.clone(), path, reason, detail };
        kept.count += 1;
        kept.troubles += u64::from(!reason.is_intended());
        if kept.skipped.len() < KEPT_MAX {
            kept.skipped.push(skipped.clone());
        }
        drop(kept);
        self.notify(Notice::Skipped(skipped));
    }

    /// All that was kept.
    pub fn skipped(&self) -> Vec<Skipped> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).skipped.clone()
    }

    /// How many entries were skipped, and how many of those against the user's will.
    pub fn counts(&self) -> (u64, u64) {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        (kept.count, kept.troubles)
    }
}

/// Bytes of a path as text: what is not UTF-8 as `\xNN`, control characters escaped.
pub fn shown_path(path: &[u8]) -> String {
    let mut text = String::with_capacity(path.len());
    for chunk in path.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() || c == '\\' || c == '"' {
                text.extend(c.escape_debug());
            } else {
                text.push(c);
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(text, "\\x{byte:02X}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_named_once() {
        let (report, _notices) = Report::new();
        report.skip(b"dir/x", Omission::Denied, "x: Permission denied");
        report.skip(b"y", Omission::Denied, "dir/x: Permission denied");
        let details: Vec<String> = report.skipped().into_iter().map(|skip| skip.detail).collect();
        assert_eq!(details, ["Permission denied", "dir/x: Permission denied"]);
    }

    #[test]
    fn paths_are_shown_without_loss() {
        assert_eq!(shown_path(b"a\xffb\n\"\xc3\xa9"), "a\\xFFb\\n\\\"\u{e9}");
    }
}
