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
    #[error("connection to {address} failed: {source}")]
    Tls {
        address: String,
        #[source]
        source: io::Error,
    },
    /// The server's own words.
    #[error("{message}")]
    Status { status: u16, message: String },
    #[error("{0} timed out")]
    Timeout(&'static str),
    #[error("connection to {address} was lost")]
    Lost {
        address: String,
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
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

impl Error {
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
