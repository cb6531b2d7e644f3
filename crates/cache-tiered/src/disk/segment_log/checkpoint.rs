//! The checkpoint of a segment: what its records say, without their keys and values.
//!
//! When a segment is full, and for the newest one when the log is closed, the essence of its records
//! is written beside it, as `segment-<id>.index`. Opening reads these instead of the segments, 16 bytes
//! for each record, and scans only what no checkpoint covers: after a killed process that is the newest
//! segment at most. All numbers are little-endian.
//!
//! | offset | bytes | field |
//! |--:|--:|---|
//! | 0 | 4 | magic, `UPCP` |
//! | 4 | 4 | version, 1 |
//! | 8 | 8 | id of the segment |
//! | 16 | 4 | bytes of the segment that are covered, from its beginning |
//! | 20 | 4 | records in them |
//! | 24 | 4 | CRC32C of the records' header checksums, one after the other |
//! | 28 | 4 | CRC32C of the entries |
//! | 32 | 4 | CRC32C of the bytes 0 to 31 and the directory's seed |
//! | 36 | 16 each | entries in the order of the records |
//!
//! An entry is the hash of the key (8), the length of the record, with the highest bit set where the
//! key has no value from here on (4), and the expiry in seconds as the index has it (4). Records
//! follow each other without a gap, so the lengths tell where each one lies.
//!
//! # What may be believed
//!
//! A checkpoint is complete or it does not count: it is written aside and renamed, and its checksums
//! bind it to its segment and directory. It speaks of bytes that are never written again; the one
//! exception, a record withdrawn in place, deletes it first. A segment that is shorter than its
//! checkpoint says has lost records. And every read checks the record itself, so even a checkpoint
//! that lies yields a miss, not a wrong value.
//!
//! It is synced where the policy syncs segments. Where it is not, a loss of power may leave it
//! incomplete, which its checksums show; then the segment is scanned.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use super::index::{MAX_RECORD, Slot};
use super::record::{HEADER_LEN, Header};
use super::segment::checkpoint_path;

const MAGIC: [u8; 4] = *b"UPCP";
const VERSION: u32 = 1;
/// Bytes in front of the entries.
pub(super) const PREAMBLE: usize = 36;
/// Bytes of an entry.
pub(super) const ENTRY: usize = 16;
/// The bit of an entry's length that marks the absence of a value.
const ABSENT: u32 = 1 << 31;
/// What a checkpoint is called until it is complete.
const ASIDE: &str = "index-new";

/// The records of a segment from its beginning, as far as they were followed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Digest {
    /// Bytes of the segment that the records take.
    pub(super) covered: u32,
    /// The records' header checksums, one after the other, checked together.
    pub(super) chain: u32,
    entries: Vec<u8>,
}

impl Digest {
    /// Returns the number of records.
    pub(super) fn records(&self) -> u32 {
        (self.entries.len() / ENTRY) as u32
    }

    /// Adds the next record, which begins with the header `bytes`.
    pub(super) fn push(&mut self, header: &Header, bytes: &[u8], counts: bool) {
        let len = header.record_len() as u32;
        let absent = if counts && u64::from(len) < MAX_RECORD { 0 } else { ABSENT };
        let mut entry = [0; ENTRY];
        entry[..8].copy_from_slice(&header.hash.to_le_bytes());
        entry[8..12].copy_from_slice(&(len & !ABSENT | absent).to_le_bytes());
        entry[12..].copy_from_slice(&Slot::expiry(header.expires_at_ms).to_le_bytes());
        self.entries.extend_from_slice(&entry);
        self.covered += len;
        self.chain = crc32c::crc32c_append(self.chain, &bytes[HEADER_LEN - 4..HEADER_LEN]);
    }

    /// Adds the records that follow.
    pub(super) fn extend(&mut self, next: &Self) {
        let checksums = next.entries.len() / ENTRY * 4;
        self.chain = crc32c::crc32c_combine(self.chain, next.chain, checksums);
        self.entries.extend_from_slice(&next.entries);
        self.covered += next.covered;
    }

    /// Returns what was followed so far, and begins anew with room for as much again.
    pub(super) fn take(&mut self) -> Self {
        let entries = Vec::with_capacity(self.entries.len());
        std::mem::replace(self, Self { entries, ..Self::default() })
    }

    /// Forgets what was followed.
    pub(super) fn clear(&mut self) {
        self.entries.clear();
        (self.covered, self.chain) = (0, 0);
    }

    /// Returns what the records do to the index, in their order; a removal has the length 0.
    pub(super) fn changes(&self, segment: u64) -> impl Iterator<Item = Slot> + '_ {
        let mut offset = 0;
        self.entries.chunks_exact(ENTRY).map(move |entry| {
            let word = u32_at(entry, 8);
            let slot = Slot {
                hash: u64::from_le_bytes(entry[..8].try_into().expect("eight bytes")),
                segment: segment as u32,
                offset,
                len: if word & ABSENT == 0 { word } else { 0 },
                expires_s: u32_at(entry, 12),
            };
            offset += word & !ABSENT;
            slot
        })
    }

    /// Returns the length of the checkpoint that `write` would make.
    pub(super) fn file_len(&self) -> u64 {
        (PREAMBLE + self.entries.len()) as u64
    }

    fn preamble(&self, seed: u64, segment: u64) -> [u8; PREAMBLE] {
        let mut out = [0; PREAMBLE];
        out[..4].copy_from_slice(&MAGIC);
        out[4..8].copy_from_slice(&VERSION.to_le_bytes());
        out[8..16].copy_from_slice(&segment.to_le_bytes());
        out[16..20].copy_from_slice(&self.covered.to_le_bytes());
        out[20..24].copy_from_slice(&self.records().to_le_bytes());
        out[24..28].copy_from_slice(&self.chain.to_le_bytes());
        out[28..32].copy_from_slice(&crc32c::crc32c(&self.entries).to_le_bytes());
        let crc = checksum(&out, seed);
        out[32..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Writes the checkpoint of a segment; it is there as a whole or not at all.
    pub(super) fn write(
        &self,
        seed: u64,
        segment: u64,
        segment_path: &Path,
        sync: bool,
    ) -> io::Result<()> {
        let path = checkpoint_path(segment_path);
        let aside = path.with_extension(ASIDE);
        let written = (|| {
            let mut file = File::create(&aside)?;
            file.write_all(&self.preamble(seed, segment))?;
            file.write_all(&self.entries)?;
            if sync {
                file.sync_all()?;
            }
            std::fs::rename(&aside, &path)
        })();
        if written.is_err() {
            // What is left is deleted at the next opening at the latest.
            let _ = std::fs::remove_file(&aside);
        }
        written
    }
}

/// What the file beside a segment turned out to be.
#[derive(Debug)]
pub(super) enum Found {
    /// There is none.
    None,
    /// It is whole and fits the segment.
    Whole(Digest),
    /// It speaks of more bytes than the segment has: records were lost.
    Beyond,
    /// It is damaged, or of another segment, directory or version.
    Broken,
}

/// Reads the checkpoint of a segment of `segment_len` bytes, if there is one.
///
/// It never takes more memory than a segment of this length can need.
pub(super) fn read(seed: u64, segment: u64, segment_path: &Path, segment_len: u64) -> Found {
    let file = match File::open(checkpoint_path(segment_path)) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Found::None,
        Err(_) => return Found::Broken,
    };
    parse(file, seed, segment, segment_len).unwrap_or(Found::Broken)
}

/// Reads a checkpoint. An error of reading is damage like any other.
pub(super) fn parse(
    mut from: impl Read,
    seed: u64,
    segment: u64,
    segment_len: u64,
) -> io::Result<Found> {
    let mut preamble = [0; PREAMBLE];
    from.read_exact(&mut preamble)?;
    let id = u64::from_le_bytes(preamble[8..16].try_into().expect("eight bytes"));
    let genuine = preamble[..4] == MAGIC
        && u32_at(&preamble, 4) == VERSION
        && u32_at(&preamble, 32) == checksum(&preamble, seed)
        && id == segment;
    if !genuine {
        return Ok(Found::Broken);
    }
    let covered = u32_at(&preamble, 16);
    if u64::from(covered) > segment_len {
        return Ok(Found::Beyond);
    }
    let records = u32_at(&preamble, 20) as usize;
    if records > covered as usize / HEADER_LEN {
        return Ok(Found::Broken);
    }
    let mut entries = vec![0; records * ENTRY];
    from.read_exact(&mut entries)?;
    let lengths = entries.chunks_exact(ENTRY).map(|entry| u64::from(u32_at(entry, 8) & !ABSENT));
    let whole = u32_at(&preamble, 28) == crc32c::crc32c(&entries)
        && lengths.sum::<u64>() == u64::from(covered)
        && from.read(&mut [0])? == 0;
    if !whole {
        return Ok(Found::Broken);
    }
    Ok(Found::Whole(Digest { covered, chain: u32_at(&preamble, 24), entries }))
}

/// Tells whether a name is that of a checkpoint which was never completed.
pub(super) fn is_aside(name: &str) -> bool {
    name.strip_suffix(ASIDE).is_some_and(|rest| rest.starts_with("segment-"))
}

fn checksum(preamble: &[u8; PREAMBLE], seed: u64) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&preamble[..32]), &seed.to_le_bytes())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}
