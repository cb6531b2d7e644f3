//! Rules that hold for any program: its machine, its requests, and the monitoring itself.
//!
//! A rule whose series do not exist says nothing. All of them are advice: what they find has causes that
//! no setting of this program removes.

use std::time::Duration;

use super::words::{bytes, duration as words, percent, seconds as time};
use super::{AdviceContext, AdviceRule, Category, Effort, Expected, Finding, Priority};
use crate::clock::millis;
use crate::insight::{
    self, DegradationOptions, Evidence, MetricSpec, Side, Worse, bottleneck, degradations,
};
use crate::score::{ScoreInputs, ScoreMetric, Targets};
use crate::selector::Selector;
use crate::series::Labels;
use crate::source::{Aggregate, Matched, Window};

/// When the generic rules speak, and where they look.
#[derive(Debug, Clone, PartialEq)]
pub struct GenericOptions {
    /// The window of most rules; ten minutes by default.
    pub window: Duration,
    /// What is aimed at.
    pub targets: Targets,
    /// Series of requests, processors and memory.
    pub inputs: ScoreInputs,
    /// Histogram of the seconds of the stages of requests, by the label `stage`;
    /// `http_request_stage_seconds` by default.
    pub stages: Selector,
    /// Processor use above which there is too little; 0.85 by default.
    pub cpu: f64,
    /// Part of the memory limit above which it is tight; 0.85 by default.
    pub memory: f64,
    /// Part of requests that fail above which something is wrong; 0.02 by default.
    pub error_ratio: f64,
    /// Part of the descriptors in use above which they run out; 0.8 by default.
    pub descriptors: f64,
    /// Part of a file system in use above which it is full soon; 0.9 by default.
    pub disk: f64,
    /// Part of the time in which tasks wait for memory or disk above which they are short; 0.1 by default.
    pub pressure: f64,
    /// Closed connections that linger above which connections are made anew too often; 1,000 by default,
    /// if they are also four times as many as those in use.
    pub lingering_connections: f64,
    /// How far ahead a limit is a problem; 24 hours by default.
    pub horizon: Duration,
}

impl Default for GenericOptions {
    fn default() -> Self {
        Self {
            window: Duration::from_secs(600),
            targets: Targets::default(),
            inputs: ScoreInputs::default(),
            stages: Selector::name("http_request_stage_seconds"),
            cpu: 0.85,
            memory: 0.85,
            error_ratio: 0.02,
            descriptors: 0.8,
            disk: 0.9,
            pressure: 0.1,
            lingering_connections: 1_000.0,
            horizon: Duration::from_secs(86_400),
        }
    }
}

/// Requests that a rule about requests needs in its window.
const REQUESTS_MIN: f64 = 100.0;
/// The window from which growth is told.
const GROWTH_WINDOW: Duration = Duration::from_secs(6 * 3_600);

/// Returns the rules about processors, memory, descriptors, disks, pressure, connections, requests and the
/// monitoring itself.
#[must_use]
pub fn generic_rules(options: &GenericOptions) -> Vec<Box<dyn AdviceRule>> {
    type Check = fn(&Look<'_>) -> Vec<Finding>;
    let rules: [(&'static str, Check); 12] = [
        ("system.cpu_saturation", cpu_saturation),
        ("memory.high", memory_high),
        ("memory.growth", memory_growth),
        ("requests.errors", errors),
        ("requests.latency", latency),
        ("requests.degraded", degraded),
        ("system.descriptors", descriptors),
        ("system.disk_filling", disk_filling),
        ("system.pressure", pressure),
        ("system.connection_churn", connection_churn),
        ("monitor.cardinality", cardinality),
        ("monitor.late_ticks", late_ticks),
    ];
    rules
        .into_iter()
        .map(|(id, check)| {
            Box::new(Generic { id, check, options: options.clone() }) as Box<dyn AdviceRule>
        })
        .collect()
}

struct Generic {
    id: &'static str,
    check: fn(&Look<'_>) -> Vec<Finding>,
    options: GenericOptions,
}

impl AdviceRule for Generic {
    fn id(&self) -> &str {
        self.id
    }

    fn check(&self, context: &AdviceContext<'_>) -> Vec<Finding> {
        (self.check)(&Look { context: *context, options: &self.options })
    }
}

/// What a rule looks at and with.
struct Look<'a> {
    context: AdviceContext<'a>,
    options: &'a GenericOptions,
}

impl Look<'_> {
    fn window(&self) -> Window {
        Window::ending(self.context.at_ms, millis(self.options.window))
    }

    fn matching(&self, selector: &Selector) -> Vec<Matched> {
        self.context.source.matching(selector)
    }

    fn read(&self, series: &[Matched], aggregate: Aggregate) -> Option<f64> {
        let ids: Vec<_> = series.iter().map(|matched| matched.id).collect();
        let read = self.context.source.aggregate(&ids, self.window(), aggregate)?;
        // A program that has just started says little about itself.
        (read.samples.saturating_mul(2) >= read.expected).then_some(read.value)
    }

    fn value(&self, selector: &Selector, aggregate: Aggregate) -> Option<f64> {
        self.read(&self.matching(selector), aggregate)
    }

    fn evidence(&self, selector: &Selector, aggregate: Aggregate) -> Evidence {
        Evidence::read(self.context.source, selector, self.window(), aggregate)
    }

    /// Each series of a name with its mean, and that of the series with the same labels of another name.
    fn pairs(&self, part: &str, whole: &str) -> Vec<(Labels, f64, f64)> {
        let wholes = self.matching(&Selector::name(whole));
        let with_whole = |one: Matched| {
            let labels = one.key.labels.clone();
            let whole = wholes.iter().find(|whole| whole.key.labels == labels)?.clone();
            let part = self.read(&[one], Aggregate::Avg)?;
            let whole = self.read(&[whole], Aggregate::Last).filter(|whole| *whole > 0.0)?;
            Some((labels, part, whole))
        };
        self.matching(&Selector::name(part)).into_iter().filter_map(with_whole).collect()
    }

    fn expected(&self, metric: ScoreMetric, name: &Selector, from: f64, to: f64) -> Expected {
        let points = self.context.score.and_then(|score| score.expected_points(metric, to));
        Expected { metric: name.to_string(), from, to, points }
    }
}

fn cpu_saturation(look: &Look<'_>) -> Vec<Finding> {
    let selector = &look.options.inputs.cpu;
    let Some(used) = look.value(selector, Aggregate::Avg).filter(|used| *used > look.options.cpu)
    else {
        return Vec::new();
    };
    let aim = 0.65;
    let more = percent(used / aim - 1.0);
    let own = look.value(&Selector::name("process_cpu_usage_ratio"), Aggregate::Avg);
    let share =
        own.map_or_else(String::new, |own| format!("; this process takes {}", percent(own)));
    let mut finding = Finding::advice(
        Category::Cpu,
        if used > 0.95 { Priority::High } else { Priority::Medium },
        format!(
            "Processors are busy {} of the time over {}{share}",
            percent(used),
            words(look.options.window)
        ),
        format!(
            "Take a CPU profile for 30 seconds and look at the widest frames; or \
                give the program {more} more processor, or let it admit fewer requests \
                at once"
        ),
    );
    finding.why =
        "Above about two thirds of the processors, waiting grows faster than load.".to_owned();
    (finding.current_value, finding.target_value) = (Some(used), Some(aim));
    finding.evidence = vec![look.evidence(selector, Aggregate::Avg)];
    finding.expected = Some(look.expected(ScoreMetric::Cpu, selector, used, aim));
    vec![finding]
}

fn memory_high(look: &Look<'_>) -> Vec<Finding> {
    let selector = &look.options.inputs.resident_memory;
    let used = look.value(selector, Aggregate::Avg);
    let limit = look.value(&look.options.inputs.memory_limit, Aggregate::Last);
    let Some((used, limit)) = used.zip(limit.filter(|limit| *limit > 0.0)) else {
        return Vec::new();
    };
    let ratio = used / limit;
    if ratio <= look.options.memory {
        return Vec::new();
    }
    let aim = 0.7;
    let mut finding = Finding::advice(
        Category::Memory,
        if ratio > 0.95 { Priority::Critical } else { Priority::High },
        format!(
            "The process uses {} of its {} of memory ({})",
            bytes(used),
            bytes(limit),
            percent(ratio)
        ),
        format!(
            "Free {} (smaller caches, fewer idle buffers), or raise the limit to {}",
            bytes(used - limit * aim),
            bytes(used / aim)
        ),
    );
    finding.why =
        "A process that reaches its limit is killed by the kernel without notice.".to_owned();
    (finding.current_value, finding.target_value) = (Some(ratio), Some(aim));
    finding.evidence = vec![look.evidence(selector, Aggregate::Avg)];
    finding.expected = Some(look.expected(ScoreMetric::MemoryOfLimit, selector, ratio, aim));
    vec![finding]
}

fn memory_growth(look: &Look<'_>) -> Vec<Finding> {
    let selector = &look.options.inputs.resident_memory;
    let limit = look.value(&look.options.inputs.memory_limit, Aggregate::Last);
    let Some(limit) = limit.filter(|limit| *limit > 0.0) else { return Vec::new() };
    let (source, at_ms) = (look.context.source, look.context.at_ms);
    let found = insight::forecast(
        source,
        selector,
        Aggregate::Avg,
        GROWTH_WINDOW,
        at_ms,
        limit,
        Side::Above,
    );
    let Some(found) = found else { return Vec::new() };
    let left = found.forecast.expected_seconds;
    // Growth that a start-up explains says nothing about the next day.
    let long_enough = found.trend.seconds >= GROWTH_WINDOW.as_secs_f64() / 6.0;
    if left > look.options.horizon.as_secs_f64() || !found.trend.is_clear() || !long_enough {
        return Vec::new();
    }
    let per_hour = found.trend.slope * 3_600.0;
    let latest = found.forecast.latest_seconds.map_or_else(|| "never".to_owned(), time);
    let mut finding = Finding::advice(
        Category::Memory,
        if left < 3_600.0 { Priority::Critical } else { Priority::High },
        format!(
            "Memory grows by {} an hour and reaches its limit of {} in {} (between \
                {} and {latest})",
            bytes(per_hour),
            bytes(limit),
            time(left),
            time(found.forecast.soonest_seconds),
        ),
        "Look for a leak: take two heap profiles an hour apart and compare them; \
            until it is found, shrink caches by a fifth or restart in a quiet hour",
    );
    finding.why =
        "The growth is significant and larger than the noise over the last hours.".to_owned();
    (finding.current_value, finding.target_value) = (Some(per_hour), Some(0.0));
    finding.evidence = vec![found.evidence];
    finding.effort = Effort::High;
    finding.confidence = (found.trend.z.abs() / 10.0).clamp(0.5, 0.99);
    vec![finding]
}

fn errors(look: &Look<'_>) -> Vec<Finding> {
    let inputs = &look.options.inputs;
    let requests = look.value(&inputs.requests, Aggregate::Delta).unwrap_or(0.0);
    let failed = look.value(&inputs.failed_requests, Aggregate::Delta).unwrap_or(0.0);
    let ratio = failed / requests.max(1.0);
    if requests < REQUESTS_MIN || ratio <= look.options.error_ratio {
        return Vec::new();
    }
    // Where they come from: the label values with most failures.
    let mut worst: Vec<(f64, String)> = look
        .matching(&inputs.failed_requests)
        .into_iter()
        .filter_map(|one| {
            let labels = one.key.labels.to_string();
            Some((look.read(&[one], Aggregate::Delta)?, labels))
        })
        .collect();
    worst.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    let place = worst.first().filter(|(count, _)| *count > 0.0).map_or_else(String::new, |worst| {
        format!(", {} of them at {}", percent(worst.0 / failed), worst.1)
    });
    let mut finding = Finding::advice(
        Category::Errors,
        if ratio > 0.1 { Priority::Critical } else { Priority::High },
        format!(
            "{failed:.0} of {requests:.0} requests failed over {} ({}){place}",
            words(look.options.window),
            percent(ratio),
        ),
        "Look at the log of those requests first; if a dependency fails, open \
            its circuit breaker so that it fails fast",
    );
    finding.why =
        format!("More than {} is not what users accept.", percent(look.options.error_ratio));
    (finding.current_value, finding.target_value) = (Some(ratio), Some(0.001));
    finding.evidence = vec![
        look.evidence(&inputs.failed_requests, Aggregate::Delta),
        look.evidence(&inputs.requests, Aggregate::Delta),
    ];
    finding.expected =
        Some(look.expected(ScoreMetric::ErrorRatio, &inputs.failed_requests, ratio, 0.001));
    vec![finding]
}

fn latency(look: &Look<'_>) -> Vec<Finding> {
    let selector = &look.options.inputs.request_seconds;
    let target = look.options.targets.p95.as_secs_f64();
    let count = look.value(selector, Aggregate::Count).unwrap_or(0.0);
    let p95 = look.value(selector, Aggregate::Quantile(0.95));
    let Some(p95) = p95.filter(|p95| *p95 > target && count >= REQUESTS_MIN) else {
        return Vec::new();
    };
    let (source, window) = (look.context.source, look.options.window);
    let stage =
        bottleneck(source, selector, &look.options.stages, "stage", window, look.context.at_ms);
    let mut evidence = vec![look.evidence(selector, Aggregate::Quantile(0.95))];
    let (cause, action) = match stage {
        Some(found) => {
            let words = format!("; stage `{}` makes {} of it", found.stage, percent(found.share));
            evidence.extend(found.evidence.into_iter().skip(1));
            (
                words,
                format!(
                    "Make the stage `{}` faster first: nothing else can bring as much",
                    found.stage
                ),
            )
        }
        None => (
            String::new(),
            "Record the stages of a request into \
                `http_request_stage_seconds{stage=..}`, so that the slow one is named; \
                until then look at the slowest routes"
                .to_owned(),
        ),
    };
    let mut finding = Finding::advice(
        Category::Latency,
        if p95 > 4.0 * target { Priority::High } else { Priority::Medium },
        format!(
            "One of 20 requests takes longer than {} over {} (target {}){cause}",
            time(p95),
            words(window),
            time(target),
        ),
        action,
    );
    finding.why = format!("{count:.0} requests were measured.");
    (finding.current_value, finding.target_value) = (Some(p95), Some(target));
    finding.evidence = evidence;
    finding.expected = Some(look.expected(ScoreMetric::P95, selector, p95, target));
    vec![finding]
}

fn degraded(look: &Look<'_>) -> Vec<Finding> {
    let selector = look.options.inputs.request_seconds.clone();
    let count = look.value(&selector, Aggregate::Count).unwrap_or(0.0);
    if count < REQUESTS_MIN {
        return Vec::new();
    }
    let spec = MetricSpec::new("response_time", selector, Aggregate::Quantile(0.95), Worse::Higher);
    let options = DegradationOptions { now: look.options.window, ..DegradationOptions::default() };
    let found = degradations(look.context.source, &[spec], look.context.at_ms, &options);
    let finding = found.into_iter().filter(|found| found.degraded).map(|found| {
        let mut finding = Finding::advice(
            Category::Latency,
            Priority::Medium,
            format!(
                "Requests take {} at the 95th percentile, usually {} ({} more)",
                time(found.now),
                time(found.usual.median),
                percent(found.change),
            ),
            "Compare with what changed at that time: a release, a setting, the load, a dependency",
        );
        finding.why = format!("That is {:.1} deviations from the usual.", found.z);
        (finding.current_value, finding.target_value) = (Some(found.now), Some(found.usual.median));
        finding.evidence = vec![found.evidence, found.usual.evidence];
        finding.confidence = (found.z.abs() / 10.0).clamp(0.3, 0.95);
        finding
    });
    finding.collect()
}

fn descriptors(look: &Look<'_>) -> Vec<Finding> {
    let (open, limit) = (Selector::name("process_open_fds"), Selector::name("process_max_fds"));
    let most = look.value(&open, Aggregate::Max);
    let Some((most, limit)) = most.zip(look.value(&limit, Aggregate::Last).filter(|l| *l > 0.0))
    else {
        return Vec::new();
    };
    let ratio = most / limit;
    if ratio <= look.options.descriptors {
        return Vec::new();
    }
    let mut finding = Finding::advice(
        Category::Network,
        if ratio > 0.95 { Priority::Critical } else { Priority::High },
        format!("{most:.0} of {limit:.0} file descriptors are open ({})", percent(ratio)),
        format!(
            "Raise the limit to {:.0} (`LimitNOFILE=` of the service, or `ulimit \
                -n`), and check that connections are closed or pooled",
            (most * 2.0).max(65_536.0)
        ),
    );
    finding.why = "At the limit no connection is accepted and no file opened.".to_owned();
    (finding.current_value, finding.target_value) = (Some(ratio), Some(look.options.descriptors));
    finding.evidence = vec![look.evidence(&open, Aggregate::Max)];
    vec![finding]
}

fn disk_filling(look: &Look<'_>) -> Vec<Finding> {
    let pairs = look.pairs("system_filesystem_used_bytes", "system_filesystem_size_bytes");
    let findings = pairs.into_iter().filter_map(|(labels, used, size)| {
        let mount = labels.get("mountpoint").unwrap_or("").to_owned();
        let mut selector = Selector::name("system_filesystem_used_bytes");
        let matcher = crate::selector::Matcher::new(
            "mountpoint",
            crate::selector::Comparison::Equal,
            mount.as_str(),
        );
        selector.matchers.push(matcher.ok()?);
        let forecast = insight::forecast(
            look.context.source,
            &selector,
            Aggregate::Avg,
            GROWTH_WINDOW,
            look.context.at_ms,
            size,
            Side::Above,
        );
        let left = forecast.map(|found| found.forecast.expected_seconds);
        let soon = left.filter(|left| *left < look.options.horizon.as_secs_f64());
        let ratio = used / size;
        if ratio <= look.options.disk && soon.is_none() {
            return None;
        }
        let when = soon.map_or_else(String::new, |left| format!(", full in {}", time(left)));
        let mut finding = Finding::advice(
            Category::Disk,
            if ratio > 0.97 || soon.is_some_and(|left| left < 3_600.0) {
                Priority::Critical
            } else {
                Priority::High
            },
            format!(
                "`{mount}` holds {} of {} ({}){when}",
                bytes(used),
                bytes(size),
                percent(ratio)
            ),
            format!(
                "Free {} or enlarge it: `du -xh --max-depth=2 {mount} | sort -h | tail` \
                shows the largest folders",
                bytes(used - size * 0.8)
            ),
        );
        finding.subject = mount;
        finding.why = "A full file system stops logs, the history and most databases.".to_owned();
        (finding.current_value, finding.target_value) = (Some(ratio), Some(0.8));
        finding.evidence = vec![look.evidence(&selector, Aggregate::Avg)];
        Some(finding)
    });
    findings.collect()
}

fn pressure(look: &Look<'_>) -> Vec<Finding> {
    let resources = [
        (
            "memory",
            "system_psi_memory_some_ratio",
            Category::Memory,
            "Give the machine more memory or shrink caches: tasks wait for pages to \
                be freed or read back",
        ),
        (
            "io",
            "system_psi_io_some_ratio",
            Category::Disk,
            "Find who reads and writes with `iotop -o`, and move it to another disk \
                or another hour",
        ),
    ];
    let findings = resources.into_iter().filter_map(|(resource, name, category, action)| {
        let selector = Selector::name(name);
        let some =
            look.value(&selector, Aggregate::Avg).filter(|some| *some > look.options.pressure)?;
        let mut finding = Finding::advice(
            category,
            if some > 0.4 { Priority::High } else { Priority::Medium },
            format!(
                "Some task waits for {resource} {} of the time over {}",
                percent(some),
                words(look.options.window)
            ),
            action,
        );
        finding.subject = resource.to_owned();
        finding.why = "Measured by the kernel as pressure stall information.".to_owned();
        (finding.current_value, finding.target_value) = (Some(some), Some(look.options.pressure));
        finding.evidence = vec![look.evidence(&selector, Aggregate::Avg)];
        Some(finding)
    });
    findings.collect()
}

fn connection_churn(look: &Look<'_>) -> Vec<Finding> {
    let waiting = Selector::name("system_tcp_time_wait");
    let lingering = look.value(&waiting, Aggregate::Avg).unwrap_or(0.0);
    let used = look.value(&Selector::name("system_tcp_in_use"), Aggregate::Avg).unwrap_or(0.0);
    if lingering <= look.options.lingering_connections || lingering <= 4.0 * used {
        return Vec::new();
    }
    let mut finding = Finding::advice(
        Category::Network,
        Priority::Medium,
        format!("{lingering:.0} closed TCP connections linger, {used:.0} are in use"),
        "Keep connections alive and pool them, towards clients (keep-alive \
            time-outs) and towards backends",
    );
    finding.why =
        "Each new connection costs a round trip, a handshake and a port for a minute.".to_owned();
    (finding.current_value, finding.target_value) =
        (Some(lingering), Some(look.options.lingering_connections));
    finding.evidence = vec![look.evidence(&waiting, Aggregate::Avg)];
    vec![finding]
}

fn cardinality(look: &Look<'_>) -> Vec<Finding> {
    let name = "monitor_series_overflow_total";
    let findings = look.matching(&Selector::name(name)).into_iter().filter_map(|one| {
        let metric = one.key.labels.get("metric").unwrap_or("").to_owned();
        let selector = Selector {
            name: name.into(),
            matchers: vec![
                crate::selector::Matcher::new(
                    "metric",
                    crate::selector::Comparison::Equal,
                    metric.as_str(),
                )
                .ok()?,
            ],
        };
        let over = look.read(&[one], Aggregate::Delta).filter(|over| *over > 0.0)?;
        let mut finding = Finding::advice(
            Category::Monitoring,
            Priority::Medium,
            format!(
                "`{metric}` has more series than it may: {over:.0} lookups went to \
                `__other__` over {}",
                words(look.options.window)
            ),
            format!(
                "Drop the label of `{metric}` that has most values (often an id or a \
                path), or put its values into a few groups"
            ),
        );
        finding.subject = metric;
        finding.why = "Each value of a label is a series of its own, in memory, on disk and at \
            each scrape."
            .to_owned();
        (finding.current_value, finding.target_value) = (Some(over), Some(0.0));
        finding.evidence = vec![look.evidence(&selector, Aggregate::Delta)];
        finding.effort = Effort::High;
        finding.confidence = 1.0;
        Some(finding)
    });
    findings.collect()
}

fn late_ticks(look: &Look<'_>) -> Vec<Finding> {
    let selector = Selector::name("monitor_ticks_late_total");
    let late = look.value(&selector, Aggregate::Delta).unwrap_or(0.0);
    let share = late / look.options.window.as_secs_f64();
    if share <= 0.05 {
        return Vec::new();
    }
    let mut finding = Finding::advice(
        Category::Monitoring,
        Priority::Low,
        format!("{late:.0} readings came late over {}", words(look.options.window)),
        "Look at what blocks: a saturated machine, a suspended one, or a closure \
            that the registry watches and that takes too long",
    );
    finding.why =
        "A reading a second is due; values of late ones stand at the wrong moment.".to_owned();
    (finding.current_value, finding.target_value) = (Some(late), Some(0.0));
    finding.evidence = vec![look.evidence(&selector, Aggregate::Delta)];
    vec![finding]
}
