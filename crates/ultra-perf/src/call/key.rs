//! Keys of calls: the bytes of the arguments, made without an allocation and found without one.
//!
//! A key has two parts. Its *shape* is what kinds of values there are, one [tag](tag) each, so that a value whose
//! type says nothing about its contents (JSON, an untagged enum) is told from every other one: `[]` from `{}`,
//! -1 from the greatest number. Its *payload* is what they hold: integers and floats in their width, little
//! end first, text after its length, the names of variants and of fields as a hash of 64 bits. Sequences end
//! with a tag of their own.
//!
//! The first six tags stand in a word of their own, and only what comes behind them in the payload. So of
//! arguments that are a number or two the shape is known when the program is compiled, and the numbers lie where
//! a comparison takes them up at once. Reading from the front, a tag says how far its payload goes, so no two
//! lists of values have the same bytes. Two values that serialise alike (a field under `#[serde(skip)]`, two
//! variants of an untagged enum with the same contents) are one key.

use std::fmt;
use std::hash::{Hash, Hasher};

use serde::de::{Deserialize, Deserializer, SeqAccess, Visitor};
use serde::ser::{self, Serialize, Serializer};

/// Bytes of a payload that are written without an allocation.
const INLINE: usize = 64;
/// Tags of a shape, and its bytes.
const SHAPE: usize = 6;
/// Bytes of a stored key that need no allocation of their own: a shape, and a payload of two words.
const SHORT: usize = SHAPE + 16;
/// Bytes of a payload; a call with a longer one is not looked up.
const LONGEST: usize = 64 << 10;

/// What kind of value follows. None is zero, so that a shape tells how many it holds.
mod tag {
    pub(super) const END: u8 = 1;
    pub(super) const FALSE: u8 = 2;
    pub(super) const TRUE: u8 = 3;
    pub(super) const I8: u8 = 4;
    pub(super) const I16: u8 = 5;
    pub(super) const I32: u8 = 6;
    pub(super) const I64: u8 = 7;
    pub(super) const I128: u8 = 8;
    pub(super) const U8: u8 = 9;
    pub(super) const U16: u8 = 10;
    pub(super) const U32: u8 = 11;
    pub(super) const U64: u8 = 12;
    pub(super) const U128: u8 = 13;
    pub(super) const F32: u8 = 14;
    pub(super) const F64: u8 = 15;
    pub(super) const CHAR: u8 = 16;
    pub(super) const TEXT: u8 = 17;
    pub(super) const BYTES: u8 = 18;
    pub(super) const NONE: u8 = 19;
    pub(super) const SOME: u8 = 20;
    pub(super) const UNIT: u8 = 21;
    pub(super) const UNIT_VARIANT: u8 = 22;
    pub(super) const NEWTYPE_VARIANT: u8 = 23;
    pub(super) const SEQUENCE: u8 = 24;
    pub(super) const TUPLE: u8 = 25;
    pub(super) const TUPLE_VARIANT: u8 = 26;
    pub(super) const MAP: u8 = 27;
    pub(super) const STRUCT: u8 = 28;
    pub(super) const STRUCT_VARIANT: u8 = 29;
}

/// A key that is being made, on the stack as long as it is short.
#[doc(hidden)]
pub struct CallKeyBuf {
    /// The first tags, the first of them highest.
    shape: u64,
    inline: [u8; INLINE],
    /// Bytes of the payload.
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
        Self { shape: 0, inline: [0; INLINE], length: 0, rare: None }
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
    fn payload(&self) -> &[u8] {
        match &self.rare {
            Some(rare) if self.length > INLINE => &rare.long,
            _ => &self.inline[..self.length.min(INLINE)],
        }
    }

    /// The first sixteen bytes of the payload, with zeros behind the end.
    #[inline]
    fn words(&self) -> (u64, u64) {
        let [a, b, c, d, e, f, g, h, rest @ ..] = self.inline;
        let [i, j, k, l, m, n, o, p, ..] = rest;
        let (first, second) = ([a, b, c, d, e, f, g, h], [i, j, k, l, m, n, o, p]);
        (u64::from_le_bytes(first), u64::from_le_bytes(second))
    }

    /// Says what kind of value follows.
    #[inline]
    fn tag(&mut self, tag: u8) {
        if self.shape >> (8 * (SHAPE - 1)) == 0 {
            self.shape = self.shape << 8 | u64::from(tag);
        } else {
            self.write([tag]);
        }
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
        let payload = self.payload();
        let mut short = [0; SHORT];
        short[..SHAPE].copy_from_slice(&self.shape.to_le_bytes()[..SHAPE]);
        match short[SHAPE..].get_mut(..payload.len()) {
            Some(room) => {
                room.copy_from_slice(payload);
                CallKey(Repr::Short { length: (SHAPE + payload.len()) as u8, bytes: short })
            }
            None => CallKey(Repr::Long([&short[..SHAPE], payload].concat().into())),
        }
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
        // Keys that differ in their length alone meet here, and are told apart as equals are.
        let (first, second) = self.words();
        if self.length <= 8 {
            state.write_u128(pair(first, self.shape));
        } else if self.length <= 16 {
            state.write_u128(pair(first, second));
            state.write_u64(self.shape);
        } else {
            hash_long(self.shape, self.payload(), state);
        }
    }
}

/// Two words that are hashed at the price of one.
#[inline]
fn pair(low: u64, high: u64) -> u128 {
    u128::from(high) << 64 | u128::from(low)
}

/// Out of the way of short keys, whose hash is then a part of the look-up.
#[inline(never)]
fn hash_long<H: Hasher>(shape: u64, payload: &[u8], state: &mut H) {
    state.write(payload);
    state.write_u64(shape);
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
    /// The shape, and behind it the payload.
    #[inline]
    fn bytes(&self) -> &[u8] {
        match &self.0 {
            Repr::Short { length, bytes } => &bytes[..usize::from(*length)],
            Repr::Long(bytes) => bytes,
        }
    }
}

/// The shape and the first sixteen bytes of the payload.
#[inline]
fn split(short: &[u8; SHORT]) -> (u64, u64, u64) {
    let [a, b, c, d, e, f, rest @ ..] = *short;
    let [g, h, i, j, k, l, m, n, rest @ ..] = rest;
    let (first, second) = ([g, h, i, j, k, l, m, n], rest);
    let shape = u64::from_le_bytes([a, b, c, d, e, f, 0, 0]);
    (shape, u64::from_le_bytes(first), u64::from_le_bytes(second))
}

/// The shape and the payload of a long key.
fn split_long(long: &[u8]) -> (u64, &[u8]) {
    match long.split_first_chunk() {
        Some((&[a, b, c, d, e, f], payload)) => {
            (u64::from_le_bytes([a, b, c, d, e, f, 0, 0]), payload)
        }
        None => (0, long),
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
            Repr::Short { length, bytes } => {
                let (shape, first, second) = split(bytes);
                if usize::from(*length) <= SHAPE + 8 {
                    state.write_u128(pair(first, shape));
                } else {
                    state.write_u128(pair(first, second));
                    state.write_u64(shape);
                }
            }
            Repr::Long(bytes) => {
                let (shape, payload) = split_long(bytes);
                hash_long(shape, payload, state);
            }
        }
    }
}

impl cache_tiered::Equivalent<CallKey> for CallKeyBuf {
    #[inline]
    fn equivalent(&self, key: &CallKey) -> bool {
        match &key.0 {
            Repr::Short { length, bytes } => {
                let (shape, first, second) = split(bytes);
                SHAPE + self.length == usize::from(*length)
                    && self.shape == shape
                    && self.words() == (first, second)
            }
            Repr::Long(bytes) => (self.shape, self.payload()) == split_long(bytes),
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

impl Writer<'_> {
    /// A length: one byte for all that are short.
    #[inline]
    fn length(&mut self, length: usize) {
        match u8::try_from(length) {
            Ok(short) if short < u8::MAX => self.0.write([short]),
            _ => {
                self.0.write([u8::MAX]);
                self.0.write((length as u64).to_le_bytes());
            }
        }
    }

    #[inline]
    fn variant(&mut self, tag: u8, name: &str) {
        self.0.tag(tag);
        self.0.write(with_name(NO_NAMES, name).to_le_bytes());
    }
}

/// The hash of no names.
const NO_NAMES: u64 = 0x243F_6A88_85A3_08D3;

/// Adds a name of the program's to a hash of such. It is written to disks, so it stays as it is.
#[inline]
fn with_name(names: u64, name: &str) -> u64 {
    let mix = |hash: u64, word: u64| {
        let product = u128::from(hash ^ word) * 0x9E37_79B9_7F4A_7C15;
        (product >> 64) as u64 ^ product as u64
    };
    let (words, rest) = name.as_bytes().as_chunks::<8>();
    let hash = words.iter().fold(names, |hash, word| mix(hash, u64::from_le_bytes(*word)));
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    // The length goes where no word does: zeros at the end of a name are told from none.
    mix(mix(hash, u64::from_le_bytes(last)).rotate_left(32), name.len() as u64)
}

macro_rules! numbers {
    ($($method:ident($number:ty) $tag:ident)*) => {$(
        #[inline]
        fn $method(self, number: $number) -> Result<(), Refused> {
            self.0.tag(tag::$tag);
            self.0.write(number.to_le_bytes());
            Ok(())
        }
    )*};
}

impl<'a, 'k> Serializer for &'a mut Writer<'k> {
    type Ok = ();
    type Error = Refused;
    type SerializeSeq = Elements<'a, 'k>;
    type SerializeTuple = Elements<'a, 'k>;
    type SerializeTupleStruct = Elements<'a, 'k>;
    type SerializeTupleVariant = Elements<'a, 'k>;
    type SerializeMap = Elements<'a, 'k>;
    type SerializeStruct = Fields<'a, 'k>;
    type SerializeStructVariant = Fields<'a, 'k>;

    numbers! {
        serialize_i8(i8) I8
        serialize_i16(i16) I16
        serialize_i32(i32) I32
        serialize_i64(i64) I64
        serialize_i128(i128) I128
        serialize_u8(u8) U8
        serialize_u16(u16) U16
        serialize_u32(u32) U32
        serialize_u64(u64) U64
        serialize_u128(u128) U128
        serialize_f32(f32) F32
        serialize_f64(f64) F64
    }

    #[inline]
    fn serialize_bool(self, value: bool) -> Result<(), Refused> {
        self.0.tag(if value { tag::TRUE } else { tag::FALSE });
        Ok(())
    }

    #[inline]
    fn serialize_char(self, value: char) -> Result<(), Refused> {
        self.0.tag(tag::CHAR);
        self.0.write(u32::from(value).to_le_bytes());
        Ok(())
    }

    #[inline]
    fn serialize_str(self, value: &str) -> Result<(), Refused> {
        self.0.tag(tag::TEXT);
        self.length(value.len());
        self.0.write_slice(value.as_bytes());
        Ok(())
    }

    #[inline]
    fn serialize_bytes(self, value: &[u8]) -> Result<(), Refused> {
        self.0.tag(tag::BYTES);
        self.length(value.len());
        self.0.write_slice(value);
        Ok(())
    }

    #[inline]
    fn serialize_none(self) -> Result<(), Refused> {
        self.0.tag(tag::NONE);
        Ok(())
    }

    #[inline]
    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Refused> {
        self.0.tag(tag::SOME);
        value.serialize(self)
    }

    fn serialize_unit(self) -> Result<(), Refused> {
        self.0.tag(tag::UNIT);
        Ok(())
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result<(), Refused> {
        self.serialize_unit()
    }

    #[inline]
    fn serialize_unit_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
    ) -> Result<(), Refused> {
        self.variant(tag::UNIT_VARIANT, variant);
        Ok(())
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
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<(), Refused> {
        self.variant(tag::NEWTYPE_VARIANT, variant);
        value.serialize(self)
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Elements<'a, 'k>, Refused> {
        self.0.tag(tag::SEQUENCE);
        Ok(Elements { writer: self })
    }

    fn serialize_tuple(self, _: usize) -> Result<Elements<'a, 'k>, Refused> {
        self.0.tag(tag::TUPLE);
        Ok(Elements { writer: self })
    }

    fn serialize_tuple_struct(
        self,
        _: &'static str,
        length: usize,
    ) -> Result<Elements<'a, 'k>, Refused> {
        self.serialize_tuple(length)
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Elements<'a, 'k>, Refused> {
        self.variant(tag::TUPLE_VARIANT, variant);
        Ok(Elements { writer: self })
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Elements<'a, 'k>, Refused> {
        self.0.tag(tag::MAP);
        Ok(Elements { writer: self })
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Fields<'a, 'k>, Refused> {
        self.0.tag(tag::STRUCT);
        Ok(Fields { writer: self, names: NO_NAMES })
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Fields<'a, 'k>, Refused> {
        self.0.tag(tag::STRUCT_VARIANT);
        Ok(Fields { writer: self, names: with_name(NO_NAMES, variant) })
    }

    fn is_human_readable(&self) -> bool {
        false
    }
}

/// Values up to a tag that ends them.
struct Elements<'a, 'k> {
    writer: &'a mut Writer<'k>,
}

macro_rules! elements {
    ($($part:ident::$($method:ident)*,)*) => {$(
        impl ser::$part for Elements<'_, '_> {
            type Ok = ();
            type Error = Refused;

            $(
                #[inline]
                fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Refused> {
                    value.serialize(&mut *self.writer)
                }
            )*

            #[inline]
            fn end(self) -> Result<(), Refused> {
                self.writer.0.tag(tag::END);
                Ok(())
            }
        }
    )*};
}

elements! {
    SerializeSeq::serialize_element,
    SerializeTuple::serialize_element,
    SerializeTupleStruct::serialize_field,
    SerializeTupleVariant::serialize_field,
    SerializeMap::serialize_key serialize_value,
}

/// The fields of a struct, up to a tag that ends them and the hash of their names, of those alone that are not
/// left out.
struct Fields<'a, 'k> {
    writer: &'a mut Writer<'k>,
    names: u64,
}

macro_rules! fields {
    ($($fields:ident)*) => {$(
        impl ser::$fields for Fields<'_, '_> {
            type Ok = ();
            type Error = Refused;

            #[inline]
            fn serialize_field<T: Serialize + ?Sized>(
                &mut self,
                name: &'static str,
                value: &T,
            ) -> Result<(), Refused> {
                self.names = with_name(self.names, name);
                value.serialize(&mut *self.writer)
            }

            #[inline]
            fn end(self) -> Result<(), Refused> {
                self.writer.0.tag(tag::END);
                self.writer.0.write(self.names.to_le_bytes());
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

    /// Few contents of many kinds, so that two are often all but equal.
    fn json() -> impl Strategy<Value = serde_json::Value> {
        use serde_json::{Value, json};
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            prop_oneof![Just(0), Just(1), Just(u64::MAX), Just(1.0_f64.to_bits())]
                .prop_map(Value::from),
            prop_oneof![Just(-1), Just(i64::MIN)].prop_map(Value::from),
            prop_oneof![Just(0.0), Just(1.0), Just(f64::from_bits(1))].prop_map(Value::from),
            "[\\x00-\\x03a]{0,3}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 12, 3, |inner| {
            let entries = prop::collection::btree_map("[ab]{0,1}", inner.clone(), 0..3);
            prop_oneof![
                prop::collection::vec(inner, 0..3).prop_map(Value::from),
                entries.prop_map(|entries| json!(entries)),
            ]
        })
    }

    #[derive(Debug, Clone, Serialize)]
    enum Colour {
        Red,
        Green,
        Named(String),
    }

    #[derive(Debug, Clone, Serialize)]
    enum Fruit {
        Apple,
        Cut { into: u8 },
    }

    #[derive(Debug, Clone, Serialize)]
    #[serde(untagged)]
    enum Untagged {
        Nothing,
        Flag(bool),
        Small(u8),
        Signed(i64),
        Pair(u8, u8),
        Triple(u8, u8, u8),
        List(Vec<u8>),
        Circle { radius: u8 },
        Square { side: u8 },
        Oval { radius: u8, side: u8 },
        Map(BTreeMap<String, u8>),
        Colour(Colour),
        Fruit(Fruit),
    }

    fn untagged() -> impl Strategy<Value = Untagged> {
        let small = || 1..3_u8;
        prop_oneof![
            Just(Untagged::Nothing),
            any::<bool>().prop_map(Untagged::Flag),
            small().prop_map(Untagged::Small),
            (-2..0_i64).prop_map(Untagged::Signed),
            prop_oneof![
                (small(), small()).prop_map(|(a, b)| Untagged::Pair(a, b)),
                (small(), small(), small()).prop_map(|(a, b, c)| Untagged::Triple(a, b, c)),
            ],
            // As many as no tuple has: those are one and the same in JSON.
            prop_oneof![Just(vec![]), prop::collection::vec(small(), 4..6)]
                .prop_map(Untagged::List),
            small().prop_map(|radius| Untagged::Circle { radius }),
            small().prop_map(|side| Untagged::Square { side }),
            (small(), small()).prop_map(|(radius, side)| Untagged::Oval { radius, side }),
            prop_oneof![
                Just(Untagged::Colour(Colour::Red)),
                Just(Untagged::Colour(Colour::Green)),
                "[ab]".prop_map(|name| Untagged::Colour(Colour::Named(name))),
                Just(Untagged::Fruit(Fruit::Apple)),
                (3..5_u8).prop_map(|into| Untagged::Fruit(Fruit::Cut { into })),
            ],
            prop::collection::btree_map("[cd]", small(), 0..3).prop_map(Untagged::Map),
        ]
    }

    #[test]
    fn values_of_different_kinds_are_told_apart() {
        use serde_json::json;
        let number = json!(4_607_182_418_800_017_408_u64);
        let all = [
            json!({}),
            json!([]),
            json!(false),
            json!(0),
            json!(null),
            json!(""),
            json!(-1),
            json!(u64::MAX),
            json!(1.0),
            number,
            json!([[]]),
            json!([null]),
            json!([[], []]),
            json!({"": null}),
        ];
        for (at, one) in all.iter().enumerate() {
            for (other_at, other) in all.iter().enumerate() {
                let same = key(one).equivalent(&key(other).to_key());
                assert_eq!(same, at == other_at, "{one} and {other}");
            }
        }
    }

    #[test]
    fn a_shape_that_is_longer_than_a_word_goes_on_in_the_payload() {
        let units = |count: usize| key(&vec![(); count]);
        for count in 0..40 {
            for other in 0..40 {
                let same = units(count).equivalent(&units(other).to_key());
                assert_eq!(same, count == other, "{count} and {other}");
            }
        }
    }

    #[test]
    fn a_number_is_a_word_and_two_are_stored_without_an_allocation() {
        let one = key(&7_u64);
        assert_eq!((one.shape, one.length, one.words()), (u64::from(tag::U64), 8, (7, 0)));
        let mut two = one;
        two.push(&9_i64);
        assert_eq!((two.length, two.words()), (16, (7, 9)));
        assert!(matches!(two.to_key().0, Repr::Short { .. }));
    }

    #[test]
    fn bytes_that_are_no_key_are_one_that_nothing_equals() {
        for length in 0..40 {
            let stored = CallKey::from(&*vec![0_u8; length]);
            assert_eq!(stored, stored.clone());
            std::hash::RandomState::new().hash_one(&stored);
            assert_eq!(CallKeyBuf::new().equivalent(&stored), length == SHAPE);
        }
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
        fn a_key_hashes_alike_in_both_forms(
            numbers in prop::collection::vec(any::<u64>(), 0..4),
            bytes in prop::collection::vec(any::<u8>(), 0..100),
        ) {
            let mut made = CallKeyBuf::new();
            numbers.iter().for_each(|number| made.push(number));
            let hasher = std::hash::RandomState::new();
            for byte in bytes {
                let stored = made.to_key();
                prop_assert_eq!(hasher.hash_one(&made), hasher.hash_one(&stored));
                prop_assert!(made.equivalent(&stored));
                made.push(&byte);
                prop_assert!(!made.equivalent(&stored));
            }
        }

        #[test]
        fn json_is_told_apart_whatever_it_is(a in json(), b in json()) {
            let (first, second) = (key(&a), key(&b));
            prop_assert_eq!(first.equivalent(&second.to_key()), a == b);
            prop_assert_eq!(first.to_key() == second.to_key(), a == b);
        }

        #[test]
        fn untagged_enums_are_told_apart_as_json_tells_them(a in untagged(), b in untagged()) {
            let same = serde_json::to_value(&a).unwrap() == serde_json::to_value(&b).unwrap();
            prop_assert_eq!(key(&a).equivalent(&key(&b).to_key()), same);
        }

        #[test]
        fn arguments_cannot_be_cut_otherwise(
            a in prop::collection::vec(json(), 3), b in prop::collection::vec(json(), 3),
        ) {
            let all = |parts: &[serde_json::Value]| {
                let mut key = CallKeyBuf::new();
                parts.iter().for_each(|part| key.push(part));
                key
            };
            prop_assert_eq!(all(&a).equivalent(&all(&b).to_key()), a == b);
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
        assert_eq!(key(&"a".repeat(LONGEST - 9)).problem(), None);
        assert!(key(&"a".repeat(LONGEST - 8)).problem().is_some());
    }

    #[test]
    fn a_stored_key_takes_three_words() {
        assert_eq!(size_of::<CallKey>(), 24);
    }
}
