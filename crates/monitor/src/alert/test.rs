//! Tests of rules: made-up series, and the messages that they must lead to.
//!
//! A test file is TOML. Series are written in the notation of Prometheus' `promtool test rules`, see
//! [`expand`]; names that end in `_total`, `_count` or `_sum` are counters.
//!
//! ```toml
//! [[test]]
//! name = "a cold cache is told once"
//! step = "10s"                                   # time between samples, and between evaluations
//!
//! [test.series]
//! 'cache_hit_ratio{cache="users"}' = "0.9x30 0.5x60 0.9x60"
//!
//! [[test.message]]
//! at = "10m"
//! kind = "fire"                                  # fire, escalate, de_escalate, resolve, repeat, flapping
//! rule = "cache_hit_low"
//! severity = "warning"                           # these four may be left out
//! labels = { cache = "users" }
//! value = 0.5
//! summary = "users: hit ratio 50 %"
//! ```
//!
//! The messages of a test must be those that are expected, no fewer and no more.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use toml::de::DeValue;

use crate::clock::millis;
use crate::series::Labels;

use super::engine::{Engine, EngineOptions};
use super::event::{AlertEvent, EventKind, Severity};
use super::expression::{duration_text, quantity};
use super::file::{Reader, Table, labels, read_duration, text};
use super::made_up::{expand, source_of};
use super::problem::RuleErrors;
use super::replay::{STEPS_MAX, replay};
use super::rule::RuleSet;

/// What the tests of a file came to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TestReport {
    /// Each test in the order of the file.
    pub tests: Vec<TestResult>,
}

impl TestReport {
    /// Whether all messages of all tests were as expected.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.tests.iter().all(TestResult::passed)
    }
}

impl fmt::Display for TestReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for test in &self.tests {
            let word = if test.passed() { "ok" } else { "FAILED" };
            writeln!(f, "{word:6} {}", test.name)?;
            for failure in &test.failures {
                writeln!(f, "       {failure}")?;
            }
        }
        let failed = self.tests.iter().filter(|test| !test.passed()).count();
        write!(f, "{} tests, {failed} failed", self.tests.len())
    }
}

/// What one test came to.
#[derive(Debug, Clone, PartialEq)]
pub struct TestResult {
    /// Its name.
    pub name: String,
    /// What was not as expected.
    pub failures: Vec<String>,
    /// The messages that there were, with the time since the beginning.
    pub messages: Vec<(Duration, AlertEvent)>,
}

impl TestResult {
    /// Whether all messages were as expected.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.failures.is_empty()
    }
}

/// Runs the tests of a file over rules.
///
/// # Errors
///
/// Everything that is wrong with the file, by line. A test that fails is no error.
///
/// # Examples
///
/// ```
/// use monitor::alert::{RuleSet, test};
///
/// let rules = RuleSet::parse(
///     "[[rule]]\nid = 'long'\nmetric = 'queue_depth'\nlevel.warning = { raise = '> 10', for = '20s' }",
///     "alerts.toml",
/// )?;
/// let tests = r#"
///     [[test]]
///     name = "a long queue is told after 20 s"
///     step = "10s"
///     series.queue_depth = "0x5 25x5"
///
///     [[test.message]]
///     at = "1m20s"
///     kind = "fire"
///     rule = "long"
/// "#;
/// assert!(test::run(tests, "tests.toml", &rules)?.passed());
/// # Ok::<_, monitor::alert::RuleErrors>(())
/// ```
pub fn run(text: &str, file_name: &str, rules: &RuleSet) -> Result<TestReport, RuleErrors> {
    let mut reader = Reader::new(text, file_name);
    let tests = reader.root(|reader, root| {
        reader.only(root, &["test"]);
        let tables = reader.tables(root, "test");
        tables.iter().filter_map(|table| Test::read(reader, table)).collect::<Vec<_>>()
    })?;
    if !reader.problems.is_empty() {
        return Err(RuleErrors::new(reader.problems));
    }
    Ok(TestReport { tests: tests.iter().map(|test| test.run(rules)).collect() })
}

#[derive(Debug)]
struct Test {
    name: String,
    step_ms: i64,
    series: BTreeMap<String, Vec<Option<f64>>>,
    messages: Vec<Expected>,
}

#[derive(Debug)]
struct Expected {
    at: Duration,
    kind: EventKind,
    rule: String,
    severity: Option<Severity>,
    labels: Option<Labels>,
    value: Option<f64>,
    summary: Option<String>,
}

const KINDS: [EventKind; 6] = [
    EventKind::Fire,
    EventKind::Escalate,
    EventKind::DeEscalate,
    EventKind::Resolve,
    EventKind::Repeat,
    EventKind::Flapping,
];

impl Test {
    fn read(reader: &mut Reader<'_>, table: &Table<'_, '_>) -> Option<Self> {
        reader.only(table, &["name", "step", "series", "message"]);
        let name = reader.needed(table, "name", "expected a name", text);
        let step = reader.field(table, "step", |value| match read_duration(value)? {
            step if step >= Duration::from_secs(1) => Ok(step),
            _ => Err("expected at least 1s".to_owned()),
        });
        let step = step.unwrap_or(Duration::from_secs(10));
        let series = reader.needed(table, "series", "expected a table of series", |value| {
            let table = value.as_table().ok_or("expected a table of series")?;
            let of = |(name, value): (&toml::Spanned<_>, &toml::Spanned<DeValue<'_>>)| {
                let name: &std::borrow::Cow<'_, str> = name.get_ref();
                Ok((name.to_string(), expand(&text(value.get_ref())?)?))
            };
            let series = table.iter().map(of).collect::<Result<BTreeMap<_, _>, String>>()?;
            source_of(&series, millis(step))?;
            Ok(series)
        });
        let messages = reader.tables(table, "message");
        let messages: Vec<_> =
            messages.iter().filter_map(|table| Expected::read(reader, table)).collect();
        Some(Self { name: name?, step_ms: millis(step), series: series?, messages })
    }

    fn run(&self, rules: &RuleSet) -> TestResult {
        let mut result =
            TestResult { name: self.name.clone(), failures: Vec::new(), messages: Vec::new() };
        let source = source_of(&self.series, self.step_ms).expect("read when the file was");
        let samples = self.series.values().map(Vec::len).max().unwrap_or(0);
        let steps = i64::try_from(samples).unwrap_or(i64::MAX).saturating_sub(1).max(0);
        let last = self.messages.iter().map(|message| millis(message.at)).max().unwrap_or(0);
        let end_ms = last.max(steps.saturating_mul(self.step_ms));
        if end_ms / self.step_ms > STEPS_MAX {
            result.failures.push(format!("expected at most {STEPS_MAX} steps"));
            return result;
        }
        let mut engine = Engine::new(rules.clone(), EngineOptions::default());
        replay(&mut engine, &source, 0, end_ms, self.step_ms, |now, outcome| {
            result.messages.extend(outcome.events.into_iter().map(|event| (now.monotonic, event)));
        });
        let mut surplus: Vec<&(Duration, AlertEvent)> = result.messages.iter().collect();
        for expected in &self.messages {
            match surplus.iter().position(|(at, event)| expected.matches(*at, event)) {
                Some(at) => _ = surplus.remove(at),
                None => result.failures.push(format!("expected {expected}, did not come")),
            }
        }
        let surplus = surplus.into_iter().map(|(at, event)| {
            let at = duration_text(*at);
            let (kind, labels) = (event.kind.word(), &event.labels);
            let (severity, summary) = (event.severity, &event.summary);
            format!("not expected: {at} {kind} {}{labels} {severity} {summary:?}", event.rule)
        });
        result.failures.extend(surplus);
        result
    }
}

impl Expected {
    fn read(reader: &mut Reader<'_>, table: &Table<'_, '_>) -> Option<Self> {
        let keys = ["at", "kind", "rule", "severity", "labels", "value", "summary"];
        reader.only(table, &keys);
        let at = reader.needed(table, "at", "expected the time since the beginning", read_duration);
        let kinds = KINDS.map(EventKind::word).join(", ");
        let kind = reader.needed(table, "kind", "expected the kind of the message", |value| {
            let word = text(value)?;
            let kind = KINDS.into_iter().find(|kind| kind.word() == word);
            kind.ok_or_else(|| format!("expected one of {kinds}"))
        });
        let rule = reader.needed(table, "rule", "expected the name of a rule", text);
        let severity = reader.field(table, "severity", |value| {
            let severity = value.as_str().and_then(Severity::of);
            severity.ok_or_else(|| "expected info, warning, error or critical".to_owned())
        });
        let labels = reader.field(table, "labels", labels);
        let value = reader.field(table, "value", |value| match value {
            DeValue::Integer(number) => quantity(number.as_str()),
            DeValue::Float(number) => quantity(number.as_str()),
            other => quantity(&text(other)?),
        });
        let summary = reader.field(table, "summary", text);
        Some(Self { at: at?, kind: kind?, rule: rule?, severity, labels, value, summary })
    }

    fn matches(&self, at: Duration, event: &AlertEvent) -> bool {
        let close = |wanted: f64| {
            let value = event.value.unwrap_or(f64::NAN);
            (value - wanted).abs() <= 1e-6 * wanted.abs().max(1.0)
        };
        // Of the labels only those that are named must be equal.
        let named = |wanted: &Labels| {
            wanted.iter().all(|(name, value)| event.labels.get(name) == Some(value))
        };
        self.at == at
            && self.kind == event.kind
            && *self.rule == *event.rule
            && self.severity.is_none_or(|wanted| wanted == event.severity)
            && self.labels.as_ref().is_none_or(named)
            && self.value.is_none_or(close)
            && self.summary.as_ref().is_none_or(|wanted| *wanted == event.summary)
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", duration_text(self.at), self.kind.word(), self.rule)?;
        if let Some(labels) = &self.labels {
            write!(f, "{labels}")?;
        }
        if let Some(severity) = self.severity {
            write!(f, " {severity}")?;
        }
        if let Some(value) = self.value {
            write!(f, " value {value}")?;
        }
        match &self.summary {
            Some(summary) => write!(f, " {summary:?}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> RuleSet {
        let text = "[[rule]]\nid = 'long'\nmetric = 'depth'\nby = ['queue']\nlevel.warning = '> 10'\n\
                    summary = '{{value}} wait'";
        RuleSet::parse(text, "alerts.toml").expect("rules")
    }

    fn report(messages: &str) -> TestReport {
        let text = format!(
            "[[test]]\nname = 'a'\nstep = '10s'\nseries.'depth{{queue=\"a\"}}' = '0x1 20x1 0x1'\n{messages}"
        );
        run(&text, "tests.toml", &rules()).expect("a test file")
    }

    const FIRE: &str =
        "[[test.message]]\nat = '20s'\nkind = 'fire'\nrule = 'long'\nsummary = '20 wait'\n";
    const RESOLVE: &str = "[[test.message]]\nat = '40s'\nkind = 'resolve'\nrule = 'long'\n";

    #[test]
    fn the_messages_must_be_those_that_are_expected() {
        let passed = report(&format!("{FIRE}labels.queue = 'a'\nvalue = 20\n{RESOLVE}"));
        assert!(passed.passed(), "{passed}");
        assert_eq!(passed.to_string(), "ok     a\n1 tests, 0 failed");
        let surplus = report(FIRE).to_string();
        assert!(
            surplus.contains("not expected: 40s resolve long{queue=\"a\"} warning"),
            "{surplus}"
        );
        let missing = report(&format!("{FIRE}severity = 'error'\n{RESOLVE}")).to_string();
        assert!(
            missing.contains("expected 20s fire long error \"20 wait\", did not come"),
            "{missing}"
        );
    }

    #[test]
    fn a_file_that_cannot_be_read_says_everything_at_once() {
        let text =
            "[[test]]\nnam = 'a'\nseries.a = '0xx'\n[[test.message]]\nkind = 'fires'\nrule = 'r'\n";
        let problems = run(text, "tests.toml", &rules()).expect_err("a bad file").to_string();
        for expected in [
            "tests.toml:2:1: nam: unknown key, did you mean name?",
            "tests.toml:3:",
            "expected a value such as 5",
            "tests.toml:4:1: at = nothing",
            "expected one of fire, escalate",
        ] {
            assert!(problems.contains(expected), "{expected} in\n{problems}");
        }
    }
}
