//! Balancers of the handle and their backends.

use loadbalancer::Balancer;
use monitor::{Kind, Readings, Unit};

use super::Family;

pub(super) const FAMILIES: &[Family] = &[
    ("balancer_backends", Kind::Gauge, Unit::None, "Backends of a balancer."),
    ("balancer_ready", Kind::Gauge, Unit::None, "Backends that get traffic."),
    ("balancer_in_flight", Kind::Gauge, Unit::None, "Leases that are out."),
    ("balancer_leases_total", Kind::Counter, Unit::None, "Leases."),
    ("balancer_waiting", Kind::Gauge, Unit::None, "Calls that wait for a backend."),
    ("balancer_panicking", Kind::Gauge, Unit::None, "Whether ejections and checks are ignored."),
    ("balancer_shed_total", Kind::Counter, Unit::None, "Calls that found all places taken."),
    (
        "balancer_timed_out_total",
        Kind::Counter,
        Unit::None,
        "Calls that waited for a backend in vain.",
    ),
    (
        "balancer_backend_state",
        Kind::Gauge,
        Unit::None,
        "What a backend is doing: 1 for the state that it is in.",
    ),
    ("balancer_backend_in_flight", Kind::Gauge, Unit::None, "Leases of a backend that are out."),
    (
        "balancer_backend_latency_seconds",
        Kind::Gauge,
        Unit::Seconds,
        "Average latency of a backend, as the policy sees it.",
    ),
    ("balancer_backend_answers_total", Kind::Counter, Unit::None, "Calls by what became of them."),
];

pub(crate) fn report(name: &str, balancer: &Balancer, out: &mut Readings) {
    let (stats, labels) = (balancer.stats(), [("balancer", name)]);
    for (metric, value) in [
        ("balancer_backends", stats.backends as f64),
        ("balancer_ready", stats.ready as f64),
        ("balancer_in_flight", stats.in_flight as f64),
        ("balancer_waiting", stats.waiting as f64),
        ("balancer_panicking", f64::from(u8::from(stats.panicking))),
    ] {
        out.gauge(metric, &labels, value);
    }
    for (metric, count) in [
        ("balancer_leases_total", stats.leases),
        ("balancer_shed_total", stats.shed),
        ("balancer_timed_out_total", stats.timed_out),
    ] {
        out.counter(metric, &labels, count as f64);
    }
    for backend in balancer.backends() {
        let labels = [labels[0], ("backend", &*backend.id)];
        out.gauge("balancer_backend_in_flight", &labels, f64::from(backend.in_flight));
        if let Some(latency) = backend.latency {
            out.gauge("balancer_backend_latency_seconds", &labels, latency.as_secs_f64());
        }
        let state = [labels[0], labels[1], ("state", backend.state.as_str())];
        out.gauge("balancer_backend_state", &state, 1.0);
        let succeeded = backend.answered.saturating_sub(backend.failed);
        for (outcome, count) in [("success", succeeded), ("failure", backend.failed)] {
            let labels = [labels[0], labels[1], ("outcome", outcome)];
            out.counter("balancer_backend_answers_total", &labels, count as f64);
        }
    }
}
