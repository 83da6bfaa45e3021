//! `plugin`: what plugins there are, and making, testing, installing and removing them.

mod build;
mod conformance;
mod new;

use crate::args::{self, flag, is_set, output_options};
use crate::output::{left, print};
use crate::plugins::places::Place;
use crate::plugins::{Loaded, Plugins};
use anyhow::{Result, anyhow, bail};
use clap::builder::EnumValueParser;
use clap::{Arg, ArgMatches, Command, value_parser};
use keepwell_engine::plugin::{Capability, Document, Layout};
use keepwell_wasm::{PluginInfo, Rights};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, IsTerminal, Write};
use std::path::PathBuf;

pub(crate) fn command(plugins: &Plugins) -> Command {
    let file = || {
        let file = Arg::new("file").value_name("FILE").required(true);
        file.help("A component (.wasm)").value_parser(value_parser!(PathBuf))
    };
    let system = || flag("system", "For all users of this machine: in /etc/keepwell/plugins");
    Command::new("plugin")
        .about("Show, install, remove and write plugins")
        .subcommand_required(true)
        .subcommand(
            Command::new("new")
                .about("Write the project of a new plugin, in Rust")
                .long_about(
                    "Write the project of a new plugin, in Rust: a directory NAME that builds and passes its \
                     tests as it is.",
                )
                .arg(
                    Arg::new("kind")
                        .long("kind")
                        .value_name("KIND")
                        .help("What it is to do")
                        .required(true)
                        .value_parser(EnumValueParser::<new::Kind>::new()),
                )
                .arg(Arg::new("name").value_name("NAME").required(true)),
        )
        .subcommand(
            Command::new("build")
                .about("Make the component of a plugin that is written in Rust")
                .long_about(
                    "Make the component of a plugin that is written in Rust, with the cargo that is in PATH.\n\n\
                     The compiler is the one that GUEST_RUSTC names, or else the first that can make WebAssembly: \
                     the one in PATH (`rustup target add wasm32-unknown-unknown`), or Debian's, which is \
                     fetched if need be unless KEEPWELL_GUEST_TOOLCHAIN=never.",
                )
                .arg(
                    Arg::new("directory")
                        .value_name("DIRECTORY")
                        .help("Where its Cargo.toml is [default: .]")
                        .value_parser(value_parser!(PathBuf)),
                )
                .arg(
                    Arg::new("output")
                        .long("output")
                        .value_name("FILE")
                        .help("The component [default: NAME.wasm in the directory]")
                        .value_parser(value_parser!(PathBuf)),
                ),
        )
        .subcommand(
            Command::new("list")
                .about("Show all plugins, those that come first in front")
                .args(output_options(plugins)),
        )
        .subcommand(
            Command::new("inspect")
                .about("Show what a component is and what it asks for")
                .arg(file())
                .args(output_options(plugins)),
        )
        .subcommand(
            Command::new("test")
                .about("Try whether a component keeps to the contract")
                .long_about(
                    "Try whether a component keeps to the contract: in each of its roles it is given what a \
                     host would give it, whole and damaged. What it violates is told.",
                )
                .arg(file())
                .args(output_options(plugins)),
        )
        .subcommand(
            Command::new("install")
                .about("Show what a component is and, once that is confirmed, use it")
                .long_about(
                    "Show what a component is and, once that is confirmed, use it.\n\nIt is copied to \
                     ~/.local/share/keepwell/plugins, and its SHA-256 is noted: a file that was changed \
                     is not used before it is installed again.",
                )
                .arg(file())
                .arg(system())
                .arg(flag("yes", "Confirm without being asked"))
                .args(output_options(plugins)),
        )
        .subcommand(
            Command::new("remove")
                .about("Remove a plugin that was installed")
                .arg(Arg::new("name").value_name("NAME").required(true))
                .arg(system()),
        )
}

pub(crate) fn run(plugins: Plugins, matches: &ArgMatches) -> Result<()> {
    match matches.subcommand() {
        Some(("new", matches)) => new::new(&plugins, matches),
        Some(("build", matches)) => build::build(&plugins, matches),
        Some(("list", matches)) => list(&plugins, matches),
        Some(("inspect", matches)) => inspect(&plugins, matches).map(|_| ()),
        Some(("test", matches)) => test(&plugins, matches),
        Some(("install", matches)) => install(plugins, matches),
        Some(("remove", matches)) => remove(&plugins, matches),
        _ => bail!("no command was given"),
    }
}

/// What it implements.
fn kinds(info: &PluginInfo) -> Vec<&'static str> {
    let all = [
        (info.is_source, "source"),
        (info.is_reader, "reader"),
        (info.is_retention, "retention"),
        (info.is_formatter, "formatter"),
    ];
    all.iter().filter(|(is, _)| *is).map(|(_, kind)| *kind).collect()
}

/// Archive types and formats.
fn served(info: &PluginInfo) -> Vec<String> {
    let extensions = info.archive_types.iter().map(|kind| format!(".{}", kind.extension));
    extensions.chain(info.formats.iter().cloned()).collect()
}

fn list(plugins: &Plugins, matches: &ArgMatches) -> Result<()> {
    let (mut data, mut rows) = (Vec::new(), Vec::new());
    for Loaded { plugin, info, file, .. } in plugins.iter() {
        let (kinds, serves) = (kinds(info), served(info));
        rows.push(json!({
            "name": info.name,
            "version": info.version,
            "kind": kinds.join(" "),
            "serves": serves.join(" "),
            "from": file.as_ref().map_or("built in".into(), |file| file.display().to_string()),
        }));
        data.push(json!({
            "name": info.name,
            "version": info.version,
            "summary": info.summary,
            "kinds": kinds,
            "serves": serves,
            "path": file,
            "sha256": plugin.sha256(),
        }));
    }
    for (file, problem) in plugins.refused() {
        rows.push(json!({
            "name": file.file_stem().unwrap_or_default().to_string_lossy(),
            "kind": "not used",
            "from": file.display().to_string(),
        }));
        data.push(json!({ "path": file, "problem": problem }));
    }
    let columns = ["name", "version", "kind", "serves", "from"].map(left);
    let display = Some(Value::Array(rows));
    let document = Document { data: data.into(), display, layout: Layout::Table(columns.into()) };
    print(plugins, matches, &document)
}

/// Shows a component.
fn inspect(plugins: &Plugins, matches: &ArgMatches) -> Result<Loaded> {
    let Some(file) = matches.get_one::<PathBuf>("file") else { bail!("missing argument") };
    let loaded = plugins.load_file(file)?;
    let Loaded { plugin, info, .. } = &loaded;
    let (interfaces, size) = (plugin.interfaces()?, plugin.bytes()?.len());
    let options: Vec<Value> = info.options.iter().map(option).collect();
    let granted = Rights::of(&info.capabilities, &plugins.config().grants_of(&info.name)).list();
    let data = json!({
        "name": info.name,
        "version": info.version,
        "summary": info.summary,
        "kinds": kinds(info),
        "serves": served(info),
        "options": options,
        "capabilities": info.capabilities,
        "granted": granted,
        "contract": contract(&interfaces.exports),
        "imports": interfaces.imports,
        "exports": interfaces.exports,
        "size": size,
        "sha256": plugin.sha256(),
    });
    let words = |key: &str| {
        let words = data[key].as_array().into_iter().flatten().filter_map(Value::as_str);
        words.collect::<Vec<_>>().join(" ")
    };
    let flags = info.options.iter().map(|option| format!("--{}", option.name));
    let mut lines = vec![match info.summary.as_str() {
        "" => format!("{} {}", info.name, info.version),
        summary => format!("{} {}: {summary}", info.name, info.version),
    }];
    let told = |capabilities: &[Capability]| {
        capabilities.iter().map(Capability::to_string).collect::<Vec<_>>().join(", ")
    };
    let grants = match (info.capabilities.is_empty(), granted.is_empty()) {
        (true, _) => String::new(),
        (false, true) => "nothing".into(),
        (false, false) => told(&granted),
    };
    let rows = [
        ("is:", words("kinds")),
        ("serves:", words("serves")),
        ("options:", flags.collect::<Vec<_>>().join(" ")),
        ("asks for:", told(&info.capabilities)),
        ("granted:", grants),
        ("contract:", words("contract")),
        ("imports:", words("imports")),
        ("exports:", words("exports")),
        ("size:", format!("{size} bytes")),
        ("SHA-256:", plugin.sha256().to_owned()),
    ];
    let rows = rows.into_iter().filter(|(_, value)| !value.is_empty());
    lines.extend(rows.map(|(head, value)| format!("{head:<10}{value}")));
    let grants = plugins.config().grants_of(&info.name);
    let is_granted =
        |asked: &Capability| !Rights::of(std::slice::from_ref(asked), &grants).list().is_empty();
    if !info.capabilities.iter().all(is_granted) {
        lines.push("To grant all that it asks for, config.toml takes:".into());
        lines.push(format!("[plugins.{}.grants]", info.name));
        lines.extend(grant_lines(&info.capabilities));
    }
    print(plugins, matches, &crate::output::message(data, lines))?;
    Ok(loaded)
}

/// What grants capabilities, as config.toml has it; words in capitals stand for what the user has to choose.
fn grant_lines(capabilities: &[Capability]) -> Vec<String> {
    let mut lists: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let mut list = |key: &'static str, asked: &str, any: &str| {
        let value = if asked == "*" { any } else { asked };
        lists.entry(key).or_default().push(toml::Value::from(value).to_string());
    };
    let mut others = Vec::new();
    for capability in capabilities {
        match capability {
            Capability::Read(path) => list("read", path, "/PATH"),
            Capability::Run(program) => list("run", program, "PROGRAM"),
            Capability::Environment(name) => list("environment", name, "VARIABLE"),
            Capability::Http(host) => list("http", host, "HOST"),
            Capability::Clock => others.push("clock = true".to_owned()),
            Capability::Random => others.push("random = true".to_owned()),
            Capability::Scratch(u64::MAX) => others.push("scratch = \"SIZE\"".to_owned()),
            Capability::Scratch(bytes) => others.push(format!("scratch = \"{bytes}\"")),
        }
    }
    let lists = lists.iter().map(|(key, values)| format!("{key} = [{}]", values.join(", ")));
    lists.chain(others).collect()
}

/// The versions of the contract that it was made for.
fn contract(exports: &[String]) -> Vec<String> {
    let version = |name: &String| {
        let (package, _) = name.split_once('/')?;
        Some(format!("{package}@{}", name.rsplit_once('@')?.1))
    };
    let versions: BTreeSet<String> = exports.iter().filter_map(version).collect();
    versions.into_iter().collect()
}

fn option(spec: &keepwell_engine::plugin::OptionSpec) -> Value {
    json!({
        "name": spec.name,
        "help": spec.help,
        "repeatable": spec.repeatable,
        "defaults": spec.defaults,
        "choices": spec.choices,
    })
}

fn test(plugins: &Plugins, matches: &ArgMatches) -> Result<()> {
    let Some(file) = matches.get_one::<PathBuf>("file") else { bail!("missing argument") };
    let loaded = plugins.load_file(file)?;
    plugins.allow(&loaded);
    // As it would be with this one installed.
    let installed = Plugins::load()?.with_first(plugins.load_file(file)?)?;
    let findings = conformance::test(&loaded, args::clash(&args::command(&installed)))?;
    let mut lines = Vec::new();
    let mut data = Vec::new();
    for conformance::Finding { check, problem } in &findings {
        let line = match problem {
            None => format!("ok      {check}"),
            Some(problem) => format!("FAILED  {check}: {problem}"),
        };
        lines.push(line);
        data.push(json!({ "check": check, "problem": problem }));
    }
    print(plugins, matches, &crate::output::message(data.into(), lines))?;
    match findings.iter().filter(|finding| finding.problem.is_some()).count() {
        0 => Ok(()),
        failed => {
            bail!("plugin '{}' fails {failed} of {} checks", loaded.info.name, findings.len())
        }
    }
}

fn place(matches: &ArgMatches) -> Result<Place> {
    match is_set(matches, "system") {
        true => Ok(Place::of_system()),
        false => Place::of_user()
            .ok_or_else(|| anyhow!("there is no home directory: set HOME, or use --system")),
    }
}

fn install(plugins: Plugins, matches: &ArgMatches) -> Result<()> {
    let place = place(matches)?;
    let loaded = inspect(&plugins, matches)?;
    let (plugin, name) = (loaded.plugin.clone(), loaded.info.name.clone());
    let displaced = displaced(&plugins, &loaded.info);
    if !displaced.is_empty() {
        tracing::warn!("it takes the place of what is built in: {}", displaced.join(", "));
    }
    // Afterwards no command would run, or this one not be used.
    if let Some((verb, option)) = args::clash(&args::command(&plugins.with_first(loaded)?)) {
        bail!("'{name}' can't be used: it declares --{option}, which `{verb}` has itself");
    }
    if !is_set(matches, "yes") && !confirm(&name)? {
        bail!("'{name}' was not installed");
    }
    let file = place.install(&name, plugin.bytes()?, plugin.sha256())?;
    tracing::info!("installed '{name}' as {}", file.display());
    Ok(())
}

/// What is built in and would not be used any more: plugins, types of archives, formats.
fn displaced(plugins: &Plugins, info: &PluginInfo) -> Vec<String> {
    let name = |info: &PluginInfo| std::iter::once(format!("plugin '{}'", info.name));
    let offered: Vec<String> = name(info).chain(served(info)).collect();
    let built_in = plugins.iter().filter(|loaded| loaded.file.is_none());
    let mut all: Vec<String> =
        built_in.flat_map(|loaded| name(&loaded.info).chain(served(&loaded.info))).collect();
    all.retain(|known| offered.contains(known));
    all
}

fn confirm(name: &str) -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        bail!("use --yes to install '{name}' without being asked");
    }
    let mut out = std::io::stderr();
    write!(out, "Install '{name}'? (y/n): ")?;
    out.flush()?;
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    Ok(matches!(line.trim(), "y" | "Y"))
}

fn remove(plugins: &Plugins, matches: &ArgMatches) -> Result<()> {
    let name = matches.get_one::<String>("name").map_or("", String::as_str);
    if name.is_empty() || name.contains('/') {
        bail!("'{name}' is no name of a plugin");
    }
    let place = place(matches)?;
    if place.remove(name)? {
        tracing::info!("removed '{name}'");
        return Ok(());
    }
    let mut known = plugins.iter().filter(|loaded| loaded.info.name == name);
    match known.next() {
        Some(Loaded { file: None, .. }) => bail!("'{name}' is built in and stays"),
        Some(Loaded { file: Some(file), .. }) => {
            bail!("'{name}' is '{}', not in '{}'", file.display(), place.dir.display())
        }
        None => bail!("there is no plugin '{name}' in '{}'", place.dir.display()),
    }
}
