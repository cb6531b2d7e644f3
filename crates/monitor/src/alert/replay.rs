//! Rules over a stretch of time that is past or made up, evaluated as fast as it goes.

use std::time::Duration;

use crate::clock::Moment;
use crate::source::Source;

use super::engine::Engine;
use super::event::Outcome;

/// Evaluations of one replay at most.
pub(super) const STEPS_MAX: i64 = 2_000_000;

/// Evaluates at every step from `from_ms` to `to_ms`, both included, and hands out what came of it.
pub(super) fn replay(
    engine: &mut Engine,
    source: &dyn Source,
    from_ms: i64,
    to_ms: i64,
    step_ms: i64,
    mut each: impl FnMut(Moment, Outcome),
) {
    let mut at = from_ms;
    while at <= to_ms {
        let since = u64::try_from(at.saturating_sub(from_ms)).unwrap_or(0);
        let now = Moment { monotonic: Duration::from_millis(since), unix_ms: at };
        let outcome = engine.evaluate(now, source);
        each(now, outcome);
        at = at.saturating_add(step_ms);
    }
}
