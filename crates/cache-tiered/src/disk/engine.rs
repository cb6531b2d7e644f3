//! The seam of the disk tier: what an engine has to do, and how it may fail.
//!
//! An engine is synchronous. It is called by the I/O threads of the tier, many at once, and never by
//! an async worker; it starts no threads of its own. It is a cache: it may forget any entry at any
//! time, but what it returns is what was put last under that key, byte for byte, and nothing that
//! was replaced, removed or has expired comes back, not even through a restart.

use std::fmt;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;

/// Stores bytes by key on a local disk, within a bound in bytes.
///
/// Times are milliseconds since the Unix epoch and come from the caller; an expiry of 0 means never.
pub trait DiskTier: Send + Sync + 'static {
    /// Stores a value, replacing the one under the same key.
    ///
    /// An expiry of 0 means that the entry does not expire. `Ok` means accepted, not flushed:
    /// a buffered entry that later cannot be written is dropped and counted in
    /// [`DiskEngineStats::dropped_writes`], and the next [`flush`](Self::flush) says so.
    ///
    /// # Errors
    ///
    /// [`DiskError::TooLarge`] for an entry that can never fit. The value that was there before is
    /// gone then too, since it is out of date.
    fn put(&self, key: &[u8], value: &[u8], expires_at_ms: u64) -> Result<(), DiskError>;

    /// Reads a value; key and checksum are verified.
    ///
    /// An expired entry is a miss and is removed. So is a damaged one, which is counted in
    /// [`DiskEngineStats::corrupt`].
    ///
    /// # Errors
    ///
    /// [`DiskError::Io`] if the disk could not be read; the entry stays.
    fn get(&self, key: &[u8], now_ms: u64) -> Result<Option<Bytes>, DiskError>;

    /// Removes an entry for good and tells whether there was one.
    ///
    /// # Errors
    ///
    /// What [`put`](Self::put) can fail with.
    fn remove(&self, key: &[u8]) -> Result<bool, DiskError>;

    /// Tells from memory alone whether there may be an entry.
    ///
    /// `false` is certain. `true` can be wrong for an expired or damaged entry, and for a key whose
    /// 64-bit hash equals that of a stored one.
    fn contains(&self, key: &[u8]) -> bool;

    /// Removes the entries that have expired and returns how many they were.
    ///
    /// The index knows expiries to the second, rounded up, so the last ones may stay a second longer.
    ///
    /// # Errors
    ///
    /// What the engine's store fails with.
    fn remove_expired(&self, now_ms: u64) -> Result<usize, DiskError>;

    /// Removes every entry and gives the space back.
    ///
    /// # Errors
    ///
    /// [`DiskError::Io`] if a file could not be deleted; its entries are gone until the next open.
    fn clear(&self) -> Result<(), DiskError>;

    /// Shows the newest entries, the older of them first, and writes nothing.
    ///
    /// Left out are entries that have expired, were replaced or removed, are damaged, or were put so
    /// lately that they are not flushed. `each` ends the visit by breaking it off. An engine that does
    /// not know in which order its entries were written shows none, and does not have this method.
    ///
    /// # Errors
    ///
    /// [`DiskError::Io`] if the disk could not be read.
    fn visit_newest(
        &self,
        wanted: Newest,
        now_ms: u64,
        each: &mut dyn FnMut(Visited<'_>) -> ControlFlow<()>,
    ) -> Result<(), DiskError> {
        let _ = (wanted, now_ms, each);
        Ok(())
    }

    /// Hands everything put so far to the operating system, and syncs where the policy asks for it.
    ///
    /// After `Ok`, the entries put before the call survive a `kill -9` of this process.
    ///
    /// # Errors
    ///
    /// [`DiskError::Full`] or [`DiskError::Io`] if any write since the last `flush` failed. Those
    /// entries are dropped; later ones are tried again.
    fn flush(&self) -> Result<(), DiskError>;

    /// Returns the counters and sizes of this moment.
    fn stats(&self) -> DiskEngineStats;
}

/// How much [`DiskTier::visit_newest`] shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Newest {
    /// The most entries.
    pub entries: u64,
    /// The most bytes of entries as they are stored, their keys and headers included.
    pub bytes: u64,
}

/// An entry that [`DiskTier::visit_newest`] shows.
#[derive(Clone, Copy)]
pub struct Visited<'a> {
    /// The key.
    pub key: &'a [u8],
    /// The value.
    pub value: &'a [u8],
    /// The expiry, 0 for none.
    pub expires_at_ms: u64,
    /// What the entry takes where it is stored, its key and header included.
    pub bytes: u64,
    /// What all that will be shown takes, as far as is known.
    pub total_bytes: u64,
    /// Tells whether this is still what the key has.
    pub is_current: &'a dyn Fn() -> bool,
}

impl fmt::Debug for Visited<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Visited").field("key", &self.key).finish_non_exhaustive()
    }
}

/// When written entries are forced onto the medium.
///
/// Whatever the policy, flushed entries survive the death of the process; it is about power loss.
/// After a power loss entries may be missing, but none is wrong: each carries its checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fsync {
    /// Leaves it to the operating system.
    #[default]
    Never,
    /// Syncs when this much time has passed; looked at whenever something is written or flushed.
    Every(Duration),
    /// Syncs before `put` and `remove` return; concurrent callers share one sync.
    Always,
}

/// Counters and sizes of a disk engine.
///
/// Sizes are those of the moment, counters run from the opening of the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DiskEngineStats {
    /// Entries that can be found, expired ones that nobody met yet included.
    pub entries: u64,
    /// Bytes of these entries with their keys and record headers.
    pub live_bytes: u64,
    /// Bytes that the engine's files hold on disk.
    pub disk_bytes: u64,
    /// The bound of `disk_bytes`.
    pub capacity_bytes: u64,
    /// Entries that left to make room.
    pub evicted_capacity: u64,
    /// Entries that left because their time had come.
    pub evicted_expired: u64,
    /// Entries that a newer value replaced.
    pub replaced: u64,
    /// Entries removed by key.
    pub removed: u64,
    /// Entries removed together by `clear`.
    pub cleared: u64,
    /// Damaged entries that were met, while reading or at opening.
    pub corrupt: u64,
    /// Entries given up at opening because something newer than them was illegible.
    pub dropped_at_open: u64,
    /// Calls to the operating system that failed.
    pub io_errors: u64,
    /// Accepted entries and removals that could not be written.
    pub dropped_writes: u64,
    /// Entries refused because they can never fit.
    pub too_large: u64,
    /// Bytes written to files.
    pub bytes_written: u64,
    /// Syncs to the medium.
    pub syncs: u64,
    /// Entries of the oldest segment that were written again because they had been read.
    pub copied_forward: u64,
    /// Bytes of these; `bytes_written` has them too.
    pub copied_forward_bytes: u64,
    /// Checkpoints written, by which the next opening is fast.
    pub checkpoints: u64,
    /// Bytes that had to be scanned at opening, because no checkpoint covered them.
    pub scanned_at_open_bytes: u64,
    /// Bytes written since the last checkpoint: what an opening would scan after a kill now.
    pub uncovered_bytes: u64,
    /// Times the whole store was thrown away because it had outgrown its bound or was beyond repair.
    pub rebuilds: u64,
}

/// Why an engine could not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiskError {
    /// The file system has no room left, or a quota is used up.
    #[error("no space left to write {}", path.display())]
    Full {
        /// The file that could not grow.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The operating system refused an operation.
    #[error("cannot {op} {}", path.display())]
    Io {
        /// What was tried.
        op: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The entry is longer than this engine can ever hold.
    #[error("an entry of {len} bytes is too large, the most is {max}")]
    TooLarge {
        /// Length of the entry with its key and header.
        len: u64,
        /// The longest entry that fits.
        max: u64,
    },
    /// The library beneath the engine failed.
    #[error("the storage engine failed at {op}")]
    Engine {
        /// What was tried.
        op: &'static str,
        /// What the library said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl DiskError {
    /// Sorts an error of the operating system by what a caller can do about it.
    pub(super) fn io(op: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::Full { path, source }
            }
            _ => Self::Io { op, path, source },
        }
    }
}

fn another_by(setting: Option<&str>) -> String {
    setting.map_or_else(String::new, |setting| format!("; {setting} can name another directory"))
}

/// Why a directory could not be opened as a disk tier.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Another process, or another cache of this one, has the directory open.
    #[error("{} is in use by another cache{}", path.display(), another_by(*setting))]
    Locked {
        /// The directory.
        path: PathBuf,
        /// What its users set to choose another one: [`DiskConfig::setting`](super::DiskConfig::setting).
        setting: Option<&'static str>,
    },
    /// A newer version of this software wrote the directory.
    #[error("{} has format version {found}, this version reads up to {supported}", path.display())]
    NewerFormat {
        /// The directory.
        path: PathBuf,
        /// The version it has.
        found: u32,
        /// The newest version that can be read.
        supported: u32,
    },
    /// The directory belongs to another engine.
    #[error("{} was written by the engine {found:?}, not {wanted:?}", path.display())]
    OtherEngine {
        /// The directory.
        path: PathBuf,
        /// The engine that wrote it.
        found: String,
        /// The engine that was asked for.
        wanted: &'static str,
    },
    /// The path holds something else, which is left alone.
    #[error("{} is not empty and not a cache directory", path.display())]
    NotACache {
        /// The path.
        path: PathBuf,
    },
    /// The file that describes the directory is damaged; deleting the directory helps.
    #[error("{} is damaged: no usable {missing:?}", path.display())]
    DamagedFormat {
        /// The file.
        path: PathBuf,
        /// The line that is missing or illegible.
        missing: &'static str,
    },
    /// The capacity is too small to work with.
    #[error("a capacity of {capacity_bytes} bytes is too small, the least is {min_bytes}")]
    CapacityTooSmall {
        /// What was asked for.
        capacity_bytes: u64,
        /// The smallest capacity.
        min_bytes: u64,
    },
    /// The segment size does not suit the capacity.
    #[error("segments of {segment_bytes} bytes do not suit, expected {min_bytes} to {max_bytes}")]
    SegmentSize {
        /// What was asked for.
        segment_bytes: u64,
        /// The smallest segment size.
        min_bytes: u64,
        /// The largest segment size at this capacity.
        max_bytes: u64,
    },
    /// The operating system refused an operation.
    #[error("cannot {op} {}", path.display())]
    Io {
        /// What was tried.
        op: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The library beneath the engine failed.
    #[error("the storage engine cannot open {}", path.display())]
    Engine {
        /// The directory.
        path: PathBuf,
        /// What the library said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl OpenError {
    /// Names the operation and the file beside what the operating system said.
    pub(super) fn io(op: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { op, path: path.to_owned(), source }
    }
}
