//! The admin API's view of what is watched: history and alerts.

use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use time::OffsetDateTime;
use ultra_perf::UltraPerf;
use ultra_perf::config::parse_duration;
use ultra_perf::monitor::alert::{
    AcknowledgeError, AlertView, EndedAlert, Fingerprint, Severity, Silence,
};
use ultra_perf::monitor::history::{ExportFormat, Query as HistoryQuery, QueryError};
use ultra_perf::monitor::insight::{DegradationOptions, MetricSpec};
use ultra_perf::monitor::{
    Aggregate, Clock as _, Monitor, Selector, Source as _, SystemClock, Window,
};

use super::{Problem, Shared, api, read_json, rfc3339, timestamp};

/// Hours that are looked back on unless asked otherwise, and at most.
const HOURS: u32 = 24;
const HOURS_MAX: u32 = 24 * 365 * 2;
/// Entries of a list unless asked otherwise, and at most.
const LIMIT: usize = 100;
const LIMIT_MAX: usize = 10_000;
/// The longest silence.
const SILENCE_MAX: Duration = Duration::from_hours(24 * 365);
/// The points of the history of the main figures.
const POINTS: i64 = 120;
/// Bytes of an export; more is refused, with the advice to ask for less at a time.
const EXPORT_BYTES_MAX: usize = 64 << 20;

pub(super) fn monitor(perf: &UltraPerf) -> Result<&Monitor, Problem> {
    perf.monitor().ok_or_else(|| {
        Problem::new(StatusCode::CONFLICT, "Nothing is watched: monitor.enabled is off.")
    })
}

pub(super) fn refused(detail: impl Into<String>) -> Problem {
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail)
}

pub(super) type Asked<T> = Result<Query<T>, axum::extract::rejection::QueryRejection>;

pub(super) fn asked<T>(query: Asked<T>) -> Result<T, Problem> {
    query.map(|Query(query)| query).map_err(|error| refused(error.body_text()))
}

fn hours(asked: Option<u32>) -> Result<u32, Problem> {
    match asked.unwrap_or(HOURS) {
        hours @ 1..=HOURS_MAX => Ok(hours),
        other => Err(refused(format!("hours is {other}: must be from 1 to {HOURS_MAX}."))),
    }
}

/// A moment in milliseconds since 1970 as the API writes it.
pub(super) fn moment(unix_ms: i64) -> String {
    let nanos = i128::from(unix_ms) * 1_000_000;
    OffsetDateTime::from_unix_timestamp_nanos(nanos).map(rfc3339).unwrap_or_default()
}

/// Does what reads the disk on a thread that may block.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Problem> {
    tokio::task::spawn_blocking(work).await.map_err(|_| super::unreadable())
}

/// Which part of a list is shown.
#[derive(Debug, Clone, Copy, Deserialize)]
pub(super) struct Page {
    pub(super) limit: Option<usize>,
    pub(super) offset: Option<usize>,
}

impl Page {
    pub(super) fn of<T>(self, mut list: Vec<T>) -> Result<Vec<T>, Problem> {
        let limit = self.limit.unwrap_or(LIMIT);
        if !(1..=LIMIT_MAX).contains(&limit) {
            return Err(refused(format!("limit is {limit}: must be from 1 to {LIMIT_MAX}.")));
        }
        list.drain(..self.offset.unwrap_or(0).min(list.len()));
        list.truncate(limit);
        Ok(list)
    }
}

// What was.

/// What `GET /performance/metrics/history` takes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct History {
    /// A selector; without one, the main figures of the machine and the requests.
    metric: Option<String>,
    hours: Option<u32>,
    /// Such as `1m`; without one, so that there are a few hundred points.
    step: Option<String>,
    aggregate: Option<String>,
    /// Names of labels with commas between them, whose series are put together.
    by: Option<String>,
    /// `json`, `csv` or `jsonl`.
    format: Option<String>,
}

pub(super) async fn history(
    State(perf): Shared,
    query: Asked<History>,
) -> Result<Response, Problem> {
    let query = asked(query)?;
    let monitor = monitor(&perf)?.clone();
    let hours = hours(query.hours)?;
    let to_ms = monitor.now().unix_ms;
    let window = Window::ending(to_ms, i64::from(hours) * 3_600_000);
    let Some(metric) = &query.metric else {
        return Ok(Json(blocking(move || figures(&monitor, window, hours)).await?).into_response());
    };
    let selector = Selector::parse(metric)
        .map_err(|error| refused(format!("metric is \"{metric}\": {error}.")))?;
    let step_ms = query.step.as_deref().map(step).transpose()?;
    let format = match query.format.as_deref() {
        None | Some("json") => None,
        Some("csv") => Some((ExportFormat::Csv, "text/csv; charset=utf-8")),
        Some("jsonl") => Some((ExportFormat::JsonLines, "application/x-ndjson")),
        Some(other) => {
            return Err(refused(format!("format is \"{other}\": must be json, csv or jsonl.")));
        }
    };
    if let Some((format, kind)) = format {
        return export(monitor, selector, window, step_ms, format, kind).await;
    }
    let aggregate = match query.aggregate.as_deref() {
        None => default_aggregate(&monitor, &selector),
        Some(word) => aggregate_of(word)?,
    };
    let query = HistoryQuery {
        selector,
        from_ms: window.from_ms,
        to_ms: window.to_ms,
        step_ms,
        aggregate,
        by: query.by.map(|by| by.split(',').map(|label| label.trim().into()).collect()),
    };
    let result = blocking(move || monitor.history().query(&query)).await?;
    let result = result.map_err(|error: QueryError| refused(error.to_string()))?;
    Ok(Json(json!({ "timestamp": timestamp(), "hours": hours, "result": result })).into_response())
}

fn step(text: &str) -> Result<i64, Problem> {
    let step = parse_duration(text).ok().filter(|step| !step.is_zero());
    step.and_then(|step| i64::try_from(step.as_millis()).ok())
        .ok_or_else(|| refused(format!("step is \"{text}\": must be a duration such as \"1m\".")))
}

/// Counters are shown as growth in a second, gauges as means and histograms as 95th percentiles.
fn default_aggregate(monitor: &Monitor, selector: &Selector) -> Aggregate {
    use ultra_perf::monitor::Kind;
    match monitor.history().matching(selector).first().map(|found| found.kind) {
        Some(Kind::Counter) => Aggregate::Rate,
        Some(Kind::Histogram) => Aggregate::Quantile(0.95),
        _ => Aggregate::Avg,
    }
}

fn aggregate_of(word: &str) -> Result<Aggregate, Problem> {
    word.parse().map_err(|_| {
        refused(format!(
            "aggregate is \"{word}\": must be last, avg, min, max, sum, count, stddev, rate, delta or \
             a percentile such as p95."
        ))
    })
}

async fn export(
    monitor: Monitor,
    selector: Selector,
    window: Window,
    step_ms: Option<i64>,
    format: ExportFormat,
    kind: &'static str,
) -> Result<Response, Problem> {
    let written = blocking(move || {
        let mut out = Bounded(Vec::new());
        monitor.history().export(&selector, window, step_ms, format, &mut out).map(|_| out.0)
    });
    let bytes = written.await?.map_err(|error| refused(format!("{error}.")))?;
    Ok(([(header::CONTENT_TYPE, HeaderValue::from_static(kind))], Bytes::from(bytes))
        .into_response())
}

/// Takes a bounded number of bytes.
struct Bounded(Vec<u8>);

impl std::io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.len() + bytes.len() > EXPORT_BYTES_MAX {
            return Err(std::io::Error::other(
                "the export would be larger than 64 MiB: ask for fewer hours or a longer step",
            ));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The main figures of the machine and the requests, as teams have asked for them.
fn figures(monitor: &Monitor, window: Window, hours: u32) -> Value {
    let history = monitor.history();
    let step_ms = (window.length_ms() / POINTS).max(1_000) / 1_000 * 1_000;
    let read = |metric: &str, aggregate| {
        let selector = Selector::parse(metric).expect("a selector that a test reads");
        let series: Vec<_> = history.matching(&selector).iter().map(|found| found.id).collect();
        history.range(&series, window, step_ms, aggregate)
    };
    let cpu = read("cpu_usage", Aggregate::Avg);
    let memory = read("memory_usage", Aggregate::Avg);
    let p95 = read("http_request_duration_seconds", Aggregate::Quantile(0.95));
    let requests = read("http_requests_total", Aggregate::Rate);
    let errors = read(r#"http_requests_total{status="5xx"}"#, Aggregate::Rate);
    let count = cpu.len();
    let points: Vec<Value> = (0..count)
        .map(|at| {
            let behind = (count - 1 - at) as i64;
            let error_rate = match (errors[at], requests[at]) {
                (Some(errors), Some(requests)) if requests > 0.0 => Some(errors / requests),
                _ => None,
            };
            json!({
                "timestamp": moment(window.to_ms - behind * step_ms),
                "cpu_percent": cpu[at],
                "memory_percent": memory[at],
                "response_time_p95": p95[at],
                "requests_per_second": requests[at],
                "error_rate": error_rate,
            })
        })
        .collect();
    json!({
        "timestamp": timestamp(),
        "hours": hours,
        "step_seconds": step_ms / 1_000,
        "degraded": monitor.history_degraded(),
        "points": points,
    })
}

// What is wrong.

/// What `GET /performance/alerts` takes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Alerts {
    hours: Option<u32>,
    severity: Option<Severity>,
    limit: Option<usize>,
    offset: Option<usize>,
}

pub(super) async fn alerts(
    State(perf): Shared,
    query: Asked<Alerts>,
) -> Result<Json<Value>, Problem> {
    let Alerts { hours: asked_hours, severity, limit, offset } = asked(query)?;
    let monitor = monitor(&perf)?;
    let hours = hours(asked_hours)?;
    let all = monitor.alerts(f64::from(hours));
    let wanted = |of: Severity| severity.is_none_or(|severity| severity == of);
    let active = all.active.iter().filter(|alert| wanted(alert.severity)).map(active);
    let ended = all.ended.iter().filter(|alert| wanted(alert.severity)).map(ended);
    let alerts: Vec<Value> = active.chain(ended).collect();
    let total = alerts.len();
    Ok(Json(json!({
        "timestamp": timestamp(),
        "hours": hours,
        "alerts": Page { limit, offset }.of(alerts)?,
        "total_alerts": total,
        "summary": monitor.alert_summary(),
        "history_degraded": monitor.history_degraded(),
    })))
}

/// An alert that goes on: the names that teams have asked for, and all of it.
fn active(alert: &AlertView) -> Value {
    with_asked_names(json!(alert), &alert.rule, &alert.summary, alert.since_ms)
}

fn ended(alert: &EndedAlert) -> Value {
    let mut value = with_asked_names(json!(alert), &alert.rule, &alert.summary, alert.starts_at_ms);
    value["state"] = json!("ended");
    value
}

fn with_asked_names(mut alert: Value, rule: &str, message: &str, since_ms: i64) -> Value {
    alert["type"] = json!(rule);
    alert["message"] = json!(message);
    alert["timestamp"] = json!(moment(since_ms));
    alert
}

/// What `POST /performance/alerts/acknowledge` takes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Acknowledge {
    fingerprint: Fingerprint,
    #[serde(default = "api")]
    by: String,
    #[serde(default)]
    comment: String,
}

pub(super) async fn acknowledge(
    State(perf): Shared,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Problem> {
    let Acknowledge { fingerprint, by, comment } = read_json(&headers, body).await?;
    let monitor = monitor(&perf)?;
    monitor.alerting().acknowledge(fingerprint, &by, &comment).map_err(|error| match error {
        AcknowledgeError::NoSuchAlert => {
            let detail = format!("No alert with the fingerprint {fingerprint} fires.");
            Problem::new(StatusCode::NOT_FOUND, detail)
        }
        error => refused(format!("{error}.")),
    })?;
    tracing::info!(%fingerprint, by, "an alert was acknowledged by the admin API");
    Ok(Json(json!({ "timestamp": timestamp(), "status": "success", "acknowledged": fingerprint })))
}

/// What `POST /performance/alerts/silence` takes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NewSilence {
    /// Such as `alertname="cpu_high"`; several with commas between them must all be met.
    matchers: String,
    /// Such as `2h`.
    time: String,
    #[serde(default = "api")]
    by: String,
    #[serde(default)]
    comment: String,
}

pub(super) async fn silence(
    State(perf): Shared,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Problem> {
    let NewSilence { matchers, time, by, comment } = read_json(&headers, body).await?;
    let monitor = monitor(&perf)?;
    let matchers = Selector::parse_matchers(&matchers)
        .map_err(|error| refused(format!("matchers is {matchers:?}: {error}.")))?;
    let length = parse_duration(&time)
        .ok()
        .filter(|length| !length.is_zero() && *length <= SILENCE_MAX)
        .ok_or_else(|| {
            refused(format!(
                "time is \"{time}\": must be a duration with a unit, such as \"2h\", above 0 and at \
                 most a year."
            ))
        })?;
    let starts_at_ms = SystemClock::new().now().unix_ms;
    let ends_at_ms = starts_at_ms + i64::try_from(length.as_millis()).unwrap_or(i64::MAX / 2);
    let silence = Silence { id: 0, matchers, author: by, comment, starts_at_ms, ends_at_ms };
    let silence =
        monitor.alerting().silence(silence).map_err(|error| refused(format!("{error}.")))?;
    tracing::info!(id = silence.id, by = silence.author, "a silence was set by the admin API");
    Ok(Json(json!({ "timestamp": timestamp(), "status": "success", "silence": silence })))
}

/// What `POST /performance/alerts/unsilence` takes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Unsilence {
    id: u64,
}

pub(super) async fn unsilence(
    State(perf): Shared,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Problem> {
    let Unsilence { id } = read_json(&headers, body).await?;
    let ended = monitor(&perf)?.alerting().unsilence(id).ok_or_else(|| {
        Problem::new(StatusCode::NOT_FOUND, format!("There is no silence {id}; it may be over."))
    })?;
    tracing::info!(id, "a silence was ended by the admin API");
    Ok(Json(json!({ "timestamp": timestamp(), "status": "success", "silence": ended })))
}

pub(super) async fn silences(State(perf): Shared) -> Result<Json<Value>, Problem> {
    let silences = monitor(&perf)?.alerting().silences();
    let total = silences.len();
    Ok(Json(json!({ "timestamp": timestamp(), "silences": silences, "total_silences": total })))
}

/// What a request takes whose body says nothing.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

pub(super) async fn clear(
    State(perf): Shared,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Problem> {
    let Nothing {} = read_json(&headers, body).await?;
    let cleared = monitor(&perf)?.clear_alerts();
    tracing::info!(cleared, "the alerts were cleared by the admin API");
    Ok(Json(json!({ "timestamp": timestamp(), "status": "success", "cleared": cleared })))
}

pub(super) async fn reload(
    State(perf): Shared,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Problem> {
    let Nothing {} = read_json(&headers, body).await?;
    let monitor = monitor(&perf)?.clone();
    let report = blocking(move || monitor.alerting().reload()).await?;
    let report = report.map_err(|error| refused(error.to_string()))?;
    tracing::info!("the rules were read again by the admin API");
    Ok(Json(json!({ "timestamp": timestamp(), "status": "success", "rules": report })))
}

/// The handlers that are told, and the messages that they did not take.
pub(super) async fn handlers(State(perf): Shared) -> Result<Json<Value>, Problem> {
    let alerting = monitor(&perf)?.alerting();
    Ok(Json(json!({
        "timestamp": timestamp(),
        "handlers": alerting.handlers(),
        "dead_letters": alerting.dead_letters(),
    })))
}

/// The machine's metrics over the hour and the week, and which of them are worse now.
pub(super) async fn baselines(State(perf): Shared) -> Result<Json<Value>, Problem> {
    let monitor = monitor(&perf)?.clone();
    blocking(move || {
        let metrics = MetricSpec::defaults();
        Json(json!({
            "timestamp": timestamp(),
            "baselines": monitor.baselines(&metrics),
            "degradations": monitor.degradations(&metrics, &DegradationOptions::default()),
        }))
    })
    .await
}
