//! The reference's way of writing options, put into clap's: shared/spec/cli.md §1.
//!
//! One dash is as good as two, `_` as good as `-`, and a flag may have a truth value as its next
//! word. Values stay as they are, and so does what is no known option.

use clap::{ArgAction, Command};
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// A truth value as the reference writes them.
pub(crate) fn parse_bool(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "on" | "yes" | "true" => Some(true),
        "0" | "off" | "no" | "false" => Some(false),
        _ => None,
    }
}

/// Whether an option is a flag or has a value, by the names of those that any command has.
pub(crate) struct Options(HashMap<String, Kind>);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Flag,
    Valued,
    /// without any value, such as `--help`
    Bare,
}

impl Options {
    pub(crate) fn of(command: &Command) -> Self {
        let bare = ["help", "version"].map(|name| (name.to_owned(), Kind::Bare));
        let mut options = Self(HashMap::from(bare));
        options.add(command);
        options
    }

    fn add(&mut self, command: &Command) {
        for arg in command.get_arguments() {
            let Some(name) = arg.get_long() else { continue };
            let kind = match arg.get_action() {
                ArgAction::Set | ArgAction::Append if arg.is_require_equals_set() => Kind::Flag,
                ArgAction::Set | ArgAction::Append => Kind::Valued,
                _ => Kind::Bare,
            };
            self.0.insert(name.to_owned(), kind);
        }
        command.get_subcommands().for_each(|sub| self.add(sub));
    }

    /// The option that a word begins with, and what follows its `=`.
    fn read(&self, word: &OsStr) -> Option<(String, Kind, Option<OsString>)> {
        let bytes = word.as_bytes();
        let bytes = bytes.strip_prefix(b"--").or_else(|| bytes.strip_prefix(b"-"))?;
        let end = bytes.iter().position(|byte| *byte == b'=').unwrap_or(bytes.len());
        let name = std::str::from_utf8(&bytes[..end]).ok()?.replace('_', "-");
        let kind = *self.0.get(&name)?;
        let value = bytes.get(end + 1..).map(|value| OsString::from_vec(value.to_vec()));
        Some((name, kind, value))
    }

    /// Long options with two dashes and no underscores in their names, flags with their values.
    pub(crate) fn rewrite(&self, arguments: Vec<OsString>) -> Vec<OsString> {
        let mut out = Vec::with_capacity(arguments.len());
        let mut words = arguments.into_iter().peekable();
        out.extend(words.next());
        while let Some(word) = words.next() {
            if word == "--" {
                out.push(word);
                out.extend(words);
                break;
            }
            let Some((name, kind, value)) = self.read(&word) else {
                out.push(word);
                continue;
            };
            let mut option = OsString::from(format!("--{name}"));
            match (value, kind) {
                (Some(value), _) => {
                    option.push("=");
                    option.push(value);
                    out.push(option);
                }
                (None, Kind::Bare) => out.push(option),
                (None, Kind::Valued) => {
                    out.push(option);
                    out.extend(words.next());
                }
                // A word that is no truth value stays on its own.
                (None, Kind::Flag) => {
                    let truth = words.peek().and_then(|next| parse_bool(next.to_str()?));
                    if truth.is_some() {
                        words.next();
                    }
                    option.push(format!("={}", truth.unwrap_or(true)));
                    out.push(option);
                }
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{flag, option};

    fn rewritten(text: &str) -> String {
        let command = Command::new("keepwell").subcommand(
            Command::new("x")
                .arg(option("output-format", "F", ""))
                .arg(option("ns", "NS", ""))
                .arg(flag("dry-run", "")),
        );
        let words = Options::of(&command).rewrite(text.split(' ').map(OsString::from).collect());
        words.join(OsStr::new(" ")).into_string().unwrap()
    }

    #[test]
    fn options_are_written_one_way() {
        for (given, expected) in [
            (
                "k list -output_format json --ns=a_b -5 - -- -ns",
                "k list --output-format json --ns=a_b -5 - -- -ns",
            ),
            ("k -help --version -h", "k --help --version -h"),
            // Values and what is unknown stay.
            ("k --ns -ns --ns --dry_run -ns=-ns", "k --ns -ns --ns --dry_run --ns=-ns"),
            ("k -foo_bar --foo_bar -n -s", "k -foo_bar --foo_bar -n -s"),
            ("-ns --ns", "-ns --ns"),
        ] {
            assert_eq!(rewritten(given), expected);
        }
    }

    #[test]
    fn a_word_after_a_flag_is_its_value_only_if_it_is_one() {
        for (given, expected) in [
            (
                "k --dry-run true --dry_run x -dry-run --ns 1",
                "k --dry-run=true --dry-run=true x --dry-run=true --ns 1",
            ),
            ("k --dry-run OFF", "k --dry-run=false"),
            ("k --dry-run", "k --dry-run=true"),
        ] {
            assert_eq!(rewritten(given), expected);
        }
    }
}
