//! Evaluates rules: samples and a moment go in, messages and records come out.
//!
//! An evaluation has three parts. Each rule that is due groups its series by labels (kept until a series
//! comes or goes), computes its signal for each group and moves the instance on. Then silences, inhibitions
//! and acknowledgements are looked up for everything that goes on. Then each instance says what there is to
//! say, and what changed is written into records.
//!
//! # Clocks
//!
//! Every duration is counted by the monotonic clock. Samples are read by the wall clock: where that steps
//! back, reading goes on from where it was, as the history does; after a step that matters to a rule's
//! window the rule stands still until the window holds samples of one time only. So a step neither fires
//! nor ends anything.

mod quiet;
mod state;
mod summary;

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::clock::{Moment, millis};
use crate::series::Labels;
use crate::source::Source;

use super::event::{
    AlertEvent, AlertState, AlertView, EndReason, EndedAlert, EventKind, Fingerprint,
    InstanceRecord, Outcome, Severity,
};
use super::instance::{Core, Judged, Now, Verdict};
use super::plan::{Inputs, Reads};
use super::rule::{Rule, RuleSet};
use super::silence::Kept;
use state::{Instance, RuleState, overflow_rule};

pub use quiet::AcknowledgeError;
pub use state::OVERFLOW_RULE;
pub use summary::AlertSummary;

/// Records of a process that was down for longer are not gone on with.
const DOWNTIME_MAX: Duration = Duration::from_secs(3_600);

/// A difference of the two clocks above which the wall clock has stepped.
const STEP_MIN_MS: i64 = 2_000;

/// Detectors that are taught from the past in one evaluation, as that reads a week.
const TAUGHT_AT_ONCE: usize = 1;

/// The bounds of an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineOptions {
    /// Ended alerts that are remembered.
    pub ended: usize,
    /// Silences at the same time.
    pub silences: usize,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self { ended: 1_000, silences: 1_000 }
    }
}

/// Evaluates rules and holds the state of their instances.
///
/// It has no clock, no thread and no file of its own. Who runs it keeps the records of each [`Outcome`],
/// then sends its events, and hands the records back to [`restore`](Self::restore) after a restart.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use monitor::Moment;
/// use monitor::alert::{Engine, EngineOptions, EventKind, MadeUp, RuleSet};
///
/// let rules = RuleSet::parse(
///     "[[rule]]\nid = 'long'\nmetric = 'queue_depth'\nlevel.warning = '> 10'\nsummary = '{{value}} wait'",
///     "alerts.toml",
/// )?;
/// let mut engine = Engine::new(rules, EngineOptions::default());
/// let mut source = MadeUp::new();
/// source.gauge("queue_depth", &[], (0..=60).map(|second| (second * 1_000, 25.0)));
///
/// let now = Moment { monotonic: Duration::from_secs(60), unix_ms: 60_000 };
/// let outcome = engine.evaluate(now, &source);
/// assert_eq!(outcome.events[0].kind, EventKind::Fire);
/// assert_eq!(outcome.events[0].summary, "25 wait");
/// # Ok::<_, monitor::alert::RuleErrors>(())
/// ```
#[derive(Debug)]
pub struct Engine {
    options: EngineOptions,
    set: Arc<RuleSet>,
    rules: Vec<RuleState>,
    overflow: RuleState,
    /// Rules that keep messages of others back, by name.
    inhibitors: HashSet<Arc<str>>,
    silences: Vec<Kept>,
    last_silence: u64,
    ended: VecDeque<EndedAlert>,
    clock: ReadClock,
}

/// The clock by which samples are read.
#[derive(Debug, Default)]
struct ReadClock {
    last: Option<Now>,
    read_ms: i64,
    /// When the wall clock stepped last, and how far.
    stepped: Option<(i64, i64)>,
}

impl ReadClock {
    fn advance(&mut self, now: Now) {
        let Some(last) = self.last.replace(now) else {
            self.read_ms = now.unix_ms;
            return;
        };
        let elapsed = now.mono.saturating_sub(last.mono).max(0);
        let step = now.unix_ms.saturating_sub(last.unix_ms).saturating_sub(elapsed);
        if step.saturating_abs() > STEP_MIN_MS {
            // Several small steps of one day add up.
            let recent = |(at, _): &(i64, i64)| now.mono.saturating_sub(*at) < 86_400_000;
            let earlier = self.stepped.filter(recent).map_or(0, |(_, size)| size);
            self.stepped = Some((now.mono, step.saturating_abs().saturating_add(earlier)));
        }
        self.read_ms = match now.unix_ms >= self.read_ms {
            true => now.unix_ms,
            false => self.read_ms.saturating_add(elapsed),
        };
    }

    /// Whether a window of this length holds samples from before and after a step.
    fn is_torn(&self, now: i64, window: i64) -> bool {
        self.stepped.is_some_and(|(at, size)| now.saturating_sub(at) < window && size > window / 10)
    }
}

impl Engine {
    /// Makes an engine; every rule is due at once.
    #[must_use]
    pub fn new(set: RuleSet, options: EngineOptions) -> Self {
        let overflow = Arc::new(overflow_rule());
        let mut engine = Self {
            options,
            set: Arc::new(RuleSet::default()),
            rules: Vec::new(),
            overflow: RuleState::new(overflow, [].into()),
            inhibitors: HashSet::new(),
            silences: Vec::new(),
            last_silence: 0,
            ended: VecDeque::new(),
            clock: ReadClock::default(),
        };
        engine.install(set);
        engine
    }

    /// Takes over rules and returns the states of those before.
    fn install(&mut self, set: RuleSet) -> Vec<RuleState> {
        let routes = set.routes();
        let enabled = set.rules.iter().filter(|rule| rule.enabled);
        let of = |rule: &Arc<Rule>| {
            let handlers = routes.get(&rule.id).cloned().unwrap_or_else(|| [].into());
            RuleState::new(rule.clone(), handlers)
        };
        let states = enabled.map(of).collect();
        self.overflow.handlers = set.default_handlers.iter().cloned().collect();
        self.inhibitors =
            set.rules.iter().flat_map(|rule| rule.inhibited_by.iter().cloned()).collect();
        self.set = Arc::new(set);
        std::mem::replace(&mut self.rules, states)
    }

    /// Returns the rules.
    #[must_use]
    pub fn rule_set(&self) -> &Arc<RuleSet> {
        &self.set
    }

    /// Returns when the next rule is due, by the monotonic clock; nothing if there are no rules.
    #[must_use]
    pub fn next_due(&self) -> Option<Duration> {
        let due = self.rules.iter().map(|state| state.due).min()?;
        Some(Duration::from_millis(u64::try_from(due).unwrap_or(0)))
    }

    /// Evaluates the rules that are due, and says what there is to say about all of them.
    ///
    /// # Cost
    ///
    /// One aggregate of the source for each instance of the rules that are due, and two for a ratio. Nothing
    /// is allocated for an instance that is well.
    pub fn evaluate(&mut self, now: Moment, source: &dyn Source) -> Outcome {
        let now = Now::of(now);
        self.clock.advance(now);
        let reads = Reads { source, now_ms: self.clock.read_ms };
        let mut outcome = Outcome::default();
        let mut teach = TAUGHT_AT_ONCE;
        for state in &mut self.rules {
            if state.is_due(now.mono) {
                let torn = self.clock.is_torn(now.mono, millis(state.rule.signal.window()));
                state.evaluate(now, reads, torn, &mut teach, &mut outcome.ended);
            }
        }
        self.count_overflow(now, &mut outcome.ended);
        self.finish(now, &mut outcome);
        outcome
    }

    /// Moves the alerts about rules with too many label sets on.
    fn count_overflow(&mut self, now: Now, ended: &mut Vec<EndedAlert>) {
        let overflow = &mut self.overflow;
        for state in self.rules.iter().filter(|state| state.over > 0) {
            let labels = Labels::new([("rule", &*state.rule.id)]);
            if !overflow.instances.iter().any(|instance| instance.labels == labels) {
                let instance = Instance::new(labels, &overflow.rule, Inputs::default(), now);
                overflow.instances.push(instance);
            }
        }
        for instance in &mut overflow.instances {
            let id = instance.labels.get("rule").unwrap_or_default();
            let state = self.rules.iter().find(|state| &*state.rule.id == id && state.over > 0);
            instance.listed = state.is_some();
            if let Some(state) = state {
                instance.value = Some(state.groups as f64);
                instance.thresholds[Severity::Warning as usize] = state.rule.limit as f64;
            }
            let verdict = if state.is_some() { Verdict::Raised } else { Verdict::Cleared };
            let judged = Judged { severity: Severity::Warning, verdict, hold: Duration::ZERO };
            if let Some(over) = instance.core.observe(now, &[judged], &overflow.rule) {
                ended.push(instance.ended(now, &overflow.rule, over, EndReason::Resolved));
            }
        }
        overflow.busy |= !overflow.instances.is_empty();
    }

    /// Says what there is to say, writes records, and keeps what ended.
    fn finish(&mut self, now: Now, outcome: &mut Outcome) {
        self.silences.retain(|kept| kept.ends > now.mono);
        self.hush(now.mono);
        for state in self.rules.iter_mut().chain([&mut self.overflow]) {
            if !std::mem::take(&mut state.busy) {
                continue;
            }
            let mut instances = std::mem::take(&mut state.instances);
            for instance in &mut instances {
                let hushed = instance.inhibited || !instance.silenced_by.is_empty();
                if let Some(message) = instance.core.message(now, &state.rule, hushed) {
                    outcome.events.push(instance.event(now, state, message));
                }
                let dirty = instance.core.take_dirty();
                if dirty || instance.recorded {
                    instance.keep(now, state, dirty, outcome);
                }
                state.busy |= instance.core.is_live() || instance.recorded;
            }
            state.instances = instances;
            state.forget(now.mono);
        }
        self.ended.extend(outcome.ended.iter().cloned());
        let over = self.ended.len().saturating_sub(self.options.ended);
        self.ended.drain(..over);
    }

    /// Takes over other rules; instances of rules that mean the same go on.
    ///
    /// What a rule means is its signal, its levels, `by`, `only_if` and `on_missing`. All other instances
    /// end, and receivers that know of them are told so.
    pub fn reload(&mut self, set: RuleSet, now: Moment) -> Outcome {
        let now = Now::of(now);
        let mut outcome = Outcome::default();
        let before = self.install(set);
        for mut old in before {
            let same = self.rules.iter_mut().find(|state| state.hash == old.hash);
            if let Some(state) = same {
                state.instances = std::mem::take(&mut old.instances);
                state.due = old.due;
                for instance in &mut state.instances {
                    instance.full = instance.labels.with(&state.rule.labels);
                    instance.matched = None;
                }
                continue;
            }
            for mut instance in std::mem::take(&mut old.instances) {
                instance.end(now, &old, EndReason::RuleChanged, &mut outcome);
                if std::mem::take(&mut instance.recorded) {
                    outcome.removed.push(instance.fingerprint);
                }
            }
        }
        // The record of a rule that came back with the same labels is written anew.
        let changed = |fingerprint: &Fingerprint| {
            !outcome.changed.iter().any(|record| record.fingerprint == *fingerprint)
        };
        outcome.removed.retain(changed);
        self.archive(&outcome);
        outcome
    }

    fn archive(&mut self, outcome: &Outcome) {
        self.ended.extend(outcome.ended.iter().cloned());
        let over = self.ended.len().saturating_sub(self.options.ended);
        self.ended.drain(..over);
    }

    /// Ends every alert and tells those who know of it; what is still bad fires anew.
    pub fn clear(&mut self, now: Moment) -> Outcome {
        let now = Now::of(now);
        let mut outcome = Outcome::default();
        for state in self.rules.iter_mut().chain([&mut self.overflow]) {
            let mut instances = std::mem::take(&mut state.instances);
            for instance in &mut instances {
                instance.end(now, state, EndReason::Cleared, &mut outcome);
                if instance.core.take_dirty() || instance.recorded {
                    instance.keep(now, state, true, &mut outcome);
                }
            }
            state.instances = instances;
            state.busy = true;
        }
        self.archive(&outcome);
        outcome
    }

    /// Goes on where the records of an earlier process stopped, before the first evaluation.
    ///
    /// `downtime` is how long no process ran; it counts into no `for` and no `keep_firing_for`. A record is
    /// gone on with if the rule means the same as then and the downtime is under an hour. Of the others
    /// those whose fire was told are resolved, so that nobody waits for their end for ever.
    pub fn restore(
        &mut self,
        records: Vec<InstanceRecord>,
        now: Moment,
        downtime: Duration,
    ) -> Outcome {
        let now = Now::of(now);
        let mut outcome = Outcome::default();
        for record in records {
            let known = |state: &&mut RuleState| {
                state.rule.id == record.rule
                    && state.hash == record.rule_hash
                    && state.instances.len() < state.rule.limit
            };
            let state = self.rules.iter_mut().chain([&mut self.overflow]).find(known);
            let fits = downtime < DOWNTIME_MAX
                && record.version == InstanceRecord::VERSION
                && record.fingerprint == Fingerprint::of(&record.rule, &record.labels);
            let Some(state) = state.filter(|_| fits) else {
                let too_long = downtime >= DOWNTIME_MAX;
                let reason = if too_long { EndReason::Downtime } else { EndReason::RuleChanged };
                self.abandon(now, &record, reason, &mut outcome);
                continue;
            };
            let rule = &state.rule;
            let mut instance = Instance::new(record.labels.clone(), rule, Inputs::default(), now);
            instance.core = Core::restore(&record, now, millis(downtime), rule);
            instance.value = record.value;
            instance.recorded = true;
            instance.listed = false;
            state.instances.retain(|other| other.fingerprint != instance.fingerprint);
            state.instances.push(instance);
        }
        self.archive(&outcome);
        outcome
    }

    /// Lets go of a record, and ends what receivers know of.
    fn abandon(&self, now: Now, record: &InstanceRecord, reason: EndReason, outcome: &mut Outcome) {
        outcome.removed.push(record.fingerprint);
        let rule = self.set.rules.iter().find(|rule| rule.id == record.rule);
        let labels = match rule {
            Some(rule) => record.labels.with(&rule.labels),
            None => record.labels.clone(),
        };
        let summary = format!("{} ended while nobody looked", record.rule);
        if let Some(starts_at_ms) = record.started_ms {
            outcome.ended.push(EndedAlert {
                fingerprint: record.fingerprint,
                rule: record.rule.clone(),
                labels: labels.clone(),
                severity: record.peak.or(record.level).unwrap_or_default(),
                starts_at_ms,
                ends_at_ms: now.unix_ms,
                active_ms: now.unix_ms.saturating_sub(starts_at_ms).max(0),
                value: record.value,
                summary: summary.clone(),
                reason,
            });
        }
        let Some(severity) = record.told else { return };
        let routes = self.set.routes();
        let handlers = match routes.get(&record.rule) {
            Some(handlers) => handlers.to_vec(),
            None => self.set.default_handlers.clone(),
        };
        let number = record.messages.saturating_add(1);
        outcome.events.push(AlertEvent {
            key: format!("{}-{}-{number}", record.fingerprint, now.unix_ms),
            kind: EventKind::Resolve,
            rule: record.rule.clone(),
            labels,
            severity,
            value: record.value,
            threshold: None,
            summary,
            description: String::new(),
            runbook: rule.map_or_else(String::new, |rule| rule.runbook.as_ref().to_owned()),
            starts_at_ms: record.told_since_ms.unwrap_or(record.written_ms),
            ends_at_ms: Some(now.unix_ms),
            at_ms: now.unix_ms,
            fingerprint: record.fingerprint,
            handlers,
            group: record.rule.clone(),
            recommend: Vec::new(),
        });
    }

    /// Takes back ended alerts of an earlier process, the oldest first.
    pub fn restore_ended(&mut self, ended: impl IntoIterator<Item = EndedAlert>) {
        for (at, alert) in ended.into_iter().enumerate() {
            self.ended.insert(at, alert);
        }
        let over = self.ended.len().saturating_sub(self.options.ended);
        self.ended.drain(..over);
    }

    /// Returns the records of all instances that have one, for a snapshot and at the end.
    #[must_use]
    pub fn records(&self, now: Moment) -> Vec<InstanceRecord> {
        let now = Now::of(now);
        let states = self.rules.iter().chain([&self.overflow]);
        let of = |state: &RuleState| -> Vec<_> {
            let kept = state.instances.iter();
            let kept = kept.filter(|instance| !instance.core.is_blank(now.mono, &state.rule));
            kept.map(|instance| instance.record(now, state)).collect()
        };
        states.flat_map(of).collect()
    }

    /// Returns everything that is pending, firing or recovering, the worst and then the longest first.
    #[must_use]
    pub fn alerts(&self, now: Moment) -> Vec<AlertView> {
        let now = Now::of(now);
        let mut views: Vec<AlertView> = self
            .rules
            .iter()
            .chain([&self.overflow])
            .flat_map(|state| state.instances.iter().map(move |instance| (state, instance)))
            .filter(|(_, instance)| instance.core.state() != AlertState::Ok)
            .map(|(state, instance)| instance.view(now, &state.rule))
            .collect();
        views.sort_by_key(|view| {
            let firing = view.starts_at_ms.is_none();
            (firing, std::cmp::Reverse(view.severity), view.since_ms, view.fingerprint)
        });
        views
    }

    /// Returns the instances of one rule, those that are well too.
    #[must_use]
    pub fn instances(&self, rule: &str, now: Moment) -> Vec<AlertView> {
        let now = Now::of(now);
        let states = self.rules.iter().chain([&self.overflow]);
        let state = states.filter(|state| &*state.rule.id == rule);
        state
            .flat_map(|state| state.instances.iter().map(|one| one.view(now, &state.rule)))
            .collect()
    }

    /// Returns the alerts that ended at or after a moment, the latest first.
    #[must_use]
    pub fn ended(&self, since_ms: i64) -> Vec<EndedAlert> {
        let recent = self.ended.iter().rev().filter(|alert| alert.ends_at_ms >= since_ms);
        recent.cloned().collect()
    }
}

#[cfg(test)]
mod tests;
