//! The rules that run from the first start, and whether a rule file is right.

use std::fmt;

use super::event::Severity;
use super::problem::RuleErrors;
use super::rule::RuleSet;

/// The text of the default rules, to be read and copied from.
pub const DEFAULT_RULES: &str = include_str!("default_rules.toml");

impl RuleSet {
    /// Returns the default rules: CPU, memory, latency, errors, cache hits, and the monitor itself.
    #[must_use]
    pub fn defaults() -> Self {
        Self::parse(DEFAULT_RULES, "default_rules.toml").expect("a test reads the same text")
    }
}

/// What a right rule file contains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckReport {
    /// Rules, and how many of them are switched off.
    pub rules: usize,
    /// Rules that are switched off.
    pub disabled: usize,
    /// Handlers that the file describes.
    pub handlers: usize,
    /// Inhibitions.
    pub inhibits: usize,
    /// Names of rules that also are names of default rules, which they replace.
    pub replaced: Vec<String>,
    /// Levels by severity.
    pub levels: [(Severity, usize); 4],
}

/// Checks a rule file without using it.
///
/// # Errors
///
/// Everything that is wrong with it, by line.
pub fn check(text: &str, file_name: &str) -> Result<CheckReport, RuleErrors> {
    let set = RuleSet::parse(text, file_name)?;
    let defaults = RuleSet::defaults();
    let replaced = set
        .rules()
        .iter()
        .filter(|rule| defaults.rules().iter().any(|default| default.id == rule.id));
    let levels = |severity| {
        let levels = set.rules().iter().flat_map(|rule| &rule.levels);
        levels.filter(|level| level.severity == severity).count()
    };
    Ok(CheckReport {
        rules: set.rules().len(),
        disabled: set.rules().iter().filter(|rule| !rule.enabled).count(),
        // The log and the dashboard are always there.
        handlers: set.handlers().len().saturating_sub(2),
        inhibits: set.inhibits().len(),
        replaced: replaced.map(|rule| rule.id.as_ref().to_owned()).collect(),
        levels: Severity::ALL.map(|severity| (severity, levels(severity))),
    })
}

impl fmt::Display for CheckReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rules, disabled, handlers, inhibits, replaced, levels } = self;
        write!(f, "{rules} rules ({disabled} switched off), {handlers} handlers, ")?;
        write!(f, "{inhibits} inhibitions; levels:")?;
        levels.iter().try_for_each(|(severity, count)| write!(f, " {count} {severity}"))?;
        match replaced.is_empty() {
            true => Ok(()),
            false => write!(f, "; in place of the default {}", replaced.join(", ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alert::test;

    /// Runs series over the default rules; the expected messages are `time kind rule severity`.
    #[track_caller]
    fn run(series: &[(&str, &str)], messages: &[&str]) {
        let mut text = "[[test]]\nname = 'a'\nstep = '10s'\n[test.series]\n".to_owned();
        for (name, samples) in series {
            text += &format!("'{name}' = '{samples}'\n");
        }
        for message in messages {
            let words: Vec<&str> = message.split(' ').collect();
            let [at, kind, rule, severity] = words[..] else { panic!("four words: {message}") };
            text += &format!(
                "[[test.message]]\nat = '{at}'\nkind = '{kind}'\nrule = '{rule}'\nseverity = '{severity}'\n"
            );
        }
        let report = test::run(&text, "tests.toml", &RuleSet::defaults()).expect("a test file");
        assert!(report.passed(), "{report}");
    }

    #[test]
    fn every_rule_that_clears_does_so_below_where_it_raises() {
        let set = RuleSet::defaults();
        assert_eq!(set.rules().len(), 10);
        for rule in set.rules() {
            assert!(!rule.summary.is_empty(), "{} says nothing", rule.id);
        }
    }

    #[test]
    fn cpu_above_80_percent_fires_after_two_minutes_and_clears_below_75() {
        // A minute's mean passes 80 % with the last of six samples.
        run(
            &[("system_cpu_usage_ratio", "0.1x30 0.9x30 0.78x30 0.1x20")],
            &["8m fire cpu_high warning", "15m30s resolve cpu_high warning"],
        );
    }

    #[test]
    fn memory_above_85_percent_fires_and_gets_critical_above_95() {
        run(
            &[("system_memory_usage_ratio", "0.5x30 0.90x30 0.99x30 0.5x30")],
            &[
                "8m fire memory_high warning",
                "12m50s escalate memory_high critical",
                "15m50s resolve memory_high critical",
            ],
        );
    }
}
