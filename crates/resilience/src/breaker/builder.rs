//! The settings of a breaker, and the check that finds every problem in them at once.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::machine::{Listener, Machine, Settings};
use super::{CircuitBreaker, Shared, StateChange};
use crate::build_error::{BuildError, Problem, Problems};
use crate::correlator::Member;
use crate::nanos::nanos;

const MILLISECOND: Duration = Duration::from_millis(1);
const WINDOW_MIN: Duration = Duration::from_millis(10);
const WINDOW_MAX: Duration = Duration::from_hours(1);
const TIME_MAX: Duration = Duration::from_hours(24);
const PROBES_MAX: u32 = 0xffff;

type OnChange = Arc<dyn Fn(&StateChange<'_>) + Send + Sync>;

/// Collects the settings of a [`CircuitBreaker`]; every one has a default.
///
/// A clone is a template for more breakers of the same kind.
#[derive(Clone)]
#[must_use = "a builder does nothing until `build`"]
pub struct CircuitBreakerBuilder {
    name: String,
    window: Duration,
    minimum_calls: u32,
    failure_rate: f64,
    consecutive_failures: u32,
    slow_call: Option<Duration>,
    slow_call_rate: f64,
    open_base: Duration,
    open_max: Duration,
    stable_time: Duration,
    half_open_probes: u32,
    probe_timeout: Duration,
    ramp: Duration,
    seed: Option<u64>,
    on_change: Option<OnChange>,
    member: Option<Member>,
}

impl CircuitBreakerBuilder {
    pub(super) fn new(name: String) -> Self {
        Self {
            name,
            window: Duration::from_secs(10),
            minimum_calls: 10,
            failure_rate: 0.5,
            consecutive_failures: 5,
            slow_call: None,
            slow_call_rate: 0.8,
            open_base: Duration::from_secs(1),
            open_max: Duration::from_secs(60),
            stable_time: Duration::from_secs(60),
            half_open_probes: 1,
            probe_timeout: Duration::from_secs(60),
            ramp: Duration::ZERO,
            seed: None,
            on_change: None,
            member: None,
        }
    }

    /// Sets how far back the rates look: 10 ms to 1 hour; 10 s unless told.
    ///
    /// The window slides in tenths, so it holds between nine and ten tenths of this time.
    pub fn window(mut self, window: Duration) -> Self {
        self.window = window;
        self
    }

    /// Sets how many calls the window must hold before a rate can open the breaker; 10 unless told.
    pub fn minimum_calls(mut self, calls: u32) -> Self {
        self.minimum_calls = calls;
        self
    }

    /// Sets the share of failed calls that opens the breaker: above 0, at most 1; 0.5 unless told.
    pub fn failure_rate(mut self, rate: f64) -> Self {
        self.failure_rate = rate;
        self
    }

    /// Sets how many failures in a row open the breaker, however few calls; 5 unless told, 0 is off.
    pub fn consecutive_failures(mut self, failures: u32) -> Self {
        self.consecutive_failures = failures;
        self
    }

    /// Counts calls that take longer than `limit` as slow; off unless told.
    ///
    /// A call that is in flight past the limit counts as slow before it ends, from at most a tenth of
    /// the longer of window and limit after it is overdue, and for one window. A probe that succeeds
    /// but is slow opens the breaker again.
    pub fn slow_call(mut self, limit: Duration) -> Self {
        self.slow_call = Some(limit);
        self
    }

    /// Sets the share of slow calls that opens the breaker: above 0, at most 1; 0.8 unless told.
    pub fn slow_call_rate(mut self, rate: f64) -> Self {
        self.slow_call_rate = rate;
        self
    }

    /// Sets how long the breaker stays open: at first about `base`, at most `max`; 1 s and 60 s
    /// unless told.
    ///
    /// The n-th opening in a row draws its time at random between a quarter of and the whole of
    /// `base` x 2^n, where n starts at zero and the product stops at `max`. The least is there so
    /// that no opening is near zero. Deadlines are rounded up by at most 1.05 ms.
    pub fn open_time(mut self, base: Duration, max: Duration) -> Self {
        self.open_base = base;
        self.open_max = max;
        self
    }

    /// Sets how long the breaker must stay closed to forgive one opening; 60 s unless told.
    pub fn stable_time(mut self, time: Duration) -> Self {
        self.stable_time = time;
        self
    }

    /// Sets how many probes a half-open breaker lets through, all of which must succeed: 1 to
    /// 65,535; 1 unless told.
    pub fn half_open_probes(mut self, probes: u32) -> Self {
        self.half_open_probes = probes;
        self
    }

    /// Sets when probes that neither end nor are dropped are given up; 60 s unless told.
    ///
    /// When all places are taken and even the youngest probe has been out for so long, the next
    /// call opens the breaker again, so a call that hangs cannot keep it half-open for ever.
    pub fn probe_timeout(mut self, timeout: Duration) -> Self {
        self.probe_timeout = timeout;
        self
    }

    /// Sets how long calls come back little by little after the probes succeeded: up to 1 hour; off
    /// (zero) unless told.
    ///
    /// Each fifth of it lets another share of the calls pass: 1, 5, 10, 25 and 50 %. Failures and
    /// slow calls count as in a closed breaker and open it again.
    pub fn ramp(mut self, time: Duration) -> Self {
        self.ramp = time;
        self
    }

    /// Sets the seed of the open times' jitter; drawn at random unless told.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Sets who is told of every change of the state.
    ///
    /// It runs in the call that caused the change, so it must not block; a panic in it is that
    /// call's. Two changes by two threads may be told in either order.
    pub fn on_change(
        mut self,
        listener: impl Fn(&StateChange<'_>) + Send + Sync + 'static,
    ) -> Self {
        self.on_change = Some(Arc::new(listener));
        self
    }

    /// Tells failures to a [`Correlator`](crate::Correlator) and probes in turns while it sees the
    /// member in an incident.
    pub fn member(mut self, member: Member) -> Self {
        self.member = Some(member);
        self
    }

    /// Checks the settings and makes a closed breaker.
    ///
    /// # Errors
    ///
    /// [`BuildError`] with every problem in the settings.
    pub fn build(self) -> Result<CircuitBreaker, BuildError> {
        self.build_at(Instant::now())
    }

    /// Checks the settings and makes a breaker that is closed since `now`.
    ///
    /// Later calls that pass a time pass one of the same clock; a time before `now` counts as `now`.
    ///
    /// # Errors
    ///
    /// As [`build`](Self::build).
    pub fn build_at(self, now: Instant) -> Result<CircuitBreaker, BuildError> {
        BuildError::unless_none("circuit breaker", &self.name, self.problems())?;
        let seed = self.seed.unwrap_or_else(|| fastrand::u64(..));
        Ok(self.make(now, seed))
    }

    /// Makes a breaker of this template, whose settings have been checked, under another name.
    ///
    /// Breakers of one template and seed do not draw the same open times.
    pub(crate) fn make_named(&self, name: String, now: Instant) -> CircuitBreaker {
        let seed = match self.seed {
            // FNV-1a: a seed for the name that is the same in every run.
            Some(seed) => name.bytes().fold(seed ^ 0xcbf2_9ce4_8422_2325, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
            }),
            None => fastrand::u64(..),
        };
        Self { name, ..self.clone() }.make(now, seed)
    }

    fn make(self, now: Instant, seed: u64) -> CircuitBreaker {
        let settings = Settings {
            window: nanos(self.window),
            minimum_calls: self.minimum_calls,
            failure_rate: self.failure_rate,
            consecutive_failures: self.consecutive_failures,
            slow_call: self.slow_call.map(nanos),
            slow_call_rate: self.slow_call_rate,
            open_base: nanos(self.open_base),
            open_max: nanos(self.open_max),
            stable: nanos(self.stable_time),
            probes: self.half_open_probes,
            probe_timeout: nanos(self.probe_timeout),
            ramp: nanos(self.ramp),
            seed,
        };
        let listener = self.on_change.map(|listener| -> Listener {
            let name = self.name.clone();
            Box::new(move |from, to, reason, nanos| {
                let at = now + Duration::from_nanos(nanos);
                listener(&StateChange { breaker: &name, from, to, reason, at });
            })
        });
        let machine = Machine::new(settings, listener);
        let shared = Shared { name: self.name, epoch: now, machine, member: self.member };
        CircuitBreaker { shared: Arc::new(shared) }
    }

    pub(crate) fn problems(&self) -> Vec<Problem> {
        let mut problems = Problems::default();
        let mut check = |holds, setting, value: &dyn fmt::Debug, expected| {
            problems.check(holds, setting, value, expected);
        };
        let time = |time: Duration| (MILLISECOND..=TIME_MAX).contains(&time);
        let rate = |rate: f64| rate > 0.0 && rate <= 1.0;

        check(!self.name.is_empty(), "name", &self.name, "must not be empty");
        check(
            (WINDOW_MIN..=WINDOW_MAX).contains(&self.window),
            "window",
            &self.window,
            "must be from 10 ms to 1 hour",
        );
        check(self.minimum_calls > 0, "minimum_calls", &self.minimum_calls, "must be at least 1");
        check(
            rate(self.failure_rate),
            "failure_rate",
            &self.failure_rate,
            "must be above 0 and at most 1",
        );
        if let Some(limit) = self.slow_call {
            check(!limit.is_zero(), "slow_call", &limit, "must be above 0");
        }
        check(
            rate(self.slow_call_rate),
            "slow_call_rate",
            &self.slow_call_rate,
            "must be above 0 and at most 1",
        );
        check(
            time(self.open_base),
            "open_time.base",
            &self.open_base,
            "must be from 1 ms to 24 hours",
        );
        check(
            time(self.open_max),
            "open_time.max",
            &self.open_max,
            "must be from 1 ms to 24 hours",
        );
        check(
            self.open_base <= self.open_max,
            "open_time.base",
            &self.open_base,
            "must be at most open_time.max",
        );
        check(
            self.stable_time >= MILLISECOND,
            "stable_time",
            &self.stable_time,
            "must be at least 1 ms",
        );
        check(
            (1..=PROBES_MAX).contains(&self.half_open_probes),
            "half_open_probes",
            &self.half_open_probes,
            "must be from 1 to 65535",
        );
        check(
            self.probe_timeout >= MILLISECOND,
            "probe_timeout",
            &self.probe_timeout,
            "must be at least 1 ms",
        );
        check(self.ramp <= WINDOW_MAX, "ramp", &self.ramp, "must be at most 1 hour");
        problems.found
    }
}

impl fmt::Debug for CircuitBreakerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CircuitBreakerBuilder").field("name", &self.name).finish_non_exhaustive()
    }
}
