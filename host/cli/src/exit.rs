//! From an outcome to messages and an exit code: 0, or 255 for any error.

use keepwell_engine::EngineError;
use keepwell_engine::plugin::Failure;
use keepwell_store::StoreError;
use std::io::{ErrorKind, Write};
use std::process::ExitCode;

/// Any error.
const FAILED: u8 = 255;

/// Wrong arguments: the message and what is right.
#[derive(Debug)]
pub(crate) struct UsageError {
    pub(crate) message: String,
    pub(crate) usage: String,
}

/// Text that was asked for, such as help.
#[derive(Debug)]
pub(crate) struct Shown(pub(crate) String);

impl std::fmt::Display for UsageError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}
impl std::error::Error for UsageError {}
impl std::fmt::Display for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
impl std::error::Error for Shown {}

pub(crate) fn report(outcome: anyhow::Result<()>) -> ExitCode {
    let Err(error) = outcome else { return ExitCode::SUCCESS };
    if let Some(Shown(text)) = error.downcast_ref() {
        let _ = std::io::stdout().write_all(text.as_bytes());
        return ExitCode::SUCCESS;
    }
    if is_broken_pipe(&error) {
        // Whoever read our output has seen enough.
        return ExitCode::SUCCESS;
    }
    let mut text = format!("Error: {}\n", one_line(&error));
    if let Some(hint) = hint(&error) {
        text += &format!("{hint}\n");
    }
    if let Some(usage) = error.downcast_ref::<UsageError>() {
        text += &format!("\n{}\n", usage.usage);
    }
    let _ = std::io::stderr().write_all(text.as_bytes());
    ExitCode::from(FAILED)
}

/// The error and its causes; a cause that its error repeats is left out.
fn one_line(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        let cause = cause.trim_end().replace('\n', " ");
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text += &format!(": {cause}");
        }
    }
    text
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let source = match error.downcast_ref::<EngineError>() {
        Some(EngineError::Io { source, .. }) => Some(source),
        _ => error.downcast_ref::<std::io::Error>(),
    };
    source.is_some_and(|source| source.kind() == ErrorKind::BrokenPipe)
}

/// What to do about it.
fn hint(error: &anyhow::Error) -> Option<&'static str> {
    let io = error.chain().find_map(|cause| cause.downcast_ref::<std::io::Error>());
    if let Some(io) = io {
        match io.kind() {
            ErrorKind::StorageFull => return Some("The disk is full: make room and try again."),
            ErrorKind::ReadOnlyFilesystem => return Some("The file system is read-only."),
            _ => {}
        }
    }
    let store = error.chain().find_map(|cause| match cause.downcast_ref::<EngineError>() {
        Some(EngineError::Store(store)) => Some(store),
        _ => cause.downcast_ref::<StoreError>(),
    });
    if let Some(store) = store {
        return match store {
            StoreError::Io { source, .. } if source.kind() == ErrorKind::PermissionDenied => {
                Some("Run as a user who may write to the repository, or choose another one.")
            }
            StoreError::NotAStore { .. } => Some(
                "Give the path of a repository; `backup` makes a new one in an empty directory.",
            ),
            StoreError::NamespaceMissing { .. } => {
                Some("Make it with `keepwell namespace create`.")
            }
            StoreError::Protected { .. } => Some(
                "Remove the protection first: `keepwell snapshot protected update SNAPSHOT false`.",
            ),
            StoreError::SnapshotMissing { .. } => {
                Some("`keepwell snapshot list` shows what there is.")
            }
            StoreError::TooOld { .. } => Some("Wait a second, or give a later --backup-time."),
            _ => None,
        };
    }
    match error.chain().find_map(|cause| cause.downcast_ref::<EngineError>()) {
        Some(EngineError::NotInManifest { .. }) => {
            Some("`keepwell snapshot files SNAPSHOT` shows what there is.")
        }
        Some(EngineError::ChunkDamaged { .. }) => {
            Some("Use --keep-going to restore what is not damaged.")
        }
        Some(EngineError::Entry { problem, .. })
            if problem.contains("create file: File exists")
                || problem.contains("directory: File exists") =>
        {
            Some("Restore into an empty directory, or use --allow-existing-dirs and --overwrite.")
        }
        Some(EngineError::Entry { problem, .. }) if problem.contains("chunk ") => {
            Some("Use --keep-going to restore what is not damaged.")
        }
        Some(EngineError::Plugin(Failure::Invalid(text))) if text.contains("entries (>") => {
            Some("Use --entries-max to allow more.")
        }
        _ => None,
    }
}
