//! The same records and renderings by the libraries that others use.
//!
//! Each gets its best case: handles that are stored, and as many buckets for a histogram as `prometheus`
//! has by default. `metrics` records into `metrics-exporter-prometheus` with the same buckets, which keeps
//! every value until somebody renders; that is drained outside of the measured part.

use std::hint::black_box;
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusBuilder;
use monitor::{Format, Registry};
use opentelemetry::KeyValue;
use opentelemetry::metrics::MeterProvider as _;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::metrics::data::ResourceMetrics;
use opentelemetry_sdk::metrics::exporter::PushMetricExporter;
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider, Temporality};
use prometheus::Encoder as _;
use prometheus_client::metrics::family::Family;
use ultra_perf_bench::{Clock, Suite};

use crate::record::{RECORDS, each, now, values};

/// Bounds of histograms, in seconds: those that `prometheus` has by default.
const BOUNDS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Takes what it is given nowhere.
#[derive(Debug)]
struct Nowhere;

impl PushMetricExporter for Nowhere {
    async fn export(&self, _: &ResourceMetrics) -> OTelSdkResult {
        Ok(())
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }

    fn temporality(&self) -> Temporality {
        Temporality::Cumulative
    }
}

/// Adds the rows of counters and histograms.
pub(crate) fn record(suite: &mut Suite) {
    let values = values();
    let seconds: Vec<f64> = values.iter().map(|ticks| *ticks as f64 / 1e9).collect();
    let registry = Registry::default();
    let counter = registry.counter("bench_total", &[]);
    let histogram = registry.histogram("bench_seconds", &[]);
    let count = || each(&values, |_| black_box(&counter).increment(1));
    let observe = || each(&seconds, |seconds| black_box(&histogram).record(seconds));

    let recorder = PrometheusBuilder::new().set_buckets(&BOUNDS).expect("bounds").build_recorder();
    let (theirs, their_histogram) = metrics::with_local_recorder(&recorder, || {
        (metrics::counter!("bench_total"), metrics::histogram!("bench_seconds"))
    });
    let name = "metrics, stored handle";
    let row = suite.time("counter, stored handle", Clock::Cpu, RECORDS);
    row.compare(name, count, || each(&values, |_| black_box(&theirs).increment(1)));
    let row = suite.time("histogram, f64, stored handle", Clock::Cpu, RECORDS);
    row.compare(name, observe, || {
        each(&seconds, |seconds| black_box(&their_histogram).record(seconds));
    });
    recorder.handle().run_upkeep();

    // The facade's own handle in front of our registry and of its exporter.
    let ours = monitor::Recorder::new(&registry);
    let row = suite.time("counter, macro of the facade, ours behind it", Clock::Cpu, RECORDS);
    row.compare(
        "metrics, its exporter behind it",
        || {
            metrics::with_local_recorder(&ours, || {
                each(&values, |_| metrics::counter!("bench_total", "kind" => "a").increment(1));
            });
        },
        || {
            metrics::with_local_recorder(&recorder, || {
                each(&values, |_| metrics::counter!("bench_total", "kind" => "a").increment(1));
            });
        },
    );

    let theirs = prometheus::IntCounter::new("bench_total", "help").expect("a name");
    let options = prometheus::HistogramOpts::new("bench_seconds", "help").buckets(BOUNDS.into());
    let their_histogram = prometheus::Histogram::with_opts(options).expect("bounds");
    let row = suite.time("counter, stored handle", Clock::Cpu, RECORDS);
    row.compare("prometheus", count, || each(&values, |_| black_box(&theirs).inc()));
    let row = suite.time("histogram, f64, stored handle", Clock::Cpu, RECORDS);
    row.compare("prometheus", observe, || {
        each(&seconds, |seconds| black_box(&their_histogram).observe(seconds));
    });

    let theirs: prometheus_client::metrics::counter::Counter = Default::default();
    let their_histogram = prometheus_client::metrics::histogram::Histogram::new(BOUNDS);
    let row = suite.time("counter, stored handle", Clock::Cpu, RECORDS);
    row.compare("prometheus-client", count, || each(&values, |_| _ = black_box(&theirs).inc()));
    let row = suite.time("histogram, f64, stored handle", Clock::Cpu, RECORDS);
    row.compare("prometheus-client", observe, || {
        each(&seconds, |seconds| black_box(&their_histogram).observe(seconds));
    });

    let reader = PeriodicReader::builder(Nowhere).with_interval(Duration::from_secs(3_600)).build();
    let provider = SdkMeterProvider::builder().with_reader(reader).build();
    let meter = provider.meter("bench");
    let theirs = meter.u64_counter("bench_total").build();
    let their_histogram =
        meter.f64_histogram("bench_seconds").with_boundaries(BOUNDS.into()).build();
    let attributes = [KeyValue::new("kind", "a")];
    let name = "opentelemetry, one attribute";
    let row = suite.time("counter, stored handle", Clock::Cpu, RECORDS);
    row.compare(name, count, || each(&values, |_| black_box(&theirs).add(1, &attributes)));
    let row = suite.time("histogram, f64, stored handle", Clock::Cpu, RECORDS);
    row.compare(name, observe, || {
        each(&seconds, |seconds| black_box(&their_histogram).record(seconds, &attributes));
    });
    // Its thread ends with it; an error would come from the exporter that does nothing.
    let _ = provider.shutdown();
}

/// Series of the renderings, all of one name.
const SERIES: usize = 1_000;

/// Adds the rows of renderings: 1,000 counters with two labels, read and written as text.
pub(crate) fn render(suite: &mut Suite) {
    let options = monitor::RegistryOptions { series_per_name: SERIES, ..Default::default() };
    let registry = Registry::new(options);
    let recorder = PrometheusBuilder::new().build_recorder();
    let theirs = prometheus::Registry::new();
    let options = prometheus::Opts::new("bench_total", "Something that is counted.");
    let vector = prometheus::IntCounterVec::new(options, &["method", "route"]).expect("a name");
    theirs.register(Box::new(vector.clone())).expect("the first");
    let family =
        Family::<Vec<(String, String)>, prometheus_client::metrics::counter::Counter>::default();
    let mut client = prometheus_client::registry::Registry::default();
    client.register("bench", "Something that is counted", family.clone());
    for at in 0..SERIES {
        let (route, count) = (format!("/api/v1/things/{at}/{{id}}"), at as u64 * 1_000);
        registry.counter("bench_total", &[("method", "GET"), ("route", &route)]).increment(count);
        vector.with_label_values(&["GET", &route]).inc_by(count);
        let labels = [("method", "GET"), ("route", &route)];
        let labels = labels.map(|(name, value)| (name.to_owned(), value.to_owned()));
        family.get_or_create(&labels.into()).inc_by(count);
        metrics::with_local_recorder(&recorder, || {
            metrics::counter!("bench_total", "method" => "GET", "route" => route).increment(count);
        });
    }
    let mut out = Vec::new();
    let mut ours = || {
        out.clear();
        monitor::render(&registry.read(now()), Format::Text, &mut out);
    };
    let case = "read and render text, 1,000 counters";
    let handle = recorder.handle();
    let row = suite.time(case, Clock::Cpu, 1);
    row.compare("metrics-exporter-prometheus", &mut ours, || drop(black_box(handle.render())));
    let mut text = Vec::new();
    let row = suite.time(case, Clock::Cpu, 1);
    row.compare("prometheus", &mut ours, || {
        text.clear();
        let encoder = prometheus::TextEncoder::new();
        encoder.encode(&theirs.gather(), &mut text).expect("a vector can be written to");
    });
    let mut text = String::new();
    let row = suite.time(case, Clock::Cpu, 1);
    row.compare("prometheus-client", &mut ours, || {
        text.clear();
        prometheus_client::encoding::text::encode(&mut text, &client).expect("text can be written");
    });
}
