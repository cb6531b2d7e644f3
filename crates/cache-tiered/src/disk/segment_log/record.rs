//! One record of a segment: its layout, and the only code that writes or checks it.
//!
//! All numbers are little-endian.
//!
//! | offset | bytes | field |
//! |--:|--:|---|
//! | 0 | 1 | magic, `0xa7` |
//! | 1 | 1 | record version, 1 |
//! | 2 | 1 | state: `0xc5` live, anything else dead; the only byte that is ever changed in place |
//! | 3 | 1 | kind: 1 put, 2 tombstone |
//! | 4 | 4 | length of the key |
//! | 8 | 4 | length of the value |
//! | 12 | 4 | CRC32C of key and value |
//! | 16 | 8 | hash of the key: XXH3-64, seeded by the directory |
//! | 24 | 8 | expiry, milliseconds since the Unix epoch, 0 = never |
//! | 32 | 4 | CRC32C of the bytes 0, 1 and 3 to 31, the directory's seed, the segment's id and the record's offset |
//! | 36 | | key, then value |
//!
//! The header's checksum covers the place of the record, so a header is valid at one offset of one
//! segment of one directory. Bytes inside a cached value can therefore never pass for a record when
//! recovery searches for the next one, not even if the value is a copy of a segment; and a read that
//! the disk sent elsewhere is noticed.

/// Bytes in front of the key.
pub(super) const HEADER_LEN: usize = 36;
/// Where the state byte lies.
pub(super) const STATE_OFFSET: u64 = 2;
/// The state of a record that counts.
const LIVE: u8 = 0xc5;
/// The state of a record that was withdrawn.
pub(super) const DEAD: u8 = 0;

const MAGIC: u8 = 0xa7;
const VERSION: u8 = 1;
/// What every record starts with; recovery searches for it.
pub(super) const START: [u8; 2] = [MAGIC, VERSION];

/// What a record says about its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The key has this value.
    Put = 1,
    /// The key has no value.
    Tombstone = 2,
}

/// Where a record lies, and in whose directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) seed: u64,
    pub(super) segment: u64,
    pub(super) offset: u32,
}

/// The fields of a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: Kind,
    pub(super) live: bool,
    pub(super) key_len: u32,
    pub(super) value_len: u32,
    pub(super) body_crc: u32,
    pub(super) hash: u64,
    pub(super) expires_at_ms: u64,
}

impl Header {
    /// Describes a value; the caller has checked that the record fits a `u32`.
    pub(super) fn put(hash: u64, key: &[u8], value: &[u8], expires_at_ms: u64) -> Self {
        Self {
            kind: Kind::Put,
            live: true,
            key_len: key.len() as u32,
            value_len: value.len() as u32,
            body_crc: crc32c::crc32c_append(crc32c::crc32c(key), value),
            hash,
            expires_at_ms,
        }
    }

    /// Describes the absence of a value. The hash alone names the key, as it does in the index.
    pub(super) fn tombstone(hash: u64) -> Self {
        Self {
            kind: Kind::Tombstone,
            live: true,
            key_len: 0,
            value_len: 0,
            body_crc: 0,
            hash,
            expires_at_ms: 0,
        }
    }

    /// Returns the length of the whole record.
    pub(super) fn record_len(&self) -> u64 {
        HEADER_LEN as u64 + u64::from(self.key_len) + u64::from(self.value_len)
    }

    /// Writes the header as it has to stand at `place`.
    pub(super) fn encode(&self, place: Place) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        out[..2].copy_from_slice(&START);
        out[2] = if self.live { LIVE } else { DEAD };
        out[3] = self.kind as u8;
        out[4..8].copy_from_slice(&self.key_len.to_le_bytes());
        out[8..12].copy_from_slice(&self.value_len.to_le_bytes());
        out[12..16].copy_from_slice(&self.body_crc.to_le_bytes());
        out[16..24].copy_from_slice(&self.hash.to_le_bytes());
        out[24..32].copy_from_slice(&self.expires_at_ms.to_le_bytes());
        let crc = checksum(&out, place);
        out[32..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads the header in front of `bytes`, if there is a valid one for this place.
    pub(super) fn decode(bytes: &[u8], place: Place) -> Option<Self> {
        let header: &[u8; HEADER_LEN] = bytes.first_chunk()?;
        if header[..2] != START || u32_at(header, 32) != checksum(header, place) {
            return None;
        }
        let kind = match header[3] {
            1 => Kind::Put,
            2 => Kind::Tombstone,
            _ => return None,
        };
        Some(Self {
            kind,
            live: header[2] == LIVE,
            key_len: u32_at(header, 4),
            value_len: u32_at(header, 8),
            body_crc: u32_at(header, 12),
            hash: u64_at(header, 16),
            expires_at_ms: u64_at(header, 24),
        })
    }

    /// Tells whether `body`, key and value together, is what the header was written for.
    pub(super) fn matches(&self, body: &[u8]) -> bool {
        crc32c::crc32c(body) == self.body_crc
    }
}

fn checksum(header: &[u8; HEADER_LEN], place: Place) -> u32 {
    let mut covered = [0; 52];
    covered[..32].copy_from_slice(&header[..32]);
    covered[2] = 0; // the state may change after the checksum was made
    covered[32..40].copy_from_slice(&place.seed.to_le_bytes());
    covered[40..48].copy_from_slice(&place.segment.to_le_bytes());
    covered[48..].copy_from_slice(&place.offset.to_le_bytes());
    crc32c::crc32c(&covered)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
