//! What the figures of a cache say about its size, its times, its policy and its tiers.

use std::sync::Arc;
use std::time::Duration;

use cache_tiered::{ManagedCache, MissRatioCurve, Policy, TierStats};
use monitor::Aggregate;
use monitor::advice::words::{bytes, number, percent, seconds};
use monitor::advice::{Action, Category, Effort, Expected, Finding, Priority};
use monitor::insight::{MetricSpec, Worse};
use monitor::score::ScoreMetric;

use crate::config::CompressionMethod;

use super::{Aims, Look, Rule, labelled};

/// Requests without which nothing is said.
const REQUESTS_MIN: f64 = 1_000.0;
/// Events, such as loads or prefetches, without which nothing is said about them.
const EVENTS_MIN: f64 = 100.0;
/// Events of watched keys without which their parts are chance.
const WATCHED_MIN: f64 = 30.0;
/// A cache that holds this part of its capacity is full.
const FULL: f64 = 0.9;
/// The longest time to live that is advised.
const LONGEST: Duration = Duration::from_secs(7 * 86_400);

pub(super) const RULES: &[Rule] = &[
    Rule {
        id: "cache.undersized",
        sees: "half as much again would hit 3 points more, or over 5 % of the misses are for keys evicted not long ago",
        does: "raises `caches.NAME.capacity` or `entries` to the knee of the curve, within the memory that is left",
        risk: 1,
        check: |look| each(look, undersized, |name| vec![hit_ratio(name), caused(name, "evicted")]),
    },
    Rule {
        id: "cache.oversized",
        sees: "the last 30 % of the capacity bring less than half a point, and memory is used above 70 % of its limit",
        does: "lowers `caches.NAME.capacity` or `entries` by 30 %",
        risk: 1,
        check: |look| {
            each(look, oversized, |name| vec![hit_ratio(name), gauge("memory_used_ratio", &[])])
        },
    },
    Rule {
        id: "cache.ttl_too_short",
        sees: "over 20 % of the misses are for keys that had just expired, and what is loaded then is mostly what was there",
        does: "doubles `caches.NAME.ttl`",
        risk: 2,
        check: |look| {
            each(look, ttl_too_short, |name| vec![hit_ratio(name), caused(name, "expired")])
        },
    },
    Rule {
        id: "cache.stampede",
        sees: "over 5 % of those who miss wait for somebody else's load of the same key",
        does: "sets `caches.NAME.early_refresh` to 1 where the cache has a loader; else advice: give it one",
        risk: 1,
        check: |look| each(look, stampede, |name| vec![waiting(name)]),
    },
    Rule {
        id: "cache.policy",
        sees: "a full cache with a fixed policy misses the aimed hit ratio, and evicts keys that come again",
        does: "sets `caches.NAME.policy` to `adaptive`",
        risk: 1,
        check: |look| each(look, policy, |name| vec![hit_ratio(name), caused(name, "evicted")]),
    },
    Rule {
        id: "cache.compress_waste",
        sees: "compressed values become less than a tenth smaller",
        does: "advice: a higher `cache.compression_threshold`, or none",
        risk: 0,
        check: |look| {
            each(look, compress_waste, |name| {
                vec![
                    grown("cache_compression_input_bytes_total", name),
                    grown("cache_compression_output_bytes_total", name),
                ]
            })
        },
    },
    Rule {
        id: "cache.compress_more",
        sees: "most values that go to lower tiers are too small to be compressed, and those that are compressed halve",
        does: "advice: `cache.compression_method = \"zstd-dictionary\"`",
        risk: 0,
        check: |look| {
            each(look, compress_more, |name| vec![grown("cache_compression_values_total", name)])
        },
    },
    Rule {
        id: "cache.prefetch_waste",
        sees: "less than 30 % of what is loaded ahead is asked for",
        does: "sets `caches.NAME.prefetch` to `false`",
        risk: 1,
        check: |look| each(look, prefetch_waste, |name| vec![prefetched(name)]),
    },
    Rule {
        id: "cache.negative",
        sees: "over 10 % of the loads are for keys that were not found before",
        does: "raises `caches.NAME.negative_ttl` fourfold, to 10 s at least",
        risk: 2,
        check: |look| each(look, negative, |name| vec![repeated(name)]),
    },
    Rule {
        id: "cache.tier_slow",
        sees: "a lower tier answers at its 95th percentile in more than half the time that a load takes",
        does: "advice: leave the tier out for what is quickly loaded",
        risk: 0,
        check: |look| {
            each(look, tier_slow, |name| vec![gauge("cache_load_seconds", &[("cache", name)])])
        },
    },
    Rule {
        id: "cache.tier_idle",
        sees: "a lower tier answers less than 1 % of 10,000 look-ups or more",
        does: "advice: switch the tier off, or admit on second sight",
        risk: 0,
        check: |look| each(look, tier_idle, |name| vec![grown("cache_hits_total", name)]),
    },
    Rule {
        id: "cache.tier_failing",
        sees: "over 5 % of the look-ups in a lower tier fail, or over 1 % of the writes to it are dropped",
        does: "advice: look at the tier",
        risk: 0,
        check: |look| each(look, tier_failing, |name| vec![grown("cache_errors_total", name)]),
    },
];

/// What one cache did in the window, and how it is set.
#[derive(Debug, Clone, Default)]
pub(super) struct CacheReading {
    pub(super) name: String,
    /// Look-ups that memory answered, and those that went on.
    pub(super) hits: f64,
    pub(super) misses: f64,
    /// Its part of the look-ups of all caches.
    pub(super) share: f64,
    pub(super) loads: f64,
    /// How long a load takes.
    pub(super) load_seconds: Option<f64>,
    /// Callers that waited for somebody else's load.
    pub(super) coalesced: f64,
    /// Part of the misses whose key was evicted not long ago.
    pub(super) evicted: Option<f64>,
    /// Part of the misses whose key had expired not long ago, and of their loads that brought the same.
    pub(super) expired: Option<f64>,
    pub(super) unchanged: Option<f64>,
    /// Part of the loads that found nothing, as they had before.
    pub(super) not_found: Option<f64>,
    pub(super) prefetches_used: f64,
    pub(super) prefetches_wasted: f64,
    pub(super) compressed: Compressed,
    pub(super) tiers: Vec<TierReading>,
    pub(super) capacity: u64,
    /// Bytes, or entries.
    pub(super) by_bytes: bool,
    /// What it holds, in the unit of its capacity.
    pub(super) held: u64,
    /// What an entry weighs, where that is known.
    pub(super) entry_bytes: Option<f64>,
    /// Capacities, each with its hit ratio and how far off that may be; the smallest first.
    pub(super) curve: Vec<(u64, f64, f64)>,
    /// The policy that was asked for; none where the engine has but its own.
    pub(super) policy: Option<&'static str>,
    pub(super) ttl: Option<Duration>,
    pub(super) early_refresh: f64,
    /// Whether it loads by itself, without which nothing is refreshed early.
    pub(super) has_loader: bool,
    pub(super) negative_ttl: Option<Duration>,
    pub(super) prefetch: bool,
    /// Memory that is left below the threshold, where that is known.
    pub(super) room_bytes: Option<u64>,
    /// Part of the memory limit that is used, where there is one.
    pub(super) memory_used: Option<f64>,
}

/// Values on their way to lower tiers.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Compressed {
    pub(super) tried: f64,
    pub(super) bytes_in: f64,
    pub(super) bytes_out: f64,
    /// Whether values are compressed by what others have in common with them.
    pub(super) by_dictionary: bool,
}

/// What one lower tier did.
#[derive(Debug, Clone, Default)]
pub(super) struct TierReading {
    pub(super) tier: &'static str,
    pub(super) hits: f64,
    pub(super) misses: f64,
    pub(super) errors: f64,
    pub(super) writes: f64,
    pub(super) dropped: f64,
    /// The 95th percentile of its answers.
    pub(super) p95_seconds: Option<f64>,
}

impl CacheReading {
    fn requests(&self) -> f64 {
        self.hits + self.misses
    }

    fn hit_ratio(&self) -> f64 {
        self.hits / self.requests().max(1.0)
    }

    fn is_full(&self) -> bool {
        self.held as f64 >= FULL * self.capacity as f64
    }

    /// The estimate at a capacity, over the logarithm between the points of the curve.
    fn hit_ratio_at(&self, capacity: u64) -> Option<(f64, f64)> {
        let above = self.curve.iter().position(|(at, ..)| *at >= capacity)?;
        let (high, hits, error) = self.curve[above];
        if high == capacity {
            return Some((hits, error));
        }
        let (low, fewer, low_error) = self.curve[above.checked_sub(1)?];
        let log = |at: u64| (at as f64).ln();
        let part = (log(capacity) - log(low)) / (log(high) - log(low));
        Some((fewer + part * (hits - fewer), error.max(low_error)))
    }

    /// The setting that bounds the cache.
    fn bound(&self) -> String {
        let unit = if self.by_bytes { "capacity" } else { "entries" };
        format!("caches.{}.{unit}", self.name)
    }

    fn amount(&self, capacity: u64) -> String {
        match self.by_bytes {
            true => bytes(capacity as f64),
            false => format!("{capacity} entries"),
        }
    }

    /// The most that it may hold with the memory that is left.
    fn most(&self) -> u64 {
        const FARTHEST: u64 = 8;
        let farthest = self.capacity.saturating_mul(FARTHEST);
        let weight = if self.by_bytes { Some(1.0) } else { self.entry_bytes };
        match self.room_bytes.zip(weight.filter(|weight| *weight > 0.0)) {
            Some((room, weight)) => {
                farthest.min(self.capacity.saturating_add((room as f64 / weight) as u64))
            }
            // What it would take is not known: a step of a size that can be watched.
            None => self.capacity.saturating_mul(2),
        }
    }

    /// What so much of the capacity weighs in bytes; zero where that is not known.
    fn weight(&self, capacity: u64) -> u64 {
        let weight = if self.by_bytes { 1.0 } else { self.entry_bytes.unwrap_or(0.0) };
        (capacity as f64 * weight) as u64
    }

    fn set(
        &self,
        key: &str,
        from: impl Into<serde_json::Value>,
        to: impl Into<serde_json::Value>,
    ) -> Action {
        Action::set(format!("caches.{}.{key}", self.name), from, to)
    }

    fn finding(&self, priority: Priority, title: String, recommendation: String) -> Finding {
        Finding {
            subject: self.name.clone(),
            effort: Effort::Low,
            ..Finding::advice(Category::Cache, priority, title, recommendation)
        }
    }
}

impl Aims<'_> {
    /// What another hit ratio of one cache should bring, for it and for the score of all.
    fn cache_expected(&self, of: &CacheReading, hits: f64) -> Expected {
        let seen = of.hit_ratio();
        let missed = self.now(ScoreMetric::CacheMissRatio);
        let scored = missed.map(|missed| {
            (ScoreMetric::CacheMissRatio, (missed - of.share * (hits - seen)).max(0.0))
        });
        self.expected(&hit_ratio(&of.name), seen, hits, scored)
    }
}

fn each(
    look: &Look<'_>,
    rule: fn(&CacheReading, &Aims<'_>) -> Option<Finding>,
    metrics: fn(&str) -> Vec<MetricSpec>,
) -> Vec<Finding> {
    let aims = look.aims();
    let caches = look.perf.caches();
    let check = |cache: &Arc<dyn ManagedCache>| {
        let of = read(look, &**cache)?;
        let finding = rule(&of, &aims)?;
        let mut evidence = look.evidence(&metrics(&of.name));
        evidence.retain(|evidence| evidence.samples > 0);
        Some(Finding { evidence, ..finding })
    };
    caches.iter().filter_map(check).collect()
}

/// Reads what a cache did in the window; nothing while too little of it is known.
fn read(look: &Look<'_>, cache: &dyn ManagedCache) -> Option<CacheReading> {
    let (name, stats) = (cache.name(), cache.stats());
    let grown = |metric: &str, label: Option<(&str, &str)>| {
        let labels: Vec<_> = std::iter::once(("cache", name)).chain(label).collect();
        look.grown(metric, &labels)
    };
    let memory = [("cache", name), ("type", "memory")];
    let hits = look.read("cache_hits_total", &memory, Aggregate::Delta)?;
    let misses = look.read("cache_misses_total", &memory, Aggregate::Delta)?;
    let all = look.grown("cache_hits_total", &[("type", "memory")])
        + look.grown("cache_misses_total", &[("type", "memory")]);
    let loads = grown("cache_loads_total", None);
    let tiers = [("redis", stats.redis), ("disk", stats.disk)];
    let tier = |(tier, stats): (&'static str, Option<TierStats>)| {
        let reads = stats?.read_latency;
        let of = |metric: &str| grown(metric, Some(("type", tier)));
        Some(TierReading {
            tier,
            hits: of("cache_hits_total"),
            misses: of("cache_misses_total"),
            errors: of("cache_errors_total"),
            writes: of("cache_writes_total"),
            dropped: of("cache_dropped_writes_total"),
            p95_seconds: (reads.reads > 0).then_some(reads.p95.as_secs_f64()),
        })
    };
    let of_values =
        |outcome: &str| grown("cache_compression_values_total", Some(("outcome", outcome)));
    // Of the keys that are watched; where they are few their parts are chance.
    let part = |spec: MetricSpec| {
        let whole: f64 = spec.of.iter().map(|of| look.grown_of(of)).sum();
        (whole >= WATCHED_MIN).then(|| look.grown_of(&spec.selector) / whole)
    };
    let (settings, by_bytes) = (&look.config.cache, cache.is_bounded_by_bytes());
    let tuning = cache.tuning();
    let held = if by_bytes { stats.memory.bytes } else { stats.memory.entries };
    let points = |curve: MissRatioCurve| -> Vec<(u64, f64, f64)> {
        let points = curve.points().iter();
        points.map(|it| (it.capacity, it.estimate.hit_ratio, it.estimate.error)).collect()
    };
    Some(CacheReading {
        name: name.to_owned(),
        hits,
        misses,
        share: if all > 0.0 { (hits + misses) / all } else { 0.0 },
        loads,
        load_seconds: (stats.loads > 0).then(|| stats.load_time.as_secs_f64() / stats.loads as f64),
        coalesced: grown("cache_coalesced_total", None),
        evicted: part(caused(name, "evicted")),
        expired: part(caused(name, "expired")),
        unchanged: part(unchanged(name)),
        not_found: part(repeated(name)),
        prefetches_used: grown("cache_prefetches_total", Some(("state", "used"))),
        prefetches_wasted: grown("cache_prefetches_total", Some(("state", "wasted"))),
        compressed: Compressed {
            tried: of_values("compressed") + of_values("kept"),
            bytes_in: grown("cache_compression_input_bytes_total", None),
            bytes_out: grown("cache_compression_output_bytes_total", None),
            by_dictionary: settings.compression_method == CompressionMethod::ZstdDictionary,
        },
        tiers: tiers.into_iter().filter_map(tier).collect(),
        capacity: cache.capacity(),
        by_bytes,
        held,
        entry_bytes: (stats.memory.entries > 0)
            .then(|| cache.reclaimable_bytes() as f64 / stats.memory.entries as f64)
            .filter(|weight| *weight > 0.0),
        curve: cache.miss_ratio_curve().map(points).unwrap_or_default(),
        policy: cache.policy().map(Policy::as_str),
        ttl: tuning.ttl,
        early_refresh: tuning.early_refresh,
        has_loader: cache.has_loader(),
        negative_ttl: tuning.negative_ttl,
        prefetch: tuning.prefetch.is_some(),
        room_bytes: room(look),
        memory_used: look.read("memory_used_ratio", &[], Aggregate::Avg),
    })
}

/// What may still be used of the memory before the guard acts, with some headroom.
#[cfg(feature = "memory")]
fn room(look: &Look<'_>) -> Option<u64> {
    const HEADROOM: f64 = 0.1;
    let guard = look.perf.memory()?;
    let sample = guard.sample();
    let least = (guard.thresholds().high - HEADROOM).max(0.0);
    let may = (sample.limit_bytes as f64 * least) as u64;
    (sample.limit_bytes > 0).then(|| may.saturating_sub(sample.used_bytes))
}

#[cfg(not(feature = "memory"))]
fn room(_: &Look<'_>) -> Option<u64> {
    None
}

/// Two digits that matter, of bytes whole KiB.
fn round(value: f64, by_bytes: bool) -> u64 {
    if by_bytes {
        let unit = if value >= 8_388_608.0 { 1_048_576.0 } else { 65_536.0 };
        return ((value / unit).round().max(1.0) * unit) as u64;
    }
    let unit = 10f64.powf((value.max(1.0).log10().floor() - 1.0).max(0.0));
    ((value / unit).round() * unit) as u64
}

fn undersized(of: &CacheReading, aims: &Aims<'_>) -> Option<Finding> {
    /// What half as much again must bring.
    const GAIN: f64 = 0.03;
    /// Part of the misses that are for keys evicted not long ago.
    const EVICTED: f64 = 0.05;
    if of.requests() < REQUESTS_MIN || !of.is_full() {
        return None;
    }
    let evicted = of.evicted;
    let seen = of.hit_ratio();
    let step = |factor: f64| of.capacity as f64 * factor;
    let (wanted, why, gain, confidence) = match of.hit_ratio_at(of.capacity) {
        Some((now, error)) => {
            let gain = |factor: f64| Some((of.hit_ratio_at(step(factor) as u64)?.0 - now).max(0.0));
            let half_more = gain(1.5).filter(|gain| *gain >= GAIN)?;
            let factors = [1.5, 2.0, 3.0, 4.0, 6.0, 8.0];
            let most = of.most() as f64;
            let reach = factors.into_iter().filter(|factor| step(*factor) <= most).filter_map(gain);
            let best = reach.fold(half_more, f64::max);
            // The knee: most of what can be had, for the least.
            let knee = factors.into_iter().find(|factor| gain(*factor) >= Some(0.75 * best))?;
            let why = format!(
                "The curve of a sample of the keys rises by {} points with half as much again.",
                points(half_more)
            );
            (knee, why, gain(knee)?, (1.0 - error / best).clamp(0.5, 0.95))
        }
        None => {
            let evicted = evicted.filter(|part| *part >= EVICTED)?;
            let why = "How much more would hit is not known exactly: \
                `cache.memory.miss_ratio_curve` would tell."
                .to_owned();
            // Not all of those would be kept by half as much again.
            (1.5, why, evicted * (1.0 - seen) / 2.0, 0.6)
        }
    };
    let to = round(step(wanted).min(of.most() as f64), of.by_bytes);
    let reached = of.hit_ratio_at(to).zip(of.hit_ratio_at(of.capacity));
    let gain = reached.map_or(gain, |(to, now)| to.0 - now.0);
    let hits = (seen + gain).min(1.0);
    let what = match evicted {
        Some(part) => format!("{} of misses are for keys evicted not long ago", percent(part)),
        None => format!("{} of look-ups hit", percent(seen)),
    };
    let title = format!("Cache `{}` is too small: {what} at {}", of.name, of.amount(of.capacity));
    let priority = if gain >= 0.1 { Priority::High } else { Priority::Medium };
    if (to as f64) < step(1.1) {
        let short = format!(
            "Give the process more memory: the cache wants {}, and there is room for {}",
            of.amount(step(wanted) as u64),
            of.amount(of.most())
        );
        return Some(Finding {
            why,
            current_value: Some(seen),
            ..of.finding(priority, title, short)
        });
    }
    let more = of.weight(to - of.capacity);
    let memory = if more > 0 { format!(", +{}", bytes(more as f64)) } else { String::new() };
    let expected = aims.cache_expected(of, hits);
    let gained = expected.points.map_or_else(String::new, |it| format!(" ({it:+.1} points)"));
    let text = format!(
        "Raise `{}` from {} to {}; expected hit ratio {seen:.2} -> {hits:.2}{gained}{memory}",
        of.bound(),
        of.amount(of.capacity),
        of.amount(to)
    );
    Some(Finding {
        why,
        current_value: Some(seen),
        target_value: Some(hits),
        action: Some(of.set(if of.by_bytes { "capacity" } else { "entries" }, of.capacity, to)),
        expected: Some(expected),
        target: Some(hit_ratio(&of.name)),
        memory_bytes: more + more / 4,
        risk: if more > 0 && of.room_bytes.is_some() { 1 } else { 2 },
        confidence,
        ..of.finding(priority, title, text)
    })
}

fn oversized(of: &CacheReading, aims: &Aims<'_>) -> Option<Finding> {
    const LOSS: f64 = 0.005;
    const MEMORY: f64 = 0.7;
    let used = of.memory_used.filter(|used| *used > MEMORY)?;
    if of.requests() < REQUESTS_MIN {
        return None;
    }
    let to = round(of.capacity as f64 * 0.7, of.by_bytes).max(1);
    let (now, error) = of.hit_ratio_at(of.capacity)?;
    let loss = (now - of.hit_ratio_at(to)?.0).max(0.0);
    if loss >= LOSS || to >= of.capacity {
        return None;
    }
    let freed = of.weight(of.capacity - to);
    let freed =
        if freed > 0 { format!(" and frees up to {}", bytes(freed as f64)) } else { String::new() };
    let seen = of.hit_ratio();
    Some(Finding {
        why: "What is evicted first is hardly asked for, and the memory is short elsewhere."
            .to_owned(),
        current_value: Some(of.capacity as f64),
        target_value: Some(to as f64),
        action: Some(of.set(if of.by_bytes { "capacity" } else { "entries" }, of.capacity, to)),
        expected: Some(aims.cache_expected(of, (seen - loss).max(0.0))),
        target: Some(gauge_of(
            "cache_capacity",
            &[("cache", &of.name), ("type", "memory")],
            Worse::Higher,
        )),
        also: vec![hit_ratio(&of.name)],
        risk: 1,
        confidence: (1.0 - error / 0.05).clamp(0.5, 0.9),
        ..of.finding(
            Priority::Medium,
            format!(
                "Cache `{}` is larger than it needs to be: the last 30 % of {} bring {} points, \
                    and memory is {} full",
                of.name,
                of.amount(of.capacity),
                points(loss),
                percent(used)
            ),
            format!(
                "Lower `{}` from {} to {}; that costs {} points of hit ratio{freed}",
                of.bound(),
                of.amount(of.capacity),
                of.amount(to),
                points(loss)
            ),
        )
    })
}

fn ttl_too_short(of: &CacheReading, aims: &Aims<'_>) -> Option<Finding> {
    const EXPIRED: f64 = 0.2;
    /// Part of the loads that must have brought what was there.
    const UNCHANGED: f64 = 0.9;
    let expired = of.expired?;
    let ttl = of.ttl?;
    let unchanged = of.unchanged.unwrap_or(0.0);
    let enough = of.misses >= EVENTS_MIN && of.requests() >= REQUESTS_MIN;
    if !enough || expired <= EXPIRED || of.unchanged.is_some_and(|part| part < UNCHANGED) {
        return None;
    }
    let to = ttl.saturating_mul(2).min(LONGEST);
    if to <= ttl {
        return None;
    }
    let seen = of.hit_ratio();
    // Of the keys that come again within twice the time, those of the first half are hits already.
    let hits = seen + (1.0 - seen) * expired / 2.0;
    let known = of.unchanged.is_some();
    let (action, what) = match known {
        true => (
            Some(of.set("ttl", text(ttl), text(to))),
            format!(
                "Raise `caches.{}.ttl` from {} to {}",
                of.name,
                seconds_of(ttl),
                seconds_of(to)
            ),
        ),
        // Whether the content is still the same cannot be seen here, so people have to say.
        false => (
            None,
            format!(
                "If the values live longer than {}, raise `caches.{}.ttl` to {} or set \
                    `stale_while_revalidate`",
                seconds_of(ttl),
                of.name,
                seconds_of(to)
            ),
        ),
    };
    let same =
        if known { format!(", {} of them unchanged", percent(unchanged)) } else { String::new() };
    Some(Finding {
        why: "A value that expires before it changes is loaded for nothing.".to_owned(),
        current_value: Some(ttl.as_secs_f64()),
        target_value: Some(to.as_secs_f64()),
        action,
        expected: Some(aims.cache_expected(of, hits)),
        target: Some(hit_ratio(&of.name)),
        risk: if known { 2 } else { 3 },
        confidence: if known { 0.8 } else { 0.5 },
        ..of.finding(
            Priority::Medium,
            format!(
                "Cache `{}`: {} of misses are for keys that expired within the last {}{same}",
                of.name,
                percent(expired),
                seconds_of(ttl)
            ),
            what,
        )
    })
}

fn stampede(of: &CacheReading, aims: &Aims<'_>) -> Option<Finding> {
    const WAITING: f64 = 0.05;
    let all = of.loads + of.coalesced;
    let part = of.coalesced / all.max(1.0);
    let is_early = of.has_loader && of.early_refresh > 0.0;
    if of.loads < EVENTS_MIN || part <= WAITING || is_early {
        return None;
    }
    let load =
        of.load_seconds.map_or_else(String::new, |it| format!(", each for up to {}", seconds(it)));
    let title = format!(
        "Cache `{}`: {} of callers who miss wait for somebody else's load{load}",
        of.name,
        percent(part)
    );
    let found = |recommendation| Finding {
        why: "A value that is asked for often is loaded anew by one caller shortly before it \
            expires, and nobody waits."
            .to_owned(),
        current_value: Some(part),
        target_value: Some(0.01),
        ..of.finding(Priority::Medium, title, recommendation)
    };
    if !of.has_loader {
        let early = match of.early_refresh > 0.0 {
            true => String::new(),
            false => format!(", and set `caches.{}.early_refresh` to 1", of.name),
        };
        let text = format!(
            "Give the cache a loader, `cache.loading(..)`, and ask through it{early}: without one nothing \
                can be loaded before somebody waits for it"
        );
        return Some(Finding { effort: Effort::High, ..found(text) });
    }
    Some(Finding {
        action: Some(of.set("early_refresh", 0.0, 1.0)),
        expected: Some(aims.expected(&waiting(&of.name), part, 0.01, None)),
        target: Some(waiting(&of.name)),
        risk: 1,
        confidence: 0.7,
        ..found(format!("Set `caches.{}.early_refresh` from 0 to 1", of.name))
    })
}

fn policy(of: &CacheReading, aims: &Aims<'_>) -> Option<Finding> {
    const EVICTED: f64 = 0.05;
    let policy = of.policy.filter(|policy| *policy != "adaptive")?;
    let evicted = of.evicted?;
    let seen = of.hit_ratio();
    let aimed = aims.hit_ratio;
    if of.requests() < REQUESTS_MIN || !of.is_full() || seen >= aimed || evicted <= EVICTED {
        return None;
    }
    Some(Finding {
        why: "`adaptive` runs the policies on a sample of the keys and follows the one that hits most; \
            where none is better it stays what it is."
            .to_owned(),
        current_value: Some(seen),
        target_value: Some(aimed),
        action: Some(of.set("policy", policy, "adaptive")),
        target: Some(hit_ratio(&of.name)),
        risk: 1,
        confidence: 0.7,
        ..of.finding(
            Priority::Medium,
            format!(
                "Cache `{}`: `{policy}` hits {} (aimed at {}), and {} of misses are for keys that it \
                    had evicted not long ago",
                of.name,
                percent(seen),
                percent(aimed),
                percent(evicted)
            ),
            format!("Set `caches.{}.policy` from `{policy}` to `adaptive`", of.name),
        )
    })
}

fn compress_waste(of: &CacheReading, _: &Aims<'_>) -> Option<Finding> {
    let Compressed { tried, bytes_in, bytes_out, .. } = of.compressed;
    let ratio = bytes_in / bytes_out.max(1.0);
    if tried < EVENTS_MIN || ratio >= 1.1 {
        return None;
    }
    Some(Finding {
        why: "Values that are compressed already, such as images, cost time at each write.".to_owned(),
        current_value: Some(ratio),
        target_value: Some(1.1),
        effort: Effort::Medium,
        ..of.finding(
            Priority::Low,
            format!(
                "Cache `{}`: compression makes {} of values only {} times smaller",
                of.name,
                bytes(bytes_in),
                number(ratio)
            ),
            "Raise `cache.compression_threshold` above these values, or set `cache.compression = false`"
                .to_owned(),
        )
    })
}

fn compress_more(of: &CacheReading, _: &Aims<'_>) -> Option<Finding> {
    let Compressed { tried, bytes_in, bytes_out, by_dictionary } = of.compressed;
    let writes = of.tiers.iter().map(|tier| tier.writes).fold(0.0, f64::max);
    let ratio = bytes_in / bytes_out.max(1.0);
    if writes < REQUESTS_MIN
        || tried > 0.2 * writes
        || by_dictionary
        || tried < EVENTS_MIN
        || ratio < 2.0
    {
        return None;
    }
    Some(Finding {
        why: "A dictionary learns what small values have in common, which none of them shows alone."
            .to_owned(),
        current_value: Some(tried / writes),
        target_value: Some(1.0),
        effort: Effort::Medium,
        ..of.finding(
            Priority::Low,
            format!(
                "Cache `{}`: {} of the values that go to lower tiers are too small to be compressed; \
                    the others become {} times smaller",
                of.name,
                percent(1.0 - tried / writes),
                number(ratio)
            ),
            "Set `cache.compression_method = \"zstd-dictionary\"`".to_owned(),
        )
    })
}

fn prefetch_waste(of: &CacheReading, aims: &Aims<'_>) -> Option<Finding> {
    const USED: f64 = 0.3;
    let decided = of.prefetches_used + of.prefetches_wasted;
    let used = of.prefetches_used / decided.max(1.0);
    if decided < EVENTS_MIN || used >= USED {
        return None;
    }
    let spec = prefetched(&of.name);
    Some(Finding {
        why: "What is loaded ahead and not asked for takes room and time of the origin.".to_owned(),
        current_value: Some(used),
        target_value: Some(USED),
        action: of.prefetch.then(|| of.set("prefetch", true, false)),
        expected: Some(aims.expected(&spec, used, USED, None)),
        target: Some(MetricSpec { worse: Worse::Higher, ..grown("cache_loads_total", &of.name) }),
        also: vec![hit_ratio(&of.name)],
        risk: 1,
        confidence: 0.8,
        ..of.finding(
            Priority::Low,
            format!(
                "Cache `{}`: {} of {decided:.0} values that were loaded ahead were asked for",
                of.name,
                percent(used)
            ),
            format!("Set `caches.{}.prefetch` to `false`", of.name),
        )
    })
}

fn negative(of: &CacheReading, aims: &Aims<'_>) -> Option<Finding> {
    const REPEATED: f64 = 0.1;
    let part = of.not_found?;
    if of.loads < EVENTS_MIN || part <= REPEATED {
        return None;
    }
    let spec = repeated(&of.name);
    let title = format!(
        "Cache `{}`: {} of loads are for keys that were not found before",
        of.name,
        percent(part)
    );
    let why = "A key that does not exist is asked for again and again, each time at the origin."
        .to_owned();
    let Some(ttl) = of.negative_ttl else {
        let text = format!(
            "Let the loader return that there is nothing as a value, name it with `absent_if`, and set \
                `caches.{}.negative_ttl` to 10s",
            of.name
        );
        let finding = of.finding(Priority::Medium, title, text);
        return Some(Finding {
            why,
            current_value: Some(part),
            target_value: Some(0.0),
            ..finding
        });
    };
    let to = ttl.saturating_mul(4).clamp(Duration::from_secs(10), LONGEST);
    if to <= ttl {
        return None;
    }
    let recommendation = format!(
        "Raise `caches.{}.negative_ttl` from {} to {}",
        of.name,
        seconds_of(ttl),
        seconds_of(to)
    );
    Some(Finding {
        why,
        current_value: Some(part),
        target_value: Some(0.0),
        action: Some(of.set("negative_ttl", text(ttl), text(to))),
        expected: Some(aims.expected(&spec, part, part / 4.0, None)),
        target: Some(spec),
        risk: 2,
        confidence: 0.8,
        ..of.finding(Priority::Medium, title, recommendation)
    })
}

fn tier_slow(of: &CacheReading, _: &Aims<'_>) -> Option<Finding> {
    let load = of.load_seconds.filter(|_| of.loads >= EVENTS_MIN)?;
    let slow = of.tiers.iter().filter(|tier| tier.hits + tier.misses >= EVENTS_MIN);
    let (tier, p95) = slow
        .filter_map(|tier| Some((tier.tier, tier.p95_seconds?)))
        .filter(|(_, p95)| *p95 > load / 2.0)
        .max_by(|a, b| a.1.total_cmp(&b.1))?;
    Some(Finding {
        why: "Where the origin is as fast as the tier, a look-up there only comes on top."
            .to_owned(),
        current_value: Some(p95),
        target_value: Some(load / 2.0),
        effort: Effort::Medium,
        ..of.finding(
            Priority::Low,
            format!(
                "Cache `{}`: one of 20 look-ups in {tier} takes longer than {}, a load takes {}",
                of.name,
                seconds(p95),
                seconds(load)
            ),
            format!("Keep what is loaded that fast out of {tier}, or look at why it is slow"),
        )
    })
}

fn tier_idle(of: &CacheReading, _: &Aims<'_>) -> Option<Finding> {
    const LOOKUPS_MIN: f64 = 10_000.0;
    let (tier, lookups, part) = of
        .tiers
        .iter()
        .map(|tier| (tier.tier, tier.hits + tier.misses, tier.hits))
        .filter(|(_, lookups, hits)| *lookups >= LOOKUPS_MIN && *hits < lookups / 100.0)
        .map(|(tier, lookups, hits)| (tier, lookups, hits / lookups))
        .next()?;
    Some(Finding {
        why: "Each miss in memory asks the tier first, and waits for it.".to_owned(),
        current_value: Some(part),
        target_value: Some(0.01),
        effort: Effort::Medium,
        ..of.finding(
            Priority::Low,
            format!("Cache `{}`: {tier} answered {} of {lookups:.0} look-ups", of.name, percent(part)),
            match tier {
                "disk" => "Set `cache.disk.enabled = false`, or `cache.disk.admission = \"second-sight\"` \
                    if it is full of what nobody asks for"
                    .to_owned(),
                _ => format!("Leave {tier} out, unless it is there to keep machines coherent"),
            },
        )
    })
}

fn tier_failing(of: &CacheReading, _: &Aims<'_>) -> Option<Finding> {
    let failing = of.tiers.iter().find_map(|tier| {
        let lookups = tier.hits + tier.misses;
        let errors = tier.errors / lookups.max(1.0);
        let dropped = tier.dropped / (tier.writes + tier.dropped).max(1.0);
        if lookups >= EVENTS_MIN && errors > 0.05 {
            return Some((tier.tier, errors, format!("{} of look-ups fail", percent(errors))));
        }
        let enough = tier.writes + tier.dropped >= EVENTS_MIN;
        (enough && dropped > 0.01)
            .then(|| (tier.tier, dropped, format!("{} of writes are dropped", percent(dropped))))
    });
    let (tier, value, what) = failing?;
    Some(Finding {
        why: "A tier that fails is a miss each time: the origin carries what it should.".to_owned(),
        current_value: Some(value),
        target_value: Some(0.0),
        effort: Effort::Medium,
        ..of.finding(
            Priority::High,
            format!("Cache `{}`: {what} in {tier}", of.name),
            match tier {
                "redis" => {
                    "Look at the server and the network; `cache.redis.timeout` bounds what a call \
                    waits"
                        .to_owned()
                }
                _ => format!("Look at the space and the speed under {tier}, and at the log"),
            },
        )
    })
}

/// Points of a hundred.
fn points(ratio: f64) -> String {
    format!("{:.1}", ratio * 100.0)
}

/// A duration as a setting has it.
fn text(duration: Duration) -> String {
    match duration.subsec_millis() {
        0 => format!("{}s", duration.as_secs()),
        _ => format!("{}ms", duration.as_millis()),
    }
}

fn seconds_of(duration: Duration) -> String {
    seconds(duration.as_secs_f64())
}

fn grown(metric: &str, cache: &str) -> MetricSpec {
    let selector = labelled(metric, &[("cache", cache)]);
    MetricSpec::new(metric, selector, Aggregate::Delta, Worse::Higher)
}

fn gauge(metric: &str, labels: &[(&str, &str)]) -> MetricSpec {
    gauge_of(metric, labels, Worse::Higher)
}

fn gauge_of(metric: &str, labels: &[(&str, &str)], worse: Worse) -> MetricSpec {
    MetricSpec::new(metric, labelled(metric, labels), Aggregate::Avg, worse)
}

/// Look-ups that memory answers, as a part of all.
pub(super) fn hit_ratio(cache: &str) -> MetricSpec {
    let of = |metric: &str| labelled(metric, &[("cache", cache), ("type", "memory")]);
    let all = [of("cache_hits_total"), of("cache_misses_total")];
    MetricSpec::ratio("hit_ratio", of("cache_hits_total"), all, Worse::Lower)
}

/// Callers that wait for another's load, as a part of all who miss.
fn waiting(cache: &str) -> MetricSpec {
    let of = |metric: &str| labelled(metric, &[("cache", cache)]);
    let all = [of("cache_coalesced_total"), of("cache_loads_total")];
    MetricSpec::ratio("waiting_for_loads", of("cache_coalesced_total"), all, Worse::Higher)
}

/// Misses of watched keys with a cause, as a part of all of theirs.
fn caused(cache: &str, cause: &str) -> MetricSpec {
    let name = "cache_watched_misses_total";
    let part = labelled(name, &[("cache", cache), ("cause", cause)]);
    let all = [labelled(name, &[("cache", cache)])];
    MetricSpec::ratio(&format!("misses_{cause}"), part, all, Worse::Higher)
}

/// Loads of watched keys after an expiry that brought what was there, as a part of all of theirs.
fn unchanged(cache: &str) -> MetricSpec {
    let name = "cache_watched_reloads_total";
    let part = labelled(name, &[("cache", cache), ("content", "same")]);
    MetricSpec::ratio("reloads_same", part, [labelled(name, &[("cache", cache)])], Worse::Higher)
}

/// Loads of watched keys that found nothing, as they had before, as a part of all of theirs.
fn repeated(cache: &str) -> MetricSpec {
    let labels = [("cache", cache), ("outcome", "absent")];
    let part = labelled("cache_watched_repeated_loads_total", &labels);
    let all = [labelled("cache_watched_loads_total", &[("cache", cache)])];
    MetricSpec::ratio("repeated_not_found", part, all, Worse::Higher)
}

fn prefetched(cache: &str) -> MetricSpec {
    let of =
        |state: &str| labelled("cache_prefetches_total", &[("cache", cache), ("state", state)]);
    MetricSpec::ratio("prefetches_used", of("used"), [of("used"), of("wasted")], Worse::Lower)
}

#[cfg(test)]
mod tests;
