//! The balancer over the configured backends, and what guards the calls to each of them.
//!
//! A backend's id is its URL as the configuration prints it, so metrics, logs and the admin API name
//! it as whoever runs it does. Only what the configuration says is put in here; the calls themselves
//! are made by whoever holds the balancer.

use std::time::Duration;

use loadbalancer::{
    Backend, Balancer, BalancerBuilder, Check, Checks, Ejecting, Policy, Thresholds,
};
use resilience::RetryBudgetBuilder;
use resilience::{CircuitBreaker, CircuitBreakerBuilder, Hedge, HedgeBuilder, RetryBudget};

use crate::UltraPerf;
use crate::config::{Balancing, BreakerMode};

/// The bound of the policies that place requests, against the mean load.
const LOAD_FACTOR: f64 = 1.25;
/// No check's status above this is well.
const STATUS_MAX: u16 = 399;

impl UltraPerf {
    /// Describes a balancer over the backends of `server.to`, with the settings of `balancer`.
    ///
    /// Each backend's id is its URL. One without a limit of its own has that of
    /// `server.upstream_connections`.
    ///
    /// # Examples
    ///
    /// ```
    /// use ultra_perf::{UltraPerf, config::ConfigLoader};
    ///
    /// let config = ConfigLoader::new()
    ///     .set("server.to", "http://10.0.0.1:8000,weight=2,http://10.0.0.2:8000", "the program")
    ///     .set("cache.disk.enabled", "false", "the program")
    ///     .load()?;
    /// let balancer = UltraPerf::new(config).balancer().build()?;
    /// assert_eq!(balancer.backends()[0].weight, 2);
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    pub fn balancer(&self) -> BalancerBuilder {
        let (server, settings) = (&self.config.server, &self.config.balancer);
        let mut builder = Balancer::builder()
            .policy(self.policy())
            .backends_max(crate::config::Backends::MAX)
            .queue_max(settings.queue)
            .wait_max(settings.queue_timeout)
            .slow_start(settings.slow_start)
            .panic_threshold(settings.panic_threshold.as_f64())
            .ejecting(self.ejecting());
        if let Some(zone) = &settings.zone {
            builder = builder.zone(zone.as_str());
        }
        if settings.check_path.is_some() {
            let thresholds =
                Thresholds { rise: small(settings.check_rise), fall: small(settings.check_fall) };
            builder = builder.checks(thresholds);
        }
        let backends = server.to.iter().flatten().map(|it| {
            let limit = it.max_in_flight.unwrap_or(small(server.upstream_connections));
            let backend = Backend::new(it.url.to_string())
                .weight(it.weight)
                .max_in_flight(limit)
                .priority(it.priority);
            match &it.zone {
                Some(zone) => backend.zone(zone.as_str()),
                None => backend,
            }
        });
        builder.backends(backends)
    }

    fn policy(&self) -> Policy {
        let settings = &self.config.balancer;
        let choices = small(settings.choices);
        match settings.policy {
            Balancing::PeakEwma => Policy::PeakEwma { choices, decay: settings.decay },
            Balancing::LeastRequest => Policy::LeastRequest { choices },
            Balancing::RoundRobin => Policy::RoundRobin,
            Balancing::SmoothWeightedRoundRobin => Policy::SmoothWeightedRoundRobin,
            Balancing::WeightedRandom => Policy::WeightedRandom,
            Balancing::RingHash => Policy::RingHash { load_factor: LOAD_FACTOR },
            Balancing::Maglev => Policy::Maglev { load_factor: LOAD_FACTOR },
        }
    }

    fn ejecting(&self) -> Ejecting {
        let settings = &self.config.balancer;
        let usual = Ejecting::default();
        Ejecting {
            consecutive_failures: if settings.eject { small(settings.eject_failures) } else { 0 },
            minimum_answers: if settings.eject { usual.minimum_answers } else { u32::MAX },
            base: settings.eject_time,
            longest: settings.eject_time_max,
            share_max: settings.eject_share.as_f64(),
            ..usual
        }
    }

    /// Describes the active checks of the backends, if the configuration has any.
    pub fn checks(&self) -> Option<Checks> {
        let settings = &self.config.balancer;
        let path = settings.check_path.clone()?;
        Some(Checks {
            interval: settings.check_interval,
            timeout: settings.check_timeout,
            ..Checks::new(Check::Http { path, statuses: 200..=STATUS_MAX })
        })
    }

    /// Describes the circuit breaker of a backend, if backends have one.
    pub fn breaker(&self, backend: &str) -> Option<CircuitBreakerBuilder> {
        let settings = &self.config.balancer.breaker;
        let several = self.config.server.to.as_ref().is_some_and(|to| to.len() > 1);
        let used = match settings.mode {
            BreakerMode::Auto => several,
            BreakerMode::On => true,
            BreakerMode::Off => false,
        };
        let builder = CircuitBreaker::builder(backend)
            .consecutive_failures(small(settings.failures))
            .failure_rate(settings.failure_rate.as_f64())
            .window(settings.window)
            .minimum_calls(small(settings.minimum_requests))
            .slow_call_rate(settings.slow_rate.as_f64())
            .open_time(settings.open_time, settings.open_time_max)
            // A probe that gets no answer ends with the time limit of its request.
            .probe_timeout(self.config.server.response_timeout.max(Duration::from_secs(1)));
        used.then(|| match settings.slow {
            Some(limit) => builder.slow_call(limit),
            None => builder,
        })
    }

    /// Describes the budget of requests that are sent again or hedged.
    pub fn retry_budget(&self) -> RetryBudgetBuilder {
        RetryBudget::builder("backends").share(self.config.balancer.retry_budget.as_f64())
    }

    /// Describes the hedging of slow requests, if the configuration has it.
    pub fn hedge(&self, budget: RetryBudget) -> Option<HedgeBuilder> {
        let percentile = self.config.balancer.hedge?.as_f64();
        Some(Hedge::builder("backends").percentile(percentile).budget(budget))
    }
}

/// A number that its key bounds far below what fits.
fn small(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ConfigLoader;

    fn perf(keys: &[(&str, &str)]) -> UltraPerf {
        let config = keys
            .iter()
            .chain(&[("cache.disk.enabled", "false")])
            .fold(ConfigLoader::new(), |loader, (key, value)| loader.set(*key, *value, "the test"))
            .load()
            .expect("a configuration");
        UltraPerf::new(config)
    }

    #[test]
    fn backends_are_as_configured_and_named_by_their_urls() {
        let perf = perf(&[
            ("server.to", "http://a:1/x,weight=2,max=8,zone=east,http://b,priority=3"),
            ("server.upstream_connections", "64"),
        ]);
        let backends = perf.balancer().build().expect("a balancer").backends();
        let seen: Vec<_> = backends
            .iter()
            .map(|it| (&*it.id, it.weight, it.max_in_flight, it.zone.as_deref(), it.priority))
            .collect();
        let expected =
            [("http://a:1/x", 2, Some(8), Some("east"), 0), ("http://b", 1, Some(64), None, 3)];
        assert_eq!(seen, expected);
    }

    #[test]
    fn every_bound_of_a_key_is_one_that_the_parts_take() {
        for keys in [
            &[][..],
            &[
                ("balancer.policy", "least-request"),
                ("balancer.choices", "2"),
                ("balancer.queue", "0"),
                ("balancer.queue_timeout", "1ms"),
                ("balancer.retry_budget", "0"),
                ("balancer.eject_time", "1ms"),
                ("balancer.eject_time_max", "1ms"),
                ("balancer.eject_share", "0"),
                ("balancer.panic_threshold", "0"),
                ("balancer.hedge", "0.5"),
                ("balancer.breaker.failures", "0"),
                ("balancer.breaker.failure_rate", "0.01"),
                ("balancer.breaker.window", "10ms"),
                ("balancer.breaker.minimum_requests", "1"),
                ("balancer.breaker.slow", "1ms"),
                ("balancer.breaker.open_time", "1ms"),
                ("balancer.breaker.open_time_max", "1ms"),
                ("server.response_timeout", "1ms"),
            ],
            &[
                ("balancer.choices", "256"),
                ("balancer.decay", "1h"),
                ("balancer.queue", "1000000"),
                ("balancer.queue_timeout", "1h"),
                ("balancer.retry_budget", "1"),
                ("balancer.eject_failures", "1000000"),
                ("balancer.eject_time", "1d"),
                ("balancer.eject_time_max", "1d"),
                ("balancer.eject_share", "1"),
                ("balancer.slow_start", "1d"),
                ("balancer.panic_threshold", "1"),
                ("balancer.hedge", "0.999"),
                ("balancer.check_path", "/"),
                ("balancer.check_rise", "1000"),
                ("balancer.breaker.failure_rate", "1"),
                ("balancer.breaker.window", "1h"),
                ("balancer.breaker.slow", "1h"),
                ("balancer.breaker.open_time", "1d"),
                ("balancer.breaker.open_time_max", "1d"),
                ("server.response_timeout", "36500d"),
            ],
        ] {
            let to = ("server.to", "http://a,http://b");
            let perf = perf(&[&[to][..], keys].concat());
            perf.balancer().build().expect("a balancer");
            perf.breaker("a").expect("there are two").build().expect("a breaker");
            let budget = perf.retry_budget().build().expect("a budget");
            perf.hedge(budget).map(|it| it.build().expect("a hedge"));
        }
    }

    #[test]
    fn one_backend_has_no_breaker_unless_told() {
        for (to, mode, used) in [
            ("http://a", "auto", false),
            ("http://a,http://b", "auto", true),
            ("http://a", "on", true),
            ("http://a,http://b", "off", false),
        ] {
            let perf = perf(&[("server.to", to), ("balancer.breaker.mode", mode)]);
            assert_eq!(perf.breaker("a").is_some(), used, "{to} {mode}");
        }
    }
}
