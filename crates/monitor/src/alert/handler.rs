//! What alerts do to the world: handlers, what is asked of them, and those that come with this crate.
//!
//! A handler is given one [`Message`] at a time on a thread that it may block, with a time limit around it
//! and whoever calls it catching its panics. So a handler can be simple: it sends, and says whether that
//! went well. Queues, grouping, repeated tries and dead letters are the business of the caller. No handler
//! runs a program.

#[cfg(feature = "webhook")]
mod alertmanager;
mod channel;
#[cfg(feature = "webhook")]
mod http;
mod json_lines;
#[cfg(feature = "webhook")]
mod signature;
#[cfg(feature = "webhook")]
mod webhook;
#[cfg(feature = "webhook")]
mod wire;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

#[cfg(feature = "webhook")]
pub use self::alertmanager::AlertmanagerHandler;
pub use self::channel::{CallbackHandler, ChannelHandler, LogHandler};
#[cfg(feature = "webhook")]
pub use self::http::UrlError;
pub use self::json_lines::JsonLinesHandler;
#[cfg(feature = "webhook")]
pub use self::signature::verify_signature;
#[cfg(feature = "webhook")]
pub use self::webhook::WebhookHandler;
use super::delivery::{DeliveryOptions, HandlerKind, HandlerSpec};
#[cfg(feature = "webhook")]
use super::delivery::{Secret, SecretSource};
use super::event::{AlertEvent, EventKind};
use crate::series::Labels;

/// What a handler is given at once: one event, or those of a group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// Unique for the message and its handler, and the same for every try: receivers tell repetitions by it.
    pub key: String,
    /// The labels by which its events were put together; without grouping, `alertname` alone.
    pub group: Labels,
    /// The events, the oldest first; at least one.
    pub events: Vec<Arc<AlertEvent>>,
    /// Tries that failed so far.
    pub attempts: u32,
}

/// What a handler returns: a future that is polled on a thread which may block.
pub type Handling<'a> = Pin<Box<dyn Future<Output = Result<(), HandlerError>> + Send + 'a>>;

/// Somebody who is told about alerts.
pub trait AlertHandler: Send + Sync + 'static {
    /// Takes a message to where it belongs.
    ///
    /// It is called with one message at a time (a message that somebody sends to test it may come beside),
    /// on a thread that may block, inside of a tokio runtime. The same message comes again after a failure,
    /// and after a crash even if it went well: `message.key` tells. When it takes longer than its limit
    /// the future is dropped.
    ///
    /// # Errors
    ///
    /// [`HandlerError`]; the variant says whether another try makes sense.
    fn handle<'a>(&'a self, message: &'a Message, at_ms: i64) -> Handling<'a>;

    /// Returns how often [`refresh`](Self::refresh) wants to be called while alerts go on; never unless told.
    fn refresh_every(&self) -> Option<Duration> {
        None
    }

    /// Repeats what goes on to a receiver that forgets: the last event of every alert that this handler was
    /// told of and that has not ended. A failure is counted and left to the next time.
    ///
    /// # Errors
    ///
    /// [`HandlerError`].
    fn refresh<'a>(&'a self, active: &'a [Arc<AlertEvent>], at_ms: i64) -> Handling<'a> {
        let _ = (active, at_ms);
        Box::pin(async { Ok(()) })
    }
}

/// Why a message was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HandlerError {
    /// It may go well the next time.
    #[error("{reason}")]
    Failed {
        /// What went wrong.
        reason: String,
        /// How long the receiver wants to be left alone.
        retry_after: Option<Duration>,
    },
    /// It will not go well: the receiver understood and said no.
    #[error("{0}; it is not tried again")]
    Refused(String),
    /// It took longer than it may.
    #[error("it took longer than {0:?}")]
    TimedOut(Duration),
    /// It panicked.
    #[error("the handler panicked: {0}")]
    Panicked(String),
    /// There is no handler of this name.
    #[error("there is no handler \"{0}\"")]
    Unknown(String),
    /// The alerting was shut down.
    #[error("the alerting was shut down")]
    Closed,
}

impl HandlerError {
    /// Says what went wrong, to be tried again.
    pub fn failed(reason: impl fmt::Display) -> Self {
        Self::Failed { reason: reason.to_string(), retry_after: None }
    }

    /// Whether another try makes sense.
    #[must_use]
    pub fn may_retry(&self) -> bool {
        !matches!(self, Self::Refused(_) | Self::Unknown(_) | Self::Closed)
    }
}

impl DeliveryOptions {
    /// Whether an event is for this handler; `told` is whether it heard of the alert before.
    ///
    /// Who heard of an alert hears also that it got better and that it ended, whatever level that is.
    #[must_use]
    pub fn wants(&self, event: &AlertEvent, told: bool) -> bool {
        match event.kind {
            EventKind::Resolve => self.send_resolved && told,
            EventKind::DeEscalate if told => true,
            _ => {
                let labels = labels_of(event);
                event.severity >= self.min_severity
                    && self.matchers.iter().all(|matcher| matcher.matches(&labels))
            }
        }
    }

    /// Returns the labels that tell the group of an event; without grouping, `alertname` alone.
    #[must_use]
    pub fn group(&self, event: &AlertEvent) -> Labels {
        let labels = labels_of(event);
        match self.group_by.is_empty() {
            true => labels.only(&["alertname".into()]),
            false => labels.only(&self.group_by),
        }
    }
}

/// The labels of an event with `alertname` and `severity`, as receivers of Prometheus' alerts know them.
fn labels_of(event: &AlertEvent) -> Labels {
    let own = [("alertname", &*event.rule), ("severity", event.severity.word())];
    event.labels.with(&Labels::new(own))
}

/// A handler of a rule file that cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("handler \"{id}\": {problem}")]
pub struct HandlerProblem {
    /// Its name.
    pub id: Arc<str>,
    /// What is wrong, and what would be right.
    pub problem: String,
}

/// Makes the handler that a rule file describes.
///
/// `channel` is what a handler of the type `channel` speaks to. Opens no file and no connection, except to
/// read the files of secrets.
///
/// # Errors
///
/// [`HandlerProblem`] if an address or a header cannot be used, a secret cannot be read, or the handler
/// needs a feature that this program was compiled without.
pub fn handler_of(
    spec: &HandlerSpec,
    channel: &ChannelHandler,
) -> Result<Arc<dyn AlertHandler>, HandlerProblem> {
    let problem = |problem: String| HandlerProblem { id: spec.delivery.id.clone(), problem };
    Ok(match &spec.kind {
        HandlerKind::Log => Arc::new(LogHandler),
        HandlerKind::Channel => Arc::new(channel.clone()),
        HandlerKind::JsonLines { path, max_bytes } => {
            Arc::new(JsonLinesHandler::new(path.clone(), *max_bytes))
        }
        #[cfg(feature = "webhook")]
        HandlerKind::Webhook { url, headers, token, hmac } => {
            let mut webhook = WebhookHandler::new(spec.delivery.id.clone(), url)
                .map_err(|error| problem(error.to_string()))?;
            for (name, value) in headers {
                webhook = webhook.header(name, value).map_err(problem)?;
            }
            if let Some(token) = token {
                webhook = webhook.token(secret(token).map_err(problem)?);
            }
            if let Some(key) = hmac {
                webhook = webhook.sign_with(secret(key).map_err(problem)?);
            }
            Arc::new(webhook)
        }
        #[cfg(feature = "webhook")]
        HandlerKind::Alertmanager { urls, resend, generator_url, token } => {
            let mut handler = AlertmanagerHandler::new(urls.iter().map(|url| &**url))
                .map_err(|error| problem(error.to_string()))?
                .resend(*resend)
                .generator_url(generator_url.clone());
            if let Some(token) = token {
                handler = handler.token(secret(token).map_err(problem)?);
            }
            Arc::new(handler)
        }
        #[cfg(not(feature = "webhook"))]
        other => {
            let word = other.word();
            return Err(problem(format!(
                "type = \"{word}\" needs a program compiled with the feature `webhook`"
            )));
        }
    })
}

/// The longest file that holds a secret, in bytes.
#[cfg(feature = "webhook")]
const SECRET_BYTES_MAX: u64 = 64 * 1024;

/// Reads a secret from where it is.
#[cfg(feature = "webhook")]
fn secret(source: &SecretSource) -> Result<Secret, String> {
    use std::io::Read as _;
    let path = match source {
        SecretSource::Value(secret) => return Ok(secret.clone()),
        SecretSource::File(path) => path,
    };
    let cannot =
        |error: std::io::Error| format!("the secret in {} cannot be read: {error}", path.display());
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(cannot)?;
    file.take(SECRET_BYTES_MAX).read_to_string(&mut text).map_err(cannot)?;
    match text.trim() {
        "" => Err(format!("the secret in {} is empty", path.display())),
        secret => Ok(Secret::new(secret)),
    }
}

#[cfg(test)]
pub(super) mod tests;
