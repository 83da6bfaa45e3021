//! A connection to a server: TCP, perhaps through a proxy, and TLS.
//!
//! A certificate that the system's roots vouch for is accepted. Any other is accepted by its
//! fingerprint alone. Spec: protocol.md §2.4.

use crate::error::{Error, Result};
use crate::fingerprint::Fingerprint;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::CipherSuite::TLS13_AES_128_GCM_SHA256;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use std::io;
use std::net::Ipv4Addr;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use zeroize::Zeroizing;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const KEEPALIVE: Duration = Duration::from_secs(120);
/// What a proxy may say before it lets us through.
const PROXY_ANSWER_BYTES_MAX: usize = 8 << 10;

/// An HTTP proxy: `[http://][user:password@]host[:port]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proxy {
    host: String,
    port: u16,
    /// `user:password`
    credentials: Option<Zeroizing<String>>,
}

impl Proxy {
    const DEFAULT_PORT: u16 = 1080;

    /// `host:port`, for people.
    pub fn address(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

impl FromStr for Proxy {
    type Err = Error;

    fn from_str(given: &str) -> Result<Self> {
        let rest = match given.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => rest,
            Some((scheme, _)) => {
                return Err(Error::Proxy(format!("unsupported proxy scheme '{scheme}'")));
            }
            None => given,
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (credentials, place) = match rest.rsplit_once('@') {
            Some((credentials, place)) => (Some(credentials), place),
            None => (None, rest),
        };
        let wrong = || Error::Proxy("use [http://][user:password@]host[:port]".into());
        let (host, port) = match place.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, port.parse().map_err(|_| wrong())?),
            _ => (place, Self::DEFAULT_PORT),
        };
        let open = host.starts_with('[');
        if host.is_empty() || (host.contains(':') && !open) || host.contains(['/', ' ']) {
            return Err(wrong());
        }
        let credentials = credentials.map(|text| Zeroizing::new(text.to_owned()));
        Ok(Self { host: host.to_owned(), port, credentials })
    }
}

/// What a server showed, and whether that was good enough.
#[derive(Debug)]
struct Verifier {
    provider: Arc<CryptoProvider>,
    expected: Option<Fingerprint>,
    rejected: Arc<Mutex<Option<Fingerprint>>>,
}

impl Verifier {
    /// What the system's roots say of it.
    fn is_trusted(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> bool {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        let provider = self.provider.clone();
        let builder = WebPkiServerVerifier::builder_with_provider(roots.into(), provider);
        let Ok(verifier) = builder.build() else { return false };
        verifier.verify_server_cert(certificate, intermediates, name, &[], now).is_ok()
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let presented = Fingerprint::of(certificate);
        // The answer is the same in this order, and the roots need not be read.
        if self.expected == Some(presented)
            || self.is_trusted(certificate, intermediates, name, now)
        {
            return Ok(ServerCertVerified::assertion());
        }
        *self.rejected.lock().unwrap_or_else(PoisonError::into_inner) = Some(presented);
        Err(rustls::CertificateError::UnknownIssuer.into())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Where to connect to.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// a name or an address; IPv6 in brackets
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) proxy: Option<Proxy>,
}

impl Place {
    pub(crate) fn address(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

/// How an attempt ended.
pub(crate) enum Attempt {
    Connected(Box<TlsStream<TcpStream>>),
    /// Neither the roots nor the fingerprint vouch for this one.
    Untrusted(Fingerprint),
}

pub(crate) async fn connect(place: &Place, expected: Option<Fingerprint>) -> Result<Attempt> {
    let address = place.address();
    let stream = open(place).await?;
    let mut provider = rustls::crypto::ring::default_provider();
    // As safe for a connection as a longer key, and less work.
    provider.cipher_suites.sort_by_key(|suite| suite.suite() != TLS13_AES_128_GCM_SHA256);
    let provider = Arc::new(provider);
    let rejected = Arc::new(Mutex::new(None));
    let verifier = Verifier { provider: provider.clone(), expected, rejected: rejected.clone() };
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|problem| Error::protocol(problem.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    let shaken = TlsConnector::from(Arc::new(config)).connect(server_name(&place.host), stream);
    let shaken = timeout(CONNECT_TIMEOUT, shaken).await;
    let shaken = shaken.map_err(|_| Error::ConnectTimeout { address: address.clone() })?;
    match shaken {
        Ok(stream) => Ok(Attempt::Connected(Box::new(stream))),
        Err(source) => match rejected.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(presented) => Ok(Attempt::Untrusted(presented)),
            None => Err(Error::Tls { address, source }),
        },
    }
}

fn server_name(host: &str) -> ServerName<'static> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let bare = bare.split('%').next().unwrap_or(bare);
    // A name that TLS has no word for: only a fingerprint can vouch for such a server.
    ServerName::try_from(bare.to_owned()).unwrap_or(ServerName::from(Ipv4Addr::UNSPECIFIED))
}

/// Without TLS.
pub(crate) async fn open(place: &Place) -> Result<TcpStream> {
    let late = |_| Error::ConnectTimeout { address: place.address() };
    timeout(CONNECT_TIMEOUT, open_slowly(place)).await.map_err(late)?
}

async fn open_slowly(place: &Place) -> Result<TcpStream> {
    let (host, port) = match &place.proxy {
        Some(proxy) => (&proxy.host, proxy.port),
        None => (&place.host, place.port),
    };
    let failed = |source| Error::Connect { address: format!("{host}:{port}"), source };
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let mut stream = TcpStream::connect((bare, port)).await.map_err(failed)?;
    let keepalive = socket2::TcpKeepalive::new().with_time(KEEPALIVE);
    let _ = socket2::SockRef::from(&stream).set_tcp_keepalive(&keepalive);
    let _ = stream.set_nodelay(true);
    if let Some(proxy) = &place.proxy {
        pass_proxy(&mut stream, proxy, &place.address()).await.map_err(failed)?;
    }
    Ok(stream)
}

/// Asks a proxy for a connection to `target`.
async fn pass_proxy(stream: &mut TcpStream, proxy: &Proxy, target: &str) -> io::Result<()> {
    let mut request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n");
    if let Some(credentials) = &proxy.credentials {
        let encoded = STANDARD.encode(credentials.as_bytes());
        request += &format!("Proxy-Authorization: Basic {encoded}\r\n");
    }
    request += "\r\n";
    stream.write_all(Zeroizing::new(request).as_bytes()).await?;
    let mut answer = Vec::new();
    // Byte by byte: what follows the answer belongs to TLS.
    while !answer.ends_with(b"\r\n\r\n") {
        if answer.len() >= PROXY_ANSWER_BYTES_MAX {
            return Err(io::Error::other("the proxy's answer is too long"));
        }
        answer.push(stream.read_u8().await?);
    }
    let line = String::from_utf8_lossy(&answer);
    let line = line.lines().next().unwrap_or_default();
    match line.split(' ').nth(1) {
        Some("200") if line.starts_with("HTTP/1.") => Ok(()),
        _ => Err(io::Error::other(format!("the proxy refused: {line}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_are_read() {
        let address = |text: &str| text.parse::<Proxy>().map(|proxy| proxy.address());
        assert_eq!(address("proxy").unwrap(), "proxy:1080");
        assert_eq!(address("http://proxy:3128/").unwrap(), "proxy:3128");
        assert_eq!(address("HTTP://proxy").unwrap(), "proxy:1080");
        assert_eq!(address("http://user:p@ss@[::1]:3128").unwrap(), "[::1]:3128");
        assert_eq!(address("[::1]").unwrap(), "[::1]:1080");
        let proxy: Proxy = "user:p@ss@host".parse().unwrap();
        assert_eq!(proxy.credentials.unwrap().as_str(), "user:p@ss");
        for bad in ["", "http://", "::1", "host:x", "a b"] {
            assert!(address(bad).is_err(), "{bad}");
        }
        let error = address("socks5://proxy").unwrap_err().to_string();
        assert_eq!(error, "parse_proxy_url failed: unsupported proxy scheme 'socks5'");
    }
}
