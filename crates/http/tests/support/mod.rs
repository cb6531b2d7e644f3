//! What the socket tests share: a scripted origin and a raw client.
#![allow(dead_code, reason = "each test binary compiles this module and uses its own part of it")]

pub(crate) mod client;
pub(crate) mod origin;
pub(crate) mod proxy;

use std::{future::Future, time::Duration};

/// How long a test waits for something that must happen; generous, for loaded machines.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Waits for `future`, failing the test after [`PATIENCE`].
pub(crate) async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(output) => output,
        Err(_) => panic!("{what} did not happen within {PATIENCE:?}"),
    }
}

/// Polls `condition` until it holds, failing the test after [`PATIENCE`].
pub(crate) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    until(what, async || condition()).await;
}

/// As [`eventually`], for what has to be asked of a server.
pub(crate) async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let asking = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon(what, asking).await;
}
