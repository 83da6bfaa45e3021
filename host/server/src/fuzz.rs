//! The request layer for fuzzing: all that looks at bytes of a client before it is known and
//! allowed. Not part of the interface.

use crate::params::{Given, Param, Params};
use crate::{api, auth, backup, calendar, reader, session};
use hyper::Method;
use keepwell_model::Upid;
use keepwell_transport::{query, ticket};

/// Lines: method and target, cookies, authorization; then a body. Whatever it is, it is answered.
pub fn request(data: &[u8]) {
    let mut lines = data.splitn(4, |byte| *byte == b'\n');
    let mut line = || String::from_utf8_lossy(lines.next().unwrap_or_default()).into_owned();
    let (head, cookies, authorization) = (line(), line(), line());
    let body = lines.next().unwrap_or_default();
    let (method, target) = head.split_once(' ').unwrap_or(("GET", &head));
    let (path, text) = target.split_once('?').unwrap_or((target, ""));
    let method = Method::from_bytes(method.as_bytes()).unwrap_or(Method::GET);
    check_identity(&cookies, &authorization);
    if let Some(pairs) = query::decode(text) {
        for (name, value) in pairs {
            let _ = (name.parse::<Upid>(), value.parse::<calendar::CalendarEvent>());
        }
    }
    let _ = api::directory(path);
    if let Some((endpoint, names)) = api::find(&method, path) {
        assert_eq!(endpoint.path.matches("{}").count(), names.len());
        check(endpoint.params, text, body);
    }
    let of_session = path.rsplit('/').next().unwrap_or_default();
    for schema in [api::BACKUP_PARAMS, api::READER_PARAMS] {
        check(schema, text, b"");
    }
    let of_backups = session::params_of(backup::ENDPOINTS, of_session);
    for schema in of_backups.chain(session::params_of(reader::ENDPOINTS, of_session)) {
        check(schema, text, body);
    }
}

fn check_identity(cookies: &str, authorization: &str) {
    if let Some(ticket) = ticket::from_cookies(cookies)
        && let Ok(ticket) = ticket::Ticket::parse(&ticket)
    {
        let _ = (ticket.check_age(0), ticket.signed());
    }
    if let Some((id, _)) = auth::parse_token(authorization) {
        assert_eq!(id.as_str().parse().ok().as_ref(), Some(&id));
    }
}

/// With the body as JSON, and as a form.
fn check(schema: &[Param], query: &str, body: &[u8]) {
    let form = std::str::from_utf8(body).ok().map(Given::query);
    for more in [Some(session::parse_json(body)), form, None] {
        let Ok(mut given) = Given::query(query).map(|given| vec![given]) else { return };
        match more {
            Some(Ok(more)) => given.push(more),
            Some(Err(_)) => continue,
            None => {}
        }
        if let Ok(params) = Params::check(schema, given) {
            let _ = (api::namespace(&params), api::group(&params), api::snapshot(&params));
        }
    }
}
