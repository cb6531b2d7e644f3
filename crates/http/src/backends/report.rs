//! What the backends are doing, for the admin API and for Prometheus.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ultra_perf::loadbalancer::{BackendState, BackendStats};
use ultra_perf::resilience::{
    CircuitBreaker, CircuitBreakerStats, Hedge, HedgeStats, RetryBudgetStats, State,
};

use super::Backends;
use crate::exposition::{Exposition, Kind};
use crate::upstream::UpstreamStats;

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

    /// Appends the Prometheus text of everything here.
    pub(crate) fn write_prometheus(&self, out: &mut String) {
        let nodes = self.report();
        let mut out = Exposition(out);
        let each = |value: &dyn Fn(&NodeReport) -> Option<String>| -> Vec<(String, String)> {
            let line =
                |node: &NodeReport| Some((format!("backend=\"{}\"", node.stats.id), value(node)?));
            nodes.iter().filter_map(line).collect()
        };
        let outcomes: Vec<_> = nodes
            .iter()
            .flat_map(|node| {
                node.requests.by_name().map(|(outcome, count)| {
                    let id = &node.stats.id;
                    (format!("backend=\"{id}\",outcome=\"{outcome}\""), count.to_string())
                })
            })
            .collect();
        let help = "Requests to a backend by what they said of it.";
        out.family("backend_requests_total", Kind::Counter, help, outcomes);
        let states: Vec<_> = nodes
            .iter()
            .map(|node| {
                let (id, state) = (&node.stats.id, state_name(node.stats.state));
                (format!("backend=\"{id}\",state=\"{state}\""), "1".to_owned())
            })
            .collect();
        out.family("backend_state", Kind::Gauge, "What a backend is doing.", states);
        let in_flight = each(&|node| Some(node.stats.in_flight.to_string()));
        let help = "Requests that a backend works on.";
        out.family("backend_in_flight", Kind::Gauge, help, in_flight);
        let weight = each(&|node| Some(node.stats.weight.to_string()));
        out.family("backend_weight", Kind::Gauge, "Weight of a backend.", weight);
        let latency =
            each(&|node| node.stats.latency.map(|latency| latency.as_secs_f64().to_string()));
        let help = "Average time to the head of an answer, as the policy sees it.";
        out.family("backend_latency_seconds", Kind::Gauge, help, latency);
        let ejected = each(&|node| Some(node.ejected.to_string()));
        out.family("backend_ejections_total", Kind::Counter, "Ejections of a backend.", ejected);
        let connections: Vec<_> = nodes
            .iter()
            .flat_map(|node| {
                let id = &node.stats.id;
                let of = |state: &str, count: usize| {
                    (format!("backend=\"{id}\",state=\"{state}\""), count.to_string())
                };
                [of("active", node.connections.active), of("idle", node.connections.idle)]
            })
            .collect();
        out.family("backend_connections", Kind::Gauge, "Connections to a backend.", connections);
        let breaker = each(&|node| {
            let number = match node.breaker?.state {
                State::Closed => "0",
                State::Open => "1",
                State::HalfOpen => "2",
            };
            Some(number.to_owned())
        });
        let help = "State of a backend's circuit breaker: 0 closed, 1 open, 2 half-open.";
        out.family("circuit_breaker_state", Kind::Gauge, help, breaker);
        let opened = each(&|node| Some(node.breaker?.opened.to_string()));
        let help = "Times that a circuit breaker has opened.";
        out.family("circuit_breaker_opened_total", Kind::Counter, help, opened);

        let (stats, extra) = (self.0.balancer.stats(), self.extra());
        let hedged = extra.hedges.map_or(0, |hedges| hedges.hedged);
        let won = extra.hedges.map_or(0, |hedges| hedges.won);
        for (name, kind, help, value) in [
            (
                "balancer_waiting",
                Kind::Gauge,
                "Requests that wait for a backend.",
                stats.waiting as u64,
            ),
            (
                "balancer_shed_total",
                Kind::Counter,
                "Requests that found all places taken.",
                stats.shed,
            ),
            (
                "balancer_timed_out_total",
                Kind::Counter,
                "Requests that waited for a backend in vain.",
                stats.timed_out,
            ),
            (
                "balancer_panicking",
                Kind::Gauge,
                "Whether ejections and checks are ignored.",
                u64::from(stats.panicking),
            ),
            (
                "balancer_retries_total",
                Kind::Counter,
                "Requests that were sent to another backend.",
                extra.retried,
            ),
            (
                "balancer_retry_budget_refused_total",
                Kind::Counter,
                "Retries and hedges that the budget did not give.",
                extra.budget.refused,
            ),
            ("balancer_hedges_total", Kind::Counter, "Requests that were hedged.", hedged),
            ("balancer_hedges_won_total", Kind::Counter, "Hedges that were the answer.", won),
        ] {
            out.single(name, kind, help, value);
        }
    }
}

/// What the admin API and the metrics call a backend's state.
pub(crate) fn state_name(state: BackendState) -> &'static str {
    match state {
        BackendState::Ready => "ready",
        BackendState::SlowStart => "slow_start",
        BackendState::Unknown => "unknown",
        BackendState::Ejected => "ejected",
        BackendState::Down => "down",
        BackendState::Draining => "draining",
        BackendState::Suspended => "suspended",
        _ => "other",
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
