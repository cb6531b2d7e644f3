//! Bytes that no codec wrote: each codec refuses them or reads a value, and never panics or asks for
//! more memory than the bytes could mean.
//!
//! The checksum of an envelope keeps damage away from the codecs, but not bytes that another program, or
//! another version of a type, has put there on purpose. What is read is written again and must then read
//! the same: a value that a cache hands on has to survive the next tier.
#![no_main]

use std::fmt::Debug;

use cache_tiered::{Bincode, Codec, MessagePack, Wincode};
use libfuzzer_sys::fuzz_target;

type Nested = Vec<(String, Option<u64>, Vec<Vec<u8>>)>;

fuzz_target!(|input: &[u8]| {
    let Some((kind, bytes)) = input.split_first() else { return };
    match kind % 4 {
        0 => all::<u64>(bytes),
        1 => all::<String>(bytes),
        2 => all::<(u32, u64, Vec<u8>)>(bytes),
        _ => all::<Nested>(bytes),
    }
});

/// Reads the bytes with every codec, as a key and as a value.
fn all<T>(bytes: &[u8])
where
    T: Debug + PartialEq,
    Bincode: Codec<T, T>,
    MessagePack: Codec<T, T>,
    Wincode: Codec<T, T>,
{
    read::<T>(&Bincode, bytes);
    read::<T>(&MessagePack, bytes);
    read::<T>(&Wincode, bytes);
}

fn read<T: Debug + PartialEq>(codec: &impl Codec<T, T>, bytes: &[u8]) {
    if let Ok(value) = codec.decode(bytes) {
        let mut again = Vec::new();
        codec.encode(&value, &mut again).expect("what was read can be written");
        assert_eq!(codec.decode(&again).expect("what was written can be read"), value);
    }
    if let Ok(key) = codec.decode_key(bytes) {
        let mut again = Vec::new();
        codec.encode_key(&key, &mut again).expect("what was read can be written");
        assert_eq!(again, bytes, "one key has two names");
    }
}
