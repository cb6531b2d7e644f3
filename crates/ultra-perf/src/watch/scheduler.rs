//! Lanes, levels and types of tasks.

use monitor::{Distribution, Kind, Readings, Unit};
use scheduler::{Counts, Histogram, SchedulerStats};

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
    ("async_operations_total", Kind::Counter, Unit::None, "Tasks by name and by how they ended."),
    ("processing_time_seconds", Kind::Histogram, Unit::Seconds, "Time that tasks ran, by name."),
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
            out.distribution("scheduler_queue_wait_seconds", &labels, distribution(&level.wait));
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
