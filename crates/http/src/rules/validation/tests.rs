//! Conditions of clients, and 304s of origins.

use proptest::prelude::*;

use super::*;
use crate::rules::testing::{NOW_MS, date, get, headers, stored};

fn not_modified(stored_text: &str, request: &str) -> bool {
    condition(get(&headers(request)), &stored(200, stored_text)) == Condition::NotModified
}

/// RFC 9110 sections 8.8.3.2 and 13.1.2.
#[test]
fn if_none_match_compares_weakly_over_lists() {
    for (tag, asked, expected) in [
        ("\"a\"", "\"a\"", true),
        ("\"a\"", "W/\"a\"", true),
        ("W/\"a\"", "\"a\"", true),
        ("W/\"a\"", "W/\"a\"", true),
        ("\"a\"", "\"b\"", false),
        ("\"a\"", "\"b\", \"c\",W/\"a\"", true),
        ("\"a\"", "\"b\"|if-none-match: \"a\"", true),
        ("\"a\"", "*", true),
        ("\"a\"", "\"*\"", false),
        ("\"*\"", "\"*\"", true),
        ("\"a, b\"", "\"a, b\"", true),
        ("\"b\"", "\"a, \"b\"", false), // a broken list: the tag is `"a, "`
        ("\"a\"", "a", false),
        ("a", "a", true),
        ("a", "b, a", true),
        ("\"a\"", "\"a", false),
        ("\"a\"", "w/\"a\"", false),
        ("\"\"", "\"\"", true),
        ("\"a\"", "", false),
        ("\"a\"", ",", false),
    ] {
        let got = not_modified(&format!("etag: {tag}"), &format!("if-none-match: {asked}"));
        assert_eq!(got, expected, "{tag} asked {asked}");
    }
    assert!(not_modified("", "if-none-match: *"));
    assert!(!not_modified("", "if-none-match: \"a\""));
    assert!(!not_modified("", ""));
}

/// RFC 9110 section 13.2.2.
#[test]
fn if_none_match_decides_alone_where_it_is_present() {
    let head = "etag: \"a\"|last-modified: NOW-100";
    assert!(!not_modified(head, "if-none-match: \"b\"|if-modified-since: NOW"));
    assert!(not_modified(head, "if-none-match: \"a\"|if-modified-since: NOW-999"));
}

/// RFC 9110 section 13.1.3 and RFC 9111 section 4.3.2.
#[test]
fn if_modified_since_compares_with_last_modified_then_date_then_arrival() {
    for (head, since, expected) in [
        ("last-modified: NOW-100", "NOW-100", true),
        ("last-modified: NOW-100", "NOW-99", true),
        ("last-modified: NOW-100", "NOW-101", false),
        ("last-modified: NOW-100|date: NOW", "NOW-50", true),
        ("date: NOW-100", "NOW-100", true),
        ("date: NOW-100", "NOW-101", false),
        ("last-modified: x|date: NOW-100", "NOW-100", true),
        ("", "NOW", true),
        ("", "NOW-1", false),
        ("last-modified: NOW-100", "yesterday", false),
        ("last-modified: NOW-100", "NOW|if-modified-since: NOW", false),
    ] {
        let got = not_modified(head, &format!("if-modified-since: {since}"));
        assert_eq!(got, expected, "{head} asked {since}");
    }
}

/// RFC 9110 section 13.2.1.
#[test]
fn conditions_count_only_against_a_stored_200() {
    for status in [204, 301, 404, 410] {
        let head = stored(status, "etag: \"a\"|last-modified: NOW-9");
        for asked in ["if-none-match: \"a\"", "if-none-match: *", "if-modified-since: NOW"] {
            assert_eq!(condition(get(&headers(asked)), &head), Condition::Full, "{status} {asked}");
        }
    }
}

/// RFC 9110 section 15.4.5.
#[test]
fn a_304_carries_the_fields_that_guide_caches() {
    let full = "cache-control: max-age=1|content-location: /a|date: NOW|etag: \"a\"|expires: NOW|\
        vary: b|vary: c|last-modified: NOW|content-type: text/plain|content-length: 5|x-a: 1";
    assert_eq!(
        not_modified_headers(&headers(full)),
        headers(
            "cache-control: max-age=1|content-location: /a|date: NOW|etag: \"a\"|expires: NOW|\
            vary: b|vary: c"
        )
    );
    assert_eq!(
        not_modified_headers(&headers("last-modified: NOW|x-a: 1")),
        headers("last-modified: NOW")
    );
}

/// RFC 9111 section 4.3.1.
#[test]
fn a_validation_asks_with_the_stored_validators_only() {
    for (head, expected) in [
        ("etag: W/\"a\"|last-modified: NOW-9", "if-none-match: W/\"a\"|if-modified-since: NOW-9"),
        ("etag: \"a\"", "if-none-match: \"a\""),
        ("last-modified: NOW-9", "if-modified-since: NOW-9"),
        ("last-modified: x", ""),
        ("", ""),
    ] {
        let mut request = headers(
            "if-none-match: \"z\"|if-none-match: \"y\"|if-modified-since: NOW|if-range: \"z\"|\
             range: bytes=0-|if-match: \"z\"|if-unmodified-since: NOW|accept: x",
        );
        let any = set_validators(&stored(200, head), &mut request);
        assert_eq!(any, !expected.is_empty(), "{head}");
        assert_eq!(request, headers(&format!("accept: x|{expected}")), "{head}");
    }
}

fn freshen_at(stored_text: &str, update: &str, later_s: u64) -> Freshened {
    let at_ms = NOW_MS + later_s * 1000;
    freshen(
        &Policy::default(),
        get(&HeaderMap::new()),
        &stored(200, stored_text),
        &headers(update),
        Times { request_ms: at_ms, response_ms: at_ms },
    )
}

/// RFC 9111 section 4.3.4.
#[test]
fn a_304_updates_the_version_that_its_validators_name_and_no_other() {
    for (head, update, expected) in [
        ("etag: \"a\"", "etag: \"a\"", true),
        ("etag: \"a\"", "etag: W/\"a\"", true),
        ("etag: W/\"a\"", "etag: W/\"a\"", true),
        ("etag: W/\"a\"", "etag: \"a\"", false), // a strong tag selects by strong comparison
        ("etag: \"a\"", "etag: \"b\"", false),
        ("last-modified: NOW-9", "etag: \"a\"|last-modified: NOW-9", false),
        ("etag: \"a\"|last-modified: NOW-9", "etag: \"a\"|last-modified: NOW", true),
        ("etag: \"a\"|last-modified: NOW-9", "last-modified: NOW-9", true),
        ("etag: \"a\"|last-modified: NOW-9", "last-modified: NOW", false),
        ("etag: \"a\"", "last-modified: NOW", false),
        ("etag: \"a\"|last-modified: NOW-9", "", true),
        ("last-modified: NOW-9", "", true),
    ] {
        let freshened = freshen_at(head, update, 100);
        assert_eq!(freshened != Freshened::Mismatch, expected, "{head} by {update}");
    }
}

/// RFC 9111 section 3.2.
#[test]
fn a_304_replaces_fields_but_not_those_that_describe_the_stored_bytes() {
    let head = "etag: \"a\"|date: NOW-500|age: 400|cache-control: max-age=1|x-a: 1|x-a: 2|x-b: 3|\
        content-length: 5|content-encoding: gzip|content-type: text/plain";
    let update = "etag: \"a\"|cache-control: max-age=60|x-a: 9|x-c: 4|x-c: 5|content-length: 0|\
        content-encoding: br|content-type: text/html|connection: x-d|x-d: 6|transfer-encoding: chunked";
    let Freshened::Updated(storable) = freshen_at(head, update, 100) else {
        panic!("same version")
    };
    let expected = format!(
        "etag: \"a\"|date: {}|cache-control: max-age=60|x-a: 9|x-b: 3|x-c: 4|x-c: 5|\
         content-length: 5|content-encoding: gzip|content-type: text/html",
        date(100)
    );
    assert_eq!(storable.head.headers, headers(&expected));
    let age = storable.freshness.age(NOW_MS + 100_000);
    assert_eq!((age.age_s, age.ttl_s), (0, 60), "a validated answer is young again");
}

#[test]
fn a_304_that_forbids_storing_is_used_once() {
    for (update, reason) in [
        ("cache-control: no-store", NotStored::NoStore),
        ("cache-control: private", NotStored::Private),
        ("set-cookie: a=b", NotStored::SetCookie),
        ("vary: *", NotStored::VaryStar),
    ] {
        let text = format!("{update}|x-new: 1");
        match freshen_at("etag: \"a\"|cache-control: max-age=1", &text, 5) {
            Freshened::NotStorable { head, reason: got } => {
                assert_eq!(got, reason, "{update}");
                assert_eq!(head.headers["x-new"], "1");
            }
            other => panic!("{update}: {other:?}"),
        }
    }
}

proptest! {
    /// Any list that contains the tag in quotes, whatever stands around it.
    #[test]
    fn a_listed_tag_is_found(
        before in proptest::collection::vec("(W/)?\"[a-z ,]{0,5}\"", 0..4),
        tag in "[A-Z,]{1,5}",
        after in proptest::collection::vec("(W/)?\"[a-z ,]{0,5}\"", 0..4),
    ) {
        let all = [before, vec![format!("\"{tag}\"")], after].concat().join(" ,");
        let found = not_modified(&format!("etag: \"{tag}\""), &format!("if-none-match: {all}"));
        prop_assert!(found);
        let absent = not_modified("etag: \"absent!\"", &format!("if-none-match: {all}"));
        prop_assert!(!absent);
    }

    #[test]
    fn no_value_panics(
        tag in "[ -~]{0,20}", update in "[ -~]{0,20}", list in "[\"W/, a\\\\*]{0,40}",
    ) {
        let value = |text: &str| HeaderValue::try_from(text).expect("printable");
        let mut head = stored(200, "cache-control: max-age=1");
        head.headers.insert(ETAG, value(&tag));
        let asked = HeaderMap::from_iter([(IF_NONE_MATCH, value(&list))]);
        let _condition = condition(get(&asked), &head);
        let fields = HeaderMap::from_iter([(ETAG, value(&update)), (CACHE_CONTROL, value(&list))]);
        let _freshened = freshen(&Policy::default(), get(&asked), &head, &fields, head.times);
    }
}
