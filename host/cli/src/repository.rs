//! Where backups lie: a directory, or a server. Syntax: shared/spec/cli.md §1.

use crate::remote;
use crate::store::Store;
use anyhow::{Context, Result, anyhow, bail};
use clap::ArgMatches;
use keepwell_model::AuthId;
use keepwell_model::names::is_datastore_name;
use keepwell_store::DirStore;
use std::fmt;
use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::str::FromStr;

/// A repository as given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Repository {
    Local { path: PathBuf, given: String },
    Server(ServerRepository),
}

/// `[[auth-id@]host[:port]:]datastore`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServerRepository {
    pub(crate) auth_id: Option<String>,
    pub(crate) host: Option<String>,
    pub(crate) port: Option<u16>,
    pub(crate) store: String,
}

/// Longest repository that is taken.
const LENGTH_MAX: usize = 256;

impl FromStr for Repository {
    type Err = anyhow::Error;

    fn from_str(given: &str) -> Result<Self> {
        let path = given.strip_prefix("file:").or(given.contains('/').then_some(given));
        if let Some(path) = path {
            if path.is_empty() {
                bail!("repository 'file:' names no directory");
            }
            if path.len() == given.len() && looks_like_server(path) {
                bail!(
                    "'{given}' looks like a server and is a path: write ':' before the datastore, or \
                     './{given}' for a directory"
                );
            }
            return Ok(Self::Local { path: path.into(), given: given.to_owned() });
        }
        let server = parse_server(given).filter(|_| given.len() <= LENGTH_MAX);
        let server = server.ok_or_else(|| {
            anyhow!("unable to parse repository url '{given}' (use [[auth-id@]server[:port]:]datastore, or a path with a '/')")
        })?;
        Ok(Self::Server(server))
    }
}

/// A relative path whose first name has what separates the parts of a server's repository.
fn looks_like_server(path: &str) -> bool {
    path.split('/').next().is_some_and(|first| first.contains(['@', ':']))
}

fn parse_server(given: &str) -> Option<ServerRepository> {
    let (rest, store) = match given.rsplit_once(':') {
        Some((rest, store)) => (Some(rest), store),
        None => (None, given),
    };
    if !is_datastore_name(store) {
        return None;
    }
    let store = store.to_owned();
    let Some(rest) = rest else {
        return Some(ServerRepository { auth_id: None, host: None, port: None, store });
    };
    // A user is `name@realm`, so the last '@' separates it from the host.
    let (auth_id, place) = match rest.rsplit_once('@') {
        Some((auth_id, place)) => (Some(auth_id), place),
        None => (None, rest),
    };
    if auth_id.is_some_and(|auth_id| auth_id.parse::<AuthId>().is_err()) {
        return None;
    }
    let (host, port) = match split_port(place)? {
        // Behind a user stands a host, be it a number.
        (None, Some(_)) if auth_id.is_some() => (Some(place), None),
        found => found,
    };
    let host = host.map(str::to_owned);
    Some(ServerRepository { auth_id: auth_id.map(str::to_owned), host, port, store })
}

fn split_port(place: &str) -> Option<(Option<&str>, Option<u16>)> {
    if let Some(inner) = place.strip_prefix('[') {
        let (address, after) = inner.split_once(']')?;
        address.split('%').next()?.parse::<Ipv6Addr>().ok()?;
        let port = match after.strip_prefix(':') {
            Some(port) => Some(parse_port(port)?),
            None if after.is_empty() => None,
            None => return None,
        };
        return Some((Some(&place[..address.len() + 2]), port));
    }
    let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    match place.split_once(':') {
        Some((host, port)) if is_host(host) => Some((Some(host), Some(parse_port(port)?))),
        None if is_number(place) && place.len() <= 5 => Some((None, Some(parse_port(place)?))),
        None if is_host(place) => Some((Some(place), None)),
        _ => None,
    }
}

/// One to five digits.
fn parse_port(text: &str) -> Option<u16> {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| is_number && text.len() <= 5)
}

fn is_host(text: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    text.split('.').all(label)
}

impl ServerRepository {
    /// Who we are there.
    pub(crate) fn user(&self) -> Result<AuthId> {
        Ok(self.auth_id.as_deref().unwrap_or("root@pam").parse()?)
    }

    pub(crate) fn host(&self) -> &str {
        self.host.as_deref().unwrap_or("localhost")
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let server = match self {
            Self::Local { given, .. } => return f.write_str(given),
            Self::Server(server) => server,
        };
        let host = server.host.as_deref().unwrap_or("localhost");
        let port = server.port.unwrap_or(8007);
        match (&server.auth_id, &server.host, server.port) {
            (Some(auth_id), ..) => write!(f, "{auth_id}@{host}:{port}:{}", server.store),
            (None, _, Some(port)) => write!(f, "{host}:{port}:{}", server.store),
            (None, Some(host), None) => write!(f, "{host}:{}", server.store),
            (None, None, None) => f.write_str(&server.store),
        }
    }
}

impl Repository {
    /// Whether it is the same from any directory.
    pub(crate) fn is_found_everywhere(&self) -> bool {
        match self {
            Self::Local { path, .. } => path.is_absolute(),
            Self::Server(_) => true,
        }
    }

    /// From `--repository` or the environment.
    pub(crate) fn find(given: Option<&String>) -> Result<Self> {
        if let Some(given) = given {
            return given.parse();
        }
        let set = std::env::var_os("PBS_REPOSITORY").filter(|text| !text.is_empty());
        let set = set.context(
            "unable to get (default) repository: use --repository PATH or set PBS_REPOSITORY",
        )?;
        let wrong = || anyhow!("PBS_REPOSITORY '{}' is not UTF-8: rename it", set.display());
        set.to_str().ok_or_else(wrong)?.parse()
    }

    /// Opens an existing one.
    pub(crate) fn open(&self, matches: &ArgMatches) -> Result<Store> {
        match self {
            Self::Local { path, .. } => Ok(Store::Local(DirStore::open(path)?)),
            Self::Server(server) => Ok(Store::Remote(remote::open(server, matches)?)),
        }
    }

    /// Opens one for a backup; makes it where there is nothing.
    pub(crate) fn open_or_create(&self, matches: &ArgMatches, say: &dyn Fn(&str)) -> Result<Store> {
        match self {
            Self::Local { path, .. } if DirStore::can_create(path) => {
                say(&format!("Creating datastore in '{}'", path.display()));
                Ok(Store::Local(DirStore::create(path)?))
            }
            _ => self.open(matches),
        }
    }

    /// Whether the first backup would make it.
    pub(crate) fn is_missing(&self) -> bool {
        matches!(self, Self::Local { path, .. } if DirStore::can_create(path))
    }

    /// Opens one, unless it would have to be made: a dry run touches nothing.
    pub(crate) fn open_for_dry_run(&self, matches: &ArgMatches) -> Result<Option<Store>> {
        match self {
            Self::Local { path, .. } if DirStore::can_create(path) => Ok(None),
            _ => self.open(matches).map(Some),
        }
    }

    /// A server, for commands that only those have.
    pub(crate) fn server(&self) -> Result<&ServerRepository> {
        match self {
            Self::Server(server) => Ok(server),
            Self::Local { given, .. } => bail!(
                "repository '{given}' is a directory: this is for servers \
                 ([[auth-id@]server[:port]:]datastore)"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_forms_of_the_specification_are_read() {
        let cases = [
            ("store1", "store1"),
            ("backup-server:store1", "backup-server:store1"),
            ("10.0.0.1:8007:store1", "10.0.0.1:8007:store1"),
            ("8017:store1", "localhost:8017:store1"),
            ("user@pbs@backup-server:store1", "user@pbs@backup-server:8007:store1"),
            ("user@pbs!tok@host:store", "user@pbs!tok@host:8007:store"),
            ("user@pbs@[fe80::01]:8007:store1", "user@pbs@[fe80::01]:8007:store1"),
            ("[ff80::51]:1234:mydatastore", "[ff80::51]:1234:mydatastore"),
        ];
        for (given, shown) in cases {
            let repository: Repository = given.parse().unwrap();
            assert!(matches!(repository, Repository::Server(_)), "{given}");
            assert_eq!(repository.to_string(), shown);
        }
        for bad in [
            "",
            "::::",
            "test@pbs@127.0.0.1",
            "ab",
            "host:99999:store",
            "fe80::1:store",
            "a b:store",
        ] {
            assert!(bad.parse::<Repository>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_path_is_a_local_repository() {
        for (given, path) in [
            ("/srv/b", "/srv/b"),
            ("./b", "./b"),
            ("file:b", "b"),
            ("./a:b/c", "./a:b/c"),
            ("b/me@x", "b/me@x"),
        ] {
            let expected = Repository::Local { path: path.into(), given: given.into() };
            assert_eq!(given.parse::<Repository>().unwrap(), expected);
        }
        assert!("file:".parse::<Repository>().is_err());
        for mistyped in ["me@pbs@host:8007/store1", "https://host:8007/store1", "host:8007/store1"]
        {
            let error = mistyped.parse::<Repository>().unwrap_err().to_string();
            assert!(error.contains("looks like a server") && error.contains(mistyped), "{error}");
        }
        let anyway = "file:https://x".parse::<Repository>().unwrap();
        assert!(matches!(anyway, Repository::Local { .. }));
    }
}
