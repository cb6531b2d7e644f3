//! Webhooks with the body that Alertmanager sends, so that receivers made for it work.
//!
//! The form is that of version 4: <https://prometheus.io/docs/alerting/latest/configuration/#webhook_config>.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use serde::Serialize;
use serde_json::{Map, Value};

use super::http::{Endpoint, UrlError, bearer};
use super::{AlertHandler, HandlerError, Handling, Message, labels_of, signature, wire};
use crate::alert::delivery::Secret;
use crate::alert::event::AlertEvent;
use crate::series::Labels;

/// Posts messages to a URL.
///
/// The body is that of Alertmanager's webhooks, version 4. The header `Idempotency-Key` is the same for
/// every try of a message. An answer of 200 to 299 is good; a connection that fails, 408, 429 and answers
/// from 500 on are tried again, after `Retry-After` if it is there; other answers are final. Redirects are
/// not followed.
#[derive(Debug, Clone)]
pub struct WebhookHandler {
    receiver: Arc<str>,
    endpoint: Endpoint,
    headers: HeaderMap,
    token: Option<Secret>,
    key: Option<Secret>,
    external_url: String,
}

impl WebhookHandler {
    /// Sends to a URL with `http` or `https`, under the name of a receiver.
    ///
    /// # Errors
    ///
    /// [`UrlError`] if the URL cannot be used.
    pub fn new(receiver: impl Into<Arc<str>>, url: &str) -> Result<Self, UrlError> {
        Ok(Self {
            receiver: receiver.into(),
            endpoint: Endpoint::new(url)?,
            headers: HeaderMap::new(),
            token: None,
            key: None,
            external_url: String::new(),
        })
    }

    /// Sends a header too.
    ///
    /// # Errors
    ///
    /// What is wrong with the name or the value; the value itself is not repeated.
    pub fn header(mut self, name: &str, value: &str) -> Result<Self, String> {
        let header: HeaderName =
            name.parse().map_err(|_| format!("{name:?} is no name of a header"))?;
        let mut value = HeaderValue::from_str(value)
            .map_err(|_| format!("the value of the header {name} must be printable"))?;
        value.set_sensitive(true);
        self.headers.append(header, value);
        Ok(self)
    }

    /// Sends a bearer token.
    #[must_use]
    pub fn token(mut self, token: Secret) -> Self {
        self.token = Some(token);
        self
    }

    /// Signs each request in the header `X-Signature`; see [`verify_signature`](super::verify_signature).
    #[must_use]
    pub fn sign_with(mut self, key: Secret) -> Self {
        self.key = Some(key);
        self
    }

    /// Sets the address of a page about this program, as the `externalURL` of the body.
    #[must_use]
    pub fn external_url(mut self, url: impl Into<String>) -> Self {
        self.external_url = url.into();
        self
    }

    async fn post(&self, message: &Message, at_ms: i64) -> Result<(), HandlerError> {
        let body = Bytes::from(body(message, &self.receiver, &self.external_url));
        let mut headers = self.headers.clone();
        let value = |text: &str| HeaderValue::from_str(text).ok();
        // Bytes, as the name of a handler need not be ASCII.
        if let Ok(key) = HeaderValue::from_bytes(message.key.as_bytes()) {
            headers.insert("idempotency-key", key);
        }
        if let Some(token) = &self.token {
            let header = bearer(token.reveal());
            let header = header
                .ok_or_else(|| HandlerError::Refused("the token must be printable".to_owned()))?;
            headers.insert(AUTHORIZATION, header);
        }
        if let Some(key) = &self.key {
            let signed = signature::sign(key.reveal().as_bytes(), at_ms, &body);
            if let Some(signed) = value(&signed) {
                headers.insert(signature::HEADER, signed);
            }
        }
        self.endpoint.post(headers, body).await
    }
}

impl AlertHandler for WebhookHandler {
    fn handle<'a>(&'a self, message: &'a Message, at_ms: i64) -> Handling<'a> {
        Box::pin(self.post(message, at_ms))
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    version: &'static str,
    group_key: String,
    truncated_alerts: u32,
    status: &'static str,
    receiver: &'a str,
    group_labels: &'a Labels,
    common_labels: Map<String, Value>,
    common_annotations: Map<String, Value>,
    #[serde(rename = "externalURL")]
    external_url: &'a str,
    alerts: Vec<Alert>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Alert {
    status: &'static str,
    labels: Map<String, Value>,
    annotations: Map<String, Value>,
    starts_at: String,
    ends_at: String,
    #[serde(rename = "generatorURL")]
    generator_url: &'static str,
    fingerprint: String,
}

impl Alert {
    fn of(event: &AlertEvent) -> Self {
        let text = |(name, text): (&str, String)| (name.to_owned(), Value::String(text));
        let labels = labels_of(event);
        Self {
            status: status(wire::is_resolved(event)),
            labels: labels.iter().map(|(name, value)| text((name, value.to_owned()))).collect(),
            annotations: wire::annotations(event).into_iter().map(text).collect(),
            starts_at: wire::rfc3339(event.starts_at_ms),
            ends_at: event.ends_at_ms.map_or_else(|| wire::NEVER.to_owned(), wire::rfc3339),
            generator_url: "",
            fingerprint: event.fingerprint.to_string(),
        }
    }
}

fn status(resolved: bool) -> &'static str {
    if resolved { "resolved" } else { "firing" }
}

/// What all alerts have in common.
fn common<'a>(mut of: impl Iterator<Item = &'a Map<String, Value>>) -> Map<String, Value> {
    let mut common = of.next().cloned().unwrap_or_default();
    for other in of {
        common.retain(|name, value| other.get(name) == Some(value));
    }
    common
}

/// Makes the body of a message.
fn body(message: &Message, receiver: &str, external_url: &str) -> Vec<u8> {
    let alerts: Vec<_> = message.events.iter().map(|event| Alert::of(event)).collect();
    let resolved = message.events.iter().all(|event| wire::is_resolved(event));
    let body = Body {
        version: "4",
        group_key: format!("{{}}:{}", message.group),
        truncated_alerts: 0,
        status: status(resolved),
        receiver,
        group_labels: &message.group,
        common_labels: common(alerts.iter().map(|alert| &alert.labels)),
        common_annotations: common(alerts.iter().map(|alert| &alert.annotations)),
        external_url,
        alerts,
    };
    serde_json::to_vec(&body).expect("texts and numbers can be written as JSON")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alert::event::EventKind;
    use crate::alert::handler::tests::event;

    #[test]
    fn the_body_is_that_of_version_4() {
        let mut ended = event("b", EventKind::Resolve);
        ended.labels = Labels::new([("cache", "pages"), ("team", "web")]);
        let message = Message {
            key: "hook/b+1".to_owned(),
            group: Labels::new([("alertname", "cache_hit_low")]),
            events: vec![Arc::new(event("a", EventKind::Fire)), Arc::new(ended)],
            attempts: 0,
        };
        let body: Value =
            serde_json::from_slice(&body(&message, "hook", "http://us.test/")).expect("JSON");
        let expected = serde_json::json!({
            "version": "4",
            "groupKey": "{}:{alertname=\"cache_hit_low\"}",
            "truncatedAlerts": 0,
            "status": "firing",
            "receiver": "hook",
            "groupLabels": { "alertname": "cache_hit_low" },
            "commonLabels": { "alertname": "cache_hit_low", "severity": "warning", "team": "web" },
            "commonAnnotations": { "summary": "few hits", "threshold": "0.7", "value": "0.5" },
            "externalURL": "http://us.test/",
            "alerts": [
                {
                    "status": "firing",
                    "labels": {
                        "alertname": "cache_hit_low", "cache": "users",
                        "severity": "warning", "team": "web",
                    },
                    "annotations": {
                        "event": "fire", "summary": "few hits", "threshold": "0.7", "value": "0.5",
                    },
                    "startsAt": "2023-11-14T22:13:20Z",
                    "endsAt": "0001-01-01T00:00:00Z",
                    "generatorURL": "",
                    "fingerprint": "00000000000000ff",
                },
                {
                    "status": "resolved",
                    "labels": {
                        "alertname": "cache_hit_low", "cache": "pages",
                        "severity": "warning", "team": "web",
                    },
                    "annotations": {
                        "event": "resolve", "summary": "few hits", "threshold": "0.7", "value": "0.5",
                    },
                    "startsAt": "2023-11-14T22:13:20Z",
                    "endsAt": "2023-11-14T22:14:20Z",
                    "generatorURL": "",
                    "fingerprint": "00000000000000ff",
                },
            ],
        });
        assert_eq!(body, expected);
    }

    #[test]
    fn secrets_are_not_shown() {
        let webhook = WebhookHandler::new("hook", "http://127.0.0.1:9/")
            .expect("a URL")
            .header("x-password", "sesame")
            .expect("a header")
            .token(Secret::new("sesame"))
            .sign_with(Secret::new("sesame"));
        assert!(!format!("{webhook:?}").contains("sesame"), "{webhook:?}");
        let error = webhook.header("x-password", "ses\name").expect_err("not printable");
        assert!(!error.contains("ses\n"), "{error}");
    }
}
