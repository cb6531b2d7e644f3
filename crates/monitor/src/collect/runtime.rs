//! Readings of a tokio runtime: those that are stable in tokio.

use std::time::Duration;

use tokio::runtime::Handle;

use crate::registry::Readings;

pub(super) struct Runtime {
    handle: Handle,
    growth: super::Growth,
}

impl Runtime {
    pub(super) fn new(handle: Handle) -> Self {
        Self { handle, growth: super::Growth::default() }
    }

    pub(super) fn read(&mut self, now: Duration, readings: &mut Readings) {
        let metrics = self.handle.metrics();
        let workers = metrics.num_workers();
        readings.gauge("tokio_workers", &[], workers as f64);
        readings.gauge("tokio_alive_tasks", &[], metrics.num_alive_tasks() as f64);
        readings.gauge("tokio_global_queue_depth", &[], metrics.global_queue_depth() as f64);
        #[cfg(target_has_atomic = "64")]
        {
            let busy: f64 = (0..workers)
                .map(|worker| metrics.worker_total_busy_duration(worker).as_secs_f64())
                .sum();
            readings.counter("tokio_busy_seconds_total", &[], busy);
            // A worker counts a long poll when it ends, so a second may hold more than one.
            if let Some(rate) = self.growth.per_second("busy", busy, now) {
                readings.gauge("tokio_busy_ratio", &[], (rate / workers.max(1) as f64).min(1.0));
            }
        }
    }
}
