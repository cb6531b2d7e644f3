//! Work in the background over HTTP: what runs and waits, how long it took, and a way to end it.

use axum::Json;
use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use ultra_perf::scheduler::{
    Counts, Histogram, LaneStats, LevelStats, MemoryGateStats, SchedulerEvent, TaskId, TaskInfo,
    TypeStats,
};

use super::{Problem, Shared, read_json, timestamp};

/// Tasks of a lane that are listed unless asked otherwise, and at most.
const LIMIT: usize = 100;
const LIMIT_MAX: usize = 10_000;

pub(super) async fn stats(State(perf): Shared) -> Json<Value> {
    let scheduler = perf.scheduler();
    let stats = scheduler.stats();
    let events: Vec<_> = scheduler.events().iter().rev().map(SchedulerEvent::to_string).collect();
    Json(json!({
        "timestamp": timestamp(),
        "lanes": stats.lanes.iter().map(lane).collect::<Vec<_>>(),
        "memory": scheduler.memory_stats().map(memory),
        "events": events,
    }))
}

fn lane(stats: &LaneStats) -> Value {
    json!({
        "lane": stats.lane.to_string(),
        "slots": stats.slots,
        "running": stats.running,
        "health": stats.health.to_string(),
        "levels": stats.levels.iter().map(level).collect::<Vec<_>>(),
        "types": stats.types.iter().map(kind).collect::<Vec<_>>(),
    })
}

fn level(stats: &LevelStats) -> Value {
    json!({
        "priority": stats.priority.to_string(),
        "queued": stats.queued,
        "held": stats.held,
        "waiting_bytes": stats.waiting_bytes,
        "oldest_seconds": stats.oldest.as_secs_f64(),
        "tasks": counts(&stats.counts),
        "wait": histogram(&stats.wait),
        "run": histogram(&stats.run),
    })
}

fn kind(stats: &TypeStats) -> Value {
    json!({
        "name": stats.name,
        "priority": stats.priority.to_string(),
        "completed": stats.counts.done,
        "failed": stats.counts.failed,
        "total_time": stats.run.sum().as_secs_f64(),
        "tasks": counts(&stats.counts),
        "wait": histogram(&stats.wait),
        "run": histogram(&stats.run),
    })
}

fn counts(counts: &Counts) -> Value {
    json!({
        "submitted": counts.submitted,
        "done": counts.done,
        "failed": counts.failed,
        "cancelled": counts.cancelled,
        "timed_out": counts.timed_out,
        "shed": counts.shed,
        "refused": counts.refused,
        "retried": counts.retried,
    })
}

fn histogram(times: &Histogram) -> Value {
    json!({
        "mean_seconds": times.mean().as_secs_f64(),
        "p50_seconds": times.quantile(0.5).as_secs_f64(),
        "p99_seconds": times.quantile(0.99).as_secs_f64(),
        "max_seconds": times.max().as_secs_f64(),
    })
}

fn memory(stats: MemoryGateStats) -> Value {
    json!({
        "budget_bytes": stats.budget_bytes,
        "scaled_bytes": stats.scaled_bytes,
        "used_bytes": stats.used_bytes,
        "waiting": stats.waiting,
        "waiting_bytes": stats.waiting_bytes,
    })
}

/// What `GET /performance/scheduler/tasks` takes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Listing {
    limit: Option<usize>,
}

pub(super) async fn tasks(
    State(perf): Shared,
    listing: Result<Query<Listing>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<Value>, Problem> {
    let limit = match listing {
        Ok(Query(Listing { limit })) => limit.unwrap_or(LIMIT),
        Err(error) => {
            return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, error.body_text()));
        }
    };
    if !(1..=LIMIT_MAX).contains(&limit) {
        let detail = format!("limit is {limit}: must be from 1 to {LIMIT_MAX}.");
        return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail));
    }
    let tasks = perf.scheduler().tasks(limit);
    Ok(Json(json!({
        "timestamp": timestamp(),
        "tasks": tasks.iter().map(task).collect::<Vec<_>>(),
    })))
}

fn task(task: &TaskInfo) -> Value {
    json!({
        // As text: JavaScript has no integers of this size.
        "id": task.id.to_string(),
        "name": task.name,
        "lane": task.lane.to_string(),
        "priority": task.priority.to_string(),
        "state": task.state.to_string(),
        "seconds": task.since.as_secs_f64(),
        "bytes": task.bytes,
    })
}

/// What `POST /performance/scheduler/cancel` takes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Cancel {
    /// As in the list of tasks.
    id: String,
}

pub(super) async fn cancel(
    State(perf): Shared,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Problem> {
    let Cancel { id } = read_json(&headers, body).await?;
    let number = id.parse().map_err(|_| {
        let detail = format!("id is \"{id}\": must be a number from the list of tasks, as text.");
        Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail)
    })?;
    if !TaskId::from_number(number).is_some_and(|id| perf.scheduler().cancel(id)) {
        let detail = format!("There is no task {id}; it may have ended.");
        return Err(Problem::new(StatusCode::NOT_FOUND, detail));
    }
    tracing::info!(id, "a task was cancelled by the admin API");
    Ok(Json(json!({ "timestamp": timestamp(), "status": "success", "cancelled": id })))
}
