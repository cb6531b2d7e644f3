//! Exports against a receiver that decodes what it gets and answers as it is told.

use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsPartialSuccess;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::*;
use crate::clock::Moment;
use crate::exemplar::TraceId;
use crate::registry::Registry;

/// A request that the receiver got: its head, and its body decoded.
type Got = (String, ExportMetricsServiceRequest);

/// Answers one request after the other, each over a connection of its own; an empty answer closes it.
async fn receiver(answers: Vec<(&'static str, Vec<u8>)>) -> (String, mpsc::Receiver<Got>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let url = format!("http://{}", listener.local_addr().expect("it is bound"));
    let (got, received) = mpsc::channel(answers.len());
    tokio::spawn(async move {
        for (status, answer) in answers {
            let (mut stream, _) = listener.accept().await.expect("it listens");
            let mut bytes = Vec::new();
            let (head, body) = loop {
                assert!(stream.read_buf(&mut bytes).await.expect("readable") > 0, "it ends early");
                let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
                    continue;
                };
                let head = String::from_utf8(bytes[..end].to_vec()).expect("text");
                let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
                let length: usize = length.expect("a length").parse().expect("a number");
                if bytes.len() == end + 4 + length {
                    break (head, bytes.split_off(end + 4));
                }
            };
            let body = ExportMetricsServiceRequest::decode(&*body).expect("a valid message");
            if got.send((head, body)).await.is_err() {
                return;
            }
            if !status.is_empty() {
                let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", answer.len());
                stream.write_all(head.as_bytes()).await.expect("writable");
                stream.write_all(&answer).await.expect("writable");
            }
        }
    });
    (url, received)
}

/// A registry with some of everything, and what reads it.
fn registry() -> (Registry, impl Fn() -> Arc<Snapshot> + Send + 'static) {
    let registry = Registry::default();
    let reader = registry.clone();
    let clock = AtomicI64::new(1_000);
    let read = move || {
        let unix_ms = clock.fetch_add(1_000, Relaxed);
        Arc::new(reader.read(Moment { monotonic: Duration::ZERO, unix_ms }))
    };
    (registry, read)
}

fn metric<'r>(request: &'r ExportMetricsServiceRequest, name: &str) -> &'r Metric {
    let metrics = &request.resource_metrics[0].scope_metrics[0].metrics;
    metrics.iter().find(|metric| metric.name == name).expect("it is exported")
}

fn options(endpoint: &str) -> OtlpOptions {
    OtlpOptions {
        endpoint: endpoint.to_owned(),
        interval: Duration::from_millis(20),
        headers: vec![("x-key".to_owned(), "secret".to_owned())],
        ..OtlpOptions::default()
    }
}

#[tokio::test]
async fn a_collector_gets_the_whole_registry() {
    let (registry, read) = registry();
    registry.describe("wait_seconds", Kind::Histogram, Unit::Seconds, "Time waited.");
    registry.counter("orders_total", &[("kind", "book")]).increment(7);
    registry.gauge("depth", &[]).set(-2.5);
    let wait = registry.histogram("wait_seconds", &[("queue", "a")]);
    for millis in 1..=1_000 {
        wait.record(f64::from(millis) / 1_000.0);
    }
    wait.record(0.0);
    let trace_id = TraceId::new(0x0123_4567_89ab_cdef).expect("not zero");
    wait.offer_exemplar(0.5, trace_id, 1_500);

    let (url, mut received) = receiver(vec![("200 OK", Vec::new())]).await;
    let exporter = OtlpExporter::start(&options(&format!("{url}/otlp/")), read).expect("valid");
    let (head, request) = received.recv().await.expect("an export");
    assert!(head.starts_with("POST /otlp/v1/metrics HTTP/1.1\r\n"), "{head}");
    assert!(head.contains("content-type: application/x-protobuf"), "{head}");
    assert!(head.contains("x-key: secret"), "{head}");

    let resource = request.resource_metrics[0].resource.as_ref().expect("a resource");
    assert_eq!(resource.attributes, [attribute("service.name", "ultra-perf")]);
    let Some(metric::Data::Sum(orders)) = &metric(&request, "orders_total").data else {
        panic!("no sum");
    };
    assert!(orders.is_monotonic);
    let point = &orders.data_points[0];
    assert_eq!(point.value, Some(number_data_point::Value::AsDouble(7.0)));
    assert_eq!(point.attributes, [attribute("kind", "book")]);
    assert_eq!((point.start_time_unix_nano, point.time_unix_nano), (1_000_000_000, 2_000_000_000));
    let Some(metric::Data::Gauge(depth)) = &metric(&request, "depth").data else {
        panic!("no gauge");
    };
    assert_eq!(depth.data_points[0].value, Some(number_data_point::Value::AsDouble(-2.5)));

    let wait = metric(&request, "wait_seconds");
    assert_eq!((wait.unit.as_str(), wait.description.as_str()), ("s", "Time waited."));
    let Some(metric::Data::ExponentialHistogram(wait)) = &wait.data else {
        panic!("no exponential histogram");
    };
    let point = &wait.data_points[0];
    let buckets = point.positive.as_ref().expect("buckets");
    assert_eq!((point.count, point.zero_count), (1_001, 1));
    assert_eq!(buckets.bucket_counts.iter().sum::<u64>(), 1_000);
    assert!(buckets.bucket_counts.len() <= BUCKETS_MAX as usize);
    assert!((point.sum.expect("a sum") - 500.5).abs() < 0.5);
    assert_eq!(point.exemplars[0].trace_id, trace_id.to_bytes());
    // Half of the values are at most 0.5 s, as near as buckets tell.
    let ratio = 2_f64.powf(0.5_f64.powi(point.scale));
    let mut below = 0;
    let middle = buckets.bucket_counts.iter().position(|count| {
        below += count;
        below >= 500
    });
    let middle = buckets.offset + middle.expect("there are as many") as i32;
    let (low, high) = (ratio.powi(middle), ratio.powi(middle + 1));
    assert!(low < 0.5 * 1.04 && high > 0.5 / 1.04, "{low} to {high}");
    drop(exporter);
}

#[tokio::test]
async fn a_busy_collector_is_asked_again_and_its_complaints_are_kept() {
    let complaint = ExportMetricsServiceResponse {
        partial_success: Some(ExportMetricsPartialSuccess {
            rejected_data_points: 3,
            error_message: "too old".to_owned(),
        }),
    };
    let answers = vec![
        ("503 Busy\r\nRetry-After: 0", Vec::new()),
        ("", Vec::new()),
        ("200 OK", complaint.encode_to_vec()),
    ];
    let (url, mut received) = receiver(answers).await;
    let (_registry, read) = registry();
    let patient = OtlpOptions { interval: Duration::from_secs(3_600), ..options(&url) };
    let exporter = OtlpExporter::start(&patient, read).expect("valid");
    let stats = exporter.shutdown().await;
    for _ in 0..3 {
        received.recv().await.expect("an attempt");
    }
    let said = "3 data points rejected: too old".to_owned();
    let expected =
        OtlpStats { exported: 1, failed: 0, rejected_points: 3, last_problem: Some(said) };
    assert_eq!(stats, expected);
}

#[tokio::test]
async fn a_refusal_is_final_and_counted() {
    let (url, mut received) = receiver(vec![("400 No", Vec::new()), ("200 OK", Vec::new())]).await;
    let (_registry, read) = registry();
    let patient = OtlpOptions { interval: Duration::from_secs(3_600), ..options(&url) };
    let stats = OtlpExporter::start(&patient, read).expect("valid").shutdown().await;
    received.recv().await.expect("an attempt");
    assert!(received.try_recv().is_err(), "it was tried once");
    assert_eq!((stats.exported, stats.failed), (0, 1));
    assert_eq!(stats.last_problem.as_deref(), Some("status 400"));
}

#[tokio::test]
async fn a_collector_that_never_answers_costs_the_time_out() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let url = format!("http://{}", listener.local_addr().expect("it is bound"));
    let (_registry, read) = registry();
    let short = OtlpOptions { timeout: Duration::from_millis(50), ..options(&url) };
    let stats = OtlpExporter::start(&short, read).expect("valid").shutdown().await;
    assert_eq!((stats.exported, stats.failed), (0, 1));
    assert_eq!(stats.last_problem.as_deref(), Some("no answer in 50ms"));
}

#[tokio::test]
async fn a_dropped_exporter_ends_its_task() {
    let (_registry, read) = registry();
    let (alive, mut ended) = mpsc::channel::<()>(1);
    let read = move || {
        let _held = &alive;
        read()
    };
    let patient =
        OtlpOptions { interval: Duration::from_secs(3_600), ..options("http://127.0.0.1:9") };
    let exporter = OtlpExporter::start(&patient, read).expect("valid");
    drop(exporter);
    assert_eq!(ended.recv().await, None, "the closure is dropped with the task");
}

#[test]
fn options_that_cannot_work_are_told_all_at_once() {
    let bad = OtlpOptions {
        endpoint: "https://collector.test".to_owned(),
        interval: Duration::ZERO,
        attempts: 0,
        headers: vec![("a b".to_owned(), "x".to_owned()), ("c".to_owned(), "\n".to_owned())],
        ..OtlpOptions::default()
    };
    let problems = Target::new(&bad).err().expect("it cannot work").problems;
    assert_eq!(
        problems,
        [
            "endpoint = \"https://collector.test\": must begin with http://, for TLS put a collector \
             beside the process",
            "interval = 0ns: must be above 0 and at most 24 h",
            "attempts = 0: must be from 1 to 10",
            "headers: \"a b\" is no name of a header",
            "headers: the value of \"c\" must be of visible ASCII characters",
        ]
    );
    for (endpoint, expected) in [
        ("", "must be a URL"),
        ("127.0.0.1:4318", "must begin with http://"),
        ("http://me:word@a.test", "must name a host, without a name or password"),
    ] {
        assert_eq!(url_of(endpoint), Err(expected), "{endpoint}");
    }
    let shown = format!("{:?}", options("http://a.test"));
    assert!(!shown.contains("secret"), "{shown}");
}
