//! `ultra-perf purge`: asks the admin API of a running accelerator to forget a URL, or tags.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

const PATIENCE: Duration = Duration::from_secs(10);
const MAX_ANSWER_BYTES: usize = 1 << 20;

/// Options of `ultra-perf purge`.
#[derive(Debug, Args)]
pub(crate) struct PurgeArgs {
    /// The URL as clients ask for it, with scheme and host
    #[arg(required_unless_present = "tags")]
    url: Option<String>,
    /// Every answer with this name in its Surrogate-Key or Cache-Tag; may be given several times
    #[arg(long = "tag", value_name = "TAG", conflicts_with = "url")]
    tags: Vec<String>,
    /// Leave what has the tags stale: it is refreshed behind the next request where it allows that
    #[arg(long, requires = "tags", conflicts_with = "url")]
    soft: bool,
    /// Address of the admin API
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8600")]
    admin: SocketAddr,
}

/// Why a purge was not made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PurgeError {
    #[error("no accelerator answers on {0}; is `ultra-perf serve` running there?")]
    Connect(SocketAddr, #[source] std::io::Error),
    #[error("the accelerator's answer could not be read")]
    Http(#[from] hyper::Error),
    #[error("the accelerator's answer could not be read: {0}")]
    Answer(String),
    #[error("the accelerator did not answer within {PATIENCE:?}")]
    Timeout,
    #[error("the accelerator refused ({status}): {detail}")]
    Refused { status: StatusCode, detail: String },
    #[error("the runtime did not start")]
    Runtime(#[source] std::io::Error),
}

pub(crate) fn run(args: &PurgeArgs) -> Result<(), PurgeError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(PurgeError::Runtime)?;
    let asking = async { tokio::time::timeout(PATIENCE, ask(args)).await };
    let purged = runtime.block_on(asking).map_err(|_| PurgeError::Timeout)??;
    println!("purged {purged}");
    Ok(())
}

/// Sends the request and returns what was purged.
async fn ask(args: &PurgeArgs) -> Result<String, PurgeError> {
    let failed = |error| PurgeError::Connect(args.admin, error);
    let stream = TcpStream::connect(args.admin).await.map_err(failed)?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let body = match &args.url {
        Some(url) => serde_json::json!({ "url": url }),
        None => serde_json::json!({ "tags": args.tags, "soft": args.soft }),
    };
    let request = Request::post("/performance/cache/purge")
        .header(header::HOST, args.admin.to_string())
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body.to_string())))
        .map_err(|error| PurgeError::Answer(error.to_string()))?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await;
    driver.abort();
    let body = body.map_err(|error| PurgeError::Answer(error.to_string()))?.to_bytes();
    let answer: serde_json::Value =
        serde_json::from_slice(&body).map_err(|error| PurgeError::Answer(error.to_string()))?;
    let text = |field: &str| answer[field].as_str().unwrap_or_default().to_owned();
    if status.is_success() {
        Ok(match &args.url {
            Some(_) => text("purged"),
            None if args.soft => format!("{} softly", args.tags.join(", ")),
            None => args.tags.join(", "),
        })
    } else {
        Err(PurgeError::Refused { status, detail: text("detail") })
    }
}
