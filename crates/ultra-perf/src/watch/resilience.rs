//! Circuit breakers of the handle, and the budget of retries.

use std::time::Instant;

use monitor::{Kind, Readings, Unit};
use resilience::{CircuitBreakerStats, State};

use super::Family;
use crate::UltraPerf;

pub(super) const FAMILIES: &[Family] = &[
    (
        "circuit_breaker_state",
        Kind::Gauge,
        Unit::None,
        "State of a circuit breaker: 0 closed, 1 open, 2 half-open.",
    ),
    (
        "circuit_breaker_opened_total",
        Kind::Counter,
        Unit::None,
        "Times that a circuit breaker has opened.",
    ),
    ("retry_budget_given_total", Kind::Counter, Unit::None, "Retries and hedges that it gave."),
    (
        "retry_budget_refused_total",
        Kind::Counter,
        Unit::None,
        "Retries and hedges that it did not.",
    ),
];

/// The number by which a state is watched.
pub(crate) fn state_number(state: State) -> f64 {
    match state {
        State::Closed => 0.0,
        State::Open => 1.0,
        State::HalfOpen => 2.0,
    }
}

fn report_breaker(name: &str, stats: &CircuitBreakerStats, out: &mut Readings) {
    let labels = [("breaker", name)];
    out.gauge("circuit_breaker_state", &labels, state_number(stats.state));
    out.counter("circuit_breaker_opened_total", &labels, stats.opened as f64);
}

pub(super) fn report(perf: &UltraPerf, out: &mut Readings) {
    for (name, stats) in perf.breakers().list() {
        report_breaker(&name, &stats, out);
    }
    let budget = perf.retry_budget().stats_at(Instant::now());
    for (name, count) in
        [("retry_budget_given_total", budget.given), ("retry_budget_refused_total", budget.refused)]
    {
        out.counter(name, &[], count as f64);
    }
}
