//! The interner against a naive one, and what its handles promise.

use std::collections::{BTreeMap, HashMap};
use std::thread;

use proptest::prelude::*;

use super::*;

fn interner(now: Instant, idle: u64, front_cache: usize) -> Interner {
    let builder = Interner::builder().idle(Duration::from_secs(idle)).front_cache(front_cache);
    builder.build_at(now).expect("valid settings")
}

/// Sweeps whole passes until one removes nothing.
fn sweep_all(interner: &Interner, now: Instant) -> usize {
    let mut removed = 0;
    let mut quiet = 0;
    while quiet < 3 {
        let step = interner.sweep(now);
        removed += step.removed;
        quiet = if step.removed > 0 { 0 } else { quiet + usize::from(step.pass_done) };
    }
    removed
}

#[test]
fn one_text_has_one_copy_whether_the_front_cache_knows_it_or_not() {
    for front_cache in [0, 1, 4_096] {
        let interner = interner(Instant::now(), 0, front_cache);
        let one = interner.intern("GET /users");
        let other = interner.intern("GET /orders");
        let two = interner.intern("GET /users");
        let there = thread::scope(|scope| {
            scope.spawn(|| interner.intern("GET /users")).join().expect("does not panic")
        });
        assert!(one == two && two == there && one != other);
        assert_eq!((one.as_ptr(), one.as_ptr()), (two.as_ptr(), there.as_ptr()));
        assert_eq!(interner.stats().strings, 2);
        assert_eq!(interner.usage().handles, 4);
    }
}

#[test]
fn a_handle_reads_as_its_text() {
    let text = IStr::from("b\u{e9}ta");
    assert_eq!(
        (text.len(), &*text, format!("{text}|{text:?}")),
        (5, "béta", "béta|\"béta\"".into())
    );
    assert!(text == "béta" && text == *"béta");
    let alpha = IStr::from("alpha");
    assert!(text > alpha);
    assert_eq!(String::from(text.clone()), "béta");
    let map = HashMap::from([(text, 1)]);
    assert_eq!(map.get("béta"), Some(&1), "found by a str");
    assert_eq!(size_of::<Option<IStr>>(), 8);
    assert_eq!(size_of::<Option<Symbol>>(), 4);
}

#[test]
fn a_string_in_use_is_not_swept_and_an_unused_one_is() {
    let start = Instant::now();
    let interner = interner(start, 10, 64);
    let kept = interner.intern("kept");
    drop(interner.intern("gone"));
    // The first pass takes the stock's mark of use, the second the stock, and starts the idle time.
    assert_eq!(sweep_all(&interner, start), 0);
    assert_eq!(sweep_all(&interner, start + Duration::from_secs(9)), 0);
    assert_eq!(sweep_all(&interner, start + Duration::from_secs(10)), 1);
    assert_eq!(interner.get("gone"), None);
    assert_eq!(interner.get("kept"), Some(kept));
    let stats = interner.stats();
    assert_eq!((stats.strings, stats.removed, stats.misses), (1, 1, 2));
}

#[test]
fn a_lookup_restarts_the_idle_time() {
    let start = Instant::now();
    let interner = interner(start, 10, 0);
    drop(interner.intern("again"));
    assert_eq!(sweep_all(&interner, start), 0);
    drop(interner.get("again"));
    assert_eq!(sweep_all(&interner, start + Duration::from_secs(12)), 0, "begins here");
    assert_eq!(sweep_all(&interner, start + Duration::from_secs(22)), 1);
}

#[test]
fn the_stock_of_a_sleeping_thread_is_taken_back() {
    let start = Instant::now();
    let interner = interner(start, 0, 64);
    let (ready, asleep) = (std::sync::Barrier::new(2), std::sync::Barrier::new(2));
    thread::scope(|scope| {
        scope.spawn(|| {
            // Twice: the first time there is no front cache, and the drop fills its slot.
            drop(interner.intern("mine"));
            drop(interner.intern("mine"));
            ready.wait();
            asleep.wait();
        });
        ready.wait();
        assert_eq!(sweep_all(&interner, start), 1);
        asleep.wait();
    });
}

#[test]
fn a_thread_that_ends_gives_its_stock_back() {
    let interner = interner(Instant::now(), 0, 64);
    thread::scope(|scope| {
        let work = || {
            drop(interner.intern("theirs"));
            drop(interner.intern("theirs"));
            drop(interner.intern("theirs"));
        };
        scope.spawn(work).join().expect("does not panic");
    });
    // `join` waits for the thread's destructors.
    assert_eq!(interner.usage().handles, 0);
    assert_eq!(interner.reclaimable_bytes(), 32 + 6);
    assert_eq!(interner.stats().front_hits, 2, "counted when the thread ended");
}

#[test]
fn reclaim_stops_at_its_target_and_leaves_what_is_in_use() {
    let interner = interner(Instant::now(), 3_600, 4_096);
    let kept: Vec<IStr> = (0..100).map(|i| interner.intern(&format!("kept {i}"))).collect();
    for i in 0..1_000 {
        drop(interner.intern(&format!("gone {i:04}")));
    }
    let each = 32 + 9;
    let freed = interner.reclaim(10 * each);
    assert_eq!(freed, 10 * each);
    assert_eq!(interner.reclaimable_bytes(), 990 * each);
    assert_eq!(interner.reclaim(u64::MAX), 990 * each);
    assert_eq!(interner.stats().strings, 100);
    drop(kept);
}

#[test]
fn a_step_of_the_sweep_is_bounded_and_goes_on() {
    let start = Instant::now();
    let builder = Interner::builder().idle(Duration::ZERO).sweep_step(100).front_cache(0);
    let interner = builder.build_at(start).expect("valid settings");
    for i in 0..10_000 {
        drop(interner.intern(&i.to_string()));
    }
    let (mut removed, mut steps) = (0, 0);
    loop {
        let step = interner.sweep(start);
        assert!(step.examined <= 100);
        removed += step.removed;
        steps += 1;
        if step.pass_done {
            break;
        }
    }
    assert_eq!(removed, 10_000);
    assert!(steps >= 100);
    assert_eq!(interner.stats().bytes, 0);
}

#[test]
fn beyond_a_cap_a_handle_works_and_is_not_kept() {
    let builder = Interner::builder().strings_max(2).text_bytes_max(10);
    let interner = builder.build().expect("valid settings");
    let (_one, _two) = (interner.intern("one"), interner.intern("two"));
    let (three, again) = (interner.intern("three"), interner.intern("three"));
    assert!(three == again && three.clone() == again && three.as_ptr() != again.as_ptr());
    assert_eq!(interner.intern("longer than ten"), "longer than ten");
    let stats = interner.stats();
    assert_eq!((stats.strings, stats.refused), (2, 3));
}

#[test]
fn handles_outlive_their_interner() {
    let interner = interner(Instant::now(), 0, 64);
    let one = interner.intern("survivor");
    let two = interner.intern("survivor");
    drop(interner);
    assert_eq!(one, "survivor");
    assert_eq!(one.clone(), two);
}

#[test]
fn a_thread_can_use_more_interners_than_it_keeps_front_caches() {
    let all: Vec<Interner> = (0..20).map(|_| interner(Instant::now(), 0, 16)).collect();
    for _ in 0..3 {
        for interner in &all {
            assert_eq!(interner.intern("shared"), "shared");
        }
    }
    for interner in &all {
        assert_eq!(interner.reclaim(u64::MAX), 32 + 6);
    }
}

#[test]
fn every_problem_of_the_settings_is_named() {
    let builder = Interner::builder().strings_max(0).front_cache(3).sweep_step(0);
    assert_eq!(
        builder.build().expect_err("three are wrong").to_string(),
        "invalid interner: strings_max = 0: must be at least 1; front_cache = 3: must be 0 or a \
         power of two up to 1048576; sweep_step = 0: must be at least 1"
    );
}

#[test]
fn usage_says_what_interning_saves() {
    let interner = interner(Instant::now(), 0, 4_096);
    let handles: Vec<IStr> =
        (0..1_000).map(|i| interner.intern(["first", "other"][i % 2])).collect();
    let usage = interner.usage();
    assert_eq!(usage.handles, 1_000);
    assert_eq!(usage.as_strings_bytes, 1_000 * (24 + 5));
    assert_eq!(usage.bytes, 1_000 * 8 + 2 * (32 + 5));
    assert_eq!(usage.saved_bytes(), 29_000 - 8_074);
    drop(handles);
    assert_eq!(interner.usage().handles, 0);
}

#[cfg(feature = "serde")]
#[test]
fn a_handle_is_a_string_to_serde() {
    let text: IStr = serde_json::from_str(r#""a\nb""#).expect("a string");
    assert_eq!(text, "a\nb");
    assert_eq!(serde_json::to_string(&text).expect("a string"), r#""a\nb""#);
    assert!(serde_json::from_str::<IStr>("7").is_err());
}

/// Threads that intern, hold and drop while another sweeps and reclaims.
#[test]
fn threads_agree_while_strings_come_and_go() {
    let start = Instant::now();
    let interner = interner(start, 0, 16);
    let done = std::sync::atomic::AtomicBool::new(false);
    let rounds = if cfg!(miri) { 100 } else { 20_000 };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..3_u64)
            .map(|seed| {
                let interner = &interner;
                scope.spawn(move || {
                    let mut held: Vec<(u64, IStr)> = Vec::new();
                    let mut state = seed + 1;
                    for _ in 0..rounds {
                        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                        let number = (state >> 33) % 50;
                        let one = interner.intern(&number.to_string());
                        assert_eq!(one, number.to_string().as_str());
                        if let Some((_, two)) = held.iter().find(|(held, _)| *held == number) {
                            assert_eq!(one.as_ptr(), two.as_ptr(), "one copy while it is held");
                        }
                        held.push((number, one.clone()));
                        if held.len() > 20 {
                            held.swap_remove((state >> 40) as usize % 20);
                        }
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            while !done.load(Relaxed) {
                interner.sweep(start);
                interner.reclaim(200);
                thread::yield_now();
            }
        });
        let results: Vec<_> = workers.into_iter().map(thread::ScopedJoinHandle::join).collect();
        done.store(true, Relaxed);
        assert!(results.iter().all(Result::is_ok));
    });
    assert_eq!(interner.usage().handles, 0);
    interner.reclaim(u64::MAX);
    assert_eq!((interner.stats().strings, interner.stats().bytes), (0, 0));
}

#[derive(Clone, Debug)]
enum Step {
    Intern(u8),
    Drop(usize),
    Clone(usize),
    Get(u8),
    Sweep(u8),
    Reclaim,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0_u8..40).prop_map(Step::Intern),
        5 => any::<usize>().prop_map(Step::Drop),
        2 => any::<usize>().prop_map(Step::Clone),
        2 => (0_u8..40).prop_map(Step::Get),
        1 => (0_u8..5).prop_map(Step::Sweep),
        1 => Just(Step::Reclaim),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 256 }))]

    /// Against a list of handles: a string that is held is found as the same copy, and what the
    /// interner says it holds is what is held and what was not yet removed.
    #[test]
    fn behaves_as_a_list_of_strings(
        steps in prop::collection::vec(step(), 1..200),
        front_cache in prop::sample::select(vec![0_usize, 1, 4, 256]),
    ) {
        let mut now = Instant::now();
        let interner = interner(now, 2, front_cache);
        let mut held: Vec<(u8, IStr)> = Vec::new();
        for step in steps {
            match step {
                Step::Intern(number) => held.push((number, interner.intern(&number.to_string()))),
                Step::Drop(at) if !held.is_empty() => drop(held.swap_remove(at % held.len())),
                Step::Clone(at) if !held.is_empty() => {
                    let one = held[at % held.len()].clone();
                    held.push(one);
                }
                Step::Drop(_) | Step::Clone(_) => {}
                Step::Get(number) => {
                    let found = interner.get(&number.to_string());
                    if held.iter().any(|(held, _)| *held == number) {
                        prop_assert!(found.is_some());
                    }
                    if let Some(found) = found {
                        prop_assert_eq!(found.as_str(), number.to_string());
                    }
                }
                Step::Sweep(seconds) => {
                    now += Duration::from_secs(seconds.into());
                    interner.sweep(now);
                }
                Step::Reclaim => {
                    interner.reclaim(u64::MAX);
                    let texts: BTreeMap<u8, ()> = held.iter().map(|(it, _)| (*it, ())).collect();
                    prop_assert_eq!(interner.stats().strings, texts.len() as u64);
                }
            }
            let mut copies = BTreeMap::new();
            for (number, one) in &held {
                prop_assert_eq!(one.as_str(), number.to_string());
                prop_assert_eq!(*copies.entry(*number).or_insert(one.as_ptr()), one.as_ptr());
            }
            prop_assert_eq!(interner.usage().handles, held.len() as u64);
        }
    }

    /// Against a `HashMap` and a `Vec`.
    #[test]
    fn symbols_are_numbered_in_order_of_appearance(texts in prop::collection::vec("[a-d]{0,4}", 0..400)) {
        let table = SymbolTable::new(1_000, 10_000).expect("valid caps");
        let mut model: HashMap<String, Symbol> = HashMap::new();
        for text in &texts {
            let symbol = table.intern(text).expect("below the caps");
            let next = model.len();
            let known = *model.entry(text.clone()).or_insert(symbol);
            prop_assert_eq!(known, symbol);
            prop_assert!(symbol.index() <= next);
        }
        for (text, symbol) in &model {
            prop_assert_eq!(table.resolve(*symbol), Some(text.as_str()));
            prop_assert_eq!(table.get(text), Some(*symbol));
        }
        prop_assert_eq!(table.stats().symbols as usize, model.len());
        prop_assert_eq!(table.by_index(model.len()), None);
    }
}

#[test]
fn a_full_symbol_table_says_so_and_still_finds() {
    let table = SymbolTable::new(2, 8).expect("valid caps");
    let one = table.intern("one").expect("room");
    assert_eq!(
        table.intern("too long").expect_err("8 and 3 are more than 8").to_string(),
        "no room for 8 bytes of text: 3 used, bytes_max = 8"
    );
    table.intern("two").expect("room");
    assert_eq!(
        table.intern("x").expect_err("two are there").to_string(),
        "the symbol table is full: 2 symbols, symbols_max = 2"
    );
    assert_eq!((table.intern("one"), table.get("x")), (Ok(one), None));
    assert!(SymbolTable::new(0, 1).is_err() && SymbolTable::new(1, 0).is_err());
}

#[test]
fn threads_give_a_text_one_symbol() {
    let table = SymbolTable::new(10_000, 1 << 20).expect("valid caps");
    let count = if cfg!(miri) { 50 } else { 5_000 };
    let intern = || (0..count).map(|i| table.intern(&i.to_string()).expect("room")).collect();
    let (one, two): (Vec<Symbol>, Vec<Symbol>) = thread::scope(|scope| {
        let other = scope.spawn(intern);
        (intern(), other.join().expect("does not panic"))
    });
    assert_eq!(one, two);
    assert_eq!(table.stats().symbols as usize, count);
    assert!(one.iter().enumerate().all(|(i, it)| table.resolve(*it) == Some(&*i.to_string())));
}
