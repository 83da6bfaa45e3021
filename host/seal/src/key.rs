//! The key of backups: it encrypts, names chunks and signs. Spec: formats.md §2, §3.

use crate::random::random;
use aes_gcm::aead::consts::U16;
use aes_gcm::aead::inout::InOutBuf;
use aes_gcm::aead::{AeadInOut, KeyInit};
use aes_gcm::{AesGcm, aes::Aes256};
use hmac::{Hmac, Mac};
use keepwell_model::manifest::CryptMode;
use keepwell_model::{ChunkDigest, KeyFingerprint};
use sha2::{Digest, Sha256};
use std::fmt;
use std::sync::Arc;
use zeroize::Zeroizing;

/// Bytes of a key.
pub const KEY_BYTES: usize = 32;
/// Bytes of an initialisation vector: not the usual 12.
pub(crate) const IV_BYTES: usize = 16;
pub(crate) const TAG_BYTES: usize = 16;

const ID_SALT: &[u8] = b"_id_key";
const ID_ROUNDS: u32 = 10;
const FINGERPRINT_LABEL: &[u8] = b"Proxmox Backup Encryption Key Fingerprint";

/// AES-256-GCM with vectors of 16 bytes.
type Aes256Gcm16 = AesGcm<Aes256, U16>;

/// Ciphertext was changed, or another key made it.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("it was encrypted with another key, or changed")]
pub struct NotAuthentic;

/// Encrypts in the form that chunks, blobs and key files share.
pub(crate) struct Cipher(Aes256Gcm16);

impl Cipher {
    pub(crate) fn new(key: &[u8; KEY_BYTES]) -> Self {
        Self(Aes256Gcm16::new(key.into()))
    }

    /// Encrypts `plain` into `out`, which has the same length. Returns vector and tag.
    pub(crate) fn encrypt(
        &self,
        plain: &[u8],
        out: &mut [u8],
    ) -> Result<([u8; IV_BYTES], [u8; TAG_BYTES]), NotAuthentic> {
        let buffer = InOutBuf::new(plain, out).map_err(|_| NotAuthentic)?;
        self.encrypt_buffer(buffer)
    }

    pub(crate) fn encrypt_in_place(
        &self,
        bytes: &mut [u8],
    ) -> Result<([u8; IV_BYTES], [u8; TAG_BYTES]), NotAuthentic> {
        self.encrypt_buffer(bytes.into())
    }

    /// Fails for more than 64 GiB only.
    fn encrypt_buffer(
        &self,
        buffer: InOutBuf<'_, '_, u8>,
    ) -> Result<([u8; IV_BYTES], [u8; TAG_BYTES]), NotAuthentic> {
        let iv: [u8; IV_BYTES] = random();
        let tag = self.0.encrypt_inout_detached(&iv.into(), b"", buffer);
        Ok((iv, tag.map_err(|_| NotAuthentic)?.into()))
    }

    /// Decrypts in place, once the tag is right.
    pub(crate) fn decrypt(
        &self,
        iv: [u8; IV_BYTES],
        tag: [u8; TAG_BYTES],
        bytes: &mut [u8],
    ) -> Result<(), NotAuthentic> {
        let outcome = self.0.decrypt_inout_detached(&iv.into(), b"", bytes.into(), &tag.into());
        outcome.map_err(|_| NotAuthentic)
    }
}

/// A key and what is derived from it. Wiped from memory when it is dropped.
pub struct EncryptionKey {
    raw: Zeroizing<[u8; KEY_BYTES]>,
    id_key: Zeroizing<[u8; KEY_BYTES]>,
    cipher: Cipher,
}

impl EncryptionKey {
    pub fn generate() -> Self {
        Self::from_raw(Zeroizing::new(random()))
    }

    pub fn from_raw(raw: Zeroizing<[u8; KEY_BYTES]>) -> Self {
        let mut id_key = Zeroizing::new([0; KEY_BYTES]);
        pbkdf2::pbkdf2_hmac::<Sha256>(&raw[..], ID_SALT, ID_ROUNDS, &mut id_key[..]);
        let cipher = Cipher::new(&raw);
        Self { raw, id_key, cipher }
    }

    pub(crate) fn raw(&self) -> &[u8; KEY_BYTES] {
        &self.raw
    }

    pub(crate) fn cipher(&self) -> &Cipher {
        &self.cipher
    }

    /// Encrypts, and forgets vector and tag: only to see how fast it is.
    pub fn exercise(&self, bytes: &mut [u8]) -> Result<(), NotAuthentic> {
        self.cipher.encrypt_in_place(bytes).map(|_| ())
    }

    /// Names a chunk that this key encrypts.
    pub fn digest(&self, plain: &[u8]) -> ChunkDigest {
        ChunkDigest::from_bytes(self.keyed_hash(plain))
    }

    fn keyed_hash(&self, data: &[u8]) -> [u8; 32] {
        Sha256::new().chain_update(data).chain_update(&self.id_key[..]).finalize().into()
    }

    pub fn fingerprint(&self) -> KeyFingerprint {
        KeyFingerprint::from_bytes(self.keyed_hash(&Sha256::digest(FINGERPRINT_LABEL)))
    }

    /// HMAC-SHA256 in lower-case hex.
    pub fn sign(&self, text: &[u8]) -> String {
        hex::encode(self.mac(text).finalize().into_bytes())
    }

    /// Whether this key made the signature of the text.
    pub fn verifies(&self, text: &[u8], signature: &str) -> bool {
        hex::decode(signature).is_ok_and(|given| self.mac(text).verify_slice(&given).is_ok())
    }

    fn mac(&self, text: &[u8]) -> Hmac<Sha256> {
        // HMAC pads a short key to its block with zeros.
        let mut block = Zeroizing::new([0; 64]);
        block[..KEY_BYTES].copy_from_slice(&self.id_key[..]);
        Hmac::<Sha256>::new((&*block).into()).chain_update(text)
    }
}

/// How the content of a backup is protected.
#[derive(Clone, Debug, Default)]
pub enum Protection {
    #[default]
    None,
    /// The manifest is signed; content stays readable.
    Sign(Arc<EncryptionKey>),
    /// Content is encrypted, and the manifest signed.
    Encrypt(Arc<EncryptionKey>),
}

impl Protection {
    pub fn mode(&self) -> CryptMode {
        match self {
            Self::None => CryptMode::None,
            Self::Sign(_) => CryptMode::SignOnly,
            Self::Encrypt(_) => CryptMode::Encrypt,
        }
    }

    /// The key that signs.
    pub fn key(&self) -> Option<&Arc<EncryptionKey>> {
        match self {
            Self::None => None,
            Self::Sign(key) | Self::Encrypt(key) => Some(key),
        }
    }

    /// The key that content is encrypted with.
    pub fn encryption(&self) -> Option<&Arc<EncryptionKey>> {
        match self {
            Self::Encrypt(key) => Some(key),
            _ => None,
        }
    }
}

/// Shows the fingerprint only.
impl fmt::Debug for EncryptionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EncryptionKey({})", self.fingerprint().short())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The key of the specification's vectors.
    pub(crate) fn counting_key() -> EncryptionKey {
        EncryptionKey::from_raw(Zeroizing::new(std::array::from_fn(|at| at as u8)))
    }

    #[test]
    fn what_is_derived_from_a_key_never_changes() {
        let key = counting_key();
        assert_eq!(
            hex::encode(&key.id_key[..]),
            "7c2c013efd07f3b25717a485263343cd4d292a4b65c200bb3b18ea227abe225c"
        );
        assert_eq!(
            key.digest(b"hello\n").to_string(),
            "20bbd199c52e00417a79467b7d5af398d1f57bc44a8818d78d94c5cdebeec614"
        );
        assert_eq!(
            key.fingerprint().to_string(),
            "0e:ab:d4:46:0b:6e:b9:ca:34:50:23:de:e2:b7:78:c7:90:e5:4a:16:83:b9:65:9c:0a:57:ae:19:\
             90:90:15:9b"
        );
        assert_eq!(format!("{key:?}"), "EncryptionKey(0e:ab:d4:46:0b:6e:b9:ca)");
    }

    #[test]
    fn signatures_never_change() {
        let mut raw = Zeroizing::new([0; KEY_BYTES]);
        let hex_key = "28cdb1a3bef39396c3860e00d448fe7a0efd8244486ab6feb30457681d31597e";
        hex::decode_to_slice(hex_key, &mut raw[..]).unwrap();
        let key = EncryptionKey::from_raw(raw);
        let text = format!(
            r#"{{"backup-id":"elsa","backup-time":1593179765,"backup-type":"host","files":[{{"crypt-mode":"encrypt","csum":"{}","filename":"test1.img.fidx","size":200}},{{"crypt-mode":"none","csum":"{}","filename":"abc.blob","size":200}}]}}"#,
            "01".repeat(32),
            "02".repeat(32)
        );
        let signature = "d7b446fb7db081662081d4b40fedd858a1d6307a5aff4ecff7d5bf4fd35679e9";
        assert_eq!(key.sign(text.as_bytes()), signature);
        assert!(key.verifies(text.as_bytes(), signature));
        assert!(!key.verifies(b"other", signature));
        assert!(!key.verifies(text.as_bytes(), &signature[2..]));
        assert!(!key.verifies(text.as_bytes(), ""));
    }

    #[test]
    fn every_changed_bit_is_noticed() {
        let key = counting_key();
        let mut bytes = *b"plain text";
        let (iv, tag) = key.cipher().encrypt_in_place(&mut bytes).unwrap();
        assert_ne!(&bytes, b"plain text");
        for at in 0..bytes.len() * 8 {
            let mut bad = bytes;
            bad[at / 8] ^= 1 << (at % 8);
            assert_eq!(key.cipher().decrypt(iv, tag, &mut bad), Err(NotAuthentic));
        }
        for at in 0..128 {
            let (mut bad_iv, mut bad_tag) = (iv, tag);
            bad_iv[at / 8] ^= 1 << (at % 8);
            bad_tag[at / 8] ^= 1 << (at % 8);
            assert_eq!(key.cipher().decrypt(bad_iv, tag, &mut bytes.clone()), Err(NotAuthentic));
            assert_eq!(key.cipher().decrypt(iv, bad_tag, &mut bytes.clone()), Err(NotAuthentic));
        }
        key.cipher().decrypt(iv, tag, &mut bytes).unwrap();
        assert_eq!(&bytes, b"plain text");
    }
}
