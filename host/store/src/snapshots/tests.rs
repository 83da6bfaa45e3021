//! What a directory store promises.

use super::*;
use crate::{IndexLayout, conformance};
use keepwell_model::BlobKind;

fn store() -> (tempfile::TempDir, DirStore) {
    let dir = tempfile::tempdir().unwrap();
    // Two directories of chunks instead of 65536: the rest is made when needed.
    fs::create_dir(dir.path().join(".chunks")).unwrap();
    let store = DirStore::open(dir.path()).unwrap();
    (dir, store)
}

fn snapshot(time: i64) -> SnapshotId {
    SnapshotId { group: "host/a".parse().unwrap(), time: BackupTime::from_unix(time).unwrap() }
}

fn manifest() -> Blob {
    Blob::seal(BlobKind::Plain, vec![0; 14]).unwrap()
}

fn back_up(store: &DirStore, time: i64) {
    let session = store.begin(&Namespace::default(), &snapshot(time), "root@pam").unwrap();
    session.finish(&manifest()).unwrap();
}

#[test]
fn a_directory_conforms() {
    conformance::run(store().1.chunks());
}

#[test]
fn memory_conforms() {
    conformance::run(&crate::MemoryChunks::default());
}

#[test]
fn a_new_store_has_all_directories() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("deep/store");
    assert!(DirStore::can_create(&root));
    DirStore::create(&root).unwrap();
    assert!(!DirStore::can_create(&root));
    assert_eq!(fs::read_dir(root.join(".chunks")).unwrap().count(), 65_536);
    conformance::run(DirStore::open(&root).unwrap().chunks());
}

#[test]
fn a_smaller_existing_chunk_wins_and_a_damaged_one_does_not() {
    let (dir, store) = store();
    let big = conformance::chunk(9, &[5; 100]);
    let small = conformance::chunk(9, &[5; 50]);
    let path = Layout::new(dir.path().to_owned()).chunk(&big.digest);
    store.chunks().insert(&small).unwrap();
    assert!(store.chunks().insert(&big).unwrap().known);
    assert_eq!(fs::read(&path).unwrap(), small.parts().concat());
    // cut off by a power cut
    fs::write(&path, &small.parts().concat()[..30]).unwrap();
    assert!(!store.chunks().insert(&big).unwrap().known);
    assert_eq!(fs::read(&path).unwrap(), big.parts().concat());
    // bigger than the new one, and empty
    assert!(!store.chunks().insert(&small).unwrap().known);
    fs::write(&path, b"").unwrap();
    assert!(store.chunks().touch(&small.digest, 50).unwrap().is_none());
    assert!(!store.chunks().insert(&small).unwrap().known);
    // the same size is never looked at
    let mut other = small.parts().concat();
    other[20] ^= 1;
    fs::write(&path, &other).unwrap();
    assert!(store.chunks().insert(&small).unwrap().known);
    assert_eq!(fs::read(&path).unwrap(), other);
    let names = fs::read_dir(path.parent().unwrap()).unwrap().count();
    assert_eq!(names, 1, "no temporary file remains");
}

#[test]
fn a_snapshot_appears_only_when_finished() {
    let (dir, store) = store();
    let root = Namespace::default();
    let session = store.begin(&root, &snapshot(1000), "root@pam").unwrap();
    let mut index =
        session.create_index(&"a.pxar.didx".parse().unwrap(), IndexLayout::Dynamic).unwrap();
    let stored = index.chunks().insert(&conformance::chunk(1, b"x")).unwrap();
    index.append(&stored).unwrap();
    assert_eq!(index.finish().unwrap().size, 1);
    assert!(store.snapshots(&root, None).unwrap().is_empty());
    drop(session);
    assert!(store.groups(&root).unwrap().is_empty());
    assert!(!dir.path().join("host/a").exists(), "nothing remains of a failed first backup");
    back_up(&store, 1000);
    let list = store.snapshots(&root, None).unwrap();
    assert_eq!(list.len(), 1);
    assert_eq!(list[0].owner, "root@pam");
    assert_eq!(list[0].manifest.as_deref(), Some(manifest().as_bytes()));
}

#[test]
fn time_goes_forward_and_backups_take_turns() {
    let (_dir, store) = store();
    let root = Namespace::default();
    back_up(&store, 1000);
    for time in [999, 1000] {
        let refused = store.begin(&root, &snapshot(time), "root@pam");
        assert!(matches!(refused, Err(StoreError::TooOld { .. })));
    }
    let session = store.begin(&root, &snapshot(1001), "root@pam").unwrap();
    assert_eq!(session.previous().unwrap().snapshot(), &snapshot(1000));
    let second = store.begin(&root, &snapshot(1002), "root@pam");
    assert!(matches!(second, Err(StoreError::Locked { .. })));
    let forget = store.forget(&root, &snapshot(1000));
    assert!(matches!(forget, Err(StoreError::Locked { .. })), "a base can't be removed");
    drop(session);
    store.forget(&root, &snapshot(1000)).unwrap();
}

#[test]
fn protected_snapshots_stay() {
    let (_dir, store) = store();
    let root = Namespace::default();
    back_up(&store, 1000);
    store.set_protected(&root, &snapshot(1000), true).unwrap();
    assert!(matches!(store.forget(&root, &snapshot(1000)), Err(StoreError::Protected { .. })));
    store.set_protected(&root, &snapshot(1000), false).unwrap();
    let reader = store.open(&root, &snapshot(1000)).unwrap();
    assert!(matches!(store.forget(&root, &snapshot(1000)), Err(StoreError::Locked { .. })));
    drop(reader);
    store.forget(&root, &snapshot(1000)).unwrap();
    let missing = store.forget(&root, &snapshot(1000));
    assert!(matches!(missing, Err(StoreError::SnapshotMissing { .. })));
}

#[test]
fn namespaces_need_their_parents_and_keep_their_groups() {
    let (_dir, store) = store();
    let (a, deep): (Namespace, Namespace) = ("a".parse().unwrap(), "a/b".parse().unwrap());
    assert!(store.create_namespace(&deep).is_err());
    store.create_namespace(&a).unwrap();
    store.create_namespace(&deep).unwrap();
    assert!(store.create_namespace(&deep).is_err());
    let all = store.namespaces(&Namespace::default(), 7).unwrap();
    assert_eq!(all, [Namespace::default(), a.clone(), deep.clone()]);
    store.begin(&deep, &snapshot(5), "u@pbs").unwrap().finish(&manifest()).unwrap();
    assert_eq!(store.delete_namespace(&a, false).unwrap(), Removal::KeptGroups);
    store.set_protected(&deep, &snapshot(5), true).unwrap();
    assert_eq!(store.delete_namespace(&a, true).unwrap(), Removal::KeptProtected);
    store.set_protected(&deep, &snapshot(5), false).unwrap();
    assert_eq!(store.delete_namespace(&a, true).unwrap(), Removal::Done);
    assert_eq!(store.namespaces(&Namespace::default(), 7).unwrap().len(), 1);
    let missing = store.begin(&deep, &snapshot(6), "u@pbs");
    assert!(matches!(missing, Err(StoreError::NamespaceMissing { .. })));
}

#[test]
fn what_a_crash_left_is_swept_by_the_next_backup() {
    let (dir, store) = store();
    back_up(&store, 1000);
    let left = dir.path().join("host/a/.1970-01-01T00:20:00Z.tmp_abcdef");
    fs::create_dir(&left).unwrap();
    fs::write(left.join("a.pxar.tmp_didx"), b"half").unwrap();
    assert_eq!(store.snapshots(&Namespace::default(), None).unwrap().len(), 1);
    back_up(&store, 1001);
    assert!(!left.exists());
}

#[test]
fn a_manifest_is_replaced_whole() {
    let (_dir, store) = store();
    let root = Namespace::default();
    back_up(&store, 1000);
    let newer = Blob::seal(BlobKind::Plain, vec![0; 20]).unwrap();
    store.update_manifest(&root, &snapshot(1000), &mut |_| Ok(newer.clone())).unwrap();
    let reader = store.open(&root, &snapshot(1000)).unwrap();
    assert_eq!(reader.read_file(&ArchiveName::manifest()).unwrap(), newer.as_bytes());
}

#[test]
fn after_a_power_cut_truncated_chunks_are_written_again() {
    let (dir, store) = store();
    let layout = Layout::new(dir.path().to_owned());
    let (cut, sound) = (conformance::chunk(1, &[7; 5000]), conformance::chunk(2, b"sound"));
    let session = store.begin(&Namespace::default(), &snapshot(1000), "root@pam").unwrap();
    store.chunks().insert(&cut).unwrap();
    store.chunks().insert(&sound).unwrap();
    let running = store.begin(
        &Namespace::default(),
        &SnapshotId { group: "host/b".parse().unwrap(), ..snapshot(1) },
        "root@pam",
    );
    drop(running.unwrap());
    assert!(
        fs::metadata(layout.chunk(&cut.digest)).unwrap().len() > 4096,
        "a running backup is no crash"
    );
    drop(session);
    // What remains of a backup when the power goes: its marker and half a chunk.
    fs::write(dir.path().join(".writing.tmp_gone00"), b"").unwrap();
    fs::write(layout.chunk(&cut.digest), &cut.parts().concat()[..4096]).unwrap();
    assert!(store.chunks().touch(&cut.digest, 5000).unwrap().is_some());
    let session = store.begin(&Namespace::default(), &snapshot(1000), "root@pam").unwrap();
    assert!(store.chunks().touch(&cut.digest, 5000).unwrap().is_none(), "half a chunk is none");
    assert!(store.chunks().touch(&sound.digest, 5).unwrap().is_some());
    drop(session);
    let left = fs::read_dir(dir.path()).unwrap().flatten();
    assert!(left.into_iter().all(|e| !e.file_name().to_string_lossy().starts_with(".writing")));
}
