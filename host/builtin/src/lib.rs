//! The built-in plugins as components, ready to be loaded. Nothing but bytes: this crate changes
//! only when a plugin does, so that editing the host never compiles guests.

include!(concat!(env!("OUT_DIR"), "/components.rs"));
