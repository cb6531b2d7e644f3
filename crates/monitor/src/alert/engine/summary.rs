//! Alerts in numbers.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use crate::clock::Moment;

use super::super::event::{AlertState, AlertView, Severity};
use super::Engine;

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

impl Engine {
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
