//! What the tests of the history share: a registry that says what it is told, and a store that outlives.

#![allow(dead_code)] // each test program uses its part

use std::io;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use monitor::history::{Change, HistoryStore, MemoryStore, TierOptions};
use monitor::{Distribution, History, HistoryOptions, Moment, Registry};

/// Where the clock of the tests begins: a multiple of the span of every block.
pub(crate) const START_MS: i64 = 1_701_216_000_000;

/// One sample as a test says it.
#[derive(Debug, Clone)]
pub(crate) enum Sample {
    Counter(f64),
    Gauge(f64),
    /// All that a histogram has seen.
    Histogram(Distribution),
}

/// A process: a registry with a closure that reports what it is told.
pub(crate) struct Process {
    registry: Registry,
    samples: Arc<Mutex<Vec<(String, Sample)>>>,
    elapsed_ms: AtomicU64,
    wall_ms: AtomicI64,
}

impl Process {
    pub(crate) fn new() -> Self {
        let registry = Registry::default();
        let samples = Arc::<Mutex<Vec<(String, Sample)>>>::default();
        let reported = Arc::clone(&samples);
        registry.collect(move |readings| {
            for (series, sample) in reported.lock().expect("no test panicked").iter() {
                let (name, label) = series.split_once('/').unwrap_or((series, ""));
                let labels = [("of", label)];
                let labels = if label.is_empty() { &[][..] } else { &labels[..] };
                match sample {
                    Sample::Counter(total) => readings.counter(name, labels, *total),
                    Sample::Gauge(value) => readings.gauge(name, labels, *value),
                    Sample::Histogram(all) => readings.distribution(name, labels, all.clone()),
                }
            }
        });
        let (elapsed_ms, wall_ms) = (AtomicU64::new(0), AtomicI64::new(0));
        Self { registry, samples, elapsed_ms, wall_ms }
    }

    /// Has the history take in samples (`name` or `name/label`) at a moment of the wall clock.
    pub(crate) fn tick(
        &self,
        history: &History,
        at_ms: i64,
        samples: &[(&str, Sample)],
    ) -> Option<i64> {
        let before = self.wall_ms.swap(at_ms, SeqCst);
        let passed = if before == 0 || at_ms <= before { 1_000 } else { (at_ms - before) as u64 };
        let elapsed = self.elapsed_ms.fetch_add(passed, SeqCst) + passed;
        let owned = samples.iter().map(|(series, sample)| ((*series).to_owned(), sample.clone()));
        *self.samples.lock().expect("no test panicked") = owned.collect();
        let at = Moment { monotonic: Duration::from_millis(elapsed), unix_ms: at_ms };
        history.record(&self.registry.read(at))
    }
}

/// A store in memory that several histories have, one after the other, and that fails when told to.
#[derive(Clone)]
pub(crate) struct Disk {
    store: Arc<MemoryStore>,
    pub(crate) full: Arc<AtomicBool>,
    pub(crate) closed: Arc<AtomicBool>,
}

impl Disk {
    pub(crate) fn new() -> Self {
        let store = Arc::new(MemoryStore::new(1 << 30));
        Self { store, full: Arc::default(), closed: Arc::default() }
    }

    pub(crate) fn open(&self, options: HistoryOptions) -> History {
        let disk = self.clone();
        let open = move || match disk.closed.load(SeqCst) {
            true => Err(io::Error::other("the test closed it")),
            false => Ok(Box::new(disk.clone()) as Box<dyn HistoryStore>),
        };
        History::open_with(options, open).expect("the options are sound")
    }
}

impl HistoryStore for Disk {
    fn write(&self, changes: &[Change]) -> io::Result<()> {
        if self.full.load(SeqCst) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.store.write(changes)
    }

    fn scan(
        &self,
        from: &[u8],
        until: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> io::Result<()> {
        self.store.scan(from, until, visit)
    }

    fn size_bytes(&self) -> u64 {
        self.store.size_bytes()
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A tier that keeps everything.
pub(crate) fn tier(step_secs: u64) -> TierOptions {
    let keep = Duration::from_secs(10_000 * 86_400);
    TierOptions { step: Duration::from_secs(step_secs), keep, limit_bytes: 1 << 30 }
}
