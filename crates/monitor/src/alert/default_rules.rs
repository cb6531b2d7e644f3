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
        run_every("10s", series, messages);
    }

    #[track_caller]
    fn run_every(step: &str, series: &[(&str, &str)], messages: &[&str]) {
        let mut text = format!("[[test]]\nname = 'a'\nstep = '{step}'\n[test.series]\n");
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

    #[test]
    fn a_p95_above_2_seconds_fires_while_there_are_requests() {
        let latency = "http_request_duration_seconds{route=\"/\"}";
        run(&[(latency, "0.1x40 3x40 0.1x60")], &[]);
        // Made-up samples are values, so their growth stands for traffic.
        run(
            &[(latency, "0.1x40 3+2x40 0.1x60")],
            &["11m10s fire latency_high error", "13m40s resolve latency_high error"],
        );
    }

    #[test]
    fn errors_above_5_percent_fire_and_get_critical_above_25() {
        let (good, bad) =
            ("http_requests_total{status=\"200\"}", "http_requests_total{status=\"503\"}");
        run(
            &[(good, "0+100x300"), (bad, "0x59 10+10x59 650+50x59 3600x119")],
            &[
                "14m30s fire error_ratio_high error",
                "24m40s escalate error_ratio_high critical",
                "32m20s de_escalate error_ratio_high error",
                "34m30s resolve error_ratio_high error",
            ],
        );
    }

    #[test]
    fn cache_hits_below_70_percent_fire_for_that_cache() {
        let of = |cache: &str, result: &str| {
            format!("cache_requests_total{{cache=\"{cache}\",result=\"{result}\"}}")
        };
        run(
            &[
                (&of("users", "hit"), "0+90x60 5400+50x60 8400+90x90"),
                (&of("users", "miss"), "0+10x60 600+50x60 3600+10x90"),
                (&of("plans", "hit"), "0+90x210"),
                (&of("plans", "miss"), "0+10x210"),
            ],
            &[
                "14m40s fire cache_hit_ratio_low warning",
                "23m20s resolve cache_hit_ratio_low warning",
            ],
        );
    }

    #[test]
    fn memory_that_grows_towards_its_limit_is_told_before() {
        // Flat for six hours, then 1000 bytes grow by 36 an hour: 1800 are 22 hours away when the trend is clear.
        run_every(
            "1m",
            &[
                ("process_resident_memory_bytes", "1000x360 1000+0.6x240"),
                ("process_memory_limit_bytes", "2000x600"),
            ],
            &["9h56m fire memory_will_run_out warning"],
        );
    }

    #[test]
    fn the_monitor_tells_of_its_own_troubles() {
        run(
            &[("monitor_series_overflow_total", "0x30 5x120")],
            &[
                "5m10s fire monitor_series_overflow warning",
                "25m resolve monitor_series_overflow warning",
            ],
        );
        run(
            &[("monitor_history_degraded", "0x10 1x10 0x10")],
            &[
                "1m50s fire monitor_history_degraded error",
                "3m40s resolve monitor_history_degraded error",
            ],
        );
        run(
            &[("monitor_alerts_dead_total", "0x30 2x120")],
            &["5m10s fire monitor_alerts_dead error", "15m resolve monitor_alerts_dead error"],
        );
        run(
            &[("monitor_ticks_late_total", "0x30 5+5x30 155x60")],
            &["8m10s fire monitor_ticks_late warning", "14m30s resolve monitor_ticks_late warning"],
        );
    }

    #[test]
    fn a_check_counts_what_is_there_and_what_it_replaces() {
        let text = "[[rule]]\nid = 'cpu_high'\nmetric = 'm'\nlevel.info = '> 1'\nenabled = false\n";
        let report = check(text, "a.toml").expect("a right file").to_string();
        assert_eq!(
            report,
            "1 rules (1 switched off), 0 handlers, 0 inhibitions; levels: 1 info 0 warning 0 error \
             0 critical; in place of the default cpu_high"
        );
        assert!(check("[[rule]]", "a.toml").is_err());
        assert_eq!(check(DEFAULT_RULES, "d.toml").map(|report| report.replaced.len()), Ok(10));
    }
}
