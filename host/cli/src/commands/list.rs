//! `list`: groups.

use crate::args::{namespace, namespace_of, output_options, repository};
use crate::output::{left, print, right};
use crate::plugins::Plugins;
use crate::repository::Repository;
use anyhow::Result;
use clap::{ArgMatches, Command};
use keepwell_engine::plugin::{Document, Layout};
use keepwell_model::ArchiveName;
use serde_json::{Value, json};

pub(crate) fn command(plugins: &Plugins) -> Command {
    Command::new("list")
        .about("List backup groups")
        .arg(repository())
        .arg(namespace())
        .args(output_options(plugins))
}

/// What users call a file of a snapshot.
pub(crate) fn user_name(name: &str) -> String {
    name.parse::<ArchiveName>().map_or_else(|_| name.to_owned(), |name| name.user_name().to_owned())
}

/// What users call these files, sorted, with blanks between them.
pub(crate) fn user_names<'a>(files: impl Iterator<Item = &'a str>) -> String {
    let mut names: Vec<String> = files.map(user_name).collect();
    names.sort();
    names.join(" ")
}

pub(crate) fn run(plugins: &Plugins, matches: &ArgMatches) -> Result<()> {
    let store = Repository::find(matches.get_one("repository"))?.open(matches)?;
    let mut items = store.groups(&namespace_of(matches))?;
    items.sort_by_key(|item| format!("{}/{}", item.backup_type, item.backup_id));
    let rows: Vec<Value> = items
        .iter()
        .map(|item| {
            let last = item.last()?;
            Ok(json!({
                "group": last.group.to_string(),
                "last snapshot": last.to_string(),
                "backup-count": item.backup_count,
                "files": user_names(item.files.iter().map(String::as_str)),
            }))
        })
        .collect::<Result<_>>()?;
    let columns = vec![left("group"), left("last snapshot"), right("backup-count"), left("files")];
    let document = Document {
        data: serde_json::to_value(&items)?,
        display: Some(rows.into()),
        layout: Layout::Table(columns),
    };
    print(plugins, matches, &document)
}
