//! What the memory of the process says about the caches in it.

use std::time::Duration;

use monitor::advice::words::{bytes, number, percent, seconds};
use monitor::advice::{Action, Category, Effort, Finding, Priority};
use monitor::insight::{self, MetricSpec, Side, Worse};
use monitor::{Aggregate, Selector};

use super::{Look, Rule, labelled};

/// The window from which growth is told.
const GROWTH_WINDOW: Duration = Duration::from_secs(6 * 3_600);

pub(super) const RULES: &[Rule] = &[
    Rule {
        id: "memory.stop_gap",
        sees: "memory grows clearly and reaches its limit within a day",
        does: "lowers the capacity of the largest cache by a fifth, until the leak is found",
        risk: 2,
        check: |look| all(look, stop_gap),
    },
    Rule {
        id: "memory.over_target",
        sees: "the process uses more than `targets.memory`",
        does: "lowers the capacity of the largest cache by what is too much, at most by 30 %",
        risk: 2,
        check: |look| all(look, over_target),
    },
    Rule {
        id: "memory.reclaim_churn",
        sees: "within the window the caches had to give up more than they hold",
        does: "lowers the capacity of the largest cache to what it holds",
        risk: 1,
        check: |look| all(look, reclaim_churn),
    },
    Rule {
        id: "memory.give_back_churn",
        sees: "the allocator gave back twice the process's memory within the window",
        does: "advice: a longer decay",
        risk: 0,
        check: |look| all(look, give_back_churn),
    },
];

/// The memory of the process in the window.
#[derive(Debug, Clone, Default)]
pub(super) struct MemoryReading {
    pub(super) resident: f64,
    pub(super) limit: Option<f64>,
    pub(super) target: Option<f64>,
    /// Bytes an hour by which it grows, and the seconds until the limit, where that is clear.
    pub(super) growth: Option<(f64, f64)>,
    /// Bytes that caches and others were made to give up.
    pub(super) reclaimed: f64,
    /// Bytes that the allocator gave back.
    pub(super) given_back: f64,
    pub(super) caches: Vec<Held>,
}

/// What one cache holds.
#[derive(Debug, Clone)]
pub(super) struct Held {
    pub(super) name: String,
    pub(super) bytes: u64,
    pub(super) capacity: u64,
    /// What it holds, in the unit of its capacity.
    pub(super) amount: u64,
    pub(super) by_bytes: bool,
}

impl Held {
    fn key(&self) -> String {
        let unit = if self.by_bytes { "capacity" } else { "entries" };
        format!("caches.{}.{unit}", self.name)
    }

    fn words(&self, capacity: u64) -> String {
        if self.by_bytes { bytes(capacity as f64) } else { format!("{capacity} entries") }
    }
}

impl MemoryReading {
    fn largest(&self) -> Option<&Held> {
        self.caches.iter().filter(|cache| cache.bytes > 0).max_by_key(|cache| cache.bytes)
    }
}

fn all(look: &Look<'_>, rule: fn(&MemoryReading) -> Option<Finding>) -> Vec<Finding> {
    let Some(of) = read(look) else { return Vec::new() };
    let Some(mut finding) = rule(&of) else { return Vec::new() };
    let spec = |name: &str, aggregate| {
        MetricSpec::new(name, Selector::name(name), aggregate, Worse::Higher)
    };
    finding.evidence = look.evidence(&[
        spec("process_resident_memory_bytes", Aggregate::Avg),
        spec("memory_claimed_bytes_total", Aggregate::Delta),
        spec("memory_given_back_bytes_total", Aggregate::Delta),
    ]);
    finding.evidence.retain(|evidence| evidence.samples > 0);
    vec![finding]
}

fn read(look: &Look<'_>) -> Option<MemoryReading> {
    let guard = look.perf.memory()?;
    let resident = Selector::name("process_resident_memory_bytes");
    let limit = Some(guard.sample().limit_bytes as f64).filter(|limit| *limit > 0.0);
    let grows = |limit| {
        let (source, at_ms) = (look.context.source, look.context.at_ms);
        let avg = Aggregate::Avg;
        insight::forecast(source, &resident, avg, GROWTH_WINDOW, at_ms, limit, Side::Above)
    };
    // A start-up says nothing about the next day.
    let growth = limit.and_then(grows).filter(|found| {
        found.trend.is_clear() && found.trend.seconds >= GROWTH_WINDOW.as_secs_f64() / 6.0
    });
    Some(MemoryReading {
        resident: look.read_in(look.window(), &resident, Aggregate::Avg)?,
        limit,
        target: look.config.targets.memory.map(|target| target.as_u64() as f64),
        growth: growth.map(|it| (it.trend.slope * 3_600.0, it.forecast.expected_seconds)),
        reclaimed: look.grown("memory_claimed_bytes_total", &[]),
        given_back: look.grown("memory_given_back_bytes_total", &[]),
        caches: held(look),
    })
}

#[cfg(feature = "cache")]
fn held(look: &Look<'_>) -> Vec<Held> {
    let caches = look.perf.caches().into_iter().map(|cache| {
        let (memory, by_bytes) = (cache.stats().memory, cache.is_bounded_by_bytes());
        Held {
            name: cache.name().to_owned(),
            bytes: cache.reclaimable_bytes(),
            capacity: cache.capacity(),
            amount: if by_bytes { memory.bytes } else { memory.entries },
            by_bytes,
        }
    });
    caches.collect()
}

#[cfg(not(feature = "cache"))]
fn held(_: &Look<'_>) -> Vec<Held> {
    Vec::new()
}

/// Makes a cache smaller, to so much of what it may hold now.
fn smaller(cache: &Held, to: u64, finding: Finding) -> Finding {
    let labels = [("cache", cache.name.as_str()), ("type", "memory")];
    let capacity = labelled("cache_capacity", &labels);
    let of = |metric: &str| labelled(metric, &labels);
    let all = [of("cache_hits_total"), of("cache_misses_total")];
    Finding {
        subject: cache.name.clone(),
        action: Some(Action::set(cache.key(), cache.capacity, to)),
        target: Some(MetricSpec::new("capacity", capacity, Aggregate::Avg, Worse::Higher)),
        also: vec![MetricSpec::ratio("hit_ratio", of("cache_hits_total"), all, Worse::Lower)],
        effort: Effort::Low,
        ..finding
    }
}

fn stop_gap(of: &MemoryReading) -> Option<Finding> {
    const HORIZON: f64 = 86_400.0;
    let (per_hour, left) = of.growth.filter(|(_, left)| *left < HORIZON)?;
    let cache = of.largest()?;
    let to = cache.capacity - cache.capacity / 5;
    if to == cache.capacity {
        return None;
    }
    let finding = Finding::advice(
        Category::Memory,
        if left < 3_600.0 { Priority::Critical } else { Priority::High },
        format!(
            "Memory grows by {} an hour and reaches {} in {}; cache `{}` holds {}",
            bytes(per_hour),
            bytes(of.limit.unwrap_or_default()),
            seconds(left),
            cache.name,
            bytes(cache.bytes as f64)
        ),
        format!(
            "Lower `{}` from {} to {} for the time being, and look for the leak",
            cache.key(),
            cache.words(cache.capacity),
            cache.words(to)
        ),
    );
    Some(Finding {
        why: format!("That frees up to {}, {} more.", bytes(cache.bytes as f64 / 5.0), {
            seconds(cache.bytes as f64 / 5.0 / per_hour.max(1.0) * 3_600.0)
        }),
        current_value: Some(per_hour),
        target_value: Some(0.0),
        risk: 2,
        confidence: 0.6,
        ..smaller(cache, to, finding)
    })
}

fn over_target(of: &MemoryReading) -> Option<Finding> {
    let target = of.target?;
    let over = of.resident - target;
    let cache = of.largest()?;
    let part = (over / cache.bytes as f64).min(0.3);
    let to = (cache.capacity as f64 * (1.0 - part)) as u64;
    if over <= 0.02 * target || to == 0 || to >= cache.capacity {
        return None;
    }
    let finding = Finding::advice(
        Category::Memory,
        Priority::Medium,
        format!(
            "The process uses {}, {} more than `targets.memory` ({})",
            bytes(of.resident),
            bytes(over),
            percent(over / target)
        ),
        format!(
            "Lower `{}` from {} to {}",
            cache.key(),
            cache.words(cache.capacity),
            cache.words(to)
        ),
    );
    Some(Finding {
        why: format!(
            "Cache `{}` holds {}, more than any other.",
            cache.name,
            bytes(cache.bytes as f64)
        ),
        current_value: Some(of.resident),
        target_value: Some(target),
        risk: 2,
        confidence: 0.7,
        ..smaller(cache, to, finding)
    })
}

fn reclaim_churn(of: &MemoryReading) -> Option<Finding> {
    let held: u64 = of.caches.iter().map(|cache| cache.bytes).sum();
    let cache = of.largest()?;
    if held == 0 || of.reclaimed <= held as f64 || cache.amount >= cache.capacity / 20 * 19 {
        return None;
    }
    let to = cache.amount.max(1);
    let finding = Finding::advice(
        Category::Memory,
        Priority::Medium,
        format!(
            "{} were reclaimed while the caches hold {}: they are filled to be emptied",
            bytes(of.reclaimed),
            bytes(held as f64)
        ),
        format!(
            "Lower `{}` from {} to {}, which is what it can hold",
            cache.key(),
            cache.words(cache.capacity),
            cache.words(to)
        ),
    );
    Some(Finding {
        why: "A cache that stays below its limit evicts by its policy; one that is reclaimed gives up more \
            than it must, under pressure."
            .to_owned(),
        current_value: Some(of.reclaimed),
        target_value: Some(0.0),
        risk: 1,
        confidence: 0.7,
        ..smaller(cache, to, finding)
    })
}

fn give_back_churn(of: &MemoryReading) -> Option<Finding> {
    let times = of.given_back / of.resident.max(1.0);
    if times <= 2.0 {
        return None;
    }
    let finding = Finding::advice(
        Category::Memory,
        Priority::Low,
        format!(
            "The allocator gave back {}, {} times what the process uses",
            bytes(of.given_back),
            number(times)
        ),
        "Let the allocator keep what it will need again: a longer decay, or a higher \
            `memory.cleanup_threshold`",
    );
    Some(Finding {
        why: "Each page that is given back and taken again costs a fault and is cleared by the kernel."
            .to_owned(),
        current_value: Some(times),
        target_value: Some(2.0),
        ..finding
    })
}

#[cfg(test)]
mod tests;
