//! What is written beside chunks: the keys of the store, the table of series, and the marks of progress.
//!
//! ```text
//! 0                                        marks: version, written up to, next number of a series
//! 1  number (4)                            series: kind, unit, scale, times, name, labels
//! 2  step ms (4)  rows (2)  start ms (8)   block: bytes of its chunks
//! 3  step ms (4)  rows (2)  number (4)  start ms (8)   chunk
//! ```
//!
//! Numbers in keys are big-endian, times with their sign flipped, so that keys sort as they mean. The step
//! and the rows of a chunk name its tier: a tier that is configured anew is another one.

use std::sync::Arc;

use crate::series::{Kind, Labels, SeriesKey, Unit};

/// The version of everything that is kept.
const VERSION: u8 = 1;
/// Longest name, label or value that is read back, in bytes.
const TEXT_MAX: u64 = 1 << 16;

/// Which tier a chunk is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TierKey {
    pub(super) step_ms: u32,
    pub(super) rows: u16,
}

impl TierKey {
    /// How long a chunk is.
    pub(super) fn span_ms(self) -> i64 {
        i64::from(self.step_ms) * i64::from(self.rows)
    }

    fn put(self, table: u8) -> Vec<u8> {
        let mut key = vec![table];
        key.extend(self.step_ms.to_be_bytes());
        key.extend(self.rows.to_be_bytes());
        key
    }
}

fn sortable(at_ms: i64) -> [u8; 8] {
    (at_ms as u64 ^ 1 << 63).to_be_bytes()
}

fn of_sortable(bytes: [u8; 8]) -> i64 {
    (u64::from_be_bytes(bytes) ^ 1 << 63) as i64
}

pub(super) const MARKS: [u8; 1] = [0];
pub(super) const SERIES: [u8; 1] = [1];
pub(super) const SERIES_END: [u8; 1] = [2];
pub(super) const BLOCKS: [u8; 1] = [2];
pub(super) const BLOCKS_END: [u8; 1] = [3];

pub(super) fn series_key(number: u32) -> Vec<u8> {
    let mut key = SERIES.to_vec();
    key.extend(number.to_be_bytes());
    key
}

pub(super) fn block_key(tier: TierKey, start_ms: i64) -> Vec<u8> {
    let mut key = tier.put(BLOCKS[0]);
    key.extend(sortable(start_ms));
    key
}

pub(super) fn chunk_key(tier: TierKey, number: u32, start_ms: i64) -> Vec<u8> {
    let mut key = tier.put(3);
    key.extend(number.to_be_bytes());
    key.extend(sortable(start_ms));
    key
}

/// Reads the key of a block.
pub(super) fn read_block_key(key: &[u8]) -> Option<(TierKey, i64)> {
    let key: &[u8; 15] = key.try_into().ok()?;
    let tier = TierKey {
        step_ms: u32::from_be_bytes(key[1..5].try_into().ok()?),
        rows: u16::from_be_bytes(key[5..7].try_into().ok()?),
    };
    Some((tier, of_sortable(key[7..].try_into().ok()?)))
}

/// Reads the key of a chunk.
pub(super) fn read_chunk_key(key: &[u8]) -> Option<(TierKey, u32, i64)> {
    let key: &[u8; 19] = key.try_into().ok().filter(|key: &&[u8; 19]| key[0] == 3)?;
    let tier = TierKey {
        step_ms: u32::from_be_bytes(key[1..5].try_into().ok()?),
        rows: u16::from_be_bytes(key[5..7].try_into().ok()?),
    };
    let number = u32::from_be_bytes(key[7..11].try_into().ok()?);
    Some((tier, number, of_sortable(key[11..].try_into().ok()?)))
}

/// How far the store is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Marks {
    /// All ticks up to and with this moment are in chunks.
    pub(super) until_ms: i64,
    /// All rolled rows up to and with this one are in chunks; those behind it follow from the ticks.
    pub(super) rolled_ms: i64,
    /// The number that the next new series gets.
    pub(super) next: u32,
}

impl Marks {
    pub(super) fn encode(self) -> Vec<u8> {
        let mut out = vec![VERSION];
        out.extend(self.until_ms.to_le_bytes());
        out.extend(self.rolled_ms.to_le_bytes());
        out.extend(self.next.to_le_bytes());
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; 21] = bytes.try_into().ok().filter(|b: &&[u8; 21]| b[0] == VERSION)?;
        Some(Self {
            until_ms: i64::from_le_bytes(bytes[1..9].try_into().ok()?),
            rolled_ms: i64::from_le_bytes(bytes[9..17].try_into().ok()?),
            next: u32::from_le_bytes(bytes[17..].try_into().ok()?),
        })
    }
}

/// A series as it is kept.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Record {
    pub(super) number: u32,
    pub(super) key: Arc<SeriesKey>,
    pub(super) kind: Kind,
    pub(super) unit: Unit,
    pub(super) scale: f64,
    pub(super) first_ms: i64,
    /// When the last sample came, if none has for a while.
    pub(super) ended_ms: Option<i64>,
}

impl Record {
    pub(super) fn encode(&self) -> Vec<u8> {
        let kind = match self.kind {
            Kind::Counter => 1,
            Kind::Gauge => 2,
            Kind::Histogram => 3,
        };
        let unit = match self.unit {
            Unit::None => 0,
            Unit::Seconds => 1,
            Unit::Bytes => 2,
            Unit::Ratio => 3,
            Unit::Percent => 4,
        };
        let mut out = vec![kind, unit];
        out.extend(self.number.to_le_bytes());
        out.extend(self.scale.to_le_bytes());
        out.extend(self.first_ms.to_le_bytes());
        out.extend(self.ended_ms.unwrap_or(i64::MAX).to_le_bytes());
        let text = |out: &mut Vec<u8>, text: &str| {
            put_varint(out, text.len() as u64);
            out.extend(text.as_bytes());
        };
        text(&mut out, &self.key.name);
        put_varint(&mut out, self.key.labels.iter().len() as u64);
        for (name, value) in self.key.labels.iter() {
            text(&mut out, name);
            text(&mut out, value);
        }
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        let kind = match reader.byte()? {
            1 => Kind::Counter,
            2 => Kind::Gauge,
            3 => Kind::Histogram,
            _ => return None,
        };
        let unit = match reader.byte()? {
            1 => Unit::Seconds,
            2 => Unit::Bytes,
            3 => Unit::Ratio,
            4 => Unit::Percent,
            _ => Unit::None,
        };
        let number = u32::from_le_bytes(reader.array()?);
        let scale = f64::from_le_bytes(reader.array()?);
        let first_ms = i64::from_le_bytes(reader.array()?);
        let ended_ms = Some(i64::from_le_bytes(reader.array()?)).filter(|at| *at != i64::MAX);
        let name = Arc::from(reader.text()?);
        let labels = reader.varint().filter(|labels| *labels <= TEXT_MAX)?;
        let labels: Option<Vec<(&str, &str)>> =
            (0..labels).map(|_| Some((reader.text()?, reader.text()?))).collect();
        let key = Arc::new(SeriesKey { name, labels: Labels::new(labels?) });
        let sound = scale.is_finite() && scale > 0.0;
        sound.then_some(Self { number, key, kind, unit, scale, first_ms, ended_ms })
    }
}

pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Reads what was written, or nothing if there is less.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    pub(super) fn byte(&mut self) -> Option<u8> {
        Some(self.take(1)?[0])
    }

    pub(super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    pub(super) fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn text(&mut self) -> Option<&'a str> {
        let length = self.varint().filter(|length| *length <= TEXT_MAX)?;
        std::str::from_utf8(self.take(length as usize)?).ok()
    }
}
