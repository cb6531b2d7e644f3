//! A hash without a seed, so that a simulation gives the same numbers every time.
//!
//! It mixes 64-bit keys by the finalizer of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014). Anybody can
//! make keys collide in it; traces have no reason to.

use std::hash::{BuildHasher, Hasher};

/// Spreads the bits of a key over all 64.
pub(crate) fn mix(key: u64) -> u64 {
    let mut z = key.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Makes [`Mix`] hashers.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct BuildMix;

/// Hashes one `u64` by [`mix`].
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Mix(u64);

impl BuildHasher for BuildMix {
    type Hasher = Mix;

    fn build_hasher(&self) -> Mix {
        Mix::default()
    }
}

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write_u64(&mut self, key: u64) {
        self.0 = mix(self.0 ^ key);
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }
}
