//! Requests of plugins to web servers. Who makes them is given by who starts the runtime.

use super::host::answer;
use crate::bindings::archive::keepwell::archive::web;
use crate::bindings::archive::keepwell::types::types as wit;
use crate::state::{FileHandle, ResponseHandle, State};
use keepwell_engine::Cancel;
use keepwell_engine::input::InputFile;
use keepwell_engine::plugin::Failure;
use std::io::{PipeWriter, Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
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

impl Url {
    /// Strict: what is not plainly a host is none.
    fn parse(text: &str) -> Option<Self> {
        let (is_https, rest) = match text.split_once("://")? {
            ("https", rest) => (true, rest),
            ("http", rest) => (false, rest),
            _ => return None,
        };
        let (place, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        let (host, port) = match place.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
            _ => (place, None),
        };
        let port = match port {
            None if is_https => 443,
            None => 80,
            Some(port) if port.bytes().all(|byte| byte.is_ascii_digit()) => port.parse().ok()?,
            Some(_) => return None,
        };
        let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let is_host = match address {
            Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
            None => {
                let is_legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
                (1..=255).contains(&host.len()) && host.bytes().all(is_legal)
            }
        };
        let path = match path.starts_with('/') {
            true => path.to_owned(),
            false => format!("/{path}"),
        };
        let is_path = path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
        let host = host.to_ascii_lowercase();
        (is_host && is_path && port != 0).then_some(Self { is_https, host, port, path })
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

/// An answer and what becomes of its body.
pub(crate) struct Fetched {
    status: u16,
    headers: Vec<(String, String)>,
    body: Body,
}

enum Body {
    Waiting(Box<dyn Read + Send>),
    /// A thread writes it to a pipe.
    Taken(JoinHandle<std::io::Result<()>>),
    Finished,
}

impl Fetched {
    fn body(&mut self) -> Result<InputFile, Failure> {
        let failed = |error: std::io::Error| Failure::Io(error.to_string());
        let mut body = match std::mem::replace(&mut self.body, Body::Finished) {
            Body::Waiting(body) => body,
            other => {
                self.body = other;
                return Err(Failure::Invalid("the body of the answer is taken".into()));
            }
        };
        let (output, mut input) = std::io::pipe().map_err(failed)?;
        self.body = Body::Taken(std::thread::spawn(move || pump(&mut *body, &mut input)));
        InputFile::from_fd(OwnedFd::from(output), Path::new("answer")).map_err(failed)
    }

    /// Whether all of the body came. What nobody took need not come.
    fn finish(&mut self, cancel: &Cancel) -> Result<(), Failure> {
        let pumped = match std::mem::replace(&mut self.body, Body::Finished) {
            Body::Taken(pumped) => pumped,
            Body::Waiting(_) | Body::Finished => return Ok(()),
        };
        while !pumped.is_finished() {
            if cancel.is_cancelled() {
                return Err(Failure::Cancelled);
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        match pumped.join() {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Failure::Io(error.to_string())),
            Err(_) => Err(Failure::Io("the answer broke off".into())),
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
        if !self.rights.http.iter().any(|granted| url.is_at(granted)) {
            let usual = url.is_at(&url.host);
            let place = if usual { url.host.clone() } else { url.place() };
            return Err(self.refused(&format!("answers of '{place}'"), "http", &place));
        }
        if request.body.len() > BODY_BYTES_MAX || request.headers.len() > HEADERS_MAX {
            return invalid("more than 1 MiB, or 100 headers, for");
        }
        let Some(web) = self.web.clone() else {
            return Err(Failure::Unsupported("there is no network here".into()));
        };
        let headers = request.headers.into_iter().map(|header| (header.name, header.value));
        let (method, headers, body) = (request.method, headers.collect(), request.body);
        let request = WebRequest { url, method, headers, body };
        let WebResponse { status, headers, body } = web
            .fetch(request)
            .map_err(|failure| failure.with_text(|text| format!("{shown}: {text}")))?;
        Ok(Fetched { status, headers, body: Body::Waiting(body) })
    }
}

impl web::Host for State {}

impl web::HostResponse for State {
    fn fetch(&mut self, request: web::Request) -> Answer<Resource<ResponseHandle>> {
        self.is_busy();
        match Self::fetch(self, request) {
            Ok(fetched) => Ok(Ok(self.push(ResponseHandle(fetched))?)),
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
        match self.table.get_mut(&this)?.0.body() {
            Ok(file) => Ok(Ok(self.push(FileHandle(Arc::new(file)))?)),
            Err(failure) => answer(Err(failure)),
        }
    }

    fn finish(&mut self, this: Resource<ResponseHandle>) -> Answer<()> {
        let cancel = self.cancel.clone();
        let finished = self.table.get_mut(&this)?.0.finish(&cancel);
        self.is_busy();
        answer(finished)
    }

    fn drop(&mut self, this: Resource<ResponseHandle>) -> wasmtime::Result<()> {
        self.table.delete(this)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn a_granted_host_stands_for_the_usual_port() {
        let is_at = |url: &str, place: &str| Url::parse(url).is_some_and(|url| url.is_at(place));
        assert!(is_at("http://a/", "a") && is_at("https://a/", "a") && is_at("http://a:80/", "a"));
        assert!(is_at("http://a:99/", "a:99") && is_at("https://a/", "a:443"));
        assert!(!is_at("http://a:99/", "a") && !is_at("http://a.b/", "a"));
        assert!(!is_at("http://a:443/", "a") && !is_at("http://b/", "a"));
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
        let fetched = |body: Box<dyn Read + Send>| Fetched {
            status: 200,
            headers: Vec::new(),
            body: Body::Waiting(body),
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
        assert_eq!(broken.finish(&cancel), Err(Failure::Io("broken off".into())));
        // A pipe that nobody reads holds no thread back for ever.
        let mut left = fetched(Box::new(std::io::repeat(7)));
        drop(left.body().unwrap());
        assert!(left.finish(&cancel).is_err());
    }
}
