//! What the registry is told at each reading: requests, cache, backends, breakers, tasks, memory.
//!
//! Every part counts for itself and gives its figures away as a small struct; here they become series.
//! Names that teams asked for, such as `request_count` and `memory_usage_bytes`, stand beside those that
//! follow the conventions of Prometheus.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::Serialize;
use ultra_perf::cache_tiered::Publisher;
use ultra_perf::memory::MemoryGuard;
use ultra_perf::monitor::{
    self, Clock as _, Format, Kind, Monitor, Readings, Registry, Renderer, Snapshot, SystemClock,
    Unit,
    collect::{Collector, CollectorOptions},
};
use ultra_perf::{MonitorError, config::Config};

use crate::accelerator::Accelerator;
use crate::stored::{ResponseKey, Stored};

/// Without a monitor, the registry is read at most so often.
const ONCE_A: Duration = Duration::from_secs(1);

/// The registry, and the monitor over it where that is on.
#[derive(Debug)]
pub(crate) struct Watched {
    registry: Registry,
    monitor: Option<Monitor>,
    /// Where there is no monitor: what was read last.
    latest: Mutex<Option<Arc<Snapshot>>>,
    renderer: Renderer,
    clock: SystemClock,
    _collector: Option<Collector>,
}

impl Watched {
    /// Starts the monitor as the configuration says. Without one the registry is read when somebody asks.
    pub(crate) fn start(config: &Config) -> Result<Self, MonitorError> {
        let options = CollectorOptions {
            runtime: tokio::runtime::Handle::try_current().ok(),
            ..CollectorOptions::default()
        };
        let (registry, monitor, collector) = match config.monitor_builder()? {
            Some(builder) => {
                let monitor = builder.collector(Some(options)).start()?;
                (monitor.registry().clone(), Some(monitor), None)
            }
            None => {
                let registry = Registry::default();
                let collector = Collector::start(&registry, options);
                let collector = collector.map_err(monitor::StartError::Thread)?;
                (registry, None, Some(collector))
            }
        };
        Ok(Self {
            registry,
            monitor,
            latest: Mutex::default(),
            renderer: Renderer::new(),
            clock: SystemClock::new(),
            _collector: collector,
        })
    }

    pub(crate) fn registry(&self) -> &Registry {
        &self.registry
    }

    pub(crate) fn monitor(&self) -> Option<&Monitor> {
        self.monitor.as_ref()
    }

    /// What all parts last counted, about a second old at most.
    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        if let Some(monitor) = &self.monitor {
            return monitor.snapshot();
        }
        let now = self.clock.now();
        let mut latest = self.latest.lock();
        match &*latest {
            Some(read) if now.since(read.at.monotonic) < ONCE_A => Arc::clone(read),
            _ => Arc::clone(latest.insert(Arc::new(self.registry.read(now)))),
        }
    }

    /// All of it as Prometheus reads it.
    pub(crate) fn render(&self, format: Format) -> Arc<[u8]> {
        match &self.monitor {
            Some(monitor) => monitor.render(format),
            None => self.renderer.render(&self.snapshot(), format),
        }
    }

    /// What the machine and this process use, under the names of the admin API.
    pub(crate) fn machine(&self) -> Machine {
        let snapshot = self.snapshot();
        let number = |name: &str| snapshot.number(name, &[]).unwrap_or_default();
        let rss = number("process_resident_memory_bytes");
        let total = number("system_memory_total_bytes");
        Machine {
            system: SystemResources {
                cpu_percent: number("cpu_usage"),
                memory_percent: number("memory_usage"),
                memory_available: number("system_memory_available_bytes") as u64,
            },
            process: ProcessMemory {
                rss: rss as u64,
                vms: number("process_virtual_memory_bytes") as u64,
                percent: 100.0 * rss / total.max(1.0),
            },
        }
    }

    pub(crate) fn shutdown(&self, deadline: Duration) {
        if let Some(monitor) = &self.monitor {
            monitor.shutdown(deadline);
        }
    }
}

/// What the machine and this process use.
pub(crate) struct Machine {
    pub(crate) system: SystemResources,
    pub(crate) process: ProcessMemory,
}

/// The system's use of its resources.
#[derive(Debug, Serialize)]
pub(crate) struct SystemResources {
    pub(crate) cpu_percent: f64,
    /// Of the limit that applies to this process.
    pub(crate) memory_percent: f64,
    /// Bytes that can be given out without swapping.
    pub(crate) memory_available: u64,
}

/// The memory of this process.
#[derive(Debug, Serialize)]
pub(crate) struct ProcessMemory {
    pub(crate) rss: u64,
    pub(crate) vms: u64,
    /// Share of the machine's memory.
    pub(crate) percent: f64,
}

/// What a metric is: its name, its kind, its unit and a sentence of help.
pub(crate) type Family = (&'static str, Kind, Unit, &'static str);

/// Describes metrics, before anybody looks them up.
pub(crate) fn describe(registry: &Registry, families: &[Family]) {
    for (name, kind, unit, help) in families {
        registry.describe(name, *kind, *unit, help);
    }
}

/// Lets the registry read all parts of the accelerator.
pub(crate) fn watch(
    registry: &Registry,
    accelerator: &Accelerator,
    publisher: Option<Publisher<ResponseKey, Stored>>,
    memory: Option<MemoryGuard>,
) {
    describe(registry, crate::backends::FAMILIES);
    describe(registry, scheduler::FAMILIES);
    describe(registry, memory::FAMILIES);
    let accelerator = accelerator.clone();
    registry.collect(move |out: &mut Readings| {
        if let Some(publisher) = &publisher {
            publisher.publish();
        }
        accelerator.traffic().report(out);
        accelerator.backends().report_to(out);
        scheduler::report(&accelerator.background().scheduler().stats(), out);
        if let Some(guard) = &memory {
            memory::report(guard, out);
        }
    });
}

mod scheduler {
    //! Lanes, levels and types of tasks.

    use ultra_perf::monitor::{Distribution, Kind, Readings, Unit};
    use ultra_perf::scheduler::{Counts, Histogram, SchedulerStats};

    use super::Family;

    pub(super) const FAMILIES: &[Family] = &[
        ("scheduler_running", Kind::Gauge, Unit::None, "Tasks that run."),
        ("scheduler_slots", Kind::Gauge, Unit::None, "Tasks that may run at a time."),
        ("scheduler_waiting", Kind::Gauge, Unit::None, "Tasks that wait."),
        ("scheduler_tasks_total", Kind::Counter, Unit::None, "Tasks by how they ended."),
        (
            "scheduler_queue_wait_seconds",
            Kind::Histogram,
            Unit::Seconds,
            "Time that tasks waited before they started.",
        ),
        ("scheduler_run_seconds", Kind::Histogram, Unit::Seconds, "Time that tasks ran."),
        ("scheduler_retries_total", Kind::Counter, Unit::None, "Runs of tasks beyond their first."),
        (
            "async_operations_total",
            Kind::Counter,
            Unit::None,
            "Tasks by name and by how they ended.",
        ),
        (
            "processing_time_seconds",
            Kind::Histogram,
            Unit::Seconds,
            "Time that tasks ran, by name.",
        ),
    ];

    fn outcomes(counts: &Counts) -> [(&'static str, u64); 6] {
        [
            ("done", counts.done),
            ("failed", counts.failed),
            ("cancelled", counts.cancelled),
            ("timed_out", counts.timed_out),
            ("shed", counts.shed),
            ("refused", counts.refused),
        ]
    }

    /// The scheduler's buckets are a quarter of their value wide, so each counts at seven eighths of its end.
    fn distribution(times: &Histogram) -> Distribution {
        let mut all = Distribution::empty(1e-9);
        for (end, count) in times.buckets() {
            all.record_many(end.as_secs_f64() * 0.875, count);
        }
        all
    }

    pub(super) fn report(stats: &SchedulerStats, out: &mut Readings) {
        for lane in &stats.lanes {
            let name = lane.lane.to_string();
            out.gauge("scheduler_running", &[("lane", &name)], lane.running as f64);
            out.gauge("scheduler_slots", &[("lane", &name)], lane.slots as f64);
            for level in &lane.levels {
                let priority = level.priority.to_string();
                let labels = [("lane", name.as_str()), ("priority", priority.as_str())];
                out.gauge("scheduler_waiting", &labels, (level.queued + level.held) as f64);
                out.counter("scheduler_retries_total", &labels, level.counts.retried as f64);
                for (outcome, count) in outcomes(&level.counts) {
                    let labels = [labels[0], labels[1], ("outcome", outcome)];
                    out.counter("scheduler_tasks_total", &labels, count as f64);
                }
                out.distribution(
                    "scheduler_queue_wait_seconds",
                    &labels,
                    distribution(&level.wait),
                );
                out.distribution("scheduler_run_seconds", &labels, distribution(&level.run));
            }
            for kind in &lane.types {
                let priority = kind.priority.to_string();
                let labels = [
                    ("lane", name.as_str()),
                    ("operation", kind.name),
                    ("priority", priority.as_str()),
                ];
                for (status, count) in outcomes(&kind.counts) {
                    let labels = [labels[0], labels[1], labels[2], ("status", status)];
                    out.counter("async_operations_total", &labels, count as f64);
                }
                out.distribution("processing_time_seconds", &labels, distribution(&kind.run));
            }
        }
    }
}

mod memory {
    //! The guard over the process's memory.

    use ultra_perf::memory::MemoryGuard;
    use ultra_perf::monitor::{Kind, Readings, Unit};

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
        (
            "memory_used_ratio",
            Kind::Gauge,
            Unit::Ratio,
            "Share of the nearest limit that is in use.",
        ),
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
}
