//! Requests to any web server, for plugins that may make them. One connection for each; nothing is followed, kept
//! or stored. Certificates are those that the system trusts.

use crate::connect::{Attempt, Place, Proxy, connect, open};
use crate::error::{Error, Result};
use crate::network::{Interrupt, Network};
use bytes::{Buf, Bytes};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1;
use hyper::header::{HOST, HeaderName, HeaderValue, TRANSFER_ENCODING, USER_AGENT};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use std::io::Read;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::time::timeout;

/// A server that says nothing for so long is given up.
const SILENCE_MAX: Duration = Duration::from_secs(120);
/// Pieces of a body that wait to be read.
const PIECES_MAX: usize = 4;
/// The connection's own.
const OWN_HEADERS: [&str; 8] = [
    "host",
    "connection",
    "content-length",
    "transfer-encoding",
    "upgrade",
    "te",
    "trailer",
    "keep-alive",
];

/// A request.
#[derive(Debug)]
pub struct WebRequest {
    pub is_https: bool,
    /// a name or an address; IPv6 in brackets
    pub host: String,
    pub port: u16,
    /// with the query
    pub path: String,
    pub method: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

/// The answer.
#[derive(Debug)]
pub struct WebResponse {
    pub status: u16,
    /// names in lower case; bytes that are no text are replaced
    pub headers: Vec<(String, String)>,
    pub body: WebBody,
}

/// Makes requests; its threads are started with the first one.
pub struct WebClient {
    interrupt: Arc<AtomicBool>,
    network: Mutex<Option<Arc<Network>>>,
}

impl WebClient {
    /// The flag says that the user wants to stop.
    pub fn new(interrupt: Arc<AtomicBool>) -> Self {
        Self { interrupt, network: Mutex::default() }
    }

    /// Makes a request, and waits for the head of the answer.
    ///
    /// Fails with [`Error::Request`] where there can be no such request.
    pub fn fetch(&self, request: WebRequest, proxy: Option<Proxy>) -> Result<WebResponse> {
        let network = self.network()?;
        let place = Place { host: request.host.clone(), port: request.port, proxy };
        let address = place.address();
        let is_https = request.is_https;
        let request = head(request)?;
        let response = network.run(async {
            let answered = timeout(SILENCE_MAX, send(&place, is_https, request)).await;
            answered.map_err(|_| Error::Timeout("waiting for the server"))?
        })?;
        let header = |(name, value): (&HeaderName, &HeaderValue)| {
            (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned())
        };
        let (status, headers) =
            (response.status().as_u16(), response.headers().iter().map(header).collect());
        let (pieces, body) = mpsc::channel(PIECES_MAX);
        network.spawn(pass_on(response, address, network.interrupt().clone(), pieces));
        let body =
            WebBody { pieces: body, piece: Bytes::new(), is_whole: false, _network: network };
        Ok(WebResponse { status, headers, body })
    }

    fn network(&self) -> Result<Arc<Network>> {
        let mut network = self.network.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(network) = &*network {
            return Ok(network.clone());
        }
        let started = Arc::new(Network::start(self.interrupt.clone())?);
        Ok(network.insert(started).clone())
    }
}

fn head(request: WebRequest) -> Result<Request<Full<Bytes>>> {
    let wrong = |what: String| Error::Request(what);
    let method = Method::from_bytes(request.method.as_bytes()).ok();
    let method = method.filter(|method| method != Method::CONNECT);
    let method = method.ok_or_else(|| wrong(format!("no method: {:?}", request.method)))?;
    let usual = if request.is_https { 443 } else { 80 };
    let host = match request.port == usual {
        true => request.host,
        false => format!("{}:{}", request.host, request.port),
    };
    let mut built = Request::builder().method(method).uri(&request.path).header(HOST, host);
    if !request.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case(USER_AGENT.as_str())) {
        built = built.header(USER_AGENT, concat!("keepwell/", env!("CARGO_PKG_VERSION")));
    }
    for (name, value) in request.headers {
        let lower = name.to_ascii_lowercase();
        if OWN_HEADERS.contains(&lower.as_str()) || lower.starts_with("proxy-") {
            return Err(wrong(format!("header {name:?} is the connection's own")));
        }
        built = built.header(name, value);
    }
    built.body(Full::new(request.body.into())).map_err(|problem| wrong(problem.to_string()))
}

async fn send(
    place: &Place,
    is_https: bool,
    request: Request<Full<Bytes>>,
) -> Result<Response<Incoming>> {
    if !is_https {
        return exchange(place, open(place).await?, request).await;
    }
    match connect(place, None).await? {
        Attempt::Connected(stream) => exchange(place, stream, request).await,
        Attempt::Untrusted(_) => Err(Error::Untrusted { address: place.address() }),
    }
}

async fn exchange(
    place: &Place,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
) -> Result<Response<Incoming>> {
    let lost = |error: hyper::Error| Error::lost(place.address(), Some(error.into()));
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(lost)?;
    tokio::spawn(connection);
    sender.send_request(request).await.map_err(lost)
}

/// Whether something else than the end of the connection tells where the body ends.
fn has_end(response: &Response<Incoming>) -> bool {
    let mut codings = response.headers().get_all(TRANSFER_ENCODING).iter();
    let last = codings.next_back().and_then(|coding| coding.to_str().ok());
    let is_chunked = last.is_some_and(|codings| {
        codings.rsplit(',').next().is_some_and(|last| last.trim().eq_ignore_ascii_case("chunked"))
    });
    is_chunked || response.body().size_hint().exact().is_some()
}

/// Hands a body on piece by piece, as long as somebody wants it; an empty one is its end.
async fn pass_on(
    mut response: Response<Incoming>,
    address: String,
    interrupt: Interrupt,
    pieces: mpsc::Sender<Result<Bytes>>,
) {
    let has_end = has_end(&response);
    loop {
        let next = async {
            match timeout(SILENCE_MAX, response.body_mut().frame()).await {
                Err(_) => Err(Error::Timeout("waiting for the server")),
                Ok(None) if has_end => Ok(Some(Bytes::new())),
                // A server that died looks the same.
                Ok(None) => Err(Error::EndUnknown { address: address.clone() }),
                Ok(Some(Err(error))) => Err(Error::lost(address.clone(), Some(error.into()))),
                // Trailers are none of the body.
                Ok(Some(Ok(frame))) => Ok(frame.into_data().ok().filter(|data| !data.is_empty())),
            }
        };
        let next = tokio::select! {
            next = interrupt.or(next) => next,
            () = pieces.closed() => return,
        };
        let piece = match next {
            Ok(None) => continue,
            Ok(Some(piece)) => Ok(piece),
            Err(error) => Err(error),
        };
        let is_last = piece.as_ref().map_or(true, Bytes::is_empty);
        if pieces.send(piece).await.is_err() || is_last {
            return;
        }
    }
}

/// A body as it comes in. Reading blocks, and fails where it breaks off.
pub struct WebBody {
    pieces: mpsc::Receiver<Result<Bytes>>,
    piece: Bytes,
    is_whole: bool,
    _network: Arc<Network>,
}

impl std::fmt::Debug for WebBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WebBody").field("is_whole", &self.is_whole).finish_non_exhaustive()
    }
}

impl Read for WebBody {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.piece.is_empty() && !self.is_whole && !buffer.is_empty() {
            let next = self.pieces.blocking_recv().unwrap_or(Err(Error::Interrupted));
            self.piece = next.map_err(std::io::Error::other)?;
            self.is_whole = self.piece.is_empty();
        }
        let length = buffer.len().min(self.piece.len());
        self.piece.copy_to_slice(buffer.get_mut(..length).unwrap_or_default());
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::TcpListener;
    use std::thread::{JoinHandle, spawn};

    /// A server that answers one connection with `answer`, and what it was asked.
    fn server(answer: &'static str) -> (u16, JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let served = spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = Vec::new();
            let mut buffer = [0; 1000];
            while !asked.windows(4).any(|four| four == b"\r\n\r\n") {
                let read = stream.read(&mut buffer).unwrap();
                asked.extend(&buffer[..read]);
            }
            stream.write_all(answer.as_bytes()).unwrap();
            String::from_utf8(asked).unwrap()
        });
        (port, served)
    }

    fn request(port: u16, is_https: bool) -> WebRequest {
        let headers = vec![("X-Key".to_owned(), "value".to_owned())];
        let (host, path) = ("127.0.0.1".to_owned(), "/a?b=c".to_owned());
        WebRequest { is_https, host, port, path, method: "GET".into(), headers, body: Vec::new() }
    }

    fn client() -> WebClient {
        WebClient::new(Arc::default())
    }

    #[test]
    fn an_answer_is_read_to_its_end() {
        let (port, served) = server(
            "HTTP/1.1 404 Not Found\r\nX-A: 1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
        );
        let mut response = client().fetch(request(port, false), None).unwrap();
        assert_eq!(response.status, 404);
        assert!(response.headers.contains(&("x-a".into(), "1".into())), "{:?}", response.headers);
        let mut body = String::new();
        response.body.read_to_string(&mut body).unwrap();
        assert_eq!(body, "abcde");
        assert_eq!(response.body.read(&mut [0; 10]).unwrap(), 0, "and stays there");
        let asked = served.join().unwrap().to_ascii_lowercase();
        assert!(asked.starts_with("get /a?b=c http/1.1\r\n"), "{asked}");
        assert!(asked.contains(&format!("host: 127.0.0.1:{port}\r\n")), "{asked}");
        assert!(asked.contains("x-key: value\r\n") && asked.contains("user-agent: keepwell/"));
    }

    #[test]
    fn an_answer_that_breaks_off_is_told() {
        for half in [
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nabc",
            // Nothing says that this is all of it.
            "HTTP/1.1 200 OK\r\n\r\nabc",
            "HTTP/1.0 200 OK\r\n\r\n",
        ] {
            let (port, served) = server(half);
            let mut response = client().fetch(request(port, false), None).unwrap();
            served.join().unwrap();
            assert!(response.body.read_to_end(&mut Vec::new()).is_err(), "{half}");
        }
        let (port, served) = server("rubbish\r\n\r\n");
        assert!(client().fetch(request(port, false), None).is_err());
        served.join().unwrap();
    }

    #[test]
    fn what_is_no_request_is_refused() {
        let with = |name: &str, value: &str| {
            let mut request = request(1, false);
            request.headers = vec![(name.into(), value.into())];
            request
        };
        let connect = WebRequest { method: "CONNECT".into(), ..request(1, false) };
        let split = WebRequest { method: "GET /x HTTP/1.1\r\n".into(), ..request(1, false) };
        for wrong in [
            connect,
            split,
            with("Host", "other"),
            with("transfer-encoding", "chunked"),
            with("Proxy-Authorization", "x"),
            with("a b", "x"),
            with("a", "x\r\nHost: other"),
        ] {
            let shown = format!("{wrong:?}");
            let refused = client().fetch(wrong, None);
            assert!(matches!(refused, Err(Error::Request(_))), "{shown}");
        }
    }

    #[test]
    fn what_speaks_no_tls_is_no_https() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let served = spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
        });
        let refused = client().fetch(request(port, true), None);
        assert!(matches!(refused, Err(Error::Tls { .. })), "{refused:?}");
        served.join().unwrap();
    }
}
