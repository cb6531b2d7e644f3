//! What breakers, retries and hedges say about the calls to others.

use monitor::advice::words::{number, percent};
use monitor::advice::{Category, Finding, Priority};
use monitor::insight::{MetricSpec, Worse};
use monitor::{Aggregate, Selector};

use super::{Look, Rule, labelled};

pub(super) const RULES: &[Rule] = &[
    Rule {
        id: "resilience.flapping",
        sees: "a circuit breaker opened five times or more within the window",
        does: "advice: a longer `balancer.breaker.open_time`",
        risk: 0,
        check: |look| {
            let breakers = look.values_of(OPENED, "breaker");
            let of = |name: String| {
                let opened = look.grown(OPENED, &[("breaker", name.as_str())]);
                let selector = labelled(OPENED, &[("breaker", &name)]);
                let metric = MetricSpec::new(OPENED, selector, Aggregate::Delta, Worse::Higher);
                let finding = flapping(&name, opened, look.aims().window.as_secs_f64())?;
                Some(Finding { evidence: look.evidence(&[metric]), ..finding })
            };
            breakers.into_iter().filter_map(of).collect()
        },
    },
    Rule {
        id: "resilience.retry_budget",
        sees: "over a tenth of the retries and hedges that were wanted are refused by the budget",
        does: "advice: look at what fails; a larger budget would make it worse",
        risk: 0,
        check: |look| {
            let (given, refused) = (GIVEN, REFUSED);
            let finding = retry_budget(look.grown(given, &[]), look.grown(refused, &[]));
            with(look, finding, &[given, refused])
        },
    },
    Rule {
        id: "resilience.hedge_waste",
        sees: "less than a tenth of the hedges are the answer",
        does: "advice: a higher `balancer.hedge`, or none",
        risk: 0,
        check: |look| {
            let finding = hedge_waste(look.grown(HEDGED, &[]), look.grown(WON, &[]));
            with(look, finding, &[HEDGED, WON])
        },
    },
];

const OPENED: &str = "circuit_breaker_opened_total";
const GIVEN: &str = "retry_budget_given_total";
const REFUSED: &str = "retry_budget_refused_total";
const HEDGED: &str = "balancer_hedges_total";
const WON: &str = "balancer_hedges_won_total";
/// Extra calls without which nothing is said about them.
const CALLS_MIN: f64 = 100.0;

fn with(look: &Look<'_>, finding: Option<Finding>, metrics: &[&str]) -> Vec<Finding> {
    let spec =
        |name: &&str| MetricSpec::new(name, Selector::name(*name), Aggregate::Delta, Worse::Higher);
    let metrics: Vec<_> = metrics.iter().map(spec).collect();
    let found = finding.into_iter();
    found.map(|finding| Finding { evidence: look.evidence(&metrics), ..finding }).collect()
}

fn flapping(name: &str, opened: f64, window_seconds: f64) -> Option<Finding> {
    if opened < 5.0 {
        return None;
    }
    let finding = Finding::advice(
        Category::Errors,
        Priority::High,
        format!(
            "Circuit breaker `{name}` opened {opened:.0} times, once in {} s",
            number(window_seconds / opened)
        ),
        "Raise `balancer.breaker.open_time`, so that what fails has time to come back; if it fails by \
            load, admit less of it",
    );
    Some(Finding {
        subject: name.to_owned(),
        why:
            "A breaker that closes and opens again lets a burst of failing calls through each time."
                .to_owned(),
        current_value: Some(opened),
        target_value: Some(1.0),
        ..finding
    })
}

fn retry_budget(given: f64, refused: f64) -> Option<Finding> {
    let part = refused / (given + refused).max(1.0);
    if given + refused < CALLS_MIN || part <= 0.1 {
        return None;
    }
    let finding = Finding::advice(
        Category::Errors,
        Priority::High,
        format!(
            "The budget of retries refused {refused:.0} of {:.0} ({})",
            given + refused,
            percent(part)
        ),
        "Look at what fails: so many calls fail or are slow that a second attempt for each would double \
            the load",
    );
    Some(Finding {
        why: "The budget bounds extra calls to a part of all, so that retries do not finish off what is \
            overloaded."
            .to_owned(),
        current_value: Some(part),
        target_value: Some(0.0),
        ..finding
    })
}

fn hedge_waste(hedged: f64, won: f64) -> Option<Finding> {
    let part = won / hedged.max(1.0);
    if hedged < CALLS_MIN || part >= 0.1 {
        return None;
    }
    let finding = Finding::advice(
        Category::Latency,
        Priority::Low,
        format!("{won:.0} of {hedged:.0} hedges were the answer ({})", percent(part)),
        "Raise `balancer.hedge` (to 0.99), or set it to `none`",
    );
    Some(Finding {
        why: "A second call that hardly ever wins only adds load: what is slow is slow everywhere."
            .to_owned(),
        current_value: Some(part),
        target_value: Some(0.1),
        ..finding
    })
}

#[cfg(test)]
mod tests;
