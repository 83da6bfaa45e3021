//! Archives made to do harm: each is refused or harmless, and nothing outside of the target is
//! touched.

use crate::support::World;
use keepwell_sdk::{EntryKind, Metadata, empty_metadata};
use plugin_pxar::encode::{self, Omit};
use plugin_pxar::format::{self, GoodbyeRow};
use std::fs;

/// Builds archives that a decent encoder would not.
struct Builder {
    out: Vec<u8>,
}

impl Builder {
    fn new() -> Self {
        let mut out = Vec::new();
        let root = Metadata { mode: 0o755, ..empty_metadata(EntryKind::Directory) };
        encode::entry(&mut out, &root, Omit::default());
        Self { out }
    }

    fn entry(&mut self, name: &[u8], metadata: &Metadata) -> &mut Self {
        encode::filename(&mut self.out, name);
        encode::entry(&mut self.out, metadata, Omit::default());
        self
    }

    fn file(&mut self, name: &[u8], content: &[u8]) -> &mut Self {
        let metadata = Metadata { mode: 0o644, ..empty_metadata(EntryKind::File) };
        self.entry(name, &metadata);
        encode::header(&mut self.out, format::PAYLOAD, content.len() as u64);
        self.out.extend(content);
        self
    }

    fn directory(&mut self, name: &[u8]) -> &mut Self {
        self.entry(name, &Metadata { mode: 0o755, ..empty_metadata(EntryKind::Directory) })
    }

    fn symlink(&mut self, name: &[u8], target: &[u8]) -> &mut Self {
        let link_target = Some(target.to_vec());
        self.entry(name, &Metadata { link_target, ..empty_metadata(EntryKind::Symlink) })
    }

    fn hard_link(&mut self, name: &[u8], target: &[u8]) -> &mut Self {
        encode::filename(&mut self.out, name);
        encode::hard_link(&mut self.out, 1, target);
        self
    }

    fn end(&mut self) -> &mut Self {
        let position = self.out.len() as u64;
        encode::goodbye(&mut self.out, Vec::<GoodbyeRow>::new(), 0, position);
        self
    }
}

/// Extracts, with everything allowed; returns what was said and whether it succeeded.
fn extract(world: &World, archive: &Builder) -> crate::support::Run {
    fs::create_dir_all(world.path("inside")).unwrap();
    world.write("hostile.pxar", &archive.out);
    let run = world.run([
        "pxar",
        "extract",
        "hostile.pxar",
        "inside/out",
        "--allow-existing-dirs",
        "--overwrite",
    ]);
    assert!(!run.stderr.contains("thread '"), "{}", run.stderr);
    let outside: Vec<String> = fs::read_dir(world.path("inside"))
        .unwrap()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    assert!(outside.iter().all(|name| name == "out"), "{outside:?}");
    run
}

#[test]
fn names_that_lead_outside_are_refused() {
    for name in [&b".."[..], b".", b"../x", b"/etc/x", b"a/b", b"x\0y", b""] {
        let world = World::new();
        let run = extract(&world, Builder::new().file(name, b"evil").end());
        run.assert_failed("hostile name");
        assert!(!world.path("x").exists() && !world.path("inside/x").exists());
    }
}

#[test]
fn links_do_not_lead_outside() {
    let world = World::new();
    world.write("secret", b"untouched");
    let mut archive = Builder::new();
    // Write through a link, make a directory of a link, and link to what is outside.
    archive.symlink(b"link", b"../../secret").file(b"link", b"evil").end();
    let run = extract(&world, &archive);
    run.assert_failed("two entries of one name");
    run.says("the archive has two entries of this name");
    assert!(world.path("inside/out/link").is_symlink());
    assert_eq!(fs::read(world.path("secret")).unwrap(), b"untouched");
    fs::remove_dir_all(world.path("inside/out")).unwrap();
    let mut archive = Builder::new();
    archive.symlink(b"dir", b"../..").directory(b"dir").file(b"secret", b"evil").end().end();
    extract(&world, &archive).assert_failed("directory over link");
    for target in [&b"../../secret"[..], b"/etc/passwd", b"dir/secret", b"dir/../../secret"] {
        let mut archive = Builder::new();
        archive.symlink(b"dir", b"../..").hard_link(b"hard", target).end();
        extract(&world, &archive).assert_failed("hard link outside");
        assert!(!world.path("inside/out/hard").exists());
    }
    assert_eq!(fs::read(world.path("secret")).unwrap(), b"untouched");
}

#[test]
fn duplicate_names_do_not_replace_unasked() {
    let world = World::new();
    world.write(
        "hostile.pxar",
        &Builder::new().file(b"a", b"first").file(b"a", b"second").end().out,
    );
    world.fails("pxar extract hostile.pxar out").says("\"a\"");
    assert_eq!(fs::read(world.path("out/a")).unwrap(), b"first");
}

#[test]
fn claims_of_huge_sizes_cost_nothing() {
    let world = World::new();
    let mut archive = Builder::new();
    archive.entry(b"huge", &Metadata { mode: 0o644, ..empty_metadata(EntryKind::File) });
    encode::header(&mut archive.out, format::PAYLOAD, 1 << 60);
    archive.out.extend(b"little");
    extract(&world, &archive).assert_failed("huge file");
    let mut archive = Builder::new();
    encode::header(&mut archive.out, format::FILENAME, 1 << 40);
    extract(&world, &archive).assert_failed("huge name");
    let mut archive = Builder::new();
    encode::filename(&mut archive.out, b"x");
    archive.out.extend([0xff; 32]);
    extract(&world, &archive).assert_failed("garbage");
    world.write("hostile.pxar", b"");
    world.fails("pxar extract hostile.pxar out").says("the archive ends in the middle of an entry");
    world.write("hostile.pxar", b"not an archive at all, but long enough to hold a header");
    world.fails("pxar list hostile.pxar").says("pxar archive, byte 0");
}

#[test]
fn endless_nesting_is_refused() {
    let world = World::new();
    let mut archive = Builder::new();
    for _ in 0..100_000 {
        archive.directory(b"d");
    }
    extract(&world, &archive).assert_failed("nesting");
}
