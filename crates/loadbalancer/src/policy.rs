//! Which backend is next: the policies, and how each of them takes a place.
//!
//! A [`Level`] is a group of backends that are as good as each other; the balancer goes to the next
//! one when every place of a level is taken. What can be worked out when the set changes is worked out
//! then (the order of turns, the sums of weights, the tables of hashes), so a pick looks at a handful
//! of nodes and takes a place in one of them. Nodes are read without any order, so a pick may rest on
//! counts that are a moment old; the place itself is taken in one atomic step.

pub(crate) mod hash;

#[cfg(all(test, not(loom)))]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use crossbeam_utils::CachePadded;

pub(crate) use self::hash::Table;
use crate::latency::{Averaging, Nanos};
use crate::node::Node;
use crate::pick::Pick;
use crate::sync::{AtomicU64, Relaxed};

/// How the next backend is chosen.
///
/// Weights count under every policy but [`RoundRobin`](Self::RoundRobin), full backends are passed
/// over by all of them.
///
/// # Cost
///
/// The policies that look at `choices` backends cost as much for ten backends as for ten thousand;
/// the turns and the hashes look one place up. While a chosen backend is full, the others are gone
/// through one by one.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Policy {
    /// Takes the one of a few random backends with the least latency times leases, plus two.
    ///
    /// The latency is the peak EWMA of Finagle: it jumps up with a slow answer and comes down over
    /// `decay`. A backend that has leases and is silent for longer counts as that slow. A failure counts
    /// as a slow answer, so a backend that fails fast is not taken for a fast one. Up to 16 backends are
    /// all looked at. The default, with 5 choices and 1 s.
    PeakEwma {
        /// How many backends are compared; at least 2.
        choices: u32,
        /// How fast the past is forgotten; 10 ms to 1 hour.
        decay: Duration,
    },
    /// Takes the one of a few random backends with the fewest leases.
    ///
    /// Two choices are the power of two choices (Mitzenmacher, 2001); with [`u32::MAX`] all backends
    /// are compared. Reads no clock.
    LeastRequest {
        /// How many backends are compared; at least 2.
        choices: u32,
    },
    /// Takes each backend in turn, whatever its weight.
    RoundRobin,
    /// Takes each backend in turn, as often as its weight says and spread as evenly as that allows.
    SmoothWeightedRoundRobin,
    /// Draws a backend, each as likely as its weight says.
    WeightedRandom,
    /// Takes the backend that owns the key on a ring of hashes (Karger, 1997), with bounded load.
    ///
    /// A backend that has more than `load_factor` times its share of the leases passes the key on
    /// (Mirrokni, 2016). Picks without a key are spread at random.
    RingHash {
        /// Above 1; 1.25 is usual. Larger values keep more keys in place and balance less.
        load_factor: f64,
    },
    /// As [`RingHash`](Self::RingHash), by the table of Maglev (Eisenbud, 2016).
    ///
    /// It looks up in one step and spreads more evenly; a change of the set moves a few more keys.
    Maglev {
        /// As that of [`RingHash`](Self::RingHash).
        load_factor: f64,
    },
}

impl Default for Policy {
    fn default() -> Self {
        Self::PeakEwma { choices: 5, decay: Duration::from_secs(1) }
    }
}

impl Policy {
    /// What is wrong with it, as setting, value and what would be right.
    pub(crate) fn problem(&self) -> Option<(&'static str, String, &'static str)> {
        match *self {
            Self::PeakEwma { choices, .. } | Self::LeastRequest { choices } if choices < 2 => {
                Some(("policy.choices", choices.to_string(), "must be at least 2"))
            }
            Self::PeakEwma { decay, .. }
                if !(Duration::from_millis(10)..=Duration::from_hours(1)).contains(&decay) =>
            {
                Some(("policy.decay", format!("{decay:?}"), "must be from 10 ms to 1 hour"))
            }
            Self::RingHash { load_factor } | Self::Maglev { load_factor }
                if !(load_factor > 1.0 && load_factor.is_finite()) =>
            {
                Some(("policy.load_factor", load_factor.to_string(), "must be above 1"))
            }
            _ => None,
        }
    }

    /// How it takes averages of latencies, if it does.
    pub(crate) fn averaging(&self) -> Option<Averaging> {
        match self {
            Self::PeakEwma { decay, .. } => Some(Averaging::new(*decay)),
            _ => None,
        }
    }

    /// Whether it places keys.
    pub(crate) fn hashes(&self) -> bool {
        matches!(self, Self::RingHash { .. } | Self::Maglev { .. })
    }
}

/// What peak EWMA adds to the leases of a backend before it multiplies by them.
///
/// With one, as in Finagle, a second lease doubles the cost of a backend, as if it served its calls
/// one after the other. Backends serve several at once; with two, latency counts for more while there
/// are few leases, and in the simulation of `benches/loadbalancer` tails are shorter in every case.
const QUEUE_OFFSET: f64 = 2.0;
/// Up to so many backends peak EWMA compares all of them.
const SCAN_MAX: usize = 16;
/// The most turns of a round; beyond it weights are rounded.
const TURNS_MAX: f64 = 65_536.0;

/// Backends among which the policy chooses.
pub(crate) struct Level {
    nodes: Box<[Arc<Node>]>,
    plan: Plan,
}

/// What a policy has worked out for a level.
enum Plan {
    /// Compares leases alone.
    Leases { choices: usize },
    /// Compares leases times latency.
    Latency { choices: usize, averaging: Averaging },
    /// Goes through the indices of nodes in this order.
    Turns { order: Box<[u32]>, next: CachePadded<AtomicU64> },
    /// Draws by the sums of the weights up to each node.
    Sums(Box<[f64]>),
    /// Looks a key up; the table goes over all members of the level, ready or not.
    Keys { table: Arc<Table>, ready: Box<[Option<u32>]>, load_factor: f64, weights: f64 },
}

impl Plan {
    fn turns(order: Box<[u32]>, first: u32) -> Self {
        Self::Turns { order, next: CachePadded::new(AtomicU64::new(u64::from(first))) }
    }
}

/// What a pick knows besides the level.
pub(crate) struct How<'a> {
    pub(crate) pick: &'a Pick,
    pub(crate) now: Nanos,
    pub(crate) draw: u64,
    /// The fleet's median latency in nanoseconds.
    pub(crate) usual: f64,
}

impl Level {
    /// Makes a level of nodes with their weights in effect, all above zero.
    ///
    /// Turns begin with the `first`, so that balancers with the same set are not in step.
    /// `keys` is for the policies that place keys: the table, and for each of its members which of
    /// `nodes` it is.
    pub(crate) fn new(
        policy: &Policy,
        nodes: Vec<Arc<Node>>,
        weights: &[f64],
        keys: Option<(Arc<Table>, Vec<Option<u32>>)>,
        first: u32,
    ) -> Self {
        let limit = |choices: u32| usize::try_from(choices).unwrap_or(usize::MAX);
        let plan = match *policy {
            Policy::LeastRequest { choices } => Plan::Leases { choices: limit(choices) },
            Policy::PeakEwma { choices, decay } => {
                let choices = if nodes.len() <= SCAN_MAX { usize::MAX } else { limit(choices) };
                Plan::Latency { choices, averaging: Averaging::new(decay) }
            }
            Policy::RoundRobin => Plan::turns((0..nodes.len() as u32).collect(), first),
            Policy::SmoothWeightedRoundRobin => Plan::turns(turns(weights), first),
            Policy::WeightedRandom => Plan::Sums(sums(weights)),
            Policy::RingHash { load_factor } | Policy::Maglev { load_factor } => {
                let (table, ready) = keys.expect("the caller makes a table for these");
                let weights = weights.iter().sum();
                Plan::Keys { table, ready: ready.into(), load_factor, weights }
            }
        };
        Self { nodes: nodes.into(), plan }
    }

    pub(crate) fn nodes(&self) -> &[Arc<Node>] {
        &self.nodes
    }

    /// Takes a place in a node; if `avoiding`, in one that the pick does not avoid.
    pub(crate) fn enter(&self, how: &How<'_>, avoiding: bool) -> Option<&Arc<Node>> {
        match avoiding && !how.pick.avoided().is_empty() {
            true => self.enter_one(how, &|node| !how.pick.avoids(&node.id)),
            false => self.enter_one(how, &|_| true),
        }
    }

    fn enter_one(&self, how: &How<'_>, allowed: &impl Fn(&Node) -> bool) -> Option<&Arc<Node>> {
        if self.nodes.is_empty() {
            return None;
        }
        match &self.plan {
            Plan::Leases { choices } => least(&self.nodes, *choices, how, &|node| {
                let leases = node.room().filter(|_| allowed(node))?;
                Some(f64::from(leases + 1) * node.per_weight())
            }),
            Plan::Latency { choices, averaging } => least(&self.nodes, *choices, how, &|node| {
                let leases = node.room().filter(|_| allowed(node))?;
                let latency = node.latency.estimate(how.now, *averaging, how.usual);
                let silence = match node.owes_answers(leases) {
                    false => 0.0,
                    true => node.latency.silence(node.busy_since(), how.now),
                };
                let queue = f64::from(leases) + QUEUE_OFFSET;
                Some(latency.max(silence) * queue * node.per_weight())
            }),
            Plan::Turns { order, next } => {
                let turn = next.fetch_add(1, Relaxed) % order.len() as u64;
                self.from(how.now, order[turn as usize] as usize, allowed)
            }
            Plan::Sums(sums) => {
                let all = sums.last().copied().unwrap_or_default();
                let at = unit(how.draw) * all;
                let index = sums.partition_point(|sum| *sum <= at);
                self.from(how.now, index.min(self.nodes.len() - 1), allowed)
            }
            Plan::Keys { table, ready, load_factor, weights } => {
                let key = how.pick.key_hash().unwrap_or(how.draw);
                let leases = self.nodes[0].fleet.bounded_leases.load(Relaxed) + 1;
                let mean = load_factor * leases as f64 / weights;
                let entered = |index: u32| {
                    let node = &self.nodes[index as usize];
                    let bound = (mean / node.per_weight()).ceil().max(1.0);
                    let fits = f64::from(node.in_flight()) < bound;
                    (fits && allowed(node) && node.try_enter(how.now)).then_some(node)
                };
                let found = table
                    .owners(key)
                    .find_map(|member| ready[member as usize].and_then(entered))
                    .or_else(|| {
                        self.from(how.now, (key % self.nodes.len() as u64) as usize, allowed)
                    })?;
                found.fleet.bounded_leases.fetch_add(1, Relaxed);
                Some(found)
            }
        }
    }

    /// Takes a place in the first node from `start` that has one.
    fn from(
        &self,
        now: Nanos,
        start: usize,
        allowed: &impl Fn(&Node) -> bool,
    ) -> Option<&Arc<Node>> {
        let (before, after) = self.nodes.split_at(start);
        after.iter().chain(before).find(|node| allowed(node) && node.try_enter(now))
    }
}

/// Takes a place in the cheapest of `choices` random nodes, or of all if those have no room.
fn least<'n>(
    nodes: &'n [Arc<Node>],
    choices: usize,
    how: &How<'_>,
    cost: &impl Fn(&Node) -> Option<f64>,
) -> Option<&'n Arc<Node>> {
    let How { now, draw, .. } = *how;
    let start = scaled(draw, nodes.len());
    if choices < nodes.len() {
        // One at random from each of `choices` stretches, the first of which starts at random: all
        // different, each as likely as any other, every two may meet, and a pattern in the order of
        // the set is no pattern among the chosen.
        let (length, longer) = (nodes.len() / choices, nodes.len() % choices);
        let (mut stretch, mut random) = (start, draw);
        let few = (0..choices).map(|at| {
            // Knuth's generator, whose high half is good.
            random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            let length = length + usize::from(at < longer);
            let chosen = stretch + scaled(random >> 32, length);
            stretch += length;
            &nodes[if chosen < nodes.len() { chosen } else { chosen - nodes.len() }]
        });
        if let Some(node) = cheapest(few, cost)
            && node.try_enter(now)
        {
            return Some(node);
        }
    }
    let (before, after) = nodes.split_at(start);
    loop {
        // Whenever this fails, somebody else has taken a place, so it ends.
        let node = cheapest(after.iter().chain(before), cost)?;
        if node.try_enter(now) {
            return Some(node);
        }
    }
}

fn cheapest<'n>(
    nodes: impl Iterator<Item = &'n Arc<Node>>,
    cost: &impl Fn(&Node) -> Option<f64>,
) -> Option<&'n Arc<Node>> {
    let mut best = None;
    let mut lowest = f64::INFINITY;
    for node in nodes {
        if let Some(cost) = cost(node)
            && cost < lowest
        {
            lowest = cost;
            best = Some(node);
        }
    }
    best
}

/// A number below `n` from the low half of a draw.
fn scaled(draw: u64, n: usize) -> usize {
    (((draw & 0xffff_ffff) * n as u64) >> 32) as usize
}

/// A number from 0 up to 1, without 1.
pub(crate) fn unit(draw: u64) -> f64 {
    (draw >> 11) as f64 / (1_u64 << 53) as f64
}

/// A round in which each index comes as often as its weight says, as evenly spread as can be.
///
/// The k-th of the w turns of an index is due at (k + 1/2) / w of the round, so at any point of it
/// each index is at most half a turn from its due.
fn turns(weights: &[f64]) -> Box<[u32]> {
    let whole = weights.iter().all(|weight| weight.fract() == 0.0);
    let divisor = if whole {
        weights.iter().map(|weight| *weight as u64).fold(0, greatest_common_divisor) as f64
    } else {
        // Weights in tenths, from slow starts.
        0.1
    };
    let sum: f64 = weights.iter().sum();
    let scale = (1.0 / divisor).min(TURNS_MAX / sum);
    let mut due: Vec<(f64, u32)> = weights
        .iter()
        .zip(0_u32..)
        .flat_map(|(weight, index)| {
            let turns = (weight * scale).round().max(1.0);
            (0..turns as u32).map(move |turn| ((f64::from(turn) + 0.5) / turns, index))
        })
        .collect();
    due.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    due.into_iter().map(|(_, index)| index).collect()
}

fn greatest_common_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

fn sums(weights: &[f64]) -> Box<[f64]> {
    let add = |sum: &mut f64, weight: &f64| {
        *sum += weight;
        Some(*sum)
    };
    weights.iter().scan(0.0, add).collect()
}
