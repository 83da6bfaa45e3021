//! What can go wrong between client and server.

use keepwell_store::StoreError;
use std::io;
use std::sync::Arc;

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error("could not connect to {address}: {source}")]
    Connect {
        address: String,
        #[source]
        source: io::Error,
    },
    #[error("could not connect to {address}: no answer within 10 seconds")]
    ConnectTimeout { address: String },
    #[error("certificate validation failed - Certificate fingerprint was not confirmed.")]
    NotConfirmed { presented: String },
    #[error("the certificate of {address} is none that this system trusts")]
    Untrusted { address: String },
    #[error("{address} did not say where its answer ends, so it may be half of one")]
    EndUnknown { address: String },
    /// there can be no such request
    #[error("{0}")]
    Request(String),
    #[error("connection to {address} failed: {source}")]
    Tls {
        address: String,
        #[source]
        source: io::Error,
    },
    /// The server's own words.
    #[error("{message}")]
    Status { status: u16, message: String },
    #[error("interrupted")]
    Interrupted,
    /// the end of a backup was asked for, and no answer came
    #[error("the server did not say whether the backup is finished")]
    Undecided(#[source] Box<Error>),
    #[error("{0} timed out")]
    Timeout(&'static str),
    #[error("connection to {address} was lost")]
    Lost {
        address: String,
        #[source]
        source: Option<Source>,
    },
    #[error("{0}")]
    Protocol(String),
    /// what ended an upload, for all that wait for it
    #[error(transparent)]
    Upload(Arc<Error>),
    #[error("parse_proxy_url failed: {0}")]
    Proxy(String),
    #[error("API token secret must be provided!")]
    NoTokenSecret,
    #[error("could not {action} '{path}'")]
    File {
        action: &'static str,
        path: String,
        #[source]
        source: io::Error,
    },
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

type Source = Box<dyn std::error::Error + Send + Sync>;

/// rustls's words for a connection that just ended; an address of its manual follows.
const JUST_ENDED: &str = "without sending TLS close_notify";

impl Error {
    /// A connection that ended before its time.
    pub(crate) fn lost(address: String, source: Option<Source>) -> Self {
        let source = source.map(|source| {
            let first: &(dyn std::error::Error + 'static) = &*source;
            let mut causes = std::iter::successors(Some(first), |cause| cause.source());
            match causes.any(|cause| cause.to_string().contains(JUST_ENDED)) {
                true => "the other side ended it".into(),
                false => source,
            }
        });
        Self::Lost { address, source }
    }

    /// What is known where the end of a backup failed in this way.
    pub(crate) fn of_finish(self) -> Self {
        match self.is_lost() || matches!(self, Self::Interrupted) {
            true => Self::Undecided(Box::new(self)),
            false => self,
        }
    }

    pub(crate) fn protocol(text: impl Into<String>) -> Self {
        Self::Protocol(text.into())
    }

    pub(crate) fn file(
        action: &'static str,
        path: &std::path::Path,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.display().to_string();
        move |source| Self::File { action, path, source }
    }

    /// Whether another connection may help.
    pub fn is_lost(&self) -> bool {
        match self {
            Self::Lost { .. } | Self::Timeout(_) => true,
            Self::Upload(error) => error.is_lost(),
            _ => false,
        }
    }
}

impl From<Error> for StoreError {
    fn from(error: Error) -> Self {
        Self::Remote(Box::new(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_answer_says_what_became_of_a_backup() {
        let lost = Error::lost("a:1".into(), None).of_finish();
        assert!(matches!(lost, Error::Undecided(_)) && !lost.is_lost());
        assert!(matches!(Error::Interrupted.of_finish(), Error::Undecided(_)));
        let refused = Error::Status { status: 400, message: "no".into() }.of_finish();
        assert!(matches!(refused, Error::Status { .. }));
    }

    #[test]
    fn a_connection_that_just_ended_is_told_without_a_manual() {
        let words = format!("peer closed connection {JUST_ENDED}: https://docs.rs/x");
        let deep = |words: &str| {
            let inner = io::Error::new(io::ErrorKind::UnexpectedEof, words.to_owned());
            Error::lost(
                "a:1".into(),
                Some(Box::new(Error::Tls { address: "a:1".into(), source: inner })),
            )
        };
        let cause = |error: &Error| std::error::Error::source(error).map(ToString::to_string);
        assert_eq!(cause(&deep(&words)).as_deref(), Some("the other side ended it"));
        assert_eq!(cause(&deep("reset")).as_deref(), Some("connection to a:1 failed: reset"));
    }
}
