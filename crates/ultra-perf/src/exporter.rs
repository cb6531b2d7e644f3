//! All that the registry holds, for programs that already serve `metrics-exporter-prometheus`.
//!
//! The monitor renders for Prometheus by itself. A program whose own metrics go through that exporter wants
//! one page for both. The recorder of that exporter keeps what it was told for good, counts in whole numbers,
//! and takes each value of a histogram one by one; so the readings are not copied into it. They are rendered
//! as they are, with the labels that the builder gives to all, and what was recorded is put beside them,
//! family by family: a name may stand on a page once.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use metrics::{Gauge, Key, Level, Metadata, Recorder};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use monitor::{Format, Labels, SeriesKey, Snapshot};

use crate::{UltraPerf, WeakUltraPerf};

const METADATA: Metadata<'static> =
    Metadata::new(module_path!(), Level::INFO, Some(module_path!()));

/// The gauge that counts the series of the handle's parts; by it the recorder tells the labels of all.
const EXPORTED: &str = "monitor_exported_series";

/// A recorder of `metrics-exporter-prometheus` whose page has what a handle knows, too; from
/// [`UltraPerf::prometheus_exporter`].
pub struct PrometheusExporter {
    perf: WeakUltraPerf,
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    exported: Gauge,
    /// What every series gets, unless it has a label of that name.
    labels: Vec<(String, String)>,
}

impl std::fmt::Debug for PrometheusExporter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PrometheusExporter").field("labels", &self.labels).finish_non_exhaustive()
    }
}

impl PrometheusExporter {
    /// Returns the page: what the handle's parts counted, and what was recorded besides.
    ///
    /// Where both have a metric of one name and kind, the page has the series of both, and of a series that
    /// both have the handle's. Where they are of different kinds, it has the handle's alone.
    ///
    /// # Cost
    ///
    /// That of [`UltraPerf::snapshot`], about a microsecond for a counter or a gauge of it and five for a
    /// histogram, however many values that has, and what the recorder takes.
    #[must_use]
    pub fn render(&self) -> String {
        let Some(perf) = self.perf.upgrade() else { return self.handle.render() };
        let snapshot = perf.snapshot();
        self.exported.set(snapshot.series().count() as f64);
        let mut page = Vec::new();
        match self.labels.is_empty() {
            true => monitor::render(&snapshot, Format::Text, &mut page),
            false => monitor::render(&self.labelled(&snapshot), Format::Text, &mut page),
        }
        let ours = String::from_utf8_lossy(&page);
        joined(&ours, &self.handle.render())
    }

    /// Returns the recorder, for metrics of the program's own: `metrics::with_local_recorder`.
    #[must_use]
    pub fn recorder(&self) -> &PrometheusRecorder {
        &self.recorder
    }

    /// A snapshot whose series have the labels that all get.
    fn labelled(&self, snapshot: &Snapshot) -> Snapshot {
        let mut snapshot = snapshot.clone();
        for series in snapshot.families.iter_mut().flat_map(|family| &mut family.series) {
            let SeriesKey { name, labels: own } = &*series.key;
            let all = self.labels.iter().map(|(name, value)| (name.as_str(), value.as_str()));
            let labels: Vec<_> = all.filter(|(name, _)| own.get(name).is_none()).collect();
            let labels = Labels::new(own.iter().chain(labels));
            series.key = Arc::new(SeriesKey { name: name.clone(), labels });
        }
        snapshot
    }
}

/// All lines about one metric.
struct Family<'a> {
    kind: &'a str,
    /// What it is, in lines that begin with `#`.
    head: Vec<&'a str>,
    samples: Vec<&'a str>,
}

/// Takes a page apart into its metrics, in the order in which they stand there.
fn families(page: &str) -> Vec<(&str, Family<'_>)> {
    let mut all: Vec<(&str, Family<'_>)> = Vec::new();
    for line in page.lines().filter(|line| !line.is_empty()) {
        let Some(said) = line.strip_prefix("# ") else {
            if let Some((_, family)) = all.last_mut() {
                family.samples.push(line);
            }
            continue;
        };
        let mut words = said.splitn(3, ' ');
        let (what, name, rest) = (words.next(), words.next(), words.next());
        let name = name.unwrap_or_default();
        // The help comes first, where there is one.
        if all.last().is_none_or(|(last, _)| *last != name) {
            all.push((name, Family { kind: "", head: Vec::new(), samples: Vec::new() }));
        }
        if let Some((_, family)) = all.last_mut() {
            family.head.push(line);
            if what == Some("TYPE") {
                family.kind = rest.unwrap_or_default();
            }
        }
    }
    all
}

/// Puts two pages into one, in which each metric stands once.
fn joined(ours: &str, theirs: &str) -> String {
    let mut theirs: BTreeMap<&str, Family<'_>> = families(theirs).into_iter().collect();
    let mut page = String::with_capacity(ours.len());
    let mut put = |lines: &[&str]| {
        for line in lines {
            page.push_str(line);
            page.push('\n');
        }
    };
    for (name, family) in families(ours) {
        put(&family.head);
        put(&family.samples);
        if let Some(other) = theirs.remove(name).filter(|other| other.kind == family.kind) {
            let taken: HashSet<_> = family.samples.iter().map(|line| series_of(line)).collect();
            let more = other.samples.into_iter().filter(|line| !taken.contains(&series_of(line)));
            put(&more.collect::<Vec<_>>());
        }
    }
    for family in theirs.values() {
        put(&family.head);
        put(&family.samples);
    }
    page
}

/// The name and the labels of a sample, in the order of the labels' names.
fn series_of(sample: &str) -> (&str, Vec<(String, String)>) {
    let end = sample.find(['{', ' ']).unwrap_or(sample.len());
    let (name, rest) = sample.split_at(end);
    let mut labels = Vec::new();
    let mut rest = rest.strip_prefix('{').unwrap_or_default();
    while let Some((label, value)) = rest.split_once("=\"") {
        let mut text = String::new();
        let mut characters = value.char_indices();
        let end = loop {
            match characters.next() {
                Some((at, '"')) => break at + 1,
                Some((_, '\\')) => match characters.next() {
                    Some((_, 'n')) => text.push('\n'),
                    Some((_, other)) => text.push(other),
                    None => break value.len(),
                },
                Some((_, other)) => text.push(other),
                None => break value.len(),
            }
        };
        labels.push((label.to_owned(), text));
        rest = &value[end..];
        match rest.strip_prefix(',') {
            Some(more) => rest = more,
            None => break,
        }
    }
    labels.sort();
    (name, labels)
}

impl UltraPerf {
    /// Makes a recorder of `metrics-exporter-prometheus` whose page has what this handle's parts count, too.
    ///
    /// It is not installed for the process. The global labels of the builder are given to all series; its
    /// buckets, quantiles and idle time-outs are for what is recorded: the histograms of the parts have the
    /// buckets of [`UltraPerf::render`], and what the parts no longer report is no longer on the page.
    pub fn prometheus_exporter(&self, builder: PrometheusBuilder) -> PrometheusExporter {
        let recorder = builder.build_recorder();
        let handle = recorder.handle();
        let exported = recorder.register_gauge(&Key::from_static_name(EXPORTED), &METADATA);
        exported.set(0.0);
        let page = handle.render();
        // Nothing else has been recorded, so this is its own line.
        let line = page.lines().find(|line| line.starts_with(EXPORTED)).unwrap_or_default();
        let (_, labels) = series_of(line);
        PrometheusExporter { perf: self.downgrade(), recorder, handle, exported, labels }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use monitor::{Distribution, Readings};

    use super::*;
    use crate::OptimizationLevel;

    async fn handle() -> UltraPerf {
        UltraPerf::builder()
            .level(OptimizationLevel::Basic)
            .set("monitor.history.enabled", "false")
            .monitor(monitor::MonitorBuilder::manual)
            .build()
            .await
            .expect("a handle")
    }

    fn page(perf: &UltraPerf, exporter: &PrometheusExporter) -> String {
        perf.monitor().expect("it is on").tick();
        exporter.render()
    }

    #[track_caller]
    fn has(page: &str, line: &str) {
        assert!(page.lines().any(|other| other == line), "{line} in {page}");
    }

    #[tokio::test]
    async fn one_page_has_the_metrics_of_the_parts_and_of_the_program() {
        let perf = handle().await;
        perf.registry().counter("orders_total", &[("kind", "book")]).increment(3);
        let seconds = perf.registry().histogram("order_seconds", &[]);
        seconds.record(0.1);
        let exporter = perf.prometheus_exporter(PrometheusBuilder::new());
        metrics::with_local_recorder(exporter.recorder(), || {
            metrics::counter!("own_total").increment(7);
        });
        let first = page(&perf, &exporter);
        for line in ["orders_total{kind=\"book\"} 3", "own_total 7", "order_seconds_count 1"] {
            has(&first, line);
        }
        seconds.record(0.1);
        has(&page(&perf, &exporter), "order_seconds_count 2");
    }

    #[tokio::test]
    async fn a_histogram_of_many_values_costs_what_one_of_few_does() {
        let perf = handle().await;
        let _watch = perf.registry().collect(|out: &mut Readings| {
            let mut all = Distribution::empty(1e-9);
            all.record_many(0.1, 1 << 50);
            out.distribution("much_seconds", &[], all);
        });
        let exporter = perf.prometheus_exporter(PrometheusBuilder::new());
        has(&page(&perf, &exporter), "much_seconds_count 1125899906842624");
    }

    #[tokio::test]
    async fn what_is_no_longer_reported_is_no_longer_on_the_page() {
        let perf = handle().await;
        let round = Arc::new(AtomicU64::new(0));
        let at = Arc::clone(&round);
        let _watch = perf.registry().collect(move |out: &mut Readings| {
            let (state, total) = match at.load(Ordering::Relaxed) {
                0 => ("ready", 10.5),
                // Whoever counts has begun again.
                _ => ("down", 2.25),
            };
            out.gauge("backend_state", &[("state", state)], 1.0);
            out.counter("busy_seconds_total", &[], total);
        });
        let exporter = perf.prometheus_exporter(PrometheusBuilder::new());
        let first = page(&perf, &exporter);
        has(&first, "backend_state{state=\"ready\"} 1");
        has(&first, "busy_seconds_total 10.5");
        round.store(1, Ordering::Relaxed);
        let second = page(&perf, &exporter);
        has(&second, "backend_state{state=\"down\"} 1");
        has(&second, "busy_seconds_total 2.25");
        assert!(!second.contains("state=\"ready\""), "{second}");
    }

    #[tokio::test]
    async fn a_name_that_both_know_stands_on_the_page_once() {
        let perf = handle().await;
        let orders = |kind| perf.registry().counter("orders_total", &[("kind", kind), ("at", "x")]);
        orders("book").increment(3);
        perf.registry().gauge("mixed", &[]).set(1.0);
        let exporter = perf.prometheus_exporter(PrometheusBuilder::new());
        metrics::with_local_recorder(exporter.recorder(), || {
            metrics::counter!("orders_total", "kind" => "film", "at" => "x").increment(5);
            metrics::counter!("orders_total", "kind" => "book", "at" => "x").increment(9);
            metrics::counter!("mixed").increment(9);
        });
        let page = page(&perf, &exporter);
        has(&page, "orders_total{kind=\"film\",at=\"x\"} 5");
        let lines = |start: &str| page.lines().filter(|line| line.starts_with(start)).count();
        assert_eq!(lines("orders_total{"), 2, "{page}");
        assert_eq!(lines("# TYPE orders_total "), 1, "{page}");
        assert_eq!((lines("# TYPE mixed "), lines("mixed ")), (1, 1), "{page}");
        has(&page, "mixed 1");
    }

    #[tokio::test]
    async fn the_labels_that_the_builder_gives_to_all_are_on_all_series() {
        let perf = handle().await;
        perf.registry().gauge("depth", &[("queue", "a")]).set(1.0);
        perf.registry().gauge("depth", &[("region", "own")]).set(2.0);
        let builder = PrometheusBuilder::new().add_global_label("region", "a \"b\"\nc");
        let exporter = perf.prometheus_exporter(builder.add_global_label("zone", "z"));
        let page = page(&perf, &exporter);
        has(&page, "depth{queue=\"a\",region=\"a \\\"b\\\"\\nc\",zone=\"z\"} 1");
        has(&page, "depth{region=\"own\",zone=\"z\"} 2");
        let exported = page.lines().find(|line| line.starts_with(EXPORTED)).expect("a line");
        assert!(exported.contains("zone=\"z\""), "{exported}");
        let count: f64 = exported.rsplit(' ').next().expect("a value").parse().expect("a number");
        assert!(count >= 2.0, "{exported}");
    }

    #[tokio::test]
    async fn without_the_handle_the_page_is_that_of_the_program() {
        let perf = handle().await;
        let exporter = perf.prometheus_exporter(PrometheusBuilder::new());
        metrics::with_local_recorder(exporter.recorder(), || {
            metrics::counter!("own_total").increment(7);
        });
        perf.shutdown(std::time::Duration::ZERO).await;
        drop(perf);
        has(&exporter.render(), "own_total 7");
    }
}
