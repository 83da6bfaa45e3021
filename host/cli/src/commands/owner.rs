//! `change-owner`: gives a group to somebody else.

use super::snapshot::group_argument;
use crate::args::{namespace, namespace_of, parsed, repository};
use crate::repository::Repository;
use anyhow::{Context, Result};
use clap::{Arg, ArgMatches, Command};
use keepwell_model::{AuthId, GroupId};

pub(crate) fn command() -> Command {
    Command::new("change-owner")
        .about("Change the owner of a group")
        .arg(group_argument())
        .arg(
            Arg::new("new-owner")
                .value_name("OWNER")
                .help("USER@REALM or USER@REALM!TOKEN")
                .required(true)
                .value_parser(parsed::<AuthId>()),
        )
        .arg(repository())
        .arg(namespace())
}

pub(crate) fn run(matches: &ArgMatches) -> Result<()> {
    let group = matches.get_one::<GroupId>("group").context("missing argument: group")?;
    let owner = matches.get_one::<AuthId>("new-owner").context("missing argument: new-owner")?;
    let store = Repository::find(matches.get_one("repository"))?.open(matches)?;
    store.change_owner(&namespace_of(matches), group, owner)
}
