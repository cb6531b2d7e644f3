//! The registry: all series of a process, each behind a handle that is looked up once and used often.
//!
//! Handles are atomics of their own, so counting never meets the registry. What other parts count for
//! themselves is pulled: [`Registry::watch`] takes one value from a closure at each reading,
//! [`Registry::collect`] any set of series. [`Registry::read`] gives a [`Snapshot`] of everything, once a tick.
//!
//! Nobody who counts can be made to fail, so misuse does not: a name that is another kind already gives a
//! handle that counts into nothing, and [`Registry::problems`] says so. Labels come from requests sooner or
//! later, so each name has at most [`RegistryOptions::series_per_name`] series. What is over counts into one
//! more, whose labels all read `__other__`, and `monitor_series_overflow_total` tells how often.

use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crossbeam_utils::CachePadded;
use parking_lot::{Mutex, RwLock, RwLockWriteGuard};

use crate::clock::Moment;
use crate::exemplar::Exemplar;
use crate::histogram::{Distribution, Histogram, HistogramCell};
use crate::selector::{is_label_name, is_metric_name};
use crate::series::{Kind, Labels, SeriesId, SeriesKey, Unit};

/// The value of each label of the series that takes what is over the cap.
pub const OTHER: &str = "__other__";
/// Problems that are kept for [`Registry::problems`].
const PROBLEMS_MAX: usize = 100;

const OVERFLOW: &str = "monitor_series_overflow_total";
const NAMES_REFUSED: &str = "monitor_names_refused_total";
const WATCH_PANICS: &str = "monitor_watch_panics_total";

/// The bounds of a registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegistryOptions {
    /// Series of one name; 200 by default. One more takes what is over.
    pub series_per_name: usize,
    /// Names of metrics; 2,000 by default. What is over counts into nothing, and is itself counted.
    pub names: usize,
    /// Bytes of a label's value; 256 by default. Longer values are cut.
    pub label_bytes: usize,
    /// Readings after which a series that a closure no longer reports is forgotten; 300 by default.
    pub forget_after: u32,
    /// Closures that may watch; 1,000 by default.
    pub watches: usize,
}

impl Default for RegistryOptions {
    fn default() -> Self {
        Self {
            series_per_name: 200,
            names: 2_000,
            label_bytes: 256,
            forget_after: 300,
            watches: 1_000,
        }
    }
}

/// Counts; clones count into the same series.
#[derive(Debug, Clone)]
pub struct Counter(Arc<CachePadded<AtomicU64>>);

impl Counter {
    /// Adds to the count.
    ///
    /// # Cost
    ///
    /// One relaxed addition to a word of its own cache line.
    #[inline]
    pub fn increment(&self, by: u64) {
        self.0.fetch_add(by, Relaxed);
    }

    /// Raises the count to a total that somebody else keeps; a lower one changes nothing.
    #[inline]
    pub fn absolute(&self, total: u64) {
        self.0.fetch_max(total, Relaxed);
    }

    /// Returns the count.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A value that goes up and down; clones share it.
#[derive(Debug, Clone)]
pub struct Gauge(Arc<CachePadded<AtomicU64>>);

impl Gauge {
    /// Sets the value.
    ///
    /// # Cost
    ///
    /// One relaxed store.
    #[inline]
    pub fn set(&self, value: f64) {
        self.0.store(value.to_bits(), Relaxed);
    }

    /// Adds to the value; a negative number takes away.
    ///
    /// # Cost
    ///
    /// A compare-exchange, and as many more as other threads are in between.
    #[inline]
    pub fn add(&self, by: f64) {
        let add = |bits| Some((f64::from_bits(bits) + by).to_bits());
        // The closure always gives a value, so this never fails.
        let _ = self.0.fetch_update(Relaxed, Relaxed, add);
    }

    /// Returns the value.
    #[must_use]
    pub fn get(&self) -> f64 {
        f64::from_bits(self.0.load(Relaxed))
    }
}

/// The value of a series at one reading.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A counter's total or a gauge's value.
    Number(f64),
    /// All that a histogram has seen.
    Distribution(Arc<Distribution>),
}

/// One series at one reading.
#[derive(Debug, Clone)]
pub struct SeriesSnapshot {
    /// Its number in this registry.
    pub id: SeriesId,
    /// Its name and labels.
    pub key: Arc<SeriesKey>,
    /// Its value.
    pub value: Value,
    /// Of a histogram, for some values the trace in which they were measured.
    pub exemplars: Vec<Exemplar>,
}

/// All series of one name at one reading.
#[derive(Debug, Clone)]
pub struct FamilySnapshot {
    /// The name of the metric.
    pub name: Arc<str>,
    /// What its values mean.
    pub kind: Kind,
    /// The unit of its values.
    pub unit: Unit,
    /// What it tells, in a sentence; empty if nobody said.
    pub help: Arc<str>,
    /// Its series in the order of their labels.
    pub series: Vec<SeriesSnapshot>,
}

/// All that a registry holds at one moment, in the order of names.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// When it was read.
    pub at: Moment,
    /// The families that have series.
    pub families: Vec<FamilySnapshot>,
}

impl Snapshot {
    /// Returns the series of all families.
    pub fn series(&self) -> impl Iterator<Item = (&FamilySnapshot, &SeriesSnapshot)> {
        self.families.iter().flat_map(|family| family.series.iter().map(move |one| (family, one)))
    }

    /// Returns the value of a series.
    #[must_use]
    pub fn get(&self, name: &str, labels: &[(&str, &str)]) -> Option<&Value> {
        let at = self.families.binary_search_by(|family| (*family.name).cmp(name)).ok()?;
        let labels = Labels::new(labels.iter().copied());
        let series = self.families[at].series.iter().find(|one| one.key.labels == labels)?;
        Some(&series.value)
    }

    /// Returns the number of a counter or a gauge.
    #[must_use]
    pub fn number(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        match self.get(name, labels)? {
            Value::Number(number) => Some(*number),
            Value::Distribution(_) => None,
        }
    }
}

/// What a closure of [`Registry::collect`] reports at a reading.
#[derive(Debug, Default)]
pub struct Readings(Vec<(Arc<str>, Labels, Kind, Value)>);

impl Readings {
    /// Reports a value that goes up and down.
    pub fn gauge(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        self.push(name, labels, Kind::Gauge, Value::Number(value));
    }

    /// Reports a total that only grows.
    pub fn counter(&mut self, name: &str, labels: &[(&str, &str)], total: f64) {
        self.push(name, labels, Kind::Counter, Value::Number(total));
    }

    /// Reports all that a histogram of somebody else's has seen.
    pub fn distribution(
        &mut self,
        name: &str,
        labels: &[(&str, &str)],
        all: impl Into<Arc<Distribution>>,
    ) {
        self.push(name, labels, Kind::Histogram, Value::Distribution(all.into()));
    }

    fn push(&mut self, name: &str, labels: &[(&str, &str)], kind: Kind, value: Value) {
        self.0.push((metric_name(name), Labels::new(labels.iter().copied()), kind, value));
    }
}

type Watcher = dyn Fn(&mut Readings) + Send + Sync;

#[derive(Clone)]
struct Watching {
    id: u64,
    watcher: Arc<Watcher>,
}

/// A closure that the registry asks at each reading.
///
/// It goes on when this is dropped; [`remove`](Self::remove) ends it.
#[derive(Debug)]
pub struct Watch {
    registry: Registry,
    id: u64,
}

impl Watch {
    /// Stops asking; the series of the closure are forgotten after a while.
    pub fn remove(self) {
        self.registry.0.watches.lock().retain(|watching| watching.id != self.id);
    }
}

/// All series of a process, or of a part of it; clones share them.
///
/// # Examples
///
/// ```
/// let registry = monitor::Registry::default();
/// let orders = registry.counter("orders_total", &[("kind", "book")]);
/// orders.increment(1);
/// registry.watch("queue_depth", || 7.0);
///
/// let snapshot = registry.read(monitor::Clock::now(&monitor::SystemClock::new()));
/// assert_eq!(snapshot.number("orders_total", &[("kind", "book")]), Some(1.0));
/// assert_eq!(snapshot.number("queue_depth", &[]), Some(7.0));
/// ```
#[derive(Clone)]
pub struct Registry(Arc<Inner>);

struct Inner {
    options: RegistryOptions,
    families: RwLock<Families>,
    watches: Mutex<Vec<Watching>>,
    next_watch: AtomicU64,
    watch_panics: AtomicU64,
    problems: Mutex<BTreeMap<Arc<str>, String>>,
}

#[derive(Default)]
struct Families {
    by_name: BTreeMap<Arc<str>, Family>,
    next_id: u32,
    readings: u32,
    names_refused: u64,
    generation: u64,
}

struct Family {
    kind: Kind,
    unit: Unit,
    help: Arc<str>,
    series: BTreeMap<Labels, Series>,
    /// How often a series beyond the cap was asked for.
    overflowed: u64,
}

impl Family {
    fn new(kind: Kind, unit: Unit, help: Arc<str>) -> Self {
        Self { kind, unit, help, series: BTreeMap::new(), overflowed: 0 }
    }
}

struct Series {
    id: SeriesId,
    key: Arc<SeriesKey>,
    cell: Cell,
}

/// Where the value of a series is.
#[derive(Clone)]
enum Cell {
    Counter(Arc<CachePadded<AtomicU64>>),
    Gauge(Arc<CachePadded<AtomicU64>>),
    Histogram(Arc<HistogramCell>),
    /// Reported by a closure, last at this reading.
    Reported {
        value: Value,
        reading: u32,
    },
}

impl Cell {
    fn new(kind: Kind, unit: Unit) -> Self {
        match kind {
            Kind::Counter => Self::Counter(Arc::default()),
            Kind::Gauge => Self::Gauge(Arc::default()),
            Kind::Histogram => Self::Histogram(Arc::new(HistogramCell::new(unit))),
        }
    }

    fn value(&self) -> Value {
        match self {
            Self::Counter(count) => Value::Number(count.load(Relaxed) as f64),
            Self::Gauge(bits) => Value::Number(f64::from_bits(bits.load(Relaxed))),
            Self::Histogram(cell) => Value::Distribution(cell.read()),
            Self::Reported { value, .. } => value.clone(),
        }
    }

    fn exemplars(&self) -> Vec<Exemplar> {
        match self {
            Self::Histogram(cell) => cell.exemplars(),
            _ => Vec::new(),
        }
    }
}

impl Default for Registry {
    fn default() -> Self {
        Self::new(RegistryOptions::default())
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.0.families.read().by_name.len();
        f.debug_struct("Registry").field("names", &names).finish_non_exhaustive()
    }
}

impl Registry {
    /// Makes an empty registry.
    #[must_use]
    pub fn new(options: RegistryOptions) -> Self {
        let registry = Self(Arc::new(Inner {
            options,
            families: RwLock::default(),
            watches: Mutex::default(),
            next_watch: AtomicU64::new(0),
            watch_panics: AtomicU64::new(0),
            problems: Mutex::default(),
        }));
        for (name, help) in [
            (OVERFLOW, "Lookups of series beyond the cap of their name, by metric."),
            (NAMES_REFUSED, "Lookups of metrics beyond the cap of names."),
            (WATCH_PANICS, "Readings that a watching closure did not survive."),
        ] {
            registry.describe(name, Kind::Counter, Unit::None, help);
        }
        registry
    }

    /// Says what a metric is: its kind, its unit and a sentence of help.
    ///
    /// The ticks of a histogram depend on its unit, so describe it before it is first looked up. A name
    /// that has series already keeps its kind and unit.
    pub fn describe(&self, name: &str, kind: Kind, unit: Unit, help: &str) {
        let name = metric_name(name);
        let mut families = self.0.families.write();
        let full = families.by_name.len() >= self.0.options.names;
        match families.by_name.get_mut(&name) {
            Some(family) if family.series.is_empty() => {
                *family = Family::new(kind, unit, help.into());
            }
            Some(family) => {
                family.help = help.into();
                let other = (family.kind, family.unit);
                if other != (kind, unit) {
                    drop(families);
                    self.problem(
                        &name,
                        format!(
                            "described as {kind:?} in {unit:?}, but it has series of {other:?}"
                        ),
                    );
                }
            }
            None if full => families.names_refused += 1,
            None => {
                families.by_name.insert(name, Family::new(kind, unit, help.into()));
            }
        }
    }

    /// Whether somebody said what a metric is, or a series of it was looked up.
    pub(crate) fn is_described(&self, name: &str) -> bool {
        self.0.families.read().by_name.contains_key(&metric_name(name))
    }

    /// Returns the counter of a name and labels, making it if it is new.
    ///
    /// Characters that a name cannot have become `_`. See the module's page for caps and misuse.
    ///
    /// # Cost
    ///
    /// A lock and a lookup: keep the handle.
    #[must_use]
    pub fn counter(&self, name: &str, labels: &[(&str, &str)]) -> Counter {
        match self.cell(name, labels, Kind::Counter) {
            Some(Cell::Counter(count)) => Counter(count),
            _ => Counter(Arc::default()),
        }
    }

    /// Returns the gauge of a name and labels, making it if it is new.
    ///
    /// # Cost
    ///
    /// As [`counter`](Self::counter).
    #[must_use]
    pub fn gauge(&self, name: &str, labels: &[(&str, &str)]) -> Gauge {
        match self.cell(name, labels, Kind::Gauge) {
            Some(Cell::Gauge(bits)) => Gauge(bits),
            _ => Gauge(Arc::default()),
        }
    }

    /// Returns the histogram of a name and labels, making it if it is new.
    ///
    /// A name that nobody described is in seconds if it ends in `_seconds`, in bytes if in `_bytes`.
    ///
    /// # Cost
    ///
    /// As [`counter`](Self::counter).
    #[must_use]
    pub fn histogram(&self, name: &str, labels: &[(&str, &str)]) -> Histogram {
        match self.cell(name, labels, Kind::Histogram) {
            Some(Cell::Histogram(cell)) => Histogram(cell),
            _ => Histogram(Arc::new(HistogramCell::new(Unit::None))),
        }
    }

    /// Asks a closure for a value that goes up and down, at each reading.
    ///
    /// The closure should take microseconds: it is part of each tick. If it panics, the reading goes on
    /// without it and `monitor_watch_panics_total` counts it.
    pub fn watch(&self, name: &str, value: impl Fn() -> f64 + Send + Sync + 'static) -> Watch {
        let name = metric_name(name);
        self.collect(move |readings| readings.gauge(&name, &[], value()))
    }

    /// Asks a closure for a total that only grows, at each reading.
    pub fn watch_counter(
        &self,
        name: &str,
        total: impl Fn() -> u64 + Send + Sync + 'static,
    ) -> Watch {
        let name = metric_name(name);
        self.collect(move |readings| readings.counter(&name, &[], total() as f64))
    }

    /// Asks a closure for any set of series, at each reading.
    ///
    /// Series may come and go. One that is not reported keeps no value: it is absent from the reading.
    pub fn collect(&self, watcher: impl Fn(&mut Readings) + Send + Sync + 'static) -> Watch {
        let id = self.0.next_watch.fetch_add(1, Relaxed);
        let mut watches = self.0.watches.lock();
        if watches.len() < self.0.options.watches {
            watches.push(Watching { id, watcher: Arc::new(watcher) });
        } else {
            drop(watches);
            let limit = self.0.options.watches;
            self.problem("watch", format!("more than {limit} closures watch; this one does not"));
        }
        Watch { registry: self.clone(), id }
    }

    /// Returns what was asked for and cannot be, by name of the metric; at most 100.
    #[must_use]
    pub fn problems(&self) -> BTreeMap<Arc<str>, String> {
        self.0.problems.lock().clone()
    }

    /// Returns a number that changes when a series comes or goes.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.0.families.read().generation
    }

    /// Asks all closures and reads all series.
    ///
    /// # Cost
    ///
    /// What the closures take, about 100 ns for a counter or a gauge, and one to two microseconds for a
    /// histogram.
    #[must_use]
    pub fn read(&self, at: Moment) -> Snapshot {
        // Closures may look up series, so no lock is held while they run.
        let watches = self.0.watches.lock().clone();
        let mut readings = Readings::default();
        for watching in watches {
            let reported = readings.0.len();
            let call = AssertUnwindSafe(|| (watching.watcher)(&mut readings));
            if catch_unwind(call).is_err() {
                readings.0.truncate(reported);
                self.0.watch_panics.fetch_add(1, Relaxed);
            }
        }
        let mut refused = Vec::new();
        let mut families = self.0.families.write();
        families.readings = families.readings.wrapping_add(1);
        let panics = self.0.watch_panics.load(Relaxed) as f64;
        readings.counter(WATCH_PANICS, &[], panics);
        readings.counter(NAMES_REFUSED, &[], families.names_refused as f64);
        for (name, family) in &families.by_name {
            if family.overflowed > 0 {
                readings.counter(OVERFLOW, &[("metric", name)], family.overflowed as f64);
            }
        }
        for (name, labels, kind, value) in readings.0 {
            if let Err(problem) = families.report(&self.0.options, &name, labels, kind, value) {
                refused.push((name, problem));
            }
        }
        families.forget(self.0.options.forget_after);
        let families = RwLockWriteGuard::downgrade(families).snapshot();
        for (name, problem) in refused {
            self.problem(&name, problem);
        }
        Snapshot { at, families }
    }

    /// Finds or makes the place of a series.
    fn cell(&self, name: &str, labels: &[(&str, &str)], kind: Kind) -> Option<Cell> {
        let name = metric_name(name);
        let labels = Labels::new(labels.iter().copied());
        if let Some(family) = self.0.families.read().by_name.get(&name)
            && family.kind == kind
            && let Some(series) = family.series.get(&labels)
        {
            return Some(series.cell.clone());
        }
        let mut families = self.0.families.write();
        let found = families.find(&self.0.options, &name, labels, kind);
        let found = found.and_then(|series| match &series.cell {
            Cell::Reported { .. } => Err("a closure reports this series already".to_owned()),
            cell => Ok(cell.clone()),
        });
        drop(families);
        found.map_err(|problem| self.problem(&name, problem)).ok()
    }

    fn problem(&self, name: &str, problem: String) {
        let mut problems = self.0.problems.lock();
        if !problems.contains_key(name) && problems.len() < PROBLEMS_MAX {
            tracing::warn!(metric = name, "{problem}");
            problems.insert(name.into(), problem);
        }
    }
}

impl Families {
    /// Finds or makes a series, or that which takes what is over the cap.
    fn find(
        &mut self,
        options: &RegistryOptions,
        name: &Arc<str>,
        labels: Labels,
        kind: Kind,
    ) -> Result<&mut Series, String> {
        if !self.by_name.contains_key(name) {
            // What the registry says about itself is never refused.
            if self.by_name.len() >= options.names && !name.starts_with("monitor_") {
                self.names_refused += 1;
                return Err(format!("there are {} names already", options.names));
            }
            let family = Family::new(kind, unit_of(name), Arc::from(""));
            self.by_name.insert(Arc::clone(name), family);
        }
        let family = self.by_name.get_mut(name).expect("it is there or was just made");
        if family.kind != kind {
            return Err(format!("asked for as {kind:?}, but it is {:?}", family.kind));
        }
        let labels = clean(labels, options.label_bytes);
        let labels = if family.series.contains_key(&labels)
            || family.series.len() < options.series_per_name
            || &**name == OVERFLOW
        {
            labels
        } else {
            family.overflowed += 1;
            Labels::new(labels.iter().map(|(name, _)| (name, OTHER)))
        };
        let (next_id, generation) = (&mut self.next_id, &mut self.generation);
        Ok(family.series.entry(labels).or_insert_with_key(|labels| {
            let id = SeriesId(*next_id);
            *next_id += 1;
            *generation += 1;
            let key = SeriesKey { name: Arc::clone(name), labels: labels.clone() };
            Series { id, key: Arc::new(key), cell: Cell::new(kind, family.unit) }
        }))
    }

    /// Notes what a closure reported.
    fn report(
        &mut self,
        options: &RegistryOptions,
        name: &Arc<str>,
        labels: Labels,
        kind: Kind,
        value: Value,
    ) -> Result<(), String> {
        let reading = self.readings;
        let (before, generation) = (self.next_id, self.generation);
        let series = self.find(options, name, labels, kind)?;
        let new = series.id.0 >= before;
        match &mut series.cell {
            // Several series beyond the cap: what they count adds up, the last of what they show stays.
            Cell::Reported { value: Value::Number(sum), reading: last }
                if *last == reading && kind == Kind::Counter =>
            {
                if let Value::Number(number) = value {
                    *sum += number;
                }
            }
            Cell::Reported { value: old, reading: last } => {
                (*old, *last) = (value, reading);
            }
            cell if new => *cell = Cell::Reported { value, reading },
            _ => return Err("it has a handle already, and a closure reports it as well".to_owned()),
        }
        debug_assert!(new || generation == self.generation);
        Ok(())
    }

    /// Forgets series that no closure has reported for so many readings.
    fn forget(&mut self, after: u32) {
        let readings = self.readings;
        let mut gone = 0;
        for family in self.by_name.values_mut() {
            family.series.retain(|_, series| {
                let keep = match series.cell {
                    Cell::Reported { reading, .. } => readings.wrapping_sub(reading) <= after,
                    _ => true,
                };
                gone += u64::from(!keep);
                keep
            });
        }
        self.generation += gone;
    }

    fn snapshot(&self) -> Vec<FamilySnapshot> {
        let families = self.by_name.iter().map(|(name, family)| FamilySnapshot {
            name: Arc::clone(name),
            kind: family.kind,
            unit: family.unit,
            help: Arc::clone(&family.help),
            series: family
                .series
                .values()
                .filter(|series| match series.cell {
                    Cell::Reported { reading, .. } => reading == self.readings,
                    _ => true,
                })
                .map(|series| SeriesSnapshot {
                    id: series.id,
                    key: Arc::clone(&series.key),
                    value: series.cell.value(),
                    exemplars: series.cell.exemplars(),
                })
                .collect(),
        });
        families.filter(|family| !family.series.is_empty()).collect()
    }
}

/// The unit that a name tells by its end.
pub(crate) fn unit_of(name: &str) -> Unit {
    let name = name.strip_suffix("_total").unwrap_or(name);
    [Unit::Seconds, Unit::Bytes, Unit::Ratio, Unit::Percent]
        .into_iter()
        .find(|unit| name.ends_with(unit.suffix()))
        .unwrap_or_default()
}

/// Returns a name with `_` for every character that it cannot have.
pub(crate) fn metric_name(name: &str) -> Arc<str> {
    if is_metric_name(name) { name.into() } else { cleaned(name, true).into() }
}

fn cleaned(name: &str, colons: bool) -> String {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || (colons && c == ':');
    let mut clean: String = name.chars().map(|c| if fits(c) { c } else { '_' }).collect();
    if clean.is_empty() || clean.starts_with(|first: char| first.is_ascii_digit()) {
        clean.insert(0, '_');
    }
    clean
}

/// Returns labels whose names and values can be shown.
fn clean(labels: Labels, bytes: usize) -> Labels {
    if labels.iter().all(|(name, value)| is_label_name(name) && value.len() <= bytes) {
        return labels;
    }
    Labels::new(labels.iter().map(|(name, value)| {
        let end = (0..=bytes.min(value.len())).rev().find(|at| value.is_char_boundary(*at));
        (cleaned(name, false), &value[..end.unwrap_or(0)])
    }))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const NOW: Moment = Moment { monotonic: Duration::ZERO, unix_ms: 0 };

    fn small() -> Registry {
        Registry::new(RegistryOptions {
            series_per_name: 2,
            names: 6,
            label_bytes: 16,
            forget_after: 2,
            watches: 2,
        })
    }

    #[test]
    fn handles_of_the_same_labels_share_a_series() {
        let registry = Registry::default();
        registry.counter("a_total", &[("x", "1"), ("y", "2")]).increment(2);
        registry.counter("a_total", &[("y", "2"), ("x", "1")]).increment(3);
        registry.gauge("b", &[]).set(1.5);
        registry.gauge("b", &[]).add(-2.0);
        registry.histogram("c_seconds", &[]).record(0.25);
        let read = registry.read(NOW);
        assert_eq!(read.number("a_total", &[("x", "1"), ("y", "2")]), Some(5.0));
        assert_eq!(read.number("b", &[]), Some(-0.5));
        let Some(Value::Distribution(seconds)) = read.get("c_seconds", &[]) else {
            panic!("no distribution");
        };
        assert_eq!(seconds.count(), 1);
        assert!((seconds.sum() - 0.25).abs() < 0.001);
    }

    #[test]
    fn what_is_over_the_cap_is_seen_in_one_more_series() {
        let registry = small();
        for user in ["ann", "bob", "cid", "dan", "cid"] {
            registry.counter("seen_total", &[("user", user)]).increment(1);
        }
        let read = registry.read(NOW);
        assert_eq!(read.number("seen_total", &[("user", "ann")]), Some(1.0));
        assert_eq!(read.number("seen_total", &[("user", "cid")]), None);
        assert_eq!(read.number("seen_total", &[("user", OTHER)]), Some(3.0));
        let overflowed = registry.read(NOW).number(OVERFLOW, &[("metric", "seen_total")]);
        assert_eq!(overflowed, Some(3.0));
    }

    #[test]
    fn reported_series_beyond_the_cap_add_up() {
        let registry = small();
        registry.collect(|readings| {
            for user in ["ann", "bob", "cid", "dan"] {
                readings.counter("seen_total", &[("user", user)], 10.0);
            }
        });
        for _ in 0..2 {
            let read = registry.read(NOW);
            assert_eq!(read.number("seen_total", &[("user", OTHER)]), Some(20.0));
        }
    }

    #[test]
    fn names_beyond_the_cap_count_into_nothing_and_are_counted() {
        let registry = small(); // three of the six names are its own
        for name in ["a", "b", "c", "d"] {
            registry.gauge(name, &[]).set(1.0);
        }
        let read = registry.read(NOW);
        assert_eq!((read.number("c", &[]), read.number("d", &[])), (Some(1.0), None));
        assert_eq!(read.number(NAMES_REFUSED, &[]), Some(1.0));
        assert!(registry.problems().contains_key("d"));
    }

    #[test]
    fn misuse_is_told_and_breaks_nothing() {
        let registry = Registry::default();
        registry.counter("a", &[]).increment(1);
        registry.gauge("a", &[]).set(7.0);
        registry.watch("a", || 9.0);
        let read = registry.read(NOW);
        assert_eq!(read.number("a", &[]), Some(1.0));
        assert_eq!(registry.problems()["a"], "asked for as Gauge, but it is Counter");
    }

    #[test]
    fn names_and_labels_are_made_to_fit() {
        let registry = small();
        registry.counter("users.hit-ratio", &[("a.b", "0123456789abcdef+")]).increment(1);
        registry.gauge("9", &[]).set(2.0);
        let read = registry.read(NOW);
        assert_eq!(read.number("users_hit_ratio", &[("a_b", "0123456789abcdef")]), Some(1.0));
        assert_eq!(read.number("_9", &[]), Some(2.0));
    }

    #[test]
    fn closures_come_and_go_and_may_panic() {
        let registry = small();
        let watch = registry.watch("a", || 1.0);
        registry.watch("b", || panic!("no value"));
        registry.watch("one.too.many", || 1.0);
        assert!(registry.problems().contains_key("watch"));
        let read = registry.read(NOW);
        assert_eq!((read.number("a", &[]), read.number("b", &[])), (Some(1.0), None));
        assert_eq!(read.number(WATCH_PANICS, &[]), Some(1.0));
        let generation = registry.generation();
        watch.remove();
        for _ in 0..2 {
            assert_eq!(registry.read(NOW).number("a", &[]), None);
            assert_eq!(registry.generation(), generation);
        }
        let _ = registry.read(NOW);
        assert_ne!(registry.generation(), generation, "the series is forgotten");
    }

    #[test]
    fn a_closure_may_look_up_series() {
        let registry = Registry::default();
        let inner = registry.clone();
        registry.collect(move |readings| {
            inner.counter("asked_total", &[]).increment(1);
            readings.gauge("depth", &[], 3.0);
        });
        let read = registry.read(NOW);
        assert_eq!(read.number("asked_total", &[]), Some(1.0));
    }

    #[test]
    fn a_described_metric_carries_its_unit_and_help() {
        let registry = Registry::default();
        registry.describe("size", Kind::Histogram, Unit::Bytes, "Sizes of answers.");
        registry.histogram("size", &[]).record(4_096.0);
        registry.describe("size", Kind::Histogram, Unit::Bytes, "Sizes of all answers.");
        let read = registry.read(NOW);
        let family = read.families.iter().find(|family| &*family.name == "size").expect("there");
        assert_eq!((family.unit, &*family.help), (Unit::Bytes, "Sizes of all answers."));
        assert!(registry.problems().is_empty());
        registry.describe("size", Kind::Gauge, Unit::Bytes, "Sizes.");
        assert!(registry.problems().contains_key("size"));
    }
}
