//! `prune`: remove what a retention policy does not keep.

use super::snapshot::group_argument;
use crate::args::{
    flag, is_set, namespace, namespace_of, number, offering, option, option_values, output_format,
    plugin_options, repository,
};
use crate::output::{check_format, left, print, right};
use crate::plugins::Plugins;
use crate::repository::Repository;
use crate::store::{Store, parsed};
use crate::terminal::{CTIME, local_time, now, utc_offset};
use anyhow::{Result, bail};
use clap::parser::ValueSource;
use clap::{ArgMatches, Command};
use keepwell_engine::plugin::{Document, Layout};
use keepwell_engine::prune::{PruneItem, Time, apply, plan};
use keepwell_engine::restore::chain;
use keepwell_model::GroupId;
use keepwell_transport::RemoteStore;
use serde_json::{Value, json};
use std::io::Write;

pub(crate) fn command(plugins: &Plugins) -> Command {
    let options = plugins.options(&|info| info.is_retention || info.is_formatter);
    let policies = plugins.iter().filter(|loaded| loaded.info.is_retention);
    let policies: Vec<&str> = policies.map(|loaded| loaded.info.name.as_str()).collect();
    let default = plugins.config().policy();
    let policy = format!("Retention policy: {} [default: {default}]", policies.join(", "));
    Command::new("prune")
        .about("Remove the snapshots of a group that a retention policy does not keep")
        .long_about(
            "Removes the snapshots of a group that a retention policy does not keep. Without any \
             of the policy's options, everything is kept. The chunks stay until garbage is \
             collected.",
        )
        .arg(group_argument())
        .arg(flag("dry-run", "Only show what would happen"))
        .arg(flag("quiet", "Show only what is removed"))
        .arg(flag("allow-empty", "Remove even all snapshots, where the policy keeps none"))
        .arg(number("max-depth", "N", "Has no meaning for one group").hide(true))
        .arg(offering(option("policy", "NAME", policy), &policies))
        .args(plugin_options(&options))
        .arg(repository())
        .arg(namespace())
        .arg(output_format(plugins))
}

pub(crate) fn run(plugins: &Plugins, matches: &ArgMatches) -> Result<()> {
    check_format(plugins, matches)?;
    let loaded = plugins.policy(matches.get_one::<String>("policy").map(String::as_str))?;
    for (plugin, spec) in plugins.options(&|info| info.is_retention) {
        let is_given = matches.value_source(&spec.name) == Some(ValueSource::CommandLine);
        if is_given && loaded.info.options.iter().all(|own| own.name != spec.name) {
            bail!(
                "--{} is an option of policy '{plugin}', not of '{}': use --policy {plugin}",
                spec.name,
                loaded.info.name
            );
        }
    }
    let options = option_values(matches, &loaded.options)?;
    let namespace = namespace_of(matches);
    let Some(group) = matches.get_one::<GroupId>("group") else { bail!("missing argument: group") };
    let (items, local) = match Repository::find(matches.get_one("repository"))?.open(matches)? {
        Store::Local(store) => {
            let time = Time { now: now(), utc_offset: &utc_offset };
            let mut policy = loaded.plugin.retention()?;
            let items = plan(&store, &namespace, group, &mut *policy, options, &time)?;
            (items, Some(store))
        }
        // A server has the documented rules, and its own clock.
        Store::Remote(_) if loaded.info.name != "keep" => {
            bail!("a server keeps by its own rules: --policy is for local repositories")
        }
        Store::Remote(store) => {
            let mut query = RemoteStore::group(&namespace, group);
            for option in options {
                let value = String::from_utf8_lossy(&option.value).parse::<u64>()?;
                query = query.with(&option.name, value);
            }
            let query = query.with_some("dry-run", is_set(matches, "dry-run").then_some(true));
            (parsed::<Vec<PruneItem>>(store.post("prune", &query)?)?, None)
        }
    };
    let quiet = is_set(matches, "quiet");
    let shown: Vec<_> = items.iter().filter(|item| !quiet || !item.keep).collect();
    let rows: Vec<Value> = shown
        .iter()
        .map(|item| {
            Ok(json!({
                "snapshot": item.snapshot()?.to_string(),
                "date": local_time(item.backup_time, CTIME),
                "action": if item.keep { "keep" } else { "remove" },
            }))
        })
        .collect::<Result<_>>()?;
    let document = Document {
        data: serde_json::to_value(&shown)?,
        display: Some(rows.into()),
        layout: Layout::Table(vec![left("snapshot"), right("date"), right("action")]),
    };
    print(plugins, matches, &document)?;
    let Some(store) = local.filter(|_| !is_set(matches, "dry-run")) else { return Ok(()) };
    if items.iter().all(|item| !item.keep) && !is_set(matches, "allow-empty") {
        let policy = &loaded.info.name;
        bail!(
            "policy '{policy}' keeps nothing of {group}, so nothing was removed: --allow-empty allows that"
        );
    }
    let troubles = apply(&store, &namespace, &items, &mut |snapshot, error| {
        let text = format!("failed to remove '{snapshot}': {}\n", chain(error));
        let _ = std::io::stderr().write_all(text.as_bytes());
    });
    if troubles > 0 {
        bail!("{troubles} snapshots could not be removed");
    }
    Ok(())
}
