//! The level's hysteresis: up at once, down only after calm.
//!
//! A level falls when three readings in a row were five points below the threshold that earned it,
//! and two seconds have passed since the last that was not. It falls to the highest level that those
//! calm readings asked for, so one step may cross several levels.

use std::time::Instant;

use super::{HOLD, Level, Thresholds};

/// How far below its threshold a level is left, as a share of the limit.
const MARGIN: f64 = 0.05;
/// Calm readings in a row before a level is left.
const CALM_READINGS: u32 = 3;

#[derive(Debug)]
pub(super) struct Ladder {
    thresholds: Thresholds,
    level: Level,
    calm: u32,
    /// The highest level that a calm reading asked for.
    wanted: Level,
    /// The last reading that earned the level.
    earned_at: Instant,
}

impl Ladder {
    pub(super) fn new(thresholds: Thresholds, now: Instant) -> Self {
        Self { thresholds, level: Level::Normal, calm: 0, wanted: Level::Normal, earned_at: now }
    }

    pub(super) fn level(&self) -> Level {
        self.level
    }

    /// Takes a reading; returns the change, if it makes one.
    pub(super) fn step(
        &mut self,
        share: f64,
        stalled: bool,
        now: Instant,
    ) -> Option<(Level, Level)> {
        let lift = |level: Level| if stalled { level.lifted() } else { level };
        let before = self.level;
        let reached = lift(self.thresholds.level_of(share));
        let held = lift(self.thresholds.level_of(share + MARGIN));
        if reached > before {
            self.level = reached;
        }
        if held >= self.level {
            self.calm = 0;
            self.wanted = Level::Normal;
            self.earned_at = now;
        } else {
            self.calm += 1;
            self.wanted = self.wanted.max(held);
            let rested = now.saturating_duration_since(self.earned_at) >= HOLD;
            if self.calm >= CALM_READINGS && rested {
                self.level = self.wanted;
                self.calm = 0;
                self.wanted = Level::Normal;
                self.earned_at = now;
            }
        }
        (self.level != before).then_some((before, self.level))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    /// Feeds shares in percent, one each 250 ms, and writes the first letter of the level after each;
    /// `!` after a number says that the machine stalls.
    fn check(shares: &str, levels: &str) {
        let start = Instant::now();
        let mut ladder = Ladder::new(Thresholds::default(), start);
        let mut seen = String::new();
        for (step, word) in shares.split(' ').enumerate() {
            let stalled = word.ends_with('!');
            let share: f64 = word.trim_end_matches('!').parse().expect("a number");
            let now = start + Duration::from_millis(250) * step as u32;
            ladder.step(share / 100.0, stalled, now);
            seen.push_str(&ladder.level().as_str()[..1]);
        }
        assert_eq!(seen, levels, "{shares}");
    }

    #[test]
    fn a_level_rises_at_once_however_far() {
        check("10 70 80 95 10", "nehcc");
        check("10 99", "nc");
    }

    #[test]
    fn a_level_falls_after_two_calm_seconds() {
        // The last reading at High is the second; eight quarters of a second later it falls.
        check("80 80 10 10 10 10 10 10 10 10", "hhhhhhhhhn");
        // A reading within five points starts the wait anew.
        check("80 10 10 10 10 76 10 10 10 10 10 10 10 10", "hhhhhhhhhhhhhn");
    }

    #[test]
    fn it_falls_to_what_the_calm_readings_asked_for_and_no_further() {
        check("96 72 10 10 10 10 10 10 10", "cccccccce");
    }

    #[test]
    fn stalls_lift_by_one() {
        check("10 10! 71! 85! 96!", "nehcc");
    }

    proptest! {
        #[test]
        fn the_level_is_never_below_what_the_reading_asks_for(
            steps in proptest::collection::vec((0.0..1.2f64, any::<bool>(), 0u64..3_000), 1..200)
        ) {
            let mut now = Instant::now();
            let thresholds = Thresholds::default();
            let mut ladder = Ladder::new(thresholds, now);
            for (share, stalled, wait) in steps {
                now += Duration::from_millis(wait);
                let before = ladder.level();
                ladder.step(share, stalled, now);
                let asked = thresholds.level_of(share);
                let asked = if stalled { asked.lifted() } else { asked };
                prop_assert!(ladder.level() >= asked);
                prop_assert!(ladder.level() <= before.max(asked));
            }
        }
    }
}
