//! A plugin of all kinds that does what its option `mode` says, none of it good. Its archives hold the mode of its
//! reader, and its output formats are modes as well.

mod reader;
mod source;

use keepwell_sdk::options::{NoOptions, option};
use keepwell_sdk::retention::{Decision, Policy, Snapshot, Verdict};
use keepwell_sdk::{Failure, OptionKind, OptionSpec, formatter, retention};
use serde::Deserialize;

pub struct Hostile;

#[derive(Deserialize)]
pub struct Options {
    #[serde(default)]
    mode: String,
}

fn mode() -> Vec<OptionSpec> {
    vec![option("mode", OptionKind::Text, "How to misbehave")]
}

impl retention::Plugin for Hostile {
    fn describe() -> retention::Info {
        retention::Info {
            name: "hostile".into(),
            version: "0.0.0".into(),
            summary: "Misbehaves".into(),
            options: mode(),
            capabilities: Vec::new(),
        }
    }
}

#[allow(unconditional_recursion, reason = "that is its purpose")]
fn recurse(depth: u64) -> u64 {
    // Not a loop in disguise: something is left to do after the call.
    std::hint::black_box(recurse(std::hint::black_box(depth + 1))) + depth
}

/// What every kind of plugin can do.
fn misbehave(mode: &[u8]) {
    match mode {
        b"panic" => panic!("a deliberate panic\nwith two lines"),
        b"loop" => loop {
            std::hint::black_box(0);
        },
        b"memory" => {
            let mut hoard: Vec<Vec<u8>> = Vec::new();
            loop {
                hoard.push(vec![1; 1 << 20]);
                std::hint::black_box(&hoard);
            }
        }
        b"recurse" => {
            recurse(0);
        }
        b"flood" => {
            for _ in 0..1_000_000 {
                keepwell_sdk::log(keepwell_sdk::Level::Info, &"flood ".repeat(2000));
            }
        }
        _ => {}
    }
}

impl Policy for Hostile {
    type Options = Options;

    fn decide(
        _now: i64,
        snapshots: Vec<Snapshot>,
        options: Options,
    ) -> Result<Vec<Decision>, Failure> {
        let mode = options.mode.as_bytes();
        misbehave(mode);
        let remove = Decision { verdict: Verdict::Remove, reason: "because".into() };
        match mode {
            b"fail" => Err(Failure::Invalid("it does not want to".into())),
            b"few" => Ok(vec![remove]),
            b"many" => Ok(vec![remove; 1_000_000]),
            _ => Ok(snapshots.iter().map(|_| remove.clone()).collect()),
        }
    }
}

const FORMATS: [&str; 6] = ["panic", "loop", "memory", "recurse", "flood", "gigabytes"];

impl formatter::Plugin for Hostile {
    fn describe() -> formatter::Info {
        formatter::Info {
            name: "hostile".into(),
            version: "0.0.0".into(),
            summary: "Misbehaves".into(),
            options: Vec::new(),
            capabilities: Vec::new(),
            formats: FORMATS.map(Into::into).into(),
        }
    }
}

impl formatter::Formatter for Hostile {
    type Options = NoOptions;

    fn render(
        _: formatter::Document,
        environment: formatter::Environment,
        _: NoOptions,
    ) -> Result<Vec<u8>, Failure> {
        misbehave(environment.format.as_bytes());
        Ok(vec![b'x'; 200 << 20])
    }
}

keepwell_sdk::export_archive_plugin!(Hostile);
keepwell_sdk::export_retention_policy!(Hostile);
keepwell_sdk::export_output_formatter!(Hostile);
