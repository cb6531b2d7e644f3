//! Hits while many other answers are being refreshed: whether clients feel what is in the background.
//!
//! Two loads run at once. One asks for a few fresh answers, and its latencies are what is looked at. The
//! other asks for two thousand answers that are stale at once and may be served so, each of which makes
//! the proxy refresh it; in the rounds to compare with they are fresh, so the proxy answers as many
//! requests but refreshes nothing. The backend takes some 40 ms and serves 16 at a time, so there are
//! always more refreshes to be done than may run.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use ultra_perf_bench::{Suite, median};

use crate::backend::Backend;
use crate::entrants::{ENTRANTS, Proxy};
use crate::load::{self, Paths, Sample};

/// Requests per second for hits and for the others.
const HITS: f64 = 1_500.0;
const OTHERS: f64 = 1_000.0;
/// How many different answers each load asks for.
const HIT_PATHS: u64 = 16;
const OTHER_PATHS: u64 = 2_000;
const LENGTH: Duration = Duration::from_secs(4);
const ROUNDS: u64 = 5;

const CASES: [(&str, f64); 2] = [("p50", 0.5), ("p99", 0.99)];

fn hits(number: u64) -> String {
    format!("/fresh/{}", number % HIT_PATHS)
}

fn fresh(number: u64) -> String {
    format!("/fresh/other/{}", number % OTHER_PATHS)
}

fn stale(number: u64) -> String {
    format!("/stale/{}", number % OTHER_PATHS)
}

pub(crate) fn rows(
    suite: &mut Suite,
    binary: impl FnOnce() -> io::Result<PathBuf>,
) -> io::Result<()> {
    let names =
        CASES.map(|(name, _)| format!("{name} of hits, with refreshes beside them and without"));
    if !names.iter().any(|name| suite.wants(name)) {
        return Ok(());
    }
    let backends = [Backend::start(1)?];
    let proxy = Proxy::start(&ENTRANTS[0], &binary()?, &backends)?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let round = |others: Paths, seed: u64| -> Vec<Sample> {
        let to = proxy.address;
        let both = async {
            tokio::join!(
                load::run(to, hits, HITS, LENGTH, seed),
                load::run(to, others, OTHERS, LENGTH, seed + 1),
            )
        };
        runtime.block_on(both).0
    };
    // Each answer is stored before it counts.
    for others in [fresh as Paths, stale] {
        runtime.block_on(load::run(proxy.address, others, 350.0, Duration::from_secs(7), 1));
    }
    round(stale, 3);
    let mut seen = CASES.map(|_| [Vec::new(), Vec::new()]);
    for seed in 1..=ROUNDS {
        for (at, others) in [stale as Paths, fresh].into_iter().enumerate() {
            let samples = round(others, 100 * seed);
            for ((_, share), seen) in CASES.iter().zip(&mut seen) {
                seen[at].push(quantile(&samples, *share));
            }
        }
    }
    for ((name, _), (case, [with, without])) in CASES.iter().zip(names.iter().zip(&seen)) {
        let (with, without) = (median(with).unwrap_or(0.0), median(without).unwrap_or(0.0));
        let row = suite.reported(case, "x");
        let row = if *name == "p99" { row.at_most(1.25) } else { row };
        row.observed(with / without);
        suite.reported(&format!("{name} of hits, with refreshes beside them"), "us").observed(with);
    }
    Ok(())
}

/// The latency, in microseconds, that such a share of the requests did not exceed. A request that was
/// not answered well counts as the longest there is.
fn quantile(samples: &[Sample], share: f64) -> f64 {
    let latency = |it: &Sample| if it.good { it.latency } else { load::TIMEOUT };
    let mut latencies: Vec<_> = samples.iter().map(latency).collect();
    latencies.sort_unstable();
    let at = (latencies.len() as f64 * share) as usize;
    latencies
        .get(at.min(latencies.len().saturating_sub(1)))
        .map_or(0.0, |it| it.as_secs_f64() * 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_without_an_answer_is_the_slowest() {
        let sample = |millis, good| Sample {
            due: Duration::ZERO,
            latency: Duration::from_millis(millis),
            good,
        };
        let samples = [sample(3, true), sample(1, true), sample(1, false), sample(2, true)];
        assert_eq!([0.0, 0.5, 0.99].map(|share| quantile(&samples, share)), [1e3, 3e3, 1e7]);
    }
}
