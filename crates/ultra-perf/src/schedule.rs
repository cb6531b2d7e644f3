//! The scheduler with the bounds of the configuration.

use scheduler::{Priority, Scheduler, SchedulerBuilder};

use crate::UltraPerf;

impl UltraPerf {
    /// Describes a scheduler with the lanes, bounds and memory budget of `scheduler`.
    ///
    /// Its futures run on the tokio runtime in which it is built.
    ///
    /// # Examples
    ///
    /// ```
    /// use ultra_perf::{UltraPerf, config::ConfigLoader, scheduler::Priority};
    ///
    /// let config = ConfigLoader::new()
    ///     .set("scheduler.cpu.threads", "2", "the program")
    ///     .set("cache.disk.enabled", "false", "the program")
    ///     .load()?;
    /// let scheduler = UltraPerf::new(config).scheduler().build()?;
    /// let sum = scheduler.cpu("sum", |_| (1..=100).sum::<u32>()).priority(Priority::High).submit()?;
    /// assert_eq!(sum.wait()?, 5_050);
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    pub fn scheduler(&self) -> SchedulerBuilder {
        let settings = &self.config.scheduler;
        let mut builder = Scheduler::builder()
            .io_slots(settings.io.max_in_flight)
            .cpu_threads(settings.cpu.threads)
            .blocking_slots(settings.blocking.max)
            .memory_budget_bytes(settings.memory_budget.as_u64())
            .lane_tasks(settings.queue * Priority::ALL.len());
        if settings.cpu.nice > 0 {
            builder = builder.cpu_nice(i32::try_from(settings.cpu.nice).unwrap_or(19));
        }
        let level =
            |builder: SchedulerBuilder, priority| builder.level_tasks(priority, settings.queue);
        Priority::ALL.into_iter().fold(builder, level)
    }
}

/// Runs what a cache hands away on the lane `Cpu`, when a cache is built with
/// [`executor`](cache_tiered::CacheBuilder::executor).
///
/// Opening what a caller waits for is `High`, sealing what goes to Redis is `Low`. What the scheduler
/// refuses, the cache does on tokio's blocking threads.
#[cfg(feature = "redis")]
pub fn offload_to(
    scheduler: &Scheduler,
) -> impl Fn(cache_tiered::OffloadedWork, Box<dyn FnOnce() + Send>) + Send + Sync + 'static {
    use cache_tiered::OffloadedWork;
    let scheduler = scheduler.clone();
    move |why, work| {
        let (name, priority) = match why {
            OffloadedWork::Read => ("open", Priority::High),
            _ => ("seal", Priority::Low),
        };
        // Refused, the work is dropped, and so done elsewhere.
        drop(scheduler.cpu(name, move |_| work()).priority(priority).spawn());
    }
}
