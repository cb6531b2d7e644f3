//! The envelope around every value in the lower tiers.
//!
//! Redis and disks outlive the program that wrote to them, so a value says what it is. Whatever
//! [`Envelopes::open`] does not know (another version, codec, compression, schema, key) is a miss and
//! never a guess; whatever fails the checksum is a miss and counted as an error.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 2 | magic `C7 55` |
//! | 2 | 1 | envelope version: 1, or 2 where the value is encrypted |
//! | 3 | 1 | codec |
//! | 4 | 1 | compression: 0 none, 1 zstd, 2 LZ4 |
//! | 5 | 3 | zero; in version 2 the first is the cipher, 1 for XChaCha20-Poly1305 |
//! | 8 | 4 | schema version of the value's type |
//! | 12 | 4 | compression dictionary, 0 none |
//! | 16 | 8 | expiry in Unix milliseconds, 0 never |
//! | 24 | 4 | length of the value before compression |
//! | 28 | 4 | version 1: length of the key; version 2: number of the encryption key |
//! | 32 | | version 1: key, value; version 2: nonce of 24 bytes, value encrypted, tag of 16 bytes |
//! | end | 4 | CRC32C of all before |
//!
//! Integers are little-endian. In version 2 the key of the entry is not stored: it is authenticated
//! together with the header, and with another key the tag is wrong.
//!
//! A cache with encryption keys writes version 2 and takes nothing else, and one without them takes
//! only version 1: whoever can write to a tier cannot make a cache accept less protection.

use std::borrow::Cow;

use crate::compression::{Compressing, Packed, RAW, Unpacked};
#[cfg(feature = "encryption")]
use crate::encryption::{Encryption, NONCE, TAG};

/// The largest value, encoded, that the lower tiers take: 64 MiB.
pub const MAX_VALUE_BYTES: usize = 64 << 20;

const MAGIC: [u8; 2] = [0xC7, 0x55];
const CLEAR: u8 = 1;
const ENCRYPTED: u8 = 2;
#[cfg(feature = "encryption")]
const XCHACHA20_POLY1305: u8 = 1;
const HEADER: usize = 32;
const CHECKSUM: usize = 4;

/// What an envelope says of its value, and what a reader insists on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Format {
    pub(crate) codec: u8,
    pub(crate) schema: u32,
}

/// Why an envelope was not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rejected {
    /// Broken bytes, or bytes that nobody with the key has written: an error worth counting.
    Corrupt,
    /// Whole, but of another version, codec, schema or key: a plain miss.
    Foreign,
    /// Whole, and compressed with a dictionary that is not known here.
    NoDictionary(u32),
}

/// An opened envelope.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Opened<'a> {
    pub(crate) value: Cow<'a, [u8]>,
    pub(crate) expires_unix_ms: u64,
}

/// How one cache seals its values and opens what it finds.
#[derive(Debug)]
pub(crate) struct Envelopes {
    pub(crate) compressing: Compressing,
    #[cfg(feature = "encryption")]
    pub(crate) encryption: Option<Encryption>,
}

impl Envelopes {
    /// Puts a value into an envelope, compressed where that pays. `None` when it is too large.
    pub(crate) fn seal(
        &self,
        format: Format,
        key: &[u8],
        value: &[u8],
        expires_unix_ms: u64,
    ) -> Option<Vec<u8>> {
        if value.len() > MAX_VALUE_BYTES || key.len() > MAX_VALUE_BYTES {
            return None;
        }
        let packed = self.compressing.pack(value);
        self.seal_packed(format, key, value, &packed, expires_unix_ms)
    }

    /// Puts a value into an envelope as it is.
    pub(crate) fn seal_raw(&self, format: Format, key: &[u8], value: &[u8]) -> Option<Vec<u8>> {
        self.seal_packed(format, key, value, &Packed::RAW, 0)
    }

    fn seal_packed(
        &self,
        format: Format,
        key: &[u8],
        value: &[u8],
        packed: &Packed,
        expires_unix_ms: u64,
    ) -> Option<Vec<u8>> {
        let payload = packed.bytes.as_deref().unwrap_or(value);
        let mut header = [0; HEADER];
        header[..2].copy_from_slice(&MAGIC);
        header[2..5].copy_from_slice(&[CLEAR, format.codec, packed.compression]);
        header[8..12].copy_from_slice(&format.schema.to_le_bytes());
        header[12..16].copy_from_slice(&packed.dictionary.to_le_bytes());
        header[16..24].copy_from_slice(&expires_unix_ms.to_le_bytes());
        header[24..28].copy_from_slice(&(value.len() as u32).to_le_bytes());
        #[cfg(feature = "encryption")]
        if let Some(encryption) = &self.encryption {
            return seal_encrypted(encryption, header, key, payload);
        }
        header[28..].copy_from_slice(&(key.len() as u32).to_le_bytes());
        let mut sealed = Vec::with_capacity(HEADER + key.len() + payload.len() + CHECKSUM);
        sealed.extend_from_slice(&header);
        sealed.extend_from_slice(key);
        sealed.extend_from_slice(payload);
        append_checksum(&mut sealed);
        Some(sealed)
    }

    /// Takes the value for `key` out of an envelope.
    pub(crate) fn open<'a>(
        &self,
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
        if header[3] != format.codec || u32_at(header, 8) != format.schema {
            return Err(Rejected::Foreign);
        }
        let payload = match header[2] {
            CLEAR => self.open_clear(header, key, body)?,
            ENCRYPTED => self.open_encrypted(header, key, body)?,
            _ => return Err(Rejected::Foreign),
        };
        let (compression, dictionary) = (header[4], u32_at(header, 12));
        let raw_len = u32_at(header, 24) as usize;
        if raw_len > MAX_VALUE_BYTES {
            return Err(Rejected::Corrupt);
        }
        let value = if compression == RAW && dictionary == 0 {
            payload
        } else {
            match self.compressing.unpack(compression, dictionary, &payload, raw_len) {
                Unpacked::Value(value) => Cow::Owned(value),
                Unpacked::Corrupt => return Err(Rejected::Corrupt),
                Unpacked::Unknown => return Err(Rejected::Foreign),
                Unpacked::NoDictionary => return Err(Rejected::NoDictionary(dictionary)),
            }
        };
        if value.len() != raw_len {
            return Err(Rejected::Corrupt);
        }
        let expires_unix_ms =
            u64::from_le_bytes(header[16..24].try_into().expect("eight bytes of the header"));
        Ok(Opened { value, expires_unix_ms })
    }

    /// Whether an envelope that was opened here is encrypted with the key that writes.
    #[cfg(feature = "disk")]
    pub(crate) fn is_current(&self, sealed: &[u8]) -> bool {
        #[cfg(feature = "encryption")]
        if let Some(encryption) = &self.encryption {
            return field(sealed, 28) == encryption.active();
        }
        // It was opened, so it is not encrypted.
        !sealed.is_empty()
    }

    fn open_clear<'a>(
        &self,
        header: &[u8; HEADER],
        key: &[u8],
        body: &'a [u8],
    ) -> Result<Cow<'a, [u8]>, Rejected> {
        #[cfg(feature = "encryption")]
        if self.encryption.is_some() {
            return Err(Rejected::Foreign);
        }
        if header[5..8] != [0; 3] {
            return Err(Rejected::Foreign);
        }
        let Some((stored_key, payload)) = body.split_at_checked(u32_at(header, 28) as usize) else {
            return Err(Rejected::Corrupt);
        };
        if stored_key != key {
            return Err(Rejected::Foreign);
        }
        Ok(Cow::Borrowed(payload))
    }

    #[cfg(feature = "encryption")]
    fn open_encrypted<'a>(
        &self,
        header: &[u8; HEADER],
        key: &[u8],
        body: &'a [u8],
    ) -> Result<Cow<'a, [u8]>, Rejected> {
        let Some(encryption) = &self.encryption else { return Err(Rejected::Foreign) };
        let id = u32_at(header, 28);
        if header[5..8] != [XCHACHA20_POLY1305, 0, 0] || !encryption.knows(id) {
            return Err(Rejected::Foreign);
        }
        let (Some((nonce, rest)), true) =
            (body.split_first_chunk::<NONCE>(), key.len() <= MAX_VALUE_BYTES)
        else {
            return Err(Rejected::Corrupt);
        };
        let Some((encrypted, tag)) = rest.split_last_chunk::<TAG>() else {
            return Err(Rejected::Corrupt);
        };
        let mut payload = encrypted.to_vec();
        encryption.decrypt(id, header, key, nonce, &mut payload, tag).ok_or(Rejected::Corrupt)?;
        Ok(Cow::Owned(payload))
    }

    #[cfg(not(feature = "encryption"))]
    fn open_encrypted<'a>(
        &self,
        _header: &[u8; HEADER],
        _key: &[u8],
        _body: &'a [u8],
    ) -> Result<Cow<'a, [u8]>, Rejected> {
        Err(Rejected::Foreign)
    }
}

#[cfg(feature = "encryption")]
fn seal_encrypted(
    encryption: &Encryption,
    mut header: [u8; HEADER],
    key: &[u8],
    payload: &[u8],
) -> Option<Vec<u8>> {
    header[2] = ENCRYPTED;
    header[5] = XCHACHA20_POLY1305;
    header[28..].copy_from_slice(&encryption.active().to_le_bytes());
    const START: usize = HEADER + NONCE;
    let mut sealed = Vec::with_capacity(START + payload.len() + TAG + CHECKSUM);
    sealed.extend_from_slice(&header);
    sealed.extend_from_slice(&[0; NONCE]);
    sealed.extend_from_slice(payload);
    let (nonce, tag) = encryption.encrypt(&header, key, &mut sealed[START..])?;
    sealed[HEADER..START].copy_from_slice(&nonce);
    sealed.extend_from_slice(&tag);
    append_checksum(&mut sealed);
    Some(sealed)
}

fn append_checksum(sealed: &mut Vec<u8>) {
    let checksum = crc32c::crc32c(sealed);
    sealed.extend_from_slice(&checksum.to_le_bytes());
}

fn u32_at(header: &[u8; HEADER], at: usize) -> u32 {
    u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes of the header"))
}

/// The dictionary that a value says it needs, unverified; zero if it says nothing.
pub(crate) fn dictionary(sealed: &[u8]) -> u32 {
    field(sealed, 12)
}

/// The length that a value says it has before compression, unverified; zero if it says nothing.
#[cfg(feature = "__redis")]
pub(crate) fn raw_len(sealed: &[u8]) -> usize {
    field(sealed, 24) as usize
}

fn field(sealed: &[u8], at: usize) -> u32 {
    let field = sealed.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
    field.map_or(0, u32::from_le_bytes)
}

#[cfg(test)]
mod tests;
