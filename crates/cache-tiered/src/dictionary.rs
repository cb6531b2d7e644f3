//! Dictionaries for small values: learned from the values themselves, and kept while entries need them.
//!
//! A record of 250 bytes hardly compresses alone, because everything that it repeats stands in other
//! records. A dictionary holds what they share, 16 KiB of it. The cache collects encoded values as
//! they are written, at most 4,000 or 4 MiB of them; then a thread of its own, which ends afterwards,
//! trains a dictionary from seven of eight and tries it on the rest. It comes into use if it makes
//! those a tenth smaller than they would be without it, or than the dictionary before makes them.
//! That is looked into again when the ratio has become a quarter worse than it was when this process
//! began to use the dictionary, and never within an hour of the last time.
//!
//! A dictionary is named by a hash of its bytes, never zero, which stands in every envelope that
//! needs it. Up to 16 are known at once, to be read with; one more and the oldest goes, and what was
//! written with it is a miss. The tiers keep their own copies, so that a restart and another machine
//! can read: see `disk/dictionaries.rs` and `redis/front.rs`.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, RwLock};
use xxhash_rust::xxh3::xxh3_64;
use zstd::zstd_safe::{CCtx, CDict, DDict};

use crate::clock::{Clock, Millis, millis};
use crate::compression::{PLAIN_LEVEL, compress_plain};

/// What a dictionary is trained to take. 112 KiB gained nothing over it.
const DICTIONARY_BYTES: usize = 16 << 10;
/// The longest that is read back from a tier.
pub(crate) const DICTIONARY_BYTES_MAX: usize = 32 << 10;
/// zstd 3 costs small values no more than zstd 1 once there is a dictionary, and saves 4 to 8 percent.
const LEVEL: i32 = 3;
/// The longest value that is compressed with a dictionary: above, it changes little.
pub(crate) const VALUE_BYTES_MAX: usize = 16 << 10;
/// Shorter values say nothing about what values share.
const SAMPLE_BYTES_MIN: usize = 16;
const SAMPLES_MAX: usize = 4_000;
const SAMPLED_BYTES_MAX: usize = 4 << 20;
/// One sample of so many is kept from training, to try the dictionary on.
const HELD_OUT: usize = 8;
/// How long after a training nothing is trained.
const REST: Duration = Duration::from_secs(3_600);
/// Bytes of values after which the ratio is looked at.
const WINDOW_BYTES: u64 = 4 << 20;
/// Dictionaries that are known at once.
const KNOWN_MAX: usize = 16;
/// The longest that closing waits for a training; one takes a second or two.
const CLOSE_WAIT: Duration = Duration::from_secs(10);

/// A dictionary, ready to compress and to decompress with.
pub(crate) struct Dictionary {
    id: u32,
    bytes: Vec<u8>,
    encoder: CDict<'static>,
    decoder: DDict<'static>,
}

impl Dictionary {
    /// Prepares a dictionary; `None` if zstd does not take it, or it is too long.
    pub(crate) fn new(bytes: Vec<u8>) -> Option<Self> {
        if bytes.is_empty() || bytes.len() > DICTIONARY_BYTES_MAX {
            return None;
        }
        let encoder = CDict::try_create(&bytes, LEVEL)?;
        let decoder = DDict::try_create(&bytes)?;
        Some(Self { id: (xxh3_64(&bytes) as u32).max(1), bytes, encoder, decoder })
    }

    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(crate) fn encoder(&self) -> &CDict<'static> {
        &self.encoder
    }

    pub(crate) fn decoder(&self) -> &DDict<'static> {
        &self.decoder
    }
}

impl fmt::Debug for Dictionary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The bytes are pieces of values, and those may be private.
        f.debug_struct("Dictionary").field("id", &self.id).finish_non_exhaustive()
    }
}

/// The dictionaries of one cache.
#[derive(Debug)]
pub(crate) struct Dictionaries {
    known: RwLock<Known>,
    /// Whether values are being collected: what `trainer` says, without its lock.
    sampling: AtomicBool,
    trainer: Mutex<Trainer>,
    /// Told when a training has ended.
    trained_now: Condvar,
    /// Bytes compressed with the active dictionary since the ratio was last looked at, and what they
    /// became.
    window_in: AtomicU64,
    window_out: AtomicU64,
    trained: AtomicU64,
    clock: Clock,
}

#[derive(Debug, Default)]
struct Known {
    active: Option<Arc<Dictionary>>,
    /// Oldest first, the active one among them.
    all: VecDeque<Arc<Dictionary>>,
}

#[derive(Debug, Default)]
struct Trainer {
    samples: Vec<Vec<u8>>,
    bytes: usize,
    busy: bool,
    /// The thread of the last training.
    thread: Option<JoinHandle<()>>,
    /// Nothing is trained any more.
    closed: bool,
    rest_until: Millis,
    /// What the active dictionary made of its first values, out over in.
    first_ratio: Option<f64>,
}

impl Dictionaries {
    pub(crate) fn new(clock: Clock) -> Arc<Self> {
        Arc::new(Self {
            known: RwLock::default(),
            sampling: AtomicBool::new(false),
            trainer: Mutex::default(),
            trained_now: Condvar::new(),
            window_in: AtomicU64::new(0),
            window_out: AtomicU64::new(0),
            trained: AtomicU64::new(0),
            clock,
        })
    }

    /// The dictionary that new values are compressed with.
    pub(crate) fn active(&self) -> Option<Arc<Dictionary>> {
        self.known.read().active.clone()
    }

    pub(crate) fn get(&self, id: u32) -> Option<Arc<Dictionary>> {
        self.known.read().all.iter().find(|known| known.id == id).cloned()
    }

    /// How many dictionaries are known.
    pub(crate) fn len(&self) -> usize {
        self.known.read().all.len()
    }

    /// How many dictionaries have been trained and taken into use here.
    pub(crate) fn trained(&self) -> u64 {
        self.trained.load(Ordering::Relaxed)
    }

    /// Makes a dictionary known, to be read with.
    pub(crate) fn learn(&self, dictionary: Arc<Dictionary>) {
        let forgotten;
        {
            let mut known = self.known.write();
            if known.all.iter().any(|other| other.id == dictionary.id) {
                return;
            }
            known.all.push_back(dictionary);
            forgotten = (known.all.len() > KNOWN_MAX).then(|| {
                let active = known.active.as_ref().map_or(0, |active| active.id);
                let oldest = known.all.iter().position(|other| other.id != active).unwrap_or(0);
                known.all.remove(oldest)
            });
        }
        drop(forgotten);
    }

    /// Makes a dictionary known and compresses with it from now on.
    pub(crate) fn activate(&self, dictionary: Arc<Dictionary>) {
        self.learn(Arc::clone(&dictionary));
        let mut trainer = self.trainer.lock();
        trainer.first_ratio = None;
        self.stop_sampling(&mut trainer);
        self.window_in.store(0, Ordering::Relaxed);
        self.window_out.store(0, Ordering::Relaxed);
        self.known.write().active = Some(dictionary);
    }

    /// Takes an encoded value for training, if values are wanted.
    pub(crate) fn sample(self: &Arc<Self>, value: &[u8]) {
        // Relaxed: a value more or less does not matter, and the trainer's lock decides.
        if !self.sampling.load(Ordering::Relaxed) || value.len() < SAMPLE_BYTES_MIN {
            return;
        }
        let mut trainer = self.trainer.lock();
        if trainer.busy || trainer.closed || !self.sampling.load(Ordering::Relaxed) {
            return;
        }
        trainer.bytes += value.len();
        trainer.samples.push(value.to_vec());
        if trainer.samples.len() < SAMPLES_MAX && trainer.bytes < SAMPLED_BYTES_MAX {
            return;
        }
        let samples = self.stop_sampling(&mut trainer);
        trainer.rest_until = self.clock.now().saturating_add(millis(REST));
        let this = Arc::clone(self);
        let spawned = thread::Builder::new()
            .name("cache-dictionary".to_owned())
            .spawn(move || this.train(&samples));
        trainer.busy = spawned.is_ok();
        trainer.thread = spawned.ok();
    }

    /// Trains nothing any more, and waits for a training that is under way, ten seconds at most.
    pub(crate) async fn close(self: &Arc<Self>) {
        {
            let mut trainer = self.trainer.lock();
            trainer.closed = true;
            drop(self.stop_sampling(&mut trainer));
            if !trainer.busy && trainer.thread.is_none() {
                return;
            }
        }
        let this = Arc::clone(self);
        let waited = tokio::task::spawn_blocking(move || this.wait_for_training(CLOSE_WAIT));
        // It does not panic, and a runtime that ends does not need the wait.
        drop(waited.await);
    }

    /// Waits for the thread that trains; one that takes longer is left to itself.
    fn wait_for_training(&self, at_most: Duration) {
        let deadline = Instant::now() + at_most;
        let mut trainer = self.trainer.lock();
        while trainer.busy {
            if self.trained_now.wait_until(&mut trainer, deadline).timed_out() {
                return;
            }
        }
        let thread = trainer.thread.take();
        drop(trainer);
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the training of a dictionary panicked");
        }
    }

    /// Begins to collect values when there is no dictionary and none was tried for lately.
    pub(crate) fn want(&self) {
        if self.sampling.load(Ordering::Relaxed) {
            return;
        }
        let trainer = self.trainer.lock();
        if !trainer.busy && !trainer.closed && self.clock.now() >= trainer.rest_until {
            self.sampling.store(true, Ordering::Relaxed);
        }
    }

    /// Hears what the active dictionary made of a value.
    pub(crate) fn observe(&self, bytes_in: usize, bytes_out: usize) {
        self.window_out.fetch_add(bytes_out as u64, Ordering::Relaxed);
        let seen = self.window_in.fetch_add(bytes_in as u64, Ordering::Relaxed) + bytes_in as u64;
        if seen < WINDOW_BYTES {
            return;
        }
        let mut trainer = self.trainer.lock();
        let seen = self.window_in.swap(0, Ordering::Relaxed);
        let became = self.window_out.swap(0, Ordering::Relaxed);
        // Somebody else has looked at this window.
        if seen < WINDOW_BYTES {
            return;
        }
        let ratio = became as f64 / seen as f64;
        let first = *trainer.first_ratio.get_or_insert(ratio);
        let is_worse = ratio > first * 1.25;
        let may_train = !trainer.busy && !trainer.closed;
        if is_worse && may_train && self.clock.now() >= trainer.rest_until {
            self.sampling.store(true, Ordering::Relaxed);
        }
    }

    fn stop_sampling(&self, trainer: &mut Trainer) -> Vec<Vec<u8>> {
        self.sampling.store(false, Ordering::Relaxed);
        trainer.bytes = 0;
        std::mem::take(&mut trainer.samples)
    }

    /// Trains a dictionary, tries it, and takes it into use if it is worth that.
    fn train(&self, samples: &[Vec<u8>]) {
        let _end = Training(self);
        let active = self.active();
        let better = train(samples).filter(|new| is_better(samples, new, active.as_deref()));
        if let Some(dictionary) = better {
            tracing::debug!(id = dictionary.id, "values are compressed with a new dictionary");
            self.activate(Arc::new(dictionary));
            self.trained.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// A training under way; it has ended when this is dropped.
struct Training<'a>(&'a Dictionaries);

impl Drop for Training<'_> {
    fn drop(&mut self) {
        let mut trainer = self.0.trainer.lock();
        trainer.busy = false;
        // What came of it is the new normal, or nothing would be compared with the old for ever.
        trainer.first_ratio = None;
        self.0.trained_now.notify_all();
    }
}

fn is_held_out(index: usize) -> bool {
    index.is_multiple_of(HELD_OUT)
}

fn train(samples: &[Vec<u8>]) -> Option<Dictionary> {
    let learned = samples.iter().enumerate().filter(|(index, _)| !is_held_out(*index));
    let learned: Vec<&[u8]> = learned.map(|(_, sample)| sample.as_slice()).collect();
    Dictionary::new(zstd::dict::from_samples(&learned, DICTIONARY_BYTES).ok()?)
}

/// Whether a dictionary makes the samples that it has not seen a tenth smaller than they are now.
fn is_better(samples: &[Vec<u8>], new: &Dictionary, old: Option<&Dictionary>) -> bool {
    let mut context = CCtx::create();
    let (mut with, mut without) = (0, 0);
    for sample in samples.iter().enumerate().filter(|(index, _)| is_held_out(*index)) {
        let sample = sample.1;
        let mut size = |dictionary: &Dictionary| {
            let mut out = Vec::with_capacity(sample.len());
            let size = context.compress_using_cdict(&mut out, sample, &dictionary.encoder);
            size.map_or(sample.len(), |size| size.min(sample.len()))
        };
        with += size(new);
        without += match old {
            Some(old) => size(old),
            None => compress_plain(sample, PLAIN_LEVEL).map_or(sample.len(), |out| out.len()),
        };
    }
    with < without - without / 10
}

#[cfg(test)]
pub(crate) mod tests;
