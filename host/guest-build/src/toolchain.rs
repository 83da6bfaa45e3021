//! Finds, or unpacks, a compiler for wasm and runs the inner cargo with it.

use anyhow::{Context, Result, bail};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs};

/// The guests import nothing but our contract: no WASI.
pub const TARGET: &str = "wasm32-unknown-unknown";

/// The guests are part of the workspace, which says which rustc it needs.
const OLDEST: &str = env!("CARGO_PKG_RUST_VERSION");

/// Whether a version such as `1.96.0` or `1.96.0+dfsg1-1` is [`OLDEST`] or newer.
fn is_new_enough(version: &str) -> bool {
    let numbers = |text: &str| {
        let mut parts = text.split('.').map(|part| part.parse::<u32>().ok());
        Some((parts.next()??, parts.next()??))
    };
    numbers(version) >= numbers(OLDEST)
}

/// A rustc that can make wasm, and how.
#[derive(Debug)]
pub struct Toolchain {
    rustc: PathBuf,
    /// Sources to build std from, where no std for wasm is installed.
    std_sources: Option<PathBuf>,
    linker: Option<PathBuf>,
}

/// Panics end in a trap, and nothing shows lines of the source.
const COMPACT: [(&str, &str); 5] = [
    ("PANIC", "abort"),
    ("DEBUG", "false"),
    ("STRIP", "debuginfo"),
    ("LTO", "true"),
    ("CODEGEN_UNITS", "1"),
];

/// A package that makes a component.
#[derive(Clone, Copy, Debug)]
pub struct Package<'a> {
    /// what cargo knows it by: a name, where no other package has it, or an id
    pub id: &'a str,
    /// its library's, which is the name of the file
    pub library: &'a str,
}

/// What is to be compiled.
#[derive(Debug)]
pub struct Job<'a> {
    pub workspace: &'a Path,
    /// the inner cargo's own target directory
    pub target: &'a Path,
    pub packages: &'a [Package<'a>],
    pub profile: &'a str,
    /// with the Cargo.lock that is there
    pub is_locked: bool,
    /// without cargo's progress; what it said is in the error
    pub is_quiet: bool,
}

/// The cargo that runs this, or the one in PATH.
pub fn cargo() -> Command {
    Command::new(env::var_os("CARGO").unwrap_or("cargo".into()))
}

impl Toolchain {
    /// Looks at one rustc. `host_rustc` lends its linker where the other has none.
    ///
    /// Fails with what is missing.
    pub fn of(rustc: &Path, host_rustc: &Path) -> Result<Toolchain> {
        let sysroot = sysroot(rustc).context("cannot be run")?;
        let version = stdout_of(Command::new(rustc).arg("--version")).unwrap_or_default();
        if !is_new_enough(version.split(' ').nth(1).unwrap_or_default()) {
            bail!("is {version}, and the plugins need {OLDEST}");
        }
        let has_std =
            fs::read_dir(sysroot.join("lib/rustlib").join(TARGET).join("lib")).is_ok_and(|files| {
                files.flatten().any(|f| f.file_name().to_string_lossy().starts_with("libcore-"))
            });
        let sources = sysroot.join("lib/rustlib/src/rust/library");
        let std_sources = match (has_std, sources.join("Cargo.lock").is_file()) {
            (true, _) => None,
            (false, true) => Some(sources),
            (false, false) => bail!("has neither std for {TARGET} nor the sources of std"),
        };
        let linker = if has_std && rustc == host_rustc {
            None
        } else {
            Some(find_linker(&[rustc, host_rustc]).context("there is no rust-lld or wasm-ld")?)
        };
        Ok(Toolchain { rustc: rustc.to_owned(), std_sources, linker })
    }

    /// Compiles the packages and returns a component for each, in order.
    pub fn build(&self, job: &Job<'_>) -> Result<Vec<Vec<u8>>> {
        let mut command = self.command(job);
        for package in job.packages {
            command.args(["-p", package.id]);
        }
        command.stdin(Stdio::null());
        if !job.is_quiet {
            command.stdout(Stdio::null()).stderr(Stdio::inherit());
        }
        let output = command.output().with_context(|| format!("running {command:?}"))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let names: Vec<&str> = job.packages.iter().map(|package| package.library).collect();
            bail!("compiling {} failed\n{said}", names.join(", "));
        }
        job.packages
            .iter()
            .map(|package| {
                let name = format!("{}.wasm", package.library.replace('-', "_"));
                let file = job.target.join(TARGET).join(job.profile).join(name);
                if !crate::is_wasm_file(&file) {
                    bail!("the compiler did not make {}", file.display());
                }
                let module = fs::read(&file).with_context(|| file.display().to_string())?;
                crate::componentize(&module)
                    .with_context(|| format!("wrapping {}", package.library))
            })
            .collect()
    }

    fn command(&self, job: &Job<'_>) -> Command {
        let mut command = cargo();
        for (name, _) in env::vars_os() {
            if belongs_to_outer_build(&name) {
                command.env_remove(name);
            }
        }
        command.env("RUSTC", &self.rustc);
        command.env("CARGO_ENCODED_RUSTFLAGS", self.path_remapping(job.workspace));
        if let Some(linker) = &self.linker {
            command.env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", linker);
        }
        command.current_dir(job.workspace);
        command.args(["build", "--profile", job.profile, "--target", TARGET]);
        command.args(job.is_locked.then_some("--locked"));
        command.arg("--target-dir").arg(job.target);
        // What a component needs, whatever the profile is for otherwise.
        let profile = job.profile.to_uppercase();
        for (setting, value) in COMPACT {
            command.env(format!("CARGO_PROFILE_{profile}_{setting}"), value);
        }
        if self.std_sources.is_some() {
            command.env("RUSTC_BOOTSTRAP", "1").arg("-Zbuild-std=std,panic_abort");
        }
        command
    }

    /// The same bytes wherever the checkout lies.
    fn path_remapping(&self, workspace: &Path) -> OsString {
        let mut pairs = vec![(workspace.to_owned(), "/keepwell")];
        let home = env::var_os("CARGO_HOME").map(PathBuf::from);
        let home = home.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
        pairs.extend(home.map(|home| (home, "/cargo")));
        if let Some(library) = &self.std_sources {
            let real = fs::canonicalize(library).unwrap_or_else(|_| library.clone());
            for path in [library.clone(), real] {
                pairs.extend(path.parent().map(|parent| (parent.to_owned(), "/rust")));
            }
        }
        let flags = pairs.into_iter().map(|(from, to)| {
            let mut flag = OsString::from("--remap-path-prefix=");
            flag.push(from);
            flag.push("=");
            flag.push(to);
            flag
        });
        flags.collect::<Vec<_>>().join(OsStr::new("\x1f"))
    }
}

/// Flags, wrappers (clippy, coverage) and script variables of the outer cargo must not leak in.
fn belongs_to_outer_build(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    let keep = matches!(&*name, "CARGO_HOME" | "CARGO_MAKEFLAGS" | "CARGO_INCREMENTAL")
        || ["CARGO_HTTP_", "CARGO_NET_", "CARGO_REGISTRIES_", "CARGO_REGISTRY_", "CARGO_SOURCE_"]
            .iter()
            .any(|prefix| name.starts_with(prefix));
    let outer = ["CARGO", "RUSTC", "RUSTFLAGS", "RUSTDOC", "DEP_", "__CARGO"]
        .iter()
        .any(|prefix| name.starts_with(prefix))
        || matches!(&*name, "TARGET" | "HOST" | "OUT_DIR" | "PROFILE" | "OPT_LEVEL" | "DEBUG")
        || matches!(&*name, "NUM_JOBS" | "LLVM_PROFILE_FILE");
    outer && !keep
}

fn stdout_of(command: &mut Command) -> Option<String> {
    let output = command.output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn sysroot(rustc: &Path) -> Option<PathBuf> {
    stdout_of(Command::new(rustc).args(["--print", "sysroot"])).map(PathBuf::from)
}

/// rust-lld of a toolchain at hand (rustup ships it, Debian does not), else LLVM's wasm-ld.
fn find_linker(compilers: &[&Path]) -> Option<PathBuf> {
    let bundled = compilers.iter().filter_map(|rustc| sysroot(rustc)).find_map(|root| {
        let platforms = fs::read_dir(root.join("lib/rustlib")).ok()?;
        platforms.flatten().map(|p| p.path().join("bin/rust-lld")).find(|p| p.is_file())
    });
    let path = env::var_os("PATH").unwrap_or_default();
    let names = std::iter::once("wasm-ld".to_owned())
        .chain((14..=30).rev().map(|version| format!("wasm-ld-{version}")));
    bundled.or_else(|| {
        names
            .flat_map(|name| env::split_paths(&path).map(move |dir| dir.join(&name)))
            .find(|file| file.is_file())
    })
}

/// Downloads Debian's rustc with its library sources and unpacks them into `dest`; nothing is
/// installed and no root is needed. Returns the path of the rustc.
pub(crate) fn unpack_debian(dest: &Path, tell: &dyn Fn(&str)) -> Result<PathBuf> {
    if let Some(parent) = dest.parent() {
        fs::create_dir_all(parent)?;
    }
    // Another build may be at it.
    let lock = fs::File::create(dest.with_extension("lock"))?;
    lock.lock()?;
    let rustc = dest.join("bin/rustc");
    if Toolchain::of(&rustc, &rustc).is_ok() {
        return Ok(rustc);
    }
    tell("fetching Debian's rustc-web (137 MB) to compile the plugins");
    let work = dest.with_extension("download");
    let _ = fs::remove_dir_all(&work);
    fs::create_dir_all(&work)?;
    // apt gives up root for its download user unless told otherwise; lists of our own need no root.
    let lists = work.join("lists/partial");
    fs::create_dir_all(&lists)?;
    let own_lists = format!("Dir::State::Lists={}", work.join("lists").display());
    let plain: &[&str] = &["-o", "APT::Sandbox::User=root"];
    let own: &[&str] = &["-o", "APT::Sandbox::User=root", "-o", &own_lists];
    let (options, packages) = match simulate_install(plain) {
        Some(packages) => (plain, packages),
        None => {
            let update = Command::new("apt-get").args(own).arg("update").output();
            update.context("apt-get is not here")?;
            let packages = simulate_install(own);
            (own, packages.with_context(|| format!("apt-get knows none from {OLDEST} on"))?)
        }
    };
    let download = Command::new("apt-get")
        .args(options)
        .arg("download")
        .args(&packages)
        .current_dir(&work)
        .output()?;
    if !download.status.success() {
        bail!("apt-get download failed: {}", String::from_utf8_lossy(&download.stderr).trim());
    }
    let fresh = work.join("root");
    fs::create_dir_all(&fresh)?;
    for file in fs::read_dir(&work)?.flatten().map(|entry| entry.path()) {
        if file.extension() == Some(OsStr::new("deb")) {
            unpack_package(&file, &fresh)?;
        }
    }
    write_wrapper(&fresh, dest)?;
    let _ = fs::remove_dir_all(dest);
    fs::rename(&fresh, dest)?;
    let _ = fs::remove_dir_all(&work);
    Ok(rustc)
}

/// Names of the packages that rustc-web and its sources need and that are not installed; none where
/// the lists, which may be old, know no version that is new enough.
fn simulate_install(options: &[&str]) -> Option<Vec<String>> {
    let mut command = Command::new("apt-get");
    command.args(options).args(["install", "-s", "--no-install-recommends"]);
    let text = stdout_of(command.args(["rustc-web", "rust-web-src"]))?;
    // `Inst rustc-web (1.96.0+dfsg1-1~deb12u2 Debian-Security:12/oldstable-security [amd64])`
    let packages = text.lines().filter_map(|line| line.strip_prefix("Inst ")?.split_once(" ("));
    let packages: Vec<(&str, &str)> = packages.collect();
    // An installed version stands behind the name: `rustc-web [1.85.0] (1.96.0 …`.
    let name = |(name, _): &(&str, &str)| name.split(' ').next().unwrap_or_default().to_owned();
    let new_enough = packages.iter().any(|p| name(p) == "rustc-web" && is_new_enough(p.1));
    new_enough.then(|| packages.iter().map(name).collect())
}

fn unpack_package(package: &Path, root: &Path) -> Result<()> {
    let sources = package.to_string_lossy().contains("/rust-web-src_");
    let selection: &[&str] = if sources {
        &[
            "--wildcards",
            "--no-wildcards-match-slash",
            "./usr/src/rustc-*/library",
            "./usr/lib/rustlib/src/rust",
        ]
    } else {
        &["--exclude", "./usr/share"]
    };
    let mut unpack = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(package)
        .stdout(Stdio::piped())
        .spawn()
        .context("dpkg-deb is not here")?;
    let tar = Command::new("tar")
        .args(["-x", "--no-same-owner", "-C"])
        .arg(root)
        .args(selection)
        .stdin(unpack.stdout.take().context("no pipe")?)
        .output()?;
    // Extracting a selection, tar may close the pipe before dpkg-deb has written all.
    let _ = unpack.wait()?;
    if !tar.status.success() {
        bail!("unpacking {}: {}", package.display(), String::from_utf8_lossy(&tar.stderr).trim());
    }
    Ok(())
}

/// As a word of the shell.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.to_string_lossy().replace('\'', "'\\''"))
}

/// A `bin/rustc` that finds its shared libraries where the tree will finally lie.
fn write_wrapper(fresh: &Path, dest: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let libraries = find_dir_with(&fresh.join("usr/lib"), "librustc_driver-")
        .context("the package has no librustc_driver")?;
    let libraries = dest.join(libraries.strip_prefix(fresh)?);
    let llvm = dest.join("usr/lib/x86_64-linux-gnu");
    let script = format!(
        "#!/bin/sh\nLD_LIBRARY_PATH={}:{}${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}} exec {} \"$@\"\n",
        quoted(&libraries),
        quoted(&llvm),
        quoted(&dest.join("usr/bin/rustc"))
    );
    fs::create_dir_all(fresh.join("bin"))?;
    let file = fresh.join("bin/rustc");
    fs::write(&file, script)?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

fn find_dir_with(dir: &Path, prefix: &str) -> Option<PathBuf> {
    let entries: Vec<_> = fs::read_dir(dir).ok()?.flatten().collect();
    if entries.iter().any(|e| e.file_name().to_string_lossy().starts_with(prefix)) {
        return Some(dir.to_owned());
    }
    let dirs = entries.iter().filter(|e| e.file_type().is_ok_and(|kind| kind.is_dir()));
    dirs.map(|e| e.path()).find_map(|sub| find_dir_with(&sub, prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compilers_older_than_the_workspace_asks_for_are_refused() {
        for good in [OLDEST, "1.95.0", "1.96.0+dfsg1-1~deb12u2", "2.0.0", "1.100.0-nightly"] {
            assert!(is_new_enough(good), "{good}");
        }
        for bad in ["1.85.0+dfsg3-1~deb12u3", "1.94.9", "1", "", "x.y"] {
            assert!(!is_new_enough(bad), "{bad}");
        }
    }
}
