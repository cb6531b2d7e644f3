//! Advice over all parts: what their figures say should be set otherwise, and the way to set it.
//!
//! A rule is a plain function on a reading, a struct with what one cache, one lane or one balancer did in
//! the last minutes. So that it can be tested as a table, it sees neither the handle nor the history; what
//! it says comes with the metrics that it rests on, and those are read as its evidence. An action names a
//! key of the configuration that takes effect at once; where a build or a key does not allow that, the
//! finding is advice for people. Actions go the way of every change, [`UltraPerf::apply`] and
//! [`UltraPerf::undo`], by `advice`; they last until the process ends.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Duration;

use monitor::advice::{
    Action, Actuator, ActuatorError, AdviceContext, AdviceRule, AdvisorOptions, Expected, Finding,
    GuardOptions, Receipt, UndoError,
};
use monitor::insight::{Evidence, MetricSpec};
use monitor::score::{Score, ScoreMetric};
use monitor::{Aggregate, Comparison, Matcher, MonitorBuilder, Reading, Selector, Window};
use serde_json::Value;

use crate::config::{Config, Effect, Setting};
use crate::watch::Itself;
use crate::{Applied, ApplyError, UltraPerf, WeakUltraPerf};

#[cfg(feature = "loadbalancer")]
mod balancers;
#[cfg(feature = "cache")]
mod caches;
mod calls;
#[cfg(feature = "scheduler")]
mod lanes;
#[cfg(feature = "memory")]
mod memory;

/// By whom a change is, that advice has made.
pub(crate) const BY: &str = "advice";

/// Describes what looks for advice, as `advice` says, and changes settings where that is wanted.
pub(crate) fn into_monitor(
    config: &Config,
    builder: MonitorBuilder,
    itself: Itself,
) -> MonitorBuilder {
    let settings = &config.advice;
    if !settings.enabled {
        return builder.without_generic_advice();
    }
    let options = AdvisorOptions {
        every: settings.every,
        guard: GuardOptions { window: settings.window, ..GuardOptions::default() },
        ..AdvisorOptions::default()
    };
    let allowed = itself.clone();
    let builder = builder
        .advice(options)
        .actuator(itself.clone())
        .auto_apply(move || allowed.get().is_some_and(|perf| perf.config().advice.auto_apply));
    all(&itself).fold(builder, MonitorBuilder::advice_rule)
}

/// Returns the rules over the parts of a handle, for a monitor or an
/// [`Advisor`](monitor::advice::Advisor) of the program's own.
///
/// A handle with `advice.enabled` has them in its monitor already. They hold nothing alive.
#[must_use]
pub fn rules(perf: &UltraPerf) -> Vec<Box<dyn AdviceRule>> {
    let itself = Itself::default();
    itself.is(perf);
    all(&itself).map(|rule| Box::new(rule) as Box<dyn AdviceRule>).collect()
}

fn all(itself: &Itself) -> impl Iterator<Item = OverParts> {
    let itself = itself.clone();
    TABLES.iter().copied().flatten().map(move |rule| OverParts { rule, perf: itself.clone() })
}

const TABLES: &[&[Rule]] = &[
    #[cfg(feature = "cache")]
    caches::RULES,
    #[cfg(feature = "scheduler")]
    lanes::RULES,
    #[cfg(feature = "memory")]
    memory::RULES,
    #[cfg(feature = "loadbalancer")]
    balancers::RULES,
    calls::RULES,
];

/// A rule, as the page about advice shows it.
#[cfg_attr(not(test), allow(dead_code, reason = "a test makes the page of them"))]
struct Rule {
    id: &'static str,
    #[cfg_attr(not(test), expect(dead_code, reason = "for the page"))]
    sees: &'static str,
    #[cfg_attr(not(test), expect(dead_code, reason = "for the page"))]
    does: &'static str,
    /// The risk of its action; zero where it has none.
    #[cfg_attr(not(test), expect(dead_code, reason = "for the page"))]
    risk: u8,
    check: fn(&Look<'_>) -> Vec<Finding>,
}

struct OverParts {
    rule: &'static Rule,
    perf: Itself,
}

impl AdviceRule for OverParts {
    fn id(&self) -> &str {
        self.rule.id
    }

    fn check(&self, context: &AdviceContext<'_>) -> Vec<Finding> {
        let Some(perf) = self.perf.get() else { return Vec::new() };
        let config = perf.config();
        let look = Look {
            #[cfg(any(feature = "cache", feature = "scheduler", feature = "memory"))]
            perf: &perf,
            context: *context,
            config: &config,
        };
        let mut findings = (self.rule.check)(&look);
        findings.iter_mut().for_each(|finding| look.keep_what_is_live(finding));
        findings
    }
}

/// What a rule looks at and with.
struct Look<'a> {
    #[cfg(any(feature = "cache", feature = "scheduler", feature = "memory"))]
    perf: &'a UltraPerf,
    context: AdviceContext<'a>,
    config: &'a Config,
}

impl Look<'_> {
    fn aims(&self) -> Aims<'_> {
        Aims {
            hit_ratio: self.config.targets.hit_ratio.as_f64(),
            queue_wait: monitor::score::Targets::default().queue_wait,
            window: self.config.advice.window,
            score: self.context.score,
        }
    }

    fn window(&self) -> Window {
        let length = self.config.advice.window.as_millis();
        Window::ending(self.context.at_ms, i64::try_from(length).unwrap_or(i64::MAX))
    }

    /// The first and the second half of the window.
    fn halves(&self) -> [Window; 2] {
        let Window { from_ms, to_ms } = self.window();
        let middle = from_ms + (to_ms - from_ms) / 2;
        [Window { from_ms, to_ms: middle }, Window { from_ms: middle, to_ms }]
    }

    fn read_in(&self, window: Window, selector: &Selector, aggregate: Aggregate) -> Option<f64> {
        let found = self.context.source.matching(selector);
        let ids: Vec<_> = found.iter().map(|matched| matched.id).collect();
        let Reading { value, samples, expected } =
            self.context.source.aggregate(&ids, window, aggregate)?;
        // A program that has just started says little about itself.
        (samples.saturating_mul(2) >= expected).then_some(value)
    }

    fn read(&self, name: &str, labels: &[(&str, &str)], aggregate: Aggregate) -> Option<f64> {
        self.read_in(self.window(), &labelled(name, labels), aggregate)
    }

    /// By how much counters grew; zero if there are none.
    fn grown(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.grown_of(&labelled(name, labels))
    }

    fn grown_of(&self, selector: &Selector) -> f64 {
        self.read_in(self.window(), selector, Aggregate::Delta).unwrap_or(0.0)
    }

    /// The values that a label has among the series of a name.
    fn values_of(&self, name: &str, label: &str) -> Vec<String> {
        let found = self.context.source.matching(&Selector::name(name));
        let mut values: Vec<String> = found
            .iter()
            .filter_map(|matched| Some(matched.key.labels.get(label)?.to_owned()))
            .collect();
        values.dedup();
        values.sort();
        values.dedup();
        values
    }

    fn evidence(&self, metrics: &[MetricSpec]) -> Vec<Evidence> {
        let of = |spec: &MetricSpec| Evidence::of(self.context.source, spec, self.window());
        metrics.iter().map(of).collect()
    }

    /// Turns an action that would not take effect at once, or not at all, into advice for people.
    fn keep_what_is_live(&self, finding: &mut Finding) {
        let Some(Action { path, to, .. }) = &finding.action else { return };
        let setting = [Setting { path: path.clone(), value: to.clone() }];
        let differences =
            self.config.with(&setting, BY).map(|after| self.config.differences(&after));
        let reason = match differences {
            Ok(all) if all.is_empty() => " (it is so already, but the program has said otherwise)",
            Ok(all) if all.iter().all(|one| one.effect == Effect::Live) => return,
            Ok(_) => " (that needs a restart)",
            Err(_) => " (where the configuration allows it)",
        };
        finding.recommendation.push_str(reason);
        finding.action = None;
    }
}

/// What is aimed at.
struct Aims<'a> {
    hit_ratio: f64,
    queue_wait: Duration,
    /// Over how long the readings are.
    window: Duration,
    score: Option<&'a Score>,
}

impl Aims<'_> {
    /// What a change should bring, with the points that the score would gain.
    fn expected(
        &self,
        metric: &MetricSpec,
        from: f64,
        to: f64,
        scored: Option<(ScoreMetric, f64)>,
    ) -> Expected {
        let points = scored.and_then(|(metric, value)| self.score?.expected_points(metric, value));
        Expected { metric: metric.name.clone(), from, to, points }
    }

    fn now(&self, metric: ScoreMetric) -> Option<f64> {
        self.score?.metric(metric)?.value
    }
}

/// Selects the series of a name with these labels.
fn labelled(name: &str, labels: &[(&str, &str)]) -> Selector {
    let matcher = |(label, value): &(&str, &str)| {
        Matcher::new(*label, Comparison::Equal, *value).expect("a comparison without expression")
    };
    Selector { name: name.into(), matchers: labels.iter().map(matcher).collect() }
}

/// Changes settings through the handle, as long as there is one.
///
/// A change is named by its version, and is undone as that: what others have set since stays, and a key that
/// nobody had changed follows the level and the keys for all again.
impl Actuator for WeakUltraPerf {
    fn apply(&self, path: &str, value: &Value) -> Result<Receipt, ActuatorError> {
        set(&handle(self.upgrade())?, path, value)
    }

    fn undo(&self, receipt: &Receipt) -> Result<(), UndoError> {
        put_back(&handle(self.upgrade())?, receipt)
    }

    fn superseded(&self, receipt: &Receipt) -> Option<String> {
        overtaken(&self.upgrade()?, receipt)
    }
}

impl Actuator for Itself {
    fn apply(&self, path: &str, value: &Value) -> Result<Receipt, ActuatorError> {
        set(&handle(self.get())?, path, value)
    }

    fn undo(&self, receipt: &Receipt) -> Result<(), UndoError> {
        put_back(&handle(self.get())?, receipt)
    }

    fn superseded(&self, receipt: &Receipt) -> Option<String> {
        overtaken(&self.get()?, receipt)
    }
}

fn handle(perf: Option<UltraPerf>) -> Result<UltraPerf, ActuatorError> {
    perf.ok_or_else(|| ActuatorError("the handle is gone".to_owned()))
}

fn set(perf: &UltraPerf, path: &str, value: &Value) -> Result<Receipt, ActuatorError> {
    let setting = Setting::from((path, value.clone()));
    let (key, before) = (setting.key().to_owned(), perf.version());
    match catch_unwind(AssertUnwindSafe(|| perf.apply([setting], BY))) {
        Ok(Ok(applied)) => Ok(Receipt::new(applied.version)),
        Ok(Err(error)) => Err(ActuatorError(error.to_string())),
        Err(panic) => {
            // A listener's: the settings are changed before anybody is told, and nobody would watch this one.
            let is_made =
                |it: &Applied| it.version > before && it.by == BY && it.settings.contains_key(&key);
            if let Some(made) = perf.changes().into_iter().rev().find(is_made) {
                // The same listener may panic again, which says nothing new.
                let _ = catch_unwind(AssertUnwindSafe(|| perf.undo(made.version, BY).map(drop)));
            }
            resume_unwind(panic)
        }
    }
}

fn put_back(perf: &UltraPerf, receipt: &Receipt) -> Result<(), UndoError> {
    if let Some(reason) = overtaken(perf, receipt) {
        return Err(UndoError::Superseded(reason));
    }
    let version = receipt.change().as_u64().unwrap_or_default();
    match perf.undo(version, BY) {
        Ok(_) => Ok(()),
        Err(
            error @ (ApplyError::ChangedSince { .. }
            | ApplyError::UndoneAlready(_)
            | ApplyError::UnknownVersion(_)),
        ) => Err(UndoError::Superseded(error.to_string())),
        Err(error) => Err(ActuatorError(error.to_string()).into()),
    }
}

/// Says who has undone a change or set one of its keys since; nothing while it is in force as it was made.
fn overtaken(perf: &UltraPerf, receipt: &Receipt) -> Option<String> {
    let version = receipt.change().as_u64()?;
    let changes = perf.changes();
    let Some(ours) = changes.iter().find(|change| change.version == version) else {
        return Some(format!("version {version} is no longer remembered"));
    };
    ours.settings.keys().find_map(|key| {
        // Whose value the key has after each change, and whose it had before.
        let (mut whose, mut before) = (None, BTreeMap::new());
        let mut last = ours;
        for change in changes.iter().filter(|change| change.settings.contains_key(key)) {
            before.insert(change.version, whose);
            whose = match change.undoes {
                Some(undone) => before.get(&undone).copied().flatten(),
                None => Some(change.version),
            };
            last = change;
        }
        (whose != Some(version)).then(|| match last.undoes == Some(version) {
            true => format!("{} has undone it by version {}", last.by, last.version),
            false => format!("{} has set {key} since, by version {}", last.by, last.version),
        })
    })
}

#[cfg(test)]
mod tests;
