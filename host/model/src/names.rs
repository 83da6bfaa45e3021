//! Names of snapshots, groups, namespaces and archives. A value exists only if it is legal.
//!
//! Rules: shared/spec/semantics.md §1.

use chrono::{DateTime, NaiveDateTime, Utc};
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

/// Text that should name something, and what is wrong with it.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{what} '{given}' {problem}")]
pub struct NameError {
    what: &'static str,
    given: String,
    problem: &'static str,
}

fn refuse(what: &'static str, given: &str, problem: &'static str) -> NameError {
    NameError { what, given: given.to_owned(), problem }
}

/// `[A-Za-z0-9_][A-Za-z0-9._-]*`: also safe as a file name.
pub fn is_safe_name(text: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let mut bytes = text.bytes();
    bytes.next().is_some_and(word) && bytes.all(|byte| word(byte) || byte == b'.' || byte == b'-')
}

const SAFE_PROBLEM: &str =
    "may hold letters, digits, '_', '.' and '-', and may not begin with '.' or '-'";
/// What a file system takes.
const NAME_BYTES_MAX: usize = 255;

/// What kind of thing a backup is of. Sorted as in listings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackupType {
    Ct,
    Host,
    Vm,
}

impl BackupType {
    pub const ALL: [Self; 3] = [Self::Ct, Self::Host, Self::Vm];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ct => "ct",
            Self::Host => "host",
            Self::Vm => "vm",
        }
    }
}

impl fmt::Display for BackupType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for BackupType {
    type Err = NameError;
    fn from_str(given: &str) -> Result<Self, NameError> {
        let known = Self::ALL.into_iter().find(|kind| kind.as_str() == given);
        known.ok_or_else(|| refuse("backup type", given, "is none of host, vm and ct"))
    }
}

macro_rules! safe_name {
    ($(#[$doc:meta])* $name:ident, $what:literal, $max:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Box<str>);

        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(given: &str) -> Result<Self, NameError> {
                match given {
                    _ if !is_safe_name(given) => Err(refuse($what, given, SAFE_PROBLEM)),
                    _ if given.len() > $max => Err(refuse($what, given, "is too long")),
                    _ => Ok(Self(given.into())),
                }
            }
        }
    };
}

/// Whether a datastore may be called so: 3 to 32 safe characters.
pub fn is_datastore_name(text: &str) -> bool {
    is_safe_name(text) && (3..=32).contains(&text.len())
}

safe_name! {
    /// What is backed up: a host's name, the number of a machine.
    BackupId, "backup id", NAME_BYTES_MAX
}

/// Time of a snapshot: seconds since the epoch, from 1 up to the year 9999.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackupTime(i64);

const PATH_FORMAT: &str = "%Y-%m-%dT%H:%M:%SZ";

impl BackupTime {
    pub const MAX: i64 = 253_402_300_799;

    pub fn from_unix(seconds: i64) -> Result<Self, NameError> {
        if (1..=Self::MAX).contains(&seconds) {
            return Ok(Self(seconds));
        }
        Err(refuse(
            "backup time",
            &seconds.to_string(),
            "is not from 1 to 253402300799, the seconds from 1970 to the year 9999",
        ))
    }

    pub fn unix(self) -> i64 {
        self.0
    }

    pub fn utc(self) -> DateTime<Utc> {
        DateTime::from_timestamp(self.0, 0).unwrap_or_default()
    }
}

impl fmt::Display for BackupTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.utc().format(PATH_FORMAT))
    }
}

impl FromStr for BackupTime {
    type Err = NameError;
    /// Exactly `2020-06-26T13:56:05Z`.
    fn from_str(given: &str) -> Result<Self, NameError> {
        let time = NaiveDateTime::parse_from_str(given, PATH_FORMAT).ok();
        let time = time.and_then(|time| Self::from_unix(time.and_utc().timestamp()).ok());
        time.filter(|time| time.to_string() == given)
            .ok_or_else(|| refuse("backup time", given, "is not like 2020-06-26T13:56:05Z"))
    }
}

/// `host/web1`: all snapshots of one thing.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GroupId {
    pub kind: BackupType,
    pub id: BackupId,
}

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind, self.id)
    }
}

impl FromStr for GroupId {
    type Err = NameError;
    fn from_str(given: &str) -> Result<Self, NameError> {
        let (kind, id) = given
            .split_once('/')
            .ok_or_else(|| refuse("backup group", given, "is not like host/NAME"))?;
        Ok(Self { kind: kind.parse()?, id: id.parse()? })
    }
}

/// By type, then numbers by value, then other ids as text.
impl Ord for GroupId {
    fn cmp(&self, other: &Self) -> Ordering {
        let number = |group: &Self| group.id.as_str().parse::<u64>().ok();
        let by_id = match (number(self), number(other)) {
            (Some(a), Some(b)) => a.cmp(&b).then_with(|| self.id.cmp(&other.id)),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => self.id.cmp(&other.id),
        };
        self.kind.cmp(&other.kind).then(by_id)
    }
}

impl PartialOrd for GroupId {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// `host/web1/2020-06-26T13:56:05Z`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotId {
    pub group: GroupId,
    pub time: BackupTime,
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.group, self.time)
    }
}

impl FromStr for SnapshotId {
    type Err = NameError;
    fn from_str(given: &str) -> Result<Self, NameError> {
        let (group, time) = given
            .rsplit_once('/')
            .filter(|(group, _)| group.contains('/'))
            .ok_or_else(|| refuse("snapshot", given, "is not like host/NAME/TIME"))?;
        Ok(Self { group: group.parse()?, time: time.parse()? })
    }
}

/// `a/b`: where groups lie; empty for the root.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Namespace(Vec<Box<str>>);

impl Namespace {
    pub const DEPTH_MAX: usize = 7;
    const BYTES_MAX: usize = 256;

    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    pub fn depth(&self) -> usize {
        self.0.len()
    }

    pub fn components(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|component| &**component)
    }

    /// None for the root.
    pub fn parent(&self) -> Option<Self> {
        let (_, parent) = self.0.split_last()?;
        Some(Self(parent.to_vec()))
    }

    pub fn child(&self, name: &str) -> Result<Self, NameError> {
        let path = if self.is_root() { name.to_owned() } else { format!("{self}/{name}") };
        path.parse()
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("/"))
    }
}

impl FromStr for Namespace {
    type Err = NameError;
    fn from_str(given: &str) -> Result<Self, NameError> {
        let components: Vec<Box<str>> =
            given.split('/').filter(|_| !given.is_empty()).map(Box::from).collect();
        let problem = if components.iter().any(|component| !is_safe_name(component)) {
            "is not made of safe names with '/' between them"
        } else if components.len() > Self::DEPTH_MAX {
            "is too deep: 7 levels are allowed"
        } else if given.len() > Self::BYTES_MAX {
            "is too long"
        } else {
            return Ok(Self(components));
        };
        Err(refuse("namespace", given, problem))
    }
}

/// How an archive is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ArchiveKind {
    /// content-defined chunks
    Dynamic,
    /// chunks of one size
    Fixed,
    Blob,
}

impl ArchiveKind {
    pub fn extension(self) -> &'static str {
        match self {
            Self::Dynamic => "didx",
            Self::Fixed => "fidx",
            Self::Blob => "blob",
        }
    }
}

/// A file of a snapshot as the store names it: `root.pxar.didx`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ArchiveName(Box<str>);

impl ArchiveName {
    /// What a user calls it: with `.didx`, `.fidx` or `.blob` it is taken as it is; `.pxar` means
    /// its index and `.img` its fixed index; anything else is a blob.
    pub fn from_user(given: &str) -> Result<Self, NameError> {
        let extension = given.rsplit_once('.').map_or("", |(_, extension)| extension);
        match extension {
            "didx" | "fidx" | "blob" => given.parse(),
            "pxar" | "mpxar" | "ppxar" | "pcat1" => format!("{given}.didx").parse(),
            "img" => format!("{given}.fidx").parse(),
            _ => format!("{given}.blob").parse(),
        }
    }

    /// An archive label, its extension and how it is kept.
    pub fn new(label: &ArchiveLabel, suffix: &str, kind: ArchiveKind) -> Result<Self, NameError> {
        format!("{label}{suffix}.{}", kind.extension()).parse()
    }

    pub fn manifest() -> Self {
        Self("index.json.blob".into())
    }

    pub fn catalog() -> Self {
        Self("catalog.pcat1.didx".into())
    }

    /// The log that a client uploads after a backup; the manifest does not list it.
    pub fn client_log() -> Self {
        Self("client.log.blob".into())
    }

    /// The backup's key, encrypted for a master key.
    pub fn wrapped_key() -> Self {
        Self("rsa-encrypted.key.blob".into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn kind(&self) -> ArchiveKind {
        match self.0.rsplit_once('.') {
            Some((_, "didx")) => ArchiveKind::Dynamic,
            Some((_, "fidx")) => ArchiveKind::Fixed,
            _ => ArchiveKind::Blob,
        }
    }

    /// Without `.didx`, `.fidx` or `.blob`: what users call it.
    pub fn user_name(&self) -> &str {
        self.0.rsplit_once('.').map_or(&self.0, |(name, _)| name)
    }

    /// The extension that tells which plugin reads it: `pxar` of `root.pxar.didx`.
    pub fn archive_extension(&self) -> &str {
        self.user_name().rsplit_once('.').map_or("", |(_, extension)| extension)
    }
}

impl fmt::Display for ArchiveName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ArchiveName {
    type Err = NameError;
    fn from_str(given: &str) -> Result<Self, NameError> {
        let known = [".didx", ".fidx", ".blob"].iter().any(|extension| given.ends_with(extension));
        match given {
            _ if !is_safe_name(given) => Err(refuse("archive", given, SAFE_PROBLEM)),
            _ if given.len() > NAME_BYTES_MAX => Err(refuse("archive", given, "is too long")),
            _ if !known => Err(refuse("archive", given, "does not end in .didx, .fidx or .blob")),
            _ => Ok(Self(given.into())),
        }
    }
}

/// What comes before the extension in a backup specification: `[A-Za-z0-9_-]+`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ArchiveLabel(Box<str>);

impl ArchiveLabel {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ArchiveLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ArchiveLabel {
    type Err = NameError;
    fn from_str(given: &str) -> Result<Self, NameError> {
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        match given {
            _ if given.is_empty() || !given.bytes().all(legal) || given.starts_with('-') => {
                Err(refuse("archive name", given, "may hold letters, digits, '_' and '-'"))
            }
            _ if given.len() > 200 => Err(refuse("archive name", given, "is too long")),
            _ => Ok(Self(given.into())),
        }
    }
}

/// Who somebody is: `user@realm`, or a token of theirs, `user@realm!token`. Spec: protocol.md §2.1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthId(String);

impl AuthId {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AuthId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for AuthId {
    type Err = AuthIdError;

    fn from_str(given: &str) -> Result<Self, Self::Err> {
        let (user_id, token) = match given.split_once('!') {
            Some((user_id, token)) => (user_id, Some(token)),
            None => (given, None),
        };
        let user = user_id.rsplit_once('@').is_some_and(|(user, realm)| {
            let legal = |c: char| !c.is_whitespace() && !c.is_control() && !":/".contains(c);
            !user.is_empty() && user.chars().all(legal) && is_safe_name(realm)
        });
        match user && token.is_none_or(is_safe_name) && given.len() <= 64 {
            true => Ok(Self(given.to_owned())),
            false => Err(AuthIdError { given: given.to_owned() }),
        }
    }
}

/// Text that should name somebody.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("'{given}' is not like USER@REALM or USER@REALM!TOKEN")]
pub struct AuthIdError {
    given: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_read_as_they_print() {
        let text = "host/web-1.example/2020-06-26T13:56:05Z";
        let snapshot: SnapshotId = text.parse().unwrap();
        assert_eq!(snapshot.time.unix(), 1_593_179_765);
        assert_eq!(snapshot.to_string(), text);
    }

    #[test]
    fn illegal_names_are_refused() {
        for bad in ["", "host", "host/", "host/..", "host/a b", "disk/a", "host/-a", "host/a/b"] {
            assert!(bad.parse::<GroupId>().is_err(), "{bad}");
        }
        for bad in ["host/a", "a/2020-06-26T13:56:05Z", "host/a/2020-06-26T13:56:05", "host/a/now"]
        {
            assert!(bad.parse::<SnapshotId>().is_err(), "{bad}");
        }
        for bad in ["2020-6-26T13:56:05Z", "1970-01-01T00:00:00Z", "2020-02-30T00:00:00Z"] {
            assert!(bad.parse::<BackupTime>().is_err(), "{bad}");
        }
        for bad in ["/", "a//b", "a/", "../a", "a/b/c/d/e/f/g/h", &"a".repeat(300)] {
            assert!(bad.parse::<Namespace>().is_err(), "{bad}");
        }
        for bad in ["", ".blob", "a/b.blob", "root.pxar", "..didx"] {
            assert!(bad.parse::<ArchiveName>().is_err(), "{bad}");
        }
        for bad in ["", "a.b", "a/b", "é", "-a"] {
            assert!(bad.parse::<ArchiveLabel>().is_err(), "{bad}");
        }
    }

    #[test]
    fn users_need_not_know_how_archives_are_kept() {
        let cases = [
            ("root.pxar", "root.pxar.didx"),
            ("root.pxar.didx", "root.pxar.didx"),
            ("drive.img", "drive.img.fidx"),
            ("app.conf", "app.conf.blob"),
            ("index.json", "index.json.blob"),
            ("root", "root.blob"),
        ];
        for (given, stored) in cases {
            assert_eq!(ArchiveName::from_user(given).unwrap().as_str(), stored);
        }
    }

    #[test]
    fn groups_sort_by_type_and_numbers_by_value() {
        let mut groups: Vec<GroupId> =
            ["vm/10", "vm/9", "host/b", "ct/a", "vm/x"].map(|text| text.parse().unwrap()).into();
        groups.sort();
        let sorted: Vec<String> = groups.iter().map(GroupId::to_string).collect();
        assert_eq!(sorted, ["ct/a", "host/b", "vm/9", "vm/10", "vm/x"]);
    }

    #[test]
    fn namespaces_have_parents() {
        let deep: Namespace = "a/b".parse().unwrap();
        assert_eq!(deep.parent().unwrap().to_string(), "a");
        assert_eq!(deep.parent().unwrap().child("b").unwrap(), deep);
        assert!(Namespace::default().parent().is_none());
    }

    #[test]
    fn users_and_tokens_are_told_by_their_form() {
        for good in ["root@pam", "a.b@pbs!tok-1", "x@y_1"] {
            assert_eq!(good.parse::<AuthId>().unwrap().to_string(), good);
        }
        let long = format!("{}@pbs", "x".repeat(61));
        for bad in
            ["", "root", "@pam", "a b@pam", "a@", "a/b@pam", "a@pam!", "a@pam!-", "a@pam\n", &long]
        {
            assert!(bad.parse::<AuthId>().is_err(), "{bad}");
        }
    }
}
