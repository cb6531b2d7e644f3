//! All that the registry holds, for programs that already serve `metrics-exporter-prometheus`.
//!
//! The monitor renders for Prometheus by itself. A program whose own metrics go through that exporter wants
//! one page for both: here the readings are copied into its recorder when it is about to be rendered. Of a
//! histogram the values since the copy before are handed over, each at the mean of its bucket.

use std::collections::HashMap;

use metrics::{Key, Label, Level, Metadata, Recorder};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use monitor::{Distribution, Kind, SeriesId, Value};
use parking_lot::Mutex;

use crate::{UltraPerf, WeakUltraPerf};

const METADATA: Metadata<'static> =
    Metadata::new(module_path!(), Level::INFO, Some(module_path!()));

/// A recorder of `metrics-exporter-prometheus` that knows what a handle knows; from
/// [`UltraPerf::prometheus_exporter`].
pub struct PrometheusExporter {
    perf: WeakUltraPerf,
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    /// What of each histogram has been handed over, by bucket.
    published: Mutex<HashMap<SeriesId, HashMap<u16, u64>>>,
}

impl std::fmt::Debug for PrometheusExporter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PrometheusExporter").finish_non_exhaustive()
    }
}

impl PrometheusExporter {
    /// Returns the page: what the handle's parts counted, and what was recorded besides.
    ///
    /// # Cost
    ///
    /// That of [`UltraPerf::snapshot`], and of a look-up for each series.
    #[must_use]
    pub fn render(&self) -> String {
        self.publish();
        self.handle.render()
    }

    /// Returns the recorder, for metrics of the program's own: `metrics::with_local_recorder`.
    #[must_use]
    pub fn recorder(&self) -> &PrometheusRecorder {
        &self.recorder
    }

    /// Copies what the parts counted into the recorder.
    fn publish(&self) {
        let Some(perf) = self.perf.upgrade() else { return };
        let mut published = self.published.lock();
        for (family, series) in perf.snapshot().series() {
            let labels = series.key.labels.iter();
            let labels: Vec<_> =
                labels.map(|(name, value)| Label::new(name.to_owned(), value.to_owned())).collect();
            let key = Key::from_parts(family.name.to_string(), labels);
            match &series.value {
                Value::Number(number) if family.kind == Kind::Counter => {
                    self.recorder.register_counter(&key, &METADATA).absolute(*number as u64);
                }
                Value::Number(number) => {
                    self.recorder.register_gauge(&key, &METADATA).set(*number);
                }
                Value::Distribution(all) => {
                    let histogram = self.recorder.register_histogram(&key, &METADATA);
                    hand_over(all, published.entry(series.id).or_default(), &histogram);
                }
            }
        }
    }
}

fn hand_over(all: &Distribution, published: &mut HashMap<u16, u64>, to: &metrics::Histogram) {
    for bucket in all.buckets() {
        let before = published.insert(bucket.index, bucket.count).unwrap_or(0);
        if let Ok(new) = usize::try_from(bucket.count.saturating_sub(before))
            && new > 0
        {
            to.record_many(bucket.mean, new);
        }
    }
}

impl UltraPerf {
    /// Makes a recorder of `metrics-exporter-prometheus` that also knows what this handle's parts count.
    ///
    /// It is not installed for the process. Idle time-outs of the builder apply to its own metrics as they
    /// do to these, which are copied at each rendering.
    pub fn prometheus_exporter(&self, builder: PrometheusBuilder) -> PrometheusExporter {
        let recorder = builder.build_recorder();
        let handle = recorder.handle();
        PrometheusExporter { perf: self.downgrade(), recorder, handle, published: Mutex::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::OptimizationLevel;

    #[tokio::test]
    async fn one_page_has_the_metrics_of_the_parts_and_of_the_program() {
        let perf = UltraPerf::builder()
            .level(OptimizationLevel::Basic)
            .set("monitor.history.enabled", "false")
            .monitor(monitor::MonitorBuilder::manual)
            .build()
            .await
            .expect("a handle");
        perf.registry().counter("orders_total", &[("kind", "book")]).increment(3);
        let seconds = perf.registry().histogram("order_seconds", &[]);
        seconds.record(0.1);
        let tick = || perf.monitor().expect("it is on").tick();
        tick();
        let exporter = perf.prometheus_exporter(PrometheusBuilder::new());
        metrics::with_local_recorder(exporter.recorder(), || {
            metrics::counter!("own_total").increment(7);
        });
        let page = exporter.render();
        for line in ["orders_total{kind=\"book\"} 3", "own_total 7", "order_seconds_count 1"] {
            assert!(page.contains(line), "{line} in {page}");
        }
        seconds.record(0.1);
        tick();
        assert!(exporter.render().contains("order_seconds_count 2"), "each value once");
    }
}
