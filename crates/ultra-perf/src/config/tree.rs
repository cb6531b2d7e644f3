//! The keys: one entry per key makes the field, its parser, default, bounds, aliases and reference.
//!
//! To add a key, add its entry here and run the tests with `UPDATE=1`, which rewrites the
//! configuration reference of the documentation.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::Value;

use super::{
    backend::{Backends, zone_name},
    change::Effect,
    machine::Machine,
    quantity::ByteSize,
    secret::{KeySources, SigningKey},
    setting::{
        Admission, Balancing, BreakerMode, Coherence, CompressionMethod, DiskEngine, Fsync,
        KeyType, LogFilter, LogFormat, LowerTier, MemoryEngine, OptimizationLevel, Policy, Raw,
        Share, WritePolicy,
    },
    url::RedisUrl,
};

/// What is known of one key apart from its type.
pub(super) struct Key {
    pub(super) path: &'static str,
    /// The doc comment of its field.
    pub(super) doc: &'static str,
    pub(super) default: DefaultValue,
    pub(super) aliases: &'static [Alias],
    pub(super) kind: fn() -> String,
    pub(super) label: fn() -> String,
    /// The bounds of its value, in the spelling of a source.
    pub(super) least: Option<&'static str>,
    pub(super) most: Option<&'static str>,
    /// Reads a value and drops it; the error says what would be right.
    pub(super) check: fn(&Raw) -> Result<(), String>,
    pub(super) redact: fn(&str) -> String,
    /// The JSON Schema of a value within the bounds, and a value as JSON.
    pub(super) schema: fn(Option<&str>, Option<&str>) -> Value,
    pub(super) json: fn(&Raw) -> Value,
    pub(super) effect: Effect,
}

/// What a key is when no source names it.
pub(super) enum DefaultValue {
    Fixed(&'static str),
    /// Depends on the machine or the build; the text says how.
    Computed(&'static str, fn(&Context) -> String),
}

/// What computed defaults depend on.
#[derive(Clone, Debug)]
pub(super) struct Context {
    pub(super) machine: Machine,
    pub(super) parts: Parts,
}

/// The optional parts that this build has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parts {
    pub(super) disk: bool,
    pub(super) sled: bool,
    pub(super) redis: bool,
    pub(super) lz4: bool,
    pub(super) encryption: bool,
    pub(super) memory: bool,
    pub(super) monitor: bool,
}

impl Parts {
    #[cfg(test)]
    pub(super) const ALL: Self = Self {
        disk: true,
        sled: true,
        redis: true,
        lz4: true,
        encryption: true,
        memory: true,
        monitor: true,
    };

    pub(super) const fn compiled() -> Self {
        Self {
            disk: cfg!(feature = "disk"),
            sled: cfg!(feature = "sled"),
            redis: cfg!(feature = "redis"),
            lz4: cfg!(feature = "lz4"),
            encryption: cfg!(feature = "encryption"),
            memory: cfg!(feature = "memory"),
            monitor: cfg!(feature = "monitor"),
        }
    }
}

/// Another name of a key, known in the environment.
pub(super) struct Alias {
    pub(super) name: &'static str,
    pub(super) reading: Reading,
}

/// How an alias's value becomes the key's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    Plain,
    /// A bare number counts such units.
    Unit(&'static str),
    /// Likewise seconds, lowered to this number of them.
    SecondsAtMost(usize),
    /// A number that is lowered to this one.
    AtMost(usize),
    /// A bare number is a port of this machine alone.
    Port,
    /// True or false, which stand for these two values. True gives way to another name of the key.
    Switch {
        on: &'static str,
        off: &'static str,
    },
}

const fn first(bound: &[&'static str]) -> Option<&'static str> {
    if let [bound, ..] = bound { Some(*bound) } else { None }
}

/// What was said of a key, which is `Restart` if nothing was.
const fn effect(said: &[Effect]) -> Effect {
    if let [effect, ..] = said { *effect } else { Effect::Restart }
}

const fn plain(name: &'static str) -> Alias {
    Alias { name, reading: Reading::Plain }
}

const fn seconds(name: &'static str) -> Alias {
    Alias { name, reading: Reading::Unit("s") }
}

const fn counted(unit: &'static str, name: &'static str) -> Alias {
    Alias { name, reading: Reading::Unit(unit) }
}

const fn switch(name: &'static str, on: &'static str, off: &'static str) -> Alias {
    Alias { name, reading: Reading::Switch { on, off } }
}

const fn lowered_to(most: usize, name: &'static str) -> Alias {
    Alias { name, reading: Reading::AtMost(most) }
}

/// A section of the tree, as the reference shows it.
pub(super) struct Section {
    pub(super) name: &'static str,
    pub(super) doc: &'static str,
    pub(super) keys: &'static [Key],
}

/// Gives a key its effective value while the tree is put together.
pub(super) trait Resolve {
    fn value<T: KeyType>(&mut self, key: &'static Key, read: fn(&Raw) -> Result<T, String>) -> T;
}

macro_rules! section {
    (
        $(#[doc = $section_doc:literal])+
        $Section:ident = $name:literal {
            $(
                $(#[doc = $doc:literal])+
                $field:ident: $ty:ty = $default:expr
                    $(, from $least:literal)?
                    $(, to $most:literal)?
                    $(, check $check:expr)?
                    $(, alias [$($alias:expr),+])?
                    $(, effect $effect:ident)?;
            )+
        }
        $(with { $($sub:ident: $Sub:ident,)+ })?
    ) => {
        $(#[doc = $section_doc])+
        #[derive(Clone, Debug)]
        #[non_exhaustive]
        pub struct $Section {
            $($(#[doc = $doc])+ pub $field: $ty,)+
            $($(
                #[doc = concat!("The section `", $name, ".", stringify!($sub), "`.")]
                pub $sub: $Sub,
            )+)?
        }

        impl $Section {
            pub(super) const SECTION: Section = Section {
                name: $name,
                doc: concat!($($section_doc, "\n"),+),
                keys: Self::KEYS,
            };

            pub(super) const KEYS: &'static [Key] = &[$(Key {
                path: concat!($name, ".", stringify!($field)),
                doc: concat!($($doc, "\n"),+),
                default: $default,
                aliases: &[$($($alias),+)?],
                kind: <$ty as KeyType>::kind,
                label: <$ty as KeyType>::label,
                least: first(&[$($least)?]),
                most: first(&[$($most)?]),
                check: |raw| readers::$Section::$field(raw).map(drop),
                redact: <$ty as KeyType>::redact,
                schema: <$ty as KeyType>::schema,
                json: json_of::<$ty>,
                effect: effect(&[$(Effect::$effect)?]),
            }),+];

            pub(super) fn resolve(from: &mut impl Resolve) -> Self {
                let mut keys = Self::KEYS.iter();
                let mut next = || keys.next().expect("one key per field, in the same order");
                Self {
                    $($field: from.value(next(), readers::$Section::$field),)+
                    $($($sub: $Sub::resolve(from),)+)?
                }
            }

            /// Calls `row` with each key that `other` has differently, and its two values.
            pub(super) fn compare(
                &self,
                other: &Self,
                row: &mut dyn FnMut(&'static Key, [String; 2]),
            ) {
                let mut keys = Self::KEYS.iter();
                let mut next = || keys.next().expect("one key per field, in the same order");
                $({
                    let key = next();
                    if self.$field != other.$field {
                        row(key, [&self.$field, &other.$field].map(KeyType::show));
                    }
                })+
                $($(self.$sub.compare(&other.$sub, row);)+)?
            }

            pub(super) fn show(&self, row: &mut dyn FnMut(&'static Key, String)) {
                let mut keys = Self::KEYS.iter();
                let mut next = || keys.next().expect("one key per field, in the same order");
                $(row(next(), KeyType::show(&self.$field));)+
                $($(self.$sub.show(row);)+)?
            }
        }

        impl readers::$Section {
            $(fn $field(raw: &Raw) -> Result<$ty, String> {
                let value = <$ty as KeyType>::read(raw)?;
                $(at_least(&value, $least)?;)?
                $(at_most(&value, $most)?;)?
                $(let check: fn(&$ty) -> Result<(), String> = $check; check(&value)?;)?
                Ok(value)
            })+
        }
    };
}

impl Default for CacheSettings {
    /// Has nothing otherwise.
    fn default() -> Self {
        Self {
            ttl: None,
            entries: None,
            capacity: None,
            policy: None,
            stale_while_revalidate: None,
            stale_if_error: None,
            early_refresh: None,
            negative_ttl: None,
            prefetch: None,
        }
    }
}

/// Carries the reading functions, one name space per section.
mod readers {
    pub(super) struct Server;
    pub(super) struct Balancer;
    pub(super) struct Breaker;
    pub(super) struct ResponseCache;
    pub(super) struct Cache;
    pub(super) struct Encryption;
    pub(super) struct Memory;
    pub(super) struct Disk;
    pub(super) struct Redis;
    pub(super) struct CacheSettings;
    pub(super) struct ProcessMemory;
    pub(super) struct Scheduler;
    pub(super) struct SchedulerIo;
    pub(super) struct SchedulerCpu;
    pub(super) struct SchedulerBlocking;
    pub(super) struct Monitor;
    pub(super) struct MonitorHistory;
    pub(super) struct Advice;
    pub(super) struct Targets;
    pub(super) struct Log;
}

use DefaultValue::{Computed, Fixed};

/// What stands above all sections.
const TOP: Section = Section {
    name: "",
    doc: "It stands above all sections of a file.",
    keys: &[Key {
        path: "level",
        doc: "Chooses the defaults of the keys that [levels](levels.md) lists; what a source sets wins.",
        default: Fixed("advanced"),
        aliases: &[],
        kind: <OptimizationLevel as KeyType>::kind,
        label: <OptimizationLevel as KeyType>::label,
        least: None,
        most: None,
        check: |raw| <OptimizationLevel as KeyType>::read(raw).map(drop),
        redact: <OptimizationLevel as KeyType>::redact,
        schema: <OptimizationLevel as KeyType>::schema,
        json: json_of::<OptimizationLevel>,
        effect: Effect::Live,
    }],
};

/// The key that chooses what others are when no source names them.
pub(super) const LEVEL: &Key = &TOP.keys[0];

section! {
    /// The proxy: addresses, time-outs and limits.
    Server = "server" {
        /// Backends that are made fast; `ultra-perf serve` needs one. Each is a URL, which may be
        /// followed by `,weight=N`, `,max=N` (requests at a time), `,zone=NAME` and `,priority=N`; in
        /// a file also a list of such texts, or a table `[[backend]]` for each, with `url`, `weight`,
        /// `max_in_flight`, `zone` and `priority`.
        to: Option<Backends> = Fixed("none");
        /// Address on which clients are served. Port 0 takes a free one.
        listen: SocketAddr = Fixed("127.0.0.1:8080");
        /// Address of the admin API; it must be a loopback address.
        admin: SocketAddr = Fixed("127.0.0.1:8600"), check loopback;
        /// Address that answers `/metrics` alone, for a Prometheus that scrapes from elsewhere.
        /// The admin API answers it in any case.
        metrics_listen: Option<SocketAddr> = Fixed("none"),
            alias [
                switch("ENABLE_PROMETHEUS", "127.0.0.1:8000", "none"),
                Alias { name: "PROMETHEUS_PORT", reading: Reading::Port }
            ];
        /// Compresses answers for clients that accept it, where the backend has not.
        compression: bool = Fixed("true"), alias [plain("enable_api_compression")];
        /// Longest time that a shutdown waits for requests in flight.
        drain_timeout: Duration = Fixed("10s");
        /// Longest time for a connection to the backend to be made.
        connect_timeout: Duration = Fixed("2s"), from "1ms";
        /// Longest time from a request to the head of the backend's answer.
        response_timeout: Duration = Fixed("30s"), from "1ms";
        /// Longest silence on a connection that is kept open, and between two parts of a body.
        idle_timeout: Duration = Fixed("60s"), from "1ms";
        /// Longest time for a client to send the head of its request.
        header_timeout: Duration = Fixed("10s"), from "1ms";
        /// Largest head of a request or an answer.
        max_header_bytes: ByteSize = Fixed("64KiB"), from "8KiB", to "1MiB";
        /// Largest body of a request; an answer may have any length.
        max_body: Option<ByteSize> = Fixed("64MiB"), from "1B";
        /// Most client connections at a time. More wait in the listener's queue.
        max_connections: usize = Fixed("10000"), from "1", to "1000000";
        /// Most connections to each backend, busy and idle together, and so most requests that it
        /// gets at a time, unless it has a limit of its own.
        upstream_connections: usize = Fixed("256"), from "1", to "65536";
        /// Sends the client's `Host` field on, so that redirects, cookies and checks of the origin
        /// in the backend keep working. `false` sends the backend's own name.
        preserve_host: bool = Fixed("true");
        /// Threads that serve requests.
        workers: usize = Computed(
            "the number of cores",
            |cx| cx.machine.cores.clamp(1, 1024).to_string(),
        ), from "1", to "1024";
    }
}

section! {
    /// How requests are spread over the backends, and what happens when one fails or all are full.
    Balancer = "balancer" {
        /// Which backend is next. `peak-ewma` compares latency times requests in flight;
        /// `ring-hash` and `maglev` place requests by their target.
        policy: Balancing = Fixed("peak-ewma"), effect Live;
        /// Backends that `least-request` compares, and `peak-ewma` where there are more than 16.
        choices: usize = Fixed("5"), from "2", to "256", effect Live;
        /// Time over which `peak-ewma` forgets that a backend was slow.
        decay: Duration = Fixed("1s"), from "10ms", to "1h", effect Live;
        /// Zone of this server. Backends in it go first while half of them are ready.
        zone: Option<String> = Fixed("none"), check |zone| {
            zone.as_deref().map_or(Ok(()), zone_name)
        };
        /// Most requests that wait while all backends are full; the next one is answered 503.
        queue: usize = Fixed("4096"), to "1000000";
        /// Longest wait of a request while all backends are full.
        queue_timeout: Duration = Fixed("10s"), from "1ms", to "1h";
        /// Most times that a request is sent again, each time to another backend: after a failure or
        /// a 502, 503 or 504 if its method is idempotent and its body is empty, and any request that
        /// was certainly not sent.
        retries: usize = Fixed("2"), to "10";
        /// Share of the requests of the last 10 seconds that may be sent again or hedged, beside 3
        /// in a second that always may.
        retry_budget: Share = Fixed("0.2");
        /// Takes a backend that fails out of the traffic for a while.
        eject: bool = Fixed("true");
        /// Failures in a row that eject a backend; 0 is off.
        eject_failures: usize = Fixed("5"), to "1000000";
        /// Length of the first ejection, of which up to a half is left off at random. Each further
        /// one is twice as long.
        eject_time: Duration = Fixed("10s"), from "1ms", to "1d";
        /// Longest ejection.
        eject_time_max: Duration = Fixed("5m"), from "1ms", to "1d";
        /// Largest share of the backends that is ejected at a time; one of several always may be.
        eject_share: Share = Fixed("0.3");
        /// Time over which a backend that comes back gets its share of the traffic again.
        slow_start: Duration = Fixed("0s"), to "1d";
        /// Share of healthy backends below which ejections and checks are ignored; 0 is off.
        panic_threshold: Share = Fixed("0.5");
        /// Sends a GET or HEAD to a second backend as well when the first takes longer than this
        /// share of the answers, as in `0.95`.
        hedge: Option<Share> = Fixed("none"), from "0.5", to "0.999";
        /// Keeps the clients of answers that are not cached on their backend, by a signed cookie.
        sticky: bool = Fixed("false");
        /// Name of that cookie.
        sticky_cookie: String = Fixed("ultra-perf-backend"), check |name| cookie_name(name);
        /// Key that signs it, as `env:NAME`, `file:PATH`, `hex:...` or `base64:...` with 32 random
        /// bytes; without one a key is drawn at each start. Servers that share clients need the same.
        sticky_key: Option<SigningKey> = Fixed("none");
        /// Path that is asked of each backend as an active check: a status from 200 to 399 is well.
        /// Backends count as well until their checks say otherwise.
        check_path: Option<String> = Fixed("none"), check |path| {
            path.as_deref().map_or(Ok(()), absolute_path)
        };
        /// Time between two checks of a backend, give or take a tenth.
        check_interval: Duration = Fixed("5s"), from "10ms", to "1h";
        /// Longest time for the answer to a check.
        check_timeout: Duration = Fixed("2s"), from "1ms", to "1h";
        /// Good checks in a row until a backend is well.
        check_rise: usize = Fixed("2"), from "1", to "1000";
        /// Bad checks in a row until it is down.
        check_fall: usize = Fixed("3"), from "1", to "1000";
    }
    with { breaker: Breaker, }
}

section! {
    /// The circuit breaker of each backend. While it is open, the backend gets nothing; then one
    /// request after the other finds out whether it is back.
    Breaker = "balancer.breaker" {
        /// Uses the breakers; `auto` does where there are several backends.
        mode: BreakerMode = Fixed("auto"),
            alias [switch("enable_circuit_breakers", "auto", "off")];
        /// Failures in a row that open it; 0 is off.
        failures: usize = Fixed("5"), to "1000000";
        /// Share of failures in the window that opens it.
        failure_rate: Share = Fixed("0.5"), from "0.01";
        /// Window of the rates.
        window: Duration = Fixed("10s"), from "10ms", to "1h";
        /// Requests in the window without which a rate says nothing.
        minimum_requests: usize = Fixed("20"), from "1", to "1000000";
        /// Time to the head of an answer from which on a request counts as slow.
        slow: Option<Duration> = Fixed("none"), from "1ms", to "1h";
        /// Share of slow requests in the window that opens it.
        slow_rate: Share = Fixed("0.8"), from "0.01";
        /// Length of the first opening, of which up to three quarters are left off at random. Each
        /// further one is twice as long.
        open_time: Duration = Fixed("1s"), from "1ms", to "1d";
        /// Longest opening.
        open_time_max: Duration = Fixed("1m"), from "1ms", to "1d";
    }
}

section! {
    /// The cache of HTTP responses.
    ResponseCache = "response_cache" {
        /// Stores responses at all. `false` makes a plain proxy.
        enabled: bool = Fixed("true"), alias [plain("ENABLE_PERFORMANCE_OPTIMIZATION")];
        /// Largest body that is stored; at most `cache.memory.capacity`.
        max_body: ByteSize = Computed(
            "`8MiB`, or `cache.memory.capacity` if that is less",
            |_| "8MiB".to_owned(),
        ), from "1B";
        /// Gives a response without any freshness information a tenth of the time since it was
        /// last modified.
        heuristics: bool = Fixed("true");
        /// Time after its end of freshness in which a response is still served while it is
        /// refreshed, if it names none itself.
        stale_while_revalidate: Duration = Fixed("0s"), effect Live;
        /// Time after its end of freshness in which a response stands in for an error of the
        /// backend, if it names none itself.
        stale_if_error: Duration = Fixed("0s"), effect Live;
        /// Time after its end of freshness in which a response is kept, to be revalidated instead
        /// of sent again.
        keep: Duration = Fixed("1h");
        /// Longest wait for another request's answer to the same question, before the backend is
        /// asked as well.
        coalesce_timeout: Duration = Fixed("10s");
    }
}

section! {
    /// The tiers that every cache of the process stands on.
    Cache = "cache" {
        /// Time to live of an entry that names none.
        ttl: Duration = Fixed("1h"), from "1ms",
            alias [seconds("PERFORMANCE_CACHE_TTL"), seconds("cache_ttl")], effect Live;
        /// Percent by which each time to live is shortened at random, at most, so that what came
        /// together is not fetched again together.
        ttl_jitter: usize = Fixed("0"), to "100";
        /// How memory chooses what to keep; `adaptive` follows the one that does best.
        policy: Policy = Fixed("s3-fifo"), effect Live;
        /// Time past its time to live in which a value is still served while a newer one is
        /// loaded; for caches with a loader of their own.
        stale_while_revalidate: Option<Duration> = Fixed("none"), from "1ms", effect Live;
        /// Time past its time to live in which a value stands in where a load fails.
        stale_if_error: Option<Duration> = Fixed("none"), from "1ms", effect Live;
        /// How early a value is loaded anew by chance before it is due, in the background: 1 as a
        /// rule, more is earlier, 0 is never; for caches with a loader of their own.
        early_refresh: f64 = Fixed("0"), from "0", to "100", effect Live;
        /// Learns which keys follow each other, and loads what comes next; for caches with a
        /// loader of their own.
        prefetch: bool = Fixed("false"), effect Live;
        /// Longest time that an expired entry takes up room.
        expiry_sweep: Duration = Fixed("5m"), from "1ms",
            alias [
                seconds("PERFORMANCE_CACHE_CLEANUP_INTERVAL"),
                seconds("cache_cleanup_interval")
            ];
        /// Compresses values in the tiers below memory, where it pays.
        compression: bool = Fixed("true"), alias [plain("CACHE_COMPRESSION_ENABLED")];
        /// Smallest value that is compressed; at most `cache.memory.capacity`.
        compression_threshold: ByteSize = Fixed("2KiB");
        /// How they are compressed. `zstd-dictionary` learns what small values have in common and
        /// compresses those from 128 bytes on; it needs 16 MiB of disk or more. `lz4` compresses less
        /// and unpacks several times faster; it needs a build with that feature.
        compression_method: CompressionMethod = Fixed("zstd");
        /// When a value goes to the tiers below memory.
        write: WritePolicy = Fixed("through");
        /// Order in which the tiers below memory are asked; in a file `["redis", "disk"]`.
        order: [LowerTier; 2] = Fixed("redis,disk");
    }
    with { encryption: Encryption, memory: Memory, disk: Disk, redis: Redis, }
}

section! {
    /// Encryption of what the tiers below memory keep; what is not encrypted there is a miss then.
    Encryption = "cache.encryption" {
        /// Keys of 32 random bytes, each as `ID=SOURCE`; in a file `["1=env:CACHE_KEY"]`. A source is
        /// `env:NAME` or `file:PATH`, where the key stands as 64 hexadecimal digits or in base64, or
        /// `hex:...` or `base64:...` with the key itself. A number must never name another key.
        keys: Option<KeySources> = Fixed("none");
        /// Number of the key that writes; all of them read. Needed where there are several.
        active: Option<usize> = Fixed("none"), to "4294967295";
    }
}

section! {
    /// The tier in memory.
    Memory = "cache.memory" {
        /// Most bytes of keys and values.
        capacity: ByteSize = Computed(
            "`256MiB`, or a quarter of the memory of the machine or control group if that is less",
            |cx| default_capacity(&cx.machine).to_string(),
        ), from "64KiB", to "1024TiB", effect Live;
        /// Most entries, in addition to the bound in bytes.
        entries: Option<usize> = Fixed("none"), from "1", to "1000000000",
            alias [
                plain("CACHE_MEMORY_MAX_SIZE"),
                plain("PERFORMANCE_CACHE_MAX_SIZE"),
                plain("cache_max_size")
            ], effect Live;
        /// Most entries of a cache whose values the program does not weigh, where
        /// `cache.memory.entries` does not say.
        default_entries: usize = Fixed("100000"), from "1", to "1000000000", effect Live;
        /// Time after its last use at which an entry expires.
        time_to_idle: Option<Duration> = Fixed("none"), from "1ms";
        /// Structure that holds the entries. `clock-pro` is quick_cache, which has a policy of its
        /// own and does not look at `cache.policy`.
        engine: MemoryEngine = Fixed("switchable");
        /// Samples what other capacities would hit, for `/performance/cache/policy`.
        miss_ratio_curve: bool = Fixed("false");
    }
}

section! {
    /// The tier on disk.
    Disk = "cache.disk" {
        /// Uses the tier.
        enabled: bool = Computed(
            "`true` where the build has the tier",
            |cx| cx.parts.disk.to_string(),
        );
        /// Directory of the tier; no two processes can share one.
        path: Option<PathBuf> = Computed(
            "`PROGRAM/ultra-perf` in the user's cache directory, which is `ultra-perf` for the program \
             of that name",
            |cx| {
                let dir = cx.machine.own_dir(cx.machine.cache_dir.as_ref());
                dir.as_deref().and_then(Path::to_str).unwrap_or("none").to_owned()
            },
        );
        /// Most bytes on disk.
        capacity: ByteSize = Fixed("1GiB"), from "1MiB", to "1024TiB";
        /// Engine that stores the entries. `sled` needs a build with that feature, and suits values
        /// of at most 4 KiB.
        engine: DiskEngine = Fixed("segment-log");
        /// When writes are made durable against a loss of power.
        fsync: Fsync = Fixed("never");
        /// Which values are written. `second-sight` waits until a key comes again, which spares the
        /// medium where many are asked for once.
        admission: Admission = Fixed("everything");
        /// Most bytes that are written in a second on average; what exceeds it is left out.
        write_budget: Option<ByteSize> = Fixed("none"), from "1KiB";
        /// Fills memory with the newest entries of the tier when it is opened, in the background.
        /// What other machines have written to Redis meanwhile is not asked for.
        warm_up: bool = Fixed("false"), alias [plain("enable_cache_warming")];
    }
}

section! {
    /// The tier in Redis, which carries the cache beyond one machine.
    Redis = "cache.redis" {
        /// Server to use: `redis://`, `rediss://` for TLS, `redis-cluster://`, and the same with
        /// `valkey`. Without one there is no such tier.
        url: Option<RedisUrl> = Fixed("none"), alias [plain("REDIS_URL")];
        /// Start of every key that is used there: 1 to 64 letters, digits or characters of `-_.:`.
        prefix: String = Fixed("ultra-perf"), check |prefix| key_prefix(prefix);
        /// Connections, each of which carries any number of commands at a time.
        connections: usize = Fixed("1"), from "1", to "2",
            alias [lowered_to(2, "REDIS_MAX_CONNECTIONS")];
        /// Longest time that the tier may add to a call.
        timeout: Duration = Fixed("50ms"), from "1ms", to "10s";
        /// How memory follows what other machines change: the same on all that share a Redis. `auto`
        /// is `tracking` where the server knows it and `pubsub` where it does not; with `off`, entries
        /// stay in memory for their time to live.
        coherence: Coherence = Fixed("auto");
    }
}

section! {
    /// One cache by its name: what it has otherwise than `[cache]` says. `none` is as there. A name is 1
    /// to 64 letters, digits or characters of `-_`, with `.` between them: in a file such a name stands in
    /// quotes, as in `[caches."shop.users.load"]`, and in a change it does not, as in
    /// `caches.shop.users.load.ttl`. In the environment a name counts in small letters and `__` is its
    /// point, as in `ULTRA_PERF__CACHES__SHOP__USERS__LOAD__TTL`. What the program sets on the cache goes
    /// before these keys in a file, and a change of one while it runs before the program.
    CacheSettings = "caches.*" {
        /// Time to live of an entry that names none.
        ttl: Option<Duration> = Fixed("none"), from "1ms", effect Live;
        /// Most entries.
        entries: Option<usize> = Fixed("none"), from "1", to "1000000000", effect Live;
        /// Most bytes of keys and values, where the program weighs them.
        capacity: Option<ByteSize> = Fixed("none"), from "64KiB", to "1024TiB", effect Live;
        /// How memory chooses what to keep.
        policy: Option<Policy> = Fixed("none"), effect Live;
        /// Time past its time to live in which a value is still served while a newer one is
        /// loaded; 0s is not at all.
        stale_while_revalidate: Option<Duration> = Fixed("none"), effect Live;
        /// Time past its time to live in which a value stands in where a load fails; 0s is not at all.
        stale_if_error: Option<Duration> = Fixed("none"), effect Live;
        /// How early a value is loaded anew by chance before it is due; 0 is never.
        early_refresh: Option<f64> = Fixed("none"), from "0", to "100", effect Live;
        /// Time to live of what was found not to exist.
        negative_ttl: Option<Duration> = Fixed("none"), from "1ms", effect Live;
        /// Learns which keys follow each other, and loads what comes next.
        prefetch: Option<bool> = Fixed("none"), effect Live;
    }
}

section! {
    /// The memory of the whole process: what is watched, and when it is given back.
    ProcessMemory = "memory" {
        /// Watches memory, and acts on it: caches give entries up from the threshold on, and the
        /// allocator gives back what lies idle.
        enabled: bool = Computed(
            "`true` where the build has the part",
            |cx| cx.parts.memory.to_string(),
        ), alias [plain("enable_memory_monitoring")];
        /// Most bytes that the process should have resident, beside the limits of the control group
        /// and of the machine, which count anyway.
        limit: Option<ByteSize> = Fixed("none"), from "1MiB",
            alias [
                plain("PERFORMANCE_MAX_MEMORY_USAGE"),
                plain("max_memory_usage"),
                counted("GiB", "memory_limit_gb")
            ];
        /// Share of the nearest limit from which on memory is given back.
        cleanup_threshold: Share = Fixed("0.8"), from "0.1", to "0.99",
            alias [plain("PERFORMANCE_MEMORY_THRESHOLD"), plain("memory_cleanup_threshold")];
        /// Counts allocations by scope; needs a program with the tracking allocator.
        tracking: bool = Fixed("false"), alias [plain("tracemalloc_enabled")];
        /// Memory scopes that end until memory is looked at.
        reclaim_after_ops: usize = Fixed("1000"), from "1", to "1000000000",
            alias [plain("gc_threshold")];
        /// Sends `X-Memory-Usage`, the percentage of the nearest limit, with every answer.
        header: bool = Fixed("false");
    }
}

section! {
    /// Work in the background and work that is done for others: how much of it runs at a time, and how
    /// much waits. The accelerator's own is that of refreshing stale answers, purging and compressing.
    Scheduler = "scheduler" {
        /// Longest time that a task in the background may run.
        task_timeout: Duration = Fixed("30s"), from "1ms", to "1d", alias [seconds("task_timeout")];
        /// Tasks of one level that may wait in a lane; the next one is refused.
        queue: usize = Fixed("10000"), from "1", to "1000000";
        /// Memory that tasks which say what they need may take together. Under pressure it is half of
        /// that, and at the critical level nothing.
        memory_budget: ByteSize = Fixed("256MiB"), from "1MiB", effect Live;
        /// Moves the limits of the lanes by what is measured, between a quarter of their configured
        /// size and all of it.
        adaptive: bool = Fixed("false");
    }
    with { io: SchedulerIo, cpu: SchedulerCpu, blocking: SchedulerBlocking, }
}

section! {
    /// The lane of futures.
    SchedulerIo = "scheduler.io" {
        /// Futures that may run at a time.
        max_in_flight: usize = Fixed("1000"), from "1", to "65536", alias [plain("max_async_tasks")], effect Live;
    }
}

section! {
    /// The lane of what computes.
    SchedulerCpu = "scheduler.cpu" {
        /// Threads that compute. A live change can use at most as many as there were at the start.
        threads: usize = Computed(
            "the number of cores",
            |cx| cx.machine.cores.clamp(1, 1024).to_string(),
        ), from "1", to "1024", alias [plain("max_processes")], effect Live;
        /// Threads among them that only take what is `High` or `Critical`; fewer than
        /// `scheduler.cpu.threads`.
        reserved: usize = Fixed("0"), to "1023";
        /// How much these threads yield to those that serve requests: 0 not, 19 to everybody. Linux.
        nice: usize = Fixed("0"), to "19";
    }
}

section! {
    /// The lane of what waits in the kernel.
    SchedulerBlocking = "scheduler.blocking" {
        /// Closures that may run at a time.
        max: usize = Computed(
            "twice the number of cores",
            |cx| cx.machine.cores.saturating_mul(2).clamp(2, 512).to_string(),
        ), from "1", to "512",
            alias [plain("PERFORMANCE_MAX_WORKERS"), plain("max_workers"), plain("max_threads")], effect Live;
    }
}

section! {
    /// What is watched, remembered and warned of.
    Monitor = "monitor" {
        /// Reads all figures at each interval, remembers them, judges them by rules, and says what to
        /// change. `/performance/metrics` answers in any case.
        enabled: bool = Computed(
            "`true` where the build has the part",
            |cx| cx.parts.monitor.to_string(),
        ), alias [plain("ENABLE_PERFORMANCE_MONITORING")];
        /// Time between two readings: whole seconds that divide a minute.
        interval: Duration = Fixed("1s"), from "1s", to "30s", check divides_a_minute,
            alias [Alias { name: "metrics_interval", reading: Reading::SecondsAtMost(30) }];
        /// Series of one metric, such as its routes; what is over counts into one more.
        series: usize = Fixed("200"), from "1", to "100000";
        /// Uses the rules that come with the program: processor, memory, latency, errors, hit ratio,
        /// and the monitor itself.
        default_rules: bool = Fixed("true");
        /// File with alert rules and the handlers that are told, in TOML. It is read again when it
        /// changes; a file with problems is refused whole, and the rules before it stay.
        rules: Option<PathBuf> = Fixed("none");
        /// Share of the processor from which on the rule that comes with the program warns.
        alert_threshold: Share = Fixed("0.8"), from "0.1", to "0.94", alias [plain("alert_threshold")];
        /// Makes profiles of the processor on demand, `/performance/profile`; needs a build that can.
        profiling: bool = Fixed("false"), alias [plain("profiling_enabled")];
    }
    with { history: MonitorHistory, }
}

section! {
    /// What is remembered, and for how long.
    MonitorHistory = "monitor.history" {
        /// Keeps the history and the state of alerts on disk. `false` keeps some hours in memory.
        enabled: bool = Computed(
            "`true` where the build has the part",
            |cx| cx.parts.monitor.to_string(),
        );
        /// Directory of the history; no two processes can share one.
        path: Option<PathBuf> = Computed(
            "`PROGRAM/ultra-perf/monitor` in the user's state directory, which is `ultra-perf/monitor` \
             for the program `ultra-perf`",
            |cx| {
                let dir = cx.machine.own_dir(cx.machine.state_dir.as_ref());
                let dir = dir.map(|dir| dir.join("monitor"));
                dir.as_deref().and_then(Path::to_str).unwrap_or("none").to_owned()
            },
        );
        /// Most bytes on disk: half for seconds, a quarter each for minutes and hours.
        capacity: ByteSize = Fixed("1GiB"), from "16MiB", to "1024TiB";
        /// Time for which every reading is kept.
        seconds: Duration = Fixed("2d"), from "1h";
        /// Time for which one value in a minute is kept.
        minutes: Duration = Fixed("30d"), from "1h";
        /// Time for which one value in an hour is kept.
        hours: Duration = Fixed("730d"), from "1d";
    }
}

section! {
    /// What is found to be better otherwise, by rules over all parts.
    Advice = "advice" {
        /// Looks for advice.
        enabled: bool = Computed(
            "`true` where the build has the part",
            |cx| cx.parts.monitor.to_string(),
        );
        /// Applies advice that changes a live key and whose risk is low, one part at a time, and takes
        /// back what did not help.
        auto_apply: bool = Fixed("false"), effect Live;
        /// Time between two looks.
        every: Duration = Fixed("5m"), from "1s", to "1d";
        /// Time before and after a change that is compared to judge it.
        window: Duration = Fixed("10m"), from "10s", to "1d";
    }
}

section! {
    /// What is aimed at; the score and the advice compare with it.
    Targets = "targets" {
        /// Time within which 95 of 100 requests should be answered.
        p95: Duration = Fixed("200ms"), from "1ms", to "1h",
            alias [counted("ms", "TARGET_RESPONSE_TIME_MS")];
        /// Share of cacheable requests that the cache should answer.
        hit_ratio: Share = Fixed("0.8"), from "0.01", to "0.99",
            alias [plain("TARGET_CACHE_HIT_RATE")];
        /// Memory that the process should be content with.
        memory: Option<ByteSize> = Fixed("none"), from "1MiB",
            alias [counted("MiB", "TARGET_MEMORY_USAGE_MB")];
    }
}

section! {
    /// What is logged, and how.
    Log = "log" {
        /// Least severe level that is logged, with exceptions per module.
        level: LogFilter = Fixed("info"), effect Live;
        /// Form of the lines. `auto` is `human` on a terminal and `json` otherwise.
        format: LogFormat = Fixed("auto");
    }
}

impl Disk {
    /// Returns the directory of the tier if the tier is used.
    #[must_use]
    pub fn location(&self) -> Option<&Path> {
        self.path.as_deref().filter(|_| self.enabled)
    }
}

impl MonitorHistory {
    /// Returns the directory of the history if it is kept on disk.
    #[must_use]
    pub fn location(&self) -> Option<&Path> {
        self.path.as_deref().filter(|_| self.enabled)
    }
}

/// Every section, in the order of the reference.
pub(super) const SECTIONS: [Section; 21] = [
    TOP,
    Server::SECTION,
    Balancer::SECTION,
    Breaker::SECTION,
    ResponseCache::SECTION,
    Cache::SECTION,
    Encryption::SECTION,
    Memory::SECTION,
    Disk::SECTION,
    Redis::SECTION,
    CacheSettings::SECTION,
    ProcessMemory::SECTION,
    Scheduler::SECTION,
    SchedulerIo::SECTION,
    SchedulerCpu::SECTION,
    SchedulerBlocking::SECTION,
    Monitor::SECTION,
    MonitorHistory::SECTION,
    Advice::SECTION,
    Targets::SECTION,
    Log::SECTION,
];

/// The section that each cache has one of.
pub(super) const CACHES: &str = "caches";
/// Stands in the paths of its keys for the name of the cache.
pub(super) const ANY: &str = "*";
/// The most caches that a configuration names.
pub(super) const CACHES_MAX: usize = 1_000;

/// Every key, in the order of the reference; those of `[caches.*]` once.
pub(super) fn keys() -> impl Iterator<Item = &'static Key> {
    SECTIONS.iter().flat_map(|section| section.keys)
}

/// Every key that there is once.
pub(super) fn fixed_keys() -> impl Iterator<Item = &'static Key> {
    SECTIONS.iter().filter(|section| !section.name.contains(ANY)).flat_map(|section| section.keys)
}

/// The key at `path`, which may be that of a cache.
pub(super) fn find(path: &str) -> Option<&'static Key> {
    fixed_keys().find(|key| key.path == path).or_else(|| of_cache(path).map(|(_, key)| key))
}

/// Takes `caches.NAME.FIELD` apart.
pub(super) fn of_cache(path: &str) -> Option<(&str, &'static Key)> {
    let (name, field) = path.strip_prefix(CACHES)?.strip_prefix('.')?.rsplit_once('.')?;
    let key = CacheSettings::KEYS.iter().find(|key| key.name() == field)?;
    is_cache_name(name).then_some((name, key))
}

/// Whether a cache can have this name, and a key so name it.
pub(crate) fn is_cache_name(name: &str) -> bool {
    let of_name = |b: u8| b.is_ascii_alphanumeric() || b"-_".contains(&b);
    name.len() <= 64 && name.split('.').all(|part| !part.is_empty() && part.bytes().all(of_name))
}

impl Key {
    /// The last part of its path.
    pub(super) fn name(&self) -> &'static str {
        self.path.rsplit('.').next().unwrap_or(self.path)
    }

    /// The bounds of its value in words, after a comma, if it has any.
    pub(super) fn bounds(&self) -> String {
        match (self.least, self.most) {
            (Some(least), Some(most)) => format!(", {least} to {most}"),
            (Some(least), None) => format!(", at least {least}"),
            (None, Some(most)) => format!(", at most {most}"),
            (None, None) => String::new(),
        }
    }

    /// Its path, where it is that of `cache`.
    pub(super) fn path_in(&self, cache: &str) -> String {
        self.path.replacen(ANY, cache, 1)
    }
}

/// The key's name in the environment.
pub(super) fn env_name(path: &str) -> String {
    format!("{ENV_PREFIX}{}", path.to_ascii_uppercase().replace('.', "__"))
}

pub(super) const ENV_PREFIX: &str = "ULTRA_PERF__";

/// The key that the tables `[[backend]]` of a file are another form of.
pub(super) const BACKENDS: &str = "server.to";

fn default_capacity(machine: &Machine) -> ByteSize {
    let quarter = ByteSize::new(machine.memory_bytes / 4 / (1 << 20) * (1 << 20));
    quarter.clamp(ByteSize::mib(1), ByteSize::mib(256))
}

/// A value that is right, as a file would hold it.
fn json_of<T: KeyType>(raw: &Raw) -> Value {
    T::read(raw).map_or(Value::Null, |value| value.json())
}

fn at_least<T: KeyType + PartialOrd>(value: &T, least: &str) -> Result<(), String> {
    if *value >= bound(least) || T::none().as_ref() == Some(value) {
        Ok(())
    } else {
        Err(format!("must be at least {least}{}", or_none::<T>()))
    }
}

fn at_most<T: KeyType + PartialOrd>(value: &T, most: &str) -> Result<(), String> {
    if *value <= bound(most) {
        Ok(())
    } else {
        Err(format!("must be at most {most}{}", or_none::<T>()))
    }
}

fn bound<T: KeyType>(text: &str) -> T {
    T::read(&Raw::Text(text.to_owned())).expect("a bound is a value of its key")
}

fn or_none<T: KeyType>() -> &'static str {
    if T::none().is_some() { ", or \"none\"" } else { "" }
}

fn loopback(address: &SocketAddr) -> Result<(), String> {
    if address.ip().is_loopback() {
        Ok(())
    } else {
        Err("must be a loopback address such as \"127.0.0.1:8600\", for the admin API lets \
             everybody in who reaches it"
            .to_owned())
    }
}

fn divides_a_minute(interval: &Duration) -> Result<(), String> {
    if interval.subsec_nanos() == 0 && 60_u64.is_multiple_of(interval.as_secs().max(1)) {
        Ok(())
    } else {
        Err("must be whole seconds that divide a minute: 1s, 2s, 3s, 4s, 5s, 6s, 10s, 12s, 15s, 20s \
             or 30s"
            .to_owned())
    }
}

fn cookie_name(name: &str) -> Result<(), String> {
    // A token of RFC 9110.
    let of_name = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if (1..=64).contains(&name.len()) && name.bytes().all(of_name) {
        Ok(())
    } else {
        Err("must be 1 to 64 letters, digits or characters of \"!#$%&'*+-.^_`|~\"".to_owned())
    }
}

fn absolute_path(path: &str) -> Result<(), String> {
    if path.starts_with('/') && path.len() <= 1_024 && path.bytes().all(|b| b.is_ascii_graphic()) {
        Ok(())
    } else {
        Err("must be a path that begins with a slash, such as \"/healthz\", or \"none\"".to_owned())
    }
}

fn key_prefix(prefix: &str) -> Result<(), String> {
    let of_prefix = |b: u8| b.is_ascii_alphanumeric() || b"-_.:".contains(&b);
    if (1..=64).contains(&prefix.len()) && prefix.bytes().all(of_prefix) {
        Ok(())
    } else {
        Err("must be 1 to 64 letters, digits or characters of \"-_.:\"".to_owned())
    }
}
