//! What the accelerator counts about its requests.
//!
//! A count is one relaxed add, a time is one add into a bucket of its outcome's histogram. The
//! histogram's buckets are fixed, so nothing grows, and one walk over them gives the quantiles and
//! the Prometheus text.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;

use crate::exposition::{Exposition, Kind};
use crate::rules::Outcome;

/// Upper bounds of the buckets in microseconds: 1, 2 and 5 of each decade, and everything above.
const BOUNDS_US: [u64; 20] = [
    20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 300_000,
    500_000, 1_000_000, 2_000_000, 5_000_000, 10_000_000, 30_000_000,
];

/// The times of one kind of request.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    buckets: [AtomicU64; BOUNDS_US.len() + 1],
    sum_us: AtomicU64,
}

impl Histogram {
    fn record(&self, time: Duration) {
        let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let at = BOUNDS_US.partition_point(|&bound| bound < us);
        // Relaxed: counts order nothing.
        self.buckets[at].fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(us, Ordering::Relaxed);
    }

    fn counts(&self) -> [u64; BOUNDS_US.len() + 1] {
        std::array::from_fn(|at| self.buckets[at].load(Ordering::Relaxed))
    }

    fn count(&self) -> u64 {
        self.counts().iter().sum()
    }
}

/// The `q` quantile of bucketed times in seconds, interpolated within its bucket; zero of nothing.
fn quantile(counts: &[u64; BOUNDS_US.len() + 1], q: f64) -> f64 {
    let total: u64 = counts.iter().sum();
    let rank = q * total as f64;
    let mut below = 0;
    for (at, &count) in counts.iter().enumerate() {
        if count > 0 && (below + count) as f64 >= rank {
            let low = if at == 0 { 0 } else { BOUNDS_US[at - 1] };
            let high = BOUNDS_US.get(at).copied().unwrap_or(low);
            let within = ((rank - below as f64) / count as f64).clamp(0.0, 1.0);
            return (low as f64 + (high - low) as f64 * within) / 1e6;
        }
        below += count;
    }
    0.0
}

const OUTCOMES: [Outcome; 4] = [Outcome::Hit, Outcome::Miss, Outcome::Stale, Outcome::Bypass];

/// Counters of the whole accelerator.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    /// In the order of `OUTCOMES`.
    times: [Histogram; 4],
    pub(crate) origin_calls: AtomicU64,
    pub(crate) origin_failures: AtomicU64,
    pub(crate) coalesced: AtomicU64,
    pub(crate) background_refreshes: AtomicU64,
    pub(crate) invalidations: AtomicU64,
    server_errors: AtomicU64,
}

/// What the accelerator has counted, in the shape of the admin API.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct TrafficStats {
    /// Requests answered.
    pub requests: u64,
    /// Requests answered from the cache.
    pub hits: u64,
    /// Requests that went to the origin and could have been answered from the cache.
    pub misses: u64,
    /// Requests answered from the cache although the answer was stale.
    pub stale: u64,
    /// Requests that passed the cache by.
    pub bypassed: u64,
    /// Answers with a status of 500 and more.
    pub server_errors: u64,
    /// Calls to the origin, background refreshes included.
    pub origin_calls: u64,
    /// Calls to the origin that failed before an answer came.
    pub origin_failures: u64,
    /// Requests that shared somebody else's call to the origin.
    pub coalesced: u64,
    /// Refreshes of stale answers behind their clients' backs.
    pub background_refreshes: u64,
    /// Targets forgotten because a request changed them, or by a purge, and tags that were purged.
    pub invalidations: u64,
    /// Median time to the head of an answer, in seconds.
    pub response_time_p50: f64,
    /// 95th percentile of the same.
    pub response_time_p95: f64,
    /// 99th percentile of the same.
    pub response_time_p99: f64,
}

impl Traffic {
    pub(crate) fn answered(&self, outcome: Outcome, status: http::StatusCode, time: Duration) {
        let at = match outcome {
            Outcome::Hit => 0,
            Outcome::Miss => 1,
            Outcome::Stale => 2,
            Outcome::Bypass => 3,
        };
        self.times[at].record(time);
        if status.is_server_error() {
            self.server_errors.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn stats(&self) -> TrafficStats {
        let [hits, misses, stale, bypassed] = self.times.each_ref().map(Histogram::count);
        let mut all = [0; BOUNDS_US.len() + 1];
        for times in &self.times {
            for (sum, count) in all.iter_mut().zip(times.counts()) {
                *sum += count;
            }
        }
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        TrafficStats {
            requests: hits + misses + stale + bypassed,
            hits,
            misses,
            stale,
            bypassed,
            server_errors: load(&self.server_errors),
            origin_calls: load(&self.origin_calls),
            origin_failures: load(&self.origin_failures),
            coalesced: load(&self.coalesced),
            background_refreshes: load(&self.background_refreshes),
            invalidations: load(&self.invalidations),
            response_time_p50: quantile(&all, 0.5),
            response_time_p95: quantile(&all, 0.95),
            response_time_p99: quantile(&all, 0.99),
        }
    }

    /// Appends the Prometheus text of everything counted here.
    pub(crate) fn write_prometheus(&self, out: &mut String) {
        const NAME: &str = "http_request_duration_seconds";
        // Writing to a string cannot fail.
        let _ =
            writeln!(out, "# HELP {NAME} Time to the head of the answer, by what the cache did.");
        let _ = writeln!(out, "# TYPE {NAME} histogram");
        for (outcome, times) in OUTCOMES.iter().zip(&self.times) {
            let label = outcome.as_str().to_ascii_lowercase();
            let counts = times.counts();
            let mut below = 0;
            for (bound, count) in BOUNDS_US.iter().zip(counts) {
                below += count;
                let bound = *bound as f64 / 1e6;
                let _ = writeln!(out, "{NAME}_bucket{{status=\"{label}\",le=\"{bound}\"}} {below}");
            }
            let total: u64 = counts.iter().sum();
            let sum = times.sum_us.load(Ordering::Relaxed) as f64 / 1e6;
            let _ = writeln!(out, "{NAME}_bucket{{status=\"{label}\",le=\"+Inf\"}} {total}");
            let _ = writeln!(out, "{NAME}_sum{{status=\"{label}\"}} {sum}");
            let _ = writeln!(out, "{NAME}_count{{status=\"{label}\"}} {total}");
        }
        let counters = [
            (
                "http_server_errors_total",
                "Answers with a status of 500 and more.",
                &self.server_errors,
            ),
            ("http_origin_calls_total", "Calls to the origin.", &self.origin_calls),
            (
                "http_origin_failures_total",
                "Calls to the origin without an answer.",
                &self.origin_failures,
            ),
            ("http_coalesced_total", "Requests that shared a call to the origin.", &self.coalesced),
            (
                "http_background_refreshes_total",
                "Refreshes behind clients' backs.",
                &self.background_refreshes,
            ),
            (
                "http_invalidations_total",
                "Targets forgotten on change or purge, and tags purged.",
                &self.invalidations,
            ),
        ];
        let mut out = Exposition(out);
        for (name, help, counter) in counters {
            out.single(name, Kind::Counter, help, counter.load(Ordering::Relaxed));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_in_the_bucket_of_their_rank() {
        let traffic = Traffic::default();
        assert_eq!(traffic.stats().response_time_p95, 0.0);
        for ms in 1..=100 {
            let time = Duration::from_millis(ms);
            traffic.answered(Outcome::Miss, http::StatusCode::OK, time);
        }
        let stats = traffic.stats();
        assert!((0.049..=0.051).contains(&stats.response_time_p50), "{stats:?}");
        assert!((0.09..=0.1).contains(&stats.response_time_p95), "{stats:?}");
        assert_eq!((stats.requests, stats.misses), (100, 100));
    }

    #[test]
    fn the_exposition_is_cumulative_and_ends_at_the_count() {
        let traffic = Traffic::default();
        traffic.answered(Outcome::Hit, http::StatusCode::OK, Duration::from_micros(30));
        traffic.answered(Outcome::Hit, http::StatusCode::OK, Duration::from_secs(100));
        let mut text = String::new();
        traffic.write_prometheus(&mut text);
        for line in [
            "http_request_duration_seconds_bucket{status=\"hit\",le=\"0.00002\"} 0",
            "http_request_duration_seconds_bucket{status=\"hit\",le=\"0.00005\"} 1",
            "http_request_duration_seconds_bucket{status=\"hit\",le=\"30\"} 1",
            "http_request_duration_seconds_bucket{status=\"hit\",le=\"+Inf\"} 2",
            "http_request_duration_seconds_count{status=\"hit\"} 2",
        ] {
            assert!(text.lines().any(|it| it == line), "{line} in\n{text}");
        }
    }
}
