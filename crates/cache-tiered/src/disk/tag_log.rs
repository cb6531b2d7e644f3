//! Which tags were invalidated when, in a file beside the engine's own.
//!
//! Entries outlive the process, so what made some of them invalid has to. `tags` begins with 28 bytes
//! (`UPTAGS01`, the floor and the time of the cache's tags, CRC32C of those) and goes on with 20 bytes
//! for each invalidation: the tag's number, the time, CRC32C of both. Integers are little-endian. It is
//! read up to the first record that is not whole, and written anew, aside, when the tier is opened and
//! when it has grown to its bound.
//!
//! A missing file says that nothing is known: every entry with tags that was written before counts as
//! invalid. So a file that could not be appended to is deleted.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::engine::Fsync;
use crate::clock::Clock;
use crate::files::replace;
use crate::tags::TagTable;

const FILE: &str = "tags";
const ASIDE: &str = "tags.new";
const MAGIC: &[u8; 8] = b"UPTAGS01";
const HEADER: usize = 28;
const RECORD: usize = 20;

/// What of a tier's capacity the file may take.
const SHARE: u64 = 64;
const BYTES_MAX: u64 = 4 << 20;

/// The most bytes that the file takes in a tier of this capacity; the engine gets so much less.
pub(super) fn reserved_bytes(capacity_bytes: u64) -> u64 {
    (capacity_bytes / SHARE).min(BYTES_MAX)
}

/// The file of one directory, which the engine's lock protects.
#[derive(Debug)]
pub(super) struct TagLog {
    directory: PathBuf,
    /// Whether an invalidation has to outlive a loss of power, as values may.
    synced: bool,
    /// Absent after a failure: the next note tries to make it anew.
    file: Option<File>,
    bytes: u64,
    bytes_max: u64,
}

impl TagLog {
    /// Takes over into `tags` what the file knows, and writes it anew. It does not fail: a file that cannot
    /// be read or written is as good as none.
    pub(super) fn open(
        directory: &Path,
        capacity_bytes: u64,
        fsync: Fsync,
        tags: &TagTable,
        clock: &Clock,
    ) -> Self {
        let bytes_max = reserved_bytes(capacity_bytes);
        let (directory, synced) = (directory.to_owned(), fsync != Fsync::Never);
        let mut this = Self { directory, synced, file: None, bytes: 0, bytes_max };
        let path = this.directory.join(FILE);
        // Larger ones are not written.
        let fits = |bytes: &Vec<u8>| bytes.len() as u64 <= BYTES_MAX;
        if !fs::read(&path).ok().filter(fits).is_some_and(|bytes| restore(&bytes, tags)) {
            // Above every time that earlier processes have given out: invalidations are fewer than
            // microseconds.
            let now = clock.unix_now().saturating_mul(1_000);
            tags.begin(now, now);
        }
        // Reported already.
        let _ = this.rewrite_or_delete(tags);
        this
    }

    /// Appends invalidations that `tags` knows already.
    ///
    /// # Errors
    ///
    /// When the file was not written. It is gone then.
    pub(super) fn note(&mut self, time: u64, numbers: &[u64], tags: &TagTable) -> io::Result<()> {
        let records: Vec<u8> = numbers.iter().flat_map(|number| record(*number, time)).collect();
        let grown = self.bytes + records.len() as u64;
        match &mut self.file {
            Some(file) if grown <= self.bytes_max => {
                self.bytes = grown;
                let mut appended = file.write_all(&records);
                if self.synced && appended.is_ok() {
                    appended = file.sync_data();
                }
                if appended.is_err() {
                    self.delete();
                }
                appended
            }
            _ => self.rewrite_or_delete(tags),
        }
    }

    fn rewrite_or_delete(&mut self, tags: &TagTable) -> io::Result<()> {
        let written = self.rewrite(tags);
        if let Err(error) = &written {
            let directory = self.directory.display();
            tracing::warn!(%directory, %error, "the invalidated tags of a disk tier were not written");
            self.delete();
        }
        written
    }

    /// Writes the file anew, no more than half of its bound.
    fn rewrite(&mut self, tags: &TagTable) -> io::Result<()> {
        let records_max = (self.bytes_max as usize / 2).saturating_sub(HEADER) / RECORD;
        let (mut floor, time, mut known) = tags.snapshot();
        if let Some(excess) = known.len().checked_sub(records_max).filter(|excess| *excess > 0) {
            floor = known[excess - 1].1;
            known.retain(|(_, time)| *time > floor);
        }
        let mut bytes = Vec::with_capacity(HEADER + RECORD * known.len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&floor.to_le_bytes());
        bytes.extend_from_slice(&time.to_le_bytes());
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        known.iter().for_each(|(number, time)| bytes.extend_from_slice(&record(*number, *time)));
        let file = replace(&self.directory.join(FILE), &self.directory.join(ASIDE), &bytes)?;
        (self.bytes, self.file) = (bytes.len() as u64, Some(file));
        Ok(())
    }

    fn delete(&mut self) {
        self.file = None;
        for name in [FILE, ASIDE] {
            let path = self.directory.join(name);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    let path = path.display();
                    tracing::error!(%path, %error, "delete this file: it does not tell all tags");
                }
                _ => {}
            }
        }
    }
}

fn record(number: u64, time: u64) -> [u8; RECORD] {
    let mut record = [0; RECORD];
    record[..8].copy_from_slice(&number.to_le_bytes());
    record[8..16].copy_from_slice(&time.to_le_bytes());
    let checksum = crc32c::crc32c(&record[..16]);
    record[16..].copy_from_slice(&checksum.to_le_bytes());
    record
}

/// Takes over what a file says; `false`, and nothing, if it has no good beginning.
fn restore(bytes: &[u8], tags: &TagTable) -> bool {
    let Some((header, mut rest)) = bytes.split_first_chunk::<HEADER>() else { return false };
    let u64_at = |bytes: &[u8], at: usize| {
        u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
    };
    let whole = crc32c::crc32c(&header[..24]).to_le_bytes() == header[24..];
    if header[..8] != *MAGIC || !whole {
        return false;
    }
    tags.begin(u64_at(header, 8), u64_at(header, 16));
    while let Some((record, further)) = rest.split_first_chunk::<RECORD>() {
        if crc32c::crc32c(&record[..16]).to_le_bytes() != record[16..] {
            break;
        }
        tags.restore(u64_at(record, 0), u64_at(record, 8));
        rest = further;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tags::{Attributes, Standing, Tag};

    const CAPACITY: u64 = 1 << 20;

    fn open(directory: &Path) -> (TagLog, TagTable) {
        let tags = TagTable::default();
        let log = TagLog::open(directory, CAPACITY, Fsync::Always, &tags, &Clock::default());
        (log, tags)
    }

    fn standing(tags: &TagTable, attributes: &[u8]) -> Standing {
        Attributes::decode(tags, attributes).expect("it was encoded here").standing(tags).0
    }

    fn written(tags: &TagTable, tag: &str) -> Vec<u8> {
        let numbers = [Tag::new(tag).number()];
        let attributes = Attributes::new(tags, numbers, tags.stamp(), Default::default());
        attributes.expect("it has a tag").encode(false)
    }

    #[test]
    fn what_was_invalidated_stays_so_after_a_restart_and_nothing_else_is() {
        let directory = tempfile::tempdir().unwrap();
        let (mut log, tags) = open(directory.path());
        let (a, b) = (written(&tags, "a"), written(&tags, "b"));
        let time = tags.invalidate(&[Tag::new("a").number(), Tag::new("c").soft_number()]);
        log.note(time, &[Tag::new("a").number(), Tag::new("c").soft_number()], &tags).unwrap();
        let later = written(&tags, "a");
        drop(log);
        for _ in 0..3 {
            let (_log, tags) = open(directory.path());
            let standings = [&a, &b, &later].map(|it| standing(&tags, it));
            assert_eq!(standings, [Standing::Invalid, Standing::Good, Standing::Good]);
            assert!(tags.now() >= time);
        }
    }

    #[test]
    fn a_torn_end_is_left_out_and_a_broken_beginning_makes_all_invalid() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE);
        let (mut log, tags) = open(directory.path());
        let (a, b) = (written(&tags, "a"), written(&tags, "b"));
        for tag in ["a", "b"] {
            let number = [Tag::new(tag).number()];
            let time = tags.invalidate(&number);
            log.note(time, &number, &tags).unwrap();
        }
        drop(log);
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() - 3]).unwrap();
        let (_log, tags) = open(directory.path());
        assert_eq!([&a, &b].map(|it| standing(&tags, it)), [Standing::Invalid, Standing::Good]);
        for broken in [&whole[..20], &[&[0; 9], &whole[9..]].concat()] {
            fs::write(&path, broken).unwrap();
            let (_log, tags) = open(directory.path());
            assert_eq!([&a, &b].map(|it| standing(&tags, it)), [Standing::Invalid; 2]);
            assert_eq!(standing(&tags, &written(&tags, "a")), Standing::Good);
        }
    }

    #[test]
    fn the_file_stays_within_its_bound_and_never_forgets_in_the_wrong_direction() {
        let directory = tempfile::tempdir().unwrap();
        let (mut log, tags) = open(directory.path());
        let old = written(&tags, "tag 0");
        for at in 0..5_000 {
            let number = [Tag::new(format!("tag {at}")).number()];
            let time = tags.invalidate(&number);
            log.note(time, &number, &tags).unwrap();
        }
        let bytes = fs::metadata(directory.path().join(FILE)).unwrap().len();
        assert!(bytes <= reserved_bytes(CAPACITY), "{bytes}");
        let new = written(&tags, "tag 4999");
        drop(log);
        let (_log, tags) = open(directory.path());
        assert_eq!([&old, &new].map(|it| standing(&tags, it)), [Standing::Invalid, Standing::Good]);
    }

    #[test]
    fn a_file_that_cannot_be_written_is_gone_and_made_anew_later() {
        let directory = tempfile::tempdir().unwrap();
        let (mut log, tags) = open(directory.path());
        let a = written(&tags, "a");
        // A folder in the way of the next rewriting, and a file that takes nothing.
        fs::create_dir(directory.path().join(ASIDE)).unwrap();
        log.file = Some(File::open(directory.path().join(FILE)).unwrap());
        let number = [Tag::new("a").number()];
        let time = tags.invalidate(&number);
        assert!(log.note(time, &number, &tags).is_err());
        assert!(!directory.path().join(FILE).exists());
        assert!(log.note(time, &number, &tags).is_err());
        fs::remove_dir(directory.path().join(ASIDE)).unwrap();
        log.note(time, &number, &tags).unwrap();
        drop(log);
        let (_log, tags) = open(directory.path());
        assert_eq!(standing(&tags, &a), Standing::Invalid);
    }
}
