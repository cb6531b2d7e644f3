//! The rules of a shared HTTP cache as pure functions.
//!
//! What RFC 9111 (caching), RFC 9110 (conditional requests), RFC 5861 (stale answers), RFC 9213
//! (targeted cache control) and RFC 9211 (`Cache-Status`) ask of a shared cache, without a socket,
//! a clock or a store: every function takes the heads it judges and the time, and returns what may
//! be done. A caller goes through them in this order:
//!
//! ```text
//!   request ──▶ classify ──bypass──────────────────────────────────────▶ origin
//!                  │ lookup by target_key, then Vary::key
//!                  ▼
//!   stored ───▶ evaluate ──fresh, stale within a window──▶ condition ──▶ 200 or 304
//!                  │ must revalidate: set_validators
//!                  ▼
//!               origin ──304──▶ freshen ──▶ store anew, answer
//!                  │ other
//!                  ▼
//!               store ──▶ Storable or the reason why not;   invalidated ──▶ targets to forget
//! ```
//!
//! A stored response's directives are read once, into the `Copy` struct [`Freshness`] that is kept
//! beside its [`StoredHead`]; deciding about a hit afterwards is a few integer compares. Times are
//! Unix milliseconds, so that they survive a restart and go to other machines.
//!
//! Nothing here panics, whatever bytes the peers send. Where a sender contradicts itself the more
//! restrictive reading wins.

mod directives;
mod fields;
mod freshness;
mod head;
mod request;
mod status;
mod store;
mod target;
mod targeted;
mod validation;
mod vary;

use std::time::Duration;

use http::header::HeaderName;
use http::{HeaderMap, Method, Request, Response, StatusCode, request as http_request};

pub use directives::CacheControl;
pub use fields::{is_hop_by_hop, remove_hop_by_hop};
pub use freshness::{Age, Decision, Freshness, RevalidateReason, evaluate, is_origin_error};
pub use head::{StoredHead, Times};
pub use request::{Bypass, Lookup, RequestClass, classify, is_personal};
pub use status::{CacheStatus, Forward, Outcome};
pub use store::{NotStored, Storable, store};
pub use target::{invalidated, is_unsafe, target_key, write_target_key};
pub use targeted::ASSUMED;
pub use validation::{
    Condition, Freshened, condition, freshen, not_modified_headers, set_validators,
    strip_conditions,
};
pub use vary::Vary;

/// States what the operator of the cache wants where the RFCs leave a choice.
///
/// The defaults add nothing to what the origin says, except the heuristic lifetime that
/// RFC 9111 section 4.2.2 suggests.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Part of the time since `Last-Modified` for which an answer without a lifetime is fresh.
    pub heuristic_fraction: f64,
    /// Longest lifetime that the heuristic may give.
    pub heuristic_max: Duration,
    /// Window of stale-while-revalidate for answers that name none and do not forbid it.
    pub stale_while_revalidate: Option<Duration>,
    /// Window of stale-if-error for answers that name none and do not forbid it.
    pub stale_if_error: Option<Duration>,
    /// How long past its freshness an answer with a validator is kept, to be revalidated.
    pub keep_for_revalidation: Duration,
    /// Targeted fields (RFC 9213) that replace `Cache-Control` and `Expires`, strongest first.
    pub targeted_fields: Vec<HeaderName>,
    /// Whether answers that set cookies may be stored, cookies included.
    pub store_set_cookie: bool,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            heuristic_fraction: 0.1,
            heuristic_max: Duration::from_secs(24 * 60 * 60),
            stale_while_revalidate: None,
            stale_if_error: None,
            keep_for_revalidation: Duration::from_secs(60 * 60),
            targeted_fields: vec![
                HeaderName::from_static("ultra-perf-cache-control"),
                HeaderName::from_static("cdn-cache-control"),
            ],
            store_set_cookie: false,
        }
    }
}

/// Borrows the parts of a request that the rules look at.
#[derive(Clone, Copy, Debug)]
pub struct RequestHead<'a> {
    /// The method.
    pub method: &'a Method,
    /// The header fields.
    pub headers: &'a HeaderMap,
}

impl<'a, B> From<&'a Request<B>> for RequestHead<'a> {
    fn from(request: &'a Request<B>) -> Self {
        Self { method: request.method(), headers: request.headers() }
    }
}

impl<'a> From<&'a http_request::Parts> for RequestHead<'a> {
    fn from(parts: &'a http_request::Parts) -> Self {
        Self { method: &parts.method, headers: &parts.headers }
    }
}

/// Borrows the parts of a response that the rules look at.
#[derive(Clone, Copy, Debug)]
pub struct ResponseHead<'a> {
    /// The status.
    pub status: StatusCode,
    /// The header fields.
    pub headers: &'a HeaderMap,
}

impl<'a, B> From<&'a Response<B>> for ResponseHead<'a> {
    fn from(response: &'a Response<B>) -> Self {
        Self { status: response.status(), headers: response.headers() }
    }
}

impl<'a> From<&'a http::response::Parts> for ResponseHead<'a> {
    fn from(parts: &'a http::response::Parts) -> Self {
        Self { status: parts.status, headers: &parts.headers }
    }
}

#[cfg(test)]
mod testing;
