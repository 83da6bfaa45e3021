//! `index.json`: what a snapshot consists of. Spec: formats.md §9.

use crate::digest::{FileChecksum, FingerprintError, KeyFingerprint};
use crate::names::{ArchiveName, BackupTime, BackupType, GroupId, NameError, SnapshotId};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::HashSet;

/// How the content of a file is protected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CryptMode {
    #[default]
    None,
    Encrypt,
    SignOnly,
}

impl CryptMode {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Encrypt => "encrypt",
            Self::SignOnly => "sign-only",
        }
    }
}

/// One file of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestFile {
    pub name: ArchiveName,
    pub crypt_mode: CryptMode,
    /// of an index the length of the archive, of a blob the encoded file's
    pub size: u64,
    pub checksum: FileChecksum,
}

/// The list of a snapshot's files.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    pub snapshot: SnapshotId,
    pub files: Vec<ManifestFile>,
    /// what a server may change at any time: notes, verify state, statistics
    pub unprotected: Map<String, Value>,
    pub signature: Option<String>,
}

/// Why bytes are no manifest.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("manifest is not the JSON that it should be")]
    Json(#[from] serde_json::Error),
    #[error("manifest names something impossible")]
    Name(#[from] NameError),
    #[error("manifest has a wrong checksum for {name}")]
    Checksum { name: String },
    #[error("manifest names an impossible key")]
    Fingerprint(#[from] FingerprintError),
    #[error("manifest has a null where a signature can't cover it")]
    Null,
    #[error("manifest lists {name} twice")]
    Duplicate { name: ArchiveName },
}

const FINGERPRINT: &str = "key-fingerprint";

fn holds_null(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.iter().any(holds_null),
        Value::Object(map) => map.values().any(holds_null),
        _ => false,
    }
}

/// The form on disk; keys in the order of the alphabet.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Document {
    backup_id: String,
    backup_time: i64,
    backup_type: BackupType,
    files: Vec<FileDocument>,
    #[serde(default)]
    signature: Option<String>,
    #[serde(default)]
    unprotected: Map<String, Value>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct FileDocument {
    #[serde(default)]
    crypt_mode: CryptMode,
    csum: String,
    filename: String,
    size: u64,
}

impl Manifest {
    pub fn new(snapshot: SnapshotId) -> Self {
        Self { snapshot, files: Vec::new(), unprotected: Map::new(), signature: None }
    }

    /// Reads the JSON that the manifest's blob holds.
    pub fn parse(json: &[u8]) -> Result<Self, ManifestError> {
        let document: Document = serde_json::from_slice(json)?;
        let group = GroupId { kind: document.backup_type, id: document.backup_id.parse()? };
        let snapshot = SnapshotId { group, time: BackupTime::from_unix(document.backup_time)? };
        let mut files: Vec<ManifestFile> = Vec::with_capacity(document.files.len());
        let mut names = HashSet::with_capacity(document.files.len());
        for file in document.files {
            let name: ArchiveName = file.filename.parse()?;
            let checksum = file
                .csum
                .parse()
                .map_err(|_| ManifestError::Checksum { name: name.to_string() })?;
            if !names.insert(name.clone()) {
                return Err(ManifestError::Duplicate { name });
            }
            let (crypt_mode, size) = (file.crypt_mode, file.size);
            files.push(ManifestFile { name, crypt_mode, size, checksum });
        }
        let (unprotected, signature) = (document.unprotected, document.signature);
        Ok(Self { snapshot, files, unprotected, signature })
    }

    /// The JSON as the reference writes it: indented, keys sorted.
    pub fn to_json(&self) -> Vec<u8> {
        let files = self.files.iter().map(|file| FileDocument {
            crypt_mode: file.crypt_mode,
            csum: file.checksum.to_string(),
            filename: file.name.to_string(),
            size: file.size,
        });
        let document = Document {
            backup_id: self.snapshot.group.id.to_string(),
            backup_time: self.snapshot.time.unix(),
            backup_type: self.snapshot.group.kind,
            files: files.collect(),
            signature: self.signature.clone(),
            unprotected: self.unprotected.clone(),
        };
        serde_json::to_vec_pretty(&document).unwrap_or_default()
    }

    pub fn file(&self, name: &ArchiveName) -> Option<&ManifestFile> {
        self.files.iter().find(|file| file.name == *name)
    }

    /// The file that is called so without the extension that tells how it is kept.
    pub fn file_called(&self, user_name: &str) -> Option<&ManifestFile> {
        self.files.iter().find(|file| file.name.user_name() == user_name)
    }

    /// The user's notes; empty where there are none.
    pub fn notes(&self) -> &str {
        self.unprotected.get("notes").and_then(Value::as_str).unwrap_or_default()
    }

    /// Fingerprint of the key that the snapshot was made with.
    pub fn key_fingerprint(&self) -> Result<Option<KeyFingerprint>, ManifestError> {
        let given = self.unprotected.get(FINGERPRINT).and_then(Value::as_str);
        Ok(given.map(str::parse).transpose()?)
    }

    pub fn set_key_fingerprint(&mut self, fingerprint: &KeyFingerprint) {
        self.unprotected.insert(FINGERPRINT.into(), fingerprint.to_string().into());
    }

    /// Whether it says that a key protects it: such a manifest must be signed.
    pub fn is_protected(&self) -> bool {
        self.unprotected.contains_key(FINGERPRINT)
            || self.files.iter().any(|file| file.crypt_mode != CryptMode::None)
    }

    /// What a signature covers: the JSON as it was read without `unprotected` and `signature`,
    /// sorted by key and without white space.
    pub fn signed_text(json: &[u8]) -> Result<Vec<u8>, ManifestError> {
        let mut document: Map<String, Value> = serde_json::from_slice(json)?;
        document.remove("unprotected");
        document.remove("signature");
        let document = Value::Object(document);
        if holds_null(&document) {
            return Err(ManifestError::Null);
        }
        // Keys are sorted: serde_json's map is a tree.
        Ok(serde_json::to_vec(&document)?)
    }

    /// What the last verification found; none where there was none.
    pub fn verify_state(&self) -> Option<&Value> {
        self.unprotected.get("verify_state")
    }

    pub fn verify_failed(&self) -> bool {
        self.verify_state().and_then(|state| state.get("state")) == Some(&Value::from("failed"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = r#"{
  "backup-id": "100",
  "backup-time": 1700000050,
  "backup-type": "vm",
  "files": [
    {
      "crypt-mode": "none",
      "csum": "4d899b2f849d3b894969c0a626a76f03618fe7f5b7e4ffb71f1ebc6dbcb75404",
      "filename": "drive.img.fidx",
      "size": 38797312
    }
  ],
  "signature": null,
  "unprotected": {
    "chunk_upload_stats": {
      "compressed_size": 15730744,
      "count": 9
    },
    "notes": "one\ntwo"
  }
}"#;

    #[test]
    fn a_manifest_is_written_as_it_was_read() {
        let manifest = Manifest::parse(SMALL.as_bytes()).unwrap();
        assert_eq!(manifest.notes(), "one\ntwo");
        assert_eq!(String::from_utf8(manifest.to_json()).unwrap(), SMALL);
    }

    #[test]
    fn the_signed_text_leaves_out_what_may_change() {
        let text = Manifest::signed_text(SMALL.as_bytes()).unwrap();
        let expected = r#"{"backup-id":"100","backup-time":1700000050,"backup-type":"vm","files":[{"crypt-mode":"none","csum":"4d899b2f849d3b894969c0a626a76f03618fe7f5b7e4ffb71f1ebc6dbcb75404","filename":"drive.img.fidx","size":38797312}]}"#;
        assert_eq!(String::from_utf8(text).unwrap(), expected);
        let shuffled =
            SMALL.replace("\"unprotected\"", "\"x\": [{\"b\": 1, \"a\": 2}], \"unprotected\"");
        let text = Manifest::signed_text(shuffled.as_bytes()).unwrap();
        assert!(text.ends_with(br#","x":[{"a":2,"b":1}]}"#), "unknown fields are covered");
        let null = SMALL.replace("\"unprotected\"", "\"x\": [{\"b\": null}], \"unprotected\"");
        assert!(matches!(Manifest::signed_text(null.as_bytes()), Err(ManifestError::Null)));
    }

    #[test]
    fn hostile_manifests_are_refused() {
        for (from, to) in [
            ("drive.img.fidx", "../drive.img.fidx"),
            ("4d899b2f", "4D899B2F"),
            ("1700000050", "-5"),
            ("\"vm\"", "\"disk\""),
            ("\"100\"", "\"../100\""),
        ] {
            assert!(Manifest::parse(SMALL.replace(from, to).as_bytes()).is_err(), "{to}");
        }
    }
}
