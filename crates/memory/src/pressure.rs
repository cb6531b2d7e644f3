//! How near this process is to the end of its memory: one reading, and the level that it means.
//!
//! [`PressureMonitor`] reads what the kernel tells (control group v2, v1 or none, the host, the
//! process, stalls), takes the limit that is nearest, and turns use and limit into a [`Level`]. It
//! owns no thread and reads no clock: each [`observe`](PressureMonitor::observe) is one step, and a
//! [`MemoryGuard`](crate::MemoryGuard) makes that step on a thread of its own.
//!
//! # Which limit
//!
//! Several may hold at once, and each is compared with the use that it bounds:
//!
//! | limit | its use |
//! |---|---|
//! | a control group's `memory.max`, `memory.high`, or `memory.limit_in_bytes` (v1), and those of its parents | the group's use without `inactive_file`, which the kernel drops by itself |
//! | the limit that the program was given | resident bytes of the process |
//! | resident bytes plus `MemAvailable`: what the process could grow to | resident bytes of the process |
//!
//! The nearest one, by share in use, decides. So a small process on a full host is not blamed for
//! its neighbours, and a large one is.
//!
//! # What can fail
//!
//! Each file may be missing, unreadable or gone from one reading to the next (a moved process, an
//! unmounted hierarchy). What cannot be read is left out of the reading, counted in
//! [`SourceStats`], reported once as [`EventKind::SourceLost`], and looked for again every ten
//! seconds. Without any limit the level is [`Level::Normal`].

mod events;
mod history;
mod ladder;
mod source;
#[cfg(all(test, not(loom)))]
mod tests;
mod watch;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub(crate) use self::events::Events;
pub use self::events::{Event, EventKind};
use self::history::History;
pub use self::history::HistoryPoint;
use self::ladder::Ladder;
pub(crate) use self::source::Resident;
pub use self::source::SourceStats;
use self::source::{Reading, Sources};
pub use self::watch::PressureWatch;
pub(crate) use self::watch::{Publisher, channel};

/// How near the process is to its limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// There is room.
    #[default]
    Normal,
    /// From 70 % of the limit on: nothing is done yet.
    Elevated,
    /// From the clean-up threshold on, 80 % by default: reclaimers run.
    High,
    /// From 95 % on: reclaimers that were left out for a while are asked too.
    Critical,
}

impl Level {
    /// Returns the level's name in lower case.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::Elevated => "elevated",
            Self::High => "high",
            Self::Critical => "critical",
        }
    }

    fn lifted(self) -> Self {
        match self {
            Self::Normal => Self::Elevated,
            Self::Elevated => Self::High,
            Self::High | Self::Critical => Self::Critical,
        }
    }
}

impl std::fmt::Display for Level {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// Which limit is the nearest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LimitedBy {
    /// None is known.
    #[default]
    Nothing,
    /// The one that the program was given.
    User,
    /// A control group of version 2.
    CgroupV2,
    /// A control group of version 1.
    CgroupV1,
    /// What the host has left.
    Host,
}

impl LimitedBy {
    /// Returns the limit's name in lower case.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::User => "user",
            Self::CgroupV2 => "cgroup-v2",
            Self::CgroupV1 => "cgroup-v1",
            Self::Host => "host",
        }
    }
}

/// One reading, and what it means.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct MemorySample {
    /// The level after this reading.
    pub level: Level,
    /// Bytes in use of the nearest limit.
    pub used_bytes: u64,
    /// The nearest limit, in bytes; zero if none is known.
    pub limit_bytes: u64,
    /// Where that limit comes from.
    pub limited_by: LimitedBy,
    /// Resident bytes of the process.
    pub rss_bytes: u64,
    /// Bytes of address space of the process.
    pub vms_bytes: u64,
    /// Memory of the host in bytes.
    pub host_bytes: u64,
    /// Bytes that the host can give out without swapping.
    pub host_available_bytes: u64,
    /// Percent of the last ten seconds in which some task waited for memory (PSI `some avg10`), of
    /// the control group where it tells and of the host otherwise; `None` if the kernel does not.
    pub stalled_percent: Option<f32>,
}

impl MemorySample {
    /// Returns the share of the limit that is in use, 0 if there is no limit; above 1 where the limit
    /// is below the use.
    #[must_use]
    pub fn share(&self) -> f64 {
        if self.limit_bytes == 0 { 0.0 } else { self.used_bytes as f64 / self.limit_bytes as f64 }
    }

    /// Returns the share of the limit that is in use, in percent.
    #[must_use]
    pub fn percent(&self) -> f64 {
        100.0 * self.share()
    }
}

/// From which share of the limit on each level holds.
///
/// # Examples
///
/// ```
/// let thresholds = memory::Thresholds::cleanup_at(0.8);
/// assert_eq!((thresholds.elevated, thresholds.high, thresholds.critical), (0.7, 0.8, 0.95));
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Thresholds {
    /// Where [`Level::Elevated`] begins.
    pub elevated: f64,
    /// Where [`Level::High`] begins, and with it the clean-up.
    pub high: f64,
    /// Where [`Level::Critical`] begins.
    pub critical: f64,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self::cleanup_at(0.8)
    }
}

impl Thresholds {
    /// Makes thresholds around that of the clean-up: 0.7 and 0.95 where they fit on either side.
    ///
    /// A threshold of 0.75 or less puts `elevated` at seven eighths of it, one of 0.9 or more puts
    /// `critical` half-way between it and 1.
    #[must_use]
    pub fn cleanup_at(high: f64) -> Self {
        let elevated = if high > 0.75 { 0.7 } else { high * 7.0 / 8.0 };
        let critical = if high < 0.9 { 0.95 } else { f64::midpoint(high, 1.0) };
        Self { elevated, high, critical }
    }

    /// Tells what is wrong with them.
    pub(crate) fn problem(&self) -> Option<String> {
        let Self { elevated, high, critical } = *self;
        let right = 0.0 < elevated && elevated < high && high < critical && critical <= 1.0;
        (!right).then(|| {
            format!(
                "elevated = {elevated}, high = {high}, critical = {critical}: must rise from above 0 \
                 to at most 1"
            )
        })
    }

    pub(crate) fn level_of(&self, share: f64) -> Level {
        if share >= self.critical {
            Level::Critical
        } else if share >= self.high {
            Level::High
        } else if share >= self.elevated {
            Level::Elevated
        } else {
            Level::Normal
        }
    }
}

/// What a monitor is told.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PressureSettings {
    /// The program's own limit of resident bytes.
    pub limit_bytes: Option<u64>,
    /// From which share of the limit on each level holds.
    pub thresholds: Thresholds,
    /// The root under which `proc` and the control groups are looked for: `/`, or a made-up tree.
    pub root: PathBuf,
}

impl Default for PressureSettings {
    fn default() -> Self {
        Self { limit_bytes: None, thresholds: Thresholds::default(), root: PathBuf::from("/") }
    }
}

impl PressureSettings {
    /// Sets the program's own limit of resident bytes.
    #[must_use]
    pub fn limit_bytes(self, limit: u64) -> Self {
        Self { limit_bytes: Some(limit), ..self }
    }

    /// Sets the thresholds.
    #[must_use]
    pub fn thresholds(self, thresholds: Thresholds) -> Self {
        Self { thresholds, ..self }
    }

    /// Reads a tree below `root` in place of the system's.
    #[must_use]
    pub fn root(self, root: impl AsRef<Path>) -> Self {
        Self { root: root.as_ref().to_owned(), ..self }
    }

    /// Tells everything that is wrong.
    pub(crate) fn problems(&self) -> Vec<String> {
        let limit = (self.limit_bytes == Some(0))
            .then(|| "limit_bytes = 0: must be at least 1, or left out".to_owned());
        limit.into_iter().chain(self.thresholds.problem()).collect()
    }
}

/// Reads the memory of the process and of what bounds it, and keeps the level and the history.
///
/// # Cost
///
/// [`observe`](Self::observe) reads two to six small files through descriptors that stay open: about
/// 10 to 25 microseconds. The history holds at most 2,340 points, some 180 KiB.
///
/// # Examples
///
/// ```
/// use std::time::Instant;
/// use memory::{PressureMonitor, PressureSettings};
///
/// let now = Instant::now();
/// let mut monitor = PressureMonitor::new(PressureSettings::default(), now)?;
/// let sample = monitor.observe(now);
/// println!("{} of {} bytes: {}", sample.used_bytes, sample.limit_bytes, sample.level);
/// # Ok::<_, memory::GuardError>(())
/// ```
#[derive(Debug)]
pub struct PressureMonitor {
    settings: PressureSettings,
    sources: Sources,
    ladder: Ladder,
    history: History,
    events: Events,
    sample: MemorySample,
    /// The limit of which the last warning was about, so that it is given once.
    warned_limit: Option<u64>,
}

impl PressureMonitor {
    /// Finds the sources; reads nothing yet.
    ///
    /// # Errors
    ///
    /// [`GuardError::Invalid`](crate::GuardError::Invalid) with every problem of the settings. Sources
    /// that cannot be read are no error: see the head of the module.
    pub fn new(settings: PressureSettings, now: Instant) -> Result<Self, crate::GuardError> {
        let problems = settings.problems();
        if !problems.is_empty() {
            return Err(crate::GuardError::Invalid(problems));
        }
        let sources = Sources::new(&settings.root, now);
        let ladder = Ladder::new(settings.thresholds, now);
        Ok(Self {
            settings,
            sources,
            ladder,
            history: History::new(now),
            events: Events::default(),
            sample: MemorySample::default(),
            warned_limit: None,
        })
    }

    /// Takes one reading.
    ///
    /// # Cost
    ///
    /// See [`PressureMonitor`]. Every ten seconds it looks for the control groups and limits anew,
    /// which opens a dozen files.
    pub fn observe(&mut self, now: Instant) -> MemorySample {
        let reading = self.sources.read(now, &mut self.events);
        let sample = self.judge(&reading);
        let stalled = reading.stalled_percent.is_some_and(|it| it > STALLED_PERCENT);
        if let Some((from, to)) = self.ladder.step(sample.share(), stalled, now) {
            self.events.push(now, EventKind::LevelChanged { from, to });
        }
        self.warn_of_limit(&sample, now);
        self.sample = MemorySample { level: self.ladder.level(), ..sample };
        self.history.record(&self.sample, now);
        self.sample
    }

    /// Puts use and limit together: the nearest limit decides.
    fn judge(&self, reading: &Reading) -> MemorySample {
        let user =
            self.settings.limit_bytes.map(|limit| (reading.rss_bytes, limit, LimitedBy::User));
        let room = reading.rss_bytes.saturating_add(reading.host_available_bytes);
        let host = (reading.host_bytes > 0).then(|| {
            let limit = room.min(reading.host_bytes);
            (reading.rss_bytes, limit, LimitedBy::Host)
        });
        let group = reading.group;
        let share =
            |(used, limit, _): &(u64, u64, LimitedBy)| *used as f64 / (*limit).max(1) as f64;
        let nearest = [user, group, host]
            .into_iter()
            .flatten()
            .max_by(|one, other| share(one).total_cmp(&share(other)));
        let (used, limit, by) = nearest.unwrap_or((reading.rss_bytes, 0, LimitedBy::Nothing));
        MemorySample {
            level: Level::Normal,
            used_bytes: used,
            limit_bytes: if by == LimitedBy::Nothing { 0 } else { limit.max(1) },
            limited_by: by,
            rss_bytes: reading.rss_bytes,
            vms_bytes: reading.vms_bytes,
            host_bytes: reading.host_bytes,
            host_available_bytes: reading.host_available_bytes,
            stalled_percent: reading.stalled_percent,
        }
    }

    /// A limit that is below the use is said once, and again when it has changed.
    fn warn_of_limit(&mut self, sample: &MemorySample, now: Instant) {
        let limit = sample.limit_bytes;
        let is_fixed = !matches!(sample.limited_by, LimitedBy::Host | LimitedBy::Nothing);
        if !is_fixed || sample.used_bytes <= limit {
            return;
        }
        if self.warned_limit != Some(limit) {
            self.warned_limit = Some(limit);
            let kind =
                EventKind::LimitBelowUse { limit_bytes: limit, used_bytes: sample.used_bytes };
            self.events.push(now, kind);
        }
    }

    /// Returns the last reading.
    #[must_use]
    pub fn sample(&self) -> MemorySample {
        self.sample
    }

    /// Returns the thresholds.
    #[must_use]
    pub fn thresholds(&self) -> Thresholds {
        self.settings.thresholds
    }

    /// Returns what happened, oldest first: the last 256 events.
    #[must_use]
    pub fn events(&self) -> Vec<Event> {
        self.events.list()
    }

    pub(crate) fn push_event(&mut self, now: Instant, kind: EventKind) {
        self.events.push(now, kind);
    }

    /// Returns one point for each of the last 900 seconds that had a reading, oldest first.
    #[must_use]
    pub fn seconds(&self) -> Vec<HistoryPoint> {
        self.history.seconds()
    }

    /// Returns one point for each of the last 1,440 minutes that had a reading, oldest first.
    #[must_use]
    pub fn minutes(&self) -> Vec<HistoryPoint> {
        self.history.minutes()
    }

    /// Returns what reading has met.
    #[must_use]
    pub fn source_stats(&self) -> SourceStats {
        self.sources.stats()
    }
}

/// From which share of stalled time on the level is lifted by one.
const STALLED_PERCENT: f32 = 10.0;

/// How long a level is held at least after the last reading that earned it.
pub(crate) const HOLD: Duration = Duration::from_secs(2);
