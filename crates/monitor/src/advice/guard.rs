//! What is measured before and after a change, and what the difference says.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Finding;
use super::words::number as short;
use crate::clock::millis;
use crate::insight::Worse;
use crate::score::ScoreInputs;
use crate::selector::Selector;
use crate::source::{Aggregate, Source, Window};

/// How changes are watched.
#[derive(Debug, Clone, PartialEq)]
pub struct GuardOptions {
    /// How long before and after a change is compared; ten minutes by default.
    pub window: Duration,
    /// A metric that is worse by more than this part is a reason to undo; 0.1 by default.
    pub worse: f64,
    /// The target is better if it improved by at least this part; 0.05 by default.
    pub better: f64,
    /// Histogram of the seconds of requests, of which the 95th percentile is guarded.
    pub request_seconds: Selector,
    /// Counter of requests.
    pub requests: Selector,
    /// Counter of requests that failed.
    pub failed_requests: Selector,
    /// Gauge of the memory of the process in bytes.
    pub resident_memory: Selector,
}

impl Default for GuardOptions {
    fn default() -> Self {
        let inputs = ScoreInputs::default();
        Self {
            window: Duration::from_secs(600),
            worse: 0.1,
            better: 0.05,
            request_seconds: inputs.request_seconds,
            requests: inputs.requests,
            failed_requests: inputs.failed_requests,
            resident_memory: inputs.resident_memory,
        }
    }
}

/// A guarded metric at one time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GuardReading {
    /// What it is called; `target` is the metric that the change is for.
    pub name: String,
    /// Its value over the window; `None` if there was none.
    pub value: Option<f64>,
    /// Which direction is bad.
    pub worse: Worse,
    /// Changes are a part of the value before, and at least of this.
    pub floor: f64,
    /// By how much it may become worse, because the change is known to cost that.
    #[serde(default)]
    pub granted: f64,
}

/// What became of a change.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Verdict {
    Better(String),
    Same(String),
    Worse(String),
}

/// The name of the metric that the change is for.
const TARGET: &str = "target";

impl GuardOptions {
    /// Reads the guarded metrics, and those of a finding, over the window that ends at `at_ms`.
    pub(super) fn read(
        &self,
        source: &dyn Source,
        finding: &Finding,
        at_ms: i64,
    ) -> Vec<GuardReading> {
        let window = Window::ending(at_ms, millis(self.window));
        let read = |selector: &Selector, aggregate| {
            let found = source.matching(selector);
            let ids: Vec<_> = found.iter().map(|matched| matched.id).collect();
            source.aggregate(&ids, window, aggregate).map(|read| read.value)
        };
        let requests = read(&self.requests, Aggregate::Delta).filter(|all| *all > 0.0);
        let errors =
            requests.map(|all| read(&self.failed_requests, Aggregate::Delta).unwrap_or(0.0) / all);
        let reading = |name: &str, value, worse, floor| GuardReading {
            name: name.to_owned(),
            value,
            worse,
            floor,
            granted: 0.0,
        };
        let p95 = read(&self.request_seconds, Aggregate::Quantile(0.95));
        let memory = read(&self.resident_memory, Aggregate::Avg);
        let mut readings = vec![
            // What is below these is noise: a millisecond, a percent, a few megabytes.
            reading("p95", p95, Worse::Higher, 0.001),
            reading("error_ratio", errors, Worse::Higher, 0.01),
            GuardReading {
                granted: finding.memory_bytes as f64,
                ..reading("resident_memory", memory, Worse::Higher, f64::from(64 << 20))
            },
        ];
        let also = finding.also.iter().map(|spec| (spec.name.as_str(), spec));
        let all = also.chain(finding.target.as_ref().map(|spec| (TARGET, spec)));
        readings.extend(
            all.map(|(name, spec)| reading(name, spec.read(source, window), spec.worse, 0.0)),
        );
        readings
    }

    /// Compares what was before a change with what is after it.
    pub(super) fn judge(&self, before: &[GuardReading], after: &[GuardReading]) -> Verdict {
        // How much worse, as a part of what was before.
        let worse_by = |before: &GuardReading| {
            let now = after.iter().find(|now| now.name == before.name)?.value?;
            let was = before.value?;
            let sign = if before.worse == Worse::Higher { 1.0 } else { -1.0 };
            let whole = was.abs().max(before.floor).max(f64::MIN_POSITIVE);
            let words = format!("{} went from {} to {}", before.name, short(was), short(now));
            Some((((now - was) * sign - before.granted) / whole, words))
        };
        let changes: Vec<_> =
            before.iter().filter_map(|reading| Some((reading, worse_by(reading)?))).collect();
        let worse: Vec<&str> = changes
            .iter()
            .filter(|(_, (by, _))| *by > self.worse)
            .map(|(_, (_, words))| words.as_str())
            .collect();
        if !worse.is_empty() {
            return Verdict::Worse(worse.join(", "));
        }
        match changes.iter().find(|(reading, _)| reading.name == TARGET) {
            Some((_, (by, words))) if *by <= -self.better => Verdict::Better(words.clone()),
            Some((_, (_, words))) => Verdict::Same(words.clone()),
            None => Verdict::Same("the target has no values before and after".to_owned()),
        }
    }
}
