//! Components for tests: plugins that misbehave.

include!(concat!(env!("OUT_DIR"), "/components.rs"));
