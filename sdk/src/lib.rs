//! What a plugin author imports: the contract's types, one trait per role, one export macro per
//! world. A plugin uses this crate and nothing else of Keepwell.
//!
//! | a plugin that | implements | and ends with |
//! |---|---|---|
//! | says which snapshots to keep | [`retention::Plugin`], [`retention::Policy`] | [`export_retention_policy!`] |
//! | prints results | [`formatter::Plugin`], [`formatter::Formatter`] | [`export_output_formatter!`] |
//! | makes archives | [`archive::Plugin`], [`archive::Source`] | [`export_archive_source!`] |
//! | looks into archives | [`archive::Plugin`], [`archive::Reader`] | [`export_archive_reader!`] |
//! | does both | all three | [`export_archive_plugin!`] |
//!
//! One component may have several of these roles. A whole policy:
//!
//! ```
//! use keepwell_sdk::options::NoOptions;
//! use keepwell_sdk::retention::{Decision, Info, Plugin, Policy, Snapshot, Verdict};
//! use keepwell_sdk::Failure;
//!
//! pub struct KeepAll;
//!
//! impl Plugin for KeepAll {
//!     fn describe() -> Info {
//!         Info {
//!             name: "keep-all".into(),
//!             version: "0.1.0".into(),
//!             summary: "Keeps everything".into(),
//!             options: vec![],
//!             capabilities: vec![],
//!         }
//!     }
//! }
//!
//! impl Policy for KeepAll {
//!     type Options = NoOptions;
//!
//!     fn decide(_: i64, snapshots: Vec<Snapshot>, _: NoOptions) -> Result<Vec<Decision>, Failure> {
//!         let keep = Decision { verdict: Verdict::Keep, reason: "all".into() };
//!         Ok(vec![keep; snapshots.len()])
//!     }
//! }
//!
//! keepwell_sdk::export_retention_policy!(KeepAll);
//! # fn main() {}
//! ```
//!
//! - **Options** that a plugin declares become flags; serde reads what was given into a struct: [`options`].
//! - **Failures** are values: [`Failure`]. A panic ends the plugin, and its message is shown as one line.
//! - **Capabilities** ([`Capability`]) are what a source may do besides reading what the user named: it asks for them in its
//!   description, the administrator grants them in `config.toml`, and [`archive::paths`], [`archive::commands`],
//!   [`archive::web`], [`archive::scratch`] and [`archive::surroundings`] use them. Without both they fail with
//!   [`Failure::Denied`].
//! - **Tests** run natively with plain structs; what comes from the host alone (directories, files, streams that are
//!   written) does not work there, but a reader's [`archive::Bytes`] can be made of a `Vec<u8>`. [`testing`] tries the
//!   component in a real host.
//! - **The component** is made by `keepwell plugin build`. A plugin crate has `crate-type = ["cdylib", "rlib"]`: the first is
//!   the component, the second lets unit tests run natively. The export macros expand to something only for wasm, because
//!   the names of exports do not link natively.

#![allow(clippy::too_many_arguments, reason = "bindings mirror the contract")]

#[doc(hidden)]
#[allow(
    unsafe_code,
    missing_docs,
    unreachable_pub,
    clippy::all,
    reason = "generated: the lifting and lowering of the component model"
)]
pub mod bindings {
    // Archives are three worlds of one interface each, so that a plugin exports what it has.
    pub mod archive_source {
        wit_bindgen::generate!({
            path: ["../wit/types", "../wit/archive"],
            inline: "
                package keepwell:sdk-source;
                world only-source {
                    import keepwell:types/log@0.1.0;
                    import keepwell:archive/filesystem@0.1.0;
                    import keepwell:archive/patterns@0.1.0;
                    import keepwell:archive/archive-sink@0.1.0;
                    import keepwell:archive/random-access@0.1.0;
                    import keepwell:archive/paths@0.1.0;
                    import keepwell:archive/commands@0.1.0;
                    import keepwell:archive/scratch@0.1.0;
                    import keepwell:archive/surroundings@0.1.0;
                    import keepwell:archive/web@0.1.0;
                    export keepwell:archive/source@0.1.0;
                }
            ",
            world: "only-source",
            generate_all,
            pub_export_macro: true,
            export_macro_name: "export_bindings",
            default_bindings_module: "keepwell_sdk::bindings::archive_source",
            additional_derives: [PartialEq],
            // They hold handles.
            additional_derives_ignore: ["request", "origin", "opened", "argument"],
        });
    }
    pub mod archive_about {
        wit_bindgen::generate!({
            path: ["../wit/types", "../wit/archive"],
            inline: "
                package keepwell:sdk-about;
                world only-about { export keepwell:archive/about@0.1.0; }
            ",
            world: "only-about",
            pub_export_macro: true,
            export_macro_name: "export_bindings",
            default_bindings_module: "keepwell_sdk::bindings::archive_about",
            additional_derives: [PartialEq],
            with: { "keepwell:types/types@0.1.0": super::archive_source::keepwell::types::types },
            generate_all,
        });
    }
    pub mod archive_reader {
        wit_bindgen::generate!({
            path: ["../wit/types", "../wit/archive"],
            inline: "
                package keepwell:sdk-reader;
                world only-reader {
                    import keepwell:archive/random-access@0.1.0;
                    export keepwell:archive/reader@0.1.0;
                }
            ",
            world: "only-reader",
            pub_export_macro: true,
            export_macro_name: "export_bindings",
            default_bindings_module: "keepwell_sdk::bindings::archive_reader",
            additional_derives: [PartialEq],
            with: {
                "keepwell:types/types@0.1.0": super::archive_source::keepwell::types::types,
                "keepwell:archive/filesystem@0.1.0": super::archive_source::keepwell::archive::filesystem,
                "keepwell:archive/archive-sink@0.1.0": super::archive_source::keepwell::archive::archive_sink,
                "keepwell:archive/random-access@0.1.0": super::archive_source::keepwell::archive::random_access,
            },
            generate_all,
        });
    }
    pub mod retention {
        wit_bindgen::generate!({
            path: ["../wit/types", "../wit/retention"],
            world: "keepwell:retention/retention-policy",
            pub_export_macro: true,
            export_macro_name: "export_bindings",
            default_bindings_module: "keepwell_sdk::bindings::retention",
            additional_derives: [PartialEq],
            with: {
                "keepwell:types/types@0.1.0": super::archive_source::keepwell::types::types,
                "keepwell:types/log@0.1.0": super::archive_source::keepwell::types::log,
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
            default_bindings_module: "keepwell_sdk::bindings::formatter",
            additional_derives: [PartialEq],
            with: {
                "keepwell:types/types@0.1.0": super::archive_source::keepwell::types::types,
                "keepwell:types/log@0.1.0": super::archive_source::keepwell::types::log,
            },
            generate_all,
        });
    }
}

pub mod archive;
pub mod formatter;
pub mod options;
pub mod retention;
pub mod single;
#[cfg(not(target_family = "wasm"))]
pub mod testing;

pub use bindings::archive_source::keepwell::types::log::Level;
pub use bindings::archive_source::keepwell::types::types::{
    Capability, EntryKind, ExtendedAttribute, Failure, Metadata, OptionKind, OptionSpec,
    OptionValue, Timestamp,
};

impl Failure {
    /// What it says, without its kind.
    pub fn text(&self) -> &str {
        match self {
            Self::NotFound(text) | Self::Denied(text) | Self::Invalid(text) => text,
            Self::Unsupported(text) | Self::Corrupt(text) | Self::Io(text) | Self::Other(text) => {
                text
            }
            Self::Cancelled => "cancelled",
        }
    }
}

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
    bindings::archive_source::keepwell::types::log::write(level, message);
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
