//! One call to the origin for all requests that miss on the same entry.
//!
//! The first request for a key leads; the others wait until it has landed and then do what the
//! landing says: look again, read the same body, go to the origin themselves, or give the same
//! error. A leader that is dropped lands nowhere: its waiters wake, and the first of them leads.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use http::{Method, StatusCode};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::fill::Fill;
use crate::rules::{RequestHead, Storable};
use crate::stored::ResponseKey;

const SHARDS: usize = 16;

/// How a leader's call to the origin ended, for those who wait.
#[derive(Debug, Clone)]
pub(crate) enum Landing {
    /// There is an answer in the cache now.
    Stored,
    /// The answer is on its way and may be read along.
    Filling(Arc<Filling>),
    /// The answer is for the leader alone.
    NotShared,
    /// The origin cannot be reached, or took too long.
    Failed(StatusCode),
}

/// An answer that is being stored.
#[derive(Debug)]
pub(crate) struct Filling {
    pub(crate) storable: Storable,
    pub(crate) fill: Arc<Fill>,
    /// The values of the leader's varying fields.
    pub(crate) variant: Vec<u8>,
}

impl Filling {
    /// Whether the answer is one for this request too, the variant and the freshness considered.
    pub(crate) fn serves(&self, request: &http::HeaderMap, now_ms: u64) -> bool {
        let mut variant = Vec::new();
        self.storable.vary.write_key(request, &mut variant);
        let head = RequestHead { method: &Method::GET, headers: request };
        variant == self.variant
            && matches!(
                crate::rules::evaluate(head, &self.storable.freshness, now_ms),
                crate::rules::Decision::Fresh(_)
            )
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

    fn shard(&self, key: &ResponseKey) -> &Shard {
        &self.shards[self.hasher.hash_one(key) as usize % SHARDS]
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

    /// Lets no later request join the present flight of a key: what it brings may be out of date.
    pub(crate) fn detach(&self, key: &ResponseKey) {
        self.shard(key).lock().remove(key);
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
        if flights.get(&self.key).is_some_and(|landings| {
            landings.same_channel(&self.landings.subscribe())
        }) {
            flights.remove(&self.key);
        }
    }
}
