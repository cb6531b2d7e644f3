//! What a rule file says about handlers, as plain data; who makes handlers of it is another part.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::selector::Matcher;

use super::event::Severity;

/// A text that is sent but never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<str>);

impl Secret {
    /// Hides a text.
    pub fn new(text: impl Into<Arc<str>>) -> Self {
        Self(text.into())
    }

    /// Returns the text, for the one place that sends it.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<secret>")
    }
}

/// A secret in the rule file, or the file that holds it alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// The secret itself.
    Value(Secret),
    /// The path of a file; blanks around the secret do not count.
    File(PathBuf),
}

/// What a handler gets, and how it is treated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeliveryOptions {
    /// Its name, which rules route to.
    pub id: Arc<str>,
    /// It gets no message below this level; a resolve only of what it was told.
    pub min_severity: Severity,
    /// Whether it gets resolves.
    pub send_resolved: bool,
    /// It gets only events whose labels, with `alertname` and `severity`, meet these.
    pub matchers: Vec<Matcher>,
    /// The labels by which events are put together, none for a message each.
    pub group_by: Vec<Arc<str>>,
    /// How long the first event of a group waits for others.
    pub group_wait: Duration,
    /// How long after a message of a group the next one waits.
    pub group_interval: Duration,
    /// How long one try may take.
    pub timeout: Duration,
    /// Tries after the first.
    pub retries: u32,
    /// Events that may wait; more are dead letters.
    pub queue: usize,
    /// Messages in a minute; more wait.
    pub per_minute: u32,
    /// Events in a message.
    pub events_max: usize,
}

impl DeliveryOptions {
    /// Starts with the defaults: everything, one event a message, 10 s, 3 retries, 1,000 waiting, 600 a minute.
    #[must_use]
    pub fn new(id: impl Into<Arc<str>>) -> Self {
        Self {
            id: id.into(),
            min_severity: Severity::Info,
            send_resolved: true,
            matchers: Vec::new(),
            group_by: Vec::new(),
            group_wait: Duration::ZERO,
            group_interval: Duration::ZERO,
            timeout: Duration::from_secs(10),
            retries: 3,
            queue: 1_000,
            per_minute: 600,
            events_max: 100,
        }
    }
}

/// A handler as a rule file describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandlerSpec {
    /// What it is.
    pub kind: HandlerKind,
    /// Its name, what it gets, and how it is treated.
    pub delivery: DeliveryOptions,
}

impl HandlerSpec {
    /// Makes a handler with the defaults of [`DeliveryOptions::new`].
    pub fn new(id: impl Into<Arc<str>>, kind: HandlerKind) -> Self {
        Self { kind, delivery: DeliveryOptions::new(id) }
    }
}

/// The kinds of handlers that a rule file can ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum HandlerKind {
    /// `type = "log"`: a line in the log of the program.
    Log,
    /// `type = "channel"`: subscribers inside the program, such as a page.
    Channel,
    /// `type = "jsonl"`: a line of JSON in a file.
    JsonLines {
        /// The file.
        path: PathBuf,
        /// At this size it is renamed and begun anew, in bytes.
        max_bytes: u64,
    },
    /// `type = "webhook"`: the body of Alertmanager's webhooks, version 4.
    Webhook {
        /// Where it is sent, with `http` or `https`.
        url: Arc<str>,
        /// Headers that are sent with it.
        headers: Vec<(Arc<str>, Arc<str>)>,
        /// The bearer token.
        token: Option<SecretSource>,
        /// The key of the HMAC signature.
        hmac: Option<SecretSource>,
    },
    /// `type = "alertmanager"`: alerts for Alertmanager's API, sent again while they go on.
    Alertmanager {
        /// The base addresses of all of them, with `http` or `https`.
        urls: Vec<Arc<str>>,
        /// How often an alert that goes on is sent again.
        resend: Duration,
        /// The address that alerts point back to, may be empty.
        generator_url: Arc<str>,
        /// The bearer token.
        token: Option<SecretSource>,
    },
}

impl HandlerKind {
    /// Returns the word of `type`.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::Channel => "channel",
            Self::JsonLines { .. } => "jsonl",
            Self::Webhook { .. } => "webhook",
            Self::Alertmanager { .. } => "alertmanager",
        }
    }
}
