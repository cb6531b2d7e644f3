//! Lifetimes, ages and decisions, as tables.

use proptest::prelude::*;

use super::*;
use crate::rules::Times;
use crate::rules::testing::{NOW_MS, get, headers, stored};

fn lifetime(status: u16, text: &str) -> u32 {
    stored(status, text).freshness(&Policy::default()).lifetime_s()
}

/// RFC 9111 section 4.2.1.
#[test]
fn the_lifetime_is_s_maxage_then_max_age_then_expires_then_a_tenth_since_modified() {
    for (text, expected) in [
        ("cache-control: s-maxage=5, max-age=9|expires: NOW+100", 5),
        ("cache-control: max-age=9|expires: NOW+100", 9),
        ("cache-control: max-age=9|expires: NOW-100", 9),
        ("cache-control: max-age=x|expires: NOW+100", 0),
        ("date: NOW-10|expires: NOW+100", 110),
        ("expires: NOW+100", 100),
        ("expires: NOW-1", 0),
        ("expires: 0", 0),
        ("expires: -1|last-modified: NOW-1000", 0),
        ("expires: NOW+100|expires: NOW+50", 50),
        ("expires: NOW+100|expires: never", 0),
        ("last-modified: NOW-1000", 100),
        ("date: NOW-500|last-modified: NOW-1000", 50),
        ("last-modified: NOW+1000", 0),
        ("last-modified: yesterday", 0),
        ("last-modified: NOW-100000000", 86_400),
        ("etag: \"a\"", 0),
        ("", 0),
        ("cache-control: max-age=99999999999", 1 << 31),
        ("cache-control: no-cache, max-age=9", 0),
        ("cache-control: no-cache=\"x\", max-age=9", 9),
        ("pragma: no-cache|expires: NOW+100", 0),
    ] {
        assert_eq!(lifetime(200, text), expected, "{text}");
    }
}

/// RFC 9111 section 4.2.2.
#[test]
fn the_heuristic_needs_a_status_that_allows_it_or_public() {
    for (status, text, expected) in [
        (404, "last-modified: NOW-1000", 100),
        (302, "last-modified: NOW-1000", 0),
        (302, "cache-control: public|last-modified: NOW-1000", 100),
        (302, "cache-control: max-age=7|last-modified: NOW-1000", 7),
    ] {
        assert_eq!(lifetime(status, text), expected, "{status} {text}");
    }
}

/// RFC 9213 section 2.2: `Expires` goes with the `Cache-Control` that is replaced.
#[test]
fn a_targeted_field_silences_expires() {
    assert_eq!(lifetime(200, "cdn-cache-control: max-age=3|cache-control: max-age=9"), 3);
    assert_eq!(lifetime(200, "cdn-cache-control: public|expires: NOW+100"), 0);
    assert_eq!(
        lifetime(200, "cdn-cache-control: public|expires: NOW+100|last-modified: NOW-50"),
        5
    );
}

#[test]
fn senseless_heuristics_of_the_policy_give_no_lifetime_or_the_longest() {
    for (fraction, expected) in [(f64::NAN, 0), (-1.0, 0), (f64::INFINITY, 86_400), (1e300, 86_400)]
    {
        let policy = Policy { heuristic_fraction: fraction, ..Policy::default() };
        let head = stored(200, "last-modified: NOW-1000");
        assert_eq!(head.freshness(&policy).lifetime_s(), expected, "{fraction}");
    }
}

/// RFC 9111 sections 4.2.3 and 5.1.
#[test]
fn the_initial_age_is_the_larger_of_apparent_age_and_age_plus_delay() {
    for (text, delay_ms, expected_ms) in [
        ("", 0, 0),
        ("", 250, 250),
        ("date: NOW", 250, 250),
        ("age: 10", 250, 10_250),
        ("date: NOW-60", 0, 60_000),
        ("date: NOW-60|age: 10", 0, 60_000),
        ("date: NOW-60|age: 100", 0, 100_000),
        ("date: NOW+60", 0, 0),
        ("date: NOW-1", 0, 0), // the grain of a date
        ("date: NOW-2", 0, 2_000),
        ("date: x|age: 10", 0, 10_000),
        ("age: 10, 20", 0, 10_000),
        ("age: 10|age: 20", 0, 10_000),
        ("age: x", 0, 0),
        ("age: -10", 0, 0),
        ("age: 10;q=1", 0, 0),
        ("age: 99999999999", 0, 2_147_483_648_000),
    ] {
        let mut head = stored(200, text);
        head.times.request_ms -= delay_ms;
        let freshness = head.freshness(&Policy::default());
        assert_eq!(freshness.age_ms(NOW_MS), expected_ms, "{text}");
        assert_eq!(freshness.age_ms(NOW_MS + 5), expected_ms + 5, "{text}");
    }
}

#[test]
fn a_clock_set_back_leaves_the_age_at_its_start() {
    let freshness = stored(200, "age: 10|cache-control: max-age=60").freshness(&Policy::default());
    assert_eq!(freshness.age(0), Age { age_s: 10, ttl_s: 50 });
    let mut head = stored(200, "");
    head.times.request_ms += 500;
    assert_eq!(head.freshness(&Policy::default()).age_ms(NOW_MS), 0);
}

/// What became of a request, in short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Is {
    Fresh,
    Background,
    Stale,
    /// To be validated; `true` if it may be served on error.
    Validate(bool),
    Refresh(bool),
    NotForRequest,
    Timeout,
}

fn decide(policy: &Policy, response: &str, request: &str, at_s: u64) -> Is {
    let freshness = stored(200, response).freshness(policy);
    match evaluate(get(&headers(request)), &freshness, NOW_MS + at_s * 1000) {
        Decision::Fresh(age) => {
            assert_eq!(age, freshness.age(NOW_MS + at_s * 1000));
            Is::Fresh
        }
        Decision::StaleWhileRevalidate(_) => Is::Background,
        Decision::Stale(_) => Is::Stale,
        Decision::Revalidate { reason: RevalidateReason::Stale, may_serve_on_error, .. } => {
            Is::Validate(may_serve_on_error)
        }
        Decision::Revalidate { reason: RevalidateReason::Request, may_serve_on_error, .. } => {
            Is::Refresh(may_serve_on_error)
        }
        Decision::NotForRequest => Is::NotForRequest,
        Decision::GatewayTimeout => Is::Timeout,
    }
}

fn check(response: &str, cases: &[(&str, u64, Is)]) {
    for (request, at_s, expected) in cases {
        let response = format!("cache-control: {response}");
        let request =
            if request.is_empty() { String::new() } else { format!("cache-control: {request}") };
        let is = decide(&Policy::default(), &response, &request, *at_s);
        assert_eq!(is, *expected, "{response} | {request} after {at_s} s");
    }
}

/// RFC 9111 section 4.2: fresh while the lifetime is greater than the age.
#[test]
fn an_answer_is_fresh_until_its_age_reaches_its_lifetime() {
    check("max-age=10", &[("", 0, Is::Fresh), ("", 9, Is::Fresh), ("", 10, Is::Validate(false))]);
    check("max-age=0", &[("", 0, Is::Validate(false))]);
}

/// RFC 9111 sections 5.2.1 and 5.4.
#[test]
fn requests_narrow_or_widen_what_they_take() {
    check(
        "max-age=10",
        &[
            ("no-cache", 0, Is::Refresh(false)),
            ("no-store", 0, Is::Fresh),
            ("max-age=5", 5, Is::Fresh),
            ("max-age=5", 6, Is::Refresh(false)),
            ("max-age=0", 1, Is::Refresh(false)),
            ("max-age=x", 1, Is::Refresh(false)),
            ("max-age=99", 10, Is::Validate(false)),
            ("min-fresh=4", 6, Is::Fresh),
            ("min-fresh=5", 6, Is::Refresh(false)),
            ("max-stale=5", 15, Is::Stale),
            ("max-stale=5", 16, Is::Validate(false)),
            ("max-stale", 1_000_000, Is::Stale),
            ("max-stale=x", 11, Is::Validate(false)),
            ("max-stale, max-age=12", 12, Is::Stale),
            ("max-stale, max-age=12", 13, Is::Validate(false)),
            ("max-stale, min-fresh=1", 11, Is::Validate(false)),
            ("max-stale, no-cache", 11, Is::Validate(false)),
            ("only-if-cached", 9, Is::Fresh),
            ("only-if-cached", 10, Is::Timeout),
            ("only-if-cached, no-cache", 0, Is::Timeout),
            ("only-if-cached, max-stale", 10, Is::Stale),
            ("unknown", 0, Is::Fresh),
        ],
    );
    let pragma =
        |at_s| decide(&Policy::default(), "cache-control: max-age=10", "pragma: no-cache", at_s);
    assert_eq!(pragma(0), Is::Refresh(false));
}

/// RFC 5861 section 3.
#[test]
fn stale_while_revalidate_serves_within_its_window_only() {
    check(
        "max-age=10, stale-while-revalidate=5",
        &[
            ("", 9, Is::Fresh),
            ("", 10, Is::Background),
            ("", 15, Is::Background),
            ("", 16, Is::Validate(false)),
            ("max-age=60", 12, Is::Validate(false)), // a limit without max-stale: nothing stale
            ("max-stale=1", 12, Is::Validate(false)),
            ("max-stale=9", 12, Is::Background),
            ("no-cache", 12, Is::Validate(false)),
            ("only-if-cached", 12, Is::Background),
        ],
    );
}

/// RFC 5861 section 4, and the request's form of the directive.
#[test]
fn stale_if_error_allows_serving_within_its_window_only() {
    check(
        "max-age=10, stale-if-error=5",
        &[
            ("", 10, Is::Validate(true)),
            ("", 15, Is::Validate(true)),
            ("", 16, Is::Validate(false)),
            ("no-cache", 5, Is::Refresh(true)),
            ("stale-if-error=60", 16, Is::Validate(true)),
        ],
    );
    check(
        "max-age=10",
        &[
            ("stale-if-error=5", 15, Is::Validate(true)),
            ("stale-if-error=5", 16, Is::Validate(false)),
        ],
    );
}

/// RFC 9111 section 4.2.4.
#[test]
fn an_answer_that_forbids_it_is_never_served_stale() {
    for ban in ["must-revalidate", "proxy-revalidate", "no-cache"] {
        check(
            &format!("max-age=10, stale-while-revalidate=9, stale-if-error=9, {ban}"),
            &[
                ("", 10, Is::Validate(false)),
                ("max-stale", 10, Is::Validate(false)),
                ("stale-if-error=9", 10, Is::Validate(false)),
            ],
        );
    }
    check(
        "no-cache, max-age=10",
        &[("", 0, Is::Validate(false)), ("max-stale", 0, Is::Validate(false))],
    );
    check(
        "s-maxage=10, stale-if-error=9",
        &[
            ("", 10, Is::Validate(false)),
            ("max-stale", 10, Is::Validate(false)),
            ("stale-if-error=9", 10, Is::Validate(false)),
        ],
    );
}

#[test]
fn s_maxage_beside_its_own_stale_while_revalidate_keeps_that_window() {
    check(
        "s-maxage=10, stale-while-revalidate=5",
        &[("", 12, Is::Background), ("", 16, Is::Validate(false))],
    );
}

#[test]
fn windows_of_the_policy_fill_in_where_the_answer_is_silent() {
    let policy = Policy {
        stale_while_revalidate: Some(Duration::from_secs(5)),
        stale_if_error: Some(Duration::from_secs(50)),
        ..Policy::default()
    };
    for (response, at_s, expected) in [
        ("max-age=10", 12, Is::Background),
        ("max-age=10", 16, Is::Validate(true)),
        ("max-age=10", 61, Is::Validate(false)),
        ("max-age=10, stale-while-revalidate=0, stale-if-error=0", 12, Is::Validate(false)),
        ("max-age=10, stale-while-revalidate=9", 19, Is::Background),
        ("max-age=10, must-revalidate", 12, Is::Validate(false)),
        ("s-maxage=10", 12, Is::Validate(false)),
        ("no-cache", 0, Is::Validate(false)),
    ] {
        let is = decide(&policy, &format!("cache-control: {response}"), "", at_s);
        assert_eq!(is, expected, "{response} after {at_s} s");
    }
}

#[test]
fn age_and_ttl_add_up_to_the_lifetime() {
    let freshness = stored(200, "cache-control: max-age=10").freshness(&Policy::default());
    for (after_ms, age_s, ttl_s) in
        [(0, 0, 10), (999, 0, 10), (9_999, 9, 1), (10_000, 10, 0), (72_500, 72, -62)]
    {
        assert_eq!(freshness.age(NOW_MS + after_ms), Age { age_s, ttl_s });
    }
}

#[test]
fn retention_covers_the_lifetime_the_windows_and_the_time_for_revalidation() {
    let policy = Policy { keep_for_revalidation: Duration::from_secs(100), ..Policy::default() };
    for (text, validator, expected_s) in [
        ("max-age=10", false, 10),
        ("max-age=10", true, 110),
        ("max-age=10, stale-if-error=500, stale-while-revalidate=5", true, 510),
        ("max-age=10, stale-while-revalidate=5", false, 15),
        ("max-age=10, stale-while-revalidate=5, must-revalidate", false, 10),
        ("no-cache", true, 100),
        ("no-cache", false, 0),
        ("max-age=10|age: 4", false, 6),
        ("max-age=10|age: 4", true, 106),
        ("max-age=10, stale-if-error=50|age: 40", false, 20),
        ("max-age=10|age: 40", true, 100),
        ("max-age=10|age: 40", false, 0),
        ("max-age=99999999999", false, 1 << 31),
    ] {
        let freshness = stored(200, &format!("cache-control: {text}")).freshness(&policy);
        let retention = freshness.retention(&policy, validator, NOW_MS);
        assert_eq!(retention, Duration::from_secs(expected_s), "{text} {validator}");
    }
}

#[test]
fn the_failures_of_stale_if_error_are_those_of_its_rfc() {
    let errors: Vec<u16> = (100..600)
        .filter(|&code| is_origin_error(StatusCode::from_u16(code).expect("in range")))
        .collect();
    assert_eq!(errors, [500, 502, 503, 504]);
}

#[test]
fn the_precomputed_form_stays_small() {
    assert!(size_of::<Freshness>() <= 32);
}

#[test]
fn an_assumed_lifetime_is_for_requests_that_do_not_say_who_asks() {
    for (response, request, expected) in [
        ("max-age=60, assumed", "", Is::Fresh),
        ("max-age=60, assumed", "cookie: a=b", Is::NotForRequest),
        ("max-age=60, assumed", "authorization: x", Is::NotForRequest),
        ("max-age=60, assumed", "cookie: a=b|cache-control: only-if-cached", Is::Timeout),
        ("max-age=60, assumed", "cookie: a=b|cache-control: max-stale", Is::NotForRequest),
        ("max-age=60, assumed=?0", "cookie: a=b", Is::Fresh),
        ("max-age=60", "cookie: a=b", Is::Fresh),
    ] {
        let response = format!("ultra-perf-cache-control: {response}");
        assert_eq!(decide(&Policy::default(), &response, request, 1), expected, "{request}");
    }
    let plain = "cache-control: max-age=60, assumed";
    assert_eq!(decide(&Policy::default(), plain, "cookie: a=b", 1), Is::Fresh);
}

proptest! {
    #[test]
    fn an_answer_never_becomes_fresher_by_waiting(
        max_age in 0_u32..100, swr in 0_u32..100, sie in 0_u32..100,
        request in "((no-cache|max-age=[0-9]{1,2}|min-fresh=[0-9]{1,2}|max-stale=[0-9]{1,2}|only-if-cached), ){0,2}",
        first in 0_u64..200, later in 0_u64..200,
    ) {
        let response =
            format!("cache-control: max-age={max_age}, stale-while-revalidate={swr}, stale-if-error={sie}");
        let rank = |at_s| match decide(&Policy::default(), &response, &format!("cache-control: {request}"), at_s) {
            Is::Fresh => 0,
            Is::Background => 1,
            Is::Stale => 2,
            Is::Refresh(_) | Is::Validate(_) | Is::NotForRequest | Is::Timeout => 3,
        };
        prop_assert!(rank(first) <= rank(first + later), "{} | {}", response, request);
    }

    #[test]
    fn no_head_and_no_time_panics(
        values in proptest::collection::vec((0_usize..8, "[ -~]{0,30}"), 0..6),
        status in 100_u16..1000,
        times in any::<[u64; 3]>(),
    ) {
        const NAMES: [&str; 8] = ["cache-control", "cdn-cache-control", "age", "date", "expires", "last-modified", "vary", "pragma"];
        let mut head = stored(status, "");
        for (name, value) in values {
            if let Ok(value) = http::HeaderValue::try_from(value) {
                head.headers.append(NAMES[name], value);
            }
        }
        head.times = Times { request_ms: times[0], response_ms: times[1] };
        let freshness = head.freshness(&Policy::default());
        let _decision = evaluate(get(&head.headers), &freshness, times[2]);
        let _retention = freshness.retention(&Policy::default(), true, times[2]);
        let _freshness = (freshness.is_fresh(times[2]), freshness.may_serve_on_error(times[2]));
    }
}
