//! One function for each parser of outside bytes. The fuzz targets call them with new bytes, the
//! ordinary tests with the kept corpora. They may refuse anything, and must never panic, hang or
//! allocate without bound.

use keepwell_engine::pattern::Pattern;
use keepwell_model::catalog::{CatalogError, CatalogReader};
use keepwell_model::{ArchiveName, Blob, Index, Manifest, Namespace, SnapshotId, size};
use keepwell_sdk::EntryKind;
use keepwell_seal::{
    Chunker, EncryptionKey, KdfKind, KeyFile, MasterKey, MasterPublicKey, Opener, Sealer,
};
use plugin_pxar::decode::{Decoder, Next};
use plugin_pxar::reference::Reference;

pub use keepwell_server::fuzz::request;

/// A target's name and function.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 10] = [
    ("blob", blob),
    ("dynamic_index", dynamic_index),
    ("fixed_index", fixed_index),
    ("manifest", manifest),
    ("key_file", key_file),
    ("catalog", catalog),
    ("pxar", pxar),
    ("pattern", pattern),
    ("names", names),
    ("request", request),
];

fn key() -> EncryptionKey {
    EncryptionKey::from_raw([7; 32].into())
}

/// Key files, and keys in PEM. What is read is written and read to the same.
pub fn key_file(data: &[u8]) {
    if let Ok(file) = KeyFile::parse(data) {
        let json = file.to_json();
        assert_eq!(KeyFile::parse(json.as_bytes()).ok().map(|file| file.to_json()), Some(json));
        // Deriving a key from a passphrase takes long on purpose.
        if file.kdf() == KdfKind::None {
            let _ = file.unlock(b"");
        }
    }
    let _ = MasterPublicKey::from_pem(data);
    if let Ok(text) = std::str::from_utf8(data)
        && !MasterKey::is_locked(text)
    {
        let _ = MasterKey::from_pem(text, b"");
    }
}

/// Envelope and compressed content; also with a checksum made right, to come further.
pub fn blob(data: &[u8]) {
    let open = |bytes: Vec<u8>| {
        if let Ok(blob) = Blob::parse(bytes)
            && let Ok(mut opener) = Opener::new()
        {
            let _ = opener.open(blob, Some(&key()));
        }
    };
    open(data.to_vec());
    if let Some(kind) = keepwell_model::BlobKind::of_magic(data)
        && let Ok(blob) = Blob::seal(kind, data.to_vec())
    {
        let bytes = blob.into_bytes();
        open(bytes.clone());
        if let Ok(mut opener) = Opener::new() {
            let key = key();
            let _ = opener.open_chunk(bytes.clone(), &Sealer::digest(data, None), 4096, None);
            let _ = opener.open_chunk(bytes, &key.digest(data), 4096, Some(&key));
        }
    }
}

fn index(parsed: Result<Index, keepwell_model::index::IndexError>, size: u64) {
    let Ok(index) = parsed else { return };
    let mut end = 0;
    for chunk in index.chunks().take(10_000) {
        assert!(chunk.start == end && chunk.end > chunk.start, "chunks follow each other");
        end = chunk.end;
    }
    let _ = index.checksum();
    for offset in [0, size, index.size().saturating_sub(1), index.size()] {
        if let Some(position) = index.position_of(offset) {
            let chunk = index.chunk(position);
            assert!(chunk.is_some_and(|chunk| chunk.start <= offset && offset < chunk.end));
        }
    }
}

/// The header is mostly filled with zeros: the entries matter.
fn with_header(data: &[u8], magic: [u8; 8]) -> Vec<u8> {
    let (head, body) = data.split_at(data.len().min(80));
    let mut bytes = head.to_vec();
    bytes.resize(4096, 0);
    bytes[..8].copy_from_slice(&magic);
    bytes.extend(body);
    bytes
}

pub fn dynamic_index(data: &[u8]) {
    index(Index::parse_dynamic(data.to_vec()), data.len() as u64);
    let magic = [0x1c, 0x91, 0x4e, 0xa5, 0x19, 0xba, 0xb3, 0xcd];
    index(Index::parse_dynamic(with_header(data, magic)), data.len() as u64);
}

pub fn fixed_index(data: &[u8]) {
    index(Index::parse_fixed(data.to_vec()), data.len() as u64);
    let magic = [0x2f, 0x7f, 0x41, 0xed, 0x91, 0xfd, 0x0f, 0xcd];
    index(Index::parse_fixed(with_header(data, magic)), data.len() as u64);
}

/// What is read is written and read to the same.
pub fn manifest(data: &[u8]) {
    if let Ok(manifest) = Manifest::parse(data) {
        // Fractions, which no manifest has, are not read exactly.
        if !manifest.unprotected.values().any(has_fraction) {
            let again = Manifest::parse(&manifest.to_json());
            assert_eq!(again.ok().as_ref(), Some(&manifest));
        }
        let _ = (manifest.notes(), manifest.key_fingerprint().is_ok(), manifest.verify_failed());
    }
    // What is signed does not depend on white space and order.
    if let Ok(text) = Manifest::signed_text(data)
        && serde_json::from_slice(&text).is_ok_and(|value| !has_fraction(&value))
    {
        assert_eq!(Manifest::signed_text(&text).ok(), Some(text));
    }
}

fn has_fraction(value: &serde_json::Value) -> bool {
    match value {
        serde_json::Value::Number(number) => number.is_f64(),
        serde_json::Value::Array(items) => items.iter().any(has_fraction),
        serde_json::Value::Object(map) => map.values().any(has_fraction),
        _ => false,
    }
}

pub fn catalog(data: &[u8]) {
    let Ok(reader) = CatalogReader::open(data) else { return };
    let mut entries = 0;
    let _ = reader.walk(&mut |_, _| {
        entries += 1;
        // A small catalog can name a directory many times: whoever lists decides how long.
        if entries > 10_000 { Err(CatalogError::Name) } else { Ok(()) }
    });
}

pub fn pxar(data: &[u8]) {
    pxar_of(&Decoder::new(data), data);
    pxar_of(&Decoder::split(data, data.len() as u64), data);
    let Some(reference) = Reference::open(data, data) else { return };
    let Some(mut children) = reference.root() else { return };
    for name in [&b"a"[..], b"b", b"\xff"] {
        let _ = reference.unchanged(&mut children, name, &data[..data.len().min(56)], 1);
        let _ = reference.directory(&mut children, name);
    }
}

fn pxar_of(decoder: &Decoder<&[u8]>, data: &[u8]) {
    let _ = decoder.table(data.len() as u64);
    let Ok(root) = decoder.root() else { return };
    let (mut position, mut depth) = (root.next, 1u32);
    while depth > 0 {
        match decoder.next(position) {
            Ok(Next::End { next }) => {
                assert!(next > position, "a walk goes forward");
                position = next;
                depth -= 1;
            }
            Ok(Next::Entry(decoded)) => {
                assert!(decoded.next > position, "a walk goes forward");
                position = decoded.next;
                depth += u32::from(decoded.entry.metadata.kind == EntryKind::Directory);
            }
            Err(_) => return,
        }
    }
}

/// The first line is the pattern, the second the path.
pub fn pattern(data: &[u8]) {
    let mut lines = data.splitn(2, |byte| *byte == b'\n');
    let (pattern, path) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    if let Ok(pattern) = Pattern::parse(pattern, b"/base") {
        let path = [b"/", path].concat();
        // Only directories or anything: what matches a file matches a directory.
        assert!(!pattern.matches(&path, false) || pattern.matches(&path, true));
    }
}

/// Names read as they print; sizes, too, and the chunker cuts what it is given.
pub fn names(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        if let Ok(mut chunker) = Chunker::new(64 << 10) {
            let _ = chunker.find_end(data);
        }
        return;
    };
    if let Ok(snapshot) = text.parse::<SnapshotId>() {
        assert_eq!(snapshot.to_string(), text);
    }
    if let Ok(namespace) = text.parse::<Namespace>() {
        assert_eq!(namespace.to_string(), text);
    }
    if let Ok(name) = ArchiveName::from_user(text) {
        assert!(!name.as_str().contains('/'));
    }
    let _ = size::parse(text);
}
