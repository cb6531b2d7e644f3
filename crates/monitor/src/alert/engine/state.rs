//! A rule with its instances: grouping series, computing signals, and putting states into words.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::anomaly::Detector;
use crate::clock::millis;
use crate::selector::Selector;
use crate::series::{Labels, SeriesId};
use crate::source::{Aggregate, Matched, Source, Window};

use super::super::event::{
    AlertEvent, AlertState, AlertView, EndReason, EndedAlert, EventKind, Fingerprint,
    InstanceRecord, Outcome, Severity,
};
use super::super::expression::Query;
use super::super::instance::{Core, Ended, Message, Now};
use super::super::plan::{Found, Inputs, Plan, Reads};
use super::super::rule::{Level, OnMissing, Rule, Signal};
use super::super::template::{Template, Values};

/// The rule that fires for a rule with more label sets than its limit.
pub const OVERFLOW_RULE: &str = "alert_instance_limit";

/// How long an alert outlives its series, at least, and its last sample where the series is still known.
const GONE_AFTER_MS: i64 = 15 * 60_000;

const SILENT_AFTER_MS: i64 = 24 * 3_600_000;

/// A rule with its instances.
#[derive(Debug)]
pub(super) struct RuleState {
    pub(super) rule: Arc<Rule>,
    pub(super) hash: Fingerprint,
    pub(super) plan: Plan,
    pub(super) handlers: Arc<[Arc<str>]>,
    pub(super) due: i64,
    pub(super) generation: Option<u64>,
    pub(super) instances: Vec<Instance>,
    /// Label sets that found no place, and all there are.
    pub(super) over: usize,
    pub(super) groups: usize,
    /// Whether some instance has something to say or to write.
    pub(super) busy: bool,
}

/// One rule with one set of labels.
#[derive(Debug)]
pub(super) struct Instance {
    pub(super) labels: Labels,
    /// With those of the rule.
    pub(super) full: Labels,
    pub(super) fingerprint: Fingerprint,
    pub(super) inputs: Inputs,
    /// Whether the source has its series.
    pub(super) listed: bool,
    pub(super) core: Core,
    pub(super) detector: Option<Box<Detector>>,
    pub(super) value: Option<f64>,
    pub(super) thresholds: [f64; 4],
    pub(super) missing_since: Option<i64>,
    pub(super) no_data: bool,
    pub(super) learning: bool,
    /// Labels with the name and the level of the alert, for matchers.
    pub(super) matched: Option<(Severity, Labels)>,
    pub(super) silenced_by: Vec<u64>,
    pub(super) inhibited: bool,
    /// Whether somebody keeps a record of it.
    pub(super) recorded: bool,
}

impl RuleState {
    pub(super) fn new(rule: Arc<Rule>, handlers: Arc<[Arc<str>]>) -> Self {
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
    pub(super) fn is_due(&self, now: i64) -> bool {
        let tolerance = (millis(self.rule.every) / 10).min(100);
        self.due <= now.saturating_add(tolerance)
    }

    pub(super) fn evaluate(
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
            self.regroup(reads.source, reads.now_ms, now);
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
    pub(super) fn regroup(&mut self, source: &dyn Source, read_ms: i64, now: Now) {
        let mut groups: BTreeMap<Labels, Vec<SeriesId>> = BTreeMap::new();
        for series in source.matching(&self.plan.selectors[0]) {
            groups.entry(series.key.labels.only(&self.rule.by)).or_default().push(series.id);
        }
        // Without any series the lack itself has an instance, unless one that lost its series stands for it.
        let alone = self.instances.iter().all(|instance| instance.labels.is_empty());
        if groups.is_empty() && alone && self.rule.on_missing == OnMissing::Alert {
            groups.insert(Labels::default(), Vec::new());
        }
        let others: Vec<Vec<Matched>> =
            self.plan.selectors[1..].iter().map(|selector| source.matching(selector)).collect();
        for instance in &mut self.instances {
            let group = groups.remove(&instance.labels);
            instance.listed = group.is_some();
            let group = group.unwrap_or_default();
            instance.inputs = Plan::inputs(group, &others, &instance.labels);
        }
        let room = |instances: &Vec<Instance>| self.rule.limit.saturating_sub(instances.len());
        if groups.len() > room(&self.instances) {
            // A source lists series that have ended as well. They make way for those that go on.
            let window = self.rule.signal.window().max(Duration::from_secs(60));
            let window = Window::ending(read_ms, millis(window));
            groups.retain(|_, group| source.aggregate(group, window, Aggregate::Last).is_some());
            let rule = &self.rule;
            self.instances.retain(|one| !one.no_data || !one.core.is_blank(now.mono, rule));
        }
        let room = room(&self.instances);
        self.over = groups.len().saturating_sub(room);
        self.groups = self.instances.len() + groups.len();
        for (labels, group) in groups.into_iter().take(room) {
            let inputs = Plan::inputs(group, &others, &labels);
            self.instances.push(Instance::new(labels, &self.rule, inputs, now));
        }
    }

    /// Forgets instances that stand for no series and have nothing left to say.
    pub(super) fn forget(&mut self, now: i64) {
        let rule = &self.rule;
        self.instances.retain(|instance| instance.listed || !instance.core.is_blank(now, rule));
        if self.over > 0 && self.instances.len() < self.rule.limit {
            self.generation = None;
        }
    }
}

impl Instance {
    pub(super) fn new(labels: Labels, rule: &Rule, inputs: Inputs, now: Now) -> Self {
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

    pub(super) fn evaluate(
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
    pub(super) fn missing(
        &mut self,
        now: Now,
        rule: &Rule,
        plan: &Plan,
    ) -> Option<(Ended, EndReason)> {
        let since = *self.missing_since.get_or_insert(now.mono);
        let missing_for = now.mono.saturating_sub(since);
        let two_windows = millis(rule.signal.window()).saturating_mul(2);
        self.no_data = missing_for >= two_windows;
        // It may stand for the lack of any series, and now there are some.
        let stands_in = self.labels.is_empty() && !rule.by.is_empty();
        let patience = if self.listed { SILENT_AFTER_MS } else { GONE_AFTER_MS };
        let gone = missing_for >= two_windows.max(patience) && rule.on_missing != OnMissing::Alert;
        if gone || (stands_in && !self.listed) {
            let ended = self.core.reset(now, rule)?;
            return Some((ended, EndReason::SeriesGone));
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

    pub(super) fn ended(
        &self,
        now: Now,
        rule: &Rule,
        ended: Ended,
        reason: EndReason,
    ) -> EndedAlert {
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

    pub(super) fn threshold(&self, severity: Severity) -> Option<f64> {
        let own = self.thresholds[severity as usize];
        let any = || self.thresholds.into_iter().find(|threshold| !threshold.is_nan());
        if own.is_nan() { any() } else { Some(own) }
    }

    pub(super) fn render(
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
    pub(super) fn active_ms(&self, now: i64) -> i64 {
        let since = self.core.started().map_or(self.core.state_since(), |(mono, _)| mono);
        now.saturating_sub(since)
    }

    pub(super) fn event(&self, now: Now, state: &RuleState, message: Message) -> AlertEvent {
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

    pub(super) fn view(&self, now: Now, rule: &Rule) -> AlertView {
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
    pub(super) fn matched(&mut self, rule: &Rule) {
        let severity = self.core.shown();
        if self.matched.as_ref().is_none_or(|(known, _)| *known != severity) {
            let more =
                [("alertname", &*rule.id), ("rule", &*rule.id), ("severity", severity.word())];
            self.matched = Some((severity, self.full.with(&Labels::new(more))));
        }
    }

    pub(super) fn match_labels(&self) -> &Labels {
        self.matched.as_ref().map_or(&self.full, |(_, labels)| labels)
    }
}

impl Instance {
    pub(super) fn record(&self, now: Now, state: &RuleState) -> InstanceRecord {
        let (id, hash) = (&state.rule.id, state.hash);
        self.core.record(now, id, hash, self.fingerprint, &self.labels, self.value)
    }

    /// Hands out the record, or says that none is needed any more.
    pub(super) fn keep(&mut self, now: Now, state: &RuleState, dirty: bool, outcome: &mut Outcome) {
        let blank = self.core.is_blank(now.mono, &state.rule);
        if blank && std::mem::take(&mut self.recorded) {
            outcome.removed.push(self.fingerprint);
        } else if dirty && !blank {
            self.recorded = true;
            outcome.changed.push(self.record(now, state));
        }
    }

    /// Ends the alert, whatever the samples say, and tells those who know of it.
    pub(super) fn end(
        &mut self,
        now: Now,
        state: &RuleState,
        reason: EndReason,
        outcome: &mut Outcome,
    ) {
        if let Some(ended) = self.core.reset(now, &state.rule) {
            outcome.ended.push(self.ended(now, &state.rule, ended, reason));
        }
        if let Some(message) = self.core.message(now, &state.rule, true) {
            outcome.events.push(self.event(now, state, message));
        }
    }
}

/// The rule behind [`OVERFLOW_RULE`], whose instances the engine makes itself.
pub(super) fn overflow_rule() -> Rule {
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
