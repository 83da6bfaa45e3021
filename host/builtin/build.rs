//! Compiles the built-in plugins and embeds their components.

use std::path::Path;

fn main() {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let guests = [
        ("plugin-pxar", "plugins/pxar"),
        ("plugin-image", "plugins/image"),
        ("plugin-blob", "plugins/blob"),
        ("plugin-keep", "plugins/keep"),
        ("plugin-table", "plugins/table"),
        ("plugin-json", "plugins/json"),
    ];
    keepwell_guest_build::main(&workspace, &guests);
}
