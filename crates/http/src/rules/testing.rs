//! Heads written as text, for the tests of the rules.

use http::header::{HeaderName, HeaderValue};
use http::{HeaderMap, Method, StatusCode};

use super::{RequestHead, StoredHead, Times};

/// Any time after which nothing underflows: 2023-11-14 22:13:20 UTC.
pub(super) const NOW_MS: u64 = 1_700_000_000_000;

/// Reads `"name: value"` lines separated by `|` into a header map; `NOW±n` becomes an HTTP date.
pub(super) fn headers(text: &str) -> HeaderMap {
    let mut map = HeaderMap::new();
    for line in text.split('|').map(str::trim).filter(|line| !line.is_empty()) {
        let (name, value) = line.split_once(':').expect("a header line has a colon");
        let value = value.trim();
        let value = match value.strip_prefix("NOW") {
            Some(offset) => date(offset.parse().unwrap_or(0)),
            None => value.to_owned(),
        };
        map.append(
            HeaderName::from_bytes(name.trim().as_bytes()).expect("a valid name"),
            HeaderValue::from_bytes(value.as_bytes()).expect("a valid value"),
        );
    }
    map
}

/// Formats the HTTP date `offset_s` seconds from `NOW_MS`.
pub(super) fn date(offset_s: i64) -> String {
    let seconds = (NOW_MS / 1000).checked_add_signed(offset_s).expect("a date after 1970");
    httpdate::fmt_http_date(std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds))
}

pub(super) fn get(headers: &HeaderMap) -> RequestHead<'_> {
    const GET: &Method = &Method::GET;
    RequestHead { method: GET, headers }
}

/// A response as the store holds it, received at `NOW_MS` after no delay.
pub(super) fn stored(status: u16, text: &str) -> StoredHead {
    StoredHead {
        status: StatusCode::from_u16(status).expect("a valid status"),
        headers: headers(text),
        times: Times { request_ms: NOW_MS, response_ms: NOW_MS },
    }
}
