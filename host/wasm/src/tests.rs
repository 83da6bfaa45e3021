//! What plugins are made of is found, and what they do wrong ends in one line.

use super::*;
use keepwell_engine::plugin::{OptionValue, PolicySnapshot};
use std::time::Instant;

fn runtime(limits: Limits) -> Runtime {
    Runtime::new(None, limits, None).unwrap()
}

#[test]
fn roles_are_read_from_exports() {
    let runtime = runtime(Limits::default());
    let infos: Vec<PluginInfo> = keepwell_builtin::COMPONENTS
        .iter()
        .map(|(name, bytes)| runtime.plugin(name, bytes).info().unwrap())
        .collect();
    let roles: Vec<(&str, [bool; 4])> = infos
        .iter()
        .map(|info| {
            let roles = [info.is_source, info.is_reader, info.is_retention, info.is_formatter];
            (info.name.as_str(), roles)
        })
        .collect();
    let archive = [true, true, false, false];
    let formatter = [false, false, false, true];
    assert_eq!(
        roles,
        [
            ("pxar", archive),
            ("image", archive),
            ("blob", archive),
            ("keep", [false, false, true, false]),
            ("table", formatter),
            ("json", formatter),
        ]
    );
    assert_eq!(infos[3].options.len(), 6);
    assert_eq!(infos[5].formats, ["json", "json-pretty"]);
}

/// What the hostile policy makes of one snapshot.
fn decide(mode: &str, limits: Limits) -> Result<usize, Failure> {
    let (_, bytes) = keepwell_test_guests::COMPONENTS[0];
    let snapshot = PolicySnapshot {
        taken: 1,
        utc_offset_seconds: 0,
        finished: true,
        protected: false,
        size: None,
        verified: None,
        notes: String::new(),
        archives: Vec::new(),
    };
    let options = vec![OptionValue { name: "mode".into(), value: mode.as_bytes().to_vec() }];
    let mut policy = runtime(limits).plugin("hostile", bytes).retention().unwrap();
    policy.decide(0, vec![snapshot.clone(), snapshot], options).map(|decisions| decisions.len())
}

fn trapped(mode: &str, limits: Limits) -> String {
    let failure = decide(mode, limits).unwrap_err();
    let text = failure.to_string();
    assert!(matches!(failure, Failure::Trap { .. }), "{mode}: {text}");
    assert!(text.starts_with("plugin 'hostile' failed: "), "{text}");
    assert!(!text.contains('\n'), "one line: {text}");
    text
}

#[test]
fn a_panic_is_shown_with_its_message() {
    let text = trapped("panic", Limits::default());
    assert!(text.contains("it panicked") && text.contains("a deliberate panic"), "{text}");
}

#[test]
fn endless_work_is_stopped() {
    let limits = Limits { call_time_max: Duration::from_millis(200), ..Limits::default() };
    let started = Instant::now();
    assert!(trapped("loop", limits).contains("it ran for more than 0.2 seconds"));
    assert!(started.elapsed() < Duration::from_secs(60), "it was not stopped by its end");
}

#[test]
fn memory_has_a_cap() {
    let limits = Limits { memory_bytes_max: 16 << 20, ..Limits::default() };
    trapped("memory", limits);
}

#[test]
fn recursion_has_an_end() {
    trapped("recurse", Limits::default());
}

#[test]
fn failures_are_no_traps() {
    let failure = decide("fail", Limits::default()).unwrap_err();
    assert_eq!(failure, Failure::Invalid("it does not want to".into()));
    assert_eq!(decide("", Limits::default()), Ok(2));
    let few = decide("few", Limits::default()).unwrap_err();
    assert_eq!(few.to_string(), "the policy made 1 decisions for 2 snapshots");
}

#[test]
fn what_is_no_component_is_refused() {
    for bytes in [&b""[..], b"garbage", b"\0asm\x01\0\0\0"] {
        let refused = runtime(Limits::default()).plugin("broken", bytes).info().unwrap_err();
        assert!(refused.to_string().contains("plugin 'broken'"), "{refused}");
    }
}

#[test]
fn choices_are_of_texts_and_the_default_is_one() {
    let info = keepwell_builtin::COMPONENTS.iter().find(|(name, _)| name.ends_with("pxar"));
    let (name, bytes) = info.unwrap();
    let info = runtime(Limits::default()).plugin(name, bytes).info().unwrap();
    let mode = info.options.iter().position(|option| !option.choices.is_empty()).unwrap();
    let changed = |change: &dyn Fn(&mut OptionSpec)| {
        let mut info = info.clone();
        change(&mut info.options[mode]);
        info.check()
    };
    assert_eq!(changed(&|_| {}), Ok(()));
    assert_eq!(changed(&|option| option.defaults.clear()), Ok(()));
    assert!(changed(&|option| option.defaults = vec!["other".into()]).is_err());
    assert!(changed(&|option| option.kind = OptionKind::Size).is_err());
    assert!(changed(&|option| option.choices.push("a\nb".into())).is_err());
}

/// What ends up in terminals, where people decide by it, is what it seems to be.
#[test]
fn descriptions_are_checked() {
    let info = |change: &dyn Fn(&mut PluginInfo)| {
        let mut info = convert::info("a".into(), "1".into(), "b".into(), Vec::new(), Vec::new());
        change(&mut info);
        info.check()
    };
    info(&|_| {}).unwrap();
    let asks = |capability: Capability| info(&|info| info.capabilities = vec![capability.clone()]);
    use Capability::{Environment, Http, Read, Run, Scratch};
    for right in [
        Read("*".into()),
        Read("/etc".into()),
        Run("pg_dump".into()),
        Environment("LANG".into()),
        Http("[::1]:80".into()),
        Http("*".into()),
        Scratch(u64::MAX),
    ] {
        asks(right).unwrap();
    }
    for wrong in [
        Environment("LANG\ngranted:  nothing".into()),
        Environment("A=B".into()),
        Run("a\u{202e}b".into()),
        Run("\u{1b}[8m".into()),
        Run(String::new()),
        Read("relative/../x".into()),
        Http("http://x/".into()),
        Scratch(0),
    ] {
        assert!(asks(wrong.clone()).is_err(), "{wrong:?}");
    }
    let option = |name: &str| OptionSpec {
        name: name.into(),
        kind: OptionKind::Text,
        help: "help".into(),
        repeatable: false,
        defaults: Vec::new(),
        minimum: None,
        choices: Vec::new(),
    };
    info(&|info| info.options = vec![option("a"), option("b")]).unwrap();
    assert!(info(&|info| info.options = vec![option("a"), option("a")]).is_err());
    assert!(info(&|info| info.summary = "a\u{200b}".into()).is_err());
}

/// What a reader says of an entry has to be possible.
#[test]
fn entries_are_checked() {
    use crate::bindings::archive::exports::keepwell::archive::reader as given;
    use crate::bindings::archive::keepwell::types::types as wit;
    let file = || given::Entry {
        name: b"a".to_vec(),
        node: given::Node { at: 1, end: 2 },
        metadata: wit::Metadata {
            kind: wit::EntryKind::File,
            mode: 0o644,
            owner: 0,
            group: 0,
            modified: wit::Timestamp { seconds: 0, nanoseconds: 0 },
            size: 0,
            inode_flags: 0,
            fat_attributes: 0,
            project: None,
            device: None,
            link_target: None,
            extended: Vec::new(),
        },
        content: given::Content::None,
    };
    let changed = |change: &dyn Fn(&mut given::Entry)| {
        let mut entry = file();
        change(&mut entry);
        convert::event(given::Event::Leaf(entry))
    };
    changed(&|_| {}).unwrap();
    changed(&|entry| {
        entry.metadata.kind = wit::EntryKind::Symlink;
        entry.metadata.link_target = Some(b"b".to_vec());
    })
    .unwrap();
    for (what, change) in [
        ("content", (|entry| entry.metadata.size = 1) as fn(&mut given::Entry)),
        ("target", |entry| entry.metadata.kind = wit::EntryKind::Symlink),
        ("directory", |entry| entry.metadata.kind = wit::EntryKind::Directory),
        ("name", |entry| entry.name = b"..".to_vec()),
    ] {
        let refused = changed(&change).unwrap_err().to_string();
        assert!(refused.contains(what), "{what}: {refused}");
    }
    let entered = convert::event(given::Event::Enter(file()));
    assert!(entered.unwrap_err().to_string().contains("entered and no directory"));
}
