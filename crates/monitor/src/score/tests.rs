//! The score of made-up samples, checked by hand.

use super::*;
use crate::insight::fake::Fake;

const AT_MS: i64 = 600_000;

/// Ten minutes of a sample a second up to `AT_MS`.
fn gauge(fake: &mut Fake, name: &str, value: f64) {
    fake.gauge(name, &[], 0, 1_000, [value; 601]);
}

/// A counter that grows by `per_second`.
fn counter(fake: &mut Fake, name: &str, labels: &[(&str, &str)], per_second: f64) {
    fake.counter(name, labels, 0, 1_000, (0..=600).map(|at| f64::from(at) * per_second));
}

/// Ten minutes of one value in each second.
fn histogram(fake: &mut Fake, name: &str, value: f64) {
    for at in 0..=600 {
        fake.histogram(name, &[], at * 1_000, &[value]);
    }
}

fn read(fake: &Fake, critical: &[&str]) -> Score {
    let critical: Vec<String> = critical.iter().map(|name| (*name).to_owned()).collect();
    Score::read(fake, AT_MS, &ScoreOptions::default(), &critical)
}

fn part(score: &Score, part: ScorePart) -> &PartScore {
    score.parts.iter().find(|found| found.part == part).expect("all parts are there")
}

fn everything() -> Fake {
    let mut fake = Fake::default();
    histogram(&mut fake, "http_request_duration_seconds", 0.2);
    counter(&mut fake, "http_requests_total", &[("status", "200")], 98.0);
    counter(&mut fake, "http_requests_total", &[("status", "503")], 2.0);
    gauge(&mut fake, "system_cpu_usage_ratio", 0.65);
    gauge(&mut fake, "system_psi_cpu_some_ratio", 0.25);
    counter(&mut fake, "cache_requests_total", &[("result", "hit")], 60.0);
    counter(&mut fake, "cache_requests_total", &[("result", "miss")], 40.0);
    histogram(&mut fake, "scheduler_queue_wait_seconds", 0.05);
    gauge(&mut fake, "process_resident_memory_bytes", 9e8);
    gauge(&mut fake, "process_memory_limit_bytes", 1e9);
    histogram(&mut fake, "database_pool_wait_seconds", 0.01);
    histogram(&mut fake, "database_query_duration_seconds", 0.05);
    fake
}

#[test]
fn every_metric_is_scored_by_its_two_points() {
    let score = read(&everything(), &[]);
    for (metric, value, expected) in [
        (ScoreMetric::P95, 0.2, 0.9),
        (ScoreMetric::ErrorRatio, 0.02, 0.5),
        (ScoreMetric::Cpu, 0.65, 0.9),
        (ScoreMetric::CpuPressure, 0.25, 0.5),
        (ScoreMetric::CacheMissRatio, 0.4, 0.5),
        (ScoreMetric::QueueWaitP95, 0.05, 0.9),
        (ScoreMetric::MemoryOfLimit, 0.9, 0.5),
        (ScoreMetric::PoolWait, 0.2, 0.5),
    ] {
        let found = score.metric(metric).expect("all metrics are there");
        assert!((found.value.expect("a value") / value - 1.0).abs() < 0.02, "{found:?}");
        // A histogram's quantile is within 1.6 %, which moves a score by up to 0.02.
        assert!((found.score.expect("a score") - expected).abs() < 0.02, "{found:?}");
    }
    let saturation = part(&score, ScorePart::Saturation);
    assert!((saturation.score.expect("a score") - 0.7).abs() < 1e-6);
    assert_eq!(
        (saturation.points_max, saturation.points, saturation.lost),
        (20.0, Some(14.0), 6.0)
    );
}

#[test]
fn the_points_add_up_to_the_score_exactly() {
    let in_hundredths = |points: f64| (points * 100.0).round() as i64;
    let mut fake = everything();
    for _ in 0..2 {
        let score = read(&fake, &[]);
        let sum: i64 = score.parts.iter().filter_map(|part| part.points).map(in_hundredths).sum();
        let lost: i64 = score.parts.iter().map(|part| in_hundredths(part.lost)).sum();
        let most: i64 = score.parts.iter().map(|part| in_hundredths(part.points_max)).sum();
        assert_eq!(in_hundredths(score.score.expect("a score")), sum);
        assert_eq!((sum + lost, most), (10_000, 10_000));
        // Once more with three parts, whose weights do not divide 100.
        fake = Fake::default();
        gauge(&mut fake, "system_cpu_usage_ratio", 0.5);
        counter(&mut fake, "http_requests_total", &[("status", "200")], 10.0);
        histogram(&mut fake, "http_request_duration_seconds", 0.3);
        gauge(&mut fake, "process_resident_memory_bytes", 9e8);
        gauge(&mut fake, "process_memory_limit_bytes", 1e9);
    }
}

#[test]
fn weights_are_stretched_over_the_parts_that_apply() {
    let mut fake = Fake::default();
    gauge(&mut fake, "system_cpu_usage_ratio", 0.9);
    counter(&mut fake, "http_requests_total", &[("status", "200")], 10.0);
    let score = read(&fake, &[]);
    assert_eq!(part(&score, ScorePart::Errors).points_max, 50.0);
    assert_eq!(part(&score, ScorePart::Saturation).points, Some(25.0));
    assert_eq!(part(&score, ScorePart::Cache).state, PartState::Absent);
    assert_eq!((score.score, score.band), (Some(75.0), Some(Band::NeedsWork)));
}

#[test]
fn too_little_data_is_no_score_and_never_a_full_one() {
    // Four minutes only.
    let mut short = Fake::default();
    short.gauge("system_cpu_usage_ratio", &[], AT_MS - 240_000, 1_000, [0.1; 241]);
    // Five minutes and more, but fewer than 100 requests in them.
    let mut few = Fake::default();
    few.counter("http_requests_total", &[], 0, 1_000, (0..=600).map(|at| f64::from(at) * 0.3));
    for (fake, of) in [(short, ScorePart::Saturation), (few, ScorePart::Errors)] {
        let score = read(&fake, &["down"]);
        assert_eq!(part(&score, of).state, PartState::Collecting);
        assert_eq!((part(&score, of).points, part(&score, of).points_max), (None, 0.0));
        assert_eq!((score.score, score.band), (None, None));
    }
    assert_eq!(read(&Fake::default(), &[]).score, None);
}

#[test]
fn samples_a_minute_apart_fill_the_window_too() {
    let mut fake = Fake::default();
    fake.gauge("system_cpu_usage_ratio", &[], 0, 60_000, [0.65; 11]);
    assert_eq!(read(&fake, &[]).score, Some(90.0));
    let mut short = Fake::default();
    short.gauge("system_cpu_usage_ratio", &[], AT_MS - 60_000, 60_000, [0.65; 2]);
    assert_eq!(read(&short, &[]).score, None);
}

#[test]
fn a_part_that_collects_leaves_its_weight_to_the_others() {
    let mut fake = Fake::default();
    gauge(&mut fake, "system_cpu_usage_ratio", 0.65);
    fake.histogram("http_request_duration_seconds", &[], AT_MS, &[0.001; 50]);
    let score = read(&fake, &[]);
    assert_eq!(part(&score, ScorePart::Latency).state, PartState::Collecting);
    assert_eq!(score.score, Some(90.0));
    assert_eq!(score.band, Some(Band::Good));
}

#[test]
fn a_critical_alert_caps_the_score_and_is_named() {
    let mut fake = Fake::default();
    gauge(&mut fake, "system_cpu_usage_ratio", 0.65);
    let score = read(&fake, &["db_down"]);
    assert_eq!((score.score, score.sum), (Some(49.0), Some(90.0)));
    assert_eq!((score.band, score.capped_by), (Some(Band::Poor), vec!["db_down".to_owned()]));
    // A score that is lower anyway is not raised, and not said to be capped.
    let mut fake = Fake::default();
    gauge(&mut fake, "system_cpu_usage_ratio", 1.0);
    let score = read(&fake, &["db_down"]);
    assert!(score.score < Some(49.0) && score.capped_by.is_empty());
}

#[test]
fn expected_points_are_those_of_scoring_again() {
    let mut fake = Fake::default();
    gauge(&mut fake, "system_cpu_usage_ratio", 0.9);
    counter(&mut fake, "http_requests_total", &[("status", "200")], 10.0);
    let score = read(&fake, &["db_down"]);
    assert_eq!(score.expected_points(ScoreMetric::Cpu, 0.65), Some(20.0));
    assert_eq!(score.expected_points(ScoreMetric::ErrorRatio, 0.02), Some(-25.0));
    assert_eq!(score.expected_points(ScoreMetric::P95, 0.1), None);
}

#[test]
fn growth_of_memory_counts_by_the_time_that_is_left() {
    let mut fake = Fake::default();
    // Six hours, a sample a minute; the limit is twelve hours away.
    let at_ms = 6 * 3_600_000;
    let per_minute = 1e9 / (12.0 * 60.0);
    let resident = (0..=360).map(|at| 1e9 + f64::from(at - 360) * per_minute);
    fake.gauge("process_resident_memory_bytes", &[], 0, 60_000, resident);
    fake.gauge("process_memory_limit_bytes", &[], 0, 60_000, [2e9; 361]);
    let score = Score::read(&fake, at_ms, &ScoreOptions::default(), &[]);
    let growth = score.metric(ScoreMetric::MemoryGrowth).expect("there");
    assert!((growth.value.expect("a value") - 14.0).abs() < 0.1, "{growth:?}");
    assert!((growth.score.expect("a score") - 0.5).abs() < 0.01);
}

#[test]
fn the_report_reads_as_json() {
    let json = serde_json::to_value(read(&everything(), &["db_down"])).expect("plain data");
    assert_eq!(json["parts"][0]["part"], "latency");
    assert_eq!(json["parts"][0]["metrics"][0]["metric"], "p95");
    assert_eq!(json["capped_by"][0], "db_down");
    let empty = serde_json::to_value(read(&Fake::default(), &[])).expect("plain data");
    assert!(empty["score"].is_null());
    assert_eq!(empty["parts"][6]["state"], "absent");
}
