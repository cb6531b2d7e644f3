//! The admin API's view of the process's memory: readings, their history, and a clean-up by hand.

use std::time::Instant;

use axum::Json;
use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use time::OffsetDateTime;
use ultra_perf::memory::{
    CleanupReport, CleanupRequest, Event, EventKind, HistoryPoint, MemoryGuard, ReclaimerReport,
};

use super::{Problem, Shared, read_json, read_machine, rfc3339, timestamp};

/// Points of history in one answer, unless asked otherwise, and at most.
const POINTS: usize = 60;
const POINTS_MAX: usize = 1_440;

fn off() -> Problem {
    Problem::new(StatusCode::CONFLICT, "Memory is not watched: memory.enabled.")
}

/// How often memory was reclaimed, and when last.
pub(super) fn gc_stats(guard: Option<&MemoryGuard>) -> Value {
    let stats = guard.map(MemoryGuard::stats).unwrap_or_default();
    let last = stats.last_run.map(|at| rfc3339(OffsetDateTime::from(at)));
    json!({ "counter": stats.runs, "last_gc": last })
}

pub(super) async fn stats(State(perf): Shared) -> Result<Json<Value>, Problem> {
    let guard = perf.memory().ok_or_else(off)?;
    let current = read_machine(&perf).await?.process;
    let (stats, thresholds) = (guard.stats(), guard.thresholds());
    let now = Instant::now();
    let reclaimers = guard.reclaimers().reclaimable();
    let reclaimers: Vec<_> = reclaimers
        .iter()
        .map(|(name, bytes)| json!({ "name": &**name, "reclaimable_bytes": bytes }))
        .collect();
    Ok(Json(json!({
        "timestamp": timestamp(),
        "current": current,
        "gc_stats": gc_stats(Some(guard)),
        "pressure": pressure(guard),
        "should_cleanup": guard.should_cleanup(),
        "thresholds": {
            "elevated": thresholds.elevated,
            "high": thresholds.high,
            "critical": thresholds.critical,
        },
        "reclaimed": {
            "claimed_bytes": stats.claimed_bytes,
            "observed_bytes": stats.observed_bytes,
            "decayed_bytes": stats.decayed_bytes,
            "panics": stats.panics,
            "late": stats.late,
            "stuck": stats.stuck,
        },
        "give_back": {
            "allocator": guard.allocator_name(),
            "counter": stats.give_backs,
            "bytes": stats.given_back_bytes,
        },
        "reclaimers": reclaimers,
        "sources": {
            "readings": stats.sources.readings,
            "failures": stats.sources.failures,
            "rescans": stats.sources.rescans,
            "limited_groups": stats.sources.limited_groups,
        },
        "events": guard.events().iter().rev().map(|it| event(it, now)).collect::<Vec<_>>(),
    })))
}

fn pressure(guard: &MemoryGuard) -> Value {
    let sample = guard.sample();
    json!({
        "level": sample.level.as_str(),
        "used_bytes": sample.used_bytes,
        "limit_bytes": sample.limit_bytes,
        "limited_by": sample.limited_by.as_str(),
        "percent": sample.percent(),
        "stalled_percent": sample.stalled_percent,
    })
}

fn event(event: &Event, now: Instant) -> Value {
    let (kind, detail) = match &event.kind {
        EventKind::LevelChanged { from, to } => {
            ("level_changed", json!({ "from": from.as_str(), "to": to.as_str() }))
        }
        EventKind::LimitBelowUse { limit_bytes, used_bytes } => {
            ("limit_below_use", json!({ "limit_bytes": limit_bytes, "used_bytes": used_bytes }))
        }
        EventKind::SourceLost { path } => {
            ("source_lost", json!({ "path": path.display().to_string() }))
        }
        EventKind::Reclaimed { claimed_bytes, observed_bytes } => (
            "reclaimed",
            json!({ "claimed_bytes": claimed_bytes, "observed_bytes": observed_bytes }),
        ),
        EventKind::GaveBack { observed_bytes } => {
            ("gave_back", json!({ "observed_bytes": observed_bytes }))
        }
        EventKind::ReclaimerPanicked { name } => ("reclaimer_panicked", json!({ "name": name })),
        EventKind::ReclaimerStuck { name } => ("reclaimer_stuck", json!({ "name": name })),
        _ => ("other", Value::Null),
    };
    json!({
        "number": event.number,
        "seconds_ago": seconds_ago(event.at, now),
        "kind": kind,
        "detail": detail,
    })
}

fn seconds_ago(at: Instant, now: Instant) -> f64 {
    let millis = now.saturating_duration_since(at).as_millis();
    millis as f64 / 1e3
}

/// How much history `GET /performance/memory/usage` gives.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Span {
    /// Points of a second each, the newest first; 900 are kept.
    seconds: Option<usize>,
    /// Points of a minute each; 1,440 are kept.
    minutes: Option<usize>,
}

pub(super) async fn usage(
    State(perf): Shared,
    span: Result<Query<Span>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<Value>, Problem> {
    let Query(Span { seconds, minutes }) = span.map_err(|_| {
        let detail = "The query may have seconds and minutes, each a number of points.";
        Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail)
    })?;
    let guard = perf.memory().ok_or_else(off)?;
    let current = read_machine(&perf).await?.process;
    let now = Instant::now();
    let newest = |points: Vec<HistoryPoint>, count: Option<usize>| -> Vec<Value> {
        let count = count.unwrap_or(POINTS).min(POINTS_MAX);
        points.iter().rev().take(count).map(|it| point(it, now)).collect()
    };
    Ok(Json(json!({
        "timestamp": timestamp(),
        "current": current,
        "pressure": pressure(guard),
        "seconds": newest(guard.seconds(), seconds),
        "minutes": newest(guard.minutes(), minutes),
    })))
}

fn point(point: &HistoryPoint, now: Instant) -> Value {
    json!({
        "seconds_ago": seconds_ago(point.at, now),
        "used_min_bytes": point.used_min_bytes,
        "used_mean_bytes": point.used_mean_bytes,
        "used_max_bytes": point.used_max_bytes,
        "limit_bytes": point.limit_bytes,
        "rss_max_bytes": point.rss_max_bytes,
        "level_max": point.level_max.as_str(),
    })
}

/// What `POST /performance/memory/cleanup` takes; all of it may be left out.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Cleanup {
    /// Cleans up below the threshold too.
    #[serde(default)]
    force: bool,
    /// Frees all that can be freed.
    #[serde(default)]
    aggressive: bool,
    /// How many bytes to free.
    target_bytes: Option<u64>,
}

pub(super) async fn cleanup(
    State(perf): Shared,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Problem> {
    let Cleanup { force, aggressive, target_bytes } = read_json(&headers, body).await?;
    let guard = perf.memory().cloned().ok_or_else(off)?;
    let mut request = CleanupRequest::default();
    (request.force, request.aggressive, request.target_bytes) = (force, aggressive, target_bytes);
    // It blocks for as long as the reclaimers and the allocator take.
    let done = tokio::task::spawn_blocking(move || guard.cleanup(request)).await;
    let report = done
        .map_err(|_| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "The clean-up broke off."))?;
    tracing::info!(
        ran = report.ran,
        claimed_bytes = report.claimed_bytes,
        observed_bytes = report.observed_bytes(),
        "memory was cleaned up by the admin API"
    );
    Ok(Json(told(&report)))
}

fn told(report: &CleanupReport) -> Value {
    let reclaimer = |it: &ReclaimerReport| {
        json!({
            "name": &*it.name,
            "target_bytes": it.target_bytes,
            "claimed_bytes": it.claimed_bytes,
            "observed_bytes": it.observed_bytes,
            "seconds": it.took.as_secs_f64(),
            "outcome": it.outcome.as_str(),
        })
    };
    let give_back = report.give_back.map(|it| {
        json!({
            "allocator": it.allocator,
            "before_bytes": it.before_bytes,
            "after_bytes": it.after_bytes,
            "seconds": it.took.as_secs_f64(),
        })
    });
    json!({
        "timestamp": timestamp(),
        "status": "success",
        "ran": report.ran,
        "level": report.level.as_str(),
        "claimed_bytes": report.claimed_bytes,
        "observed_bytes": report.observed_bytes(),
        "before_bytes": report.before_bytes,
        "after_bytes": report.after_bytes,
        "seconds": report.took.as_secs_f64(),
        "reclaimers": report.reclaimers.iter().map(reclaimer).collect::<Vec<_>>(),
        "give_back": give_back,
    })
}
