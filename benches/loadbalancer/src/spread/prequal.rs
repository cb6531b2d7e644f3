//! The reference: balancing by probes of load and latency, after Prequal.
//!
//! Wydrowski, Kleinberg, Rumble and Archer, "Load is not what you should balance", NSDI 2024, as far as
//! it is known from its abstract and from what was written about it, so this is Prequal-*like*. Each
//! call sends probes to random servers, whose answers (calls in flight, and the median latency of
//! recent calls that came at about that load) go into a pool. A call goes to the server of the pool
//! that is cold with the least latency, or, when all are hot, to the one with the fewest in flight;
//! hot is what lies above a quantile of the loads that were seen.

use std::collections::VecDeque;

/// Probes in the pool at most.
const POOL: usize = 16;
const PROBES_PER_CALL: usize = 3;
const PROBE_TIME_NS: u64 = 500_000;
const PROBE_AGE_MAX_NS: u64 = 1_000_000_000;
/// How often a probe can be used: each use makes it less true.
const USES_MAX: u32 = 2;
const HOT_QUANTILE: f64 = 0.75;
/// Loads from which the quantile is taken.
const LOADS: usize = 128;

/// What a probe has told.
#[derive(Clone, Copy, Debug)]
struct Probe {
    server: usize,
    in_flight: u32,
    latency: u64,
    at: u64,
    uses: u32,
}

/// One balancer of the reference.
#[derive(Debug, Default)]
pub(super) struct Prequal {
    pool: VecDeque<Probe>,
    /// Probes that are on their way: when they are answered, and by whom.
    sent: VecDeque<(u64, usize)>,
    loads: VecDeque<u32>,
    removes_worst: bool,
}

impl Prequal {
    /// Takes the answers of the probes that are due; `ask` returns load and latency of a server.
    pub(super) fn receive(&mut self, now: u64, ask: impl Fn(usize) -> (u32, u64)) {
        while let Some((at, server)) = self.sent.front().copied().filter(|(at, _)| *at <= now) {
            self.sent.pop_front();
            let (in_flight, latency) = ask(server);
            self.pool.retain(|probe| probe.server != server);
            self.pool.push_back(Probe { server, in_flight, latency, at, uses: 0 });
            if self.pool.len() > POOL {
                self.pool.pop_front();
            }
            self.loads.push_back(in_flight);
            if self.loads.len() > LOADS {
                self.loads.pop_front();
            }
        }
    }

    /// Picks a server for a call, and sends its probes.
    pub(super) fn pick(&mut self, now: u64, servers: usize, random: &mut fastrand::Rng) -> usize {
        for server in random.choose_multiple(0..servers, PROBES_PER_CALL) {
            self.sent.push_back((now + PROBE_TIME_NS, server));
        }
        self.pool.retain(|probe| now.saturating_sub(probe.at) < PROBE_AGE_MAX_NS);
        let hot = self.hot();
        let best =
            self.pool.iter().enumerate().min_by_key(|(_, probe)| match probe.in_flight < hot {
                true => (0, probe.latency),
                false => (1, u64::from(probe.in_flight)),
            });
        let Some((index, _)) = best else { return random.usize(..servers) };
        let probe = &mut self.pool[index];
        let server = probe.server;
        // The call that goes there now is one more than it has told.
        probe.in_flight += 1;
        probe.uses += 1;
        if probe.uses >= USES_MAX {
            self.pool.remove(index);
        }
        self.remove_one(hot);
        server
    }

    /// Takes the oldest and the worst out in turns.
    fn remove_one(&mut self, hot: u32) {
        if self.pool.len() < POOL {
            return;
        }
        self.removes_worst = !self.removes_worst;
        if !self.removes_worst {
            self.pool.pop_front();
            return;
        }
        let worst =
            self.pool.iter().enumerate().max_by_key(|(_, probe)| match probe.in_flight < hot {
                true => (0, probe.latency),
                false => (1, u64::from(probe.in_flight)),
            });
        if let Some((index, _)) = worst {
            self.pool.remove(index);
        }
    }

    /// The load from which on a server is hot.
    fn hot(&self) -> u32 {
        let mut loads: Vec<u32> = self.loads.iter().copied().collect();
        if loads.is_empty() {
            return u32::MAX;
        }
        let index = ((loads.len() - 1) as f64 * HOT_QUANTILE) as usize;
        // At least one: servers without calls are cold, however idle everybody is.
        (*loads.select_nth_unstable(index).1).max(1)
    }
}

/// Calls from which a server's latency is told.
const RECENT: usize = 64;

/// What a server remembers of its last calls: the load they found and their latency.
#[derive(Debug, Default)]
pub(super) struct Recent(VecDeque<(u32, u64)>);

impl Recent {
    pub(super) fn record(&mut self, in_flight: u32, latency: u64) {
        if self.0.len() == RECENT {
            self.0.pop_front();
        }
        self.0.push_back((in_flight, latency));
    }

    /// The median latency of calls that came at about this load; zero if there were none at all.
    pub(super) fn median_near(&self, in_flight: u32) -> u64 {
        for distance in [1, 3, u32::MAX] {
            let near = self.0.iter().filter(|(load, _)| load.abs_diff(in_flight) <= distance);
            let mut near: Vec<u64> = near.map(|(_, latency)| *latency).collect();
            if near.len() >= 5 || (distance == u32::MAX && !near.is_empty()) {
                let middle = near.len() / 2;
                return *near.select_nth_unstable(middle).1;
            }
        }
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cold_server_with_the_least_latency_goes_first_and_then_the_least_loaded() {
        let mut random = fastrand::Rng::with_seed(1);
        let tell = |prequal: &mut Prequal, told: &[(u32, u64)]| {
            prequal.sent = (0..told.len()).map(|server| (0, server)).collect();
            prequal.receive(0, |server| told[server]);
        };
        let mut prequal = Prequal::default();
        tell(&mut prequal, &[(2, 90), (2, 30), (9, 1), (2, 50), (9, 1)]);
        assert_eq!(prequal.hot(), 9);
        assert_eq!(prequal.pick(1, 5, &mut random), 1);
        let mut prequal = Prequal::default();
        tell(&mut prequal, &[(5, 90), (5, 30), (5, 1)]);
        assert_eq!(prequal.hot(), 5, "as loaded as most is hot");
        assert_eq!(prequal.pick(1, 3, &mut random), 0, "of equal loads the first");
    }

    #[test]
    fn a_server_tells_the_latency_of_calls_at_its_load() {
        let mut recent = Recent::default();
        assert_eq!(recent.median_near(0), 0);
        for call in 0..10 {
            recent.record(1, 10 + call);
            recent.record(8, 100 + call);
        }
        assert_eq!((recent.median_near(1), recent.median_near(8)), (15, 105));
    }
}
