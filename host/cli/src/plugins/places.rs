//! Where plugins are looked for, and which files of those places are used.
//!
//! What `keepwell plugin install` puts into a place it notes there, with the SHA-256 that was confirmed: a file
//! that is not noted, or is another by now, is not used.

use crate::files::{Existing, only_ours, write};
use crate::terminal::data_dir;
use anyhow::{Context, Result, anyhow};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{File, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
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

/// What was installed, and confirmed.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct Notes {
    /// by file name
    #[serde(default)]
    plugins: BTreeMap<String, Note>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Note {
    sha256: String,
    /// what it replaces, until it is in its place
    #[serde(skip_serializing_if = "Option::is_none")]
    replaces: Option<String>,
}

/// What `KEEPWELL_PLUGIN_PATH` names.
fn named() -> Vec<PathBuf> {
    let named = std::env::var_os("KEEPWELL_PLUGIN_PATH").unwrap_or_default();
    std::env::split_paths(&named).filter(|dir| !dir.as_os_str().is_empty()).collect()
}

/// Whether a file lies in a directory that `KEEPWELL_PLUGIN_PATH` names.
pub(crate) fn is_named(file: &Path) -> bool {
    named().iter().any(|dir| file.parent() == Some(dir))
}

/// All places. Where two plugins serve the same, the first one does.
pub(crate) fn all() -> Vec<Place> {
    let named = named().into_iter();
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
            Err(error) if self.trust != Trust::Named && is_not_for_us(&error) => {
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

    /// Fails where a file must not be used, and says why and what to do. `notes` are the place's.
    pub(crate) fn check(&self, file: &Path, sha256: &str, notes: &Result<Notes>) -> Result<()> {
        if self.trust == Trust::Named {
            return Ok(());
        }
        for path in [&self.dir, file] {
            only_ours(path, &std::fs::metadata(path)?)?;
        }
        if self.trust == Trust::Packaged {
            return Ok(());
        }
        let system = if self.dir == Path::new(SYSTEM) { "--system " } else { "" };
        let install = format!("`keepwell plugin install {system}");
        let notes = notes.as_ref().map_err(|error| anyhow!("{error:#}"))?;
        match notes.plugins.get(&file_name(file)) {
            None => Err(anyhow!(
                "it was not installed: move it elsewhere, and {install}FILE` shows what it is, and does that"
            )),
            Some(note) if note.sha256 == sha256 || note.replaces.as_deref() == Some(sha256) => {
                Ok(())
            }
            Some(_) => Err(anyhow!(
                "it has changed since it was installed: {install}{}` confirms it",
                file.display()
            )),
        }
    }

    /// What was installed there.
    pub(crate) fn notes(&self) -> Result<Notes> {
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
        let turn = self.make().and_then(|()| File::open(&self.dir));
        let turn = turn.with_context(|| format!("unable to use '{}'", self.dir.display()))?;
        rustix::fs::flock(&turn, FlockOperation::LockExclusive)?;
        Ok(turn)
    }

    /// Whatever the umask is, all may look into what is made here: `/etc/keepwell/plugins` is for all.
    fn make(&self) -> std::io::Result<()> {
        let missing: Vec<&Path> = self.dir.ancestors().take_while(|dir| !dir.exists()).collect();
        for dir in missing.into_iter().rev() {
            std::fs::create_dir(dir)?;
            std::fs::set_permissions(dir, Permissions::from_mode(0o755))?;
        }
        Ok(())
    }

    fn put_notes(&self, notes: &Notes) -> Result<()> {
        let text = format!("{NOTES_HEAD}{}", toml::to_string(notes)?);
        Ok(write(&self.dir.join(NOTES), text.as_bytes(), 0o644, Existing::Replace)?)
    }

    /// Puts a component there, and says where it is. What it replaces is used until it is in its place.
    pub(crate) fn install(&self, name: &str, bytes: &[u8], sha256: &str) -> Result<PathBuf> {
        let _turn = self.take_turn()?;
        let mut notes = self.notes()?;
        let file = self.dir.join(format!("{name}.wasm"));
        let replaces = notes.plugins.get(&file_name(&file)).map(|note| note.sha256.clone());
        let note = |replaces| Note { sha256: sha256.to_owned(), replaces };
        notes.plugins.insert(file_name(&file), note(replaces));
        self.put_notes(&notes)?;
        write(&file, bytes, 0o644, Existing::Replace)
            .with_context(|| format!("unable to write '{}'", file.display()))?;
        notes.plugins.insert(file_name(&file), note(None));
        self.put_notes(&notes)?;
        self.check(&file, sha256, &Ok(notes)).with_context(|| {
            format!("it was installed as '{}', and is not used", file.display())
        })?;
        Ok(file)
    }

    /// Takes a component away that was installed; false where none of this name was.
    pub(crate) fn remove(&self, name: &str) -> Result<bool> {
        let file = self.dir.join(format!("{name}.wasm"));
        if !self.dir.is_dir() {
            return Ok(false);
        }
        let _turn = self.take_turn()?;
        let mut notes = self.notes()?;
        if notes.plugins.remove(&file_name(&file)).is_none() {
            return Ok(false);
        }
        match std::fs::remove_file(&file) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("unable to remove '{}'", file.display()))
            }
            _ => self.put_notes(&notes).map(|()| true),
        }
    }
}

/// A place that is not there, or that belongs to others, such as a server's directory with its keys.
fn is_not_for_us(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied)
}

fn file_name(file: &Path) -> String {
    file.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn only_what_was_confirmed_is_used() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place { dir: dir.path().join("a/plugins"), trust: Trust::Noted };
        let check = |file: &Path, sha256: &str| place.check(file, sha256, &place.notes());
        assert!(place.files().unwrap().is_empty() && !place.remove("x").unwrap());
        let file = place.install("x", b"one", "11").unwrap();
        assert_eq!(place.files().unwrap(), std::slice::from_ref(&file));
        check(&file, "11").unwrap();
        assert!(check(&file, "22").unwrap_err().to_string().contains("has changed"));
        let other = place.dir.join("other.wasm");
        fs::write(&other, b"").unwrap();
        fs::set_permissions(&other, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(check(&other, "11").unwrap_err().to_string().contains("was not installed"));
        assert!(!place.remove("other").unwrap() && other.exists());
        place.install("x", b"two", "22").unwrap();
        check(&file, "22").unwrap();
        assert!(check(&file, "11").is_err());
        fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
        assert!(check(&file, "22").unwrap_err().to_string().contains("others may change"));
        assert!(place.remove("x").unwrap() && !place.remove("x").unwrap() && !file.exists());
        fs::write(place.dir.join(NOTES), "[plugins").unwrap();
        assert!(check(&other, "11").unwrap_err().to_string().contains("can't be read"));
    }
}
