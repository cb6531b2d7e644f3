//! The admin API's view of the backends: what each is doing, and the handles to them.

use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use ultra_perf::config::parse_duration;

use super::{Accelerated, Admin, Problem, read_json, timestamp};
use crate::backends::{NodeReport, breaker_name, seconds};

/// How long an ejection lasts unless the request says.
const EJECT_TIME: &str = "60s";
const EJECT_TIME_MAX: Duration = Duration::from_hours(24);
const WEIGHT_MAX: u32 = 1_000_000;

pub(super) async fn stats(State(admin): Accelerated) -> Json<Value> {
    let backends = admin.accelerator.backends();
    let (stats, extra) = (backends.balancer().stats(), backends.extra());
    let hedges = extra.hedges.map(|it| json!({ "hedged": it.hedged, "won": it.won }));
    Json(json!({
        "timestamp": timestamp(),
        "policy": admin.perf.config().balancer.policy.to_string(),
        "ready": stats.ready,
        "panicking": stats.panicking,
        "in_flight": stats.in_flight,
        "capacity": stats.capacity,
        "queue": { "waiting": stats.waiting, "shed": stats.shed, "timed_out": stats.timed_out },
        "retries": {
            "retried": extra.retried,
            "budget_given": extra.budget.given,
            "budget_refused": extra.budget.refused,
        },
        "hedges": hedges,
        "nodes": backends.report().iter().map(node).collect::<Vec<_>>(),
        "total_nodes": stats.backends,
    }))
}

fn node(node: &NodeReport) -> Value {
    let stats = &node.stats;
    let requests: serde_json::Map<_, _> = node
        .requests
        .by_name()
        .into_iter()
        .map(|(outcome, count)| (outcome.to_owned(), count.into()))
        .collect();
    let breaker = node.breaker.map(|breaker| {
        json!({
            "state": breaker_name(breaker.state),
            "calls": breaker.calls,
            "failures": breaker.failures,
            "slow": breaker.slow,
            "consecutive_failures": breaker.consecutive_failures,
            "opened": breaker.opened,
            "rejected": breaker.rejected,
            "retry_after_seconds": seconds(breaker.retry_after),
        })
    });
    json!({
        "id": &*stats.id,
        "state": stats.state.as_str(),
        "weight": stats.weight,
        "max_in_flight": stats.max_in_flight,
        "zone": stats.zone.as_deref(),
        "priority": stats.priority,
        "in_flight": stats.in_flight,
        "ewma_seconds": stats.latency.map(seconds),
        "ejection": {
            "count": node.ejected,
            "in_a_row": stats.ejections,
            "remaining_seconds": stats.ejected_for.map(seconds),
        },
        "breaker": breaker,
        "requests": requests,
        "connections": {
            "active": node.connections.active,
            "idle": node.connections.idle,
            "opened": node.connections.opened,
            "reused": node.connections.reused,
        },
    })
}

/// What names one backend.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Named {
    backend: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Eject {
    backend: String,
    /// Such as `90s`.
    time: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SetWeight {
    backend: String,
    weight: u32,
}

pub(super) async fn eject(
    State(admin): Accelerated,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Problem> {
    let Eject { backend, time } = read_json(&headers, body).await?;
    let text = time.as_deref().unwrap_or(EJECT_TIME);
    let time = parse_duration(text)
        .ok()
        .filter(|time| !time.is_zero() && *time <= EJECT_TIME_MAX)
        .ok_or_else(|| {
            let detail = format!(
                "time is \"{text}\": must be a duration with a unit, such as \"90s\", above 0 and at \
                 most 24 hours."
            );
            Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail)
        })?;
    let found = admin.accelerator.backends().balancer().eject(&backend, time);
    done(&admin, "eject", &backend, found)
}

pub(super) async fn restore(
    State(admin): Accelerated,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Problem> {
    let Named { backend } = read_json(&headers, body).await?;
    let found = admin.accelerator.backends().restore(&backend);
    done(&admin, "restore", &backend, found)
}

pub(super) async fn drain(
    State(admin): Accelerated,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Problem> {
    let Named { backend } = read_json(&headers, body).await?;
    let found = admin.accelerator.backends().balancer().drain(&backend);
    done(&admin, "drain", &backend, found)
}

pub(super) async fn weight(
    State(admin): Accelerated,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Problem> {
    let SetWeight { backend, weight } = read_json(&headers, body).await?;
    if weight > WEIGHT_MAX {
        let detail = format!("weight is {weight}: must be from 0 to {WEIGHT_MAX}.");
        return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail));
    }
    let found = admin.accelerator.backends().balancer().set_weight(&backend, weight);
    done(&admin, "weight", &backend, found)
}

/// The answer to a handle: the backend as it is now, or which backends there are.
fn done(admin: &Admin, action: &str, backend: &str, found: bool) -> Result<Json<Value>, Problem> {
    let nodes = admin.accelerator.backends().report();
    let Some(now) = nodes.iter().find(|node| found && *node.stats.id == *backend) else {
        let ids: Vec<_> = nodes.iter().map(|node| &*node.stats.id).collect();
        let detail = format!("There is no backend \"{backend}\"; there is {}.", ids.join(", "));
        return Err(Problem::new(StatusCode::NOT_FOUND, detail));
    };
    tracing::info!(backend, action, "a backend was changed by the admin API");
    Ok(Json(json!({
        "timestamp": timestamp(),
        "status": "success",
        "action": action,
        "node": node(now),
    })))
}
