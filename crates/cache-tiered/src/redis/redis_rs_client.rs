//! The client over `redis-rs`: a connection to a server, or one to each master of a cluster.
//!
//! The connections are [`Link`]s. redis-rs' own manager and cluster client are not used: they repeat
//! commands, and they do not tell when they have changed connections, on which the order of the tier's
//! writes depends.
//!
//! **Cluster.** A task keeps the map of slots ([`Cluster`]): it asks whichever node answers first, when
//! a connection has ended, when a node has said that a slot moved, and every few seconds. Commands are
//! grouped by node, one pipeline each; gets are single, because an MGET must not cross slots. A command
//! that meets a moved slot follows the server's direction once. Every change of the map counts as a
//! change of connections, and so does every direction before it is followed.
//!
//! **Pushes.** Every node is asked to track, on the connection of lane 0; messages come on a connection of
//! their own, to any one node of a cluster. Which connections were asked is remembered ([`Followed`]).

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, join_all, select_ok};
use parking_lot::Mutex;
use redis::{Cmd, Pipeline, ServerErrorKind, Value};
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use super::address::{Address, Kind};
use super::client::{Command, Fetched, Follow, Push, RemoteClient, RemoteError};
use super::invalidation::PushQueue;
use super::redis_rs_link::{Link, Settings, refused};
use super::{Coherence, Lookup, RedisConfig};

/// How often the map of slots is read at least, and at most.
const MAP_EVERY: Duration = Duration::from_secs(5);
const MAP_PAUSE: Duration = Duration::from_millis(250);
/// How long goodbye may take.
const GOODBYE: Duration = Duration::from_millis(500);

/// One or two multiplexed connections; to a cluster, that many to each of its masters.
pub(super) struct RedisRs {
    settings: Arc<Settings>,
    lanes: Vec<Lane>,
    /// The connection for messages, once it is wanted.
    subscriber: Arc<Mutex<Option<Subscriber>>>,
    pushes: Arc<PushQueue>,
    followed: Arc<Mutex<Followed>>,
}

/// A connection for messages, and where it leads.
type Subscriber = (Node, Arc<Link>);

/// The connections on which the last `follow` asked.
#[derive(Default)]
enum Followed {
    #[default]
    Nothing,
    Tracking(Seen),
    Channel(Seen),
}

type Seen = Vec<SeenLink>;

/// A link, and how many connections it has had.
struct SeenLink {
    link: Weak<Link>,
    connections: u64,
}

impl SeenLink {
    fn of(link: &Arc<Link>) -> Self {
        Self { link: Arc::downgrade(link), connections: link.connections() }
    }
}

/// The links with their connections, if all of them are up.
fn seen(links: &[Arc<Link>]) -> Option<Seen> {
    let up = !links.is_empty() && links.iter().all(|link| link.is_up());
    up.then(|| links.iter().map(SeenLink::of).collect())
}

fn are_still_up(links: &[Arc<Link>], then: &[SeenLink]) -> bool {
    let same = |(now, then): (&SeenLink, &SeenLink)| {
        now.link.ptr_eq(&then.link) && now.connections == then.connections
    };
    seen(links).is_some_and(|now| now.len() == then.len() && now.iter().zip(then).all(same))
}

#[derive(Clone)]
enum Lane {
    Server(Arc<Link>),
    Cluster(Arc<Cluster>),
}

impl RedisRs {
    /// Says what is wrong with an address, for this client.
    pub(super) fn check(address: &Address) -> Result<(), String> {
        match address.kind {
            Kind::Server | Kind::Cluster => {}
            Kind::Sentinel { .. } => {
                return Err("sentinels are reached through the client fred only".to_owned());
            }
        }
        if address.tls {
            super::tls::trusted()?;
        }
        Ok(())
    }

    /// Begins to connect, in the background, on the current runtime.
    pub(super) fn start(
        address: Address,
        tier: &RedisConfig,
        pushes: Arc<PushQueue>,
    ) -> Result<Self, String> {
        let budget = tier.timeout;
        let tls = match address.tls {
            true => Some(Arc::new(super::tls::trusted()?)),
            false => None,
        };
        // Shorter than the tier's own limit, so that the tier learns what became of each command.
        let settings = Arc::new(Settings { address, tls, timeout: budget - budget / 10 });
        let lane = |lane| {
            // The servers tell of changes on the connection that writes.
            let pushes = (lane == 0 && tier.coherence != Coherence::Off).then_some(&pushes);
            match settings.address.kind {
                Kind::Cluster => Lane::Cluster(Cluster::start(&settings, pushes)),
                Kind::Server | Kind::Sentinel { .. } => {
                    let host = settings.address.hosts[0].clone();
                    Lane::Server(Arc::new(Link::start(&settings, host, &Arc::default(), pushes)))
                }
            }
        };
        let lanes = (0..tier.connections).map(lane).collect();
        Ok(Self { settings, lanes, subscriber: Arc::default(), pushes, followed: Arc::default() })
    }
}

impl Drop for RedisRs {
    fn drop(&mut self) {
        self.lanes.iter().for_each(Lane::end);
    }
}

impl RedisRs {
    /// The connection for messages: to the server, or to a node of the cluster that is up.
    fn subscriber(&self) -> Result<Arc<Link>, RemoteError> {
        let mut subscriber = self.subscriber.lock();
        let node = match &self.lanes[0] {
            Lane::Server(_) => Some(self.settings.address.hosts[0].clone()),
            Lane::Cluster(cluster) => {
                let map = cluster.map.lock();
                let is_up = |node: &Node| map.nodes.get(node).is_some_and(|link| link.is_up());
                let same = subscriber.as_ref().map(|(node, _)| node).filter(|node| is_up(node));
                same.or_else(|| map.nodes.keys().find(|node| is_up(node))).cloned()
            }
        };
        let node = node
            .ok_or_else(|| RemoteError::Disconnected("no node of the cluster is up".to_owned()))?;
        if subscriber.as_ref().is_none_or(|(before, _)| *before != node) {
            let down = Arc::default();
            let link = Link::start(&self.settings, node.clone(), &down, Some(&self.pushes));
            *subscriber = Some((node, Arc::new(link)));
        }
        Ok(subscriber.as_ref().map(|(_, link)| Arc::clone(link)).expect("it was just set"))
    }
}

impl Lane {
    fn end(&self) {
        if let Self::Cluster(cluster) = self {
            cluster.task.lock().take().inspect(AbortHandle::abort);
        }
        for link in self.links() {
            link.end();
        }
    }

    fn links(&self) -> Vec<Arc<Link>> {
        match self {
            Self::Server(link) => vec![Arc::clone(link)],
            Self::Cluster(cluster) => cluster.links(),
        }
    }

    /// Runs commands, in this order where they go to one server; one answer for each.
    async fn run(&self, commands: Vec<(u16, Cmd)>) -> Vec<Result<Value, RemoteError>> {
        match self {
            Self::Server(link) => run_on(link, commands.into_iter().map(|(_, it)| it)).await,
            Self::Cluster(cluster) => cluster.run(commands).await,
        }
    }
}

async fn run_on(
    link: &Link,
    commands: impl ExactSizeIterator<Item = Cmd>,
) -> Vec<Result<Value, RemoteError>> {
    let wanted = commands.len();
    let mut pipeline = Pipeline::with_capacity(wanted);
    for command in commands {
        pipeline.add_command(command);
    }
    match link.send_all(&pipeline).await {
        Ok(answers) if answers.len() == wanted => answers.into_iter().map(Ok).collect(),
        Ok(_) => vec![Err(unexpected("a pipeline")); wanted],
        Err(error) => vec![Err(error); wanted],
    }
}

/// An answer without the server's errors.
fn accepted(answer: Result<Value, RemoteError>) -> Result<Value, RemoteError> {
    match answer? {
        Value::ServerError(error) => Err(refused(&error)),
        value => Ok(value),
    }
}

fn found(value: Value) -> Lookup {
    match value {
        Value::BulkString(value) => Lookup::Hit(Bytes::from(value)),
        _ => Lookup::Miss,
    }
}

fn unexpected(command: &str) -> RemoteError {
    RemoteError::Refused(format!("not an answer to {command}"))
}

fn command(name: &str, arguments: &[&[u8]]) -> Cmd {
    let bytes = arguments.iter().map(|it| it.len()).sum::<usize>() + name.len();
    let mut command = Cmd::with_capacity(arguments.len() + 1, bytes);
    command.arg(name);
    for argument in arguments {
        command.arg(*argument);
    }
    command
}

fn set(arguments: &[&[u8]], ttl: Option<Duration>) -> Cmd {
    let mut set = command("SET", arguments);
    if let Some(ttl) = ttl {
        set.arg("PX").arg(i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX).max(1));
    }
    set
}

fn write(write: &Command) -> (u16, Cmd) {
    match write {
        Command::Set { key, value, ttl } => (slot(key), set(&[key, value], *ttl)),
        Command::SetIfMissing { key, value, ttl } => (slot(key), set(&[key, value, b"NX"], *ttl)),
        Command::Delete { key } => (slot(key), command("DEL", &[key])),
        Command::Publish { channel, message } => {
            (slot(channel), command("PUBLISH", &[channel, message]))
        }
    }
}

/// Asks a server to tell of changes.
async fn track(link: &Link, prefix: &[u8]) -> Result<(), RemoteError> {
    // What is asked for already cannot be asked for again.
    let off = command("CLIENT", &[b"TRACKING", b"OFF"]);
    let on: [&[u8]; 6] = [b"TRACKING", b"ON", b"BCAST", b"PREFIX", prefix, b"NOLOOP"];
    let mut answers = run_on(link, [off, command("CLIENT", &on)].into_iter()).await;
    accepted(answers.pop().unwrap_or_else(|| Err(unexpected("CLIENT")))).map(drop)
}

async fn identity(link: &Link) -> Result<String, RemoteError> {
    let info = match accepted(link.send(&command("INFO", &[b"server"])).await)? {
        Value::BulkString(info) => String::from_utf8_lossy(&info).into_owned(),
        Value::VerbatimString { text, .. } | Value::SimpleString(text) => text,
        _ => return Err(unexpected("INFO")),
    };
    let id = info.lines().find_map(|line| line.strip_prefix("run_id:"));
    id.map(|id| id.trim().to_owned()).ok_or_else(|| unexpected("INFO"))
}

impl RemoteClient for RedisRs {
    fn get_many(&self, lane: usize, keys: Vec<Bytes>) -> BoxFuture<'static, Fetched> {
        let lane = self.lanes[lane].clone();
        async move {
            let wanted = keys.len();
            let Lane::Server(link) = &lane else {
                let gets = keys.iter().map(|key| (slot(key), command("GET", &[key]))).collect();
                let mut all = Fetched { values: Vec::with_capacity(wanted), error: None };
                for answer in lane.run(gets).await {
                    match accepted(answer) {
                        Ok(value) => all.values.push(found(value)),
                        Err(error) => {
                            all.values.push(Lookup::Unavailable);
                            all.error.get_or_insert(error);
                        }
                    }
                }
                return all;
            };
            let names: Vec<&[u8]> = keys.iter().map(|key| &key[..]).collect();
            match accepted(link.send(&command("MGET", &names)).await) {
                Ok(Value::Array(values)) if values.len() == wanted => {
                    Fetched { values: values.into_iter().map(found).collect(), error: None }
                }
                Ok(_) => Fetched::failed(wanted, unexpected("MGET")),
                Err(error) => Fetched::failed(wanted, error),
            }
        }
        .boxed()
    }

    fn run(&self, writes: Vec<Command>) -> BoxFuture<'static, Vec<Result<(), RemoteError>>> {
        let lane = self.lanes[0].clone();
        async move {
            let answers = lane.run(writes.iter().map(write).collect()).await;
            answers.into_iter().map(|answer| accepted(answer).map(drop)).collect()
        }
        .boxed()
    }

    fn eval(
        &self,
        script: &'static str,
        key: Bytes,
        arguments: Vec<Bytes>,
    ) -> BoxFuture<'static, Result<Vec<Bytes>, RemoteError>> {
        let lane = self.lanes[0].clone();
        async move {
            let mut all: Vec<&[u8]> = vec![script.as_bytes(), b"1", &key];
            all.extend(arguments.iter().map(|argument| &argument[..]));
            let mut answers = lane.run(vec![(slot(&key), command("EVAL", &all))]).await;
            let answer = answers.pop().unwrap_or_else(|| Err(unexpected("EVAL")));
            let Value::Array(strings) = accepted(answer)? else { return Err(unexpected("EVAL")) };
            let text = |value| match value {
                Value::BulkString(text) => Ok(Bytes::from(text)),
                _ => Err(unexpected("EVAL")),
            };
            strings.into_iter().map(text).collect()
        }
        .boxed()
    }

    fn servers(&self, lane: usize) -> BoxFuture<'static, Result<Vec<String>, RemoteError>> {
        let mut links = self.lanes[lane].links();
        // A node that is away is identified when it is back, on its new connection.
        links.retain(|link| link.is_up());
        async move {
            if links.is_empty() {
                return Err(RemoteError::Disconnected("no connection".to_owned()));
            }
            let identities = join_all(links.iter().map(|link| identity(link))).await;
            match identities.into_iter().collect() {
                // Whoever may not ask who the server is has to do without.
                Err(RemoteError::Refused(_)) => Ok(Vec::new()),
                identities => identities,
            }
        }
        .boxed()
    }

    fn follow(&self, follow: Follow) -> BoxFuture<'static, Result<(), RemoteError>> {
        let followed = Arc::clone(&self.followed);
        *followed.lock() = Followed::Nothing;
        let away = || RemoteError::Disconnected("the nodes are coming and going".to_owned());
        match follow {
            Follow::Tracking { prefix } => {
                let subscriber = Arc::clone(&self.subscriber);
                let lane = self.lanes[0].clone();
                async move {
                    let links = lane.links();
                    let before = seen(&links).ok_or_else(away)?;
                    let asked = join_all(links.iter().map(|link| track(link, &prefix))).await;
                    asked.into_iter().collect::<Result<(), _>>()?;
                    if !are_still_up(&lane.links(), &before) {
                        return Err(away());
                    }
                    *followed.lock() = Followed::Tracking(before);
                    // From a time when the server did not track.
                    subscriber.lock().take();
                    Ok(())
                }
                .boxed()
            }
            Follow::Channel { name } => {
                let subscriber = self.subscriber();
                async move {
                    let link = [subscriber?];
                    let before = seen(&link).ok_or_else(away)?;
                    accepted(link[0].send(&command("SUBSCRIBE", &[&name])).await)?;
                    if !are_still_up(&link, &before) {
                        return Err(away());
                    }
                    *followed.lock() = Followed::Channel(before);
                    Ok(())
                }
                .boxed()
            }
        }
    }

    fn is_following(&self) -> bool {
        match &*self.followed.lock() {
            Followed::Nothing => false,
            Followed::Tracking(then) => are_still_up(&self.lanes[0].links(), then),
            Followed::Channel(then) => {
                let link = self.subscriber.lock().as_ref().map(|(_, link)| Arc::clone(link));
                link.is_some_and(|link| are_still_up(&[link], then))
            }
        }
    }

    fn connection(&self, lane: usize) -> u64 {
        match &self.lanes[lane] {
            Lane::Server(link) => link.connections(),
            Lane::Cluster(cluster) => cluster.connections(),
        }
    }

    fn is_connected(&self) -> bool {
        self.lanes.iter().all(|lane| {
            let links = lane.links();
            !links.is_empty() && links.iter().all(|link| link.is_up())
        })
    }

    fn tend(&self, stuck: bool) {
        if stuck {
            let subscriber = self.subscriber.lock().as_ref().map(|(_, link)| Arc::clone(link));
            for link in self.lanes.iter().flat_map(Lane::links).chain(subscriber) {
                link.give_up();
            }
        }
    }

    fn close(&self) -> BoxFuture<'static, ()> {
        let lanes = self.lanes.clone();
        self.subscriber.lock().take();
        async move {
            let links: Vec<_> = lanes.iter().flat_map(Lane::links).collect();
            let quit = command("QUIT", &[]);
            // A server that does not take its leave is left without.
            let _ = timeout(GOODBYE, join_all(links.iter().map(|link| link.send(&quit)))).await;
            lanes.iter().for_each(Lane::end);
        }
        .boxed()
    }
}

/// Connections to all masters of a cluster, and which of them has which slots.
struct Cluster {
    settings: Arc<Settings>,
    map: Mutex<Map>,
    /// The map may be out of date.
    stale: Arc<Notify>,
    /// Where what the nodes tell goes.
    pushes: Option<Arc<PushQueue>>,
    task: Mutex<Option<AbortHandle>>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.task.get_mut().take().inspect(AbortHandle::abort);
    }
}

#[derive(Default)]
struct Map {
    /// By the first of their slots.
    ranges: BTreeMap<u16, Range>,
    nodes: BTreeMap<Node, Arc<Link>>,
    /// Changes of this map, and the connections of the nodes that have left it.
    changes: u64,
}

type Node = (String, u16);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Range {
    last: u16,
    node: Node,
}

impl Map {
    fn link(&self, slot: u16) -> Option<&Arc<Link>> {
        let (_, range) = self.ranges.range(..=slot).next_back()?;
        self.nodes.get(&range.node).filter(|_| slot <= range.last)
    }
}

/// Where a server sends a command that came to the wrong node.
enum Direction {
    Moved(Node),
    Ask(Node),
}

/// Reads a direction such as `MOVED 3999 127.0.0.1:6381`.
fn direction(answer: &Value) -> Option<Direction> {
    let Value::ServerError(error) = answer else { return None };
    let kind = error.kind()?;
    let place = error.details()?.split_ascii_whitespace().nth(1)?;
    let (host, port) = place.rsplit_once(':')?;
    let node = (host.to_owned(), port.parse().ok()?);
    match kind {
        ServerErrorKind::Moved => Some(Direction::Moved(node)),
        ServerErrorKind::Ask => Some(Direction::Ask(node)),
        _ => None,
    }
}

impl Cluster {
    fn start(settings: &Arc<Settings>, pushes: Option<&Arc<PushQueue>>) -> Arc<Self> {
        let cluster = Arc::new(Self {
            settings: Arc::clone(settings),
            pushes: pushes.map(Arc::clone),
            map: Mutex::default(),
            stale: Arc::default(),
            task: Mutex::default(),
        });
        let weak = Arc::downgrade(&cluster);
        let stale = Arc::clone(&cluster.stale);
        let keep = async move {
            loop {
                let Some(cluster) = weak.upgrade() else { return };
                match cluster.read_map().await {
                    Ok(ranges) => cluster.adopt(ranges),
                    Err(error) => tracing::debug!(%error, "cannot read the map of a redis cluster"),
                }
                drop(cluster);
                sleep(MAP_PAUSE).await;
                // Either way there is nothing to do but to read it again.
                let _ = timeout(MAP_EVERY, stale.notified()).await;
            }
        };
        *cluster.task.lock() = Some(tokio::spawn(keep).abort_handle());
        cluster
    }

    fn links(&self) -> Vec<Arc<Link>> {
        self.map.lock().nodes.values().cloned().collect()
    }

    fn connections(&self) -> u64 {
        let map = self.map.lock();
        map.changes + map.nodes.values().map(|link| link.connections()).sum::<u64>()
    }

    /// Asks all nodes that are connected, or else all in the URL, and takes the first answer.
    async fn read_map(&self) -> Result<BTreeMap<u16, Range>, RemoteError> {
        let ask = command("CLUSTER", &[b"SLOTS"]);
        let ask = &ask;
        let nodes: Vec<_> = {
            let map = self.map.lock();
            let up = map.nodes.iter().filter(|(_, link)| link.is_up());
            up.map(|(node, link)| (node.clone(), Arc::clone(link))).collect()
        };
        if !nodes.is_empty() {
            let answers = nodes.iter().map(|(node, link)| {
                let answer = async move { ranges(accepted(link.send(ask).await)?, &node.0) };
                answer.boxed()
            });
            if let Ok((ranges, _)) = select_ok(answers).await {
                return Ok(ranges);
            }
        }
        let answers = self.settings.address.hosts.iter().map(|host| {
            let answer = async move {
                let (mut connection, driver) = self.settings.connect(host, None).await?;
                let answer = async {
                    let answer = connection.send_packed_command(ask).await;
                    answer.map_err(|error| RemoteError::Disconnected(error.to_string()))
                };
                let answer = tokio::select! {
                    answer = timeout(self.settings.timeout.max(MAP_PAUSE), answer) => answer,
                    () = driver => return Err(unexpected("CLUSTER SLOTS")),
                };
                ranges(accepted(answer.map_err(|_| RemoteError::Timeout)?)?, &host.0)
            };
            answer.boxed()
        });
        select_ok(answers).await.map(|(ranges, _)| ranges)
    }

    fn adopt(&self, ranges: BTreeMap<u16, Range>) {
        let mut map = self.map.lock();
        if map.ranges == ranges {
            return;
        }
        let mut nodes = BTreeMap::new();
        let mut others = false;
        for range in ranges.values() {
            nodes.entry(range.node.clone()).or_insert_with(|| {
                map.nodes.remove(&range.node).unwrap_or_else(|| {
                    others = true;
                    let (node, pushes) = (range.node.clone(), self.pushes.as_ref());
                    Arc::new(Link::start(&self.settings, node, &self.stale, pushes))
                })
            });
        }
        if let Some(pushes) = self.pushes.as_ref().filter(|_| others) {
            // The new ones have not been asked to tell.
            pushes.push(Push::Lost);
        }
        // The count only grows: what the nodes that left have counted stays in it. One of their
        // connections may be counted just now; it carries nothing.
        let left: u64 = map.nodes.values().map(|link| link.connections()).sum();
        map.changes += 1 + left;
        map.nodes = nodes;
        map.ranges = ranges;
    }

    async fn run(&self, commands: Vec<(u16, Cmd)>) -> Vec<Result<Value, RemoteError>> {
        let nobody = || RemoteError::Disconnected("no node has the slot".to_owned());
        let mut answers: Vec<_> = commands.iter().map(|_| Err(nobody())).collect();
        // By the address of the link: the order between nodes means nothing.
        let mut parts: BTreeMap<usize, (Arc<Link>, Vec<usize>)> = BTreeMap::new();
        {
            let map = self.map.lock();
            for (index, (slot, _)) in commands.iter().enumerate() {
                if let Some(link) = map.link(*slot) {
                    let part = || (Arc::clone(link), Vec::new());
                    parts.entry(Arc::as_ptr(link).addr()).or_insert_with(part).1.push(index);
                }
            }
        }
        let commands = &commands;
        let parts = parts.into_values().map(|(link, indices)| async move {
            let part = indices.iter().map(|index| commands[*index].1.clone());
            let answers = run_on(&link, part).await;
            let redirected = indices.into_iter().zip(answers).map(|(index, answer)| async move {
                match answer {
                    Ok(answer) => (index, self.follow(&commands[index].1, answer).await),
                    Err(error) => (index, Err(error)),
                }
            });
            join_all(redirected).await
        });
        for (index, answer) in join_all(parts).await.into_iter().flatten() {
            answers[index] = answer;
        }
        if answers.iter().any(|it| matches!(it, Err(RemoteError::Disconnected(_)))) {
            self.stale.notify_one();
        }
        answers
    }

    /// Follows the direction in an answer, if there is one.
    async fn follow(&self, command: &Cmd, answer: Value) -> Result<Value, RemoteError> {
        let Some(direction) = direction(&answer) else { return Ok(answer) };
        let (Direction::Moved(node) | Direction::Ask(node)) = &direction;
        let link = {
            let mut map = self.map.lock();
            map.changes += 1;
            map.nodes.get(node).cloned()
        };
        self.stale.notify_one();
        let Some(link) = link else {
            let (host, port) = node;
            return Err(RemoteError::Disconnected(format!("{host}:{port} is a new node")));
        };
        match direction {
            Direction::Moved(_) => link.send(command).await,
            Direction::Ask(_) => {
                let asking = [self::command("ASKING", &[]), command.clone()];
                let mut answers = run_on(&link, asking.into_iter()).await;
                answers.pop().unwrap_or_else(|| Err(unexpected("ASKING")))
            }
        }
    }
}

/// Reads the answer to `CLUSTER SLOTS`: the masters only. A node without a host is the one asked.
fn ranges(answer: Value, asked: &str) -> Result<BTreeMap<u16, Range>, RemoteError> {
    let wrong = || unexpected("CLUSTER SLOTS");
    let Value::Array(entries) = answer else { return Err(wrong()) };
    let mut ranges = BTreeMap::new();
    for entry in entries {
        let Value::Array(entry) = entry else { return Err(wrong()) };
        let [Value::Int(first), Value::Int(last), Value::Array(master), ..] = &entry[..] else {
            return Err(wrong());
        };
        let [host, Value::Int(port), ..] = &master[..] else { return Err(wrong()) };
        let host = match host {
            Value::BulkString(host) => String::from_utf8_lossy(host).into_owned(),
            Value::SimpleString(host) => host.clone(),
            _ => String::new(),
        };
        let host = if host.is_empty() { asked.to_owned() } else { host };
        let number = |number: &i64| u16::try_from(*number).map_err(|_| wrong());
        let range = Range { last: number(last)?, node: (host, number(port)?) };
        ranges.insert(number(first)?, range);
    }
    match ranges.is_empty() {
        true => Err(RemoteError::Refused("the cluster has no slots".to_owned())),
        false => Ok(ranges),
    }
}

/// The slot of a key: CRC-16 of the key, or of what stands between its first braces.
fn slot(key: &[u8]) -> u16 {
    let tag = key.iter().position(|byte| *byte == b'{').and_then(|open| {
        let rest = &key[open + 1..];
        let close = rest.iter().position(|byte| *byte == b'}')?;
        Some(&rest[..close]).filter(|tag| !tag.is_empty())
    });
    crc16(tag.unwrap_or(key)) % 16_384
}

/// CRC-16 as XMODEM has it.
fn crc16(bytes: &[u8]) -> u16 {
    const TABLE: [u16; 256] = {
        let mut table = [0; 256];
        let mut index = 0;
        while index < 256 {
            let mut crc = (index as u16) << 8;
            let mut bit = 0;
            while bit < 8 {
                crc = if crc & 0x8000 == 0 { crc << 1 } else { crc << 1 ^ 0x1021 };
                bit += 1;
            }
            table[index] = crc;
            index += 1;
        }
        table
    };
    bytes.iter().fold(0, |crc, byte| {
        let index = usize::from((crc >> 8) as u8 ^ byte);
        crc << 8 ^ TABLE[index]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_what_redis_says() {
        for (key, expected) in [
            ("123456789", 0x31c3),
            ("", 0),
            ("foo", 12_182),
            ("{foo}bar", 12_182),
            ("x{foo}{bar}", 12_182),
            ("foo{}{bar}", 8_363),
        ] {
            assert_eq!(slot(key.as_bytes()), expected, "{key}");
        }
        #[cfg(feature = "redis")]
        for _ in 0..1_000 {
            let key: Vec<u8> =
                std::iter::repeat_with(|| fastrand::choice(b"{}ab\xff").copied().unwrap())
                    .take(fastrand::usize(..12))
                    .collect();
            assert_eq!(slot(&key), fred::util::redis_keyslot(&key), "{key:?}");
        }
    }

    fn entry(first: i64, last: i64, host: &str, port: i64) -> Value {
        let text = |text: &str| Value::BulkString(text.into());
        let node = Value::Array(vec![text(host), Value::Int(port), text("id")]);
        Value::Array(vec![Value::Int(first), Value::Int(last), node.clone(), node])
    }

    #[test]
    fn the_map_of_a_cluster_is_read_and_nonsense_is_refused() {
        let answer = Value::Array(vec![entry(8_192, 16_383, "", 2), entry(0, 8_191, "a", 1)]);
        let map = ranges(answer, "asked").unwrap();
        let told: Vec<_> = map
            .iter()
            .map(|(first, it)| (*first, it.last, it.node.0.as_str(), it.node.1))
            .collect();
        assert_eq!(told, [(0, 8_191, "a", 1), (8_192, 16_383, "asked", 2)]);
        for wrong in [
            Value::Nil,
            Value::Array(Vec::new()),
            Value::Array(vec![Value::Nil]),
            Value::Array(vec![Value::Array(vec![Value::Int(0), Value::Int(1)])]),
            Value::Array(vec![entry(0, 70_000, "a", 1)]),
            Value::Array(vec![entry(-1, 1, "a", 1)]),
        ] {
            assert!(ranges(wrong.clone(), "asked").is_err(), "{wrong:?}");
        }
    }
}
