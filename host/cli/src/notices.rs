//! What a running verb has to say, on stderr, beside the progress bar.

use crate::progress::Shower;
use keepwell_engine::report::{Notice, Omission, Skipped};
use std::sync::mpsc::Receiver;
use std::thread::JoinHandle;

/// Prints notices until the verb is over.
pub(crate) fn print_in_background(notices: Receiver<Notice>, shower: Shower) -> JoinHandle<()> {
    std::thread::spawn(move || {
        for notice in notices {
            match notice {
                Notice::Debug(text) => tracing::debug!("{text}"),
                Notice::Info(text) => shower.line(&text),
                Notice::Warning(text) => shower.warn(&text),
                Notice::Skipped(skipped) if skipped.reason.is_intended() => {
                    shower.line(&describe(&skipped));
                }
                Notice::Skipped(skipped) => shower.warn(&describe(&skipped)),
            }
        }
    })
}

/// One line for something left out.
pub(crate) fn describe(skipped: &Skipped) -> String {
    let Skipped { path, reason, detail, .. } = skipped;
    match reason {
        Omission::MountPoint => format!("skip mount point: \"/{path}\""),
        Omission::Denied => format!("failed to open file: \"{path}\": access denied"),
        Omission::Vanished => format!("warning: file vanished while reading: \"{path}\""),
        Omission::Changed => format!("warning: \"{path}\": {detail}"),
        Omission::Unreadable => format!("warning: \"{path}\": {detail}"),
        Omission::Repository => format!("skip the repository itself: \"/{path}\""),
        Omission::Unsupported => format!("warning: can't archive \"{path}\": {detail}"),
        Omission::TooLarge => format!("skip large file: \"{path}\" ({detail})"),
        Omission::Marked => format!("skip content of marked directory: \"{path}\" ({detail})"),
    }
}
