//! The wire: what client and server share of the protocol, and the client half.
//!
//! [`RemoteStore`] is a store on a server: it makes snapshots and reads them through the same seam
//! as a directory does. Inside it is asynchronous; what it offers blocks, for threads that do the
//! work of a backup. Spec: shared/spec/protocol.md. May use `store` and `model`; knows no terminal
//! and no environment: who asks the user for a password is told by a value.

mod backup;
mod cache;
mod client;
mod connect;
mod error;
mod fingerprint;
mod limit;
mod network;
pub mod query;
mod reader;
mod session;
mod store;
pub mod ticket;
pub mod web;

pub use cache::TicketCache;
pub use client::{BareSession, Client, ClientOptions, Confirm, Secret, Trust};
pub use connect::Proxy;
pub use error::{Error, Result};
pub use fingerprint::{Fingerprint, KnownServers};
pub use limit::RateLimit;
pub use query::Query;
pub use store::RemoteStore;

/// Names of the protocols that a connection can be upgraded to, and of the paths for that.
pub const BACKUP_PROTOCOL: &str = "proxmox-backup-protocol-v1";
pub const READER_PROTOCOL: &str = "proxmox-backup-reader-protocol-v1";

/// The port of servers that name none.
pub const DEFAULT_PORT: u16 = 8007;
/// HTTP/2: largest frame that either side takes.
pub const FRAME_BYTES_MAX: u32 = 4 << 20;
/// Who we say we are: servers know this one.
const USER_AGENT: &str = "proxmox-backup-client/1.0";
