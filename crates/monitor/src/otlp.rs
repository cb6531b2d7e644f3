//! Export over OTLP: every so often the whole registry as protobuf to a collector, over HTTP.
//!
//! The messages are those of the official crate `opentelemetry-proto`, sent to `/v1/metrics` as the
//! specification says (<https://opentelemetry.io/docs/specs/otlp/#otlphttp>). They are built of our snapshots
//! and not by way of `opentelemetry_sdk`, whose metrics nobody outside of it can make. Histograms go as
//! exponential histograms of at most 160 buckets, which every back end of OTLP understands.
//!
//! All values are totals since the process began (cumulative), so an export that fails loses nothing: the
//! next one says more. There is no queue. The connection has no TLS: the collector is meant to run beside
//! the process or in a network you trust, and to pass on what it gets.

use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER, USER_AGENT,
};
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value as AnyValueKind;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::metrics::v1::exponential_histogram_data_point::Buckets;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Exemplar, ExponentialHistogram, ExponentialHistogramDataPoint, Gauge,
    Metric, NumberDataPoint, ResourceMetrics, ScopeMetrics, Sum, exemplar, metric,
    number_data_point,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use parking_lot::Mutex;
use prost::Message as _;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior};

use crate::exposition::exponential::Exponential;
use crate::histogram::Distribution;
use crate::registry::{FamilySnapshot, SeriesSnapshot, Snapshot, Value};
use crate::series::{Kind, Labels, Unit};

/// Buckets of an exponential histogram, as in the SDKs of OpenTelemetry.
const BUCKETS_MAX: i32 = 160;
/// How much of an answer is read, in bytes.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// The wait before the first repeat is drawn up to this; it doubles each time.
const PAUSE: Duration = Duration::from_millis(500);
/// The longest interval and time-out.
const DURATION_MAX: Duration = Duration::from_secs(24 * 3_600);

/// Where and how often metrics are exported.
#[derive(Clone)]
pub struct OtlpOptions {
    /// The collector's URL; `/v1/metrics` is put behind it. `http://127.0.0.1:4318` by default.
    pub endpoint: String,
    /// Time from one export to the next; 60 s by default.
    pub interval: Duration,
    /// Time that an export may take with all its repeats; 10 s by default.
    pub timeout: Duration,
    /// How often an export is sent at most, from 1 to 10; 3 by default.
    pub attempts: u32,
    /// Headers to send along, such as an API key; none by default. Their values are never shown.
    pub headers: Vec<(String, String)>,
    /// What describes the process, such as `service.name`; that alone by default, as `ultra-perf`.
    pub resource: Vec<(String, String)>,
}

impl Default for OtlpOptions {
    fn default() -> Self {
        Self {
            endpoint: "http://127.0.0.1:4318".to_owned(),
            interval: Duration::from_secs(60),
            timeout: Duration::from_secs(10),
            attempts: 3,
            headers: Vec::new(),
            resource: vec![("service.name".to_owned(), "ultra-perf".to_owned())],
        }
    }
}

impl fmt::Debug for OtlpOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let headers: Vec<&str> = self.headers.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("OtlpOptions")
            .field("endpoint", &self.endpoint)
            .field("interval", &self.interval)
            .field("timeout", &self.timeout)
            .field("attempts", &self.attempts)
            .field("headers", &headers)
            .field("resource", &self.resource)
            .finish()
    }
}

/// Options with which nothing can be exported.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid export over OTLP: {}", problems.join("; "))]
pub struct OtlpError {
    /// Each with the option, what was seen and what would be right.
    pub problems: Vec<String>,
}

/// What has been exported.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OtlpStats {
    /// Exports that the collector took.
    pub exported: u64,
    /// Exports that it did not get or take, after all repeats.
    pub failed: u64,
    /// Data points that it rejected from exports that it took.
    pub rejected_points: u64,
    /// Why the last one failed, or what the collector said of one that it took.
    pub last_problem: Option<String>,
}

/// Exports in a task of its own until this is dropped.
#[derive(Debug)]
pub struct OtlpExporter {
    shared: Arc<Shared>,
    task: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stats: Mutex<OtlpStats>,
    stop: Notify,
}

impl OtlpExporter {
    /// Begins to export what `snapshot` returns, first after one interval.
    ///
    /// `snapshot` is called once for each export and should return the last one that was read.
    ///
    /// # Errors
    ///
    /// [`OtlpError`] with everything that is wrong in the options.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn start(
        options: &OtlpOptions,
        snapshot: impl Fn() -> Arc<Snapshot> + Send + 'static,
    ) -> Result<Self, OtlpError> {
        let target = Target::new(options)?;
        let shared = Arc::<Shared>::default();
        let run = run(target, Arc::clone(&shared), options.interval, snapshot);
        Ok(Self { shared, task: Some(tokio::spawn(run)) })
    }

    /// Returns what has been exported so far.
    #[must_use]
    pub fn stats(&self) -> OtlpStats {
        self.shared.stats.lock().clone()
    }

    /// Exports once more and ends; it takes the time-out of an export at most.
    ///
    /// # Cancel safety
    ///
    /// If this is dropped, the last export may be cut off, and the task ends.
    pub async fn shutdown(mut self) -> OtlpStats {
        self.shared.stop.notify_one();
        if let Some(task) = &mut self.task {
            // It ends by itself, and if it panicked there is nothing left to export.
            let _ = task.await;
        }
        self.stats()
    }
}

impl Drop for OtlpExporter {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}

async fn run(
    target: Target,
    shared: Arc<Shared>,
    interval: Duration,
    snapshot: impl Fn() -> Arc<Snapshot>,
) {
    let started_ms = snapshot().at.unix_ms;
    let mut ticks = tokio::time::interval_at(Instant::now() + interval, interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        let is_last = tokio::select! {
            _ = ticks.tick() => false,
            () = shared.stop.notified() => true,
        };
        let request = request(&snapshot(), started_ms, &target.resource);
        let body = Bytes::from(request.encode_to_vec());
        let outcome = tokio::time::timeout(target.timeout, target.export(body)).await;
        let outcome = outcome.unwrap_or_else(|_| Err(format!("no answer in {:?}", target.timeout)));
        let mut stats = shared.stats.lock();
        match outcome {
            Ok(taken) => {
                stats.exported += 1;
                stats.rejected_points += taken.rejected;
                if let Some(said) = taken.said {
                    tracing::warn!(rejected = taken.rejected, "the OTLP collector says: {said}");
                    stats.last_problem = Some(said);
                }
            }
            Err(problem) => {
                // Once for each time that it goes wrong, not at each interval.
                if stats.last_problem.as_ref() != Some(&problem) {
                    tracing::warn!(endpoint = %target.url, "cannot export over OTLP: {problem}");
                }
                stats.failed += 1;
                stats.last_problem = Some(problem);
            }
        }
        drop(stats);
        if is_last {
            return;
        }
    }
}

/// A collector and how it is spoken to.
struct Target {
    url: Uri,
    /// The host without brackets.
    host: String,
    port: u16,
    headers: HeaderMap,
    resource: Vec<KeyValue>,
    timeout: Duration,
    attempts: u32,
}

/// What a collector said of an export that it took.
struct Taken {
    rejected: u64,
    said: Option<String>,
}

/// Why an attempt failed.
struct Failed {
    reason: String,
    /// Whether another attempt may do, and after which wait if the collector named one.
    again: bool,
    after: Option<Duration>,
}

impl Failed {
    fn again(reason: impl fmt::Display) -> Self {
        Self { reason: reason.to_string(), again: true, after: None }
    }
}

impl Target {
    fn new(options: &OtlpOptions) -> Result<Self, OtlpError> {
        let mut problems = Vec::new();
        let endpoint = &options.endpoint;
        let url = match url_of(endpoint) {
            Ok(url) => Some(url),
            Err(expected) => {
                let shown = if endpoint.contains('@') { "(not shown)" } else { endpoint };
                problems.push(format!("endpoint = {shown:?}: {expected}"));
                None
            }
        };
        for (name, duration) in [("interval", options.interval), ("timeout", options.timeout)] {
            if duration.is_zero() || duration > DURATION_MAX {
                problems.push(format!("{name} = {duration:?}: must be above 0 and at most 24 h"));
            }
        }
        if !(1..=10).contains(&options.attempts) {
            problems.push(format!("attempts = {}: must be from 1 to 10", options.attempts));
        }
        let mut headers = HeaderMap::new();
        for (name, value) in &options.headers {
            match (name.parse::<HeaderName>(), HeaderValue::from_str(value)) {
                (Ok(name), Ok(mut value)) => {
                    value.set_sensitive(true);
                    headers.append(name, value);
                }
                (Err(_), _) => problems.push(format!("headers: {name:?} is no name of a header")),
                (_, Err(_)) => problems.push(format!(
                    "headers: the value of {name:?} must be of visible ASCII characters"
                )),
            }
        }
        let Some(url) = url.filter(|_| problems.is_empty()) else {
            return Err(OtlpError { problems });
        };
        let host = url.host().unwrap_or_default();
        Ok(Self {
            host: host.trim_start_matches('[').trim_end_matches(']').to_owned(),
            port: url.port_u16().unwrap_or(80),
            url,
            headers,
            resource: options.resource.iter().map(|(name, value)| attribute(name, value)).collect(),
            timeout: options.timeout,
            attempts: options.attempts,
        })
    }

    /// Sends an export until it is taken, at most so many times.
    async fn export(&self, body: Bytes) -> Result<Taken, String> {
        let mut attempt = 1;
        loop {
            let failed = match self.post(body.clone()).await {
                Ok(taken) => return Ok(taken),
                Err(failed) => failed,
            };
            if !failed.again || attempt >= self.attempts {
                return Err(failed.reason);
            }
            let longest = PAUSE * 2_u32.pow(attempt - 1);
            tokio::time::sleep(failed.after.unwrap_or(longest.mul_f64(fastrand::f64()))).await;
            attempt += 1;
        }
    }

    /// Sends an export once.
    async fn post(&self, body: Bytes) -> Result<Taken, Failed> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await;
        let stream =
            stream.map_err(|error| Failed::again(format_args!("cannot connect: {error}")))?;
        let broken = |error: hyper::Error| Failed::again(format_args!("connection broke: {error}"));
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let authority = self.url.authority().map_or("", |authority| authority.as_str());
        let request = Request::post(self.url.path())
            .header(HOST, authority)
            .header(USER_AGENT, HeaderValue::from_static("ultra-perf-monitor"))
            .header(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"))
            .body(Full::new(body));
        let mut request = request.expect("the parts of a valid URL make a valid request");
        request.headers_mut().extend(self.headers.clone());
        let mut exchange = pin!(async {
            let answer = sender.send_request(request).await.map_err(broken)?;
            let (head, body) = answer.into_parts();
            let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
            // Of a body that breaks off or is too long only the status counts.
            let body = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
            verdict(head.status, &head.headers, &body)
        });
        // Nothing is spawned: the connection goes on as long as its answer is waited for.
        tokio::select! {
            done = &mut exchange => done,
            _ = connection => exchange.await,
        }
    }
}

/// The URL to which an endpoint's metrics go.
fn url_of(endpoint: &str) -> Result<Uri, &'static str> {
    let url: Uri = endpoint.parse().map_err(|_| "must be a URL")?;
    match url.scheme_str() {
        Some("http") => {}
        Some("https") => {
            return Err("must begin with http://, for TLS put a collector beside the process");
        }
        _ => return Err("must begin with http://"),
    }
    if url.authority().is_none_or(|authority| authority.as_str().contains('@')) {
        return Err("must name a host, without a name or password");
    }
    let path = format!("{}/v1/metrics", url.path().trim_end_matches('/'));
    let mut parts = url.into_parts();
    parts.path_and_query = path.parse().ok();
    Uri::from_parts(parts).map_err(|_| "must be a URL")
}

/// What an answer means; the specification names the codes after which to try again.
fn verdict(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Result<Taken, Failed> {
    if status.is_success() {
        let partial = ExportMetricsServiceResponse::decode(body).ok();
        let partial = partial.and_then(|answer| answer.partial_success).unwrap_or_default();
        let rejected = u64::try_from(partial.rejected_data_points).unwrap_or(0);
        let said = (rejected > 0 || !partial.error_message.is_empty())
            .then(|| format!("{rejected} data points rejected: {}", partial.error_message));
        return Ok(Taken { rejected, said });
    }
    let again = [429, 502, 503, 504].contains(&status.as_u16());
    let seconds = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    let after = seconds.map(Duration::from_secs);
    Err(Failed { reason: format!("status {}", status.as_u16()), again, after })
}

fn nanos(unix_ms: i64) -> u64 {
    u64::try_from(unix_ms).unwrap_or(0).saturating_mul(1_000_000)
}

fn attribute(name: &str, value: &str) -> KeyValue {
    let value = AnyValue { value: Some(AnyValueKind::StringValue(value.to_owned())) };
    KeyValue { key: name.to_owned(), value: Some(value), ..KeyValue::default() }
}

fn attributes(labels: &Labels) -> Vec<KeyValue> {
    labels.iter().map(|(name, value)| attribute(name, value)).collect()
}

/// A snapshot as the message that a collector takes.
fn request(
    snapshot: &Snapshot,
    started_ms: i64,
    resource: &[KeyValue],
) -> ExportMetricsServiceRequest {
    let (start, now) = (nanos(started_ms), nanos(snapshot.at.unix_ms));
    let scope = InstrumentationScope {
        name: "ultra-perf-monitor".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    };
    let metrics = snapshot.families.iter().map(|family| message(family, start, now)).collect();
    let scope_metrics =
        vec![ScopeMetrics { scope: Some(scope), metrics, ..ScopeMetrics::default() }];
    let resource = Resource { attributes: resource.to_vec(), ..Resource::default() };
    let resource_metrics = vec![ResourceMetrics {
        resource: Some(resource),
        scope_metrics,
        ..ResourceMetrics::default()
    }];
    ExportMetricsServiceRequest { resource_metrics }
}

fn message(family: &FamilySnapshot, start: u64, now: u64) -> Metric {
    let cumulative = AggregationTemporality::Cumulative as i32;
    let numbers = || family.series.iter().filter_map(|series| number(series, start, now)).collect();
    let data = match family.kind {
        Kind::Counter => metric::Data::Sum(Sum {
            data_points: numbers(),
            aggregation_temporality: cumulative,
            is_monotonic: true,
        }),
        Kind::Gauge => metric::Data::Gauge(Gauge { data_points: numbers() }),
        Kind::Histogram => {
            let points = family.series.iter().filter_map(|series| match &series.value {
                Value::Distribution(values) => Some(histogram(series, values, start, now)),
                Value::Number(_) => None,
            });
            metric::Data::ExponentialHistogram(ExponentialHistogram {
                data_points: points.collect(),
                aggregation_temporality: cumulative,
            })
        }
    };
    // Units as in UCUM, which OpenTelemetry asks for.
    let unit = match family.unit {
        Unit::Seconds => "s",
        Unit::Bytes => "By",
        Unit::Percent => "%",
        Unit::Ratio => "1",
        Unit::None => "",
    };
    Metric {
        name: (*family.name).to_owned(),
        description: (*family.help).to_owned(),
        unit: unit.to_owned(),
        data: Some(data),
        ..Metric::default()
    }
}

fn number(series: &SeriesSnapshot, start: u64, now: u64) -> Option<NumberDataPoint> {
    let Value::Number(value) = series.value else { return None };
    Some(NumberDataPoint {
        attributes: attributes(&series.key.labels),
        start_time_unix_nano: start,
        time_unix_nano: now,
        value: Some(number_data_point::Value::AsDouble(value)),
        ..NumberDataPoint::default()
    })
}

fn histogram(
    series: &SeriesSnapshot,
    values: &Distribution,
    start: u64,
    now: u64,
) -> ExponentialHistogramDataPoint {
    let buckets = Exponential::new(values).narrowed(BUCKETS_MAX);
    let first = buckets.buckets.first().map_or(0, |(index, _)| *index);
    let last = buckets.buckets.last().map_or(-1, |(index, _)| index - first);
    let mut counts = vec![0; usize::try_from(last + 1).unwrap_or(0)];
    for (index, count) in &buckets.buckets {
        counts[(index - first) as usize] = *count;
    }
    let exemplars = series.exemplars.iter().map(|exemplar| Exemplar {
        time_unix_nano: nanos(exemplar.unix_ms),
        trace_id: exemplar.trace_id.to_bytes().to_vec(),
        value: Some(exemplar::Value::AsDouble(exemplar.value)),
        ..Exemplar::default()
    });
    ExponentialHistogramDataPoint {
        attributes: attributes(&series.key.labels),
        start_time_unix_nano: start,
        time_unix_nano: now,
        count: values.count(),
        sum: Some(values.sum()),
        scale: buckets.resolution.into(),
        zero_count: buckets.zeros,
        // OTLP numbers a bucket by its lower bound.
        positive: Some(Buckets { offset: first - 1, bucket_counts: counts }),
        zero_threshold: buckets.zero_threshold,
        exemplars: exemplars.collect(),
        ..ExponentialHistogramDataPoint::default()
    }
}

#[cfg(test)]
mod tests;
