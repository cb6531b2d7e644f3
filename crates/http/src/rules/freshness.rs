//! How old a stored answer is, how long it is fresh, and what a request may do with it.
//!
//! Age and lifetime follow RFC 9111 section 4.2, stale answers section 4.2.4 and RFC 5861. What the
//! stored head says is reduced to [`Freshness`], 32 bytes without a pointer; [`evaluate`] then
//! compares it with the time and with the request's own directives.
//!
//! What may be served stale, and when:
//!
//! | the stored answer says | within `stale-while-revalidate` | within `stale-if-error` | request's `max-stale` |
//! |---|---|---|---|
//! | `no-cache`, `must-revalidate`, `proxy-revalidate` | no | no | no |
//! | `s-maxage` | only if it names the window itself | no | no |
//! | none of these | yes, else the policy's window | yes, else the policy's window | yes |
//!
//! `s-maxage` implies `proxy-revalidate` (section 5.2.2.10), so nothing that the operator or a
//! client wishes makes such an answer stale. An origin that writes `s-maxage` and
//! `stale-while-revalidate` side by side has given the explicit permission of section 4.2.4 itself;
//! the answer is validated at once, only off the client's connection.

use std::time::Duration;

use http::header::{AGE, DATE, EXPIRES, LAST_MODIFIED};
use http::{HeaderMap, StatusCode};

use super::directives::{DELTA_MAX_S, delta_seconds};
use super::fields::{parse_date, tokens};
use super::store::is_heuristically_cacheable;
use super::{CacheControl, Policy, RequestHead, StoredHead, is_personal};

/// Holds everything about a stored answer that decides whether it may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Freshness {
    response_ms: u64,
    /// Age that the answer had when it arrived.
    initial_age_ms: u64,
    lifetime_s: u32,
    stale_while_revalidate_s: u32,
    stale_if_error_s: u32,
    /// `no-cache`: never without validation.
    validate_always: bool,
    /// Whether a client or an operator may stretch the lifetime.
    stale_allowed: bool,
    /// The lifetime was assumed: nobody has said that the answer is for everybody.
    assumed: bool,
}

/// Tells a stored answer's age and what is left of its lifetime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Age {
    /// Seconds since the origin made or validated the answer: the `Age` field.
    pub age_s: u64,
    /// Seconds of freshness left; negative once stale. The `ttl` of `Cache-Status`.
    pub ttl_s: i64,
}

/// Says what to do with a stored answer that matches a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Answer with it.
    Fresh(Age),
    /// Answer with it, and validate it in the background.
    StaleWhileRevalidate(Age),
    /// Answer with it although it is stale: the request's `max-stale` allows that.
    Stale(Age),
    /// Ask the origin first, with the stored validators.
    Revalidate {
        /// Age and remaining lifetime.
        age: Age,
        /// Why it cannot be used as it is.
        reason: RevalidateReason,
        /// Whether it may be served if the origin fails (see [`is_origin_error`]) or is away.
        may_serve_on_error: bool,
    },
    /// Ask the origin as if nothing were stored: the lifetime was assumed, and this request says who
    /// asks.
    NotForRequest,
    /// Answer 504: the request wants a stored answer only, and this one may not be used.
    GatewayTimeout,
}

/// Gives the reason why a stored answer must be validated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RevalidateReason {
    /// Its lifetime is over, or it says `no-cache`.
    Stale,
    /// It is fresh, but the request asks for a fresher one.
    Request,
}

/// Decides whether a stored answer may be used for a request.
///
/// # Cost
///
/// Without `Cache-Control` and `Pragma` in the request: two header look-ups and integer compares.
pub fn evaluate(request: RequestHead<'_>, freshness: &Freshness, now_ms: u64) -> Decision {
    let age_ms = freshness.age_ms(now_ms);
    let lifetime_ms = u64::from(freshness.lifetime_s) * 1000;
    let stale_ms = age_ms.saturating_sub(lifetime_ms);
    let fresh = lifetime_ms > age_ms && !freshness.validate_always;
    let age = freshness.age(now_ms);

    let wish = CacheControl::of_request(request.headers);
    if freshness.assumed && is_personal(request.headers) {
        let only_if_cached = wish.is_some_and(|wish| wish.only_if_cached);
        return if only_if_cached { Decision::GatewayTimeout } else { Decision::NotForRequest };
    }
    let Some(wish) = wish else {
        return if fresh {
            Decision::Fresh(age)
        } else if within(stale_ms, freshness.stale_while_revalidate_s) {
            Decision::StaleWhileRevalidate(age)
        } else {
            Decision::Revalidate {
                age,
                reason: RevalidateReason::Stale,
                may_serve_on_error: within(stale_ms, freshness.stale_if_error_s),
            }
        };
    };

    let remaining_ms = lifetime_ms.saturating_sub(age_ms);
    let acceptable = !wish.no_cache
        && wish.max_age_s.is_none_or(|limit_s| age_ms <= u64::from(limit_s) * 1000)
        && wish.min_fresh_s.is_none_or(|least_s| remaining_ms >= u64::from(least_s) * 1000);
    if acceptable && fresh {
        return Decision::Fresh(age);
    }
    // A client that names a limit of age takes nothing stale unless it says so (5.2.1.1, 5.2.1.3).
    let takes_stale = match wish.max_stale_s {
        Some(limit_s) => stale_ms <= u64::from(limit_s) * 1000,
        None => wish.max_age_s.is_none() && wish.min_fresh_s.is_none(),
    };
    if acceptable && takes_stale {
        if within(stale_ms, freshness.stale_while_revalidate_s) {
            return Decision::StaleWhileRevalidate(age);
        }
        if wish.max_stale_s.is_some() && freshness.stale_allowed {
            return Decision::Stale(age);
        }
    }
    if wish.only_if_cached {
        return Decision::GatewayTimeout;
    }
    let asked_s = wish.stale_if_error_s.filter(|_| freshness.stale_allowed).unwrap_or(0);
    Decision::Revalidate {
        age,
        reason: if fresh { RevalidateReason::Request } else { RevalidateReason::Stale },
        may_serve_on_error: within(stale_ms, freshness.stale_if_error_s.max(asked_s)),
    }
}

/// Tells whether a status counts as the failure that `stale-if-error` covers (RFC 5861 section 4).
pub fn is_origin_error(status: StatusCode) -> bool {
    matches!(status.as_u16(), 500 | 502 | 503 | 504)
}

fn within(stale_ms: u64, window_s: u32) -> bool {
    window_s > 0 && stale_ms <= u64::from(window_s) * 1000
}

impl Freshness {
    pub(super) fn of(policy: &Policy, head: &StoredHead) -> Self {
        Self::with(policy, head, &CacheControl::of_response(policy, &head.headers))
    }

    /// As `of`, with the directives already read.
    pub(super) fn with(policy: &Policy, head: &StoredHead, control: &CacheControl) -> Self {
        let StoredHead { status, headers, times } = head;
        let response_s = times.response_ms / 1000;
        let date_s = headers.get(DATE).and_then(parse_date).unwrap_or(response_s);

        let revalidate = control.no_cache || control.must_revalidate || control.proxy_revalidate;
        let stale_allowed = !revalidate && control.s_maxage_s.is_none();
        let default_s =
            |window: Option<Duration>| window.filter(|_| stale_allowed).map_or(0, clamp_seconds);
        Self {
            response_ms: times.response_ms,
            initial_age_ms: initial_age_ms(head, date_s),
            lifetime_s: if control.no_cache {
                0
            } else {
                lifetime_s(policy, *status, headers, control, date_s)
            },
            stale_while_revalidate_s: control
                .stale_while_revalidate_s
                .filter(|_| !revalidate)
                .unwrap_or_else(|| default_s(policy.stale_while_revalidate)),
            stale_if_error_s: control
                .stale_if_error_s
                .filter(|_| stale_allowed)
                .unwrap_or_else(|| default_s(policy.stale_if_error)),
            validate_always: control.no_cache,
            stale_allowed,
            assumed: control.assumed,
        }
    }

    /// Returns that of an answer whose lifetime was ended from outside: it is stale from `now_ms` on, with
    /// its windows yet to come.
    #[must_use]
    pub fn ended(self, now_ms: u64) -> Self {
        let age_s = u32::try_from(self.age_ms(now_ms) / 1000).unwrap_or(u32::MAX);
        Self { lifetime_s: self.lifetime_s.min(age_s), ..self }
    }

    /// Returns the age and the remaining lifetime.
    pub fn age(&self, now_ms: u64) -> Age {
        let age_s = self.age_ms(now_ms) / 1000;
        Age { age_s, ttl_s: i64::from(self.lifetime_s).saturating_sub_unsigned(age_s) }
    }

    /// Returns the freshness lifetime in seconds, counted from age zero.
    pub fn lifetime_s(&self) -> u32 {
        self.lifetime_s
    }

    /// Tells whether it is fresh, requests aside.
    pub fn is_fresh(&self, now_ms: u64) -> bool {
        !self.validate_always && u64::from(self.lifetime_s) * 1000 > self.age_ms(now_ms)
    }

    /// Tells whether it may be served because the origin failed, requests aside.
    pub fn may_serve_on_error(&self, now_ms: u64) -> bool {
        let stale_ms = self.age_ms(now_ms).saturating_sub(u64::from(self.lifetime_s) * 1000);
        within(stale_ms, self.stale_if_error_s)
    }

    /// Returns how long it is worth keeping, stale windows and revalidation included.
    pub fn retention(&self, policy: &Policy, has_validator: bool, now_ms: u64) -> Duration {
        let age_ms = self.age_ms(now_ms);
        let window_s = self.stale_while_revalidate_s.max(self.stale_if_error_s);
        let usable_ms = (u64::from(self.lifetime_s) + u64::from(window_s)) * 1000;
        let fresh_ms = (u64::from(self.lifetime_s) * 1000).saturating_sub(age_ms);
        let usable = Duration::from_millis(usable_ms.saturating_sub(age_ms));
        let keep = if has_validator { policy.keep_for_revalidation } else { Duration::ZERO };
        usable.max(Duration::from_millis(fresh_ms).saturating_add(keep))
    }

    /// Current age (section 4.2.3). A clock that was set back adds nothing and takes nothing.
    fn age_ms(&self, now_ms: u64) -> u64 {
        self.initial_age_ms.saturating_add(now_ms.saturating_sub(self.response_ms))
    }
}

/// The corrected initial age of section 4.2.3, by its cautious formula.
///
/// `Date` has a grain of a second: one second of difference is no age, or an answer with
/// `max-age=1` that crosses the tick of the clock would be born stale.
fn initial_age_ms(StoredHead { headers, times, .. }: &StoredHead, date_s: u64) -> u64 {
    let apparent_s = (times.response_ms / 1000).saturating_sub(date_s);
    let apparent_ms = if apparent_s > 1 { apparent_s * 1000 } else { 0 };
    // A list of ages is an error: its first member counts, unless that is no number (5.1).
    let age_s = headers
        .get(AGE)
        .and_then(|value| tokens(value.as_bytes()).next())
        .and_then(delta_seconds)
        .unwrap_or(0);
    let delay_ms = times.response_ms.saturating_sub(times.request_ms);
    apparent_ms.max((u64::from(age_s) * 1000).saturating_add(delay_ms))
}

/// The freshness lifetime of section 4.2.1, for a shared cache.
fn lifetime_s(
    policy: &Policy,
    status: StatusCode,
    headers: &HeaderMap,
    control: &CacheControl,
    date_s: u64,
) -> u32 {
    if let Some(explicit_s) = control.s_maxage_s.or(control.max_age_s) {
        return explicit_s;
    }
    if !control.targeted && headers.contains_key(EXPIRES) {
        // The earliest of several; an invalid one, `0` above all, is in the past (5.3).
        return headers
            .get_all(EXPIRES)
            .iter()
            .map(|value| parse_date(value).map_or(0, |at_s| at_s.saturating_sub(date_s)))
            .min()
            .map_or(0, |lifetime_s| clamp_seconds(Duration::from_secs(lifetime_s)));
    }
    if !is_heuristically_cacheable(status) && !control.public {
        return 0;
    }
    let Some(modified_s) = headers.get(LAST_MODIFIED).and_then(parse_date) else { return 0 };
    // A negative or undefined fraction becomes zero, as float casts saturate.
    let heuristic_s = date_s.saturating_sub(modified_s) as f64 * policy.heuristic_fraction;
    clamp_seconds(Duration::from_secs(heuristic_s as u64).min(policy.heuristic_max))
}

fn clamp_seconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_secs()).unwrap_or(DELTA_MAX_S).min(DELTA_MAX_S)
}

#[cfg(test)]
mod tests;
