//! The server's keys: of TLS, of tickets and of CSRF tokens. What is missing is made.

use crate::config::Config;
use crate::error::{Result, io, refused};
use crate::files::{self, PUBLIC, SECRET};
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use keepwell_transport::Fingerprint;
use keepwell_transport::ticket::{CLOCK_SKEW, LIFETIME, Ticket, TicketError};
use ring::digest::{SHA256, digest};
use ring::rand::SystemRandom;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use sha3::Sha3_256;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use zeroize::Zeroizing;

/// What signs tickets and CSRF tokens.
pub(crate) struct AuthKeys {
    tickets: Ed25519KeyPair,
    csrf: Zeroizing<Vec<u8>>,
}

impl AuthKeys {
    pub(crate) fn load_or_make(state: &Path) -> Result<Self> {
        let path = state.join("authkey.key");
        let bad = |problem: String| refused(format!("'{}': {problem}", path.display()));
        let pem = match files::read(&path)? {
            Some(pem) => Zeroizing::new(pem),
            None => {
                let made = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new());
                let made = made.map_err(|_| refused("no random numbers can be had"))?;
                let pem = to_pem("PRIVATE KEY", made.as_ref());
                files::write(&path, pem.as_bytes(), SECRET)?;
                Zeroizing::new(pem.as_bytes().to_vec())
            }
        };
        let der =
            PrivatePkcs8KeyDer::from_pem_slice(&pem).map_err(|error| bad(error.to_string()))?;
        let tickets = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der.secret_pkcs8_der());
        let tickets = tickets.map_err(|error| bad(format!("no Ed25519 key: {error}")))?;
        let path = state.join("csrf.key");
        let csrf = match files::read(&path)? {
            Some(text) => {
                let text = Zeroizing::new(text);
                let decoded = STANDARD_NO_PAD.decode(text.trim_ascii());
                Zeroizing::new(decoded.unwrap_or_else(|_| text.to_vec()))
            }
            None => {
                let mut key = Zeroizing::new(vec![0; 64]);
                getrandom::fill(&mut key).map_err(|error| refused(error.to_string()))?;
                let text = Zeroizing::new(STANDARD_NO_PAD.encode(&key));
                files::write(&path, text.as_bytes(), SECRET)?;
                key
            }
        };
        Ok(Self { tickets, csrf })
    }

    pub(crate) fn sign(&self, bytes: &[u8]) -> Vec<u8> {
        self.tickets.sign(bytes).as_ref().to_vec()
    }

    /// The user of a ticket that we have signed and that is still good.
    pub(crate) fn verify(&self, ticket: &str, now: i64) -> Result<String, TicketError> {
        let ticket = Ticket::parse(ticket)?;
        let (signed, signature) = ticket.signed().ok_or(TicketError::BadSignature)?;
        let key = UnparsedPublicKey::new(&ED25519, self.tickets.public_key());
        key.verify(signed, &signature).map_err(|_| TicketError::BadSignature)?;
        ticket.check_age(now)?;
        Ok(ticket.data)
    }

    fn mac(&self, time: &str, user: &str) -> Hmac<Sha3_256> {
        // HMAC takes keys of any length.
        #[allow(clippy::expect_used, reason = "it can't fail")]
        let mut mac = Hmac::<Sha3_256>::new_from_slice(&self.csrf).expect("any key");
        mac.update(format!("{time}:{user}:").as_bytes());
        mac
    }

    pub(crate) fn csrf_token(&self, user: &str, now: i64) -> String {
        let time = format!("{now:08X}");
        let digest = self.mac(&time, user).finalize().into_bytes();
        format!("{time}:{}", STANDARD_NO_PAD.encode(digest))
    }

    pub(crate) fn verifies_csrf(&self, token: &str, user: &str, now: i64) -> bool {
        let Some((time, given)) = token.split_once(':') else { return false };
        let Ok(issued) = i64::from_str_radix(time, 16) else { return false };
        let Ok(given) = STANDARD_NO_PAD.decode(given) else { return false };
        let age = now.saturating_sub(issued);
        let is_right = self.mac(time, user).verify_slice(&given).is_ok()
            || is_equal(&self.old_csrf_digest(time, user), &given);
        (-CLOCK_SKEW..=LIFETIME).contains(&age) && is_right
    }

    /// What older servers of the reference made of the same key.
    fn old_csrf_digest(&self, time: &str, user: &str) -> Vec<u8> {
        let text = Zeroizing::new([format!("{time}:{user}:").as_bytes(), &self.csrf[..]].concat());
        digest(&SHA256, &text).as_ref().to_vec()
    }
}

/// Takes as long wherever the difference is.
fn is_equal(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len() && one.iter().zip(other).fold(0u8, |all, (a, b)| all | (a ^ b)) == 0
}

fn to_pem(label: &str, der: &[u8]) -> Zeroizing<String> {
    let text = Zeroizing::new(base64::engine::general_purpose::STANDARD.encode(der));
    let mut pem = Zeroizing::new(format!("-----BEGIN {label}-----\n"));
    for line in text.as_bytes().chunks(64) {
        pem.push_str(&String::from_utf8_lossy(line));
        pem.push('\n');
    }
    pem.push_str(&format!("-----END {label}-----\n"));
    pem
}

const ORGANIZATION: &str = "Keepwell";
const DAY_SECONDS: i64 = 86_400;
const LIFETIME_DAYS: i64 = 3650;
/// The end of the year 9999: certificates have no later times.
const TIME_MAX: i64 = 253_402_300_799;

/// Makes a new certificate and key in the place of those that we made. Others are left alone.
pub fn renew_certificate(config: &Config, node: &str, now: i64) -> Result<()> {
    let mut there = [&config.certificate, &config.key].into_iter();
    if let Some(path) = there.find(|path| path.symlink_metadata().is_ok())
        && !is_ours(config)
    {
        return Err(refused(format!(
            "'{}' is not replaced: keepwell did not make the certificate there; renew it where it \
             came from, or move it and its key away first",
            path.display()
        )));
    }
    make_certificate(config, node, now)
}

/// Whether we made the certificate: it is alone, and names us as who it is of and who issued it.
fn is_ours(config: &Config) -> bool {
    let length = u8::try_from(ORGANIZATION.len()).unwrap_or_default();
    // DER: the identifier of the attribute, then its text.
    let name = [&[0x06, 0x03, 0x55, 0x04, 0x0a, 0x0c, length][..], ORGANIZATION.as_bytes()];
    let name = name.concat();
    certificates(config).is_ok_and(|list| match &list[..] {
        [one] => one.windows(name.len()).filter(|bytes| *bytes == name).count() == 2,
        _ => false,
    })
}

/// Makes a self-signed certificate and its key, for ten years. What was there is replaced.
fn make_certificate(config: &Config, node: &str, now: i64) -> Result<()> {
    let failed = |error: rcgen::Error| refused(format!("unable to make a certificate: {error}"));
    let mut names = vec![node.to_owned(), "localhost".into()];
    for address in &config.listen {
        if !address.ip().is_unspecified() {
            names.push(address.ip().to_string());
        }
    }
    names.dedup();
    let key = rcgen::KeyPair::generate().map_err(failed)?;
    let mut parameters = rcgen::CertificateParams::new(names).map_err(failed)?;
    parameters.distinguished_name = rcgen::DistinguishedName::new();
    parameters.distinguished_name.push(rcgen::DnType::OrganizationName, ORGANIZATION);
    parameters.distinguished_name.push(rcgen::DnType::CommonName, node);
    let time = |seconds: i64| {
        let since_1970 = Duration::from_secs(seconds.clamp(0, TIME_MAX).unsigned_abs());
        rcgen::date_time_ymd(1970, 1, 1) + since_1970
    };
    // Clocks of clients may be late.
    parameters.not_before = time(now - DAY_SECONDS);
    parameters.not_after = time(now + LIFETIME_DAYS * DAY_SECONDS);
    let certificate = parameters.self_signed(&key).map_err(failed)?;
    // The key first: with a new certificate and an old key nothing works.
    let secret = Zeroizing::new(key.serialize_pem());
    files::write(&config.key, secret.as_bytes(), SECRET)?;
    files::write(&config.certificate, certificate.pem().as_bytes(), PUBLIC)
}

/// Makes a certificate where there is none.
pub fn ensure_certificate(config: &Config, node: &str, now: i64) -> Result<()> {
    match (config.certificate.exists(), config.key.exists()) {
        (false, false) => make_certificate(config, node, now),
        (true, true) => Ok(()),
        (true, false) => Err(refused(format!("there is no key '{}'", config.key.display()))),
        (false, true) => {
            Err(refused(format!("there is no certificate '{}'", config.certificate.display())))
        }
    }
}

fn certificates(config: &Config) -> Result<Vec<CertificateDer<'static>>> {
    let path = &config.certificate;
    let pem = files::read(path)?.unwrap_or_default();
    let list: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let list = list.map_err(|error| refused(format!("'{}': {error}", path.display())))?;
    match list.is_empty() {
        true => Err(refused(format!("'{}' holds no certificate", path.display()))),
        false => Ok(list),
    }
}

/// What clients that do not know the certificate are told to compare.
pub fn certificate_fingerprint(config: &Config) -> Result<Fingerprint> {
    let list = certificates(config)?;
    list.first().map(|leaf| Fingerprint::of(leaf)).ok_or_else(|| refused("no certificate"))
}

pub(crate) fn tls(config: &Config) -> Result<Arc<ServerConfig>> {
    let pem = Zeroizing::new(std::fs::read(&config.key).map_err(io("read", &config.key))?);
    let shown = config.key.display();
    let key = PrivateKeyDer::from_pem_slice(&pem);
    let key = key.map_err(|error| refused(format!("'{shown}': {error}")))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| refused(error.to_string()))?
        .with_no_client_auth();
    let built = builder.with_single_cert(certificates(config)?, key);
    let problem = |error| refused(format!("certificate and key '{shown}' do not fit: {error}"));
    Ok(Arc::new(built.map_err(problem)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_csrf_token_is_that_of_the_specification() {
        let dir = tempfile::tempdir().unwrap();
        let key = STANDARD_NO_PAD.encode([1; 64]);
        std::fs::write(dir.path().join("csrf.key"), key).unwrap();
        let keys = AuthKeys::load_or_make(dir.path()).unwrap();
        let token = keys.csrf_token("root@pam", 0x65A1_B2C3);
        assert_eq!(token, "65A1B2C3:adCQ91DKfX239pmU6fEmhgUutba0wKvjYTLuXonpLKI");
        assert!(keys.verifies_csrf(&token, "root@pam", 0x65A1_B2C3 + 7200));
        assert!(!keys.verifies_csrf(&token, "root@pam", 0x65A1_B2C3 + 7201));
        assert!(!keys.verifies_csrf(&token, "other@pam", 0x65A1_B2C3));
        // The old form: of the text and the key.
        let text = [&b"65A1B2C3:root@pam:"[..], &[1; 64]].concat();
        let old = format!("65A1B2C3:{}", STANDARD_NO_PAD.encode(digest(&SHA256, &text)));
        assert!(keys.verifies_csrf(&old, "root@pam", 0x65A1_B2C3));
        assert!(!keys.verifies_csrf(&old, "root@pam", 0x65A1_B2C3 + 7201));
        assert!(!keys.verifies_csrf(&old, "other@pam", 0x65A1_B2C3));
    }

    #[test]
    fn a_certificate_that_we_did_not_make_is_not_renewed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("server.toml");
        std::fs::write(&file, "").unwrap();
        let config = Config::load(&file).unwrap();
        let read = || std::fs::read(&config.certificate).unwrap();
        renew_certificate(&config, "a", 1_700_000_000).unwrap();
        let first = read();
        renew_certificate(&config, "b", 1_700_000_000).unwrap();
        assert!(read() != first);
        // From a day before until ten years after.
        let der = certificates(&config).unwrap().remove(0);
        for time in [b"231113221320Z", b"331111221320Z"] {
            assert!(der.windows(time.len()).any(|bytes| bytes == time));
        }
        let key = rcgen::KeyPair::generate().unwrap();
        let mut foreign = rcgen::CertificateParams::new(vec!["host".to_owned()]).unwrap();
        foreign.distinguished_name.push(rcgen::DnType::OrganizationName, "Others");
        let foreign = foreign.self_signed(&key).unwrap().pem();
        std::fs::write(&config.certificate, &foreign).unwrap();
        let key = std::fs::read(&config.key).unwrap();
        let error = renew_certificate(&config, "a", 1_700_000_000).unwrap_err().to_string();
        assert!(error.contains("proxy.pem' is not replaced: "), "{error}");
        assert!(read() == foreign.as_bytes() && std::fs::read(&config.key).unwrap() == key);
        // A key alone may be anybody's.
        std::fs::remove_file(&config.certificate).unwrap();
        renew_certificate(&config, "a", 1_700_000_000).unwrap_err();
        assert_eq!(std::fs::read(&config.key).unwrap(), key);
    }

    #[test]
    fn a_ticket_is_good_with_the_same_key_only() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let issue = |keys: &AuthKeys| {
            let user = "a@pbs".parse().unwrap();
            keepwell_transport::ticket::issue(&user, 1000, &|bytes| keys.sign(bytes))
        };
        let ticket = issue(&AuthKeys::load_or_make(dir.path()).unwrap());
        let keys = AuthKeys::load_or_make(dir.path()).unwrap();
        assert_eq!(keys.verify(&ticket, 1000).as_deref(), Ok("a@pbs"));
        assert_eq!(keys.verify(&ticket, 9000), Err(TicketError::Expired));
        let bad = ticket.replace("a@pbs", "b@pbs");
        assert_eq!(keys.verify(&bad, 1000), Err(TicketError::BadSignature));
        let foreign = issue(&AuthKeys::load_or_make(other.path()).unwrap());
        assert_eq!(keys.verify(&foreign, 1000), Err(TicketError::BadSignature));
    }
}
