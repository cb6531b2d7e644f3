//! Interning a string that was seen before, and sweeping those that nobody uses.
//!
//! 10,000 distinct strings of 22 bytes, drawn by Zipf's law with exponent 1: the most frequent one is a
//! tenth of all draws, and the rarer half of the strings are a fourteenth. All were interned before. The
//! draws are made beforehand and are the same for both sides; in two threads each has its own.
//!
//! A handle is dropped at once, which for a counted handle is a part of the price.

use std::hint::black_box;
use std::thread;
use std::time::{Duration, Instant};

use memory::{Interner, SymbolTable};
use ultra_perf_bench::{Clock, Suite};

const STRINGS: usize = 10_000;
const DRAWS: usize = 100_000;

/// The strings, and two threads' draws of them.
struct Words {
    strings: Vec<String>,
    draws: [Vec<u16>; 2],
}

impl Words {
    fn new() -> Self {
        let strings = (0..STRINGS).map(|i| format!("route/{i:05}/attribute")).collect();
        let mut sums = Vec::with_capacity(STRINGS);
        let mut sum = 0.0;
        for rank in 1..=STRINGS {
            sum += 1.0 / rank as f64;
            sums.push(sum);
        }
        let draws = [1_u64, 2].map(|seed| {
            let mut state = seed;
            let mut draw = || {
                // The generator of Knuth's MMIX; its upper half is what is random.
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                let at = (state >> 32) as f64 / f64::from(u32::MAX) * sum;
                sums.partition_point(|it| *it < at).min(STRINGS - 1) as u16
            };
            (0..DRAWS).map(|_| draw()).collect()
        });
        Self { strings, draws }
    }

    /// Calls `intern` with each draw of a thread.
    fn each(&self, thread: usize, mut intern: impl FnMut(&str)) {
        for draw in &self.draws[thread] {
            intern(black_box(&self.strings[usize::from(*draw)]));
        }
    }
}

/// One side of a row: what it is called and how it interns.
type Side<'a> = (&'a str, &'a (dyn Fn(&Words, usize) + Sync));

/// Measures `ours` against `peer` with one thread and with two.
fn compare(
    suite: &mut Suite,
    words: &Words,
    ours: Side<'_>,
    peer: Side<'_>,
    most: Option<[f64; 2]>,
) {
    let operations = DRAWS as u64;
    let mut one = suite.time(&format!("{}, seen, 1T", ours.0), Clock::Cpu, operations);
    if let Some([most, _]) = most {
        one = one.at_most(most);
    }
    one.compare(peer.0, || ours.1(words, 0), || peer.1(words, 0));
    let both = |side: Side<'_>| {
        thread::scope(|scope| {
            scope.spawn(|| side.1(words, 1));
            side.1(words, 0);
        });
    };
    let mut two = suite.time(&format!("{}, seen, 2T", ours.0), Clock::Cpu, 2 * operations);
    if let Some([_, most]) = most {
        two = two.at_most(most);
    }
    two.compare(peer.0, || both(ours), || both(peer));
}

/// Adds the rows of the interner.
pub(crate) fn rows(suite: &mut Suite) {
    let words = Words::new();
    let interner = Interner::builder().build().expect("the defaults are valid");
    let symbols = SymbolTable::new(1 << 20, 64 << 20).expect("valid caps");
    // They live all along, as routes and names do; a sweep would take what nobody holds.
    let held: Vec<_> = words.strings.iter().map(|text| interner.intern(text)).collect();
    for text in &words.strings {
        symbols.intern(text).expect("below the caps");
    }
    let counted = |words: &Words, thread: usize| {
        words.each(thread, |text| drop(black_box(interner.intern(text))));
    };
    let permanent = |words: &Words, thread: usize| {
        words.each(thread, |text| {
            black_box(symbols.intern(text)).expect("it is there");
        });
    };
    let fresh = |words: &Words, thread: usize| {
        words.each(thread, |text| drop(black_box(String::from(text))));
    };
    let (counted, permanent): (Side<'_>, Side<'_>) = (("IStr", &counted), ("Symbol", &permanent));
    compare(suite, &words, counted, ("String::from", &fresh), None);
    #[cfg(feature = "peers")]
    peers(suite, &words, counted, permanent);
    #[cfg(not(feature = "peers"))]
    compare(suite, &words, permanent, ("String::from", &fresh), None);

    suite.reported("sweep of 100,000 unused strings, each", "ns").at_most(50.0).measure(sweep);
    suite
        .reported("of that, free of as many strings in as wild an order, each", "ns")
        .measure(frees);
    drop((words, held));
}

/// The time to drop 100,000 strings in another order than they were made in, for one of them.
fn frees() -> f64 {
    let mut texts: Vec<Option<Box<str>>> = (0..100_000)
        .map(|i| Some(format!("unused/{i:06}/attribute/with a header").into()))
        .collect();
    let before = Instant::now();
    // 7,919 has no factor in common with 100,000, so this comes by each of them once.
    for step in 0..texts.len() {
        let at = step * 7_919 % texts.len();
        drop(texts[at].take());
    }
    before.elapsed().as_nanos() as f64 / 100_000.0
}

/// The time of a whole pass over 100,000 strings without handles, for one of them.
fn sweep() -> f64 {
    let start = Instant::now();
    let builder = Interner::builder().idle(Duration::ZERO).sweep_step(usize::MAX).front_cache(0);
    let interner = builder.build_at(start).expect("valid settings");
    for i in 0..100_000 {
        drop(interner.intern(&format!("unused/{i:06}/attribute")));
    }
    let before = Instant::now();
    let swept = interner.sweep(start);
    let took = before.elapsed();
    assert_eq!(swept.removed, 100_000, "nothing is in use");
    took.as_nanos() as f64 / 100_000.0
}

#[cfg(feature = "peers")]
fn peers(suite: &mut Suite, words: &Words, counted: Side<'_>, permanent: Side<'_>) {
    use std::sync::{Arc, Mutex};

    use internment::ArcIntern;
    use lasso::ThreadedRodeo;
    use string_interner::{StringInterner, backend::StringBackend};

    for text in &words.strings {
        ustr::ustr(text);
    }
    let ustr = |words: &Words, thread: usize| {
        words.each(thread, |text| {
            black_box(ustr::ustr(text));
        });
    };
    let targets = Some([1.1, 0.6]);
    compare(suite, words, counted, ("ustr", &ustr), targets);
    compare(suite, words, permanent, ("ustr", &ustr), targets);

    let rodeo = ThreadedRodeo::default();
    for text in &words.strings {
        rodeo.get_or_intern(text);
    }
    let lasso = |words: &Words, thread: usize| {
        words.each(thread, |text| {
            black_box(rodeo.get_or_intern(text));
        });
    };
    compare(suite, words, permanent, ("lasso", &lasso), None);

    let guarded = Mutex::new(StringInterner::<StringBackend>::new());
    for text in &words.strings {
        guarded.lock().expect("no panic under it").get_or_intern(text);
    }
    let string_interner = |words: &Words, thread: usize| {
        words.each(thread, |text| {
            black_box(guarded.lock().expect("no panic under it").get_or_intern(text));
        });
    };
    compare(suite, words, permanent, ("Mutex<string-interner>", &string_interner), None);

    let held: Vec<_> =
        words.strings.iter().map(|text| ArcIntern::<str>::from(text.as_str())).collect();
    let internment = |words: &Words, thread: usize| {
        words.each(thread, |text| drop(black_box(ArcIntern::<str>::from(text))));
    };
    compare(suite, words, counted, ("internment ArcIntern", &internment), None);
    drop(held);

    let arcs = |words: &Words, thread: usize| {
        words.each(thread, |text| drop(black_box(Arc::<str>::from(text))));
    };
    compare(suite, words, counted, ("Arc<str>::from", &arcs), None);
}
