//! Verifies what a repository holds: shared/spec/semantics.md §5.
//!
//! Every file of a snapshot is compared with the manifest, and every chunk with its digest; of
//! encrypted ones, and of the manifest's signature, only who has the key can tell. A damaged chunk is moved aside, so that the
//! next backup that has its content stores it again. The outcome is written into the manifest, where
//! no signature covers it.

use crate::error::{EngineError, Result};
use crate::progress::Cancel;
use crate::restore::chain;
use crate::snapshot::{UnverifiedManifest, change_unprotected, read_index};
use crossbeam_channel::{Sender, bounded};
use keepwell_model::manifest::{CryptMode, ManifestFile};
use keepwell_model::names::ArchiveKind;
use keepwell_model::{
    Blob, ChunkDigest, FileChecksum, GroupId, Index, Manifest, Namespace, RecentDigests,
    SnapshotId, Upid,
};
use keepwell_seal::{EncryptionKey, Opener, Sealer};
use keepwell_store::{DirStore, SessionStore, SnapshotReader, SnapshotStore, StoreError};
use serde_json::json;
use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

const DAY_SECONDS: i64 = 86_400;
const MIB: f64 = 1_048_576.0;
/// Snapshots of this group are made by benchmarks.
const BENCHMARK: &str = "host/benchmark";

/// Which snapshots need not be verified again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SkipVerified {
    /// seconds since the epoch
    pub now: i64,
    /// not even those that were found good
    pub none: bool,
    /// found good longer ago than so many days, they are verified again
    pub outdated_after: Option<i64>,
}

impl SkipVerified {
    /// What was found damaged is always looked at again: it may have been healed.
    fn skips(&self, manifest: &Manifest) -> bool {
        let Some(state) = manifest.verify_state().filter(|_| !self.none) else { return false };
        if manifest.verify_failed() {
            return false;
        }
        let Some(days) = self.outdated_after else { return true };
        let upid = state.get("upid").and_then(serde_json::Value::as_str);
        let verified = upid.and_then(|upid| upid.parse::<Upid>().ok());
        verified.is_some_and(|upid| (self.now - upid.start) / DAY_SECONDS <= days)
    }
}

/// What opens encrypted chunks and checks signatures.
pub struct VerifyKey {
    pub key: Arc<EncryptionKey>,
    /// what it does not protect is an error
    pub demanded: bool,
}

/// A running verification of a store.
pub struct Verification<'a> {
    pub store: &'a DirStore,
    /// how lines call the store
    pub label: String,
    /// the task, as manifests will name it
    pub upid: Upid,
    pub skip: SkipVerified,
    pub cancel: Cancel,
    /// hears each line of the log
    pub say: &'a mut dyn FnMut(&str),
    pub key: Option<VerifyKey>,
    pub seen: Seen,
}

/// Chunks that this verification has met.
#[derive(Default)]
pub struct Seen {
    /// compared with their content: in the clear
    plain: RecentDigests,
    /// with the key
    opened: RecentDigests,
    /// encrypted ones, of which without the key only the checksum was looked at
    sealed: RecentDigests,
    corrupt: Mutex<HashSet<ChunkDigest>>,
}

/// A chunk to look at.
struct Job {
    digest: ChunkDigest,
    length: u64,
}

/// What was found of a chunk.
struct Finding {
    digest: ChunkDigest,
    stored_bytes: u64,
    plain_bytes: u64,
    problem: Option<Problem>,
}

enum Problem {
    /// The chunk itself is damaged.
    Corrupt(String),
    /// Something else is, or it can't be told.
    Other(String),
}

impl Verification<'_> {
    fn say(&mut self, text: &str) {
        (self.say)(text);
    }

    fn check(&self) -> Result<()> {
        if self.cancel.is_cancelled() { Err(EngineError::Cancelled) } else { Ok(()) }
    }

    /// All groups of the namespaces whose owner is wanted; returns what failed, as lines.
    pub fn namespaces(
        &mut self,
        namespaces: &[Namespace],
        wants: &dyn Fn(&str) -> bool,
    ) -> Result<Vec<String>> {
        let mut groups = Vec::new();
        for namespace in namespaces {
            for info in self.store.groups(namespace)? {
                if info.group.to_string() != BENCHMARK && wants(&info.owner) {
                    groups.push((namespace.clone(), info.group));
                }
            }
        }
        self.say(&format!("found {} groups", groups.len()));
        let mut failed = Vec::new();
        let count = groups.len();
        for (done, (namespace, group)) in groups.into_iter().enumerate() {
            failed.extend(self.group(&namespace, &group)?);
            let done = done + 1;
            let percent = done as f64 * 100.0 / count as f64;
            self.say(&format!("percentage done: {percent:.2}% ({done}/{count} groups)"));
        }
        Ok(failed)
    }

    /// All snapshots of a group, the newest first; returns what failed.
    pub fn group(&mut self, namespace: &Namespace, group: &GroupId) -> Result<Vec<String>> {
        let mut snapshots = self.store.snapshots(namespace, Some(group))?;
        snapshots.reverse();
        let label = &self.label;
        let line = format!("verify group {label}:{group} ({} snapshots)", snapshots.len());
        self.say(&line);
        let mut failed = Vec::new();
        for info in snapshots {
            if !self.snapshot(namespace, &info.snapshot)? {
                failed.push(shown(namespace, &info.snapshot));
            }
        }
        Ok(failed)
    }

    /// One snapshot; false where it is damaged.
    pub fn snapshot(&mut self, namespace: &Namespace, snapshot: &SnapshotId) -> Result<bool> {
        self.check()?;
        let name = format!("{}:{snapshot}", self.label);
        let reader = match SessionStore::open(self.store, namespace, snapshot) {
            Ok(reader) => reader,
            Err(StoreError::SnapshotMissing { .. }) => {
                self.say(&format!("SKIPPED: verify {name} - snapshot does not exist (anymore)."));
                return Ok(true);
            }
            Err(error @ StoreError::Locked { .. }) => {
                let text = chain(&error);
                self.say(&format!(
                    "SKIPPED: verify {name} - could not acquire snapshot lock: {text}"
                ));
                return Ok(true);
            }
            Err(error) => return Err(error.into()),
        };
        let opened = UnverifiedManifest::read(&*reader).and_then(|manifest| match &self.key {
            None => Ok(manifest.unverified()),
            Some(VerifyKey { key, .. }) => manifest.verify(Some(key)),
        });
        let (manifest, other_key) = match opened {
            Ok(manifest) => (manifest, None),
            // With another key checksums are all that can be looked at.
            Err(error @ EngineError::WrongKey { .. }) => {
                (UnverifiedManifest::read(&*reader)?.unverified(), Some(error))
            }
            Err(error) => {
                self.say(&format!("verify {name} - manifest load error: {}", chain(&error)));
                return Ok(false);
            }
        };
        let key = match (&self.key, &other_key) {
            (Some(VerifyKey { key, .. }), None) => Some(key.clone()),
            _ => None,
        };
        // Others may have looked without the key, and who can write to the store can say so.
        let needs_key = key.is_some() && manifest.is_protected();
        let demanded = self.key.as_ref().is_some_and(|key| key.demanded);
        let unvouched = key.is_some() && manifest.signature.is_none();
        if !(needs_key || unvouched && demanded) && self.skip.skips(&manifest) {
            let note = if unvouched { "; the key vouches for nothing" } else { "" };
            self.say(&format!("SKIPPED: verify {name} (recently verified{note})"));
            return Ok(true);
        }
        self.say(&format!("verify {name}"));
        if let Some(error) = other_key {
            if demanded {
                self.say(&format!("  {error}"));
                return Ok(false);
            }
            self.say(&format!("  only checksums are looked at: {error}"));
        } else if unvouched {
            self.say("  it is neither encrypted nor signed: the key vouches for nothing");
            if demanded {
                return Ok(false);
            }
        }
        let errors = self.files(&*reader, &manifest, key.as_deref())?;
        drop(reader);
        if let Err(error) = self.note(namespace, snapshot, errors == 0) {
            self.say(&format!("  the outcome could not be kept: {}", chain(&error)));
        }
        Ok(errors == 0)
    }

    /// All files of a snapshot; the number of errors.
    fn files(
        &mut self,
        reader: &dyn SnapshotReader,
        manifest: &Manifest,
        key: Option<&EncryptionKey>,
    ) -> Result<u64> {
        let mut errors = 0;
        for file in &manifest.files {
            self.say(&format!("  check {}", file.name));
            let found = match file.name.kind() {
                ArchiveKind::Blob => check_blob(reader, file, key).map(|()| 0),
                _ => read_index(reader, file).and_then(|index| {
                    if index.stated_checksum() != file.checksum {
                        errors += 1;
                        self.say("  the checksum in its header is wrong");
                    }
                    self.index(file, index, key)
                }),
            };
            match found {
                Ok(found) => errors += found,
                Err(EngineError::Cancelled) => return Err(EngineError::Cancelled),
                Err(error) => {
                    errors += 1;
                    self.say(&format!("  {}", chain(&error)));
                }
            }
        }
        Ok(errors)
    }

    /// Writes the outcome into the manifest.
    fn note(&mut self, namespace: &Namespace, snapshot: &SnapshotId, good: bool) -> Result<()> {
        let state = if good { "ok" } else { "failed" };
        let state = json!({ "upid": self.upid.to_string(), "state": state });
        change_unprotected(self.store, namespace, snapshot, &|unprotected| {
            unprotected.insert("verify_state".into(), state.clone());
        })
    }

    /// All chunks of an index that have not been met; the number of errors.
    fn index(
        &mut self,
        file: &ManifestFile,
        index: Index,
        key: Option<&EncryptionKey>,
    ) -> Result<u64> {
        let began = Instant::now();
        let content = match (file.crypt_mode, key) {
            (CryptMode::Encrypt, None) => Content::Sealed,
            (CryptMode::Encrypt, Some(key)) => Content::Encrypted(key),
            _ => Content::Plain,
        };
        let (store, cancel) = (self.store, &self.cancel);
        // What was looked at as one thing may still be damaged as another.
        let Seen { plain: clear, opened, sealed, corrupt } = &mut self.seen;
        let recent = match content {
            Content::Plain => clear,
            Content::Encrypted(_) => opened,
            Content::Sealed => sealed,
        };
        let corrupt = &*corrupt;
        let (mut stored, mut plain, mut errors) = (0, 0, 0);
        let mut lines = Vec::new();
        let threads = thread::available_parallelism().map_or(2, usize::from).min(8);
        thread::scope(|scope| {
            let (jobs, work) = bounded::<Job>(threads);
            let (findings, found) = bounded::<Finding>(threads);
            for _ in 0..threads {
                let (work, findings) = (work.clone(), findings.clone());
                scope.spawn(move || {
                    let Ok(mut opener) = Opener::new() else { return };
                    for job in work {
                        let finding = look_at(store, &mut opener, job, content);
                        if findings.send(finding).is_err() {
                            return;
                        }
                    }
                });
            }
            scope.spawn(move || feed(&index, recent, corrupt, &jobs, &findings, cancel));
            for Finding { digest, stored_bytes, plain_bytes, problem } in found {
                stored += stored_bytes;
                plain += plain_bytes;
                let Some(problem) = problem else { continue };
                errors += 1;
                match problem {
                    Problem::Other(text) => lines.push(text),
                    Problem::Corrupt(text) => {
                        lines.push(format!("chunk {digest} is damaged: {text}"));
                        corrupt.lock().unwrap_or_else(PoisonError::into_inner).insert(digest);
                        match store.set_aside(&digest) {
                            Ok(Some(path)) => {
                                lines.push(format!("chunk was moved to '{}'", path.display()));
                            }
                            Ok(None) => {}
                            Err(error) => lines.push(chain(&error)),
                        }
                    }
                }
            }
        });
        for line in lines {
            self.say(&format!("  {line}"));
        }
        self.check()?;
        let seconds = began.elapsed().as_secs_f64();
        let (stored, plain) = (stored as f64 / MIB, plain as f64 / MIB);
        let speed = |amount: f64| if seconds > 0.0 { amount / seconds } else { 0.0 };
        self.say(&format!(
            "  verified {stored:.2}/{plain:.2} MiB in {seconds:.2} seconds, speed {:.2}/{:.2} MiB/s ({errors} errors)",
            speed(stored),
            speed(plain),
        ));
        Ok(errors)
    }
}

fn shown(namespace: &Namespace, snapshot: &SnapshotId) -> String {
    let prefix: String = namespace.components().map(|name| format!("ns/{name}/")).collect();
    format!("{prefix}{snapshot}")
}

/// Hands out the chunks that have not been met. A chunk that was found damaged counts each time.
fn feed(
    index: &Index,
    recent: &mut RecentDigests,
    corrupt: &Mutex<HashSet<ChunkDigest>>,
    jobs: &Sender<Job>,
    findings: &Sender<Finding>,
    cancel: &Cancel,
) {
    for chunk in index.chunks() {
        let (digest, length) = (chunk.digest, chunk.end - chunk.start);
        let known = corrupt.lock().unwrap_or_else(PoisonError::into_inner).contains(&digest);
        let sent = if known {
            let problem = Some(Problem::Other(format!("chunk {digest} was marked as corrupt")));
            let finding = Finding { digest, stored_bytes: 0, plain_bytes: 0, problem };
            findings.send(finding).is_ok()
        } else {
            !recent.insert(digest) || jobs.send(Job { digest, length }).is_ok()
        };
        if !sent || cancel.is_cancelled() {
            return;
        }
    }
}

/// What a chunk of an archive must be.
#[derive(Clone, Copy)]
enum Content<'a> {
    Plain,
    Encrypted(&'a EncryptionKey),
    /// encrypted, and the key is not here
    Sealed,
}

fn look_at(store: &DirStore, opener: &mut Opener, job: Job, content: Content<'_>) -> Finding {
    let Job { digest, length } = job;
    let mut finding = Finding { digest, stored_bytes: 0, plain_bytes: 0, problem: None };
    let bytes = match store.chunks().read(&digest) {
        Ok(bytes) => bytes,
        Err(StoreError::ChunkMissing { .. }) => {
            finding.problem = Some(Problem::Corrupt("it is missing".into()));
            return finding;
        }
        // A fifo or a directory has its name.
        Err(StoreError::Io { source, .. })
            if matches!(
                source.kind(),
                std::io::ErrorKind::InvalidData | std::io::ErrorKind::IsADirectory
            ) =>
        {
            finding.problem = Some(Problem::Corrupt("it is no regular file".into()));
            return finding;
        }
        Err(error) => {
            finding.problem = Some(Problem::Other(chain(&error)));
            return finding;
        }
    };
    finding.stored_bytes = bytes.len() as u64;
    finding.plain_bytes = length;
    finding.problem = problem_of(opener, bytes, &digest, length, content).err();
    finding
}

fn problem_of(
    opener: &mut Opener,
    bytes: Vec<u8>,
    digest: &ChunkDigest,
    length: u64,
    content: Content<'_>,
) -> std::result::Result<(), Problem> {
    let encrypted = !matches!(content, Content::Plain);
    let blob = Blob::parse(bytes).map_err(|problem| Problem::Corrupt(problem.to_string()))?;
    let mode = |encrypted| if encrypted { CryptMode::Encrypt } else { CryptMode::None };
    if blob.kind().is_encrypted() != encrypted {
        let (chunk, index) = (mode(!encrypted).as_str(), mode(encrypted).as_str());
        return Err(Problem::Other(format!(
            "chunk {digest}: chunk CryptMode {chunk} does not match index CryptMode {index}"
        )));
    }
    let key = match content {
        // What is in it only who has the key can tell.
        Content::Sealed => return Ok(()),
        Content::Plain => None,
        Content::Encrypted(key) => Some(key),
    };
    let plain = opener.open(blob, key).map_err(|problem| Problem::Corrupt(problem.to_string()))?;
    if Sealer::digest(&plain, key) != *digest {
        return Err(Problem::Corrupt("its content does not match its digest".into()));
    }
    // The chunk is what its name says: then the index is wrong.
    if plain.len() as u64 != length {
        let found = plain.len();
        return Err(Problem::Other(format!(
            "chunk {digest} holds {found} bytes, and the index says {length}"
        )));
    }
    Ok(())
}

fn check_blob(
    reader: &dyn SnapshotReader,
    file: &ManifestFile,
    key: Option<&EncryptionKey>,
) -> Result<()> {
    let bytes = reader.read_file(&file.name)?;
    let damaged = |problem: String| {
        let (snapshot, name) = (reader.snapshot().clone(), file.name.clone());
        EngineError::Damaged { snapshot, name, problem }
    };
    if bytes.len() as u64 != file.size {
        return Err(damaged(format!("wrong size ({} != {})", file.size, bytes.len())));
    }
    if FileChecksum::of(&bytes) != file.checksum {
        return Err(damaged("wrong checksum".into()));
    }
    let blob = Blob::parse(bytes).map_err(|problem| damaged(problem.to_string()))?;
    if blob.kind().is_encrypted() && key.is_none() {
        return Ok(());
    }
    let opened = Opener::new().and_then(|mut opener| opener.open(blob, key));
    opened.map(|_| ()).map_err(|problem| damaged(problem.to_string()))
}
