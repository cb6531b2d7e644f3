//! The monitor with the interval, bounds, rules and targets of the configuration.

use std::time::Duration;

use monitor::alert::{AlertingOptions, DEFAULT_RULES, RuleErrors, RuleSet};
use monitor::history::{HistoryOptions, TierOptions};
use monitor::score::{ScoreInputs, ScoreOptions, Targets};
use monitor::{Monitor, MonitorBuilder, RegistryOptions, Selector};

use crate::config::Config;

/// Why there is no monitor as the configuration wants it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MonitorError {
    /// The rules that come with the program do not go with the configuration.
    #[error("monitor.default_rules cannot be used")]
    Rules(#[from] RuleErrors),
    /// The monitor does not start.
    #[error(transparent)]
    Start(#[from] monitor::StartError),
}

impl Config {
    /// Describes a monitor as `monitor` says, with the targets of `targets`; nothing if it is switched off.
    ///
    /// # Errors
    ///
    /// If the rules that come with the program cannot be used.
    pub fn monitor_builder(&self) -> Result<Option<MonitorBuilder>, MonitorError> {
        let settings = &self.monitor;
        if !settings.enabled {
            return Ok(None);
        }
        let kept = &settings.history;
        let capacity = kept.capacity.as_u64();
        let tier = |seconds, keep, limit_bytes| TierOptions {
            step: Duration::from_secs(seconds),
            keep,
            limit_bytes,
        };
        let history = HistoryOptions {
            tiers: vec![
                tier(settings.interval.as_secs().max(1), kept.seconds, capacity / 2),
                tier(60, kept.minutes, capacity / 4),
                tier(3_600, kept.hours, capacity / 4),
            ],
            ..HistoryOptions::default()
        };
        let rules = match settings.default_rules {
            true => default_rules(settings.alert_threshold.as_f64())?,
            false => RuleSet::default(),
        };
        let alerting = AlertingOptions {
            rules,
            rule_files: settings.rules.iter().cloned().collect(),
            ..AlertingOptions::default()
        };
        let mut builder = Monitor::builder()
            .interval(settings.interval)
            .registry(RegistryOptions {
                series_per_name: settings.series,
                ..RegistryOptions::default()
            })
            .history(history)
            .alerting(alerting)
            .score(self.score_options());
        if let Some(directory) = kept.location() {
            builder = builder.directory(directory);
        }
        Ok(Some(builder))
    }

    /// What the score is made of: the metrics of the parts, and the targets.
    fn score_options(&self) -> ScoreOptions {
        let select = |text: &str| Selector::parse(text).expect("a selector that a test reads");
        let targets = &self.targets;
        ScoreOptions {
            targets: Targets {
                p95: targets.p95,
                hit_ratio: targets.hit_ratio.as_f64(),
                ..Targets::default()
            },
            inputs: ScoreInputs {
                loads: select("http_origin_calls_total"),
                executions: select(r#"scheduler_tasks_total{outcome=~"done|failed|timed_out"}"#),
                failed_executions: select(r#"scheduler_tasks_total{outcome="timed_out"}"#),
                ..ScoreInputs::default()
            },
            ..ScoreOptions::default()
        }
    }
}

/// The rules that come with the program, of which the one for the processor warns from `share` on.
fn default_rules(share: f64) -> Result<RuleSet, RuleErrors> {
    let (raise, clear) = (share * 100.0, (share * 100.0 - 5.0).max(1.0));
    let own = format!(r#"raise = "> {raise:.0}%", clear = "< {clear:.0}%""#);
    RuleSet::parse(&DEFAULT_RULES.replacen(CPU_LEVEL, &own, 1), "default_rules.toml")
}

/// The level of the rule about the processor, as the text of the rules has it.
const CPU_LEVEL: &str = r#"raise = "> 80%", clear = "< 75%""#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_interval_that_a_configuration_may_have_makes_a_history() {
        for interval in [1, 2, 3, 4, 5, 6, 10, 12, 15, 20, 30] {
            let config = crate::config::ConfigLoader::new()
                .set("monitor.interval", format!("{interval}s"), "the test")
                .set("monitor.history.enabled", "false", "the test")
                .load()
                .expect("a configuration");
            let builder = config.monitor_builder().expect("rules").expect("it is on");
            let monitor = builder.manual().collector(None).start();
            monitor.unwrap_or_else(|error| panic!("{interval} s: {error:?}"));
        }
    }

    #[test]
    fn the_threshold_of_the_processor_can_be_set() {
        assert!(DEFAULT_RULES.contains(CPU_LEVEL));
        let hash = |share| {
            let rules = default_rules(share).expect("rules");
            let rule = rules.rules().iter().find(|rule| &*rule.id == "cpu_high").cloned();
            rule.expect("the rule").hash()
        };
        assert_eq!(hash(0.8), hash(0.8));
        assert_ne!(hash(0.8), hash(0.6));
        for share in [0.1, 0.94] {
            hash(share);
        }
    }
}
