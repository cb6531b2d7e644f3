//! Which requests share a variant.

use proptest::prelude::*;

use super::*;
use crate::rules::testing::headers;

fn vary(text: &str) -> Option<Vary> {
    Vary::of(&headers(text))
}

fn key(vary_on: &str, request: &str) -> String {
    let mut key = Vec::new();
    let vary = vary(&format!("vary: {vary_on}")).expect("no star");
    vary.write_key(&headers(request), &mut key);
    String::from_utf8(key).expect("ASCII in, ASCII out")
}

/// Whether two requests get the same variant.
fn same(vary_on: &str, a: &str, b: &str) -> bool {
    key(vary_on, a) == key(vary_on, b)
}

#[test]
fn the_spec_is_sorted_lower_case_and_without_repetition() {
    let spec =
        vary("vary: Accept-Language, accept-encoding|vary: ACCEPT-LANGUAGE,").expect("no star");
    assert_eq!(spec.to_string(), "accept-encoding,accept-language");
    assert_eq!(spec.fields().len(), 2);
    assert_eq!(Vary::parse([spec.to_string().as_bytes()]), Some(spec));
    assert!(vary("x: y").is_some_and(|spec| spec.is_empty() && spec.to_string().is_empty()));
}

/// RFC 9111 section 4.1.
#[test]
fn star_and_what_is_no_name_never_match() {
    for text in ["vary: *", "vary: a, *", "vary: a|vary: *", "vary: a b", "vary: \"a\""] {
        assert_eq!(vary(text), None, "{text}");
    }
}

#[test]
fn requests_without_the_field_share_a_variant_of_their_own() {
    assert!(same("x-a", "", "x-b: 1"));
    assert!(!same("x-a", "", "x-a: "));
    assert!(!same("x-a, x-b", "x-a: 1", "x-b: 1"));
}

#[test]
fn fields_of_the_connection_do_not_select_a_variant() {
    assert!(same("x-a", "", "x-a: 1|connection: close, X-A"));
    assert!(same("te", "", "te: trailers"));
    assert!(!same("authorization", "", "authorization: x|connection: authorization"));
}

#[test]
fn unknown_fields_match_by_their_bytes_lines_joined() {
    assert!(same("x-a", "x-a: 1|x-a: 2", "x-a: 1, 2"));
    for (a, b) in [("1,2", "1, 2"), ("a", "A"), ("1, 2", "2, 1"), ("a;q=1", "a")] {
        assert!(!same("x-a", &format!("x-a: {a}"), &format!("x-a: {b}")), "{a} | {b}");
    }
}

#[test]
fn accept_encoding_matches_by_meaning() {
    let name = "accept-encoding";
    for (a, b) in [
        ("gzip, br", "br,gzip"),
        ("GZIP;q=1.000 , br ; q=0.50", "br;Q=0.5,gzip"),
        ("gzip, gzip", "gzip, gzip"),
        ("a\tb;q=0", "a\tb;q=0.000"),
    ] {
        assert!(same(name, &format!("{name}: {a}"), &format!("{name}: {b}")), "{a} | {b}");
    }
    assert!(same(name, "accept-encoding: gzip|accept-encoding: br", "accept-encoding: br, gzip"));
    for (a, b) in [
        ("gzip", "br"),
        ("gzip;q=0", "gzip"),
        ("gzip;q=0.5", "gzip;q=0.51"),
        ("gzip", "gzip, br"),
        ("", "identity"),
    ] {
        assert!(!same(name, &format!("{name}: {a}"), &format!("{name}: {b}")), "{a} | {b}");
    }
}

#[test]
fn accept_language_keeps_the_order_of_equal_weights() {
    let name = "accept-language";
    assert!(same(name, "accept-language: de, en;q=0.5", "accept-language: EN;q=0.500 ,de"));
    assert!(!same(name, "accept-language: de, en", "accept-language: en, de"));
}

#[test]
fn what_is_not_understood_is_compared_as_it_stands() {
    for value in ["gzip;q=2", "gzip;q=0.1234", "gzip;x=1", "gzip;q=0.5;x", "gzip;q="] {
        let (a, b) =
            (format!("accept-encoding: br, {value}"), format!("accept-encoding: {value}, br"));
        assert!(!same("accept-encoding", &a, &b), "{value}");
        assert!(same("accept-encoding", &a, &a), "{value}");
    }
    let long = (0..40).map(|n| format!("c{n}")).collect::<Vec<_>>().join(",");
    let key = key("accept-encoding", &format!("accept-encoding: {long}"));
    assert_eq!(key, format!("accept-encoding:{long}\n"));
}

/// A reading of `Accept-Encoding` without any of the tricks: sorted pairs of name and weight.
fn naive(value: &str) -> Vec<(String, u16)> {
    let mut all: Vec<_> = value
        .split(',')
        .map(|member| {
            let (name, weight) = member.split_once(";q=").unwrap_or((member, "1"));
            let weight: f64 = weight.trim().parse().expect("generated");
            (name.trim().to_lowercase(), (weight * 1000.0).round() as u16)
        })
        .collect();
    all.sort();
    all
}

proptest! {
    #[test]
    fn accept_encoding_keys_are_equal_exactly_when_the_naive_reading_is(
        a in "(gzip|br|GZIP)(;q=0[.][05]0{0,2})?( ?, (zstd|br|gzip)(;q=(0|1|0[.]5))?){0,2}",
        b in "(gzip|br|GZIP)(;q=0[.][05]0{0,2})?( ?, (zstd|br|gzip)(;q=(0|1|0[.]5))?){0,2}",
    ) {
        let equal = same(
            "accept-encoding", &format!("accept-encoding: {a}"), &format!("accept-encoding: {b}"),
        );
        prop_assert_eq!(equal, naive(&a) == naive(&b), "{} | {}", a, b);
    }

    #[test]
    fn no_value_panics_or_leaves_its_line(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
        if let Ok(value) = http::HeaderValue::from_bytes(&bytes) {
            for name in ["accept-encoding", "accept-language", "accept-charset", "accept", "x"] {
                let name = HeaderName::from_static(name);
                let spec = Vary::parse([name.as_str().as_bytes()]).expect("a name");
                let request = HeaderMap::from_iter([(name, value.clone())]);
                let mut key = Vec::new();
                spec.write_key(&request, &mut key);
                prop_assert_eq!(key.iter().filter(|&&byte| byte == b'\n').count(), 1);
            }
            let _spec = Vary::parse([&bytes[..]]);
        }
    }
}
