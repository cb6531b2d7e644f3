//! What rules say to the outside: messages, the records that outlive the process, and what a page shows.
//!
//! One *instance* is a rule with one set of labels, known by its [`Fingerprint`]. What happens to an instance
//! becomes [`AlertEvent`]s for people and [`InstanceRecord`]s for the journal. Both are plain data.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::series::Labels;

/// How bad it is, the least first.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Good to know.
    #[default]
    Info,
    /// Look at it in working hours.
    Warning,
    /// Users notice.
    Error,
    /// Somebody must act now.
    Critical,
}

impl Severity {
    /// All of them, the least first.
    pub const ALL: [Self; 4] = [Self::Info, Self::Warning, Self::Error, Self::Critical];

    /// Returns its word, as files and labels have it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
            Self::Critical => "critical",
        }
    }

    /// Returns the severity of a word.
    #[must_use]
    pub fn of(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|severity| severity.word() == word)
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// What tells an instance from all others, the same in every process: a hash of rule and labels.
///
/// It is FNV-1a over the name of the rule and the sorted labels, as Prometheus has it, written with 16
/// hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint(pub u64);

impl Fingerprint {
    /// Computes the fingerprint of a rule with labels.
    #[must_use]
    pub fn of(rule: &str, labels: &Labels) -> Self {
        let mut hash = Fnv::default();
        hash.text(rule);
        for (name, value) in labels.iter() {
            hash.text(name);
            hash.text(value);
        }
        Self(hash.0)
    }

    /// Reads what [`Display`](fmt::Display) wrote.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let hexadecimal = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        hexadecimal.then(|| u64::from_str_radix(text, 16).ok().map(Self)).flatten()
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl Serialize for Fingerprint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Fingerprint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text)
            .ok_or_else(|| serde::de::Error::custom("a fingerprint has 16 hexadecimal digits"))
    }
}

/// FNV-1a with 64 bits (Fowler, Noll, Vo), which is the same on every machine and in every version.
pub(crate) struct Fnv(pub(crate) u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    /// Adds bytes and a separator that no text contains.
    pub(crate) fn text(&mut self, text: &str) {
        for byte in text.bytes().chain([0xff]) {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

/// Why a message is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// It began.
    Fire,
    /// It got worse.
    Escalate,
    /// It got better, and goes on.
    DeEscalate,
    /// It ended.
    Resolve,
    /// It still goes on.
    Repeat,
    /// It comes and goes; it counts as going on until it was quiet for a while.
    Flapping,
}

impl EventKind {
    /// Returns its word, as it is serialized.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Fire => "fire",
            Self::Escalate => "escalate",
            Self::DeEscalate => "de_escalate",
            Self::Resolve => "resolve",
            Self::Repeat => "repeat",
            Self::Flapping => "flapping",
        }
    }
}

/// A message about one instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AlertEvent {
    /// Unique for each message; a receiver that saw it already passes it over.
    pub key: String,
    /// Why it is sent.
    pub kind: EventKind,
    /// The rule.
    pub rule: Arc<str>,
    /// Labels of the instance and of the rule.
    pub labels: Labels,
    /// The level it has; of a resolve that which it had last.
    pub severity: Severity,
    /// The value that was compared, nothing if there is none.
    pub value: Option<f64>,
    /// What it was compared with, nothing if there is none.
    pub threshold: Option<f64>,
    /// One line for people.
    pub summary: String,
    /// More about it, may be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// Where it is written what to do, may be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub runbook: String,
    /// When it fired, in milliseconds since 1970.
    pub starts_at_ms: i64,
    /// When it ended, in milliseconds since 1970; nothing while it goes on.
    pub ends_at_ms: Option<i64>,
    /// When this message was made, in milliseconds since 1970.
    pub at_ms: i64,
    /// The instance.
    pub fingerprint: Fingerprint,
    /// The handlers that get it, by their ids.
    pub handlers: Vec<Arc<str>>,
    /// What belongs together: the rule, as one problem often strikes several label sets.
    pub group: Arc<str>,
    /// The recommendations that help.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub recommend: Vec<Arc<str>>,
}

/// What is remembered of one instance over a restart.
///
/// Times are by the wall clock. The durations between them are those of the monotonic clock, as they are
/// written backwards from the moment of writing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InstanceRecord {
    /// The version of this form: [`InstanceRecord::VERSION`].
    pub version: u32,
    /// The instance.
    pub fingerprint: Fingerprint,
    /// The rule.
    pub rule: Arc<str>,
    /// The rule as it was; an instance comes back only under the same.
    pub rule_hash: Fingerprint,
    /// Labels of the instance, without those of the rule.
    pub labels: Labels,
    /// The levels whose condition is met or was reached.
    pub levels: Vec<LevelRecord>,
    /// The level that is shown, nothing if none.
    pub level: Option<Severity>,
    /// When it fired; nothing if it does not.
    pub started_ms: Option<i64>,
    /// The worst level since it fired.
    pub peak: Option<Severity>,
    /// The level that receivers know of; nothing if they think all is well.
    pub told: Option<Severity>,
    /// When the fire that receivers know of began; survives until its resolve is sent.
    pub told_since_ms: Option<i64>,
    /// When the last message was made and at which level.
    pub last_message: Option<(i64, Severity)>,
    /// Messages so far; a part of their keys.
    pub messages: u64,
    /// When it changed, for the flap hold.
    pub changes_ms: Vec<i64>,
    /// The level that it is held at while it flaps.
    pub flapping: Option<Severity>,
    /// Until when messages wait, and by how much the waiting has grown.
    pub notify_hold: Option<(i64, f64)>,
    /// Who took note of it.
    pub acknowledged: Option<Acknowledgement>,
    /// The last value.
    pub value: Option<f64>,
    /// When this was written.
    pub written_ms: i64,
}

impl InstanceRecord {
    /// The version that this code writes and reads.
    pub const VERSION: u32 = 1;
}

/// One level of one instance.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LevelRecord {
    /// The level.
    pub severity: Severity,
    /// Since when its condition is met.
    pub since_ms: i64,
    /// Whether it was met for long enough.
    pub reached: bool,
    /// Since when the condition is no longer met, if it was reached.
    pub clear_since_ms: Option<i64>,
}

/// Who took note of an alert, and until it gets worse than it was then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acknowledgement {
    /// Who.
    pub by: String,
    /// Why, may be empty.
    pub comment: String,
    /// When, in milliseconds since 1970.
    pub at_ms: i64,
    /// The level it had; messages about a higher one are sent again.
    pub level: Severity,
}

/// An alert that is over.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EndedAlert {
    /// The instance.
    pub fingerprint: Fingerprint,
    /// The rule.
    pub rule: Arc<str>,
    /// Labels of the instance and of the rule.
    pub labels: Labels,
    /// The worst level it had.
    pub severity: Severity,
    /// When it fired, in milliseconds since 1970.
    pub starts_at_ms: i64,
    /// When it ended, in milliseconds since 1970.
    pub ends_at_ms: i64,
    /// How long it went on, in milliseconds of the monotonic clock.
    pub active_ms: i64,
    /// The last value.
    pub value: Option<f64>,
    /// What its last message said.
    pub summary: String,
    /// Why it ended.
    pub reason: EndReason,
}

/// Why an alert ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    /// Its condition was no longer met.
    Resolved,
    /// Somebody cleared it.
    Cleared,
    /// Its rule was changed, switched off or removed.
    RuleChanged,
    /// Its series are no more, or had no sample for a day.
    SeriesGone,
    /// No process ran for too long to go on with it.
    Downtime,
}

/// What an evaluation changed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outcome {
    /// The records that are new or other than before; each replaces the one of its fingerprint.
    pub changed: Vec<InstanceRecord>,
    /// The instances that need no record any more.
    pub removed: Vec<Fingerprint>,
    /// The messages, to be sent after the records are kept.
    pub events: Vec<AlertEvent>,
    /// The alerts that ended.
    pub ended: Vec<EndedAlert>,
}

impl Outcome {
    /// Whether nothing changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changed.is_empty()
            && self.removed.is_empty()
            && self.events.is_empty()
            && self.ended.is_empty()
    }
}

/// What an instance does at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AlertState {
    /// The condition is not met.
    Ok,
    /// The condition is met, not yet for long enough.
    Pending,
    /// The condition was met for long enough.
    Firing,
    /// The condition is no longer met, not yet for long enough.
    Recovering,
}

/// An instance as a page shows it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AlertView {
    /// The instance.
    pub fingerprint: Fingerprint,
    /// The rule.
    pub rule: Arc<str>,
    /// Labels of the instance and of the rule.
    pub labels: Labels,
    /// What it does.
    pub state: AlertState,
    /// The level it has, or is about to get.
    pub severity: Severity,
    /// Since when it is in this state, in milliseconds since 1970.
    pub since_ms: i64,
    /// When it fired, in milliseconds since 1970.
    pub starts_at_ms: Option<i64>,
    /// How long it fires already, in milliseconds of the monotonic clock.
    pub active_ms: i64,
    /// The last value.
    pub value: Option<f64>,
    /// What it is compared with.
    pub threshold: Option<f64>,
    /// One line for people.
    pub summary: String,
    /// Where it is written what to do, may be empty.
    pub runbook: Arc<str>,
    /// The recommendations that help.
    pub recommend: Vec<Arc<str>>,
    /// The silences that keep its messages back.
    pub silenced_by: Vec<u64>,
    /// Whether another alert keeps its messages back.
    pub inhibited: bool,
    /// Who took note of it.
    pub acknowledged: Option<Acknowledgement>,
    /// Whether it comes and goes.
    pub flapping: bool,
    /// Whether there are no samples.
    pub no_data: bool,
    /// Whether its baseline is not complete.
    pub learning: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn severities_are_ordered_and_named() {
        assert!(Severity::ALL.is_sorted());
        for severity in Severity::ALL {
            assert_eq!(Severity::of(severity.word()), Some(severity));
            let json = serde_json::to_string(&severity).expect("a word");
            assert_eq!(json, format!("\"{severity}\""));
        }
        assert_eq!(Severity::of("fatal"), None);
    }

    #[test]
    fn a_fingerprint_stays_the_same_and_tells_labels_apart() {
        let labels = Labels::new([("cache", "users")]);
        let known = Fingerprint::of("cache_hit_low", &labels);
        // Written into journals: another value here loses the state of every alert at an update.
        assert_eq!(known.to_string(), "ff0951e2e4c504d1");
        assert_eq!(Fingerprint::parse(&known.to_string()), Some(known));
        assert_ne!(Fingerprint::of("cache_hit_low", &Labels::default()), known);
        let (joined, apart) = (Labels::new([("a", "bc")]), Labels::new([("ab", "c")]));
        assert_ne!(Fingerprint::of("r", &joined), Fingerprint::of("r", &apart));
        assert_eq!(Fingerprint::parse("+123456789abcdef"), None);
    }
}
