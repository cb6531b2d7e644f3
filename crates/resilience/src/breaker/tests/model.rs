//! Random histories with explicit times, against a model that keeps every call in a list.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const TICK_NANOS: u64 = 1 << 20;

#[derive(Clone, Debug)]
struct Settings {
    window: u64,
    minimum_calls: u32,
    failure_rate: f64,
    consecutive_failures: u32,
    slow_call: Option<u64>,
    slow_call_rate: f64,
    open_base: u64,
    open_max: u64,
    stable: u64,
    probes: u32,
    probe_timeout: u64,
    ramp: u64,
    seed: u64,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Pass(u64),
    Acquire,
    /// Ends the permit at this place in the list, with a clock that is so much behind.
    End {
        place: usize,
        outcome: Outcome,
        behind: u64,
    },
    Reset,
    Force {
        open: bool,
    },
}

const MILLI: u64 = 1_000_000;

fn settings() -> impl Strategy<Value = Settings> {
    let counts = (1_u32..8, 0_u32..5, 1_u32..4);
    let rates = (0.1_f64..=1.0, 0.1_f64..=1.0);
    let times = (
        prop_oneof![Just(10 * MILLI), 10 * MILLI..2_000 * MILLI, Just(10_000 * MILLI)],
        proptest::option::of(1..50 * MILLI),
        MILLI..500 * MILLI,
        1_u64..40,
        MILLI..5_000 * MILLI,
        MILLI..2_000 * MILLI,
    );
    let ramp = prop_oneof![Just(0), MILLI..3_000 * MILLI];
    let random = (ramp, any::<u64>());
    (counts, rates, times, random).prop_map(|(counts, rates, times, (ramp, seed))| Settings {
        window: times.0,
        minimum_calls: counts.0,
        failure_rate: rates.0,
        consecutive_failures: counts.1,
        slow_call: times.1,
        slow_call_rate: rates.1,
        open_base: times.2,
        open_max: times.2 * times.3,
        stable: times.4,
        probes: counts.2,
        probe_timeout: times.5,
        ramp,
        seed,
    })
}

fn step() -> impl Strategy<Value = Step> {
    let pass = prop_oneof![
        4 => Just(0),
        4 => 0..MILLI,
        8 => 0..100 * MILLI,
        4 => 0..2_000 * MILLI,
        1 => 0..100_000 * MILLI,
        1 => 0..1_000_000_000 * MILLI,
    ];
    let retry_after = proptest::option::of((0..5_000 * MILLI).prop_map(Duration::from_nanos));
    let outcome = prop_oneof![
        6 => Just(Outcome::Success),
        6 => Just(Outcome::Failure),
        1 => retry_after.prop_map(|retry_after| Outcome::Overload { retry_after }),
        1 => Just(Outcome::Ignored),
        1 => Just(Outcome::Cancelled),
    ];
    let behind = prop_oneof![6 => Just(0), 1 => 0..3_000 * MILLI];
    prop_oneof![
        6 => pass.prop_map(Step::Pass),
        8 => Just(Step::Acquire),
        8 => (any::<usize>(), outcome, behind)
            .prop_map(|(place, outcome, behind)| Step::End { place, outcome, behind }),
        1 => prop_oneof![
            18 => Just(Step::Pass(0)),
            2 => Just(Step::Reset),
            1 => any::<bool>().prop_map(|open| Step::Force { open }),
        ],
    ]
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    Closed { since: u64 },
    Open { until: u64 },
    HalfOpen { in_flight: u32, succeeded: u32 },
    Ramp { since: u64, stage: u64, asked: u64 },
    Forced { open: bool },
}

struct Call {
    slot: u64,
    failed: bool,
    slow: bool,
}

/// A call that has begun in a closed breaker and not ended.
struct Begun {
    started: u64,
    slot: u64,
}

struct Held {
    permit: Permit,
    generation: u64,
    started: u64,
}

/// What the documentation says, with a list for a window and no regard for speed.
struct Model {
    settings: Settings,
    phase: Phase,
    generation: u64,
    level: u32,
    calls: Vec<Call>,
    newest: u64,
    begun: Vec<Begun>,
    newest_begun: u64,
    row: u32,
    probes_until: u64,
    retry_not_before: u64,
    opened: u64,
    rejected: u64,
    late: u64,
}

impl Model {
    fn slot(&self, now: u64) -> u64 {
        self.newest.max(now / (self.settings.window / 10))
    }

    fn counted(&self, now: u64, which: impl Fn(&Call) -> bool) -> u64 {
        let newest = self.slot(now);
        self.calls.iter().filter(|call| call.slot + 10 > newest && which(call)).count() as u64
    }

    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.generation += 1;
        self.calls.clear();
        self.begun.clear();
        self.row = 0;
    }

    /// The step of the calls in flight.
    fn step(&self) -> u64 {
        self.settings.window.max(self.settings.slow_call.unwrap_or(0)).div_ceil(10)
    }

    fn overdue(&self, now: u64) -> u64 {
        let Some(limit) = self.settings.slow_call else { return 0 };
        let step = self.step();
        let newest = self.newest_begun.max(now / step);
        let counts = |begun: &&Begun| {
            (begun.slot + 1) * step + limit <= now
                && begun.slot + limit.div_ceil(step) + 10 >= newest
        };
        self.begun.iter().filter(counts).count() as u64
    }

    /// Begins a call, unless so many hang that this opens the breaker.
    fn begin(&mut self, now: u64, breaker: &CircuitBreaker, epoch: Instant) -> bool {
        if self.settings.slow_call.is_some() {
            let slot = now / self.step();
            if slot > self.newest_begun {
                self.newest_begun = slot;
                let overdue = self.overdue(now);
                if overdue > 0
                    && self.by_rate(now) == Some(true)
                    && self.phase != (Phase::Forced { open: false })
                {
                    self.open(now, breaker, epoch);
                    return false;
                }
            }
            self.begun.push(Begun { started: now, slot: self.newest_begun });
        }
        true
    }

    /// Whether a rate is over its limit, and whether it is that of slow calls alone.
    fn by_rate(&self, now: u64) -> Option<bool> {
        let overdue = self.overdue(now);
        let calls = self.counted(now, |_| true);
        let least = u64::from(self.settings.minimum_calls);
        let over =
            |part: u64, calls: u64, rate: f64| calls >= least && part as f64 / calls as f64 >= rate;
        if over(self.counted(now, |c| c.failed), calls, self.settings.failure_rate) {
            return Some(false);
        }
        let slow = self.counted(now, |c| c.slow) + overdue;
        over(slow, calls + overdue, self.settings.slow_call_rate).then_some(true)
    }

    /// Opens; the drawn time is checked against its bounds and then taken from the breaker.
    fn open(&mut self, now: u64, breaker: &CircuitBreaker, epoch: Instant) {
        if let Phase::Closed { since } = self.phase {
            let decay = now.saturating_sub(since) / self.settings.stable;
            self.level = u64::from(self.level).saturating_sub(decay) as u32;
        }
        let max = self.settings.open_max;
        let ceiling = (self.settings.open_base << self.level).min(max);
        let asked = self.retry_not_before.saturating_sub(now).min(max);
        let time =
            breaker.stats_at(epoch + Duration::from_nanos(now)).retry_after.as_nanos() as u64;
        let (least, most) = ((ceiling / 4).max(asked), ceiling.max(asked) + TICK_NANOS);
        assert!(time >= least && time <= most, "open for {time}, not {least} to {most}");
        if ceiling < max {
            self.level += 1;
        }
        self.opened += 1;
        self.enter(Phase::Open { until: now + time });
    }

    fn acquire(&mut self, now: u64, breaker: &CircuitBreaker, epoch: Instant) -> Result<(), u64> {
        if matches!(self.phase, Phase::Open { until } if now >= until) {
            self.enter(Phase::HalfOpen { in_flight: 0, succeeded: 0 });
        }
        if let Phase::HalfOpen { in_flight, succeeded } = self.phase {
            if in_flight + succeeded < self.settings.probes {
                self.phase = Phase::HalfOpen { in_flight: in_flight + 1, succeeded };
                self.probes_until = self.probes_until.max(now + self.settings.probe_timeout);
                return Ok(());
            }
            if now < self.probes_until {
                self.rejected += 1;
                return Err(self.settings.open_base / 4);
            }
            self.open(now, breaker, epoch);
        }
        if let Phase::Ramp { since, stage, asked } = self.phase {
            let fifth = self.settings.ramp / 5;
            let at = now.saturating_sub(since) / fifth;
            match [1, 5, 10, 25, 50].get(at as usize) {
                None => self.phase = Phase::Closed { since: now / TICK_NANOS * TICK_NANOS },
                Some(share) => {
                    let asked = if stage == at { asked } else { 0 };
                    self.phase = Phase::Ramp { since, stage: at, asked: asked + 1 };
                    if asked * share % 100 >= *share {
                        self.rejected += 1;
                        return Err((since + (at + 1) * fifth).max(now + 1) - now);
                    }
                }
            }
        }
        if matches!(
            self.phase,
            Phase::Closed { .. } | Phase::Ramp { .. } | Phase::Forced { open: false }
        ) && self.begin(now, breaker, epoch)
        {
            return Ok(());
        }
        match self.phase {
            Phase::Open { until } => {
                self.rejected += 1;
                Err(until - now)
            }
            Phase::Forced { open: true } => {
                self.rejected += 1;
                Err(self.settings.open_max)
            }
            phase => panic!("{phase:?} neither admits nor refuses"),
        }
    }

    fn end(
        &mut self,
        (generation, started): (u64, u64),
        outcome: Outcome,
        now: u64,
        breaker: &CircuitBreaker,
        epoch: Instant,
    ) {
        let current = generation == self.generation;
        if current && let Some(place) = self.begun.iter().position(|it| it.started == started) {
            self.begun.swap_remove(place);
        }
        let slow = self.settings.slow_call.is_some_and(|l| now.saturating_sub(started) > l);
        let failed = match outcome {
            Outcome::Cancelled if slow => false,
            Outcome::Ignored | Outcome::Cancelled => {
                if let (true, Phase::HalfOpen { in_flight, .. }) = (current, &mut self.phase) {
                    *in_flight -= 1;
                }
                return;
            }
            Outcome::Success => false,
            Outcome::Failure | Outcome::Overload { .. } => true,
        };
        let good = outcome == Outcome::Success && !slow;
        if !current {
            self.late += 1;
            return;
        }
        if let Outcome::Overload { retry_after: Some(time) } = outcome {
            self.retry_not_before = self.retry_not_before.max(now + time.as_nanos() as u64);
        }
        match self.phase {
            Phase::Closed { .. } | Phase::Ramp { .. } | Phase::Forced { .. } => {
                self.newest = self.slot(now);
                self.calls.push(Call { slot: self.newest, failed, slow });
                match outcome {
                    Outcome::Success => self.row = 0,
                    Outcome::Cancelled => {}
                    _ => self.row += 1,
                }
                let k = self.settings.consecutive_failures;
                let by_row = failed && k > 0 && self.row >= k;
                let by_rate = (failed || slow) && self.by_rate(now).is_some();
                if (by_row || by_rate) && !matches!(self.phase, Phase::Forced { .. }) {
                    self.open(now, breaker, epoch);
                }
            }
            Phase::HalfOpen { .. } if !good => self.open(now, breaker, epoch),
            Phase::HalfOpen { succeeded, .. } if succeeded + 1 == self.settings.probes => {
                let since = now / TICK_NANOS * TICK_NANOS;
                self.enter(if self.settings.ramp > 0 {
                    Phase::Ramp { since, stage: 0, asked: 0 }
                } else {
                    Phase::Closed { since }
                });
            }
            Phase::HalfOpen { in_flight, succeeded } => {
                self.phase = Phase::HalfOpen { in_flight: in_flight - 1, succeeded: succeeded + 1 };
            }
            Phase::Open { .. } => unreachable!("no permit is of an open generation"),
        }
    }

    fn stats(&self, now: u64) -> CircuitBreakerStats {
        let (state, probes_in_flight, retry_after) = match self.phase {
            Phase::Closed { .. } => (State::Closed, 0, 0),
            Phase::Open { until } if now < until => (State::Open, 0, until - now),
            Phase::Open { .. } => (State::HalfOpen, 0, 0),
            Phase::HalfOpen { in_flight, .. } => (State::HalfOpen, in_flight, 0),
            Phase::Ramp { .. } => (State::HalfOpen, 0, 0),
            Phase::Forced { open: true } => (State::Open, 0, self.settings.open_max),
            Phase::Forced { open: false } => (State::Closed, 0, 0),
        };
        let admitted_percent = match self.phase {
            Phase::Closed { .. } | Phase::Forced { open: false } => 100,
            Phase::Ramp { since, .. } => {
                let at = now.saturating_sub(since) / (self.settings.ramp / 5);
                [1, 5, 10, 25, 50].get(at as usize).copied().unwrap_or(100)
            }
            _ => 0,
        };
        CircuitBreakerStats {
            state,
            calls: self.counted(now, |_| true),
            failures: self.counted(now, |call| call.failed),
            slow: self.counted(now, |call| call.slow),
            overdue: self.overdue(now),
            admitted_percent,
            forced: matches!(self.phase, Phase::Forced { .. }),
            consecutive_failures: self.row,
            probes_in_flight,
            retry_after: Duration::from_nanos(retry_after),
            opened: self.opened,
            rejected: self.rejected,
            late: self.late,
        }
    }
}

fn run(settings: Settings, steps: Vec<Step>) {
    let time = Duration::from_nanos;
    let epoch = Instant::now();
    let mut builder = CircuitBreaker::builder("model")
        .window(time(settings.window))
        .minimum_calls(settings.minimum_calls)
        .failure_rate(settings.failure_rate)
        .consecutive_failures(settings.consecutive_failures)
        .slow_call_rate(settings.slow_call_rate)
        .open_time(time(settings.open_base), time(settings.open_max))
        .stable_time(time(settings.stable))
        .half_open_probes(settings.probes)
        .probe_timeout(time(settings.probe_timeout))
        .ramp(time(settings.ramp))
        .seed(settings.seed);
    if let Some(limit) = settings.slow_call {
        builder = builder.slow_call(time(limit));
    }
    let breaker = builder.build_at(epoch).expect("the strategy makes valid settings");
    let mut model = Model {
        settings,
        phase: Phase::Closed { since: 0 },
        generation: 0,
        level: 0,
        calls: Vec::new(),
        newest: 0,
        begun: Vec::new(),
        newest_begun: 0,
        row: 0,
        probes_until: 0,
        retry_not_before: 0,
        opened: 0,
        rejected: 0,
        late: 0,
    };
    let mut held: Vec<Held> = Vec::new();
    let mut now = 0;
    for step in steps {
        match step {
            Step::Pass(nanos) => now += nanos,
            Step::Acquire => {
                let answer = breaker.try_acquire_at(epoch + time(now));
                let expected = model.acquire(now, &breaker, epoch);
                match (answer, expected) {
                    (Ok(permit), Ok(())) => {
                        held.push(Held { permit, generation: model.generation, started: now });
                    }
                    (Err(open), Err(retry_after)) => {
                        assert_eq!(open.retry_after, time(retry_after));
                    }
                    (answer, expected) => panic!("{answer:?} instead of {expected:?}"),
                }
            }
            Step::End { place, outcome, behind } => {
                if held.is_empty() {
                    continue;
                }
                let Held { permit, generation, started } = held.swap_remove(place % held.len());
                let at = now.saturating_sub(behind);
                permit.complete_at(outcome, epoch + time(at));
                model.end((generation, started), outcome, at, &breaker, epoch);
            }
            Step::Reset => {
                breaker.reset_at(epoch + time(now));
                model.enter(Phase::Closed { since: 0 });
                model.level = 0;
                model.retry_not_before = 0;
            }
            Step::Force { open } => {
                if open {
                    breaker.force_open_at(epoch + time(now));
                } else {
                    breaker.force_closed_at(epoch + time(now));
                }
                model.enter(Phase::Forced { open });
                model.level = 0;
            }
        }
        assert_eq!(breaker.stats_at(epoch + time(now)), model.stats(now), "after {step:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, ..ProptestConfig::default() })]

    #[test]
    fn the_breaker_does_what_the_model_does(settings in settings(), steps in vec(step(), 1..250)) {
        run(settings, steps);
    }
}
