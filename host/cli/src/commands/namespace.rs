//! `namespace`: list, create, delete.

use crate::args::{flag, is_set, number, output_options, parsed, repository};
use crate::output::{message, print};
use crate::plugins::Plugins;
use crate::repository::Repository;
use anyhow::{Result, bail};
use clap::{Arg, ArgMatches, Command};
use keepwell_model::Namespace;
use serde_json::Value;

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
                .args(output_options(plugins)),
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
    let store = Repository::find(matches.get_one("repository"))?.open(matches)?;
    match verb {
        "list" => {
            let depth = matches.get_one::<u64>("max-depth").copied();
            let data = store.namespaces(&namespace, depth)?;
            let found = data.get("data").and_then(Value::as_array);
            let line = |item: &Value| {
                let name = item.get("ns").and_then(Value::as_str).filter(|ns| !ns.is_empty())?;
                let comment = item.get("comment").and_then(Value::as_str);
                let comment = comment.map_or(String::new(), |comment| format!(" ({comment})"));
                Some(Value::from(format!("{name}{comment}")))
            };
            let lines: Vec<Value> = found.into_iter().flatten().filter_map(line).collect();
            print(plugins, matches, &message(data, lines))
        }
        "create" => store.create_namespace(&namespace),
        _ => store.delete_namespace(&namespace, is_set(matches, "delete-groups")),
    }
}
