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
//!   at once; a lag in the only two that are listened to is harmless.
//! - Commands go out raw. That spares a validation of every value as UTF-8.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use fred::clients::Client;
use fred::interfaces::{ClientLike, EventInterface};
use fred::types::config::{
    Config, ConnectionConfig, Options, PerformanceConfig, ReconnectPolicy, Server, ServerConfig,
    TcpConfig, TlsConfig, TlsHostMapping, UnresponsiveConfig,
};
use fred::types::{
    ClusterHash, ClusterStateChange, ConnectHandle, CustomCommand, Resp3Frame, RespVersion, Value,
};
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, join_all};
use parking_lot::Mutex;
use tokio::sync::broadcast::{self, error::TryRecvError};

use super::Lookup;
use super::address::{Address, Kind};
use super::client::{Command, Fetched, RemoteClient, RemoteError};

/// How long a connection may take to be set up. A server that is frozen meanwhile has it ready when
/// it goes on.
const SET_UP: Duration = Duration::from_secs(5);
/// The longest delay between two attempts to connect, in milliseconds. One every two seconds costs
/// nobody anything, and an outage is over soon after the server is back.
const RECONNECT_MAX_MS: u32 = 2_000;
/// How long a server may stay silent before its connection is given up.
const SILENT: Duration = Duration::from_secs(1);
/// How long goodbye may take.
const GOODBYE: Duration = Duration::from_millis(500);

/// One or two multiplexed connections; to a cluster, that many to each of its masters.
pub(super) struct Fred {
    config: Config,
    timeout: Duration,
    options: Options,
    clustered: bool,
    lanes: Vec<Mutex<Link>>,
}

/// A fred client, its driving task, and the count of its connections.
struct Link {
    client: Client,
    task: ConnectHandle,
    connected: broadcast::Receiver<Server>,
    moved: broadcast::Receiver<Vec<ClusterStateChange>>,
    connections: u64,
}

impl Link {
    fn start(config: &Config, timeout: Duration, connections: u64) -> Self {
        let performance = PerformanceConfig {
            default_command_timeout: timeout,
            broadcast_channel_capacity: 16,
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
        let task = client.connect();
        Self { client, task, connected, moved, connections }
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
    pub(super) fn start(config: Config, lanes: usize, budget: Duration) -> Self {
        // Shorter than the tier's own limit, so that the tier learns what became of each command.
        let timeout = budget - budget / 10;
        let options = Options {
            max_attempts: Some(1),
            timeout: Some(timeout),
            fail_fast: true,
            ..Options::default()
        };
        let clustered = config.server.is_clustered();
        let lanes = (0..lanes).map(|_| Mutex::new(Link::start(&config, timeout, 0))).collect();
        Self { config, timeout, options, clustered, lanes }
    }

    fn caller(&self, lane: usize) -> Caller {
        Caller { client: self.lanes[lane].lock().client.clone(), options: self.options.clone() }
    }
}

/// What a future takes along to send commands.
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
            Command::SetIfMissing { key, value } => {
                ("SET", vec![key.into(), value.into(), word("NX")])
            }
            Command::Delete { key } => ("DEL", vec![key.into()]),
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

    fn servers(&self, lane: usize) -> BoxFuture<'static, Result<Vec<String>, RemoteError>> {
        let caller = self.caller(lane);
        let clustered = self.clustered;
        async move {
            let callers = if clustered {
                let nodes = caller.client.active_connections().into_iter();
                let to_node = |node| Caller {
                    client: caller.client.clone(),
                    options: Options { cluster_node: Some(node), ..caller.options.clone() },
                };
                nodes.map(to_node).collect()
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

    fn connection(&self, lane: usize) -> u64 {
        self.lanes[lane].lock().connections()
    }

    fn is_connected(&self) -> bool {
        self.lanes.iter().all(|link| link.lock().client.is_connected())
    }

    fn tend(&self, stuck: bool) {
        for link in &self.lanes {
            let mut link = link.lock();
            if stuck || link.task.is_finished() {
                let connections = link.connections() + 1;
                *link = Link::start(&self.config, self.timeout, connections);
            }
        }
    }

    fn close(&self) -> BoxFuture<'static, ()> {
        let both = |link: &Mutex<Link>| {
            let link = link.lock();
            (link.client.clone(), link.task.abort_handle())
        };
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
