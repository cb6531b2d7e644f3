//! What the registry is told at each reading beside what the handle tells it: requests and backends.
//!
//! Every part counts for itself and gives its figures away as a small struct; here they become series.

use serde::Serialize;
use ultra_perf::monitor::{Kind, Readings, Registry, Snapshot, Unit, Watch};

use crate::accelerator::Accelerator;

/// What the machine and this process use.
pub(crate) struct Machine {
    pub(crate) system: SystemResources,
    pub(crate) process: ProcessMemory,
}

impl Machine {
    /// Takes the figures of the collector, under the names of the admin API.
    pub(crate) fn of(snapshot: &Snapshot) -> Self {
        let number = |name: &str| snapshot.number(name, &[]).unwrap_or_default();
        let rss = number("process_resident_memory_bytes");
        let total = number("system_memory_total_bytes");
        Self {
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

/// Lets the registry read the accelerator, until what is returned is removed.
pub(crate) fn watch(registry: &Registry, accelerator: &Accelerator) -> Watch {
    describe(registry, crate::backends::FAMILIES);
    let accelerator = accelerator.clone();
    registry.collect(move |out: &mut Readings| {
        accelerator.traffic().report(out);
        accelerator.backends().report_to(out);
    })
}
