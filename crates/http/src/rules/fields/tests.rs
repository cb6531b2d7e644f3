//! Which fields a proxy takes off.

use proptest::prelude::*;

use super::*;
use crate::rules::testing::headers;

/// Removes and returns the names that stay.
fn left(text: &str) -> Vec<String> {
    let mut map = headers(text);
    remove_hop_by_hop(&mut map);
    map.keys().map(|name| name.as_str().to_owned()).collect()
}

/// RFC 9110 section 7.6.1.
#[test]
fn connection_bound_fields_and_those_that_connection_names_go() {
    assert_eq!(
        left(
            "connection: close, X-One|connection: x-two|x-one: 1|x-two: 2|x-three: 3|\
            keep-alive: timeout=5|te: trailers|trailer: x|transfer-encoding: chunked|upgrade: h2c|\
            proxy-connection: close|proxy-authenticate: a|proxy-authorization: b|\
            proxy-authentication-info: c|http2-settings: d"
        ),
        ["x-three"]
    );
    assert!(is_hop_by_hop(&header::TE) && !is_hop_by_hop(&header::VARY));
}

#[test]
fn connection_cannot_remove_what_decides_about_caching_and_framing() {
    for name in END_TO_END {
        let name = name.as_str();
        assert_eq!(
            left(&format!("connection: {name}, \u{1f}x|{name}: 1").replace('\u{1f}', "")),
            [name]
        );
    }
}

#[test]
fn a_field_is_forwarded_exactly_if_it_survives_the_removal() {
    let map = headers("connection: close, X-One|connection: vary|x-one: 1|x-two: 2|te: a|vary: b");
    let mut left = map.clone();
    remove_hop_by_hop(&mut left);
    for name in map.keys() {
        assert_eq!(is_forwarded(name, &map), left.contains_key(name), "{name}");
    }
}

#[test]
fn dates_survive_a_round_trip_and_garbage_is_none() {
    for seconds in [0, 784_111_777, 1_700_000_000, 253_402_300_799] {
        assert_eq!(parse_date(&format_date(seconds)), Some(seconds));
    }
    assert_eq!(parse_date(&format_date(u64::MAX)), Some(253_402_300_799));
    for text in ["", "0", "-1", "Mon, 32 Foo 2020 00:00:00 GMT", "Sun, 06 Nov 1960 08:49:37 GMT"] {
        assert_eq!(parse_date(&HeaderValue::from_static(text)), None, "{text}");
    }
    // The obsolete forms of RFC 9110 section 5.6.7.
    for text in ["Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"] {
        assert_eq!(parse_date(&HeaderValue::from_static(text)), Some(784_111_777), "{text}");
    }
}

proptest! {
    #[test]
    fn no_value_makes_a_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
        if let Ok(value) = HeaderValue::from_bytes(&bytes) {
            let _date = parse_date(&value);
            let mut map = HeaderMap::new();
            map.insert(header::CONNECTION, value);
            remove_hop_by_hop(&mut map);
            prop_assert!(map.is_empty());
        }
    }
}
