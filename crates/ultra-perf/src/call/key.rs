//! Keys of calls: the bytes of the arguments, made without an allocation and found without one.
//!
//! Arguments are written one after the other in a compact format: integers and floats in their width, little
//! end first, text and sequences after their length, variants and options after their number. That tells any
//! two lists of arguments of the same types apart which serialise differently. Two values that serialise
//! alike (a field under `#[serde(skip)]`, two variants of an untagged enum with the same contents) are one
//! key.

use std::fmt;
use std::hash::{Hash, Hasher};

use serde::de::{Deserialize, Deserializer, SeqAccess, Visitor};
use serde::ser::{self, Serialize, Serializer};

/// Bytes of a key that are written without an allocation.
const INLINE: usize = 64;
/// Bytes of a stored key that need no allocation of their own.
const SHORT: usize = 22;
/// Bytes of a key; a call with a longer one is not looked up.
const LONGEST: usize = 64 << 10;

/// A key that is being made, on the stack as long as it is short.
#[doc(hidden)]
pub struct CallKeyBuf {
    inline: [u8; INLINE],
    length: usize,
    /// What few keys have; so there is one pointer to look at when it is dropped.
    rare: Option<Box<Rare>>,
}

#[derive(Default)]
struct Rare {
    /// All bytes, once they are more than fit.
    long: Vec<u8>,
    /// Why these bytes are no key.
    problem: Option<String>,
}

impl Default for CallKeyBuf {
    #[inline]
    fn default() -> Self {
        Self::new()
    }
}

impl CallKeyBuf {
    /// Begins a key.
    #[must_use]
    #[inline]
    pub fn new() -> Self {
        Self { inline: [0; INLINE], length: 0, rare: None }
    }

    /// Adds a part. One that cannot be written spoils the key: nothing is found by it or kept under it.
    #[inline]
    pub fn push<T: Serialize + ?Sized>(&mut self, part: &T) {
        if let Err(error) = part.serialize(&mut Writer(self)) {
            self.spoil(&error.0);
        }
    }

    #[cold]
    fn spoil(&mut self, problem: &str) {
        self.rare.get_or_insert_default().problem = Some(problem.to_owned());
    }

    /// Why nothing can be kept under it.
    #[inline]
    pub(super) fn problem(&self) -> Option<&str> {
        self.rare.as_ref()?.problem.as_deref()
    }

    #[inline]
    fn bytes(&self) -> &[u8] {
        match &self.rare {
            Some(rare) if self.length > INLINE => &rare.long,
            _ => &self.inline[..self.length.min(INLINE)],
        }
    }

    /// The first eight bytes, with zeros behind the end.
    #[inline]
    fn word(&self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.inline;
        u64::from_le_bytes([a, b, c, d, e, f, g, h])
    }

    #[inline]
    fn write<const N: usize>(&mut self, bytes: [u8; N]) {
        let end = self.length + N;
        if end <= INLINE {
            self.inline[self.length..end].copy_from_slice(&bytes);
            self.length = end;
        } else {
            self.write_long(&bytes);
        }
    }

    #[inline]
    fn write_slice(&mut self, bytes: &[u8]) {
        let end = self.length + bytes.len();
        if end <= INLINE {
            self.inline[self.length..end].copy_from_slice(bytes);
            self.length = end;
        } else {
            self.write_long(bytes);
        }
    }

    #[cold]
    fn write_long(&mut self, bytes: &[u8]) {
        if self.length + bytes.len() > LONGEST {
            self.spoil("it is longer than 64 KiB");
            return;
        }
        let long = &mut self.rare.get_or_insert_default().long;
        if self.length <= INLINE {
            long.clear();
            long.extend_from_slice(&self.inline[..self.length]);
        }
        long.extend_from_slice(bytes);
        self.length += bytes.len();
    }

    /// Makes the key that is stored.
    pub(super) fn to_key(&self) -> CallKey {
        CallKey::from(self.bytes())
    }
}

impl fmt::Debug for CallKeyBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallKeyBuf").field("length", &self.length).finish_non_exhaustive()
    }
}

impl Hash for CallKeyBuf {
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        if self.length <= 8 {
            // Keys that differ in their length alone meet here, and are told apart as equals are.
            state.write_u64(self.word());
        } else {
            hash_long(self.bytes(), state);
        }
    }
}

/// Out of the way of short keys, whose hash is then a part of the look-up.
#[inline(never)]
fn hash_long<H: Hasher>(bytes: &[u8], state: &mut H) {
    state.write(bytes);
}

/// The key of a call as a cache stores it.
#[doc(hidden)]
#[derive(Clone)]
pub struct CallKey(Repr);

#[derive(Clone)]
enum Repr {
    Short { length: u8, bytes: [u8; SHORT] },
    Long(Box<[u8]>),
}

impl CallKey {
    #[inline]
    fn bytes(&self) -> &[u8] {
        match &self.0 {
            Repr::Short { length, bytes } => &bytes[..usize::from(*length)],
            Repr::Long(bytes) => bytes,
        }
    }
}

impl From<&[u8]> for CallKey {
    fn from(key: &[u8]) -> Self {
        match u8::try_from(key.len()) {
            Ok(length) if key.len() <= SHORT => {
                let mut bytes = [0; SHORT];
                bytes[..key.len()].copy_from_slice(key);
                Self(Repr::Short { length, bytes })
            }
            _ => Self(Repr::Long(key.into())),
        }
    }
}

impl PartialEq for CallKey {
    #[inline]
    fn eq(&self, other: &Self) -> bool {
        self.bytes() == other.bytes()
    }
}

impl Eq for CallKey {}

impl Hash for CallKey {
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        match &self.0 {
            Repr::Short { length, bytes: [a, b, c, d, e, f, g, h, ..] } if *length <= 8 => {
                state.write_u64(u64::from_le_bytes([*a, *b, *c, *d, *e, *f, *g, *h]));
            }
            _ => hash_long(self.bytes(), state),
        }
    }
}

impl cache_tiered::Equivalent<CallKey> for CallKeyBuf {
    #[inline]
    fn equivalent(&self, key: &CallKey) -> bool {
        match &key.0 {
            Repr::Short { length, bytes } if *length <= 8 => {
                let [a, b, c, d, e, f, g, h, ..] = *bytes;
                let word = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
                self.length == usize::from(*length) && self.word() == word
            }
            _ => self.bytes() == key.bytes(),
        }
    }
}

impl fmt::Debug for CallKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CallKey({} bytes)", self.bytes().len())
    }
}

impl Serialize for CallKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.bytes())
    }
}

impl<'de> Deserialize<'de> for CallKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;
        impl<'de> Visitor<'de> for Bytes {
            type Value = CallKey;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the bytes of a call's key")
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<CallKey, E> {
                Ok(CallKey::from(bytes))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut bytes: A) -> Result<CallKey, A::Error> {
                let mut key = Vec::new();
                while let Some(byte) = bytes.next_element()? {
                    key.push(byte);
                }
                Ok(CallKey::from(&*key))
            }
        }
        deserializer.deserialize_byte_buf(Bytes)
    }
}

/// What a `Serialize` of the program's own refused with.
#[derive(Debug)]
struct Refused(String);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

impl ser::Error for Refused {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self(message.to_string())
    }
}

/// Writes into a key.
struct Writer<'a>(&'a mut CallKeyBuf);

macro_rules! numbers {
    ($($method:ident($number:ty))*) => {$(
        #[inline]
        fn $method(self, number: $number) -> Result<(), Refused> {
            self.0.write(number.to_le_bytes());
            Ok(())
        }
    )*};
}

impl<'a, 'k> Serializer for &'a mut Writer<'k> {
    type Ok = ();
    type Error = Refused;
    type SerializeSeq = Elements<'a, 'k>;
    type SerializeTuple = Self;
    type SerializeTupleStruct = Self;
    type SerializeTupleVariant = Self;
    type SerializeMap = Elements<'a, 'k>;
    type SerializeStruct = Self;
    type SerializeStructVariant = Self;

    numbers! {
        serialize_i8(i8) serialize_i16(i16) serialize_i32(i32) serialize_i64(i64) serialize_i128(i128)
        serialize_u8(u8) serialize_u16(u16) serialize_u32(u32) serialize_u64(u64) serialize_u128(u128)
        serialize_f32(f32) serialize_f64(f64)
    }

    #[inline]
    fn serialize_bool(self, value: bool) -> Result<(), Refused> {
        self.serialize_u8(u8::from(value))
    }

    #[inline]
    fn serialize_char(self, value: char) -> Result<(), Refused> {
        self.serialize_u32(u32::from(value))
    }

    #[inline]
    fn serialize_str(self, value: &str) -> Result<(), Refused> {
        self.serialize_bytes(value.as_bytes())
    }

    #[inline]
    fn serialize_bytes(self, value: &[u8]) -> Result<(), Refused> {
        self.0.write((value.len() as u64).to_le_bytes());
        self.0.write_slice(value);
        Ok(())
    }

    #[inline]
    fn serialize_none(self) -> Result<(), Refused> {
        self.serialize_u8(0)
    }

    #[inline]
    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Refused> {
        self.0.write([1]);
        value.serialize(self)
    }

    fn serialize_unit(self) -> Result<(), Refused> {
        Ok(())
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result<(), Refused> {
        Ok(())
    }

    #[inline]
    fn serialize_unit_variant(
        self,
        _: &'static str,
        number: u32,
        _: &'static str,
    ) -> Result<(), Refused> {
        self.serialize_u32(number)
    }

    #[inline]
    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> Result<(), Refused> {
        value.serialize(self)
    }

    #[inline]
    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        number: u32,
        _: &'static str,
        value: &T,
    ) -> Result<(), Refused> {
        self.0.write(number.to_le_bytes());
        value.serialize(self)
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Elements<'a, 'k>, Refused> {
        Ok(Elements { writer: self })
    }

    fn serialize_tuple(self, _: usize) -> Result<Self, Refused> {
        Ok(self)
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Self, Refused> {
        Ok(self)
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        number: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self, Refused> {
        self.0.write(number.to_le_bytes());
        Ok(self)
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Elements<'a, 'k>, Refused> {
        Ok(Elements { writer: self })
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Self, Refused> {
        Ok(self)
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        number: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self, Refused> {
        self.0.write(number.to_le_bytes());
        Ok(self)
    }

    fn is_human_readable(&self) -> bool {
        false
    }
}

/// The elements of what need not know its length beforehand: a one before each, a zero at the end.
struct Elements<'a, 'k> {
    writer: &'a mut Writer<'k>,
}

impl Elements<'_, '_> {
    #[inline]
    fn element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Refused> {
        self.writer.0.write([1]);
        value.serialize(&mut *self.writer)
    }

    #[inline]
    fn finish(self) -> Result<(), Refused> {
        self.writer.0.write([0]);
        Ok(())
    }
}

impl ser::SerializeSeq for Elements<'_, '_> {
    type Ok = ();
    type Error = Refused;

    #[inline]
    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Refused> {
        self.element(value)
    }

    fn end(self) -> Result<(), Refused> {
        self.finish()
    }
}

impl ser::SerializeMap for Elements<'_, '_> {
    type Ok = ();
    type Error = Refused;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Refused> {
        self.element(key)
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Refused> {
        value.serialize(&mut *self.writer)
    }

    fn end(self) -> Result<(), Refused> {
        self.finish()
    }
}

macro_rules! parts {
    ($($part:ident::$method:ident)*) => {$(
        impl ser::$part for &mut Writer<'_> {
            type Ok = ();
            type Error = Refused;

            #[inline]
            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Refused> {
                value.serialize(&mut **self)
            }

            fn end(self) -> Result<(), Refused> {
                Ok(())
            }
        }
    )*};
}

parts! {
    SerializeTuple::serialize_element
    SerializeTupleStruct::serialize_field
    SerializeTupleVariant::serialize_field
}

macro_rules! fields {
    ($($fields:ident)*) => {$(
        impl ser::$fields for &mut Writer<'_> {
            type Ok = ();
            type Error = Refused;

            #[inline]
            fn serialize_field<T: Serialize + ?Sized>(
                &mut self,
                _: &'static str,
                value: &T,
            ) -> Result<(), Refused> {
                self.0.write([1]);
                value.serialize(&mut **self)
            }

            // Else a field that is left out could not be told from its neighbour.
            fn skip_field(&mut self, _: &'static str) -> Result<(), Refused> {
                self.0.write([0]);
                Ok(())
            }

            fn end(self) -> Result<(), Refused> {
                Ok(())
            }
        }
    )*};
}

fields! { SerializeStruct SerializeStructVariant }

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::hash::BuildHasher;

    use cache_tiered::Equivalent;
    use proptest::prelude::*;
    use serde::{Deserialize as _, Serialize};

    use super::*;

    fn key<T: Serialize>(parts: &T) -> CallKeyBuf {
        let mut key = CallKeyBuf::new();
        key.push(parts);
        key
    }

    #[derive(Debug, Clone, PartialEq, Serialize)]
    enum Shape {
        Point,
        Circle(u8),
        Box { width: u16, height: Option<u16> },
    }

    #[derive(Debug, Clone, PartialEq, Serialize)]
    struct Query {
        #[serde(skip_serializing_if = "Option::is_none")]
        first: Option<u8>,
        #[serde(skip_serializing_if = "Option::is_none")]
        second: Option<u8>,
        words: Vec<String>,
        shape: Shape,
        flags: BTreeMap<String, bool>,
    }

    fn queries() -> impl Strategy<Value = Query> {
        let shape = prop_oneof![
            Just(Shape::Point),
            any::<u8>().prop_map(Shape::Circle),
            any::<(u16, Option<u16>)>().prop_map(|(width, height)| Shape::Box { width, height }),
        ];
        let small = prop::option::of(0..2_u8);
        let words = prop::collection::vec("[ab]{0,2}", 0..3);
        let flags = prop::collection::btree_map("[ab]{0,2}", any::<bool>(), 0..2);
        (small.clone(), small, words, shape, flags).prop_map(
            |(first, second, words, shape, flags)| Query { first, second, words, shape, flags },
        )
    }

    proptest! {
        #[test]
        fn keys_are_equal_exactly_where_the_arguments_are(a in queries(), b in queries()) {
            let (first, second) = (key(&a), key(&b));
            prop_assert_eq!(first.equivalent(&second.to_key()), a == b);
            prop_assert!(first.equivalent(&key(&a.clone()).to_key()));
        }

        #[test]
        fn lists_of_text_cannot_be_cut_otherwise(
            a in prop::collection::vec("[a-c]{0,40}", 0..4),
            b in prop::collection::vec("[a-c]{0,40}", 0..4),
        ) {
            prop_assert_eq!(key(&a).equivalent(&key(&b).to_key()), a == b);
        }

        #[test]
        fn a_key_hashes_alike_in_both_forms(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let mut made = CallKeyBuf::new();
            for byte in &bytes {
                made.push(byte);
            }
            let stored = made.to_key();
            let hasher = std::hash::RandomState::new();
            prop_assert_eq!(hasher.hash_one(&made), hasher.hash_one(&stored));
            prop_assert_eq!(stored.bytes(), &*bytes);
            prop_assert!(made.equivalent(&stored));
        }

        #[test]
        fn a_stored_key_comes_back_from_its_bytes(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let stored = CallKey::from(&*bytes);
            let written = serde_json::to_string(&stored).expect("bytes are written");
            let mut reader = serde_json::Deserializer::from_str(&written);
            prop_assert_eq!(CallKey::deserialize(&mut reader).expect("and read"), stored);
        }
    }

    #[test]
    fn a_short_key_is_told_from_one_with_zeros_behind_it() {
        let (short, long) = (key(&7_u8), key(&7_u16));
        assert!(!short.equivalent(&long.to_key()) && !long.equivalent(&short.to_key()));
    }

    #[test]
    fn what_cannot_be_written_is_no_key() {
        struct Broken;
        impl Serialize for Broken {
            fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
                Err(ser::Error::custom("poisoned"))
            }
        }
        assert_eq!(key(&Broken).problem(), Some("poisoned"));
        assert_eq!(key(&vec![0_u8; LONGEST]).problem(), Some("it is longer than 64 KiB"));
        assert_eq!(key(&"a".repeat(LONGEST - 8)).problem(), None);
    }

    #[test]
    fn a_stored_key_takes_three_words() {
        assert_eq!(size_of::<CallKey>(), 24);
    }
}
