//! The disk tier: engines behind one trait, and the threads that keep disks away from async workers.
//!
//! One writer thread takes pending writes off the queue (`write_behind.rs`), seals and puts them,
//! and flushes the engine when the queue runs dry or a tenth of a second has passed. A few reader
//! threads serve look-ups from a bounded channel; when that is full, the look-up is a counted miss
//! and nobody waits. Closing lets the writer finish its queue; then all threads end and the
//! directory's lock is released.

mod admission;
mod dictionaries;
mod directory;
mod engine;
mod segment_log;
#[cfg(feature = "sled")]
mod sled;
mod tag_log;

use std::cell::RefCell;
use std::hash::Hash;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError};
use futures_util::future::{BoxFuture, join_all};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{oneshot, watch};

pub use self::admission::Admission;
use self::admission::{Doorkeeper, WriteBudget};
use self::dictionaries::{DictionaryFiles, Loaded};
pub use self::engine::{DiskEngineStats, DiskError, DiskTier, Fsync, Newest, OpenError, Visited};
pub use self::segment_log::{
    BrokenRecord, CheckpointState, CompactError, CompactReport, Damage, SegmentLog,
    SegmentLogOptions, SegmentReport, Verdict, VerifyReport, compact, verify,
};
#[cfg(feature = "sled")]
pub use self::sled::{SledEngine, SledOptions};
use self::tag_log::TagLog;
use crate::envelope;
use crate::error::Problem;
use crate::lower::{Found, LowerTier, Opening, Room, Sealer, Shown, Tier, Wanted, Write};
use crate::stats::{CompressionStats, Counter, Evictions, TierStats};
use crate::write_behind::{Pushed, Taken, Work, Worker, WriteBehind};

/// The engines that can keep the disk tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum DiskEngine {
    /// Append-only segments with an index in memory: the fastest, and bounded to the byte.
    #[default]
    SegmentLog,
    /// sled 0.34, for values of a few KiB at most.
    #[cfg(feature = "sled")]
    Sled,
}

/// The settings of a disk tier.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DiskConfig {
    /// The directory; made if missing, and locked against a second process.
    pub path: PathBuf,
    /// The most bytes that the directory may take, as `du` counts.
    pub capacity_bytes: u64,
    /// The engine.
    pub engine: DiskEngine,
    /// When written bytes are forced to the medium. They survive a killed process in any case.
    pub fsync: Fsync,
    /// Threads that read.
    pub read_threads: usize,
    /// Look-ups that may wait for a reader; more are misses.
    pub read_queue: usize,
    /// Which values are written.
    pub admission: Admission,
    /// The most bytes that are written in a second, on average; values beyond are not written.
    pub write_budget_bytes_per_second: Option<u64>,
    /// What the program's users set to choose the directory, for the error that it is in use.
    pub setting: Option<&'static str>,
}

impl DiskConfig {
    /// Describes a disk tier in `path`: 1 GiB, the segment log, no fsync, four readers, no
    /// restriction on writes.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            capacity_bytes: 1 << 30,
            engine: DiskEngine::default(),
            fsync: Fsync::Never,
            read_threads: 4,
            read_queue: 4_096,
            admission: Admission::default(),
            write_budget_bytes_per_second: None,
            setting: None,
        }
    }

    /// Names what the program's users set to choose the directory, for the error that it is in use.
    #[must_use]
    pub fn setting(mut self, setting: &'static str) -> Self {
        self.setting = Some(setting);
        self
    }

    /// Sets the most bytes that the directory may take.
    #[must_use]
    pub fn capacity_bytes(mut self, bytes: u64) -> Self {
        self.capacity_bytes = bytes;
        self
    }

    /// Chooses the engine.
    #[must_use]
    pub fn engine(mut self, engine: DiskEngine) -> Self {
        self.engine = engine;
        self
    }

    /// Sets when written bytes are forced to the medium.
    #[must_use]
    pub fn fsync(mut self, fsync: Fsync) -> Self {
        self.fsync = fsync;
        self
    }

    /// Sets the number of threads that read.
    #[must_use]
    pub fn read_threads(mut self, threads: usize) -> Self {
        self.read_threads = threads;
        self
    }

    /// Chooses which values are written.
    #[must_use]
    pub fn admission(mut self, admission: Admission) -> Self {
        self.admission = admission;
        self
    }

    /// Sets the most bytes that are written in a second, on average, to spare the medium.
    ///
    /// Values that come when the budget is used up are not written, and nobody waits for it. Removals are
    /// always written; they count, and so do the engine's own copies.
    #[must_use]
    pub fn write_budget_bytes_per_second(mut self, bytes: impl Into<Option<u64>>) -> Self {
        self.write_budget_bytes_per_second = bytes.into();
        self
    }

    pub(crate) fn problems(&self, uses_dictionaries: bool) -> Vec<Problem> {
        let mut problems = Vec::new();
        if self.path.as_os_str().is_empty() {
            problems.push(Problem::new("disk.path", "", "must name a directory"));
        }
        if self.capacity_bytes < MIN_CAPACITY_BYTES {
            let expected = format!("must be at least {MIN_CAPACITY_BYTES} (1 MiB)");
            problems.push(Problem::new("disk.capacity_bytes", self.capacity_bytes, expected));
        }
        if !(1..=64).contains(&self.read_threads) {
            let expected = "must be between 1 and 64";
            problems.push(Problem::new("disk.read_threads", self.read_threads, expected));
        }
        if uses_dictionaries && self.capacity_bytes < dictionaries::MIN_CAPACITY_BYTES {
            let expected = "must be at least 16777216 (16 MiB) with dictionaries";
            problems.push(Problem::new("disk.capacity_bytes", self.capacity_bytes, expected));
        }
        if self.read_queue == 0 {
            problems.push(Problem::new("disk.read_queue", 0, "must be at least 1"));
        }
        if self.write_budget_bytes_per_second == Some(0) {
            let name = "disk.write_budget_bytes_per_second";
            problems.push(Problem::new(name, 0, "must be at least 1"));
        }
        problems
    }

    fn open_engine(&self) -> Result<Arc<dyn DiskTier>, OpenError> {
        self.engine_at_path().map_err(|error| match error {
            OpenError::Locked { path, .. } => OpenError::Locked { path, setting: self.setting },
            error => error,
        })
    }

    fn engine_at_path(&self) -> Result<Arc<dyn DiskTier>, OpenError> {
        match self.engine {
            DiskEngine::SegmentLog => {
                let mut options = SegmentLogOptions::new(&self.path, self.capacity_bytes);
                options.fsync = self.fsync;
                Ok(Arc::new(SegmentLog::open(options)?))
            }
            #[cfg(feature = "sled")]
            DiskEngine::Sled => {
                let mut options = SledOptions::new(&self.path, self.capacity_bytes);
                options.fsync = self.fsync;
                Ok(Arc::new(SledEngine::open(options)?))
            }
        }
    }
}

/// The smallest disk tier: below it, segments would be too small for ordinary values.
const MIN_CAPACITY_BYTES: u64 = 1 << 20;

/// Writes that the writer takes at once.
const BATCH: usize = 64;

/// The longest that a busy writer leaves bytes unflushed.
const FLUSH_EVERY: Duration = Duration::from_millis(100);

struct Read<V> {
    key: Vec<u8>,
    reply: oneshot::Sender<Option<Found<V>>>,
}

/// What exists between open and close.
struct Running<V> {
    engine: Arc<dyn DiskTier>,
    reads: Sender<Read<V>>,
}

pub(crate) struct DiskFront<K, V> {
    running: RwLock<Option<Running<V>>>,
    queue: Arc<WriteBehind<K, V>>,
    sealer: Arc<Sealer<K, V>>,
    counters: Arc<Counters>,
    tag_log: Arc<Mutex<TagLog>>,
    /// Closed when the last thread has ended.
    ended: watch::Receiver<()>,
    /// What the threads hold while they run.
    end: Weak<watch::Sender<()>>,
    capacity_bytes: u64,
}

#[derive(Debug, Default)]
struct Counters {
    hits: Counter,
    misses: Counter,
    errors: Counter,
    writes: Counter,
    dropped_writes: Counter,
    refused_admission: Counter,
    refused_budget: Counter,
    /// What the engine held when it was let go.
    last: Mutex<DiskEngineStats>,
}

impl Counters {
    /// Does a thread's work on one item. What can panic in it is the drop of a user's value.
    fn survive(&self, work: impl FnOnce()) {
        if catch_unwind(AssertUnwindSafe(work)).is_err() {
            self.errors.increment();
            tracing::error!("a thread of the disk tier survived a panic");
        }
    }
}

impl<K, V> DiskFront<K, V> {
    /// Lets the threads finish what they have, and takes nothing new.
    fn start_close(&self) {
        self.queue.close();
        let running = self.running.write().take();
        if let Some(running) = running {
            // The writer, which ends later, tells better; this is for one that cannot.
            let mut last = self.counters.last.lock();
            if *last == DiskEngineStats::default() {
                *last = running.engine.stats();
            }
        }
    }
}

impl<K, V> Drop for DiskFront<K, V> {
    fn drop(&mut self) {
        self.start_close();
    }
}

impl<K, V> DiskFront<K, V>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// Opens the directory and starts the threads. It reads the whole log, so not on an async thread.
    pub(crate) fn open(
        name: &str,
        config: &DiskConfig,
        sealer: Arc<Sealer<K, V>>,
        queue: WriteBehind<K, V>,
    ) -> Result<Self, DiskOpenError> {
        let (engine, dictionaries) =
            open_directory(config, &sealer).map_err(DiskOpenError::Open)?;
        let tag_log = TagLog::open(
            &config.path,
            config.capacity_bytes,
            config.fsync,
            &sealer.tags,
            &sealer.clock,
        );
        let queue = Arc::new(queue);
        let counters = Arc::new(Counters::default());
        let (reads, jobs) = crossbeam_channel::bounded(config.read_queue);
        let (end, ended) = watch::channel(());
        let end = Arc::new(end);
        let while_running = Arc::downgrade(&end);
        let thread = |role: &str| std::thread::Builder::new().name(format!("{name}-{role}"));
        // A thread that cannot start drops the channel and closes the queue, which ends the others.
        let started = (|| {
            for _ in 0..config.read_threads {
                let reader = Reader {
                    engine: Arc::clone(&engine),
                    sealer: Arc::clone(&sealer),
                    counters: Arc::clone(&counters),
                    jobs: jobs.clone(),
                };
                let end = Arc::clone(&end);
                thread("disk-read").spawn(move || {
                    reader.run();
                    drop(end);
                })?;
            }
            let writer = Writer {
                engine: Arc::clone(&engine),
                sealer: Arc::clone(&sealer),
                counters: Arc::clone(&counters),
                queue: Worker::of(&queue),
                dictionaries: dictionaries.map(RefCell::new),
                gate: RefCell::new(Gate::new(config)),
            };
            thread("disk-write").spawn(move || {
                writer.run();
                drop(end);
            })
        })();
        if let Err(error) = started {
            queue.close();
            return Err(DiskOpenError::Thread(error));
        }
        Ok(Self {
            running: RwLock::new(Some(Running { engine, reads })),
            queue,
            sealer,
            counters,
            tag_log: Arc::new(Mutex::new(tag_log)),
            ended,
            end: while_running,
            capacity_bytes: config.capacity_bytes,
        })
    }

    fn engine(&self) -> Option<Arc<dyn DiskTier>> {
        self.running.read().as_ref().map(|running| Arc::clone(&running.engine))
    }

    /// Hands a look-up to the readers; `None` when they have too many.
    fn read(&self, key: Vec<u8>) -> Option<oneshot::Receiver<Option<Found<V>>>> {
        let running = self.running.read();
        let running = running.as_ref()?;
        if !running.engine.contains(&key) {
            return None;
        }
        let (reply, answer) = oneshot::channel();
        match running.reads.try_send(Read { key, reply }) {
            Ok(()) => Some(answer),
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.counters.errors.increment();
                None
            }
        }
    }

    /// What the queue says of a key: a value, its absence, or nothing.
    fn pending(&self, key: &K) -> Option<Option<Found<V>>> {
        Some(self.sealer.pending(&self.queue.lookup(key)?))
    }

    fn count(&self, found: &Option<Found<V>>) {
        match found {
            Some(_) => self.counters.hits.increment(),
            None => self.counters.misses.increment(),
        }
    }

    /// Starts a look-up now; the future waits for its end.
    fn start_get(&self, key: &K) -> impl Future<Output = Option<Found<V>>> + Send + use<K, V> {
        enum Started<V> {
            Known(Option<Found<V>>),
            Asked(oneshot::Receiver<Option<Found<V>>>),
        }
        let started = match self.pending(key) {
            Some(known) => Started::Known(known),
            None => match self.sealer.key(key).and_then(|key| self.read(key)) {
                Some(answer) => Started::Asked(answer),
                None => Started::Known(None),
            },
        };
        async move {
            match started {
                Started::Known(known) => known,
                // No answer means that a reader died with the tier.
                Started::Asked(answer) => answer.await.ok().flatten(),
            }
        }
    }
}

/// Opens the engine and reads the dictionaries beside it.
fn open_directory<K: 'static, V: 'static>(
    config: &DiskConfig,
    sealer: &Sealer<K, V>,
) -> Result<(Arc<dyn DiskTier>, Option<DictionaryFiles>), OpenError> {
    let compressing = &sealer.envelopes.compressing;
    let has_room = config.capacity_bytes >= dictionaries::MIN_CAPACITY_BYTES;
    let exist = DictionaryFiles::exist(&config.path);
    let capacity_bytes = config.capacity_bytes - tag_log::reserved_bytes(config.capacity_bytes);
    if !has_room || !(exist || compressing.uses_dictionaries()) {
        let engine = DiskConfig { capacity_bytes, ..config.clone() }.open_engine()?;
        // Only now, because it is only now that the directory is known to be ours.
        if exist {
            DictionaryFiles::delete(&config.path);
        }
        return Ok((engine, None));
    }
    let capacity_bytes = capacity_bytes - dictionaries::RESERVED_BYTES;
    let engine = DiskConfig { capacity_bytes, ..config.clone() }.open_engine()?;
    let (files, loaded) = DictionaryFiles::open(&config.path, |id, sealed| {
        let dictionary = sealer.open_dictionary(id, sealed)?;
        Some(Loaded { dictionary, is_current: sealer.is_current(sealed) })
    });
    let known = compressing.dictionaries();
    let mut last = None;
    for dictionary in loaded.into_iter().map(Arc::new) {
        known.learn(Arc::clone(&dictionary));
        last = Some(dictionary);
    }
    if let (Some(last), true) = (last, compressing.uses_dictionaries()) {
        known.activate(last);
    }
    Ok((engine, Some(files)))
}

/// Why a disk tier did not start.
#[derive(Debug)]
pub(crate) enum DiskOpenError {
    Open(OpenError),
    Thread(std::io::Error),
}

impl<K, V> LowerTier<K, V> for DiskFront<K, V>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    fn tier(&self) -> Tier {
        Tier::Disk
    }

    fn push(&self, key: &K, write: Write<V>, dropped: &mut Vec<Write<V>>) {
        let is_put = matches!(write, Write::Put(_));
        if !is_put && !self.holds(key) {
            return;
        }
        let (pushed, replaced) = self.queue.push(key, write, false);
        dropped.extend(replaced);
        if pushed == Pushed::Refused && self.holds(key) {
            // A value on the disk is out of date now. Its removal goes in above the bound of the
            // queue: there are at most as many of those as the disk's index has entries.
            self.queue.push(key, Write::Remove, true);
        }
        if is_put && pushed != Pushed::Queued {
            self.counters.dropped_writes.increment();
        }
    }

    fn room(&self, weight: u64) -> Room {
        self.queue.room(weight)
    }

    fn holds(&self, key: &K) -> bool {
        self.queue.lookup(key).is_some()
            || self
                .sealer
                .key(key)
                .is_some_and(|bytes| self.engine().is_some_and(|engine| engine.contains(&bytes)))
    }

    fn get<'a>(&'a self, key: &'a K) -> BoxFuture<'a, Option<Found<V>>> {
        Box::pin(async move {
            let found = self.start_get(key).await;
            self.count(&found);
            found
        })
    }

    fn get_many<'a>(&'a self, keys: &'a [&'a K]) -> BoxFuture<'a, Vec<Option<Found<V>>>> {
        Box::pin(async move {
            let found = join_all(keys.iter().map(|key| self.start_get(key))).await;
            found.iter().for_each(|found| self.count(found));
            found
        })
    }

    fn visit_newest(
        &self,
        wanted: Wanted,
        each: &mut dyn FnMut(Shown<'_, K, V>) -> ControlFlow<()>,
    ) {
        // Closing waits for this, and this notices that the tier is closed.
        let Some(_end) = self.end.upgrade() else { return };
        let Some(engine) = self.engine() else { return };
        let wanted = Newest { entries: wanted.entries, bytes: wanted.bytes };
        let mut show = |visited: Visited<'_>| {
            if self.running.read().is_none() {
                return ControlFlow::Break(());
            }
            let found = match self.sealer.open(visited.key, visited.value) {
                Opening::Value(found) => self.sealer.key_of(visited.key).map(|key| (key, found)),
                _ => None,
            };
            // The queue first: a write on its way leaves it only once the engine has it.
            let is_current = |key: &K| self.queue.lookup(key).is_none() && (visited.is_current)();
            each(Shown {
                found,
                bytes: visited.bytes,
                total_bytes: visited.total_bytes,
                is_current: &is_current,
            })
        };
        if let Err(error) = engine.visit_newest(wanted, self.sealer.clock.unix_now(), &mut show) {
            self.counters.errors.increment();
            tracing::debug!(%error, "the disk tier could not be read through");
        }
    }

    fn clear(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let Some(engine) = self.engine() else { return };
            let counters = Arc::clone(&self.counters);
            self.queue.displace_all();
            self.queue
                .after_pending(move || {
                    if let Err(error) = engine.clear() {
                        counters.errors.increment();
                        tracing::warn!(%error, "the disk tier was not cleared completely");
                    }
                })
                .await;
        })
    }

    fn note_invalidated<'a>(&'a self, time: u64, numbers: &'a [u64]) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            if self.engine().is_none() {
                return;
            }
            let (log, numbers) = (Arc::clone(&self.tag_log), numbers.to_vec());
            let (sealer, counters) = (Arc::clone(&self.sealer), Arc::clone(&self.counters));
            let note = move || {
                if log.lock().note(time, &numbers, &sealer.tags).is_err() {
                    counters.errors.increment();
                }
            };
            // It fails only when the runtime shuts down.
            let _ = tokio::task::spawn_blocking(note).await;
        })
    }

    fn remove_expired(&self) -> BoxFuture<'_, u64> {
        Box::pin(async move {
            let Some(engine) = self.engine() else { return 0 };
            let now = self.sealer.clock.unix_now();
            let removed = self.queue.after_pending(move || engine.remove_expired(now)).await;
            match removed {
                Some(Ok(removed)) => removed as u64,
                Some(Err(_)) => {
                    self.counters.errors.increment();
                    0
                }
                None => 0,
            }
        })
    }

    fn flush(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let Some(engine) = self.engine() else { return };
            let flushed = self.queue.after_pending(move || engine.flush()).await;
            if matches!(flushed, Some(Err(_))) {
                self.counters.errors.increment();
            }
        })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            self.start_close();
            let mut ended = self.ended.clone();
            // The channel carries nothing: it only closes, with the last thread.
            while ended.changed().await.is_ok() {}
        })
    }

    fn stats(&self) -> TierStats {
        let engine = match &*self.running.read() {
            Some(running) => running.engine.stats(),
            None => *self.counters.last.lock(),
        };
        let reads = self.running.read().as_ref().map_or(0, |running| running.reads.len() as u64);
        let (depth, weight) = self.queue.depth();
        TierStats {
            hits: self.counters.hits.get(),
            misses: self.counters.misses.get(),
            entries: engine.entries,
            bytes: engine.disk_bytes,
            capacity: self.capacity_bytes,
            evictions: Evictions {
                capacity: engine.evicted_capacity,
                expired: engine.evicted_expired,
                removed: engine.removed + engine.cleared,
                too_large: engine.too_large,
            },
            errors: self.counters.errors.get(),
            writes: self.counters.writes.get(),
            dropped_writes: self.counters.dropped_writes.get() + engine.dropped_writes,
            refused_admission: self.counters.refused_admission.get(),
            refused_budget: self.counters.refused_budget.get(),
            copied_forward: engine.copied_forward,
            checkpoints: engine.checkpoints,
            queue_depth: depth + reads,
            queue_bytes: weight,
            ..TierStats::default()
        }
    }

    fn compression(&self) -> CompressionStats {
        self.sealer.compression()
    }
}

struct Reader<K, V> {
    engine: Arc<dyn DiskTier>,
    sealer: Arc<Sealer<K, V>>,
    counters: Arc<Counters>,
    jobs: Receiver<Read<V>>,
}

impl<K: 'static, V: 'static> Reader<K, V> {
    fn run(self) {
        while let Ok(Read { key, reply }) = self.jobs.recv() {
            if reply.is_closed() {
                continue;
            }
            // Whoever asked may have given up meanwhile; then the value is dropped here.
            self.counters.survive(|| drop(reply.send(self.get(&key))));
        }
    }

    fn get(&self, key: &[u8]) -> Option<Found<V>> {
        match self.engine.get(key, self.sealer.clock.unix_now()) {
            Ok(Some(sealed)) => match self.sealer.open(key, &sealed) {
                Opening::Value(found) => {
                    let tags = &self.sealer.tags;
                    return Some(found)
                        .filter(|it| it.attributes.as_ref().is_none_or(|it| it.is_valid(tags)));
                }
                Opening::Miss => {}
                // Those of the directory are known, so this one has been given up.
                Opening::NoDictionary(id) => tracing::debug!(id, "a value's dictionary is gone"),
                Opening::Corrupt => self.counters.errors.increment(),
            },
            Ok(None) => {}
            Err(error) => {
                self.counters.errors.increment();
                tracing::debug!(%error, "a read from the disk tier failed");
            }
        }
        None
    }
}

struct Writer<K, V> {
    engine: Arc<dyn DiskTier>,
    sealer: Arc<Sealer<K, V>>,
    counters: Arc<Counters>,
    queue: Worker<K, V>,
    dictionaries: Option<RefCell<DictionaryFiles>>,
    /// Borrowed for a moment at a time, by this thread alone.
    gate: RefCell<Gate>,
}

/// What decides whether a value is written.
struct Gate {
    doorkeeper: Option<Doorkeeper>,
    budget: Option<WriteBudget>,
    /// The engine's copies that the budget knows of, in bytes.
    copied: u64,
}

impl Gate {
    fn new(config: &DiskConfig) -> Self {
        let doorkeeper = match config.admission {
            Admission::Everything => None,
            Admission::SecondSight => Some(Doorkeeper::for_capacity(config.capacity_bytes)),
        };
        let budget = config.write_budget_bytes_per_second;
        let budget = budget.map(|bytes| WriteBudget::new(bytes, Instant::now()));
        Self { doorkeeper, budget, copied: 0 }
    }

    fn knows(&mut self, key: &[u8]) -> bool {
        self.doorkeeper.as_mut().is_none_or(|doorkeeper| doorkeeper.see(key))
    }

    fn affords(&mut self, bytes: usize) -> bool {
        let now = Instant::now();
        self.budget.as_mut().is_none_or(|budget| budget.take(bytes as u64, now))
    }

    /// Takes the bytes of a removal out of the budget.
    fn charge_removal(&mut self, key: &[u8]) {
        if let Some(budget) = &mut self.budget {
            budget.charge(key.len() as u64);
        }
    }

    /// Takes the bytes of copies that the engine made by itself out of the budget.
    fn charge_copies(&mut self, engine: &dyn DiskTier) {
        if let Some(budget) = &mut self.budget {
            let copied = engine.stats().copied_forward_bytes;
            budget.charge(copied.saturating_sub(self.copied));
            self.copied = copied;
        }
    }
}

impl<K: Hash + Eq + Clone + 'static, V: 'static> Writer<K, V> {
    fn run(self) {
        let mut unflushed_since = None;
        loop {
            match self.queue.take(BATCH) {
                Work::Batch(batch) => {
                    batch.iter().for_each(|taken| self.counters.survive(|| self.write(taken)));
                    self.counters.survive(|| self.queue.done(batch));
                    self.gate.borrow_mut().charge_copies(&*self.engine);
                    let since = *unflushed_since.get_or_insert_with(Instant::now);
                    if since.elapsed() >= FLUSH_EVERY {
                        self.flush();
                        unflushed_since = None;
                    }
                }
                Work::Errand(errand) => self.counters.survive(errand),
                Work::Nothing if unflushed_since.take().is_some() => self.flush(),
                Work::Nothing => self.queue.wait(),
                Work::Finished => {
                    self.flush();
                    *self.counters.last.lock() = self.engine.stats();
                    return;
                }
            }
        }
    }

    fn write(&self, taken: &Taken<K, V>) {
        let Some(key) = self.sealer.key(&taken.key) else {
            return self.counters.dropped_writes.increment();
        };
        let remove = || {
            self.gate.borrow_mut().charge_removal(&key);
            self.engine.remove(&key).map(drop)
        };
        let result = match &taken.write {
            Write::Remove => remove(),
            // A key that the disk has is offered again: its old value has to go in any case.
            Write::Put(_) if !self.gate.borrow_mut().knows(&key) && !self.engine.contains(&key) => {
                return self.counters.refused_admission.increment();
            }
            Write::Put(item) => match self.sealer.seal(&key, item) {
                Some(sealed) if self.gate.borrow_mut().affords(key.len() + sealed.len()) => {
                    self.keep_dictionary(envelope::dictionary(&sealed));
                    self.counters.writes.increment();
                    self.engine.put(&key, &sealed, item.expires_unix_ms)
                }
                Some(_) => {
                    self.counters.refused_budget.increment();
                    remove()
                }
                None => {
                    self.counters.dropped_writes.increment();
                    remove()
                }
            },
        };
        match result {
            // The engine counts what it drops for want of room.
            Ok(()) | Err(DiskError::Full { .. } | DiskError::TooLarge { .. }) => {}
            Err(error) => {
                self.counters.errors.increment();
                tracing::debug!(%error, "a write to the disk tier failed");
            }
        }
    }

    /// Sees to it that a dictionary is on the disk before the first value that needs it.
    ///
    /// Where that fails, the value is written all the same: it can be read until a restart.
    fn keep_dictionary(&self, id: u32) {
        let Some(files) = &self.dictionaries else { return };
        if id == 0 || files.borrow().has(id) {
            return;
        }
        let dictionary = self.sealer.envelopes.compressing.dictionaries().get(id);
        let sealed = dictionary.and_then(|dictionary| self.sealer.seal_dictionary(&dictionary));
        let now = self.sealer.clock.now();
        if !sealed.is_some_and(|sealed| files.borrow_mut().keep(id, &sealed, now)) {
            self.counters.errors.increment();
        }
    }

    fn flush(&self) {
        match self.engine.flush() {
            Ok(()) | Err(DiskError::Full { .. }) => {}
            Err(error) => {
                self.counters.errors.increment();
                tracing::debug!(%error, "the disk tier was not flushed");
            }
        }
    }
}
