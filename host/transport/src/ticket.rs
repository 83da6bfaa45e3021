//! Tickets: what a server gives for a password, and takes instead of it for two hours.
//! Spec: protocol.md §2.2, §2.3.

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use keepwell_model::AuthId;
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};

/// What precedes the user in a ticket.
pub const PREFIX: &str = "PBS";
/// The cookie that carries a ticket.
pub const COOKIE: &str = "PBSAuthCookie";
/// Newer servers' cookie.
pub const HOST_COOKIE: &str = "__Host-PBSAuthCookie";
/// Seconds for which a ticket is good, and how far clocks may differ.
pub const LIFETIME: i64 = 7200;
pub const CLOCK_SKEW: i64 = 300;

/// Characters that a cookie or token secret may not hold.
const COOKIE_ESCAPED: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'<')
    .add(b'>')
    .add(b'`')
    .add(b'?')
    .add(b'{')
    .add(b'}');
const DATA_ESCAPED: &AsciiSet = &CONTROLS.add(b':');

/// A value for a cookie or a token's secret.
pub fn escape(value: &str) -> String {
    utf8_percent_encode(value, COOKIE_ESCAPED).to_string()
}

/// Why a ticket is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TicketError {
    #[error("invalid ticket")]
    Malformed,
    #[error("ticket with bad signature")]
    BadSignature,
    #[error("invalid ticket - expired")]
    Expired,
    #[error("invalid ticket - timestamp newer than expected")]
    TooNew,
}

/// `PREFIX:DATA:TIME::SIGNATURE`, not verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ticket<'a> {
    /// all that is signed
    signed: &'a str,
    pub data: String,
    /// Unix seconds
    pub time: i64,
    signature: &'a str,
}

impl<'a> Ticket<'a> {
    pub fn parse(text: &'a str) -> Result<Self, TicketError> {
        let (signed, signature) = text.rsplit_once("::").ok_or(TicketError::Malformed)?;
        let mut parts = signed.splitn(3, ':');
        let (prefix, data, time) = (parts.next(), parts.next(), parts.next());
        let (Some(PREFIX), Some(data), Some(time)) = (prefix, data, time) else {
            return Err(TicketError::Malformed);
        };
        let is_time = (8..=16).contains(&time.len()) && time.bytes().all(|c| c.is_ascii_hexdigit());
        let time = i64::from_str_radix(time, 16).ok().filter(|_| is_time);
        let time = time.ok_or(TicketError::Malformed)?;
        let data = percent_decode_str(data).decode_utf8().map_err(|_| TicketError::Malformed)?;
        Ok(Self { signed, data: data.into_owned(), time, signature })
    }

    /// What was signed, and the signature; none where that is not base64.
    pub fn signed(&self) -> Option<(&'a [u8], Vec<u8>)> {
        Some((self.signed.as_bytes(), STANDARD_NO_PAD.decode(self.signature).ok()?))
    }

    /// Whether it is good at this time.
    pub fn check_age(&self, now: i64) -> Result<(), TicketError> {
        match now.saturating_sub(self.time) {
            age if age > LIFETIME => Err(TicketError::Expired),
            age if age < -CLOCK_SKEW => Err(TicketError::TooNew),
            _ => Ok(()),
        }
    }
}

/// Makes a ticket; `sign` gets the bytes to be signed.
pub fn issue(user: &AuthId, now: i64, sign: &dyn Fn(&[u8]) -> Vec<u8>) -> String {
    let data = utf8_percent_encode(user.as_str(), DATA_ESCAPED);
    let signed = format!("{PREFIX}:{data}:{now:08X}");
    let signature = STANDARD_NO_PAD.encode(sign(signed.as_bytes()));
    format!("{signed}::{signature}")
}

/// The ticket in a `Cookie` header, if there is one.
pub fn from_cookies(header: &str) -> Option<String> {
    let find = |name: &str| {
        let mut cookies = header.split(';').filter_map(|cookie| cookie.trim().split_once('='));
        cookies.find(|(key, _)| *key == name).map(|(_, value)| value)
    };
    let value = find(HOST_COOKIE).or_else(|| find(COOKIE))?;
    Some(percent_decode_str(value).decode_utf8().ok()?.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_golden_ticket_is_read() {
        let text = "PBS:test@pbs:6B03A3C2::RN4GPVUJpGnl1+Lwg2tI450mP3DzT1F4O3glxwCs7/I3H37xswpZI/u86MPL3ztyx82TPuE5ZG+SIUssZhhjBg";
        let ticket = Ticket::parse(text).unwrap();
        assert_eq!((ticket.data.as_str(), ticket.time), ("test@pbs", 0x6B03_A3C2));
        let (signed, signature) = ticket.signed().unwrap();
        assert_eq!((signed, signature.len()), (&b"PBS:test@pbs:6B03A3C2"[..], 64));
    }

    #[test]
    fn a_ticket_lasts_two_hours() {
        let user = "a@pbs".parse().unwrap();
        let text = issue(&user, 1_700_000_000, &|bytes| bytes.to_vec());
        let ticket = Ticket::parse(&text).unwrap();
        assert_eq!(ticket.data, "a@pbs");
        assert_eq!(ticket.check_age(1_700_000_000 + 7200), Ok(()));
        assert_eq!(ticket.check_age(1_700_000_000 + 7201), Err(TicketError::Expired));
        assert_eq!(ticket.check_age(1_700_000_000 - 301), Err(TicketError::TooNew));
    }

    #[test]
    fn cookies_are_found_escaped_or_not() {
        for header in [
            "PBSAuthCookie=PBS:a@pbs:65A1B2C3::x",
            "other=1; PBSAuthCookie=PBS%3Aa%40pbs%3A65A1B2C3%3A%3Ax; more=2",
            "PBSAuthCookie=old; __Host-PBSAuthCookie=PBS:a@pbs:65A1B2C3::x",
        ] {
            assert_eq!(from_cookies(header).as_deref(), Some("PBS:a@pbs:65A1B2C3::x"));
        }
        assert_eq!(from_cookies("PBSAuth=1"), None);
    }

    proptest! {
        #[test]
        fn anything_is_read_or_refused(text in ".*") {
            let _ = Ticket::parse(&text);
            let _ = from_cookies(&text);
        }
    }
}
