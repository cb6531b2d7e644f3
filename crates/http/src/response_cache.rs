//! The store of the accelerator: finding, keeping and forgetting responses.
//!
//! It knows keys, variants and the tiers; what may be kept and for how long is decided by
//! [`rules`](crate::rules). A response is stored under a reservation of its target that was made
//! before the origin was asked, so an answer that an unsafe method or a purge has overtaken is not
//! kept.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use ultra_perf::cache_tiered::{Cache, InsertOptions, Reservation};

use crate::rules::{Policy, Storable, Vary};
use crate::stored::{ResponseKey, ResponseKeyRef, Stored, StoredResponse, Varies};

/// Targets remembered as not cacheable, so that their requests never wait for each other.
const UNCACHEABLE_TARGETS: usize = 10_000;

/// How long a target stays remembered; then its next misses are coalesced once more.
const UNCACHEABLE_FOR_MS: u64 = 60_000;

/// The least time that a marker of variants lives; it has to outlive each of them.
const MARKER_TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// What a look-up found.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) response: Option<Arc<StoredResponse>>,
    /// The entry that was looked for: what a flight of this request is named after.
    pub(crate) key: ResponseKey,
}

impl Found {
    /// Whether the target is stored, though not in this variant.
    pub(crate) fn is_other_variant(&self) -> bool {
        self.response.is_none() && !self.key.is_target()
    }
}

#[derive(Debug)]
pub(crate) struct ResponseCache {
    pub(crate) cache: Cache<ResponseKey, Stored>,
    pub(crate) policy: Arc<Policy>,
    pub(crate) max_body_bytes: usize,
    has_lower_tiers: bool,
    uncacheable: quick_cache::sync::Cache<Arc<str>, u64>,
}

impl ResponseCache {
    pub(crate) fn new(
        cache: Cache<ResponseKey, Stored>,
        policy: Arc<Policy>,
        max_body_bytes: usize,
    ) -> Self {
        let stats = cache.stats();
        Self {
            has_lower_tiers: stats.redis.is_some() || stats.disk.is_some(),
            cache,
            policy,
            max_body_bytes,
            uncacheable: quick_cache::sync::Cache::new(UNCACHEABLE_TARGETS),
        }
    }

    /// Looks into memory without building a key, as a hit does; `variant` receives the variant that
    /// was looked for, empty for the target itself.
    pub(crate) fn peek(
        &self,
        target: &str,
        request: &HeaderMap,
        variant: &mut Vec<u8>,
    ) -> Option<Arc<StoredResponse>> {
        variant.clear();
        match self.cache.get_in_memory(&ResponseKeyRef { target, variant })? {
            Stored::Response(response) => Some(response),
            Stored::Varies(varies) => {
                varies.write_variant(request, variant);
                response(self.cache.get_in_memory(&ResponseKeyRef { target, variant }))
            }
        }
    }

    /// Looks into memory.
    pub(crate) fn find(&self, target: &ResponseKey, request: &HeaderMap) -> Found {
        match self.cache.get_in_memory(target) {
            Some(Stored::Varies(varies)) => {
                let key = variant_key(target, &varies, request);
                Found { response: response(self.cache.get_in_memory(&key)), key }
            }
            stored => Found { response: response(stored), key: target.clone() },
        }
    }

    /// Looks into every tier.
    pub(crate) async fn find_below(&self, target: &ResponseKey, request: &HeaderMap) -> Found {
        match self.cache.get(target).await {
            Some(Stored::Varies(varies)) => {
                let key = variant_key(target, &varies, request);
                let stored = self.cache.get(&key).await;
                Found { response: response(stored), key }
            }
            stored => Found { response: response(stored), key: target.clone() },
        }
    }

    /// Whether looking below memory could find anything.
    pub(crate) fn has_lower_tiers(&self) -> bool {
        self.has_lower_tiers
    }

    /// Keeps a response. `request` holds the fields of the request that it answers.
    pub(crate) fn keep(
        &self,
        reservation: &Reservation<ResponseKey, Stored>,
        target: &ResponseKey,
        request: &HeaderMap,
        storable: Storable,
        body: Bytes,
    ) {
        let Storable { head, freshness, retention, vary } = storable;
        let response = Stored::Response(Arc::new(StoredResponse { head, freshness, body }));
        let options = InsertOptions::ttl(retention);
        self.uncacheable.remove(target.target_str());

        let marker = match self.cache.get_in_memory(target) {
            Some(Stored::Varies(marker)) => Some(marker),
            _ => None,
        };
        if marker.is_none() && vary.is_empty() {
            reservation.insert(response, options);
            return;
        }
        // The variants of one target are told apart by all fields that any of them named.
        let vary = match &marker {
            Some(marker) => union(&marker.vary, &vary),
            None => vary,
        };
        let current = match marker {
            Some(marker) if marker.vary == vary => reservation.is_current().then_some(marker),
            _ => {
                let marker = Arc::new(Varies { vary, salt: fastrand::u64(..) });
                let ttl = InsertOptions::ttl(MARKER_TTL.max(retention));
                reservation.insert(Stored::Varies(Arc::clone(&marker)), ttl).then_some(marker)
            }
        };
        // A marker that is removed from here on makes this entry unreachable, as it should.
        if let Some(marker) = current {
            self.cache.insert_with(variant_key(target, &marker, request), response, options);
        }
    }

    /// Forgets a target with all its variants.
    pub(crate) async fn forget(&self, target: &ResponseKey) {
        self.cache.remove(target).await;
    }

    /// Remembers that answers of a target are not to be shared.
    pub(crate) fn note_uncacheable(&self, target: &ResponseKey, now_ms: u64) {
        self.uncacheable.insert(target.target_str().into(), now_ms + UNCACHEABLE_FOR_MS);
    }

    /// Whether a target's last answer was not to be shared.
    pub(crate) fn is_uncacheable(&self, target: &ResponseKey, now_ms: u64) -> bool {
        self.uncacheable.get(target.target_str()).is_some_and(|until_ms| until_ms > now_ms)
    }
}

fn variant_key(target: &ResponseKey, varies: &Varies, request: &HeaderMap) -> ResponseKey {
    let mut variant = Vec::with_capacity(64);
    varies.write_variant(request, &mut variant);
    target.variant(&variant)
}

fn response(stored: Option<Stored>) -> Option<Arc<StoredResponse>> {
    match stored? {
        Stored::Response(response) => Some(response),
        Stored::Varies(_) => None,
    }
}

fn union(a: &Vary, b: &Vary) -> Vary {
    let (a_text, b_text) = (a.to_string(), b.to_string());
    Vary::parse([a_text.as_bytes(), b_text.as_bytes()]).unwrap_or_else(|| b.clone())
}
