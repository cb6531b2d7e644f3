//! What the cache asks of a tier below memory, and what the two such tiers share.

#[cfg(feature = "disk")]
use std::ops::ControlFlow;
#[cfg(feature = "__lower")]
use std::sync::OnceLock;
use std::sync::{Arc, Weak};

#[cfg(feature = "__lower")]
use bytes::Bytes;
use futures_util::future::BoxFuture;

use crate::clock::Millis;
use crate::stats::{CoherenceStats, CompressionStats, TierStats};
use crate::tags::Attributes;

/// A tier, as calls and statistics name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Tier {
    /// The entries in this process's memory.
    Memory,
    /// The entries in Redis, shared with other machines.
    Redis,
    /// The entries on this machine's disk.
    Disk,
}

impl Tier {
    /// Returns the tier's name in lower case, as metrics and configuration write it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Redis => "redis",
            Self::Disk => "disk",
        }
    }
}

/// A value on its way down. The tiers share it, and whoever comes first seals it for all.
#[derive(Debug)]
#[cfg_attr(not(feature = "__lower"), expect(dead_code, reason = "no tier to write to"))]
pub(crate) struct Item<V> {
    pub(crate) value: V,
    pub(crate) expires_at: Millis,
    pub(crate) attributes: Option<Arc<Attributes>>,
    #[cfg(feature = "__lower")]
    pub(crate) expires_unix_ms: u64,
    #[cfg(feature = "__lower")]
    pub(crate) weight: u64,
    /// The envelope; `None` inside when the value cannot be written.
    #[cfg(feature = "__lower")]
    pub(crate) sealed: OnceLock<Option<Bytes>>,
}

impl<V> Item<V> {
    #[cfg_attr(not(feature = "__lower"), expect(unused_variables, reason = "no tier to write to"))]
    pub(crate) fn new(
        value: V,
        expires_at: Millis,
        attributes: Option<Arc<Attributes>>,
        expires_unix_ms: u64,
        weight: u64,
    ) -> Self {
        Self {
            value,
            expires_at,
            attributes,
            #[cfg(feature = "__lower")]
            expires_unix_ms,
            #[cfg(feature = "__lower")]
            weight,
            #[cfg(feature = "__lower")]
            sealed: OnceLock::new(),
        }
    }
}

/// A write to a lower tier.
#[derive(Debug)]
pub(crate) enum Write<V> {
    Put(Arc<Item<V>>),
    Remove,
}

impl<V> Clone for Write<V> {
    fn clone(&self) -> Self {
        match self {
            Self::Put(item) => Self::Put(Arc::clone(item)),
            Self::Remove => Self::Remove,
        }
    }
}

#[cfg(feature = "__lower")]
impl<V> Write<V> {
    pub(crate) fn weight(&self) -> u64 {
        match self {
            Self::Put(item) => item.weight,
            Self::Remove => 0,
        }
    }
}

/// Whether a tier's queue takes another put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(feature = "__lower"), expect(dead_code, reason = "no tier to write to"))]
pub(crate) enum Room {
    Free,
    /// Not before the queue has been worked off.
    Full,
    /// Never again: the tier is closed.
    Closed,
}

/// A value that a lower tier had, and what it carries; valid when it was found.
#[derive(Debug, Clone)]
pub(crate) struct Found<V> {
    pub(crate) value: V,
    pub(crate) expires_at: Millis,
    pub(crate) attributes: Option<Arc<Attributes>>,
}

/// Who lets entries go when others have changed them in a tier that is shared.
#[cfg_attr(not(feature = "__redis"), expect(dead_code, reason = "no tier is shared"))]
pub(crate) trait Sink<K>: Send + Sync {
    /// Others have written or removed this key in the tier `shared`: no other tier keeps its value, nor
    /// one that is on its way.
    fn changed(&self, key: &K, shared: Tier);

    /// Takes a key's value out of memory, and overtakes one that is on its way.
    fn forget(&self, key: &K);

    /// The same for every key. Takes its time: not for an async thread.
    fn forget_all(&self);

    /// Tags were invalidated in the tier `shared`, here or on another machine, after all that was known
    /// before. Resolves when the other tiers will not forget it.
    fn tags_invalidated<'a>(&'a self, numbers: &'a [u64], shared: Tier) -> BoxFuture<'a, ()>;

    /// It is known for the first time what has been invalidated: what is in memory may have been.
    fn tags_known(&self);
}

/// How much of a tier's newest entries is asked for: entries, and bytes as the tier stores them.
#[cfg(feature = "disk")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) entries: u64,
    pub(crate) bytes: u64,
}

/// One of a tier's newest entries.
#[cfg(feature = "disk")]
pub(crate) struct Shown<'a, K, V> {
    /// `None` if it is not for this cache: of another schema or codec, or under an unknown key.
    pub(crate) found: Option<(K, Found<V>)>,
    pub(crate) bytes: u64,
    /// What will be shown altogether, as far as is known.
    pub(crate) total_bytes: u64,
    /// Whether the tier, its queue included, still has this for the key.
    pub(crate) is_current: &'a dyn Fn(&K) -> bool,
}

/// A tier below memory.
///
/// Tiers are called through this, in their reading order. Nothing here fails: a tier that cannot
/// answer counts an error and has no value.
pub(crate) trait LowerTier<K, V>: Send + Sync {
    fn tier(&self) -> Tier;

    /// Queues a write; what this tier held for the key is not read again, whatever becomes of it.
    ///
    /// Called under locks. The caller keeps a clone of `write`; a write that this one replaced is
    /// handed back in `dropped`.
    fn push(&self, key: &K, write: Write<V>, dropped: &mut Vec<Write<V>>);

    /// Whether a put of this weight would be queued now.
    fn room(&self, weight: u64) -> Room;

    /// Whether the tier still holds what it was given for the key, as far as it can tell without I/O.
    fn holds(&self, key: &K) -> bool;

    /// Looks a key up, pending writes first.
    fn get<'a>(&'a self, key: &'a K) -> BoxFuture<'a, Option<Found<V>>>;

    /// Looks several keys up, in the order given.
    fn get_many<'a>(&'a self, keys: &'a [&'a K]) -> BoxFuture<'a, Vec<Option<Found<V>>>>;

    /// Shows the newest entries, the older of them first; a tier that cannot tell shows none. Blocks.
    #[cfg(feature = "disk")]
    fn visit_newest(
        &self,
        wanted: Wanted,
        each: &mut dyn FnMut(Shown<'_, K, V>) -> ControlFlow<()>,
    ) {
        let _ = (wanted, each);
    }

    /// Empties the tier; what was written before is not read again.
    fn clear(&self) -> BoxFuture<'_, ()>;

    /// Notes that tags, named by their numbers, were invalidated at this time of the cache. Resolves when
    /// the tier will not forget it; until then it may bring entries with these tags back after a restart.
    fn note_invalidated<'a>(&'a self, time: u64, numbers: &'a [u64]) -> BoxFuture<'a, ()>;

    /// Takes out entries that are past their expiry, and tells how many.
    fn remove_expired(&self) -> BoxFuture<'_, u64>;

    /// Resolves when every write queued before has been made.
    fn flush(&self) -> BoxFuture<'_, ()>;

    /// Finishes the queue and lets go of files, connections, threads and tasks.
    ///
    /// Dropping the tier begins the same and does not wait for it.
    fn close(&self) -> BoxFuture<'_, ()>;

    /// Tells who lets entries go when others change them here; a tier that nobody shares has no use
    /// for it.
    fn attach(&self, _sink: Weak<dyn Sink<K>>) {}

    /// Notes that a key's value may come into memory: what others do to it has to find the key.
    ///
    /// Called before the value is asked for, and under no lock. One that is `warmed` comes from where
    /// nobody can say how old it is, such as a snapshot.
    fn watch(&self, _key: &K, _warmed: bool) {}

    /// How memory follows what others change here, if it does.
    fn coherence(&self) -> Option<CoherenceStats> {
        None
    }

    fn stats(&self) -> TierStats;

    /// What compression has done for this tier and the others of its cache.
    fn compression(&self) -> CompressionStats;
}

#[cfg(feature = "__lower")]
pub(crate) use sealing::{Opening, Sealer};

#[cfg(feature = "__lower")]
mod sealing {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Arc;

    use bytes::Bytes;
    use xxhash_rust::xxh3::xxh3_64;

    use super::{Found, Item, Write};
    use crate::clock::Clock;
    use crate::codec::Codec;
    use crate::dictionary::Dictionary;
    use crate::envelope::{Envelopes, Format, Rejected};
    use crate::stats::CompressionStats;
    use crate::tags::{Attributes, Standing, TagTable};

    /// The codec of a dictionary, which none of a cache's values has.
    const DICTIONARY_CODEC: u8 = 0;
    const DICTIONARY_KEY: &[u8] = b"dictionary";

    /// A cache's way between values and envelopes. Panics of a user's codec end here, as failures.
    pub(crate) struct Sealer<K, V> {
        pub(crate) codec: Arc<dyn Codec<K, V>>,
        pub(crate) schema: u32,
        pub(crate) envelopes: Envelopes,
        pub(crate) clock: Clock,
        pub(crate) tags: Arc<TagTable>,
        #[cfg(feature = "__redis")]
        pub(crate) executor: Option<crate::offload::Executor>,
    }

    /// What came out of an envelope.
    pub(crate) enum Opening<V> {
        Value(Found<V>),
        /// Whole, but not for us, or expired.
        Miss,
        /// Whole, but compressed with a dictionary that is not known here.
        NoDictionary(u32),
        /// Broken, or not decodable.
        Corrupt,
    }

    impl<K: 'static, V: 'static> Sealer<K, V> {
        /// What a pending write leaves to be found: a value, unless it is dead or was removed.
        pub(crate) fn pending(&self, write: &Write<V>) -> Option<Found<V>>
        where
            V: Clone,
        {
            let Write::Put(item) = write else { return None };
            let Item { value, expires_at, attributes, .. } = &**item;
            let valid = attributes.as_ref().is_none_or(|it| it.is_valid(&self.tags));
            (valid && *expires_at > self.clock.now()).then(|| Found {
                value: value.clone(),
                expires_at: *expires_at,
                attributes: attributes.clone(),
            })
        }

        pub(crate) fn key(&self, key: &K) -> Option<Vec<u8>> {
            let mut bytes = Vec::with_capacity(64);
            let encoded = catch_unwind(AssertUnwindSafe(|| self.codec.encode_key(key, &mut bytes)));
            matches!(encoded, Ok(Ok(()))).then_some(bytes)
        }

        /// The key that these bytes name.
        pub(crate) fn key_of(&self, bytes: &[u8]) -> Option<K> {
            catch_unwind(AssertUnwindSafe(|| self.codec.decode_key(bytes))).ok()?.ok()
        }

        pub(crate) fn seal(&self, key: &[u8], item: &Item<V>) -> Option<Bytes> {
            item.sealed
                .get_or_init(|| {
                    let mut value = Vec::new();
                    let encoded = catch_unwind(AssertUnwindSafe(|| {
                        self.codec.encode(&item.value, &mut value)
                    }));
                    if !matches!(encoded, Ok(Ok(()))) {
                        return None;
                    }
                    let format = self.format();
                    let expiry = item.expires_unix_ms;
                    let attributes = item.attributes.as_ref().map_or_else(Vec::new, |attributes| {
                        let stale = attributes.standing(&self.tags).0 == Standing::Stale;
                        attributes.encode(stale)
                    });
                    self.envelopes.seal(format, key, &value, expiry, &attributes).map(Bytes::from)
                })
                .clone()
        }

        pub(crate) fn open(&self, key: &[u8], sealed: &[u8]) -> Opening<V> {
            let opened = match self.envelopes.open(self.format(), key, sealed) {
                Ok(opened) => opened,
                Err(Rejected::NoDictionary(id)) => return Opening::NoDictionary(id),
                Err(Rejected::Foreign) => return Opening::Miss,
                Err(Rejected::Corrupt) => return Opening::Corrupt,
            };
            let expiry = opened.expires_unix_ms;
            if expiry != 0 && expiry <= self.clock.unix_now() {
                return Opening::Miss;
            }
            let attributes = match &*opened.attributes {
                [] => None,
                bytes => match Attributes::decode(&self.tags, bytes) {
                    Some(attributes) => Some(Arc::new(attributes)),
                    None => return Opening::Corrupt,
                },
            };
            match catch_unwind(AssertUnwindSafe(|| self.codec.decode(&opened.value))) {
                Ok(Ok(value)) => {
                    let expires_at = self.clock.deadline_of(expiry);
                    Opening::Value(Found { value, expires_at, attributes })
                }
                _ => Opening::Corrupt,
            }
        }

        /// A fingerprint of a value's content, by what it is written as.
        pub(crate) fn content(&self, value: &V) -> Option<u64> {
            let mut bytes = Vec::new();
            let encoded = catch_unwind(AssertUnwindSafe(|| self.codec.encode(value, &mut bytes)));
            matches!(encoded, Ok(Ok(()))).then(|| xxh3_64(&bytes))
        }

        /// How many bytes opening an envelope has to go through.
        #[cfg(feature = "__redis")]
        pub(crate) fn opening_bytes(&self, sealed: &[u8]) -> usize {
            sealed.len().max(crate::envelope::raw_len(sealed))
        }

        /// Puts a dictionary into an envelope of its own: with encryption, it is encrypted like the
        /// values that its pieces are from.
        pub(crate) fn seal_dictionary(&self, dictionary: &Dictionary) -> Option<Vec<u8>> {
            let format = Format { codec: DICTIONARY_CODEC, schema: dictionary.id() };
            self.envelopes.seal_raw(format, DICTIONARY_KEY, dictionary.bytes())
        }

        /// Takes the dictionary of this number out of its envelope; `None` if that is not what it is.
        pub(crate) fn open_dictionary(&self, id: u32, sealed: &[u8]) -> Option<Dictionary> {
            let format = Format { codec: DICTIONARY_CODEC, schema: id };
            let opened = self.envelopes.open(format, DICTIONARY_KEY, sealed).ok()?;
            Dictionary::new(opened.value.into_owned()).filter(|it| it.id() == id)
        }

        /// Whether an envelope would be protected the same way if it were made today.
        #[cfg(feature = "disk")]
        pub(crate) fn is_current(&self, sealed: &[u8]) -> bool {
            self.envelopes.is_current(sealed)
        }

        pub(crate) fn compression(&self) -> CompressionStats {
            self.envelopes.compressing.stats()
        }

        fn format(&self) -> Format {
            Format { codec: self.codec.id(), schema: self.schema }
        }
    }
}
