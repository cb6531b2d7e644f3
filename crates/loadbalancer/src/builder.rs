//! The settings of a balancer, and the check that finds every problem in them at once.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::backend::Backend;
use crate::balancer::Balancer;
use crate::health::{Ejecting, Thresholds};
use crate::policy::Policy;

/// Collects the settings of a [`Balancer`]; every one has a default.
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `build`"]
pub struct BalancerBuilder {
    policy: Policy,
    backends: Vec<Backend>,
    settings: Settings,
    seed: Option<u64>,
    on_build: Vec<Hook>,
}

/// Who hears of the balancer when it is there.
#[derive(Clone)]
struct Hook(Arc<dyn Fn(&Balancer) + Send + Sync>);

impl fmt::Debug for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hook(..)")
    }
}

/// What does not change while a balancer lives.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) backends_max: usize,
    pub(crate) queue_max: usize,
    pub(crate) wait_max: Duration,
    pub(crate) failure_penalty: Duration,
    pub(crate) ejecting: Ejecting,
    pub(crate) slow_start: Duration,
    pub(crate) panic_threshold: f64,
    pub(crate) zone: Option<Arc<str>>,
    pub(crate) checks: Option<Thresholds>,
}

const MILLISECOND: Duration = Duration::from_millis(1);
const DAY: Duration = Duration::from_hours(24);

impl BalancerBuilder {
    pub(crate) fn new() -> Self {
        let settings = Settings {
            backends_max: 10_000,
            queue_max: 1_024,
            wait_max: Duration::from_secs(1),
            failure_penalty: Duration::from_secs(5),
            ejecting: Ejecting::default(),
            slow_start: Duration::ZERO,
            panic_threshold: 0.5,
            zone: None,
            checks: None,
        };
        Self {
            policy: Policy::default(),
            backends: Vec::new(),
            settings,
            seed: None,
            on_build: Vec::new(),
        }
    }

    /// Sets how the next backend is chosen; [`Policy::PeakEwma`] unless told.
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// Adds a backend.
    pub fn backend(mut self, backend: Backend) -> Self {
        self.backends.push(backend);
        self
    }

    /// Adds backends.
    pub fn backends(mut self, backends: impl IntoIterator<Item = Backend>) -> Self {
        self.backends.extend(backends);
        self
    }

    /// Sets how many backends the set may have, now and later; 10,000 unless told.
    pub fn backends_max(mut self, backends: usize) -> Self {
        self.settings.backends_max = backends;
        self
    }

    /// Sets how many calls may wait while all backends are full; 1,024 unless told, 0 is no queue.
    pub fn queue_max(mut self, calls: usize) -> Self {
        self.settings.queue_max = calls;
        self
    }

    /// Sets how long a call waits at most: 1 ms to 24 hours; 1 s unless told.
    pub fn wait_max(mut self, wait: Duration) -> Self {
        self.settings.wait_max = wait;
        self
    }

    /// Sets what [`Policy::PeakEwma`] takes a failure's latency for, where it was not longer: up to
    /// 24 hours; 5 s unless told.
    ///
    /// A retry hint that is longer goes before it, up to 5 minutes.
    pub fn failure_penalty(mut self, penalty: Duration) -> Self {
        self.settings.failure_penalty = penalty;
        self
    }

    /// Sets when backends are ejected for failing; see [`Ejecting`] for what holds unless told.
    pub fn ejecting(mut self, ejecting: Ejecting) -> Self {
        self.settings.ejecting = ejecting;
        self
    }

    /// Sets over how long a backend that joins or comes back gets its weight, up to 24 hours; off
    /// unless told.
    pub fn slow_start(mut self, window: Duration) -> Self {
        self.settings.slow_start = window;
        self
    }

    /// Sets the share of healthy backends below which health is ignored: 0 to 1; 0.5 unless told, 0
    /// is off.
    ///
    /// When most backends look ill, the few others would be flooded, and more often than not it is
    /// the health that is wrong.
    pub fn panic_threshold(mut self, share: f64) -> Self {
        self.settings.panic_threshold = share;
        self
    }

    /// Sets the zone of this balancer, whose backends go before all others of their priority.
    ///
    /// They do while at least half of them are ready; the others also get what finds them full.
    /// Policies that place keys take no notice of zones.
    pub fn zone(mut self, zone: impl Into<Arc<str>>) -> Self {
        self.settings.zone = Some(zone.into());
        self
    }

    /// Takes only backends whose checks succeed; off unless told.
    ///
    /// Backends start unknown and get nothing until their checks have succeeded `rise` times. The
    /// results come from [`Balancer::report_check`].
    pub fn checks(mut self, thresholds: Thresholds) -> Self {
        self.settings.checks = Some(thresholds);
        self
    }

    /// Sets the seed of all choices, so that a schedule can be replayed; drawn at random unless told.
    ///
    /// A seed costs one shared counter for each pick.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Calls a closure with each balancer that this builds.
    pub fn on_build(mut self, hook: impl Fn(&Balancer) + Send + Sync + 'static) -> Self {
        self.on_build.push(Hook(Arc::new(hook)));
        self
    }

    /// Checks the settings and makes a balancer.
    ///
    /// # Errors
    ///
    /// [`BuildError`] with every problem in the settings.
    pub fn build(self) -> Result<Balancer, BuildError> {
        self.build_at(Instant::now())
    }

    /// Checks the settings and makes a balancer whose time begins at `now`.
    ///
    /// Later calls that pass a time pass one of the same clock; a time before `now` counts as `now`.
    ///
    /// # Errors
    ///
    /// As [`build`](Self::build).
    pub fn build_at(self, now: Instant) -> Result<Balancer, BuildError> {
        let problems = self.problems();
        if !problems.is_empty() {
            return Err(BuildError { problems });
        }
        let balancer = Balancer::new(self.settings, self.policy, self.backends, self.seed, now);
        self.on_build.iter().for_each(|hook| (hook.0)(&balancer));
        Ok(balancer)
    }

    fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let Settings {
            backends_max,
            wait_max,
            failure_penalty,
            slow_start,
            panic_threshold,
            ejecting,
            checks,
            ..
        } = &self.settings;
        let mut check = |holds: bool, setting: &str, value: &dyn fmt::Debug, expected| {
            if !holds {
                let value = format!("{value:?}");
                problems.push(Problem { setting: setting.to_owned(), value, expected });
            }
        };
        let share = |share: f64| (0.0..=1.0).contains(&share);
        let most = 1 << 24;
        check((1..=most).contains(backends_max), "backends_max", backends_max, "must be 1 to 2^24");
        check(
            (MILLISECOND..=DAY).contains(wait_max),
            "wait_max",
            wait_max,
            "must be from 1 ms to 24 hours",
        );
        let day = "must be at most 24 hours";
        check(*failure_penalty <= DAY, "failure_penalty", failure_penalty, day);
        check(*slow_start <= DAY, "slow_start", slow_start, day);
        check(share(*panic_threshold), "panic_threshold", panic_threshold, "must be from 0 to 1");
        let Ejecting { success_rate_gap, interval, base, longest, stable, share_max, .. } =
            ejecting;
        check(
            *success_rate_gap > 0.0 && *success_rate_gap <= 1.0,
            "ejecting.success_rate_gap",
            success_rate_gap,
            "must be above 0 and at most 1",
        );
        for (setting, time) in [
            ("ejecting.interval", interval),
            ("ejecting.base", base),
            ("ejecting.longest", longest),
            ("ejecting.stable", stable),
        ] {
            let holds = (MILLISECOND..=DAY).contains(time);
            check(holds, setting, time, "must be from 1 ms to 24 hours");
        }
        check(base <= longest, "ejecting.base", base, "must be at most ejecting.longest");
        check(share(*share_max), "ejecting.share_max", share_max, "must be from 0 to 1");
        if let Some(Thresholds { rise, fall }) = checks {
            check(*rise > 0, "checks.rise", rise, "must be at least 1");
            check(*fall > 0, "checks.fall", fall, "must be at least 1");
        }
        problems.extend(problem_of(&self.policy));
        check_backends(&self.backends, *backends_max, &mut problems);
        problems
    }
}

/// What is wrong with a policy.
pub(crate) fn problem_of(policy: &Policy) -> Option<Problem> {
    let (setting, value, expected) = policy.problem()?;
    Some(Problem { setting: setting.to_owned(), value, expected })
}

/// Adds what is wrong with a set.
pub(crate) fn check_backends(backends: &[Backend], most: usize, problems: &mut Vec<Problem>) {
    if backends.len() > most {
        problems.push(Problem {
            setting: "backends".to_owned(),
            value: format!("{} of them", backends.len()),
            expected: "must be at most backends_max",
        });
    }
    let mut seen = HashSet::new();
    for backend in backends {
        backend.check(problems);
        if !seen.insert(&backend.id) {
            problems.push(Problem {
                setting: format!("backend {:?}", backend.id),
                value: "listed again".to_owned(),
                expected: "must be listed once",
            });
        }
    }
}

/// Settings or backends that cannot be used; all problems are listed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "invalid balancer, {} problem{}:{}",
    problems.len(),
    if problems.len() == 1 { "" } else { "s" },
    Lines(problems)
)]
#[non_exhaustive]
pub struct BuildError {
    /// The problems, in the order of the settings.
    pub problems: Vec<Problem>,
}

/// A setting that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Problem {
    /// The name of the setting: the builder's method and what follows it.
    pub setting: String,
    /// The value seen.
    pub value: String,
    /// What would be right.
    pub expected: &'static str,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {}: {}", self.setting, self.value, self.expected)
    }
}

struct Lines<'a>(&'a [Problem]);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}
