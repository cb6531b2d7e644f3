//! The tier's logic over a scripted server, in paused time.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use proptest::prelude::*;
use tokio::time::{advance, sleep};

use super::client::{Fetched, Follow, Push};
use super::invalidation::Changed;
use super::tags::tests::Log;
use super::*;
use crate::Cache;
use crate::lower::{Sink, Tier};

/// What the server does with a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// The command is lost and never answered.
    Lost,
    /// The command is executed and never answered.
    Silent,
    /// The command waits in the server's socket: executed before a later one of its connection, or
    /// some time after the connection is gone.
    Late,
    /// There is no connection.
    Refused,
}

/// A Redis in memory that does what it is told.
#[derive(Debug)]
struct Server {
    data: HashMap<Bytes, Bytes>,
    fault: Fault,
    connection: u64,
    process: u64,
    /// Writes in the sockets: the connection, and when they are executed at the latest.
    late: VecDeque<(u64, Option<Instant>, Command)>,
    calls: u64,
    published: Vec<Bytes>,
    tags: Log,
    executed: Vec<Command>,
    follows: Vec<Follow>,
    /// Whether it knows `CLIENT TRACKING`.
    tracks: bool,
    /// What it answers to messages, if it does not pass them on.
    mute: Option<RemoteError>,
    followed: Option<u64>,
    lookups: Vec<usize>,
}

#[derive(Debug, Clone)]
struct Script(Arc<Mutex<Server>>);

impl Script {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(Server {
            data: HashMap::new(),
            fault: Fault::None,
            connection: 1,
            process: 1,
            late: VecDeque::new(),
            calls: 0,
            published: Vec::new(),
            tags: Log::default(),
            executed: Vec::new(),
            follows: Vec::new(),
            tracks: true,
            mute: None,
            followed: None,
            lookups: Vec::new(),
        })))
    }

    fn fault(&self, fault: Fault) {
        self.0.lock().fault = fault;
    }

    fn calls(&self) -> u64 {
        self.0.lock().calls
    }

    fn reconnect(&self) {
        let mut server = self.0.lock();
        server.connection += 1;
        // What is in the old socket is executed soon after the new one is served.
        let soon = Instant::now() + coherence::SETTLE / 2;
        for (_, until, _) in &mut server.late {
            *until = until.or(Some(soon));
        }
    }

    fn version(&self) -> Option<Bytes> {
        self.0.lock().data.get(&Bytes::from_static(b"ultra-perf:test:0:version")).cloned()
    }

    fn set_version(&self, version: Option<&str>) {
        let key = Bytes::from_static(b"ultra-perf:test:0:version");
        let mut server = self.0.lock();
        match version {
            Some(version) => {
                server.data.insert(key, Bytes::from(version.to_owned()));
            }
            None => {
                server.data.remove(&key);
            }
        }
    }
}

impl Server {
    fn execute(&mut self, command: Command) {
        self.executed.push(command.clone());
        match command {
            Command::Set { key, value, .. } => {
                self.data.insert(key, value);
            }
            Command::SetIfMissing { key, value, .. } => {
                self.data.entry(key).or_insert(value);
            }
            Command::Delete { key } => {
                self.data.remove(&key);
            }
            Command::Publish { .. } => {}
        }
    }

    /// Executes what has waited in the sockets long enough, or stands before a new command.
    fn catch_up(&mut self) {
        let (now, connection) = (Instant::now(), self.connection);
        for (on, until, command) in std::mem::take(&mut self.late) {
            if on == connection || until.is_some_and(|until| until <= now) {
                self.execute(command);
            } else {
                self.late.push_back((on, until, command));
            }
        }
    }

    /// Counts a call; `Err` if nothing of it reaches the server.
    fn call(&mut self) -> Result<(), Fault> {
        self.calls += 1;
        match self.fault {
            Fault::None => {
                self.catch_up();
                Ok(())
            }
            fault => Err(fault),
        }
    }
}

async fn never<T>() -> T {
    std::future::pending().await
}

impl RemoteClient for Script {
    fn get_many(&self, _: usize, keys: Vec<Bytes>) -> BoxFuture<'static, Fetched> {
        let mut server = self.0.lock();
        let result = server.call();
        server.lookups.push(keys.len());
        let fetched = match result {
            Ok(()) => {
                let find = |key| server.data.get(key).cloned().map_or(Lookup::Miss, Lookup::Hit);
                Fetched { values: keys.iter().map(find).collect(), error: None }
            }
            Err(Fault::Refused) => {
                Fetched::failed(keys.len(), RemoteError::Disconnected("script".to_owned()))
            }
            Err(_) => return never().boxed(),
        };
        async move {
            sleep(Duration::from_millis(1)).await;
            fetched
        }
        .boxed()
    }

    fn run(&self, writes: Vec<Command>) -> BoxFuture<'static, Vec<Result<(), RemoteError>>> {
        let mut server = self.0.lock();
        let count = writes.len();
        let result = match server.call() {
            Ok(()) => {
                for write in &writes {
                    if let Command::Publish { message, .. } = write {
                        server.published.push(message.clone());
                    }
                }
                let is_message = matches!(*writes, [Command::Publish { .. }]);
                writes.into_iter().for_each(|write| server.execute(write));
                match &server.mute {
                    Some(error) if is_message => Err(error.clone()),
                    _ => Ok(()),
                }
            }
            Err(Fault::Refused) => Err(RemoteError::Disconnected("script".to_owned())),
            Err(fault) => {
                for write in writes {
                    let connection = server.connection;
                    match fault {
                        Fault::Silent => server.execute(write),
                        Fault::Late => server.late.push_back((connection, None, write)),
                        _ => {}
                    }
                }
                return never().boxed();
            }
        };
        async move {
            sleep(Duration::from_millis(1)).await;
            vec![result; count]
        }
        .boxed()
    }

    fn eval(
        &self,
        _: &'static str,
        key: Bytes,
        arguments: Vec<Bytes>,
    ) -> BoxFuture<'static, Result<Vec<Bytes>, RemoteError>> {
        assert_eq!(key, "ultra-perf:test:0:tags");
        let mut server = self.0.lock();
        let answer = match server.call() {
            Ok(()) => Ok(server.tags.run(&arguments)),
            Err(Fault::Refused) => Err(RemoteError::Disconnected("script".to_owned())),
            Err(fault) => {
                if fault == Fault::Silent {
                    server.tags.run(&arguments);
                }
                return never().boxed();
            }
        };
        async { answer }.boxed()
    }

    fn servers(&self, _: usize) -> BoxFuture<'static, Result<Vec<String>, RemoteError>> {
        let mut server = self.0.lock();
        match server.call() {
            Ok(()) => {
                let id = server.process.to_string();
                async move { Ok(vec![id]) }.boxed()
            }
            Err(_) => async { Err(RemoteError::Timeout) }.boxed(),
        }
    }

    fn follow(&self, follow: Follow) -> BoxFuture<'static, Result<(), RemoteError>> {
        let mut server = self.0.lock();
        let answer = match server.call() {
            Ok(()) if matches!(follow, Follow::Tracking { .. }) && !server.tracks => {
                Err(RemoteError::Refused("unknown subcommand 'TRACKING'".to_owned()))
            }
            Ok(()) => {
                server.follows.push(follow);
                server.followed = Some(server.connection);
                Ok(())
            }
            Err(_) => Err(RemoteError::Timeout),
        };
        async { answer }.boxed()
    }

    fn is_following(&self) -> bool {
        let server = self.0.lock();
        server.followed == Some(server.connection)
    }

    fn connection(&self, _: usize) -> u64 {
        self.0.lock().connection
    }

    fn is_connected(&self) -> bool {
        self.0.lock().fault != Fault::Refused
    }

    fn tend(&self, stuck: bool) {
        if stuck {
            self.reconnect();
        }
    }

    fn close(&self) -> BoxFuture<'static, ()> {
        async {}.boxed()
    }
}

fn config() -> RedisConfig {
    RedisConfig { dirty_keys: 4, ..RedisConfig::default() }
}

/// A tier over a script, in service.
async fn tier(script: &Script, config: RedisConfig) -> RedisTier {
    let pushes = Arc::default();
    let client = Box::new(script.clone());
    let tier = RedisTier::with_client("test", config, client, pushes, 7).unwrap();
    until(|| tier.stats().serving).await;
    tier
}

/// Notes what a tier is told.
#[derive(Debug, Default)]
struct Notes {
    changed: Mutex<Vec<String>>,
    tags: Mutex<Vec<u64>>,
    lost: Mutex<Vec<bool>>,
    understands_nothing: AtomicBool,
}

impl Listener for Notes {
    fn tags_known(&self) -> BoxFuture<'_, ()> {
        async {}.boxed()
    }

    fn changed(&self, entry: Changed<'_>) -> bool {
        self.changed.lock().push(match entry {
            Changed::Key(key) => String::from_utf8_lossy(key).into_owned(),
            Changed::Hash(hash) => format!("{hash:x}"),
        });
        !self.understands_nothing.load(Ordering::Relaxed)
    }

    fn tags_invalidated<'a>(&'a self, tags: &'a [u64]) -> BoxFuture<'a, ()> {
        self.tags.lock().extend_from_slice(tags);
        async {}.boxed()
    }

    fn lost(&self, promised: bool) -> BoxFuture<'_, ()> {
        self.lost.lock().push(promised);
        async {}.boxed()
    }
}

impl Notes {
    fn changed(&self) -> Vec<String> {
        std::mem::take(&mut *self.changed.lock())
    }

    fn lost(&self) -> Vec<bool> {
        std::mem::take(&mut *self.lost.lock())
    }
}

/// A tier that follows, what it notes, and where its client puts pushes.
async fn follower(script: &Script, config: RedisConfig) -> (RedisTier, Arc<Notes>, Arc<PushQueue>) {
    let (pushes, notes) = (Arc::new(PushQueue::default()), Arc::new(Notes::default()));
    let client = Box::new(script.clone());
    let tier = RedisTier::with_client("test", config, client, Arc::clone(&pushes), 7).unwrap();
    tier.listen(Arc::clone(&notes) as _);
    until(|| tier.stats().coherent).await;
    assert_eq!(notes.lost(), [true]);
    (tier, notes, pushes)
}

/// The name of an entry of the version that the script holds.
fn entry(script: &Script, key: &str) -> Bytes {
    let version = String::from_utf8_lossy(&script.version().unwrap()).into_owned();
    bytes(format!("ultra-perf:test:0:{version}:r:{key}"))
}

/// Lets time pass until something is true.
async fn until(condition: impl Fn() -> bool) {
    for _ in 0..3_000 {
        if condition() {
            return;
        }
        sleep(Duration::from_millis(10)).await;
    }
    panic!("not within thirty seconds");
}

fn bytes(text: impl ToString) -> Bytes {
    Bytes::from(text.to_string())
}

async fn put(tier: &RedisTier, key: &str, value: impl ToString) {
    tier.write(vec![RemoteWrite::Put { key: bytes(key), value: bytes(value), ttl: None }]).await;
}

async fn remove(tier: &RedisTier, key: &str) {
    tier.write(vec![RemoteWrite::Remove { key: bytes(key) }]).await;
}

async fn get(tier: &RedisTier, key: &str) -> Lookup {
    tier.get(key.as_bytes()).await
}

fn hit(value: impl ToString) -> Lookup {
    Lookup::Hit(bytes(value))
}

/// Both what `get` returns and how long it takes.
async fn timed(tier: &RedisTier, key: &str) -> (Lookup, Duration) {
    let start = Instant::now();
    let lookup = get(tier, key).await;
    (lookup, start.elapsed())
}

#[tokio::test(start_paused = true)]
async fn what_was_put_is_found_until_it_is_removed() {
    let tier = tier(&Script::new(), config()).await;
    assert_eq!(get(&tier, "k").await, Lookup::Miss);
    put(&tier, "k", 1).await;
    assert_eq!(get(&tier, "k").await, hit(1));
    remove(&tier, "k").await;
    assert_eq!(get(&tier, "k").await, Lookup::Miss);
    let stats = tier.stats();
    assert_eq!((stats.hits, stats.misses, stats.writes), (1, 2, 2));
}

#[tokio::test(start_paused = true)]
async fn the_last_write_of_a_batch_to_a_key_wins() {
    let tier = tier(&Script::new(), config()).await;
    let write = |value: &str| RemoteWrite::Put { key: bytes("k"), value: bytes(value), ttl: None };
    tier.write(vec![write("1"), RemoteWrite::Remove { key: bytes("k") }, write("2")]).await;
    assert_eq!(get(&tier, "k").await, hit(2));
}

#[tokio::test(start_paused = true)]
async fn gets_of_one_moment_share_lookups() {
    let script = Script::new();
    let tier = tier(&script, RedisConfig { batch: 16, ..config() }).await;
    script.0.lock().lookups.clear();
    let keys: Vec<String> = (0..64).map(|n| n.to_string()).collect();
    futures_util::future::join_all(keys.iter().map(|key| get(&tier, key))).await;
    let lookups = script.0.lock().lookups.clone();
    assert_eq!(lookups.iter().sum::<usize>(), 64);
    assert!(lookups.len() <= 6, "{lookups:?}");
    assert!(lookups.iter().all(|&keys| keys <= 16), "{lookups:?}");
}

#[tokio::test(start_paused = true)]
async fn many_keys_come_back_in_their_order_and_no_lookup_is_too_large() {
    let script = Script::new();
    let tier = tier(&script, RedisConfig { batch: 16, connections: 2, ..config() }).await;
    for key in 0..40 {
        put(&tier, &key.to_string(), key).await;
    }
    tier.mark_stale(&bytes(3));
    let keys: Vec<Bytes> = (0..50).map(bytes).collect();
    script.0.lock().lookups.clear();
    let found = tier.get_many(&keys).await;
    for (key, lookup) in found.into_iter().enumerate() {
        let expected = if key < 40 && key != 3 { hit(key) } else { Lookup::Miss };
        assert_eq!(lookup, expected, "{key}");
    }
    assert!(script.0.lock().lookups.iter().all(|&keys| keys <= 16));
    assert_eq!(tier.get_many(&[]).await, []);
}

#[tokio::test(start_paused = true)]
async fn a_silent_server_costs_the_budget_and_then_nothing() {
    let script = Script::new();
    let tier = tier(&script, config()).await;
    let budget = config().timeout;
    script.fault(Fault::Lost);
    assert_eq!(timed(&tier, "k").await, (Lookup::Unavailable, budget));
    let keys = [bytes("a"), bytes("b")];
    let start = Instant::now();
    assert_eq!(tier.get_many(&keys).await, [Lookup::Unavailable, Lookup::Unavailable]);
    assert!(start.elapsed() <= budget);
    for _ in 0..5 {
        get(&tier, "k").await;
    }
    assert_eq!(tier.stats().breaker, BreakerState::Open);
    assert_eq!(timed(&tier, "k").await, (Lookup::Unavailable, Duration::ZERO));
    let start = Instant::now();
    put(&tier, "k", 1).await;
    tier.clear().await;
    assert!(start.elapsed() <= budget);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_back_is_found_without_traffic() {
    let script = Script::new();
    let tier = tier(&script, config()).await;
    script.fault(Fault::Lost);
    until(|| tier.stats().breaker == BreakerState::Open).await;
    sleep(Duration::from_secs(600)).await;
    script.fault(Fault::None);
    let start = Instant::now();
    until(|| tier.stats().breaker == BreakerState::Closed).await;
    assert!(start.elapsed() <= Duration::from_secs(3), "{:?}", start.elapsed());
    put(&tier, "k", 1).await;
    assert_eq!(get(&tier, "k").await, hit(1));
}

#[tokio::test(start_paused = true)]
async fn an_outage_costs_few_probes() {
    let script = Script::new();
    let tier = tier(&script, config()).await;
    script.fault(Fault::Lost);
    until(|| tier.stats().breaker == BreakerState::Open).await;
    let before = script.calls();
    for _ in 0..60_000 {
        get(&tier, "k").await;
        advance(Duration::from_millis(1)).await;
    }
    assert!(script.calls() - before <= 150, "{}", script.calls() - before);
}

#[tokio::test(start_paused = true)]
async fn a_lost_write_hides_the_older_value() {
    for fault in [Fault::Lost, Fault::Silent, Fault::Late, Fault::Refused] {
        for reconnects in [false, true] {
            let script = Script::new();
            let tier = tier(&script, config()).await;
            put(&tier, "k", 1).await;
            script.fault(fault);
            put(&tier, "k", 2).await;
            assert_eq!(tier.stats().dirty_keys, 1);
            script.fault(Fault::None);
            if reconnects {
                script.reconnect();
            }
            for _ in 0..4_000 {
                assert!(!matches!(get(&tier, "k").await, Lookup::Hit(_)), "{fault:?}");
                sleep(Duration::from_millis(1)).await;
            }
            assert_eq!(tier.stats().dirty_keys, 0, "{fault:?}");
            put(&tier, "k", 3).await;
            assert_eq!(get(&tier, "k").await, hit(3), "{fault:?} {reconnects}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_dropped_write_future_leaves_its_keys_dirty() {
    let script = Script::new();
    let tier = tier(&script, config()).await;
    put(&tier, "k", 1).await;
    script.fault(Fault::Late);
    let given_up = tokio::time::timeout(Duration::from_millis(5), put(&tier, "k", 2)).await;
    assert!(given_up.is_err());
    script.fault(Fault::None);
    assert_eq!(get(&tier, "k").await, Lookup::Miss);
}

#[tokio::test(start_paused = true)]
async fn a_key_marked_stale_is_deleted_at_once() {
    let script = Script::new();
    let tier = tier(&script, config()).await;
    put(&tier, "k", 1).await;
    tier.mark_stale(&bytes("k"));
    assert_eq!(get(&tier, "k").await, Lookup::Miss);
    sleep(Duration::from_millis(20)).await;
    assert_eq!(tier.stats().dirty_keys, 0);
    assert_eq!(script.0.lock().data.len(), 1, "only the version is left");
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_was_overtaken_on_its_way_is_a_miss() {
    let tier = tier(&Script::new(), config()).await;
    put(&tier, "k", 1).await;
    let (found, ()) = tokio::join!(get(&tier, "k"), async { tier.mark_stale(&bytes("k")) });
    assert_eq!(found, Lookup::Miss);
    sleep(Duration::from_millis(20)).await;
    put(&tier, "k", 2).await;
    let (found, ()) = tokio::join!(get(&tier, "k"), tier.clear());
    assert_eq!(found, Lookup::Miss);
    assert_eq!(tier.stats().withheld, 2);
}

#[tokio::test(start_paused = true)]
async fn too_many_lost_writes_empty_the_namespace() {
    let script = Script::new();
    let tier = tier(&script, config()).await;
    for key in 0..10 {
        put(&tier, &key.to_string(), "old").await;
    }
    let version = script.version();
    script.fault(Fault::Lost);
    for key in 0..9 {
        put(&tier, &key.to_string(), "new").await;
    }
    assert!(!tier.stats().serving);
    script.fault(Fault::None);
    until(|| tier.stats().serving && tier.stats().breaker == BreakerState::Closed).await;
    assert_ne!(script.version(), version);
    for key in 0..10 {
        assert_eq!(get(&tier, &key.to_string()).await, Lookup::Miss);
    }
}

#[tokio::test(start_paused = true)]
async fn a_clear_holds_at_once_even_while_the_server_is_away() {
    for fault in [Fault::None, Fault::Lost, Fault::Silent, Fault::Late, Fault::Refused] {
        let script = Script::new();
        let tier = tier(&script, config()).await;
        put(&tier, "k", 1).await;
        script.fault(fault);
        tier.clear().await;
        assert!(!matches!(get(&tier, "k").await, Lookup::Hit(_)));
        script.fault(Fault::None);
        script.reconnect();
        for _ in 0..5_000 {
            assert!(!matches!(get(&tier, "k").await, Lookup::Hit(_)), "{fault:?}");
            sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(get(&tier, "k").await, Lookup::Miss, "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn anothers_version_counts_within_a_second_or_so() {
    let script = Script::new();
    let tier = tier(&script, config()).await;
    put(&tier, "k", 1).await;
    script.set_version(Some(&u64::MAX.to_string()));
    sleep(Duration::from_millis(1_200)).await;
    assert_eq!(get(&tier, "k").await, Lookup::Miss);
    put(&tier, "k", 2).await;
    assert_eq!(get(&tier, "k").await, hit(2));
}

#[tokio::test(start_paused = true)]
async fn a_version_that_went_missing_or_back_or_bad_is_made_anew() {
    for odd in [None, Some("5"), Some("0"), Some("-1"), Some("many")] {
        let script = Script::new();
        let tier = tier(&script, config()).await;
        put(&tier, "k", 1).await;
        let before = script.version();
        script.set_version(odd);
        sleep(Duration::from_millis(1_200)).await;
        assert!(script.version() > before && script.version().is_some(), "{odd:?}");
        assert_eq!(get(&tier, "k").await, Lookup::Miss, "{odd:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_restarted_server_does_not_bring_old_values_back() {
    let script = Script::new();
    let tier = tier(&script, config()).await;
    put(&tier, "k", 1).await;
    let snapshot = script.0.lock().data.clone();
    put(&tier, "k", 2).await;
    {
        let mut server = script.0.lock();
        server.data = snapshot;
        server.process += 1;
    }
    script.reconnect();
    for _ in 0..2_000 {
        assert!(!matches!(get(&tier, "k").await, Lookup::Hit(_)));
        sleep(Duration::from_millis(1)).await;
    }
    put(&tier, "k", 3).await;
    assert_eq!(get(&tier, "k").await, hit(3));
}

#[tokio::test(start_paused = true)]
async fn a_value_that_is_too_large_removes_the_older_one() {
    let tier = tier(&Script::new(), RedisConfig { value_max_bytes: 4, ..config() }).await;
    put(&tier, "k", "1234").await;
    assert_eq!(get(&tier, "k").await, hit("1234"));
    put(&tier, "k", "12345").await;
    assert_eq!(get(&tier, "k").await, Lookup::Miss);
    assert_eq!(tier.stats().too_large, 1);
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_turns_gets_away_at_once() {
    let script = Script::new();
    let tier = tier(&script, RedisConfig { queue: 3, batch: 1, in_flight: 1, ..config() }).await;
    let keys: Vec<String> = (0..20).map(|key| key.to_string()).collect();
    let found = futures_util::future::join_all(keys.iter().map(|key| get(&tier, key))).await;
    let turned_away = found.iter().filter(|it| **it == Lookup::Unavailable).count();
    // One goes alone, and three wait.
    assert_eq!(turned_away, 16);
    assert_eq!(tier.stats().rejected, 16);
}

#[tokio::test(start_paused = true)]
async fn a_closed_tier_is_unavailable_and_its_tasks_are_gone() {
    let script = Script::new();
    let tier = tier(&script, config()).await;
    put(&tier, "k", 1).await;
    tier.close().await;
    assert_eq!(get(&tier, "k").await, Lookup::Unavailable);
    sleep(Duration::from_millis(1)).await;
    let calls = script.calls();
    sleep(Duration::from_secs(60)).await;
    assert_eq!(script.calls(), calls);
}

#[tokio::test(start_paused = true)]
async fn the_last_handle_takes_the_tasks_along() {
    let script = Script::new();
    let one = tier(&script, config()).await;
    let other = one.clone();
    drop(one);
    put(&other, "k", 1).await;
    assert_eq!(get(&other, "k").await, hit(1));
    drop(other);
    sleep(Duration::from_millis(1)).await;
    assert_eq!(Arc::strong_count(&script.0), 1);
}

#[tokio::test(start_paused = true)]
async fn the_server_is_asked_to_tell_of_changes_and_asked_again_after_every_loss() {
    let script = Script::new();
    let (tier, notes, pushes) = follower(&script, config()).await;
    let prefix = bytes("ultra-perf:test:0:");
    assert_eq!(script.0.lock().follows, [Follow::Tracking { prefix }]);
    sleep(Duration::from_secs(5)).await;
    assert_eq!((script.0.lock().follows.len(), notes.lost()), (1, vec![]));

    pushes.push(Push::Lost);
    assert!(!tier.stats().coherent);
    until(|| tier.stats().coherent).await;
    assert_eq!((script.0.lock().follows.len(), notes.lost()), (2, vec![true]));

    // One that comes without a word is found by the look each second.
    script.reconnect();
    until(|| script.0.lock().follows.len() == 3).await;
    until(|| tier.stats().coherent).await;
    assert_eq!(notes.lost(), [true]);

    // While the server is away, memory is not emptied again and again.
    script.fault(Fault::Refused);
    pushes.push(Push::Lost);
    sleep(Duration::from_secs(60)).await;
    assert_eq!((tier.stats().coherent, notes.lost()), (false, vec![]));
    script.fault(Fault::None);
    until(|| tier.stats().coherent).await;
    assert_eq!(notes.lost(), [true]);
}

#[tokio::test(start_paused = true)]
async fn names_of_the_version_that_counts_are_told_as_keys() {
    let script = Script::new();
    let (_tier, notes, pushes) = follower(&script, config()).await;
    let version: u64 = String::from_utf8_lossy(&script.version().unwrap()).parse().unwrap();
    let names = [
        format!("{}:r:old", version - 1),
        format!("{version}:r:a"),
        "dictionary:00000001".to_owned(),
        format!("{version}:h:{:032x}", 0xAB),
        format!("{}:r:new", version + 1),
    ];
    let names = names.map(|name| bytes(format!("ultra-perf:test:0:{name}")));
    pushes.push(Push::Changed(names.to_vec()));
    pushes.push(Push::Changed(vec![bytes("another:1:t:name")]));
    until(|| notes.changed.lock().len() == 3).await;
    assert_eq!(
        (notes.changed(), notes.lost()),
        (vec!["a".into(), "ab".into(), "new".into()], vec![])
    );

    notes.understands_nothing.store(true, Ordering::Relaxed);
    pushes.push(Push::Changed(vec![entry(&script, "b"), entry(&script, "c")]));
    until(|| !notes.lost.lock().is_empty()).await;
    assert_eq!((notes.changed(), notes.lost()), (vec!["b".into()], vec![false]));
}

#[tokio::test(start_paused = true)]
async fn a_push_for_the_version_has_it_read_at_once_and_a_new_one_empties_memory() {
    let script = Script::new();
    let (tier, notes, pushes) = follower(&script, config()).await;
    put(&tier, "k", 1).await;
    script.set_version(Some("9000000000000000000"));
    let start = Instant::now();
    pushes.push(Push::Changed(vec![bytes("ultra-perf:test:0:version")]));
    until(|| !notes.lost.lock().is_empty()).await;
    assert!(start.elapsed() < Duration::from_millis(100), "{:?}", start.elapsed());
    assert_eq!((get(&tier, "k").await, notes.lost()), (Lookup::Miss, vec![false]));
    // Its own clear is no news, nor is the push of a version that is known.
    tier.clear().await;
    pushes.push(Push::Changed(vec![bytes("ultra-perf:test:0:version")]));
    sleep(Duration::from_secs(3)).await;
    assert_eq!(notes.lost(), []);
}

#[tokio::test(start_paused = true)]
async fn where_the_server_does_not_track_writers_publish() {
    let script = Script::new();
    script.0.lock().tracks = false;
    let (tier, notes, pushes) = follower(&script, config()).await;
    assert_eq!(tier.stats().following, Some(Coherence::PubSub));
    let channel = Follow::Channel { name: bytes("ultra-perf:test:0:changes") };
    assert_eq!(script.0.lock().follows, [channel]);
    script.0.lock().published.clear();
    put(&tier, "a", 1).await;
    remove(&tier, "b").await;
    let own: Vec<_> = script.0.lock().published.drain(..).collect();
    assert_eq!(own.len(), 2);
    own.iter().for_each(|message| pushes.push(Push::Message(message.clone())));
    // Another machine's: the same but for its number.
    for message in &own {
        let mut theirs = message.to_vec();
        theirs[1] ^= 1;
        pushes.push(Push::Message(Bytes::from(theirs)));
    }
    until(|| notes.changed.lock().len() == 2).await;
    sleep(Duration::from_secs(1)).await;
    assert_eq!((notes.changed(), notes.lost()), (vec!["a".into(), "b".into()], vec![]));
    pushes.push(Push::Message(bytes("what?")));
    until(|| !notes.lost.lock().is_empty()).await;
    assert_eq!(notes.lost(), [false]);
}

#[tokio::test(start_paused = true)]
async fn a_write_that_could_not_be_published_is_done_again() {
    let script = Script::new();
    let config = RedisConfig { coherence: Coherence::PubSub, ..config() };
    let (tier, _, _) = follower(&script, config).await;
    script.0.lock().mute = Some(RemoteError::Disconnected("script".to_owned()));
    put(&tier, "k", 1).await;
    assert_eq!((tier.stats().dirty_keys, get(&tier, "k").await), (1, Lookup::Miss));
    script.0.lock().mute = None;
    script.0.lock().published.clear();
    until(|| tier.stats().dirty_keys == 0).await;
    assert_eq!(script.0.lock().published.len(), 1, "that it was deleted");
    // A server that does not pass messages on keeps nobody from writing.
    script.0.lock().mute = Some(RemoteError::Refused("NOPERM".to_owned()));
    put(&tier, "k", 2).await;
    assert_eq!((tier.stats().coherent, get(&tier, "k").await), (false, hit(2)));
}

#[tokio::test(start_paused = true)]
async fn a_removal_of_what_is_not_there_is_announced() {
    let script = Script::new();
    let (tier, _, _) = follower(&script, config()).await;
    script.0.lock().executed.clear();
    put(&tier, "a", 1).await;
    remove(&tier, "b").await;
    let executed: Vec<_> = script.0.lock().executed.drain(..).collect();
    let [
        Command::Set { .. },
        Command::SetIfMissing { key, value, ttl },
        Command::Delete { key: deleted },
    ] = &*executed
    else {
        panic!("{executed:?}")
    };
    assert_eq!((key, value.len(), ttl.is_some()), (deleted, 0, true));
    assert_eq!(tier.stats().writes, 2);
}

/// Lets the entries of a memory go.
struct Memory(Cache<String, u64>);

impl Listener for Memory {
    fn tags_known(&self) -> BoxFuture<'_, ()> {
        async {}.boxed()
    }

    fn changed(&self, entry: Changed<'_>) -> bool {
        let Changed::Key(key) = entry else { return false };
        self.0.inner().changed(&String::from_utf8_lossy(key).into_owned(), Tier::Redis);
        true
    }

    fn tags_invalidated<'a>(&'a self, _: &'a [u64]) -> BoxFuture<'a, ()> {
        async {}.boxed()
    }

    fn lost(&self, _: bool) -> BoxFuture<'_, ()> {
        self.0.inner().forget_all();
        async {}.boxed()
    }
}

#[tokio::test(start_paused = true)]
async fn a_value_that_is_on_its_way_when_its_key_changes_does_not_reach_memory() {
    let script = Script::new();
    let pushes = Arc::new(PushQueue::default());
    let client = Box::new(script.clone());
    let tier = RedisTier::with_client("test", config(), client, Arc::clone(&pushes), 7).unwrap();
    let cache = Cache::<String, u64>::builder("test").build().unwrap();
    tier.listen(Arc::new(Memory(cache.clone())));
    until(|| tier.stats().coherent).await;
    let (key, changed) = ("k".to_owned(), Push::Changed(vec![entry(&script, "k")]));
    let options = crate::InsertOptions::default();
    for loss in [changed.clone(), Push::Lost] {
        put(&tier, "k", 1).await;
        let reservation = cache.reserve(&key);
        // It takes a millisecond; the push comes before the answer.
        let (found, ()) = tokio::join!(get(&tier, "k"), async { pushes.push(loss.clone()) });
        until(|| tier.stats().coherent).await;
        sleep(Duration::from_millis(1)).await;
        assert_eq!(found, hit(1));
        assert!(!reservation.insert(1, options.clone()), "{loss:?} has overtaken it");
        assert_eq!(cache.get_in_memory(&key), None);
        // And after it.
        assert!(cache.reserve(&key).insert(1, options.clone()));
        pushes.push(loss);
        until(|| cache.get_in_memory(&key).is_none()).await;
        until(|| tier.stats().coherent).await;
    }
}

#[tokio::test(start_paused = true)]
async fn invalidated_tags_are_stale_at_once_and_acknowledged_when_the_server_has_them() {
    let script = Script::new();
    let (tier, notes, _) = follower(&script, config()).await;
    assert_eq!((tier.tag_head(), tier.tag_invalidated(7)), (0, u64::MAX));
    until(|| tier.tag_head() > 0).await;
    let stamp = tier.tag_head();
    assert!(tier.tag_invalidated(7) <= stamp);
    tier.invalidate_tags(&[7, 8]).await;
    assert!((stamp + 1..u64::MAX).contains(&tier.tag_invalidated(7)));
    assert!(tier.tag_invalidated(9) <= stamp && tier.tag_invalidated(8) <= tier.tag_head());
    assert_eq!(std::mem::take(&mut *notes.tags.lock()), [7, 8]);

    // While the server is away, it holds here, and costs no more than any call.
    for fault in [Fault::Lost, Fault::Silent, Fault::Refused] {
        let (stamp, start) = (tier.tag_head(), Instant::now());
        script.fault(fault);
        tier.invalidate_tags(&[7]).await;
        assert!(start.elapsed() <= config().timeout, "{fault:?}");
        sleep(Duration::from_secs(20)).await;
        assert_eq!((tier.tag_invalidated(7), tier.tag_head()), (u64::MAX, stamp), "{fault:?}");
        script.fault(Fault::None);
        until(|| tier.tag_invalidated(7) < u64::MAX).await;
        assert!(tier.tag_invalidated(7) > stamp, "{fault:?}");
    }
    assert!(!notes.lost().contains(&false), "the log was there throughout");
}

#[tokio::test(start_paused = true)]
async fn a_log_of_tags_that_is_lost_empties_memory_and_leaves_nothing_fresh() {
    let script = Script::new();
    let (tier, notes, pushes) = follower(&script, config()).await;
    tier.invalidate_tags(&[1]).await;
    let stamp = tier.tag_head();
    script.0.lock().tags.members.clear();
    let start = Instant::now();
    pushes.push(Push::Changed(vec![bytes("ultra-perf:test:0:tags")]));
    until(|| tier.tag_invalidated(2) > stamp).await;
    assert!(start.elapsed() < Duration::from_millis(100), "{:?}", start.elapsed());
    until(|| !notes.lost.lock().is_empty()).await;
    assert_eq!(notes.lost(), [false]);
    // Without a push it is found by the look each second.
    let stamp = tier.tag_head();
    script.0.lock().tags.members.clear();
    until(|| tier.tag_invalidated(2) > stamp).await;
}

#[test]
fn a_tier_without_a_runtime_is_a_problem() {
    let problems = RedisTier::start("test", RedisConfig::default()).unwrap_err();
    assert_eq!(problems[0].expected, "the Redis tier must be started inside a Tokio runtime");
}

/// One step of a history.
#[derive(Debug, Clone)]
enum Step {
    Put(u8),
    /// The write is dropped before it reaches the tier.
    PutLost(u8),
    Remove(u8),
    Get(u8),
    GetMany,
    Clear,
    Wait(u16),
    Fault(Fault),
    Reconnect,
    /// The server comes back with the data that it had at some earlier time.
    Restart,
    Flush,
    LoseVersion,
}

fn step() -> impl Strategy<Value = Step> {
    let key = 0..6_u8;
    prop_oneof![
        6 => key.clone().prop_map(Step::Put),
        1 => key.clone().prop_map(Step::PutLost),
        2 => key.clone().prop_map(Step::Remove),
        8 => key.prop_map(Step::Get),
        2 => Just(Step::GetMany),
        1 => Just(Step::Clear),
        6 => prop_oneof![0..20_u16, 0..3_000_u16].prop_map(Step::Wait),
        3 => Just(Step::Fault(Fault::None)),
        3 => prop_oneof![
            Just(Fault::Lost), Just(Fault::Silent), Just(Fault::Late), Just(Fault::Refused)
        ].prop_map(Step::Fault),
        2 => Just(Step::Reconnect),
        1 => Just(Step::Restart),
        1 => Just(Step::Flush),
        1 => Just(Step::LoseVersion),
    ]
}

/// Runs a history beside a map. A hit must be what the map holds; a miss is always allowed. At the
/// end, with a healthy server, hits must come back.
async fn replay(steps: Vec<Step>) {
    let script = Script::new();
    let tier = tier(&script, config()).await;
    let mut model: HashMap<Bytes, Bytes> = HashMap::new();
    let mut snapshot = HashMap::new();
    let mut next = 0_u32;
    for step in steps {
        match step {
            Step::Put(key) => {
                next += 1;
                model.insert(bytes(key), bytes(next));
                put(&tier, &key.to_string(), next).await;
            }
            Step::PutLost(key) => {
                next += 1;
                model.insert(bytes(key), bytes(next));
                tier.mark_stale(&bytes(key));
            }
            Step::Remove(key) => {
                model.remove(&bytes(key));
                remove(&tier, &key.to_string()).await;
            }
            Step::Get(key) => {
                if let Lookup::Hit(value) = tier.get(&bytes(key)).await {
                    assert_eq!(Some(&value), model.get(&bytes(key)), "key {key}");
                }
            }
            Step::GetMany => {
                let keys: Vec<Bytes> = (0..6).map(bytes).collect();
                for (key, found) in keys.iter().zip(tier.get_many(&keys).await) {
                    if let Lookup::Hit(value) = found {
                        assert_eq!(Some(&value), model.get(key), "key {key:?}");
                    }
                }
            }
            Step::Clear => {
                model.clear();
                tier.clear().await;
            }
            Step::Wait(ms) => sleep(Duration::from_millis(ms.into())).await,
            Step::Fault(fault) => script.fault(fault),
            Step::Reconnect => script.reconnect(),
            Step::Restart => {
                let mut server = script.0.lock();
                server.process += 1;
                server.late.clear();
                let now = server.data.clone();
                server.data = std::mem::replace(&mut snapshot, now);
                drop(server);
                script.reconnect();
            }
            Step::Flush => script.0.lock().data.clear(),
            Step::LoseVersion => script.set_version(None),
        }
    }
    script.fault(Fault::None);
    script.reconnect();
    sleep(Duration::from_secs(10)).await;
    for key in 0..6_u8 {
        if let Lookup::Hit(value) = tier.get(&bytes(key)).await {
            assert_eq!(Some(&value), model.get(&bytes(key)), "key {key}");
        }
        put(&tier, &key.to_string(), "last").await;
        assert_eq!(tier.get(&bytes(key)).await, hit("last"));
    }
    assert_eq!(tier.stats().dirty_keys, 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]
    #[test]
    fn a_hit_is_never_stale(steps in proptest::collection::vec(step(), 0..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(replay(steps));
    }
}

/// A real server on a port of its own, until it is dropped.
struct RealServer(std::process::Child);

impl RealServer {
    fn start() -> (Self, String) {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let options = ["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""];
        let mut command = std::process::Command::new("redis-server");
        let command = command.args(options).stdout(std::process::Stdio::null());
        (Self(command.spawn().unwrap()), format!("redis://127.0.0.1:{port}"))
    }
}

impl Drop for RealServer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `cargo nextest run -p cache-tiered --features redis --lib --run-ignored only --no-capture -E
/// 'test(how_long_an_invalidated_tag_takes)'` prints it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn how_long_an_invalidated_tag_takes() {
    let (_server, url) = RealServer::start();
    for coherence in [Coherence::Tracking, Coherence::PubSub] {
        let start = || async {
            let config = RedisConfig { coherence, ..RedisConfig::new(&url) };
            let tier = RedisTier::start("test", config).unwrap();
            let notes = Arc::new(Notes::default());
            tier.listen(Arc::clone(&notes) as _);
            while !tier.stats().coherent || tier.tag_head() == 0 {
                sleep(Duration::from_millis(1)).await;
            }
            (tier, notes)
        };
        let ((ours, _), (theirs, notes)) = (start().await, start().await);
        let (mut acknowledged, mut told) = (Vec::new(), Vec::new());
        for tag in 0..1_000 {
            notes.tags.lock().clear();
            let (start, stamp) = (Instant::now(), theirs.tag_head());
            ours.invalidate_tags(&[tag]).await;
            acknowledged.push(start.elapsed());
            while theirs.tag_invalidated(tag) <= stamp || !notes.tags.lock().contains(&tag) {
                tokio::task::yield_now().await;
            }
            told.push(start.elapsed());
        }
        for (what, mut took) in [("acknowledged", acknowledged), ("told to others", told)] {
            took.sort();
            println!("{coherence:?}, {what}: p50 {:?}, p99 {:?}", took[500], took[990]);
        }
        ours.close().await;
        theirs.close().await;
    }
}
