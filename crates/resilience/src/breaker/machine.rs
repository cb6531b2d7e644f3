//! The state machine of a breaker, lock-free, over times given as nanoseconds since it was built.
//!
//! Everything that decides is one word: the state, the *generation*, the *level* and what the state
//! needs to know. It only changes by compare-exchange, so every transition has one winner and the
//! losers see the winner's word.
//!
//! ```text
//!            k failures in a row, or a rate over its limit
//!   Closed ────────────────────────────────────────────────> Open
//!     ^                                                       │ the open time is over,
//!     │ N probes succeeded        a probe failed, or is       │ and somebody calls
//!     │                           slow, or all are lost       v
//!     └───────────────────── HalfOpen <───────────────────────┘
//!                                │                            ^
//!                                └────────────────────────────┘
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
//! *Late reads*: a caller that reads an old word at worst admits a call as if it had come a moment
//! earlier, and its ticket is then of an old generation.
//!
//! Deadlines in the word are in ticks of 2^20 ns (1.05 ms), rounded up, and last for 18 years.

use std::time::Duration;

use crossbeam_utils::CachePadded;

use super::window::{TaggedCounter, Window};
use super::{CircuitBreakerStats, Open, Outcome, State};
use crate::sync::{AcqRel, Acquire, AtomicU64, Relaxed};

/// The checked settings; times in nanoseconds.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) window: u64,
    pub(super) minimum_calls: u32,
    pub(super) failure_rate: f64,
    pub(super) consecutive_failures: u32,
    pub(super) slow_call: Option<u64>,
    pub(super) slow_call_rate: f64,
    pub(super) open_base: u64,
    pub(super) open_max: u64,
    pub(super) stable: u64,
    pub(super) probes: u32,
    pub(super) probe_timeout: u64,
    pub(super) seed: u64,
}

/// What a call was admitted with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ticket {
    generation: u32,
    /// When the call began; only set where slow calls count.
    started: u64,
}

/// The breaker without its name and its clock.
pub(super) struct Machine {
    settings: Settings,
    level_max: u32,
    word: CachePadded<AtomicU64>,
    consecutive: CachePadded<TaggedCounter>,
    window: Window,
    /// When the youngest probe so far is taken for lost; only grows.
    probes_until: AtomicU64,
    /// Until when the dependency asked to be left alone.
    retry_not_before: AtomicU64,
    opened: AtomicU64,
    rejected: AtomicU64,
    late: AtomicU64,
}

impl Machine {
    pub(super) fn new(settings: Settings) -> Self {
        let level_max = (0..Word::LEVEL_MAX)
            .find(|level| ceiling(&settings, *level) >= settings.open_max)
            .unwrap_or(Word::LEVEL_MAX);
        Self {
            level_max,
            word: CachePadded::new(AtomicU64::new(Word::new(Phase::Closed { since: 0 }, 0, 0).0)),
            consecutive: CachePadded::new(TaggedCounter::default()),
            window: Window::new(settings.window),
            probes_until: AtomicU64::new(0),
            retry_not_before: AtomicU64::new(0),
            opened: AtomicU64::new(0),
            rejected: AtomicU64::new(0),
            late: AtomicU64::new(0),
            settings,
        }
    }

    /// Admits a call without asking for the time, where that can be done.
    pub(super) fn acquire_untimed(&self) -> Option<Ticket> {
        let word = self.load();
        (word.is_closed() && self.settings.slow_call.is_none())
            .then(|| Ticket { generation: word.generation(), started: 0 })
    }

    /// Admits a call or turns it away.
    pub(super) fn acquire(&self, now: u64) -> Result<Ticket, Open> {
        loop {
            let word = self.load();
            let admitted = match word.phase() {
                Phase::Closed { .. } => {
                    return Ok(Ticket { generation: word.generation(), started: now });
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
                        return Err(self.reject(ceiling(&self.settings, 0) / 4));
                    }
                    self.open(word, now);
                    continue;
                }
            };
            self.probes_until.fetch_max(now.saturating_add(self.settings.probe_timeout), Relaxed);
            if self.exchange(word, admitted) {
                return Ok(Ticket { generation: admitted.generation(), started: now });
            }
        }
    }

    #[cold]
    fn reject(&self, retry_after_nanos: u64) -> Open {
        self.rejected.fetch_add(1, Relaxed);
        Open { retry_after: Duration::from_nanos(retry_after_nanos) }
    }

    /// Takes the outcome of an admitted call.
    pub(super) fn complete(&self, ticket: Ticket, outcome: Outcome, now: u64) {
        let (failed, retry_after) = match outcome {
            Outcome::Success => (false, None),
            Outcome::Failure => (true, None),
            Outcome::Overload { retry_after } => (true, retry_after),
            Outcome::Ignored => return self.release(ticket),
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
        let slow =
            self.settings.slow_call.is_some_and(|limit| now.saturating_sub(ticket.started) > limit);
        if word.is_closed() {
            self.count(word, failed, slow, now);
        } else {
            self.judge_probe(ticket, failed || slow, now);
        }
    }

    /// Forgets an admitted call; a probe gives its place back.
    pub(super) fn release(&self, ticket: Ticket) {
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
    fn count(&self, word: Word, failed: bool, slow: bool, now: u64) {
        let generation = word.generation();
        let is_current = || self.load().generation() == generation;
        if !self.window.record(generation, failed, slow, now, is_current) {
            self.late.fetch_add(1, Relaxed);
            return;
        }
        if failed {
            let row = self.consecutive.add(generation, is_current);
            let limit = self.settings.consecutive_failures;
            if limit > 0 && row.is_some_and(|row| row >= limit) {
                self.open(word, now);
                return;
            }
        } else {
            self.consecutive.clear(generation);
        }
        if (failed || slow) && self.exceeds_a_rate(generation, now) {
            self.open(word, now);
        }
    }

    #[cold]
    fn exceeds_a_rate(&self, generation: u32, now: u64) -> bool {
        let totals = self.window.totals(generation, now);
        let calls = totals.calls();
        if calls < u64::from(self.settings.minimum_calls) {
            return false;
        }
        // A quotient: rounded once, it equals the literal that the user wrote (55 of 100 is 0.55).
        let share = |part: u64| part as f64 / calls as f64;
        share(totals.failed) >= self.settings.failure_rate
            || share(totals.slow) >= self.settings.slow_call_rate
    }

    fn judge_probe(&self, ticket: Ticket, failed: bool, now: u64) {
        loop {
            let word = self.load();
            let Some((in_flight, succeeded)) = self.probe(word, ticket) else {
                self.late.fetch_add(1, Relaxed);
                return;
            };
            let done = if failed {
                self.open(word, now)
            } else if succeeded + 1 == self.settings.probes {
                self.exchange(word, word.next(Phase::Closed { since: now >> TICK_BITS }))
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
    fn open(&self, from: Word, now: u64) -> bool {
        let level = match from.phase() {
            Phase::Closed { since } => {
                let closed_for = now.saturating_sub(since << TICK_BITS);
                let decay = closed_for / self.settings.stable;
                from.level().saturating_sub(u32::try_from(decay).unwrap_or(u32::MAX))
            }
            Phase::Open { .. } | Phase::HalfOpen { .. } => from.level(),
        };
        let ceiling = ceiling(&self.settings, level);
        let least = ceiling / 4;
        let spread = (ceiling - least) as f64 * jitter(self.settings.seed, from.generation());
        let asked = self.retry_not_before.load(Relaxed).saturating_sub(now);
        let open_time = (least + spread as u64).max(asked.min(self.settings.open_max));
        let until = now.saturating_add(open_time).div_ceil(1 << TICK_BITS);
        let next_level = (level + 1).min(self.level_max);
        let opened = self.exchange(from, from.next(Phase::Open { until }).at_level(next_level));
        if opened {
            self.opened.fetch_add(1, Relaxed);
        }
        opened
    }

    /// Closes the breaker and forgets all it has counted.
    pub(super) fn reset(&self) {
        self.retry_not_before.store(0, Relaxed);
        loop {
            let word = self.load();
            // Level zero cannot decay, so it does not matter since when.
            let closed = word.next(Phase::Closed { since: 0 }).at_level(0);
            if self.exchange(word, closed) {
                return;
            }
        }
    }

    pub(super) fn state(&self, now: u64) -> State {
        state_of(self.load(), now)
    }

    pub(super) fn stats(&self, now: u64) -> CircuitBreakerStats {
        let word = self.load();
        let generation = word.generation();
        let totals = self.window.totals(generation, now);
        let (probes_in_flight, retry_after) = match word.phase() {
            Phase::Closed { .. } => (0, 0),
            Phase::Open { until } => (0, (until << TICK_BITS).saturating_sub(now)),
            Phase::HalfOpen { in_flight, .. } => (in_flight, 0),
        };
        CircuitBreakerStats {
            state: state_of(word, now),
            calls: totals.calls(),
            failures: totals.failed,
            slow: totals.slow,
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
        Phase::Open { until } if now < until << TICK_BITS => State::Open,
        Phase::Open { .. } | Phase::HalfOpen { .. } => State::HalfOpen,
    }
}

/// The longest open time of a level, without hints.
fn ceiling(settings: &Settings, level: u32) -> u64 {
    settings.open_base.saturating_mul(1 << level).min(settings.open_max)
}

/// The `index`-th number of SplitMix64 from `seed`, scaled to `0.0..1.0`.
fn jitter(seed: u64, index: u32) -> f64 {
    let step = (u64::from(index) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut bits = seed.wrapping_add(step);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^= bits >> 31;
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

/// A duration in nanoseconds; what does not fit is the longest.
pub(super) fn nanos(duration: Duration) -> u64 {
    duration
        .as_secs()
        .saturating_mul(1_000_000_000)
        .saturating_add(u64::from(duration.subsec_nanos()))
}

/// A tick is 2^20 ns.
const TICK_BITS: u32 = 20;

/// What a state needs to know; times in ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Closed { since: u64 },
    Open { until: u64 },
    HalfOpen { in_flight: u32, succeeded: u32 },
}

/// State, level, generation and payload, from the highest bits down: 2, 5, 18 and 39 bits.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Word(u64);

impl Word {
    const PAYLOAD_BITS: u32 = 39;
    const GENERATION_BITS: u32 = 18;
    const LEVEL_SHIFT: u32 = Self::PAYLOAD_BITS + Self::GENERATION_BITS;
    const STATE_SHIFT: u32 = Self::LEVEL_SHIFT + 5;
    const PAYLOAD_MAX: u64 = (1 << Self::PAYLOAD_BITS) - 1;
    const GENERATION_MASK: u32 = (1 << Self::GENERATION_BITS) - 1;
    const LEVEL_MAX: u32 = 31;
    const CLOSED: u64 = 0;
    const OPEN: u64 = 1;
    const HALF_OPEN: u64 = 2;

    fn new(phase: Phase, generation: u32, level: u32) -> Self {
        let (state, payload) = match phase {
            Phase::Closed { since } => (Self::CLOSED, since.min(Self::PAYLOAD_MAX)),
            Phase::Open { until } => (Self::OPEN, until.min(Self::PAYLOAD_MAX)),
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
        let payload = self.0 & Self::PAYLOAD_MAX;
        match self.0 >> Self::STATE_SHIFT {
            Self::CLOSED => Phase::Closed { since: payload },
            Self::OPEN => Phase::Open { until: payload },
            _ => Phase::HalfOpen {
                in_flight: (payload >> 16) as u32,
                succeeded: (payload & 0xffff) as u32,
            },
        }
    }

    fn is_closed(self) -> bool {
        self.0 >> Self::STATE_SHIFT == Self::CLOSED
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
