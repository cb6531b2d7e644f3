//! The byte form: round trips, and what becomes of damaged bytes.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::rules::testing::stored;

fn encoded(head: &StoredHead) -> Vec<u8> {
    let mut bytes = Vec::new();
    head.encode(&mut bytes);
    bytes
}

#[test]
fn a_head_survives_a_round_trip_with_repeated_fields_in_order() {
    let head = stored(404, "vary: a|vary: b|x-custom: |etag: \"\u{e9}\"|link: <a>|link: <b>");
    assert_eq!(StoredHead::decode(&encoded(&head)), Some(head));
}

#[test]
fn every_truncation_and_every_extension_is_refused() {
    let bytes = encoded(&stored(200, "content-type: text/plain|x-a: b"));
    for len in 0..bytes.len() {
        assert_eq!(StoredHead::decode(&bytes[..len]), None, "{len}");
    }
    assert_eq!(StoredHead::decode(&[&bytes[..], &[0]].concat()), None);
}

#[test]
fn another_version_is_refused() {
    let mut bytes = encoded(&stored(200, ""));
    bytes[0] += 1;
    assert_eq!(StoredHead::decode(&bytes), None);
}

#[test]
fn counts_and_lengths_beyond_the_input_are_refused() {
    let mut bytes = encoded(&stored(200, "x-a: b"));
    bytes[19..21].copy_from_slice(&u16::MAX.to_le_bytes());
    assert_eq!(StoredHead::decode(&bytes), None);
    let mut bytes = encoded(&stored(200, "x-a: b"));
    bytes[23..27].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(StoredHead::decode(&bytes), None);
    // As many fields as the map can hold and more, all of the shortest form.
    let mut bytes = encoded(&stored(200, ""));
    bytes[19..21].copy_from_slice(&u16::MAX.to_le_bytes());
    for index in 0..u32::from(u16::MAX) {
        bytes.extend_from_slice(&[8, 0, 0, 0, 0, 0]);
        bytes.extend_from_slice(format!("{index:08x}").as_bytes());
    }
    assert_eq!(StoredHead::decode(&bytes), None);
}

fn any_head() -> impl Strategy<Value = StoredHead> {
    let field = ("[a-z-]{1,20}", vec(any::<u8>(), 0..40));
    (100_u16..1000, vec(field, 0..20), any::<u64>(), any::<u64>()).prop_map(
        |(status, fields, request_ms, response_ms)| {
            let mut headers = HeaderMap::new();
            for (name, value) in fields {
                if let Ok(value) = HeaderValue::from_bytes(&value) {
                    headers.append(HeaderName::try_from(name).expect("a token"), value);
                }
            }
            StoredHead {
                status: StatusCode::from_u16(status).expect("in range"),
                headers,
                times: Times { request_ms, response_ms },
            }
        },
    )
}

proptest! {
    #[test]
    fn any_head_survives_a_round_trip(head in any_head()) {
        prop_assert_eq!(StoredHead::decode(&encoded(&head)), Some(head));
    }

    #[test]
    fn changed_bytes_never_panic_and_what_is_read_can_be_written(
        head in any_head(),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = encoded(&head);
        for (index, byte) in changes {
            let at = index.index(bytes.len());
            bytes[at] = byte;
        }
        if let Some(read) = StoredHead::decode(&bytes) {
            prop_assert_eq!(StoredHead::decode(&encoded(&read)), Some(read));
        }
    }

    #[test]
    fn random_bytes_never_panic(mut bytes in vec(any::<u8>(), 0..200)) {
        let _head = StoredHead::decode(&bytes);
        if let Some(first) = bytes.first_mut() {
            *first = VERSION;
        }
        let _head = StoredHead::decode(&bytes);
    }
}
