//! Looking after a segment log that nobody has open: finding what is broken, and giving space back.
//!
//! Both take the directory's lock, so a running cache keeps them out and they keep it out.
//!
//! [`verify`] reads every byte and changes nothing. It goes through the segments as recovery does and
//! tells what the next opening would find.
//!
//! [`compact`] copies what is alive into new segments, the oldest segment first, and deletes each old
//! one when its copies are on the medium. That is how the log works in any case: entries are appended,
//! and segments are deleted strictly in the order of age. So whenever it is killed, what is left is a log that
//! has some entries twice, and the next opening takes the newer copy.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::checkpoint::{self, Digest};
use super::forward::Copied;
use super::index::{Index, Slot};
use super::record::{HEADER_LEN, Header, Kind, Place};
use super::recovery::Window;
use super::segment::Segment;
use super::{ENGINE, FORMAT_VERSION, MAX_SEGMENT, MIN_SEGMENT, SegmentLog, SegmentLogOptions};
use crate::disk::directory::Directory;
use crate::disk::engine::{DiskError, DiskTier, Fsync, OpenError};

/// Broken records that a report names for each segment; more are only counted.
const NAMED: usize = 100;

/// What [`verify`] found in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct VerifyReport {
    /// The segments, oldest first.
    pub segments: Vec<SegmentReport>,
    /// Entries that the next opening would find, expired ones included.
    pub entries: u64,
    /// Bytes of their records.
    pub live_bytes: u64,
    /// Gaps in the sequence of segments: whole files that are missing.
    pub gaps: u64,
}

/// How a directory as a whole is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Everything is as it was written.
    Sound,
    /// The newest segment ends inside a record, as after a killed process. Opening cuts that off.
    TornTail,
    /// Something is damaged. Opening drops what cannot be trusted.
    Damaged,
}

impl VerifyReport {
    /// Returns how the directory as a whole is.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        let damaged = |segment: &SegmentReport| {
            segment.damaged > 0 || segment.checkpoint == CheckpointState::Broken
        };
        if self.gaps > 0 || self.segments.iter().any(damaged) {
            Verdict::Damaged
        } else if self.segments.iter().any(|segment| segment.torn_at.is_some()) {
            Verdict::TornTail
        } else {
            Verdict::Sound
        }
    }
}

/// What [`verify`] found in one segment.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SegmentReport {
    /// Which segment it is; they are numbered in the order in which they were begun.
    pub id: u64,
    /// The file.
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// Whole records in it, those of removals included.
    pub records: u64,
    /// Records that the next opening would find something by.
    pub live_records: u64,
    /// Bytes of these.
    pub live_bytes: u64,
    /// How its checkpoint is.
    pub checkpoint: CheckpointState,
    /// Where the file ends too early, if it is the newest and does.
    pub torn_at: Option<u64>,
    /// How many places are damaged.
    pub damaged: u64,
    /// The first hundred of them.
    pub broken: Vec<BrokenRecord>,
}

impl SegmentReport {
    fn damage(&mut self, offset: u32, reason: Damage) {
        self.damaged += 1;
        if self.broken.len() < NAMED {
            self.broken.push(BrokenRecord { offset: offset.into(), reason });
        }
    }
}

/// A place in a segment that is not as it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct BrokenRecord {
    /// Where it begins in the file.
    pub offset: u64,
    /// What is wrong.
    pub reason: Damage,
}

/// What may be wrong with a place in a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Damage {
    /// No valid record begins here. Opening gives up everything older, since it may be out of date.
    #[error("no valid record header")]
    Header,
    /// Key or value do not have their checksum. Opening drops this entry.
    #[error("key or value differ from their checksum")]
    Body,
    /// The record, or others behind it, are missing at the end of a segment that is not the newest.
    #[error("records are missing at the end of the segment")]
    CutOff,
    /// The operating system could not read it.
    #[error("the file cannot be read")]
    Unreadable,
}

/// How the checkpoint of a segment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum CheckpointState {
    /// There is none: opening scans the segment.
    Absent,
    /// It is whole and agrees with the records.
    Sound,
    /// It is damaged or does not agree: opening scans the segment, or the records are damaged.
    Broken,
}

/// Checks every record and checkpoint of a directory that no cache has open, and changes nothing.
///
/// `progress` is called with the bytes read so far and those there are.
///
/// # Errors
///
/// [`OpenError`], if it is not a segment log, or in use, or cannot be listed. Damage is not an error.
///
/// # Cost
///
/// Reads all segments once; memory as for an open log.
pub fn verify(
    path: impl AsRef<Path>,
    mut progress: impl FnMut(u64, u64),
) -> Result<VerifyReport, OpenError> {
    let path = path.as_ref();
    let directory = Directory::existing(path, ENGINE, FORMAT_VERSION)?;
    let files = segments(path)?;
    let all: u64 = files.iter().map(|(_, _, len)| len).sum();
    let index = Index::new();
    let mut report = VerifyReport { segments: Vec::new(), entries: 0, live_bytes: 0, gaps: 0 };
    let last = files.last().map(|(id, _, _)| *id);
    let mut expected = None;
    let mut done = 0;
    for (id, path, len) in files {
        if expected.is_some_and(|expected| expected != id) {
            report.gaps += 1;
            index.clear();
        }
        expected = Some(id + 1);
        let mut segment = SegmentReport {
            id,
            path,
            bytes: len,
            records: 0,
            live_records: 0,
            live_bytes: 0,
            checkpoint: CheckpointState::Absent,
            torn_at: None,
            damaged: 0,
            broken: Vec::new(),
        };
        check_segment(&mut segment, directory.seed(), &index, last == Some(id), |read| {
            progress(done + read, all);
        });
        done += len;
        progress(done, all);
        report.segments.push(segment);
    }
    let first = report.segments.first().map_or(0, |segment| segment.id as u32);
    index.for_each(|slot| {
        report.entries += 1;
        report.live_bytes += u64::from(slot.len);
        // Where segments are missing, it stands before the place that its number says.
        let after = slot.segment.wrapping_sub(first) as usize + 1;
        let upto = after.min(report.segments.len());
        let mut near = report.segments[..upto].iter_mut().rev();
        let found = near.find(|segment| segment.id as u32 == slot.segment);
        if let Some(segment) = found {
            segment.live_records += 1;
            segment.live_bytes += u64::from(slot.len);
        }
    });
    Ok(report)
}

/// Lists segments with their lengths, oldest first.
fn segments(directory: &Path) -> Result<Vec<(u64, PathBuf, u64)>, OpenError> {
    let failed = |e| OpenError::io("list", directory, e);
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if let Some(id) = entry.file_name().to_str().and_then(Segment::id_of) {
            files.push((id, entry.path(), entry.metadata().map_err(failed)?.len()));
        }
    }
    files.sort_unstable();
    Ok(files)
}

fn check_segment(
    report: &mut SegmentReport,
    seed: u64,
    index: &Index,
    is_last: bool,
    progress: impl FnMut(u64),
) {
    let len = u32::try_from(report.bytes).unwrap_or(u32::MAX);
    if len == 0 && !is_last {
        report.damage(0, Damage::CutOff);
        index.clear();
    }
    let mut expected = None;
    match checkpoint::read(seed, report.id, &report.path, report.bytes) {
        checkpoint::Found::None => {}
        checkpoint::Found::Whole(digest) => {
            report.checkpoint = CheckpointState::Sound;
            expected = Some(digest);
        }
        checkpoint::Found::Beyond if !is_last => {
            report.damage(len, Damage::CutOff);
            index.clear();
        }
        checkpoint::Found::Beyond => report.torn_at = Some(len.into()),
        checkpoint::Found::Broken => report.checkpoint = CheckpointState::Broken,
    }
    let read = File::open(&report.path).and_then(|file| {
        check_records(report, (seed, &file, len), index, is_last, expected.as_ref(), progress)
    });
    if read.is_err() {
        report.damage(0, Damage::Unreadable);
        index.clear();
    }
}

fn check_records(
    report: &mut SegmentReport,
    (seed, file, len): (u64, &File, u32),
    index: &Index,
    is_last: bool,
    expected: Option<&Digest>,
    mut progress: impl FnMut(u64),
) -> io::Result<()> {
    let mut window = Window::new(file, len);
    let mut digest = Digest::default();
    let (mut at, mut told) = (0, 0);
    while at < len {
        if at - told >= 8 << 20 {
            told = at;
            progress(at.into());
        }
        let place = Place { seed, segment: report.id, offset: at };
        let left = len - at;
        let header = if left < HEADER_LEN as u32 {
            None
        } else {
            Header::decode(window.at(at, HEADER_LEN)?, place)
        };
        let fits = header.is_some_and(|header| header.record_len() <= u64::from(left));
        let Some(header) = header.filter(|_| fits) else {
            let cut_short = left < HEADER_LEN as u32 || header.is_some();
            if is_last && (cut_short || window.is_zero_from(at)?) {
                report.torn_at = Some(at.into());
                break;
            }
            report.damage(at, if cut_short { Damage::CutOff } else { Damage::Header });
            index.clear();
            at = window.next_header(at, place)?;
            continue;
        };
        let record = window.at(at, header.record_len() as usize)?;
        let intact = header.matches(&record[HEADER_LEN..]);
        let counts = intact && header.live && header.kind == Kind::Put;
        digest.push(&header, record, counts);
        if let Some(expected) = expected.filter(|expected| expected.covered == digest.covered)
            && (expected.records(), expected.chain) != (digest.records(), digest.chain)
        {
            report.checkpoint = CheckpointState::Broken;
        }
        report.records += 1;
        if !intact {
            report.damage(at, Damage::Body);
        }
        if counts {
            index.insert(Slot {
                hash: header.hash,
                segment: report.id as u32,
                offset: at,
                len: header.record_len() as u32,
                expires_s: Slot::expiry(header.expires_at_ms),
            });
        } else {
            index.remove_if(header.hash, |_| true);
        }
        at += header.record_len() as u32;
    }
    if expected.is_some_and(|expected| expected.covered > digest.covered) {
        report.checkpoint = CheckpointState::Broken;
    }
    Ok(())
}

/// What [`compact`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct CompactReport {
    /// Entries that were kept.
    pub entries: u64,
    /// Entries that were dropped because they had expired.
    pub expired: u64,
    /// Entries that were dropped because they could not be read.
    pub broken: u64,
    /// Bytes of the segments and checkpoints before, in whole blocks of 4 KiB.
    pub bytes_before: u64,
    /// Bytes of them now.
    pub bytes_after: u64,
}

/// Why a directory was not compacted, or not to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CompactError {
    /// It could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// It could not be read or written.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// Gives back the space of what has expired, or was replaced or removed, while no cache has it open.
///
/// Entries keep their expiry and their order of age. Needs room for one more segment. `progress` is
/// called with the bytes of segments done and those there were.
///
/// A process that is killed in it leaves a directory that opens with every entry. So does a failure,
/// except that entries of up to two write buffers may be lost when the disk is full.
///
/// # Errors
///
/// [`CompactError::Open`], if it is not a segment log or in use. [`CompactError::Disk`], if entries could
/// not be written: the segments that are not done stay as they were.
///
/// # Cost
///
/// Reads what an opening reads, then each live entry once, and writes it.
pub fn compact(
    path: impl AsRef<Path>,
    mut progress: impl FnMut(u64, u64),
) -> Result<CompactReport, CompactError> {
    let path = path.as_ref();
    // So that nothing is made of a directory that is no cache.
    drop(Directory::existing(path, ENGINE, FORMAT_VERSION)?);
    let longest = segments(path)?.iter().map(|(_, _, len)| *len).max().unwrap_or(0);
    let mut options = SegmentLogOptions::new(path, 1 << 60);
    options.segment_bytes = Some(longest.next_multiple_of(4096).clamp(MIN_SEGMENT, MAX_SEGMENT));
    options.forward_percent = 0;
    options.fsync = Fsync::Always;
    let log = SegmentLog::open(options)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    log.compact(now.as_millis() as u64, &mut progress)
}

impl SegmentLog {
    fn compact(
        &self,
        now_ms: u64,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<CompactReport, CompactError> {
        let mut old: Vec<_> = self.segments.read().iter().cloned().collect();
        let bytes = || self.segments.read().iter().map(|s| s.disk_bytes()).sum::<u64>();
        let mut report = CompactReport { bytes_before: bytes(), ..CompactReport::default() };
        let all: u64 = old.iter().map(|segment| u64::from(segment.flushed())).sum();
        if all == 0 {
            return Ok(report);
        }
        // Nothing waits in the buffers, because nothing was put. A newest segment that is empty is gone on
        // with: left behind, it would look like one that has lost its records.
        let mut tail = self.tail.lock();
        if tail.segment.flushed() > 0 {
            self.advance(&mut tail);
        }
        old.retain(|segment| segment.id != tail.segment.id);
        drop(tail);
        let mut done = 0;
        for segment in old {
            let hashes = segment.some_hashes(0, usize::MAX);
            let per_hash = u64::from(segment.flushed()) / hashes.len().max(1) as u64;
            for (at, hash) in hashes.into_iter().enumerate() {
                if at % 4096 == 4095 {
                    progress(done + at as u64 * per_hash, all);
                }
                let current = self.index.get(hash);
                let Some(slot) = current.filter(|slot| slot.segment == segment.id as u32) else {
                    continue;
                };
                let copied = if slot.expired(now_ms) {
                    Copied::Expired
                } else {
                    self.append_copy(&slot, now_ms)
                };
                match copied {
                    Copied::Done => report.entries += 1,
                    Copied::Expired => report.expired += 1,
                    Copied::Gone => report.broken += 1,
                }
            }
            self.flush()?;
            self.evict_oldest();
            done += u64::from(segment.flushed());
            progress(done, all);
        }
        // What a close does, done here for the report to have it.
        self.checkpoint(&mut self.io.lock());
        report.bytes_after = bytes();
        Ok(report)
    }
}
