//! One segment: a file that only grows at its end, until it is deleted as a whole.
//!
//! A segment exists in memory before it has a file; whoever writes its first block creates the file.
//! So the thread that runs into the end of the old segment does no I/O under the append lock.
//! `flushed` is the only word between writers and readers: bytes below it are in the file and do
//! not change any more, except for the state byte of a record that is withdrawn.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use parking_lot::Mutex;

use super::record::{DEAD, HEADER_LEN, STATE_OFFSET};

const PREFIX: &str = "segment-";
const SUFFIX: &str = ".log";
const CHECKPOINT_SUFFIX: &str = ".index";

/// A segment that readers, the writer and the index share.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) id: u64,
    pub(super) path: PathBuf,
    file: OnceLock<File>,
    flushed: AtomicU32,
    /// Bytes of the checkpoint beside the segment, 0 while there is none.
    checkpoint_bytes: AtomicU64,
    /// Whether a record was withdrawn in place since the segment was opened.
    touched: AtomicBool,
    /// Hashes that were put here, for the index to be purged when the segment goes. At most one per
    /// record: a bound of 8 bytes for each [`HEADER_LEN`] bytes of the segment.
    hashes: Mutex<Vec<u64>>,
}

impl Segment {
    /// Describes a segment that has no file yet.
    pub(super) fn new(directory: &Path, id: u64) -> Self {
        Self {
            id,
            path: directory.join(format!("{PREFIX}{id:016x}{SUFFIX}")),
            file: OnceLock::new(),
            flushed: AtomicU32::new(0),
            checkpoint_bytes: AtomicU64::new(0),
            touched: AtomicBool::new(false),
            hashes: Mutex::default(),
        }
    }

    /// Opens a segment that exists, of which the first `len` bytes are good.
    pub(super) fn existing(path: PathBuf, id: u64, file: File, len: u32) -> Self {
        Self {
            id,
            path,
            file: OnceLock::from(file),
            flushed: AtomicU32::new(len),
            checkpoint_bytes: AtomicU64::new(0),
            touched: AtomicBool::new(false),
            hashes: Mutex::default(),
        }
    }

    /// Returns the id if a file name is that of a segment.
    pub(super) fn id_of(name: &str) -> Option<u64> {
        id_before(name, SUFFIX)
    }

    /// Returns the id if a file name is that of a segment's checkpoint.
    pub(super) fn id_of_checkpoint(name: &str) -> Option<u64> {
        id_before(name, CHECKPOINT_SUFFIX)
    }

    /// Returns where the checkpoint of this segment is, if it has one.
    pub(super) fn checkpoint_path(&self) -> PathBuf {
        checkpoint_path(&self.path)
    }

    /// Takes note of a checkpoint that was written or found, and of its length.
    ///
    /// Returns `false`, and deletes it again, if a record was withdrawn meanwhile.
    pub(super) fn has_checkpoint(&self, bytes: u64) -> io::Result<bool> {
        self.checkpoint_bytes.store(bytes, Ordering::Relaxed);
        // SeqCst here and in `mark_dead`: either this sees the mark, or the marker, who deletes
        // after setting it, deletes the file that is in place by now.
        if !self.touched.load(Ordering::SeqCst) {
            return Ok(true);
        }
        self.drop_checkpoint()?;
        Ok(false)
    }

    /// Tells whether a record was withdrawn in place, so that no checkpoint may be written.
    pub(super) fn is_touched(&self) -> bool {
        self.touched.load(Ordering::SeqCst)
    }

    /// Deletes the checkpoint, if there is one.
    pub(super) fn drop_checkpoint(&self) -> io::Result<()> {
        remove_if_there(&self.checkpoint_path())?;
        self.checkpoint_bytes.store(0, Ordering::Relaxed);
        Ok(())
    }

    /// Returns how many bytes of the file can be read.
    pub(super) fn flushed(&self) -> u32 {
        // Acquire: pairs with the Release in `append`; the bytes below are in the file.
        self.flushed.load(Ordering::Acquire)
    }

    /// Returns the space that segment and checkpoint take, in whole blocks of the file system.
    pub(super) fn disk_bytes(&self) -> u64 {
        u64::from(self.flushed()).next_multiple_of(4096)
            + self.checkpoint_bytes.load(Ordering::Relaxed).next_multiple_of(4096)
    }

    /// Returns the file, if any block was written yet.
    pub(super) fn file(&self) -> Option<&File> {
        self.file.get()
    }

    /// Reads exactly `len` bytes of the flushed part.
    pub(super) fn read(&self, len: u32, offset: u32) -> io::Result<Vec<u8>> {
        let file = self.file.get().ok_or(io::ErrorKind::UnexpectedEof)?;
        read_fresh_at(file, len as usize, u64::from(offset))
    }

    /// Writes a block at the end of the flushed part and lets readers see it.
    ///
    /// On an error the file is as long as before, unless cutting it failed too.
    pub(super) fn append(&self, bytes: &[u8]) -> Result<(), AppendError> {
        let start = self.flushed();
        let file = match self.file.get() {
            Some(file) => file,
            None => {
                let file = File::options()
                    .read(true)
                    .write(true)
                    .create(true)
                    .truncate(true)
                    .open(&self.path)
                    .map_err(|source| AppendError { op: "create", source, cut: true })?;
                self.file.get_or_init(|| file)
            }
        };
        if let Err(source) = write_all_at(file, bytes, u64::from(start)) {
            let cut = file.set_len(u64::from(start)).is_ok();
            return Err(AppendError { op: "write", source, cut });
        }
        // Release: pairs with the Acquire in `flushed`.
        self.flushed.store(start + bytes.len() as u32, Ordering::Release);
        Ok(())
    }

    /// Withdraws a flushed record in place, which needs no space.
    pub(super) fn mark_dead(&self, offset: u32) -> io::Result<()> {
        let Some(file) = self.file.get() else { return Ok(()) };
        if u64::from(offset) + HEADER_LEN as u64 > u64::from(self.flushed()) {
            return Ok(());
        }
        // A checkpoint does not know of it, so it goes first; see `has_checkpoint`.
        self.touched.store(true, Ordering::SeqCst);
        self.drop_checkpoint()?;
        write_all_at(file, &[DEAD], u64::from(offset) + STATE_OFFSET)
    }

    /// Forces the file onto the medium.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.get().map_or(Ok(()), File::sync_data)
    }

    /// Deletes the file and its checkpoint. Readers that are in it may finish.
    pub(super) fn unlink(&self) -> io::Result<()> {
        remove_if_there(&self.path)?;
        self.drop_checkpoint()
    }

    /// Notes a hash that has its record here.
    pub(super) fn note(&self, hash: u64) {
        self.hashes.lock().push(hash);
    }

    /// Notes all hashes of a segment that was read.
    pub(super) fn set_hashes(&self, mut hashes: Vec<u64>) {
        hashes.shrink_to_fit();
        *self.hashes.lock() = hashes;
    }

    /// Gives back memory that a full segment does not need.
    pub(super) fn seal(&self) {
        self.hashes.lock().shrink_to_fit();
    }

    /// Tells whether a noted hash satisfies `condition`, newest first.
    pub(super) fn any_hash(&self, condition: impl FnMut(u64) -> bool) -> bool {
        self.hashes.lock().iter().rev().copied().any(condition)
    }

    /// Returns how many hashes were noted.
    pub(super) fn hash_count(&self) -> usize {
        self.hashes.lock().len()
    }

    /// Returns at most `count` of the noted hashes, in the order of their records.
    pub(super) fn some_hashes(&self, from: usize, count: usize) -> Vec<u64> {
        self.hashes.lock().iter().skip(from).take(count).copied().collect()
    }

    /// Takes the hashes that were noted.
    pub(super) fn take_hashes(&self) -> Vec<u64> {
        std::mem::take(&mut *self.hashes.lock())
    }
}

fn id_before(name: &str, suffix: &str) -> Option<u64> {
    let digits = name.strip_prefix(PREFIX)?.strip_suffix(suffix)?;
    if digits.len() != 16 { None } else { u64::from_str_radix(digits, 16).ok() }
}

/// Returns where the checkpoint of a segment is.
pub(super) fn checkpoint_path(segment: &Path) -> PathBuf {
    segment.with_extension(&CHECKPOINT_SUFFIX[1..])
}

/// Deletes a file unless it is gone already.
pub(super) fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Why a block could not be appended.
#[derive(Debug)]
pub(super) struct AppendError {
    pub(super) op: &'static str,
    pub(super) source: io::Error,
    /// Whether the file was cut back to what it held before.
    pub(super) cut: bool,
}

/// Reads exactly `len` bytes into memory that is not zeroed before, which would be a third of the time.
#[cfg(target_os = "linux")]
fn read_fresh_at(file: &File, len: usize, offset: u64) -> io::Result<Vec<u8>> {
    use rustix::{buffer::spare_capacity, io::pread};
    let mut bytes = Vec::with_capacity(len);
    match pread(file, spare_capacity(&mut bytes), offset) {
        Ok(_) if bytes.len() >= len => {
            // More than was asked for may have been allocated, and so read.
            bytes.truncate(len);
            return Ok(bytes);
        }
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    // A file system may give less than there is; it seldom does.
    let read = bytes.len();
    bytes.resize(len, 0);
    read_exact_at(file, &mut bytes[read..], offset + read as u64)?;
    Ok(bytes)
}

#[cfg(not(target_os = "linux"))]
fn read_fresh_at(file: &File, len: usize, offset: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    read_exact_at(file, &mut bytes, offset)?;
    Ok(bytes)
}

#[cfg(unix)]
pub(super) fn read_exact_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buffer, offset)
}

#[cfg(unix)]
fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
}

#[cfg(windows)]
pub(super) fn read_exact_at(file: &File, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
    use std::os::windows::fs::FileExt;
    while !buffer.is_empty() {
        match file.seek_read(buffer, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                buffer = &mut buffer[n..];
                offset += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

#[cfg(windows)]
fn write_all_at(file: &File, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    use std::os::windows::fs::FileExt;
    while !bytes.is_empty() {
        match file.seek_write(bytes, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => {
                bytes = &bytes[n..];
                offset += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
