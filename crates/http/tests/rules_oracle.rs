//! The rules against `http-cache-semantics`, an independent reading of the same RFCs.
//!
//! Random heads go through both. Where the two may differ, and why ours is right or safer:
//!
//! | what | the oracle | ours |
//! |---|---|---|
//! | `Set-Cookie` | stored, stale unless `public` | never stored by default |
//! | `Vary: *` | stored, never matches | not stored |
//! | stale on arrival without a validator | stored | not stored, it is of no use |
//! | `proxy-revalidate`, policy or own windows | lifetime zero | lifetime counts, never stale (5.2.2.8) |
//! | `private="x"`, `no-cache="x"` | as without the list | the listed fields are left out |
//! | `must-understand` | unknown | RFC 9111 section 5.2.2.3 |
//! | status that it does not know, with a lifetime | refused | stored (section 3: any final status) |
//! | `no-cache` or `max-stale` on `immutable` | a day of freshness | unknown to RFC 9111, no effect |
//! | contradicting duplicates | the first one and `must-revalidate` | the most restrictive value |
//! | `Date` | no apparent age | section 4.2.3 |
//! | the time that the origin took | ignored | section 4.2.3 |
//! | POST with a lifetime | stored | not stored (a MAY) |
//! | staleness equal to `max-stale` | refused | allowed ("no more than", 5.2.1.2) |
//! | `max-stale` on `s-maxage` or `proxy-revalidate` | allowed | forbidden (5.2.2.10) |
//! | heuristic longer than a day | unlimited | `Policy::heuristic_max` |
//! | heuristic for other statuses | any storable one | section 4.2.2 |
//! | broken numbers in a request | ignored | zero |
//! | `max-age` without a number | as if absent | zero (4.2.1: invalid means stale) |
//! | `Pragma` beside `Cache-Control` in a request | counts | ignored (5.4) |
//! | RFC 5861 and RFC 9213 | unknown | implemented |
//!
//! The generator stays off what is unknown to the oracle; [`differs`] names the rest, so that a
//! difference of any other kind fails.

use std::time::{Duration, UNIX_EPOCH};

use http::header::{HeaderName, HeaderValue};
use http::{HeaderMap, Request, Response};
use http_cache_semantics::{BeforeRequest, CacheOptions, CachePolicy};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use ultra_perf_http::rules::{
    CacheControl, Condition, Decision, Policy, RequestHead, ResponseHead, Storable, Times, Vary,
    condition, evaluate, store,
};

/// 2023-11-14 22:13:20 UTC; a whole second, because the oracle reads dates as such.
const NOW_MS: u64 = 1_700_000_000_000;

#[derive(Clone, Debug)]
struct Heads {
    request: HeaderMap,
    status: u16,
    response: HeaderMap,
    later: HeaderMap,
    at_s: u64,
}

fn http_date(offset_s: i64) -> String {
    let seconds = (NOW_MS / 1000).saturating_add_signed(offset_s);
    httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(seconds))
}

fn map(fields: Vec<(&'static str, String)>) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in fields {
        let value = HeaderValue::try_from(value).expect("printable");
        map.append(HeaderName::from_static(name), value);
    }
    map
}

/// A subset of directives, each at most once, in any order; one or two lines.
fn control(all: Vec<&'static str>) -> impl Strategy<Value = Vec<(&'static str, String)>> {
    (subsequence(all, 0..4).prop_shuffle(), 0_usize..4).prop_map(|(chosen, split)| {
        let (first, second) = chosen.split_at(split.min(chosen.len()));
        [first, second]
            .into_iter()
            .filter(|line| !line.is_empty())
            .map(|line| ("cache-control", line.join(", ")))
            .collect()
    })
}

fn maybe(
    name: &'static str,
    values: impl Strategy<Value = String>,
) -> impl Strategy<Value = Vec<(&'static str, String)>> {
    proptest::option::weighted(0.4, values)
        .prop_map(move |value| value.map(|value| (name, value)).into_iter().collect())
}

fn text(values: &'static [&'static str]) -> impl Strategy<Value = String> {
    select(values).prop_map(str::to_owned)
}

fn any_date(range: std::ops::Range<i64>) -> impl Strategy<Value = String> {
    prop_oneof![
        8 => range.prop_map(http_date),
        1 => text(&["0", "-1", "", "tomorrow"]),
    ]
}

const REQUEST: [&str; 4] = ["no-store", "no-cache", "max-age=5", "x"];
const LATER: [&str; 10] = [
    "no-cache",
    "no-store",
    "max-age=0",
    "max-age=5",
    "max-age=50",
    "min-fresh=3",
    "min-fresh=30",
    "max-stale",
    "max-stale=20",
    "x=\"y\"",
];
const RESPONSE: [&str; 18] = [
    "no-store",
    "no-cache",
    "private",
    "public",
    "must-revalidate",
    "proxy-revalidate",
    "max-age=0",
    "max-age=7",
    "max-age=60",
    "max-age=\"30\"",
    "max-age=x",
    "s-maxage=0",
    "s-maxage=10",
    "s-maxage=40",
    "immutable",
    "x",
    "x=9",
    "no-transform",
];

fn heads() -> impl Strategy<Value = Heads> {
    let request = (
        control(REQUEST.to_vec()),
        maybe("authorization", text(&["Basic x"])),
        maybe("x-one", text(&["1", "2"])),
    );
    let response = (
        control(RESPONSE.to_vec()),
        maybe("expires", any_date(-20..60)),
        maybe("date", (0_i64..2).prop_map(http_date)),
        maybe("last-modified", any_date(-2000..50)),
        maybe("age", text(&["0", "3", "30", "x"])),
        maybe("etag", text(&["\"a\"", "W/\"a\""])),
        maybe("vary", text(&["x-one", "X-One, x-two", "*", ""])),
        maybe("pragma", text(&["no-cache", "x"])),
        maybe("set-cookie", text(&["a=b"])),
    );
    let later = (
        control(LATER.to_vec()),
        maybe("pragma", text(&["no-cache", "x"])),
        maybe("x-one", text(&["1", "2"])),
        maybe("x-two", text(&["1"])),
    );
    let status = prop_oneof![
        6 => Just(200_u16),
        3 => select(&[203, 204, 206, 299, 301, 302, 304, 308, 400, 404, 410, 500, 501, 503][..]),
    ];
    (request, response, later, status, 0_u64..100).prop_map(
        |(request, response, later, status, at_s)| Heads {
            request: map([request.0, request.1, request.2].concat()),
            status,
            response: map([
                response.0, response.1, response.2, response.3, response.4, response.5, response.6,
                response.7, response.8,
            ]
            .concat()),
            later: map([later.0, later.1, later.2, later.3].concat()),
            at_s,
        },
    )
}

fn request(headers: &HeaderMap) -> Request<()> {
    let mut request = Request::get("http://example.com/a").body(()).expect("valid");
    *request.headers_mut() = headers.clone();
    request
}

struct Both {
    ours: Option<Storable>,
    theirs: CachePolicy,
}

fn both(heads: &Heads) -> Both {
    let mut response = Response::builder().status(heads.status).body(()).expect("valid");
    *response.headers_mut() = heads.response.clone();
    let request = request(&heads.request);
    let times = Times { request_ms: NOW_MS, response_ms: NOW_MS };
    let ours = store(
        &Policy::default(),
        RequestHead::from(&request),
        ResponseHead::from(&response),
        times,
    );
    let options = CacheOptions { ignore_cargo_cult: false, ..CacheOptions::default() };
    let received = UNIX_EPOCH + Duration::from_millis(NOW_MS);
    Both {
        ours: ours.ok(),
        theirs: CachePolicy::new_options(&request, &response, received, options),
    }
}

/// The directives of a response, and which of the listed differences it runs into.
struct Differences {
    control: CacheControl,
    /// A directive that appears with several values.
    duplicates: bool,
    immutable: bool,
    /// No status that the oracle stores.
    unknown_status: bool,
    /// No status that allows a heuristic lifetime.
    no_heuristic: bool,
    set_cookie: bool,
    vary_star: bool,
    explicit: bool,
}

fn differs(heads: &Heads) -> Differences {
    let control = CacheControl::of_response(&Policy::default(), &heads.response);
    let all: Vec<_> = heads
        .response
        .get_all("cache-control")
        .iter()
        .flat_map(|line| line.to_str().expect("ASCII").split(", "))
        .collect();
    let count = |name: &str| all.iter().filter(|it| it.split('=').next() == Some(name)).count();
    Differences {
        duplicates: count("max-age") > 1 || count("s-maxage") > 1 || count("x") > 1,
        immutable: all.contains(&"immutable"),
        unknown_status: matches!(heads.status, 299 | 400 | 500 | 503),
        no_heuristic: matches!(heads.status, 302),
        set_cookie: heads.response.contains_key("set-cookie"),
        vary_star: heads.response.get("vary").is_some_and(|vary| vary == "*"),
        explicit: control.max_age_s.is_some()
            || control.s_maxage_s.is_some()
            || heads.response.contains_key("expires"),
        control,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, max_global_rejects: 100_000, ..ProptestConfig::default() })]

    #[test]
    fn both_store_the_same_answers(heads in heads()) {
        let known = differs(&heads);
        prop_assume!(!known.unknown_status && !known.set_cookie && !known.vary_star);
        let Both { ours, theirs } = both(&heads);
        let useful = theirs.time_to_live(UNIX_EPOCH + Duration::from_millis(NOW_MS)) > Duration::ZERO
            || heads.response.contains_key("etag")
            || heads.response.get("last-modified").is_some_and(
                |date| httpdate::parse_http_date(date.to_str().expect("ASCII")).is_ok());
        if ours.is_some() {
            prop_assert!(theirs.is_storable(), "only ours stores");
        } else if useful
            && !known.immutable
            && !known.duplicates
            && (known.explicit || !known.no_heuristic)
        {
            prop_assert!(!theirs.is_storable(), "only theirs stores");
        }
    }

    #[test]
    fn both_find_the_same_age_and_lifetime(heads in heads()) {
        let known = differs(&heads);
        prop_assume!(!known.duplicates && !known.immutable && !known.set_cookie);
        prop_assume!(!known.control.proxy_revalidate);
        prop_assume!(known.explicit || !known.no_heuristic || known.control.public);
        let Both { ours: Some(ours), theirs } = both(&heads) else { return Ok(()) };
        prop_assume!(theirs.is_storable()); // else they report a lifetime of zero
        let at_ms = NOW_MS + heads.at_s * 1000;
        let at = UNIX_EPOCH + Duration::from_millis(at_ms);
        let age = ours.freshness.age(at_ms);
        prop_assert_eq!(age.age_s, theirs.age(at).as_secs());
        let left_s = u64::try_from(age.ttl_s).unwrap_or(0);
        prop_assert_eq!(left_s, theirs.time_to_live(at).as_secs());
        prop_assert_eq!(ours.freshness.is_fresh(at_ms), !theirs.is_stale(at));
    }

    #[test]
    fn both_use_an_answer_for_the_same_requests(heads in heads()) {
        let known = differs(&heads);
        prop_assume!(!known.duplicates && !known.immutable && !known.set_cookie);
        prop_assume!(!known.control.proxy_revalidate);
        prop_assume!(known.explicit || !known.no_heuristic || known.control.public);
        let Both { ours: Some(ours), theirs } = both(&heads) else { return Ok(()) };
        prop_assume!(theirs.is_storable());

        let later = request(&heads.later);
        let wish = CacheControl::of_request(later.headers()).unwrap_or_default();
        let at_ms = NOW_MS + heads.at_s * 1000;
        let age = ours.freshness.age(at_ms);
        prop_assume!(!heads.later.contains_key("pragma") || !heads.later.contains_key("cache-control"));
        // The three differences about `max-stale`, and repeated directives of the request.
        prop_assume!(wish.max_stale_s.is_none() || known.control.s_maxage_s.is_none());
        prop_assume!(wish.max_stale_s.is_none() || !known.control.no_cache);
        prop_assume!(wish.max_stale_s.is_none_or(|limit_s| -age.ttl_s != i64::from(limit_s)));
        for name in ["max-age", "min-fresh", "max-stale"] {
            let values = heads.later.get_all("cache-control").iter();
            let lines = values.map(|line| line.to_str().expect("ASCII")).collect::<Vec<_>>().join(", ");
            prop_assume!(lines.matches(name).count() <= 1);
        }

        let key = |vary: &Vary, headers: &HeaderMap| {
            let mut key = Vec::new();
            vary.write_key(headers, &mut key);
            key
        };
        let same_variant = key(&ours.vary, &heads.request) == key(&ours.vary, &heads.later);
        let decision = evaluate(RequestHead::from(&later), &ours.freshness, at_ms);
        let used = same_variant && matches!(decision, Decision::Fresh(_) | Decision::Stale(_));
        let theirs = theirs.before_request(&later, UNIX_EPOCH + Duration::from_millis(at_ms));
        prop_assert_eq!(used, matches!(theirs, BeforeRequest::Fresh(_)), "{:?}", decision);
    }

    /// The oracle does not answer conditions; a naive reading of well-formed lists does.
    #[test]
    fn if_none_match_agrees_with_a_naive_reading(
        tag in "(W/)?\"[ab]\"", asked in vec("(W/)?\"[ab]{1,2}\"", 1..4),
    ) {
        let strong = |tag: &str| tag.trim_start_matches("W/").to_owned();
        let expected = asked.iter().any(|it| strong(it) == strong(&tag));
        let heads = Heads {
            request: HeaderMap::new(),
            status: 200,
            response: map(vec![("cache-control", "max-age=9".into()), ("etag", tag)]),
            later: map(vec![("if-none-match", asked.join(", "))]),
            at_s: 0,
        };
        let ours = both(&heads).ours.expect("storable");
        let condition = condition(RequestHead::from(&request(&heads.later)), &ours.head);
        prop_assert_eq!(condition == Condition::NotModified, expected);
    }
}

/// Stores one answer and returns whether we and whether the oracle keep it.
fn stored_by(status: u16, text: &[(&'static str, &str)]) -> (bool, bool) {
    let response = map(text.iter().map(|(name, value)| (*name, (*value).to_owned())).collect());
    let both = both(&Heads {
        request: HeaderMap::new(),
        status,
        response,
        later: HeaderMap::new(),
        at_s: 0,
    });
    (both.ours.is_some(), both.theirs.is_storable())
}

/// Holds the table above to what both do today, so that a new release of the oracle shows.
#[test]
fn the_listed_differences_in_storing_are_still_there() {
    for (status, fields, expected) in [
        (200, [("cache-control", "public, max-age=9"), ("set-cookie", "a=b")], (false, true)),
        (200, [("cache-control", "max-age=9"), ("vary", "*")], (false, true)),
        (200, [("cache-control", "max-age=0"), ("x-a", "no validator")], (false, true)),
        (200, [("cache-control", "max-age=9, private=\"x-a\""), ("x-a", "1")], (true, false)),
        (
            200,
            [("cache-control", "max-age=9, must-understand, no-store"), ("x-a", "1")],
            (true, false),
        ),
        (503, [("cache-control", "max-age=9"), ("x-a", "1")], (true, false)),
        (200, [("cache-control", "private"), ("cdn-cache-control", "max-age=9")], (true, false)),
    ] {
        assert_eq!(stored_by(status, &fields), expected, "{status} {fields:?}");
    }
}
