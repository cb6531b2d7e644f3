//! The hasher of the keys in memory, unless a cache is given another one.

use std::any::TypeId;
use std::hash::{BuildHasher, Hash};

/// Makes the hashers of one cache: aHash, keyed at random.
///
/// Each cache draws keys of its own from the operating system, so nobody outside can choose cache keys
/// that collide and so slow it down. Its hashes differ from cache to cache and from run to run, and are
/// written nowhere.
#[derive(Debug, Clone, Default)]
pub struct DefaultHashBuilder(ahash::RandomState);

impl BuildHasher for DefaultHashBuilder {
    type Hasher = ahash::AHasher;

    #[inline]
    fn build_hasher(&self) -> Self::Hasher {
        self.0.build_hasher()
    }
}

/// The hash of a key in which any few bits tell keys apart: shards, slots and samples take different
/// ones.
///
/// What [`DefaultHashBuilder`] gives is such a hash. Others may be good in some bits only, down to those
/// that pass a number through, so theirs are folded once more; which it is, is known when compiled.
#[inline]
pub(crate) fn hash_of<S, Q>(hasher: &S, key: &Q) -> u64
where
    S: BuildHasher + 'static,
    Q: Hash + ?Sized,
{
    let hash = hasher.hash_one(key);
    if TypeId::of::<S>() == TypeId::of::<DefaultHashBuilder>() {
        return hash;
    }
    let product = u128::from(hash) * 0x9E37_79B9_7F4A_7C15;
    (product >> 64) as u64 ^ product as u64
}
