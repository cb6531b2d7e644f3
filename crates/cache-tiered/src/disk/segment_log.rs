//! The segment log: the default engine of the disk tier.
//!
//! Values are appended to segment files and found through an index in memory. A put is a copy into a
//! buffer, a get is one read of exactly one record, and each byte is written once.
//!
//! # Writing
//!
//! Records are laid out ([`record`]) in the *active buffer*, which stands for the bytes behind the
//! flushed end of the newest segment, and the index points at them at once. When the buffer is full it
//! is *handed over*: it becomes the *block being written*, a second buffer takes its place, and the
//! thread that met the full buffer writes the block, outside the append lock. Only if the second
//! buffer fills up as well does a put wait for the disk; that is the back-pressure.
//!
//! Locks, in the order in which they are taken; `forward`, which is only ever tried, comes before them:
//!
//! 1. `io`: one thread at a time writes, deletes and syncs files.
//! 2. `tail`: the append lock, over the two buffers. Log order and index order agree because both
//!    change under it.
//! 3. `segments`, then the shards of the index: short, never held across I/O.
//!
//! # Reading
//!
//! The index gives a place. Below the segment's `flushed` mark it is read from the file without any
//! further lock, otherwise copied from a buffer under `tail`. A record that turns out wrong is believed
//! to be damaged only if the index still points to it; else somebody changed the entry, and the reader
//! looks again. A reader that holds a segment may finish reading it although it has been deleted.
//!
//! # Space
//!
//! The oldest segment is deleted as a whole when the next block would not fit. Deletion is strictly in
//! order of age, so a tombstone, which is younger than its victim, never goes before it; the same holds
//! for a value and the older value it replaced. Space of replaced and removed entries comes back with
//! their segment. What was read lately is appended again before that: see [`forward`].
//!
//! # When a write fails
//!
//! The records in both buffers are dropped and counted and the file is cut back to what was flushed;
//! reads go on, and the next block tries again. But a dropped record may have replaced an older one that
//! *is* on disk and must not come back at the next opening. So each buffer remembers the places that its
//! records supersede, and on failure those are marked dead in place, which needs no space. A dead record
//! counts as a tombstone. If even that fails, everything up to that segment is deleted. A log that fills
//! its disk before its capacity frees the oldest segments as soon as nothing in them is alive.
//!
//! # Opening
//!
//! See [`recovery`] and [`checkpoint`]: of a full segment, and of the newest after a close, only a
//! checkpoint is read, 16 bytes for each record; the rest is scanned, about a second per gigabyte.

mod checkpoint;
mod forward;
mod index;
mod newest;
mod offline;
mod record;
mod recovery;
mod segment;

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use bytes::{Buf, Bytes};
use crossbeam_utils::CachePadded;
use parking_lot::{Mutex, MutexGuard, RwLock};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use self::checkpoint::Digest;
use self::forward::Progress;
use self::index::{Index, MAX_RECORD, Slot};
pub use self::offline::{
    BrokenRecord, CheckpointState, CompactError, CompactReport, Damage, SegmentReport, Verdict,
    VerifyReport, compact, verify,
};
use self::record::{HEADER_LEN, Header, Kind, Place};
use self::segment::{AppendError, Segment};
use super::directory::Directory;
use super::engine::{DiskEngineStats, DiskError, DiskTier, Fsync, Newest, OpenError, Visited};

const ENGINE: &str = "segment-log";
/// 1 had no checkpoints: whoever does not know them may leave one behind that is wrong by then.
const FORMAT_VERSION: u32 = 2;

const MIN_CAPACITY: u64 = 1 << 20;
const MIN_SEGMENT: u64 = 16 << 10;
/// So that a record always fits a slot of the index.
const MAX_SEGMENT: u64 = MAX_RECORD - 4096;
/// What the directory and its `FORMAT` take on disk beside the segments.
const OVERHEAD: u64 = 8 << 10;

/// How a [`SegmentLog`] is laid out.
#[derive(Debug, Clone)]
pub struct SegmentLogOptions {
    /// The directory; made if it does not exist. It has to be empty or an earlier one of this engine.
    pub path: PathBuf,
    /// The most bytes that the files may take on disk; at least 1 MiB.
    pub capacity_bytes: u64,
    /// The size of a segment, from 16 KiB to a quarter of the capacity. It is the unit of eviction,
    /// and no entry can be longer.
    ///
    /// By default a 32nd of the capacity, but no more than 64 MiB, or than a 256th where that is
    /// more: so there are never more than a few hundred open files.
    pub segment_bytes: Option<u64>,
    /// The size of each of the two write buffers. Records that are not flushed are lost with the process.
    pub buffer_bytes: usize,
    /// The most entries, which bounds the memory of the index: 40 to 65 bytes each.
    ///
    /// By default one for each 128 bytes of capacity. It is enforced when a block is written, so a
    /// buffer's worth of entries may come on top.
    pub max_entries: Option<u64>,
    /// Segments of fewer bytes get no checkpoint and are scanned at opening; 1 MiB by default.
    pub checkpoint_min_bytes: u32,
    /// The most of a segment, in percent of its bytes, that is copied to the end of the log before it
    /// is evicted, because it was read; 25 by default, 50 at most, 0 for none.
    pub forward_percent: u8,
    /// When written entries are forced onto the medium.
    pub fsync: Fsync,
}

impl SegmentLogOptions {
    /// Describes a log with the default layout.
    pub fn new(path: impl Into<PathBuf>, capacity_bytes: u64) -> Self {
        Self {
            path: path.into(),
            capacity_bytes,
            segment_bytes: None,
            buffer_bytes: 256 << 10,
            max_entries: None,
            checkpoint_min_bytes: 1 << 20,
            forward_percent: 25,
            fsync: Fsync::Never,
        }
    }
}

/// Keeps entries in an append-only log of segments, bounded in bytes, evicting the oldest.
///
/// # Cost
///
/// `put` copies the entry into a buffer under one lock, about a microsecond at 1 KiB; one put per
/// buffer also writes it out. `get` is one `pread` and one allocation. Each entry takes 36 bytes on
/// disk beside key and value, and 40 to 65 bytes of memory.
pub struct SegmentLog {
    directory: Directory,
    capacity: u64,
    segment_bytes: u32,
    buffer_bytes: usize,
    max_entries: u64,
    checkpoint_min: u32,
    forward_percent: u8,
    fsync: Fsync,
    index: Index,
    /// Oldest first; the ids follow each other without a gap.
    segments: RwLock<VecDeque<Arc<Segment>>>,
    tail: CachePadded<Mutex<Tail>>,
    io: CachePadded<Mutex<Io>>,
    forward: Mutex<Progress>,
    /// The latest time that a caller told.
    latest_now_ms: CachePadded<AtomicU64>,
    counters: Counters,
}

/// The end of the log that is not in a file yet.
struct Tail {
    /// The newest segment, which the active buffer belongs to.
    segment: Arc<Segment>,
    /// Where the active buffer will stand in it.
    start: u32,
    buffer: Vec<u8>,
    /// The records of the active buffer.
    digest: Digest,
    superseded: Vec<Superseded>,
    /// The block being written, in front of the active buffer.
    writing: Option<Arc<Block>>,
    spare: Vec<u8>,
    /// Records ever appended.
    appended: u64,
}

impl Tail {
    fn end(&self) -> u32 {
        self.start + self.buffer.len() as u32
    }

    /// Remembers a record that must not come back, unless it goes down with the same buffer.
    fn supersede(&mut self, old: &Slot) {
        if old.segment != self.segment.id as u32 || old.offset < self.start {
            self.superseded.push(Superseded { segment: old.segment, offset: old.offset });
        }
    }
}

/// Full buffer on its way to the file.
struct Block {
    segment: Arc<Segment>,
    start: u32,
    bytes: Vec<u8>,
    digest: Digest,
    superseded: Vec<Superseded>,
    /// [`Tail::appended`] when it was handed over.
    upto: u64,
}

/// The place of a record that a newer one replaced or removed.
struct Superseded {
    segment: u32,
    offset: u32,
}

/// What belongs to the thread that does the I/O of the moment.
struct Io {
    /// Records up to here are written or dropped.
    settled: u64,
    unsynced: Vec<Arc<Segment>>,
    unsynced_names: bool,
    /// What the segment that blocks go to has in its file; `None` where a part of it is not known.
    growing: Option<Growing>,
    last_sync: Instant,
    /// Failures that a `flush` has reported.
    reported: u64,
    last_failure: Option<Failure>,
}

/// The segment that blocks go to, for its checkpoint.
struct Growing {
    id: u64,
    digest: Digest,
    /// How much of it the checkpoint that it has covers.
    checkpointed: u32,
}

struct Failure {
    op: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl Failure {
    fn to_error(&self) -> DiskError {
        let source = match self.source.raw_os_error() {
            Some(code) => io::Error::from_raw_os_error(code),
            None => self.source.kind().into(),
        };
        DiskError::io(self.op, &self.path, source)
    }
}

#[derive(Default)]
struct Counters {
    evicted_capacity: AtomicU64,
    evicted_expired: AtomicU64,
    replaced: CachePadded<AtomicU64>,
    removed: AtomicU64,
    cleared: AtomicU64,
    corrupt: AtomicU64,
    dropped_at_open: AtomicU64,
    io_errors: AtomicU64,
    dropped_writes: AtomicU64,
    too_large: AtomicU64,
    bytes_written: AtomicU64,
    syncs: AtomicU64,
    copied: AtomicU64,
    copied_bytes: AtomicU64,
    checkpoints: AtomicU64,
    scanned_at_open: AtomicU64,
    /// Bytes of the newest segment that no checkpoint covers.
    uncovered_bytes: AtomicU64,
    /// Failed writes and syncs; changes under `io`.
    failures: AtomicU64,
}

fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Relaxed);
}

impl SegmentLog {
    /// Opens a directory, making or recovering it, and holds it until dropped.
    ///
    /// # Errors
    ///
    /// See [`OpenError`]. Nothing is changed in a directory that is not an earlier one of this engine.
    ///
    /// # Cost
    ///
    /// Reads the checkpoints, 16 bytes for each record, and the segments that have none: the newest
    /// after a killed process, all of them in a directory of an earlier version.
    pub fn open(options: SegmentLogOptions) -> Result<Self, OpenError> {
        let capacity = options.capacity_bytes;
        if capacity < MIN_CAPACITY {
            return Err(OpenError::CapacityTooSmall {
                capacity_bytes: capacity,
                min_bytes: MIN_CAPACITY,
            });
        }
        let max_segment = (capacity / 4).min(MAX_SEGMENT);
        let segment_bytes = options
            .segment_bytes
            .unwrap_or_else(|| (capacity / 32).min(64 << 20).max(capacity / 256).min(MAX_SEGMENT));
        if !(MIN_SEGMENT..=max_segment).contains(&segment_bytes) {
            return Err(OpenError::SegmentSize {
                segment_bytes,
                min_bytes: MIN_SEGMENT,
                max_bytes: max_segment,
            });
        }

        let directory = Directory::open(&options.path, ENGINE, FORMAT_VERSION)?;
        let index = Index::new();
        let recovered = recovery::recover(&directory, &index, options.checkpoint_min_bytes)?;
        let mut segments = recovered.segments;
        let newest = match segments.back() {
            Some(newest) => Arc::clone(newest),
            None => {
                let first = Arc::new(Segment::new(directory.path(), 0));
                segments.push_back(Arc::clone(&first));
                first
            }
        };
        let counters = Counters::default();
        count(&counters.corrupt, recovered.corrupt);
        count(&counters.dropped_at_open, recovered.dropped);
        count(&counters.scanned_at_open, recovered.scanned);
        count(&counters.checkpoints, recovered.checkpoints);
        let growing = recovered.newest.map(|(digest, checkpointed)| {
            count(&counters.uncovered_bytes, u64::from(digest.covered - checkpointed));
            Growing { id: newest.id, digest, checkpointed }
        });
        let log = Self {
            capacity,
            segment_bytes: segment_bytes as u32,
            buffer_bytes: options.buffer_bytes.clamp(1, segment_bytes as usize),
            max_entries: options.max_entries.unwrap_or(capacity / 128).max(1),
            checkpoint_min: options.checkpoint_min_bytes,
            forward_percent: options.forward_percent.min(50),
            fsync: options.fsync,
            index,
            segments: RwLock::new(segments),
            tail: CachePadded::new(Mutex::new(Tail {
                start: newest.flushed(),
                segment: newest,
                buffer: Vec::new(),
                digest: Digest::default(),
                superseded: Vec::new(),
                writing: None,
                spare: Vec::new(),
                appended: 0,
            })),
            io: CachePadded::new(Mutex::new(Io {
                settled: 0,
                unsynced: Vec::new(),
                unsynced_names: false,
                growing,
                last_sync: Instant::now(),
                reported: 0,
                last_failure: None,
            })),
            forward: Mutex::default(),
            latest_now_ms: CachePadded::default(),
            counters,
            directory,
        };
        log.fit_capacity();
        Ok(log)
    }

    /// Evicts what a smaller capacity than last time has no room for.
    fn fit_capacity(&self) {
        let mut tail = self.tail.lock();
        if self.segments.read().back().is_some_and(|s| s.disk_bytes() > self.capacity - OVERHEAD) {
            self.advance(&mut tail);
        }
        let newest = tail.segment.id;
        drop(tail);
        self.make_room(0, newest);
    }

    fn hash(&self, key: &[u8]) -> u64 {
        xxh3_64_with_seed(key, self.directory.seed())
    }

    fn place(&self, segment: &Segment, offset: u32) -> Place {
        Place { seed: self.directory.seed(), segment: segment.id, offset }
    }

    fn segment(&self, low_id: u32) -> Option<Arc<Segment>> {
        let segments = self.segments.read();
        let first = segments.front()?.id as u32;
        segments.get(low_id.wrapping_sub(first) as usize).cloned()
    }
}

/// Appending.
impl SegmentLog {
    /// Locks the tail with room for a record, and tells whether the caller owes a write.
    ///
    /// A caller that owes a write has handed a block over and has to call `write_pending` once the
    /// lock is released. If it does not get to it, whoever fills the next buffer does.
    fn tail_with_room(&self, len: u32) -> (MutexGuard<'_, Tail>, bool) {
        let mut owes_write = false;
        loop {
            let mut tail = self.tail.lock();
            // A segment takes any record at its beginning, and so does an empty buffer.
            let fits_segment = len <= self.segment_bytes.saturating_sub(tail.end());
            let fits = fits_segment && tail.buffer.len() + len as usize <= self.buffer_bytes;
            if !fits && !tail.buffer.is_empty() {
                if tail.writing.is_some() {
                    drop(tail);
                    self.write_pending();
                    continue;
                }
                self.hand_over(&mut tail);
                owes_write = true;
            }
            if !fits_segment {
                self.advance(&mut tail);
            }
            return (tail, owes_write);
        }
    }

    /// Makes the active buffer the block being written. There is none yet.
    fn hand_over(&self, tail: &mut Tail) {
        debug_assert!(tail.writing.is_none());
        let spare = std::mem::take(&mut tail.spare);
        let bytes = std::mem::replace(&mut tail.buffer, spare);
        let start = tail.start;
        tail.start += bytes.len() as u32;
        tail.writing = Some(Arc::new(Block {
            segment: Arc::clone(&tail.segment),
            start,
            bytes,
            digest: tail.digest.take(),
            superseded: std::mem::take(&mut tail.superseded),
            upto: tail.appended,
        }));
    }

    /// Begins the next segment. The active buffer is empty.
    fn advance(&self, tail: &mut Tail) {
        debug_assert!(tail.buffer.is_empty());
        tail.segment.seal();
        let next = Arc::new(Segment::new(self.directory.path(), tail.segment.id + 1));
        self.segments.write().push_back(Arc::clone(&next));
        tail.segment = next;
        tail.start = 0;
    }

    /// Lays a record out behind the active buffer's end and returns its offset in the segment.
    fn append(&self, tail: &mut Tail, header: &Header, key: &[u8], value: &[u8]) -> u32 {
        let offset = tail.end();
        if tail.buffer.capacity() == 0 {
            tail.buffer.reserve_exact(self.buffer_bytes);
        }
        let bytes = header.encode(self.place(&tail.segment, offset));
        tail.digest.push(header, &bytes, header.kind == Kind::Put);
        tail.buffer.extend_from_slice(&bytes);
        tail.buffer.extend_from_slice(key);
        tail.buffer.extend_from_slice(value);
        tail.appended += 1;
        offset
    }

    /// Does what is due after the append of record number `seq`, without the lock.
    fn settle(&self, owes_write: bool, seq: u64, failures_before: u64) -> Result<(), DiskError> {
        if owes_write {
            self.write_pending();
            self.forward();
        }
        if self.fsync != Fsync::Always {
            return Ok(());
        }
        let mut io = self.io.lock();
        self.write_through(&mut io, seq);
        self.sync(&mut io);
        // A failure of somebody else's record may be reported too: then nothing is promised.
        self.check_failures(&io, failures_before)
    }

    fn check_failures(&self, io: &Io, before: u64) -> Result<(), DiskError> {
        match &io.last_failure {
            Some(failure) if self.counters.failures.load(Relaxed) != before => {
                Err(failure.to_error())
            }
            _ => Ok(()),
        }
    }
}

/// Writing blocks, and room for them.
impl SegmentLog {
    fn write_pending(&self) {
        let mut io = self.io.lock();
        self.write_block(&mut io);
        if let Fsync::Every(interval) = self.fsync
            && io.last_sync.elapsed() >= interval
        {
            self.sync(&mut io);
        }
    }

    /// Writes blocks until record number `target` is in a file or dropped.
    fn write_through(&self, io: &mut Io, target: u64) {
        while io.settled < target {
            let mut tail = self.tail.lock();
            if tail.writing.is_none() {
                if tail.buffer.is_empty() {
                    io.settled = tail.appended;
                    return;
                }
                self.hand_over(&mut tail);
            }
            drop(tail);
            self.write_block(io);
        }
    }

    /// Writes the block that was handed over, if there is one.
    fn write_block(&self, io: &mut Io) {
        let Some(block) = self.tail.lock().writing.clone() else { return };
        if io.growing.as_ref().is_some_and(|growing| growing.id != block.segment.id) {
            self.checkpoint(io);
            io.growing = None;
        }
        self.make_room(block.bytes.len() as u64, block.segment.id);
        let is_new = block.start == 0;
        if let Err(error) = block.segment.append(&block.bytes) {
            self.drop_unwritten(io, &block, error);
            return;
        }
        count(&self.counters.bytes_written, block.bytes.len() as u64);
        self.follow(io, &block);
        if self.fsync != Fsync::Never {
            io.unsynced_names |= is_new;
            if io.unsynced.last().is_none_or(|last| last.id != block.segment.id) {
                io.unsynced.push(Arc::clone(&block.segment));
            }
        }
        io.settled = block.upto;
        let mut tail = self.tail.lock();
        tail.writing = None;
        // A reader may still hold the block; then the next buffer is allocated anew.
        if let Ok(block) = Arc::try_unwrap(block)
            && block.bytes.capacity() <= 2 * self.buffer_bytes
        {
            tail.spare = block.bytes;
            tail.spare.clear();
        }
    }

    /// Remembers what a block did, for the checkpoint of its segment.
    fn follow(&self, io: &mut Io, block: &Block) {
        count(&self.counters.uncovered_bytes, block.bytes.len() as u64);
        if block.start == 0 {
            let digest = Digest::default();
            io.growing = Some(Growing { id: block.segment.id, digest, checkpointed: 0 });
        }
        match &mut io.growing {
            Some(growing)
                if growing.id == block.segment.id && growing.digest.covered == block.start =>
            {
                growing.digest.extend(&block.digest);
            }
            // Some of its records are not known; it will be scanned.
            growing => *growing = None,
        }
    }

    /// Writes the checkpoint of the growing segment, unless it is too short or gone or has one.
    ///
    /// A failure is counted and costs nothing but a scan of that segment at the next opening.
    fn checkpoint(&self, io: &mut Io) {
        let Some(Growing { id, digest, checkpointed }) = &mut io.growing else { return };
        let segment = self.segment(*id as u32).filter(|segment| segment.id == *id);
        let Some(segment) = segment.filter(|segment| {
            digest.covered == segment.flushed()
                && digest.covered >= self.checkpoint_min.max(1)
                && digest.covered > *checkpointed
                && !segment.is_touched()
        }) else {
            return;
        };
        let sync = self.fsync != Fsync::Never;
        let written = segment
            .drop_checkpoint()
            .map(|()| self.make_room(digest.file_len(), segment.id))
            .and_then(|()| digest.write(self.directory.seed(), segment.id, &segment.path, sync))
            .and_then(|()| segment.has_checkpoint(digest.file_len()));
        match written {
            Ok(stands) => {
                io.unsynced_names |= sync;
                count(&self.counters.bytes_written, digest.file_len());
                count(&self.counters.checkpoints, u64::from(stands));
                self.counters.uncovered_bytes.store(0, Relaxed);
                *checkpointed = digest.covered;
            }
            Err(error) => {
                tracing::debug!(path = %segment.path.display(), %error, "no checkpoint was written");
                count(&self.counters.io_errors, 1);
            }
        }
    }

    /// Evicts the oldest segments until `incoming` bytes fit; never segment `keep` or a newer one.
    fn make_room(&self, incoming: u64, keep: u64) {
        loop {
            let (used, oldest) = {
                let segments = self.segments.read();
                let used: u64 = segments.iter().map(|s| s.disk_bytes()).sum();
                (used, segments.front().map(|s| s.id))
            };
            let fits = used + incoming.next_multiple_of(4096) <= self.capacity - OVERHEAD
                && self.index.size().0 <= self.max_entries;
            if fits || oldest.is_none_or(|oldest| oldest >= keep) {
                return;
            }
            self.evict_oldest();
        }
    }

    fn evict_oldest(&self) {
        let Some(segment) = self.segments.write().pop_front() else { return };
        if segment.unlink().is_err() {
            // It keeps its space. At the next opening it is either still the oldest, and right, or
            // a newer one is missing, and it goes.
            count(&self.counters.io_errors, 1);
        }
        let mut evicted = 0;
        for hash in segment.take_hashes() {
            let purged = self.index.remove_if(hash, |slot| slot.segment == segment.id as u32);
            evicted += u64::from(purged.is_some());
        }
        count(&self.counters.evicted_capacity, evicted);
    }

    /// Deletes the oldest segments before `keep` as long as nothing in them can be found any more.
    fn reclaim_dead(&self, keep: u64) {
        loop {
            let oldest = self.segments.read().front().map(Arc::clone);
            let Some(oldest) = oldest.filter(|oldest| oldest.id < keep) else { return };
            let alive = |hash| self.index.get(hash).is_some_and(|s| s.segment == oldest.id as u32);
            if oldest.any_hash(alive) {
                return;
            }
            self.evict_oldest();
        }
    }

    /// Syncs what was written since the last time.
    fn sync(&self, io: &mut Io) {
        io.last_sync = Instant::now();
        let segments = std::mem::take(&mut io.unsynced);
        if segments.is_empty() && !io.unsynced_names {
            return;
        }
        for segment in segments {
            if let Err(source) = segment.sync() {
                self.note_failure(io, Failure { op: "sync", path: segment.path.clone(), source });
            }
        }
        if std::mem::take(&mut io.unsynced_names)
            && let Err(source) = self.directory.sync()
        {
            let path = self.directory.path().to_owned();
            self.note_failure(io, Failure { op: "sync", path, source });
        }
        count(&self.counters.syncs, 1);
    }

    fn note_failure(&self, io: &mut Io, failure: Failure) {
        count(&self.counters.io_errors, 1);
        count(&self.counters.failures, 1);
        io.last_failure = Some(failure);
    }
}

/// When a write failed.
impl SegmentLog {
    /// Drops the block that could not be written and the active buffer behind it.
    fn drop_unwritten(&self, io: &mut Io, block: &Block, error: AppendError) {
        tracing::debug!(path = %block.segment.path.display(), error = %error.source, "write failed");
        let mut tail = self.tail.lock();
        let tail = &mut *tail;
        tail.writing = None;
        let buffer = std::mem::take(&mut tail.buffer);
        let superseded = std::mem::take(&mut tail.superseded);
        let dropped = self.forget_records(&block.segment, block.start, &block.bytes)
            + self.forget_records(&tail.segment, tail.start, &buffer);
        count(&self.counters.dropped_writes, dropped);
        tail.buffer = buffer;
        tail.buffer.clear();
        tail.digest.clear();

        // The log ends again where the file does.
        {
            let mut segments = self.segments.write();
            while segments.back().is_some_and(|newest| newest.id >= block.segment.id) {
                segments.pop_back();
            }
            tail.segment = if block.segment.flushed() > 0 {
                Arc::clone(&block.segment)
            } else {
                if block.segment.unlink().is_err() {
                    count(&self.counters.io_errors, 1);
                }
                Arc::new(Segment::new(self.directory.path(), block.segment.id))
            };
            tail.start = tail.segment.flushed();
            segments.push_back(Arc::clone(&tail.segment));
        }
        if !error.cut && tail.start > 0 {
            self.delete_through(tail, block.segment.id as u32);
        }
        for old in block.superseded.iter().chain(&superseded) {
            let Some(segment) = self.segment(old.segment) else { continue };
            if segment.mark_dead(old.offset).is_err() {
                count(&self.counters.io_errors, 1);
                self.delete_through(tail, old.segment);
            }
        }
        self.reclaim_dead(tail.segment.id);
        io.settled = tail.appended;
        let path = block.segment.path.clone();
        self.note_failure(io, Failure { op: error.op, path, source: error.source });
    }

    /// Takes the records of a buffer out of the index and returns how many records there were.
    fn forget_records(&self, segment: &Segment, start: u32, buffer: &[u8]) -> u64 {
        let mut records = 0;
        let mut at = 0;
        while let Some(header) =
            Header::decode(&buffer[at..], self.place(segment, start + at as u32))
        {
            let offset = start + at as u32;
            self.index.remove_if(header.hash, |slot| {
                slot.segment == segment.id as u32 && slot.offset == offset
            });
            records += 1;
            at += header.record_len() as usize;
        }
        records
    }

    /// Deletes all segments up to the one with this id; the buffers are empty.
    fn delete_through(&self, tail: &mut Tail, low_id: u32) {
        let Some(last) = self.segment(low_id) else { return };
        if tail.segment.id <= last.id {
            self.advance(tail);
        }
        while self.segments.read().front().is_some_and(|oldest| oldest.id <= last.id) {
            self.evict_oldest();
        }
    }
}

/// What a reader found at a place.
enum Found {
    /// The bytes of the record, to be checked against the segment they were read from.
    Bytes(u64, Vec<u8>),
    /// The segment is gone, or the place has just moved from a buffer to the file.
    Moved,
    /// The file ends too early.
    Missing,
}

/// Reading.
impl SegmentLog {
    fn read(&self, slot: &Slot) -> Result<Found, DiskError> {
        let Some(segment) = self.segment(slot.segment) else { return Ok(Found::Moved) };
        if slot.offset + slot.len <= segment.flushed() {
            return match segment.read(slot.len, slot.offset) {
                Ok(bytes) => Ok(Found::Bytes(segment.id, bytes)),
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(Found::Missing),
                Err(e) => {
                    count(&self.counters.io_errors, 1);
                    Err(DiskError::io("read", &segment.path, e))
                }
            };
        }
        let copy = |start: u32, bytes: &[u8]| {
            let from = slot.offset.checked_sub(start)? as usize;
            let bytes = bytes.get(from..from + slot.len as usize)?;
            Some(Found::Bytes(segment.id, bytes.to_vec()))
        };
        let tail = self.tail.lock();
        if tail.segment.id == segment.id && slot.offset >= tail.start {
            return Ok(copy(tail.start, &tail.buffer).unwrap_or(Found::Moved));
        }
        let Some(block) = tail.writing.clone() else { return Ok(Found::Moved) };
        drop(tail);
        if block.segment.id != segment.id {
            return Ok(Found::Moved);
        }
        Ok(copy(block.start, &block.bytes).unwrap_or(Found::Moved))
    }

    /// Returns the header of a record that was read, if it is the one that the slot means and whole.
    fn verify(&self, slot: &Slot, segment: u64, bytes: &[u8]) -> Option<Header> {
        let place = Place { seed: self.directory.seed(), segment, offset: slot.offset };
        Header::decode(bytes, place).filter(|header| {
            header.live
                && header.kind == Kind::Put
                && header.hash == slot.hash
                && header.record_len() == bytes.len() as u64
                && header.matches(&bytes[HEADER_LEN..])
        })
    }

    /// Remembers the time that callers have reached, for what has expired not to be copied.
    fn learn_time(&self, now_ms: u64) {
        // Relaxed: an earlier time copies an entry that expires on its own.
        if self.latest_now_ms.load(Relaxed) < now_ms {
            self.latest_now_ms.fetch_max(now_ms, Relaxed);
        }
    }

    /// Takes out an entry that is damaged, on disk as well, and tells whether it was still current.
    fn discard_damaged(&self, slot: &Slot, in_file: bool) -> bool {
        if self.index.remove_if(slot.hash, |current| current == slot).is_none() {
            return false;
        }
        count(&self.counters.corrupt, 1);
        // Should it be legible again at the next opening, it would undo what happens until then.
        if in_file
            && let Some(segment) = self.segment(slot.segment)
            && segment.mark_dead(slot.offset).is_err()
        {
            count(&self.counters.io_errors, 1);
        }
        true
    }
}

impl DiskTier for SegmentLog {
    fn put(&self, key: &[u8], value: &[u8], expires_at_ms: u64) -> Result<(), DiskError> {
        let len = (HEADER_LEN + key.len()) as u64 + value.len() as u64;
        if len > u64::from(self.segment_bytes) {
            count(&self.counters.too_large, 1);
            self.remove(key)?;
            return Err(DiskError::TooLarge { len, max: u64::from(self.segment_bytes) });
        }
        let len = len as u32;
        let hash = self.hash(key);
        let header = Header::put(hash, key, value, expires_at_ms);
        let failures = self.counters.failures.load(Relaxed);

        let (mut tail, owes_write) = self.tail_with_room(len);
        let offset = self.append(&mut tail, &header, key, value);
        let segment = tail.segment.id as u32;
        let expires_s = Slot::expiry(expires_at_ms);
        let replaced = self.index.insert(Slot { hash, segment, offset, len, expires_s });
        if let Some(old) = &replaced {
            tail.supersede(old);
        }
        if replaced.is_none_or(|old| old.segment != segment) {
            tail.segment.note(hash);
        }
        let seq = tail.appended;
        drop(tail);

        count(&self.counters.replaced, u64::from(replaced.is_some()));
        self.settle(owes_write, seq, failures)
    }

    fn get(&self, key: &[u8], now_ms: u64) -> Result<Option<Bytes>, DiskError> {
        self.learn_time(now_ms);
        let hash = self.hash(key);
        let mut previous = None;
        loop {
            let Some(slot) = self.index.get_to_read(hash) else { return Ok(None) };
            let expire = || {
                let removed = self.index.remove_if(hash, |current| *current == slot);
                count(&self.counters.evicted_expired, u64::from(removed.is_some()));
                Ok(None)
            };
            if slot.expired(now_ms) {
                return expire();
            }
            let (segment, bytes) = match self.read(&slot)? {
                Found::Bytes(segment, bytes) => (segment, bytes),
                Found::Missing => (0, Vec::new()),
                Found::Moved => {
                    // Twice with the same slot: its segment is being evicted.
                    if previous == Some(slot) && self.segment(slot.segment).is_none() {
                        return Ok(None);
                    }
                    previous = Some(slot);
                    continue;
                }
            };
            let Some(header) = self.verify(&slot, segment, &bytes) else {
                if self.discard_damaged(&slot, !bytes.is_empty()) {
                    return Ok(None);
                }
                continue;
            };
            let value_at = HEADER_LEN + header.key_len as usize;
            if &bytes[HEADER_LEN..value_at] != key {
                return Ok(None);
            }
            if header.expires_at_ms != 0 && header.expires_at_ms <= now_ms {
                return expire();
            }
            let mut value = Bytes::from(bytes);
            value.advance(value_at);
            return Ok(Some(value));
        }
    }

    fn remove(&self, key: &[u8]) -> Result<bool, DiskError> {
        let hash = self.hash(key);
        if self.index.get(hash).is_none() {
            return Ok(false);
        }
        let failures = self.counters.failures.load(Relaxed);
        let (mut tail, owes_write) = self.tail_with_room(HEADER_LEN as u32);
        let removed = self.index.remove_if(hash, |_| true);
        if let Some(old) = &removed {
            self.append(&mut tail, &Header::tombstone(hash), &[], &[]);
            tail.supersede(old);
            count(&self.counters.removed, 1);
        }
        let seq = tail.appended;
        drop(tail);
        self.settle(owes_write, seq, failures)?;
        Ok(removed.is_some())
    }

    fn contains(&self, key: &[u8]) -> bool {
        self.index.get(self.hash(key)).is_some()
    }

    fn remove_expired(&self, now_ms: u64) -> Result<usize, DiskError> {
        self.learn_time(now_ms);
        let removed = self.index.remove_expired(now_ms);
        count(&self.counters.evicted_expired, removed as u64);
        let _io = self.io.lock();
        let keep = {
            let tail = self.tail.lock();
            tail.writing.as_ref().map_or(tail.segment.id, |block| block.segment.id)
        };
        self.reclaim_dead(keep);
        Ok(removed)
    }

    fn clear(&self) -> Result<(), DiskError> {
        let mut io = self.io.lock();
        let mut tail = self.tail.lock();
        tail.writing = None;
        tail.buffer.clear();
        tail.digest.clear();
        tail.superseded.clear();
        let next = Arc::new(Segment::new(self.directory.path(), tail.segment.id + 1));
        let old =
            std::mem::replace(&mut *self.segments.write(), VecDeque::from([Arc::clone(&next)]));
        tail.segment = next;
        tail.start = 0;
        io.settled = tail.appended;
        count(&self.counters.cleared, self.index.clear() as u64);
        drop(tail);

        io.unsynced.clear();
        io.growing = None;
        self.counters.uncovered_bytes.store(0, Relaxed);
        let mut failed = None;
        for segment in old {
            if let Err(source) = segment.unlink() {
                count(&self.counters.io_errors, 1);
                failed = Some(DiskError::io("delete", &segment.path, source));
            }
        }
        if self.fsync != Fsync::Never
            && let Err(source) = self.directory.sync()
        {
            failed = Some(DiskError::io("sync", self.directory.path(), source));
        }
        failed.map_or(Ok(()), Err)
    }

    fn visit_newest(
        &self,
        wanted: Newest,
        now_ms: u64,
        each: &mut dyn FnMut(Visited<'_>) -> ControlFlow<()>,
    ) -> Result<(), DiskError> {
        self.show_newest(wanted, now_ms, each)
    }

    fn flush(&self) -> Result<(), DiskError> {
        let mut io = self.io.lock();
        let target = self.tail.lock().appended;
        self.write_through(&mut io, target);
        let due = match self.fsync {
            Fsync::Never => false,
            Fsync::Every(interval) => io.last_sync.elapsed() >= interval,
            Fsync::Always => true,
        };
        if due {
            self.sync(&mut io);
        }
        let result = self.check_failures(&io, io.reported);
        io.reported = self.counters.failures.load(Relaxed);
        result
    }

    fn stats(&self) -> DiskEngineStats {
        let (entries, live_bytes) = self.index.size();
        let c = &self.counters;
        let segments = self.segments.read().iter().map(|s| s.disk_bytes()).sum::<u64>();
        DiskEngineStats {
            entries,
            live_bytes,
            disk_bytes: OVERHEAD + segments,
            capacity_bytes: self.capacity,
            evicted_capacity: c.evicted_capacity.load(Relaxed),
            evicted_expired: c.evicted_expired.load(Relaxed),
            replaced: c.replaced.load(Relaxed),
            removed: c.removed.load(Relaxed),
            cleared: c.cleared.load(Relaxed),
            corrupt: c.corrupt.load(Relaxed),
            dropped_at_open: c.dropped_at_open.load(Relaxed),
            io_errors: c.io_errors.load(Relaxed),
            dropped_writes: c.dropped_writes.load(Relaxed),
            too_large: c.too_large.load(Relaxed),
            bytes_written: c.bytes_written.load(Relaxed),
            syncs: c.syncs.load(Relaxed),
            copied_forward: c.copied.load(Relaxed),
            copied_forward_bytes: c.copied_bytes.load(Relaxed),
            checkpoints: c.checkpoints.load(Relaxed),
            scanned_at_open_bytes: c.scanned_at_open.load(Relaxed),
            // What was never covered, because segments are short, leaves with its segment.
            uncovered_bytes: c.uncovered_bytes.load(Relaxed).min(segments),
            rebuilds: 0,
        }
    }
}

impl Drop for SegmentLog {
    /// Flushes, so that closing in good order loses nothing, and writes the newest segment's
    /// checkpoint; a failure has nobody left to tell.
    fn drop(&mut self) {
        let mut io = self.io.lock();
        let target = self.tail.lock().appended;
        self.write_through(&mut io, target);
        self.checkpoint(&mut io);
        if self.fsync != Fsync::Never {
            self.sync(&mut io);
        }
    }
}

impl fmt::Debug for SegmentLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path: &Path = self.directory.path();
        f.debug_struct("SegmentLog").field("path", &path).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
