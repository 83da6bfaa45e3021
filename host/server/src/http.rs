//! Listening, TLS, HTTP/1.1: from a connection to an endpoint.

use crate::api::{self, Caller, Context, SnapshotPath};
use crate::error::{ApiError, ApiResult, Result, ServerError};
use crate::jobs::{self, Scheduler};
use crate::params::{Given, Params};
use crate::server::Server;
use crate::session::{self, Body, Reply, Rooms};
use crate::{backup, reader};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Bytes, Incoming};
use hyper::header::{
    ACCEPT_ENCODING, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderValue,
    LOCATION, UPGRADE,
};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, Version};
use hyper_util::rt::{TokioIo, TokioTimer};
use keepwell_transport::{BACKUP_PROTOCOL, READER_PROTOCOL};
use serde_json::json;
use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::future::Future;
use std::io::{self, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// For the head of a request, and for a connection that says nothing.
const HEADER_TIMEOUT: Duration = Duration::from_secs(60);
const BODY_TIMEOUT: Duration = Duration::from_secs(120);
const TARGET_BYTES_MAX: usize = 3072;
const BODY_BYTES_MAX: usize = 512 << 10;
const LOG_BYTES_MAX: usize = (16 << 20) + 44;
/// Shorter text gains nothing.
const DEFLATED_BYTES_MIN: usize = 256;
/// Heads of requests are shorter.
const BUFFER_BYTES_MAX: usize = 64 << 10;
/// Who guesses passwords waits.
const UNAUTHORIZED_DELAY: Duration = Duration::from_secs(3);
const FORBIDDEN_DELAY: Duration = Duration::from_millis(500);
const KEEPALIVE: Duration = Duration::from_secs(120);

/// Listens on the sockets handed over, or where the configuration says; names the first address that
/// can't be had.
pub(crate) async fn listen(
    server: &Server,
    sockets: Vec<std::net::TcpListener>,
) -> Result<Vec<TcpListener>> {
    let mut listeners = Vec::new();
    for socket in sockets {
        let taken = socket.set_nonblocking(true).and_then(|()| TcpListener::from_std(socket));
        let address = "the socket handed over".to_owned();
        listeners.push(taken.map_err(|source| ServerError::Listen { address, source })?);
    }
    if !listeners.is_empty() {
        return Ok(listeners);
    }
    for address in &server.config.listen {
        let listener = TcpListener::bind(address).await;
        let failed = |source| ServerError::Listen { address: address.to_string(), source };
        listeners.push(listener.map_err(failed)?);
    }
    Ok(listeners)
}

/// How long sessions that read may go on after the end was asked for. A mount would never end.
const READERS_GRACE: Duration = Duration::from_secs(5);

/// Serves until `stop` is done, then lets running sessions finish for a while.
pub(crate) async fn serve(
    server: Arc<Server>,
    listeners: Vec<TcpListener>,
    stop: impl Future<Output = ()>,
) -> Result<()> {
    let room = Room {
        places: Arc::new(Semaphore::new(server.config.connections_max)),
        addresses: Arc::default(),
    };
    let mut accepting = tokio::task::JoinSet::new();
    for listener in listeners {
        accepting.spawn(accept(server.clone(), listener, room.clone()));
    }
    let mut scheduler = Scheduler::new(server.clone())?;
    let jobs = tokio::spawn(async move {
        loop {
            // What is due takes files to find out.
            let ticked = tokio::task::spawn_blocking(move || {
                scheduler.tick();
                scheduler
            });
            scheduler = match ticked.await {
                Ok(scheduler) => scheduler,
                Err(_) => return tracing::error!("the scheduler of jobs has failed"),
            };
            sleep(jobs::PERIOD).await;
        }
    });
    stop.await;
    jobs.abort();
    accepting.shutdown().await;
    let grace = Duration::from_secs(server.config.shutdown_grace_seconds);
    let began = Instant::now();
    let mut told = false;
    let is_busy = || match server.tasks.count_working() {
        0 => server.tasks.count_running() > 0 && began.elapsed() < READERS_GRACE,
        _ => true,
    };
    while is_busy() && began.elapsed() < grace {
        if !told {
            tracing::info!("waiting for {} running tasks", server.tasks.count_running());
            told = true;
        }
        sleep(Duration::from_millis(200)).await;
    }
    server.tasks.stop_all();
    let began = Instant::now();
    while server.tasks.count_running() > 0 && began.elapsed() < Duration::from_secs(10) {
        sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// How many connections there may be, and from where: one for all listeners.
#[derive(Clone)]
struct Room {
    places: Arc<Semaphore>,
    addresses: Arc<Addresses>,
}

async fn accept(server: Arc<Server>, listener: TcpListener, room: Room) {
    loop {
        let Ok(place) = room.places.clone().acquire_owned().await else { return };
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Too many open files, for example: it may pass.
                tracing::warn!("unable to accept a connection: {error}");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let server = server.clone();
        let limit = server.config.connections_per_address_max;
        let Some(counted) = Addresses::enter(&room.addresses, peer.ip().to_canonical(), limit)
        else {
            tracing::info!("connection from {peer}: refused, there are {limit} from this address");
            continue;
        };
        let place = Arc::new(Place { _permit: place, _counted: counted });
        tokio::spawn(async move {
            if let Err(problem) = connection(server, stream, Peer { address: peer, place }).await {
                tracing::info!("connection from {peer}: {problem}");
            }
        });
    }
}

/// The place of a connection among those that there may be. A session that it has become keeps it.
pub(crate) struct Place {
    _permit: OwnedSemaphorePermit,
    _counted: Counted,
}

/// The other side of a connection.
#[derive(Clone)]
struct Peer {
    address: SocketAddr,
    place: Arc<Place>,
}

/// Connections by the address that they come from.
#[derive(Default)]
struct Addresses(Mutex<HashMap<IpAddr, usize>>);

/// One of them; it ends when dropped.
struct Counted {
    all: Arc<Addresses>,
    address: IpAddr,
}

impl Addresses {
    fn counts(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// None where there are as many as may be.
    fn enter(all: &Arc<Self>, address: IpAddr, limit: usize) -> Option<Counted> {
        let mut counts = all.counts();
        let count = counts.entry(address).or_default();
        if *count >= limit {
            return None;
        }
        *count += 1;
        Some(Counted { all: all.clone(), address })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut counts = self.all.counts();
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

async fn connection(server: Arc<Server>, stream: TcpStream, peer: Peer) -> Result<(), String> {
    let keepalive = socket2::TcpKeepalive::new().with_time(KEEPALIVE);
    let _ = socket2::SockRef::from(&stream).set_tcp_keepalive(&keepalive);
    let _ = stream.set_nodelay(true);
    let mut first = [0];
    let peeked = timeout(HANDSHAKE_TIMEOUT, stream.peek(&mut first)).await;
    match peeked.map_err(|_| "it said nothing")?.map_err(|error| error.to_string())? {
        0 => return Ok(()),
        _ if first[0] != TLS_HANDSHAKE => return serve_http(stream, redirect).await,
        _ => {}
    }
    let acceptor = TlsAcceptor::from(server.tls());
    let stream = timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await;
    let stream = stream.map_err(|_| "the TLS handshake took too long")?;
    let stream = stream.map_err(|error: io::Error| format!("TLS handshake: {error}"))?;
    serve_http(stream, move |request| answer(server.clone(), peer.clone(), request)).await
}

/// The first byte of a TLS connection.
const TLS_HANDSHAKE: u8 = 0x16;

async fn serve_http<S, F, A>(stream: S, handler: F) -> Result<(), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Fn(Request<Incoming>) -> A,
    A: Future<Output = Result<Response<Body>, Infallible>>,
{
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(BUFFER_BYTES_MAX);
    let connection = builder.serve_connection(TokioIo::new(stream), service_fn(handler));
    connection.with_upgrades().await.map_err(|error| error.to_string())
}

/// Nothing is served in the clear.
async fn redirect(request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let host = request.headers().get(HOST).and_then(|host| host.to_str().ok());
    let Some(host) = host.filter(|host| !host.is_empty()) else {
        let text = Bytes::from("this is a server of HTTPS, and there is no Host header\n");
        let mut response = session::response(StatusCode::BAD_REQUEST, "text/plain", text);
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        return Ok(response);
    };
    let target = request.uri().path_and_query().map_or("", |target| target.as_str());
    let target = if target == "/" { "" } else { target };
    let status = match *request.method() {
        Method::GET | Method::HEAD => StatusCode::MOVED_PERMANENTLY,
        _ => StatusCode::PERMANENT_REDIRECT,
    };
    let mut response = Response::new(Body::default());
    *response.status_mut() = status;
    if let Ok(location) = HeaderValue::from_str(&format!("https://{host}{target}")) {
        response.headers_mut().insert(LOCATION, location);
    }
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    Ok(response)
}

async fn answer(
    server: Arc<Server>,
    peer: Peer,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let address = peer.address;
    let began = Instant::now();
    tracing::debug!("request: {} {}", request.method(), session::target(request.uri()));
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let deflates = accepts_deflate(&request);
    let extjs = path.split('/').filter(|part| !part.is_empty()).nth(1) == Some("extjs");
    let (user, outcome) = route(server, peer, request).await;
    let status = outcome.as_ref().map_or_else(|error| error.status, Response::status);
    match status {
        StatusCode::UNAUTHORIZED => {
            sleep(UNAUTHORIZED_DELAY.saturating_sub(began.elapsed())).await;
        }
        StatusCode::FORBIDDEN => sleep(FORBIDDEN_DELAY).await,
        _ => {}
    }
    let user = user.unwrap_or_else(|| "-".into());
    // Who reads the log wants to know why; the text may be a stranger's.
    let why = outcome.as_ref().err().map(|error| format!(": {}", error.message.escape_debug()));
    let (status, why) = (status.as_u16(), why.unwrap_or_default());
    tracing::info!("{address} {user} \"{method} {path}\" {status}{why}");
    let response =
        outcome.unwrap_or_else(|error| match extjs && error.status != StatusCode::UNAUTHORIZED {
            false => error.into_response(),
            true => {
                let mut body = json!({
                    "success": false, "status": error.status.as_u16(), "message": error.message,
                    "data": null,
                });
                if !error.parameters.is_empty() {
                    body["message"] = "parameter verification errors".into();
                    let errors: BTreeMap<_, _> = error.parameters.into_iter().collect();
                    body["errors"] = json!(errors);
                }
                session::response(StatusCode::OK, session::JSON, body.to_string().into())
            }
        });
    Ok(if deflates { deflated(response).await } else { response })
}

fn accepts_deflate(request: &Request<Incoming>) -> bool {
    let values = request.headers().get_all(ACCEPT_ENCODING).iter();
    let texts = values.filter_map(|value| value.to_str().ok());
    texts.flat_map(|text| text.split(',')).any(|coding| {
        let (name, quality) = coding.split_once(';').unwrap_or((coding, ""));
        let refused = quality.trim().strip_prefix("q=").and_then(|q| q.parse().ok()) == Some(0.0);
        name.trim().eq_ignore_ascii_case("deflate") && !refused
    })
}

/// Text in the coding `deflate`; anything else, and what is short, as it is.
async fn deflated(response: Response<Body>) -> Response<Body> {
    let kind = response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let is_text = kind.is_some_and(|kind| kind != session::BYTES);
    let (mut head, body) = response.into_parts();
    let Body::Whole(whole) = body else { return Response::from_parts(head, body) };
    let Ok(whole) = whole.collect().await;
    let bytes = whole.to_bytes();
    if !is_text || bytes.len() < DEFLATED_BYTES_MIN {
        return Response::from_parts(head, Body::Whole(bytes.into()));
    }
    let level = flate2::Compression::default();
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), level);
    let packed = encoder.write_all(&bytes).and_then(|()| encoder.finish());
    // Writing to memory does not fail.
    let Ok(packed) = packed else { return Response::from_parts(head, Body::Whole(bytes.into())) };
    head.headers.insert(CONTENT_ENCODING, HeaderValue::from_static("deflate"));
    head.headers.insert(CONTENT_LENGTH, packed.len().into());
    Response::from_parts(head, Body::Whole(Bytes::from(packed).into()))
}

/// Answers a request; tells who sent it.
async fn route(
    server: Arc<Server>,
    peer: Peer,
    request: Request<Incoming>,
) -> (Option<String>, ApiResult<Response<Body>>) {
    let (mut head, body) = request.into_parts();
    if head.uri.path_and_query().is_some_and(|target| target.as_str().len() > TARGET_BYTES_MAX) {
        let text = "URI too long";
        return (None, Err(ApiError::new(StatusCode::URI_TOO_LONG, text)));
    }
    let full = head.uri.path().to_owned();
    let parts: Vec<&str> = full.split('/').filter(|part| !part.is_empty()).collect();
    let not_found = || ApiError::new(StatusCode::NOT_FOUND, format!("Path '{full}' not found."));
    let (format, parts) = match &parts[..] {
        [] if head.method == Method::GET => {
            let page = "<html>Keepwell: a backup server</html>\n";
            let page = session::response(StatusCode::OK, "text/html", Bytes::from(page));
            return (None, Ok(page));
        }
        ["api2", format @ ("json" | "extjs"), rest @ ..] => (*format, rest),
        ["api2", other, ..] => {
            let text = format!("Unsupported output format '{other}'.");
            return (None, Err(ApiError::bad(text)));
        }
        _ => return (None, Err(not_found())),
    };
    let path = parts.join("/");
    let id = match api::is_open(&head.method, &path) {
        true => None,
        false => match server.authenticate(&head.method, &head.headers) {
            Ok(id) => Some(id),
            Err(error) => return (None, Err(error)),
        },
    };
    let user = id.as_ref().map(ToString::to_string);
    // Endpoints that need nobody to be known do not look at it.
    let id = id.or_else(|| "nobody@pbs".parse().ok());
    let Some(id) = id else { return (None, Err(ApiError::internal())) };
    let caller = Caller { id, address: peer.address.ip() };
    let query = head.uri.query().unwrap_or_default().to_owned();
    let outcome = match path.as_str() {
        "backup" | "reader" if head.method == Method::GET => {
            let kind = if path == "backup" { Kind::Backup } else { Kind::Reader };
            upgrade(server, caller, kind, &query, &mut head, peer.place).await
        }
        _ => match api::find(&head.method, &path) {
            Some((endpoint, names)) => {
                let input = Input { content_type: content_type(&head), query, body };
                let reply = call(server, caller, endpoint, names, input).await;
                reply.map(|reply| shaped(reply, format).into_response())
            }
            None => match api::directory(&path).filter(|_| head.method == Method::GET) {
                Some(list) => Ok(shaped(Reply::Data(list), format).into_response()),
                None => Err(not_found()),
            },
        },
    };
    (user, outcome)
}

/// As the other format wants it.
fn shaped(reply: Reply, format: &str) -> Reply {
    match reply {
        Reply::Data(data) if format == "extjs" => {
            Reply::Whole(json!({ "data": data, "status": 200, "success": true }))
        }
        Reply::Whole(mut whole) if format == "extjs" => {
            whole["success"] = true.into();
            whole["status"] = 200.into();
            Reply::Whole(whole)
        }
        other => other,
    }
}

fn content_type(head: &hyper::http::request::Parts) -> String {
    let value = head.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let kind = value.unwrap_or_default().split(';').next().unwrap_or_default();
    kind.trim().to_ascii_lowercase()
}

/// What a request brings.
struct Input {
    content_type: String,
    query: String,
    body: Incoming,
}

async fn call(
    server: Arc<Server>,
    caller: Caller,
    endpoint: &'static api::Endpoint,
    names: Vec<String>,
    input: Input,
) -> ApiResult<Reply> {
    let Input { content_type, query, body } = input;
    if let Some(admit) = endpoint.takes_bytes {
        let admitted = async {
            let params = Params::check(endpoint.params, vec![Given::query(&query)?])?;
            let context = Context { server, caller, names, params, body: Vec::new() };
            let looked = tokio::task::spawn_blocking(move || admit(&context).map(|()| context));
            looked.await.unwrap_or_else(|_| Err(ApiError::internal()))
        };
        let mut context: Context = match admitted.await {
            Ok(context) => context,
            Err(error) => {
                // A client may want to be rid of the body before it hears the answer.
                let _ = timeout(BODY_TIMEOUT, session::discard(body, LOG_BYTES_MAX)).await;
                return Err(error);
            }
        };
        let held = session::take(&context.server.memory.uploads(), LOG_BYTES_MAX).await?;
        context.body = body_in_time(body, LOG_BYTES_MAX).await?;
        let reply = run(endpoint, context).await;
        drop(held);
        return reply;
    }
    let body = body_in_time(body, BODY_BYTES_MAX).await?;
    let mut given = vec![Given::query(&query)?];
    if !body.is_empty() {
        given.push(match content_type.as_str() {
            "application/json" => session::parse_json(&body)?,
            "application/x-www-form-urlencoded" | "" => {
                let text =
                    String::from_utf8(body).map_err(|_| ApiError::bad("body is not UTF-8"))?;
                Given::query(&text)?
            }
            other => return Err(ApiError::bad(format!("unsupported content type {other:?}"))),
        });
    }
    let params = Params::check(endpoint.params, given)?;
    run(endpoint, Context { server, caller, names, params, body: Vec::new() }).await
}

/// Lets an endpoint answer on a thread that may block.
async fn run(endpoint: &'static api::Endpoint, context: Context) -> ApiResult<Reply> {
    let done = tokio::task::spawn_blocking(move || (endpoint.run)(&context)).await;
    done.unwrap_or_else(|_| Err(ApiError::internal()))
}

async fn body_in_time(body: Incoming, limit: usize) -> ApiResult<Vec<u8>> {
    // What is announced: such a body is not waited for.
    if body.size_hint().lower() > limit as u64 {
        return Err(ApiError::bad(format!("request body is longer than {limit} bytes")));
    }
    let read = timeout(BODY_TIMEOUT, read_body(body, limit)).await;
    read.map_err(|_| ApiError::new(StatusCode::REQUEST_TIMEOUT, "body timed out"))?
}

async fn read_body(body: Incoming, limit: usize) -> ApiResult<Vec<u8>> {
    let collected = http_body_util::Limited::new(body, limit).collect().await;
    let too_large = |_| ApiError::bad(format!("request body is longer than {limit} bytes, or cut"));
    Ok(collected.map_err(too_large)?.to_bytes().into())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Backup,
    Reader,
}

/// Turns a connection into a session.
async fn upgrade(
    server: Arc<Server>,
    caller: Caller,
    kind: Kind,
    query: &str,
    head: &mut hyper::http::request::Parts,
    place: Arc<Place>,
) -> ApiResult<Response<Body>> {
    let (schema, protocol) = match kind {
        Kind::Backup => (api::BACKUP_PARAMS, BACKUP_PROTOCOL),
        Kind::Reader => (api::READER_PARAMS, READER_PROTOCOL),
    };
    let params = Params::check(schema, vec![Given::query(query)?])?;
    let path = SnapshotPath::of(&params)?;
    let benchmark = params.flag("benchmark") == Some(true);
    let rooms = Rooms::of(&server.memory);
    // Rights come first.
    let (upgradable, on_upgrade) = match on_upgrade(head, protocol) {
        Ok(on_upgrade) => (Ok(()), Some(on_upgrade)),
        Err(error) => (Err(error), None),
    };
    let prepared = tokio::task::spawn_blocking(move || match kind {
        Kind::Backup => backup::prepare(&server, &caller, &path, benchmark, upgradable)
            .map(|prepared| Prepared::Backup(Box::new(prepared))),
        Kind::Reader => reader::prepare(&server, &caller, &path, upgradable).map(Prepared::Reader),
    });
    let prepared = prepared.await.map_err(|_| ApiError::internal())??;
    let on_upgrade = on_upgrade.ok_or_else(ApiError::internal)?;
    match prepared {
        Prepared::Backup(prepared) => {
            tokio::spawn(backup::run(*prepared, on_upgrade, rooms, place))
        }
        Prepared::Reader(prepared) => tokio::spawn(reader::run(prepared, on_upgrade, rooms, place)),
    };
    let mut response = Response::new(Body::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static(protocol));
    headers.remove(CONTENT_LENGTH);
    Ok(response)
}

/// The connection as it will be, if the head of a request asks for this protocol.
fn on_upgrade(
    head: &mut hyper::http::request::Parts,
    protocol: &str,
) -> ApiResult<hyper::upgrade::OnUpgrade> {
    let wanted = head.headers.get(UPGRADE).and_then(|value| value.to_str().ok());
    let wanted = wanted.ok_or_else(|| ApiError::bad("missing Upgrade header"))?;
    if wanted != protocol {
        return Err(ApiError::bad("invalid protocol name"));
    }
    if head.version >= Version::HTTP_2 {
        let version = head.version;
        let text = format!("unexpected http version '{version:?}' (expected version < 2)");
        return Err(ApiError::bad(text));
    }
    let on_upgrade = head.extensions.remove::<hyper::upgrade::OnUpgrade>();
    on_upgrade.ok_or_else(|| ApiError::bad("the connection can't be upgraded"))
}

enum Prepared {
    Backup(Box<backup::Prepared>),
    Reader(reader::Prepared),
}
