//! The admin API of a running accelerator, or of a service that serves it, as the commands ask it.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

const PATIENCE: Duration = Duration::from_secs(10);
const MAX_ANSWER_BYTES: usize = 16 << 20;

/// Where the admin API is.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct AdminArgs {
    /// Address of the admin API
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8600")]
    admin: SocketAddr,
}

/// Why the admin API did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdminError {
    #[error(
        "no accelerator answers on {0}; is `ultra-perf serve`, or a service with an `AdminServer`, running \
         there?"
    )]
    Connect(SocketAddr, #[source] std::io::Error),
    #[error("the accelerator's answer could not be read")]
    Http(#[from] hyper::Error),
    #[error("the accelerator's answer could not be read: {0}")]
    Answer(String),
    #[error("the accelerator did not answer within {PATIENCE:?}")]
    Timeout,
    #[error("the accelerator refused ({status}): {detail}{}", indented(problems))]
    Refused { status: StatusCode, detail: String, problems: Vec<String> },
    #[error("the runtime did not start")]
    Runtime(#[source] std::io::Error),
}

impl AdminError {
    /// The exit code: 2 where what was asked for is wrong in itself, 1 where it could not be done.
    pub(crate) fn exit_code(&self) -> ExitCode {
        match self {
            Self::Refused { status: StatusCode::UNPROCESSABLE_ENTITY, .. } => ExitCode::from(2),
            _ => ExitCode::FAILURE,
        }
    }
}

fn indented(problems: &[String]) -> String {
    problems.iter().map(|problem| format!("\n  {}", problem.replace('\n', "\n  "))).collect()
}

impl AdminArgs {
    /// The admin API at an address that is known.
    pub(crate) fn at(admin: SocketAddr) -> Self {
        Self { admin }
    }

    /// Asks for what is at a path under `/performance`.
    pub(crate) fn get(self, path: &str) -> Result<Value, AdminError> {
        self.ask(Method::GET, path, None)
    }

    /// Sends a body of JSON to a path under `/performance`.
    pub(crate) fn post(self, path: &str, body: &Value) -> Result<Value, AdminError> {
        self.ask(Method::POST, path, Some(body))
    }

    /// As [`post`](Self::post), with `PUT`.
    pub(crate) fn put(self, path: &str, body: &Value) -> Result<Value, AdminError> {
        self.ask(Method::PUT, path, Some(body))
    }

    fn ask(self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, AdminError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(AdminError::Runtime)?;
        let asking =
            async { tokio::time::timeout(PATIENCE, self.exchange(method, path, body)).await };
        runtime.block_on(asking).map_err(|_| AdminError::Timeout)?
    }

    async fn exchange(
        self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, AdminError> {
        let answer = |error: &dyn std::error::Error| AdminError::Answer(error.to_string());
        let failed = |error| AdminError::Connect(self.admin, error);
        let stream = TcpStream::connect(self.admin).await.map_err(failed)?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let driver = tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(format!("/performance{path}"))
            .header(header::HOST, self.admin.to_string())
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body.map(Value::to_string).unwrap_or_default())))
            .map_err(|error| answer(&error))?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await;
        driver.abort();
        let body = body.map_err(|error| AdminError::Answer(error.to_string()))?.to_bytes();
        let told: Value = serde_json::from_slice(&body).map_err(|error| answer(&error))?;
        if status.is_success() {
            return Ok(told);
        }
        let problems = told["problems"].as_array().into_iter().flatten();
        Err(AdminError::Refused {
            status,
            detail: text(&told["detail"]),
            problems: problems.map(text).collect(),
        })
    }
}

/// Keeps a name from being read as more than one segment of a path.
pub(crate) fn segment(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:".contains(&byte);
    name.bytes()
        .map(|byte| match plain(byte) {
            true => char::from(byte).to_string(),
            false => format!("%{byte:02X}"),
        })
        .collect()
}

/// A value as people read it: text without quotes, and nothing that moves the cursor.
pub(crate) fn text(value: &Value) -> String {
    let shown = match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    shown.chars().map(|c| if c.is_control() && c != '\n' { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_name_stays_one_segment_whatever_is_in_it() {
        for (name, expected) in [
            ("cache.undersized:users", "cache.undersized:users"),
            ("disk.full:/var/lib", "disk.full:%2Fvar%2Flib"),
            ("lb.uneven:http://a?b#c", "lb.uneven:http:%2F%2Fa%3Fb%23c"),
            ("a b%é", "a%20b%25%C3%A9"),
        ] {
            assert_eq!(segment(name), expected);
        }
    }

    #[test]
    fn what_another_process_says_does_not_move_the_cursor() {
        assert_eq!(text(&json!("a\u{1b}[2Jb")), "a [2Jb");
        assert_eq!(text(&json!(1.5)), "1.5");
        assert_eq!(text(&Value::Null), "-");
    }

    #[test]
    fn what_is_wrong_in_itself_has_an_exit_code_of_its_own() {
        let refused = |status, problems: &[&str]| AdminError::Refused {
            status,
            detail: "No.".to_owned(),
            problems: problems.iter().map(|&it| it.to_owned()).collect(),
        };
        let wrong = refused(StatusCode::UNPROCESSABLE_ENTITY, &["a = 1: b", "c = 2: d"]);
        assert_eq!(format!("{:?}", wrong.exit_code()), format!("{:?}", ExitCode::from(2)));
        let lines =
            "the accelerator refused (422 Unprocessable Entity): No.\n  a = 1: b\n  c = 2: d";
        assert_eq!(wrong.to_string(), lines);
        let late = refused(StatusCode::CONFLICT, &[]);
        assert_eq!(format!("{:?}", late.exit_code()), format!("{:?}", ExitCode::FAILURE));
    }
}
