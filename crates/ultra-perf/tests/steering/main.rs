//! The stories of a handle that steers itself, and what must be true at their ends.

mod picture;
mod scenarios;

use ultra_perf::monitor::advice::AuditEvent;

use crate::picture::{draw, line};
use crate::scenarios::Sized;

/// Draws what a cache did while its size was changed.
fn draw_sized(name: &str, heading: &str, told: &Sized) {
    let minute = &told.minute;
    let foretold = vec![told.predicted; minute.len()];
    let mut hits = vec![line(0, "hit ratio", minute, &told.hit_ratio)];
    if told.predicted > 0.0 {
        hits.push(line(2, "foretold", minute, &foretold));
    }
    let probation = (told.applied_at, told.applied_at + 10.0);
    let panels = [
        ("share of requests that hit", hits),
        ("entries that the cache may hold", vec![line(0, "capacity", minute, &told.capacity)]),
    ];
    draw(name, heading, "minutes; shaded: on probation", Some(probation), &panels);
}

#[tokio::test]
async fn a_cache_that_is_too_small_reaches_what_its_advice_foretold() {
    let told = scenarios::undersized().await;
    let (foretold, reached) = (told.predicted, told.reached);
    let heading = format!("Too small: hit ratio {foretold:.3} foretold, {reached:.3} reached");
    draw_sized("undersized.svg", &heading, &told);
    assert!(told.said.starts_with("Cache `users` is too small: "), "{told:?}");
    assert_eq!(told.state, "verified", "{told:?}");
    let off = (told.predicted - told.reached).abs();
    assert!(off <= 0.03, "{:.3} foretold, {:.3} reached", told.predicted, told.reached);
    let at = told.applied_at as usize;
    let before = told.hit_ratio[at - 10..at].iter().sum::<f64>() / 10.0;
    assert!(told.reached > before + 0.03, "{before:.3} became {:.3}", told.reached);
}

#[tokio::test]
async fn a_change_that_does_harm_is_undone_after_its_probation() {
    let told = scenarios::harmful().await;
    draw_sized("harmful.svg", &format!("A harmful change is undone: {}", told.said), &told);
    assert_eq!(told.state, "rolled_back", "{told:?}");
    assert!(told.said.contains("target went from "), "{}", told.said);
    let at = told.applied_at as usize;
    assert_eq!((told.capacity[at - 2], told.capacity[at + 5]), (2_000.0, 100.0));
    assert_eq!(told.capacity.last(), Some(&2_000.0));
    let before = told.hit_ratio[at - 5..at].iter().sum::<f64>() / 5.0;
    assert!(told.hit_ratio[at + 5] < before - 0.2, "it did harm");
    assert!(told.reached > before - 0.03, "{before:.3} became {:.3} again", told.reached);
}

#[tokio::test]
async fn the_adaptive_policy_follows_when_scans_become_a_loop() {
    let told = scenarios::shift().await;
    let lines = told.hit_ratio.iter().enumerate();
    let lines = lines.map(|(at, (name, of))| line(at, name, &told.minute, of)).collect();
    let ran: Vec<_> = [told.live[25], told.live[59]].map(|live| format!("`{live}`")).into();
    let heading = format!("Scans become a loop: adaptive ran {}", ran.join(", then "));
    let panels = [("share of requests that hit", lines)];
    draw(
        "shift.svg",
        &heading,
        "minutes; shaded: the loop",
        Some((told.shifted_at, 60.0)),
        &panels,
    );
    for minutes in [20..30, 50..60] {
        let of = |policy: &str| told.mean(policy, minutes.clone());
        let best = ["lru", "lfu", "arc", "s3-fifo"].map(of).into_iter().fold(0.0, f64::max);
        assert!(of("adaptive") >= best - 0.05, "{minutes:?}: {:.3} of {best:.3}", of("adaptive"));
    }
    let (adaptive, lru) = (told.mean("adaptive", 50..60), told.mean("lru", 50..60));
    assert!(adaptive > lru + 0.2, "{adaptive:.3} on the loop, and `lru` {lru:.3}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_memory_is_short_the_cache_gives_way_and_what_is_urgent_goes_on() {
    let told = scenarios::squeeze().await;
    let heading = format!("Memory is short: {:.0} MiB for all", told.limit_mib);
    let x = &told.millis;
    let held = vec![
        line(0, "the program", x, &told.program_mib),
        line(1, "the cache", x, &told.cache_mib),
    ];
    let ended =
        vec![line(0, "urgent", x, &told.urgent), line(2, "background", x, &told.background)];
    let panels = [("MiB", held), ("tasks that have ended", ended)];
    draw("squeeze.svg", &heading, "milliseconds; shaded: the squeeze", Some(told.squeeze), &panels);
    let at =
        |millis: f64| told.millis.iter().position(|at| *at >= millis).expect("there are steps");
    let (from, to) = (at(told.squeeze.0), at(told.squeeze.1));
    assert!(told.cache_mib[from - 1] > 90.0 && told.cache_mib[to - 1] < 20.0, "{told:?}");
    let ended = |of: &[f64]| of[to - 1] - of[to - 40];
    assert!(ended(&told.urgent) >= 30.0, "{told:?}");
    assert_eq!(ended(&told.background), 0.0, "{told:?}");
    let (all, last) = (told.millis.len() as f64, told.background.len() - 1);
    assert!(
        told.background[last] > told.background[to] && told.background[last] <= all,
        "{told:?}"
    );
}

#[tokio::test]
async fn at_extreme_advice_applies_itself_one_change_of_a_part_at_a_time() {
    let told = scenarios::by_itself().await;
    let x = &told.minute;
    let both = |of: &[Vec<f64>; 2]| vec![line(0, "users", x, &of[0]), line(2, "pages", x, &of[1])];
    let panels = [
        ("share of requests that hit", both(&told.hit_ratio)),
        ("entries that a cache may hold", both(&told.capacity)),
        ("changes on probation", vec![line(0, "caches", x, &told.on_probation)]),
    ];
    draw("by-itself.svg", "Level extreme: advice applies itself", "minutes", None, &panels);
    let of = |event| told.audit.iter().filter(move |entry| entry.event == event);
    let applied: Vec<_> = of(AuditEvent::Applied).map(|entry| entry.id.as_str()).collect();
    for id in ["cache.undersized:users", "cache.undersized:pages"] {
        assert!(applied.contains(&id), "{applied:?}");
    }
    assert!(of(AuditEvent::Applied).all(|entry| entry.by == "auto"), "{:?}", told.audit);
    assert!(of(AuditEvent::Verified).count() >= 2, "{:?}", told.audit);
    assert!(told.on_probation.iter().all(|changes| *changes <= 1.0), "{:?}", told.on_probation);
    for (hits, capacity) in told.hit_ratio.iter().zip(&told.capacity) {
        assert!(capacity.last() > capacity.first() && hits[85] > hits[8] + 0.03, "{hits:?}");
    }
}

#[test]
fn the_page_shows_every_story() {
    let page = include_str!("../../../../docs/src/steering.md");
    for name in ["undersized", "harmful", "shift", "squeeze", "by-itself"] {
        assert!(page.contains(&format!("(steering/{name}.svg)")), "{name}");
        let picture = format!("{}/../../docs/src/steering/{name}.svg", env!("CARGO_MANIFEST_DIR"));
        assert!(std::fs::metadata(&picture).is_ok(), "{picture}: run these tests with UPDATE=1");
    }
}
