//! `Cache-Control` out of arbitrary lines: nothing panics, and no line takes back what another said.
//!
//! The input is a line per field line. What holds for every input: more lines only restrict, the order
//! of lines does not matter, lines that hold no quote may be joined, and a plain `no-store` is seen
//! whatever stands around it.
#![no_main]

use http::{HeaderMap, HeaderName, HeaderValue};
use libfuzzer_sys::fuzz_target;
use ultra_perf_fuzz::plainly_says;
use ultra_perf_http::rules::{CacheControl, Policy};

fuzz_target!(|input: &[u8]| {
    let lines: Vec<HeaderValue> = input
        .split(|&byte| byte == b'\n')
        .filter_map(|line| HeaderValue::from_bytes(line).ok())
        .take(16)
        .collect();
    let all = CacheControl::parse(&lines);

    for split in 0..=lines.len() {
        let (first, second) = lines.split_at(split);
        assert_restricts(&CacheControl::parse(first), &all);
        assert_restricts(&CacheControl::parse(second), &all);
        let turned = CacheControl::parse(second.iter().chain(first));
        assert_eq!(ordered(turned), ordered(all.clone()), "the order of lines matters");
    }
    let twice = CacheControl::parse(lines.iter().chain(&lines));
    assert_eq!(ordered(twice), ordered(all.clone()), "saying it twice changes it");

    if lines.iter().all(|line| !line.as_bytes().contains(&b'"')) {
        let joined = lines.iter().map(HeaderValue::as_bytes).collect::<Vec<_>>().join(&b", "[..]);
        let joined = HeaderValue::from_bytes(&joined).expect("made of values");
        assert_eq!(CacheControl::parse([&joined]), all, "several lines are one list");
    }

    let mut headers = HeaderMap::new();
    for line in &lines {
        headers.append("cache-control", line.clone());
    }
    for (directive, seen) in [
        ("no-store", all.no_store),
        ("no-cache", all.no_cache),
        ("private", all.private),
        ("must-revalidate", all.must_revalidate),
        ("proxy-revalidate", all.proxy_revalidate),
        ("only-if-cached", all.only_if_cached),
    ] {
        assert!(seen || !plainly_says(&headers, "cache-control", directive), "lost {directive}");
    }

    // The same lines in a targeted field, which has a stricter grammar: all of it, or nothing.
    let policy = Policy::default();
    let targeted = HeaderName::from_static("cdn-cache-control");
    headers.insert("cache-control", HeaderValue::from_static("no-store"));
    for line in &lines {
        headers.append(&targeted, line.clone());
    }
    let chosen = CacheControl::of_response(&policy, &headers);
    assert!(chosen.targeted || chosen.no_store, "an invalid targeted field hides the plain one");
});

/// Field lists as sets.
fn ordered(mut control: CacheControl) -> CacheControl {
    for fields in [&mut control.no_cache_fields, &mut control.private_fields] {
        fields.sort_by(|a, b| a.as_str().cmp(b.as_str()));
        fields.dedup();
    }
    control
}

/// A part of the lines may not forbid more than all of them do.
fn assert_restricts(part: &CacheControl, all: &CacheControl) {
    let flags = |of: &CacheControl| {
        [
            of.no_store,
            of.no_cache,
            of.private,
            of.public,
            of.must_revalidate,
            of.proxy_revalidate,
            of.must_understand,
            of.only_if_cached,
        ]
    };
    for (part, all) in flags(part).into_iter().zip(flags(all)) {
        assert!(all || !part, "a word was taken back");
    }
    let limits = |of: &CacheControl| {
        [
            of.max_age_s,
            of.s_maxage_s,
            of.max_stale_s,
            of.stale_while_revalidate_s,
            of.stale_if_error_s,
            of.min_fresh_s.map(|seconds| u32::MAX - seconds),
        ]
    };
    for (part, all) in limits(part).into_iter().zip(limits(all)) {
        assert!(part.is_none_or(|part| all.is_some_and(|all| all <= part)), "a limit was raised");
    }
    let fields = |of: &CacheControl| [of.no_cache_fields.clone(), of.private_fields.clone()];
    for (part, all) in fields(part).into_iter().zip(fields(all)) {
        assert!(part.iter().all(|field| all.contains(field)), "a field was taken off a list");
    }
}
