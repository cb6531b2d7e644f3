//! What the accelerator counts about its requests.
//!
//! A request is one addition into the histogram of what the cache did and the class of its status; the
//! counts are read off the histograms. Everything else is one relaxed addition. The registry is asked
//! for the histograms once, at the start.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;
use ultra_perf::monitor::{Distribution, Histogram, Kind, Readings, Registry, Unit};

use crate::origin::Failure;
use crate::rules::Outcome;
use crate::watch::Family;

const OUTCOMES: [Outcome; 4] = [Outcome::Hit, Outcome::Miss, Outcome::Stale, Outcome::Bypass];
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

const DURATION: &str = "http_request_duration_seconds";

/// The metrics of requests, beside [`DURATION`].
pub(crate) const FAMILIES: &[Family] = &[
    (
        DURATION,
        Kind::Histogram,
        Unit::Seconds,
        "Time to the head of the answer, by the class of its status and by what the cache did.",
    ),
    (
        "http_requests_total",
        Kind::Counter,
        Unit::None,
        "Requests answered, by the class of the status and by what the cache did.",
    ),
    (
        "http_server_errors_total",
        Kind::Counter,
        Unit::None,
        "Answers with a status of 500 and more.",
    ),
    ("http_origin_calls_total", Kind::Counter, Unit::None, "Calls to the origin."),
    (
        "http_origin_failures_total",
        Kind::Counter,
        Unit::None,
        "Calls to the origin without an answer.",
    ),
    (
        "http_coalesced_total",
        Kind::Counter,
        Unit::None,
        "Requests that shared a call to the origin.",
    ),
    (
        "http_background_refreshes_total",
        Kind::Counter,
        Unit::None,
        "Refreshes behind clients' backs.",
    ),
    (
        "http_invalidations_total",
        Kind::Counter,
        Unit::None,
        "Targets forgotten on change or purge, and tags purged.",
    ),
    ("request_count", Kind::Counter, Unit::None, "Requests answered."),
    ("error_count", Kind::Counter, Unit::None, "Answers with a status of 500 and more."),
    (
        "request_duration",
        Kind::Gauge,
        Unit::Seconds,
        "95th percentile of the time to an answer's head.",
    ),
    (
        "cache_hit_rate",
        Kind::Gauge,
        Unit::Ratio,
        "Share of cacheable requests that the cache answered.",
    ),
];

/// Counters of the whole accelerator.
#[derive(Debug)]
pub(crate) struct Traffic {
    /// By outcome and class, in the order of `OUTCOMES` and `CLASSES`.
    times: [[Histogram; CLASSES.len()]; OUTCOMES.len()],
    pub(crate) origin_calls: AtomicU64,
    pub(crate) origin_failures: AtomicU64,
    pub(crate) coalesced: AtomicU64,
    pub(crate) background_refreshes: AtomicU64,
    pub(crate) invalidations: AtomicU64,
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
    pub(crate) fn new(registry: &Registry) -> Self {
        let times = OUTCOMES.map(|outcome| {
            let cache = outcome.as_str().to_ascii_lowercase();
            CLASSES
                .map(|class| registry.histogram(DURATION, &[("cache", &cache), ("status", class)]))
        });
        Self {
            times,
            origin_calls: AtomicU64::new(0),
            origin_failures: AtomicU64::new(0),
            coalesced: AtomicU64::new(0),
            background_refreshes: AtomicU64::new(0),
            invalidations: AtomicU64::new(0),
        }
    }

    /// Counts a call to the origin, and how it failed if it did.
    pub(crate) fn called(&self, failure: Option<&Failure>) {
        self.origin_calls.fetch_add(1, Ordering::Relaxed);
        if failure.is_some_and(|failure| failure.was_asked) {
            self.origin_failures.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn answered(&self, outcome: Outcome, status: http::StatusCode, time: Duration) {
        let at = match outcome {
            Outcome::Hit => 0,
            Outcome::Miss => 1,
            Outcome::Stale => 2,
            Outcome::Bypass => 3,
        };
        let class = usize::from(status.as_u16() / 100).clamp(1, CLASSES.len()) - 1;
        self.times[at][class].record_duration(time);
    }

    /// All times by outcome and class.
    fn read(&self) -> [[Arc<Distribution>; CLASSES.len()]; OUTCOMES.len()] {
        self.times.each_ref().map(|classes| classes.each_ref().map(Histogram::distribution))
    }

    pub(crate) fn stats(&self) -> TrafficStats {
        let times = self.read();
        let mut all = Distribution::empty(times[0][0].scale());
        times.iter().flatten().for_each(|times| all.merge(times));
        let [hits, misses, stale, bypassed] =
            times.each_ref().map(|classes| classes.iter().map(|times| times.count()).sum());
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let quantile = |q| all.quantile(q).unwrap_or_default();
        TrafficStats {
            requests: hits + misses + stale + bypassed,
            hits,
            misses,
            stale,
            bypassed,
            server_errors: times.iter().map(|classes| classes[CLASSES.len() - 1].count()).sum(),
            origin_calls: load(&self.origin_calls),
            origin_failures: load(&self.origin_failures),
            coalesced: load(&self.coalesced),
            background_refreshes: load(&self.background_refreshes),
            invalidations: load(&self.invalidations),
            response_time_p50: quantile(0.5),
            response_time_p95: quantile(0.95),
            response_time_p99: quantile(0.99),
        }
    }

    /// Tells the registry what the cache of this name has done for a service of this process, whose
    /// requests are counted elsewhere.
    pub(crate) fn report_cache(&self, cache: &str, out: &mut Readings) {
        let stats = self.stats();
        let labels = [("cache", cache)];
        for (name, count) in [
            ("http_origin_calls_total", stats.origin_calls),
            ("http_origin_failures_total", stats.origin_failures),
            ("http_coalesced_total", stats.coalesced),
            ("http_background_refreshes_total", stats.background_refreshes),
            ("http_invalidations_total", stats.invalidations),
        ] {
            out.counter(name, &labels, count as f64);
        }
        for (result, count) in [("hit", stats.hits + stats.stale), ("miss", stats.misses)] {
            let labels = [("cache", cache), ("result", result)];
            out.counter("cache_requests_total", &labels, count as f64);
        }
    }

    /// Tells the registry what is counted here beside the times.
    pub(crate) fn report(&self, out: &mut Readings) {
        for (outcome, classes) in OUTCOMES.iter().zip(self.read()) {
            let cache = outcome.as_str().to_ascii_lowercase();
            for (class, times) in CLASSES.iter().zip(classes) {
                let labels = [("cache", cache.as_str()), ("status", class)];
                out.counter("http_requests_total", &labels, times.count() as f64);
            }
        }
        let stats = self.stats();
        for (name, count) in [
            ("http_server_errors_total", stats.server_errors),
            ("http_origin_calls_total", stats.origin_calls),
            ("http_origin_failures_total", stats.origin_failures),
            ("http_coalesced_total", stats.coalesced),
            ("http_background_refreshes_total", stats.background_refreshes),
            ("http_invalidations_total", stats.invalidations),
            ("request_count", stats.requests),
            ("error_count", stats.server_errors),
        ] {
            out.counter(name, &[], count as f64);
        }
        for (result, count) in [("hit", stats.hits + stats.stale), ("miss", stats.misses)] {
            let labels = [("cache", "responses"), ("result", result)];
            out.counter("cache_requests_total", &labels, count as f64);
        }
        out.gauge("request_duration", &[], stats.response_time_p95);
        out.gauge("cache_hit_rate", &[], stats.hit_rate());
    }
}

impl TrafficStats {
    /// The share of cacheable requests that the cache answered.
    pub(crate) fn hit_rate(&self) -> f64 {
        let answered = self.hits + self.stale;
        answered as f64 / (answered + self.misses).max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;

    #[test]
    fn requests_are_counted_by_outcome_and_class() {
        let traffic = Traffic::new(&Registry::default());
        assert_eq!(traffic.stats().response_time_p95, 0.0);
        for ms in 1..=100 {
            traffic.answered(Outcome::Miss, StatusCode::OK, Duration::from_millis(ms));
        }
        traffic.answered(Outcome::Hit, StatusCode::BAD_GATEWAY, Duration::from_millis(1));
        // A status that HTTP does not know counts with the nearest class.
        let odd = StatusCode::from_u16(799).expect("a number of three digits");
        traffic.answered(Outcome::Hit, odd, Duration::from_millis(1));
        let stats = traffic.stats();
        assert!((0.047..=0.051).contains(&stats.response_time_p50), "{stats:?}");
        assert!((0.09..=0.1).contains(&stats.response_time_p95), "{stats:?}");
        assert_eq!((stats.requests, stats.misses, stats.hits), (102, 100, 2));
        assert_eq!(stats.server_errors, 2);
    }
}
