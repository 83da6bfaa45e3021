//! How plugins reach web servers: with the client of `transport`.

use crate::exit::one_line;
use crate::remote::proxy;
use crate::signals::interrupt;
use keepwell_engine::plugin::Failure;
use keepwell_transport::Error;
use keepwell_transport::web::{self, WebClient};
use keepwell_wasm::{Url, Web, WebRequest, WebResponse};
use std::net::IpAddr;

pub(super) struct PluginWeb(WebClient);

impl PluginWeb {
    pub(super) fn new() -> Self {
        Self(WebClient::new(interrupt()))
    }
}

/// To a proxy that would be itself.
fn is_this_machine(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

impl Web for PluginWeb {
    fn fetch(&self, request: WebRequest) -> Result<WebResponse, Failure> {
        let Url { is_https, host, port, path } = request.url;
        let proxy = match is_this_machine(&host) {
            true => None,
            false => proxy().map_err(|error| Failure::Other(one_line(&error)))?,
        };
        let WebRequest { method, headers, body, .. } = request;
        let request = web::WebRequest { is_https, host, port, path, method, headers, body };
        let fetched = self.0.fetch(request, proxy).map_err(|error| match error {
            Error::Request(text) => Failure::Invalid(text),
            Error::Interrupted => Failure::Cancelled,
            other => Failure::Io(one_line(&other.into())),
        })?;
        let web::WebResponse { status, headers, body } = fetched;
        Ok(WebResponse { status, headers, body: Box::new(body) })
    }
}
