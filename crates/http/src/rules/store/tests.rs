//! What is stored, what is refused and why, and in which form.

use NotStored::{
    Authorization, Method as NotGet, NoStore, NotCacheable, PartialRequest, Private,
    RequestNoStore, SetCookie, Status, Useless, VaryStar,
};
use proptest::prelude::*;

use super::*;
use crate::rules::testing::{NOW_MS, date, get, headers};

const TIMES: Times = Times { request_ms: NOW_MS, response_ms: NOW_MS };

fn try_store(request: &str, status: u16, response: &str) -> Result<Storable, NotStored> {
    let status = StatusCode::from_u16(status).expect("a status");
    let response = headers(response);
    store(
        &Policy::default(),
        get(&headers(request)),
        ResponseHead { status, headers: &response },
        TIMES,
    )
}

fn stored_fields(response: &str) -> Vec<String> {
    let storable = try_store("", 200, response).expect("storable");
    storable.head.headers.keys().map(|name| name.as_str().to_owned()).collect()
}

/// RFC 9111 section 3.
#[test]
fn answers_are_stored_or_refused_by_the_rules_of_a_shared_cache() {
    let public = "cache-control: max-age=9";
    for (request, status, response, refused) in [
        // Freshness, explicit and heuristic.
        ("", 200, public, None),
        ("", 200, "cache-control: s-maxage=9", None),
        ("", 200, "expires: NOW+9", None),
        ("", 200, "last-modified: NOW-1000", None),
        ("", 200, "etag: \"a\"", None),
        ("", 200, "cache-control: no-cache|etag: \"a\"", None),
        ("", 200, "cache-control: max-age=0, stale-while-revalidate=9", None),
        ("", 200, "", Some(Useless)),
        ("", 200, "cache-control: max-age=0", Some(Useless)),
        ("", 200, "cache-control: no-cache", Some(Useless)),
        ("", 200, "expires: 0", Some(Useless)),
        ("", 200, "last-modified: yesterday", Some(Useless)),
        ("", 200, "cache-control: max-age=9|age: 9", Some(Useless)),
        ("", 200, "pragma: no-cache|expires: NOW+9", Some(Useless)),
        // Directives.
        ("", 200, "cache-control: no-store, max-age=9", Some(NoStore)),
        ("", 200, "cache-control: private, max-age=9", Some(Private)),
        ("", 200, "cache-control: private, public, max-age=9", Some(Private)),
        ("", 200, "cache-control: private=\"x\", max-age=9", None),
        ("cache-control: no-store", 200, public, Some(RequestNoStore)),
        ("cache-control: no-cache", 200, public, None),
        // Status.
        ("", 206, public, Some(Status)),
        ("", 304, public, Some(Status)),
        ("", 100, public, Some(Status)),
        ("", 101, public, Some(Status)),
        ("", 600, public, Some(Status)),
        ("", 299, public, None),
        ("", 404, "last-modified: NOW-1000", None),
        ("", 302, public, None),
        ("", 302, "expires: NOW+9", None),
        ("", 302, "cache-control: public|last-modified: NOW-1000", None),
        ("", 302, "last-modified: NOW-1000|etag: \"a\"", Some(NotCacheable)),
        ("", 500, "etag: \"a\"", Some(NotCacheable)),
        ("", 503, public, None),
        // Section 5.2.2.3.
        ("", 200, "cache-control: must-understand, no-store, max-age=9", None),
        ("", 299, "cache-control: must-understand, max-age=9", Some(Status)),
        ("", 299, "cache-control: must-understand, no-store, max-age=9", Some(Status)),
        // Section 3.5.
        ("authorization: x", 200, public, Some(Authorization)),
        ("authorization: x", 200, "expires: NOW+9", Some(Authorization)),
        ("authorization: x", 200, "cache-control: max-age=9, public", None),
        ("authorization: x", 200, "cache-control: max-age=9, must-revalidate", None),
        ("authorization: x", 200, "cache-control: s-maxage=9", None),
        (
            "authorization: x",
            200,
            "cache-control: max-age=9, proxy-revalidate",
            Some(Authorization),
        ),
        ("cookie: x", 200, public, None),
        // Cookies, and the lists that take them out.
        ("", 200, "cache-control: public, max-age=9|set-cookie: a=b", Some(SetCookie)),
        ("", 200, "cache-control: public, max-age=9|set-cookie2: a=b", Some(SetCookie)),
        ("", 200, "cache-control: max-age=9, no-cache=\"set-cookie\"|set-cookie: a=b", None),
        ("", 200, "cache-control: max-age=9, private=Set-Cookie|set-cookie: a=b", None),
        // Variants, ranges, preconditions.
        ("", 200, "cache-control: max-age=9|vary: accept, *", Some(VaryStar)),
        ("", 200, "cache-control: max-age=9|vary: a b", Some(VaryStar)),
        ("", 200, "cache-control: max-age=9|vary: accept", None),
        ("range: bytes=0-1", 200, public, Some(PartialRequest)),
        ("range: bytes=9-", 416, public, Some(PartialRequest)),
        ("if-match: \"a\"", 412, public, Some(PartialRequest)),
        ("if-none-match: \"a\"", 200, public, None),
        // RFC 9213.
        ("", 200, "cache-control: no-store|cdn-cache-control: max-age=9", None),
        ("", 200, "cache-control: no-store|cdn-cache-control: max-age = 9", Some(NoStore)),
        ("", 200, "cache-control: max-age=9|cdn-cache-control: private", Some(Private)),
        ("", 302, "expires: NOW+9|cdn-cache-control: stale-if-error=9", Some(NotCacheable)),
        (
            "authorization: x",
            200,
            "cache-control: public|cdn-cache-control: max-age=9",
            Some(Authorization),
        ),
    ] {
        let got = try_store(request, status, response).err();
        assert_eq!(got, refused, "{request} | {status} {response}");
    }
}

#[test]
fn only_answers_to_get_are_stored() {
    let (none, response) = (HeaderMap::new(), headers("cache-control: max-age=9"));
    for method in [Method::HEAD, Method::POST, Method::OPTIONS] {
        let request = RequestHead { method: &method, headers: &none };
        let response = ResponseHead { status: StatusCode::OK, headers: &response };
        assert_eq!(store(&Policy::default(), request, response, TIMES), Err(NotGet));
    }
}

#[test]
fn cookies_are_stored_where_the_policy_says_so() {
    let policy = Policy { store_set_cookie: true, ..Policy::default() };
    let response = headers("cache-control: max-age=9|set-cookie: a=b");
    let response = ResponseHead { status: StatusCode::OK, headers: &response };
    let storable = store(&policy, get(&HeaderMap::new()), response, TIMES).expect("allowed");
    assert_eq!(storable.head.headers["set-cookie"], "a=b");
}

/// RFC 9111 section 3.1.
#[test]
fn connection_bound_and_listed_fields_are_not_stored() {
    let fields = "cache-control: max-age=9, private=\"x-a\", no-cache=\"set-cookie, x-b\"|date: NOW|\
        x-a: 1|x-b: 2|x-c: 3|set-cookie: a=b|connection: x-d|x-d: 4|transfer-encoding: chunked|\
        content-length: 5";
    assert_eq!(stored_fields(fields), ["cache-control", "date", "x-c", "content-length"]);
}

#[test]
fn what_the_rules_read_again_stays_whatever_the_lists_say() {
    let fields = "cache-control: max-age=9, private=\"cache-control, vary\"|date: NOW|vary: x";
    assert_eq!(stored_fields(fields), ["cache-control", "date", "vary"]);
}

/// RFC 9110 section 6.6.1.
#[test]
fn a_missing_or_broken_date_becomes_the_time_of_arrival() {
    for text in ["", "date: today"] {
        let text = format!("cache-control: max-age=9|{text}");
        let storable = try_store("", 200, &text).expect("storable");
        assert_eq!(storable.head.headers["date"], date(0).as_str());
    }
}

#[test]
fn what_is_stored_judges_itself_the_same_after_a_round_trip() {
    for text in [
        "cache-control: max-age=9, no-cache=\"x-a\", stale-if-error=5|x-a: 1|age: 3",
        "last-modified: NOW-1000",
        "cdn-cache-control: max-age=7|expires: NOW+99|vary: accept-encoding",
    ] {
        let storable = try_store("", 200, text).expect("storable");
        let mut bytes = Vec::new();
        storable.head.encode(&mut bytes);
        let head = StoredHead::decode(&bytes).expect("just encoded");
        assert_eq!(head.freshness(&Policy::default()), storable.freshness, "{text}");
        assert_eq!(Vary::of(&head.headers), Some(storable.vary), "{text}");
    }
}

#[test]
fn every_reason_is_a_word_and_a_sentence_of_its_own() {
    let reasons = [
        NotGet,
        PartialRequest,
        RequestNoStore,
        Status,
        NoStore,
        Private,
        Authorization,
        SetCookie,
        VaryStar,
        NotCacheable,
        Useless,
    ];
    let words: std::collections::HashSet<_> =
        reasons.iter().flat_map(|it| [it.as_str().to_owned(), it.to_string()]).collect();
    assert_eq!(words.len(), 2 * reasons.len());
}

proptest! {
    /// The bans hold in whatever company the directive comes.
    #[test]
    fn no_company_makes_a_forbidden_answer_storable(
        others in proptest::sample::subsequence(
            vec!["public", "max-age=60", "s-maxage=60", "must-revalidate", "stale-if-error=9", "x=\"y,z\"", "no-cache=\"a\""], 0..7),
        ban in proptest::sample::select(vec!["no-store", "private", "PRIVATE=\"\"", "No-Store=1"]),
        at in any::<prop::sample::Index>(),
        lines in any::<bool>(),
    ) {
        let mut all = others;
        all.insert(at.index(all.len() + 1), ban);
        let separator = if lines { "|cache-control: " } else { ", " };
        let text = format!("cache-control: {}|etag: \"a\"", all.join(separator));
        prop_assert!(try_store("", 200, &text).is_err(), "{}", text);
    }
}
