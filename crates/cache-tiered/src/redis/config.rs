//! The settings of the Redis tier, and what is wrong with them.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::address::Address;
use super::client::RemoteClient;
#[cfg(feature = "redis")]
use super::fred_client::{self, Fred};
use super::invalidation::PushQueue;
#[cfg(feature = "redis-rs")]
use super::redis_rs_client::RedisRs;
use crate::error::Problem;

/// The library that speaks to Redis.
///
/// Both keep the promises of the tier: they never wait for a server that is away, and reconnect by
/// themselves. Sentinels are reached through `Fred` only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum RedisClient {
    /// The crate `fred`; the default where the feature `redis` is on.
    #[cfg(feature = "redis")]
    Fred,
    /// The crate `redis`; the default where only the feature `redis-rs` is on.
    #[cfg(feature = "redis-rs")]
    RedisRs,
}

impl Default for RedisClient {
    fn default() -> Self {
        #[cfg(feature = "redis")]
        return Self::Fred;
        #[cfg(not(feature = "redis"))]
        return Self::RedisRs;
    }
}

/// How entries in memory follow what other machines change in Redis.
///
/// All machines that share a Redis should have the same. A value that was changed is in nobody's memory
/// after a round trip or two, about a millisecond in one data centre; while the connection is away, it
/// may stay there for its time to live at most, and memory is emptied when the connection is back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Coherence {
    /// By tracking where the server knows that, and by publish and subscribe where it does not.
    #[default]
    Auto,
    /// The server tells of every key that is written, removed, evicted or expired (`CLIENT TRACKING`,
    /// from Redis 6 on). Costs it a message to each machine for every change of the namespace; for a
    /// machine that stands still, they wait in the server up to its `client-output-buffer-limit`.
    Tracking,
    /// Each machine publishes the names of what it has written or removed. Of what only the server or
    /// another program does, nobody hears; in a cluster, a message that is lost between two nodes is
    /// not noticed.
    PubSub,
    /// Entries stay in memory for their time to live, whatever others do.
    Off,
}

impl Coherence {
    /// Returns the name in lower case, as metrics and configuration write it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Tracking => "tracking",
            Self::PubSub => "pubsub",
            Self::Off => "off",
        }
    }
}

/// The settings of the Redis tier.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use cache_tiered::redis::RedisConfig;
///
/// let config = RedisConfig {
///     timeout: Duration::from_millis(20),
///     ..RedisConfig::new("redis://cache:secret@redis.internal:6380/2")
/// };
/// assert!(config.validate().is_empty());
/// assert!(!format!("{config:?}").contains("secret"));
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct RedisConfig {
    /// The server: `redis://[user:password@]host[:port][/database]`.
    ///
    /// `rediss://` adds TLS, against the machine's trusted certificates, or those in the file that
    /// `SSL_CERT_FILE` names. A cluster is
    /// `redis-cluster://host:port?node=host2:port2` (`rediss-cluster://`), a server behind sentinels
    /// `redis-sentinel://host:port?sentinelServiceName=name`. `valkey` may stand for `redis`.
    pub url: String,
    /// The library that speaks to the server.
    pub client: RedisClient,
    /// What all names in Redis begin with, for all caches of one application.
    pub prefix: String,
    /// The version of the value types: caches with different ones do not see each other's entries.
    pub schema_version: u32,
    /// How a cache's memory follows what other machines change. A tier without a cache has none.
    pub coherence: Coherence,
    /// Connections, 1 or 2. One carries hundreds of thousands of gets per second; a second one lets
    /// gets pass a large value that is on its way.
    pub connections: usize,
    /// What a call may cost at most. Without an answer by then, a get is a miss.
    pub timeout: Duration,
    /// The most keys that one MGET asks for.
    pub batch: usize,
    /// The most batches of gets under way at once on one connection.
    pub in_flight: usize,
    /// The most gets that wait for a batch, per connection; beyond it a get is a miss at once.
    pub queue: usize,
    /// The most keys that are remembered because their writes failed. Beyond it, the namespace is
    /// emptied when the server is back.
    pub dirty_keys: usize,
    /// How long an entry stays at most. Entries without a TTL get this one: what [`clear`] leaves
    /// behind has to go some day.
    ///
    /// [`clear`]: super::RedisTier::clear
    pub ttl_max: Duration,
    /// The largest value that is written. The key of a larger one is deleted.
    pub value_max_bytes: usize,
    /// How many calls in a row must fail for the breaker to open.
    pub breaker_failures: u32,
    /// How long the breaker stays open at first; it doubles with every failed probe, up to four times
    /// this.
    pub breaker_open: Duration,
}

impl Default for RedisConfig {
    fn default() -> Self {
        Self {
            url: "redis://127.0.0.1:6379".to_owned(),
            client: RedisClient::default(),
            prefix: "ultra-perf".to_owned(),
            schema_version: 0,
            coherence: Coherence::default(),
            connections: 1,
            timeout: Duration::from_millis(50),
            batch: 128,
            in_flight: 2,
            queue: 4_096,
            dirty_keys: 65_536,
            ttl_max: Duration::from_secs(24 * 60 * 60),
            value_max_bytes: 8 << 20,
            breaker_failures: 5,
            breaker_open: Duration::from_millis(500),
        }
    }
}

impl RedisConfig {
    /// Makes the default configuration for the server at `url`.
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        Self { url: url.into(), ..Self::default() }
    }

    /// Returns the URL without its user name and password, fit for a log.
    #[must_use]
    pub fn redacted_url(&self) -> String {
        redacted(&self.url)
    }

    /// Returns everything that is wrong with these settings.
    #[must_use]
    pub fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if let Err(expected) = self.check_url() {
            problems.push(Problem::new("redis.url", self.redacted_url(), expected));
        }
        if self.prefix.is_empty()
            || self.prefix.len() > 128
            || self.prefix.chars().any(|c| c.is_whitespace() || c.is_control())
        {
            let expected = "must be 1 to 128 bytes without spaces";
            problems.push(Problem::new("redis.prefix", &self.prefix, expected));
        }
        let mut range = |name: &str, value: usize, (least, most): (usize, usize)| {
            if !(least..=most).contains(&value) {
                let expected = format!("must be {least} to {most}");
                problems.push(Problem::new(format!("redis.{name}"), value, expected));
            }
        };
        range("connections", self.connections, (1, 2));
        range("batch", self.batch, (1, 1_024));
        range("in_flight", self.in_flight, (1, 64));
        range("queue", self.queue, (1, 1 << 20));
        range("dirty_keys", self.dirty_keys, (1, 1 << 24));
        range("value_max_bytes", self.value_max_bytes, (1, 512 << 20));
        range("breaker_failures", self.breaker_failures as usize, (1, 1_000));
        let mut span = |name: &str, value: Duration, (least, most): (Duration, Duration)| {
            if !(least..=most).contains(&value) {
                let expected = format!("must be {least:?} to {most:?}");
                problems.push(Problem::new(
                    format!("redis.{name}"),
                    format_args!("{value:?}"),
                    expected,
                ));
            }
        };
        let (ms, s) = (Duration::from_millis(1), Duration::from_secs(1));
        span("timeout", self.timeout, (ms, 10 * s));
        span("ttl_max", self.ttl_max, (s, 366 * 24 * 60 * 60 * s));
        span("breaker_open", self.breaker_open, (10 * ms, 60 * s));
        problems
    }
}

impl RedisConfig {
    /// Says what is wrong with the URL, for the client that is to use it.
    fn check_url(&self) -> Result<(), String> {
        let address = Address::parse(&self.url)?;
        match self.client {
            #[cfg(feature = "redis")]
            RedisClient::Fred => fred_client::configuration(&address).map(drop),
            #[cfg(feature = "redis-rs")]
            RedisClient::RedisRs => RedisRs::check(&address),
        }
    }

    /// Starts the client, which begins to connect in the background.
    pub(super) fn start_client(
        &self,
        pushes: &Arc<PushQueue>,
    ) -> Result<Box<dyn RemoteClient>, String> {
        let (address, pushes) = (Address::parse(&self.url)?, Arc::clone(pushes));
        Ok(match self.client {
            #[cfg(feature = "redis")]
            RedisClient::Fred => {
                Box::new(Fred::start(fred_client::configuration(&address)?, self, pushes))
            }
            #[cfg(feature = "redis-rs")]
            RedisClient::RedisRs => {
                RedisRs::check(&address)?;
                Box::new(RedisRs::start(address, self, pushes)?)
            }
        })
    }
}

impl fmt::Debug for RedisConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisConfig")
            .field("url", &self.redacted_url())
            .field("client", &self.client)
            .field("prefix", &self.prefix)
            .field("schema_version", &self.schema_version)
            .field("coherence", &self.coherence)
            .field("connections", &self.connections)
            .field("timeout", &self.timeout)
            .field("batch", &self.batch)
            .field("in_flight", &self.in_flight)
            .field("queue", &self.queue)
            .field("dirty_keys", &self.dirty_keys)
            .field("ttl_max", &self.ttl_max)
            .field("value_max_bytes", &self.value_max_bytes)
            .field("breaker_failures", &self.breaker_failures)
            .field("breaker_open", &self.breaker_open)
            .finish()
    }
}

/// A URL without what may be secret. Works on text, because a URL that does not parse is shown too.
fn redacted(url: &str) -> String {
    let (head, query) = match url.split_once('?') {
        // An `@` behind the question mark: an unescaped `?` in a password.
        Some((head, query)) if !query.contains('@') => (head, Some(query)),
        _ => (url, None),
    };
    let (scheme, rest) = match head.split_once("://") {
        Some((scheme, rest)) => (Some(scheme), rest),
        None => (None, head),
    };
    let mut shown = scheme.map_or_else(String::new, |scheme| format!("{scheme}://"));
    match rest.rsplit_once('@') {
        Some((_, host)) => {
            shown.push_str("***@");
            shown.push_str(host);
        }
        None => shown.push_str(rest),
    }
    for (index, pair) in query.into_iter().flat_map(|query| query.split('&')).enumerate() {
        shown.push(if index == 0 { '?' } else { '&' });
        match pair.split_once('=') {
            Some((name, value)) if matches!(name, "node" | "sentinelServiceName") => {
                shown.push_str(&format!("{name}={value}"));
            }
            Some((name, _)) => shown.push_str(&format!("{name}=***")),
            None => shown.push_str(pair),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_never_shown() {
        for (url, shown) in [
            ("redis://localhost", "redis://localhost"),
            ("redis://user:secret@host:1/2", "redis://***@host:1/2"),
            ("redis://:sec@ret@host", "redis://***@host"),
            ("redis://:sec/ret?@host", "redis://***@host"),
            ("user:secret@host", "***@host"),
            ("redis-cluster://a:1?node=b:2&node=c:3", "redis-cluster://a:1?node=b:2&node=c:3"),
            (
                "redis-sentinel://a?sentinelServiceName=x&sentinelPassword=secret",
                "redis-sentinel://a?sentinelServiceName=x&sentinelPassword=***",
            ),
        ] {
            let config = RedisConfig::new(url);
            assert_eq!(config.redacted_url(), shown);
            let problems: String = config.validate().iter().map(ToString::to_string).collect();
            assert!(!format!("{config:?}{problems}").contains("secret"), "{problems}");
        }
    }

    #[test]
    fn the_defaults_have_no_problem() {
        assert_eq!(RedisConfig::default().validate(), []);
    }

    #[test]
    fn every_problem_is_reported_at_once() {
        let config = RedisConfig {
            url: "http://localhost".to_owned(),
            client: RedisClient::default(),
            prefix: String::new(),
            schema_version: 0,
            coherence: Coherence::default(),
            connections: 3,
            timeout: Duration::ZERO,
            batch: 0,
            in_flight: 0,
            queue: 0,
            dirty_keys: 0,
            ttl_max: Duration::ZERO,
            value_max_bytes: 0,
            breaker_failures: 0,
            breaker_open: Duration::ZERO,
        };
        let paths: Vec<_> = config.validate().into_iter().map(|problem| problem.path).collect();
        let expected = [
            "url",
            "prefix",
            "connections",
            "batch",
            "in_flight",
            "queue",
            "dirty_keys",
            "value_max_bytes",
            "breaker_failures",
            "timeout",
            "ttl_max",
            "breaker_open",
        ];
        assert_eq!(paths, expected.map(|name| format!("redis.{name}")));
    }
}
