//! Errors of the server itself, and of requests.

use hyper::StatusCode;
use keepwell_engine::EngineError;
use keepwell_engine::restore::chain;
use keepwell_store::StoreError;
use std::io;
use std::path::{Path, PathBuf};

/// Why the server can't start or be administered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    #[error("could not {action} '{}'", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("'{}': {problem}", path.display())]
    Config { path: PathBuf, problem: String },
    #[error("could not listen on {address}")]
    Listen {
        address: String,
        #[source]
        source: io::Error,
    },
    #[error("{0}")]
    Refused(String),
    #[error(transparent)]
    Store(#[from] StoreError),
}

pub(crate) type Result<T, E = ServerError> = std::result::Result<T, E>;

pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ServerError {
    let path = path.to_owned();
    move |source| ServerError::Io { action, path, source }
}

pub(crate) fn refused(text: impl Into<String>) -> ServerError {
    ServerError::Refused(text.into())
}

/// What a request gets that can't be answered: a status and a line of text.
#[derive(Debug)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) message: String,
    /// parameters, and what is wrong with them
    pub(crate) parameters: Vec<(String, String)>,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), parameters: Vec::new() }
    }

    pub(crate) fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    pub(crate) fn forbidden() -> Self {
        Self::new(StatusCode::FORBIDDEN, "permission check failed")
    }

    pub(crate) fn unauthorized(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, message)
    }

    pub(crate) fn internal() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal error")
    }
}

pub(crate) type ApiResult<T> = std::result::Result<T, ApiError>;

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        Self::bad(chain(&error))
    }
}

impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> Self {
        Self::bad(chain(&error))
    }
}

impl From<ServerError> for ApiError {
    /// Where the server keeps its files is nobody's business.
    fn from(error: ServerError) -> Self {
        match error {
            ServerError::Io { action, ref source, .. } => {
                let text = format!("could not {action} a file of the server: {source}");
                tracing::error!("{}", chain(&error));
                Self::bad(text)
            }
            other => Self::bad(chain(&other)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_do_not_see_paths_of_the_server() {
        let missing = io::Error::from(io::ErrorKind::NotFound);
        let error = super::io("open", Path::new("/secret/place"))(missing);
        assert_eq!(
            ApiError::from(error).message,
            "could not open a file of the server: entity not found"
        );
    }
}
