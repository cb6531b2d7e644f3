//! What the cache tells about itself: `Cache-Status` (RFC 9211) and the word for `X-Cache`.

use std::fmt;

use bytes::BytesMut;
use http::header::HeaderValue;

/// Names this cache in `Cache-Status`.
const CACHE_NAME: &str = "ultra-perf";

/// Gives the reason why a request went to the origin: the `fwd` parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forward {
    /// The cache was told not to handle the request.
    Bypass,
    /// The method is not one that the cache answers.
    Method,
    /// Nothing is stored for the URI.
    UriMiss,
    /// Something is stored for the URI, but no variant for this request.
    VaryMiss,
    /// Nothing usable is stored, and it is not known why.
    Miss,
    /// The stored answer is fresh, but the request asks for a newer one.
    Request,
    /// The stored answer is stale.
    Stale,
}

impl Forward {
    /// Returns the registered word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bypass => "bypass",
            Self::Method => "method",
            Self::UriMiss => "uri-miss",
            Self::VaryMiss => "vary-miss",
            Self::Miss => "miss",
            Self::Request => "request",
            Self::Stale => "stale",
        }
    }
}

/// Tells in one word what the cache did: the value of `X-Cache`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Answered from the cache, fresh or validated.
    Hit,
    /// Fetched from the origin.
    Miss,
    /// Answered from the cache although stale.
    Stale,
    /// Passed by the cache.
    Bypass,
}

impl Outcome {
    /// Returns the word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "HIT",
            Self::Miss => "MISS",
            Self::Stale => "STALE",
            Self::Bypass => "BYPASS",
        }
    }

    /// Returns the header value, without allocating.
    pub fn value(self) -> HeaderValue {
        HeaderValue::from_static(self.as_str())
    }
}

/// Builds one member of `Cache-Status`; append it behind what the origin's caches wrote.
///
/// ```
/// use ultra_perf_http::rules::{CacheStatus, Forward};
///
/// let hit = CacheStatus::hit(376);
/// assert_eq!(hit.to_string(), "ultra-perf; hit; ttl=376");
/// let miss = CacheStatus { stored: true, fwd_status: Some(200), ..CacheStatus::forward(Forward::UriMiss) };
/// assert_eq!(miss.to_string(), "ultra-perf; fwd=uri-miss; fwd-status=200; stored");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStatus {
    /// Why the request went to the origin; `None` is a hit.
    pub fwd: Option<Forward>,
    /// The origin's status, where the request was forwarded.
    pub fwd_status: Option<u16>,
    /// Freshness left in seconds, negative once stale.
    pub ttl_s: Option<i64>,
    /// Whether the origin's answer was stored.
    pub stored: bool,
    /// Whether the request waited for another's answer.
    pub collapsed: bool,
    /// More, as a word; left out unless it is a structured-field token.
    pub detail: Option<&'static str>,
}

impl CacheStatus {
    /// Describes an answer from the cache.
    pub fn hit(ttl_s: i64) -> Self {
        Self { ttl_s: Some(ttl_s), ..Self::default() }
    }

    /// Describes an answer from the origin.
    pub fn forward(reason: Forward) -> Self {
        Self { fwd: Some(reason), ..Self::default() }
    }

    /// Returns the header value, written into `scratch` and split off it.
    ///
    /// # Cost
    ///
    /// No allocation while `scratch` has room: keep one per connection or thread.
    pub fn value(&self, scratch: &mut BytesMut) -> HeaderValue {
        self.write(|part| scratch.extend_from_slice(part));
        HeaderValue::from_maybe_shared(scratch.split().freeze())
            .expect("tokens and numbers are valid in a header")
    }

    fn write(&self, mut put: impl FnMut(&[u8])) {
        put(CACHE_NAME.as_bytes());
        match self.fwd {
            None => put(b"; hit"),
            Some(reason) => {
                put(b"; fwd=");
                put(reason.as_str().as_bytes());
                if let Some(status) = self.fwd_status {
                    put(b"; fwd-status=");
                    put_decimal(i64::from(status), &mut put);
                }
            }
        }
        if let Some(ttl_s) = self.ttl_s {
            put(b"; ttl=");
            put_decimal(ttl_s, &mut put);
        }
        // Both say something about a forwarded request only (RFC 9211 section 2).
        if self.fwd.is_some() && self.stored {
            put(b"; stored");
        }
        if self.fwd.is_some() && self.collapsed {
            put(b"; collapsed");
        }
        if let Some(detail) = self.detail.filter(|detail| is_token(detail)) {
            put(b"; detail=");
            put(detail.as_bytes());
        }
    }
}

impl fmt::Display for CacheStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = Vec::with_capacity(64);
        self.write(|part| text.extend_from_slice(part));
        f.write_str(&String::from_utf8_lossy(&text))
    }
}

/// Writes a number without the machinery of `fmt`.
fn put_decimal(number: i64, put: &mut impl FnMut(&[u8])) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    let mut rest = number.unsigned_abs();
    loop {
        at -= 1;
        digits[at] = b'0' + u8::try_from(rest % 10).expect("a digit");
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if number < 0 {
        put(b"-");
    }
    put(&digits[at..]);
}

fn is_token(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.first().is_some_and(u8::is_ascii_alphabetic)
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.*/:".contains(byte))
}

#[cfg(test)]
mod tests;
