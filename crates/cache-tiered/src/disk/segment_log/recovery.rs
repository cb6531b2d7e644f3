//! Opening a segment log: the index is rebuilt by reading every record once, oldest first.
//!
//! What is found decides what may be believed:
//!
//! - **The log ends inside a record, or in nothing but zeros.** That is how a process or a machine
//!   dies in mid-write. The tail is cut off; what remains is the log as it was a moment earlier.
//! - **A header is good and its body is not.** The value is lost, but its key is known, so the record
//!   counts as a tombstone: an older value of the key must not come back.
//! - **A header is damaged.** Whatever stood there may have replaced or removed any key, so everything
//!   older is given up. Newer records are complete and stay; the search for the next one cannot be
//!   misled, because a header is valid at its own place only.
//! - **A segment is missing, empty or unreadable** before others: the same, everything older goes.
//!
//! So after such damage the index says, for each key, either what the log last said or nothing. What
//! cannot be told is a segment before others that was cut exactly between two records, which no
//! killed process leaves behind: then what the lost records replaced may come back.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::index::{Index, Slot};
use super::record::{HEADER_LEN, Header, Kind, Place, START};
use super::segment::{Segment, read_exact_at};
use crate::disk::directory::Directory;
use crate::disk::engine::OpenError;

const CHUNK: usize = 1 << 20;

/// What the directory held.
pub(super) struct Recovered {
    /// The segments, oldest first, with ids that follow each other.
    pub(super) segments: VecDeque<Arc<Segment>>,
    /// Damaged places that were met.
    pub(super) corrupt: u64,
    /// Entries given up because something newer was illegible.
    pub(super) dropped: u64,
}

/// Reads the segments of a directory into an empty index.
pub(super) fn recover(directory: &Directory, index: &Index) -> Result<Recovered, OpenError> {
    let files = list(directory)?;
    let mut found = Recovered { segments: VecDeque::new(), corrupt: 0, dropped: 0 };
    let last = files.last().map(|(id, _)| *id);
    let mut expected = None;
    for (id, path) in files {
        if expected.is_some_and(|expected| expected != id) {
            found.corrupt += 1;
            found.forget_older(index)?;
        }
        expected = Some(id + 1);
        let is_last = last == Some(id);
        let file = File::options()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(|e| OpenError::io("open", &path, e))?;
        found.read_segment(directory.seed(), index, id, path, file, is_last)?;
    }
    if found.corrupt > 0 {
        tracing::warn!(
            directory = %directory.path().display(),
            damaged = found.corrupt,
            dropped = found.dropped,
            "the disk cache was damaged; what could not be trusted was dropped"
        );
    }
    Ok(found)
}

fn list(directory: &Directory) -> Result<Vec<(u64, PathBuf)>, OpenError> {
    let path = directory.path();
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(|e| OpenError::io("list", path, e))? {
        let entry = entry.map_err(|e| OpenError::io("list", path, e))?;
        if let Some(id) = entry.file_name().to_str().and_then(Segment::id_of) {
            files.push((id, entry.path()));
        }
    }
    files.sort_unstable();
    Ok(files)
}

/// How the reading of a segment ended.
enum End {
    /// At its end, or behind the last damaged place.
    Whole,
    /// The tail behind this offset was never written completely.
    Torn(u32),
}

impl Recovered {
    fn forget_older(&mut self, index: &Index) -> Result<(), OpenError> {
        self.dropped += index.clear() as u64;
        // Oldest first: if this is cut short, what remains is still the newer part of the log.
        for segment in self.segments.drain(..) {
            segment.unlink().map_err(|e| OpenError::io("delete", &segment.path, e))?;
        }
        Ok(())
    }

    fn read_segment(
        &mut self,
        seed: u64,
        index: &Index,
        id: u64,
        path: PathBuf,
        file: File,
        is_last: bool,
    ) -> Result<(), OpenError> {
        let len = file.metadata().map_err(|e| OpenError::io("read", &path, e))?.len();
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        if len == 0 && !is_last {
            // A loss of power may leave a name without its bytes, which is as if it were missing.
            self.corrupt += 1;
            self.forget_older(index)?;
        }
        let mut hashes = Vec::new();
        let end = self.scan(
            &file,
            len,
            is_last,
            Place { seed, segment: id, offset: 0 },
            index,
            &mut hashes,
        )?;
        let len = match end {
            Ok(End::Whole) => len,
            Ok(End::Torn(at)) => {
                file.set_len(u64::from(at)).map_err(|e| OpenError::io("truncate", &path, e))?;
                at
            }
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "dropping a segment that cannot be read");
                self.corrupt += 1;
                self.forget_older(index)?;
                let segment = Segment::new(path.parent().unwrap_or(&path), id);
                return segment.unlink().map_err(|e| OpenError::io("delete", &path, e));
            }
        };
        let segment = Segment::existing(path, id, file, len);
        for hash in hashes {
            segment.note(hash);
        }
        segment.seal();
        self.segments.push_back(Arc::new(segment));
        Ok(())
    }

    /// Applies the records of one segment. The inner error is one of reading the file.
    fn scan(
        &mut self,
        file: &File,
        len: u32,
        is_last: bool,
        start: Place,
        index: &Index,
        hashes: &mut Vec<u64>,
    ) -> Result<io::Result<End>, OpenError> {
        let mut window = Window { file, len, base: 0, bytes: Vec::new() };
        let mut at = 0;
        macro_rules! read {
            ($result:expr) => {
                match $result {
                    Ok(value) => value,
                    Err(error) => return Ok(Err(error)),
                }
            };
        }
        while at < len {
            let place = Place { offset: at, ..start };
            let left = len - at;
            let header = if left < HEADER_LEN as u32 {
                None
            } else {
                Header::decode(read!(window.at(at, HEADER_LEN)), place)
            };
            let fits = header.is_some_and(|header| header.record_len() <= u64::from(left));
            let Some(header) = header.filter(|_| fits) else {
                let cut_short = left < HEADER_LEN as u32 || header.is_some();
                if is_last && (cut_short || read!(window.is_zero_from(at))) {
                    return Ok(Ok(End::Torn(at)));
                }
                self.corrupt += 1;
                self.forget_older(index)?;
                hashes.clear();
                at = read!(window.next_header(at, start));
                continue;
            };
            let record_len = header.record_len() as u32;
            let body = &read!(window.at(at, record_len as usize))[HEADER_LEN..];
            let intact = header.matches(body);
            self.corrupt += u64::from(!intact);
            if intact && header.live && header.kind == Kind::Put {
                let replaced = index.insert(Slot {
                    hash: header.hash,
                    segment: start.segment as u32,
                    offset: at,
                    len: record_len,
                    expires_s: Slot::expiry(header.expires_at_ms),
                });
                if replaced.is_none_or(|old| old.segment != start.segment as u32) {
                    hashes.push(header.hash);
                }
            } else {
                index.remove_if(header.hash, |_| true);
            }
            at += record_len;
        }
        Ok(Ok(End::Whole))
    }
}

/// A part of a segment in memory, read in large chunks.
struct Window<'a> {
    file: &'a File,
    len: u32,
    base: u32,
    bytes: Vec<u8>,
}

impl Window<'_> {
    /// Returns `count` bytes from `offset`, which lie within the file.
    fn at(&mut self, offset: u32, count: usize) -> io::Result<&[u8]> {
        let loaded = offset
            .checked_sub(self.base)
            .map(|from| from as usize)
            .filter(|from| from + count <= self.bytes.len());
        let from = if let Some(from) = loaded {
            from
        } else {
            let want = count.max(CHUNK).min((self.len - offset) as usize);
            self.bytes.resize(want, 0);
            self.base = offset;
            if let Err(error) = read_exact_at(self.file, &mut self.bytes, u64::from(offset)) {
                self.bytes.clear();
                return Err(error);
            }
            0
        };
        Ok(&self.bytes[from..from + count])
    }

    /// Tells whether the rest of the file is zeros: space that was given but never written.
    fn is_zero_from(&mut self, mut offset: u32) -> io::Result<bool> {
        while offset < self.len {
            let count = CHUNK.min((self.len - offset) as usize);
            if self.at(offset, count)?.iter().any(|byte| *byte != 0) {
                return Ok(false);
            }
            offset += count as u32;
        }
        Ok(true)
    }

    /// Returns the offset of the next valid header behind `offset`, or the end of the file.
    fn next_header(&mut self, offset: u32, start: Place) -> io::Result<u32> {
        for at in offset + 1..self.len.saturating_sub(HEADER_LEN as u32 - 1) {
            let bytes = self.at(at, HEADER_LEN)?;
            if bytes.starts_with(&START)
                && Header::decode(bytes, Place { offset: at, ..start }).is_some()
            {
                return Ok(at);
            }
        }
        Ok(self.len)
    }
}
