//! Master keys: RSA pairs that wrap the key of each backup. Spec: formats.md §11.

use crate::key_file::KeyFile;
use crate::random::random;
use rsa::pkcs1::DecodeRsaPrivateKey;
use rsa::pkcs8::der::SecretDocument;
use rsa::pkcs8::der::pem::PemLabel;
use rsa::pkcs8::{
    DecodePrivateKey, DecodePublicKey, EncodePrivateKey, EncodePublicKey,
    EncryptedPrivateKeyInfoRef, LineEnding, PrivateKeyInfoRef, pkcs5,
};
use rsa::traits::PublicKeyParts;
use rsa::{PrivateKey, PublicKey};
use zeroize::Zeroizing;

/// Of new pairs.
const BITS: usize = 4096;
/// Rounds of PBKDF2 that protect a private key.
const ROUNDS: u32 = 600_000;

/// What can be wrong with a master key, or with what it should open.
#[derive(Debug, thiserror::Error)]
pub enum MasterKeyError {
    #[error("it is no public RSA key in PEM form")]
    Public,
    #[error("it is no private RSA key in PEM form")]
    Private,
    #[error(
        "it is encrypted in a form that is not supported; convert it with `openssl pkcs8 -topk8 -v2 \
         aes-256-cbc -in FILE -out NEW`"
    )]
    Unsupported,
    #[error("it can't be decrypted (wrong password?)")]
    WrongPassphrase,
    #[error(
        "the master key has {bits} bits, too few to encrypt a key: use one of 4096, as `keepwell key create-master-key` makes it"
    )]
    TooSmall { bits: u32 },
    #[error(
        "it has {found} bytes and not {expected}: restore `rsa-encrypted.key` of a snapshot, and use that"
    )]
    WrappedLength { found: usize, expected: usize },
    #[error("it was not encrypted for this master key")]
    Unwrap,
    #[error("no master key could be made")]
    Generate,
}

/// The public half.
pub struct MasterPublicKey(PublicKey);

impl MasterPublicKey {
    pub fn from_pem(pem: &[u8]) -> Result<Self, MasterKeyError> {
        let text = std::str::from_utf8(pem).map_err(|_| MasterKeyError::Public)?;
        let key = PublicKey::from_public_key_pem(text).map_err(|_| MasterKeyError::Public)?;
        Ok(Self(key))
    }

    pub fn to_pem(&self) -> Result<String, MasterKeyError> {
        self.0.to_public_key_pem(LineEnding::LF).map_err(|_| MasterKeyError::Generate)
    }

    /// Upper-case hex.
    pub fn modulus(&self) -> String {
        let bytes = self.0.n().to_be_bytes_trimmed_vartime();
        hex::encode_upper(bytes)
    }

    /// Decimal.
    pub fn exponent(&self) -> String {
        self.0.e().to_string_radix_vartime(10)
    }

    pub fn bits(&self) -> u32 {
        self.0.n().bit_width()
    }

    /// Encrypts (PKCS#1 v1.5) what only the private half can read.
    pub fn wrap(&self, plain: &[u8]) -> Result<Vec<u8>, MasterKeyError> {
        let too_small = |_| MasterKeyError::TooSmall { bits: self.bits() };
        self.0.pkcs1v15_encrypt(plain).map_err(too_small)
    }
}

/// The private half.
pub struct MasterKey(PrivateKey);

impl MasterKey {
    pub fn generate() -> Result<Self, MasterKeyError> {
        let key = PrivateKey::new(&mut getrandom::SysRng, BITS);
        Ok(Self(key.map_err(|_| MasterKeyError::Generate)?))
    }

    pub fn public(&self) -> MasterPublicKey {
        MasterPublicKey(self.0.to_public_key())
    }

    /// Whether a private key needs a passphrase.
    pub fn is_locked(pem: &str) -> bool {
        pem.contains(EncryptedPrivateKeyInfoRef::PEM_LABEL)
    }

    /// PKCS#8, with or without a passphrase, or PKCS#1.
    pub fn from_pem(pem: &str, passphrase: &[u8]) -> Result<Self, MasterKeyError> {
        let key = if Self::is_locked(pem) {
            let (_, sealed) = SecretDocument::from_pem(pem).map_err(|_| MasterKeyError::Private)?;
            let sealed = EncryptedPrivateKeyInfoRef::try_from(sealed.as_bytes())
                .map_err(|_| MasterKeyError::Unsupported)?;
            let plain = sealed.decrypt(passphrase).map_err(|problem| match problem {
                rsa::pkcs8::Error::EncryptedPrivateKey(pkcs5::Error::DecryptFailed) => {
                    MasterKeyError::WrongPassphrase
                }
                _ => MasterKeyError::Unsupported,
            })?;
            // Now and then a wrong password looks right until here.
            PrivateKey::from_pkcs8_der(plain.as_bytes())
                .map_err(|_| MasterKeyError::WrongPassphrase)?
        } else if pem.contains("Proc-Type: 4,ENCRYPTED") {
            return Err(MasterKeyError::Unsupported);
        } else {
            PrivateKey::from_pkcs8_pem(pem)
                .or_else(|_| PrivateKey::from_pkcs1_pem(pem))
                .map_err(|_| MasterKeyError::Private)?
        };
        Ok(Self(key))
    }

    /// PKCS#8 under AES-256-CBC.
    pub fn to_pem(&self, passphrase: &[u8]) -> Result<Zeroizing<String>, MasterKeyError> {
        let (salt, iv) = (random::<16>(), random::<16>());
        let sealed = || {
            let scheme =
                pkcs5::pbes2::Parameters::generate_pbkdf2_sha256_aes256cbc(ROUNDS, &salt, iv)?;
            let plain = self.0.to_pkcs8_der()?;
            let info = PrivateKeyInfoRef::try_from(plain.as_bytes())?;
            let sealed = info.encrypt_with_params(scheme, passphrase)?;
            Ok(sealed.to_pem(EncryptedPrivateKeyInfoRef::PEM_LABEL, LineEnding::LF)?)
        };
        sealed().map_err(|_: rsa::pkcs8::Error| MasterKeyError::Generate)
    }

    /// Decrypts a key that the public half wrapped. Whatever was encrypted for another key becomes
    /// arbitrary bytes (implicit rejection), which are no key file.
    pub fn unwrap_key(&self, wrapped: &[u8]) -> Result<KeyFile, MasterKeyError> {
        let (found, expected) = (wrapped.len(), self.0.size());
        if found != expected {
            return Err(MasterKeyError::WrappedLength { found, expected });
        }
        let plain = self.0.pkcs1v15_decrypt(wrapped).map_err(|_| MasterKeyError::Unwrap)?;
        KeyFile::parse(&Zeroizing::new(plain)).map_err(|_| MasterKeyError::Unwrap)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_public_half_wraps_the_private_half_unwraps() {
        let key = MasterKey(PrivateKey::new(&mut getrandom::SysRng, 2048).unwrap());
        let pem = key.to_pem(b"master password").unwrap();
        assert!(pem.starts_with("-----BEGIN ENCRYPTED PRIVATE KEY-----\n"));
        assert!(MasterKey::is_locked(&pem));
        let wrong = MasterKey::from_pem(&pem, b"other password");
        assert!(matches!(wrong, Err(MasterKeyError::WrongPassphrase)));
        let read = MasterKey::from_pem(&pem, b"master password").unwrap();
        let public = MasterPublicKey::from_pem(read.public().to_pem().unwrap().as_bytes()).unwrap();
        assert_eq!((public.bits(), public.exponent().as_str()), (2048, "65537"));
        assert_eq!(public.modulus().len(), 512);
        let json = br#"{"kdf":null,"created":"2020-06-08T09:38:31Z","modified":"2020-06-08T09:38:31Z","data":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="}"#;
        let wrapped = public.wrap(json).unwrap();
        assert_eq!(wrapped.len(), 256);
        let key = read.unwrap_key(&wrapped).unwrap().unlock(b"").unwrap();
        assert_eq!(key.fingerprint(), crate::key::tests::counting_key().fingerprint());
        for at in [0, 1, 100, 255] {
            let mut bad = wrapped.clone();
            bad[at] ^= 1;
            assert!(matches!(read.unwrap_key(&bad), Err(MasterKeyError::Unwrap)));
        }
        assert!(matches!(read.unwrap_key(&[0xff; 256]), Err(MasterKeyError::Unwrap)));
        for bad in [&wrapped[1..], b""] {
            let refused = read.unwrap_key(bad);
            assert!(matches!(refused, Err(MasterKeyError::WrappedLength { expected: 256, .. })));
        }
        let other = MasterKey(PrivateKey::new(&mut getrandom::SysRng, 2048).unwrap());
        assert!(matches!(other.unwrap_key(&wrapped), Err(MasterKeyError::Unwrap)));
        assert!(matches!(public.wrap(&[0; 246]), Err(MasterKeyError::TooSmall { bits: 2048 })));
    }

    #[test]
    fn what_is_no_key_is_refused() {
        assert!(matches!(MasterPublicKey::from_pem(b"hello"), Err(MasterKeyError::Public)));
        assert!(matches!(MasterPublicKey::from_pem(&[0xff; 9]), Err(MasterKeyError::Public)));
        assert!(matches!(MasterKey::from_pem("hello", b""), Err(MasterKeyError::Private)));
    }
}
