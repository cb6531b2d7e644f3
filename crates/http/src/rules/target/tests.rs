//! Keys, and references resolved against them.

use proptest::prelude::*;

use super::*;
use crate::rules::testing::headers;

#[test]
fn scheme_host_and_port_are_normalised_and_the_rest_is_not() {
    for (scheme, authority, target, key) in [
        ("http", "Example.COM", "/A?b=%7e", "http://example.com/A?b=%7e"),
        ("HTTP", "example.com:80", "", "http://example.com/"),
        ("https", "example.com:443", "/", "https://example.com/"),
        ("http", "example.com:443", "/", "http://example.com:443/"),
        ("http", "example.com:", "/", "http://example.com/"),
        ("http", "[2001:DB8::1]:80", "/", "http://[2001:db8::1]/"),
        ("http", "[2001:DB8::80]", "/", "http://[2001:db8::80]/"),
        ("http", "h", "?a", "http://h/?a"),
        ("http", "h", "/a#b", "http://h/a"),
        ("http", "h", "//a/../b/./", "http://h//a/../b/./"),
    ] {
        assert_eq!(target_key(scheme, authority, target), key);
    }
}

#[test]
fn everything_not_known_as_safe_is_unsafe() {
    for (method, expected) in [
        ("GET", false),
        ("HEAD", false),
        ("OPTIONS", false),
        ("TRACE", false),
        ("POST", true),
        ("PUT", true),
        ("PATCH", true),
        ("DELETE", true),
        ("MERGE", true),
        ("get", true),
    ] {
        assert_eq!(is_unsafe(&method.parse().expect("a method")), expected, "{method}");
    }
}

fn keys(method: &str, status: u16, text: &str) -> Vec<String> {
    invalidated(
        &method.parse().expect("a method"),
        "http://h:8080/a/b?c",
        StatusCode::from_u16(status).expect("a status"),
        &headers(text),
    )
}

/// RFC 9111 section 4.4.
#[test]
fn a_successful_unsafe_method_invalidates_the_target_and_what_it_names() {
    assert_eq!(keys("POST", 200, ""), ["http://h:8080/a/b?c"]);
    assert_eq!(
        keys("PUT", 303, "location: /x|content-location: y"),
        ["http://h:8080/a/b?c", "http://h:8080/x", "http://h:8080/a/y"]
    );
    assert_eq!(keys("DELETE", 204, "location: b?c"), ["http://h:8080/a/b?c"]);
    for (method, status) in
        [("GET", 200), ("OPTIONS", 200), ("POST", 404), ("POST", 500), ("POST", 101)]
    {
        assert!(keys(method, status, "location: /x").is_empty(), "{method} {status}");
    }
}

/// RFC 3986 section 5.4, against `http://h:8080/a/b?c`.
#[test]
fn references_resolve_within_the_host_and_not_beyond() {
    for (reference, expected) in [
        ("d", Some("/a/d")),
        ("./d", Some("/a/d")),
        ("d/", Some("/a/d/")),
        ("/d", Some("/d")),
        ("?e", Some("/a/b?e")),
        ("", Some("/a/b?c")),
        ("#f", Some("/a/b?c")),
        ("d#f", Some("/a/d")),
        ("d?e/../f", Some("/a/d?e/../f")),
        (".", Some("/a/")),
        ("..", Some("/")),
        ("../d", Some("/d")),
        ("../../../d", Some("/d")),
        ("/x/./y/../z", Some("/x/z")),
        ("a//b", Some("/a/a//b")),
        ("d:e/f", None),
        ("./d:e", Some("/a/d:e")),
        ("//h:8080", Some("/")),
        ("//H:8080/d", Some("/d")),
        ("http://h:8080/d?e", Some("/d?e")),
        ("http://h:8080?e", Some("/?e")),
        ("HTTPS://h:8080/d", Some("/d")),
        ("  /d ", Some("/d")),
        ("http://h/d", None),
        ("http://h:80800/d", None),
        ("http://h:8080@evil/d", None),
        ("//evil/d", None),
        ("ftp://h:8080/d", None),
        ("mailto:x", None),
    ] {
        let expected = expected.map(|target| format!("http://h:8080{target}"));
        assert_eq!(resolve("http://h:8080/a/b?c", reference), expected, "{reference}");
    }
    assert_eq!(
        resolve("http://h/a", "https://h:443/b").as_deref(),
        Some("http://h/b"),
        "each scheme has its own default port"
    );
    assert_eq!(resolve("no key", "/b"), None);
}

proptest! {
    #[test]
    fn resolved_keys_stay_on_the_host_and_are_normal(reference in "[ -~]{0,30}") {
        if let Some(key) = resolve("http://h:8080/a/b?c", &reference) {
            let target = key.strip_prefix("http://h:8080");
            prop_assert!(target.is_some_and(|target| target.starts_with('/')), "{}", key);
            prop_assert!(!key.contains('#'));
        }
    }

    #[test]
    fn no_text_panics(base in "\\PC{0,20}", scheme in "\\PC{0,5}", text in "\\PC{0,20}") {
        let _key = resolve(&base, &text);
        let key = target_key(&scheme, &base, &text);
        let _key = resolve(&key, &text);
    }
}
