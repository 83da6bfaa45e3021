//! `namespace`: list, create, delete.

use crate::args::{flag, is_set, number, output_format, parsed, repository};
use crate::output::{message, print};
use crate::plugins::Plugins;
use crate::repository::Repository;
use anyhow::{Result, bail};
use clap::{Arg, ArgMatches, Command};
use keepwell_model::Namespace;
use keepwell_store::{Removal, SnapshotStore};
use serde_json::{Value, json};

fn argument() -> Arg {
    Arg::new("ns").value_name("NAMESPACE").help("Such as a/b").value_parser(parsed::<Namespace>())
}

pub(crate) fn command(plugins: &Plugins) -> Command {
    Command::new("namespace")
        .about("List, create and delete namespaces")
        .infer_subcommands(true)
        .subcommand_required(true)
        .subcommand(
            Command::new("list")
                .about("List namespaces")
                .arg(argument())
                .arg(number("max-depth", "N", "Levels below the given one [default: all]"))
                .arg(repository())
                .arg(output_format(plugins)),
        )
        .subcommand(
            Command::new("create")
                .about("Create a namespace; its parent must exist")
                .arg(argument().required(true))
                .arg(repository()),
        )
        .subcommand(
            Command::new("delete")
                .about("Delete a namespace and those below it, where they are empty")
                .arg(argument().required(true))
                .arg(flag("delete-groups", "Delete the backup groups in them, too"))
                .arg(repository()),
        )
}

pub(crate) fn run(plugins: &Plugins, matches: &ArgMatches) -> Result<()> {
    let Some((verb, matches)) = matches.subcommand() else { bail!("use list, create or delete") };
    let namespace = matches.get_one::<Namespace>("ns").cloned().unwrap_or_default();
    let store = Repository::find(matches.get_one("repository"))?.open()?;
    match verb {
        "list" => {
            let depth = matches.get_one::<u64>("max-depth").copied().unwrap_or(7);
            let depth = usize::try_from(depth).unwrap_or(Namespace::DEPTH_MAX);
            let found = store.namespaces(&namespace, depth.min(Namespace::DEPTH_MAX))?;
            let rows: Vec<Value> = found.iter().map(|ns| json!({ "ns": ns.to_string() })).collect();
            let below = found.iter().filter(|ns| !ns.is_root());
            let lines: Vec<Value> = below.map(|ns| ns.to_string().into()).collect();
            print(plugins, matches, &message(json!({ "data": rows }), lines))
        }
        "create" => Ok(store.create_namespace(&namespace)?),
        _ => match store.delete_namespace(&namespace, is_set(matches, "delete-groups"))? {
            Removal::Done => Ok(()),
            Removal::KeptProtected => {
                bail!("group only partially deleted due to protected snapshots")
            }
            Removal::KeptGroups => {
                bail!("only partially deleted due to existing groups but `delete-groups` not true")
            }
        },
    }
}
