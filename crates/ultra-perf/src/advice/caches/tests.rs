//! Each rule at its threshold and below, with its numbers, its action and what undoes it.

use serde_json::{Value, json};

use super::*;

const MIB: u64 = 1 << 20;

fn aims() -> Aims<'static> {
    Aims {
        hit_ratio: 0.8,
        queue_wait: Duration::from_millis(50),
        window: Duration::from_secs(600),
        score: None,
    }
}

/// A full cache of 64 MiB that hits seven of ten times.
fn users() -> CacheReading {
    CacheReading {
        name: "users".to_owned(),
        hits: 7_000.0,
        misses: 3_000.0,
        share: 0.5,
        loads: 3_000.0,
        capacity: 64 * MIB,
        by_bytes: true,
        held: 64 * MIB,
        entry_bytes: Some(1.0),
        policy: Some("s3-fifo"),
        ttl: Some(Duration::from_secs(60)),
        room_bytes: Some(1_024 * MIB),
        memory_used: Some(0.5),
        ..CacheReading::default()
    }
}

/// A curve through these hit ratios at half, all, one and a half, two, four and eight times of it.
fn curve(at: [f64; 6]) -> Vec<(u64, f64, f64)> {
    let capacities = [32, 64, 96, 128, 256, 512].map(|mib| mib * MIB);
    capacities.into_iter().zip(at).map(|(capacity, hits)| (capacity, hits, 0.01)).collect()
}

type Check = fn(&CacheReading, &Aims<'_>) -> Option<Finding>;

/// What an action sets: the path, and the value before and after.
type Sets = (String, Value, Value);

/// What a rule says: its title and what it sets.
fn says(rule: Check, of: &CacheReading) -> Option<(String, Option<Sets>)> {
    let finding = rule(of, &aims())?;
    assert_eq!(finding.subject, of.name);
    assert!(!finding.why.is_empty() && !finding.recommendation.is_empty(), "{finding:?}");
    assert!(finding.current_value.is_some(), "{finding:?}");
    if let Some(action) = &finding.action {
        assert!(finding.target.is_some(), "a change is for a metric: {finding:?}");
        assert!((1..=3).contains(&finding.risk), "{finding:?}");
        let inverse = action.inverse();
        assert_eq!((&inverse.to, &inverse.path), (&action.from, &action.path));
    }
    Some((finding.title, finding.action.map(|it| (it.path, it.from, it.to))))
}

#[track_caller]
fn sets(
    rule: Check,
    of: &CacheReading,
    title: &str,
    path: &str,
    from: impl Into<Value>,
    to: impl Into<Value>,
) {
    let said = says(rule, of).expect("there is something to say");
    assert_eq!(said, (title.to_owned(), Some((path.to_owned(), from.into(), to.into()))));
}

#[track_caller]
fn advises(rule: Check, of: &CacheReading, title: &str) {
    assert_eq!(says(rule, of), Some((title.to_owned(), None)));
}

#[track_caller]
fn silent(rule: Check, of: &CacheReading) {
    assert_eq!(says(rule, of), None);
}

#[test]
fn a_cache_grows_to_the_knee_of_its_curve() {
    let of = CacheReading { curve: curve([0.6, 0.7, 0.8, 0.83, 0.84, 0.84]), ..users() };
    let title = "Cache `users` is too small: 70 % of look-ups hit at 64 MiB";
    // Of the 14 points that can be had, 13 come with twice the size.
    sets(undersized, &of, title, "caches.users.capacity", 64 * MIB, 128 * MIB);
    let finding = undersized(&of, &aims()).expect("as above");
    let expected = finding.expected.as_ref().expect("a forecast");
    assert!(
        (expected.from - 0.7).abs() < 1e-9 && (expected.to - 0.83).abs() < 1e-9,
        "{expected:?}"
    );
    assert_eq!(
        finding.recommendation,
        "Raise `caches.users.capacity` from 64 MiB to 128 MiB; expected hit ratio 0.70 -> 0.83, +64 MiB"
    );
    assert_eq!((finding.risk, finding.memory_bytes), (1, 80 * MIB));
}

#[test]
fn half_as_much_again_must_bring_three_points_and_the_cache_must_be_full() {
    silent(undersized, &CacheReading { curve: curve([0.6, 0.7, 0.729, 0.8, 0.9, 0.9]), ..users() });
    let steep = CacheReading { curve: curve([0.6, 0.7, 0.731, 0.8, 0.9, 0.9]), ..users() };
    assert!(says(undersized, &steep).is_some());
    silent(undersized, &CacheReading { held: 57 * MIB, ..steep.clone() });
    silent(undersized, &CacheReading { hits: 600.0, misses: 399.0, ..steep });
}

#[test]
fn a_cache_grows_within_the_memory_that_is_left() {
    let steep = CacheReading { curve: curve([0.6, 0.7, 0.8, 0.9, 0.95, 0.96]), ..users() };
    let room = |mib: u64| CacheReading { room_bytes: Some(mib * MIB), ..steep.clone() };
    let to = |of: &CacheReading| says(undersized, of).and_then(|(_, action)| Some(action?.2));
    assert_eq!(to(&room(1_024)), Some(json!(128 * MIB)));
    assert_eq!(to(&room(40)), Some(json!(96 * MIB)));
    assert_eq!(to(&room(5)), None, "five mebibytes are not worth it");
    assert!(says(undersized, &room(5)).is_some(), "people can give it more");
    // Nobody knows what there is: a step that can be watched.
    assert_eq!(to(&CacheReading { room_bytes: None, ..steep }), Some(json!(128 * MIB)));
}

#[test]
fn without_a_curve_what_was_evicted_too_early_tells_and_is_believed_less() {
    let of = |evicted| CacheReading { evicted: Some(evicted), ..users() };
    silent(undersized, &of(0.049));
    let title =
        "Cache `users` is too small: 31 % of misses are for keys evicted not long ago at 64 MiB";
    sets(undersized, &of(0.31), title, "caches.users.capacity", 64 * MIB, 96 * MIB);
    let finding = undersized(&of(0.31), &aims()).expect("as above");
    assert!(finding.confidence < 0.7, "it does not apply itself: {}", finding.confidence);
}

#[test]
fn a_cache_that_counts_entries_is_bounded_by_them() {
    let of = CacheReading {
        by_bytes: false,
        capacity: 1_000,
        held: 1_000,
        entry_bytes: None,
        curve: vec![(500, 0.5, 0.0), (1_000, 0.6, 0.0), (2_000, 0.8, 0.0), (4_000, 0.81, 0.0)],
        ..users()
    };
    let title = "Cache `users` is too small: 70 % of look-ups hit at 1000 entries";
    sets(undersized, &of, title, "caches.users.entries", 1_000, 2_000);
    let of_function = CacheReading { name: "shop.users.load".to_owned(), ..of };
    let title = "Cache `shop.users.load` is too small: 70 % of look-ups hit at 1000 entries";
    sets(undersized, &of_function, title, "caches.shop.users.load.entries", 1_000, 2_000);
}

#[test]
fn every_name_that_a_cache_can_have_is_one_that_a_key_can_hold() {
    let long = ["a".repeat(64), "a".repeat(65)];
    let names =
        ["users", "a.b_c.D-2", "7", "", ".", "..", ".a", "a.", "a..b", "a b", "a/b", "\u{fc}"];
    for name in names.into_iter().chain(long.iter().map(String::as_str)) {
        let builds = cache_tiered::Cache::<u64, u64>::builder(name).build().is_ok();
        assert_eq!(crate::config::is_cache_name(name), builds, "{name:?}");
    }
}

#[tokio::test]
async fn advice_about_the_cache_of_a_function_is_applied_to_it_and_undone() {
    let settings = [("level", "basic"), ("monitor.enabled", "false")];
    let builder = crate::UltraPerf::builder();
    let builder = settings.into_iter().fold(builder, |to, (key, value)| to.set(key, value));
    let perf = builder.build().await.expect("a handle");
    let cache = perf.cache::<u64, u64>("shop.users.load").entries(1_000).build().expect("a cache");
    let of = CacheReading {
        name: "shop.users.load".to_owned(),
        by_bytes: false,
        capacity: cache.capacity(),
        held: cache.capacity(),
        curve: vec![(500, 0.5, 0.0), (1_000, 0.6, 0.0), (2_000, 0.8, 0.0), (4_000, 0.81, 0.0)],
        ..users()
    };
    let action = undersized(&of, &aims()).and_then(|finding| finding.action).expect("an action");
    let applied = perf.apply([(action.path, action.to)], "advice").expect("the key is there");
    assert_eq!(cache.capacity(), 2_000);
    perf.undo(applied.version, "ada").expect("the last one");
    assert_eq!(cache.capacity(), 1_000);
}

#[test]
fn what_brings_nothing_is_given_back_when_memory_is_short() {
    let flat = CacheReading {
        curve: curve([0.699, 0.7, 0.7, 0.7, 0.7, 0.7]),
        memory_used: Some(0.75),
        ..users()
    };
    let title = "Cache `users` is larger than it needs to be: the last 30 % of 64 MiB bring 0.1 points, \
        and memory is 75 % full";
    sets(oversized, &flat, title, "caches.users.capacity", 64 * MIB, 45 * MIB);
    silent(oversized, &CacheReading { memory_used: Some(0.7), ..flat.clone() });
    silent(oversized, &CacheReading { memory_used: None, ..flat.clone() });
    silent(
        oversized,
        &CacheReading { curve: curve([0.68, 0.7, 0.7, 0.7, 0.7, 0.7]), ..flat.clone() },
    );
    let finding = oversized(&flat, &aims()).expect("as above");
    assert_eq!(finding.also.len(), 1, "the hit ratio must not suffer");
}

#[test]
fn a_time_to_live_is_doubled_if_what_is_loaded_again_is_the_same() {
    let of = |expired, unchanged| CacheReading { expired: Some(expired), unchanged, ..users() };
    let title = "Cache `users`: 25 % of misses are for keys that expired within the last 60 s, 95 % of \
        them unchanged";
    sets(ttl_too_short, &of(0.25, Some(0.95)), title, "caches.users.ttl", "60s", "120s");
    silent(ttl_too_short, &of(0.2, Some(0.95)));
    silent(ttl_too_short, &CacheReading { ttl: Some(Duration::MAX), ..of(0.25, Some(0.95)) });
    silent(ttl_too_short, &of(0.25, Some(0.89)));
    let title = "Cache `users`: 25 % of misses are for keys that expired within the last 60 s";
    advises(ttl_too_short, &of(0.25, None), title);
    silent(
        ttl_too_short,
        &CacheReading { ttl: Some(Duration::from_secs(7 * 86_400)), ..of(0.25, Some(0.95)) },
    );
}

#[test]
fn those_who_wait_for_a_load_ask_for_an_early_one() {
    let of = |coalesced| CacheReading {
        coalesced,
        load_seconds: Some(0.03),
        has_loader: true,
        ..users()
    };
    let title = "Cache `users`: 9.1 % of callers who miss wait for somebody else's load, each for up to \
        30 ms";
    sets(stampede, &of(300.0), title, "caches.users.early_refresh", 0.0, 1.0);
    silent(stampede, &of(157.0));
    silent(stampede, &CacheReading { early_refresh: 1.0, ..of(300.0) });
    silent(stampede, &CacheReading { loads: 99.0, ..of(300.0) });
    // Without a loader nothing is refreshed early, whatever the setting is.
    for (early_refresh, is_named) in [(0.0, true), (1.0, false)] {
        let asked = CacheReading { has_loader: false, early_refresh, ..of(300.0) };
        advises(stampede, &asked, title);
        let text = stampede(&asked, &aims()).expect("as above").recommendation;
        assert!(text.starts_with("Give the cache a loader, `cache.loading(..)`"), "{text}");
        assert_eq!(text.contains("`caches.users.early_refresh` to 1"), is_named, "{text}");
    }
}

#[test]
fn a_fixed_policy_that_evicts_what_comes_again_is_put_to_the_vote() {
    let of = CacheReading { evicted: Some(0.1), ..users() };
    let title = "Cache `users`: `s3-fifo` hits 70 % (aimed at 80 %), and 10 % of misses are for keys that \
        it had evicted not long ago";
    sets(policy, &of, title, "caches.users.policy", "s3-fifo", "adaptive");
    silent(policy, &CacheReading { policy: Some("adaptive"), ..of.clone() });
    silent(policy, &CacheReading { policy: None, ..of.clone() });
    silent(policy, &CacheReading { hits: 8_000.0, misses: 2_000.0, ..of.clone() });
    silent(policy, &CacheReading { evicted: Some(0.05), ..of.clone() });
    silent(policy, &CacheReading { held: MIB, ..of });
}

fn disk(hits: f64, misses: f64) -> TierReading {
    TierReading { tier: "disk", hits, misses, writes: 3_000.0, ..TierReading::default() }
}

#[test]
fn compression_that_does_not_pay_is_told_both_ways() {
    let of = |tried, bytes_in, bytes_out| CacheReading {
        compressed: Compressed { tried, bytes_in, bytes_out, by_dictionary: false },
        tiers: vec![disk(0.0, 0.0)],
        ..users()
    };
    let title = "Cache `users`: compression makes 10 MiB of values only 1.05 times smaller";
    advises(compress_waste, &of(2_000.0, 10.5e6, 10.0e6), title);
    silent(compress_waste, &of(2_000.0, 11.1e6, 10.0e6));
    silent(compress_waste, &of(99.0, 10.5e6, 10.0e6));
    let title = "Cache `users`: 95 % of the values that go to lower tiers are too small to be compressed; \
        the others become 3 times smaller";
    advises(compress_more, &of(150.0, 30.0e6, 10.0e6), title);
    silent(compress_more, &of(601.0, 30.0e6, 10.0e6));
    silent(compress_more, &of(150.0, 19.0e6, 10.0e6));
    let mut learned = of(150.0, 30.0e6, 10.0e6);
    learned.compressed.by_dictionary = true;
    silent(compress_more, &learned);
}

#[test]
fn prefetching_that_is_hardly_used_is_switched_off() {
    let of = |used, wasted| CacheReading {
        prefetches_used: used,
        prefetches_wasted: wasted,
        prefetch: true,
        ..users()
    };
    let title = "Cache `users`: 20 % of 500 values that were loaded ahead were asked for";
    sets(prefetch_waste, &of(100.0, 400.0), title, "caches.users.prefetch", true, false);
    silent(prefetch_waste, &of(150.0, 350.0));
    silent(prefetch_waste, &of(9.0, 90.0));
    let by_program = CacheReading { prefetch: false, ..of(100.0, 400.0) };
    advises(prefetch_waste, &by_program, title);
}

#[test]
fn what_is_not_found_again_and_again_is_remembered() {
    let of = |not_found| CacheReading { not_found: Some(not_found), ..users() };
    let title = "Cache `users`: 20 % of loads are for keys that were not found before";
    advises(negative, &of(0.2), title);
    let short = CacheReading { negative_ttl: Some(Duration::from_secs(2)), ..of(0.2) };
    sets(negative, &short, title, "caches.users.negative_ttl", "2s", "10s");
    let long = CacheReading { negative_ttl: Some(Duration::from_secs(30)), ..of(0.2) };
    sets(negative, &long, title, "caches.users.negative_ttl", "30s", "120s");
    let longest = Duration::from_secs(7 * 86_400);
    let longer = CacheReading { negative_ttl: Some(longest / 2), ..of(0.2) };
    sets(negative, &longer, title, "caches.users.negative_ttl", "302400s", "604800s");
    for ttl in [longest, Duration::MAX] {
        silent(negative, &CacheReading { negative_ttl: Some(ttl), ..of(0.2) });
    }
    silent(negative, &of(0.1));
    silent(negative, &users());
}

#[test]
fn a_tier_that_is_slow_or_idle_or_fails_is_told() {
    let of = |tier| CacheReading { tiers: vec![tier], load_seconds: Some(0.01), ..users() };
    let slow = |p95| of(TierReading { p95_seconds: Some(p95), ..disk(100.0, 900.0) });
    let title =
        "Cache `users`: one of 20 look-ups in disk takes longer than 6 ms, a load takes 10 ms";
    advises(tier_slow, &slow(0.006), title);
    silent(tier_slow, &slow(0.005));
    advises(
        tier_idle,
        &of(disk(99.0, 9_901.0)),
        "Cache `users`: disk answered 1.0 % of 10000 look-ups",
    );
    silent(tier_idle, &of(disk(100.0, 9_900.0)));
    silent(tier_idle, &of(disk(0.0, 9_999.0)));
    let failing = |errors, dropped| of(TierReading { errors, dropped, ..disk(500.0, 500.0) });
    advises(tier_failing, &failing(60.0, 0.0), "Cache `users`: 6.0 % of look-ups fail in disk");
    advises(
        tier_failing,
        &failing(0.0, 60.0),
        "Cache `users`: 2.0 % of writes are dropped in disk",
    );
    silent(tier_failing, &failing(50.0, 30.0));
}
