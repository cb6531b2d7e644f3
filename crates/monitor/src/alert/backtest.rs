//! When rules would have fired: the same engine over samples of the past.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::{Moment, millis};
use crate::source::Source;

use super::engine::{Engine, EngineOptions};
use super::event::{AlertView, EndedAlert, EventKind};
use super::expression::duration_text;
use super::replay::{STEPS_MAX, replay};
use super::rule::{Rule, RuleSet};

/// Alerts of one replay that are remembered.
const ENDED_MAX: usize = 100_000;

/// Why a replay is not possible.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BacktestError {
    /// It would begin after its end, or step nowhere.
    #[error("a replay goes from an earlier moment to a later one, in steps of at least a second")]
    Window,
    /// It would take too many steps.
    #[error("a replay has at most {STEPS_MAX} steps; choose longer ones")]
    TooLong,
}

/// What rules would have done.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct BacktestReport {
    /// Each rule by its name.
    pub rules: BTreeMap<Arc<str>, RuleBacktest>,
    /// The beginning, in milliseconds since 1970.
    pub since_ms: i64,
    /// The end, in milliseconds since 1970.
    pub until_ms: i64,
}

/// What one rule would have done.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RuleBacktest {
    /// Alerts that fired and ended, in the order of their ends.
    pub ended: Vec<EndedAlert>,
    /// Alerts that still fired at the end.
    pub active: Vec<AlertView>,
    /// Messages that would have been sent.
    pub messages: u64,
    /// Messages without cooldown and flap hold.
    pub messages_without_cooldown: u64,
    /// Times that it was said to be flapping.
    pub flapping: u64,
}

/// Evaluates rules over the past, as if it were now: what would have fired, and how much would have been said.
///
/// A source answers for any window, so the history of a running process can be asked. Rules with a long
/// window know from the first step on what the source has from before `since_ms`.
///
/// # Errors
///
/// If the stretch of time is none, or is too long for the steps.
///
/// # Cost
///
/// Two evaluations of all rules for each step.
pub fn backtest(
    rules: &RuleSet,
    source: &dyn Source,
    since_ms: i64,
    until_ms: i64,
    step: Duration,
) -> Result<BacktestReport, BacktestError> {
    let step_ms = millis(step);
    if since_ms >= until_ms || step_ms < 1_000 {
        return Err(BacktestError::Window);
    }
    if until_ms.saturating_sub(since_ms) / step_ms > STEPS_MAX {
        return Err(BacktestError::TooLong);
    }
    let mut report = BacktestReport { since_ms, until_ms, ..BacktestReport::default() };
    for rule in rules.rules().iter().filter(|rule| rule.enabled) {
        report.rules.insert(rule.id.clone(), RuleBacktest::default());
    }
    let options = EngineOptions { ended: ENDED_MAX, ..EngineOptions::default() };
    let mut engine = Engine::new(rules.clone(), options);
    let mut last = Moment { monotonic: Duration::ZERO, unix_ms: since_ms };
    replay(&mut engine, source, since_ms, until_ms, step_ms, |now, outcome| {
        last = now;
        for event in outcome.events {
            let rule = report.rules.entry(event.rule).or_default();
            rule.messages += 1;
            rule.flapping += u64::from(event.kind == EventKind::Flapping);
        }
    });
    for ended in engine.ended(i64::MIN).into_iter().rev() {
        report.rules.entry(ended.rule.clone()).or_default().ended.push(ended);
    }
    for view in engine.alerts(last).into_iter().filter(|view| view.starts_at_ms.is_some()) {
        report.rules.entry(view.rule.clone()).or_default().active.push(view);
    }
    let mut bare = Engine::new(without_cooldown(rules), EngineOptions::default());
    replay(&mut bare, source, since_ms, until_ms, step_ms, |_, outcome| {
        for event in outcome.events {
            report.rules.entry(event.rule).or_default().messages_without_cooldown += 1;
        }
    });
    Ok(report)
}

/// Returns the rules as they would be without anything that keeps messages back.
fn without_cooldown(rules: &RuleSet) -> RuleSet {
    let mut bare = rules.clone();
    for rule in &mut bare.rules {
        let rule = Arc::make_mut(rule);
        *rule = Rule { cooldown: Duration::ZERO, flap: None, ..rule.clone() };
    }
    bare
}

impl fmt::Display for BacktestReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let since = |at_ms: i64| {
            let millis = u64::try_from(at_ms.saturating_sub(self.since_ms)).unwrap_or(0);
            duration_text(Duration::from_millis(millis))
        };
        for (id, rule) in &self.rules {
            let alerts = rule.ended.len() + rule.active.len();
            let (messages, bare) = (rule.messages, rule.messages_without_cooldown);
            writeln!(
                f,
                "{id}: {alerts} alerts, {messages} messages ({bare} without cooldown and flap hold)"
            )?;
            for alert in &rule.ended {
                let (from, to) = (since(alert.starts_at_ms), since(alert.ends_at_ms));
                writeln!(f, "  +{from} to +{to} {}{}", alert.severity, alert.labels)?;
            }
            for alert in &rule.active {
                let from = since(alert.starts_at_ms.unwrap_or(alert.since_ms));
                writeln!(f, "  +{from} and on {}{}", alert.severity, alert.labels)?;
            }
        }
        write!(f, "{} rules", self.rules.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alert::MadeUp;

    #[test]
    fn a_replay_shows_when_and_how_much() {
        let text = "[[rule]]\nid = 'long'\nmetric = 'depth'\nlevel.warning = '> 10'\nflap = false\n\
                    [[rule]]\nid = 'quiet'\nmetric = 'depth'\nlevel.warning = '> 1000'\n";
        let rules = RuleSet::parse(text, "alerts.toml").expect("rules");
        let mut source = MadeUp::new().step_ms(10_000);
        // Ten times up and down within ten minutes, and up at the end.
        let samples = (0..=60).map(|at| (at * 10_000, if at % 6 < 3 { 20.0 } else { 0.0 }));
        source.gauge("depth", &[], samples);
        let report =
            backtest(&rules, &source, 0, 600_000, Duration::from_secs(10)).expect("a report");
        let long = &report.rules["long"];
        assert_eq!((long.ended.len(), long.active.len()), (10, 1));
        assert_eq!((long.ended[1].starts_at_ms, long.ended[1].ends_at_ms), (60_000, 90_000));
        // Fire and resolve, then the next only after five minutes.
        assert_eq!((long.messages, long.messages_without_cooldown), (4, 21));
        assert_eq!(report.rules["quiet"], RuleBacktest::default());
        let text = report.to_string();
        assert!(text.contains("long: 11 alerts, 4 messages (21 without"), "{text}");
        assert!(text.contains("  +10m and on warning"), "{text}");
    }

    #[test]
    fn a_stretch_of_time_that_is_none_is_refused() {
        let rules = RuleSet::default();
        let run = |since, until, step| {
            backtest(&rules, &MadeUp::new(), since, until, Duration::from_millis(step)).map(|_| ())
        };
        assert_eq!(run(5, 5, 1_000), Err(BacktestError::Window));
        assert_eq!(run(0, 5, 10), Err(BacktestError::Window));
        assert_eq!(run(0, i64::MAX, 1_000), Err(BacktestError::TooLong));
    }
}
