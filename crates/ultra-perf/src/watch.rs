//! What the registry is told at each reading: scheduler, memory, balancers, breakers, the configuration.
//!
//! Every part counts for itself and gives its figures away as a small struct; here they become series.
//! Names that teams asked for, such as `async_operations_total`, stand beside those that follow the
//! conventions of Prometheus. Caches publish themselves when they are opened.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ::monitor::collect::{Collector, CollectorOptions};
use ::monitor::{
    Clock as _, Format, Kind, Monitor, Readings, Registry, RegistryOptions, Renderer, Snapshot,
    SystemClock, Unit,
};
use parking_lot::Mutex;

use crate::config::Config;
use crate::perf::MonitorSettings;
use crate::{MonitorError, UltraPerf, WeakUltraPerf};

#[cfg(feature = "loadbalancer")]
pub(crate) mod balancer;
#[cfg(feature = "memory")]
mod memory;
#[cfg(feature = "resilience")]
mod resilience;
#[cfg(feature = "scheduler")]
mod scheduler;

/// Without a monitor, the registry is read at most so often.
const ONCE_A: Duration = Duration::from_secs(1);

/// What a metric is: its name, its kind, its unit and a sentence of help.
pub(crate) type Family = (&'static str, Kind, Unit, &'static str);

const FAMILIES: &[Family] = &[
    ("config_version", Kind::Gauge, Unit::None, "Changes of the configuration since the start."),
    #[cfg(feature = "cache")]
    (
        "cache_requests_total",
        Kind::Counter,
        Unit::None,
        "Requests to a cache, by whether it answered; a stale answer is a hit.",
    ),
    ("scope_duration_seconds", Kind::Histogram, Unit::Seconds, "Time from begin to end of scopes."),
];

/// Describes metrics, before anybody looks them up.
pub(crate) fn describe(registry: &Registry, families: &[Family]) {
    for (name, kind, unit, help) in families {
        registry.describe(name, *kind, *unit, help);
    }
}

/// The handle, as the monitor's parts know it: they are made before it is.
#[derive(Debug, Clone, Default)]
pub(crate) struct Itself(Arc<OnceLock<WeakUltraPerf>>);

impl Itself {
    pub(crate) fn is(&self, perf: &UltraPerf) {
        // Said once, by whoever builds the handle.
        let _ = self.0.set(perf.downgrade());
    }

    pub(crate) fn get(&self) -> Option<UltraPerf> {
        self.0.get().and_then(WeakUltraPerf::upgrade)
    }
}

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
    pub(crate) fn start(
        config: &Config,
        more: Option<MonitorSettings>,
        itself: Itself,
    ) -> Result<Self, MonitorError> {
        let options = CollectorOptions {
            runtime: tokio::runtime::Handle::try_current().ok(),
            ..CollectorOptions::default()
        };
        let (registry, monitor, collector) = match config.monitor_builder()? {
            Some(builder) => {
                let builder = crate::advice::into_monitor(config, builder, itself);
                let more = more.unwrap_or_else(|| Box::new(|builder| builder));
                let monitor = more(builder.collector(Some(options))).start()?;
                (monitor.registry().clone(), Some(monitor), None)
            }
            None => {
                let series_per_name = config.monitor.series;
                let options_of = RegistryOptions { series_per_name, ..RegistryOptions::default() };
                let registry = Registry::new(options_of);
                let collector = Collector::start(&registry, options);
                let collector = collector.map_err(::monitor::StartError::Thread)?;
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

    /// Lets the registry read the parts of a handle, for as long as there is one.
    pub(crate) fn connect(&self, perf: &UltraPerf) {
        let registry = &self.registry;
        describe(registry, FAMILIES);
        #[cfg(feature = "scheduler")]
        describe(registry, scheduler::FAMILIES);
        #[cfg(feature = "memory")]
        describe(registry, memory::FAMILIES);
        #[cfg(feature = "resilience")]
        describe(registry, resilience::FAMILIES);
        #[cfg(feature = "loadbalancer")]
        describe(registry, balancer::FAMILIES);
        let weak = perf.downgrade();
        registry.collect(move |out: &mut Readings| {
            let Some(perf) = weak.upgrade() else { return };
            out.gauge("config_version", &[], perf.version() as f64);
            #[cfg(feature = "scheduler")]
            scheduler::report(&perf.scheduler().stats(), out);
            #[cfg(feature = "memory")]
            if let Some(guard) = perf.memory() {
                memory::report(guard, out);
            }
            #[cfg(feature = "resilience")]
            resilience::report(&perf, out);
            #[cfg(feature = "loadbalancer")]
            perf.0.balancers.report(out);
        });
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

    pub(crate) fn render(&self, format: Format) -> Arc<[u8]> {
        match &self.monitor {
            Some(monitor) => monitor.render(format),
            None => self.renderer.render(&self.snapshot(), format),
        }
    }

    pub(crate) fn shutdown(&self, deadline: Duration) {
        if let Some(monitor) = &self.monitor {
            monitor.shutdown(deadline);
        }
    }
}
