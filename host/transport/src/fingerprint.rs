//! Fingerprints of certificates, and the file of those that the user has confirmed.
//! Spec: protocol.md §2.4.

use crate::error::{Error, Result};
use keepwell_store::files::{self, Existing};
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// SHA-256 of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// That of a certificate as DER.
    pub fn of(certificate: &[u8]) -> Self {
        let digest = ring::digest::digest(&ring::digest::SHA256, certificate);
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest.as_ref());
        Self(bytes)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, byte) in self.0.iter().enumerate() {
            let colon = if position > 0 { ":" } else { "" };
            write!(f, "{colon}{byte:02x}")?;
        }
        Ok(())
    }
}

impl FromStr for Fingerprint {
    type Err = Error;

    fn from_str(given: &str) -> Result<Self> {
        let wrong = || {
            let problem = "is no fingerprint: 32 bytes in hexadecimal, with ':' between them";
            Error::protocol(format!("'{given}' {problem}"))
        };
        let mut bytes = [0; 32];
        let mut parts = given.trim().split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2).ok_or_else(wrong)?;
            let digits = part.bytes().all(|digit| digit.is_ascii_hexdigit());
            *byte = u8::from_str_radix(part, 16).ok().filter(|_| digits).ok_or_else(wrong)?;
        }
        match parts.next() {
            None => Ok(Self(bytes)),
            Some(_) => Err(wrong()),
        }
    }
}

/// The file `fingerprints`: one server and its fingerprint a line.
#[derive(Clone, Debug)]
pub struct KnownServers {
    path: PathBuf,
}

impl KnownServers {
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// The file's lines; none where there is no file.
    fn lines(&self) -> Result<Vec<Vec<u8>>> {
        let bytes = match fs::read(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            read => read.map_err(Error::file("read", &self.path))?,
        };
        let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        Ok(lines.map(<[u8]>::to_vec).collect())
    }

    /// What was confirmed for a server; lines that make no sense are passed over. A file that can't
    /// be read is an error: what was confirmed must not be forgotten.
    pub fn find(&self, server: &str) -> Result<Option<Fingerprint>> {
        let of_it = |line: &Vec<u8>| {
            let line = std::str::from_utf8(line).ok()?;
            let (name, fingerprint) = line.split_once(' ')?;
            (name == server).then(|| fingerprint.parse().ok())
        };
        Ok(self.lines()?.iter().find_map(of_it).flatten())
    }

    /// Adds or replaces one; all other lines stay.
    pub fn store(&self, server: &str, fingerprint: &Fingerprint) -> Result<()> {
        let start = format!("{server} ");
        let mut bytes = Vec::new();
        for line in self.lines()?.iter().filter(|line| !line.starts_with(start.as_bytes())) {
            bytes.extend(line);
            bytes.push(b'\n');
        }
        bytes.extend(format!("{server} {fingerprint}\n").into_bytes());
        write_private(&self.path, &bytes)
    }
}

/// Writes a file that only its owner may read, whole or not at all; makes its directory.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    let dir = path.parent().unwrap_or(path);
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700).create(dir).map_err(Error::file("create", dir))?;
    files::write(path, bytes, 0o600, Existing::Replace).map_err(Error::file("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_reads_as_it_prints() {
        let fingerprint = Fingerprint::of(b"certificate");
        let text = fingerprint.to_string();
        assert_eq!(text.len(), 95);
        assert_eq!(text.to_uppercase().parse::<Fingerprint>().unwrap(), fingerprint);
        for bad in ["", "aa", &text[3..], &format!("{text}:00"), &text.replace(':', "-")] {
            assert!(bad.parse::<Fingerprint>().is_err(), "{bad}");
        }
        let signed = text.replacen(&text[..2], "+f", 1);
        assert!(signed.parse::<Fingerprint>().is_err(), "{signed}");
    }

    #[test]
    fn confirmed_servers_are_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let known = KnownServers::new(dir.path().join("a/fingerprints"));
        assert_eq!(known.find("one").unwrap(), None);
        let (first, second) = (Fingerprint::of(b"1"), Fingerprint::of(b"2"));
        known.store("one", &first).unwrap();
        known.store("two", &second).unwrap();
        known.store("one", &second).unwrap();
        let found = |name: &str| known.find(name).unwrap();
        assert_eq!((found("one"), found("two")), (Some(second), Some(second)));
        let text = fs::read_to_string(dir.path().join("a/fingerprints")).unwrap();
        assert_eq!(text.lines().count(), 2);
    }

    #[test]
    fn a_line_of_rubbish_hides_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fingerprints");
        let known = KnownServers::new(path.clone());
        let (first, second) = (Fingerprint::of(b"1"), Fingerprint::of(b"2"));
        let text = [b"\xff\n one\n", format!("one {first}\n").as_bytes(), b"# note"].concat();
        fs::write(&path, text).unwrap();
        assert_eq!(known.find("one").unwrap(), Some(first));
        known.store("two", &second).unwrap();
        assert_eq!(known.find("one").unwrap(), Some(first), "it stays");
        assert!(fs::read(&path).unwrap().starts_with(b"\xff\n one\n"), "and so does the rest");
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(known.find("one").is_err(), "what was confirmed is not forgotten");
    }
}
