//! Who a request comes from: a ticket or a token; and how tickets are got. Spec: protocol.md §2.

use crate::access::{is_token, user_of};
use crate::error::{ApiError, ApiResult};
use crate::pam;
use crate::server::Server;
use hyper::Method;
use hyper::header::{AUTHORIZATION, COOKIE, HeaderMap};
use keepwell_model::AuthId;
use keepwell_transport::ticket::{self, PREFIX};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

const WINDOW_SECONDS: i64 = 60;
/// Addresses whose failures are remembered.
const ADDRESSES_MAX: usize = 10_000;

/// Failed logins by address, in the current minute.
pub(crate) struct Failures {
    limit: u32,
    counts: Mutex<(i64, HashMap<IpAddr, u32>)>,
    /// whose password libpam looks at
    turn: Mutex<()>,
}

impl Failures {
    pub(crate) fn new(limit: u32) -> Self {
        Self { limit, counts: Mutex::default(), turn: Mutex::default() }
    }

    fn with<T>(&self, now: i64, use_them: impl FnOnce(&mut HashMap<IpAddr, u32>) -> T) -> T {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if now - counts.0 >= WINDOW_SECONDS || counts.1.len() >= ADDRESSES_MAX {
            *counts = (now, HashMap::new());
        }
        use_them(&mut counts.1)
    }

    fn is_over(&self, address: IpAddr, now: i64) -> bool {
        self.with(now, |counts| counts.get(&address).is_some_and(|count| *count >= self.limit))
    }

    fn add(&self, address: IpAddr, now: i64) {
        self.with(now, |counts| *counts.entry(address).or_default() += 1);
    }
}

const TOO_MANY: &str = "too many failures from this address";

fn failed(reason: impl std::fmt::Display) -> ApiError {
    ApiError::unauthorized(format!("authentication failed - {reason}"))
}

const TOKEN_SCHEME: &str = "PBSAPIToken";

/// A token and its secret, from an `Authorization` header.
pub(crate) fn parse_token(header: &str) -> Option<(AuthId, String)> {
    let rest = header.strip_prefix(TOKEN_SCHEME)?.strip_prefix([' ', '='])?;
    let (id, secret) = rest.split_once(':')?;
    let decode = |text| percent_encoding::percent_decode_str(text).decode_utf8().ok();
    let id: AuthId = decode(id)?.parse().ok()?;
    is_token(&id).then_some((id, decode(secret)?.into_owned()))
}

impl Server {
    /// The one who sent a request with these headers.
    pub(crate) fn authenticate(&self, method: &Method, headers: &HeaderMap) -> ApiResult<AuthId> {
        let now = self.now();
        let cookies: Vec<&str> =
            headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok()).collect();
        let id = match ticket::from_cookies(&cookies.join(";")) {
            Some(ticket) => {
                let user = self.keys.verify(&ticket, now).map_err(failed)?;
                if method != Method::GET {
                    let token = headers.get("csrfpreventiontoken").and_then(|v| v.to_str().ok());
                    let token = token.ok_or_else(|| failed("missing CSRF prevention token"))?;
                    if !self.keys.verifies_csrf(token, &user, now) {
                        return Err(failed("invalid CSRF prevention token"));
                    }
                }
                user.parse::<AuthId>().map_err(failed)?
            }
            None => self.authenticate_token(headers)?,
        };
        match self.access().is_active(&id, now) {
            true => Ok(id),
            false => Err(failed("user account disabled or expired.")),
        }
    }

    fn authenticate_token(&self, headers: &HeaderMap) -> ApiResult<AuthId> {
        let value = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let value = value.filter(|value| value.starts_with(TOKEN_SCHEME));
        let value = value.ok_or_else(|| failed("no authentication credentials provided."))?;
        match parse_token(value) {
            Some((id, secret)) if self.access().verifies_token(&id, &secret) => Ok(id),
            _ => Err(failed("invalid credentials")),
        }
    }

    /// A ticket for a password, or for another ticket.
    pub(crate) fn login(&self, user: &AuthId, password: &str, address: IpAddr) -> ApiResult<Value> {
        let now = self.now();
        let refused = |reason: &str| {
            self.failures.add(address, now);
            tracing::warn!("authentication failure; rhost={address} user={user} msg={reason}");
            ApiError::unauthorized("permission check failed.")
        };
        let is_ticket = password.strip_prefix(PREFIX).is_some_and(|rest| rest.starts_with(':'));
        let renewal = is_ticket.then(|| match self.keys.verify(password, now) {
            Ok(data) if data == user.as_str() => Ok(()),
            Ok(_) => Err("ticket of another user".to_owned()),
            Err(problem) => Err(problem.to_string()),
        });
        // Who has a ticket does not guess.
        if renewal != Some(Ok(())) && self.failures.is_over(address, now) {
            return Err(refused(TOO_MANY));
        }
        if is_token(user) {
            return Err(refused("a token needs no ticket"));
        }
        if !self.access().is_active(user, now) {
            return Err(refused("user is unknown, disabled or expired"));
        }
        // Until a failure counts: of many attempts at once, too, only so many are looked at.
        let _turn = (renewal.is_none() && user.as_str().ends_with("@pam"))
            .then(|| self.failures.turn.lock().unwrap_or_else(PoisonError::into_inner));
        let outcome = renewal.unwrap_or_else(|| self.check_password(user, password, address));
        outcome.map_err(|reason| refused(&reason))?;
        let ticket = ticket::issue(user, now, &|bytes| self.keys.sign(bytes));
        let csrf = self.keys.csrf_token(user.as_str(), now);
        Ok(json!({ "CSRFPreventionToken": csrf, "ticket": ticket, "username": user.as_str() }))
    }

    fn check_password(&self, user: &AuthId, password: &str, address: IpAddr) -> Result<(), String> {
        let access = self.access();
        let (name, realm) = user_of(user).rsplit_once('@').unwrap_or_default();
        match realm {
            "pam" if self.failures.is_over(address, self.now()) => Err(TOO_MANY.into()),
            "pam" => {
                let service = &self.config.pam_service;
                pam::check(service, None, name, password, &address.to_string())
            }
            "pbs" => {
                let hash = access.user(user.as_str()).and_then(|user| user.password.as_deref());
                let hash = hash.ok_or("the user has no password")?;
                // Of many attempts at once, too, only so many are looked at.
                let is_wanted = || !self.failures.is_over(address, self.now());
                match self.passwords.verify(password, hash, is_wanted) {
                    true => Ok(()),
                    false => Err("invalid credentials".into()),
                }
            }
            other => Err(format!("there is no realm '{other}'")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_forgotten_after_a_minute() {
        let failures = Failures::new(2);
        let address = IpAddr::from([127, 0, 0, 1]);
        failures.add(address, 1000);
        assert!(!failures.is_over(address, 1000));
        failures.add(address, 1001);
        assert!(failures.is_over(address, 1059));
        assert!(!failures.is_over(IpAddr::from([127, 0, 0, 2]), 1059));
        assert!(!failures.is_over(address, 1060));
    }
}
