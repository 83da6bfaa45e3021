//! Requests to a server's API, one after the other on one connection, with a ticket or a token.
//! Spec: protocol.md §1, §2.

use crate::cache::TicketCache;
use crate::connect::{Attempt, Place, Proxy, connect};
use crate::error::{Error, Result};
use crate::fingerprint::{Fingerprint, KnownServers};
use crate::limit::RateLimit;
use crate::network::{Interrupt, Network};
use crate::query::Query;
use crate::session::{Moved, Payload, Session};
use crate::{USER_AGENT, ticket};
use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{
    AUTHORIZATION, CONNECTION, CONTENT_TYPE, COOKIE, HOST, HeaderValue, SET_COOKIE, UPGRADE,
};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use keepwell_model::AuthId;
use serde_json::Value;
use std::future::Future;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::{Instant, timeout};
use zeroize::Zeroizing;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(120);
/// A ticket lasts two hours.
const RENEWAL: Duration = Duration::from_secs(15 * 60);
/// And after one that failed.
const RENEWAL_AGAIN: Duration = Duration::from_secs(60);
/// The longest listing that is taken.
const ANSWER_BYTES_MAX: usize = 256 << 20;
const FORM: &str = "application/x-www-form-urlencoded";
const JSON: &str = "application/json";
const BYTES: &str = "application/octet-stream";

/// What the user proves with who he is.
#[derive(Clone)]
pub enum Secret {
    /// a password, or a ticket in its place
    Password(Zeroizing<String>),
    /// of an API token
    Token(Zeroizing<String>),
}

/// Asks whether to go on with a certificate that nobody vouches for; gets its fingerprint and the
/// expected one.
pub type Confirm = dyn Fn(&Fingerprint, Option<&Fingerprint>) -> bool + Send + Sync;

/// Which certificates are good enough, beside those that the system trusts.
pub struct Trust {
    pub expected: Option<Fingerprint>,
    /// servers that were confirmed before
    pub known: Option<KnownServers>,
    pub confirm: Box<Confirm>,
}

/// A server and who talks to it.
pub struct ClientOptions {
    pub host: String,
    pub port: u16,
    pub user: AuthId,
    pub trust: Trust,
    pub proxy: Option<Proxy>,
    pub limit: Option<RateLimit>,
    /// where tickets are kept
    pub cache: Option<TicketCache>,
    /// Unix seconds
    pub now: fn() -> i64,
    /// set when the user wants to stop: nothing waits any longer then
    pub interrupt: Arc<AtomicBool>,
    /// how long a silent server is waited for, where somebody else waits for us; none for as long as
    /// there is hope
    pub patience: Option<Duration>,
}

/// How requests show who they come from.
#[derive(Clone)]
enum Credentials {
    Ticket { cookie: Zeroizing<String>, ticket: Zeroizing<String>, csrf: Zeroizing<String> },
    Token { header: Zeroizing<String> },
}

pub(crate) struct Inner {
    options: ClientOptions,
    credentials: Mutex<Option<Credentials>>,
    /// what the user confirmed in this run
    confirmed: Mutex<Option<Fingerprint>>,
    idle: tokio::sync::Mutex<Option<http1::SendRequest<Payload>>>,
    pub(crate) limit: Option<Arc<RateLimit>>,
    pub(crate) interrupt: Interrupt,
}

/// A client of one server. Its calls block; they may come from any thread.
pub struct Client {
    pub(crate) inner: Arc<Inner>,
    pub(crate) runtime: Arc<Network>,
}

/// One request, so that it can be made again.
pub(crate) struct Call<'a> {
    method: Method,
    path: &'a str,
    query: &'a Query,
    body: Bytes,
    content_type: &'static str,
    upgrade: Option<&'static str>,
}

impl<'a> Call<'a> {
    /// Parameters travel in the query; those of a POST in its body.
    fn new(method: Method, path: &'a str, query: &'a Query) -> Self {
        let post = method == Method::POST && !query.is_empty();
        let body = if post { query.to_json().into() } else { Bytes::new() };
        let content_type = if post { JSON } else { FORM };
        Self { method, path, query, body, content_type, upgrade: None }
    }
}

impl Client {
    pub fn new(mut options: ClientOptions) -> Result<Self> {
        let runtime = Network::start(options.interrupt.clone())?;
        if let Some(proxy) = &options.proxy {
            tracing::info!("Using proxy connection: {}", proxy.address());
        }
        let limit = options.limit.take().map(Arc::new);
        let inner = Inner {
            options,
            credentials: Mutex::default(),
            confirmed: Mutex::default(),
            idle: tokio::sync::Mutex::default(),
            limit,
            interrupt: runtime.interrupt().clone(),
        };
        Ok(Self { inner: Arc::new(inner), runtime: Arc::new(runtime) })
    }

    /// Shows who we are: a password is exchanged for a ticket, which is renewed from then on.
    pub fn login(&self, secret: Secret) -> Result<()> {
        match secret {
            Secret::Token(secret) => {
                let user = self.inner.options.user.as_str();
                let header = format!("PBSAPIToken {user}:{}", ticket::escape(&secret));
                let header = Zeroizing::new(header);
                self.inner.set_credentials(Credentials::Token { header });
                Ok(())
            }
            Secret::Password(password) => {
                self.block_on(self.inner.login(&password))?;
                self.runtime.spawn(renew(self.inner.clone()));
                Ok(())
            }
        }
    }

    pub fn get(&self, path: &str, query: &Query) -> Result<Value> {
        self.call(Method::GET, path, query)
    }

    pub fn post(&self, path: &str, query: &Query) -> Result<Value> {
        self.call(Method::POST, path, query)
    }

    pub fn put(&self, path: &str, query: &Query) -> Result<Value> {
        self.call(Method::PUT, path, query)
    }

    pub fn delete(&self, path: &str, query: &Query) -> Result<Value> {
        self.call(Method::DELETE, path, query)
    }

    fn call(&self, method: Method, path: &str, query: &Query) -> Result<Value> {
        let call = Call::new(method, path, query);
        data(self.block_on_until(self.deadline(), self.inner.fetch(&call))?)
    }

    /// The whole answer, not only its data.
    pub fn get_whole(&self, path: &str, query: &Query) -> Result<Value> {
        let call = Call::new(Method::GET, path, query);
        parse(&self.block_on_until(self.deadline(), self.inner.fetch(&call))?)
    }

    /// A file, as it is.
    pub fn download(&self, path: &str, query: &Query) -> Result<Vec<u8>> {
        let call = Call::new(Method::GET, path, query);
        Ok(self.block_on(self.inner.fetch(&call))?.into())
    }

    /// POSTs bytes; parameters travel in the query.
    pub fn upload(&self, path: &str, query: &Query, body: Vec<u8>) -> Result<Value> {
        let (body, content_type) = (body.into(), BYTES);
        let call = Call { method: Method::POST, path, query, body, content_type, upgrade: None };
        data(self.block_on(self.inner.fetch(&call))?)
    }

    /// A session whose requests the caller makes up: to try servers with.
    #[doc(hidden)]
    pub fn bare_session(
        &self,
        path: &str,
        query: &Query,
        protocol: &'static str,
    ) -> Result<BareSession> {
        let session = self.block_on(self.inner.upgrade(path, query, protocol))?;
        Ok(BareSession { session, runtime: self.runtime.clone() })
    }

    /// When patience ends with what begins now.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.inner.patience().map(|patience| Instant::now() + patience)
    }

    pub(crate) fn block_on_until<T>(
        &self,
        deadline: Option<Instant>,
        future: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let Some(deadline) = deadline else { return self.block_on(future) };
        self.block_on(async {
            let late = |_| Error::Timeout("waiting for the server");
            tokio::time::timeout_at(deadline, future).await.map_err(late)?
        })
    }

    pub(crate) fn block_on<T>(&self, future: impl Future<Output = Result<T>>) -> Result<T> {
        self.runtime.run(future)
    }
}

#[doc(hidden)]
pub struct BareSession {
    session: Session,
    runtime: Arc<Network>,
}

impl BareSession {
    /// The answer's bytes; any other status than 200 is an [`Error::Status`].
    pub fn call(&self, method: &str, target: &str, body: Vec<u8>) -> Result<Vec<u8>> {
        let method = method.parse().map_err(|_| Error::protocol("no method"))?;
        let kind = if method == Method::PUT { JSON } else { BYTES };
        let call = self.session.call(method, target, (kind, body.into()), ANSWER_BYTES_MAX);
        Ok(self.runtime.run(call)?.into())
    }
}

/// `{"data": …}`
fn data(answer: Bytes) -> Result<Value> {
    match parse(&answer)? {
        Value::Object(mut object) => Ok(object.remove("data").unwrap_or_default()),
        other => Err(Error::protocol(format!("unexpected answer of the server: {other}"))),
    }
}

fn parse(answer: &[u8]) -> Result<Value> {
    let unexpected =
        |problem| Error::protocol(format!("the server's answer is no JSON: {problem}"));
    serde_json::from_slice(answer).map_err(unexpected)
}

/// Gets a new ticket every quarter of an hour, as long as the client is there.
async fn renew(client: Arc<Inner>) {
    let client = {
        let weak = Arc::downgrade(&client);
        drop(client);
        weak
    };
    let mut pause = RENEWAL;
    loop {
        tokio::time::sleep(pause).await;
        let Some(client) = client.upgrade() else { return };
        let Some(Credentials::Ticket { ticket, .. }) = client.credentials() else { return };
        pause = RENEWAL;
        if let Err(error) = client.login(&ticket).await {
            tracing::warn!("re-authentication failed: {error}");
            // A server that is away may come back.
            match error {
                Error::Status { .. } => return,
                _ => pause = RENEWAL_AGAIN,
            }
        }
    }
}

impl Inner {
    fn credentials(&self) -> Option<Credentials> {
        self.credentials.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_credentials(&self, credentials: Credentials) {
        *self.credentials.lock().unwrap_or_else(PoisonError::into_inner) = Some(credentials);
    }

    fn place(&self) -> Place {
        let ClientOptions { host, port, proxy, .. } = &self.options;
        Place { host: host.clone(), port: *port, proxy: proxy.clone() }
    }

    pub(crate) fn patience(&self) -> Option<Duration> {
        self.options.patience
    }

    pub(crate) fn lost(&self, source: Option<hyper::Error>) -> Error {
        Error::lost(self.place().address(), source.map(Into::into))
    }

    async fn login(&self, password: &str) -> Result<()> {
        let user = self.options.user.as_str();
        let query = Query::new().with("username", user).with("password", password);
        let mut call = Call::new(Method::POST, "//api2/json/access/ticket", &query);
        call.body = query.to_json().into();
        let empty = Query::new();
        call.query = &empty;
        let response = self.send(&call).await?;
        // Newer servers may answer with a cookie.
        let cookies = response.headers().get_all(SET_COOKIE).iter();
        let cookie = cookies.filter_map(|cookie| cookie.to_str().ok()).find_map(|cookie| {
            let (name, rest) = cookie.split_once('=')?;
            let value = rest.split(';').next()?;
            (name == ticket::HOST_COOKIE && !value.is_empty()).then(|| format!("{name}={value}"))
        });
        let answer = data(self.read(response).await?)?;
        let text = |name: &str| answer.get(name).and_then(Value::as_str).map(str::to_owned);
        let csrf = text("CSRFPreventionToken").map(Zeroizing::new);
        let ticket = text("ticket").or_else(|| {
            let (_, value) = cookie.as_deref()?.split_once('=')?;
            ticket::from_cookies(&format!("{}={value}", ticket::HOST_COOKIE))
        });
        let (Some(ticket), Some(csrf)) = (ticket.map(Zeroizing::new), csrf) else {
            return Err(Error::protocol("the server's answer to the login holds no ticket"));
        };
        let cookie =
            cookie.unwrap_or_else(|| format!("{}={}", ticket::COOKIE, ticket::escape(&ticket)));
        if let Some(cache) = &self.options.cache {
            let stored =
                cache.store(&self.options.host, user, &ticket, &csrf, (self.options.now)());
            if let Err(error) = stored {
                tracing::debug!("storing login ticket failed: {error}");
            }
        }
        self.set_credentials(Credentials::Ticket { cookie: cookie.into(), ticket, csrf });
        Ok(())
    }

    /// A new connection to the server; asks the user where nobody vouches for it.
    async fn connect(&self) -> Result<http1::SendRequest<Payload>> {
        let place = self.place();
        let Trust { expected, known, confirm } = &self.options.trust;
        let confirmed = *self.confirmed.lock().unwrap_or_else(PoisonError::into_inner);
        let expected = match (confirmed.or(*expected), known) {
            (None, Some(known)) => known.find(&place.host)?,
            (expected, _) => expected,
        };
        let stream = match connect(&place, expected).await? {
            Attempt::Connected(stream) => stream,
            Attempt::Untrusted(presented) => {
                let refused = || Error::NotConfirmed { presented: presented.to_string() };
                if !confirm(&presented, expected.as_ref()) {
                    return Err(refused());
                }
                *self.confirmed.lock().unwrap_or_else(PoisonError::into_inner) = Some(presented);
                let Attempt::Connected(stream) = connect(&place, Some(presented)).await? else {
                    return Err(refused());
                };
                if let Some(Err(error)) =
                    known.as_ref().map(|known| known.store(&place.host, &presented))
                {
                    tracing::warn!("unable to remember the fingerprint: {error}");
                }
                stream
            }
        };
        let lost = |source| self.lost(Some(source));
        let (sender, connection) = http1::handshake(TokioIo::new(*stream)).await.map_err(lost)?;
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!("connection ended: {error}");
            }
        });
        Ok(sender)
    }

    fn request(&self, call: &Call<'_>) -> Result<Request<Payload>> {
        let query = match call.method == Method::POST && call.content_type == JSON {
            true => String::new(),
            false => call.query.encode(),
        };
        let target = match query.is_empty() {
            true => call.path.to_owned(),
            false => format!("{}?{query}", call.path),
        };
        let host = self.place().address();
        let mut builder = Request::builder()
            .method(call.method.clone())
            .uri(&target)
            .header("user-agent", USER_AGENT)
            .header(CONTENT_TYPE, call.content_type);
        match self.credentials() {
            Some(Credentials::Ticket { cookie, csrf, .. }) => {
                builder = builder.header(COOKIE, sensitive(&cookie)?);
                builder = builder.header("csrfpreventiontoken", sensitive(&csrf)?);
            }
            Some(Credentials::Token { header }) => {
                builder = builder.header(AUTHORIZATION, sensitive(&header)?);
            }
            None => {}
        }
        if let Some(protocol) = call.upgrade {
            builder = builder.header(CONNECTION, "upgrade").header(UPGRADE, protocol);
        }
        let built = builder.header(HOST, host).body(Payload::new(
            call.body.clone(),
            None,
            Moved::default(),
        ));
        built.map_err(|problem| Error::protocol(format!("'{target}': {problem}")))
    }

    /// Sends a request on the connection that is there, or on a new one.
    async fn send(&self, call: &Call<'_>) -> Result<Response<Incoming>> {
        let mut idle = self.idle.lock().await;
        let mut reused = idle.take();
        if let Some(sender) = &mut reused
            && sender.ready().await.is_err()
        {
            reused = None;
        }
        let again = reused.is_some() && call.method == Method::GET;
        let mut sender = match reused {
            Some(sender) => sender,
            None => self.connect().await?,
        };
        let mut outcome = self.try_send(&mut sender, call).await;
        // A server may have closed a connection that was idle just now.
        if again && outcome.as_ref().is_err_and(Error::is_lost) {
            sender = self.connect().await?;
            outcome = self.try_send(&mut sender, call).await;
        }
        let response = outcome?;
        *idle = Some(sender);
        Ok(response)
    }

    async fn try_send(
        &self,
        sender: &mut http1::SendRequest<Payload>,
        call: &Call<'_>,
    ) -> Result<Response<Incoming>> {
        let kind = match call.upgrade {
            Some(_) => "http upgrade request",
            None => "http request",
        };
        let sent = timeout(REQUEST_TIMEOUT, sender.send_request(self.request(call)?)).await;
        sent.map_err(|_| Error::Timeout(kind))?.map_err(|source| self.lost(Some(source)))
    }

    async fn read(&self, response: Response<Incoming>) -> Result<Bytes> {
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect();
        let body = timeout(REQUEST_TIMEOUT, body).await;
        let body = body.map_err(|_| Error::Timeout("http download request"))?;
        let body = body.map_err(|source| Error::lost(self.place().address(), Some(source)))?;
        let body = body.to_bytes();
        match status.is_success() {
            true => Ok(body),
            false => Err(status_error(status, &body)),
        }
    }

    async fn fetch(&self, call: &Call<'_>) -> Result<Bytes> {
        let response = self.send(call).await?;
        self.read(response).await
    }

    /// Turns a connection into a session of another protocol.
    pub(crate) async fn upgrade(
        self: &Arc<Self>,
        path: &str,
        query: &Query,
        protocol: &'static str,
    ) -> Result<Session> {
        let mut call = Call::new(Method::GET, path, query);
        call.upgrade = Some(protocol);
        let response = self.send(&call).await?;
        // The connection is the session's now.
        *self.idle.lock().await = None;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            let answer = self.read(response).await?;
            let answer = String::from_utf8_lossy(&answer);
            return Err(Error::protocol(format!(
                "the server refused to switch protocols: {answer}"
            )));
        }
        let upgraded = hyper::upgrade::on(response).await;
        let upgraded = upgraded.map_err(|source| self.lost(Some(source)))?;
        Session::start(upgraded, self.clone()).await
    }
}

fn sensitive(text: &str) -> Result<HeaderValue> {
    let problem = "the password or token holds characters that can't be sent";
    let mut value = HeaderValue::from_str(text).map_err(|_| Error::protocol(problem))?;
    value.set_sensitive(true);
    Ok(value)
}

/// What a server says when it refuses: plain text.
pub(crate) fn status_error(status: StatusCode, body: &[u8]) -> Error {
    let text = String::from_utf8_lossy(body);
    let mut message = text.trim().to_owned();
    if message.is_empty() {
        message = format!("the server answered: {status}");
    }
    Error::Status { status: status.as_u16(), message }
}

/// The user's groups and snapshots are found under this path.
pub(crate) fn datastore_path(store: &str, rest: &str) -> String {
    format!("/api2/json/admin/datastore/{store}/{rest}")
}
