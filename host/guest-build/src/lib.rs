//! Compiles guest crates to `wasm32-unknown-unknown` and wraps them as components.
//!
//! Used by build scripts (`host/builtin`, tests) and by `keepwell plugin build`. It finds a compiler
//! that can make wasm without touching the user's rustup, and drives it with an inner cargo in a
//! target directory of its own; for build scripts it writes `OUT_DIR/*.wasm` with an index to
//! include. It may use cargo, rustc, and where neither can make wasm, Debian's packages, unpacked
//! into a directory that the caller names.

#![allow(clippy::print_stdout, reason = "that is how build scripts speak to cargo")]

mod toolchain;

pub use toolchain::{Job, Package, TARGET, Toolchain, cargo};

use anyhow::{Context, Result, bail};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::{env, fs};

/// Where a build gets its components from.
enum Origin {
    Compiler(Toolchain),
    Ready(PathBuf),
}

/// A guest package and its directory in the workspace.
pub type Guest = (&'static str, &'static str);

/// A whole build script: [`run`], with errors as cargo shows them.
pub fn main(workspace: &Path, guests: &[Guest]) {
    let workspace = workspace.canonicalize().unwrap_or_else(|_| workspace.to_owned());
    if let Err(problem) = run(&workspace, guests) {
        println!("cargo::error={}", format!("{problem:#}").replace('\n', "\ncargo::error="));
        #[allow(clippy::exit, reason = "the end of a build script")]
        std::process::exit(1);
    }
}

/// The whole job of a build script: makes each of `guests` a component and writes
/// `OUT_DIR/<package>.wasm` and `OUT_DIR/components.rs`, which holds
/// `COMPONENTS: &[(&str, &[u8])]` in the order given.
pub fn run(workspace: &Path, guests: &[Guest]) -> Result<()> {
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").context("OUT_DIR is not set")?);
    watch_sources(workspace, guests);
    let packages: Vec<&str> = guests.iter().map(|(package, _)| *package).collect();
    let packages = &packages[..];
    // OUT_DIR = <target>/<profile>/build/<package>-<hash>/out; guests are shared by all profiles.
    let target = out_dir.ancestors().nth(4).context("OUT_DIR has an unexpected form")?;
    let components = match find_origin(target)? {
        Origin::Compiler(toolchain) => toolchain.build(&Job {
            workspace,
            target: &target.join("guest"),
            packages: &packages
                .iter()
                .map(|name| Package { id: name, library: name })
                .collect::<Vec<_>>(),
            profile: "guest",
            is_locked: true,
            is_quiet: true,
        })?,
        Origin::Ready(dir) => packages
            .iter()
            .map(|package| {
                let file = dir.join(format!("{package}.wasm"));
                fs::read(&file).with_context(|| format!("reading {}", file.display()))
            })
            .collect::<Result<_>>()?,
    };
    let mut index = String::from("pub const COMPONENTS: &[(&str, &[u8])] = &[\n");
    for (package, bytes) in packages.iter().zip(components) {
        let file = out_dir.join(format!("{package}.wasm"));
        fs::write(&file, bytes).with_context(|| format!("writing {}", file.display()))?;
        index += &format!(
            "    ({package:?}, include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{package}.wasm\"))),\n"
        );
    }
    index += "];\n";
    fs::write(out_dir.join("components.rs"), index).context("writing components.rs")
}

fn watch_sources(workspace: &Path, guests: &[Guest]) {
    for part in ["wit", "sdk", "Cargo.toml", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={}", workspace.join(part).display());
    }
    for (_, dir) in guests {
        println!("cargo::rerun-if-changed={}", workspace.join(dir).display());
    }
    for name in ["GUEST_RUSTC", "KEEPWELL_GUEST_DIR", "KEEPWELL_GUEST_TOOLCHAIN"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
}

fn find_origin(target: &Path) -> Result<Origin> {
    if let Some(dir) = env::var_os("KEEPWELL_GUEST_DIR") {
        return Ok(Origin::Ready(dir.into()));
    }
    let tell = |line: &str| println!("cargo::warning={line}");
    Ok(Origin::Compiler(find_toolchain(&target.join("guest-toolchain"), &tell)?))
}

/// A compiler for wasm: `GUEST_RUSTC`, or else the running one, one that lies in `unpacked`, the system's. Where there
/// is none, Debian's is fetched into `unpacked`, and `tell` gets a line about it.
///
/// Fails with what was tried, and what would help.
pub fn find_toolchain(unpacked: &Path, tell: &dyn Fn(&str)) -> Result<Toolchain> {
    let rustc = PathBuf::from(env::var_os("RUSTC").unwrap_or("rustc".into()));
    let mut tried = Vec::new();
    let candidates = match env::var_os("GUEST_RUSTC") {
        Some(given) => vec![PathBuf::from(given)],
        None => vec![rustc.clone(), unpacked.join("bin/rustc"), "/usr/bin/rustc".into()],
    };
    for candidate in &candidates {
        match Toolchain::of(candidate, &rustc) {
            Ok(toolchain) => return Ok(toolchain),
            Err(problem) => tried.push(format!("  {}: {problem}", candidate.display())),
        }
    }
    if env::var_os("GUEST_RUSTC").is_some() {
        bail!("GUEST_RUSTC can't be used:\n{}", tried.join("\n"));
    }
    let fetched = match env::var("KEEPWELL_GUEST_TOOLCHAIN").as_deref() {
        Ok("never") => Err(anyhow::anyhow!("KEEPWELL_GUEST_TOOLCHAIN=never forbids fetching one")),
        _ => toolchain::unpack_debian(unpacked, tell),
    };
    match fetched.and_then(|rustc_path| Toolchain::of(&rustc_path, &rustc)) {
        Ok(toolchain) => Ok(toolchain),
        Err(problem) => {
            tried.push(format!("  Debian's rustc-web: {problem:#}"));
            bail!(
                "no compiler for {TARGET}, which the plugins need:\n{}\n\
                 Install one of these and build again:\n  \
                 rustup target add {TARGET}\n  \
                 rustup component add rust-src\n  \
                 apt-get install --no-install-recommends rustc-web rust-web-src   (Debian 12)\n\
                 or set GUEST_RUSTC to a rustc that has the target or its sources,\n\
                 or, for Keepwell itself, KEEPWELL_GUEST_DIR to a directory with ready components",
                tried.join("\n")
            )
        }
    }
}

/// Wraps a core module that carries wit-bindgen's type section as a validated component.
pub fn componentize(module: &[u8]) -> Result<Vec<u8>> {
    wit_component::ComponentEncoder::default().validate(true).module(module)?.encode()
}

fn is_wasm_file(path: &Path) -> bool {
    path.extension() == Some(OsStr::new("wasm")) && path.is_file()
}
