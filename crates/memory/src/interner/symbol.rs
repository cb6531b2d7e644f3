//! Permanent symbols: a table that only grows, up to a cap, and is read without a lock.
//!
//! Texts lie in segments of doubling size that never move. An index of words (upper half of the hash
//! | symbol) is probed linearly. A writer, alone behind a lock, first sets the text and then the word
//! (Release), so who reads a word (Acquire) can read its text. When the index is three quarters full
//! the writer fills one twice as large and publishes it; readers of the old one see every symbol
//! that was in it, and whoever misses looks again behind the lock (`loom_symbols_agree`). Old indexes
//! stay until the table drops: together they are as large as the newest, at most 22 bytes a symbol
//! for all.

use std::fmt;
use std::num::NonZeroU32;
use std::sync::{Arc, OnceLock};

use super::{RandomState, hash_of};
use crate::sync::{Acquire, AtomicU64, AtomicUsize, Mutex, Relaxed, Release};

/// Texts in the first segment; each further one doubles.
const FIRST: usize = 64;
/// Segments, enough for 2^32 symbols.
const SEGMENTS: usize = 27;
/// Words of the first index.
#[cfg(not(loom))]
const INDEX_FIRST: usize = 128;
#[cfg(loom)]
const INDEX_FIRST: usize = 2;
/// Indexes: the largest has 2^33 words or more, which no cap exceeds.
const INDEXES: usize = 34;

/// A string of a [`SymbolTable`] as a number: four bytes, `Copy`, equal where the strings are.
///
/// `Option<Symbol>` takes four bytes as well. A symbol means something only to the table that made it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Symbol(NonZeroU32);

impl Symbol {
    /// Returns its place in the table, from 0 in order of first appearance: an index for a `Vec`.
    pub fn index(self) -> usize {
        self.0.get() as usize - 1
    }
}

impl fmt::Debug for Symbol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Symbol({})", self.index())
    }
}

/// Why a symbol cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SymbolError {
    /// The table has as many symbols as it may.
    #[error("the symbol table is full: {symbols} symbols, symbols_max = {symbols_max}")]
    Symbols {
        /// Symbols in the table.
        symbols: u32,
        /// Its cap.
        symbols_max: u32,
    },
    /// The text does not fit in the bytes that are left.
    #[error("no room for {needed} bytes of text: {bytes} used, bytes_max = {bytes_max}")]
    Bytes {
        /// Length of the text.
        needed: usize,
        /// Bytes of text in the table.
        bytes: usize,
        /// Its cap.
        bytes_max: usize,
    },
    /// A table without room for one symbol was asked for.
    #[error(
        "invalid symbol table: symbols_max = {symbols_max}, bytes_max = {bytes_max}: both must be at least 1"
    )]
    Invalid {
        /// The cap on symbols that was asked for.
        symbols_max: u32,
        /// The cap on bytes that was asked for.
        bytes_max: usize,
    },
}

/// What a table holds, from [`SymbolTable::stats`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SymbolTableStats {
    /// Symbols made so far.
    pub symbols: u32,
    /// The most there can be.
    pub symbols_max: u32,
    /// Bytes of their texts.
    pub text_bytes: usize,
    /// Bytes of the texts' places and of the index.
    pub table_bytes: usize,
}

/// A permanent vocabulary: each string once, each as a [`Symbol`] of four bytes.
///
/// Nothing is removed before the table drops, so it has hard caps, and an error at them: intern here
/// what comes from a closed set, and what a client can choose in an [`Interner`](super::Interner).
/// The handle is cheap to clone; clones share one table.
///
/// # Examples
///
/// ```
/// use memory::SymbolTable;
///
/// let routes = SymbolTable::new(1_000, 64 << 10)?;
/// let users = routes.intern("GET /users")?;
/// assert_eq!(routes.intern("GET /users")?, users);
/// assert_eq!(routes.resolve(users), Some("GET /users"));
/// # Ok::<_, memory::SymbolError>(())
/// ```
#[derive(Clone)]
pub struct SymbolTable {
    inner: Arc<Inner>,
}

struct Inner {
    hasher: RandomState,
    symbols_max: u32,
    bytes_max: usize,
    segments: [OnceLock<Segment>; SEGMENTS],
    indexes: [OnceLock<Box<[AtomicU64]>>; INDEXES],
    /// The index to probe.
    newest: AtomicUsize,
    writer: Mutex<Writer>,
}

type Segment = Box<[OnceLock<Box<str>>]>;

#[derive(Default)]
struct Writer {
    symbols: u32,
    bytes: usize,
}

impl SymbolTable {
    /// Makes a table for at most `symbols_max` symbols with `bytes_max` bytes of text in all.
    ///
    /// # Errors
    ///
    /// [`SymbolError::Invalid`] if a cap is 0.
    pub fn new(symbols_max: u32, bytes_max: usize) -> Result<Self, SymbolError> {
        if symbols_max == 0 || bytes_max == 0 {
            return Err(SymbolError::Invalid { symbols_max, bytes_max });
        }
        let inner = Inner {
            hasher: RandomState::default(),
            symbols_max,
            bytes_max,
            segments: [const { OnceLock::new() }; SEGMENTS],
            indexes: [const { OnceLock::new() }; INDEXES],
            newest: AtomicUsize::new(0),
            writer: Mutex::new(Writer::default()),
        };
        inner.index(0);
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Returns the symbol of `text`, making it if the text is new.
    ///
    /// # Errors
    ///
    /// [`SymbolError::Symbols`] or [`SymbolError::Bytes`] if it is new and a cap is reached.
    ///
    /// # Cost
    ///
    /// For a text that is there: a hash, a probe and a comparison; no lock, no shared write.
    pub fn intern(&self, text: &str) -> Result<Symbol, SymbolError> {
        let hash = hash_of(&self.inner.hasher, text);
        match self.inner.find(hash, text) {
            Some(symbol) => Ok(symbol),
            None => self.inner.insert(hash, text),
        }
    }

    /// Returns the symbol of `text` if there is one.
    ///
    /// # Cost
    ///
    /// As [`intern`](Self::intern) of a text that is there.
    pub fn get(&self, text: &str) -> Option<Symbol> {
        self.inner.find(hash_of(&self.inner.hasher, text), text)
    }

    /// Returns the text of a symbol; `None` if this table did not make it.
    ///
    /// A symbol of another table is not recognized when this one has as many.
    #[inline]
    pub fn resolve(&self, symbol: Symbol) -> Option<&str> {
        self.inner.text(symbol)
    }

    /// Returns the text with this [`Symbol::index`].
    pub fn by_index(&self, index: usize) -> Option<&str> {
        let number = u32::try_from(index).ok()?.checked_add(1)?;
        self.resolve(Symbol(NonZeroU32::new(number)?))
    }

    /// Returns what the table holds.
    pub fn stats(&self) -> SymbolTableStats {
        let writer = self.inner.writer.lock();
        let texts: usize =
            self.inner.segments.iter().filter_map(OnceLock::get).map(|it| it.len()).sum();
        let words: usize =
            self.inner.indexes.iter().filter_map(OnceLock::get).map(|it| it.len()).sum();
        SymbolTableStats {
            symbols: writer.symbols,
            symbols_max: self.inner.symbols_max,
            text_bytes: writer.bytes,
            table_bytes: texts * size_of::<OnceLock<Box<str>>>() + words * size_of::<AtomicU64>(),
        }
    }
}

impl fmt::Debug for SymbolTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SymbolTable").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

/// The segment of the `place`-th text, and its place in there.
#[inline]
fn locate(place: usize) -> (usize, usize) {
    let shifted = place + FIRST;
    let segment = (shifted.ilog2() - FIRST.ilog2()) as usize;
    (segment, shifted - (FIRST << segment))
}

impl Inner {
    #[inline]
    fn text(&self, symbol: Symbol) -> Option<&str> {
        let (segment, place) = locate(symbol.index());
        self.segments[segment].get()?.get(place)?.get().map(|text| &**text)
    }

    /// Returns the index of this level, making it if need be.
    fn index(&self, level: usize) -> &[AtomicU64] {
        self.indexes[level]
            .get_or_init(|| (0..INDEX_FIRST << level).map(|_| AtomicU64::new(0)).collect())
    }

    #[inline]
    fn find(&self, hash: u64, text: &str) -> Option<Symbol> {
        // Acquire: pairs with the Release in `insert`, so the index is filled.
        let index = self.indexes[self.newest.load(Acquire)].get()?;
        let mask = index.len() - 1;
        let mut at = hash as usize & mask;
        loop {
            // Acquire: pairs with the Release in `insert`, so the text is set.
            let word = index[at].load(Acquire);
            let symbol = Symbol(NonZeroU32::new(word as u32)?);
            if word >> 32 == hash >> 32 && self.text(symbol) == Some(text) {
                return Some(symbol);
            }
            at = (at + 1) & mask;
        }
    }

    #[cold]
    fn insert(&self, hash: u64, text: &str) -> Result<Symbol, SymbolError> {
        let mut writer = self.writer.lock();
        if let Some(symbol) = self.find(hash, text) {
            return Ok(symbol);
        }
        let Writer { symbols, bytes } = *writer;
        if symbols >= self.symbols_max {
            return Err(SymbolError::Symbols { symbols, symbols_max: self.symbols_max });
        }
        if text.len() > self.bytes_max - bytes {
            let (needed, bytes_max) = (text.len(), self.bytes_max);
            return Err(SymbolError::Bytes { needed, bytes, bytes_max });
        }
        let (segment, place) = locate(symbols as usize);
        let segment = self.segments[segment]
            .get_or_init(|| (0..FIRST << segment).map(|_| OnceLock::new()).collect());
        segment[place].set(text.into()).expect("the writer alone fills places, each once");
        writer.symbols += 1;
        writer.bytes += text.len();
        let symbol = Symbol(NonZeroU32::MIN.saturating_add(symbols));

        // Relaxed: only the writer changes it.
        let level = self.newest.load(Relaxed);
        let index = self.index(level);
        // A free word always remains, so every probe ends.
        if (symbols as usize + 1) * 4 > index.len() * 3 {
            let larger = self.index(level + 1);
            for word in index {
                let word = word.load(Relaxed);
                if let Some(old) = NonZeroU32::new(word as u32).map(Symbol) {
                    let text = self.text(old).expect("set before its word");
                    place_in(larger, hash_of(&self.hasher, text), old);
                }
            }
            place_in(larger, hash, symbol);
            // Release: pairs with the Acquire in `find`.
            self.newest.store(level + 1, Release);
        } else {
            place_in(index, hash, symbol);
        }
        Ok(symbol)
    }
}

/// Puts a symbol in the first free word from its place on.
fn place_in(index: &[AtomicU64], hash: u64, symbol: Symbol) {
    let mask = index.len() - 1;
    let mut at = hash as usize & mask;
    while index[at].load(Relaxed) != 0 {
        at = (at + 1) & mask;
    }
    // Release: pairs with the Acquire in `find`.
    index[at].store((hash >> 32) << 32 | u64::from(symbol.0.get()), Release);
}
