//! A session: HTTP/2 on a connection that was upgraded. Spec: protocol.md §4, §5.

use crate::FRAME_BYTES_MAX;
use crate::client::{Inner, status_error};
use crate::error::{Error, Result};
use crate::limit::RateLimit;
use crate::query::Query;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::http2;
use hyper::header::CONTENT_TYPE;
use hyper::upgrade::Upgraded;
use hyper::{Method, Request};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde_json::Value;
use std::convert::Infallible;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Sleep, sleep, timeout};

/// The largest that HTTP/2 knows, but one.
const WINDOW_BYTES: u32 = (1 << 31) - 2;
/// How long the other side may be silent when asked whether it is there.
const PING_EVERY: Duration = Duration::from_secs(60);
const PING_TIMEOUT: Duration = Duration::from_secs(60);
/// How long nothing may move while an answer is awaited. A server that syncs slow disks at the end
/// of a backup takes its time.
const IDLE_TIMEOUT: Duration = Duration::from_secs(600);
/// Larger frames than the processor's caches hold are dear: each is collected before it is used.
const FRAME_BYTES: u32 = 256 << 10;
/// Bytes sent at once: what has moved is counted by these.
const PART_BYTES: usize = 256 << 10;
/// Bytes sent at once where there is a limit.
const LIMITED_BYTES: usize = 32 << 10;
/// The longest parameters that a client sends.
const QUERY_BYTES_MAX: usize = 4096;
/// The longest answer that is no file.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// Room taken for an answer because of what its head says.
const ROOM_BYTES_MAX: usize = 17 << 20;
const FORM: &str = "application/x-www-form-urlencoded";

/// Bytes on their way to the server, perhaps slowed down.
pub(crate) struct Payload {
    bytes: Bytes,
    limit: Option<Arc<RateLimit>>,
    pause: Option<Pin<Box<Sleep>>>,
    moved: Moved,
}

/// Counts what moves in a session.
#[derive(Clone, Default)]
pub(crate) struct Moved(Arc<AtomicU64>);

impl Moved {
    fn note(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Waits for `answer` as long as anything moves.
    async fn watch<T>(&self, idle: Duration, answer: impl Future<Output = Result<T>>) -> Result<T> {
        let mut answer = pin!(answer);
        loop {
            let before = self.0.load(Ordering::Relaxed);
            if let Ok(done) = timeout(idle, answer.as_mut()).await {
                self.note();
                return done;
            }
            if self.0.load(Ordering::Relaxed) == before {
                return Err(Error::Timeout("http request"));
            }
        }
    }
}

impl Payload {
    pub(crate) fn new(bytes: Bytes, limit: Option<Arc<RateLimit>>, moved: Moved) -> Self {
        Self { bytes, limit, pause: None, moved }
    }
}

impl Body for Payload {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, Infallible>>> {
        if let Some(pause) = &mut self.pause {
            if pause.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
            self.pause = None;
        }
        if self.bytes.is_empty() {
            return Poll::Ready(None);
        }
        let length = match &self.limit {
            None => self.bytes.len().min(PART_BYTES),
            Some(_) => self.bytes.len().min(LIMITED_BYTES),
        };
        let part = self.bytes.split_to(length);
        self.moved.note();
        let wait = self.limit.as_ref().map_or(Duration::ZERO, |limit| limit.take(length as u64));
        if !wait.is_zero() {
            self.pause = Some(Box::pin(sleep(wait)));
        }
        Poll::Ready(Some(Ok(Frame::data(part))))
    }

    fn is_end_stream(&self) -> bool {
        self.bytes.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes.len() as u64)
    }
}

/// One session. Requests may run side by side; when the last clone is gone, it is over.
#[derive(Clone)]
pub(crate) struct Session {
    sender: http2::SendRequest<Payload>,
    client: Arc<Inner>,
    moved: Moved,
}

impl Session {
    pub(crate) async fn start(upgraded: Upgraded, client: Arc<Inner>) -> Result<Self> {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .max_frame_size(FRAME_BYTES)
            .max_send_buf_size(FRAME_BYTES_MAX as usize)
            .keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_TIMEOUT);
        let shaken = builder.handshake(upgraded).await;
        let (sender, connection) = shaken.map_err(|source| client.lost(Some(source)))?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!("session ended: {error}");
            }
        });
        Ok(Self { sender, client, moved: Moved::default() })
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        query: &Query,
        (content_type, body): (&'static str, Bytes),
        limit: usize,
    ) -> Result<Bytes> {
        let query = query.encode();
        if query.len() > QUERY_BYTES_MAX {
            return Err(Error::protocol(format!("the parameters of '{path}' are too long")));
        }
        let target = match query.is_empty() {
            true => path.to_owned(),
            false => format!("{path}?{query}"),
        };
        self.call(method, &target, (content_type, body), limit).await
    }

    /// `target` is the path with its parameters.
    pub(crate) async fn call(
        &self,
        method: Method,
        target: &str,
        (content_type, body): (&'static str, Bytes),
        limit: usize,
    ) -> Result<Bytes> {
        let target = format!("https://localhost:8007/{target}");
        let request = Request::builder()
            .method(method)
            .uri(target)
            .header("user-agent", crate::USER_AGENT)
            .header(CONTENT_TYPE, content_type)
            .body(Payload::new(body, self.client.limit.clone(), self.moved.clone()));
        let request = request.map_err(|problem| Error::protocol(problem.to_string()))?;
        let lost = |source| self.client.lost(Some(source));
        let mut sender = self.sender.clone();
        let answer = async {
            sender.ready().await.map_err(lost)?;
            let response = sender.send_request(request).await.map_err(lost)?;
            Ok((response.status(), self.receive(response.into_body(), limit).await?))
        };
        let answer = self.moved.watch(self.client.patience().unwrap_or(IDLE_TIMEOUT), answer);
        let (status, body) = self.client.interrupt.or(answer).await?;
        match status.is_success() {
            true => Ok(body),
            false => Err(status_error(status, &body)),
        }
    }

    async fn receive(&self, mut body: Incoming, bytes_max: usize) -> Result<Bytes> {
        let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
        let mut bytes = Vec::with_capacity(announced.min(bytes_max).min(ROOM_BYTES_MAX));
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|source| self.client.lost(Some(source)))?;
            let Ok(part) = frame.into_data() else { continue };
            self.moved.note();
            if bytes.len() + part.len() > bytes_max {
                return Err(Error::protocol(format!(
                    "the server sent more than {bytes_max} bytes"
                )));
            }
            let limit = self.client.limit.as_ref();
            let wait = limit.map_or(Duration::ZERO, |limit| limit.take(part.len() as u64));
            if !wait.is_zero() {
                sleep(wait).await;
            }
            bytes.extend_from_slice(&part);
        }
        Ok(bytes.into())
    }

    /// At most `bytes_max` bytes.
    pub(crate) async fn get(&self, path: &str, query: &Query, bytes_max: usize) -> Result<Bytes> {
        self.send(Method::GET, path, query, (FORM, Bytes::new()), bytes_max).await
    }

    pub(crate) async fn get_value(&self, path: &str, query: &Query) -> Result<Value> {
        value(&self.get(path, query, ANSWER_BYTES_MAX).await?)
    }

    /// POST without a body.
    pub(crate) async fn post(&self, path: &str, query: &Query) -> Result<Value> {
        let body = (FORM, Bytes::new());
        value(&self.send(Method::POST, path, query, body, ANSWER_BYTES_MAX).await?)
    }

    /// POST with bytes.
    pub(crate) async fn upload(&self, path: &str, query: &Query, body: Bytes) -> Result<Value> {
        let body = ("application/octet-stream", body);
        value(&self.send(Method::POST, path, query, body, ANSWER_BYTES_MAX).await?)
    }

    pub(crate) async fn put_json(&self, path: &str, body: Bytes) -> Result<Value> {
        let body = ("application/json", body);
        value(&self.send(Method::PUT, path, &Query::new(), body, ANSWER_BYTES_MAX).await?)
    }
}

fn value(answer: &[u8]) -> Result<Value> {
    let unexpected =
        |problem| Error::protocol(format!("the server's answer is no JSON: {problem}"));
    let mut answer: Value = serde_json::from_slice(answer).map_err(unexpected)?;
    Ok(answer.get_mut("data").map(Value::take).unwrap_or_default())
}
