//! Which coding a request gets, and which answers are packed.

use std::io::Read as _;

use http::header::HeaderName;
use http_body_util::{BodyExt as _, Full};

use super::*;

fn fields(fields: &[(HeaderName, &str)]) -> HeaderMap {
    let fields = fields.iter().map(|(name, value)| (name.clone(), value.parse().expect("a value")));
    fields.collect()
}

#[test]
fn the_coding_is_the_one_that_the_client_wants_most() {
    for (accepted, expected) in [
        ("gzip, deflate, br, zstd", Some("zstd")),
        ("gzip, deflate, br", Some("br")),
        ("GZIP;q=1.0, br;q=0.5", Some("gzip")),
        ("x-gzip", Some("gzip")),
        ("*", Some("zstd")),
        ("*;q=0.5, zstd;q=0", Some("br")),
        ("gzip;q=0.2, identity", None),
        ("gzip;q=0", None),
        ("identity", None),
        ("compress", None),
        ("gzip;q=nonsense", None),
        ("", None),
    ] {
        let mut headers = fields(&[(ACCEPT_ENCODING, accepted)]);
        let coding = settle(&mut headers);
        assert_eq!(coding.map(Coding::as_str), expected, "{accepted}");
        let left = headers[ACCEPT_ENCODING].to_str().expect("text");
        assert_eq!(left, expected.unwrap_or("identity"), "{accepted}");
        let wanted = wanted(&Method::GET, &[(ACCEPT_ENCODING, left)]);
        assert_eq!(wanted.coding, coding, "{accepted}");
    }
    let mut none = HeaderMap::new();
    assert_eq!((settle(&mut none), none.len()), (None, 0));
}

/// What a request with these fields wants.
fn wanted(method: &Method, given: &[(HeaderName, &str)]) -> Wanted {
    Wanted::of(method, &fields(given))
}

/// Packs an answer of so many bytes for a client that accepts gzip.
fn packed(
    method: &Method,
    status: StatusCode,
    answer: &[(HeaderName, &str)],
    length: usize,
) -> (response::Parts, Packed<Full<Bytes>>) {
    let (mut head, ()) = Response::new(()).into_parts();
    head.status = status;
    head.headers = fields(answer);
    let body = Full::new(Bytes::from(vec![b'x'; length]));
    wanted(method, &[(ACCEPT_ENCODING, "gzip")]).pack(head, body)
}

#[test]
fn only_what_gains_by_it_is_packed() {
    const JSON: (HeaderName, &str) = (CONTENT_TYPE, "application/json; charset=utf-8");
    let is_packed = |method: &Method, status, fields: &[(HeaderName, &str)], length| {
        let (head, _) = packed(method, status, fields, length);
        head.headers.get(CONTENT_ENCODING).is_some_and(|coding| coding == "gzip")
    };
    let get = |fields: &[(HeaderName, &str)], length| {
        is_packed(&Method::GET, StatusCode::OK, fields, length)
    };
    assert!(get(&[JSON], 2_000));
    assert!(get(&[(CONTENT_TYPE, "Text/HTML")], 2_000));
    assert!(get(&[(CONTENT_TYPE, "application/problem+json")], 2_000));
    assert!(get(&[(CONTENT_TYPE, "image/svg+xml")], 2_000));
    assert!(is_packed(&Method::GET, StatusCode::NOT_FOUND, &[JSON], 2_000));
    for not in [
        get(&[JSON], 1_000),
        get(&[], 2_000),
        get(&[(CONTENT_TYPE, "image/png")], 2_000),
        get(&[(CONTENT_TYPE, "text/event-stream")], 2_000),
        get(&[JSON, (CONTENT_ENCODING, "br")], 2_000),
        get(&[JSON, (CONTENT_RANGE, "bytes 0-1999/9000")], 2_000),
        get(&[JSON, (CACHE_CONTROL, "max-age=60, No-Transform")], 2_000),
        get(&[JSON, (HeaderName::from_static("content-digest"), "sha-256=:eA==:")], 2_000),
        get(&[JSON, (HeaderName::from_static("repr-digest"), "sha-256=:eA==:")], 2_000),
        get(&[JSON, (HeaderName::from_static("digest"), "sha-256=eA==")], 2_000),
        get(&[JSON, (HeaderName::from_static("content-md5"), "eA==")], 2_000),
        is_packed(&Method::GET, StatusCode::PARTIAL_CONTENT, &[JSON], 2_000),
        is_packed(&Method::HEAD, StatusCode::OK, &[JSON, (CONTENT_LENGTH, "1000")], 0),
        is_packed(&Method::HEAD, StatusCode::OK, &[(CONTENT_LENGTH, "2000")], 0),
    ] {
        assert!(!not);
    }
}

#[tokio::test]
async fn a_packed_answer_is_another_representation_of_the_same() {
    let given = [
        (CONTENT_TYPE, "text/plain"),
        (CONTENT_LENGTH, "5000"),
        (ETAG, "\"v1\""),
        (VARY, "accept-language"),
    ];
    let (head, body) = packed(&Method::GET, StatusCode::OK, &given, 5_000);
    assert_eq!(head.headers[ETAG], "W/\"v1\"");
    assert!(!head.headers.contains_key(CONTENT_LENGTH));
    let vary: Vec<_> = head.headers.get_all(VARY).iter().collect();
    assert_eq!(vary, ["accept-language", "accept-encoding"]);
    let bytes = body.collect().await.expect("a whole body").to_bytes();
    assert!(bytes.len() < 200, "{}", bytes.len());
    let mut text = String::new();
    flate2::read::GzDecoder::new(&bytes[..]).read_to_string(&mut text).expect("gzip");
    assert_eq!(text, "x".repeat(5_000));
}

#[test]
fn an_answer_that_is_not_packed_for_this_client_says_that_it_could_be() {
    let (mut head, ()) = Response::new(()).into_parts();
    head.headers = fields(&[(CONTENT_TYPE, "text/plain"), (ETAG, "\"v1\"")]);
    let body = Full::new(Bytes::from(vec![b'x'; 5_000]));
    let (head, body) = wanted(&Method::GET, &[]).pack(head, body);
    assert_eq!(
        (&head.headers[VARY], &head.headers[ETAG]),
        (&HeaderValue::from_static("accept-encoding"), &HeaderValue::from_static("\"v1\""))
    );
    assert!(matches!(body, Packed::Plain(_)));
}

#[test]
fn a_304_is_about_the_representation_that_was_asked_about() {
    let tag = |asked: &str| {
        let (mut head, ()) = Response::new(()).into_parts();
        head.status = StatusCode::NOT_MODIFIED;
        head.headers = fields(&[(ETAG, "\"v1\"")]);
        let wanted = wanted(&Method::GET, &[(IF_NONE_MATCH, asked)]);
        let (head, _) = wanted.pack(head, Full::<Bytes>::default());
        head.headers[ETAG].clone()
    };
    assert_eq!(tag("W/\"v1\""), "W/\"v1\"");
    assert_eq!(tag("\"v1\""), "\"v1\"");
    assert_eq!(tag("W/\"v1\", \"v1\""), "\"v1\"");
}

#[test]
fn an_answer_to_head_is_described_as_the_one_to_get() {
    let given = |length: &'static [(HeaderName, &'static str)]| {
        let given = [(CONTENT_TYPE, "text/plain"), (ETAG, "\"v1\""), (ACCEPT_RANGES, "bytes")];
        let given: Vec<_> = given.iter().chain(length).cloned().collect();
        packed(&Method::HEAD, StatusCode::OK, &given, 0)
    };
    let (head, body) = given(&[(CONTENT_LENGTH, "5000")]);
    let expected = fields(&[
        (CONTENT_TYPE, "text/plain"),
        (ETAG, "W/\"v1\""),
        (CONTENT_ENCODING, "gzip"),
        (VARY, "accept-encoding"),
    ]);
    assert_eq!(head.headers, expected);
    assert_eq!(body.size_hint().exact(), None, "no server may take it for an empty answer");
    // Of an unknown length it may or may not be packed.
    let (head, _) = given(&[]);
    assert_eq!(
        (&head.headers[VARY], &head.headers[ETAG]),
        (&"accept-encoding".parse().unwrap(), &"\"v1\"".parse().unwrap())
    );
}

#[test]
fn a_304_that_names_fields_names_this_one_too() {
    let vary = |given: &[(HeaderName, &str)]| {
        let (head, _) = packed(&Method::GET, StatusCode::NOT_MODIFIED, given, 0);
        let lines = head.headers.get_all(VARY).iter();
        lines.map(|line| line.to_str().expect("text").to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(vary(&[(VARY, "origin")]), ["origin", "accept-encoding"]);
    assert_eq!(vary(&[(VARY, "*")]), ["*"]);
    assert_eq!(vary(&[]), [""; 0]);
}
