//! Where chunks are kept: a sorted map of bytes, written in batches.
//!
//! [`HistoryStore`] is as small as a history needs, so that any store can be put behind it. `FjallStore`
//! (feature `history`) keeps a directory, [`MemoryStore`] a bounded number of bytes: it is the store of a history
//! that lives in memory, and where chunks wait while the other store cannot take them.

use std::collections::BTreeMap;
use std::io;
use std::ops::Bound::{Excluded, Included};
use std::sync::Arc;

use parking_lot::RwLock;

/// One change of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Sets the value of a key.
    Put(Vec<u8>, Vec<u8>),
    /// Removes a key, whether it is there or not.
    Delete(Vec<u8>),
}

/// A sorted map of bytes on some medium.
///
/// Calls come from the history's own thread and from those that query; they may block.
pub trait HistoryStore: Send + Sync + 'static {
    /// Makes all changes of a batch, or none, also if the process dies meanwhile.
    ///
    /// # Errors
    ///
    /// What the medium says; [`io::ErrorKind::StorageFull`] if there is no space.
    fn write(&self, changes: &[Change]) -> io::Result<()>;

    /// Visits the keys from `from` up to but without `until`, ascending, until the visitor says `false`.
    ///
    /// # Errors
    ///
    /// What the medium says.
    fn scan(
        &self,
        from: &[u8],
        until: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> io::Result<()>;

    /// Returns how many bytes it takes on its medium.
    fn size_bytes(&self) -> u64;

    /// Returns when all that was written would survive a loss of power.
    ///
    /// # Errors
    ///
    /// What the medium says.
    fn flush(&self) -> io::Result<()>;
}

/// Keeps at most so many bytes in memory.
#[derive(Debug)]
pub struct MemoryStore {
    map: RwLock<Map>,
    limit_bytes: u64,
}

#[derive(Debug, Default)]
struct Map {
    entries: BTreeMap<Vec<u8>, Arc<[u8]>>,
    bytes: u64,
}

/// What an entry takes beside its bytes, about.
const ENTRY_BYTES: u64 = 64;

fn entry_bytes(key: &[u8], value: &[u8]) -> u64 {
    key.len() as u64 + value.len() as u64 + ENTRY_BYTES
}

impl MemoryStore {
    /// Makes an empty store.
    #[must_use]
    pub fn new(limit_bytes: u64) -> Self {
        Self { map: RwLock::default(), limit_bytes }
    }

    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.map.read().entries.is_empty()
    }

    /// Returns all entries, ascending.
    pub(super) fn all(&self) -> Vec<(Vec<u8>, Arc<[u8]>)> {
        let map = self.map.read();
        map.entries.iter().map(|(key, value)| (key.clone(), Arc::clone(value))).collect()
    }

    /// Gives entries other keys.
    pub(super) fn rename(&self, name: impl Fn(&[u8]) -> Option<Vec<u8>>) {
        let mut map = self.map.write();
        let renamed: Vec<(Vec<u8>, Vec<u8>)> =
            map.entries.keys().filter_map(|key| Some((key.clone(), name(key)?))).collect();
        for (old, new) in renamed {
            if let Some(value) = map.entries.remove(&old) {
                map.entries.insert(new, value);
            }
        }
    }

    pub(super) fn clear(&self) {
        *self.map.write() = Map::default();
    }
}

impl HistoryStore for MemoryStore {
    fn write(&self, changes: &[Change]) -> io::Result<()> {
        let mut map = self.map.write();
        let size = |key: &Vec<u8>, map: &Map| {
            map.entries.get(key).map_or(0, |value| entry_bytes(key, value))
        };
        let (mut more, mut less) = (0, 0);
        for change in changes {
            match change {
                Change::Put(key, value) => {
                    less += size(key, &map);
                    more += entry_bytes(key, value);
                }
                Change::Delete(key) => less += size(key, &map),
            }
        }
        if (map.bytes + more).saturating_sub(less) > self.limit_bytes && more > less {
            let limit = self.limit_bytes;
            let message = format!("more than {limit} bytes in memory");
            return Err(io::Error::new(io::ErrorKind::StorageFull, message));
        }
        for change in changes {
            let (key, value) = match change {
                Change::Put(key, value) => (key, Some(value)),
                Change::Delete(key) => (key, None),
            };
            if let Some(old) = map.entries.remove(key) {
                map.bytes -= entry_bytes(key, &old);
            }
            if let Some(value) = value {
                map.bytes += entry_bytes(key, value);
                map.entries.insert(key.clone(), value.as_slice().into());
            }
        }
        Ok(())
    }

    fn scan(
        &self,
        from: &[u8],
        until: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> io::Result<()> {
        if from >= until {
            return Ok(());
        }
        let map = self.map.read();
        let range = map.entries.range::<[u8], _>((Included(from), Excluded(until)));
        for (key, value) in range {
            if !visit(key, value) {
                break;
            }
        }
        Ok(())
    }

    fn size_bytes(&self) -> u64 {
        self.map.read().bytes
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(feature = "history")]
pub use disk::FjallStore;

#[cfg(feature = "history")]
mod disk {
    //! Chunks in an LSM tree of `fjall` (<https://docs.rs/fjall>).

    use std::path::Path;
    use std::{fs, io};

    use fjall::config::CompressionPolicy;
    use fjall::{CompressionType, Database, Keyspace, KeyspaceCreateOptions, PersistMode};

    use super::{Change, HistoryStore};

    /// Chunks in memory before they are written out as a table; the journal is about as large.
    const TABLE_BYTES: u64 = 4 << 20;
    /// Blocks that are kept for queries.
    const CACHE_BYTES: u64 = 4 << 20;

    /// Keeps a directory through `fjall`.
    ///
    /// Beside the chunks it takes a journal, which grows to 64 MB before `fjall` begins another.
    pub struct FjallStore {
        database: Database,
        chunks: Keyspace,
    }

    impl FjallStore {
        /// Opens a directory, making it if it is not there.
        ///
        /// # Errors
        ///
        /// If another process has it open, if its files cannot be read, or what the medium says.
        pub fn open(path: &Path) -> io::Result<Self> {
            if !path.try_exists()? {
                // One that was left half made, by a full disk or a crash, could never be opened again.
                let new = path.with_extension("new");
                if new.try_exists()? {
                    fs::remove_dir_all(&new)?;
                }
                Self::open_existing(&new)?.flush()?;
                fs::rename(&new, path)?;
            }
            Self::open_existing(path)
        }

        fn open_existing(path: &Path) -> io::Result<Self> {
            let database = Database::builder(path)
                .worker_threads(1)
                .cache_size(CACHE_BYTES)
                .max_cached_files(Some(64))
                .open()
                .map_err(io_error)?;
            let chunks = database
                .keyspace("history", || {
                    KeyspaceCreateOptions::default()
                        // Chunks are compressed already.
                        .data_block_compression_policy(CompressionPolicy::all(
                            CompressionType::None,
                        ))
                        .max_memtable_size(TABLE_BYTES)
                })
                .map_err(io_error)?;
            Ok(Self { database, chunks })
        }
    }

    impl HistoryStore for FjallStore {
        fn write(&self, changes: &[Change]) -> io::Result<()> {
            let mut batch = self.database.batch().durability(Some(PersistMode::SyncData));
            for change in changes {
                match change {
                    Change::Put(key, value) => {
                        batch.insert(&self.chunks, key.as_slice(), value.as_slice());
                    }
                    Change::Delete(key) => batch.remove(&self.chunks, key.as_slice()),
                }
            }
            batch.commit().map_err(io_error)
        }

        fn scan(
            &self,
            from: &[u8],
            until: &[u8],
            visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
        ) -> io::Result<()> {
            if from >= until {
                return Ok(());
            }
            for entry in self.chunks.range(from..until) {
                let (key, value) = entry.into_inner().map_err(io_error)?;
                if !visit(&key, &value) {
                    break;
                }
            }
            Ok(())
        }

        fn size_bytes(&self) -> u64 {
            self.database.disk_space().unwrap_or(0)
        }

        fn flush(&self) -> io::Result<()> {
            self.database.persist(PersistMode::SyncAll).map_err(io_error)
        }
    }

    fn io_error(error: fjall::Error) -> io::Error {
        let kind = match &error {
            fjall::Error::Io(error) | fjall::Error::Storage(fjall::LsmError::Io(error)) => {
                error.kind()
            }
            fjall::Error::Locked => io::ErrorKind::ResourceBusy,
            _ => io::ErrorKind::Other,
        };
        io::Error::new(kind, error)
    }
}
