//! Sessions of HTTP/2 on an upgraded connection: what backups and readers share.
//! Spec: protocol.md §4, §5.

use crate::error::{ApiError, ApiResult};
use crate::memory::{Counted, Held, Memory, Room};
use crate::params::{Given, Param, Params};
use crate::tasks::Task;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body as _, Frame, Incoming};
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::upgrade::Upgraded;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use keepwell_engine::restore::chain;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::io::{self, Write as _};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// How much clients may send before it is taken: of all sessions, and of one.
const WINDOWS_BYTES: u32 = 256 << 20;
const WINDOW_BYTES_MIN: u32 = 1 << 20;
const WINDOW_BYTES_MAX: u32 = 16 << 20;
const STREAMS_MAX: u32 = 16;
const HEADER_BYTES_MAX: u32 = 64 << 10;
/// A client that does not answer for so long is gone.
const PING_EVERY: Duration = Duration::from_secs(30);
/// How long a client may wait with its first request, and within a body.
const SILENCE: Duration = Duration::from_secs(60);
/// How long a body may wait for room. Clients give up later.
const ROOM_TIMEOUT: Duration = Duration::from_secs(540);
const PING_TIMEOUT: Duration = Duration::from_secs(60);

pub(crate) const JSON: &str = "application/json;charset=UTF-8";
pub(crate) const BYTES: &str = "application/octet-stream";

/// An answer's body as it goes out.
pub(crate) enum Body {
    Whole(Full<Bytes>),
    /// what a thread writes meanwhile; an error cuts the connection
    Streamed(mpsc::Receiver<io::Result<Bytes>>),
}

impl Default for Body {
    fn default() -> Self {
        Self::Whole(Full::default())
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match self.get_mut() {
            Self::Whole(body) => {
                let polled = Pin::new(body).poll_frame(context);
                polled.map(|frame| frame.map(|frame| frame.map_err(|never| match never {})))
            }
            Self::Streamed(parts) => {
                parts.poll_recv(context).map(|part| part.map(|part| part.map(Frame::data)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(body) => body.is_end_stream(),
            Self::Streamed(_) => false,
        }
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        match self {
            Self::Whole(body) => body.size_hint(),
            Self::Streamed(_) => hyper::body::SizeHint::default(),
        }
    }
}

/// Parts of a streamed body that wait for the client, and how large they are.
const PARTS_WAITING: usize = 4;
const PART_BYTES: usize = 256 << 10;

/// Writes a streamed body; waits while the client takes nothing.
struct BodyWriter(mpsc::Sender<io::Result<Bytes>>);

impl io::Write for BodyWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let part = Bytes::copy_from_slice(bytes);
        let sent = self.0.blocking_send(Ok(part));
        sent.map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "the client is gone"))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes a whole body.
pub(crate) type Produce = Box<dyn FnOnce(&mut dyn io::Write) -> Result<(), String> + Send>;

/// Runs `produce` on a thread of its own while the client reads.
fn streamed(produce: Produce) -> Body {
    let (sender, receiver) = mpsc::channel(PARTS_WAITING);
    tokio::task::spawn_blocking(move || {
        let mut out = io::BufWriter::with_capacity(PART_BYTES, BodyWriter(sender.clone()));
        let produced = produce(&mut out);
        if let Err(problem) = produced.and_then(|()| out.flush().map_err(|e| e.to_string())) {
            tracing::warn!("a download ended early: {problem}");
            let _ = sender.blocking_send(Err(io::Error::other(problem)));
        }
    });
    Body::Streamed(receiver)
}

/// What a request is answered with.
pub(crate) enum Reply {
    /// `{"data": …}`
    Data(Value),
    /// JSON as it is
    Whole(Value),
    /// JSON as it is, with the content type of a task's log
    Log(Value),
    Bytes(Vec<u8>),
    /// bytes that are made while they are sent, and the name to save them under
    Stream {
        name: String,
        produce: Produce,
    },
    /// a file to be saved under this name
    Text {
        name: String,
        text: String,
    },
}

impl From<()> for Reply {
    fn from((): ()) -> Self {
        Self::Data(Value::Null)
    }
}

impl Reply {
    pub(crate) fn into_response(self) -> Response<Body> {
        let (kind, body): (&str, Bytes) = match self {
            Self::Data(data) => (JSON, json!({ "data": data }).to_string().into()),
            Self::Whole(value) => (JSON, value.to_string().into()),
            Self::Log(value) => ("application/json", value.to_string().into()),
            Self::Bytes(bytes) => (BYTES, bytes.into()),
            Self::Text { name, text } => {
                return attached(&name, response(StatusCode::OK, "text/plain", text.into()));
            }
            Self::Stream { name, produce } => {
                let mut response = Response::new(streamed(produce));
                response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(BYTES));
                return attached(&name, response);
            }
        };
        response(StatusCode::OK, kind, body)
    }
}

/// To be saved under a name.
fn attached(name: &str, mut response: Response<Body>) -> Response<Body> {
    let safe: String = name.chars().map(|c| if "\"\\".contains(c) { '_' } else { c }).collect();
    if let Ok(value) = format!("attachment; filename=\"{safe}\"").parse() {
        response.headers_mut().insert("content-disposition", value);
    }
    response
}

impl ApiError {
    pub(crate) fn into_response(self) -> Response<Body> {
        response(self.status, JSON, self.message.into())
    }
}

pub(crate) fn response(status: StatusCode, kind: &str, body: Bytes) -> Response<Body> {
    let length = body.len();
    let mut response = Response::new(Body::Whole(Full::new(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    if let Ok(kind) = kind.parse() {
        headers.insert(CONTENT_TYPE, kind);
    }
    headers.insert(CONTENT_LENGTH, length.into());
    response
}

/// What a request's body is.
#[derive(Clone, Copy)]
pub(crate) enum Input {
    None,
    /// parameters
    Json,
    /// bytes, at most so many; the parameters announce how many (`encoded-size`)
    Bytes {
        limit: usize,
        /// what is said of more than the announced ones
        longer: fn(announced: usize, found: usize) -> String,
    },
    /// any number of bytes, not kept
    Discarded,
}

/// What an endpoint of a session does, on a thread that may block.
pub(crate) type Run<S> = fn(&S, &Params, Vec<u8>) -> ApiResult<Reply>;

/// One endpoint of a session.
pub(crate) struct Endpoint<S: 'static> {
    pub(crate) method: Method,
    pub(crate) name: &'static str,
    pub(crate) params: &'static [Param],
    pub(crate) input: Input,
    /// bytes that an answer may have which is not short; 0 where all are
    pub(crate) answer_bytes: usize,
    pub(crate) run: Run<S>,
}

/// What the endpoints of this name take.
pub(crate) fn params_of<S>(
    endpoints: &[Endpoint<S>],
    name: &str,
) -> impl Iterator<Item = &'static [Param]> {
    endpoints.iter().filter(move |endpoint| endpoint.name == name).map(|endpoint| endpoint.params)
}

const JSON_BYTES_MAX: usize = 512 << 10;
/// What the longest JSON takes when it is read: a number of one digit becomes 32 bytes.
const JSON_ROOM_BYTES: usize = 16 * JSON_BYTES_MAX;

/// How much the client of a session may send before it is taken, of all requests and of one, where
/// so many sessions run. Bodies that wait for room leave the window open for those that have it.
fn windows(sessions: u32) -> (u32, u32) {
    let all = (WINDOWS_BYTES / sessions.max(1)).clamp(WINDOW_BYTES_MIN, WINDOW_BYTES_MAX);
    (all, all / STREAMS_MAX)
}

/// Room for what a session has in memory.
pub(crate) struct Rooms {
    uploads: Room,
    answers: Room,
    session: Counted,
}

impl Rooms {
    pub(crate) fn of(memory: &Memory) -> Self {
        let (uploads, answers) = (memory.uploads(), memory.answers());
        Self { uploads, answers, session: memory.begin_session() }
    }
}

/// Waits for room, but not for ever.
pub(crate) async fn take(room: &Room, bytes: usize) -> ApiResult<Held> {
    let late = |_| ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "the server is too busy");
    timeout(ROOM_TIMEOUT, room.take(bytes)).await.map_err(late)
}

/// Serves a session until the client goes, or the task is asked to stop.
pub(crate) async fn serve<S: Send + Sync + 'static>(
    upgraded: Upgraded,
    session: Arc<S>,
    endpoints: &'static [Endpoint<S>],
    rooms: Rooms,
    task: &Task,
) -> Result<(), String> {
    let (window, stream_window) = windows(rooms.session.count);
    let rooms = Arc::new(rooms);
    let begun = AtomicBool::new(false);
    let service = service_fn(|request| {
        begun.store(true, Ordering::Relaxed);
        answer(session.clone(), endpoints, rooms.clone(), request)
    });
    let silence = async {
        tokio::time::sleep(SILENCE).await;
        if begun.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    };
    let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(stream_window)
        .initial_connection_window_size(window)
        .max_frame_size(keepwell_transport::FRAME_BYTES_MAX)
        .max_header_list_size(HEADER_BYTES_MAX)
        .max_concurrent_streams(STREAMS_MAX)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT);
    tokio::select! {
        outcome = builder.serve_connection(upgraded, service) => {
            outcome.map_err(|error| format!("connection error: {}", chain(&error)))
        }
        () = silence => Err("connection error: nothing was asked for a minute".into()),
        () = task.aborted() => Err("abort requested - aborting task".into()),
    }
}

async fn answer<S: Send + Sync + 'static>(
    session: Arc<S>,
    endpoints: &'static [Endpoint<S>],
    rooms: Arc<Rooms>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let answered = try_answer(session, endpoints, &rooms, request).await;
    Ok(answered.unwrap_or_else(ApiError::into_response))
}

async fn try_answer<S: Send + Sync + 'static>(
    session: Arc<S>,
    endpoints: &'static [Endpoint<S>],
    rooms: &Rooms,
    request: Request<Incoming>,
) -> ApiResult<Response<Body>> {
    let (head, body) = request.into_parts();
    tracing::debug!("session: {} {}", head.method, target(&head.uri));
    let path = head.uri.path();
    let name = path.trim_matches('/');
    if name.is_empty() && head.method == Method::GET {
        let mut names: Vec<&str> = endpoints.iter().map(|endpoint| endpoint.name).collect();
        names.sort_unstable();
        names.dedup();
        let list: Vec<Value> = names.iter().map(|name| json!({ "subdir": name })).collect();
        return Ok(Reply::Data(list.into()).into_response());
    }
    let found = endpoints.iter().find(|end| end.name == name && end.method == head.method);
    let missing = || ApiError::new(StatusCode::NOT_FOUND, format!("Path '{path}' not found."));
    let endpoint = found.ok_or_else(missing)?;
    let query = Given::query(head.uri.query().unwrap_or_default())?;
    let (params, bytes, uploaded) = read_input(endpoint, query, body, &rooms.uploads).await?;
    let mut answered = None;
    if endpoint.answer_bytes > 0 {
        answered = Some(take(&rooms.answers, endpoint.answer_bytes).await?);
    }
    let run = endpoint.run;
    // The work goes on when its client has gone: it keeps its room until then.
    let done = tokio::task::spawn_blocking(move || {
        let reply = run(&session, &params, bytes);
        drop(uploaded);
        (reply, answered)
    });
    let (reply, answered) = done.await.map_err(|_| ApiError::internal())?;
    Ok(match (reply?, answered) {
        (Reply::Bytes(bytes), Some(held)) => response(StatusCode::OK, BYTES, held.bytes(bytes)),
        (other, _) => other.into_response(),
    })
}

/// Parameters, bytes, and the room that they take.
async fn read_input<S: 'static>(
    endpoint: &Endpoint<S>,
    query: Given,
    body: Incoming,
    room: &Room,
) -> ApiResult<(Params, Vec<u8>, Option<Held>)> {
    match endpoint.input {
        Input::None => Ok((Params::check(endpoint.params, vec![query])?, Vec::new(), None)),
        Input::Json => {
            let held = take(room, JSON_ROOM_BYTES).await?;
            let (text, length) = collect(body, JSON_BYTES_MAX, JSON_BYTES_MAX).await?;
            if length > text.len() {
                return Err(ApiError::bad("request body is too large"));
            }
            let params = Params::check(endpoint.params, vec![query, parse_json(&text)?])?;
            Ok((params, Vec::new(), Some(held)))
        }
        Input::Bytes { limit, longer } => {
            let params = match Params::check(endpoint.params, vec![query]) {
                Ok(params) => params,
                Err(error) => {
                    // A client may want to be rid of the body before it hears the answer.
                    discard(body, limit).await?;
                    return Err(error);
                }
            };
            let announced = params.integer("encoded-size").unwrap_or_default();
            let announced = usize::try_from(announced).unwrap_or(0).min(limit);
            let held = take(room, announced).await?;
            let (bytes, length) = collect(body, announced, limit).await?;
            match length > announced {
                true => Err(ApiError::bad(longer(announced, length))),
                false => Ok((params, bytes, Some(held))),
            }
        }
        Input::Discarded => {
            discard(body, usize::MAX).await?;
            Ok((Params::check(endpoint.params, vec![query])?, Vec::new(), None))
        }
    }
}

/// What a request asks for, without the host.
pub(crate) fn target(uri: &hyper::Uri) -> &str {
    uri.path_and_query().map_or("", |target| target.as_str())
}

pub(crate) fn parse_json(text: &[u8]) -> ApiResult<Given> {
    match serde_json::from_slice(text) {
        Ok(Value::Object(map)) => Ok(Given::Json(map)),
        Ok(_) => Err(ApiError::bad("expected a JSON object")),
        Err(error) => Err(ApiError::bad(error.to_string())),
    }
}

/// The next part of a body; none where it ends.
async fn next_part(body: &mut Incoming) -> ApiResult<Option<Bytes>> {
    let late = |_| ApiError::new(StatusCode::REQUEST_TIMEOUT, "body timed out");
    while let Some(frame) = timeout(SILENCE, body.frame()).await.map_err(late)? {
        let frame = frame.map_err(|error| ApiError::bad(format!("connection error: {error}")))?;
        if let Ok(part) = frame.into_data() {
            return Ok(Some(part));
        }
    }
    Ok(None)
}

/// The beginning of a body, at most `kept` bytes, in one piece of memory: copied once. And its
/// length, which is looked for up to `limit` only.
async fn collect(mut body: Incoming, kept: usize, limit: usize) -> ApiResult<(Vec<u8>, usize)> {
    let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    let mut bytes = Vec::with_capacity(announced.min(kept));
    let mut length = 0;
    while let Some(part) = next_part(&mut body).await? {
        let room = kept - bytes.len();
        bytes.extend_from_slice(part.get(..room).unwrap_or(&part));
        length += part.len();
        if length > limit {
            break;
        }
    }
    Ok((bytes, length))
}

/// Reads a body, as far as it has not more bytes than these.
pub(crate) async fn discard(mut body: Incoming, limit: usize) -> ApiResult<()> {
    let mut length: usize = 0;
    while let Some(part) = next_part(&mut body).await? {
        length = length.saturating_add(part.len());
        if length > limit {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_shrink_where_many_sessions_run() {
        assert_eq!(windows(1), (16 << 20, 1 << 20));
        assert_eq!(windows(32), (8 << 20, 512 << 10));
        assert_eq!(windows(256), (1 << 20, 64 << 10));
        for sessions in (0..2000).chain([u32::MAX]) {
            let (all, one) = windows(sessions);
            assert!(one >= 64 << 10 && one * STREAMS_MAX <= all, "{sessions}");
        }
    }
}
