//! `cargo xtask alertmanager`: alerts in a real Alertmanager.
//!
//! The test itself lives with the monitor: it starts the server on a free port, sees an alert arrive, stay
//! while it is sent again, and end. In an ordinary test run it is passed over where the server is missing;
//! here it is installed first.

use crate::{Outcome, repo, test};

/// Runs the test, getting the server first.
pub(crate) fn run() -> Outcome {
    test::provide_alertmanager()?;
    repo::run(&mut repo::cargo(
        "test --package monitor --features webhook --test alertmanager -- --nocapture",
    ))
}
