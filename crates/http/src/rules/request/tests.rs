//! Requests by the way they take.

use super::*;
use crate::rules::testing::headers;

fn class(method: &str, text: &str) -> RequestClass {
    let method = method.parse().expect("a method");
    classify(RequestHead { method: &method, headers: &headers(text) })
}

fn lookup(may_store: bool, only_if_cached: bool) -> RequestClass {
    RequestClass::Lookup(Lookup { may_store, only_if_cached })
}

#[test]
fn only_plain_get_and_head_concern_the_cache() {
    for (method, text, expected) in [
        ("GET", "", lookup(true, false)),
        ("GET", "content-length: 0", lookup(true, false)),
        ("GET", "authorization: Basic x|cookie: a=b", lookup(true, false)),
        ("GET", "if-none-match: \"a\"|if-modified-since: NOW-5", lookup(true, false)),
        ("GET", "cache-control: no-store", lookup(false, false)),
        ("GET", "cache-control: only-if-cached", lookup(true, true)),
        ("GET", "range: bytes=0-1", lookup(false, false)),
        ("HEAD", "", lookup(false, false)),
        ("POST", "", RequestClass::Bypass(Bypass::Method)),
        ("OPTIONS", "", RequestClass::Bypass(Bypass::Method)),
        ("PURGE", "", RequestClass::Bypass(Bypass::Method)),
        ("get", "", RequestClass::Bypass(Bypass::Method)),
        ("GET", "content-length: 5", RequestClass::Bypass(Bypass::Body)),
        ("GET", "transfer-encoding: chunked", RequestClass::Bypass(Bypass::Body)),
        ("GET", "connection: upgrade|upgrade: websocket", RequestClass::Bypass(Bypass::Upgrade)),
        ("GET", "expect: 100-continue", RequestClass::Bypass(Bypass::Expect)),
        ("GET", "if-match: \"a\"", RequestClass::Bypass(Bypass::Precondition)),
        ("GET", "if-unmodified-since: NOW", RequestClass::Bypass(Bypass::Precondition)),
    ] {
        assert_eq!(class(method, text), expected, "{method} {text}");
    }
}

#[test]
fn every_reason_is_a_word_of_its_own() {
    let reasons =
        [Bypass::Method, Bypass::Upgrade, Bypass::Expect, Bypass::Body, Bypass::Precondition];
    let words: std::collections::HashSet<_> = reasons.iter().map(|it| it.as_str()).collect();
    assert_eq!(words.len(), reasons.len());
}
