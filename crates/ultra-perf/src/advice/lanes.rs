//! What the figures of the scheduler's lanes say about their limits and about the tasks in them.

use std::time::Duration;

use monitor::advice::words::{number, percent, seconds};
use monitor::advice::{Action, Category, Effort, Finding, Priority};
use monitor::insight::{MetricSpec, Worse};
use monitor::score::ScoreMetric;
use monitor::{Aggregate, Comparison, Matcher, Selector};
use scheduler::{Lane, Priority as Level};

use super::{Aims, Look, Rule, labelled};

/// Tasks without which nothing is said.
const TASKS_MIN: f64 = 100.0;
/// Part of the time in which all slots are taken, from which on the limit is what holds tasks up.
const BUSY: f64 = 0.9;

pub(super) const RULES: &[Rule] = &[
    Rule {
        id: "sched.under_parallel",
        sees: "tasks wait longer than aimed at, over 90 % of the slots are taken, and the processors are below 70 %",
        does: "raises the limit of the lane by a quarter",
        risk: 1,
        check: |look| each(look, under_parallel, |lane| vec![wait(lane), running(lane)]),
    },
    Rule {
        id: "sched.over_parallel",
        sees: "tasks wait for a processor over 20 % of the time, and more of them at once finish no more",
        does: "lowers the limit of the lane by a fifth",
        risk: 1,
        check: |look| {
            each(look, over_parallel, |lane| {
                vec![gauge("system_psi_cpu_some_ratio"), running(lane), ended(lane)]
            })
        },
    },
    Rule {
        id: "sched.starvation",
        sees: "the oldest task of a level has waited ten times as long as the level may",
        does: "advice: more room for the lane, or less that is urgent",
        risk: 0,
        check: |look| each(look, starvation, |lane| vec![wait(lane), running(lane)]),
    },
    Rule {
        id: "sched.retry_storm",
        sees: "over 20 % of the executions are further attempts",
        does: "advice: longer pauses between attempts, or a breaker",
        risk: 0,
        check: |look| each(look, retry_storm, |lane| vec![retries(lane), ended(lane)]),
    },
    Rule {
        id: "sched.shedding",
        sees: "over 1 % of the tasks are refused, given up or time out in the queue",
        does: "advice: fewer tasks or a faster lane",
        risk: 0,
        check: |look| each(look, shedding, |lane| vec![ended(lane), wait(lane)]),
    },
    Rule {
        id: "sched.blocking_in_async",
        sees: "workers of the runtime are inside of tasks without computing, for over a fifth of their time",
        does: "advice: move what waits to the lane `Blocking`",
        risk: 0,
        check: |look| {
            let of = WorkersReading::read(look);
            let findings = of.as_ref().and_then(blocking_in_async).into_iter();
            let evidence = [total("tokio_busy_seconds_total"), total("process_cpu_seconds_total")];
            findings.map(|one| Finding { evidence: look.evidence(&evidence), ..one }).collect()
        },
    },
];

/// What one lane did in the window.
#[derive(Debug, Clone)]
pub(super) struct LaneReading {
    pub(super) lane: Lane,
    /// Tasks that may run at a time, as configured.
    pub(super) limit: usize,
    /// The most that may be set while the program runs.
    pub(super) most: usize,
    /// Part of the slots that were taken, on average.
    pub(super) busy: f64,
    /// The 95th percentile of the time that tasks waited, those of the level `Low` aside.
    pub(super) wait_seconds: Option<f64>,
    pub(super) cpu: Option<f64>,
    /// Part of the time in which some task of the machine waited for a processor.
    pub(super) cpu_pressure: Option<f64>,
    /// Tasks that ran at a time, in the first and in the second half of the window.
    pub(super) running: Option<[f64; 2]>,
    /// Tasks that ended, in the first and in the second half of the window.
    pub(super) ended: Option<[f64; 2]>,
    /// Tasks that ended, whichever way.
    pub(super) tasks: f64,
    pub(super) retried: f64,
    /// Tasks that were refused, given up or timed out.
    pub(super) lost: f64,
    /// The level whose oldest task has waited longest by its own measure, with that time and what it may.
    pub(super) oldest: Option<(Level, Duration, Duration)>,
}

impl LaneReading {
    fn key(&self) -> &'static str {
        match self.lane {
            Lane::Io => "scheduler.io.max_in_flight",
            Lane::Cpu => "scheduler.cpu.threads",
            Lane::Blocking => "scheduler.blocking.max",
        }
    }

    fn finding(&self, priority: Priority, title: String, recommendation: String) -> Finding {
        Finding {
            subject: self.lane.to_string(),
            effort: Effort::Low,
            ..Finding::advice(Category::Scheduler, priority, title, recommendation)
        }
    }
}

/// How long tasks of a level may wait before it is aged, as the scheduler has it unless told.
fn may_wait(level: Level) -> Duration {
    Duration::from_millis(match level {
        Level::Critical => 10,
        Level::High => 50,
        Level::Normal => 200,
        Level::Low => 1_000,
    })
}

fn each(
    look: &Look<'_>,
    rule: fn(&LaneReading, &Aims<'_>) -> Option<Finding>,
    metrics: fn(&str) -> Vec<MetricSpec>,
) -> Vec<Finding> {
    let aims = look.aims();
    let stats = look.perf.scheduler().stats();
    let read = |lane: &Lane| {
        let of = read(look, &stats, *lane)?;
        let finding = rule(&of, &aims)?;
        Some(Finding { evidence: look.evidence(&metrics(lane.name())), ..finding })
    };
    Lane::ALL.iter().filter_map(read).collect()
}

fn read(look: &Look<'_>, stats: &scheduler::SchedulerStats, lane: Lane) -> Option<LaneReading> {
    let (settings, of) = (&look.config.scheduler, stats.lane(lane));
    let limit = match lane {
        Lane::Io => settings.io.max_in_flight,
        Lane::Cpu => settings.cpu.threads,
        Lane::Blocking => settings.blocking.max,
    };
    let most = match lane {
        Lane::Io => 65_536,
        // There are no more threads than at the start.
        Lane::Cpu => of.slots.max(limit),
        Lane::Blocking => 512,
    };
    let name = lane.name();
    let labels = [("lane", name)];
    let slots = look.read("scheduler_slots", &labels, Aggregate::Avg)?.max(1.0);
    let busy = look.read("scheduler_running", &labels, Aggregate::Avg)? / slots;
    let halves = |metric: &str, aggregate| {
        let selector = labelled(metric, &labels);
        let [first, second] = look.halves().map(|half| look.read_in(half, &selector, aggregate));
        Some([first?, second?])
    };
    let outcome = |outcome: &str| {
        look.grown("scheduler_tasks_total", &[("lane", name), ("outcome", outcome)])
    };
    let lost = ["refused", "shed", "timed_out"].map(outcome).iter().sum();
    let by_measure =
        |(_, waited, may): &(Level, Duration, Duration)| waited.as_secs_f64() / may.as_secs_f64();
    let levels = of.levels.iter().filter(|level| level.queued > 0);
    Some(LaneReading {
        lane,
        limit,
        most,
        busy,
        wait_seconds: look.read_in(look.window(), &wait(name).selector, Aggregate::Quantile(0.95)),
        cpu: look.read("system_cpu_usage_ratio", &[], Aggregate::Avg),
        cpu_pressure: look.read("system_psi_cpu_some_ratio", &[], Aggregate::Avg),
        running: halves("scheduler_running", Aggregate::Avg),
        ended: halves("scheduler_tasks_total", Aggregate::Delta),
        tasks: look.grown("scheduler_tasks_total", &labels),
        retried: look.grown("scheduler_retries_total", &labels),
        lost,
        oldest: levels
            .map(|level| (level.priority, level.oldest, may_wait(level.priority)))
            .max_by(|a, b| by_measure(a).total_cmp(&by_measure(b))),
    })
}

fn under_parallel(of: &LaneReading, aims: &Aims<'_>) -> Option<Finding> {
    const CPU: f64 = 0.7;
    let target = aims.queue_wait.as_secs_f64();
    let wait_seconds = of.wait_seconds.filter(|wait| *wait > target)?;
    let cpu = of.cpu.filter(|cpu| *cpu < CPU)?;
    let to = (of.limit + of.limit.div_ceil(4)).min(of.most);
    if of.busy <= BUSY || of.tasks < TASKS_MIN {
        return None;
    }
    let title = format!(
        "Lane `{}`: one of 20 tasks waits longer than {} (aimed at {}), {} of {} slots are taken, and the \
            processors are busy {}",
        of.lane,
        seconds(wait_seconds),
        seconds(target),
        percent(of.busy.min(1.0)),
        of.limit,
        percent(cpu)
    );
    let why = "What waits for others leaves the processors idle; more of it at a time uses them."
        .to_owned();
    if to <= of.limit {
        let text =
            "Start with more threads: while the program runs, the lane has no more".to_owned();
        return Some(Finding {
            why,
            current_value: Some(wait_seconds),
            ..of.finding(Priority::Medium, title, text)
        });
    }
    let spec = wait(of.lane.name());
    // Other lanes wait as long as they do.
    let scored = aims
        .now(ScoreMetric::QueueWaitP95)
        .filter(|all| *all >= wait_seconds / 2.0)
        .map(|_| (ScoreMetric::QueueWaitP95, target));
    Some(Finding {
        why,
        current_value: Some(wait_seconds),
        target_value: Some(target),
        action: Some(Action::set(of.key(), of.limit, to)),
        expected: Some(aims.expected(&spec, wait_seconds, target, scored)),
        target: Some(spec),
        risk: 1,
        confidence: 0.8,
        ..of.finding(
            if wait_seconds > 10.0 * target { Priority::High } else { Priority::Medium },
            title,
            format!("Raise `{}` from {} to {to}", of.key(), of.limit),
        )
    })
}

fn over_parallel(of: &LaneReading, _: &Aims<'_>) -> Option<Finding> {
    const PRESSURE: f64 = 0.2;
    /// More tasks at a time, and what they must not have brought.
    const GREW: f64 = 0.1;
    const FLAT: f64 = 0.02;
    let pressure = of.cpu_pressure.filter(|pressure| *pressure > PRESSURE)?;
    let growth = |[first, second]: [f64; 2]| (second - first) / first.max(1e-9);
    let (more, done) = (growth(of.running?), growth(of.ended?));
    let to = of.limit - (of.limit / 5).max(1).min(of.limit - 1);
    if more < GREW || done > FLAT || of.tasks < TASKS_MIN || to >= of.limit {
        return None;
    }
    let spec = MetricSpec { worse: Worse::Lower, ..ended(of.lane.name()) };
    Some(Finding {
        why: "Beyond what the processors can do, more at a time only makes each of them slower.".to_owned(),
        current_value: Some(of.limit as f64),
        target_value: Some(to as f64),
        action: Some(Action::set(of.key(), of.limit, to)),
        target: Some(gauge("system_psi_cpu_some_ratio")),
        also: vec![spec],
        risk: 1,
        confidence: 0.7,
        ..of.finding(
            Priority::Medium,
            format!(
                "Lane `{}`: {} more tasks ran at a time and {} more ended, while tasks waited for a \
                    processor {} of the time",
                of.lane,
                percent(more),
                percent(done.max(0.0)),
                percent(pressure)
            ),
            format!("Lower `{}` from {} to {to}", of.key(), of.limit),
        )
    })
}

fn starvation(of: &LaneReading, _: &Aims<'_>) -> Option<Finding> {
    let (level, waited, may) = of.oldest?;
    if waited < may * 10 {
        return None;
    }
    Some(Finding {
        why: "A level that has waited longer than it may gets its share, but no more than that.".to_owned(),
        current_value: Some(waited.as_secs_f64()),
        target_value: Some(may.as_secs_f64()),
        effort: Effort::Medium,
        ..of.finding(
            Priority::Medium,
            format!(
                "Lane `{}`: the oldest task of level {level} has waited {} (it may wait {})",
                of.lane,
                seconds(waited.as_secs_f64()),
                seconds(may.as_secs_f64())
            ),
            format!(
                "Give the lane more room (`{}` is {}), submit less at the levels above, or set a shorter \
                    `ageing_target`",
                of.key(),
                of.limit
            ),
        )
    })
}

fn retry_storm(of: &LaneReading, _: &Aims<'_>) -> Option<Finding> {
    let executions = of.tasks + of.retried;
    let part = of.retried / executions.max(1.0);
    if of.tasks < TASKS_MIN || part <= 0.2 {
        return None;
    }
    Some(Finding {
        why: "Attempts that follow each other quickly keep what is failing from coming back."
            .to_owned(),
        current_value: Some(part),
        target_value: Some(0.01),
        effort: Effort::Medium,
        ..of.finding(
            Priority::High,
            format!(
                "Lane `{}`: {} of {executions:.0} executions are further attempts",
                of.lane,
                percent(part)
            ),
            "Double the first pause between attempts, keep its jitter, and put a circuit breaker \
                around what fails"
                .to_owned(),
        )
    })
}

fn shedding(of: &LaneReading, _: &Aims<'_>) -> Option<Finding> {
    let all = of.tasks.max(1.0);
    let part = of.lost / all;
    if of.tasks < TASKS_MIN || part <= 0.01 {
        return None;
    }
    Some(Finding {
        why: "The lane gets more than it can do, so it does without some.".to_owned(),
        current_value: Some(part),
        target_value: Some(0.0),
        effort: Effort::Medium,
        ..of.finding(
            Priority::High,
            format!(
                "Lane `{}`: {:.0} of {all:.0} tasks were refused, given up or timed out ({})",
                of.lane,
                of.lost,
                percent(part)
            ),
            format!(
                "Submit less, make the tasks shorter, or give the lane more room: `{}` is {}, and {} of it \
                    is in use",
                of.key(),
                of.limit,
                percent(of.busy.min(1.0))
            ),
        )
    })
}

/// What the runtime's workers did in the window.
#[derive(Debug, Clone, Copy)]
pub(super) struct WorkersReading {
    pub(super) workers: f64,
    /// Workers that were inside of tasks, on average.
    pub(super) busy: f64,
    /// Processors that the process used, on average.
    pub(super) cpu: f64,
}

impl WorkersReading {
    fn read(look: &Look<'_>) -> Option<Self> {
        let length = look.window().length_ms() as f64 / 1_000.0;
        let per_second = |name| Some(look.read(name, &[], Aggregate::Delta)? / length);
        Some(Self {
            workers: look.read("tokio_workers", &[], Aggregate::Last)?,
            busy: per_second("tokio_busy_seconds_total")?,
            cpu: per_second("process_cpu_seconds_total")?,
        })
    }
}

fn blocking_in_async(of: &WorkersReading) -> Option<Finding> {
    // What all threads together compute is at most what the workers did: the rest they waited.
    let waited = (of.busy - of.cpu).max(0.0);
    let part = waited / of.workers.max(1.0);
    if part <= 0.2 {
        return None;
    }
    Some(Finding {
        why:
            "A worker that waits inside of a task runs none of the others; the process used fewer \
            processors than its workers were busy."
                .to_owned(),
        current_value: Some(part),
        target_value: Some(0.0),
        effort: Effort::High,
        confidence: 0.8,
        ..Finding::advice(
            Category::Scheduler,
            Priority::High,
            format!(
                "{} of {} workers of the runtime wait inside of tasks ({} of their time)",
                number(waited),
                number(of.workers),
                percent(part)
            ),
            "Find what blocks (files, locks, clients without async) and run it in the lane `Blocking`",
        )
    })
}

/// The time that tasks waited, those of the level `Low` aside: they are meant to wait.
fn wait(lane: &str) -> MetricSpec {
    let mut selector = labelled("scheduler_queue_wait_seconds", &[("lane", lane)]);
    let low = Matcher::new("priority", Comparison::NotEqual, Level::Low.name());
    selector.matchers.push(low.expect("a comparison without expression"));
    MetricSpec::new("queue_wait_p95", selector, Aggregate::Quantile(0.95), Worse::Higher)
}

fn running(lane: &str) -> MetricSpec {
    let selector = labelled("scheduler_running", &[("lane", lane)]);
    MetricSpec::new("scheduler_running", selector, Aggregate::Avg, Worse::Higher)
}

fn ended(lane: &str) -> MetricSpec {
    let selector = labelled("scheduler_tasks_total", &[("lane", lane)]);
    MetricSpec::new("tasks_per_second", selector, Aggregate::Rate, Worse::Higher)
}

fn retries(lane: &str) -> MetricSpec {
    let selector = labelled("scheduler_retries_total", &[("lane", lane)]);
    MetricSpec::new("retries", selector, Aggregate::Delta, Worse::Higher)
}

fn gauge(name: &str) -> MetricSpec {
    MetricSpec::new(name, Selector::name(name), Aggregate::Avg, Worse::Higher)
}

fn total(name: &str) -> MetricSpec {
    MetricSpec::new(name, Selector::name(name), Aggregate::Rate, Worse::Higher)
}

#[cfg(test)]
mod tests;
