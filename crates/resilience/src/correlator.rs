//! Who fails together: breakers that share a host, a zone or a dependency, and which of them was first.
//!
//! Each member has one bit per second for the last 64 seconds: whether it failed more than is usual
//! for it. Once a second, [`Correlator::step_at`] compares the bits of members that share a tag. Two
//! of them belong together if they failed in the same seconds at least five times, if the phi
//! coefficient of their bits is at least 0.6, and if so many common seconds would come about by chance
//! less than once in 10^10 looks, given how often each fails on other days (a Poisson tail over their
//! own base rates). Pairs that belong together make a group, an [`Incident`]; the member whose change
//! from quiet to failing lies furthest back is its first mover.
//!
//! A member leaves when fewer than two of its last ten seconds were bad; an incident with fewer than
//! two members is over. Members can join in the first minute or so; after that the first ones have
//! failed for the whole of the 64 seconds, and there is no change left to compare.
//!
//! The effect is small on purpose. While a member is in an incident, its breaker takes turns with the
//! group's other breakers at probing, a [`RetryBudget`](crate::RetryBudget) with the member gives a
//! quarter of what it gives otherwise, and nothing for hedges.
//!
//! Two dependencies without anything in common that break within the same seconds look like one
//! incident; that is why only members with a common tag are compared.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::build_error::{BuildError, Problem, Problems};
use crate::nanos::nanos;

/// Seconds that are compared.
const SECONDS: u64 = 64;
/// Common seconds that two members need.
const JOINT_MIN: u32 = 5;
/// The phi coefficient that two members need.
const PHI_MIN: f64 = 0.6;
/// How unlikely chance must be, as a natural logarithm: 10^-10.
const CHANCE_MAX_LN: f64 = -23.025_850_929_940_457;
/// No member is taken to fail less often than in one second of so many.
const BASE_MIN: f64 = 1.0 / 512.0;
/// Seconds after which the base rates have forgotten about two thirds of what was before.
const BASE_SECONDS: f64 = 3_600.0;
/// How many seconds of its history an unknown member is credited with.
const BASE_CREDIT: f64 = 300.0;
/// How often an unknown member is taken to fail.
const BASE_UNKNOWN: f64 = 0.01;

/// Finds out which dependencies fail together, and which of them failed first.
///
/// Clones share one correlator. It has no thread: somebody calls [`step_at`](Self::step_at) once a
/// second, or awaits [`run`](Self::run). The members it knows have a bound, and a member leaves when its
/// last handle is dropped.
///
/// # Examples
///
/// ```
/// use std::time::{Duration, Instant};
/// use resilience::{Correlator, IncidentEvent};
///
/// let start = Instant::now();
/// let correlator = Correlator::builder("services").build_at(start)?;
/// let storage = correlator.join("storage", ["host-7"])?;
/// let search = correlator.join("search", ["host-7"])?;
///
/// let mut started = None;
/// for second in 0..10 {
///     let now = start + Duration::from_secs(100 + second);
///     storage.failed_at(now);
///     search.failed_at(now + Duration::from_millis(300));
///     for event in correlator.step_at(now + Duration::from_millis(900)) {
///         if let IncidentEvent::Started(incident) = event {
///             started = Some(incident);
///         }
///     }
/// }
/// let incident = started.expect("they fail together");
/// assert_eq!(incident.first_mover, "storage");
/// assert_eq!(incident.members, ["storage", "search"]);
/// assert!(search.in_incident());
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Correlator {
    shared: Arc<Shared>,
}

struct Shared {
    name: String,
    epoch: Instant,
    members_max: usize,
    tags_max: usize,
    groups: Mutex<Groups>,
}

#[derive(Default)]
struct Groups {
    members: Vec<Weak<MemberState>>,
    running: Vec<Running>,
    last_id: u64,
}

/// An incident that is not over.
struct Running {
    id: u64,
    members: Vec<Arc<MemberState>>,
    first: Arc<MemberState>,
    onset: u64,
    score: f64,
    turn: Arc<Turn>,
}

impl Correlator {
    /// Starts the settings of a correlator.
    pub fn builder(name: impl Into<String>) -> CorrelatorBuilder {
        CorrelatorBuilder { name: name.into(), members_max: 256, tags_max: 8 }
    }

    /// Makes a member with the tags that it may share with others.
    ///
    /// # Errors
    ///
    /// [`JoinError`] if there are too many members or tags.
    pub fn join<T: Into<String>>(
        &self,
        name: impl Into<String>,
        tags: impl IntoIterator<Item = T>,
    ) -> Result<Member, JoinError> {
        let tags: Vec<String> =
            tags.into_iter().take(self.shared.tags_max + 1).map(Into::into).collect();
        if tags.len() > self.shared.tags_max {
            return Err(JoinError::TooManyTags { max: self.shared.tags_max });
        }
        let mut groups = lock(&self.shared.groups);
        groups.members.retain(|member| member.strong_count() > 0);
        if groups.members.len() >= self.shared.members_max {
            return Err(JoinError::Full { max: self.shared.members_max });
        }
        let member = Arc::new(MemberState {
            name: name.into(),
            tags,
            epoch: self.shared.epoch,
            history: Mutex::new(History::new()),
            incident: Mutex::new(None),
            in_incident: AtomicBool::new(false),
        });
        groups.members.push(Arc::downgrade(&member));
        Ok(Member(member))
    }

    /// Compares the members and tells which incidents began, changed or ended.
    ///
    /// Called about once a second; a second without a call is made up for by the next.
    ///
    /// # Cost
    ///
    /// A lock and a shift for each member; members with fewer than five bad seconds are compared
    /// with nobody. At worst, all of n members failing, n² / 2 comparisons of a few ten nanoseconds.
    pub fn step_at(&self, now: Instant) -> Vec<IncidentEvent> {
        let second = now.saturating_duration_since(self.shared.epoch).as_secs();
        let groups = &mut *lock(&self.shared.groups);
        groups.members.retain(|member| member.strong_count() > 0);
        let mut events = Vec::new();

        groups.running.retain_mut(|running| {
            let before = running.members.len();
            running.members.retain(|member| {
                let stays = lock(&member.history).at(second).is_failing();
                if !stays {
                    member.leave();
                }
                stays
            });
            if running.members.len() < 2 {
                running.members.iter().for_each(|member| member.leave());
                events.push(IncidentEvent::Ended(running.tell()));
                return false;
            }
            if running.members.len() < before {
                events.push(IncidentEvent::Changed(running.tell()));
            }
            true
        });

        let mut started = Vec::new();
        let mut changed = Vec::new();
        for (one, other, score) in pairs(&groups.members, second) {
            let place = |running: &[Running], member: &Arc<MemberState>| {
                running.iter().position(|it| it.members.iter().any(|m| Arc::ptr_eq(m, member)))
            };
            let (a, b) = (place(&groups.running, &one), place(&groups.running, &other));
            match (a, b) {
                (Some(a), Some(b)) if a == b => {}
                (Some(a), Some(b)) => {
                    let (into, from) = (a.min(b), a.max(b));
                    let merged = groups.running.remove(from);
                    started.retain(|id| *id != merged.id);
                    changed.retain(|id| *id != merged.id);
                    let target = &mut groups.running[into];
                    for member in merged.members {
                        target.take_in(member, score, second);
                    }
                    changed.push(target.id);
                }
                (Some(into), None) => {
                    groups.running[into].take_in(other, score, second);
                    changed.push(groups.running[into].id);
                }
                (None, Some(into)) => {
                    groups.running[into].take_in(one, score, second);
                    changed.push(groups.running[into].id);
                }
                (None, None) => {
                    groups.last_id += 1;
                    let onset = lock(&one.history).onset();
                    let mut running = Running {
                        id: groups.last_id,
                        members: Vec::new(),
                        first: Arc::clone(&one),
                        onset,
                        score,
                        turn: Arc::new(Turn { until: AtomicU64::new(0) }),
                    };
                    running.take_in(one, score, second);
                    running.take_in(other, score, second);
                    started.push(running.id);
                    groups.running.push(running);
                }
            }
        }
        for running in &groups.running {
            if started.contains(&running.id) {
                events.push(IncidentEvent::Started(running.tell()));
            } else if changed.contains(&running.id) {
                events.push(IncidentEvent::Changed(running.tell()));
            }
        }
        events
    }

    /// Compares the members once a second, for as long as it is polled, and tells what it finds.
    ///
    /// # Cancel safety
    ///
    /// May be dropped at any time.
    #[cfg(feature = "tokio")]
    pub async fn run(&self, mut tell: impl FnMut(IncidentEvent)) {
        let mut ticks = tokio::time::interval(Duration::from_secs(1));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        loop {
            let now = ticks.tick().await.into_std();
            self.step_at(now).into_iter().for_each(&mut tell);
        }
    }

    /// Returns the incidents that are not over.
    pub fn incidents(&self) -> Vec<Incident> {
        lock(&self.shared.groups).running.iter().map(Running::tell).collect()
    }
}

impl fmt::Debug for Correlator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Correlator").field("name", &self.shared.name).finish_non_exhaustive()
    }
}

impl Running {
    fn take_in(&mut self, member: Arc<MemberState>, score: f64, second: u64) {
        if self.members.iter().any(|it| Arc::ptr_eq(it, &member)) {
            return;
        }
        self.score = self.score.max(score);
        let onset = lock(&member.history).at(second).onset();
        if onset < self.onset {
            (self.onset, self.first) = (onset, Arc::clone(&member));
        }
        member.enter(&self.turn);
        self.members.push(member);
    }

    fn tell(&self) -> Incident {
        Incident {
            id: self.id,
            first_mover: self.first.name.clone(),
            members: self.members.iter().map(|member| member.name.clone()).collect(),
            score: self.score,
        }
    }
}

/// Returns the pairs with a common tag that belong together, and the phi of each.
fn pairs(
    members: &[Weak<MemberState>],
    second: u64,
) -> Vec<(Arc<MemberState>, Arc<MemberState>, f64)> {
    let failing: Vec<(Arc<MemberState>, u64, f64)> = members
        .iter()
        .filter_map(Weak::upgrade)
        .filter_map(|member| {
            let (bits, base, failing) = {
                let mut history = lock(&member.history);
                let now = history.at(second);
                (now.bits, now.bad, now.is_failing())
            };
            (failing && bits.count_ones() >= JOINT_MIN).then_some((member, bits, base))
        })
        .collect();
    let mut pairs = Vec::new();
    for (index, (one, bits, base)) in failing.iter().enumerate() {
        for (other, other_bits, other_base) in &failing[index + 1..] {
            if one.tags.iter().any(|tag| other.tags.contains(tag))
                && let Some(phi) = belongs_together((*bits, *base), (*other_bits, *other_base))
            {
                pairs.push((Arc::clone(one), Arc::clone(other), phi));
            }
        }
    }
    pairs
}

/// Returns the phi of two members that failed together too often for chance.
fn belongs_together((a, base_a): (u64, f64), (b, base_b): (u64, f64)) -> Option<f64> {
    let joint = (a & b).count_ones();
    if joint < JOINT_MIN {
        return None;
    }
    let phi = phi(a, b);
    let mean = SECONDS as f64 * base_a.max(BASE_MIN) * base_b.max(BASE_MIN);
    (phi >= PHI_MIN && poisson_tail_ln(joint, mean) <= CHANCE_MAX_LN).then_some(phi)
}

/// The phi coefficient of two histories; zero if one of them never changes.
fn phi(a: u64, b: u64) -> f64 {
    let ones = |bits: u64| f64::from(bits.count_ones());
    let (n, joint, a, b) = (SECONDS as f64, ones(a & b), ones(a), ones(b));
    let spread = a * (n - a) * b * (n - b);
    if spread > 0.0 { (n * joint - a * b) / spread.sqrt() } else { 0.0 }
}

/// A bound from above for the logarithm of the chance that a Poisson variable reaches `k`.
fn poisson_tail_ln(k: u32, mean: f64) -> f64 {
    let next = f64::from(k) + 1.0;
    if mean >= next {
        return 0.0;
    }
    let factorial_ln: f64 = (1..=k).map(|i| f64::from(i).ln()).sum();
    // The terms from `k` on fall faster than a geometric series.
    f64::from(k) * mean.ln() - mean - factorial_ln - (1.0 - mean / next).ln()
}

/// One dependency, as the correlator knows it. Clones are the same member.
#[derive(Clone)]
pub struct Member(Arc<MemberState>);

struct MemberState {
    name: String,
    tags: Vec<String>,
    epoch: Instant,
    history: Mutex<History>,
    incident: Mutex<Option<Arc<Turn>>>,
    in_incident: AtomicBool,
}

impl Member {
    /// Returns the name given when it joined.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Notes that a call to the dependency failed at `now`.
    ///
    /// # Cost
    ///
    /// A short lock that only failures of the same member and the correlator's step take.
    pub fn failed_at(&self, now: Instant) {
        let nanos = nanos(now.saturating_duration_since(self.0.epoch));
        lock(&self.0.history).fail(nanos / 1_000_000_000, (nanos % 1_000_000_000) as u32);
    }

    /// Tells whether the last step has found it in an incident.
    pub fn in_incident(&self) -> bool {
        self.0.in_incident.load(Ordering::Relaxed)
    }

    /// Takes the group's turn at probing, if there is a group.
    pub(crate) fn try_probe(
        &self,
        now: Instant,
        timeout: Duration,
    ) -> Result<Option<Probing>, Taken> {
        if !self.in_incident() {
            return Ok(None);
        }
        let Some(turn) = lock(&self.0.incident).clone() else { return Ok(None) };
        let now = nanos(now.saturating_duration_since(self.0.epoch));
        let until = now.saturating_add(nanos(timeout)).max(1);
        let seen = turn.until.load(Ordering::Relaxed);
        let free = seen <= now;
        // Relaxed: the turn guards nothing but itself.
        let taken = free
            && turn
                .until
                .compare_exchange(seen, until, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        if taken { Ok(Some(Probing { turn, until })) } else { Err(Taken) }
    }
}

impl fmt::Debug for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Member").field("name", &self.0.name).finish_non_exhaustive()
    }
}

impl MemberState {
    fn enter(&self, turn: &Arc<Turn>) {
        *lock(&self.incident) = Some(Arc::clone(turn));
        lock(&self.history).in_incident = true;
        self.in_incident.store(true, Ordering::Relaxed);
    }

    fn leave(&self) {
        self.in_incident.store(false, Ordering::Relaxed);
        *lock(&self.incident) = None;
        lock(&self.history).in_incident = false;
    }
}

/// Another breaker of the group is probing.
#[derive(Debug)]
pub(crate) struct Taken;

/// Whose turn it is to probe in a group: until when, or a time that is over.
struct Turn {
    until: AtomicU64,
}

/// A group's turn at probing; it is given back when dropped, and lost when its time is over.
pub(crate) struct Probing {
    turn: Arc<Turn>,
    until: u64,
}

impl Drop for Probing {
    fn drop(&mut self) {
        // Fails if the time was over and somebody else has it.
        let (relaxed, until) = (Ordering::Relaxed, self.until);
        _ = self.turn.until.compare_exchange(until, 0, relaxed, relaxed);
    }
}

/// The last seconds of a member; bit 0 is the newest.
struct History {
    newest: u64,
    bits: u64,
    failures: [u32; SECONDS as usize],
    /// The first failure in each second, in nanoseconds after its start.
    first: [u32; SECONDS as usize],
    /// Failures in a usual second.
    mean: f64,
    /// The share of bad seconds in usual times.
    bad: f64,
    /// How many seconds the two averages stand for.
    weight: f64,
    in_incident: bool,
}

impl History {
    fn new() -> Self {
        Self {
            newest: 0,
            bits: 0,
            failures: [0; SECONDS as usize],
            first: [0; SECONDS as usize],
            mean: BASE_UNKNOWN,
            bad: BASE_UNKNOWN,
            weight: BASE_CREDIT,
            in_incident: false,
        }
    }

    /// Turns to `second`, unless it is later already.
    fn at(&mut self, second: u64) -> &mut Self {
        let passed = second.saturating_sub(self.newest);
        for _ in 0..passed.min(SECONDS) {
            self.newest += 1;
            let place = (self.newest % SECONDS) as usize;
            let fell_out = (self.bits >> (SECONDS - 1)) as f64;
            // What happens in an incident is not what is usual, and hardly learned.
            let weight = if self.in_incident { BASE_SECONDS } else { self.weight };
            let step = 1.0 / (weight + 1.0);
            self.weight = (self.weight + 1.0).min(BASE_SECONDS);
            self.bad += (fell_out - self.bad) * step;
            self.mean += (f64::from(self.failures[place]) - self.mean) * step;
            self.bits <<= 1;
            self.failures[place] = 0;
        }
        if passed > SECONDS {
            let quiet = (passed - SECONDS) as f64;
            let keep = (1.0 - 1.0 / BASE_SECONDS).powf(quiet);
            self.bad *= keep;
            self.mean *= keep;
            self.newest = second;
        }
        self
    }

    fn fail(&mut self, second: u64, nanos: u32) {
        self.at(second);
        let age = self.newest - second;
        if age >= SECONDS {
            return;
        }
        let place = (second % SECONDS) as usize;
        let failures = &mut self.failures[place];
        if *failures == 0 || nanos < self.first[place] {
            self.first[place] = nanos;
        }
        *failures = failures.saturating_add(1);
        // More than three deviations of a Poisson count above the usual.
        if f64::from(*failures) > self.mean + 3.0 * self.mean.sqrt() {
            self.bits |= 1 << age;
        }
    }

    fn is_failing(&self) -> bool {
        (self.bits & 0x3ff).count_ones() >= 2
    }

    /// When the member went from quiet to failing, in nanoseconds: where bad seconds most outnumber
    /// the quiet ones from then on.
    fn onset(&self) -> u64 {
        let (mut sum, mut most, mut age_of_most) = (0, 0, 0);
        for age in 0..SECONDS {
            sum += if self.bits >> age & 1 == 1 { 1 } else { -1 };
            if sum > most {
                (most, age_of_most) = (sum, age);
            }
        }
        let second = self.newest.saturating_sub(age_of_most);
        second * 1_000_000_000 + u64::from(self.first[(second % SECONDS) as usize])
    }
}

/// Collects the settings of a [`Correlator`]; every one has a default.
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `build`"]
pub struct CorrelatorBuilder {
    name: String,
    members_max: usize,
    tags_max: usize,
}

impl CorrelatorBuilder {
    /// Sets how many members there may be: 2 to 4,096; 256 unless told.
    pub fn members_max(mut self, members: usize) -> Self {
        self.members_max = members;
        self
    }

    /// Sets how many tags a member may have: 1 to 64; 8 unless told.
    pub fn tags_max(mut self, tags: usize) -> Self {
        self.tags_max = tags;
        self
    }

    /// Checks the settings and makes a correlator without members.
    ///
    /// # Errors
    ///
    /// [`BuildError`] with every problem in the settings.
    pub fn build(self) -> Result<Correlator, BuildError> {
        self.build_at(Instant::now())
    }

    /// Checks the settings and makes a correlator whose time begins at `now`.
    ///
    /// # Errors
    ///
    /// As [`build`](Self::build).
    pub fn build_at(self, now: Instant) -> Result<Correlator, BuildError> {
        BuildError::unless_none("correlator", &self.name, self.problems())?;
        let shared = Shared {
            name: self.name,
            epoch: now,
            members_max: self.members_max,
            tags_max: self.tags_max,
            groups: Mutex::default(),
        };
        Ok(Correlator { shared: Arc::new(shared) })
    }

    fn problems(&self) -> Vec<Problem> {
        let mut problems = Problems::default();
        problems.check(!self.name.is_empty(), "name", &self.name, "must not be empty");
        problems.check(
            (2..=4_096).contains(&self.members_max),
            "members_max",
            &self.members_max,
            "must be from 2 to 4096",
        );
        problems.check(
            (1..=64).contains(&self.tags_max),
            "tags_max",
            &self.tags_max,
            "must be from 1 to 64",
        );
        problems.found
    }
}

/// Members that fail together.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Incident {
    /// A number of its own, counted from 1.
    pub id: u64,
    /// The name of the member that began to fail first.
    pub first_mover: String,
    /// The names of all members that are in it, in the order in which they were found.
    pub members: Vec<String>,
    /// The largest phi coefficient of two of them: 0.6 to 1.
    pub score: f64,
}

/// What a step has found out.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum IncidentEvent {
    /// Members were found that fail together.
    Started(Incident),
    /// Members came or went.
    Changed(Incident),
    /// Fewer than two members still fail; `members` names the one that is left, if any.
    Ended(Incident),
}

/// Why a dependency could not become a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// There are as many members as there may be.
    #[error("the correlator has {max} members already, its members_max")]
    Full {
        /// The bound.
        max: usize,
    },
    /// The member has more tags than it may have.
    #[error("a member may have at most {max} tags, the correlator's tags_max")]
    TooManyTags {
        /// The bound.
        max: usize,
    },
}

/// Nothing is left half done under these locks, so a panic elsewhere does not spoil them.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(all(test, not(loom)))]
mod tests;
