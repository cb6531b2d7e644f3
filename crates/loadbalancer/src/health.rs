//! What decides whether a backend gets traffic: three small state machines without clocks or locks.
//!
//! [`Checked`] counts active checks against thresholds. [`Ejection`] is passive: a backend that fails
//! is left alone for a time that doubles with every ejection and is forgiven with every stable time.
//! [`warmth`] is slow start. Each takes the time and its draw of chance from outside.

use std::time::Duration;

use crate::latency::Nanos;

/// How many checks in a row change the opinion of a backend.
///
/// A backend that is checked starts unknown, which is not healthy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thresholds {
    /// Good checks in a row until it is healthy.
    pub rise: u32,
    /// Bad checks in a row until it is down.
    pub fall: u32,
}

impl Default for Thresholds {
    /// Two good ones, three bad ones.
    fn default() -> Self {
        Self { rise: 2, fall: 3 }
    }
}

/// What the active checks think of one backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Checked {
    healthy: Option<bool>,
    /// Checks in a row that contradict the opinion.
    contrary: u32,
    last: bool,
}

impl Checked {
    /// `None` while it is unknown.
    pub(crate) fn healthy(self) -> Option<bool> {
        self.healthy
    }

    /// Takes the result of a check; returns whether the opinion changed.
    pub(crate) fn observe(&mut self, good: bool, thresholds: Thresholds) -> bool {
        if self.healthy == Some(good) {
            self.contrary = 0;
            return false;
        }
        if self.last != good {
            self.contrary = 0;
        }
        self.last = good;
        self.contrary += 1;
        let enough = if good { thresholds.rise } else { thresholds.fall };
        let changes = self.contrary >= enough;
        if changes {
            *self = Self { healthy: Some(good), contrary: 0, last: good };
        }
        changes
    }
}

/// When a backend is ejected for its failures, and for how long.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ejecting {
    /// Failures in a row that eject; 0 is off, 5 unless told.
    pub consecutive_failures: u32,
    /// Ejects whose success rate is lower than that of all others by this much; 0.3 unless told.
    ///
    /// Above 0 and at most 1, where 1 is nearly off. Looked at once per `interval`.
    pub success_rate_gap: f64,
    /// Answers in an interval without which a success rate says nothing; 20 unless told.
    pub minimum_answers: u32,
    /// How long success rates are counted before they are compared; 10 s unless told.
    pub interval: Duration,
    /// The first ejection lasts between half of this and the whole; 10 s unless told.
    ///
    /// The n-th in a row lasts 2^(n-1) times as long, up to `longest`.
    pub base: Duration,
    /// No ejection is longer; 5 minutes unless told.
    pub longest: Duration,
    /// A backend that was back for so long is forgiven one ejection; 60 s unless told.
    pub stable: Duration,
    /// The largest share of the set that may be ejected at once; 0.3 unless told.
    ///
    /// One of several backends may always be, and the last never.
    pub share_max: f64,
}

impl Default for Ejecting {
    fn default() -> Self {
        Self {
            consecutive_failures: 5,
            success_rate_gap: 0.3,
            minimum_answers: 20,
            interval: Duration::from_secs(10),
            base: Duration::from_secs(10),
            longest: Duration::from_secs(300),
            stable: Duration::from_secs(60),
            share_max: 0.3,
        }
    }
}

impl Ejecting {
    /// How many of `backends` may be ejected at once.
    pub(crate) fn most(&self, backends: usize) -> usize {
        let share = (backends as f64 * self.share_max) as usize;
        share.max(1).min(backends.saturating_sub(1))
    }
}

/// The ejections of one backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ejection {
    until: Option<Nanos>,
    /// Ejections in a row that are not forgiven.
    count: u32,
    back_since: Nanos,
}

impl Ejection {
    /// The end of the ejection it is in.
    pub(crate) fn until(self) -> Option<Nanos> {
        self.until
    }

    /// Ejections in a row that are not forgiven at `now`.
    pub(crate) fn count(self, now: Nanos, ejecting: &Ejecting) -> u32 {
        if self.until.is_some() {
            return self.count;
        }
        let stable = nanos(ejecting.stable).max(1);
        let forgiven = now.saturating_sub(self.back_since) / stable;
        self.count.saturating_sub(u32::try_from(forgiven).unwrap_or(u32::MAX))
    }

    /// Begins an ejection and returns how long it is; `draw` is from 0 to 1.
    pub(crate) fn eject(&mut self, now: Nanos, draw: f64, ejecting: &Ejecting) -> Duration {
        let count = self.count(now, ejecting);
        let whole = ejecting.base.saturating_mul(1_u32.checked_shl(count).unwrap_or(u32::MAX));
        let length = whole.min(ejecting.longest).mul_f64(0.5 + 0.5 * draw);
        self.count = count.saturating_add(1);
        self.until = Some(now.saturating_add(nanos(length)));
        length
    }

    /// Begins an ejection of a given length, which a person has asked for.
    pub(crate) fn eject_for(&mut self, now: Nanos, length: Duration) {
        self.until = Some(now.saturating_add(nanos(length)));
    }

    /// Ends an ejection whose time is over; returns whether it did.
    pub(crate) fn expire(&mut self, now: Nanos) -> bool {
        let over = self.until.is_some_and(|until| now >= until);
        if over {
            self.end(now);
        }
        over
    }

    /// Ends an ejection; returns whether there was one.
    pub(crate) fn end(&mut self, now: Nanos) -> bool {
        let was = self.until.take().is_some();
        if was {
            self.back_since = now;
        }
        was
    }
}

/// Steps of a slow start.
pub(crate) const WARMING_STEPS: u64 = 10;

/// The share of its weight that a backend has at an age, from a tenth up to the whole.
///
/// It grows in steps of a tenth, evenly over `window`, as Envoy's slow start does with an aggression
/// of one.
pub(crate) fn warmth(age: Nanos, window: Duration) -> f64 {
    let window = nanos(window);
    if age >= window {
        return 1.0;
    }
    let step = age / (window / WARMING_STEPS).max(1);
    (step.max(1) as f64 / WARMING_STEPS as f64).min(1.0)
}

pub(crate) fn nanos(duration: Duration) -> Nanos {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Nanos = 1_000_000_000;

    /// Runs checks, `+` good and `-` bad, and compares the opinion after each: `?`, `u`p or `d`own.
    fn check(thresholds: Thresholds, checks: &str, expected: &str) {
        let mut checked = Checked::default();
        let opinions: String = checks
            .chars()
            .map(|check| {
                let before = checked.healthy();
                let changed = checked.observe(check == '+', thresholds);
                assert_eq!(changed, before != checked.healthy(), "{checks}");
                checked.healthy().map_or('?', |healthy| if healthy { 'u' } else { 'd' })
            })
            .collect();
        assert_eq!(opinions, expected, "{checks}");
    }

    #[test]
    fn so_many_checks_in_a_row_change_the_opinion() {
        let two_three = Thresholds { rise: 2, fall: 3 };
        check(two_three, "++--+---+++", "?uuuuuudduu");
        check(two_three, "---", "??d");
        check(two_three, "+-+--+--", "????????");
        check(Thresholds { rise: 1, fall: 1 }, "+-+", "udu");
    }

    #[test]
    fn ejections_double_are_capped_and_are_forgiven() {
        let ejecting = Ejecting::default();
        let mut ejection = Ejection::default();
        let mut now = 0;
        let mut lengths = Vec::new();
        for _ in 0..7 {
            lengths.push(ejection.eject(now, 1.0, &ejecting).as_secs());
            now = ejection.until().expect("ejected");
            assert!(!ejection.expire(now - 1) && ejection.expire(now) && !ejection.expire(now));
        }
        assert_eq!(lengths, [10, 20, 40, 80, 160, 300, 300]);
        assert_eq!(ejection.count(now + 59 * SECOND, &ejecting), 7);
        assert_eq!(ejection.count(now + 60 * SECOND, &ejecting), 6);
        assert_eq!(ejection.count(now + 3_600 * SECOND, &ejecting), 0);
        let later = now + 360 * SECOND;
        assert_eq!(ejection.eject(later, 0.0, &ejecting), Duration::from_secs(10), "half of 20 s");
    }

    #[test]
    fn a_share_may_be_ejected_one_always_and_the_last_never() {
        let ejecting = Ejecting::default();
        let most: Vec<_> = [0, 1, 2, 3, 6, 7, 10, 100].map(|n| ejecting.most(n)).into();
        assert_eq!(most, [0, 0, 1, 1, 1, 2, 3, 30]);
    }

    #[test]
    fn a_slow_start_goes_up_in_tenths() {
        let window = Duration::from_secs(10);
        let at = [0, 1, 2, 5, 9, 10, 99].map(|second| warmth(second * SECOND, window));
        assert_eq!(at, [0.1, 0.1, 0.2, 0.5, 0.9, 1.0, 1.0]);
        assert_eq!(warmth(0, Duration::ZERO), 1.0);
    }

    proptest! {
        #[test]
        fn any_schedule_of_ejections_stays_within_its_bounds(
            steps in prop::collection::vec((0_u64..400, 0.0_f64..=1.0), 1..60),
        ) {
            let ejecting = Ejecting::default();
            let mut ejection = Ejection::default();
            let mut now = 0;
            for (seconds, draw) in steps {
                now += seconds * SECOND;
                ejection.expire(now);
                if ejection.until().is_none() {
                    let before = ejection.count(now, &ejecting);
                    let length = ejection.eject(now, draw, &ejecting);
                    prop_assert!(length >= ejecting.base / 2 && length <= ejecting.longest);
                    prop_assert_eq!(ejection.count(now, &ejecting), before + 1);
                }
            }
        }
    }
}
