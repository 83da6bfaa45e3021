//! The process's surroundings: log, terminal, limits, clock, who and where we are.

use anyhow::{Context, Result};
use chrono::{Local, TimeZone};
use keepwell_model::{AuthId, Upid};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::PathBuf;

/// Log lines go to stderr, bare, from `info` up; `PBS_LOG` (for `pxar` `PXAR_LOG`) filters.
pub(crate) fn start_logging(arguments: &[OsString]) {
    let variable =
        if arguments.get(1).is_some_and(|word| word == "pxar") { "PXAR_LOG" } else { "PBS_LOG" };
    let filter = std::env::var(variable).unwrap_or_else(|_| "info".into());
    let filter = tracing_subscriber::EnvFilter::try_new(filter)
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .without_time()
        .with_level(false)
        .with_target(false)
        .with_ansi(false)
        .try_init();
}

/// Whether debug lines were asked for.
pub(crate) fn wants_debug(variable: &str) -> bool {
    std::env::var(variable).is_ok_and(|filter| filter.contains("debug") || filter.contains("trace"))
}

/// A crash must not write keys and passwords to a file.
pub(crate) fn forbid_core_dumps() {
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
}

/// Directories of a tree are held open: allow as many as the system does.
pub(crate) fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if limit.current != limit.maximum {
        let _ = setrlimit(Resource::Nofile, raised);
    }
}

/// Whether a signal was ignored when we were started.
pub(crate) fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask & 1 << (signal - 1) != 0
}

/// Columns of the terminal that stdout is; none where it is none.
pub(crate) fn stdout_width() -> Option<u32> {
    if !std::io::stdout().is_terminal() {
        return None;
    }
    let columns = std::env::var("COLUMNS").ok().and_then(|text| text.parse().ok());
    columns.or_else(|| {
        let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok()?;
        Some(u32::from(size.ws_col)).filter(|columns| *columns > 0)
    })
}

/// Whether the locale's character set is UTF-8, or nothing says otherwise.
pub(crate) fn speaks_utf8() -> bool {
    let set = ["LC_ALL", "LC_CTYPE", "LANG"]
        .iter()
        .find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()));
    match set {
        Some(locale) => {
            let locale = locale.to_ascii_lowercase();
            locale.contains("utf-8")
                || locale.contains("utf8")
                || locale == "c"
                || locale == "posix"
        }
        None => true,
    }
}

/// Seconds since the epoch.
pub(crate) fn now() -> i64 {
    chrono::Utc::now().timestamp()
}

/// Now, as key files write it.
pub(crate) fn key_time() -> keepwell_seal::KeyTime {
    Local::now().fixed_offset()
}

/// Local time minus UTC at a moment, in seconds.
pub(crate) fn utc_offset(moment: i64) -> i32 {
    match Local.timestamp_opt(moment, 0) {
        chrono::LocalResult::Single(time) => time.offset().local_minus_utc(),
        _ => 0,
    }
}

/// A moment in local time: `Tue Nov 14 22:13:20 2023`, or by another pattern.
pub(crate) fn local_time(moment: i64, pattern: &str) -> String {
    match Local.timestamp_opt(moment, 0) {
        chrono::LocalResult::Single(time) => time.format(pattern).to_string(),
        _ => moment.to_string(),
    }
}

/// The C library's `%c` in the C locale.
pub(crate) const CTIME: &str = "%a %b %e %H:%M:%S %Y";

/// This machine's name up to the first dot.
pub(crate) fn node_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    name.split('.').next().unwrap_or_default().to_owned()
}

/// When this process began, in clock ticks since the host did.
pub(crate) fn process_start() -> u64 {
    // The 22nd field; the second, in parentheses, may hold blanks.
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let behind_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let field = behind_name.split_ascii_whitespace().nth(19);
    field.and_then(|field| field.parse().ok()).unwrap_or(0)
}

/// The name of a task of this process.
pub(crate) fn upid(kind: &str, id: String) -> Upid {
    Upid {
        node: node_name(),
        pid: std::process::id(),
        process_start: process_start(),
        task: 0,
        start: now(),
        kind: kind.to_owned(),
        id: Some(id),
        user: owner().map_or_else(|_| "root@pam".into(), |owner| owner.to_string()),
    }
}

/// Who owns new groups of a local repository.
pub(crate) fn owner() -> Result<AuthId> {
    let user = if rustix::process::geteuid().is_root() {
        "root".to_owned()
    } else {
        std::env::var("USER").unwrap_or_else(|_| "user".into())
    };
    format!("{user}@pam").parse().with_context(|| {
        format!("'{user}' (USER) can't be the owner of backups: set USER to a name without blanks, '/', ':' and '\\'")
    })
}

/// `$XDG_CACHE_HOME/keepwell` or `~/.cache/keepwell`.
pub(crate) fn cache_dir() -> Option<PathBuf> {
    let dir = xdg("XDG_CACHE_HOME", ".cache")?.join("keepwell");
    // A home that is not there is not made for that.
    dir.ancestors().nth(2).is_some_and(|home| home.is_dir()).then_some(dir)
}

/// `$XDG_CONFIG_HOME/proxmox-backup` or `~/.config/proxmox-backup`: shared with other clients.
pub(crate) fn config_dir() -> Option<PathBuf> {
    xdg_config().map(|dir| dir.join("proxmox-backup"))
}

/// `$XDG_CONFIG_HOME` or `~/.config`.
pub(crate) fn xdg_config() -> Option<PathBuf> {
    xdg("XDG_CONFIG_HOME", ".config")
}

/// `$XDG_DATA_HOME/keepwell` or `~/.local/share/keepwell`.
pub(crate) fn data_dir() -> Option<PathBuf> {
    xdg("XDG_DATA_HOME", ".local/share").map(|dir| dir.join("keepwell"))
}

/// `$XDG_RUNTIME_DIR`, which is the user's alone.
pub(crate) fn run_dir() -> Option<PathBuf> {
    std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|dir| dir.is_absolute())
}

fn xdg(variable: &str, below_home: &str) -> Option<PathBuf> {
    let given = std::env::var_os(variable).map(PathBuf::from).filter(|dir| dir.is_absolute());
    given.or_else(|| {
        // Without HOME, as in services, the user's entry in the password file tells.
        let home = std::env::home_dir().filter(|home| !home.as_os_str().is_empty())?;
        Some(home.join(below_home))
    })
}
