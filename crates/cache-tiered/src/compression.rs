//! Compression of encoded values, where it pays.
//!
//! Contexts cost more than a small value does, so each thread keeps its own. A value is stored as it
//! is unless a tenth is saved, and when 16 in a row did not save it, the next ones are not tried: 64
//! of them, then twice as many after every four probes that failed, and never more than 1,024. So
//! values that are compressed already cost next to nothing, and a change is noticed soon.
//!
//! Reading does not look at the settings: whatever an envelope says it holds is unpacked, if this
//! build can.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use zstd::zstd_safe::{CCtx, DCtx};

use crate::clock::Clock;
use crate::dictionary::{Dictionaries, Dictionary, VALUE_BYTES_MAX};
use crate::error::Problem;
use crate::stats::{CompressionStats, Counter};

pub(crate) const RAW: u8 = 0;
const ZSTD: u8 = 1;
#[cfg(feature = "lz4")]
const LZ4: u8 = 2;

/// zstd 1 compresses JSON-like values 2 to 4.7 times; level 3 would buy one percent more.
pub(crate) const PLAIN_LEVEL: i32 = 1;
/// Without a dictionary, shorter values shrink too little for what they cost.
const ZSTD_FLOOR: usize = 2 << 10;
#[cfg(feature = "lz4")]
const LZ4_FLOOR: usize = 1 << 10;
/// With a dictionary, the first 128 bytes of records became 2.7 times smaller, the first 60 only 1.6.
const DICTIONARY_FLOOR: usize = 128;

/// Failures in a row after which compression pauses.
const LOSSES_MAX: u32 = 16;
/// Tries after a pause.
const PROBES: u32 = 4;
const PAUSE_MIN: u32 = 64;
const PAUSE_MAX: u32 = 1_024;
/// One call of so many is timed.
const TIMED: u32 = 16;

/// How values are compressed in the tiers below memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Compression {
    /// Not at all; what was compressed before is still read.
    None,
    /// zstd, for values of 2 KiB and more.
    Zstd {
        /// 1 to 19; 1 by default. Higher ones cost much and gain little.
        level: i32,
    },
    /// zstd with dictionaries that the cache learns from its own values, for those of 128 bytes and
    /// more; as `Zstd` until the first dictionary is there, and for values above 16 KiB.
    ZstdDictionary,
    /// LZ4, for values of 1 KiB and more: compresses less than zstd, and unpacks several times faster.
    #[cfg(feature = "lz4")]
    Lz4,
}

impl Default for Compression {
    fn default() -> Self {
        Self::Zstd { level: PLAIN_LEVEL }
    }
}

impl Compression {
    pub(crate) fn problem(self) -> Option<Problem> {
        match self {
            Self::Zstd { level } if !(1..=19).contains(&level) => {
                Some(Problem::new("compression.level", level, "must be between 1 and 19"))
            }
            _ => None,
        }
    }
}

/// From which length on values are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Floor {
    /// What suits the kind of compression.
    #[default]
    Measured,
    /// What the user said; `None` for no value at all.
    Set(Option<usize>),
}

/// The floor that suits the kind of compression, and the one that no value comes up to.
const MEASURED: usize = usize::MAX;
const NOTHING: usize = usize::MAX - 1;

/// A value on its way into an envelope.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Packed {
    pub(crate) compression: u8,
    pub(crate) dictionary: u32,
    /// `None` when the value goes in as it is.
    pub(crate) bytes: Option<Vec<u8>>,
}

impl Packed {
    pub(crate) const RAW: Self = Self { compression: RAW, dictionary: 0, bytes: None };
}

/// What came out of an envelope.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Unpacked {
    Value(Vec<u8>),
    Corrupt,
    /// A compression that this build does not know.
    Unknown,
    NoDictionary,
}

/// How one cache compresses.
#[derive(Debug)]
pub(crate) struct Compressing {
    /// What was chosen; see [`Self::method`].
    chosen: Compression,
    /// The length from which on values are compressed, or one of the words below.
    floor: AtomicUsize,
    worth: Worth,
    dictionaries: Arc<Dictionaries>,
    counters: Counters,
}

#[derive(Debug, Default)]
struct Counters {
    tried: Counter,
    compressed: Counter,
    skipped: Counter,
    bytes_in: Counter,
    bytes_out: Counter,
    decompressed: Counter,
    encode_nanos: Counter,
    decode_nanos: Counter,
}

impl Compressing {
    pub(crate) fn new(method: Compression, floor: Floor, clock: Clock) -> Self {
        let floor = match floor {
            Floor::Measured => MEASURED,
            Floor::Set(bytes) => bytes.map_or(NOTHING, |bytes| bytes.min(NOTHING - 1)),
        };
        Self {
            chosen: method,
            floor: AtomicUsize::new(floor),
            worth: Worth::default(),
            dictionaries: Dictionaries::new(clock),
            counters: Counters::default(),
        }
    }

    pub(crate) fn dictionaries(&self) -> &Arc<Dictionaries> {
        &self.dictionaries
    }

    /// Whether values are compressed with dictionaries, and not only read with them.
    pub(crate) fn uses_dictionaries(&self) -> bool {
        self.method() == Compression::ZstdDictionary
    }

    /// How values are compressed at present: not at all where none is to be.
    fn method(&self) -> Compression {
        match self.floor.load(Ordering::Relaxed) {
            NOTHING => Compression::None,
            _ => self.chosen,
        }
    }

    /// Whether a way to compress was chosen at all.
    pub(crate) fn can_compress(&self) -> bool {
        self.chosen != Compression::None
    }

    /// The length from which on values are compressed, `None` for no value.
    pub(crate) fn compress_above(&self) -> Option<usize> {
        self.floor(self.uses_dictionaries())
    }

    /// Compresses values of this length or more from now on, `None` for no value.
    pub(crate) fn set_compress_above(&self, bytes: Option<usize>) {
        let floor = bytes.map_or(NOTHING, |bytes| bytes.min(NOTHING - 1));
        self.floor.store(floor, Ordering::Relaxed);
    }

    /// Compresses a value if that pays.
    pub(crate) fn pack(&self, value: &[u8]) -> Packed {
        let dictionary = self.dictionary_for(value);
        let Some(floor) = self.floor(dictionary.is_some()) else { return Packed::RAW };
        if value.len() < floor {
            return Packed::RAW;
        }
        if !self.worth.should_try() {
            self.counters.skipped.increment();
            if dictionary.is_some() {
                self.dictionaries.observe(value.len(), value.len());
            }
            return Packed::RAW;
        }
        let packed =
            timed(&self.counters.encode_nanos, || self.compress(value, dictionary.as_deref()));
        let stored = packed.bytes.as_ref().map_or(value.len(), Vec::len);
        self.worth.hear(packed.bytes.is_some());
        self.counters.tried.increment();
        self.counters.compressed.add(u64::from(packed.bytes.is_some()));
        self.counters.bytes_in.add(value.len() as u64);
        self.counters.bytes_out.add(stored as u64);
        if dictionary.is_some() {
            self.dictionaries.observe(value.len(), stored);
        }
        packed
    }

    /// Undoes what an envelope says was done; `raw_len` bounds what comes out.
    pub(crate) fn unpack(
        &self,
        compression: u8,
        dictionary: u32,
        payload: &[u8],
        raw_len: usize,
    ) -> Unpacked {
        let dictionary = match (compression, dictionary) {
            (_, 0) => None,
            (ZSTD, id) => match self.dictionaries.get(id) {
                Some(known) => Some(known),
                None => return Unpacked::NoDictionary,
            },
            _ => return Unpacked::Unknown,
        };
        let value = timed(&self.counters.decode_nanos, || match compression {
            ZSTD => Some(decompress_zstd(payload, raw_len, dictionary.as_deref())),
            #[cfg(feature = "lz4")]
            LZ4 => Some(decompress_lz4(payload, raw_len)),
            _ => None,
        });
        match value {
            Some(Some(value)) => {
                self.counters.decompressed.increment();
                Unpacked::Value(value)
            }
            Some(None) => Unpacked::Corrupt,
            None => Unpacked::Unknown,
        }
    }

    pub(crate) fn stats(&self) -> CompressionStats {
        let counters = &self.counters;
        CompressionStats {
            tried: counters.tried.get(),
            compressed: counters.compressed.get(),
            skipped: counters.skipped.get(),
            bytes_in: counters.bytes_in.get(),
            bytes_out: counters.bytes_out.get(),
            decompressed: counters.decompressed.get(),
            encode_time: Duration::from_nanos(counters.encode_nanos.get()),
            decode_time: Duration::from_nanos(counters.decode_nanos.get()),
            dictionary: self.dictionaries.active().map_or(0, |active| active.id()),
            dictionaries: self.dictionaries.len() as u64,
            dictionaries_trained: self.dictionaries.trained(),
        }
    }

    /// The dictionary to compress this value with. Shows the value to the one who trains them.
    fn dictionary_for(&self, value: &[u8]) -> Option<Arc<Dictionary>> {
        if !self.uses_dictionaries() || value.len() > VALUE_BYTES_MAX {
            return None;
        }
        let active = self.dictionaries.active();
        if active.is_none() {
            self.dictionaries.want();
        }
        self.dictionaries.sample(value);
        active
    }

    fn floor(&self, has_dictionary: bool) -> Option<usize> {
        match (self.floor.load(Ordering::Relaxed), self.chosen) {
            (_, Compression::None) | (NOTHING, _) => None,
            (floor, _) if floor != MEASURED => Some(floor),
            (_, Compression::ZstdDictionary) if has_dictionary => Some(DICTIONARY_FLOOR),
            (_, Compression::Zstd { .. } | Compression::ZstdDictionary) => Some(ZSTD_FLOOR),
            #[cfg(feature = "lz4")]
            (_, Compression::Lz4) => Some(LZ4_FLOOR),
        }
    }

    fn compress(&self, value: &[u8], dictionary: Option<&Dictionary>) -> Packed {
        let (compression, bytes) = match (self.method(), dictionary) {
            (Compression::None, _) => (RAW, None),
            (_, Some(dictionary)) => (ZSTD, compress_with(value, dictionary)),
            (Compression::Zstd { level }, _) => (ZSTD, compress_plain(value, level)),
            (Compression::ZstdDictionary, _) => (ZSTD, compress_plain(value, PLAIN_LEVEL)),
            #[cfg(feature = "lz4")]
            (Compression::Lz4, _) => (LZ4, compress_lz4(value)),
        };
        match bytes {
            None => Packed::RAW,
            Some(_) => {
                Packed { compression, dictionary: dictionary.map_or(0, Dictionary::id), bytes }
            }
        }
    }
}

/// Whether compression has been worth it lately.
///
/// Threads may lose each other's counts here: then a pause is a few values longer or shorter.
#[derive(Debug, Default)]
struct Worth {
    losses: AtomicU32,
    /// Values that go by untried.
    pause: AtomicU32,
    /// How long the last pause was, zero if there was none.
    last_pause: AtomicU32,
}

impl Worth {
    fn should_try(&self) -> bool {
        let left = self.pause.load(Ordering::Relaxed);
        if left > 0 {
            self.pause.store(left - 1, Ordering::Relaxed);
        }
        left == 0
    }

    fn hear(&self, paid: bool) {
        if paid {
            self.losses.store(0, Ordering::Relaxed);
            self.last_pause.store(0, Ordering::Relaxed);
            return;
        }
        let losses = self.losses.load(Ordering::Relaxed) + 1;
        if losses < LOSSES_MAX {
            self.losses.store(losses, Ordering::Relaxed);
            return;
        }
        let pause = (self.last_pause.load(Ordering::Relaxed) * 2).clamp(PAUSE_MIN, PAUSE_MAX);
        self.losses.store(LOSSES_MAX - PROBES, Ordering::Relaxed);
        self.last_pause.store(pause, Ordering::Relaxed);
        self.pause.store(pause, Ordering::Relaxed);
    }
}

thread_local! {
    static COMPRESSOR: RefCell<Option<CCtx<'static>>> = const { RefCell::new(None) };
    static DECOMPRESSOR: RefCell<Option<DCtx<'static>>> = const { RefCell::new(None) };
    static CALLS: Cell<u32> = const { Cell::new(0) };
}

/// Runs `work` and, one time of `TIMED`, adds what that many such calls take.
fn timed<T>(nanos: &Counter, work: impl FnOnce() -> T) -> T {
    let call = CALLS.get();
    CALLS.set(call.wrapping_add(1));
    if !call.is_multiple_of(TIMED) {
        return work();
    }
    let start = Instant::now();
    let done = work();
    let took = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
    nanos.add(took.saturating_mul(u64::from(TIMED)));
    done
}

/// Room for what is worth storing, and not a byte more: zstd gives up where that does not suffice.
fn worthwhile(len: usize) -> Vec<u8> {
    Vec::with_capacity(len - len / 10)
}

/// Compresses without a dictionary; `None` if that does not save a tenth.
pub(crate) fn compress_plain(value: &[u8], level: i32) -> Option<Vec<u8>> {
    COMPRESSOR.with_borrow_mut(|slot| {
        let context = compressor(slot)?;
        let mut out = worthwhile(value.len());
        context.compress(&mut out, value, level).ok()?;
        Some(out)
    })
}

fn compress_with(value: &[u8], dictionary: &Dictionary) -> Option<Vec<u8>> {
    COMPRESSOR.with_borrow_mut(|slot| {
        let context = compressor(slot)?;
        let mut out = worthwhile(value.len());
        context.compress_using_cdict(&mut out, value, dictionary.encoder()).ok()?;
        Some(out)
    })
}

fn compressor<'a>(slot: &'a mut Option<CCtx<'static>>) -> Option<&'a mut CCtx<'static>> {
    if slot.is_none() {
        *slot = CCtx::try_create();
    }
    slot.as_mut()
}

fn decompress_zstd(
    payload: &[u8],
    raw_len: usize,
    dictionary: Option<&Dictionary>,
) -> Option<Vec<u8>> {
    DECOMPRESSOR.with_borrow_mut(|slot| {
        if slot.is_none() {
            *slot = DCtx::try_create();
        }
        let context = slot.as_mut()?;
        let mut out = Vec::with_capacity(raw_len);
        match dictionary {
            Some(dictionary) => {
                context.decompress_using_ddict(&mut out, payload, dictionary.decoder()).ok()?
            }
            None => context.decompress(&mut out, payload).ok()?,
        };
        Some(out)
    })
}

#[cfg(feature = "lz4")]
fn compress_lz4(value: &[u8]) -> Option<Vec<u8>> {
    let out = lz4_flex::block::compress(value);
    (out.len() <= value.len() - value.len() / 10).then_some(out)
}

#[cfg(feature = "lz4")]
fn decompress_lz4(payload: &[u8], raw_len: usize) -> Option<Vec<u8>> {
    // LZ4 cannot do more than this, so a length that lies costs no memory.
    if raw_len > payload.len().saturating_mul(255).saturating_add(64) {
        return None;
    }
    let mut out = vec![0; raw_len];
    let len = lz4_flex::block::decompress_into(payload, &mut out).ok()?;
    (len == raw_len).then_some(out)
}

#[cfg(test)]
mod tests;
