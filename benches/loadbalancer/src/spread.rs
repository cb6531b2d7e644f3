//! A simulation of servers behind balancers: how long calls take under each policy.
//!
//! Fifty servers of four slots each and of nominal speeds 1/2, 1, 1 and 2 get calls at random. Some are
//! four times slower than they should be, which nobody has told the balancers. Time is a number that
//! goes from event to event, and the balancers are the real ones, driven by passed time; only the
//! Prequal-like reference is of this program (`prequal`). A call that is not done at the end counts
//! with the time it has taken by then, or a policy that lets a queue grow would look good for it.

mod page;
mod prequal;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::{Duration, Instant};

use loadbalancer::{Backend, Balancer, Lease, Outcome, Pick, Policy};

pub(crate) use self::page::{HELD_OUT, Results, all, of, table, write};
use self::prequal::{Prequal, Recent};

const SERVERS: usize = 50;
const SLOTS: u32 = 4;
const SPEEDS: [f64; 4] = [0.5, 1.0, 1.0, 2.0];
/// The mean time of a call on a server of speed 1.
const SERVICE_NS: f64 = 10e6;
const SLOWDOWN: f64 = 4.0;
const SLOW_SERVERS: usize = 5;
/// The mean times for which servers that change are slow and fast.
const SLOW_NS: f64 = 2e9;
const FAST_NS: f64 = 18e9;

/// What happens to the servers and how many balancers there are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    /// The share of the capacity that is asked for.
    load: f64,
    balancers: usize,
    /// Servers turn slow and fast, instead of five being slow all the time.
    changing: bool,
    /// Times of calls are log-normal with a sigma of 1.5, instead of exponential.
    heavy: bool,
}

/// All cases.
pub(crate) const CASES: [Case; 3] = [
    Case {
        name: "static",
        about: "one balancer, 5 of 50 servers four times slower, 85 % of the capacity",
        load: 0.85,
        balancers: 1,
        changing: false,
        heavy: false,
    },
    Case {
        name: "dynamic",
        about: "ten balancers, servers turn slow for 2 s every 20 s, 85 % of the expected capacity",
        load: 0.85,
        balancers: 10,
        changing: true,
        heavy: false,
    },
    Case {
        name: "log-normal",
        about: "one balancer, 5 of 50 servers slower, log-normal calls, 70 % of the capacity",
        load: 0.70,
        balancers: 1,
        changing: false,
        heavy: true,
    },
];

/// Who picks the server.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Entrant {
    Ours { name: &'static str, policy: Policy, weighted: bool },
    PrequalLike,
}

impl Entrant {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Ours { name, .. } => name,
            Self::PrequalLike => PREQUAL_LIKE,
        }
    }
}

/// The name of the default policy in rows and tables.
pub(crate) const DEFAULT: &str = "choose-5 peak EWMA";
/// The name of the reference in rows and tables.
pub(crate) const PREQUAL_LIKE: &str = "Prequal-like";

/// Everybody, in the order of the tables.
pub(crate) fn entrants() -> Vec<Entrant> {
    let ours = |name, policy, weighted| Entrant::Ours { name, policy, weighted };
    let p2c = Policy::PeakEwma { choices: 2, decay: Duration::from_secs(1) };
    vec![
        ours("round robin", Policy::RoundRobin, false),
        ours("smooth WRR, nominal weights", Policy::SmoothWeightedRoundRobin, true),
        ours("least request", Policy::LeastRequest { choices: u32::MAX }, false),
        ours("p2c least request", Policy::LeastRequest { choices: 2 }, false),
        ours("p2c peak EWMA", p2c, false),
        ours(DEFAULT, Policy::default(), false),
        Entrant::PrequalLike,
    ]
}

/// Latencies of calls in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Spread {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
}

impl Spread {
    fn of(mut latencies: Vec<u64>) -> Self {
        latencies.sort_unstable();
        let at = |share: f64| {
            let index = (latencies.len() as f64 * share) as usize;
            latencies.get(index).map_or(f64::NAN, |nanos| *nanos as f64 / 1e6)
        };
        Self { p50: at(0.5), p99: at(0.99), p999: at(0.999) }
    }

    /// The mean of several, number by number.
    pub(crate) fn mean(spreads: &[Self]) -> Self {
        let mean = |of: fn(&Self) -> f64| {
            spreads.iter().map(of).sum::<f64>() / spreads.len().max(1) as f64
        };
        Self { p50: mean(|it| it.p50), p99: mean(|it| it.p99), p999: mean(|it| it.p999) }
    }
}

/// How long a run warms up and is then measured, in simulated seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Length {
    pub(crate) warm_up: u64,
    pub(crate) measured: u64,
}

/// The length of the runs of the table.
pub(crate) const LENGTH: Length = Length { warm_up: 15, measured: 45 };

/// Runs an entrant through a case and returns the latencies.
pub(crate) fn run(case: Case, entrant: Entrant, length: Length, seed: u64) -> Spread {
    Simulation::new(case, entrant, length, seed).run()
}

struct Server {
    speed: f64,
    slow: bool,
    busy: u32,
    queue: VecDeque<usize>,
    /// What the reference asks the servers for.
    recent: Recent,
}

impl Server {
    fn in_flight(&self) -> u32 {
        self.busy + self.queue.len() as u32
    }
}

/// A call on its way.
struct Call {
    arrived: u64,
    in_flight_then: u32,
    lease: Option<Lease>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Happening {
    Done { server: usize, call: usize },
    Turns { server: usize },
}

struct Simulation {
    case: Case,
    random: fastrand::Rng,
    start: Instant,
    servers: Vec<Server>,
    ours: Vec<Balancer>,
    prequal: Vec<Prequal>,
    calls: Vec<Call>,
    free: Vec<usize>,
    happenings: BinaryHeap<Reverse<(u64, u64, Happening)>>,
    happened: u64,
    latencies: Vec<u64>,
    warm_at: u64,
    end_at: u64,
    /// The mean time between calls.
    gap: f64,
}

impl Simulation {
    fn new(case: Case, entrant: Entrant, length: Length, seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut servers: Vec<Server> = (0..SERVERS)
            .map(|index| Server {
                speed: SPEEDS[index % SPEEDS.len()],
                slow: false,
                busy: 0,
                queue: VecDeque::new(),
                recent: Recent::default(),
            })
            .collect();
        if !case.changing {
            for index in random.choose_multiple(0..SERVERS, SLOW_SERVERS) {
                servers[index].slow = true;
            }
        }
        let share = SLOW_NS / (SLOW_NS + FAST_NS);
        let capacity: f64 = servers
            .iter()
            .map(|server| match (case.changing, server.slow) {
                (true, _) => server.speed * (1.0 - share + share / SLOWDOWN),
                (false, true) => server.speed / SLOWDOWN,
                (false, false) => server.speed,
            })
            .sum::<f64>()
            * f64::from(SLOTS)
            / SERVICE_NS;
        let start = Instant::now();
        let ours = |policy, weighted: bool| {
            let balancer = |index: usize| {
                let backend = |server: usize| {
                    let weight =
                        if weighted { (SPEEDS[server % SPEEDS.len()] * 2.0) as u32 } else { 1 };
                    Backend::new(server.to_string()).weight(weight)
                };
                Balancer::builder()
                    .policy(policy)
                    .backends((0..SERVERS).map(backend))
                    .seed(seed ^ (index as u64) << 32)
                    .build_at(start)
                    .expect("a valid set")
            };
            (0..case.balancers).map(balancer).collect()
        };
        let (ours, prequal) = match entrant {
            Entrant::Ours { policy, weighted, .. } => (ours(policy, weighted), Vec::new()),
            Entrant::PrequalLike => {
                let prequal = (0..case.balancers).map(|_| Prequal::default()).collect();
                (Vec::new(), prequal)
            }
        };
        Self {
            case,
            random,
            start,
            servers,
            ours,
            prequal,
            calls: Vec::new(),
            free: Vec::new(),
            happenings: BinaryHeap::new(),
            happened: 0,
            latencies: Vec::new(),
            warm_at: length.warm_up * 1_000_000_000,
            end_at: (length.warm_up + length.measured) * 1_000_000_000,
            gap: 1.0 / (capacity * case.load),
        }
    }

    fn run(mut self) -> Spread {
        if self.case.changing {
            for server in 0..SERVERS {
                self.turn(0, server, false);
            }
        }
        let mut arrival = self.exponential(self.gap);
        loop {
            let next = self.happenings.peek().map_or(u64::MAX, |Reverse((at, ..))| *at);
            let now = next.min(arrival);
            if now >= self.end_at {
                break;
            }
            for prequal in &mut self.prequal {
                prequal.receive(now, |server| {
                    let server = &self.servers[server];
                    (server.in_flight(), server.recent.median_near(server.in_flight()))
                });
            }
            if arrival <= next {
                self.arrive(arrival);
                arrival += self.exponential(self.gap);
            } else if let Some(Reverse((now, _, happening))) = self.happenings.pop() {
                match happening {
                    Happening::Done { server, call } => self.done(now, server, call),
                    Happening::Turns { server } => {
                        let slow = !self.servers[server].slow;
                        self.turn(now, server, slow);
                    }
                }
            }
        }
        // Whatever is under way has taken at least so long.
        let (warm_at, end_at) = (self.warm_at, self.end_at);
        let under_way: Vec<bool> = {
            let mut under_way = vec![true; self.calls.len()];
            self.free.iter().for_each(|call| under_way[*call] = false);
            under_way
        };
        for (call, _) in self.calls.iter().zip(under_way).filter(|(_, under_way)| *under_way) {
            if call.arrived >= warm_at {
                self.latencies.push(end_at - call.arrived);
            }
        }
        Spread::of(self.latencies)
    }

    fn at(&self, now: u64) -> Instant {
        self.start + Duration::from_nanos(now)
    }

    fn exponential(&mut self, mean: f64) -> u64 {
        (-(1.0 - self.random.f64()).ln() * mean) as u64
    }

    /// How long a call takes at speed 1.
    fn service(&mut self) -> f64 {
        if !self.case.heavy {
            return self.exponential(SERVICE_NS) as f64;
        }
        const SIGMA: f64 = 1.5;
        // Box and Muller.
        let (one, two) = (1.0 - self.random.f64(), self.random.f64());
        let normal = (-2.0 * one.ln()).sqrt() * (std::f64::consts::TAU * two).cos();
        SERVICE_NS * (SIGMA * normal - SIGMA * SIGMA / 2.0).exp()
    }

    /// Makes a server slow or fast and says when it turns again.
    fn turn(&mut self, now: u64, server: usize, slow: bool) {
        self.servers[server].slow = slow;
        let at = now + self.exponential(if slow { SLOW_NS } else { FAST_NS });
        self.schedule(at, Happening::Turns { server });
    }

    fn schedule(&mut self, at: u64, happening: Happening) {
        self.happened += 1;
        self.happenings.push(Reverse((at, self.happened, happening)));
    }

    fn arrive(&mut self, now: u64) {
        let balancer = self.random.usize(..self.case.balancers);
        let (server, lease) = if self.prequal.is_empty() {
            let lease = self.ours[balancer].try_acquire_at(&Pick::new(), self.at(now));
            let lease = lease.expect("servers have no limit");
            (lease.backend().parse().expect("servers are called by their index"), Some(lease))
        } else {
            (self.prequal[balancer].pick(now, SERVERS, &mut self.random), None)
        };
        let in_flight_then = self.servers[server].in_flight();
        let call = Call { arrived: now, in_flight_then, lease };
        let index = match self.free.pop() {
            Some(index) => {
                self.calls[index] = call;
                index
            }
            None => {
                self.calls.push(call);
                self.calls.len() - 1
            }
        };
        if self.servers[server].busy < SLOTS {
            self.begin(now, server, index);
        } else {
            self.servers[server].queue.push_back(index);
        }
    }

    fn begin(&mut self, now: u64, server: usize, call: usize) {
        let service = self.service();
        let server_is = &mut self.servers[server];
        server_is.busy += 1;
        let slowdown = if server_is.slow { SLOWDOWN } else { 1.0 };
        let took = service / server_is.speed * slowdown;
        self.schedule(now + took as u64, Happening::Done { server, call });
    }

    fn done(&mut self, now: u64, server: usize, index: usize) {
        let at = self.at(now);
        let call = &mut self.calls[index];
        let latency = now - call.arrived;
        if let Some(lease) = call.lease.take() {
            lease.complete_at(Outcome::Success, at);
        }
        if call.arrived >= self.warm_at {
            self.latencies.push(latency);
        }
        let server_is = &mut self.servers[server];
        server_is.recent.record(call.in_flight_then, latency);
        server_is.busy -= 1;
        self.free.push(index);
        if let Some(next) = self.servers[server].queue.pop_front() {
            self.begin(now, server, next);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Length = Length { warm_up: 3, measured: 7 };

    fn spread(case: Case, name: &str) -> Spread {
        let entrant = entrants().into_iter().find(|entrant| entrant.name() == name);
        run(case, entrant.expect("an entrant"), SHORT, 7)
    }

    #[test]
    fn a_seed_gives_the_same_run_again() {
        assert_eq!(spread(CASES[0], DEFAULT), spread(CASES[0], DEFAULT));
    }

    #[test]
    fn the_default_finds_the_slow_servers_and_turns_do_not() {
        let default = spread(CASES[0], DEFAULT);
        let turns = spread(CASES[0], "round robin");
        let p2c = spread(CASES[0], "p2c least request");
        assert!(default.p99 < 75.0, "{default:?}");
        assert!(default.p99 < p2c.p99, "{default:?} {p2c:?}");
        assert!(turns.p99 > 10.0 * default.p99, "{turns:?}");
    }

    #[test]
    fn ten_balancers_follow_servers_that_change() {
        let default = spread(CASES[1], DEFAULT);
        let least = spread(CASES[1], "least request");
        assert!(default.p99 < 100.0 && default.p99 < least.p99, "{default:?} {least:?}");
    }

    #[test]
    fn percentiles_are_those_of_the_sorted_latencies() {
        let latencies = (1..=1_000).rev().map(|ms| ms * 1_000_000).collect();
        assert_eq!(Spread::of(latencies), Spread { p50: 501.0, p99: 991.0, p999: 1_000.0 });
    }
}
