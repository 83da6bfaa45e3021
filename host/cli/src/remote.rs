//! A repository on a server: who we are there, and whether it is the right one.
//! Spec: protocol.md §2.4.

use crate::repository::ServerRepository;
use crate::secrets::{from_environment, login_password};
use crate::signals::interrupt;
use crate::terminal::{config_dir, now, run_dir};
use anyhow::{Context, Result, anyhow, bail};
use clap::ArgMatches;
use keepwell_transport::{
    Client, ClientOptions, DEFAULT_PORT, Error, Fingerprint, KnownServers, Proxy, RateLimit,
    RemoteStore, Secret, TicketCache, Trust,
};
use std::io::{BufRead, IsTerminal, Write};
use std::time::Duration;

/// Where tickets are kept between runs, if there is such a place.
pub(crate) fn ticket_cache() -> Option<TicketCache> {
    Some(TicketCache::new(run_dir()?.join("proxmox-backup/tickets")))
}

/// What `--rate` and `--burst` allow, in bytes a second.
fn limit(matches: &ArgMatches) -> Result<Option<RateLimit>> {
    let bytes = |name: &str| matches.try_get_one::<u64>(name).ok().flatten().copied();
    match (bytes("rate"), bytes("burst")) {
        (Some(rate), burst) => Ok(Some(RateLimit::new(rate, burst))),
        (None, Some(_)) => bail!("--burst needs --rate"),
        (None, None) => Ok(None),
    }
}

fn trust() -> Result<Trust> {
    let expected = match std::env::var("PBS_FINGERPRINT").ok().filter(|text| !text.is_empty()) {
        Some(text) => Some(text.parse::<Fingerprint>().context("PBS_FINGERPRINT")?),
        None => None,
    };
    let known = match expected {
        Some(_) => None,
        None => config_dir().map(|dir| KnownServers::new(dir.join("fingerprints"))),
    };
    Ok(Trust { expected, known, confirm: Box::new(confirm) })
}

/// Asks whether to go on with a server that nobody vouches for.
fn confirm(presented: &Fingerprint, expected: Option<&Fingerprint>) -> bool {
    if let Some(expected) = expected {
        eprint(&format!(
            "WARNING: certificate fingerprint does not match expected fingerprint!\nexpected:    {expected}\n"
        ));
    }
    eprint(&format!("fingerprint: {presented}\n"));
    if !std::io::stdin().is_terminal() {
        return false;
    }
    let mut lines = std::io::stdin().lock();
    loop {
        eprint("Are you sure you want to continue connecting? (y/n): ");
        let mut line = String::new();
        if lines.read_line(&mut line).unwrap_or(0) == 0 {
            return false;
        }
        match line.trim() {
            "y" | "Y" => return true,
            "n" | "N" => return false,
            _ => {}
        }
    }
}

fn eprint(text: &str) {
    let mut out = std::io::stderr();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// What all connections go through.
pub(crate) fn proxy() -> Result<Option<Proxy>> {
    match std::env::var("ALL_PROXY").ok().filter(|text| !text.is_empty()) {
        Some(text) => Ok(Some(text.parse().context("ALL_PROXY")?)),
        None => Ok(None),
    }
}

/// Logs in. A cached ticket serves as the password; where it is not taken, the password is asked
/// for.
fn login(client: &Client, server: &ServerRepository, with_cache: bool) -> Result<()> {
    let user = server.user()?;
    if user.as_str().contains('!') {
        let secret = from_environment("PBS_PASSWORD")?.ok_or(Error::NoTokenSecret)?;
        return Ok(client.login(Secret::Token(secret))?);
    }
    let cache = ticket_cache().filter(|_| with_cache);
    let cached = cache.and_then(|cache| cache.find(server.host(), user.as_str(), now()));
    if let Some(ticket) = cached {
        match client.login(Secret::Password(ticket)) {
            Err(Error::Status { status: 401, .. }) => {}
            other => return Ok(other?),
        }
    }
    let password = login_password(user.as_str())?;
    client.login(Secret::Password(password)).map_err(|error| match error {
        Error::Status { status: 401, message } => {
            let host = server.host();
            anyhow!("{message} - Check the password, and that '{user}' is a user of {host}.")
        }
        other => other.into(),
    })
}

/// Connects and logs in.
pub(crate) fn open(server: &ServerRepository, matches: &ArgMatches) -> Result<RemoteStore> {
    connect(server, matches, true)
}

/// Connects and logs in with a password, whatever is cached.
pub(crate) fn open_anew(server: &ServerRepository, matches: &ArgMatches) -> Result<RemoteStore> {
    connect(server, matches, false)
}

fn connect(
    server: &ServerRepository,
    matches: &ArgMatches,
    with_cache: bool,
) -> Result<RemoteStore> {
    if server.host.is_none() && std::path::Path::new(&server.store).is_dir() {
        let store = &server.store;
        tracing::warn!("'{store}' is a datastore on localhost; the directory here is './{store}'");
    }
    let user = server.user()?;
    let is_token = user.as_str().contains('!');
    let options = ClientOptions {
        host: server.host().to_owned(),
        port: server.port.unwrap_or(DEFAULT_PORT),
        user,
        trust: trust()?,
        proxy: proxy()?,
        limit: limit(matches)?,
        cache: ticket_cache().filter(|_| !is_token),
        now,
        interrupt: interrupt(),
        patience: matches
            .try_get_one::<u64>("patience")
            .ok()
            .flatten()
            .copied()
            .map(Duration::from_secs),
    };
    let client = Client::new(options)?;
    login(&client, server, with_cache)?;
    Ok(RemoteStore::new(client, server.store.clone()))
}
