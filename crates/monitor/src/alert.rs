//! Alerts: rules over samples, the states they go through, and the messages that come of it.
//!
//! Rules, their evaluation and everything around it are pure: time, samples and records are passed in, and
//! what is to be written and sent is handed out. [`Alerting`] runs them: it keeps a journal and tells
//! handlers.

mod backtest;
mod default_rules;
mod delivery;
mod engine;
mod event;
mod expression;
mod file;
mod handler;
mod instance;
mod journal;
mod made_up;
#[cfg(test)]
mod model_tests;
mod plan;
mod problem;
mod replay;
mod rule;
mod runtime;
mod silence;
mod template;
pub mod test;

pub use backtest::{BacktestError, BacktestReport, RuleBacktest, backtest};
pub use default_rules::{CheckReport, DEFAULT_RULES, check};
pub use delivery::{DeliveryOptions, HandlerKind, HandlerSpec, Secret, SecretSource};
pub use engine::{AcknowledgeError, AlertSummary, Engine, EngineOptions, OVERFLOW_RULE};
pub use event::{
    Acknowledgement, AlertEvent, AlertState, AlertView, EndReason, EndedAlert, EventKind,
    Fingerprint, InstanceRecord, LevelRecord, Outcome, Severity,
};
pub use expression::{Condition, Gate, Operand, Query, Relation};
pub use handler::{
    AlertHandler, CallbackHandler, ChannelHandler, HandlerError, HandlerProblem, Handling,
    JsonLinesHandler, LogHandler, Message, handler_of,
};
#[cfg(feature = "webhook")]
pub use handler::{AlertmanagerHandler, UrlError, WebhookHandler, verify_signature};
pub use journal::{DeadLetter, JournalError, JournalReplay};
pub use made_up::{MadeUp, expand};
pub use problem::{Place, RuleErrors, RuleProblem};
pub use rule::{
    BurnPair, Flap, INSTANCES_MAX, Inhibit, Level, Notify, OnMissing, RULES_MAX, Rule, RuleSet,
    Signal,
};
pub use runtime::{
    Alerting, AlertingError, AlertingOptions, Alerts, HandlerStatus, NoSuchRule, ReloadReport,
    RulesRefused,
};
pub use silence::{Silence, SilenceError};
pub use template::Template;
