//! Components for tests: plugins that misbehave, and the examples.

include!(concat!(env!("OUT_DIR"), "/components.rs"));
