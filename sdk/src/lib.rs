//! What a plugin author imports: the contract's types, one trait per role, one export macro per
//! world. A plugin uses this crate and nothing else of Keepwell.
//!
//! A plugin crate has `crate-type = ["cdylib", "rlib"]`: the first is the component, the second
//! lets unit tests run natively with plain structs. The export macros expand to something only for
//! wasm, because the names of exports do not link natively.

#![allow(clippy::too_many_arguments, reason = "bindings mirror the contract")]

#[allow(
    unsafe_code,
    missing_docs,
    unreachable_pub,
    clippy::all,
    reason = "generated: the lifting and lowering of the component model"
)]
mod bindings {
    pub mod archive {
        wit_bindgen::generate!({
            path: ["../wit/types", "../wit/archive"],
            world: "keepwell:archive/archive-plugin",
            generate_all,
            pub_export_macro: true,
            export_macro_name: "export_bindings",
            default_bindings_module: "keepwell_sdk::archive_bindings",
        });
    }
    pub mod retention {
        wit_bindgen::generate!({
            path: ["../wit/types", "../wit/retention"],
            world: "keepwell:retention/retention-policy",
            pub_export_macro: true,
            export_macro_name: "export_bindings",
            default_bindings_module: "keepwell_sdk::retention_bindings",
            with: {
                "keepwell:types/types@0.1.0": super::archive::keepwell::types::types,
                "keepwell:types/log@0.1.0": super::archive::keepwell::types::log,
            },
            generate_all,
        });
    }
    pub mod formatter {
        wit_bindgen::generate!({
            path: ["../wit/types", "../wit/formatter"],
            world: "keepwell:formatter/output-formatter",
            pub_export_macro: true,
            export_macro_name: "export_bindings",
            default_bindings_module: "keepwell_sdk::formatter_bindings",
            with: {
                "keepwell:types/types@0.1.0": super::archive::keepwell::types::types,
                "keepwell:types/log@0.1.0": super::archive::keepwell::types::log,
            },
            generate_all,
        });
    }
}

#[doc(hidden)]
pub use bindings::{
    archive as archive_bindings, formatter as formatter_bindings, retention as retention_bindings,
};

pub mod archive;
pub mod formatter;
pub mod options;
pub mod retention;
pub mod single;

pub use bindings::archive::keepwell::types::log::Level;
pub use bindings::archive::keepwell::types::types::{
    Capability, EntryKind, ExtendedAttribute, Failure, Metadata, OptionKind, OptionSpec,
    OptionValue, Timestamp,
};

/// The metadata of an entry of which only the kind is known.
pub fn empty_metadata(kind: EntryKind) -> Metadata {
    Metadata {
        kind,
        mode: 0,
        owner: 0,
        group: 0,
        modified: Timestamp { seconds: 0, nanoseconds: 0 },
        size: 0,
        inode_flags: 0,
        fat_attributes: 0,
        project: None,
        device: None,
        link_target: None,
        extended: Vec::new(),
    }
}

/// A line for the user.
pub fn log(level: Level, message: &str) {
    #[cfg(target_family = "wasm")]
    bindings::archive::keepwell::types::log::write(level, message);
    #[cfg(not(target_family = "wasm"))]
    let _ = (level, message);
}

/// Sends the message of a panic to the host before the trap; called by the export macros' adapters.
#[doc(hidden)]
pub fn install_panic_hook() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        if cfg!(target_family = "wasm") {
            std::panic::set_hook(Box::new(|info| log(Level::Warning, &format!("panic: {info}"))));
        }
    });
}
