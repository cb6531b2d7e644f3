//! The state machine of a breaker, lock-free, over times given as nanoseconds since it was built.
//!
//! Everything that decides is one word: the state, the *generation*, the *level* and what the state
//! needs to know. It only changes by compare-exchange, so every transition has one winner and the
//! losers see the winner's word.
//!
//! ```text
//!            k failures in a row, or a rate over its limit
//!   Closed ────────────────────────────────────────────────> Open
//!     ^ ^                                                     │ the open time is over,
//!     │ │ N probes succeeded      a probe failed, or is       │ and somebody calls
//!     │ │                         slow, or all are lost       v
//!     │ └─────────────────── HalfOpen <───────────────────────┘
//!     │ the ramp is over         │ │                          ^
//!     └───────────── Ramp <──────┘ └──────────────────────────┤
//!                     │            as in Closed               │
//!                     └───────────────────────────────────────┘
//! ```
//!
//! *Generation*: counts transitions. A ticket carries the generation that admitted it, and a
//! completion only acts while the word still has it, so what was called before a transition cannot
//! influence what comes after. It has 18 bits: to be confused, a call would have to stay in flight
//! for an exact multiple of 262,144 transitions.
//!
//! *Level*: the exponent of the next open time, `min(max, base x 2^level)`. Every opening raises it
//! by one, up to where `max` is reached; each full stable time spent closed lowers it by one, which
//! is worked out when the breaker opens again, from the time it closed.
//!
//! *Open time*: a number between a quarter of that ceiling and the ceiling, drawn by the generation
//! from SplitMix64, so breakers with different seeds do not probe in step and no opening is ever
//! near zero. A retry hint of the dependency makes it longer, up to `max`.
//!
//! *Closed*: completions count in the window and in a counter of failures in a row; both are tagged
//! with the generation, so a new generation starts from zero and nothing has to be cleared. Only a
//! failure or a slow call looks at the sums; a success never opens the breaker. Concurrent
//! completions may each miss the other's count in the rates for a moment; the failures in a row are
//! one word, so exactly the k-th of them sees k.
//!
//! *Half-open*: the word counts the probes in flight and those that succeeded; together they never
//! exceed N. Probes whose ticket is released undone give their place back. If all places are taken
//! and even the youngest probe has been out for the probe timeout, the probes are taken for lost.
//!
//! *Ramp*: where one is set, good probes lead there first. The ramp has five stages of equal length
//! that let 1, 5, 10, 25 and 50 % of the calls pass, the first of each stage among them; everything
//! else is as in Closed, and its end keeps the generation, so what it counted stays counted.
//!
//! *Overdue calls*: where slow calls count, a call that is in flight past the limit counts as slow
//! before it ends. Nobody completes anything while a dependency hangs, so whoever calls first in a
//! step of the ring in `window` looks at the slow-call rate.
//!
//! *Forced*: the largest payload stands for "until told otherwise" in Open and in Closed. A forced
//! Closed counts and does not open; only `reset` or the other force leave either.
//!
//! *Late reads*: a caller that reads an old word at worst admits a call as if it had come a moment
//! earlier, and its ticket is then of an old generation.
//!
//! Deadlines in the word are in ticks of 2^20 ns (1.05 ms), rounded up, and last for 18 years.

use std::time::Duration;

use crossbeam_utils::CachePadded;

use super::{CircuitBreakerStats, Open, Outcome, Reason, State};
use crate::nanos::{jitter, nanos};
use crate::sync::{AcqRel, Acquire, AtomicU64, Relaxed};
use crate::window::{Ended, InFlight, TaggedCounter, Window};

/// The checked settings; times in nanoseconds.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) window: u64,
    pub(crate) minimum_calls: u32,
    pub(crate) failure_rate: f64,
    pub(crate) consecutive_failures: u32,
    pub(crate) slow_call: Option<u64>,
    pub(crate) slow_call_rate: f64,
    pub(crate) open_base: u64,
    pub(crate) open_max: u64,
    pub(crate) stable: u64,
    pub(crate) probes: u32,
    pub(crate) probe_timeout: u64,
    pub(crate) ramp: u64,
    pub(crate) seed: u64,
}

/// What is told when a state has changed: from, to, why, and when.
pub(crate) type Listener = Box<dyn Fn(State, State, Reason, u64) + Send + Sync>;

/// The share of calls in percent that pass in each stage of the ramp.
const RAMP: [u64; 5] = [1, 5, 10, 25, 50];

/// What a call was admitted with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ticket {
    generation: u32,
    /// When the call began; only set where slow calls count.
    started: u64,
    /// The low half of the slot in which the call counts among those in flight, or `NO_SLOT`; of four
    /// billion slots one counts no ends.
    slot: u32,
}

const NO_SLOT: u32 = u32::MAX;

/// The breaker without its name and its clock.
pub(crate) struct Machine {
    settings: Settings,
    level_max: u32,
    word: CachePadded<AtomicU64>,
    consecutive: CachePadded<TaggedCounter>,
    window: Window,
    /// Only there where slow calls count.
    in_flight: Option<InFlight>,
    /// Calls in the stage of the ramp that the tag names.
    ramped: TaggedCounter,
    listener: Option<Listener>,
    /// When the youngest probe so far is taken for lost; only grows.
    probes_until: AtomicU64,
    /// Until when the dependency asked to be left alone.
    retry_not_before: AtomicU64,
    opened: AtomicU64,
    rejected: AtomicU64,
    late: AtomicU64,
}

impl Machine {
    pub(crate) fn new(settings: Settings, listener: Option<Listener>) -> Self {
        let level_max = (0..Word::LEVEL_MAX)
            .find(|level| ceiling(&settings, *level) >= settings.open_max)
            .unwrap_or(Word::LEVEL_MAX);
        Self {
            level_max,
            word: CachePadded::new(AtomicU64::new(Word::new(Phase::Closed { since: 0 }, 0, 0).0)),
            consecutive: CachePadded::new(TaggedCounter::default()),
            window: Window::new(settings.window),
            in_flight: settings.slow_call.map(|limit| InFlight::new(settings.window, limit)),
            ramped: TaggedCounter::default(),
            listener,
            probes_until: AtomicU64::new(0),
            retry_not_before: AtomicU64::new(0),
            opened: AtomicU64::new(0),
            rejected: AtomicU64::new(0),
            late: AtomicU64::new(0),
            settings,
        }
    }

    /// Admits a call without asking for the time, where that can be done.
    #[inline]
    pub(crate) fn acquire_untimed(&self) -> Option<Ticket> {
        let word = self.load();
        (word.is_closed() && self.settings.slow_call.is_none()).then(|| Ticket {
            generation: word.generation(),
            started: 0,
            slot: NO_SLOT,
        })
    }

    /// Admits a call or turns it away.
    pub(crate) fn acquire(&self, now: u64) -> Result<Ticket, Open> {
        loop {
            let word = self.load();
            let admitted = match word.phase() {
                Phase::Closed { .. } => match self.begin(word, now) {
                    Some(ticket) => return Ok(ticket),
                    None => continue,
                },
                Phase::Ramp { since } => {
                    match self.ramp(word, since << TICK_BITS, now) {
                        Some(Ok(())) => {}
                        Some(Err(next_stage)) => return Err(self.reject(next_stage - now)),
                        None => continue,
                    }
                    match self.begin(word, now) {
                        Some(ticket) => return Ok(ticket),
                        None => continue,
                    }
                }
                Phase::Open { until: Word::FORCED } => {
                    return Err(self.reject(self.settings.open_max));
                }
                Phase::Open { until } if now < until << TICK_BITS => {
                    return Err(self.reject((until << TICK_BITS) - now));
                }
                Phase::Open { .. } => word.next(Phase::HalfOpen { in_flight: 1, succeeded: 0 }),
                Phase::HalfOpen { in_flight, succeeded }
                    if in_flight + succeeded < self.settings.probes =>
                {
                    word.with(Phase::HalfOpen { in_flight: in_flight + 1, succeeded })
                }
                Phase::HalfOpen { .. } => {
                    // Relaxed: the raise of the newest probe comes before its exchange of the word
                    // (Release), which `load` (Acquire) has read or read past.
                    if now < self.probes_until.load(Relaxed) {
                        return Err(self.reject(self.between_probes()));
                    }
                    self.open(word, now, Reason::ProbesLost);
                    continue;
                }
            };
            self.probes_until.fetch_max(now.saturating_add(self.settings.probe_timeout), Relaxed);
            if self.exchange(word, admitted) {
                if word.generation() != admitted.generation() {
                    self.tell(State::Open, State::HalfOpen, Reason::OpenTimeOver, now);
                }
                return Ok(Ticket {
                    generation: admitted.generation(),
                    started: now,
                    slot: NO_SLOT,
                });
            }
        }
    }

    /// Counts a call that begins in a closed breaker, or nothing if that is no longer what it is.
    fn begin(&self, word: Word, now: u64) -> Option<Ticket> {
        let generation = word.generation();
        let mut slot = NO_SLOT;
        if let Some(in_flight) = &self.in_flight {
            let (newest, turned) = in_flight.turn_to(now);
            if turned && self.hangs(word, in_flight, now) {
                return None;
            }
            if !in_flight.begin(generation, newest, || self.load().generation() == generation) {
                return None;
            }
            slot = newest as u32;
        }
        Some(Ticket { generation, started: now, slot })
    }

    /// Opens the breaker if calls in flight make the slow ones too many.
    #[cold]
    fn hangs(&self, word: Word, in_flight: &InFlight, now: u64) -> bool {
        if in_flight.overdue(word.generation(), now) == 0 {
            return false;
        }
        match self.exceeded(word.generation(), now) {
            Some(reason @ Reason::SlowCallRate { .. }) => self.open(word, now, reason),
            _ => false,
        }
    }

    /// Tells whether a call passes in the ramp, or when the next stage begins; nothing if it is over.
    #[cold]
    fn ramp(&self, word: Word, since: u64, now: u64) -> Option<Result<(), u64>> {
        let stage = self.stage(since, now);
        let Some(share) = RAMP.get(stage as usize) else {
            if self.exchange(word, word.with(Phase::Closed { since: now >> TICK_BITS })) {
                self.tell(State::HalfOpen, State::Closed, Reason::RampOver, now);
            }
            return None;
        };
        let generation = word.generation();
        let is_current = || self.load().generation() == generation;
        let nth = u64::from(self.ramped.add(generation << 3 | stage as u32, is_current)?) - 1;
        let next_stage = since + (stage + 1) * (self.settings.ramp / RAMP.len() as u64);
        // Whoever comes between two stages of a ramp of a few nanoseconds still has to wait.
        Some(if nth * share % 100 < *share { Ok(()) } else { Err(next_stage.max(now + 1)) })
    }

    /// The stage of a ramp that began at `since`: 0 to 4, or more if it is over.
    fn stage(&self, since: u64, now: u64) -> u64 {
        now.saturating_sub(since) / (self.settings.ramp / RAMP.len() as u64).max(1)
    }

    /// How long a call should wait for a place among the probes.
    pub(crate) fn between_probes(&self) -> u64 {
        ceiling(&self.settings, 0) / 4
    }

    /// Whether a call that is admitted at `now` would be a probe.
    pub(crate) fn probes(&self, now: u64) -> bool {
        match self.load().phase() {
            Phase::Open { until } => until != Word::FORCED && now >= until << TICK_BITS,
            Phase::HalfOpen { .. } => true,
            Phase::Closed { .. } | Phase::Ramp { .. } => false,
        }
    }

    /// How long a probe may take before it is taken for lost.
    pub(crate) fn probe_timeout(&self) -> u64 {
        self.settings.probe_timeout
    }

    /// Turns a call away that the machine itself might have admitted.
    pub(crate) fn refuse(&self) -> Open {
        self.reject(self.between_probes())
    }

    #[cold]
    fn reject(&self, retry_after_nanos: u64) -> Open {
        self.rejected.fetch_add(1, Relaxed);
        Open { retry_after: Duration::from_nanos(retry_after_nanos) }
    }

    /// Takes the outcome of an admitted call.
    #[inline]
    pub(crate) fn complete(&self, ticket: Ticket, outcome: Outcome, now: u64) {
        self.end(ticket);
        let slow =
            self.settings.slow_call.is_some_and(|limit| now.saturating_sub(ticket.started) > limit);
        let (ended, retry_after) = match outcome {
            Outcome::Success => (Ended::Succeeded, None),
            Outcome::Failure => (Ended::Failed, None),
            Outcome::Overload { retry_after } => (Ended::Failed, retry_after),
            Outcome::Cancelled if slow => (Ended::Abandoned, None),
            Outcome::Cancelled | Outcome::Ignored => return self.give_back(ticket),
        };
        let word = self.load();
        if word.generation() != ticket.generation {
            self.late.fetch_add(1, Relaxed);
            return;
        }
        if let Some(retry_after) = retry_after {
            // Relaxed: read by `open`, mostly in this thread a few lines on; a hint that another
            // thread's opening misses is a hint that came a moment later.
            self.retry_not_before.fetch_max(now.saturating_add(nanos(retry_after)), Relaxed);
        }
        if word.counts() {
            self.count(word, ended, slow, now);
        } else {
            self.judge_probe(ticket, ended == Ended::Succeeded && !slow, now);
        }
    }

    /// Whether a dropped call has to say when.
    pub(crate) fn times_calls(&self) -> bool {
        self.settings.slow_call.is_some()
    }

    /// Forgets an admitted call; a probe gives its place back.
    pub(crate) fn release(&self, ticket: Ticket) {
        self.end(ticket);
        self.give_back(ticket);
    }

    fn end(&self, ticket: Ticket) {
        if ticket.slot != NO_SLOT
            && let Some(in_flight) = &self.in_flight
        {
            in_flight.end(ticket.generation, ticket.slot);
        }
    }

    fn give_back(&self, ticket: Ticket) {
        loop {
            let word = self.load();
            let Some((in_flight, succeeded)) = self.probe(word, ticket) else {
                return;
            };
            if self
                .exchange(word, word.with(Phase::HalfOpen { in_flight: in_flight - 1, succeeded }))
            {
                return;
            }
        }
    }

    /// Counts a call of the closed state and opens the breaker if that was one too many.
    #[inline]
    fn count(&self, word: Word, ended: Ended, slow: bool, now: u64) {
        let generation = word.generation();
        let is_current = || self.load().generation() == generation;
        if !self.window.record(generation, ended, slow, now, is_current) {
            self.late.fetch_add(1, Relaxed);
            return;
        }
        match ended {
            Ended::Succeeded => self.consecutive.clear(generation),
            Ended::Abandoned => {}
            Ended::Failed => {
                let row = self.consecutive.add(generation, is_current);
                let limit = self.settings.consecutive_failures;
                if let Some(failures) = row.filter(|row| limit > 0 && *row >= limit) {
                    self.open(word, now, Reason::ConsecutiveFailures { failures });
                    return;
                }
            }
        }
        if (ended == Ended::Failed || slow)
            && let Some(reason) = self.exceeded(generation, now)
        {
            self.open(word, now, reason);
        }
    }

    /// Returns the rate that is over its limit, if one is.
    #[cold]
    fn exceeded(&self, generation: u32, now: u64) -> Option<Reason> {
        let totals = self.window.totals(generation, now);
        let overdue = self.in_flight.as_ref().map_or(0, |it| it.overdue(generation, now));
        let least = u64::from(self.settings.minimum_calls);
        // A quotient: rounded once, it equals the literal that the user wrote (55 of 100 is 0.55).
        let reaches =
            |part: u64, calls: u64, rate: f64| calls >= least && part as f64 / calls as f64 >= rate;
        let (failures, calls) = (totals.failed, totals.calls());
        if reaches(failures, calls, self.settings.failure_rate) {
            return Some(Reason::FailureRate { failures, calls });
        }
        let (slow, calls) = (totals.slow + overdue, calls + overdue);
        reaches(slow, calls, self.settings.slow_call_rate).then_some(Reason::SlowCallRate {
            slow,
            overdue,
            calls,
        })
    }

    fn judge_probe(&self, ticket: Ticket, good: bool, now: u64) {
        loop {
            let word = self.load();
            let Some((in_flight, succeeded)) = self.probe(word, ticket) else {
                self.late.fetch_add(1, Relaxed);
                return;
            };
            let done = if !good {
                self.open(word, now, Reason::ProbeFailed)
            } else if succeeded + 1 == self.settings.probes {
                let since = now >> TICK_BITS;
                let ramps = self.settings.ramp > 0;
                let phase = if ramps { Phase::Ramp { since } } else { Phase::Closed { since } };
                let closed = self.exchange(word, word.next(phase));
                if closed && !ramps {
                    self.tell(State::HalfOpen, State::Closed, Reason::ProbesSucceeded, now);
                }
                closed
            } else {
                let phase = Phase::HalfOpen { in_flight: in_flight - 1, succeeded: succeeded + 1 };
                self.exchange(word, word.with(phase))
            };
            if done {
                return;
            }
        }
    }

    /// Returns the probes in flight and succeeded, if the ticket is one of these probes.
    fn probe(&self, word: Word, ticket: Ticket) -> Option<(u32, u32)> {
        match word.phase() {
            Phase::HalfOpen { in_flight, succeeded } if word.generation() == ticket.generation => {
                Some((in_flight, succeeded))
            }
            _ => None,
        }
    }

    /// Opens the breaker, unless its word is no longer `from`.
    #[cold]
    fn open(&self, from: Word, now: u64, reason: Reason) -> bool {
        let level = match from.phase() {
            Phase::Closed { since: Word::FORCED } => return false,
            Phase::Closed { since } => {
                let closed_for = now.saturating_sub(since << TICK_BITS);
                let decay = closed_for / self.settings.stable;
                from.level().saturating_sub(u32::try_from(decay).unwrap_or(u32::MAX))
            }
            Phase::Open { .. } | Phase::HalfOpen { .. } | Phase::Ramp { .. } => from.level(),
        };
        let ceiling = ceiling(&self.settings, level);
        let least = ceiling / 4;
        let spread =
            (ceiling - least) as f64 * jitter(self.settings.seed, u64::from(from.generation()));
        let asked = self.retry_not_before.load(Relaxed).saturating_sub(now);
        let open_time = (least + spread as u64).max(asked.min(self.settings.open_max));
        let until = now.saturating_add(open_time).div_ceil(1 << TICK_BITS);
        let next_level = (level + 1).min(self.level_max);
        let opened = self.exchange(from, from.next(Phase::Open { until }).at_level(next_level));
        if opened {
            self.opened.fetch_add(1, Relaxed);
            self.tell(state_of(from, now), State::Open, reason, now);
        }
        opened
    }

    /// Tells the listener that this thread has changed the state.
    fn tell(&self, from: State, to: State, reason: Reason, now: u64) {
        if let Some(listener) = &self.listener {
            listener(from, to, reason, now);
        }
    }

    /// Closes the breaker and forgets all it has counted.
    pub(crate) fn reset(&self, now: u64) {
        self.retry_not_before.store(0, Relaxed);
        // Level zero cannot decay, so it does not matter since when.
        self.put(Phase::Closed { since: 0 }, Reason::Reset, now);
    }

    /// Opens or closes the breaker until it is told otherwise.
    pub(crate) fn force(&self, open: bool, now: u64) {
        let forced = Word::FORCED;
        let phase =
            if open { Phase::Open { until: forced } } else { Phase::Closed { since: forced } };
        self.put(phase, Reason::Forced, now);
    }

    /// Puts the breaker into a phase at level zero, whatever it is in.
    fn put(&self, phase: Phase, reason: Reason, now: u64) {
        loop {
            let word = self.load();
            let next = word.next(phase).at_level(0);
            if self.exchange(word, next) {
                self.tell(state_of(word, now), state_of(next, now), reason, now);
                return;
            }
        }
    }

    pub(crate) fn state(&self, now: u64) -> State {
        state_of(self.load(), now)
    }

    pub(crate) fn stats(&self, now: u64) -> CircuitBreakerStats {
        let word = self.load();
        let generation = word.generation();
        let totals = self.window.totals(generation, now);
        let (probes_in_flight, retry_after) = match word.phase() {
            Phase::Closed { .. } | Phase::Ramp { .. } => (0, 0),
            Phase::Open { until: Word::FORCED } => (0, self.settings.open_max),
            Phase::Open { until } => (0, (until << TICK_BITS).saturating_sub(now)),
            Phase::HalfOpen { in_flight, .. } => (in_flight, 0),
        };
        let admitted_percent = match word.phase() {
            Phase::Closed { .. } => 100,
            Phase::Ramp { since } => {
                RAMP.get(self.stage(since << TICK_BITS, now) as usize).map_or(100, |it| *it as u8)
            }
            Phase::Open { .. } | Phase::HalfOpen { .. } => 0,
        };
        CircuitBreakerStats {
            state: state_of(word, now),
            calls: totals.calls(),
            failures: totals.failed,
            slow: totals.slow,
            overdue: self.in_flight.as_ref().map_or(0, |it| it.overdue(generation, now)),
            admitted_percent,
            forced: word.is_forced(),
            consecutive_failures: self.consecutive.count(generation),
            probes_in_flight,
            retry_after: Duration::from_nanos(retry_after),
            opened: self.opened.load(Relaxed),
            rejected: self.rejected.load(Relaxed),
            late: self.late.load(Relaxed),
        }
    }

    fn load(&self) -> Word {
        // Acquire: pairs with the Release in `exchange`. Whoever sees a generation also sees what
        // was written before it began: the raise of `probes_until`, and the counters' tags of the
        // generations before. Checked by `loom_a_place_among_the_probes_is_given_once` and
        // `loom_a_late_failure_never_reopens_a_closed_breaker`.
        Word(self.word.load(Acquire))
    }

    fn exchange(&self, from: Word, to: Word) -> bool {
        // Release: pairs with the Acquire in `load`. Acquire in the AcqRel keeps the chain whole:
        // who reads this word also sees what led to the words before it. Strong, since a spurious
        // failure would lose an opening; checked by `loom_two_failures_open_once`.
        self.word.compare_exchange(from.0, to.0, AcqRel, Relaxed).is_ok()
    }
}

fn state_of(word: Word, now: u64) -> State {
    match word.phase() {
        Phase::Closed { .. } => State::Closed,
        Phase::Open { until } if until == Word::FORCED || now < until << TICK_BITS => State::Open,
        Phase::Open { .. } | Phase::HalfOpen { .. } | Phase::Ramp { .. } => State::HalfOpen,
    }
}

/// The longest open time of a level, without hints.
fn ceiling(settings: &Settings, level: u32) -> u64 {
    settings.open_base.saturating_mul(1 << level).min(settings.open_max)
}

/// A tick is 2^20 ns.
const TICK_BITS: u32 = 20;

/// What a state needs to know; times in ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Closed { since: u64 },
    Open { until: u64 },
    HalfOpen { in_flight: u32, succeeded: u32 },
    Ramp { since: u64 },
}

/// State, level, generation and payload, from the highest bits down: 2, 5, 18 and 39 bits.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Word(u64);

impl Word {
    const PAYLOAD_BITS: u32 = 39;
    const GENERATION_BITS: u32 = 18;
    const LEVEL_SHIFT: u32 = Self::PAYLOAD_BITS + Self::GENERATION_BITS;
    const STATE_SHIFT: u32 = Self::LEVEL_SHIFT + 5;
    /// The payload of a state that lasts until somebody says otherwise.
    const FORCED: u64 = (1 << Self::PAYLOAD_BITS) - 1;
    const GENERATION_MASK: u32 = (1 << Self::GENERATION_BITS) - 1;
    const LEVEL_MAX: u32 = 31;
    const CLOSED: u64 = 0;
    const OPEN: u64 = 1;
    const HALF_OPEN: u64 = 2;
    const RAMP: u64 = 3;

    fn new(phase: Phase, generation: u32, level: u32) -> Self {
        let (state, payload) = match phase {
            Phase::Closed { since } => (Self::CLOSED, since.min(Self::FORCED)),
            Phase::Open { until } => (Self::OPEN, until.min(Self::FORCED)),
            Phase::Ramp { since } => (Self::RAMP, since.min(Self::FORCED)),
            Phase::HalfOpen { in_flight, succeeded } => {
                (Self::HALF_OPEN, u64::from(in_flight) << 16 | u64::from(succeeded))
            }
        };
        Self(
            state << Self::STATE_SHIFT
                | u64::from(level) << Self::LEVEL_SHIFT
                | u64::from(generation & Self::GENERATION_MASK) << Self::PAYLOAD_BITS
                | payload,
        )
    }

    fn phase(self) -> Phase {
        let payload = self.0 & Self::FORCED;
        match self.0 >> Self::STATE_SHIFT {
            Self::CLOSED => Phase::Closed { since: payload },
            Self::OPEN => Phase::Open { until: payload },
            Self::RAMP => Phase::Ramp { since: payload },
            _ => Phase::HalfOpen {
                in_flight: (payload >> 16) as u32,
                succeeded: (payload & 0xffff) as u32,
            },
        }
    }

    fn is_closed(self) -> bool {
        self.0 >> Self::STATE_SHIFT == Self::CLOSED
    }

    /// Whether completed calls go into the window.
    fn counts(self) -> bool {
        matches!(self.0 >> Self::STATE_SHIFT, Self::CLOSED | Self::RAMP)
    }

    fn is_forced(self) -> bool {
        matches!(
            self.phase(),
            Phase::Closed { since: Self::FORCED } | Phase::Open { until: Self::FORCED }
        )
    }

    fn generation(self) -> u32 {
        (self.0 >> Self::PAYLOAD_BITS) as u32 & Self::GENERATION_MASK
    }

    fn level(self) -> u32 {
        (self.0 >> Self::LEVEL_SHIFT) as u32 & Self::LEVEL_MAX
    }

    /// The same generation in another phase.
    fn with(self, phase: Phase) -> Self {
        Self::new(phase, self.generation(), self.level())
    }

    /// The first word of the next generation.
    fn next(self, phase: Phase) -> Self {
        Self::new(phase, self.generation().wrapping_add(1), self.level())
    }

    fn at_level(self, level: u32) -> Self {
        Self::new(self.phase(), self.generation(), level)
    }
}

#[cfg(all(test, loom))]
mod loom_tests;
