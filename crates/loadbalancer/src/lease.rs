//! The lease of one call: a place in a backend, and what the call tells about it.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use resilience::Outcome;

use crate::latency::{Averaging, Nanos};
use crate::node::Node;
use crate::sync::Relaxed;

/// A place in a backend for one call; it is given back when the lease goes.
///
/// Say how the call ended with [`complete`](Self::complete), or with [`answered`](Self::answered) if
/// it keeps its place for longer than its answer took. Dropped without either, the call was
/// cancelled: that it had lasted so long counts if it makes the backend look slower, and it is
/// neither a success nor a failure. A lease whose backend has left the set stays good.
#[must_use = "a lease that is dropped gives its place back"]
pub struct Lease {
    node: Arc<Node>,
    /// When it began, if the policy looks at latencies.
    timed: Option<(Nanos, Averaging)>,
    bounded: bool,
    /// What was said before the end: whether it was a success.
    answered: Option<bool>,
    done: bool,
}

/// The longest that a retry hint keeps a backend from looking fast.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(300);
/// The fleet's median takes every so-many-th answer of a backend, which is often enough for it.
const MEDIAN_EVERY: u64 = 8;

impl Lease {
    /// Makes the lease of a place that was taken in `node`.
    pub(crate) fn new(node: Arc<Node>, timed: Option<(Nanos, Averaging)>, bounded: bool) -> Self {
        Self { node, timed, bounded, answered: None, done: false }
    }

    /// Returns the id of the backend.
    pub fn backend(&self) -> &Arc<str> {
        &self.node.id
    }

    /// Says how the call ended and gives the place back.
    ///
    /// A failure or an overload counts as a slow answer, however fast it came, and towards the
    /// ejection of the backend. An ignored outcome counts as nothing.
    ///
    /// # Cost
    ///
    /// A success reads the clock once under [`Policy::PeakEwma`](crate::Policy::PeakEwma), and not at
    /// all under the other policies; it locks nothing unless somebody waits for a place.
    pub fn complete(mut self, outcome: Outcome) {
        self.finish(Some(outcome), None);
    }

    /// Says how the call ended, at `now`.
    pub fn complete_at(mut self, outcome: Outcome, now: Instant) {
        self.finish(Some(outcome), Some(now));
    }

    /// Says how the call went and keeps the place, which goes back when the lease does.
    ///
    /// For answers that go on after their beginning, such as the body of a response: how long that
    /// lasts is up to the reader and the length, and says nothing about the backend's speed. After
    /// this, [`complete`](Self::complete) with a failure makes a success a failure after all; with any
    /// other outcome it gives the place back and no more, as a drop does.
    pub fn answered(&mut self, outcome: Outcome) {
        self.answer(outcome, None);
    }

    /// Says at `now` how the call went and keeps the place.
    pub fn answered_at(&mut self, outcome: Outcome, now: Instant) {
        self.answer(outcome, Some(now));
    }

    fn answer(&mut self, outcome: Outcome, now: Option<Instant>) {
        if self.answered.is_none() {
            self.answered = Some(outcome == Outcome::Success);
            self.judge(Some(outcome), now);
            self.node.open_answer();
        }
    }

    /// Gives the place back at `now` as a drop does: the call was cancelled.
    pub fn cancel_at(mut self, now: Instant) {
        self.finish(None, Some(now));
    }

    fn finish(&mut self, outcome: Option<Outcome>, now: Option<Instant>) {
        if std::mem::replace(&mut self.done, true) {
            return;
        }
        let node = &*self.node;
        match self.answered {
            None => self.judge(outcome, now),
            Some(good) => {
                node.close_answer();
                if good && outcome.is_some_and(Outcome::is_failure) {
                    self.row_of(node.failed_after_all(), now);
                }
            }
        }
        if self.bounded {
            node.fleet.bounded_leases.fetch_sub(1, Relaxed);
        }
        let released = node.leave();
        if (released.awaited || released.last_of_watched)
            && let Some(core) = node.core.upgrade()
        {
            core.released(node, released, now);
        }
    }

    /// Counts how the call ended; `None` if it was cancelled.
    fn judge(&self, outcome: Option<Outcome>, now: Option<Instant>) {
        let node = &*self.node;
        let read = || now.unwrap_or_else(Instant::now);
        match outcome {
            Some(Outcome::Success) => {
                node.succeeded();
                self.record(read, |latency, _| latency);
            }
            Some(Outcome::Failure) => {
                self.record(read, f64::max);
                self.row_of(node.failed(), now);
            }
            Some(Outcome::Overload { retry_after }) => {
                let hint = retry_after.unwrap_or_default().min(RETRY_AFTER_MAX).as_nanos() as f64;
                self.record(read, |latency, penalty| latency.max(penalty).max(hint));
                self.row_of(node.failed(), now);
            }
            Some(_) => node.unanswered(),
            None => {
                node.unanswered();
                if let Some((started, averaging)) = self.timed {
                    let now = node.nanos(read());
                    let least = now.saturating_sub(started) as f64;
                    let usual = node.fleet.median.get().unwrap_or(1.0);
                    node.latency.record_at_least(least, now, averaging, usual);
                }
            }
        }
    }

    /// Tells the balancer of the `row`-th failure in a row.
    fn row_of(&self, row: u32, now: Option<Instant>) {
        if let Some(core) = self.node.core.upgrade() {
            core.failed(&self.node, row, now);
        }
    }

    /// Records a latency as `seen` takes it, given the one measured and the penalty of a failure.
    fn record(&self, read: impl Fn() -> Instant, seen: impl Fn(f64, f64) -> f64) {
        let Some((started, averaging)) = self.timed else { return };
        let node = &*self.node;
        let now = node.nanos(read());
        let measured = now.saturating_sub(started) as f64;
        let sample = seen(measured, node.fleet.failure_penalty);
        let median = &node.fleet.median;
        let usual = median.get().unwrap_or(sample);
        node.latency.record(sample, now, averaging, usual);
        if sample == measured && node.answers().0 % MEDIAN_EVERY == 1 {
            median.record(measured);
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.finish(None, None);
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").field("backend", self.backend()).finish_non_exhaustive()
    }
}
