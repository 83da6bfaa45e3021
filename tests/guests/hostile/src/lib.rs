//! A retention policy that does what its option `mode` says, none of it good.

use keepwell_sdk::options::{option, value};
use keepwell_sdk::retention::{Decision, Info, Plugin, Policy, Snapshot, Verdict};
use keepwell_sdk::{Failure, OptionKind, OptionValue};

pub struct Hostile;

impl Plugin for Hostile {
    fn describe() -> Info {
        Info {
            name: "hostile".into(),
            version: "0.0.0".into(),
            summary: "Misbehaves".into(),
            options: vec![option("mode", OptionKind::Text, "How to misbehave")],
            capabilities: Vec::new(),
        }
    }
}

#[allow(unconditional_recursion, reason = "that is its purpose")]
fn recurse(depth: u64) -> u64 {
    // Not a loop in disguise: something is left to do after the call.
    std::hint::black_box(recurse(std::hint::black_box(depth + 1))) + depth
}

impl Policy for Hostile {
    fn decide(
        _now: i64,
        snapshots: Vec<Snapshot>,
        options: Vec<OptionValue>,
    ) -> Result<Vec<Decision>, Failure> {
        let remove = Decision { verdict: Verdict::Remove, reason: "because".into() };
        match value(&options, "mode").unwrap_or_default() {
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
            b"recurse" => Err(Failure::Other(recurse(0).to_string())),
            b"fail" => Err(Failure::Invalid("it does not want to".into())),
            b"few" => Ok(vec![remove]),
            _ => Ok(snapshots.iter().map(|_| remove.clone()).collect()),
        }
    }
}

keepwell_sdk::export_retention_policy!(Hostile);
