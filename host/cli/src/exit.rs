//! From an outcome to messages and an exit code: 0, or 255 for any error.

use crate::output::write_out;
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

/// A failure that somebody else has told already.
#[derive(Debug)]
pub(crate) struct Told;

impl std::fmt::Display for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("it failed")
    }
}
impl std::error::Error for Told {}

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
    let error = match error.downcast::<Shown>() {
        Ok(Shown(text)) => match write_out(text.as_bytes()) {
            Ok(()) => return ExitCode::SUCCESS,
            Err(error) => error,
        },
        Err(error) => error,
    };
    if is_broken_pipe(&error) {
        // Whoever read our output has seen enough.
        return ExitCode::SUCCESS;
    }
    if error.is::<Told>() {
        return ExitCode::from(FAILED);
    }
    // One line: what is wrong, and what to do about it.
    let mut text = format!("Error: {}", one_line(&error));
    if let Some(hint) = hint(&error) {
        text += &format!(" - {hint}");
    }
    text.push('\n');
    if let Some(usage) = error.downcast_ref::<UsageError>() {
        text += &format!("\n{}\n", usage.usage);
    }
    let _ = std::io::stderr().write_all(text.as_bytes());
    ExitCode::from(FAILED)
}

/// The error and its causes; a cause that its error repeats is left out.
pub(crate) fn one_line(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        let cause = shown(cause.trim_end());
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text += &format!(": {cause}");
        }
    }
    text
}

/// Longer texts, of a server, are cut.
const CHARS_MAX: usize = 2000;

/// One line that does nothing to a terminal, wherever it comes from.
fn shown(text: &str) -> String {
    let mut line = String::new();
    for (count, c) in text.chars().enumerate() {
        match c {
            _ if count == CHARS_MAX => {
                line += " …";
                break;
            }
            '\n' | '\t' => line.push(' '),
            c if c.is_control() => line.extend(c.escape_default()),
            c => line.push(c),
        }
    }
    line
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    // Only of what is printed: an archive that did not reach its reader is an error.
    error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|source| source.kind() == ErrorKind::BrokenPipe)
}

/// What to do about it.
fn hint(error: &anyhow::Error) -> Option<String> {
    let io = error.chain().find_map(|cause| cause.downcast_ref::<std::io::Error>());
    match io.map(std::io::Error::kind) {
        Some(ErrorKind::StorageFull) => {
            return Some("The disk is full: make room and try again.".into());
        }
        Some(ErrorKind::ReadOnlyFilesystem) => return Some("The file system is read-only.".into()),
        _ => {}
    }
    let store = error.chain().find_map(|cause| match cause.downcast_ref::<EngineError>() {
        Some(EngineError::Store(store)) => Some(store),
        _ => cause.downcast_ref::<StoreError>(),
    });
    let engine = error.chain().find_map(|cause| cause.downcast_ref::<EngineError>());
    let network = error.chain().find_map(|cause| cause.downcast_ref());
    store
        .and_then(store_hint)
        .or_else(|| engine.and_then(engine_hint))
        .or_else(|| network.and_then(network_hint))
}

fn store_hint(error: &StoreError) -> Option<String> {
    let text = match error {
        StoreError::Io { source, .. } if source.kind() == ErrorKind::PermissionDenied => {
            "Run as a user who may do that in the repository, or choose another one."
        }
        StoreError::Io { action: "open", source, .. } if source.kind() == ErrorKind::NotFound => {
            "There is no repository there: the first backup makes one."
        }
        StoreError::Io { action: "read", source, .. } if source.kind() == ErrorKind::NotFound => {
            "A file of the snapshot is missing: others may be sound, `keepwell verify` tells."
        }
        StoreError::NotAStore { .. } => {
            "Give the path of a repository; `backup` makes a new one in an empty directory."
        }
        StoreError::NamespaceMissing { namespace } => {
            return Some(format!(
                "There is no namespace '{namespace}': `keepwell namespace list` shows what there is, \
                 `keepwell namespace create` makes one."
            ));
        }
        StoreError::Protected { snapshot } => {
            return Some(format!(
                "Remove the protection first: `keepwell snapshot protected update {snapshot} false`."
            ));
        }
        StoreError::SnapshotMissing { .. } => "`keepwell snapshot list` shows what there is.",
        StoreError::Remote(source)
            if source.downcast_ref().is_some_and(keepwell_transport::Error::is_lost) =>
        {
            "Try again when the server is there; a backup that was cut off has left nothing."
        }
        StoreError::TooOld { .. } => "Wait a second, or give a later --backup-time.",
        _ => return None,
    };
    Some(text.into())
}

fn network_hint(error: &keepwell_transport::Error) -> Option<String> {
    match error {
        keepwell_transport::Error::NotConfirmed { presented } => {
            Some(format!("Where it is the right one, set PBS_FINGERPRINT={presented}"))
        }
        keepwell_transport::Error::Undecided(_) => {
            Some("`keepwell snapshot list` shows whether the snapshot is there.".into())
        }
        _ => None,
    }
}

fn engine_hint(error: &EngineError) -> Option<String> {
    let text = match error {
        EngineError::NotInManifest { .. } => {
            "`keepwell snapshot files SNAPSHOT` shows what there is."
        }
        EngineError::MissingKey { .. } => "Give the key with --keyfile.",
        EngineError::WrongKey { .. } => "Give the right one with --keyfile.",
        EngineError::WrongSignature { .. } | EngineError::Unsigned { .. } => {
            "The manifest was changed by somebody who does not have the key."
        }
        EngineError::Damaged { .. } | EngineError::Store(StoreError::Corrupt { .. }) => {
            "Other archives and snapshots may be sound: `keepwell snapshot list` shows what there is."
        }
        EngineError::Entry { problem, .. } if problem.contains("No space left on device") => {
            "The disk is full: make room and try again."
        }
        EngineError::Io { source, .. } if source.kind() == ErrorKind::AlreadyExists => {
            "Choose another target."
        }
        EngineError::Entry { problem, .. } if problem.contains(": File exists") => {
            "Restore into an empty directory, or use --allow-existing-dirs and --overwrite."
        }
        EngineError::Plugin(Failure::Invalid(text)) if text.contains("entries (>") => {
            "Use --entries-max to allow more."
        }
        _ => return None,
    };
    Some(text.into())
}
