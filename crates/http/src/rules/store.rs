//! Which answers a shared cache may keep (RFC 9111 section 3), and in which form.

use std::time::Duration;

use http::header::{self, DATE, ETAG, EXPIRES, HeaderName, LAST_MODIFIED};
use http::{HeaderMap, Method, StatusCode};

use super::fields::{format_date, parse_date, remove_hop_by_hop};
use super::validation::Freshened;
use super::{CacheControl, Freshness, Policy, RequestHead, ResponseHead, StoredHead, Times, Vary};

/// Holds an answer that may be stored, and what to store it with.
#[derive(Clone, Debug, PartialEq)]
pub struct Storable {
    /// The head to keep.
    pub head: StoredHead,
    /// Its directives, precomputed.
    pub freshness: Freshness,
    /// How long to keep it, stale windows and time for revalidation included.
    pub retention: Duration,
    /// The request fields that select this variant.
    pub vary: Vary,
}

/// Gives the reason why an answer is not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotStored {
    /// The method is not GET.
    #[error("only answers to GET are stored")]
    Method,
    /// The request was for a range or under a precondition, so the answer is not the whole.
    #[error("the request asked for a range or stated a precondition")]
    PartialRequest,
    /// The request forbids it.
    #[error("the request says no-store")]
    RequestNoStore,
    /// The status is not final, partial, 304, or unknown while `must-understand` is set.
    #[error("the status cannot be stored")]
    Status,
    /// The answer forbids it.
    #[error("the answer says no-store")]
    NoStore,
    /// The answer is for one user.
    #[error("the answer is private")]
    Private,
    /// The request was authorized, and the answer does not allow sharing.
    #[error("the request was authorized and the answer is not marked as shareable")]
    Authorization,
    /// The answer sets a cookie.
    #[error("the answer sets a cookie")]
    SetCookie,
    /// The answer depends on more than the request's fields.
    #[error("the answer varies on everything")]
    VaryStar,
    /// Neither the status nor a directive makes it cacheable.
    #[error("the answer has no lifetime and its status is not cacheable by default")]
    NotCacheable,
    /// It is stale already, and nothing could revalidate it.
    #[error("the answer is stale on arrival and has no validator")]
    Useless,
}

impl NotStored {
    /// Returns the reason as a word for `Cache-Status` and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Method => "method",
            Self::PartialRequest => "partial-request",
            Self::RequestNoStore => "request-no-store",
            Self::Status => "status",
            Self::NoStore => "no-store",
            Self::Private => "private",
            Self::Authorization => "authorization",
            Self::SetCookie => "set-cookie",
            Self::VaryStar => "vary-star",
            Self::NotCacheable => "not-cacheable",
            Self::Useless => "no-lifetime",
        }
    }
}

/// Decides whether an answer may be stored, and prepares what to store.
///
/// `request` is the head as it went to the origin: fields that a hop removed on the way neither
/// select a variant nor authorize anything.
///
/// # Errors
///
/// The reason why it must not, or need not, be stored.
///
/// # Cost
///
/// A refusal allocates nothing unless the answer lists fields; otherwise one copy of the head.
pub fn store(
    policy: &Policy,
    request: RequestHead<'_>,
    response: ResponseHead<'_>,
    times: Times,
) -> Result<Storable, NotStored> {
    let ResponseHead { status, headers } = response;
    let partial = [header::RANGE, header::IF_MATCH, header::IF_UNMODIFIED_SINCE];
    if request.method != Method::GET {
        return Err(NotStored::Method);
    }
    if partial.iter().any(|name| request.headers.contains_key(name)) {
        return Err(NotStored::PartialRequest);
    }
    if CacheControl::of_request(request.headers).is_some_and(|wish| wish.no_store) {
        return Err(NotStored::RequestNoStore);
    }
    let control = CacheControl::of_response(policy, headers);
    permitted(policy, request, response, &control)?;

    let mut kept = headers.clone();
    remove_hop_by_hop(&mut kept);
    // What the answer was judged by stays with it, though `Connection` names it.
    for name in &policy.targeted_fields {
        if !kept.contains_key(name) {
            let lines = headers.get_all(name).iter().map(|line| (name.clone(), line.clone()));
            lines.for_each(|(name, line)| _ = kept.append(name, line));
        }
    }
    let headers = kept;
    let mut head = StoredHead { status, headers, times };
    let (freshness, retention, vary) = complete(policy, &mut head, &control)?;
    Ok(Storable { head, freshness, retention, vary })
}

/// Judges a stored head again after its fields changed; it stays usable where it is refused.
pub(super) fn store_again(
    policy: &Policy,
    request: RequestHead<'_>,
    mut head: StoredHead,
) -> Freshened {
    let control = CacheControl::of_response(policy, &head.headers);
    let response = ResponseHead { status: head.status, headers: &head.headers };
    let verdict = permitted(policy, request, response, &control)
        .and_then(|()| complete(policy, &mut head, &control));
    match verdict {
        Ok((freshness, retention, vary)) => {
            Freshened::Updated(Storable { head, freshness, retention, vary })
        }
        Err(reason) => Freshened::NotStorable { head, reason },
    }
}

/// The conditions of section 3 that concern permission.
fn permitted(
    policy: &Policy,
    request: RequestHead<'_>,
    ResponseHead { status, headers }: ResponseHead<'_>,
    control: &CacheControl,
) -> Result<(), NotStored> {
    if !(200..600).contains(&status.as_u16())
        || matches!(status, StatusCode::PARTIAL_CONTENT | StatusCode::NOT_MODIFIED)
        || (control.must_understand && !is_understood(status))
    {
        return Err(NotStored::Status);
    }
    // Who understands the status ignores the `no-store` that stands beside `must-understand`.
    if control.no_store && !control.must_understand {
        return Err(NotStored::NoStore);
    }
    if control.private {
        return Err(NotStored::Private);
    }
    let shareable = control.public || control.must_revalidate || control.s_maxage_s.is_some();
    if request.headers.contains_key(header::AUTHORIZATION) && !shareable {
        return Err(NotStored::Authorization);
    }
    if !policy.store_set_cookie
        && SET_COOKIE.iter().any(|name| headers.contains_key(name) && !control.removes(name))
    {
        return Err(NotStored::SetCookie);
    }
    let explicit = control.is_explicit() || (!control.targeted && headers.contains_key(EXPIRES));
    if !explicit && !is_heuristically_cacheable(status) {
        return Err(NotStored::NotCacheable);
    }
    Ok(())
}

const SET_COOKIE: [HeaderName; 2] = [header::SET_COOKIE, HeaderName::from_static("set-cookie2")];

/// Brings a permitted head into its stored form and weighs whether it is worth storing.
fn complete(
    policy: &Policy,
    head: &mut StoredHead,
    control: &CacheControl,
) -> Result<(Freshness, Duration, Vary), NotStored> {
    let vary = Vary::of(&head.headers).ok_or(NotStored::VaryStar)?;
    for name in control.no_cache_fields.iter().chain(&control.private_fields) {
        if !STAYS.contains(name) && !policy.targeted_fields.contains(name) {
            head.headers.remove(name);
        }
    }
    let received_ms = head.times.response_ms;
    if head.headers.get(DATE).and_then(parse_date).is_none() {
        head.headers.insert(DATE, format_date(received_ms / 1000));
    }
    let freshness = Freshness::with(policy, head, control);
    let retention = freshness.retention(policy, has_validator(&head.headers), received_ms);
    if retention.is_zero() {
        return Err(NotStored::Useless);
    }
    Ok((freshness, retention, vary))
}

/// Fields that the cache itself reads from the stored head, so that no list removes them.
const STAYS: [HeaderName; 4] =
    [header::CACHE_CONTROL, header::VARY, header::CONTENT_LENGTH, header::CONTENT_ENCODING];

impl CacheControl {
    fn removes(&self, name: &HeaderName) -> bool {
        self.no_cache_fields.contains(name) || self.private_fields.contains(name)
    }
}

pub(super) fn has_validator(headers: &HeaderMap) -> bool {
    headers.contains_key(ETAG) || headers.get(LAST_MODIFIED).and_then(parse_date).is_some()
}

/// Statuses that may be cached without a stated lifetime (RFC 9110 section 15.1), 206 aside.
pub(super) fn is_heuristically_cacheable(status: StatusCode) -> bool {
    matches!(status.as_u16(), 200 | 203 | 204 | 300 | 301 | 308 | 404 | 405 | 410 | 414 | 501)
}

/// Statuses whose caching requirements, if any, are met here; for `must-understand`.
fn is_understood(status: StatusCode) -> bool {
    is_heuristically_cacheable(status)
        || matches!(status.as_u16(), 201 | 202 | 302 | 303 | 307 | 400 | 403 | 421 | 451)
        || matches!(status.as_u16(), 500 | 502..=505)
}

#[cfg(test)]
mod tests;
