//! Handlers inside of the program: its log, subscribers, a function.

use std::sync::Arc;

use tokio::sync::broadcast;

use super::{AlertHandler, HandlerError, Handling, Message};
use crate::alert::event::{AlertEvent, EventKind, Severity};

/// Writes each event to the log of the program, at a level that fits its severity.
#[derive(Debug, Clone, Copy, Default)]
pub struct LogHandler;

impl AlertHandler for LogHandler {
    fn handle<'a>(&'a self, message: &'a Message, _at_ms: i64) -> Handling<'a> {
        for event in &message.events {
            log(event);
        }
        Box::pin(async { Ok(()) })
    }
}

fn log(event: &AlertEvent) {
    // The level of a line is a part of the place that writes it, so there are three places.
    macro_rules! at {
        ($level:ident) => {
            tracing::$level!(
                target: "monitor::alert",
                rule = %event.rule,
                kind = event.kind.word(),
                severity = event.severity.word(),
                labels = %event.labels,
                value = event.value,
                "{}",
                event.summary
            )
        };
    }
    match event.severity {
        _ if event.kind == EventKind::Resolve => at!(info),
        Severity::Info => at!(info),
        Severity::Warning => at!(warn),
        Severity::Error | Severity::Critical => at!(error),
    }
}

/// Gives each event to everyone in the program who listens.
///
/// Nobody listening is no failure. Who listens too slowly misses the oldest events and is told so by
/// [`RecvError::Lagged`](broadcast::error::RecvError::Lagged).
#[derive(Debug, Clone)]
pub struct ChannelHandler {
    sender: broadcast::Sender<Arc<AlertEvent>>,
}

impl ChannelHandler {
    /// Makes a channel that keeps so many events for slow listeners, at least one.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self { sender: broadcast::Sender::new(capacity.clamp(1, 1 << 20)) }
    }

    /// Listens from now on.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<AlertEvent>> {
        self.sender.subscribe()
    }
}

impl AlertHandler for ChannelHandler {
    fn handle<'a>(&'a self, message: &'a Message, _at_ms: i64) -> Handling<'a> {
        for event in &message.events {
            // It fails only if nobody listens.
            let _ = self.sender.send(Arc::clone(event));
        }
        Box::pin(async { Ok(()) })
    }
}

/// Calls a function with each event.
///
/// The function may block and may fail; see [`AlertHandler::handle`].
pub struct CallbackHandler<F>(F);

impl<F> CallbackHandler<F>
where
    F: Fn(&AlertEvent) -> Result<(), HandlerError> + Send + Sync + 'static,
{
    /// Takes the function. Its first failure ends the message, which is tried again as a whole.
    pub fn new(function: F) -> Self {
        Self(function)
    }
}

impl<F> std::fmt::Debug for CallbackHandler<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CallbackHandler")
    }
}

impl<F> AlertHandler for CallbackHandler<F>
where
    F: Fn(&AlertEvent) -> Result<(), HandlerError> + Send + Sync + 'static,
{
    fn handle<'a>(&'a self, message: &'a Message, _at_ms: i64) -> Handling<'a> {
        Box::pin(async move { message.events.iter().try_for_each(|event| (self.0)(event)) })
    }
}
