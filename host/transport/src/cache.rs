//! Tickets kept between runs of the client. Spec: protocol.md §2.4.

use crate::error::{Error, Result};
use crate::fingerprint::write_private;
use crate::ticket::LIFETIME;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;
use zeroize::Zeroizing;

/// Seconds before the end of a ticket's life from which it is not used any more.
const MARGIN: i64 = 60;

#[derive(Clone, Serialize, Deserialize)]
struct Entry {
    timestamp: i64,
    ticket: String,
    token: String,
}

/// By server and user.
type Entries = BTreeMap<String, BTreeMap<String, Entry>>;

/// The file `tickets`, readable by its owner only.
#[derive(Clone, Debug)]
pub struct TicketCache {
    path: PathBuf,
}

impl TicketCache {
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// The ticket kept for a user, unless it is too old.
    pub fn find(&self, server: &str, user: &str, now: i64) -> Option<Zeroizing<String>> {
        let entry = self.read(now).ok()?.get(server)?.get(user)?.clone();
        Some(Zeroizing::new(entry.ticket))
    }

    /// Keeps a ticket and its CSRF token.
    pub fn store(
        &self,
        server: &str,
        user: &str,
        ticket: &str,
        csrf: &str,
        now: i64,
    ) -> Result<()> {
        // What can't be read is of no use to anybody.
        let mut entries = self.read(now).unwrap_or_default();
        let entry = Entry { timestamp: now, ticket: ticket.to_owned(), token: csrf.to_owned() };
        entries.entry(server.to_owned()).or_default().insert(user.to_owned(), entry);
        self.write(&entries)
    }

    /// Forgets a user's ticket.
    pub fn remove(&self, server: &str, user: &str, now: i64) -> Result<()> {
        let mut entries = self.read(now)?;
        if let Some(users) = entries.get_mut(server) {
            users.remove(user);
        }
        entries.retain(|_, users| !users.is_empty());
        self.write(&entries)
    }

    /// All that are still good.
    fn read(&self, now: i64) -> Result<Entries> {
        let bytes = match fs::read(&self.path) {
            Ok(bytes) => Zeroizing::new(bytes),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Entries::new()),
            Err(error) => return Err(Error::file("read", &self.path)(error)),
        };
        let mut entries: Entries = serde_json::from_slice(&bytes).map_err(|problem| {
            let path = self.path.display();
            Error::protocol(format!("'{path}' is damaged ({problem}): remove it"))
        })?;
        let good =
            |entry: &Entry| (0..LIFETIME - MARGIN).contains(&now.saturating_sub(entry.timestamp));
        entries.values_mut().for_each(|users| users.retain(|_, entry| good(entry)));
        entries.retain(|_, users| !users.is_empty());
        Ok(entries)
    }

    fn write(&self, entries: &Entries) -> Result<()> {
        let text = serde_json::to_string(entries)
            .map_err(|problem| Error::protocol(problem.to_string()))?;
        write_private(&self.path, Zeroizing::new(text).as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_is_kept_until_it_is_old_or_removed() {
        let dir = tempfile::tempdir().unwrap();
        let cache = TicketCache::new(dir.path().join("run/tickets"));
        assert!(cache.find("h", "u@pbs", 1000).is_none());
        cache.store("h", "u@pbs", "T", "C", 1000).unwrap();
        cache.store("h", "v@pbs", "V", "C", 1000).unwrap();
        assert_eq!(&**cache.find("h", "u@pbs", 8139).as_ref().unwrap(), "T");
        assert!(cache.find("h", "u@pbs", 8140).is_none());
        assert!(cache.find("other", "u@pbs", 1000).is_none());
        cache.remove("h", "u@pbs", 1000).unwrap();
        assert!(cache.find("h", "u@pbs", 1000).is_none());
        assert!(cache.find("h", "v@pbs", 1000).is_some());
    }

    #[test]
    fn a_golden_cache_is_read() {
        let text =
            r#"{"127.0.0.1":{"test@pbs":{"ticket":"PBS:x","timestamp":1795400642,"token":"C"}}}"#;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tickets");
        fs::write(&path, text).unwrap();
        let found = TicketCache::new(path).find("127.0.0.1", "test@pbs", 1_795_400_700);
        assert_eq!(&**found.as_ref().unwrap(), "PBS:x");
    }
}
