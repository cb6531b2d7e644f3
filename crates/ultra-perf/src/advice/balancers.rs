//! What the figures of balancers and their backends say about how calls are spread.

use monitor::advice::words::{number, percent, seconds};
use monitor::advice::{Action, Category, Effort, Finding, Priority};
use monitor::insight::{MetricSpec, Worse};
use monitor::{Aggregate, Selector};

use super::{Look, Rule, labelled};
use crate::config::Balancing;

/// Calls without which nothing is said.
const CALLS_MIN: f64 = 100.0;

pub(super) const RULES: &[Rule] = &[
    Rule {
        id: "lb.uneven",
        sees: "backends differ by more than half of their mean in what is in flight, under a policy that does not look at it",
        does: "sets `balancer.policy` to `peak-ewma`",
        risk: 2,
        check: |look| each(look, uneven),
    },
    Rule {
        id: "lb.outlier",
        sees: "a backend fails five times as often as the others, and more than 5 % of its calls",
        does: "advice: look at it, or let it be ejected",
        risk: 0,
        check: |look| each(look, outlier),
    },
    Rule {
        id: "lb.short",
        sees: "over 1 % of the calls find no place at any backend",
        does: "advice: more backends, or more calls to each",
        risk: 0,
        check: |look| each(look, short_of_places),
    },
    Rule {
        id: "lb.panicking",
        sees: "for over 5 % of the time so many backends were out that checks are ignored",
        does: "advice: look at the backends",
        risk: 0,
        check: |look| each(look, panicking),
    },
];

/// What one balancer did in the window.
#[derive(Debug, Clone)]
pub(super) struct BalancerReading {
    pub(super) name: String,
    pub(super) policy: Balancing,
    pub(super) backends: Vec<BackendReading>,
    pub(super) leases: f64,
    /// Calls that found no place, and those that waited for one in vain.
    pub(super) turned_away: f64,
    /// Part of the time in which ejections and checks were ignored.
    pub(super) panicking: f64,
}

/// What one backend did.
#[derive(Debug, Clone, Default)]
pub(super) struct BackendReading {
    pub(super) id: String,
    pub(super) in_flight: f64,
    pub(super) latency_seconds: Option<f64>,
    pub(super) succeeded: f64,
    pub(super) failed: f64,
}

impl BackendReading {
    fn failing(&self) -> f64 {
        self.failed / (self.succeeded + self.failed).max(1.0)
    }
}

impl BalancerReading {
    fn finding(&self, priority: Priority, title: String, recommendation: String) -> Finding {
        Finding {
            subject: self.name.clone(),
            ..Finding::advice(Category::Balancer, priority, title, recommendation)
        }
    }
}

fn each(look: &Look<'_>, rule: fn(&BalancerReading) -> Option<Finding>) -> Vec<Finding> {
    let names = look.values_of("balancer_leases_total", "balancer");
    let check = |name: String| {
        let of = read(look, &name)?;
        let finding = rule(&of)?;
        let metrics = [in_flight(&name), turned_away(&name)];
        Some(Finding { evidence: look.evidence(&metrics), ..finding })
    };
    names.into_iter().filter_map(check).collect()
}

fn read(look: &Look<'_>, name: &str) -> Option<BalancerReading> {
    let of = [("balancer", name)];
    let found = look.context.source.matching(&labelled("balancer_backend_in_flight", &of));
    let backends = found.iter().filter_map(|matched| {
        let id = matched.key.labels.get("backend")?;
        let labels = [of[0], ("backend", id)];
        let answers = |outcome| {
            look.grown("balancer_backend_answers_total", &[of[0], labels[1], ("outcome", outcome)])
        };
        Some(BackendReading {
            id: id.to_owned(),
            in_flight: look.read("balancer_backend_in_flight", &labels, Aggregate::Avg)?,
            latency_seconds: look.read("balancer_backend_latency_seconds", &labels, Aggregate::Avg),
            succeeded: answers("success"),
            failed: answers("failure"),
        })
    });
    Some(BalancerReading {
        name: name.to_owned(),
        policy: look.config.balancer.policy,
        backends: backends.collect(),
        leases: look.read("balancer_leases_total", &of, Aggregate::Delta)?,
        turned_away: look.grown("balancer_shed_total", &of)
            + look.grown("balancer_timed_out_total", &of),
        panicking: look.read("balancer_panicking", &of, Aggregate::Avg).unwrap_or(0.0),
    })
}

fn uneven(of: &BalancerReading) -> Option<Finding> {
    const DIFFERENCE: f64 = 0.5;
    let from = match of.policy {
        Balancing::RoundRobin => "round-robin",
        Balancing::SmoothWeightedRoundRobin => "smooth-weighted-round-robin",
        Balancing::WeightedRandom => "weighted-random",
        // The others look at what is in flight, or must not spread a key.
        _ => return None,
    };
    let count = of.backends.len() as f64;
    let mean = of.backends.iter().map(|it| it.in_flight).sum::<f64>() / count;
    let square = |it: &BackendReading| (it.in_flight - mean).powi(2);
    let deviation = (of.backends.iter().map(square).sum::<f64>() / count).sqrt();
    let difference = deviation / mean.max(f64::MIN_POSITIVE);
    // Below one call at a time there is nothing to spread.
    if count < 2.0 || of.leases < CALLS_MIN || mean < 1.0 || difference <= DIFFERENCE {
        return None;
    }
    let most = of.backends.iter().max_by(|a, b| a.in_flight.total_cmp(&b.in_flight))?;
    let slow =
        most.latency_seconds.map_or_else(String::new, |it| format!(" and takes {}", seconds(it)));
    Some(Finding {
        why: "A policy that takes turns sends a slow backend as much as a fast one; `peak-ewma` looks at \
            what is in flight and how long answers take."
            .to_owned(),
        current_value: Some(difference),
        target_value: Some(DIFFERENCE),
        action: Some(Action::set("balancer.policy", from, "peak-ewma")),
        target: Some(MetricSpec { name: "in_flight".to_owned(), ..in_flight(&of.name) }),
        risk: 2,
        effort: Effort::Low,
        confidence: 0.8,
        ..of.finding(
            Priority::Medium,
            format!(
                "Balancer `{}`: backend `{}` has {} calls in flight{slow}, the mean of {count} is {}",
                of.name,
                most.id,
                number(most.in_flight),
                number(mean)
            ),
            format!("Set `balancer.policy` from `{from}` to `peak-ewma`"),
        )
    })
}

fn outlier(of: &BalancerReading) -> Option<Finding> {
    let calls = |it: &&BackendReading| it.succeeded + it.failed >= CALLS_MIN;
    let worst =
        of.backends.iter().filter(calls).max_by(|a, b| a.failing().total_cmp(&b.failing()))?;
    let others = of.backends.iter().filter(|it| it.id != worst.id);
    let (failed, all) = others
        .fold((0.0, 0.0), |(failed, all), it| (failed + it.failed, all + it.succeeded + it.failed));
    let usual = failed / f64::max(all, 1.0);
    if all < CALLS_MIN || worst.failing() <= 0.05 || worst.failing() < 5.0 * usual {
        return None;
    }
    Some(Finding {
        why: "Where one backend fails and the others do not, the fault is its own.".to_owned(),
        current_value: Some(worst.failing()),
        target_value: Some(usual),
        ..of.finding(
            Priority::High,
            format!(
                "Balancer `{}`: {} of the calls to `{}` fail, {} of those to the others",
                of.name,
                percent(worst.failing()),
                worst.id,
                percent(usual)
            ),
            format!("Drain `{}` and look at it; `balancer.eject` would do so by itself", worst.id),
        )
    })
}

fn short_of_places(of: &BalancerReading) -> Option<Finding> {
    let calls = of.leases + of.turned_away;
    let part = of.turned_away / calls.max(1.0);
    if calls < CALLS_MIN || part <= 0.01 {
        return None;
    }
    Some(Finding {
        why: "Every place at every backend was taken, and so was the queue.".to_owned(),
        current_value: Some(part),
        target_value: Some(0.0),
        ..of.finding(
            Priority::High,
            format!(
                "Balancer `{}`: {:.0} of {calls:.0} calls found no place ({})",
                of.name,
                of.turned_away,
                percent(part)
            ),
            format!(
                "Add backends to the {}, or allow more calls to each with \
                    `server.upstream_connections`",
                of.backends.len()
            ),
        )
    })
}

fn panicking(of: &BalancerReading) -> Option<Finding> {
    if of.panicking <= 0.05 || of.backends.len() < 2 {
        return None;
    }
    Some(Finding {
        why: "With so few left, the balancer sends calls to all of them, well or not.".to_owned(),
        current_value: Some(of.panicking),
        target_value: Some(0.0),
        ..of.finding(
            Priority::Critical,
            format!(
                "Balancer `{}`: too few of {} backends were well, {} of the time",
                of.name,
                of.backends.len(),
                percent(of.panicking)
            ),
            "Look at what the backends share: a database, a release, a network".to_owned(),
        )
    })
}

fn in_flight(name: &str) -> MetricSpec {
    let selector: Selector = labelled("balancer_backend_in_flight", &[("balancer", name)]);
    MetricSpec::new("balancer_backend_in_flight", selector, Aggregate::Max, Worse::Higher)
}

fn turned_away(name: &str) -> MetricSpec {
    let selector = labelled("balancer_shed_total", &[("balancer", name)]);
    MetricSpec::new("balancer_shed", selector, Aggregate::Delta, Worse::Higher)
}

#[cfg(test)]
mod tests;
