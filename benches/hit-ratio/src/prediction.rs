//! What fetching ahead of requests brings on the traces, and what it costs in loads.

use std::fmt::Write as _;
use std::io;
use std::path::Path;

use cache_tiered::simulate::{Ahead, Capacity, Contender, Trace, run, sweep};
use cache_tiered::{Policy, Prefetch, PrefetchStats};

use crate::judge::JUDGED;
use crate::traces;

/// Requests that pass until what is fetched ahead has come, in the second of the two cases.
const LAG: u64 = 10;

/// One trace at one size; hits and loads are shares of the requests, in percent.
struct Row {
    trace: &'static str,
    share: f64,
    capacity: u64,
    alone: f64,
    ahead: [Fetched; 2],
}

/// What came of fetching ahead.
struct Fetched {
    hits: f64,
    /// Misses whose load had begun before.
    joined: f64,
    /// Loads beyond those of the cache alone.
    more_loads: f64,
    stats: PrefetchStats,
}

/// Measures every trace that `named` takes, and writes the page.
pub(crate) fn write(
    page: &Path,
    folder: &Path,
    named: impl Fn(&str) -> bool,
    provenance: &str,
) -> io::Result<()> {
    let mut rows = Vec::new();
    for subject in traces::ALL.iter().filter(|subject| named(subject.name)) {
        match subject.load(folder, traces::QUICK) {
            Ok(trace) => rows.extend(JUDGED.map(|share| measure(subject.name, &trace, share))),
            Err(error) => eprintln!("{}: left out: {error}", subject.name),
        }
        eprintln!("{}: done", subject.name);
    }
    std::fs::write(page, text(&rows, provenance))
}

fn measure(name: &'static str, trace: &Trace, share: f64) -> Row {
    let capacity = trace.footprint().entries(share);
    let capacity = Capacity::entries(capacity.limit().max(1));
    let percent = |count: u64| count as f64 / trace.keys().len() as f64 * 100.0;
    let contender = [Contender::policy(Policy::Adaptive)];
    let outcome = sweep(trace, &contender, &[capacity], 1, &|_| ())[0][0];
    let alone = percent(outcome.expect("it is no optimum").hits);
    let ahead = [0, LAG].map(|lag| {
        let mut cache = Ahead::new(Policy::Adaptive, capacity, Prefetch::default(), lag);
        let hits = percent(run(trace, &mut cache).hits);
        let stats = cache.stats();
        let joined = percent(cache.joined());
        let more_loads = percent(stats.issued) - (hits + joined - alone);
        Fetched { hits, joined, more_loads, stats }
    });
    Row { trace: name, share, capacity: capacity.limit(), alone, ahead }
}

fn text(rows: &[Row], provenance: &str) -> String {
    let mut page = format!(
        "{INTRODUCTION}\n```text\n{provenance}\n```\n\n\
         | trace | size | entries | alone | ahead, at once | more loads | of use | ahead, {LAG} later \
         | shorter waits | more loads |\n\
         |---|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n"
    );
    for Row { trace, share, capacity, alone, ahead: [soon, late] } in rows {
        let of_use = match soon.stats.used + soon.stats.wasted {
            0 => "-".to_owned(),
            _ => format!("{:.0} %", soon.stats.accuracy() * 100.0),
        };
        let _ = writeln!(
            page,
            "| {trace} | {} % | {capacity} | {alone:.1} | {:.1} | {:+.1} | {of_use} | {:.1} | {:.1} | {:+.1} |",
            share * 100.0,
            soon.hits,
            soon.more_loads,
            late.hits,
            late.joined,
            late.more_loads,
        );
    }
    page
}

const INTRODUCTION: &str = "\
# Fetching ahead

<!-- Written by `cargo run --release -p bench-hit-ratio -- --prediction docs/src/prefetch.md`. -->

What `CacheBuilder::prefetch` brings, measured by the real cache and the real prefetcher on the first
million requests of each trace: `alone` is the hit ratio of the policy `adaptive` without it, in percent.
With it, once the values that it fetches are there at once, and once only after ten more requests: a
request for a value that is on its way joins its load, which makes a shorter wait and no hit. `more
loads` are loads that nobody would have made otherwise, in percent of the requests: what the backend
pays. `of use` is the share of the fetched values that were asked for while they were there or on
their way, of those that came at once. The size is the share of the trace's distinct keys.

Read it so: where a program reads in the same order again and again, and the cache is smaller than
what it reads (`orm-busy`, `w106`, `sprite`, `ps`, loops), fetching ahead turns many misses into hits,
or at least into shorter waits, for a few percent more loads. Where requests come from many users who
choose by themselves (`web07`, `zipf-made`), it finds little, turns itself down and costs little. It
never helps with keys that are asked for the first time, and in a cache of a few dozen entries the
fetched values push out what is needed (`cpp` at 1 %). So it is off unless a cache asks for it; turn
it on and look at `stats().prefetch` after a day.
";
