//! Limits that move: how many tasks of a lane may run at once, found by measurement.
//!
//! Two signals must agree before a limit rises. *Need*: in most cases of the last window a task waited
//! longer than the target. *Room*: one more would help. What tells room depends on the lane. Blocking
//! tasks that mostly wait leave the CPU idle, so the share of CPU in the time that they hold a slot is
//! below 0.8; tasks that compute do not get faster by being more than the cores. Futures wait for
//! somebody else, whose queue shows as service time that grows with concurrency: the gradient of the
//! short-term to the long-term mean (after Gradient2 of Netflix's concurrency-limits). A limit that fell by
//! almost a third for nothing was not the cause: then the slower time becomes the usual one. Rayon's tasks
//! compute by definition, so the limit of their lane is the number of cores and stays.
//!
//! The rise is one per window and the fall a tenth, as in AIMD (Chiu and Jain, 1989), so that lanes that
//! share a machine converge. Every change is a [`LimitChange`] with its reason; nothing moves without.

use std::fmt;
use std::time::{Duration, Instant};

use crate::Lane;

/// The share of CPU in the time of blocking tasks from which on one more would not help.
const CPU_SHARE: f64 = 0.8;
/// How much longer the short-term service time may be than the long-term one.
const TOLERANCE: f64 = 1.5;
/// How fast the long-term mean follows windows that are slower: a minute or two. Whoever lets it follow
/// quicker measures the queue that the limit itself has made, and never finds an end.
const LONG_UP: f64 = 0.001;
/// How fast it follows windows that are faster.
const LONG_DOWN: f64 = 0.2;
/// The share to which a limit may fall before the falling must have helped.
const TRIAL: f64 = 0.7;
/// The share of the service time at most that counts as help.
const HELPED: f64 = 0.9;

/// What a limit is measured by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LimitRule {
    /// It stays; only the override moves it.
    Fixed,
    /// It rises while tasks wait and those that run leave the CPU idle.
    CpuShare,
    /// It follows the gradient of the service time.
    Gradient,
}

impl LimitRule {
    /// Returns the rule of a lane unless told.
    pub fn of(lane: Lane) -> Self {
        match lane {
            Lane::Cpu => Self::Fixed,
            Lane::Blocking => Self::CpuShare,
            Lane::Io => Self::Gradient,
        }
    }
}

/// The bounds of a limit and the pace of its changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitSettings {
    /// What it is measured by.
    pub rule: LimitRule,
    /// The least it falls to; at least 1.
    pub min: usize,
    /// The most it rises to.
    pub max: usize,
    /// Where it begins.
    pub initial: usize,
    /// How long to measure before a change.
    pub window: Duration,
    /// The queue delay above which a task counts as having waited.
    pub target: Duration,
    /// How long nobody must have needed a limit above `initial` before it falls back.
    pub idle: Duration,
}

impl LimitSettings {
    /// Returns settings with windows of 100 ms, a target of 5 ms and 10 s until an idle limit falls.
    pub fn new(rule: LimitRule, min: usize, initial: usize, max: usize) -> Self {
        Self {
            rule,
            min,
            max,
            initial,
            window: Duration::from_millis(100),
            target: Duration::from_millis(5),
            idle: Duration::from_secs(10),
        }
    }
}

/// Why a limit changed.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum LimitReason {
    /// Tasks waited, and what runs leaves room.
    Waiting {
        /// The share of tasks that waited longer than the target.
        waited: f64,
    },
    /// More tasks at once made each slower.
    Slower {
        /// The short-term service time over the long-term one.
        ratio: f64,
    },
    /// The CPU is busy, and the limit is above where it began.
    CpuBusy {
        /// The share of CPU in the time that tasks held slots.
        share: f64,
    },
    /// Nobody needed it for a while.
    Idle,
    /// Somebody set it by hand.
    Override,
    /// The override was taken back.
    OverrideEnded,
}

impl fmt::Display for LimitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Waiting { waited } => {
                write!(f, "{:.0} % of the tasks waited too long", waited * 100.0)
            }
            Self::Slower { ratio } => write!(f, "tasks took {ratio:.2} times as long as usual"),
            Self::CpuBusy { share } => {
                write!(f, "tasks used the CPU {:.0} % of the time", share * 100.0)
            }
            Self::Idle => f.write_str("nobody needed it"),
            Self::Override => f.write_str("set by hand"),
            Self::OverrideEnded => f.write_str("no longer set by hand"),
        }
    }
}

/// One change of a limit.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct LimitChange {
    /// The lane.
    pub lane: Lane,
    /// The limit before.
    pub from: usize,
    /// The limit from now on.
    pub to: usize,
    /// Why.
    pub reason: LimitReason,
    /// When.
    pub at: Instant,
}

impl fmt::Display for LimitChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} limit {} -> {}: {}", self.lane, self.from, self.to, self.reason)
    }
}

/// The limit of one lane.
#[derive(Clone, Debug)]
pub struct MovingLimit {
    lane: Lane,
    settings: LimitSettings,
    limit: usize,
    pinned: Option<usize>,
    window: Window,
    /// The usual service time, in seconds.
    long: Option<f64>,
    /// The limit and the service time before a gradient began to lower it.
    trial: Option<(usize, f64)>,
    /// When a limit above the initial one was last made use of.
    needed: Instant,
}

/// Sums over the tasks that started and ended since `began`.
#[derive(Clone, Copy, Debug)]
struct Window {
    began: Instant,
    started: u64,
    late: u64,
    ended: u64,
    ran: f64,
    measured: f64,
    cpu: f64,
    running_max: usize,
}

impl Window {
    fn new(began: Instant) -> Self {
        Self {
            began,
            started: 0,
            late: 0,
            ended: 0,
            ran: 0.0,
            measured: 0.0,
            cpu: 0.0,
            running_max: 0,
        }
    }
}

impl MovingLimit {
    /// Makes a limit that begins at `initial`, brought between `min` and `max`.
    ///
    /// A minimum of 0 counts as 1, a maximum below the minimum as the minimum.
    pub fn new(lane: Lane, mut settings: LimitSettings, now: Instant) -> Self {
        settings.min = settings.min.max(1);
        settings.max = settings.max.max(settings.min);
        settings.initial = settings.initial.clamp(settings.min, settings.max);
        Self {
            lane,
            settings,
            limit: settings.initial,
            pinned: None,
            window: Window::new(now),
            long: None,
            trial: None,
            needed: now,
        }
    }

    /// Returns the limit in force.
    pub fn get(&self) -> usize {
        self.pinned.unwrap_or(self.limit)
    }

    /// Counts a task that started after a wait, and now `running` tasks run, itself included.
    pub fn started(&mut self, waited: Duration, running: usize) {
        let window = &mut self.window;
        window.started += 1;
        window.late += u64::from(waited > self.settings.target);
        window.running_max = window.running_max.max(running);
    }

    /// Counts a task that ended, with the CPU time that it used, where that was measured.
    ///
    /// # Cost
    ///
    /// A few additions; the decision is made in [`tick`](Self::tick).
    pub fn ended(&mut self, ran: Duration, cpu: Option<Duration>) {
        let window = &mut self.window;
        let ran = ran.as_secs_f64();
        window.ended += 1;
        window.ran += ran;
        if let Some(cpu) = cpu {
            window.measured += ran;
            window.cpu += cpu.as_secs_f64();
        }
    }

    /// Tells whether anything but an override can move it.
    pub fn moves(&self) -> bool {
        self.settings.rule != LimitRule::Fixed
    }

    /// Tells whether it wants to know the CPU time of tasks.
    pub fn wants_cpu_time(&self) -> bool {
        self.settings.rule == LimitRule::CpuShare
    }

    /// Ends the window if it is over, and says what changed.
    ///
    /// `queued` tasks wait at this moment. While the limit is set by hand nothing changes.
    pub fn tick(&mut self, queued: usize, now: Instant) -> Option<LimitChange> {
        if now.saturating_duration_since(self.window.began) < self.settings.window {
            return None;
        }
        let window = std::mem::replace(&mut self.window, Window::new(now));
        if window.running_max > self.settings.initial || queued > 0 {
            self.needed = now;
        }
        if self.pinned.is_some() {
            return None;
        }
        let (to, reason) = self.decide(&window, now)?;
        self.change(to, reason, now)
    }

    fn decide(&mut self, window: &Window, now: Instant) -> Option<(usize, LimitReason)> {
        let tenth_less = self.limit - (self.limit / 10).max(1).min(self.limit);
        let LimitSettings { rule, initial, idle, .. } = self.settings;
        if rule == LimitRule::Fixed {
            return None;
        }
        if window.running_max <= initial {
            let unused = now.saturating_duration_since(self.needed) >= idle;
            if unused && self.limit > initial {
                return Some((tenth_less.max(initial), LimitReason::Idle));
            }
        }
        if window.ended == 0 {
            return None;
        }
        let waited = window.late as f64 / window.started.max(1) as f64;
        // A limit that is not reached is not what anybody waits for.
        let needed = waited > 0.5 && window.running_max >= self.limit;
        match rule {
            LimitRule::Fixed => None,
            LimitRule::CpuShare => {
                let share = (window.measured > 0.0).then(|| window.cpu / window.measured);
                match share {
                    // Without a measurement nothing says that a slot would help.
                    None => None,
                    Some(share) if share < CPU_SHARE => {
                        needed.then_some((self.limit + 1, LimitReason::Waiting { waited }))
                    }
                    Some(share) => (self.limit > initial)
                        .then_some((tenth_less.max(initial), LimitReason::CpuBusy { share })),
                }
            }
            LimitRule::Gradient => {
                let ratio = self.gradient(window.ran / window.ended as f64);
                if ratio > TOLERANCE {
                    return Some((tenth_less, LimitReason::Slower { ratio }));
                }
                needed.then_some((self.limit + 1, LimitReason::Waiting { waited }))
            }
        }
    }

    /// Takes the mean service time of a window and returns it over the usual one.
    fn gradient(&mut self, short: f64) -> f64 {
        let long = self.long.get_or_insert(short);
        let ratio = if *long > 0.0 { short / *long } else { 1.0 };
        if ratio <= TOLERANCE {
            self.trial = None;
        } else {
            let (limit, before) = *self.trial.get_or_insert((self.limit, short));
            let fallen = self.limit as f64 <= limit as f64 * TRIAL;
            if fallen && short > before * HELPED {
                *long = short;
                self.trial = None;
                return 1.0;
            }
        }
        *long += (short - *long) * if ratio < 1.0 { LONG_DOWN } else { LONG_UP };
        ratio
    }

    /// Sets the limit by hand, or with `None` lets it move again from where it was.
    ///
    /// A number outside of the bounds counts as the bound.
    pub fn set_override(&mut self, limit: Option<usize>, now: Instant) -> Option<LimitChange> {
        let from = self.get();
        self.pinned = limit.map(|limit| limit.clamp(self.settings.min, self.settings.max));
        let reason = match self.pinned {
            Some(_) => LimitReason::Override,
            None => LimitReason::OverrideEnded,
        };
        let to = self.get();
        (from != to).then_some(LimitChange { lane: self.lane, from, to, reason, at: now })
    }

    /// Sets between which bounds it moves from now on; a limit that lies beyond them comes to the bound.
    ///
    /// The bounds are brought in order as those of [`new`](Self::new). A limit that was set by hand is
    /// brought between them as well; one that does not move is left alone.
    pub fn set_range(&mut self, min: usize, max: usize, now: Instant) -> Option<LimitChange> {
        if !self.moves() {
            return None;
        }
        let from = self.get();
        let settings = &mut self.settings;
        settings.min = min.max(1);
        settings.max = max.max(settings.min);
        let within = |limit: usize| limit.clamp(settings.min, settings.max);
        settings.initial = within(settings.initial);
        self.limit = within(self.limit);
        self.pinned = self.pinned.map(within);
        let (to, reason) = (self.get(), LimitReason::Override);
        (from != to).then_some(LimitChange { lane: self.lane, from, to, reason, at: now })
    }

    fn change(&mut self, to: usize, reason: LimitReason, at: Instant) -> Option<LimitChange> {
        let from = self.limit;
        let to = to.clamp(self.settings.min, self.settings.max);
        self.limit = to;
        (from != to).then_some(LimitChange { lane: self.lane, from, to, reason, at })
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    /// A limit and a clock that runs by windows.
    struct Bench {
        limit: MovingLimit,
        now: Instant,
    }

    impl Bench {
        fn new(lane: Lane, min: usize, initial: usize, max: usize) -> Self {
            let now = Instant::now();
            let settings = LimitSettings::new(LimitRule::of(lane), min, initial, max);
            Self { limit: MovingLimit::new(lane, settings, now), now }
        }

        /// Lets a window pass in which twenty tasks ended at full use of the limit.
        fn window(&mut self, waited: u64, ran: u64, cpu: u64) -> Option<LimitChange> {
            self.tasks(self.limit.get(), waited, ran, Some(ms(cpu)));
            self.now += ms(100);
            self.limit.tick(0, self.now)
        }

        fn tasks(&mut self, running: usize, waited: u64, ran: u64, cpu: Option<Duration>) {
            for _ in 0..20 {
                self.limit.started(ms(waited), running);
                self.limit.ended(ms(ran), cpu);
            }
        }

        /// Lets windows without a task pass.
        fn idle(&mut self, windows: u32) -> Vec<LimitChange> {
            (0..windows)
                .filter_map(|_| {
                    self.now += ms(100);
                    self.limit.tick(0, self.now)
                })
                .collect()
        }
    }

    #[test]
    fn blocking_tasks_that_wait_for_others_get_one_slot_more_in_each_window() {
        let mut bench = Bench::new(Lane::Blocking, 1, 4, 8);
        let change = bench.window(20, 10, 1).expect("they waited");
        assert_eq!((change.from, change.to), (4, 5));
        assert_eq!(change.reason, LimitReason::Waiting { waited: 1.0 });
        assert_eq!(change.to_string(), "blocking limit 4 -> 5: 100 % of the tasks waited too long");
        for _ in 0..20 {
            bench.window(20, 10, 1);
        }
        assert_eq!(bench.limit.get(), 8, "the maximum holds");
    }

    #[test]
    fn blocking_tasks_that_compute_get_none_and_lose_what_they_had() {
        let mut bench = Bench::new(Lane::Blocking, 1, 4, 40);
        assert_eq!(bench.window(20, 10, 9), None);
        for _ in 0..30 {
            bench.window(20, 10, 1);
        }
        assert_eq!(bench.limit.get(), 34);
        let change = bench.window(20, 10, 9).expect("the CPU is busy");
        assert_eq!(change.to, 31);
        assert!(
            matches!(change.reason, LimitReason::CpuBusy { share } if (share - 0.9).abs() < 1e-9)
        );
        for _ in 0..40 {
            bench.window(20, 10, 9);
        }
        assert_eq!(bench.limit.get(), 4);
    }

    #[test]
    fn without_a_wait_or_without_full_use_nothing_rises() {
        let mut bench = Bench::new(Lane::Blocking, 1, 4, 8);
        assert_eq!(bench.window(5, 10, 1), None, "on target");
        bench.tasks(3, 20, 10, Some(ms(1)));
        bench.now += ms(100);
        assert_eq!(bench.limit.tick(5, bench.now), None, "a slot was free");
    }

    #[test]
    fn without_a_reading_of_the_cpu_nothing_says_that_a_slot_would_help() {
        let mut bench = Bench::new(Lane::Blocking, 1, 4, 8);
        bench.tasks(4, 20, 10, None);
        bench.now += ms(100);
        assert_eq!(bench.limit.tick(5, bench.now), None);
    }

    #[test]
    fn the_limit_of_the_cpu_lane_does_not_move() {
        let mut bench = Bench::new(Lane::Cpu, 1, 2, 2);
        for _ in 0..100 {
            assert_eq!(bench.window(500, 10, 1), None);
        }
        assert_eq!(bench.idle(200), []);
    }

    #[test]
    fn a_limit_falls_back_to_where_it_began_after_ten_idle_seconds() {
        let mut bench = Bench::new(Lane::Blocking, 1, 4, 8);
        for _ in 0..4 {
            bench.window(20, 10, 1);
        }
        assert_eq!(bench.limit.get(), 8);
        assert_eq!(bench.idle(99), []);
        let changes = bench.idle(20);
        assert_eq!(changes.iter().map(|change| change.to).collect::<Vec<_>>(), [7, 6, 5, 4]);
        assert!(changes.iter().all(|change| change.reason == LimitReason::Idle));
    }

    /// A server that takes `capacity` at once in 10 ms and the more in proportion.
    #[test]
    fn a_gradient_settles_near_what_the_other_side_bears() {
        let mut bench = Bench::new(Lane::Io, 1, 5, 1_000);
        let mut rose = 0;
        let mut fell = 0;
        let mut after = Vec::new();
        for window in 0..1_000 {
            let running = bench.limit.get();
            let ran = 10 * running.max(50) as u64 / 50;
            if let Some(change) = bench.window(20, ran, 0) {
                match change.reason {
                    LimitReason::Waiting { .. } => rose += 1,
                    LimitReason::Slower { ratio } => {
                        assert!(ratio > TOLERANCE);
                        fell += 1;
                    }
                    reason => panic!("{reason}"),
                }
            }
            if window >= 100 {
                after.push(bench.limit.get());
            }
        }
        assert!(rose > 100 && fell > 0, "{rose} up, {fell} down");
        let least = *after.iter().min().expect("there are some");
        assert!(least >= 45, "{least}: below what is served at full speed");
        let most = *after.iter().max().expect("there are some");
        assert!(most <= 150, "{most}: thrice what is served at full speed");
    }

    #[test]
    fn a_slowness_that_fewer_tasks_do_not_cure_becomes_the_usual_time() {
        let mut bench = Bench::new(Lane::Io, 1, 50, 100);
        for _ in 0..10 {
            bench.window(20, 10, 0);
        }
        let before = bench.limit.get();
        for _ in 0..4 {
            assert!(bench.window(20, 40, 0).is_some_and(|change| change.to < change.from));
        }
        let least = bench.limit.get();
        assert!(least as f64 <= before as f64 * TRIAL && least >= before / 2);
        for _ in 0..20 {
            assert!(bench.window(20, 40, 0).is_some_and(|change| change.to > change.from));
        }
    }

    #[test]
    fn a_sudden_slowness_lowers_a_gradient_at_once_and_its_end_lets_it_rise_again() {
        let mut bench = Bench::new(Lane::Io, 10, 50, 100);
        for _ in 0..30 {
            bench.window(0, 10, 0);
        }
        assert_eq!(bench.limit.get(), 50);
        let change = bench.window(0, 40, 0).expect("four times slower");
        assert_eq!(change.to, 45);
        assert!(matches!(change.reason, LimitReason::Slower { ratio } if ratio > 3.0));
        for _ in 0..3 {
            bench.window(0, 10, 0);
        }
        assert_eq!(bench.window(20, 10, 0).expect("they wait").to, 46);
    }

    #[test]
    fn an_override_holds_until_it_is_taken_back() {
        let mut bench = Bench::new(Lane::Blocking, 2, 4, 8);
        let change = bench.limit.set_override(Some(100), bench.now).expect("a change");
        assert_eq!((change.from, change.to, change.reason), (4, 8, LimitReason::Override));
        assert_eq!(bench.window(20, 10, 1), None);
        assert_eq!(bench.limit.set_override(Some(0), bench.now).expect("a change").to, 2);
        assert_eq!(bench.limit.set_override(Some(1), bench.now), None, "the same by the bounds");
        let change = bench.limit.set_override(None, bench.now).expect("a change");
        assert_eq!((change.from, change.to, change.reason), (2, 4, LimitReason::OverrideEnded));
    }

    #[test]
    fn a_range_that_is_raised_lets_the_limit_rise_further_and_a_lower_one_brings_it_down() {
        let mut bench = Bench::new(Lane::Blocking, 2, 8, 8);
        assert_eq!(bench.limit.set_range(4, 16, bench.now), None);
        assert!(bench.window(20, 10, 1).is_some_and(|change| change.to > 8));
        let change = bench.limit.set_range(1, 3, bench.now).expect("a change");
        assert_eq!((change.to, change.reason), (3, LimitReason::Override));
        let settings = LimitSettings::new(LimitRule::Fixed, 1, 5, 9);
        let mut fixed = MovingLimit::new(Lane::Io, settings, bench.now);
        assert_eq!((fixed.set_range(1, 2, bench.now), fixed.get()), (None, 5));
    }

    #[test]
    fn bounds_in_the_wrong_order_are_put_right() {
        let bench = Bench::new(Lane::Blocking, 0, 9, 0);
        assert_eq!(bench.limit.get(), 1);
        let bench = Bench::new(Lane::Blocking, 5, 1, 3);
        assert_eq!(bench.limit.get(), 5);
    }
}
