//! Heads between the hops: no panic, one reading of every request, and nothing of one hop goes on.
//!
//! The input is two messages: `METHOD target version` with the client's fields, and the status with the
//! origin's.
#![no_main]

use std::net::{Ipv6Addr, SocketAddr};

use http::header::{self, HeaderMap};
use http::{Request, Response, StatusCode, Version};
use libfuzzer_sys::fuzz_target;
use ultra_perf_fuzz::messages;
use ultra_perf_http::forward::{Forwarder, HostPolicy, Peer, normalize, wants_upgrade};
use ultra_perf_http::rules::is_hop_by_hop;

fuzz_target!(|input: &[u8]| {
    let mut messages = messages(input);
    let (asked, answered) =
        (messages.next().unwrap_or_default(), messages.next().unwrap_or_default());

    let mut response = Response::new(()).into_parts().0;
    response.status = answered.status(0);
    response.headers = answered.headers;
    let authority = "backend.example:8000".parse().expect("a valid authority");
    let forwarder = Forwarder::new(&authority, "/base", HostPolicy::Origin, 7);
    forwarder.response(&mut response);
    if response.status == StatusCode::SWITCHING_PROTOCOLS {
        response.headers.remove(header::CONNECTION);
        response.headers.remove(header::UPGRADE);
    }
    assert_end_to_end(&response.headers);

    let Ok(request) = Request::builder().method(asked.method(0)).uri(asked.word(1)).body(()) else {
        return;
    };
    let mut head = request.into_parts().0;
    head.version = match asked.word(2) {
        "HTTP/1.0" => Version::HTTP_10,
        "HTTP/2" => Version::HTTP_2,
        _ => Version::HTTP_11,
    };
    head.headers = asked.headers;
    if normalize(&mut head).is_err() {
        return;
    }
    assert!(head.uri.authority().is_none(), "{} is not in origin form", head.uri);
    let path = head.uri.path();
    assert!(path.starts_with('/') || path == "*", "{path:?} is no target for a request line");
    let hosts = head.headers.get_all(header::HOST).iter().count();
    assert!(hosts == 1 || (hosts == 0 && head.version == Version::HTTP_10), "{hosts} hosts");

    let before = (head.uri.clone(), head.headers.clone());
    normalize(&mut head).expect("what is normal stays so");
    assert_eq!((&head.uri, &head.headers), (&before.0, &before.1), "it is not normal yet");

    let peer = Peer::new(SocketAddr::from((Ipv6Addr::LOCALHOST, 9)));
    let Ok(id) = forwarder.request(&mut head, &peer, 42) else { return };
    assert!(head.uri.path() == "*" || head.uri.path().starts_with("/base"));
    assert!(!id.is_empty());
    for (name, value) in [
        (header::HOST.as_str(), "backend.example:8000"),
        ("x-forwarded-for", "::1"),
        ("x-forwarded-proto", "http"),
    ] {
        let lines: Vec<_> = head.headers.get_all(name).iter().collect();
        assert_eq!(lines, [value], "{name}");
    }
    assert!(!head.headers.contains_key("x-real-ip") && !head.headers.contains_key("proxy"));
    if wants_upgrade(&head.headers) {
        assert_eq!(head.headers.remove(header::UPGRADE).expect("asked above"), "websocket");
        assert_eq!(head.headers.remove(header::CONNECTION).expect("an upgrade has one"), "upgrade");
    }
    assert_end_to_end(&head.headers);

    let returned = &mut head;
    assert!(forwarder.request(returned, &peer, 42).is_err(), "a request may go in circles");
});

fn assert_end_to_end(headers: &HeaderMap) {
    let stray = headers.keys().find(|name| is_hop_by_hop(name));
    assert!(stray.is_none(), "{stray:?} belongs to one connection");
}
