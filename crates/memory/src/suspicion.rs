//! Suspected leaks, each with its evidence.
//!
//! Nobody can tell from outside whether memory will be used again, so nothing here says "leak". A
//! [`LeakWatch`] is shown a few numbers at a time, keeps the last windows of them, and says what rises
//! in all of them, by how much, since when, and how old it is:
//!
//! - live allocations by site, as sampled by [`live_sites`](crate::live_sites);
//! - guards of pools that are out for too long;
//! - interners whose strings grow in number and do not repeat;
//! - the split of the process's memory. Allocated bytes that rise are a leak or a growing cache.
//!   Resident bytes that rise over flat allocated ones are kept by the allocator, and giving back
//!   helps. A resident set that rises over both is outside of the allocator: maps, stacks, C libraries.
//!
//! It reads no clock and no file: the same observations at the same times give the same answer.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::time::{Duration, Instant};

use crate::tracked::{SITES_MAX, Scope, Site};

/// The share of its first value by which the memory of the process must rise, beside the bytes.
const RISE_SHARE: f64 = 0.05;
/// An interner whose new strings in the windows exceed this share of its lookups is suspected.
const NEW_SHARE: f64 = 0.5;
/// Windows can be this many.
const WINDOWS_MAX: usize = 1_000;
/// Pools and interners that are watched at most, each.
const NAMES_MAX: usize = 1_024;

/// Collects the settings of a [`LeakWatch`]; every one has a default.
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `build`"]
pub struct LeakWatchBuilder {
    settings: Settings,
}

#[derive(Clone, Debug)]
struct Settings {
    window: Duration,
    windows: usize,
    site_age: Duration,
    growth_bytes: u64,
    guard_age: Duration,
    interner_strings: u64,
    sites_max: usize,
}

impl LeakWatchBuilder {
    /// Sets the time between two observations that count; 60 s unless told.
    pub fn window(mut self, window: Duration) -> Self {
        self.settings.window = window;
        self
    }

    /// Sets in how many successive windows a number has to rise: 2 to 1,000; 6 unless told.
    pub fn windows(mut self, windows: usize) -> Self {
        self.settings.windows = windows;
        self
    }

    /// Sets how old the allocations of a site must be in the middle; 10 minutes unless told.
    pub fn site_age(mut self, age: Duration) -> Self {
        self.settings.site_age = age;
        self
    }

    /// Sets the bytes by which something has to rise over all windows; 1 MiB unless told.
    ///
    /// The process's memory has to rise by 5 % as well.
    pub fn growth_bytes(mut self, bytes: u64) -> Self {
        self.settings.growth_bytes = bytes;
        self
    }

    /// Sets how long a guard may be out; 10 minutes unless told.
    pub fn guard_age(mut self, age: Duration) -> Self {
        self.settings.guard_age = age;
        self
    }

    /// Sets the number of new strings over all windows that makes an interner suspect; 10,000 unless
    /// told.
    pub fn interner_strings(mut self, strings: u64) -> Self {
        self.settings.interner_strings = strings;
        self
    }

    /// Sets how many sites are followed, those with the most bytes first; 1,024 unless told.
    pub fn sites_max(mut self, sites: usize) -> Self {
        self.settings.sites_max = sites;
        self
    }

    /// Checks the settings and makes a watch that saw nothing yet.
    ///
    /// # Errors
    ///
    /// [`LeakWatchError`] with every problem in the settings.
    pub fn build(self) -> Result<LeakWatch, LeakWatchError> {
        let settings = self.settings;
        let mut problems = Vec::new();
        if settings.window.is_zero() {
            problems.push("window = 0s: must be above 0".to_owned());
        }
        if !(2..=WINDOWS_MAX).contains(&settings.windows) {
            problems.push(format!("windows = {}: must be from 2 to 1000", settings.windows));
        }
        if settings.sites_max == 0 {
            problems.push("sites_max = 0: must be at least 1".to_owned());
        }
        if problems.is_empty() {
            Ok(LeakWatch { settings, ..LeakWatch::empty() })
        } else {
            Err(LeakWatchError::Invalid { problems })
        }
    }
}

/// Why a [`LeakWatch`] cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LeakWatchError {
    /// Some settings are outside of what they can be.
    #[error("invalid leak watch: {}", problems.join("; "))]
    Invalid {
        /// All of them: the setting, what it was, and what would be right.
        problems: Vec<String>,
    },
}

/// What a [`LeakWatch`] is shown; what is not known stays empty.
#[derive(Clone, Copy, Debug, Default)]
pub struct Observation<'a> {
    /// Live allocations by site, from [`live_sites`](crate::live_sites).
    pub sites: &'a [Site],
    /// Guards that are out, by pool.
    pub guards: &'a [OutstandingGuards<'a>],
    /// What the interners hold and did.
    pub interners: &'a [InternerReading<'a>],
    /// The memory of the process.
    pub memory: MemorySplit,
}

/// The guards of one pool that are out.
#[derive(Clone, Copy, Debug)]
pub struct OutstandingGuards<'a> {
    /// The name of the pool.
    pub pool: &'a str,
    /// How many are out.
    pub count: u64,
    /// How long the oldest has been.
    pub oldest: Duration,
}

/// The counts of one interner, from [`Interner::stats`](crate::Interner::stats).
#[derive(Clone, Copy, Debug)]
pub struct InternerReading<'a> {
    /// The name of the interner.
    pub name: &'a str,
    /// Strings it holds.
    pub strings: u64,
    /// Lookups so far that found their string.
    pub hits: u64,
    /// Lookups so far that did not.
    pub misses: u64,
}

/// Where the bytes of the process are.
#[derive(Clone, Copy, Debug, Default)]
pub struct MemorySplit {
    /// Bytes that the program allocated and did not free.
    pub allocated: Option<u64>,
    /// Bytes of memory that the allocator keeps resident.
    pub resident: Option<u64>,
    /// The resident set of the process, in bytes.
    pub rss: Option<u64>,
}

/// How a number rose over the windows.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Rise {
    /// Before the first window.
    pub from: u64,
    /// After the last.
    pub to: u64,
    /// Successive windows.
    pub windows: usize,
    /// How long they took.
    pub over: Duration,
}

impl fmt::Display for Rise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, to, windows, over } = self;
        write!(f, "from {from} to {to} in {windows} successive windows over {} s", over.as_secs())
    }
}

/// Something that looks like a leak, and why.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Suspicion {
    /// The live bytes of a site rose in every window, and are old.
    Site {
        /// The scope of the allocations.
        scope: Scope,
        /// The code addresses of the calls, innermost first.
        frames: Vec<usize>,
        /// Estimated live bytes.
        bytes: Rise,
        /// Live samples that the estimate rests on.
        samples: u64,
        /// The age in the middle of them.
        median_age: Duration,
    },
    /// A guard of a pool is out for too long.
    Guards {
        /// The name of the pool.
        pool: String,
        /// Guards that are out.
        count: u64,
        /// How long the oldest has been.
        oldest: Duration,
    },
    /// An interner grew in every window and most of what it was asked for was new.
    Interner {
        /// The name of the interner.
        name: String,
        /// Its strings.
        strings: Rise,
        /// The share of lookups in these windows that found their string.
        hit_ratio: f64,
    },
    /// The memory of the process rose; the kind says where.
    Process {
        /// Where the bytes are.
        kind: Growth,
        /// How they rose.
        bytes: Rise,
    },
}

/// Where the memory of the process grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Growth {
    /// Allocated and not freed: a leak, or a cache that fills.
    Allocated,
    /// Freed and kept by the allocator: fragmentation or retention.
    Retained,
    /// Not in the allocator: maps, stacks, other libraries.
    Outside,
}

impl fmt::Display for Suspicion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Site { scope, frames, bytes, samples, median_age } => {
                write!(
                    f,
                    "suspected leak in scope {scope}: live bytes rose {bytes}, estimated from \
                     {samples} samples with a median age of {} s, allocated at",
                    median_age.as_secs()
                )?;
                frames.iter().try_for_each(|frame| write!(f, " {frame:#x}"))
            }
            Self::Guards { pool, count, oldest } => write!(
                f,
                "suspected leak of guards of pool {pool}: {count} out, the oldest for {} s",
                oldest.as_secs()
            ),
            Self::Interner { name, strings, hit_ratio } => write!(
                f,
                "suspected growth of interner {name}: strings rose {strings} while {:.0} % of \
                 lookups found theirs",
                hit_ratio * 100.0
            ),
            Self::Process { kind, bytes } => {
                let what = match kind {
                    Growth::Allocated => "allocated bytes rose {}: a leak or a growing cache",
                    Growth::Retained => {
                        "resident bytes rose {} and allocated bytes did not: kept by the allocator"
                    }
                    Growth::Outside => {
                        "the resident set rose {} and the allocator's memory did not: outside of it"
                    }
                };
                f.write_str(&what.replace("{}", &bytes.to_string()))
            }
        }
    }
}

/// The values at the end of the last windows, oldest first.
#[derive(Clone, Debug, Default)]
struct Series(VecDeque<u64>);

impl Series {
    fn push(&mut self, value: u64, windows: usize) {
        if self.0.len() > windows {
            self.0.pop_front();
        }
        self.0.push_back(value);
    }

    /// Whether there are all windows and the value rose in each.
    fn rose(&self, windows: usize) -> Option<(u64, u64)> {
        let whole = self.0.len() == windows + 1;
        let rising = self.0.iter().zip(self.0.iter().skip(1)).all(|(one, two)| one < two);
        (whole && rising).then(|| (self.0[0], self.0[windows]))
    }

    /// What it gained over the windows there are.
    fn gained(&self) -> u64 {
        let ends = self.0.front().zip(self.0.back());
        ends.map_or(0, |(first, last)| last.saturating_sub(*first))
    }
}

#[derive(Clone, Debug, Default)]
struct InternerSeries {
    strings: Series,
    hits: Series,
    misses: Series,
}

/// Looks for memory that only grows, from numbers shown to it about once per window.
///
/// # Examples
///
/// ```
/// use std::time::{Duration, Instant};
/// use memory::{LeakWatch, MemorySplit, Observation};
///
/// let mut watch = LeakWatch::builder().build()?;
/// let mut now = Instant::now();
/// for minute in 0..=6 {
///     let allocated = Some((100 + 10 * minute) << 20);
///     let memory = MemorySplit { allocated, ..MemorySplit::default() };
///     watch.observe(&Observation { memory, ..Observation::default() }, now);
///     now += Duration::from_secs(60);
/// }
/// assert_eq!(
///     watch.suspicions()[0].to_string(),
///     "allocated bytes rose from 104857600 to 167772160 in 6 successive windows over 360 s: a leak \
///      or a growing cache"
/// );
/// # Ok::<_, memory::LeakWatchError>(())
/// ```
#[derive(Clone, Debug)]
pub struct LeakWatch {
    settings: Settings,
    /// When the last windows ended.
    ends: VecDeque<Instant>,
    sites: HashMap<u64, Series>,
    interners: HashMap<String, InternerSeries>,
    allocated: Series,
    resident: Series,
    rss: Series,
    suspicions: Vec<Suspicion>,
}

impl LeakWatch {
    /// Starts a builder with the defaults.
    pub fn builder() -> LeakWatchBuilder {
        LeakWatchBuilder { settings: Self::empty().settings }
    }

    fn empty() -> Self {
        Self {
            settings: Settings {
                window: Duration::from_secs(60),
                windows: 6,
                site_age: Duration::from_secs(600),
                growth_bytes: 1 << 20,
                guard_age: Duration::from_secs(600),
                interner_strings: 10_000,
                sites_max: SITES_MAX,
            },
            ends: VecDeque::new(),
            sites: HashMap::new(),
            interners: HashMap::new(),
            allocated: Series::default(),
            resident: Series::default(),
            rss: Series::default(),
            suspicions: Vec::new(),
        }
    }

    /// Takes in what is seen at `now`; returns whether a window ended with it.
    ///
    /// An observation less than a window after the last one that counted is left aside. What was shown
    /// before and is missing begins again.
    pub fn observe(&mut self, seen: &Observation<'_>, now: Instant) -> bool {
        let windows = self.settings.windows;
        if let Some(last) = self.ends.back()
            && now.saturating_duration_since(*last) < self.settings.window
        {
            return false;
        }
        if self.ends.len() > windows {
            self.ends.pop_front();
        }
        self.ends.push_back(now);

        let mut sites = HashMap::new();
        for site in seen.sites.iter().take(self.settings.sites_max) {
            let mut series = self.sites.remove(&site.id).unwrap_or_default();
            series.push(site.live_bytes as u64, windows);
            sites.insert(site.id, series);
        }
        self.sites = sites;
        let mut interners = HashMap::new();
        for reading in seen.interners.iter().take(NAMES_MAX) {
            let mut series = self.interners.remove(reading.name).unwrap_or_default();
            series.strings.push(reading.strings, windows);
            series.hits.push(reading.hits, windows);
            series.misses.push(reading.misses, windows);
            interners.insert(reading.name.to_owned(), series);
        }
        self.interners = interners;
        let MemorySplit { allocated, resident, rss } = seen.memory;
        for (series, value) in
            [(&mut self.allocated, allocated), (&mut self.resident, resident), (&mut self.rss, rss)]
        {
            match value {
                Some(value) => series.push(value, windows),
                None => series.0.clear(),
            }
        }
        self.suspicions = self.judge(seen);
        true
    }

    /// Returns what was suspected when the last window ended.
    pub fn suspicions(&self) -> &[Suspicion] {
        &self.suspicions
    }

    fn rise(&self, (from, to): (u64, u64)) -> Rise {
        let ends = self.ends.front().zip(self.ends.back());
        let over = ends.map_or(Duration::ZERO, |(first, last)| last.duration_since(*first));
        Rise { from, to, windows: self.settings.windows, over }
    }

    fn judge(&self, seen: &Observation<'_>) -> Vec<Suspicion> {
        let settings = &self.settings;
        let mut found = Vec::new();
        for site in seen.sites.iter().take(settings.sites_max) {
            let rose = self.sites.get(&site.id).and_then(|series| series.rose(settings.windows));
            if let Some(rose) = rose
                && rose.1 - rose.0 >= settings.growth_bytes
                && site.median_age >= settings.site_age
            {
                found.push(Suspicion::Site {
                    scope: site.scope,
                    frames: site.frames.clone(),
                    bytes: self.rise(rose),
                    samples: site.samples,
                    median_age: site.median_age,
                });
            }
        }
        for guards in seen.guards.iter().take(NAMES_MAX) {
            if guards.count > 0 && guards.oldest >= settings.guard_age {
                let OutstandingGuards { pool, count, oldest } = *guards;
                found.push(Suspicion::Guards { pool: pool.to_owned(), count, oldest });
            }
        }
        for reading in seen.interners.iter().take(NAMES_MAX) {
            let Some(series) = self.interners.get(reading.name) else { continue };
            let (hits, misses) = (series.hits.gained(), series.misses.gained());
            let lookups = (hits + misses).max(1) as f64;
            if let Some(rose) = series.strings.rose(settings.windows)
                && rose.1 - rose.0 >= settings.interner_strings
                && misses as f64 / lookups > NEW_SHARE
            {
                found.push(Suspicion::Interner {
                    name: reading.name.to_owned(),
                    strings: self.rise(rose),
                    hit_ratio: hits as f64 / lookups,
                });
            }
        }
        // The innermost that rises explains those around it.
        let kinds = [
            (Growth::Allocated, &self.allocated),
            (Growth::Retained, &self.resident),
            (Growth::Outside, &self.rss),
        ];
        for (kind, series) in kinds {
            if let Some(rose) = series.rose(settings.windows)
                && rose.1 - rose.0 >= settings.growth_bytes.max((rose.0 as f64 * RISE_SHARE) as u64)
            {
                found.push(Suspicion::Process { kind, bytes: self.rise(rose) });
                break;
            }
        }
        found
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// Shows one observation per minute and returns what is suspected after the last.
    fn check<'a>(minutes: impl IntoIterator<Item = Observation<'a>>) -> Vec<String> {
        let mut watch = LeakWatch::builder().build().expect("the defaults are valid");
        let start = Instant::now();
        for (minute, seen) in (0..).zip(minutes) {
            assert!(watch.observe(&seen, start + Duration::from_secs(60 * minute)));
        }
        watch.suspicions().iter().map(ToString::to_string).collect()
    }

    fn site(mib: u64, age: u64) -> Site {
        Site::for_tests(7, mib as f64 * MIB as f64, Duration::from_secs(age))
    }

    fn memory(allocated: u64, resident: u64, rss: u64) -> MemorySplit {
        let some = |mib: u64| Some(mib * MIB);
        MemorySplit { allocated: some(allocated), resident: some(resident), rss: some(rss) }
    }

    /// The sizes of one site in MiB, minute by minute, at an age in seconds.
    fn check_site(sizes: &[u64], age: u64) -> usize {
        let sites: Vec<[Site; 1]> = sizes.iter().map(|mib| [site(*mib, age)]).collect();
        check(sites.iter().map(|sites| Observation { sites, ..Observation::default() })).len()
    }

    #[test]
    fn a_site_that_rises_in_every_window_and_is_old_is_suspected() {
        assert_eq!(check_site(&[1, 2, 3, 4, 5, 6, 7], 600), 1);
        assert_eq!(check_site(&[9, 1, 2, 3, 4, 5, 6, 7], 600), 1, "the last six count");
        assert_eq!(check_site(&[1, 2, 3, 4, 5, 6], 600), 0, "five windows");
        assert_eq!(check_site(&[1, 2, 3, 4, 4, 6, 7], 600), 0, "one did not rise");
        assert_eq!(check_site(&[1, 2, 3, 4, 5, 6, 7], 599), 0, "young");
    }

    #[test]
    fn a_site_is_told_with_its_evidence() {
        let sites: Vec<[Site; 1]> = (1..=7).map(|mib| [site(mib, 700)]).collect();
        let seen = sites.iter().map(|sites| Observation { sites, ..Observation::default() });
        assert_eq!(
            check(seen),
            [
                "suspected leak in scope (none): live bytes rose from 1048576 to 7340032 in 6 successive \
              windows over 360 s, estimated from 3 samples with a median age of 700 s, allocated at \
              0x10 0x20"
            ]
        );
    }

    #[test]
    fn a_site_that_was_gone_begins_again() {
        let sites: Vec<Vec<Site>> =
            (1..=8).map(|mib| if mib == 4 { vec![] } else { vec![site(mib, 700)] }).collect();
        let seen = sites.iter().map(|sites| Observation { sites, ..Observation::default() });
        assert!(check(seen).is_empty());
    }

    #[test]
    fn guards_are_suspected_by_age() {
        let guards = |oldest| {
            let oldest = Duration::from_secs(oldest);
            [OutstandingGuards { pool: "buffers", count: 2, oldest }]
        };
        let (young, old) = (guards(599), guards(600));
        assert!(check([Observation { guards: &young, ..Observation::default() }]).is_empty());
        assert_eq!(
            check([Observation { guards: &old, ..Observation::default() }]),
            ["suspected leak of guards of pool buffers: 2 out, the oldest for 600 s"]
        );
    }

    #[test]
    fn an_interner_is_suspected_when_its_strings_do_not_repeat() {
        let told = |hits: u64| {
            let readings: Vec<[InternerReading<'_>; 1]> = (0..7)
                .map(|n| {
                    let (strings, misses) = (n * 5_000, n * 5_000);
                    [InternerReading { name: "paths", strings, hits: n * hits, misses }]
                })
                .collect();
            check(readings.iter().map(|it| Observation { interners: it, ..Observation::default() }))
        };
        assert_eq!(
            told(1_250),
            [
                "suspected growth of interner paths: strings rose from 0 to 30000 in 6 successive windows \
              over 360 s while 20 % of lookups found theirs"
            ]
        );
        assert!(told(50_000).is_empty(), "it grows and pays");
    }

    #[test]
    fn the_split_tells_where_memory_grows() {
        let grows = |step: fn(u64) -> MemorySplit| {
            check((0..7).map(|n| Observation { memory: step(n), ..Observation::default() }))
        };
        let told = grows(|n| memory(100 + n * 10, 200 + n * 10, 300 + n * 10));
        assert!(told.len() == 1 && told[0].ends_with("a leak or a growing cache"), "{told:?}");
        let told = grows(|n| memory(100, 200 + n * 10, 300 + n * 10));
        assert!(told.len() == 1 && told[0].ends_with("kept by the allocator"), "{told:?}");
        let told = grows(|n| memory(100, 200, 300 + n * 10));
        assert!(told.len() == 1 && told[0].ends_with("outside of it"), "{told:?}");
        assert!(grows(|_| memory(100, 200, 300)).is_empty());
        assert!(grows(|n| memory(1_000 + n, 2_000, 3_000)).is_empty(), "0.6 % is no growth");
    }

    #[test]
    fn observations_within_a_window_are_left_aside() {
        let mut watch = LeakWatch::builder().build().expect("the defaults are valid");
        let now = Instant::now();
        assert!(watch.observe(&Observation::default(), now));
        assert!(!watch.observe(&Observation::default(), now + Duration::from_secs(59)));
        assert!(!watch.observe(
            &Observation::default(),
            now.checked_sub(Duration::from_secs(1)).unwrap_or(now)
        ));
        assert!(watch.observe(&Observation::default(), now + Duration::from_secs(60)));
    }

    #[test]
    fn every_problem_of_the_settings_is_named() {
        let builder = LeakWatch::builder().window(Duration::ZERO).windows(1).sites_max(0);
        assert_eq!(
            builder.build().expect_err("three are wrong").to_string(),
            "invalid leak watch: window = 0s: must be above 0; windows = 1: must be from 2 to 1000; \
             sites_max = 0: must be at least 1"
        );
    }
}
