//! Ends the test process when a test has stood still for too long: a deadlock blocks the threads that
//! could notice it.

use std::sync::mpsc;
use std::time::Duration;

/// Far above what any test needs on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Watches until it is dropped.
pub(crate) struct Watchdog {
    _alive: mpsc::SyncSender<()>,
}

impl Watchdog {
    pub(crate) fn over(what: &'static str) -> Self {
        let (alive, gone) = mpsc::sync_channel::<()>(0);
        std::thread::spawn(move || {
            if gone.recv_timeout(PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout) {
                eprintln!("{what}: nothing has moved for {PATIENCE:?}");
                std::process::abort();
            }
        });
        Self { _alive: alive }
    }
}
