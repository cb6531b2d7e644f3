//! What guards the calls to others: breakers, the budget of retries, and hedges, as configured.

use std::time::Duration;

use resilience::{
    CircuitBreaker, CircuitBreakerBuilder, Hedge, HedgeBuilder, RetryBudget, RetryBudgetBuilder,
};

use crate::config::{BreakerMode, Config, Origin};

impl Config {
    /// Describes the circuit breaker of a backend, if backends have one.
    pub fn breaker_builder(&self, backend: &str) -> Option<CircuitBreakerBuilder> {
        let settings = &self.balancer.breaker;
        let several = self.server.to.as_ref().is_some_and(|to| to.len() > 1);
        let used = match settings.mode {
            BreakerMode::Auto => several,
            BreakerMode::On => true,
            BreakerMode::Off => false,
        };
        used.then(|| self.breaker_template(backend))
    }

    /// Describes a circuit breaker with the settings of `balancer.breaker`, whatever its mode.
    pub(crate) fn breaker_template(&self, name: &str) -> CircuitBreakerBuilder {
        let settings = &self.balancer.breaker;
        let builder = CircuitBreaker::builder(name)
            .consecutive_failures(small(settings.failures))
            .failure_rate(settings.failure_rate.as_f64())
            .window(settings.window)
            .minimum_calls(small(settings.minimum_requests))
            .slow_call_rate(settings.slow_rate.as_f64())
            .open_time(settings.open_time, settings.open_time_max)
            // A probe that gets no answer ends with the time limit of its request.
            .probe_timeout(self.server.response_timeout.max(Duration::from_secs(1)));
        match settings.slow {
            Some(limit) => builder.slow_call(limit),
            None => builder,
        }
    }

    /// Describes the breakers that the program names: with `balancer.breaker.mode = "off"` they never open.
    ///
    /// That a level has none for the backends of the accelerator says nothing of them.
    pub(crate) fn named_breakers(&self) -> CircuitBreakerBuilder {
        let builder = self.breaker_template("default");
        let told = !matches!(
            self.origin("balancer.breaker.mode"),
            None | Some(Origin::Default | Origin::Level(_))
        );
        match self.balancer.breaker.mode {
            BreakerMode::Off if told => builder.consecutive_failures(0).minimum_calls(u32::MAX),
            _ => builder,
        }
    }

    /// Describes the budget of requests that are sent again or hedged.
    pub fn retry_budget_builder(&self) -> RetryBudgetBuilder {
        RetryBudget::builder("backends").share(self.balancer.retry_budget.as_f64())
    }

    /// Describes the hedging of slow requests, if the configuration has it.
    pub fn hedge_builder(&self, budget: RetryBudget) -> Option<HedgeBuilder> {
        let percentile = self.balancer.hedge?.as_f64();
        Some(Hedge::builder("backends").percentile(percentile).budget(budget))
    }
}

/// A number that its key bounds far below what fits.
pub(crate) fn small(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
