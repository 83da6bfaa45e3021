//! The reference's way of writing options, put into clap's: shared/spec/cli.md §1.
//!
//! One dash is as good as two, `_` as good as `-`. What words after a flag mean is decided later,
//! when it is known which options are flags.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// Long options with two dashes and no underscores in their names.
pub(crate) fn normalise(arguments: Vec<OsString>) -> Vec<OsString> {
    let mut ended = false;
    let words = arguments.into_iter().enumerate().map(|(position, word)| {
        if position == 0 || ended {
            return word;
        }
        ended = word == "--";
        if ended { word } else { normalise_word(word) }
    });
    words.collect()
}

fn normalise_word(word: OsString) -> OsString {
    let bytes = word.as_bytes();
    let name = match bytes {
        [b'-', b'-', name @ ..] => name,
        [b'-', name @ ..] if name.first().is_some_and(u8::is_ascii_alphabetic) => name,
        _ => return word,
    };
    if name == b"h" || name == b"V" {
        return word;
    }
    let end = name.iter().position(|byte| *byte == b'=').unwrap_or(name.len());
    let (name, value) = name.split_at(end);
    let mut out = b"--".to_vec();
    out.extend(name.iter().map(|byte| if *byte == b'_' { b'-' } else { *byte }));
    out.extend(value);
    OsString::from_vec(out)
}

/// A truth value as the reference writes them.
pub(crate) fn parse_bool(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "on" | "yes" | "true" => Some(true),
        "0" | "off" | "no" | "false" => Some(false),
        _ => None,
    }
}

/// Joins `--flag yes` into `--flag=true` for options that are flags; a word that is no truth value
/// stays on its own.
pub(crate) fn join_flags(
    arguments: Vec<OsString>,
    is_flag: &dyn Fn(&str) -> bool,
) -> Vec<OsString> {
    let mut out = Vec::with_capacity(arguments.len());
    let mut words = arguments.into_iter().peekable();
    while let Some(word) = words.next() {
        if word == "--" {
            out.push(word);
            out.extend(words);
            break;
        }
        let flag = word.to_str().and_then(|word| word.strip_prefix("--")).filter(|n| is_flag(n));
        let Some(flag) = flag else {
            out.push(word);
            continue;
        };
        let truth = words.peek().and_then(|next: &OsString| parse_bool(OsStr::to_str(next)?));
        if truth.is_some() {
            words.next();
        }
        out.push(format!("--{flag}={}", truth.unwrap_or(true)).into());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        text.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn options_are_written_one_way() {
        let given = words("keepwell list -output_format json --ns=a_b -5 - -- -x_y");
        let expected = words("keepwell list --output-format json --ns=a_b -5 - -- -x_y");
        assert_eq!(normalise(given), expected);
    }

    #[test]
    fn a_word_after_a_flag_is_its_value_only_if_it_is_one() {
        let is_flag = |name: &str| name == "dry-run";
        let given = words("prune host/a --dry-run true --dry-run x --dry-run --keep-last 1");
        let expected =
            words("prune host/a --dry-run=true --dry-run=true x --dry-run=true --keep-last 1");
        assert_eq!(join_flags(given, &is_flag), expected);
        assert_eq!(join_flags(words("--dry-run OFF"), &is_flag), words("--dry-run=false"));
    }
}
