//! Connects a client and the origin after both have switched protocols, as for WebSocket.
//!
//! From the 101 response on, bytes go both ways unread. The tunnel is a task of the server's: it
//! counts as one of its requests, keeps the client's place and the origin connection's, ends when
//! either side closes or when nothing has passed for too long, and is cut at a drain's deadline.

use std::{future::poll_fn, io, pin::pin, task::Poll, time::Duration};

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt;
use tracing::debug;

use crate::{
    server::ConnInfo,
    upstream::{UpstreamBody, UpstreamError},
};

/// Starts a tunnel between a client whose request asked for one and an origin that agreed.
///
/// `client` comes from [`hyper::upgrade::on`] with the request, `origin` is the body of the 101
/// response. The caller still has to answer the client with that response's head; the tunnel
/// begins when it has been sent.
///
/// # Panics
///
/// Outside of a tokio runtime.
pub fn open(
    client: OnUpgrade,
    origin: UpstreamBody,
    connection: &ConnInfo,
    idle_timeout: Duration,
) {
    open_with(client, origin, connection, idle_timeout, ());
}

/// As [`open`]; `held` is dropped when the tunnel ends.
///
/// # Panics
///
/// Outside of a tokio runtime.
pub(crate) fn open_with<H: Send + 'static>(
    client: OnUpgrade,
    origin: UpstreamBody,
    connection: &ConnInfo,
    idle_timeout: Duration,
    held: H,
) {
    let info = connection.clone();
    connection.spawn(async move {
        let _held = held;
        if let Err(error) = run(client, origin, info, idle_timeout).await {
            debug!(error = &error as &dyn std::error::Error, "tunnel ended");
        }
    });
}

#[derive(Debug, thiserror::Error)]
enum TunnelError {
    #[error("the origin did not switch")]
    Origin(#[from] UpstreamError),
    #[error("the client did not switch")]
    Client(#[from] hyper::Error),
    #[error("a side broke off")]
    Io(#[from] io::Error),
    #[error("nothing passed for {0:?}")]
    Idle(Duration),
}

async fn run(
    client: OnUpgrade,
    origin: UpstreamBody,
    info: ConnInfo,
    idle_timeout: Duration,
) -> Result<(), TunnelError> {
    let mut origin = origin.upgrade().await?;
    let client = tokio::time::timeout(idle_timeout, client)
        .await
        .map_err(|_| TunnelError::Idle(idle_timeout))??;
    let mut client = TokioIo::new(client);
    info.begin_tunnel();
    let read_ahead = std::mem::take(&mut origin.read_ahead);
    let copy = async {
        client.write_all(&read_ahead).await?;
        tokio::io::copy_bidirectional(&mut client, &mut origin.stream).await
    };
    let mut copy = pin!(copy);
    let mut watch = pin!(tokio::time::sleep(idle_timeout));
    poll_fn(|cx| {
        if let Poll::Ready(end) = copy.as_mut().poll(cx) {
            return Poll::Ready(end.map(|_| ()).map_err(TunnelError::Io));
        }
        while watch.as_mut().poll(cx).is_ready() {
            let left = idle_timeout.saturating_sub(info.quiet_for());
            if left.is_zero() {
                return Poll::Ready(Err(TunnelError::Idle(idle_timeout)));
            }
            watch.as_mut().reset(tokio::time::Instant::now() + left);
        }
        Poll::Pending
    })
    .await
}
