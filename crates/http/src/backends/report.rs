//! What the backends are doing, for the admin API and for Prometheus.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ultra_perf::loadbalancer::BackendStats;
use ultra_perf::monitor::{Kind, Readings, Unit};
use ultra_perf::resilience::{
    CircuitBreaker, CircuitBreakerStats, Hedge, HedgeStats, RetryBudgetStats, State,
};

use super::Backends;
use crate::upstream::UpstreamStats;
use crate::watch::Family;

/// The metrics of backends, their breakers and the balancer.
pub(crate) const FAMILIES: &[Family] = &[
    (
        "backend_requests_total",
        Kind::Counter,
        Unit::None,
        "Requests to a backend by what they said of it.",
    ),
    (
        "backend_state",
        Kind::Gauge,
        Unit::None,
        "What a backend is doing: 1 for the state that it is in.",
    ),
    ("backend_in_flight", Kind::Gauge, Unit::None, "Requests that a backend works on."),
    ("backend_weight", Kind::Gauge, Unit::None, "Weight of a backend."),
    (
        "backend_latency_seconds",
        Kind::Gauge,
        Unit::Seconds,
        "Average time to the head of an answer, as the policy sees it.",
    ),
    ("backend_ejections_total", Kind::Counter, Unit::None, "Ejections of a backend."),
    ("backend_connections", Kind::Gauge, Unit::None, "Connections to a backend."),
    (
        "circuit_breaker_state",
        Kind::Gauge,
        Unit::None,
        "State of a backend's circuit breaker: 0 closed, 1 open, 2 half-open.",
    ),
    (
        "circuit_breaker_opened_total",
        Kind::Counter,
        Unit::None,
        "Times that a circuit breaker has opened.",
    ),
    (
        "balancer_retries_total",
        Kind::Counter,
        Unit::None,
        "Requests that were sent to another backend.",
    ),
    (
        "balancer_retry_budget_refused_total",
        Kind::Counter,
        Unit::None,
        "Retries and hedges that the budget did not give.",
    ),
    ("balancer_hedges_total", Kind::Counter, Unit::None, "Requests that were hedged."),
    ("balancer_hedges_won_total", Kind::Counter, Unit::None, "Hedges that were the answer."),
];

/// One backend at a moment.
pub(crate) struct NodeReport {
    pub(crate) stats: BackendStats,
    pub(crate) breaker: Option<CircuitBreakerStats>,
    pub(crate) connections: UpstreamStats,
    pub(crate) requests: Requests,
    /// Ejections since the start.
    pub(crate) ejected: u64,
}

/// What became of a backend's requests since the start.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Requests {
    pub(crate) success: u64,
    pub(crate) failure: u64,
    pub(crate) overload: u64,
    pub(crate) ignored: u64,
    pub(crate) cancelled: u64,
}

impl Requests {
    /// The counts by the names of the outcomes.
    pub(crate) fn by_name(&self) -> [(&'static str, u64); 5] {
        [
            ("success", self.success),
            ("failure", self.failure),
            ("overload", self.overload),
            ("ignored", self.ignored),
            ("cancelled", self.cancelled),
        ]
    }
}

/// What is done beyond one attempt for each request.
pub(crate) struct ExtraReport {
    pub(crate) retried: u64,
    pub(crate) budget: RetryBudgetStats,
    pub(crate) hedges: Option<HedgeStats>,
}

impl Backends {
    /// Describes every backend, in the order of the configuration.
    pub(crate) fn report(&self) -> Vec<NodeReport> {
        let nodes = self.0.nodes.iter().zip(self.0.balancer.backends());
        nodes
            .map(|(node, stats)| {
                let load = |counter: &super::AtomicU64| counter.load(Ordering::Relaxed);
                let tally = &node.tally;
                NodeReport {
                    stats,
                    breaker: node.breaker.as_ref().map(CircuitBreaker::stats),
                    connections: node.upstream.stats(),
                    requests: Requests {
                        success: load(&tally.succeeded),
                        failure: load(&tally.failed),
                        overload: load(&tally.overloaded),
                        ignored: load(&tally.ignored),
                        cancelled: load(&tally.cancelled),
                    },
                    ejected: load(&tally.ejected),
                }
            })
            .collect()
    }

    /// Describes retries and hedges.
    pub(crate) fn extra(&self) -> ExtraReport {
        ExtraReport {
            retried: self.0.retried.load(Ordering::Relaxed),
            budget: self.0.budget.stats_at(Instant::now()),
            hedges: self.0.hedge.as_ref().map(Hedge::stats),
        }
    }

    /// Tells the registry about every backend and about what is done beyond one attempt.
    pub(crate) fn report_to(&self, out: &mut Readings) {
        for node in self.report() {
            let backend = ("backend", &*node.stats.id);
            for (outcome, count) in node.requests.by_name() {
                let labels = [backend, ("outcome", outcome)];
                out.counter("backend_requests_total", &labels, count as f64);
            }
            let state = [backend, ("state", node.stats.state.as_str())];
            out.gauge("backend_state", &state, 1.0);
            let labels = [backend];
            out.gauge("backend_in_flight", &labels, node.stats.in_flight as f64);
            out.gauge("backend_weight", &labels, f64::from(node.stats.weight));
            if let Some(latency) = node.stats.latency {
                out.gauge("backend_latency_seconds", &labels, latency.as_secs_f64());
            }
            out.counter("backend_ejections_total", &labels, node.ejected as f64);
            let connections = node.connections;
            for (state, count) in [("active", connections.active), ("idle", connections.idle)] {
                out.gauge("backend_connections", &[backend, ("state", state)], count as f64);
            }
            if let Some(breaker) = node.breaker {
                let state = match breaker.state {
                    State::Closed => 0.0,
                    State::Open => 1.0,
                    State::HalfOpen => 2.0,
                };
                out.gauge("circuit_breaker_state", &labels, state);
                out.counter("circuit_breaker_opened_total", &labels, breaker.opened as f64);
            }
        }
        let extra = self.extra();
        for (name, count) in [
            ("balancer_retries_total", extra.retried),
            ("balancer_retry_budget_refused_total", extra.budget.refused),
            ("balancer_hedges_total", extra.hedges.map_or(0, |hedges| hedges.hedged)),
            ("balancer_hedges_won_total", extra.hedges.map_or(0, |hedges| hedges.won)),
        ] {
            out.counter(name, &[], count as f64);
        }
    }
}

/// What the admin API calls a breaker's state.
pub(crate) fn breaker_name(state: State) -> &'static str {
    match state {
        State::Closed => "closed",
        State::Open => "open",
        State::HalfOpen => "half_open",
    }
}

/// Seconds for JSON.
pub(crate) fn seconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e6
}
