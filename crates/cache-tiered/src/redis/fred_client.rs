//! The client over `fred`, set up so that it never makes anybody wait.
//!
//! fred's defaults wait for a dead server as long as it takes. Here every command fails at once while
//! there is no connection (`fail_fast`), fails after a time (`timeout`, and `default_command_timeout`
//! for the paths that forget the first), and is sent once (`max_attempts`). Further:
//!
//! - Connections come back by themselves, with a growing and jittered delay. What fred gives up on (an
//!   address that does not parse) and what it cannot see (a task that hangs in a full socket; its own
//!   watch over silent servers begins anew with every command that is sent) is replaced by
//!   [`RemoteClient::tend`].
//! - `max_command_buffer_len` stays 0: the setting wedges the client. The tier bounds what it sends.
//! - A socket is closed with a reset (`linger` 0), so that nothing in its send buffer reaches the
//!   server later than what a new connection sends.
//! - `broadcast_channel_capacity` stays small, because every one of a client's channels allocates it
//!   at once. Pushes are carried into the tier's own queue without delay, and a lag is a loss.
//! - fred's own tracking in broadcast mode asks one node of a cluster only, so each is asked here. Which
//!   connections have been asked is remembered by their ids. The news that a server was emptied
//!   comes without names, and fred drops it: `invalidation` tells what remains.
//! - fred does not wait for the answer to a SUBSCRIBE, and takes a refusal for the answer to the next
//!   command. So there is a connection for that alone, and a PING that tells what became of it.
//! - Commands go out raw. That spares a validation of every value as UTF-8.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fred::clients::Client;
use fred::interfaces::{
    ClientInterface, ClientLike, ClusterInterface, EventInterface, PubsubInterface,
    TrackingInterface,
};
use fred::types::config::{
    Config, ConnectionConfig, Options, PerformanceConfig, ReconnectPolicy, Server, ServerConfig,
    TcpConfig, TlsConfig, TlsHostMapping, UnresponsiveConfig,
};
use fred::types::{
    ClusterHash, ClusterStateChange, ConnectHandle, CustomCommand, Resp3Frame, RespVersion, Value,
};
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, join, join_all};
use parking_lot::Mutex;
use tokio::sync::broadcast::{
    self,
    error::{RecvError, TryRecvError},
};
use tokio::task::AbortHandle;

use super::address::{Address, Kind};
use super::client::{Command, Fetched, Follow, Push, RemoteClient, RemoteError};
use super::invalidation::PushQueue;
use super::{Coherence, Lookup, RedisConfig};

/// How long a connection may take to be set up. A server that is frozen meanwhile has it ready when
/// it goes on.
const SET_UP: Duration = Duration::from_secs(5);
/// The longest delay between two attempts to connect, in milliseconds. One every two seconds costs
/// nobody anything, and an outage is over soon after the server is back.
const RECONNECT_MAX_MS: u32 = 2_000;
/// How long a server may stay silent before its connection is given up.
const SILENT: Duration = Duration::from_secs(1);
/// What waits in each of a client's channels; more where pushes come.
const EVENTS: usize = 16;
const PUSHES: usize = 4_096;
/// How often a connection that pushes come over is sent something, so that the watch over silent
/// servers sees it when it is dead, and a cluster is looked at. Longer than that watch takes.
const KEEP_ALIVE: Duration = Duration::from_secs(3);
/// When that is done for the first time.
const FIRST_LOOK: Duration = Duration::from_millis(300);
/// How often the nodes of a cluster are asked to tell of changes while they come and go.
const FOLLOW_TRIES: usize = 3;
/// How long goodbye may take.
const GOODBYE: Duration = Duration::from_millis(500);

/// One or two multiplexed connections; to a cluster, that many to each of its masters.
pub(super) struct Fred {
    config: Config,
    timeout: Duration,
    options: Options,
    clustered: bool,
    lanes: Vec<Mutex<Link>>,
    /// The connection for messages, once it is wanted.
    subscriber: Arc<Mutex<Option<Link>>>,
    pushes: Arc<PushQueue>,
    /// Whether anything is to be followed.
    follows: bool,
    followed: Arc<Mutex<Followed>>,
}

/// The connections on which the last `follow` asked, by their ids.
#[derive(Debug, Default)]
enum Followed {
    #[default]
    Nothing,
    Tracking(HashMap<Server, i64>),
    Channel(HashMap<Server, i64>),
}

/// A fred client, its driving task, and the count of its connections.
struct Link {
    client: Client,
    task: ConnectHandle,
    connected: broadcast::Receiver<Server>,
    moved: broadcast::Receiver<Vec<ClusterStateChange>>,
    connections: u64,
    /// The tasks that carry pushes on, and see to it that their end is noticed.
    carriers: Vec<AbortHandle>,
}

impl Link {
    /// Begins to connect. With `pushes`, what the servers tell goes there.
    fn start(
        config: &Config,
        timeout: Duration,
        connections: u64,
        pushes: Option<&Arc<PushQueue>>,
    ) -> Self {
        let performance = PerformanceConfig {
            default_command_timeout: timeout,
            broadcast_channel_capacity: if pushes.is_some() { PUSHES } else { EVENTS },
            ..PerformanceConfig::default()
        };
        let connection = ConnectionConfig {
            connection_timeout: SET_UP,
            internal_command_timeout: SET_UP,
            max_command_attempts: 1,
            max_command_buffer_len: 0,
            reconnect_on_auth_error: true,
            unresponsive: UnresponsiveConfig {
                max_timeout: Some(SILENT.max(timeout * 4)),
                interval: SILENT / 4,
            },
            tcp: TcpConfig {
                nodelay: Some(true),
                linger: Some(Duration::ZERO),
                ..TcpConfig::default()
            },
            ..ConnectionConfig::default()
        };
        let policy = ReconnectPolicy::new_exponential(0, 100, RECONNECT_MAX_MS, 2);
        let client = Client::new(config.clone(), Some(performance), Some(connection), Some(policy));
        let (connected, moved) = (client.reconnect_rx(), client.cluster_change_rx());
        let carriers = pushes.map(|pushes| {
            let alive = keep_alive(client.clone(), timeout, config.server.is_clustered());
            let carrier = tokio::spawn(carry(&client, Arc::clone(pushes)));
            [carrier.abort_handle(), tokio::spawn(alive).abort_handle()]
        });
        let carriers = carriers.into_iter().flatten().collect();
        let task = client.connect();
        Self { client, task, connected, moved, connections, carriers }
    }

    /// fred tells of a new connection before it sends anything on it, so an answer that came over a
    /// new connection finds it counted.
    fn connections(&mut self) -> u64 {
        self.connections += count(&mut self.connected) + count(&mut self.moved);
        self.connections
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
        self.carriers.iter().for_each(AbortHandle::abort);
    }
}

/// Carries what a client is told into the queue, until the client ends.
fn carry(client: &Client, pushes: Arc<PushQueue>) -> impl Future<Output = ()> + Send + 'static {
    let (mut connected, mut moved) = (client.reconnect_rx(), client.cluster_change_rx());
    let (mut changes, mut messages) = (client.invalidation_rx(), client.message_rx());
    async move {
        loop {
            let push = tokio::select! {
                event = connected.recv() => told(event, |_| Push::Lost),
                event = moved.recv() => told(event, |_| Push::Lost),
                event = changes.recv() => told(event, |it| {
                    Push::Changed(it.keys.into_iter().map(fred::types::Key::into_bytes).collect())
                }),
                event = messages.recv() => told(event, |it| {
                    it.value.into_bytes().map_or(Push::Lost, Push::Message)
                }),
            };
            match push {
                Some(push) => pushes.push(push),
                None => return,
            }
        }
    }
}

/// Sends something to every server now and then, and has fred look at a cluster that has changed: else
/// it would not before a command went to the wrong node.
async fn keep_alive(client: Client, timeout: Duration, clustered: bool) {
    let caller = Caller { client, options: options(timeout) };
    let (mut epoch, mut pause) = (None, FIRST_LOOK);
    loop {
        tokio::time::sleep(pause).await;
        pause = KEEP_ALIVE;
        // What has become of a connection, fred finds out by itself.
        if !clustered {
            let _ = caller.call("PING", ClusterHash::Random, Vec::new()).await;
            continue;
        }
        let nodes = caller.client.active_connections().into_iter();
        let callers: Vec<_> = nodes.map(|node| caller.to_node(node)).collect();
        let epochs = join_all(callers.iter().map(Caller::epoch)).await;
        let newest = epochs.into_iter().flatten().max();
        if newest.is_some() && newest != epoch {
            let is_first = epoch.is_none();
            // A try that fails is made again.
            if is_first || caller.client.sync_cluster().await.is_ok() {
                epoch = newest;
            }
        }
    }
}

/// How every command is sent.
fn options(timeout: Duration) -> Options {
    Options { max_attempts: Some(1), timeout: Some(timeout), fail_fast: true, ..Options::default() }
}

fn told<T>(event: Result<T, RecvError>, push: impl FnOnce(T) -> Push) -> Option<Push> {
    match event {
        Ok(event) => Some(push(event)),
        Err(RecvError::Lagged(_)) => Some(Push::Lost),
        Err(RecvError::Closed) => None,
    }
}

fn count<T: Clone>(events: &mut broadcast::Receiver<T>) -> u64 {
    let mut seen = 0;
    loop {
        match events.try_recv() {
            Ok(_) => seen += 1,
            Err(TryRecvError::Lagged(missed)) => seen += missed,
            Err(TryRecvError::Empty | TryRecvError::Closed) => return seen,
        }
    }
}

impl Fred {
    /// Begins to connect, in the background, on the current runtime.
    pub(super) fn start(config: Config, tier: &RedisConfig, pushes: Arc<PushQueue>) -> Self {
        let budget = tier.timeout;
        let follows = tier.coherence != Coherence::Off;
        // Shorter than the tier's own limit, so that the tier learns what became of each command.
        let timeout = budget - budget / 10;
        let options = options(timeout);
        let clustered = config.server.is_clustered();
        // The servers tell of changes on the connection that writes.
        let pushes_of = |lane| (lane == 0 && follows).then_some(&pushes);
        let lane = |lane| Mutex::new(Link::start(&config, timeout, 0, pushes_of(lane)));
        let lanes = (0..tier.connections).map(lane).collect();
        Self {
            config,
            timeout,
            options,
            clustered,
            lanes,
            subscriber: Arc::default(),
            pushes,
            follows,
            followed: Arc::default(),
        }
    }

    fn caller(&self, lane: usize) -> Caller {
        Caller { client: self.lanes[lane].lock().client.clone(), options: self.options.clone() }
    }
}

/// What a future takes along to send commands.
#[derive(Clone)]
struct Caller {
    client: Client,
    options: Options,
}

impl Caller {
    /// Sends a command and waits for its answer. The command is on its way after the first poll.
    async fn call(
        &self,
        name: &'static str,
        hash: ClusterHash,
        arguments: Vec<Value>,
    ) -> Result<Resp3Frame, RemoteError> {
        let command = CustomCommand::new_static(name, hash, false);
        match self.client.with_options(&self.options).custom_raw(command, arguments).await {
            Ok(Resp3Frame::SimpleError { data, .. }) => Err(RemoteError::Refused(data.to_string())),
            Ok(Resp3Frame::BlobError { data, .. }) => {
                Err(RemoteError::Refused(String::from_utf8_lossy(&data).into_owned()))
            }
            Ok(frame) => Ok(frame),
            Err(error) if *error.kind() == fred::error::ErrorKind::Timeout => {
                Err(RemoteError::Timeout)
            }
            Err(error) => Err(RemoteError::Disconnected(error.details().to_owned())),
        }
    }

    async fn run(&self, write: Command) -> Result<(), RemoteError> {
        let (name, arguments): (_, Vec<Value>) = match write {
            Command::Set { key, value, ttl: None } => ("SET", vec![key.into(), value.into()]),
            Command::Set { key, value, ttl: Some(ttl) } => {
                let ttl = i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX).max(1);
                ("SET", vec![key.into(), value.into(), word("PX"), Value::Integer(ttl)])
            }
            Command::SetIfMissing { key, value, ttl } => {
                let mut arguments = vec![key.into(), value.into(), word("NX")];
                if let Some(ttl) = ttl {
                    let ttl = i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX).max(1);
                    arguments.extend([word("PX"), Value::Integer(ttl)]);
                }
                ("SET", arguments)
            }
            Command::Delete { key } => ("DEL", vec![key.into()]),
            Command::Publish { channel, message } => {
                ("PUBLISH", vec![channel.into(), message.into()])
            }
        };
        self.call(name, ClusterHash::FirstKey, arguments).await.map(drop)
    }

    /// One MGET, for keys of one slot if this is a cluster.
    async fn get_slot(&self, keys: Vec<Bytes>) -> Fetched {
        let wanted = keys.len();
        let arguments = keys.into_iter().map(Value::from).collect();
        match self.call("MGET", ClusterHash::FirstKey, arguments).await {
            Ok(Resp3Frame::Array { data, .. }) if data.len() == wanted => {
                Fetched { values: data.into_iter().map(found).collect(), error: None }
            }
            Ok(_) => Fetched::failed(wanted, unexpected("MGET")),
            Err(error) => Fetched::failed(wanted, error),
        }
    }

    /// The same caller, for one node of a cluster.
    fn to_node(&self, node: Server) -> Self {
        let options = Options { cluster_node: Some(node), ..self.options.clone() };
        Self { client: self.client.clone(), options }
    }

    /// The ids of the connections, if there is one to every master.
    fn connections(&self, clustered: bool) -> Option<HashMap<Server, i64>> {
        let ids = self.client.connection_ids();
        if !clustered {
            return Some(ids);
        }
        let masters = self.client.cached_cluster_state()?.unique_primary_nodes();
        let complete = !masters.is_empty() && masters.iter().all(|it| ids.contains_key(it));
        complete.then_some(ids)
    }

    /// Asks every node to tell of changes; returns the connections that were asked.
    async fn track(
        &self,
        clustered: bool,
        prefix: &Bytes,
    ) -> Result<HashMap<Server, i64>, RemoteError> {
        for _ in 0..FOLLOW_TRIES {
            let Some(before) = self.connections(clustered) else { break };
            if clustered {
                let nodes = before.keys().map(|node| self.to_node(node.clone()));
                let asked = nodes.map(|node| async move { node.track_here(prefix).await });
                join_all(asked).await.into_iter().collect::<Result<(), _>>()?;
            } else {
                self.track_here(prefix).await?;
            }
            // The answers came after whatever the client was doing to its connections.
            if self.connections(clustered).as_ref() == Some(&before) {
                return Ok(before);
            }
        }
        Err(RemoteError::Disconnected("the nodes are coming and going".to_owned()))
    }

    async fn track_here(&self, prefix: &Bytes) -> Result<(), RemoteError> {
        let hash = || {
            if self.options.cluster_node.is_some() {
                ClusterHash::Random
            } else {
                ClusterHash::FirstKey
            }
        };
        // What is asked for already cannot be asked for again.
        let off = self.call("CLIENT", hash(), vec![word("TRACKING"), word("OFF")]);
        let on = vec![
            word("TRACKING"),
            word("ON"),
            word("BCAST"),
            word("PREFIX"),
            prefix.clone().into(),
            word("NOLOOP"),
        ];
        let (_, on) = join(off, self.call("CLIENT", hash(), on)).await;
        on.map(drop)
    }

    /// Subscribes to a channel; returns the connections that there are.
    async fn subscribe(
        &self,
        clustered: bool,
        channel: &Bytes,
    ) -> Result<HashMap<Server, i64>, RemoteError> {
        if !self.client.is_connected() {
            return Err(RemoteError::Disconnected("the connection for messages".to_owned()));
        }
        let before = self.connections(clustered);
        let channel = String::from_utf8_lossy(channel).into_owned();
        let subscribed = self.client.with_options(&self.options).subscribe(channel).await;
        subscribed.map_err(|error| RemoteError::Disconnected(error.details().to_owned()))?;
        // To the node that fred has chosen for the subscription.
        let slot = fred::util::redis_keyslot(self.client.id().as_bytes());
        self.call("PING", ClusterHash::Custom(slot), Vec::new()).await?;
        match before {
            Some(before) if self.connections(clustered).as_ref() == Some(&before) => Ok(before),
            _ => Err(RemoteError::Disconnected("the nodes are coming and going".to_owned())),
        }
    }

    /// The number that grows with every change of who has which slots, as one node knows it.
    async fn epoch(&self) -> Option<u64> {
        let answer = self.call("CLUSTER", ClusterHash::Random, vec![word("INFO")]).await.ok()?;
        let (Resp3Frame::BlobString { data, .. } | Resp3Frame::VerbatimString { data, .. }) =
            answer
        else {
            return None;
        };
        let text = String::from_utf8_lossy(&data);
        let epoch = text.lines().find_map(|line| line.strip_prefix("cluster_current_epoch:"))?;
        epoch.trim().parse().ok()
    }

    async fn identity(&self) -> Result<String, RemoteError> {
        let answer = self.call("INFO", ClusterHash::Random, vec![word("server")]).await?;
        let (Resp3Frame::BlobString { data, .. } | Resp3Frame::VerbatimString { data, .. }) =
            answer
        else {
            return Err(unexpected("INFO"));
        };
        let id = String::from_utf8_lossy(&data)
            .lines()
            .find_map(|line| line.strip_prefix("run_id:").map(|id| id.trim().to_owned()));
        id.ok_or_else(|| RemoteError::Refused("no run_id in the answer to INFO".to_owned()))
    }
}

fn word(text: &'static str) -> Value {
    Value::String(fred::util::static_str(text))
}

fn found(frame: Resp3Frame) -> Lookup {
    match frame {
        Resp3Frame::BlobString { data, .. } => Lookup::Hit(data),
        _ => Lookup::Miss,
    }
}

fn unexpected(command: &str) -> RemoteError {
    RemoteError::Refused(format!("not an answer to {command}"))
}

impl RemoteClient for Fred {
    fn get_many(&self, lane: usize, keys: Vec<Bytes>) -> BoxFuture<'static, Fetched> {
        let caller = self.caller(lane);
        if !self.clustered {
            return async move { caller.get_slot(keys).await }.boxed();
        }
        let wanted = keys.len();
        let mut slots: BTreeMap<u16, (Vec<usize>, Vec<Bytes>)> = BTreeMap::new();
        for (index, key) in keys.into_iter().enumerate() {
            let (indices, keys) = slots.entry(fred::util::redis_keyslot(&key)).or_default();
            indices.push(index);
            keys.push(key);
        }
        async move {
            let mut all = Fetched { values: vec![Lookup::Unavailable; wanted], error: None };
            let caller = &caller;
            let parts = slots
                .into_values()
                .map(|(indices, keys)| async move { (indices, caller.get_slot(keys).await) });
            for (indices, part) in join_all(parts).await {
                for (index, value) in indices.into_iter().zip(part.values) {
                    all.values[index] = value;
                }
                all.error = all.error.or(part.error);
            }
            all
        }
        .boxed()
    }

    fn run(&self, writes: Vec<Command>) -> BoxFuture<'static, Vec<Result<(), RemoteError>>> {
        let caller = self.caller(0);
        async move { join_all(writes.into_iter().map(|write| caller.run(write))).await }.boxed()
    }

    fn eval(
        &self,
        script: &'static str,
        key: Bytes,
        arguments: Vec<Bytes>,
    ) -> BoxFuture<'static, Result<Vec<Bytes>, RemoteError>> {
        let caller = self.caller(0);
        let hash = ClusterHash::Custom(fred::util::redis_keyslot(&key));
        let mut all = vec![word(script), Value::Integer(1), key.into()];
        all.extend(arguments.into_iter().map(Value::from));
        async move {
            let Resp3Frame::Array { data, .. } = caller.call("EVAL", hash, all).await? else {
                return Err(unexpected("EVAL"));
            };
            let text = |frame| match frame {
                Resp3Frame::BlobString { data, .. } => Ok(data),
                _ => Err(unexpected("EVAL")),
            };
            data.into_iter().map(text).collect()
        }
        .boxed()
    }

    fn servers(&self, lane: usize) -> BoxFuture<'static, Result<Vec<String>, RemoteError>> {
        let caller = self.caller(lane);
        let clustered = self.clustered;
        async move {
            let callers = if clustered {
                let nodes = caller.client.active_connections().into_iter();
                nodes.map(|node| caller.to_node(node)).collect()
            } else {
                vec![caller]
            };
            let identities = join_all(callers.iter().map(Caller::identity)).await;
            match identities.into_iter().collect() {
                // Whoever may not ask who the server is has to do without.
                Err(RemoteError::Refused(_)) => Ok(Vec::new()),
                identities => identities,
            }
        }
        .boxed()
    }

    fn follow(&self, follow: Follow) -> BoxFuture<'static, Result<(), RemoteError>> {
        let (clustered, followed) = (self.clustered, Arc::clone(&self.followed));
        *followed.lock() = Followed::Nothing;
        match follow {
            Follow::Tracking { prefix } => {
                let caller = self.caller(0);
                let subscriber = Arc::clone(&self.subscriber);
                async move {
                    let connections = caller.track(clustered, &prefix).await?;
                    *followed.lock() = Followed::Tracking(connections);
                    // From a time when the server did not track.
                    subscriber.lock().take();
                    Ok(())
                }
                .boxed()
            }
            Follow::Channel { name } => {
                let mut subscriber = self.subscriber.lock();
                let link = subscriber.get_or_insert_with(|| {
                    Link::start(&self.config, self.timeout, 0, Some(&self.pushes))
                });
                let caller = Caller { client: link.client.clone(), options: self.options.clone() };
                async move {
                    let connections = caller.subscribe(clustered, &name).await?;
                    *followed.lock() = Followed::Channel(connections);
                    Ok(())
                }
                .boxed()
            }
        }
    }

    fn is_following(&self) -> bool {
        let now = |client: Client| {
            Caller { client, options: self.options.clone() }.connections(self.clustered)
        };
        match &*self.followed.lock() {
            Followed::Nothing => false,
            Followed::Tracking(then) => {
                now(self.lanes[0].lock().client.clone()).as_ref() == Some(then)
            }
            Followed::Channel(then) => {
                let client = self.subscriber.lock().as_ref().map(|link| link.client.clone());
                client.and_then(now).as_ref() == Some(then)
            }
        }
    }

    fn connection(&self, lane: usize) -> u64 {
        self.lanes[lane].lock().connections()
    }

    fn is_connected(&self) -> bool {
        self.lanes.iter().all(|link| link.lock().client.is_connected())
    }

    fn tend(&self, stuck: bool) {
        for (lane, link) in self.lanes.iter().enumerate() {
            let mut link = link.lock();
            if stuck || link.task.is_finished() {
                let connections = link.connections() + 1;
                let pushes = (lane == 0 && self.follows).then_some(&self.pushes);
                *link = Link::start(&self.config, self.timeout, connections, pushes);
                self.pushes.push(Push::Lost);
            }
        }
        // It is made anew when `follow` is called again, and that is when pushes are lost.
        let mut subscriber = self.subscriber.lock();
        if subscriber.take_if(|link| stuck || link.task.is_finished()).is_some() {
            self.pushes.push(Push::Lost);
        }
    }

    fn close(&self) -> BoxFuture<'static, ()> {
        let both = |link: &Mutex<Link>| {
            let link = link.lock();
            (link.client.clone(), link.task.abort_handle())
        };
        self.subscriber.lock().take();
        let links: Vec<_> = self.lanes.iter().map(both).collect();
        async move {
            let connected = links.iter().filter(|(client, _)| client.is_connected());
            let goodbyes = join_all(connected.map(|(client, _)| client.quit()));
            // A server that does not take its leave is left without.
            let _ = tokio::time::timeout(GOODBYE, goodbyes).await;
            for (_, task) in &links {
                task.abort();
            }
        }
        .boxed()
    }
}

/// Turns an address into fred's configuration, or says what is wrong.
pub(super) fn configuration(address: &Address) -> Result<Config, String> {
    let hosts = || address.hosts.clone();
    let server = match &address.kind {
        Kind::Server => {
            let (host, port) = &address.hosts[0];
            ServerConfig::new_centralized(host, *port)
        }
        Kind::Cluster => ServerConfig::new_clustered(hosts()),
        Kind::Sentinel { service } => ServerConfig::new_sentinel(hosts(), service),
    };
    let mut config = Config {
        server,
        username: address.user.clone(),
        password: address.password.clone(),
        database: address.database,
        version: RespVersion::RESP3,
        fail_fast: false,
        ..Config::default()
    };
    if address.tls {
        let hostnames = match address.certificate_name() {
            Some(_) => TlsHostMapping::DefaultHost,
            None => TlsHostMapping::None,
        };
        config.tls = Some(TlsConfig { connector: super::tls::trusted()?.into(), hostnames });
    }
    Ok(config)
}
