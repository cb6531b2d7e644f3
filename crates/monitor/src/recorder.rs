//! What other libraries record through the `metrics` facade, taken into the registry.
//!
//! Metrics keep their names, with `_` for what Prometheus does not allow, and their labels; the caps of the
//! registry hold for them as for all. A unit that the registry does not know, such as milliseconds, is left
//! to the name, and the values stay as they were recorded. A histogram without a unit keeps nine digits
//! behind the point.
//!
//! The facade looks a series up at each macro call. The recorder keeps the handles of the first ten thousand
//! keys that it meets, by the hash that the facade has computed already; others are looked up in the
//! registry each time. A library that keeps the handle that `metrics::counter!` returns pays one indirect
//! call more than with our own.

use std::sync::Arc;

use foldhash::fast::RandomState;
use hashbrown::HashMap;
use metrics::{Key, KeyName, Metadata, SharedString};
use parking_lot::RwLock;

use crate::histogram::Histogram;
use crate::registry::{Counter, Gauge, Registry, metric_name, unit_of};
use crate::series::{Kind, Unit};

/// Records into a registry what libraries tell the `metrics` facade.
///
/// # Examples
///
/// ```
/// let registry = monitor::Registry::default();
/// let recorder = monitor::Recorder::new(&registry);
/// metrics::with_local_recorder(&recorder, || {
///     metrics::counter!("frames_total", "codec" => "h2").increment(3);
/// });
/// let snapshot = registry.read(monitor::Clock::now(&monitor::SystemClock::new()));
/// assert_eq!(snapshot.number("frames_total", &[("codec", "h2")]), Some(3.0));
/// ```
#[derive(Debug, Clone)]
pub struct Recorder {
    registry: Registry,
    counters: Arc<Kept<metrics::Counter>>,
    gauges: Arc<Kept<metrics::Gauge>>,
    histograms: Arc<Kept<metrics::Histogram>>,
}

/// Keys of one kind whose handles are kept.
const KEPT_MAX: usize = 10_000;

/// Handles by key.
type Kept<H> = RwLock<HashMap<Key, H, RandomState>>;

/// Returns the handle of a key, which is made if it is not kept.
fn kept<H: Clone>(handles: &Kept<H>, key: &Key, make: impl FnOnce() -> H) -> H {
    if let Some(handle) = handles.read().get(key) {
        return handle.clone();
    }
    let handle = make();
    let mut handles = handles.write();
    if handles.len() < KEPT_MAX {
        handles.insert(key.to_retained(), handle.clone());
    }
    handle
}

/// The program has a recorder already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the `metrics` facade has a recorder already, and a program can have one only")]
pub struct InstallError;

impl Recorder {
    /// Makes a recorder for a registry.
    #[must_use]
    pub fn new(registry: &Registry) -> Self {
        Self {
            registry: registry.clone(),
            counters: Arc::default(),
            gauges: Arc::default(),
            histograms: Arc::default(),
        }
    }

    /// Makes this the recorder of the whole program, for good.
    ///
    /// What was recorded before is lost, so call it early.
    ///
    /// # Errors
    ///
    /// [`InstallError`] if there is one already.
    pub fn install(self) -> Result<(), InstallError> {
        metrics::set_global_recorder(self).map_err(|_| InstallError)
    }

    fn describe(&self, name: &KeyName, kind: Kind, unit: Option<metrics::Unit>, help: &str) {
        let name = name.as_str();
        let unit = match unit {
            Some(metrics::Unit::Seconds) => Unit::Seconds,
            Some(metrics::Unit::Bytes) => Unit::Bytes,
            Some(metrics::Unit::Percent) => Unit::Percent,
            Some(_) => Unit::None,
            None => unit_of(&metric_name(name)),
        };
        self.registry.describe(name, kind, unit, help);
    }
}

fn labels(key: &Key) -> Vec<(&str, &str)> {
    key.labels().map(|label| (label.key(), label.value())).collect()
}

impl metrics::Recorder for Recorder {
    fn describe_counter(&self, key: KeyName, unit: Option<metrics::Unit>, help: SharedString) {
        self.describe(&key, Kind::Counter, unit, &help);
    }

    fn describe_gauge(&self, key: KeyName, unit: Option<metrics::Unit>, help: SharedString) {
        self.describe(&key, Kind::Gauge, unit, &help);
    }

    fn describe_histogram(&self, key: KeyName, unit: Option<metrics::Unit>, help: SharedString) {
        self.describe(&key, Kind::Histogram, unit, &help);
    }

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> metrics::Counter {
        kept(&self.counters, key, || {
            let counter = self.registry.counter(key.name(), &labels(key));
            metrics::Counter::from_arc(Arc::new(Handle(counter)))
        })
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> metrics::Gauge {
        kept(&self.gauges, key, || {
            let gauge = self.registry.gauge(key.name(), &labels(key));
            metrics::Gauge::from_arc(Arc::new(Handle(gauge)))
        })
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> metrics::Histogram {
        kept(&self.histograms, key, || {
            let histogram = self.registry.histogram(key.name(), &labels(key));
            metrics::Histogram::from_arc(Arc::new(Handle(histogram)))
        })
    }
}

/// One of our handles as one of the facade.
struct Handle<T>(T);

impl metrics::CounterFn for Handle<Counter> {
    fn increment(&self, value: u64) {
        self.0.increment(value);
    }

    fn absolute(&self, value: u64) {
        self.0.absolute(value);
    }
}

impl metrics::GaugeFn for Handle<Gauge> {
    fn increment(&self, value: f64) {
        self.0.add(value);
    }

    fn decrement(&self, value: f64) {
        self.0.add(-value);
    }

    fn set(&self, value: f64) {
        self.0.set(value);
    }
}

impl metrics::HistogramFn for Handle<Histogram> {
    fn record(&self, value: f64) {
        self.0.record(value);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use metrics::{
        counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
    };

    use super::*;
    use crate::clock::Moment;
    use crate::registry::{Snapshot, Value};

    fn recorded(record: impl FnOnce()) -> Snapshot {
        let registry = Registry::default();
        metrics::with_local_recorder(&Recorder::new(&registry), record);
        registry.read(Moment { monotonic: Duration::ZERO, unix_ms: 0 })
    }

    #[test]
    fn handles_of_the_facade_do_as_they_say() {
        let read = recorded(|| {
            let count = counter!("c_total", "a" => "1");
            count.increment(2);
            count.absolute(10);
            count.absolute(7);
            count.increment(1);
            let level = gauge!("g");
            level.set(5.0);
            level.increment(2.5);
            level.decrement(1.0);
            let sizes = histogram!("h");
            sizes.record(0.125);
            sizes.record_many(2.0, 3);
        });
        assert_eq!(read.number("c_total", &[("a", "1")]), Some(11.0));
        assert_eq!(read.number("g", &[]), Some(6.5));
        let Some(Value::Distribution(sizes)) = read.get("h", &[]) else { panic!("no sizes") };
        assert_eq!(sizes.count(), 4);
        assert!((sizes.sum() - 6.125).abs() < 0.01, "{}", sizes.sum());
        assert!((sizes.quantile(0.0).expect("values") - 0.125).abs() < 0.002);
    }

    #[test]
    fn names_are_made_to_fit_and_descriptions_arrive() {
        let read = recorded(|| {
            describe_counter!("http.requests", "Requests.");
            describe_gauge!("heap", metrics::Unit::Bytes, "Bytes in use.");
            describe_histogram!("wait_seconds", "Time waited.");
            describe_histogram!("pause_ms", metrics::Unit::Milliseconds, "Pauses.");
            counter!("http.requests", "content-type" => "text/html").increment(1);
            gauge!("heap").set(1.0);
            histogram!("wait_seconds").record(0.5);
            histogram!("pause_ms").record(12.5);
        });
        assert_eq!(read.number("http_requests", &[("content_type", "text/html")]), Some(1.0));
        let described = |name: &str| {
            let family = read.families.iter().find(|family| &*family.name == name);
            let family = family.expect("there");
            (family.unit, family.help.to_string())
        };
        assert_eq!(described("http_requests"), (Unit::None, "Requests.".to_owned()));
        assert_eq!(described("heap"), (Unit::Bytes, "Bytes in use.".to_owned()));
        assert_eq!(described("wait_seconds"), (Unit::Seconds, "Time waited.".to_owned()));
        assert_eq!(described("pause_ms"), (Unit::None, "Pauses.".to_owned()));
    }

    #[test]
    fn a_program_has_one_recorder() {
        let registry = Registry::default();
        Recorder::new(&registry).install().expect("the first");
        assert_eq!(Recorder::new(&registry).install(), Err(InstallError));
        counter!("installed_total").increment(1);
        let read = registry.read(Moment { monotonic: Duration::ZERO, unix_ms: 0 });
        assert_eq!(read.number("installed_total", &[]), Some(1.0));
    }
}
