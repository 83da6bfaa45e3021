//! End-to-end tests: one module for each capability, driving the real binary.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that fails should say where")]
#![allow(unreachable_pub, reason = "modules of one test binary")]
#![allow(clippy::print_stderr, reason = "a test that skips says so")]

mod backup;
mod bad_input;
mod contract;
mod corpus;
mod crash;
mod damage;
mod diff;
mod encryption;
mod extract;
mod faults;
mod find;
mod garbage;
mod golden;
mod hostile;
mod interrupt;
mod keys;
mod manage;
mod mount;
mod plugins;
mod pxar_tool;
mod roundtrip;
mod served;
mod server;
mod shell;
mod split;
mod support;
mod terminal;
mod tutorials;
mod verify;
mod wire;
