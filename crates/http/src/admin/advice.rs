//! The admin API's view of advice: the score, the recommendations, and acting on them.

use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use ultra_perf::config::{Setting, parse_duration};
use ultra_perf::monitor::advice::{Action, ApplyError, Priority, Recommendation};
use ultra_perf::monitor::{Aggregate, Monitor, Selector, Source as _, Window};
use ultra_perf::{Applied, UltraPerf};

use super::monitor::{Asked, Page, asked, blocking, moment, monitor, refused};
use super::{Problem, Shared, api, read_json, timestamp};

/// The states that a recommendation can be in.
const STATES: [&str; 7] =
    ["open", "applied", "verified", "no_effect", "rolled_back", "lapsed", "dismissed"];
/// The longest time for which a recommendation is put aside; for good is without a time.
const DISMISS_MAX: Duration = Duration::from_hours(24 * 365);
/// Recommendations that an answer names where the one that was asked for is not there.
const NAMED_MAX: usize = 20;

pub(super) async fn score(State(perf): Shared) -> Result<Json<Value>, Problem> {
    let monitor = monitor(&perf)?.clone();
    let score = blocking(move || {
        let yesterday = Window::ending(monitor.now().unix_ms - 24 * 3_600_000, 600_000);
        let selector = Selector::name("performance_score");
        let history = monitor.history();
        let series: Vec<_> = history.matching(&selector).iter().map(|found| found.id).collect();
        let before = history.aggregate(&series, yesterday, Aggregate::Last);
        (monitor.score(), before.map(|read| read.value))
    });
    let (score, yesterday) = score.await?;
    let mut answer = json!(&*score);
    answer["timestamp"] = json!(moment(score.at_ms));
    answer["performance_score"] = json!(score.score);
    answer["yesterday"] = json!(yesterday);
    Ok(Json(answer))
}

/// What `GET /performance/recommendations` takes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Listing {
    /// One of [`STATES`].
    state: Option<String>,
    priority: Option<Priority>,
    limit: Option<usize>,
    offset: Option<usize>,
}

pub(super) async fn list(
    State(perf): Shared,
    query: Asked<Listing>,
) -> Result<Json<Value>, Problem> {
    let Listing { state, priority, limit, offset } = asked(query)?;
    if let Some(state) = state.as_deref().filter(|state| !STATES.contains(state)) {
        let detail = format!("state is \"{state}\": must be one of {}.", STATES.join(", "));
        return Err(refused(detail));
    }
    let mut all = monitor(&perf)?.recommendations();
    all.retain(|one| {
        state.as_deref().is_none_or(|state| one.state.name() == state)
            && priority.is_none_or(|priority| one.finding.priority == priority)
    });
    let total = all.len();
    Ok(Json(json!({
        "timestamp": timestamp(),
        "recommendations": Page { limit, offset }.of(all)?,
        "total_recommendations": total,
    })))
}

/// What names a recommendation in a path.
pub(super) type Named = Result<Path<String>, PathRejection>;

fn named(id: Named) -> Result<String, Problem> {
    id.map(|Path(id)| id).map_err(|error| Problem::new(StatusCode::NOT_FOUND, error.body_text()))
}

pub(super) async fn one(State(perf): Shared, id: Named) -> Result<Json<Value>, Problem> {
    let id = named(id)?;
    let monitor = monitor(&perf)?;
    let found = find(monitor, &id)?;
    Ok(Json(json!({ "timestamp": timestamp(), "recommendation": found })))
}

fn find(monitor: &Monitor, id: &str) -> Result<Recommendation, Problem> {
    let found = monitor.recommendations().into_iter().find(|one| one.id == id);
    found.ok_or_else(|| unknown(monitor, id))
}

fn unknown(monitor: &Monitor, id: &str) -> Problem {
    let all = monitor.recommendations();
    let mut names: Vec<_> = all.iter().take(NAMED_MAX).map(|one| one.id.as_str()).collect();
    let there = match names.is_empty() {
        true => "there is none now".to_owned(),
        false => {
            if all.len() > NAMED_MAX {
                names.push("...");
            }
            format!("there is {}", names.join(", "))
        }
    };
    Problem::new(
        StatusCode::NOT_FOUND,
        format!(
            "There is no recommendation \"{id}\"; {there}. It may be gone, or the path lacks its percent-encoding."
        ),
    )
}

/// What `POST /performance/recommendations/{id}/apply` and `undo` take.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Act {
    #[serde(default = "api")]
    by: String,
}

/// Whether a change is only shown.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Trial {
    #[serde(default)]
    dry_run: bool,
}

pub(super) async fn apply(
    State(perf): Shared,
    id: Named,
    query: Asked<Trial>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Problem> {
    let (id, Trial { dry_run }) = (named(id)?, asked(query)?);
    let Act { by } = read_json(&headers, body).await?;
    let monitor = monitor(&perf)?.clone();
    if dry_run {
        let found = find(&monitor, &id)?;
        let action = found.finding.action.as_ref().ok_or_else(|| by_people(&found))?;
        let differences = super::config::trial(&perf, &action.path, &action.to)?;
        return Ok(Json(json!({
            "timestamp": timestamp(),
            "status": "success",
            "dry_run": true,
            "differences": differences,
            "recommendation": found,
        })));
    }
    let apply = Change {
        done: "applied",
        action: |one| one.finding.action,
        make: |monitor, id, by| monitor.apply(id, by),
    };
    act(&perf, monitor, id, by, apply).await
}

pub(super) async fn undo(
    State(perf): Shared,
    id: Named,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Problem> {
    let id = named(id)?;
    let Act { by } = read_json(&headers, body).await?;
    let monitor = monitor(&perf)?.clone();
    let undo = Change {
        done: "undone",
        action: |one| one.inverse,
        make: |monitor, id, by| monitor.undo(id, by),
    };
    act(&perf, monitor, id, by, undo).await
}

/// A way to change the configuration by a recommendation.
struct Change {
    /// What has been done with it then.
    done: &'static str,
    /// What it sets.
    action: fn(Recommendation) -> Option<Action>,
    make: fn(&Monitor, &str, &str) -> Result<(), ApplyError>,
}

/// Does what changes the configuration, and tells what it changed.
async fn act(
    perf: &UltraPerf,
    monitor: Monitor,
    id: String,
    by: String,
    Change { done, action, make }: Change,
) -> Result<Json<Value>, Problem> {
    let before = perf.version();
    let action = find(&monitor, &id).ok().and_then(action);
    let key = action.map(|action| Setting::from((action.path, action.to)).key().to_owned());
    let (asked, who) = (id.clone(), by.clone());
    // It reads the history, whose older part is on the disk.
    let (monitor, result) = blocking(move || {
        let result = make(&monitor, &asked, &who);
        (monitor, result)
    })
    .await?;
    result.map_err(|error| not_done(&monitor, &id, &error))?;
    tracing::info!(id, by, "a recommendation was {done} by the admin API");
    // Others may have changed something in the meantime.
    let is_ours = |change: &Applied| {
        change.version > before
            && change.is_advice()
            && key.as_ref().is_some_and(|key| change.settings.contains_key(key))
    };
    let made = perf.changes().into_iter().find(is_ours);
    let made = made.as_ref().map(super::config::change);
    let mut answer = json!({
        "timestamp": timestamp(),
        "status": "success",
        "recommendation": find(&monitor, &id).ok(),
    });
    answer[done] = json!(id);
    if let (Some(Value::Object(made)), Some(answer)) = (made, answer.as_object_mut()) {
        answer.extend(made);
    }
    Ok(Json(answer))
}

fn not_done(monitor: &Monitor, id: &str, error: &ApplyError) -> Problem {
    let conflict = |detail: String| Problem::new(StatusCode::CONFLICT, detail);
    match error {
        ApplyError::Unknown(_) => unknown(monitor, id),
        ApplyError::State { state, expected } => {
            conflict(format!("The recommendation \"{id}\" is {state}; it must be {expected}."))
        }
        ApplyError::NoAction => find(monitor, id).map_or_else(|gone| gone, |one| by_people(&one)),
        ApplyError::Busy(other) => conflict(format!(
            "\"{other}\" was applied to the same part or setting and is still being watched; undo it, or \
             wait until it is verified."
        )),
        ApplyError::Refused(why) => refused(format!("The change was refused: {why}.")),
        other => conflict(format!("{other}.")),
    }
}

fn by_people(one: &Recommendation) -> Problem {
    let detail = format!("\"{}\" is for people to act on: {}.", one.id, one.finding.recommendation);
    Problem::new(StatusCode::CONFLICT, detail)
}

/// What `POST /performance/recommendations/{id}/dismiss` takes; without a time, it is for good.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Dismiss {
    /// A moment such as `2030-01-31T12:00:00Z`.
    until: Option<String>,
    /// Such as `24h`.
    time: Option<String>,
    #[serde(default)]
    reason: String,
    #[serde(default = "api")]
    by: String,
}

pub(super) async fn dismiss(
    State(perf): Shared,
    id: Named,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Problem> {
    let id = named(id)?;
    let Dismiss { until, time, reason, by } = read_json(&headers, body).await?;
    let monitor = monitor(&perf)?;
    let time = match (until, time) {
        (None, None) => None,
        (None, Some(time)) => Some(length(&time)?),
        (Some(until), None) => Some(left(&until, OffsetDateTime::now_utc())?),
        (Some(_), Some(_)) => return Err(refused("The body must name either until or time.")),
    };
    monitor.dismiss(&id, &by, &reason, time).map_err(|error| not_done(monitor, &id, &error))?;
    tracing::info!(id, by, reason, "a recommendation was dismissed by the admin API");
    Ok(Json(json!({
        "timestamp": timestamp(),
        "status": "success",
        "dismissed": id,
        "recommendation": find(monitor, &id).ok(),
    })))
}

fn length(text: &str) -> Result<Duration, Problem> {
    let length = parse_duration(text).ok();
    length.filter(|length| !length.is_zero() && *length <= DISMISS_MAX).ok_or_else(|| {
        refused(format!(
            "time is \"{text}\": must be a duration with a unit, such as \"24h\", above 0 and at most a \
             year; leave it out to dismiss for good."
        ))
    })
}

/// The time that is left until a moment.
fn left(text: &str, now: OffsetDateTime) -> Result<Duration, Problem> {
    let wrong = |what: &str| {
        refused(format!(
            "until is \"{text}\": must be {what}, such as \"2030-01-31T12:00:00Z\"; leave it out to \
             dismiss for good."
        ))
    };
    let until = OffsetDateTime::parse(text, &Rfc3339).map_err(|_| wrong("a moment by RFC 3339"))?;
    let left = Duration::try_from(until - now).ok().filter(|left| !left.is_zero());
    left.filter(|left| *left <= DISMISS_MAX).ok_or_else(|| wrong("a moment within the next year"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dismissal_ends_in_the_future_and_within_a_year() {
        let now = OffsetDateTime::parse("2030-01-31T12:00:00Z", &Rfc3339).expect("a moment");
        let check = |text, expected: Option<u64>| {
            let found = left(text, now).ok().map(|left| left.as_secs());
            assert_eq!(found, expected, "{text}");
        };
        check("2030-01-31T12:00:05Z", Some(5));
        check("2030-01-31T14:00:00+01:00", Some(3_600));
        check("2030-01-31T12:00:00Z", None);
        check("2029-12-31T12:00:00Z", None);
        check("2032-01-31T12:00:00Z", None);
        check("tomorrow", None);
        for text in ["0s", "5", "10000h", "-1s", ""] {
            assert!(length(text).is_err(), "{text}");
        }
        assert_eq!(length("24h").ok(), Some(Duration::from_hours(24)));
    }
}
