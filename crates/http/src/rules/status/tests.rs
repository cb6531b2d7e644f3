//! Values of `Cache-Status` and `X-Cache`.

use super::*;

fn check(status: CacheStatus, expected: &str) {
    assert_eq!(status.value(&mut BytesMut::new()), expected);
}

/// RFC 9211 section 2.
#[test]
fn values_have_the_registered_form() {
    use Forward::{Bypass, Method, Miss, Request, Stale, UriMiss, VaryMiss};
    check(CacheStatus::hit(376), "ultra-perf; hit; ttl=376");
    check(CacheStatus::hit(-412), "ultra-perf; hit; ttl=-412");
    check(CacheStatus::hit(i64::MIN), "ultra-perf; hit; ttl=-9223372036854775808");
    for (reason, word) in [
        (Bypass, "bypass"),
        (Method, "method"),
        (UriMiss, "uri-miss"),
        (VaryMiss, "vary-miss"),
        (Miss, "miss"),
        (Request, "request"),
        (Stale, "stale"),
    ] {
        check(CacheStatus::forward(reason), &format!("ultra-perf; fwd={word}"));
    }
    check(
        CacheStatus {
            fwd_status: Some(304),
            ttl_s: Some(60),
            stored: true,
            collapsed: true,
            detail: Some("revalidated"),
            ..CacheStatus::forward(Stale)
        },
        "ultra-perf; fwd=stale; fwd-status=304; ttl=60; stored; collapsed; detail=revalidated",
    );
}

#[test]
fn what_belongs_to_forwarding_is_left_out_of_a_hit() {
    let hit =
        CacheStatus { stored: true, collapsed: true, fwd_status: Some(200), ..CacheStatus::hit(1) };
    check(hit, "ultra-perf; hit; ttl=1");
}

#[test]
fn a_detail_that_is_no_token_is_left_out() {
    for detail in ["", "two words", "a;b", "a\nb", "1a", "\u{e9}"] {
        check(
            CacheStatus { detail: Some(detail), ..CacheStatus::hit(1) },
            "ultra-perf; hit; ttl=1",
        );
    }
}

#[test]
fn values_that_share_a_scratch_stay_apart() {
    let mut scratch = BytesMut::with_capacity(256);
    let first = CacheStatus::hit(1).value(&mut scratch);
    let second = CacheStatus::forward(Forward::Miss).value(&mut scratch);
    assert_eq!(
        (first.as_bytes(), second.as_bytes()),
        (&b"ultra-perf; hit; ttl=1"[..], &b"ultra-perf; fwd=miss"[..])
    );
}

#[test]
fn outcomes_are_the_four_words() {
    let words = [Outcome::Hit, Outcome::Miss, Outcome::Stale, Outcome::Bypass].map(Outcome::value);
    assert_eq!(words, ["HIT", "MISS", "STALE", "BYPASS"]);
}
