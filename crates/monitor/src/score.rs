//! A score from 0 to 100 that can be checked by hand.
//!
//! Seven parts have weights: latency 25, errors 20, saturation 20, cache 15, scheduler 10, memory 5 and
//! database 5. The weights of the parts that have enough data are stretched to 100 points. A part is the mean of its
//! metrics, and each metric is scored on a log-normal curve between two control points, as Lighthouse
//! does (<https://developer.chrome.com/docs/lighthouse/performance/performance-scoring>): at its target a
//! metric scores 0.9, at a second value 0.5. A part with less than five minutes of samples, or fewer than
//! a hundred requests, has no score at all, never a full one. While a critical alert fires, the score is at
//! most 49.
//!
//! Points are counted in hundredths as whole numbers: the points of the parts add up to the score exactly,
//! and what the parts lost adds up to the rest of the hundred.

use std::time::Duration;

use serde::Serialize;

use crate::clock::millis;
use crate::insight::{Side, theil_sen, time_to_limit};
use crate::selector::Selector;
use crate::source::{Aggregate, Reading, Source, Window};

mod curve;
#[cfg(test)]
mod tests;

pub use curve::{erfc, log_normal};

/// Most that a score can be while a critical alert fires.
pub const CRITICAL_CAP: f64 = 49.0;

/// What is aimed at.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Targets {
    /// The 95th percentile of the time of requests; 200 ms by default.
    pub p95: Duration,
    /// The share of cache requests that hit; 0.8 by default.
    pub hit_ratio: f64,
    /// The 95th percentile of the time that tasks wait in a queue; 50 ms by default.
    pub queue_wait: Duration,
}

impl Default for Targets {
    fn default() -> Self {
        Self {
            p95: Duration::from_millis(200),
            hit_ratio: 0.8,
            queue_wait: Duration::from_millis(50),
        }
    }
}

/// Which series the score is made of; a metric whose series do not exist is left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScoreInputs {
    /// Histogram of the seconds that requests took; `http_request_duration_seconds`.
    pub request_seconds: Selector,
    /// Counter of requests; `http_requests_total`.
    pub requests: Selector,
    /// Counter of requests that failed; `http_requests_total{status=~"5.."}`.
    pub failed_requests: Selector,
    /// Gauge, processor use as a part of the limit; `system_cpu_usage_ratio`.
    pub cpu: Selector,
    /// Gauge, part of the time in which some task waited for a processor; `system_psi_cpu_some_ratio`.
    pub cpu_pressure: Selector,
    /// Counter of cache requests; `cache_requests_total`.
    pub cache_requests: Selector,
    /// Counter of cache requests that missed; `cache_requests_total{result="miss"}`.
    pub cache_misses: Selector,
    /// Counter of loads of the cache; `cache_loads_total`.
    pub loads: Selector,
    /// Counter of loads of a key that was being loaded; `cache_duplicate_loads_total`.
    pub duplicate_loads: Selector,
    /// Histogram of the seconds that tasks waited; `scheduler_queue_wait_seconds`.
    pub queue_wait_seconds: Selector,
    /// Counter of executions of tasks; `scheduler_executions_total`.
    pub executions: Selector,
    /// Counter of executions that were retried or timed out;
    /// `scheduler_executions_total{result=~"retried|timed_out"}`.
    pub failed_executions: Selector,
    /// Gauge of the memory of the process in bytes; `process_resident_memory_bytes`.
    pub resident_memory: Selector,
    /// Gauge of the limit on it in bytes; `process_memory_limit_bytes`.
    pub memory_limit: Selector,
    /// Histogram of the seconds of waiting for a connection; `database_pool_wait_seconds`.
    pub pool_wait_seconds: Selector,
    /// Histogram of the seconds of queries; `database_query_duration_seconds`.
    pub query_seconds: Selector,
}

impl Default for ScoreInputs {
    fn default() -> Self {
        let select = |text: &str| Selector::parse(text).expect("a selector that a test has read");
        Self {
            request_seconds: select("http_request_duration_seconds"),
            requests: select("http_requests_total"),
            failed_requests: select(r#"http_requests_total{status=~"5.."}"#),
            cpu: select("system_cpu_usage_ratio"),
            cpu_pressure: select("system_psi_cpu_some_ratio"),
            cache_requests: select("cache_requests_total"),
            cache_misses: select(r#"cache_requests_total{result="miss"}"#),
            loads: select("cache_loads_total"),
            duplicate_loads: select("cache_duplicate_loads_total"),
            queue_wait_seconds: select("scheduler_queue_wait_seconds"),
            executions: select("scheduler_executions_total"),
            failed_executions: select(r#"scheduler_executions_total{result=~"retried|timed_out"}"#),
            resident_memory: select("process_resident_memory_bytes"),
            memory_limit: select("process_memory_limit_bytes"),
            pool_wait_seconds: select("database_pool_wait_seconds"),
            query_seconds: select("database_query_duration_seconds"),
        }
    }
}

/// How a score is made.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoreOptions {
    /// The window of the readings; five minutes by default. It must be full before there is a score.
    pub window: Duration,
    /// Requests that a part needs in the window; 100 by default.
    pub requests_min: u32,
    /// The window of the growth of memory; six hours by default.
    pub growth_window: Duration,
    /// What is aimed at.
    pub targets: Targets,
    /// Where the readings come from.
    pub inputs: ScoreInputs,
}

impl Default for ScoreOptions {
    fn default() -> Self {
        Self {
            window: Duration::from_secs(300),
            requests_min: 100,
            growth_window: Duration::from_secs(6 * 3_600),
            targets: Targets::default(),
            inputs: ScoreInputs::default(),
        }
    }
}

/// A part of the score.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ScorePart {
    /// How long requests take; 25.
    Latency,
    /// How many fail; 20.
    Errors,
    /// How busy the processors are; 20.
    Saturation,
    /// How often the cache misses; 15.
    Cache,
    /// How long tasks wait and how many fail; 10.
    Scheduler,
    /// How full memory is and where it goes; 5.
    Memory,
    /// How long queries wait for a connection; 5.
    Database,
}

impl ScorePart {
    /// All parts in the order of the report.
    pub const ALL: [Self; 7] = [
        Self::Latency,
        Self::Errors,
        Self::Saturation,
        Self::Cache,
        Self::Scheduler,
        Self::Memory,
        Self::Database,
    ];

    /// Returns the weight; the weights of all parts add up to 100.
    #[must_use]
    pub const fn weight(self) -> u32 {
        match self {
            Self::Latency => 25,
            Self::Errors | Self::Saturation => 20,
            Self::Cache => 15,
            Self::Scheduler => 10,
            Self::Memory | Self::Database => 5,
        }
    }
}

/// A metric of the score.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ScoreMetric {
    /// The 95th percentile of the time of requests, in seconds.
    P95,
    /// The 99th percentile of the time of requests, in seconds.
    P99,
    /// The part of requests that failed.
    ErrorRatio,
    /// Processor use as a part of the limit.
    Cpu,
    /// The part of the time in which some task waited for a processor.
    CpuPressure,
    /// The part of cache requests that missed.
    CacheMissRatio,
    /// The part of loads that loaded a key that was being loaded.
    DuplicateLoads,
    /// The 95th percentile of the time that tasks waited, in seconds.
    QueueWaitP95,
    /// The part of executions that were retried or timed out.
    FailedExecutions,
    /// Memory of the process as a part of its limit.
    MemoryOfLimit,
    /// How much of what is left of memory a week of growth takes: 1 if the limit is a week away, 14 if it
    /// is twelve hours away, 0 if there is no clear growth.
    MemoryGrowth,
    /// Time of waiting for a connection as a part of the time of queries.
    PoolWait,
}

/// One metric of a part, with all that its score is computed from.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MetricScore {
    /// Which metric.
    pub metric: ScoreMetric,
    /// Where it was read.
    pub selector: String,
    /// Its weight among the metrics of the part that have a value.
    pub weight: u32,
    /// Its value over the window; `None` while there is too little data.
    pub value: Option<f64>,
    /// The value that scores 0.9.
    pub target: f64,
    /// The value that scores 0.5.
    pub half: f64,
    /// The score from 0 to 1.
    pub score: Option<f64>,
    /// Samples or requests that the value comes from.
    pub samples: u64,
}

/// Whether a part counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PartState {
    /// It has a score.
    Scored,
    /// There are series, and too little data yet.
    Collecting,
    /// There are no series: it does not apply.
    Absent,
}

/// One part of the score.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PartScore {
    /// Which part.
    pub part: ScorePart,
    /// Its weight before the weights are stretched.
    pub weight: u32,
    /// Whether it counts.
    pub state: PartState,
    /// The score from 0 to 1.
    pub score: Option<f64>,
    /// The points that it can give; zero if it does not count.
    pub points_max: f64,
    /// The points that it gives.
    pub points: Option<f64>,
    /// The points that it lost.
    pub lost: f64,
    /// Its metrics.
    pub metrics: Vec<MetricScore>,
}

/// How good a score is, by the bands of Lighthouse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Band {
    /// Below 50.
    Poor,
    /// From 50 to below 90.
    NeedsWork,
    /// From 90.
    Good,
}

/// The score, and how it comes about.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Score {
    /// When, in milliseconds since 1970.
    pub at_ms: i64,
    /// From 0 to 100 in hundredths; `None` while no part has enough data.
    pub score: Option<f64>,
    /// How good that is.
    pub band: Option<Band>,
    /// What the points of the parts add up to.
    pub sum: Option<f64>,
    /// The critical alerts that fire and keep the score at 49 or below.
    pub capped_by: Vec<String>,
    /// All parts, those without a score too.
    pub parts: Vec<PartScore>,
}

impl Score {
    /// Reads the metrics and scores them; `critical` names the critical alerts that fire.
    ///
    /// # Cost
    ///
    /// About 20 aggregates over the window, and one range of 120 points over the window of growth.
    #[must_use]
    pub fn read(
        source: &dyn Source,
        at_ms: i64,
        options: &ScoreOptions,
        critical: &[String],
    ) -> Self {
        let reader = Reader { source, at_ms, options };
        let parts = ScorePart::ALL.map(|part| reader.part(part)).into();
        Self::of(at_ms, parts, critical.to_vec())
    }

    /// Returns a metric of the score.
    #[must_use]
    pub fn metric(&self, metric: ScoreMetric) -> Option<&MetricScore> {
        self.parts.iter().flat_map(|part| &part.metrics).find(|found| found.metric == metric)
    }

    /// Returns how many points the sum would gain if a metric had another value; less than zero if it
    /// would lose.
    ///
    /// `None` if the metric has no value now: then nothing can be said about a difference.
    #[must_use]
    pub fn expected_points(&self, metric: ScoreMetric, value: f64) -> Option<f64> {
        let mut parts = self.parts.clone();
        let found =
            parts.iter_mut().flat_map(|part| &mut part.metrics).find(|m| m.metric == metric)?;
        found.value.replace(value)?;
        let projected = Self::of(self.at_ms, parts, Vec::new());
        Some(hundredths(((projected.sum? - self.sum?) * 100.0).round() as i64))
    }

    /// Computes scores, points and the sum from the values of the metrics.
    fn of(at_ms: i64, mut parts: Vec<PartScore>, critical: Vec<String>) -> Self {
        for part in &mut parts {
            let (mut sum, mut weights) = (0.0, 0.0);
            for metric in &mut part.metrics {
                metric.score =
                    metric.value.map(|value| log_normal(value, metric.target, metric.half));
                if let Some(score) = metric.score {
                    sum += score * f64::from(metric.weight);
                    weights += f64::from(metric.weight);
                }
            }
            part.score = (weights > 0.0).then(|| sum / weights);
            if part.score.is_some() {
                part.state = PartState::Scored;
            }
        }
        let scored = parts.iter().filter(|part| part.score.is_some());
        let weights: u32 = scored.map(|part| part.weight).sum();
        let (mut weight_before, mut lost_sum) = (0, 0);
        for part in &mut parts {
            let Some(score) = part.score else {
                (part.points_max, part.points, part.lost) = (0.0, None, 0.0);
                continue;
            };
            // Differences of rounded running sums: together exactly 10,000 hundredths.
            let share = |weight: u32| i64::from((weight * 10_000 + weights / 2) / weights);
            let most = share(weight_before + part.weight) - share(weight_before);
            weight_before += part.weight;
            let lost = ((1.0 - score) * most as f64).round() as i64;
            lost_sum += lost;
            (part.points_max, part.lost) = (hundredths(most), hundredths(lost));
            part.points = Some(hundredths(most - lost));
        }
        let sum = (weights > 0).then(|| hundredths(10_000 - lost_sum));
        let capped = !critical.is_empty() && sum.is_some_and(|sum| sum > CRITICAL_CAP);
        let score = if capped { Some(CRITICAL_CAP) } else { sum };
        let band = score.map(|score| match score {
            ..50.0 => Band::Poor,
            ..90.0 => Band::NeedsWork,
            _ => Band::Good,
        });
        let capped_by = if capped { critical } else { Vec::new() };
        Self { at_ms, score, band, sum, capped_by, parts }
    }
}

fn hundredths(points: i64) -> f64 {
    points as f64 / 100.0
}

/// A value and what it comes from; no value if there is too little.
type Measured = (Option<f64>, u64);

struct Reader<'a> {
    source: &'a dyn Source,
    at_ms: i64,
    options: &'a ScoreOptions,
}

impl Reader<'_> {
    fn part(&self, part: ScorePart) -> PartScore {
        let (inputs, targets) = (&self.options.inputs, &self.options.targets);
        let mut metrics = Vec::new();
        let mut any = false;
        let mut push =
            |metric, selector: &Selector, (target, half): (f64, f64), (value, samples)| {
                any |= !self.source.matching(selector).is_empty();
                metrics.push(MetricScore {
                    metric,
                    selector: selector.to_string(),
                    weight: 1,
                    value,
                    target,
                    half,
                    score: None,
                    samples,
                });
            };
        match part {
            ScorePart::Latency => {
                let target = targets.p95.as_secs_f64();
                let from = &inputs.request_seconds;
                let points = (target, 2.0 * target);
                push(ScoreMetric::P95, from, points, self.quantile(from, 0.95));
                let points = (1.5 * target, 4.0 * target);
                push(ScoreMetric::P99, from, points, self.quantile(from, 0.99));
            }
            ScorePart::Errors => {
                let value = self.ratio(&inputs.failed_requests, &inputs.requests);
                push(ScoreMetric::ErrorRatio, &inputs.requests, (0.001, 0.02), value);
            }
            ScorePart::Saturation => {
                push(ScoreMetric::Cpu, &inputs.cpu, (0.65, 0.90), self.mean(&inputs.cpu));
                let pressure = &inputs.cpu_pressure;
                push(ScoreMetric::CpuPressure, pressure, (0.05, 0.25), self.mean(pressure));
            }
            ScorePart::Cache => {
                let aimed = 1.0 - targets.hit_ratio;
                let value = self.ratio(&inputs.cache_misses, &inputs.cache_requests);
                let points = (aimed, 2.0 * aimed);
                push(ScoreMetric::CacheMissRatio, &inputs.cache_requests, points, value);
                let value = self.ratio(&inputs.duplicate_loads, &inputs.loads);
                push(ScoreMetric::DuplicateLoads, &inputs.loads, (0.01, 0.10), value);
            }
            ScorePart::Scheduler => {
                let target = targets.queue_wait.as_secs_f64();
                let from = &inputs.queue_wait_seconds;
                let points = (target, 4.0 * target);
                push(ScoreMetric::QueueWaitP95, from, points, self.quantile(from, 0.95));
                let value = self.ratio(&inputs.failed_executions, &inputs.executions);
                push(ScoreMetric::FailedExecutions, &inputs.executions, (0.01, 0.10), value);
            }
            ScorePart::Memory => {
                let from = &inputs.resident_memory;
                push(ScoreMetric::MemoryOfLimit, from, (0.70, 0.90), self.memory_of_limit());
                push(ScoreMetric::MemoryGrowth, from, (1.0, 14.0), self.memory_growth());
            }
            ScorePart::Database => {
                let value = self.pool_wait();
                push(ScoreMetric::PoolWait, &inputs.query_seconds, (0.02, 0.20), value);
            }
        }
        let state = if any { PartState::Collecting } else { PartState::Absent };
        PartScore {
            part,
            weight: part.weight(),
            state,
            score: None,
            points_max: 0.0,
            points: None,
            lost: 0.0,
            metrics,
        }
    }

    fn window(&self) -> Window {
        Window::ending(self.at_ms, millis(self.options.window))
    }

    fn aggregate(&self, selector: &Selector, aggregate: Aggregate) -> Option<Reading> {
        let found = self.source.matching(selector);
        let ids: Vec<_> = found.iter().map(|matched| matched.id).collect();
        self.source.aggregate(&ids, self.window(), aggregate)
    }

    /// Whether there were samples at the beginning of the window: within its first fiftieth, or within
    /// two intervals between samples if that is longer.
    fn is_full(&self, selector: &Selector) -> bool {
        let window = self.window();
        let found = self.source.matching(selector);
        let ids: Vec<_> = found.iter().map(|matched| matched.id).collect();
        let Some(read) = self.source.aggregate(&ids, window, Aggregate::Last) else { return false };
        let interval = window.length_ms() * ids.len() as i64 / i64::from(read.expected.max(1));
        let head_ms = (2 * interval).max(window.length_ms() / 50).min(window.length_ms() / 2);
        let head = Window {
            from_ms: window.from_ms.saturating_sub(1),
            to_ms: window.from_ms.saturating_add(head_ms),
        };
        self.source.aggregate(&ids, head, Aggregate::Last).is_some()
    }

    /// A quantile of a histogram that holds enough values.
    fn quantile(&self, selector: &Selector, q: f64) -> Measured {
        let count = self.aggregate(selector, Aggregate::Count).map_or(0.0, |read| read.value);
        let enough = count >= f64::from(self.options.requests_min) && self.is_full(selector);
        let value = enough.then(|| self.aggregate(selector, Aggregate::Quantile(q))).flatten();
        (value.map(|read| read.value), count as u64)
    }

    /// The growth of one counter as a part of another's; a part that has no series did not grow.
    fn ratio(&self, part: &Selector, whole: &Selector) -> Measured {
        let growth = |selector| self.aggregate(selector, Aggregate::Delta).map(|read| read.value);
        let all = growth(whole).unwrap_or(0.0);
        if all < f64::from(self.options.requests_min) || !self.is_full(whole) {
            return (None, all as u64);
        }
        (Some((growth(part).unwrap_or(0.0) / all).clamp(0.0, 1.0)), all as u64)
    }

    /// The mean of a gauge of which at least half of the samples are there.
    fn mean(&self, selector: &Selector) -> Measured {
        let Some(read) = self.aggregate(selector, Aggregate::Avg) else { return (None, 0) };
        let enough = read.samples.saturating_mul(2) >= read.expected && self.is_full(selector);
        (enough.then_some(read.value), u64::from(read.samples))
    }

    fn memory_of_limit(&self) -> Measured {
        let (resident, samples) = self.mean(&self.options.inputs.resident_memory);
        let limit = self.memory_limit();
        (resident.zip(limit).map(|(resident, limit)| resident / limit), samples)
    }

    fn memory_limit(&self) -> Option<f64> {
        let read = self.aggregate(&self.options.inputs.memory_limit, Aggregate::Last)?;
        Some(read.value).filter(|limit| *limit > 0.0)
    }

    fn memory_growth(&self) -> Measured {
        const WEEK: f64 = 7.0 * 86_400.0;
        let found = self.source.matching(&self.options.inputs.resident_memory);
        let ids: Vec<_> = found.iter().map(|matched| matched.id).collect();
        let points = crate::insight::points(
            self.source,
            &ids,
            Window::ending(self.at_ms, millis(self.options.growth_window)),
            Aggregate::Avg,
        );
        // A short stretch tells nothing about a week.
        let stretch =
            points.last().zip(points.first()).map_or(0.0, |(last, first)| last.0 - first.0);
        let enough = stretch >= self.options.growth_window.as_secs_f64() / 6.0;
        let trend = enough.then(|| theil_sen(&points)).flatten();
        let value = trend.zip(self.memory_limit()).map(|(trend, limit)| {
            let forecast = time_to_limit(&trend, limit, Side::Above);
            forecast.map_or(0.0, |at| WEEK / at.expected_seconds.max(1.0))
        });
        (value, points.len() as u64)
    }

    fn pool_wait(&self) -> Measured {
        let (wait, query) =
            (&self.options.inputs.pool_wait_seconds, &self.options.inputs.query_seconds);
        let count = self.aggregate(query, Aggregate::Count).map_or(0.0, |read| read.value);
        let sum = |selector| self.aggregate(selector, Aggregate::Sum).map(|read| read.value);
        if count < f64::from(self.options.requests_min) || !self.is_full(query) {
            return (None, count as u64);
        }
        let seconds = sum(query).filter(|seconds| *seconds > 0.0);
        (sum(wait).zip(seconds).map(|(wait, seconds)| wait / seconds), count as u64)
    }
}
