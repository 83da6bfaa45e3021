//! The command line: one clap command for each verb, with the options that plugins declare.

use crate::commands;
use crate::exit::{Shown, UsageError};
use crate::plugins::Plugins;
use crate::words::{Options, parse_bool};
use anyhow::{Result, anyhow, bail};
use clap::builder::{OsStringValueParser, PossibleValue, StringValueParser, TypedValueParser};
use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Command};
use keepwell_engine::pattern::Pattern;
use keepwell_engine::plugin::{OptionKind, OptionSpec, OptionValue};
use keepwell_model::{Namespace, duration, size};
use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::str::FromStr;

/// The whole command line.
pub(crate) fn command(plugins: &Plugins) -> Command {
    let mut command = Command::new("keepwell")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Backs up file trees and images, and restores them")
        .long_about(
            "Backs up file trees and images to a server or into a local directory, in the formats \
             of Proxmox Backup, and restores them; or is such a server.\n\nA repository is a \
             directory (a path with a '/') or [[user@realm[!token]@]server[:port]:]datastore, given \
             by --repository or PBS_REPOSITORY. Exit code: 0, or 255 for any error.",
        )
        .infer_subcommands(true)
        .subcommand_required(true)
        .arg_required_else_help(false)
        .args_override_self(true);
    for verb in commands::all(plugins) {
        command = command.subcommand(verb);
    }
    command
}

/// A command, and an option that it has twice, because a plugin declares it as well.
pub(crate) fn clash(command: &Command) -> Option<(String, String)> {
    let mut seen = HashSet::new();
    let mut options = command.get_arguments().filter_map(Arg::get_long);
    match options.find(|option| !seen.insert(*option)) {
        Some(option) => Some((command.get_name().into(), option.into())),
        None => command.get_subcommands().find_map(clash),
    }
}

/// A parser of text, and words that a shell may offer.
#[derive(Clone)]
struct Offering(Vec<String>);

impl TypedValueParser for Offering {
    type Value = String;

    fn parse_ref(
        &self,
        command: &Command,
        arg: Option<&Arg>,
        value: &OsStr,
    ) -> Result<String, clap::Error> {
        StringValueParser::new().parse_ref(command, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(self.0.iter().map(PossibleValue::new)))
    }
}

/// Offers words for the value of a text option; which of them are right is found out later.
pub(crate) fn offering(arg: Arg, words: &[&str]) -> Arg {
    let words = words.iter().map(|word| (*word).to_owned()).collect();
    arg.value_parser(Offering(words)).hide_possible_values(true)
}

/// An option with a value.
pub(crate) fn option(
    name: &'static str,
    value: &'static str,
    help: impl Into<clap::builder::StyledStr>,
) -> Arg {
    Arg::new(name).long(name).value_name(value).help(help).action(ArgAction::Set)
}

/// An option that is true or false: `--name`, `--name true`, `--name=no`.
pub(crate) fn flag(
    name: impl Into<clap::Id> + Into<clap::builder::Str> + Clone,
    help: impl Into<clap::builder::StyledStr>,
) -> Arg {
    Arg::new(name.clone())
        .long(name)
        .help(help)
        .value_name("BOOL")
        .num_args(0..=1)
        .require_equals(true)
        .default_missing_value("true")
        .value_parser(parse_flag)
        .action(ArgAction::Set)
}

fn parse_flag(text: &str) -> Result<bool, String> {
    parse_bool(text).ok_or_else(|| "use true or false".into())
}

pub(crate) fn is_set(matches: &ArgMatches, name: &str) -> bool {
    matches.get_one::<bool>(name).copied().unwrap_or(false)
}

/// A parser for one of our types: its own error text, with what was wrong.
pub(crate) fn parsed<T>() -> impl clap::builder::TypedValueParser<Value = T>
where
    T: FromStr + Clone + Send + Sync + 'static,
    T::Err: std::fmt::Display,
{
    StringValueParser::new()
        .try_map(|text| text.parse::<T>().map_err(|problem| problem.to_string()))
}

pub(crate) fn repository() -> Arg {
    option(
        "repository",
        "REPOSITORY",
        "Where the backups lie: a path with a '/', or [[user@]server[:port]:]datastore",
    )
}

pub(crate) fn namespace() -> Arg {
    option("ns", "NAMESPACE", "Namespace of the backups [default: the root]")
        .value_parser(parsed::<Namespace>())
}

pub(crate) fn output_format(plugins: &Plugins) -> Arg {
    let formats: Vec<&str> =
        plugins.iter().flat_map(|loaded| &loaded.info.formats).map(String::as_str).collect();
    let help = format!("How to print: {} [env: PROXMOX_OUTPUT_FORMAT]", formats.join(", "));
    let arg = Arg::new("output-format").long("output-format").value_name("FORMAT").help(help);
    offering(arg, &formats)
}

/// How to print, with what formatters declare.
pub(crate) fn output_options(plugins: &Plugins) -> Vec<Arg> {
    let mut args = plugin_options(&plugins.options(&|info| info.is_formatter));
    args.push(output_format(plugins));
    args
}

/// Limits of transfer, for servers.
pub(crate) fn limits() -> [Arg; 2] {
    [
        option("rate", "SIZE", "Most bytes a second to and from a server, such as 5MB")
            .value_parser(positive_size),
        option("burst", "SIZE", "Bytes that may go faster after a pause [default: one second's]")
            .value_parser(positive_size),
    ]
}

/// For what others wait for: the kernel, and whoever looks into a mounted backup.
pub(crate) fn patience() -> Arg {
    number("patience", "SECONDS", "How long a server may be silent before reading fails")
        .default_value("10")
}

fn positive_size(text: &str) -> Result<u64, String> {
    match size::parse(text).map_err(|problem| problem.to_string())? {
        0 => Err("it is too little".into()),
        bytes => Ok(bytes),
    }
}

/// The namespace given, or the root.
pub(crate) fn namespace_of(matches: &ArgMatches) -> Namespace {
    matches.get_one::<Namespace>("ns").cloned().unwrap_or_default()
}

/// Flags for what plugins declare.
pub(crate) fn plugin_options(options: &[(&str, &OptionSpec)]) -> Vec<Arg> {
    options.iter().map(|(plugin, spec)| plugin_option(plugin, spec)).collect()
}

fn plugin_option(plugin: &str, spec: &OptionSpec) -> Arg {
    let heading = format!("Options of plugin '{plugin}'");
    let mut help = spec.help.clone();
    // Every count is at least 1.
    if let Some(minimum) = spec.minimum.filter(|minimum| *minimum > 1) {
        help += &format!(" [at least {minimum}]");
    }
    if spec.repeatable {
        help += " [several times]";
    }
    if !spec.defaults.is_empty() {
        help += &format!(" [default: {}]", spec.defaults.join(", "));
    }
    let arg = match spec.kind {
        OptionKind::Flag => return flag(spec.name.clone(), help).help_heading(heading),
        OptionKind::Integer => Arg::new(spec.name.clone()).value_name("N"),
        OptionKind::Size => Arg::new(spec.name.clone()).value_name("SIZE"),
        OptionKind::Duration => Arg::new(spec.name.clone()).value_name("DURATION"),
        OptionKind::Text if !spec.choices.is_empty() => {
            Arg::new(spec.name.clone()).value_name(spec.choices.join("|"))
        }
        OptionKind::Text => Arg::new(spec.name.clone()).value_name("TEXT"),
        OptionKind::Pattern => Arg::new(spec.name.clone()).value_name("PATTERN"),
    };
    let action = if spec.repeatable { ArgAction::Append } else { ArgAction::Set };
    arg.long(spec.name.clone())
        .help(help)
        .help_heading(heading)
        .value_parser(OsStringValueParser::new())
        .allow_hyphen_values(true)
        .action(action)
}

/// Refuses wrong values of options, also of plugins that are not used this time.
pub(crate) fn check_options(matches: &ArgMatches, options: &[(&str, &OptionSpec)]) -> Result<()> {
    options
        .iter()
        .try_for_each(|(_, spec)| option_values(matches, std::slice::from_ref(*spec)).map(|_| ()))
}

/// What was given for a plugin's options, checked against their specs.
pub(crate) fn option_values(
    matches: &ArgMatches,
    specs: &[OptionSpec],
) -> Result<Vec<OptionValue>> {
    let mut values = Vec::new();
    for spec in specs {
        if spec.kind == OptionKind::Flag {
            let given = matches.try_get_one::<bool>(&spec.name).ok().flatten().copied();
            if given.unwrap_or_else(|| spec.defaults.iter().any(|value| value == "true")) {
                values.push(OptionValue { name: spec.name.clone(), value: b"true".to_vec() });
            }
            continue;
        }
        let given = matches.try_get_many::<OsString>(&spec.name).ok().flatten();
        let defaults: Vec<OsString> = spec.defaults.iter().map(OsString::from).collect();
        let given: Vec<&OsString> = match given {
            Some(given) => given.collect(),
            None => defaults.iter().collect(),
        };
        for value in given {
            values.push(OptionValue { name: spec.name.clone(), value: checked(spec, value)? });
        }
    }
    Ok(values)
}

/// Fails where a default is none of the option's values.
pub(crate) fn check_defaults(spec: &OptionSpec) -> Result<()> {
    spec.defaults.iter().try_for_each(|value| checked(spec, &value.into()).map(|_| ()))
}

fn checked(spec: &OptionSpec, given: &OsString) -> Result<Vec<u8>> {
    let name = &spec.name;
    let text = || given.to_str().ok_or_else(|| anyhow!("--{name}: value is not UTF-8"));
    let wrong = |problem: String| anyhow!("parameter verification failed - '{name}': {problem}");
    let number = match spec.kind {
        OptionKind::Text => {
            let choices = &spec.choices;
            if !choices.is_empty() && !choices.iter().any(|choice| given == choice.as_str()) {
                let (given, choices) = (given.display(), choices.join(", "));
                return Err(wrong(format!("'{given}' is none of {choices}")));
            }
            return Ok(given.as_bytes().to_vec());
        }
        OptionKind::Flag => return Ok(text()?.as_bytes().to_vec()),
        OptionKind::Pattern => {
            Pattern::parse(given.as_bytes(), b"").map_err(|problem| {
                let given = given.to_string_lossy();
                anyhow!("invalid {name} pattern entry: '{given}': {problem}")
            })?;
            return Ok(given.as_bytes().to_vec());
        }
        OptionKind::Duration => {
            duration::parse(text()?).map_err(|problem| wrong(problem.to_string()))?
        }
        OptionKind::Integer => text()?
            .parse::<u64>()
            .map_err(|_| wrong(format!("'{}' is no whole number", given.display())))?,
        OptionKind::Size => size::parse(text()?).map_err(|problem| wrong(problem.to_string()))?,
    };
    match spec.minimum {
        Some(minimum) if number < minimum => {
            Err(wrong(format!("value must have a minimum value of {minimum} (got {number})")))
        }
        _ => Ok(number.to_string().into_bytes()),
    }
}

/// Parses; help comes back as [`Shown`], mistakes as [`UsageError`].
pub(crate) fn parse(mut command: Command, arguments: Vec<OsString>) -> Result<ArgMatches> {
    let arguments = Options::of(&command).rewrite(arguments);
    let arguments = complete_command(&command, complete_help(&command, arguments));
    let words: Vec<String> =
        arguments.iter().skip(1).filter_map(|word| word.to_str().map(str::to_owned)).collect();
    let foreign = arguments.iter().find(|word| word.to_str().is_none()).cloned();
    let error = match command.try_get_matches_from_mut(arguments) {
        Ok(matches) => return Ok(matches),
        Err(error) => error,
    };
    if let Some(foreign) = foreign.filter(|_| error.kind() == ErrorKind::InvalidUtf8) {
        bail!("'{}' is not UTF-8: this argument can't be used", foreign.display());
    }
    let rendered = error.render().to_string();
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        bail!(Shown(rendered));
    }
    let mut lines = rendered.lines();
    let message = lines.by_ref().take_while(|line| !line.trim().is_empty());
    let message = message.map(str::trim).collect::<Vec<_>>().join(" ");
    let message = message.strip_prefix("error: ").unwrap_or(&message).to_owned();
    let rest: Vec<&str> = lines.filter(|line| !line.trim().is_empty()).collect();
    let usage = if rest.iter().any(|line| line.starts_with("Usage:")) {
        rest.join("\n")
    } else {
        format!("{}\n{}", usage_of(command, &words), rest.join("\n")).trim_end().to_owned()
    };
    bail!(UsageError { message, usage })
}

/// `help` shows all there is, so `--verbose` adds nothing; the commands that it is asked about may
/// be abbreviated.
fn complete_help(command: &Command, mut arguments: Vec<OsString>) -> Vec<OsString> {
    if arguments.get(1).is_none_or(|word| word != "help") {
        return arguments;
    }
    arguments.retain(|word| !["--verbose", "-verbose", "-v"].iter().any(|verbose| word == verbose));
    let mut asked = command;
    for word in arguments.iter_mut().skip(2) {
        let fits = |sub: &&Command| {
            let given = word.to_str();
            !sub.is_hide_set() && given.is_some_and(|given| sub.get_name().starts_with(given))
        };
        let exact = asked.get_subcommands().find(|sub| word == sub.get_name());
        let found: Vec<&Command> = asked.get_subcommands().filter(fits).collect();
        let Some(sub) = exact.or(if let [only] = found[..] { Some(only) } else { None }) else {
            break;
        };
        *word = sub.get_name().into();
        asked = sub;
    }
    arguments
}

/// Writes an abbreviated command out where only one that help shows begins so.
fn complete_command(command: &Command, mut arguments: Vec<OsString>) -> Vec<OsString> {
    let Some(word) = arguments.get(1).and_then(|word| word.to_str()) else { return arguments };
    let fits = |sub: &&Command| !sub.is_hide_set() && sub.get_name().starts_with(word);
    let found: Vec<&str> = command.get_subcommands().filter(fits).map(Command::get_name).collect();
    if let [only] = found[..]
        && command.find_subcommand(word).is_none()
    {
        arguments[1] = only.into();
    }
    arguments
}

/// How the command that these words begin with is used.
fn usage_of(mut command: Command, words: &[String]) -> String {
    let mut name = command.get_name().to_owned();
    for word in words {
        let fits = |sub: &&Command| sub.get_name().starts_with(word.as_str());
        let found = command.find_subcommand(word).or_else(|| command.get_subcommands().find(fits));
        let Some(sub) = found.cloned() else { break };
        name = format!("{name} {}", sub.get_name());
        command = sub;
    }
    command.bin_name(name).render_usage().to_string()
}

fn whole_number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| "it is no whole number from 0 up".into())
}

/// A whole number option.
pub(crate) fn number(name: &'static str, value: &'static str, help: &'static str) -> Arg {
    option(name, value, help).value_parser(whole_number).allow_negative_numbers(true)
}
