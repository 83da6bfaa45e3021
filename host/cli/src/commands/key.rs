//! `key`: makes, shows and changes keys. Spec: cli.md §2 `key`, formats.md §10, §11.

mod paper;

use crate::args::{option, output_options};
use crate::encryption::{default_key_path, default_master_path, read_key, unlock};
use crate::files::{self, Existing};
use crate::output::{left, print, right, write_out};
use crate::plugins::Plugins;
use crate::secrets::{Secret, ask, has_terminal, new_passphrase};
use crate::terminal::{CTIME, key_time, local_time};
use anyhow::{Context, Result, anyhow, bail};
use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgMatches, Command, value_parser};
use keepwell_engine::plugin::{Document, Layout};
use keepwell_seal::{EncryptionKey, KdfKind, KeyFile, KeyTime, MasterKey, MasterPublicKey};
use serde_json::json;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// Key files are for their owner only.
const SECRET_MODE: u32 = 0o600;
const PUBLIC_MODE: u32 = 0o644;
const MASTER_PUBLIC: &str = "master-public.pem";
const MASTER_PRIVATE: &str = "master-private.pem";

fn path_argument(help: &'static str) -> Arg {
    Arg::new("path").value_name("PATH").help(help).value_parser(value_parser!(PathBuf))
}

fn key_path() -> Arg {
    path_argument("Key file [default: the default key]")
}

fn file_option(name: &'static str, help: &'static str) -> Arg {
    option(name, "FILE", help).required(true).value_parser(value_parser!(PathBuf))
}

/// How a new key file is locked.
fn lock_options() -> [Arg; 2] {
    [
        option(
            "kdf",
            "KDF",
            "How the password becomes a key: scrypt, pbkdf2, or none for no password",
        )
        .value_parser(PossibleValuesParser::new(["none", "scrypt", "pbkdf2"]))
        .default_value("scrypt"),
        option("hint", "TEXT", "Password hint, shown when the password is wrong")
            .value_parser(parse_hint),
    ]
}

fn parse_hint(text: &str) -> Result<String, String> {
    let fits = (1..=64).contains(&text.chars().count()) && !text.chars().any(char::is_control);
    if fits { Ok(text.to_owned()) } else { Err("use one line of 1 to 64 characters".into()) }
}

pub(crate) fn command(plugins: &Plugins) -> Command {
    Command::new("key")
        .about("Make and manage encryption keys")
        .infer_subcommands(true)
        .subcommand_required(true)
        .subcommand(
            Command::new("create")
                .about("Make a new encryption key")
                .arg(path_argument("New key file [default: the default key]"))
                .args(lock_options()),
        )
        .subcommand(
            Command::new("change-passphrase")
                .about("Change the password of a key file, or take it away")
                .arg(key_path())
                .args(lock_options()),
        )
        .subcommand(
            Command::new("show")
                .about("Show what a key file says of itself; needs no password")
                .arg(key_path())
                .args(output_options(plugins)),
        )
        .subcommand(
            Command::new("import-with-master-key")
                .about("Get a key back that was stored with a backup, using the master key")
                .arg(path_argument("Key file to write [default: the default key]"))
                .arg(file_option("master-keyfile", "Private master key (PEM)"))
                .arg(file_option("encrypted-keyfile", "The rsa-encrypted.key of a backup"))
                .args(lock_options()),
        )
        .subcommand(
            Command::new("create-master-key")
                .about("Make a master key: master-public.pem and master-private.pem here"),
        )
        .subcommand(
            Command::new("import-master-pubkey")
                .about("Use a public master key for all backups from now on")
                .arg(path_argument("Public master key (PEM)").required(true)),
        )
        .subcommand(
            Command::new("show-master-pubkey")
                .about("Show a public master key")
                .arg(path_argument("Public master key [default: the default one]"))
                .args(output_options(plugins)),
        )
        .subcommand(
            Command::new("paperkey")
                .about("Print a key for keeping on paper, with a QR code")
                .arg(key_path())
                .arg(option("subject", "TEXT", "Text to print above the key"))
                .arg(
                    option("output-format", "FORMAT", "html or text")
                        .value_parser(PossibleValuesParser::new(["html", "text"]))
                        .default_value("html"),
                ),
        )
}

pub(crate) fn run(plugins: &Plugins, matches: &ArgMatches) -> Result<()> {
    match matches.subcommand() {
        Some(("create", matches)) => create(matches),
        Some(("change-passphrase", matches)) => change_passphrase(matches),
        Some(("show", matches)) => show(plugins, matches),
        Some(("import-with-master-key", matches)) => import_with_master_key(matches),
        Some(("create-master-key", _)) => create_master_key(),
        Some(("import-master-pubkey", matches)) => import_master_pubkey(matches),
        Some(("show-master-pubkey", matches)) => show_master_pubkey(plugins, matches),
        Some(("paperkey", matches)) => paperkey(matches),
        _ => bail!("no such command: see `keepwell help key`"),
    }
}

fn given_path(matches: &ArgMatches) -> Option<&PathBuf> {
    matches.get_one("path")
}

fn kdf_of(matches: &ArgMatches) -> Result<(KdfKind, Option<String>)> {
    let kdf = match matches.get_one::<String>("kdf").map(String::as_str) {
        Some("none") => KdfKind::None,
        Some("pbkdf2") => KdfKind::Pbkdf2,
        _ => KdfKind::Scrypt,
    };
    let hint = matches.get_one::<String>("hint").cloned();
    if kdf == KdfKind::None && hint.is_some() {
        bail!("password hint not allowed for Kdf::None");
    }
    Ok((kdf, hint))
}

/// The key file named, or the default one.
fn existing_key(matches: &ArgMatches) -> Result<PathBuf> {
    match given_path(matches) {
        Some(path) => Ok(path.clone()),
        None => default_key_path()
            .ok()
            .filter(|path| path.exists())
            .context("no encryption file provided and no default file found"),
    }
}

fn store_key(path: &Path, file: &KeyFile, existing: Existing) -> Result<()> {
    files::write(path, file.to_json().as_bytes(), SECRET_MODE, existing)
        .map_err(|error| anyhow!("Unable to store key file {path:?} - {error}"))
}

/// The directory of the default keys.
fn make_config_dir(path: &Path) -> Result<()> {
    let Some(dir) = path.parent() else { return Ok(()) };
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|error| anyhow!("unable to create directory {dir:?} - {error}"))
}

/// Locks a key as the options say; asks for the new password.
fn lock(
    key: &EncryptionKey,
    (kdf, hint): (KdfKind, Option<String>),
    prompt: &str,
    created: KeyTime,
    modified: KeyTime,
) -> Result<KeyFile> {
    let passphrase = match kdf {
        KdfKind::None => Secret::default(),
        _ => new_passphrase(prompt)?,
    };
    let mut file = KeyFile::locked(key, kdf, passphrase.as_bytes(), created, modified)?;
    file.hint = hint;
    Ok(file)
}

fn create(matches: &ArgMatches) -> Result<()> {
    let wanted = kdf_of(matches)?;
    let path = match given_path(matches) {
        Some(path) => path.clone(),
        None => {
            let path = default_key_path()?;
            tracing::info!("creating default key at: {path:?}");
            make_config_dir(&path)?;
            path
        }
    };
    // Before anybody types a password for nothing.
    if path.symlink_metadata().is_ok() {
        let error = std::io::Error::from_raw_os_error(rustix::io::Errno::EXIST.raw_os_error());
        bail!("Unable to store key file {path:?} - {error}");
    }
    if wanted.0 != KdfKind::None && !has_terminal() {
        bail!("unable to read passphrase - no tty");
    }
    let now = key_time();
    let key = EncryptionKey::generate();
    let file = lock(&key, wanted, "Encryption Key Password: ", now, now)?;
    store_key(&path, &file, Existing::Keep)
}

fn change_passphrase(matches: &ArgMatches) -> Result<()> {
    let wanted = kdf_of(matches)?;
    let path = existing_key(matches)?;
    if !has_terminal() {
        bail!("unable to change passphrase - no tty");
    }
    let old = read_key(&path)?;
    let key = unlock(&old)?;
    let file = lock(&key, wanted, "New Password: ", old.created, key_time())?;
    store_key(&path, &file, Existing::Replace)
}

fn import_with_master_key(matches: &ArgMatches) -> Result<()> {
    let wanted = kdf_of(matches)?;
    let option = |name: &str| {
        matches.get_one::<PathBuf>(name).with_context(|| format!("missing option: --{name}"))
    };
    let (master_path, wrapped_path) = (option("master-keyfile")?, option("encrypted-keyfile")?);
    let (path, existing) = match given_path(matches) {
        Some(path) => (path.clone(), Existing::Replace),
        None => (default_key_path()?, Existing::Keep),
    };
    if existing == Existing::Keep && path.exists() {
        bail!(
            "Please remove default encryption key at {path:?} before importing to default \
             location (or choose a non-default one)."
        );
    }
    let pem = Zeroizing::new(files::read(master_path)?);
    let pem = std::str::from_utf8(&pem).map_err(|_| anyhow!("{master_path:?} is no PEM file"))?;
    let wrapped = files::read(wrapped_path)?;
    let passphrase = match MasterKey::is_locked(pem) {
        true => ask("Master Key Password: ")?,
        false => Secret::default(),
    };
    let master = MasterKey::from_pem(pem, passphrase.as_bytes())
        .with_context(|| format!("master key {master_path:?}"))?;
    let stored = master
        .unwrap_key(&wrapped)
        .with_context(|| format!("encrypted key {wrapped_path:?} can't be opened"))?;
    let key = unlock(&stored)?;
    let file = lock(&key, wanted, "New Password: ", stored.created, key_time())?;
    if existing == Existing::Keep {
        make_config_dir(&path)?;
    }
    store_key(&path, &file, existing)
}

fn describe_master(key: &MasterPublicKey) {
    tracing::info!("Modulus: {}", key.modulus());
    tracing::info!("Exponent: {}", key.exponent());
}

fn create_master_key() -> Result<()> {
    if !has_terminal() {
        bail!("unable to read passphrase - no tty");
    }
    let (public, private) = (Path::new(MASTER_PUBLIC), Path::new(MASTER_PRIVATE));
    for path in [public, private] {
        if path.symlink_metadata().is_ok() {
            bail!("'{}' exists here: go to another directory, or move it away", path.display());
        }
    }
    tracing::info!("Generating 4096-bit RSA key..");
    let key = MasterKey::generate()?;
    describe_master(&key.public());
    let passphrase = new_passphrase("Master Key Password: ")?;
    let pem = key.to_pem(passphrase.as_bytes())?;
    let write = |path: &Path, bytes: &[u8], mode| {
        files::write(path, bytes, mode, Existing::Keep)
            .map_err(|error| files::not_created("file", path, &error))
    };
    // The private half first: a public one alone would lock keys away for ever.
    tracing::info!("Writing private master key to {MASTER_PRIVATE}");
    write(private, pem.as_bytes(), SECRET_MODE)?;
    tracing::info!("Writing public master key to {MASTER_PUBLIC}");
    write(public, key.public().to_pem()?.as_bytes(), PUBLIC_MODE).inspect_err(|_| {
        // Nobody has used it, and it would be in the way of the next attempt.
        let _ = std::fs::remove_file(private);
    })
}

fn read_master(path: &Path) -> Result<(MasterPublicKey, Vec<u8>)> {
    let bytes = files::read(path)?;
    let key = MasterPublicKey::from_pem(&bytes).with_context(|| format!("{path:?}"))?;
    Ok((key, bytes))
}

fn import_master_pubkey(matches: &ArgMatches) -> Result<()> {
    let path = given_path(matches).context("missing argument: path")?;
    let (key, bytes) = read_master(path)?;
    tracing::info!("Found following key at {path:?}");
    describe_master(&key);
    tracing::info!("Length: {}", key.bits());
    // Otherwise every later backup would fail.
    let trial = KeyFile::open(&EncryptionKey::generate(), key_time(), key_time());
    key.wrap(trial.to_json().as_bytes()).with_context(|| format!("{path:?}"))?;
    let target = default_master_path()?;
    make_config_dir(&target)?;
    if target.symlink_metadata().is_ok() {
        tracing::info!("The public master key that was at {target:?} is replaced");
    }
    files::write(&target, &bytes, PUBLIC_MODE, Existing::Replace)
        .map_err(|error| files::not_created("file", &target, &error))?;
    tracing::info!("Imported public master key to {target:?}");
    Ok(())
}

fn show(plugins: &Plugins, matches: &ArgMatches) -> Result<()> {
    let path = existing_key(matches)?;
    let file = read_key(&path)?;
    let time = |time: &KeyTime| local_time(time.timestamp(), CTIME);
    let mut data = json!({
        "path": format!("{path:?}"),
        "kdf": file.kdf().as_str(),
        "created": file.created.timestamp(),
        "modified": file.modified.timestamp(),
    });
    if let Some(fingerprint) = file.fingerprint {
        data["fingerprint"] = fingerprint.to_string().into();
    }
    if let Some(hint) = &file.hint {
        data["hint"] = hint.as_str().into();
    }
    let mut display = data.clone();
    display["created"] = time(&file.created).into();
    display["modified"] = time(&file.modified).into();
    let columns = ["path", "kdf", "created", "modified", "fingerprint", "hint"].map(left);
    let layout = Layout::Properties(columns.into());
    print(plugins, matches, &Document { data, display: Some(display), layout })
}

fn show_master_pubkey(plugins: &Plugins, matches: &ArgMatches) -> Result<()> {
    let path = match given_path(matches) {
        Some(path) => path.clone(),
        None => default_master_path()
            .ok()
            .filter(|path| path.exists())
            .context("No path specified and no default master key available.")?,
    };
    let (key, _) = read_master(&path)?;
    let data = json!({
        "path": path.display().to_string(),
        "modulus": key.modulus(),
        "exponent": key.exponent(),
        "length": key.bits(),
    });
    let columns = vec![left("path"), left("modulus"), left("exponent"), right("length")];
    print(plugins, matches, &Document { data, display: None, layout: Layout::Properties(columns) })
}

fn paperkey(matches: &ArgMatches) -> Result<()> {
    let path = existing_key(matches)?;
    let bytes = Zeroizing::new(files::read(&path)?);
    let subject = matches.get_one::<String>("subject").map(String::as_str);
    let content = paper::Content::of(&bytes).with_context(|| format!("{path:?}"))?;
    let format = matches.get_one::<String>("output-format").map(String::as_str);
    let page = match format {
        Some("text") => content.to_text(subject)?,
        _ => content.to_html(subject)?,
    };
    write_out(page.as_bytes())
}
