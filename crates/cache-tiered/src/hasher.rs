//! The hasher of the keys in memory, unless a cache is given another one.

use std::hash::BuildHasher;

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
