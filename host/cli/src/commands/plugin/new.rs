//! `plugin new`: writes the project of a plugin, with the SDK and the contract beside it, so that it builds and passes
//! its tests as it is.

use crate::plugins::Plugins;
use anyhow::{Context, Result, bail};
use clap::ArgMatches;
use clap::builder::PossibleValue;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

/// Files of this repository that a project takes with it, under the same names.
macro_rules! shared {
    ($($path:literal),* $(,)?) => {
        &[$(($path, include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../", $path)))),*]
    };
}

const SHARED: &[(&str, &str)] = shared![
    "sdk/Cargo.toml",
    "sdk/src/lib.rs",
    "sdk/src/archive.rs",
    "sdk/src/formatter.rs",
    "sdk/src/options.rs",
    "sdk/src/retention.rs",
    "sdk/src/single.rs",
    "sdk/src/testing.rs",
    "wit/README.md",
    "wit/types/types.wit",
    "wit/archive/archive.wit",
    "wit/archive/capabilities.wit",
    "wit/formatter/formatter.wit",
    "wit/retention/retention.wit",
];

/// What a plugin is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Source,
    Reader,
    Retention,
    Formatter,
}

impl clap::ValueEnum for Kind {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Source, Self::Reader, Self::Retention, Self::Formatter]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let (name, help) = match self {
            Self::Source => ("source", "Makes archives"),
            Self::Reader => ("reader", "Makes archives and looks into them"),
            Self::Retention => ("retention", "Says which snapshots to keep"),
            Self::Formatter => ("formatter", "Prints results"),
        };
        Some(PossibleValue::new(name).help(help))
    }
}

impl Kind {
    fn code(self) -> &'static str {
        match self {
            Self::Source => include_str!("new/templates/source.rs"),
            Self::Reader => include_str!("new/templates/reader.rs"),
            Self::Retention => include_str!("new/templates/retention.rs"),
            Self::Formatter => include_str!("new/templates/formatter.rs"),
        }
    }

    /// How it is tried once it is installed.
    fn usage(self) -> &'static str {
        match self {
            Self::Source | Self::Reader => "keepwell backup mine.{name}:DIRECTORY",
            Self::Retention => "keepwell prune GROUP --policy {name} --dry-run",
            Self::Formatter => "keepwell snapshot list --output-format {name}",
        }
    }
}

const MANIFEST: &str = r#"[package]
name = "{name}"
version = "0.1.0"
edition = "2024"
publish = false

# The first makes the component, the second lets tests run natively.
[lib]
crate-type = ["cdylib", "rlib"]

[dependencies]
keepwell-sdk = { path = "sdk" }
serde = { version = "1", features = ["derive"] }
serde_json = "1"

[profile.release]
opt-level = "s"

# A project of its own, wherever it lies.
[workspace]
"#;

const README: &str = "# {name}

A plugin for Keepwell: `src/lib.rs`. `sdk/` and `wit/` are Keepwell's; leave them as they are.

```sh
cargo test                                # needs `keepwell` in PATH, or KEEPWELL with its path
keepwell plugin build                     # makes {name}.wasm
keepwell plugin test {name}.wasm
keepwell plugin install {name}.wasm
{usage}
```
";

/// No crate can be called so.
#[rustfmt::skip]
const KEYWORDS: [&str; 48] = [
    "abstract", "as", "async", "await", "become", "box", "break", "const", "continue", "crate", "do", "dyn", "else",
    "enum", "extern", "false", "final", "fn", "for", "gen", "if", "impl", "in", "let", "loop", "macro", "match", "mod",
    "move", "mut", "override", "priv", "pub", "ref", "return", "self", "static", "struct", "super", "trait", "true",
    "try", "type", "typeof", "unsafe", "use", "where", "while",
];

/// Names of plugins, of crates and of directories at once.
fn check(name: &str, plugins: &Plugins) -> Result<()> {
    let is_legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let begins = name.starts_with(|c: char| c.is_ascii_lowercase());
    if !begins || !name.chars().all(is_legal) || name.ends_with('-') || name.len() > 64 {
        bail!("'{name}' is no name of a plugin: use lower-case letters, digits and '-'");
    }
    // Cargo and Rust have them for themselves; archives and formats are called like their plugin at first, and must not
    // take the place of what is built in.
    let of_cargo = [
        "test",
        "core",
        "std",
        "alloc",
        "proc-macro",
        "help",
        "version",
        "serde",
        "serde-json",
        "keepwell-sdk",
    ];
    let is_built_in = plugins.iter().filter(|loaded| loaded.file.is_none()).any(|loaded| {
        let types = loaded.info.archive_types.iter();
        let extensions = types.flat_map(|kind| kind.parts.iter().chain([&kind.extension]));
        let mut names = extensions.chain(&loaded.info.formats).chain([&loaded.info.name]);
        names.any(|known| known == name)
    });
    if is_built_in || of_cargo.contains(&name) || KEYWORDS.contains(&name) {
        bail!("'{name}' is taken: choose another name");
    }
    Ok(())
}

/// `keep-odd` is `KeepOdd`.
fn type_name(name: &str) -> String {
    let capitalized = |word: &str| {
        let mut letters = word.chars();
        let first = letters.next().map(|first| first.to_ascii_uppercase());
        first.into_iter().chain(letters).collect::<String>()
    };
    name.split('-').map(capitalized).collect()
}

/// All files of a project.
fn files(kind: Kind, name: &str) -> Vec<(&'static str, String)> {
    let fill = |text: &str| {
        let text = text.replace("{usage}", kind.usage()).replace("{name}", name);
        text.replace("{Type}", &type_name(name))
    };
    let mut files: Vec<(&str, String)> =
        SHARED.iter().map(|(path, text)| (*path, (*text).to_owned())).collect();
    files.extend([
        ("Cargo.toml", fill(MANIFEST)),
        ("README.md", fill(README)),
        (".gitignore", "/target\n*.wasm\n".to_owned()),
        ("rustfmt.toml", "use_small_heuristics = \"Max\"\n".to_owned()),
        ("src/lib.rs", fill(kind.code())),
        ("tests/component.rs", include_str!("new/templates/component.rs").to_owned()),
    ]);
    files
}

pub(super) fn new(plugins: &Plugins, matches: &ArgMatches) -> Result<()> {
    let (Some(kind), Some(name)) =
        (matches.get_one::<Kind>("kind"), matches.get_one::<String>("name"))
    else {
        bail!("missing argument");
    };
    check(name, plugins)?;
    let dir = Path::new(name);
    if dir.symlink_metadata().is_ok() {
        bail!("'{name}' is there already: choose another name, or move it away");
    }
    let unfinished = tempfile::Builder::new()
        .prefix(&format!(".{name}-"))
        .tempdir_in(".")
        .context("unable to make a directory here")?;
    for (path, text) in files(*kind, name) {
        let path = unfinished.path().join(path);
        let written = path.parent().map_or(Ok(()), fs::create_dir_all);
        written
            .and_then(|()| fs::write(&path, text))
            .with_context(|| format!("unable to write '{}'", path.display()))?;
    }
    // How lines break depends on the name. Without rustfmt they stay as they are.
    let mut format = Command::new("rustfmt");
    format.args(["--edition", "2024", "src/lib.rs"]).current_dir(unfinished.path());
    let _ = format.stdout(Stdio::null()).stderr(Stdio::null()).status();
    fs::set_permissions(unfinished.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    fs::rename(unfinished.path(), dir).with_context(|| format!("unable to make '{name}'"))?;
    // It is not there any more.
    let _ = unfinished.keep();
    tracing::info!("made '{name}': its README.md says how it is tested and built");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// All files below a directory of the repository.
    fn below(root: &Path, dir: &str, found: &mut BTreeSet<String>) {
        for entry in fs::read_dir(root.join(dir)).unwrap().flatten() {
            let path = format!("{dir}/{}", entry.file_name().to_str().unwrap());
            match entry.path().is_dir() {
                true => below(root, &path, found),
                false => _ = found.insert(path),
            }
        }
    }

    #[test]
    fn a_project_has_all_of_the_sdk_and_the_contract() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let mut expected = BTreeSet::new();
        below(&root, "sdk", &mut expected);
        below(&root, "wit", &mut expected);
        let shared = SHARED.iter().map(|(path, _)| (*path).to_owned()).collect();
        assert_eq!(expected, shared);
    }

    #[test]
    fn nothing_is_left_to_fill_in() {
        for kind in <Kind as clap::ValueEnum>::value_variants() {
            for (path, text) in files(*kind, "keep-odd-2").into_iter().skip(SHARED.len()) {
                let is_open = ["{name}", "{Type}", "{usage}"].iter().any(|gap| text.contains(gap));
                assert!(!is_open, "{path}");
                assert!(
                    path != "src/lib.rs" || text.contains("pub struct KeepOdd2Plugin;"),
                    "{text}"
                );
            }
        }
    }
}
