//! Which key a command uses, and how. Spec: cli.md §1, key parameter resolution.

use crate::args::option;
use crate::files;
use crate::secrets::{key_passphrase, read_descriptor};
use crate::terminal::{config_dir, key_time};
use anyhow::{Context, Result, anyhow, bail};
use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgMatches, value_parser};
use keepwell_engine::snapshot::UnverifiedManifest;
use keepwell_model::Manifest;
use keepwell_seal::{EncryptionKey, KdfKind, KeyFile, KeyTime, MasterPublicKey, Protection};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use zeroize::Zeroizing;

/// Options for who reads archives.
pub(crate) fn key_options() -> [Arg; 3] {
    [
        option("keyfile", "FILE", "Key file [default: the default key, if there is one]")
            .value_parser(value_parser!(PathBuf)),
        option("keyfd", "FD", "Open file descriptor to read the key file from")
            .value_parser(value_parser!(u32)),
        option("crypt-mode", "MODE", "none, encrypt or sign-only")
            .value_parser(PossibleValuesParser::new(["none", "encrypt", "sign-only"])),
    ]
}

/// Options for who makes snapshots, beside [`key_options`].
pub(crate) fn master_options() -> [Arg; 2] {
    [
        option("master-pubkey-file", "FILE", "Public master key, which the key is encrypted with")
            .value_parser(value_parser!(PathBuf)),
        option("master-pubkey-fd", "FD", "Open file descriptor to read the master key from")
            .value_parser(value_parser!(u32)),
    ]
}

/// `encryption-key.json` in the configuration directory.
pub(crate) fn default_key_path() -> Result<PathBuf> {
    Ok(config_place()?.join("encryption-key.json"))
}

/// `master-public.pem` there.
pub(crate) fn default_master_path() -> Result<PathBuf> {
    Ok(config_place()?.join("master-public.pem"))
}

fn config_place() -> Result<PathBuf> {
    config_dir().context(
        "it can't be told whether there is a default key: set HOME or XDG_CONFIG_HOME, or use \
         --keyfile or --crypt-mode none",
    )
}

/// Where a key came from.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Origin {
    /// of the configuration directory
    Default(PathBuf),
    Descriptor,
    File(PathBuf),
}

/// A file as it was given, not looked into.
struct Given {
    origin: Origin,
    bytes: Zeroizing<Vec<u8>>,
}

impl Given {
    /// `Using default encryption key..`
    fn announcement(&self, noun: &str) -> String {
        match &self.origin {
            Origin::Default(_) => format!("Using default {noun} key.."),
            Origin::Descriptor => format!("Using {noun} key from file descriptor.."),
            Origin::File(path) => format!("Using {noun} key from '{}'..", path.display()),
        }
    }

    /// For error texts.
    fn name(&self, noun: &str) -> String {
        match &self.origin {
            Origin::Default(path) => format!("default {noun} key '{}'", path.display()),
            Origin::Descriptor => format!("{noun} key from file descriptor"),
            Origin::File(path) => format!("{noun} key '{}'", path.display()),
        }
    }
}

/// What was given in two ways: a file or a descriptor.
fn given(matches: &ArgMatches, file: &str, descriptor: &str) -> Result<Option<Given>> {
    let path = matches.try_get_one::<PathBuf>(file).ok().flatten();
    let number = matches.try_get_one::<u32>(descriptor).ok().flatten();
    match (path, number) {
        (None, None) => Ok(None),
        (Some(_), Some(_)) => bail!("--{file} and --{descriptor} are mutually exclusive"),
        (Some(path), None) => {
            let bytes = files::read(path).map_err(|error| anyhow!("--{file}: {error}"))?;
            let (origin, bytes) = (Origin::File(path.clone()), Zeroizing::new(bytes));
            Ok(Some(Given { origin, bytes }))
        }
        (None, Some(number)) => {
            let bytes = read_descriptor(*number)
                .with_context(|| format!("unable to read --{descriptor} {number}"))?;
            Ok(Some(Given { origin: Origin::Descriptor, bytes }))
        }
    }
}

/// A default file, if it is there. A link that leads nowhere is one that is lost: without an error
/// the backup would go on in the clear.
fn default_file(path: &Path) -> Result<Option<Given>> {
    match path.symlink_metadata() {
        Ok(_) => {
            let bytes = Zeroizing::new(files::read(path)?);
            Ok(Some(Given { origin: Origin::Default(path.to_owned()), bytes }))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => bail!("unable to read '{}' - {error}", path.display()),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    SignOnly,
    Encrypt,
}

/// What the options say: files are read, nothing is unlocked yet.
#[derive(Default)]
pub(crate) struct CryptParameters {
    key: Option<(Given, Option<Mode>)>,
    master: Option<Given>,
    /// the mode was asked for, and only the default key was there for it
    default_for_mode: bool,
}

impl CryptParameters {
    /// For a backup: reads the options, and the default files where they count.
    pub(crate) fn for_backup(matches: &ArgMatches) -> Result<Self> {
        let mut parameters = Self::of(matches)?;
        if parameters.key.is_some() && parameters.master.is_none() {
            parameters.master = default_file(&default_master_path()?)?;
        }
        Ok(parameters)
    }

    /// For who reads and has no use for a master key: the options, and the default key where it
    /// counts.
    pub(crate) fn of(matches: &ArgMatches) -> Result<Self> {
        let key = given(matches, "keyfile", "keyfd")?;
        let master = given(matches, "master-pubkey-file", "master-pubkey-fd")?;
        let mode = matches.try_get_one::<String>("crypt-mode").ok().flatten();
        let mode = match mode.map(String::as_str) {
            Some("none") => {
                if key.is_some() {
                    bail!("--keyfile/--keyfd and --crypt-mode=none are mutually exclusive");
                }
                if master.is_some() {
                    bail!(
                        "--master-pubkey-file/--master-pubkey-fd and --crypt-mode=none are \
                         mutually exclusive"
                    );
                }
                return Ok(Self::default());
            }
            Some("sign-only") => Some(Mode::SignOnly),
            Some(_) => Some(Mode::Encrypt),
            None => None,
        };
        let is_default = key.is_none();
        let key = match key {
            Some(key) => Some(key),
            None => default_file(&default_key_path()?)?,
        };
        let Some(key) = key else {
            if mode.is_some() {
                bail!(
                    "--crypt-mode without --keyfile and no default key file available: give \
                     --keyfile, or make a key with `keepwell key create`"
                );
            }
            if master.is_some() {
                bail!(
                    "--master-pubkey-file/--master-pubkey-fd specified, but no key available: \
                     make one with `keepwell key create`, or give --keyfile"
                );
            }
            return Ok(Self::default());
        };
        let default_for_mode = is_default && mode.is_some();
        Ok(Self { key: Some((key, mode)), master, default_for_mode })
    }

    /// The line that says which key is used.
    pub(crate) fn announcement(&self) -> Option<String> {
        self.key.as_ref().map(|(key, _)| key.announcement("encryption"))
    }

    /// Whether the key is the default one, which the user did not name.
    pub(crate) fn is_default(&self) -> bool {
        matches!(&self.key, Some((given, _)) if matches!(given.origin, Origin::Default(_)))
    }

    /// Whether the user asked for encryption or signatures by name.
    pub(crate) fn demands_signature(&self) -> bool {
        matches!(&self.key, Some((_, Some(_))))
    }

    /// Unlocks the key; asks for its passphrase where it has one. Of the file nothing stays in
    /// memory, so this works once.
    pub(crate) fn unlock(&mut self) -> Result<Option<Arc<EncryptionKey>>> {
        Ok(self.unlock_dated()?.map(|(key, _)| key))
    }

    /// Also gives the time when the key was made.
    fn unlock_dated(&mut self) -> Result<Option<(Arc<EncryptionKey>, KeyTime)>> {
        let Some((given, _)) = &mut self.key else { return Ok(None) };
        let bytes = std::mem::take(&mut given.bytes);
        let name = || given.name("encryption");
        let file = KeyFile::parse(&bytes).with_context(name)?;
        Ok(Some((Arc::new(unlock(&file).with_context(name)?), file.created)))
    }

    /// For a backup: says what is used, and unlocks it. With a master key there is also the key
    /// encrypted with that.
    pub(crate) fn prepare(&mut self, say: &dyn Fn(&str)) -> Result<(Protection, Option<Vec<u8>>)> {
        let Some((given, mode)) = &self.key else { return Ok((Protection::None, None)) };
        if self.default_for_mode {
            say("Encrypting with default encryption key!");
        }
        say(&given.announcement("encryption"));
        let mode = *mode;
        let Some((key, created)) = self.unlock_dated()? else {
            return Ok((Protection::None, None));
        };
        say(&format!("Encryption key fingerprint: {}", key.fingerprint().short()));
        let wrapped = match &self.master {
            None => None,
            Some(master) => {
                say(&master.announcement("master"));
                let name = || master.name("master");
                let public = MasterPublicKey::from_pem(&master.bytes).with_context(name)?;
                let file = KeyFile::open(&key, created, key_time());
                Some(public.wrap(file.to_json().as_bytes()).with_context(name)?)
            }
        };
        let protection = match mode {
            Some(Mode::SignOnly) => Protection::Sign(key),
            _ => Protection::Encrypt(key),
        };
        Ok((protection, wrapped))
    }
}

/// The manifest of a snapshot that is to be read, verified with the key at hand.
pub(crate) fn verified(
    manifest: UnverifiedManifest,
    parameters: &CryptParameters,
    key: Option<&Arc<EncryptionKey>>,
) -> Result<Manifest> {
    let manifest = manifest.verify(key.map(|key| &**key))?;
    if key.is_some() && manifest.signature.is_none() {
        if parameters.demands_signature() {
            bail!(
                "snapshot {} is neither encrypted nor signed - leave --crypt-mode out to read it \
                 nevertheless",
                manifest.snapshot
            );
        }
        tracing::info!("Snapshot is neither encrypted nor signed: the key vouches for nothing");
    }
    Ok(manifest)
}

/// A key file, not unlocked yet.
pub(crate) fn read_key(path: &Path) -> Result<KeyFile> {
    let bytes = Zeroizing::new(files::read(path)?);
    KeyFile::parse(&bytes).with_context(|| format!("unable to load key file {path:?}"))
}

/// The key of a file, with the passphrase from the environment or typed.
pub(crate) fn unlock(file: &KeyFile) -> Result<EncryptionKey> {
    let passphrase = match file.kdf() {
        KdfKind::None => Zeroizing::new(String::new()),
        _ => key_passphrase()?,
    };
    Ok(file.unlock(passphrase.as_bytes())?)
}
