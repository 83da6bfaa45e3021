//! The store fails at call 0, 1, 2 … until a run meets no fault; after each, what was there is there
//! and nothing half-made is seen.

use keepwell_engine::backup::{Backup, BackupTarget};
use keepwell_engine::input::Directory;
use keepwell_engine::plugin::{
    Borders, EntryKind, Failure, Origin, Source, SourceRequest, SourceSummary, Timestamp,
};
use keepwell_engine::report::Report;
use keepwell_engine::sink::{Chunking, Sink};
use keepwell_engine::snapshot::{UnverifiedManifest, find};
use keepwell_engine::{Cancel, Counters};
use keepwell_model::{BackupTime, Namespace, SnapshotId};
use keepwell_seal::Protection;
use keepwell_store::faulty::{Faulty, Fuse};
use keepwell_store::{DirStore, SessionStore, SnapshotStore};
use std::sync::Arc;

/// A source that needs no plugin: some bytes, and a catalog entry.
struct Bytes(Vec<u8>);

impl Source for Bytes {
    fn write_archive(
        &mut self,
        _: Origin,
        _: SourceRequest,
        mut sink: Sink,
    ) -> Result<SourceSummary, Failure> {
        let stream = sink.open_stream(".pxar", Chunking::ContentDefined, None)?;
        sink.catalog_open()?;
        for piece in self.0.chunks(100_000) {
            sink.write(stream, piece.to_vec())?;
        }
        sink.catalog_add(b"bytes", EntryKind::File, false, 1, Timestamp::default())?;
        Ok(SourceSummary { entries: 1 })
    }
}

fn back_up(
    store: &dyn SnapshotStore,
    time: i64,
    bytes: &[u8],
) -> Result<(), keepwell_engine::EngineError> {
    let snapshot = snapshot(time);
    let target = BackupTarget {
        namespace: Namespace::default(),
        snapshot,
        owner: "root@pam".parse().unwrap(),
        protection: Protection::None,
        chunk_bytes: Some(64 << 10),
    };
    let (report, _notices) = Report::new();
    let mut backup =
        Backup::begin(store, target, report, Cancel::default(), Arc::new(Counters::default()))?;
    let request = SourceRequest {
        archive_name: "root".into(),
        archive_extension: "pxar".into(),
        suffixes: vec![".pxar".into()],
        options: Vec::new(),
        borders: Borders::Stay,
        entries_max: 1,
        previous: Vec::new(),
    };
    let origin = Origin::Directory(Directory::open_root(std::path::Path::new("/")).unwrap());
    backup.add_archive(&mut Bytes(bytes.to_vec()), &"root".parse().unwrap(), origin, request)?;
    backup.finish().map(|_| ())
}

fn snapshot(time: i64) -> SnapshotId {
    SnapshotId { group: "host/a".parse().unwrap(), time: BackupTime::from_unix(time).unwrap() }
}

fn content(store: &DirStore, time: i64) -> Vec<u8> {
    let reader = store.open(&Namespace::default(), &snapshot(time)).unwrap();
    let manifest = UnverifiedManifest::read(&*reader).unwrap().verify(None).unwrap();
    let file = find(&manifest, &"root.pxar.didx".parse().unwrap()).unwrap();
    let archive =
        keepwell_engine::archive::ChunkedArchive::open(reader.clone(), file, None).unwrap();
    let mut out = Vec::new();
    archive.write_to(&mut out).unwrap();
    out
}

#[test]
fn every_failing_call_leaves_the_store_sound() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join(".chunks")).unwrap();
    let store = DirStore::open(dir.path()).unwrap();
    let old = crate::support::noise(1, 700_000);
    back_up(&store, 1000, &old).unwrap();
    let mut new = old.clone();
    new[300_000..300_010].copy_from_slice(b"0123456789");
    new.extend(crate::support::noise(2, 300_000));
    for at in 0.. {
        let faulty = Faulty { inner: store.clone(), fuse: Fuse::at(at) };
        let time = 2000;
        let outcome = back_up(&faulty, time, &new);
        let listed = store.snapshots(&Namespace::default(), None).unwrap();
        assert!(content(&store, 1000) == old, "call {at}");
        if outcome.is_ok() {
            assert!(!faulty.fuse.blown(), "a fault at call {at} was swallowed");
            assert!(at > 20, "{at} calls are too few to mean anything");
            assert_eq!(listed.len(), 2);
            assert!(content(&store, time) == new);
            return;
        }
        assert_eq!(listed.len(), 1, "call {at}: {outcome:?}");
        assert!(!crate::support::contains_file(&dir.path().join("host"), "tmp_"), "call {at}");
    }
}
