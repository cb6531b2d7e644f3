//! The balancer over the configured backends, and what guards the calls to each of them.
//!
//! A backend's id is its URL as the configuration prints it, so metrics, logs and the admin API name
//! it as whoever runs it does. Only what the configuration says is put in here; the calls themselves
//! are made by whoever holds the balancer.

use std::collections::BTreeMap;

use loadbalancer::{
    Backend, Balancer, BalancerBuilder, Check, Checks, Ejecting, Policy, Thresholds,
};
use parking_lot::Mutex;

use crate::UltraPerf;
use crate::config::{Balancing, Config};
use crate::guarding::small;

/// The bound of the policies that place requests, against the mean load.
const LOAD_FACTOR: f64 = 1.25;
/// No check's status above this is well.
const STATUS_MAX: u16 = 399;

impl Config {
    /// Describes a balancer over the backends of `server.to`, with the settings of `balancer`.
    ///
    /// Each backend's id is its URL. One without a limit of its own has that of
    /// `server.upstream_connections`.
    ///
    /// # Examples
    ///
    /// ```
    /// use ultra_perf::config::ConfigLoader;
    ///
    /// let config = ConfigLoader::new()
    ///     .set("server.to", "http://10.0.0.1:8000,weight=2,http://10.0.0.2:8000", "the program")
    ///     .set("cache.disk.enabled", "false", "the program")
    ///     .load()?;
    /// let balancer = config.balancer_builder().build()?;
    /// assert_eq!(balancer.backends()[0].weight, 2);
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    pub fn balancer_builder(&self) -> BalancerBuilder {
        let server = &self.server;
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
        self.balancer_settings().backends(backends)
    }

    /// Describes a balancer without backends, with the settings of `balancer`.
    fn balancer_settings(&self) -> BalancerBuilder {
        let settings = &self.balancer;
        let mut builder = Balancer::builder()
            .policy(self.balancing())
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
        builder
    }

    /// The policy with its settings.
    pub(crate) fn balancing(&self) -> Policy {
        let settings = &self.balancer;
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
        let settings = &self.balancer;
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
        let settings = &self.balancer;
        let path = settings.check_path.clone()?;
        Some(Checks {
            interval: settings.check_interval,
            timeout: settings.check_timeout,
            ..Checks::new(Check::Http { path, statuses: 200..=STATUS_MAX })
        })
    }
}

/// The balancers that are watched and follow changes, by name.
#[derive(Debug, Default)]
pub(crate) struct Balancers(Mutex<BTreeMap<String, Balancer>>);

impl Balancers {
    /// Lets them follow a change of the policy, but for those that the program has given another one.
    pub(crate) fn follow(&self, before: &Config, after: &Config) {
        let (was, policy) = (before.balancing(), after.balancing());
        if policy == was {
            return;
        }
        let followers = |(_, balancer): &(&String, &Balancer)| balancer.policy() == was;
        for (name, balancer) in self.0.lock().iter().filter(followers) {
            if let Err(error) = balancer.set_policy(policy) {
                tracing::warn!(balancer = name, %error, "the policy stays");
            }
        }
    }

    #[cfg(feature = "monitor")]
    pub(crate) fn report(&self, out: &mut monitor::Readings) {
        for (name, balancer) in &*self.0.lock() {
            crate::watch::balancer::report(name, balancer, out);
        }
    }
}

impl UltraPerf {
    /// Describes a balancer with the settings of `balancer`, over backends that the program names.
    ///
    /// What it builds is watched under the name as [`watch_balancer`](Self::watch_balancer) does.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let perf = ultra_perf::UltraPerf::builder().level(ultra_perf::OptimizationLevel::Basic)
    /// #     .set("monitor.history.enabled", "false").build().await?;
    /// use ultra_perf::loadbalancer::{Backend, Outcome, Pick};
    ///
    /// let shards = ["db-1:5432", "db-2:5432"].map(Backend::new);
    /// let balancer = perf.balancer("shards").backends(shards).build()?;
    /// let lease = balancer.acquire(&Pick::new()).await?;
    /// println!("ask {}", lease.backend());
    /// lease.complete(Outcome::Success);
    /// # Ok(())
    /// # }
    /// ```
    pub fn balancer(&self, name: &str) -> BalancerBuilder {
        let (weak, name) = (self.downgrade(), name.to_owned());
        self.config().balancer_settings().on_build(move |balancer| {
            // Without the handle there is nobody to watch it.
            if let Some(perf) = weak.upgrade() {
                perf.watch_balancer(&name, balancer);
            }
        })
    }

    /// Watches a balancer under a name, and lets it follow changes of `balancer.policy`.
    ///
    /// One whose policy the program has set otherwise keeps it. The handle keeps the balancer; another one
    /// of the same name takes its place.
    pub fn watch_balancer(&self, name: &str, balancer: &Balancer) {
        self.0.balancers.0.lock().insert(name.to_owned(), balancer.clone());
    }

    /// Returns the balancers that are watched, by name.
    #[must_use]
    pub fn balancers(&self) -> Vec<(String, Balancer)> {
        let balancers = self.0.balancers.0.lock();
        balancers.iter().map(|(name, balancer)| (name.clone(), balancer.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ConfigLoader;

    fn config(keys: &[(&str, &str)]) -> Config {
        keys.iter()
            .chain(&[("cache.disk.enabled", "false")])
            .fold(ConfigLoader::new(), |loader, (key, value)| loader.set(*key, *value, "the test"))
            .load()
            .expect("a configuration")
    }

    #[test]
    fn backends_are_as_configured_and_named_by_their_urls() {
        let config = config(&[
            ("server.to", "http://a:1/x,weight=2,max=8,zone=east,http://b,priority=3"),
            ("server.upstream_connections", "64"),
        ]);
        let backends = config.balancer_builder().build().expect("a balancer").backends();
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
            let config = config(&[&[to][..], keys].concat());
            config.balancer_builder().build().expect("a balancer");
            config.breaker_builder("a").expect("there are two").build().expect("a breaker");
            let budget = config.retry_budget_builder().build().expect("a budget");
            config.hedge_builder(budget).map(|it| it.build().expect("a hedge"));
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
            let config = config(&[("server.to", to), ("balancer.breaker.mode", mode)]);
            assert_eq!(config.breaker_builder("a").is_some(), used, "{to} {mode}");
        }
    }
}
