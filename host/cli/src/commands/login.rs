//! `login` and `logout`: a ticket for the next two hours. Spec: cli.md §2.

use crate::args::repository;
use crate::remote;
use crate::repository::Repository;
use crate::terminal::now;
use anyhow::{Result, bail};
use clap::{ArgMatches, Command};

pub(crate) fn login_command() -> Command {
    Command::new("login")
        .about("Log in to a server, and keep the ticket for two hours")
        .arg(repository())
}

pub(crate) fn logout_command() -> Command {
    Command::new("logout").about("Forget the ticket of a server").arg(repository())
}

pub(crate) fn login(matches: &ArgMatches) -> Result<()> {
    let repository = Repository::find(matches.get_one("repository"))?;
    let server = repository.server()?;
    if server.user()?.as_str().contains('!') {
        bail!("an API token needs no login");
    }
    if remote::ticket_cache().is_none() {
        bail!("there is no place for the ticket: XDG_RUNTIME_DIR is not set");
    }
    remote::open_anew(server, matches)?;
    let kept = remote::ticket_cache()
        .and_then(|cache| cache.find(server.host(), server.user().ok()?.as_str(), now()));
    match kept {
        Some(_) => Ok(()),
        None => bail!("the ticket could not be kept: is XDG_RUNTIME_DIR writable?"),
    }
}

pub(crate) fn logout(matches: &ArgMatches) -> Result<()> {
    let repository = Repository::find(matches.get_one("repository"))?;
    let server = repository.server()?;
    match remote::ticket_cache() {
        Some(cache) => Ok(cache.remove(server.host(), server.user()?.as_str(), now())?),
        None => Ok(()),
    }
}
