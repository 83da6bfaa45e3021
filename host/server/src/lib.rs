//! The server: the same API and sessions as the reference's, over stores in directories.
//!
//! One process, one port. A request is authenticated (`auth`), its parameters are checked against
//! the endpoint's list (`params`), and a plain function answers it on a thread that may block
//! (`api`). Backups and restores are sessions of HTTP/2 on an upgraded connection (`backup`,
//! `reader`). What takes long is a task with a log (`tasks`). Spec: shared/spec/protocol.md.
//! May use `engine`, `transport`, `store`, `seal` and `model`; plugins come in as values.

pub mod access;
mod api;
mod auth;
mod backup;
pub mod calendar;
pub mod config;
mod error;
mod files;
#[doc(hidden)]
pub mod fuzz;
mod http;
mod jobs;
mod keys;
mod memory;
mod pam;
mod params;
mod reader;
mod server;
mod session;
mod stores;
mod tasks;

pub use config::Config;
pub use error::ServerError;
pub use keys::{certificate_fingerprint, ensure_certificate, renew_certificate};
pub use server::{Environment, ReaderMaker, Server};
pub use tasks::Identity;
