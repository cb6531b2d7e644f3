//! Each rule at its threshold and below, with its numbers, its action and what undoes it.

use serde_json::json;

use super::*;

const MIB: f64 = 1_048_576.0;

fn held(name: &str, mib: u64) -> Held {
    let bytes = mib << 20;
    Held { name: name.to_owned(), bytes, capacity: bytes, amount: bytes, by_bytes: true }
}

fn reading() -> MemoryReading {
    MemoryReading {
        resident: 500.0 * MIB,
        limit: Some(1_024.0 * MIB),
        caches: vec![held("users", 50), held("pages", 100)],
        ..MemoryReading::default()
    }
}

#[track_caller]
fn sets(finding: Option<Finding>, title: &str, to: u64) {
    let finding = finding.expect("there is something to say");
    assert_eq!(finding.title, title);
    let action = finding.action.as_ref().expect("an action");
    assert_eq!(
        (action.path.as_str(), &action.from),
        ("caches.pages.capacity", &json!(100u64 << 20))
    );
    assert_eq!((&action.to, action.inverse().to), (&json!(to), json!(100u64 << 20)));
    assert!(finding.target.is_some() && finding.also.len() == 1 && (1..=2).contains(&finding.risk));
}

#[test]
fn growth_into_the_limit_within_a_day_takes_from_the_largest_cache() {
    let of = |hours: f64| {
        stop_gap(&MemoryReading { growth: Some((60.0 * MIB, hours * 3_600.0)), ..reading() })
    };
    let title =
        "Memory grows by 60 MiB an hour and reaches 1 GiB in 9 h; cache `pages` holds 100 MiB";
    sets(of(9.0), title, 80 << 20);
    assert_eq!(of(9.0).expect("as above").why, "That frees up to 20 MiB, 20 min more.");
    assert_eq!(of(25.0), None);
    assert_eq!(stop_gap(&reading()), None);
    let none = MemoryReading { growth: Some((1.0, 1.0)), caches: Vec::new(), ..reading() };
    assert_eq!(stop_gap(&none), None);
}

#[test]
fn what_is_over_the_target_is_taken_from_the_largest_cache() {
    let of = |mib: f64| over_target(&MemoryReading { target: Some(mib * MIB), ..reading() });
    sets(
        of(480.0),
        "The process uses 500 MiB, 20 MiB more than `targets.memory` (4.2 %)",
        80 << 20,
    );
    sets(
        of(250.0),
        "The process uses 500 MiB, 250 MiB more than `targets.memory` (100 %)",
        70 << 20,
    );
    assert_eq!(of(495.0), None);
    assert_eq!(over_target(&reading()), None);
}

#[test]
fn caches_that_are_filled_to_be_emptied_get_the_size_that_they_reach() {
    let of = |reclaimed: f64, amount: u64| {
        let pages = Held { amount: amount << 20, ..held("pages", 100) };
        reclaim_churn(&MemoryReading {
            reclaimed: reclaimed * MIB,
            caches: vec![held("users", 50), pages],
            ..reading()
        })
    };
    let title =
        "300 MiB were reclaimed while the caches hold 150 MiB: they are filled to be emptied";
    sets(of(300.0, 60), title, 60 << 20);
    assert_eq!(of(150.0, 60), None);
    assert_eq!(of(300.0, 98), None, "it is full");
}

#[test]
fn memory_that_goes_back_and_forth_is_told() {
    let of = |mib: f64| give_back_churn(&MemoryReading { given_back: mib * MIB, ..reading() });
    let finding = of(1_500.0).expect("three times");
    assert_eq!(finding.title, "The allocator gave back 1.46 GiB, 3 times what the process uses");
    assert_eq!((finding.action, of(1_000.0)), (None, None));
}
