//! Tables of `Cache-Control` values and what they mean.

use proptest::prelude::*;

use super::*;
use crate::rules::testing::headers;

fn of(value: &str) -> CacheControl {
    of_response(&format!("cache-control: {value}"))
}

fn of_response(text: &str) -> CacheControl {
    CacheControl::of_response(&Policy::default(), &headers(text))
}

fn names(fields: &[HeaderName]) -> Vec<&str> {
    fields.iter().map(HeaderName::as_str).collect()
}

#[test]
fn every_directive_is_read_in_any_case_and_spacing() {
    let all = of("No-Store,NO-CACHE ,\tprivate, public,must-revalidate , Proxy-Revalidate,\
        must-understand, only-if-cached, max-age=1, S-MaxAge=2, min-fresh=3, max-stale=4, \
        stale-while-revalidate=5, stale-if-error=6, immutable, x=\"y, z\", ,,");
    let expected = CacheControl {
        no_store: true,
        no_cache: true,
        private: true,
        public: true,
        must_revalidate: true,
        proxy_revalidate: true,
        must_understand: true,
        only_if_cached: true,
        max_age_s: Some(1),
        s_maxage_s: Some(2),
        min_fresh_s: Some(3),
        max_stale_s: Some(4),
        stale_while_revalidate_s: Some(5),
        stale_if_error_s: Some(6),
        ..CacheControl::default()
    };
    assert_eq!(all, expected);
}

/// RFC 9111 sections 1.2.2, 4.2.1 and 5.2.
#[test]
fn max_age_is_read_leniently_and_broken_numbers_are_zero() {
    for (value, expected) in [
        ("max-age=60", Some(60)),
        ("max-age=\"60\"", Some(60)),
        ("max-age = 60", Some(60)),
        ("max-age=007", Some(7)),
        ("max-age=2147483648", Some(DELTA_MAX_S)),
        ("max-age=99999999999999999999999", Some(DELTA_MAX_S)),
        ("max-age=-1", Some(0)),
        ("max-age=1.5", Some(0)),
        ("max-age=60s", Some(0)),
        ("max-age='60'", Some(0)),
        ("max-age=\"60", Some(0)),
        ("max-age=60=60", Some(0)),
        ("max-age=", Some(0)),
        ("max-age", Some(0)),
        ("x-max-age=60", None),
        ("x=\"max-age=60\"", None),
        ("x=\"a, max-age=60\"", None),
        ("x=\"a\\\", max-age=60\"", None),
        ("an-unknown-directive-with-a-long-name=max-age=60", None),
    ] {
        assert_eq!(of(value).max_age_s, expected, "{value}");
    }
}

#[test]
fn contradicting_duplicates_keep_the_most_restrictive_value() {
    for value in
        ["max-age=5, max-age=9", "max-age=9, max-age=5", "max-age=9|cache-control: max-age=5"]
    {
        assert_eq!(of(value).max_age_s, Some(5), "{value}");
    }
    assert_eq!(of("max-age=9, max-age=x").max_age_s, Some(0));
    assert_eq!(of("min-fresh=9, min-fresh=5").min_fresh_s, Some(9));
    assert_eq!(of("max-stale, max-stale=5").max_stale_s, Some(5));
    assert!(of("public, private").private);
}

#[test]
fn a_broken_quote_does_not_hide_what_follows() {
    for value in [
        "private=\"set-cookie, no-store",
        "x=\"a\"b\", no-store",
        "x\", no-store, y=\"",
        "x=\"a\\\", no-store",
    ] {
        assert!(of(value).no_store || of(value).no_cache, "{value}");
    }
    assert!(!of("x=\"a, no-store\"").no_store);
}

/// RFC 9111 sections 5.2.2.4 and 5.2.2.7: a list of fields narrows the ban to them.
#[test]
fn lists_of_fields_are_read_and_unreadable_ones_count_as_no_list() {
    let listed = of("no-cache=\"Set-Cookie , x-a\", private=x-b");
    assert_eq!(names(&listed.no_cache_fields), ["set-cookie", "x-a"]);
    assert_eq!(names(&listed.private_fields), ["x-b"]);
    assert!(!listed.no_cache && !listed.private);
    for value in
        ["private=\"\"", "private=", "private=\"a b\"", "private=\",\"", "private, private=\"a\""]
    {
        assert!(of(value).private, "{value}");
    }
}

#[test]
fn max_stale_without_a_limit_allows_any() {
    assert_eq!(of("max-stale").max_stale_s, Some(u32::MAX));
    assert_eq!(of("max-stale=x").max_stale_s, Some(0));
}

/// RFC 9111 section 5.4.
#[test]
fn pragma_counts_only_where_cache_control_is_absent() {
    let request = |text| CacheControl::of_request(&headers(text));
    assert!(request("pragma: x, No-Cache").is_some_and(|it| it.no_cache));
    assert_eq!(request("pragma: x"), None);
    assert_eq!(request("accept: x"), None);
    assert!(request("pragma: no-cache|cache-control: max-age=1").is_some_and(|it| !it.no_cache));
    assert!(of_response("pragma: no-cache").no_cache);
}

/// RFC 9213 section 2.
#[test]
fn a_valid_targeted_field_replaces_cache_control() {
    for (field, max_age_s, no_store) in [
        ("max-age=60", Some(60), false),
        (
            "max-age=60;x=\"y\";z, other=(a \"b\" 1.5;q);p, t=:aGk=:, d=@1, s=%\"%c3%a9\"",
            Some(60),
            false,
        ),
        ("no-store", None, true),
        ("no-store=?1", None, true),
        ("no-store=?0, max-age=1", Some(1), false),
        ("max-age=1, max-age=2", Some(2), false), // the last of equal keys
        ("max-age=\"60\"", Some(0), false),       // the wrong type
        ("max-age=6.5", Some(0), false),
        ("max-age=-5", Some(0), false),
        ("max-age=999999999999999", Some(DELTA_MAX_S), false),
        ("max-age=60|cdn-cache-control: s-maxage=5", Some(60), false), // lines are one list
    ] {
        let all = of_response(&format!("cache-control: no-cache|cdn-cache-control: {field}"));
        assert!(all.targeted, "{field}");
        assert!(!all.no_cache, "{field}");
        assert_eq!((all.max_age_s, all.no_store), (max_age_s, no_store), "{field}");
    }
}

#[test]
fn an_invalid_or_empty_targeted_field_is_as_if_absent() {
    for field in [
        "",
        " ",
        "max-age=60,",
        ",max-age=60",
        "Max-Age=60",
        "max-age=",
        "max-age =60",
        "max-age=1 max-age=2",
        "max-age=1234567890123456",
        "max-age=1.",
        "max-age=1.2345",
        "max-age=60, x=\"open",
        "x=\"bad\\escape\"",
        "x=(a b",
        "x=(a,b)",
        "x=:open",
        "x=?2",
        "x=@1.5",
        "x=%\"%C3\"",
        "x=%\"%c\"",
        "x;=1",
        "x; ;",
        "x=\u{e9}",
        "x=\"\u{e9}\"",
        "-",
        "max-age=-",
    ] {
        let all = of_response(&format!("cache-control: max-age=7|cdn-cache-control: {field}"));
        assert_eq!((all.max_age_s, all.targeted), (Some(7), false), "{field:?}");
    }
}

#[test]
fn targeted_fields_count_in_the_order_of_the_policy() {
    let all = of_response("cdn-cache-control: max-age=1|ultra-perf-cache-control: max-age=2");
    assert_eq!(all.max_age_s, Some(2));
    let all = of_response("cdn-cache-control: max-age=1|ultra-perf-cache-control: max-age=?");
    assert_eq!(all.max_age_s, Some(1));
}

#[test]
fn targeted_lists_of_fields_are_strings_and_other_types_are_no_list() {
    let listed = of_response("cdn-cache-control: private=\"set-cookie, x-a\", no-cache=x-b");
    assert_eq!(names(&listed.private_fields), ["set-cookie", "x-a"]);
    assert_eq!(names(&listed.no_cache_fields), ["x-b"]);
    assert!(of_response("cdn-cache-control: private=(\"x-a\")").private);
}

#[test]
fn many_unclosed_quotes_take_linear_time() {
    let value = "x=\"\\".repeat(50_000);
    let started = std::time::Instant::now();
    let _control = of(&value);
    // Quadratic behaviour would take minutes.
    assert!(started.elapsed().as_secs() < 10);
}

proptest! {
    #[test]
    fn an_unquoted_no_store_is_always_seen(
        before in "[a-z=0-9 ,]{0,20}", after in "[ -{}~]{0,20}",
    ) {
        let value = format!("{before}, no-store, {after}");
        prop_assert!(of(&value).no_store, "{}", value);
    }

    #[test]
    fn numbers_agree_with_a_naive_reading(digits in "[0-9]{1,30}") {
        let naive = digits.parse::<u128>().expect("30 digits fit").min(1 << 31);
        prop_assert_eq!(of(&format!("max-age={digits}")).max_age_s.map(u128::from), Some(naive));
    }
}
