//! How a cache's keys are called in Redis.
//!
//! ```text
//! ultra-perf:users:0:version                          the namespace's version
//! ultra-perf:users:0:tags                             the log of invalidated tags
//! ultra-perf:users:0:dictionary:1f2e3d4c              a compression dictionary
//! ultra-perf:users:0:1795219200123456789:t:alice      an entry
//!          │     │ │                   │
//!     prefix     │ schema version      version of the namespace
//!        namespace
//! ```
//!
//! The last part is `t:` and the text of a string key, `r:` and the key's own bytes where these are
//! printable, `x:` and the key's bytes in hex, or `h:` and a 128-bit hash in hex where the name would
//! be too long. The four never meet, so no two keys with short names share one; a hashed key is told
//! from another by the envelope, which holds the whole key. A name that is not hashed tells its key.

use std::fmt::Write;

use bytes::{BufMut, Bytes, BytesMut};
use xxhash_rust::xxh3::xxh3_128;

/// Longer keys are hashed: a name costs memory on the server for every entry.
const TEXT_MAX_BYTES: usize = 200;
/// Longer keys are hashed where their bytes have to be written in hex.
const HEX_MAX_BYTES: usize = 100;
/// The length that the encoding puts before a string.
const LENGTH_BYTES: usize = 8;

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Name {
    Version,
    Tags,
    /// An entry of a version of the namespace, and its encoded key.
    Entry {
        version: u64,
        key: Vec<u8>,
    },
    /// An entry whose key is not told, but only its hash.
    Hashed {
        version: u64,
        hash: u128,
    },
    /// A dictionary, or nothing of this namespace.
    Other,
}

/// Names everything that one namespace keeps in Redis.
#[derive(Debug, Clone)]
pub(super) struct Names {
    stem: String,
}

impl Names {
    pub(super) fn new(prefix: &str, namespace: &str, schema_version: u32) -> Self {
        let mut stem = format!("{prefix}:");
        for c in namespace.chars() {
            // What would end the part or start a cluster's hash tag is escaped, and so is the escape.
            if matches!(c, ':' | '{' | '}' | '%') || c.is_control() || c.is_whitespace() {
                for byte in c.encode_utf8(&mut [0; 4]).bytes() {
                    write!(stem, "%{byte:02X}").expect("a string takes every write");
                }
            } else {
                stem.push(c);
            }
        }
        write!(stem, ":{schema_version}:").expect("a string takes every write");
        Self { stem }
    }

    /// What all names begin with.
    pub(super) fn stem(&self) -> Bytes {
        Bytes::copy_from_slice(self.stem.as_bytes())
    }

    /// The channel on which changes are told where the server does not tell them itself.
    pub(super) fn channel(&self) -> Bytes {
        Bytes::from(format!("{}changes", self.stem))
    }

    /// The key that holds the namespace's version.
    pub(super) fn version(&self) -> Bytes {
        Bytes::from(format!("{}version", self.stem))
    }

    /// The key that holds the log of invalidated tags.
    pub(super) fn tags(&self) -> Bytes {
        Bytes::from(format!("{}tags", self.stem))
    }

    /// The key that holds a compression dictionary, which all versions of the namespace share.
    pub(super) fn dictionary(&self, id: u32) -> Bytes {
        Bytes::from(format!("{}dictionary:{id:08x}", self.stem))
    }

    /// Reads a name back. One that this namespace would write differently is none of it.
    pub(super) fn parse(&self, name: &[u8]) -> Name {
        self.read(name).unwrap_or(Name::Other)
    }

    fn read(&self, name: &[u8]) -> Option<Name> {
        let rest = name.strip_prefix(self.stem.as_bytes())?;
        if rest == b"version" {
            return Some(Name::Version);
        }
        if rest == b"tags" {
            return Some(Name::Tags);
        }
        let colon = rest.iter().position(|byte| *byte == b':')?;
        let version = std::str::from_utf8(&rest[..colon]).ok()?.parse().ok()?;
        let (kind, text) = rest[colon + 1..].split_at_checked(2)?;
        let key = match kind {
            b"t:" => [&(text.len() as u64).to_le_bytes(), text].concat(),
            b"r:" => text.to_vec(),
            b"x:" => {
                let digits = text.chunks_exact(2);
                if text.len() > 2 * HEX_MAX_BYTES || !digits.remainder().is_empty() {
                    return None;
                }
                digits
                    .map(|it| Some(hex_value(it[0])? << 4 | hex_value(it[1])?))
                    .collect::<Option<_>>()?
            }
            b"h:" => {
                let hash = std::str::from_utf8(text).ok().filter(|text| text.len() == 32)?;
                return Some(Name::Hashed { version, hash: u128::from_str_radix(hash, 16).ok()? });
            }
            _ => return None,
        };
        (self.entry(version, &key) == name).then_some(Name::Entry { version, key })
    }

    /// The hash in a key's name, if it has one.
    pub(super) fn hash(key: &[u8]) -> Option<u128> {
        let told = key.len() <= HEX_MAX_BYTES || string(key).is_some() || is_printable(key);
        (!told).then(|| xxh3_128(key))
    }

    /// The key that holds an entry of one version of the namespace.
    pub(super) fn entry(&self, version: u64, key: &[u8]) -> Bytes {
        let mut name =
            BytesMut::with_capacity(self.stem.len() + 24 + (2 * key.len()).min(TEXT_MAX_BYTES));
        name.put_slice(self.stem.as_bytes());
        write!(name, "{version}:").expect("a buffer takes every write");
        match (string(key), is_printable(key)) {
            (Some(text), _) => {
                name.put_slice(b"t:");
                name.put_slice(text);
            }
            (None, true) => {
                name.put_slice(b"r:");
                name.put_slice(key);
            }
            (None, false) if key.len() <= HEX_MAX_BYTES => {
                name.put_slice(b"x:");
                for byte in key {
                    name.put_slice(&[hex_digit(byte >> 4), hex_digit(byte & 15)]);
                }
            }
            (None, false) => {
                write!(name, "h:{:032x}", xxh3_128(key)).expect("a buffer takes every write");
            }
        }
        name.freeze()
    }
}

/// The text of an encoded string, if the key is exactly one and fit to be read.
fn string(key: &[u8]) -> Option<&[u8]> {
    let (length, text) = key.split_first_chunk::<LENGTH_BYTES>()?;
    (u64::from_le_bytes(*length) == text.len() as u64 && is_printable(text)).then_some(text)
}

fn hex_digit(value: u8) -> u8 {
    b"0123456789abcdef"[usize::from(value)]
}

fn hex_value(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

fn is_printable(text: &[u8]) -> bool {
    text.len() <= TEXT_MAX_BYTES
        && std::str::from_utf8(text).is_ok_and(|text| !text.chars().any(char::is_control))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn encoded(text: &str) -> Vec<u8> {
        [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
    }

    fn check(key: &[u8], name: &str) {
        let names = Names::new("up", "users", 3);
        assert_eq!(names.entry(7, key), format!("up:users:3:7:{name}"));
    }

    #[test]
    fn a_string_key_is_its_text() {
        check(&encoded("alice"), "t:alice");
        check(&encoded("größe {1}:2"), "t:größe {1}:2");
        check(&encoded(""), "t:");
    }

    #[test]
    fn printable_bytes_are_themselves_all_else_is_hex_and_what_is_long_a_hash() {
        check(b"alice", "r:alice");
        check(&0xAF05_u32.to_le_bytes(), "x:05af0000");
        check(&[7; 100], &format!("x:{}", "07".repeat(100)));
        check(&encoded("a\nb"), "x:0300000000000000610a62");
        for long in [vec![7; 101], encoded(&"a".repeat(201))] {
            check(&long, &format!("h:{:032x}", xxh3_128(&long)));
        }
    }

    #[test]
    fn a_namespace_cannot_reach_into_another() {
        let version = |prefix, namespace| Names::new(prefix, namespace, 0).version();
        assert_eq!(version("p", "a"), "p:a:0:version");
        assert_eq!(version("p", "a:0:b"), "p:a%3A0%3Ab:0:version");
        assert_eq!(version("p", "{a} %3A"), "p:%7Ba%7D%20%253A:0:version");
    }

    #[test]
    fn only_what_the_namespace_writes_is_read_as_its_own() {
        let names = Names::new("up", "users", 3);
        assert_eq!(names.parse(b"up:users:3:version"), Name::Version);
        assert_eq!(names.parse(b"up:users:3:tags"), Name::Tags);
        let hash = Name::Hashed { version: 7, hash: 0xAB };
        assert_eq!(names.parse(format!("up:users:3:7:h:{:032x}", 0xAB).as_bytes()), hash);
        for other in [
            "",
            "up:users:3:",
            "up:users:3:dictionary:00000001",
            "up:users:4:version",
            "up:users:3:7",
            "up:users:3:7:",
            "up:users:3:7:t",
            "up:users:3:7:y:a",
            "up:users:3:x:t:a",
            "up:users:3:07:t:a",
            "up:users:3:7:x:0",
            "up:users:3:7:x:0G",
            "up:users:3:7:x:AF05",
            "up:users:3:7:x:61",
            "up:users:3:7:h:ab",
            "up:users:3:7:t:a\n",
            "up:users:3:18446744073709551616:t:a",
        ] {
            assert_eq!(names.parse(other.as_bytes()), Name::Other, "{other}");
        }
    }

    proptest! {
        #[test]
        fn a_name_tells_its_key_or_its_hash(
            version in 1..u64::MAX,
            key in prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..210),
                "[a-z]{0,210}".prop_map(|text| encoded(&text)),
                "[a-z]{0,210}".prop_map(String::into_bytes),
            ],
        ) {
            let names = Names::new("p", "n", 0);
            let expected = match Names::hash(&key) {
                Some(hash) => Name::Hashed { version, hash },
                None => Name::Entry { version, key: key.clone() },
            };
            prop_assert_eq!(names.parse(&names.entry(version, &key)), expected);
        }

        #[test]
        fn a_broken_name_is_read_as_what_it_would_be_or_as_none(
            bytes in proptest::collection::vec(any::<u8>(), 0..12),
            tail in "[txrh]:[0-9a-f]{0,40}",
        ) {
            let names = Names::new("p", "n", 0);
            let mut name = b"p:n:0:7:".to_vec();
            name.extend_from_slice(tail.as_bytes());
            name.extend_from_slice(&bytes);
            if let Name::Entry { version, key } = names.parse(&name) {
                prop_assert_eq!(&names.entry(version, &key)[..], &name[..]);
            }
        }

        #[test]
        fn different_keys_have_different_names(keys in proptest::collection::hash_set(
            prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..24),
                "[a-c]{0,12}".prop_map(|text| encoded(&text)),
                "[a-c]{0,12}".prop_map(String::into_bytes),
            ],
            0..64,
        )) {
            let names = Names::new("p", "n", 0);
            let mut seen = HashMap::new();
            for key in keys {
                if let Some(other) = seen.insert(names.entry(1, &key), key.clone()) {
                    prop_assert!(false, "{key:?} and {other:?} share a name");
                }
            }
        }
    }
}
