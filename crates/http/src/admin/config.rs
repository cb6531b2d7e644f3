//! The admin API's view of the configuration: what holds and why, and the one way to change it.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use ultra_perf::config::{self, ConfigError};
use ultra_perf::{Applied, ApplyError, UltraPerf};

use super::monitor::{Asked, Page, asked, blocking, moment, refused};
use super::{Problem, Shared, api, read_json, timestamp};

/// Changes that `GET /performance/config` shows; all that are kept are under `config/changes`.
const CHANGES_SHOWN: usize = 20;

pub(super) async fn show(State(perf): Shared) -> Json<Value> {
    let config = perf.config();
    let explanation = config.explain();
    let changes = perf.changes();
    let shown = changes.iter().rev().take(CHANGES_SHOWN).map(change).collect::<Vec<_>>();
    Json(json!({
        "timestamp": timestamp(),
        "version": perf.version(),
        "level": config.level.to_string(),
        "settings": explanation.settings(),
        "notes": explanation.notes(),
        "changes": shown,
    }))
}

pub(super) async fn schema() -> Response {
    let kind = HeaderValue::from_static("application/schema+json");
    ([(header::CONTENT_TYPE, kind)], config::schema().to_string()).into_response()
}

/// A change as the API shows it.
pub(super) fn change(applied: &Applied) -> Value {
    let mut shown = json!(applied);
    shown["at"] = json!(moment(applied.at_ms));
    shown
}

/// What `GET /performance/config/changes` takes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Listing {
    limit: Option<usize>,
    offset: Option<usize>,
}

/// The changes since the start, the newest first.
pub(super) async fn changes(
    State(perf): Shared,
    query: Asked<Listing>,
) -> Result<Json<Value>, Problem> {
    let Listing { limit, offset } = asked(query)?;
    let changes: Vec<_> = perf.changes().iter().rev().map(change).collect();
    let total = changes.len();
    Ok(Json(json!({
        "timestamp": timestamp(),
        "version": perf.version(),
        "changes": Page { limit, offset }.of(changes)?,
        "total_changes": total,
    })))
}

/// What `PUT /performance/config` takes beside its body.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct How {
    /// Only says what would change.
    #[serde(default)]
    dry_run: bool,
    #[serde(default = "api")]
    by: String,
}

pub(super) async fn set(
    State(perf): Shared,
    query: Asked<How>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Problem> {
    let How { dry_run, by } = asked(query)?;
    let body: Value = read_json(&headers, body).await?;
    let settings =
        config::flatten(&body).map_err(|error| refused(format!("The body: {error}.")))?;
    if settings.is_empty() {
        return Err(refused(
            "The body names no setting; it must be an object such as {\"cache_ttl\": 600} or \
             {\"cache\": {\"ttl\": \"10m\"}}.",
        ));
    }
    if dry_run {
        let differences = perf.preview(settings, &by).map_err(|error| not_made(&error))?;
        return Ok(Json(json!({
            "timestamp": timestamp(),
            "status": "success",
            "dry_run": true,
            "version": perf.version(),
            "differences": differences,
        })));
    }
    make(&perf, move |perf| perf.apply(settings, &by)).await
}

/// What `POST /performance/config/undo` takes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Undo {
    version: u64,
    #[serde(default = "api")]
    by: String,
}

pub(super) async fn undo(
    State(perf): Shared,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Problem> {
    let Undo { version, by } = read_json(&headers, body).await?;
    make(&perf, move |perf| perf.undo(version, &by)).await
}

/// Makes a change; a cache that becomes smaller may take a while.
async fn make(
    perf: &UltraPerf,
    work: impl FnOnce(&UltraPerf) -> Result<Applied, ApplyError> + Send + 'static,
) -> Result<Json<Value>, Problem> {
    let perf = perf.clone();
    let applied = blocking(move || work(&perf)).await?.map_err(|error| not_made(&error))?;
    let mut answer = change(&applied);
    answer["timestamp"] = json!(timestamp());
    answer["status"] = json!("success");
    Ok(Json(answer))
}

/// Tells what setting a key would change.
pub(super) fn trial(perf: &UltraPerf, key: &str, value: &Value) -> Result<Value, Problem> {
    let differences = perf.preview([(key, value.clone())], "");
    Ok(json!(differences.map_err(|error| not_made(&error))?))
}

fn not_made(error: &ApplyError) -> Problem {
    match error {
        ApplyError::Config(error) => invalid(error),
        ApplyError::UnknownVersion(_) => {
            Problem::new(StatusCode::NOT_FOUND, format!("{}.", capital(error)))
        }
        error => Problem::new(StatusCode::CONFLICT, format!("{}.", capital(error))),
    }
}

fn invalid(error: &ConfigError) -> Problem {
    let problems: Vec<_> = error.problems().iter().map(ToString::to_string).collect();
    let detail = match problems.len() {
        1 => "Nothing was changed, for there is a problem with it.".to_owned(),
        count => format!("Nothing was changed, for there are {count} problems with it."),
    };
    Problem { problems, ..refused(detail) }
}

fn capital(error: &dyn std::fmt::Display) -> String {
    let text = error.to_string();
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}
