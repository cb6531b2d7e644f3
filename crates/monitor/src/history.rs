//! The history: what every series was, second by second, for as long as its tiers say.
//!
//! Once a tick a [`History`] takes in a [`Snapshot`]. The last ten to twenty minutes stand in memory as plain columns,
//! so that rules are evaluated without a disk. Each ten minutes they are compressed into chunks of 600 samples
//! and written, with the minutes and hours that were rolled from them, by a thread of their own. Until then a
//! tick log has them: a process that is killed loses at most the tick that it had not yet written.
//!
//! A query reads the coarsest tier whose step fits. [`History`] is a [`Source`], so rules, insight and pages ask
//! it the same questions at any moment of the past.
//!
//! # Time
//!
//! Samples are kept under the wall clock, and their times only grow. If the clock is set back, samples
//! continue behind the last one by the monotonic clock; if it is set forward there is a gap.
//! [`History::last_ms`] is the moment of the last tick as it is kept: a window that ends there sees it.

mod block;
mod chunk;
mod export;
mod fold;
mod head;
mod log;
mod query;
mod record;
mod store;
mod writer;

use std::fmt;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};

#[doc(hidden)]
pub use chunk::try_decode;
pub use export::ExportFormat;
pub use query::{Query, QueryError, QueryProblem, QueryResult, QuerySeries, SeriesInfo};
#[cfg(feature = "history")]
pub use store::FjallStore;
pub use store::{Change, HistoryStore, MemoryStore};

use crate::clock::millis;
use crate::registry::Snapshot;
use crate::selector::Selector;
use crate::series::SeriesId;
use crate::source::{Aggregate, Matched, Reading, Source, Window};
use head::{Head, Taking};
use log::Logs;
use record::TierKey;
use writer::{Job, Opener, Shared, Writer};

/// Rows of a chunk of the finest tier.
const ROWS: u16 = 600;
/// Rows of a chunk of the others.
const ROWS_ROLLED: u16 = 240;

/// One tier: how fine it is, and how much of it is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TierOptions {
    /// The distance of its rows.
    pub step: Duration,
    /// How long rows are kept.
    pub keep: Duration,
    /// Bytes of its chunks; the oldest go first, whole.
    pub limit_bytes: u64,
}

/// What a history keeps, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryOptions {
    /// The directory; none to keep everything in memory.
    pub path: Option<PathBuf>,
    /// From fine to coarse: a second for 48 hours, a minute for 30 days, an hour for two years by default.
    pub tiers: Vec<TierOptions>,
    /// Series at a time, with those that ended but of which something is kept; 20,000 by default.
    pub series: usize,
    /// Bytes of chunks in memory, where there is no store or it fails; 64 MiB by default.
    pub memory_limit_bytes: u64,
    /// Ticks that may wait for the thread that writes; 64 by default. What is over is not logged.
    pub queue: usize,
    /// How often a store that failed is opened again; 30 seconds by default.
    pub retry: Duration,
    /// Points that a query may give for each series; 11,000 by default, as in Prometheus.
    pub query_points: usize,
    /// Series that a query may read; 2,000 by default.
    pub query_series: usize,
}

impl Default for HistoryOptions {
    fn default() -> Self {
        let tier = |step, keep_days: u64, limit_bytes| TierOptions {
            step: Duration::from_secs(step),
            keep: Duration::from_secs(keep_days * 86_400),
            limit_bytes,
        };
        Self {
            path: None,
            tiers: vec![
                tier(1, 2, 512 << 20),
                tier(60, 30, 256 << 20),
                tier(3_600, 730, 128 << 20),
            ],
            series: 20_000,
            memory_limit_bytes: 64 << 20,
            queue: 64,
            retry: Duration::from_secs(30),
            query_points: 11_000,
            query_series: 2_000,
        }
    }
}

impl HistoryOptions {
    fn tier_keys(&self) -> Result<Vec<TierKey>, OpenError> {
        let mut problems = Vec::new();
        let mut keys: Vec<TierKey> = Vec::new();
        for (at, tier) in self.tiers.iter().enumerate() {
            let step = tier.step.as_millis();
            let Some(step_ms) = u32::try_from(step).ok().filter(|step| *step > 0) else {
                let limit = u32::MAX;
                problems
                    .push(format!("tiers[{at}].step = {:?}: must be 1 to {limit} ms", tier.step));
                continue;
            };
            if tier.keep < tier.step {
                problems
                    .push(format!("tiers[{at}].keep = {:?}: must be at least the step", tier.keep));
            }
            if let Some(finer) = keys.last()
                && (step_ms <= finer.step_ms || !step_ms.is_multiple_of(finer.step_ms))
            {
                let of = Duration::from_millis(finer.step_ms.into());
                let step = tier.step;
                problems.push(format!("tiers[{at}].step = {step:?}: must be a multiple of {of:?}"));
            }
            keys.push(TierKey { step_ms, rows: if at == 0 { ROWS } else { ROWS_ROLLED } });
        }
        if problems.is_empty() {
            // A chunk ends where rows of the next tier end, and where a chunk of it does.
            for at in (1..keys.len()).rev() {
                let (coarser, finer) = (keys[at], &mut keys[at - 1]);
                let fits = |rows: &u16| {
                    let span = i64::from(*rows) * i64::from(finer.step_ms);
                    span % i64::from(coarser.step_ms) == 0 && coarser.span_ms() % span == 0
                };
                match (1..=finer.rows).rev().find(fits) {
                    Some(rows) => finer.rows = rows,
                    None => problems.push(format!(
                        "tiers[{at}].step = {:?}: must be at most {} times {:?}",
                        self.tiers[at].step,
                        finer.rows,
                        self.tiers[at - 1].step
                    )),
                }
            }
        }
        if self.tiers.is_empty() {
            problems.push("tiers = []: must have at least one".to_owned());
        }
        for (name, value) in [
            ("series", self.series),
            ("queue", self.queue),
            ("query_points", self.query_points),
            ("query_series", self.query_series),
        ] {
            if value == 0 {
                problems.push(format!("{name} = 0: must be at least 1"));
            }
        }
        // Half of all numbers are for series that the store does not know yet.
        if self.series > 1 << 24 {
            problems.push(format!("series = {}: must be at most {}", self.series, 1 << 24));
        }
        if problems.is_empty() { Ok(keys) } else { Err(OpenError::Options { problems }) }
    }
}

/// Why a history cannot be opened. A store that fails is no reason: see [`History::degraded`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Some options cannot be met.
    #[error("invalid options of the history, {} problems:\n  {}", problems.len(), problems.join("\n  "))]
    Options {
        /// What is wrong, with the value and what would be right.
        problems: Vec<String>,
    },
    /// Another process, or another history of this one, has the directory open.
    #[error("the history in {} is open in another process", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// The thread that writes cannot be started.
    #[error("the thread that writes the history cannot be started")]
    Thread(#[source] io::Error),
}

/// Why a history is kept in memory although it has a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// The store cannot be opened.
    CannotOpen(String),
    /// There is no space.
    Full(String),
    /// The store or the tick log cannot be written.
    CannotWrite(String),
}

impl Reason {
    fn of(error: &io::Error, was_open: bool) -> Self {
        let message = error.to_string();
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full(message),
            _ if was_open => Self::CannotWrite(message),
            _ => Self::CannotOpen(message),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CannotOpen(why) => write!(f, "the store cannot be opened: {why}"),
            Self::Full(why) => write!(f, "there is no space: {why}"),
            Self::CannotWrite(why) => write!(f, "the store cannot be written: {why}"),
        }
    }
}

/// How a history fares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HistoryStats {
    /// Series in the table, with those that ended.
    pub series: usize,
    /// Bytes in memory: open blocks, and chunks that are kept there.
    pub memory_bytes: u64,
    /// Bytes of chunks in all tiers.
    pub chunk_bytes: u64,
    /// Bytes that the store takes on its medium.
    pub store_bytes: u64,
    /// Ticks that were not taken in because they came less than half a step after the one before.
    pub ticks_skipped: u64,
    /// Ticks that are in memory but did not get into the log, because the medium is too slow.
    pub ticks_unlogged: u64,
    /// Samples of series that had no place in the table.
    pub samples_refused: u64,
    /// Blocks that could be written nowhere.
    pub blocks_lost: u64,
    /// Chunks that could not be read.
    pub chunks_damaged: u64,
    /// Bytes that were cut off torn tick logs.
    pub torn_bytes: u64,
}

/// Remembers what all series were; clones share it.
///
/// # Examples
///
/// ```
/// use monitor::{Aggregate, Clock, History, HistoryOptions, Registry, Selector, Source, SystemClock, Window};
///
/// let registry = Registry::default();
/// let depth = registry.gauge("queue_depth", &[]);
/// let history = History::open(HistoryOptions::default())?; // in memory: there is no path
///
/// depth.set(7.0);
/// let now = SystemClock::new().now();
/// history.record(&registry.read(now));
///
/// let found = history.matching(&Selector::name("queue_depth"));
/// let minute = Window::ending(now.unix_ms, 60_000);
/// let mean = history.aggregate(&[found[0].id], minute, Aggregate::Avg).expect("a sample");
/// assert_eq!(mean.value, 7.0);
/// # Ok::<_, monitor::history::OpenError>(())
/// ```
#[derive(Clone)]
pub struct History(Arc<Inner>);

struct Inner {
    shared: Arc<Shared>,
    jobs: SyncSender<Job>,
    thread: Mutex<Option<JoinHandle<()>>>,
    skipped: AtomicU64,
    unlogged: AtomicU64,
    /// Held as long as the directory is in use.
    _lock: Option<File>,
}

impl History {
    /// Opens a history, in its directory or in memory.
    ///
    /// A store that cannot be read or written does not fail this: the history is then kept in memory and
    /// [`degraded`](Self::degraded) says why, and the store is tried again every [`HistoryOptions::retry`].
    ///
    /// # Errors
    ///
    /// If the options cannot be met, another process has the directory open, or a thread cannot be started.
    ///
    /// # Cost
    ///
    /// Reads the last chunks and replays the tick log on the calling thread: about 0.1 s for 200 series.
    pub fn open(options: HistoryOptions) -> Result<Self, OpenError> {
        let opener = match &options.path {
            Some(path) => store_opener(path.join("store")),
            None => None,
        };
        Self::start(options, opener)
    }

    /// Opens a history over another store; `open` is called at the start and after each failure.
    ///
    /// The tick log is kept in [`HistoryOptions::path`]; without one, a process that dies loses up to ten minutes.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub fn open_with(
        options: HistoryOptions,
        open: impl Fn() -> io::Result<Box<dyn HistoryStore>> + Send + Sync + 'static,
    ) -> Result<Self, OpenError> {
        Self::start(options, Some(Box::new(open)))
    }

    fn start(options: HistoryOptions, opener: Option<Opener>) -> Result<Self, OpenError> {
        let tiers = options.tier_keys()?;
        let (mut degraded, mut lock, mut logs) = (None, None, None);
        if let Some(path) = &options.path {
            match lock_directory(path) {
                Ok(file) => {
                    lock = Some(file);
                    logs = Some(Logs::new(path));
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(OpenError::Locked { path: path.clone() });
                }
                Err(TryLockError::Error(error)) => degraded = Some(Reason::of(&error, false)),
            }
        }
        let mut head = Head::new(&tiers, options.series);
        let mut blocks = vec![std::collections::BTreeMap::new(); tiers.len()];
        let (mut disk, mut unread, mut torn, mut damaged) = (None, Vec::new(), 0, 0);
        if let Some(logs) = &logs {
            unread = logs.list().unwrap_or_default();
            head.log = unread.last().map_or(1, |last| last + 1);
        }
        if let Some(opener) = opener.as_ref().filter(|_| degraded.is_none()) {
            let logs = logs.as_ref().map(|logs| (logs, unread.as_slice()));
            let loaded = opener().and_then(|store| {
                let loaded = writer::load(&*store, &tiers, &options, logs)?;
                Ok((store, loaded))
            });
            match loaded {
                Ok((store, loaded)) => {
                    disk = Some(Arc::from(store));
                    (head, blocks) = (loaded.head, loaded.blocks);
                    (torn, damaged) = (loaded.torn_bytes, loaded.damaged);
                    unread.clear();
                }
                Err(error) => degraded = Some(Reason::of(&error, false)),
            }
        }
        if let Some(reason) = &degraded {
            tracing::warn!(%reason, "the history is kept in memory only");
        }
        let (jobs, queue) = sync_channel(options.queue);
        let log_from = head.log;
        let shared = Arc::new(Shared {
            head: RwLock::new(head),
            disk: RwLock::new(disk),
            memory: MemoryStore::new(options.memory_limit_bytes),
            degraded: RwLock::new(degraded),
            options,
            damaged: AtomicU64::new(damaged),
            torn_bytes: AtomicU64::new(torn),
            lost: AtomicU64::new(0),
            chunk_bytes: AtomicU64::new(0),
        });
        let own = Arc::clone(&shared);
        let writer = Writer { shared: own, opener, logs, unread, blocks, log_from, next_try: None };
        let thread = std::thread::Builder::new()
            .name("monitor-history".to_owned())
            .spawn(move || writer.run(&queue))
            .map_err(OpenError::Thread)?;
        Ok(Self(Arc::new(Inner {
            shared,
            jobs,
            thread: Mutex::new(Some(thread)),
            skipped: AtomicU64::new(0),
            unlogged: AtomicU64::new(0),
            _lock: lock,
        })))
    }

    /// Takes in what the registry read; returns the moment under which it is kept.
    ///
    /// `None` if it came less than half a step after the one before; it is then left out and counted.
    ///
    /// # Cost
    ///
    /// No input or output on this thread: about 100 ns a number and 1 us a histogram.
    pub fn record(&self, snapshot: &Snapshot) -> Option<i64> {
        let inner = &*self.0;
        let mut frames = Vec::new();
        let (taking, log, closed) = {
            let mut head = inner.shared.head.write();
            let logged = inner.shared.options.path.is_some().then_some(&mut frames);
            let taking = head.take(snapshot, logged);
            (taking, head.log, !head.closed.is_empty())
        };
        let Taking::At(at_ms) = taking else {
            inner.skipped.fetch_add(1, Relaxed);
            return None;
        };
        if closed {
            // A full queue is asked again at the next tick: the block waits in the head.
            let _ = inner.jobs.try_send(Job::Closed);
        }
        let job = Job::Tick { log, frames, now: snapshot.at.monotonic };
        if let Err(TrySendError::Full(_)) = inner.jobs.try_send(job) {
            inner.unlogged.fetch_add(1, Relaxed);
            inner.shared.head.write().repeat_log();
        }
        Some(at_ms)
    }

    /// Returns the moment of the last tick, by the wall clock as samples are kept.
    #[must_use]
    pub fn last_ms(&self) -> Option<i64> {
        self.0.shared.head.read().last_ms
    }

    /// Returns why the history is in memory only although it should be in a store.
    #[must_use]
    pub fn degraded(&self) -> Option<Reason> {
        self.0.shared.degraded.read().clone()
    }

    /// Returns how it fares.
    ///
    /// # Cost
    ///
    /// Asks the store for its size, which may read a directory.
    #[must_use]
    pub fn stats(&self) -> HistoryStats {
        let shared = &self.0.shared;
        let disk = shared.disk.read().clone();
        // Asked before the head is locked: a tick must not wait for a directory.
        let store_bytes = disk.map_or(0, |disk| disk.size_bytes());
        let head = shared.head.read();
        HistoryStats {
            series: head.series(),
            memory_bytes: head.bytes() as u64 + shared.memory.size_bytes(),
            chunk_bytes: shared.chunk_bytes.load(Relaxed),
            store_bytes,
            ticks_skipped: self.0.skipped.load(Relaxed),
            ticks_unlogged: self.0.unlogged.load(Relaxed),
            samples_refused: head.refused,
            blocks_lost: shared.lost.load(Relaxed) + head.lost,
            chunks_damaged: shared.damaged.load(Relaxed),
            torn_bytes: shared.torn_bytes.load(Relaxed),
        }
    }

    /// Returns once all ticks so far would survive a loss of power.
    ///
    /// Blocks the calling thread.
    ///
    /// # Errors
    ///
    /// If the medium does not take it, the history is [degraded](Self::degraded), or the thread that writes
    /// has ended.
    pub fn flush(&self) -> io::Result<()> {
        let (done, wait) = sync_channel(1);
        let ended = || io::Error::other("the thread that writes the history has ended");
        self.0.jobs.send(Job::Flush(done)).map_err(|_| ended())?;
        wait.recv().map_err(|_| ended())?
    }

    /// Writes what is to be written and ends the thread; samples are still taken in, but not kept.
    ///
    /// Blocks the calling thread. Happens by itself when the last clone is dropped.
    pub fn close(&self) {
        self.0.close();
    }
}

impl Inner {
    fn close(&self) {
        let thread = self.thread.lock().take();
        if let Some(thread) = thread {
            // It ends in any case: the queue is drained, and an error says that it has ended.
            let _ = self.jobs.send(Job::Stop);
            if thread.join().is_err() {
                tracing::error!("the thread that writes the history panicked");
            }
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close();
    }
}

impl fmt::Debug for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("History").field("options", &self.0.shared.options).finish_non_exhaustive()
    }
}

#[cfg(feature = "history")]
fn store_opener(path: PathBuf) -> Option<Opener> {
    Some(Box::new(move || Ok(Box::new(FjallStore::open(&path)?) as Box<dyn HistoryStore>)))
}

#[cfg(not(feature = "history"))]
fn store_opener(_path: PathBuf) -> Option<Opener> {
    let missing =
        || io::Error::new(io::ErrorKind::Unsupported, "built without the feature `history`");
    Some(Box::new(move || Err(missing())))
}

fn lock_directory(path: &Path) -> Result<File, TryLockError> {
    let open = || {
        fs::create_dir_all(path)?;
        File::options().create(true).append(true).open(path.join("LOCK"))
    };
    let file = open().map_err(TryLockError::Error)?;
    file.try_lock()?;
    Ok(file)
}

impl Source for History {
    fn generation(&self) -> u64 {
        self.0.shared.head.read().generation
    }

    /// Returns also series that have ended, as long as something of them is kept.
    fn matching(&self, selector: &Selector) -> Vec<Matched> {
        let head = self.0.shared.head.read();
        let matched = head.matching(selector).into_iter().map(|place| {
            let entry = &head.entries[place];
            Matched {
                id: SeriesId(place as u32),
                key: Arc::clone(&entry.key),
                kind: entry.kind,
                unit: entry.unit,
            }
        });
        matched.collect()
    }

    /// As the trait says. Long windows are read from rolled rows, so their ends are rounded to a row.
    ///
    /// # Cost
    ///
    /// About 1 us for a window of the last minutes, which are in memory; a long window reads the store.
    fn aggregate(
        &self,
        series: &[SeriesId],
        window: Window,
        aggregate: Aggregate,
    ) -> Option<Reading> {
        self.0.shared.aggregate(series, window, aggregate)
    }

    fn range(
        &self,
        series: &[SeriesId],
        window: Window,
        step_ms: i64,
        aggregate: Aggregate,
    ) -> Vec<Option<f64>> {
        self.0.shared.range(series, window, step_ms, aggregate)
    }
}

/// How long a tier is kept, in milliseconds.
fn keep_ms(tier: &TierOptions) -> i64 {
    millis(tier.keep)
}

#[cfg(test)]
mod tests;
