//! Which stage makes the slow requests slow.
//!
//! Each stage of a request records its time into one histogram with a label for the stage. What a stage
//! contributes to the 95th percentile is the time that it exceeds in one of twenty requests: a stage that
//! only one request in a hundred goes through does not make the 95th percentile, however slow it is, and
//! one that a request goes through three times counts three times. The histograms of stages do not tell
//! which times belong to the same request, so the shares assume that the slow times of different stages
//! meet; the contributions may add up to more than the percentile of the whole.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::Evidence;
use crate::clock::millis;
use crate::selector::{Comparison, Matcher, Selector};
use crate::series::SeriesId;
use crate::source::{Aggregate, Source, Window};

/// Requests that a verdict needs in the window.
const REQUESTS_MIN: f64 = 100.0;
/// Stages that a report holds at most; those that contribute least are left out.
const STAGES_MAX: usize = 32;
/// The tail that is explained.
const TAIL: f64 = 0.05;

/// What one stage contributes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StageShare {
    /// The value of the label.
    pub stage: String,
    /// What it contributes to the 95th percentile, in the unit of the histogram.
    pub tail: f64,
    /// Its part of all contributions, from 0 to 1.
    pub share: f64,
    /// Its own 95th percentile.
    pub p95: f64,
    /// Its mean.
    pub mean: f64,
    /// How often it ran in a request.
    pub runs_per_request: f64,
    /// How often it ran.
    pub samples: u64,
}

/// Which stage dominates the 95th percentile.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Bottleneck {
    /// The stage that contributes most.
    pub stage: String,
    /// Its part of all contributions.
    pub share: f64,
    /// Whether that is more than half of all.
    pub dominates: bool,
    /// The 95th percentile of the whole.
    pub p95: f64,
    /// Requests in the window.
    pub requests: u64,
    /// All stages, the one that contributes most first.
    pub stages: Vec<StageShare>,
    /// The times of the whole, and those of the stage.
    pub evidence: Vec<Evidence>,
}

/// Returns which stage dominates the 95th percentile of `whole` over the window that ends at `at_ms`.
///
/// `whole` is the histogram of requests, `stages` that of their stages, and `label` tells the stages
/// apart. `None` if there were fewer than 100 requests, or no stage ran.
#[must_use]
pub fn bottleneck(
    source: &dyn Source,
    whole: &Selector,
    stages: &Selector,
    label: &str,
    window: Duration,
    at_ms: i64,
) -> Option<Bottleneck> {
    let window = Window::ending(at_ms, millis(window));
    let read = |ids: &[SeriesId], aggregate| Some(source.aggregate(ids, window, aggregate)?.value);
    let requests_ids = super::ids(source, whole);
    let requests = read(&requests_ids, Aggregate::Count)?;
    if requests < REQUESTS_MIN {
        return None;
    }
    let p95 = read(&requests_ids, Aggregate::Quantile(1.0 - TAIL))?;

    let mut by_stage: BTreeMap<String, Vec<SeriesId>> = BTreeMap::new();
    for matched in source.matching(stages) {
        let stage = matched.key.labels.get(label).unwrap_or("").to_owned();
        by_stage.entry(stage).or_default().push(matched.id);
    }
    let mut shares: Vec<StageShare> = by_stage
        .into_iter()
        .filter_map(|(stage, ids)| {
            let count = read(&ids, Aggregate::Count).filter(|count| *count > 0.0)?;
            let runs = count / requests;
            // Exceeded in a twentieth of all requests: of a rare stage that is a larger part.
            let tail = match TAIL / runs.min(1.0) {
                exceeded if exceeded >= 1.0 => 0.0,
                exceeded => read(&ids, Aggregate::Quantile(1.0 - exceeded))? * runs.max(1.0),
            };
            Some(StageShare {
                stage,
                tail,
                share: 0.0,
                p95: read(&ids, Aggregate::Quantile(1.0 - TAIL))?,
                mean: read(&ids, Aggregate::Avg)?,
                runs_per_request: runs,
                samples: count as u64,
            })
        })
        .collect();
    let all: f64 = shares.iter().map(|share| share.tail).sum();
    if all <= 0.0 {
        return None;
    }
    for share in &mut shares {
        share.share = share.tail / all;
    }
    // Equal shares stay in the order of their names, so the result is the same each time.
    shares.sort_by(|a, b| b.share.total_cmp(&a.share));
    shares.truncate(STAGES_MAX);
    let (stage, share) = (shares[0].stage.clone(), shares[0].share);
    let mut one = stages.clone();
    one.matchers.push(Matcher::new(label, Comparison::Equal, stage.as_str()).ok()?);
    let evidence =
        [whole, &one].map(|of| Evidence::read(source, of, window, Aggregate::Quantile(0.95)));
    Some(Bottleneck {
        stage,
        share,
        dominates: share > 0.5,
        p95,
        requests: requests as u64,
        stages: shares,
        evidence: evidence.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::fake::Fake;
    use super::*;

    /// Stages as `(name, times in ms)`, and 1,000 requests of 100 ms.
    fn found(stages: &[(&str, Vec<f64>)]) -> Option<Bottleneck> {
        let mut fake = Fake::default();
        fake.histogram("request_seconds", &[], 1_000, &[0.1; 1_000]);
        for (stage, millis) in stages {
            let seconds: Vec<f64> = millis.iter().map(|millis| millis / 1_000.0).collect();
            fake.histogram("stage_seconds", &[("stage", stage)], 1_000, &seconds);
        }
        let (whole, stages) = (Selector::name("request_seconds"), Selector::name("stage_seconds"));
        bottleneck(&fake, &whole, &stages, "stage", Duration::from_secs(300), 2_000)
    }

    #[test]
    fn the_stage_with_the_slow_tail_is_found_and_not_the_one_with_the_high_mean() {
        let database: Vec<f64> = (0..1_000).map(|at| if at < 920 { 2.0 } else { 80.0 }).collect();
        let found = found(&[("database", database), ("render", vec![20.0; 1_000])]).expect("there");
        assert_eq!((found.stage.as_str(), found.dominates), ("database", true));
        assert!((found.share - 0.8).abs() < 0.01);
        assert!(found.stages[1].mean > found.stages[0].mean);
        assert_eq!(found.evidence[1].metric, r#"stage_seconds{stage="database"}"#);
    }

    #[test]
    fn a_rare_stage_does_not_make_the_95th_percentile() {
        let found = found(&[("import", vec![900.0; 20]), ("render", vec![20.0; 1_000])]);
        assert_eq!(found.expect("there").stage, "render");
    }

    #[test]
    fn a_stage_that_one_request_in_ten_goes_through_counts_by_its_median() {
        // A twentieth of all requests is half of the hundred.
        let import: Vec<f64> = (0..100).map(|at| if at < 50 { 10.0 } else { 100.0 }).collect();
        let found = found(&[("import", import), ("render", vec![20.0; 1_000])]).expect("there");
        let import = found.stages.iter().find(|share| share.stage == "import").expect("there");
        assert!((import.tail - 0.010).abs() < 0.001, "{import:?}");
    }

    #[test]
    fn a_stage_that_runs_three_times_counts_three_times() {
        let found = found(&[("query", vec![15.0; 3_000]), ("render", vec![20.0; 1_000])]);
        let found = found.expect("there");
        assert_eq!(found.stage, "query");
        assert!((found.stages[0].tail - 0.045).abs() < 0.001);
    }

    #[test]
    fn few_requests_or_no_stage_give_no_verdict() {
        assert_eq!(found(&[]), None);
        let mut fake = Fake::default();
        fake.histogram("request_seconds", &[], 1_000, &[0.1; 99]);
        let whole = Selector::name("request_seconds");
        let window = Duration::from_secs(300);
        assert_eq!(bottleneck(&fake, &whole, &whole, "stage", window, 2_000), None);
    }
}
