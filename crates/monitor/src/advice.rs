//! Recommendations: what to change, why, what it should bring, and whether it did.
//!
//! An [`AdviceRule`] looks at readings and returns [`Finding`]s. The [`Advisor`] makes recommendations of
//! them, with a state each:
//!
//! ```text
//!            found                  apply                   10 minutes later
//!   (none) ────────▶ open ────────────────────▶ applied ──┬──▶ verified      the target is better
//!                    │  ▲                                 ├──▶ no_effect     it is not
//!            dismiss │  │ found in 3 windows in a row     ├──▶ rolled_back   something is worse: undone
//!                    ▼  │                                 └──▶ lapsed        it is no longer in force
//!                 dismissed, verified, no_effect, rolled_back, lapsed
//! ```
//!
//! Applying is a change of configuration through an [`Actuator`], and is undone through it. Before a
//! change the advisor reads the metric it is for, the 95th percentile, the errors and the memory, and ten
//! minutes after it reads them again: what made one of them worse by more than a tenth is undone without
//! being asked. Of one subsystem, and of one setting, only one change is on probation at a time, so that an
//! effect has one cause. A recommendation that has ended opens again only if its evidence holds for three
//! windows.
//!
//! A change that is no longer in force as it was made has *lapsed*, and is neither judged nor undone: somebody
//! has undone it or set the same setting since, which counts more than advice, or the process that made it has
//! ended and its changes with it.
//!
//! Where it is [allowed](Advisor::auto_apply), a recommendation of little risk and enough confidence that was
//! found for three windows applies itself, within the same guard. What was undone, did nothing or was refused
//! does not do so again for a day.

use serde::{Deserialize, Deserializer, Serialize};

use crate::insight::{Evidence, MetricSpec};
use crate::score::Score;
use crate::source::Source;

mod advisor;
mod guard;
mod rules;
#[cfg(test)]
mod tests;
pub mod words;

pub use advisor::{
    Advisor, AdvisorOptions, AdvisorState, ApplyError, AuditEntry, AuditEvent, AutoApplyOptions,
    Change,
};
pub use guard::{GuardOptions, GuardReading};
pub use rules::{GenericOptions, generic_rules};

/// What a recommendation is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Category {
    /// Processors.
    Cpu,
    /// Memory.
    Memory,
    /// Disks and file systems.
    Disk,
    /// Connections and descriptors.
    Network,
    /// Times of requests.
    Latency,
    /// Requests that fail.
    Errors,
    /// Caches.
    Cache,
    /// Queues, pools and tasks.
    Scheduler,
    /// Backends and how requests are spread.
    Balancer,
    /// Databases.
    Database,
    /// The monitoring itself.
    Monitoring,
}

/// How soon something should be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// When there is time.
    Low,
    /// Soon.
    Medium,
    /// Today.
    High,
    /// Now.
    Critical,
}

/// How much work a recommendation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Effort {
    /// A setting.
    Low,
    /// A change of the deployment.
    Medium,
    /// A change of the program.
    High,
}

/// A change of one setting.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Action {
    /// What is done; `config.set`.
    pub kind: String,
    /// The setting, such as `cache.memory.capacity`.
    pub path: String,
    /// Its value before.
    pub from: serde_json::Value,
    /// Its value after.
    pub to: serde_json::Value,
}

impl Action {
    /// Sets a setting.
    #[must_use]
    pub fn set(
        path: impl Into<String>,
        from: impl Into<serde_json::Value>,
        to: impl Into<serde_json::Value>,
    ) -> Self {
        Self { kind: "config.set".to_owned(), path: path.into(), from: from.into(), to: to.into() }
    }

    /// Returns the action that undoes this one.
    #[must_use]
    pub fn inverse(&self) -> Self {
        Self { from: self.to.clone(), to: self.from.clone(), ..self.clone() }
    }
}

/// What a change should bring.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Expected {
    /// The metric.
    pub metric: String,
    /// Its value now.
    pub from: f64,
    /// Its value after the change.
    pub to: f64,
    /// The points that the score would gain, by scoring again with that value.
    pub points: Option<f64>,
}

/// What a rule found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// What it is about within the rule, such as the name of a cache; empty if there is only one.
    pub subject: String,
    /// What it is about.
    pub category: Category,
    /// How soon something should be done.
    pub priority: Priority,
    /// The state, with its numbers, in a sentence.
    pub title: String,
    /// What exactly to do.
    pub recommendation: String,
    /// Why that should help.
    pub why: String,
    /// The value that is off.
    pub current_value: Option<f64>,
    /// What it should be.
    pub target_value: Option<f64>,
    /// What the finding rests on.
    pub evidence: Vec<Evidence>,
    /// The change; `None` if people have to act.
    pub action: Option<Action>,
    /// What the change should bring.
    pub expected: Option<Expected>,
    /// The metric that tells whether the change helped.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "if_readable")]
    pub target: Option<MetricSpec>,
    /// Metrics that must not become worse by the change, beside those that are always watched.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "those_readable")]
    pub also: Vec<MetricSpec>,
    /// Bytes by which the change is known to make the process larger; that much is no reason to undo it.
    #[serde(default)]
    pub memory_bytes: u64,
    /// From 0 to 4, the highest over all that the change touches.
    pub risk: u8,
    /// How much work it is.
    pub effort: Effort,
    /// From 0 to 1.
    pub confidence: f64,
}

/// Reads a metric, or nothing: one that another version wrote does not take the whole state with it.
fn if_readable<'de, D: Deserializer<'de>>(reader: D) -> Result<Option<MetricSpec>, D::Error> {
    Ok(serde_json::from_value(serde_json::Value::deserialize(reader)?).ok())
}

fn those_readable<'de, D: Deserializer<'de>>(reader: D) -> Result<Vec<MetricSpec>, D::Error> {
    let metrics = Vec::<serde_json::Value>::deserialize(reader)?.into_iter();
    Ok(metrics.filter_map(|metric| serde_json::from_value(metric).ok()).collect())
}

impl Finding {
    /// Says what is the case and what to do, for people to act on; the fields are there to add the rest.
    #[must_use]
    pub fn advice(
        category: Category,
        priority: Priority,
        title: impl Into<String>,
        recommendation: impl Into<String>,
    ) -> Self {
        Self {
            subject: String::new(),
            category,
            priority,
            title: title.into(),
            recommendation: recommendation.into(),
            why: String::new(),
            current_value: None,
            target_value: None,
            evidence: Vec::new(),
            action: None,
            expected: None,
            target: None,
            also: Vec::new(),
            memory_bytes: 0,
            risk: 0,
            effort: Effort::Medium,
            confidence: 0.8,
        }
    }
}

/// What rules look at.
#[derive(Clone, Copy)]
pub struct AdviceContext<'a> {
    /// The samples.
    pub source: &'a dyn Source,
    /// This moment, in milliseconds since 1970.
    pub at_ms: i64,
    /// The score of this moment, for the points that a change should bring.
    pub score: Option<&'a Score>,
}

/// Looks at readings and says what should change.
///
/// A closure can be one: see [`Advisor::rule`].
pub trait AdviceRule: Send + Sync {
    /// Returns the name, such as `cache.undersized`; what is before the first point is the subsystem.
    fn id(&self) -> &str;

    /// Returns what there is to say; nothing if all is well or too little is known.
    fn check(&self, context: &AdviceContext<'_>) -> Vec<Finding>;
}

/// Changes settings, by the way that people change them.
///
/// An advisor calls it while nobody else can reach its recommendations, so it should not block for long. What
/// panics counts as refused.
pub trait Actuator: Send + Sync {
    /// Sets a setting to a value, after checking it, and returns what names the change.
    ///
    /// # Errors
    ///
    /// Why the value was refused; then nothing has changed.
    fn apply(&self, path: &str, value: &serde_json::Value) -> Result<Receipt, ActuatorError>;

    /// Puts back what a change replaced, if it is still in force as it was made.
    ///
    /// What others have set meanwhile is to stay: that is why this gets the change and not the former value.
    ///
    /// # Errors
    ///
    /// [`UndoError`]; then nothing has changed.
    fn undo(&self, receipt: &Receipt) -> Result<(), UndoError>;

    /// Says why a change is no longer in force as it was made, or `None` while it is.
    ///
    /// It is asked before the effect of the change is judged. Unless told otherwise, a change is in force.
    fn superseded(&self, receipt: &Receipt) -> Option<String> {
        let _ = receipt;
        None
    }
}

/// What names a change that an [`Actuator`] made; only that actuator reads it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Receipt {
    change: serde_json::Value,
    persistent: bool,
}

impl Receipt {
    /// Names a change that lasts until this process ends, such as by its number.
    #[must_use]
    pub fn new(change: impl Into<serde_json::Value>) -> Self {
        Self { change: change.into(), persistent: false }
    }

    /// Says that the change outlives the process, so that the next one goes on to watch it.
    #[must_use]
    pub fn persistent(mut self) -> Self {
        self.persistent = true;
        self
    }

    /// Returns what the change is named by.
    #[must_use]
    pub fn change(&self) -> &serde_json::Value {
        &self.change
    }

    /// Tells whether the change outlives the process.
    #[must_use]
    pub fn is_persistent(&self) -> bool {
        self.persistent
    }
}

/// A change that was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ActuatorError(pub String);

/// Why a change was not undone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UndoError {
    /// It is no longer in force as it was made; this says who undid it or changed the setting since.
    #[error("{0}")]
    Superseded(String),
    /// What it replaced is refused now.
    #[error(transparent)]
    Refused(#[from] ActuatorError),
}

/// Where a recommendation is in its life.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum State {
    /// It waits for somebody to act.
    Open,
    /// The change is made and on probation.
    Applied {
        /// Since when, in milliseconds since 1970.
        at_ms: i64,
        /// Who applied it.
        by: String,
        /// The guarded metrics before.
        before: Vec<GuardReading>,
        /// Why the change, which should be undone, is not.
        undo_refused: Option<String>,
    },
    /// The change helped.
    Verified {
        /// Since when.
        at_ms: i64,
        /// What changed, in words.
        reason: String,
    },
    /// The change did nothing; it can be undone.
    NoEffect {
        /// Since when.
        at_ms: i64,
        /// What did not change, in words.
        reason: String,
    },
    /// The change was undone.
    RolledBack {
        /// Since when.
        at_ms: i64,
        /// What became worse, or who undid it.
        reason: String,
    },
    /// The change is no longer in force as it was made, so it is neither judged nor undone.
    Lapsed {
        /// Since when this is known.
        at_ms: i64,
        /// Who undid it or changed the setting since, or that the process has ended.
        reason: String,
    },
    /// Somebody does not want it.
    Dismissed {
        /// Until when; `None` for good.
        until_ms: Option<i64>,
        /// Who.
        by: String,
        /// Why.
        reason: String,
    },
}

impl State {
    /// Returns the name, as it is serialized.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Applied { .. } => "applied",
            Self::Verified { .. } => "verified",
            Self::NoEffect { .. } => "no_effect",
            Self::RolledBack { .. } => "rolled_back",
            Self::Lapsed { .. } => "lapsed",
            Self::Dismissed { .. } => "dismissed",
        }
    }
}

/// A recommendation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recommendation {
    /// The rule and the subject: the same whenever the same is found.
    pub id: String,
    /// The rule.
    pub rule: String,
    /// What the rule found, of late.
    #[serde(flatten)]
    pub finding: Finding,
    /// What undoes the change.
    pub inverse: Option<Action>,
    /// Where it is in its life.
    #[serde(flatten)]
    pub state: State,
    /// When it opened, in milliseconds since 1970.
    pub opened_ms: i64,
    /// When its rule last found it.
    pub seen_ms: i64,
}

impl Recommendation {
    /// Returns the part of the rule's name before the first point: of one subsystem one change at a time.
    #[must_use]
    pub fn subsystem(&self) -> &str {
        subsystem(&self.rule)
    }
}

fn subsystem(rule: &str) -> &str {
    rule.split_once('.').map_or(rule, |(subsystem, _)| subsystem)
}
