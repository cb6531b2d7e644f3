//! The envelope around every value in the lower tiers.
//!
//! Redis and disks outlive the program that wrote to them, so a value says what it is. Whatever
//! [`open`] does not know (another version, codec, compression, schema, key) is a miss and never a
//! guess; whatever fails the checksum is a miss and counted as an error.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 2 | magic `C7 55` |
//! | 2 | 1 | envelope version, 1 |
//! | 3 | 1 | codec |
//! | 4 | 1 | compression: 0 none, 1 zstd |
//! | 5 | 3 | zero |
//! | 8 | 4 | schema version of the value's type |
//! | 12 | 4 | compression dictionary, 0 none |
//! | 16 | 8 | expiry in Unix milliseconds, 0 never |
//! | 24 | 4 | length of the value before compression |
//! | 28 | 4 | length of the key |
//! | 32 | | key, value |
//! | end | 4 | CRC32C of all before |
//!
//! Integers are little-endian.

use std::borrow::Cow;
use std::cell::RefCell;

use zstd::bulk::{Compressor, Decompressor};

/// The largest value, encoded, that the lower tiers take: 64 MiB.
pub const MAX_VALUE_BYTES: usize = 64 << 20;

const MAGIC: [u8; 2] = [0xC7, 0x55];
const VERSION: u8 = 1;
const HEADER: usize = 32;
const CHECKSUM: usize = 4;
const RAW: u8 = 0;
const ZSTD: u8 = 1;
/// zstd 1 compresses JSON-like values 2 to 4.7 times; level 3 would buy one percent more.
const ZSTD_LEVEL: i32 = 1;

/// What an envelope says of its value, and what a reader insists on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Format {
    pub(crate) codec: u8,
    pub(crate) schema: u32,
}

/// Why an envelope was not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rejected {
    /// Broken bytes: an error worth counting.
    Corrupt,
    /// Whole, but of another version, codec, schema or key: a plain miss.
    Foreign,
}

/// An opened envelope.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Opened<'a> {
    pub(crate) value: Cow<'a, [u8]>,
    pub(crate) expires_unix_ms: u64,
}

/// Puts a value into an envelope, compressed when it is longer than `compress_above` and a tenth or
/// more is saved. `None` when it is too large.
pub(crate) fn seal(
    format: Format,
    key: &[u8],
    value: &[u8],
    expires_unix_ms: u64,
    compress_above: Option<usize>,
) -> Option<Vec<u8>> {
    if value.len() > MAX_VALUE_BYTES || key.len() > MAX_VALUE_BYTES {
        return None;
    }
    let compressed = match compress_above {
        Some(floor) if value.len() >= floor => compress(value),
        _ => None,
    };
    let (compression, payload) = match &compressed {
        Some(compressed) => (ZSTD, compressed.as_slice()),
        None => (RAW, value),
    };
    let mut sealed = Vec::with_capacity(HEADER + key.len() + payload.len() + CHECKSUM);
    sealed.extend_from_slice(&MAGIC);
    sealed.extend_from_slice(&[VERSION, format.codec, compression, 0, 0, 0]);
    sealed.extend_from_slice(&format.schema.to_le_bytes());
    sealed.extend_from_slice(&0u32.to_le_bytes());
    sealed.extend_from_slice(&expires_unix_ms.to_le_bytes());
    sealed.extend_from_slice(&(value.len() as u32).to_le_bytes());
    sealed.extend_from_slice(&(key.len() as u32).to_le_bytes());
    sealed.extend_from_slice(key);
    sealed.extend_from_slice(payload);
    let checksum = crc32c::crc32c(&sealed);
    sealed.extend_from_slice(&checksum.to_le_bytes());
    Some(sealed)
}

/// Takes the value for `key` out of an envelope.
pub(crate) fn open<'a>(
    format: Format,
    key: &[u8],
    sealed: &'a [u8],
) -> Result<Opened<'a>, Rejected> {
    let Some((covered, checksum)) = sealed.split_last_chunk::<CHECKSUM>() else {
        return Err(Rejected::Corrupt);
    };
    let Some((header, body)) = covered.split_first_chunk::<HEADER>() else {
        return Err(Rejected::Corrupt);
    };
    if header[..2] != MAGIC || crc32c::crc32c(covered) != u32::from_le_bytes(*checksum) {
        return Err(Rejected::Corrupt);
    }
    let u32_at = |at: usize| {
        u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes of the header"))
    };
    let (compression, dictionary) = (header[4], u32_at(12));
    let known = header[2] == VERSION
        && header[3] == format.codec
        && header[5..8] == [0; 3]
        && u32_at(8) == format.schema
        && dictionary == 0;
    if !known {
        return Err(Rejected::Foreign);
    }
    let (raw_len, key_len) = (u32_at(24) as usize, u32_at(28) as usize);
    let Some((stored_key, payload)) = body.split_at_checked(key_len) else {
        return Err(Rejected::Corrupt);
    };
    if stored_key != key {
        return Err(Rejected::Foreign);
    }
    if raw_len > MAX_VALUE_BYTES {
        return Err(Rejected::Corrupt);
    }
    let value = match compression {
        RAW => Cow::Borrowed(payload),
        ZSTD => Cow::Owned(decompress(payload, raw_len).ok_or(Rejected::Corrupt)?),
        _ => return Err(Rejected::Foreign),
    };
    if value.len() != raw_len {
        return Err(Rejected::Corrupt);
    }
    let expires_unix_ms =
        u64::from_le_bytes(header[16..24].try_into().expect("eight bytes of the header"));
    Ok(Opened { value, expires_unix_ms })
}

/// The length that a value says it has before compression, unverified; zero if it says nothing.
#[cfg(feature = "redis")]
pub(crate) fn raw_len(sealed: &[u8]) -> usize {
    let field = sealed.get(24..28).and_then(|bytes| bytes.try_into().ok());
    field.map_or(0, |bytes| u32::from_le_bytes(bytes) as usize)
}

// A context costs more than a small value does, so each thread keeps its own.
thread_local! {
    static COMPRESSOR: RefCell<Option<Compressor<'static>>> = const { RefCell::new(None) };
    static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

fn compress(value: &[u8]) -> Option<Vec<u8>> {
    COMPRESSOR.with_borrow_mut(|slot| {
        if slot.is_none() {
            *slot = Compressor::new(ZSTD_LEVEL).ok();
        }
        let compressed = slot.as_mut()?.compress(value).ok()?;
        (compressed.len() <= value.len() - value.len() / 10).then_some(compressed)
    })
}

fn decompress(payload: &[u8], raw_len: usize) -> Option<Vec<u8>> {
    DECOMPRESSOR.with_borrow_mut(|slot| {
        if slot.is_none() {
            *slot = Decompressor::new().ok();
        }
        slot.as_mut()?.decompress(payload, raw_len).ok()
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FORMAT: Format = Format { codec: 1, schema: 3 };
    const KEY: &[u8] = b"user:7";

    fn sealed(value: &[u8]) -> Vec<u8> {
        seal(FORMAT, KEY, value, 42, Some(100)).unwrap()
    }

    fn text(len: usize) -> Vec<u8> {
        b"the quick brown fox ".iter().copied().cycle().take(len).collect()
    }

    #[test]
    fn text_above_the_floor_is_stored_smaller_and_noise_as_it_is() {
        assert!(sealed(&text(5_000)).len() < 500);
        assert_eq!(sealed(&text(99)).len(), HEADER + KEY.len() + 99 + CHECKSUM);
        let noise: Vec<u8> =
            (0..5_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        assert!(sealed(&noise).len() <= HEADER + KEY.len() + noise.len() + CHECKSUM);
    }

    #[cfg(feature = "redis")]
    #[test]
    fn an_envelope_tells_how_much_it_unpacks_to() {
        assert_eq!(raw_len(&sealed(&text(5_000))), 5_000);
        assert_eq!(raw_len(b"short"), 0);
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        for value in [text(60), text(400)] {
            let whole = sealed(&value);
            for bit in 0..whole.len() * 8 {
                let mut broken = whole.clone();
                broken[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(open(FORMAT, KEY, &broken), Err(Rejected::Corrupt), "bit {bit}");
            }
        }
    }

    #[test]
    fn every_cut_is_noticed() {
        let whole = sealed(&text(400));
        for len in 0..whole.len() {
            assert_eq!(open(FORMAT, KEY, &whole[..len]), Err(Rejected::Corrupt), "length {len}");
        }
    }

    #[test]
    fn another_key_codec_or_schema_is_a_miss() {
        let whole = sealed(b"value");
        let cases = [
            (FORMAT, &b"user:8"[..]),
            (Format { codec: 2, ..FORMAT }, KEY),
            (Format { schema: 4, ..FORMAT }, KEY),
        ];
        for (format, key) in cases {
            assert_eq!(open(format, key, &whole), Err(Rejected::Foreign), "{format:?} {key:?}");
        }
    }

    #[test]
    fn an_envelope_of_a_newer_version_is_a_miss() {
        for (at, byte) in [(2, 2), (4, 9), (5, 1), (12, 1)] {
            let mut newer = sealed(b"value");
            newer[at] = byte;
            let end = newer.len() - CHECKSUM;
            let checksum = crc32c::crc32c(&newer[..end]);
            newer[end..].copy_from_slice(&checksum.to_le_bytes());
            assert_eq!(open(FORMAT, KEY, &newer), Err(Rejected::Foreign), "offset {at}");
        }
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(value in prop::collection::vec(any::<u8>(), 0..2_000), expiry: u64) {
            let whole = seal(FORMAT, KEY, &value, expiry, Some(100)).unwrap();
            let opened = open(FORMAT, KEY, &whole).unwrap();
            prop_assert_eq!(opened.value.as_ref(), value.as_slice());
            prop_assert_eq!(opened.expires_unix_ms, expiry);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(open(FORMAT, KEY, &bytes).is_err());
        }
    }
}
