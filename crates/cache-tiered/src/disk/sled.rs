//! The sled engine: the disk tier over sled 0.34, for values of a few KiB.
//!
//! sled is a B-tree over its own log. It knows neither a bound in bytes nor expiry nor eviction, and
//! its files never shrink, so this module keeps those beside it, in memory: for each entry its length,
//! its expiry and when it was put. That is rebuilt from the records at opening. The tree's key is the
//! 64-bit hash of the key, as in the segment log; two keys with one hash replace each other.
//!
//! A record, all numbers little-endian:
//!
//! | offset | bytes | field |
//! |--:|--:|---|
//! | 0 | 1 | version, 1 |
//! | 1 | 8 | sequence number of the put |
//! | 9 | 8 | expiry, milliseconds since the Unix epoch, 0 = never |
//! | 17 | 4 | length of the key |
//! | 21 | 4 | CRC32C of the tree's key, the bytes 0 to 20, key and value |
//! | 25 | | key, then value |
//!
//! Live entries are held to a quarter of the capacity, the oldest put leaves first; sled's files
//! settle at about four times that. Should they outgrow the capacity all the same, the database is
//! thrown away and a new one begun, in the next `db-..` directory. The same is done by the `flush`
//! after a failure of sled, which it does not come back from: it repeats the error for ever. So,
//! unlike the segment log, this engine loses its entries when the disk is full.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use ::sled::{Db, IVec, Mode};
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::directory::Directory;
use super::engine::{DiskEngineStats, DiskError, DiskTier, Fsync, OpenError};

/// How long an opening waits for a dropped engine to let go of its database.
const RELEASE: Duration = Duration::from_secs(5);
const ENGINE: &str = "sled";
const FORMAT_VERSION: u32 = 1;
const RECORD_VERSION: u8 = 1;
const HEADER_LEN: usize = 25;
const CRC_AT: usize = 21;
const MIN_CAPACITY: u64 = 1 << 20;
const STRIPES: usize = 64;
const PREFIX: &str = "db-";

/// How a [`SledEngine`] is laid out.
#[derive(Debug, Clone)]
pub struct SledOptions {
    /// The directory; made if it does not exist. It has to be empty or an earlier one of this engine.
    pub path: PathBuf,
    /// The most bytes that the files may take on disk; at least 1 MiB. A quarter of it holds entries.
    pub capacity_bytes: u64,
    /// The memory that sled may take, roughly.
    ///
    /// sled 0.34 takes a multiple of the limit that it is given, so it is given a tenth of this. At
    /// values of 1 KiB it was seen to take 2 to 3 times its limit, at 16 KiB 8 to 17, at 64 KiB 11 to 24.
    pub memory_bytes: u64,
    /// When written entries are forced onto the medium. sled syncs with every flush, whatever this
    /// says; [`Fsync::Always`] flushes on every write.
    pub fsync: Fsync,
}

impl SledOptions {
    /// Describes a database with the default layout.
    pub fn new(path: impl Into<PathBuf>, capacity_bytes: u64) -> Self {
        Self { path: path.into(), capacity_bytes, memory_bytes: 64 << 20, fsync: Fsync::Never }
    }
}

/// Keeps entries in a sled database, for values of up to about 4 KiB.
///
/// After a `kill -9` sled was seen to panic at opening, about once in fifty times; the engine then
/// begins anew, with no entries. Larger values work, but sled then writes four to five bytes for each and takes memory far beyond
/// [`SledOptions::memory_bytes`].
///
/// # Cost
///
/// Puts take tens of microseconds and stall for milliseconds now and then. About 120 bytes of memory
/// per entry come on top of sled's own.
pub struct SledEngine {
    directory: Directory,
    capacity: u64,
    cache_capacity: u64,
    fsync: Fsync,
    /// Locked for writing only to begin a new database.
    db: RwLock<Database>,
    /// Puts and removals of one key in turn, so that `entries` and sled agree on the last one.
    stripes: Box<[Mutex<()>]>,
    entries: Mutex<Entries>,
    /// Whether sled has failed, and a new database is due.
    broken: AtomicBool,
    since_check: AtomicU64,
    counters: Counters,
}

struct Database {
    db: Db,
    number: u64,
}

#[derive(Default)]
struct Entries {
    by_hash: HashMap<u64, Entry>,
    /// Sequence number to hash, oldest first.
    order: BTreeMap<u64, u64>,
    next_seq: u64,
    live_bytes: u64,
}

#[derive(Clone, Copy)]
struct Entry {
    seq: u64,
    len: u64,
    expires_at_ms: u64,
}

impl Entry {
    fn expired(&self, now_ms: u64) -> bool {
        self.expires_at_ms != 0 && self.expires_at_ms <= now_ms
    }
}

impl Entries {
    fn insert(&mut self, hash: u64, entry: Entry) -> Option<Entry> {
        let old = self.by_hash.insert(hash, entry);
        if let Some(old) = old {
            self.order.remove(&old.seq);
            self.live_bytes -= old.len;
        }
        self.order.insert(entry.seq, hash);
        self.live_bytes += entry.len;
        self.next_seq = self.next_seq.max(entry.seq + 1);
        old
    }

    fn remove(&mut self, hash: u64) -> Option<Entry> {
        let old = self.by_hash.remove(&hash)?;
        self.order.remove(&old.seq);
        self.live_bytes -= old.len;
        Some(old)
    }

    fn is_current(&self, hash: u64, seq: u64) -> bool {
        self.by_hash.get(&hash).is_some_and(|entry| entry.seq == seq)
    }

    /// Forgets the entries but not the sequence, which must not repeat.
    fn clear(&mut self) -> u64 {
        let count = self.by_hash.len() as u64;
        *self = Self { next_seq: self.next_seq, ..Self::default() };
        count
    }
}

#[derive(Default)]
struct Counters {
    evicted_capacity: AtomicU64,
    evicted_expired: AtomicU64,
    replaced: AtomicU64,
    removed: AtomicU64,
    cleared: AtomicU64,
    corrupt: AtomicU64,
    io_errors: AtomicU64,
    dropped_writes: AtomicU64,
    too_large: AtomicU64,
    bytes_written: AtomicU64,
    syncs: AtomicU64,
    rebuilds: AtomicU64,
}

fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Relaxed);
}

impl SledEngine {
    /// Opens a directory, making or recovering it, and holds it until dropped.
    ///
    /// A database that sled cannot open any more is replaced by an empty one, which is counted in
    /// [`DiskEngineStats::rebuilds`].
    ///
    /// # Errors
    ///
    /// See [`OpenError`]. Nothing is changed in a directory that is not an earlier one of this engine.
    ///
    /// # Cost
    ///
    /// Reads all entries once.
    pub fn open(options: SledOptions) -> Result<Self, OpenError> {
        let capacity = options.capacity_bytes;
        if capacity < MIN_CAPACITY {
            return Err(OpenError::CapacityTooSmall {
                capacity_bytes: capacity,
                min_bytes: MIN_CAPACITY,
            });
        }
        let directory = Directory::open(&options.path, ENGINE, FORMAT_VERSION)?;
        let cache_capacity = (options.memory_bytes / 10).max(1 << 16);
        let counters = Counters::default();
        let numbers =
            databases(directory.path()).map_err(|e| OpenError::io("list", directory.path(), e))?;
        let newest = numbers.last().copied();
        for number in numbers {
            if Some(number) != newest {
                remove(directory.path(), number);
            }
        }
        let mut number = newest.unwrap_or(0);
        let opened = open_database(directory.path(), number, capacity, cache_capacity)
            .and_then(|db| read_all(&db).map(|(entries, bad)| (db, entries, bad)));
        let (db, entries) = match opened {
            Ok((db, entries, corrupt)) => {
                count(&counters.corrupt, corrupt);
                (db, entries)
            }
            Err(error) if newest.is_some() && !is_held(&error) => {
                tracing::warn!(path = %directory.path().display(), %error, "starting anew");
                count(&counters.rebuilds, 1);
                number += 1;
                let db = open_database(directory.path(), number, capacity, cache_capacity)
                    .map_err(|source| OpenError::Engine {
                        path: options.path.clone(),
                        source: Box::new(source),
                    })?;
                remove(directory.path(), number - 1);
                (db, Entries::default())
            }
            Err(source) => {
                return Err(OpenError::Engine { path: options.path, source: Box::new(source) });
            }
        };
        let engine = Self {
            capacity,
            cache_capacity,
            fsync: options.fsync,
            db: RwLock::new(Database { db, number }),
            stripes: (0..STRIPES).map(|_| Mutex::new(())).collect(),
            entries: Mutex::new(entries),
            broken: AtomicBool::new(false),
            since_check: AtomicU64::new(u64::MAX / 2),
            counters,
            directory,
        };
        engine.hold_bounds();
        Ok(engine)
    }

    fn hash(&self, key: &[u8]) -> u64 {
        xxh3_64_with_seed(key, self.directory.seed())
    }

    fn stripe(&self, hash: u64) -> &Mutex<()> {
        &self.stripes[(hash >> 40) as usize % STRIPES]
    }

    /// Calls sled, turning its errors and panics into an error of ours.
    fn call<T>(
        &self,
        op: &'static str,
        db: &Db,
        f: impl FnOnce(&Db) -> ::sled::Result<T>,
    ) -> Result<T, DiskError> {
        guarded(|| f(db)).map_err(|error| {
            self.broken.store(true, Relaxed);
            count(&self.counters.io_errors, 1);
            match error {
                ::sled::Error::Io(source) => DiskError::io(op, self.directory.path(), source),
                other => DiskError::Engine { op, source: Box::new(other) },
            }
        })
    }

    /// Removes one entry if it is still the one with this sequence number, or whichever it is.
    fn remove_entry(&self, hash: u64, seq: Option<u64>) -> Result<bool, DiskError> {
        let database = self.db.read();
        let _turn = self.stripe(hash).lock();
        {
            let mut entries = self.entries.lock();
            if seq.is_some_and(|seq| !entries.is_current(hash, seq))
                || entries.remove(hash).is_none()
            {
                return Ok(false);
            }
        }
        let removed = self.call("remove", &database.db, |db| db.remove(hash.to_be_bytes()));
        if removed.is_err() {
            count(&self.counters.dropped_writes, 1);
        }
        removed.map(|_| true)
    }

    /// Evicts the oldest entries beyond a quarter of the capacity, and looks at sled's files.
    fn hold_bounds(&self) {
        loop {
            let oldest = {
                let entries = self.entries.lock();
                if entries.live_bytes <= self.capacity / 4 {
                    break;
                }
                entries.order.first_key_value().map(|(seq, hash)| (*seq, *hash))
            };
            let Some((seq, hash)) = oldest else { break };
            match self.remove_entry(hash, Some(seq)) {
                Ok(removed) => count(&self.counters.evicted_capacity, u64::from(removed)),
                Err(_) => break,
            }
        }
        if self.since_check.load(Relaxed) >= self.capacity / 128 {
            self.since_check.store(0, Relaxed);
            if self.disk_bytes() > self.capacity - self.capacity / 16 {
                self.rebuild();
            }
        }
    }

    fn disk_bytes(&self) -> u64 {
        let database = self.db.read();
        tree_bytes(&database_path(self.directory.path(), database.number))
    }

    /// Throws the database away and begins the next one.
    fn rebuild(&self) {
        match self.begin_anew() {
            Ok(gone) => {
                count(&self.counters.evicted_capacity, gone);
                count(&self.counters.rebuilds, 1);
            }
            Err(error) => tracing::debug!(%error, "sled does not start anew"),
        }
    }

    /// Replaces the database by an empty one and returns how many entries went.
    fn begin_anew(&self) -> Result<u64, DiskError> {
        let mut database = self.db.write();
        let root = self.directory.path();
        let gone = self.entries.lock().clear();
        // The old files go first: on a full disk they are what is in the way.
        remove(root, database.number);
        let number = database.number + 1;
        let fresh = open_database(root, number, self.capacity, self.cache_capacity);
        let db = fresh.map_err(|error| {
            self.broken.store(true, Relaxed);
            count(&self.counters.io_errors, 1);
            remove(root, number);
            match error {
                ::sled::Error::Io(source) => DiskError::io("create", root, source),
                other => DiskError::Engine { op: "create", source: Box::new(other) },
            }
        })?;
        let old = std::mem::replace(&mut *database, Database { db, number });
        self.broken.store(false, Relaxed);
        self.since_check.store(0, Relaxed);
        let Database { db, number } = old;
        // Dropping flushes, which a broken database can only fail at.
        drop(catch_unwind(AssertUnwindSafe(move || drop(db))));
        remove(root, number);
        Ok(gone)
    }
}

impl DiskTier for SledEngine {
    fn put(&self, key: &[u8], value: &[u8], expires_at_ms: u64) -> Result<(), DiskError> {
        let len = (HEADER_LEN + key.len()) as u64 + value.len() as u64;
        let max = self.capacity / 16;
        if len > max {
            count(&self.counters.too_large, 1);
            self.remove(key)?;
            return Err(DiskError::TooLarge { len, max });
        }
        let hash = self.hash(key);
        let result = {
            let database = self.db.read();
            let _turn = self.stripe(hash).lock();
            let seq = {
                let mut entries = self.entries.lock();
                entries.next_seq += 1;
                entries.next_seq
            };
            let record = encode(hash, seq, expires_at_ms, key, value);
            let put = self
                .call("put", &database.db, |db| db.insert(hash.to_be_bytes(), record).map(drop));
            let put = put.and_then(|()| match self.fsync {
                Fsync::Always => self.call("sync", &database.db, |db| db.flush().map(drop)),
                _ => Ok(()),
            });
            let mut entries = self.entries.lock();
            let replaced = match put {
                Ok(()) => entries.insert(hash, Entry { seq, len, expires_at_ms }),
                // Which value sled has now is unknown, so the key has none.
                Err(_) => {
                    count(&self.counters.dropped_writes, 1);
                    entries.remove(hash)
                }
            };
            count(&self.counters.replaced, u64::from(replaced.is_some()));
            put
        };
        count(&self.counters.bytes_written, len);
        count(&self.since_check, len);
        self.hold_bounds();
        result
    }

    fn get(&self, key: &[u8], now_ms: u64) -> Result<Option<Bytes>, DiskError> {
        let hash = self.hash(key);
        loop {
            let Some(entry) = self.entries.lock().by_hash.get(&hash).copied() else {
                return Ok(None);
            };
            if entry.expired(now_ms) {
                let removed = self.remove_entry(hash, Some(entry.seq))?;
                count(&self.counters.evicted_expired, u64::from(removed));
                return Ok(None);
            }
            let record = {
                let database = self.db.read();
                self.call("get", &database.db, |db| db.get(hash.to_be_bytes()))?
            };
            match record.as_ref().and_then(|record| decode(hash, record)) {
                Some(found) if found.seq == entry.seq => {
                    let same = found.key == key;
                    return Ok(same.then(|| Bytes::copy_from_slice(found.value)));
                }
                // Another thread has just put or removed it, and says so in `entries` in a moment.
                _ if !self.settled(hash, entry.seq) => {}
                _ => {
                    if self.remove_entry(hash, Some(entry.seq))? {
                        count(&self.counters.corrupt, 1);
                    }
                    return Ok(None);
                }
            }
        }
    }

    fn remove(&self, key: &[u8]) -> Result<bool, DiskError> {
        let removed = self.remove_entry(self.hash(key), None)?;
        count(&self.counters.removed, u64::from(removed));
        if removed && self.fsync == Fsync::Always {
            self.flush()?;
        }
        Ok(removed)
    }

    fn contains(&self, key: &[u8]) -> bool {
        self.entries.lock().by_hash.contains_key(&self.hash(key))
    }

    fn remove_expired(&self, now_ms: u64) -> Result<usize, DiskError> {
        let expired: Vec<(u64, u64)> = self
            .entries
            .lock()
            .by_hash
            .iter()
            .filter(|(_, entry)| entry.expired(now_ms))
            .map(|(hash, entry)| (*hash, entry.seq))
            .collect();
        let mut removed = 0;
        for (hash, seq) in expired {
            removed += usize::from(self.remove_entry(hash, Some(seq))?);
        }
        count(&self.counters.evicted_expired, removed as u64);
        Ok(removed)
    }

    fn clear(&self) -> Result<(), DiskError> {
        let cleared = self.begin_anew()?;
        count(&self.counters.cleared, cleared);
        Ok(())
    }

    fn flush(&self) -> Result<(), DiskError> {
        let flushed = {
            let database = self.db.read();
            self.call("flush", &database.db, |db| db.flush().map(drop))
        };
        count(&self.counters.syncs, 1);
        if self.broken.load(Relaxed) {
            self.rebuild();
        } else {
            self.hold_bounds();
        }
        flushed
    }

    fn stats(&self) -> DiskEngineStats {
        let (entries, live_bytes) = {
            let entries = self.entries.lock();
            (entries.by_hash.len() as u64, entries.live_bytes)
        };
        let c = &self.counters;
        DiskEngineStats {
            entries,
            live_bytes,
            disk_bytes: self.disk_bytes(),
            capacity_bytes: self.capacity,
            evicted_capacity: c.evicted_capacity.load(Relaxed),
            evicted_expired: c.evicted_expired.load(Relaxed),
            replaced: c.replaced.load(Relaxed),
            removed: c.removed.load(Relaxed),
            cleared: c.cleared.load(Relaxed),
            corrupt: c.corrupt.load(Relaxed),
            dropped_at_open: 0,
            io_errors: c.io_errors.load(Relaxed),
            dropped_writes: c.dropped_writes.load(Relaxed),
            too_large: c.too_large.load(Relaxed),
            bytes_written: c.bytes_written.load(Relaxed),
            syncs: c.syncs.load(Relaxed),
            rebuilds: c.rebuilds.load(Relaxed),
            ..DiskEngineStats::default()
        }
    }
}

impl SledEngine {
    /// Waits for a writer of this key to finish, then tells whether the entry is still the same.
    fn settled(&self, hash: u64, seq: u64) -> bool {
        let _turn = self.stripe(hash).lock();
        self.entries.lock().is_current(hash, seq)
    }
}

impl Drop for SledEngine {
    /// Flushes, so that closing in good order loses nothing; a failure has nobody left to tell.
    fn drop(&mut self) {
        let database = self.db.read();
        let _ = guarded(|| database.db.flush());
    }
}

impl fmt::Debug for SledEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path: &Path = self.directory.path();
        f.debug_struct("SledEngine").field("path", &path).finish_non_exhaustive()
    }
}

struct Record<'a> {
    seq: u64,
    expires_at_ms: u64,
    key: &'a [u8],
    value: &'a [u8],
}

fn encode(hash: u64, seq: u64, expires_at_ms: u64, key: &[u8], value: &[u8]) -> Vec<u8> {
    let mut record = Vec::with_capacity(HEADER_LEN + key.len() + value.len());
    record.push(RECORD_VERSION);
    record.extend_from_slice(&seq.to_le_bytes());
    record.extend_from_slice(&expires_at_ms.to_le_bytes());
    record.extend_from_slice(&(key.len() as u32).to_le_bytes());
    record.extend_from_slice(&[0; 4]);
    record.extend_from_slice(key);
    record.extend_from_slice(value);
    let crc = checksum(hash, &record);
    record[CRC_AT..HEADER_LEN].copy_from_slice(&crc.to_le_bytes());
    record
}

fn decode(hash: u64, record: &[u8]) -> Option<Record<'_>> {
    let (header, body) = record.split_first_chunk::<HEADER_LEN>()?;
    let u64_at = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("8 bytes"));
    let u32_at = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("4 bytes"));
    if header[0] != RECORD_VERSION || u32_at(CRC_AT) != checksum(hash, record) {
        return None;
    }
    let (key, value) = body.split_at_checked(u32_at(17) as usize)?;
    Some(Record { seq: u64_at(1), expires_at_ms: u64_at(9), key, value })
}

fn checksum(hash: u64, record: &[u8]) -> u32 {
    let crc = crc32c::crc32c(&hash.to_be_bytes());
    let crc = crc32c::crc32c_append(crc, &record[..CRC_AT]);
    crc32c::crc32c_append(crc, &record[HEADER_LEN..])
}

/// Rebuilds the entries from sled, removes damaged records and counts them.
fn read_all(db: &Db) -> ::sled::Result<(Entries, u64)> {
    guarded(|| {
        let mut entries = Entries::default();
        let mut damaged: Vec<IVec> = Vec::new();
        for item in db.iter() {
            let (tree_key, record) = item?;
            let found = <[u8; 8]>::try_from(tree_key.as_ref()).ok().and_then(|bytes| {
                let hash = u64::from_be_bytes(bytes);
                Some((hash, decode(hash, &record)?))
            });
            match found {
                Some((hash, found)) => {
                    let Record { seq, expires_at_ms, .. } = found;
                    let len = record.len() as u64;
                    entries.insert(hash, Entry { seq, len, expires_at_ms });
                }
                None => damaged.push(tree_key),
            }
        }
        for tree_key in &damaged {
            db.remove(tree_key)?;
        }
        Ok((entries, damaged.len() as u64))
    })
}

/// Runs sled, which panics where it meets what it did not expect.
fn guarded<T>(f: impl FnOnce() -> ::sled::Result<T>) -> ::sled::Result<T> {
    catch_unwind(AssertUnwindSafe(f))
        .unwrap_or_else(|_| Err(::sled::Error::ReportableBug("sled panicked".to_owned())))
}

fn database_path(root: &Path, number: u64) -> PathBuf {
    root.join(format!("{PREFIX}{number:016x}"))
}

fn open_database(root: &Path, number: u64, capacity: u64, cache: u64) -> ::sled::Result<Db> {
    // The file grows by whole segments, so a small bound needs small ones.
    let segment = (capacity / 64).next_power_of_two().clamp(1 << 14, 1 << 19);
    let started = Instant::now();
    loop {
        let opened = guarded(|| {
            ::sled::Config::default()
                .path(database_path(root, number))
                .mode(Mode::HighThroughput)
                .cache_capacity(cache)
                .segment_size(segment as usize)
                .flush_every_ms(None)
                .open()
        });
        match opened {
            Err(error) if is_held(&error) && started.elapsed() < RELEASE => {
                thread::sleep(Duration::from_millis(10));
            }
            opened => return opened,
        }
    }
}

/// Whether somebody has the database open. The directory's own lock is held by then, so that is an engine
/// of this process which was dropped, and whose threads have not come to their end yet.
fn is_held(error: &::sled::Error) -> bool {
    matches!(error, ::sled::Error::Io(error) if error.to_string().contains("could not acquire lock"))
}

/// Lists the numbers of the databases in a directory, in order.
fn databases(root: &Path) -> std::io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(root)? {
        let name = entry?.file_name();
        let digits = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        numbers.extend(digits.and_then(|digits| u64::from_str_radix(digits, 16).ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Deletes a database; what cannot be deleted now is deleted at the next opening.
fn remove(root: &Path, number: u64) {
    let _ = std::fs::remove_dir_all(database_path(root, number));
}

/// Adds up what a directory takes on disk.
fn tree_bytes(path: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(path) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => 4096 + tree_bytes(&entry.path()),
            Ok(meta) => allocated(&meta),
            Err(_) => 0,
        })
        .sum()
}

#[cfg(unix)]
fn allocated(meta: &std::fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::blocks(meta) * 512
}

#[cfg(not(unix))]
fn allocated(meta: &std::fs::Metadata) -> u64 {
    meta.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_that_is_still_letting_go_is_waited_for_and_loses_nothing() {
        let directory = tempfile::tempdir().expect("a directory");
        let options = || SledOptions::new(directory.path(), 16 << 20);
        let engine = SledEngine::open(options()).expect("it opens");
        engine.put(b"key", b"value", 0).expect("it is put");
        engine.flush().expect("it is flushed");
        // As a thread of sled's does that has not ended yet.
        let held = engine.db.read().db.clone();
        drop(engine);
        let release = thread::spawn(move || {
            thread::sleep(Duration::from_millis(200));
            drop(held);
        });
        let engine = SledEngine::open(options()).expect("it opens");
        let found = engine.get(b"key", 0).expect("it is read");
        assert_eq!(found.expect("it is there"), &b"value"[..]);
        assert_eq!(engine.stats().rebuilds, 0);
        release.join().expect("it only waits");
    }
}
