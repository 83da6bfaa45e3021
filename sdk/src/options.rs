//! Options: declaring them and reading what was given.

use crate::{OptionKind, OptionSpec, OptionValue};

/// Declares an option; `repeatable`, `default`, `minimum` and `choices` can be set on the result.
pub fn option(name: &str, kind: OptionKind, help: &str) -> OptionSpec {
    OptionSpec {
        name: name.to_owned(),
        kind,
        help: help.to_owned(),
        repeatable: false,
        default: None,
        minimum: None,
        choices: Vec::new(),
    }
}

/// The last value given for `name`.
pub fn value<'a>(options: &'a [OptionValue], name: &str) -> Option<&'a [u8]> {
    options.iter().rev().find(|given| given.name == name).map(|given| &given.value[..])
}

/// All values given for `name`, in order.
pub fn values<'a>(options: &'a [OptionValue], name: &str) -> impl Iterator<Item = &'a [u8]> {
    options.iter().filter(move |given| given.name == name).map(|given| &given.value[..])
}

/// Whether a flag was given as true.
pub fn flag(options: &[OptionValue], name: &str) -> bool {
    value(options, name) == Some(b"true")
}

/// An integer, size or duration. The host has checked that it is one.
pub fn number(options: &[OptionValue], name: &str) -> Option<u64> {
    std::str::from_utf8(value(options, name)?).ok()?.parse().ok()
}
