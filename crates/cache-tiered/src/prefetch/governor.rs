//! How many predictions are followed: fewer when too few have been of use, more when they are again.
//!
//! Whatever was fetched ahead is found out to be of use or not sooner or later. Of each
//! [`DECIDED`] such findings a share below [`USED_MIN_PERCENT`] halves the predictions that are
//! followed, down to one of 64; one that is not below goes half the way back. So where prediction does
//! not pay it costs a load in 64 predictions, and that few are the probes that show when it does.

/// Findings after which the share is looked at.
const DECIDED: u64 = 32;
const USED_MIN_PERCENT: u64 = 30;
/// At the last level one prediction of `1 << LEVEL_MAX` is followed.
const LEVEL_MAX: u32 = 6;

/// Lets predictions through or not; see the top of this file.
#[derive(Debug, Default)]
pub(crate) struct Governor {
    level: u32,
    predictions: u64,
    /// The totals when the share was last looked at.
    used: u64,
    wasted: u64,
}

impl Governor {
    /// Tells whether to follow a prediction; `used` and `wasted` are the totals until now.
    pub(crate) fn allows(&mut self, used: u64, wasted: u64) -> bool {
        let newly_used = used.saturating_sub(self.used);
        let decided = newly_used + wasted.saturating_sub(self.wasted);
        if decided >= DECIDED {
            let pays = newly_used * 100 >= decided * USED_MIN_PERCENT;
            self.level = if pays { self.level / 2 } else { (self.level + 1).min(LEVEL_MAX) };
            (self.used, self.wasted) = (used, wasted);
        }
        self.predictions = self.predictions.wrapping_add(1);
        self.predictions.is_multiple_of(self.one_of())
    }

    /// One prediction of so many is followed.
    pub(crate) fn one_of(&self) -> u64 {
        1 << self.level
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Makes `predictions`, of which every one that is followed is of use or not; counts those followed.
    fn follow(
        governor: &mut Governor,
        totals: &mut (u64, u64),
        predictions: u64,
        used: u64,
    ) -> u64 {
        let mut followed = 0;
        for _ in 0..predictions {
            if governor.allows(totals.0, totals.1) {
                followed += 1;
                let total = if followed % 100 < used { &mut totals.0 } else { &mut totals.1 };
                *total += 1;
            }
        }
        followed
    }

    #[test]
    fn what_is_of_use_is_always_followed() {
        let (mut governor, mut totals) = (Governor::default(), (0, 0));
        assert_eq!(follow(&mut governor, &mut totals, 10_000, 100), 10_000);
        assert_eq!(governor.one_of(), 1);
    }

    #[test]
    fn what_is_of_no_use_is_followed_by_few_probes_and_then_again_in_full() {
        let (mut governor, mut totals) = (Governor::default(), (0, 0));
        follow(&mut governor, &mut totals, 10_000, 0);
        assert_eq!(governor.one_of(), 64);
        assert!(follow(&mut governor, &mut totals, 64_000, 0) <= 1_000);
        follow(&mut governor, &mut totals, 10_000, 100);
        assert_eq!(governor.one_of(), 1);
    }

    #[test]
    fn while_nothing_is_found_out_nothing_changes() {
        let mut governor = Governor::default();
        assert!((0..10_000).all(|_| governor.allows(0, DECIDED - 1)));
        assert!(!(0..2).all(|_| governor.allows(0, DECIDED)));
    }
}
