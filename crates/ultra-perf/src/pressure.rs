//! The guard over the process's memory as configured, and what its level means to others.

use memory::{MemoryGuard, MemoryGuardBuilder};

use crate::config::Config;

impl Config {
    /// Describes a guard of the process's memory with the limit and threshold of the configuration.
    ///
    /// `None` where `memory.enabled` is `false`. The program adds its allocator and starts it.
    ///
    /// # Examples
    ///
    /// ```
    /// use ultra_perf::config::ConfigLoader;
    ///
    /// let config = ConfigLoader::new()
    ///     .set("memory.limit", "8GiB", "the program")
    ///     .set("cache.disk.enabled", "false", "the program")
    ///     .load()?;
    /// let guard = config.memory_guard_builder().expect("it is enabled").start()?;
    /// assert!(!guard.should_cleanup());
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn memory_guard_builder(&self) -> Option<MemoryGuardBuilder> {
        let settings = &self.memory;
        let threshold = settings.cleanup_threshold.as_f64();
        // Ten points below the threshold, and half of it where that is little.
        let headroom = (threshold / 2.0).min(0.1);
        let builder = MemoryGuard::builder().cleanup_threshold(threshold).headroom(headroom);
        settings.enabled.then(|| match settings.limit {
            Some(limit) => builder.limit_bytes(limit.as_u64()),
            None => builder,
        })
    }
}

/// The share of their memory budget that tasks in the background have at a level of pressure.
#[cfg(feature = "scheduler")]
pub(crate) fn scale_at(level: memory::Level) -> f64 {
    match level {
        memory::Level::Critical => 0.0,
        memory::Level::High => 0.5,
        _ => 1.0,
    }
}
