//! The journal of alerts: one file that is only appended to, so that a restart neither loses nor repeats.
//!
//! Whatever must outlive the process - the state of instances, silences, messages that wait - is a
//! [`Record`], and what is remembered is what the records come to ([`Kept`]). A record is written before
//! what it announces is done, and a state and the messages it leads to are one record, so a crash
//! between them cannot part them.
//!
//! A record is a line: its CRC-32C in hexadecimal, a space, JSON. Lines rather than frames with a length,
//! because JSON has no line break inside: after a damaged place the next line is sound again, however
//! wrong a length might have been, and people can read the file. What a crash left at the end without a
//! line break is cut away; a line with another checksum is passed over and counted.
//!
//! A write goes to the operating system at once and to the disk within a second, so that a killed process
//! loses nothing and a power cut at most that second. When the file has grown, a snapshot is written
//! beside it, synced, and renamed over it.

mod kept;

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufReader, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

pub use self::kept::DeadLetter;
pub(super) use self::kept::{Kept, Outbox, Record, Routed, message_key};

/// The version of the file that this code writes and reads.
const VERSION: u32 = 1;
/// The longest line that is read, in bytes; a message of 100 events is far below.
const LINE_MAX: usize = 16 * 1024 * 1024;
/// The file is rewritten when it is longer than this, in bytes, and than four snapshots.
const COMPACT_BYTES: u64 = 1024 * 1024;

/// The journal cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JournalError {
    /// Another process, or another part of this one, uses it.
    #[error("the journal {path} is in use by another process")]
    Locked {
        /// The file.
        path: String,
    },
    /// A newer version of this program wrote it.
    #[error("the journal {path} has version {version}, and this program reads version {VERSION}")]
    Version {
        /// The file.
        path: String,
        /// Its version.
        version: u32,
    },
    /// The file cannot be read or written.
    #[error("the journal {path} cannot be opened")]
    Io {
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
}

/// What was found in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct JournalReplay {
    /// Records that were sound.
    pub records: u64,
    /// Lines that were damaged, and passed over.
    pub damaged: u64,
    /// Bytes of an unfinished last line that were cut away.
    pub cut_bytes: u64,
}

/// An open journal, or none if everything is kept in memory only.
#[derive(Debug)]
pub(super) struct Journal {
    on_disk: Option<OnDisk>,
    /// Writes that failed.
    errors: u64,
}

#[derive(Debug)]
struct OnDisk {
    path: PathBuf,
    /// Nothing after a write has failed, until a snapshot replaces the file.
    file: Option<File>,
    length: u64,
    /// The length at which the file is rewritten.
    compact_at: u64,
    unsynced: bool,
    /// What was appended while a snapshot is being written.
    meanwhile: Option<Vec<u8>>,
    /// Keeps other processes out for as long as it is open.
    _lock: File,
}

/// A snapshot on its way to the disk.
#[derive(Debug)]
pub(super) struct Snapshot {
    bytes: Vec<u8>,
    path: PathBuf,
}

impl Journal {
    /// Keeps nothing on the disk.
    pub(super) fn in_memory() -> Self {
        Self { on_disk: None, errors: 0 }
    }

    /// Opens a file, making it if it is not there, and applies what it holds.
    pub(super) fn open(
        path: &Path,
        at_ms: i64,
    ) -> Result<(Self, Kept, JournalReplay), JournalError> {
        let name = || path.display().to_string();
        let io = |source| JournalError::Io { path: name(), source };
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder).map_err(io)?;
        }
        let lock = writable(&with_suffix(path, ".lock")).map_err(io)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(JournalError::Locked { path: name() }),
            Err(TryLockError::Error(source)) => return Err(io(source)),
        }
        let mut file = writable(path).map_err(io)?;
        let mut kept = Kept::default();
        let (replay, length) = replay(&mut file, &mut kept).map_err(io)?;
        if let Some(version) = kept.version.filter(|&version| version > VERSION) {
            return Err(JournalError::Version { path: name(), version });
        }
        if replay.cut_bytes > 0 {
            file.set_len(length).map_err(io)?;
        }
        file.seek(SeekFrom::Start(length)).map_err(io)?;
        let on_disk = OnDisk {
            path: path.to_owned(),
            file: Some(file),
            length,
            compact_at: COMPACT_BYTES,
            unsynced: true,
            meanwhile: None,
            _lock: lock,
        };
        let mut journal = Self { on_disk: Some(on_disk), errors: 0 };
        if length == 0 {
            journal.append(&[Record::Journal { version: VERSION, at_ms }]);
        }
        Ok((journal, kept, replay))
    }

    /// Hands records to the operating system, all of them in one write.
    ///
    /// If that fails the file is left alone, since it may end in half a line, until a snapshot replaces it;
    /// what is in memory goes on.
    pub(super) fn append(&mut self, records: &[Record]) {
        let Some(disk) = &mut self.on_disk else { return };
        let mut lines = Vec::new();
        for record in records {
            line(record, &mut lines);
        }
        if let Some(meanwhile) = &mut disk.meanwhile {
            meanwhile.extend_from_slice(&lines);
        }
        let Some(file) = &mut disk.file else { return };
        match file.write_all(&lines) {
            Ok(()) => {
                disk.length += lines.len() as u64;
                disk.unsynced = true;
            }
            Err(error) => {
                tracing::error!(path = %disk.path.display(), %error, "the journal of alerts cannot be written");
                self.errors += 1;
                disk.file = None;
            }
        }
    }

    /// How many writes have failed.
    pub(super) fn errors(&self) -> u64 {
        self.errors
    }

    /// Whether what is written down may be less than what is known.
    pub(super) fn is_degraded(&self) -> bool {
        self.on_disk.as_ref().is_some_and(|disk| disk.file.is_none())
    }

    /// Returns the file if something in it waits to be synced; it counts as synced from then on.
    pub(super) fn take_unsynced(&mut self) -> Option<File> {
        let disk = self.on_disk.as_mut().filter(|disk| disk.unsynced)?;
        disk.unsynced = false;
        disk.file.as_ref()?.try_clone().ok()
    }

    /// Whether the file should be replaced by a snapshot.
    pub(super) fn wants_snapshot(&self) -> bool {
        let due = |disk: &OnDisk| disk.file.is_none() || disk.length > disk.compact_at;
        self.on_disk.as_ref().is_some_and(|disk| disk.meanwhile.is_none() && due(disk))
    }

    /// Begins to replace the file; nothing if there is none, or it is being replaced already.
    pub(super) fn begin_snapshot(&mut self, kept: &Kept, at_ms: i64) -> Option<Snapshot> {
        let disk = self.on_disk.as_mut().filter(|disk| disk.meanwhile.is_none())?;
        let mut bytes = Vec::new();
        line(&Record::Journal { version: VERSION, at_ms }, &mut bytes);
        for record in kept.records() {
            line(&record, &mut bytes);
        }
        disk.meanwhile = Some(Vec::new());
        Some(Snapshot { bytes, path: disk.path.clone() })
    }

    /// Puts a snapshot in the place of the file, with what was appended since it began.
    ///
    /// `written` is what [`Snapshot::write`] returned.
    pub(super) fn end_snapshot(&mut self, written: io::Result<File>) {
        let Some(disk) = &mut self.on_disk else { return };
        let meanwhile = disk.meanwhile.take().unwrap_or_default();
        let replace = || -> io::Result<(File, u64)> {
            let mut file = written?;
            file.write_all(&meanwhile)?;
            let length = file.metadata()?.len();
            std::fs::rename(with_suffix(&disk.path, ".new"), &disk.path)?;
            Ok((file, length))
        };
        match replace() {
            Ok((file, length)) => {
                disk.file = Some(file);
                disk.length = length;
                disk.compact_at = COMPACT_BYTES.max(length.saturating_mul(4));
                disk.unsynced = true;
            }
            Err(error) => {
                tracing::error!(path = %disk.path.display(), %error, "no snapshot of the journal of alerts");
                self.errors += 1;
                // Not again at once.
                disk.compact_at = disk.length.saturating_mul(2).max(COMPACT_BYTES);
            }
        }
    }

    /// Returns the folder of the file, to be synced after a rename.
    pub(super) fn folder(&self) -> Option<PathBuf> {
        let folder = self.on_disk.as_ref()?.path.parent()?;
        let here = folder.as_os_str().is_empty();
        Some(if here { PathBuf::from(".") } else { folder.to_owned() })
    }
}

impl Snapshot {
    /// Writes the snapshot beside the file and syncs it. Takes as long as the disk does.
    pub(super) fn write(&self) -> io::Result<File> {
        let path = with_suffix(&self.path, ".new");
        let mut file = writable(&path)?;
        file.set_len(0)?;
        file.write_all(&self.bytes)?;
        file.sync_all()?;
        Ok(file)
    }
}

/// Syncs a folder, where the system can, so that a new name in it survives a power cut.
pub(super) fn sync_folder(folder: &Path) {
    // Not every file system offers it, and there is nothing else that could be done.
    let _ = File::open(folder).and_then(|folder| folder.sync_all());
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Opens a file for reading and writing that only its owner can read, as labels may be private.
fn writable(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

/// Writes a record as a line.
fn line(record: &Record, lines: &mut Vec<u8>) {
    let json = serde_json::to_vec(record).expect("texts and numbers can be written as JSON");
    // A write to a vector does not fail.
    let _ = write!(lines, "{:08x} ", crc32c::crc32c(&json));
    lines.extend_from_slice(&json);
    lines.push(b'\n');
}

/// Reads a line without its line break.
fn read_line(line: &[u8]) -> Option<Record> {
    let (sum, json) = line.split_at_checked(9)?;
    let sum = u32::from_str_radix(std::str::from_utf8(sum.strip_suffix(b" ")?).ok()?, 16).ok()?;
    (sum == crc32c::crc32c(json)).then(|| serde_json::from_slice(json).ok())?
}

/// Applies all records of a file and returns how long its sound part is.
fn replay(file: &mut File, kept: &mut Kept) -> io::Result<(JournalReplay, u64)> {
    let mut found = JournalReplay::default();
    let mut length = 0;
    let mut reader = BufReader::new(file);
    let mut line = Vec::new();
    loop {
        let (read, whole) = next_line(&mut reader, &mut line)?;
        if !whole {
            found.cut_bytes = read;
            return Ok((found, length));
        }
        length += read;
        match read_line(&line) {
            Some(record) => {
                found.records += 1;
                kept.apply(&record);
            }
            None => found.damaged += 1,
        }
    }
}

/// Reads up to a line break; of a line over the limit only as much as the limit is kept. Returns the bytes
/// read and whether there was a line break.
fn next_line(reader: &mut impl io::BufRead, line: &mut Vec<u8>) -> io::Result<(u64, bool)> {
    line.clear();
    let mut read = 0;
    loop {
        let buffer = reader.fill_buf()?;
        if buffer.is_empty() {
            return Ok((read, false));
        }
        let end = buffer.iter().position(|&byte| byte == b'\n');
        let part = &buffer[..end.unwrap_or(buffer.len())];
        let room = LINE_MAX.saturating_sub(line.len());
        line.extend_from_slice(&part[..part.len().min(room)]);
        let used = part.len() + usize::from(end.is_some());
        reader.consume(used);
        read += used as u64;
        if end.is_some() {
            return Ok((read, true));
        }
    }
}

#[cfg(test)]
mod tests;
