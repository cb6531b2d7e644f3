//! The life of recommendations: a state machine over passed time.

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::guard::Verdict;
use super::{
    Action, Actuator, ActuatorError, AdviceContext, AdviceRule, Finding, GuardOptions, Receipt,
    Recommendation, State, UndoError,
};
use crate::clock::{Moment, millis};
use crate::score::Score;
use crate::source::Source;

/// The form of [`AdvisorState`].
const VERSION: u32 = 1;
/// Who applies what applies itself, in states and in the audit list.
const ITSELF: &str = "auto";
/// Why a change is not in force after a restart.
const ENDED: &str = "the process that made the change has ended, and the change with it";

/// The bounds and times of an [`Advisor`].
#[derive(Debug, Clone, PartialEq)]
pub struct AdvisorOptions {
    /// How often rules look; five minutes by default.
    pub every: Duration,
    /// Windows in a row in which a rule must find what had ended, before it opens again; 3 by default.
    pub reopen_after: u32,
    /// Windows in a row in which a rule does not find what is open, before it is gone; 3 by default.
    pub gone_after: u32,
    /// Recommendations that are kept; 200 by default. Those that ended longest ago go first.
    pub recommendations_max: usize,
    /// Entries of the audit list; 500 by default. The oldest go first.
    pub audit_max: usize,
    /// How changes are watched.
    pub guard: GuardOptions,
    /// Which recommendations apply themselves, where that is [allowed](Advisor::auto_apply).
    pub auto: AutoApplyOptions,
}

impl Default for AdvisorOptions {
    fn default() -> Self {
        Self {
            every: Duration::from_secs(300),
            reopen_after: 3,
            gone_after: 3,
            recommendations_max: 200,
            audit_max: 500,
            guard: GuardOptions::default(),
            auto: AutoApplyOptions::default(),
        }
    }
}

/// Which recommendations apply themselves.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AutoApplyOptions {
    /// The highest risk; 2 by default.
    pub risk_max: u8,
    /// The least confidence; 0.7 by default.
    pub confidence_min: f64,
    /// Windows in a row in which the rule must have found it; 3 by default.
    pub found_min: u32,
    /// For how long what was undone, did nothing or was refused does not apply itself again; a day by default.
    pub cooldown: Duration,
}

impl Default for AutoApplyOptions {
    fn default() -> Self {
        Self {
            risk_max: 2,
            confidence_min: 0.7,
            found_min: 3,
            cooldown: Duration::from_secs(86_400),
        }
    }
}

/// What happened to a recommendation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuditEvent {
    /// A rule found it.
    Opened,
    /// It had ended, and its evidence held again.
    Reopened,
    /// Its rule no longer finds it.
    Gone,
    /// Somebody applied it.
    Applied,
    /// The change was refused.
    ApplyRefused,
    /// The change helped.
    Verified,
    /// The change did nothing.
    NoEffect,
    /// The guard undid the change.
    RolledBack,
    /// Somebody undid the change.
    Undone,
    /// The change should have been undone, and that was refused; once for each reason.
    UndoRefused,
    /// The change is no longer in force as it was made.
    Lapsed,
    /// Somebody does not want it.
    Dismissed,
    /// Its rule panicked; the recommendation is the name of the rule.
    RulePanicked,
    /// There was no room for it.
    Dropped,
}

/// One entry of the audit list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AuditEntry {
    /// When, in milliseconds since 1970.
    pub at_ms: i64,
    /// The recommendation.
    pub id: String,
    /// What happened.
    pub event: AuditEvent,
    /// Who did it; empty if the advisor did.
    pub by: String,
    /// The setting that changed, and its values before and after.
    pub change: Option<Action>,
    /// Why, or what came of it.
    pub reason: String,
}

/// What an evaluation changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The recommendation.
    pub id: String,
    /// What happened.
    pub event: AuditEvent,
}

/// Why a recommendation cannot be applied, undone or dismissed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ApplyError {
    /// There is none of this name.
    #[error("there is no recommendation \"{0}\"")]
    Unknown(String),
    /// Its state does not allow it.
    #[error("the recommendation is {state}, expected {expected}")]
    State {
        /// The state it is in.
        state: &'static str,
        /// Those that would do.
        expected: &'static str,
    },
    /// It has no action: people have to act.
    #[error("this is advice for people and has no action")]
    NoAction,
    /// Another change of the same subsystem or the same setting is on probation.
    #[error("\"{0}\" was applied to the same subsystem or setting and is still being watched")]
    Busy(String),
    /// The change is no longer in force as it was made, so there is nothing to undo.
    #[error("the change is no longer in force: {0}")]
    Lapsed(String),
    /// The change was refused.
    #[error("the change was refused")]
    Refused(#[source] ActuatorError),
}

/// All that an advisor keeps over a restart.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AdvisorState {
    version: u32,
    recommendations: Vec<Recommendation>,
    audit: Vec<AuditEntry>,
    /// Until when, by the wall clock, a recommendation does not apply itself.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    cooling: BTreeMap<String, i64>,
    /// Changes that outlive the process.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    receipts: BTreeMap<String, Receipt>,
}

/// A recommendation and what the advisor counts about it.
#[derive(Debug)]
struct Tracked {
    recommendation: Recommendation,
    /// Windows in a row in which the rule found it.
    found: u32,
    /// Windows in a row in which it did not.
    missed: u32,
    /// When the probation began, by the monotonic clock.
    applied: Duration,
    /// The change that was made, if it is in force as far as is known.
    receipt: Option<Receipt>,
    /// Why its undoing was refused last.
    refused: String,
    /// Until when it is dismissed, by the monotonic clock.
    dismissed_until: Option<Duration>,
}

/// Runs rules, keeps their recommendations, and watches what applied ones do.
///
/// # Examples
///
/// ```
/// use monitor::advice::{Advisor, AdvisorOptions, Category, Finding, Priority};
///
/// let mut advisor = Advisor::new(AdvisorOptions::default());
/// advisor.rule("backup.old", |_| {
///     vec![Finding::advice(
///         Category::Disk,
///         Priority::High,
///         "The last backup is 9 days old",
///         "Run `backup now`, and look at why the nightly one fails",
///     )]
/// });
/// ```
pub struct Advisor {
    options: AdvisorOptions,
    rules: Vec<Box<dyn AdviceRule>>,
    tracked: BTreeMap<String, Tracked>,
    audit: VecDeque<AuditEntry>,
    evaluated: Option<Duration>,
    auto_apply: Box<dyn Fn() -> bool + Send + Sync>,
    /// Until when a recommendation does not apply itself.
    cooling: BTreeMap<String, Moment>,
    /// Panics of rules and of the actuator.
    panics: u64,
}

impl std::fmt::Debug for Advisor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Advisor")
            .field("rules", &self.rules.len())
            .field("recommendations", &self.tracked.len())
            .finish_non_exhaustive()
    }
}

struct Closure<F> {
    id: String,
    check: F,
}

impl<F: Fn(&AdviceContext<'_>) -> Vec<Finding> + Send + Sync> AdviceRule for Closure<F> {
    fn id(&self) -> &str {
        &self.id
    }

    fn check(&self, context: &AdviceContext<'_>) -> Vec<Finding> {
        (self.check)(context)
    }
}

impl Advisor {
    /// Makes an advisor without rules.
    #[must_use]
    pub fn new(options: AdvisorOptions) -> Self {
        Self {
            options,
            rules: Vec::new(),
            tracked: BTreeMap::new(),
            audit: VecDeque::new(),
            evaluated: None,
            auto_apply: Box::new(|| false),
            cooling: BTreeMap::new(),
            panics: 0,
        }
    }

    /// Lets recommendations apply themselves while `allowed` says so, as [`AdvisorOptions::auto`] bounds it.
    ///
    /// It is asked each time the rules have looked. What applies itself is guarded like what people apply,
    /// and stands in the audit list under `auto`.
    pub fn auto_apply(&mut self, allowed: impl Fn() -> bool + Send + Sync + 'static) {
        self.auto_apply = Box::new(allowed);
    }

    /// Adds a closure as a rule; what is before the first point of its name is the subsystem.
    pub fn rule(
        &mut self,
        id: impl Into<String>,
        check: impl Fn(&AdviceContext<'_>) -> Vec<Finding> + Send + Sync + 'static,
    ) {
        self.add_rule(Box::new(Closure { id: id.into(), check }));
    }

    /// Adds a rule.
    pub fn add_rule(&mut self, rule: Box<dyn AdviceRule>) {
        self.rules.push(rule);
    }

    /// Runs the rules if their time has come, ends probations, and returns what changed.
    ///
    /// Call it as often as you like. Without an actuator nothing can be undone, so probations go on. Rules and an
    /// actuator that panic are [counted](Self::panics) and passed over.
    ///
    /// # Cost
    ///
    /// What the rules take, once in [`AdvisorOptions::every`]; else a look at each recommendation.
    pub fn evaluate(
        &mut self,
        now: Moment,
        source: &dyn Source,
        score: Option<&Score>,
        actuator: Option<&dyn Actuator>,
    ) -> Vec<Change> {
        let mut changes = Vec::new();
        let due = self.evaluated.is_none_or(|last| now.since(last) >= self.options.every);
        if let Some(actuator) = actuator {
            if due {
                self.end_superseded(now, actuator, &mut changes);
            }
            self.end_probations(now, source, actuator, &mut changes);
        }
        if due {
            self.evaluated = Some(now.monotonic);
            let context = AdviceContext { source, at_ms: now.unix_ms, score };
            self.run_rules(now, &context, &mut changes);
            self.make_room(now, &mut changes);
            if let Some(actuator) = actuator.filter(|_| self.may_apply_itself()) {
                self.apply_itself(now, source, actuator, &mut changes);
            }
        }
        changes
    }

    /// Returns all recommendations: the urgent ones first, and among equals by name.
    #[must_use]
    pub fn recommendations(&self) -> Vec<&Recommendation> {
        let mut all: Vec<_> = self.tracked.values().map(|one| &one.recommendation).collect();
        all.sort_by_key(|one| std::cmp::Reverse(one.finding.priority));
        all
    }

    /// Returns those that wait for somebody to act, as [`recommendations`](Self::recommendations) orders them.
    #[must_use]
    pub fn open(&self) -> Vec<&Recommendation> {
        let mut open = self.recommendations();
        open.retain(|one| one.state == State::Open);
        open
    }

    /// Returns a recommendation.
    #[must_use]
    pub fn get(&self, id: &str) -> Option<&Recommendation> {
        Some(&self.tracked.get(id)?.recommendation)
    }

    /// Returns what happened, the oldest first.
    pub fn audit(&self) -> impl DoubleEndedIterator<Item = &AuditEntry> + ExactSizeIterator {
        self.audit.iter()
    }

    /// Returns how often a rule or the actuator has panicked; each time the log and the audit list say so.
    #[must_use]
    pub fn panics(&self) -> u64 {
        self.panics
    }

    /// Makes the change of an open recommendation and puts it on probation.
    ///
    /// # Errors
    ///
    /// If it is not open, has no action, another change of the subsystem or the setting is on probation, or the
    /// change is refused. Then nothing has changed.
    pub fn apply(
        &mut self,
        id: &str,
        by: &str,
        now: Moment,
        source: &dyn Source,
        actuator: &dyn Actuator,
    ) -> Result<(), ApplyError> {
        let one = self.find(id)?;
        if one.recommendation.state != State::Open {
            return Err(one.state_error("open"));
        }
        let action = one.recommendation.finding.action.clone().ok_or(ApplyError::NoAction)?;
        self.end_superseded(now, actuator, &mut Vec::new());
        let one = self.find(id)?;
        let subsystem = one.recommendation.subsystem();
        let busy = self.tracked.values().map(|other| &other.recommendation).find(|other| {
            let path = other.finding.action.as_ref().map(|other| other.path.as_str());
            matches!(other.state, State::Applied { .. })
                && (other.subsystem() == subsystem || path == Some(action.path.as_str()))
        });
        if let Some(busy) = busy {
            return Err(ApplyError::Busy(busy.id.clone()));
        }
        let before = self.options.guard.read(source, &one.recommendation.finding, now.unix_ms);
        let applied = self
            .guarded("apply", id, || actuator.apply(&action.path, &action.to))
            .and_then(|it| it);
        let receipt = match applied {
            Ok(receipt) => receipt,
            Err(error) => {
                let reason = error.to_string();
                self.note(now, id, AuditEvent::ApplyRefused, by, Some(action), &reason);
                return Err(ApplyError::Refused(error));
            }
        };
        let one = self.tracked.get_mut(id).expect("found above");
        one.applied = now.monotonic;
        (one.receipt, one.refused) = (Some(receipt), String::new());
        one.recommendation.state =
            State::Applied { at_ms: now.unix_ms, by: by.to_owned(), before, undo_refused: None };
        self.note(now, id, AuditEvent::Applied, by, Some(action), "");
        Ok(())
    }

    /// Undoes the change of a recommendation that was applied.
    ///
    /// # Errors
    ///
    /// If it is not applied, verified or without effect, or the change is refused; then nothing has changed. A
    /// change that is no longer in force lapses, and [`ApplyError::Lapsed`] says why.
    pub fn undo(
        &mut self,
        id: &str,
        by: &str,
        now: Moment,
        actuator: &dyn Actuator,
    ) -> Result<(), ApplyError> {
        let one = self.find(id)?;
        match one.recommendation.state {
            State::Applied { .. } | State::Verified { .. } | State::NoEffect { .. } => {}
            _ => return Err(one.state_error("applied, verified or no_effect")),
        }
        let inverse = one.recommendation.inverse.clone().ok_or(ApplyError::NoAction)?;
        match self.take_back(id, actuator) {
            Ok(()) => {
                self.cool(id, now);
                let reason = format!("undone by {by}");
                self.end(id, State::RolledBack { at_ms: now.unix_ms, reason });
                self.note(now, id, AuditEvent::Undone, by, Some(inverse), "");
                Ok(())
            }
            Err(UndoError::Superseded(reason)) => {
                self.lapse(id, now, &reason);
                Err(ApplyError::Lapsed(reason))
            }
            Err(UndoError::Refused(error)) => {
                let reason = error.to_string();
                self.note(now, id, AuditEvent::UndoRefused, by, Some(inverse), &reason);
                Err(ApplyError::Refused(error))
            }
        }
    }

    /// Puts a recommendation aside for a while, or for good.
    ///
    /// # Errors
    ///
    /// If there is none of this name, or its change is on probation.
    pub fn dismiss(
        &mut self,
        id: &str,
        by: &str,
        reason: &str,
        for_: Option<Duration>,
        now: Moment,
    ) -> Result<(), ApplyError> {
        let one = self.find(id)?;
        if matches!(one.recommendation.state, State::Applied { .. }) {
            return Err(one.state_error("any but applied"));
        }
        let until_ms = for_.map(|while_| now.unix_ms.saturating_add(millis(while_)));
        let state = State::Dismissed { until_ms, by: by.to_owned(), reason: reason.to_owned() };
        self.end(id, state);
        let one = self.tracked.get_mut(id).expect("found above");
        one.dismissed_until = for_.map(|while_| now.monotonic.saturating_add(while_));
        self.note(now, id, AuditEvent::Dismissed, by, None, reason);
        Ok(())
    }

    /// Returns all that should outlive the process.
    #[must_use]
    pub fn snapshot(&self) -> AdvisorState {
        let recommendations = self.tracked.values().map(|one| one.recommendation.clone()).collect();
        AdvisorState {
            version: VERSION,
            recommendations,
            audit: self.audit.iter().cloned().collect(),
            cooling: self.cooling.iter().map(|(id, until)| (id.clone(), until.unix_ms)).collect(),
            receipts: self
                .tracked
                .iter()
                .filter_map(|(id, one)| Some((id.clone(), one.receipt.clone()?)))
                .filter(|(_, receipt)| receipt.persistent)
                .collect(),
        }
    }

    /// Takes up what an earlier process left; what is here already stays as it is.
    ///
    /// A change that was on probation lapses, because it has ended with its process; one whose receipt is
    /// [persistent](Receipt::persistent) begins its probation anew, because the time in between was not watched.
    /// A state of another version is passed over.
    pub fn restore(&mut self, mut state: AdvisorState, now: Moment) {
        if state.version != VERSION {
            return;
        }
        for entry in state.audit.into_iter().rev() {
            if self.audit.len() < self.options.audit_max {
                self.audit.push_front(entry);
            }
        }
        // The monotonic clock of another process began elsewhere.
        let monotonic = |until_ms: i64| {
            let left = u64::try_from(until_ms.saturating_sub(now.unix_ms)).unwrap_or(0);
            now.monotonic.saturating_add(Duration::from_millis(left))
        };
        for (id, unix_ms) in state.cooling.into_iter().take(self.options.recommendations_max) {
            let until = Moment { monotonic: monotonic(unix_ms), unix_ms };
            self.cooling.entry(id).or_insert(until);
        }
        let mut ended = Vec::new();
        for recommendation in state.recommendations {
            if self.tracked.len() >= self.options.recommendations_max {
                break;
            }
            if self.tracked.contains_key(&recommendation.id) {
                continue;
            }
            let id = recommendation.id.clone();
            let receipt = state.receipts.remove(&id).filter(Receipt::is_persistent);
            if receipt.is_none()
                && let State::Applied { undo_refused, .. } = &recommendation.state
            {
                ended.push((id.clone(), undo_refused.is_some()));
            }
            let dismissed_until = match recommendation.state {
                State::Dismissed { until_ms: Some(until), .. } => Some(monotonic(until)),
                _ => None,
            };
            let tracked = Tracked {
                recommendation,
                found: 0,
                missed: 0,
                applied: now.monotonic,
                receipt,
                refused: String::new(),
                dismissed_until,
            };
            self.tracked.insert(id, tracked);
        }
        for (id, was_worse) in ended {
            if was_worse {
                self.cool(&id, now);
            }
            self.end(&id, State::Lapsed { at_ms: now.unix_ms, reason: ENDED.to_owned() });
            self.note(now, &id, AuditEvent::Lapsed, "", None, ENDED);
        }
    }

    fn find(&self, id: &str) -> Result<&Tracked, ApplyError> {
        self.tracked.get(id).ok_or_else(|| ApplyError::Unknown(id.to_owned()))
    }

    fn end(&mut self, id: &str, state: State) {
        if let Some(one) = self.tracked.get_mut(id) {
            // These can still be undone.
            if !matches!(state, State::Verified { .. } | State::NoEffect { .. }) {
                one.receipt = None;
            }
            (one.recommendation.state, one.found, one.missed) = (state, 0, 0);
        }
    }

    /// Ends the life of a change that somebody has undone or replaced; what they want is not advised against
    /// by itself.
    fn lapse(&mut self, id: &str, now: Moment, reason: &str) {
        self.cool(id, now);
        self.end(id, State::Lapsed { at_ms: now.unix_ms, reason: reason.to_owned() });
        self.note(now, id, AuditEvent::Lapsed, "", None, reason);
    }

    /// Calls what a program has given us; a panic is counted and told, and is a refusal.
    fn guarded<T>(
        &mut self,
        what: &str,
        id: &str,
        call: impl FnOnce() -> T,
    ) -> Result<T, ActuatorError> {
        catch_unwind(AssertUnwindSafe(call)).map_err(|payload| {
            self.panics = self.panics.saturating_add(1);
            let text = payload.downcast_ref::<&str>().copied();
            let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
            let text = text.unwrap_or("a panic without a text");
            tracing::error!(what, recommendation = id, panic = text, "advice met a panic");
            ActuatorError(format!("it panicked: {text}"))
        })
    }

    fn may_apply_itself(&mut self) -> bool {
        let allowed = std::mem::replace(&mut self.auto_apply, Box::new(|| false));
        let may = self.guarded("auto_apply", "", &allowed).unwrap_or(false);
        self.auto_apply = allowed;
        may
    }

    /// Undoes the change of a recommendation through the actuator.
    fn take_back(&mut self, id: &str, actuator: &dyn Actuator) -> Result<(), UndoError> {
        let receipt = self.tracked.get(id).and_then(|one| one.receipt.clone());
        let receipt = receipt.ok_or_else(|| UndoError::Superseded(ENDED.to_owned()))?;
        self.guarded("undo", id, || actuator.undo(&receipt))?
    }

    /// Ends the probations of changes that somebody has undone or replaced.
    fn end_superseded(&mut self, now: Moment, actuator: &dyn Actuator, changes: &mut Vec<Change>) {
        let all: Vec<(String, Receipt)> = self
            .tracked
            .iter()
            .filter(|(_, one)| matches!(one.recommendation.state, State::Applied { .. }))
            .filter_map(|(id, one)| Some((id.clone(), one.receipt.clone()?)))
            .collect();
        for (id, receipt) in all {
            let asked = self.guarded("superseded", &id, || actuator.superseded(&receipt));
            if let Ok(Some(reason)) = asked {
                self.lapse(&id, now, &reason);
                changes.push(Change { id, event: AuditEvent::Lapsed });
            }
        }
    }

    /// Keeps a recommendation from applying itself for a while.
    fn cool(&mut self, id: &str, now: Moment) {
        self.cooling.retain(|_, until| until.monotonic > now.monotonic);
        self.cooling.insert(id.to_owned(), now.after(self.options.auto.cooldown));
        while self.cooling.len() > self.options.recommendations_max {
            let soonest = self.cooling.iter().min_by_key(|(_, until)| until.monotonic);
            let Some(soonest) = soonest.map(|(id, _)| id.clone()) else { return };
            self.cooling.remove(&soonest);
        }
    }

    /// Applies what may apply itself: the urgent first, and of one subsystem one at a time.
    fn apply_itself(
        &mut self,
        now: Moment,
        source: &dyn Source,
        actuator: &dyn Actuator,
        changes: &mut Vec<Change>,
    ) {
        let auto = self.options.auto;
        self.cooling.retain(|_, until| until.monotonic > now.monotonic);
        let mut ready: Vec<_> = self
            .tracked
            .iter()
            .filter(|(id, one)| {
                let Recommendation { finding, state, .. } = &one.recommendation;
                *state == State::Open
                    && one.found >= auto.found_min
                    && finding.action.is_some()
                    && finding.risk <= auto.risk_max
                    && finding.confidence >= auto.confidence_min
                    && !self.cooling.contains_key(*id)
            })
            .map(|(id, one)| (std::cmp::Reverse(one.recommendation.finding.priority), id.clone()))
            .collect();
        ready.sort();
        for (_, id) in ready {
            let event = match self.apply(&id, ITSELF, now, source, actuator) {
                Ok(()) => AuditEvent::Applied,
                Err(ApplyError::Refused(_)) => {
                    self.cool(&id, now);
                    AuditEvent::ApplyRefused
                }
                // Another change of the subsystem is on probation: later.
                Err(_) => continue,
            };
            changes.push(Change { id, event });
        }
    }

    fn note(
        &mut self,
        now: Moment,
        id: &str,
        event: AuditEvent,
        by: &str,
        change: Option<Action>,
        reason: &str,
    ) {
        while self.audit.len() >= self.options.audit_max.max(1) {
            self.audit.pop_front();
        }
        self.audit.push_back(AuditEntry {
            at_ms: now.unix_ms,
            id: id.to_owned(),
            event,
            by: by.to_owned(),
            change,
            reason: reason.to_owned(),
        });
    }

    /// Judges the changes whose probation is over.
    fn end_probations(
        &mut self,
        now: Moment,
        source: &dyn Source,
        actuator: &dyn Actuator,
        changes: &mut Vec<Change>,
    ) {
        let window = self.options.guard.window;
        let is_over = |one: &Tracked| {
            matches!(one.recommendation.state, State::Applied { .. })
                && now.since(one.applied) >= window
        };
        if !self.tracked.values().any(is_over) {
            return;
        }
        // What somebody else has changed is not the advice's doing.
        self.end_superseded(now, actuator, changes);
        let over = self.tracked.iter().filter(|(_, one)| is_over(one));
        let over: Vec<String> = over.map(|(id, _)| id.clone()).collect();
        for id in over {
            let one = &self.tracked[&id];
            let State::Applied { before, undo_refused, .. } = &one.recommendation.state else {
                continue;
            };
            let after = self.options.guard.read(source, &one.recommendation.finding, now.unix_ms);
            // Once something was worse it is to be undone, whatever the readings are by now.
            let verdict = match undo_refused {
                Some(reason) => Verdict::Worse(reason.clone()),
                None => self.options.guard.judge(before, &after),
            };
            let at_ms = now.unix_ms;
            let (state, event, reason) = match verdict {
                Verdict::Better(reason) => (
                    State::Verified { at_ms, reason: reason.clone() },
                    AuditEvent::Verified,
                    reason,
                ),
                Verdict::Same(reason) => (
                    State::NoEffect { at_ms, reason: reason.clone() },
                    AuditEvent::NoEffect,
                    reason,
                ),
                Verdict::Worse(reason) => {
                    if let Some(change) = self.roll_back(&id, now, actuator, reason) {
                        changes.push(change);
                    }
                    continue;
                }
            };
            self.end(&id, state);
            if event != AuditEvent::Verified {
                self.cool(&id, now);
            }
            self.note(now, &id, event, "", None, &reason);
            changes.push(Change { id, event });
        }
    }

    /// Undoes a change that made something worse; where that is refused, it is tried again after a window.
    fn roll_back(
        &mut self,
        id: &str,
        now: Moment,
        actuator: &dyn Actuator,
        reason: String,
    ) -> Option<Change> {
        let undone = self.take_back(id, actuator);
        let one = self.tracked.get_mut(id)?;
        let inverse = one.recommendation.inverse.clone();
        let event = match undone {
            Ok(()) => {
                self.end(id, State::RolledBack { at_ms: now.unix_ms, reason: reason.clone() });
                self.cool(id, now);
                self.note(now, id, AuditEvent::RolledBack, "", inverse, &reason);
                AuditEvent::RolledBack
            }
            Err(UndoError::Superseded(reason)) => {
                self.lapse(id, now, &reason);
                AuditEvent::Lapsed
            }
            Err(UndoError::Refused(error)) => {
                one.applied = now.monotonic;
                if let State::Applied { undo_refused, .. } = &mut one.recommendation.state {
                    undo_refused.get_or_insert(reason);
                }
                let refused = error.to_string();
                // Told once: what is refused for days would push everything else out of the audit list.
                if refused == one.refused {
                    return None;
                }
                one.refused.clone_from(&refused);
                self.note(now, id, AuditEvent::UndoRefused, "", inverse, &refused);
                AuditEvent::UndoRefused
            }
        };
        Some(Change { id: id.to_owned(), event })
    }

    fn run_rules(&mut self, now: Moment, context: &AdviceContext<'_>, changes: &mut Vec<Change>) {
        let mut found: BTreeMap<String, (String, Finding)> = BTreeMap::new();
        let mut silent = Vec::new();
        for rule in &self.rules {
            let rule_id = rule.id();
            match catch_unwind(AssertUnwindSafe(|| rule.check(context))) {
                Ok(findings) => {
                    let findings = findings.into_iter().take(self.options.recommendations_max);
                    found.extend(findings.map(|finding| {
                        let id = match finding.subject.as_str() {
                            "" => rule_id.to_owned(),
                            subject => format!("{rule_id}:{subject}"),
                        };
                        (id, (rule_id.to_owned(), finding))
                    }));
                }
                Err(_) => silent.push(rule_id.to_owned()),
            }
        }
        // What a rule that panicked would have found is not known: neither found nor missed.
        for rule in &silent {
            self.panics = self.panics.saturating_add(1);
            tracing::error!(rule = rule.as_str(), "an advice rule panicked");
            self.note(now, rule, AuditEvent::RulePanicked, "", None, "");
            changes.push(Change { id: rule.clone(), event: AuditEvent::RulePanicked });
        }
        let mut gone = Vec::new();
        for (id, one) in &mut self.tracked {
            if found.contains_key(id) || silent.contains(&one.recommendation.rule) {
                continue;
            }
            (one.found, one.missed) = (0, one.missed.saturating_add(1));
            if one.recommendation.state == State::Open && one.missed >= self.options.gone_after {
                gone.push(id.clone());
            }
        }
        for id in gone {
            self.tracked.remove(&id);
            self.note(now, &id, AuditEvent::Gone, "", None, "its rule no longer finds it");
            changes.push(Change { id, event: AuditEvent::Gone });
        }
        for (id, (rule, finding)) in found {
            if let Some(event) = self.take(&id, rule, finding, now) {
                self.note(now, &id, event, "", None, "");
                changes.push(Change { id, event });
            }
        }
    }

    /// Takes in a finding and returns what that changed.
    fn take(
        &mut self,
        id: &str,
        rule: String,
        finding: Finding,
        now: Moment,
    ) -> Option<AuditEvent> {
        let Some(one) = self.tracked.get_mut(id) else {
            let recommendation = recommend(id, rule, finding, now.unix_ms);
            let tracked = Tracked {
                recommendation,
                found: 1,
                missed: 0,
                applied: Duration::ZERO,
                receipt: None,
                refused: String::new(),
                dismissed_until: None,
            };
            self.tracked.insert(id.to_owned(), tracked);
            return Some(AuditEvent::Opened);
        };
        (one.found, one.missed) = (one.found.saturating_add(1), 0);
        one.recommendation.seen_ms = now.unix_ms;
        match one.recommendation.state {
            State::Open => {
                let opened_ms = one.recommendation.opened_ms;
                one.recommendation = recommend(id, rule, finding, now.unix_ms);
                one.recommendation.opened_ms = opened_ms;
                None
            }
            State::Applied { .. } => None,
            State::Dismissed { .. }
                if one.dismissed_until.is_none_or(|until| now.monotonic < until) =>
            {
                one.found = 0;
                None
            }
            _ if one.found >= self.options.reopen_after => {
                one.recommendation = recommend(id, rule, finding, now.unix_ms);
                (one.dismissed_until, one.receipt) = (None, None);
                Some(AuditEvent::Reopened)
            }
            _ => None,
        }
    }

    /// Drops what is over the bound: first what ended and is not found any more, then what is least urgent.
    fn make_room(&mut self, now: Moment, changes: &mut Vec<Change>) {
        while self.tracked.len() > self.options.recommendations_max {
            let victim = self
                .tracked
                .iter()
                // The inverse of a change on probation is here only.
                .filter(|(_, one)| !matches!(one.recommendation.state, State::Applied { .. }))
                .min_by_key(|(_, one)| {
                    let recommendation = &one.recommendation;
                    let open = recommendation.state == State::Open;
                    (open, recommendation.finding.priority, recommendation.seen_ms)
                })
                .map(|(id, _)| id.clone());
            let Some(id) = victim else { return };
            self.tracked.remove(&id);
            self.note(now, &id, AuditEvent::Dropped, "", None, "there are too many");
            changes.push(Change { id, event: AuditEvent::Dropped });
        }
    }
}

impl Tracked {
    fn state_error(&self, expected: &'static str) -> ApplyError {
        ApplyError::State { state: self.recommendation.state.name(), expected }
    }
}

fn recommend(id: &str, rule: String, mut finding: Finding, at_ms: i64) -> Recommendation {
    finding.risk = finding.risk.min(4);
    // What is no number is none in JSON, and would not be read again.
    finding.confidence =
        if finding.confidence.is_nan() { 0.0 } else { finding.confidence.clamp(0.0, 1.0) };
    finding.expected.take_if(|expected| !(expected.from.is_finite() && expected.to.is_finite()));
    let inverse = finding.action.as_ref().map(Action::inverse);
    Recommendation {
        id: id.to_owned(),
        rule,
        finding,
        inverse,
        state: State::Open,
        opened_ms: at_ms,
        seen_ms: at_ms,
    }
}
