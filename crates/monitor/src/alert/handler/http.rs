//! One POST over a connection of its own, with or without TLS.
//!
//! Messages are rare and receivers far apart, so nothing is kept open. The certificates that the machine
//! trusts are loaded with the first connection that needs them; `SSL_CERT_FILE` names others.

use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, HeaderMap, HeaderValue, RETRY_AFTER, USER_AGENT};
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls_native_certs::load_native_certs;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::HandlerError;

/// How much of an answer is read, in bytes.
const ANSWER_BYTES_MAX: usize = 16 * 1024;
/// How much of an answer is shown, in characters.
const SHOWN: usize = 200;
/// The longest time that a receiver may ask to be left alone.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(300);

/// Why a URL cannot be used by a handler.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("url = {url:?}: {expected}")]
#[non_exhaustive]
pub struct UrlError {
    /// The URL seen.
    pub url: String,
    /// What would be right.
    pub expected: &'static str,
}

/// Where to send.
#[derive(Clone, Debug)]
pub(super) struct Endpoint {
    url: Uri,
    /// The host without brackets.
    host: String,
    port: u16,
    tls: bool,
}

impl Endpoint {
    /// Takes a URL of HTTP, with or without TLS.
    pub(super) fn new(url: &str) -> Result<Self, UrlError> {
        // A URL with a password in it is not repeated in the error.
        let shown = if url.contains('@') { "(not shown)" } else { url };
        let error = |expected| UrlError { url: shown.to_owned(), expected };
        let uri: Uri = url.parse().map_err(|_| error("must be a URL"))?;
        let tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(error("must begin with http:// or https://")),
        };
        let authority = uri.authority().ok_or_else(|| error("must name a host"))?;
        if authority.as_str().contains('@') {
            return Err(error("must not hold a name or password; there is `token` for that"));
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() {
            return Err(error("must name a host"));
        }
        let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
        Ok(Self { host, port, tls, url: uri })
    }

    /// The same host with a path behind that of the URL.
    pub(super) fn below(&self, path: &str) -> Self {
        let base = self.url.path().trim_end_matches('/');
        let mut parts = self.url.clone().into_parts();
        parts.path_and_query = format!("{base}{path}").parse().ok();
        let url = Uri::from_parts(parts).expect("a path was put behind a path");
        Self { url, ..self.clone() }
    }

    /// Sends a body as JSON; an answer of 200 to 299 is good.
    ///
    /// A connection that fails, 408, 429 and what is from 500 on may be tried again.
    pub(super) async fn post(&self, headers: HeaderMap, body: Bytes) -> Result<(), HandlerError> {
        let stream = TcpStream::connect((self.host.as_str(), self.port));
        let stream = stream
            .await
            .map_err(|error| HandlerError::failed(format_args!("cannot connect: {error}")))?;
        // The request is written as a whole, and this only saves a delay.
        let _ = stream.set_nodelay(true);
        if !self.tls {
            return self.exchange(stream, headers, body).await;
        }
        let name = ServerName::try_from(self.host.clone())
            .map_err(|_| HandlerError::Refused(format!("{} is no name for TLS", self.host)))?;
        let connector = TlsConnector::from(trusted().map_err(HandlerError::failed)?);
        let stream = connector
            .connect(name, stream)
            .await
            .map_err(|error| HandlerError::failed(format_args!("TLS: {error}")))?;
        self.exchange(stream, headers, body).await
    }

    async fn exchange(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<(), HandlerError> {
        let broken = |error: hyper::Error| {
            HandlerError::failed(format_args!("the connection broke: {error}"))
        };
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let path = self.url.path_and_query().map_or("/", |path| path.as_str());
        let authority = self.url.authority().map_or("", |authority| authority.as_str());
        let mut request = Request::post(path)
            .header(HOST, authority)
            .header(USER_AGENT, HeaderValue::from_static("ultra-perf-monitor"))
            .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .body(Full::new(body))
            .map_err(|error| HandlerError::Refused(error.to_string()))?;
        request.headers_mut().extend(headers);
        let mut exchange = pin!(async {
            let answer = sender.send_request(request).await.map_err(broken)?;
            let (head, body) = answer.into_parts();
            let text = match Limited::new(body, ANSWER_BYTES_MAX).collect().await {
                Ok(body) => body.to_bytes(),
                // Only the status counts.
                Err(_) => Bytes::new(),
            };
            verdict(head.status, &head.headers, &text)
        });
        // Nothing is spawned: the connection goes on as long as its answer is waited for.
        tokio::select! {
            done = &mut exchange => done,
            _ = connection => exchange.await,
        }
    }
}

/// What an answer means.
fn verdict(status: StatusCode, headers: &HeaderMap, text: &[u8]) -> Result<(), HandlerError> {
    if status.is_success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(text);
    let text: String = text.trim().chars().filter(|c| !c.is_control()).take(SHOWN).collect();
    let reason = match text.is_empty() {
        true => format!("status {}", status.as_u16()),
        false => format!("status {}: {text}", status.as_u16()),
    };
    let again = status.is_server_error()
        || [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS].contains(&status);
    if !again {
        return Err(HandlerError::Refused(reason));
    }
    let seconds = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    let retry_after = seconds.map(|seconds| Duration::from_secs(seconds).min(RETRY_AFTER_MAX));
    Err(HandlerError::Failed { reason, retry_after })
}

/// The header with a bearer token, which is never shown.
pub(super) fn bearer(token: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(&format!("Bearer {token}")).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Trusts the certificates of the machine, or those in the file that `SSL_CERT_FILE` names.
///
/// The cryptography provider is named, because with two of them in one program rustls' default panics.
fn trusted() -> Result<Arc<ClientConfig>, String> {
    static TRUSTED: OnceLock<Arc<ClientConfig>> = OnceLock::new();
    if let Some(config) = TRUSTED.get() {
        return Ok(Arc::clone(config));
    }
    let mut roots = RootCertStore::empty();
    let loaded = load_native_certs();
    let (usable, _) = roots.add_parsable_certificates(loaded.certs);
    if usable == 0 {
        let why = loaded.errors.first().map_or(String::new(), |error| format!(": {error}"));
        return Err(format!("TLS: this machine has no trusted certificates{why}"));
    }
    let versions = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS: {error}"))?;
    let config = Arc::new(versions.with_root_certificates(roots).with_no_client_auth());
    Ok(Arc::clone(TRUSTED.get_or_init(|| config)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_that_cannot_be_used_says_what_would_be_right() {
        for (url, expected) in [
            ("", "must be a URL"),
            ("127.0.0.1:80", "must begin with http:// or https://"),
            ("ftp://alerts.test/", "must begin with http:// or https://"),
            (
                "http://me:word@alerts.test/",
                "must not hold a name or password; there is `token` for that",
            ),
        ] {
            let error = Endpoint::new(url).map(|it| it.host).expect_err(url);
            assert_eq!(error.expected, expected, "{url}");
            assert!(!error.to_string().contains("word@"), "{error}");
        }
    }

    #[test]
    fn ports_and_paths_are_understood() {
        let endpoint = |url| Endpoint::new(url).expect("a URL");
        let secure = endpoint("https://[::1]/x");
        assert_eq!((secure.host.as_str(), secure.port, secure.tls), ("::1", 443, true));
        let plain = endpoint("http://alerts.test/am/?a=b").below("/api/v2/alerts");
        assert_eq!((plain.port, plain.tls), (80, false));
        assert_eq!(plain.url, "http://alerts.test/am/api/v2/alerts");
        assert_eq!(endpoint("http://a.test").below("/x").url, "http://a.test/x");
    }

    #[test]
    fn an_answer_says_whether_to_try_again() {
        let verdict = |status: u16, retry_after: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            if let Some(seconds) = retry_after {
                headers.insert(RETRY_AFTER, HeaderValue::from_static(seconds));
            }
            verdict(StatusCode::from_u16(status).expect("a status"), &headers, b" why\n")
        };
        assert_eq!(verdict(204, None), Ok(()));
        for status in [301, 400, 401, 404] {
            let refused = verdict(status, None).expect_err("refused");
            assert_eq!(refused, HandlerError::Refused(format!("status {status}: why")));
        }
        for (status, header, retry_after) in [
            (500, None, None),
            (408, None, None),
            (429, Some("7"), Some(Duration::from_secs(7))),
            (503, Some("99999999"), Some(RETRY_AFTER_MAX)),
            (503, Some("Wed, 21 Oct 2026 07:28:00 GMT"), None),
        ] {
            let reason = format!("status {status}: why");
            let failed = HandlerError::Failed { reason, retry_after };
            assert_eq!(verdict(status, header), Err(failed));
        }
    }
}
