//! Conditional requests: answering the client's, asking the origin with ours, taking in its 304.
//!
//! RFC 9110 section 13 and RFC 9111 section 4.3. A cache judges `If-None-Match` and, where that is
//! absent, `If-Modified-Since`, both only against a stored 200. `If-Match` and
//! `If-Unmodified-Since` belong to the origin (`classify` sends them past the cache).

use http::header::{
    AGE, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_LOCATION, CONTENT_RANGE, DATE,
    ETAG, EXPIRES, HeaderName, HeaderValue, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE,
    IF_UNMODIFIED_SINCE, LAST_MODIFIED, RANGE, VARY,
};
use http::{HeaderMap, StatusCode};

use super::fields::{parse_date, remove_hop_by_hop, trim};
use super::store::store_again;
use super::{NotStored, Policy, RequestHead, Storable, StoredHead, Times};

/// Says how a request's conditions turn out against a stored answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Answer with the stored response.
    Full,
    /// Answer 304 with the fields of [`not_modified_headers`]: the client has this version.
    NotModified,
}

/// Judges a request's conditions against the stored answer that is about to serve it.
pub fn condition(request: RequestHead<'_>, stored: &StoredHead) -> Condition {
    let headers = request.headers;
    // Conditions count only where the answer would be a success (RFC 9110 section 13.2.1).
    let holds = stored.status == StatusCode::OK
        && if headers.contains_key(IF_NONE_MATCH) {
            names_version(headers, stored)
        } else {
            headers.contains_key(IF_MODIFIED_SINCE) && unmodified(headers, stored)
        };
    if holds { Condition::NotModified } else { Condition::Full }
}

/// `If-None-Match`: `*`, or a tag that equals the stored one weakly.
fn names_version(headers: &HeaderMap, stored: &StoredHead) -> bool {
    let current = stored.headers.get(ETAG).map(|tag| EntityTag::of(tag.as_bytes()));
    headers.get_all(IF_NONE_MATCH).iter().any(|line| {
        EntityTags { rest: line.as_bytes() }.any(|tag| {
            tag.opaque == b"*" || current.is_some_and(|current| current.opaque == tag.opaque)
        })
    })
}

/// `If-Modified-Since` against `Last-Modified`, else `Date`, else the time of arrival
/// (RFC 9111 section 4.3.2). More than one line, or no date, is as if absent.
fn unmodified(headers: &HeaderMap, stored: &StoredHead) -> bool {
    let mut lines = headers.get_all(IF_MODIFIED_SINCE).iter();
    let (Some(since), None) = (lines.next().and_then(parse_date), lines.next()) else {
        return false;
    };
    let date = |name| stored.headers.get(name).and_then(parse_date);
    let modified =
        date(LAST_MODIFIED).or_else(|| date(DATE)).unwrap_or(stored.times.response_ms / 1000);
    modified <= since
}

/// Returns the fields of a 304 that answers from a stored response (RFC 9110 section 15.4.5).
///
/// `Last-Modified` goes along only without an `ETag`, which is the stronger validator. The caller
/// adds `Age` and its own fields.
pub fn not_modified_headers(stored: &HeaderMap) -> HeaderMap {
    const KEPT: [HeaderName; 6] = [CACHE_CONTROL, CONTENT_LOCATION, DATE, ETAG, EXPIRES, VARY];
    let with_modified = !stored.contains_key(ETAG);
    let mut headers = HeaderMap::with_capacity(12);
    for (name, value) in stored {
        if KEPT.contains(name) || (with_modified && name == LAST_MODIFIED) {
            headers.append(name.clone(), value.clone());
        }
    }
    headers
}

/// Removes the client's conditions and ranges from a request whose answer is to be stored.
pub fn strip_conditions(request: &mut HeaderMap) {
    for name in [IF_NONE_MATCH, IF_MODIFIED_SINCE, IF_MATCH, IF_UNMODIFIED_SINCE, IF_RANGE, RANGE] {
        request.remove(name);
    }
}

/// Replaces a request's conditions by the stored validators; false when there are none.
///
/// The origin then answers 304 when the stored version is current.
pub fn set_validators(stored: &StoredHead, request: &mut HeaderMap) -> bool {
    strip_conditions(request);
    let tag = stored.headers.get(ETAG);
    let modified = stored.headers.get(LAST_MODIFIED).filter(|value| parse_date(value).is_some());
    for (name, value) in [(IF_NONE_MATCH, tag), (IF_MODIFIED_SINCE, modified)] {
        if let Some(value) = value {
            request.insert(name, value.clone());
        }
    }
    tag.is_some() || modified.is_some()
}

/// Says what an origin's 304 did to a stored answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Freshened {
    /// The stored answer is current; store it anew and answer with it.
    Updated(Storable),
    /// It is current, but its new fields forbid storing it: answer with it once and drop it.
    NotStorable {
        /// The head to answer with.
        head: StoredHead,
        /// Why it must go.
        reason: NotStored,
    },
    /// The 304 speaks of another version: drop the stored answer and ask without conditions.
    Mismatch,
}

/// Updates a stored answer by the 304 that validated it (RFC 9111 sections 3.2 and 4.3.4).
///
/// A 304 without any validator counts as an answer to the validators that were sent, which named
/// this version only.
pub fn freshen(
    policy: &Policy,
    request: RequestHead<'_>,
    stored: &StoredHead,
    not_modified: &HeaderMap,
    times: Times,
) -> Freshened {
    // They describe the bytes that are stored, which the 304 did not send.
    const STAY: [HeaderName; 3] = [CONTENT_LENGTH, CONTENT_ENCODING, CONTENT_RANGE];
    if !is_same_version(&stored.headers, not_modified) {
        return Freshened::Mismatch;
    }
    let mut update = not_modified.clone();
    remove_hop_by_hop(&mut update);
    let mut headers = stored.headers.clone();
    // Age and date of the older message say nothing about the newer one.
    headers.remove(AGE);
    headers.remove(DATE);
    for name in update.keys().filter(|name| !STAY.contains(name)) {
        headers.remove(name);
        for value in update.get_all(name) {
            headers.append(name.clone(), value.clone());
        }
    }
    store_again(policy, request, StoredHead { status: stored.status, headers, times })
}

/// Whether the validators of a 304 select the stored response.
fn is_same_version(stored: &HeaderMap, not_modified: &HeaderMap) -> bool {
    if let Some(new) = not_modified.get(ETAG) {
        let Some(old) = stored.get(ETAG) else { return false };
        let (new, old) = (EntityTag::of(new.as_bytes()), EntityTag::of(old.as_bytes()));
        // A strong tag selects by strong comparison, a weak one by weak comparison.
        return old.opaque == new.opaque && (new.weak || !old.weak);
    }
    match not_modified.get(LAST_MODIFIED) {
        Some(new) => {
            stored.get(LAST_MODIFIED).is_some_and(|old| old == new || is_same_date(old, new))
        }
        None => true,
    }
}

fn is_same_date(a: &HeaderValue, b: &HeaderValue) -> bool {
    parse_date(a).is_some_and(|a| Some(a) == parse_date(b))
}

/// An entity tag; `opaque` keeps its quotes, so that `"*"` is not `*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct EntityTag<'a> {
    weak: bool,
    opaque: &'a [u8],
}

impl<'a> EntityTag<'a> {
    fn of(text: &'a [u8]) -> Self {
        let text = trim(text);
        match text.strip_prefix(b"W/") {
            Some(opaque) => Self { weak: true, opaque },
            None => Self { weak: false, opaque: text },
        }
    }
}

/// The members of a list of entity tags, which may hold commas; unquoted ones are read as well.
struct EntityTags<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for EntityTags<'a> {
    type Item = EntityTag<'a>;

    fn next(&mut self) -> Option<EntityTag<'a>> {
        while let [b' ' | b'\t' | b',', rest @ ..] = self.rest {
            self.rest = rest;
        }
        let find = |from: usize, byte: u8| {
            self.rest[from..].iter().position(|&it| it == byte).map(|at| from + at)
        };
        let closing = match self.rest {
            [b'W', b'/', b'"', ..] => find(3, b'"'),
            [b'"', ..] => find(1, b'"'),
            _ => None,
        };
        let len = closing.map(|at| at + 1).or_else(|| find(0, b',')).unwrap_or(self.rest.len());
        let (tag, rest) = self.rest.split_at(len);
        self.rest = rest;
        (!tag.is_empty()).then(|| EntityTag::of(tag))
    }
}

#[cfg(test)]
mod tests;
