//! The store of the accelerator: finding, keeping and forgetting responses.
//!
//! It knows keys, variants and the tiers; what may be kept and for how long is decided by
//! [`rules`](crate::rules). A response is stored under a reservation of its target that was made
//! before the origin was asked, so an answer that an unsafe method or a purge has overtaken is not
//! kept.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::HeaderMap;
use http::header::{AUTHORIZATION, FORWARDED};
use parking_lot::Mutex;
use ultra_perf::cache_tiered::{Cache, Hit, InsertOptions, Reservation, Tag};

use crate::accelerator::now_ms;
use crate::fill::Room;
use crate::rules::{Policy, Storable, Vary};
use crate::stored::{ResponseKey, ResponseKeyRef, Stored, StoredResponse, Varies};
use crate::surrogate;

/// Targets remembered as not shared, so that their requests never wait for each other.
const UNSHARED_TARGETS: usize = 10_000;

/// How long a target stays remembered; then its next misses are coalesced once more.
const UNSHARED_FOR_MS: u64 = 60_000;

/// The least time that a marker of variants lives. Variants that outlive it are fetched anew.
const MARKER_TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// Fields that may select the variants of one target; a target that names more, over time, forgets
/// its earlier variants.
const VARYING_FIELDS_MAX: usize = 32;

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

/// A response to be kept.
#[derive(Debug)]
pub(crate) struct Keep {
    pub(crate) response: Arc<StoredResponse>,
    /// How long.
    pub(crate) retention: Duration,
    /// The request fields that select it.
    pub(crate) vary: Vary,
}

impl Keep {
    /// Puts a head that may be stored together with its body.
    pub(crate) fn new(storable: Storable, body: Bytes) -> Self {
        let Storable { head, freshness, retention, vary } = storable;
        Self { response: Arc::new(StoredResponse::new(head, freshness, body)), retention, vary }
    }
}

#[derive(Debug)]
pub(crate) struct ResponseCache {
    pub(crate) cache: Cache<ResponseKey, Stored>,
    /// How long what is stale may be used changes while it runs.
    pub(crate) policy: Arc<ArcSwap<Policy>>,
    pub(crate) max_body_bytes: usize,
    /// For the bodies that are on their way into the cache.
    pub(crate) room: Arc<Room>,
    unshared: quick_cache::sync::Cache<Arc<str>, UnsharedUntil>,
    /// Two answers that come at once must not make two markers.
    marking: Mutex<()>,
}

/// Until when a target's answers count as not shared, in Unix milliseconds. Requests with
/// credentials count for themselves: their answers are rarely for everybody.
#[derive(Debug, Clone, Copy, Default)]
struct UnsharedUntil {
    public_ms: u64,
    authorized_ms: u64,
}

impl UnsharedUntil {
    fn of(&mut self, request: &HeaderMap) -> &mut u64 {
        match request.contains_key(AUTHORIZATION) {
            true => &mut self.authorized_ms,
            false => &mut self.public_ms,
        }
    }
}

impl ResponseCache {
    pub(crate) fn new(
        cache: Cache<ResponseKey, Stored>,
        policy: Arc<ArcSwap<Policy>>,
        max_body_bytes: usize,
    ) -> Self {
        let capacity = usize::try_from(cache.stats().memory.capacity).unwrap_or(usize::MAX);
        Self {
            cache,
            policy,
            max_body_bytes,
            room: Room::new((capacity / 4).max(max_body_bytes)),
            unshared: quick_cache::sync::Cache::new(UNSHARED_TARGETS),
            marking: Mutex::default(),
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
        match self.cache.look_up_in_memory(&ResponseKeyRef { target, variant })? {
            Hit { value: Stored::Varies(varies), .. } => {
                varies.write_variant(request, variant);
                response(self.cache.look_up_in_memory(&ResponseKeyRef { target, variant }))
            }
            hit => response(Some(hit)),
        }
    }

    /// Looks into memory.
    pub(crate) fn find(&self, target: &ResponseKey, request: &HeaderMap) -> Found {
        match self.cache.look_up_in_memory(target) {
            Some(Hit { value: Stored::Varies(varies), .. }) => {
                let key = variant_key(target, &varies, request);
                Found { response: response(self.cache.look_up_in_memory(&key)), key }
            }
            stored => Found { response: response(stored), key: target.clone() },
        }
    }

    /// Looks into every tier.
    pub(crate) async fn find_below(&self, target: &ResponseKey, request: &HeaderMap) -> Found {
        match self.cache.look_up(target).await {
            Some(Hit { value: Stored::Varies(varies), .. }) => {
                let key = variant_key(target, &varies, request);
                let stored = self.cache.look_up(&key).await;
                Found { response: response(stored), key }
            }
            stored => Found { response: response(stored), key: target.clone() },
        }
    }

    /// Keeps a response. `request` holds the fields of the request that it answers.
    pub(crate) fn keep(
        &self,
        reservation: &Reservation<ResponseKey, Stored>,
        target: &ResponseKey,
        request: &HeaderMap,
        Keep { response, retention, vary }: Keep,
    ) {
        let options = InsertOptions::ttl(retention).tags(surrogate::tags(&response.head.headers));
        let response = Stored::Response(response);
        if vary.is_empty() && !self.is_varying(target) {
            reservation.insert(response, options);
            return;
        }
        let marking = self.marking.lock();
        let marker = match self.cache.get_in_memory(target) {
            Some(Stored::Varies(marker)) => Some(marker),
            _ => None,
        };
        // The variants of one target are told apart by all fields that any of them named.
        let vary = marker.as_ref().and_then(|marker| union(&marker.vary, &vary)).unwrap_or(vary);
        let current = match marker {
            Some(marker) if marker.vary == vary => reservation.is_current().then_some(marker),
            _ => {
                let marker = Arc::new(Varies { vary, salt: fastrand::u64(..) });
                let ttl = InsertOptions::ttl(MARKER_TTL.max(retention));
                reservation.insert(Stored::Varies(Arc::clone(&marker)), ttl).then_some(marker)
            }
        };
        drop(marking);
        // A marker that is removed from here on makes this entry unreachable, as it should.
        if let Some(marker) = current {
            reservation.insert_beside(&variant_key(target, &marker, request), response, options);
        }
    }

    fn is_varying(&self, target: &ResponseKey) -> bool {
        matches!(self.cache.get_in_memory(target), Some(Stored::Varies(_)))
    }

    /// Forgets a target with all its variants.
    pub(crate) async fn forget(&self, target: &ResponseKey) {
        self.cache.remove(target).await;
    }

    /// Forgets every response with one of these tags, or makes it stale if that is to be done softly.
    pub(crate) async fn forget_tags(&self, tags: &[Tag], softly: bool) {
        let tags = tags.iter().copied();
        if softly {
            self.cache.soften_tags(tags).await;
        } else {
            self.cache.invalidate_tags(tags).await;
        }
    }

    /// Remembers whether the answers of a target are shared among requests like this one.
    pub(crate) fn note_shared(
        &self,
        target: &ResponseKey,
        request: &HeaderMap,
        shared: bool,
        now_ms: u64,
    ) {
        let known = self.unshared.get(target.target_str());
        if shared && known.is_none() {
            return;
        }
        let mut until = known.unwrap_or_default();
        *until.of(request) = if shared { 0 } else { now_ms.saturating_add(UNSHARED_FOR_MS) };
        self.unshared.insert(target.target_str().into(), until);
    }

    /// Whether the last answer of a target to a request like this one was for that request alone.
    pub(crate) fn is_unshared(
        &self,
        target: &ResponseKey,
        request: &HeaderMap,
        now_ms: u64,
    ) -> bool {
        let known = self.unshared.get(target.target_str());
        known.is_some_and(|mut until| *until.of(request) > now_ms)
    }
}

/// Whether the cache can tell the variants of an answer apart.
///
/// The fields that name the client are written by the proxy, for the origin alone: what the client
/// sent under these names, if anything, selects nothing.
pub(crate) fn can_tell_apart(vary: &Vary) -> bool {
    !vary.fields().iter().any(|name| *name == FORWARDED || name == "x-forwarded-for")
}

fn variant_key(target: &ResponseKey, varies: &Varies, request: &HeaderMap) -> ResponseKey {
    let mut variant = Vec::with_capacity(64);
    varies.write_variant(request, &mut variant);
    target.variant(&variant)
}

/// The response that was found. One that was made stale from outside says so by its freshness.
fn response(hit: Option<Hit<Stored>>) -> Option<Arc<StoredResponse>> {
    match hit? {
        Hit { value: Stored::Response(response), stale: false } => Some(response),
        Hit { value: Stored::Response(response), stale: true } => {
            let StoredResponse { head, freshness, body } = &*response;
            let (head, body, freshness) = (head.clone(), body.clone(), freshness.ended(now_ms()));
            Some(Arc::new(StoredResponse { head, freshness, body }))
        }
        Hit { value: Stored::Varies(_), .. } => None,
    }
}

/// The fields of both, unless those would be too many.
fn union(a: &Vary, b: &Vary) -> Option<Vary> {
    let (a, b) = (a.to_string(), b.to_string());
    Vary::parse([a.as_bytes(), b.as_bytes()]).filter(|all| all.fields().len() <= VARYING_FIELDS_MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use http::header::{CACHE_CONTROL, HeaderName, HeaderValue};
    use http::{Method, StatusCode};

    use super::*;
    use crate::rules::{self, RequestHead, ResponseHead, Times};
    use crate::stored::weigh;

    const X_LANGUAGE: HeaderName = HeaderName::from_static("x-language");

    fn open() -> ResponseCache {
        let cache = Cache::builder("responses").bytes(64 << 20, weigh).build();
        ResponseCache::new(cache.expect("a cache"), Arc::default(), 1 << 20)
    }

    fn asking(language: usize) -> HeaderMap {
        HeaderMap::from_iter([(X_LANGUAGE, HeaderValue::from(language))])
    }

    /// A response that is fresh for a minute and varies on these fields.
    fn response(vary: &str) -> Keep {
        let headers = HeaderMap::from_iter([
            (CACHE_CONTROL, HeaderValue::from_static("max-age=60")),
            (http::header::VARY, vary.parse().expect("a value")),
        ]);
        let request = RequestHead { method: &Method::GET, headers: &HeaderMap::new() };
        let response = ResponseHead { status: StatusCode::OK, headers: &headers };
        let times = Times { request_ms: 1_000, response_ms: 1_000 };
        let storable = rules::store(&Policy::default(), request, response, times);
        Keep::new(storable.expect("it may be stored"), Bytes::from_static(b"body"))
    }

    #[test]
    fn variants_that_are_kept_at_the_same_moment_are_all_found() {
        const THREADS: usize = 4;
        let store = open();
        let at_once = Barrier::new(THREADS);
        for round in 0..300 {
            let target = ResponseKey::target(&format!("http://host/{round}"));
            std::thread::scope(|scope| {
                for language in 0..THREADS {
                    let (store, target, at_once) = (&store, &target, &at_once);
                    scope.spawn(move || {
                        let reservation = store.cache.reserve(target);
                        at_once.wait();
                        store.keep(&reservation, target, &asking(language), response("x-language"));
                    });
                }
            });
            for language in 0..THREADS {
                let found = store.find(&target, &asking(language));
                assert!(found.response.is_some(), "{language} in round {round}");
            }
        }
    }

    #[tokio::test]
    async fn what_a_removal_has_overtaken_is_not_found_in_any_variant() {
        let store = open();
        let target = ResponseKey::target("http://host/");
        let keep = |reservation: &Reservation<_, _>, language| {
            store.keep(reservation, &target, &asking(language), response("x-language"));
        };
        keep(&store.cache.reserve(&target), 1);
        let before = store.cache.reserve(&target);
        store.forget(&target).await;
        keep(&before, 2);
        keep(&store.cache.reserve(&target), 3);
        keep(&before, 4);
        let found = |language| store.find(&target, &asking(language)).response.is_some();
        assert_eq!([1, 2, 3, 4].map(found), [false, false, true, false]);
    }

    #[test]
    fn fields_that_would_be_too_many_begin_anew() {
        let names = |range: std::ops::Range<usize>| {
            let names: Vec<_> = range.map(|n| format!("x-{n}")).collect();
            Vary::parse([names.join(",").as_bytes()]).expect("names")
        };
        let all = union(&names(0..20), &names(10..VARYING_FIELDS_MAX)).expect("not too many");
        assert_eq!(all, names(0..VARYING_FIELDS_MAX));
        assert_eq!(union(&all, &names(90..91)), None);
    }

    #[test]
    fn targets_are_unshared_for_a_while_and_apart_for_credentials() {
        let store = open();
        let target = ResponseKey::target("http://host/");
        let public = HeaderMap::new();
        let authorized = HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_static("x"))]);
        let unshared = |now_ms| {
            [&public, &authorized].map(|request| store.is_unshared(&target, request, now_ms))
        };
        store.note_shared(&target, &authorized, false, 1_000);
        assert_eq!(unshared(1_000), [false, true]);
        store.note_shared(&target, &public, false, 2_000);
        assert_eq!(unshared(UNSHARED_FOR_MS + 999), [true, true]);
        assert_eq!(unshared(UNSHARED_FOR_MS + 1_000), [true, false]);
        store.note_shared(&target, &public, true, 3_000);
        assert_eq!(unshared(3_000), [false, true]);
    }
}
