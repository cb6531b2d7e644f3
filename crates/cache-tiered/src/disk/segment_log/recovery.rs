//! Opening a segment log: the index is rebuilt segment by segment, oldest first.
//!
//! What a [`checkpoint`] covers is taken from it; the rest is read, every record once. A segment that
//! was read as a whole and found sound gets its checkpoint then.
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
//! - **A checkpoint is damaged**: it is deleted, and its segment is read as if there had been none. **It
//!   covers more than its segment has**: records were lost. At the end of the log that is a torn tail;
//!   before other segments everything older goes.
//!
//! So after such damage the index says, for each key, either what the log last said or nothing. What
//! cannot be told is a segment before others, without a checkpoint, that was cut exactly between two
//! records, which no killed process leaves behind: then what the lost records replaced may come back.
//! Damage inside of what a checkpoint covers is met by the reads: they check every record.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::checkpoint::{self, Digest};
use super::index::{Index, MAX_RECORD, Slot};
use super::record::{HEADER_LEN, Header, Kind, Place, START};
use super::segment::{Segment, checkpoint_path, read_exact_at, remove_if_there};
use crate::disk::directory::Directory;
use crate::disk::engine::OpenError;

const CHUNK: usize = 1 << 20;
/// Changes that are collected before the index learns of them: 6 MiB.
const BATCH: usize = 1 << 18;

/// What the directory held.
pub(super) struct Recovered {
    /// The segments, oldest first, with ids that follow each other.
    pub(super) segments: VecDeque<Arc<Segment>>,
    /// Damaged places that were met.
    pub(super) corrupt: u64,
    /// Entries given up because something newer was illegible.
    pub(super) dropped: u64,
    /// The records of the newest segment, unless something in it was damaged, and how many of its
    /// bytes its checkpoint covers.
    pub(super) newest: Option<(Digest, u32)>,
    /// Bytes of segments that were read because no checkpoint covered them.
    pub(super) scanned: u64,
    /// Checkpoints written for segments that had none.
    pub(super) checkpoints: u64,
    /// Changes that the index has not learnt of yet.
    changes: Vec<Slot>,
    /// Where the index sorts them.
    sorted: Vec<Slot>,
}

/// Reads the segments of a directory into an empty index.
///
/// Segments before the newest get a checkpoint if they have `checkpoint_min` bytes and none yet.
pub(super) fn recover(
    directory: &Directory,
    index: &Index,
    checkpoint_min: u32,
) -> Result<Recovered, OpenError> {
    let files = list(directory)?;
    let mut found = Recovered {
        segments: VecDeque::new(),
        corrupt: 0,
        dropped: 0,
        newest: None,
        scanned: 0,
        checkpoints: 0,
        changes: Vec::new(),
        sorted: Vec::new(),
    };
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
        found.read_segment(directory, index, (id, path, file), is_last, checkpoint_min)?;
    }
    found.apply(index);
    (found.changes, found.sorted) = (Vec::new(), Vec::new());
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

/// Lists the segments by age. Checkpoints without a segment, and incomplete ones, are deleted.
pub(super) fn list(directory: &Directory) -> Result<Vec<(u64, PathBuf)>, OpenError> {
    let path = directory.path();
    let mut files = Vec::new();
    let mut checkpoints = Vec::new();
    for entry in std::fs::read_dir(path).map_err(|e| OpenError::io("list", path, e))? {
        let entry = entry.map_err(|e| OpenError::io("list", path, e))?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if let Some(id) = Segment::id_of(name) {
            files.push((id, entry.path()));
        } else if let Some(id) = Segment::id_of_checkpoint(name) {
            checkpoints.push((id, entry.path()));
        } else if checkpoint::is_aside(name) {
            remove_if_there(&entry.path())
                .map_err(|e| OpenError::io("delete", &entry.path(), e))?;
        }
    }
    files.sort_unstable();
    for (id, path) in checkpoints {
        if files.binary_search_by_key(&id, |(id, _)| *id).is_err() {
            remove_if_there(&path).map_err(|e| OpenError::io("delete", &path, e))?;
        }
    }
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
    fn apply(&mut self, index: &Index) {
        index.replay(&self.changes, &mut self.sorted);
        self.changes.clear();
    }

    fn change(&mut self, index: &Index, change: Slot) {
        self.changes.push(change);
        if self.changes.len() == BATCH {
            self.apply(index);
        }
    }

    fn forget_older(&mut self, index: &Index) -> Result<(), OpenError> {
        self.apply(index);
        self.dropped += index.clear() as u64;
        // Oldest first: if this is cut short, what remains is still the newer part of the log.
        for segment in self.segments.drain(..) {
            segment.unlink().map_err(|e| OpenError::io("delete", &segment.path, e))?;
        }
        Ok(())
    }

    fn read_segment(
        &mut self,
        directory: &Directory,
        index: &Index,
        (id, path, file): (u64, PathBuf, File),
        is_last: bool,
        checkpoint_min: u32,
    ) -> Result<(), OpenError> {
        let seed = directory.seed();
        let len = file.metadata().map_err(|e| OpenError::io("read", &path, e))?.len();
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        if len == 0 && !is_last {
            // A loss of power may leave a name without its bytes, which is as if it were missing.
            self.corrupt += 1;
            self.forget_older(index)?;
        }
        let found = checkpoint::read(seed, id, &path, len.into());
        if matches!(found, checkpoint::Found::Beyond) && !is_last && len > 0 {
            self.corrupt += 1;
            self.forget_older(index)?;
        }
        let digest = match found {
            checkpoint::Found::Whole(digest) => digest,
            checkpoint::Found::None => Digest::default(),
            checkpoint::Found::Beyond | checkpoint::Found::Broken => {
                // The segment may grow again, differently: what is wrong now must not fit then.
                let stale = checkpoint_path(&path);
                remove_if_there(&stale)
                    .and_then(|()| directory.sync())
                    .map_err(|e| OpenError::io("delete", &stale, e))?;
                Digest::default()
            }
        };
        let covered = digest.covered;
        let on_disk = if covered == 0 { 0 } else { digest.file_len() };
        let mut hashes = Vec::with_capacity(digest.records() as usize);
        for change in digest.changes(id) {
            if change.len > 0 {
                hashes.push(change.hash);
            }
            self.change(index, change);
        }
        let mut digest = Some(digest);
        self.scanned += u64::from(len - covered);
        let end = self.scan(
            &file,
            len,
            is_last,
            Place { seed, segment: id, offset: covered },
            index,
            &mut hashes,
            &mut digest,
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
        segment.set_hashes(hashes);
        // Nobody else knows the segment yet, so nothing in it is withdrawn meanwhile.
        let _ = segment.has_checkpoint(on_disk);
        if is_last {
            self.newest = digest.map(|digest| (digest, covered));
        } else if let Some(digest) = digest
            && covered < len
            && len >= checkpoint_min
            // Without room for it, the segment is scanned the next time too.
            && digest.write(seed, id, &segment.path, false).is_ok()
        {
            self.checkpoints += 1;
            let _ = segment.has_checkpoint(digest.file_len());
        }
        self.segments.push_back(Arc::new(segment));
        Ok(())
    }

    /// Applies the records of one segment from `start` on. The inner error is one of reading the file.
    ///
    /// `digest` follows the records, and is given up where they have a gap.
    #[expect(clippy::too_many_arguments, reason = "what is read, from where, and what it fills")]
    fn scan(
        &mut self,
        file: &File,
        len: u32,
        is_last: bool,
        start: Place,
        index: &Index,
        hashes: &mut Vec<u64>,
        digest: &mut Option<Digest>,
    ) -> Result<io::Result<End>, OpenError> {
        let mut window = Window::new(file, len);
        let mut at = start.offset;
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
                *digest = None;
                at = read!(window.next_header(at, start));
                continue;
            };
            let record_len = header.record_len() as u32;
            let record = read!(window.at(at, record_len as usize));
            let intact = header.matches(&record[HEADER_LEN..]);
            let counts = intact
                && header.live
                && header.kind == Kind::Put
                && u64::from(record_len) < MAX_RECORD;
            if let Some(digest) = digest {
                digest.push(&header, record, counts);
            }
            self.corrupt += u64::from(!intact);
            if counts {
                hashes.push(header.hash);
            }
            self.change(
                index,
                Slot {
                    hash: header.hash,
                    segment: start.segment as u32,
                    offset: at,
                    len: if counts { record_len } else { 0 },
                    expires_s: Slot::expiry(header.expires_at_ms),
                },
            );
            at += record_len;
        }
        Ok(Ok(End::Whole))
    }
}

/// A part of a segment in memory, read in large chunks.
pub(super) struct Window<'a> {
    file: &'a File,
    len: u32,
    base: u32,
    bytes: Vec<u8>,
}

impl<'a> Window<'a> {
    pub(super) fn new(file: &'a File, len: u32) -> Self {
        Self { file, len, base: 0, bytes: Vec::new() }
    }

    /// Returns `count` bytes from `offset`, which lie within the file.
    pub(super) fn at(&mut self, offset: u32, count: usize) -> io::Result<&[u8]> {
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
    pub(super) fn is_zero_from(&mut self, mut offset: u32) -> io::Result<bool> {
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
    pub(super) fn next_header(&mut self, offset: u32, start: Place) -> io::Result<u32> {
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
