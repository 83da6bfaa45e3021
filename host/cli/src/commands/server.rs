//! `serve` and `admin`: being a server, and changing what it knows. Spec: issue of the server;
//! host/server/src/config.rs.

use crate::args::{flag, option, parsed};
use crate::config::DEFAULT_POLICY;
use crate::files;
use crate::output::{left, print, write_out};
use crate::plugins::Plugins;
use crate::secrets::{Secret, new_password};
use crate::terminal::{node_name, now, process_start, utc_offset};
use anyhow::{Context, Result, anyhow, bail};
use clap::{Arg, ArgMatches, Command, value_parser};
use keepwell_engine::plugin::{Document, Layout};
use keepwell_engine::report::Report;
use keepwell_model::names::is_datastore_name;
use keepwell_model::{AuthId, Namespace};
use keepwell_server::access::{
    Access, Account, Grant, Token, User, check_grant, hash_password, hash_token,
};
use keepwell_server::calendar::CalendarEvent;
use keepwell_server::config::{Datastore, Datastores, Jobs, Maintenance, MaintenanceKind};
use keepwell_server::{Config, Environment, Identity, Server, certificate_fingerprint};
use keepwell_store::DirStore;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};

/// Whose behaviour clients may expect.
const PROTOCOL_VERSION: &str = "3.2.4";
const PASSWORD_BYTES_MIN: usize = 5;
const KEEPS: [&str; 6] =
    ["keep-last", "keep-hourly", "keep-daily", "keep-weekly", "keep-monthly", "keep-yearly"];

fn config_option() -> Arg {
    option("config", "FILE", "The server's configuration (server.toml)")
        .required(true)
        .value_parser(value_parser!(PathBuf))
}

pub(crate) fn serve_command() -> Command {
    Command::new("serve")
        .about("Be a server for this and other clients, in the foreground")
        .long_about(
            "Serves datastores to clients, until SIGINT or SIGTERM: then running backups may \
             finish. `keepwell admin init` makes a configuration.",
        )
        .arg(config_option())
}

pub(crate) fn serve(matches: &ArgMatches) -> Result<()> {
    let path = matches.get_one::<PathBuf>("config").context("missing option: --config")?;
    let config = Config::load(path)?;
    let node = config.node.clone().unwrap_or_else(node_name);
    let identity = Identity { node, pid: std::process::id(), process_start: process_start() };
    let plugins = Arc::new(Plugins::load()?);
    let of_readers = plugins.clone();
    let reader = move |extension: &str, cancel| {
        let loaded = of_readers.reader_for(extension);
        let loaded = loaded.ok_or_else(|| format!("no plugin reads '{extension}' archives"))?;
        let (report, _) = Report::new();
        loaded.plugin.reader(report, cancel).map_err(|error| error.to_string())
    };
    let policy = move || {
        // As the settings of its jobs are meant.
        let loaded = plugins.policy(Some(DEFAULT_POLICY)).map_err(|error| error.to_string())?;
        loaded.plugin.retention().map_err(|error| error.to_string())
    };
    let environment = Environment {
        identity,
        now,
        utc_offset,
        policy: Box::new(policy),
        reader: Box::new(reader),
        version: PROTOCOL_VERSION,
    };
    let addresses: Vec<String> = config.listen.iter().map(ToString::to_string).collect();
    let server = Server::open(config, environment)?;
    let sockets = handed_sockets()?;
    let ready = || {
        match sockets_count() {
            0 => tracing::info!("listening on {}", addresses.join(", ")),
            count => tracing::info!("listening on {count} sockets of the service manager"),
        }
        tell_manager("READY=1");
    };
    Ok(server.run(sockets, ready, until_stopped(server.clone()))?)
}

/// Sockets that a service manager listens on for us (LISTEN_PID, LISTEN_FDS).
fn sockets_count() -> i32 {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<i64>().ok());
    match number("LISTEN_PID") == Some(std::process::id().into()) {
        true => number("LISTEN_FDS").and_then(|count| i32::try_from(count).ok()).unwrap_or(0),
        false => 0,
    }
}

/// Their descriptors begin at 3.
#[allow(unsafe_code, reason = "numbers are all that a service manager has for descriptors")]
fn handed_sockets() -> Result<Vec<std::net::TcpListener>> {
    use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};
    let mut sockets = Vec::new();
    for number in 3..3 + sockets_count().clamp(0, 64) {
        // SAFETY: only looked at; where it is not open, that fails.
        let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
        rustix::net::getsockname(borrowed)
            .map_err(|error| anyhow!("LISTEN_FDS: descriptor {number} is no socket: {error}"))?;
        // SAFETY: the service manager hands it over, it is open, and nobody else here has it.
        let owned = unsafe { OwnedFd::from_raw_fd(number) };
        sockets.push(owned.into());
    }
    Ok(sockets)
}

/// Tells a service manager how we are (NOTIFY_SOCKET); others do not mind.
fn tell_manager(state: &str) {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram};
    let Ok(name) = std::env::var("NOTIFY_SOCKET") else { return };
    let address = match name.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&name),
    };
    let sent = address.and_then(|address| {
        let socket = UnixDatagram::unbound()?;
        socket.send_to_addr(state.as_bytes(), &address)
    });
    if let Err(error) = sent {
        tracing::warn!("unable to tell the service manager '{state}': {error}");
    }
}

/// Done when the process is asked to end; a second time it ends at once. SIGHUP reads the
/// certificate again.
async fn until_stopped(server: Arc<Server>) {
    let (Ok(mut interrupt), Ok(mut terminate), Ok(mut reload)) = (
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
        signal(SignalKind::hangup()),
    ) else {
        return;
    };
    loop {
        tokio::select! {
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
            _ = reload.recv() => match server.reload() {
                Ok(()) => tracing::info!("the certificate was read again"),
                Err(error) => tracing::error!("the certificate stays as it was: {error}"),
            },
        }
    }
    tell_manager("STOPPING=1");
    tracing::info!("stopping: no more connections are taken");
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        tracing::info!("stopped at once");
        #[allow(clippy::exit, reason = "the user insists")]
        std::process::exit(255);
    });
}

fn name_argument(name: &'static str, value: &'static str, help: &'static str) -> Arg {
    Arg::new(name).value_name(value).help(help).required(true)
}

fn user_argument() -> Arg {
    name_argument("user", "USER", "USER@pbs, or USER@pam for an account of the system")
        .value_parser(parsed::<AuthId>())
}

fn password_file() -> Arg {
    option("password-file", "FILE", "The password is its first line [default: it is asked for]")
        .value_parser(value_parser!(PathBuf))
}

fn comment(text: &str) -> Result<String, String> {
    match text.chars().count() > 128 || text.chars().any(char::is_control) {
        true => Err("use one line of at most 128 characters".into()),
        false => Ok(text.to_owned()),
    }
}

fn comment_option() -> Arg {
    option("comment", "TEXT", "A line for people").value_parser(comment)
}

fn store_options(command: Command) -> Command {
    let schedule = |name, help| {
        option(name, "EVENT", help).value_parser(|text: &str| match text.is_empty() {
            true => Ok(String::new()),
            false => text.parse::<CalendarEvent>().map(|_| text.to_owned()),
        })
    };
    command
        .arg(comment_option())
        .arg(schedule("gc-schedule", "When to collect garbage, such as 'daily'; '' is never"))
        .arg(schedule("prune-schedule", "When to prune all groups by the --keep-… rules"))
        .arg(schedule("verify-schedule", "When to verify what was not verified yet"))
        .arg(
            option("verify-outdated-after", "DAYS", "Verify again what was verified before that")
                .value_parser(value_parser!(i64).range(0..)),
        )
        .args(KEEPS.map(|name| {
            option(name, "N", "For the scheduled prune; 0 ends it").value_parser(value_parser!(u64))
        }))
        .arg(option("maintenance", "MODE", "read-only, offline, or none to end it").value_parser([
            "read-only",
            "offline",
            "none",
        ]))
        .arg(option("maintenance-message", "TEXT", "Why, for people"))
}

fn account_options(command: Command) -> Command {
    command.arg(comment_option()).arg(flag("enable", "Whether it may be used")).arg(
        option("expire", "EPOCH", "When it ends, in seconds; 0 is never")
            .value_parser(value_parser!(i64)),
    )
}

fn group(name: &'static str, about: &'static str, commands: Vec<Command>) -> Command {
    let commands = commands.into_iter().map(|command| command.arg(config_option()));
    Command::new(name)
        .about(about)
        .infer_subcommands(true)
        .subcommand_required(true)
        .subcommands(commands)
}

pub(crate) fn admin_command(plugins: &Plugins) -> Command {
    let format = || crate::args::output_format(plugins);
    let store = || name_argument("name", "NAME", "The datastore").value_parser(store_name);
    let token =
        || name_argument("token", "TOKEN", "USER@REALM!NAME").value_parser(parsed::<AuthId>());
    let acl = |command: Command| {
        command
            .arg(name_argument("path", "PATH", "Such as / or /datastore/NAME/NAMESPACE"))
            .arg(name_argument("role", "ROLE", "Such as Admin, DatastoreBackup or NoAccess"))
            .arg(
                option("auth-id", "ID", "USER@REALM or USER@REALM!TOKEN")
                    .required(true)
                    .value_parser(parsed::<AuthId>()),
            )
    };
    Command::new("admin")
        .about("Make and change a server")
        .infer_subcommands(true)
        .subcommand_required(true)
        .subcommand(init_command())
        .subcommand(group(
            "datastore",
            "Datastores of a server",
            vec![
                Command::new("list").about("List them").arg(format()),
                store_options(Command::new("create").about("Add one; its directory is made"))
                    .arg(store())
                    .arg(
                        name_argument("path", "DIR", "Where it lies")
                            .value_parser(value_parser!(PathBuf)),
                    ),
                store_options(Command::new("update").about("Change one")).arg(store()),
                Command::new("remove").about("Forget one; its directory stays").arg(store()),
            ],
        ))
        .subcommand(group(
            "user",
            "Users of a server",
            vec![
                Command::new("list").about("List them").arg(format()),
                account_options(Command::new("create").about("Add one"))
                    .arg(user_argument())
                    .arg(password_file()),
                account_options(Command::new("update").about("Change one")).arg(user_argument()),
                Command::new("passwd")
                    .about("Set the password of one")
                    .arg(user_argument())
                    .arg(password_file()),
                Command::new("remove")
                    .about("Remove one, with tokens and rights")
                    .arg(user_argument()),
            ],
        ))
        .subcommand(group(
            "token",
            "API tokens of users",
            vec![
                Command::new("list").about("List them").arg(format()),
                account_options(Command::new("create").about("Make one; prints its secret once"))
                    .arg(token()),
                Command::new("delete").about("Remove one, with its rights").arg(token()),
            ],
        ))
        .subcommand(group(
            "acl",
            "Who may do what",
            vec![
                Command::new("list").about("List all rights").arg(format()),
                acl(Command::new("update").about("Give a role"))
                    .arg(flag("propagate", "Also for what lies below [default: true]")),
                acl(Command::new("remove").about("Take a role away")),
            ],
        ))
        .subcommand(group(
            "cert",
            "The certificate of a server",
            vec![
                Command::new("info").about("Show its fingerprint"),
                Command::new("renew").about("Make a new one; clients must confirm it"),
            ],
        ))
}

fn store_name(given: &str) -> Result<String, String> {
    match is_datastore_name(given) {
        true => Ok(given.to_owned()),
        false => Err("use 3 to 32 letters, digits, '_', '-' and '.'".into()),
    }
}

fn init_command() -> Command {
    Command::new("init")
        .about("Make a server that works: configuration, certificate, datastore, user")
        .arg(
            name_argument("dir", "DIR", "Where all of it is kept; made if missing")
                .value_parser(value_parser!(PathBuf)),
        )
        .arg(
            option("datastore", "NAME[=PATH]", "Name of the datastore [path: DIR/NAME]")
                .required(true),
        )
        .arg(
            option("user", "USER@pbs", "Who may do everything")
                .required(true)
                .value_parser(parsed::<AuthId>()),
        )
        .arg(password_file())
        .arg(
            option("listen", "ADDRESS:PORT", "Where to listen")
                .default_value("[::]:8007")
                .value_parser(value_parser!(std::net::SocketAddr)),
        )
}

pub(crate) fn admin(plugins: &Plugins, matches: &ArgMatches) -> Result<()> {
    let Some((what, matches)) = matches.subcommand() else { bail!("what is to be administered?") };
    if what == "init" {
        return init(matches);
    }
    let Some((verb, matches)) = matches.subcommand() else { bail!("what is to be done?") };
    let path = matches.get_one::<PathBuf>("config").context("missing option: --config")?;
    let config = Config::load(path)?;
    let state = config.state.clone();
    // One change at a time: each reads a file and writes it anew.
    let _turn = match verb {
        "list" | "info" => None,
        _ => Some(lock_state(&state)?),
    };
    match what {
        "datastore" => datastore(plugins, verb, matches, &state),
        "user" => user(plugins, verb, matches, &state),
        "token" => token(plugins, verb, matches, &state),
        "acl" => acl(plugins, verb, matches, &state),
        _ => {
            if verb == "renew" {
                let node = config.node.clone().unwrap_or_else(node_name);
                keepwell_server::renew_certificate(&config, &node, now())?;
            }
            let fingerprint = certificate_fingerprint(&config)?;
            if verb == "renew" {
                tracing::info!("A running server uses it after SIGHUP (systemctl reload).");
            }
            let shown = config.certificate.display();
            write_out(format!("Certificate: {shown}\nFingerprint: {fingerprint}\n").as_bytes())
        }
    }
}

fn lock_state(state: &Path) -> Result<std::fs::File> {
    let failed = || format!("unable to lock '{}'", state.display());
    let dir = std::fs::File::open(state).with_context(failed)?;
    dir.lock().with_context(failed)?;
    Ok(dir)
}

/// A password from a file, or typed twice.
fn password(matches: &ArgMatches) -> Result<Secret> {
    let Some(path) = matches.get_one::<PathBuf>("password-file") else {
        return new_password("New Password: ", PASSWORD_BYTES_MIN);
    };
    let bytes = zeroize::Zeroizing::new(files::read(path)?);
    let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let text = std::str::from_utf8(line).map_err(|_| anyhow!("{path:?} is not UTF-8"))?;
    let text = text.trim_end_matches('\r');
    if text.len() < PASSWORD_BYTES_MIN {
        bail!("the password in {path:?} has less than {PASSWORD_BYTES_MIN} characters");
    }
    Ok(zeroize::Zeroizing::new(text.to_owned()))
}

fn require_pbs(user: &AuthId) -> Result<()> {
    match is_of(user, "@pbs") {
        true => Ok(()),
        false => bail!("'{user}' is no user of realm pbs (USER@pbs)"),
    }
}

/// Whether this is a user, no token, of a realm.
fn is_of(user: &AuthId, realm: &str) -> bool {
    user.as_str().ends_with(realm) && !user.as_str().contains('!')
}

fn init(matches: &ArgMatches) -> Result<()> {
    let dir = matches.get_one::<PathBuf>("dir").context("missing argument: dir")?;
    let user = matches.get_one::<AuthId>("user").context("missing option: --user")?;
    let listen = matches.get_one::<std::net::SocketAddr>("listen").context("missing: --listen")?;
    let given = matches.get_one::<String>("datastore").context("missing option: --datastore")?;
    let (name, path) = match given.split_once('=') {
        Some((name, path)) => (name, PathBuf::from(path)),
        None => (given.as_str(), dir.join(given)),
    };
    store_name(name).map_err(|problem| anyhow!("--datastore: '{name}': {problem}"))?;
    if path.as_os_str().is_empty() {
        bail!(
            "--datastore: '{given}' has no path: use NAME=PATH, or NAME for one in '{}'",
            dir.display()
        );
    }
    if listen.port() == 0 {
        bail!("--listen: '{listen}' has port 0: clients could not know where to connect");
    }
    require_pbs(user)?;
    let file = dir.join("server.toml");
    if file.symlink_metadata().is_ok() {
        bail!("'{}' is there already: choose another directory", file.display());
    }
    let password = password(matches)?;
    std::fs::create_dir_all(dir)
        .with_context(|| format!("unable to create '{}'", dir.display()))?;
    let dir = dir.canonicalize().with_context(|| format!("unable to enter '{}'", dir.display()))?;
    let path = std::path::absolute(&path)?;
    make_store(&path)?;
    let stores = Datastores {
        list: vec![Datastore {
            name: name.to_owned(),
            path,
            comment: None,
            maintenance: None,
            jobs: Jobs::default(),
        }],
    };
    stores.save(&dir)?;
    let access = Access {
        users: vec![User {
            id: user.to_string(),
            password: Some(hash_password(&password)?),
            account: Account::default(),
        }],
        grants: vec![Grant {
            path: "/".into(),
            who: user.to_string(),
            role: "Admin".into(),
            propagate: true,
        }],
        ..Access::default()
    };
    access.save(&dir)?;
    let text = format!(
        "# `keepwell serve --config` reads this; examples/server.toml explains it.\nlisten = [\"{listen}\"]\n"
    );
    files::write(&file, text.as_bytes(), 0o644, files::Existing::Keep)
        .map_err(|error| files::not_created("file", &file, &error))?;
    let config = Config::load(&dir.join("server.toml"))?;
    keepwell_server::ensure_certificate(&config, &node_name(), now())?;
    let fingerprint = certificate_fingerprint(&config)?;
    let host = match listen.ip() {
        ip if ip.is_unspecified() => node_name(),
        std::net::IpAddr::V6(ip) => format!("[{ip}]"),
        ip => ip.to_string(),
    };
    let lines = format!(
        "Run the server:   keepwell serve --config {}\n\
         On its clients:   export PBS_REPOSITORY='{user}@{host}:{}:{name}'\n\
         \u{20}                 export PBS_FINGERPRINT='{fingerprint}'\n",
        dir.join("server.toml").display(),
        listen.port(),
    );
    write_out(lines.as_bytes())
}

/// A datastore is made where there is none.
fn make_store(path: &Path) -> Result<()> {
    match DirStore::can_create(path) {
        true => DirStore::create(path)?,
        false => DirStore::open(path)?,
    };
    Ok(())
}

fn text(matches: &ArgMatches, name: &str) -> Option<String> {
    matches.try_get_one::<String>(name).ok().flatten().cloned()
}

fn table(
    plugins: &Plugins,
    matches: &ArgMatches,
    rows: Vec<Value>,
    columns: &[&'static str],
) -> Result<()> {
    let layout = Layout::Table(columns.iter().map(|column| left(column)).collect());
    print(plugins, matches, &Document { data: rows.into(), display: None, layout })
}

fn change_store(store: &mut Datastore, matches: &ArgMatches) -> Result<()> {
    if let Some(comment) = text(matches, "comment") {
        store.comment = Some(comment).filter(|comment| !comment.is_empty());
    }
    let jobs = &mut store.jobs;
    for (name, place) in [
        ("gc-schedule", &mut jobs.gc_schedule),
        ("prune-schedule", &mut jobs.prune_schedule),
        ("verify-schedule", &mut jobs.verify_schedule),
    ] {
        if let Some(schedule) = text(matches, name) {
            *place = Some(schedule).filter(|schedule| !schedule.is_empty());
        }
    }
    if let Some(days) = matches.get_one::<i64>("verify-outdated-after") {
        jobs.verify_outdated_after = Some(*days);
    }
    for name in KEEPS {
        match matches.get_one::<u64>(name) {
            Some(0) => drop(jobs.keep.remove(name)),
            Some(count) => drop(jobs.keep.insert(name.to_owned(), *count)),
            None => {}
        }
    }
    let message = text(matches, "maintenance-message");
    let kind = match text(matches, "maintenance").as_deref() {
        Some("read-only") => MaintenanceKind::ReadOnly,
        Some("offline") => MaintenanceKind::Offline,
        mode => {
            if mode.is_some() {
                store.maintenance = None;
            }
            match (&mut store.maintenance, message) {
                (Some(maintenance), Some(message)) => maintenance.message = message,
                (None, Some(_)) => bail!(
                    "datastore '{}' is not in maintenance: --maintenance-message needs --maintenance",
                    store.name
                ),
                (_, None) => {}
            }
            return Ok(());
        }
    };
    store.maintenance = Some(Maintenance { kind, message: message.unwrap_or_default() });
    Ok(())
}

/// The path without links, as far as it is there.
fn resolved(path: &Path) -> PathBuf {
    let real = path.ancestors().find_map(|above| {
        let rest = path.strip_prefix(above).ok()?;
        Some(above.canonicalize().ok()?.join(rest))
    });
    real.unwrap_or_else(|| path.to_owned())
}

fn datastore(plugins: &Plugins, verb: &str, matches: &ArgMatches, state: &Path) -> Result<()> {
    let mut all = Datastores::load(state)?;
    let name = text(matches, "name").unwrap_or_default();
    let place = all.list.iter().position(|store| store.name == name);
    let missing = || anyhow!("there is no datastore '{name}'");
    match verb {
        "list" => {
            let rows = all.list.iter().map(|store| json!(store)).collect();
            return table(plugins, matches, rows, &["name", "path", "comment"]);
        }
        "create" => {
            if place.is_some() {
                bail!("datastore '{name}' exists already");
            }
            let path = matches.get_one::<PathBuf>("path").context("missing argument: path")?;
            let path = std::path::absolute(path)?;
            let real = resolved(&path);
            let meets = |other: &&Datastore| {
                let other = resolved(&other.path);
                real.starts_with(&other) || other.starts_with(&real)
            };
            if let Some(other) = all.list.iter().find(meets) {
                let (path, there) = (path.display(), other.path.display());
                bail!("'{path}' and datastore '{}' in '{there}' lie in each other", other.name);
            }
            let mut store =
                Datastore { name, path, comment: None, maintenance: None, jobs: Jobs::default() };
            change_store(&mut store, matches)?;
            make_store(&store.path)?;
            all.list.push(store);
        }
        "update" => change_store(&mut all.list[place.ok_or_else(missing)?], matches)?,
        _ => {
            all.list.remove(place.ok_or_else(missing)?);
        }
    }
    Ok(all.save(state)?)
}

fn id_of(matches: &ArgMatches, name: &str) -> Result<AuthId> {
    let id = matches.get_one::<AuthId>(name).cloned();
    id.with_context(|| format!("missing argument: {name}"))
}

fn user(plugins: &Plugins, verb: &str, matches: &ArgMatches, state: &Path) -> Result<()> {
    let mut access = Access::load(state)?;
    if verb == "list" {
        let rows = access.users.iter().map(|user| {
            json!({
                "userid": user.id, "enable": user.account.enabled,
                "expire": user.account.expire.unwrap_or(0), "comment": user.account.comment,
            })
        });
        let rows = rows.collect();
        return table(plugins, matches, rows, &["userid", "enable", "expire", "comment"]);
    }
    let id = id_of(matches, "user")?;
    // Then the password is the system's business.
    let of_system = is_of(&id, "@pam");
    if !of_system && !is_of(&id, "@pbs") {
        bail!("'{id}' is no user of realm pbs or pam (USER@pbs, USER@pam)");
    }
    let id = id.to_string();
    let place = access.users.iter().position(|user| user.id == id);
    let missing = || anyhow!("there is no user '{id}'");
    match verb {
        "create" => {
            if place.is_some() {
                bail!("user '{id}' exists already");
            }
            let password = match of_system {
                true if matches.get_one::<PathBuf>("password-file").is_some() => {
                    bail!("the password of '{id}' is that of a system account: use passwd")
                }
                true => None,
                false => Some(hash_password(&password(matches)?)?),
            };
            let mut user = User { id, password, account: Account::default() };
            change_account(matches, &mut user.account);
            access.users.push(user);
        }
        "update" => {
            let user = &mut access.users[place.ok_or_else(missing)?];
            change_account(matches, &mut user.account);
        }
        "passwd" if of_system => {
            bail!("the password of '{id}' is that of a system account: use passwd")
        }
        "passwd" => {
            let place = place.ok_or_else(missing)?;
            access.users[place].password = Some(hash_password(&password(matches)?)?);
        }
        _ => {
            access.users.remove(place.ok_or_else(missing)?);
            let prefix = format!("{id}!");
            access.tokens.retain(|token| !token.id.starts_with(&prefix));
            access.grants.retain(|grant| grant.who != id && !grant.who.starts_with(&prefix));
        }
    }
    Ok(access.save(state)?)
}

fn change_account(matches: &ArgMatches, account: &mut Account) {
    if let Some(value) = matches.get_one::<bool>("enable") {
        account.enabled = *value;
    }
    if let Some(value) = matches.get_one::<i64>("expire") {
        account.expire = Some(*value).filter(|value| *value > 0);
    }
    if let Some(value) = text(matches, "comment") {
        account.comment = Some(value).filter(|value| !value.is_empty());
    }
}

fn token(plugins: &Plugins, verb: &str, matches: &ArgMatches, state: &Path) -> Result<()> {
    let mut access = Access::load(state)?;
    if verb == "list" {
        let rows = access.tokens.iter().map(|token| {
            json!({
                "tokenid": token.id, "enable": token.account.enabled,
                "expire": token.account.expire.unwrap_or(0), "comment": token.account.comment,
            })
        });
        let rows = rows.collect();
        return table(plugins, matches, rows, &["tokenid", "enable", "expire", "comment"]);
    }
    let id = id_of(matches, "token")?.to_string();
    let Some((owner, name)) = id.split_once('!') else {
        bail!("'{id}' is not like USER@REALM!NAME")
    };
    if verb != "delete" && name.len() < 3 {
        bail!("token name '{name}' is too short: use at least 3 characters");
    }
    let place = access.tokens.iter().position(|token| token.id == id);
    if verb == "delete" {
        access.tokens.remove(place.ok_or_else(|| anyhow!("there is no token '{id}'"))?);
        access.grants.retain(|grant| grant.who != id);
        return Ok(access.save(state)?);
    }
    if place.is_some() {
        bail!("token '{id}' exists already");
    }
    if access.user(owner).is_none() && owner != keepwell_server::access::SUPERUSER {
        bail!("there is no user '{owner}'");
    }
    let secret = random_secret()?;
    let mut token =
        Token { id: id.clone(), secret: hash_token(&secret), account: Account::default() };
    change_account(matches, &mut token.account);
    access.tokens.push(token);
    access.save(state)?;
    write_out(format!("Token:  {id}\nSecret: {}\n", *secret).as_bytes())
}

/// In the form of a UUID, as the reference makes them.
fn random_secret() -> Result<Secret> {
    let mut bytes = zeroize::Zeroizing::new([0u8; 16]);
    getrandom::fill(&mut *bytes).map_err(|error| anyhow!("no random numbers: {error}"))?;
    let mut text = zeroize::Zeroizing::new(String::with_capacity(36));
    for (position, byte) in bytes.iter().enumerate() {
        if matches!(position, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    Ok(text)
}

fn acl(plugins: &Plugins, verb: &str, matches: &ArgMatches, state: &Path) -> Result<()> {
    let mut access = Access::load(state)?;
    if verb == "list" {
        let rows = access.grants.iter().map(|grant| {
            json!({
                "path": grant.path, "ugid": grant.who, "roleid": grant.role,
                "propagate": grant.propagate,
            })
        });
        let rows = rows.collect();
        return table(plugins, matches, rows, &["path", "ugid", "roleid", "propagate"]);
    }
    let who = id_of(matches, "auth-id")?.to_string();
    let (path, role) = (text(matches, "path"), text(matches, "role"));
    let (path, role) = (path.unwrap_or_default(), role.unwrap_or_default());
    let is_it = |grant: &Grant| grant.who == who && grant.path == path && grant.role == role;
    let found = access.grants.iter().any(is_it);
    access.grants.retain(|grant| !is_it(grant));
    if verb == "remove" {
        if !found {
            bail!("'{who}' does not have role '{role}' on '{path}'");
        }
        return Ok(access.save(state)?);
    }
    let known = match who.contains('!') {
        true => access.tokens.iter().any(|token| token.id == who),
        false => access.user(&who).is_some(),
    };
    if !known {
        bail!("there is no user or token '{who}'");
    }
    let propagate = matches.get_one::<bool>("propagate").copied().unwrap_or(true);
    let grant = Grant { path, who, role, propagate };
    check_grant(&grant)?;
    let namespace = grant.path.strip_prefix("/datastore/").and_then(|rest| rest.split_once('/'));
    if let Some((_, namespace)) = namespace {
        namespace
            .parse::<Namespace>()
            .map_err(|problem| anyhow!("ACL path '{}': {problem}", grant.path))?;
    }
    let store = grant.path.strip_prefix("/datastore/").and_then(|rest| rest.split('/').next());
    if let Some(store) = store
        && Datastores::load(state)?.find(store).is_none()
    {
        tracing::warn!("there is no datastore '{store}' yet");
    }
    access.grants.push(grant);
    Ok(access.save(state)?)
}
