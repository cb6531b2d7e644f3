//! The scheduler with the bounds of the configuration.

use scheduler::{Lane, Priority, Scheduler, SchedulerBuilder};

use crate::UltraPerf;
use crate::config::Config;

impl Config {
    /// Describes a scheduler with the lanes, bounds and memory budget of `scheduler`.
    ///
    /// Its futures run on the tokio runtime in which it is built.
    ///
    /// # Examples
    ///
    /// ```
    /// use ultra_perf::{config::ConfigLoader, scheduler::Priority};
    ///
    /// let config = ConfigLoader::new()
    ///     .set("scheduler.cpu.threads", "2", "the program")
    ///     .set("cache.disk.enabled", "false", "the program")
    ///     .load()?;
    /// let scheduler = config.scheduler_builder().build()?;
    /// let sum = scheduler.cpu("sum", |_| (1..=100).sum::<u32>()).priority(Priority::High).submit()?;
    /// assert_eq!(sum.wait()?, 5_050);
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    pub fn scheduler_builder(&self) -> SchedulerBuilder {
        let settings = &self.scheduler;
        let mut builder = Scheduler::builder()
            .io_slots(settings.io.max_in_flight)
            .cpu_threads(settings.cpu.threads)
            .blocking_slots(settings.blocking.max)
            .memory_budget_bytes(settings.memory_budget.as_u64())
            .lane_tasks(settings.queue * Priority::ALL.len());
        // Elsewhere the threads that compute are like others.
        if settings.cpu.nice > 0 && cfg!(target_os = "linux") {
            builder = builder.cpu_nice(i32::try_from(settings.cpu.nice).unwrap_or(19));
        }
        if settings.cpu.reserved > 0 {
            builder = builder.reserve_threads(Priority::High, settings.cpu.reserved);
        }
        if settings.adaptive {
            for (lane, most) in
                [(Lane::Io, settings.io.max_in_flight), (Lane::Blocking, settings.blocking.max)]
            {
                builder = builder.limit_range(lane, least_of(most), most);
            }
        }
        let level =
            |builder: SchedulerBuilder, priority| builder.level_tasks(priority, settings.queue);
        Priority::ALL.into_iter().fold(builder, level)
    }
}

/// The least that an adaptive limit comes down to.
fn least_of(most: usize) -> usize {
    (most / 4).max(1)
}

/// Gives the lanes of a running scheduler the limits of a configuration that has changed.
pub(crate) fn follow(perf: &UltraPerf, before: &Config, after: &Config) {
    let scheduler = perf.scheduler();
    let (was, is) = (&before.scheduler, &after.scheduler);
    // Whether limits move is decided when the scheduler is built.
    let moves = perf.0.live.config_at_start().scheduler.adaptive;
    for (lane, was, is) in [
        (Lane::Io, was.io.max_in_flight, is.io.max_in_flight),
        (Lane::Cpu, was.cpu.threads, is.cpu.threads),
        (Lane::Blocking, was.blocking.max, is.blocking.max),
    ] {
        if was == is {
            continue;
        }
        if moves && lane != Lane::Cpu {
            scheduler.set_limit_range(lane, least_of(is), is);
        } else {
            scheduler.set_limit(lane, Some(is));
        }
    }
    if was.memory_budget != is.memory_budget {
        scheduler.set_memory_budget_bytes(is.memory_budget.as_u64());
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
