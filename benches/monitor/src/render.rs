//! What it costs to read a registry of 1,000 series and to write it for Prometheus.
//!
//! The series are those of five names with 200 label sets each: three counters, a gauge and a histogram of
//! latencies over two decades. A histogram is 26 lines, so the text has 6,000.

use monitor::{Format, Kind, Registry, Renderer, Snapshot, Unit, render};
use ultra_perf_bench::{Clock, Suite};

use crate::record::now;

/// Series of each name.
pub(crate) const SERIES: usize = 200;
/// Nanoseconds that a rendering may take.
const BOUND: f64 = 3e6;

/// Adds the rows.
pub(crate) fn rows(suite: &mut Suite) {
    let registry = registry();
    let row = suite.time("read, 1,000 series", Clock::Cpu, 1);
    row.measure(|| drop(registry.read(now())));
    let snapshot = snapshot(&registry);
    let mut out = Vec::new();
    for (name, format) in [
        ("text", Format::Text),
        ("OpenMetrics", Format::OpenMetrics),
        ("protobuf", Format::Protobuf),
    ] {
        let row = suite.time(&format!("render {name}, 1,000 series"), Clock::Cpu, 1).at_most(BOUND);
        row.measure(|| {
            out.clear();
            render(&snapshot, format, &mut out);
        });
    }
    let renderer = Renderer::new();
    let row = suite.time("render text, the copy", Clock::Cpu, 1_000);
    row.measure(|| (0..1_000).for_each(|_| drop(renderer.render(&snapshot, Format::Text))));
    #[cfg(feature = "peers")]
    crate::peers::render(suite);
    #[cfg(not(feature = "peers"))]
    for peer in ["metrics-exporter-prometheus", "prometheus", "prometheus-client"] {
        let reason = "built without the feature peers";
        suite.time("render text, 1,000 counters", Clock::Cpu, 1).skip(peer, reason);
    }
}

fn registry() -> Registry {
    let registry = Registry::default();
    let mut random = fastrand::Rng::with_seed(5);
    for name in ["bench_requests_total", "bench_hits_total", "bench_misses_total"] {
        registry.describe(name, Kind::Counter, Unit::None, "Something that is counted.");
    }
    registry.describe("bench_heap_bytes", Kind::Gauge, Unit::Bytes, "Bytes in use.");
    registry.describe("bench_wait_seconds", Kind::Histogram, Unit::Seconds, "Time waited.");
    for at in 0..SERIES {
        let route = format!("/api/v1/things/{at}/{{id}}");
        let labels = [("method", "GET"), ("route", route.as_str())];
        for name in ["bench_requests_total", "bench_hits_total", "bench_misses_total"] {
            registry.counter(name, &labels).increment(random.u64(..1_000_000));
        }
        registry.gauge("bench_heap_bytes", &labels).set(random.f64() * 1e9);
        let wait = registry.histogram("bench_wait_seconds", &labels);
        (0..1_000).for_each(|_| wait.record(10_f64.powf(-3.0 + 2.0 * random.f64())));
    }
    registry
}

/// A snapshot of the thousand series without what the registry says about itself.
fn snapshot(registry: &Registry) -> Snapshot {
    let mut snapshot = registry.read(now());
    snapshot.families.retain(|family| family.name.starts_with("bench_"));
    assert_eq!(snapshot.series().count(), 5 * SERIES);
    snapshot
}
