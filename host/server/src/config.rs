//! What the administrator writes: `server.toml` by hand, `datastores.toml` by `keepwell admin`.

use crate::error::{Result, ServerError};
use crate::files;
use keepwell_model::is_safe_name;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// `server.toml`. Paths are relative to its directory.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// addresses and ports to listen on
    #[serde(default = "default_listen")]
    pub listen: Vec<SocketAddr>,
    /// certificate and those above it, and its private key, as PEM
    #[serde(default = "default_certificate")]
    pub certificate: PathBuf,
    #[serde(default = "default_key")]
    pub key: PathBuf,
    /// where users, datastores, keys and the logs of tasks are kept
    #[serde(default = "default_state")]
    pub state: PathBuf,
    /// name of this host in the names of tasks
    pub node: Option<String>,
    /// connections at a time; more wait
    #[serde(default = "default_connections")]
    pub connections_max: usize,
    /// connections from one address at a time; more are refused
    #[serde(default = "default_connections_per_address")]
    pub connections_per_address_max: usize,
    /// failed logins from one address in a minute, before it has to wait
    #[serde(default = "default_failures")]
    pub login_failures_max: u32,
    /// seconds that running backups are given when the server is asked to stop
    #[serde(default = "default_grace")]
    pub shutdown_grace_seconds: u64,
    /// whose rules in /etc/pam.d count for users of realm pam
    #[serde(default = "default_pam_service")]
    pub pam_service: String,
    /// finished tasks whose logs are kept
    #[serde(default = "default_tasks")]
    pub tasks_kept: usize,
}

fn default_listen() -> Vec<SocketAddr> {
    vec![SocketAddr::from(([0u16; 8], keepwell_transport::DEFAULT_PORT))]
}
fn default_certificate() -> PathBuf {
    "proxy.pem".into()
}
fn default_key() -> PathBuf {
    "proxy.key".into()
}
fn default_state() -> PathBuf {
    ".".into()
}
fn default_connections() -> usize {
    1024
}
fn default_connections_per_address() -> usize {
    256
}
fn default_failures() -> u32 {
    10
}
fn default_grace() -> u64 {
    3600
}
fn default_pam_service() -> String {
    "keepwell".into()
}
fn default_tasks() -> usize {
    1000
}

/// As long as a host's name may be. It is part of file names.
const NODE_BYTES_MAX: usize = 64;

impl Config {
    /// Reads the file; paths become absolute as far as its own path is.
    pub fn load(path: &Path) -> Result<Self> {
        let problem = |problem: String| ServerError::Config { path: path.to_owned(), problem };
        let bytes = files::read(path)?.ok_or_else(|| problem("no such file".into()))?;
        let text = String::from_utf8(bytes).map_err(|_| problem("it is not UTF-8".into()))?;
        let mut config: Self =
            toml::from_str(&text).map_err(|error| problem(one_line(&error, &text)))?;
        let dir = path.parent().unwrap_or(Path::new("."));
        for path in [&mut config.certificate, &mut config.key, &mut config.state] {
            *path = dir.join(&*path);
        }
        let limits = [
            ("connections-max", config.connections_max),
            ("connections-per-address-max", config.connections_per_address_max),
            ("login-failures-max", config.login_failures_max as usize),
        ];
        if let Some((name, _)) = limits.iter().find(|(_, limit)| *limit == 0) {
            return Err(problem(format!("'{name}' is 0: nobody could use the server")));
        }
        if config.tasks_kept == 0 {
            return Err(problem("'tasks-kept' is 0: keep the log of at least one task".into()));
        }
        let service = &config.pam_service;
        if service.is_empty() || service.contains('/') {
            return Err(problem(format!(
                "pam-service '{service}' is not the name of a file in /etc/pam.d"
            )));
        }
        if let Some(node) = config.node.as_deref().filter(|node| !is_safe_name(node)) {
            return Err(problem(format!(
                "node '{node}' may hold letters, digits, '_', '.' and '-', and may not begin with \
                 '.' or '-'"
            )));
        }
        if config.node.as_deref().is_some_and(|node| node.len() > NODE_BYTES_MAX) {
            return Err(problem(format!("'node' has more than {NODE_BYTES_MAX} characters")));
        }
        if config.listen.is_empty() {
            return Err(problem("'listen' names no address".into()));
        }
        Ok(config)
    }
}

/// What is wrong, and where, without the excerpt: values may be secret.
fn one_line(error: &toml::de::Error, text: &str) -> String {
    let message = error.message().replace('\n', " ");
    let Some(before) = error.span().and_then(|span| text.get(..span.start)) else { return message };
    let number = before.matches('\n').count();
    let key = text.lines().nth(number).and_then(|line| line.split_once('='));
    match key {
        Some((key, _)) => format!("line {}, '{}': {message}", number + 1, key.trim()),
        None => format!("line {}: {message}", number + 1),
    }
}

/// How a datastore is held back from use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MaintenanceKind {
    ReadOnly,
    Offline,
    Delete,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Maintenance {
    #[serde(rename = "type")]
    pub kind: MaintenanceKind,
    #[serde(default)]
    pub message: String,
}

/// One datastore.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Datastore {
    pub name: String,
    pub path: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub maintenance: Option<Maintenance>,
    #[serde(default)]
    pub jobs: Jobs,
}

/// What is done by itself, and when: calendar events.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Jobs {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gc_schedule: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prune_schedule: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verify_schedule: Option<String>,
    /// days after which what was verified is verified again
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verify_outdated_after: Option<i64>,
    /// rules of the scheduled prune, such as `keep-daily`
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub keep: BTreeMap<String, u64>,
}

/// `datastores.toml`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Datastores {
    #[serde(default, rename = "datastore")]
    pub list: Vec<Datastore>,
}

impl Datastores {
    pub fn path(state: &Path) -> PathBuf {
        state.join("datastores.toml")
    }

    pub fn load(state: &Path) -> Result<Self> {
        load(&Self::path(state))
    }

    pub fn save(&self, state: &Path) -> Result<()> {
        save(&Self::path(state), self, files::PUBLIC)
    }

    pub fn find(&self, name: &str) -> Option<&Datastore> {
        self.list.iter().find(|store| store.name == name)
    }
}

/// A file that `keepwell admin` writes; nothing where there is none.
pub(crate) fn load<T: Default + serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let Some(bytes) = files::read(path)? else { return Ok(T::default()) };
    let problem = |problem: String| ServerError::Config { path: path.to_owned(), problem };
    let text = String::from_utf8(bytes).map_err(|_| problem("it is not UTF-8".into()))?;
    toml::from_str(&text).map_err(|error| problem(one_line(&error, &text)))
}

pub(crate) fn save<T: Serialize>(path: &Path, value: &T, mode: u32) -> Result<()> {
    let text = toml::to_string(value).map_err(|error| ServerError::Config {
        path: path.to_owned(),
        problem: error.to_string(),
    })?;
    files::write(path, text.as_bytes(), mode)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("server.toml");
        for (text, problem) in [
            ("pam-service = \"../x\"\n", "pam-service '../x' is not the name of a file in"),
            ("tasks-kept = 0\n", "'tasks-kept' is 0: "),
            ("\n\nconnections-max = \"secret\"\n", "line 3, 'connections-max': "),
            ("nonsense\n", "line "),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = Config::load(&path).unwrap_err().to_string();
            assert!(error.contains(problem) && error.lines().count() == 1, "{error}");
        }
    }
}
