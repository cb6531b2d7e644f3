//! Alerts: rules over samples, the states they go through, and the messages that come of it.
//!
//! Everything here is pure: time, samples and records are passed in, and what is to be written and sent is
//! handed out.

mod delivery;
mod event;
mod handler;

pub use delivery::{HandlerKind, HandlerSpec, Secret, SecretSource};
pub use event::{
    Acknowledgement, AlertEvent, AlertState, AlertView, EndReason, EndedAlert, EventKind,
    Fingerprint, InstanceRecord, LevelRecord, Outcome, Severity,
};
pub use handler::{
    AlertHandler, CallbackHandler, ChannelHandler, DeliveryOptions, HandlerError, HandlerProblem,
    Handling, JsonLinesHandler, LogHandler, Message, handler_of,
};
#[cfg(feature = "webhook")]
pub use handler::{AlertmanagerHandler, UrlError, WebhookHandler, verify_signature};
