//! Keys come with a later version. Until then nothing may look encrypted that is not.

use crate::terminal::config_dir;
use anyhow::{Result, bail};
use clap::ArgMatches;

/// Refuses what needs a key. A default key means that the user expects encryption.
pub(crate) fn refuse_keys(matches: &ArgMatches, backing_up: bool) -> Result<()> {
    let text = |name: &str| matches.try_get_one::<String>(name).ok().flatten();
    for name in ["keyfile", "keyfd", "master-pubkey-file", "master-pubkey-fd"] {
        if let Some(value) = text(name) {
            bail!(
                "--{name} '{value}': encryption comes with a later version; leave the option out"
            );
        }
    }
    match text("crypt-mode").map(String::as_str) {
        Some("none") => return Ok(()),
        Some(mode) => bail!("--crypt-mode {mode}: encryption comes with a later version"),
        None => {}
    }
    let default_key = config_dir().map(|dir| dir.join("encryption-key.json"));
    if let Some(key) = default_key.filter(|key| backing_up && key.exists()) {
        bail!(
            "there is a default encryption key, '{}', but encryption comes with a later version; \
             use --crypt-mode none to back up unencrypted",
            key.display()
        );
    }
    Ok(())
}
