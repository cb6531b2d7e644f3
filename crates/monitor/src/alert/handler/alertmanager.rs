//! Alerts for a Prometheus Alertmanager, through version 2 of its API.
//!
//! Alertmanager forgets an alert that is not sent again before the end it was told, so what goes on is sent
//! again at an interval, with an end four intervals ahead
//! (<https://prometheus.io/docs/alerting/latest/clients/>). If this program dies, the alert ends by itself.
//!
//! The severity is one of the labels, and labels are what tells alerts apart there. When it changes, the
//! alert with the severity of before has to end: every message ends the three others. Alertmanager passes
//! over the end of an alert that it does not know.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, HeaderMap};
use serde::Serialize;

use super::http::{Endpoint, UrlError, bearer};
use super::{AlertHandler, HandlerError, Handling, Message, labels_of, wire};
use crate::alert::delivery::Secret;
use crate::alert::event::{AlertEvent, EventKind, Severity};
use crate::clock::millis;
use crate::series::Labels;

/// The shortest time between two sends of what goes on.
const RESEND_MIN: Duration = Duration::from_millis(100);

/// Alerts in one request.
const ALERTS_MAX: usize = 500;

/// Posts alerts to `/api/v2/alerts` of one Alertmanager, or of each member of a cluster.
///
/// A message went well if one of the addresses took it: the members of a cluster tell each other about
/// what they sent, not about alerts, so all are tried each time, as Prometheus does.
#[derive(Debug, Clone)]
pub struct AlertmanagerHandler {
    endpoints: Vec<Endpoint>,
    resend: Duration,
    generator_url: Arc<str>,
    token: Option<Secret>,
}

impl AlertmanagerHandler {
    /// Sends to these base addresses, such as `http://127.0.0.1:9093`.
    ///
    /// # Errors
    ///
    /// [`UrlError`] if an address cannot be used, or there is none.
    pub fn new<'a>(urls: impl IntoIterator<Item = &'a str>) -> Result<Self, UrlError> {
        let below = |url| Ok(Endpoint::new(url)?.below("/api/v2/alerts"));
        let endpoints = urls.into_iter().map(below).collect::<Result<Vec<_>, _>>()?;
        if endpoints.is_empty() {
            return Err(UrlError { url: String::new(), expected: "there must be at least one" });
        }
        let resend = Duration::from_secs(60);
        Ok(Self { endpoints, resend, generator_url: "".into(), token: None })
    }

    /// Sets how often an alert that goes on is sent again; 1 min unless told.
    #[must_use]
    pub fn resend(mut self, resend: Duration) -> Self {
        self.resend = resend.max(RESEND_MIN);
        self
    }

    /// Sets the address that alerts point back to.
    #[must_use]
    pub fn generator_url(mut self, url: impl Into<Arc<str>>) -> Self {
        self.generator_url = url.into();
        self
    }

    /// Sends a bearer token.
    #[must_use]
    pub fn token(mut self, token: Secret) -> Self {
        self.token = Some(token);
        self
    }

    /// The alert of an event at a severity; with an end, it is over.
    fn alert(&self, event: &AlertEvent, severity: Severity, ends_at_ms: i64) -> Alert {
        let labels = labels_of(event).with(&Labels::new([("severity", severity.word())]));
        Alert {
            labels,
            annotations: wire::annotations(event),
            // An alert must not end before it begins.
            starts_at: wire::rfc3339(event.starts_at_ms.min(ends_at_ms)),
            ends_at: wire::rfc3339(ends_at_ms),
            generator_url: Arc::clone(&self.generator_url),
        }
    }

    /// What to post for events.
    fn alerts<'a>(
        &self,
        events: impl Iterator<Item = &'a Arc<AlertEvent>>,
        at_ms: i64,
    ) -> Vec<Alert> {
        let ahead = at_ms.saturating_add(millis(self.resend).saturating_mul(4));
        let mut alerts = Vec::new();
        for event in events {
            let over = event.ends_at_ms.unwrap_or(at_ms);
            let resolved = event.kind == EventKind::Resolve;
            // A repetition changes no severity, and a first message has none before it.
            let others = resolved
                || matches!(
                    event.kind,
                    EventKind::Escalate | EventKind::DeEscalate | EventKind::Flapping
                );
            let others = if others { &Severity::ALL[..] } else { &[] };
            let others = others.iter().filter(|&&other| other != event.severity);
            alerts.extend(others.map(|&other| self.alert(event, other, over)));
            let end = if resolved { over } else { ahead };
            alerts.push(self.alert(event, event.severity, end));
        }
        alerts
    }

    async fn post(&self, alerts: Vec<Alert>) -> Result<(), HandlerError> {
        let mut headers = HeaderMap::new();
        if let Some(token) = &self.token {
            let header = bearer(token.reveal());
            let header = header
                .ok_or_else(|| HandlerError::Refused("the token must be printable".to_owned()))?;
            headers.insert(AUTHORIZATION, header);
        }
        for part in alerts.chunks(ALERTS_MAX) {
            let body = serde_json::to_vec(part).expect("texts can be written as JSON");
            let body = Bytes::from(body);
            let posts = self.endpoints.iter().map(|it| it.post(headers.clone(), body.clone()));
            let answers = futures_util::future::join_all(posts).await;
            if answers.iter().all(Result::is_err) {
                let worst = answers.into_iter().find_map(Result::err);
                return Err(worst.expect("there is an address, and all failed"));
            }
        }
        Ok(())
    }
}

impl AlertHandler for AlertmanagerHandler {
    fn handle<'a>(&'a self, message: &'a Message, at_ms: i64) -> Handling<'a> {
        Box::pin(self.post(self.alerts(message.events.iter(), at_ms)))
    }

    fn refresh_every(&self) -> Option<Duration> {
        Some(self.resend)
    }

    fn refresh<'a>(&'a self, active: &'a [Arc<AlertEvent>], at_ms: i64) -> Handling<'a> {
        let ahead = at_ms.saturating_add(millis(self.resend).saturating_mul(4));
        let alerts = active.iter().map(|event| self.alert(event, event.severity, ahead));
        Box::pin(self.post(alerts.collect()))
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Alert {
    labels: Labels,
    annotations: BTreeMap<&'static str, String>,
    starts_at: String,
    ends_at: String,
    #[serde(rename = "generatorURL")]
    generator_url: Arc<str>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alert::handler::tests::event;

    /// The severities and ends that are posted for an event at a minute after it began.
    fn posted(kind: EventKind) -> Vec<(String, String)> {
        let handler = AlertmanagerHandler::new(["http://127.0.0.1:9093"]).expect("a URL");
        let event = Arc::new(event("a", kind));
        let alerts = handler.alerts([&event].into_iter(), event.starts_at_ms + 60_000);
        let severity = |alert: &Alert| alert.labels.get("severity").unwrap_or("").to_owned();
        alerts.iter().map(|alert| (severity(alert), alert.ends_at[11..19].to_owned())).collect()
    }

    #[test]
    fn what_goes_on_ends_four_intervals_ahead_and_what_is_over_when_it_was() {
        let pair = |severity: &str, end: &str| (severity.to_owned(), end.to_owned());
        assert_eq!(posted(EventKind::Fire), [pair("warning", "22:18:20")]);
        assert_eq!(posted(EventKind::Repeat), [pair("warning", "22:18:20")]);
        let ended = ["info", "error", "critical"].map(|severity| pair(severity, "22:14:20"));
        let mut escalated = ended.to_vec();
        escalated.push(pair("warning", "22:18:20"));
        assert_eq!(posted(EventKind::Escalate), escalated);
        let mut resolved = ended.to_vec();
        resolved.push(pair("warning", "22:14:20"));
        assert_eq!(posted(EventKind::Resolve), resolved);
    }

    #[test]
    fn at_least_one_address_is_needed() {
        assert!(AlertmanagerHandler::new([]).is_err());
    }
}
