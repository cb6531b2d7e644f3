//! Which requests concern the cache at all.

use http::header::{AUTHORIZATION, COOKIE};
use http::{HeaderMap, Method};

use super::{CacheControl, RequestHead};

/// Says what the cache does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestClass {
    /// Look for a stored answer.
    Lookup(Lookup),
    /// Forward it and neither read nor write the cache.
    Bypass(Bypass),
}

/// Says how a request may use the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lookup {
    /// Whether the origin's answer may be stored; false for `no-store` and for ranges.
    ///
    /// A hit serves them all the same: a range may be answered with the whole (RFC 9110
    /// section 14.2), and `no-store` only forbids storing.
    pub may_store: bool,
    /// Whether a miss must be answered with 504 instead of asking the origin.
    pub only_if_cached: bool,
}

/// Gives the reason why a request passes the cache by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bypass {
    /// Neither GET nor HEAD.
    Method,
    /// It asks for another protocol on this connection.
    Upgrade,
    /// It expects something of the origin, such as `100-continue`.
    Expect,
    /// It has a body, which a cache key does not cover.
    Body,
    /// `If-Match` and `If-Unmodified-Since`, which only the origin may judge (RFC 9111
    /// section 4.3.2).
    Precondition,
}

impl Bypass {
    /// Returns the reason as a word for `Cache-Status` and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Method => "method",
            Self::Upgrade => "upgrade",
            Self::Expect => "expect",
            Self::Body => "request-body",
            Self::Precondition => "precondition",
        }
    }
}

/// Sorts a request by its head.
///
/// A body without `Content-Length` and `Transfer-Encoding`, as HTTP/2 has it, is not visible here;
/// where the caller sees one on a GET it should treat the request as [`Bypass::Body`].
///
/// # Cost
///
/// One pass over the fields; no allocation unless the request lists fields in `Cache-Control`.
pub fn classify(RequestHead { method, headers }: RequestHead<'_>) -> RequestClass {
    if method != Method::GET && method != Method::HEAD {
        return RequestClass::Bypass(Bypass::Method);
    }
    let mut ranged = false;
    let mut directed = false;
    for (name, value) in headers {
        let reason = match name.as_str() {
            "upgrade" => Bypass::Upgrade,
            "expect" => Bypass::Expect,
            "transfer-encoding" => Bypass::Body,
            "content-length" if value != "0" => Bypass::Body,
            "if-match" | "if-unmodified-since" => Bypass::Precondition,
            field => {
                ranged |= field == "range";
                directed |= matches!(field, "cache-control" | "pragma");
                continue;
            }
        };
        return RequestClass::Bypass(reason);
    }
    let control = if directed { CacheControl::of_request(headers) } else { None };
    let (no_store, only_if_cached) =
        control.map_or((false, false), |wish| (wish.no_store, wish.only_if_cached));
    RequestClass::Lookup(Lookup {
        may_store: !no_store && !ranged && method == Method::GET,
        only_if_cached,
    })
}

/// Tells whether a request says who asks, so that its answer may be for that one alone.
pub fn is_personal(headers: &HeaderMap) -> bool {
    headers.contains_key(COOKIE) || headers.contains_key(AUTHORIZATION)
}

#[cfg(test)]
mod tests;
