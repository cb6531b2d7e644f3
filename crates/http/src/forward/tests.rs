//! The rewriting of heads, case by case and under random fields.

use http::Request;
use http_body_util::BodyExt;
use proptest::prelude::*;

use super::*;

fn head(method: &str, uri: &str, version: Version, fields: &[(&str, &str)]) -> request::Parts {
    let mut request = Request::builder().method(method).uri(uri).version(version);
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(()).expect("a request").into_parts().0
}

fn get(uri: &str, fields: &[(&str, &str)]) -> request::Parts {
    head("GET", uri, Version::HTTP_11, fields)
}

fn fields(headers: &HeaderMap) -> Vec<(String, String)> {
    headers
        .iter()
        .map(|(name, value)| {
            let value = value.to_str().expect("ascii").to_owned();
            (name.as_str().to_owned(), value)
        })
        .collect()
}

fn forwarder(base_path: &str) -> Forwarder {
    let authority = "origin:8000".parse().expect("an authority");
    Forwarder::new(&authority, base_path, HostPolicy::Preserve, 0xabc)
}

fn peer() -> Peer {
    Peer::new("192.0.2.1:5000".parse().expect("an address"))
}

#[test]
fn a_normal_request_is_left_alone() {
    let mut parts = get("/a?b=c", &[("host", "a:80"), ("accept", "*/*")]);
    let before = fields(&parts.headers);
    normalize(&mut parts).expect("valid");
    assert_eq!(parts.uri, "/a?b=c");
    assert_eq!(fields(&parts.headers), before);
}

#[test]
fn the_target_and_the_host_end_up_in_one_form() {
    use Version as V;
    for (method, uri, version, host, expected) in [
        ("GET", "http://b:81/x?y", V::HTTP_11, Some("a"), Ok(("/x?y", Some("b:81")))),
        ("GET", "http://b", V::HTTP_11, Some("a"), Ok(("/", Some("b")))),
        ("GET", "http://b/x", V::HTTP_2, None, Ok(("/x", Some("b")))),
        ("GET", "http://b/x", V::HTTP_2, Some("B"), Ok(("/x", Some("b")))),
        ("GET", "http://b/x", V::HTTP_2, Some("a"), Err(Refusal::Host)),
        ("GET", "/x", V::HTTP_2, Some("a"), Ok(("/x", Some("a")))),
        ("GET", "/x", V::HTTP_2, None, Err(Refusal::Host)),
        ("GET", "/x", V::HTTP_10, None, Ok(("/x", None))),
        ("GET", "/x", V::HTTP_11, None, Err(Refusal::Host)),
        ("OPTIONS", "*", V::HTTP_11, Some("a"), Ok(("*", Some("a")))),
        ("GET", "*", V::HTTP_11, Some("a"), Err(Refusal::Target)),
        ("GET", "http://u:p@b/", V::HTTP_11, Some("a"), Err(Refusal::Target)),
        ("CONNECT", "b:80", V::HTTP_11, Some("b:80"), Err(Refusal::Method)),
    ] {
        let fields: Vec<_> = host.map(|host| ("host", host)).into_iter().collect();
        let mut parts = head(method, uri, version, &fields);
        let outcome = normalize(&mut parts).map(|()| {
            let host = parts.headers.get(HOST).map(|host| host.to_str().expect("ascii"));
            (parts.uri.to_string(), host)
        });
        let expected = expected.map(|(uri, host)| (uri.to_owned(), host));
        assert_eq!(outcome, expected, "{method} {uri} {version:?} {host:?}");
    }
}

#[test]
fn only_a_name_or_an_address_with_a_port_is_a_host() {
    for host in
        ["a", "a.b:8080", "127.0.0.1", "[::1]", "[::1]:80", "a_b-c.d", "a:", "xn--bcher-kva"]
    {
        assert!(is_authority(host.as_bytes()), "{host:?}");
    }
    for host in [
        "", ":80", "u@a", "a/b", "a b", "a:b", "a:1:2", "[::1", "[a]", "::1", "a:123456", "a#",
        "a?",
    ] {
        assert!(!is_authority(host.as_bytes()), "{host:?}");
    }
}

#[test]
fn only_websocket_is_switched_to() {
    for (connection, upgrade, expected) in [
        ("upgrade", "websocket", true),
        ("keep-alive, Upgrade", "WebSocket", true),
        ("close", "websocket", false),
        ("upgrade", "h2c", false),
        ("upgrade", "websocket, h2c", false),
    ] {
        let pairs = [("host", "a"), ("connection", connection), ("upgrade", upgrade)];
        let mut parts = get("/", &pairs);
        normalize(&mut parts).expect("valid");
        assert_eq!(wants_upgrade(&parts.headers), expected, "{connection} {upgrade}");
        assert_eq!(parts.headers.contains_key(CONNECTION), expected);
    }
}

#[test]
fn connection_removes_what_it_names_but_not_what_the_message_needs() {
    let mut parts = get(
        "/",
        &[
            ("host", "a"),
            ("connection", "x-a, , close"),
            ("connection", "X-B, host, content-length, b@d"),
            ("x-a", "1"),
            ("x-b", "2"),
            ("x-c", "3"),
            ("content-length", "0"),
            ("te", "trailers"),
        ],
    );
    remove_hop_by_hop(&mut parts.headers);
    let mut left = fields(&parts.headers);
    left.sort();
    let expected = [("content-length", "0"), ("host", "a"), ("x-c", "3")];
    assert_eq!(left, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
}

#[test]
fn an_origin_cannot_make_its_answer_public_through_connection() {
    let answer = Response::builder()
        .header("connection", "cache-control, vary, set-cookie, x-hop")
        .header("cache-control", "private")
        .header("vary", "cookie")
        .header("set-cookie", "a=b")
        .header("x-hop", "1");
    let mut parts = answer.body(()).expect("valid").into_parts().0;
    forwarder("").response(&mut parts);
    let mut left: Vec<_> = parts.headers.keys().map(|name| name.as_str().to_owned()).collect();
    left.sort();
    assert_eq!(left, ["cache-control", "set-cookie", "vary"]);
}

#[test]
fn the_base_path_goes_first() {
    for (base, uri, expected) in [
        ("", "/x?y", "/x?y"),
        ("/", "/x", "/x"),
        ("/api", "/x?y", "/api/x?y"),
        ("/api/", "/", "/api/"),
        ("/api", "*", "*"),
    ] {
        let mut parts = get(uri, &[("host", "a")]);
        forwarder(base).request(&mut parts, &peer(), 0).expect("valid");
        assert_eq!(parts.uri, expected, "{base} {uri}");
    }
}

#[test]
fn a_request_id_is_kept_if_sane_and_made_otherwise() {
    let long = "x".repeat(REQUEST_ID_BYTES_MAX + 1);
    for (sent, expected) in [
        (Some("abc-1"), "abc-1"),
        (Some("a b"), "00000000deadbeef"),
        (Some("a\"b"), "00000000deadbeef"),
        (Some(""), "00000000deadbeef"),
        (Some(long.as_str()), "00000000deadbeef"),
        (None, "00000000deadbeef"),
    ] {
        let mut parts = get("/", &[("host", "a")]);
        if let Some(sent) = sent {
            parts.headers.insert(X_REQUEST_ID, HeaderValue::from_str(sent).expect("a value"));
        }
        let id = forwarder("").request(&mut parts, &peer(), 0xdead_beef).expect("valid");
        assert_eq!(id, expected);
        assert_eq!(parts.headers.get_all(X_REQUEST_ID).iter().count(), 1);
        assert_eq!(parts.headers[X_REQUEST_ID], expected);
    }
}

#[test]
fn an_origin_behind_a_v6_client_sees_it_quoted() {
    for (addr, forwarded_for, forwarded) in [
        ("192.0.2.1:1", "192.0.2.1", "for=192.0.2.1;proto=http"),
        ("[2001:db8::1]:1", "2001:db8::1", "for=\"[2001:db8::1]\";proto=http"),
        ("[::ffff:192.0.2.1]:1", "192.0.2.1", "for=192.0.2.1;proto=http"),
    ] {
        let mut parts = get("/", &[("host", "a")]);
        let peer = Peer::new(addr.parse().expect("an address"));
        forwarder("").request(&mut parts, &peer, 0).expect("valid");
        assert_eq!(parts.headers[X_FORWARDED_FOR], forwarded_for);
        assert_eq!(parts.headers[FORWARDED], forwarded);
    }
}

#[test]
fn a_request_loops_if_this_instance_stands_in_its_way() {
    let forwarder = forwarder("");
    for (via, looped) in [
        ("1.1 edge, 1.0 ultra-perf-0000000000000abc", true),
        ("1.1 ultra-perf-0000000000000abd", false),
    ] {
        let mut parts = get("/", &[("host", "a"), ("via", via)]);
        let refused = forwarder.request(&mut parts, &peer(), 0) == Err(Refusal::Loop);
        assert_eq!(refused, looped, "{via}");
    }
    let mut once = get("/", &[("host", "a")]);
    forwarder.request(&mut once, &peer(), 0).expect("the first time");
    assert_eq!(forwarder.request(&mut once, &peer(), 0), Err(Refusal::Loop));
}

#[test]
fn an_upgrade_passes_in_a_101_only() {
    for (status, kept) in [(101, true), (200, false), (426, false)] {
        let response = Response::builder()
            .status(status)
            .version(Version::HTTP_10)
            .header("connection", "upgrade")
            .header("upgrade", "websocket");
        let mut parts = response.body(()).expect("a response").into_parts().0;
        forwarder("").response(&mut parts);
        assert_eq!(parts.headers.contains_key(UPGRADE), kept, "{status}");
        assert_eq!(parts.version, Version::HTTP_11);
    }
}

#[tokio::test]
async fn a_problem_is_json_whatever_its_detail() {
    let detail = "a \"quoted\" \\ and\nbroken\u{1} – line";
    let response = problem(StatusCode::BAD_GATEWAY, detail);
    assert_eq!(response.status(), 502);
    assert_eq!(response.headers()[CONTENT_TYPE], "application/problem+json");
    let body = response.into_body().collect().await.expect("a body").to_bytes();
    let json: serde_json::Value = serde_json::from_slice(&body).expect("json");
    assert_eq!(json["detail"], detail);
    assert_eq!(json["title"], "Bad Gateway");
    assert_eq!(json["status"], 502);
}

fn any_fields() -> impl Strategy<Value = Vec<(String, Vec<u8>)>> {
    let name = prop_oneof![
        prop::sample::select(vec![
            "host",
            "connection",
            "upgrade",
            "te",
            "via",
            "cookie",
            "expect",
            "forwarded",
            "x-forwarded-for",
            "x-forwarded-x",
            "x-request-id",
            "transfer-encoding",
            "content-length",
        ])
        .prop_map(str::to_owned),
        "[a-z-]{1,12}",
    ];
    let value = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..24),
        "[a-zA-Z0-9:,@ /.-]{0,24}".prop_map(String::into_bytes),
    ];
    prop::collection::vec((name, value), 0..12)
}

proptest! {
    #[test]
    fn whatever_passes_has_one_host_an_origin_form_and_nothing_for_one_hop(
        uri in prop_oneof!["/[!-~]{0,20}", "http://[a-z@:0-9.]{1,10}/[a-z?]{0,5}", "[!-~]{1,20}"],
        pairs in any_fields(),
        version in prop::sample::select(vec![Version::HTTP_10, Version::HTTP_11, Version::HTTP_2]),
        base in prop::sample::select(vec!["", "/api"]),
        random in any::<u64>(),
    ) {
        let Ok(uri) = uri.parse::<Uri>() else { return Ok(()) };
        let mut parts = get("/", &[]);
        parts.uri = uri;
        parts.version = version;
        for (name, value) in &pairs {
            if let Ok(value) = HeaderValue::from_bytes(value) {
                let name = HeaderName::from_bytes(name.as_bytes()).expect("a name");
                parts.headers.append(name, value);
            }
        }
        if normalize(&mut parts).is_err() {
            return Ok(());
        }
        if forwarder(base).request(&mut parts, &peer(), random).is_err() {
            return Ok(());
        }
        let headers = &parts.headers;
        prop_assert_eq!(headers.get_all(HOST).iter().count(), 1);
        prop_assert!(is_authority(headers[HOST].as_bytes()));
        prop_assert!(parts.uri.authority().is_none());
        prop_assert!(parts.uri.path().starts_with('/'));
        prop_assert_eq!(headers.get_all(X_FORWARDED_FOR).iter().count(), 1);
        prop_assert_eq!(&headers[X_FORWARDED_FOR], "192.0.2.1");
        prop_assert!(is_sane_id(headers[X_REQUEST_ID].as_bytes()));
        for name in ["te", "transfer-encoding", "keep-alive", "expect"] {
            prop_assert!(!headers.contains_key(name));
        }
        prop_assert_eq!(headers.contains_key(CONNECTION), headers.contains_key(UPGRADE));
    }
}
