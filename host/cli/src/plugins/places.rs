//! Where plugins are looked for, and which files of those places are used.
//!
//! What `keepwell plugin install` puts into a place it notes there, with the SHA-256 that was confirmed: a file
//! that is not noted, or is another by now, is not used.

use crate::files::{Existing, write};
use crate::terminal::data_dir;
use anyhow::{Context, Result, anyhow};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{DirBuilder, File};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

const SYSTEM: &str = "/etc/keepwell/plugins";
const PACKAGED: &str = "/usr/lib/keepwell/plugins";
/// The notes of a place.
const NOTES: &str = "installed.toml";
const NOTES_HEAD: &str = "# Written by `keepwell plugin install`.\n\n";

/// Who vouches for what lies there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trust {
    /// who set `KEEPWELL_PLUGIN_PATH`
    Named,
    /// who installed it: only what is noted is used
    Noted,
    /// the system's packages
    Packaged,
}

/// A directory with plugins.
pub(crate) struct Place {
    pub(crate) dir: PathBuf,
    pub(crate) trust: Trust,
}

#[derive(Default, Serialize, Deserialize)]
struct Notes {
    /// by file name
    #[serde(default)]
    plugins: BTreeMap<String, Note>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Note {
    sha256: String,
}

/// All places. Where two plugins serve the same, the first one does.
pub(crate) fn all() -> Vec<Place> {
    let named = std::env::var_os("KEEPWELL_PLUGIN_PATH").unwrap_or_default();
    let named = std::env::split_paths(&named).filter(|dir| !dir.as_os_str().is_empty());
    let mut places: Vec<Place> = named.map(|dir| Place { dir, trust: Trust::Named }).collect();
    places.extend(Place::of_user());
    places.push(Place::of_system());
    places.push(Place { dir: PACKAGED.into(), trust: Trust::Packaged });
    places
}

impl Place {
    /// The user's own; none without a home.
    pub(crate) fn of_user() -> Option<Self> {
        Some(Self { dir: data_dir()?.join("plugins"), trust: Trust::Noted })
    }

    /// For all users of this machine.
    pub(crate) fn of_system() -> Self {
        Self { dir: SYSTEM.into(), trust: Trust::Noted }
    }

    /// The components in it, by name.
    pub(crate) fn files(&self) -> Result<Vec<PathBuf>> {
        let shown = self.dir.display();
        let entries = match std::fs::read_dir(&self.dir) {
            Err(error) if error.kind() == ErrorKind::NotFound && self.trust != Trust::Named => {
                return Ok(Vec::new());
            }
            Err(error) if self.trust == Trust::Named => {
                return Err(error)
                    .context(format!("unable to read '{shown}' of KEEPWELL_PLUGIN_PATH"));
            }
            other => other.with_context(|| format!("unable to read '{shown}'"))?,
        };
        let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        files.retain(|file| file.extension().is_some_and(|extension| extension == "wasm"));
        files.sort();
        Ok(files)
    }

    /// Fails where a file must not be used, and says why and what to do.
    pub(crate) fn check(&self, file: &Path, sha256: &str) -> Result<()> {
        if self.trust == Trust::Named {
            return Ok(());
        }
        for path in [&self.dir, file] {
            let us = rustix::process::geteuid().as_raw();
            let found = std::fs::metadata(path)?;
            if (found.uid() != 0 && found.uid() != us) || found.mode() & 0o022 != 0 {
                return Err(anyhow!("others may change '{}'", path.display()));
            }
        }
        if self.trust == Trust::Packaged {
            return Ok(());
        }
        let install = format!("`keepwell plugin install {}`", file.display());
        match self.notes()?.plugins.get(&file_name(file)) {
            None => Err(anyhow!("it was not installed: {install} shows what it is, and does that")),
            Some(note) if note.sha256 != sha256 => {
                Err(anyhow!("it has changed since it was installed: {install} confirms it"))
            }
            Some(_) => Ok(()),
        }
    }

    fn notes(&self) -> Result<Notes> {
        let path = self.dir.join(NOTES);
        match std::fs::read_to_string(&path) {
            Ok(text) => toml::from_str(&text).map_err(|error| {
                anyhow!("'{}' can't be read: {}", path.display(), error.message())
            }),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Notes::default()),
            Err(error) => {
                Err(error).with_context(|| format!("unable to read '{}'", path.display()))
            }
        }
    }

    /// One at a time changes what is installed.
    fn take_turn(&self) -> Result<File> {
        let made = DirBuilder::new().recursive(true).mode(0o755).create(&self.dir);
        let turn = made.and_then(|()| File::open(&self.dir));
        let turn = turn.with_context(|| format!("unable to use '{}'", self.dir.display()))?;
        rustix::fs::flock(&turn, FlockOperation::LockExclusive)?;
        Ok(turn)
    }

    fn put_notes(&self, notes: &Notes) -> Result<()> {
        let text = format!("{NOTES_HEAD}{}", toml::to_string(notes)?);
        Ok(write(&self.dir.join(NOTES), text.as_bytes(), 0o644, Existing::Replace)?)
    }

    /// Puts a component there, and says where it is. Until it is noted, it is not used.
    pub(crate) fn install(&self, name: &str, bytes: &[u8], sha256: &str) -> Result<PathBuf> {
        let _turn = self.take_turn()?;
        let mut notes = self.notes()?;
        let file = self.dir.join(format!("{name}.wasm"));
        write(&file, bytes, 0o644, Existing::Replace)
            .with_context(|| format!("unable to write '{}'", file.display()))?;
        notes.plugins.insert(file_name(&file), Note { sha256: sha256.to_owned() });
        self.put_notes(&notes)?;
        Ok(file)
    }

    /// Takes a component away; false where there is none of this name.
    pub(crate) fn remove(&self, name: &str) -> Result<bool> {
        let file = self.dir.join(format!("{name}.wasm"));
        if !self.dir.is_dir() {
            return Ok(false);
        }
        let _turn = self.take_turn()?;
        let mut notes = self.notes()?;
        let was_noted = notes.plugins.remove(&file_name(&file)).is_some();
        if was_noted {
            self.put_notes(&notes)?;
        }
        match std::fs::remove_file(&file) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(was_noted),
            Err(error) => {
                Err(error).with_context(|| format!("unable to remove '{}'", file.display()))
            }
        }
    }
}

fn file_name(file: &Path) -> String {
    file.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn only_what_was_confirmed_is_used() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place { dir: dir.path().join("a/plugins"), trust: Trust::Noted };
        assert!(place.files().unwrap().is_empty() && !place.remove("x").unwrap());
        let file = place.install("x", b"one", "11").unwrap();
        assert_eq!(place.files().unwrap(), std::slice::from_ref(&file));
        place.check(&file, "11").unwrap();
        assert!(place.check(&file, "22").unwrap_err().to_string().contains("has changed"));
        let other = place.dir.join("other.wasm");
        fs::write(&other, b"").unwrap();
        fs::set_permissions(&other, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(place.check(&other, "11").unwrap_err().to_string().contains("was not installed"));
        place.install("x", b"two", "22").unwrap();
        place.check(&file, "22").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
        assert!(place.check(&file, "22").unwrap_err().to_string().contains("others may change"));
        assert!(place.remove("x").unwrap() && !place.remove("x").unwrap() && !file.exists());
        fs::write(place.dir.join(NOTES), "[plugins").unwrap();
        assert!(place.check(&other, "11").unwrap_err().to_string().contains("can't be read"));
    }
}
