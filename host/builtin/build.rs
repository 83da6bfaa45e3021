//! Compiles the built-in plugins and embeds their components.

use std::path::Path;

const PLUGINS: [&str; 6] =
    ["plugin-pxar", "plugin-image", "plugin-blob", "plugin-keep", "plugin-table", "plugin-json"];

fn main() {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let workspace = workspace.canonicalize().unwrap_or(workspace);
    if let Err(problem) = keepwell_guest_build::run(&workspace, &PLUGINS) {
        println!("cargo::error={}", format!("{problem:#}").replace('\n', "\ncargo::error="));
        std::process::exit(1);
    }
}
