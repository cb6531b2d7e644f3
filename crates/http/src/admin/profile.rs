//! The admin API's view of where the processor time goes: a profile on demand, where that is allowed.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use tokio::sync::oneshot;
use ultra_perf::monitor::{ProfileError, cpu_profile, flame_graph};

use super::monitor::{Asked, asked, refused};
use super::{Problem, Shared};

/// How long is looked unless asked otherwise, and at most: the client waits for as long.
const SECONDS: u64 = 10;
const SECONDS_MAX: u64 = 60;
/// Samples in a second of processor time; this many do not beat with timers of the program.
const HERTZ: u32 = 99;

/// What `GET /performance/profile` takes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    seconds: Option<u64>,
    #[serde(default)]
    format: Form,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Form {
    /// A flame graph.
    #[default]
    Svg,
    Pprof,
}

pub(super) async fn take(State(perf): Shared, query: Asked<Wanted>) -> Result<Response, Problem> {
    let Wanted { seconds, format } = asked(query)?;
    if !perf.config().monitor.profiling {
        let detail = "Profiles are switched off. Start with monitor.profiling = true, and mind that \
                      whoever reaches this address can then have the processor sampled.";
        return Err(Problem::new(StatusCode::CONFLICT, detail));
    }
    let seconds = seconds.unwrap_or(SECONDS);
    if !(1..=SECONDS_MAX).contains(&seconds) {
        return Err(refused(format!("seconds is {seconds}: must be from 1 to {SECONDS_MAX}.")));
    }
    let (tell, told) = oneshot::channel();
    // A thread of its own: the runtime would wait for one of its own when it stops.
    let thread = std::thread::Builder::new().name("cpu-profile".to_owned());
    let started = thread.spawn(move || {
        let time = Duration::from_secs(seconds);
        let taken = match format {
            Form::Svg => flame_graph(time, HERTZ).map(Bytes::from),
            Form::Pprof => cpu_profile(time, HERTZ).map(Bytes::from),
        };
        // Whoever asked may be gone.
        let _ = tell.send(taken);
    });
    let failed = |why: String| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, why);
    started.map_err(|error| failed(format!("No thread could be had for the profile: {error}.")))?;
    let taken = told.await.map_err(|_| failed("The profile broke off.".to_owned()))?;
    let body = taken.map_err(|error| match error {
        ProfileError::Busy => {
            let detail = "Another profile is being taken; try again when it is done.";
            Problem::new(StatusCode::CONFLICT, detail)
        }
        error => failed(format!("{error}.")),
    })?;
    let (kind, name) = match format {
        Form::Svg => ("image/svg+xml", "inline"),
        Form::Pprof => ("application/gzip", "attachment; filename=\"cpu.pb.gz\""),
    };
    tracing::info!(seconds, "a CPU profile was taken by the admin API");
    let field = |name: HeaderName, value| (name, HeaderValue::from_static(value));
    let fields = [field(header::CONTENT_TYPE, kind), field(header::CONTENT_DISPOSITION, name)];
    Ok((fields, body).into_response())
}
