//! Requests of plugins to web servers. Who makes them is given by who starts the runtime.

use super::host::answer;
use super::process::Rest;
use crate::bindings::archive::keepwell::archive::web;
use crate::bindings::archive::keepwell::types::types as wit;
use crate::state::{FileHandle, ResponseHandle, State, Unfinished};
use keepwell_engine::Cancel;
use keepwell_engine::input::InputFile;
use keepwell_engine::plugin::Failure;
use std::io::{PipeWriter, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use wasmtime::component::Resource;

type Answer<T> = wasmtime::Result<Result<T, wit::Failure>>;

/// Makes requests.
pub trait Web: Send + Sync {
    /// Waits for the head of the answer, but no longer than the user does.
    fn fetch(&self, request: WebRequest) -> Result<WebResponse, Failure>;
}

/// What is asked for, of a host that was granted.
#[derive(Debug)]
pub struct WebRequest {
    pub url: Url,
    pub method: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

/// What came back.
pub struct WebResponse {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    /// Fails where it breaks off.
    pub body: Box<dyn Read + Send>,
}

/// `http://HOST[:PORT]/PATH` or `https://…`.
#[derive(Debug, PartialEq, Eq)]
pub struct Url {
    pub is_https: bool,
    /// in lower case; an IPv6 address is in brackets
    pub host: String,
    pub port: u16,
    /// with the query; begins with '/'
    pub path: String,
}

const BODY_BYTES_MAX: usize = 1 << 20;
const HEADERS_MAX: usize = 100;
/// Each holds a connection, and perhaps a thread.
const RESPONSES_MAX: usize = 16;

impl Url {
    /// Strict: what is not plainly a host is none.
    fn parse(text: &str) -> Option<Self> {
        let (is_https, rest) = match text.split_once("://")? {
            ("https", rest) => (true, rest),
            ("http", rest) => (false, rest),
            _ => return None,
        };
        let (place, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        let (host, port) = host_and_port(place)?;
        let port = port.unwrap_or(if is_https { 443 } else { 80 });
        let path = match path.starts_with('/') {
            true => path.to_owned(),
            false => format!("/{path}"),
        };
        let is_path = path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
        is_path.then_some(Self { is_https, host, port, path })
    }

    /// Whether it lies at a place: a host, which stands for the usual port, or `HOST:PORT`.
    fn is_at(&self, place: &str) -> bool {
        let usual = if self.is_https { 443 } else { 80 };
        (self.port == usual && place == self.host) || place == self.place()
    }

    fn place(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

/// `HOST[:PORT]`; the host in lower case.
fn host_and_port(place: &str) -> Option<(String, Option<u16>)> {
    let (host, port) = match place.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (place, None),
    };
    let is_number = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    let port = match port {
        Some(port) => Some(port.parse().ok().filter(|&value| value != 0 && is_number(port))?),
        None => None,
    };
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let is_host = match address {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            let is_legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
            (1..=255).contains(&host.len()) && host.bytes().all(is_legal)
        }
    };
    is_host.then(|| (host.to_ascii_lowercase(), port))
}

/// What can be granted, as it is compared: a host, which stands for the usual ports, or `HOST:PORT`. None for what is
/// neither.
pub fn web_place(text: &str) -> Option<String> {
    let (host, port) = host_and_port(text)?;
    Some(port.map_or(host.clone(), |port| format!("{host}:{port}")))
}

/// An answer and what becomes of its body.
pub(crate) struct Fetched {
    status: u16,
    headers: Vec<(String, String)>,
    body: Body,
    /// what of the body was not read, once it was taken
    rest: Rest,
    unfinished: Arc<Unfinished>,
}

enum Body {
    Waiting(Box<dyn Read + Send>),
    /// A thread writes it to a pipe.
    Taken(JoinHandle<std::io::Result<()>>),
    Finished(Result<(), Failure>),
}

impl Fetched {
    fn new(url: &str, response: WebResponse) -> Self {
        let WebResponse { status, headers, body } = response;
        let unfinished = Unfinished::new(&format!("the answer of {url}"));
        Self { status, headers, body: Body::Waiting(body), rest: Rest::default(), unfinished }
    }

    fn body(&mut self) -> Result<InputFile, Failure> {
        let failed = |error: std::io::Error| Failure::Io(error.to_string());
        if !matches!(self.body, Body::Waiting(_)) {
            return Err(Failure::Invalid("the body of the answer is taken".into()));
        }
        let (output, mut input) = std::io::pipe().map_err(failed)?;
        let file = self.rest.keep(OwnedFd::from(output), "answer").map_err(failed)?;
        let lost = Failure::Io("there is no thread for the body of the answer".into());
        let taken = std::mem::replace(&mut self.body, Body::Finished(Err(lost)));
        if let Body::Waiting(mut body) = taken {
            let thread = std::thread::Builder::new().name("answer".into());
            let pumping = thread.spawn(move || pump(&mut *body, &mut input)).map_err(failed)?;
            self.body = Body::Taken(pumping);
        }
        Ok(file)
    }

    /// Whether all of the body came that was taken.
    fn finish(&mut self, cancel: &Cancel) -> Result<(), Failure> {
        loop {
            let ended = match &self.body {
                Body::Waiting(_) => return Ok(()),
                Body::Finished(outcome) => return outcome.clone(),
                Body::Taken(pumping) => pumping.is_finished(),
            };
            if cancel.is_cancelled() {
                return Err(Failure::Cancelled);
            }
            if !ended {
                self.rest.drop_some();
                continue;
            }
            let unknown = Body::Finished(Err(Failure::Io("the answer broke off".into())));
            let Body::Taken(pumped) = std::mem::replace(&mut self.body, unknown) else { continue };
            if let Ok(outcome) = pumped.join() {
                let outcome = outcome.map_err(|error| Failure::Io(error.to_string()));
                if outcome.is_ok() {
                    self.unfinished.succeed();
                }
                self.body = Body::Finished(outcome);
            }
        }
    }
}

fn pump(body: &mut dyn Read, pipe: &mut PipeWriter) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        match body.read(&mut buffer)? {
            0 => return Ok(()),
            read => pipe.write_all(buffer.get(..read).unwrap_or_default())?,
        }
    }
}

impl State {
    fn fetch(&mut self, request: web::Request) -> Result<Fetched, Failure> {
        let shown = crate::state::plain(&request.url.chars().take(500).collect::<String>());
        let invalid = |what: &str| Err(Failure::Invalid(format!("{what}: '{shown}'")));
        let Some(url) = Url::parse(&request.url) else {
            return invalid("no URL of a web server");
        };
        if !self.rights().http.iter().any(|granted| url.is_at(granted)) {
            let usual = url.is_at(&url.host);
            let place = if usual { url.host.clone() } else { url.place() };
            return Err(self.refused(&format!("answers of '{place}'"), "http", &place));
        }
        if request.body.len() > BODY_BYTES_MAX || request.headers.len() > HEADERS_MAX {
            return invalid("more than 1 MiB, or 100 headers, for");
        }
        self.pumping.retain(|left| !left.is_finished());
        if self.responses + self.pumping.len() >= RESPONSES_MAX {
            return invalid("more than 16 answers at a time are not had");
        }
        let Some(web) = self.web.clone() else {
            return Err(Failure::Unsupported("there is no network here".into()));
        };
        let headers = request.headers.into_iter().map(|header| (header.name, header.value));
        let (method, headers, body) = (request.method, headers.collect(), request.body);
        let request = WebRequest { url, method, headers, body };
        let told = |failure: Failure| failure.with_text(|text| format!("{shown}: {text}"));
        Ok(Fetched::new(&shown, web.fetch(request).map_err(told)?))
    }
}

impl web::Host for State {}

impl web::HostResponse for State {
    fn fetch(&mut self, request: web::Request) -> Answer<Resource<ResponseHandle>> {
        self.is_busy();
        match Self::fetch(self, request) {
            Ok(fetched) => {
                let handle = self.push(ResponseHandle(fetched))?;
                self.responses += 1;
                Ok(Ok(handle))
            }
            Err(failure) => answer(Err(failure)),
        }
    }

    fn status(&mut self, this: Resource<ResponseHandle>) -> wasmtime::Result<u16> {
        Ok(self.table.get(&this)?.0.status)
    }

    fn headers(&mut self, this: Resource<ResponseHandle>) -> wasmtime::Result<Vec<web::Header>> {
        let headers = self.table.get(&this)?.0.headers.iter();
        let header = |(name, value): &(String, String)| web::Header {
            name: name.clone(),
            value: value.clone(),
        };
        Ok(headers.map(header).collect())
    }

    fn body(&mut self, this: Resource<ResponseHandle>) -> Answer<Resource<FileHandle>> {
        let fetched = &mut self.table.get_mut(&this)?.0;
        let (taken, from) = (fetched.body(), fetched.unfinished.clone());
        self.push_file(taken, Some(from))
    }

    fn finish(&mut self, this: Resource<ResponseHandle>) -> Answer<()> {
        let cancel = self.cancel.clone();
        let finished = self.table.get_mut(&this)?.0.finish(&cancel);
        self.is_busy();
        answer(finished)
    }

    fn drop(&mut self, this: Resource<ResponseHandle>) -> wasmtime::Result<()> {
        let ResponseHandle(fetched) = self.table.delete(this)?;
        self.responses = self.responses.saturating_sub(1);
        // It counts as long as it waits for a server.
        if let Body::Taken(pumping) = fetched.body {
            self.pumping.push(pumping);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_url_names_one_host() {
        let parsed = |text: &str| {
            let Url { is_https, host, port, path } = Url::parse(text)?;
            Some(format!("{is_https} {host} {port} {path}"))
        };
        for (text, expected) in [
            ("https://example.com", "true example.com 443 /"),
            ("http://Example.COM:8080/a/b?c=d", "false example.com 8080 /a/b?c=d"),
            ("http://[::1]/x", "false [::1] 80 /x"),
            ("https://[::1]:99?q", "true [::1] 99 /?q"),
            ("http://1.2.3.4/@b.com", "false 1.2.3.4 80 /@b.com"),
        ] {
            assert_eq!(parsed(text).as_deref(), Some(expected), "{text}");
        }
        for bad in [
            "",
            "example.com",
            "ftp://a/",
            "HTTP://a/",
            "http://",
            "http:///x",
            "http://a@b/",
            "http://a:b@c/",
            "http://a b/",
            "http://a/b c",
            "http://a/\r\nHost: b",
            "http://a#b",
            "http://a/#b",
            "http://a\\@b/",
            "http://a:/",
            "http://a:0/",
            "http://a:+1/",
            "http://a:65536/",
            "http://[a]/",
            "http://[::1/",
            "http://::1/",
            "http://ä/",
            "http://a%2f/",
        ] {
            assert_eq!(parsed(bad), None, "{bad}");
        }
    }

    proptest! {
        /// What is parsed says the same when it is written again, so nobody reads another host in it.
        #[test]
        fn a_url_reads_as_it_is_written(text in r"(https?://)?[a-zA-Z0-9.:@/?#\\\[\]%_ -]{0,40}|\PC{0,30}") {
            if let Some(url) = Url::parse(&text) {
                let scheme = if url.is_https { "https" } else { "http" };
                let again = format!("{scheme}://{}{}", url.place(), url.path);
                prop_assert!(url.is_at(&web_place(&url.place()).unwrap()));
                prop_assert_eq!(Url::parse(&again), Some(url));
            }
        }
    }

    #[test]
    fn a_granted_host_stands_for_the_usual_port() {
        let is_at = |url: &str, place: &str| Url::parse(url).is_some_and(|url| url.is_at(place));
        assert!(is_at("http://a/", "a") && is_at("https://a/", "a") && is_at("http://a:80/", "a"));
        assert!(is_at("http://a:99/", "a:99") && is_at("https://a/", "a:443"));
        assert!(!is_at("http://a:99/", "a") && !is_at("http://a.b/", "a"));
        assert!(!is_at("http://a:443/", "a") && !is_at("http://b/", "a"));
    }

    #[test]
    fn places_are_compared_as_they_are_written_in_urls() {
        assert_eq!(web_place("API.example.com").as_deref(), Some("api.example.com"));
        assert_eq!(web_place("[::1]:0080").as_deref(), Some("[::1]:80"));
        for bad in ["", "::1", "a b", "host:99999", "https:x", "https://a", "a/b", "*", "a:"] {
            assert_eq!(web_place(bad), None, "{bad}");
        }
    }

    /// What a server says that breaks off.
    struct Broken(usize);

    impl Read for Broken {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            self.0 = self.0.checked_sub(1).ok_or(std::io::Error::other("broken off"))?;
            buffer[..3].copy_from_slice(b"abc");
            Ok(3)
        }
    }

    #[test]
    fn half_an_answer_is_told() {
        let fetched = |body: Box<dyn Read + Send>| {
            Fetched::new("x", WebResponse { status: 200, headers: Vec::new(), body })
        };
        let cancel = Cancel::default();
        let mut whole = fetched(Box::new(&b"abcdef"[..]));
        let file = whole.body().unwrap();
        assert!(whole.body().is_err(), "once");
        let mut buffer = [0; 100];
        assert_eq!(file.read_or_wait(&mut buffer[..4], 0, &cancel), Ok(4));
        assert!(matches!(file.read_or_wait(&mut buffer, 0, &cancel), Err(Failure::Unsupported(_))));
        assert_eq!(file.read_or_wait(&mut buffer, 4, &cancel), Ok(2));
        assert_eq!(file.read_or_wait(&mut buffer, 6, &cancel), Ok(0));
        assert_eq!(whole.finish(&cancel), Ok(()));
        let mut broken = fetched(Box::new(Broken(2)));
        let file = broken.body().unwrap();
        let mut read = 0;
        while let Ok(more @ 1..) = file.read_or_wait(&mut buffer, read as u64, &cancel) {
            read += more;
        }
        assert_eq!(read, 6);
        for _ in 0..2 {
            assert_eq!(broken.finish(&cancel), Err(Failure::Io("broken off".into())));
        }
        // What nobody reads holds nothing back.
        let mut left = fetched(Box::new(std::io::repeat(7).take(1 << 20)));
        let held = left.body().unwrap();
        assert_eq!(left.finish(&cancel), Ok(()));
        drop(held);
        let mut never = fetched(Box::new(std::io::repeat(7)));
        let _held = never.body().unwrap();
        cancel.cancel();
        assert_eq!(never.finish(&cancel), Err(Failure::Cancelled));
    }
}
