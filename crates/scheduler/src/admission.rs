//! Admission: what is done when a queue is full, and when one that is not is overloaded all the same.
//!
//! A bound keeps memory in check, not delay: a queue that is always half full makes everybody wait and
//! serves nobody better. [`CoDel`] (Nichols and Jacobson, "Controlling Queue Delay", ACM Queue 2012)
//! tells such a standing queue from a burst by the *least* delay within an interval. Here it takes the
//! age of the oldest waiting task, which does not depend on the order of service. While that stays above
//! the target through a whole interval, the level is overloaded. Then, as in "Fail at Scale" (Maurer,
//! ACM Queue 2015), two things change: the newest task is served first, because its caller still
//! waits for the answer, and tasks that have waited longer than `shed_after` are not run at all.
//! Both end with the first interval in which the oldest task got younger than the target.

use std::time::{Duration, Instant};

use crate::Priority;

/// From which end of a level the next task is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The task that has waited longest; under load everybody waits equally.
    OldestFirst,
    /// The task that came last; under overload somebody is served in time.
    NewestFirst,
}

/// When a level counts as overloaded, and what it sheds then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CoDelSettings {
    /// The queue delay that is still good.
    pub target: Duration,
    /// How long the delay must stay above the target before it counts.
    pub interval: Duration,
    /// How long a task may have waited before it is shed while the level is overloaded.
    pub shed_after: Duration,
}

impl CoDelSettings {
    /// Returns what a level has unless told; nothing for `Critical`, which is never shed.
    ///
    /// The targets are 5 ms for `High`, 50 ms for `Normal` and 500 ms for `Low`, the interval is 100 ms
    /// (1 s for `Low`), and tasks are shed after ten times the target.
    pub fn of(level: Priority) -> Option<Self> {
        let (target, interval) = match level {
            Priority::Critical => return None,
            Priority::High => (5, 100),
            Priority::Normal => (50, 100),
            Priority::Low => (500, 1_000),
        };
        Some(Self {
            target: Duration::from_millis(target),
            interval: Duration::from_millis(interval),
            shed_after: Duration::from_millis(10 * target),
        })
    }
}

/// The state of one level: overloaded or not, and since when.
///
/// Time may not run backwards between calls; a time before the last one counts as the last.
#[derive(Clone, Debug)]
pub struct CoDel {
    settings: CoDelSettings,
    /// The end of the interval under way; none while the level was empty.
    until: Option<Instant>,
    /// The least age of the oldest task within it.
    least: Duration,
    overloaded: bool,
    entered: u64,
}

impl CoDel {
    /// Makes a level that is not overloaded.
    pub fn new(settings: CoDelSettings) -> Self {
        Self { settings, until: None, least: Duration::MAX, overloaded: false, entered: 0 }
    }

    /// Takes the age of the oldest waiting task at `now`; call it whenever a task is taken.
    ///
    /// Returns whether the level is overloaded.
    pub fn observe(&mut self, oldest: Duration, now: Instant) -> bool {
        self.least = self.least.min(oldest);
        match self.until {
            None => self.until = Some(now + self.settings.interval),
            Some(until) if now >= until => {
                let standing = self.least > self.settings.target;
                self.entered += u64::from(standing && !self.overloaded);
                self.overloaded = standing;
                // The next interval begins with what is there now.
                self.least = oldest;
                self.until = Some(now + self.settings.interval);
            }
            Some(_) => {}
        }
        self.overloaded
    }

    /// Says that the level has become empty: nothing waits, so the overload is over.
    pub fn emptied(&mut self) {
        self.until = None;
        self.least = Duration::MAX;
        self.overloaded = false;
    }

    /// Tells whether the level is overloaded.
    pub fn is_overloaded(&self) -> bool {
        self.overloaded
    }

    /// Returns the end from which to take the next task.
    pub fn order(&self) -> Order {
        if self.overloaded { Order::NewestFirst } else { Order::OldestFirst }
    }

    /// Tells whether a task that waited so long is to be shed; the oldest ones are asked about.
    pub fn sheds(&self, waited: Duration) -> bool {
        self.overloaded && waited > self.settings.shed_after
    }

    /// Returns when it may be worth coming back: the end of the interval, in which the state can change.
    ///
    /// Never zero.
    pub fn retry_after(&self, now: Instant) -> Duration {
        let rest = self.until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now));
        if rest.is_zero() { self.settings.interval.max(Duration::from_millis(1)) } else { rest }
    }

    /// Returns how often the level became overloaded.
    pub fn times_overloaded(&self) -> u64 {
        self.entered
    }
}

/// What happens to a task for which there is no room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum WhenFull {
    /// It is given back to the caller.
    #[default]
    Reject,
    /// The caller waits for room up to this long, and then gets it back.
    Wait(Duration),
    /// Tasks of lower levels are shed to make room, the lowest level and its newest tasks first.
    EvictLower,
    /// The caller runs it; not for futures, where it counts as `Reject`.
    CallerRuns,
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    const SETTINGS: CoDelSettings = CoDelSettings {
        target: Duration::from_millis(5),
        interval: Duration::from_millis(100),
        shed_after: Duration::from_millis(50),
    };

    /// Feeds `(time, age of the oldest)` in milliseconds and returns when the state changed, to what.
    fn changes(observations: impl IntoIterator<Item = (u64, u64)>) -> Vec<(u64, bool)> {
        let start = Instant::now();
        let mut codel = CoDel::new(SETTINGS);
        let mut changes = Vec::new();
        for (at, oldest) in observations {
            let before = codel.is_overloaded();
            let after = codel.observe(ms(oldest), start + ms(at));
            if before != after {
                changes.push((at, after));
            }
        }
        changes
    }

    #[test]
    fn a_burst_that_drains_within_an_interval_is_no_overload() {
        // Ten bursts, each up to 63 ms old, each drained before the interval is over.
        let burst = |round: u64| (0..10).map(move |i| (round * 100 + i * 10, 63 - i * 7));
        assert_eq!(changes((0..10).flat_map(burst)), []);
    }

    #[test]
    fn a_standing_queue_is_an_overload_after_one_interval_and_until_it_is_gone() {
        let standing = (0..50).map(|i| (i * 10, 20));
        let gone = (50..90).map(|i| (i * 10, 2));
        assert_eq!(changes(standing.chain(gone)), [(100, true), (500, false)]);
    }

    #[test]
    fn one_young_moment_in_each_interval_keeps_the_level_normal() {
        let mostly_old = (0..100).map(|i| (i * 10, if i % 10 == 5 { 4 } else { 400 }));
        assert_eq!(changes(mostly_old), []);
    }

    #[test]
    fn exactly_the_target_is_good() {
        assert_eq!(changes((0..50).map(|i| (i * 10, 5))), []);
    }

    #[test]
    fn an_empty_level_leaves_the_overload_and_begins_anew() {
        let start = Instant::now();
        let mut codel = CoDel::new(SETTINGS);
        codel.observe(ms(20), start);
        assert!(codel.observe(ms(20), start + ms(100)));
        assert_eq!(codel.order(), Order::NewestFirst);
        assert!(codel.sheds(ms(51)) && !codel.sheds(ms(50)));
        codel.emptied();
        assert_eq!(codel.order(), Order::OldestFirst);
        assert!(!codel.sheds(Duration::MAX));
        // One old task long afterwards is the start of an interval, not the end of one.
        assert!(!codel.observe(ms(20), start + ms(5_000)));
        assert!(codel.observe(ms(20), start + ms(5_100)));
        assert_eq!(codel.times_overloaded(), 2);
    }

    #[test]
    fn the_hint_is_the_rest_of_the_interval_and_never_zero() {
        let start = Instant::now();
        let mut codel = CoDel::new(SETTINGS);
        assert_eq!(codel.retry_after(start), ms(100));
        codel.observe(ms(20), start);
        assert_eq!(codel.retry_after(start + ms(70)), ms(30));
        assert_eq!(codel.retry_after(start + ms(100)), ms(100));
    }

    /// One server, tasks of 1 ms, three new ones a millisecond for a second: who is served in time?
    fn served_within(limit: u64, with_codel: bool) -> usize {
        let start = Instant::now();
        let mut codel = CoDel::new(SETTINGS);
        let mut queue = std::collections::VecDeque::new();
        let mut in_time = 0;
        for now in 0_u64..1_000 {
            queue.extend([now; 3]);
            let oldest = now - queue.front().expect("three were put in");
            codel.observe(ms(oldest), start + ms(now));
            if with_codel {
                while queue.front().is_some_and(|came| codel.sheds(ms(now - came))) {
                    queue.pop_front();
                }
            }
            let newest = with_codel && codel.order() == Order::NewestFirst;
            let came = if newest { queue.pop_back() } else { queue.pop_front() };
            in_time += usize::from(came.is_some_and(|came| now - came <= limit));
        }
        assert!(!with_codel || queue.len() <= 3 * 52, "{} wait", queue.len());
        in_time
    }

    #[test]
    fn under_three_times_the_capacity_the_newest_are_served_in_time() {
        let first_come = served_within(20, false);
        let adaptive = served_within(20, true);
        assert!(first_come < 40, "{first_come}");
        assert!(adaptive > 800, "{adaptive}");
    }
}
