//! Header fields that belong to one connection, and the small syntax that fields share.
//!
//! A proxy removes the fields of RFC 9110 section 7.6.1 in both directions, and every field that
//! `Connection` names. Some fields are removed by no `Connection`: a peer that lists
//! `Cache-Control` or `Content-Length` there would otherwise turn a private answer into a public
//! one, or desynchronise the framing.

use http::HeaderMap;
use http::header::{self, Entry, HeaderName, HeaderValue};

/// End-to-end fields that stay even when `Connection` names them.
const END_TO_END: [HeaderName; 13] = [
    header::AGE,
    header::AUTHORIZATION,
    header::CACHE_CONTROL,
    header::CONTENT_ENCODING,
    header::CONTENT_LENGTH,
    header::CONTENT_RANGE,
    header::CONTENT_TYPE,
    header::DATE,
    header::EXPIRES,
    header::HOST,
    header::PRAGMA,
    header::SET_COOKIE,
    header::VARY,
];

/// Tells whether a field always belongs to one connection only.
pub fn is_hop_by_hop(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "connection"
            | "proxy-connection"
            | "keep-alive"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
            | "http2-settings"
            | "proxy-authenticate"
            | "proxy-authentication-info"
            | "proxy-authorization"
    )
}

/// Removes what belongs to one connection: the fixed fields and those that `Connection` names.
///
/// Use it on requests and on responses, after reading what the hop itself needs (`Upgrade`, `TE`).
pub fn remove_hop_by_hop(headers: &mut HeaderMap) {
    if let Entry::Occupied(entry) = headers.entry(header::CONNECTION) {
        let lines: Vec<HeaderValue> = entry.remove_entry_mult().1.collect();
        for token in lines.iter().flat_map(|line| tokens(line.as_bytes())) {
            if let Ok(name) = HeaderName::from_bytes(token)
                && !END_TO_END.contains(&name)
            {
                headers.remove(name);
            }
        }
    }
    // Most heads hold none by now: one pass over the names is cheaper than a look-up of each.
    while let Some(name) = headers.keys().find(|name| is_hop_by_hop(name)).cloned() {
        headers.remove(name);
    }
}

/// Tells whether a field of this head goes beyond the connection, as `remove_hop_by_hop` sees it.
pub(super) fn is_forwarded(name: &HeaderName, headers: &HeaderMap) -> bool {
    let named = || {
        let mut lines = headers.get_all(header::CONNECTION).iter();
        lines.any(|line| {
            tokens(line.as_bytes()).any(|it| it.eq_ignore_ascii_case(name.as_str().as_bytes()))
        })
    };
    !is_hop_by_hop(name) && (!named() || END_TO_END.contains(name))
}

/// Takes the optional white space off both ends.
pub(super) fn trim(mut text: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = text {
        text = rest;
    }
    text
}

/// Splits a list whose members hold no quoted strings; empty members are skipped.
pub(super) fn tokens(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|&byte| byte == b',').map(trim).filter(|token| !token.is_empty())
}

/// Reads an HTTP date as Unix seconds.
pub(super) fn parse_date(value: &HeaderValue) -> Option<u64> {
    let time = httpdate::parse_http_date(value.to_str().ok()?).ok()?;
    time.duration_since(std::time::UNIX_EPOCH).ok().map(|since| since.as_secs())
}

/// Formats Unix seconds as an HTTP date, up to the end of the year 9999.
pub(super) fn format_date(seconds: u64) -> HeaderValue {
    const LAST: u64 = 253_402_300_799;
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds.min(LAST));
    HeaderValue::try_from(httpdate::fmt_http_date(time)).expect("an HTTP date is plain ASCII")
}

#[cfg(test)]
mod tests;
