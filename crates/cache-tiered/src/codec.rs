//! Between values and the bytes that the lower tiers keep.
//!
//! Keys and values go down through a [`Codec`]. The default, [`Bincode`], takes any serde type and
//! writes the format of bincode 1: fixed-width little-endian integers, lengths as `u64`. It is compact
//! and positional, which means that bytes of an older shape of a type can decode to nonsense without
//! an error; the schema version of the cache stands in front of every value for that reason.
//!
//! `Wincode` (feature `wincode`) writes the same bytes for types with wincode's derives, several times
//! faster where there are many numbers. `MessagePack` (feature `messagepack`) writes the names of
//! fields, so that a type may gain and lose some without a new schema version.

use std::error::Error;

use bincode::Options as _;
use serde::{Serialize, de::DeserializeOwned};

/// What a codec failed with.
pub type CodecError = Box<dyn Error + Send + Sync>;

/// Turns keys and values into bytes and values back.
///
/// # Contract
///
/// `encode_key` is injective and the same in every process and version: it names the entry. What
/// `encode_key` and `encode` write, `decode_key` and `decode` read back. `decode` gets only bytes whose checksum, codec id, schema
/// version and key were right; both must all the same fail, and not panic, on bytes that they do not
/// understand.
pub trait Codec<K, V>: Send + Sync + 'static {
    /// Names the format, 128 to 255 for a user's own. Bytes of another id are a miss.
    fn id(&self) -> u8;

    /// Appends the canonical bytes of a key.
    ///
    /// # Errors
    ///
    /// A key that cannot be written stays in memory only.
    fn encode_key(&self, key: &K, out: &mut Vec<u8>) -> Result<(), CodecError>;

    /// Reads a key back: whatever names an entry below memory tells its key.
    ///
    /// # Errors
    ///
    /// Bytes that `encode_key` does not write are no key.
    fn decode_key(&self, bytes: &[u8]) -> Result<K, CodecError>;

    /// Appends the bytes of a value.
    ///
    /// # Errors
    ///
    /// A value that cannot be written stays in memory only.
    fn encode(&self, value: &V, out: &mut Vec<u8>) -> Result<(), CodecError>;

    /// Reads a value back.
    ///
    /// # Errors
    ///
    /// Bytes that are no value are a counted miss.
    fn decode(&self, bytes: &[u8]) -> Result<V, CodecError>;
}

/// The default codec: serde through the format of bincode 1.
#[derive(Debug, Clone, Copy, Default)]
pub struct Bincode;

/// Bincode 1's own defaults, but with a limit, and bytes left over are an error.
fn bincode() -> impl bincode::Options {
    bincode::DefaultOptions::new()
        .with_fixint_encoding()
        .with_limit(crate::envelope::MAX_VALUE_BYTES as u64)
}

/// Appends a value in the default format.
pub(crate) fn to_bytes<T: Serialize>(value: &T, out: &mut Vec<u8>) -> Result<(), CodecError> {
    Ok(bincode().serialize_into(out, value)?)
}

/// Reads a value in the default format.
pub(crate) fn from_bytes<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    Ok(bincode().deserialize(bytes)?)
}

impl<K, V> Codec<K, V> for Bincode
where
    K: Serialize + DeserializeOwned,
    V: Serialize + DeserializeOwned,
{
    fn id(&self) -> u8 {
        1
    }

    fn encode_key(&self, key: &K, out: &mut Vec<u8>) -> Result<(), CodecError> {
        Ok(bincode().serialize_into(out, key)?)
    }

    fn decode_key(&self, bytes: &[u8]) -> Result<K, CodecError> {
        Ok(bincode().deserialize(bytes)?)
    }

    fn encode(&self, value: &V, out: &mut Vec<u8>) -> Result<(), CodecError> {
        Ok(bincode().serialize_into(out, value)?)
    }

    fn decode(&self, bytes: &[u8]) -> Result<V, CodecError> {
        Ok(bincode().deserialize(bytes)?)
    }
}

/// The format of bincode 1 through wincode, for types that derive its `SchemaWrite` and `SchemaRead`.
///
/// The bytes are those of [`Bincode`] as long as no serde attribute changes them, but the two do not
/// read each other's values: nothing checks that. Sequences above 4 MiB are not written.
#[cfg(feature = "wincode")]
#[derive(Debug, Clone, Copy, Default)]
pub struct Wincode;

#[cfg(feature = "wincode")]
impl<K, V> Codec<K, V> for Wincode
where
    K: wincode::Serialize<Src = K> + wincode::DeserializeOwned<Dst = K>,
    V: wincode::Serialize<Src = V> + wincode::DeserializeOwned<Dst = V>,
{
    fn id(&self) -> u8 {
        2
    }

    fn encode_key(&self, key: &K, out: &mut Vec<u8>) -> Result<(), CodecError> {
        Ok(wincode::serialize_into(out, key)?)
    }

    fn decode_key(&self, bytes: &[u8]) -> Result<K, CodecError> {
        Ok(wincode::deserialize_exact(bytes)?)
    }

    fn encode(&self, value: &V, out: &mut Vec<u8>) -> Result<(), CodecError> {
        Ok(wincode::serialize_into(out, value)?)
    }

    fn decode(&self, bytes: &[u8]) -> Result<V, CodecError> {
        Ok(wincode::deserialize_exact(bytes)?)
    }
}

/// Serde through MessagePack, with the names of fields: it takes types that have changed a little.
///
/// A field that is not in the bytes needs `#[serde(default)]`, one that is no longer in the type is
/// skipped. Keys are written as [`Bincode`] does.
#[cfg(feature = "messagepack")]
#[derive(Debug, Clone, Copy, Default)]
pub struct MessagePack;

#[cfg(feature = "messagepack")]
impl<K, V> Codec<K, V> for MessagePack
where
    K: Serialize + DeserializeOwned,
    V: Serialize + DeserializeOwned,
{
    fn id(&self) -> u8 {
        3
    }

    fn encode_key(&self, key: &K, out: &mut Vec<u8>) -> Result<(), CodecError> {
        Ok(bincode().serialize_into(out, key)?)
    }

    fn decode_key(&self, bytes: &[u8]) -> Result<K, CodecError> {
        Ok(bincode().deserialize(bytes)?)
    }

    fn encode(&self, value: &V, out: &mut Vec<u8>) -> Result<(), CodecError> {
        Ok(rmp_serde::encode::write_named(out, value)?)
    }

    fn decode(&self, bytes: &[u8]) -> Result<V, CodecError> {
        let mut rest = bytes;
        let value = rmp_serde::from_read(&mut rest)?;
        if rest.is_empty() { Ok(value) } else { Err("bytes are left over".into()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Value = (u64, String, Option<Vec<f32>>);

    fn decode(bytes: &[u8]) -> Result<Value, CodecError> {
        Codec::<u8, Value>::decode(&Bincode, bytes)
    }

    #[test]
    fn the_bytes_are_those_of_bincode_1() {
        let value: Value = (7, "seven".to_owned(), Some(vec![0.5, 1.5]));
        let mut bytes = Vec::new();
        Codec::<u8, Value>::encode(&Bincode, &value, &mut bytes).unwrap();
        assert_eq!(bytes, bincode::serialize(&value).unwrap());
        assert_eq!(decode(&bytes).unwrap(), value);
    }

    #[test]
    fn bytes_left_over_and_lengths_that_lie_are_errors() {
        let mut bytes = bincode::serialize(&(7u64, "seven", None::<Vec<f32>>)).unwrap();
        bytes.push(0);
        assert!(decode(&bytes).is_err());
        bytes[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(decode(&bytes).is_err());
    }

    #[test]
    fn a_key_is_read_back_and_bytes_left_over_are_none() {
        let key = ("alice".to_owned(), 7_u16);
        let mut bytes = Vec::new();
        Codec::<(String, u16), u8>::encode_key(&Bincode, &key, &mut bytes).unwrap();
        let decode = |bytes: &[u8]| Codec::<(String, u16), u8>::decode_key(&Bincode, bytes);
        assert_eq!(decode(&bytes).unwrap(), key);
        bytes.push(0);
        assert!(decode(&bytes).is_err());
    }

    #[cfg(feature = "wincode")]
    #[test]
    fn wincode_writes_and_reads_the_bytes_of_bincode_1() {
        let value: Value = (7, "seven".to_owned(), Some(vec![0.5, 1.5]));
        let mut bytes = Vec::new();
        Codec::<u8, Value>::encode(&Wincode, &value, &mut bytes).unwrap();
        assert_eq!(bytes, bincode::serialize(&value).unwrap());
        let decode = |bytes: &[u8]| Codec::<u8, Value>::decode(&Wincode, bytes);
        assert_eq!(decode(&bytes).unwrap(), value);
        bytes.push(0);
        assert!(decode(&bytes).is_err());
        bytes[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(decode(&bytes).is_err());
    }

    #[cfg(feature = "wincode")]
    #[test]
    fn wincode_names_keys_as_bincode_does() {
        let (mut one, mut other) = (Vec::new(), Vec::new());
        let key = "alice".to_owned();
        Codec::<String, u64>::encode_key(&Wincode, &key, &mut one).unwrap();
        Codec::<String, u64>::encode_key(&Bincode, &key, &mut other).unwrap();
        assert_eq!(one, other);
        assert_eq!(Codec::<String, u64>::decode_key(&Wincode, &one).unwrap(), key);
    }

    #[cfg(feature = "messagepack")]
    #[test]
    fn messagepack_takes_types_that_have_gained_and_lost_a_field() {
        #[derive(Serialize, serde::Deserialize)]
        struct Old {
            id: u32,
            nick: String,
        }
        #[derive(Debug, PartialEq, Serialize, serde::Deserialize)]
        struct New {
            #[serde(default)]
            age: Option<u8>,
            id: u32,
        }
        let mut bytes = Vec::new();
        let old = Old { id: 7, nick: "seven".to_owned() };
        Codec::<u8, Old>::encode(&MessagePack, &old, &mut bytes).unwrap();
        let new = |bytes: &[u8]| Codec::<u8, New>::decode(&MessagePack, bytes);
        assert_eq!(new(&bytes).unwrap(), New { age: None, id: 7 });
        bytes.push(0);
        assert!(new(&bytes).is_err());
        // An array that claims four thousand million elements, and a nesting without an end.
        assert!(Codec::<u8, Vec<u8>>::decode(&MessagePack, &[0xDD, 255, 255, 255, 255]).is_err());
        assert!(new(&[0x91; 100_000]).is_err());
    }
}
