//! `plugin build`: makes the component of a plugin that is written in Rust.

use crate::files::{Existing, write};
use crate::plugins::Plugins;
use crate::terminal::cache_dir;
use anyhow::{Context, Result, anyhow, bail};
use clap::ArgMatches;
use keepwell_guest_build::{Job, Package, cargo, find_toolchain};
use serde_json::Value;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

/// What cargo says of a plugin's crate.
struct Crate {
    name: String,
    id: String,
    library: String,
    /// where cargo puts what it makes
    target: PathBuf,
}

impl Crate {
    fn read(dir: &Path) -> Result<Self> {
        let manifest = dir.join("Cargo.toml");
        if !manifest.is_file() {
            bail!("'{}' has no Cargo.toml: name the directory of a plugin", dir.display());
        }
        let manifest = manifest.canonicalize()?;
        let mut command = cargo();
        command.args(["metadata", "--format-version", "1", "--no-deps", "--manifest-path"]);
        let output = command.arg(&manifest).output().context("unable to run cargo")?;
        if !output.status.success() {
            bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
        }
        let metadata: Value = serde_json::from_slice(&output.stdout).context("cargo metadata")?;
        let items = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let package = items(&metadata["packages"])
            .into_iter()
            .find(|package| package["manifest_path"].as_str().map(Path::new) == Some(&manifest))
            .ok_or_else(|| anyhow!("'{}' is no package", manifest.display()))?;
        let is_cdylib =
            |target: &Value| items(&target["crate_types"]).iter().any(|kind| kind == "cdylib");
        let Some(library) = items(&package["targets"]).into_iter().find(is_cdylib) else {
            bail!(
                "'{}' makes no component: it takes `[lib]` with `crate-type = [\"cdylib\", \"rlib\"]`",
                manifest.display()
            );
        };
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let target = text(&metadata["target_directory"]).into();
        let (name, id) = (text(&package["name"]), text(&package["id"]));
        Ok(Self { name, id, library: text(&library["name"]), target })
    }
}

/// Fails where something else than a component would be lost.
fn check_output(file: &Path) -> Result<()> {
    let shown = file.display();
    match file.metadata() {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).context(format!("unable to write '{shown}'")),
        Ok(metadata) if !metadata.is_file() => bail!("'{shown}' is no file: choose another name"),
        Ok(_) => {}
    }
    let mut start = Vec::new();
    let read = File::open(file).and_then(|file| file.take(4).read_to_end(&mut start));
    read.with_context(|| format!("unable to look into '{shown}'"))?;
    match start.is_empty() || start == b"\0asm" {
        true => Ok(()),
        false => bail!("'{shown}' is there and no component: choose another name"),
    }
}

pub(super) fn build(plugins: &Plugins, matches: &ArgMatches) -> Result<()> {
    let dir = matches.get_one::<PathBuf>("directory").map_or(Path::new("."), PathBuf::as_path);
    let given = matches.get_one::<PathBuf>("output");
    given.map_or(Ok(()), |file| check_output(file))?;
    let found = Crate::read(dir)?;
    let file = match given {
        Some(file) => file.clone(),
        None => {
            let file = dir.join(format!("{}.wasm", found.name));
            check_output(&file)?;
            file
        }
    };
    let unpacked = cache_dir().unwrap_or_else(|| found.target.clone()).join("guest-toolchain");
    let toolchain = find_toolchain(&unpacked, &|line| tracing::info!("{line}"))?;
    let components = toolchain.build(&Job {
        workspace: &dir.canonicalize()?,
        target: &found.target.join("component"),
        packages: &[Package { id: &found.id, library: &found.library }],
        profile: "release",
        is_locked: false,
        is_quiet: false,
    })?;
    let component = components.first().context("cargo made nothing")?;
    write(&file, component, 0o644, Existing::Replace)
        .with_context(|| format!("unable to write '{}'", file.display()))?;
    let loaded = plugins.load_file(&file).context("it was built, and can't be used")?;
    let (name, length) = (&loaded.info.name, component.len());
    tracing::info!("built plugin '{name}' as '{}': {length} bytes", file.display());
    Ok(())
}
