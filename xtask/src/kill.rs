//! `cargo xtask kill-rounds`: the disk tier's SIGKILL test, as long as one likes.
//!
//! The test itself lives with the disk tier; an ordinary test run gives it a few rounds.

use crate::{Outcome, repo};

/// Runs the test with this many processes to kill.
pub(crate) fn run(rounds: u32) -> Outcome {
    let mut command =
        repo::cargo("test --package cache-tiered --features disk --test disk_kill -- --nocapture");
    repo::run(command.env("ULTRA_PERF_KILL_ROUNDS", rounds.to_string()))
}
