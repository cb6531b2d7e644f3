//! Advice on how many backends there should be, with the reason, and slow to change its mind.
//!
//! [`Scaler`] looks at the load at times that the caller chooses and compares the share of places that
//! are taken with a target. It is a state machine without a clock: too much load has to last for a
//! while, too little for much longer, and after an advice it waits until that can have had an effect.
//! Who acts on the advice is none of its business; the feature `actuators` brings some who do.

use std::fmt;
use std::time::{Duration, Instant};

use crate::balancer::BalancerStats;

/// When a [`Scaler`] advises what.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scaling {
    /// The fewest backends it advises; 1 unless told.
    pub fewest: usize,
    /// The most backends it advises; 16 unless told.
    pub most: usize,
    /// The share of places that should be taken; above 0 and below 1, 0.6 unless told.
    pub target: f64,
    /// How far the share may be from the target, as a part of it, before it counts; 0.2 unless told.
    pub slack: f64,
    /// How long there must be too much load; 10 s unless told.
    pub up_after: Duration,
    /// How long there must be too little; 5 minutes unless told.
    pub down_after: Duration,
    /// How long it says nothing after an advice; 30 s unless told.
    pub cooldown: Duration,
    /// The places of a backend without a limit, for want of another number; 8 unless told.
    pub places: u64,
}

impl Default for Scaling {
    fn default() -> Self {
        Self {
            fewest: 1,
            most: 16,
            target: 0.6,
            slack: 0.2,
            up_after: Duration::from_secs(10),
            down_after: Duration::from_secs(300),
            cooldown: Duration::from_secs(30),
            places: 8,
        }
    }
}

/// How many backends there should be, and why.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct ScaleAdvice {
    /// The number of backends that would bring the load to its target.
    pub desired: usize,
    /// The number there is.
    pub current: usize,
    /// Why.
    pub reason: ScaleReason,
}

/// What an advice rests on.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum ScaleReason {
    /// Calls were turned away, or waited in vain, since the last look.
    Shed {
        /// How many.
        calls: u64,
    },
    /// Calls wait in the queue.
    Waiting {
        /// How many.
        calls: usize,
    },
    /// This share of the places is taken, which is too much.
    Busy {
        /// The mean share over the time that it was too much.
        utilization: f64,
    },
    /// This share of the places is taken, which is too little.
    Idle {
        /// The largest share over the time that it was too little.
        utilization: f64,
    },
    /// There are fewer or more backends than there may be.
    OutOfBounds,
}

impl fmt::Display for ScaleReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shed { calls } => write!(f, "{calls} calls were turned away"),
            Self::Waiting { calls } => write!(f, "{calls} calls wait"),
            Self::Busy { utilization } => {
                write!(f, "{:.0} % of the places are taken", utilization * 100.0)
            }
            Self::Idle { utilization } => {
                write!(f, "no more than {:.0} % of the places are taken", utilization * 100.0)
            }
            Self::OutOfBounds => write!(f, "the number is out of its bounds"),
        }
    }
}

/// Watches the load of a balancer and advises.
///
/// # Examples
///
/// ```
/// use std::time::{Duration, Instant};
/// use loadbalancer::{Balancer, Scaler, Scaling};
///
/// let balancer = Balancer::builder().build()?;
/// let mut scaler = Scaler::new(Scaling { fewest: 2, ..Scaling::default() });
/// // Once a second, say:
/// if let Some(advice) = scaler.observe(&balancer.stats(), Instant::now()) {
///     println!("{} backends instead of {}: {:?}", advice.desired, advice.current, advice.reason);
/// }
/// # Ok::<_, loadbalancer::BuildError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Scaler {
    scaling: Scaling,
    over: Option<Lasting>,
    under: Option<Lasting>,
    quiet_until: Option<Instant>,
    /// Calls turned away or timed out, as last seen.
    lost: Option<u64>,
    /// Those since the load became too much.
    lost_while_over: u64,
}

/// A condition that has held for some time.
#[derive(Clone, Copy, Debug)]
struct Lasting {
    since: Instant,
    sum: f64,
    count: u32,
    largest: f64,
}

impl Lasting {
    fn extend(before: Option<Self>, value: f64, now: Instant) -> Self {
        let mut it = before.unwrap_or(Self { since: now, sum: 0.0, count: 0, largest: 0.0 });
        it.sum += value;
        it.count += 1;
        it.largest = it.largest.max(value);
        it
    }
}

impl Scaler {
    /// Starts to watch.
    pub fn new(scaling: Scaling) -> Self {
        Self { scaling, over: None, under: None, quiet_until: None, lost: None, lost_while_over: 0 }
    }

    /// Looks at the load at `now`; returns an advice when the number should be another one.
    ///
    /// Counts of a set that was replaced, and so went down, start afresh.
    pub fn observe(&mut self, stats: &BalancerStats, now: Instant) -> Option<ScaleAdvice> {
        let Scaling { fewest, most, target, slack, up_after, down_after, cooldown, places } =
            self.scaling;
        let current = stats.ready;
        let capacity = stats.capacity.unwrap_or(places.saturating_mul(current as u64));
        // What waits would be served if there were places.
        let wanted = stats.in_flight as f64 + stats.waiting as f64;
        let utilization = wanted / capacity.max(1) as f64;
        let lost_now = stats.shed.saturating_add(stats.timed_out);
        let lost = lost_now.saturating_sub(self.lost.replace(lost_now).unwrap_or(lost_now));

        let is_over = lost > 0 || stats.waiting > 0 || utilization > target * (1.0 + slack);
        let is_under = !is_over && utilization < target * (1.0 - slack);
        self.over = is_over.then(|| Lasting::extend(self.over, utilization, now));
        self.under = is_under.then(|| Lasting::extend(self.under, utilization, now));
        self.lost_while_over = if is_over { self.lost_while_over + lost } else { 0 };

        if self.quiet_until.is_some_and(|until| now < until) {
            return None;
        }
        let for_long = |it: &Lasting, least| now.saturating_duration_since(it.since) >= least;
        // The places of one more backend are those of the others in the mean.
        let needed = |utilization: f64| {
            // Less a trifle, so that what is whole stays whole.
            (utilization * current.max(1) as f64 / target - 1e-9).ceil() as usize
        };
        let (desired, reason) = if !(fewest..=most.max(fewest)).contains(&current) {
            (current.clamp(fewest, most.max(fewest)), ScaleReason::OutOfBounds)
        } else if let Some(over) = self.over.filter(|it| for_long(it, up_after)) {
            let mean = over.sum / f64::from(over.count);
            let reason = if self.lost_while_over > 0 {
                ScaleReason::Shed { calls: self.lost_while_over }
            } else if stats.waiting > 0 {
                ScaleReason::Waiting { calls: stats.waiting }
            } else {
                ScaleReason::Busy { utilization: mean }
            };
            (needed(mean).max(current + 1).min(most.max(fewest)), reason)
        } else if let Some(under) = self.under.filter(|it| for_long(it, down_after)) {
            let reason = ScaleReason::Idle { utilization: under.largest };
            (needed(under.largest).clamp(fewest, current), reason)
        } else {
            return None;
        };
        if desired == current {
            return None;
        }
        self.quiet_until = now.checked_add(cooldown);
        (self.over, self.under, self.lost_while_over) = (None, None, 0);
        Some(ScaleAdvice { desired, current, reason })
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn stats(ready: usize, in_flight: u64) -> BalancerStats {
        BalancerStats {
            backends: ready,
            ready,
            panicking: false,
            in_flight,
            capacity: Some(10 * ready as u64),
            leases: 0,
            waiting: 0,
            shed: 0,
            timed_out: 0,
        }
    }

    /// Looks once a second for `seconds` and returns the advices, each with its second.
    fn watch(
        scaler: &mut Scaler,
        from: Instant,
        seconds: std::ops::Range<u64>,
        load: impl Fn(u64) -> BalancerStats,
    ) -> Vec<(u64, ScaleAdvice)> {
        seconds
            .filter_map(|second| {
                let advice = scaler.observe(&load(second), from + Duration::from_secs(second));
                advice.map(|advice| (second, advice))
            })
            .collect()
    }

    #[test]
    fn load_that_lasts_asks_for_as_many_as_bring_it_to_the_target() {
        let (mut scaler, start) = (Scaler::new(Scaling::default()), Instant::now());
        let advices = watch(&mut scaler, start, 0..30, |_| stats(2, 18));
        let [
            (10, ScaleAdvice { desired: 3, current: 2, reason: ScaleReason::Busy { utilization } }),
        ] = advices[..]
        else {
            panic!("{advices:?}")
        };
        assert!((utilization - 0.9).abs() < 1e-9);
    }

    #[test]
    fn a_burst_and_a_load_near_the_target_ask_for_nothing() {
        let (mut scaler, start) = (Scaler::new(Scaling::default()), Instant::now());
        let bursts = |second: u64| stats(2, if second.is_multiple_of(10) { 12 } else { 20 });
        assert_eq!(watch(&mut scaler, start, 0..60, bursts), []);
        let near = |second: u64| stats(2, if second.is_multiple_of(2) { 10 } else { 14 });
        assert_eq!(watch(&mut scaler, start, 60..1_200, near), []);
    }

    #[test]
    fn little_load_takes_five_minutes_and_goes_by_its_peak() {
        let (mut scaler, start) = (Scaler::new(Scaling::default()), Instant::now());
        let load = |second: u64| stats(8, if second == 100 { 20 } else { 2 });
        let advices = watch(&mut scaler, start, 0..310, load);
        let [(300, ScaleAdvice { desired: 4, current: 8, reason: ScaleReason::Idle { .. } })] =
            advices[..]
        else {
            panic!("{advices:?}")
        };
    }

    #[test]
    fn calls_that_were_turned_away_are_the_reason_whatever_is_in_flight() {
        let (mut scaler, start) = (Scaler::new(Scaling::default()), Instant::now());
        let load = |second: u64| BalancerStats { shed: second, ..stats(4, 24) };
        let advices = watch(&mut scaler, start, 5..25, load);
        let [(16, ScaleAdvice { desired: 5, reason: ScaleReason::Shed { calls: 11 }, .. })] =
            advices[..]
        else {
            panic!("{advices:?}")
        };
    }

    #[test]
    fn an_advice_is_given_time_and_bounds_are_kept() {
        let scaling = Scaling { most: 3, fewest: 2, ..Scaling::default() };
        let (mut scaler, start) = (Scaler::new(scaling), Instant::now());
        let load = |_| BalancerStats { waiting: 50, ..stats(2, 20) };
        let seconds: Vec<_> = watch(&mut scaler, start, 0..80, load)
            .into_iter()
            .map(|(second, advice)| (second, advice.desired))
            .collect();
        assert_eq!(seconds, [(10, 3), (40, 3), (70, 3)]);
        let mut scaler = Scaler::new(scaling);
        let advice = scaler.observe(&stats(0, 0), start).expect("none is too few");
        assert_eq!((advice.desired, advice.reason), (2, ScaleReason::OutOfBounds));
        let mut scaler = Scaler::new(scaling);
        assert_eq!(watch(&mut scaler, start, 0..900, |_| stats(3, 29)), [], "three are the most");
    }

    #[test]
    fn a_clock_that_goes_back_is_no_time_at_all() {
        let (mut scaler, start) = (Scaler::new(Scaling::default()), Instant::now());
        let later = start + Duration::from_secs(100);
        assert_eq!(scaler.observe(&stats(2, 20), later), None);
        assert_eq!(scaler.observe(&stats(2, 20), start), None);
        assert!(scaler.observe(&stats(2, 20), later + Duration::from_secs(10)).is_some());
    }
}
