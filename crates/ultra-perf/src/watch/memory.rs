//! The guard over the process's memory.

use memory::MemoryGuard;
use monitor::{Kind, Readings, Unit};

use super::Family;

pub(super) const FAMILIES: &[Family] = &[
    ("gc_collections_total", Kind::Counter, Unit::None, "Runs that reclaimed memory."),
    (
        "memory_claimed_bytes_total",
        Kind::Counter,
        Unit::Bytes,
        "Bytes that reclaimers said they freed.",
    ),
    (
        "memory_observed_bytes_total",
        Kind::Counter,
        Unit::Bytes,
        "Bytes by which resident memory fell while it was reclaimed.",
    ),
    (
        "memory_give_backs_total",
        Kind::Counter,
        Unit::None,
        "Times that the allocator gave memory back.",
    ),
    (
        "memory_given_back_bytes_total",
        Kind::Counter,
        Unit::Bytes,
        "Bytes by which resident memory fell while the allocator gave back.",
    ),
    (
        "memory_decayed_bytes_total",
        Kind::Counter,
        Unit::Bytes,
        "Bytes that were dropped because nobody had used them for long.",
    ),
    (
        "memory_source_failures_total",
        Kind::Counter,
        Unit::None,
        "Files about memory that could not be read.",
    ),
    ("memory_limit_bytes", Kind::Gauge, Unit::Bytes, "The nearest limit; 0 without one."),
    ("memory_used_ratio", Kind::Gauge, Unit::Ratio, "Share of the nearest limit that is in use."),
    ("memory_reclaimable_bytes", Kind::Gauge, Unit::Bytes, "Bytes that reclaimers could free."),
    (
        "memory_level",
        Kind::Gauge,
        Unit::None,
        "How near memory is to its limit: 0 normal, 1 elevated, 2 high, 3 critical.",
    ),
];

pub(super) fn report(guard: &MemoryGuard, out: &mut Readings) {
    let stats = guard.stats();
    for (name, count) in [
        ("memory_claimed_bytes_total", stats.claimed_bytes),
        ("memory_observed_bytes_total", stats.observed_bytes),
        ("memory_give_backs_total", stats.give_backs),
        ("memory_given_back_bytes_total", stats.given_back_bytes),
        ("memory_decayed_bytes_total", stats.decayed_bytes),
        ("memory_source_failures_total", stats.sources.failures),
    ] {
        out.counter(name, &[], count as f64);
    }
    // There are no generations here: every run is of the whole.
    out.counter("gc_collections_total", &[("generation", "all")], stats.runs as f64);
    let sample = stats.sample;
    let reclaimable: u64 = guard.reclaimers().reclaimable().iter().map(|(_, it)| it).sum();
    out.gauge("memory_limit_bytes", &[], sample.limit_bytes as f64);
    out.gauge("memory_used_ratio", &[], sample.share());
    out.gauge("memory_reclaimable_bytes", &[], reclaimable as f64);
    out.gauge("memory_level", &[], f64::from(sample.level as u8));
}
