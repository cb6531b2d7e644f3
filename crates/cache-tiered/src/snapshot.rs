//! Snapshot files: what memory holds, written down to warm another start with.
//!
//! A snapshot is one file that is written aside, synced and renamed into place, so that a reader finds
//! the old one or the new one whole. It is read front to back in blocks, each with a checksum of its
//! own, and each is put into the cache before the next is read; neither side ever holds more than one
//! shard of the cache and one block of the file.
//!
//! | part | bytes |
//! |---|---|
//! | header | magic `CTSNAPSH`, version (2), cipher (2), schema version (4); in version 2 number of the encryption key (4) and a number drawn for this file (24); CRC32C of those (4) |
//! | block | length before compression (4), length in the file (4), entries (4), CRC32C of those and of what follows (4); entries, compressed with zstd |
//! | end | a block of no entries whose contents are the number of all entries (8) |
//!
//! A block holds entries one after another: expiry in Unix milliseconds or 0 for never (8), length of
//! the key (4) and of the value (4), key, value. Keys and values are in the format of bincode 1.
//! Integers are little-endian. Lengths are believed only within bounds, so that a damaged file cannot
//! ask for more memory than a block may take.
//!
//! # Protected files
//!
//! A cache with encryption keys writes version 2 and reads nothing else; one without them writes and
//! reads version 1, whose cipher is zero. In version 2 the cipher is 1, and what a block holds is a nonce
//! of 24 bytes, the compressed entries encrypted by XChaCha20-Poly1305, and the tag of 16 bytes. The
//! tag covers the header of the file, the number of the block in it, the block's lengths and the name of
//! the cache, too. So blocks cannot change places, nor come from another file, and since the end is
//! such a block, none can be missing. What is seen from outside is how many entries there are and
//! how long the blocks are.

use std::fs::{self, File};
use std::hash::{BuildHasher, Hash};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use zstd::bulk::{Compressor, Decompressor};

use crate::cache::{Cache, Inner};
use crate::codec::{self, CodecError};
#[cfg(feature = "encryption")]
use crate::encryption::{Encryption, NONCE, TAG};
use crate::envelope::MAX_VALUE_BYTES;
use crate::files::sync_dir;
use crate::lower::Found;

const MAGIC: [u8; 8] = *b"CTSNAPSH";
const CLEAR: u16 = 1;
const PROTECTED: u16 = 2;
/// The header up to the fields that a protected file adds, and the shortest header with its checksum.
const HEADER_START: usize = 16;
const HEADER: usize = HEADER_START + 4;
const XCHACHA20_POLY1305: u16 = 1;
/// What stands in the place of an entry's key where a block is authenticated.
const BLOCK_KEY: &[u8] = b"snapshot";
const BLOCK_HEADER: usize = 16;
const ENTRY_HEADER: usize = 16;
/// Bytes of entries after which a block is closed.
const BLOCK: usize = 256 << 10;
/// A block is at most one entry longer than that.
const BLOCK_MAX: usize = BLOCK + ENTRY_HEADER + 2 * MAX_VALUE_BYTES;
const ZSTD_LEVEL: i32 = 1;

/// How far a snapshot has been written or read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct SnapshotProgress {
    /// Entries written to the file, or put into memory.
    pub entries: u64,
    /// Entries left out: past their time, or in memory already when they were read.
    pub skipped: u64,
    /// Bytes of the file so far.
    pub bytes: u64,
    /// Entries in memory when writing began, or bytes of the file that is read; about the end.
    pub total: u64,
}

/// Why a snapshot could not be written, or not be read to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The file system refused something.
    #[error("cannot {operation} {}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A key or a value has no bytes in the format.
    #[error("an entry cannot be written to {}", path.display())]
    Encode {
        /// The snapshot.
        path: PathBuf,
        /// What serde said.
        #[source]
        source: CodecError,
    },
    /// The file is something else.
    #[error("{} is no snapshot of a cache; choose a file that Cache::save has written", path.display())]
    NotASnapshot {
        /// The file.
        path: PathBuf,
    },
    /// The file is not encrypted, and the cache has encryption keys; nothing was loaded.
    #[error("{} is not encrypted, and a cache with encryption keys reads nothing else; nothing was loaded", path.display())]
    NotEncrypted {
        /// The file.
        path: PathBuf,
    },
    /// The file is encrypted, and the cache has no encryption keys; nothing was loaded.
    #[error("{} is encrypted; give the cache its encryption keys; nothing was loaded", path.display())]
    Encrypted {
        /// The file.
        path: PathBuf,
    },
    /// The file is encrypted with a key that the cache does not have; nothing was loaded.
    #[error("{} is encrypted with the key {key}, which this cache does not have; nothing was loaded", path.display())]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The number of the key.
        key: u32,
    },
    /// The file was written by a later version of this crate.
    #[error("{} has format version {found}, this program reads up to {supported}; update it, or start cold", path.display())]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// The version it has.
        found: u16,
        /// The newest version this program reads.
        supported: u16,
    },
    /// The entries have another shape than this cache's; nothing was loaded.
    #[error("{} was written under schema version {found}, this cache has {expected}; nothing was loaded", path.display())]
    OtherSchema {
        /// The file.
        path: PathBuf,
        /// The schema version in the file.
        found: u32,
        /// The schema version of the cache.
        expected: u32,
    },
    /// The file is broken; what came before that place was loaded.
    #[error("{} is damaged at byte {offset}; {loaded} entries before it were loaded", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where the part begins that cannot be read.
        offset: u64,
        /// Entries that are in memory now.
        loaded: u64,
    },
}

/// A broken part of a file, or the file system's refusal.
#[derive(Debug)]
enum Broken {
    Damaged { offset: u64 },
    Io(io::Error),
}

/// Appends the bytes of a key or of a value.
type Append<'a> = dyn Fn(&mut Vec<u8>) -> Result<(), CodecError> + 'a;

/// Bytes of the number that a protected file has for itself.
const FILE_ID: usize = NONCE;

/// Nobody's keys: this build does not encrypt.
#[cfg(not(feature = "encryption"))]
#[derive(Debug)]
enum Encryption {}
#[cfg(not(feature = "encryption"))]
const NONCE: usize = 24;
#[cfg(not(feature = "encryption"))]
const TAG: usize = 16;

#[cfg(not(feature = "encryption"))]
impl Encryption {
    fn active(&self) -> u32 {
        match *self {}
    }

    fn knows(&self, _: u32) -> bool {
        match *self {}
    }

    fn unique(&self) -> Option<[u8; NONCE]> {
        match *self {}
    }

    fn encrypt(&self, _: &[u8], _: &[u8], _: &mut [u8]) -> Option<([u8; NONCE], [u8; TAG])> {
        match *self {}
    }

    fn decrypt(
        &self,
        _: u32,
        _: &[u8],
        _: &[u8],
        _: &[u8; NONCE],
        _: &mut [u8],
        _: &[u8; TAG],
    ) -> Option<()> {
        match *self {}
    }
}

/// The keys that protect a cache's snapshots.
#[cfg(feature = "encryption")]
fn encryption_of<K, V, S>(inner: &Inner<K, V, S>) -> Option<&Encryption> {
    inner.encryption.as_ref()
}

#[cfg(not(feature = "encryption"))]
fn encryption_of<K, V, S>(_: &Inner<K, V, S>) -> Option<&Encryption> {
    None
}

/// Protects the blocks of one file.
#[derive(Debug)]
struct Protection<'a> {
    encryption: &'a Encryption,
    key: u32,
    /// The header of the file.
    header: Vec<u8>,
    /// The number of the next block.
    next: u64,
}

impl Protection<'_> {
    /// What is authenticated with the next block.
    fn bound(&mut self, lengths: &[u8]) -> Vec<u8> {
        let bound = [&self.header, &self.next.to_le_bytes()[..], lengths].concat();
        self.next += 1;
        bound
    }

    fn seal(&mut self, lengths: &[u8], packed: &[u8]) -> io::Result<Vec<u8>> {
        let bound = self.bound(lengths);
        let mut sealed = Vec::with_capacity(NONCE + packed.len() + TAG);
        sealed.extend_from_slice(&[0; NONCE]);
        sealed.extend_from_slice(packed);
        let (nonce, tag) = self
            .encryption
            .encrypt(&bound, BLOCK_KEY, &mut sealed[NONCE..])
            .ok_or_else(|| io::Error::other("a block could not be encrypted"))?;
        sealed[..NONCE].copy_from_slice(&nonce);
        sealed.extend_from_slice(&tag);
        Ok(sealed)
    }

    fn open(&mut self, lengths: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
        let bound = self.bound(lengths);
        let (nonce, rest) = sealed.split_first_chunk::<NONCE>()?;
        let (encrypted, tag) = rest.split_last_chunk::<TAG>()?;
        let mut packed = encrypted.to_vec();
        self.encryption.decrypt(self.key, &bound, BLOCK_KEY, nonce, &mut packed, tag)?;
        Some(packed)
    }
}

/// Writes blocks to a file of any kind.
struct Writer<'a, W> {
    file: W,
    protection: Option<Protection<'a>>,
    block: Vec<u8>,
    in_block: u32,
    entries: u64,
    bytes: u64,
    zstd: Compressor<'static>,
}

impl<'a, W: Write> Writer<'a, W> {
    fn begin(mut file: W, schema: u32, encryption: Option<&'a Encryption>) -> io::Result<Self> {
        let (version, cipher) =
            if encryption.is_some() { (PROTECTED, XCHACHA20_POLY1305) } else { (CLEAR, 0) };
        let mut header = Vec::with_capacity(HEADER + 4 + FILE_ID);
        header.extend_from_slice(&MAGIC);
        header.extend_from_slice(&version.to_le_bytes());
        header.extend_from_slice(&cipher.to_le_bytes());
        header.extend_from_slice(&schema.to_le_bytes());
        if let Some(encryption) = encryption {
            let id = encryption.unique().ok_or_else(|| io::Error::other("no random numbers"))?;
            header.extend_from_slice(&encryption.active().to_le_bytes());
            header.extend_from_slice(&id);
        }
        header.extend_from_slice(&crc32c::crc32c(&header).to_le_bytes());
        file.write_all(&header)?;
        let zstd = Compressor::new(ZSTD_LEVEL)?;
        let block = Vec::with_capacity(BLOCK + (BLOCK >> 2));
        let bytes = header.len() as u64;
        let protection = encryption.map(|encryption| {
            let key = encryption.active();
            Protection { encryption, key, header, next: 0 }
        });
        Ok(Self { file, protection, block, in_block: 0, entries: 0, bytes, zstd })
    }

    /// Adds an entry; `write` appends its key to the block, then its value.
    fn entry(
        &mut self,
        expires_unix_ms: u64,
        write: [&Append<'_>; 2],
    ) -> Result<io::Result<()>, CodecError> {
        let start = self.block.len();
        self.block.extend_from_slice(&expires_unix_ms.to_le_bytes());
        self.block.extend_from_slice(&[0; 8]);
        for (at, write) in write.into_iter().enumerate() {
            let before = self.block.len();
            let written = write(&mut self.block);
            let len = self.block.len() - before;
            if let Err(error) = written.and_then(|()| too_long(len)) {
                self.block.truncate(start);
                return Err(error);
            }
            let field = start + 8 + at * 4;
            self.block[field..field + 4].copy_from_slice(&(len as u32).to_le_bytes());
        }
        self.in_block += 1;
        self.entries += 1;
        Ok(if self.block.len() >= BLOCK { self.close_block() } else { Ok(()) })
    }

    fn close_block(&mut self) -> io::Result<()> {
        let mut packed = self.zstd.compress(&self.block)?;
        let len = packed.len() + if self.protection.is_some() { NONCE + TAG } else { 0 };
        let mut header = [0; BLOCK_HEADER];
        header[..4].copy_from_slice(&(self.block.len() as u32).to_le_bytes());
        header[4..8].copy_from_slice(&(len as u32).to_le_bytes());
        header[8..12].copy_from_slice(&self.in_block.to_le_bytes());
        if let Some(protection) = &mut self.protection {
            packed = protection.seal(&header[..12], &packed)?;
        }
        let checksum = crc32c::crc32c_append(crc32c::crc32c(&header[..12]), &packed);
        header[12..].copy_from_slice(&checksum.to_le_bytes());
        self.file.write_all(&header)?;
        self.file.write_all(&packed)?;
        self.bytes += (BLOCK_HEADER + packed.len()) as u64;
        self.block.clear();
        self.in_block = 0;
        Ok(())
    }

    fn end(mut self) -> io::Result<W> {
        if self.in_block > 0 {
            self.close_block()?;
        }
        self.block.extend_from_slice(&self.entries.to_le_bytes());
        self.close_block()?;
        self.file.flush()?;
        Ok(self.file)
    }
}

fn too_long(len: usize) -> Result<(), CodecError> {
    if len <= MAX_VALUE_BYTES {
        return Ok(());
    }
    Err(format!("{len} bytes are more than the {MAX_VALUE_BYTES} that a part may have").into())
}

/// An entry as it stands in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct RawEntry<'a> {
    expires_unix_ms: u64,
    key: &'a [u8],
    value: &'a [u8],
}

/// Reads a file of any kind block by block.
struct Reader<'a, R> {
    file: R,
    protection: Option<Protection<'a>>,
    schema: u32,
    /// Where the next block begins.
    offset: u64,
    entries: u64,
    zstd: Decompressor<'static>,
}

/// What stands where a header should.
#[derive(Debug)]
enum Beginning<R> {
    Snapshot(R),
    Newer(u16),
    Foreign,
    /// Not encrypted, where it has to be.
    Clear,
    /// Encrypted, where there are no keys.
    Protected,
    UnknownKey(u32),
}

impl<'a, R: Read> Reader<'a, R> {
    fn begin(mut file: R, encryption: Option<&'a Encryption>) -> io::Result<Beginning<Self>> {
        let mut header = vec![0; HEADER];
        if !read_or_end(&mut file, &mut header)? || header[..8] != MAGIC {
            return Ok(Beginning::Foreign);
        }
        // The version comes before the checksum: a later one may have another header.
        let [version, cipher] = [8, 10].map(|at| u16::from_le_bytes([header[at], header[at + 1]]));
        if version > PROTECTED {
            return Ok(Beginning::Newer(version));
        }
        if version == PROTECTED {
            header.resize(HEADER + 4 + FILE_ID, 0);
            if !read_or_end(&mut file, &mut header[HEADER..])? {
                return Ok(Beginning::Foreign);
            }
        }
        let end = header.len() - 4;
        if version == 0 || crc32c::crc32c(&header[..end]) != u32_at(&header, end) {
            return Ok(Beginning::Foreign);
        }
        let protection = match (version, encryption) {
            (CLEAR, None) => None,
            (CLEAR, Some(_)) => return Ok(Beginning::Clear),
            (_, None) => return Ok(Beginning::Protected),
            (_, Some(_)) if cipher != XCHACHA20_POLY1305 => return Ok(Beginning::Foreign),
            (_, Some(encryption)) => {
                let key = u32_at(&header, HEADER_START);
                if !encryption.knows(key) {
                    return Ok(Beginning::UnknownKey(key));
                }
                Some(Protection { encryption, key, header: header.clone(), next: 0 })
            }
        };
        let (schema, offset, zstd) =
            (u32_at(&header, 12), header.len() as u64, Decompressor::new()?);
        Ok(Beginning::Snapshot(Self { file, protection, schema, offset, entries: 0, zstd }))
    }

    /// Reads a block and calls `each` with its entries; false at the end.
    fn block(&mut self, mut each: impl FnMut(RawEntry<'_>) -> Option<()>) -> Result<bool, Broken> {
        let damaged = Broken::Damaged { offset: self.offset };
        let mut header = [0; BLOCK_HEADER];
        if !read_or_end(&mut self.file, &mut header).map_err(Broken::Io)? {
            return Err(damaged);
        }
        let [raw_len, packed_len, entries, checksum] = [0, 4, 8, 12].map(|at| u32_at(&header, at));
        let [raw_len, packed_len] = [raw_len as usize, packed_len as usize];
        let cover = if self.protection.is_some() { NONCE + TAG } else { 0 };
        if raw_len > BLOCK_MAX || packed_len > zstd::zstd_safe::compress_bound(raw_len) + cover {
            return Err(damaged);
        }
        // Grows with what is there, not with what is claimed.
        let mut packed = Vec::new();
        (&mut self.file).take(packed_len as u64).read_to_end(&mut packed).map_err(Broken::Io)?;
        let found = crc32c::crc32c_append(crc32c::crc32c(&header[..12]), &packed);
        if packed.len() != packed_len || found != checksum {
            return Err(damaged);
        }
        if let Some(protection) = &mut self.protection {
            let Some(opened) = protection.open(&header[..12], &packed) else { return Err(damaged) };
            packed = opened;
        }
        let Ok(block) = self.zstd.decompress(&packed, raw_len) else { return Err(damaged) };
        self.offset += (BLOCK_HEADER + packed_len) as u64;
        if entries == 0 {
            let total: Result<[u8; 8], _> = block.try_into();
            let complete = total.is_ok_and(|total| u64::from_le_bytes(total) == self.entries);
            let more = read_or_end(&mut self.file, &mut [0]).map_err(Broken::Io)?;
            return if complete && !more { Ok(false) } else { Err(damaged) };
        }
        let mut rest = block.as_slice();
        for _ in 0..entries {
            let Some((entry, after)) = split_entry(rest) else { return Err(damaged) };
            if each(entry).is_none() {
                return Err(damaged);
            }
            rest = after;
        }
        self.entries += u64::from(entries);
        if rest.is_empty() { Ok(true) } else { Err(damaged) }
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut field = [0; 4];
    field.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(field)
}

fn split_entry(bytes: &[u8]) -> Option<(RawEntry<'_>, &[u8])> {
    let (header, rest) = bytes.split_at_checked(ENTRY_HEADER)?;
    let mut expiry = [0; 8];
    expiry.copy_from_slice(&header[..8]);
    let (key, rest) = rest.split_at_checked(u32_at(header, 8) as usize)?;
    let (value, rest) = rest.split_at_checked(u32_at(header, 12) as usize)?;
    Some((RawEntry { expires_unix_ms: u64::from_le_bytes(expiry), key, value }, rest))
}

/// Fills a buffer; false where the file ends before.
fn read_or_end(file: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    match file.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

impl<K, V, S> Cache<K, V, S>
where
    K: Hash + Eq + Clone + Serialize + DeserializeOwned + Send + Sync + 'static,
    V: Clone + Serialize + DeserializeOwned + Send + Sync + 'static,
    S: BuildHasher + Clone + Send + Sync + 'static,
{
    /// Writes what memory holds to a file, to [`load`](Self::load) it after a restart.
    ///
    /// The file is written aside and renamed, so that at any moment `path` is the older snapshot or
    /// this one, whole. Entries that come or go meanwhile may be in it or not. `progress` is called
    /// after each block, on another thread. The file is compressed. A cache with encryption keys encrypts
    /// it, too, with the key that writes; without keys, give it a directory that others cannot read.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Io`] and [`SnapshotError::Encode`]; the older snapshot stays.
    ///
    /// # Cancel safety
    ///
    /// When dropped, the file is written to its end all the same.
    ///
    /// # Cost
    ///
    /// One shard's entries are cloned at a time. Some 5 ns per byte on a thread for blocking work.
    pub async fn save(
        &self,
        path: impl Into<PathBuf>,
        progress: impl FnMut(SnapshotProgress) + Send + 'static,
    ) -> Result<SnapshotProgress, SnapshotError> {
        let (inner, path) = (Arc::clone(self.inner()), path.into());
        on_blocking_thread(move || save(&inner, &path, progress)).await
    }

    /// Puts the entries of a snapshot into memory, with the time that they have left.
    ///
    /// A cache with encryption keys reads only what one of the same name has encrypted with any of them.
    /// Keys that memory holds already, and such as are written meanwhile, keep their newer values; the
    /// tiers below are neither asked nor written. A key that is removed before its turn comes back as it
    /// was saved, so load before the cache is in use. Entries with tags or windows of their own are not
    /// in the file. Values are as old as the snapshot: where other machines have written since, choose a
    /// time to live that allows for it. `progress` is called after each block, on another thread.
    ///
    /// # Errors
    ///
    /// Each [`SnapshotError`] but `Encode`. After [`SnapshotError::Damaged`] the entries before the
    /// broken place are in memory.
    ///
    /// # Cancel safety
    ///
    /// When dropped, the file is read to its end all the same.
    ///
    /// # Cost
    ///
    /// An insert for each entry, and some 3 ns per byte, on a thread for blocking work.
    pub async fn load(
        &self,
        path: impl Into<PathBuf>,
        progress: impl FnMut(SnapshotProgress) + Send + 'static,
    ) -> Result<SnapshotProgress, SnapshotError> {
        let (inner, path) = (Arc::clone(self.inner()), path.into());
        on_blocking_thread(move || load(&inner, &path, progress)).await
    }
}

async fn on_blocking_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        // The work is never aborted, so it panicked: a user's code did, and the caller is told so.
        Err(failed) => std::panic::resume_unwind(failed.into_panic()),
    }
}

fn save<K, V, S>(
    inner: &Arc<Inner<K, V, S>>,
    path: &Path,
    mut progress: impl FnMut(SnapshotProgress),
) -> Result<SnapshotProgress, SnapshotError>
where
    K: Hash + Eq + Clone + Serialize + Send + Sync + 'static,
    V: Clone + Serialize + Send + Sync + 'static,
    S: BuildHasher + Clone + Send + Sync + 'static,
{
    let aside = aside(path);
    let io = |operation, path: &Path| {
        let path = path.to_owned();
        move |source| SnapshotError::Io { operation, path, source }
    };
    let file = File::create(&aside).map_err(io("create", &aside))?;
    // Removed again unless everything goes well.
    let unfinished = Unfinished(&aside);
    let mut writer = Writer::begin(BufWriter::new(file), inner.schema, encryption_of(inner))
        .map_err(io("write", &aside))?;
    let mut state =
        SnapshotProgress { total: inner.memory.stats().entries, ..SnapshotProgress::default() };
    // Whoever loads it does not know what has been invalidated since, nor the windows of single entries.
    let entries = inner.memory.snapshot(|key, entry| {
        let plain = entry.attributes.is_none();
        plain.then(|| (key.clone(), entry.value.clone(), entry.expires_at))
    });
    for (key, value, expires_at) in entries.flatten() {
        let expires_unix_ms = inner.clock.unix_expiry_of(expires_at);
        let before = writer.bytes;
        writer
            .entry(
                expires_unix_ms,
                [&|out| codec::to_bytes(&key, out), &|out| codec::to_bytes(&value, out)],
            )
            .map_err(|source| SnapshotError::Encode { path: path.to_owned(), source })?
            .map_err(io("write", &aside))?;
        if writer.bytes > before {
            (state.entries, state.bytes) = (writer.entries, writer.bytes);
            progress(state);
        }
    }
    state.entries = writer.entries;
    let file = writer.end().map_err(io("write", &aside))?;
    let file = file.into_inner().map_err(|error| io("write", &aside)(error.into_error()))?;
    file.sync_all().map_err(io("sync", &aside))?;
    state.bytes = file.metadata().map_err(io("read", &aside))?.len();
    fs::rename(&aside, path).map_err(io("rename into place", path))?;
    std::mem::forget(unfinished);
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    sync_dir(parent.unwrap_or(Path::new("."))).map_err(io("sync the directory of", path))?;
    progress(state);
    Ok(state)
}

/// Where a snapshot is written before it is renamed; in the same directory, and this process's own.
fn aside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    path.with_file_name(name)
}

/// A file that is removed when this is dropped.
struct Unfinished<'a>(&'a Path);

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        // Nobody can be told, and nobody reads it: the next one of this process writes over it.
        let _ = fs::remove_file(self.0);
    }
}

fn load<K, V, S>(
    inner: &Arc<Inner<K, V, S>>,
    path: &Path,
    mut progress: impl FnMut(SnapshotProgress),
) -> Result<SnapshotProgress, SnapshotError>
where
    K: Hash + Eq + Clone + DeserializeOwned + Send + Sync + 'static,
    V: Clone + DeserializeOwned + Send + Sync + 'static,
    S: BuildHasher + Clone + Send + Sync + 'static,
{
    let io =
        |operation| move |source| SnapshotError::Io { operation, path: path.to_owned(), source };
    let file = File::open(path).map_err(io("open"))?;
    let total = file.metadata().map_err(io("read"))?.len();
    let begun = Reader::begin(BufReader::new(file), encryption_of(inner)).map_err(io("read"))?;
    let mut reader = match begun {
        Beginning::Snapshot(reader) => reader,
        other => return Err(refusal(other, path)),
    };
    if reader.schema != inner.schema {
        let (found, expected) = (reader.schema, inner.schema);
        return Err(SnapshotError::OtherSchema { path: path.to_owned(), found, expected });
    }
    let mut state = SnapshotProgress { total, ..SnapshotProgress::default() };
    loop {
        let now = inner.clock.unix_now();
        let read = reader.block(|entry| {
            let expired = entry.expires_unix_ms != 0 && entry.expires_unix_ms <= now;
            let kept = !expired && {
                let (key, value) =
                    (codec::from_bytes(entry.key).ok()?, codec::from_bytes(entry.value).ok()?);
                let expires_at = inner.clock.deadline_of(entry.expires_unix_ms);
                inner.warm(key, Found { value, expires_at, attributes: None }, |_| true)
            };
            *if kept { &mut state.entries } else { &mut state.skipped } += 1;
            Some(())
        });
        state.bytes = reader.offset;
        match read {
            Ok(true) => progress(state),
            Ok(false) => {
                progress(state);
                return Ok(state);
            }
            Err(Broken::Io(source)) => return Err(io("read")(source)),
            Err(Broken::Damaged { offset }) => {
                let loaded = state.entries;
                return Err(SnapshotError::Damaged { path: path.to_owned(), offset, loaded });
            }
        }
    }
}

/// Why a file that begins like this is not read.
fn refusal<R>(begun: Beginning<R>, path: &Path) -> SnapshotError {
    let path = path.to_owned();
    match begun {
        Beginning::Newer(found) => SnapshotError::NewerFormat { path, found, supported: PROTECTED },
        Beginning::Clear => SnapshotError::NotEncrypted { path },
        Beginning::Protected => SnapshotError::Encrypted { path },
        Beginning::UnknownKey(key) => SnapshotError::UnknownKey { path, key },
        Beginning::Foreign | Beginning::Snapshot(_) => SnapshotError::NotASnapshot { path },
    }
}

#[cfg(test)]
mod tests;
