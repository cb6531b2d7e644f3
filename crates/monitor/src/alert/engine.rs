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

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::anomaly::Detector;
use crate::clock::{Moment, millis};
use crate::selector::{Matcher, Selector};
use crate::series::{Labels, SeriesId};
use crate::source::{Aggregate, Matched, Source};

use super::event::{
    AlertEvent, AlertState, AlertView, EndReason, EndedAlert, EventKind, Fingerprint,
    InstanceRecord, Outcome, Severity,
};
use super::expression::Query;
use super::instance::{Core, Ended, Judged, Message, Now, Verdict};
use super::plan::{Found, Inputs, Plan, Reads};
use super::rule::{Inhibit, Level, OnMissing, Rule, RuleSet, Signal};
use super::silence::{Kept, Silence, SilenceError};
use super::template::{Template, Values};

/// The rule that fires for a rule with more label sets than its limit.
pub const OVERFLOW_RULE: &str = "alert_instance_limit";

/// Records of a process that was down for longer are not gone on with.
const DOWNTIME_MAX: Duration = Duration::from_secs(3_600);

/// How long an alert outlives its series, at least.
const GONE_AFTER_MS: i64 = 15 * 60_000;

/// A difference of the two clocks above which the wall clock has stepped.
const STEP_MIN_MS: i64 = 2_000;

/// Detectors that are taught from the past in one evaluation, as that reads a week.
const TAUGHT_AT_ONCE: usize = 1;

/// Characters of an author, a comment and whoever takes note of something.
const WORDS_MAX: usize = 1_000;

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

/// A rule with its instances.
#[derive(Debug)]
struct RuleState {
    rule: Arc<Rule>,
    hash: Fingerprint,
    plan: Plan,
    handlers: Arc<[Arc<str>]>,
    due: i64,
    generation: Option<u64>,
    instances: Vec<Instance>,
    /// Label sets that found no place, and all there are.
    over: usize,
    groups: usize,
    /// Whether some instance has something to say or to write.
    busy: bool,
}

/// One rule with one set of labels.
#[derive(Debug)]
struct Instance {
    labels: Labels,
    /// With those of the rule.
    full: Labels,
    fingerprint: Fingerprint,
    inputs: Inputs,
    /// Whether the source has its series.
    listed: bool,
    core: Core,
    detector: Option<Box<Detector>>,
    value: Option<f64>,
    thresholds: [f64; 4],
    missing_since: Option<i64>,
    no_data: bool,
    learning: bool,
    /// Labels with the name and the level of the alert, for matchers.
    matched: Option<(Severity, Labels)>,
    silenced_by: Vec<u64>,
    inhibited: bool,
    /// Whether somebody keeps a record of it.
    recorded: bool,
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
            // Several small steps add up.
            let earlier = self.stepped.map_or(0, |(_, size)| size);
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

impl RuleState {
    fn new(rule: Arc<Rule>, handlers: Arc<[Arc<str>]>) -> Self {
        Self {
            hash: rule.hash(),
            plan: Plan::new(&rule),
            rule,
            handlers,
            due: i64::MIN,
            generation: None,
            instances: Vec::new(),
            over: 0,
            groups: 0,
            busy: true,
        }
    }

    /// Whether it is time; a tick that comes a little early counts.
    fn is_due(&self, now: i64) -> bool {
        let tolerance = (millis(self.rule.every) / 10).min(100);
        self.due <= now.saturating_add(tolerance)
    }

    fn evaluate(
        &mut self,
        now: Now,
        reads: Reads<'_>,
        torn: bool,
        teach: &mut usize,
        ended: &mut Vec<EndedAlert>,
    ) {
        let every = millis(self.rule.every).max(1);
        let next = self.due.saturating_add(every);
        self.due = if next > now.mono { next } else { now.mono.saturating_add(every) };
        let generation = reads.source.generation();
        if self.generation != Some(generation) {
            self.generation = Some(generation);
            self.regroup(reads.source, now);
        }
        if torn {
            for instance in &mut self.instances {
                instance.missing_since = None;
            }
            return;
        }
        self.busy = true;
        for instance in &mut self.instances {
            let over = instance.evaluate(now, &self.rule, &self.plan, reads, teach);
            if let Some((over, reason)) = over {
                ended.push(instance.ended(now, &self.rule, over, reason));
            }
        }
    }

    /// Finds the series anew and makes instances for label sets that had none.
    fn regroup(&mut self, source: &dyn Source, now: Now) {
        let mut groups: BTreeMap<Labels, Vec<SeriesId>> = BTreeMap::new();
        for series in source.matching(&self.plan.selectors[0]) {
            groups.entry(series.key.labels.only(&self.rule.by)).or_default().push(series.id);
        }
        if groups.is_empty() && self.rule.on_missing == OnMissing::Alert {
            groups.insert(Labels::default(), Vec::new());
        }
        self.groups = groups.len();
        let others: Vec<Vec<Matched>> =
            self.plan.selectors[1..].iter().map(|selector| source.matching(selector)).collect();
        for instance in &mut self.instances {
            let group = groups.remove(&instance.labels);
            instance.listed = group.is_some();
            let group = group.unwrap_or_default();
            instance.inputs = Plan::inputs(group, &others, &instance.labels);
        }
        let room = self.rule.limit.saturating_sub(self.instances.len());
        self.over = groups.len().saturating_sub(room);
        for (labels, group) in groups.into_iter().take(room) {
            let inputs = Plan::inputs(group, &others, &labels);
            self.instances.push(Instance::new(labels, &self.rule, inputs, now));
        }
    }

    /// Forgets instances that stand for no series and have nothing left to say.
    fn forget(&mut self, now: i64) {
        let rule = &self.rule;
        self.instances.retain(|instance| instance.listed || !instance.core.is_blank(now, rule));
        if self.over > 0 && self.instances.len() < self.rule.limit {
            self.generation = None;
        }
    }
}

impl Instance {
    fn new(labels: Labels, rule: &Rule, inputs: Inputs, now: Now) -> Self {
        Self {
            full: labels.with(&rule.labels),
            fingerprint: Fingerprint::of(&rule.id, &labels),
            labels,
            inputs,
            listed: true,
            core: Core::new(now),
            detector: None,
            value: None,
            thresholds: [f64::NAN; 4],
            missing_since: None,
            no_data: false,
            learning: false,
            matched: None,
            silenced_by: Vec::new(),
            inhibited: false,
            recorded: false,
        }
    }

    fn evaluate(
        &mut self,
        now: Now,
        rule: &Rule,
        plan: &Plan,
        reads: Reads<'_>,
        teach: &mut usize,
    ) -> Option<(Ended, EndReason)> {
        if let (Signal::Anomaly { options, .. }, None) = (&rule.signal, &self.detector)
            && self.listed
        {
            if *teach == 0 {
                return None;
            }
            *teach -= 1;
            let mut detector = Detector::new(*options);
            Plan::teach(rule, &self.inputs, &mut detector, reads);
            self.detector = Some(Box::new(detector));
        }
        let found = match self.inputs.is_empty() {
            true => Found::Missing,
            false => plan.find(rule, &self.inputs, self.detector.as_deref_mut(), reads),
        };
        if found == Found::Missing {
            return self.missing(now, rule, plan);
        }
        (self.missing_since, self.no_data) = (None, false);
        let value = match found {
            Found::Idle(value) | Found::Value(value) | Found::Met { value, .. } => value,
            Found::Missing => f64::NAN,
        };
        self.value = Some(value).filter(|value| value.is_finite());
        self.learning = matches!(found, Found::Met { learning: true, .. });
        let (judged, count, thresholds) = plan.judge(found, rule, &self.inputs, reads);
        self.thresholds = thresholds;
        let ended = self.core.observe(now, &judged[..count], rule)?;
        Some((ended, EndReason::Resolved))
    }

    /// Goes on without samples: after two windows that is a state of its own.
    fn missing(&mut self, now: Now, rule: &Rule, plan: &Plan) -> Option<(Ended, EndReason)> {
        let since = *self.missing_since.get_or_insert(now.mono);
        let missing_for = now.mono.saturating_sub(since);
        let two_windows = millis(rule.signal.window()).saturating_mul(2);
        self.no_data = missing_for >= two_windows;
        let gone = missing_for >= two_windows.max(GONE_AFTER_MS)
            // It stood for the lack of any series, and now there are some.
            || (self.labels.is_empty() && !rule.by.is_empty());
        if !self.listed && gone && (rule.on_missing != OnMissing::Alert || !rule.by.is_empty()) {
            return Some((self.core.reset(now, rule)?, EndReason::SeriesGone));
        }
        if !self.no_data {
            return Some((self.core.observe(now, &[], rule)?, EndReason::Resolved));
        }
        let ended = match rule.on_missing {
            OnMissing::Keep => self.core.drop_pending(now, rule),
            policy => {
                if policy == OnMissing::Alert {
                    self.value = None;
                }
                let (judged, count) = plan.judge_missing(policy == OnMissing::Alert);
                self.core.observe(now, &judged[..count], rule)
            }
        };
        Some((ended?, EndReason::Resolved))
    }

    fn ended(&self, now: Now, rule: &Rule, ended: Ended, reason: EndReason) -> EndedAlert {
        EndedAlert {
            fingerprint: self.fingerprint,
            rule: rule.id.clone(),
            labels: self.full.clone(),
            severity: ended.peak,
            starts_at_ms: ended.starts_at_ms,
            ends_at_ms: now.unix_ms,
            active_ms: ended.active_ms,
            value: self.value,
            summary: self.render(
                &rule.summary,
                rule,
                ended.peak,
                ended.starts_at_ms,
                ended.active_ms,
            ),
            reason,
        }
    }

    fn threshold(&self, severity: Severity) -> Option<f64> {
        let own = self.thresholds[severity as usize];
        let any = || self.thresholds.into_iter().find(|threshold| !threshold.is_nan());
        if own.is_nan() { any() } else { Some(own) }
    }

    fn render(
        &self,
        template: &Template,
        rule: &Rule,
        severity: Severity,
        starts_at_ms: i64,
        active_ms: i64,
    ) -> String {
        template.render(&Values {
            value: self.value,
            threshold: self.threshold(severity),
            active_ms,
            starts_at_ms,
            severity,
            rule: &rule.id,
            labels: &self.full,
        })
    }

    /// How long it fires, or since when the state lasts if it does not.
    fn active_ms(&self, now: i64) -> i64 {
        let since = self.core.started().map_or(self.core.state_since(), |(mono, _)| mono);
        now.saturating_sub(since)
    }

    fn event(&self, now: Now, state: &RuleState, message: Message) -> AlertEvent {
        let rule = &state.rule;
        let Message { kind, severity, starts_at_ms, number } = message;
        let ends_at_ms = (kind == EventKind::Resolve).then(|| match self.core.state() {
            AlertState::Ok => now.wall(self.core.state_since()).max(starts_at_ms),
            _ => now.unix_ms,
        });
        let active_ms = match kind {
            EventKind::Resolve => ends_at_ms.unwrap_or(now.unix_ms).saturating_sub(starts_at_ms),
            _ => self.active_ms(now.mono),
        };
        let render =
            |template| self.render(template, rule, severity, starts_at_ms, active_ms.max(0));
        AlertEvent {
            key: format!("{}-{}-{number}", self.fingerprint, now.unix_ms),
            kind,
            rule: rule.id.clone(),
            labels: self.full.clone(),
            severity,
            value: self.value,
            threshold: self.threshold(severity),
            summary: render(&rule.summary),
            description: render(&rule.description),
            runbook: rule.runbook.as_ref().to_owned(),
            starts_at_ms,
            ends_at_ms,
            at_ms: now.unix_ms,
            fingerprint: self.fingerprint,
            handlers: state.handlers.to_vec(),
            group: rule.id.clone(),
            recommend: rule.recommend.clone(),
        }
    }

    fn view(&self, now: Now, rule: &Rule) -> AlertView {
        let severity = self.core.shown();
        let starts_at_ms = self.core.started().map(|(_, wall)| wall);
        let active_ms = self.core.started().map_or(0, |(mono, _)| now.mono.saturating_sub(mono));
        let starts = starts_at_ms.unwrap_or(now.unix_ms);
        AlertView {
            fingerprint: self.fingerprint,
            rule: rule.id.clone(),
            labels: self.full.clone(),
            state: self.core.state(),
            severity,
            since_ms: now.wall(self.core.state_since()),
            starts_at_ms,
            active_ms,
            value: self.value,
            threshold: self.threshold(severity),
            summary: self.render(&rule.summary, rule, severity, starts, active_ms),
            runbook: rule.runbook.clone(),
            recommend: rule.recommend.clone(),
            silenced_by: self.silenced_by.clone(),
            inhibited: self.inhibited,
            acknowledged: self.core.acknowledged().cloned(),
            flapping: self.core.is_flapping(),
            no_data: self.no_data,
            learning: self.learning,
        }
    }

    /// Returns the labels that matchers see.
    fn matched(&mut self, rule: &Rule) {
        let severity = self.core.shown();
        if self.matched.as_ref().is_none_or(|(known, _)| *known != severity) {
            let more =
                [("alertname", &*rule.id), ("rule", &*rule.id), ("severity", severity.word())];
            self.matched = Some((severity, self.full.with(&Labels::new(more))));
        }
    }

    fn match_labels(&self) -> &Labels {
        self.matched.as_ref().map_or(&self.full, |(_, labels)| labels)
    }
}

/// The rule behind [`OVERFLOW_RULE`], whose instances the engine makes itself.
fn overflow_rule() -> Rule {
    let query = Query {
        selector: Selector::name(OVERFLOW_RULE),
        aggregate: Aggregate::Last,
        window: Duration::from_secs(60),
    };
    let summary = "rule {{labels.rule}} has {{value}} label sets, and room for {{threshold}}";
    let mut rule = Rule::new(OVERFLOW_RULE, Signal::Metric(query)).level(Level {
        severity: Severity::Warning,
        raise: None,
        clear: None,
        hold: Duration::ZERO,
    });
    rule.by = vec!["rule".into()];
    rule.summary = Template::parse(summary).expect("a constant text that a test renders");
    rule
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

    /// Finds out whose messages are kept back.
    fn hush(&mut self, now: i64) {
        let matchers = !self.silences.is_empty() || !self.set.inhibits.is_empty();
        let live: Vec<(usize, usize)> = self
            .rules
            .iter()
            .enumerate()
            .filter(|(_, state)| state.busy)
            .flat_map(|(rule, state)| {
                let instances = state.instances.iter().enumerate();
                let live = instances.filter(|(_, instance)| {
                    instance.core.is_live()
                        || !instance.silenced_by.is_empty()
                        || instance.inhibited
                });
                live.map(move |(instance, _)| (rule, instance))
            })
            .collect();
        let of_overflow = 0..self.overflow.instances.len();
        for &(rule, instance) in &live {
            let state = &mut self.rules[rule];
            if matchers {
                state.instances[instance].matched(&state.rule);
            }
        }
        for instance in &mut self.overflow.instances {
            instance.matched(&self.overflow.rule);
        }
        let firing: Vec<(&Arc<Rule>, &Instance)> = self
            .rules
            .iter()
            .flat_map(|state| state.instances.iter().map(move |one| (&state.rule, one)))
            .filter(|(_, instance)| instance.core.level().is_some())
            .filter(|(rule, _)| matchers || self.inhibitors.contains(&rule.id))
            .collect();
        let inhibitions: Vec<Inhibition<'_>> =
            self.set.inhibits.iter().map(|inhibit| Inhibition::new(inhibit, &firing)).collect();
        let silenced = |instance: &Instance| {
            let labels = instance.match_labels();
            let active = self.silences.iter().filter(|kept| kept.is_active(now));
            let ours = active.filter(|kept| kept.silence.matches(labels));
            ours.map(|kept| kept.silence.id).collect::<Vec<u64>>()
        };
        let inhibited = |rule: &Rule, instance: &Instance| {
            inhibitions.iter().any(|inhibition| inhibition.strikes(instance.match_labels()))
                || !rule.inhibited_by.is_empty()
                    && firing.iter().any(|(source, other)| {
                        rule.inhibited_by.contains(&source.id)
                            && source.id != rule.id
                            && agree(&other.labels, &instance.labels)
                    })
        };
        let found: Vec<(Vec<u64>, bool)> = live
            .iter()
            .map(|&(rule, instance)| {
                let state = &self.rules[rule];
                let instance = &state.instances[instance];
                (silenced(instance), inhibited(&state.rule, instance))
            })
            .collect();
        let overflowing: Vec<Vec<u64>> =
            of_overflow.map(|at| silenced(&self.overflow.instances[at])).collect();
        for (&(rule, instance), (silenced_by, inhibited)) in live.iter().zip(found) {
            let instance = &mut self.rules[rule].instances[instance];
            (instance.silenced_by, instance.inhibited) = (silenced_by, inhibited);
        }
        for (instance, silenced_by) in self.overflow.instances.iter_mut().zip(overflowing) {
            instance.silenced_by = silenced_by;
        }
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
                self.abandon(now, &record, &mut outcome);
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
    fn abandon(&self, now: Now, record: &InstanceRecord, outcome: &mut Outcome) {
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
                reason: EndReason::RuleChanged,
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

    /// Notes that somebody saw an alert: nothing more is said until it gets worse or ends.
    ///
    /// # Errors
    ///
    /// If no alert of this fingerprint fires, or the texts are too long.
    pub fn acknowledge(
        &mut self,
        fingerprint: Fingerprint,
        by: &str,
        comment: &str,
        now: Moment,
    ) -> Result<Outcome, AcknowledgeError> {
        if by.is_empty() || by.len().max(comment.len()) > WORDS_MAX {
            return Err(AcknowledgeError::Words);
        }
        self.change(fingerprint, now, |core, now| core.acknowledge(by, comment, now.unix_ms))
    }

    /// Takes an acknowledgement back.
    ///
    /// # Errors
    ///
    /// If there is none.
    pub fn unacknowledge(
        &mut self,
        fingerprint: Fingerprint,
        now: Moment,
    ) -> Result<Outcome, AcknowledgeError> {
        self.change(fingerprint, now, |core, _| core.unacknowledge())
    }

    fn change(
        &mut self,
        fingerprint: Fingerprint,
        now: Moment,
        change: impl FnOnce(&mut Core, Now) -> bool,
    ) -> Result<Outcome, AcknowledgeError> {
        let now = Now::of(now);
        let mut outcome = Outcome::default();
        let mut states = self.rules.iter_mut().chain([&mut self.overflow]);
        let found = states.find_map(|state| {
            let mut instances = state.instances.iter();
            let at = instances.position(|instance| instance.fingerprint == fingerprint)?;
            Some((state, at))
        });
        let (state, at) = found.ok_or(AcknowledgeError::NoSuchAlert)?;
        if !change(&mut state.instances[at].core, now) {
            return Err(AcknowledgeError::NoSuchAlert);
        }
        state.busy = true;
        let instance = &mut state.instances[at];
        instance.core.take_dirty();
        instance.recorded = true;
        outcome.changed.push(state.instances[at].record(now, state));
        Ok(outcome)
    }

    /// Adds a silence and returns it with its number.
    ///
    /// # Errors
    ///
    /// Why it is not taken.
    pub fn silence(&mut self, silence: Silence, now: Moment) -> Result<Silence, SilenceError> {
        let id = self.last_silence + 1;
        let silence = Silence { id, ..silence };
        self.keep_silence(&silence, Now::of(now))?;
        Ok(silence)
    }

    fn keep_silence(&mut self, silence: &Silence, now: Now) -> Result<(), SilenceError> {
        if silence.matchers.is_empty() {
            return Err(SilenceError::NoMatchers);
        }
        let words = silence.author.len().max(silence.comment.len());
        if silence.author.is_empty() || words > WORDS_MAX {
            return Err(SilenceError::Author);
        }
        let left = silence.ends_at_ms.saturating_sub(now.unix_ms);
        if left <= 0 || silence.ends_at_ms <= silence.starts_at_ms {
            return Err(SilenceError::Over);
        }
        self.silences.retain(|kept| kept.ends > now.mono);
        if self.silences.len() >= self.options.silences {
            return Err(SilenceError::TooMany(self.options.silences));
        }
        let until_start = silence.starts_at_ms.saturating_sub(now.unix_ms).max(0);
        let kept = Kept {
            silence: silence.clone(),
            starts: now.mono.saturating_add(until_start),
            ends: now.mono.saturating_add(left),
        };
        self.silences.push(kept);
        self.last_silence = self.last_silence.max(silence.id);
        for state in &mut self.rules {
            state.busy = true;
        }
        Ok(())
    }

    /// Ends a silence and returns it, if it is there.
    pub fn unsilence(&mut self, id: u64) -> Option<Silence> {
        let at = self.silences.iter().position(|kept| kept.silence.id == id)?;
        Some(self.silences.remove(at).silence)
    }

    /// Returns the silences that are not over, in the order of their numbers.
    #[must_use]
    pub fn silences(&self) -> Vec<Silence> {
        self.silences.iter().map(|kept| kept.silence.clone()).collect()
    }

    /// Takes back the silences of an earlier process, without those that are over.
    pub fn restore_silences(&mut self, silences: impl IntoIterator<Item = Silence>, now: Moment) {
        for silence in silences {
            self.last_silence = self.last_silence.max(silence.id);
            let known = self.silences.iter().any(|kept| kept.silence.id == silence.id);
            if !known {
                // What is over or does not fit is let go.
                let _ = self.keep_silence(&silence, Now::of(now));
            }
        }
    }

    /// Counts what goes on and what went on.
    #[must_use]
    pub fn summary(&self, now: Moment) -> AlertSummary {
        let views = self.alerts(now);
        let mut summary = AlertSummary::default();
        let mut often: BTreeMap<Arc<str>, u64> = BTreeMap::new();
        for view in &views {
            match view.state {
                AlertState::Pending => summary.pending += 1,
                AlertState::Recovering => summary.recovering += 1,
                _ => summary.firing += 1,
            }
            if view.starts_at_ms.is_none() {
                continue;
            }
            *summary.by_severity.entry(view.severity).or_default() += 1;
            *summary.by_rule.entry(view.rule.clone()).or_default() += 1;
            *often.entry(view.rule.clone()).or_default() += 1;
            summary.silenced += u64::from(!view.silenced_by.is_empty());
            summary.inhibited += u64::from(view.inhibited);
            summary.acknowledged += u64::from(view.acknowledged.is_some());
            summary.flapping += u64::from(view.flapping);
            summary.no_data += u64::from(view.no_data);
        }
        for ended in &self.ended {
            *often.entry(ended.rule.clone()).or_default() += 1;
        }
        summary.ended = self.ended.len() as u64;
        let active = views.into_iter().filter(|view| view.starts_at_ms.is_some());
        summary.longest_active = active.max_by_key(|view| view.active_ms);
        let mut often: Vec<(Arc<str>, u64)> = often.into_iter().collect();
        often.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        often.truncate(10);
        summary.most_frequent = often;
        summary
    }
}

impl Instance {
    fn record(&self, now: Now, state: &RuleState) -> InstanceRecord {
        let (id, hash) = (&state.rule.id, state.hash);
        self.core.record(now, id, hash, self.fingerprint, &self.labels, self.value)
    }

    /// Hands out the record, or says that none is needed any more.
    fn keep(&mut self, now: Now, state: &RuleState, dirty: bool, outcome: &mut Outcome) {
        let blank = self.core.is_blank(now.mono, &state.rule);
        if blank && std::mem::take(&mut self.recorded) {
            outcome.removed.push(self.fingerprint);
        } else if dirty && !blank {
            self.recorded = true;
            outcome.changed.push(self.record(now, state));
        }
    }

    /// Ends the alert, whatever the samples say, and tells those who know of it.
    fn end(&mut self, now: Now, state: &RuleState, reason: EndReason, outcome: &mut Outcome) {
        if let Some(ended) = self.core.reset(now, &state.rule) {
            outcome.ended.push(self.ended(now, &state.rule, ended, reason));
        }
        if let Some(message) = self.core.message(now, &state.rule, true) {
            outcome.events.push(self.event(now, state, message));
        }
    }
}

/// An inhibition with the label values of the alerts that do it.
struct Inhibition<'a> {
    inhibit: &'a Inhibit,
    sources: HashSet<Vec<&'a str>>,
    /// Those that are no targets themselves: alerts that are both do not inhibit each other.
    pure_sources: HashSet<Vec<&'a str>>,
}

impl<'a> Inhibition<'a> {
    fn new(inhibit: &'a Inhibit, firing: &[(&'a Arc<Rule>, &'a Instance)]) -> Self {
        let mut sources = HashSet::new();
        let mut pure_sources = HashSet::new();
        for (_, instance) in firing {
            let labels = instance.match_labels();
            if all(&inhibit.source, labels) {
                let values = values(labels, &inhibit.equal);
                if !all(&inhibit.target, labels) {
                    pure_sources.insert(values.clone());
                }
                sources.insert(values);
            }
        }
        Self { inhibit, sources, pure_sources }
    }

    fn strikes(&self, labels: &Labels) -> bool {
        if self.sources.is_empty() || !all(&self.inhibit.target, labels) {
            return false;
        }
        let sources = match all(&self.inhibit.source, labels) {
            true => &self.pure_sources,
            false => &self.sources,
        };
        sources.contains(&values(labels, &self.inhibit.equal))
    }
}

fn all(matchers: &[Matcher], labels: &Labels) -> bool {
    matchers.iter().all(|matcher| matcher.matches(labels))
}

fn values<'a>(labels: &'a Labels, names: &[Arc<str>]) -> Vec<&'a str> {
    names.iter().map(|name| labels.get(name).unwrap_or_default()).collect()
}

/// Whether two sets of labels have the same values where both have the name.
fn agree(left: &Labels, right: &Labels) -> bool {
    left.iter().all(|(name, value)| right.get(name).is_none_or(|other| other == value))
}

/// Why an acknowledgement is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AcknowledgeError {
    /// Nothing of this fingerprint fires.
    #[error("no such alert fires")]
    NoSuchAlert,
    /// Nobody is named, or the texts are too long.
    #[error("an acknowledgement names who gives it, and has at most 1000 characters")]
    Words,
}

/// What goes on, in numbers.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct AlertSummary {
    /// Alerts that fire.
    pub firing: u64,
    /// Conditions that are met, not yet for long enough.
    pub pending: u64,
    /// Alerts that are about to end.
    pub recovering: u64,
    /// Firing and recovering ones by severity.
    pub by_severity: BTreeMap<Severity, u64>,
    /// Firing and recovering ones by rule.
    pub by_rule: BTreeMap<Arc<str>, u64>,
    /// Of these, silenced ones.
    pub silenced: u64,
    /// Of these, those that another alert keeps quiet.
    pub inhibited: u64,
    /// Of these, those somebody took note of.
    pub acknowledged: u64,
    /// Of these, those that come and go.
    pub flapping: u64,
    /// Of these, those without samples.
    pub no_data: u64,
    /// Ended alerts that are remembered.
    pub ended: u64,
    /// The alert that fires for the longest time.
    pub longest_active: Option<AlertView>,
    /// The ten rules with the most alerts, ended and active ones.
    pub most_frequent: Vec<(Arc<str>, u64)>,
}

#[cfg(test)]
mod tests;
