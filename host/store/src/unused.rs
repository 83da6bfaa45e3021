//! Takes a datastore away again that was made for a backup which then stored nothing.

use crate::Result;
use crate::dir::{io, temporary_suffix};
use crate::layout::{CHUNK_DIRS, Layout};
use crate::lock::SoleLock;
use std::fs;
use std::path::{Path, PathBuf};

/// The directories that a creation would make: `root` and those above it that are missing, the
/// deepest first.
pub(crate) fn missing_above(root: &Path) -> Vec<PathBuf> {
    let is_missing = |path: &&Path| !path.as_os_str().is_empty() && !path.exists();
    root.ancestors().take_while(is_missing).map(Path::to_owned).collect()
}

/// Removes the store unless something is in it or somebody uses it; false where it stays. Of
/// directories only empty ones are removed: whatever happens, nothing is lost.
pub(crate) fn discard(layout: &Layout, made: &[PathBuf]) -> Result<bool> {
    let Ok(_alone) = SoleLock::acquire(&layout.lock()) else { return Ok(false) };
    let root = layout.root();
    for entry in fs::read_dir(root).map_err(io("read", root))?.flatten() {
        let path = entry.path();
        let is_known = path == layout.chunks() || path == layout.lock();
        // Types of groups; whatever holds something stays.
        if !is_known && fs::remove_dir(&path).is_err() && entry.file_name() != "lost+found" {
            return Ok(false);
        }
    }
    let chunks = layout.chunks();
    let dirs = |of: &Path| fs::read_dir(of).map_err(io("read", of));
    for dir in dirs(&chunks)?.flatten() {
        if dirs(&dir.path())?.next().is_some() {
            return Ok(false);
        }
    }
    // Under this name it is nobody's: a creation that was cut off leaves the same.
    let doomed = root.join(format!(".chunks.tmp_{}", temporary_suffix()));
    fs::rename(&chunks, &doomed).map_err(io("remove", &chunks))?;
    for prefix in 0..CHUNK_DIRS {
        let _ = fs::remove_dir(doomed.join(format!("{prefix:04x}")));
    }
    fs::remove_dir(&doomed).map_err(io("remove", &doomed))?;
    fs::remove_file(layout.lock()).map_err(io("remove", &layout.lock()))?;
    remove_empty_dirs(made);
    Ok(true)
}

/// The deepest first; somebody may have put something there meanwhile.
pub(crate) fn remove_empty_dirs(dirs: &[PathBuf]) {
    for dir in dirs {
        let removed = fs::remove_dir(dir);
        if removed.is_err_and(|error| error.kind() != std::io::ErrorKind::NotFound) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{DirStore, SessionStore};
    use keepwell_model::Namespace;
    use std::fs;

    #[test]
    fn an_unused_store_goes_with_the_directories_that_were_made_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let store = DirStore::create(&dir.path().join("a/b/store")).unwrap();
        assert!(store.discard_unused().unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);

        let own = dir.path().join("own");
        fs::create_dir(&own).unwrap();
        let store = DirStore::create(&own).unwrap();
        assert!(store.discard_unused().unwrap());
        assert_eq!(fs::read_dir(&own).unwrap().count(), 0);
        // It can be made again.
        DirStore::create(&own).unwrap();
    }

    /// All but one find that another was faster.
    #[test]
    fn several_may_make_a_store_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("store");
        std::thread::scope(|scope| {
            for id in 0..5 {
                let root = &root;
                scope.spawn(move || {
                    let store = DirStore::create(root).unwrap();
                    let snapshot = format!("host/{id}/2026-01-01T00:00:00Z").parse().unwrap();
                    drop(store.begin(&Namespace::default(), &snapshot, "root@pam").unwrap());
                    assert!(root.join(".lock").exists());
                });
            }
        });
        assert_eq!(fs::read_dir(root.join(".chunks")).unwrap().count(), 65_536);
    }

    #[test]
    fn a_store_that_is_used_stays() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("store");
        let store = DirStore::create(&root).unwrap();
        let other = DirStore::open(&root).unwrap();
        let snapshot = "host/a/2026-01-01T00:00:00Z".parse().unwrap();
        let session = other.begin(&Namespace::default(), &snapshot, "root@pam").unwrap();
        assert!(!store.discard_unused().unwrap());
        drop(session);

        let chunk = root.join(".chunks/abcd/something");
        fs::write(&chunk, "x").unwrap();
        assert!(!store.discard_unused().unwrap());
        fs::remove_file(&chunk).unwrap();

        fs::create_dir_all(root.join("host/a")).unwrap();
        assert!(!store.discard_unused().unwrap());
        fs::remove_dir(root.join("host/a")).unwrap();

        fs::write(root.join("mine"), "x").unwrap();
        assert!(!store.discard_unused().unwrap());
        assert_eq!(fs::read_dir(root.join(".chunks")).unwrap().count(), 65_536);
        fs::remove_file(root.join("mine")).unwrap();
        assert!(store.discard_unused().unwrap());
        assert!(!root.exists());
    }
}
