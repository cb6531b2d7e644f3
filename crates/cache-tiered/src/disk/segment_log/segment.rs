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
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;

use super::record::{DEAD, HEADER_LEN, STATE_OFFSET};

const PREFIX: &str = "segment-";
const SUFFIX: &str = ".log";

/// A segment that readers, the writer and the index share.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) id: u64,
    pub(super) path: PathBuf,
    file: OnceLock<File>,
    flushed: AtomicU32,
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
            hashes: Mutex::default(),
        }
    }

    /// Returns the id if a file name is that of a segment.
    pub(super) fn id_of(name: &str) -> Option<u64> {
        let digits = name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?;
        if digits.len() != 16 { None } else { u64::from_str_radix(digits, 16).ok() }
    }

    /// Returns how many bytes of the file can be read.
    pub(super) fn flushed(&self) -> u32 {
        // Acquire: pairs with the Release in `append`; the bytes below are in the file.
        self.flushed.load(Ordering::Acquire)
    }

    /// Returns the space that the file takes, in whole blocks of the file system.
    pub(super) fn disk_bytes(&self) -> u64 {
        u64::from(self.flushed()).next_multiple_of(4096)
    }

    /// Reads exactly `buffer.len()` bytes of the flushed part.
    pub(super) fn read(&self, buffer: &mut [u8], offset: u32) -> io::Result<()> {
        let file = self.file.get().ok_or(io::ErrorKind::UnexpectedEof)?;
        read_exact_at(file, buffer, u64::from(offset))
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
        write_all_at(file, &[DEAD], u64::from(offset) + STATE_OFFSET)
    }

    /// Forces the file onto the medium.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.get().map_or(Ok(()), File::sync_data)
    }

    /// Deletes the file. Readers that are in it may finish.
    pub(super) fn unlink(&self) -> io::Result<()> {
        match std::fs::remove_file(&self.path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// Notes a hash that has its record here.
    pub(super) fn note(&self, hash: u64) {
        self.hashes.lock().push(hash);
    }

    /// Gives back memory that a full segment does not need.
    pub(super) fn seal(&self) {
        self.hashes.lock().shrink_to_fit();
    }

    /// Tells whether a noted hash satisfies `condition`, newest first.
    pub(super) fn any_hash(&self, condition: impl FnMut(u64) -> bool) -> bool {
        self.hashes.lock().iter().rev().copied().any(condition)
    }

    /// Takes the hashes that were noted.
    pub(super) fn take_hashes(&self) -> Vec<u64> {
        std::mem::take(&mut *self.hashes.lock())
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
