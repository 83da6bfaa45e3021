//! Key files, with and without a passphrase. Spec: formats.md §10.

use crate::key::{Cipher, EncryptionKey, IV_BYTES, KEY_BYTES, TAG_BYTES};
use crate::random::random;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use chrono::{DateTime, FixedOffset, SecondsFormat};
use keepwell_model::KeyFingerprint;
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use zeroize::Zeroizing;

/// Shorter ones are refused.
pub const PASSPHRASE_BYTES_MIN: usize = 5;
const SALT_BYTES: usize = 32;
const SCRYPT: (u64, u64, u64) = (65_536, 8, 1);
const PBKDF2_ROUNDS: u64 = 65_535;
/// What scrypt may take when a key is unlocked.
const SCRYPT_MEMORY_MAX: u64 = 1025 << 20;
/// The time that a key takes grows with it; key files have 1.
const SCRYPT_P_MAX: u64 = 64;
const PBKDF2_ROUNDS_MAX: u64 = 100_000_000;
const LOCKED_BYTES: usize = IV_BYTES + TAG_BYTES + KEY_BYTES;

/// What can be wrong with a key file, or with the passphrase given for it.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// What stands there is not shown: it may be a secret.
    #[error("it is empty")]
    Empty,
    #[error("it is no key file (line {line}, column {column})")]
    Json { line: usize, column: usize },
    #[error("its {0} is not a date with time and offset")]
    Time(&'static str),
    #[error("its {0} is not base64")]
    Base64(&'static str),
    #[error("it holds {found} bytes of key data instead of {expected}")]
    Length { expected: usize, found: usize },
    #[error("its parameters for {0} are out of bounds")]
    Parameters(&'static str),
    #[error("its fingerprint is not one of 32 hex pairs")]
    Fingerprint,
    #[error("KeyConfig contains wrong fingerprint {stated}, contained key has fingerprint {found}")]
    WrongFingerprint { stated: String, found: String },
    #[error("Passphrase is too short!")]
    ShortPassphrase,
    #[error("Unable to decrypt key (password hint: {0})")]
    WrongPassphraseHint(String),
    #[error("Unable to decrypt key (wrong password?)")]
    WrongPassphrase,
}

/// How a passphrase becomes a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KdfKind {
    None,
    Scrypt,
    Pbkdf2,
}

impl KdfKind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Scrypt => "scrypt",
            Self::Pbkdf2 => "pbkdf2",
        }
    }
}

/// With its parameters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Kdf {
    Scrypt {
        n: u64,
        r: u64,
        p: u64,
        salt: String,
    },
    #[serde(rename = "PBKDF2")]
    Pbkdf2 {
        iter: u64,
        salt: String,
    },
}

impl Kdf {
    fn derive(&self, passphrase: &[u8]) -> Result<Zeroizing<[u8; KEY_BYTES]>, KeyFileError> {
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        let salt_of =
            |salt: &String| BASE64_STANDARD.decode(salt).map_err(|_| KeyFileError::Base64("salt"));
        match self {
            Self::Scrypt { n, r, p, salt } => {
                let out_of_bounds = || KeyFileError::Parameters("scrypt");
                // 128 bytes for each of n·r blocks, and for each of r·p.
                let fits = |count: Option<u64>| {
                    count
                        .and_then(|count| count.checked_mul(128))
                        .is_some_and(|bytes| bytes <= SCRYPT_MEMORY_MAX)
                };
                if !n.is_power_of_two()
                    || *n < 2
                    || *p > SCRYPT_P_MAX
                    || !fits(n.checked_mul(*r))
                    || !fits(r.checked_mul(*p))
                {
                    return Err(out_of_bounds());
                }
                let narrow = |value: u64| u32::try_from(value).map_err(|_| out_of_bounds());
                let log_n = n.trailing_zeros() as u8;
                let parameters = scrypt::Params::new(log_n, narrow(*r)?, narrow(*p)?)
                    .map_err(|_| out_of_bounds())?;
                scrypt::scrypt(passphrase, &salt_of(salt)?, &parameters, &mut key[..])
                    .map_err(|_| out_of_bounds())?;
            }
            Self::Pbkdf2 { iter, salt } => {
                let rounds = u32::try_from(*iter)
                    .ok()
                    .filter(|rounds| *rounds > 0 && u64::from(*rounds) <= PBKDF2_ROUNDS_MAX);
                let rounds = rounds.ok_or(KeyFileError::Parameters("PBKDF2"))?;
                pbkdf2::pbkdf2_hmac::<Sha256>(passphrase, &salt_of(salt)?, rounds, &mut key[..]);
            }
        }
        Ok(key)
    }
}

/// A moment as key files write it: RFC 3339 with an offset.
pub type KeyTime = DateTime<FixedOffset>;

/// The form on disk, in this order.
#[derive(Serialize, Deserialize)]
struct Document {
    kdf: Option<Kdf>,
    created: String,
    modified: String,
    data: Zeroizing<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fingerprint: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

/// A key file: the key itself, or locked with a passphrase.
pub struct KeyFile {
    kdf: Option<Kdf>,
    pub created: KeyTime,
    pub modified: KeyTime,
    data: Zeroizing<Vec<u8>>,
    pub fingerprint: Option<KeyFingerprint>,
    pub hint: Option<String>,
}

fn parse_time(text: &str, name: &'static str) -> Result<KeyTime, KeyFileError> {
    DateTime::parse_from_rfc3339(text).map_err(|_| KeyFileError::Time(name))
}

impl KeyFile {
    /// Reads a file's JSON.
    pub fn parse(json: &[u8]) -> Result<Self, KeyFileError> {
        if json.is_empty() {
            return Err(KeyFileError::Empty);
        }
        let document: Document = serde_json::from_slice(json).map_err(|problem| {
            KeyFileError::Json { line: problem.line(), column: problem.column() }
        })?;
        let data = BASE64_STANDARD.decode(document.data.as_bytes());
        let data = Zeroizing::new(data.map_err(|_| KeyFileError::Base64("data"))?);
        let expected = if document.kdf.is_some() { LOCKED_BYTES } else { KEY_BYTES };
        if data.len() != expected {
            return Err(KeyFileError::Length { expected, found: data.len() });
        }
        Ok(Self {
            kdf: document.kdf,
            created: parse_time(&document.created, "created")?,
            modified: parse_time(&document.modified, "modified")?,
            data,
            fingerprint: document
                .fingerprint
                .map(|text| text.parse().map_err(|_| KeyFileError::Fingerprint))
                .transpose()?,
            hint: document.hint,
        })
    }

    /// A file without a passphrase.
    pub fn open(key: &EncryptionKey, created: KeyTime, modified: KeyTime) -> Self {
        let data = Zeroizing::new(key.raw().to_vec());
        let fingerprint = Some(key.fingerprint());
        Self { kdf: None, created, modified, data, fingerprint, hint: None }
    }

    /// A file that `passphrase` unlocks; with [`KdfKind::None`] one that needs none.
    pub fn locked(
        key: &EncryptionKey,
        kind: KdfKind,
        passphrase: &[u8],
        created: KeyTime,
        modified: KeyTime,
    ) -> Result<Self, KeyFileError> {
        let salt = BASE64_STANDARD.encode(random::<SALT_BYTES>());
        let (n, r, p) = SCRYPT;
        let kdf = match kind {
            KdfKind::None => return Ok(Self::open(key, created, modified)),
            KdfKind::Scrypt => Kdf::Scrypt { n, r, p, salt },
            KdfKind::Pbkdf2 => Kdf::Pbkdf2 { iter: PBKDF2_ROUNDS, salt },
        };
        if passphrase.len() < PASSPHRASE_BYTES_MIN {
            return Err(KeyFileError::ShortPassphrase);
        }
        let mut sealed = Zeroizing::new(*key.raw());
        let cipher = Cipher::new(&*kdf.derive(passphrase)?);
        let (iv, tag) =
            cipher.encrypt_in_place(&mut sealed[..]).map_err(|_| KeyFileError::WrongPassphrase)?;
        let data = Zeroizing::new([&iv[..], &tag, &sealed[..]].concat());
        Ok(Self { kdf: Some(kdf), data, ..Self::open(key, created, modified) })
    }

    pub fn kdf(&self) -> KdfKind {
        match self.kdf {
            None => KdfKind::None,
            Some(Kdf::Scrypt { .. }) => KdfKind::Scrypt,
            Some(Kdf::Pbkdf2 { .. }) => KdfKind::Pbkdf2,
        }
    }

    /// The key. A file without a passphrase ignores the one given.
    pub fn unlock(&self, passphrase: &[u8]) -> Result<EncryptionKey, KeyFileError> {
        let mut raw = Zeroizing::new([0; KEY_BYTES]);
        match &self.kdf {
            None => raw.copy_from_slice(&self.data),
            Some(kdf) => {
                if passphrase.len() < PASSPHRASE_BYTES_MIN {
                    return Err(KeyFileError::ShortPassphrase);
                }
                let cipher = Cipher::new(&*kdf.derive(passphrase)?);
                let (mut iv, mut tag) = ([0; IV_BYTES], [0; TAG_BYTES]);
                iv.copy_from_slice(&self.data[..IV_BYTES]);
                tag.copy_from_slice(&self.data[IV_BYTES..IV_BYTES + TAG_BYTES]);
                raw.copy_from_slice(&self.data[IV_BYTES + TAG_BYTES..]);
                cipher.decrypt(iv, tag, &mut raw[..]).map_err(|_| match &self.hint {
                    Some(hint) => KeyFileError::WrongPassphraseHint(hint.clone()),
                    None => KeyFileError::WrongPassphrase,
                })?;
            }
        }
        let key = EncryptionKey::from_raw(raw);
        match self.fingerprint {
            Some(stated) if stated != key.fingerprint() => Err(KeyFileError::WrongFingerprint {
                stated: stated.short(),
                found: key.fingerprint().short(),
            }),
            _ => Ok(key),
        }
    }

    fn document(&self) -> Document {
        let time = |time: &KeyTime| time.to_rfc3339_opts(SecondsFormat::Secs, false);
        Document {
            kdf: self.kdf.clone(),
            created: time(&self.created),
            modified: time(&self.modified),
            data: Zeroizing::new(BASE64_STANDARD.encode(&self.data)),
            fingerprint: self.fingerprint.map(|fingerprint| fingerprint.to_string()),
            hint: self.hint.clone(),
        }
    }

    /// One line, as the file holds it.
    pub fn to_json(&self) -> Zeroizing<String> {
        Zeroizing::new(serde_json::to_string(&self.document()).unwrap_or_default())
    }

    /// Indented, as paper shows it.
    pub fn to_json_pretty(&self) -> Zeroizing<String> {
        Zeroizing::new(serde_json::to_string_pretty(&self.document()).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::tests::counting_key;
    use proptest::prelude::*;

    fn time(text: &str) -> KeyTime {
        parse_time(text, "time").unwrap()
    }

    const PLAIN: &str = r#"{"kdf":null,"created":"2020-06-08T09:38:31+02:00","modified":"2020-06-08T09:38:32+02:00","data":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=","fingerprint":"0e:ab:d4:46:0b:6e:b9:ca:34:50:23:de:e2:b7:78:c7:90:e5:4a:16:83:b9:65:9c:0a:57:ae:19:90:90:15:9b"}"#;

    #[test]
    fn a_file_without_a_passphrase_never_changes() {
        let created = time("2020-06-08T09:38:31+02:00");
        let modified = time("2020-06-08T09:38:32+02:00");
        let file = KeyFile::open(&counting_key(), created, modified);
        assert_eq!(file.to_json().as_str(), PLAIN);
        let read = KeyFile::parse(PLAIN.as_bytes()).unwrap();
        assert_eq!(read.to_json().as_str(), PLAIN);
        assert_eq!(read.unlock(b"").unwrap().raw(), counting_key().raw());
    }

    #[test]
    fn only_the_passphrase_unlocks() {
        let now = time("2026-01-01T00:00:00+00:00");
        for kind in [KdfKind::Scrypt, KdfKind::Pbkdf2] {
            let file = KeyFile::locked(&counting_key(), kind, b"secret", now, now).unwrap();
            let mut file = KeyFile::parse(file.to_json().as_bytes()).unwrap();
            assert_eq!(file.kdf(), kind);
            assert_eq!(file.unlock(b"secret").unwrap().raw(), counting_key().raw());
            assert!(matches!(file.unlock(b"Secret"), Err(KeyFileError::WrongPassphrase)));
            assert!(matches!(file.unlock(b"secr"), Err(KeyFileError::ShortPassphrase)));
            file.hint = Some("the hint".into());
            let error = file.unlock(b"Secret").unwrap_err().to_string();
            assert_eq!(error, "Unable to decrypt key (password hint: the hint)");
            file.fingerprint = Some(KeyFingerprint::from_bytes([1; 32]));
            assert!(matches!(file.unlock(b"secret"), Err(KeyFileError::WrongFingerprint { .. })));
        }
    }

    #[test]
    fn files_that_are_none_are_refused() {
        let scrypt = |n: &str, r: &str, p: &str| {
            let data = BASE64_STANDARD.encode([0; LOCKED_BYTES]);
            format!(
                r#"{{"kdf":{{"Scrypt":{{"n":{n},"r":{r},"p":{p},"salt":"AAAA"}}}},"created":"2020-06-08T09:38:31Z","modified":"2020-06-08T09:38:31Z","data":"{data}"}}"#
            )
        };
        for (n, r, p) in [
            ("0", "8", "1"),
            ("1", "8", "1"),
            ("65537", "8", "1"),
            ("65536", "0", "1"),
            ("65536", "8", "0"),
            ("9223372036854775808", "8", "1"),
            ("2097152", "8", "1"),
            ("2", "4294967295", "4294967295"),
            ("2", "1", "18446744073709551615"),
        ] {
            let file = KeyFile::parse(scrypt(n, r, p).as_bytes()).unwrap();
            let outcome = file.unlock(b"secret");
            assert!(matches!(outcome, Err(KeyFileError::Parameters(_))), "{n} {r} {p}");
        }
        for (from, to) in [
            ("null", "{\"Scrypt\":{}}"),
            ("AAEC", "AAE"),
            ("AAECAwQF", "AAEC"),
            ("2020-06-08T09:38:31+02:00", "yesterday"),
            ("0e:ab", "0e"),
            ("{", ""),
        ] {
            assert!(KeyFile::parse(PLAIN.replacen(from, to, 1).as_bytes()).is_err(), "{to}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = KeyFile::parse(&bytes);
        }
    }
}
