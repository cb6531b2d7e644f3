//! Advice as a POST to somebody who can act on it: an autoscaler, a script, a controller.
//!
//! The body says how many backends there should be, not how many more, so the same advice twice does no
//! harm and an attempt can be repeated. Attempts, their time and the waits between them have bounds.

use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, HeaderValue, USER_AGENT};
use http::{Request, StatusCode, Uri};
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::{ActuateError, Actuator};
use crate::advice::{ScaleAdvice, ScaleReason};

/// The wait before the first repeat is drawn up to this; it doubles, up to the longest.
const PAUSE: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Sends every advice as JSON in a POST.
///
/// The body is such as `{"desired":3,"current":2,"reason":"busy","utilization":0.9}`; `reason` is `shed`
/// or `waiting`, with the number of `calls`, `busy` or `idle`, with the `utilization`, or
/// `out_of_bounds`. Any answer of 200 to 299 is good. A connection that fails, an answer that is late,
/// 408, 429 and those from 500 on are tried again; any other answer is final. Without TLS: put it on
/// the loopback or a network you trust.
#[derive(Clone, Debug)]
pub struct Webhook {
    url: Uri,
    /// Host and port.
    address: String,
    timeout: Duration,
    attempts: u32,
}

/// Why a URL is none for a [`Webhook`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("webhook = {url:?}: {expected}")]
#[non_exhaustive]
pub struct WebhookError {
    /// The URL seen.
    pub url: String,
    /// What would be right.
    pub expected: &'static str,
}

impl Webhook {
    /// Takes a URL such as `http://127.0.0.1:9000/scale`.
    ///
    /// # Errors
    ///
    /// [`WebhookError`] if it is no URL, not of HTTP without TLS, or holds a name and password.
    pub fn new(url: &str) -> Result<Self, WebhookError> {
        let error = |expected| WebhookError { url: url.to_owned(), expected };
        let uri: Uri = url.parse().map_err(|_| error("must be a URL"))?;
        if uri.scheme_str() != Some("http") {
            return Err(error("must begin with http://"));
        }
        let authority = uri.authority().ok_or_else(|| error("must name a host"))?;
        if authority.as_str().contains('@') {
            return Err(error("must not hold a name or password"));
        }
        let address = format!("{}:{}", authority.host(), authority.port_u16().unwrap_or(80));
        Ok(Self { address, url: uri, timeout: Duration::from_secs(5), attempts: 3 })
    }

    /// Sets how long an attempt may take; 5 s unless told.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets how often an advice is sent at most, from 1 to 10; 3 unless told.
    #[must_use]
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts.clamp(1, 10);
        self
    }

    /// Sends a body once.
    async fn post(&self, body: Bytes) -> Result<StatusCode, String> {
        let stream = TcpStream::connect(&self.address).await;
        let stream = stream.map_err(|error| format!("cannot connect: {error}"))?;
        let broken = |error: hyper::Error| format!("connection broke: {error}");
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let path = self.url.path_and_query().map_or("/", |path| path.as_str());
        let authority = self.url.authority().map_or("", |authority| authority.as_str());
        let request = Request::post(path)
            .header(HOST, authority)
            .header(USER_AGENT, HeaderValue::from_static("loadbalancer"))
            .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .body(Full::new(body))
            .map_err(|error| error.to_string())?;
        let mut answer = pin!(sender.send_request(request));
        // Nothing is spawned: the connection goes on as long as its answer is waited for.
        let answer = tokio::select! {
            answer = &mut answer => answer,
            _ = connection => answer.await,
        };
        answer.map(|answer| answer.status()).map_err(broken)
    }
}

impl Actuator for Webhook {
    async fn act(&mut self, advice: ScaleAdvice) -> Result<(), ActuateError> {
        let body = Bytes::from(json(&advice));
        let mut attempt = 1;
        loop {
            let posted = timeout(self.timeout, self.post(body.clone())).await;
            let late = |_| Err(format!("no answer in {:?}", self.timeout));
            let (last, is_final) = match posted.unwrap_or_else(late) {
                Ok(status) if status.is_success() => return Ok(()),
                Ok(status) => {
                    let again = status.is_server_error()
                        || [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS]
                            .contains(&status);
                    (format!("status {}", status.as_u16()), !again)
                }
                Err(reason) => (reason, false),
            };
            if is_final || attempt >= self.attempts {
                return Err(ActuateError::Unanswered { attempts: attempt, last });
            }
            let longest = (PAUSE * 2_u32.pow(attempt - 1)).min(PAUSE_MAX);
            sleep(longest.mul_f64(fastrand::f64())).await;
            attempt += 1;
        }
    }
}

/// An advice as JSON.
fn json(advice: &ScaleAdvice) -> String {
    let ScaleAdvice { desired, current, reason } = advice;
    let why = match reason {
        ScaleReason::Shed { calls } => format!(r#""shed","calls":{calls}"#),
        ScaleReason::Waiting { calls } => format!(r#""waiting","calls":{calls}"#),
        ScaleReason::Busy { utilization } => format!(r#""busy","utilization":{utilization:.3}"#),
        ScaleReason::Idle { utilization } => format!(r#""idle","utilization":{utilization:.3}"#),
        ScaleReason::OutOfBounds => r#""out_of_bounds""#.to_owned(),
    };
    format!(r#"{{"desired":{desired},"current":{current},"reason":{why}}}"#)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use tokio::task::JoinHandle;

    use super::*;

    const ADVICE: ScaleAdvice =
        ScaleAdvice { desired: 3, current: 2, reason: ScaleReason::Busy { utilization: 0.9 } };

    /// Answers one connection after the other; an empty answer closes it, and `-` never comes.
    async fn server(answers: &'static [&'static str]) -> (String, JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let url = format!("http://{}/scale?of=shop", listener.local_addr().expect("it is bound"));
        let task = tokio::spawn(async move {
            let (mut asked, mut kept) = (Vec::new(), Vec::new());
            for answer in answers {
                let (mut stream, _) = listener.accept().await.expect("it listens");
                let mut request = Vec::new();
                while !request.ends_with(b"}") {
                    let read = stream.read_buf(&mut request).await.expect("it is readable");
                    assert!(read > 0, "the request ends early");
                }
                asked.push(String::from_utf8(request).expect("it is text"));
                if *answer == "-" {
                    kept.push(stream);
                } else if !answer.is_empty() {
                    let answer = format!("HTTP/1.1 {answer}\r\nContent-Length: 0\r\n\r\n");
                    stream.write_all(answer.as_bytes()).await.expect("it is writable");
                }
            }
            asked
        });
        (url, task)
    }

    #[tokio::test]
    async fn an_advice_is_sent_until_it_is_taken() {
        let (url, server) = server(&["503 Busy", "", "429 Slow down", "204 Done"]).await;
        let mut webhook = Webhook::new(&url).expect("a URL").attempts(4);
        webhook.act(ADVICE).await.expect("the fourth is good");
        let asked = server.await.expect("it got all of them");
        assert_eq!(asked.len(), 4);
        for request in asked {
            assert!(request.starts_with("POST /scale?of=shop HTTP/1.1\r\n"), "{request}");
            assert!(request.contains("content-type: application/json\r\n"), "{request}");
            let body = r#"{"desired":3,"current":2,"reason":"busy","utilization":0.900}"#;
            assert!(request.ends_with(&format!("\r\n\r\n{body}")), "{request}");
        }
    }

    #[tokio::test]
    async fn a_refusal_is_final_and_attempts_and_their_time_have_a_bound() {
        let (url, refuses) = server(&["400 What"]).await;
        let error = Webhook::new(&url).expect("a URL").act(ADVICE).await.expect_err("refused");
        assert_eq!(error.to_string(), "gave up after attempt 1: status 400");
        refuses.await.expect("it was asked once");
        // It would take a third.
        let (url, _silent) = server(&["-", "-", "-"]).await;
        let mut webhook =
            Webhook::new(&url).expect("a URL").attempts(2).timeout(Duration::from_millis(50));
        let error = webhook.act(ADVICE).await.expect_err("it never answers");
        assert_eq!(error.to_string(), "gave up after attempt 2: no answer in 50ms");
    }

    #[test]
    fn a_url_that_cannot_be_used_says_what_would_be_right() {
        for (url, expected) in [
            ("", "must be a URL"),
            ("127.0.0.1:80", "must begin with http://"),
            ("https://scale.test/", "must begin with http://"),
            ("http://me:secret@scale.test/", "must not hold a name or password"),
        ] {
            let error = Webhook::new(url).map(|it| it.address).expect_err(url);
            assert_eq!(error.expected, expected, "{url}");
        }
        let default = Webhook::new("http://[::1]/x").expect("a URL");
        assert_eq!(default.address, "[::1]:80");
    }

    #[test]
    fn every_reason_is_json() {
        for (reason, expected) in [
            (ScaleReason::Shed { calls: 7 }, r#""shed","calls":7"#),
            (ScaleReason::Waiting { calls: 8 }, r#""waiting","calls":8"#),
            (ScaleReason::Idle { utilization: 0.25 }, r#""idle","utilization":0.250"#),
            (ScaleReason::OutOfBounds, r#""out_of_bounds""#),
        ] {
            let text = json(&ScaleAdvice { reason, ..ADVICE });
            assert_eq!(text, format!(r#"{{"desired":3,"current":2,"reason":{expected}}}"#));
        }
    }
}
