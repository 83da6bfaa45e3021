//! SHA-256 values, one type for each meaning.

use sha2::{Digest, Sha256};
use std::fmt;
use std::str::FromStr;

macro_rules! digest_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; 32]);

        impl $name {
            pub const fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = DigestError;
            /// Exactly 64 lower-case hex digits.
            fn from_str(given: &str) -> Result<Self, Self::Err> {
                let mut bytes = [0; 32];
                let lower = !given.bytes().any(|byte| byte.is_ascii_uppercase());
                match hex::decode_to_slice(given, &mut bytes) {
                    Ok(()) if lower => Ok(Self(bytes)),
                    _ => Err(DigestError { given: given.to_owned() }),
                }
            }
        }
    };
}

digest_type! {
    /// Names a chunk: SHA-256 of its plain bytes, with a key of bytes and id key (spec §3).
    ChunkDigest
}

digest_type! {
    /// Checksum of a file as the manifest lists it: of an index its entries, of a blob the file.
    FileChecksum
}

impl FileChecksum {
    /// Of a blob: over the whole encoded file.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }
}

/// Tells which key it was: spec formats.md §3.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct KeyFingerprint([u8; 32]);

impl KeyFingerprint {
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The first 8 bytes, as messages show it.
    pub fn short(&self) -> String {
        colons(&self.0[..8])
    }
}

fn colons(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}

impl fmt::Display for KeyFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&colons(&self.0))
    }
}

impl fmt::Debug for KeyFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for KeyFingerprint {
    type Err = FingerprintError;
    /// 32 bytes in hex; colons may stand anywhere.
    fn from_str(given: &str) -> Result<Self, Self::Err> {
        let mut bytes = [0; 32];
        match hex::decode_to_slice(given.replace(':', ""), &mut bytes) {
            Ok(()) => Ok(Self(bytes)),
            Err(_) => Err(FingerprintError { given: given.to_owned() }),
        }
    }
}

/// Text that should be a key's fingerprint.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("'{given}' is not a fingerprint of 32 hex pairs")]
pub struct FingerprintError {
    given: String,
}

/// Text that should be a digest.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("'{given}' is not a digest of 64 lower-case hex digits")]
pub struct DigestError {
    given: String,
}

/// A checksum that grows.
#[derive(Clone, Default)]
pub struct RunningChecksum(Sha256);

impl RunningChecksum {
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }
    pub fn finish(self) -> FileChecksum {
        FileChecksum(self.0.finalize().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_are_hex_pairs_with_colons() {
        let text = ["ab"; 32].join(":");
        let fingerprint: KeyFingerprint = text.parse().unwrap();
        assert_eq!(fingerprint.to_string(), text);
        assert_eq!(fingerprint.short(), "ab:ab:ab:ab:ab:ab:ab:ab");
        assert_eq!("AB".repeat(32).parse(), Ok(fingerprint));
        for bad in ["", "ab:", "zz", &["ab"; 33].join(":")] {
            assert!(bad.parse::<KeyFingerprint>().is_err(), "{bad}");
        }
    }

    #[test]
    fn digests_are_lower_case_hex_of_32_bytes() {
        let text = "ab".repeat(32);
        assert_eq!(text.parse::<ChunkDigest>().unwrap().to_string(), text);
        for bad in ["AB".repeat(32), "ab".repeat(31), "xy".repeat(32)] {
            assert!(bad.parse::<ChunkDigest>().is_err(), "{bad}");
        }
    }
}
