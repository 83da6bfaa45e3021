//! Looking into archives without restoring them: decoded downloads, the catalog, and single files
//! and directories. Of encrypted archives the server can't tell anything.
//! Spec: protocol.md §3, catalog.md §5.

use super::Context;
use crate::error::{ApiError, ApiResult};
use crate::session::{Produce, Reply};
use crate::stores;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::StatusCode;
use keepwell_engine::archive::ChunkedArchive;
use keepwell_engine::browse::{self, ContentReader};
use keepwell_engine::catalog;
use keepwell_engine::error::Result;
use keepwell_engine::plugin::{Archive, Entry, EntryKind};
use keepwell_engine::restore::{StoredContent, chain};
use keepwell_engine::snapshot::{UnverifiedManifest, find, read_blob};
use keepwell_engine::tar::{TarWriter, stored_size};
use keepwell_engine::{Cancel, EngineError};
use keepwell_model::catalog::CatalogKind;
use keepwell_model::manifest::CryptMode;
use keepwell_model::names::ArchiveKind;
use keepwell_model::{ArchiveName, Blob, Manifest};
use keepwell_seal::Opener;
use keepwell_store::SnapshotReader;
use serde_json::{Value, json};
use std::io::{self, Write};
use std::sync::Arc;
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

/// A file of so many bytes may need the long form in a zip.
const ZIP_LARGE: u64 = 0xf000_0000;

/// A snapshot that the caller may read.
pub(super) struct Opened {
    pub(super) reader: Arc<dyn SnapshotReader>,
    pub(super) manifest: Manifest,
}

impl Opened {
    pub(super) fn new(reader: Arc<dyn SnapshotReader>) -> ApiResult<Self> {
        let manifest = UnverifiedManifest::read(&*reader)?.unverified();
        Ok(Self { reader, manifest })
    }

    fn archive(&self, name: &ArchiveName) -> ApiResult<Arc<ChunkedArchive>> {
        let file = find(&self.manifest, name)?;
        refuse_encrypted(file.crypt_mode, name)?;
        Ok(Arc::new(ChunkedArchive::open(self.reader.clone(), file, None)?))
    }
}

fn refuse_encrypted(mode: CryptMode, name: &ArchiveName) -> ApiResult<()> {
    match mode {
        CryptMode::Encrypt => Err(ApiError::bad(format!("cannot decode '{name}' - is encrypted"))),
        _ => Ok(()),
    }
}

/// The content of a file of the snapshot.
pub(super) fn decoded(opened: &Opened, name: &ArchiveName) -> ApiResult<Reply> {
    // The manifest names neither itself nor the log.
    if *name == ArchiveName::manifest() {
        let manifest = UnverifiedManifest::read(&*opened.reader)?;
        return Ok(Reply::Bytes(manifest.json().to_vec()));
    }
    if *name == ArchiveName::client_log() {
        let (_, bytes) = stores::read_file(&*opened.reader, name.as_str())?;
        let damaged = |problem: &dyn std::error::Error| {
            ApiError::bad(format!("'{name}' is damaged: {}", chain(problem)))
        };
        let blob = Blob::parse(bytes).map_err(|problem| damaged(&problem))?;
        if blob.kind().is_encrypted() {
            refuse_encrypted(CryptMode::Encrypt, name)?;
        }
        let plain = Opener::new().and_then(|mut opener| opener.open(blob, None));
        return Ok(Reply::Bytes(plain.map_err(|problem| damaged(&problem))?));
    }
    if name.kind() == ArchiveKind::Blob {
        let file = find(&opened.manifest, name)?;
        refuse_encrypted(file.crypt_mode, name)?;
        return Ok(Reply::Bytes(read_blob(&*opened.reader, file, None)?));
    }
    let archive = opened.archive(name)?;
    let produce: Produce =
        Box::new(move |mut out| archive.write_to(&mut out).map_err(|error| chain(&error)));
    Ok(Reply::Stream { name: name.user_name().to_owned(), produce })
}

/// The path that a request names: base64 of bytes with slashes, or in words the top.
fn path_of(context: &Context) -> ApiResult<Vec<u8>> {
    let given = context.params.text("filepath").unwrap_or_default();
    if matches!(given, "root" | "/") {
        return Ok(Vec::new());
    }
    let wrong = |_| ApiError::bad(format!("filepath '{given}' is not base64"));
    STANDARD.decode(given).map_err(wrong)
}

fn names(path: &[u8]) -> Vec<&[u8]> {
    path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).collect()
}

/// What a directory of the catalog holds.
pub(super) fn catalog(context: &Context, opened: &Opened) -> ApiResult<Reply> {
    let path = path_of(context)?;
    let name = ArchiveName::catalog();
    let file = find(&opened.manifest, &name)?;
    refuse_encrypted(file.crypt_mode, &name)?;
    let found = catalog::list(&opened.reader, &opened.manifest, None, &names(&path))?;
    let shown = String::from_utf8_lossy(&path);
    let entries =
        found.ok_or_else(|| ApiError::bad(format!("path {shown:?} not found in catalog")))?;
    let base = path.strip_prefix(b"/").unwrap_or(&path);
    let items = entries.iter().map(|entry| {
        let path = [base, b"/", &entry.name[..]].concat();
        let mut item = json!({
            "filepath": STANDARD.encode(path),
            "text": String::from_utf8_lossy(&entry.name),
            "type": char::from(entry.kind.letter()).to_string(),
            "leaf": !matches!(entry.kind, CatalogKind::Directory { .. }),
        });
        if let CatalogKind::File { size, modified } = entry.kind {
            item["size"] = size.into();
            item["mtime"] = modified.into();
        }
        item
    });
    Ok(Reply::Data(Value::Array(items.collect())))
}

/// A file of an archive as it is; a directory as a zip or as a compressed tar.
pub(super) fn file_download(context: &Context, opened: &Opened) -> ApiResult<Reply> {
    let path = path_of(context)?;
    let names = names(&path);
    let shown = String::from_utf8_lossy(&path).into_owned();
    let missing = || ApiError::new(StatusCode::NOT_FOUND, format!("path {shown:?} not found"));
    let (archive_name, below) = names.split_first().ok_or_else(missing)?;
    let archive_name = std::str::from_utf8(archive_name).ok().and_then(|name| name.parse().ok());
    let archive_name: ArchiveName = archive_name.ok_or_else(missing)?;
    let stored = opened.archive(&archive_name)?;
    let make_reader = &context.server.environment.reader;
    let mut reader =
        make_reader(archive_name.archive_extension(), Cancel::default()).map_err(ApiError::bad)?;
    let mut archive = reader.open(vec![stored.clone()]).map_err(EngineError::from)?;
    let entry = browse::find(&mut *archive, below)?.ok_or_else(missing)?;
    let entry = browse::resolve(&mut *archive, entry)?;
    let content = StoredContent(vec![stored]);
    let name = below.last().copied().unwrap_or(archive_name.user_name().as_bytes());
    let name = String::from_utf8_lossy(name).into_owned();
    let tar = context.params.flag("tar") == Some(true);
    let mut download = Download { archive, content };
    // The reader belongs to the archive and has to live as long.
    match entry.metadata.kind {
        EntryKind::File => Ok(Reply::Stream {
            name,
            produce: Box::new(move |mut out| {
                let _reader = reader;
                download.content_to(&entry, &mut out).map_err(|error| chain(&error))
            }),
        }),
        EntryKind::Directory => Ok(Reply::Stream {
            name: format!("{name}.{}", if tar { "tar.zst" } else { "zip" }),
            produce: Box::new(move |mut out| {
                let _reader = reader;
                match tar {
                    true => download.tar_to(&entry, &mut out),
                    false => download.zip_to(&entry, &mut out),
                }
                .map_err(|error| chain(&error))
            }),
        }),
        _ => Err(ApiError::bad(format!("{shown:?} is neither a file nor a directory"))),
    }
}

struct Download {
    archive: Box<dyn Archive>,
    content: StoredContent,
}

fn failed(error: io::Error) -> EngineError {
    EngineError::Io { action: "write", path: "the download".into(), source: error }
}

fn zip_failed(error: zip::result::ZipError) -> EngineError {
    failed(io::Error::other(error))
}

impl Download {
    fn content_to(&mut self, entry: &Entry, out: &mut dyn Write) -> Result<()> {
        let mut content = ContentReader::new(&mut *self.archive, &self.content, entry);
        io::copy(&mut content, out).map_err(failed).map(|_| ())
    }

    /// Names that are not UTF-8 are changed: a zip has no others. Owners and the like are left out.
    fn zip_to(&mut self, directory: &Entry, out: &mut dyn Write) -> Result<()> {
        let mut zip = ZipWriter::new_stream(out);
        let content = &self.content;
        browse::walk(&mut *self.archive, directory.node, &mut |archive, path, entry| {
            let entry = browse::resolve(archive, entry)?;
            let name = String::from_utf8_lossy(&path.join(&b'/')).into_owned();
            let options = SimpleFileOptions::default()
                .unix_permissions(entry.metadata.mode & 0o777)
                .large_file(stored_size(&entry) >= ZIP_LARGE);
            match entry.metadata.kind {
                EntryKind::Directory => zip.add_directory(name, options).map_err(zip_failed),
                EntryKind::Symlink => {
                    let target = entry.metadata.link_target.unwrap_or_default();
                    let target = String::from_utf8_lossy(&target).into_owned();
                    zip.add_symlink(name, target, options).map_err(zip_failed)
                }
                EntryKind::File => {
                    zip.start_file(name, options).map_err(zip_failed)?;
                    let mut reader = ContentReader::new(archive, content, &entry);
                    io::copy(&mut reader, &mut zip).map_err(failed).map(|_| ())
                }
                // A zip has no word for them.
                _ => Ok(()),
            }
        })?;
        zip.finish().map_err(zip_failed)?;
        Ok(())
    }

    fn tar_to(&mut self, directory: &Entry, out: &mut dyn Write) -> Result<()> {
        let compressed = zstd::stream::Encoder::new(out, 0).map_err(failed)?;
        let mut tar = TarWriter::new(compressed, &self.content, &[]);
        tar.add_below(&mut *self.archive, directory.node, b"")?;
        let (compressed, _) = tar.finish()?;
        compressed.finish().map_err(failed)?;
        Ok(())
    }
}
