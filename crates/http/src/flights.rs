//! One call to the origin for all requests that miss on the same entry.
//!
//! The first request for a key leads; the others wait until it has landed and then do what the
//! landing says: look again, read the same body, go to the origin themselves, or give the same
//! error. A leader that is dropped lands nowhere: its waiters wake, and the first of them leads.
//!
//! Which fields select a variant is known only once an answer has come. Until then all requests for
//! a target share one flight; those that turn out to want another variant than the leader's go on
//! to a flight of that variant.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Method, StatusCode};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::fill::Fill;
use crate::rules::{self, Age, Decision, RequestHead, Storable};
use crate::stored::ResponseKey;

const SHARDS: usize = 16;

/// How a leader's call ended, for those who wait.
#[derive(Debug, Clone)]
pub(crate) enum Landing {
    /// A lower tier had the answer, or knew which fields select one: look into memory again.
    Known,
    /// The origin's answer is in the cache now.
    Stored,
    /// The answer is on its way and may be read along.
    Filling(Arc<Filling>),
    /// The answer is for the leader alone.
    NotShared,
    /// The origin's answer is an error: whoever has a stale answer may use that.
    Error(StatusCode),
    /// The origin cannot be reached, or took too long, or has too much to do: when to ask again.
    Failed(StatusCode, Option<Duration>),
}

/// An answer that is being stored.
#[derive(Debug)]
pub(crate) struct Filling {
    pub(crate) storable: Storable,
    pub(crate) fill: Arc<Fill>,
    /// The values of the leader's varying fields.
    variant: Vec<u8>,
}

/// What an answer that is being stored is to a request that waited for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fit {
    Serves(Age),
    /// The request selects another variant; these are the values of its varying fields.
    OtherVariant(Vec<u8>),
    /// The request does not take it as it is.
    Unusable,
}

impl Filling {
    /// Wraps an answer to a request with these fields.
    pub(crate) fn new(storable: Storable, fill: Arc<Fill>, request: &HeaderMap) -> Self {
        let mut variant = Vec::new();
        storable.vary.write_key(request, &mut variant);
        Self { storable, fill, variant }
    }

    /// Whether it is an answer to this request too, the variant and the freshness considered.
    pub(crate) fn fit(&self, request: &HeaderMap, now_ms: u64) -> Fit {
        let mut variant = Vec::new();
        self.storable.vary.write_key(request, &mut variant);
        if variant != self.variant {
            return Fit::OtherVariant(variant);
        }
        let head = RequestHead { method: &Method::GET, headers: request };
        match rules::evaluate(head, &self.storable.freshness, now_ms) {
            Decision::Fresh(age) => Fit::Serves(age),
            _ => Fit::Unusable,
        }
    }
}

type Landings = watch::Receiver<Option<Landing>>;
type Shard = Mutex<HashMap<ResponseKey, Landings>>;

#[derive(Debug)]
pub(crate) struct Flights {
    shards: [Shard; SHARDS],
    hasher: RandomState,
}

/// The part that a request plays.
pub(crate) enum Part {
    Lead(Lead),
    Wait(watch::Receiver<Option<Landing>>),
}

/// The duty to land.
#[derive(Debug)]
pub(crate) struct Lead {
    flights: Arc<Flights>,
    key: ResponseKey,
    landings: watch::Sender<Option<Landing>>,
}

impl Flights {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { shards: Default::default(), hasher: RandomState::new() })
    }

    /// The shard of a target; the flights of its variants are there too.
    fn shard(&self, key: &ResponseKey) -> &Shard {
        &self.shards[self.hasher.hash_one(key.target_str()) as usize % SHARDS]
    }

    /// Joins the flight of a key, or leads one.
    pub(crate) fn join(self: &Arc<Self>, key: &ResponseKey) -> Part {
        let mut flights = self.shard(key).lock();
        if let Some(landings) = flights.get(key) {
            return Part::Wait(landings.clone());
        }
        let (sender, receiver) = watch::channel(None);
        flights.insert(key.clone(), receiver);
        Part::Lead(Lead { flights: Arc::clone(self), key: key.clone(), landings: sender })
    }

    /// Leads the flight of a key, unless somebody does.
    pub(crate) fn try_lead(self: &Arc<Self>, key: &ResponseKey) -> Option<Lead> {
        match self.join(key) {
            Part::Lead(lead) => Some(lead),
            Part::Wait(_) => None,
        }
    }

    /// Lets no later request join a target's present flights: what they bring may be out of date.
    pub(crate) fn detach(&self, target: &ResponseKey) {
        let others = |key: &ResponseKey| key.target_str() != target.target_str();
        self.shard(target).lock().retain(|key, _| others(key));
    }

    /// As [`detach`](Self::detach), for every target.
    pub(crate) fn detach_all(&self) {
        self.shards.iter().for_each(|shard| shard.lock().clear());
    }

    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }
}

impl Lead {
    /// Tells those who wait, and those who still join, how it ended; a later landing counts more.
    pub(crate) fn land(&self, landing: Landing) {
        self.landings.send_replace(Some(landing));
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        let mut flights = self.flights.shard(&self.key).lock();
        // After a `detach`, the key may belong to another flight.
        if flights
            .get(&self.key)
            .is_some_and(|landings| landings.same_channel(&self.landings.subscribe()))
        {
            flights.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(target: &str) -> ResponseKey {
        ResponseKey::target(target)
    }

    #[tokio::test]
    async fn whoever_joins_hears_the_last_landing_however_late() {
        let flights = Flights::new();
        let Part::Lead(lead) = flights.join(&key("a")) else { panic!("nobody led yet") };
        let Part::Wait(mut early) = flights.join(&key("a")) else { panic!("somebody leads") };
        lead.land(Landing::NotShared);
        lead.land(Landing::Stored);
        let Part::Wait(mut late) = flights.join(&key("a")) else { panic!("somebody leads") };
        for landings in [&mut early, &mut late] {
            landings.changed().await.expect("it has landed");
            assert!(matches!(*landings.borrow_and_update(), Some(Landing::Stored)));
        }
    }

    #[tokio::test]
    async fn a_dropped_leader_wakes_its_waiters_and_frees_the_key() {
        let flights = Flights::new();
        let Part::Lead(lead) = flights.join(&key("a")) else { panic!("nobody led yet") };
        let Part::Wait(mut waiter) = flights.join(&key("a")) else { panic!("somebody leads") };
        drop(lead);
        assert!(waiter.changed().await.is_err());
        assert_eq!(flights.len(), 0);
        assert!(matches!(flights.join(&key("a")), Part::Lead(_)));
    }

    #[test]
    fn a_detached_target_is_led_anew_in_all_its_variants_and_no_other() {
        let flights = Flights::new();
        let keys = [key("a"), key("a").variant(b"gzip"), key("b")];
        let leads: Vec<_> = keys.iter().map(|key| flights.try_lead(key)).collect();
        flights.detach(&key("a"));
        let again: Vec<_> = keys.iter().map(|key| flights.try_lead(key)).collect();
        assert_eq!(again.iter().map(Option::is_some).collect::<Vec<_>>(), [true, true, false]);
        // The old leads end; the new flights stay.
        drop(leads);
        assert_eq!(flights.len(), 2);
        flights.detach_all();
        assert_eq!(flights.len(), 0);
    }
}
