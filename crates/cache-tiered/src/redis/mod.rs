//! The Redis tier: entries shared between machines, at a bounded price.
//!
//! A [`RedisTier`] looks values up and writes them under names that hold the version of their
//! namespace (`keys`). It never returns an error: what it cannot look up is
//! [`Lookup::Unavailable`], what it cannot write is dropped and counted.
//!
//! **Never slower than its budget.** Every call ends within [`RedisConfig::timeout`], whatever the
//! server does. A circuit breaker counts failures; while it is not closed, calls end at once, and only
//! the background task (`upkeep`) probes the server. So no caller pays for finding out that an
//! outage is over, and the tier comes back without traffic.
//!
//! **Fast together.** Gets that are asked for at the same time share an MGET (`batch`).
//!
//! **Never stale.** A get is answered only if the version that counts is known, the key has no lost
//! write behind it, and the server is known not to have forgotten any; it is checked again when the
//! answer has come. `coherence` holds these rules. What they do not cover: another machine's `clear`
//! is seen within about a second where the server does not tell of it, and so is a version that was lost
//! with the server's memory; and an outage that only other machines had is theirs to clean up.
//!
//! **Followed in memory.** What other machines change leaves the memory of a cache over this tier
//! (`invalidation`).
//!
//! Behind the seam in `client` is `fred` (feature `redis`) or `redis-rs` (feature of that name);
//! [`RedisConfig::client`] chooses.

mod address;
mod batch;
mod client;
mod coherence;
mod config;
mod ears;
#[cfg(feature = "redis")]
mod fred_client;
mod front;
mod invalidation;
mod keys;
#[cfg(feature = "redis-rs")]
mod redis_rs_client;
#[cfg(feature = "redis-rs")]
mod redis_rs_link;
mod tags;
#[cfg(test)]
mod tests;
mod tls;
mod upkeep;

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use resilience::{CircuitBreaker, Outcome, Permit};
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

pub use self::config::{Coherence, RedisClient, RedisConfig};
pub(crate) use self::front::RedisFront;
pub use resilience::State as BreakerState;

use self::batch::{Lane, Reply, Request};
use self::client::{Command, RemoteClient, RemoteError};
use self::coherence::{Rules, Sent};
use self::invalidation::{Following, Listener, PushQueue};
use self::keys::Names;
use self::tags::Mirror;
use crate::error::Problem;
use crate::stats::Counter;

/// How much longer than an entry a compression dictionary lives. Its users store it again after half
/// of that.
const DICTIONARY_SPARE: Duration = Duration::from_secs(600);

/// How long an empty value stays that announces a removal, if the removal itself is lost.
const ANNOUNCED: Duration = Duration::from_secs(10);

/// What a look-up found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lookup {
    /// The value. It may share memory with the other values of its MGET: copy what is to be kept.
    Hit(Bytes),
    /// Redis does not have the key, or has it in a version that must not be used.
    Miss,
    /// Redis was not asked, or did not answer in time.
    Unavailable,
}

/// A write to the tier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RemoteWrite {
    /// Stores a value.
    Put {
        /// The entry's key.
        key: Bytes,
        /// The value, ready to be stored.
        value: Bytes,
        /// How long it may be served, at most; [`RedisConfig::ttl_max`] holds in any case.
        ttl: Option<Duration>,
    },
    /// Removes an entry.
    Remove {
        /// The entry's key.
        key: Bytes,
    },
}

impl RemoteWrite {
    fn key(&self) -> &Bytes {
        match self {
            Self::Put { key, .. } | Self::Remove { key } => key,
        }
    }
}

/// What a Redis tier has done, and how it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct RedisStats {
    /// Gets that found a value.
    pub hits: u64,
    /// Gets that found none, and those of `withheld`.
    pub misses: u64,
    /// Gets that were misses because the key was dirty, or its version ended meanwhile.
    pub withheld: u64,
    /// Gets that were turned away at once: breaker open, version unknown, queue full, tier closed.
    pub rejected: u64,
    /// Gets that had no answer in time.
    pub timeouts: u64,
    /// Gets that had an error for an answer, or lost their connection.
    pub errors: u64,
    /// MGETs sent.
    pub batches: u64,
    /// Keys asked for in all MGETs.
    pub batched_keys: u64,
    /// Puts and removals that Redis has acknowledged.
    pub writes: u64,
    /// Puts and removals that were sent and failed, or had no answer in time.
    pub failed_writes: u64,
    /// Puts and removals that were not sent, because the tier was out of service.
    pub dropped_writes: u64,
    /// Values above [`RedisConfig::value_max_bytes`], whose keys were removed instead.
    pub too_large: u64,
    /// Keys that may be stale in Redis and are misses until they are deleted.
    pub dirty_keys: u64,
    /// Whether all connections are up.
    pub connected: bool,
    /// Whether the namespace's version is known, so that gets can be answered.
    pub serving: bool,
    /// The breaker: calls go through while it is closed.
    pub breaker: BreakerState,
    /// How often the breaker has opened.
    pub breaker_opened: u64,
    /// The round trip of an MGET: a moving average of the last dozen.
    pub latency: Duration,
    /// How the server tells what other machines change; `None` while it does not.
    pub following: Option<Coherence>,
    /// Whether memory holds nothing that others have changed without its being told of that.
    pub coherent: bool,
}

#[derive(Debug, Default)]
struct Counters {
    hits: Counter,
    misses: Counter,
    withheld: Counter,
    rejected: Counter,
    timeouts: Counter,
    errors: Counter,
    batches: Counter,
    batched_keys: Counter,
    writes: Counter,
    failed_writes: Counter,
    dropped_writes: Counter,
    too_large: Counter,
}

/// What is known of the namespace's tags.
struct Tags {
    /// Whether anybody has asked.
    used: AtomicBool,
    /// Whether the server refuses to run the script, which is said once.
    refused: AtomicBool,
    mirror: RwLock<Mirror>,
    acknowledged: watch::Sender<u64>,
}

impl Tags {
    fn new(ttl_max: Duration) -> Self {
        Self {
            used: AtomicBool::new(false),
            refused: AtomicBool::new(false),
            mirror: RwLock::new(Mirror::new(ttl_max)),
            acknowledged: watch::Sender::new(0),
        }
    }
}

/// What the handles and the background tasks share.
struct Shared {
    config: RedisConfig,
    namespace: String,
    names: Names,
    client: Box<dyn RemoteClient>,
    breaker: CircuitBreaker,
    coherence: Mutex<Rules>,
    following: Following,
    tags: Tags,
    /// The version that counts, zero while there is none: what `coherence` says, without its lock.
    serving: AtomicU64,
    /// How many keys are dirty, likewise.
    dirty: AtomicUsize,
    /// The connection of each lane whose server has been identified.
    verified: Box<[AtomicU64]>,
    /// Work for the upkeep.
    wake: Notify,
    bumps_done: watch::Sender<u64>,
    closed: AtomicBool,
    counters: Counters,
    latency_nanos: AtomicU64,
}

impl Shared {
    /// Makes what `coherence` says visible to gets. Called after every change of it.
    fn publish(&self) {
        let coherence = self.coherence.lock();
        // Release, under the lock: gets see versions and marks in the order in which they were made,
        // and a get that begins after `mark_stale` or `clear` has returned sees them. Pairs with the
        // Acquire in `version` and `is_dirty`.
        self.dirty.store(coherence.dirty_len(), Ordering::Release);
        self.serving.store(coherence.serving().unwrap_or(0), Ordering::Release);
        let done = coherence.bumps_done();
        self.bumps_done.send_if_modified(|seen| std::mem::replace(seen, done) != done);
    }

    /// The version that gets and writes are for, if they may go through.
    fn version(&self) -> Option<u64> {
        let version = self.serving.load(Ordering::Acquire);
        let open = version != 0 && !self.closed.load(Ordering::Acquire) && self.breaker_is_closed();
        open.then_some(version)
    }

    fn breaker_is_closed(&self) -> bool {
        self.breaker.state_at(Instant::now().into_std()) == BreakerState::Closed
    }

    fn is_dirty(&self, key: &[u8]) -> bool {
        self.dirty.load(Ordering::Acquire) != 0 && self.coherence.lock().is_dirty(key)
    }

    /// A permit for anybody but the upkeep: probing is not their business.
    fn permit(&self) -> Option<Permit> {
        if !self.breaker_is_closed() {
            return None;
        }
        self.breaker.try_acquire_at(Instant::now().into_std()).ok()
    }

    /// What a write's error says about the server's health.
    fn outcome(&self, error: Option<&RemoteError>) -> Outcome {
        match error {
            None => Outcome::Success,
            // Out of memory, read-only: it answers, and gets go on.
            Some(RemoteError::Refused(_)) => Outcome::Ignored,
            Some(_) => Outcome::Failure,
        }
    }

    fn observe_latency(&self, latency: Duration) {
        let new = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        // Relaxed, and not one step: a sample lost between two tasks does not matter.
        let old = self.latency_nanos.load(Ordering::Relaxed);
        let mean = if old == 0 { new } else { old - old / 8 + new / 8 };
        self.latency_nanos.store(mean, Ordering::Relaxed);
    }

    /// Runs writes, and tells other machines of them where the server does not.
    async fn run(&self, commands: Vec<Command>) -> Vec<Result<(), RemoteError>> {
        let coherence = self.config.coherence;
        let changed: Vec<&Bytes> = commands.iter().filter_map(Command::key).collect();
        let message = self.following.message(coherence, &self.names, &changed);
        let mut results = if self.following.announces(coherence) {
            self.announce_and_run(commands).await
        } else {
            self.client.run(commands).await
        };
        let Some(message) = message else { return results };
        // Not along with them: in a cluster it could be there before a write on another node is made.
        let outcome = self.client.run(vec![message]).await.pop();
        let outcome = outcome.unwrap_or(Err(RemoteError::Timeout));
        if let Err(error) = self.following.published(outcome) {
            // Written, perhaps, but others may not know: it has to be done again.
            let made = results.iter_mut().filter(|result| result.is_ok());
            made.for_each(|result| *result = Err(error.clone()));
        }
        results
    }

    /// Runs writes so that the server tells of every removal, also of what is not there.
    async fn announce_and_run(&self, commands: Vec<Command>) -> Vec<Result<(), RemoteError>> {
        let (mut all, mut announced) = (Vec::with_capacity(commands.len()), Vec::new());
        for command in commands {
            if let Command::Delete { key } = &command {
                announced.push(all.len());
                let (key, value, ttl) = (key.clone(), Bytes::new(), Some(ANNOUNCED));
                all.push(Command::SetIfMissing { key, value, ttl });
            }
            all.push(command);
        }
        let mut results = self.client.run(all).await;
        // From the last one on, so that the places before it stay what they are.
        for at in announced.into_iter().rev() {
            if at + 1 >= results.len() {
                continue;
            }
            match results.remove(at) {
                // A server that takes no more values still removes them.
                Ok(()) | Err(RemoteError::Refused(_)) => {}
                Err(error) => results[at] = Err(error),
            }
        }
        results
    }

    /// Marks keys whose writes are lost.
    fn mark<'a>(&self, keys: impl IntoIterator<Item = &'a Bytes>, sent: Option<Sent>) {
        let mut coherence = self.coherence.lock();
        for key in keys {
            coherence.mark(key, sent);
        }
        drop(coherence);
        self.publish();
    }

    /// Turns a reply into what the caller may see, and counts it.
    fn settle(&self, key: &[u8], version: u64, reply: Reply) -> Lookup {
        let (counter, lookup) = match reply {
            Reply::Hit(value) => {
                if self.serving.load(Ordering::Acquire) == version && !self.is_dirty(key) {
                    (&self.counters.hits, Lookup::Hit(value))
                } else {
                    self.counters.withheld.increment();
                    (&self.counters.misses, Lookup::Miss)
                }
            }
            Reply::Miss => (&self.counters.misses, Lookup::Miss),
            Reply::Rejected => (&self.counters.rejected, Lookup::Unavailable),
            Reply::Timeout => (&self.counters.timeouts, Lookup::Unavailable),
            Reply::Error => (&self.counters.errors, Lookup::Unavailable),
        };
        counter.increment();
        lookup
    }
}

/// The Redis tier of one cache. Clones are cheap and share one state.
///
/// Its tasks end when it is [closed](Self::close), or when the last clone is dropped.
#[derive(Clone)]
pub struct RedisTier {
    handle: Arc<Handle>,
}

struct Handle {
    shared: Arc<Shared>,
    lanes: Vec<Lane>,
    next_lane: AtomicUsize,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Handle {
    fn stop(&self) {
        self.shared.closed.store(true, Ordering::Release);
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl RedisTier {
    /// Starts the tier for one namespace and begins to connect, in the background.
    ///
    /// A server that is away is no error: gets are [`Lookup::Unavailable`] until it is there.
    ///
    /// # Errors
    ///
    /// Every problem in `config`, or that there is no Tokio runtime to run on.
    pub fn start(namespace: &str, config: RedisConfig) -> Result<Self, Vec<Problem>> {
        let mut problems = config.validate();
        if tokio::runtime::Handle::try_current().is_err() {
            let expected = "the Redis tier must be started inside a Tokio runtime";
            problems.push(Problem::new("redis", "no runtime", expected));
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let pushes = Arc::new(PushQueue::default());
        let client = config
            .start_client(&pushes)
            .map_err(|expected| vec![Problem::new("redis.url", config.redacted_url(), expected)])?;
        let nonce = RandomState::new().hash_one(0);
        Self::with_client(namespace, config, client, pushes, nonce)
    }

    /// Starts the tier over a client and what that is told; `nonce` makes its versions and messages
    /// differ from other machines'.
    fn with_client(
        namespace: &str,
        config: RedisConfig,
        client: Box<dyn RemoteClient>,
        pushes: Arc<PushQueue>,
        nonce: u64,
    ) -> Result<Self, Vec<Problem>> {
        let breaker = CircuitBreaker::builder(format!("redis tier of {namespace}"))
            .consecutive_failures(config.breaker_failures)
            .open_time(config.breaker_open, config.breaker_open * 4)
            .half_open_probes(1)
            .probe_timeout(config.timeout * 8 + Duration::from_secs(1))
            .seed(nonce)
            .build_at(Instant::now().into_std())
            .map_err(|error| vec![Problem::new("redis.breaker", "", error.to_string())])?;
        let (lanes, queues): (Vec<_>, Vec<_>) =
            (0..config.connections).map(|index| Lane::new(index, config.queue)).unzip();
        let shared = Arc::new(Shared {
            names: Names::new(&config.prefix, namespace, config.schema_version),
            namespace: namespace.to_owned(),
            client,
            breaker,
            coherence: Mutex::new(Rules::new(config.dirty_keys, nonce)),
            following: Following::new(pushes, nonce),
            tags: Tags::new(config.ttl_max),
            serving: AtomicU64::new(0),
            dirty: AtomicUsize::new(0),
            verified: lanes.iter().map(|_| AtomicU64::new(u64::MAX)).collect(),
            wake: Notify::new(),
            bumps_done: watch::Sender::new(0),
            closed: AtomicBool::new(false),
            counters: Counters::default(),
            latency_nanos: AtomicU64::new(0),
            config,
        });
        let mut tasks = vec![
            tokio::spawn(upkeep::run(Arc::clone(&shared))),
            tokio::spawn(invalidation::run(Arc::clone(&shared))),
        ];
        for queue in queues {
            tasks.push(tokio::spawn(batch::run(Arc::clone(&shared), queue)));
        }
        let handle = Handle { shared, lanes, next_lane: AtomicUsize::new(0), tasks };
        Ok(Self { handle: Arc::new(handle) })
    }

    /// Looks a key up, together with the other gets of this moment.
    ///
    /// # Cost
    ///
    /// At most [`RedisConfig::timeout`]; nothing while the breaker is open. An answer costs a round
    /// trip, or its share of one and two hand-overs between tasks when many gets come together.
    pub async fn get(&self, key: &[u8]) -> Lookup {
        let shared = &*self.handle.shared;
        let Some(version) = shared.version() else {
            return shared.settle(key, 0, Reply::Rejected);
        };
        if shared.is_dirty(key) {
            shared.counters.withheld.increment();
            return shared.settle(key, version, Reply::Miss);
        }
        let (lane, name) = (self.lane(), shared.names.entry(version, key));
        let reply = match lane.alone() {
            Some(alone) => alone.look_up(shared, name).await,
            None => {
                let (reply, answer) = oneshot::channel();
                if lane.try_send(Request::One(name, reply)) {
                    match timeout(shared.config.timeout, answer).await {
                        Ok(answer) => answer.unwrap_or(Reply::Rejected),
                        Err(_) => Reply::Timeout,
                    }
                } else {
                    Reply::Rejected
                }
            }
        };
        shared.settle(key, version, reply)
    }

    /// Looks several keys up; one result for each, in their order.
    ///
    /// # Cost
    ///
    /// As [`get`](Self::get): at most one time-out, however many keys.
    pub async fn get_many(&self, keys: &[Bytes]) -> Vec<Lookup> {
        let shared = &*self.handle.shared;
        let Some(version) = shared.version() else {
            return keys.iter().map(|key| shared.settle(key, 0, Reply::Rejected)).collect();
        };
        let dirty: Vec<bool> = keys.iter().map(|key| shared.is_dirty(key)).collect();
        let names = keys.iter().zip(&dirty).filter(|(_, dirty)| !**dirty);
        let names: Vec<_> = names.map(|(key, _)| shared.names.entry(version, key)).collect();
        let mut parts = Vec::with_capacity(names.len().div_ceil(shared.config.batch));
        for part in names.chunks(shared.config.batch) {
            let (reply, answer) = oneshot::channel();
            let sent = self.lane().try_send(Request::Many(part.to_vec(), reply));
            parts.push((part.len(), sent.then_some(answer)));
        }
        let deadline = Instant::now() + shared.config.timeout;
        let mut replies = Vec::with_capacity(names.len());
        for (length, answer) in parts {
            let part = match answer {
                None => vec![Reply::Rejected; length],
                Some(answer) => match tokio::time::timeout_at(deadline, answer).await {
                    Ok(part) => part.unwrap_or_else(|_| vec![Reply::Rejected; length]),
                    Err(_) => vec![Reply::Timeout; length],
                },
            };
            replies.extend(part);
        }
        let mut replies = replies.into_iter();
        let reply = |(key, dirty): (&Bytes, bool)| {
            let reply = if dirty {
                shared.counters.withheld.increment();
                Reply::Miss
            } else {
                replies.next().unwrap_or(Reply::Error)
            };
            shared.settle(key, version, reply)
        };
        keys.iter().zip(dirty).map(reply).collect()
    }

    fn lane(&self) -> &Lane {
        match &*self.handle.lanes {
            [only] => only,
            // Relaxed: any order of turns will do.
            lanes => &lanes[self.handle.next_lane.fetch_add(1, Ordering::Relaxed) % lanes.len()],
        }
    }

    /// Makes writes, all in one go; of several to one key, the last one.
    ///
    /// A write that fails, or is not made because the tier is out of service, makes its key dirty:
    /// Redis may hold an older value, so the key is a miss until it has been deleted there. One task
    /// at a time may call this; the order between its calls is the order in Redis.
    ///
    /// # Cancel safety
    ///
    /// Dropped halfway, the writes may or may not have been made, and their keys are dirty.
    ///
    /// # Cost
    ///
    /// At most [`RedisConfig::timeout`] for all of them.
    pub async fn write(&self, ops: Vec<RemoteWrite>) {
        let shared = &*self.handle.shared;
        let mut seen = HashSet::with_capacity(ops.len());
        let last = ops.into_iter().rev().filter(|op| seen.insert(op.key().clone()));
        let ops: Vec<_> = last.collect();
        let keys: Vec<Bytes> = ops.iter().map(|op| op.key().clone()).collect();
        let count = keys.len() as u64;
        let (Some(version), Some(permit)) = (shared.version(), shared.permit()) else {
            shared.counters.dropped_writes.add(count);
            shared.mark(&keys, None);
            return;
        };
        let commands = ops.into_iter().map(|op| self.command(version, op)).collect();
        let connection = shared.client.connection(0);
        let sent = shared.coherence.lock().sending(connection, Instant::now());
        let mut open = Undecided { shared, sent, keys };
        let answer = timeout(shared.config.timeout, shared.run(commands)).await;
        let connection = shared.client.connection(0);
        let mut error = None;
        match answer {
            Err(_) => error = Some(RemoteError::Timeout),
            Ok(results) => {
                let mut results = results.into_iter();
                let mut coherence = shared.coherence.lock();
                open.keys.retain(|key| match results.next() {
                    Some(Ok(())) => {
                        coherence.acknowledged(key, sent, connection);
                        false
                    }
                    Some(Err(failure)) => {
                        // What says most about the server's health.
                        if error.is_none() || failure == RemoteError::Timeout {
                            error = Some(failure);
                        }
                        true
                    }
                    None => true,
                });
            }
        }
        let failed = open.keys.len() as u64;
        drop(open);
        shared.counters.writes.add(count - failed);
        shared.counters.failed_writes.add(failed);
        permit.complete_at(shared.outcome(error.as_ref()), Instant::now().into_std());
        if failed > 0 {
            shared.wake.notify_one();
        }
    }

    fn command(&self, version: u64, op: RemoteWrite) -> Command {
        let shared = &*self.handle.shared;
        let key = shared.names.entry(version, op.key());
        match op {
            RemoteWrite::Remove { .. } => Command::Delete { key },
            RemoteWrite::Put { value, .. } if value.len() > shared.config.value_max_bytes => {
                shared.counters.too_large.increment();
                Command::Delete { key }
            }
            RemoteWrite::Put { ttl: Some(ttl), .. } if ttl < Duration::from_millis(1) => {
                Command::Delete { key }
            }
            RemoteWrite::Put { value, ttl, .. } => {
                let most = shared.config.ttl_max;
                Command::Set { key, value, ttl: Some(ttl.map_or(most, |ttl| ttl.min(most))) }
            }
        }
    }

    /// Stores a compression dictionary for longer than any entry that is written with it in the next
    /// minutes, and tells whether Redis has it.
    async fn store_dictionary(&self, id: u32, sealed: Bytes) -> bool {
        let shared = &*self.handle.shared;
        let (Some(_), Some(permit)) = (shared.version(), shared.permit()) else { return false };
        let ttl = Some(shared.config.ttl_max.saturating_add(DICTIONARY_SPARE));
        let set = Command::Set { key: shared.names.dictionary(id), value: sealed, ttl };
        let answer = timeout(shared.config.timeout, shared.client.run(vec![set])).await;
        let error = match answer {
            Err(_) => Some(RemoteError::Timeout),
            Ok(results) => results.into_iter().find_map(Result::err),
        };
        permit.complete_at(shared.outcome(error.as_ref()), Instant::now().into_std());
        error.is_none()
    }

    /// Looks a compression dictionary up.
    async fn fetch_dictionary(&self, id: u32) -> Option<Bytes> {
        let shared = &*self.handle.shared;
        let (_, permit) = (shared.version()?, shared.permit()?);
        let keys = vec![shared.names.dictionary(id)];
        let answer = timeout(shared.config.timeout, shared.client.get_many(0, keys)).await;
        let outcome = match &answer {
            Ok(fetched) if fetched.is_answer() => Outcome::Success,
            _ => Outcome::Failure,
        };
        permit.complete_at(outcome, Instant::now().into_std());
        match answer.ok()?.values.pop()? {
            Lookup::Hit(sealed) => Some(sealed),
            Lookup::Miss | Lookup::Unavailable => None,
        }
    }

    /// Notes that a write to this key will never come: what Redis holds for it is out of date.
    ///
    /// The key is a miss from now on, until it has been deleted in Redis, which begins at once. No
    /// older write of the key may follow.
    pub fn mark_stale(&self, key: &Bytes) {
        let shared = &*self.handle.shared;
        shared.mark([key], None);
        shared.wake.notify_one();
    }

    /// Leaves all entries of the namespace behind.
    ///
    /// They are gone for this tier when this is called, and for Redis and all other machines when it
    /// has a new version; this waits for that no longer than [`RedisConfig::timeout`], and the
    /// upkeep goes on trying. Until then gets are [`Lookup::Unavailable`]. The old entries leave
    /// Redis' memory with their TTL.
    ///
    /// # Cancel safety
    ///
    /// The namespace is cleared even if the future is dropped after its first poll.
    pub async fn clear(&self) {
        let shared = &*self.handle.shared;
        let mut done = shared.bumps_done.subscribe();
        let wanted = shared.coherence.lock().want_bump();
        shared.publish();
        shared.wake.notify_one();
        // Too late is not too bad: the old entries are out of reach already.
        let _ = timeout(shared.config.timeout, done.wait_for(|done| *done >= wanted)).await;
    }

    /// Invalidates tags for all machines: what was made before and bears one of them is stale.
    ///
    /// That is the caller's to look at, with [`tag_head`](Self::tag_head) and
    /// [`tag_invalidated`](Self::tag_invalidated). It holds for this tier when this is called, and for
    /// other machines when Redis has it; this waits for that no longer than [`RedisConfig::timeout`], and
    /// the upkeep goes on trying. Many at once cost less than one after the other. Too many of them, or too
    /// many that wait for a server that is away, make everything stale that bears any tag.
    ///
    /// # Cancel safety
    ///
    /// The tags are invalidated even if the future is dropped after its first poll.
    pub async fn invalidate_tags(&self, tags: &[u64]) {
        let shared = &*self.handle.shared;
        let mut acknowledged = shared.tags.acknowledged.subscribe();
        let serial = shared.tags.mirror.write().invalidate(tags);
        shared.tags.used.store(true, Ordering::Release);
        shared.wake.notify_one();
        // Too late is not too bad: for this tier it holds already.
        let reached = acknowledged.wait_for(|acknowledged| *acknowledged >= serial);
        let _ = timeout(shared.config.timeout, reached).await;
    }

    /// Returns the number to stamp an entry with that is made now: every invalidation up to it is known.
    ///
    /// Zero until the log of tags was read, which begins with the first call of this.
    #[must_use]
    pub fn tag_head(&self) -> u64 {
        self.use_tags();
        self.handle.shared.tags.mirror.read().head()
    }

    /// Returns the number of a tag's last invalidation: entries whose stamp is lower are stale.
    ///
    /// `u64::MAX` while that is not known, because Redis has not acknowledged it, or the log was not read
    /// yet. What is too old to be known is stale by the number returned.
    ///
    /// # Cost
    ///
    /// A shared lock and a look-up.
    #[must_use]
    pub fn tag_invalidated(&self, tag: u64) -> u64 {
        self.use_tags();
        self.handle.shared.tags.mirror.read().invalidated(tag)
    }

    fn use_tags(&self) {
        let shared = &*self.handle.shared;
        if !shared.tags.used.load(Ordering::Acquire) {
            shared.tags.used.store(true, Ordering::Release);
            shared.wake.notify_one();
        }
    }

    /// Has entries let go when other machines change them, from soon on.
    fn listen(&self, listener: Arc<dyn Listener>) {
        let shared = &*self.handle.shared;
        shared.following.listen(listener);
        shared.wake.notify_one();
    }

    /// Returns what the tier has done, and how it is.
    #[must_use]
    pub fn stats(&self) -> RedisStats {
        let shared = &*self.handle.shared;
        let counters = &shared.counters;
        let breaker = shared.breaker.stats_at(Instant::now().into_std());
        let (following, coherent) = shared.following.stats();
        RedisStats {
            hits: counters.hits.get(),
            misses: counters.misses.get(),
            withheld: counters.withheld.get(),
            rejected: counters.rejected.get(),
            timeouts: counters.timeouts.get(),
            errors: counters.errors.get(),
            batches: counters.batches.get(),
            batched_keys: counters.batched_keys.get(),
            writes: counters.writes.get(),
            failed_writes: counters.failed_writes.get(),
            dropped_writes: counters.dropped_writes.get(),
            too_large: counters.too_large.get(),
            dirty_keys: shared.dirty.load(Ordering::Acquire) as u64,
            connected: shared.client.is_connected(),
            serving: shared.serving.load(Ordering::Acquire) != 0,
            breaker: breaker.state,
            breaker_opened: breaker.opened,
            latency: Duration::from_nanos(shared.latency_nanos.load(Ordering::Relaxed)),
            following,
            coherent,
        }
    }

    /// Stops the tier's tasks and takes leave of the server. Calls after that find it unavailable.
    ///
    /// # Cost
    ///
    /// Half a second at most, if the server does not answer.
    pub async fn close(&self) {
        self.handle.stop();
        self.handle.shared.client.close().await;
    }
}

impl std::fmt::Debug for RedisTier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisTier")
            .field("namespace", &self.handle.shared.namespace)
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

/// Keys of writes that were sent and have no good answer; dirty when it is dropped.
struct Undecided<'a> {
    shared: &'a Shared,
    sent: Sent,
    keys: Vec<Bytes>,
}

impl Drop for Undecided<'_> {
    fn drop(&mut self) {
        self.shared.mark(&self.keys, Some(self.sent));
    }
}
