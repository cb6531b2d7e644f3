//! What the samples say: how a metric usually is, where it goes, when it reaches a limit, what holds it up.
//!
//! [`theil_sen`] and [`time_to_limit`] are plain functions on points. The rest reads any [`Source`]:
//! [`baselines`] tell how metrics usually are, [`degradations`] compare the last minutes with that,
//! [`trend`] and [`forecast`] look at one metric, [`anomaly`] asks whether it behaves oddly, and
//! [`bottleneck`] says which stage makes the slow requests slow. Every result carries its [`Evidence`], and the same samples always give the same result.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::millis;
use crate::selector::Selector;
use crate::series::SeriesId;
use crate::source::{Aggregate, Source, Window};

mod baseline;
mod bottleneck;
#[cfg(test)]
pub(crate) mod fake;
mod forecast;
mod odd;
mod trend;

pub use baseline::{
    Baseline, Degradation, DegradationOptions, MetricBaseline, MetricSpec, Worse, baseline,
    baselines, degradations,
};
pub use bottleneck::{Bottleneck, StageShare, bottleneck};
pub use forecast::{Forecast, Side, time_to_limit};
pub use odd::{Anomaly, anomaly};
pub(crate) use trend::MAD_TO_DEVIATION;
pub(crate) use trend::quantile;
pub use trend::{POINTS_MAX, POINTS_MIN, Trend, Z_SIGNIFICANT, downsample, theil_sen};

/// What a result rests on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// The series, as a selector.
    pub metric: String,
    /// What was made of their samples, such as `p95`.
    pub aggregate: String,
    /// After this moment, in milliseconds since 1970.
    pub from_ms: i64,
    /// Up to this moment.
    pub to_ms: i64,
    /// What the samples of the whole window come to.
    pub value: Option<f64>,
    /// Samples, or steps with a value, that the result comes from.
    pub samples: usize,
    /// The values over the window, at most [`POINTS_MAX`] of equal steps, for a chart.
    pub values: Vec<Option<f64>>,
}

impl Evidence {
    /// Reads the samples of a selector as evidence, with values for a chart.
    #[must_use]
    pub fn read(
        source: &dyn Source,
        selector: &Selector,
        window: Window,
        aggregate: Aggregate,
    ) -> Self {
        let ids = ids(source, selector);
        let read = source.aggregate(&ids, window, aggregate);
        Self {
            metric: selector.to_string(),
            aggregate: aggregate.word(),
            from_ms: window.from_ms,
            to_ms: window.to_ms,
            value: read.map(|read| read.value),
            samples: read.map_or(0, |read| read.samples as usize),
            values: source.range(&ids, window, chart_step(window), aggregate),
        }
    }

    /// Reads what a metric means as evidence; that of a ratio names both sides.
    #[must_use]
    pub fn of(source: &dyn Source, spec: &MetricSpec, window: Window) -> Self {
        let mut evidence = Self::read(source, &spec.selector, window, spec.aggregate);
        if !spec.of.is_empty() {
            let whole: Vec<String> = spec.of.iter().map(ToString::to_string).collect();
            evidence.metric = format!("{} / ({})", evidence.metric, whole.join(" + "));
            evidence.value = spec.read(source, window);
            evidence.values = spec.range(source, window, chart_step(window));
        }
        evidence
    }
}

/// A trend and what it rests on.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SeriesTrend {
    /// The trend; its slope is in a second.
    pub trend: Trend,
    /// Where it comes from.
    pub evidence: Evidence,
}

/// A forecast and what it rests on.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SeriesForecast {
    /// When the limit is reached.
    pub forecast: Forecast,
    /// The trend that leads there.
    pub trend: Trend,
    /// Where it comes from.
    pub evidence: Evidence,
}

/// Returns how what a selector means has changed over the window that ends at `at_ms`.
///
/// `None` if there are fewer than [`POINTS_MIN`] values.
#[must_use]
pub fn trend(
    source: &dyn Source,
    selector: &Selector,
    aggregate: Aggregate,
    window: Duration,
    at_ms: i64,
) -> Option<SeriesTrend> {
    let window = Window::ending(at_ms, millis(window));
    let trend = theil_sen(&points(source, &ids(source, selector), window, aggregate))?;
    Some(SeriesTrend { trend, evidence: Evidence::read(source, selector, window, aggregate) })
}

/// Returns when what a selector means reaches a limit if it goes on as over the window.
///
/// `None` as for [`time_to_limit`], or if there are too few values.
#[must_use]
pub fn forecast(
    source: &dyn Source,
    selector: &Selector,
    aggregate: Aggregate,
    window: Duration,
    at_ms: i64,
    limit: f64,
    side: Side,
) -> Option<SeriesForecast> {
    let SeriesTrend { trend, evidence } = trend(source, selector, aggregate, window, at_ms)?;
    let forecast = time_to_limit(&trend, limit, side)?;
    Some(SeriesForecast { forecast, trend, evidence })
}

/// Returns `(seconds, value)` of at most [`POINTS_MAX`] steps of a window; a step without a value is left out.
///
/// The seconds count from the beginning of the window to the end of each step.
#[must_use]
pub fn points(
    source: &dyn Source,
    series: &[SeriesId],
    window: Window,
    aggregate: Aggregate,
) -> Vec<(f64, f64)> {
    let step_ms = chart_step(window);
    let values = source.range(series, window, step_ms, aggregate).into_iter().enumerate();
    values
        .filter_map(|(at, value)| Some(((at + 1) as f64 * step_ms as f64 / 1_000.0, value?)))
        .filter(|(_, value)| value.is_finite())
        .collect()
}

/// The step that cuts a window into at most [`POINTS_MAX`], in whole seconds.
fn chart_step(window: Window) -> i64 {
    let step = (window.length_ms().max(1) as u64).div_ceil(POINTS_MAX as u64);
    i64::try_from(step.div_ceil(1_000) * 1_000).unwrap_or(i64::MAX)
}

fn ids(source: &dyn Source, selector: &Selector) -> Vec<SeriesId> {
    source.matching(selector).iter().map(|matched| matched.id).collect()
}
